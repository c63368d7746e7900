"""Labels and guidance: does a sample have the label asked for, and what does guidance buy or cost?

    python -m experiments.conditional [--quick] [--json FILE]

scikit-learn's digits, 8 x 8, one model with labels (inner-product potential, width 256), two policy steps, guidance weight w:

    V_w = V(.|null) + w (V(.|label) - V(.|null))          w = 0 ignores the label, 1 is the label's own value, more exaggerates it

    accuracy   share of samples that a support vector machine, trained on the real training rows, gives the label asked for
    W2         exact, to test rows with the same labels, in pixel units; a figure below the floor means blur, not quality
    MMD^2      unbiased, kernel exp(-|x - y|^2 / 2 h^2), h the median distance of training rows; x 1000; it may be below 0

The floor of each, "real rows", is what real training rows with the labels of the test rows score (for accuracy: the test rows themselves).
Peers at equal seconds stand in `benchmarks/transport_conditional.py`.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import torch
from sklearn.svm import SVC

import driftway
from driftway.data import digits
from driftway.transport import Problem, Settings, iterate, w2
from driftway.transport.run import Plan, start_run

WEIGHTS, STEPS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0), 2


def train(y, labels, seconds, seed):
    """The model that so many processor seconds come to, and its steps."""
    begun = time.process_time()
    plan = Plan(Problem(), Settings(width=256, lr=3e-3), seed, "vector", "auto", 0.0, 2**60)
    run = start_run(plan, None, y, (None, y[:2]), labels=labels)  # no rows are split off
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    return run.model(), run.index


def mmd2(x, y, h):
    def inner(a, b, same):
        k = torch.exp(-torch.cdist(a.double(), b.double()).square() / (2 * h**2))
        return float((k.sum() - len(a) * same) / (len(a) * (len(b) - same)))

    return inner(x, x, 1) + inner(y, y, 1) - 2 * inner(x, y, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter training, fewer test rows")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is conditional.json beside the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "target: .* columns are constant")  # white corners
    seconds, n = (8.0, 300) if args.quick else (40.0, 500)
    own = torch.Generator().manual_seed(0)
    pixels, labels = digits()
    order = torch.randperm(len(pixels), generator=own)
    rows, labels = pixels[order] / 16, labels[order]
    y, asked, real, known = rows[:n], labels[:n], rows[n:], labels[n:]
    classifier = SVC(gamma="scale", C=10.0).fit(real.numpy(), known.numpy())
    h = float(torch.pdist(real[:500]).median())
    model, done = train(real.reshape(-1, 8, 8), known, seconds, 0)

    def score(x):
        right = torch.from_numpy(classifier.predict(x.numpy())) == asked
        return {"accuracy": float(right.float().mean()), "w2": w2(x, y), "mmd2 x 1000": 1000 * mmd2(x, y, h)}

    same = torch.stack([(known == label).nonzero()[:, 0][torch.randint(int((known == label).sum()), (), generator=own)] for label in asked])
    found = {"real rows": {**score(real[same]), "accuracy": score(y)["accuracy"]}}
    for w in WEIGHTS:
        found[f"w = {w:g}"] = score(model.sample(n, steps=STEPS, label=asked, guidance=w, seed=1).flatten(1))
    print(f"{done} training steps in {seconds:g} s; {STEPS} policy steps\n{'':10} accuracy     W2  1000 MMD^2")
    for name, figures in found.items():
        print(f"{name:10} {figures['accuracy']:8.3f} {figures['w2']:6.3f} {figures['mmd2 x 1000']:11.2f}")
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        facts = {"driftway": driftway.__version__, "torch": torch.__version__, "seconds": seconds, "training steps": done, "rows": n,
                 "policy steps": STEPS, "figures": found}  # fmt: skip
        file.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
