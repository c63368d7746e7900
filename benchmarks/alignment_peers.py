"""Peers of `adapt_images`: an adaptor trained on features, whose domains are aligned as in RSD or DARE-GRAM, and plain regressions.

An adaptor is a network F(x) in R^p with a head y = sigmoid(A F + a), trained on squared errors of labelled rows of both domains (the mean
over each batch, then their sum) plus an alignment of b rows of the source with b rows of the target, F_s and F_t in R^(b x p). p > 2 b:
in fewer dimensions the spaces of two batches meet, and RSD has no gradient where an angle is zero.

RSD: bases of both, F_s^T = U_s S V^T, F_t^T = U_t S V^T; principal angles and their vectors, U_s^T U_t = P_s cos(Theta) P_t^T;

    beta |sin Theta|_1 + gamma | |P_s| - |P_t| |_F

DARE-GRAM: Gram matrices of rows with a one, Z = (1, F), Z^T Z = V diag(lambda) V^T, and their inverses on the first k vectors alone,
G+ = V_k diag(1/lambda) V_k^T, where k is the least that holds a share tau of the sum of lambda, the larger one of both domains; with M_i
the cosine of the i-th columns of G+_s and G+_t,

    alpha |1 - M|_1 / (p + 1) + gamma |lambda_s - lambda_t|_2 / k

CORAL: rows of the source in the covariance of the target, x -> (x - m_s) (C_s + e)^(-1/2) (C_t + e)^(1/2) + m_t.

The trade-offs are those that the authors give for dSprites, and where target labels choose: others around them, or their others.
Written from the papers: Chen et al. (2021), RSD, section 4; Nejjar et al. (2023), DARE-GRAM, arXiv 2303.13325; Sun et al. (2016), CORAL.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

WIDTH, P, B = 128, 96, 36
STEPS, RATE, DECAY, FOLDS = 250, 3e-3, 1e-3, 3
Align = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RSD:
    """Its trade-offs."""

    beta: float = 1e-3
    gamma: float = 1e-5

    def __call__(self, F_s: Float[Tensor, "b p"], F_t: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
        """The alignment."""
        U_s, U_t = (torch.linalg.svd(F.T, full_matrices=False).U for F in (F_s, F_t))
        P_s, cos, P_t = torch.linalg.svd(U_s.T @ U_t)
        sin = (1 - cos.square()).clamp(min=1e-6).sqrt()
        return self.beta * sin.sum() + self.gamma * torch.linalg.matrix_norm(P_s.abs() - P_t.mT.abs())


@dataclass(frozen=True)
class DareGram:
    """Its trade-offs, and the share tau."""

    alpha: float = 0.05
    gamma: float = 1e-3
    tau: float = 0.9

    def __call__(self, F_s: Float[Tensor, "b p"], F_t: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
        """The alignment."""
        grams = [Z.T @ Z for Z in (torch.cat([torch.ones_like(F[:, :1]), F], 1) for F in (F_s, F_t))]
        spectra = [spectrum(G) for G in grams]
        k = max(rank(values, self.tau) for values, _ in spectra)
        (G_s, l_s), (G_t, l_t) = (inverse(G, k, *own) for G, own in zip(grams, spectra, strict=True))
        M = cosine_similarity(G_s, G_t, dim=0)
        return self.alpha * (1 - M).abs().mean() + self.gamma * (l_s - l_t).norm() / k


class _Inverse(torch.autograd.Function):
    """G+ of the k largest eigenvalues, and these. Autograd's rule divides by gaps between eigenvalues that are zero; this one does not."""

    @staticmethod
    def forward(ctx: Any, G: Tensor, k: int, values: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(values, V)
        ctx.k = k
        return (V[:, :k] / values[:k]) @ V[:, :k].T, values[:k]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (values, V), k, (G, own) = ctx.saved_tensors, ctx.k, grads
        top, rest = values[:k], values[k:]
        gap = (top[:, None] - rest).clamp(min=1e-9 * float(values[0]))
        slope = values.new_zeros(len(values), len(values))  # (f(l_i) - f(l_j)) / (l_i - l_j), f = 1/l for the first k, 0 for the rest
        slope[:k, :k] = -1 / torch.outer(top, top)
        slope[:k, k:] = 1 / (top[:, None] * gap)
        slope[k:, :k] = slope[:k, k:].T
        inner = slope * (V.T @ (G + G.T) @ V / 2)
        inner[range(k), range(k)] += own
        return V @ inner @ V.T, None, None, None


def spectrum(G: Float[Tensor, "m m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Eigenvalues, the largest first, and their vectors; without gradients."""
    values, V = torch.linalg.eigh(G.detach())
    return values.flip(0), V.flip(1)


def inverse(G: Float[Tensor, "m m"], k: int, values: Float[Tensor, " m"], V: Float[Tensor, "m m"]
            ) -> tuple[Float[Tensor, "m m"], Float[Tensor, " k"]]:  # fmt: skip
    """The inverse of G on its k largest eigenvalues, and these, from its spectrum; with gradients."""
    pair: Any = _Inverse.apply(G, k, values, V)
    return pair


def rank(values: Float[Tensor, " m"], tau: float) -> int:
    """k: how many of the eigenvalues, the largest first, hold a share tau of their sum."""
    share = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    return min(int((share < tau).sum()) + 1, len(values))


class Adaptor(nn.Module):
    """F(x), and the head. Units that can die would leave RSD without a full basis."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(size, WIDTH), nn.LeakyReLU(0.1), nn.Linear(WIDTH, P), nn.LeakyReLU(0.1))
        self.head = nn.Sequential(nn.Linear(P, outputs), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Rows:
    """What a method sees: rows of the source with targets, rows of the target with labels (m of them, or none) and without."""

    X_s: Tensor
    y_s: Tensor
    X_t: Tensor
    y_t: Tensor
    X_u: Tensor


@dataclass(frozen=True)
class Adapted:
    """A trained adaptor, and how many of its steps were left out because a gradient was not finite."""

    net: Adaptor
    skipped: int

    def predict(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Targets of rows."""
        return self.net(x.float()).double()


def adapt(rows: Rows, align: Align | None, *, seed: int, steps: int = STEPS) -> Adapted:
    """Train an adaptor: AdamW, with a step size that falls to zero as a cosine."""
    own = torch.Generator().manual_seed(seed)
    X_s, y_s, X_t, y_t, X_u = (part.float() for part in (rows.X_s, rows.y_s, rows.X_t, rows.y_t, torch.cat([rows.X_t, rows.X_u])))
    some = lambda n: torch.randperm(n, generator=own)[:B]  # noqa: E731 -- no row twice: a basis would lose a vector
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Adaptor(X_s.shape[1], y_s.shape[1])
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    skipped = 0
    for _ in range(steps):
        i = some(len(X_s))
        F_s = net.body(X_s[i])
        loss = (net.head(F_s) - y_s[i]).square().mean()
        if len(X_t):
            j = some(len(X_t))
            loss = loss + (net(X_t[j]) - y_t[j]).square().mean()
        if align:
            loss = loss + align(F_s, net.body(X_u[some(len(X_u))]))
        optimiser.zero_grad()
        loss.backward()
        size = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        if size.isfinite():
            optimiser.step()
        skipped += not size.isfinite()
        schedule.step()
    return Adapted(net.requires_grad_(False), skipped)


RSDS = (RSD(), RSD(1e-4, 1e-6), RSD(1e-2, 1e-4))
DARE_GRAMS = (DareGram(), DareGram(0.1, 1e-3, 0.999), DareGram(0.01, 1e-5, 0.999))


def choose(rows: Rows, grid: Sequence[Align], *, seed: int) -> Align:
    """The alignment with the least mean absolute error on held-out target labels, summed over targets; the first where there are none."""
    m = len(rows.X_t)
    if m < FOLDS or len(grid) == 1:
        return grid[0]
    fold = torch.randperm(m, generator=torch.Generator().manual_seed(seed)) % FOLDS
    errors = [0.0] * len(grid)
    for f in range(FOLDS):
        seen, held = fold != f, fold == f
        part = Rows(rows.X_s, rows.y_s, rows.X_t[seen], rows.y_t[seen], rows.X_u)
        for g, align in enumerate(grid):
            errors[g] += float((adapt(part, align, seed=seed).predict(rows.X_t[held]) - rows.y_t[held]).abs().sum())
    return grid[errors.index(min(errors))]


def ridge(X: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression, its penalty by leave-one-out."""
    fitted = RidgeCV(np.logspace(-4, 4, 17)).fit(X.numpy(), y.numpy())
    return lambda rows: torch.from_numpy(fitted.predict(rows.numpy()))


def process(X: Tensor, y: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A Gaussian process, squared exponential with noise, by scikit-learn: means and standard deviations of a label."""
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(X.shape[1] ** 0.5, (0.1, 1e3)) + WhiteKernel(0.1, (1e-5, 1.0))
    fitted = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0).fit(X.numpy(), y.numpy())

    def predict(rows: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = fitted.predict(rows.numpy(), return_std=True)
        return torch.from_numpy(mean), torch.from_numpy(std)

    return predict


def coral(X_s: Tensor, X_t: Tensor, *, e: float = 0.1) -> Tensor:
    """Rows of the source with mean and covariance of those of the target; e is a part of the source's mean variance."""
    C_s, C_t = (torch.cov(X.T) for X in (X_s, X_t))
    ridge_ = e * C_s.diagonal().mean() * torch.eye(len(C_s), dtype=C_s.dtype)
    return (X_s - X_s.mean(0)) @ power(C_s + ridge_, -0.5) @ power(C_t + ridge_, 0.5) + X_t.mean(0)


def power(C: Tensor, exponent: float) -> Tensor:
    """A power of a positive definite matrix."""
    values, V = torch.linalg.eigh(C)
    return V * values**exponent @ V.T
