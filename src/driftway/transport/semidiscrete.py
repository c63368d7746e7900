r"""Optimal transport from a law of x to finitely many rows y_1..y_m with masses m_j: one price g_j per row.

    J_eps(g) = E V_0(x) - sum_j m_j g_j                     concave; V_t as in `problem` (Hopf-Lax for eps = 0, Cole-Hopf for eps > 0)
    dJ/dg_j  = E p_0(y_j|x) - m_j                           what arrives at y_j less what is due (eps = 0: mass of its Laguerre cell)
    g_j     += s_j m (p_j - m_j) / (1 + k/50)^(1/2)         ascent on batches; then the average over a constant fraction of the steps

s_j is eps plus the mean gap between the least and the second least C_ij + g_j over the states of cell j: the change of a price that
moves about as much mass as the cell holds. So the step follows the scale of the costs and the density of the rows. The marginal
error is the total variation TV = sum_j |P_j - m_j| / 2, P_j what the law sends to y_j. N fresh rows give P_j a standard error e_j,
so that a perfect solution measures floor = sum_j e_j sqrt(2/pi) / 2 on average (e_j^2 = P_j (1 - P_j)/N for eps = 0), and any one,
by Minkowski's inequality on E|b + e Z| >= sqrt(2/pi) (b^2 + e^2)^(1/2),

    E raw >= TV     and     (E raw)^2 - floor^2 >= (2/pi) TV^2     so     TV <= error = min(raw, (pi/2 ((raw + 2 delta)^2 - floor^2))^(1/2))

up to two standard errors delta = (sum_j e_j^2 (1 - 2/pi))^(1/2) / 2 of raw. With N = 3 sqrt(m) / tolerance^2 rows a perfect solution
reports about half the tolerance, however far the floor is above it. An array of at most N rows is its own law: all its rows are
counted, and the floor is zero.

g extends to all y by its supporting planes: with x_j the mean source row of y_j, g(y) + |y|^2/2 >= g_j + |y_j|^2/2 + x_j.(y - y_j), so
g(y) is taken as the largest right side less |y|^2/2. It equals g_j at y_j, and weak duality holds for it as for any price.

Sources: Genevay, Cuturi, Peyré and Bach (2016), arXiv 1605.08527, equations 7 to 9; Polyak and Juditsky (1992) for the average.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.transport.intake import open_stream
from driftway.transport.mixture import unconditional
from driftway.transport.stream import Rows, Stream
from driftway.transport.value import Value

ENTRIES = 2**22  # of a block of costs, rows times candidates


class TableValue(Value):
    """The value of finitely many ends with one price each. Costs are made in blocks, so the table may be beyond memory.

    Args:
        event: shape of one state.
        rows: number m of ends.
        eps: entropy; 0 is the hard minimum.
        block: ends per block of costs.
    """

    y: Tensor
    g: Tensor
    log_mass: Tensor
    eps: Tensor
    x: Tensor
    h: Tensor

    def __init__(self, event: tuple[int, ...], *, rows: int, eps: float = 0.0, block: int = 2**14) -> None:
        super().__init__()
        self.event, self.block = tuple(event), block
        self.register_buffer("y", torch.zeros(rows, *event))
        self.register_buffer("g", torch.zeros(rows))
        self.register_buffer("log_mass", torch.full((rows,), -math.log(rows)))
        self.register_buffer("eps", torch.tensor(eps))
        self.register_buffer("x", torch.zeros(rows, math.prod(event)))  # slopes of the supporting planes of g + |y - centre|^2/2
        self.register_buffer("h", torch.zeros(rows))  # and their heights at the centre of the table

    def value(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        unconditional(c)
        return self._by_rows(lambda a, b: self._soft(a, b)[0] if self.eps > 0 else self._hard(a, b)[0], x, t)

    def gradient(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:
        return ((x - self.mean(x, t, c)).flatten(1) / (1 - t)[:, None]).reshape(x.shape)

    def price(self, y: Float[Tensor, "m *event"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        unconditional(c)
        return self._by_rows(lambda a, _: self._planes(a), y, y.new_zeros(len(y)))

    def mean(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:
        """E[y | X_t = x]; the end itself for eps = 0."""
        unconditional(c)
        if self.eps > 0:
            return self._by_rows(lambda a, b: self._soft(a, b)[1], x, t).reshape(x.shape)
        return self._ends(self._by_rows(lambda a, b: self._hard(a, b)[1], x, t), x)

    def endpoint(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], *, uniform: Float[Tensor, " n"],
                 normal: Float[Tensor, "n *event"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:  # fmt: skip
        del normal
        unconditional(c)
        if self.eps == 0:
            return self.mean(x, t)
        rows = self._rows()
        parts = [self._chosen(*block) for block in zip(x.split(rows), t.split(rows), uniform.to(x).split(rows), strict=True)]
        return self._ends(torch.cat(parts) if parts else t.new_zeros(0).long(), x)

    def arrivals(self, x: Float[Tensor, "n *event"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, "m d"]]:
        """Sums over rows x of p_0(y_j|x), of its square, and of p_0(y_j|x) x, on the device of the table."""
        t, flat = x.new_zeros(len(x)), x.flatten(1).to(self.y)
        if self.eps == 0:
            j = self._hard(x, t)[1].to(self.g.device)
            mass = torch.bincount(j, minlength=len(self.g)).to(self.g)
            return mass, mass, torch.zeros_like(self.x).index_add(0, j, flat)
        total = self._total(x, t)
        parts = [((p := (s - total[:, None]).exp()).sum(0), p.square().sum(0), p.T @ x.flatten(1)) for _, s in self._blocks(x, t)]
        mass, square, moved = (torch.cat(part).to(self.g) for part in zip(*parts, strict=True))
        return mass, square, moved

    def gaps(self, x: Float[Tensor, "n *event"]) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """The least C_ij + g_j below the second least, summed over the rows x of each cell, and the rows of each cell."""
        best, index = x.new_full((len(x), 2), -math.inf), torch.zeros(len(x), 2, dtype=torch.long, device=x.device)
        for block, (_, s) in enumerate(self._blocks(x, x.new_zeros(len(x)), soft=False)):
            top, j = s.topk(min(2, s.shape[1]), 1)
            best, order = torch.cat([best, top], 1).topk(2, 1)
            index = torch.cat([index, j + block * self.block], 1).gather(1, order)
        gap = (best[:, 0] - best[:, 1]).to(self.g) if len(self.g) > 1 else self.g.new_zeros(len(x))
        cell = index[:, 0].to(self.g.device)
        return torch.zeros_like(self.g).index_add(0, cell, gap), torch.bincount(cell, minlength=len(self.g)).to(self.g)

    def _blocks(self, x: Tensor, t: Tensor, *, soft: bool | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Ends, and |x|^2/2(1-t) - C(x, y)/(1-t) - g in one matrix product; for eps > 0 over eps, plus log m_j."""
        left, centre = (1 - t)[:, None].to(x), self._centre(x)
        x = x.flatten(1) - centre
        x = torch.cat([x / left, -0.5 / left], 1)
        for a in range(0, len(self.g), self.block):
            rows = slice(a, a + self.block)
            y = self.y[rows].to(x).flatten(1) - centre
            s = torch.addmm(-self.g[rows].to(x), x, torch.cat([y, y.square().sum(1, keepdim=True)], 1).T)
            if self.eps > 0 if soft is None else soft:
                s = s / self.eps.to(x) + self.log_mass[rows].to(x)
            yield y, s

    def _hard(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """V_t(x), and the index of the end that attains it."""
        best, index = x.new_full((len(x),), -math.inf), torch.zeros(len(x), dtype=torch.long, device=x.device)
        for block, (_, s) in enumerate(self._blocks(x, t)):
            top, j = s.max(1)
            index = torch.where(top > best, j + block * self.block, index)
            best = torch.maximum(best, top)
        return self._square(x, t) - best, index

    def _soft(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """V_t(x) and the mean of the end, both updated from block to block."""
        total, mean = x.new_full((len(x),), -math.inf), torch.zeros_like(x.flatten(1))
        for y, s in self._blocks(x, t):
            part = s.logsumexp(1)
            both = torch.logaddexp(total, part)
            mean = mean * (total - both).exp()[:, None] + (s - both[:, None]).exp() @ y
            total = both
        return self._square(x, t) - self.eps.to(x) * total, mean + self._centre(x)

    def _total(self, x: Tensor, t: Tensor) -> Tensor:
        total = x.new_full((len(x),), -math.inf)
        for _, s in self._blocks(x, t):
            total = torch.logaddexp(total, s.logsumexp(1))
        return total

    def _chosen(self, x: Tensor, t: Tensor, uniform: Tensor) -> Int[Tensor, " n"]:
        """The law of the end inverted at a uniform variate: the number of ends whose cumulative mass is not above it."""
        total, below, index = self._total(x, t), x.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.long, device=x.device)
        for _, s in self._blocks(x, t):
            cumulative = below[:, None] + (s - total[:, None]).exp().cumsum(1)
            index = index + (cumulative <= uniform[:, None]).sum(1)
            below = cumulative[:, -1]
        return index.clamp(max=len(self.g) - 1)

    def _planes(self, y: Tensor) -> Tensor:
        y = y.flatten(1) - self._centre(y)
        best = y.new_full((len(y),), -math.inf)
        for x, h in zip(self.x.split(self.block), self.h.split(self.block), strict=True):
            best = torch.maximum(best, torch.addmm(h.to(y), y, x.to(y).T).amax(1))
        return best - y.square().sum(1) / 2

    def _centre(self, like: Tensor) -> Tensor:
        return self.y.flatten(1).mean(0).to(like)

    def _square(self, x: Tensor, t: Tensor) -> Tensor:
        return (x.flatten(1) - self._centre(x)).square().sum(1) / (2 * (1 - t))

    def _ends(self, index: Tensor, like: Tensor) -> Tensor:
        return self.y[index.to(self.y.device)].to(like)

    def _rows(self) -> int:
        return max(1, ENTRIES // min(self.block, len(self.g)))

    def _by_rows(self, f: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
        """A function of rows, on few enough rows at once."""
        rows = self._rows()
        return f(x, t) if len(x) <= rows else torch.cat([f(a, b) for a, b in zip(x.split(rows), t.split(rows), strict=True)])


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
def solve_semidiscrete(source: Any, y: Any, *, eps: float = 0.0, tolerance: float = 0.02, batch: int = 1024,
                       max_steps: int = 20_000, seed: int = 0, block: int = 2**14, log_mass: Tensor | None = None,
                       g: Tensor | None = None) -> Semidiscrete:  # fmt: skip
    """Solve J_eps by averaged stochastic ascent, until the marginal error is at most the tolerance.

    Args:
        source: an array or tensor of rows, used in shuffled epochs, a sampler f(n, generator) or a DataLoader; it may live on another
            device than y.
        y: (m, *event) target rows; equal rows share their mass in any way.
        eps: entropy, in units of the cost |x - y|^2/2.
        tolerance: the marginal error to reach.
        batch: source rows per step.
        max_steps: steps after which it gives up.
        seed: of the batches; the rows the error is measured on are others.
        block: target rows per block of costs; memory is of the order of batch * block.
        log_mass: (m,) logarithms of the masses, up to a constant; None for equal masses.
        g: (m,) prices to start from; None for zeros.

    Raises:
        InputError: if an array has entries that are not finite or other columns than y, a length is not m, or a number is out of range.
    """
    y = checks.samples("y", y, least=1)
    eps, tolerance = checks.real("eps", eps, least=0), checks.real("tolerance", tolerance, least=0, strict=True)
    batch, max_steps, block = checks.count("batch", batch), checks.count("max_steps", max_steps), checks.count("block", block)
    table = TableValue(tuple(y.shape[1:]), rows=len(y), eps=eps, block=block).to(y)
    table.y.copy_(y)
    if log_mass is not None:
        table.log_mass.copy_(_column("log_mass", log_mass, len(y)).log_softmax(0))
    if g is not None:
        table.g.copy_(_column("g", g, len(y)))
    mass = table.log_mass.exp()
    stream, fresh = (open_stream("source", source, seed=seed + k) for k in range(2))
    checks.samples("source", stream.probe().x, event=table.event, least=1)
    gap, rows = torch.zeros_like(mass), torch.zeros_like(mass)
    now, mean, scale, steps, check = table.g.clone(), table.g.clone(), mass, 0, 0 if g is not None else 64
    while True:
        if steps >= min(check, max_steps):
            check = math.ceil(1.5 * max(check, 43))
            table.g.copy_(mean - mass @ mean)
            found = _measure(table, fresh, tolerance, batch, steps)
            if found.converged or steps >= max_steps:
                return found
        table.g.copy_(now)
        x = stream.draw(batch).x
        if steps < 16 or steps % 16 == 0:
            gap, rows = (0.9 * old + new for old, new in zip((gap, rows), table.gaps(x), strict=True))
            scale = eps + (gap + gap.sum() / rows.sum()) / (rows + 1)
        arrived = table.arrivals(x)[0] / len(x)
        now += scale * len(y) * (arrived - mass) / math.sqrt(1 + steps / 50)
        mean.lerp_(now, 8 / (steps + 8))
        steps += 1


def _measure(table: TableValue, fresh: Stream, tolerance: float, batch: int, steps: int) -> Semidiscrete:
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


def _column(argument: str, value: Tensor, m: int) -> Tensor:
    require(value.shape == (m,), argument, expected=f"one entry per row of y, shape ({m},)", got=f"shape {tuple(value.shape)}",
            cure="give each target row its own")  # fmt: skip
    return checks.samples(argument, value[:, None], least=1)[:, 0]
