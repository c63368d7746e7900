r"""Optimal transport from a law of x to finitely many rows y_1..y_m with masses m_j: one price g_j per row.

    J_eps(g) = E V_0(x) - sum_j m_j g_j                     concave; V_t the value of a `table` of the rows
    dJ/dg_j  = E p_0(y_j|x) - m_j                           what arrives at y_j less what is due (eps = 0: mass of its Laguerre cell)
    g_j     += s_j m (p_j - m_j) / (1 + k/50)^(1/2)         ascent on batches; then the average over a constant fraction of the steps

s_j is eps plus the mean gap between the least and the second least C_ij + g_j over the states of cell j: the change of a price that
moves about as much mass as the cell holds. So the step follows the scale of the costs and the density of the rows. It ends when
the marginal error of the average is small (see `marginal`).

Sources: Genevay, Cuturi, Peyré and Bach (2016), arXiv 1605.08527, equations 7 to 9; Polyak and Juditsky (1992) for the average.

Equations (T18), (T19): docs/derivations/transport.md.
"""

import math
from typing import Any

import torch
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.transport.intake import open_stream
from driftway.transport.measure import Semidiscrete, measure
from driftway.transport.stream import Stream
from driftway.transport.table import TableValue


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
    stream, fresh = (open_stream("source", source, seed=seed + k) for k in range(2))
    checks.samples("source", stream.probe().x, event=table.event, least=1)
    return ascend(table, stream, fresh, tolerance=tolerance, batch=batch, max_steps=max_steps, check=64 if g is None else 0)


@torch.no_grad()
def ascend(table: TableValue, stream: Stream, fresh: Stream, *, tolerance: float, batch: int, max_steps: int, check: int) -> Semidiscrete:
    """Solve for the prices of a table, which it changes, from those that it has.

    Args:
        table: the ends, with the prices to start from.
        stream: source rows to step on.
        fresh: source rows to measure the error on.
        tolerance: the marginal error to reach.
        batch: source rows per step.
        max_steps: steps after which it gives up.
        check: steps before the first measurement.
    """
    mass = table.log_mass.exp()
    gap, rows = torch.zeros_like(mass), torch.zeros_like(mass)
    now, mean, scale, steps = table.g.clone(), table.g.clone(), mass, 0
    while True:
        if steps >= min(check, max_steps):
            check = math.ceil(1.5 * max(check, 43))
            table.g.copy_(mean - mass @ mean)
            found = measure(table, fresh, tolerance, batch, steps)
            if found.converged or steps >= max_steps:
                return found
        table.g.copy_(now)
        x = stream.draw(batch).x
        if steps < 16 or steps % 16 == 0:
            gap, rows = (0.9 * old + new for old, new in zip((gap, rows), table.gaps(x), strict=True))
            scale = table.eps + (gap + gap.sum() / rows.sum()) / (rows + 1)
        arrived = table.arrivals(x)[0] / len(x)
        now += scale * len(mass) * (arrived - mass) / math.sqrt(1 + steps / 50)
        mean.lerp_(now, 8 / (steps + 8))
        steps += 1


def _column(argument: str, value: Tensor, m: int) -> Tensor:
    require(value.shape == (m,), argument, expected=f"one entry per row of y, shape ({m},)", got=f"shape {tuple(value.shape)}",
            cure="give each target row its own")  # fmt: skip
    return checks.samples(argument, value[:, None], least=1)[:, 0]
