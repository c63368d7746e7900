"""States between paired ends, and the action that the backed-up value asks for there.

    x_t = (1-t) x + t y + sigma sqrt(t(1-t)) xi                                        Brownian bridge
    V_t(x_t) = -eps log mean_j exp(-(|x_t - y_j|^2 / 2(1-t) + g_j) / eps)              soft backup over the candidates y_j
    -grad V_t(x_t) = (E[y | x_t] - x_t) / (1-t)

The backup's own gradient has less variance than the action (y - x_t)/(1-t) of the one sampled end. When sigma = 0 the last stretch,
t > 0.95, is thinner than the spacing of the candidates and the sampled end is used.

Equation (T4): docs/derivations/transport.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LATE = 0.95


@dataclass(frozen=True)
class Backup:
    """What a value is fitted to at states x_t: levels (n,) and optimal actions (n, d)."""

    level: Float[Tensor, " n"]
    action: Float[Tensor, "n d"]


def interpolate(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], t: Float[Tensor, " n"], *, sigma: float, normal: Float[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """A point of the Brownian bridge from x to y at time t."""
    t = t[:, None]
    middle = x + t * (y - x)
    return middle if sigma == 0 else middle + sigma * (t * (1 - t)).sqrt() * normal


def backup(x_t: Float[Tensor, "n d"], t: Float[Tensor, " n"], y: Float[Tensor, "m d"], g: Float[Tensor, " m"],
           *, eps: float, log_weights: Float[Tensor, "n m"] | None = None) -> Backup:  # fmt: skip
    """The value and the action at x_t by one soft backup over candidates y with prices g (module docstring).

    `log_weights` say which candidates a state may take (`Pairing`); the mean is over those.
    """
    left = (1 - t).clamp_min(1e-6)[:, None]
    rows = torch.cat([x_t, -torch.ones_like(left)], 1) / (eps * left)
    columns = torch.cat([y, y.square().sum(1, keepdim=True) / 2], 1)
    logits = torch.addmm(-g / eps, rows, columns.T)
    count = math.log(len(y))
    if log_weights is not None:
        logits, count = logits + log_weights, log_weights.exp().sum(1).log()
    largest = logits.max(1, keepdim=True).values
    weights = (logits - largest).clamp_(min=-60).exp_()
    total = weights.sum(1, keepdim=True)
    level = x_t.square().sum(1) / (2 * left[:, 0]) - eps * ((largest + total.log())[:, 0] - count)
    return Backup(level=level, action=((weights @ y) / total - x_t) / left)


def targets(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], x_t: Float[Tensor, "n d"], t: Float[Tensor, " n"],
            backed: Backup, *, sigma: float) -> Backup:  # fmt: skip
    """The backup, with the sampled end's own action on the last stretch when sigma = 0."""
    if sigma > 0:
        return backed
    return Backup(level=backed.level, action=torch.where(t[:, None] < LATE, backed.action, y - x))
