"""From a model at its present weights, a part of its training rows and their labels to the kernel, the residual and the stop.

    loss                     residual r           kernel by which r decays              eta of a step
    mean squared error       y - f                (1/k) sum_c K_cc                      (2/k) lr
    cross entropy, 2 classes (y - p) / W^(1/2)    W^(1/2) K W^(1/2) of f_1 - f_0        lr
    cross entropy, k classes likewise             the same of centred scores / (k-1)    lr
    binary cross entropies   y - p                (1/k) sum_c K_cc                      mean p (1 - p) lr / k

(`logistic.working_problem`.) The mean squared error of regression and the mean of k binary losses are those of transformers.

Optimizers other than gradient descent have a kernel of their own (metric.py).

Equations (F1), (F20): docs/derivations/finetune.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import choice, require
from driftway.finetune.heads import Head, lent
from driftway.finetune.metric import METRICS, evaluating, gradients, inverse, raw_kernel, root_mean_squares, scores, speed
from driftway.kernels.tangent import tangent_features
from driftway.kernels.tangent.scope import Scope, select
from driftway.linalg import Spectrum, eigendecompose
from driftway.stopping.crossfit import Validation, cross_validate
from driftway.stopping.logistic import working_problem
from driftway.stopping.schedule import Schedule
from driftway.stopping.stop import Stop, stopping_time

LEAST = 20  # rows below which no stop is computed
ENOUGH = 64
FEW, MANY = 5, 10  # folds for more than WIDE rows, and for fewer
WIDE = 256
NOTES = {
    "adam": ("Adam breaks the theory, which is that of gradient descent: its division by the size of gradients is taken as one number for "
             "a tensor; the stop is an estimate"),
    "sign": ("the optimizer breaks the theory, which is that of gradient descent: the kernel is that of gradient signs, in a time in "
             "which the loss begins to fall as it does under Adam; the stop is an estimate"),
}  # fmt: skip
FIXED = ("steps are counted for a kernel that keeps its size; it grows as a new head does, and the callback, which follows it, then stops "
         "earlier, often by a factor of two or three")  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A least-squares problem that training is near its start.

    Attributes:
        kernel: not divided by n.
        residual: r.
        plain: the kernel of the scores; equal to the kernel where the loss is squared.
        target: y, in the shape of `start`.
        start: f_0(X), scores.
        raw: `raw_kernel`, to measure drift against.
        scale: eta of a step in units of its learning rate.
        classes: whether the loss is a cross entropy.
        notes: what the theory does not cover, in plain words.
        metric: of the optimizer.
        reference: for "adam" (mean of v_p)^(1/2) by name, in the units of the loss.
        weights: for "adam" w_p by name.
        held: rows that may be held out; all if None.
    """

    kernel: Float[Tensor, "n n"]
    residual: Float[Tensor, "n *k"]
    plain: Float[Tensor, "n n"]
    target: Float[Tensor, "n *k"]
    start: Float[Tensor, "n *k"]
    raw: Float[Tensor, "n n"]
    scale: float
    classes: bool
    notes: tuple[str, ...]
    metric: str = "gradient"
    reference: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    held: Tensor | None = None

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of the kernel."""
        return eigendecompose(self.kernel.cpu())

    @cached_property
    def validation(self) -> Validation:
        """Cross-validation of the time, by the loss that is trained."""
        folds = FEW if len(self.kernel) > WIDE else MANY
        return cross_validate(self.plain, self.target, start=self.start, loss="cross_entropy" if self.classes else "squared",
                              folds=folds, held=self.held)  # fmt: skip


def affordable(model: nn.Module, batches: Sequence[Mapping[str, Any]], *, budget: float, scope: Scope = "trainable",
               most: int = 1024) -> tuple[int, float]:  # fmt: skip
    """How many rows a kernel may have to take so many seconds, and the seconds of a row; a few rows are tried.

    Passes take a time linear in n; the Gram matrix one with a square, of which a few rows show little, so that the answer is cautious.

    Args:
        model: the network.
        batches: two batches, a small and a larger one.
        budget: seconds.
        scope: of the kernel.
        most: rows.

    Raises:
        InputError: if the model does not give one row of scores for each row.
    """
    times = []
    with evaluating(model), torch.no_grad():
        scores(model, batches[0])
    with evaluating(model):
        for batch in batches:
            start = perf_counter()
            features = tangent_features(model, batch, scope=scope)
            middle = perf_counter()
            features.gram()
            n = len(features.scores)
            times.append((n, middle - start, perf_counter() - middle))
    (m, _, short), (n, pass_, long) = times[0], times[-1]
    square = max((long / n - short / m) / max(n - m, 1), 0.02 * long / n**2)
    line = max(pass_ / n + long / n - square * n, 1e-9)
    return min(int((sqrt(line**2 + 4 * square * budget) - line) / (2 * square)), most), line


def problem(model: nn.Module, batches: Sequence[Mapping[str, Any]], labels: Tensor, *, scope: Scope = "trainable", metric: str = "gradient",
            batch: int = 32, initial: Tensor | None = None, held: Tensor | None = None) -> Problem:  # fmt: skip
    """The problem of a model that maps each row to scores, and one label a row.

    Args:
        model: at the weights that training starts from.
        batches: inputs.
        labels: (n,) class numbers, or (n,) or (n, k) numbers.
        scope: what is trained.
        metric: "gradient", "adam" or "sign": of the optimizer.
        batch: rows of a training step.
        initial: (n, k) f_0 in place of the model's, such as `Head.initial`, out of fold.
        held: rows that the head has not seen, where it has seen others: only these are held out in cross-validation.

    Raises:
        InputError: if the model does not give one row of scores for each label, or labels are constant.
    """
    device = next(iter(select(model, scope).values())).device
    with evaluating(model), torch.no_grad():
        f = torch.cat([scores(model, part) for part in batches]).float() if initial is None else initial.float().to(device)
    y, k = labels.to(device), f.shape[1]
    require(len(y) == len(f) and (y.ndim == 1 or y.shape[1:] in ((k,), (1,))), "labels",
            expected=f"one label for each of the {len(f)} rows, (n,) or (n, {k})", got=f"shape {tuple(y.shape)}",
            cure="use a model that scores whole rows, e.g. AutoModelForSequenceClassification")  # fmt: skip
    require(bool((y != y[0]).any()), "labels", expected="labels that differ", got=f"the same one in all {len(y)} rows",
            cure="check the labels, or shuffle the data set")  # fmt: skip
    classes = not y.is_floating_point() and k > 1
    if classes:
        low, high = int(y.min()), int(y.max())
        require(y.ndim == 1 and low >= 0 and high < k, "labels", expected=f"one class number from 0 to {k - 1} for each row",
                got=f"shape {tuple(y.shape)}, {low} to {high}", cure="set num_labels, and number classes from 0")  # fmt: skip
        f = f[:, 1] - f[:, 0] if k == 2 else f - f.mean(1, keepdim=True)
        target = y.float() if k == 2 else nn.functional.one_hot(y.long(), k).float()
        u, share, scale = target - (f.sigmoid() if k == 2 else f.softmax(1)), max(k - 1, 1), 1.0
    else:
        target, share, scale = y.float().reshape(len(f), -1).expand_as(f), k, 2 / k
        u = target - f
    multi = not classes and k > 1 and getattr(getattr(model, "config", None), "problem_type", None) != "regression"
    if multi:
        p = f.sigmoid()
        u, scale = target - p, float((p * (1 - p)).mean()) / k
    notes = [f"the residual y - p of {k} binary losses stands for a squared loss"] if multi else []
    mean, square, reference, weights, time = {}, {}, {}, {}, scale
    if choice("metric", metric, METRICS) != "gradient":
        mean, square = gradients(model, batches, u, scope=scope, batch=batch, classes=classes)
        roots, time = root_mean_squares(square), 1.0
        reference, weights = {name: scale * v for name, v in roots.items()}, inverse(roots)
        notes.append(NOTES[metric])
    raw = raw_kernel(model, batches, scope=scope, metric=metric, weights=weights, classes=classes)
    plain = raw / share
    if metric == "sign":
        plain = plain * speed(mean, square, u, plain)
    require(float(raw.diagonal().max()) > 0, "model", expected="scores that depend on what is trained", got="gradients of zero",
            cure="start from a head that is not zero, or train the head too")  # fmt: skip
    own = (metric, reference if metric == "adam" else {}, weights if metric == "adam" else {}, held)
    if not classes:
        r, goal, start = (part.double().squeeze(1) if part.shape[1] == 1 else part.double() for part in (u, target, f))
        goal, start = (r, torch.zeros_like(r)) if multi else (goal, start)
        return Problem(plain, r, plain, goal, start, raw, time, classes, tuple(notes), *own)
    K, r = working_problem(plain, target.double(), start=f.double())
    return Problem(K, r, plain, target.double(), f.double(), raw, time, classes, tuple(notes), *own)


def problem_of(model: nn.Module, batches: Sequence[Mapping[str, Any]], labels: Tensor, head: Head | None, rows: Sequence[int],
               **options: Any) -> Problem:  # fmt: skip
    """The problem of a part of the rows that a head was fitted to: that of the probe of one half, so that the other may be held out.

    Args:
        model: see `problem`, with the head in it.
        batches: see `problem`.
        labels: see `problem`.
        head: of all rows; None if it was not fitted.
        rows: the part's place among them.
        options: of `problem`.

    Raises:
        InputError: see `problem`.
    """
    if head is None:
        return problem(model, batches, labels, **options)
    with lent(model, head) as (initial, unseen):
        held = None if unseen is None else torch.isin(torch.tensor(rows), unseen.cpu()).nonzero().flatten()
        found = problem(model, batches, labels, initial=initial[list(rows)], held=held, **options)
    knows = "the head knows the labels of all rows, and with it the kernel: cross-validation is too hopeful, and the stop may be late"
    return found if held is not None else replace(found, notes=(*found.notes, knows))


def find_stop(found: Problem, rule: str = "cross_validation", *, schedule: Schedule, rows: int, batch: int, sigma: float | None = None,
              radius: float | None = None) -> Stop:  # fmt: skip
    """The stop of training on `rows` rows, from a problem with a part of them.

    Args:
        found: the problem.
        rule: of `stopping_time`.
        schedule: of learning rates, with the problem's scale.
        rows: N.
        batch: rows of a step.
        sigma: see `stopping_time`.
        radius: see `stopping_time`.

    Raises:
        InputError: see `stopping_time`.
    """
    stop = stopping_time(found.spectrum, found.residual.cpu(), rule, sigma=sigma, radius=radius, schedule=schedule, rows=rows,
                         batch=batch, validation=found.validation, adaptive=found.metric == "adam")  # fmt: skip
    return replace(stop, violations=(*stop.violations, *found.notes, FIXED))
