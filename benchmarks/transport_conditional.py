"""Samples of a given class, at equal training seconds, beside flow matching: `python -m benchmarks.transport_conditional`.

A method is asked for as many samples as there are test rows, each with the label of a test row. With k a mean of Gaussian kernels,

    accuracy   share of samples that a support vector machine, trained on real training rows alone, gives the label asked for
    W2         between samples x and test rows y, exact
    MMD^2    = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)       pairs of different rows: no bias, and below 0 by chance
    k(x, y)  = mean over s of exp(-|x - y|^2 / 2 s h^2)             s in 1/4, 1/2, 1, 2, 4; h the median distance of real training rows

The floors of W2 and MMD^2 are what real training rows with the labels of the test rows score: mean, and mean + 2 std, over ten draws.

Source: Gretton et al. (2012), JMLR 13, equation 3, for the estimator of MMD^2.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from math import inf, isfinite
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.conditional_peers import METHODS, NAMES, OURS, TASKS, train
from benchmarks.images import Classifier, classifier
from benchmarks.record import Goal, Record, Table, arguments, show, write
from driftway.report.style import styled
from driftway.report.view import sheet
from driftway.transport import TransportModel, path_energy, w2
from driftway.transport.stream import generator

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "conditional.png"
GUIDANCE, STEPS, FEW, MANY = (1.0, 2.0), (1, 2, 4, 20), 2, 20
FACTORS, DRAWS, SLACK, JOBS = (0.25, 0.5, 1.0, 2.0, 4.0), 10, 0.005, 2
METRICS = {"accuracy": "class accuracy", "w2": "W2", "mmd": "1000 MMD²", "energy": "path energy"}
WORST = {"accuracy": 0.0, "w2": inf, "mmd": inf, "energy": inf}
Rows = Sequence[Mapping[str, Any]]
Protocol = Mapping[str, tuple[float, tuple[int, ...]]]  # task -> training seconds per method, seeds
FULL: Protocol = {"MNIST, U-Net": (200.0, (0,)), "MNIST, perceptron": (200.0, (0,)), "digits, perceptron": (40.0, (0, 1, 2))}
QUICK: Protocol = {"digits, perceptron": (4.0, (0,))}
NOTES = (
    "All methods of a task have the same network (a peer's velocity is the U of our value), data scale, start points, sampler (Euler "
    "steps that aim into the box of the data), schedule and weight average. Batch and step size are each method's own.",
    "Training seconds are processor seconds of one thread, and count set-up and data. Steps done in them differ: see the table.",
    "W2 below its floor comes from samples that are blurred or too much alike, not from better ones: read it beside MMD². A class accuracy "
    "above that of real test rows comes from samples more typical than real ones.",
    "Floors are a mean over draws of real training rows, with the labels of the test rows as samples have them, so that of MMD² is a "
    "little below 0. A figure up to two standard deviations above the mean is within the floor.",
)


@dataclass(frozen=True)
class Reference:
    """Real rows of a task and a seed: to train on, to test on; the classifier, the bandwidth h, and what real rows score."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    judge: Classifier
    h: float
    known: dict[str, float]


@cache
def refer(name: str, seed: int) -> Reference:
    """Split, train the classifier on the training rows, and score real training rows as if they were samples."""
    rows, labels = TASKS[name].load()
    held, own = TASKS[name].held, generator("floor", seed)
    test, train = torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))).split([held, len(rows) - held])  # as `classifier`
    judge = classifier(rows.flatten(1).numpy(), labels.numpy(), share=held / len(rows), seed=seed)
    y, c, counts = rows[train], labels[train], labels[test].bincount()
    h = float(torch.pdist(y[:1000].flatten(1).double()).median())
    known: dict[str, float] = {"accuracy": judge.accuracy}
    found: dict[str, list[float]] = {"w2": [], "mmd": []}
    for _ in range(DRAWS):
        order = torch.randperm(len(y), generator=own)
        x = y[torch.cat([order[c[order] == label][:count] for label, count in enumerate(counts)])]
        found["w2"].append(w2(x, rows[test]))
        found["mmd"].append(1000 * squared_mmd(x, rows[test], h))
    for metric, values in found.items():
        known |= {metric: fmean(values), f"{metric}_top": fmean(values) + 2 * stdev(values)}
    return Reference(y, c, rows[test], labels[test], judge, h, known)


