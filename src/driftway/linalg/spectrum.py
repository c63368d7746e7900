"""The spectrum of a kernel matrix K (n, n): the eigenvalues mu_1 >= mu_2 >= ... of K/n and their eigenvectors U.

    d(lam) = sum_j mu_j / (mu_j + lam)                effective dimension of ridge regression with penalty lam on K/n
    z      = U^T y / sqrt(n)                          coordinates of y: |z|^2 = mean of y^2

Where k < n values are known, the others sum to rest = trace - sum_j mu_j and are at most mu_k, so by concavity

    rest / (mu_k + lam)  <=  sum of the others' mu / (mu + lam)  <=  rest / (rest / (n-k) + lam).

Large operators: block Krylov iteration (Golub and Underwood, 1977; with blocks of k columns and more it finds values of any
multiplicity, Musco and Musco, 2015), restarted from its Ritz vectors (Wu and Simon, 2000). With an orthonormal basis Q and A Q at hand,

    (Q^T A Q) Y = Y diag(theta),   residual_j = |A Q y_j - theta_j Q y_j|;  an eigenvalue lies within residual_j of theta_j.

A trace that is not known is the found part plus Hutchinson's estimate of the rest (Hutch++, Meyer et al., 2021):
trace = sum_j theta_j + mean_i w_i.A w_i,  w = (I - U U^T) signs.

Equations (K33), (K34), (K35): docs/derivations/kernels.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import InputError, count, kind, numbers, real, require, shaped
from driftway.linalg.operator import SymmetricOperator, symmetric_matrix

EPS = torch.finfo(torch.float64).eps
INDEFINITE = 1e-4  # a negative eigenvalue of this fraction of the largest is more than rounding, also in float32


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of K/n, in float64.

    Values may come in any order and are sorted. Negative ones are rounding: they are set to 0, and `clipped` remembers them.

    Attributes:
        values: mu_j, descending and not negative: all n, or the k largest.
        size: n.
        vectors: (n, k) with orthonormal columns, or None.
        trace: of K/n; if not given (NaN) the sum of the values, as if the values not given were 0.
        trace_error: standard error of an estimated trace.
        precision: eps of the dtype that K was computed in.
        clipped: sum of the negative values, sign dropped, as a fraction of the trace.
        floor: values up to this size are rounding: sqrt(n) eps mu_1, or the size of the most negative value where that is larger.
    """

    values: Tensor
    size: int
    vectors: Tensor | None = None
    trace: float | int = math.nan
    trace_error: float = 0.0
    precision: float = EPS
    clipped: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Sort, clip and check.

        Raises:
            InputError: if the values are not a vector of at most n finite numbers, are clearly negative, or do not fit the vectors
                or the trace.
        """
        n, mu = count("size", self.size), numbers("values", self.values).detach().double()
        require(mu.ndim == 1 and 0 < len(mu) <= n and bool(torch.isfinite(mu).all()), "values",
                expected=f"a vector of 1 to {n} finite numbers (size={n})", got=f"shape {tuple(mu.shape)}",
                cure="pass the eigenvalues of K/n, and the rows of K as size")  # fmt: skip
        order = mu.argsort(descending=True, stable=True)
        mu = mu[order]
        least, top = _definite("values", mu)
        total = float(mu.clamp_min(0).sum())
        trace = real("trace", total if self.trace != self.trace else self.trace, least=0)
        slack = 1e-3 * total + 5 * self.trace_error
        require(trace >= total - slack, "trace", expected=f"the sum of the values, {total:.6g}, or more", got=f"{trace:.6g}",
                cure="pass the trace of K/n, not of K")  # fmt: skip
        if self.vectors is not None:
            object.__setattr__(self, "vectors", shaped("vectors", self.vectors, (None, None)))
            require(self.vectors.shape == (n, len(mu)), "vectors", expected=f"shape {(n, len(mu))}", got=tuple(self.vectors.shape),
                    cure="pass one column per value")  # fmt: skip
            object.__setattr__(self, "vectors", self.vectors[:, order].double())
        object.__setattr__(self, "values", mu.clamp_min(0))
        object.__setattr__(self, "trace", trace)
        object.__setattr__(self, "clipped", self.clipped - (float(mu.clamp_max(0).sum()) / trace if trace else 0.0))
        object.__setattr__(self, "floor", max(self.floor, -least, n**0.5 * self.precision * top))

    def largest(self, k: int) -> "Spectrum":
        """The k largest values alone; the trace stays.

        Raises:
            InputError: if k is not a whole number above 0.
        """
        k = count("k", k)
        return replace(self, values=self.values[:k], vectors=None if self.vectors is None else self.vectors[:, :k])

    @property
    def truncated(self) -> bool:
        """Whether fewer than n values are known."""
        return len(self.values) < self.size

    @property
    def rest(self) -> float:
        """Sum of the values that are not known."""
        return max(self.trace - float(self.values.sum()), 0.0) if self.truncated else 0.0

    @property
    def explained(self) -> float:
        """The part of the trace that the known values make up."""
        total = float(self.values.sum())
        return total / (total + self.rest) if total else 1.0

    @property
    def rank(self) -> int:
        """How many of the known values are above `floor`, the tolerance of the numerical rank."""
        return int((self.values > self.floor).sum())

    def dimension_bounds(self, lam: float | int | Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the effective dimension; they agree where all values are known.

        Args:
            lam: positive penalties, of any shape.

        Raises:
            InputError: if a penalty is not positive.
        """
        lam = numbers("lam", lam).to(self.values)
        require(bool(((lam > 0) & lam.isfinite()).all()), "lam", expected="positive penalties", got=lam.tolist(),
                cure="for lam = 0 use rank")  # fmt: skip
        mu, unknown = self.values, max(self.size - len(self.values), 1)
        known = (mu / (mu + lam[..., None])).sum(-1)
        return known + self.rest / (mu[-1] + lam), known + self.rest / (self.rest / unknown + lam)

    def effective_dimension(self, lam: float | int | Tensor) -> Tensor:
        """d(lam); the middle of `dimension_bounds` where values are missing.

        Raises:
            InputError: if a penalty is not positive.
        """
        lower, upper = self.dimension_bounds(lam)
        return (lower + upper) / 2

    def matrix(self) -> Float[Tensor, "n n"]:
        """K, of the values that are known.

        Raises:
            InputError: if there are no vectors.
        """
        require(self.vectors is not None, "spectrum", expected="eigenvectors", got="none", cure="take it from eigendecompose or lanczos")
        U = self.vectors
        return self.size * (U * self.values) @ U.mT if U is not None else self.values

    def coordinates(self, y: Tensor) -> Tensor:
        """U^T y / sqrt(n), in float64: (k,) for y (n,), and (k, m) for y (n, m).

        Raises:
            InputError: if there are no vectors, or y does not have n rows.
        """
        U = self.vectors
        if U is None:
            raise InputError("vectors", expected="eigenvectors", got="None", cure="make the spectrum with eigendecompose or lanczos")
        y = numbers("y", y)
        require(y.ndim in (1, 2) and len(y) == self.size and y.numel() > 0, "y", expected=f"{self.size} rows, shape (n,) or (n, m)",
                got=f"shape {tuple(y.shape)}", cure="pass the targets of the points of the kernel")  # fmt: skip
        return U.T @ y.double() / self.size**0.5


