"""The numbers against maps that are known, and the floor against models whose error is known."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from driftway.checks import InputError
from driftway.report import evaluate, held_rows
from tests.report.known import labelled_translation, rows, translation


def assigned_w2(x, y):
    costs = torch.cdist(x.flatten(1), y.flatten(1)).square().numpy()
    return math.sqrt(costs[linear_sum_assignment(costs)].mean())


def test_a_translation_is_optimal_at_any_number_of_steps():
    r = torch.tensor([3.0, -4.0]).double()
    x = rows(40, 2)
    found = evaluate(translation(r), x, (x + r).flip(0), steps=(1, 3, 20))
    assert (found.n, found.floor_rows, [q.steps for q in found.qualities]) == (40, 20, [1, 3, 20])
    assert found.squared_w2 == pytest.approx(25)
    for quality in found.qualities:
        assert quality.w2 == pytest.approx(0, abs=1e-6)
        assert quality.energy == pytest.approx(25)
        assert quality.normalised_energy == pytest.approx(0, abs=1e-6)
        assert quality.straightness == pytest.approx(1)
    assert (found.certificate.lower, found.certificate.upper) == pytest.approx((12.5, 12.5))


def test_a_wrong_translation_is_off_by_its_error():
    r, error = torch.tensor([3.0, -4.0]).double(), torch.tensor([0.0, 2.0]).double()
    x = rows(40, 2)
    quality = evaluate(translation(r + error), x, x + r, steps=[4]).headline
    assert quality.w2 == pytest.approx(2)
    assert quality.energy == pytest.approx(9 + 4)
    assert quality.normalised_energy == pytest.approx(abs(13 - 25) / 25)


def test_w2_and_floor_agree_for_a_perfect_model_only_at_equal_numbers_of_rows():
    found = evaluate(translation([0, 0]), rows(300, 2, seed=1), rows(300, 2, seed=2), steps=[1])
    quality = found.headline
    assert found.floor_rows == 150
    assert found.ratio(quality) == pytest.approx(1, abs=0.15)
    assert quality.w2 < 0.85 * found.floor  # more rows, smaller distance: not to be compared


def test_the_model_error_shows_above_the_floor():
    found = evaluate(translation([0.5, 0]), rows(200, 2, seed=1), rows(400, 2, seed=2), steps=[1])
    assert found.headline.w2_at_floor == pytest.approx(math.hypot(found.floor, 0.5), rel=0.15)


def test_the_floor_has_as_many_rows_as_w2_where_the_data_allows():
    found = evaluate(translation([0, 0]), rows(50, 2, seed=1), rows(100, 2, seed=2), steps=[1])
    assert (found.n, found.floor_rows) == (50, 50)
    assert found.headline.w2 == found.headline.w2_at_floor
    assert list(found.rows()[0])[:4] == ["steps", "W2 (50 rows)", "floor (50 rows)", "W2 / floor"]


def test_sorted_rows_have_the_same_floor():
    clusters = torch.cat([rows(100, 2) - 20, rows(100, 2, seed=1) + 20])
    found = evaluate(translation([0, 0]), clusters, clusters, steps=[1])
    assert found.floor < 15  # halves of one cluster each would be 57 apart


def test_a_normal_source_is_measured_in_units_of_the_data():
    model = translation([0, 0, 0], (1, 3), noise=True, shift=5.0, scale=10.0)
    x, y = rows(60, 1, 3, seed=1), 5 + 10 * rows(60, 1, 3, seed=2)
    found = evaluate(model, x, y, steps=[2])
    assert found.squared_w2**0.5 == pytest.approx(assigned_w2(5 + 10 * x, y))
    assert found.headline.w2 == pytest.approx(assigned_w2(5 + 10 * x, y), rel=1e-6)
    drawn = evaluate(model, None, y, steps=[2])
    start, _ = held_rows(model, None, y, limit=1000, seed=0)
    assert start.shape == (60, 1, 3)
    assert drawn.squared_w2**0.5 == pytest.approx(assigned_w2(5 + 10 * start, y))


def test_the_same_arguments_give_the_same_numbers():
    model = translation([0, 0], noise=True, sigma=0.5)
    y = rows(40, 2)
    assert evaluate(model, None, y) == evaluate(model, None, y)
    assert evaluate(model, None, y) != evaluate(model, None, y, seed=1)


def test_the_limit_bounds_the_rows():
    found = evaluate(translation([0, 0]), rows(90, 2), rows(50, 2, seed=1), steps=[1], limit=30)
    assert (found.n, found.floor_rows, found.certificate.n, found.certificate.m) == (30, 25, 30, 30)


def test_the_headline_is_four_steps_or_the_nearest():
    x = rows(6, 2)
    assert evaluate(translation([0, 1]), x, x, steps=[1, 4, 20]).headline.steps == 4
    assert evaluate(translation([0, 1]), x, x, steps=[1, 20, 3]).headline.steps == 3


MOVES = {"left": [-9.0, 0.0], "right": [9.0, 0.0]}


def labelled(n, *, share=0.5, seed=0):
    names = ["left" if u < share else "right" for u in torch.rand(n, generator=torch.Generator().manual_seed(seed))]
    return names, rows(n, 2, seed=seed + 1) + torch.tensor([MOVES[name] for name in names]).double()


def test_labels_are_those_of_the_rows_and_so_are_costs():
    """The paths of 81 are optimal within labels, whatever the cheaper plan without them is."""
    model, x = labelled_translation(MOVES), rows(60, 2)
    names, _ = labelled(60)
    start, _ = held_rows(model, x, x, limit=60, seed=0)
    _, order = held_rows(model, x, torch.arange(120.0).reshape(60, 2).double(), limit=60, seed=0)
    place = (order[:, 0] / 2).long()
    y = torch.empty_like(x)
    y[place] = start + torch.tensor([MOVES[names[i]] for i in place]).double()
    found = evaluate(model, x, y, labels=names, steps=[2])
    assert found.headline.w2 == pytest.approx(0, abs=1e-6)
    assert found.squared_w2 == pytest.approx(81)
    assert found.headline.normalised_energy == pytest.approx(0, abs=1e-6)


def test_a_perfect_labelled_model_is_at_the_floor():
    """Labels are clusters, so W2 is mostly the luck of how many rows have each: it must be the same luck on both sides."""
    ratios = []
    for seed in range(8):
        names, y = labelled(120, seed=10 * seed)
        found = evaluate(labelled_translation(MOVES), rows(120, 2, seed=10 * seed + 2), y, labels=names, steps=[1], seed=seed)
        ratios.append(found.headline.w2_at_floor / found.floor)
    assert sum(ratios) / 8 == pytest.approx(1, abs=0.06)


def test_labels_follow_the_order_of_the_rows():
    found = evaluate(labelled_translation(MOVES), rows(40, 2), sorted_rows := rows(80, 2, seed=1) + torch.cat(
        [torch.tensor([[-9.0, 0.0]]).expand(40, 2), torch.tensor([[9.0, 0.0]]).expand(40, 2)]), labels=["left"] * 40 + ["right"] * 40,
        steps=[1])  # fmt: skip
    assert (found.n, found.floor_rows, len(sorted_rows)) == (40, 40, 80)
    assert found.headline.w2_at_floor < 1.3 * found.floor
    with pytest.raises(InputError, match=r"^labels: expected 80 labels"):
        evaluate(labelled_translation(MOVES), rows(40, 2), sorted_rows, labels=["left"])


@pytest.mark.parametrize("y", [torch.ones(8, 2).double(), rows(8, 2)], ids=["constant", "source"])
def test_what_has_no_ratio_says_so(y):
    found = evaluate(translation([0, 0]), y, y, steps=[1])
    assert math.isnan(found.headline.normalised_energy)
    assert found.rows()[0]["normalised path energy"] == "n/a"
    assert (found.rows()[0]["W2 / floor"] == "n/a") == math.isnan(found.ratio(found.headline)) == (found.floor == 0)


@pytest.mark.parametrize(("change", "argument"), [
    ({"x": None}, "x"), ({"x": rows(9, 3), "y": rows(9, 3)}, "y"), ({"y": rows(1, 2)}, "y"), ({"y": rows(9, 2) * math.nan}, "y"),
    ({"steps": ()}, "steps"), ({"steps": (0,)}, "steps"), ({"limit": 1}, "limit"), ({"seed": -1}, "seed"),
])  # fmt: skip
def test_unusable_arguments_are_named(change, argument):
    given = {"x": rows(9, 2), "y": rows(9, 2), **change}
    with pytest.raises(InputError, match=f"^{argument}: expected "):
        evaluate(translation([0, 0]), **given)
