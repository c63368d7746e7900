"""The peers: flow matching by torchcfm, trained by its published protocol, and with the helps that our own training has.

    x_t = (1-t) x_0 + t x_1      (x_0, x_1) from the exact transport plan of the batch (OT-CFM) or independent (I-CFM), sigma = 0
    loss = E |v(x_t, t) - (x_1 - x_0)|^2                                                   sample: x' = x + v(x, t)/H

Published: three layers of 64 SELU units on [x, t], AdamW, step size 1e-3, weight decay 1e-5, batch 512. Tuned: half the batch, as exact
plans are most of a step, and twice the step size; with k counting steps,

    lr_k  = lr min(1, (k+1)/warmup) / sqrt(1 + k/decay)        avg_k = avg_{k-1} + (now - avg) / (1 + k/horizon)

Source: Tong et al. (2024), TMLR, arXiv 2302.00482; torchcfm on PyPI.
"""

import copy
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from driftway.data import Law
from driftway.transport import Path
from driftway.transport.learner import Learner
from driftway.transport.stream import generator

WIDTH, DEPTH = 64, 3
PUBLISHED_BATCH, TUNED_BATCH = 512, 256
ACTIVATIONS = {"selu": nn.SELU, "elu": nn.ELU}


@dataclass(frozen=True)
class Recipe:
    """How a peer is trained. The defaults of the schedule and of the average are the published ones: constant, and none.

    Attributes:
        name: in tables.
        matcher: "exact" for exact transport plans between batches, "independent" for none.
        batch: rows of each law per step.
        lr: step size.
        warmup: steps of its rise.
        decay: steps after which it falls like 1/sqrt(k).
        horizon: of the weight average.
    """

    name: str
    matcher: str
    batch: int = PUBLISHED_BATCH
    lr: float = 1e-3
    warmup: float = 1
    decay: float = inf
    horizon: float = inf

    def step_size(self, k: int) -> float:
        """lr_k."""
        return self.lr * min(1.0, (k + 1) / self.warmup) / (1 + k / self.decay) ** 0.5


RECIPES = (
    Recipe("OT-CFM", "exact"),
    Recipe("OT-CFM (tuned)", "exact", batch=TUNED_BATCH, lr=2e-3, warmup=Learner.warmup, decay=Learner.decay, horizon=Learner.horizon),
    Recipe("I-CFM", "independent"),
)


class Descent:
    """AdamW with the schedule of a recipe, and its average of the weights.

    Args:
        recipe: whose schedule and average.
        live: parameters that are trained.
        average: the same parameters of a copy; left alone if the recipe has no average.
        betas: of AdamW.
    """

    def __init__(self, recipe: Recipe, live: Iterable[nn.Parameter], average: Iterable[Tensor],
                 betas: tuple[float, float] = (0.9, 0.999)) -> None:  # fmt: skip
        self.recipe, self.live, self.average, self.k = recipe, list(live), list(average), 0
        self.optimizer = torch.optim.AdamW(self.live, lr=recipe.lr, betas=betas, weight_decay=1e-5, fused=True)

    def step(self, loss: Tensor) -> None:
        """One step down a loss."""
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.step_size(self.k)
        self.optimizer.step()
        if self.recipe.horizon < inf:
            with torch.no_grad():
                for mean, now in zip(self.average, self.live, strict=True):
                    mean.lerp_(now, 1 / (1 + self.k / self.recipe.horizon))
        self.k += 1


@dataclass(frozen=True)
class Flow:
    """A trained velocity network.

    Attributes:
        network: (n, d + 1) -> (n, d), of states and time.
        steps: training steps done.
        seconds: they took, set-up included.
    """

    network: nn.Module
    steps: int
    seconds: float


def velocity_network(d: int, *, width: int = WIDTH, activation: str = "selu") -> nn.Sequential:
    """Three layers of `width` units on [x, t]."""
    sizes = [d + 1, *[width] * DEPTH]
    hidden = [module for a, b in pairwise(sizes) for module in (nn.Linear(a, b), ACTIVATIONS[activation]())]
    return nn.Sequential(*hidden, nn.Linear(width, d))


def train(recipe: Recipe, source: Law | Tensor, target: Law | Tensor, *, seconds: float, seed: int, width: int = WIDTH) -> Flow:
    """Train for so many processor seconds of this process, data and set-up included, on laws or on rows (n, d)."""
    matcher = matcher_of(recipe.matcher)
    with global_streams(seed):
        begun = time.process_time()
        own = generator(seed, recipe.matcher, "data")
        network = velocity_network(source.shape[1] if isinstance(source, Tensor) else source.dim, width=width)
        average = copy.deepcopy(network).requires_grad_(False)
        descent = Descent(recipe, network.parameters(), average.parameters())
        while time.process_time() - begun < seconds:
            x, y = (_draw(side, recipe.batch, own) for side in (source, target))
            t, x_t, u = matcher.sample_location_and_conditional_flow(x, y)
            loss = (network(torch.cat([x_t, t[:, None]], 1)) - u).square().mean()
            descent.step(loss)
        return Flow(average if recipe.horizon < inf else network.requires_grad_(False), descent.k, time.process_time() - begun)


@torch.no_grad()
def follow(network: nn.Module, x: Tensor, steps: int) -> Path:
    """Euler's method in equal steps from t = 0 to 1."""
    times = torch.linspace(0, 1, steps + 1)
    states, actions = [x], []
    for t, later in pairwise(times):
        actions.append(network(torch.cat([states[-1], t.expand(len(x), 1)], 1)))
        states.append(states[-1] + (later - t) * actions[-1])
    return Path(times, torch.stack(states), torch.stack(actions))


def _draw(side: Law | Tensor, n: int, own: torch.Generator) -> Tensor:
    if isinstance(side, Tensor):
        return side[torch.randint(len(side), (n,), generator=own)]
    return side.sample(n, generator=own)


def matcher_of(kind: str) -> Any:
    try:
        from torchcfm import conditional_flow_matching as cfm
    except ImportError:
        raise SystemExit("torchcfm is not installed; run `make bench`, which installs it and runs the benchmarks") from None
    return {"exact": cfm.ExactOptimalTransportConditionalFlowMatcher, "independent": cfm.ConditionalFlowMatcher}[kind](sigma=0.0)


@contextmanager
def global_streams(seed: int) -> Iterator[None]:
    """Seed the global streams, which torchcfm draws from, and put them back afterwards."""
    before = np.random.get_state()  # noqa: NPY002 (torchcfm takes no generator)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
