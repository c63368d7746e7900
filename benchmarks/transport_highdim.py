"""Optimal maps in up to 128 dimensions, at equal training seconds, beside flow matching: `python -m benchmarks.transport_highdim`.

The optimal map of every pair is known (see `pairs`), so a method is scored by how far its map is from it: L2-UVP in percent, and
the cosine of the displacements, on fresh source rows. All methods of a pair train on the same two unpaired sets of rows.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import inf, isfinite
from multiprocessing import get_context
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks import pairs, peers
from benchmarks.record import Cell, Goal, Record, Table, arguments, show, write
from driftway.transport import Path, Problem, Settings, TransportModel, certificate, iterate
from driftway.transport.run import Plan, start_run
from driftway.transport.stream import generator

STEPS, FEW, MANY, JOBS, NEVER = (1, 2, 4, 20), 4, 20, 2, 2**62
EXACT, TUNED, INDEPENDENT = "OT-CFM", "OT-CFM (tuned)", "I-CFM (tuned)"
RESIDUAL, NETWORK = "driftway residual", "driftway network"
MIXTURES = {"driftway mixture, K = 1": 1, "driftway mixture, K = 32": 32}
OURS = (RESIDUAL, NETWORK, *MIXTURES)
RECIPES = {recipe.name: recipe for recipe in peers.RECIPES}
PEERS = {**{name: RECIPES[name] for name in (EXACT, TUNED)},
         INDEPENDENT: replace(RECIPES[TUNED], name=INDEPENDENT, matcher="independent")}  # fmt: skip
METHODS = (*OURS, *PEERS)
GOALS = ((OURS, FEW, MANY), ((RESIDUAL,), 1, 1))
WIDEST_MIXTURE, CERTIFIED = 64, 1000
Rows = Sequence[Mapping[str, Any]]
NOTES = (
    "L2-UVP is the mean squared distance between a method's end and the optimal map's, in percent of the target's variance: 0 is "
    "exact, and the best constant scores 100. Both scores of a mixture are those of its random ends, whose law is the same at "
    "every number of steps.",
    "Training seconds are processor seconds of one thread, equal for all methods, and count set-up. Steps done in them differ: see "
    "the table. Tuned peers have half the published batch, twice the step size, and our own schedule and weight average.",
    f"Mixtures have full covariances and are trained up to {WIDEST_MIXTURE} dimensions. In the first goals our best method and "
    "number of steps are chosen by the figures that are compared.",
)


@dataclass(frozen=True)
class Protocol:
    """Sizes of a run.

    Attributes:
        tasks: names in `pairs.PAIRS` and dimensions.
        seeds: one pair, one training and one set of test rows each.
        seconds: of training, per method.
        pool: training rows of each law.
        n: test rows.
    """

    tasks: tuple[tuple[str, int], ...]
    seeds: tuple[int, ...]
    seconds: float
    pool: int
    n: int

    @property
    def cells(self) -> list[tuple[str, int, int, str]]:
        """(pair, dimension, seed, method) of every training."""
        return [(pair, d, seed, method) for seed in self.seeds for pair, d in self.tasks for method in METHODS
                if method not in MIXTURES or d <= WIDEST_MIXTURE]  # fmt: skip


DIMENSIONS = {"gaussians": (2, 16, 64, 128), "ridges": (2, 16, 64, 128), "pieces": (16, 64)}
FULL = Protocol(tuple((pair, d) for pair, own in DIMENSIONS.items() for d in own), (0,), 12.0, 65_536, 8192)
QUICK = Protocol((("ridges", 16),), (0,), 3.0, 16_384, 2048)


@dataclass(frozen=True)
class Trained:
    """What a method comes to: (source rows, steps) -> paths, training steps, the seconds they took, and the model of ours."""

    path: Callable[[Tensor, int], Path]
    steps: int
    seconds: float
    model: TransportModel | None


@dataclass(frozen=True)
class Drawn:
    """Rows of a pair: unpaired ones of both laws to train on and to certify with, and test rows x with their true ends y."""

    source: Tensor
    target: Tensor
    held: tuple[Tensor, Tensor]
    x: Tensor
    y: Tensor


@lru_cache(2)
def draw(pair: str, d: int, seed: int, pool: int, n: int) -> Drawn:
    """All rows of one pair with one seed."""
    law = pairs.PAIRS[pair](d, seed)
    own = partial(generator, "rows", pair, d, seed)
    x = law.source(n, own("test"))
    held = law.source(CERTIFIED, own("held source")), law.target(CERTIFIED, own("held target"))
    return Drawn(law.source(pool, own("source")), law.target(pool, own("target")), held, x, law.optimal(x))


def settings(method: str, d: int) -> tuple[str, Settings]:
    """Family and settings of a method of ours in d dimensions."""
    if method in MIXTURES:
        return "mixture", Settings(components=MIXTURES[method])
    if method == NETWORK:
        return "network", Settings(width=width(d))
    return "residual", Settings(width=width(d))


def width(d: int) -> int:
    """Units of a hidden layer, for every network."""
    return peers.WIDTH if d <= 2 else 256


def train(method: str, rows: Drawn, *, seconds: float, seed: int) -> Trained:
    """Train one method for so many processor seconds of this process."""
    d = rows.x.shape[1]
    if method in PEERS:
        flow = peers.train(PEERS[method], rows.source, rows.target, seconds=seconds, seed=seed, width=width(d))
        return Trained(partial(peers.follow, flow.network), flow.steps, flow.seconds, None)
    begun = time.process_time()
    family, own = settings(method, d)
    plan = Plan(problem=Problem(), settings=own, seed=seed, family=family, standardize="common", holdout=0.0, certify_every=NEVER)
    run = start_run(plan, rows.source, rows.target, rows.held)
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    spent, model = time.process_time() - begun, run.model()
    return Trained(lambda x, steps: model.path(x, steps=steps), run.index, spent, model)


def measure_cell(protocol: Protocol, pair: str, d: int, seed: int, method: str) -> dict[str, list[dict[str, Any]]]:
    """One method on one pair with one seed."""
    torch.set_num_threads(1)
    few = draw("ridges", 2, 0, 2048, 8)
    train(method, few, seconds=0.01, seed=0)  # PyTorch loads parts of itself at first use: not on the clock
    rows = draw(pair, d, seed, protocol.pool, protocol.n)
    trained = train(method, rows, seconds=protocol.seconds, seed=seed)
    key = {"pair": pair, "d": d, "seed": seed, "method": method}
    figures = []
    for steps in STEPS[: 1 if method in MIXTURES else None]:
        uvp, cosine = pairs.score(trained.path(rows.x, steps).states[-1], rows.x, rows.y)
        finite = isfinite(uvp) and isfinite(cosine)
        figures.append({**key, "steps": steps, "uvp": uvp if finite else None, "cosine": cosine if finite else None})
    gap = None if trained.model is None else certificate(trained.model, *rows.held).gap
    linear = [{"pair": pair, "d": d, "seed": seed, "uvp": pairs.linear(rows.x, rows.y)}] if method == EXACT else []
    trainings = [{**key, "steps": trained.steps, "seconds": trained.seconds, "gap": gap}]
    return {"figures": figures, "trainings": trainings, "linear": linear}


def measure(protocol: Protocol) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All that is known so far, after every training. Two of them run at a time, each in a process of one thread."""
    found: dict[str, list[dict[str, Any]]] = {"figures": [], "trainings": [], "linear": []}
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure_cell, protocol, *cell) for cell in protocol.cells]):
            for name, rows in done.result().items():
                found[name].extend(rows)
            yield found


