"""The simulation-free primal-dual step of values that are fitted: perceptrons, inner-product potentials.

    P      = occupancy weights of the candidates y under the current prices g                                        `dual`
    D      = the dual loss, whose gradient moves g
    x_t    on the bridge from x to an end drawn from the balanced P, t ~ U[0, 1]                                     `bridge`
    L      = E |grad V(x_t, t) + a|^2 + level (V(x_t, t) - v)^2,     (v, a) = level and action of the backup at x_t

With labels a step solves two problems side by side: states with a label are paired with candidates of that label, and a fraction of
the states, whose label is dropped, with candidates of every label. The second is the value of null that guidance mixes with (Ho and
Salimans, 2022).

Equations (T3), (T4), (T5), (T6): docs/derivations/transport.md.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from driftway.checks import require
from driftway.parallel import Group
from driftway.transport import bridge, dual
from driftway.transport.condition import nulls
from driftway.transport.learner import Learner, Settings
from driftway.transport.problem import cost
from driftway.transport.stream import Batch, Stream
from driftway.transport.value import Trainable


@dataclass(frozen=True)
class Part:
    """States x and the candidates y that they share, conditions of both, and which candidates a state may take.

    `other` holds source rows independent of x, one for each candidate, where a learner asks for them.
    """

    x: Tensor
    y: Tensor
    c: Tensor | None = None
    c_y: Tensor | None = None
    pairing: dual.Pairing | None = None
    other: Tensor | None = None


class NetworkLearner(Learner):
    """The simulation-free primal-dual step: occupancy weights, dual step on g, bridge, fit of V."""

    others = False

    def __init__(self, value: Trainable, settings: Settings, *, eps: tuple[float, float], sigma: float, group: Group) -> None:
        super().__init__(value, eps=eps, sigma=sigma, lr=settings.lr, group=group)
        self.networks, self.settings = value, settings

    def losses(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, Tensor]:
        size = self.group.size
        x, y = source.draw(size * self.settings.batch), target.draw(size * self.settings.candidates)
        other = source.draw(len(y)).x if self.others else None
        parts = [Part(x.x, y.x, other=other)] if y.c is None else self.parts(x, y, other, self.eps(k))
        rows = sum(len(part.x) for part in parts)
        fits = [self.fit(k, part, own) for part in parts]
        x_t, t, level, action = (torch.cat(columns) for columns in zip(*(fit[1:] for fit in fits), strict=True))
        c = None if y.c is None else torch.cat([self.group.own(part.c) for part in parts if part.c is not None])
        V, gradient = self.networks.value_and_gradient(x_t, t, c)
        weight = 1 - t if self.sigma > 0 else torch.ones_like(t)
        return {
            "dual": torch.stack([len(part.x) / rows * fit[0] for part, fit in zip(parts, fits, strict=True)]).sum(),
            "gradient": (weight * (gradient + action).square().sum(1)).sum() * size / rows,
            "level": self.settings.level * (V - level).square().sum() * size / rows,
        }

    def fit(self, k: int, part: Part, own: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The dual loss of a part, states x_t on its bridges, their times, and the levels and actions to fit V to."""
        x, y, eps, pairing = part.x, part.y, self.eps(k), part.pairing
        g = self.networks.price(y, part.c_y)
        primal = dual.occupancy(x, y, g.detach(), eps=eps, scalings=self.settings.scalings, pairing=pairing)
        draw = torch.rand(2, len(x), generator=own, dtype=torch.float64).to(x)
        normal = torch.randn(x.shape, generator=own).to(x) if self.sigma > 0 else torch.zeros_like(x)
        x, t, normal, balanced, uniform = (self.group.own(z) for z in (x, draw[1], normal, primal.balanced, draw[0]))
        chosen = y[dual.choose(balanced, uniform)]
        x_t = bridge.interpolate(x, chosen, t, sigma=self.sigma, normal=normal)
        log_weights = None if pairing is None else self.group.own(pairing.log_weights)
        backed = bridge.backup(x_t, t, y, primal.g, eps=eps, log_weights=log_weights)
        fit = bridge.targets(x, chosen, x_t, t, backed, sigma=self.sigma)
        return dual.dual_loss(g, primal.weights, None if pairing is None else pairing.mass), x_t, t, fit.level, fit.action

    def parts(self, x: Batch, y: Batch, other: Tensor | None, eps: float) -> list[Part]:
        """States with a label, and states without. Closeness counts in mean costs: vectors outweigh the cost at every eps."""
        assert y.c is not None  # noqa: S101 (the caller knows)
        dropped = round(self.settings.dropout * len(x))
        kept, c = assign(x[dropped:], y)
        closeness = self.settings.closeness * float(cost(x.x, y.x).mean()) / eps if c.is_floating_point() else 0.0
        pairing = dual.pair_by(c, y.c, weight=closeness, like=y.x)
        some = y[: max(len(y) // 4, 2 * dropped)]
        none = nulls(y.c)
        null = none[torch.arange(dropped, device=none.device) % len(y)]
        alike = other if x.c is None and other is not None and len(other) == len(y) else None  # rows of a labelled source differ by label
        both = [Part(kept, y.x, c, y.c, pairing, alike),
                Part(x.x[:dropped], some.x, null, none[: len(some)], other=None if other is None else other[: len(some)])]  # fmt: skip
        return [part for part in both if len(part.x)]


def assign(x: Batch, y: Batch) -> tuple[Tensor, Tensor]:
    """States and their labels.

    A state of an unlabelled source takes the label of a candidate; one whose label no candidate has is left out.

    Raises:
        InputError: if that leaves none.
    """
    assert y.c is not None  # noqa: S101 (the caller knows)
    if x.c is None:
        return x.x, y.c[torch.arange(len(x), device=y.c.device) % len(y)]
    if x.c.is_floating_point():
        return x.x, x.c
    there = torch.isin(x.c, y.c)
    require(bool(there.any()), "labels", expected="a class that source and target rows of one batch share", got="none",
            cure="raise batch and candidates in the settings")  # fmt: skip
    return x.x[there], x.c[there]
