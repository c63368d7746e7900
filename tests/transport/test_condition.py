"""Pairing by condition: the problems of the classes side by side in one matrix are those of each class alone."""

import numpy as np
import pandas as pd
import pytest
import torch

from driftway.checks import InputError
from driftway.transport import bridge, dual
from driftway.transport.condition import NULL, Conditioner, Conditions, fit_conditions
from driftway.transport.primal_dual import assign
from driftway.transport.problem import cost
from driftway.transport.stream import Batch
from tests.transport.recipes import DOUBLE, draw, rng

EPS = 1.0


def problem(n=40, m=60, classes=4, seed=0):
    """States, candidates, prices, and labels that cover every class on both sides unevenly."""
    x, y, g = draw(n, 2, seed=seed), 1 + draw(m, 2, seed=seed + 1), draw(m, seed=seed + 2)
    labels = [torch.cat([torch.arange(classes), (torch.rand(k - classes, generator=rng(seed + k)) ** 2 * classes).long()]) for k in (n, m)]
    return x, y, g, *labels


def naive(x, y, g, scalings):
    """Sinkhorn scalings that start from softmax(-(C + g)/eps), row by row and column by column, and the prices after them."""
    n, m = len(x), len(y)
    P = (-(cost(x, y) + g) / EPS).softmax(1)
    column = torch.ones(m, dtype=DOUBLE)
    for _ in range(scalings):
        row = 1 / (P @ column)
        column = n / m / (row @ P)
    balanced = P * column
    shift = column.log()
    return P, balanced / balanced.sum(1, keepdim=True), g - EPS * (shift - shift.median())


# --- classes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scalings", [0, 1, 5, 40])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_labels_in_one_matrix_solve_each_class_alone(seed, scalings):
    x, y, g, c_x, c_y = problem(seed=seed)
    found = dual.occupancy(x, y, g, eps=EPS, scalings=scalings, pairing=dual.pair_by(c_x, c_y, weight=1.0, like=y))
    mixed = c_x[:, None] != c_y
    assert float(found.weights[mixed].abs().max()) < 1e-20
    assert float(found.balanced[mixed].abs().max()) < 1e-12
    for k in range(4):
        i, j = c_x == k, c_y == k
        weights, balanced, prices = naive(x[i], y[j], g[j], scalings)
        torch.testing.assert_close(found.weights[i][:, j], weights, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(found.balanced[i][:, j], balanced, atol=1e-9, rtol=1e-7)
        torch.testing.assert_close(found.g[j], prices if scalings else g[j], atol=1e-8, rtol=1e-8)


def test_masses_give_each_class_its_share_of_the_states():
    c_x, c_y = torch.tensor([0, 0, 0, 2, 2, 1, 1, 1]), torch.tensor([2, 0, 0, 2, 2, 1, 3])
    mass = dual.shares(c_x, c_y)
    assert mass.tolist() == pytest.approx([2 / 24, 3 / 16, 3 / 16, 2 / 24, 2 / 24, 3 / 8, 0.0])
    assert float(mass.sum()) == pytest.approx(1)


def test_the_dual_loss_is_the_sum_over_the_classes():
    """By its gradient: that of each class alone, weighted by its share of the states."""
    x, y, g, c_x, c_y = problem()
    pairing = dual.pair_by(c_x, c_y, weight=1.0, like=y)
    g.requires_grad_()
    weights = dual.occupancy(x, y, g.detach(), eps=EPS, scalings=0, pairing=pairing).weights
    (found,) = torch.autograd.grad(dual.dual_loss(g, weights, pairing.mass), g)
    for k in range(4):
        i, j = c_x == k, c_y == k
        alone = g.detach()[j].requires_grad_()
        P = dual.occupancy(x[i], y[j], alone.detach(), eps=EPS, scalings=0).weights
        (known,) = torch.autograd.grad(dual.dual_loss(alone, P), alone)
        torch.testing.assert_close(found[j], known * i.sum() / len(x), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.9, 0.99])
