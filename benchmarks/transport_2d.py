"""Four transports in the plane, at equal training seconds, beside flow matching: `python -m benchmarks.transport_2d`.

Every method of a seed sees the same laws and is scored on the same test points: n quasi-random source points, which it moves, and n
quasi-random target points. W2 is exact. The floor is W2 between two independent quasi-random target sets of n points; the
source points miss their law as well, which comes on top and is the same for every method.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers, scores
from benchmarks.record import Record, arguments, show, write
from driftway.data import PAIRS, Law
from driftway.transport import Path, Problem, Settings, TransportModel, certificate, iterate, normalised_path_energy, w2
from driftway.transport.run import Plan, start_run
from driftway.transport.stream import generator

STEPS = (1, 2, 4, 20, 100)
NEVER = 2**62
PEERS = {recipe.name: recipe for recipe in peers.RECIPES}
FAMILIES = {scores.MIXTURE: "mixture", scores.NETWORK: "network"}
METHODS = (*FAMILIES, *PEERS)
NOTES = (
    "The floor is W2 between two independent quasi-random target sets of the same size. The start points' own sampling error comes "
    "on top of it and is the same for every method.",
    "Training seconds are processor seconds of one thread, equal for all methods, and count set-up and drawing the data. Steps done in "
    "them differ: see the table.",
    "OT-CFM and I-CFM follow the published protocol in all but its length, about 20,000 steps: here the clock decides. OT-CFM (tuned) "
    "has half the batch, which makes its exact plans cheaper, twice the step size, and our own schedule and weight average.",
)


@dataclass(frozen=True)
class Protocol:
    """Sizes of a run.

    Attributes:
        tasks: names in `PAIRS`.
        seeds: one training and one set of test points each.
        seconds: of training, per method.
        n: test points of each law; a power of two.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    n: int


FULL = Protocol(tuple(PAIRS), (0, 1, 2), 30.0, 2048)
QUICK = Protocol(("normal-8gaussians", "moons-8gaussians"), (0,), 3.0, 1024)
JOBS = 2


@dataclass(frozen=True)
class Trained:
    """What a method comes to in the given seconds.

    Attributes:
        path: (source points, steps) -> paths.
        steps: training steps.
        seconds: they took.
        parameters: numbers that sampling uses.
        model: of ours, else None.
    """

    path: Callable[[Tensor, int], Path]
    steps: int
    seconds: float
    parameters: int
    model: TransportModel | None


def train(method: str, source: Law, target: Law, *, seconds: float, seed: int) -> Trained:
    """Train one method for so many processor seconds of this process."""
    if method in PEERS:
        flow = peers.train(PEERS[method], source, target, seconds=seconds, seed=seed)
        return Trained(partial(peers.follow, flow.network), flow.steps, flow.seconds, _size(flow.network), None)
    begun = time.process_time()
    plan = Plan(problem=Problem(), settings=Settings(), seed=seed, family=FAMILIES[method], standardize="auto", holdout=0.1,
                certify_every=NEVER)  # fmt: skip
    run = start_run(plan, _sampler(source), _sampler(target), None)
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    spent, model = time.process_time() - begun, run.model()
    used = getattr(model.value_function, "V", model.value_function)
    return Trained(lambda x, steps: model.path(x, steps=steps), run.index, spent, _size(used), model)


@dataclass(frozen=True)
class Test:
    """Test points of a task and a seed, with what is known about them."""

    x: Tensor
    y: Tensor
    squared_w2: float
    floor: float


def draw_test(task: str, seed: int, n: int) -> Test:
    """Quasi-random points of both laws, W2^2 between them, and the floor."""
    x, y, again = (law.quasi(n, generator=generator("test", task, seed, side)) for side, law in enumerate((*PAIRS[task], PAIRS[task][1])))
    return Test(x, y, w2(x, y) ** 2, w2(again, y))


def score(trained: Trained, test: Test, steps: int) -> dict[str, float | None]:
    """W2 of the ends to the target points, and NPE of the paths."""
    path = trained.path(test.x, steps)
    if not bool(path.states.isfinite().all()):
        return {"w2": None, "npe": None}
    return {"w2": w2(path.states[-1], test.y), "npe": normalised_path_energy(path, test.squared_w2)}


