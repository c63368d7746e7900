"""What is known before fine-tuning begins: the spectrum, the residual, the schedule, and when each rule would stop.

The kernel may be that of n of N training rows. Bias is a matter of directions, and taken as theirs; N rows let through n/N of the noise:

    risk(eta) = bias(eta) + (n/N) variance(eta)

Under Adam eta is not the sum of the learning rates, but a function of it (crossfit.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftway import store
from driftway.finetune import Curves, Flow, Schedule, Stop
from driftway.linalg import Decay, Spectrum, fit_decay
from driftway.stopping.crossfit import Validation


@dataclass(frozen=True)
class Study:
    """A training run before its first step.

    Attributes:
        spectrum: of K/n, whole, with vectors.
        residual: y - f_0(X) of the rows of the kernel.
        schedule: a learning rate for each step of the run.
        rows: N, of the training set.
        batch: rows of a step.
        stops: by the chosen rule first, then by others.
        validation: losses on rows held out of the kernel.
        adaptive: whether steps are those of Adam.
    """

    spectrum: Spectrum
    residual: Float[Tensor, "n *k"]
    schedule: Schedule
    rows: int
    batch: int
    stops: tuple[Stop, ...]
    validation: Validation
    adaptive: bool = False

    @property
    def stop(self) -> Stop:
        """The one that counts."""
        return self.stops[0]

    @cached_property
    def flow(self) -> Flow:
        """Training along the eigenvectors."""
        return Flow(self.spectrum, self.residual)

    @cached_property
    def decay(self) -> Decay:
        """The law of the spectrum."""
        return fit_decay(self.spectrum)

    @property
    def n(self) -> int:
        """Rows of the kernel."""
        return self.spectrum.size

    @property
    def total(self) -> int:
        """Steps of the schedule."""
        return len(self.schedule.alpha)

    @property
    def end(self) -> float:
        """The time eta at which the schedule ends."""
        return self.time(self.total)

    @property
    def reached(self) -> bool:
        """Whether the schedule gets to the stop."""
        return self.stop.eta <= self.end * (1 + 1e-9)

    @property
    def epochs(self) -> float:
        """Of the schedule."""
        return self.total / self.per_epoch

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return math.ceil(self.rows / self.batch)

    @property
    def needed(self) -> int | None:
        """Epochs of a schedule of the same form that gets to the stop; None if none does."""
        far = self.clock(self.stop.eta) / self.schedule.eta(self.total)
        return None if math.isinf(far) else max(math.ceil(self.epochs * far * (1 - 1e-9)), 1)

    def clock(self, eta: float) -> float:
        """The sum of step sizes that gets to a time."""
        return self.validation.steps_time(eta) if self.adaptive and math.isfinite(eta) else eta

    def time(self, steps: int) -> float:
        """Where so many steps get."""
        total = self.schedule.eta(steps)
        if not self.adaptive:
            return total
        eta, clock = self.validation.eta, self.validation.nominal
        i = min(max(int(torch.searchsorted(clock, total)), 1), len(eta) - 1)
        share = (total - float(clock[i - 1])) / max(float(clock[i] - clock[i - 1]), 1e-300)
        return float(eta[i - 1]) + share * float(eta[i] - eta[i - 1])

    def when(self, eta: float) -> tuple[int, float] | None:
        """Step and epoch of a time; None after the end of the schedule."""
        if eta > self.end * (1 + 1e-9):
            return None
        steps = self.schedule.steps_for(self.clock(eta))
        return None if steps is None else (steps, steps / self.per_epoch)

    def curves(self, eta: Sequence[float] | Tensor) -> Curves:
        """Along the flow, with the variance that training on all rows has."""
        times = torch.as_tensor(eta, dtype=torch.float64)
        found = self.flow.curves(times, sigma=self.stop.sigma, radius=self.stop.radius)
        return replace(found, variance=self.n / self.rows * found.variance)

    def risk(self, *eta: float) -> list[float]:
        """Estimated mean squared error against the noise-free targets at some times; Stein's estimate, which may fall below 0."""
        floor = 1e-12 * float(self.flow.energy.sum())
        return [risk if abs(risk) > floor else 0.0 for risk in self.curves(eta).risk.tolist()]

    def held(self, *eta: float) -> list[float]:
        """Mean loss at some times of rows that were held out of the kernel."""
        return [self.validation.at(time, self.validation.held) for time in eta]

    def plain(self) -> dict[str, Any]:
        """Numbers for other programs; None stands for infinity, and for steps after the end of the schedule."""
        stop, decay = self.stop, self.decay
        held = self.held(0.0, stop.eta, self.end, self.validation.best)
        before, at, end, ever = self.risk(0.0, stop.eta, self.end, math.inf)
        return _finite({
            "rule": stop.rule, **self._of(stop), "lambda": stop.lam, "sigma": stop.sigma, "radius": stop.radius, "found": stop.found,
            "risk": {"before": before, "stop": at, "schedule_end": end, "ever": ever},
            "held_loss": dict(zip(("before", "stop", "schedule_end", "best"), held, strict=True)),
            "rules": {other.rule: self._of(other) for other in self.stops}, "sensitivity": stop.sensitivity,
            "violations": list(stop.violations),
            "schedule": {"steps": self.total, "epochs": self.epochs, "eta": self.end, "scale": self.schedule.scale, "batch": self.batch,
                         "reaches_stop": self.reached, "epochs_needed": self.needed},
            "rows": self.rows, "kernel_rows": self.n,
            "spectrum": {"mu_1": float(self.spectrum.values[0]), "trace": self.spectrum.trace, "rank": self.spectrum.rank},
            "decay": {"verdict": decay.verdict, "exponent": decay.exponent, "exponent_interval": list(decay.exponent_interval),
                      "rank": decay.rank, "remarks": list(decay.remarks)},
        })  # fmt: skip

    def _of(self, stop: Stop) -> dict[str, Any]:
        step, epoch = self.when(stop.eta) or (None, None)
        return {"eta": stop.eta, "step": step, "epoch": epoch, "dof": stop.dof, "risk": self.risk(stop.eta)[0],
                "held_loss": self.held(stop.eta)[0]}  # fmt: skip


