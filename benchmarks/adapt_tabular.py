"""Regression with few labels after a shift of domain, on real tables: `python -m benchmarks.adapt_tabular`.

The regressors of `driftway.adapt` and their peers (`adapt_peers`) on eight tables (`adapt_data`): 400 labelled source rows, 200 rows of
the target domain without labels, 20, 50 or 100 with; ten draws. Every method gets the same rows. Errors are on test rows of the target
domain, over the standard deviation of its targets. Cells are kept as they are done, and an interrupted run goes on; to repeat those of
a method, delete its files in benchmarks/.cache/adapt_tabular.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks import adapt_peers
from benchmarks.adapt_data import NULL, TASKS, TITLES, Split, split
from benchmarks.adapt_fits import Prediction
from benchmarks.adapt_peers import PEERS
from benchmarks.record import RESULTS, Goal, Record, Table, show, write
from driftway.adapt.estimators_base import moments
from driftway.store import write_file

AUTO, TARGET, FIXED, DINO = "AutoTransferRegressor", "TargetOnlyGP", "MeanEmbeddingGP", "DINOInitRegressor"
TRAIN = "DINOTrainRegressor"
OURS = (AUTO, TARGET, "PooledGP", "TransferGPRegressor", "ReweightedGP", FIXED, DINO, TRAIN)
SHARED = {("target", False): TARGET, ("pooled", False): "PooledGP", ("transfer", False): "TransferGPRegressor", ("dino", False): DINO,
          ("dino", True): TRAIN}  # fmt: skip
METHODS = (*OURS, *PEERS)
LABELS, SEEDS = (20, 50, 100), 10
FEW = (20, 50)
CACHE = Path(__file__).parent / ".cache" / "adapt_tabular"
QUICK = (*OURS, "GP, target only", "GP, pooled", "boosting, pooled")
LEVEL, QUANTILE, COVERED = 0.9, 1.6448536269514722, (0.85, 0.95)
NOTES = (
    "MAE in standard deviations of the target domain's targets. A difference is paired: both methods had the same rows in every draw.",
    "The best other method is chosen with the test rows, among all others that had every draw: luck is on its side.",
    "Intervals are of a new observation, normal, at 90 %; NLL is the mean negative log density of it, in standardised units.",
)
Cell = dict[str, Any]
Rows = list[Cell]


@lru_cache(maxsize=1)
def ours(task: str, labels: int, seed: int) -> dict[str, tuple[Prediction, float]]:
    """Our regressors with their defaults on one draw, and the seconds they took.

    `AutoTransferRegressor` has most of the others among its candidates: what they predict and what it takes is read off them.
    """
    part = split(task, labels=labels, seed=seed)
    X = np.concatenate((part.X_source, part.X_target, part.X_unlabelled))
    y = np.concatenate((part.y_source, part.y_target, np.full(len(part.X_unlabelled), np.nan)))
    domain = np.repeat([1, -2, -2], [len(part.y_source), len(part.y_target), len(part.X_unlabelled)])
    found, fitted, rows = {}, {}, torch.as_tensor(part.X_test)
    for name in (AUTO, "ReweightedGP", FIXED):
        began = time.process_time()
        fitted[name] = getattr(import_module("driftway.adapt"), name)(random_state=seed).fit(X, y, sample_domain=domain)
        found[name] = fitted[name].predict(part.X_test, return_std=True), time.process_time() - began
    for own in fitted[AUTO].candidates_:
        if (own.name, own.trained) in SHARED:
            mean, variance, noise = moments(own.predict(rows), own.frame)
            found[SHARED[own.name, own.trained]] = (mean[:, 0].numpy(), (variance + noise).sqrt()[:, 0].numpy()), float("nan")
    return found


def scores(part: Split, found: Prediction) -> Cell:
    """Errors and calibration on the test rows, in standardised units."""
    error = (found[0] - part.y_test) / part.scale
    row = {"mae": float(np.abs(error).mean()), "r2": float(1 - (error**2).mean() * part.scale**2 / part.y_test.var())}
    if found[1] is None:
        return {**row, "nll": None, "coverage": None}
    std = found[1] / part.scale
    nll = float((0.5 * np.log(2 * np.pi * std**2) + 0.5 * (error / std) ** 2).mean())
    return {**row, "nll": nll, "coverage": float((np.abs(error) <= QUANTILE * std).mean())}


def measure(method: str, task: str, labels: int, seed: int) -> Cell:
    """One method on one draw; a method that fails is an outcome."""
    part = split(task, labels=labels, seed=seed)
    began = time.process_time()
    try:
        if method in OURS:
            found, seconds = ours(task, labels, seed)[method]
        else:
            found, seconds = adapt_peers.predict(method, part, seed), None
        if not np.isfinite(found[0]).all():
            raise ValueError("not all predictions are finite")
    except Exception as problem:
        return {"failed": f"{type(problem).__name__}: {problem}"[:200]}
    seconds = time.process_time() - began if seconds is None else None if np.isnan(seconds) else seconds
    return {**scores(part, found), "seconds": seconds}


def there(method: str) -> bool:
    """Whether the method can be run here."""
    return hasattr(import_module("driftway.adapt"), method) if method in OURS else adapt_peers.installed(method)


def file(method: str, task: str) -> Path:
    return CACHE / f"{method.replace(',', '').replace(' ', '-')}--{task}.json"


def cells(jobs: Sequence[tuple[int, int, str, str]], *, cached: bool = True, measured: bool = True) -> Iterator[Cell]:
    """Cells by seed, labels, task and method, from their files where they are there; only those, unless `measured`."""
    loaded = False
    for seed, labels, task, method in jobs:
        path, key = file(method, task), f"{labels}-{seed}"
        known: dict[str, Cell] = json.loads(path.read_text(encoding="utf-8")) if cached and path.is_file() else {}
        if key not in known:
            if not (measured and there(method)):
                continue
            if not loaded:
                adapt_peers.load()
                loaded = True
            known[key] = measure(method, task, labels, seed)
            if cached:
                write_file(path, (json.dumps(known) + "\n").encode())
        yield {"task": task, "labels": labels, "seed": seed, "method": method, **known[key]}


def plan(quick: bool, methods: Sequence[str]) -> list[tuple[int, int, str, str]]:
    """Seed, labels, task, method of each cell, in the order of work: whole draws first."""
    if quick:
        return [(0, 20, task, method) for task in ("computers", "gapminder") for method in QUICK if method in methods]
    return [(seed, labels, task, method) for seed in range(SEEDS) for labels in LABELS for task in TASKS for method in methods]


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[float | None, float | None]:
    """Mean difference over the draws that both have, and its standard error."""
    each = [one[seed] - other[seed] for seed in one if seed in other]
    return mean(each) if each else None, stdev(each) / len(each) ** 0.5 if len(each) > 1 else None


def figures(found: Sequence[Cell]) -> Rows:
    """One row for each task, number of labels and method: means over the draws, and paired differences of the MAE."""
    groups: dict[tuple[str, int, str], Rows] = {}
    for cell in found:
        groups.setdefault((cell["task"], cell["labels"], cell["method"]), []).append(cell)
    maes = {key: {cell["seed"]: cell["mae"] for cell in group if "mae" in cell} for key, group in groups.items()}
    rows: Rows = []
    for (task, labels, method), group in groups.items():
        own = [cell for cell in group if "mae" in cell]
        row: Cell = {"task": task, "labels": labels, "method": method, "draws": len(own), "failed": len(group) - len(own)}
        for name in ("mae", "r2", "nll", "coverage", "seconds"):
            values = [cell[name] for cell in own if cell[name] is not None]
            row[name] = mean(values) if values else None
        row["mae se"] = paired(maes[task, labels, method], dict.fromkeys(maes[task, labels, method], 0.0))[1]
        for title, other in (("auto", AUTO), ("target only", TARGET), ("fixed", FIXED)):
            row[f"less {title}"], row[f"less {title} se"] = paired(maes[task, labels, method], maes.get((task, labels, other), {}))
        rows.append(row)
    return rows


def pick(rows: Rows, **where: Any) -> Rows:
    """Rows with these entries that have a result."""
    return [row for row in rows if row["draws"] and all(row[key] == value for key, value in where.items())]


def average(values: Sequence[float | None]) -> float | None:
    """The mean of what is there."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def tables(rows: Rows) -> list[Table]:
    """The MAE at each number of labels, calibration, and time."""
    tasks = [task for task in TASKS if pick(rows, task=task)]
    counts = [labels for labels in LABELS if pick(rows, labels=labels)]
    methods = [method for method in METHODS if pick(rows, method=method)]
    most = max(row["draws"] for row in rows)
    fewest = {method: min(row["draws"] for row in rows if row["method"] == method) for method in methods}
    shown = {method: method if fewest[method] == most else f"{method} ({fewest[method]} of {most} draws)" for method in methods}
    found: list[Table] = []
    for labels in counts:
        mae = {(row["method"], row["task"]): row["mae"] for row in pick(rows, labels=labels)}
        lines: list[list[Any]] = [[shown[method], *(mae.get((method, task)) for task in tasks)] for method in methods]
        lines = [[*line, average(line[1:])] for line in lines]
        found.append(Table(f"MAE with {labels} labels", ["method", *tasks, "mean"],
                           sorted(lines, key=lambda line: line[-1] if None not in line else float("inf")),
                           "; ".join(f"{task}: {TITLES[task]}" for task in tasks) + "."))  # fmt: skip
    calibrated = []
    for method in methods:
        own = [row for row in pick(rows, method=method) if row["coverage"] is not None]
        if own:
            at = [average([row[name] for row in own if row["labels"] == labels]) for name in ("nll", "coverage") for labels in counts]
            calibrated.append([shown[method], *at, *(edge(row["coverage"] for row in own) for edge in (min, max))])
    found.append(Table("Uncertainty", ["method", *(f"{name}, {labels} labels" for name in ("NLL", "coverage") for labels in counts),
                                       "lowest coverage", "highest"], calibrated,
                       "Means over the tables; lowest and highest over tables and numbers of labels. 90 % would be right."))  # fmt: skip
    against = [[TITLES[row["task"]], row["labels"], row["mae"], row["less fixed"], row["less fixed se"]]
               for row in pick(rows, method=DINO) if row["less fixed"] is not None]  # fmt: skip
    found.append(Table(f"{DINO} against {FIXED}", ["table", "labels", "MAE", "difference", "standard error"], against,
                       "What weights of base samples by row add to equal ones."))  # fmt: skip
    seconds = [[shown[method], *(average([row["seconds"] for row in pick(rows, method=method, labels=labels)]) for labels in counts)]
               for method in methods]  # fmt: skip
    return [*found, Table("Processor seconds", ["method", *(f"{labels} labels" for labels in counts)], seconds,
                          "Fit and prediction, one thread; means over the tables and draws.")]  # fmt: skip