def measure(protocol: Protocol) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All figures so far, after every task of every seed. Two of them run at a time, each in a process of one thread."""
    found: dict[str, list[dict[str, Any]]] = {"figures": [], "trainings": [], "tests": []}
    cells = [(protocol, seed, task) for seed in protocol.seeds for task in protocol.tasks]
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure_cell, *cell, turn) for turn, cell in enumerate(cells)]):
            for name, rows in done.result().items():
                found[name].extend(rows)
            yield found


def measure_cell(protocol: Protocol, seed: int, task: str, turn: int) -> dict[str, list[dict[str, Any]]]:
    """All methods on one task with one seed; their order rotates with the turn."""
    torch.set_num_threads(1)
    for method in METHODS:  # PyTorch loads parts of itself at first use: not on the clock
        train(method, *PAIRS[task], seconds=0.01, seed=0)
    test = draw_test(task, seed, protocol.n)
    figures: list[dict[str, Any]] = []
    trainings: list[dict[str, Any]] = []
    for place in range(len(METHODS)):
        method = METHODS[(place + turn) % len(METHODS)]
        trained = train(method, *PAIRS[task], seconds=protocol.seconds, seed=seed)
        key = {"task": task, "seed": seed, "method": method}
        for steps in (1, 4) if method == scores.MIXTURE else STEPS:
            figures.append({**key, "steps": steps, **score(trained, test, steps)})
        found = None if trained.model is None else certificate(trained.model, test.x, test.y)
        bounds = {name: found and getattr(found, name) for name in ("lower", "upper", "gap")}
        trainings.append({**key, "steps": trained.steps, "seconds": trained.seconds, "parameters": trained.parameters, **bounds})
    known = {"task": task, "seed": seed, "floor": test.floor, "squared_w2": test.squared_w2}
    return {"figures": figures, "trainings": trainings, "tests": [known]}


def evaluate(found: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Summary, tables and goals of the figures so far, as fields of a record."""
    rank = {name: place for place, name in enumerate([*PAIRS, *METHODS])}
    figures = sorted(found["figures"], key=lambda f: (rank[f["task"]], rank[f["method"]], f["steps"], f["seed"]))
    trainings = sorted(found["trainings"], key=lambda f: (rank[f["task"]], rank[f["method"]], f["seed"]))
    summary = scores.summarise(figures, found["tests"])
    rivals = (scores.PEER, scores.TUNED, scores.INDEPENDENT)
    goals = [goal for peer in rivals for goal in (scores.few_steps_goal(summary, peer), scores.equal_steps_goal(summary, figures, peer))]
    return {"figures": {"single": figures, "trainings": trainings, "tests": found["tests"], "summary": summary}, "goals": goals,
            "tables": scores.tables(summary, found["tests"], trainings, found["tests"])}  # fmt: skip


def main() -> None:
    options, command = arguments("transport_2d", "Four transports in the plane beside flow matching.")
    protocol = QUICK if options.quick else FULL
    held = {"training seconds per method": protocol.seconds, "test points of each law": protocol.n, "hidden layers": "3 x 64",
            "components of the mixture": Settings().components, "batch of OT-CFM and I-CFM": peers.PUBLISHED_BATCH,
            "batch of OT-CFM (tuned)": peers.TUNED_BATCH}  # fmt: skip
    record = Record(name="transport_2d", title="Transport in the plane", command=command, quick=options.quick, seeds=protocol.seeds,
                    protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    total = len(protocol.tasks) * len(protocol.seeds) * len(METHODS)
    for found in measure(protocol):
        record = replace(record, **evaluate(found))
        write(record, options.json)
        print(f"{len(found['trainings'])}/{total} methods\n{_line(found)}", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    show(record)


def _line(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """The methods measured last."""
    lines = []
    for last in found["trainings"][-len(METHODS) :]:
        own = [f for f in found["figures"] if all(f[name] == last[name] for name in ("task", "seed", "method"))]
        w2s = "  ".join(f"{f['steps']}: " + ("diverged" if f["w2"] is None else f"{f['w2']:.3f}") for f in own)
        lines.append(f"{last['task']}, seed {last['seed']}, {last['method']}, {last['steps']} training steps, W2 {w2s}")
    return "\n".join(lines)


def _sampler(law: Law) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, own: law.sample(n, generator=own)


def _size(module: torch.nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())


if __name__ == "__main__":
    main()
