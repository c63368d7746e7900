"""The matrix code of the transport room against loops that follow the formulas, one number at a time."""

import math

import numpy as np
import ot
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from driftway.transport import bridge, exact_coupling
from driftway.transport.dual import bounded, choose, occupancy
from driftway.transport.problem import cole_hopf, cole_hopf_gradient, cost, end_law, hopf_lax
from tests.closed_forms.answers import DOUBLE, gaussian_pair


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def problem(n: int = 5, m: int = 7, d: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return draw(n, d, seed=seed), 1 + 1.5 * draw(m, d, seed=seed + 1), draw(m, seed=seed + 2)


def half_squared(a: list[float], b: list[float]) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / 2


def soft_backup(x: list[float], left: float, y: list[list[float]], g: list[float], eps: float) -> tuple[float, list[float]]:
    """-eps log mean_j exp(-(C_j/left + g_j)/eps) and the weights, for one state."""
    exponents = [-(half_squared(x, end) / left + price) / eps for end, price in zip(y, g, strict=True)]
    top = max(exponents)
    terms = [math.exp(e - top) for e in exponents]
    return -eps * (top + math.log(sum(terms) / len(terms))), [term / sum(terms) for term in terms]


# --- occupancy weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.5, 2.0])
def test_occupancy_weights_are_a_softmax_over_the_candidates(eps):
    x, y, g = problem()
    weights = occupancy(x, y, g, eps=eps, scalings=0).weights
    for i, state in enumerate(x.tolist()):
        known = soft_backup(state, 1.0, y.tolist(), g.tolist(), eps)[1]
        assert weights[i].tolist() == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize("scalings", [1, 2, 5])
def test_balancing_is_so_many_sinkhorn_scalings_from_the_prices(scalings):
    """Prices rise by eps log(m/n * column mass): what too many states choose gets dearer."""
    (x, y, g), eps = problem(n=6, m=4), 0.7
    prices = g.tolist()
    for _ in range(scalings):
        rows = [soft_backup(state, 1.0, y.tolist(), prices, eps)[1] for state in x.tolist()]
        load = [sum(row[j] for row in rows) * len(y) / len(x) for j in range(len(y))]
        prices = [price + eps * math.log(part) for price, part in zip(prices, load, strict=True)]
    found = occupancy(x, y, g, eps=eps, scalings=scalings)
    offset = found.g - torch.tensor(prices, dtype=DOUBLE)
    torch.testing.assert_close(offset, offset.mean().expand_as(offset), atol=1e-10, rtol=0)
    for i, state in enumerate(x.tolist()):
        assert found.balanced[i].tolist() == pytest.approx(soft_backup(state, 1.0, y.tolist(), prices, eps)[1], abs=1e-10)


def test_without_scalings_nothing_is_balanced():
    x, y, g = problem()
    found = occupancy(x, y, g, eps=0.5, scalings=0)
    assert torch.equal(found.balanced, found.weights)
    assert torch.equal(found.g, g)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (8, 15)])
def test_many_scalings_are_the_entropic_plan(n, m):
    x, y, g = problem(n, m)
    eps = 0.4
    found = occupancy(x, y, g, eps=eps, scalings=3000)
    a, b = np.full(n, 1 / n), np.full(m, 1 / m)
    plan = ot.sinkhorn(a, b, cost(x, y).numpy(), eps, numItermax=20_000, stopThr=1e-13)
    np.testing.assert_allclose(found.balanced.numpy() / n, plan, atol=1e-10)
    torch.testing.assert_close(end_law(x, 0.0, y, found.g, eps=eps), found.balanced, atol=1e-9, rtol=0)
    torch.testing.assert_close(occupancy(x, y, found.g, eps=eps, scalings=5).g, found.g, atol=1e-9, rtol=0, msg="a fixed point")


def test_each_scaling_evens_the_candidates_out():
    """Sinkhorn's scalings contract the unevenness of the columns."""
    x, y, g = problem(40, 30)
    uneven = [float((occupancy(x, y, g, eps=0.3, scalings=k).balanced.sum(0) - 40 / 30).abs().sum()) for k in (0, 1, 2, 4, 8, 16)]
    assert uneven == sorted(uneven, reverse=True)
    assert uneven[-1] < uneven[0] / 5


def test_occupancy_survives_costs_far_above_the_entropy():
    """Single precision, exponents of -1e6: every row still has its weights, on its best candidates."""
    x, y, g = (z.float() for z in problem(30, 40))
    found = occupancy(100 * x, 100 * y, g, eps=0.01)
    for weights in (found.weights, found.balanced):
        assert torch.isfinite(weights).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(30))
    best = (cost(100 * x, 100 * y) + g).argmin(1)
    assert torch.equal(found.weights.argmax(1), best)


