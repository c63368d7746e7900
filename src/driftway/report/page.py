"""One run as one HTML file that needs nothing else: what came out, how good it is, and the command that made it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from driftway import store
from driftway.report import classes, plots
from driftway.report.evaluate import Evaluation, held_names, held_rows
from driftway.report.style import percent
from driftway.report.template import Picture, facts, fill, picture
from driftway.report.view import image_shape
from driftway.transport import TransportModel

SMOOTH, CLOSE = 20, 1.1
SOLVED = ("converged", "marginal_error", "marginal_floor")  # facts of a table
BOTH = ("eps_start",)  # the setting that is neither of one family nor of the other


def write_report(path: str | Path, model: TransportModel, evaluation: Evaluation, x: Float[Tensor, "n *event"] | None,
                 y: Float[Tensor, "m *event"], *, command: str, title: str, labels: Any = None) -> None:  # fmt: skip
    """Write the report of a model, atomically, as one HTML file without references to others.

    Args:
        path: the file; its folder is made if need be.
        model: what is reported on.
        evaluation: of the model, on x and y.
        x: the held-out source rows that were evaluated, or None for standard normal ones.
        y: the held-out target rows that were evaluated.
        command: what the reader types to get this run again.
        title: the heading.
        labels: of y, as they were evaluated.

    Raises:
        InputError: if x, y or the labels are unusable.
        OSError: if the file cannot be written.
    """
    store.write_file(Path(path), render(model, evaluation, x, y, command=command, title=title, labels=labels).encode())


def render(model: TransportModel, evaluation: Evaluation, x: Float[Tensor, "n *event"] | None,
           y: Float[Tensor, "m *event"], *, command: str, title: str, labels: Any = None) -> str:  # fmt: skip
    """The report as text. Arguments and errors as `write_report`."""
    table = evaluation.rows()
    return fill("page.html", title=title, command=command, verdict=verdict(model, evaluation), evaluation=evaluation,
                           pictures=pictures(model, evaluation, x, y, labels), headings=list(table[0]), table=table,
                           quality=_quality_picture(evaluation), certificate=_certificate_picture(model),
                           gap=percent(100 * evaluation.certificate.gap), unit=_unit(model),
                           noisy=model.problem.sigma > 0, normal=model.scaler.noise, labelled=labels is not None,
                           settings=settings(model, evaluation))  # fmt: skip


def verdict(model: TransportModel, evaluation: Evaluation) -> list[str]:
    """What the run achieved: a sentence on the samples, and one on the cost."""
    best, gap = evaluation.headline, evaluation.certificate.gap
    ratio, steps = evaluation.ratio(best), f"{best.steps} step{'s' if best.steps > 1 else ''}"
    figures = f"W2 is {best.w2_at_floor:.3g}, the floor {evaluation.floor:.3g}"
    if math.isnan(ratio):
        first = f"In {steps}, {figures}: the held-out rows all agree, so the two cannot be compared."
    elif ratio <= CLOSE:
        first = f"In {steps}, samples are about as close to held-out data as fresh data is: {figures} (ratio {ratio:.2f})."
    elif best.w2_at_floor <= max(evaluation.floors):
        first = (f"In {steps}, samples are {ratio:.3g} times as far from held-out data as fresh data is, which the choice of rows may "
                 f"explain: {figures} ({min(evaluation.floors):.3g} to {max(evaluation.floors):.3g}).")  # fmt: skip
    else:
        first = f"In {steps}, samples are {ratio:.3g} times as far from held-out data as fresh data is: {figures}."
    if model.problem.sigma > 0:
        second = "The paths are noisy by design (sigma > 0), so their cost stays above that of the shortest transport."
    elif gap < 1:
        which = "Without labels, the" if model.conditions.known else "The"
        second = f"{which} transport cost is proven to be within {percent(100 * gap)} of the optimum on these rows."
    else:
        second = "The certificate proves nothing about the transport cost: its lower bound is not above zero on these rows."
    return [first, second]


def pictures(model: TransportModel, evaluation: Evaluation, x: Float[Tensor, "n *event"] | None,
             y: Float[Tensor, "m *event"], labels: Any = None) -> list[Picture]:  # fmt: skip
    """The pictures of the samples and of how they came about. Errors as `write_report`."""
    seed, n, unit = evaluation.seed, evaluation.n, _unit(model)
    label = held_names(labels, len(y), seed=seed)
    x, y = held_rows(model, x, y, limit=n, seed=seed)
    x, y, label = x[:n], y[:n], None if label is None else label[:n]
    steps = evaluation.headline.steps
    start, drawn = model.scaler.data(model.scaler.source(x)), model.sample(x, steps=steps, label=label, seed=seed)
    images, size = image_shape(model.event), math.prod(model.event)
    colour = len(images or ()) == 3
    smooth = model.path(x[: plots.PATHS], steps=SMOOTH, label=label and label[: plots.PATHS], seed=seed)
    place = "as images" if images else "in the plane of the two main directions of the data" if size > 2 else "as points"
    found = [
        picture(
            plots.draw_samples(drawn, y, start=None if images and model.scaler.noise else start, steps=steps),
            "Samples beside held-out data",
            f"Generated samples beside held-out data, {place}.",
            "A good model's panel cannot be told from the held-out one: the same shapes and the same variety.",
            given=colour,
        ),
        picture(
            plots.draw_trajectories(smooth, y),
            "Paths from source to target",
            f"Paths of {smooth.states.shape[1]} rows from source to target in {SMOOTH} steps, over held-out data.",
            "The best paths are straight, and straight paths are why few steps are enough.",
        ),
    ]
    if model.classes and label:
        found.insert(1, _class_picture(model, x, y, drawn, list(map(str, label)), steps, seed))
    if size == 2 and model.scaler.size == 2:
        landscape = picture(
            plots.draw_landscape(model, start, y, unit=unit),
            "The value that drives them",
            f"Filled contours of the value at time 0, in {unit}, with arrows along its negative gradient.",
            "The value of a place is the least cost from there to an end, with a price on each end that spreads the rows as "
            "the data is spread. Rows (white dots: where they start) move along the arrows, down the value."
            + (" Here it is that of the whole law, without a label." if model.conditions.known else ""),
            given=True,
        )
        found.append(landscape)
    if size > 2:
        alt, caption = (
            "Eight samples, each above its three nearest held-out rows.",
            "Numbers are distances, in the units of the data. Good samples resemble their neighbours without copying them.",
        ) if images else (
            "Histograms of the distance from samples to held-out rows, and between held-out rows.",
            "The two should look alike. Orange far to the left would mean copied rows, far to the right poor samples.",
        )  # fmt: skip
        found.append(picture(plots.draw_neighbours(drawn, y), "Nearest neighbours", alt, caption, given=colour))
    return found


def _class_picture(model: TransportModel, x: Tensor, y: Tensor, drawn: Tensor, label: list[str], steps: int, seed: int) -> Picture:
    """Samples of every class."""
    names = [str(name) for name in model.classes][: classes.MOST]
    which = f"each of {len(names)} labels" if len(names) == len(model.classes) else f"the first {len(names)} of {len(model.classes)} labels"
    if not image_shape(model.event):
        return picture(
            classes.draw_class_points(drawn, y, label, label, names),
            "Samples by label",
            f"Samples beside held-out data, in a colour for {which}: {', '.join(names)}.",
            "Every colour should cover the same places in both panels.",
        )
    few = min(classes.EACH, len(x))
    start, asked = x[:few].repeat(len(names), *[1] * (x.ndim - 1)), [name for name in names for _ in range(few)]
    sheets = [(f"guidance {w}", model.sample(start, steps=steps, label=asked, guidance=w, seed=seed)) for w in (1, 2)]
    return picture(
        classes.draw_class_images(sheets, y, names),
        "Samples by label",
        f"Samples of {which} ({', '.join(names)}), a row for each, without guidance and with guidance of weight 2.",
        "All images of a column start from the same source row. Guidance above 1 makes images more typical of their label, less varied.",
        given=len(image_shape(model.event) or ()) == 3,
    )


def settings(model: TransportModel, evaluation: Evaluation) -> list[tuple[str, str]]:
    """What made the model and measured it, as (name, value)."""
    problem, training, scaler = model.problem, model.training, model.scaler
    eps = problem.entropy if problem.entropy is not None else training.get("eps")
    mixture = model.family == "mixture"
    used = {
        name: value
        for name, value in dict(training.get("settings", {})).items()
        if name not in model.shape and (name in BOTH or name.startswith(("mixture_", "components")) == mixture)
    }
    known: dict[str, Any] = {
        "family": model.family,
        **model.shape,
        **({"classes": _listed(model.classes)} if model.classes else {}),
        "source": "standard normal" if scaler.noise else "data",
        "shape of a row": " x ".join(map(str, model.event)),
        "horizon": problem.horizon,
        "sigma (noise)": problem.sigma,
        "eps (entropy)": eps,
        **used,
        "training steps": training.get("steps"),
        "training seconds": training.get("seconds"),
        **{name: training[name] for name in SOLVED if name in training},
        "seed": training.get("seed"),
        "rows evaluated": evaluation.n,
        "seed of evaluation": evaluation.seed,
        "dtype": str(scaler.shift.dtype).removeprefix("torch."),
        "device": scaler.shift.device,
    }
    return facts(known)


def _quality_picture(evaluation: Evaluation) -> Picture:
    pairs = ", ".join(f"{q.w2_at_floor:.3g} at {q.steps}" for q in evaluation.qualities)
    return picture(
        plots.draw_quality(evaluation),
        "Quality against steps",
        f"W2 to held-out data by number of steps: {pairs}; the floor is {evaluation.floor:.3g}.",
        "Orange on the dashed line is as good as these rows can tell; the blue band is how much the floor varies with the choice of rows.",
        "svg",
    )


def _certificate_picture(model: TransportModel) -> Picture | None:
    history: Sequence[Sequence[float | int]] = model.training.get("history") or []
    if not history:
        return None
    _, seconds, lower, upper, *_ = history[-1]
    return picture(
        plots.draw_certificate(history, unit=_unit(model)),
        "Certificate over time",
        f"Bounds on the cost over {seconds:.0f} seconds of training, at the end {lower:.3g} and {upper:.3g}.",
        "The least possible cost lies in the grey band, whatever the model. Computed on the rows that training itself held out.",
        "svg",
    )


def _unit(model: TransportModel) -> str:
    return "standardised units" if model.scaler.noise else "units of the data, squared"


def _listed(names: Sequence[object], most: int = 36) -> str:
    """How many names, and the first of them."""
    text = ", ".join(map(str, names))
    return f"{len(names)} ({text if len(text) <= most else text[: most - 1].rstrip(', ') + '…'})"