@torch.no_grad()
def eigendecompose(K: Tensor, *, k: int | None = None, argument: str = "K") -> Spectrum:
    """The spectrum of K/n by a full decomposition, in float64 whatever the dtype of K.

    Args:
        K: (n, n), positive semi-definite up to rounding.
        k: keep the k largest values and their vectors; all if None.
        argument: what an error calls K.

    Raises:
        InputError: if K is not symmetric, not finite, or clearly indefinite.
    """
    K = symmetric_matrix(argument, K)
    n, eps = len(K), torch.finfo(K.dtype).eps
    mu, U = torch.linalg.eigh(K.double() / n)
    _definite(argument, mu.flip(0))
    whole = Spectrum(mu, n, U, trace=float(mu.clamp_min(0).sum()), precision=eps)
    return whole if k is None else whole.largest(k)


@torch.no_grad()
def lanczos(op: SymmetricOperator, k: int, *, generator: torch.Generator, tolerance: float | None = None, steps: int = 100,
            trace: float | None = None) -> Spectrum:  # fmt: skip
    """The k largest eigenvalues of K/n from products with K, their vectors, and the trace. The basis is kept in float64.

    A step takes one product with a block of k + 8 vectors; memory is 10 such blocks.

    Args:
        op: K.
        k: how many.
        generator: of the first block and of the signs that a trace is estimated with, on the operator's device.
        tolerance: bound on the residuals relative to the largest eigenvalue: 1e-8, or 100 eps of the operator's dtype if that is more.
        steps: the most steps.
        trace: of K. If None the sum of the operator's diagonal, or an estimate with its standard error where it has none.

    Raises:
        InputError: if k is not between 1 and n, or the residuals are not within the tolerance after all steps.
    """
    kind("op", op, SymmetricOperator, "an operator, such as dense_operator(K)")
    n, eps = op.size, torch.finfo(op.dtype).eps
    kind("generator", generator, torch.Generator, "a torch.Generator")
    require(count("k", k) <= n, "k", expected=f"at most {n}, the size of the operator", got=k, cure="ask for fewer values")
    tolerance = max(1e-8, 100 * eps) if tolerance is None else real("tolerance", tolerance, least=0, strict=True)
    block = min(n, k + 8)

    def product(V: Tensor) -> Tensor:
        return (op @ V.to(op.dtype)).double()

    def draw(columns: int) -> Tensor:
        return torch.randn(n, columns, dtype=torch.float64, device=op.device, generator=generator)

    theta, U = _ritz_pairs(product, draw, n=n, k=k, block=block, tolerance=tolerance, steps=count("steps", steps))
    error = 0.0
    if trace is None and op.diagonal is not None:
        trace = float(op.diagonal.double().sum())
    elif trace is None:
        signs = draw(block).sign()
        w = signs - U @ (U.T @ signs)
        forms = (w * product(w)).sum(0)
        trace, error = float(theta.sum() + forms.mean()), float(forms.std()) / block**0.5 if block > 1 else math.inf
    return Spectrum(theta / n, n, U, trace=trace / n, trace_error=error / n, precision=eps)


