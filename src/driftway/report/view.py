"""How rows of any shape become points of a plane or pictures, and the axes that show them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

Rows = Float[Tensor, "n *event"]
Held = Float[Tensor, "m *event"]
FLAT_IMAGES = {64: (8, 8), 784: (28, 28)}


def image_shape(event: tuple[int, ...]) -> tuple[int, ...] | None:
    """(h, w) or (3, h, w), if rows of this shape are drawn as images: (h, w), (1, h, w), (3, h, w), or 64 or 784 columns."""
    event = event[1:] if len(event) == 3 and event[0] == 1 else event
    if len(event) in (2, 3) and min(event) > 1:
        return event if len(event) == 2 or event[0] == 3 else None
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


def sheet(rows: Tensor, shape: tuple[int, ...], columns: int) -> np.ndarray:
    """Images tiled into one with blank seams, (H, W), or (H, W, 3) in colour."""
    channels, height, width = (1, *shape)[-3:]
    pad = max(1, height // 10)
    tiles = torch.nn.functional.pad(rows.double().cpu().reshape(-1, channels, height, width), (0, pad, 0, pad), value=math.nan)
    missing = torch.full((-len(tiles) % columns, *tiles.shape[1:]), math.nan).double()
    tiles = torch.cat([tiles, missing]).unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2)
    page = tiles.flatten(2, 3).flatten(0, 1)[:-pad, :-pad].numpy()
    return page if channels > 1 else page[..., 0]


def bounds(y: Tensor) -> tuple[float, float]:
    """The range of grey or colour: the least and the largest entry."""
    return float(y.min()), float(y.max())


def show(axes: Axes, image: np.ndarray, low: float, high: float) -> None:
    """An image alone; grey ones dark where entries are high, colours as light, seams blank."""
    if image.ndim == 3:
        image = np.nan_to_num(np.clip((image - low) / max(high - low, 1e-300), 0, 1), nan=1.0)
    axes.imshow(image, cmap="Greys", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def frame(axes: Axes, given: np.ndarray, made: np.ndarray, labels: tuple[str, str]) -> None:
    """One scale, and limits around the given points but a few strays, and around what a model made unless it is far off."""
    low, high = np.quantile(given, [0.002, 0.998], axis=0)
    reach = np.maximum(high - low, 1e-9)
    low = np.clip(made.min(0), low - reach / 2, low) - 0.06 * reach
    high = np.clip(made.max(0), high, high + reach / 2) + 0.06 * reach
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=labels[0], ylabel=labels[1], aspect="equal")
