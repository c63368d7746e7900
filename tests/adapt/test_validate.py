"""Risks on the target from labels of the source: against a risk with a closed form, by hand, their variance, and what the fits see."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from driftway.adapt.validate import (
    circular_validation,
    controlled_risk,
    deep_embedded_validation,
    importance_weighted_cv,
    weighted_risk,
)
from driftway.checks import InputError

NAN = float("nan")
MEAN, SCALE, SLOPE, NOISE = 1.2, 0.6, 1.5, 0.3  # target N(MEAN, SCALE^2), source N(0, 1), y = SLOPE x + noise
RISK = SLOPE**2 * (MEAN**2 + SCALE**2) + NOISE**2  # of f = 0 on the target
every_risk = pytest.mark.parametrize("risk", [importance_weighted_cv, deep_embedded_validation, circular_validation])


class Line:
    """y = slope x, whatever it is fitted to; keeps what it saw."""

    def __init__(self, slope=0.0, seen=None):
        self.slope, self.seen = slope, seen

    def get_params(self, deep=True):
        return {"slope": self.slope, "seen": self.seen}

    def fit(self, X, y):
        if self.seen is not None:
            self.seen.append((np.asarray(X), np.asarray(y)))
        return self

    def predict(self, X):
        return self.slope * np.asarray(X)[:, 0]


class Aware(Line):
    """The same with domains."""

    def fit(self, X, y, sample_domain=None):
        self.seen.append((np.asarray(X), np.asarray(y), sample_domain))
        return self


class Memory(Line):
    """Knows the rows it was fitted to and says 0 elsewhere."""

    def fit(self, X, y):
        self.known_ = {tuple(x): a for x, a in zip(np.asarray(X), y, strict=True)}
        return self

    def predict(self, X):
        return np.array([self.known_.get(tuple(x), 0.0) for x in np.asarray(X)])


def draw(seed: int, n: int = 200, m: int = 200):
    """Source rows, their labels, target rows, exact weights."""
    rng = np.random.default_rng(seed)
    S, T = rng.normal(size=(n, 1)), MEAN + SCALE * rng.normal(size=(m, 1))
    w = np.exp(S[:, 0] ** 2 / 2 - ((S[:, 0] - MEAN) / SCALE) ** 2 / 2) / SCALE
    return S, SLOPE * S[:, 0] + NOISE * rng.normal(size=n), T, w


def table(S, y, T):
    return np.concatenate([S, T]), np.concatenate([y, np.full(len(T), NAN)]), np.array([1] * len(S) + [-1] * len(T))


def test_weighting_removes_the_bias_of_plain_cross_validation():
    """f = 0 costs SLOPE^2 E_T x^2 + NOISE^2 on the target; 200 seeds with exact weights, and their standard errors."""
    found = []
    for seed in range(200):
        S, y, T, w = draw(seed, m=3)
        risks = [importance_weighted_cv(Line(), *table(S, y, T), folds=2, weights=own) for own in (w, np.ones(200))]
        dev = deep_embedded_validation(Line(), *table(S, y, T), folds=2, weights=w)
        found.append([*(risk.value for risk in risks), dev.value, risks[0].error**2, dev.error**2])
    iwcv, plain, dev, iwcv_error, dev_error = torch.tensor(found).T
    for values in (iwcv, dev):
        assert abs(float(values.mean()) - RISK) < 0.03 * RISK
    assert abs(float(plain.mean()) - SLOPE**2 - NOISE**2) < 0.03 * RISK
    assert float(plain.mean()) < 0.6 * RISK
    assert 0.75 < float(iwcv_error.mean() / iwcv.var()) < 1.25
    assert 0.75 < float(dev_error.mean() / dev.var()) < 1.25
    assert float(dev.var()) < 0.8 * float(iwcv.var())


def test_the_control_variate_has_the_least_variance_of_all():
    """Over 2,000 samples of losses: mean w l, the normalised mean, and the controlled one agree in the mean and not in variance."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 200, generator=g, dtype=torch.float64)
    w = torch.exp(x**2 / 2 - ((x - MEAN) / SCALE) ** 2 / 2) / SCALE
    loss = (SLOPE * x + NOISE * torch.randn(x.shape, generator=g, dtype=torch.float64)).square()
    plain = (w * loss).mean(1)
    dev = torch.tensor([controlled_risk(a, b).value for a, b in zip(loss, w, strict=True)])
    iwcv = torch.tensor([weighted_risk(a, b).value for a, b in zip(loss, w, strict=True)])
    for values in (plain, dev, iwcv):
        assert abs(float(values.mean()) - RISK) < 0.02 * RISK
    assert float(dev.var()) < 0.9 * float(iwcv.var()) < 0.9 * float(plain.var())
    z = w * loss  # what is left of Var(w l) after the best linear guess from w
    rho = torch.corrcoef(torch.stack([z.flatten(), w.flatten()]))[0, 1]
    assert abs(float(dev.var() / plain.var()) / float(1 - rho**2) - 1) < 0.15


