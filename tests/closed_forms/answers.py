"""Problems that carry their answers: laws to draw from, and the optimal map, cost, value and prices in closed form.

All numbers are float64; t is 0 at the source and 1 at the target. Values are those of the Gaussian kernel (with its
normaliser), which for sigma = 0 are the plain ones.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import MultivariateNormal

DOUBLE = torch.float64


def spd_power(S: Tensor, power: float) -> Tensor:
    """A power of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(S)
    return (vectors * values**power) @ vectors.T


@dataclass(frozen=True)
class GaussianPair:
    """N(m0, S0) to N(m1, S1) with noise sigma: the Bures map for sigma = 0, the Gaussian Schrödinger bridge above.

    With eps = sigma^2 and X = (S0^{1/2} S1 S0^{1/2} + eps^2/4)^{1/2} - eps/2 the ends are jointly Gaussian with
    Cov(x_0, x_1) = S0^{1/2} X S0^{-1/2}; with B = S0^{1/2} X^{-1} S0^{1/2} the terminal value is the quadratic

        W_1(y) = y.(B - I)y/2 + (m0 - B m1).y = g(y) - eps log nu_tgt(y)

    and B^{-1} is the Jacobian of x -> E[x_1|x_0 = x]. Sources: Peyré and Cuturi (2019), remark 2.31; Mallasto, Gerolin
    and Minh (2021), arXiv 2006.03416; Bunne et al. (2023), arXiv 2202.05722.
    """

    m0: Tensor
    S0: Tensor
    m1: Tensor
    S1: Tensor
    sigma: float = 0.0

    @property
    def eps(self) -> float:
        return self.sigma**2

    @property
    def _root(self) -> tuple[Tensor, Tensor, Tensor]:
        """S0^{1/2}, S0^{-1/2} and X."""
        half, back = spd_power(self.S0, 0.5), spd_power(self.S0, -0.5)
        eye = torch.eye(len(self.m0), dtype=DOUBLE)
        return half, back, spd_power(half @ self.S1 @ half + self.eps**2 / 4 * eye, 0.5) - self.eps / 2 * eye

    def source(self, n: int, *, generator: torch.Generator) -> Tensor:
        return self.m0 + torch.randn(n, len(self.m0), dtype=DOUBLE, generator=generator) @ spd_power(self.S0, 0.5)

    def target(self, n: int, *, generator: torch.Generator) -> Tensor:
        return self.m1 + torch.randn(n, len(self.m1), dtype=DOUBLE, generator=generator) @ spd_power(self.S1, 0.5)

    @property
    def w2_squared(self) -> float:
        """W2^2 of the two laws, whatever sigma is."""
        half = spd_power(self.S0, 0.5)
        spread = self.S0 + self.S1 - 2 * spd_power(half @ self.S1 @ half, 0.5)
        return float((self.m0 - self.m1).square().sum() + spread.trace())

    @property
    def cross(self) -> Tensor:
        """Cov(x_0, x_1) under the optimal coupling."""
        half, back, X = self._root
        return half @ X @ back

    def marginal(self, t: float) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x_t."""
        noise = t * (1 - t) * (self.cross + self.cross.T + self.eps * torch.eye(len(self.m0), dtype=DOUBLE))
        return (1 - t) * self.m0 + t * self.m1, (1 - t) ** 2 * self.S0 + t**2 * self.S1 + noise

    def end_mean(self, x: Tensor, t: float) -> Tensor:
        """E[x_1 | x_t = x]: the optimal map when sigma = 0 and t = 0."""
        mean, cov = self.marginal(t)
        gain = torch.linalg.solve(cov, (1 - t) * self.cross + t * self.S1)
        return self.m1 + (x - mean) @ gain

    def gradient(self, x: Tensor, t: float) -> Tensor:
        """grad W_t(x); its negative is the optimal action."""
        return (x - self.end_mean(x, t)) / (1 - t)

    def value(self, x: Tensor, t: float) -> Tensor:
        """W_t(x), for t up to 1."""
        half, _, X = self._root
        eye = torch.eye(len(self.m0), dtype=DOUBLE)
        B = half @ torch.linalg.solve(X, half)
        linear = self.m0 - B @ self.m1
        slope, K = x @ (B - eye) + linear, t * eye + (1 - t) * B
        smooth = (slope * torch.linalg.solve(K, slope.T).T).sum(1) * (1 - t) / 2
        return ((x @ (B - eye)) * x).sum(1) / 2 + x @ linear - smooth + self.eps / 2 * torch.logdet(K)

    def g(self, y: Tensor) -> Tensor:
        """The price of ending at y."""
        return self.value(y, 1.0) + self.eps * self.log_target(y)

    def log_source(self, x: Tensor) -> Tensor:
        return MultivariateNormal(self.m0, self.S0).log_prob(x)

    def log_target(self, y: Tensor) -> Tensor:
        return MultivariateNormal(self.m1, self.S1).log_prob(y)


def gaussian_pair(d: int, *, sigma: float = 0.0, seed: int = 0) -> GaussianPair:
    """A pair of general means and covariances whose axes differ."""
    generator = torch.Generator().manual_seed(seed)
    m0, m1 = torch.randn(2, d, dtype=DOUBLE, generator=generator)
    R0, R1 = torch.randn(2, d, d, dtype=DOUBLE, generator=generator) / math.sqrt(d)
    eye = torch.eye(d, dtype=DOUBLE)
    return GaussianPair(m0, R0 @ R0.T + 0.3 * eye, m1, R1 @ R1.T + 0.2 * eye, sigma)


def symmetric_bridge(d: int, *, sigma: float = 1.0) -> GaussianPair:
    """N(-0.1, I) to N(0.1, I), the usual benchmark of Schrödinger bridges."""
    eye, mean = torch.eye(d, dtype=DOUBLE), torch.full((d,), 0.1, dtype=DOUBLE)
    return GaussianPair(-mean, eye, mean, eye, sigma)


@dataclass(frozen=True)
class LinePair:
    """Two laws on the line, scipy.stats distributions: the optimal map is quantile to quantile."""

    law0: stats.distributions.rv_frozen
    law1: stats.distributions.rv_frozen

    def source(self, n: int) -> Tensor:
        """The n mid-quantiles, as a column."""
        return torch.from_numpy(self.law0.ppf((np.arange(n) + 0.5) / n))[:, None]

    def target(self, n: int) -> Tensor:
        return torch.from_numpy(self.law1.ppf((np.arange(n) + 0.5) / n))[:, None]

    def map(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self.law1.ppf(self.law0.cdf(x.numpy()))))

    @property
    def w2_squared(self) -> float:
        return integrate.quad(lambda u: (self.law0.ppf(u) - self.law1.ppf(u)) ** 2, 0, 1, limit=200)[0]


@dataclass(frozen=True)
class UniformToExponential:
    """U(0, 1) to Exp(1) on the line, where everything is elementary: T(u) = -log(1-u) is the gradient of phi.

    phi(u) = (1-u) log(1-u) + u and its conjugate y - 1 + exp(-y) give V_0 = u^2/2 - phi and g = phi* - y^2/2.
    """

    w2_squared: float = 5 / 6

    def source(self, n: int) -> Tensor:
        """The n mid-quantiles, as a column."""
        return (torch.arange(n, dtype=DOUBLE)[:, None] + 0.5) / n

    def target(self, n: int) -> Tensor:
        return self.map(self.source(n))

    def map(self, x: Tensor) -> Tensor:
        return -torch.log1p(-x)

    def value(self, x: Tensor) -> Tensor:
        """V_0."""
        return (x**2 / 2 - (1 - x) * torch.log1p(-x) - x)[:, 0]

    def g(self, y: Tensor) -> Tensor:
        return (y - 1 + torch.exp(-y) - y**2 / 2)[:, 0]


@dataclass(frozen=True)
class ConvexMap:
    """x and y = grad phi(x) for phi(x) = stretch |x|^2/2 + log sum_k exp(r_k.x + b_k), convex.

    Whatever the rows x are, pairing each with its own y is optimal, with V_0 = |x|^2/2 - phi and g = phi* - |y|^2/2.
    """

    r: Tensor
    b: Tensor
    stretch: float = 0.5

    def phi(self, x: Tensor) -> Tensor:
        return self.stretch * x.square().sum(1) / 2 + torch.logsumexp(x @ self.r.T + self.b, 1)

    def map(self, x: Tensor) -> Tensor:
        return self.stretch * x + torch.softmax(x @ self.r.T + self.b, 1) @ self.r

    def value(self, x: Tensor) -> Tensor:
        """V_0."""
        return x.square().sum(1) / 2 - self.phi(x)

    def g_at_image(self, x: Tensor) -> Tensor:
        """The price of ending at y = grad phi(x)."""
        y = self.map(x)
        return (x * y).sum(1) - self.phi(x) - y.square().sum(1) / 2


def convex_map(d: int, *, pieces: int = 5, seed: int = 0) -> ConvexMap:
    """A nonlinear optimal map in d dimensions."""
    generator = torch.Generator().manual_seed(seed)
    r = 2 * torch.randn(pieces, d, dtype=DOUBLE, generator=generator)
    return ConvexMap(r, torch.randn(pieces, dtype=DOUBLE, generator=generator))
