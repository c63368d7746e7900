"""Networks of infinite width: their two kernels, products of networks, and networks of some columns.

A network is, at initialisation, a Gaussian process with the NNGP kernel S, and trains under gradient flow as kernel regression with the
NTK Theta = E[grad f(x) . grad f(x')] (Lee et al., 2018; Jacot et al., 2018). The product f g of two networks, drawn and trained side by
side, has at initialisation uncorrelated outputs with the kernels

    S = S_f S_g,    Theta = Theta_f S_g + S_f Theta_g          (product rule)

Equation (K10): docs/derivations/kernels.md.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import choice
from driftway.kernels.base import Cast, Columns, Kernel

PARTS = ("nngp", "ntk")


@dataclass(frozen=True)
class Pair:
    """The two kernels of a network, as matrices or as their diagonals.

    Attributes:
        nngp: covariance of the outputs at initialisation.
        ntk: inner products of the gradients.
    """

    nngp: Float[Tensor, "*shape"]
    ntk: Float[Tensor, "*shape"]


class Network(ABC):
    """A network of infinite width. `nngp` and `ntk` are its kernels; `kernels` has both in one pass."""

    @abstractmethod
    def kernels(self, x: Tensor, y: Tensor | None = None) -> Pair:
        """Both kernels between the rows of x and y; of x and itself if y is None, symmetric to the last bit.

        Args:
            x: rows (n, *event) of finite numbers.
            y: rows (m, *event) of the same dtype and device.

        Raises:
            InputError: if the rows are not of this kind, or the matrices are larger than the memory that is free.
        """

    @abstractmethod
    def kernel_diagonals(self, x: Tensor) -> Pair:
        """Both kernels of each row with itself, shape (n,).

        Raises:
            InputError: if x is not rows of finite numbers.
        """

    def kernel(self, part: str, x: Tensor, y: Tensor | None = None) -> Tensor:
        """One of the two kernels, "nngp" or "ntk", as in `kernels`."""
        return getattr(self.kernels(x, y), choice("part", part, PARTS))

    @property
    def nngp(self) -> Kernel:
        """The covariance at initialisation."""
        return _Part(self, "nngp")

    @property
    def ntk(self) -> Kernel:
        """The neural tangent kernel."""
        return _Part(self, "ntk")

    def columns(self, index: Sequence[int]) -> "Network":
        """The network of the named columns only, entries of the first axis of a row."""
        return _Pullback(self, Columns(tuple(index)))

    def to(self, dtype: torch.dtype) -> "Network":
        """The network computed in this dtype, whatever the dtype of the rows."""
        return _Pullback(self, Cast(dtype))

    def __mul__(self, other: "Network") -> "Network":
        return ProductNetwork(self, other) if isinstance(other, Network) else NotImplemented


@dataclass(frozen=True)
class _Part(Kernel):
    network: Network
    part: str

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return self.network.kernel(self.part, x, y)

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        return self.network.kernel(self.part, x)

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return getattr(self.network.kernel_diagonals(x), self.part)


@dataclass(frozen=True)
class ProductNetwork(Network):
    """The product f g of the outputs of two networks.

    Attributes:
        f: the one.
        g: the other, drawn independently.
    """

    f: Network
    g: Network

    def kernels(self, x: Tensor, y: Tensor | None = None) -> Pair:
        return _product(self.f.kernels(x, y), self.g.kernels(x, y))

    def kernel(self, part: str, x: Tensor, y: Tensor | None = None) -> Tensor:
        if part == "nngp":
            return self.f.kernel(part, x, y) * self.g.kernel(part, x, y)
        return super().kernel(part, x, y)

    def kernel_diagonals(self, x: Tensor) -> Pair:
        return _product(self.f.kernel_diagonals(x), self.g.kernel_diagonals(x))


def _product(f: Pair, g: Pair) -> Pair:
    return Pair(f.nngp * g.nngp, torch.addcmul(f.ntk * g.nngp, f.nngp, g.ntk))


@dataclass(frozen=True)
class _Pullback(Network):
    """The network of f(x) for a map f of rows."""

    network: Network
    f: Callable[[Tensor], Tensor]

    def kernels(self, x: Tensor, y: Tensor | None = None) -> Pair:
        return self.network.kernels(self.f(x), None if y is None else self.f(y))

    def kernel(self, part: str, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.network.kernel(part, self.f(x), None if y is None else self.f(y))

    def kernel_diagonals(self, x: Tensor) -> Pair:
        return self.network.kernel_diagonals(self.f(x))
