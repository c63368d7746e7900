"""One primal-dual training step for each family of value. No step depends on how many will follow, so a run may stop at any time.

    eps_k = eps_end + (eps_start - eps_end) exp(-k/200)         entropy (sigma = 0; else eps = sigma^2); a mixture, whose pieces
                                                                freeze when it is small, takes 1 / (1 + k/100) in place of exp
    lr_k  = lr min(1, (k+1)/warmup) / sqrt(1 + k/decay)         step size
    avg_k = avg_{k-1} + (1 - k/(k+horizon)) (now - avg)         average over a constant fraction of the run (Karras et al., 2024)
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from driftway import checks
from driftway.transport import bridge, dual
from driftway.transport.mixture import MixtureValue
from driftway.transport.stream import Stream
from driftway.transport.value import NetworkValue, Value


@dataclass(frozen=True)
class Settings:
    """How to train. Entropies are fractions of the mean cost between source and target rows.

    Attributes:
        batch: source rows per step of the network family.
        candidates: target rows per step of the network family.
        width: units per hidden layer.
        depth: hidden layers.
        heads: pieces of the soft minimum.
        scalings: Sinkhorn scalings of the batch.
        level: weight of the value-level term beside the gradient term.
        components: components of the mixture family.
        mixture_batch: source and target rows per step of the mixture family.
        lr: step size of the network family.
        mixture_lr: step size of the mixture family.
        eps_start: entropy at the start (sigma = 0).
        eps_end: entropy in the end of the network family (sigma = 0).
        mixture_eps_end: entropy in the end of the mixture family (sigma = 0).
    """

    batch: int = 256
    candidates: int = 512
    width: int = 64
    depth: int = 3
    heads: int = 32
    scalings: int = 5
    level: float = 0.02
    components: int = 64
    mixture_batch: int = 1024
    lr: float = 5e-3
    mixture_lr: float = 5e-3
    eps_start: float = 0.05
    eps_end: float = 0.004
    mixture_eps_end: float = 0.001

    def __post_init__(self) -> None:
        for name in ("batch", "candidates", "mixture_batch"):
            checks.count(name, getattr(self, name), least=2)
        for name in ("width", "depth", "heads", "components"):
            checks.count(name, getattr(self, name))
        checks.count("scalings", self.scalings, least=0)
        checks.real("level", self.level, least=0)
        for name in ("lr", "mixture_lr", "eps_start", "eps_end", "mixture_eps_end"):
            checks.real(name, getattr(self, name), least=0, strict=True)


class Learner(ABC):
    """A value in training: the live value, its running average, and the optimizer.

    Args:
        value: what is trained.
        eps: entropies at the start and in the end, in model space.
        sigma: noise level, in model space.
        lr: step size.
    """

    decay, warmup, horizon = 500, 50, 8

    def __init__(self, value: Value, *, eps: tuple[float, float], sigma: float, lr: float) -> None:
        self.value, self.average = value, copy.deepcopy(value).requires_grad_(False)
        self.eps_start, self.eps_end = eps
        self.sigma, self.lr = sigma, lr
        self.optimizer = torch.optim.AdamW(value.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-5, fused=True)

    def eps(self, k: int) -> float:
        """The entropy of step k."""
        return self.eps_end + (self.eps_start - self.eps_end) * math.exp(-k / 200)

    def step(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, float]:
        """One step; returns its losses by name. If one is not finite, nothing changes."""
        losses = self.losses(k, source, target, own)
        found = {name: loss.item() for name, loss in losses.items()}
        if not all(map(math.isfinite, found.values())):
            return found
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (k + 1) / self.warmup) / math.sqrt(1 + k / self.decay)
        self.optimizer.step()
        weight = self.horizon / (k + self.horizon)
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.value.parameters(), strict=True):
                mean.lerp_(now, weight)
        return found

    @abstractmethod
    def losses(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, Tensor]:
        """The terms of the loss of step k, by name."""


class NetworkLearner(Learner):
    """The simulation-free primal-dual step: occupancy weights, dual step on g, bridge, fit of V."""

    def __init__(self, value: NetworkValue, settings: Settings, *, eps: tuple[float, float], sigma: float) -> None:
        super().__init__(value, eps=eps, sigma=sigma, lr=settings.lr)
        self.networks, self.settings = value, settings

    def losses(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, Tensor]:
        x, y, eps = source.draw(self.settings.batch), target.draw(self.settings.candidates), self.eps(k)
        g = self.networks.price(y)
        primal = dual.occupancy(x, y, g.detach(), eps=eps, scalings=self.settings.scalings)
        draw = torch.rand(2, len(x), generator=own, dtype=torch.float64).to(x)
        chosen, t = y[dual.choose(primal.balanced, draw[0])], draw[1]
        normal = torch.randn(x.shape, generator=own).to(x) if self.sigma > 0 else torch.zeros_like(x)
        x_t = bridge.interpolate(x, chosen, t, sigma=self.sigma, normal=normal)
        backed = bridge.backup(x_t, t, y, primal.g, eps=eps)
        fit = bridge.targets(x, chosen, x_t, t, backed, sigma=self.sigma)
        V, gradient = self.networks.V.value_and_gradient(x_t, t)
        weight = 1 - t if self.sigma > 0 else torch.ones_like(t)
        return {
            "dual": dual.dual_loss(g, primal.weights),
            "gradient": (weight * (gradient + fit.action).square().sum(1)).mean(),
            "level": self.settings.level * (V - fit.level).square().mean(),
        }


class MixtureLearner(Learner):
    """Ascent on the exact dual of the closed-form family."""

    horizon = 3

    def __init__(self, value: MixtureValue, settings: Settings, *, eps: tuple[float, float], sigma: float) -> None:
        super().__init__(value, eps=eps, sigma=sigma, lr=settings.mixture_lr)
        self.mixture, self.settings = value, settings

    def eps(self, k: int) -> float:
        return self.eps_end + (self.eps_start - self.eps_end) / (1 + k / 100)

    def losses(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, Tensor]:
        del own
        x, y = source.draw(self.settings.mixture_batch), target.draw(self.settings.mixture_batch)
        for value in (self.value, self.average):
            value.get_buffer("eps").fill_(self.eps(k))
        return {"dual": self.mixture.log_c(x).mean() - self.mixture.log_v(y).mean()}
