"""Learned values and maps against answers that are known exactly.

    python -m experiments.closed_forms [--quick] [--json FILE]

1. V_0 and g of both families against the dual of the exact linear program, 200 against 200 points: squared correlation.
2. A Gaussian pair against its Bures map, d = 2, 8, 16: L2-UVP, 100 E|T(x) - T*(x)|^2 / Var(target), one and four steps.
3. A one-dimensional pair against the quantile map: the same.
4. The Gaussian Schrödinger bridge N(-0.1, I) -> N(0.1, I), sigma = 1, d = 5, 20, 50: mean over t of the KL divergence of the
   model's marginal from the exact one, x 1000. The mixture's marginals are Gaussian with moments in closed form.
"""

import argparse
import json
import platform
from pathlib import Path

import torch

import driftway
from driftway.transport import MixtureValue, Problem, Settings, TransportModel, fit, solve_assignment_program


def normal(mean, root):
    """A sampler of mean + root z."""
    return lambda n, generator: mean + torch.randn(n, len(mean), generator=generator) @ root.T


def squared_correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1] ** 2)


def against_program(seconds, seed):
    own = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 2, generator=own)
    angle = torch.randint(8, (200,), generator=own) * torch.pi / 4
    y = 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1**0.5 * torch.randn(200, 2, generator=own)
    exact = solve_assignment_program(x.numpy(), y.numpy())
    found = {}
    for family in ("mixture", "network"):
        model = fit(x, y, family=family, max_seconds=seconds, holdout=0.0, seed=seed)
        found[family] = {
            "V_0": squared_correlation(model.value(x, 0.0), exact.values[0]),
            "g": squared_correlation(model.price(y), exact.g),
        }
    return found


def uvp(model, x, answer, variance, steps):
    rule = "explicit"  # the map, not a draw from the plan
    error = (model.sample(x, steps=steps, rule=rule) - answer).square().sum(1).mean()
    return float(100 * error / variance)


def against_bures(d, seconds, seed):
    own = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(d, d, generator=own) / d**0.5 + 0.5 * torch.eye(d) for _ in range(2))
    mean = torch.randn(d, generator=own)
    root = square_root(A @ A.T)
    inverse = torch.linalg.inv(root)
    T = inverse @ square_root(root @ B @ B.T @ root) @ inverse
    x = torch.randn(4096, d, generator=own) @ A.T
    found = {}
    for family in ("mixture", "network"):
        model = fit(normal(torch.zeros(d), A), normal(mean, B), family=family, max_seconds=seconds, seed=seed, settings=Settings(width=128))
        found[family] = {steps: uvp(model, x, mean + x @ T, (B @ B.T).trace(), steps) for steps in (1, 4)}
    return found


def square_root(matrix):
    s, U = torch.linalg.eigh(matrix)
    return (U * s.clamp_min(0).sqrt()) @ U.T


def against_quantiles(seconds, seed):
    """Uniform on [0, 1] to exponential: T(u) = -log(1 - u)."""
    found = {}
    u = (torch.arange(4096)[:, None] + 0.5) / 4096
    answer = -torch.log1p(-u)
    for family in ("mixture", "network"):
        model = fit(lambda n, own: torch.rand(n, 1, generator=own),
                    lambda n, own: -torch.log1p(-torch.rand(n, 1, generator=own).double()).float(),
                    family=family, max_seconds=seconds, seed=seed)  # fmt: skip
        found[family] = {steps: uvp(model, u, answer, torch.tensor(1.0), steps) for steps in (1, 4)}
    return found


def bridge_divergence(model: TransportModel, d):
    """Mean over t of 1000 KL(model's marginal | exact), for a mixture of one component."""
    value = model.value_function
    assert isinstance(value, MixtureValue)
    L, scale = value.L[0].double(), model.scaler.scale[0].double()
    S, shift = L @ L.T, model.scaler.shift.double()
    eye = torch.eye(d).double()
    source = -0.1 * torch.ones(d).double()
    intercept = scale * value.r[0].double() + shift - S @ shift  # y = intercept + S x + noise, in data units
    total = []
    for t in torch.linspace(0, 1, 21)[1:].double():
        move = (1 - t) * eye + t * S
        mean = move @ source + t * intercept
        covariance = move @ move.T + t**2 * S + t * (1 - t) * eye
        exact_mean, exact = (0.2 * t - 0.1) * torch.ones(d), t * (1 - t) * 5**0.5 + (1 - t) ** 2 + t**2
        trace = covariance.trace() / exact - d + d * exact.log() - torch.logdet(covariance)
        total.append((trace + (mean - exact_mean).square().sum() / exact) / 2)
    return float(1000 * torch.stack(total).mean())


def against_bridge(d, steps, seed):
    one = torch.ones(d)
    model = fit(normal(-0.1 * one, torch.eye(d)), normal(0.1 * one, torch.eye(d)), problem=Problem(sigma=1.0), family="mixture",
                steps=steps, seed=seed, standardize="none", settings=Settings(components=1), certify_every=10**6)  # fmt: skip
    return bridge_divergence(model, d), model.training["seconds"]


PUBLISHED = {5: {"DSBM-IPF": 1.23, "SB-CFM": 1.45}, 20: {"DSBM-IPF": 4.42, "SB-CFM": 12.3}, 50: {"DSBM-IPF": 8.75, "SB-CFM": 49.4}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and shorter runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seconds, steps = (4.0, 500) if args.quick else (25.0, 4000)
    found = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine()}
    found["program"] = against_program(seconds, 0)
    print("linear program, squared correlation:", found["program"], flush=True)
    found["bures"] = {d: against_bures(d, seconds, 0) for d in ((2,) if args.quick else (2, 8, 16))}
    print("Bures map, L2-UVP % by steps:", found["bures"], flush=True)
    found["quantiles"] = against_quantiles(seconds, 0)
    print("quantile map, L2-UVP % by steps:", found["quantiles"], flush=True)
    found["bridge"] = {}
    for d in (5, 20, 50):
        divergence, spent = against_bridge(d, steps, 0)
        found["bridge"][d] = {"mean KL x 1000": divergence, "seconds": spent, "published": PUBLISHED[d]}
        print(f"Gaussian bridge d = {d}: mean KL x 1000 {divergence:.3f} in {spent:.0f} s; published {PUBLISHED[d]}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
