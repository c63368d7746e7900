"""A callback of transformers' Trainer that stops training at the time computed from the tangent kernel, without a validation set.

Training stops before the first step that would pass the stop's eta. Steps are counted by a clock (clock.py), which needs the growth of the
kernel: on a few rows it is computed again and again as training goes on, and

    growth = tr(C K_t C) / tr(C K_0 C),   C = I - 1 1^T / m

tells how much faster scores move than at the start, as they do where a new head begins small. Where K_t is far from K_0 the regime of the
theory is left, and a warning is given.
"""

import logging
import math
import warnings
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from driftway.checks import InputError, choice, count, real, require
from driftway.finetune.clock import Clock, inner
from driftway.finetune.heads import Head
from driftway.finetune.intake import PASS, collated, dataset, rates, unlike
from driftway.finetune.metric import METRICS, metric_of, raw_kernel, spread
from driftway.finetune.probe import ENOUGH, LEAST, Problem, affordable, find_stop, problem_of
from driftway.parallel import launched
from driftway.stopping.schedule import Schedule
from driftway.stopping.stop import ALONE, Stop

try:
    from transformers.trainer_callback import ExportableState, TrainerCallback
except ImportError:
    raise InputError("transformers", expected="the package transformers", got="none installed",
                     cure="pip install 'driftway[finetune]'") from None  # fmt: skip

log = logging.getLogger(__name__)
SAVED = ("classes", "weights", "stop_eta", "stop_step", "report", "probe_rows", "probe_kernel", "drifts", "warned")


