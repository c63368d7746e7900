"""Figures of a model with classes: samples of every label, as images or as coloured points."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from driftway.report.plots import SHOWN, WIDE
from driftway.report.style import LABELS, styled
from driftway.report.view import Held, Rows, bounds, frame, image_shape, plane, sheet, show

MOST, EACH = len(LABELS), 8  # classes of a figure, images of a class
MARKERS = ("o", "^", "s")


@styled
def draw_class_images(sheets: Sequence[tuple[str, Rows]], y: Held, classes: Sequence[str]) -> Figure:
    """Sheets of images side by side, a row for every class.

    Args:
        sheets: titles, and as many rows for each class, one class after another.
        y: held-out images, which give the range of grey.
        classes: their names.
    """
    shape = image_shape(tuple(y.shape[1:])) or tuple(y.shape[1:])
    columns = len(sheets[0][1]) // len(classes)
    side = WIDE / len(sheets) - 0.4
    figure = Figure(figsize=(WIDE, side * len(classes) * shape[-2] / (columns * shape[-1]) + 0.5))
    figure.get_layout_engine().set(wspace=0.04)  # type: ignore[union-attr] (the style sets one)
    low, high = bounds(y)
    for axes, (title, rows) in zip(figure.subplots(1, len(sheets), squeeze=False)[0], sheets, strict=True):
        image = sheet(rows, shape, columns)
        show(axes, image, low, high)
        tile = (len(image) + max(1, shape[-2] // 10)) / len(classes)  # with its seam
        axes.set_yticks([tile * k + (shape[-2] - 1) / 2 for k in range(len(classes))], [plain(name) for name in classes])
        axes.tick_params(length=0)
        axes.set_title(title)
    return figure


@styled
def draw_class_points(drawn: Rows, y: Held, drawn_labels: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> Figure:
    """Samples beside held-out data, coloured by label: points, or histograms of one column.

    Args:
        drawn: samples.
        y: held-out rows.
        drawn_labels: the label of each sample.
        labels: the label of each held-out row.
        classes: the labels to draw, at most ten.
    """
    parts = [("samples by label", drawn[:SHOWN], drawn_labels), ("held-out data by label", y[:SHOWN], labels)]
    flat = y[0].numel() == 1
    figure = Figure(figsize=(WIDE, WIDE / 2 + 0.4))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    view = plane(y)
    points = [rows.flatten().cpu().numpy() if flat else view.of(rows) for _, rows, _ in parts]
    edges = np.histogram_bin_edges(np.concatenate(points), 40).tolist() if flat else []
    for axes, (title, rows, names), place in zip(panels, parts, points, strict=True):
        axes.set_title(title)
        own = np.array(names[: len(rows)])
        for k, name in enumerate(classes):
            style, chosen = {"color": LABELS[k], "label": plain(name)}, place[own == name]
            if flat:
                axes.hist(chosen, edges, histtype="step", linewidth=1.8, **style)
            else:
                axes.scatter(*chosen.T, s=14, marker=MARKERS[k % len(MARKERS)], alpha=0.75, linewidths=0, **style)
        axes.set(xlabel="value" if flat else view.labels[0], aspect="auto" if flat else "equal")
    if flat:
        panels[0].set_ylabel("rows")
    else:
        frame(panels[0], points[1], points[0], view.labels)
        (left, right), (low, high) = panels[0].get_xlim(), panels[0].get_ylim()
        figure.set_figheight(min(1.2, (high - low) / (right - left)) * WIDE / 2 + 0.9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=min(len(classes), 5), markerscale=1.8)
    return figure


def plain(name: str, most: int = 14) -> str:
    """A name as matplotlib shows it letter by letter: short, no formula, not hidden."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")
