"""What an explanation says is what the estimator does: labels count as they do in its predictions, and are foreseen without themselves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from driftway.adapt import (
    AutoTransferRegressor,
    DINOInitRegressor,
    DINOTrainRegressor,
    MeanEmbeddingGP,
    PooledGP,
    ReweightedGP,
    TargetOnlyGP,
    TransferGPRegressor,
)
from driftway.adapt.explain import explain
from driftway.adapt.influence import Foreseen, foreseen, influence, mixed, order, smoother
from driftway.adapt.joint import joint
from driftway.adapt.stacking import candidate
from driftway.checks import InputError
from driftway.kernels import mmd2
from tests.adapt.fitted import CLASSES, fit, fitted, frames, many, shift

every = pytest.mark.parametrize("made", CLASSES)


def candidates_of(estimator):
    return getattr(estimator, "candidates_", None) or [candidate("", estimator.model_)]


@pytest.fixture
def auto():
    return fitted(AutoTransferRegressor, sources=2, outputs=2)


@every
def test_the_smoother_gives_the_predictions_from_the_labels(made):
    estimator = fitted(made, sources=2, outputs=2)
    X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for own in candidates_of(estimator):
        torch.testing.assert_close(smoother(own, X) @ own.frame.y, own.predict(X).mean, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("made", [PooledGP, DINOTrainRegressor])
@pytest.mark.parametrize("approximation", ["inducing", "features"])
def test_many_rows_are_explained_as_they_predict(made, approximation):
    estimator = many(made, approximation)
    own, X = candidate("", estimator.model_), torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = smoother(own, X)
    assert H.shape == (5, 48)
    torch.testing.assert_close(H @ own.frame.y, own.predict(X).mean, rtol=1e-8, atol=1e-10)
    found = explain(estimator, permutations=19)
    assert found.influence.sum() == pytest.approx(1)
    assert len(found.foreseen.y) == len(own.residuals) == 6  # labels that are held out
    torch.testing.assert_close(found.foreseen.y, estimator.shift_.y[found.foreseen.index])


@pytest.mark.parametrize("made", [TargetOnlyGP, ReweightedGP, AutoTransferRegressor])
def test_rows_of_a_process_are_found_in_the_users_table(made):
    X, y, codes = shift(sources=2)
    y[3], X[3], y[4], X[4] = y[2], X[2], y[2] + 1, X[2]  # duplicates, equal and not
    weight = np.linspace(0.5, 2, len(y))
    weight[0] = 0
    estimator = fit(made, X, y, codes, weight)
    for own in candidates_of(estimator):
        index, rows = order(estimator.shift_, own.frame), own.frame
        assert len(index.unique()) == len(rows.rows)
        torch.testing.assert_close(rows.standard(torch.from_numpy(X)[index]), rows.rows.X)
        torch.testing.assert_close((torch.from_numpy(y)[index, None] - rows.y_mean) / rows.y_scale, rows.y)
        if made is not ReweightedGP:
            torch.testing.assert_close(torch.from_numpy(weight)[index], rows.weight)


@pytest.mark.parametrize("made", [PooledGP, DINOTrainRegressor])
def test_influence_is_a_share_and_follows_the_rows(made):
    X, y, codes = shift(sources=2)
    first = explain(fit(made, X, y, codes), permutations=19).influence
    assert first.sum() == pytest.approx(1)
    assert (first[np.isnan(y)] == 0).all()
    mix = np.random.default_rng(0).permutation(len(y))
    again = explain(fit(made, X[mix], y[mix], codes[mix]), permutations=19).influence
    torch.testing.assert_close(again, first[mix], rtol=1e-6, atol=1e-9)


def test_a_label_counts_by_what_it_moves():
    estimator = fitted(PooledGP)
    own, target = candidate("", estimator.model_), estimator.shift_.rows(0)
    found = influence([own], torch.ones(1, dtype=torch.float64), estimator.shift_, target)
    base, moved = own.predict(estimator.shift_.X[target]).mean, []
    for i in range(len(own.frame.y)):
        y = own.frame.y.clone()
        y[i] += 1
        process = estimator.model_
        again = replace(process, joint=joint(process.kernel.gram(own.frame.rows), process.noise, y, target=own.frame.target))
        moved.append((replace(own, model=again).predict(estimator.shift_.X[target]).mean - base).abs().mean())
    share = torch.stack(moved) / sum(moved)
    torch.testing.assert_close(found[order(estimator.shift_, own.frame)], share, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("made", [TargetOnlyGP, PooledGP, TransferGPRegressor, DINOInitRegressor])
def test_labels_are_foreseen_without_themselves(made):
    (_, y, codes), estimator = shift(sources=2, outputs=2), fitted(made, sources=2, outputs=2)
    process, rows = estimator.model_, estimator.model_.frame
    K, n = process.kernel.gram(rows.rows), len(rows.y)
    found = foreseen(candidate("", process), estimator.shift_)
    for place, i in enumerate(range(n - rows.target, n)):
        kept = torch.arange(n) != i
        S = K[kept][:, kept] + torch.diag(process.noise[kept])
        w = torch.linalg.solve(S, K[kept, i])
        std = ((K[i, i] + process.noise[i] - w @ K[kept, i]) * process.joint.B.diagonal()).sqrt() * rows.y_scale
        row = int(found.index[place])
        torch.testing.assert_close(found.mean[place], w @ rows.y[kept] * rows.y_scale + rows.y_mean, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(found.std[place], std, rtol=1e-6, atol=1e-8)
        assert found.y[place].tolist() == pytest.approx(y[row].tolist())
        assert codes[row] < 0


def test_a_mixture_has_the_moments_of_its_parts():
    def part(mean, std):
        return Foreseen(torch.arange(1), *(torch.full((1, 1), value, dtype=torch.float64) for value in (0.0, mean, std)))

    both = mixed([part(-1.0, 2.0), part(3.0, 1.0)], torch.tensor([0.25, 0.75]).double())
    assert both.mean.item() == pytest.approx(2)  # -1/4 + 9/4
    assert both.std.item() ** 2 == pytest.approx(0.25 * (4 + 9) + 0.75 * (1 + 1))


def test_the_mixture_of_auto_is_what_it_predicts_with(auto):
    found = explain(auto, permutations=19)
    part = torch.stack([foreseen(own, auto.shift_).mean for own in auto.candidates_])
    torch.testing.assert_close(found.foreseen.mean, (auto.weights_[:, None, None] * part).sum(0))
    assert [own.weight for own in found.candidates] == sorted((float(w) for w in auto.weights_), reverse=True)
    assert found.decision is auto.decision_
    by_name = {own.name + ", trained" * own.trained: own for own in found.candidates}
    assert by_name.keys() == auto.decision_.densities.keys()
    for name, own in by_name.items():
        assert own.density == pytest.approx(auto.decision_.densities[name])
    assert by_name["pooled"].correlation == pytest.approx((1, 1))
    assert by_name["target"].correlation == pytest.approx((0, 0))


def test_coverage_and_error_are_counted():
    y = torch.tensor([[1.0], [2.0], [4.0], [5.0]]).double()
    seen = Foreseen(torch.arange(4), y, y + torch.tensor([[0.1], [-1.0], [1.7], [3.0]]).double(), torch.ones_like(y))
    assert [seen.coverage(level) for level in (0.05, 0.5, 0.8, 0.95, 0.999)] == [0, 0.25, 0.5, 0.75, 1]
    assert seen.error == pytest.approx(math.sqrt((0.01 + 1 + 2.89 + 9) / 4) / y.std().item())
    assert math.isnan(Foreseen(torch.arange(0), y[:0], y[:0], y[:0]).error)
    assert math.isnan(Foreseen(torch.arange(0), y[:0], y[:0], y[:0]).coverage(0.9))


def test_correlation_and_relevance_are_those_of_the_kernel():
    estimator = fit(TransferGPRegressor, *frames(*shift(sources=2, rows=40)), max_iter=15)
    found, kernel = explain(estimator, permutations=19), estimator.model_.kernel
    torch.testing.assert_close(found.correlation, kernel.domains.matrix)
    assert dict(found.relevance) == pytest.approx(dict(zip(["size", "age", "luck"], kernel.relevance.tolist(), strict=True)))
    values = [value for _, value in found.relevance]
    assert values == sorted(values, reverse=True)
    assert found.relevance[-1][0] == "luck"
    assert found.outputs == ("price",)
    unit = fit(MeanEmbeddingGP, *shift(), form="product")
    found = explain(unit, permutations=19).correlation
    torch.testing.assert_close(found.diagonal(), torch.ones(2).double())
    assert found[0, 1] == pytest.approx(unit.correlation_[0, 1] / math.sqrt(unit.correlation_[0, 0] * unit.correlation_[1, 1]))


def test_distances_are_mmd_after_relevance():
    X, y, codes = shift(rows=30)
    estimator = fit(PooledGP, X, y, codes)
    far, kernel = explain(estimator, permutations=99).domains[1], estimator.model_.kernel
    Z = estimator.model_.frame.standard(torch.from_numpy(X)) * kernel.relevance
    for part, found in (("nngp", far.nngp), ("ntk", far.ntk)):
        own = getattr(kernel.network, part)
        assert found.mmd2 == pytest.approx(float(mmd2(Z[codes > 0], Z[codes < 0], kernel=own, statistic="u")), rel=1e-8)
        assert 0 <= found.part <= 1


def test_equal_domains_are_told_from_distant_ones():
    rng = np.random.default_rng(1)
    codes = np.repeat([1, 2, -1], 40)
    X = rng.normal(size=(120, 2))
    X[40:80] = 0.05 * X[40:80] + 4
    found = explain(fit(PooledGP, X, X[:, 0] + 0.1 * rng.normal(size=120), codes))
    alike, apart = found.domains[1:]
    assert alike.nngp.p_value > 0.05
    assert alike.nngp.part < 0.05
    assert apart.nngp.p_value == apart.ntk.p_value == 1 / 500
    assert apart.nngp.part > 0.5
    assert alike.effective > 0.5 > apart.effective + 0.1


def test_top_rows_are_source_rows_with_the_greatest_share():
    X, y, codes = shift(sources=2)
    found = explain(fit(PooledGP, *frames(X, y, codes)), domains=("here", "north", "south"), permutations=19)
    shares = [row.share for row in found.top]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(float(found.influence[torch.from_numpy(codes > 0)].max()))
    for row in found.top:
        assert row.domain == {1: "north", 2: "south"}[codes[row.index]]
        assert row.y == (pytest.approx(y[row.index]),)
        assert row.x["size"] == pytest.approx(X[row.index, 0])
    assert sum(own.share for own in found.domains) == pytest.approx(1)
    assert [(own.name, own.rows, own.labelled) for own in found.domains] == [("here", 14, 8), ("north", 20, 20), ("south", 20, 20)]


@pytest.mark.parametrize("made", [PooledGP, MeanEmbeddingGP, AutoTransferRegressor])
@pytest.mark.parametrize("kind", ["no labels", "one domain", "one label", "one target row"])
def test_small_shifts_can_be_explained(made, kind):
    sizes = {"no labels": {"labels": 0}, "one domain": {"sources": 0}, "one label": {"labels": 1}, "one target row": {"labels": 1,
             "unlabelled": 0}}[kind]  # fmt: skip
    found = explain(fit(made, *shift(**sizes)), permutations=19)
    assert found.influence.sum() == pytest.approx(1)
    assert len(found.foreseen.y) == {"no labels": 0, "one domain": 8}.get(kind, 1)
    assert (len(found.domains) == 1) == (kind == "one domain")
    assert bool(found.remarks) == (kind in ("no labels", "one domain"))
    assert kind == "one domain" or (found.domains[1].nngp is None) == (kind == "one target row")


def test_duplicates_that_differ_are_remarked():
    X, y, codes = shift()
    X[1] = X[0]
    assert "2 labelled rows" in explain(fit(PooledGP, X, y, codes), permutations=19).remarks[-1]


def test_what_cannot_be_explained_is_refused(auto):
    with pytest.raises(InputError, match="estimator: expected a fitted regressor"):
        explain(PooledGP())
    with pytest.raises(InputError, match="domains: expected 3 names"):
        explain(auto, domains=("a", "b"))


def test_a_trained_network_foresees_a_fold_at_a_time():
    estimator = fitted(DINOTrainRegressor, sources=2, outputs=2)
    found = foreseen(candidate("", estimator.model_), estimator.shift_)
    rows = estimator.model_.start.frame
    torch.testing.assert_close(found.y - found.mean, estimator.model_.residuals * rows.y_scale)
