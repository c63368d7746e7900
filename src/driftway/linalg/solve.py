"""Solving A x = b for symmetric positive A: Cholesky with the least jitter that works, and preconditioned conjugate gradients.

    L L^T = K + jitter (trace K / n) I,   solve b = L^-T L^-1 b,   whiten b = L^-1 b,   logdet = 2 sum_i log L_ii

Conjugate gradients (Hestenes and Stiefel, 1952), z = P^-1 r, each column of b on its own:

    a = r.z / p.A p,   x <- x + a p,   r <- r - a A p,   p <- z + (r.z / previous r.z) p

Pivoted Cholesky (Harbrecht, Peters and Schneider, 2012): the next column is that of the largest entry d_i of the remaining diagonal,

    l = (K e_i - L L^T e_i) / sqrt(d_i),   d <- d - l^2,   trace(K - L L^T) = sum_i d_i;

P = L L^T + lam I then preconditions K + lam I (Gardner et al., 2018), P^-1 v = (v - L (lam I + L^T L)^-1 L^T v) / lam.

Equations (K31), (K32): docs/derivations/kernels.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from driftway.checks import InputError, count, kind, moderate, numbers, real, require, shaped
from driftway.linalg.operator import SymmetricOperator, symmetric_matrix


@dataclass(frozen=True)
class Factor:
    """The Cholesky factor of a matrix.

    Attributes:
        L: lower triangular.
        jitter: what was added to the diagonal, as a fraction of the mean diagonal.
    """

    L: Float[Tensor, "n n"]
    jitter: float

    def solve(self, b: Tensor) -> Tensor:
        """K^-1 b for b (n,) or (n, k)."""
        x = torch.cholesky_solve(b.reshape(len(b), -1), self.L)
        return x.reshape(b.shape)

    def whiten(self, b: Tensor) -> Tensor:
        """L^-1 b for b (n,) or (n, k): |L^-1 b|^2 = b.K^-1 b."""
        x = torch.linalg.solve_triangular(self.L, b.reshape(len(b), -1), upper=False)
        return x.reshape(b.shape)

    def logdet(self) -> Float[Tensor, ""]:
        """log det K."""
        return 2 * self.L.diagonal().log().sum()


def cholesky(K: Tensor, *, jitter: float | int = 0.0) -> Factor:
    """L with L L^T = K, or K plus the least jitter that works. Differentiable in K.

    The jitter is a fraction of the mean diagonal. The given one is tried first, then n eps (eps of the dtype), the size of the rounding
    errors, and ten times more until max(1e-4, 10 n eps).

    Args:
        K: (n, n), positive semi-definite up to rounding.
        jitter: the first to try.

    Raises:
        InputError: if K is not a symmetric matrix of finite numbers, or not positive semi-definite.
    """
    K, jitter = symmetric_matrix("K", K), real("jitter", jitter, least=0)
    n, scale, floor = len(K), K.diagonal().mean(), len(K) * torch.finfo(K.dtype).eps
    limit = max(1e-4, 10 * floor)
    while True:
        L, info = torch.linalg.cholesky_ex(K + jitter * scale * torch.eye(n, dtype=K.dtype, device=K.device))
        if not info:
            return Factor(L, jitter)
        jitter = max(10 * jitter, floor)
        if jitter > 1.01 * limit or scale <= 0:
            break
    least = float(torch.linalg.eigvalsh(K.detach().double())[0]) / (abs(float(scale)) or 1.0)
    raise InputError("K", expected="a positive semi-definite matrix", got=f"a least eigenvalue of {least:.2g} times the mean diagonal",
                     cure="check that it is the kernel of one set of points with itself, compute it in float64, or add noise to its "
                     "diagonal")  # fmt: skip


@dataclass(frozen=True)
class Solution:
    """What conjugate gradients found.

    Attributes:
        x: of the shape of b.
        residuals: |b - A x| / |b| of each column, computed anew at the end; 0 for a zero column.
        steps: products with A that the iteration took.
        converged: whether all residuals are within the tolerance.
    """

    x: Tensor
    residuals: Float[Tensor, " k"]
    steps: int
    converged: bool


@torch.no_grad()
def conjugate_gradient(op: SymmetricOperator, b: Tensor, *, tolerance: float | int = 1e-6, steps: int = 1000,
                       preconditioner: Callable[[Tensor], Tensor] | None = None) -> Solution:  # fmt: skip
    """x with A x = b, for all columns of b at once; a column rests when its residual is within the tolerance.

    When the residuals of the recursion are small enough the true ones are computed. Where rounding has parted the two the iteration
    starts again from x.

    Args:
        op: A, positive semi-definite.
        b: (n,) or (n, k).
        tolerance: bound on |b - A x| / |b|.
        steps: the most steps to take.
        preconditioner: R (n, k) -> P^-1 R, symmetric positive definite.

    Raises:
        InputError: if A shows a direction of negative curvature, or a product is not finite.
    """
    tolerance, steps = real("tolerance", tolerance, least=0, strict=True), count("steps", steps)
    kind("op", op, SymmetricOperator, "an operator, such as dense_operator(K)")
    b = numbers("b", b)
    b = shaped("b", b, (op.size,) if b.ndim == 1 else (op.size, None))
    moderate("b", b)
    B = b[:, None] if b.ndim == 1 else b
    X, taken, size = torch.zeros_like(B), 0, B.norm(dim=0)
    while True:
        R = B - op @ X
        require(bool(torch.isfinite(R).all()), "b - op @ x", expected="finite numbers", got="NaN or infinite ones",
                cure="look for missing values in b and in the inputs of the kernel")  # fmt: skip
        active = R.norm(dim=0) > tolerance * size
        if taken >= steps or not active.any():
            break
        Z = P = R if preconditioner is None else preconditioner(R)
        rz = (R * Z).sum(0)
        while taken < steps and active.any():
            AP = op @ P
            curvature, taken = (P * AP).sum(0), taken + 1
            _check_curvature(curvature, P, AP, active)
            active = active & (curvature > 0)
            a = torch.where(active, rz / curvature, 0)
            X, R = X + a * P, R - a * AP
            active = active & (R.norm(dim=0) > tolerance * size)
            Z = R if preconditioner is None else preconditioner(R)
            rz, before = (R * Z).sum(0), rz
            P = Z + torch.where(active, rz / before, 0) * P
    residuals = torch.where(size > 0, R.norm(dim=0) / size, 0)
    return Solution(X.reshape(b.shape), residuals, taken, bool((residuals <= tolerance).all()))


def _check_curvature(curvature: Float[Tensor, " k"], P: Float[Tensor, "n k"], AP: Float[Tensor, "n k"],
                     active: Bool[Tensor, " k"]) -> None:  # fmt: skip
    least = float((curvature / (P.norm(dim=0) * AP.norm(dim=0)))[active].nan_to_num(0.0).min())
    require(least >= -100 * torch.finfo(P.dtype).eps ** 0.5, "op", expected="a positive semi-definite operator",
            got=f"p.A p = {least:.2g} |p| |A p|", cure="check the kernel, or shift the operator by a positive lam")  # fmt: skip


@torch.no_grad()
def pivoted_cholesky(diagonal: Float[Tensor, " n"], column: Callable[[int], Tensor], *, rank: int,
                     tolerance: float | int = 0.0) -> Float[Tensor, "n r"]:  # fmt: skip
    """L (n, r) with L L^T close to K, from r columns of K.

    Args:
        diagonal: of K; an operator has it as `op.diagonal`.
        column: i -> K e_i; an operator has it as `op.column`.
        rank: the most columns.
        tolerance: stop when trace(K - L L^T) is this fraction of trace K; stops at rounding in any case.

    Raises:
        InputError: if the rank or the tolerance is out of range.
    """
    tolerance = real("tolerance", tolerance, least=0)
    diagonal = shaped("diagonal", diagonal, (None,))
    require(callable(column), "column", expected="a function of i", got=type(column).__name__, cure="pass op.column")
    d, L = diagonal.clone(), diagonal.new_zeros(len(diagonal), rank := min(count("rank", rank), len(diagonal)))
    enough = max(tolerance, len(d) * torch.finfo(d.dtype).eps) * d.sum()
    for r in range(rank):
        if d.sum() <= enough:
            return L[:, :r]
        i = int(d.argmax())
        L[:, r] = (shaped("column", column(i), (len(d),)) - L[:, :r] @ L[i, :r]) / d[i].sqrt()
        d = (d - L[:, r].square()).clamp_min(0)
        d[i] = 0
    return L


def low_rank_preconditioner(L: Float[Tensor, "n r"], lam: float | int) -> Callable[[Tensor], Tensor]:
    """R (n, k) -> (L L^T + lam I)^-1 R, for `conjugate_gradient` on K + lam I.

    Raises:
        InputError: if lam is not positive.
    """
    lam = real("lam", lam, least=0, strict=True)
    inner = cholesky(L.T @ L + lam * torch.eye(L.shape[1], dtype=L.dtype, device=L.device))
    return lambda R: (R - L @ inner.solve(L.T @ R)) / lam
