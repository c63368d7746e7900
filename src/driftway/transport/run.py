"""The state of a training run: what was asked for, the data in model space, the learner, and how far it is."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.transport.dual import Certificate
from driftway.transport.learner import Learner, MixtureLearner, NetworkLearner, Settings
from driftway.transport.mixture import MixtureValue, initialise
from driftway.transport.model import TransportModel, build_value, certificate
from driftway.transport.problem import Problem, cost
from driftway.transport.scaler import MODES, Scaler, fit_scaler
from driftway.transport.stream import Data, Rows, Stream, generator, normal_stream, open_stream, split_rows
from driftway.transport.value import NetworkValue

LOW_DIMENSION = 8
PAIRED = 1024
Held = tuple[Any, Any]


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
        checks.choice("family", self.family, ("auto", "mixture", "network"))
        checks.choice("standardize", self.standardize, MODES)
        checks.count("certify_every", self.certify_every)
        require(0 <= checks.real("holdout", self.holdout) < 1, "holdout", expected="a fraction in [0, 1)", got=self.holdout,
                cure="0.1 keeps a tenth of the rows")  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """A stream seen through a map of its rows."""

    stream: Stream
    apply: Any

    def draw(self, n: int) -> Tensor:
        """The next n rows, mapped."""
        return self.apply(self.stream.draw(n))

    def state(self) -> list[int]:
        """Integers that restore the position."""
        return self.stream.state()

    def restore(self, state: list[int]) -> None:
        """Continue from a position."""
        self.stream.restore(state)

    def digest(self) -> str:
        """A fingerprint of the data, taken once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return self.stream.digest()

    def probe(self) -> Tensor:
        """Rows that move no position, mapped."""
        return self.apply(self.stream.probe())


@dataclass
class Run:
    """A run in progress.

    `index` steps are done; `given` says that the held-out rows were passed and not split off; `history` rows are (index, seconds,
    lower, upper, loss).
    """

    plan: Plan
    family: str
    scaler: Scaler
    eps: tuple[float, float]
    source: Mapped
    target: Mapped
    held: tuple[Tensor, Tensor]
    learner: Learner
    given: bool
    index: int = 0
    seconds: float = 0.0
    history: list[list[float]] = field(default_factory=list)

    @property
    def shape(self) -> dict[str, int]:
        """What the value is built with."""
        return shape_of(self.family, self.plan.settings)

    def own(self) -> torch.Generator:
        """The random numbers of the next step, a function of the seed and the step."""
        return generator(self.plan.seed, "step", self.index)

    def model(self) -> TransportModel:
        """The running average as a model."""
        value = build_value(self.family, self.scaler, self.shape)
        value.load_state_dict(self.learner.average.state_dict())
        facts: dict[str, Any] = {"steps": self.index, "seconds": round(self.seconds, 3), "seed": self.plan.seed, "history": self.history,
                                 "settings": asdict(self.plan.settings), "eps": self.eps[1] * self.scaler.cost_scale}  # fmt: skip
        return TransportModel(value.requires_grad_(False), self.plan.problem, self.scaler, self.family, self.shape, facts)

    def certify(self) -> Certificate:
        """The certificate of the running average on the held-out rows."""
        return certificate(self.model(), *self.held)


def shape_of(family: str, settings: Settings) -> dict[str, int]:
    """What a value of a family is built with."""
    if family == "mixture":
        return {"components": settings.components}
    return {"width": settings.width, "depth": settings.depth, "heads": settings.heads}


