"""The perturbed loop against the model's own sampler, grids, areas on synthetic curves, and goals that can fail."""

import math
from itertools import pairwise

import pytest
import torch

from benchmarks import robustness
from benchmarks.robustness import (
    AXES,
    BOXED,
    DIGITS,
    EXACT,
    MNIST,
    OURS,
    PLANES,
    WARPS,
    Problem,
    area,
    curve,
    goals,
    jittered,
    mmd2,
    walk,
)
from benchmarks.translation import train_ours
from driftway.transport import Settings
from driftway.transport.stream import generator


@pytest.mark.parametrize("times", [[0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.1, 0.7, 1.0]])
def test_the_unperturbed_loop_in_the_box_is_the_models_own_sampler(times):
    own = generator("sampler")
    x, y = torch.randn(200, 3, generator=own), 3 * torch.randn(200, 3, generator=own) + 1
    model, _, _ = train_ours("vector", x, y, seconds=0.2, seed=0, settings=Settings(width=16, batch=64, candidates=64))
    scaler = model.scaler
    gradient = model.value_function.gradient
    ends = walk(lambda z, t: -gradient(z, z.new_full((len(z),), t)), scaler.source(x), times, box=scaler.bounds)
    torch.testing.assert_close(scaler.data(ends), model.sample(x, steps=times), rtol=1e-5, atol=1e-5)


def test_step_noise_adds_the_given_variance_whatever_the_grid():
    x = torch.zeros(20000, 2)
    for times in (robustness.uniform(1), robustness.uniform(5), jittered(8, 1.0, 0)):
        ends = walk(lambda z, t: torch.zeros_like(z), x, times, noise=0.5)
        assert float(ends.var()) == pytest.approx(0.25, rel=5 * math.sqrt(2 / 40000))
    again = [walk(lambda z, t: z, x, [0.0, 1.0], noise=0.5, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_the_box_holds_ends_and_lets_the_inside_alone():
    x = torch.zeros(4, 1)
    box = torch.full((1,), -1.0), torch.ones(1)
    assert walk(lambda z, t: torch.full_like(z, 9.0), x, robustness.uniform(7), box=box).max() == pytest.approx(1)
    assert walk(lambda z, t: torch.full_like(z, 0.5), x, robustness.uniform(7), box=box).max() == pytest.approx(0.5)


def test_grids_rise_from_0_to_1_and_no_jitter_is_uniform():
    assert jittered(8, 0.0, 3) == pytest.approx(robustness.uniform(8))
    for share in AXES["jitter"]:
        for seed in range(20):
            times = jittered(8, share, seed)
            assert (times[0], times[-1], len(times)) == (0, 1, 9)
            assert all(a < b for a, b in pairwise(times))
    kinds = [axis for axis, *_ in robustness.perturbations(5)]
    assert [kinds.count(axis) for axis in (*AXES, *WARPS)] == [7, 5, 16, 1, 1]


def test_areas_of_straight_lines_are_their_middle_heights():
    assert area([(0.0, 1.0), (1.0, 3.0), (4.0, 9.0)]) == pytest.approx(5)
    assert area([(1.0, 1.0), (10.0, 2.0), (100.0, 3.0)], log=True) == pytest.approx(2)
    assert area([(0.0, 0.1), (1.0, 0.2)], least=0.5) == pytest.approx(0.5)
    assert area([(0.0, 1.0), (1.0, math.inf)]) == math.inf


def test_the_kernel_distance_is_zero_in_the_mean_for_one_law_and_is_not_for_two():
    own = generator("kernel")
    x, y = torch.randn(2, 400, 2, generator=own)
    same, other = mmd2(x, y, 1.0), mmd2(x, y + 2, 1.0)
    assert abs(same) < 0.02 < 0.2 < other


def test_a_sample_outside_is_as_far_as_it_is_and_one_that_is_no_number_is_a_loss():
    y = torch.zeros(2, 2)
    problem = Problem(y, None, y, torch.zeros(2), torch.tensor([1.0, 2.0]), None, {}, 1.0)
    assert robustness.score(torch.tensor([[0.5, 1.0], [0.5, 3.0]]), problem)["overshoot"] == pytest.approx(0.5)
    assert robustness.score(torch.tensor([[0.5, math.nan], [0.5, 3.0]]), problem)["w2"] is None


def synthetic(ours, theirs, *, overshoot=0.1):
    """Constant curves of all losses for ours and one peer, boxed or not, on all problems."""
    figures = [{"problem": problem, "method": method, "axis": axis, "level": float(level), "grid": grid, "w2": height, "wrong": height,
                "mmd2": 0.0, "overshoot": overshoot if method == OURS else 9.0}
               for method, height in ((OURS, ours), (EXACT, theirs), (EXACT + BOXED, theirs)) for problem in (*PLANES, DIGITS, MNIST)
               for axis, level, _, _, grid in robustness.perturbations(2)]  # fmt: skip
    known = [{"problem": problem, "floor": 0.2, "real": 0.0, "wrong": 0.0} for problem in (*PLANES, DIGITS, MNIST)]
    return {"figures": figures, "known": known, "trainings": [{"problem": DIGITS, "method": OURS, "seconds": 1.0, "steps": 9}]}


@pytest.mark.parametrize(("ours", "theirs", "met"), [(0.3, 0.4, True), (0.4, 0.3, False), (0.1, 0.15, False)])
def test_the_smaller_area_wins_and_blur_below_the_floor_does_not(ours, theirs, met):
    made = goals(synthetic(ours, theirs))
    assert made[0].met
    assert [goal.met for goal in made[1:]] == [met, False, met, False]  # the second peer was not measured
    assert len(made[1].checks) == 5 * (2 + 2 * 2)


def test_overshoot_and_lost_samples_fail_the_first_goal():
    assert not goals(synthetic(0.3, 0.4, overshoot=0.6))[0].met
    found = synthetic(0.3, 0.4)
    found["figures"][0] |= {"w2": None, "overshoot": None}
    assert not goals(found)[0].met
    assert curve(found, PLANES[0], OURS, "steps", "w2")[0] == (1, math.inf)


def test_tables_and_picture_show_every_problem():
    found = synthetic(0.3, 0.4)
    titles = [table.title for table in robustness.tables(found)]
    assert titles[:3] == ["normal-8gaussians: steps", "normal-8gaussians: noise", "normal-8gaussians: grids"]
    assert len(titles) == 14
    assert all(len(row) == len(table.columns) for table in robustness.tables(found) for row in table.rows)
    assert len(robustness.draw(found).axes) == 12
