"""A regressor around another: the rows of every source are mapped onto the law of the target's inputs before it is fitted.

A map of inputs assumes that a row keeps its target as it moves: y given T(x) in the target is y given x in the source. That holds where
two domains measure the same things on other scales. Where the inputs have moved and y given x has not, mapping ruins what was right, and
inputs alone do not tell the two apart. Labels do: `how="auto"` asks them.
"""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted, has_fit_parameter, validate_data
from torch import Tensor

from driftway.adapt import AutoTransferRegressor, Shift
from driftway.adapt.estimators_base import read_shift
from driftway.adapt.frame import canonical
from driftway.align.maps import STEPS, InputMap, equal_laws, input_map
from driftway.checks import choice, count, real, require
from driftway.kernels import MMDTest
from driftway.transport import Settings
from driftway.transport.families import FAMILIES

HOW, PLAIN = ("value", "moments", "auto"), "none"
Maps = dict[int, InputMap]


class TransportedRegressor(RegressorMixin, BaseEstimator):
    """Maps the rows of every source onto the law of the target's inputs, then fits a regressor on them and on the target's rows.

    The law of the target's inputs is that of all its rows, labelled or not. Rows of the target are not moved, so predictions are the
    regressor's. A source whose inputs pass the test of one law stays where it is, since all that a map would follow there is chance.

    Columns of 0 and 1 lie in the corners of a cube, and no smooth map keeps them there: a row would be three tenths of one category. So
    `columns="auto"` leaves columns with one or two values as they are, and the shares of categories differ after the map as before. Whole
    numbers with more values are mapped, to numbers in between.

    Args:
        regressor: any regressor of `driftway.adapt` or scikit-learn; None: `AutoTransferRegressor()`. One whose fit takes `sample_domain`
            gets all rows and their codes, any other the labelled rows.
        how: value, a learned map; moments, the mean and deviation of each column; or auto: of these and no map, the one with which the
            regressor errs least on the target's labels in cross-validation (3 x folds more fits), no map unless one is better by more
            than a standard error.
        columns: which are mapped: auto, all, or a list of their numbers or names.
        family: of the value; auto: mixture up to 8 columns, then residual.
        level: of the test of one law: only sources that it rejects are mapped; 1 maps them all.
        steps: of the training of the value.
        settings: of it (`driftway.transport.Settings`); None: sizes that suit so many rows.
        folds: of cross-validation, for how="auto".
        random_state: seed of whatever is drawn.

    Attributes:
        tests_: of one law of the columns to be mapped, in each source, by its code, and the target: the MMD and its p-value.
        maps_: the map of each source that was mapped, with its certificate and the same test after it.
        how_: what was chosen: value, moments or none.
        errors_: mean absolute error in cross-validation, in standard deviations of the target's labels, where how="auto".
        regressor_: the regressor, fitted.
        n_features_in_: columns.
        feature_names_in_: their names, where X was a data frame with names.
    """

    __metadata_request__fit = {"sample_domain": True}  # noqa: RUF012 -- scikit-learn reads it off the class
    __metadata_request__score = {"sample_domain": False}  # noqa: RUF012

    def __init__(self, regressor=None, how="value", columns="auto", level=0.05, family="auto", steps=STEPS, settings=None, folds=5,
                 random_state=0):  # fmt: skip
        self.regressor = regressor
        self.how = how
        self.columns = columns
        self.level = level
        self.family = family
        self.steps = steps
        self.settings = settings
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_domain: Any = None, sample_weight: Any = None) -> Any:
        """Map, then fit.

        Args:
            X: (n, d) rows.
            y: (n,) or (n, k) targets; NaN in target rows without label.
            sample_domain: (n,) codes: positive for sources, negative for the target. None: rows without label are the target and the others
                one source; without any such row all are target rows.
            sample_weight: (n,) weights, for the regressor and for means and deviations. A learned map leaves out rows of weight 0 and
                counts the others alike.

        Raises:
            InputError: if rows, targets, codes or a parameter are not what they should be.
        """
        self._check(weighted=(weighted := sample_weight is not None))
        shift = read_shift(self, X, y, sample_domain, sample_weight)
        columns = self._columns(shift)
        self.tests_ = self._tests(shift, columns)
        self.how_, self.maps_, self.errors_ = self._chosen(shift, columns, weighted)
        if not has_fit_parameter(self._made(), "sample_domain"):
            for remark in shift.remarks():
                warnings.warn(remark, UserWarning, stacklevel=2)
        named = y if hasattr(y, "iloc") and np.asarray(y).dtype != object else None
        index = getattr(X, "index", None)
        self.regressor_ = self._fitted(shift, _mapped(shift, self.maps_), shift.y, named, weighted, index)
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Targets of rows of the target domain.

        Args:
            X: (q, d) rows.
            return_std: also what the regressor gives for return_std.
            return_cov: also what it gives for return_cov.

        Raises:
            InputError: if X does not have the columns of the fit, or the regressor does not give what is asked for.
        """
        check_is_fitted(self)
        table: Any = validate_data(self, X, reset=False, dtype=np.float64)
        rows = self._framed(table, getattr(X, "index", None))
        asked = {name: True for name, wish in (("return_std", return_std), ("return_cov", return_cov)) if wish}
        known = inspect.signature(self.regressor_.predict).parameters
        for name in asked:
            require(name in known, name, expected="a regressor that gives it", got=type(self.regressor_).__name__,
                    cure="leave it out, or pass e.g. a PooledGP")  # fmt: skip
        found = self.regressor_.predict(rows, **asked)
        if hasattr(X, "iloc"):
            return found
        return tuple(map(np.asarray, found)) if isinstance(found, tuple) else np.asarray(found)

    def _check(self, *, weighted: bool) -> None:
        choice("how", self.how, HOW)
        choice("family", self.family, ("auto", *FAMILIES))
        level = real("level", self.level, least=0)
        require(level <= 1, "level", expected="a number from 0 to 1", got=level, cure="pass 0.05, or 1 to map every source")
        count("steps", self.steps)
        count("folds", self.folds, least=2)
        count("random_state", self.random_state, least=0)
        require(self.settings is None or isinstance(self.settings, Settings), "settings", expected="Settings or None",
                got=repr(self.settings), cure="pass settings=driftway.transport.Settings(...)")  # fmt: skip
        own = self.regressor
        usable = own is None or (hasattr(own, "fit") and hasattr(own, "predict") and hasattr(own, "get_params"))
        require(bool(usable) and not isinstance(own, type), "regressor", expected="a regressor", got=repr(own), cure="pass e.g. PooledGP()")
        require(not weighted or has_fit_parameter(self._made(), "sample_weight"), "sample_weight",
                expected=f"None, as {type(own).__name__} takes no weights", got="weights", cure="leave it out")  # fmt: skip

    def _made(self) -> Any:
        return AutoTransferRegressor(random_state=self.random_state) if self.regressor is None else clone(self.regressor)

    def _columns(self, shift: Shift) -> tuple[int, ...]:
        d, given = shift.X.shape[1], cast(Any, self.columns)
        if isinstance(given, str):
            choice("columns", given, ("auto", "all"))
            return tuple(j for j in range(d) if given == "all" or len(shift.X[:, j].unique()) > 2)
        several = isinstance(given, list | tuple | np.ndarray | pd.Index) and len(given) > 0
        require(several, "columns", expected="auto, all, or a list of numbers or names", got=repr(given), cure="pass some of the columns")
        numbers = [shift.names.index(c) if isinstance(c, str) and c in shift.names else c for c in given]
        for c in numbers:
            known = isinstance(c, int | np.integer) and not isinstance(c, bool) and bool(0 <= c < d)
            require(known, "columns", expected=f"names of X or numbers from 0 to {d - 1}", got=repr(c), cure="pass some of the columns")
        return tuple(sorted({int(c) for c in numbers}))

    def _maps(self, shift: Shift, columns: tuple[int, ...], how: str) -> Maps:
        if how == PLAIN or not columns:
            return {}
        mapped = [d for d in range(1, shift.sources + 1) if self.tests_[shift.codes[d]].p_value <= self.level]
        return {shift.codes[d]: input_map(**self._pair(shift, d), how=how, columns=columns, family=self.family, steps=self.steps,
                                          settings=self.settings) for d in mapped}  # fmt: skip

    def _tests(self, shift: Shift, columns: tuple[int, ...]) -> dict[int, MMDTest]:
        chosen = replace(shift, X=shift.X[:, columns])
        return {shift.codes[d]: equal_laws(**self._pair(chosen, d)) for d in range(1, shift.sources + 1) if columns}

    def _pair(self, shift: Shift, d: int) -> dict[str, Any]:
        """Rows and weights of a source and of the target."""
        rows, own = shift.rows(d), shift.rows(0)
        return {"X": shift.X[rows], "Y": shift.X[own], "weight": shift.weight[rows], "weight_target": shift.weight[own],
                "seed": self.random_state}  # fmt: skip

    def _chosen(self, shift: Shift, columns: tuple[int, ...], weighted: bool) -> tuple[str, Maps, dict[str, float]]:
        """The map, its name, and errors by cross-validation if these chose it."""
        if shift.sources and not columns:
            warnings.warn("no column has more than two values: nothing is mapped", UserWarning, stacklevel=3)
        if self.how != "auto":
            maps = self._maps(shift, columns, self.how)
            return (self.how if maps else PLAIN), maps, {}
        own = (shift.labelled & (shift.domain == 0) & (shift.weight > 0)).nonzero()[:, 0]
        require(not shift.sources or len(own) >= self.folds, "how", got="auto",
                expected=f"value or moments with fewer target labels than {self.folds} folds",
                cure="label more target rows: inputs alone do not tell whether a map helps")  # fmt: skip
        found = {how: self._maps(shift, columns, how) for how in (PLAIN, "moments", "value")}
        if not found["value"]:
            return PLAIN, {}, {}
        own = own[canonical(shift.X[own], shift.y[own])]
        scale, errors = shift.y[own].std(0, correction=0), {}
        scale = scale.where(scale > 0, 1.0)
        for how, maps in found.items():
            moved, each = _mapped(shift, maps), torch.zeros(len(own), dtype=torch.float64)
            for fold in range(self.folds):
                part, y = torch.arange(len(own)) % self.folds == fold, shift.y.clone()
                y[own[part]] = torch.nan
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    model = self._fitted(shift, moved, y, None, weighted)
                    answer = np.asarray(model.predict(self._framed(shift.X[own[part]].numpy())))
                each[part] = ((torch.as_tensor(answer.reshape(int(part.sum()), -1)) - shift.y[own[part]]) / scale).abs().mean(1)
            errors[how] = each
        best = min(errors, key=lambda how: float(errors[how].mean()))
        gains = errors[PLAIN] - errors[best]
        best = best if float(gains.mean()) > float(gains.std()) / len(gains) ** 0.5 else PLAIN
        return best, found[best], {how: float(each.mean()) for how, each in errors.items()}

    def _fitted(self, shift: Shift, X: Tensor, y: Tensor, named: Any, weighted: bool, index: Any = None) -> Any:
        """The regressor on mapped rows: all of them with their codes, or those with a label."""
        own = self._made()
        if has_fit_parameter(own, "sample_domain"):
            codes = torch.tensor(shift.codes)[shift.domain].numpy() if shift.stated or shift.sources else None
            given: dict[str, Any] = {"sample_domain": codes} | ({"sample_weight": shift.weight.numpy()} if weighted else {})
            return own.fit(self._framed(X.numpy(), index), (y[:, 0] if shift.flat else y).numpy() if named is None else named, **given)
        rows = ~y[:, 0].isnan()
        given = {"sample_weight": shift.weight[rows].numpy()} if weighted else {}
        return own.fit(self._framed(X[rows].numpy()), (y[rows, 0] if shift.flat else y[rows]).numpy(), **given)

    def _framed(self, rows: np.ndarray, index: Any = None) -> Any:
        names: Any = getattr(self, "feature_names_in_", None)
        return rows if names is None else pd.DataFrame(rows, index, names)

    def __sklearn_tags__(self) -> Any:
        tags, own = super().__sklearn_tags__(), get_tags(self._made() if self.regressor is None else self.regressor)
        tags.target_tags.multi_output = own.target_tags.multi_output
        return tags


def _mapped(shift: Shift, maps: Mapping[int, InputMap]) -> Tensor:
    """All rows, those of sources where the maps put them."""
    X = shift.X.clone()
    for d, code in enumerate(shift.codes):
        if code in maps:
            X[shift.rows(d)] = maps[code](X[shift.rows(d)])
    return X
