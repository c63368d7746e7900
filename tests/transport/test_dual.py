"""The dual step ascends the semi-dual, and the certificate brackets the exact cost whatever the prices and the policy are."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from driftway.transport import Certificate, certificate, exact_coupling, solve_assignment_program, w2
from driftway.transport.dual import bracket, dual_loss, occupancy, pair_by, semi_dual
from driftway.transport.problem import cost
from tests.closed_forms.answers import UniformToExponential, gaussian_pair
from tests.transport.recipes import DOUBLE, draw, mixture, model_of, network, rng

quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)


def prices_in_training(x, y, g, eps):
    """The gradient that a training step takes: weights held fixed."""
    g = g.clone().requires_grad_()
    weights = occupancy(x, y, g.detach(), eps=eps, scalings=0).weights
    return torch.autograd.grad(dual_loss(g, weights), g)[0]


@quick
@given(seeds, st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.floats(0.05, 5))
def test_the_dual_loss_descends_where_the_semi_dual_ascends(seed, n, m, d, eps):
    x, y, g = draw(n, d, seed=seed), 2 * draw(m, d, seed=seed + 1), 3 * draw(m, seed=seed + 2)
    g.requires_grad_()
    (ascent,) = torch.autograd.grad(semi_dual(x, y, g, eps=eps), g)
    torch.testing.assert_close(prices_in_training(x, y, g.detach(), eps), -ascent, atol=1e-10, rtol=1e-8)


def test_the_dual_loss_vanishes_on_balanced_weights():
    x, y, g = draw(20, 2), draw(15, 2, seed=1), draw(15, seed=2)
    balanced = occupancy(x, y, g, eps=0.5, scalings=2000)
    assert prices_in_training(x, y, balanced.g, 0.5).abs().max() < 1e-10
    assert float(dual_loss(balanced.g, balanced.balanced)) == pytest.approx(0, abs=1e-10)


def test_the_greatest_semi_dual_is_the_entropic_cost():
    """sum P C + eps KL(P | uniform) of POT's entropic plan; other prices give less."""
    x, y, eps = draw(20, 2), 1 + draw(25, 2, seed=1), 0.6
    C = cost(x, y).numpy()
    plan = ot.sinkhorn(np.full(20, 1 / 20), np.full(25, 1 / 25), C, eps, numItermax=20_000, stopThr=1e-13)
    known = (plan * C).sum() + eps * (plan * np.log(plan * 20 * 25)).sum()
    best = occupancy(x, y, torch.zeros(25, dtype=DOUBLE), eps=eps, scalings=2000).g
    assert float(semi_dual(x, y, best, eps=eps)) == pytest.approx(known, rel=1e-7), "POT leaves its marginals a little off"
    for seed in range(20):
        assert float(semi_dual(x, y, best + 0.3 * draw(25, seed=seed), eps=eps)) < known


@quick
@given(seeds, st.floats(0.01, 0.99))
def test_the_semi_dual_is_concave_and_blind_to_a_constant(seed, share):
    x, y = draw(9, 2, seed=seed), draw(7, 2, seed=seed + 1)
    a, b = 2 * draw(7, seed=seed + 2), 2 * draw(7, seed=seed + 3)
    J = [float(semi_dual(x, y, g, eps=0.4)) for g in (a, b, share * a + (1 - share) * b, a + 5)]
    assert J[2] >= share * J[0] + (1 - share) * J[1] - 1e-10
    assert J[3] == pytest.approx(J[0], abs=1e-10)


# --- the certificate ----------------------------------------------------------------------------------------------------


def exact(x, y):
    """W2^2/2 by POT's own command, not through the library."""
    return float(ot.emd2(np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y)), ot.dist(x.numpy(), y.numpy()) / 2))


@quick
@given(seeds, st.integers(1, 25), st.integers(1, 25), st.floats(0, 20), st.floats(0, 20))
def test_any_prices_and_any_policy_bracket_the_exact_cost(seed, n, m, spread, astray):
    x, y = draw(n, 2, seed=seed), 1 + 2 * draw(m, 2, seed=seed + 1)
    g, z = spread * draw(m, seed=seed + 2), x + astray * draw(n, 2, seed=seed + 3)
    found, known = bracket(x, z, y, g), exact(x, y)
    tolerance = 1e-10 * (1 + known + spread)
    assert found.lower <= known + tolerance
    assert found.upper >= known - tolerance
    assert (found.n, found.m) == (n, m)


