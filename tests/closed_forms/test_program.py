import itertools

import numpy as np
import ot
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment

from driftway.checks import InputError
from driftway.transport.problem import cost, hopf_lax, hopf_lax_gradient
from driftway.transport.program import solve_assignment_program, solve_program
from tests.closed_forms.answers import DOUBLE, LinePair, UniformToExponential, convex_map, gaussian_pair

EXACT = {"atol": 1e-8, "rtol": 1e-8}


def points(n, m, d=2, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, d)),
        1 + 2 * rng.normal(size=(m, d)),
        rng.dirichlet(np.ones(n)),
        rng.dirichlet(np.ones(m)),
    )


def staged(n=8, m=7, seed=0, extra=0):
    """Weighted points, and inner grids for H = 3 that hold every straight line between them."""
    x, y, a, b = points(n, m, seed=seed)
    rng = np.random.default_rng(seed + 1)
    inner = [((1 - t) * x[:, None] + t * y[None]).reshape(-1, 2) for t in (1 / 3, 2 / 3)]
    return [x, *(np.concatenate([z, rng.normal(size=(extra, 2))]) for z in inner), y], a, b


def stage_costs(states):
    tensors = [torch.as_tensor(z) for z in states]
    return [(len(states) - 1) * cost(x, x_next) for x, x_next in itertools.pairwise(tensors)]


def check_optimal(program, states, source, target):
    """Feasible on both sides, and without a gap: each proves the other optimal."""
    c, mu, V = stage_costs(states), program.occupancies, program.values
    source, target = torch.as_tensor(source), torch.as_tensor(target)
    assert all((flow >= 0).all() for flow in mu)
    torch.testing.assert_close(mu[0].sum(1), source, **EXACT)
    torch.testing.assert_close(mu[-1].sum(0), target, **EXACT)
    for before, after in itertools.pairwise(mu):
        torch.testing.assert_close(before.sum(0), after.sum(1), **EXACT)
    slack = [step + V[h + 1] - V[h][:, None] for h, step in enumerate(c)]
    assert all((s >= -1e-8).all() for s in slack)
    assert sum(float((flow * s).sum()) for flow, s in zip(mu, slack, strict=True)) == pytest.approx(0, abs=1e-8)
    assert float(source @ V[0] - target @ V[-1]) == pytest.approx(program.cost, rel=1e-8, abs=1e-8)
    assert program.g is V[-1]


def test_equal_weights_give_an_assignment():
    x, y, *_ = points(50, 50)
    C = stage_costs([x, y])[0].numpy()
    rows, columns = linear_sum_assignment(C)
    program = solve_assignment_program(x, y)
    check_optimal(program, [x, y], np.full(50, 1 / 50), np.full(50, 1 / 50))
    assert program.cost == pytest.approx(C[rows, columns].mean(), rel=1e-9)
    assert (program.occupancies[0].argmax(1).numpy() == columns).all()


@pytest.mark.parametrize(("n", "m"), [(30, 20), (1, 5), (6, 1)])
def test_unequal_weights_match_pot(n, m):
    x, y, a, b = points(n, m, d=3, seed=n)
    program = solve_program([x, y], a, b)
    check_optimal(program, [x, y], a, b)
    assert program.cost == pytest.approx(ot.emd2(a, b, ot.dist(x, y) / 2), rel=1e-9)


def test_two_hundred_points_match_pot():
    x, y, *_ = points(200, 200)
    program = solve_assignment_program(x, y)
    assert program.cost == pytest.approx(ot.emd2([], [], ot.dist(x, y) / 2), rel=1e-9)


def test_inner_grids_with_the_straight_lines_keep_the_cost():
    states, a, b = staged(extra=5)
    program, direct = solve_program(states, a, b), solve_program([states[0], states[-1]], a, b)
    check_optimal(program, states, a, b)
    assert program.cost == pytest.approx(direct.cost, rel=1e-9)


def test_inner_grids_without_them_cost_more_and_richer_ones_less():
    x, y, a, b = points(10, 10, seed=4)
    grids = np.random.default_rng(5).normal(size=(2, 60, 2))
    coarse, fine = ([x, grids[0, :n], grids[1, :n], y] for n in (15, 60))
    least = solve_program([x, y], a, b).cost
    assert solve_program(coarse, a, b).cost > solve_program(fine, a, b).cost > least


def test_stage_values_are_hopf_lax_values():
    """Never below them, as a grid has fewer paths; equal on the optimal lines, where acting on them leads to the end."""
    states, a, b = staged(seed=2, extra=5)
    program = solve_program(states, a, b)
    y = torch.from_numpy(states[-1])
    for h in range(3):
        x, occupied = torch.from_numpy(states[h]), program.occupancies[h].sum(1) > 1e-9
        V = hopf_lax(x, h / 3, y, program.g)
        assert (program.values[h] >= V - 1e-9).all()
        torch.testing.assert_close(program.values[h][occupied], V[occupied], **EXACT)
        ends = (x - (1 - h / 3) * hopf_lax_gradient(x, h / 3, y, program.g))[occupied]
        assert cost(ends, y).min(1).values.max() < 1e-12