def squared_mmd(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], h: float) -> float:
    """The estimator of MMD^2 at the top of this file."""
    def total(a: Tensor, b: Tensor) -> float:
        squares = torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist").square() / (2 * h**2)
        return sum(float((squares / s).neg().exp().sum()) for s in FACTORS) / len(FACTORS)

    x, y = x.flatten(1).double(), y.flatten(1).double()
    n, m = len(x), len(y)
    return (total(x, x) - n) / (n * (n - 1)) + (total(y, y) - m) / (m * (m - 1)) - 2 * total(x, y) / (n * m)


def astray(x: Float[Tensor, "n *event"], rows: Float[Tensor, "m *event"]) -> float:
    """The share of samples that are not finite, or outside the range of the rows by more than half its width."""
    low, high = float(rows.min()), float(rows.max())
    inside = (x >= low - (high - low) / 2) & (x <= high + (high - low) / 2)
    return float((~inside.flatten(1).all(1)).double().mean())


def score(model: TransportModel, real: Reference, *, steps: int, guidance: float, seed: int) -> dict[str, float]:
    """The metrics of one way to sample, processor seconds for 1000 samples included; the worst ones if a sample is not finite."""
    begun = time.process_time()
    path = model.path(len(real.test), steps=steps, label=real.test_labels, guidance=guidance, seed=seed)
    spent, x = time.process_time() - begun, path.states[-1]
    found = {"seconds": 1000 * spent / len(x), "astray": astray(x, real.train)}
    if not bool(x.isfinite().all()):
        return {**found, **WORST}
    right = real.judge.predict(x.flatten(1).numpy()) == real.test_labels.numpy()
    return {**found, "accuracy": float(right.mean()), "w2": w2(x, real.test), "mmd": 1000 * squared_mmd(x, real.test, real.h),
            "energy": path_energy(path)}  # fmt: skip


def measure_cell(name: str, method: str, seconds: float, seed: int) -> dict[str, list[dict[str, Any]]]:
    """One method on one task with one seed: figures, the training, what is known of the real rows, and a few samples."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="target: .* columns are constant")
    real, key = refer(name, seed), {"task": name, "method": method, "seed": seed}
    train(TASKS[name], method, real.train, real.labels, seconds=0.01, seed=0)  # what PyTorch loads at first use is not on the clock
    trained = train(TASKS[name], method, real.train, real.labels, seconds=seconds, seed=seed)
    model, classes = trained.model, real.labels.unique()
    ways = [{"guidance": guidance, "steps": steps} for guidance in GUIDANCE for steps in STEPS]
    samples = [{**key, **way, "rows": model.sample(len(classes), label=classes, **way, seed=seed)} for way in ways]
    first = torch.stack([real.test[real.test_labels == label][0] for label in classes])
    size = sum(p.numel() for n, p in model.value_function.named_parameters() if not n.startswith(("g.", "b.")))
    return {"figures": [{**key, **way, **score(model, real, **way, seed=seed)} for way in ways],
            "trainings": [{**key, "steps": trained.steps, "seconds": trained.seconds, "parameters": size}],
            "real": [{"task": name, "seed": seed, **real.known}],
            "samples": [*samples, {**key, "method": "real", "guidance": 0.0, "steps": 0, "rows": first}]}  # fmt: skip


def measure(protocol: Protocol) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All that is known so far, after every training. Two of them run at a time, each in a process of one thread."""
    found: dict[str, list[dict[str, Any]]] = {"figures": [], "trainings": [], "real": [], "samples": []}
    cells = [(task, method, seconds, seed) for task, (seconds, seeds) in protocol.items() for seed in seeds for method in METHODS]
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure_cell, *cell) for cell in cells]):
            for name, rows in done.result().items():
                found[name].extend(row for row in rows if name != "real" or row not in found[name])
            yield found


