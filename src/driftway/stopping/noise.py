"""How much of a residual is noise, and how large is what it hides: sigma and R by maximum likelihood.

r ~ N(0, a^2 K + sigma^2 I), in the eigenbasis of K/n with lam = sigma^2 / (n a^2) and z = U^T r / sqrt(n):

    z_j ~ N(0, a^2 (mu_j + lam))
    a^2(lam)             = (1/n) sum_j z_j^2 / (mu_j + lam)                                   the best a for this lam
    -2 log p(lam) / m    = n log a^2(lam) + sum_j log(mu_j + lam) + constant                  for each of m outputs

(Rasmussen and Williams, 2006, eq. 5.8.) Draws of this law lie outside the space of K, so that a is no bound on a norm. The radius R
is the norm of the posterior mean, R^2 = sum_j (mu_j z_j / (mu_j + lam))^2 / mu_j, with coordinates mu_j z_j / (mu_j + lam).

Equations (F11), (F12): docs/derivations/finetune.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import real, require
from driftway.stopping.flow import Flow

CHANCE = 1.35  # a gain in log likelihood that pure noise reaches in 5 % of all cases: half of the 90 % point of chi-squared, 1 d.f.


@dataclass(frozen=True)
class Noise:
    """The parts of a residual.

    Attributes:
        sigma: standard deviation of the noise.
        amplitude: a; 0 if the residual looks like noise alone.
        radius: R.
        gain: log likelihood above that of noise alone.
        found: how, in plain words.
    """

    sigma: float
    amplitude: float
    radius: float
    gain: float
    found: str

    @property
    def signal(self) -> bool:
        """Whether the gain is more than chance."""
        return self.gain > CHANCE

    def lam(self, n: int) -> float:
        """Sigma^2 / (n a^2)."""
        return self.sigma**2 / (n * self.amplitude**2) if self.amplitude else math.inf


@torch.no_grad()
def fit_noise(flow: Flow, *, sigma: float | int | None = None) -> Noise:
    """Sigma, a and R of a residual.

    Args:
        flow: the residual in the eigenbasis.
        sigma: the noise, where it is known; then only a is fitted.

    Raises:
        InputError: if sigma is not positive, or the residual is zero.
    """
    n, mu, size, energy = flow.spectrum.size, flow.mu, flow.size, flow.energy
    total, top = float(energy.sum()), float(mu.max())
    require(total > 0, "residual", expected="numbers that are not all zero", got="zeros", cure="check the labels: are they constant?")
    known = None if sigma is None else real("sigma", sigma, least=0, strict=True) ** 2
    require(known is None or known > 0, "sigma", expected="a number whose square is > 0", got=sigma, cure="leave sigma out")
    grid = torch.logspace(-10, 6, 321, dtype=mu.dtype, device=mu.device) * top

    def minus(lam: Tensor) -> Tensor:
        """-2 log p for each output; lam is a column of penalties."""
        rate = mu + lam[:, None]
        fit, logs = (energy / rate).sum(1), rate.log() @ size
        if known is None:
            return n * (fit / n).log() + logs + n
        return n * (known / (n * lam)).log() + logs + fit * n * lam / known

    lam, best = lowest(grid, minus)
    variance = total if known is None else known
    alone = n * math.log(variance / n) + n * total / variance
    gain = max(alone - best, 0.0) / 2 * _outputs(flow)
    rate = mu + lam
    a2 = known / (n * lam) if known is not None else float((energy / rate).sum()) / n
    if gain < 1e-6 or lam >= float(grid[-2]):
        return Noise(math.sqrt(variance), 0.0, 0.0, gain, "the likelihood prefers noise alone")
    radius = math.sqrt(float((mu * energy / rate.square()).sum()))
    how = "sigma and R by maximum likelihood in the eigenbasis" if known is None else "sigma was given, R by maximum likelihood"
    clear = " (no noise was found: sigma is a lower bound of what can be told)" if lam <= float(grid[1]) else ""
    return Noise(math.sqrt(n * a2 * lam), math.sqrt(a2), radius, gain, f"{how}; R is the norm of the posterior mean{clear}")


def _outputs(flow: Flow) -> int:
    """How many outputs are linearly independent: centred one-hot columns sum to zero."""
    r = flow.r.double().reshape(flow.spectrum.size, -1)
    return max(int(torch.linalg.matrix_rank(r.T @ r, hermitian=True, rtol=1e-10)), 1)


def lowest(grid: Float[Tensor, " t"], curve: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Where a curve is lowest, and its value there: over a grid of positive numbers, then between the neighbours of the best."""
    at = best = math.inf
    for _ in range(5):
        values = curve(grid).nan_to_num(math.inf)
        i = int(values.argmin())
        best, at = float(values[i]), float(grid[i])
        low, high = grid[max(i - 1, 0)].log(), grid[min(i + 1, len(grid) - 1)].log()
        grid = torch.linspace(float(low), float(high), 33, dtype=grid.dtype, device=grid.device).exp()
    return at, best
