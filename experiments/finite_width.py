"""Finite networks come to their infinite-width kernels at the rate width^(-1/2).

    python -m experiments.finite_width [--quick] [--json FILE]

Networks in the NTK parameterisation, w W x / d^(1/2) + b B with W, B ~ N(0, 1), drawn at random and not trained, on 16 handwritten digits:
two hidden layers, or two 3 x 3 convolutions and a head. For each width and seed one network gives

    NNGP   w^2 phi phi' / d + b^2, phi its d last hidden features: the covariance of its output over draws of the readout
    NTK    J J', its tangent kernel by `driftway.kernels.tangent.tangent_gram`

and the relative error |K - K_inf| / |K_inf| to the kernel of infinite width, in Frobenius norm. The entries of K - K_inf are means over
units, so their variance is c / width to first order, and the root mean square error over seeds is a line of slope -1/2 in logarithms. It is
fitted by least squares, from width 64 on: at smaller widths the next order shows, a relative change by a constant over the width.
"""

import argparse
import json
import math
import platform
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import driftway
from driftway.data import digits
from driftway.kernels import Convolutional, FullyConnected, tangent_gram
from driftway.kernels.activations import activation
from driftway.transport.stream import generator

W_STD, B_STD, DEPTH = 1.5, 0.5, 2
DENSE, FIRST = (32, 64, 128, 256, 512, 1024, 2048), 64
CASES = {
    "dense, ReLU": (FullyConnected(DEPTH, "relu", W_STD, B_STD), None, DENSE),
    "dense, Erf": (FullyConnected(DEPTH, "erf", W_STD, B_STD), None, DENSE),
    "dense, GELU": (FullyConnected(DEPTH, "gelu", W_STD, B_STD), None, DENSE),
    "conv, flatten, ReLU": (Convolutional(DEPTH, head="flatten", w_std=W_STD, b_std=B_STD), "flatten", DENSE[:-2]),
    "conv, pool, ReLU": (Convolutional(DEPTH, head="pool", w_std=W_STD, b_std=B_STD), "pool", DENSE[:-2]),
}


class Scaled(nn.Module):
    """w W x / d^(1/2) + b B, around a layer that computes W x + B and has d inputs."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, own):
        super().__init__()
        self.layer = layer
        for parameter in layer.parameters():
            nn.init.normal_(parameter, generator=own)

    def forward(self, x):
        return B_STD * self.layer(x * (W_STD / (B_STD * self.layer.weight[0].numel() ** 0.5)))


class Network(nn.Module):
    """A finite network: hidden layers, the head, and one output."""

    def __init__(self, name, head, inputs, pixels, width, own):
        super().__init__()
        sizes = pairwise((inputs, *[width] * DEPTH))
        hidden = [nn.Linear(a, b) if head is None else nn.Conv2d(a, b, 3, padding=1) for a, b in sizes]
        self.hidden = nn.ModuleList(Scaled(layer, own) for layer in hidden)
        self.phi, self.head = activation(name), head
        self.readout = Scaled(nn.Linear(width * (pixels if head == "flatten" else 1), 1), own)

    def features(self, x):
        for layer in self.hidden:
            x = self.phi(layer(x))
        return x.mean((2, 3)) if self.head == "pool" else x.flatten(1)

    def forward(self, x):
        return self.readout(self.features(x))


def build(case, x, width, seed):
    limit, head, _ = CASES[case]
    return Network(limit.activation, head, x.shape[1], x[0, 0].numel(), width, generator("finite width", case, width, seed)).eval()


@torch.no_grad()
def kernels(net, x):
    """The NNGP and the NTK of one finite network."""
    phi = net.features(x).double()
    return {"nngp": W_STD**2 * phi @ phi.T / phi.shape[1] + B_STD**2, "ntk": tangent_gram(net, x)}


def points(case, n=16):
    """Digits without the mean digit, of one length |x|^2 = d; flat for dense layers."""
    rows = digits()[0].float()
    rows = (rows - rows.mean(0))[:n]
    rows = rows * (rows.shape[1] ** 0.5 / rows.norm(dim=1, keepdim=True))
    return rows if CASES[case][1] is None else rows.reshape(n, 1, 8, 8)


def measure(case, width, seeds):
    """Relative squared Frobenius errors over the seeds, by kernel."""
    x, found = points(case), {"nngp": [], "ntk": []}
    exact = CASES[case][0].kernels(x.double())
    for seed in range(seeds):
        for part, K in kernels(build(case, x, width, seed), x).items():
            limit = getattr(exact, part)
            found[part].append(float(((K - limit).norm() / limit.norm()) ** 2))
    return {part: summary(torch.tensor(own, dtype=torch.float64)) for part, own in found.items()}


def summary(squares):
    """Root mean square error, and the standard error of its logarithm."""
    mean = float(squares.mean())
    return {"rms": mean**0.5, "error": float(squares.std()) / len(squares) ** 0.5 / (2 * mean)}


def slope(rows, part):
    """Slope of log rms error on log width, by least squares, with its standard error from the spread over seeds."""
    rows = [row for row in rows if row["width"] >= FIRST]
    x, y, errors = (torch.tensor(v, dtype=torch.float64) for v in zip(
        *((math.log(row["width"]), math.log(row[part]["rms"]), row[part]["error"]) for row in rows), strict=True))  # fmt: skip
    d = x - x.mean()
    return {"slope": float(d @ y / d.square().sum()), "error": float((errors.square().mean() / d.square().sum()).sqrt())}


def mean_slope(slopes):
    """Weighted mean of independent slopes."""
    w = [own["error"] ** -2 for own in slopes]
    return {"slope": sum(v * own["slope"] for v, own in zip(w, slopes, strict=True)) / sum(w), "error": sum(w) ** -0.5}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, smaller widths")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is finite_width.json beside the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds = 16 if args.quick else 128
    widths = {case: own[: 4 if head else 5] if args.quick else own for case, (_, head, own) in CASES.items()}
    print(f"rms relative error of {seeds} networks{'':19} width" + "".join(f"{width:8}" for width in DENSE) + "   slope from width 64 on")
    cases = {}
    for case, own in widths.items():
        rows = [{"width": width, **measure(case, width, seeds)} for width in own]
        cases[case] = {"rows": rows, **{part: slope(rows, part) for part in ("nngp", "ntk")}}
        for part in ("nngp", "ntk"):
            fit = cases[case][part]
            print(f"{case:45} {part:>5}     " + "".join(f"{row[part]['rms']:8.4f}" for row in rows) + " " * 8 * (len(DENSE) - len(rows))
                  + f"   {fit['slope']:.3f} +- {fit['error']:.3f}", flush=True)  # fmt: skip
    means = {part: mean_slope([own[part] for own in cases.values()]) for part in ("nngp", "ntk")}
    for part, fit in means.items():
        away = abs(fit["slope"] + 0.5) / fit["error"]
        print(f"{part}: slope {fit['slope']:.3f} +- {fit['error']:.3f}, {away:.1f} standard errors from -1/2")
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        found = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine(), "seeds": seeds,
                 "first": FIRST, "w_std": W_STD, "b_std": B_STD, "depth": DEPTH, "cases": cases, "mean": means}  # fmt: skip
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