def open_data(
    plan: Plan, source: Data | None, target: Data, held: Held | None
) -> tuple[Stream | None, Stream, tuple[Tensor | None, Tensor]]:
    """Streams over the training rows, and the held-out rows in data units.

    Raises:
        InputError: if the data is unusable, or the two sides differ in shape, dtype or device.
    """
    streams: list[Stream | None] = []
    kept: list[Tensor | None] = []
    for side, (name, data) in enumerate((("source", source), ("target", target))):
        stream = None if name == "source" and data is None else open_stream(name, data, seed=plan.seed)
        rows = None
        if isinstance(stream, Rows) and held is None:
            stream.rows, rows = split_rows(stream.rows, plan.holdout, seed=plan.seed + side)
            stream.restore([0, 0])
        elif stream is not None and held is None:
            rows = stream.probe()[:1000]
        elif held is not None and held[side] is not None:
            rows = checks.samples(f"held {name}", held[side])
        if isinstance(stream, Rows):
            require(len(stream.rows) >= 2, name, expected="at least 2 rows to train on", got=len(stream.rows), cure="lower holdout")
        streams.append(stream)
        kept.append(rows)
    one, two = streams[1], kept[1]
    assert one is not None  # noqa: S101 (the target is always a stream)
    require(two is not None, "held", expected="held-out target rows", got="None", cure="pass held=(source or None, target)")
    y = one.probe()
    require(y.dtype in (torch.float32, torch.float64), "target", expected="float32 or float64", got=y.dtype,
            cure="convert the data, e.g. target.float()")  # fmt: skip
    if streams[0] is not None:
        x = streams[0].probe()
        require(x.shape[1:] == y.shape[1:], "source", expected=f"rows of shape {tuple(y.shape[1:])}, as the target has",
                got=f"{tuple(x.shape[1:])}", cure="give both the same columns")  # fmt: skip
        checks.same_dtype("target", y, "source", x)
        require(kept[0] is not None, "held", expected="held-out source rows, as there is a source", got="None", cure="pass both")
    for name, rows in zip(("held source", "held target"), kept, strict=True):
        if rows is not None:
            checks.samples(name, rows, event=tuple(y.shape[1:]))
            checks.same_dtype("target", y, name, rows)
    return streams[0], one, (kept[0], two)  # type: ignore[return-value]


def start_run(plan: Plan, source: Data | None, target: Data, held: Held | None, *, scaler: Scaler | None = None,
              eps: tuple[float, float] | None = None, family: str | None = None) -> Run:  # fmt: skip
    """Set a run up: streams, scale, entropies and an initialised learner. A resumed run brings its scale, entropies and family.

    Raises:
        InputError: if the data is unusable.
    """
    x_stream, y_stream, (x_held, y_held) = open_data(plan, source, target, held)
    rows = y_stream.probe()
    fresh = scaler is None
    if scaler is None:
        scaler = fit_scaler(rows, source=None if x_stream is None else x_stream.probe(), mode=plan.standardize)
    like = scaler.shift
    inside = normal_stream(scaler.size, like, seed=plan.seed) if x_stream is None else x_stream
    keep = (lambda z: z) if x_stream is None else scaler.source
    run_source, run_target = Mapped(inside, keep), Mapped(y_stream, scaler.target)
    if x_held is None:
        x_held = torch.randn(len(y_held), *scaler.event, generator=generator(plan.seed, "held-out source")).to(like)
    low = scaler.size <= LOW_DIMENSION
    family = family or (plan.family if plan.family != "auto" else ("mixture" if low else "network"))
    sigma = plan.problem.sigma / scaler.cost_scale**0.5
    eps = eps or entropies(plan, family, scaler, run_source, run_target)
    value = build_value(family, scaler, shape_of(family, plan.settings))
    own = generator(plan.seed, "initialisation")
    if isinstance(value, MixtureValue):
        if fresh:
            value.eps.fill_(eps[0])
            x, y = (_some(stream.probe(), PAIRED, own) for stream in (run_source, run_target))
            initialise(value, x, y, seed=plan.seed)
        learner: Learner = MixtureLearner(value, plan.settings, eps=eps, sigma=sigma)
    else:
        assert isinstance(value, NetworkValue)  # noqa: S101 (there are two families)
        seed_parameters(value, own)
        learner = NetworkLearner(value, plan.settings, eps=eps, sigma=sigma)
    return Run(plan, family, scaler, eps, run_source, run_target, (x_held, y_held), learner, held is not None)


def entropies(plan: Plan, family: str, scaler: Scaler, source: Mapped, target: Mapped) -> tuple[float, float]:
    """Entropy at the start and in the end, in model space."""
    given = None if plan.problem.entropy is None else plan.problem.entropy / scaler.cost_scale
    if given is not None and plan.problem.sigma > 0:
        return given, given
    own = generator(plan.seed, "entropy")
    mean = float(cost(_some(source.probe(), PAIRED, own), _some(target.probe(), PAIRED, own)).mean())
    end = mean * (plan.settings.mixture_eps_end if family == "mixture" else plan.settings.eps_end) if given is None else given
    return max(end, plan.settings.eps_start * mean), end


def seed_parameters(value: NetworkValue, own: torch.Generator) -> None:
    """PyTorch's own initialisation of linear layers, from one generator."""
    with torch.no_grad():
        for module in value.modules():
            if isinstance(module, torch.nn.Linear):
                bound = module.in_features**-0.5
                for tensor in (module.weight, module.bias):
                    tensor.copy_((2 * torch.rand(tensor.shape, generator=own) - 1) * bound)


def _some(rows: Tensor, n: int, own: torch.Generator) -> Tensor:
    order = torch.randperm(len(rows), generator=own)[:n]
    return rows[order.to(rows.device)]
