"""The dual step: occupancy weights under the current prices, the dual objective, and the certificate.

    P_ij  = softmax_j(-(C_ij + g_j) / eps)                    primal: occupancy weights of candidates y_j for states x_i
    D     = mean_j g_j - mean_i sum_j P_ij g_j                its gradient in g, P held fixed, is minus that of the semi-dual
    J_eps = mean_i [-eps log mean_j exp(-(C_ij + g_j) / eps)] - mean_j g_j              (Genevay et al., 2016)

On any held-out samples and for any prices, weak duality gives

    lower = mean_i min_j [C_ij + g_j] - mean_j g_j  <=  W2^2 / 2  <=  cost of x_i -> z_i (policy) -> y_pi(i) = upper.

With conditions a state is paired with candidates of its own condition: `Pairing` adds log-weights A_ij to -(C_ij + g_j)/eps, -10^9
between different classes and -w |c_i - c_j|^2/2 between vectors, and replaces 1/m by masses m_j that sum, over each class, to its
share of the states. The problems of the classes are then solved side by side in one matrix (Chemseddine et al., 2024, for vectors).

Equations (T2), (T3), (T5), (T6), (T24): docs/derivations/transport.md.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.transport.metrics import exact_coupling
from driftway.transport.problem import cost

APART = -1e9


@dataclass(frozen=True)
class Pairing:
    """Which candidates a state may be paired with.

    Attributes:
        log_weights: (n, m) A_ij.
        mass: (m,) m_j, summing to one.
        group: (m,) class of each candidate; prices are known up to a constant per group.
    """

    log_weights: Float[Tensor, "n m"]
    mass: Float[Tensor, " m"]
    group: Int[Tensor, " m"]


def pair_by(c_x: Tensor, c_y: Tensor, *, weight: float, like: Tensor) -> Pairing:
    """Pairing of states and candidates by their conditions: class indices, or vectors.

    Args:
        c_x: conditions of the states; every class must be among the candidates.
        c_y: conditions of the candidates.
        weight: w, of vectors.
        like: a tensor of the wanted dtype.
    """
    m = len(c_y)
    if c_x.is_floating_point():
        group = torch.zeros(m, dtype=torch.long, device=like.device)
        return Pairing(-weight * cost(c_x, c_y), like.new_full((m,), 1 / m), group)
    return Pairing(torch.where(c_x[:, None] == c_y, 0.0, APART).to(like), shares(c_x, c_y).to(like), c_y)


def shares(c_x: Int[Tensor, " n"], c_y: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
    """Masses m_j of candidates: each class has its share of the states, evenly spread over its candidates."""
    size = int(max(c_x.max(), c_y.max())) + 1
    share = torch.bincount(c_x, minlength=size).double() / torch.bincount(c_y, minlength=size).clamp_min(1) / len(c_x)
    return share[c_y]


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
def occupancy(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], g: Float[Tensor, " m"], *, eps: float, scalings: int = 5,
              pairing: Pairing | None = None) -> Occupancy:  # fmt: skip
    """Occupancy weights under prices g, and the same after a few Sinkhorn scalings of the batch that start from g.

    Args:
        x: states.
        y: candidates.
        g: their prices.
        eps: entropy.
        scalings: Sinkhorn scalings; 0 leaves the weights as they are.
        pairing: which candidates a state may take; any if None.
    """
    logits = torch.addmm(-(y.square().sum(1) / 2 + g) / eps, x / eps, y.T)
    weights = bounded(logits if pairing is None else logits + pairing.log_weights).softmax(1)
    if scalings == 0:
        return Occupancy(weights=weights, balanced=weights, g=g)
    mass = 1 / len(y) if pairing is None else pairing.mass
    tiny = torch.finfo(weights.dtype).tiny ** 0.5
    column = torch.ones_like(g)
    for _ in range(scalings):
        row = 1 / (weights @ column).clamp_min(tiny)
        column = len(x) * mass / (row @ weights).clamp_min(1e-9)
    balanced = weights * column
    balanced /= balanced.sum(1, keepdim=True)
    shift = column.clamp_min(tiny).log()
    return Occupancy(weights=weights, balanced=balanced, g=g - eps * _centred(shift, None if pairing is None else pairing.group))


def _centred(shift: Float[Tensor, " m"], group: Int[Tensor, " m"] | None) -> Float[Tensor, " m"]:
    """Less the median of its group: unused candidates, whose scalings are huge, would ruin a mean."""
    if group is None:
        return shift - shift.median()
    middle = torch.zeros_like(shift)
    for label in group.unique():
        middle[group == label] = shift[group == label].median()
    return shift - middle


def dual_loss(g: Float[Tensor, " m"], weights: Float[Tensor, "n m"], mass: Float[Tensor, " m"] | None = None) -> Float[Tensor, ""]:
    """D: a surrogate whose gradient in g is minus the semi-dual's; it vanishes when the ends cover the target by its masses, 1/m each."""
    return (g.mean() if mass is None else mass @ g) - weights.mean(0) @ g


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
