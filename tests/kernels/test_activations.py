"""Dual activations against quadrature, known kernels, and their own derivatives."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.kernels.activations import ABReLU, Activation, activation

DOUBLE = torch.float64
NAMES = ("relu", "leaky_relu", "abs", "erf", "gelu")
EVERY = [*map(activation, NAMES), ABReLU(0.3, -0.8), ABReLU(1.0, 1.0)]
SMOOTH, HOMOGENEOUS = [a for a in EVERY if not isinstance(a, ABReLU)], [a for a in EVERY if isinstance(a, ABReLU)]
CASES = [(1.0, 1.0, 0.3), (0.5, 2.0, -0.8), (1.2, 0.7, 0.999), (0.3, 0.9, -1.0), (0.01, 3.0, 0.0), (1.4, 1.4, 1.0)]
every = pytest.mark.parametrize("phi", EVERY, ids=str)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=DOUBLE)


def slope(phi: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(phi(z).sum(), z)[0]


def by_hermite(phi: Activation, s11: float, s22: float, c: float) -> tuple[float, float]:
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)] on a Gauss-Hermite grid of the plane."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(160))
    z1, z2, w = nodes[:, None], nodes[None], weights[:, None] * weights / (2 * math.pi)
    u, v = (math.sqrt(s11) * z1).expand(160, 160), math.sqrt(s22) * (c * z1 + math.sqrt(1 - c * c) * z2)
    return float((w * phi(u) * phi(v)).sum()), float((w * slope(phi, u) * slope(phi, v)).sum())


def by_angle(phi: ABReLU, s11: float, s22: float, c: float) -> tuple[float, float]:
    """The same in polar coordinates, E[radius^2] = 2, by Gauss-Legendre between the kinks of cos(t) and cos(t - omega)."""
    omega, (nodes, weights), T, Tdot = math.acos(c), np.polynomial.legendre.leggauss(20), 0.0, 0.0
    kinks = np.sort(np.mod([math.pi / 2, -math.pi / 2, omega + math.pi / 2, omega - math.pi / 2], 2 * math.pi))
    for low, high in zip(kinks, [*kinks[1:], kinks[0] + 2 * math.pi], strict=True):
        t = torch.from_numpy((low + high) / 2 + (high - low) / 2 * nodes)
        w = torch.from_numpy(weights * (high - low) / 2) / (2 * math.pi)
        T += float((w * phi(t.cos()) * phi((t - omega).cos())).sum()) * 2 * math.sqrt(s11 * s22)
        Tdot += float((w * slope(phi, t.cos()) * slope(phi, (t - omega).cos())).sum())
    return T, Tdot


@pytest.mark.parametrize(("s11", "s22", "c"), CASES)
@every
def test_dual_is_the_mean_that_quadrature_finds(phi: Activation, s11: float, s22: float, c: float) -> None:
    T, Tdot = phi.dual(scalar(c * math.sqrt(s11 * s22)), scalar(s11), scalar(s22))
    known = by_angle(phi, s11, s22, c) if isinstance(phi, ABReLU) else by_hermite(phi, s11, s22, c)
    assert abs(float(T) - known[0]) < 1e-9
    assert abs(float(Tdot) - known[1]) < (1e-9 if abs(c) < 1 else 1e-7)  # the angle has half the digits where rows are parallel


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.4, 1.5, 3.0, math.pi])
def test_relu_and_step_are_the_arc_cosine_kernels(angle: float) -> None:
    x, y = torch.tensor([1.5, 0.0], dtype=DOUBLE), 0.7 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=DOUBLE)
    T, Tdot = activation("relu").dual(x @ y, x @ x, y @ y)
    order_1 = 1.5 * 0.7 * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
    torch.testing.assert_close(2 * T, scalar(order_1), rtol=0, atol=1e-14)
    torch.testing.assert_close(2 * Tdot, scalar(1 - angle / math.pi), rtol=0, atol=1e-8)


@every
def test_tdot_is_the_slope_of_t(phi: Activation) -> None:
    """Price's theorem."""
    s12 = torch.linspace(-0.99, 1.0, 40, dtype=DOUBLE).requires_grad_()
    T, Tdot = phi.dual(s12, scalar(1.0), scalar(1.0))
    torch.testing.assert_close(torch.autograd.grad(T.sum(), s12)[0], Tdot, rtol=1e-12, atol=1e-12)


