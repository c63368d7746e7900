"""The estimator that chooses: its decisions on known shifts, its moments against draws from the mixture, and its words."""

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from driftway.adapt import AutoTransferRegressor, DINOInitRegressor, PooledGP, TargetOnlyGP, TransferGPRegressor
from driftway.adapt.stacking import PROCESSES, densities, stack
from driftway.checks import InputError

NEW = np.random.default_rng(9).normal(size=(4, 2))
SMALL: dict[str, Any] = {"depth": 1, "max_iter": 8, "base": 20}


def draw(kind: str, *, labels: int, sources: int = 60, seed: int = 0, k: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth target; source rows with the same function, with its sign turned, or with labels that have nothing to do with it."""
    rng, n = np.random.default_rng(seed), sources + labels + 20
    X, codes = rng.normal(size=(n, 2)), np.array([1] * sources + [-1] * (labels + 20))
    f = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]
    y = np.stack([f + j * X[:, 0] for j in range(k or 1)], 1)
    if kind == "turned":
        y[codes > 0] *= -1
    elif kind == "unrelated":
        y[codes > 0] = rng.normal(size=(sources, k or 1))
    elif kind == "moved":
        y[codes > 0] += 0.3 + 0.2 * X[codes > 0, 1:]
    y += 0.1 * rng.normal(size=y.shape)
    y[sources + labels :] = np.nan
    return X, y if k else y[:, 0], codes


def fitted(kind: str, *, labels: int, k: int = 0, seed: int = 0, **options: Any) -> AutoTransferRegressor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return AutoTransferRegressor(**{**SMALL, **options}).fit(*draw(kind, labels=labels, k=k, seed=seed))


class TestDecision:
    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("labels", [6, 20])
    def test_equal_domains_transfer(self, labels: int, seed: int):
        found = fitted("equal", labels=labels, seed=seed, trained=False).decision_
        assert found.transfer
        assert found.gain > 0.05
        assert found.target_weight < 0.4
        assert found.sentence.startswith("transfer: the target's labels are foreseen with +")

    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("kind", ["turned", "unrelated"])
    def test_a_source_of_no_use_is_not_transferred_from(self, kind: str, seed: int):
        """A source with the sign turned tells much once the correlation may be negative: the candidates that know it are left out."""
        names = ("target", "pooled") if kind == "turned" else PROCESSES
        own = fitted(kind, labels=50, seed=seed, candidates=names, trained=False)
        found = own.decision_
        assert not found.transfer
        assert found.target_weight >= 0.5 or found.gain <= found.error
        assert found.sentence.startswith("do not transfer: the target's labels are foreseen with ")

    def test_all_candidates_on_unrelated_labels_with_networks(self):
        assert not fitted("unrelated", labels=50).decision_.transfer

    def test_a_turned_source_is_of_use_with_its_sign(self):
        own = fitted("turned", labels=20, candidates=("target", "transfer"), trained=False)
        assert own.correlation_[0, 1] < -0.3 or not own.decision_.transfer

    @pytest.mark.parametrize("kind", ["turned", "unrelated"])
    def test_the_guard_holds_the_error_near_that_of_the_target_alone(self, kind: str):
        X, y, codes = draw(kind, labels=50)
        new = np.random.default_rng(5).normal(size=(300, 2))
        truth = np.sin(2 * new[:, 0]) + 0.5 * new[:, 1]

        def error(own: Any) -> float:
            return float(np.abs(own.fit(X, y, codes).predict(new) - truth).mean())

        few = {"depth": 1, "max_iter": 8}
        auto, alone, pooled = error(AutoTransferRegressor(trained=False, **SMALL)), error(TargetOnlyGP(**few)), error(PooledGP(**few))
        assert auto < 1.25 * alone
        assert auto < (0.7 if kind == "turned" else 1.1) * pooled  # labels that tell nothing are noise, of a variance of its own

    def test_gain_is_the_difference_of_the_scores(self):
        own = fitted("moved", labels=12)
        table = torch.stack([part.log_density for part in own.candidates_], 1)
        alone = [i for i, part in enumerate(own.candidates_) if part.name == "target"]
        assert alone == [0, 5]
        known = float((densities(table, stack(table)) - densities(table[:, alone], stack(table[:, alone]))).mean())
        assert own.decision_.gain == pytest.approx(known)
        gains = densities(table, stack(table)) - densities(table[:, alone], stack(table[:, alone]))
        assert own.decision_.error == pytest.approx(float(gains.std()) / math.sqrt(12))
        assert f"{known:+.2f} ± {own.decision_.error:.2f} nats" in own.decision_.sentence
        assert own.decision_.target_weight == pytest.approx(float(own.weights_[alone].sum()))
        assert list(own.decision_.weights) == [*PROCESSES, *(f"{name}, trained" for name in PROCESSES if name != "linear")]
        np.testing.assert_allclose(list(own.decision_.densities.values()), table.mean(0))
        np.testing.assert_allclose(list(own.decision_.weights.values()), own.weights_)

    def test_the_target_alone(self):
        own = fitted("moved", labels=12, candidates=("target",))
        assert (own.decision_.transfer, own.decision_.gain, own.decision_.sentence) == (False, 0.0, "there is nothing to transfer")
        assert own.decision_.target_weight == pytest.approx(1)

    def test_no_comparison(self):
        own = fitted("moved", labels=12, candidates=("pooled", "transfer"))
        assert own.decision_.transfer
        assert own.decision_.target_weight == own.decision_.gain == 0
        assert own.decision_.sentence == "transfer was not compared with the target alone"

    def test_no_labels(self):
        """There is no telling what the domains share: all rows are pooled, or where that is not wanted the candidates count alike."""
        own = fitted("moved", labels=0)
        assert [part.name for part in own.candidates_] == ["pooled", "pooled"]
        np.testing.assert_allclose(own.weights_, 0.5)
        assert own.decision_.transfer
        assert own.decision_.densities == {}
        assert own.decision_.sentence == "transfer was not compared with the target alone, which has no labels"
        few = fitted("moved", labels=0, candidates=("target", "linear", "dino"))
        assert [part.name for part in few.candidates_] == ["linear", "dino", "dino"]
        np.testing.assert_allclose(few.weights_, 1 / 3)

    def test_no_sources(self):
        X, y, _ = draw("moved", labels=12)
        own = AutoTransferRegressor(**SMALL).fit(X[60:72], y[60:72])
        assert [part.name for part in own.candidates_] == ["target", "target"]
        assert own.decision_.sentence == "there is nothing to transfer"


class TestMixture:
    @pytest.mark.parametrize("k", [0, 2])
    def test_moments_are_those_of_draws(self, k: int):
        """A candidate by its weight, then f of all rows from it, then the noise of a label."""
        own = fitted("moved", labels=8, k=k)
        rng, draws, rows = np.random.default_rng(0), 60_000, torch.from_numpy(NEW)
        which = rng.choice(len(own.weights_), draws, p=own.weights_.numpy() / own.weights_.numpy().sum())
        f = np.empty((draws, 4, k or 1))
        labels = np.empty_like(f)
        for i, part in enumerate(own.candidates_):
            mine = which == i
            found, scale = part.predict(rows), part.frame.y_scale.numpy()
            mean = found.mean.numpy() * scale + part.frame.y_mean.numpy()
            root = np.linalg.cholesky(part.covariance(rows).numpy() + 1e-10 * np.eye(4))
            unit = np.sqrt(found.B.diagonal().numpy()) * scale
            f[mine] = mean + np.einsum("qr,srk->sqk", root, rng.normal(size=(mine.sum(), 4, k or 1))) * unit
            labels[mine] = f[mine] + np.sqrt(float(found.noise)) * unit * rng.normal(size=(mine.sum(), 4, k or 1))
        mean, std = (part.reshape(4, -1) for part in own.predict(NEW, return_std=True))
        cov = own.predict(NEW, return_cov=True)[1].reshape(4, 4, -1)
        np.testing.assert_allclose(labels.mean(0), mean, atol=0.02 * std.max())
        np.testing.assert_allclose(labels.std(0), std, rtol=0.02)
        for j in range(k or 1):
            np.testing.assert_allclose(np.cov(f[..., j].T), cov[..., j], atol=0.02 * cov[..., j].max())

    def test_the_mean_is_the_weighted_mean(self):
        own = fitted("moved", labels=8, candidates=("target", "pooled", "transfer"), trained=False)
        X, y, codes = draw("moved", labels=8)
        few = {"depth": 1, "max_iter": 8}
        means = [made(**few).fit(X, y, codes).predict(NEW) for made in (TargetOnlyGP, PooledGP, TransferGPRegressor)]
        np.testing.assert_allclose(own.predict(NEW), own.weights_.numpy() @ np.array(means), rtol=1e-9)

    def test_dino_is_the_estimator_of_that_name(self):
        own = fitted("moved", labels=8, candidates=("dino",), trained=False, form="centred")
        known = DINOInitRegressor("centred", **SMALL).fit(*draw("moved", labels=8))
        for a, b in zip(own.predict(NEW, return_std=True), known.predict(NEW, return_std=True), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)

    def test_best_is_the_one_that_foresees_best(self):
        own = fitted("moved", labels=8, combine="best")
        best = max(range(9), key=lambda i: float(own.candidates_[i].log_density.sum()))
        assert own.weights_.tolist() == [float(i == best) for i in range(9)]
        part = own.candidates_[best]
        mean = part.predict(torch.from_numpy(NEW)).mean * part.frame.y_scale + part.frame.y_mean
        np.testing.assert_allclose(own.predict(NEW), mean[:, 0], rtol=1e-9)
        assert math.isfinite(own.decision_.gain)

    def test_attributes_are_those_of_the_heaviest(self):
        own = fitted("moved", labels=8)
        top = own.candidates_[int(own.weights_.argmax())].process
        assert own.n_iter_ == top.evaluations
        scale = top.frame.y_scale
        np.testing.assert_allclose(own.output_covariance_, top.joint.B * torch.outer(scale, scale))

    def test_coverage_of_new_labels(self):
        """A nominal 90 % over several draws of a moved source."""
        inside = []
        for seed in range(3):
            own = fitted("moved", labels=20, seed=seed, trained=False)
            rng = np.random.default_rng(seed + 50)
            new = rng.normal(size=(200, 2))
            y = np.sin(2 * new[:, 0]) + 0.5 * new[:, 1] + 0.1 * rng.normal(size=200)
            mean, std = own.predict(new, return_std=True)
            inside.append(np.mean(np.abs(y - mean) < 1.645 * std))
        assert 0.8 < np.mean(inside) < 0.99


@pytest.mark.filterwarnings("ignore:no target row has a label")
def test_labels_of_the_target_are_needed_for_it_alone():
    with pytest.raises(InputError, match=r"candidates: expected a process that needs no label of the target, got \('target',\)"):
        AutoTransferRegressor(("target",)).fit(*draw("moved", labels=0))


def test_pandas_in_and_out():
    X, y, codes = draw("moved", labels=8, k=2)
    frame = pd.DataFrame(X, columns=["a", "b"])
    own = AutoTransferRegressor(("target", "transfer"), trained=False, **SMALL).fit(frame, pd.DataFrame(y, columns=["u", "v"]), codes)
    new = pd.DataFrame(NEW, columns=["a", "b"], index=list("wxyz"))
    mean, std = own.predict(new, return_std=True)
    assert list(mean.columns) == list(std.columns) == ["u", "v"]
    assert list(mean.index) == list("wxyz")
    assert own.predict(new, return_cov=True)[1].shape == (4, 4, 2)
