"""Regression with few labels after a shift of domain, on images: `python -m benchmarks.adapt_images`.

Scale and place of a shape in three styles (`shapes`), six pairs of them, five draws. A small network is trained on 10,000 images of the
source, and every method gets the same features of it: of 400 labelled source rows, of 500 target rows without labels, and of 0, 20, 50 or
100 with. The regressors of `driftway.adapt` stand beside adaptors aligned as in RSD and DARE-GRAM, and plain regressions
(`alignment_peers`). Errors are on 1,000 test rows of the target, the mean absolute error summed over the three targets, as in the papers.
Cells are kept as they are done, and an interrupted run goes on; to repeat those of a method, delete its files in
benchmarks/.cache/adapt_images.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import permutations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks import alignment_peers as peers
from benchmarks.alignment_peers import Rows
from benchmarks.record import RESULTS, Goal, Record, Table, by_machine, here, show, write
from benchmarks.shapes import DOMAINS, TARGETS, Sizes, Task, task
from driftway import adapt
from driftway.align import TransportedRegressor
from driftway.store import write_file

AUTO, TARGET, DINO, TRAINED = "AutoTransferRegressor", "TargetOnlyGP", "DINOInitRegressor", "DINOTrainRegressor"
MOVED = ", after moments"
OURS = (AUTO, TARGET, "PooledGP", "TransferGPRegressor", "MeanEmbeddingGP", DINO, TRAINED, AUTO + MOVED, "PooledGP" + MOVED)
ALIGNED = {"RSD": peers.RSDS, "DARE-GRAM": peers.DARE_GRAMS}
NETWORK, CORRECTED = "source network", "source network, corrected"
ALONE = ("ridge, target only", "GP, target only")
POOLED = ("MLP, pooled", "ridge, pooled", "CORAL, ridge")
METHODS = (*OURS, *ALIGNED, *POOLED, *ALONE, CORRECTED, NETWORK)
NEEDS_LABELS = (TARGET, *ALONE, CORRECTED)
PAIRS = tuple(permutations(DOMAINS, 2))
SIZES, SMALL = Sizes(), Sizes(images=1000, epochs=5)
LABELS, SEEDS = (0, 20, 50, 100), 5
CACHE = Path(__file__).parent / ".cache" / "adapt_images"
QUANTILE, COVERED = 1.6448536269514722, (0.85, 0.95)
NOTES = (
    "A network's own answer has seen 10,000 labelled source images, the other methods 400 rows of its features and the labels of the "
    "target. 'Corrected' adds a ridge regression, on the same features, of what it misses on the target's labels.",
    "RSD and DARE-GRAM adapt a small network on the features, not the convolutions as in the papers: all methods see the same features. "
    "Their heads know that targets lie in [0, 1]; ours do not. Their trade-offs are chosen by cross-validation on the target's labels; "
    "without labels they are those that the authors give.",
    "After moments: columns of the source are given the mean and deviation of the target's, then all is as before.",
    "Intervals are of a new label, normal, at 90 %. A difference is paired: both methods had the same rows in every draw.",
)  # fmt: skip
Cell = dict[str, Any]
Cells = list[Cell]
Job = tuple[int, tuple[str, str], int, str]


def ours(name: str, part: Rows, X: Tensor, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """Means and standard deviations of one of our regressors, with its defaults, and what it decided."""
    model = getattr(adapt, name.removesuffix(MOVED))(random_state=seed)
    if name.endswith(MOVED):
        model = TransportedRegressor(model, how="moments", random_state=seed)
    rows = torch.cat([part.X_s, part.X_t, part.X_u])
    y = torch.cat([part.y_s, part.y_t, part.y_s.new_full((len(part.X_u), part.y_s.shape[1]), torch.nan)])
    domain = torch.tensor([1, -2]).repeat_interleave(torch.tensor([len(part.X_s), len(rows) - len(part.X_s)]))
    model.fit(rows.numpy(), y.numpy(), sample_domain=domain.numpy())
    found, std = model.predict(X.numpy(), return_std=True)
    decision = getattr(getattr(model, "regressor_", model), "decision_", None)
    said = "" if decision is None else "transfer" if decision.transfer else "do not transfer"
    return torch.from_numpy(found), torch.from_numpy(std), said


def aligned(name: str, part: Rows, X: Tensor, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """An adaptor with the alignment that the labels choose."""
    align = peers.choose(part, ALIGNED[name], seed=seed)
    found = peers.adapt(part, align, seed=seed)
    return found.predict(X), None, f"{align}" + f", {found.skipped} steps left out" * (found.skipped > 0)


def plain(name: str, all_: Task, part: Rows, seed: int) -> tuple[Tensor, Tensor | None, str]:
    """The other peers."""
    both = lambda X_s: peers.ridge(torch.cat([X_s, part.X_t]), torch.cat([part.y_s, part.y_t]))  # noqa: E731
    fits: dict[str, Callable[[], Tensor]] = {
        NETWORK: lambda: all_.own,
        CORRECTED: lambda: all_.own + peers.ridge(part.X_t, part.y_t - all_.own_t[: len(part.X_t)])(all_.X),
        "MLP, pooled": lambda: peers.adapt(part, None, seed=seed).predict(all_.X),
        "ridge, pooled": lambda: both(part.X_s)(all_.X),
        "CORAL, ridge": lambda: both(peers.coral(part.X_s, torch.cat([part.X_t, part.X_u])))(all_.X),
        "ridge, target only": lambda: peers.ridge(part.X_t, part.y_t)(all_.X),
    }
    if name == "GP, target only":
        return *peers.process(part.X_t, part.y_t)(all_.X), ""
    return fits[name](), None, ""


def measure(method: str, all_: Task, labels: int, seed: int) -> Cell:
    """One method on one draw; a method that fails is an outcome."""
    part, began = Rows(all_.X_s, all_.y_s, all_.X_t[:labels], all_.y_t[:labels], all_.X_u), time.process_time()
    fit = partial(ours, method) if method in OURS else partial(aligned, method) if method in ALIGNED else None
    try:
        found, std, said = fit(part, all_.X, seed) if fit else plain(method, all_, part, seed)
        if not found.isfinite().all():
            raise ValueError("not all predictions are finite")
    except Exception as problem:
        return {"failed": f"{type(problem).__name__}: {problem}"[:200]}
    return {**scores(found, std, all_.y), "said": said, "seconds": time.process_time() - began}


def scores(found: Tensor, std: Tensor | None, y: Tensor) -> Cell:
    """Mean absolute errors and their sum, mean R^2, and the part of targets in their intervals."""
    error = (found - y).abs()
    each = error.mean(0)
    r2 = (1 - error.square().mean(0) / (y - y.mean(0)).square().mean(0)).mean()
    held = None if std is None else float((error <= QUANTILE * std).double().mean())
    return {**dict(zip(TARGETS, each.tolist(), strict=True)), "mae": float(each.sum()), "r2": float(r2), "coverage": held}


features = cache(partial(task, cache=CACHE))


def title(pair: tuple[str, str]) -> str:
    return " to ".join(pair)


def cells(jobs: Sequence[Job], sizes: Sizes, *, cached: bool = True) -> Iterator[Cell]:
    """Cells from their files where they are there."""
    for seed, pair, labels, method in jobs:
        path, key = CACHE / f"{method.replace(',', '').replace(' ', '-')}--{'-'.join(pair)}.json", f"{labels}-{seed}"
        known: dict[str, Cell] = json.loads(path.read_text(encoding="utf-8")) if cached and path.is_file() else {}
        if key not in known:
            known[key] = {**measure(method, features(*pair, seed, sizes), labels, seed), "machine": here()}
            if cached:
                write_file(path, (json.dumps(known) + "\n").encode())
        yield {"pair": title(pair), "labels": labels, "seed": seed, "method": method, **known[key]}


def plan(quick: bool, methods: Sequence[str]) -> list[Job]:
    """Seed, pair, labels, method of each cell, in the order of work: whole draws first."""
    seeds, pairs, counts = (1, PAIRS[:1], LABELS[:2]) if quick else (SEEDS, PAIRS, LABELS)
    return [(seed, pair, labels, method) for seed in range(seeds) for pair in pairs for labels in counts for method in methods
            if labels or method not in NEEDS_LABELS]  # fmt: skip


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[float | None, float | None]:
    """Mean difference over the draws that both have, and its standard error."""
    each = [one[seed] - other[seed] for seed in one if seed in other]
    return mean(each) if each else None, stdev(each) / len(each) ** 0.5 if len(each) > 1 else None


def figures(found: Sequence[Cell]) -> Cells:
    """One row for each pair, number of labels and method: means over the draws, and paired differences of the summed error."""
    groups: dict[tuple[str, int, str], Cells] = {}
    for own in found:
        groups.setdefault((own["pair"], own["labels"], own["method"]), []).append(own)
    maes = {key: {own["seed"]: own["mae"] for own in group if "mae" in own} for key, group in groups.items()}
    rows: Cells = []
    for (pair, labels, method), group in groups.items():
        own = [cell for cell in group if "mae" in cell]
        row: Cell = {"pair": pair, "labels": labels, "method": method, "draws": len(own), "failed": len(group) - len(own)}
        row |= {name: average([cell[name] for cell in own]) for name in (*TARGETS, "mae", "r2", "coverage", "seconds")}
        for other in (TARGET, *ALIGNED):
            row[f"less {other}"], row[f"less {other} se"] = paired(maes[pair, labels, method], maes.get((pair, labels, other), {}))
        rows.append({**row, "said": dict(Counter(cell["said"] for cell in own if cell["said"]))})
    return rows


def average(values: Sequence[float | None]) -> float | None:
    """The mean of what is there."""
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def pick(rows: Cells, **where: Any) -> Cells:
    """Rows with these entries that have a result."""
    return [row for row in rows if row["draws"] and all(row[key] == value for key, value in where.items())]


def tables(rows: Cells) -> list[Table]:
    """Errors by number of labels and pair, by target, and what else there is to know of a method."""
    pairs, counts = list(dict.fromkeys(row["pair"] for row in rows)), sorted({row["labels"] for row in rows})
    methods, found = [method for method in METHODS if pick(rows, method=method)], []
    for labels in counts:
        lines: list[list[Any]] = []
        for method in methods:
            own = {row["pair"]: row["mae"] for row in pick(rows, method=method, labels=labels)}
            if own:
                lines.append([method, *(own.get(pair) for pair in pairs), average(list(own.values()))])
        found.append(Table(f"Mean absolute error, summed over targets, with {labels or 'no'} labels", ["method", *pairs, "mean"],
                           sorted(lines, key=lambda line: line[-1])))  # fmt: skip
    detail = []
    for method in methods:
        own = pick(rows, method=method)
        few = [row for row in own if row["labels"] == min(labels for labels in counts if labels or len(counts) == 1)]
        detail.append([method, *(average([row[name] for row in few]) for name in (*TARGETS, "r2")),
                       *(average([row["coverage"] for row in own if row["labels"] == labels]) for labels in counts),
                       average([row["seconds"] for row in own])])  # fmt: skip
    heads = ["method", *TARGETS, "R²", *(f"coverage, {labels} labels" for labels in counts), "seconds"]
    said = [[row["pair"], row["labels"], *(row["said"].get(verdict, 0) for verdict in ("transfer", "do not transfer"))]
            for row in pick(rows, method=AUTO) if row["labels"]]  # fmt: skip
    return [*found,
            Table("By target, and calibration", heads, detail,
                  "Means over pairs; errors and R² with the fewest labels; coverage of 90 % intervals; processor seconds of one thread."),
            Table(f"What {AUTO} says", ["pair", "labels", "transfer", "do not transfer"], said, "Draws.")]  # fmt: skip


def goals(rows: Cells) -> list[Goal]:
    """Against the aligned peers, against the target alone, and calibration."""
    made = []
    for name in (AUTO, DINO, TRAINED, AUTO + MOVED):
        checks = [[row["pair"], row["labels"], row["mae"], peer, row["mae"] - row[f"less {peer}"], row[f"less {peer} se"],
                   _verdict(row[f"less {peer}"] < 0)]
                  for row in pick(rows, method=name) for peer in ALIGNED if row[f"less {peer}"] is not None]  # fmt: skip
        made.append(Goal(f"{name} has a lower error than RSD and DARE-GRAM, with every number of labels",
                         ["pair", "labels", "MAE", "peer", "its MAE", "standard error", "verdict"], checks))  # fmt: skip
    alone = [[row["pair"], row["labels"], row["mae"], row[f"less {TARGET}"], row[f"less {TARGET} se"],
              _verdict(row[f"less {TARGET}"] <= (row[f"less {TARGET} se"] or 0.0))]
             for row in pick(rows, method=AUTO) if row[f"less {TARGET}"] is not None]  # fmt: skip
    low, high = COVERED
    covered = [[row["pair"], row["labels"], row["coverage"], _verdict(low <= row["coverage"] <= high)]
               for row in pick(rows, method=AUTO) if row["labels"]]  # fmt: skip
    return [*made,
            Goal(f"{AUTO} is nowhere worse than {TARGET} by more than one standard error",
                 ["pair", "labels", "MAE", "difference", "standard error", "verdict"], alone),
            Goal(f"90 % intervals of {AUTO} hold 85 to 95 % of the targets", ["pair", "labels", "coverage", "verdict"],
                 covered)]  # fmt: skip


def failures(found: Sequence[Cell]) -> tuple[str, ...]:
    """A sentence for each method that failed."""
    failed = {own["method"]: own["failed"] for own in found if "failed" in own}
    return tuple(f"{method} failed on {sum(own['method'] == method and 'failed' in own for own in found)} draws: {why}"
                 for method, why in failed.items())  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapt_images", description="Regression with few labels, on images.")
    parser.add_argument("--quick", action="store_true", help="one pair, one draw, a smaller network; less than 50 seconds on two cores")
    parser.add_argument("--json", type=Path, help="result file; the full run's default is benchmarks/results/adapt_images.json")
    parser.add_argument("--workers", type=int, default=1, help="processes that work through the cells, with one thread each; at most 3")
    parser.add_argument("--methods", default="", help="only methods whose names begin so; several with ; between. Nothing is written")
    parser.add_argument("--share", help=argparse.SUPPRESS)  # i/k: of the i-th of k workers
    options = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore")
    starts = tuple(start.strip() for start in options.methods.split(";"))
    jobs, sizes = plan(options.quick, [method for method in METHODS if method.startswith(starts)]), SMALL if options.quick else SIZES
    if options.share:  # by source: each network is trained once
        own, of = map(int, options.share.split("/"))
        for _ in cells([job for job in jobs if DOMAINS.index(job[1][0]) % of == own], sizes):
            pass
        return
    if options.workers > 1 and not options.quick:
        shares = [[sys.executable, "-m", "benchmarks.adapt_images", "--share", f"{i}/{options.workers}", "--methods", options.methods]
                  for i in range(options.workers)]  # fmt: skip
        for worker in [subprocess.Popen(share) for share in shares]:
            worker.wait()
    path = options.json or (None if options.quick or options.methods else RESULTS / "adapt_images.json")
    held = {"network": f"{sizes.images} images, {sizes.epochs} epochs", "source rows": sizes.source, "unlabelled rows": sizes.unlabelled,
            "test rows": sizes.test, "labels": LABELS, "regressors": "defaults",
            "adaptors": f"{peers.STEPS} steps of {peers.B} rows, {peers.P} features, {peers.FOLDS} folds"}  # fmt: skip
    record = Record(name="adapt_images", title="Regression with few labels after a shift, on images",
                    command="python -m benchmarks.adapt_images" + " --quick" * options.quick, quick=options.quick,
                    seeds=tuple(range(1 if options.quick else SEEDS)), protocol=held, notes=NOTES, figures={}, tables=[], goals=[],
                    complete=False)  # fmt: skip
    done: Cells = []
    for own in cells(jobs, sizes, cached=not options.quick):
        done.append(own)
        print(f"{len(done)}/{len(jobs)} {own['pair']}, {own['labels']} labels, {own['method']}: {own.get('mae', own.get('failed'))}",
              file=sys.stderr, flush=True)  # fmt: skip
    rows = figures(done)
    record = replace(record, notes=(*NOTES, by_machine(done), *failures(done)), complete=True, figures={"methods": rows},
                     tables=tables(rows), goals=goals(rows))  # fmt: skip
    write(record, path)
    show(record)


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


if __name__ == "__main__":
    main()
