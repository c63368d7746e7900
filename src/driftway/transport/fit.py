"""Training: the loop as a generator of steps, and `fit` on top of it."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from driftway import checks, store
from driftway.checks import Diverged, InputError, require
from driftway.parallel import Group, launched
from driftway.transport.checkpoint import CHECKPOINT, load_run, save_run
from driftway.transport.dual import Certificate
from driftway.transport.intake import Data, Held, Labels
from driftway.transport.learner import Settings
from driftway.transport.model import TransportModel
from driftway.transport.problem import Problem
from driftway.transport.rebuild import FAULTS, check, checked_scaler, sound
from driftway.transport.run import Plan, Run, start_run

STEPS = {"mixture": 2000, "network": 4000, "residual": 4000, "vector": 4000, "image": 4000}


@dataclass(frozen=True)
class Step:
    """What one training step reports.

    Attributes:
        index: steps done, this one included.
        losses: terms of the loss by name.
        certificate: of the running average on the held-out rows, when due.
        seconds: training time so far, over all resumed parts.
    """

    index: int
    losses: dict[str, float]
    certificate: Certificate | None
    seconds: float


class Interrupted(KeyboardInterrupt):
    """Training was stopped by the user, after a whole step; `folder` holds the checkpoint, if there is one."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(f"stopped; resume from {folder}" if folder else "stopped; no folder was given, so nothing was saved")
        self.folder = folder


def iterate(run: Run) -> Iterator[Step]:
    """Train without end, one step at a time; the run always holds the state after the step last yielded.

    Raises:
        Diverged: if a loss is not finite; the run is then at the step before.
    """
    while True:
        begun = time.perf_counter()
        try:
            losses = run.learner.step(run.index, run.source, run.target, run.own())
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage] (torch documents it)
            raise Diverged(run.index + 1, "a singular covariance", "nothing was overwritten") from None
        if not all(map(math.isfinite, losses.values())):
            raise Diverged(run.index + 1, ", ".join(f"{name} {loss}" for name, loss in losses.items()), "nothing was overwritten")
        run.index += 1
        due = run.index % run.plan.certify_every == 0
        found = run.certify() if due else None
        run.seconds += run.learner.group.mean([time.perf_counter() - begun], run.scaler.shift)[0]
        if found:
            run.history.append([run.index, run.seconds, found.lower, found.upper, sum(losses.values())])
        yield Step(run.index, losses, found, run.seconds)


@torch.inference_mode(mode=False)
@torch.enable_grad()
def fit(source: Data | None, target: Data, *, labels: Labels = None, source_labels: Labels = None, problem: Problem | None = None,
        family: str = "auto", steps: int | None = None, max_seconds: float | None = None, gap: float | None = None, seed: int = 0,
        settings: Settings | None = None, standardize: str = "auto", holdout: float = 0.1, held: Held | None = None,
        certify_every: int = 250, out: str | Path | None = None, resume: str | Path | None = None, checkpoint_seconds: float = 30.0,
        on_step: Callable[[Step], None] | None = None, group: Group | None = None) -> TransportModel:  # fmt: skip
    """Fit a transport from source to target (Moreno-Muñoz, Müller and Neu, 2026).

    Args:
        source: samples (n, *event) as an array or tensor, a sampler `f(n, generator)` or `f(n)`, a DataLoader, or None for the
            standard normal.
        target: the same for the target; its dtype and device are the model's.
        labels: of the target rows, for a model that samples by label: whole numbers or text (n,), or condition vectors (n, k). "batch"
            where a sampler or DataLoader yields pairs (rows, labels). A label is paired with rows of that label alone.
        source_labels: the same for a source whose rows are to keep their label.
        problem: horizon, noise sigma and entropy eps, in the units of the data.
        family: "mixture" (closed form), "network" (a perceptron), "residual" (a quadratic base and perceptrons for the rest), "vector"
            or "image" (inner-product potentials: a perceptron of residual layers, a U-Net), or "auto": mixture up to dimension 8, then
            residual for vectors and vector for images; with sigma > 0 mixture up to 64, then residual.
        steps: training steps; by default 2,000 for a mixture and 4,000 for networks, unless max_seconds or gap is given.
        max_seconds: stop after this much training time.
        gap: stop when the certificate's optimality gap is at most this (sigma = 0).
        seed: of everything random.
        settings: sizes and step sizes.
        standardize: "auto", "columns", "common" or "none" (see `Scaler`).
        holdout: fraction of the rows of an array kept for certificates, at most 1,000 rows. For a sampler fresh rows are drawn; the
            certificate of a DataLoader is on training rows, unless `held` is given.
        held: held-out source rows (or None for standard normal ones) and held-out target rows, in place of `holdout`.
        certify_every: steps between certificates.
        out: folder for checkpoints and the model; must not hold a run already. No other run may write to it meanwhile.
        resume: folder of an interrupted run, which continues bit by bit as if it had not stopped. Everything but the data and the
            stopping rules is read from there.
        checkpoint_seconds: time between checkpoints.
        on_step: called with every step's record.
        group: the processes that train together; by default those that `accelerate launch` started.

    Raises:
        InputError: if an argument is unusable; nothing is overwritten.
        Diverged: if a loss becomes NaN or infinite; the last good checkpoint is kept.
        OSError: if a file cannot be written; the last good checkpoint is kept.
        Interrupted: on Ctrl-C, after a checkpoint.
    """
    steps = None if steps is None else checks.count("steps", steps)
    max_seconds = None if max_seconds is None else checks.real("max_seconds", max_seconds, least=0, strict=True)
    gap = None if gap is None else checks.real("gap", gap, least=0, strict=True)
    checkpoint_seconds = checks.real("checkpoint_seconds", checkpoint_seconds, least=0)
    checks.function("on_step", on_step, "a Step")
    plan = Plan(problem=Problem() if problem is None else problem, settings=Settings() if settings is None else settings, seed=seed,
                family=family, standardize=standardize, holdout=holdout, certify_every=certify_every)  # fmt: skip
    folder = next((checks.place(name, value) for name, value in (("out", out), ("resume", resume)) if value is not None), None)
    group = launched() if group is None else group
    given = {"labels": labels, "source_labels": source_labels, "group": group}
    with store.writing("out" if resume is None else "resume", folder) if folder and group.main else nullcontext():
        if folder is not None and (resume is None or folder.resolve() != Path(resume).resolve()):
            taken = [name for name in (CHECKPOINT, store.CONFIG, store.TENSORS) if (folder / name).exists()]
            require(not taken, "out", expected="a folder without a run", got=f"{folder} with {', '.join(taken)}",
                    cure="resume it, or name another folder")  # fmt: skip
        run = start_run(plan, source, target, held, **given) if resume is None else _resumed(Path(resume), source, target, given)
        require(gap is None or run.plan.problem.sigma == 0, "gap", got=gap, cure="stop on steps or max_seconds",
                expected="None when sigma > 0, as the certificate is of optimal transport")  # fmt: skip
        if steps is None and max_seconds is None and gap is None:
            steps = STEPS[run.family]
        group.mean([0.0], run.scaler.shift)  # every process has looked at the folder before one writes to it
        folder = folder if group.main else None
        if folder is not None:
            save_run(folder, run)
        with deferred_interrupt() as interrupted:
            _train(run, steps, max_seconds, gap, folder, checkpoint_seconds, on_step, interrupted)
        model = run.model()
        if folder is not None:
            model.save(folder)
    return model


