"""The estimators on shifts with a known answer, among scikit-learn's and skada's tools. The laws of all of them: tests/contracts."""

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.compose import ColumnTransformer
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from driftway.adapt import (
    AutoTransferRegressor,
    DINOInitRegressor,
    DINOTrainRegressor,
    ImportanceWeightedScorer,
    MeanEmbeddingGP,
    PooledGP,
    ReweightedGP,
    Shift,
    TargetOnlyGP,
    TransferGPRegressor,
    importance_weights,
)
from driftway.adapt.frame import canonical, frame
from driftway.checks import InputError

SMALL: dict[str, Any] = {"depth": 1, "max_iter": 6}
NEW = np.random.default_rng(9).normal(size=(6, 2))


def truth(X: np.ndarray) -> np.ndarray:
    return np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]


def draw(*, labels: int = 8, source: int = 50, seed: int = 0, shift: float = 0.4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A source whose labels lie higher by a little more than the inputs tell, and a target."""
    rng, n = np.random.default_rng(seed), source + labels + 20
    codes = np.array([1] * source + [-2] * (labels + 20))
    X = rng.normal(size=(n, 2)) + 0.5 * (codes < 0)[:, None]
    y = truth(X) + shift * (codes > 0) * (1 + 0.5 * X[:, 1]) + 0.1 * rng.normal(size=n)
    y[source + labels :] = np.nan
    return X, y, codes


def fit(estimator: Any, *data: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return estimator.fit(*data)


def close(found: Any, known: Any, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(known), rtol=tolerance, atol=tolerance)


class TestNested:
    def test_the_target_alone_needs_no_source(self):
        X, y, codes = draw()
        own = codes < 0
        with_sources, without = fit(TargetOnlyGP(**SMALL), X, y, codes), fit(TargetOnlyGP(**SMALL), X[own], y[own], codes[own])
        for a, b in zip(with_sources.predict(NEW, return_std=True), without.predict(NEW, return_std=True), strict=True):
            close(a, b, 1e-12)
        assert with_sources.correlation_.tolist() == [[1, 0], [0, 1]]

    def test_equal_domains_in_all_but_name(self):
        """Every row once in the source and once in the target: the embeddings are equal, so that it is the pooled process."""
        X, y, _ = draw()
        seen = ~np.isnan(y)
        X, y = np.r_[X[seen], X[seen]], np.r_[y[seen], y[seen]]
        codes = np.repeat([1, -1], seen.sum())
        one = MeanEmbeddingGP("cosine", base=100, **SMALL).fit(X, y, codes)
        close(one.correlation_, np.ones((2, 2)), 1e-10)
        two = MeanEmbeddingGP("exponential", base=100, **SMALL).fit(X, y, codes)
        for a, b in zip(one.predict(NEW, return_std=True), two.predict(NEW, return_std=True), strict=True):
            close(a, b, 1e-3)

    def test_without_pull_dino_is_the_mean_embedding(self):
        X, y, codes = draw()
        for form in ("cosine", "centred", "exponential"):
            one = DINOInitRegressor(form, base=20, pull=0, **SMALL).fit(X, y, codes)
            two = MeanEmbeddingGP(form, base=20, **SMALL).fit(X, y, codes)
            close(one.predict(NEW), two.predict(NEW))
            close(one.correlation_, two.correlation_)

    def test_the_correlation_of_uniform_weights(self):
        """lam = c_st / (c_ss c_tt)^(1/2) with the kernel of the network between all rows, in the relevances that were learned."""
        X, y, codes = draw()
        own = MeanEmbeddingGP("cosine", base=100, **SMALL).fit(X, y, codes)
        Z = own.model_.frame.standard(torch.from_numpy(X)) * own.model_.kernel.relevance
        K, t = own.model_.kernel.network.nngp(Z).numpy(), codes < 0
        lam = K[t][:, ~t].mean() / math.sqrt(K[t][:, t].mean() * K[~t][:, ~t].mean())
        close(own.correlation_, [[1, lam], [lam, 1]])

    def test_the_correlation_of_the_transfer_process_is_learned(self):
        X, y, codes = draw(labels=25)
        own = TransferGPRegressor(**SMALL).fit(X, y, codes)
        lam = float(own.model_.raw["lam"].tanh())
        close(own.correlation_, [[1, lam], [lam, 1]])
        y[codes > 0] *= -1
        turned = TransferGPRegressor(depth=1, max_iter=40).fit(X, y, codes)
        assert turned.correlation_[0, 1] < 0.3 < own.correlation_[0, 1]

    def test_time_zero_is_the_network_at_initialisation_before_any_label(self):
        X, y, codes = draw()
        own = DINOTrainRegressor(base=20, time=0, **SMALL).fit(X, y, codes)
        mean, std = own.predict(NEW, return_std=True)
        close(mean, np.full(6, np.nanmean(y)))
        assert (std > np.nanstd(y) / 2).all()
        done = DINOTrainRegressor(base=20, time=math.inf, **SMALL).fit(X, y, codes)
        close(done.predict(X[50:58]), y[50:58], 1e-5)
        assert done.model_.time == math.inf

    def test_reweighted_rows_have_the_weights_of_importance(self):
        X, y, codes = draw()
        own, scaled = ReweightedGP(**SMALL).fit(X, y, codes), frame(Shift.from_domains(X, y, codes)).standard(torch.from_numpy(X)).numpy()
        weight = np.ones(len(X))
        source, target = canonical(torch.from_numpy(X[:50])), 50 + canonical(torch.from_numpy(X[50:]))  # in an order of their own
        weight[source] = importance_weights(scaled[source], scaled[target]).clamp_min(1e-6)
        known = PooledGP(**SMALL).fit(X, y, codes, weight)
        found, expected = own.model_.frame, known.model_.frame
        close(found.weight, expected.weight)
        for a, b in zip(own.predict(NEW, return_std=True), known.predict(NEW, return_std=True), strict=True):
            close(a, b)
        other = ReweightedGP(weights="logistic", **SMALL).fit(X, y, codes)
        assert np.abs(other.predict(NEW) - own.predict(NEW)).max() > 1e-4

    @pytest.mark.parametrize("made", [PooledGP, TransferGPRegressor, MeanEmbeddingGP, DINOInitRegressor])
    def test_without_sources_all_are_the_target_alone(self, made: type):
        X, y, codes = draw(labels=15)
        own = codes < 0
        alone = fit(TargetOnlyGP(**SMALL), X[own], y[own], codes[own])
        close(fit(made(**SMALL), X[own], y[own], codes[own]).predict(NEW), alone.predict(NEW), 0.2)


class TestWorth:
    """Mean absolute errors on new rows of the target, over two draws."""

    def errors(self, makers: list[Any], **options: Any) -> list[float]:
        totals = np.zeros(len(makers))
        for seed in (0, 1):
            X, y, codes = draw(seed=seed, **options)
            new = np.random.default_rng(seed + 70).normal(size=(300, 2)) + 0.5
            totals += [np.abs(fit(make, X, y, codes).predict(new) - truth(new)).mean() / 2 for make in makers]
        return totals.tolist()

    def test_a_like_source_helps(self):
        few = {"depth": 1, "max_iter": 10}
        alone, *others = self.errors([TargetOnlyGP(**few), PooledGP(**few), TransferGPRegressor(**few), DINOInitRegressor(base=30, **few),
                                      DINOTrainRegressor(base=30, **few)], labels=8)  # fmt: skip
        assert max(others) < alone

    def test_without_labels_it_is_learned_from_the_source(self):
        few = {"depth": 1, "max_iter": 10}
        for error in self.errors([PooledGP(**few), TransferGPRegressor(**few), DINOInitRegressor(base=30, **few)], labels=0, shift=0.0):
            assert error < 0.5  # the standard deviation of the targets is .9

    def test_the_noise_is_found(self):
        X, y, codes = draw(labels=60, source=60)
        for make in (TargetOnlyGP, TransferGPRegressor):
            own = make(depth=1, max_iter=40).fit(X, y, codes)
            assert 0.05 < own.noise_std_[0] < 0.2

    def test_intervals_hold_what_they_promise(self):
        rng, inside = np.random.default_rng(3), {}
        for make in (TransferGPRegressor, DINOTrainRegressor):
            for seed in range(3):
                X, y, codes = draw(labels=25, seed=seed)
                own = make(depth=1, max_iter=10).fit(X, y, codes)
                new = rng.normal(size=(200, 2)) + 0.5
                mean, std = own.predict(new, return_std=True)
                inside.setdefault(make, []).append(np.mean(np.abs(truth(new) + 0.1 * rng.normal(size=200) - mean) < 1.645 * std))
            assert 0.78 < np.mean(inside[make]) <= 1

    def test_several_sources_are_told_apart(self):
        """One with the target's function, one with another."""
        rng = np.random.default_rng(0)
        X = rng.normal(size=(110, 2))
        codes = np.repeat([3, 7, -1], [40, 40, 30])
        y = np.where(codes == 7, np.cos(3 * X[:, 1]), truth(X)) + 0.1 * rng.normal(size=110)
        y[100:] = np.nan
        own = TransferGPRegressor(depth=1, max_iter=40).fit(X, y, codes)
        assert own.shift_.codes == (-1, 3, 7)
        assert own.correlation_.shape == (3, 3)
        assert own.correlation_[0, 1] > own.correlation_[0, 2] + 0.1

    def test_outputs_that_move_together(self):
        """Targets with covariance B between outputs, of a function and of the noise alike."""
        rng = np.random.default_rng(0)
        X, codes = rng.normal(size=(160, 2)), np.repeat([1, -1], 80)
        D2 = ((X[:, None] - X) ** 2).sum(2)
        root = np.linalg.cholesky(np.exp(-D2) + 0.05 * np.eye(160))
        B = np.array([[1, 0.8, 0], [0.8, 1, 0], [0, 0, 4]])
        y = root @ rng.normal(size=(160, 3)) @ np.linalg.cholesky(B).T
        own = PooledGP(depth=2, max_iter=30).fit(X, y, codes)
        scale = np.sqrt(own.output_covariance_.diagonal())
        found = own.output_covariance_ / np.outer(scale, scale)
        assert found[0, 1] == pytest.approx(0.8, abs=0.1)
        assert abs(found[0, 2]) < 0.25
        assert abs(found[1, 2]) < 0.25
        assert scale[2] / scale[0] == pytest.approx(2, abs=0.5)


class TestTables:
    def frames(self) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
        X, y, codes = draw()
        index = [f"row {i}" for i in range(len(X))]
        return pd.DataFrame(X, index, ["width", "height"]), pd.Series(y, index, name="price"), pd.Series(codes, index)

    def test_a_series_gives_a_series(self):
        X, y, codes = self.frames()
        own = TransferGPRegressor(**SMALL).fit(X, y, codes)
        mean, std = own.predict(X[:4], return_std=True)
        assert (mean.name, std.name, list(mean.index)) == ("price", "price", list(X.index[:4]))
        close(mean, TransferGPRegressor(**SMALL).fit(X.to_numpy(), y.to_numpy(), codes.to_numpy()).predict(X.to_numpy()[:4]))
        assert own.shift_.names == ("width", "height")
        assert own.feature_names_in_.tolist() == ["width", "height"]

    def test_a_series_without_name_too(self):
        X, y, codes = self.frames()
        mean = TransferGPRegressor(**SMALL).fit(X, y.rename(None), codes).predict(X[:4])
        assert isinstance(mean, pd.Series)
        assert mean.name is None

    def test_a_frame_gives_a_frame(self):
        X, y, codes = self.frames()
        both = pd.DataFrame({"price": y, "area": 2 * y + 1})
        mean, std = TransferGPRegressor(**SMALL).fit(X, both, codes).predict(X[:4], return_std=True)
        assert list(mean.columns) == list(std.columns) == ["price", "area"]
        close(mean["area"], 2 * mean["price"] + 1, 1e-6)
        one = TransferGPRegressor(**SMALL).fit(X, both[["price"]], codes).predict(X[:4])
        assert list(one.columns) == ["price"]

    def test_arrays_and_lists_give_arrays(self):
        X, y, codes = self.frames()
        own = TransferGPRegressor(**SMALL).fit(X.to_numpy(), y, codes)
        for new in (X.to_numpy()[:4], X.to_numpy()[:4].tolist(), torch.tensor(X.to_numpy()[:4])):
            assert isinstance(own.predict(new), np.ndarray)
        assert isinstance(TransferGPRegressor(**SMALL).fit(X, y.to_numpy(), codes).predict(X[:4]), np.ndarray)

    def test_an_index_of_its_own_is_not_aligned(self):
        """Rows belong together by their place, as everywhere in scikit-learn."""
        X, y, codes = self.frames()
        known = TransferGPRegressor(**SMALL).fit(X, y, codes).predict(X[:4])
        shuffled = y.set_axis(np.random.default_rng(0).permutation(len(y)))
        close(TransferGPRegressor(**SMALL).fit(X, shuffled, codes).predict(X[:4]), known, 0)

    def test_nullable_columns(self):
        X, y, codes = self.frames()
        known = TransferGPRegressor(**SMALL).fit(X, y, codes).predict(X[:4])
        close(TransferGPRegressor(**SMALL).fit(X.convert_dtypes(), y.convert_dtypes(), codes).predict(X[:4].convert_dtypes()), known, 0)

    def test_none_is_a_missing_label(self):
        X, y, codes = self.frames()
        known = TransferGPRegressor(**SMALL).fit(X, y, codes).predict(X[:4])
        for gaps in ([None if np.isnan(v) else v for v in y], y.astype(object), y.astype(object).where(y.notna(), None)):
            close(TransferGPRegressor(**SMALL).fit(X, gaps, codes).predict(X[:4]), known, 0)

    def test_categories_in_a_column_transformer(self):
        X, y, codes = self.frames()
        X = X.assign(kind=pd.Categorical(np.where(X["width"] > 0, "large", "small")))
        columns = ColumnTransformer([("kind", OneHotEncoder(sparse_output=False), ["kind"])], remainder="passthrough")
        for made in (TransferGPRegressor(**SMALL), AutoTransferRegressor(("target", "dino"), base=10, **SMALL)):
            model = make_pipeline(columns, made)
            step = type(made).__name__.lower()
            model.fit(X, y, **{f"{step}__sample_domain": codes})
            assert model[-1].shift_.labels == 8
            assert model.predict(X[:4]).shape == (4,)
            mean, std = model.predict(X[:4], return_std=True)
            close(mean, model.predict(X[:4]))
            assert (std > 0).all()

    def test_pandas_output_of_the_steps_before(self):
        X, y, codes = self.frames()
        model = make_pipeline(StandardScaler().set_output(transform="pandas"), TransferGPRegressor(**SMALL))
        mean = model.fit(X, y, transfergpregressor__sample_domain=codes).predict(X[:4])
        assert list(mean.index) == list(X.index[:4])
        close(mean, TransferGPRegressor(**SMALL).fit(X, y, codes).predict(X[:4]), 1e-6)


class TestSearch:
    GRID = {"source_weight": [0.1, 1.0]}  # noqa: RUF012
    FOLDS = KFold(3, shuffle=True, random_state=0)

    def labelled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, y, codes = draw(labels=30)
        seen = ~np.isnan(y)
        return X[seen], y[seen], codes[seen]

    def test_codes_without_routing(self):
        """As parameters of fit, which scikit-learn cuts along the folds."""
        X, y, codes = self.labelled()
        search = GridSearchCV(TransferGPRegressor(**SMALL), self.GRID, cv=self.FOLDS, error_score="raise").fit(X, y, sample_domain=codes)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        assert search.best_estimator_.shift_.labels == 30
        assert search.predict(NEW).shape == (6,)

    def test_codes_with_routing(self):
        X, y, codes = self.labelled()
        plain = GridSearchCV(TransferGPRegressor(**SMALL), self.GRID, cv=self.FOLDS, error_score="raise").fit(X, y, sample_domain=codes)
        with sklearn.config_context(enable_metadata_routing=True):
            search = GridSearchCV(TransferGPRegressor(**SMALL), self.GRID, cv=self.FOLDS, error_score="raise")
            search.fit(X, y, sample_domain=codes)
            close(search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"])
            assert search.best_estimator_.shift_.labels == 30

    def test_scores_of_the_target_with_routing(self):
        """Fit and score are told of the codes at once, and the target's gaps are no labels."""
        X, y, codes = draw(labels=10)
        with sklearn.config_context(enable_metadata_routing=True):
            search = GridSearchCV(TransferGPRegressor(**SMALL), self.GRID, scoring=ImportanceWeightedScorer(), cv=self.FOLDS,
                                  error_score="raise").fit(X, y, sample_domain=codes)  # fmt: skip
            assert np.isfinite(search.cv_results_["mean_test_score"]).all()
            assert search.best_estimator_.shift_.labels == 10

    def test_weights_with_routing_have_to_be_asked_for(self):
        X, y, codes = self.labelled()
        weight = np.linspace(0.5, 2, len(y))
        with sklearn.config_context(enable_metadata_routing=True):
            model = TransferGPRegressor(**SMALL).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
            search = GridSearchCV(model, self.GRID, cv=self.FOLDS, error_score="raise").fit(X, y, sample_domain=codes, sample_weight=weight)
            known = TransferGPRegressor(**SMALL, source_weight=search.best_params_["source_weight"]).fit(X, y, codes, weight)
            close(search.predict(NEW), known.predict(NEW))

    def test_a_pipeline_with_routing(self):
        X, y, codes = draw()
        with sklearn.config_context(enable_metadata_routing=True):
            model = make_pipeline(StandardScaler(), TransferGPRegressor(**SMALL)).fit(X, y, sample_domain=codes)
        close(model.predict(NEW), TransferGPRegressor(**SMALL).fit(X, y, codes).predict(NEW), 1e-6)

    def test_score_is_that_of_regressors(self):
        X, y, codes = self.labelled()
        own = TransferGPRegressor(**SMALL).fit(X, y, codes)
        assert own.score(X, y) == pytest.approx(sklearn.metrics.r2_score(y, own.predict(X)))
        scorer = make_scorer(lambda y, mean: -np.abs(y - mean).mean())
        assert scorer(own, X, y) == pytest.approx(-np.abs(y - own.predict(X)).mean())

    def test_cross_validated_predictions(self):
        X, y, codes = self.labelled()
        found = cross_val_predict(TransferGPRegressor(**SMALL), X, y, cv=self.FOLDS, params={"sample_domain": codes})
        assert np.corrcoef(found, y)[0, 1] > 0.7


class TestSkada:
    @pytest.fixture
    def skada(self):
        before = sklearn.get_config()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = pytest.importorskip("skada", reason="not installed; driftway does not need it")
        sklearn.set_config(enable_metadata_routing=True)  # as skada does when it is first imported
        yield module
        sklearn.set_config(**before)

    @pytest.mark.parametrize("made", [TransferGPRegressor, DINOInitRegressor, AutoTransferRegressor])
    def test_in_a_pipeline_with_the_labels_of_the_target(self, skada: Any, made: Any):
        X, y, codes = draw()
        own = made(**SMALL) if made is not AutoTransferRegressor else made(("target", "transfer"), **SMALL)
        model = skada.make_da_pipeline(StandardScaler(), own, mask_target_labels=False).fit(X, y, sample_domain=codes)
        assert model[-1].get_estimator().shift_.labels == 8
        known = sklearn.clone(own).fit(X, y, codes).predict(NEW)
        close(model.predict(NEW), known, 1e-6)
        close(model.predict(NEW, sample_domain=np.full(6, -2)), known, 1e-6)

    def test_behind_an_adapter(self, skada: Any):
        X, y, codes = draw()
        model = skada.make_da_pipeline(StandardScaler(), skada.CORALAdapter(), TransferGPRegressor(**SMALL), mask_target_labels=False)
        model.fit(X, y, sample_domain=codes)
        assert model[-1].get_estimator().shift_.labels == 8
        assert np.isfinite(model.predict(NEW, sample_domain=np.full(6, -2))).all()

    def test_masked_labels_are_none(self, skada: Any):
        """skada masks the labels of the target unless it is told not to."""
        X, y, codes = draw()
        model = skada.make_da_pipeline(StandardScaler(), PooledGP(**SMALL))
        with pytest.warns(UserWarning, match="no target row has a label"):
            model.fit(X, y, sample_domain=codes)
        assert model[-1].get_estimator().shift_.labels == 0


class TestEdges:
    def test_domains_with_other_columns(self):
        X, y, _ = draw()
        with pytest.raises(InputError, match="X_target: expected 2 columns, as X_source has, got 1") as error:
            Shift.from_arrays(X[:50], y[:50], X[50:, :1])
        assert error.value.argument == "X_target"

    def test_a_shift_of_arrays_is_the_table_with_codes(self):
        X, y, codes = draw()
        given = Shift.from_arrays(X[:50], y[:50], X[50:58], y[50:58], X_unlabelled=X[58:])
        close(TransferGPRegressor(**SMALL).fit(given.X, given.y[:, 0], np.where(given.domain > 0, 1, -2)).predict(NEW),
              TransferGPRegressor(**SMALL).fit(X, y, codes).predict(NEW), 0)  # fmt: skip

    def test_one_row(self):
        with pytest.raises(ValueError, match="minimum of 2 is required"):
            TransferGPRegressor().fit([[1.0, 2.0]], [1.0], [-1])

    @pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs", "erf", "gelu"])
    def test_every_activation(self, activation: str):
        X, y, codes = draw()
        own = DINOTrainRegressor(activation=activation, base=10, depth=2, max_iter=3).fit(X, y, codes)
        mean, std = own.predict(NEW, return_std=True)
        assert np.isfinite(mean).all()
        assert (std > 0).all()

    @pytest.mark.parametrize("rule", ["rademacher", "discrepancy", "sure", "gcv", "marginal_likelihood", "cross_validation"])
    def test_every_rule(self, rule: str):
        X, y, codes = draw()
        own = DINOTrainRegressor(rule=rule, base=10, **SMALL).fit(X, y, codes)
        assert own.model_.rule == rule
        assert np.isfinite(own.predict(NEW)).all()

    @pytest.mark.parametrize("form", ["product", "cosine", "centred"])
    def test_every_form_that_a_network_has(self, form: str):
        X, y, codes = draw()
        assert np.isfinite(DINOTrainRegressor(form, base=10, **SMALL).fit(X, y, codes).predict(NEW)).all()

    def test_no_network_has_the_exponential_form(self):
        X, y, codes = draw()
        with pytest.raises(InputError, match="form: expected one of product, cosine, centred, got 'exponential'"):
            DINOTrainRegressor("exponential").fit(X, y, codes)

    def test_sources_that_count_for_nothing_in_learning_still_predict(self):
        X, y, codes = draw()
        own = TransferGPRegressor(source_weight=0, **SMALL).fit(X, y, codes)
        assert np.abs(own.predict(NEW) - TransferGPRegressor(source_weight=1, **SMALL).fit(X, y, codes).predict(NEW)).max() > 1e-3
        assert np.isfinite(own.predict(NEW)).all()
