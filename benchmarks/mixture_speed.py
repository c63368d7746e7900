"""Seconds until the mixture family is as good as flow matching, in the plane: `python -m benchmarks.mixture_speed`.

A peer trains for a fixed time; its quality is the least W2 over its numbers of sampling steps. The mixture is tested at growing
times, off the clock, until it has reached every peer. W2 is exact, on the same quasi-random test points for all (`transport_2d`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from math import inf
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import scores
from benchmarks.record import Cell, Goal, Record, Table, arguments, show, write
from benchmarks.transport_2d import JOBS, NEVER, PEERS, STEPS, Test, draw_test, score, train
from driftway.data import PAIRS, Law
from driftway.transport import Problem, Settings, iterate, w2
from driftway.transport.run import Plan, start_run

Rows = Sequence[Mapping[str, Any]]
NOTES = (
    "A peer's quality is the least W2 over its numbers of sampling steps: its best case, chosen on the test points. The mixture's "
    "is that of one step; its samples have the same law at every number of steps.",
    "Seconds are processor seconds of one thread, and count set-up and drawing the data, not the tests of W2. The mixture's are the "
    "first tested time with W2 no larger than the peer's, so they are rounded up.",
)


@dataclass(frozen=True)
class Protocol:
    """Sizes of a run.

    Attributes:
        tasks: names in `PAIRS`.
        seeds: one training and one set of test points each.
        seconds: of training, per peer.
        checks: seconds of training at which the mixture is tested.
        n: test points of each law; a power of two.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    checks: tuple[float, ...]
    n: int


FULL = Protocol(tuple(PAIRS), (0,), 15.0, (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0), 2048)
QUICK = Protocol(("normal-8gaussians", "moons-8gaussians"), (0,), 3.0, (0.5, 1.0, 2.0, 3.0), 1024)


def watch(source: Law, target: Law, test: Test, *, checks: Sequence[float], enough: float, seed: int) -> Iterator[dict[str, Any]]:
    """Train a mixture; yields its W2 at each of the times in `checks`, off the clock, until one is at most `enough`."""
    spent, begun = 0.0, time.process_time()
    plan = Plan(problem=Problem(), settings=Settings(), seed=seed, family="mixture", standardize="auto", holdout=0.1,
                certify_every=NEVER)  # fmt: skip
    run = start_run(plan, lambda n, own: source.sample(n, generator=own), lambda n, own: target.sample(n, generator=own), None)
    records = iterate(run)
    for check in checks:
        while spent + time.process_time() - begun < check:
            next(records)
        spent += time.process_time() - begun
        reached = w2(run.model().sample(test.x, steps=1), test.y)
        yield {"check": check, "seconds": spent, "steps": run.index, "w2": reached}
        if reached <= enough:
            return
        begun = time.process_time()


def measure_cell(protocol: Protocol, task: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The peers on one task with one seed, then the mixture until it has reached them all."""
    torch.set_num_threads(1)
    for method in (*PEERS, scores.MIXTURE):  # PyTorch loads parts of itself at first use: not on the clock
        train(method, *PAIRS[task], seconds=0.01, seed=0)
    test, key = draw_test(task, seed, protocol.n), {"task": task, "seed": seed}
    figures: list[dict[str, Any]] = []
    for method in PEERS:
        trained = train(method, *PAIRS[task], seconds=protocol.seconds, seed=seed)
        w2s = {steps: end for steps in STEPS if (end := score(trained, test, steps)["w2"]) is not None}
        best = min(w2s, key=w2s.__getitem__, default=None)
        reached = None if best is None else w2s[best]
        figures.append({**key, "method": method, "seconds": trained.seconds, "steps": best, "w2": reached})
    enough = min((f["w2"] for f in figures if f["w2"] is not None), default=inf)
    watched = [{**key, **row} for row in watch(*PAIRS[task], test, checks=protocol.checks, enough=enough, seed=seed)]
    return {"figures": figures, "mixture": watched, "tests": [{**key, "floor": test.floor}]}


def measure(protocol: Protocol) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All figures so far, after every task of every seed. Two of them run at a time, each in a process of one thread."""
    found: dict[str, list[dict[str, Any]]] = {"figures": [], "mixture": [], "tests": []}
    cells = [(protocol, task, seed) for seed in protocol.seeds for task in protocol.tasks]
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure_cell, *cell) for cell in cells]):
            for name, rows in done.result().items():
                found[name].extend(rows)
            yield found


