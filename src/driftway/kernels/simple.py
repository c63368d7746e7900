"""Kernels with a formula, beside the infinite networks, and the median heuristic.

    Linear       k(x, y) = x . y                              its MMD is the distance of the means
    Gaussian     k(x, y) = exp(-|x - y|^2 / (2 h^2))          characteristic: its MMD is zero for equal laws only
    Energy       k(x, y) = |x| + |y| - |x - y|                its MMD^2 is the energy distance (Sejdinovic et al., 2013)

    h = median |z_i - z_j| over the pairs of unequal points of a sample (Gretton et al., 2012, section 8)

Exponents are x.y - |x|^2/2 - |y|^2/2 by one matrix product, about the mean of y: a common offset of the points costs no digits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import count, real, require
from driftway.kernels.base import Kernel, points


@dataclass(frozen=True)
class Linear(Kernel):
    """The dot product of the flattened points."""

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return x.flatten(1) @ y.flatten(1).mT

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return x.flatten(1).square().sum(1)


@dataclass(frozen=True)
class Gaussian(Kernel):
    """The Gaussian kernel of width h, a number or a scalar tensor > 0.

    Raises:
        InputError: if the width is not positive and finite.
    """

    bandwidth: float | int | Tensor

    def __post_init__(self) -> None:
        h = self.bandwidth
        real("bandwidth", h.item() if isinstance(h, Tensor) and h.numel() == 1 else h, least=0.0, strict=True)

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return self._exponent(x, y).clamp_max_(0).exp_()

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        E = self._exponent(x, x)
        return (E + E.mT).mul_(0.5).fill_diagonal_(0).clamp_max_(0).exp_()

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return torch.ones_like(x.flatten(1)[:, 0])

    def _exponent(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = x.flatten(1), y.flatten(1)
        centre = y.detach().mean(0)
        x, y = (x - centre) / self.bandwidth, (y - centre) / self.bandwidth
        one, p, q = torch.ones_like(x[:, :1]), -x.square().sum(1, keepdim=True) / 2, -y.square().sum(1, keepdim=True) / 2
        require(bool(p.isfinite().all() & q.isfinite().all()), "bandwidth", got=f"{float(self.bandwidth):.3g}",
                expected=f"one in which the points are small enough to be squared in {x.dtype}",
                cure="pass a larger one, or divide the points by their scale")  # fmt: skip
        return torch.cat([x, p, one], 1) @ torch.cat([y, torch.ones_like(q), q], 1).mT


@dataclass(frozen=True)
class Energy(Kernel):
    """The distance kernel about the origin, without a width."""

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        if x.dtype.itemsize < 4:  # for which there are no distances
            return self.cross(x.float(), y.float()).to(x.dtype)
        x, y = x.flatten(1), y.flatten(1)
        return x.norm(dim=1)[:, None] + y.norm(dim=1) - torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return 2 * x.flatten(1).norm(dim=1)


@torch.no_grad()
def median_bandwidth(x: object, y: object = None, *, rows: int = 2000) -> float:
    """The median distance of unequal points of x, or of x and y together.

    Args:
        x: points (n, *event).
        y: more points (m, *event).
        rows: of a larger sample, about this many rows are used, evenly spaced.

    Raises:
        InputError: if the points are not finite numbers in rows, or all equal.
    """
    a, b = points(x, y)
    z = (a if y is None else torch.cat([a, b])).flatten(1).double()
    d = torch.pdist(z[:: -(-len(z) // count("rows", rows, least=2))])
    d = d[d > 0]
    require(len(d) > 0, "x", expected="at least two unequal points", got=f"{len(z)} equal ones", cure="pass a bandwidth of your own")
    return float(d.median())
