r"""How far the prices of a table are from a solution: the mass that arrives at the wrong ends.

The marginal error is the total variation TV = sum_j |P_j - m_j| / 2, P_j what the law of x sends to y_j. N fresh rows give P_j a
standard error e_j, so that a perfect solution measures floor = sum_j e_j sqrt(2/pi) / 2 on average (e_j^2 = P_j (1 - P_j)/N for
eps = 0), and any one, by Minkowski's inequality on E|b + e Z| >= sqrt(2/pi) (b^2 + e^2)^(1/2),

    E raw >= TV     and     (E raw)^2 - floor^2 >= (2/pi) TV^2     so     TV <= error = min(raw, (pi/2 ((raw + 2 delta)^2 - floor^2))^(1/2))

up to two standard errors delta = (sum_j e_j^2 (1 - 2/pi))^(1/2) / 2 of raw. With N = 3 sqrt(m) / tolerance^2 rows a perfect solution
reports about half the tolerance, however far the floor is above it. An array of at most N rows is its own law: all its rows are
counted, and the floor is zero.

Equation (T20): docs/derivations/transport.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.transport.stream import Rows, Stream
from driftway.transport.table import TableValue


@dataclass(frozen=True)
class Semidiscrete:
    """A solved problem.

    Attributes:
        table: the value, with its prices, maps and draws.
        converged: whether the error fell to the tolerance within the steps allowed.
        steps: steps taken.
        error: upper bound of the marginal error, 0 to 1.
        raw: the measured marginal error, sampling noise included.
        floor: what a perfect solution would measure on as many rows.
        rows: fresh source rows it was measured on.
        dual: J_eps(g) on those rows; half the squared W2 distance when eps = 0 and the error is 0.
    """

    table: TableValue
    converged: bool
    steps: int
    error: float
    raw: float
    floor: float
    rows: int
    dual: float

    @property
    def y(self) -> Float[Tensor, "m *event"]:
        """The target rows."""
        return self.table.y

    @property
    def g(self) -> Float[Tensor, " m"]:
        """Their prices, zero on average over the masses."""
        return self.table.g

    @property
    def eps(self) -> float:
        """The entropy."""
        return float(self.table.eps)

    def map(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        """The end of each state for eps = 0, else the mean of its ends."""
        return self.table.mean(x, x.new_zeros(len(x)))

    def draw(self, x: Float[Tensor, "n *event"], *, generator: torch.Generator) -> Float[Tensor, "n *event"]:
        """One end for each state, from its law."""
        uniform = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x)
        return self.table.endpoint(x, x.new_zeros(len(x)), uniform=uniform, normal=torch.zeros_like(x))


@torch.no_grad()
def measure(table: TableValue, fresh: Stream, tolerance: float, batch: int, steps: int) -> Semidiscrete:
    """The marginal error of the prices in the table, and their supporting planes, on fresh rows."""
    wanted, batch = math.ceil(3 * len(table.g) ** 0.5 / tolerance**2), max(batch, 256)
    whole = isinstance(fresh, Rows) and len(fresh.rows) <= wanted
    parts = iter(fresh.rows.x.split(batch)) if isinstance(fresh, Rows) and whole else iter(lambda: fresh.draw(batch).x, None)
    mass, square, moved, n, dual = torch.zeros_like(table.g), torch.zeros_like(table.g), torch.zeros_like(table.x), 0, 0.0
    for x in parts:
        for total, part in zip((mass, square, moved), table.arrivals(x), strict=True):
            total += part
        dual += float(table.value(x, x.new_zeros(len(x))).double().sum())
        n += len(x)
        if n >= wanted:
            break
    P, m = mass / n, table.log_mass.exp()
    spread = ((square / n - P.square()).clamp_min(0) / n).sqrt() * (not whole)
    raw, floor = float((P - m).abs().sum()) / 2, float(spread.sum()) * math.sqrt(2 / math.pi) / 2
    delta = float(spread.square().sum() * (1 - 2 / math.pi)) ** 0.5 / 2
    error = min(raw, math.sqrt(max(0.0, math.pi / 2 * ((raw + 2 * delta) ** 2 - floor**2)))) if floor > 0 else raw
    centre, reached = table.y.flatten(1).mean(0), mass > 0
    ends = table.y.flatten(1) - centre
    table.x.copy_(moved / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None] - centre)
    table.h.copy_(table.g + ends.square().sum(1) / 2 - (table.x * ends).sum(1))
    first = reached.int().argmax()  # a row that nothing reached has no plane of its own: it takes a copy, which changes nothing
    table.x.copy_(torch.where(reached[:, None], table.x, table.x[first]))
    table.h.copy_(torch.where(reached, table.h, table.h[first]))
    dual = dual / n - float(m @ table.g)
    return Semidiscrete(table, error <= tolerance, steps, error, raw, floor, n, dual)
