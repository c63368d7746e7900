"""The marginals of a known bridge: their KL from the exact ones, and the tables and goals of `bridge_gaussian`; no training here.

    exact     X_t ~ N((0.2 t - 0.1) 1, v_t I),   v_t = t (1-t) sqrt(5) + (1-t)^2 + t^2,   Cov(X_0, X_1) = (sqrt(5) - 1)/2 I
    KL_t      of N(sample mean, sample covariance S) of n states from the exact marginal, mean over t = 1/20, 2/20, ..., 1
    floor     (d log((n-1)/2) - sum_{k=1..d} psi((n-k)/2) + d/n) / 2     E KL_t of n perfect samples: (n-1) S is Wishart

The floor is most of the KL in high dimension, so KL is given less it, which is unbiased to first order whatever the law. It is that
of the full covariance, and at least the sum over coordinates. Mixtures of one component have Gaussian marginals with known moments.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import Cell, Goal, Table
from driftway.transport import MixtureValue
from driftway.transport.stream import generator

SHIFT, SIGMA = 0.1, 1.0
CROSS = (5**0.5 - 1) / 2
GRID = 20
STEPS = (20, 100)
CHUNK = 10_000
MIXTURES = {"driftway mixture, K = 1": 1, "driftway mixture, K = 16": 16}
NETWORK, RESIDUAL = "driftway network", "driftway residual"
PEERS = {"[SF]2M, exact plans": "exact", "[SF]2M, Sinkhorn plans": "sinkhorn"}
PUBLISHED = {"DSBM-IPF": {5: 1.23, 20: 4.42, 50: 8.75}, "SB-CFM": {5: 1.45, 20: 12.3, 50: 49.4}}
RIVAL = "DSBM-IPF"
Paths = Callable[[Tensor, int, int], Tensor]  # (source rows, steps, seed) -> states at t = 0, 1/20, ..., 1


class Normal:
    """N(mean 1, I) in d dimensions, a sampler."""

    def __init__(self, d: int, mean: float) -> None:
        self.dim, self.mean = d, mean

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return self.mean + torch.randn(n, self.dim, generator=generator)


def floor(n: int, d: int) -> float:
    """Expected KL of the Gaussian fitted to n samples of a Gaussian from that Gaussian."""
    order = torch.arange(1, d + 1, dtype=torch.float64)
    return float(d * math.log((n - 1) / 2) - torch.digamma((n - order) / 2).sum() + d / n) / 2


def divergence(mean: Tensor, covariance: Tensor, t: float) -> float:
    """KL of N(mean, covariance) from the exact marginal at t."""
    v, d = t * (1 - t) * (4 + SIGMA**4) ** 0.5 + (1 - t) ** 2 + t**2, len(mean)
    away = (mean - (2 * t - 1) * SHIFT).square().sum()
    return float((covariance.trace() + away) / v - d + d * math.log(v) - torch.logdet(covariance)) / 2


def score(paths: Paths, d: int, *, n: int, steps: int, seed: int) -> dict[str, Any]:
    """Mean over the grid of 1000 KL, less the floor and with it, and the mean diagonal of Cov(X_0, X_1)."""
    first, second, cross = torch.zeros(GRID, d).double(), torch.zeros(GRID, d, d).double(), torch.zeros(d).double()
    start = torch.zeros(d).double()
    for part in range(n // CHUNK):
        x = Normal(d, -SHIFT)(CHUNK, generator("test", d, seed, part))
        states = paths(x, steps, int(torch.randint(2**31, (), generator=generator("paths", seed, part)))).double()
        first += states[1:].sum(1)
        second += states[1:].transpose(1, 2) @ states[1:]
        cross += (states[0] * states[-1]).sum(0)
        start += states[0].sum(0)
    mean = first / n
    covariance = (second - n * mean[:, :, None] * mean[:, None, :]) / (n - 1)
    found = [1000 * divergence(mean[h], covariance[h], (h + 1) / GRID) for h in range(GRID)]
    if not all(map(math.isfinite, found)):
        return {"kl": None, "raw": None, "last": None, "cross": None}
    ends = float(((cross - n * (start / n) * mean[-1]) / (n - 1)).mean())
    low = 1000 * floor(n, d)
    return {"kl": fmean(found) - low, "raw": fmean(found), "last": found[-1] - low, "cross": ends}


def exact_moments(value: MixtureValue) -> dict[str, float]:
    """The same for a mixture of one component, from its moments: X_1 = b + S X_0 + normal of covariance S."""
    L, b = value.L[0].double(), value.r[0].double()
    S, eye = L @ L.T, torch.eye(len(b)).double()
    found = []
    for h in range(1, GRID + 1):
        t = h / GRID
        move = (1 - t) * eye + t * S
        mean = t * b - SHIFT * move.sum(1)
        found.append(1000 * divergence(mean, move @ move.T + t**2 * S + t * (1 - t) * eye, t))
    return {"kl": fmean(found), "last": found[-1], "cross": float(S.diagonal().mean())}


def mean_of(rows: Sequence[Mapping[str, Any]], name: str, **key: Any) -> float | None:
    """Mean over seeds of one figure; None where there is none, infinite where a path left the numbers."""
    own = [row[name] for row in rows if all(row[k] == wanted for k, wanted in key.items())]
    if not own:
        return None
    return math.inf if None in own else fmean(own)


def goals(single: Sequence[Mapping[str, Any]], dims: Sequence[int]) -> list[Goal]:
    """Ours against the published figure, and against [SF]2M at equal seconds, in every dimension."""
    made = []
    for title, methods, steps in (("The mixture", MIXTURES, STEPS[0]), ("The network, 100 steps,", [NETWORK], STEPS[1]),
                                   ("The residual network, 100 steps,", [RESIDUAL], STEPS[1])):
        for rival, claim in ((RIVAL, f"the published one of {RIVAL}"), ("[SF]2M", "the best of [SF]2M, trained beside it for as long,")):
            checks = []
            for d in dims:
                limits = [mean_of(single, "kl", d=d, method=name, steps=count) for name in PEERS for count in STEPS]
                limit = PUBLISHED[RIVAL][d] if rival == RIVAL else min((kl for kl in limits if kl is not None), default=math.nan)
                for method in methods:
                    kl = mean_of(single, "kl", d=d, method=method, steps=steps)
                    if kl is not None:
                        checks.append([d, method, kl, limit, "met" if kl < limit else "not met"])
            columns = ["d", "method", "1000 KL", f"of {rival}", "verdict"]
            made.append(Goal(f"{title} has a KL below {claim} in every dimension", columns, checks))
    return made


def tables(single: Sequence[Mapping[str, Any]], trainings: Sequence[Mapping[str, Any]], dims: Sequence[int], n: int) -> list[Table]:
    """KL and cross-covariance by method, floors, and what training took."""
    one = next(name for name, K in MIXTURES.items() if K == 1)
    known = [run for run in trainings if run["method"] == one]
    moments = [mean_of(known, name, d=d) for name in ("kl", "last") for d in dims]
    divergences: list[list[Cell]] = [[f"{one}: from its moments", "exact", *moments]]
    crosses: list[list[Cell]] = [["exact", None, *[CROSS] * len(dims)]]
    for method, steps in dict.fromkeys((f["method"], f["steps"]) for f in single):
        found = [[mean_of(single, name, d=d, method=method, steps=steps) for d in dims] for name in ("kl", "last", "cross")]
        shown = "exact" if method in MIXTURES else steps
        divergences.append([method, shown, *found[0], *found[1]])
        crosses.append([method, shown, *found[2]])
    for name, figures in PUBLISHED.items():
        divergences.append([f"published: {name}", None, *[figures[d] for d in dims], *[None] * len(dims)])
    floors = [[d, n, 1000 * floor(n, d)] for d in dims]
    runs = dict.fromkeys((run["d"], run["method"]) for run in trainings)
    costs = [[d, method, *[mean_of(trainings, name, d=d, method=method) for name in ("seconds", "steps")]] for d, method in runs]
    heads = [f"d = {d}" for d in dims]
    return [Table("1000 KL of the marginals from the exact ones, mean over t, and at t = 1",
                  ["method", "steps", *heads, *[f"{head}, t = 1" for head in heads]], divergences,
                  "Less the floor. The last rows are not ours."),
            Table("Mean diagonal of Cov(X_0, X_1)", ["method", "steps", *heads], crosses),
            Table("Floor of 1000 KL: what perfect samples of that number score", ["d", "samples", "floor"], floors),
            Table("Training", ["d", "method", "seconds", "steps"], costs, "Means over seeds.")]  # fmt: skip