@pytest.mark.parametrize("risk", [importance_weighted_cv, deep_embedded_validation])
def test_estimated_weights_come_near_the_truth(risk):
    found = [risk(Line(), *table(*draw(seed, 400, 400)[:3]), method="kulsif").value for seed in range(4)]
    assert abs(np.mean(found) - RISK) < 0.15 * RISK


def test_iwcv_is_the_weighted_mean_of_held_out_losses():
    """A regressor that knows its rows by heart errs by y on held-out rows."""
    S, y, T, w = draw(0, 30, 5)
    risk = importance_weighted_cv(Memory(), *table(S, y, T), weights=w, folds=4)
    assert math.isclose(risk.value, (w * y**2).sum() / w.sum(), rel_tol=1e-12)
    assert math.isclose(risk.ess, w.sum() ** 2 / (w**2).sum(), rel_tol=1e-12)
    assert np.allclose(risk.weights.numpy(), w)
    dev = deep_embedded_validation(Memory(), *table(S, y, T), weights=w, folds=4)
    eta = np.cov(w * y**2, w)[0, 1] / np.var(w, ddof=1)
    assert math.isclose(dev.value, (w * y**2).mean() - eta * (w.mean() - 1), rel_tol=1e-10)


def test_equal_weights_give_the_plain_mean():
    loss, w = torch.tensor([1.0, 2, 6]).double(), torch.ones(3).double()
    for risk in (weighted_risk(loss, w), controlled_risk(loss, w)):
        assert (risk.value, risk.ess) == (3, 3)
        assert math.isclose(risk.error, (14 / 3 / 3) ** 0.5)
    assert weighted_risk(loss, torch.tensor([5.0, 0, 0]).double()).remarks == (
        "the weights of 3 source rows are worth 1.0 equal ones: the estimate is rough",)  # fmt: skip


def test_a_plain_regressor_sees_labelled_rows_and_one_with_domains_sees_all():
    S, y, T, w = draw(0, 10, 4)
    X, labels, domain = table(S, y, T)
    labels[-1], domain = 7.0, np.where(domain > 0, 3, -5)
    plain, aware = [], []
    importance_weighted_cv(Line(seen=plain), X, labels, domain, folds=5, weights=w)
    importance_weighted_cv(Aware(seen=aware), X, labels, domain, folds=5, weights=w)
    assert len(plain) == len(aware) == 5
    for (rows, targets), (every, gapped, codes) in zip(plain, aware, strict=True):
        assert (len(rows), len(every)) == (9, 12)
        assert targets[-1] == 7
        assert np.array_equal(rows[:-1], every[:8])
        assert np.isnan(gapped[8:11]).all()
        assert codes.tolist() == [3] * 8 + [-5] * 4
    held = np.concatenate([np.setdiff1d(S, rows) for rows, _ in plain])
    assert sorted(held) == sorted(S[:, 0])


