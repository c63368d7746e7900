"""The linear program itself, solved exactly on finite stage grids: what every approximation is held against.

The states of stage h are n_h points, and an action is the choice of the next one (sigma = 0). The occupancy measures
mu_h(x, x') >= 0 are then n_h x n_{h+1} matrices, c(x, x') = (H/2)|x' - x|^2 is the stage cost |a|^2/(2H), and the program is

    minimise    sum_h sum_{x, x'} mu_h(x, x') c(x, x')
    subject to  sum_x' mu_0(x, x') = nu_src(x)                                                        dual V_0
                sum_x' mu_h(x, x') - sum_x'' mu_{h-1}(x'', x) = 0,        0 < h < H                   dual V_h
                               - sum_x'' mu_{H-1}(x'', x) = - nu_tgt(x)                               dual V_H = g

    maximise    E_src V_0 - E_tgt V_H   subject to   V_h(x) <= c(x, x') + V_{h+1}(x')       for all x, x', h

The duals are free by a common constant and, off the optimal paths, by more. Of the optimal ones those are returned with
E_tgt g = 0, so that the cost is E_src V_0, and with V_h(x) = min_x' c(x, x') + V_{h+1}(x') at every state. H = 1 is
optimal transport between two weighted point sets; inner grids that hold the points (1-t_h) x + t_h y keep its cost.

With sigma > 0 the stage cost is a divergence, not linear in mu: that program is solved by matrix scaling, not here.

Sources: Moreno-Muñoz, Müller and Neu (2026), arXiv 2605.22507; Peyré and Cuturi (2019), Computational Optimal Transport.

Equation (T1): docs/derivations/transport.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from driftway.checks import require, samples
from driftway.transport.problem import cost as half_squared

LARGEST = 2_000_000  # variables: beyond this HiGHS needs more than minutes

Array = Tensor | np.ndarray


@dataclass(frozen=True)
class Program:
    """A solved program.

    Attributes:
        cost: the least cost, W2^2/2 when H = 1 or the inner grids hold the straight lines.
        occupancies: mu_0, ..., mu_{H-1}, of shapes (n_h, n_{h+1}); each sums to 1.
        values: V_0, ..., V_H, of shapes (n_h,).
    """

    cost: float
    occupancies: tuple[Float64[Tensor, "_ _"], ...]
    values: tuple[Float64[Tensor, " _"], ...]

    @property
    def g(self) -> Float64[Tensor, " _"]:
        """The terminal prices V_H."""
        return self.values[-1]


def _weights(argument: str, value: Array, n: int) -> Float64[Tensor, " n"]:
    """Probabilities of n states, in double precision and rescaled to a sum of 1."""
    require(tuple(value.shape) == (n,), argument, expected=f"one weight per state, shape ({n},)",
            got=f"shape {tuple(value.shape)}", cure="give each state of that stage its probability")  # fmt: skip
    w = samples(argument, value[:, None], least=1)[:, 0].cpu().double()
    low, total = float(w.min()), float(w.sum())
    require(low >= 0, argument, expected="weights >= 0", got=f"{low:g}", cure="pass probabilities")
    require(abs(total - 1) < 1e-4, argument, expected="weights that sum to 1", got=f"a sum of {total:g}",
            cure=f"divide by {argument}.sum()")  # fmt: skip
    return w / total


def _conservation(sizes: Sequence[int]) -> sparse.csc_array:
    """The constraints: column (h, x, x') has +1 in the row of (h, x) and -1 in that of (h+1, x')."""
    starts = np.cumsum([0, *sizes])
    leave = np.concatenate([starts[h] + np.repeat(np.arange(n), m) for h, (n, m) in enumerate(pairwise(sizes))])
    enter = np.concatenate([starts[h + 1] + np.tile(np.arange(m), n) for h, (n, m) in enumerate(pairwise(sizes))])
    column, ones = np.arange(len(leave)), np.ones(len(leave))
    entries = np.concatenate([ones, -ones]), (np.concatenate([leave, enter]), np.concatenate([column, column]))
    return sparse.csc_array(entries, shape=(starts[-1], len(column)))


def solve_program(states: Sequence[Array], source: Array, target: Array) -> Program:
    """The optimal occupancies and values for given states of each stage.

    Args:
        states: H + 1 arrays of states, (n_h, *event) each: the source points, the inner grids, the target points.
        source: the weights (n_0,) of the source points, summing to 1.
        target: the weights (n_H,) of the target points, summing to 1.

    Raises:
        InputError: if there are fewer than two stages, more than two million variables, or unusable states or weights.
        RuntimeError: if the solver stops without an optimum.
    """
    require(len(states) >= 2, "states", expected="at least 2 stages", got=len(states), cure="pass [source, target]")
    event = tuple(samples("states[0]", states[0], least=1).shape[1:])
    grids = [samples(f"states[{h}]", x, event=event, least=1).cpu().double() for h, x in enumerate(states)]
    sizes, H = [len(x) for x in grids], len(grids) - 1
    variables = sum(n * m for n, m in pairwise(sizes))
    require(variables <= LARGEST, "states", expected=f"at most {LARGEST:,} pairs of successive states", got=f"{variables:,}",
            cure="use fewer points, or the sample-based fit")  # fmt: skip
    nu_src, nu_tgt = _weights("source", source, sizes[0]), _weights("target", target, sizes[-1])

    # The solver's tolerances are absolute: costs of order 1 and masses of order 1 make them relative.
    c = [H * half_squared(x, x_next) for x, x_next in pairwise(grids)]
    scale, mass = max(float(step.max()) for step in c) or 1.0, max(sizes[0], sizes[-1])
    b = torch.cat([nu_src, torch.zeros(sum(sizes[1:-1])), -nu_tgt]) * mass
    per_move = torch.cat([step.flatten() for step in c]) / scale
    found = linprog(per_move.numpy(), A_eq=_conservation(sizes), b_eq=b.numpy(), bounds=(0, None), method="highs-ipm")
    if found.status != 0:
        raise RuntimeError(f"the linear program has an optimum, but the solver stopped without it: {found.message}")

    splits = np.cumsum([n * m for n, m in pairwise(sizes)])[:-1]
    flows = zip(np.split(found.x / mass, splits), c, strict=True)
    mu = [torch.from_numpy(flow).clamp_min(0).view_as(step) for flow, step in flows]
    g = torch.from_numpy(found.eqlin.marginals[-sizes[-1] :] * scale)
    V = [g - g @ nu_tgt]
    for step in reversed(c):
        V.insert(0, (step + V[0]).amin(1))
    total = sum(float((flow * step).sum()) for flow, step in zip(mu, c, strict=True))
    return Program(cost=total, occupancies=tuple(mu), values=tuple(V))


def solve_assignment_program(x: Array, y: Array) -> Program:
    """Optimal transport between two equally weighted point sets, the program with H = 1.

    Args:
        x: the source points (n, *event).
        y: the target points (m, *event).

    Raises:
        InputError: as `solve_program`.
    """
    x, y = samples("x", x, least=1), samples("y", y, least=1)
    return solve_program([x, y], np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)))
