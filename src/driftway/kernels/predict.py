"""Predictions from kernel matrices: Gaussian processes, and ensembles of wide networks trained by gradient flow.

Rows l are trained on, rows * are predicted; r = y - f_0(X_l). All solves are in float64 whatever the dtype of the input.

Posterior of f ~ N(0, K) given y = f + N(0, s I) (Rasmussen and Williams, 2006, eq. 2.23-2.30), which is also an infinitely wide
network with K = NNGP of which only the last layer is trained:

    mean = K_*l (K_ll + s I)^-1 y        covariance = K_** - K_*l (K_ll + s I)^-1 K_l*
    log p(y) = -(y.(K_ll + s I)^-1 y + log det(K_ll + s I) + n log 2 pi) / 2

Gradient flow on the loss (1/2n) |f(X_l) - y|^2 + (s/2n) |w - w_0|^2, for f linear in its parameters w with tangent kernel Theta.
The loss without 1/2 is twice as fast: pass 2t. With Theta_ll/n = U diag(mu) U^T and lam = s/n:

    A_t = Theta_*l/n U diag(phi_t) U^T        phi_t = (1 - exp(-(mu + lam) t)) / (mu + lam)
    f_t(x_*) = f_0(x_*) + A_t r               y - f_t(X_l) = U diag(1 - mu phi_t) U^T r
    covariance over f_0 ~ N(0, K) = K_** + A_t K_ll A_t^T - A_t K_l* - K_*l A_t^T        (Lee et al., 2019, eq. 14-16)

phi_t = 0 where mu = 0: what Theta does not see is never learned, also for t = inf. A network that starts at fixed weights, such as
a pretrained one, has the mean with its own f_0 and no covariance.

Equations (K14), (K15), (K16), (K17), (K18): docs/derivations/kernels.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import InputError, moderate, numbers, require, same_dtype, shaped
from driftway.linalg.operator import symmetric_matrix
from driftway.linalg.solve import Factor, cholesky
from driftway.linalg.spectrum import Spectrum, eigendecompose


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process given its training rows; made by [`posterior`][driftway.kernels.predict.posterior].

    Attributes:
        factor: of K_ll + s I.
        y: (n, *k) targets.
        alpha: (n, *k) (K_ll + s I)^-1 y.
        dtype: of the results.
    """

    factor: Factor
    y: Float[Tensor, "n *k"]
    alpha: Float[Tensor, "n *k"]
    dtype: torch.dtype

    def mean(self, cross: Float[Tensor, "m n"]) -> Float[Tensor, "m *k"]:
        """Posterior mean, from K_*l."""
        return (shaped("cross", cross, (None, len(self.y))).double() @ self.alpha).to(self.dtype)

    def covariance(self, cross: Float[Tensor, "m n"], test: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
        """Posterior covariance of f, the same for every output, from K_*l and K_**."""
        cross = shaped("cross", cross, (None, len(self.y)))
        test = shaped("test", test, (len(cross), len(cross)))
        W = self.factor.whiten(cross.double().mT)
        return (test.double() - W.mT @ W).to(self.dtype)

    def variance(self, cross: Float[Tensor, "m n"], diagonal: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """The diagonal of the covariance, from K_*l and the diagonal of K_**."""
        cross = shaped("cross", cross, (None, len(self.y)))
        diagonal = shaped("diagonal", diagonal, (len(cross),))
        return (diagonal.double() - self.factor.whiten(cross.double().mT).square().sum(0)).clamp_min(0).to(self.dtype)

    def log_marginal_likelihood(self) -> Float[Tensor, ""]:
        """log p(y), summed over outputs."""
        n, outputs = len(self.y), self.y[0].numel()
        fit = (self.y * self.alpha).sum()
        return (-(fit + outputs * (self.factor.logdet() + n * math.log(2 * math.pi))) / 2).to(self.dtype)


def posterior(K: Float[Tensor, "n n"], y: Float[Tensor, "n *k"], *, noise: float | int | Tensor = 0.0,
              relative_noise: float | int | Tensor = 0.0) -> Posterior:  # fmt: skip
    """Condition a Gaussian process on its training rows. Gradients pass to the kernel, the targets and the noise.

    Args:
        K: (n, n) kernel matrix K_ll of the training rows.
        y: (n,) or (n, k) targets.
        noise: variance s of the noise, a number or (n,), one for each row.
        relative_noise: what to add to s, as a multiple of the mean of the diagonal of K.

    Raises:
        InputError: if sizes or dtypes disagree, a number is not finite, or noise is negative.
    """
    K, y = symmetric_matrix("K", K), numbers("y", y)
    same_dtype("K", K, "y", y)
    K = K.double()
    _targets("y", y, len(K))
    unit = K.diagonal().mean()
    s = _level("noise", noise, K.diagonal()) + _level("relative_noise", relative_noise, unit) * unit
    factor = cholesky(K + torch.diag(s))
    return Posterior(factor, y.double(), factor.solve(y.double()), y.dtype)


@dataclass(frozen=True)
class GradientFlow:
    """Training of a linearised network on the squared loss; made by [`gradient_flow`][driftway.kernels.predict.gradient_flow].

    Times t are a number, or a tensor of any shape, which then leads the shape of the result; inf is the end of training. The loss,
    and with it the unit of time, stands at the top of this file. Gradients pass to everything but Theta_ll.

    Attributes:
        mu: (j,) eigenvalues of Theta_ll/n that are above rounding, descending.
        U: (n, j) their eigenvectors, in columns.
        r: (n, *k) y - f_0(X_l).
        lam: weight decay s/n.
        started: whether f_0 was given.
        dtype: of the results.
    """

    mu: Float[Tensor, " j"]
    U: Float[Tensor, "n j"]
    r: Float[Tensor, "n *k"]
    lam: Float[Tensor, ""]
    started: bool
    dtype: torch.dtype

    def residual(self, t: float | int | Tensor) -> Float[Tensor, "*shape"]:
        """y - f_t(X_l), shape (*t, n, *k).

        Raises:
            InputError: if a time is negative.
        """
        return (self.r - self._change(self.U * self.mu, t)).to(self.dtype)

    def mean(self, cross: Float[Tensor, "m n"], t: float | int | Tensor = math.inf, *,
             start: Float[Tensor, "m *k"] | None = None) -> Float[Tensor, "*shape"]:  # fmt: skip
        """f_t(x_*), shape (*t, m, *k): for random weights the mean of the ensemble.

        Args:
            cross: Theta_*l.
            t: times.
            start: (m, *k) f_0(x_*), if the flow has a start.

        Raises:
            InputError: if only one of the flow and this call has a start, or a time is negative.
        """
        require((start is not None) == self.started, "start", expected="f_0 of training rows and of test rows, or of neither",
                got=f"f_0 of the {'training' if self.started else 'test'} rows only",
                cure="pass start=f_0(X) to gradient_flow and start=f_0(X_test) to mean")  # fmt: skip
        cross = shaped("cross", cross, (None, len(self.U)))
        start = None if start is None else shaped("start", start, (len(cross), *self.r.shape[1:]))
        change = self._change(cross.double() @ self.U / len(self.U), t)
        return (change if start is None else start.double() + change).to(self.dtype)

    def covariance(self, cross: Float[Tensor, "m n"], t: float | int | Tensor = math.inf, *, nngp_train: Float[Tensor, "n n"],
                   nngp_cross: Float[Tensor, "m n"], nngp_test: Float[Tensor, "m m"]) -> Float[Tensor, "*t m m"]:  # fmt: skip
        """Covariance of f_t(x_*) over random initial weights, the same for every output.

        Args:
            cross: Theta_*l.
            t: times.
            nngp_train: K_ll.
            nngp_cross: K_*l.
            nngp_test: K_**.

        Raises:
            InputError: if a time is negative.
        """
        B, K, G = self._ensemble(cross, t, nngp_train, nngp_cross)
        half = B @ (K @ B.mT / 2 - G.mT)
        return (nngp_test.double() + half + half.mT).to(self.dtype)

    def variance(self, cross: Float[Tensor, "m n"], t: float | int | Tensor = math.inf, *, nngp_train: Float[Tensor, "n n"],
                 nngp_cross: Float[Tensor, "m n"], nngp_diagonal: Float[Tensor, " m"]) -> Float[Tensor, "*t m"]:  # fmt: skip
        """The diagonal of the covariance, from the diagonal of K_**; the rest is as there."""
        B, K, G = self._ensemble(cross, t, nngp_train, nngp_cross)
        return (nngp_diagonal.double() + (B * (B @ K - 2 * G)).sum(-1)).clamp_min(0).to(self.dtype)

    def _ensemble(self, cross: Tensor, t: float | int | Tensor, nngp_train: Tensor, nngp_cross: Tensor) -> tuple[Tensor, ...]:
        """A_t, K_ll and K_*l in the basis U."""
        cross = shaped("cross", cross, (None, len(self.U)))
        B = cross.double() @ self.U / len(self.U) * self._phi(t)[..., None, :]
        return B, self.U.mT @ nngp_train.double() @ self.U, nngp_cross.double() @ self.U

    def _change(self, P: Float[Tensor, "m j"], t: float | int | Tensor) -> Float[Tensor, "*shape"]:
        """P diag(phi_t) U^T r for every time at once, shape (*t, m, *k)."""
        phi, k = self._phi(t), self.r.shape[1:]
        c = self.U.mT @ self.r.reshape(len(self.r), -1)
        return (P @ (phi[..., None] * c)).reshape(*phi.shape[:-1], len(P), *k)

    def _phi(self, t: float | int | Tensor) -> Float[Tensor, "*t j"]:
        t = numbers("t", t).to(self.mu)
        require(bool((t >= 0).all()), "t", expected="times >= 0", got=t.tolist(), cure="pass t=math.inf for the end of training")
        rate, t = self.mu + self.lam, t[..., None]
        return torch.where(t.isinf(), 1.0, -torch.expm1(-rate * t.where(t.isfinite(), 0.0))) / rate  # finite slopes at t = inf too


def gradient_flow(Theta: Float[Tensor, "n n"] | Spectrum, y: Float[Tensor, "n *k"], *, start: Float[Tensor, "n *k"] | None = None,
                  ridge: float | int | Tensor = 0.0, relative_ridge: float | int | Tensor = 0.0) -> GradientFlow:  # fmt: skip
    """Training of a linearised network by gradient flow; one eigendecomposition serves all times.

    Args:
        Theta: (n, n) tangent kernel Theta_ll of the training rows, or its spectrum; directions that a truncated one lacks stay unlearned.
        y: (n,) or (n, k) targets.
        start: (n, *k) f_0(X_l), if the network starts at fixed weights; else f_0 has mean zero.
        ridge: s, the pull back to the initial weights: A_inf = Theta_*l (Theta_ll + s I)^-1.
        relative_ridge: what to add to s, as a multiple of the mean of the diagonal of Theta.

    Raises:
        InputError: if Theta is no positive semidefinite matrix, has a gradient, or comes without eigenvectors; if sizes or dtypes
            disagree, or a number is not finite or a ridge negative.
    """
    if isinstance(Theta, Spectrum):
        spectrum, floor = Theta, Theta.floor
    else:
        Theta, y = numbers("Theta", Theta), numbers("y", y)
        require(not (Theta.requires_grad and torch.is_grad_enabled()), "Theta", expected="a matrix without gradient", got="one with it",
                cure="pass Theta.detach(), or for t = inf use posterior(Theta, y, noise=ridge), which is differentiable")  # fmt: skip
        same_dtype("Theta", Theta, "y", y)
        spectrum = eigendecompose(symmetric_matrix("Theta", Theta).double(), argument="Theta")
        rounding = len(Theta) ** 0.5 * torch.finfo(Theta.dtype).eps  # |E|_2 <= |E|_F <= eps |Theta|_F <= eps n^(1/2) |Theta|_2
        floor = max(spectrum.floor, rounding * float(spectrum.values[0]))
    if spectrum.vectors is None:
        raise InputError("Theta", expected="a spectrum with eigenvectors", got="vectors=None",
                         cure="make it with eigendecompose or lanczos")  # fmt: skip
    y = numbers("y", y)
    _targets("y", y, spectrum.size)
    if start is not None:
        start = numbers("start", start)
        same_dtype("y", y, "start", start)
        require(start.shape == y.shape, "start", expected=f"shape {tuple(y.shape)}, as y has", got=f"shape {tuple(start.shape)}",
                cure="pass the outputs of the network on the training rows before training")  # fmt: skip
        _targets("start", start, spectrum.size)
    unit = spectrum.values.new_tensor(spectrum.trace)
    s = _level("ridge", ridge, unit) + _level("relative_ridge", relative_ridge, unit) * unit
    live = spectrum.values > floor
    r = y.double() if start is None else y.double() - start.double()
    return GradientFlow(spectrum.values[live], spectrum.vectors[:, live], r, s / spectrum.size, start is not None, y.dtype)


def _targets(argument: str, y: Tensor, n: int) -> None:
    require(y.ndim in (1, 2) and len(y) == n and y.numel() > 0, argument, expected=f"{n} rows, shape (n,) or (n, k)",
            got=f"shape {tuple(y.shape)}", cure="pass one row of targets for each training row")  # fmt: skip
    require(bool(y.isfinite().all()), argument, expected="finite numbers", got="NaN or inf", cure="drop such rows")
    moderate(argument, y)


def _level(argument: str, value: float | int | Tensor, like: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A finite number >= 0, or a tensor of them, in the shape of another tensor."""
    found = numbers(argument, value)
    level = found.to(like)
    fits = found.dtype is not torch.bool and (level.ndim == 0 or level.shape == like.shape)
    require(fits, argument, expected="one number" + " or (n,)" * like.ndim,
            got=f"shape {tuple(level.shape)}, {found.dtype}", cure="pass one number")  # fmt: skip
    require(bool((level.isfinite() & (level >= 0)).all()), argument, expected="finite numbers >= 0", got=level.tolist(),
            cure="pass a number >= 0")  # fmt: skip
    return level.expand(like.shape)
