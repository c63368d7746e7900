"""The state of a training run: what was asked for, the data in model space, the learner, and how far it is."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.parallel import Group
from driftway.transport.condition import Conditions
from driftway.transport.dual import Certificate
from driftway.transport.families import FAMILIES, automatic, build_value, shape_of
from driftway.transport.image import ImageValue
from driftway.transport.intake import Data, Held, Labels, Mapped, normal_stream, open_data
from driftway.transport.labelled import LabelledMixture, initialise_labelled
from driftway.transport.learner import Learner, Settings
from driftway.transport.likelihood import MixtureLearner
from driftway.transport.mixture import MixtureValue
from driftway.transport.mixture_start import initialise
from driftway.transport.model import TransportModel, certificate
from driftway.transport.primal_dual import NetworkLearner
from driftway.transport.problem import Problem, cost
from driftway.transport.residual import ResidualValue, fit_base
from driftway.transport.residual_bridge import BridgeLearner
from driftway.transport.residual_step import ResidualLearner
from driftway.transport.scaler import MODES, Scaler, fit_scaler
from driftway.transport.stream import Batch, generator
from driftway.transport.value import Trainable, Value

PAIRED = 1024
ALONE = Group()


@dataclass(frozen=True)
class Plan:
    """What a run was asked to do: everything but the data and when to stop."""

    problem: Problem
    settings: Settings
    seed: int
    family: str
    standardize: str
    holdout: float
    certify_every: int

    def __post_init__(self) -> None:
        for name, kind in (("problem", Problem), ("settings", Settings)):
            require(isinstance(getattr(self, name), kind), name, expected=f"a {kind.__name__}", got=repr(getattr(self, name)),
                    cure=f"pass {name}={kind.__name__}(...)")  # fmt: skip
        checks.count("seed", self.seed, least=0)
        checks.choice("family", self.family, ("auto", *FAMILIES))
        checks.choice("standardize", self.standardize, MODES)
        checks.count("certify_every", self.certify_every)
        require(0 <= checks.real("holdout", self.holdout) < 1, "holdout", expected="a fraction in [0, 1)", got=self.holdout,
                cure="0.1 keeps a tenth of the rows")  # fmt: skip


@dataclass
class Run:
    """A run in progress.

    `index` steps are done; `given` says that the held-out rows were passed and not split off; `history` rows are (index, seconds,
    lower, upper, loss).
    """

    plan: Plan
    family: str
    scaler: Scaler
    conditions: Conditions
    eps: tuple[float, float]
    source: Mapped
    target: Mapped
    held: tuple[Tensor, Batch]
    learner: Learner
    given: bool
    index: int = 0
    seconds: float = 0.0
    history: list[list[float]] = field(default_factory=list)

    @property
    def shape(self) -> dict[str, int]:
        """What the value is built with."""
        return shape_of(self.family, self.plan.settings, self.scaler, self.conditions)

    def own(self) -> torch.Generator:
        """The random numbers of the next step, a function of the seed and the step."""
        return generator(self.plan.seed, "step", self.index)

    def model(self) -> TransportModel:
        """The running average as a model."""
        value = build_value(self.family, self.scaler, self.shape)
        value.load_state_dict(self.learner.average.state_dict())
        facts: dict[str, Any] = {"steps": self.index, "seconds": round(self.seconds, 3), "seed": self.plan.seed, "history": self.history,
                                 "settings": asdict(self.plan.settings), "eps": self.eps[1] * self.scaler.cost_scale}  # fmt: skip
        return TransportModel(value.requires_grad_(False), self.plan.problem, self.scaler, self.family, self.shape, facts, self.conditions)

    def certify(self) -> Certificate:
        """The certificate of the running average on the held-out rows."""
        return certificate(self.model(), self.held[0], self.held[1].x)


def start_run(plan: Plan, source: Data | None, target: Data, held: Held | None, *, labels: Labels = None, source_labels: Labels = None,
              conditions: Conditions | None = None, scaler: Scaler | None = None, eps: tuple[float, float] | None = None,
              family: str | None = None, group: Group = ALONE) -> Run:  # fmt: skip
    """Set a run up: streams, scale, entropies and an initialised learner.

    A resumed run brings its conditions, scale, entropies and family.

    Raises:
        InputError: if the data is unusable.
    """
    opened = open_data(source, target, labels=labels, source_labels=source_labels, held=held, holdout=plan.holdout, seed=plan.seed,
                       conditions=conditions)  # fmt: skip
    fresh = scaler is None
    if scaler is None:
        x = None if opened.source is None else opened.source.probe().x
        scaler = fit_scaler(opened.target.probe().x, source=x, mode=plan.standardize)
    inside = normal_stream(scaler.size, scaler.shift, seed=plan.seed) if opened.source is None else opened.source
    keep = (lambda batch: batch) if opened.source is None else (lambda batch: replace(batch, x=scaler.source(batch.x)))
    run_source, run_target = Mapped(inside, keep), Mapped(opened.target, lambda batch: replace(batch, x=scaler.target(batch.x)))
    x_held, y_held = opened.held
    if x_held is None:
        x_held = torch.randn(len(y_held), *scaler.event, generator=generator(plan.seed, "held-out source")).to(scaler.shift)
    family = family or (plan.family if plan.family != "auto" else automatic(scaler, plan.problem, opened.conditions))
    require(family != "mixture" or not opened.conditions.shift, "family", expected="another than mixture for condition vectors", got=family,
            cure="leave family out, or pass classes as labels")  # fmt: skip
    sigma = plan.problem.sigma / scaler.cost_scale**0.5
    eps = eps or entropies(plan, family, scaler, run_source, run_target)
    value = build_value(family, scaler, shape_of(family, plan.settings, scaler, opened.conditions))
    own = generator(plan.seed, "initialisation")
    if isinstance(value, MixtureValue | LabelledMixture):
        if fresh:
            _start_mixture(value, eps[0], run_source, run_target, own, plan.seed)
        learner: Learner = MixtureLearner(value, plan.settings, eps=eps, sigma=sigma, group=group)
    else:
        assert isinstance(value, Trainable)  # noqa: S101 (all others are)
        seed_parameters(value, own)
        if isinstance(value, ImageValue):
            value.prepare(precision=plan.settings.precision, compiled=plan.settings.compiled)
        kind = NetworkLearner
        if isinstance(value, ResidualValue):
            kind = BridgeLearner if sigma > 0 else ResidualLearner
            if fresh:
                many = max(4096, min(2**20, 2**25 // scaler.size))
                fit_base(value, run_source.probe(many).x, run_target.probe(many).x, eps=sigma**2)
        learner = kind(value, plan.settings, eps=eps, sigma=sigma, group=group)
    return Run(plan, family, scaler, opened.conditions, eps, run_source, run_target, (x_held, y_held), learner, held is not None)


def _start_mixture(value: MixtureValue | LabelledMixture, eps: float, source: Mapped, target: Mapped, own: torch.Generator,
                   seed: int) -> None:  # fmt: skip
    x, y = (_some(stream.probe(), PAIRED, own) for stream in (source, target))
    if isinstance(value, MixtureValue):
        value.eps.fill_(eps)
        initialise(value, x.x, y.x, seed=seed)
    else:
        rows = target.probe()
        assert rows.c is not None  # noqa: S101 (labels chose this family)
        value.set_eps(eps)
        initialise_labelled(value, source.probe().x, rows.x, rows.c, seed=seed)


def entropies(plan: Plan, family: str, scaler: Scaler, source: Mapped, target: Mapped) -> tuple[float, float]:
    """Entropy at the start and in the end, in model space."""
    given = None if plan.problem.entropy is None else plan.problem.entropy / scaler.cost_scale
    if given is not None and plan.problem.sigma > 0:
        return given, given
    own = generator(plan.seed, "entropy")
    mean = float(cost(_some(source.probe(), PAIRED, own).x, _some(target.probe(), PAIRED, own).x).mean())
    end = mean * (plan.settings.mixture_eps_end if family == "mixture" else plan.settings.eps_end) if given is None else given
    return max(end, plan.settings.eps_start * mean), end


def seed_parameters(value: Value, own: torch.Generator) -> None:
    """PyTorch's own initialisation of linear layers and convolutions, from one generator; other modules keep what they start with."""
    with torch.no_grad():
        for module in value.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and bool(module.weight.any()):
                bound = module.weight[0].numel() ** -0.5
                for tensor in (module.weight, module.bias):
                    if tensor is not None:
                        tensor.copy_((2 * torch.rand(tensor.shape, generator=own) - 1) * bound)
            elif isinstance(module, torch.nn.Embedding):
                module.weight.copy_(torch.randn(module.weight.shape, generator=own))


def _some(rows: Batch, n: int, own: torch.Generator) -> Batch:
    order = torch.randperm(len(rows), generator=own)[:n]
    return rows[order.to(rows.x.device)]
