import itertools
import math

import numpy as np
import ot
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy import stats

from driftway.checks import InputError
from driftway.transport.problem import (
    Problem,
    cole_hopf,
    cole_hopf_gradient,
    cost,
    end_law,
    hopf_lax,
    hopf_lax_gradient,
)
from tests.closed_forms.answers import (
    DOUBLE,
    LinePair,
    UniformToExponential,
    convex_map,
    gaussian_pair,
    symmetric_bridge,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def candidates(n=6, m=9, d=2, seed=0):
    return draw(n, d, seed=seed), 1 + 2 * draw(m, d, seed=seed + 1), draw(m, seed=seed + 2)


def grid(d, m, reach):
    """Nodes and the logarithm of their cell's volume."""
    line = torch.linspace(-reach, reach, m, dtype=DOUBLE)
    return torch.cartesian_prod(*[line] * d).reshape(-1, d), d * math.log(2 * reach / (m - 1))


# --- the answers themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_bures_map_is_optimal(d):
    """It pushes source to target, pays W2^2, and the potentials certify it point by point."""
    pair = gaussian_pair(d, seed=d)
    A = torch.autograd.functional.jacobian(lambda x: pair.end_mean(x, 0.0).sum(0), pair.m0[None])[:, 0]
    torch.testing.assert_close(A @ pair.S0 @ A.T, pair.S1)
    torch.testing.assert_close(pair.end_mean(pair.m0[None], 0.0)[0], pair.m1)
    bures = ot.gaussian.bures_wasserstein_distance(*(v.numpy() for v in (pair.m0, pair.m1, pair.S0, pair.S1)))
    assert pair.w2_squared == pytest.approx(float(bures) ** 2, rel=1e-9)
    x, z = draw(7, d), 3 * draw(11, d, seed=1)
    y = pair.end_mean(x, 0.0)
    torch.testing.assert_close(pair.value(x, 0.0) - pair.g(y), cost(x, y).diagonal())
    assert (pair.value(x, 0.0)[:, None] <= cost(x, z) + pair.g(z) + 1e-9).all()


@pytest.mark.parametrize(("d", "sigma"), [(1, 1.0), (2, 0.5), (4, 2.0)])
def test_the_gaussian_bridge_factorises(d, sigma):
    """The joint law of the ends, from its covariance, has the density nu_src nu_tgt exp((V_0 - C - g)/eps)."""
    pair, eps = gaussian_pair(d, sigma=sigma, seed=d), sigma**2
    joint = torch.cat([torch.cat([pair.S0, pair.cross], 1), torch.cat([pair.cross.T, pair.S1], 1)])
    x, y = draw(8, d), draw(8, d, seed=1)
    log_joint = torch.distributions.MultivariateNormal(torch.cat([pair.m0, pair.m1]), joint).log_prob(
        torch.cat([x, y], 1)
    )
    V = pair.value(x, 0.0) - eps * d / 2 * math.log(2 * math.pi * eps)
    exponent = (V - cost(x, y).diagonal() - pair.g(y)) / eps
    torch.testing.assert_close(log_joint, pair.log_source(x) + pair.log_target(y) + exponent)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
@pytest.mark.parametrize("t", [0.0, 0.4, 0.9])
def test_the_gradient_of_the_gaussian_value_is_its_own(sigma, t):
    pair, x = gaussian_pair(3, sigma=sigma), draw(5, 3).requires_grad_()
    (slope,) = torch.autograd.grad(pair.value(x, t).sum(), x)
    torch.testing.assert_close(slope, pair.gradient(x, t).detach())


def test_a_bridge_without_noise_is_the_bures_map():
    pair = gaussian_pair(3)
    gaps = [(gaussian_pair(3, sigma=sigma).cross - pair.cross).norm() for sigma in (0.4, 0.2, 0.1)]
    order = [math.log2(a / b) for a, b in itertools.pairwise(gaps)]
    assert order == pytest.approx([2, 2], abs=0.1)


def test_the_line_agrees_with_its_elementary_case():
    line, known = LinePair(stats.uniform(), stats.expon()), UniformToExponential()
    assert line.w2_squared == pytest.approx(known.w2_squared, rel=1e-7)
    torch.testing.assert_close(line.map(known.source(20)), known.target(20))


def test_the_symmetric_bridge_by_a_long_sinkhorn():
    """The endpoint covariance, the prices and the law at t from a fine grid, against the closed forms."""
    pair, eps = symmetric_bridge(1), 1.0
    z, log_cell = grid(1, 161, 8.0)
    log_a, log_b = pair.log_source(z) + log_cell, pair.log_target(z) + log_cell
    g = torch.zeros(len(z), dtype=DOUBLE)
    for _ in range(80):
        V = cole_hopf(z, 0.0, z, g, eps=eps, log_mass=log_b)
        g = -cole_hopf(z, 0.0, z, -V, eps=eps, log_mass=log_a)
    P = log_a.exp()[:, None] * end_law(z, 0.0, z, g, eps=eps, log_mass=log_b)
    torch.testing.assert_close(P.sum(0), log_b.exp(), atol=1e-12, rtol=0)
    cross = (z.T @ P @ z - (P.sum(1) @ z) * (P.sum(0) @ z)).item()
    assert cross == pytest.approx((math.sqrt(5) - 1) / 2, abs=1e-9)
    assert pair.cross.item() == pytest.approx(cross, abs=1e-9)
    near = z[:, 0].abs() < 4
    offset = (g - pair.g(z))[near]
    torch.testing.assert_close(offset, offset.mean().expand_as(offset), atol=1e-7, rtol=0)
    for t in (0.25, 0.5):
        ends = (1 - t) * z + t * z.T
        mean = (P * ends).sum()
        var = (P * (ends - mean) ** 2).sum() + eps * t * (1 - t)
        torch.testing.assert_close(pair.marginal(t)[0][0], mean)
        torch.testing.assert_close(pair.marginal(t)[1][0, 0], var)
        assert var.item() == pytest.approx(t * (1 - t) * math.sqrt(5) + (1 - t) ** 2 + t**2, abs=1e-9)


# --- Problem ------------------------------------------------------------------------------------------------------------


def test_a_straight_line_costs_the_same_in_any_number_of_stages():
    x, y = draw(4, 3, 2), draw(4, 3, 2, seed=1)
    for horizon in (1, 3, 20):
        problem = Problem(horizon=horizon)
        paid = sum(problem.step_cost(y - x) for _ in problem.times[:-1])
        torch.testing.assert_close(paid, cost(x, y).diagonal())
        steps = np.diff(problem.times)
        assert len(steps) == horizon
        assert steps == pytest.approx(1 / horizon)
        assert (problem.times[0], problem.times[-1]) == (0.0, 1.0)


def test_entropy_is_the_noise_when_there_is_noise():
    assert Problem(sigma=0.1).entropy == pytest.approx(0.01)
    assert Problem(sigma=0.1, eps=0.01) == Problem(sigma=0.1, eps=0.1**2 * (1 - 1e-16))
    assert Problem(eps=0.3).entropy == 0.3
    assert Problem().entropy is None


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("horizon", {"horizon": 0}),
        ("sigma", {"sigma": -1.0}),
        ("sigma", {"sigma": math.nan}),
        ("eps", {"eps": 0.0}),
        ("eps", {"sigma": 0.5, "eps": 0.5}),
    ],
)
def test_a_problem_names_what_is_wrong(argument, given):
    with pytest.raises(InputError, match=f"^{argument}: ") as caught:
        Problem(**given)
    assert caught.value.argument == argument


