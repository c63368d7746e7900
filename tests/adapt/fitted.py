"""Small shifts, and every estimator fitted to them, for tests of what is done with fitted estimators."""

import warnings
from functools import cache

import numpy as np
import pandas as pd

from driftway import adapt
from driftway.adapt.dino_init import Settings, first_stage
from driftway.adapt.dino_train import train
from driftway.adapt.estimators_base import DomainRegressor
from driftway.adapt.family import constant
from driftway.adapt.frame import frame
from driftway.adapt.scale import Scale

CLASSES = tuple(made for made in vars(adapt).values() if isinstance(made, type) and issubclass(made, DomainRegressor))


def shift(*, sources=1, labels=8, unlabelled=6, rows=20, outputs=1, seed=0):
    """Rows, targets, codes: y = sin(x_0) and some noise, with another level in each domain; x_2 is of no use."""
    rng = np.random.default_rng(seed)
    X, y, codes = [], [], []
    for domain in range(1, sources + 2):
        target = domain == sources + 1
        n = labels + unlabelled if target else rows
        x = rng.normal(size=(n, 3))
        x[:, 0] += 0.8 * target
        t = np.stack([np.sin(1.5 * x[:, 0]) + 0.5 * x[:, 1] + 0.2 * domain, x[:, 0] ** 2], 1)[:, :outputs]
        t += 0.1 * rng.normal(size=(n, outputs))
        t[labels:] = np.where(target, np.nan, t[labels:])
        X.append(x)
        y.append(t)
        codes.append(np.full(n, -domain if target else domain))
    y = np.concatenate(y)
    return np.concatenate(X), y[:, 0] if outputs == 1 else y, np.concatenate(codes)


def fit(made, *given, **parameters):
    """Fitted in few steps, without its remarks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made(**{"max_iter": 3, "base": 10, **parameters} if hasattr(made(), "base") else {"max_iter": 3, **parameters}).fit(*given)


@cache
def fitted(made, **sizes):
    """Fitted to such a shift; not to be changed."""
    return fit(made, *shift(**sizes))


def many(made, approximation):
    """The same with a scale at which these are many rows; of the pooled process, or of its trained network."""
    estimator = fit(made, *shift(sources=2, outputs=2))
    shifted = estimator.shift_
    scale = Scale(approximation, features=6, rows=20)
    start = first_stage(frame(shifted), shifted.sources, Settings(steps=2, scale=scale), constant(shifted.sources, 1.0))
    estimator.model_ = train(start) if made is adapt.DINOTrainRegressor else start
    estimator._describe()
    return estimator


def frames(X, y, codes):
    """The same as pandas, with names."""
    named = pd.Series(y, name="price") if y.ndim == 1 else pd.DataFrame(y, columns=[f"price {j}" for j in range(y.shape[1])])
    return pd.DataFrame(X, columns=["size", "age", "luck"]), named, codes
