r"""Values in closed form: the terminal weight is a Gaussian mixture (Korotin et al., 2024, read as a value function).

With entropy eps let the plan be pi(y | x) ~ exp(x.y / eps) v(y), v(y) = sum_k a_k N(y; r_k, eps S_k). Then

    g(y)   = -eps log v(y) - |y|^2 / 2                                      terminal price, up to eps log nu_tgt(y)
    V_t(x) = -eps log sum_k a_k |2 pi eps B_k|^(-1/2) exp(q_k / eps)         B_k = (1-t) I + t S_k
    q_k    = (x.(S_k - I) B_k^-1 x) / 2 + r_k.B_k^-1 x - t (r_k.B_k^-1 r_k) / 2
    X_1 | X_t = x  ~  sum_k w_k N(B_k^-1 ((1-t) r_k + S_k x), eps (1-t) S_k B_k^-1),   w = softmax(log a_k - log|B_k|/2 + q_k/eps)

for every t, and grad V_t(x) = (x - E[X_1 | X_t = x]) / (1-t) = sum_k w_k B_k^-1 ((I - S_k) x - r_k). As eps -> 0 this is a
Brenier potential max_k (x.S_k x / 2 + r_k.x + u_k) with u_k = eps log a_k: piecewise affine maps x -> r_k + S_k x. The dual is exact,

    J = E_tgt[log v(Y)] - E_src[log c(X)],    c(x) = sum_k a_k exp((x.S_k x / 2 + r_k.x) / eps),

a likelihood: no candidates, no bridge, no batch bias. S_k = L_k L_k^T with L_k lower triangular.
"""

import math
import warnings

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from driftway.transport.dual import bounded
from driftway.transport.metrics import exact_coupling
from driftway.transport.problem import cost
from driftway.transport.value import Value