def summarise(figures: Rows) -> list[dict[str, Any]]:
    """One row per task, method, guidance and steps: means and standard deviations over seeds, and the largest share astray."""
    rows, names = [], ("task", "method", "guidance", "steps")
    for key in dict.fromkeys(tuple(f[name] for name in names) for f in figures):
        own = [f for f in figures if tuple(f[name] for name in names) == key]
        row: dict[str, Any] = dict(zip(names, key, strict=True)) | {"seeds": len(own), "astray": max(f["astray"] for f in own)}
        for name in (*METRICS, "seconds"):
            values = [f[name] for f in own]
            row[name] = fmean(values)
            row[f"{name}_std"] = stdev(values) if len(own) > 1 and all(map(isfinite, values)) else None
        rows.append(row)
    return rows


def few_steps_goal(summary: Rows, floors: Mapping[str, Mapping[str, float]], peer: str, distances: Sequence[str] = ("w2", "mmd")) -> Goal:
    """Ours at two steps against a peer at twenty, at equal guidance, by class accuracy and by the named distances."""
    checks, at = [], {(row["task"], row["method"], row["guidance"], row["steps"]): row for row in summary}
    for task, guidance in ((task, guidance) for task in floors for guidance in GUIDANCE):
        ours, other, floor = at.get((task, OURS, guidance, FEW)), at.get((task, peer, guidance, MANY)), floors[task]
        if ours is None or other is None:
            continue
        close = all(isfinite(ours[name]) and ours[name] <= max(other[name], floor[f"{name}_top"]) for name in distances)
        met = close and ours["accuracy"] >= other["accuracy"] - SLACK
        pairs = [f"{ours[name]:.3f} / {other[name]:.3f}" for name in ("accuracy", *distances)]
        checks.append([task, guidance, *pairs, *(floor[f"{name}_top"] for name in distances), "met" if met else "not met"])
    columns = ["task", "guidance", *(f"{METRICS[name]}, ours / peer" for name in ("accuracy", *distances)),
               *(f"{METRICS[name]} within the floor up to" for name in distances), "verdict"]  # fmt: skip
    shown = " and ".join({"w2": "W2", "mmd": "MMD²"}[name] for name in distances)
    return Goal(f"{FEW} steps of ours are at least as good as {MANY} steps of {peer}: class accuracy lower by at most {SLACK}, {shown} "
                "no larger or within the floor", columns, checks)  # fmt: skip


def no_divergence_goal(summary: Rows) -> Goal:
    """Not one sample of ours astray, at any number of steps and any guidance."""
    checks = [[row["task"], row["guidance"], row["steps"], row["astray"], "met" if row["astray"] == 0 else "not met"]
              for row in summary if row["method"] == OURS]  # fmt: skip
    return Goal("No sample of ours diverges at any number of steps: all are finite, and outside the range of the data by at most half its "
                "width", ["task", "guidance", "steps", "share of samples astray", "verdict"], checks)  # fmt: skip


def tables(summary: Rows, floors: Mapping[str, Mapping[str, float]], trainings: Rows) -> list[Table]:
    """One table per task and metric, steps across, and what training and sampling cost."""
    made, costs, at = [], [], {(row["task"], row["method"], row["guidance"], row["steps"]): row for row in summary}
    for task, (metric, title) in ((task, both) for task in floors for both in METRICS.items()):
        floor = floors[task]
        top = f", within the floor up to {floor[metric + '_top']:.3f}" if f"{metric}_top" in floor else ""
        rows = [[f"{method}, guidance {w:g}", *(_spread(at[task, method, w, steps], metric) for steps in STEPS)]
                for method in METHODS for w in GUIDANCE if (task, method, w, STEPS[0]) in at]  # fmt: skip
        note = f"Real rows: {floor[metric]:.3f}{top}." if metric in floor else ""
        made.append(Table(f"{task}: {title}", ["method", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS)], rows, note))
    for task, method in dict.fromkeys((run["task"], run["method"]) for run in trainings):
        runs = [run for run in trainings if (run["task"], run["method"]) == (task, method)]
        seconds, steps = fmean(run["seconds"] for run in runs), fmean(run["steps"] for run in runs)
        sampling = [1000 * at[task, method, 1.0, count]["seconds"] for count in (FEW, MANY)]
        sampling.append(max(row["astray"] for row in summary if (row["task"], row["method"]) == (task, method)))
        costs.append([task, method, round(seconds, 2), round(steps), 1000 * seconds / max(steps, 1), runs[0]["parameters"], *sampling])
    columns = ["task", "method", "seconds", "steps", "ms per step", "parameters of the network",
               *(f"ms for 1000 samples, {count} steps" for count in (FEW, MANY)), "largest share astray"]  # fmt: skip
    return [*made, Table("Training and sampling", columns, costs, "Means over seeds; sampling without guidance, which doubles it.")]


