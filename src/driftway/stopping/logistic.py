"""Training of a linearised network on cross entropy, which has no closed form: the path is computed step by step.

f = f_0(X) + K beta, and gradient flow of the mean cross entropy (1/n) sum_i l(f_i, y_i) moves

    beta' = (y - p(f)) / n,   p = sigmoid or softmax,   beta(0) = 0,

so that other rows follow as f_0(x_*) + K_*l beta. The classical Runge-Kutta method with steps of at most 1 / (4 L mu_1), where L = 1/4
(sigmoid) or 1/2 (softmax) bounds the Hessian of l. It is stable up to eleven times that step, and its error is of order 4.

Near the start p is linear, p(f) - p(f_0) ~ W (f - f_0) with W = p (1 - p), and u = W^(1/2) (f - f_0) follows the squared loss:

    u' = -(1/n) W^(1/2) K W^(1/2) (u - r),   r = W^(-1/2) (y - p(f_0)),   noise of variance 1

(one step of iteratively reweighted least squares). Softmax: W = diag(p) - p p^T is taken as the scalar of the same trace on
centred scores, which is exact for equal p: then W = 1/k. Stopping rules apply to this problem, and its eta is that of the cross entropy.

Equations (F18), (F19), (F20): docs/derivations/finetune.md.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import count, numbers, require, same_dtype
from driftway.linalg.operator import symmetric_matrix

MOST = 100_000  # classes
FINE = 0.25  # steps in units of 1 / (L mu_1)


@dataclass(frozen=True)
class LogisticPath:
    """The path at the times asked for.

    Attributes:
        eta: times.
        beta: weights of the rows of K at each time.
        scores: f(X).
        loss: mean cross entropy.
        steps: Runge-Kutta steps that were made.
    """

    eta: Float[Tensor, " t"]
    beta: Float[Tensor, "t n *k"]
    scores: Float[Tensor, "t n *k"]
    loss: Float[Tensor, " t"]
    steps: int

    def predict(self, cross: Float[Tensor, "m n"]) -> Float[Tensor, "t m *k"]:
        """f(x_*) - f_0(x_*), from K_*l."""
        flat = self.beta.flatten(2) if self.beta.ndim > 2 else self.beta[..., None]
        return (cross @ flat).reshape(len(flat), len(cross), *self.beta.shape[2:])


@torch.no_grad()
def logistic_path(K: Float[Tensor, "n n"], y: Tensor, eta: Float[Tensor, " t"], *, start: Tensor | None = None,
                  steps: int = 100_000) -> LogisticPath:  # fmt: skip
    """Scores of the training rows along gradient flow of the cross entropy; one that ends when all times are reached.

    Args:
        K: tangent kernel, not divided by n.
        y: (n,) probabilities of the class 1, as 0. and 1.; or (n, k) probabilities of k classes, as one-hot rows.
        eta: times >= 0, increasing.
        start: f_0(X), scores; 0 if None.
        steps: the most steps.

    Raises:
        InputError: if shapes, dtypes or probabilities do not fit, the times do not increase, or the last needs more steps.
    """
    K, y = symmetric_matrix("K", K), numbers("y", y)
    f0, n = checked_start(K, y, start), len(K)
    eta = numbers("eta", eta)
    require(eta.ndim == 1 and len(eta) > 0 and bool(eta.isfinite().all()), "eta", expected="a list of finite times",
            got=f"shape {tuple(eta.shape)}", cure="pass e.g. torch.linspace(0, 10, 20)")  # fmt: skip
    require(bool((eta >= 0).all() and (eta.diff() >= 0).all()), "eta", expected="times >= 0 that do not decrease", got=eta.tolist(),
            cure="sort them")  # fmt: skip
    step = FINE * n / ((0.25 if y.ndim == 1 else 0.5) * float(torch.linalg.eigvalsh(K.double())[-1].clamp_min(1e-300)))
    knots = [0.0, *eta.tolist()]
    plan = [max(1.0, -(-(b - a) // step)) if b > a else 0 for a, b in pairwise(knots)]
    require(sum(plan) <= count("steps", steps), "eta", expected=f"times that {steps} steps of {step:.3g} reach", got=f"{knots[-1]:.3g}",
            cure="ask for shorter times, or raise steps")  # fmt: skip

    def slope(beta: Tensor) -> Tensor:
        return (y - probability(f0 + K @ beta)) / n

    beta, found = torch.zeros_like(f0), []
    for (a, b), m in zip(pairwise(knots), plan, strict=True):
        for _ in range(int(m)):
            h = (b - a) / m
            k1 = slope(beta)
            k2 = slope(beta + h / 2 * k1)
            k3 = slope(beta + h / 2 * k2)
            beta = beta + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(beta + h * k3))
        found.append(beta)
    path = torch.stack(found)
    scores = torch.stack([f0 + K @ own for own in found])
    return LogisticPath(eta, path, scores, torch.stack([cross_entropy(f, y) for f in scores]), int(sum(plan)))


def centred_one_hot(labels: Tensor) -> Float[Tensor, "n classes"]:
    """The targets of classification by squared loss: one-hot columns for the classes 0, 1, ..., less their means.

    Raises:
        InputError: if the labels are not (n,) whole numbers >= 0, or all the same.
    """
    labels = numbers("labels", labels)
    require(labels.ndim == 1 and not labels.is_floating_point() and len(labels) > 0 and int(labels.min()) >= 0, "labels",
            expected="(n,) whole numbers >= 0", got=f"{labels.dtype}, shape {tuple(labels.shape)}",
            cure="number the classes 0, 1, ...")  # fmt: skip
    require(bool((labels != labels[0]).any()), "labels", expected="two classes or more", got=f"{int(labels[0])} in every row",
            cure="pass rows of several classes")  # fmt: skip
    require(int(labels.max()) < MOST, "labels", expected=f"class numbers below {MOST:,}", got=int(labels.max()),
            cure="number the classes 0, 1, ...")  # fmt: skip
    hot = torch.nn.functional.one_hot(labels.long()).float()
    return hot - hot.mean(0)


def working_problem(K: Float[Tensor, "n n"], y: Tensor, *,
                    start: Tensor | None = None) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n *k"]]:  # fmt: skip
    """The squared-loss problem that cross entropy is near the start: W^(1/2) K W^(1/2) and r. Its noise has sigma = 1.

    Args:
        K: tangent kernel, not divided by n.
        y: as in logistic_path.
        start: f_0(X), scores; 0 if None.

    Raises:
        InputError: if shapes, dtypes or probabilities do not fit.
    """
    K, y = symmetric_matrix("K", K), numbers("y", y)
    p = probability(checked_start(K, y, start))
    W = p * (1 - p)
    if y.ndim == 2:
        W = W.sum(1) / (y.shape[1] - 1)
    root = W.clamp_min(1e-6).sqrt()
    return root[:, None] * K * root, (y - p) / (root if y.ndim == 1 else root[:, None])


def checked_start(K: Tensor, y: Tensor, start: Tensor | None) -> Tensor:
    """The start, after checks.

    Raises:
        InputError: if shapes, dtypes or probabilities do not fit.
    """
    same_dtype("K", K, "y", y)
    require(y.ndim in (1, 2) and len(y) == len(K) and (y.ndim == 1 or y.shape[1] > 1), "y", expected=f"({len(K)},) or ({len(K)}, k)",
            got=tuple(y.shape), cure="pass 0. and 1. for two classes, one-hot rows for more")  # fmt: skip
    proper = bool(((y >= 0) & (y <= 1)).all()) and (y.ndim == 1 or bool((y.sum(1) - 1).abs().max() < 1e-4))
    require(proper, "y", expected="probabilities", got=f"numbers from {float(y.detach().min()):g} to {float(y.detach().max()):g}",
            cure="pass 0. and 1., or one-hot rows")  # fmt: skip
    if start is None:
        return torch.zeros_like(y)
    start = numbers("start", start)
    same_dtype("y", y, "start", start)
    require(start.shape == y.shape and bool(start.isfinite().all()), "start", expected=f"finite scores of shape {tuple(y.shape)}",
            got=f"shape {tuple(start.shape)}", cure="pass f_0(X) before sigmoid or softmax")  # fmt: skip
    return start


def probability(f: Tensor) -> Tensor:
    """Sigmoid or softmax."""
    return f.sigmoid() if f.ndim == 1 else f.softmax(1)


def cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    """Mean over the rows."""
    if f.ndim == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(f, y)
    return torch.nn.functional.cross_entropy(f, y)
