"""Does it pay to map the source's inputs onto the target's first? On real tables: `python -m benchmarks.adapt_transported`.

The tables, rows and draws of `adapt_tabular`, with 0, 20 or 50 labels of the target. A source is mapped by the mean and deviation of each
column (moments), by a learned transport, or by a peer's: POT's exact coupling (EMD, which skada's OT mapping calls too) and its linear
map between normal laws. All maps take the same rows, and the same regressor is fitted to what they give. Maps of ours leave columns of 0
and 1 alone, those of POT do not. What takes long (several regressors at once, and a choice of the map by cross-validation) has fewer draws.
Cells are kept as they are done, and an interrupted run goes on; to repeat them, delete benchmarks/.cache/adapt_transported.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ot
import torch
from threadpoolctl import threadpool_limits

from benchmarks.adapt_data import NULL, TASKS, TITLES, Split, split
from benchmarks.adapt_fits import Prediction
from benchmarks.adapt_tabular import average, paired, scores, verdict
from benchmarks.record import Goal, Record, Table, arguments, show, write
from driftway.adapt import AutoTransferRegressor, DINOInitRegressor, PooledGP, TargetOnlyGP
from driftway.align import TransportedRegressor
from driftway.store import write_file

LABELS, SEEDS, SLOW_SEEDS = (0, 20, 50), 5, 1
SHIFTED = tuple(task for task in TASKS if task not in NULL)
CACHE = Path(__file__).parent / ".cache" / "adapt_transported"
POOLED, AUTO = "PooledGP", "AutoTransferRegressor"
MOMENTS, VALUE, CHOSEN, EMD, LINEAR = ("after moments", "after transport", "map chosen by labels", "after POT's EMD",
                                       "after POT's linear map")  # fmt: skip
FAST = ("TargetOnlyGP", POOLED, *(f"{POOLED}, {way}" for way in (MOMENTS, VALUE, EMD, LINEAR)), "DINOInitRegressor")
SLOW = (f"{POOLED}, {CHOSEN}", AUTO, f"{AUTO}, {MOMENTS}", f"{AUTO}, {VALUE}")
METHODS = (*FAST, *SLOW)
NOTES = (
    "MAE in standard deviations of the target domain's targets. A difference is paired: both methods had the same rows in every draw.",
    "A source whose inputs pass the test of one law is not mapped by our maps: the row is then that of the regressor without a map.",
)
Cell = dict[str, Any]


def table(part: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rows, their targets and codes."""
    X = np.concatenate((part.X_source, part.X_target, part.X_unlabelled))
    y = np.concatenate((part.y_source, part.y_target, np.full(len(part.X_unlabelled), np.nan)))
    return X, y, np.repeat([1, -2], [len(part.y_source), len(X) - len(part.y_source)])


@lru_cache(maxsize=2)
def mapping(task: str, labels: int, seed: int, how: str) -> tuple[np.ndarray, Cell, float]:
    """The source's rows, mapped; what is known of the map; and the seconds it took."""
    part, began = split(task, labels=labels, seed=seed), time.process_time()
    X, y, domain = table(part)
    own = TransportedRegressor(_Nothing(), how=how, random_state=seed).fit(X, y, sample_domain=domain)
    facts: Cell = {"p": own.tests_[1].p_value, "mmd2": own.tests_[1].statistic}
    moved = part.X_source
    if own.maps_:
        found = own.maps_[1]
        moved = found(torch.from_numpy(part.X_source)).numpy()
        facts |= {"p after": found.after.p_value, "mmd2 after": found.after.statistic, "gap": found.certificate.gap,
                  "cost": found.certificate.upper, "columns": len(found.columns)}  # fmt: skip
    return moved, facts, time.process_time() - began


class _Nothing(PooledGP):
    """Fits nothing: for the maps alone."""

    def fit(self, X: Any, y: Any, sample_domain: Any = None, sample_weight: Any = None) -> Any:
        return self


def coupled(kind: Callable[[], Any], part: Split) -> np.ndarray:
    """The source's rows, mapped by a class of POT on columns standardised by both domains."""
    X, _, domain = table(part)
    middle, scale = X.mean(0), X.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    Z = (X - middle) / scale
    mapped = kind().fit(Xs=Z[domain > 0], Xt=Z[domain < 0]).transform(Xs=Z[domain > 0]) * scale + middle
    constant = X[domain < 0].std(0) == 0
    mapped[:, constant] = X[domain < 0][0, constant]  # rounding about a constant would be a scale for what comes after
    return mapped


POT: dict[str, Callable[[], Any]] = {EMD: ot.da.EMDTransport, LINEAR: lambda: ot.da.LinearTransport(reg=1e-3)}
REGRESSORS: dict[str, Any] = {kind.__name__: kind for kind in (TargetOnlyGP, PooledGP, AutoTransferRegressor, DINOInitRegressor)}


