"""Fully connected networks of infinite width: the NNGP S and the NTK Theta, layer by layer.

From S = x.x'/d, Theta = 0, through `depth` hidden layers and a readout,

    dense         S' = w^2 S + b^2,    Theta' = S' + w^2 Theta              NTK parameterisation, w W x / d^(1/2) + b B with W, B ~ N(0, 1)
                                       Theta' = d S + [bias] + w^2 Theta    standard, W x + B with W ~ N(0, w^2 / d), B ~ N(0, b^2)
    activation    S' = T(S),           Theta' = Theta Tdot(S)               `activations`; these need S(x, x) and S(x', x') too

(Lee et al., 2018; Jacot et al., 2018) with d the inputs of the layer: the columns of x, then `width`. The standard NTK grows with the
width, so that one is named (Sohl-Dickstein et al., 2020, with s = 1). There [bias] is 1 with a bias, also one that starts at 0
(b_std=0.0), and 0 without (b_std=None).

Matrices are filled block by block, in the memory of the result (`infinite_blocks`), and without a graph. A backward pass computes them
again, some rows at a time, and holds the graph of these rows only.

In float32, entries are correct to 1e-6 of (k_ii k_jj)^(1/2), except for the NTK of nearly parallel rows under ABReLU: 2e-4 for each layer
(see `activations`). Diagonals and equal rows do not suffer.

Equations (K5), (K6), (K7): docs/derivations/kernels.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import choice, count, real, require
from driftway.kernels.activations import ABReLU, Activation, activation
from driftway.kernels.base import points, require_memory
from driftway.kernels.infinite_blocks import empty, fill, relu_tile, side
from driftway.kernels.network import PARTS, Network, Pair, ProductNetwork

__all__ = ["FullyConnected", "Network", "Pair", "ProductNetwork"]

MOST = 10_000  # layers
SMALL = 1e-6  # weights, below which their fourth powers are lost in float32
HELD = {"cpu": 2**16, "cuda": 2**21}  # entries that the backward pass holds all steps of


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
        require(count("depth", self.depth, least=0) <= MOST, "depth", expected=f"at most {MOST} layers", got=self.depth, cure="pass fewer")
        count("width", self.width)
        activation(self.activation)
        choice("parameterization", self.parameterization, ("ntk", "standard"))
        require(SMALL <= real("w_std", _number(self.w_std), least=0, strict=True) <= 1 / SMALL, "w_std", got=_number(self.w_std),
                expected=f"a number from {SMALL:g} to {1 / SMALL:g}", cure="weights of other sizes under- or overflow")  # fmt: skip
        if self.b_std is not None:
            require(real("b_std", _number(self.b_std), least=0) <= 1 / SMALL, "b_std", expected=f"a number up to {1 / SMALL:g}",
                    got=_number(self.b_std), cure="biases beyond it overflow")  # fmt: skip

    def kernels(self, x: Tensor, y: Tensor | None = None) -> Pair:
        return Pair(*self._matrices(PARTS, x, y))

    def kernel(self, part: str, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self._matrices((choice("part", part, PARTS),), x, y)[0]

    def kernel_diagonals(self, x: Tensor) -> Pair:
        rows = _rows(points(x)[0])
        S = _variances(rows)
        return self._layers(S, S, S, rows.shape[1], same=True)

    def _matrices(self, parts: tuple[str, ...], x: Tensor, y: Tensor | None) -> Sequence[Tensor]:
        """The named kernels, in that order."""
        a, b = points(x, y)
        require_memory("x", len(parts) * len(a) * len(b) * a.element_size(),
                       "evaluate it in parts, with driftway.kernels.blocks, or pass fewer rows", device=a.device)  # fmt: skip
        scalars = [t if isinstance(t, Tensor) else None for t in (self.w_std, self.b_std)]
        return _Filled.apply(self, parts, _rows(a), None if y is None else _rows(b), *scalars)  # type: ignore[return-value]

    def fill(self, outputs: Sequence[Tensor], parts: Sequence[str], x: Tensor, y: Tensor | None) -> None:
        """Fill the named kernels, block by block: by the recursion of cosines where it holds, else by the layers below."""
        phi, depth, w, b = activation(self.activation), self.depth, _number(self.w_std), 0.0 if self.b_std is None else _number(self.b_std)
        if isinstance(phi, ABReLU) and phi.a != phi.b and depth and self.parameterization == "ntk" and x.device.type == "cpu":
            one = side(x, phi, depth=depth, w=w, b=b)
            two = one if y is None else side(y, phi, depth=depth, w=w, b=b)
            fill(outputs, -one.u, two.u, lambda: relu_tile(one, two, phi, parts), symmetric=y is None)
        else:
            z, d = x if y is None else y, x.shape[1]
            s11, s22 = _variances(x)[:, None], _variances(z)

            def tile(start: Tensor, rows: slice, columns: slice) -> Sequence[Tensor]:
                pair = self._layers(start / d, s11[rows], s22[columns], d)
                return [getattr(pair, part) for part in parts]

            fill(outputs, x, z, lambda: tile, symmetric=y is None)
        if y is None:
            diagonals = self.kernel_diagonals(x)
            for K, part in zip(outputs, parts, strict=True):
                K.diagonal().copy_(getattr(diagonals, part))

    def rows(self, x: Tensor, y: Tensor) -> Pair:
        """Both kernels of few rows, with a graph: the layers, one by one."""
        return self._layers(x @ y.mT / x.shape[1], _variances(x)[:, None], _variances(y), x.shape[1])

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


class _Filled(torch.autograd.Function):
    """Kernels filled without a graph; the backward pass computes them again with one, some rows at a time."""

    @staticmethod
    def forward(network: FullyConnected, parts: tuple[str, ...], x: Tensor, y: Tensor | None, w: Tensor | None,  # pyright: ignore
                b: Tensor | None) -> tuple[Tensor, ...]:  # fmt: skip
        del w, b  # the network has them
        outputs = tuple(empty(len(x), len(x if y is None else y), x) for _ in parts)
        network.fill(outputs, parts, x, y)
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        del output
        ctx.network, ctx.parts, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        twice, needed = torch.is_grad_enabled(), ctx.needs_input_grad[2:]
        inputs: list[Any] = [t if t is None or twice else t.detach().requires_grad_(need)
                             for t, need in zip(ctx.saved_tensors, needed, strict=True)]  # fmt: skip
        x, y, w, b = inputs
        network = replace(ctx.network, **{k: v for k, v in (("w_std", w), ("b_std", b)) if v is not None})
        given = {part: slope for part, slope in zip(ctx.parts, slopes, strict=True) if slope is not None}
        wanted, step = [t for t, need in zip(inputs, needed, strict=True) if need], HELD.get(x.device.type, HELD["cuda"])
        sums: list[Tensor | None] = [None] * len(wanted)

        def add(pair: Pair, weights: dict[str, Tensor]) -> None:
            moved = [(K, G) for part, G in weights.items() if (K := getattr(pair, part)).requires_grad]
            if not moved:
                return
            outputs, weight = zip(*moved, strict=True)
            found = torch.autograd.grad(outputs, wanted, weight, create_graph=twice, allow_unused=True)
            sums[:] = [new if old is None else old if new is None else old + new for old, new in zip(sums, found, strict=True)]

        with torch.enable_grad():
            for rows, columns in _strips(len(x), len(x if y is None else y), step, symmetric=y is None):
                if y is None:  # each entry below the diagonal stands for two
                    weights = {k: (G[rows, columns] + G[columns, rows].mT).tril(rows.start - 1) for k, G in given.items()}
                else:
                    weights = {k: G[rows, columns] for k, G in given.items()}
                add(network.rows(x[rows], (x if y is None else y)[columns]), weights)
            if y is None:
                add(network.kernel_diagonals(x), {k: G.diagonal() for k, G in given.items()})
        gradients = iter(sums)
        return None, None, *(next(gradients) if need else None for need in needed)


def _strips(n: int, m: int, size: int, *, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Rows, and the columns that they need, of about `size` entries."""
    start = 0
    while start < n:
        height = (math.isqrt(start**2 + 4 * size) - start) // 2 if symmetric else size // m  # height (start + height) <= size
        stop = min(n, start + max(1, height))
        yield slice(start, stop), slice(0, stop if symmetric else m)
        start = stop


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
