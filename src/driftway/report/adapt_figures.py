"""Figures of a fitted adaptation: labels foreseen, calibration, how alike the domains are, and which columns count."""

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import binom

from driftway.adapt.explain import Explanation
from driftway.adapt.influence import reach
from driftway.report.classes import plain
from driftway.report.style import DATA, FAINT, INK, SAMPLES, VALUES, styled

NARROW, PANELS, BARS, CELLS = 6.2, 4, 20, 12  # outputs, columns and domains that are drawn at most
LEVELS = np.linspace(0.05, 0.95, 19)
LEVEL, BAND = 0.9, 0.9  # of the intervals that are drawn; of what chance allows


@styled
def draw_foreseen(explanation: Explanation) -> Figure:
    """Each label of the target against what is foreseen without it, with intervals, a panel for each output."""
    seen, outputs = explanation.foreseen, explanation.outputs[:PANELS]
    columns = min(len(outputs), 2)
    rows = -(-len(outputs) // columns)
    figure = Figure(figsize=(NARROW if columns == 1 else 9.2, 4.6 * rows))
    for j, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if j >= len(outputs):
            axes.set_visible(False)
            continue
        y, mean, std = (part[:, j].cpu().numpy() for part in (seen.y, seen.mean, seen.std))
        half = reach(LEVEL) * std
        inside = np.abs(y - mean) <= half
        span = np.array([min(y.min(), (mean - half).min()), max(y.max(), (mean + half).max())])
        axes.plot(span, span, color=INK, linewidth=1, linestyle="--", label="foreseen exactly")
        for which, color, marker, name in ((inside, DATA, "o", "in its interval"), (~inside, SAMPLES, "D", "outside of it")):
            if which.any():
                axes.errorbar(y[which], mean[which], half[which], fmt=marker, color=color, elinewidth=1, markersize=5, label=name)
        axes.set(xlabel=f"label: {plain(outputs[j], 30)}", ylabel=f"foreseen without it, {100 * LEVEL:.0f} % interval")
        if j == 0:
            figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


@styled
def draw_calibration(explanation: Explanation) -> Figure:
    """The part of the labels in their intervals against the level of these, with what chance allows for so many labels."""
    seen = explanation.foreseen
    m = len(seen.y)
    figure = Figure(figsize=(NARROW, 4.6))
    axes = figure.subplots()
    low, high = (binom.ppf(p, m, LEVELS) / m for p in ((1 - BAND) / 2, (1 + BAND) / 2))
    chance = f"chance, {m} labels ({100 * BAND:.0f} %)"
    axes.fill_between(100 * LEVELS, 100 * low, 100 * high, color=FAINT, alpha=0.45, linewidth=0, label=chance)
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="calibrated")
    axes.plot(100 * LEVELS, [100 * seen.coverage(level) for level in LEVELS], "o-", color=DATA, label="observed")
    axes.set(xlabel="level of the interval (%)", ylabel="labels in it (%)", xlim=(0, 100), ylim=(0, 102))
    figure.legend(loc="outside upper left", ncols=3)
    return figure


@styled
def draw_correlation(explanation: Explanation) -> Figure:
    """k_P between the domains as a heat map with its numbers."""
    k = explanation.correlation[:CELLS, :CELLS].cpu().numpy()
    names = [plain(domain.name, 22) for domain in explanation.domains[:CELLS]]
    side = max(2.6, 0.75 * len(k))
    figure = Figure(figsize=(side + 2.6, side + 0.9))
    axes = figure.subplots()
    low = min(0.0, float(k.min()))
    shown = axes.imshow(k, cmap=VALUES, vmin=low, vmax=1)
    for i, row in enumerate(k):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < low + 0.55 * (1 - low) else "black")
    axes.set_xticks(range(len(k)), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(k)), names)
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(shown, ax=axes, label="correlation", shrink=0.9).outline.set_visible(False)  # type: ignore[operator]
    return figure


@styled
def draw_relevance(explanation: Explanation) -> Figure:
    """Relevance of the columns as bars, the largest on top."""
    best = explanation.relevance[:BARS]
    figure = Figure(figsize=(NARROW, 1.1 + 0.3 * len(best)))
    axes = figure.subplots()
    place = np.arange(len(best))[::-1]
    axes.barh(place, [value for _, value in best], color=DATA, height=0.65)
    axes.set_yticks(place, [plain(name, 26) for name, _ in best])
    axes.set_ylim(-0.6, len(best) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set(xlabel="relevance: what a standard deviation is multiplied by")
    return figure
