r"""Values in closed form: the terminal weight is a Gaussian mixture (Korotin et al., 2024, read as a value function).

With entropy eps let the plan be pi(y | x) ~ exp(x.y / eps) v(y), v(y) = sum_k a_k N(y; r_k, eps S_k). Then

    g(y)   = -eps log v(y) - |y|^2 / 2                                      terminal price, up to eps log nu_tgt(y)
    V_t(x) = -eps log sum_k a_k |2 pi eps B_k|^(-1/2) exp(q_k / eps)         B_k = (1-t) I + t S_k
    q_k    = (x.(S_k - I) B_k^-1 x) / 2 + r_k.B_k^-1 x - t (r_k.B_k^-1 r_k) / 2
    X_1 | X_t = x  ~  sum_k w_k N(B_k^-1 ((1-t) r_k + S_k x), eps (1-t) S_k B_k^-1),   w = softmax(log a_k - log|B_k|/2 + q_k/eps)

for every t, and grad V_t(x) = (x - E[X_1 | X_t = x]) / (1-t) = sum_k w_k B_k^-1 ((I - S_k) x - r_k). As eps -> 0 this is a
Brenier potential max_k (x.S_k x / 2 + r_k.x + u_k) with u_k = eps log a_k: piecewise affine maps x -> r_k + S_k x. The dual is exact,

    J = E_tgt[log v(Y)] - E_src[log c(X)],    c(x) = sum_k a_k exp((x.S_k x / 2 + r_k.x) / eps),

a likelihood: no candidates, no bridge, no batch bias. S_k = L_k L_k^T with L_k lower triangular, or diagonal.

Rows that share one time share B_k: then V_t is a soft minimum of quadratic forms (B_k = I at t = 0). Rows of many times work in the
eigenvectors of S_k; a factor of low rank would need a solve for every pair of row and component there, so S_k is full or diagonal.
The end is drawn in the component's own factor, with S_k B_k^-1 = L_k (C C^T)^-1 L_k^T, C C^T = (1-t) I + t L_k^T L_k:

    y = r_k + L_k C^-T (C^-1 L_k^T (x - t r_k) + (eps (1-t))^(1/2) xi).

Equation (T17): docs/derivations/transport.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import require
from driftway.transport.condition import unconditional
from driftway.transport.dual import bounded
from driftway.transport.forms import apply, by_rows, quadratics, solve, times
from driftway.transport.value import Value

FULL, DIAGONAL = -1, 0


class MixtureValue(Value):
    """The closed-form family: K components, exact dual, exact end-point law.

    Args:
        event: shape of one state; flattened it has d entries.
        components: number K of mixture components.
        eps: entropy at which the value is read; it may be changed while training (annealing).
        rank: -1 for full covariances, K d (d+1) / 2 numbers; 0 for diagonal ones, K d numbers.
    """

    eps: Tensor

    def __init__(self, event: tuple[int, ...], *, components: int, eps: float = 1.0, rank: int = FULL) -> None:
        super().__init__()
        require(rank in (FULL, DIAGONAL), "rank", expected="-1 (full covariances) or 0 (diagonal ones)", got=rank, cure="pass rank=-1")
        self.event, d = tuple(event), math.prod(event)
        self.u = nn.Parameter(torch.zeros(components))
        self.r = nn.Parameter(torch.zeros(components, d))
        self.lower = nn.Parameter(torch.zeros(components, d, d)) if rank == FULL else None
        self.log_diagonal = nn.Parameter(torch.zeros(components, d))
        self.register_buffer("eps", torch.tensor(eps))

    @property
    def L(self) -> Float[Tensor, "K d d"]:
        """Cholesky factors of S_k."""
        diagonal = torch.diag_embed(self.log_diagonal.exp())
        return diagonal if self.lower is None else self.lower.tril(-1) + diagonal

    @property
    def S(self) -> Float[Tensor, "K d *d"]:
        """S_k, or its diagonal."""
        return (2 * self.log_diagonal).exp() if self.lower is None else self.L @ self.L.mT

    def log_c(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        """log c(x) = (|x|^2/2 - V_0(x)) / eps up to a constant."""
        A, u = self.S / 2, self.u
        return by_rows(lambda x: torch.logsumexp(bounded(quadratics(x, A, self.r, u) / self.eps), 1), self._width(), x.flatten(1))

    def log_v(self, y: Float[Tensor, "m *event"]) -> Float[Tensor, " m"]:
        """log v(y), the log-density of the mixture (its weights need not sum to one)."""
        d = self.r.shape[1]
        if self.lower is None:
            precision = (-2 * self.log_diagonal).exp()
        else:
            inverse = torch.linalg.solve_triangular(self.L, torch.eye(d).to(self.r), upper=False)
            precision = inverse.mT @ inverse
        slope = times(precision, self.r)
        u = self.u - (slope * self.r).sum(1) / 2
        normaliser = self.log_diagonal.sum(1) + d / 2 * torch.log(2 * torch.pi * self.eps)
        return by_rows(lambda y: torch.logsumexp(bounded(quadratics(y, -precision / 2, slope, u) / self.eps - normaliser), 1),
                        self._width(), y.flatten(1))  # fmt: skip

    def price(self, y: Float[Tensor, "m *event"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        unconditional(c)
        return -self.eps * self.log_v(y) - y.flatten(1).square().sum(1) / 2

    def value(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        unconditional(c)
        law = self._law(t)
        return by_rows(lambda x, t: -self.eps * torch.logsumexp(law.logits(x, t), 1), self._width(), x.flatten(1), t)

    def gradient(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:
        unconditional(c)
        law = self._law(t)
        return by_rows(law.slope, self._width(), x.flatten(1), t).reshape(-1, *self.event)

    def endpoint(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], *, uniform: Float[Tensor, " n"],
                 normal: Float[Tensor, "n *event"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:  # fmt: skip
        unconditional(c)
        law = self._law(t)

        def choose(x: Tensor, t: Tensor, uniform: Tensor) -> Tensor:
            w = law.logits(x, t).softmax(1).cumsum(1)
            return torch.searchsorted(w, uniform[:, None].to(w) * w[:, -1:])[:, 0].clamp(max=w.shape[1] - 1)

        x = x.flatten(1)
        k = by_rows(choose, self._width(), x, t, uniform)
        width = self.log_diagonal[0].numel() if self.lower is None else self.lower[0].numel()
        return by_rows(self._end(t), width, x, t, k, normal.flatten(1)).reshape(-1, *self.event)

    def _width(self) -> int:
        """Entries per row of the largest tensor that a block of rows needs."""
        return self.r.numel()

    def _law(self, t: Tensor) -> "_OneTime | ManyTimes":
        if _shared(t):
            return _one_time(self, t[0].to(self.r))
        return self.many_times()

    def many_times(self) -> "ManyTimes":
        """All components, for rows of many times."""
        if self.lower is None:
            return ManyTimes(self.S[None], None, self.r[None], self.u, self.eps)
        s, U = torch.linalg.eigh(self.S)
        return ManyTimes(s.clamp_min(torch.finfo(s.dtype).tiny)[None], U, torch.einsum("kde,kd->ke", U, self.r)[None], self.u, self.eps)

    def _end(self, t: Tensor) -> Callable[..., Tensor]:
        """The draw of the end of each row from its component k."""
        L, many = (self.log_diagonal.exp() if self.lower is None else self.L), not _shared(t)
        inner = L.square() if self.lower is None else L.mT @ L

        def factor(inner: Tensor, t: Tensor) -> Tensor:
            if self.lower is None:
                return (1 - t + t * inner).sqrt()
            return torch.linalg.cholesky((1 - t[..., None]) * torch.eye(inner.shape[1]).to(inner) + t[..., None] * inner)

        def end(x: Tensor, t: Tensor, k: Tensor, normal: Tensor) -> Tensor:
            t = t[:, None].to(x)
            root, own, r = (factor(inner[k], t) if many else shared[k]), L[k], self.r[k]
            z = solve(root, times(own.mT if own.ndim == 3 else own, x - t * r)) + (self.eps * (1 - t)).sqrt() * normal
            return r + times(own, solve(root.mT if own.ndim == 3 else root, z, upper=True))

        shared = inner if many else factor(inner, t[:1, None].to(L))
        return end


def _shared(t: Tensor) -> bool:
    return len(t) > 0 and bool((t == t[0]).all())


@dataclass(frozen=True)
class _OneTime:
    """All components at one time: logits (x.A x + b.x + c) / eps. Diagonal matrices are (K, d)."""

    A: Tensor
    b: Tensor
    c: Tensor
    eps: Tensor

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        del t
        return quadratics(x, self.A, self.b, self.c) / self.eps

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        w = self.logits(x, t).softmax(1)
        if self.A.ndim == 2:
            return -2 * (w @ self.A) * x - w @ self.b
        return -2 * torch.einsum("nk,nkd->nd", w, apply(self.A, x)) - w @ self.b


def _one_time(value: MixtureValue, t: Tensor) -> _OneTime:
    S, r, eps = value.S, value.r, value.eps
    if value.lower is None:
        b = 1 - t + t * S
        A, slope, log_b = (S - 1) / b / 2, r / b, b.log().sum(1)
    else:
        eye = torch.eye(r.shape[1]).to(r)
        A, slope, log_b = (S - eye) / 2, r, torch.zeros_like(value.u)
        if t > 0:
            B = torch.linalg.cholesky((1 - t) * eye + t * S)
            A, slope = torch.cholesky_solve(A, B), torch.cholesky_solve(r[..., None], B)[..., 0]
            log_b = 2 * B.diagonal(dim1=1, dim2=2).log().sum(1)
    normaliser = (log_b + r.shape[1] * torch.log(2 * torch.pi * eps)) / 2
    return _OneTime(A, slope, value.u - t * (slope * r).sum(1) / 2 - eps * normaliser, eps)


@dataclass(frozen=True)
class ManyTimes:
    """Eigenvalues s, bases U (None where they are the axes) and centres r in them, shaped (1, K, d)."""

    s: Tensor
    U: Tensor | None
    r: Tensor
    u: Tensor
    eps: Tensor

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        return self._parts(x, t)[0]

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        return self.logits_and_slope(x, t)[1]

    def logits_and_slope(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        logits, b, z = self._parts(x, t)
        w = logits.softmax(1)[..., None] * ((1 - self.s) * z - self.r) / b
        return logits, w.sum(1) if self.U is None else torch.einsum("nke,kde->nd", w, self.U)

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = x[:, None] if self.U is None else apply(self.U.mT, x)
        t = t[:, None, None].to(x)
        b = (1 - t) + t * self.s
        q = (((self.s - 1) * z / 2 + self.r) * z - t * self.r.square() / 2) / b
        return (self.u + q.sum(2)) / self.eps - torch.log(2 * torch.pi * self.eps * b).sum(2) / 2, b, z
