"""Marginals against closed forms, and the checks: an exact bridge passes them, a wrong drift or noise does not."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.transport import MixtureValue, Problem, Value
from driftway.transport.schrodinger import BridgeChecks, check_bridge, energy_test, marginal
from tests.closed_forms.answers import GaussianPair, gaussian_pair
from tests.transport.recipes import DOUBLE, draw, mixture, model_of, network, rng


class Scaled(Value):
    """The exact value of a pair in the network's convention, without the kernel's normaliser; its gradient times a factor."""

    def __init__(self, pair: GaussianPair, factor: float = 1.0) -> None:
        super().__init__()
        self.pair, self.factor, self.event = pair, factor, tuple(pair.m0.shape)

    def value(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.pair.value(x, float(t[0])) - self.pair.eps * len(self.pair.m0) / 2 * (1 - t).log()

    def gradient(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self.factor * self.pair.gradient(x, float(t[0]))

    def price(self, y: Tensor, c: Tensor | None = None) -> Tensor:
        return self.pair.g(y)


def bridge_of(pair: GaussianPair) -> MixtureValue:
    """The one component that is the Gaussian bridge of a pair: S is the Jacobian of x -> E[X_1|X_0 = x]."""
    S = torch.autograd.functional.jacobian(lambda x: pair.end_mean(x[None], 0.0)[0], pair.m0)
    value = MixtureValue(tuple(pair.m0.shape), components=1).double().requires_grad_(False)
    L = torch.linalg.cholesky(S)
    value.eps.fill_(pair.eps)
    value.r[0], value.lower[0], value.log_diagonal[0] = pair.m1 - S @ pair.m0, L.tril(-1), L.diagonal().log()
    return value


PAIR = gaussian_pair(2, sigma=0.8, seed=6)
X, Y = PAIR.source(1000, generator=rng(1)), PAIR.target(1000, generator=rng(2))


def check(value: Value, sigma: float = PAIR.sigma, **options) -> BridgeChecks:
    return check_bridge(model_of(value, sigma=sigma, noise=False), X, Y, **options)


# --- marginals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.3, 0.77, 1.0])
def test_the_marginal_of_an_exact_bridge_has_its_moments(t):
    n = 40_000
    x = marginal(model_of(bridge_of(PAIR), sigma=PAIR.sigma, noise=False), PAIR.source(n, generator=rng(3)), t, seed=4)
    mean, cov = PAIR.marginal(t)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((x.mean(0) - mean) / (x.std(0) / n**0.5)).abs().max() < 5
    assert ((products.mean(0) - cov) / (products.std(0) / n**0.5)).abs().max() < 5


@pytest.mark.parametrize("noise", [True, False])
def test_at_a_time_of_the_policy_the_marginal_is_the_state_of_the_path(noise):
    """In data units, with a shift and a scale."""
    for value, steps in ((network(2), 5), (mixture(2), 2)):
        model, x = model_of(value, sigma=0.7, noise=noise, shift=1.0, scale=3.0), draw(300, 2, seed=5)
        path = model.path(x, steps=steps, seed=6)
        for h in (0, 1, steps):
            torch.testing.assert_close(marginal(model, x, h / steps, steps=steps, seed=6), path.states[h])
        torch.testing.assert_close(marginal(model, x, 1, steps=steps, seed=6), model.sample(x, steps=steps, seed=6))


def test_units_of_the_data_change_no_check():
    """A shift and a scale of both laws; from a normal source a scale of each column."""
    plain, moved = (model_of(bridge_of(PAIR), sigma=s * PAIR.sigma, noise=False, shift=1.0, scale=s) for s in (1.0, 3.0))
    found = [check_bridge(model, 1 + s * X[:200], 1 + s * Y[:200], rule="explicit", steps=8) for model, s in ((plain, 1), (moved, 3))]
    for one, other in zip(found[0].reciprocal, found[1].reciprocal, strict=True):
        assert other.spread == pytest.approx(one.spread)
        assert other.energy == pytest.approx(one.energy)
    assert found[1].end.w2 == pytest.approx(3 * found[0].end.w2)
    assert (found[1].action, found[1].fall) == pytest.approx((found[0].action, found[0].fall))
    normal = model_of(bridge_of(PAIR), sigma=PAIR.sigma, shift=1.0)
    normal.scaler.scale[1] = 7.0
    assert not any(name.startswith("reciprocal") for name in check_bridge(normal, 500, draw(500, 2), rule="explicit").failures())


def test_between_times_of_the_policy_the_last_step_is_shortened():
    model, x = model_of(network(2), sigma=0.5, noise=False), draw(7, 2)
    before = marginal(model, x, 0.5, steps=4, seed=1)
    a = -model.value_function.gradient(before, before.new_full((7,), 0.5))
    little = 1e-6
    after = marginal(model, x, 0.5 + little, steps=4, seed=1)
    noise = (after - before - little * a) / (0.5 / model.scaler.cost_scale**0.5 * little**0.5)
    longer = marginal(model, x, 0.5 + 4 * little, steps=4, seed=1)
    torch.testing.assert_close((longer - before - 4 * little * a) / (0.5 * (4 * little) ** 0.5), noise)


def test_rows_of_a_marginal_do_not_depend_on_the_batch():
    for value in (network(2), mixture(2)):
        model = model_of(value, sigma=0.5)
        torch.testing.assert_close(marginal(model, 300, 0.4, seed=3)[:70], marginal(model, 70, 0.4, seed=3))


@pytest.mark.parametrize(("argument", "change"), [("t", {"t": 1.1}), ("t", {"t": -0.1}), ("t", {"t": math.nan}),
                                                  ("steps", {"steps": 0}), ("rule", {"rule": "endpoint"}), ("rule", {"rule": "best"}),
                                                  ("x0", {"x": draw(3, 5)}), ("x0", {"x": draw(3, 2).float()}), ("x0", {"x": 0}),
                                                  ("seed", {"seed": -1})])  # fmt: skip
def test_unusable_arguments_of_a_marginal(argument, change):
    with pytest.raises(InputError, match=rf"^{argument}"):
        marginal(model_of(network(2), sigma=0.5), **{"x": draw(3, 2), "t": 0.5, **change})


def test_a_count_needs_a_normal_source():
    with pytest.raises(InputError, match=r"^x0"):
        marginal(model_of(network(2), sigma=0.5, noise=False), 5, 0.5)


# --- the checks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["endpoint", "explicit"])
def test_an_exact_bridge_passes(rule):
    found = check(bridge_of(PAIR), rule=rule)
    assert found.failures() == ()
    assert found.end.w2 < 1.4 * found.end.floor
    for one in found.reciprocal:
        assert abs(one.spread - 1) < 4 * one.spread_error
        assert one.energy < 2 * one.floor
    assert (found.n, found.steps) == (1000, 100)


def test_the_p_values_of_an_exact_bridge_are_uniform():
    """Mean 1/2 and variance 1/12 over repetitions."""
    model = model_of(bridge_of(PAIR), sigma=PAIR.sigma, noise=False)
    p = []
    for seed in range(60):
        x, y = PAIR.source(40, generator=rng(10 + seed)), PAIR.target(40, generator=rng(100 + seed))
        found = check_bridge(model, x, y, seed=seed, permutations=99, steps=4)
        p.append([found.end.p, *(one.p for one in found.reciprocal)])
    p = torch.tensor(p)
    assert ((p.mean(0) - 0.5).abs() < 4 * (1 / 12 / 60) ** 0.5).all()
    assert (p.var(0) > 1 / 24).all()


SHARP = GaussianPair(PAIR.m0, PAIR.S0, PAIR.m1, 0.1 * PAIR.S1, 0.5)  # far from Brownian motion: a factor on the drift shows


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_a_wrong_drift_fails_all_checks(factor):
    model = model_of(Scaled(SHARP, factor), sigma=SHARP.sigma, noise=False)
    found = check_bridge(model, X, SHARP.target(1000, generator=rng(2)))
    assert found.failures() == ("end", "reciprocal at t = 0.25", "reciprocal at t = 0.5", "reciprocal at t = 0.75", "value")
    assert all(one.spread > 1.1 and one.p == 1 / 500 for one in found.reciprocal)
    assert check_bridge(model_of(Scaled(SHARP), sigma=SHARP.sigma, noise=False), X, SHARP.target(1000, generator=rng(2))).failures() == ()


def test_a_wrong_noise_fails_the_end_and_the_value_but_not_the_reciprocal_check():
    """A linear drift for sigma makes a bridge of twice the sigma too, between other ends."""
    found = check(Scaled(PAIR), sigma=2 * PAIR.sigma)
    assert found.failures() == ("end", "value")
    assert found.end.w2 > 2 * found.end.floor


def test_brownian_motion_is_the_bridge_between_its_own_ends():
    found = check(Scaled(PAIR, 0.0))
    assert "end" in found.failures()
    assert not any(name.startswith("reciprocal") for name in found.failures())


@pytest.mark.parametrize(("value", "rule"), [(Scaled(PAIR), "explicit"), (bridge_of(PAIR), "explicit"), (bridge_of(PAIR), "endpoint")],
                         ids=["network's convention", "mixture", "mixture, end-point rule"])  # fmt: skip
def test_the_fall_of_an_exact_value_is_its_action(value, rule):
    """Itô's formula, path by path: without the noise of the ends the two differ by one in a hundred at most."""
    found = check(value, rule=rule, permutations=19)
    assert found.fall_error < 0.01 * found.action
    assert found.fall == pytest.approx(found.action, abs=4 * found.fall_error + 0.005 * found.action)