def summarise(figures: Rows) -> list[dict[str, Any]]:
    """One row per pair, dimension, method and steps: means over seeds, infinite if one diverged, and the spread of L2-UVP."""
    rows, names = [], ("pair", "d", "method", "steps")
    for key in dict.fromkeys(tuple(f[name] for name in names) for f in figures):
        own = [f for f in figures if tuple(f[name] for name in names) == key]
        uvp, cosine = ([inf if f[name] is None else f[name] for f in own] for name in ("uvp", "cosine"))
        spread = stdev(uvp) if len(own) > 1 and all(map(isfinite, uvp)) else None
        means = {"uvp": fmean(uvp), "uvp_std": spread, "cosine": fmean(cosine)}
        rows.append({**dict(zip(names, key, strict=True)), "seeds": len(own), **means})
    return rows


def goal(summary: Rows, peer: str, methods: Sequence[str], few: int, many: int) -> Goal:
    """The best of our methods at few steps against a peer at many, pair by pair."""
    checks, at = [], _by_key(summary)
    for pair, d in _tasks(summary):
        ours = [row for row in summary if (row["pair"], row["d"]) == (pair, d) and row["method"] in methods and row["steps"] <= few]
        other = at.get((pair, d, peer, many))
        if ours and other:
            best = min(ours, key=lambda row: (row["uvp"], row["steps"]))
            a, b = best["uvp"], other["uvp"]
            ratio = a / b if 0 < b < inf else None
            checks.append([pair, d, f"{best['method']}, {_steps(best['steps'])}", a, b, ratio, "met" if a < b else "not met"])
    whose = methods[0] if len(methods) == 1 else "our best method"
    claim = f"At {_steps(few)}{' or fewer' * (few > 1)}, L2-UVP of {whose} is below that of {peer} at {_steps(many)}"
    return Goal(claim, ["pair", "d", "ours", "L2-UVP", f"L2-UVP of {peer}", "ratio", "verdict"], checks)


