"""A Schrödinger bridge that is known: N(-0.1, I) to N(0.1, I), sigma = 1, beside [SF]2M: `python -m benchmarks.bridge_gaussian`.

    [SF]2M    |v(x_t, t) - u|^2 + |lambda_t s(x_t, t) + xi|^2     s is sigma^2/2 times the score; lambda is torchcfm's
              x' = x + (v + s)(x, t)/H + sigma sqrt(1/H) xi

What is measured is at the top of `bridge_scores`. Sources: Shi et al. (2023), arXiv 2303.16852, for the problem and the published
figures; Tong et al. (2024), arXiv 2307.03672, for [SF]2M.
"""

import copy
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.bridge_scores import (
    GRID,
    MIXTURES,
    NETWORK,
    PEERS,
    RESIDUAL,
    SHIFT,
    SIGMA,
    STEPS,
    Normal,
    Paths,
    exact_moments,
    goals,
    score,
    tables,
)
from benchmarks.record import Record, arguments, show, write
from driftway.transport import MixtureValue, Problem, Settings, iterate
from driftway.transport.run import Plan, start_run
from driftway.transport.stream import generator

NEVER = 2**62
METHODS = (*MIXTURES, NETWORK, RESIDUAL, *PEERS)
RECIPE = next(recipe for recipe in peers.RECIPES if recipe.name == "OT-CFM (tuned)")
NOTES = (
    "KL is given less its floor, the KL that perfect samples of that number score; both are in the table of floors. It may be slightly "
    "negative by chance. Published figures are from the papers, whose estimator is not in their released code.",
    "Training seconds are processor seconds of one thread, equal for all methods, and count set-up and drawing the data.",
    "[SF]2M has our schedule, weight average and batch: it does better so than by the published constant step size and batch of 512.",
    "The mixture of one component and the base of the residual network know that the answer is a normal law; the others do not.",
    "A mixture is sampled by its law of the end and a Brownian bridge, exactly; the steps of the others are Euler-Maruyama steps.",
)


@dataclass(frozen=True)
class Protocol:
    """Sizes of a run.

    Attributes:
        dimensions: of the two laws.
        seeds: one training and one set of paths each.
        seconds: of training, per method.
        n: paths; a multiple of CHUNK.
    """

    dimensions: tuple[int, ...]
    seeds: tuple[int, ...]
    seconds: float
    n: int


FULL = Protocol((5, 20, 50), (0,), 15.0, 50_000)
QUICK = Protocol((5, 20), (0,), 2.0, 10_000)
JOBS = 2


@dataclass(frozen=True)
class Trained:
    """What a method comes to in the given seconds.

    Attributes:
        paths: of the trained process.
        steps: training steps.
        seconds: they took.
        mixture: of one component, else None.
    """

    paths: Paths
    steps: int
    seconds: float
    mixture: MixtureValue | None