class MixtureValue(Value):
    """The closed-form family: K components, exact dual, exact end-point law.

    Args:
        event: shape of one state; flattened it has d entries.
        components: number K of mixture components.
        eps: entropy at which the value is read; it may be changed while training (annealing).
    """

    eps: Tensor

    def __init__(self, event: tuple[int, ...], *, components: int, eps: float = 1.0) -> None:
        super().__init__()
        self.event, d = tuple(event), math.prod(event)
        self.u = nn.Parameter(torch.zeros(components))
        self.r = nn.Parameter(torch.zeros(components, d))
        self.lower = nn.Parameter(torch.zeros(components, d, d))
        self.log_diagonal = nn.Parameter(torch.zeros(components, d))
        self.register_buffer("eps", torch.tensor(eps))

    @property
    def L(self) -> Float[Tensor, "K d d"]:
        """Cholesky factors of S_k."""
        return self.lower.tril(-1) + torch.diag_embed(self.log_diagonal.exp())

    def log_c(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        """log c(x) = (|x|^2/2 - V_0(x)) / eps up to a constant."""
        L = self.L
        return torch.logsumexp(bounded(_quadratics(x.flatten(1), L @ L.transpose(1, 2) / 2, self.r, self.u) / self.eps), 1)

    def log_v(self, y: Float[Tensor, "m *event"]) -> Float[Tensor, " m"]:
        """log v(y), the log-density of the mixture (its weights need not sum to one)."""
        d = self.r.shape[1]
        inverse = torch.linalg.solve_triangular(self.L, torch.eye(d).to(self.r), upper=False)
        precision = inverse.transpose(1, 2) @ inverse
        slope = torch.einsum("kde,ke->kd", precision, self.r)
        q = _quadratics(y.flatten(1), -precision / 2, slope, self.u - (slope * self.r).sum(1) / 2)
        normaliser = self.log_diagonal.sum(1) + d / 2 * torch.log(2 * torch.pi * self.eps)
        return torch.logsumexp(bounded(q / self.eps - normaliser), 1)

    def price(self, y: Float[Tensor, "m *event"]) -> Float[Tensor, " m"]:
        return -self.eps * self.log_v(y) - y.flatten(1).square().sum(1) / 2

    def value(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return -self.eps * torch.logsumexp(self._components(x.flatten(1), t)[0], 1)

    def gradient(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"]) -> Float[Tensor, "n *event"]:
        x = x.flatten(1)
        logits, s, U, b, z, r = self._components(x, t)
        c = logits.softmax(1)[..., None] * ((1 - s) * z - r) / b
        return torch.einsum("nke,kde->nd", c, U).reshape(-1, *self.event)

    def endpoint(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], *, uniform: Float[Tensor, " n"],
                 normal: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:  # fmt: skip
        logits, s, U, b, z, r = self._components(x.flatten(1), t)
        w = logits.softmax(1).cumsum(1)
        k = torch.searchsorted(w, uniform[:, None].to(w) * w[:, -1:]).clamp(max=w.shape[1] - 1)
        row = torch.arange(len(x), device=x.device)
        k, tau = k[:, 0], (1 - t)[:, None]
        s, b, z, r, U = s[0, k], b[row, k], z[row, k], r[0, k], U[k]
        y = (tau * r + s * z) / b + (self.eps * tau * s / b).sqrt() * normal.flatten(1)
        return torch.einsum("nde,ne->nd", U, y).reshape(x.shape)

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Log-weights of the components, and eigenvalues s, bases U, B_k, x and r in those bases, shaped (n, K, d)."""
        L = self.L
        s, U = torch.linalg.eigh(L @ L.transpose(1, 2))
        s = s.clamp_min(torch.finfo(s.dtype).tiny)[None]
        z, r = _apply(U.transpose(1, 2), x), torch.einsum("kde,kd->ke", U, self.r)[None]
        t = t[:, None, None].to(x)
        b = (1 - t) + t * s
        q = (((s - 1) * z / 2 + r) * z - t * r.square() / 2) / b
        log_b = torch.log(2 * torch.pi * self.eps * b)
        return (self.u + q.sum(2)) / self.eps - log_b.sum(2) / 2, s, U, b, z, r


@torch.no_grad()
def initialise(value: MixtureValue, x: Tensor, y: Tensor, *, seed: int) -> None:
    """Place the components on a clustering of optimally paired rows.

    In each cell the component is the Gaussian map from its source rows to its target rows, at the level of the Brenier potential
    that the exact dual gives there.

    Args:
        value: the mixture whose parameters are set.
        x: source rows, (n, *event).
        y: target rows, (n, *event).
        seed: of the clustering.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    match = exact_coupling(cost(x, y))
    y = match.map(y)
    phi = x.square().sum(1) / 2 - match.f
    K, d = value.r.shape
    K, eye = min(K, len(x)), torch.eye(d).to(x)
    spread = x.var(0).mean().clamp_min(1e-12), y.var(0).mean().clamp_min(1e-12)
    pairs = torch.cat([x / spread[0].sqrt(), y / spread[1].sqrt()], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty cluster: its component starts on a pair of its own below
        _, label = kmeans2(pairs.cpu().numpy(), K, minit="points", rng=np.random.default_rng(seed), missing="warn")
    cell = torch.as_tensor(label, device=x.device).long()
    for k, rows in enumerate([torch.nonzero(cell == j)[:, 0] for j in range(K)]):
        if len(rows) == 0:
            rows = torch.tensor([k % len(x)], device=x.device)
        prior = (d + 1) / (d + 1 + len(rows))
        cx = _covariance(x[rows]) + (prior * spread[0] + 1e-6) * eye
        cy = _covariance(y[rows]) + 1e-4 * spread[1] * eye
        root = _root(cx)
        inverse = torch.linalg.inv(root)
        S = inverse @ _root(root @ cy @ root) @ inverse + 1e-2 * eye
        r = y[rows].mean(0) - S @ x[rows].mean(0)
        L = torch.linalg.cholesky(S)
        value.r[k], value.lower[k], value.log_diagonal[k] = r, L.tril(-1), L.diagonal().log()
        value.u[k] = (phi[rows] - (x[rows] @ S * x[rows]).sum(1) / 2 - x[rows] @ r).mean()
    if len(value.u) > K:  # fewer rows than components: the others start without weight, as copies
        copies = torch.arange(K, len(value.u)) % K
        for parameter in value.parameters():
            parameter[K:] = parameter[copies]
        value.u[K:] -= 40 * value.eps


def _apply(matrices: Tensor, x: Tensor) -> Tensor:
    """Every matrix (K, d, d) applied to every row (n, d), as one matrix product: (n, K, d)."""
    return (x @ matrices.flatten(0, 1).T).unflatten(1, matrices.shape[:2])


def _quadratics(x: Tensor, A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """x.A_k x + b_k.x + c_k for every row and component, (n, K), as one matrix product over the monomials of x."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    pairs = A[:, i, j] + A[:, j, i] * (i != j)
    return torch.addmm(c, torch.cat([x[:, i] * x[:, j], x], 1), torch.cat([pairs, b], 1).T)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    s, U = torch.linalg.eigh(matrix)
    return (U * s.clamp_min(0).sqrt()) @ U.T
