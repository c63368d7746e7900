"""Robust: how much is lost when sampling is disturbed, by few steps or by noise that training knew nothing of?

    python -m experiments.robust_sampling [--quick] [--json FILE]

moons -> 8 gaussians, equal processor seconds of training, quasi-random test points, exact W2 to target points beside its floor.

    steps    equal steps, no noise
    noise    20 equal steps, each followed by s std sqrt(dt) xi, the same xi for every method; std is that of the target

Ours moves the ends that its actions aim at into the box of the data, as its sampler does. I-CFM (torchcfm, left out where that is not
installed; MLP 3 x 64, Adam, batch 512) is followed as it is and, "boxed", with the same box. One pair, one seed, one peer: the study over
pairs, images, uneven grids and more peers is `benchmarks/robustness.py`.
"""

import argparse
import importlib.util
import json
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import driftway
from driftway.data import PAIRS
from driftway.transport import Problem, Settings, iterate, w2
from driftway.transport.run import Plan, start_run
from driftway.transport.stream import generator

LAWS = PAIRS["moons-8gaussians"]
STEPS, NOISE = (1, 2, 4, 20, 100), (0.0, 0.05, 0.1, 0.2, 0.4)


def ours(seconds):
    """Our network family: velocity in data units, box, training steps."""
    begun = time.process_time()
    source, target = (lambda n, own, law=law: law.sample(n, generator=own) for law in LAWS)
    run = start_run(Plan(Problem(), Settings(), 0, "network", "auto", 0.0, 2**60), source, target, None)
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    model = run.model()
    scaler, value = model.scaler, model.value_function
    return lambda x, t: -scaler.scale * value.gradient(scaler.target(x), x.new_full((len(x),), t)), scaler.box, run.index


def independent(seconds):
    """I-CFM: velocity and training steps."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher  # here: the experiment does without it

    begun, own, steps = time.process_time(), generator("I-CFM"), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [layer for k in (3, 64, 64) for layer in (nn.Linear(k, 64), nn.SELU())]
        net, matcher = nn.Sequential(*layers, nn.Linear(64, 2)), ConditionalFlowMatcher(sigma=0.0)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        while time.process_time() - begun < seconds:
            x, y = (law.sample(512, generator=own) for law in LAWS)
            t, x_t, u = matcher.sample_location_and_conditional_flow(x, y)[:3]
            loss = (net(torch.cat([x_t, t[:, None]], 1)) - u).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    return lambda x, t: net(torch.cat([x, x.new_full((len(x), 1), t)], 1)), steps


@torch.no_grad()
def walk(velocity, x, steps, noise, box):
    """Ends of Euler's method."""
    for h, (t, later) in enumerate(pairwise([h / steps for h in range(steps + 1)])):
        a = velocity(x, t)
        if box is not None:
            a = ((x + (1 - t) * a).clamp(*box) - x) / (1 - t)
        x = x + (later - t) * a + noise * (later - t) ** 0.5 * torch.randn(x.shape, generator=generator("noise", h))
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, fewer points")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is robust_sampling.json beside the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds, n = (6.0, 512) if args.quick else (30.0, 2048)
    x, y, again = (law.quasi(n, generator=generator("robust", i)) for i, law in enumerate((*LAWS, LAWS[1])))
    velocity, box, done = ours(seconds)
    methods, trained = {"driftway": (velocity, box)}, {"driftway": done}
    if importlib.util.find_spec("torchcfm"):
        velocity, trained["I-CFM"] = independent(seconds)
        methods |= {"I-CFM": (velocity, None), "I-CFM, boxed": (velocity, box)}
    else:
        print("I-CFM is left out: torchcfm is not installed (pip install --no-deps torchcfm)")
    std, floor, rows = float(y.var(0).mean().sqrt()), w2(again, y), {}
    print(f"W2, floor {floor:.3f}   " + " ".join(f"{s:>5} st." for s in STEPS) + "  " + " ".join(f"s = {s:<4}" for s in NOISE))
    for name, (velocity, box) in methods.items():
        rows[name] = {"steps": {s: w2(walk(velocity, x, s, 0.0, box), y) for s in STEPS},
                      "noise": {s: w2(walk(velocity, x, 20, s * std, box), y) for s in NOISE}}  # fmt: skip
        print(f"{name:18} " + " ".join(f"{v:9.3f}" for v in rows[name]["steps"].values()) + "  "
              + " ".join(f"{v:8.3f}" for v in rows[name]["noise"].values()), flush=True)  # fmt: skip
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        found = {"driftway": driftway.__version__, "torch": torch.__version__, "seconds": seconds, "points": n, "training steps": trained,
                 "floor": floor, "w2": rows}  # fmt: skip
        file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
