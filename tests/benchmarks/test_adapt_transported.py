"""The benchmark of maps: rows, paired differences, verdicts, and that a map of units is undone."""

import numpy as np
import pytest

from benchmarks import adapt_transported as bench
from benchmarks.adapt_data import Split
from benchmarks.adapt_transported import (
    AUTO,
    CHOSEN,
    EMD,
    FAST,
    LINEAR,
    MOMENTS,
    POOLED,
    VALUE,
    figures,
    goals,
    measure,
    plan,
    tables,
)


@pytest.fixture
def part(monkeypatch):
    """A source in other units."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    y = X[:, 0] + 0.1 * rng.normal(size=400)
    X[:100] = 3 * X[:100] + 4
    made = Split("ames", X[:100], y[:100], X[100:120], y[100:120], X[120:200], X[200:], y[200:], ("a", "b"), 1.0)
    monkeypatch.setattr(bench, "split", lambda task, labels, seed: made)
    bench.mapping.cache_clear()
    return made


def cell(method: str, mae: float, seed: int = 0, task: str = "ames", labels: int = 0) -> dict[str, object]:
    scores = {"mae": mae, "r2": 0.0, "nll": 1.0, "coverage": 0.9, "seconds": 1.0}
    return {"task": task, "labels": labels, "seed": seed, "method": method, **scores}


def test_a_difference_is_from_the_same_regressor_without_a_map():
    found = [cell(method, mae, seed) for method, maes in ((POOLED, (1.0, 2.0)), (f"{POOLED}, {VALUE}", (0.5, 1.7)))
             for seed, mae in enumerate(maes)]  # fmt: skip
    plain, mapped = figures(found)
    assert plain["less plain"] == 0
    assert mapped["less plain"] == pytest.approx(-0.4)
    assert mapped["less plain se"] == pytest.approx(0.1)
    (effect,) = [shown for shown in tables(figures(found)) if shown.title.startswith("What a map changes")]
    assert effect.rows == [[f"{POOLED}, {VALUE}", 0, pytest.approx(-0.4), 1, 1, pytest.approx(0.9)]]


def test_goals_can_be_met_and_can_fail():
    def judged(mae: float) -> list[bool]:
        found = [cell(method, value, seed, task, labels) for task in ("ames", "wages") for labels in (0, 20) for seed in (0, 1)
                 for method, value in ((POOLED, 1.0), *((f"{POOLED}, {way}", mae) for way in (MOMENTS, VALUE, CHOSEN)))]  # fmt: skip
        return [goal.met for goal in goals(figures(found))]

    assert judged(0.9) == [True] * 5
    assert judged(1.04) == [False, False, False, True, True]
    assert judged(1.06) == [False] * 5
    assert [goal.met for goal in goals(figures([cell(POOLED, 1.0)]))] == [False] * 5


def test_without_labels_nothing_needs_them():
    assert {job[3] for job in plan(False) if job[1] == 0} == {*FAST[1:], AUTO, f"{AUTO}, {MOMENTS}", f"{AUTO}, {VALUE}"}
    assert len(plan(False)) == len(set(plan(False)))


def test_every_map_undoes_other_units(part, monkeypatch):
    monkeypatch.setitem(bench.REGRESSORS, POOLED, lambda random_state: bench.PooledGP(depth=1, max_iter=3, source_weight=1))
    found = {way: measure(f"{POOLED}, {way}", "ames", 20, 0) for way in (MOMENTS, VALUE, EMD, LINEAR)}
    plain = measure(POOLED, "ames", 20, 0)
    assert all(own["mae"] < 0.8 * plain["mae"] for own in found.values())
    assert found[VALUE]["gap"] < 0.1
    assert found[MOMENTS]["p after"] > 0.05 > found[MOMENTS]["p"]
    assert "failed" in measure("no such", "ames", 20, 0)