@every
def test_first_and_second_slopes_match_finite_differences(phi: Activation) -> None:
    generator = torch.Generator().manual_seed(0)
    s12 = torch.rand(3, 4, dtype=DOUBLE, generator=generator) - 0.5
    s11, s22 = (0.6 + torch.rand(shape, dtype=DOUBLE, generator=generator) for shape in ((3, 1), (4,)))
    arguments = [s.requires_grad_() for s in (s12, s11, s22)]
    assert torch.autograd.gradcheck(phi.dual, arguments)
    assert torch.autograd.gradgradcheck(phi.dual, arguments)


@every
def test_dual_of_equal_arguments_is_the_diagonal_in_value_and_slope(phi: Activation) -> None:
    s = torch.tensor([1e-6, 0.3, 1.0, 40.0], dtype=DOUBLE).requires_grad_()
    for one, two in zip(phi.dual(s, s, s), phi.dual_diagonal(s), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=0)
        slopes = [torch.autograd.grad(t.sum(), s, allow_unused=True, materialize_grads=True, retain_graph=True)[0]
                  if t.requires_grad else torch.zeros_like(s) for t in (one, two)]  # fmt: skip
        torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@every
def test_slopes_are_finite_where_rows_are_parallel_opposite_or_zero(phi: Activation, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    rows = [(1, 1, 1), (-1, 1, 1), (0, 0, 1), (0, 1, 0), (0, 0, 0), (1 + eps, 1, 1), (-1 - eps, 1, 1), (2, 1, 4), (1e-12, 1e-12, 1e-12)]
    s12, s11, s22 = (column.requires_grad_() for column in torch.tensor(rows, dtype=dtype).T.clone().unbind())
    for out in phi.dual(s12, s11, s22):
        assert torch.isfinite(out).all()
        for found in torch.autograd.grad(out.sum(), (s12, s11, s22), retain_graph=True, allow_unused=True, materialize_grads=True):
            assert torch.isfinite(found).all()
            assert found.abs().max() < 1e7


@pytest.mark.parametrize("phi", HOMOGENEOUS, ids=str)
def test_homogeneous_activations_have_homogeneous_duals(phi: ABReLU) -> None:
    s12, scale = torch.linspace(-1, 1, 9, dtype=DOUBLE), 1e-9
    T, Tdot = phi.dual(s12, scalar(1.0), scalar(1.0))
    small_T, small_Tdot = phi.dual(s12 * scale, scalar(scale**2), scalar(1.0))
    torch.testing.assert_close(small_T, T * scale, rtol=1e-9, atol=1e-20)
    torch.testing.assert_close(small_Tdot, Tdot, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("phi", SMOOTH, ids=str)
def test_smooth_activations_are_linear_for_small_variances(phi: Activation) -> None:
    s, zero = scalar(1e-8), torch.zeros((), dtype=DOUBLE)
    T, Tdot = phi.dual(s / 2, s, s)
    size = slope(phi, zero).square()
    torch.testing.assert_close(T, size * s / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(Tdot, size, rtol=1e-6, atol=0)


@every
def test_float32_agrees_with_float64(phi: Activation) -> None:
    c = torch.linspace(-0.999, 0.999, 201, dtype=DOUBLE)
    one, two = phi.dual(c, scalar(1.0), scalar(1.0)), phi.dual(c.float(), torch.tensor(1.0), torch.tensor(1.0))
    for exact, found in zip(one, two, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=4e-6)


def test_activations_by_name() -> None:
    z = torch.tensor([-2.0, 0.0, 3.0])
    assert activation("relu")(z).tolist() == [0.0, 0.0, 3.0]
    assert activation("abs")(z).tolist() == [2.0, 0.0, 3.0]
    torch.testing.assert_close(activation("leaky_relu")(z), torch.nn.functional.leaky_relu(z))
    torch.testing.assert_close(activation("gelu")(z), torch.nn.functional.gelu(z))
    assert activation(ABReLU(0.5, 2.0)) == ABReLU(0.5, 2.0)
    with pytest.raises(InputError, match="activation: expected one of relu, leaky_relu, abs, erf, gelu, got 'tanh'"):
        activation("tanh")
    with pytest.raises(InputError, match="a, b: expected slopes that are not both 0"):
        ABReLU(0.0, 0.0)
    with pytest.raises(InputError, match="b: expected a finite number"):
        ABReLU(0.0, math.inf)


@pytest.mark.parametrize("phi", SMOOTH, ids=str)
def test_rounding_past_cauchy_schwarz_does_no_harm_to_large_variances(phi: Activation) -> None:
    s = torch.tensor(1e9)
    for one, two in zip(phi.dual(s * (1 + 3e-7), s, s), phi.dual_diagonal(s.double()), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=0)