def test_the_action_of_a_gaussian_bridge_is_known():
    """E|grad W_t|^2 from the moments of X_t, as the gradient is linear in the state."""
    rates, times = [], torch.linspace(0, 0.75, 301, dtype=DOUBLE)
    for t in times.tolist():
        mean, cov = PAIR.marginal(t)
        A = torch.autograd.functional.jacobian(lambda x, t=t: PAIR.gradient(x[None], t)[0], mean)
        rates.append((PAIR.gradient(mean[None], t).square().sum() + (A @ cov @ A.T).trace()) / 2)
    x = PAIR.source(1500, generator=rng(3))
    found = check_bridge(model_of(bridge_of(PAIR), sigma=PAIR.sigma, noise=False), x, Y, most=1500, permutations=19, steps=40)
    assert found.action == pytest.approx(float(torch.trapezoid(torch.stack(rates), times)), rel=0.05)


def test_the_checks_are_a_function_of_the_seed_and_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    once, again, other = (check(bridge_of(PAIR), seed=seed, permutations=19, most=100, steps=4) for seed in (0, 0, 1))
    assert once == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_energy_distance_of_two_point_masses():
    """|0 - 3|: D = 2 * 3."""
    z = torch.tensor([[0.0], [3.0]], dtype=DOUBLE)
    signs = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=DOUBLE)
    assert energy_test(z, signs) == (6.0, 6.0, 1.0)


@pytest.mark.parametrize(("argument", "change"), [("y", {"y": draw(3, 2)}), ("y", {"x": draw(9, 3), "y": draw(9, 3)}),
                                                  ("steps", {"steps": 3}), ("permutations", {"permutations": 5}),
                                                  ("most", {"most": 2})])  # fmt: skip
def test_unusable_arguments_of_the_checks(argument, change):
    with pytest.raises(InputError, match=rf"^{argument}"):
        check_bridge(model_of(network(2), sigma=0.5), **{"x": draw(9, 2), "y": draw(9, 2), **change})


def test_optimal_transport_has_other_checks():
    model = replace(model_of(network(2)), problem=Problem())
    with pytest.raises(InputError, match="certificate"):
        check_bridge(model, X, Y)