def test_circular_validation_goes_there_and_back():
    """Forward: all rows. Back: the target with its predicted labels, where there is no true one, is the source."""
    S, y, T, _ = draw(0, 10, 4)
    X, labels, domain = table(S, y, T)
    labels[-1], seen = 7.0, []
    risk = circular_validation(Aware(2.0, seen), X, labels, domain)
    (_, _, forward), (back_X, back_y, back) = seen
    assert forward.tolist() == domain.tolist()
    assert np.array_equal(back_X, X)
    assert (back > 0).tolist() == (domain < 0).tolist()
    assert np.isnan(back_y[:10]).all()
    assert np.allclose(back_y[10:], [*(2 * T[:3, 0]), 7])
    assert math.isclose(risk.value, ((2 * S[:, 0] - y) ** 2).mean(), rel_tol=1e-12)
    assert risk.remarks


def test_every_criterion_prefers_the_right_of_two_models():
    """y is a square: a parabola is right, a line and a constant are not."""
    rng = np.random.default_rng(0)
    S, T = rng.normal(size=(150, 1)), 1 + rng.normal(size=(150, 1))
    X, y, domain = table(S, S[:, 0] ** 2 + 0.1 * rng.normal(size=150), T)
    for risk in (importance_weighted_cv, deep_embedded_validation, circular_validation):
        parabola, line, constant = (risk(make_pipeline(PolynomialFeatures(k), Ridge()), X, y, domain).value for k in (2, 1, 0))
        assert parabola < 0.2 * line
        assert parabola < 0.2 * constant


def test_dev_weighs_in_features_of_the_fitted_estimator():
    """Features that forget what shifts leave weights near 1."""
    S, y, T, _ = draw(0, 100, 100)
    X, labels, domain = table(S, y, T)
    own = deep_embedded_validation(Line(), X, labels, domain)
    noise = np.random.default_rng(1).normal(size=200)
    lookup = dict(zip(X[:, 0], noise, strict=True))
    blind = deep_embedded_validation(Line(), X, labels, domain, features=lambda fitted, rows: np.array([[lookup[x[0]]] for x in rows]))
    same = deep_embedded_validation(Line(), X, labels, domain, features=lambda fitted, rows: rows)
    assert own.ess < 75 < 95 < blind.ess
    assert math.isclose(same.value, own.value, rel_tol=1e-9)


@every_risk
def test_tables_keep_their_type_and_outputs_their_mean(risk):
    S, y, T, _ = draw(0, 40, 30)
    X, labels, domain = table(np.hstack([S, S**2]), y, np.hstack([T, T**2]))
    model = make_pipeline(StandardScaler(), LinearRegression())
    known = risk(model, X, labels, domain).value
    assert not hasattr(model[-1], "coef_")
    one = risk(model, pd.DataFrame(X, columns=["a", "b"]), pd.Series(labels), pd.Series(domain)).value
    two = risk(model, torch.from_numpy(X), np.stack([labels, labels], 1)).value
    assert math.isclose(one, known, rel_tol=1e-9)
    if risk is not circular_validation:
        half = risk(model, X, np.stack([labels, 0 * labels], 1), domain).value
        assert math.isclose(half, known / 2, rel_tol=1e-6)
    assert math.isclose(two, known, rel_tol=1e-9)


@every_risk
def test_the_last_step_of_a_pipeline_is_told_of_domains(risk):
    S, y, T, _ = draw(0, 20, 20)

    class Told(LinearRegression):
        def fit(self, X, y, sample_domain=None):
            assert set(sample_domain) == {1, -1} or set(sample_domain) == {1, -2}
            return super().fit(X[~np.isnan(y)], y[~np.isnan(y)])

    risk(make_pipeline(StandardScaler(), Told()), *table(S, y, T))


@every_risk
def test_errors(risk):
    S, y, T, w = draw(0, 6, 4)
    X, labels, domain = table(S, y, T)
    for call, argument in (
        (lambda: risk(Line(), S, y), "sample_domain"),
        (lambda: risk(Line(), S, y, [1] * 6), "sample_domain"),
        (lambda: risk(Line(NAN), X, labels, domain), "estimator"),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            call()
        assert error.value.argument == argument
    if risk is not circular_validation:
        for options, argument in (({"folds": 7}, "folds"), ({"weights": w[:5]}, "weights"), ({"weights": -w}, "weights")):
            with pytest.raises(InputError) as error:
                risk(Line(), X, labels, domain, **options)
            assert error.value.argument == argument
