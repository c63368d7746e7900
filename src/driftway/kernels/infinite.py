"""Fully connected networks of infinite width: the NNGP S and the NTK Theta, layer by layer.

From S = x.x'/d, Theta = 0, through `depth` hidden layers and a readout,

    dense         S' = w^2 S + b^2,    Theta' = S' + w^2 Theta              NTK parameterisation, w W x / d^(1/2) + b B with W, B ~ N(0, 1)
                                       Theta' = d S + [bias] + w^2 Theta    standard, W x + B with W ~ N(0, w^2 / d), B ~ N(0, b^2)
    activation    S' = T(S),           Theta' = Theta Tdot(S)               `activations`; these need S(x, x) and S(x', x') too

(Lee et al., 2018; Jacot et al., 2018) with d the inputs of the layer: the columns of x, then `width`. The standard NTK grows with the
width, so that one is named (Sohl-Dickstein et al., 2020, with s = 1). There [bias] is 1 with a bias, also one that starts at 0
(b_std=0.0), and 0 without (b_std=None).

Matrices without gradients are computed block by block, in the memory of the result (`infinite_blocks`). With gradients, blocks of
rows are computed again in the backward pass: a little more memory than the result, and twice the time forward.

Accuracy: `activations`. In float32, entries are correct to about 1e-6 relative, the NTK of nearly parallel rows to 1e-4 per layer; the
diagonal is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from driftway.checks import choice, count, real, require
from driftway.kernels.activations import ABReLU, Activation, activation
from driftway.kernels.base import points, require_memory
from driftway.kernels.infinite_blocks import Tile, fill, relu_tile, side
from driftway.kernels.network import PARTS, Network, Pair, ProductNetwork

__all__ = ["FullyConnected", "Network", "Pair", "ProductNetwork"]

HELD = 2**18  # entries of a block of rows whose steps are held for the backward pass


@dataclass(frozen=True)
class FullyConnected(Network):
    """A fully connected network of infinite width. Rows of more than one axis are flattened.

    Attributes:
        depth: hidden layers, each followed by the activation; 0 is a linear model.
        activation: relu, leaky_relu, abs, erf or gelu, or an `Activation`.
        w_std: w, of all weights; a number or a scalar tensor, > 0.
        b_std: b, of all biases; a number or a scalar tensor, or None for no biases.
        parameterization: "ntk" or "standard".
        width: of the hidden layers, as the standard NTK counts it; "ntk" has no use for it.

    Raises:
        InputError: if an argument is none of these.
    """

    depth: int
    activation: str | Activation = "relu"
    w_std: float | int | Tensor = 1.5
    b_std: float | int | Tensor | None = 0.05
    parameterization: str = "ntk"
    width: int = 512

    def __post_init__(self) -> None:
        count("depth", self.depth, least=0)
        count("width", self.width)
        activation(self.activation)
        choice("parameterization", self.parameterization, ("ntk", "standard"))
        real("w_std", _number(self.w_std), least=0, strict=True)
        if self.b_std is not None:
            real("b_std", _number(self.b_std), least=0)

    def kernels(self, x: Tensor, y: Tensor | None = None) -> Pair:
        return Pair(*self._matrices(PARTS, x, y))

    def kernel(self, part: str, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self._matrices((choice("part", part, PARTS),), x, y)[0]

    def kernel_diagonals(self, x: Tensor) -> Pair:
        rows = _rows(points(x)[0])
        S = _variances(rows)
        return self._layers(S, S, S, rows.shape[1], same=True)

    def _matrices(self, parts: Sequence[str], x: Tensor, y: Tensor | None) -> list[Tensor]:
        """The named kernels, in that order."""
        symmetric, (x, y) = y is None, map(_rows, points(x, y))
        require_memory("x", len(parts) * len(x) * len(y) * x.element_size(),
                       "evaluate it in parts, with driftway.kernels.blocks, or pass fewer rows", device=x.device)  # fmt: skip
        parameters = [t for t in (x, y, self.w_std, self.b_std) if isinstance(t, Tensor)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in parameters):
            outputs = self._with_gradients(parts, x, y)
            if symmetric:
                diagonals = self.kernel_diagonals(x)
                outputs = [torch.diagonal_scatter(K.tril() + K.tril(-1).mT, getattr(diagonals, part))
                           for K, part in zip(outputs, parts, strict=True)]  # fmt: skip
            return outputs
        with torch.no_grad():
            outputs = [x.new_empty(len(x), len(y)) for _ in parts]
            fill(outputs, self._tiles(parts, x, y), symmetric=symmetric)
            if symmetric:
                diagonals = self.kernel_diagonals(x)
                for K, part in zip(outputs, parts, strict=True):
                    K.diagonal().copy_(getattr(diagonals, part))
        return outputs

    def _with_gradients(self, parts: Sequence[str], x: Tensor, y: Tensor) -> list[Tensor]:
        def block(x: Tensor, y: Tensor) -> list[Tensor]:
            pair = self._between(x, y, _variances(x), _variances(y))
            return [getattr(pair, part) for part in parts]

        step = max(1, HELD // len(y))
        if step >= len(x):
            return block(x, y)
        found = [checkpoint(block, rows, y, use_reentrant=False, preserve_rng_state=False) for rows in x.split(step)]
        return [torch.cat(blocks) for blocks in zip(*found, strict=True)]

    def _tiles(self, parts: Sequence[str], x: Tensor, y: Tensor) -> Callable[[], Tile]:
        """What computes a block: the recursion of cosines where it holds, else the layers below."""
        phi, depth, w, b = activation(self.activation), self.depth, _number(self.w_std), _number(self.b_std or 0)
        if isinstance(phi, ABReLU) and phi.a != phi.b and depth and self.parameterization == "ntk" and x.device.type == "cpu":
            one = side(x, phi, depth=depth, w=w, b=b)
            two = one if x is y else side(y, phi, depth=depth, w=w, b=b)
            return lambda: relu_tile(one, two, phi, parts)
        s11, s22 = _variances(x), _variances(y)

        def tile(rows: slice, columns: slice) -> Sequence[Tensor]:
            pair = self._between(x[rows], y[columns], s11[rows], s22[columns])
            return [getattr(pair, part) for part in parts]

        return lambda: tile

    def _between(self, x: Tensor, y: Tensor, s11: Tensor, s22: Tensor) -> Pair:
        return self._layers(x @ y.mT / x.shape[1], s11[:, None], s22, x.shape[1])

    def _layers(self, S: Tensor, S11: Tensor, S22: Tensor, inputs: int, *, same: bool = False) -> Pair:
        """Both kernels from x.x'/d, |x|^2/d and |x'|^2/d; `same` if x = x'."""
        phi, w2, b2 = activation(self.activation), self.w_std**2, 0.0 if self.b_std is None else self.b_std**2
        Theta, d = torch.zeros_like(S), inputs
        for layer in range(self.depth + 1):
            if layer:
                S, slope = phi.dual_diagonal(S) if same else phi.dual(S, S11, S22)
                Theta, d = Theta * slope, self.width
                S11, S22 = phi.dual_diagonal(S11)[0], phi.dual_diagonal(S22)[0]
            before, S = S, w2 * S + b2
            Theta = (S if self.parameterization == "ntk" else d * before + (self.b_std is not None)) + w2 * Theta
            S11, S22 = w2 * S11 + b2, w2 * S22 + b2
        return Pair(S, Theta)


def _rows(x: Tensor) -> Tensor:
    require(x.dtype in (torch.float32, torch.float64), "x", expected="float32 or float64", got=str(x.dtype), cure="convert it: x.float()")
    return x.flatten(1)


def _variances(x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    return x.square().mean(1)


def _number(value: float | int | Tensor) -> float | int:
    """The value of a number or scalar tensor.

    Raises:
        InputError: if it is a tensor of another shape.
    """
    if isinstance(value, Tensor):
        require(value.ndim == 0, "w_std, b_std", expected="scalar tensors", got=f"shape {tuple(value.shape)}", cure="pass value.squeeze()")
        return value.detach().item()
    return value