def test_the_backup_is_over_candidates_of_the_own_class(t):
    x, y, g, c_x, c_y = problem()
    times = torch.full((len(x),), t, dtype=DOUBLE)
    pairing = dual.pair_by(c_x, c_y, weight=1.0, like=y)
    found = bridge.backup(x, times, y, g, eps=EPS, log_weights=pairing.log_weights)
    for k in range(4):
        i, j = c_x == k, c_y == k
        known = bridge.backup(x[i], times[i], y[j], g[j], eps=EPS)
        torch.testing.assert_close(found.level[i], known.level, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(found.action[i], known.action, atol=1e-8, rtol=1e-8)


def test_a_state_whose_class_no_candidate_has_is_left_out():
    """And takes no mass to another class: with candidates of class 1 alone, only states of class 1 remain."""
    x, y = Batch(draw(6, 2), torch.tensor([0, 1, 2, 1, 0, 3])), Batch(draw(5, 2), torch.ones(5).long())
    states, c = assign(x, y)
    assert torch.equal(states, x.x[[1, 3]])
    assert c.tolist() == [1, 1]
    pairing = dual.pair_by(c, torch.tensor([1, 1, 2, 3, 1]), weight=1.0, like=x.x)
    found = dual.occupancy(states, draw(5, 2), torch.zeros(5, dtype=DOUBLE), eps=EPS, pairing=pairing)
    assert float(found.balanced[:, [2, 3]].abs().max()) < 1e-9
    assert pairing.mass.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0, 1 / 3])
    assert found.g.isfinite().all()


def test_a_batch_without_a_common_class_is_named():
    with pytest.raises(InputError, match=r"^labels: expected a class that source and target rows of one batch share.* raise batch"):
        assign(Batch(draw(2, 2), torch.tensor([0, 1])), Batch(draw(2, 2), torch.tensor([2, 3])))


def test_states_of_an_unlabelled_source_have_the_classes_of_the_candidates():
    c_y = torch.tensor([0, 0, 1, 2])
    states, c = assign(Batch(draw(8, 2)), Batch(draw(4, 2), c_y))
    assert len(states) == 8
    assert torch.equal(c, torch.cat([c_y, c_y]))


# --- vectors ------------------------------------------------------------------------------------------------------------


def test_close_conditions_pair_and_weight_zero_is_the_plain_coupling():
    x, y, g = draw(30, 2), draw(30, 2, seed=1), draw(30, seed=2)
    order = torch.randperm(30, generator=rng(3))
    c_x = torch.linspace(-2, 2, 30, dtype=DOUBLE)[:, None]
    c_y = (c_x + 0.01)[order]
    apart = dual.occupancy(x, y, g, eps=EPS, scalings=50, pairing=dual.pair_by(c_x, c_y, weight=1e5, like=y))
    assert torch.equal(c_x[:, 0].argsort(), c_y[apart.balanced.argmax(1), 0].argsort())
    assert float(apart.balanced.amax(1).min()) > 0.999
    free, plain = dual.occupancy(x, y, g, eps=EPS, pairing=dual.pair_by(c_x, c_y, weight=0.0, like=y)), dual.occupancy(x, y, g, eps=EPS)
    for name in ("weights", "balanced", "g"):
        torch.testing.assert_close(getattr(free, name), getattr(plain, name), atol=1e-12, rtol=1e-9)


def test_a_backup_over_close_conditions_is_a_weighted_mean():
    """Naive: the level is -eps log of the mean of exp(-(C + g)/eps) under the weights exp(-w |c - c'|^2/2)."""
    x, y, g, c_x, c_y = draw(9, 2), draw(12, 2, seed=1), draw(12, seed=2), draw(9, 3, seed=3), draw(12, 3, seed=4)
    pairing = dual.pair_by(c_x, c_y, weight=1.5, like=y)
    found = bridge.backup(x, torch.full((9,), 0.25, dtype=DOUBLE), y, g, eps=EPS, log_weights=pairing.log_weights)
    for i in range(9):
        w = torch.exp(-1.5 * (c_x[i] - c_y).square().sum(1) / 2)
        e = w * torch.exp(-((x[i] - y).square().sum(1) / 2 / 0.75 + g) / EPS)
        assert float(found.level[i]) == pytest.approx(float(-EPS * (e.sum() / w.sum()).log()), abs=1e-8)
        torch.testing.assert_close(found.action[i], ((e @ y) / e.sum() - x[i]) / 0.75, atol=1e-8, rtol=1e-8)