def _resumed(folder: Path, source: Data | None, target: Data, given: dict[str, Any]) -> Run:
    """The run of a checkpoint; one that was changed is refused."""
    try:
        run = load_run(folder, source, target, **given)
        checked_scaler(run.scaler)
        check(type(run.index) is int and run.index >= 0 and isinstance(run.seconds, float | int) and run.seconds >= 0, "steps and seconds")
        check(all(len(row) == 5 and all(isinstance(entry, float | int) for entry in row) for row in run.history), "a history of numbers")
        for module in (run.learner.value, run.learner.average):
            check(all(bool(tensor.isfinite().all()) for tensor in module.parameters()), "finite parameters", "others")
        for parameter, moments in run.learner.optimizer.state.items():
            fits = set(moments) == {"step", "exp_avg", "exp_avg_sq"} and all(
                moment.shape == (() if name == "step" else parameter.shape) and moment.is_floating_point() and bool(moment.isfinite().all())
                for name, moment in moments.items())  # fmt: skip
            check(fits, "finite moments in the shapes of parameters", "others")
        for rows in (run.held[0], run.held[1].x):
            checks.samples("held", rows, event=run.scaler.event, least=1)
            checks.same_dtype("the run", run.scaler.shift, "held", rows)
        for place in (run.source.state(), run.target.state()):
            check(all(type(entry) is int and 0 <= entry < 2**62 for entry in place), "places in the data as whole numbers", place)
        check(len(run.eps) == 2 and all(isinstance(eps, float) and 0 < eps < math.inf for eps in run.eps), "two entropies", run.eps)
        sound(run.model())
        sound(replace(run.model(), value_function=copy.deepcopy(run.learner.value).requires_grad_(False)))
        return run
    except InputError:
        raise
    except FAULTS as error:
        said = f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"
        raise InputError("resume", expected=f"a whole {CHECKPOINT} in {folder}", got=f"one at which this is raised: {said}",
                         cure="begin anew in another folder") from error  # fmt: skip


def _train(run: Run, steps: int | None, max_seconds: float | None, gap: float | None, folder: Path | None, every: float,
           on_step: Callable[[Step], None] | None, interrupted: Callable[[], bool]) -> None:  # fmt: skip
    """Iterate until a stopping rule holds, with checkpoints; ends on a checkpoint."""
    saved = time.monotonic()
    records = iterate(run)
    while not ((steps and run.index >= steps) or (max_seconds and run.seconds >= max_seconds)):
        try:
            record = next(records)
        except Diverged as error:
            kept = f"the last good checkpoint is in {folder}" if folder else "pass out= to keep checkpoints"
            raise Diverged(error.step, error.losses, kept) from None
        if on_step:
            on_step(record)
        if run.learner.group.mean([float(interrupted())], run.scaler.shift)[0] > 0:
            if folder is not None:
                save_run(folder, run)
            raise Interrupted(folder)
        if gap and record.certificate and record.certificate.gap <= gap:
            break
        if folder is not None and time.monotonic() - saved >= every:
            save_run(folder, run)
            saved = time.monotonic()
    if not all(bool(parameter.isfinite().all()) for parameter in run.learner.average.parameters()):
        raise Diverged(run.index, "parameters that are not finite", "they were not saved")
    if folder is not None:
        save_run(folder, run)


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back to the end of a step; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