def evaluate(found: Mapping[str, Rows]) -> dict[str, Any]:
    """Summary, tables and goals so far, as fields of a record."""
    rank = {name: place for place, name in enumerate((*TASKS, *METHODS))}
    figures = sorted(found["figures"], key=lambda f: (rank[f["task"]], rank[f["method"]], f["guidance"], f["steps"], f["seed"]))
    trainings = sorted(found["trainings"], key=lambda f: (rank[f["task"]], rank[f["method"]], f["seed"]))
    real = [(task, [row for row in found["real"] if row["task"] == task]) for task in TASKS]
    floors = {task: {name: fmean(row[name] for row in rows) for name in rows[0].keys() - {"task", "seed"}} for task, rows in real if rows}
    summary = summarise(figures)
    return {"figures": {"single": figures, "trainings": trainings, "real": found["real"], "summary": summary},
            "tables": tables(summary, floors, trainings),
            "goals": [*(few_steps_goal(summary, floors, peer, (name,)) for peer in NAMES for name in ("w2", "mmd")),
                      no_divergence_goal(summary)]}  # fmt: skip


@styled
def draw(samples: Rows, path: Path, seed: int = 0) -> None:
    """The first sample of each class, not chosen, as darkness: ours at few steps, the peers at few and many; one panel per task."""
    shown = [("real", 0.0, 0), *((OURS, w, FEW) for w in GUIDANCE), *((peer, 1.0, steps) for peer in NAMES for steps in (FEW, MANY))]
    names = ["real test rows", *(f"{method}, {steps} steps" + f", guidance {w:g}" * (w > 1) for method, w, steps in shown[1:])]
    found = {(s["task"], s["method"], s["guidance"], s["steps"]): s["rows"] for s in samples if s["seed"] == seed}
    tasks = [task for task in TASKS if all((task, *way) in found for way in shown)]
    figure = Figure(figsize=(1.8 + 3.6 * len(tasks), 3.6))
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        rows = torch.cat([found[task, *way] for way in shown])
        tiles = sheet(rows, (rows.shape[1], rows.shape[2]), len(rows) // len(shown))
        axes.imshow(tiles, cmap="gray_r", vmin=0, vmax=1, extent=(0, 1, len(shown), 0), aspect=tiles.shape[0] / tiles.shape[1] / len(shown))
        axes.set_title(task)
        axes.set(xticks=[], yticks=[row + 0.5 for row in range(len(shown))], yticklabels=names if task == tasks[0] else [])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    figure.savefig(path)


def main() -> None:
    options, command = arguments("transport_conditional", "Samples of a given class beside flow matching.")
    protocol = QUICK if options.quick else FULL
    held = {f"on {task}": f"{seconds:g} training seconds per method, {len(seeds)} seed{'s' * (len(seeds) > 1)}; {TASKS[task].about}"
            for task, (seconds, seeds) in protocol.items()}  # fmt: skip
    record = Record(name="transport_conditional", title="Samples of a given class", command=command, quick=options.quick,
                    seeds=sorted({seed for _, seeds in protocol.values() for seed in seeds}), protocol=held, notes=NOTES,
                    figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    total, samples = sum(len(seeds) * len(METHODS) for _, seeds in protocol.values()), []
    for found in measure(protocol):
        record, samples, last = replace(record, **evaluate(found)), found["samples"], found["trainings"][-1]
        write(record, options.json)
        print(f"{len(found['trainings'])}/{total}: {', '.join(map(str, last.values()))}", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    if not options.quick:
        draw(samples, PICTURE)
    show(record)


def _spread(row: Mapping[str, Any], name: str) -> str:
    if not isfinite(row[name]):
        return "diverged"
    return f"{row[name]:.3f}" if row[f"{name}_std"] is None else f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}"


if __name__ == "__main__":
    main()