def predict(method: str, task: str, labels: int, seed: int) -> tuple[Prediction, float, Cell]:
    """Mean and standard deviation of the test rows, the seconds of the map, and what is known of it."""
    part = split(task, labels=labels, seed=seed)
    X, y, domain = table(part)
    name, _, way = method.partition(", ")
    model, spent, facts = REGRESSORS[name](random_state=seed), 0.0, {}
    if way == CHOSEN:
        model = TransportedRegressor(model, how="auto", random_state=seed)
    elif way in POT:
        X = np.concatenate((coupled(POT[way], part), X[domain < 0]))
    elif way:
        moved, facts, spent = mapping(task, labels, seed, "moments" if way == MOMENTS else "value")
        X = np.concatenate((moved, X[domain < 0]))
    model.fit(X, y, sample_domain=domain)
    if way == CHOSEN:
        facts = {"chosen": model.how_}
    return model.predict(part.X_test, return_std=True), spent, facts


def measure(method: str, task: str, labels: int, seed: int) -> Cell:
    """One method on one draw; a method that fails is an outcome."""
    mapping.cache_clear() if method == FAST[0] else None
    known = mapping.cache_info().hits
    began = time.process_time()
    try:
        found, spent, facts = predict(method, task, labels, seed)
        if not np.isfinite(found[0]).all():
            raise ValueError("not all predictions are finite")
    except Exception as problem:
        return {"failed": f"{type(problem).__name__}: {problem}"[:200]}
    seconds = time.process_time() - began + spent * (mapping.cache_info().hits > known)
    return {**scores(split(task, labels=labels, seed=seed), found), "seconds": seconds, **facts}


def plan(quick: bool) -> list[tuple[int, int, str, str]]:
    """Seed, labels, task and method of each cell, in the order of work. Without labels nothing is fitted to them, nor chosen by them."""
    if quick:
        return [(0, labels, "computers", method) for labels in (0, 20) for method in FAST if labels or method != FAST[0]]
    return [(seed, labels, task, method) for methods, seeds in ((FAST, SEEDS), (SLOW, SLOW_SEEDS)) for seed in range(seeds)
            for labels in LABELS for task in TASKS for method in methods
            if labels or method not in (FAST[0], f"{POOLED}, {CHOSEN}")]  # fmt: skip


def cells(jobs: Sequence[tuple[int, int, str, str]], *, cached: bool = True) -> Iterator[Cell]:
    """Cells by seed, labels, task and method, from their files where they are there."""
    for seed, labels, task, method in jobs:
        path, key = CACHE / f"{task}.json", f"{method}--{labels}-{seed}"
        known: dict[str, Cell] = json.loads(path.read_text(encoding="utf-8")) if cached and path.is_file() else {}
        if key not in known:
            known[key] = measure(method, task, labels, seed)
            if cached:
                write_file(path, (json.dumps(known) + "\n").encode())
        yield {"task": task, "labels": labels, "seed": seed, "method": method, **known[key]}


def plain(method: str) -> str:
    """The same regressor without a map."""
    return method.partition(", ")[0]


def figures(found: Sequence[Cell]) -> list[Cell]:
    """One row for each task, number of labels and method: means over the draws, and paired differences from the same without a map."""
    groups: dict[tuple[str, int, str], list[Cell]] = {}
    for own in found:
        groups.setdefault((own["task"], own["labels"], own["method"]), []).append(own)
    maes = {key: {own["seed"]: own["mae"] for own in group if "mae" in own} for key, group in groups.items()}
    rows = []
    for (task, labels, method), group in groups.items():
        done = [own for own in group if "mae" in own]
        row: Cell = {"task": task, "labels": labels, "method": method, "draws": len(done), "failed": len(group) - len(done)}
        names = ("mae", "r2", "nll", "coverage", "seconds", "p", "mmd2", "p after", "mmd2 after", "gap", "cost")
        row |= {name: average([own.get(name) for own in done]) for name in names}
        row["chosen"] = ", ".join(own["chosen"] for own in done if "chosen" in own) or None
        row["less plain"], row["less plain se"] = paired(maes[task, labels, method], maes.get((task, labels, plain(method)), {}))
        rows.append(row)
    return rows