# --- cost ---------------------------------------------------------------------------------------------------------------


def test_cost_is_accurate_far_from_the_origin():
    x, y = 1000 + draw(40, 3).float(), 1000 + draw(50, 3, seed=1).float()
    exact = torch.cdist(x.double(), y.double()) ** 2 / 2
    torch.testing.assert_close(cost(x, y).double(), exact, atol=1e-5, rtol=1e-5)
    itself = cost(x, x).diagonal()
    assert (itself >= 0).all()
    assert itself.max() < 1e-5


def test_cost_ignores_rotations_shifts_and_the_shape_of_an_event():
    x, y = draw(5, 2, 3), draw(7, 2, 3, seed=1)
    Q, _ = torch.linalg.qr(draw(6, 6, seed=2))
    moved = [(z.flatten(1) @ Q + 3).reshape(z.shape) for z in (x, y)]
    torch.testing.assert_close(cost(*moved), cost(x, y))
    torch.testing.assert_close(cost(x.flatten(1), y.flatten(1)), cost(x, y))


def test_cost_differentiates_in_both_arguments():
    assert torch.autograd.gradcheck(cost, (draw(3, 2).requires_grad_(), draw(4, 2, seed=1).requires_grad_()))


# --- Hopf-Lax -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
@pytest.mark.parametrize(("d", "m"), [(1, 20001), (2, 401)])
def test_hopf_lax_over_a_fine_grid_is_the_gaussian_value(d, m, t):
    pair, x = gaussian_pair(d, seed=3), draw(6, d)
    y, log_cell = grid(d, m, 10.0)
    spacing = math.exp(log_cell / d)
    g = pair.g(y)
    torch.testing.assert_close(hopf_lax(x, t, y, g), pair.value(x, t), atol=10 * spacing**2, rtol=0)
    torch.testing.assert_close(hopf_lax_gradient(x, t, y, g), pair.gradient(x, t), atol=6 * spacing, rtol=0)