def _ritz_pairs(product: Callable[[Tensor], Tensor], draw: Callable[[int], Tensor], *, n: int, k: int, block: int, tolerance: float,
                steps: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "n k"]]:  # fmt: skip
    """The k largest Ritz values and their vectors, all residuals within the tolerance."""
    W, worst = draw(block), math.inf
    Q = AQ = W[:, :0]
    for _ in range(steps):
        W = _orthonormal(W, Q, draw)
        Q, AQ = torch.cat([Q, W], 1), torch.cat([AQ, product(W)], 1)
        theta, Y = torch.linalg.eigh((Q.T @ AQ + AQ.T @ Q) / 2)
        theta, Y = theta.flip(0), Y.flip(1)
        U, AU = Q @ Y[:, :k], AQ @ Y[:, :k]
        worst = float((AU - U * theta[:k]).norm(dim=0).max() / theta.abs().max().clamp_min(1e-300))
        if worst <= tolerance:
            return theta[:k], U
        W = AQ[:, -W.shape[1]:]
        if Q.shape[1] >= 5 * block:
            W, Q, AQ = W - Q @ (Q.T @ W), Q @ Y[:, :block], AQ @ Y[:, :block]
    raise InputError("steps", expected=f"residuals within {tolerance:.2g} of the largest eigenvalue",
                     got=f"{worst:.2g} after {steps} steps", cure="raise steps or tolerance, or ask for fewer values")  # fmt: skip


def _orthonormal(W: Float[Tensor, "n b"], Q: Float[Tensor, "n m"], draw: Callable[[int], Tensor]) -> Float[Tensor, "n c"]:
    """An orthonormal block next to Q: that of W, with random directions where W lies within the span of Q."""
    b = min(W.shape[1], len(Q) - Q.shape[1])
    size = W.norm(dim=0).clamp_min(1e-300)
    W = W - Q @ (Q.T @ W)
    W = torch.where(W.norm(dim=0) > 1e-10 * size, W, draw(W.shape[1]))
    for _ in range(3):  # twice is enough for Q (Giraud et al., 2005); once more after random columns
        W = W - Q @ (Q.T @ W)
        W, R = torch.linalg.qr(W)
        lost = R.diagonal().abs() < 1e-10 * R.diagonal().abs().max()
        W = torch.where(lost, draw(W.shape[1]), W)
    return W[:, :b]


def _definite(argument: str, mu: Float[Tensor, " k"]) -> tuple[float, float]:
    """The least eigenvalue, at most 0, and the largest, at least 0, of eigenvalues that come largest first.

    Raises:
        InputError: if one is negative by more than rounding.
    """
    least, top = min(float(mu[-1]), 0.0), max(float(mu[0]), 0.0)
    require(least >= -INDEFINITE * top, argument, expected="eigenvalues of a positive semi-definite matrix",
            got=f"{least:.3g} beside a largest of {float(mu[0]):.3g}", cure="check the kernel, or compute it in float64")  # fmt: skip
    return least, top
