"""Scores and verdicts of the conditional benchmark where the answer is known, and its peers on laws with known means."""

import json
from math import exp, inf, isfinite
from statistics import median

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from benchmarks import conditional_peers as methods
from benchmarks import transport_conditional as bench
from benchmarks.conditional_peers import METHODS, NAMES, OURS
from benchmarks.record import Record, read, write
from driftway.transport import Settings

FLOORS = {"a": {"accuracy": 0.98, "w2": 1.0, "w2_top": 1.1, "mmd": -0.1, "mmd_top": 0.2}}
GOOD = {"accuracy": 0.97, "w2": 1.3, "mmd": 2.0}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def figure(method, steps, guidance=1.0, seed=0, **changed):
    return {"task": "a", "method": method, "guidance": guidance, "steps": steps, "seed": seed, "energy": 2.0, "seconds": 0.1, "astray": 0.0,
            **GOOD, **changed}  # fmt: skip


def goal(ours, peer):
    summary = bench.summarise([figure(OURS, bench.FEW, **ours), figure("I-CFM", bench.MANY, **peer)])
    return bench.few_steps_goal(summary, FLOORS, "I-CFM")


def test_mmd_equals_the_double_loop():
    x, y, h = normal(5, 2, 2).double(), normal(7, 2, 2, seed=1).double() + 0.5, 1.3

    def k(a, b):
        return sum(exp(-float((a - b).square().sum()) / (2 * s * h * h)) for s in bench.FACTORS) / len(bench.FACTORS)

    xx = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
    yy = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 42
    xy = sum(k(a, b) for a in x for b in y) / 35
    assert bench.squared_mmd(x, y, h) == pytest.approx(xx + yy - 2 * xy, abs=1e-12)


def test_mmd_has_no_bias_and_sees_another_law():
    same = [bench.squared_mmd(normal(40, 3, seed=2 * i), normal(40, 3, seed=2 * i + 1), 2.0) for i in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 200**0.5
    assert min(same) < 0
    assert bench.squared_mmd(normal(40, 3), normal(40, 3, seed=1) + 1, 2.0) > max(same)
    assert bench.squared_mmd(0.3 * normal(40, 3), normal(40, 3, seed=1), 2.0) > max(same)  # less spread is seen as well


def test_astray_counts_samples_and_not_entries():
    rows, x = torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.5, 1.5], [-0.51, 0.5], [2.0, 2.0], [0.0, torch.nan], [torch.inf, 0.0]])
    assert bench.astray(x, rows) == pytest.approx(4 / 5)


@pytest.mark.parametrize(("ours", "peer", "met"), [
    ({}, {}, True),
    ({"accuracy": 0.966}, {}, True), ({"accuracy": 0.964}, {}, False),
    ({"w2": 1.31}, {}, False), ({"mmd": 2.01}, {}, False),
    ({"w2": 1.09}, {"w2": 0.9}, True), ({"w2": 1.11}, {"w2": 0.9}, False),
    ({"mmd": 0.19}, {"mmd": -0.3}, True), ({"mmd": 0.21}, {"mmd": -0.3}, False),
    ({}, bench.WORST, True), (bench.WORST, {}, False), (bench.WORST, bench.WORST, False),
])  # fmt: skip
def test_the_goal_needs_accuracy_and_both_distances(ours, peer, met):
    assert goal(ours, peer).met is met


def test_only_few_steps_of_ours_many_of_the_peer_and_equal_guidance_enter():
    figures = [figure(OURS, 20, w2=0.1), figure(OURS, 2, 2.0, w2=0.1), figure("I-CFM", 2, w2=0.1), figure(OURS, 2), figure("I-CFM", 20)]
    found = bench.few_steps_goal(bench.summarise(figures), FLOORS, "I-CFM")
    assert [check[:2] for check in found.checks] == [["a", 1.0]]
    assert found.met
    assert not bench.few_steps_goal(bench.summarise(figures), FLOORS, "OT-CFM").met  # nothing measured, nothing proven


def test_one_sample_astray_of_ours_fails_and_of_a_peer_does_not():
    figures = [figure(OURS, 1), figure(OURS, 20), figure(OURS, 20, seed=1), figure("I-CFM", 1, astray=1.0)]
    assert bench.no_divergence_goal(bench.summarise(figures)).met
    figures[2]["astray"] = 0.002
    assert bench.no_divergence_goal(bench.summarise(figures)).verdict == "not met (1 of 2)"


def test_summary_is_mean_and_spread_over_seeds():
    (row,) = bench.summarise([figure(OURS, 1, w2=1.0), figure(OURS, 1, seed=1, w2=2.0, mmd=inf)])
    assert (row["w2"], row["seeds"]) == (1.5, 2)
    assert row["w2_std"] == pytest.approx(0.5**0.5)
    assert row["mmd"] == inf
    assert row["mmd_std"] is None