def test_hopf_lax_of_the_uniform_to_exponential_pair():
    known = UniformToExponential()
    x, y = known.source(30), torch.linspace(0, 8, 80001, dtype=DOUBLE)[:, None]
    torch.testing.assert_close(hopf_lax(x, 0.0, y, known.g(y)), known.value(x), atol=1e-7, rtol=0)
    for t in (0.2, 0.7):
        on_path = (1 - t) * x + t * known.map(x)
        paid = (1 - t) * cost(x, known.map(x)).diagonal() + known.g(known.map(x))
        torch.testing.assert_close(hopf_lax(on_path, t, y, known.g(y)), paid, atol=1e-7, rtol=0)


@pytest.mark.parametrize("d", [2, 16])
def test_acting_on_the_value_of_a_convex_map_follows_the_map(d):
    pair, x = convex_map(d), draw(60, d)
    y, g = pair.map(x), pair.g_at_image(x)
    torch.testing.assert_close(hopf_lax(x, 0.0, y, g), pair.value(x))
    for t in (0.0, 0.5, 0.9):
        x_t = (1 - t) * x + t * y
        torch.testing.assert_close(x_t - (1 - t) * hopf_lax_gradient(x_t, t, y, g), y)


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_gradients_are_those_of_the_values(shape):
    x, y, g = draw(6, *shape), draw(9, *shape, seed=1), draw(9, seed=2)
    for t in (0.25, torch.linspace(0, 0.9, 6, dtype=DOUBLE)):
        for value, gradient in (
            (lambda x, t=t: hopf_lax(x, t, y, g), hopf_lax_gradient(x, t, y, g)),
            (lambda x, t=t: cole_hopf(x, t, y, g, eps=0.5), cole_hopf_gradient(x, t, y, g, eps=0.5)),
        ):
            (slope,) = torch.autograd.grad(value(x.requires_grad_()).sum(), x)
            torch.testing.assert_close(gradient, slope)
            step = 1e-5 * draw(*x.shape, seed=3)
            rise = (value(x + step) - value(x - step)) / 2
            torch.testing.assert_close(rise, (gradient * step).flatten(1).sum(1), atol=1e-12, rtol=1e-4)


