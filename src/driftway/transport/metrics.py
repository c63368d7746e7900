"""Exact transport between samples, and how straight and how short paths are.

W2 between two samples of n points is not zero even when both come from one law; the same-law floor W2(sample, fresh sample of the
target law) belongs beside every figure.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
import ot
import torch
from jaxtyping import Float
from torch import Tensor

from driftway import checks
from driftway.transport.problem import cost


@dataclass(frozen=True)
class Coupling:
    """An optimal coupling of n rows and m rows of equal weights, with its dual prices.

    Attributes:
        plan: (n, m) masses, summing to one.
        f: (n,) source potentials.
        g: (m,) target prices, f_i <= C_ij + g_j with equality where the plan has mass.
        total: the transport cost, sum of plan * C.
    """

    plan: Float[Tensor, "n m"]
    f: Float[Tensor, " n"]
    g: Float[Tensor, " m"]
    total: float

    def map(self, y: Float[Tensor, "m *event"]) -> Float[Tensor, "n *event"]:
        """The mean of the rows of y that each source row is coupled with."""
        rows = self.plan / self.plan.sum(1, keepdim=True)
        return (rows.to(y) @ y.flatten(1)).reshape(-1, *y.shape[1:])


def exact_coupling(costs: Float[Tensor, "n m"]) -> Coupling:
    """Exact optimal transport between equal weights for a cost matrix (network simplex of POT)."""
    C = costs.detach().double().cpu().numpy()
    n, m = C.shape
    plan, log = ot.emd(np.full(n, 1 / n), np.full(m, 1 / m), C, numItermax=10_000_000, log=True)
    f, g, plan = (torch.as_tensor(z, dtype=torch.float64, device=costs.device) for z in (log["u"], log["v"], plan))
    return Coupling(plan=plan, f=f, g=-g, total=float(log["cost"]))


def w2(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> float:
    """The Wasserstein-2 distance of two samples, exact, in the units of the data.

    Raises:
        InputError: if a sample is not an array of finite numbers, or the two have rows of different shapes.
    """
    x = checks.samples("x", x, least=1)
    y = checks.samples("y", y, least=1, event=tuple(x.shape[1:]))
    return (2 * exact_coupling(cost(x.double(), y.double())).total) ** 0.5


@dataclass(frozen=True)
class Path:
    """Simulated paths of n samples over H steps.

    Attributes:
        t: (H + 1,) times, 0 at the source and 1 at the end.
        states: (H + 1, n, *event).
        actions: (H, n, *event) velocities, the noise of a stochastic step not included.
    """

    t: Float[Tensor, " stages"]
    states: Float[Tensor, "stages n *event"]
    actions: Float[Tensor, "steps n *event"]


def path_energy(path: Path) -> float:
    """The mean of sum_h |x_{h+1} - x_h|^2 / (t_{h+1} - t_h); at least W2^2 of source and target if the target is hit."""
    moves = path.states.diff(dim=0).flatten(2).square().sum(2).mean(1)
    return float((moves / path.t.diff()).sum())


def normalised_path_energy(path: Path, squared_w2: float) -> float:
    """|path energy - W2^2| / W2^2 for W2 between source and target samples (Tong et al., 2024)."""
    squared_w2 = checks.real("squared_w2", squared_w2, least=0, strict=True)
    return abs(path_energy(path) - squared_w2) / squared_w2


def straightness(path: Path) -> float:
    """Energy of the straight chords over energy of the paths: 1 for straight paths at constant speed, less for others."""
    chord = (path.states[-1] - path.states[0]).flatten(1).square().sum(1).mean()
    energy = path_energy(path)
    return float(chord) / energy if 0 < energy < inf else 1.0
