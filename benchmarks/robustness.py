"""What perturbed sampling costs: `python -m benchmarks.robustness`.

    x_{h+1} = x_h + (t_{h+1} - t_h) a(x_h, t_h) + s std sqrt(t_{h+1} - t_h) xi_h          xi_h ~ N(0, I), the same for every method

    steps    uniform grids of 1 to 100 steps, s = 0
    noise    s > 0 on a uniform grid of 20 steps; std is the target's root mean variance
    jitter   8 steps whose inner times are moved by a uniform share of up to the given part of a step to either side, and sorted
    late     t -> t^2 (long steps last), 8 steps          early    t -> 1 - (1-t)^2 (short steps last), 8 steps

Ours moves ends that leave the data's box to the box, as its own sampler does; the peers are followed as they are and, "boxed", with the
same box. Area: the mean height of the curve of a loss over an axis, by the trapezoid rule; over the logarithm for steps. A W2 below its
floor, which is blur, counts as the floor.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import images, peers
from benchmarks.record import Cell, Goal, Record, Table, arguments, show, write
from benchmarks.translation import train_flow, train_ours
from driftway.data import PAIRS, digits
from driftway.report.style import DATA, FAINT, INK, SAMPLES, SOURCE, styled
from driftway.transport import Settings, w2
from driftway.transport.stream import generator

OURS, EXACT, INDEPENDENT = "driftway", "OT-CFM (tuned)", "I-CFM"
METHODS, JOBS, BOXED = (OURS, EXACT, INDEPENDENT), 2, ", boxed"
PLANES, DIGITS, MNIST = ("normal-8gaussians", "moons-8gaussians"), "digits", "MNIST"
AXES: dict[str, tuple[float, ...]] = {"steps": (1, 2, 4, 8, 20, 50, 100), "noise": (0.0, 0.05, 0.1, 0.2, 0.4),
                                      "jitter": (0.0, 0.25, 0.5, 1.0)}  # fmt: skip
WARPS: dict[str, Callable[[float], float]] = {"late": lambda t: t * t, "early": lambda t: 1 - (1 - t) ** 2}
NOISY, GRIDS, JITTERED = 20, 5, 8
SLACK = 0.5  # of the range of a column, to either side
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "robustness.png"
NOTES = (
    "Training seconds are processor seconds of one thread, equal for all methods of a problem, set-up included. The peers on images have "
    "our vector family's own network as their velocity, our schedule and average, and pair noise with images within each label.",
    "Samples are conditional on digits and MNIST, without guidance. Wrong: the share of samples that a classifier, trained on real "
    "images, gives another label; beside it the same for real test images. MMD² is unbiased, with a Gaussian kernel as wide as the "
    "median distance of target rows; it may be negative.",
    "Overshoot: how far the farthest sample lies outside the range of the training data, in ranges of its column.",
)


@dataclass(frozen=True)
class Protocol:
    """Sizes of a run: seconds of training per problem, test rows in the plane and of images, grids per jitter."""

    seconds: Mapping[str, float]
    plane: int
    images: int
    grids: int
    seed: int = 0


FULL = Protocol({PLANES[0]: 12.0, PLANES[1]: 12.0, DIGITS: 20.0, MNIST: 40.0}, 2048, 500, GRIDS)
QUICK = Protocol({PLANES[0]: 2.0, PLANES[1]: 2.0, DIGITS: 3.0}, 512, 300, 2)
SETTINGS = {DIGITS: Settings(width=256, lr=3e-3), MNIST: Settings(width=512, lr=2e-3)}
PEER_LR = 2e-3
Velocity = Callable[[Tensor, float], Tensor]
Box = tuple[Tensor, Tensor]


@torch.no_grad()
def walk(velocity: Velocity, x: Tensor, times: Sequence[float], *, noise: float = 0.0, box: Box | None = None, seed: int = 0) -> Tensor:
    """Ends of Euler's method on a grid of times, with normal noise of scale noise sqrt(dt) after every step.

    The end x + (1-t) a that an action aims at is moved into the box, if there is one. The noise depends on the seed and the step alone.
    """
    for h, (t, later) in enumerate(pairwise(times)):
        a = velocity(x, t)
        if box is not None:
            a = ((x + (1 - t) * a).clamp(*box) - x) / (1 - t)
        x = x + (later - t) * a
        if noise > 0:
            x = x + noise * (later - t) ** 0.5 * torch.randn(x.shape, generator=generator(seed, "step noise", h)).to(x)
    return x


def uniform(steps: int) -> list[float]:
    """The grid of equal steps."""
    return [h / steps for h in range(steps + 1)]


def jittered(steps: int, share: float, seed: int) -> list[float]:
    """A grid whose inner times are moved by up to `share` of a step to either side, and sorted; none leaves [0, 1]."""
    moves = torch.rand(steps - 1, generator=generator(seed, "jitter"), dtype=torch.float64) * 2 - 1
    inner = [(h + 1 + share * float(move)) / steps for h, move in enumerate(moves)]
    return [0.0, *sorted(inner), 1.0]


def perturbations(grids: int) -> Iterator[tuple[str, float, list[float], float, int]]:
    """(axis, level, grid of times, s, number of the grid)."""
    for level in AXES["steps"]:
        yield "steps", level, uniform(int(level)), 0.0, 0
    for level in AXES["noise"]:
        yield "noise", level, uniform(NOISY), level, 0
    for level in AXES["jitter"]:
        for grid in range(grids if level else 1):
            yield "jitter", level, jittered(JITTERED, level, grid), 0.0, grid
    for name, warp in WARPS.items():
        yield name, 1.0, [warp(t) for t in uniform(JITTERED)], 0.0, 0


@dataclass(frozen=True)
class Problem:
    """Test rows and what a sample is compared with, in the units of the data.

    Attributes:
        x: starts, in the plane data and else standard normal.
        labels: asked for, or None.
        y: test rows of the target, flat.
        low: end of the training data's range, source included: of each column in the plane, of all pixels of images.
        high: the other end.
        predict: of rows to labels, or None.
        known: floors, name -> figure.
        width: of the kernel.
    """

    x: Tensor
    labels: Tensor | None
    y: Tensor
    low: Tensor
    high: Tensor
    predict: Callable[[np.ndarray], np.ndarray] | None
    known: Mapping[str, float]
    width: float


@dataclass(frozen=True)
class Mover:
    """A trained method: its velocity on states, the way from states to flat data, its box, and the deviation that noise is scaled by."""

    velocity: Velocity
    data: Callable[[Tensor], Tensor]
    box: Box | None
    std: float
    steps: int
    seconds: float


def mmd2(x: Tensor, y: Tensor, width: float) -> float:
    """The unbiased squared maximum mean discrepancy, kernel exp(-|x - y|^2 / 2 width^2)."""
    def inner(a: Tensor, b: Tensor, *, same: bool) -> float:
        k = torch.exp(-torch.cdist(a.double(), b.double()).square() / (2 * width**2))
        return float((k.sum() - len(a) * same) / (len(a) * (len(b) - same)))

    return inner(x, x, same=True) + inner(y, y, same=True) - 2 * inner(x, y, same=False)


def rows_of(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """All images of a problem, (n, h, w) in 0..1, and their labels, in random order."""
    if name == DIGITS:
        pixels, labels = digits()
        x = pixels.reshape(-1, 8, 8) / 16
    else:
        x, labels = map(torch.from_numpy, images.mnist5k())
    order = torch.randperm(len(x), generator=generator(seed, name, "order"))
    return x[order], labels[order]


def plane_cell(name: str, protocol: Protocol, method: str) -> tuple[Problem, Mover]:
    """A method trained in the plane, and its test: quasi-random points."""
    seed, laws = protocol.seed, PAIRS[name]
    x, y, again = (law.quasi(protocol.plane, generator=generator("test", name, seed, side)) for side, law in enumerate((*laws, laws[1])))
    near = torch.cat([law.sample(8192, generator=generator("range", name, seed, side)) for side, law in enumerate(laws)])
    std = float(y.var(0).mean().sqrt())
    problem = Problem(x, None, y, near.amin(0), near.amax(0), None, {"floor": w2(again, y)}, math.nan)
    if method != OURS:
        recipe = {r.name: r for r in peers.RECIPES}[method]
        peers.train(recipe, *laws, seconds=0.01, seed=0)  # PyTorch loads parts of itself at first use: not on the clock
        flow = peers.train(recipe, *laws, seconds=protocol.seconds[name], seed=seed)
        return problem, Mover(lambda z, t: flow.network(torch.cat([z, z.new_full((len(z), 1), t)], 1)), lambda z: z, _box(near), std,
                              flow.steps, flow.seconds)  # fmt: skip
    samplers = [lambda n, own, law=law: law.sample(n, generator=own) for law in laws]
    train_ours("network", *samplers, seconds=0.01, seed=0, settings=Settings())
    model, steps, spent = train_ours("network", *samplers, seconds=protocol.seconds[name], seed=seed, settings=Settings())
    scaler, value = model.scaler, model.value_function

    def velocity(z: Tensor, t: float) -> Tensor:
        return -value.gradient(scaler.target(z), z.new_full((len(z),), t)) * scaler.scale

    assert scaler.box is not None
    return problem, Mover(velocity, lambda z: z, (scaler.box[0], scaler.box[1]), std, steps, spent)


def image_cell(name: str, protocol: Protocol, method: str) -> tuple[Problem, Mover]:
    """A method trained on labelled images, and its test."""
    seed, n = protocol.seed, protocol.images
    x, labels = rows_of(name, seed)
    y, c, rest, rest_c = x[:n], labels[:n], x[n:], labels[n:]
    judge = images.classifier(rest.flatten(1).numpy(), rest_c.numpy())
    flat, width = rest.flatten(1), float(torch.pdist(rest[:500].flatten(1)).median())
    wrong = float(np.mean(judge.predict(y.flatten(1).numpy()) != c.numpy()))
    known = {"floor": w2(flat[:n], y.flatten(1)), "real": mmd2(flat[:n], y.flatten(1), width), "wrong": wrong}
    given = {"seed": seed, "settings": SETTINGS[name], "labels": rest_c}
    peer = {**given, "settings": replace(SETTINGS[name], lr=PEER_LR)}
    if method == OURS:
        train_ours("vector", None, rest, seconds=0.01, **given)
        model, steps, spent = train_ours("vector", None, rest, seconds=protocol.seconds[name], **given)
        scaler, codes = model.scaler, model.conditions.encode("labels", c, n, model.scaler.shift)
        velocity: Velocity = lambda z, t: -model.value_function.gradient(z, z.new_full((len(z),), t), codes)  # noqa: E731
    else:
        kind = "exact" if method == EXACT else "independent"
        train_flow(kind, None, rest, seconds=0.01, **peer)
        flow = train_flow(kind, None, rest, seconds=protocol.seconds[name], **peer)
        scaler, steps, spent = flow.scaler, flow.steps, flow.seconds
        velocity = lambda z, t: flow.velocity.vector(z, z.new_full((len(z),), t), c)  # noqa: E731
    start = torch.randn(n, scaler.size, generator=generator(seed, name, "start"))
    problem = Problem(start, c, y.flatten(1), flat.amin(), flat.amax(), judge.predict, known, width)
    return problem, Mover(velocity, lambda z: scaler.data(z).flatten(1), scaler.bounds, 1.0, steps, spent)


def score(ends: Tensor, problem: Problem) -> dict[str, float | None]:
    """W2 and overshoot of ends in the units of the data, of images also MMD² and the share of wrong labels; None where no numbers."""
    if not bool(ends.isfinite().all()):
        return {"w2": None, "mmd2": None, "wrong": None if problem.predict is None else 1.0, "overshoot": None}
    over = torch.maximum(problem.low - ends, ends - problem.high) / (problem.high - problem.low)
    wrong, apart = None, None
    if problem.predict is not None and problem.labels is not None:
        wrong, apart = float(np.mean(problem.predict(ends.numpy()) != problem.labels.numpy())), mmd2(ends, problem.y, problem.width)
    return {"w2": w2(ends, problem.y), "mmd2": apart, "wrong": wrong, "overshoot": max(0.0, float(over.max()))}


def measure_cell(protocol: Protocol, name: str, method: str) -> dict[str, list[dict[str, Any]]]:
    """One method on one problem under all perturbations; peers without and with the box."""
    torch.set_num_threads(1)
    problem, mover = (plane_cell if name in PLANES else image_cell)(name, protocol, method)
    figures, boxes = [], {method: mover.box} if method == OURS else {method: None, method + BOXED: mover.box}
    for axis, level, times, s, grid in perturbations(protocol.grids):
        scored: list[tuple[Tensor, dict[str, float | None]]] = []
        for own, box in boxes.items():
            ends = mover.data(walk(mover.velocity, problem.x, times, noise=s * mover.std, box=box, seed=protocol.seed))
            again = scored and ends.allclose(scored[0][0], rtol=1e-4, atol=1e-5)  # no end came near the box
            scored.append((ends, scored[0][1] if again else score(ends, problem)))
            figures.append({"problem": name, "method": own, "axis": axis, "level": level, "grid": grid, **scored[-1][1]})
    return {"figures": figures, "trainings": [{"problem": name, "method": method, "steps": mover.steps, "seconds": mover.seconds}],
            "known": [{"problem": name, "method": method, **problem.known}]}  # fmt: skip


def losses(problem: str) -> tuple[str, ...]:
    """What is compared: W2 in the plane, wrong labels and W2 of images."""
    return ("w2",) if problem in PLANES else ("wrong", "w2")


def curve(found: Mapping[str, Sequence[Mapping[str, Any]]], problem: str, method: str, axis: str, loss: str) -> list[tuple[float, float]]:
    """(level, loss), means over grids; infinite where a sample is no number."""
    own = [f for f in found["figures"] if (f["problem"], f["method"], f["axis"]) == (problem, method, axis)]
    values = {level: [f[loss] for f in own if f["level"] == level] for level in sorted({f["level"] for f in own})}
    return [(level, math.inf if None in at else fmean(at)) for level, at in values.items()]


def area(points: Sequence[tuple[float, float]], *, least: float = -math.inf, log: bool = False) -> float:
    """The mean height of a curve, none of it counted below `least`: trapezoids over the level or its logarithm."""
    x = [math.log(level) if log else level for level, _ in points]
    y = [max(height, least) for _, height in points]
    if len(x) == 1:
        return y[0]
    return sum((b - a) * (u + v) / 2 for (a, b), (u, v) in zip(pairwise(x), pairwise(y), strict=True)) / (x[-1] - x[0])


def areas(found: Mapping[str, Sequence[Mapping[str, Any]]], problem: str, method: str, axis: str, loss: str) -> float | None:
    """The area of a curve, or None if it was not measured."""
    points = curve(found, problem, method, axis, loss)
    least = known(found, problem)["floor"] if loss == "w2" else 0.0
    return area(points, least=least, log=axis == "steps") if points else None


def known(found: Mapping[str, Sequence[Mapping[str, Any]]], problem: str) -> Mapping[str, Any]:
    """The floors of a problem: they are the same for every method."""
    return next(row for row in found["known"] if row["problem"] == problem)


def farthest(found: Mapping[str, Sequence[Mapping[str, Any]]], problem: str, method: str, axis: str) -> float | None:
    """The largest overshoot over an axis; infinite where a sample is no number, None if it was not measured."""
    own = [f["overshoot"] for f in found["figures"] if (f["problem"], f["method"], f["axis"]) == (problem, method, axis)]
    return None if not own else math.inf if None in own else max(own)


def goals(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Goal]:
    """No sample of ours diverges; smaller areas than each peer's, without and with our box."""
    names, checks = problems(found), []
    for problem in names:
        over = [farthest(found, problem, method, "steps") for method in METHODS]
        if over[0] is not None:
            checks.append([problem, *map(_shown, over), "met" if over[0] <= SLACK else "not met"])
    claim = f"No sample diverges at any number of steps: all are within the range of the data and {SLACK:g} of it to either side"
    made = [Goal(claim, ["problem", *(f"overshoot of {method}" for method in METHODS), "verdict"], checks)]
    for peer in (EXACT, INDEPENDENT, EXACT + BOXED, INDEPENDENT + BOXED):
        checks = []
        for problem, axis in product(names, (*AXES, *WARPS)):
            for loss in losses(problem):
                ours, theirs = (areas(found, problem, method, axis, loss) for method in (OURS, peer))
                if ours is not None and theirs is not None:
                    checks.append([problem, axis, TITLES[loss], _shown(ours), _shown(theirs), "met" if ours < theirs else "not met"])
        made.append(Goal(f"Areas under the curves are smaller than those of {peer}",
                         ["problem", "axis", "loss", "area", f"area of {peer}", "verdict"], checks))  # fmt: skip
    return made