# --- what users call a label --------------------------------------------------------------------------------------------

LIKE = torch.empty(0, dtype=DOUBLE)
WHOLE = Conditions(classes=(-1, 3, 10))
TEXT = Conditions(classes=("3", "cat"))
VECTOR = Conditions(shift=(1.0, 0.0), scale=(2.0, 1.0))


@pytest.mark.parametrize("labels", [
    [10, 3, -1], np.array([10, 3, -1]), torch.tensor([10, 3, -1]), (10, 3, -1), np.array([10.0, 3.0, -1.0]), ["10", "3", "-1"],
    pd.Series([10, 3, -1]), np.array([10, 3, -1], dtype=object), [np.int64(10), np.int64(3), np.int64(-1)],
], ids=str)  # fmt: skip
def test_labels_of_any_container_are_indices(labels):
    assert WHOLE.encode("label", labels, 3, LIKE).tolist() == [2, 1, 0]


@pytest.mark.parametrize(("conditions", "label", "index"), [
    (WHOLE, 3, 1), (WHOLE, "3", 1), (WHOLE, np.int64(-1), 0), (WHOLE, [10], 2), (TEXT, "cat", 1), (TEXT, 3, 0), (TEXT, np.str_("3"), 0),
    (Conditions(classes=(0, 1)), True, 1), (Conditions(classes=(0, 1)), [False], 0),
])  # fmt: skip
def test_one_label_is_for_all_rows(conditions, label, index):
    assert conditions.encode("label", label, 4, LIKE).tolist() == [index] * 4


@pytest.mark.parametrize(("conditions", "labels", "words"), [
    (WHOLE, 4, "expected one of -1, 3, 10, got 4; use a label that the training data has"),
    (WHOLE, [3, 10, 7], "got 7 at row 2"),
    (WHOLE, True, "got 1"),
    (WHOLE, "three", "got 'three'"),
    (WHOLE, 0.5, "got shape ()"),
    (WHOLE, [0.5, 3, 3], "got 0.5 at row 0"),
    (WHOLE, [3, 10], "expected 3 labels, one per row, or one for all, got 2"),
    (WHOLE, [3, None, 3], "got no label at row 1 (1 such rows)"),
    (WHOLE, [[3], [3], [3]], "got shape (3, 1)"),
    (WHOLE, [[3], [3, 3], [3]], "got [3] at row 0"),
    (WHOLE, [], "got shape (0,)"),
    (WHOLE, pd.Series([3, pd.NA, 3], dtype="Int64"), "got no label at row 1"),
    (TEXT, ["cat", float("nan"), ""], "got no label at row 1 (2 such rows)"),
    (TEXT, ["dog", "cat", "cat"], "got 'dog' at row 0"),
    (VECTOR, [1.0, 2.0, 3.0], "expected condition vectors of shape (3, 2), got (1, 3)"),
    (VECTOR, [[1.0, 2.0]] * 2, "got (2, 2)"),
    (VECTOR, 1.0, "got (1, 1)"),
    (VECTOR, float("nan"), "expected finite numbers, got [nan] at row 0"),
    (VECTOR, [[0.0, 1.0], [0.0, float("inf")], [0.0, 0.0]], "got [0.0, inf] at row 1 (1 such rows)"),
    (VECTOR, np.zeros((3, 2, 1)) + np.nan, "finite numbers"),
    (VECTOR, "cat", "expected condition vectors of numbers, got 'cat'"),
    (VECTOR, [None, 1.0], "expected condition vectors of numbers"),
    (Conditions(), 3, "expected None, as this model was trained without labels, got 3; leave it out, or train with labels"),
], ids=lambda value: None if isinstance(value, Conditions) else str(value)[:30])  # fmt: skip
def test_a_label_that_cannot_be_is_named(conditions, labels, words):
    with pytest.raises(InputError) as caught:
        conditions.encode("label", labels, 3, LIKE)
    assert str(caught.value).startswith("label: expected ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("labels", "words"), [
    ([0, None, 1], "got no label at row 1 (1 such rows); label these rows or leave them out"),
    (np.array([0.0, np.nan, np.nan]), "got no label at row 1 (2 such rows)"),
    (["a", "b", ""], "got no label at row 2"),
    (["a", float("nan"), "b"], "got no label at row 1"),
    (pd.Series(["a", None, "b"]), "got no label at row 1"),
    ([1, "a", 2], "expected labels of one kind, got whole numbers and text"),
    ([0.5, 1.5, 2.0], "got 0.5 at row 0; round them, or pass numbers that measure something as vectors, shape (n, 1)"),
    ([float("inf")] * 3, "got inf at row 0"),
    (np.array([b"a", b"b"]), "got b'a' at row 0"),
    (torch.tensor(3), "got shape ()"),
    (np.zeros((3, 2, 2)), "got shape (3, 2, 2)"),
    (np.arange(10_001), "expected at most 10,000 classes, got 10,001; pass numbers that measure something as vectors"),
    (np.array([["a"], ["b"]]), "expected condition vectors of numbers"),
    (np.array([[0.0], [np.nan], [1.0]]), "got [nan] at row 1 (1 such rows)"),
], ids=lambda value: str(value)[:30])  # fmt: skip
def test_training_labels_that_cannot_be_are_named(labels, words):
    with pytest.raises(InputError) as caught:
        fit_conditions("labels", labels)
    assert str(caught.value).startswith("labels: expected ")
    assert words in str(caught.value)


