"""Scores for scikit-learn's GridSearchCV and cross_val_score: the negative risk on the target, told at the source rows of a test fold.

A fold needs rows of both sides, since weights compare them. Either

- fit on the source alone and close over the target, `scoring=ImportanceWeightedScorer(X_target)`: any regressor, any folds; or
- fit on both, with NaN as the y of unlabelled target rows and shuffled folds. What is NaN is the target then, unless codes tell:
  under `sklearn.set_config(enable_metadata_routing=True)` the scorers ask for sample_domain, so that
  `GridSearchCV(...).fit(X, y, sample_domain=codes)` hands it to them, and to an estimator that asks by `set_fit_request`.

Target labels in a test fold are not scored.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.metadata_routing import MetadataRequest
from torch import Tensor

from driftway.adapt.importance import importance_weights
from driftway.adapt.intake import read_targets
from driftway.adapt.shift import Shift
from driftway.adapt.validate import Risk, circle, controlled_risk, squared_error, take, weighted_risk
from driftway.checks import require


class _Scorer:
    """A score of a fitted estimator; greater is better.

    Args:
        X_target: inputs of the target to compare every test fold with, whose rows without code are then source rows; None: the target
            rows of the fold.
        seed: as in importance_weights.
    """

    def __init__(self, X_target: Any = None, *, seed: int = 0) -> None:
        self.X_target, self.seed = X_target, seed

    def __call__(self, estimator: Any, X: Any, y: Any, sample_domain: Any = None) -> float:
        """The negative risk.

        Raises:
            InputError: if an argument cannot be used, or the fold has rows of one side only.
        """
        return -self.risk(estimator, X, y, sample_domain).value

    def risk(self, estimator: Any, X: Any, y: Any, sample_domain: Any = None) -> Risk:
        """The estimate with its standard error.

        Raises:
            InputError: if an argument cannot be used, or the fold has rows of one side only.
        """
        if self.X_target is not None:
            X, y, sample_domain = _beside(X, y, sample_domain, self.X_target)
        codes = np.asarray([]) if sample_domain is None else np.asarray(sample_domain)
        gap = read_targets("y", y).isnan()
        one = (codes > 0).all() or (codes < 0).all() if len(codes) else bool(gap.all() or not gap.any())
        require(not one, "X", expected="source and target rows in every test fold", got="rows of one side only",
                cure="pass X_target to the scorer, or shuffle the folds")  # fmt: skip
        shift = Shift.from_domains(X, y, sample_domain)
        return self._risk(estimator, X, shift, (shift.domain > 0).nonzero()[:, 0], shift.rows(0))

    def _risk(self, estimator: Any, X: Any, shift: Shift, source: Tensor, target: Tensor) -> Risk:
        raise NotImplementedError

    def get_metadata_routing(self) -> MetadataRequest:
        """What scikit-learn is asked to pass: sample_domain."""
        request = MetadataRequest(owner=self)
        request.score.add_request(param="sample_domain", alias=True)
        return request


class ImportanceWeightedScorer(_Scorer):
    """The weighted mean of squared errors; see importance_weighted_cv.

    Args:
        X_target: inputs of the target to compare every test fold with; None: the target rows of the fold.
        method: of importance_weights.
        alpha: of importance_weights.
        seed: of importance_weights.
    """

    def __init__(self, X_target: Any = None, *, method: str = "kulsif", alpha: float | int = 0.0, seed: int = 0) -> None:
        super().__init__(X_target, seed=seed)
        self.method, self.alpha = method, alpha

    def _risk(self, estimator: Any, X: Any, shift: Shift, source: Tensor, target: Tensor) -> Risk:
        w = importance_weights(shift.X[source], shift.X[target], method=self.method, alpha=self.alpha, seed=self.seed)
        return weighted_risk(squared_error(estimator, X, shift, source), w)


class DEVScorer(_Scorer):
    """Squared errors with weights as control variate; see deep_embedded_validation.

    Args:
        X_target: inputs of the target to compare every test fold with; None: the target rows of the fold.
        features: (fitted estimator, rows of X) -> (rows, features) to estimate the weights in; X itself if None.
        method: of importance_weights.
        alpha: of importance_weights.
        seed: of importance_weights.
    """

    def __init__(self, X_target: Any = None, *, features: Callable[[Any, Any], object] | None = None, method: str = "kulsif",
                 alpha: float | int = 0.0, seed: int = 0) -> None:  # fmt: skip
        super().__init__(X_target, seed=seed)
        self.features, self.method, self.alpha = features, method, alpha

    def _risk(self, estimator: Any, X: Any, shift: Shift, source: Tensor, target: Tensor) -> Risk:
        sides = [shift.X[rows] if self.features is None else self.features(estimator, take(X, rows)) for rows in (source, target)]
        w = importance_weights(*sides, method=self.method, alpha=self.alpha, normalise=False, seed=self.seed)
        return controlled_risk(squared_error(estimator, X, shift, source), w)


class CircularScorer(_Scorer):
    """The way back from the target to the source; see circular_validation. A copy of the estimator is fitted for each score.

    Args:
        X_target: inputs of the target to label by the estimator; None: the target rows of the fold.
    """

    def __init__(self, X_target: Any = None) -> None:
        super().__init__(X_target)

    def _risk(self, estimator: Any, X: Any, shift: Shift, source: Tensor, target: Tensor) -> Risk:
        return circle(estimator, estimator, X, shift)


def _beside(X: Any, y: Any, sample_domain: Any, X_target: Any) -> tuple[Any, Any, Any]:
    """The source rows of a fold, and the target that the scorer closes over."""
    targets = read_targets("y", y).cpu().numpy()
    codes = np.where(np.isnan(targets.reshape(len(targets), -1)).any(1), -1, 1) if sample_domain is None else np.asarray(sample_domain)
    rows = torch.from_numpy(np.flatnonzero(codes > 0))
    own, n = take(X, rows), len(X_target)
    if hasattr(own, "iloc") and hasattr(X_target, "iloc"):
        both = pd.concat([own, X_target])
    elif isinstance(own, Tensor):
        both = torch.cat([own, torch.as_tensor(X_target).to(own)])
    else:
        both = np.concatenate([np.asarray(own), np.asarray(X_target)])
    gaps = np.full((n, *targets.shape[1:]), np.nan)
    return both, np.concatenate([targets[rows.numpy()], gaps]), np.concatenate([codes[rows.numpy()], np.full(n, -1)])
