"""Noise in the problem (sigma > 0): are the learned paths Schrödinger bridges?

    python -m experiments.bridge [--quick] [--json FILE]

1. N(-0.1, I) -> N(0.1, I) in the plane, sigma = 1, whose bridge is known: each coordinate has mean 0.2 t - 0.1 and variance
   t (1-t) sqrt(4 + sigma^4) + (1-t)^2 + t^2.
2. Standard normal -> moons, sigma = 1/2, whose bridge is not.

Equal processor seconds for mixtures and for mixtures with a network residual; the explicit policy of 100 steps on fresh points, then
`check_bridge`:

    end         W2 of ends to target points, its floor, and the probability of a distance this large if both laws were one
    spread      mean square of the state at t = 1/4, 1/2 and 3/4 against Brownian bridges pinned at the same ends: 1, +- an error
    p           least of the three probabilities that those states are from pinned Brownian bridges
    action      of the path up to t = 3/4, and the fall of the value along it: the same if V is the value of its own policy
    mean, var.  at t = 1/2, averaged over coordinates, found / known
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

import driftway
from driftway.data import moons, standard_normal
from driftway.transport import Problem, Settings, check_bridge, iterate, marginal
from driftway.transport.run import Plan, start_run
from driftway.transport.stream import generator

NORMAL = standard_normal(2)
TASKS = {
    "normal": (1.0, lambda n, own: NORMAL.sample(n, generator=own) - 0.1, lambda n, own: NORMAL.sample(n, generator=own) + 0.1),
    "moons": (0.5, lambda n, own: NORMAL.sample(n, generator=own), lambda n, own: moons.sample(n, generator=own)),
}


def train(source, target, sigma, family, seconds):
    """The model that so many processor seconds come to, and its steps."""
    begun = time.process_time()
    plan = Plan(Problem(sigma=sigma), Settings(), 0, family, "none", 0.0, 2**60)
    run = start_run(plan, source, target, None)
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    return run.model(), run.index


def measure(task, family, seconds, n):
    """The figures of one family on one task."""
    sigma, source, target = TASKS[task]
    model, done = train(source, target, sigma, family, seconds)
    x, y = source(n, generator("bridge", task, 0)), target(n, generator("bridge", task, 1))
    checks = check_bridge(model, x, y, steps=100, rule="explicit")
    row = {"task": task, "family": family, "sigma": sigma, "training steps": done, "checks": asdict(checks), "failures": checks.failures()}
    if task == "normal":
        z = marginal(model, source(20_000, generator("bridge", task, 2)), 0.5, steps=100, rule="explicit")
        row["half way"] = {"mean": float(z.mean()), "variance": float(z.var(0).mean()), "known": [0.0, 0.25 * (4 + sigma**4) ** 0.5 + 0.5]}
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, fewer points")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is bridge.json beside the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds, n = (4.0, 400) if args.quick else (30.0, 1000)
    print(f"{'task':7} {'family':9} {'end W2 (floor, p)':22} {'spread at 1/4, 1/2, 3/4':27} {'p':6} {'action, fall':22} "
          "mean, variance at 1/2: found / known")  # fmt: skip
    rows = []
    for task in TASKS:
        for family in ("mixture", "residual"):
            row = measure(task, family, seconds, n)
            rows.append(row)
            end, between, half = row["checks"]["end"], row["checks"]["reciprocal"], row.get("half way")
            spread = " ".join(f"{b['spread']:.3f}" for b in between) + f" +-{max(b['spread_error'] for b in between):.3f}"
            action = f"{row['checks']['action']:.3f} {row['checks']['fall']:.3f} +-{row['checks']['fall_error']:.3f}"
            known = half and f"{half['mean']:+.3f} / {half['known'][0]:g}, {half['variance']:.3f} / {half['known'][1]:.3f}"
            hit = f"{end['w2']:.3f} ({end['floor']:.3f}, {end['p']:.3f})"
            failed = ", ".join(row["failures"]) or "none"
            print(f"{task:7} {family:9} {hit:22} {spread:27} {min(b['p'] for b in between):5.3f}  {action:22} {known or '-'}; "
                  f"failed: {failed}", flush=True)  # fmt: skip
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        facts = {"driftway": driftway.__version__, "torch": torch.__version__, "seconds": seconds, "points": n, "rows": rows}
        file.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
