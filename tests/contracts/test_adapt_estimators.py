"""The laws of a regressor for few labels, for every class. To add one, add a line to `ESTIMATORS`.

Settings are the smallest with which the code takes all its paths: what is learned is no concern here.
"""

import math
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

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
from driftway.checks import InputError

TINY: dict[str, Any] = {"depth": 1, "max_iter": 2}
ESTIMATORS: dict[str, Callable[[], Any]] = {
    "target": lambda: TargetOnlyGP(**TINY),
    "pooled": lambda: PooledGP(**TINY),
    "transfer": lambda: TransferGPRegressor(**TINY),
    "reweighted": lambda: ReweightedGP(**TINY),
    "embedding": lambda: MeanEmbeddingGP("exponential", base=8, **TINY),
    "dino": lambda: DINOInitRegressor("centred", base=8, **TINY),
    "trained": lambda: DINOTrainRegressor(base=8, **TINY),
    "auto": lambda: AutoTransferRegressor(("target", "dino"), base=8, **TINY),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "dino, linear": lambda: DINOInitRegressor("product", base=8, depth=0, max_iter=2),
    "trained to the end": lambda: DINOTrainRegressor("product", base=8, time=math.inf, **TINY),
    "auto, best": lambda: AutoTransferRegressor(("target", "transfer"), combine="best", trained=False, **TINY),
}
EVERY = {**ESTIMATORS, **OTHERS}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
every_setting = pytest.mark.parametrize("name", EVERY)
LONELY = ("target",)  # has no use for sources
with_sources = pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in LONELY])
CODES = np.array([4] * 20 + [2] * 10 + [-3] * 18)
LABELS = 6


def draw(k: int = 0, *, labels: int = LABELS, d: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sources, and a target with so many labels; k outputs, 0 for (n,)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(48, d)) + 0.5 * (CODES < 0)[:, None]
    y = np.stack([np.sin(X[:, 0]) + j * X[:, -1] + 0.4 * (CODES == 2) for j in range(k or 1)], 1) + 0.1 * rng.normal(size=(48, k or 1))
    y[30 + labels :] = np.nan
    return X, y if k else y[:, 0]


NEW = np.random.default_rng(1).normal(size=(5, 2))