def compared(rows: Rows, method: str, title: str) -> list[list[Any]]:
    """A check for each table and number of labels: not worse than another of ours by more than a standard error."""
    checks = []
    for row in pick(rows, method=method):
        if row[f"less {title}"] is not None:
            worse, se = row[f"less {title}"], row[f"less {title} se"]
            checks.append([TITLES[row["task"]], row["labels"], row["mae"], worse, se, verdict(worse <= (se or 0.0))])
    return checks


def verdict(met: bool) -> str:
    return "met" if met else "not met"


def goals(rows: Rows) -> list[Goal]:
    """Best or tied, never worse than without a source, calibrated; DINO against the embedding that it starts from."""
    best = []
    for row in pick(rows, method=AUTO):
        others = [other for other in pick(rows, task=row["task"], labels=row["labels"])
                  if other["method"] != AUTO and other["draws"] == row["draws"]]  # fmt: skip
        if others and row["labels"] in FEW and row["task"] not in NULL:
            first = min(others, key=lambda other: other["mae"])
            worse, se = None if first["less auto"] is None else -first["less auto"], first["less auto se"]
            met = worse is not None and worse <= (se or 0.0)
            best.append([TITLES[row["task"]], row["labels"], row["mae"], first["method"], first["mae"], worse, se, verdict(met)])
    beaten = [[TITLES[row["task"]], row["labels"], row["mae"], row["less fixed"], row["less fixed se"],
               verdict(row["less fixed"] < -(row["less fixed se"] or 0.0))]
              for row in pick(rows, method=TRAIN)
              if row["labels"] in FEW and row["task"] not in NULL and row["less fixed"] is not None]  # fmt: skip
    low, high = COVERED
    covered = [[TITLES[row["task"]], row["labels"], row["coverage"], verdict(low <= row["coverage"] <= high)]
               for row in pick(rows, method=AUTO) if row["coverage"] is not None]  # fmt: skip
    columns = ["table", "labels", "MAE", "difference", "standard error", "verdict"]
    return [
        Goal(f"{AUTO} is the best of all methods, or within one standard error of it, on every shifted table with 20 and 50 labels",
             ["table", "labels", "MAE", "best other", "its MAE", "difference", "standard error", "verdict"], best),
        Goal(f"{AUTO} is nowhere worse than {TARGET} by more than one standard error", columns, compared(rows, AUTO, "target only")),
        Goal(f"90 % intervals of {AUTO} hold 85 to 95 % of the test rows", ["table", "labels", "coverage", "verdict"], covered),
        Goal(f"{TRAIN} is better than {FIXED} by more than one standard error, with 20 and 50 labels", columns, beaten),
    ]  # fmt: skip