# --- bounded ------------------------------------------------------------------------------------------------------------


def test_bounded_raises_what_is_far_below_the_maximum():
    rows = [[0.0, -59.0, -61.0, -1000.0], [5.0, 5.0, -54.9, -55.1], [-300.0, -310.0, -400.0, -math.inf]]
    known = [[max(entry, max(row) - 60) for entry in row] for row in rows]
    assert bounded(torch.tensor(rows, dtype=DOUBLE)).tolist() == known


def test_bounded_logits_never_make_denormals_and_leave_sums_alone():
    logits = 200 * draw(50, 30).float()
    terms = (bounded(logits) - logits.amax(1, keepdim=True)).exp()
    assert float(terms.min()) >= torch.finfo(torch.float32).tiny
    torch.testing.assert_close(bounded(logits).logsumexp(1), logits.logsumexp(1), atol=0, rtol=1e-6)


def test_bounded_passes_the_gradient_of_what_it_leaves():
    logits = (20 * draw(6, 9)).requires_grad_()
    (ours,) = torch.autograd.grad(bounded(logits).logsumexp(1).sum(), logits)
    torch.testing.assert_close(ours, logits.softmax(1).detach(), atol=1e-20, rtol=1e-12)


# --- choose -------------------------------------------------------------------------------------------------------------


def inverse(weights: list[float], u: float) -> int:
    """The first candidate whose cumulative weight exceeds u."""
    total, reached = sum(weights), 0.0
    for j, weight in enumerate(weights):
        reached += weight
        if u * total < reached:
            return j
    return len(weights) - 1


