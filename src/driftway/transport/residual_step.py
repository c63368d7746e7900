r"""The primal-dual step of a residual value when sigma = 0: ends without the bias of a batch.

In many dimensions the nearest of M candidates is far, and the mean end E_P[y|x] of a batch is biased towards the middle.
The base has the same bias, and its true answer T(x) is known: with an independent source batch x' coupled in the same way,

    end(x) = T(x) + E_P[y|x] - E_P'[T(x')|x]

at t = 0 is a control variate, exact in the mean for normal laws. Three states in ten are at t = 0; at t > 0 the step is the one of
`primal_dual`.

A gradient field that pushes source to target is the optimal map, so a field with unbiased ends has the right fixed point.

Equation (T13): docs/derivations/transport.md.
"""

import torch
from torch import Tensor

from driftway.transport import bridge, dual
from driftway.transport.primal_dual import NetworkLearner, Part
from driftway.transport.residual import ResidualValue


class ResidualLearner(NetworkLearner):
    """The primal-dual step with a control variate (above)."""

    others, start = True, 0.3

    def fit(self, k: int, part: Part, own: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        value, x, y, eps, pairing, scalings = self.networks, part.x, part.y, self.eps(k), part.pairing, self.settings.scalings
        assert isinstance(value, ResidualValue)  # noqa: S101 (it is built for one)
        g = value.price(y, part.c_y)
        primal = dual.occupancy(x, y, g.detach(), eps=eps, scalings=scalings, pairing=pairing)
        draw = torch.rand(3, len(x), generator=own, dtype=torch.float64).to(x)
        rows, P, (uniform, t, first) = self.group.own(x), self.group.own(primal.balanced), (self.group.own(z) for z in draw)
        chosen = y[dual.choose(P, uniform)]
        t = torch.where(first < self.start, 0.0, t)
        x_t = bridge.interpolate(rows, chosen, t, sigma=0.0, normal=rows)
        log_weights = None if pairing is None else self.group.own(pairing.log_weights)
        backed = bridge.backup(x_t, t, y, primal.g, eps=eps, log_weights=log_weights)
        fit = bridge.targets(rows, chosen, x_t, t, backed, sigma=0.0)
        mean = P @ y
        if part.other is not None:
            ends = value.map(part.other)
            control = dual.occupancy(x, ends, value.base.price(ends), eps=eps, scalings=scalings, pairing=pairing)
            mean = value.map(rows) + mean - self.group.own(control.balanced) @ ends
        action = torch.where(t[:, None] > 0, fit.action, mean - rows)
        return dual.dual_loss(g, primal.weights, None if pairing is None else pairing.mass), x_t, t, fit.level, action