def missing(found: Sequence[Cell], methods: Sequence[str]) -> tuple[str, ...]:
    """Sentences about methods that were not there, and cells that failed."""
    seen = {cell["method"] for cell in found}
    absent = [method for method in methods if method not in seen]
    failed = {cell["method"]: cell["failed"] for cell in found if "failed" in cell}
    return (*([f"Not installed, and left out: {'; '.join(absent)}."] if absent else []),
            *(f"{method} failed on {sum(cell['method'] == method and 'failed' in cell for cell in found)} draws: {why}"
              for method, why in failed.items()))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapt_tabular", description="Regression with few labels.")
    parser.add_argument("--quick", action="store_true", help="two tables, one draw, few peers; less than 50 seconds on two cores")
    parser.add_argument("--json", type=Path, help="result file; the full run's default is benchmarks/results/adapt_tabular.json")
    parser.add_argument("--workers", type=int, default=1, help="processes that work through the tables, with one thread each")
    parser.add_argument("--methods", default="", help="only methods whose names begin so; several with ; between. Nothing is written")
    parser.add_argument("--cached", action="store_true", help="only what earlier runs, perhaps of other environments, have left")
    parser.add_argument("--share", help=argparse.SUPPRESS)  # i/k: of the i-th of k workers
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore")
    starts = tuple(start.strip() for start in options.methods.split(";"))
    jobs = plan(options.quick, [method for method in METHODS if method.startswith(starts)])
    if options.share:
        own, of = map(int, options.share.split("/"))
        for _ in cells([job for job in jobs if TASKS.index(job[2]) % of == own]):
            pass
        return
    if options.workers > 1 and not options.quick:
        shares = [[sys.executable, "-m", "benchmarks.adapt_tabular", "--share", f"{i}/{options.workers}", "--methods", options.methods]
                  for i in range(options.workers)]  # fmt: skip
        for worker in [subprocess.Popen(share) for share in shares]:
            worker.wait()
    path = options.json or (None if options.quick or options.methods else RESULTS / "adapt_tabular.json")
    held = {"source rows": 400, "unlabelled rows": 200, "test rows": "1,000, or what the table has left", "interval": LEVEL,
            "regressors": "defaults", "peers": "as in benchmarks/adapt_peers.py"}  # fmt: skip
    record = Record(name="adapt_tabular", title="Regression with few labels after a shift, on real tables",
                    command="python -m benchmarks.adapt_tabular" + " --quick" * options.quick, quick=options.quick,
                    seeds=tuple(range(1 if options.quick else SEEDS)), protocol=held, notes=NOTES, figures={}, tables=[], goals=[],
                    complete=False)  # fmt: skip
    done = list(cells(jobs, cached=not options.quick, measured=not options.cached))
    rows = figures(done)
    apart = ("Cells were read from earlier runs; those of the package adapt are of an environment with TensorFlow.",) * options.cached
    record = replace(record, notes=(*NOTES, *apart, *missing(done, list(dict.fromkeys(job[3] for job in jobs)))), complete=True,
                     figures={"methods": rows}, tables=tables(rows), goals=goals(rows))  # fmt: skip
    write(record, path)
    show(record)


if __name__ == "__main__":
    main()
