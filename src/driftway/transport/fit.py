"""Training: the loop as a generator of steps, and `fit` on top of it."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from driftway import checks, store
from driftway.checks import Diverged, require
from driftway.parallel import Group, launched
from driftway.transport.checkpoint import CHECKPOINT, load_run, save_run
from driftway.transport.dual import Certificate
from driftway.transport.intake import Data, Held, Labels
from driftway.transport.learner import Settings
from driftway.transport.model import TransportModel
from driftway.transport.problem import Problem
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
        losses = run.learner.step(run.index, run.source, run.target, run.own())
        if not all(map(math.isfinite, losses.values())):
            raise Diverged(run.index + 1, ", ".join(f"{name} {loss}" for name, loss in losses.items()), "nothing was overwritten")
        run.index += 1
        due = run.index % run.plan.certify_every == 0
        found = run.certify() if due else None
        run.seconds += run.learner.group.mean([time.perf_counter() - begun], run.scaler.shift)[0]
        if found:
            run.history.append([run.index, run.seconds, found.lower, found.upper, sum(losses.values())])
        yield Step(run.index, losses, found, run.seconds)


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
        out: folder for checkpoints and the model; must not hold a run already.
        resume: folder of an interrupted run, which continues bit by bit as if it had not stopped. Everything but the data and the
            stopping rules is read from there.
        checkpoint_seconds: time between checkpoints.
        on_step: called with every step's record.
        group: the processes that train together; by default those that `accelerate launch` started.

    Raises:
        InputError: if an argument is unusable; nothing is overwritten.
        Diverged: if a loss becomes NaN or infinite; the last good checkpoint is kept.
        Interrupted: on Ctrl-C, after a checkpoint.
    """
    steps = None if steps is None else checks.count("steps", steps)
    max_seconds = None if max_seconds is None else checks.real("max_seconds", max_seconds, least=0, strict=True)
    gap = None if gap is None else checks.real("gap", gap, least=0, strict=True)
    checkpoint_seconds = checks.real("checkpoint_seconds", checkpoint_seconds, least=0)
    plan = Plan(problem=Problem() if problem is None else problem, settings=Settings() if settings is None else settings, seed=seed,
                family=family, standardize=standardize, holdout=holdout, certify_every=certify_every)  # fmt: skip
    folder = next((Path(place) for place in (out, resume) if place is not None), None)
    if folder is not None and (resume is None or folder.resolve() != Path(resume).resolve()):
        taken = [name for name in (CHECKPOINT, store.CONFIG, store.TENSORS) if (folder / name).exists()]
        require(not taken, "out", expected="a folder without a run", got=f"{folder} with {', '.join(taken)}",
                cure="resume it, or name another folder")  # fmt: skip
    given = {"labels": labels, "source_labels": source_labels, "group": launched() if group is None else group}
    run = start_run(plan, source, target, held, **given) if resume is None else load_run(Path(resume), source, target, **given)
    require(gap is None or run.plan.problem.sigma == 0, "gap", expected="None when sigma > 0, as the certificate is of optimal transport",
            got=gap, cure="stop on steps or max_seconds")  # fmt: skip
    if steps is None and max_seconds is None and gap is None:
        steps = STEPS[run.family]
    run.learner.group.mean([0.0], run.scaler.shift)  # every process has looked at the folder before one writes to it
    folder = folder if run.learner.group.main else None
    if folder is not None:
        store.sweep(folder)
        save_run(folder, run)
    with deferred_interrupt() as interrupted:
        _train(run, steps, max_seconds, gap, folder, checkpoint_seconds, on_step, interrupted)
    model = run.model()
    if folder is not None:
        model.save(folder)
    return model


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
