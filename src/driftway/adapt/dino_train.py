"""DINO-TRAIN: the distribution-informed network with all its layers trained, for a finite time (Wu et al., 2022).

The network starts at f_0 ~ N(0, K B) and follows gradient flow on the labels of all domains, each row weighted by its noise D_i, in the
tangent kernel Theta of `distribution_kernel.py`. In units of the noise, y = D^(-1/2) Y, Theta_ll = D^(-1/2) Theta D^(-1/2) and so on,

    f_t(x_*)   = f_0(x_*) + A_t (y - f_0(X_l)),   A_t = Theta_*l Theta_ll^-1 (I - exp(-Theta_ll t/n))
    mean       = A_t y
    variance   = K_** + A_t (K_ll + I) A_t' - A_t K_l* - K_*l A_t'            over f_0 and over the noise of the labels

The second variance is that of an ensemble of trained networks (Lee et al., 2019, eq. 16), with the noise of the labels that the flow has
taken up: it grows with t, where the ensemble's own falls. For t = inf, y is interpolated. The time is one of the library's stopping rules;
by default cross-validation of the time inside the kernel, in which only labelled rows of the target are held out.

Many rows are not all trained on. Given those that are far from the target (scale.py), the last layer makes f_0 ~ N(m, K~ B), and the flow
is that of the near rows, on Y - m, with the same Theta: pretraining, and fine-tuning of all layers.

Equations (A18), (A19), (A20), (A38): docs/derivations/adapt.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.dino_init import Prediction, at_target
from driftway.adapt.distribution_kernel import Rows
from driftway.adapt.learn import Learned
from driftway.adapt.scale import TRAINED, Far, condition
from driftway.checks import choice, real
from driftway.kernels import GradientFlow, gradient_flow
from driftway.linalg import eigendecompose
from driftway.stopping.crossfit import cross_validate
from driftway.stopping.stop import ALONE, stopping_time

LEAST, FOLDS = 5, 10  # labelled target rows that cross-validation asks for, else marginal likelihood; of the rows held out


@dataclass(frozen=True)
class Trained:
    """A network after training.

    Attributes:
        start: the process at initialisation.
        flow: gradient flow, in units of the noise.
        K: covariance of f_0 and of the noise at the rows trained on, in units of the noise.
        time: t.
        rule: that chose it, or "given".
        residuals: of the target rows, each held out, standardised.
        spread: their variances, noise included, in units of B.
        far: what rows say that are not trained on, if there are many.
    """

    start: Learned
    flow: GradientFlow
    K: Float[Tensor, "n n"]
    time: float
    rule: str
    residuals: Float[Tensor, "m k"]
    spread: Float[Tensor, " m"]
    far: Far | None = None


@torch.no_grad()
def train(start: Learned, *, rule: str = "cross_validation", time: float | int | None = None) -> Trained:
    """Train the network of a fitted process.

    Args:
        start: the process; the form of its k_P decides which network it is.
        rule: one of the rules that need neither held rows nor a truth.
        time: t, if it is known; inf is the end of training.

    Raises:
        InputError: if the rule is unknown or the time negative.
    """
    choice("rule", rule, ALONE)
    rows, Y, noise, m, far = start.frame.rows, start.frame.y, start.noise, start.frame.target, _far(start)
    if far is not None:
        rows, Y, noise, m = far.rows, Y[far.near] - far.mean, noise[far.near], far.target
    pair, root = start.kernel.pair(rows), noise.sqrt()
    K = (pair.nngp if far is None else far.gram(start.kernel, rows)) / torch.outer(root, root)
    K.diagonal().add_(1)
    Theta, y, held = pair.ntk / torch.outer(root, root), Y / root[:, None], torch.arange(len(root) - m, len(root), device=root.device)
    spectrum = eigendecompose(Theta)
    if time is not None:
        rule, t = "given", time if time == math.inf else real("time", time, least=0)
    elif not y.any():  # constant labels tell nothing of the time: the one of a ridge of 1
        rule, t = "marginal_likelihood", float(len(y))
    else:
        rule = rule if m >= LEAST or rule != "cross_validation" else "marginal_likelihood"
        seen = cross_validate(Theta, y, folds=min(FOLDS, m), held=held) if rule == "cross_validation" else None
        t = stopping_time(spectrum, y, rule, sigma=1.0, validation=seen).eta
    residuals, spread = _held(Theta, K, y, held, t)
    return Trained(start, gradient_flow(spectrum, y), K, t, rule, residuals * root[held, None], spread * noise[held], far)


def _far(start: Learned) -> Far | None:
    """What rows say that are not trained on."""
    rows, scale = start.frame, start.scale
    if scale.exact(len(rows.y), TRAINED):
        return None
    return condition(start.kernel, rows.rows, rows.y, start.noise * rows.weight, target=rows.target, weight=rows.weight, aim=rows.aim,
                     scale=scale, near=scale.features)[1]  # fmt: skip


def predict(found: Trained, X: Float[Tensor, "q d"]) -> Prediction:
    """Mean and variance of trained networks at rows of the target, in blocks."""
    start, means, variances = found.start, [], []
    for part in X.split(1024):
        new = at_target(start, part)
        Theta, K, root = _cross(found, new)
        diagonal, m = start.kernel.diagonal(new), 0.0
        if found.far is not None:
            K, diagonal, m = found.far.at(start.kernel, new)
        means.append(found.flow.mean(Theta / root, found.time) + m)
        variances.append(found.flow.variance(Theta / root, found.time, nngp_train=found.K, nngp_cross=K / root, nngp_diagonal=diagonal))
    return Prediction(torch.cat(means), torch.cat(variances), start.raw["noise"][0].exp(), start.joint.B)


def covariance(found: Trained, X: Float[Tensor, "q d"]) -> Float[Tensor, "q q"]:
    """Covariance of f_t at rows of the target, in units of B."""
    start, new = found.start, at_target(found.start, X)
    Theta, K, root = _cross(found, new)
    test = start.kernel.gram(new)
    if found.far is not None:
        K, test = found.far.at(start.kernel, new)[0], found.far.gram(start.kernel, new)
    return found.flow.covariance(Theta / root, found.time, nngp_train=found.K, nngp_cross=K / root, nngp_test=test)


def _cross(found: Trained, new: Rows) -> tuple[Float[Tensor, "q n"], Float[Tensor, "q n"], Float[Tensor, " n"]]:
    """Theta and K between new rows and those trained on, and the standard deviations of the latter's noise."""
    start, far = found.start, found.far
    pair = start.kernel.pair(new, start.frame.rows if far is None else far.rows)
    return pair.ntk, pair.nngp, (start.noise if far is None else start.noise[far.near]).sqrt()


def _held(Theta: Float[Tensor, "n n"], K: Float[Tensor, "n n"], y: Float[Tensor, "n k"], held: Tensor,
          t: float) -> tuple[Float[Tensor, "m k"], Float[Tensor, " m"]]:  # fmt: skip
    """Residuals and variances, noise included, of the held rows: each when those of its fold are not trained on."""
    residuals, spread = torch.zeros_like(y), y.new_zeros(len(y))
    for fold in range(min(FOLDS, len(held))):
        out = held[fold::FOLDS]
        kept = torch.ones(len(y), dtype=torch.bool, device=y.device).index_fill(0, out, False)
        if not kept.any():
            return y[held], K.diagonal()[held]
        flow = gradient_flow(eigendecompose(Theta[kept][:, kept]), y[kept])
        pace = t * int(kept.sum()) / len(y)  # the same time for each row: the loss is a mean
        residuals[out] = y[out] - flow.mean(Theta[out][:, kept], pace)
        spread[out] = flow.variance(Theta[out][:, kept], pace, nngp_train=K[kept][:, kept], nngp_cross=K[out][:, kept],
                                    nngp_diagonal=K.diagonal()[out])  # fmt: skip
    return residuals[held], spread[held]
