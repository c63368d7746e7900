"""Early stopping where the answer is known: how early is the plain rule, and does the error fall with n as the theory says?

    python -m experiments.stopping_simulation [--quick] [--json FILE]

1. K(x, x') = min(x, x') on [0, 1], f(x) = |x - 1/2| - 1/2, whose norm is 1, x_i = i/n, y = f + sigma noise, descent with steps 1/4.
   T is in steps, the median of all draws; MSE is against f at all n rows, the mean. "rule" knows sigma and R, "rule, estimated" does
   not; SURE knows sigma; "hold-out" trains on the odd rows alone and chooses T by the error at the even ones.
2. The critical radius eps_n^2 of exact spectra, and its slope in log n, for the laws

       finite rank m     4 e^2 sigma^2 m / n             slope -1
       exponential       sigma^2 log(n) / n              slope -1 + about 1/log(n)
       power j^(-2b)     (sigma^2/n)^(2b/(2b+1))         slope -2b/(2b+1)

   and of the expected error of stopping there, for the worst f of norm 1 in the space of K. Theory is fitted on the same n.
"""

import argparse
import json
import math
import platform
from pathlib import Path

import torch

import driftway
from driftway.linalg import Spectrum, eigendecompose
from driftway.stopping import Flow, Schedule, fit_noise, rules

ALPHA = Schedule(0.25)
CASES = ((0.15, 200), (0.15, 800), (1.0, 100), (1.0, 800), (0.15, 3200))
EARLIER = {(0.15, 200): (240, 572, 0.00100, 0.00056, 0.00070, 0.00127), (0.15, 800): (612, 1116, 0.00026, 0.00021, 0.00026, 0.00042),
           (1.0, 100): (10, 91, 0.0348, 0.0191, 0.0375, 0.0507), (1.0, 800): (49, 231, 0.0117, 0.0037, 0.0060, 0.0097)}  # fmt: skip
LAWS = {
    "finite rank 5": (lambda j, n: (j <= 5).double(), lambda n: n**-1.0),
    "exponential": (lambda j, n: torch.exp(-j), lambda n: math.log(n) / n),
    "power j^-2": (lambda j, n: j**-2, lambda n: n ** (-2 / 3)),
    "power j^-4": (lambda j, n: j**-4, lambda n: n ** (-4 / 5)),
}


def steps(eta):
    found = ALPHA.steps_for(eta)
    return math.inf if found is None else found


def simulate(sigma, n, draws):
    """Medians of T and means of the error over draws of the noise."""
    own = torch.Generator().manual_seed(n)
    x = torch.arange(1, n + 1, dtype=torch.float64) / n
    K, f = torch.minimum(x[:, None], x), (x - 0.5).abs() - 0.5
    spectrum, odd = eigendecompose(K), torch.arange(0, n, 2)
    even = odd + 1
    half = eigendecompose(K[odd][:, odd])
    times, errors = {}, {}

    def keep(name, flow, eta, cross=None):
        times.setdefault(name, []).append(steps(eta))
        fitted = flow.fitted(eta) if cross is None else flow.predict(cross, eta)
        errors.setdefault(name, []).append(float((fitted - f).square().mean()))

    for _ in range(draws):
        y = f + sigma * torch.randn(n, generator=own, dtype=torch.float64)
        flow, part = Flow(spectrum, y), Flow(half, y[odd])
        noise = fit_noise(flow)
        keep("rule", flow, rules.rademacher(flow, sigma=sigma, radius=1.0))
        keep("rule, estimated", flow, rules.rademacher(flow, sigma=noise.sigma, radius=noise.radius))
        keep("discrepancy", flow, rules.discrepancy(flow, sigma=noise.sigma))
        keep("SURE", flow, rules.sure(flow, sigma=sigma))
        keep("SURE, estimated", flow, rules.sure(flow, sigma=noise.sigma))
        keep("GCV", flow, rules.gcv(flow))
        keep("marginal likelihood", flow, rules.marginal_likelihood(flow, lam=noise.lam(n)))
        keep("hold-out", part, rules.holdout(part, cross=K[even][:, odd], held=y[even]), K[:, odd])
        keep("oracle", flow, rules.oracle(flow, truth=f))
    eta = flow.times(4000)
    optimal = float(eta[flow.risk(eta, sigma=sigma, truth=f).argmin()])
    rows = {}
    for name in times:
        e = torch.tensor(errors[name])
        rows[name] = {"T": float(torch.tensor(times[name]).double().median()), "MSE": float(e.mean()), "error": float(e.std()) / draws**0.5}
    return {"sigma": sigma, "n": n, "T risk-optimal": steps(optimal), "eta of the rule": rules.rademacher(flow, sigma=sigma, radius=1.0),
            "rules": rows, "earlier": EARLIER.get((sigma, n))}  # fmt: skip


