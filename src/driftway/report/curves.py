"""Figures of a fine-tuning run: its spectrum, what is expected along the way, and what happened."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from driftway.linalg import Law
from driftway.report.study import Study
from driftway.report.style import DATA, FAINT, INK, LABELS, SAMPLES, SOURCE, styled

WIDE, NARROW = 9.6, 6.2
MARKERS = ("s", "^", "D", "v", "P", "X")


@styled
def draw_spectrum(study: Study) -> Figure:
    """The eigenvalues against their number on two logarithmic axes, the fitted law, and the size that is learned by the stop."""
    mu, decay, stop = study.spectrum.values, study.decay, study.stop
    figure = Figure(figsize=(NARROW, 4.2))
    axes = figure.subplots()
    shown = mu[mu > study.spectrum.floor].numpy()
    axes.loglog(np.arange(1, len(shown) + 1), shown, ".", color=DATA, markersize=4, label="eigenvalues of K/n")
    law = decay.exponential if decay.verdict == "exponential" else decay.power
    if law is not None and decay.verdict != "finite rank":
        j = np.geomspace(max(1.0, 1.0 - law.shift), len(shown), 200)
        inside = (j >= law.first) & (j <= law.last)
        accepted = "" if decay.verdict == law.name else ", which does not hold"
        axes.loglog(j, _values(law, j), color=SAMPLES, linestyle=":", linewidth=1.2)
        axes.loglog(j[inside], _values(law, j[inside]), color=SAMPLES, label=f"{law_text(law)}{accepted}")
    if decay.verdict == "finite rank":
        axes.axvline(decay.rank, color=SAMPLES, label=f"rank {decay.rank}")
    if 0 < stop.eta < math.inf:
        axes.axhline(1 / stop.eta, color=INK, linestyle="--", linewidth=1.2, label="1/eta: above it, learned at the stop")
    low, high = float(shown.min()), float(shown.max())
    axes.set(xlabel="number j of the eigenvalue", ylabel="eigenvalue", ylim=(low / 2, high * 3))
    figure.legend(loc="outside upper left", ncols=1)
    return figure


def _values(law: Law, j: np.ndarray) -> np.ndarray:
    x = j if law.name == "exponential" else np.log(j + law.shift)
    return law.amplitude * np.exp(-law.slope * x)


def law_text(law: Law) -> str:
    """A law as a formula."""
    if law.name == "exponential":
        return f"exponential law, exp(-{law.slope:.3g} j)"
    return f"power law, j^-{law.slope:.2f}"


@styled
def draw_risk(study: Study) -> Figure:
    """Bias, variance and their sum against eta, with the stop, the other rules and the schedule marked, and epochs above."""
    low, high = _range(study)
    eta = torch.logspace(math.log10(low), math.log10(high), 400, dtype=torch.float64)
    curves = study.curves(eta)
    figure = Figure(figsize=(NARROW, 5.4))
    axes = figure.subplots()
    axes.plot(eta, curves.bias, color=DATA, linestyle="--", linewidth=1.4, label="bias: not yet learned")
    axes.plot(eta, curves.variance, color=SAMPLES, linestyle="--", linewidth=1.4, label="variance: noise learned")
    axes.plot(eta, curves.risk, color=INK, linewidth=2.2, label="sum: estimated error")
    level = min(0.0, 1.1 * float(curves.risk.min()))
    axes.set(xscale="log", xlim=(low, high), xlabel="training time eta", ylabel="mean squared error",
             ylim=(level, 1.12 * max(float(curves.risk.max()), 1e-12)))  # fmt: skip
    if study.end < high:
        axes.axvspan(study.end, high, color=FAINT, alpha=0.3, linewidth=0, label="after the end of the schedule")
    if 0 < study.stop.eta < math.inf:
        axes.axvline(study.stop.eta, color=INK, linewidth=1.2)
    for i, stop in enumerate(study.stops):
        if 0 < stop.eta < math.inf:
            name = name_of(stop.rule) + (": the stop" if i == 0 else "")
            marker = {"marker": "o", "markersize": 10, "color": INK, "zorder": 5} if i == 0 else {
                "marker": MARKERS[(i - 1) % len(MARKERS)], "markersize": 7, "color": LABELS[i % len(LABELS)], "zorder": 6}  # fmt: skip
            axes.plot([stop.eta], study.risk(stop.eta), linestyle="", markeredgecolor="white", label=name, **marker)
    _epochs(axes, study)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@styled
def draw_validation(study: Study) -> Figure:
    """Losses of training rows and of rows held out of the kernel against eta, with the lowest and the stop marked, and epochs above."""
    low, high = _range(study)
    found, eta = study.validation, torch.logspace(math.log10(low), math.log10(high), 200, dtype=torch.float64).tolist()
    eta = [time for time in eta if time <= float(found.eta[-1])]
    figure = Figure(figsize=(NARROW, 4.6))
    axes = figure.subplots()
    train, held = ([found.at(time, curve) for time in eta] for curve in (found.train, found.held))
    axes.plot(eta, train, color=DATA, linestyle="--", linewidth=1.4, label="rows that are trained")
    axes.plot(eta, held, color=INK, linewidth=2.2, label="rows held out of the kernel")
    start, least = float(found.held[0]), float(found.held.min())
    span = 1.5 * max(start - least, 0.05 * start)
    axes.set(xscale="log", xlim=(low, high), ylim=(max(least - span, 0), start + span), xlabel="training time eta", ylabel="loss")
    if study.end < high:
        axes.axvspan(study.end, high, color=FAINT, alpha=0.3, linewidth=0, label="after the end of the schedule")
    if 0 < study.stop.eta < math.inf:
        axes.axvline(study.stop.eta, color=INK, linewidth=1.2, label="the stop")
    if 0 < found.best < math.inf:
        axes.plot([found.best], study.held(found.best), "o", color=SAMPLES, markeredgecolor="white", markersize=9, label="lowest")
    _epochs(axes, study)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _range(study: Study) -> tuple[float, float]:
    """Of times that are worth a look."""
    marked = [eta for eta in (*(stop.eta for stop in study.stops), study.validation.best) if 0 < eta < math.inf]
    top = float(study.spectrum.values[0])
    return min(0.05 / top, *(eta / 4 for eta in (*marked, study.end))), 4 * max(1 / top, study.end, *marked)


def _epochs(axes: Axes, study: Study) -> None:
    """A second axis with the epochs of the schedule, above."""
    low, high = axes.get_xlim()
    above = axes.twiny()
    above.set(xscale="log", xlim=(low, high), xlabel="epochs of the schedule")
    above.spines.top.set_visible(True)
    above.grid(False)
    ticks: list[tuple[float, str]] = []
    nice = [m * 10**e for e in range(-4, 6) for m in (1, 2, 5)]
    for epoch in sorted(nice, key=lambda value: abs(math.log(value / study.epochs))):
        step = round(epoch * study.per_epoch)
        place = study.time(step) if 1 <= step <= study.total and abs(step / study.per_epoch / epoch - 1) < 0.02 else 0.0
        if low < place < high and all(abs(math.log(place / other)) > 0.05 * math.log(high / low) for other, _ in ticks):
            ticks.append((place, f"{epoch:g}"))
    above.set_xticks([place for place, _ in ticks], [name for _, name in ticks])
    above.set_xticks([], minor=True)


def name_of(rule: str) -> str:
    """A rule in words."""
    return {"sure": "SURE", "gcv": "GCV", "cross_validation": "cross-validation"}.get(rule, rule.replace("_", " "))


@styled
def draw_training(losses: Sequence[tuple[float, float]], drifts: Sequence[Sequence[float]], *, stop_step: int | None) -> Figure:
    """Loss against steps, and how far the kernel has moved from its start."""
    figure = Figure(figsize=(WIDE, 3.7))
    left, right = figure.subplots(1, 2)
    steps, loss = np.asarray(losses, float).reshape(-1, 2).T
    left.plot(steps, loss, color=DATA, marker="o" if len(steps) < 40 else "")
    left.set(title="loss of the training batches", xlabel="step", ylabel="loss")
    at, change = np.asarray(drifts, float).reshape(-1, 2).T
    right.plot(at, 100 * change, color=SAMPLES, marker="o")
    right.set(title="change of the kernel", xlabel="step", ylabel="from its start (%)", ylim=(0, 115 * max(1e-3, *change.tolist(), 0.0)))
    for axes in (left, right):
        if stop_step is not None:
            axes.axvline(stop_step, color=SOURCE, linestyle="--", label="predicted stop")
            axes.legend(loc="best")
        axes.set_xlim(0, 1.05 * max(1.0, *steps.tolist(), *at.tolist(), float(stop_step or 0)))
    return figure


@styled
def draw_path(study: Study, unseen: Sequence[tuple[float, float]], *, stop: int) -> Figure:
    """Loss of rows that the run did not see, beside what the kernel foresaw of it; with the stop and the lowest loss in hindsight.

    Args:
        study: of the run.
        unseen: (step, loss), the first of them before training.
        stop: the step that the run stopped at.
    """
    steps, loss = np.asarray(unseen, float).T
    reached = [step for step in range(study.total + 1) if study.time(step) <= float(study.validation.eta[-1])]
    known = sorted({reached[i] for i in np.geomspace(1, len(reached), 200).astype(int) - 1})
    figure = Figure(figsize=(NARROW, 4.6))
    axes = figure.subplots()
    axes.plot(np.asarray(known) / study.per_epoch, study.held(*(study.time(step) for step in known)), color=DATA, linestyle="--",
              linewidth=1.4, label="foreseen: rows held out of the kernel")  # fmt: skip
    axes.plot(steps / study.per_epoch, loss, color=INK, linewidth=1.8, label="measured: rows the run did not see")
    axes.axvline(stop / study.per_epoch, color=INK, linewidth=1.2, label="the stop")
    best = int(loss.argmin())
    axes.plot(steps[best] / study.per_epoch, loss[best], "o", color=SAMPLES, markeredgecolor="white", markersize=9,
              label="lowest, in hindsight")  # fmt: skip
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="epoch", ylabel="loss", xlim=(0, steps[-1] / study.per_epoch))
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper left", ncols=2)
    return figure