def test_one_time_per_row_is_one_time_at_a_time():
    x, y, g = candidates()
    t = torch.linspace(0, 0.95, len(x), dtype=DOUBLE)
    for f in (
        hopf_lax,
        hopf_lax_gradient,
        lambda *a: cole_hopf(*a, eps=0.3),
        lambda *a: cole_hopf_gradient(*a, eps=0.3),
        lambda *a: end_law(*a, eps=0.3),
    ):
        rows = torch.cat([f(x[i : i + 1], t[i].item(), y, g) for i in range(len(x))])
        torch.testing.assert_close(f(x, t, y, g), rows)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.2, 0.9)])
def test_hopf_lax_chains_in_time(s, t):
    """V_s is the Hopf-Lax value of V_t: never above it from any midway point, and equal through the straight line."""
    x, y, g = candidates(n=8, m=30)
    V_s, through = hopf_lax(x, s, y, g), 2 * draw(200, 2, seed=5)
    stage = 1 - (t - s)  # a Hopf-Lax step of length t - s
    assert (V_s <= hopf_lax(x, stage, through, hopf_lax(through, t, y, g)) + 1e-12).all()
    straight = torch.cat([through, x - (t - s) * hopf_lax_gradient(x, s, y, g)])
    torch.testing.assert_close(hopf_lax(x, stage, straight, hopf_lax(straight, t, y, g)), V_s)


def test_hopf_lax_is_semiconcave():
    """|x|^2/2(1-t) - V_t is convex: a maximum of affine functions."""
    x, y, g = candidates(n=50)
    t = 0.3
    bowl = lambda z: z.square().sum(1) / (2 * (1 - t)) - hopf_lax(z, t, y, g)  # noqa: E731
    a, b = x[:25], x[25:]
    assert (bowl((a + b) / 2) <= (bowl(a) + bowl(b)) / 2 + 1e-12).all()


# --- Cole-Hopf ----------------------------------------------------------------------------------------------------------


def test_cole_hopf_tends_to_hopf_lax_at_its_rate():
    """From above, monotonically: eps log m with masses 1/m, faster than any power of eps with masses 1."""
    x, y, g = candidates(m=12)
    hard, log_m = hopf_lax(x, 0.5, y, g), math.log(12)
    eps = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003]
    gaps = [cole_hopf(x, 0.5, y, g, eps=e) - hard for e in eps]
    assert all((gap >= 0).all() and (gap <= e * log_m + 1e-12).all() for e, gap in zip(eps, gaps, strict=True))
    assert all((later < earlier).all() for earlier, later in itertools.pairwise(gaps))
    torch.testing.assert_close(gaps[-1] / eps[-1], torch.full_like(hard, log_m), atol=1e-6, rtol=0)
    counted = cole_hopf(x, 0.5, y, g, eps=0.003, log_mass=torch.zeros(12, dtype=DOUBLE))
    assert (counted - hard).abs().max() < 0.003**3
    torch.testing.assert_close(cole_hopf_gradient(x, 0.5, y, g, eps=0.003), hopf_lax_gradient(x, 0.5, y, g))


def test_small_entropy_in_single_precision_stays_finite():
    x, y, g = (30 * z.float() for z in candidates(n=20, m=40))
    soft = cole_hopf(x, 0.9, y, g, eps=1e-4)
    torch.testing.assert_close(soft, hopf_lax(x, 0.9, y, g), atol=1e-3, rtol=1e-6)
    assert soft.dtype == cole_hopf_gradient(x, 0.9, y, g, eps=1e-4).dtype == torch.float32
    assert cole_hopf_gradient(x, 0.9, y, g, eps=1e-4).isfinite().all()


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
@pytest.mark.parametrize(("d", "m", "sigma"), [(1, 1601, 1.0), (1, 1601, 0.3), (2, 201, 0.6)])
def test_cole_hopf_by_quadrature_is_the_bridge_value(d, m, sigma, t):
    pair, eps, x = gaussian_pair(d, sigma=sigma, seed=5), sigma**2, draw(6, d)
    y, log_cell = grid(d, m, 8.0)
    given = {"eps": eps, "log_mass": pair.log_target(y) + log_cell}
    W = cole_hopf(x, t, y, pair.g(y), **given) + eps * d / 2 * math.log(2 * math.pi * eps * (1 - t))
    torch.testing.assert_close(W, pair.value(x, t), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(cole_hopf_gradient(x, t, y, pair.g(y), **given), pair.gradient(x, t), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.2, 0.7)])
