"""What training steps share: settings, schedules, the optimizer, the running average.

No step depends on how many will follow, so a run may stop at any time.

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
from driftway.checks import require
from driftway.parallel import Group
from driftway.transport.stream import Stream
from driftway.transport.value import Value


@dataclass(frozen=True)
class Settings:
    """How to train. Entropies are fractions of the mean cost between source and target rows.

    Attributes:
        batch: source rows per step of the network family.
        candidates: target rows per step of the network family.
        width: units per hidden layer; None is 64 for rows of up to 8 columns, else 256.
        depth: hidden layers.
        base: channels of the first level of a U-Net.
        heads: pieces of the soft minimum.
        scalings: Sinkhorn scalings of the batch.
        level: weight of the value-level term beside the gradient term.
        components: components of the mixture family.
        rank: of its covariances: -1 full, 0 diagonal.
        mixture_batch: source and target rows per step of the mixture family.
        lr: step size of the network family.
        mixture_lr: step size of the mixture family.
        eps_start: entropy at the start (sigma = 0).
        eps_end: entropy in the end of the network family (sigma = 0).
        mixture_eps_end: entropy in the end of the mixture family (sigma = 0).
        dropout: fraction of the states that train the value of null, where there are labels.
        precision: "bfloat16" runs the U-Net of the image family in mixed precision, for GPUs; else "float32".
        compiled: whether torch.compile translates the U-Net, for long runs.
        closeness: weight of half the squared distance between condition vectors when states are paired with candidates.
    """

    batch: int = 256
    candidates: int = 512
    width: int | None = None
    depth: int = 3
    base: int = 16
    heads: int = 32
    scalings: int = 5
    level: float = 0.02
    components: int = 64
    rank: int = -1
    mixture_batch: int = 1024
    lr: float = 5e-3
    mixture_lr: float = 5e-3
    eps_start: float = 0.05
    eps_end: float = 0.004
    mixture_eps_end: float = 0.001
    dropout: float = 0.1
    closeness: float = 20.0
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "candidates", "mixture_batch"):
            checks.count(name, getattr(self, name), least=2)
        for name in ("depth", "base", "heads", "components", *(() if self.width is None else ("width",))):
            size, most = checks.count(name, getattr(self, name)), 1000 if name == "depth" else 2**20
            require(size <= most, name, expected=f"a whole number up to {most}", got=size, cure="choose a smaller value function")
        checks.count("scalings", self.scalings, least=0)
        require(self.rank == -1 or (isinstance(self.rank, int) and self.rank >= 0), "rank", expected="a whole number >= 0, or -1 for full",
                got=repr(self.rank), cure="pass rank=0 for diagonal covariances")  # fmt: skip
        require(isinstance(self.compiled, bool), "compiled", expected="True or False", got=repr(self.compiled), cure="pass compiled=False")
        require(not self.compiled or torch.__version__ >= "2.13", "compiled", expected="torch 2.13 or newer, as older ones compile wrongly",
                got=f"torch {torch.__version__}", cure="pass compiled=False, or install a newer torch")  # fmt: skip
        checks.choice("precision", self.precision, ("float32", "bfloat16"))
        checks.real("level", self.level, least=0)
        checks.real("closeness", self.closeness, least=0)
        require(0 <= checks.real("dropout", self.dropout) < 1, "dropout", expected="a fraction in [0, 1)", got=self.dropout,
                cure="0.1 spends a tenth of the states on the value of null")  # fmt: skip
        for name in ("lr", "mixture_lr", "eps_start", "eps_end", "mixture_eps_end"):
            checks.real(name, getattr(self, name), least=0, strict=True)


class Learner(ABC):
    """A value in training: the live value, its running average, and the optimizer.

    Args:
        value: what is trained.
        eps: entropies at the start and in the end, in model space.
        sigma: noise level, in model space.
        lr: step size.
        group: the processes that train together.
    """

    decay, warmup, horizon = 500, 50, 8

    def __init__(self, value: Value, *, eps: tuple[float, float], sigma: float, lr: float, group: Group) -> None:
        self.group = group
        self.value, self.average = value, copy.deepcopy(value).requires_grad_(False)
        self.eps_start, self.eps_end = eps
        self.sigma, self.lr = sigma, lr
        self.live, self.mean = list(value.parameters()), list(self.average.parameters())
        self.optimizer = torch.optim.AdamW(self.live, lr=lr, betas=(0.9, 0.99), weight_decay=1e-5, fused=True)

    def eps(self, k: int) -> float:
        """The entropy of step k."""
        return self.eps_end + (self.eps_start - self.eps_end) * math.exp(-k / 200)

    def step(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, float]:
        """One step; returns its losses by name. If one is not finite, nothing changes."""
        losses = self.losses(k, source, target, own)
        found = dict(zip(losses, self.group.mean([loss.item() for loss in losses.values()], next(iter(losses.values()))), strict=True))
        if not all(map(math.isfinite, found.values())):
            return found
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        self.group.average(parameter.grad for parameter in self.live)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (k + 1) / self.warmup) / math.sqrt(1 + k / self.decay)
        self.optimizer.step()
        weight = self.horizon / (k + self.horizon)
        with torch.no_grad():
            for mean, now in zip(self.mean, self.live, strict=True):
                mean.lerp_(now, weight)
        return found

    @abstractmethod
    def losses(self, k: int, source: Stream, target: Stream, own: torch.Generator) -> dict[str, Tensor]:
        """The terms of the loss of step k, by name."""