def fit(name: str, X: Any, y: Any, codes: Any = CODES, weight: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return EVERY[name]().fit(X, y, codes, weight)


def answers(name: str, X: Any, y: Any, codes: Any = CODES, weight: Any = None, new: Any = NEW) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of new rows."""
    mean, std = fit(name, X, y, codes, weight).predict(new, return_std=True)
    return np.asarray(mean), np.asarray(std)


@cache
def usual(name: str, k: int = 0) -> Any:
    """Fitted to `draw(k)`; not to be fitted again."""
    return fit(name, *draw(k))


def known(name: str, k: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What it answers."""
    return usual(name, k).predict(NEW, return_std=True)


def close(found: tuple[np.ndarray, np.ndarray], known: tuple[np.ndarray, np.ndarray], tolerance: float = 1e-8) -> None:
    for a, b in zip(found, known, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


FOLDS = "the time is chosen by rows held out, which repeated rows are not"
EXPECTED = {name: {"check_sample_weight_equivalence_on_dense_data": FOLDS} for name in ("DINOTrainRegressor", "AutoTransferRegressor")}


@parametrize_with_checks([made().set_params(max_iter=1) for made in ESTIMATORS.values()],
                         expected_failed_checks=lambda own: EXPECTED.get(type(own).__name__, {}))  # fmt: skip
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


BAD_VALUES = [
    ("depth", -1, "a whole number >= 0, got -1"), ("depth", 1.5, "a whole number >= 0, got 1.5"),
    ("activation", "step", "got 'step'"),
    ("source_weight", 2, "a number from 0 to 1, got 2"), ("source_weight", -0.1, "got -0.1"), ("source_weight", "all", "got 'all'"),
    ("max_iter", 0, "a whole number >= 1, got 0"), ("random_state", -1, "got -1"), ("random_state", None, "got None"),
    ("base", 0, "a whole number >= 1, got 0"), ("rank", 0, "a whole number >= 1, got 0"), ("pull", -1, "a finite number >= 0, got -1"),
    ("form", "sine", "got 'sine'"), ("rule", "oracle", "got 'oracle'"), ("time", -1.0, "a finite number >= 0, got -1.0"),
    ("time", math.nan, "got nan"), ("time", "long", "got 'long'"), ("weights", "all", "one of kulsif, kmm, logistic, got 'all'"),
    ("candidates", (), r"a list of names, got \(\)"), ("candidates", None, "got None"), ("candidates", "target", "got 'target'"),
    ("candidates", ("target", "gp"), "got 'gp'"), ("combine", "mean", "one of stack, best, got 'mean'"),
]  # fmt: skip


class TestParameters:
    @every_estimator
    def test_clone_get_and_set(self, name: str):
        own = ESTIMATORS[name]()
        copied = clone(own)
        assert copied.get_params() == own.get_params()
        assert copied is not own
        changed = clone(own).set_params(depth=2, activation="erf", source_weight=1, random_state=3)
        assert (changed.depth, changed.activation, changed.source_weight, changed.random_state) == (2, "erf", 1, 3)
        X, y = draw()
        assert np.abs(changed.fit(X, y, CODES).predict(NEW) - own.fit(X, y, CODES).predict(NEW)).max() > 1e-6

    @every_estimator
    def test_pickle(self, name: str):
        own = usual(name)
        back = pickle.loads(pickle.dumps(own))  # noqa: S301 -- made in the line
        close(back.predict(NEW, return_std=True), own.predict(NEW, return_std=True), 0)
        assert back.shift_.codes == (-3, 2, 4)

    @pytest.mark.parametrize(("name", "parameter", "value", "words"), [
        (name, *row) for row in BAD_VALUES for name in ESTIMATORS if row[0] in ESTIMATORS[name]().get_params()])  # fmt: skip
    def test_bad_values_are_refused_before_anything_is_fitted(self, name: str, parameter: str, value: object, words: str):
        own = ESTIMATORS[name]().set_params(**{parameter: value})
        X, y = draw()
        with pytest.raises(InputError, match=words) as error:
            own.fit(X, y, CODES)
        assert error.value.argument == parameter
        assert "\n" not in str(error.value)
        assert not hasattr(own, "shift_")

    @every_estimator
    def test_not_fitted(self, name: str):
        with pytest.raises(NotFittedError):
            ESTIMATORS[name]().predict(NEW)


class TestPredictions:
    @every_setting
    @pytest.mark.parametrize("k", [0, 1, 3])
    def test_shapes_and_what_belongs_together(self, name: str, k: int):
        own, shape = usual(name, k), (5, k) if k else (5,)
        mean, (same, std), (again, cov) = own.predict(NEW), own.predict(NEW, return_std=True), own.predict(NEW, return_cov=True)
        assert mean.shape == std.shape == shape
        assert cov.shape == ((5, 5, k) if k else (5, 5))
        np.testing.assert_allclose(mean, same)
        np.testing.assert_allclose(mean, again)
        part = cov.reshape(5, 5, -1)
        np.testing.assert_allclose(part, part.transpose(1, 0, 2), atol=1e-9)
        assert all(np.linalg.eigvalsh(part[..., j]).min() > -1e-8 * np.abs(part).max() for j in range(k or 1))
        noise = std.reshape(5, -1) ** 2 - np.stack([part[..., j].diagonal() for j in range(k or 1)], 1)
        assert (noise > 0).all()
        np.testing.assert_allclose(noise, noise[:1].repeat(5, 0), rtol=1e-6)  # of a label: the same at all rows
        if "auto" not in name:
            np.testing.assert_allclose(noise[0], own.noise_std_**2, rtol=1e-6)
        assert own.output_covariance_.shape == (k or 1, k or 1)
        assert own.correlation_.shape == (3, 3)
        assert own.n_iter_ >= 1

    @every_estimator
    def test_rows_do_not_mix(self, name: str):
        own = usual(name)
        close(own.predict(NEW[:1], return_std=True), tuple(a[:1] for a in own.predict(NEW, return_std=True)), 1e-10)

    @every_estimator
    def test_one_of_std_and_cov(self, name: str):
        own = usual(name)
        with pytest.raises(InputError, match="return_std: expected one of return_std and return_cov, got both"):
            own.predict(NEW, return_std=True, return_cov=True)

    @every_estimator
    def test_other_columns_are_refused_in_the_words_of_scikit_learn(self, name: str):
        X, y = draw()
        own = usual(name)
        for new in (NEW[:, :1], np.c_[NEW, NEW]):
            with pytest.raises(ValueError, match=f"X has {new.shape[1]} features, but .* is expecting 2 features"):
                own.predict(new)
        named = fit(name, pd.DataFrame(X, columns=["a", "b"]), y)
        with pytest.raises(ValueError, match="feature names should match"):
            named.predict(pd.DataFrame(NEW, columns=["b", "a"]))
        with pytest.raises(ValueError, match="NaN"):
            own.predict(NEW * np.nan)

    @every_estimator
    def test_fitting_again_forgets(self, name: str):
        own = fit(name, *draw(3, seed=5))
        close(own.fit(*draw(), CODES).predict(NEW, return_std=True), known(name), 0)

    @every_estimator
    def test_tables_that_cannot_be_written_to(self, name: str):
        X, y = draw()
        for part in (X, y):
            part.flags.writeable = False
        new = NEW.copy()
        new.flags.writeable = False
        own = fit(name, X, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            close(own.predict(new, return_std=True), own.predict(NEW, return_std=True), 0)

    @every_estimator
    def test_arguments_and_the_global_generator_are_left_alone(self, name: str):
        X, y = draw()
        before, state, numpy_state = (X.copy(), y.copy()), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        answers(name, X, y)
        assert np.array_equal(X, before[0])
        assert np.array_equal(y, before[1], equal_nan=True)
        assert torch.equal(state, torch.get_rng_state())
        assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


class TestInvariance:
    @every_setting
    def test_the_order_of_the_rows(self, name: str):
        """Among whole numbers many rows have equal sums."""
        X, y = draw(d=4)
        X[:, :2] = X[:, :2].round()
        order, new = np.random.default_rng(3).permutation(48), np.c_[NEW, NEW]
        close(answers(name, X[order], y[order], CODES[order], new=new), answers(name, X, y, new=new))

    @every_setting
    def test_the_units_and_origin_of_the_targets(self, name: str):
        X, y = draw(2)
        for unit in (1e-6, 1e6):
            mean, std = answers(name, X, unit * (y + 2))
            close((mean / unit - 2, std / unit), known(name, 2), 1e-6)

    @with_sources
    def test_one_label_alone_has_the_units_of_the_others(self, name: str):
        X, y = draw(labels=1)
        mean, std = answers(name, X, y)
        scaled = answers(name, X, 1e3 * y)
        close((scaled[0] / 1e3, scaled[1] / 1e3), (mean, std), 1e-6)

    @every_estimator
    def test_the_units_and_origin_of_the_inputs(self, name: str):
        X, y = draw()
        a, b = np.array([1e-3, 1e4]), np.array([5.0, -1e6])
        close(answers(name, a * X + b, y, new=a * NEW + b), known(name), 1e-6)

    @every_estimator
    def test_the_order_of_the_outputs(self, name: str):
        X, y = draw(3)
        close(tuple(part[:, ::-1] for part in answers(name, X, y[:, ::-1])), known(name, 3), 1e-7)

    @every_estimator
    def test_codes_are_names(self, name: str):
        X, y = draw()
        renamed = np.select([CODES == 4, CODES == 2], [9, 7], -1)
        close(answers(name, X, y, renamed), known(name), 0)

    @pytest.mark.parametrize("name", ["transfer", "reweighted", "auto"])
    def test_every_kind_of_array(self, name: str):
        X, y = (part.astype(np.float32) for part in draw())
        new = NEW.astype(np.float32)
        expected = answers(name, X.astype(float), y.astype(float), new=new.astype(float))
        for kind in (np.asarray, torch.from_numpy, lambda part: part.tolist(), lambda part: np.asfortranarray(part.astype(">f8")),
                     lambda part: pd.DataFrame(part).squeeze()):  # fmt: skip
            close(fit(name, kind(X), kind(y), kind(CODES)).predict(kind(new), return_std=True), expected, 1e-12)

    @pytest.mark.parametrize("name", ["target", "pooled", "transfer", "embedding", "dino", "dino, linear"])
    def test_weights_are_as_many_rows(self, name: str):
        """Where all rows are base samples. Importance, training and leave-one-out are those of rows."""
        X, y = draw()
        weight = np.arange(48) % 3
        rows = np.arange(48).repeat(weight)
        own = EVERY[name]()
        own.set_params(**({"base": 100} if "base" in own.get_params() else {}))
        one, two = clone(own).fit(X, y, CODES, weight), clone(own).fit(X[rows], y[rows], CODES[rows])
        close(one.predict(NEW, return_std=True), two.predict(NEW, return_std=True), 1e-6)

    @every_estimator
    def test_weights_that_are_all_one(self, name: str):
        X, y = draw()
        close(answers(name, X, y, weight=np.ones(48)), known(name), 0)


class TestFewLabels:
    @every_setting
    @pytest.mark.parametrize("labels", [1, 2, 3, 4])
    def test_a_handful(self, name: str, labels: int):
        mean, std = answers(name, *draw(2 * (labels % 2), labels=labels))
        assert np.isfinite(mean).all()
        assert (std > 0).all()

    @every_estimator
    def test_none_warns_and_works_where_there_are_sources(self, name: str):
        X, y = draw(labels=0)
        if name in LONELY:
            with pytest.raises(InputError, match="y: expected labelled rows of the target, got none; label some"):
                fit(name, X, y)
            return
        with pytest.warns(UserWarning, match="no target row has a label: predictions rest on the source alone"):
            own = ESTIMATORS[name]().fit(X, y, CODES)
        mean, std = own.predict(NEW, return_std=True)
        assert np.isfinite(mean).all()
        assert (std > 0).all()

    @every_estimator
    def test_labels_without_weight_are_none(self, name: str):
        X, y = draw()
        weight = np.ones(48)
        weight[30:36] = 0
        if name in LONELY:
            with pytest.raises(InputError, match="labelled rows of the target"):
                fit(name, X, y, weight=weight)
            return
        hidden = y.copy()
        hidden[30:36] = np.nan
        with pytest.warns(UserWarning, match="no target row has a label"):
            own = ESTIMATORS[name]().fit(X, y, CODES, weight)
        assert np.isfinite(own.predict(NEW)).all()

    @every_estimator
    def test_one_row_of_the_target(self, name: str):
        X, y = draw()
        if name == "reweighted":
            with pytest.raises(InputError, match=r"X: expected 2 rows or more in every domain, .* got one in domain -3"):
                fit(name, X[:31], y[:31], CODES[:31])
            return
        assert np.isfinite(answers(name, X[:31], y[:31], CODES[:31])).all()

    @with_sources
    def test_gaps_tell_the_target_where_there_are_no_codes(self, name: str):
        X, y = draw()
        seen = np.where(CODES < 0, np.nan, y)
        one = CODES > 0
        close(answers(name, X, seen, None), answers(name, X, seen, np.where(one, 1, -2)), 0)


class TestOneDomain:
    @every_estimator
    def test_an_ordinary_regressor(self, name: str):
        X, y = (part[30:36] for part in draw())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plain = ESTIMATORS[name]().fit(X, y)
        with pytest.warns(UserWarning, match="target rows only: there is nothing to transfer"):
            stated = ESTIMATORS[name]().fit(X, y, -np.ones(6, dtype=int))
        close(plain.predict(NEW, return_std=True), stated.predict(NEW, return_std=True), 0)
        assert plain.correlation_.tolist() == [[pytest.approx(1.0, abs=0.05)]]


class TestHardRows:
    @every_estimator
    @pytest.mark.parametrize("kind", ["one column", "a constant column", "all equal", "huge offset", "more columns than rows",
                                      "equal rows with other labels", "an outlier"])  # fmt: skip
    def test_inputs(self, name: str, kind: str):
        X, y = draw()
        codes, new = CODES, NEW
        if kind == "one column":
            X, new = X[:, :1], NEW[:, :1]
        elif kind == "a constant column":
            X, new = np.c_[X, np.full(48, 0.1)], np.c_[NEW, NEW[:, :1]]
        elif kind == "all equal":
            X, new = 0 * X + 7, 0 * NEW + 7
        elif kind == "huge offset":
            X, new = X + 1e9, NEW + 1e9
        elif kind == "more columns than rows":
            (X, y), new = draw(d=60), np.random.default_rng(2).normal(size=(5, 60))
        elif kind == "equal rows with other labels":
            X, y, codes = np.r_[X, X], np.r_[y, y + 0.5], np.r_[CODES, CODES]
        else:
            X[-1] = 1e6
        mean, std = answers(name, X, y, codes, new=new)
        assert np.isfinite(mean).all()
        assert np.isfinite(std).all()
        assert (std > 0).all()
        if kind == "all equal":
            np.testing.assert_allclose(mean, mean[0])

    @every_estimator
    def test_constant_targets_work_with_a_warning(self, name: str):
        X, y = draw(2)
        flat = np.where(np.isnan(y), np.nan, 3.0)
        with pytest.warns(UserWarning, match="all 36 labels in output 0 equal 3: y is constant there"):
            mean, std = ESTIMATORS[name]().fit(X, flat, CODES).predict(NEW, return_std=True)
        np.testing.assert_allclose(mean, 3, atol=1e-6)
        assert np.isfinite(std).all()
        y[30:36, 1] = 2
        with pytest.warns(UserWarning, match="all 6 target labels in output 1 equal 2"):
            own = ESTIMATORS[name]().fit(X, y, CODES)
        assert np.isfinite(own.predict(NEW)).all()

    @every_estimator
    def test_equal_outputs(self, name: str):
        X, y = draw()
        mean, std = answers(name, X, np.stack([y, y], 1))
        np.testing.assert_allclose(mean[:, 0], mean[:, 1], rtol=1e-7)
        np.testing.assert_allclose(std[:, 0], std[:, 1], rtol=1e-7)


X_, Y_ = draw()
HALF = np.stack([Y_, np.where(np.arange(48) == 31, np.nan, Y_)], 1)


class TestBadInput:
    @every_estimator
    @pytest.mark.parametrize(("argument", "words", "options"), [
        ("sample_domain", "target rows, which have a negative code, got positive codes only", {"codes": np.ones(48, dtype=int)}),
        ("sample_domain", "one target, got 2 negative codes", {"codes": np.where(np.arange(48) == 40, -9, CODES)}),
        ("sample_domain", r"shape \(48,\), one code for each row of X, got shape \(47,\)", {"codes": CODES[:-1]}),
        ("sample_domain", "whole numbers other than 0, got 0 at row 0", {"codes": np.where(np.arange(48) == 0, 0, CODES)}),
        ("y", "48 rows, as X has, got 47", {"y": Y_[:-1]}),
        ("y", "at least one label, got NaN in all 48 rows", {"y": Y_ * np.nan, "codes": -np.ones(48, dtype=int)}),
        ("y", "a label in every source row, got NaN in 48 of them|got NaN in 30 of them", {"y": Y_ * np.nan}),
        ("y", "finite numbers, or NaN for a missing label, got inf at row 3", {"y": np.where(np.arange(48) == 3, np.inf, Y_)}),
        ("y", "rows with all outputs or none, got NaN in output 1 but not in all of row 31", {"y": HALF}),
        ("y", "targets, got None", {"y": None}),
        ("sample_weight", "finite weights >= 0, got -1 at row 2", {"weight": np.where(np.arange(48) == 2, -1, 1)}),
        ("sample_weight", r"shape \(48,\), one weight for each row of X, got shape \(3,\)", {"weight": np.ones(3)}),
        ("sample_weight", "zeros only", {"weight": np.zeros(48)}),
        ("sample_weight", "a positive weight in every domain, got zeros throughout domain 4", {"weight": (CODES != 4).astype(float)}),
        ("sample_weight", "a positive weight in every domain, got zeros throughout domain -3", {"weight": (CODES > 0).astype(float)}),
    ])  # fmt: skip
    def test_one_line_that_names_the_argument(self, name: str, argument: str, words: str, options: dict[str, Any]):
        with pytest.raises(InputError, match=words) as error:
            fit(name, options.get("X", X_), options.get("y", Y_), options.get("codes", CODES), options.get("weight"))
        assert error.value.argument == argument
        assert "\n" not in str(error.value)

    @every_estimator
    @pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (np.inf, "infinity")])
    def test_missing_inputs_in_the_words_of_scikit_learn(self, name: str, value: float, words: str):
        X = X_.copy()
        X[3, 1] = value
        with pytest.raises(ValueError, match=words):
            fit(name, X, Y_)

    @every_estimator
    def test_words_are_no_numbers(self, name: str):
        with pytest.raises(ValueError, match=r"could not convert string to float|dtype"):
            fit(name, np.array([["a", "b"]] * 48), Y_)
