"""When to stop: a time eta of training from the spectrum of the tangent kernel and the residual y - f_0(X), without a validation set.

    rademacher           T = min{t : R(eta_t^(-1/2)) > radius / (2 e sigma eta_t)} - 1        Raskutti, Wainwright and Yu, 2014, eq. 6
    discrepancy          the mean squared residual has fallen to tau sigma^2
    sure                 the least Stein estimate of the risk
    gcv                  the least generalised cross validation score; needs no sigma
    marginal_likelihood  nearest to the posterior mean of f ~ N(0, a^2 K)
    cross_validation     the least loss of rows held out of the kernel in turn; needs no sigma
    holdout              the least error on rows that were held out of the kernel
    oracle               the least error against the true f, for simulations

Each rule is a function of `rules.py`. The time does not depend on how it is walked: T is the last step of a schedule with eta_T <= eta.
sigma and R are estimated together, by maximum likelihood, unless they are given.

A kernel of n rows may stand for N: eigenvalues of K/n are those of N rows up to sampling, sigma and the amplitude a are the same, and the
noise that N rows let through is n/N of that of n: lam = sigma^2 / (N a^2), and sigma (n/N)^(1/2) in the plain rule. So more rows stop
later. The times of the other rules grow by the same factor as that of marginal_likelihood does.

Equations (F8), (F16): docs/derivations/finetune.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import InputError, choice, count, kind, real, require, shaped
from driftway.linalg import Spectrum, fit_decay
from driftway.stopping import rules
from driftway.stopping.crossfit import Validation, cross_validate
from driftway.stopping.flow import Curves, Flow
from driftway.stopping.noise import Noise, fit_noise
from driftway.stopping.schedule import Schedule

RULES = ("rademacher", "discrepancy", "sure", "gcv", "marginal_likelihood", "cross_validation", "holdout", "oracle")
ALONE = RULES[:-2]  # they need neither held rows nor a truth
FOLDS = 10
FEW = 50  # rows below which sigma and R are guesses
BARE = 1e-3  # negative eigenvalues of this part of the trace are more than rounding


@dataclass(frozen=True)
class Stop:
    """When to stop, and what is known about it.

    Attributes:
        rule: its name.
        eta: the time; infinite if training to the end is best, 0 if no training is.
        steps: of the schedule; None without a schedule or where eta is infinite.
        epochs: likewise.
        lam: penalty 1/eta of the ridge regression on K/n that is nearest.
        dof: degrees of freedom at eta, per output.
        sigma: standard deviation of the noise in the residual.
        radius: R, bound or estimate of |f - f_0| in the space of the kernel.
        found: how sigma and R were found, in plain words.
        risk: estimated mean squared error at the training rows against the noise-free targets before training, at eta, and at the end.
        curves: bias, variance, complexity and more, along the flow.
        sensitivity: the time that the rule would choose, had R (or sigma, for rules without R) half or twice the size.
        violations: assumptions that do not hold, in plain words.
        validation: losses along the path, on training rows and on rows held out of the kernel; None for rules other than cross_validation,
            unless it was given.
    """

    rule: str
    eta: float
    steps: int | None
    epochs: float | None
    lam: float
    dof: float
    sigma: float
    radius: float
    found: str
    risk: tuple[float, float, float]
    curves: Curves
    sensitivity: dict[str, float]
    violations: tuple[str, ...]
    validation: Validation | None = None


@torch.no_grad()
def stopping_time(spectrum: Spectrum, residual: Float[Tensor, "n *k"], rule: str = "marginal_likelihood", *,
                  sigma: float | int | None = None, radius: float | int | None = None, schedule: Schedule | None = None,
                  rows: int | None = None, batch: int | None = None, tau: float | int = 1.0,
                  held: tuple[Tensor, Tensor] | None = None,
                  truth: Float[Tensor, "n *k"] | None = None, validation: Validation | None = None,
                  adaptive: bool = False) -> Stop:  # fmt: skip
    """The time to stop at.

    Args:
        spectrum: of K/n, with vectors.
        residual: y - f_0(X); for classification by squared loss centred_one_hot(labels) - f_0(X).
        rule: one of those at the top of the file.
        sigma: standard deviation of the noise; estimated if None.
        radius: bound R of |f - f_0| in the space of K; estimated if None.
        schedule: learning rates, to count steps and epochs.
        rows: of the training set, if the kernel is that of a part of it.
        batch: rows of a step; all of them if None.
        tau: of the discrepancy rule.
        held: K(x_held, x_train), shape (m, n), and y - f_0 of the m held rows, for "holdout".
        truth: f(X) - f_0(X), for "oracle".
        validation: for "cross_validation", where the loss is not the squared one.
        adaptive: whether steps are those of Adam, whose time runs faster as gradients shrink (crossfit.py).

    Raises:
        InputError: if the rule is unknown or lacks what it needs, or a number or shape does not fit.
    """
    batch = None if batch is None else count("batch", batch)
    rule, flow, n = choice("rule", rule, RULES), Flow(spectrum, residual), spectrum.size
    if schedule is not None:
        kind("schedule", schedule, Schedule, "a Schedule")
    truth = None if truth is None else shaped("truth", truth, tuple(flow.r.shape))
    if held is not None:
        require(isinstance(held, tuple | list) and len(held) == 2, "held", expected="a pair (K(x_held, x_train), y - f_0 there)",
                got=type(held).__name__, cure="pass both")  # fmt: skip
        held = shaped("held", held[0], (None, n)), shaped("held", held[1], (None, *flow.r.shape[1:]))
    tau, radius = real("tau", tau, least=0, strict=True), None if radius is None else real("radius", radius, least=0, strict=True)
    noise = fit_noise(flow, sigma=sigma)
    used = noise.radius if radius is None else radius
    if rule == "cross_validation" and validation is None:
        validation = cross_validate(spectrum.matrix(), flow.r.double(), folds=min(FOLDS, n))
    total, carried = n if rows is None else count("rows", rows), []
    chosen = _rule(rule, flow, noise, tau, held, truth, validation)
    eta = chosen(noise.sigma, used, noise.lam(n))
    if total > n:
        eta = _carry(rule, eta, flow, noise, used, total)
        carried = [f"the kernel is that of {n} of {total} rows: sigma and R are theirs, and the time was carried over to all rows"]
    clock = validation.steps_time(eta) if adaptive and validation and math.isfinite(eta) else eta
    steps = schedule.steps_for(clock) if schedule else None
    epochs = schedule.epochs_for(clock, total, total if batch is None else batch) if schedule else None
    at = flow.risk(torch.tensor([0.0, eta, math.inf], dtype=flow.mu.dtype), sigma=noise.sigma, truth=truth).tolist()
    return Stop(
        rule, eta, steps, epochs, lam=1 / eta if eta else math.inf, dof=float(flow.dof(eta)), sigma=noise.sigma, radius=used,
        found=noise.found if radius is None else f"{noise.found}; R = {radius:.3g} was given and took the place of {noise.radius:.3g}",
        risk=(at[0], at[1], at[2]), curves=flow.curves(flow.times(200), sigma=noise.sigma, radius=used, truth=truth),
        sensitivity=_sensitivity(rule, chosen, noise.sigma, used, noise.lam(n)),
        violations=(*_spectral(spectrum), *_statistical(flow, noise, used, truth), *_practical(spectrum, schedule, clock), *carried,
                    *_gained(rule, validation)),
        validation=validation,
    )  # fmt: skip


def _rule(rule: str, flow: Flow, noise: Noise, tau: float, held: tuple[Tensor, Tensor] | None,
          truth: Tensor | None, validation: Validation | None) -> Callable[[float, float, float], float]:  # fmt: skip
    """The rule as a function of sigma, R and lam."""
    if rule == "holdout":
        if held is None:
            raise InputError("held", expected="rows for the rule holdout", got="None", cure="pass held=(K(x_held, x_train), y - f_0 there)")
        return lambda sigma, radius, lam: rules.holdout(flow, cross=held[0], held=held[1])
    if rule == "oracle":
        if truth is None:
            raise InputError("truth", expected="f(X) - f_0(X) for the rule oracle", got="None", cure="choose a rule that needs no truth")
        return lambda sigma, radius, lam: rules.oracle(flow, truth=truth)
    if validation is not None and rule == "cross_validation":
        return lambda sigma, radius, lam: validation.best
    return {
        "rademacher": lambda sigma, radius, lam: rules.rademacher(flow, sigma=sigma, radius=radius),
        "discrepancy": lambda sigma, radius, lam: rules.discrepancy(flow, sigma=sigma, tau=tau),
        "sure": lambda sigma, radius, lam: rules.sure(flow, sigma=sigma),
        "gcv": lambda sigma, radius, lam: rules.gcv(flow),
        "marginal_likelihood": lambda sigma, radius, lam: rules.marginal_likelihood(flow, lam=lam),
    }[rule]


def _carry(rule: str, eta: float, flow: Flow, noise: Noise, radius: float, rows: int) -> float:
    """The time for more rows than those of the kernel."""
    n = flow.spectrum.size
    if rule == "rademacher":
        return rules.rademacher(flow, sigma=noise.sigma * math.sqrt(n / rows), radius=radius)
    few, many = (rules.marginal_likelihood(flow, lam=noise.lam(size)) for size in (n, rows))
    if rule == "marginal_likelihood":
        return many
    return eta * many / few if few > 0 and math.isfinite(many) else eta


def _sensitivity(rule: str, chosen: Callable[[float, float, float], float], sigma: float, radius: float, lam: float) -> dict[str, float]:
    if rule in ("rademacher", "marginal_likelihood"):
        return {f"R x {c:g}": chosen(sigma, c * radius, lam / c**2) for c in (0.5, 1.0, 2.0)}
    if rule in ("discrepancy", "sure"):
        return {f"sigma x {c:g}": chosen(c * sigma, radius, lam) for c in (0.5, 1.0, 2.0)}
    return {}


def _spectral(spectrum: Spectrum) -> list[str]:
    """What is wrong with the spectrum."""
    found, decay = [], fit_decay(spectrum)
    if decay.verdict not in ("finite rank", "exponential") and decay.power is not None:
        low, high = decay.exponent_interval
        if decay.exponent <= 1:
            found.append(f"the eigenvalues decay with exponent {decay.exponent:.2f} ({low:.2f} to {high:.2f}), which is <= 1: outside the "
                         "trace-class regime of the theorem, whose rates do not hold")  # fmt: skip
        elif low <= 1:
            found.append(f"the exponent of the decay, {decay.exponent:.2f}, may be <= 1 (interval from {low:.2f}): outside the trace-class "
                         "regime of the theorem if so")  # fmt: skip
    if decay.verdict == "none":
        found.append(f"no law of decay was recognised ({decay.remarks[0]}): the sample size has no predictable rate")
    if spectrum.clipped > BARE:
        found.append(f"negative eigenvalues of {spectrum.clipped:.2g} of the trace were set to 0: K is not positive semi-definite")
    if spectrum.truncated and spectrum.explained < 1 - BARE:
        found.append(f"the spectrum is truncated: {len(spectrum.values)} of {spectrum.size} values make up "
                     f"{100 * spectrum.explained:.3g} % of the trace; the others were taken as equal")  # fmt: skip
    return found


def _statistical(flow: Flow, noise: Noise, radius: float, truth: Tensor | None) -> list[str]:
    """What is wrong with the residual."""
    found, n = [], flow.spectrum.size
    if not noise.signal:
        found.append(f"the residual holds no signal that stands out from noise (log likelihood gain {noise.gain:.2g}): is the start "
                     "already fitted to these rows?")  # fmt: skip
    if truth is None:
        norm, whose = noise.radius, "posterior mean"
    else:
        theta2 = Flow(flow.spectrum, truth).energy
        live = (flow.mu > 0) & (theta2 > 1e-12 * theta2.sum())
        norm, whose = float((theta2[live] / flow.mu[live]).sum().sqrt()), "true function"
    if norm > radius * (1 + 1e-6):
        found.append(f"the norm of the {whose}, {norm:.3g}, exceeds R = {radius:.3g}: the plain rule stops too early, and its bound "
                     "does not hold")  # fmt: skip
    if n < FEW:
        found.append(f"n = {n} rows are few: sigma, R and the time are rough")
    if flow.r.ndim > 1 and flow.r.shape[1] > 1:
        found.append(f"the residual has {flow.r.shape[1]} outputs: the theory is for one; they share one kernel, one sigma and one time, "
                     "and squared errors are averaged over them")  # fmt: skip
    return found


def _gained(rule: str, validation: Validation | None) -> list[str]:
    """What is wrong with the rows held out."""
    lost = rule == "cross_validation" and validation is not None and not validation.gains
    return ["rows held out of the kernel gain nothing from training: the stop is where their loss begins to grow"] if lost else []


def _practical(spectrum: Spectrum, schedule: Schedule | None, eta: float) -> list[str]:
    """What is wrong with the steps."""
    found = []
    if schedule:
        largest, bound = float(schedule.alpha.max()), 1 / float(spectrum.values[0])
        if largest >= 2 * bound:
            found.append(f"the largest step size, {largest:.3g}, is 2/mu_1 = {2 * bound:.3g} or more: gradient descent diverges")
        elif largest > min(1.0, bound):
            found.append(f"the largest step size, {largest:.3g}, exceeds the theorem's bound min(1, 1/mu_1) = {min(1.0, bound):.3g}")
        if not schedule.constant and schedule.eta(len(schedule.alpha)) < eta * (1 - 1e-9):
            found.append(f"the schedule ends at time {schedule.eta(len(schedule.alpha)):.3g}, before the stop at {eta:.3g}")
    if math.isinf(eta):
        found.append("the rule finds no best time: it would train to the end")
    return found
