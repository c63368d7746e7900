"""Scores with known answers, paired differences, goals that can fail, and what the peers fit."""

import math

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from benchmarks import adapt_peers, adapt_tabular
from benchmarks.adapt_data import Split
from benchmarks.adapt_fits import Smoother, process, rows
from benchmarks.adapt_tabular import (
    AUTO,
    FIXED,
    QUANTILE,
    TARGET,
    TRAIN,
    cells,
    figures,
    goals,
    measure,
    missing,
    paired,
    scores,
    tables,
)


@pytest.fixture
def part():
    """A line, shifted; the scale is 2."""
    rng = np.random.default_rng(0)
    X_s, X_t, X_u, X = (rng.normal(size=(n, 2)) + (n != 60) for n in (60, 20, 30, 40))
    f = lambda X: X @ np.array([1.0, -2.0]) + 0.01 * rng.normal(size=len(X))  # noqa: E731
    return Split("made up", X_s, f(X_s), X_t, f(X_t), X_u, X, f(X), ("a", "b"), 2.0)


def cell(method, mae, seed=0, task="ames", labels=20, coverage=0.9):
    return {"task": task, "labels": labels, "seed": seed, "method": method, "mae": mae, "r2": 0.5, "nll": 1.0, "coverage": coverage,
            "seconds": 1.0}  # fmt: skip


def test_scores_are_in_standardised_units(part):
    sigma = 4.0
    found = scores(part, (part.y_test + sigma, np.full(40, sigma)))
    assert found["mae"] == pytest.approx(sigma / 2)
    assert found["r2"] == pytest.approx(1 - sigma**2 / part.y_test.var())
    assert found["nll"] == pytest.approx(0.5 * math.log(2 * math.pi * 4) + 0.5)
    assert found["coverage"] == 1
    assert scores(part, (part.y_test + sigma, np.full(40, sigma / QUANTILE * 0.999)))["coverage"] == 0
    assert scores(part, (part.y_test, None)) == {"mae": 0.0, "r2": 1.0, "nll": None, "coverage": None}


def test_a_difference_is_paired_over_common_draws():
    difference, error = paired({0: 1.0, 1: 5.0, 2: 9.0}, {0: 0.0, 1: 2.0, 7: 100.0})
    assert difference == pytest.approx(2.0)
    assert error == pytest.approx(math.sqrt(2) / math.sqrt(2))
    assert paired({0: 1.0}, {0: 3.0}) == (-2.0, None)
    assert paired({0: 1.0}, {}) == (None, None)


def rows_of(auto, other, target=(3.0, 3.0), coverage=0.9):
    found = []
    for method, maes in ((AUTO, auto), ("ridge, pooled", other), (TARGET, target), (FIXED, other), (TRAIN, auto)):
        found += [cell(method, mae, seed, coverage=coverage) for seed, mae in enumerate(maes)]
    return figures(found)


def test_goals_can_be_met_and_can_fail():
    assert [goal.met for goal in goals(rows_of((1.0, 1.2), (1.1, 1.3)))] == [True] * 4
    within = goals(rows_of((1.0, 1.4), (1.0, 1.0)))  # worse by 0.2 with a standard error of 0.2
    assert [goal.met for goal in within] == [True, True, True, False]  # the last asks for more than a standard error
    worse = goals(rows_of((1.3, 1.4), (1.0, 1.1), target=(1.2, 1.3), coverage=0.84))  # no spread: every bit counts
    assert [goal.met for goal in worse] == [False] * 4
    assert worse[0].checks[0][3] == "ridge, pooled"
    assert [goal.met for goal in goals(figures([cell("ridge, pooled", 1.0)]))] == [False] * 4  # without ours, nothing is met


def test_the_first_goal_is_about_shifted_tables_with_few_labels():
    found = [cell(method, mae, seed, task, labels) for task, labels in (("wages", 20), ("ames", 100), ("ames", 50))
             for method, mae in ((AUTO, 2.0), ("ridge, pooled", 1.0)) for seed in (0, 1)]  # fmt: skip
    assert [check[:2] for check in goals(figures(found))[0].checks] == [["Ames, old to new houses", 50]]


def test_failed_cells_are_told_and_left_out_of_means():
    found = [cell("ridge, pooled", 1.0), {"task": "ames", "labels": 20, "seed": 1, "method": "ridge, pooled", "failed": "ValueError: no"}]
    (row,) = figures(found)
    assert (row["draws"], row["failed"], row["mae"]) == (1, 1, 1.0)
    assert missing(found, ["ridge, pooled", "skada KMM"]) == (
        "Not installed, and left out: skada KMM.", "ridge, pooled failed on 1 draws: ValueError: no")  # fmt: skip
    assert tables([row])[0].rows == [["ridge, pooled", 1.0, 1.0]]


def test_a_cell_is_kept_and_a_failure_is_an_outcome(part, monkeypatch, tmp_path):
    calls = []

    def counted(split, seed):
        calls.append(seed)
        if seed:
            raise RuntimeError("singular")
        return split.y_test, None

    monkeypatch.setattr(adapt_tabular, "CACHE", tmp_path)
    monkeypatch.setattr(adapt_tabular, "split", lambda task, labels, seed: part)
    monkeypatch.setattr(adapt_peers, "load", lambda: None)
    monkeypatch.setitem(adapt_peers.PEERS, "ridge, pooled", counted)
    jobs = [(seed, 20, "ames", "ridge, pooled") for seed in (0, 1)]
    first, second = list(cells(jobs)), list(cells(jobs))
    assert first == second
    assert calls == [0, 1]
    assert first[0]["mae"] == 0.0
    assert first[1]["failed"] == "RuntimeError: singular"
    assert "mae" in measure("boosting, pooled", "ames", 20, 0)


def test_the_smoother_is_the_mean_of_the_process(part):
    r = rows(part)
    gp = process(r.X, r.y)
    assert isinstance(gp, GaussianProcessRegressor)
    assert np.allclose(Smoother().fit(r.X, r.y).predict(r.test), gp.predict(r.test), atol=1e-6)


def test_a_weight_of_two_is_a_row_twice(part):
    r = rows(part)
    weight = np.where(np.arange(len(r.y)) < 10, 2.0, 1.0)
    twice = np.concatenate((np.arange(len(r.y)), np.arange(10)))
    one = Smoother(alpha=0.1, gamma=0.5).fit(r.X, r.y, sample_weight=weight)
    other = Smoother(alpha=0.1, gamma=0.5).fit(r.X[twice], r.y[twice])
    assert np.allclose(one.predict(r.test), other.predict(r.test))


@pytest.mark.parametrize("name", ["GP, target only", "GP, pooled", "GP, domain as a column", "ridge, pooled", "ridge, domain as a column",
                                  "boosting, domain as a column"])  # fmt: skip
def test_peers_predict_in_the_unit_of_the_targets(part, name):
    moved = Split(**{**vars(part), **{side: 1000 + 50 * getattr(part, side) for side in ("y_source", "y_target")}})
    mean, std = adapt_peers.predict(name, part, 0)
    again, wide = adapt_peers.predict(name, moved, 0)
    assert np.allclose(again, 1000 + 50 * mean, rtol=1e-3, atol=0.5)
    assert np.abs(mean - part.y_test).mean() < 0.5 * np.abs(part.y_test - part.y_test.mean()).mean()
    assert (std is None) == (not name.startswith("GP"))
    if std is not None and wide is not None:
        assert np.allclose(wide, 50 * std, rtol=0.05)
