"""What the estimators share: parameters, the way from arrays to a shift, and predictions in the units of the targets."""

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from driftway.adapt import dino_init
from driftway.adapt.dino_init import Prediction, Settings
from driftway.adapt.distribution_kernel import Rows
from driftway.adapt.frame import Frame
from driftway.adapt.intake import as_array
from driftway.adapt.learn import Learned
from driftway.adapt.scale import Scale
from driftway.adapt.shift import Shift
from driftway.checks import count, moderate, real, require
from driftway.checks import seed as checked_seed
from driftway.kernels import FullyConnected


class DomainRegressor(RegressorMixin, BaseEstimator):
    """What the estimators share.

    Args:
        depth: hidden layers of the network whose kernel is used; 0 is a linear model.
        activation: relu, leaky_relu, abs, erf or gelu.
        source_weight: how much the likelihood of the sources counts in learning, from 0 to 1.
        max_iter: quasi-Newton steps.
        random_state: seed of whatever is drawn.
        approximation: exact, inducing, features, or auto: exact up to 5,000 labelled rows, then inducing (scale.py).
        features: that rows far from the target are summarised by.

    Attributes:
        shift_: the rows of the fit.
        model_: the fitted process.
        correlation_: k_P between the domains, the target first, mean over rows.
        output_covariance_: covariance of the outputs, in their units.
        n_iter_: evaluations of the likelihood.
        noise_std_: standard deviation of a target label's noise, for each output.
        n_features_in_: columns.
        feature_names_in_: their names, where X was a data frame with names.
    """

    __metadata_request__fit = {"sample_domain": True}  # noqa: RUF012 -- scikit-learn reads it off the class
    __metadata_request__score = {"sample_domain": False}  # noqa: RUF012

    def __init__(self, depth=2, activation="relu", source_weight=0.3, max_iter=40, random_state=0, approximation="auto", features=1000):
        self.depth = depth
        self.activation = activation
        self.source_weight = source_weight
        self.max_iter = max_iter
        self.random_state = random_state
        self.approximation = approximation
        self.features = features

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def fit(self, X: Any, y: Any, sample_domain: Any = None, sample_weight: Any = None) -> Any:
        """Fit on the rows of all domains.

        Args:
            X: (n, d) rows.
            y: (n,) or (n, k) targets; NaN in target rows without label.
            sample_domain: (n,) codes: positive for sources, negative for the target. None: rows without label are the target and the others
                one source; without any such row all are target rows.
            sample_weight: (n,) weights: a row of weight w counts as if its noise had 1/w of the variance.

        Raises:
            InputError: if rows, targets, codes or a parameter are not what they should be.
        """
        self._settings()
        self.shift_ = self._shift(X, y, sample_domain, sample_weight)
        for remark in self.shift_.remarks():
            warnings.warn(remark, UserWarning, stacklevel=2)
        self.model_ = self._fit(self.shift_)
        self._describe()
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Targets of rows of the target domain.

        Args:
            X: (q, d) rows.
            return_std: also the standard deviation of a new label, in the shape of the targets.
            return_cov: also the covariance of the noise-free targets, (q, q), or (q, q, k) for k outputs.

        Raises:
            InputError: if X does not have the columns of the fit, or both are asked for.
        """
        check_is_fitted(self)
        require(not (return_std and return_cov), "return_std", expected="one of return_std and return_cov", got="both",
                cure="call predict twice")  # fmt: skip
        rows = torch.tensor(np.ascontiguousarray(validate_data(self, as_array("X", X), reset=False, dtype=np.float64)))
        moderate("X", rows)
        if return_cov:
            mean, cov = self._covariance(rows)
            return self._shaped(mean, X), (cov[..., 0] if self.shift_.flat else cov).cpu().numpy()
        mean, variance, noise = self._moments(rows)
        if return_std:
            return self._shaped(mean, X), self._shaped((variance + noise).sqrt(), X)
        return self._shaped(mean, X)

    def _shaped(self, value: Tensor, X: Any) -> Any:
        """In the shape of y, and as pandas where both y and X were."""
        array = (value[:, 0] if self.shift_.flat else value).cpu().numpy()
        if not self._pandas or not hasattr(X, "iloc"):
            return array
        import pandas as pd

        return pd.Series(array, X.index, name=self._names) if self.shift_.flat else pd.DataFrame(array, X.index, self._names)

    def _shift(self, X: Any, y: Any, sample_domain: Any, sample_weight: Any) -> Shift:
        self._pandas, self._names = hasattr(y, "iloc"), getattr(y, "columns", getattr(y, "name", None))
        shift = read_shift(self, X, y, sample_domain, sample_weight)
        empty = [code for d, code in enumerate(shift.codes) if not shift.weight[shift.rows(d)].any()]
        require(not empty, "sample_weight", expected="a positive weight in every domain", got=f"zeros throughout domain {(*empty, 0)[0]}",
                cure="drop its rows")  # fmt: skip
        return shift

    def _settings(self) -> Settings:
        weight = real("source_weight", self.source_weight, least=0)
        require(weight <= 1, "source_weight", expected="a number from 0 to 1", got=weight, cure="pass 1 to count sources in full")
        network = FullyConnected(count("depth", self.depth, least=0), self.activation, w_std=2**0.5, b_std=0.3)
        seed = checked_seed("random_state", self.random_state)
        scale = Scale(self.approximation, count("features", self.features), seed=seed)
        return Settings(network=network, kappa=weight, steps=count("max_iter", self.max_iter), seed=seed, scale=scale)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _learn(self, shift: Shift, settings: Settings) -> Learned:
        """The process of this estimator."""
        raise NotImplementedError

    def _fit(self, shift: Shift) -> Any:
        return self._learn(shift, self._settings())

    def _moments(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of f, and the variance of a label's noise, in the units of the targets."""
        return moments(self._predict(rows), self._frame)

    def _covariance(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance (q, q, k) of f, in the units of the targets."""
        found = self._predict(rows)
        return moments(found, self._frame)[0], self._spread(rows)[..., None] * found.B.diagonal() * self._frame.y_scale.square()

    def _predict(self, rows: Tensor) -> Prediction:
        return dino_init.predict(self.model_, rows)

    def _spread(self, rows: Tensor) -> Tensor:
        return dino_init.covariance(self.model_, rows)

    @property
    def _process(self) -> Learned:
        return self.model_

    @property
    def _frame(self) -> Frame:
        return self._process.frame

    def _describe(self) -> None:
        found, scale = self._process, self._frame.y_scale
        self.output_covariance_ = (found.joint.B * torch.outer(scale, scale)).numpy()
        self.noise_std_ = (found.raw["noise"][0].exp() * found.joint.B.diagonal()).sqrt().mul(scale).numpy()
        self.n_iter_ = found.evaluations
        self.correlation_ = between(found, self.shift_).numpy()


def read_shift(estimator: Any, X: Any, y: Any, sample_domain: Any, sample_weight: Any) -> Shift:
    """What is passed to the fit of an estimator, which learns the number and the names of its columns.

    Raises:
        InputError: if rows, targets, codes or weights are not what they should be.
    """
    rows = validate_data(estimator, as_array("X", X), dtype=np.float64, ensure_min_samples=2)
    y = as_array("y", y)
    require(y is not None, "y", expected="targets", got="None", cure="requires y to be passed, but the target y is None")
    if np.asarray(y).dtype == object:
        try:
            y = np.asarray(y, dtype=np.float64)  # None is NaN
        except (TypeError, ValueError):
            type_of_target(y, raise_unknown=True)
    return Shift.from_domains(rows, y, sample_domain, sample_weight, names=list(getattr(estimator, "feature_names_in_", [])) or None)


def moments(found: Prediction, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of f, and the variance of a label's noise, in the units of the targets."""
    unit = found.B.diagonal() * frame.y_scale.square()
    return found.mean * frame.y_scale + frame.y_mean, found.variance[:, None] * unit, found.noise * unit


def between(found: Learned, shift: Shift) -> Tensor:
    """k_P between domains, target first: the mean over at most 200 rows of each."""
    names = range(shift.sources + 1)
    X = found.frame.standard(shift.X)
    parts = [Rows(X[own], shift.domain[own]) for own in (shift.rows(d)[:200] for d in names)]
    return torch.stack([torch.stack([found.kernel.domains.kernels(a, b).nngp.mean() for b in parts]) for a in parts])
