"""What a regression would cost on the target, R = E_T (y - f(x))^2, told from labels of the source.

Under covariate shift, p_T(y | x) = p_S(y | x), and with w = p_T(x) / p_S(x), R = E_S w(x) (y - f(x))^2. With l_i the squared error at
source row i, of an estimator that was fitted without it, the mean over the outputs,

    iwcv   R = sum_i w_i l_i / sum_i w_i,           variance sum_i w_i^2 (l_i - R)^2 / (sum_i w_i)^2       (Sugiyama et al., 2007)
    dev    R = mean w l - eta (mean w - 1),         variance mean (w l - mean w l - eta (w - mean w))^2 / n
           eta = Cov(w l, w) / Var(w), as E_S w = 1: the control variate of least variance                  (You et al., 2019, section 4)

The weights of dev are not normalised, or nothing would be left to control; the paper takes them from a classifier, method="logistic",
which is good where log w is linear in the features and far off where it is not. Both break down where the source has no rows: the effective
sample size (sum w)^2 / sum w^2 tells how many rows the estimate rests on.

    circular   fit on the source; label the target by it; fit on these labels alone; mean squared error at the source
               (Bruzzone and Marconcini, 2010): a criterion to compare models by, not an estimate of R

Labels of the target serve the fits; they are not validated on.

Equations (A29), (A30), (A31): docs/derivations/adapt.md.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.importance import effective_sample_size, importance_weights, relative
from driftway.adapt.intake import read_weights
from driftway.adapt.shift import Shift
from driftway.checks import InputError, count, function, numbers, require
from driftway.checks import seed as checked_seed

FEW = 30  # rows: an effective sample size below is remarked on


@dataclass(frozen=True)
class Risk:
    """An estimate of the mean squared error on the target.

    Attributes:
        value: the estimate.
        error: its standard error, given the weights.
        ess: effective sample size of the weights.
        weights: of the source rows, in their order.
        remarks: what a reader should know, in sentences.
    """

    value: float
    error: float
    ess: float
    weights: Float[Tensor, " n"]
    remarks: tuple[str, ...] = ()


def weighted_risk(loss: Float[Tensor, " n"], weights: Float[Tensor, " n"]) -> Risk:
    """The weighted mean of losses at source rows."""
    value = (weights * loss).sum() / weights.sum()
    error = (weights * (loss - value)).square().sum().sqrt() / weights.sum()
    return Risk(float(value), float(error), *_worth(weights))


def controlled_risk(loss: Float[Tensor, " n"], weights: Float[Tensor, " n"]) -> Risk:
    """The mean of weighted losses at source rows, with the weights, whose mean is 1 under the source's law, as a control variate."""
    z, v = weights * loss, weights - weights.mean()
    eta = (z * v).sum() / v.square().sum().clamp_min(torch.finfo(v.dtype).tiny)
    error = (z - z.mean() - eta * v).square().mean().sqrt() / len(z) ** 0.5
    return Risk(float(z.mean() - eta * (weights.mean() - 1)), float(error), *_worth(weights))


def importance_weighted_cv(estimator: Any, X: Any, y: object, sample_domain: object = None, *, folds: int = 5, weights: object = None,
                           method: str = "kulsif", alpha: float | int = 0.0, seed: int = 0) -> Risk:  # fmt: skip
    """Cross-validation on the source rows, weighted to the target.

    Args:
        estimator: anything with fit(X, y), predict(X) and get_params; it is copied, not fitted. If its fit takes sample_domain, it sees
            all rows of the target and of the other folds, otherwise those of them that are labelled.
        X: as in Shift.from_domains.
        y: as in Shift.from_domains.
        sample_domain: as in Shift.from_domains.
        folds: number of parts of the source rows.
        weights: of the source rows, in their order; estimated on all rows if None.
        method: of importance_weights.
        alpha: of importance_weights.
        seed: draws the folds, and the rows that importance_weights chooses its kernel by.

    Raises:
        InputError: if an argument cannot be used, or there are no rows of the source or of the target.
    """
    shift, source = _two_sides(estimator, X, y, sample_domain)
    alpha = relative(alpha)
    w = _given(weights, shift, source, lambda a, b: importance_weights(a, b, method=method, alpha=alpha, seed=seed))
    loss = torch.zeros(len(source)).to(w)
    for held, rows in _folds(source, len(shift.X), folds, seed):
        loss[held] = squared_error(_fitted(estimator, X, shift, rows), X, shift, source[held])
    return weighted_risk(loss, w)