def test_real_rows_are_split_as_the_classifier_splits_them():
    real = bench.refer("digits, perceptron", 1)
    assert (len(real.test), len(real.train)) == (500, 1297)
    right = real.judge.predict(real.test.flatten(1).numpy()) == real.test_labels.numpy()
    assert right.mean() == real.judge.accuracy == real.known["accuracy"] < 1  # its own training rows would be all right
    assert real.h == pytest.approx(median(torch.pdist(real.train[:1000].flatten(1).double()).tolist()), rel=1e-3)
    assert 1 < real.known["w2"] < real.known["w2_top"] < 2
    assert abs(real.known["mmd"]) < 2


def test_pairs_are_the_exact_plan_of_each_class():
    x, y, c = normal(12, 2), normal(12, 2, seed=1), torch.arange(12) % 3
    paired = methods.pair_in_classes(x, y, c)
    for label in range(3):
        i = c == label
        C = torch.cdist(x[i], y[i]).square()
        assert float((paired[i] - y[i]).square().sum()) == pytest.approx(float(C[linear_sum_assignment(C)].sum()), rel=1e-5)
        assert sorted(paired[i][:, 0].tolist()) == sorted(x[i][:, 0].tolist())


@pytest.mark.parametrize("family", ["vector", "image"])
def test_an_untrained_peer_is_the_network_of_ours_and_moves_by_alpha(family):
    pytest.importorskip("torchcfm")
    task = methods.Task(lambda: (torch.empty(0), torch.empty(0)), 1, family, Settings(width=16, base=8, batch=16, candidates=16),
                        tuple(methods.Recipe(name, 16) for name in NAMES))  # fmt: skip
    rows, labels = normal(64, 4, 4), torch.arange(64) % 2
    ours, peer = (methods.train(task, method, rows, labels, seconds=0.0, seed=0).model for method in (OURS, "I-CFM"))
    assert peer.shape == ours.shape
    sizes = [{name: tensor.shape for name, tensor in model.value_function.named_parameters()} for model in (ours, peer)]
    assert sizes[0] == sizes[1]
    x, t = normal(3, 16), torch.tensor([0.0, 0.5, 0.75])
    factor = torch.tensor([-1.0, 0.0, 0.8])[:, None]  # -(1 - 2t) / ((1 - t)^2 + t^2)
    torch.testing.assert_close(-peer.value_function.gradient(x, t, torch.tensor([0, 1, -1])), factor * x)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_two_classes(method):
    pytest.importorskip("torchcfm") if method != OURS else None
    task = methods.Task(lambda: (torch.empty(0), torch.empty(0)), 1, "vector", Settings(width=32, batch=32, candidates=64),
                        tuple(methods.Recipe(name, 64, 5e-3) for name in NAMES))  # fmt: skip
    labels = torch.arange(400) % 2
    rows = (2.0 * labels - 1)[:, None, None] + 0.1 * normal(400, 2, 2)
    trained = methods.train(task, method, rows, labels, seconds=1.0, seed=0)
    x = trained.model.sample(200, steps=4, label=torch.arange(200) % 2, guidance=2.0)
    assert trained.steps > 5
    assert (x.mean((1, 2)).sign() == 2.0 * (torch.arange(200) % 2) - 1).double().mean() > 0.9


def test_record_and_picture_of_synthetic_figures(tmp_path):
    task = next(iter(bench.TASKS))
    figures = [{**figure(method, steps, w), "task": task} for method in METHODS for w in bench.GUIDANCE for steps in bench.STEPS]
    figures[0] |= bench.WORST
    real = [{"task": task, "seed": 0, **FLOORS["a"]}]
    trainings = [{"task": task, "method": method, "seed": 0, "steps": 10, "seconds": 4.0, "parameters": 5} for method in METHODS]
    fields = bench.evaluate({"figures": figures, "trainings": trainings, "real": real})
    assert [len(goal.checks) for goal in fields["goals"]] == [2] * 6 + [8]
    assert fields["tables"][0].rows[0][1] == "0.000"
    assert fields["tables"][1].rows[0][1] == "diverged"
    record = Record(name="c", title="C", command="", quick=True, seeds=[0], protocol={}, notes=[], complete=True, **fields)
    write(record, tmp_path / "c.json")
    assert len(read(tmp_path / "c.json").goals) == 7
    assert isfinite(json.loads((tmp_path / "c.json").read_text())["figures"]["summary"][1]["w2"])
    samples = [{**f, "rows": torch.rand(10, 8, 8)} for f in [*figures, {**figure("real", 0, 0.0), "task": task}]]
    bench.draw(samples, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