def train(method: str, d: int, *, seconds: float, seed: int) -> Trained:
    """Train one method for so many processor seconds of this process."""
    source, target = Normal(d, -SHIFT), Normal(d, SHIFT)
    if method in PEERS:
        return train_peer(PEERS[method], source, target, seconds=seconds, seed=seed)
    begun = time.process_time()
    settings = replace(Settings(), components=MIXTURES.get(method, 1))
    family = {NETWORK: "network", RESIDUAL: "residual"}.get(method, "mixture")
    plan = Plan(problem=Problem(sigma=SIGMA), settings=settings, seed=seed, family=family,
                standardize="none", holdout=0.1, certify_every=NEVER)  # fmt: skip
    run = start_run(plan, source, target, None)
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    spent, model = time.process_time() - begun, run.model()

    def paths(x: Tensor, steps: int, seed: int) -> Tensor:
        return model.path(x, steps=steps, seed=seed).states[:: steps // GRID]

    value = model.value_function
    return Trained(paths, run.index, spent, value if isinstance(value, MixtureValue) and MIXTURES[method] == 1 else None)


def train_peer(plans: str, source: Normal, target: Normal, *, seconds: float, seed: int) -> Trained:
    """[SF]2M by torchcfm: a flow and a score network of the width that ours have, with our batch, schedule and weight average."""
    from torchcfm.conditional_flow_matching import SchrodingerBridgeConditionalFlowMatcher

    matcher: Any = SchrodingerBridgeConditionalFlowMatcher(sigma=SIGMA, ot_method=plans)
    with peers.global_streams(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sinkhorn's scalings stop at their limit
        begun = time.process_time()
        own = generator(seed, plans, "data")
        both = nn.ModuleList(peers.velocity_network(source.dim) for _ in range(2))
        average = copy.deepcopy(both).requires_grad_(False)
        descent = peers.Descent(RECIPE, both.parameters(), average.parameters())
        while time.process_time() - begun < seconds:
            x, y = source(RECIPE.batch, own), target(RECIPE.batch, own)
            t, x_t, u, noise = matcher.sample_location_and_conditional_flow(x, y, return_noise=True)
            v, s = (net(torch.cat([x_t, t[:, None]], 1)) for net in both)
            loss = (v - u).square().mean() + (matcher.compute_lambda(t)[:, None] * s + noise).square().mean()
            descent.step(loss)
        spent = time.process_time() - begun

    @torch.no_grad()
    def paths(x: Tensor, steps: int, seed: int) -> Tensor:
        own, states = generator(seed, "noise"), [x]
        for h in range(steps):
            inputs = torch.cat([x, x.new_full((len(x), 1), h / steps)], 1)
            noise = torch.randn(x.shape, generator=own)
            x = x + sum(net(inputs) for net in average) / steps + SIGMA * noise / steps**0.5
            if (h + 1) % (steps // GRID) == 0:
                states.append(x)
        return torch.stack(states)

    return Trained(paths, descent.k, spent, None)


def measure(protocol: Protocol) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All figures so far, after every dimension of every seed. Two of them run at a time, each in a process of one thread."""
    found: dict[str, list[dict[str, Any]]] = {"single": [], "trainings": []}
    cells = [(d, seed) for seed in protocol.seeds for d in reversed(protocol.dimensions)]
    with ProcessPoolExecutor(JOBS, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(measure_cell, protocol, *cell, turn) for turn, cell in enumerate(cells)]):
            for name, rows in done.result().items():
                found[name].extend(rows)
            yield found


def measure_cell(protocol: Protocol, d: int, seed: int, turn: int) -> dict[str, list[dict[str, Any]]]:
    """All methods in one dimension with one seed; their order rotates with the turn."""
    torch.set_num_threads(1)
    for method in METHODS:  # PyTorch loads parts of itself at first use: not on the clock
        train(method, d, seconds=0.01, seed=0)
    single: list[dict[str, Any]] = []
    trainings: list[dict[str, Any]] = []
    for place in range(len(METHODS)):
        method = METHODS[(place + turn) % len(METHODS)]
        trained = train(method, d, seconds=protocol.seconds, seed=seed)
        key = {"d": d, "seed": seed, "method": method}
        for steps in STEPS[:1] if method in MIXTURES else STEPS:
            single.append({**key, "steps": steps, **score(trained.paths, d, n=protocol.n, steps=steps, seed=seed)})
        known = {} if trained.mixture is None else exact_moments(trained.mixture)
        trainings.append({**key, "steps": trained.steps, "seconds": trained.seconds, **known})
    return {"single": single, "trainings": trainings}


def evaluate(found: Mapping[str, list[dict[str, Any]]], protocol: Protocol) -> dict[str, Any]:
    """Tables and goals of the figures so far, as fields of a record."""
    rank = {name: place for place, name in enumerate(METHODS)}
    single = sorted(found["single"], key=lambda f: (f["d"], rank[f["method"]], f["steps"], f["seed"]))
    trainings = sorted(found["trainings"], key=lambda f: (f["d"], rank[f["method"]], f["seed"]))
    dims = sorted({f["d"] for f in single})
    return {"figures": {"single": single, "trainings": trainings}, "goals": goals(single, dims),
            "tables": tables(single, trainings, dims, protocol.n)}  # fmt: skip


def main() -> None:
    options, command = arguments("bridge_gaussian", "A known Schrödinger bridge beside [SF]2M.")
    protocol = QUICK if options.quick else FULL
    held = {"training seconds per method": protocol.seconds, "paths": protocol.n, "grid": f"t = 1/{GRID}, ..., 1", "sigma": SIGMA,
            "hidden layers": "3 x 64", "batch of [SF]2M": RECIPE.batch}  # fmt: skip
    record = Record(name="bridge_gaussian", title="A known Schrödinger bridge", command=command, quick=options.quick, seeds=protocol.seeds,
                    protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    total = len(protocol.dimensions) * len(protocol.seeds) * len(METHODS)
    for found in measure(protocol):
        record = replace(record, **evaluate(found, protocol))
        write(record, options.json)
        print(f"{len(found['trainings'])}/{total} methods", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    show(record)


if __name__ == "__main__":
    main()
