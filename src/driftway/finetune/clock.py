"""The clock of a training run: by how much a step of the optimizer moves eta.

    scale x lr x clipping x growth / (1 - momentum)      gradient descent
    lr x clipping x growth x pace                        Adam

The scale belongs to the loss (probe.py), the pace to Adam (metric.py). Momentum multiplies the step of plain gradient descent by
1 / (1 - momentum) once it has built up. Clipping divides a step by the norm of its gradient where that is too large; under Adam the pace
sees the smaller gradients, and what is left is how clipping changes from step to step. Growth is that of the kernel.

Equations (F27), (F28): docs/derivations/finetune.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from driftway.finetune.metric import pace


def inner(optimizer: Any) -> Any:
    """What accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)


@dataclass
class Clock:
    """The clock; the fields travel with checkpoints.

    Attributes:
        metric: of the optimizer.
        scale: eta of a step of plain descent in units of its learning rate.
        reference: of `pace`.
        growth: of the kernel since the start.
        eta: time so far.
        clipped: steps whose gradient was clipped.
    """

    metric: str = "gradient"
    scale: float = 1.0
    reference: Mapping[str, float] = field(default_factory=dict)
    growth: float = 1.0
    eta: float = 0.0
    clipped: int = 0

    def __post_init__(self) -> None:
        """Nothing is watched yet."""
        self._hooks: list[Any] = []
        self._norms: dict[int, Tensor] = {}
        self._names: dict[int, str] = {}
        self._factor = self._pace = 1.0

    def watch(self, model: nn.Module, optimizer: Any, *, clipping: bool) -> None:
        """Learn the names of parameters and the pace, and record norms of gradients before they are clipped."""
        self._names = {id(p): name for name, p in model.named_parameters()}
        if self.metric == "adam":
            self._pace = pace(inner(optimizer), self._names, self.reference)
        for p in model.parameters():
            if p.requires_grad and clipping:
                self._hooks.append(p.register_post_accumulate_grad_hook(self._norm))

    def unwatch(self) -> None:
        """Remove what `watch` has put on the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def clip(self, most: float) -> None:
        """Take the factor of clipping to the norm `most` from the gradients of the step at hand."""
        self._factor = 1.0
        if self._norms:
            norms = list(self._norms.values())
            norm = float(torch.stack([norm.to(norms[0]) for norm in norms]).norm())
            self._norms.clear()
            self._factor = min(1.0, most / (norm + 1e-6))
            self.clipped += self._factor < 1

    def tick(self, optimizer: Any) -> None:
        """Add the step that was just made, by the learning rate that it was made with."""
        if self.metric == "adam":
            self._pace = pace(inner(optimizer), self._names, self.reference)
        self.eta += self.step(optimizer)

    def step(self, optimizer: Any) -> float:
        """What a step adds to eta, if it is like the last one but for the learning rate."""
        return self.scale * float(optimizer.param_groups[0]["lr"]) * self.boost(optimizer) * self._factor * self.growth * self._pace

    def boost(self, optimizer: Any) -> float:
        """How much longer momentum makes a step."""
        group = optimizer.param_groups[0]
        return 1.0 if self.metric != "gradient" else (1 - group.get("dampening", 0)) / (1 - group.get("momentum", 0))

    def _norm(self, p: Tensor) -> None:
        if p.grad is not None:
            self._norms[id(p)] = p.grad.detach().norm().float()
