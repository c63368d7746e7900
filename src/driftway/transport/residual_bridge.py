r"""The step of a residual value for Schrödinger bridges: candidates are drawn from the base, not from a batch.

With the base's law of the end p^q_t(y|x), V = V^q + R and g = g^q + h, the Cole-Hopf formula of `problem` becomes

    R(x, t)     = -eps log E_{y ~ p^q_t(.|x)} exp(-h(y) / eps)
    -grad R     = (E[w y] - E[y]) / (1-t),        w = exp(-h(y)/eps) / E exp(-h/eps)           expectations under p^q_t(.|x)
    dual        = E_tgt h(Y) + eps E_src log E_{y ~ p^q_0(.|X)} exp(-h(y) / eps)

estimated with m draws of the end for each state. The draws are near the state's own ends, however many dimensions there are, where
few of a batch's M rows would be: with the base exact, h = 0 and the weights are even.

Equations (T14), (T15), (T16): docs/derivations/transport.md.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.transport import bridge, dual
from driftway.transport.condition import nulls
from driftway.transport.primal_dual import NetworkLearner, assign
from driftway.transport.residual import ResidualValue
from driftway.transport.stream import Stream


class BridgeLearner(NetworkLearner):
    """The step above; sigma > 0."""

    draws = 8

    def losses(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, Tensor]:
        value, eps, size = self.networks, self.eps(k), self.group.size
        assert isinstance(value, ResidualValue)  # noqa: S101 (it is built for one)
        batch, y = source.draw(size * self.settings.batch), target.draw(size * self.settings.candidates)
        if y.c is None:
            x, c, level = batch.x, None, value.rest.price(y.x).mean()
        else:
            x, c = assign(batch, y)
            part = round(self.settings.dropout * len(x))
            mass = dual.shares(c, y.c).to(x) if not c.is_floating_point() else x.new_full((len(y),), 1 / len(y))
            none = nulls(y.c)
            level = (1 - part / len(x)) * mass @ value.rest.price(y.x, y.c) + part / len(x) * value.rest.price(y.x, none).mean()
            c = torch.cat([none[torch.arange(part, device=c.device) % len(y)], c[part:]])
        noise = torch.randn(2, len(x), x.shape[1], generator=own).to(x)
        t, uniform = torch.rand(2, len(x), generator=own, dtype=torch.float64).to(x)
        start = self.ends(value, x, torch.zeros_like(t), own)
        h = self.price(value, start, c)
        with torch.no_grad():
            chosen = start[torch.arange(len(x), device=x.device), dual.choose((-h / eps).softmax(1), uniform)]
            x_t = bridge.interpolate(x, chosen, t, sigma=self.sigma, normal=noise[0])
            ends = self.ends(value, x_t, t, own)
            later = self.price(value, ends, c)
            lean = (-later / eps).softmax(1) - 1 / self.draws
            base, slope = value.quadratic(x_t, t)
            action = torch.einsum("nm,nmd->nd", lean, ends) / (1 - t).clamp_min(1e-3)[:, None] - slope
            height = base - self.soft(later, eps)
        mine = [None if z is None else self.group.own(z) for z in (x_t, t, c, action, height)]
        x_t, t, c, action, height = mine
        assert x_t is not None and t is not None and action is not None and height is not None  # noqa: S101, PT018
        V, gradient = value.value_and_gradient(x_t, t, c)
        return {
            "dual": level + self.soft(h, eps).mean(),
            "gradient": ((1 - t) * (gradient + action).square().sum(1)).sum() * size / len(x),
            "level": self.settings.level * (V - height).square().sum() * size / len(x),
        }

    def ends(self, value: ResidualValue, x: Float[Tensor, "n d"], t: Float[Tensor, " n"], own: torch.Generator) -> Float[Tensor, "n m d"]:
        """Ends drawn from the base for every state."""
        many, times = x.repeat_interleave(self.draws, 0), t.repeat_interleave(self.draws)
        normal = torch.randn(many.shape, generator=own).to(x)
        with torch.no_grad():
            drawn = value.base.endpoint(many, times, uniform=torch.zeros_like(times), normal=normal)
        return drawn.unflatten(0, (len(x), self.draws))

    def price(self, value: ResidualValue, y: Float[Tensor, "n m d"], c: Tensor | None) -> Float[Tensor, "n m"]:
        """h of the ends of every state under its condition."""
        return value.rest.price(y.flatten(0, 1), None if c is None else c.repeat_interleave(self.draws, 0)).unflatten(0, y.shape[:2])

    def soft(self, h: Float[Tensor, "n m"], eps: float) -> Float[Tensor, " n"]:
        """eps log mean exp(-h / eps)."""
        return eps * (torch.logsumexp(-h / eps, 1) - math.log(self.draws))
