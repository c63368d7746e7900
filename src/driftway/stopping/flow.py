"""Gradient descent and gradient flow of a linearised network, in the eigenbasis of its tangent kernel K.

K/n = U diag(mu) U^T,   r = y - f_0(X),   z = U^T r / sqrt(n).   On the loss (1/2n) |f(X) - y|^2, per eigendirection:

    s_j(eta) = exp(-eta mu_j)              what is left of z_j after flow of time eta
    s_j      = prod_t (1 - alpha_t mu_j)   the same for descent with steps alpha_t, eta = sum_t alpha_t
    s_j      = 1 / (1 + eta mu_j)          the same for ridge regression with penalty lam = 1/eta on K/n

(1 - exp(-x)) / (x / (1 + x)) lies in [1, 1.2985]: flow and ridge are close. If y = f + noise of variance sigma^2 and f has coordinates
theta_j, then (Raskutti, Wainwright and Yu, 2014)

    E |f_eta - f|^2 / n = sum_j s_j^2 theta_j^2  +  (sigma^2/n) sum_j (1 - s_j)^2             bias + variance
    R(eps)              = ((1/n) sum_j min(mu_j, eps^2))^(1/2)                                complexity
    d(eta)              = sum_j (1 - s_j)                                                     degrees of freedom

Where f is not known, z_j^2 - sigma^2/n stands for theta_j^2, without bias. Then bias + variance is Stein's estimate of the risk.

Several outputs are trained with one kernel and one time; loss, bias and variance are means over the outputs. Eigenvalues up to the
spectrum's floor are taken as 0. Where a spectrum is truncated, the n - k values that it lacks are taken as equal, rest/(n-k) each.

Equations (F2), (F3), (F4), (F5), (F6), (F7): docs/derivations/finetune.md.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import kind, moderate, numbers, real, require
from driftway.linalg import Spectrum


@dataclass(frozen=True)
class Curves:
    """What happens along a flow, at the times eta. The letters are those at the top of the file.

    Attributes:
        eta: times.
        loss: mean squared residual of the training rows.
        bias: sum_j s_j^2 theta_j^2; an unbiased estimate, which may fall below 0, if f is not known.
        variance: (sigma^2/n) sum_j (1 - s_j)^2.
        dof: degrees of freedom, per output.
        complexity: R(eta^(-1/2)).
        threshold: radius / (2 e sigma eta): the plain rule stops where the complexity passes it.
    """

    eta: Float[Tensor, " t"]
    loss: Float[Tensor, " t"]
    bias: Float[Tensor, " t"]
    variance: Float[Tensor, " t"]
    dof: Float[Tensor, " t"]
    complexity: Float[Tensor, " t"]
    threshold: Float[Tensor, " t"]

    @property
    def risk(self) -> Float[Tensor, " t"]:
        """Bias + variance: the expected mean squared error at the training rows against f."""
        return self.bias + self.variance


@dataclass(frozen=True)
class Flow:
    """Training on fixed rows. Directions are grouped: one group for each known eigenvalue, and one for those a truncated spectrum lacks.

    Attributes:
        spectrum: of K/n, with vectors.
        r: (n,) or (n, k) residual y - f_0(X).
        mu: eigenvalue of each group.
        size: directions of each group.
        energy: sum of z_j^2 of each group, mean over the outputs; together the mean of r^2.
    """

    spectrum: Spectrum
    r: Float[Tensor, "n *k"]
    mu: Float[Tensor, " g"] = field(init=False, repr=False)
    size: Float[Tensor, " g"] = field(init=False, repr=False)
    energy: Float[Tensor, " g"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Move to the eigenbasis.

        Raises:
            InputError: if the spectrum has no vectors or no positive value, or the residual is not (n,) or (n, k) of finite floats.
        """
        kind("spectrum", self.spectrum, Spectrum, "a Spectrum")
        spectrum, r = self.spectrum, numbers("residual", self.r)
        require(r.is_floating_point() and bool(r.isfinite().all()), "residual", expected="finite floats",
                got=f"{r.dtype}" if not r.is_floating_point() else "NaN or inf", cure="pass y - f_0(X)")  # fmt: skip
        moderate("residual", r)
        object.__setattr__(self, "r", r)
        z = spectrum.coordinates(r)
        require(spectrum.rank > 0, "spectrum", expected="a positive eigenvalue", got="zeros only", cure="check the scope and the features")
        unknown = spectrum.size - len(spectrum.values)
        mu = spectrum.values.where(spectrum.values > spectrum.floor, 0.0)
        energy, size = z.square().reshape(len(mu), -1).mean(1), torch.ones_like(mu)
        if unknown:
            left = (r.double().square().mean() - energy.sum()).clamp_min(0)
            mu, energy = torch.cat([mu, mu.new_tensor([spectrum.rest / unknown])]), torch.cat([energy, left[None]])
            size = torch.cat([size, size.new_tensor([unknown])])
        for name, value in (("mu", mu), ("size", size), ("energy", energy)):
            object.__setattr__(self, name, value)

    def survival(self, eta: float | int | Tensor) -> Float[Tensor, "*t g"]:
        """s_j(eta).

        Raises:
            InputError: if a time is negative.
        """
        eta = numbers("eta", eta).to(self.mu)
        require(bool((eta >= 0).all()), "eta", expected="times >= 0", got=eta.tolist(), cure="pass eta=math.inf for the end of training")
        return torch.where(self.mu > 0, torch.exp(-eta[..., None] * self.mu.where(self.mu > 0, 1.0)), 1.0)

    def residual(self, eta: float | int | Tensor) -> Float[Tensor, "*shape"]:
        """y - f_eta(X), shape (*t, n, *k).

        Raises:
            InputError: if a time is negative.
        """
        return self._left(self.survival(eta))

    def fitted(self, eta: float | int | Tensor) -> Float[Tensor, "*shape"]:
        """f_eta(X) - f_0(X), shape (*t, n, *k).

        Raises:
            InputError: if a time is negative.
        """
        return self.r - self.residual(eta)

    def predict(self, cross: Float[Tensor, "m n"], eta: float | int | Tensor) -> Float[Tensor, "*shape"]:
        """f_eta(x_*) - f_0(x_*) of other rows, shape (*t, m, *k).

        Args:
            cross: K_*l, not divided by n.
            eta: times.

        Raises:
            InputError: if a time is negative, or cross does not have n columns.
        """
        n, live = self.spectrum.size, self.mu > 0
        require(cross.shape[1] == n, "cross", expected=f"{n} columns, the rows of the kernel", got=cross.shape[1],
                cure="pass K(x_*, x_train)")  # fmt: skip
        learned = torch.where(live, (1 - self.survival(eta)) / self.mu.where(live, 1.0), 0.0)
        r, k = self.r.double().reshape(n, -1), self.r.shape[1:]
        U = self._vectors
        c, P = U.T @ r, cross.double() @ U / n
        out = P @ (learned[..., : len(c), None] * c)
        if len(c) < len(self.mu):
            out = out + learned[..., -1, None, None] * (cross.double() @ (r - U @ c) / n)
        return out.reshape(*learned.shape[:-1], len(cross), *k).to(self.r.dtype)

    def descend(self, alpha: Float[Tensor, " steps"]) -> Float[Tensor, "n *k"]:
        """y - f(X) after gradient descent with the steps alpha, exactly; it diverges, as descent does, where alpha_t > 2/mu_1."""
        s = torch.ones_like(self.mu)
        for a in alpha.tolist():
            s = s * (1 - a * self.mu)
        return self._left(s)

    def ridge(self, eta: float | int) -> Float[Tensor, "n *k"]:
        """y - f(X) of ridge regression with penalty lam = 1/eta on K/n."""
        return self._left(1 / (1 + real("eta", eta, least=0) * self.mu))

    def loss(self, eta: float | int | Tensor) -> Float[Tensor, "*t"]:
        """Mean over rows and outputs of (y - f_eta(X))^2; the loss that is trained is half of it, summed over outputs."""
        return self.survival(eta).square() @ self.energy

    def dof(self, eta: float | int | Tensor) -> Float[Tensor, "*t"]:
        """d(eta), per output."""
        return (1 - self.survival(eta)) @ self.size

    def risk(self, eta: float | int | Tensor, *, sigma: float, truth: Float[Tensor, "n *k"] | None = None) -> Float[Tensor, "*t"]:
        """Bias + variance; the first from the true f(X) - f_0(X), or Stein's estimate."""
        bias, variance = self._parts(self.survival(eta), sigma, truth)
        return bias + variance

    def complexity(self, eta: Float[Tensor, "*t"]) -> Float[Tensor, "*t"]:
        """R(eta^(-1/2))."""
        return (torch.minimum(self.mu, 1 / eta[..., None]) @ self.size / self.spectrum.size).sqrt()

    def times(self, count: int = 400) -> Float[Tensor, " count"]:
        """Times from 0.01/mu_1 to 20 over the smallest positive mu, evenly spaced in the logarithm."""
        live = self.mu[self.mu > 0]
        return torch.logspace(math.log10(0.01 / float(live.max())), math.log10(20 / float(live.min())), count, dtype=live.dtype,
                              device=live.device)  # fmt: skip

    def curves(self, eta: Float[Tensor, " t"], *, sigma: float, radius: float = 1.0,
               truth: Float[Tensor, "n *k"] | None = None) -> Curves:  # fmt: skip
        """All curves.

        Args:
            eta: positive times.
            sigma: standard deviation of the noise.
            radius: bound of |f - f_0| in the space of the kernel.
            truth: f(X) - f_0(X), where it is known.
        """
        s = self.survival(eta)
        bias, variance = self._parts(s, sigma, truth)
        return Curves(eta, s.square() @ self.energy, bias, variance, (1 - s) @ self.size, self.complexity(eta),
                      radius / (2 * math.e * sigma * eta))  # fmt: skip

    def _parts(self, s: Tensor, sigma: float, truth: Tensor | None) -> tuple[Tensor, Tensor]:
        noise = self.size * sigma**2 / self.spectrum.size
        theta2 = self.energy - noise if truth is None else replace(self, r=truth).energy
        return s.square() @ theta2, (1 - s).square() @ noise

    @property
    def _vectors(self) -> Float[Tensor, "n j"]:
        U = self.spectrum.vectors
        return U if U is not None else self.r.new_zeros(0)

    def _left(self, s: Float[Tensor, "*t g"]) -> Float[Tensor, "*shape"]:
        """U diag(s) U^T r, shape (*t, n, *k)."""
        n, U, r = self.spectrum.size, self._vectors, self.r.double().reshape(self.spectrum.size, -1)
        c = U.T @ r
        out = U @ (s[..., : len(c), None] * c)
        if len(c) < len(self.mu):
            out = out + s[..., -1, None, None] * (r - U @ c)
        return out.reshape(*s.shape[:-1], n, *self.r.shape[1:]).to(self.r.dtype)
