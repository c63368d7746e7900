r"""Inner-product potentials: the family for images and for vectors of many entries.

    V(x, t, c) = alpha(t) |x|^2 / 2 - <x, U(x, t, c)> + b(t, c)        alpha(t) = ((1 - t) - t) / ((1 - t)^2 + t^2)
    grad V     = alpha(t) x - U - J_U^T x

-alpha(t) x is the best linear policy between two independent laws of mean 0 and variance 1: the regression of X_1 - X_0 on X_t.
U has as many outputs as x has entries, and its last layer starts at zero, so the untrained policy is that linear one, and U learns
the rest. J_U^T x is one pass down with x as cotangent. For residual features

    h_0 = W_0 x + M_0 e(t, c)        h_l = h_{l-1} + a_l,  a_l = phi(W_l h_{l-1} + M_l e)        U = W h_L + b

    c_L = x W        c_{l-1} = c_l + (c_l * phi'(a_l)) W_l        J_U^T x = c_0 W_0

and no autograd graph is needed; phi is the exponential linear unit, its derivative is read off its output as in `value.py`.
A condition c is an index (-1: none), a vector (NaN: none), or absent; a learned row stands for "none".

Equations (T9), (T10): docs/derivations/transport.md.
"""

from abc import abstractmethod
from math import pi, prod
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, linear, silu

from driftway.checks import count, require
from driftway.transport.condition import Conditioner
from driftway.transport.value import Trainable

FREQUENCIES, CLOCK, PRICE, LEVEL = 16, 128, 128, 32
elu_backward = torch.ops.aten.elu_backward


class Clock(nn.Module):
    """Time and condition as one vector e(t, c) of `width` entries: sinusoids through two layers, the condition between them."""

    def __init__(self, width: int, *, classes: int, columns: int) -> None:
        super().__init__()
        self.time, self.out = nn.Linear(2 * FREQUENCIES, width), nn.Linear(width, width)
        self.condition = Conditioner(width=width, classes=classes, columns=columns)

    def forward(self, t: Float[Tensor, " n"], c: Tensor | None) -> Float[Tensor, "n width"]:
        phase = t[:, None] * (pi / 2) * torch.logspace(0, 5, FREQUENCIES, base=2, dtype=t.dtype, device=t.device)
        return silu(self.out(silu(self.time(torch.cat([phase.sin(), phase.cos()], 1)) + self.condition(c, t))))


class Price(nn.Module):
    """A perceptron of two hidden layers over flat rows, with its own embedding of the condition."""

    def __init__(self, inputs: int, *, width: int, classes: int, columns: int) -> None:
        super().__init__()
        self.condition = Conditioner(width=width, classes=classes, columns=columns)
        self.first, self.second, self.head = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, y: Float[Tensor, "m k"], c: Tensor | None) -> Float[Tensor, " m"]:
        return self.head(silu(self.second(silu(self.first(y) + self.condition(c, y)))))[:, 0]


