"""Races where the seconds are known, and a mixture watched for real."""

from itertools import pairwise

import pytest

from benchmarks import mixture_speed as bench
from benchmarks.scores import PEER
from benchmarks.transport_2d import draw_test
from driftway.data import PAIRS

TASK = next(iter(PAIRS))
MIXTURE = [{"task": TASK, "seed": 0, "check": check, "seconds": seconds, "steps": 1, "w2": w2}
           for check, seconds, w2 in ((1.0, 1.1, 0.5), (2.0, 2.0, 0.3), (4.0, 4.0, 0.4))]  # fmt: skip


def peer(w2, seed=0):
    return {"task": TASK, "seed": seed, "method": PEER, "seconds": 22.0, "steps": 20, "w2": w2}


@pytest.mark.parametrize(("quality", "seconds"), [(0.6, 1.1), (0.5, 1.1), (0.45, 2.0), (0.3, 2.0), (0.2, None), (None, 1.1)])
def test_the_first_check_that_is_good_enough_counts(quality, seconds):
    (race,) = bench.races([peer(quality)], MIXTURE[::-1])
    assert race["mixture_seconds"] == seconds
    assert race["ratio"] == pytest.approx(0 if seconds is None else 22 / seconds)


def test_a_seed_that_never_gets_there_fails_the_goal():
    good = bench.races([peer(0.5)], MIXTURE)
    assert bench.goal(good, PEER).checks == [[TASK, "1.10", pytest.approx(20), "met"]]
    assert bench.goal([*good, *bench.races([peer(0.1)], MIXTURE)], PEER).checks == [[TASK, "1.10, never", 0, "not met"]]
    assert not bench.goal(good, "I-CFM").met  # nothing measured, nothing proven


def test_slower_than_the_peer_fails_the_goal():
    assert not bench.goal(bench.races([{**peer(0.3), "seconds": 1.5}], MIXTURE), PEER).met


def test_tables_show_never_and_what_was_not_tested():
    races = bench.races([peer(0.5), peer(0.1)], MIXTURE)
    first, second = bench.tables(races, MIXTURE, [{"task": TASK, "seed": 0, "floor": 0.1}], (1.0, 2.0, 4.0, 8.0))
    assert [row[-2:] for row in first.rows] == [["1.10", "20"], ["never", None]]
    assert second.rows == [[TASK, 0, 0.1, 0.5, 0.3, 0.4, None]]


def test_a_mixture_is_watched_until_it_is_good_enough():
    test = draw_test("normal-8gaussians", 0, 256)
    rows = list(bench.watch(*PAIRS["normal-8gaussians"], test, checks=(0.2, 0.4, 0.6), enough=0.0, seed=0))
    assert [row["check"] for row in rows] == [0.2, 0.4, 0.6]
    assert all(row["seconds"] >= row["check"] for row in rows)
    assert all(a["seconds"] <= b["seconds"] and a["steps"] <= b["steps"] for a, b in pairwise(rows))
    assert len(list(bench.watch(*PAIRS["normal-8gaussians"], test, checks=(0.2, 0.4), enough=100.0, seed=0))) == 1