def slope(n, values):
    x, y = torch.tensor(n).double().log(), torch.tensor(values).double().log()
    x = x - x.mean()
    return float(x @ y / x.square().sum())


def rate(name, sizes, sigma):
    """Critical radii of exact spectra, and the expected error of flow stopped there, for the worst f of norm 1."""
    law, theory = LAWS[name]
    radii, risks = [], []
    for n in sizes:
        mu = law(torch.arange(1, n + 1, dtype=torch.float64), n)
        flow = Flow(Spectrum(mu, n, torch.eye(n, dtype=torch.float64)), torch.ones(n, dtype=torch.float64))
        radius = rules.critical_radius(flow, sigma=sigma)
        s = flow.survival(1 / radius)
        radii.append(radius)
        risks.append(float((s.square() * mu).max() + sigma**2 / n * (1 - s).square().sum()))
    return {"law": name, "n": sizes, "eps_n^2": radii, "worst error": risks, "slope of eps_n^2": slope(sizes, radii),
            "slope of worst error": slope(sizes, risks), "theory": slope(sizes, [theory(n) for n in sizes])}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws and sizes")
    parser.add_argument("--json", type=Path, help="file for the figures; default of the full run: stopping_simulation.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    draws = 20 if args.quick else 100
    rows = []
    for sigma, n in [(s, n) for s, n in CASES if n <= (800 if args.quick else 3200)]:
        row = simulate(sigma, n, draws if n <= 800 else 5)
        rows.append(row)
        print(f"\nsigma {sigma:g}, n {n}: T of least expected risk {row['T risk-optimal']}; an earlier run (T of rule and of least "
              f"risk, MSE of rule, oracle, SURE and hold-out): {EARLIER.get((sigma, n), '-')}")  # fmt: skip
        for name, own in row["rules"].items():
            print(f"    {name:20} T {own['T']:8.0f}   MSE {own['MSE']:.5f} +- {own['error']:.5f}", flush=True)
    etas = {row["n"]: row["eta of the rule"] for row in rows if row["sigma"] == 0.15}
    growth, ratio = etas[max(etas)] / etas[200], max(etas) / 200
    print(f"\nsigma 0.15: the rule's eta grows {growth:.2f}x for {ratio:g}x n; theory {ratio ** (2 / 3):.2f}")
    sizes = [125, 250, 500, 1000] if args.quick else [125, 250, 500, 1000, 2000, 4000]
    found = [rate(name, sizes, 0.15) for name in LAWS]
    for own in found:
        print(f"{own['law']:14} slope of eps_n^2 {own['slope of eps_n^2']:.3f}, of the worst error {own['slope of worst error']:.3f}, "
              f"theory {own['theory']:.3f}")  # fmt: skip
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        facts = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine(), "draws": draws,
                 "simulation": rows, "growth": {"found": growth, "theory": ratio ** (2 / 3)}, "rates": found}  # fmt: skip
        file.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
