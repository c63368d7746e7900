"""Figures of a trained model; each function returns one and shows nothing.

One dimension is drawn as histograms and as paths over time, two as they are, more in the plane of the first two principal
components of the held-out data; rows that look like images as images.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from driftway.report.evaluate import Evaluation
from driftway.report.style import DATA, FAINT, INK, SAMPLES, SOURCE, VALUES, percent, styled
from driftway.report.view import Held, Rows, bounds, frame, image_shape, plane, sheet, show
from driftway.transport import Path, TransportModel

SHOWN, PATHS = 1000, 120
WIDE, NARROW = 9.6, 6.2  # inches; the page shows both at one scale, so that all letters have one size


@styled
def draw_samples(drawn: Rows, y: Held, *, start: Float[Tensor, "k *event"] | None = None, steps: int) -> Figure:
    """Samples beside held-out data y, and beside the rows they started from, if given; all in the units of the data."""
    title = f"samples ({steps} step{'s' if steps > 1 else ''})"
    parts = [("source", start, SOURCE)] if start is not None else []
    parts = [*parts, (title, drawn, SAMPLES), ("held-out data", y, DATA)]
    shape = image_shape(tuple(y.shape[1:]))
    figure = Figure(figsize=(WIDE, WIDE / len(parts) + 0.4))
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr] (the style sets one)
    scatter = shape is None and y[0].numel() > 1
    panels = figure.subplots(1, len(parts), sharex=shape is None, sharey=shape is None, squeeze=False)[0]
    low, high = bounds(y)
    for axes, (name, rows, colour) in zip(panels, parts, strict=True):
        axes.set_title(name)
        if shape:
            show(axes, sheet(rows[:64], shape, columns=8), low, high)
        elif scatter:
            axes.scatter(*plane(y).of(rows[:SHOWN]).T, s=7, color=colour, alpha=0.55, linewidths=0)
        else:
            edges = np.histogram_bin_edges(torch.cat([rows.flatten() for _, rows, _ in parts]).cpu().numpy(), 40).tolist()
            axes.hist(rows.flatten().cpu().numpy(), edges, color=colour)
            axes.set(xlabel="value", ylabel="rows" if axes is panels[0] else "")
    if scatter:
        view = plane(y)
        given = torch.cat([y[:SHOWN], y[:0] if start is None else start[:SHOWN]])
        frame(panels[0], view.of(given), view.of(drawn[:SHOWN]), view.labels)
        for axes in panels:
            axes.set(xlabel=view.labels[0], aspect="equal")
    return figure


@styled
def draw_trajectories(path: Path, y: Held) -> Figure:
    """The paths of some rows from source (grey) to target (orange), over held-out data y (blue)."""
    figure = Figure(figsize=(NARROW, 5.2))
    axes = figure.subplots()
    states = path.states[:, :PATHS]
    if y[0].numel() == 1:
        t, lines = path.t.cpu().numpy(), states.flatten(1).cpu().numpy()
        axes.plot(t, lines, color=SOURCE, alpha=0.45, linewidth=0.8)
        axes.scatter(np.ones_like(lines[-1]), lines[-1], s=14, color=SAMPLES, zorder=4, linewidths=0)
        axes.set(xlabel="time (0 source, 1 target)", ylabel="value")
        return figure
    view = plane(y)
    lines = np.stack([view.of(state) for state in states], 1)
    data = view.of(y[:SHOWN])
    axes.scatter(*data.T, s=6, color=DATA, alpha=0.5, linewidths=0, label="held-out data")
    axes.add_collection(LineCollection(list(lines), colors=SOURCE, alpha=0.55, linewidths=0.8))
    axes.scatter(*lines[:, 0].T, s=12, facecolors="white", edgecolors=SOURCE, linewidths=0.8, zorder=3, label="start")
    axes.scatter(*lines[:, -1].T, s=14, color=SAMPLES, zorder=4, linewidths=0, label="end")
    frame(axes, np.concatenate([data, lines[:, 0]]), np.concatenate(list(lines)), view.labels)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, markerscale=1.6)
    return figure


@styled
def draw_landscape(model: TransportModel, start: Rows, y: Held, *, unit: str) -> Figure:
    """V_0 as filled contours, with arrows along the action -grad V_0; for models of two columns.

    Args:
        model: the model.
        start: source rows in the units of the data, which say where to look.
        y: held-out target rows.
        unit: of the value, for its colour bar.
    """
    start = start.flatten(1)
    both = torch.cat([start, y.flatten(1)]).double()
    low, high = both.quantile(0.002, 0), both.quantile(0.998, 0)
    low, high = low - 0.08 * (high - low), high + 0.08 * (high - low)
    cell = float((high - low).max()) / 16
    fine, coarse = _grid(low, high, cell / 6), _grid(low, high, cell)
    V = model.value(fine.flatten(0, 1).reshape(-1, *model.event).to(y), 0.0).reshape(fine.shape[:2]).double().cpu()
    coarse = coarse.flatten(0, 1).to(y)
    scaler = model.scaler
    inside = (coarse - scaler.shift) / scaler.scale if scaler.noise else coarse
    path = model.path(inside.reshape(-1, *model.event), steps=1, rule="explicit")
    action = path.actions[0].flatten(1).double().cpu()
    action = 1.1 * cell * action / action.norm(dim=1).quantile(0.8).clamp_min(1e-12)
    action = action * (1.1 * cell / action.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)
    figure = Figure(figsize=(NARROW, 4.9))
    axes = figure.subplots()
    axes.grid(False)
    levels = MaxNLocator(24).tick_values(float(V.min()), float(V.quantile(0.97)))
    filled = axes.contourf(*fine.permute(2, 0, 1).numpy(), V.numpy(), levels=levels, cmap=VALUES, extend="max")
    axes.scatter(*start[:300].cpu().numpy().T, s=5, color="white", alpha=0.45, linewidths=0)
    axes.quiver(*coarse.cpu().numpy().T, *action.numpy().T, angles="xy", scale_units="xy", scale=1, color="white",
                edgecolor=INK, linewidth=0.4, width=0.0055, headwidth=4, headlength=4.5, headaxislength=4)  # fmt: skip
    beside = axes.inset_axes((1.03, 0, 0.035, 1))
    bar = figure.colorbar(filled, cax=beside, label=f"value $V_0$ ({unit})", ticks=levels[::4], format="%.3g")
    bar.outline.set_visible(False)
    corners = torch.stack([low, high], 1).tolist()
    axes.set(xlabel="column 1", ylabel="column 2", aspect="equal", xlim=corners[0], ylim=corners[1])
    return figure


@styled
def draw_neighbours(drawn: Rows, y: Held) -> Figure:
    """Whether samples copy data: images beside their nearest rows of y, or, for other rows, histograms of distances."""
    z, rows = drawn.flatten(1).double().cpu(), y.flatten(1).double().cpu()
    shape = image_shape(tuple(y.shape[1:]))
    if shape is None:
        own = torch.cdist(rows, rows).fill_diagonal_(math.inf).amin(1).numpy()
        away = torch.cdist(z, rows).amin(1).numpy()
        figure = Figure(figsize=(NARROW, 3.6))
        axes = figure.subplots()
        edges = np.histogram_bin_edges(np.concatenate([own, away]), 40).tolist()
        axes.hist(own, edges, color=DATA, alpha=0.45, label="held-out row to nearest other held-out row")
        axes.hist(away, edges, histtype="step", color=SAMPLES, linewidth=1.8, label="sample to nearest held-out row")
        axes.set(xlabel="distance (units of the data)", ylabel="rows")
        figure.legend(loc="outside upper left")
        return figure
    few = min(8, len(z))
    distance, index = torch.cdist(z[:few], rows).topk(min(3, len(rows)), largest=False)
    figure = Figure(figsize=(NARROW, 3.9))
    panels = figure.subplots(1 + index.shape[1], few, squeeze=False)
    low, high = bounds(y)
    for column in range(few):
        show(panels[0, column], sheet(z[column], shape, 1), low, high)
        for rank, (near, row) in enumerate(zip(distance[column], index[column], strict=True), 1):
            show(panels[rank, column], sheet(rows[row], shape, 1), low, high)
            panels[rank, column].set_xlabel(f"{near:.3g}", fontsize=8)
    for rank, name in enumerate(["sample", "nearest", "2nd", "3rd"][: len(panels)]):
        panels[rank, 0].set_ylabel(name, color=SAMPLES if rank == 0 else INK, rotation=0, ha="right", va="center")
    return figure


@styled
def draw_certificate(history: Sequence[Sequence[float | int]], *, unit: str) -> Figure:
    """Both bounds of the certificate, and its gap, over training time, from rows [step, seconds, lower, upper, loss]."""
    _, seconds, lower, upper, *_ = np.asarray(history, float).T
    figure = Figure(figsize=(WIDE, 3.7))
    left, right = figure.subplots(1, 2)
    left.fill_between(seconds, lower, upper, color=FAINT, alpha=0.4, linewidth=0)
    left.plot(seconds, upper, marker="o", color=SAMPLES, label="upper: the policy's cost")
    left.plot(seconds, lower, marker="s", color=DATA, label="lower: proven by the prices")
    left.set(title="bounds on the transport cost", xlabel="training time (seconds)", ylabel=f"cost ({unit})")
    left.set_ylim(0 if lower[-1] > 0 else None, 1.15 * upper.max())
    left.legend(loc="lower right")
    gap = 100 * np.clip((upper - lower) / np.maximum(upper, 1e-300), 1e-5, None)
    right.plot(seconds, gap, marker="o", color=INK)
    right.annotate(percent(gap[-1]), (seconds[-1], gap[-1]), (0, 7), textcoords="offset points", ha="right")
    right.set(title="gap between them", xlabel="training time (seconds)", ylabel="gap (% of the upper bound)", yscale="log",
              ylim=(gap.min() / 2, gap.max() * 1.6))  # fmt: skip
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.set_xlim(0)
    return figure


@styled
def draw_quality(evaluation: Evaluation) -> Figure:
    """W2 with its floor, and the excess of the path energy, against the number of steps."""
    qualities = sorted(evaluation.qualities, key=lambda quality: quality.steps)
    steps = [quality.steps for quality in qualities]
    figure = Figure(figsize=(WIDE, 3.6))
    left, right = figure.subplots(1, 2)
    distances = [quality.w2_at_floor for quality in qualities]
    left.plot(steps, distances, marker="o", color=SAMPLES, label="samples to held-out data")
    left.axhspan(min(evaluation.floors), max(evaluation.floors), color=DATA, alpha=0.15, linewidth=0)
    left.axhline(evaluation.floor, color=DATA, linestyle="--", label="floor: fresh data to held-out data")
    left.set(title="distance to held-out data", ylabel=f"W2 ({evaluation.floor_rows:,} rows, units of the data)")
    left.legend(loc="lower right")
    excess = [100 * quality.normalised_energy for quality in qualities]
    right.plot(steps, excess, marker="o", color=INK)
    right.set(title="normalised path energy", ylabel="path energy from squared W2 (%)")
    for axes, most in ((left, max(*evaluation.floors, *distances)), (right, max(excess))):
        axes.set(xlabel="policy steps", xscale="log")
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.set_ylim(0, 1.2 * most if most > 0 else None)
    return figure


def _grid(low: Tensor, high: Tensor, cell: float) -> Float[Tensor, "rows columns 2"]:
    """Points about one cell apart that fill a rectangle."""
    sides = zip(low.tolist(), high.tolist(), strict=True)
    first, second = (torch.linspace(a, b, max(2, round((b - a) / cell) + 1), dtype=torch.float64) for a, b in sides)
    return torch.stack(torch.meshgrid(first, second, indexing="xy"), -1)
