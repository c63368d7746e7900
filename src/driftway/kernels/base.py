"""Kernels and their algebra: what every kernel can do, and how new ones are made of old.

    cross(x, y)_ij = k(x_i, y_j)      gram(x) = cross(x, x), symmetric to the last bit      diagonal(x)_i = k(x_i, x_i)
    (k + l)(x, y) = k(x, y) + l(x, y)      (k l)(x, y) = k(x, y) l(x, y)      (c k)(x, y) = c k(x, y), c >= 0

Sums, products (Schur, 1911) and non-negative multiples of positive semidefinite kernels are positive semidefinite. A kernel
knows nothing of inference. `k(x)` and `k(x, y)` check their input; the methods below do not, so that parts of a kernel are not
checked again. `blocks` and `operator` use a kernel whose matrix is too large to hold.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import count, real, require, same_dtype, samples
from driftway.kernels.memory import GIB as GIB
from driftway.kernels.memory import require_memory, row_slices
from driftway.linalg import SymmetricOperator


class Kernel(ABC):
    """A positive semidefinite function of two points. Implement `cross` and `diagonal`; rows of x are points of any one shape."""

    @abstractmethod
    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        """The matrix of k(x_i, y_j)."""

    @abstractmethod
    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        """The values k(x_i, x_i), without the matrix."""

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        """The matrix of k(x_i, x_j), symmetric to the last bit."""
        K = self.cross(x, x)
        return (K + K.mT).mul_(0.5)

    def __call__(self, x: object, y: object = None) -> Tensor:
        """The Gram matrix of x, or with y the matrix (n, m) of k(x_i, y_j).

        Args:
            x: points (n, *event), an array or tensor of finite numbers; whole numbers become float32.
            y: points (m, *event) of the same dtype and device.

        Raises:
            InputError: if the points are not of this kind, or the matrix is larger than the memory that is free.
        """
        a, b = points(x, y)
        require_memory("x", len(a) * len(b) * a.itemsize, "evaluate it in parts, with driftway.kernels.blocks or "
                       "driftway.kernels.operator, or pass fewer rows", device=a.device)  # fmt: skip
        return self.gram(a) if y is None else self.cross(a, b)

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum(self, other) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, other: "Kernel | float | int | Tensor") -> "Kernel":
        if isinstance(other, Kernel):
            return Product(self, other)
        return Scale(self, other) if isinstance(other, float | int | Tensor) else NotImplemented

    def __rmul__(self, other: "float | int | Tensor") -> "Kernel":
        return self * other

    def columns(self, index: Sequence[int]) -> "Kernel":
        """The kernel of the named columns only, entries of the first axis of a point."""
        return Pullback(self, Columns(tuple(index)))

    def to(self, dtype: torch.dtype) -> "Kernel":
        """The kernel computed and returned in this dtype, whatever the dtype of the points."""
        return Pullback(self, Cast(dtype))


@dataclass(frozen=True)
class Sum(Kernel):
    """k + l."""

    k: Kernel
    l: Kernel  # noqa: E741 -- the letter of the formula

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return self.k.cross(x, y) + self.l.cross(x, y)

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        return self.k.gram(x) + self.l.gram(x)

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return self.k.diagonal(x) + self.l.diagonal(x)


@dataclass(frozen=True)
class Product(Kernel):
    """k l, entry by entry."""

    k: Kernel
    l: Kernel  # noqa: E741 -- the letter of the formula

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return self.k.cross(x, y) * self.l.cross(x, y)

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        return self.k.gram(x) * self.l.gram(x)

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return self.k.diagonal(x) * self.l.diagonal(x)


@dataclass(frozen=True)
class Scale(Kernel):
    """c k, with a number or scalar tensor c >= 0.

    Raises:
        InputError: if c is negative or not finite: the result would not be a kernel.
    """

    k: Kernel
    c: float | int | Tensor

    def __post_init__(self) -> None:
        real("factor", self.c.item() if isinstance(self.c, Tensor) and self.c.numel() == 1 else self.c, least=0.0)

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return self.c * self.k.cross(x, y)

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        return self.c * self.k.gram(x)

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return self.c * self.k.diagonal(x)


@dataclass(frozen=True)
class Pullback(Kernel):
    """k(f(x), f(y)) for a map f of points."""

    k: Kernel
    f: Callable[[Tensor], Tensor]

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return self.k.cross(self.f(x), self.f(y))

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        return self.k.gram(self.f(x))

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return self.k.diagonal(self.f(x))


@dataclass(frozen=True)
class Columns:
    """The map to the columns `index` of the points.

    Raises:
        InputError: if there are none, one is named twice, or (at the call) the points have fewer.
    """

    index: tuple[int, ...]

    def __post_init__(self) -> None:
        for j in self.index:
            count("columns", j, least=0)
        require(0 < len(self.index) == len(set(self.index)), "columns", expected="one or more distinct columns", got=self.index,
                cure="name each column once")  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        require(max(self.index) < x.shape[1], "columns", expected=f"columns below {x.shape[1]}, the number that x has",
                got=max(self.index), cure="name columns that x has; the first is 0")  # fmt: skip
        return x[:, list(self.index)]


@dataclass(frozen=True)
class Cast:
    """The map to points of a dtype."""

    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def points(x: object, y: object = None) -> tuple[Tensor, Tensor]:
    """Points x and y as tensors (n, *event) and (m, *event); y is x if None. Gradients pass.

    Raises:
        InputError: if they are not finite numbers in rows, or of unlike shapes, dtypes or devices.
    """
    a = _checked("x", x, None)
    if y is None:
        return a, a
    b = _checked("y", y, tuple(a.shape[1:]))
    same_dtype("x", a, "y", b)
    return a, b


def _checked(argument: str, value: object, event: tuple[int, ...] | None) -> Tensor:
    checked = samples(argument, value, event=event, least=1)
    return value if isinstance(value, Tensor) and value.requires_grad else checked


def blocks(kernel: Kernel, x: object, y: object = None, *, memory: float | int = 1.0) -> Iterator[tuple[slice, Tensor]]:
    """The matrix of k(x_i, y_j) in blocks of whole rows: pairs (rows, matrix of these rows of x and all of y).

    Args:
        kernel: k.
        x: points (n, *event).
        y: points (m, *event); x if None.
        memory: GiB that a block and the work on it may take at most; a block has one row at least.

    Raises:
        InputError: if points or memory are not what they should be.
    """
    a, b = points(x, y)
    return ((rows, kernel.cross(a[rows], b)) for rows in row_slices(len(a), len(b), memory=memory, device=a.device))


def operator(kernel: Kernel, x: object, *, memory: float | int = 1.0) -> SymmetricOperator:
    """The Gram matrix of x as an operator that computes its entries anew for each product, in blocks, and never holds it.

    Args:
        kernel: k.
        x: points (n, *event).
        memory: GiB that a block may take at most.

    Raises:
        InputError: if points or memory are not what they should be.
    """
    a, _ = points(x)
    slices, diagonal = row_slices(len(a), len(a), memory=memory, device=a.device), kernel.diagonal(a)
    return SymmetricOperator(len(a), diagonal.dtype, a.device, lambda v: torch.cat([kernel.cross(a[rows], a) @ v for rows in slices]),
                             diagonal)  # fmt: skip
