"""Maps of inputs: closed forms, the certificate, and the regressor around a regressor."""

import pickle
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from driftway.adapt import AutoTransferRegressor, PooledGP
from driftway.align import TransportedRegressor, equal_laws, input_map
from driftway.checks import InputError
from driftway.transport import Settings, w2

TINY: dict[str, Any] = {"depth": 1, "max_iter": 2}
CODES = np.array([4] * 60 + [2] * 40 + [-3] * 50)
NEW = np.random.default_rng(1).normal(size=(5, 3))
both = pytest.mark.parametrize("how", ["value", "moments"])


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(labels: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Two sources on other scales, a target, and a column of 0 and 1; y is the same function of the target's scale."""
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=(150, 2)), rng.random(150) < 0.5]
    y = 2 * X[:, 0] - X[:, 1] + X[:, 2] + 0.1 * rng.normal(size=150)
    X[CODES == 4, :2] = 3 * X[CODES == 4, :2] + 5
    X[CODES == 2, 0] -= 4
    y[100 + labels :] = np.nan
    return X, y


def fitted(regressor: Any = None, **options: Any) -> TransportedRegressor:
    own = TransportedRegressor(Ridge() if regressor is None else regressor, **{"steps": 40, **options})
    return own.fit(*draw(), CODES)


class TestMoments:
    def test_the_source_has_the_moments_of_the_target(self):
        X, Y = normal(60, 3, 0) * torch.tensor([1.0, 2.0, 3.0]) + 4, normal(50, 3, 1) - 1
        found = input_map(X, Y, how="moments", columns=[0, 2])(X)
        for j in (0, 2):
            assert found[:, j].mean() == pytest.approx(float(Y[:, j].mean()))
            assert found[:, j].std() == pytest.approx(float(Y[:, j].std()), rel=2e-3)  # of 60 rows and of 50
            slope = Y[:, j].std(correction=0) / X[:, j].std(correction=0)
            torch.testing.assert_close(found[:, j], Y[:, j].mean() + slope * (X[:, j] - X[:, j].mean()))
        assert torch.equal(found[:, 1], X[:, 1])

    def test_weights_are_as_many_rows(self):
        X, Y, w, v = normal(30, 2, 0), 2 * normal(20, 2, 1) + 3, torch.arange(30) % 3, torch.arange(20) % 2 + 1
        one = input_map(X, Y, how="moments", columns=[0, 1], weight=w.double(), weight_target=v.double())
        two = input_map(X.repeat_interleave(w, 0), Y.repeat_interleave(v, 0), how="moments", columns=[0, 1])
        torch.testing.assert_close(one(X), two(X))

    def test_prices_of_normal_laws_with_independent_columns_close_the_gap(self):
        """W2^2 / 2 of N(0, I) and N(m, s^2 I) is (|m|^2 + 2 (s - 1)^2) / 2."""
        X, Y = normal(1000, 2, 0), 2 * normal(1000, 2, 1) + 1
        own = input_map(X, Y, how="moments", columns=[0, 1])
        assert own.certificate.gap < 0.03
        unit = float(own.unit.square().mean())
        assert own.certificate.upper * unit == pytest.approx((2 + 2) / 2, rel=0.15)


class TestValue:
    @pytest.mark.parametrize("d", [1, 3])
    def test_normal_laws_are_joined_by_the_map_of_bures(self, d: int):
        A, B = (torch.eye(d) + 0.5 * normal(d, d, seed) for seed in (2, 3))
        X, Y = normal(400, d, 0) @ A.T, normal(300, d, 1) @ B.T + 2
        own = input_map(X, Y, columns=range(d), steps=250)
        x, y = ((rows / own.unit).numpy() for rows in (X, Y))
        Cx, Cy = (np.cov(rows.T).reshape(d, d) for rows in (x, y))
        root = np.real(sqrtm(Cx))
        S = np.linalg.inv(root) @ np.real(sqrtm(root @ Cy @ root)) @ np.linalg.inv(root)
        known = y.mean(0) + (x - x.mean(0)) @ S
        found = (own(X) / own.unit).numpy()
        assert ((found - known) ** 2).mean() < 0.01 * ((x - known) ** 2).mean()
        assert own.certificate.gap < 0.05
        assert own.after.p_value > 0.05 > equal_laws(X, Y).p_value

    def test_it_bends_where_moments_cannot(self):
        X, Y = normal(300, 1, 0), normal(250, 1, 1).exp()
        for how, least, most in (("value", 0.05, 1.0), ("moments", 0.0, 0.01)):
            assert least < input_map(X, Y, how=how, columns=[0], steps=250).after.p_value <= most

    def test_many_columns(self):
        X, Y = normal(200, 12, 0), normal(150, 12, 1) * 2 + 1
        own = input_map(X, Y, columns=range(12), steps=60)
        assert own.inner.family == "residual"
        assert own.certificate.gap < 0.1

    def test_rows_without_weight_take_no_part(self):
        X, Y, w = normal(60, 2, 0), normal(50, 2, 1) + 3, (torch.arange(60) < 40).double()
        one, two = input_map(X, Y, columns=[0, 1], steps=20, weight=w), input_map(X[:40], Y, columns=[0, 1], steps=20)
        torch.testing.assert_close(one(X), two(X))