def save_study(path: Path, study: Study) -> None:
    """Write eigenvalues ("values"), the residual's coordinates U^T r / sqrt(n) ("coordinates"), learning rates, held losses, stops."""
    spectrum, schedule = study.spectrum, study.schedule
    kept = [part.name for part in fields(Stop) if part.name not in ("curves", "validation")]
    stops = [{name: getattr(stop, name) for name in kept} for stop in study.stops]
    config = {"size": spectrum.size, "precision": spectrum.precision, "clipped": spectrum.clipped, "floor": spectrum.floor,
              "scale": schedule.scale, "rows": study.rows, "batch": study.batch, "adaptive": study.adaptive, "stops": stops}  # fmt: skip
    tensors = {"values": spectrum.values, "coordinates": spectrum.coordinates(study.residual),
               "rates": torch.tensor(schedule.rates, dtype=torch.float64),
               **{f"validation.{part.name}": getattr(study.validation, part.name) for part in fields(Validation)}}  # fmt: skip
    store.write_tensors(path, tensors, config)


def load_study(path: Path) -> Study:
    """Read it; in the eigenbasis, where vectors are those of the axes.

    Raises:
        InputError: if the file is missing or damaged.
    """
    config, tensors = store.read_tensors("out", path)
    n = config["size"]
    kept = {name: config[name] for name in ("precision", "clipped", "floor")}
    spectrum = Spectrum(tensors["values"], n, torch.eye(n, dtype=torch.float64), **kept)
    residual = tensors["coordinates"] * n**0.5
    flow = Flow(spectrum, residual)
    validation = Validation(**{part.name: tensors[f"validation.{part.name}"] for part in fields(Validation)})
    stops = []
    for stop in config["stops"]:
        held: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stop.items()}
        stops.append(Stop(**held, curves=flow.curves(flow.times(200), sigma=held["sigma"], radius=held["radius"]), validation=validation))
    schedule = Schedule(tensors["rates"].tolist(), config["scale"])
    return Study(spectrum, residual, schedule, config["rows"], config["batch"], tuple(stops), validation, config["adaptive"])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
