"""The labelled rows of a shift as the kernel sees them: standardised, in an order of their own.

Inputs are standardised by the moments of all rows, labelled or not, and targets by those of the labelled rows.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.adapt.distribution_kernel import Rows
from driftway.adapt.scale import AIMS
from driftway.adapt.shift import Shift


@dataclass(frozen=True)
class Frame:
    """The labelled rows of a shift as the kernel sees them: sources first, then the target, in order of the domains.

    Attributes:
        rows: standardised inputs, and domains.
        y: standardised targets.
        weight: sample weights.
        target: m, the labelled rows of the target.
        x_mean: of the columns, over all rows.
        x_scale: their standard deviations; 1 for a constant column.
        y_mean: of the outputs, over labelled rows.
        y_scale: likewise.
        aim: inputs of rows of the target, labelled or not, at most 500.
    """

    rows: Rows
    y: Float[Tensor, "n k"]
    weight: Float[Tensor, " n"]
    target: int
    x_mean: Float[Tensor, " d"]
    x_scale: Float[Tensor, " d"]
    y_mean: Float[Tensor, " k"]
    y_scale: Float[Tensor, " k"]
    aim: Float[Tensor, "t columns"] = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.float64))

    def __getitem__(self, index: Int[Tensor, " r"]) -> "Frame":
        """Some of the rows, in the same units."""
        rows = self.rows[index]
        return replace(self, rows=rows, y=self.y[index], weight=self.weight[index], target=int((rows.domain == 0).sum()))

    def standard(self, X: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
        """Inputs in the units of the kernel."""
        return (X - self.x_mean) / self.x_scale


def frame(shift: Shift) -> Frame:
    """Standardise, and put the labelled rows in an order of their own: by domain, the target last; within it by their values.

    So the order in which rows were given changes nothing. Rows of weight 0 are left out.
    """
    shift = shift.select(shift.weight > 0)
    used = shift.labelled.nonzero()[:, 0]
    order = used[canonical(shift.X[used], shift.y[used], shift.weight[used, None])]
    domain = shift.domain[order]
    order = order[domain.where(domain > 0, shift.sources + 1).argsort(stable=True)]
    x_mean, x_scale = _moments(shift.X, shift.weight)
    y_mean, y_scale = _moments(shift.y[used], shift.weight[used])
    rows, y, target = Rows((shift.X[order] - x_mean) / x_scale, shift.domain[order]), (shift.y[order] - y_mean) / y_scale, shift.domain == 0
    aim = shift.X[target][canonical(shift.X[target])]
    aim = (aim[:: -(-len(aim) // AIMS) or 1] - x_mean) / x_scale
    return Frame(rows, y, shift.weight[order], int(target[order].sum()), x_mean, x_scale, y_mean, y_scale, aim)


def canonical(*columns: Float[Tensor, "n _"]) -> Tensor:
    """Indices that sort rows by their first column, then by the second, and so on: only equal rows keep the order in which they came."""
    table = torch.cat(columns, 1).nan_to_num(0.0)
    return table.unique(dim=0, return_inverse=True)[1].argsort(stable=True)


def _moments(x: Float[Tensor, "n d"], weight: Float[Tensor, " n"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    share = weight / weight.sum()
    mean = share @ x
    scale = (share @ (x - mean).square()).sqrt()
    return mean, scale.where(scale > 1e-12 * mean.abs(), 1.0)
