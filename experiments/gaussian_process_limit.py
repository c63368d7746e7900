"""The distribution-informed network comes to a Gaussian process with the distribution kernel, and trains as its two kernels say.

    python -m experiments.gaussian_process_limit [--quick] [--activation erf] [--json FILE]

`driftway.adapt.network` with every parameter standard normal (Wu et al., 2022, appendix): g and h of two hidden layers, two domains with
shifted base samples, weights that depend on the row, 8 labelled rows of the source, 4 of the target, and 8 more of the target to predict.
Given g and h, outputs are normal with covariance Khat = F F'/N, F the features, so their departure from a normal law is the spread of Khat:

    NNGP            rms relative error of Khat in Frobenius norm                                              slope -1/2
    NTK             the same of the tangent kernel of all parameters, by autograd                             slope -1/2
    readout alone   descent in the readout: rms distance of f_t - f_0, at 28 times and the rows to predict,
                    from A_t (y - f_0) with the NNGP, relative to the rms of that (DINO-INIT)                 slope -1/2
    all parameters  descent in all parameters: the same with the NTK (DINO-TRAIN)                             slope -1/2
    kurtosis        excess kurtosis 3 var(Khat_uu) / mean(Khat_uu)^2 of the output u.f                        slope -1
    KS              largest difference between the distribution functions of u.f and of its limit             slope -1
    squares         covariance of (u.f_1)^2 and (u.f_2)^2 for two of 16 sampled outputs, over 2 (E (u.f)^2)^2,
                    the variance of such a square in the limit                                                slope -1

with u.f one row, or a sum over rows in a random direction, and means over u. "Raw" figures are of sampled outputs too and know nothing of
Khat. Slopes are by least squares in logarithms from width 128 on (at smaller widths the next order shows: distances of paths are bounded),
with standard errors from the spread over draws. At one width, so many networks are trained that mean and variance of the ensemble can be
compared with those of `GradientFlow`: f_0 is random, and is not subtracted.
"""

import argparse
import copy
import json
import math
import platform
from pathlib import Path

import torch
from scipy.stats import kstest

import driftway
from driftway.adapt.descent import step_size, train
from driftway.adapt.network import DistributionNetwork
from driftway.adapt.weights import AttentionWeights
from driftway.kernels import gradient_flow
from driftway.transport.stream import generator

W_STD, B_STD, DEPTH = 1.5, 0.5, 2
STAGES, EVERY = ((40, 0.075), (40, 0.25), (60, 0.5)), 5  # steps of training, and their size in units of `step_size`
SCOPES = {"readout alone": ("readout", "nngp"), "all parameters": ("all", "ntk")}
Z = torch.linspace(-4, 4, 81, dtype=torch.float64)


def problem():
    """Base samples, weights, rows with their domains (labelled ones first, then those to predict), and targets."""
    own = generator("gaussian process limit", "problem")
    base = [torch.randn(12, 4, generator=own) + 0.8, torch.randn(12, 4, generator=own)]
    attention = AttentionWeights.uniform(4, 2, generator=own).requires_grad_(False)
    for tensor in (attention.A, attention.v):
        tensor.normal_(generator=own)
    domain = torch.tensor([1] * 8 + [0] * 12)
    x = torch.randn(20, 4, generator=own) + 0.8 * (domain == 0)[:, None]
    y = torch.sin(2 * x[:12, 0]) + x[:12, 1] + 0.7 * (domain[:12] == 0)
    return base, attention, x, domain, y


BASE, WEIGHTS, X, DOMAIN, Y = problem()
LABELLED, ASKED = slice(0, len(Y)), slice(len(Y), None)


def build(activation, width, own, outputs=1):
    return DistributionNetwork(BASE, width=width, generator=own, depth=DEPTH, activation=activation, w_std=W_STD, b_std=B_STD,
                               outputs=outputs, weights=copy.deepcopy(WEIGHTS))  # fmt: skip


