r"""Value functions: one interface, and the network family.

A value V_t(x) is the least cost from state x at time t to the end, prices g included. It is the policy, a*(x, t) = -grad V_t(x),
so its gradient is worth a hand-written formula. For a multilayer perceptron with features h_l = phi(W_l h_{l-1} + b_l) and a
soft minimum over heads f = W h_L + b,

    V = -(1/beta) log sum_k exp(beta f_k)          c_L = -softmax(beta f) W          c_{l-1} = (c_l * phi'(h_l)) W_l

and grad V = c_0: two passes of matrix products, no autograd graph, and one ordinary backward pass to train on the gradient. A
condition adds a learned vector to each W_l h_{l-1} + b_l, which leaves the recursion as it is.
phi is the exponential linear unit, whose derivative min(h, 0) + 1 is read off its own output and is continuous. The soft minimum
is there because true values have kinks: V_t is |x|^2 / 2(1-t) minus a maximum of affine functions.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from math import prod
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, linear

from driftway.transport.condition import Conditioner

ROWS = 4096
GAIN = 3.0  # states of unit variance enter as three: modes and kinks lie closer together than the width of a fresh unit
elu_backward = torch.ops.aten.elu_backward


class Value(nn.Module, ABC):
    """A value function with its terminal price, for states of shape `event`.

    Every method takes the condition of each row: class indices (n,), -1 for null, or vectors (n, k), NaN for null. None is for
    values without conditions.
    """

    event: tuple[int, ...]

    @abstractmethod
    def value(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        """V_t(x): the least expected cost from x at time t in [0, 1) to the end."""

    @abstractmethod
    def gradient(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:
        """grad V_t(x), minus which is the optimal action."""

    @abstractmethod
    def price(self, y: Float[Tensor, "m *event"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        """g(y): the dual variable of the constraint that the law of the end is the target law."""


class Trainable(Value):
    """A value that is fitted to states and actions: it gives V and grad V together, differentiable in its parameters."""

    @abstractmethod
    def value_and_gradient(
        self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *event"]]:
        """V_t(x) and grad V_t(x)."""


@runtime_checkable
class EndpointLaw(Protocol):
    """A value whose law of the end point, given the state, is known in closed form and can be drawn."""

    def endpoint(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], *, uniform: Float[Tensor, " n"],
                 normal: Float[Tensor, "n *event"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:  # fmt: skip
        """Draw X_1 given X_t = x, from one uniform and one normal variate per row."""
        ...


class Perceptron(nn.Module):
    """A scalar function of (x, t, c), or of fewer of them, with its gradient in x by the recursion at the top of this file.

    Args:
        inputs: number of entries of x.
        width: units per hidden layer.
        depth: number of hidden layers.
        heads: pieces of the soft minimum; 1 makes the last layer linear.
        timed: whether the function also takes a time.
        classes: classes of its condition, or 0.
        columns: entries of its condition vectors, or 0.
    """

    def __init__(self, inputs: int, *, width: int, depth: int, heads: int, timed: bool, classes: int = 0, columns: int = 0) -> None:
        super().__init__()
        sizes = [inputs + timed, *[width] * depth]
        self.inputs, self.timed = inputs, timed
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, heads)
        self.log_beta = nn.Parameter(torch.zeros(()))
        conditional = classes or columns
        self.condition = Conditioner(classes=classes, columns=columns, width=width * depth) if conditional else None

    @property
    def _linear(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))

    def _pieces(self, h: Tensor, beta: Tensor) -> Tensor:
        return linear(h, self.head.weight, self.head.bias) * beta

    def _features(self, x: Tensor, t: Tensor | None, c: Tensor | None) -> list[Tensor]:
        h = GAIN * x if t is None else torch.cat([GAIN * x, t[:, None]], 1)
        layers = self._linear
        if self.condition is not None:
            shifts = self.condition(c, x).chunk(len(layers), 1)
        else:
            shifts = [None] * len(layers)
        features = []
        for layer, shift in zip(layers, shifts, strict=True):
            z = linear(h, layer.weight, layer.bias)
            h = elu(z if shift is None else z + shift, inplace=True)
            features.append(h)
        return features

    def _gradient(self, features: list[Tensor], pieces: Tensor) -> Tensor:
        c = pieces.softmax(1) @ self.head.weight
        for layer, h in zip(reversed(self._linear), reversed(features), strict=True):
            weight = layer.weight[:, : self.inputs] if h is features[0] else layer.weight
            c = elu_backward(c, 1.0, 1.0, 1.0, True, h) @ weight  # c * phi'(h), phi' read off h, in one differentiable pass
        return -GAIN * c

    def forward(self, x: Float[Tensor, "n d"], t: Float[Tensor, " n"] | None = None, c: Tensor | None = None) -> Float[Tensor, " n"]:
        beta = self.log_beta.exp()
        return -torch.logsumexp(self._pieces(self._features(x, t, c)[-1], beta), 1) / beta

    def gradient(
        self, x: Float[Tensor, "n d"], t: Float[Tensor, " n"] | None = None, c: Tensor | None = None
    ) -> Float[Tensor, "n d"]:
        """The gradient in x; without an autograd graph in blocks of rows that stay in the cache."""
        if not torch.is_grad_enabled() and len(x) > 2 * ROWS:
            blocks = range(0, len(x), ROWS)
            parts = [[None if z is None else z[i : i + ROWS] for z in (t, c)] for i in blocks]
            return torch.cat([self.gradient(x[i : i + ROWS], *part) for i, part in zip(blocks, parts, strict=True)])
        features = self._features(x, t, c)
        return self._gradient(features, self._pieces(features[-1], self.log_beta.exp()))

    def value_and_gradient(
        self, x: Float[Tensor, "n d"], t: Float[Tensor, " n"] | None = None, c: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]]:
        """The function and its gradient in x, from one pass up and one down."""
        features = self._features(x, t, c)
        beta = self.log_beta.exp()
        pieces = self._pieces(features[-1], beta)
        return -torch.logsumexp(pieces, 1) / beta, self._gradient(features, pieces)


class NetworkValue(Trainable):
    """V and g as two separate perceptrons over flattened states: the family for any dimension.

    Args:
        event: shape of one state.
        width: units per hidden layer of both networks.
        depth: hidden layers of both networks.
        heads: pieces of V's soft minimum.
        classes: classes of the condition, or 0.
        columns: entries of condition vectors, or 0.
    """

    def __init__(self, event: tuple[int, ...], *, width: int = 64, depth: int = 3, heads: int = 32, classes: int = 0,
                 columns: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.event = tuple(event)
        d, known = prod(event), {"classes": classes, "columns": columns}
        self.V = Perceptron(d, width=width, depth=depth, heads=heads, timed=True, **known)
        self.g = Perceptron(d, width=width, depth=depth, heads=1, timed=False, **known)

    def value(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        return self.V(x.flatten(1), t, c)

    def gradient(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:
        return self.V.gradient(x.flatten(1), t, c).reshape(x.shape)

    def value_and_gradient(
        self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *event"]]:
        V, gradient = self.V.value_and_gradient(x.flatten(1), t, c)
        return V, gradient.reshape(x.shape)

    def price(self, y: Float[Tensor, "m *event"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        return self.g(y.flatten(1), None, c)