def tables(summary: Rows, trainings: Rows, linear: Rows) -> list[Table]:
    """L2-UVP and cosine, one table per pair and dimension; what training cost, and the proven gaps."""
    made, at = [], _by_key(summary)
    for pair, d in _tasks(summary):
        reference = [row["uvp"] for row in linear if (row["pair"], row["d"]) == (pair, d)]
        rows: list[list[Cell]] = [["best affine map", f"{fmean(reference):.3f}", *[None] * (len(STEPS) - 1)]] if reference else []
        rows += [[method, *(_shown(at.get((pair, d, method, steps))) for steps in STEPS)]
                 for method in METHODS if (pair, d, method, 1) in at]  # fmt: skip
        made.append(Table(f"{pair}, {d} dimensions: L2-UVP in percent (cosine)", ["method", *map(_steps, STEPS)], rows))
    costs: list[list[Cell]] = []
    for pair, d, method in dict.fromkeys((run["pair"], run["d"], run["method"]) for run in trainings):
        runs = [run for run in trainings if (run["pair"], run["d"], run["method"]) == (pair, d, method)]
        steps, seconds = fmean(run["steps"] for run in runs), fmean(run["seconds"] for run in runs)
        gaps = [f"{run['gap']:.2%}" for run in runs if run["gap"] is not None]
        costs.append([pair, d, method, round(seconds, 2), round(steps), 1000 * seconds / max(steps, 1), ", ".join(gaps) or None])
    columns = ["pair", "d", "method", "seconds", "steps", "ms per step", "proven gap"]
    note = f"Means over seeds. Gaps: proven on {CERTIFIED} held-out rows of each law, for the policy of 4 steps. Peers have none."
    return [*made, Table("Training", columns, costs, note)]


def evaluate(found: Mapping[str, Rows]) -> dict[str, Any]:
    """Summary, tables and goals so far, as fields of a record."""
    rank = {name: place for place, name in enumerate((*pairs.PAIRS, *METHODS))}

    def sort(rows: Rows) -> Rows:
        return sorted(rows, key=lambda f: (rank[f["pair"]], f["d"], rank[f["method"]], f["steps"], f["seed"]))

    figures, trainings = sort(found["figures"]), sort(found["trainings"])
    summary = summarise(figures)
    return {"figures": {"single": figures, "trainings": trainings, "linear": found["linear"], "summary": summary},
            "tables": tables(summary, trainings, found["linear"]),
            "goals": [goal(summary, peer, *way) for way in GOALS for peer in (EXACT, TUNED)]}  # fmt: skip


def main() -> None:
    options, command = arguments("transport_highdim", "Optimal maps in up to 128 dimensions beside flow matching.")
    protocol = QUICK if options.quick else FULL
    held = {"training seconds per method": protocol.seconds, "training rows of each law": protocol.pool, "test rows": protocol.n,
            "hidden layers": f"3 x {width(2)} in 2 dimensions, 3 x {width(3)} above", "batch of OT-CFM": peers.PUBLISHED_BATCH,
            "batch of tuned peers": peers.TUNED_BATCH}  # fmt: skip
    record = Record(name="transport_highdim", title="Optimal maps in many dimensions", command=command, quick=options.quick,
                    seeds=protocol.seeds, protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    for found in measure(protocol):
        record, last = replace(record, **evaluate(found)), found["trainings"][-1]
        write(record, options.json)
        print(f"{len(found['trainings'])}/{len(protocol.cells)}: {', '.join(map(str, last.values()))}", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    show(record)


def _by_key(summary: Rows) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    return {(row["pair"], row["d"], row["method"], row["steps"]): row for row in summary}


def _tasks(rows: Rows) -> list[tuple[str, int]]:
    return list(dict.fromkeys((row["pair"], row["d"]) for row in rows))


def _shown(row: Mapping[str, Any] | None) -> str | None:
    if row is None:
        return None
    if not isfinite(row["uvp"]):
        return "diverged"
    return f"{row['uvp']:.3f}" + (f" ± {row['uvp_std']:.3f}" if row["uvp_std"] is not None else "") + f" ({row['cosine']:.3f})"


def _steps(count: int) -> str:
    return f"{count} step" + "s" * (count > 1)


if __name__ == "__main__":
    main()