def summary(squares):
    """Root mean square error, and the standard error of its logarithm."""
    mean = float(squares.mean())
    return {"value": mean**0.5, "error": float(squares.std()) / len(squares) ** 0.5 / (2 * mean)}


def slope(rows, key, first):
    """Slope of log value on log width, from width `first` on, with its standard error from those of the logarithms."""
    rows = [row for row in rows if row["width"] >= first]
    x, y, errors = (torch.tensor(v, dtype=torch.float64) for v in zip(
        *((math.log(row["width"]), math.log(row[key]["value"]), row[key]["error"]) for row in rows), strict=True))  # fmt: skip
    d = x - x.mean()
    return {"slope": float(d @ y / d.square().sum()), "error": float((d * errors).square().sum().sqrt() / d.square().sum())}


def relative(K, limit):
    return ((K.double() - limit).flatten(1).norm(dim=1) / limit.norm()).square()


@torch.no_grad()
def sample(activation, width, draws, outputs=16):
    """Khat (draws, rows, rows) and f (outputs, draws, rows) of networks drawn anew."""
    own = generator("gaussian process limit", "sample", width)
    net = build(activation, width, own, outputs)
    theta, kernels, found = [p for p in net.parameters() if p.requires_grad], [], []
    for _ in range(draws):
        for p in theta:
            p.normal_(generator=own)
        F = net.features(X, DOMAIN)
        kernels.append((F @ F.T / width).double())
        found.append(net.read(F).T.double())
    return torch.stack(kernels), torch.stack(found, 1)


def normality(activation, limit, width, draws, resamples=50):
    """How far outputs are from a normal law and from independence; standard errors by the bootstrap over draws."""
    K, f = sample(activation, width, draws)
    own, k = generator("gaussian process limit", "directions"), len(f)
    u = torch.cat([torch.eye(len(X)), torch.randn(len(X), len(X), generator=own)]).double()
    scale = ((u @ limit.nngp) * u).sum(1)
    v, g = torch.einsum("un,rnm,um->ru", u, K, u) / scale, f @ u.T / scale.sqrt()  # in the limit 1, and of variance 1
    beyond = torch.special.ndtr(Z / v.sqrt()[..., None]) - torch.special.ndtr(Z)
    second, fourth = g.square().mean(0), (g**4).mean(0)
    product = (k * second.square() - fourth) / (k - 1)  # of the squares of two outputs, in the mean over pairs

    def statistics(p):
        """Of draws of these weights, in the mean over u."""
        mean, square = p @ v, (p @ second).square()
        rows = {"kurtosis": 3 * (p @ v.square() / mean.square() - 1), "KS": torch.einsum("r,ruz->uz", p, beyond).abs().amax(1),
                "squares": (p @ product / square - 1) / 2, "kurtosis raw": p @ fourth / square - 3}  # fmt: skip
        return torch.tensor([float(row.mean()) for row in rows.values()]), list(rows)

    values, names = statistics(torch.full((draws,), 1 / draws).double())
    again = (torch.randint(draws, (draws,), generator=own).bincount(minlength=draws).double() / draws for _ in range(resamples))
    errors = torch.stack([statistics(p)[0] for p in again]).std(0) / values
    found = {name: {"value": value, "error": error} for name, value, error in zip(names, values.tolist(), errors.tolist(), strict=True)}
    P = torch.einsum("krn,krm->rnm", f, f) / k
    share = (torch.tensor(kstest(g[0].numpy(), "norm").pvalue) < 0.01).double().mean()
    return {"width": width, "NNGP": summary(relative(K, limit.nngp)), **found,
            "covariance raw": float((P.mean(0) - limit.nngp).norm() / limit.nngp.norm()),
            "its Monte Carlo error": float((P.var(0).sum() / draws).sqrt() / limit.nngp.norm()),
            "KS test rejects at 1 %": float(share)}  # fmt: skip