def deep_embedded_validation(estimator: Any, X: Any, y: object, sample_domain: object = None, *, folds: int = 5, weights: object = None,
                             features: Callable[[Any, Any], object] | None = None, method: str = "kulsif", alpha: float | int = 0.0,
                             seed: int = 0) -> Risk:  # fmt: skip
    """The same with weights as a control variate, and in features of the fitted estimator if there are any.

    Args:
        estimator: as in importance_weighted_cv.
        X: as in Shift.from_domains.
        y: as in Shift.from_domains.
        sample_domain: as in Shift.from_domains.
        folds: number of parts of the source rows.
        weights: p_T / p_S at the source rows, in their order, not normalised; estimated if None.
        features: (fitted estimator, rows of X) -> (rows, features) to estimate the weights of each fold in; X itself if None.
        method: of importance_weights.
        alpha: of importance_weights.
        seed: draws the folds, and the rows that importance_weights chooses its kernel by.

    Raises:
        InputError: if an argument cannot be used, or there are no rows of the source or of the target.
    """

    def ratio(a: object, b: object) -> Tensor:
        return importance_weights(a, b, method=method, alpha=alpha, seed=seed, normalise=False)

    alpha = relative(alpha)
    function("features", features, "a fitted estimator and rows")
    shift, source = _two_sides(estimator, X, y, sample_domain)
    w = _given(weights, shift, source, ratio) if weights is not None or features is None else torch.zeros(len(source)).to(shift.X)
    loss = torch.zeros_like(w)
    for held, rows in _folds(source, len(shift.X), folds, seed):
        fitted = _fitted(estimator, X, shift, rows)
        loss[held] = squared_error(fitted, X, shift, source[held])
        if weights is None and features is not None:
            w[held] = _featured(ratio, len(source), *(features(fitted, take(X, rows)) for rows in (source, shift.rows(0))))[held]
    return controlled_risk(loss, w)


def circular_validation(estimator: Any, X: Any, y: object, sample_domain: object = None) -> Risk:
    """Fit, label the target, fit on these labels alone, and compare with the labels of the source.

    Args:
        estimator: as in importance_weighted_cv; target labels that there are serve both fits.
        X: as in Shift.from_domains.
        y: as in Shift.from_domains.
        sample_domain: as in Shift.from_domains.

    Raises:
        InputError: if an argument cannot be used, or there are no rows of the source or of the target.
    """
    shift, _ = _two_sides(estimator, X, y, sample_domain)
    return circle(estimator, _fitted(estimator, X, shift, torch.arange(len(shift.X))), X, shift)


def circle(estimator: Any, fitted: Any, X: Any, shift: Shift) -> Risk:
    """The second half of circular validation: an estimator that is fitted labels the target of a shift, and a copy answers."""
    source, target, y = (shift.domain > 0).nonzero()[:, 0], shift.rows(0), shift.y.clone()
    labels = predictions(fitted, take(X, target), shift).to(y)
    y[target] = torch.where(shift.labelled[target, None], shift.y[target], labels)
    y[source] = torch.nan
    back = Shift(shift.X, y, (shift.domain == 0).long(), shift.weight, (-2, 1), shift.names, shift.flat)
    loss = squared_error(_fitted(estimator, X, back, torch.arange(len(y))), X, shift, source)
    risk = weighted_risk(loss, torch.ones_like(loss))
    return Risk(risk.value, risk.error, risk.ess, risk.weights, ("circular validation compares models; it does not estimate the risk",))


def squared_error(fitted: Any, X: Any, shift: Shift, rows: Tensor) -> Float[Tensor, " n"]:
    """Squared errors at labelled rows, the mean over the outputs."""
    return (predictions(fitted, take(X, rows), shift) - shift.y[rows]).square().mean(1)


def predictions(fitted: Any, rows: Any, shift: Shift) -> Float[Tensor, "n k"]:
    """Predictions as a tensor like y.

    Raises:
        InputError: if they are no finite numbers, or not one row for each row.
    """
    f = numbers("estimator", fitted.predict(rows)).detach().to(shift.X)
    shape = (len(rows), shift.outputs)
    require(f.numel() == shape[0] * shape[1] and bool(f.isfinite().all()), "estimator", expected=f"finite predictions of shape {shape}",
            got=f"shape {tuple(f.shape)}{'' if bool(f.isfinite().all()) else ' with NaN or inf'}", cure="see its predict")  # fmt: skip
    return f.reshape(shape)