def races(figures: Rows, mixture: Rows) -> list[dict[str, Any]]:
    """One row per task, seed and peer: the mixture's seconds to the peer's W2 (None for never), the peer's seconds over them."""
    rows = []
    for f in figures:
        quality = inf if f["w2"] is None else f["w2"]
        own = sorted((m for m in mixture if (m["task"], m["seed"]) == (f["task"], f["seed"])), key=lambda m: m["seconds"])
        seconds = next((m["seconds"] for m in own if m["w2"] <= quality), None)
        rows.append({**f, "mixture_seconds": seconds, "ratio": 0.0 if seconds is None else f["seconds"] / seconds})
    return rows


def goal(found: Rows, peer: str) -> Goal:
    """The mixture reaches a peer's quality sooner than the peer, task by task, with every seed."""
    checks = []
    for task in dict.fromkeys(row["task"] for row in found):
        own = [row for row in found if (row["task"], row["method"]) == (task, peer)]
        if own:
            checks.append([task, ", ".join(_seconds(row["mixture_seconds"]) for row in own), min(row["ratio"] for row in own),
                           "met" if all(row["ratio"] > 1 for row in own) else "not met"])  # fmt: skip
    columns = ["task", "seconds of the mixture", "least ratio", "verdict"]
    return Goal(f"The mixture reaches the best W2 of {peer} in fewer training seconds", columns, checks)


def tables(found: Rows, mixture: Rows, tests: Rows, checks: Sequence[float]) -> list[Table]:
    """The races, and how the mixture's W2 falls."""
    rows: list[list[Cell]] = []
    for row in found:
        ratio = f"{row['ratio']:.0f}" if row["ratio"] else None
        shown = [f"{row['seconds']:.1f}", row["w2"], row["steps"], _seconds(row["mixture_seconds"]), ratio]
        rows.append([row["task"], row["method"], row["seed"], *shown])
    columns = ["task", "peer", "seed", "its seconds", "its best W2", "at steps", "seconds of the mixture", "ratio"]
    note = "The ratio is the peer's seconds over the mixture's; a dash where the mixture never got there in the time tested."
    falls: list[list[Cell]] = []
    rank = {task: place for place, task in enumerate(PAIRS)}
    for test in sorted(tests, key=lambda test: (rank[test["task"]], test["seed"])):
        own = {m["check"]: m["w2"] for m in mixture if (m["task"], m["seed"]) == (test["task"], test["seed"])}
        falls.append([test["task"], test["seed"], test["floor"], *(own.get(check) for check in checks)])
    heads = ["task", "seed", "floor", *(f"{check:g} s" for check in checks)]
    untested = "A dash: not tested, as all peers had been reached."
    return [Table("Seconds to equal quality", columns, rows, note),
            Table("W2 of the mixture after training seconds", heads, falls, untested)]  # fmt: skip


def evaluate(found: Mapping[str, Rows], checks: Sequence[float]) -> dict[str, Any]:
    """Races, tables and goals so far, as fields of a record."""
    rank = {name: place for place, name in enumerate((*PAIRS, *PEERS))}
    figures = sorted(found["figures"], key=lambda f: (rank[f["task"]], rank[f["method"]], f["seed"]))
    ran = races(figures, found["mixture"])
    return {"figures": {"races": ran, "mixture": found["mixture"], "tests": found["tests"]},
            "tables": tables(ran, found["mixture"], found["tests"], checks),
            "goals": [goal(ran, peer) for peer in PEERS]}  # fmt: skip


def main() -> None:
    options, command = arguments("mixture_speed", "Seconds until the mixture family is as good as flow matching.")
    protocol = QUICK if options.quick else FULL
    checks = ", ".join(f"{check:g}" for check in protocol.checks)
    held = {"training seconds per peer": protocol.seconds, "mixture tested after": f"{checks} s",
            "test points of each law": protocol.n, "components of the mixture": Settings().components}  # fmt: skip
    record = Record(name="mixture_speed", title="Seconds to equal quality", command=command, quick=options.quick,
                    seeds=protocol.seeds, protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    for found in measure(protocol):
        record, last = replace(record, **evaluate(found, protocol.checks)), found["mixture"][-1]
        write(record, options.json)
        total = len(protocol.tasks) * len(protocol.seeds)
        print(f"{len(found['tests'])}/{total}: {', '.join(map(str, last.values()))}", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    show(record)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
