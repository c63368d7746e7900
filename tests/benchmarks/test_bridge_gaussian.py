"""The measure on laws whose answer is known, and verdicts on constructed figures."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from benchmarks import bridge_scores
from benchmarks.bridge_gaussian import Protocol, evaluate
from benchmarks.bridge_scores import CROSS, GRID, MIXTURES, NETWORK, PEERS, PUBLISHED, RESIDUAL, STEPS
from driftway.transport import MixtureValue
from tests.closed_forms.answers import symmetric_bridge


def perfect(x, steps, seed):
    """Paths of the exact bridge: the end from its law, then the Brownian bridge, at independent times."""
    own = torch.Generator().manual_seed(seed)
    d = x.shape[1]
    end = symmetric_bridge(d).end_mean(x.double(), 0.0) + CROSS**0.5 * torch.randn(x.shape, generator=own, dtype=torch.float64)
    times = torch.linspace(0, 1, GRID + 1, dtype=torch.float64)[:, None, None]
    return (1 - times) * x + times * end + (times * (1 - times)).sqrt() * torch.randn(GRID + 1, *x.shape, generator=own)


@pytest.mark.parametrize("t", [0.3, 1.0])
def test_divergence_is_that_of_the_closed_form_of_the_pair(t):
    d, own = 3, torch.Generator().manual_seed(0)
    mean, root = torch.randn(d, generator=own).double(), torch.randn(d, d, generator=own).double()
    covariance = root @ root.T + torch.eye(d)
    known = kl_divergence(MultivariateNormal(mean, covariance), MultivariateNormal(*symmetric_bridge(d).marginal(t)))
    assert bridge_scores.divergence(mean, covariance, t) == pytest.approx(float(known))


@pytest.mark.parametrize(("n", "d"), [(30, 4), (400, 20)])
def test_the_floor_is_the_mean_divergence_of_fitted_gaussians(n, d):
    own, repeats = torch.Generator().manual_seed(1), 400
    found = []
    for _ in range(repeats):
        x = 0.1 + torch.randn(n, d, generator=own, dtype=torch.float64)
        found.append(bridge_scores.divergence(x.mean(0), x.T.cov(), 1.0))
    found = torch.tensor(found)
    assert abs(float(found.mean()) - bridge_scores.floor(n, d)) < 4 * float(found.std()) / repeats**0.5


def test_perfect_paths_score_nothing_and_wrong_ones_their_divergence():
    d, n = 4, 20_000
    found = bridge_scores.score(perfect, d, n=n, steps=20, seed=0)
    noise = 1000 * (2 * d * (d + 3) / 2) ** 0.5 / (2 * n)  # standard deviation of one KL: half a chi-square over n
    assert abs(found["kl"]) < 4 * noise
    assert abs(found["last"]) < 4 * noise
    assert found["raw"] == pytest.approx(found["kl"] + 1000 * bridge_scores.floor(n, d))
    assert found["cross"] == pytest.approx(CROSS, abs=4 / (n * d) ** 0.5)
    shifted = bridge_scores.score(lambda x, steps, seed: perfect(x, steps, seed) + 0.2, d, n=n, steps=20, seed=0)
    times = torch.linspace(0, 1, GRID + 1, dtype=torch.float64)[1:]
    known = 1000 * (d * 0.2**2 / 2 / torch.stack([symmetric_bridge(1).marginal(float(t))[1][0, 0] for t in times])).mean()
    assert shifted["kl"] == pytest.approx(float(known), rel=0.05)


def test_paths_that_leave_the_numbers_have_no_figure():
    found = bridge_scores.score(lambda x, steps, seed: perfect(x, steps, seed) * math.nan, 2, n=10_000, steps=20, seed=0)
    assert set(found.values()) == {None}


def test_the_exact_component_has_no_divergence_by_its_moments_and_another_one_has():
    d = 3
    value = MixtureValue((d,), components=1).double().requires_grad_(False)
    S = CROSS
    value.log_diagonal.fill_(math.log(S) / 2)
    value.r.fill_(0.1 + 0.1 * S)
    found = bridge_scores.exact_moments(value)
    assert found["kl"] == pytest.approx(0, abs=1e-9)
    assert found["cross"] == pytest.approx(CROSS)
    value.r.fill_(0.1 + 0.1 * S + 0.5)
    assert bridge_scores.exact_moments(value)["last"] == pytest.approx(1000 * d * 0.5**2 / 2)


def figures(network, mixture, peer):
    """One figure per method, dimension and seed; the second seed adds 0.1."""
    rows = []
    for method, kl in ((NETWORK, network), (RESIDUAL, network), *[(name, mixture) for name in MIXTURES], *[(name, peer) for name in PEERS]):
        for d in (5, 20):
            for steps in STEPS[:1] if method in MIXTURES else STEPS:
                for seed in (0, 1):
                    value = None if kl is None else kl + 0.1 * seed
                    rows.append({"d": d, "method": method, "steps": steps, "seed": seed, "kl": value, "last": value, "cross": 0.6})
    return rows


@pytest.mark.parametrize(("network", "met"), [(1.0, [True, True]), (1.2, [False, True]), (2.5, [False, False]), (None, [False, False])])
def test_goals_are_met_in_every_dimension_or_not_at_all(network, met):
    """The mean over seeds is 0.05 above the first; DSBM-IPF is at 1.23 in five dimensions, the peer here at 2.05."""
    found = bridge_scores.goals(figures(network, 0.5, 2.0), (5, 20))
    assert [goal.met for goal in found] == [True, True, *met, *met]


def test_a_peer_that_was_not_run_proves_nothing():
    single = [row for row in figures(1.0, 0.5, 2.0) if row["method"] not in PEERS]
    assert [goal.met for goal in bridge_scores.goals(single, (5, 20))] == [True, False] * 3


def test_tables_hold_published_figures_apart_and_are_rectangular():
    trainings = [{"d": d, "seed": seed, "method": method, "steps": 9, "seconds": 1.0, "kl": 0.1, "last": 0.2, "cross": 0.6}
                 for d in (5, 20) for seed in (0, 1) for method in (*MIXTURES, NETWORK, RESIDUAL, *PEERS)]  # fmt: skip
    found = evaluate({"single": figures(1.0, 0.5, None), "trainings": trainings}, Protocol((5, 20), (0, 1), 1.0, 10_000))
    for table in found["tables"]:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    last = found["tables"][0].rows[-len(PUBLISHED) :]
    assert [row[0] for row in last] == ["published: DSBM-IPF", "published: SB-CFM"]
    assert last[0][2:4] == [1.23, 4.42]