def test_cole_hopf_with_the_normaliser_solves_the_bellman_equation_between_times(s, t):
    """exp(-W_s(x)/eps) = E exp(-W_t(x + noise of variance eps (t-s))/eps), by Gauss-Hermite quadrature."""
    x, y, g = candidates(d=1)
    eps = 0.8
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))

    def W(z, time):
        return cole_hopf(z, time, y, g, eps=eps) + eps / 2 * math.log(2 * math.pi * eps * (1 - time))

    ahead = torch.stack([-W(x + math.sqrt(eps * (t - s)) * node, t) / eps for node in nodes], 1)
    torch.testing.assert_close(W(x, s), -eps * torch.logsumexp(ahead + (weights / weights.sum()).log(), 1))


def test_the_law_of_the_end_is_the_gradient_in_the_prices():
    x, y, g = candidates()
    law = torch.autograd.functional.jacobian(lambda g: cole_hopf(x, 0.4, y, g, eps=0.7), g)
    torch.testing.assert_close(end_law(x, 0.4, y, g, eps=0.7), law)


def test_the_soft_transform_is_the_dual_potential_of_sinkhorn():
    """POT's scalings, its plan and its barycentric projection, from the prices alone."""
    x, y, _ = candidates(n=15, m=20)
    rng, eps = np.random.default_rng(0), 0.5
    a, b = rng.dirichlet(np.full(15, 3.0)), rng.dirichlet(np.full(20, 3.0))
    C = cost(x, y).numpy()
    plan, log = ot.sinkhorn(a, b, C, eps, method="sinkhorn_log", stopThr=1e-13, numItermax=20000, log=True)
    V, g = eps * (log["log_u"] - np.log(a)), -eps * (log["log_v"] - np.log(b))
    given = {"eps": eps, "log_mass": torch.from_numpy(np.log(b))}
    prices, weights = torch.from_numpy(g), torch.from_numpy(a)
    found = cole_hopf(x, 0.0, y, prices, **given)
    torch.testing.assert_close(found, torch.from_numpy(V), atol=1e-9, rtol=0)
    coupling = weights[:, None] * end_law(x, 0.0, y, prices, **given)
    torch.testing.assert_close(coupling, torch.from_numpy(plan), atol=1e-11, rtol=0)
    projected = torch.from_numpy(plan / a[:, None]) @ y
    torch.testing.assert_close(x - cole_hopf_gradient(x, 0.0, y, prices, **given), projected, atol=1e-8, rtol=0)
    entropic = (plan * C).sum() + eps * (plan * np.log(plan / np.outer(a, b))).sum()
    semi_dual = weights @ found - torch.from_numpy(b) @ prices
    assert semi_dual.item() == pytest.approx(entropic, abs=1e-9)


# --- errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1.0, -0.1, math.nan, torch.tensor([0.0, 0.5, 0.2, 1.0, 0.1, 0.1], dtype=DOUBLE)])
def test_a_time_outside_the_interval_is_named(t):
    x, y, g = candidates()
    for f in (hopf_lax, hopf_lax_gradient, lambda *a: cole_hopf(*a, eps=1.0), lambda *a: end_law(*a, eps=1.0)):
        with pytest.raises(InputError, match=r"^t: expected times in \[0, 1\)"):
            f(x, t, y, g)


def test_other_errors_are_named():
    x, y, g = candidates()
    with pytest.raises(InputError, match=r"^eps: "):
        cole_hopf(x, 0.0, y, g, eps=0.0)
    with pytest.raises(InputError, match=r"^y: expected dtype"):
        cost(x, y.float())
    with pytest.raises((InputError, TypeCheckError)):
        cost(x, y[:, :1])