@pytest.mark.parametrize("m", [40, 55])
def test_optimal_prices_attain_the_lower_bound_and_the_optimal_policy_the_upper(m):
    x, y = draw(40, 3), 1 + 2 * draw(m, 3, seed=1)
    program = solve_assignment_program(x, y)
    away = bracket(x, x, y, torch.zeros(m, dtype=DOUBLE))
    at_prices = bracket(x, x, y, program.g)
    assert at_prices.lower == pytest.approx(program.cost, rel=1e-8)
    assert away.lower < 0.9 * program.cost
    if m == 40:
        ends = y[exact_coupling(cost(x, y)).plan.argmax(1)]
        found = bracket(x, ends, y, program.g)
        assert found.upper == pytest.approx(program.cost, rel=1e-8)
        assert found.gap == pytest.approx(0, abs=1e-7)


def test_the_answer_of_a_known_problem_has_no_gap():
    """U(0, 1) to Exp(1): the closed-form prices and map, on quantiles."""
    known = UniformToExponential()
    x, y = known.source(400), known.target(400)
    found = bracket(x, known.map(x), y, known.g(y))
    assert found.gap == pytest.approx(0, abs=1e-4), "prices of the laws on a grid of quantiles"
    assert 2 * found.upper == pytest.approx(w2(x, y) ** 2, rel=1e-9)


def test_the_bracket_moves_with_the_prices_not_with_their_constant():
    x, y, g = draw(20, 2), draw(20, 2, seed=1), draw(20, seed=2)
    assert bracket(x, x, y, g + 7).lower == pytest.approx(bracket(x, x, y, g).lower, abs=1e-12)


def test_the_gap_is_relative_to_the_upper_bound():
    assert Certificate(lower=3.0, upper=4.0, n=1, m=1).gap == 0.25
    assert Certificate(lower=-2.0, upper=4.0, n=1, m=1).gap == 1.5
    assert Certificate(lower=0.0, upper=0.0, n=1, m=1).gap == 0.0


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("value", [mixture(2), network(2)], ids=["mixture", "network"])
def test_an_untrained_model_has_a_true_certificate(value, dtype, noise):
    """Between data sets in the units of the data; from the standard normal in those of model space."""
    model = model_of(value, noise=noise, shift=2.0, scale=3.0, dtype=dtype)
    x, y = draw(60, 2).to(dtype), (1 + 2 * draw(50, 2, seed=1)).to(dtype)
    if noise:
        known = exact(x.double(), (y.double() - 2) / 3)
    else:
        known = exact(x.double(), y.double())
    found = certificate(model, x, y)
    rounding = 1e-5 * (known + float(model.price(y).abs().max())) if dtype == torch.float32 else 1e-9
    assert found.lower <= known + rounding
    assert found.upper >= known - rounding
    assert found.lower < found.upper - 0.01, "untrained"


def test_a_certificate_of_exact_values_closes_with_the_samples():
    """Gaussian to Gaussian with the true prices and the true map: what is left is sampling noise of the pairing, O(n^-1/2)."""
    pair = gaussian_pair(2, seed=1)
    gaps = []
    for n in (50, 800):
        x, y = pair.source(n, generator=rng(1)), pair.target(n, generator=rng(2))
        found = bracket(x, pair.end_mean(x, 0.0), y, pair.g(y))
        assert found.lower <= exact(x, y) + 1e-9
        assert found.upper >= exact(x, y) - 1e-9
        gaps.append(found.gap)
    assert gaps[1] < gaps[0] / math.sqrt(16) * 2


# --- classes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "classes"), [(0, 2), (10, 3), (20, 5)])
def test_with_labels_the_dual_loss_vanishes_on_balanced_weights(seed, classes):
    """Every class covers its own candidates by its share of the states, and prices of a class are known up to their median."""
    x, y, g = draw(20, 2, seed=seed), draw(15, 2, seed=seed + 1), draw(15, seed=seed + 2)
    c_x, c_y = torch.arange(20) ** 2 % classes, torch.arange(15) % classes
    pairing = pair_by(c_x, c_y, weight=1.0, like=y)
    assert float(pairing.mass.sum()) == pytest.approx(1, abs=1e-6)
    found = occupancy(x, y, g, eps=0.5, scalings=300, pairing=pairing)
    torch.testing.assert_close(found.balanced.mean(0), pairing.mass, atol=1e-6, rtol=1e-5)
    used = pairing.mass > 0
    assert float(((found.g - g)[used]).abs().max()) < 50
    for k in c_x.unique().tolist():
        assert float((found.g - g)[c_y == k].abs().min()) == pytest.approx(0, abs=1e-9), "the median stays"
