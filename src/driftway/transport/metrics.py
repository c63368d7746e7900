"""Exact transport between samples, and how straight and how short paths are.

W2 between two samples of n points is not zero even when both come from one law; the same-law floor W2(sample, fresh sample of the
target law) belongs beside every figure. So it is for the distance in a kernel k, which has its floor in closed form:

    MMD^2   = mean_ij k(x_i, x_j) - 2 mean_ij k(x_i, y_j) + mean_ij k(y_i, y_j)
    floor^2 = (1/n + 1/m) (mean_j k(y_j, y_j) - mean_{i != j} k(y_i, y_j))          unbiased for E MMD^2 of n and m rows of the target law

(Gretton et al., 2012, for both). W2 sees every displacement and needs a coupling; MMD sees what its kernel sees, costs one matrix, and
comes with a test that is exact for equal laws.

Equation (T28): docs/derivations/transport.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, nan
from typing import Any

import numpy as np
import ot
import torch
from jaxtyping import Float
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.kernels import FullyConnected, Gaussian, Kernel, median_bandwidth, mmd2_from_gram, mmd_test_from_gram
from driftway.kernels.base import Pullback
from driftway.transport.problem import cost
from driftway.transport.stream import generator

KERNELS = ("rbf", "nngp", "ntk")


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
class KernelDistance:
    """How far samples are from target rows in a kernel.

    Attributes:
        mmd: of n samples and m target rows; not negative.
        floor: root mean square of what n rows of the target law would score, estimated from the m rows; NaN for a single row.
        p_value: of the permutation test of equal laws: below 0.05 for one in twenty perfect models.
        n: samples.
        m: target rows.
        classes: the same within each class, where there are labels.
    """

    mmd: float
    floor: float
    p_value: float
    n: int
    m: int
    classes: Mapping[Any, "KernelDistance"] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """MMD over the floor: about 1 for a perfect model. NaN where the floor is 0."""
        return self.mmd / self.floor if self.floor > 0 else nan


@dataclass(frozen=True)
class Standardised:
    """(z - shift) / scale of flattened rows."""

    shift: Float[Tensor, " d"]
    scale: float

    def __call__(self, z: Float[Tensor, "n *event"]) -> Float[Tensor, "n d"]:
        return (z.flatten(1) - self.shift) / self.scale


def kernel_for(name: str, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Kernel:
    """A kernel for two samples, which treats them alike, so that the permutation test holds.

    Args:
        name: "rbf", a Gaussian as wide as the median distance of the rows, or "nngp" or "ntk" of a network of infinite width (two hidden
            layers of ReLU with biases) of the rows, centred and scaled by one number to a mean square of 1 for each column.
        x: rows.
        y: rows of the same shape.

    Raises:
        InputError: if there is no such kernel, or all rows are equal.
    """
    if checks.choice("kernel", name, KERNELS) == "rbf":
        return Gaussian(median_bandwidth(x, y))
    z = torch.cat([x, y]).flatten(1).double()
    shift = z.mean(0)
    scale = float((z - shift).square().mean().sqrt())
    require(scale > 0, "x", expected="at least two unequal rows", got=f"{len(z)} equal ones", cure="pass a kernel of your own")
    network = FullyConnected(2, "relu", w_std=1.5, b_std=0.5)
    return Pullback(network.nngp if name == "nngp" else network.ntk, Standardised(shift, scale))


def kernel_distance(x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."], *, kernel: Kernel | str = "rbf",
                    labels: Sequence[Any] | None = None, target_labels: Sequence[Any] | None = None, permutations: int = 999,
                    seed: int = 0) -> KernelDistance:  # fmt: skip
    """The MMD of samples and target rows, its floor, and whether it is more than chance.

    Args:
        x: samples.
        y: target rows, independent of them.
        kernel: "rbf", "nngp" or "ntk" (see `kernel_for`), or any kernel of `driftway.kernels`, such as the tangent kernel of a network.
        labels: classes of the samples (n,), for the same within each class, in the same kernel.
        target_labels: and of the target rows (m,).
        permutations: of the test; p is at least 1 / (1 + permutations).
        seed: of the permutations.

    Raises:
        InputError: if a sample is not an array of finite numbers, the two have rows of different shapes, labels are given for one side
            only, are not one per row or do not name the same classes, or the Gram matrix of all rows does not fit into memory.
    """
    x = checks.samples("x", x, least=1)
    y = checks.samples("y", y, least=1, event=tuple(x.shape[1:]))
    x, y = x.double(), y.to(x.device).double()
    if isinstance(kernel, str):
        kernel = kernel_for(kernel, x, y)
    K, n = kernel.to(torch.float64)(torch.cat([x, y])), len(x)
    whole = _distance(K, n, permutations, generator(checks.count("seed", seed, least=0), "kernel distance"))
    if labels is None and target_labels is None:
        return whole
    names = [_names(*pair) for pair in (("labels", labels, n), ("target_labels", target_labels, len(y)))]
    require(set(names[0]) == set(names[1]), "labels", expected=f"the classes of the target rows, {sorted(set(names[1]))}",
            got=f"{sorted(set(names[0]))}", cure="draw samples of each class")  # fmt: skip
    classes = {}
    for name in dict.fromkeys(sorted(names[1])):
        own = [[i for i, other in enumerate(side) if other == name] for side in names]
        rows = torch.tensor([*own[0], *(n + j for j in own[1])], device=K.device)
        classes[name] = _distance(K[rows][:, rows], len(own[0]), permutations, generator(seed, "kernel distance", name))
    return replace(whole, classes=classes)


def _distance(K: Float[Tensor, "N N"], n: int, permutations: int, own: torch.Generator) -> KernelDistance:
    m, K_yy = len(K) - n, K[n:, n:]
    found = mmd_test_from_gram(K, n, generator=own, permutations=permutations, statistic="v")
    diagonal = K_yy.diagonal().mean()
    apart = float(diagonal - (K_yy.sum() - K_yy.trace()) / (m * (m - 1))) if m > 1 else nan
    squared = float(mmd2_from_gram(K[:n, :n], K[:n, n:], K_yy))
    return KernelDistance(squared**0.5, max((1 / n + 1 / m) * apart, 0.0) ** 0.5 if m > 1 else nan, found.p_value, n, m)


def _names(argument: str, labels: Sequence[Any] | None, rows: int) -> list[str]:
    given = () if labels is None else labels
    require(len(given) == rows, argument, expected=f"{rows} classes, one per row", got=len(given), cure="give the labels of both sides")
    return list(map(str, given))


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