class InnerProduct(Trainable):
    """V = alpha |x|^2 / 2 - <x, U(x, t, c)> + b(t, c) over flat states, and a separate perceptron g; a subclass supplies U.

    U is fitted to actions alone: fitting it to levels as well costs class accuracy and W2. The level is left to b.

    Args:
        event: shape of one state, (k,).
        width: units of the two hidden layers of g.
        classes: number of classes of an index condition; 0 for none.
        columns: number of entries of a condition vector; 0 for none.
    """

    def __init__(self, event: tuple[int, ...], *, width: int, classes: int, columns: int) -> None:
        super().__init__()
        self.event = tuple(event)
        count("classes", classes, least=0)
        count("columns", columns, least=0)
        require(not (classes and columns), "columns", expected="0 beside classes > 0", got=columns, cure="set one of the two")
        require(len(self.event) == 1, "event", expected="a flat shape (k,)", got=self.event, cure="flatten the rows")
        self.g = Price(prod(event), width=width, classes=classes, columns=columns)
        self.b = Price(1, width=LEVEL, classes=classes, columns=columns)

    @abstractmethod
    def vector(self, x: Float[Tensor, "n k"], t: Float[Tensor, " n"], c: Tensor | None) -> Float[Tensor, "n k"]:
        """U(x, t, c)."""

    def value(self, x: Float[Tensor, "n k"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        return potential(x, t, self.vector(x, t, c)) + self.b(t[:, None], c)

    def gradient(self, x: Float[Tensor, "n k"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n k"]:
        return self.value_and_gradient(x, t, c)[1]

    def value_and_gradient(
        self, x: Float[Tensor, "n k"], t: Float[Tensor, " n"], c: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
        """V and grad V from one pass up and one down; V is differentiable in b alone, grad V in all else."""
        U, pull = self._vector_and_pull(x, t, c)
        return potential(x, t, U).detach() + self.b(t[:, None], c), alpha(t) * x - U - pull

    def price(self, y: Float[Tensor, "m k"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        return self.g(y, c)

    def _vector_and_pull(self, x: Tensor, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """U and J_U^T x by automatic differentiation."""
        train = torch.is_grad_enabled()
        with torch.enable_grad():
            z = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            U = self.vector(z, t, c)
            (pull,) = torch.autograd.grad(U, z, x, create_graph=train)
        return (U, pull) if train else (U.detach(), pull.detach())


class VectorValue(InnerProduct):
    """U as a residual perceptron with a hand-written J_U^T x: for vectors of 64 or more entries.

    Args:
        event: shape of one state, (k,).
        width: units per hidden layer; g has as many, at most 128.
        depth: hidden layers of U.
        classes: number of classes of an index condition; 0 for none.
        columns: number of entries of a condition vector; 0 for none.
    """

    def __init__(self, event: tuple[int, ...], *, width: int = 256, depth: int = 3, classes: int = 0, columns: int = 0) -> None:
        super().__init__(event, width=min(count("width", width), PRICE), classes=classes, columns=columns)
        self.clock = Clock(CLOCK, classes=classes, columns=columns)
        self.modulation = nn.Linear(CLOCK, width * count("depth", depth))
        self.lift = nn.Linear(prod(event), width, bias=False)
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth - 1))
        self.head = nn.Linear(width, prod(event))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def _weights(self) -> list[Tensor]:
        return [cast("nn.Linear", layer).weight for layer in self.layers]

    def _features(self, x: Tensor, t: Tensor, c: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """h_L and the outputs of all units."""
        first, *shifts = self.modulation(self.clock(t, c)).chunk(len(self.layers) + 1, 1)
        h = elu(self.lift(x) + first)
        outputs = [h]
        for weight, shift in zip(self._weights, shifts, strict=True):
            a = elu(linear(h, weight) + shift)
            h = h + a
            outputs.append(a)
        return h, outputs

    def vector(self, x: Float[Tensor, "n k"], t: Float[Tensor, " n"], c: Tensor | None) -> Float[Tensor, "n k"]:
        return self.head(self._features(x, t, c)[0])

    def _vector_and_pull(self, x: Tensor, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        h, (first, *outputs) = self._features(x, t, c)
        pull = x @ self.head.weight
        for weight, a in zip(reversed(self._weights), reversed(outputs), strict=True):
            pull = pull + elu_backward(pull, 1.0, 1.0, 1.0, True, a) @ weight
        return self.head(h), elu_backward(pull, 1.0, 1.0, 1.0, True, first) @ self.lift.weight


def alpha(t: Float[Tensor, " n"]) -> Float[Tensor, "n 1"]:
    """The curvature of V for two standard normal laws, independently paired."""
    return ((1 - 2 * t) / ((1 - t) ** 2 + t**2))[:, None]


def potential(x: Float[Tensor, "n k"], t: Float[Tensor, " n"], U: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """V from U."""
    return (x * (alpha(t) * x / 2 - U)).sum(1)
