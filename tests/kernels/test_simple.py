"""Kernels with a formula, against the formula by loops, and the median heuristic."""

import math

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.kernels import Energy, Gaussian, Linear, median_bandwidth, mmd2

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def test_formulas_entry_by_entry():
    x, y = draw(6, 2, 3), draw(5, 2, 3, seed=1)
    for i, a in enumerate(x.flatten(1).tolist()):
        for j, b in enumerate(y.flatten(1).tolist()):
            distance = math.dist(a, b)
            assert math.isclose(Linear()(x, y)[i, j], sum(p * q for p, q in zip(a, b, strict=True)), abs_tol=1e-13)
            assert math.isclose(Gaussian(1.7)(x, y)[i, j], math.exp(-(distance**2) / (2 * 1.7**2)), rel_tol=1e-12)
            assert math.isclose(Energy()(x, y)[i, j], math.hypot(*a) + math.hypot(*b) - distance, abs_tol=1e-13)


def test_a_gaussian_kernel_of_a_point_with_itself_is_one():
    x = (1e3 + draw(50, 7)).float()
    assert (Gaussian(0.1)(x).diagonal() == 1).all()
    assert float(Gaussian(0.1)(x, x).max()) <= 1


def test_a_common_offset_costs_no_digits():
    """The offset is a power of two, so that the points move by exactly the same amount."""
    x = (draw(40, 5) * 1024).round() / 1024
    y = x.flip(0) + 0.25
    near = Gaussian(1.0)(x.float(), y.float())
    far = Gaussian(1.0)((x + 2048).float(), (y + 2048).float())
    torch.testing.assert_close(far, near, atol=2e-6, rtol=0)


def test_the_width_learns():
    x, h = draw(6, 2), torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h, x: Gaussian(h)(x) + Gaussian(h)(x, x.flip(0)), (h, x.requires_grad_()))


def test_energy_is_the_energy_distance():
    """2 E|x - y| - E|x - x'| - E|y - y'|, wherever the origin is."""
    x, y = draw(20, 3), draw(15, 3, seed=1) + 0.5
    known = 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    torch.testing.assert_close(mmd2(x, y, kernel=Energy()), known)
    torch.testing.assert_close(mmd2(x + 3, y + 3, kernel=Energy()), known)


def test_the_median_of_all_distances():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # 1 2 3 4 6 7
    assert median_bandwidth(x) == 3
    assert median_bandwidth(x[:2], x[2:]) == 3
    assert median_bandwidth(torch.cat([x, x, x])) == 3  # unequal points only


def test_the_median_of_a_normal_law():
    """|x - x'|^2 / 2 is chi-square with d degrees of freedom, whose median is near d (1 - 2/(9d))^3."""
    d = 50
    h = median_bandwidth(draw(5000, d), rows=1000)
    assert abs(h - math.sqrt(2 * d * (1 - 2 / (9 * d)) ** 3)) < 0.02 * h


@pytest.mark.parametrize(("call", "message"), [
    (lambda: Gaussian(0.0), r"bandwidth: expected a finite number > 0, got 0.0"),
    (lambda: Gaussian(torch.tensor([1.0, 2.0])), r"bandwidth: expected a finite number > 0, got tensor"),
    (lambda: median_bandwidth(torch.ones(3, 2)), r"x: expected at least two unequal points, got 3 equal ones; pass a bandwidth"),
    (lambda: median_bandwidth(torch.ones(3, 2), rows=1), r"rows: expected a whole number >= 2, got 1"),
])  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
