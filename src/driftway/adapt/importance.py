"""Importance weights w(x) = p_T(x) / p_S(x) at the source rows, from samples s_1, ..., s_n of p_S and t_1, ..., t_m of p_T.

kulsif     minimise  1/2 E_S w^2 - E_T w + lam/2 |w - 1|_k^2  over w in 1 + H_k (Kanamori, Suzuki and Sugiyama, 2012, eq. 4, with w = 1
           as origin: what the samples do not show is no shift). With K Gram matrices of a Gaussian kernel,

               b(x) = mean_j k(x, t_j),   A = K_SS + n lam I,   w(S) = n A^-1 (b(S) + lam)

kmm        the same at the source rows alone, with the constraint within (Huang et al., 2007, with a ridge in place of a bound):
           w(S) = argmin_{v >= 0}  1/2 v.(K_SS / n + lam I) v - v.(b(S) + lam)

logistic   P(T | x) = sigmoid(f(x)), f linear in the columns, penalised by lam |theta|^2 / 2, by Newton's method; w = (n / m) exp f
           (Bickel, Bruckner and Scheffer, 2007)

Width and lam of the first two are those of the least leave-one-out error: without s_l and t_l, where A has n - 1 in place of n,
v = b^(l)(S) + lam, u = A^-1 v and e = u_l / (A^-1)_ll,

    w(s_l) = e / lam,   w(t_l) = (b^(l)(t_l) + lam - k(t_l, S) u + k(t_l, S) (A^-1)_:l e) / lam,   error = mean_l 1/2 w(s_l)^2 - w(t_l)

in closed form for all l at once from the eigenvectors of K_SS (the same, section 5; there with w cut at 0, as here).

Relative weights r = w / (alpha w + 1 - alpha), the ratio to the mixture alpha p_T + (1 - alpha) p_S, are at most 1 / alpha (Yamada et al.,
2011). Columns are scaled to unit variance over both samples. All is done in float64.

Equations (A24), (A25), (A26), (A27), (A28): docs/derivations/adapt.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.intake import check_finite, read_table
from driftway.checks import choice, real, require
from driftway.checks import seed as checked_seed
from driftway.kernels import Gaussian, median_bandwidth
from driftway.kernels.memory import require_memory
from driftway.linalg import cholesky

METHODS = ("kulsif", "kmm", "logistic")
EXPONENT = 300.0  # of the weights, whose squares are added up
ROWS = 500  # of each sample, to choose width and lam by
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # in median distances
RIDGES = tuple(10.0**e for e in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 1))


def relative(alpha: float | int) -> float:
    """The alpha of relative weights.

    Raises:
        InputError: if it is not in [0, 1).
    """
    alpha = real("alpha", alpha, least=0.0)
    require(alpha < 1, "alpha", expected="a number in [0, 1)", got=alpha, cure="pass alpha=0.1, or 0 for the ratio itself")
    return alpha



@torch.no_grad()
def importance_weights(X_source: object, X_target: object, *, method: str = "kulsif", width: float | int | None = None,
                       ridge: float | int | None = None, alpha: float | int = 0.0, normalise: bool = True,
                       seed: int = 0) -> Float[Tensor, " n"]:  # fmt: skip
    """Weights of the source rows, non-negative and of mean 1.

    Args:
        X_source: (n, d) inputs or features of the source.
        X_target: (m, d) those of the target; labels play no part.
        method: "kulsif", "kmm" or "logistic".
        width: of the Gaussian kernel, in standard deviations of the columns; by leave-one-out if None.
        ridge: lam; by leave-one-out if None, for "logistic" 1 / (n + m).
        alpha: of the relative weights, in [0, 1): the larger, the less the weights vary, and the less they correct.
        normalise: whether the mean is set to 1; it is about 1 without.
        seed: draws the rows that width and ridge are chosen by, where there are more than 500.

    Raises:
        InputError: if an argument cannot be used, or the Gram matrices do not fit into memory.
    """
    choice("method", method, METHODS)
    seed = checked_seed("seed", seed)
    S, T = _scaled(X_source, X_target)
    alpha = relative(alpha)
    width = None if width is None else real("width", width, least=1e-6)
    ridge = None if ridge is None else real("ridge", ridge, least=0.0, strict=True)
    if method == "logistic":
        w = _logistic(S, T, ridge or 1 / (len(S) + len(T)))
    else:
        require_memory("X_source", 8 * len(S) * (3 * len(S) + len(T)), "weigh fewer rows, or pass method='logistic'", device=S.device)
        h, lam = _chosen(S, T, width, ridge, seed)
        K, b = Gaussian(h).gram(S), Gaussian(h)(S, T).mean(1)
        start = (len(S) * cholesky(K + len(S) * lam * torch.eye(len(S)).to(K)).solve(b + lam)).clamp_min(0)
        w = start if method == "kulsif" else _non_negative(K / len(S) + lam * torch.eye(len(S)).to(K), b + lam, start)
    w = w / (alpha * w + 1 - alpha)
    return w / w.mean() if normalise else w


def effective_sample_size(weights: Float[Tensor, " n"]) -> float:
    """(sum w)^2 / sum w^2, the number of equal weights whose mean varies as much (Kong, 1992)."""
    return float(weights.sum().square() / weights.square().sum().clamp_min(torch.finfo(weights.dtype).tiny))


def leave_one_out(S: Float[Tensor, "n d"], T: Float[Tensor, "m d"], width: float, ridges: tuple[float, ...]) -> Float[Tensor, " ridges"]:
    """The leave-one-out error of KuLSIF at each ridge, over the pairs (s_l, t_l), l < min(n, m)."""
    k, n, m, L = Gaussian(width), len(S), len(T), min(len(S), len(T))
    K_ST, own = k(S, T), k.gram(T)[:L].mean(1)
    values, V = torch.linalg.eigh(k.gram(S))
    P, b, found = V.mT @ K_ST, K_ST.mean(1), []
    for lam in ridges:
        d = 1 / (values + (n - 1) * lam)
        u = V @ (d * (V.mT @ (m / (m - 1) * b + lam)))
        diagonal, U = V[:L].square() @ d, (V[:L] * d * P[:, :L].mT).sum(1)
        e = (u[:L] - U / (m - 1)) / diagonal
        ku = (K_ST.mT @ u)[:L] - d @ P[:, :L].square() / (m - 1)
        at_s, at_t = e / lam, ((m * own - 1) / (m - 1) + lam - ku + U * e) / lam
        found.append((at_s.clamp_min(0).square() / 2 - at_t.clamp_min(0)).mean())
    return torch.stack(found)


def _scaled(X_source: object, X_target: object) -> tuple[Tensor, Tensor]:
    S, T = (read_table(name, X)[0] for name, X in (("X_source", X_source), ("X_target", X_target)))
    for name, X in (("X_source", S), ("X_target", T)):
        check_finite(name, X, tuple(map(str, range(X.shape[1]))))
        require(len(X) >= 2, name, expected="at least 2 rows", got=len(X), cure="give it more samples")
    require(S.shape[1] == T.shape[1], "X_target", expected=f"{S.shape[1]} columns, as X_source has", got=T.shape[1],
            cure="give both the same columns in the same order")  # fmt: skip
    both = torch.cat([S, T.to(S.device)])
    both = both / both.abs().amax(0).clamp_min(torch.finfo(both.dtype).tiny)  # squares of the smallest would be zero
    spread = both.std(0)
    both = (both - both.mean(0)) / torch.where(spread > 1e-12 * both.abs().amax(0), spread, 1.0)
    return both[: len(S)], both[len(S) :]


def _chosen(S: Tensor, T: Tensor, width: float | None, ridge: float | None, seed: int) -> tuple[float, float]:
    """Width and ridge."""
    if width is not None and ridge is not None:
        return width, ridge
    generator = torch.Generator().manual_seed(seed)
    s, t = (X[torch.randperm(len(X), generator=generator)[:ROWS].to(X.device)] for X in (S, T))
    if width is None and bool((torch.cat([s, t]) == s[0]).all()):
        width = 1.0
    widths = [width] if width is not None else [scale * median_bandwidth(s, t) for scale in WIDTHS]
    ridges = RIDGES if ridge is None else (ridge,)
    errors = torch.stack([leave_one_out(s, t, h, ridges) for h in widths])
    i, j = divmod(int(errors.argmin()), len(ridges))
    return widths[i], ridges[j]


def _non_negative(Q: Tensor, c: Tensor, v: Tensor, steps: int = 5000) -> Tensor:
    """argmin over v >= 0 of v.Q v / 2 - c.v: projected gradients with momentum (Beck and Teboulle, 2009), restarted uphill."""
    step, tolerance = 1 / torch.linalg.matrix_norm(Q, 1), 1e-10 * (1 + float(c.abs().max()))
    z, t = v, 1.0
    for _ in range(steps):
        gradient = Q @ z - c
        new, ahead = (z - step * gradient).clamp_min(0), (1 + (1 + 4 * t * t) ** 0.5) / 2
        if bool(((new - z) / step).abs().max() < tolerance):
            return new
        uphill = bool(gradient @ (new - v) > 0)
        z, t = (new, 1.0) if uphill else (new + (t - 1) / ahead * (new - v), ahead)
        v = new
    return v


def _logistic(S: Tensor, T: Tensor, lam: float, steps: int = 100) -> Tensor:
    """(n / m) exp f at the rows of S; the mean log loss plus lam |theta|^2 / 2, the intercept free, by damped Newton steps."""
    X = torch.cat([torch.ones(len(S) + len(T), 1).to(S), torch.cat([S, T])], 1)
    y = torch.cat([torch.zeros(len(S)), torch.ones(len(T))]).to(S)
    penalty = lam * torch.ones(X.shape[1]).to(X)
    penalty[0] = 0

    def loss(theta: Tensor) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(X @ theta, y) + (penalty * theta.square()).sum() / 2

    theta = torch.zeros(X.shape[1]).to(X)
    theta[0] = torch.log(torch.tensor(len(T) / len(S)))
    for _ in range(steps):
        p = (X @ theta).sigmoid()
        gradient = X.mT @ (p - y) / len(X) + penalty * theta
        H = (X.mT * (p * (1 - p))) @ X / len(X) + torch.diag(penalty)
        move, scale, now = -cholesky(H).solve(gradient), 1.0, loss(theta)
        while scale > 1e-8 and loss(theta + scale * move) > now + 1e-4 * scale * (gradient @ move):
            scale /= 2
        theta = theta + scale * move
        if bool(-(gradient @ move) < 1e-20) or scale <= 1e-8:
            break
    return len(S) / len(T) * (X[: len(S)] @ theta).clamp(-EXPONENT, EXPONENT).exp()