TITLES = {"w2": "W2", "mmd2": "MMD²", "wrong": "wrong"}


def problems(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    return [name for name in (*PLANES, DIGITS, MNIST) if any(f["problem"] == name for f in found["figures"])]


def methods(found: Mapping[str, Sequence[Mapping[str, Any]]], problem: str) -> list[str]:
    there = {f["method"] for f in found["figures"] if f["problem"] == problem}
    return [name for method in METHODS for name in (method, method + BOXED) if name in there]


def tables(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """All curves, the overshoots, and the training."""
    made, parts = [], {"steps": ("steps",), "noise": ("noise",), "grids": ("jitter", *WARPS)}
    for problem, (title, axes) in product(problems(found), parts.items()):
        shown = ("w2",) if problem in PLANES else ("w2", "mmd2", "wrong")
        floor = known(found, problem)
        heads, lines = [label(axis, level) for axis in axes for level in AXES.get(axis, (1.0,))], []
        for loss in shown:
            lines.append([TITLES[loss], "real rows", *[floor[{"w2": "floor", "mmd2": "real", "wrong": "wrong"}[loss]]] * len(heads)])
            for method in methods(found, problem):
                heights = [_shown(height) for axis in axes for _, height in curve(found, problem, method, axis, loss)]
                lines.append([TITLES[loss], method, *heights])
        made.append(Table(f"{problem}: {title}", ["", "method", *heads], lines))
    rows: list[list[Cell]] = [[problem, method, *(_shown(farthest(found, problem, method, axis)) for axis in (*AXES, *WARPS))]
                              for problem in problems(found) for method in methods(found, problem)]  # fmt: skip
    runs = [[run["problem"], run["method"], round(run["seconds"], 2), run["steps"]] for run in found["trainings"]]
    return [*made, Table("Largest overshoot", ["problem", "method", *AXES, *WARPS], rows),
            Table("Training", ["problem", "method", "seconds", "steps"], runs)]  # fmt: skip


def label(axis: str, level: float) -> str:
    """A level for people."""
    if axis == "steps":
        return f"{level:g} step{'s' * (level > 1)}"
    return {"noise": f"s = {level:g}", "jitter": f"jitter {level:.0%}"}.get(axis, axis)


def _shown(number: float | None) -> float | str | None:
    return "diverged" if number == math.inf else number


COLOURS = {OURS: SAMPLES, EXACT: DATA, INDEPENDENT: SOURCE}


@styled
def draw(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """One column per problem; loss against steps, noise and grids."""
    names = problems(found)
    figure = Figure(figsize=(3.4 * len(names), 8.4))
    panels = figure.subplots(3, len(names), squeeze=False)
    for (row, axes), (column, problem) in product(enumerate((("steps",), ("noise",), ("jitter", *WARPS))), enumerate(names)):
        panel, loss = panels[row, column], losses(problem)[0]
        for method in methods(found, problem):
            base = method.removesuffix(BOXED)
            style = {"color": COLOURS[base], "linestyle": "-" if base == method else ":", "marker": "o" if base == method else "."}
            place = 0
            for axis in axes:
                points = curve(found, problem, method, axis, loss)
                x = [level for level, _ in points] if row < 2 else [place + i for i in range(len(points))]
                panel.plot(x, [height for _, height in points], label=method if axis == axes[0] else None, **style)
                place += len(points)
        floor = known(found, problem)["floor" if loss == "w2" else "wrong"]
        panel.axhline(floor, color=INK, linewidth=0.9, linestyle="--", label="real rows")
        panel.set_ylim(bottom=0)
        if row == 0:
            panel.set(xscale="log", title=problem)
            panel.set_xticks(AXES["steps"], [f"{level:g}" for level in AXES["steps"]])
        elif row == 2:
            heads = [label(axis, level).removeprefix("jitter ") for axis in axes for level in AXES.get(axis, (1.0,))]
            panel.set_xticks(range(len(heads)), heads)
            panel.axvline(len(AXES["jitter"]) - 0.5, color=FAINT, linewidth=0.8)
        panel.set_xlabel(("steps", f"noise s, {NOISY} steps", f"jitter; warped grids, {JITTERED} steps")[row])
        panel.set_ylabel({"w2": "W2", "wrong": "share of wrong labels"}[loss])
    handles, texts = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=len(texts))
    return figure


def measure(protocol: Protocol) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All figures so far, after every method on every problem. Two run at a time, the longest first, each in a process of one thread."""
    found: dict[str, list[dict[str, Any]]] = {"figures": [], "trainings": [], "known": []}
    order = sorted(protocol.seconds, key=lambda name: -protocol.seconds[name])
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure_cell, protocol, name, method) for name in order for method in METHODS]):
            for name, rows in done.result().items():
                found[name] = sorted(found[name] + rows, key=lambda f: (list(protocol.seconds).index(f["problem"]), f["method"]))
            yield found


def main() -> None:
    options, command = arguments("robustness", "Sampling with few steps, with noise and on uneven grids, beside flow matching.")
    protocol = QUICK if options.quick else FULL
    lengths = {f"training seconds, {name}": seconds for name, seconds in protocol.seconds.items()}
    held = {**lengths, "test points in the plane": protocol.plane, "test images": protocol.images,
            "random grids per jitter": protocol.grids}  # fmt: skip
    record = Record(name="robustness", title="Perturbed sampling", command=command, quick=options.quick, seeds=(protocol.seed,),
                    protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {}
    for found in measure(protocol):
        record = replace(record, figures=found, tables=tables(found), goals=goals(found))
        write(record, options.json)
        print(f"{len(found['trainings'])}/{len(protocol.seconds) * len(METHODS)} methods", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    if not options.quick:
        draw(found).savefig(PICTURE, dpi=150, bbox_inches="tight", pad_inches=0.08)
    show(record)


def _box(rows: Tensor) -> Box:
    """The range of rows, widened by half of it to either side."""
    low, high = rows.amin(0), rows.amax(0)
    return low - (high - low) / 2, high + (high - low) / 2


if __name__ == "__main__":
    main()
