"""How rows of any shape become points of a plane or pictures."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "n *event"]
Held = Float[Tensor, "m *event"]
FLAT_IMAGES = {64: (8, 8), 784: (28, 28)}


def image_shape(event: tuple[int, ...]) -> tuple[int, int] | None:
    """Height and width, if rows of this shape are drawn as images: (h, w), (1, h, w), or 64 or 784 columns."""
    event = event[1:] if len(event) == 3 and event[0] == 1 else event
    if len(event) == 2 and min(event) > 1:
        return event[0], event[1]
    return FLAT_IMAGES.get(event[0]) if len(event) == 1 else None


@dataclass(frozen=True)
class Plane:
    """Where rows are drawn: x -> (x - mean) @ axes, (n, 2).

    Attributes:
        mean: (d,) the origin.
        axes: (d, 2) orthonormal columns.
        labels: of the two axes.
    """

    mean: Float[Tensor, " d"]
    axes: Float[Tensor, "d 2"]
    labels: tuple[str, str]

    def of(self, x: Rows) -> np.ndarray:
        """The rows as points of the plane."""
        return ((x.flatten(1).double().cpu() - self.mean) @ self.axes).numpy()


def plane(y: Rows) -> Plane:
    """The plane itself for rows of two columns; else the first two principal components of y."""
    rows = y.flatten(1).double().cpu()
    if rows.shape[1] == 2:
        return Plane(torch.zeros(2).double(), torch.eye(2).double(), ("column 1", "column 2"))
    mean = rows.mean(0)
    _, s, vectors = torch.linalg.svd(rows - mean, full_matrices=False)
    axes = torch.zeros(rows.shape[1], 2).double()
    k = min(2, len(vectors))
    axes[:, :k] = vectors[:k].T
    axes = axes * torch.where(axes.gather(0, axes.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
    share = [*(100 * s.square() / s.square().sum().clamp_min(1e-300)).tolist(), 0.0]
    return Plane(mean, axes, (f"principal axis 1 ({share[0]:.0f} % of variance)", f"principal axis 2 ({share[1]:.0f} %)"))


def sheet(rows: Tensor, shape: tuple[int, int], columns: int) -> np.ndarray:
    """Images tiled into one, with blank seams."""
    pad = max(1, shape[0] // 10)
    tiles = torch.nn.functional.pad(rows.double().cpu().reshape(-1, *shape), (0, pad, 0, pad), value=math.nan)
    missing = torch.full((-len(tiles) % columns, *tiles.shape[1:]), math.nan).double()
    tiles = torch.cat([tiles, missing]).unflatten(0, (-1, columns))
    return tiles.transpose(1, 2).flatten(2).flatten(0, 1)[:-pad, :-pad].numpy()
