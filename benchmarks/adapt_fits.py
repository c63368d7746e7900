"""What the peers of `adapt_tabular` share: the rows, standardised, the regressors that they fit, and scikit-learn used as it is.

Every method gets the same rows. Columns are standardised by the rows that it may see, targets by the labelled rows that it learns from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV

from benchmarks.adapt_data import Split

Prediction = tuple[np.ndarray, np.ndarray | None]  # mean and standard deviation of a new observation
DISTANCES = (0.5, 1.0, 2.0, 4.0)  # between the domains, as one more column


@dataclass(frozen=True)
class Rows:
    """The rows of a split, standardised.

    Attributes:
        source: (m, d).
        y_source: (m,).
        target: (n, d), labelled.
        y_target: (n,).
        free: (u, d), unlabelled.
        test: (t, d).
        mean: of the targets before.
        std: of the targets before.
    """

    source: np.ndarray
    y_source: np.ndarray
    target: np.ndarray
    y_target: np.ndarray
    free: np.ndarray
    test: np.ndarray
    mean: float
    std: float

    @property
    def X(self) -> np.ndarray:
        """All labelled rows."""
        return np.concatenate((self.source, self.target))

    @property
    def y(self) -> np.ndarray:
        """Their targets."""
        return np.concatenate((self.y_source, self.y_target))

    @property
    def seen(self) -> np.ndarray:
        """All rows of the target domain that may be seen."""
        return np.concatenate((self.target, self.free))

    def back(self, mean: np.ndarray, std: np.ndarray | None = None) -> Prediction:
        """A prediction in the unit of the targets."""
        return self.mean + self.std * np.asarray(mean).ravel(), None if std is None else self.std * std


def rows(split: Split, domains: str = "both") -> Rows:
    """Standardised by the target domain alone, or by both domains."""
    seen, y = [split.X_target, split.X_unlabelled], [split.y_target]
    if domains == "both":
        seen, y = [split.X_source, *seen], [split.y_source, *y]
    X, labels = np.concatenate(seen), np.concatenate(y)
    middle, scale = X.mean(0), X.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    mean, std = float(labels.mean()), float(labels.std()) or 1.0
    source, target, free, test = ((part - middle) / scale for part in (split.X_source, split.X_target, split.X_unlabelled, split.X_test))
    return Rows(source, (split.y_source - mean) / std, target, (split.y_target - mean) / std, free, test, mean, std)


def process(X: np.ndarray, y: np.ndarray) -> Any:
    """scikit-learn's Gaussian process by maximum likelihood."""
    unit = np.sqrt(X.shape[1])
    kernel = ConstantKernel(1.0, (1e-2, 1e3)) * RBF(unit, (0.05 * unit, 100 * unit)) + WhiteKernel(0.1, (1e-4, 1e1))
    return GaussianProcessRegressor(kernel, normalize_y=True).fit(X, y)


def hyperparameters(X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Of the kernel ridge whose fit is the mean of the process."""
    kernel = process(X, y).kernel_
    return {"alpha": kernel.k2.noise_level / kernel.k1.k1.constant_value, "gamma": 0.5 / kernel.k1.k2.length_scale**2}


class Smoother(RegressorMixin, BaseEstimator):
    """Kernel ridge around a weighted mean; without hyperparameters, those of the process for the same rows without weights."""

    def __init__(self, alpha: float | None = None, gamma: float | None = None) -> None:
        self.alpha, self.gamma = alpha, gamma

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None) -> "Smoother":
        y = np.asarray(y).ravel()
        weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
        own = hyperparameters(X, y) if self.alpha is None else {"alpha": self.alpha, "gamma": self.gamma}
        self.mean_ = float(np.average(y, weights=weight))
        self.ridge_ = KernelRidge(kernel="rbf", **own).fit(X, y - self.mean_, sample_weight=weight)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        return self.mean_ + self.ridge_.predict(X)


def boosting(seed: int) -> HistGradientBoostingRegressor:
    """Gradient boosting, with leaves small enough for 20 rows."""
    return HistGradientBoostingRegressor(min_samples_leaf=5, max_iter=200, learning_rate=0.05, random_state=seed)


def target_only(fit: Callable[[int], Any], split: Split, seed: int) -> Prediction:
    r = rows(split, "target")
    return r.back(fit(seed).fit(r.target, r.y_target).predict(r.test))


def pooled(fit: Callable[[int], Any], split: Split, seed: int) -> Prediction:
    r = rows(split)
    return r.back(fit(seed).fit(r.X, r.y).predict(r.test))


def marked(fit: Callable[[int], Any], split: Split, seed: int) -> Prediction:
    r = rows(split)
    return r.back(fit(seed).fit(with_domain(r, 1.0), r.y).predict(of_target(r.test, 1.0)))


def with_domain(r: Rows, distance: float) -> np.ndarray:
    """All labelled rows, with one more column: 0 for the source."""
    return np.concatenate((np.pad(r.source, ((0, 0), (0, 1))), of_target(r.target, distance)))


def of_target(X: np.ndarray, distance: float) -> np.ndarray:
    return np.pad(X, ((0, 0), (0, 1)), constant_values=distance)


def gp_target_only(split: Split, seed: int) -> Prediction:
    r = rows(split, "target")
    return r.back(*process(r.target, r.y_target).predict(r.test, return_std=True))


def gp_pooled(split: Split, seed: int) -> Prediction:
    r = rows(split)
    return r.back(*process(r.X, r.y).predict(r.test, return_std=True))


def gp_marked(split: Split, seed: int) -> Prediction:
    """The distance of the domains by maximum likelihood, of four; in units of a typical distance between rows."""
    r = rows(split)
    unit = np.sqrt(r.X.shape[1])
    found = {distance: process(with_domain(r, distance * unit), r.y) for distance in DISTANCES}
    best = max(found, key=lambda distance: found[distance].log_marginal_likelihood_value_)
    return r.back(*found[best].predict(of_target(r.test, best * unit), return_std=True))


FITS: dict[str, Callable[[int], Any]] = {
    "ridge": lambda seed: RidgeCV(np.logspace(-2, 3, 16)),  # its strength by leave-one-out
    "boosting": boosting,
    "smoother": lambda seed: Smoother(),
}