def test_classes_are_sorted_and_keep_their_kind():
    assert fit_conditions("labels", [10, 9, 10, -1]).classes == (-1, 9, 10)
    assert fit_conditions("labels", np.array(["b", "a", "10"])).classes == ("10", "a", "b")
    assert fit_conditions("labels", np.array([True, False])).classes == (0, 1)
    assert fit_conditions("labels", torch.tensor([2.0, 1.0])).classes == (1, 2)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_vectors_are_standardised(kind):
    rows = np.random.default_rng(0).normal(size=(50, 3)) * [1, 10, 0] + [0, 5, 7]
    conditions = fit_conditions("labels", kind(rows))
    c = conditions.encode("labels", kind(rows), 50, LIKE)
    torch.testing.assert_close(c.mean(0), torch.zeros(3, dtype=DOUBLE), atol=1e-10, rtol=0)
    torch.testing.assert_close(c.std(0), torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE), atol=1e-10, rtol=0)
    one = conditions.encode("label", rows[4].tolist(), 5, LIKE)
    torch.testing.assert_close(one, c[4].expand(5, 3))


# --- features -----------------------------------------------------------------------------------------------------------


def test_null_has_a_row_of_its_own():
    own = Conditioner(classes=3, columns=0, width=4)
    rows = own(torch.tensor([0, 1, 2, NULL, NULL]), torch.zeros(1))
    assert torch.equal(rows[3], rows[4])
    assert len(rows.unique(dim=0)) == 4
    vectors = Conditioner(classes=0, columns=2, width=4)
    assert vectors.none is not None
    assert vectors.map is not None
    torch.nn.init.ones_(vectors.none)
    out = vectors(torch.tensor([[1.0, 2.0], [torch.nan, torch.nan], [torch.nan, 0.0]]), torch.zeros(1))
    assert torch.equal(out[1:], torch.ones(2, 4))
    torch.testing.assert_close(out[0], vectors.map(torch.tensor([1.0, 2.0])))
    out[1].sum().backward()
    assert vectors.map.weight.grad is not None
    assert vectors.map.weight.grad.isfinite().all(), "a masked NaN must not poison the gradient"
