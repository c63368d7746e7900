"""Fine-tuning as one HTML file that needs nothing else: when to stop, why then, and, after a run, what happened."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driftway import store
from driftway.report.curves import draw_path, draw_risk, draw_spectrum, draw_training, draw_validation, law_text, name_of
from driftway.report.study import Study
from driftway.report.template import Picture, facts, fill, picture

FAR = 100  # schedules so many times as long are not advised


@dataclass(frozen=True)
class Training:
    """What happened in a run.

    Attributes:
        steps: taken.
        eta: time trained.
        stopped: whether it ended at the stop, before the end of the schedule.
        losses: (step, loss of the training batches).
        drifts: (step, relative change of the kernel).
        remarks: in plain words.
        test: names and values of errors on test rows; empty without such.
        unseen: (step, loss of test rows), from step 0 to the end of the schedule, where the run went on after the stop to see what
            was missed; empty otherwise.
    """

    steps: int
    eta: float
    stopped: bool
    losses: tuple[tuple[float, float], ...]
    drifts: tuple[tuple[float, float], ...]
    remarks: tuple[str, ...] = ()
    test: tuple[tuple[str, float], ...] = ()
    unseen: tuple[tuple[float, float], ...] = ()


def write_stopping_report(path: str | Path, study: Study, *, command: str, title: str, settings: Mapping[str, Any],
                          training: Training | None = None) -> None:  # fmt: skip
    """Write the report, atomically, as one HTML file without references to others.

    Args:
        path: the file; its folder is made if need be.
        study: what was known before training.
        command: what the reader types to get this again.
        title: the heading.
        settings: names and values of what was chosen.
        training: what happened, after a run.

    Raises:
        OSError: if the file cannot be written.
    """
    page = fill(
        "stopping.html", title=title, command=command, verdict=[*verdict(study), *([happened(study, training)] if training else []),
                                                                         *hindsight(study, training)],
        pictures=pictures(study, training), rules=rules(study), best=name_of(study.stop.rule), sensitivity=sensitivity(study),
        violations=violations(study, training), spectrum=spectrum_facts(study), settings=facts(dict(settings)), study=study,
        training=training,
    )  # fmt: skip
    store.write_file(Path(path), page.encode())


def verdict(study: Study) -> list[str]:
    """When to stop, and what that is expected to gain."""
    stop, end = study.stop, f"the schedule ({study.epochs:.3g} epochs, eta {study.end:.3g})"
    part = "" if study.n == study.rows else f", from {study.n:,} of {study.rows:,} rows"
    by = f"by {name_of(stop.rule)}{part}"
    if stop.eta == 0 and part:
        return [f"No stop is known: nothing stands out from noise in {study.n:,} of {study.rows:,} rows; take more of them."]
    if stop.eta == 0:
        return [f"Do not train: nothing that stands out from noise is left to learn ({by})."]
    if math.isinf(stop.eta):
        first = f"Train to the end of {end}: no time before it is better ({by})."
    elif not study.reached:
        needed = study.needed or 0
        cure = f"{needed:,} epochs, or a larger learning rate, would get there" if needed < FAR * study.epochs else (
            f"steps {study.clock(stop.eta) / study.schedule.eta(study.total):,.3g} times as large would get there")  # fmt: skip
        first = (f"Train to the end of {end}: it gets {percent_of(study.end / stop.eta)} of the way to the stop at eta {stop.eta:.3g} "
                 f"({by}); {cure}.")  # fmt: skip
    else:
        steps, epochs = study.when(stop.eta) or (0, 0.0)
        if steps == 0:
            first = (f"Stop before the first step is whole: its length is more than the time to train, eta {stop.eta:.3g} ({by}); "
                     "take a smaller learning rate.")  # fmt: skip
        else:
            first = f"Stop after step {steps:,}, epoch {epochs:.3g} of {study.epochs:.3g}, at eta {stop.eta:.3g} ({by})."
    return [first, gain(study)]


def gain(study: Study) -> str:
    """What the stop is expected to gain over no training and over training to the end."""
    last = min(study.stop.eta, study.end)
    seen = study.n == study.rows  # the loss is that of training on the rows of the kernel
    before, at, end = (study.held if seen else study.risk)(0.0, last, study.end)
    what = "Expected loss of unseen rows" if seen else "Estimated error"
    where = "at the stop" if study.reached else "at the end of the schedule"
    text = f"{what}: {before:.3g} before training and {at:.3g} {where}{_less(at, before)}"
    if seen and not study.validation.error.isnan().any():
        text += f" (wrong answers: {' and '.join(percent_of(study.validation.at(eta, study.validation.error)) for eta in (0.0, last))})"
    return text + (f"; at the end of the schedule it would be {end:.3g}, and the stop has{_share(at, end)}." if study.reached else ".")


def _less(new: float, old: float) -> str:
    return "" if old <= 0 else f", {percent_of(abs(1 - max(new, 0) / old))} {'less' if new <= old else 'more'}"


def _share(new: float, old: float) -> str:
    if old <= 0 or abs(new - old) < 1e-2 * old:
        return " about the same"
    return f" {percent_of(abs(1 - max(new, 0) / old))} {'less' if new <= old else 'more'}"


def percent_of(part: float) -> str:
    """A fraction in percent, to two digits."""
    return f"{100 * part:.2g} %" if part < 0.995 else f"{100 * part:.0f} %"


def happened(study: Study, training: Training) -> str:
    """What a run did."""
    where = "stopped by itself" if training.stopped else "ran to the end of its schedule"
    test = "".join(f"; {name} {value:.4g}" for name, value in training.test)
    steps = "1 step" if training.steps == 1 else f"{training.steps:,} steps"
    return f"Training {where}: {steps}, epoch {training.steps / study.per_epoch:.3g}, eta {training.eta:.3g}{test}."


def hindsight(study: Study, training: Training | None) -> list[str]:
    """What stopping there has cost or saved, where a run went on."""
    if training is None or not training.unseen:
        return []
    loss = dict(training.unseen)
    best, last = min(loss, key=loss.__getitem__), max(loss)
    at = loss[training.steps]
    return [f"Loss of rows that it did not see: {loss[0]:.3g} before training, {at:.3g} at the stop{_less(at, loss[0])}. In hindsight "
            f"the lowest was {loss[best]:.3g}, at epoch {best / study.per_epoch:.3g}; at the end of the schedule it was "
            f"{loss[last]:.3g}."]  # fmt: skip


def spectrum_facts(study: Study) -> list[tuple[str, str]]:
    """The spectrum in numbers and words."""
    mu, decay = study.spectrum.values, study.decay
    found = [("rows of the kernel", f"{study.n:,} of {study.rows:,}"), ("largest eigenvalue", f"{float(mu[0]):.3g}"),
             ("its part of the trace", percent_of(float(mu[0]) / study.spectrum.trace)), ("numerical rank", f"{study.spectrum.rank:,}"),
             ("noise sigma", f"{study.stop.sigma:.3g}"), ("signal R", f"{study.stop.radius:.3g}"),
             ("decay", decay.verdict if decay.verdict != "none" else "no law recognised")]  # fmt: skip
    law = decay.exponential if decay.verdict == "exponential" else decay.power
    if law and decay.verdict != "finite rank":
        low, high = law.interval
        named = "fitted law" if decay.verdict == law.name else "nearest law"
        found += [(named, f"{law_text(law)} ({low:.2f} to {high:.2f})"), ("fitted to", f"eigenvalues {law.first} to {law.last}")]
    return found


def rules(study: Study) -> list[dict[str, str]]:
    """The rules side by side."""
    return [{"rule": name_of(stop.rule)} | _time(study, stop.eta) | {
        "dof": f"{stop.dof:.1f}", "held-out loss": f"{study.held(stop.eta)[0]:.3g}",
        "estimated error": f"{study.risk(stop.eta)[0]:.3g}"} for stop in study.stops]  # fmt: skip


def sensitivity(study: Study) -> list[dict[str, str]]:
    """The stop, had R or sigma another size."""
    return [{"if": name} | _time(study, eta) for name, eta in study.stop.sensitivity.items()]


def _time(study: Study, eta: float) -> dict[str, str]:
    when = study.when(eta)
    step, epoch = (f"> {study.total:,}", f"> {study.epochs:.3g}") if when is None else (f"{when[0]:,}", f"{when[1]:.3g}")
    return {"eta": "∞" if math.isinf(eta) else f"{eta:.3g}", "step": step, "epoch": epoch}


def violations(study: Study, training: Training | None = None) -> list[str]:
    """What does not hold, as sentences; what a run remarked comes after what was known before."""
    found = [*study.stop.violations, *(training.remarks if training else ())]
    return [f"{sentence[0].upper()}{sentence[1:]}{'' if sentence[-1] in '.?!' else '.'}" for sentence in dict.fromkeys(found)]


def pictures(study: Study, training: Training | None = None) -> list[Picture]:
    """What is expected along the way, the spectrum, and what happened."""
    stop, mu = study.stop, study.spectrum.values
    marked = ", ".join(f"{name_of(other.rule)} at {other.eta:.3g}" for other in study.stops)
    found = [
        picture(
            draw_validation(study),
            "Why stop there",
            f"Loss of rows held out of the kernel: {study.held(0.0)[0]:.3g} at the start, least at eta {study.validation.best:.3g}.",
            "The kernel says what training on some rows does to the others, without training a network. Where their loss is lowest, "
            "training on is no use." + (" The stop is later: all rows let less noise through than a part." if study.n < study.rows else ""),
            "svg",
        ),
        picture(
            draw_risk(study),
            "Bias and variance",
            f"Bias falls and variance grows with training time eta; their sum is least in between. Stops: {marked}.",
            "Bias is what is not yet learned, variance is noise that was learned instead. The rules differ in how they look for the bottom "
            "of their sum. Where the curve is flat, the choice matters little. Bias is an estimate, and may fall below zero.",
            "svg",
        ),
        picture(
            draw_spectrum(study),
            "Spectrum of the kernel",
            f"Eigenvalues from {float(mu[0]):.3g} down over {study.spectrum.rank} places on log axes; decay: {study.decay.verdict}.",
            "Training learns large eigenvalues first; by the stop, what lies above the dashed line. The faster they fall, the less data is "
            "needed. The law is fitted where its line is solid.",
            "svg",
        ),
    ]  # fmt: skip
    if training and training.unseen:
        found.insert(0, picture(
            draw_path(study, training.unseen, stop=training.steps),
            "What came of it",
            hindsight(study, training)[0],
            "The dashed line was known before the first step, from the training rows alone. The run was let go on after the stop, to see "
            "what was missed.",
            "svg",
        ))  # fmt: skip
    if training and training.losses:
        (first, start), (last, end) = training.losses[0], training.losses[-1]
        changed = ""
        if training.drifts:
            changed = f"; the kernel has changed by {percent_of(training.drifts[-1][1])} at step {training.drifts[-1][0]:.0f}"
        within = study.when(stop.eta)
        found.insert(len(found) - 3, picture(
            draw_training(training.losses, training.drifts, stop_step=within[0] if within else None),
            "What happened",
            f"Training loss from {start:.3g} at step {first:.0f} to {end:.3g} at step {last:.0f}{changed}.",
            "The stop is computed for a kernel that stays as it is. A change of a few tens of percent is usual, more means that the "
            "prediction was for another regime: a smaller learning rate keeps longer to it.",
            "svg",
        ))  # fmt: skip
    return found