def tangent(net):
    """The tangent kernel of readout, g and h at all rows."""
    theta = [p for p in net.parameters() if p.requires_grad]
    J = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(value, theta, retain_graph=True)])
                     for value in net(X, DOMAIN)[:, 0]])  # fmt: skip
    return J @ J.T


def path(net, scope, unit):
    """f_t at the rows to predict, (times, rows), through all stages of training."""
    found = []
    for steps, size in STAGES:
        for step, _ in train(net, X[LABELLED], DOMAIN[LABELLED], Y, steps=steps, lr=size * unit, scope=scope):
            if step and step % EVERY == 0:
                found.append(net(X[ASKED], DOMAIN[ASKED])[:, 0].detach().double())
    return torch.stack(found)


class Limit:
    """Training at infinite width, by one of the two kernels."""

    def __init__(self, limits, part, unit):
        K = getattr(limits, part)
        self.K, self.cross, self.nngp = K[LABELLED, LABELLED], K[ASKED, LABELLED], limits.nngp
        sizes = torch.tensor([size * unit for steps, size in STAGES for _ in range(steps)]).double()
        self.sizes, self.t = sizes, sizes.cumsum(0)[EVERY - 1 :: EVERY]
        self.A = gradient_flow(self.K, torch.eye(len(Y)).double()).mean(self.cross, self.t)
        self.square = (self.A @ Y.double()).square() + (self.A @ self.nngp[LABELLED, LABELLED] * self.A).sum(-1)  # E (A_t (y - f_0))^2

    def steps_error(self):
        """Relative distance between descent and flow from f_0 = 0: what the sizes of the steps alone cost."""
        f, r, found = torch.zeros(len(self.cross)).double(), Y.double(), []
        for size in self.sizes:
            f, r = f + size / len(Y) * self.cross @ r, r - size / len(Y) * self.K @ r
            found.append(f)
        flow = self.A @ Y.double()
        return float((torch.stack(found)[EVERY - 1 :: EVERY] - flow).norm() / flow.norm())

    def ensemble(self):
        """Mean and variance of f_t over random f_0."""
        flow, S = gradient_flow(self.K, Y.double()), self.nngp
        variance = flow.variance(self.cross, self.t, nngp_train=S[LABELLED, LABELLED], nngp_cross=S[ASKED, LABELLED],
                                 nngp_diagonal=S.diagonal()[ASKED])  # fmt: skip
        return flow.mean(self.cross, self.t), variance


def trained(activation, limits, width, many, unit):
    """So many networks by scope: squared distances of f_t - f_0 from the limit, (draws, times, rows); f_t; and tangent kernels."""
    tangents, squares, paths = [], {name: [] for name in SCOPES}, {name: [] for name in SCOPES}
    for draw in range(max(many.values())):
        net = build(activation, width, generator("gaussian process limit", "train", width, draw))
        tangents.append(tangent(net))
        start = net(X, DOMAIN)[:, 0].detach().double()
        for name, (scope, _) in SCOPES.items():
            if draw >= many[name]:
                continue
            f = path(copy.deepcopy(net), scope, unit[name])
            squares[name].append((f - start[ASKED] - limits[name].A @ (Y.double() - start[LABELLED])).square())
            paths[name].append(f)
    stacked = [{name: torch.stack(own) for name, own in table.items()} for table in (squares, paths)]
    return *stacked, torch.stack(tangents)


