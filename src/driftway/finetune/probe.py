"""From a model at its present weights, a part of its training rows and their labels to the kernel, the residual and the stop.

    loss                     residual r           kernel by which r decays              eta of a step
    mean squared error       y - f                (1/k) sum_c K_cc                      (2/k) lr
    cross entropy, 2 classes (y - p) / W^(1/2)    W^(1/2) K W^(1/2) of f_1 - f_0        lr
    cross entropy, k classes likewise             the same of centred scores / (k-1)    lr
    binary cross entropies   y - p                (1/k) sum_c K_cc                      mean p (1 - p) lr / k

(`logistic.working_problem`.) The mean squared error of regression and the mean of k binary losses are those of transformers.

Adam moves a parameter by lr m / v^(1/2), with means m and v of gradients and their squares: no kernel method. What is closest is the
kernel of signs, K_s(x, x') = <sign g, sign g'> (Malladi et al., 2023, without their sizes), in a time c lr in which the loss begins
to fall as fast as under Adam. With G the gradient on all rows, v the mean square of gradients on batches, and u = y - p or y - f:

    rate of Adam = sum_p G_p^2 / v_p^(1/2)        rate of the kernel = u.K_s u / n^2        c = their ratio

A part of n rows stands for N: eigenvalues of K/n are those of N rows up to sampling, sigma and the amplitude a are the same, and the noise
that N rows let through is n/N of that of n: lam = sigma^2 / (N a^2). So more rows stop later.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf, sqrt
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import InputError, require
from driftway.finetune.flow import Flow
from driftway.finetune.logistic import working_problem
from driftway.finetune.noise import fit_noise
from driftway.finetune.rules import marginal_likelihood, rademacher
from driftway.finetune.schedule import Schedule
from driftway.finetune.stopping import Stop, stopping_time
from driftway.kernels.tangent import tangent_features, tangent_gram
from driftway.kernels.tangent.batches import convert
from driftway.kernels.tangent.outputs import forward
from driftway.kernels.tangent.scope import Scope, select
from driftway.linalg import eigendecompose

LEAST = 20  # rows below which no stop is computed
ENOUGH = 64
ADAM = ("Adam breaks the theory, which is that of gradient descent: the kernel is that of gradient signs, in a time in which the loss "
        "begins to fall as it does under Adam; the stop is an estimate")  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A least-squares problem that training is near its start.

    Attributes:
        kernel: not divided by n.
        residual: r.
        raw: `raw_kernel`, to measure drift against.
        scale: eta of a step in units of its learning rate.
        classes: whether the loss is a cross entropy.
        notes: what the theory does not cover, in plain words.
    """

    kernel: Float[Tensor, "n n"]
    residual: Float[Tensor, "n *k"]
    raw: Float[Tensor, "n n"]
    scale: float
    classes: bool
    notes: tuple[str, ...]


