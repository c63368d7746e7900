"""Mean embeddings of samples, their distance (MMD) and the witness function.

A sample x with weights a, sum_i a_i = 1, is the function mu = sum_i a_i k(x_i, .), and <mu, nu> = sum_ij a_i b_j k(x_i, y_j). Then

    MMD^2 = |mu - nu|^2 = a'K_xx a - 2 a'K_xy b + b'K_yy b                                      "v", never negative
    MMD^2 = (a'K_xx a - sum_i a_i^2 K_ii) / (1 - sum_i a_i^2) - 2 a'K_xy b + (the same of y)    "u"
    w     = mu - nu,      MMD^2 = sum_i a_i w(x_i) - sum_j b_j w(y_j)                           the witness and "v"

(Gretton et al., 2012, lemma 6 and section 2.3, with weights). "u" leaves out the pairs of a point with itself: for independent points
and weights that do not depend on them it is unbiased, and so it may be negative. Uniform weights give the usual 1/(n (n-1)).

Precision: MMD^2 is a small difference of large numbers. So kernels are evaluated, and sums taken, in float64, whatever the dtype of the
points; the result is rounded to that dtype at the end. `kernel.to(torch.float32)` keeps a kernel in float32 where that is good enough.

Equations (K26), (K27), (K28): docs/derivations/kernels.md.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import choice, kind, numbers, require, shaped
from driftway.kernels.base import Kernel, blocks, points
from driftway.kernels.memory import row_slices
from driftway.linalg.operator import symmetric_matrix

STATISTICS = ("v", "u")


@dataclass(frozen=True)
class MeanEmbedding:
    """The function sum_i w_i k(x_i, .): a mean embedding (weights of sum 1), or a difference of two (of sum 0).

    Attributes:
        points: (n, *event) x.
        weights: (n,) in float64; they may be negative.
        kernel: k.
    """

    points: Float[Tensor, "n *event"]
    weights: Float[Tensor, " n"]
    kernel: Kernel

    def inner(self, other: "MeanEmbedding", *, memory: float | int = 1.0) -> Float[Tensor, ""]:
        """<mu, nu> in float64, in blocks of at most `memory` GiB."""
        _same_kernel(self, other)
        if other is not self:
            return self.weights @ other._at(self.points, memory)
        k, x, w = self.kernel.to(torch.float64), self.points.double(), self.weights
        total = w.new_zeros(())
        for rows in row_slices(len(x), len(x), memory=memory, device=x.device):
            K = k.cross(x[rows], x[rows.start :]).double()  # on and above the diagonal: the rest is the same by symmetry
            total = total + w[rows] @ (2 * (K @ w[rows.start :]) - K[:, : len(K)] @ w[rows])
        return total

    def norm(self, *, memory: float | int = 1.0) -> Float[Tensor, ""]:
        """|mu| in float64."""
        return self.inner(self, memory=memory).clamp_min(0).sqrt()

    def evaluate(self, y: object, *, memory: float | int = 1.0) -> Float[Tensor, " m"]:
        """mu(y_j) at points y (m, *event), in blocks of at most `memory` GiB.

        Raises:
            InputError: if the points are not like those of the embedding.
        """
        _, z = points(self.points, _given("y", y))
        return self._at(z, memory).to(z.dtype)

    def _at(self, z: Tensor, memory: float | int) -> Tensor:
        parts = blocks(self.kernel.to(torch.float64), z.double(), self.points.double(), memory=memory)
        return torch.cat([K.double() @ self.weights for _, K in parts])

    def __sub__(self, other: "MeanEmbedding") -> "MeanEmbedding":
        _same_kernel(self, other)
        return MeanEmbedding(torch.cat([self.points, other.points]), torch.cat([self.weights, -other.weights]), self.kernel)


def _same_kernel(a: MeanEmbedding, b: MeanEmbedding) -> None:
    require(a.kernel == b.kernel, "other", expected=f"an embedding by the kernel {a.kernel}", got=b.kernel,
            cure="embed both samples by one kernel object")  # fmt: skip


def embed(x: object, *, kernel: Kernel, weights: Tensor | None = None) -> MeanEmbedding:
    """The mean embedding of a sample.

    Args:
        x: points (n, *event).
        kernel: k.
        weights: (n,) of sum 1, uniform if None; they may be negative, and gradients pass.

    Raises:
        InputError: if the points or weights are not what they should be.
    """
    kind("kernel", kernel, Kernel, "a kernel")
    x, _ = points(x)
    return MeanEmbedding(x, _weights("weights", weights, x), kernel)


def witness(x: object, y: object, *, kernel: Kernel, weights_x: Tensor | None = None, weights_y: Tensor | None = None) -> MeanEmbedding:
    """The witness w = mu_x - mu_y: `witness(x, y, kernel=k).evaluate(z)` is large where x is denser than y.

    Raises:
        InputError: as [`mmd2`][driftway.kernels.embedding.mmd2].
    """
    a, b = _pair(x, y, kernel, weights_x, weights_y)
    return a - b


def mmd2(x: object, y: object, *, kernel: Kernel, weights_x: Tensor | None = None, weights_y: Tensor | None = None, statistic: str = "v",
         memory: float | int = 1.0) -> Float[Tensor, ""]:  # fmt: skip
    """MMD^2 of two samples; gradients pass to points, weights and kernel. Without gradients it holds one block at a time.

    Args:
        x: points (n, *event).
        y: points (m, *event).
        kernel: k.
        weights_x: (n,) a of sum 1, uniform if None; they may be negative.
        weights_y: (m,) b, likewise.
        statistic: "v", biased and never negative, or "u", unbiased.
        memory: GiB that a block may take.

    Raises:
        InputError: if points, weights or options are not what they should be, or "u" is asked of a single point.
    """
    choice("statistic", statistic, STATISTICS)
    a, b = _pair(x, y, kernel, weights_x, weights_y)
    k = kernel.to(torch.float64)
    xx, yy = a.inner(a, memory=memory), b.inner(b, memory=memory)
    if statistic == "u":
        xx, yy = (_without_self(name, total, e.weights, k.diagonal(e.points).double()) for name, total, e in (("x", xx, a), ("y", yy, b)))
    return _combine(xx, a.inner(b, memory=memory), yy, statistic).to(a.points.dtype)


def mmd2_from_gram(K_xx: Float[Tensor, "n n"], K_xy: Float[Tensor, "n m"], K_yy: Float[Tensor, "m m"], *, weights_x: Tensor | None = None,
                   weights_y: Tensor | None = None, statistic: str = "v") -> Float[Tensor, ""]:  # fmt: skip
    """MMD^2 from the three matrices of a kernel, in float64; arguments as of [`mmd2`][driftway.kernels.embedding.mmd2].

    Raises:
        InputError: if weights or statistic are not what they should be.
    """
    choice("statistic", statistic, STATISTICS)
    K_xx, K_yy = symmetric_matrix("K_xx", K_xx).double(), symmetric_matrix("K_yy", K_yy).double()
    K_xy = shaped("K_xy", K_xy, (len(K_xx), len(K_yy))).double()
    a, b = _weights("weights_x", weights_x, K_xx), _weights("weights_y", weights_y, K_yy)
    xx, yy = a @ K_xx @ a, b @ K_yy @ b
    if statistic == "u":
        xx, yy = _without_self("x", xx, a, K_xx.diagonal()), _without_self("y", yy, b, K_yy.diagonal())
    return _combine(xx, a @ K_xy @ b, yy, statistic)


def _pair(x: object, y: object, kernel: Kernel, weights_x: Tensor | None, weights_y: Tensor | None) -> tuple[MeanEmbedding, MeanEmbedding]:
    x, y = pair(x, y, kernel)
    return MeanEmbedding(x, _weights("weights_x", weights_x, x), kernel), MeanEmbedding(y, _weights("weights_y", weights_y, y), kernel)


def pair(x: object, y: object, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Two samples for a kernel.

    Raises:
        InputError: if one lacks or is unusable, or the kernel is none.
    """
    kind("kernel", kernel, Kernel, "a kernel")
    return points(x, _given("y", y))


