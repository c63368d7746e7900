"""Standardisation: fitted on training data, kept with the model, undone on the way out.

Rows are centred, with the same shift for both laws. "columns" scales each column of the target to unit variance; "common" divides all
columns of both laws by one number, so that transport costs, and which plan is optimal, are those of the data up to the factor
scale^2. "auto" is columns for vectors whose source is the standard normal, and common for a data source and for images, where a rare
pixel would weigh as much as a common one.

The box is the range of the training rows, of vectors widened by half on each side: where ends of paths may lie (see `policy`).

Constant columns of the target are set to their constant on the way out; without a data source they take no part at all.
"""

import warnings
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from driftway.checks import require

MODES = ("auto", "columns", "common", "none")


@dataclass(frozen=True)
class Scaler:
    """An affine map between data (n, *event) and model space (n, k).

    Attributes:
        event: shape of one row of data.
        noise: whether the source is the standard normal of model space.
        shift: (d,) subtracted from the flattened row.
        scale: (d,) what is left is divided by this.
        constant: (d,) columns with one value in the training target.
        box: lower and upper corner of the box, (2, d); None for no bounds.
    """

    event: tuple[int, ...]
    noise: bool
    shift: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    constant: Bool[Tensor, " d"]
    box: Float[Tensor, "2 d"] | None = None

    @property
    def active(self) -> Tensor:
        """(d,) the columns that are transported."""
        return ~self.constant if self.noise else torch.ones_like(self.constant)

    @property
    def size(self) -> int:
        """Columns k of model space."""
        return int(self.active.sum())

    @property
    def cost_scale(self) -> float:
        """Cost in data units per cost in model space; 1 for the normal source, whose costs live in model space."""
        return 1.0 if self.noise else float(self.scale[0]) ** 2

    def target(self, y: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        """Data to model space."""
        return ((y.flatten(1) - self.shift) / self.scale)[:, self.active]

    def source(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n k"]:
        """Source rows to model space: standard normal rows as they are, data rows like the target's."""
        return x.flatten(1)[:, self.active] if self.noise else self.target(x)

    def data(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n *event"]:
        """Model space to data, unscaled, with the constant columns at their constants."""
        row = self.shift.expand(len(z), -1).clone()
        row[:, self.active] += z * self.scale[self.active]
        return torch.where(self.constant, self.shift, row).reshape(len(z), *self.event)

    def start(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n *event"]:
        """Model space to source rows: the inverse of `source`."""
        if not self.noise:
            return (z * self.scale + self.shift).reshape(len(z), *self.event)
        row = z.new_zeros(len(z), len(self.shift))
        row[:, self.active] = z
        return row.reshape(len(z), *self.event)

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The corners of the box in model space, (k,) each."""
        if self.box is None:
            return None
        low, high = ((self.box - self.shift) / self.scale)[:, self.active]
        return low, high

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a model folder keeps."""
        kept = {"shift": self.shift, "scale": self.scale, "constant": self.constant}
        kept |= {} if self.box is None else {"box": self.box}
        return {f"scaler.{name}": tensor for name, tensor in kept.items()}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], config: dict[str, Any]) -> "Scaler":
        """The scaler that `tensors` and the configuration {event, noise} came from."""
        shift, scale, constant = (tensors[f"scaler.{name}"] for name in ("shift", "scale", "constant"))
        return cls(tuple(config["event"]), config["noise"], shift, scale, constant, tensors.get("scaler.box"))


def fit_scaler(target: Float[Tensor, "n *event"], *, source: Float[Tensor, "m *event"] | None, mode: str = "auto",
               argument: str = "target") -> Scaler:  # fmt: skip
    """Fit the map on training rows.

    Args:
        target: training rows of the target.
        source: training rows of the source, or None for the standard normal.
        mode: "auto", "columns", "common" or "none" (module docstring).
        argument: what an error calls the target.

    Raises:
        InputError: if "columns" is asked for with a data source, or no column of the target varies, or by too little to square.
    """
    mode = ("columns" if source is None and target.ndim == 2 else "common") if mode == "auto" else mode
    require(mode != "columns" or source is None, "standardize", expected="common or none with a data source", got="columns",
            cure="scale the columns of both data sets yourself: it changes which plan is optimal")  # fmt: skip
    y = target.flatten(1)
    constant = (y == y[0]).all(0)
    columns = constant.nonzero()[:, 0].tolist()
    require(len(columns) < y.shape[1], argument, expected="a column that varies", got="constant rows", cure="check the data")
    if columns:
        shown = ", ".join(map(str, columns[:8])) + (", ..." if len(columns) > 8 else "")
        warnings.warn(f"{argument}: {len(columns)} of {prod(target.shape[1:])} columns are constant and are kept as constants "
                      f"(columns {shown})", stacklevel=4)  # fmt: skip
    shift, scale = torch.zeros_like(y[0]), torch.ones_like(y[0])
    if mode == "columns":
        shift, scale = y.mean(0), torch.where(constant, 1.0, y.std(0)).to(y)
    elif mode == "common":
        both = y if source is None else torch.cat([y, source.flatten(1)])
        shift, scale = both.mean(0), y[:, ~constant].var(0).mean().sqrt().expand_as(scale).clone()
    least, enough = float(scale.min()), 10 * torch.finfo(y.dtype).tiny ** 0.5
    require(least >= enough, argument, expected=f"columns whose spread is {enough:.0e} or more, so that it can be squared in {y.dtype}",
            got=f"{least:.2g}", cure="multiply the data by a number")  # fmt: skip
    rows = y if source is None else torch.cat([y, source.flatten(1)])
    low, high = rows.amin(0), rows.amax(0)
    margin = (high - low) / 2 if target.ndim == 2 else torch.zeros_like(low)
    box = torch.stack([low - margin, high + margin])
    return Scaler(tuple(target.shape[1:]), source is None, torch.where(constant, y[0], shift), scale, constant, box)