class SpectralStopping(TrainerCallback, ExportableState):
    """Computes when to stop as training begins, and stops then.

    Args:
        rule: of `stopping_time`; one that needs neither held rows nor a truth.
        budget: seconds for the kernel; as many training rows are taken as that is enough for.
        rows: the most rows.
        metric: "auto" takes that of the optimizer: "gradient" for SGD, "adam" where there are running means of squared gradients, "sign"
            for others.
        sigma: standard deviation of the noise; estimated if None.
        radius: R; estimated if None.
        head: the `Head` that the model begins with, where it was fitted to the training set: all rows, in their order.
        drift_every: steps between two measurements of the kernel's drift; a tenth of the run if None, 0 for none.
        drift_limit: relative change of the kernel above which a warning is given.
        drift_rows: rows that it is measured on.
        seed: of the choice of rows.

    Attributes:
        stop: the `Stop`; None before training and in a run that was resumed.
        problem: the `Problem` that it is the stop of; likewise.
        clock: time trained, and what a step adds to it.
        stop_eta: time to stop at.
        stop_step: predicted step; None if the schedule does not tell.
        drifts: [step, relative change of the kernel] for each measurement.
        report: plain sentences: what was computed, and what the theory does not cover.
    """

    def __init__(self, rule: str = "cross_validation", *, budget: float | int = 120.0, rows: int = 1024, metric: str = "auto",
                 sigma: float | int | None = None, radius: float | int | None = None, head: Head | None = None,
                 drift_every: int | None = None, drift_limit: float | int = 0.5, drift_rows: int = 16, seed: int = 0) -> None:  # fmt: skip
        """Check.

        Raises:
            InputError: if a name is unknown or a number out of range.
        """
        self.args: dict[str, Any] = {
            "rule": choice("rule", rule, ALONE), "budget": real("budget", budget, least=0, strict=True),
            "rows": count("rows", rows, least=LEAST), "metric": choice("metric", metric, ("auto", *METRICS)),
            "sigma": None if sigma is None else real("sigma", sigma, least=0, strict=True),
            "radius": None if radius is None else real("radius", radius, least=0, strict=True),
            "drift_every": None if drift_every is None else count("drift_every", drift_every, least=0),
            "drift_limit": real("drift_limit", drift_limit, least=0), "drift_rows": count("drift_rows", drift_rows, least=2),
            "seed": count("seed", seed, least=0)}  # fmt: skip
        self.head = head
        self._clear()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": dict(self.args), "attributes": {"time": asdict(self.clock), **{name: getattr(self, name) for name in SAVED}}}

    @property
    def eta(self) -> float:
        """Time trained."""
        return self.clock.eta

    @property
    def metric(self) -> str:
        """Of the optimizer."""
        return self.clock.metric

    @property
    def clipped(self) -> int:
        """Steps whose gradient was clipped."""
        return self.clock.clipped

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None,
                       train_dataloader: Any = None, **kwargs: Any) -> None:  # fmt: skip
        """Compute the stop, or take it from the checkpoint that training resumes from.

        Raises:
            InputError: if there are no training rows that can be counted and taken by number, fewer than 20 of them or too little budget
                for 20, or the model does not map a row to scores.
        """
        stored = (state.stateful_callbacks or {}).get(type(self).__name__) if state.global_step else None
        stored = stored[0] if isinstance(stored, list) else stored
        self._clear()
        for name, value in (stored or {}).get("attributes", {}).items():
            if name == "time":
                self.clock = Clock(**value)
            else:
                setattr(self, name, value)
        if not math.isnan(self.stop_eta):
            log.info("resumed at eta %.4g of %.4g", self.eta, self.stop_eta)
        else:
            with torch.random.fork_rng(devices=[]):
                self._compute(args, state, model, optimizer, lr_scheduler, train_dataloader)
            if state.is_world_process_zero:
                for sentence in self.report:
                    log.info(sentence)
        several = args.world_size > 1 or args.fp16
        self.clock.watch(model, optimizer, clipping=bool(args.max_grad_norm) and not several and metric_of(inner(optimizer)) != "sign")
        if self._reached(optimizer):
            warnings.warn("SpectralStopping: the time to stop is not more than the step at hand; training ends after one step, which "
                          "the Trainer always takes", stacklevel=2)  # fmt: skip

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find how much the gradient was clipped."""
        self.clock.clip(args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Add the step to eta: the schedule has not moved yet, so the learning rate is that of the step."""
        if not getattr(optimizer, "step_was_skipped", False):
            self.clock.tick(optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, train_dataloader: Any = None,
                    **kwargs: Any) -> None:  # fmt: skip
        """Measure the drift when it is time, and stop where the next step would pass the stop."""
        every = self.args["drift_every"]
        if every is None:
            every = max(min(self.stop_step or state.max_steps, state.max_steps) // 10, 1)
        if every and state.global_step % every == 0:
            with torch.random.fork_rng(devices=[]):
                self._measure(state.global_step, model, train_dataloader)
        if self._reached(optimizer):
            self._stopped = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Add eta, the stop and the drift to the record."""
        own = {"eta": self.eta, "stop_eta": self.stop_eta, "stop_step": self.stop_step,
               "kernel_drift": self.drifts[-1][1] if self.drifts else None}  # fmt: skip
        own = {name: value for name, value in own.items() if value is not None}
        logs.update(own)
        state.log_history[-1].update(own)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say if training ended before the stop."""
        self.clock.unwatch()
        if not self._stopped and self.stop_eta < math.inf:
            self.report.append(f"training ended at eta {self.eta:.4g}, before the stop at {self.stop_eta:.4g}: take more or larger steps")

    def _clear(self) -> None:
        self.stop: Stop | None = None
        self.problem: Problem | None = None
        self.clock, self.classes = Clock(), False
        self.weights: dict[str, float] = {}
        self.stop_eta, self.stop_step = math.nan, None
        self.report: list[str] = []
        self.probe_rows: list[int] = []
        self.probe_kernel: list[list[float]] = []
        self.drifts: list[list[float]] = []
        self.warned = self._stopped = False

    def _compute(self, args: Any, state: Any, model: nn.Module, optimizer: Any, lr_scheduler: Any, loader: Any) -> None:
        data, group = dataset(loader), launched()
        N, batch = len(data), args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        require(N >= LEAST, "train_dataset", expected=f"at least {LEAST} rows", got=N, cure="give it more rows")
        require(all(p.numel() for p in model.parameters()), "model", expected="whole parameters on each process", got="sharded ones",
                cure="use data parallel training, or train without the callback")  # fmt: skip
        order = torch.randperm(N, generator=torch.Generator().manual_seed(self.args["seed"])).tolist()
        small, larger = (collated(loader, order[:m])[0][0] for m in (PASS // 2, PASS))
        n, each = group.gather(affordable(model, [small, larger], budget=self.args["budget"], most=self.args["rows"]))[0]
        require(min(n, N) >= LEAST, "budget", expected=f"time for at least {LEAST} rows", got=f"{self.args['budget']:g} s, enough for {n}",
                cure=f"pass budget={math.ceil(2 * ENOUGH * each)} or more, or narrow what is trained")  # fmt: skip
        n = min(n, N)
        if n < ENOUGH:
            limit = {self.args["rows"]: "the argument rows allows", N: "the training set has"}.get(n)
            self._warn(f"the kernel is that of {n} rows, fewer than {ENOUGH}: {limit or 'the budget allows'} no more")
        batches, labels = collated(loader, order[:n])
        metric = metric_of(inner(optimizer)) if self.args["metric"] == "auto" else self.args["metric"]
        self.problem = found = problem_of(model, batches, labels, self.head, order[:n], metric=metric, batch=batch)
        self.clock = Clock(metric, found.scale, dict(found.reference))
        self.classes, self.weights = found.classes, dict(found.weights)
        steps, guessed = rates(lr_scheduler, optimizer, state.max_steps)
        schedule = Schedule(steps, found.scale * self.clock.boost(optimizer))
        known = {name: self.args[name] for name in ("sigma", "radius")}
        self.stop = stop = group.gather(find_stop(found, self.args["rule"], schedule=schedule, rows=N, batch=batch, **known))[0]
        self.stop_eta, self.stop_step = stop.eta, stop.steps
        when = "to the end" if stop.steps is None else f"step {stop.steps}" + ("" if stop.epochs is None else f", epoch {stop.epochs:.3g}")
        self.report.insert(0, f"stop at eta {stop.eta:.4g} ({stop.rule}; {n} of {N} rows): {when}")
        if stop.eta == 0:
            self.stop_eta, self.stop_step = math.inf, None
            self._warn(f"no signal stands out from noise in the kernel of {n} of {N} rows, so that training is not stopped: take more "
                       "rows, or check whether the labels can be told from the inputs at all")  # fmt: skip
        self.report += [*stop.violations, *guessed, *unlike(args, optimizer, metric)]
        m = min(self.args["drift_rows"], n)
        self.probe_rows = order[:m]
        self.probe_kernel = found.raw[:m, :m].tolist()

    def _measure(self, step: int, model: nn.Module, loader: Any) -> None:
        start = torch.tensor(self.probe_kernel, dtype=torch.float64)
        K = raw_kernel(model, collated(loader, self.probe_rows)[0], metric=self.metric, weights=self.weights,
                       classes=self.classes).to(start.device)  # fmt: skip
        change, before = float((K - start).norm() / start.norm()), spread(start)
        if before > 0 and math.isfinite(growth := spread(K) / before):
            self.clock.growth = growth
        self.drifts.append([step, change])
        if change > self.args["drift_limit"] and not self.warned:
            self.warned = True
            self._warn(f"the kernel has changed by {100 * change:.0f} % at step {step}: the linear regime, which the stop is computed for, "
                       "is left; a smaller learning rate keeps longer to it")  # fmt: skip

    def _warn(self, sentence: str) -> None:
        self.report.append(sentence)
        warnings.warn(f"SpectralStopping: {sentence}", stacklevel=4)

    def _reached(self, optimizer: Any) -> bool:
        """Whether the next step would pass the stop."""
        return self.clock.eta + self.clock.step(optimizer) > self.stop_eta * (1 + 1e-9)