def _given(argument: str, y: object) -> object:
    require(y is not None, argument, expected="points", got="None", cure="pass another sample")
    return y


def _weights(argument: str, weights: Tensor | None, like: Tensor) -> Float[Tensor, " n"]:
    n = len(like)
    if weights is None:
        return torch.full((n,), 1 / n, dtype=torch.float64, device=like.device)
    weights = numbers(argument, weights)
    require(weights.shape == (n,), argument, expected=f"one weight for each of {n} points", got=f"shape {tuple(weights.shape)}",
            cure=f"pass shape ({n},)")  # fmt: skip
    weights = weights.to(like.device, torch.float64)
    total = weights.sum()
    require(abs(total.item() - 1) < 1e-4, argument, expected="finite weights of sum 1", got=f"sum {total.item():g}",
            cure="divide them by their sum")  # fmt: skip
    return weights / total


def _without_self(argument: str, total: Tensor, weights: Tensor, diagonal: Tensor) -> Tensor:
    own = weights.square()
    left = 1 - own.sum()
    require(left.item() > 1e-9, argument, expected="at least two points of some weight, for the unbiased statistic",
            got=f"{len(weights)} points, squared weights of sum {own.sum().item():g}", cure='pass statistic="v"')  # fmt: skip
    return (total - own @ diagonal) / left


def _combine(xx: Tensor, xy: Tensor, yy: Tensor, statistic: str) -> Tensor:
    value = xx - 2 * xy + yy
    return value.clamp_min(0) if statistic == "v" else value