def test_choose_inverts_the_cumulative_weights():
    weights = draw(200, 6).exp()
    uniform = torch.rand(200, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    known = [inverse(row, u) for row, u in zip(weights.tolist(), uniform.tolist(), strict=True)]
    assert choose(weights, uniform).tolist() == known


def test_choose_picks_in_proportion_to_the_weights():
    """Also where they do not sum to one. One uniform per row, so the counts are multinomial."""
    weights = torch.tensor([0.4, 2.0, 0.01, 1.0, 0.59], dtype=DOUBLE)
    n = 50_000
    uniform = torch.rand(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    counts = torch.bincount(choose(weights.expand(n, -1), uniform), minlength=5).numpy()
    assert stats.chisquare(counts, n * (weights / weights.sum()).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_choose_never_picks_a_candidate_without_weight(u):
    weights = torch.tensor([[0.0, 0.0, 1.0, 0.0, 1.0], [0.0, 3.0, 0.0, 0.0, 0.5]], dtype=DOUBLE)
    chosen = choose(weights, torch.full((2,), u, dtype=DOUBLE))
    assert (weights[torch.arange(2), chosen] > 0).all()


def test_choose_stays_in_range_where_the_variate_rounds_to_one():
    weights = torch.full((3, 7), 0.1)
    assert choose(weights, torch.ones(3)).max() == 6


# --- the soft backup ----------------------------------------------------------------------------------------------------


def test_the_backup_follows_its_formula():
    x, y, g = problem()
    t, eps = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.99], dtype=DOUBLE), 0.6
    found = bridge.backup(x, t, y, g, eps=eps)
    for i, (state, time) in enumerate(zip(x.tolist(), t.tolist(), strict=True)):
        level, weights = soft_backup(state, 1 - time, y.tolist(), g.tolist(), eps)
        mean = [sum(w * end[k] for w, end in zip(weights, y.tolist(), strict=True)) for k in range(2)]
        assert float(found.level[i]) == pytest.approx(level, abs=1e-10)
        assert found.action[i].tolist() == pytest.approx([(m - s) / (1 - time) for m, s in zip(mean, state, strict=True)], abs=1e-9)


@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_backup_is_the_closed_form_of_the_problem(d, dtype):
    """The training kernel against the reference: two ways to the same number, apart by rounding times the largest exponent."""
    x, y, g = (z.to(dtype) for z in problem(60, 80, d))
    t = torch.rand(60, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.95
    tolerance = {"atol": 2e-4, "rtol": 2e-4} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 1e-10}
    found = bridge.backup(x, t, y, g, eps=0.5)
    torch.testing.assert_close(found.level, cole_hopf(x, t, y, g, eps=0.5), **tolerance)
    torch.testing.assert_close(found.action, -cole_hopf_gradient(x, t, y, g, eps=0.5), **tolerance)


def test_the_backup_of_little_entropy_is_the_minimum():
    """Within eps log m above, nothing below."""
    x, y, g = problem(50, 30)
    t, eps = torch.full((50,), 0.3, dtype=DOUBLE), 1e-3
    gap = bridge.backup(x, t, y, g, eps=eps).level - hopf_lax(x, t, y, g)
    assert float(gap.min()) >= -1e-10
    assert float(gap.max()) <= eps * math.log(30) + 1e-10


def test_the_backup_is_finite_at_the_end():
    x, y, g = problem()
    found = bridge.backup(x, torch.ones(5, dtype=DOUBLE), y, g, eps=0.5)
    assert torch.isfinite(found.level).all()
    assert torch.isfinite(found.action).all()


def test_the_sampled_end_is_used_on_the_last_stretch_without_noise_alone():
    x, y, _ = problem(4, 4)
    backed = bridge.Backup(level=draw(4, seed=5), action=draw(4, 2, seed=6))
    t = torch.tensor([0.0, 0.5, 0.96, 1.0], dtype=DOUBLE)
    found = bridge.targets(x, y, x, t, backed, sigma=0.0)
    assert torch.equal(found.action[:2], backed.action[:2])
    assert torch.equal(found.action[2:], (y - x)[2:])
    assert torch.equal(found.level, backed.level)
    assert torch.equal(bridge.targets(x, y, x, t, backed, sigma=0.3).action, backed.action)


@pytest.mark.parametrize("sigma", [0.0, 0.9])
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_bridges_between_optimally_coupled_ends_have_the_law_of_the_problem(sigma, t):
    """Ends from the joint Gaussian law of the optimal coupling; mean and covariance of x_t within five standard errors."""
    pair, n = gaussian_pair(2, sigma=sigma, seed=3), 40_000
    joint = torch.cat([torch.cat([pair.S0, pair.cross], 1), torch.cat([pair.cross.T, pair.S1], 1)])
    values, vectors = torch.linalg.eigh(joint)
    ends = torch.cat([pair.m0, pair.m1]) + (draw(n, 4, seed=1) * values.clamp_min(0).sqrt()) @ vectors.T
    x_t = bridge.interpolate(ends[:, :2], ends[:, 2:], torch.full((n,), t, dtype=DOUBLE), sigma=sigma, normal=draw(n, 2, seed=2))
    mean, cov = pair.marginal(t)
    centred = x_t - mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (centred.mean(0) / (x_t.std(0) / n**0.5)).abs().max() < 5
    assert ((products.mean(0) - cov) / (products.std(0) / n**0.5)).abs().max() < 5


# --- exact coupling -----------------------------------------------------------------------------------------------------


def check_coupling(C: Tensor) -> None:
    """Marginals, the optimal cost by another solver, and prices that prove it."""
    n, m = C.shape
    found = exact_coupling(C)
    torch.testing.assert_close(found.plan.sum(1), torch.full((n,), 1 / n, dtype=DOUBLE))
    torch.testing.assert_close(found.plan.sum(0), torch.full((m,), 1 / m, dtype=DOUBLE))
    assert (found.plan >= 0).all()
    both = math.lcm(n, m)
    copies = C.repeat_interleave(both // n, 0).repeat_interleave(both // m, 1).numpy()
    rows, columns = linear_sum_assignment(copies)
    tolerance = 1e-9 * float(C.abs().max() + 1)
    assert found.total == pytest.approx(copies[rows, columns].mean(), abs=tolerance)
    slack = C + found.g - found.f[:, None]
    assert float(slack.min()) >= -tolerance
    assert float((found.plan * slack).sum()) <= tolerance
    assert float(found.f.mean() - found.g.mean()) == pytest.approx(found.total, abs=tolerance)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (5, 1), (30, 30), (20, 30), (7, 9)])
def test_exact_coupling_is_the_assignment_of_copies(n, m):
    """Weights 1/n against 1/m are an assignment between lcm(n, m) copies."""
    check_coupling(cost(draw(n, 3), 2 * draw(m, 3, seed=1)))


def test_exact_coupling_with_ties():
    """Costs on a grid and equal rows: many plans are optimal."""
    z = torch.cartesian_prod(torch.arange(4), torch.arange(3)).double()
    check_coupling(cost(z, z.flip(0)))
    check_coupling(cost(z, z[[0, 0, 5, 5, 5, 11]]))
    check_coupling(torch.zeros(6, 4, dtype=DOUBLE))


def test_the_map_of_a_coupling_averages_over_the_partners():
    y = torch.tensor([[[0.0, 1.0]], [[2.0, 3.0]], [[10.0, 10.0]], [[20.0, 30.0]]])
    C = torch.tensor([[0.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 0.0]])
    assert exact_coupling(C).map(y).tolist() == [[[1.0, 2.0]], [[15.0, 20.0]]]
