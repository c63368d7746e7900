"""Stacking: expectation maximisation against a grid, densities against scipy, and what candidates share."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from driftway.adapt import dino_init, dino_train
from driftway.adapt.dino_init import Settings, first_stage
from driftway.adapt.frame import frame
from driftway.adapt.shift import Shift
from driftway.adapt.stacking import ALPHA, PROCESSES, candidate, candidates, densities, stack
from driftway.kernels import FullyConnected

DOUBLE = torch.float64
SETTINGS = Settings(network=FullyConnected(1, "relu", w_std=2**0.5, b_std=0.3), base=6, rank=2, steps=4)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def shift(k: int = 1, *, labels: int = 6) -> Shift:
    n = 15 + labels + 4
    X, code = normal(n, 2, seed=0), torch.tensor([1] * 15 + [-1] * (labels + 4))
    y = torch.stack([X[:, 0].sin() + 0.4 * (code < 0) + j * X[:, -1] for j in range(k)], 1) + 0.1 * normal(n, k, seed=1)
    y[15 + labels :] = math.nan
    return Shift.from_domains(X, y, code)


def objective(table: Tensor, w: Tensor, alpha: float = ALPHA) -> float:
    return float((table + w.log()).logsumexp(1).sum() + alpha * w.log().sum())


class TestWeights:
    @pytest.mark.parametrize("alpha", [0.5, 2.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_the_best_of_a_grid_for_two(self, alpha: float, seed: int):
        table = 1.5 * normal(7, 2, seed=seed)
        grid = torch.linspace(1e-5, 1 - 1e-5, 100_001, dtype=DOUBLE)
        values = torch.logaddexp(table[:, :1] + grid.log(), table[:, 1:] + (1 - grid).log()).sum(0) + alpha * (grid * (1 - grid)).log()
        best = float(grid[values.argmax()])
        w = stack(table, alpha=alpha)
        assert float(w[0]) == pytest.approx(best, abs=2e-5)
        assert float(w.sum()) == pytest.approx(1)

    def test_no_direction_improves_for_four(self):
        table = 1.5 * normal(9, 4, seed=0)
        w = stack(table)
        slope = (table - (table + w.log()).logsumexp(1, keepdim=True)).exp().sum(0) + ALPHA / w
        torch.testing.assert_close(slope, torch.full((4,), 9 + 4 * ALPHA, dtype=DOUBLE))  # the multiplier of sum w = 1

    def test_every_step_increases_the_objective(self, monkeypatch: pytest.MonkeyPatch):
        table, values = 3 * normal(8, 3, seed=1), []
        for rounds in range(12):
            monkeypatch.setattr("driftway.adapt.stacking.ROUNDS", rounds)
            values.append(objective(table, stack(table)))
        assert all(b > a for a, b in pairwise(values))

    def test_without_labels_all_count_alike(self):
        assert stack(torch.zeros(0, 3, dtype=DOUBLE)).tolist() == pytest.approx([1 / 3] * 3)

    def test_one_candidate(self):
        assert stack(normal(5, 1, seed=0)).tolist() == [1.0]

    def test_equal_candidates_count_alike(self):
        table = normal(5, 1, seed=0).expand(5, 4)
        torch.testing.assert_close(stack(table), torch.full((4,), 0.25, dtype=DOUBLE))

    def test_what_all_share_does_not_matter(self):
        """Units of the targets add one number to all; a label that all foresee badly does not overflow."""
        table = normal(6, 3, seed=2)
        torch.testing.assert_close(stack(table + 1e4), stack(table))
        torch.testing.assert_close(stack(table - 1e4 * torch.arange(6)[:, None]), stack(table))

    def test_a_candidate_that_fails_is_kept_by_the_prior_alone(self):
        table = torch.tensor([[0.0, -1e5]], dtype=DOUBLE).expand(20, 2)
        w = stack(table)
        assert float(w[1]) == pytest.approx(ALPHA / (20 + 2 * ALPHA))
        assert bool((stack(table, alpha=1e-9) > 0).all())

    def test_many_labels_find_the_shares_of_a_mixture(self):
        generator = torch.Generator().manual_seed(0)
        left = torch.rand(4000, generator=generator) < 0.3
        x = torch.where(left, -1.0, 1.0) + 0.7 * torch.randn(4000, generator=generator)
        table = torch.stack([torch.distributions.Normal(m, 0.7).log_prob(x) for m in (-1.0, 1.0)], 1).double()
        assert float(stack(table)[0]) == pytest.approx(0.3, abs=0.03)


class TestScore:
    def test_by_hand(self):
        table, w = normal(4, 3, seed=0), torch.tensor([0.2, 0.3, 0.5], dtype=DOUBLE)
        known = np.log((np.exp(table.numpy()) * w.numpy()).sum(1)).mean()
        assert float(densities(table, w).mean()) == pytest.approx(known, abs=1e-12)
        assert float(densities(table, torch.tensor([0.0, 1, 0], dtype=DOUBLE)).mean()) == pytest.approx(float(table[:, 1].mean()))


class TestDensity:
    @pytest.mark.parametrize("k", [1, 2])
    @pytest.mark.parametrize("trained", [False, True])
    def test_of_each_label_without_it_in_the_units_of_the_targets(self, k: int, trained: bool):
        given = shift(k)
        model = first_stage(frame(given), 1, SETTINGS)
        model = dino_train.train(model) if trained else model
        found, rows = candidate("transfer", model), frame(given)
        residuals, variance = (model.residuals, model.spread) if trained else model.joint.leave_one_out()
        scale = rows.y_scale.diag()
        for i in range(6):
            y = (rows.y[-6 + i] * rows.y_scale + rows.y_mean).numpy()
            mean = ((rows.y[-6 + i] - residuals[i]) * rows.y_scale + rows.y_mean).numpy()
            cov = (variance[i] * scale @ found.process.joint.B @ scale).numpy()
            assert float(found.log_density[i]) == pytest.approx(stats.multivariate_normal(mean, cov).logpdf(y), abs=1e-9)

    @pytest.mark.parametrize("unit", [1e-6, 1e6])
    def test_units_shift_all_densities_alike(self, unit: float):
        """Also of targets that are constant, and of one alone, which have no units of their own."""
        for labels, flat in ((6, True), (1, False)):
            given = shift(2, labels=labels)
            y = given.y.clone()
            if flat:
                y[given.labelled & (given.domain == 0), 1] = 0.25
            given = replace(given, y=y)
            one, two = (candidates(own, ("target", "linear", "transfer"), SETTINGS) for own in (given, replace(given, y=unit * y)))
            for a, b in zip(one, two, strict=True):
                torch.testing.assert_close(b.log_density, a.log_density - 2 * math.log(unit), atol=1e-5, rtol=1e-5)


class TestCandidates:
    def test_names_and_order(self):
        found = candidates(shift(), PROCESSES, SETTINGS)
        assert [(own.name, own.trained) for own in found] == [*((name, False) for name in PROCESSES),
                                                              *((name, True) for name in PROCESSES if name != "linear")]  # fmt: skip
        assert [own.name for own in candidates(shift(), ("dino", "target"), SETTINGS, trained=False)] == ["target", "dino"]

    def test_what_they_are(self):
        given = shift()
        found = {own.name: own for own in candidates(given, PROCESSES, SETTINGS, trained=False)}
        assert [found[name].process.kernel.network.depth for name in PROCESSES] == [1, 1, 0, 1, 1]
        assert found["pooled"].process.kernel.domains.lam.tolist() == [1.0]
        assert 0 < float(found["transfer"].process.kernel.domains.lam) < 1
        assert found["dino"].process.kernel.domains.attention is not None
        assert len(found["target"].frame.rows) == 6
        assert len(found["pooled"].frame.rows) == 21

    def test_without_labels_of_the_target_it_is_no_candidate(self):
        found = candidates(shift(labels=0), PROCESSES, SETTINGS)
        assert [own.name for own in found] == ["pooled", "pooled"]  # what the domains share is not known
        assert all(own.log_density.shape == (0,) for own in found)

    def test_without_sources_it_is_the_only_one(self):
        assert [own.name for own in candidates(shift().alone(), PROCESSES, SETTINGS)] == ["target", "target"]

    def test_predictions_are_those_of_the_processes(self):
        X = normal(3, 2, seed=5)
        for own in candidates(shift(), ("transfer", "dino"), SETTINGS):
            room = dino_train if own.trained else dino_init
            assert torch.equal(own.predict(X).mean, room.predict(own.model, X).mean)
            assert torch.equal(own.covariance(X), room.covariance(own.model, X))
            torch.testing.assert_close(own.covariance(X).diagonal(), own.predict(X).variance)

    def test_the_form_reaches_dino(self):
        for form in ("product", "exponential"):
            (own,) = candidates(shift(), ("dino",), SETTINGS, form=form, trained=False)
            assert own.process.kernel.domains.form == form
