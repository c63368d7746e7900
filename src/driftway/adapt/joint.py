"""One Gaussian process over the labelled rows of all domains: what a kernel is worth to the target, and what it predicts.

Rows of the sources come first, the m labelled rows of the target last. K is the prior covariance of f at these n rows, D the variances
of their noise, and k outputs share one covariance B. Then Y (n, k) is matrix normal:

    Y ~ N(0, S, B),   S = K + D = L L^T,   Z = L^-1 Y,   A = S^-1 Y

    log p(Y)           = sum_i log N(Z_i; 0, B) - k log L_ii                    over all rows i
    log p(Y_t | Y_s)   = the same over the last m rows                          L eliminates the sources first
    f(x_*) | Y         ~ N(K_*l A,  (K_** - K_*l S^-1 K_l*) B)                  (Rasmussen and Williams, 2006, eq. 2.22-2.24)
    y_i | Y without i  ~ N(y_i - A_i / (S^-1)_ii,  B / (S^-1)_ii)               leave-one-out (the same, eq. 5.12)

A row of weight w stands for w rows with the same label: one row whose noise has 1/w of the variance s, and a density that lacks the factor
(2 pi s)^(-(w-1)/2) w^(-1/2) |B|^(-(w-1)/2), by output. B is (Z'Z + nu I) / (sum w + nu): the posterior mode under a prior worth nu rows,
for targets of unit variance. log p(Y_t | Y_s) is what transfer is judged by (Cao et al., 2010): mu_t = K_ts S_ss^-1 y_s and
C_t = S_tt - K_ts S_ss^-1 K_st are what elimination leaves. All solves are in float64.

Equations (A13), (A14), (A15), (A16): docs/derivations/adapt.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import require
from driftway.linalg import Factor, cholesky

PRIOR = 2.0  # nu


@dataclass(frozen=True)
class Joint:
    """A Gaussian process given its labelled rows; made by [`joint`][driftway.adapt.joint.joint].

    Attributes:
        factor: of S.
        y: (n, k) targets.
        Z: L^-1 Y.
        A: S^-1 Y.
        target: m, how many of the last rows are of the target.
        noise: s, variance of one label.
        weight: w.
    """

    factor: Factor
    y: Float[Tensor, "n k"]
    Z: Float[Tensor, "n k"]
    A: Float[Tensor, "n k"]
    target: int
    noise: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]

    @property
    def B(self) -> Float[Tensor, "k k"]:
        """The covariance of the outputs, from all rows."""
        return self._covariance(torch.ones_like(self.weight))

    def log_likelihood(self, counts: Float[Tensor, " n"]) -> Float[Tensor, ""]:
        """sum_i counts_i log p(Y_i | Y_1 ... Y_i-1) with the best B for these counts; differentiable."""
        return counts @ self._log_densities(self._covariance(counts))

    def log_conditional(self) -> Float[Tensor, ""]:
        """Log p(Y_t | Y_s), with the B of all rows."""
        return self._log_densities(self.B)[len(self.y) - self.target :].sum()

    def _covariance(self, counts: Float[Tensor, " n"]) -> Float[Tensor, "k k"]:
        unit = torch.eye(self.y.shape[1], dtype=self.y.dtype, device=self.y.device)
        return ((self.Z.mT * counts) @ self.Z + PRIOR * unit) / (counts @ self.weight + PRIOR)

    def _log_densities(self, B: Float[Tensor, "k k"]) -> Float[Tensor, " n"]:
        """Log p(Y_i | Y_1 ... Y_i-1) of each row."""
        R, k, more = torch.linalg.cholesky(B), len(B), self.weight - 1
        fit = torch.linalg.solve_triangular(R, self.Z.mT, upper=False).square().sum(0)
        logs = (1 + more) * 2 * R.diagonal().log().sum() + k * (2 * self.factor.L.diagonal().log() + more * self.noise.log())
        return -(fit + logs + k * ((1 + more) * math.log(2 * math.pi) + self.weight.log())) / 2

    def mean(self, cross: Float[Tensor, "q n"]) -> Float[Tensor, "q k"]:
        """Mean of f at other rows, from K_*l."""
        return cross @ self.A

    def variance(self, cross: Float[Tensor, "q n"], diagonal: Float[Tensor, " q"]) -> Float[Tensor, " q"]:
        """Variance of f at other rows, in units of B."""
        return (diagonal - self.factor.whiten(cross.mT).square().sum(0)).clamp_min(0)

    def covariance(self, cross: Float[Tensor, "q n"], test: Float[Tensor, "q q"]) -> Float[Tensor, "q q"]:
        """Covariance of f at other rows, in units of B."""
        W = self.factor.whiten(cross.mT)
        return test - W.mT @ W

    def leave_one_out(self) -> tuple[Float[Tensor, "m k"], Float[Tensor, " m"]]:
        """For each labelled row of the target: y_i minus its mean given all other rows, and its variance in units of B."""
        first = len(self.y) - self.target
        unit = torch.eye(len(self.y), dtype=self.y.dtype, device=self.y.device)[:, first:]
        own = self.factor.whiten(unit).square().sum(0)  # (S^-1)_ii
        return self.A[first:] / own[:, None], 1 / own


def joint(K: Float[Tensor, "n n"], noise: Float[Tensor, " n"], y: Float[Tensor, "n k"], *, target: int,
          weight: Float[Tensor, " n"] | None = None) -> Joint:  # fmt: skip
    """Condition on the labelled rows. Gradients pass.

    Args:
        K: prior covariance of f.
        noise: variance s of one label.
        y: targets, of mean near 0.
        target: m.
        weight: w; ones if None.

    Raises:
        InputError: if target is more than the rows, or K is not positive semidefinite.
    """
    require(0 <= target <= len(y), "target", expected=f"a number from 0 to {len(y)}, the rows", got=target, cure="count the target's rows")
    weight = torch.ones_like(noise) if weight is None else weight
    factor = cholesky(K + torch.diag(noise / weight))
    Z = factor.whiten(y)
    return Joint(factor, y, Z, torch.linalg.solve_triangular(factor.L.mT, Z, upper=True), target, noise, weight)
