"""Straight paths, few steps: does descending the learned values reach the target in one to four steps?

    python -m experiments.straight_paths [--quick] [--json FILE]

Four pairs in the plane, equal processor seconds of training for both families, quasi-random test points. For each:

    W2            exact, of the ends of 1, 2, 4 and 20 policy steps to target points; beside it the floor, two sets of target points
    straightness  energy of the chords over energy of the paths, 20 steps; 1 for straight paths at constant speed
    NPE           |path energy - W2^2(source, target)| / W2^2(source, target), 20 steps; 0 for optimal paths

"explicit" follows x - grad V_t(x) dt. "endpoint", which mixtures know, draws the end itself: one step is then exact, so more cannot help.
Peers stand in `benchmarks/transport_2d.py`.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import driftway
from driftway.data import PAIRS
from driftway.transport import Problem, Settings, iterate, normalised_path_energy, straightness, w2
from driftway.transport.run import Plan, start_run
from driftway.transport.stream import generator

STEPS = (1, 2, 4, 20)
RULES = {"mixture": ("endpoint", "explicit"), "network": ("explicit",)}


def train(laws, family, seconds, seed):
    """The model that so many processor seconds come to, and its steps."""
    begun = time.process_time()
    source, target = (lambda n, own, law=law: law.sample(n, generator=own) for law in laws)
    run = start_run(Plan(Problem(), Settings(), seed, family, "auto", 0.0, 2**60), source, target, None)
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    return run.model(), run.index


def measure(name, seconds, n, seed):
    """A row of figures for each family and rule."""
    laws = PAIRS[name]
    x, y, again = (law.quasi(n, generator=generator("straight", name, seed, i)) for i, law in enumerate((*laws, laws[1])))
    floor, least = w2(again, y), w2(x, y)
    for family, rules in RULES.items():
        model, done = train(laws, family, seconds, seed)
        for rule in rules:
            path = model.path(x, steps=20, rule=rule)
            yield {
                "pair": name, "family": family, "rule": rule, "training steps": done, "floor": floor,
                "w2": {steps: w2(model.sample(x, steps=steps, rule=rule), y) for steps in STEPS},
                "straightness": straightness(path), "npe": normalised_path_energy(path, least**2),
            }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, fewer points, two pairs")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is straight_paths.json beside the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds, n, pairs = (3.0, 512, ("normal-8gaussians", "moons-8gaussians")) if args.quick else (30.0, 2048, tuple(PAIRS))
    print(f"{'pair':18} {'family':8} {'rule':9} " + " ".join(f"W2 @{s:<3}" for s in STEPS) + "  floor  straight  NPE")
    rows = []
    for name in pairs:
        for row in measure(name, seconds, n, 0):
            rows.append(row)
            print(f"{name:18} {row['family']:8} {row['rule']:9} " + " ".join(f"{v:7.3f}" for v in row["w2"].values())
                  + f" {row['floor']:6.3f} {row['straightness']:8.4f} {row['npe']:6.3f}", flush=True)  # fmt: skip
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        found = {"driftway": driftway.__version__, "torch": torch.__version__, "seconds": seconds, "points": n, "seed": 0, "rows": rows}
        file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
