"""Scorers in scikit-learn's searches: closed over the target, by gaps in y, and by codes that scikit-learn routes."""

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from driftway.adapt.estimators_scoring import CircularScorer, DEVScorer, ImportanceWeightedScorer
from driftway.adapt.importance import importance_weights
from driftway.adapt.validate import controlled_risk, weighted_risk
from driftway.checks import InputError

every_scorer = pytest.mark.parametrize("scorer", [ImportanceWeightedScorer, DEVScorer, CircularScorer])
FOLDS = KFold(3, shuffle=True, random_state=0)


class Aware(Ridge):
    """Ridge regression on the labelled rows, that asks for domains."""

    def fit(self, X, y, sample_domain=None):
        assert sample_domain is not None
        return super().fit(np.asarray(X)[~np.isnan(y)], y[~np.isnan(y)])


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    S, T = rng.normal(size=(120, 1)), 1 + 0.7 * rng.normal(size=(100, 1))
    y = S[:, 0] + 0.5 * S[:, 0] ** 2 + 0.2 * rng.normal(size=120)
    return S, y, T


@every_scorer
def test_a_search_of_any_regressor_closed_over_the_target(scorer, rows):
    S, y, T = rows
    model = make_pipeline(PolynomialFeatures(), Ridge(1e-3))
    search = GridSearchCV(model, {"polynomialfeatures__degree": [0, 1, 2]}, scoring=scorer(T), cv=FOLDS, error_score="raise").fit(S, y)
    assert search.best_params_ == {"polynomialfeatures__degree": 2}
    scores = cross_val_score(model, pd.DataFrame(S), y, scoring=scorer(pd.DataFrame(T)), cv=FOLDS, error_score="raise")
    assert np.allclose(scores.mean(), search.cv_results_["mean_test_score"][2])


@every_scorer
def test_routing_hands_the_codes_to_scorer_and_estimator(scorer, rows):
    S, y, T = rows
    X, labels, codes = np.concatenate([S, T]), np.concatenate([y, np.full(100, np.nan)]), np.array([1] * 120 + [-1] * 100)
    with sklearn.config_context(enable_metadata_routing=True):
        model = Aware().set_fit_request(sample_domain=True)
        search = GridSearchCV(model, {"alpha": [1e-3, 1e4]}, scoring=scorer(), cv=FOLDS, error_score="raise")
        search.fit(X, labels, sample_domain=codes)
        assert search.best_params_ == {"alpha": 1e-3}
        assert search.score(X, labels, sample_domain=codes) == scorer()(search.best_estimator_, X, labels, codes)
        several = GridSearchCV(model, {"alpha": [1e-3, 1e4]}, scoring={"own": scorer()}, refit="own", cv=FOLDS, error_score="raise")
        several.fit(X, labels, sample_domain=codes)
        assert np.allclose(several.cv_results_["mean_test_own"], search.cv_results_["mean_test_score"])


@every_scorer
def test_gaps_in_y_tell_the_target_where_there_are_no_codes(scorer, rows):
    S, y, T = rows
    model = Ridge().fit(S, y)
    X, labels = np.concatenate([S, T]), np.concatenate([y, np.full(100, np.nan)])
    codes = np.array([1] * 120 + [-1] * 100)
    score = scorer()(model, X, labels)
    assert isinstance(score, float)
    assert score == scorer()(model, X, labels, codes)
    assert np.isclose(score, scorer(T)(model, S, y))
    assert np.isclose(score, scorer(T)(model, torch.from_numpy(S), y))
    known = np.concatenate([y, np.full(100, 9.0)])  # labels of the target are not scored
    assert scorer is CircularScorer or score == scorer()(model, X, known, codes)


def test_scores_are_negative_risks_of_the_fold(rows):
    S, y, T = rows
    model = Ridge().fit(S, y)
    loss = torch.from_numpy((model.predict(S) - y) ** 2)
    assert np.isclose(ImportanceWeightedScorer(T)(model, S, y), -weighted_risk(loss, importance_weights(S, T)).value)
    w = importance_weights(S, T, normalise=False)
    assert np.isclose(DEVScorer(T)(model, S, y), -controlled_risk(loss, w).value)
    squares = importance_weights(S**2, T**2, method="logistic", normalise=False)
    featured = DEVScorer(T, features=lambda model, rows: rows**2, method="logistic")
    assert np.isclose(featured(model, S, y), -controlled_risk(loss, squares).value)
    relative = importance_weights(S, T, alpha=0.5)
    assert np.isclose(ImportanceWeightedScorer(T, alpha=0.5)(model, S, y), -weighted_risk(loss, relative).value)


@every_scorer
def test_a_fold_with_one_side_is_refused(scorer, rows):
    S, y, _ = rows
    model = Ridge().fit(S, y)
    for labels, codes in ((y, None), (y, np.ones(120)), (0 * y, -np.ones(120)), (np.full(120, np.nan), None)):
        with pytest.raises(InputError, match="pass X_target to the scorer, or shuffle the folds"):
            scorer()(model, S, labels, codes)
