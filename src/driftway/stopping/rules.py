"""The rules that choose a time eta to stop at: one short function each, from a flow and what the rule needs to know.

Radius and noise enter the plain rule as sigma / R only. Its critical radius eps_n^2, where R(eps) = eps^2 R / (2 e sigma), solves

    sum_j min(mu_j, x) = c x^2,   c = n R^2 / (4 e^2 sigma^2),   x = eps_n^2.

sum_j min(mu_j, x) is the least over m of m x + t_m with t_m = sum_{j>m} mu_j, so x is the least of the m roots
(m + (m^2 + 4 c t_m)^(1/2)) / 2c, and the time is 1/x. Infinity means: train to the end; 0: do not train.

Equations (F6), (F7), (F8), (F9), (F10), (F13), (F14), (F15): docs/derivations/finetune.md.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import require
from driftway.stopping.flow import Flow
from driftway.stopping.noise import lowest


def critical_radius(flow: Flow, *, sigma: float, radius: float = 1.0) -> float:
    """eps_n^2 of Raskutti, Wainwright and Yu (2014, eq. 9): with high probability |f_T - f|^2 / n <= 12 R^2 eps_n^2, for |f|_H <= R."""
    c = flow.spectrum.size * radius**2 / (4 * math.e**2 * sigma**2)
    mass = flow.mu * flow.size
    m = torch.cat([flow.size.new_zeros(1), flow.size.cumsum(0)])
    t = torch.cat([mass.flip(0).cumsum(0).flip(0), mass.new_zeros(1)])
    return float(((m + (m.square() + 4 * c * t).sqrt()) / (2 * c)).min())


def rademacher(flow: Flow, *, sigma: float, radius: float) -> float:
    """The last time at which R(eta^(-1/2)) <= radius / (2 e sigma eta): T of the plain rule is the last step up to it."""
    return 1 / critical_radius(flow, sigma=sigma, radius=radius) if radius > 0 else 0.0


def discrepancy(flow: Flow, *, sigma: float, tau: float = 1.0) -> float:
    """The first time at which the mean squared residual is tau sigma^2 (Morozov, 1966; Blanchard, Hoffmann and Reiss, 2018, eq. 1.6)."""
    level, low, high = tau * sigma**2, 0.0, float(flow.times(2)[-1])
    if float(flow.loss(0.0)) <= level:
        return 0.0
    if float(flow.loss(math.inf)) > level:
        return math.inf
    while float(flow.loss(high)) > level:
        high *= 2
    for _ in range(200):
        middle = math.sqrt(low * high) if low else high / 1e3
        low, high = (middle, high) if float(flow.loss(middle)) > level else (low, middle)
        if high - low < 1e-12 * high:
            break
    return high


def sure(flow: Flow, *, sigma: float) -> float:
    """The time of the least Stein estimate of the risk (Stein, 1981): mean residual^2 + 2 sigma^2 d/n - sigma^2."""
    return _best(flow, lambda eta: flow.risk(eta, sigma=sigma))


def gcv(flow: Flow) -> float:
    """The time of the least generalised cross validation score (Golub, Heath and Wahba, 1979): mean residual^2 / (1 - d/n)^2."""

    def score(eta: Tensor) -> Tensor:
        free = flow.survival(eta) @ flow.size / flow.spectrum.size
        return torch.where(free > 1e-6, flow.loss(eta) / free.clamp_min(1e-12).square(), math.inf)

    return _best(flow, score)


def marginal_likelihood(flow: Flow, *, lam: float) -> float:
    """The time nearest to the posterior mean: of least expected error given the data, if f ~ N(0, a^2 K) and lam = sigma^2 / (n a^2).

    E[|f_eta - f|^2 | y] / n = sum_j z_j^2 (s_j - lam / (mu_j + lam))^2 + a term without eta.
    """
    if math.isinf(lam):
        return 0.0
    target = lam / (flow.mu + lam)
    return _best(flow, lambda eta: (flow.survival(eta) - target).square() @ flow.energy)


def holdout(flow: Flow, *, cross: Float[Tensor, "m n"], held: Tensor) -> float:
    """The time of least squared error on rows that the kernel was not trained on.

    Args:
        flow: of the training rows.
        cross: K_*l, of the held rows with the training rows.
        held: (m, *k) their residual y - f_0.
    """
    require(len(cross) == len(held), "held", expected=f"{len(cross)} rows, as cross has", got=len(held),
            cure="pass y - f_0 of the held rows")  # fmt: skip

    def error(eta: Tensor) -> Tensor:
        return torch.cat([(held - flow.predict(cross, part)).double().square().flatten(1).mean(1) for part in eta.split(16)])

    return _best(flow, error)


def oracle(flow: Flow, *, truth: Float[Tensor, "n *k"]) -> float:
    """The time at which f_eta is nearest to the true f(X), of this draw of the noise; only simulations know it."""
    theta2, sum2, z2 = replace(flow, r=truth).energy, replace(flow, r=truth + flow.r).energy, flow.energy
    cross = (sum2 - theta2 - z2) / 2  # sum of theta_j z_j
    return _best(flow, lambda eta: _error(flow.survival(eta), theta2, cross, z2))


def _error(s: Tensor, theta2: Tensor, cross: Tensor, z2: Tensor) -> Tensor:
    """Sum of (theta_j - (1 - s_j) z_j)^2."""
    return theta2.sum() - 2 * (1 - s) @ cross + (1 - s).square() @ z2


def _best(flow: Flow, curve: Callable[[Tensor], Tensor]) -> float:
    """The time of the lowest value; 0 or infinity where an end is as low."""
    grid = flow.times()
    at, value = lowest(grid, curve)
    start, end = (float(curve(grid.new_tensor([eta]))[0]) for eta in (0.0, math.inf))
    if start <= value:
        return 0.0
    return math.inf if end <= value and at >= float(grid[-2]) else at