def take(X: Any, rows: Tensor) -> Any:
    """Rows of a table of the user, in the user's own type."""
    if hasattr(X, "iloc"):
        return X.iloc[rows.cpu().numpy()]
    return X[rows.to(X.device)] if isinstance(X, Tensor) else np.asarray(X)[rows.cpu().numpy()]


def _fitted(estimator: Any, X: Any, shift: Shift, rows: Tensor) -> Any:
    """A copy of the estimator, fitted on these rows."""
    clone = getattr(estimator, "__sklearn_clone__", None)
    copy = clone() if clone else type(estimator)(**estimator.get_params(deep=False))
    name = _domain_argument(copy)
    rows = rows if name else rows[shift.labelled[rows]]
    y = shift.y[rows].cpu().numpy()
    codes = np.array(shift.codes)[shift.domain[rows].cpu().numpy()]
    copy.fit(take(X, rows), y[:, 0] if shift.flat else y, **({name: codes} if name else {}))
    return copy


def _domain_argument(estimator: Any) -> str:
    """Under which name fit takes sample_domain, by itself, by scikit-learn's routing, or as the last step of a Pipeline; empty if not."""
    routing = getattr(estimator, "get_metadata_routing", None)
    if "sample_domain" in inspect.signature(estimator.fit).parameters or (
            routing is not None and "sample_domain" in routing().consumes("fit", ["sample_domain"])):  # fmt: skip
        return "sample_domain"
    steps = getattr(estimator, "steps", None)
    last = _domain_argument(steps[-1][1]) if steps and hasattr(steps[-1][1], "fit") else ""
    return f"{steps[-1][0]}__{last}" if steps and last else ""


def _two_sides(estimator: Any, X: Any, y: object, sample_domain: object) -> tuple[Shift, Tensor]:
    """The shift, and the indices of its source rows."""
    lacks = [name for name in ("fit", "predict", "get_params") if not callable(getattr(estimator, name, None))]
    require(not lacks and not isinstance(estimator, type), "estimator", expected="an estimator with fit, predict and get_params",
            got=f"the class {estimator.__name__}" if isinstance(estimator, type) else type(estimator).__name__,
            cure="pass one of scikit-learn's, or of this package")  # fmt: skip
    shift = Shift.from_domains(X, y, sample_domain)
    source = (shift.domain > 0).nonzero()[:, 0]
    require(len(source) > 0, "sample_domain", expected="source rows, which have a positive code", got="target rows only",
            cure="validate on the target labels by ordinary cross-validation")  # fmt: skip
    return shift, source


def _given(weights: object, shift: Shift, source: Tensor, ratio: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if weights is None:
        return ratio(shift.X[source], shift.X[shift.rows(0)])
    try:
        return read_weights(weights, len(source), shift.X.device)
    except InputError as error:
        raise InputError("weights", **error.parts) from None


def _featured(ratio: Callable[[object, object], Tensor], n: int, source: object, target: object) -> Tensor:
    """Weights in features; what is wrong with these is an error about `features`."""
    try:
        w = ratio(source, target)
    except InputError as error:
        raise InputError("features", **error.parts) from None
    require(len(w) == n, "features", expected=f"{n} rows, as it was given", got=len(w), cure="return one row for each")
    return w


def _folds(source: Tensor, n: int, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Which source rows are held out, and the indices of all other rows."""
    require(count("folds", folds, least=2) <= len(source), "folds", expected=f"at most {len(source)}, the number of source rows",
            got=folds, cure="pass fewer folds")  # fmt: skip
    order, found = torch.randperm(len(source), generator=torch.Generator().manual_seed(checked_seed("seed", seed))).to(source.device), []
    for i in range(folds):
        held, kept = order[i::folds].sort().values, torch.ones(n, dtype=torch.bool, device=source.device)
        kept[source[held]] = False
        found.append((held, kept.nonzero()[:, 0]))
    return found


def _worth(weights: Tensor) -> tuple[float, Tensor, tuple[str, ...]]:
    ess, n = effective_sample_size(weights), len(weights)
    few = ess < min(FEW, n / 2)
    return ess, weights, (f"the weights of {n} source rows are worth {ess:.1f} equal ones: the estimate is rough",) if few else ()