def test_values_solve_the_bellman_equation_everywhere_and_are_anchored():
    states, a, b = staged(seed=3, extra=5)
    program = solve_program(states, a, b)
    for h, step in enumerate(stage_costs(states)):
        torch.testing.assert_close((step + program.values[h + 1]).amin(1), program.values[h])
    assert float(torch.from_numpy(b) @ program.g) == pytest.approx(0, abs=1e-10)
    assert float(torch.from_numpy(a) @ program.values[0]) == pytest.approx(program.cost, rel=1e-8)


@pytest.mark.parametrize("d", [1, 2, 10])
def test_a_convex_map_is_found(d):
    pair = convex_map(d, seed=d)
    x = torch.randn(40, d, dtype=DOUBLE, generator=torch.Generator().manual_seed(d))
    y = pair.map(x)
    program = solve_assignment_program(x, y.flip(0))
    assert program.cost == pytest.approx(float((pair.value(x) - pair.g_at_image(x)).mean()), rel=1e-9)
    assert (program.occupancies[0].argmax(1) == torch.arange(39, -1, -1)).all()


def test_the_line_is_sorted():
    line = LinePair(stats.norm(), stats.gamma(2.0))
    x, y = line.source(40), line.target(40)
    shuffled = y[torch.randperm(40, generator=torch.Generator().manual_seed(0))]
    program = solve_assignment_program(x, shuffled)
    torch.testing.assert_close(40 * program.occupancies[0] @ shuffled, line.map(x))


def test_the_uniform_to_exponential_pair_is_approached():
    """Cost and value of n mid-quantiles tend to those of the laws.

    Both values are tight on the same pairs, so from one point to the next they differ by at most (x' - x)(y' - y).
    """
    known, errors = UniformToExponential(), []
    for n in (10, 40, 160):
        x, y = known.source(n), known.target(n)
        program = solve_assignment_program(x, y)
        errors.append(abs(program.cost - known.w2_squared / 2))
        offset = program.values[0] - known.value(x)
        assert offset.max() - offset.min() <= (y[-1] - y[0]) / n
    assert errors[0] > 2 * errors[1] > 4 * errors[2]  # log(n)^2/n, for the tail


def test_gaussian_potentials_bound_the_cost_of_samples():
    """They are feasible for every pair of points, so no sample's cost is below them; with more samples the gap closes."""
    pair, generator, gaps = gaussian_pair(2, seed=1), torch.Generator().manual_seed(0), []
    for n in (10, 50, 250):
        x, y = pair.source(n, generator=generator), pair.target(n, generator=generator)
        gaps.append(solve_assignment_program(x, y).cost - float(pair.value(x, 0.0).mean() - pair.g(y).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_scale_and_place_do_not_matter():
    x, y, a, b = points(40, 30, d=3, seed=6)
    plain = solve_program([x, y], a, b)
    for factor in (1e-6, 1e6):
        scaled = solve_program([factor * (x + 7), factor * (y + 7)], a, b)
        assert scaled.cost / factor**2 == pytest.approx(plain.cost, rel=1e-7)
        torch.testing.assert_close(scaled.occupancies[0], plain.occupancies[0], atol=1e-9, rtol=0)


def test_images_states_of_no_weight_and_equal_points_are_fine():
    x, y, a, b = points(6, 5, d=4, seed=7)
    flat = solve_program([x, y], a, b)
    shaped = solve_program(
        [torch.from_numpy(z).reshape(-1, 2, 2) for z in (x, y)], torch.from_numpy(a), torch.from_numpy(b)
    )
    assert shaped.cost == pytest.approx(flat.cost, rel=1e-12)
    wider = [np.concatenate([x, y]), y]
    weights = np.concatenate([a, np.zeros(5)])
    check_optimal(solve_program(wider, weights, b), wider, weights, b)
    assert solve_assignment_program(np.ones((3, 2)), np.ones((4, 2))).cost == 0


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("states", {"states": [np.zeros((3, 2))]}),
        ("states", {"states": [np.zeros((1500, 2)), np.zeros((1500, 2))]}),
        (r"states\[1\]", {"states": [np.zeros((3, 2)), np.zeros((2, 3))]}),
        (r"states\[1\]", {"states": [np.zeros((3, 2)), np.full((2, 2), np.nan)]}),
        ("source", {"source": np.full(2, 0.5)}),
        ("source", {"source": np.array([0.5, 1.0, -0.5])}),
        ("target", {"target": np.array([0.5, 0.6])}),
        ("target", {"target": np.array([0.5, np.nan])}),
    ],
)
def test_errors_are_named(argument, change):
    good = {"states": [np.zeros((3, 2)), np.ones((2, 2))], "source": np.full(3, 1 / 3), "target": np.full(2, 0.5)}
    with pytest.raises(InputError, match=f"^{argument}: "):
        solve_program(**(good | change))
    with pytest.raises(InputError, match=r"^y: "):
        solve_assignment_program(np.zeros((3, 2)), np.zeros((0, 2)))