@contextmanager
def evaluating(model: nn.Module):
    """Evaluation mode; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield model.eval()
    finally:
        for module, mode in modes.items():
            module.training = mode


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
        _scores(model, batches[0])
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


def problem(model: nn.Module, batches: Sequence[Mapping[str, Any]], labels: Tensor, *, scope: Scope = "trainable", adaptive: bool = False,
            batch: int = 32, initial: Tensor | None = None) -> Problem:  # fmt: skip
    """The problem of a model that maps each row to scores, and one label a row.

    Args:
        model: at the weights that training starts from.
        batches: inputs.
        labels: (n,) class numbers, or (n,) or (n, k) numbers.
        scope: what is trained.
        adaptive: whether the optimizer divides by the size of gradients (Adam and its kin).
        batch: rows of a training step.
        initial: (n, k) f_0 in place of the model's, such as `Head.initial`, out of fold.

    Raises:
        InputError: if the model does not give one row of scores for each label, or labels are constant.
    """
    device = next(iter(select(model, scope).values())).device
    with evaluating(model), torch.no_grad():
        f = torch.cat([_scores(model, part) for part in batches]).float() if initial is None else initial.float().to(device)
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
        target, share, scale = y.float().reshape(len(f), -1), k, 2 / k
        u = target - f
    multi = not classes and k > 1 and getattr(getattr(model, "config", None), "problem_type", None) != "regression"
    if multi:
        p = f.sigmoid()
        u, scale = target - p, float((p * (1 - p)).mean()) / k
    notes = [f"the residual y - p of {k} binary losses stands for a squared loss"] if multi else []
    raw = raw_kernel(model, batches, scope=scope, adaptive=adaptive, classes=classes)
    kernel = raw / share
    if adaptive:
        notes.append(ADAM)
        kernel, scale = kernel * _speed(model, batches, u, kernel, scope, batch, classes), 1.0
    require(float(raw.diagonal().max()) > 0, "model", expected="scores that depend on what is trained", got="gradients of zero",
            cure="start from a head that is not zero, or train the head too")  # fmt: skip
    if not classes:
        return Problem(kernel, u.double().squeeze(1) if u.shape[1] == 1 else u.double(), raw, scale, classes, tuple(notes))
    K, r = working_problem(kernel, target.double(), start=f.double())
    return Problem(K, r, raw, scale, classes, tuple(notes))


def find_stop(found: Problem, rule: str = "marginal_likelihood", *, schedule: Schedule, rows: int, batch: int, sigma: float | None = None,
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
    spectrum, residual = eigendecompose(found.kernel.cpu()), found.residual.cpu()
    stop = stopping_time(spectrum, residual, rule, sigma=sigma, radius=radius, schedule=schedule, rows=rows, batch=batch)
    notes, n = [*found.notes], spectrum.size
    if rows > n:
        flow = Flow(spectrum, residual)
        if rule in ("marginal_likelihood", "rademacher"):
            eta = marginal_likelihood(flow, lam=fit_noise(flow, sigma=sigma).lam(rows)) if rule == "marginal_likelihood" else rademacher(
                flow, sigma=stop.sigma * sqrt(n / rows), radius=stop.radius)  # fmt: skip
            notes.append(f"the kernel is that of {n} of {rows} rows: sigma and R are theirs, and the time was carried over to all rows")
            stop = replace(stop, eta=eta, steps=schedule.steps_for(eta), epochs=schedule.epochs_for(eta, rows, batch),
                           lam=1 / eta if eta else inf, dof=float(flow.dof(eta)))  # fmt: skip
        else:
            notes.append(f"the time is that of {n} of {rows} rows, which is early for all of them; marginal_likelihood carries it over")
    return replace(stop, violations=(*stop.violations, *notes))


def raw_kernel(model: nn.Module, batches: Sequence[Mapping[str, Any]], *, scope: Scope = "trainable", adaptive: bool = False,
               classes: bool = True) -> Float[Tensor, "n n"]:  # fmt: skip
    """The kernel before weights and time, summed over scores; for classes of the contrast f_1 - f_0, or of centred scores."""
    with evaluating(model):
        return tangent_gram(model, [dict(part) for part in batches], scope=scope, forward=_contrast if classes else forward,
                            sign="both" if adaptive else "none")  # fmt: skip


def _scores(model: nn.Module, part: Mapping[str, Any]) -> Float[Tensor, "n k"]:
    weight = next(model.parameters())
    out = forward(model, convert({name: entry for name, entry in part.items() if name not in ("label", "labels")},
                                 weight.dtype, weight.device))  # fmt: skip
    if not isinstance(out, Tensor) or out.ndim not in (1, 2):
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise InputError("model", expected="one row of scores for each example", got=got,
                         cure="use a model that scores whole rows, e.g. AutoModelForSequenceClassification")  # fmt: skip
    return out if out.ndim == 2 else out[:, None]


def _contrast(model: nn.Module, batch: Any) -> Tensor:
    out = forward(model, batch)
    return out[:, 1] - out[:, 0] if out.shape[1] == 2 else out - out.mean(1, keepdim=True)


def _speed(model: nn.Module, batches: Sequence[Mapping[str, Any]], u: Tensor, K: Tensor, scope: Scope, batch: int,
           classes: bool) -> float:  # fmt: skip
    """c."""
    parameters = list(select(model, scope).values())
    mean = [torch.zeros_like(p) for p in parameters]
    square = [torch.zeros_like(p) for p in parameters]
    part, held, done, n = [torch.zeros_like(p) for p in parameters], 0, 0, len(u)
    for rows in batches:
        with evaluating(model), torch.enable_grad():
            f = _contrast(model, convert(dict(rows), parameters[0].dtype, parameters[0].device)) if classes else _scores(model, rows)
            own = u[done : done + len(f)].to(f)
            gradients = torch.autograd.grad((own * f.reshape(own.shape)).sum(), parameters, allow_unused=True)
        for total, gradient in zip(part, gradients, strict=True):
            total += 0 if gradient is None else gradient
        held, done = held + len(f), done + len(f)
        if held >= batch or done == n:
            for m, s, g in zip(mean, square, part, strict=True):
                m += g / n
                s += g.square() / held / n
                g.zero_()
            held = 0
    adam = sum(float((m.square() / s.sqrt().clamp_min(1e-12)).sum()) for m, s in zip(mean, square, strict=True))
    columns = u.double().reshape(n, -1)
    return adam * n**2 / max(float((columns * (K @ columns)).sum()), 1e-300)
