"""Verdicts on constructed numbers, where the answer is known, and RESULTS.md from a synthetic result file."""

import json
import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from benchmarks import peers, results, scores
from benchmarks.record import Goal, Record, Table, read, write
from benchmarks.scores import MIXTURE, NETWORK, PEER, TUNED
from driftway.transport import path_energy

FLOOR = 0.1


def rows(w2, seeds=(0, 1)):
    """Figures and floors of one task from {(method, steps): W2 at seed 0}; each further seed adds 0.02 to all W2, none to the floor."""
    figures = [{"task": "a", "method": method, "steps": steps, "seed": seed, "w2": value and value + 0.02 * seed, "npe": 0.5}
               for (method, steps), value in w2.items() for seed in seeds]  # fmt: skip
    return figures, [{"task": "a", "seed": seed, "floor": FLOOR} for seed in seeds]


def few(w2, **other):
    return scores.few_steps_goal(scores.summarise(*rows(w2, **other)))


def test_summary_is_mean_spread_and_seedwise_ratio():
    summary = scores.summarise(*rows({(NETWORK, 1): 0.2, (PEER, 1): 0.4}))
    own = next(row for row in summary if row["method"] == NETWORK)
    assert own["w2"] == pytest.approx(0.21)
    assert own["w2_std"] == pytest.approx(0.02 / math.sqrt(2))
    assert own["ratio"] == pytest.approx((0.2 / 0.4 + 0.22 / 0.42) / 2)
    assert own["floor"] == pytest.approx(FLOOR)


@pytest.mark.parametrize(("ours", "met"), [(0.299, True), (0.301, False), (0.49, False), (0.51, False)])
def test_excess_must_be_at_most_half(ours, met):
    goal = few({(NETWORK, 4): ours, (PEER, 100): 0.5}, seeds=(0,))  # allowed: 0.1 + (0.5 - 0.1)/2 = 0.3
    assert goal.met is met
    assert goal.checks[0][5] == pytest.approx((ours - FLOOR) / (0.5 - FLOOR))


def test_a_peer_below_the_floor_is_not_beaten_by_less():
    assert not few({(NETWORK, 4): 0.095, (PEER, 100): 0.09}, seeds=(0,)).met


def test_the_better_family_and_step_count_enter_and_more_steps_do_not():
    w2 = {(MIXTURE, 1): 0.6, (NETWORK, 1): 0.7, (NETWORK, 4): 0.25, (NETWORK, 20): 0.11, (PEER, 100): 0.5, (PEER, 4): 0.1}
    (check,) = few(w2, seeds=(0,)).checks
    assert check[1] == f"{NETWORK}, 4 steps"
    assert check[2] == pytest.approx(0.25)
    (check,) = few({**w2, (MIXTURE, 1): 0.2}, seeds=(0,)).checks
    assert check[1] == f"{MIXTURE}, 1 step"


def test_one_lost_step_count_loses_the_equal_steps_goal():
    figures, floors = rows({(NETWORK, 1): 0.3, (PEER, 1): 0.4, (NETWORK, 20): 0.3, (PEER, 20): 0.2, (MIXTURE, 20): 0.1, (TUNED, 1): 0.1})
    goal = scores.equal_steps_goal(scores.summarise(figures, floors), figures)
    assert [check[-1] for check in goal.checks] == ["met", "not met"]
    assert [check[-2] for check in goal.checks] == ["2 of 2", "0 of 2"]
    assert not goal.met
    assert goal.verdict == "not met (1 of 2)"


def test_a_diverged_path_loses_and_an_unmeasured_one_proves_nothing():
    assert not few({(NETWORK, 4): None, (PEER, 100): 0.5}).met
    assert few({(NETWORK, 4): 0.2, (PEER, 100): None}).met
    assert not few({(NETWORK, 4): 0.2}).met
    assert not Goal("nothing", [], []).met


