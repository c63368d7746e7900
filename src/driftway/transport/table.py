r"""The value of finitely many ends y_1..y_m with masses m_j and one price g_j each, computed in blocks of ends.

    V_t(x)      = min_j C(x, y_j)/(1-t) + g_j                                   eps = 0 (Hopf-Lax), C(x, y) = |x - y|^2/2
                = -eps log sum_j m_j exp(-(C(x, y_j)/(1-t) + g_j)/eps)          eps > 0 (Cole-Hopf)
    p_t(y_j|x)  = m_j exp((V_t(x) - C(x, y_j)/(1-t) - g_j)/eps)                 the law of the end; for eps = 0 all of it at the minimum
    grad V_t(x) = (x - E[y|x])/(1-t)

With s_j = x.y_j/(1-t) - |y_j|^2/2(1-t) - g_j, one matrix product per block, V_t = |x|^2/2(1-t) - max_j s_j for eps = 0; a running
maximum or logarithm of a sum joins the blocks. x and y are taken from the centre of the ends, where the squares are small.

The price extends to all y by its supporting planes: with x_j the mean source row of y_j, g(y) + |y|^2/2 >= g_j + |y_j|^2/2 + x_j.(y - y_j),
so g(y) is taken as the largest right side less |y|^2/2. It equals g_j at y_j, and weak duality holds for it as for any price.

Sources: Genevay, Cuturi, Peyré and Bach (2016), arXiv 1605.08527, equations 3 to 5; `problem` for the closed forms.

Equations (T1), (T18): docs/derivations/transport.md.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.transport.condition import unconditional
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