def tables(rows: Sequence[Cell]) -> list[Table]:
    """The MAE at each number of labels, what a map changes, and how far the maps bring the inputs."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    at = {(row["method"], row["labels"], row["task"]): row for row in rows}
    results = []
    for labels in LABELS:
        lines: list[list[Any]] = [[method, *(at.get((method, labels, task), {}).get("mae") for task in tasks)] for method in METHODS]
        lines = [[*line, average(line[1:]), max(at[key]["draws"] for key in at if key[:2] == (line[0], labels))]
                 for line in lines if average(line[1:]) is not None]  # fmt: skip
        if lines:
            results.append(Table(f"MAE with {labels} labels", ["method", *tasks, "mean", "draws"], lines,
                                 "; ".join(f"{task}: {TITLES[task]}" for task in tasks) + "."))  # fmt: skip
    effects = []
    for method in METHODS:
        for labels in LABELS if plain(method) != method else ():
            own = [at[method, labels, task] for task in SHIFTED if (method, labels, task) in at]
            known = [row["less plain"] for row in own if row["less plain"] is not None]
            if known:
                effects.append([method, labels, average(known), sum(each < 0 for each in known), len(known), average(
                    [row["coverage"] for row in own])])  # fmt: skip
    results.append(Table("What a map changes on the shifted tables", ["method", "labels", "MAE less without map", "tables better", "of",
                                                                      "coverage"], effects))  # fmt: skip
    maps = [[TITLES[row["task"]], row["method"].partition(", ")[2], row["labels"], row["mmd2"], row["p"], row["mmd2 after"], row["gap"]]
            for row in rows if row["method"] in FAST and row["p"] is not None and row["labels"] in (0, 50)]  # fmt: skip
    results.append(Table("The inputs", ["table", "map", "labels", "MMD^2 before", "p-value", "MMD^2 after", "gap"], maps,
                         "Of the columns that are mapped. Gap: how far the map's cost may be from the least, as a fraction. A dash: the "
                         "test did not reject, so nothing was mapped."))  # fmt: skip
    seconds = [[method, *(average([row["seconds"] for row in rows if (row["method"], row["labels"]) == (method, labels)])
                          for labels in LABELS)] for method in METHODS if any(row["method"] == method for row in rows)]  # fmt: skip
    return [*results, Table("Processor seconds", ["method", *(f"{labels} labels" for labels in LABELS)], seconds,
                            "Map, fit and prediction.")]  # fmt: skip


def goals(rows: Sequence[Cell]) -> list[Goal]:
    """Whether maps pay; whether labels choose well; whether nothing is lost where there is no shift."""
    at = {(row["method"], row["labels"], row["task"]): row for row in rows}
    columns = ["table", "labels", "MAE", "without map", "difference", "verdict"]

    def checked(method: str, tasks: Sequence[str], labels: Sequence[int], slack: float) -> list[list[Any]]:
        found = []
        for count in labels:
            for task in tasks:
                own, other = at.get((method, count, task), {}), at.get((plain(method), count, task), {})
                if own.get("less plain") is not None:
                    se = own["less plain se"] or 0.0
                    found.append([TITLES[task], count, own["mae"], other["mae"], own["less plain"],
                                  verdict(own["less plain"] <= slack * other["mae"] + (se if slack else -se))])  # fmt: skip
        return found

    return [
        Goal("Moments lower the error of PooledGP without labels, by more than a standard error", columns,
             checked(f"{POOLED}, {MOMENTS}", SHIFTED, (0,), 0.0)),
        Goal("Transport lowers the error of PooledGP without labels, by more than a standard error", columns,
             checked(f"{POOLED}, {VALUE}", SHIFTED, (0,), 0.0)),
        Goal("Transport lowers the error of PooledGP with 20 and 50 labels, by more than a standard error", columns,
             checked(f"{POOLED}, {VALUE}", SHIFTED, (20, 50), 0.0)),
        Goal("A map chosen by labels makes PooledGP nowhere worse by more than 5 %", columns,
             checked(f"{POOLED}, {CHOSEN}", TASKS, (20, 50), 0.05)),
        Goal("Where nothing has shifted, transport makes PooledGP nowhere worse by more than 5 %", columns,
             checked(f"{POOLED}, {VALUE}", NULL, LABELS, 0.05)),
    ]  # fmt: skip


def main() -> None:
    options, command = arguments("adapt_transported", "Maps of inputs before regression with few labels.")
    threadpool_limits(1)
    warnings.simplefilter("ignore")
    held = {"source rows": 400, "unlabelled rows": 200, "test rows": "1,000, or what the table has left", "regressors": "defaults",
            "maps": "defaults of TransportedRegressor; ot.da.EMDTransport(), ot.da.LinearTransport(reg=1e-3)"}  # fmt: skip
    record = Record(name="adapt_transported", title="Mapping the source's inputs first, on real tables", command=command,
                    quick=options.quick, seeds=tuple(range(1 if options.quick else SEEDS)), protocol=held, notes=NOTES, figures={},
                    tables=[], goals=[], complete=False)  # fmt: skip
    rows = figures(list(cells(plan(options.quick), cached=not options.quick)))
    record = replace(record, complete=True, figures={"methods": rows}, tables=tables(rows), goals=goals(rows))
    write(record, options.json)
    show(record)


if __name__ == "__main__":
    main()
