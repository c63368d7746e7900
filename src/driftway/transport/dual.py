"""The dual step: occupancy weights under the current prices, the dual objective, and the certificate.

    P_ij  = softmax_j(-(C_ij + g_j) / eps)                    primal: occupancy weights of candidates y_j for states x_i
    D     = mean_j g_j - mean_i sum_j P_ij g_j                its gradient in g, P held fixed, is minus that of the semi-dual
    J_eps = mean_i [-eps log mean_j exp(-(C_ij + g_j) / eps)] - mean_j g_j              (Genevay et al., 2016)

On any held-out samples and for any prices, weak duality gives

    lower = mean_i min_j [C_ij + g_j] - mean_j g_j  <=  W2^2 / 2  <=  cost of x_i -> z_i (policy) -> y_pi(i) = upper.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.transport.metrics import exact_coupling
from driftway.transport.problem import cost


@dataclass(frozen=True)
class Occupancy:
    """Occupancy weights of m candidates for n states.

    Attributes:
        weights: (n, m), rows summing to one: the primal answer to the prices.
        balanced: (n, m), rows summing to one and columns near n/m: the coupling that states are paired by.
        g: (m,) prices after balancing.
    """

    weights: Float[Tensor, "n m"]
    balanced: Float[Tensor, "n m"]
    g: Float[Tensor, " m"]


def bounded(logits: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Logits with entries more than 60 below their row's maximum raised to there: exp of less is denormal, which is slow."""
    return torch.maximum(logits, logits.detach().amax(1, keepdim=True) - 60)


@torch.no_grad()
def occupancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], g: Float[Tensor, " m"], *, eps: float,
              scalings: int = 5) -> Occupancy:  # fmt: skip
    """Occupancy weights under prices g, and the same after a few Sinkhorn scalings of the batch that start from g.

    Args:
        x: states.
        y: candidates.
        g: their prices.
        eps: entropy.
        scalings: Sinkhorn scalings; 0 leaves the weights as they are.
    """
    weights = bounded(torch.addmm(-(y.square().sum(1) / 2 + g) / eps, x / eps, y.T)).softmax(1)
    if scalings == 0:
        return Occupancy(weights=weights, balanced=weights, g=g)
    tiny = torch.finfo(weights.dtype).tiny ** 0.5
    column = torch.ones_like(g)
    for _ in range(scalings):
        row = 1 / (weights @ column).clamp_min(tiny)
        column = (len(x) / len(y)) / (row @ weights).clamp_min(1e-9)
    balanced = weights * column
    balanced /= balanced.sum(1, keepdim=True)
    shift = column.log()
    return Occupancy(weights=weights, balanced=balanced, g=g - eps * (shift - shift.median()))


def dual_loss(g: Float[Tensor, " m"], weights: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """D: a surrogate whose gradient in g is minus the semi-dual's; it vanishes when the ends cover the target evenly."""
    return g.mean() - weights.mean(0) @ g


def semi_dual(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], g: Float[Tensor, " m"], *,
              eps: float) -> Float[Tensor, ""]:  # fmt: skip
    """J_eps(g), concave in g; at its maximum it is the entropic transport cost between the two samples."""
    soft = torch.logsumexp(-(cost(x, y) + g) / eps, 1) - torch.log(torch.tensor(float(len(y))))
    return -eps * soft.mean() - g.mean()


def choose(weights: Float[Tensor, "n m"], uniform: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """One candidate per row, drawn by inverting the row's cumulative weights at a uniform variate."""
    total = weights.cumsum(1)
    return torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)[:, 0].clamp(max=weights.shape[1] - 1)


@dataclass(frozen=True)
class Certificate:
    """A proven bracket of half the squared W2 distance of two samples.

    Attributes:
        lower: dual bound from the prices.
        upper: cost of a coupling that the policy gives.
        n: rows of the source sample.
        m: rows of the target sample.
    """

    lower: float
    upper: float
    n: int
    m: int

    @property
    def gap(self) -> float:
        """(upper - lower) / upper: the cost is proven to be within this fraction of the optimum; 0 for a zero upper bound."""
        return (self.upper - self.lower) / self.upper if self.upper > 0 else 0.0


@torch.no_grad()
def bracket(x: Float[Tensor, "n *event"], z: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"],
            g: Float[Tensor, " m"]) -> Certificate:  # fmt: skip
    """The certificate from source rows x, where a policy moved them z, target rows y, and their prices g."""
    C, g = cost(x.double(), y.double()), g.double()
    lower = (C + g).min(1).values.mean() - g.mean()
    plan = exact_coupling(cost(z.double(), y.double())).plan
    return Certificate(lower=float(lower), upper=float((plan * C).sum()), n=len(x), m=len(y))