def ensemble(f, limit):
    """Mean and variance over networks of f (draws, times, rows) against the limit, in standard errors and relative to it."""
    mean, variance = limit.ensemble()
    R, i = len(f), int((variance[-1] / variance[0]).argmin())  # i: the row that training says most about
    off, excess = f.mean(0) - mean, f.var(0) / variance - 1
    one = {"limit mean": mean, "limit variance": variance, "mean": f.mean(0), "variance": f.var(0)}
    return {"networks": R, "mean, relative": float(off.norm() / mean.norm()),
            "its Monte Carlo error": float((variance.sum() / R).sqrt() / mean.norm()),
            "mean, rms z": float((off / (variance / R).sqrt()).square().mean().sqrt()),
            "variance, rms relative": float(excess.square().mean().sqrt()), "of it by Monte Carlo": (2 / (R - 1)) ** 0.5,
            "variance, mean ratio": float(excess.mean()) + 1, "t": limit.t.tolist(),
            "row": {**{name: own[:, i].tolist() for name, own in one.items()}, "networks": f[:20, :, i].tolist()}}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws, smaller widths")
    parser.add_argument("--activation", default="erf", help="of hidden layers; relu has heavier tails, so larger standard errors")
    parser.add_argument("--json", type=Path, help="file for the figures; default of the full run: gaussian_process_limit.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    networks = {64: (40, 12), 128: (40, 40), 256: (40, 12)} if args.quick else {
        64: (200, 64), 128: (200, 64), 256: (200, 200), 512: (100, 48), 1024: (64, 24)}  # fmt: skip
    laws, draws, crowd, first = ((64, 128, 256), 1000, 128, 64) if args.quick else ((16, 32, 64, 128, 256, 512), 8000, 256, 128)

    net = build(args.activation, 1, generator("limit")).double()
    kernels = net.limit_kernels(X.double(), DOMAIN)
    unit = {name: step_size(net, X[LABELLED].double(), DOMAIN[LABELLED], scope=scope) for name, (scope, _) in SCOPES.items()}
    limits = {name: Limit(kernels, part, unit[name]) for name, (_, part) in SCOPES.items()}

    normal = []
    for width in laws:
        normal.append(row := normality(args.activation, kernels, width, draws))
        figures = {key: own["value"] if isinstance(own, dict) else own for key, own in row.items() if key != "width"}
        print(f"width {width:5}, {draws} draws: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()), flush=True)
    rows, over = [], {}
    for width, numbers in networks.items():
        many = dict(zip(SCOPES, numbers, strict=True))
        squares, paths, tangents = trained(args.activation, limits, width, many, unit)
        row = {name: summary(squares[name].sum((1, 2)) / limit.square.sum()) for name, limit in limits.items()}
        over[str(width)] = {name: (squares[name].mean(0).sum(1) / limit.square.sum(1)).sqrt().tolist() for name, limit in limits.items()}
        rows.append(row := {"width": width, "networks": many, "NTK": summary(relative(tangents, kernels.ntk)), **row})
        print(f"width {width:5}, {' and '.join(map(str, numbers))} networks: "
              + ", ".join(f"{key} {row[key]['value']:.4f}" for key in ("NTK", *SCOPES)), flush=True)  # fmt: skip
        if width == crowd:
            crowds = {name: ensemble(paths[name], limits[name]) for name in SCOPES}
    keys = {**dict.fromkeys(("NNGP", "kurtosis", "KS", "squares"), normal), **dict.fromkeys(("NTK", *SCOPES), rows)}
    slopes = {key: slope(own, key, first) for key, own in keys.items()}
    for key, own in slopes.items():
        print(f"{key:15} slope {own['slope']:.3f} +- {own['error']:.3f}")
    costs = {name: limit.steps_error() for name, limit in limits.items()}
    for name, own in crowds.items():
        print(f"{name}, width {crowd}: " + ", ".join(f"{key} {v:.3f}" for key, v in own.items() if isinstance(v, float | int))
              + f"; steps instead of a flow: {costs[name]:.4f}")  # fmt: skip
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        found = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine(), "activation": args.activation,
                 "w_std": W_STD, "b_std": B_STD, "depth": DEPTH, "first": first, "slopes": slopes, "draws": draws, "normality": normal,
                 "training": rows, "times": {name: limit.t.tolist() for name, limit in limits.items()}, "distance over time": over,
                 "steps instead of a flow": costs, "ensemble": {"width": crowd, **crowds}}  # fmt: skip
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
