"""Dual activations: the mean of a product of activations under a joint Gaussian, in closed form.

For (u, v) ~ N(0, [[s11, s12], [s12, s22]]) and an activation phi,

    T = E[phi(u) phi(v)],    Tdot = E[phi'(u) phi'(v)] = dT / ds12        (Price, 1958)

**ABReLU**, phi(z) = a min(z, 0) + b max(z, 0) = m z + h |z| with m = (a + b)/2, h = (b - a)/2. With r_i = s_ii^(1/2), c = s12 / (r_1 r_2),

    T = m^2 s12 + h^2 r_1 r_2 J1(c),    J1(c) = (2/pi) ((1 - c^2)^(1/2) + c asin c)           (Cho and Saul, 2009, orders 1 and 0)
    Tdot = m^2 + h^2 J0(c),             J0(c) = (2/pi) asin c = J1'(c)

J0 has infinite slope at c = 1 and c = -1: the NTK has a kink where two rows are parallel. There its slope is taken to be 0, the mean of
the two sides, and the derivative of k(x, x) along x. Where s11 or s22 is 0, c = 0 and the slopes of r are 0.

**Erf** (Williams, 1997), with D = (1 + 2 s11)(1 + 2 s22) - 4 s12^2 = 1 + 2 s11 + 2 s22 + 4 (s11 s22 - s12^2),

    T = (2/pi) atan(2 s12 / D^(1/2)),    Tdot = (4/pi) / D^(1/2)

**GELU**, phi(z) = z Phi(z) (Tsuchida et al., 2020). With P = (1 + s11)(1 + s22), D = P - s12^2, y = s12 / D^(1/2) and Phi = 1/2 + an odd
function, Stein's lemma applied twice gives

    T    = s12/4 + (s12 atan y + D^(1/2) (s11 s22 + y^2) / P) / (2 pi)
    Tdot = 1/4 + (atan y + y (3 + s11 + s22 + y^2) / P) / (2 pi)

The angle of two nearly parallel rows comes from c with an error of the square root of the rounding error: so does Tdot. T does not
suffer. Errors are relative to r_1 r_2: where ReLU rows are opposite, T and Tdot are small differences.

Equations (K1), (K2), (K3), (K4): docs/derivations/kernels.md.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from driftway.checks import choice, real, require

PARALLEL = 4  # rows are parallel where 1 - |c| is at most this many rounding errors


class Activation(ABC):
    """An activation function and its dual. All slopes are finite, also at s12^2 = s11 s22 and at 0."""

    @abstractmethod
    def __call__(self, z: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """phi(z)."""

    @abstractmethod
    def dual(self, s12: Float[Tensor, "*#s"], s11: Float[Tensor, "*#s"],
             s22: Float[Tensor, "*#s"]) -> tuple[Float[Tensor, "*#s"], Float[Tensor, "*#s"]]:  # fmt: skip
        """T and Tdot, elementwise; the arguments broadcast.

        Args:
            s12: covariance of u and v.
            s11: variance of u.
            s22: variance of v.
        """

    def dual_diagonal(self, s11: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        """T and Tdot for u = v."""
        return self.dual(s11, s11, s11)


@dataclass(frozen=True)
class ABReLU(Activation):
    """phi(z) = a min(z, 0) + b max(z, 0). ReLU is a = 0, b = 1; the absolute value a = -1, b = 1; the identity a = b = 1.

    Attributes:
        a: slope for z < 0.
        b: slope for z > 0.

    Raises:
        InputError: if a slope is not a finite number, or both are 0.
    """

    a: float | int = 0.0
    b: float | int = 1.0

    def __post_init__(self) -> None:
        slope_a, slope_b = real("a", self.a), real("b", self.b)
        require(slope_a != 0 or slope_b != 0, "a, b", expected="slopes that are not both 0", got="0 and 0", cure="pass b=1.0 for a ReLU")

    def __call__(self, z: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return self.a * z.clamp_max(0) + self.b * z.clamp_min(0)

    def dual(self, s12: Float[Tensor, "*#s"], s11: Float[Tensor, "*#s"],
             s22: Float[Tensor, "*#s"]) -> tuple[Float[Tensor, "*#s"], Float[Tensor, "*#s"]]:  # fmt: skip
        m, h = (self.a + self.b) / 2, (self.b - self.a) / 2
        (r1, inverse1), (r2, inverse2) = _root(s11), _root(s22)
        c = s12 * inverse1 * inverse2
        return m**2 * s12 + h**2 * (r1 * r2) * _J1.apply(c), m**2 + h**2 * _J0.apply(c)  # type: ignore[operator]

    def dual_diagonal(self, s11: Float[Tensor, "*s"]) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
        mean = (self.a**2 + self.b**2) / 2
        return mean * s11, torch.full_like(s11, mean)


@dataclass(frozen=True)
class Erf(Activation):
    """The error function."""

    def __call__(self, z: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return torch.erf(z)

    def dual(self, s12: Float[Tensor, "*#s"], s11: Float[Tensor, "*#s"],
             s22: Float[Tensor, "*#s"]) -> tuple[Float[Tensor, "*#s"], Float[Tensor, "*#s"]]:  # fmt: skip
        inverse = (1 + 2 * s11 + 2 * s22 + 4 * _determinant(s12, s11, s22)).rsqrt()
        return 2 / math.pi * torch.atan(2 * s12 * inverse), 4 / math.pi * inverse


@dataclass(frozen=True)
class GELU(Activation):
    """phi(z) = z Phi(z), Phi the distribution function of the standard normal (not its tanh approximation)."""

    def __call__(self, z: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return functional.gelu(z)

    def dual(self, s12: Float[Tensor, "*#s"], s11: Float[Tensor, "*#s"],
             s22: Float[Tensor, "*#s"]) -> tuple[Float[Tensor, "*#s"], Float[Tensor, "*#s"]]:  # fmt: skip
        P, root = (1 + s11) * (1 + s22), (1 + s11 + s22 + _determinant(s12, s11, s22)).sqrt()
        y = s12 / root
        A = torch.atan(y)
        T = s12 / 4 + (s12 * A + root * (s11 * s22 + y**2) / P) / (2 * math.pi)
        return T, 0.25 + (A + y * (3 + s11 + s22 + y**2) / P) / (2 * math.pi)


ACTIVATIONS: dict[str, Activation] = {"relu": ABReLU(), "leaky_relu": ABReLU(0.01, 1.0), "abs": ABReLU(-1.0, 1.0),
                                      "erf": Erf(), "gelu": GELU()}  # fmt: skip


def activation(name: str | Activation) -> Activation:
    """The activation of that name: relu, leaky_relu (slope 0.01), abs, erf or gelu. An `Activation` is returned as it is.

    Raises:
        InputError: if there is none of that name.
    """
    return name if isinstance(name, Activation) else ACTIVATIONS[choice("activation", name, ACTIVATIONS)]


def _root(s: Tensor) -> tuple[Tensor, Tensor]:
    """s^(1/2) and s^(-1/2), both 0 with slope 0 where s <= 0."""
    positive = s > 0
    root = torch.where(positive, s, 1).sqrt()
    return torch.where(positive, root, 0), torch.where(positive, 1 / root, 0)


def _determinant(s12: Tensor, s11: Tensor, s22: Tensor) -> Tensor:
    """s11 s22 - s12^2, raised to 0 where rounding made it negative, with the slope it has."""
    q = s11 * s22 - s12**2
    return q - q.detach().clamp_max(0)


class _J1(torch.autograd.Function):
    """J1(c), c clamped to [-1, 1]; its slope is J0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(c: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        c = c.clamp(-1, 1)
        return 2 / math.pi * (((1 - c) * (1 + c)).sqrt() + c * torch.asin(c))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (c,) = ctx.saved_tensors
        return slope * _J0.apply(c)  # type: ignore[operator]


class _J0(torch.autograd.Function):
    """J0(c), 1 or -1 where c is so up to rounding, and its slope 0 there."""

    generate_vmap_rule = True

    @staticmethod
    def forward(c: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.where(_parallel(c), c.sign(), 2 / math.pi * torch.asin(c.clamp(-1, 1)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del output
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (c,) = ctx.saved_tensors
        parallel = _parallel(c)
        inside = torch.where(parallel, 0, c)
        return torch.where(parallel, 0, slope * 2 / math.pi * ((1 - inside) * (1 + inside)).rsqrt())


def _parallel(c: Tensor) -> Tensor:
    return c.abs() >= 1 - PARALLEL * torch.finfo(c.dtype).eps