@both
class TestBoth:
    def test_no_shift_is_no_map(self, how: str):
        X = normal(400, 2, 0) @ torch.tensor([[1.0, 0.0], [0.8, 0.6]]).double()
        own = input_map(X, X, how=how, columns=[0, 1], steps=250)
        assert (own(X) - X).square().mean().sqrt() < (0.07 if how == "value" else 1e-12)
        assert own.certificate.upper < 0.01

    def test_the_certificate_holds(self, how: str):
        X, Y = normal(80, 2, 0), normal(60, 2, 1) @ torch.tensor([[1.0, 0.0], [2.0, 0.5]]).double() + 1
        own = input_map(X, Y, how=how, columns=[0, 1], steps=30)
        truth = w2(X / own.unit, Y / own.unit) ** 2 / 2
        assert own.certificate.lower <= truth <= own.certificate.upper
        assert own.certificate.gap < 0.3

    @pytest.mark.parametrize("kind", ["constant target column", "constant source column", "constant target", "all equal", "few rows",
                                      "huge offset", "equal columns"])  # fmt: skip
    def test_hard_rows(self, how: str, kind: str):
        X, Y = normal(40, 3, 0), normal(30, 3, 1) + 2
        if kind == "constant target column":
            Y[:, 0] = 5
        elif kind == "constant source column":
            X[:, 0] = 5
        elif kind == "constant target":
            Y[:] = 5
        elif kind == "all equal":
            X[:], Y[:] = 7, 7
        elif kind == "few rows":
            X, Y = X[:2], Y[:2]
        elif kind == "huge offset":
            X, Y = X + 1e8, Y + 1e8
        else:
            X, Y = (torch.cat([rows[:, :1]] * 3, 1) for rows in (X, Y))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = input_map(X, Y, how=how, columns=[0, 1, 2], steps=20)(X)
        assert found.isfinite().all()
        if kind == "constant target column":
            torch.testing.assert_close(found[:, 0], torch.full_like(found[:, 0], 5))
        if kind in ("constant target", "all equal"):
            torch.testing.assert_close(found, Y[:1].expand_as(found))

    def test_units_origin_and_order_of_rows(self, how: str):
        X, Y = normal(40, 2, 0), 2 * normal(30, 2, 1) + 1
        a, b = torch.tensor([1e-3, 1e4]).double(), torch.tensor([5.0, -1e5]).double()
        options: dict[str, Any] = {"how": how, "columns": [0, 1], "steps": 20}
        known, order = input_map(X, Y, **options)(X), torch.randperm(30, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close((input_map(a * X + b, a * Y + b, **options)(a * X + b) - b) / a, known, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(input_map(X.flip(0), Y[order], **options)(X), known, rtol=1e-6, atol=1e-6)

    def test_one_row_has_no_law(self, how: str):
        with pytest.raises(InputError, match="X: expected at least 2 rows of the target, whose law is to be known, got 1"):
            input_map(normal(5, 2, 0), normal(1, 2, 1), how=how, columns=[0])

    def test_the_regressor_gets_mapped_sources(self, how: str):
        X, y = draw()
        own, moved = fitted(how=how), X.copy()
        assert set(own.maps_) == set(own.tests_) == {2, 4}
        assert own.how_ == how
        for code, found in own.maps_.items():
            moved[code == CODES] = found(torch.from_numpy(X[code == CODES])).numpy()
        assert np.array_equal(moved[CODES < 0], X[CODES < 0])
        assert np.array_equal(moved[:, 2], X[:, 2])
        labelled = ~np.isnan(y)
        np.testing.assert_allclose(own.predict(NEW), Ridge().fit(moved[labelled], y[labelled]).predict(NEW))
        again = fitted(PooledGP(**TINY), how=how)
        plain = PooledGP(**TINY).fit(moved, y, CODES)
        np.testing.assert_allclose(again.predict(NEW, return_std=True), plain.predict(NEW, return_std=True), rtol=1e-6)

    def test_it_helps_where_scales_differ(self, how: str):
        X, y = draw(0)
        fresh = np.random.default_rng(5).normal(size=(200, 3))
        truth = 2 * fresh[:, 0] - fresh[:, 1] + fresh[:, 2]
        errors = []
        for model in (TransportedRegressor(Ridge(), how=how, steps=80), TransportedRegressor(Ridge(), how=how, level=0)):
            with pytest.warns(UserWarning, match="no target row has a label"):
                errors.append(np.abs(model.fit(X, y, CODES).predict(fresh) - truth).mean())
        assert errors[0] < 0.4 * errors[1]

    def test_pickle_and_seed(self, how: str):
        own = fitted(how=how)
        back = pickle.loads(pickle.dumps(own))  # noqa: S301 -- made in the line
        assert np.array_equal(back.predict(NEW), own.predict(NEW))
        assert np.array_equal(fitted(how=how).predict(NEW), own.predict(NEW))
        X = torch.from_numpy(draw()[0])
        torch.testing.assert_close(back.maps_[4](X), own.maps_[4](X), rtol=0, atol=0)

    def test_arguments_and_the_global_generators_are_left_alone(self, how: str):
        X, y = draw()
        before, state, numpy_state = (X.copy(), y.copy()), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        TransportedRegressor(Ridge(), how=how, steps=10).fit(X, y, CODES)
        assert np.array_equal(X, before[0])
        assert np.array_equal(y, before[1], equal_nan=True)
        assert torch.equal(state, torch.get_rng_state())
        assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


class TestBadInput:
    @pytest.mark.parametrize(("options", "words"), [({"how": "auto"}, "how: expected one of value, moments, got 'auto'"),
                                                    ({"columns": []}, "columns: expected at least one column, got none")])  # fmt: skip
    def test_one_line(self, options: dict[str, Any], words: str):
        with pytest.raises(InputError, match=words):
            input_map(normal(5, 2, 0), normal(5, 2, 1), **{"columns": [0], **options})


class TestLevel:
    def test_a_source_of_the_same_law_stays(self):
        X, y = draw()
        X[:100] = np.c_[np.random.default_rng(8).normal(size=(100, 2)), X[:100, 2]]
        X[CODES == 4, :2] += 3
        own = TransportedRegressor(Ridge(), steps=10).fit(X, y, CODES)
        assert set(own.maps_) == {4}
        assert own.tests_[2].p_value > 0.05
        every = TransportedRegressor(Ridge(), steps=10, level=1).fit(X, y, CODES)
        assert set(every.maps_) == {2, 4}
        none = TransportedRegressor(Ridge(), level=0).fit(X, y, CODES)
        assert (none.maps_, none.how_) == ({}, "none")


class TestColumns:
    def test_two_values_stay_unless_asked_for(self):
        X, y = draw()
        assert fitted(how="moments").maps_[4].columns == (0, 1)
        assert fitted(how="moments", columns="all").maps_[4].columns == (0, 1, 2)
        assert fitted(how="moments", columns=[2, 0]).maps_[4].columns == (0, 2)
        named = TransportedRegressor(Ridge(), how="moments", columns=["b"]).fit(pd.DataFrame(X, columns=["a", "b", "c"]), y, CODES)
        assert named.maps_[4].columns == (1,)
        with pytest.warns(UserWarning, match="no column has more than two values: nothing is mapped"):
            own = TransportedRegressor(Ridge()).fit(X[:, 2:], y, CODES)
        assert own.maps_ == {}

    @pytest.mark.parametrize(("value", "words"), [("some", "one of auto, all, got 'some'"), ((), r"got \(\)"), (1, "got 1"),
                                                  ([3], "numbers from 0 to 2, got 3"), (["b"], "got 'b'"), ([True], "got True"),
                                                  ([-1], "got -1")])  # fmt: skip
    def test_bad_ones(self, value: object, words: str):
        with pytest.raises(InputError, match=f"columns: .*{words}"):
            fitted(columns=value)


class TestChoice:
    def test_labels_choose_a_map_where_scales_differ(self):
        own = fitted(how="auto")
        assert own.how_ in ("value", "moments")
        assert own.errors_[own.how_] < 0.5 * own.errors_["none"]
        assert set(own.maps_) == {2, 4}

    def test_labels_refuse_a_map_where_cases_differ(self):
        """The same function of the inputs everywhere: a line through shifted rows."""
        X, y = draw()
        X[:100, 0] += 5
        own = TransportedRegressor(LinearRegression(), how="auto", steps=40).fit(X, np.where(np.isnan(y), np.nan, 2 * X[:, 0]), CODES)
        assert own.how_ == "none"
        assert own.errors_["none"] < 1e-6 < own.errors_["moments"]
        assert own.maps_ == {}

    def test_few_labels_do_not_choose(self):
        X, y = draw(3)
        with pytest.raises(InputError, match="how: expected value or moments with fewer target labels than 5 folds, got auto"):
            TransportedRegressor(Ridge(), how="auto").fit(X, y, CODES)

    def test_processes_are_asked_alike(self):
        own = fitted(PooledGP(**TINY), how="auto", folds=2, steps=5)
        assert set(own.errors_) == {"none", "moments", "value"}


class TestRegressor:
    def test_the_default_is_the_one_that_chooses(self):
        own = TransportedRegressor()
        assert isinstance(own._made(), AutoTransferRegressor)
        assert clone(own).get_params() == own.get_params()

    def test_target_rows_alone(self):
        X, y = draw()
        own = TransportedRegressor(PooledGP(**TINY)).fit(X[:100], y[:100])
        assert (own.maps_, own.tests_, own.how_) == ({}, {}, "none")
        np.testing.assert_allclose(own.predict(NEW), PooledGP(**TINY).fit(X[:100], y[:100]).predict(NEW))

    def test_what_the_regressor_does_not_give_is_refused(self):
        with pytest.raises(InputError, match="return_std: expected a regressor that gives it, got Ridge"):
            fitted(how="moments").predict(NEW, return_std=True)
        X, y = draw()
        with pytest.raises(InputError, match="sample_weight: expected None, as KNeighborsRegressor takes no weights"):
            TransportedRegressor(KNeighborsRegressor()).fit(X, y, CODES, np.ones(150))

    def test_weights_reach_it(self):
        X, y = draw()
        weight = np.r_[np.ones(100), np.full(50, 9.0)]
        own = TransportedRegressor(Ridge(), how="moments")
        assert np.abs(clone(own).fit(X, y, CODES, weight).predict(NEW) - own.fit(X, y, CODES).predict(NEW)).max() > 1e-4
        ones = clone(own).fit(X, y, CODES, np.ones(150))
        np.testing.assert_allclose(ones.predict(NEW), own.predict(NEW))

    def test_pandas(self):
        X, y = draw()
        table = pd.DataFrame(X, columns=["a", "b", "c"], index=range(7, 157))
        own = TransportedRegressor(PooledGP(**TINY), how="moments").fit(table, pd.Series(y, table.index, name="answer"), CODES)
        found = own.predict(table[:5])
        assert isinstance(found, pd.Series)
        assert list(found.index) == [7, 8, 9, 10, 11]
        assert isinstance(TransportedRegressor(Ridge(), how="moments").fit(table, y, CODES).predict(table[:5]), np.ndarray)
        with pytest.warns(UserWarning, match="X does not have valid feature names"):
            assert isinstance(own.predict(X[:5]), np.ndarray)

    def test_several_outputs(self):
        X, y = draw()
        own = TransportedRegressor(PooledGP(**TINY), how="moments").fit(X, np.c_[y, 2 * y], CODES)
        assert own.predict(NEW).shape == (5, 2)

    def test_not_fitted(self):
        with pytest.raises(NotFittedError):
            TransportedRegressor().predict(NEW)

    @pytest.mark.parametrize(("parameter", "value", "words"), [
        ("how", "ot", "one of value, moments, auto, got 'ot'"), ("how", None, "got None"), ("family", "table", "got 'table'"),
        ("steps", 0, "a whole number >= 1, got 0"), ("folds", 1, "a whole number >= 2, got 1"), ("random_state", None, "got None"),
        ("level", 2, "a number from 0 to 1, got 2"), ("level", "no", "got 'no'"), ("settings", {}, "Settings or None"),
        ("regressor", Ridge, "a regressor"), ("regressor", "ridge", "a regressor, got 'ridge'"),
    ])  # fmt: skip
    def test_bad_values(self, parameter: str, value: object, words: str):
        X, y = draw()
        own = TransportedRegressor(**{parameter: value})
        with pytest.raises(InputError, match=words) as error:
            own.fit(X, y, CODES)
        assert error.value.argument == parameter
        assert not hasattr(own, "maps_")

    def test_settings_reach_the_value(self):
        assert fitted(settings=Settings(components=3), columns=[0]).maps_[4].inner.shape["components"] == 3

    @pytest.mark.parametrize(("argument", "words", "options"), [
        ("sample_domain", "target rows, which have a negative code", {"codes": np.ones(150, dtype=int)}),
        ("y", "150 rows, as X has, got 149", {"y": draw()[1][:-1]}),
        ("y", "targets, got None", {"y": None}),
        ("sample_weight", "finite weights >= 0, got -1", {"weight": np.where(np.arange(150) == 2, -1, 1)}),
        ("X", "at least 2 rows of the source", {"weight": np.where(CODES == 4, np.arange(150) == 0, 1)}),
    ])  # fmt: skip
    def test_bad_rows(self, argument: str, words: str, options: dict[str, Any]):
        X, y = draw()
        with pytest.raises(InputError, match=words) as error:
            TransportedRegressor(Ridge()).fit(X, options.get("y", y), options.get("codes", CODES), options.get("weight"))
        assert error.value.argument == argument


@parametrize_with_checks([TransportedRegressor(PooledGP(depth=1, max_iter=1)), TransportedRegressor(Ridge(), how="moments")])
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)
