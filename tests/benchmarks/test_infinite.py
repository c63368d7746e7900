"""The naive kernels against the closed form and driftway's, comparisons where the answer is known, and processes that answer and fail."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import infinite as bench
from benchmarks import neural_tangents as peer
from driftway.kernels.infinite import FullyConnected

MB = 2**20
linux = pytest.mark.skipif(not peer.RESET.exists(), reason="needs Linux's count of the peak")


@pytest.fixture
def x():
    return torch.randn(40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("depth", [0, 1, 6])
def test_the_whole_matrices_are_those_of_driftway_and_of_the_closed_form(x, depth):
    kernels = bench.whole_matrices(x, depth, 1.5, 0.05)
    ours = FullyConnected(depth, w_std=1.5, b_std=0.05).kernels(x)
    for K, own, known in zip(kernels, (ours.nngp, ours.ntk), bench.diagonals(x.numpy(), depth, 1.5, 0.05), strict=True):
        off = (K - own).fill_diagonal_(0).abs().max()
        assert off < 1e-14 * own.abs().max()
        assert own.diagonal().numpy() == pytest.approx(known, rel=1e-13)
        assert K.diagonal().numpy() == pytest.approx(known, rel=1e-6)  # theta = (1 - c^2)^(1/2) of a c that is 1 but for rounding


@pytest.mark.parametrize("place", [(0, 1), (255, 256), (299, 0)])
def test_one_wrong_entry_is_found_and_the_diagonal_left_out(place):
    two = np.random.default_rng(0).uniform(-2, -1, (300, 300))
    one = two + np.diag(np.ones(300))
    assert bench.difference(one, two) == 0
    one[place] *= 1.001
    assert bench.difference(one, two) == pytest.approx(1e-3)
    one[place] = np.nan
    assert np.isnan(bench.difference(one, two))


def figures(ours=1.0, theirs=6.0, held=210):
    """Two methods in both dtypes. The results of 10 rows are 200 numbers; a call holds `held`."""
    return [{"method": method, "dtype": dtype, "seconds": [9 * s, 0.9 * s, s], "first": 1.0, "bytes": held * size}
            for size, dtype in ((4, "float32"), (8, "float64")) for method, s in ((bench.OURS, ours), (bench.PEER, theirs))]  # fmt: skip


def test_summary_is_the_median_over_ours_and_the_peak_over_the_results():
    ours, theirs, *_ = bench.summarise(figures(held=200), 10)
    assert (ours["ratio"], ours["results"]) == (1, 1)
    assert (theirs["least"], theirs["median"], theirs["ratio"]) == (pytest.approx(5.4), 6, 6)
    (alone,) = bench.summarise(figures()[1:2], 10)
    assert alone["ratio"] is None


@pytest.mark.parametrize(("theirs", "held", "fast", "small"), [(6.0, 220, [True, True], True), (5.9, 221, [False, True], False),
                                                               (3.9, 100, [False, False], True)])  # fmt: skip
def test_goals_at_their_limits(theirs, held, fast, small):
    accuracy = [{"what": "driftway against neural-tangents, float64", "nngp": 1e-12, "ntk": 1.1e-12}]
    speed, memory, equal = bench.goals(bench.summarise(figures(theirs=theirs, held=held), 10), accuracy)
    assert [check[-1] == "met" for check in speed.checks] == fast
    assert memory.met is small
    assert [check[-1] for check in equal.checks] == ["met", "not met"]


def test_what_was_not_measured_meets_no_goal():
    missing = [{"method": bench.PEER, "dtype": "float32", "why": "no network"}]
    for rows in ([], figures()[::2]):
        speed, _, equal = bench.goals(bench.summarise(rows, 10), [])
        assert not any(check[-1] == "met" for check in (*speed.checks, *equal.checks))
    assert bench.tables([], missing, [])[-1].rows == [["float32", bench.PEER, "no network"]]


def test_an_environment_that_cannot_be_built_leaves_a_reason_and_nothing_else(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "peer"

    def run(command, **_):
        folder.mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, int("pip" in command), "", "WARNING: slow\nERROR: No matching distribution\nbye\n")

    monkeypatch.setattr(bench.subprocess, "run", run)
    with pytest.raises(bench.NotRunError, match=r"no environment with a==1: ERROR: No matching distribution"):
        bench.build(folder, ["a==1"])
    assert not folder.exists()
    assert str(folder) in capsys.readouterr().out


def test_without_the_environment_both_forms_of_the_peer_are_left_out_by_name(monkeypatch):
    def build():
        raise bench.NotRunError("offline")

    monkeypatch.setattr(bench, "build", build)
    protocol = bench.available(bench.QUICK)
    assert protocol.methods == (bench.OURS, bench.WHOLE)
    assert protocol.left_out == {**bench.QUICK.left_out, bench.PEER: "offline", bench.BLOCKS: "offline"}


def test_an_environment_is_built_once_for_its_pins(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(bench.subprocess, "run", lambda command, **_: ran.append(command) or subprocess.CompletedProcess(command, 0))
    for pins, commands in ((["a==1"], 2), (["a==1"], 2), (["a==2"], 4)):
        bench.build(tmp_path, pins)
        assert len(ran) == commands


@linux
def test_memory_is_that_of_one_call_at_its_peak():
    def compute():
        np.ones(32 * MB, np.uint8)
        return np.ones(16 * MB, np.uint8), np.ones(8 * MB, np.uint8)

    for _ in range(2):  # the larger peak of a first call is forgotten
        assert peer.memory(compute) / MB == pytest.approx(32, abs=2)


SERVE = """
import json, sys
from benchmarks import neural_tangents as peer
def prepare(order, x):
    print("a library says hello")
    return lambda: (x + 1, 1 / (order["divisor"] * x)), {"numpy": "any"}
peer.serve(json.loads(sys.argv[-1]), prepare)
"""


@pytest.fixture
def process(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    order = json.dumps({"inputs": str(tmp_path / "x.npy"), "dtype": "float32", "divisor": 2})
    with (tmp_path / "log").open("w") as log:
        process = bench.Process([sys.executable, "-c", SERVE, order], log)
        yield process
        process.process.communicate()


def test_a_process_answers_and_what_libraries_print_is_no_answer(process, tmp_path):
    assert process.answer() == {"numpy": "any"}
    assert 0 < process.ask("time") < 1
    process.ask("save", str(tmp_path / "a.npy"), str(tmp_path / "b.npy"))
    one, two = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert (one == 2).all()
    assert (two == 0.5).all()
    assert one.dtype == np.float32


def test_a_process_that_fails_says_why(process):
    process.answer()
    with pytest.raises(bench.NotRunError, match=r"ended with code 1: FileNotFoundError: .*nowhere"):
        process.ask("save", "/nowhere/a.npy", "/nowhere/b.npy")
    with pytest.raises(bench.NotRunError, match="nowhere"):
        process.ask("time")