@pytest.mark.parametrize(("lower", "upper", "holds"), [(0.9, 1.1, True), (1.0, 1.0, True), (1.01, 1.1, False), (0.9, 0.99, False)])
def test_bracket(lower, upper, holds):
    assert scores.brackets(lower, 1.0, upper) is holds


@pytest.fixture
def record():
    figures, floors = rows({(NETWORK, 4): 0.2, (PEER, 100): 0.5, (PEER, 4): None})
    summary = scores.summarise(figures, floors)
    goals = [scores.few_steps_goal(summary), Goal("Pigs fly", ["what", "verdict"], [["a|b", "not met"]])]
    runs = [{"task": "a", "seed": seed, "method": NETWORK, "steps": 100, "seconds": 1.0, "parameters": 7, "lower": 0.9, "upper": 1.2,
             "gap": 0.25} for seed in (0, 1)]  # fmt: skip
    tests = [{"task": "a", "seed": seed, "floor": FLOOR, "squared_w2": 2.0} for seed in (0, 1)]
    return Record(name="toy", title="A toy", command="python -m benchmarks.toy", quick=False, seeds=(0, 1), protocol={"n": 8},
                  notes=["A note."], figures={"single": figures, "summary": summary}, goals=goals, complete=True,
                  tables=[*scores.tables(summary, floors, runs, tests), Table("Bare", ["x"], [[None], [0.123456]])])  # fmt: skip


def test_a_result_file_reads_back_as_it_was_written(record, tmp_path):
    path = tmp_path / "toy.json"
    write(replace(record, complete=False), path)
    assert not path.exists()
    assert json.loads((tmp_path / "toy.json.part").read_text())["complete"] is False
    write(record, path)
    assert [file.name for file in tmp_path.iterdir()] == ["toy.json"]
    assert results.document([read(path)]) == results.document([record])
    assert [goal["met"] for goal in json.loads(path.read_text())["goals"]] == [True, False]


def test_results_show_the_floor_the_losses_and_where_they_were_made(record):
    text = results.document([record])
    for piece in ("python -m benchmarks.toy", record.date, record.machine["cpu"], "torch", "A note.", "**met (1 of 1)**",
                  "Pigs fly: **not met", "| floor: two independent target sets | 0.100 ± 0.000 |", "diverged", "0.210 ± 0.014",
                  "| holds |", "| 0.1235 |", r"a\|b"):  # fmt: skip
        assert piece in text
    assert "short form" not in text
    assert "short form" in results.section(replace(record, quick=True))
    assert "Unfinished" in results.section(replace(record, complete=False))


def test_every_table_of_the_document_is_rectangular(record):
    text = results.document([record]).replace(r"\|", "")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 7
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1


def test_published_schedule_is_constant_and_the_tuned_one_falls():
    published, tuned, _ = peers.RECIPES
    assert {published.step_size(k) for k in (0, 10, 10_000)} == {1e-3}
    assert tuned.step_size(10**6) / tuned.step_size(4 * 10**6) == pytest.approx(2, rel=1e-3)  # 1/sqrt(k) in the end


class Field(nn.Module):
    """v(x, t) = rate x + 2 t in every coordinate."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, z):
        return self.rate * z[:, :-1] + 2 * z[:, -1:]


def test_euler_steps_are_eulers():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    for rate, steps in product((0.0, 0.7), (1, 4, 20)):
        path = peers.follow(Field(rate), x, steps)
        h = 1 / steps  # x_k+1 = (1 + rate h) x_k + 2 h^2 k, solved by summing the geometric terms
        grown = (1 + rate * h) ** steps * x + sum(2 * h * h * k * (1 + rate * h) ** (steps - 1 - k) for k in range(steps))
        torch.testing.assert_close(path.states[-1], grown, rtol=1e-6, atol=1e-6)
        assert path_energy(path) == pytest.approx(float(path.actions.square().sum(2).mean()), rel=1e-5)
