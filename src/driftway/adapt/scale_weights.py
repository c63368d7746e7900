"""Importance weights of many source rows: estimated on some rows of both samples, evaluated at all of them in blocks.

The minimiser of KuLSIF (importance.py) is a function, and so is known everywhere once w(S) is known on its sample S of n rows,

    w(x) = 1 + (mean_j k(x, t_j) - (1/n) sum_i w(s_i) k(x, s_i)) / lam

(Kanamori, Suzuki and Sugiyama, 2012, eq. 4). At S it is w(S) again. For kmm, w(S) >= 0 is that of the constrained problem. Logistic weights
need no Gram matrix, and are estimated on all rows.

Equation (A39): docs/derivations/adapt.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.importance import METHODS, RIDGES, ROWS, WIDTHS, importance_weights, leave_one_out
from driftway.adapt.scale_features import blocks
from driftway.checks import choice, count
from driftway.kernels import Gaussian, median_bandwidth
from driftway.linalg import cholesky

SOME = 2000  # rows of each sample


@torch.no_grad()
def weights_of_many(S: Float[Tensor, "n d"], T: Float[Tensor, "m d"], *, method: str = "kulsif", seed: int = 0,
                    some: int = SOME) -> Float[Tensor, " n"]:  # fmt: skip
    """Weights of the source rows, non-negative and of mean 1; those of `importance_weights` where there are few rows.

    Args:
        S: inputs of the source.
        T: inputs of the target.
        method: kulsif, kmm or logistic.
        seed: of the rows that are drawn.
        some: rows of each sample that Gram matrices are made of.

    Raises:
        InputError: if the method is unknown, or fewer than 2 rows are to be drawn.
    """
    count("some", some, least=2)
    if choice("method", method, METHODS) == "logistic" or max(len(S), len(T)) <= some:
        return importance_weights(S, T, method=method, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    s, t = (X[torch.randperm(len(X), generator=generator)[:some].to(X.device)] for X in (S, T))
    both = torch.cat([s, t])
    spread = both.std(0)
    unit = spread.where(spread > 1e-12 * both.abs().amax(0), 1.0)
    s, t = s / unit, t / unit
    h, lam = _chosen(s[:ROWS], t[:ROWS])
    k = Gaussian(h)
    K, b = k.gram(s), k(s, t).mean(1)
    if method == "kmm":
        w = importance_weights(s, t, method="kmm", width=h, ridge=lam, normalise=False)
    else:
        w = len(s) * cholesky(K + len(s) * lam * torch.eye(len(s)).to(K)).solve(b + lam)
    found = []
    for part in blocks(len(S), len(s) + len(t), S.device):
        x = S[part] / unit
        found.append((1 + (k(x, t).mean(1) - k(x, s) @ w / len(s)) / lam).clamp_min(0))
    weights = torch.cat(found)
    return weights / weights.mean()


def _chosen(s: Float[Tensor, "n d"], t: Float[Tensor, "m d"]) -> tuple[float, float]:
    """Width and ridge of the least leave-one-out error."""
    middle = median_bandwidth(s, t) if bool((torch.cat([s, t]) != s[0]).any()) else 1.0
    errors = torch.stack([leave_one_out(s, t, scale * middle, RIDGES) for scale in WIDTHS])
    i, j = divmod(int(errors.argmin()), len(RIDGES))
    return WIDTHS[i] * middle, RIDGES[j]
