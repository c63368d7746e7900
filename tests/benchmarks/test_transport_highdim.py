"""Pairs with a known optimal map, their scores, and the verdicts of the benchmark where the answer is known."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import pairs, peers
from benchmarks import transport_highdim as bench
from benchmarks.record import Record, read, write
from benchmarks.transport_highdim import EXACT, NETWORK, RESIDUAL, TUNED
from driftway.transport import w2


def own(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("name", pairs.PAIRS)
def test_the_map_is_the_gradient_of_a_convex_function(name, d):
    pair = pairs.PAIRS[name](d, 0)
    for x in pair.source(20, own()):
        J = torch.autograd.functional.jacobian(lambda x: pair.optimal(x[None])[0], x)
        torch.testing.assert_close(J, J.T, atol=2e-4, rtol=1e-3)
        assert float(torch.linalg.eigvalsh(J).min()) > 0


@pytest.mark.parametrize("name", pairs.PAIRS)
def test_no_other_pairing_of_drawn_rows_costs_less(name):
    pair = pairs.PAIRS[name](3, 1)
    x = pair.source(256, own())
    y = pair.optimal(x)
    assert w2(x, y) ** 2 == pytest.approx(float((x - y).square().sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize("name", pairs.PAIRS)
def test_targets_are_standard_seeds_differ_and_repeat(name):
    y = pairs.PAIRS[name](4, 0).target(20_000, own())
    assert float(y.mean(0).abs().max()) < 0.05
    assert float(y.var(0).mean()) == pytest.approx(1, abs=0.05)
    rows, again, other = (pairs.PAIRS[name](4, seed).target(5, own()) for seed in (0, 0, 1))
    assert torch.equal(rows, again)
    assert not torch.allclose(rows, other)


def test_gaussians_have_the_covariance_of_their_closed_form():
    pair = pairs.gaussians(3, 0)
    x, fresh = pair.source(100_000, own()), pair.target(100_000, own(1))
    A = pair.optimal(torch.eye(3)) - pair.optimal(torch.zeros(1, 3))
    torch.testing.assert_close(torch.cov(fresh.T), A.T @ torch.cov(x.T) @ A, atol=0.05, rtol=0.05)
    assert pairs.linear(x[:1000], pair.optimal(x[:1000])) == pytest.approx(0, abs=1e-6)


def test_scores_of_known_ends():
    x = torch.randn(50_000, 2, generator=own()).double()
    y = 3 * x + 1
    assert pairs.score(y, x, y) == pytest.approx((0, 1))
    assert pairs.score(y.mean(0).expand_as(y), x, y)[0] == pytest.approx(100, rel=1e-3)  # a constant leaves all of the variance
    assert pairs.score(y + 0.3, x, y)[0] == pytest.approx(100 * 0.09 / 9, rel=0.02)
    assert pairs.score(x - (y - x), x, y)[1] == pytest.approx(-1)
    square = torch.stack([x[:, 0] ** 2, x[:, 1]], 1)  # x^2 is uncorrelated with x: its variance 2 of 3 is unexplained
    assert pairs.linear(x, square) == pytest.approx(100 * 2 / 3, rel=0.03)


def figure(method, steps, uvp, d=16, seed=0):
    cosine = None if uvp is None else 0.9
    return {"pair": "ridges", "d": d, "seed": seed, "method": method, "steps": steps, "uvp": uvp, "cosine": cosine}


@pytest.mark.parametrize(("ours", "theirs", "met"), [(1.0, 1.1, True), (1.1, 1.0, False), (1.0, 1.0, False), (1.0, None, True),
                                                     (None, 1.0, False), (None, None, False)])  # fmt: skip
def test_the_lower_figure_wins_and_divergence_loses(ours, theirs, met):
    summary = bench.summarise([figure(RESIDUAL, 1, ours), figure(EXACT, 1, theirs), figure(EXACT, 20, theirs)])
    for way in bench.GOALS:
        assert bench.goal(summary, EXACT, *way).met is met
        assert not bench.goal(summary, TUNED, *way).met  # nothing measured, nothing proven


def test_only_few_steps_of_ours_and_many_of_the_peer_enter():
    ours = [figure(RESIDUAL, 20, 0.1), figure(RESIDUAL, 4, 3.0), figure(NETWORK, 2, 2.0)]
    summary = bench.summarise([*ours, figure(EXACT, 4, 0.5), figure(EXACT, 20, 2.5)])
    (check,) = bench.goal(summary, EXACT, *bench.GOALS[0]).checks
    assert check == ["ridges", 16, f"{NETWORK}, 2 steps", 2.0, 2.5, 0.8, "met"]


def test_summary_is_mean_and_spread_over_seeds_and_tables_show_them():
    summary = bench.summarise([figure(EXACT, 1, 1.0), figure(EXACT, 1, 3.0, seed=1),
                               figure(EXACT, 4, None), figure(EXACT, 4, 1.0, seed=1)])  # fmt: skip
    assert (summary[0]["uvp"], summary[0]["seeds"]) == (2.0, 2)
    table = bench.tables(summary, [], [{"pair": "ridges", "d": 16, "seed": 0, "uvp": 12.0}])[0]
    assert list(table.rows[0]) == ["best affine map", "12.000", None, None, None]
    assert list(table.rows[1]) == [EXACT, "2.000 ± 1.414 (0.900)", None, "diverged", None]


def test_wide_mixtures_are_left_out_and_everything_else_is_in():
    protocol = bench.Protocol((("ridges", 64), ("ridges", 128)), (0, 1), 1.0, 100, 100)
    assert {d: len([cell for cell in protocol.cells if cell[1:3] == (d, 1)]) for d in (64, 128)} == {64: 7, 128: 5}


def test_peers_learn_from_rows_and_have_the_width_asked_for():
    pytest.importorskip("torchcfm")
    rows = torch.randn(500, 2, generator=own())
    recipe = replace(bench.PEERS[bench.INDEPENDENT], lr=0.02)
    peers.train(recipe, rows, rows, seconds=0.01, seed=0)  # PyTorch loads parts of itself at first use
    network = peers.train(recipe, rows, rows + 3, seconds=1.0, seed=0, width=8).network
    assert next(p.shape for p in network.parameters()) == (8, 3)
    moved = peers.follow(network, rows, 4).states[-1] - rows
    assert float((moved.mean(0) - 3).abs().max()) < 1


def test_a_short_run_end_to_end(tmp_path):
    pytest.importorskip("torchcfm")
    protocol = bench.Protocol((("gaussians", 3),), (0,), 0.3, 2048, 256)
    found = {"figures": [], "trainings": [], "linear": []}
    for method in (RESIDUAL, "driftway mixture, K = 1", EXACT):
        for name, rows in bench.measure_cell(protocol, "gaussians", 3, 0, method).items():
            found[name].extend(rows)
    record = Record(name="transport_highdim", title="", command="", quick=True, seeds=(0,), protocol={}, notes=bench.NOTES,
                    complete=True, **bench.evaluate(found))  # fmt: skip
    write(record, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["goals"][0]["checks"] == read(tmp_path / "r.json").goals[0].checks
    assert found["linear"][0]["uvp"] < 1e-4
    at = {(f["method"], f["steps"]): f["uvp"] for f in found["figures"]}
    assert at[RESIDUAL, 1] < 5  # its base is the answer
