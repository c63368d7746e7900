"""Unpaired translation, both ways from one run: are labels kept, and do images come back as they left?

    python -m experiments.translation [--quick] [--json FILE]

scikit-learn's digits in two halves without a common image; those of the second are mirrored left to right, blurred by a Gaussian of .7
pixel and half as bright. One model moves the first half to the second, `reverse()` moves back. Four policy steps; figures on test images:

    kept       share of translated images that a support vector machine, trained on real training images of the destination, gives the
               label of the image they came from
    W2         exact, to test images of the destination; below the floor, W2 of real training to real test images, it means blur
    return     root mean square distance of an image to itself after both ways, over the root variance of its side

"blind" sees no label; "labels given" sees those of both sides and is told the label of what it moves. "coupling" is the exact plan between
training images, which need not keep labels: what a perfect blind transport would come to. "unmoved" leaves images as they are.
Other styles, larger images and peers: `benchmarks/translation.py`.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from scipy.ndimage import gaussian_filter
from sklearn.svm import SVC

import driftway
from driftway.data import digits
from driftway.transport import Problem, Settings, exact_coupling, iterate, w2
from driftway.transport.problem import cost
from driftway.transport.run import Plan, start_run

STEPS, TEST = 4, 250


def halves(seed):
    """Images (n, 8, 8) and labels of each side, test rows first."""
    pixels, labels = digits()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    x, labels = pixels[order].reshape(-1, 8, 8) / 16, labels[order]
    half = len(x) // 2
    styled = torch.from_numpy(gaussian_filter(x[half:].flip(2).numpy(), (0, 0.7, 0.7)) / 2)
    return (x[:half], labels[:half]), (styled, labels[half:])


def train(x, y, seconds, labels=None, source_labels=None):
    """The model that so many processor seconds come to."""
    begun = time.process_time()
    plan = Plan(Problem(), Settings(width=256, lr=3e-3), 0, "vector", "auto", 0.0, 2**60)
    run = start_run(plan, x, y, (x[:2], y[:2]), labels=labels, source_labels=source_labels)  # no rows are split off
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    return run.model()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is translation.json beside the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = 6.0 if args.quick else 40.0
    sides = halves(0)
    test, real = [(x[:TEST], k[:TEST]) for x, k in sides], [(x[TEST:], k[TEST:]) for x, k in sides]
    judges = [SVC(gamma="scale", C=10.0).fit(x.flatten(1).numpy(), k.numpy()) for x, k in real]
    plan = exact_coupling(cost(real[0][0].flatten(1), real[1][0].flatten(1))).plan

    def kept(z, labels, side):
        return float((torch.from_numpy(judges[side].predict(z.flatten(1).numpy())) == labels).float().mean())

    def score(move, back, side):
        """Of images of the other side, moved to `side`; `back` undoes it."""
        x, labels = test[1 - side]
        z = move(x, labels)
        away = (back(z, labels) - x).square().mean().sqrt() / x.var(0).mean().sqrt()
        return {"kept": kept(z, labels, side), "w2": w2(z, test[side][0]), "return": float(away)}

    (x, source_labels), (y, labels) = real
    found = {}
    for name, given in (("blind", {}), ("labels given", {"labels": labels, "source_labels": source_labels})):
        model = train(x, y, seconds, **given)
        there, back = (lambda z, k, m=m, given=given: m.sample(z, steps=STEPS, label=k if given else None)
                       for m in (model, model.reverse()))  # fmt: skip
        found[name] = {"there": score(there, back, 1), "back": score(back, there, 0)}
    same = (source_labels[:, None] == labels[None, :]).to(plan)
    found["coupling"] = {way: {"kept": float((plan * same).sum())} for way in ("there", "back")}
    sided = {"there": 1, "back": 0}
    found["unmoved"] = {way: {"kept": kept(*test[1 - side], side), "w2": w2(test[0][0], test[1][0])} for way, side in sided.items()}
    found["real images"] = {way: {"kept": kept(*test[side], side), "w2": w2(real[side][0][:TEST], test[side][0])}
                            for way, side in sided.items()}  # fmt: skip
    columns = ("kept", "w2", "return")
    print(f"{'':13} {'there: kept':>11} {'W2':>6} {'return':>7}   {'back: kept':>10} {'W2':>6} {'return':>7}")
    for name, ways in found.items():
        there, back = (["-" if c not in ways[way] else f"{ways[way][c]:.3f}" for c in columns] for way in ("there", "back"))
        print(f"{name:13} {there[0]:>11} {there[1]:>6} {there[2]:>7}   {back[0]:>10} {back[1]:>6} {back[2]:>7}")
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        facts = {"driftway": driftway.__version__, "torch": torch.__version__, "seconds": seconds, "test rows": TEST,
                 "policy steps": STEPS, "figures": found}  # fmt: skip
        file.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
