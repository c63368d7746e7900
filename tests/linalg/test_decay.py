"""Verdicts and intervals on spectra whose law is known, exact ones and those of samples.

The seeds are fixed; the numbers of draws that an interval may miss are those of a binomial law with probability 0.95.
"""

import math

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.linalg import Decay, Spectrum, eigendecompose, fit_decay, gram_operator, lanczos

DOUBLE = torch.float64


def normal(n: int, p: int, seed: int) -> Tensor:
    return torch.randn(n, p, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def uniform(n: int, seed: int) -> Tensor:
    return torch.rand(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def index(n: int) -> Tensor:
    return torch.arange(1, n + 1, dtype=DOUBLE)


def motion(n: int, seed: int) -> Tensor:
    """Brownian motion, mu_j = ((j - 1/2) pi)^-2."""
    x = uniform(n, seed)
    return torch.minimum(x[:, None], x)


def bridge(n: int, seed: int) -> Tensor:
    """Brownian bridge, mu_j = (j pi)^-2."""
    x = uniform(n, seed)
    return torch.minimum(x[:, None], x) - x[:, None] * x


def circle(n: int, seed: int, alpha: float) -> Tensor:
    """Matérn on the circle: Fourier coefficients (1 + k^2)^(-alpha/2), each but the first one twice."""
    k, x = torch.arange(500, dtype=DOUBLE), 2 * math.pi * uniform(n, seed)[:, None]
    root = (1 + k.square()).pow(-alpha / 4)
    phi = torch.cat([root * (k * x).cos(), root * (k * x).sin()], 1)
    return phi @ phi.T


def features(n: int, seed: int, mu: Tensor) -> Tensor:
    """Gaussian features with the eigenvalues mu."""
    Z = normal(n, len(mu), seed) * mu.sqrt()
    return Z @ Z.T


def gaussian(x: Tensor, width: float) -> Tensor:
    return torch.exp(-(x[:, None] - x).square() / (2 * width**2))


def of_values(mu: Tensor) -> Decay:
    return fit_decay(Spectrum(values=mu, size=len(mu)))


def covers(interval: tuple[float, float], known: float) -> bool:
    return interval[0] <= known <= interval[1]


@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.8, 2.0, 4.0])
def test_an_exact_power_law_is_found(alpha: float, shift: float) -> None:
    found = of_values(7 * (index(300) + shift).pow(-alpha))
    assert found.verdict == "power"
    assert found.power is not None
    assert found.exponent == pytest.approx(alpha, rel=1e-3)
    assert found.power.shift == pytest.approx(shift, abs=5e-3)
    assert found.power.amplitude == pytest.approx(7, rel=5e-3)
    assert (found.power.first, found.power.last) == (1, 50)  # n/6
    assert covers(found.exponent_interval, found.exponent)


def test_an_exact_exponential_law_is_found_down_to_rounding() -> None:
    found = of_values(3 * torch.exp(-0.6 * index(400)))
    assert found.verdict == "exponential"
    assert found.exponential is not None
    assert found.exponential.slope == pytest.approx(0.6, rel=1e-9)
    assert found.exponential.amplitude == pytest.approx(3, rel=1e-8)
    assert found.exponential.last < math.log(1e15) / 0.6
    assert any("rounding or noise" in remark for remark in found.remarks)


@pytest.mark.parametrize(("kernel", "alpha", "misses", "half"), [
    (motion, 2.0, 3, 0.5), (bridge, 2.0, 3, 0.5), (lambda n, seed: circle(n, seed, 2.0), 2.0, 3, 0.8),
    (lambda n, seed: circle(n, seed, 4.0), 4.0, 3, 1.2), (lambda n, seed: features(n, seed, index(1500).pow(-1.5)), 1.5, 3, 0.6),
], ids=["motion", "bridge", "circle 2", "circle 4", "features 1.5"])  # fmt: skip
def test_intervals_of_sampled_power_laws_cover_the_exponent(kernel, alpha, misses, half) -> None:
    found = [fit_decay(eigendecompose(kernel(200, seed))) for seed in range(20)]
    assert sum(decay.verdict == "power" for decay in found) >= 18
    assert sum(covers(decay.exponent_interval, alpha) for decay in found) >= 20 - misses
    assert torch.tensor([decay.exponent for decay in found]).mean() == pytest.approx(alpha, rel=0.1)
    widths = torch.tensor([decay.exponent_interval for decay in found]).diff(dim=1) / 2
    assert widths.median() < half  # covering is no feat of endless intervals


def test_the_tail_of_a_sample_would_mislead() -> None:
    S = eigendecompose(motion(200, 0))
    x, y = index(200).log(), S.values.log()
    naive = -float((x - x.mean()) @ y / (x - x.mean()).square().sum())
    assert abs(naive - 2) > 0.3
    assert abs(fit_decay(S).exponent - 2) < 0.15


@pytest.mark.parametrize("kernel", [
    lambda n, seed: gaussian(uniform(n, seed), 0.1), lambda n, seed: gaussian(uniform(n, seed), 1.0),
    lambda n, seed: gaussian(uniform(n, seed), 0.1).float(), lambda n, seed: gaussian(normal(n, 1, seed)[:, 0], 0.5),
    lambda n, seed: features(n, seed, torch.exp(-0.3 * index(200))),
], ids=["narrow", "wide", "float32", "on a normal law", "features"])  # fmt: skip
def test_smooth_kernels_decay_exponentially(kernel) -> None:
    verdicts = [fit_decay(eigendecompose(kernel(n, seed))).verdict for n in (100, 250) for seed in range(5)]
    assert verdicts == 10 * ["exponential"]


def test_the_rate_of_a_gaussian_kernel_under_a_normal_law_is_covered() -> None:
    """mu_j ~ B^j, B = b / (a + b + sqrt(a^2 + 2ab)), a = 1/4, b = 1/(2 width^2) (Zhu et al., 1998)."""
    rate = -math.log(0.5 / (0.75 + math.sqrt(0.0625 + 0.25)))
    for seed in range(5):
        found = fit_decay(eigendecompose(gaussian(normal(300, 1, seed)[:, 0], 1.0)))
        assert found.exponential is not None
        assert covers(found.exponential.interval, rate)


def test_a_decay_that_gets_faster_is_exponential_and_said_to_be_faster() -> None:
    found = of_values(torch.exp(-torch.lgamma(index(200) + 1)))
    assert found.verdict == "exponential"
    assert "faster than exponential" in found.remarks[1]


@pytest.mark.parametrize("noise", ["rounding", "float32", "flat", "features"])
@pytest.mark.parametrize("m", [1, 6, 25])
def test_finite_rank_is_found_above_rounding_and_noise(m: int, noise: str) -> None:
    for seed in range(3):
        n, K = 150, features(150, seed, torch.full((m,), 1 / m, dtype=DOUBLE))
        if noise == "flat":
            K = K + 1e-3 * torch.eye(n, dtype=DOUBLE)
        elif noise == "features":
            K = K + features(n, seed + 100, torch.full((2 * n,), 1e-3 / n, dtype=DOUBLE))
        found = fit_decay(eigendecompose(K.float() if noise == "float32" else K))
        assert (found.verdict, found.rank) == ("finite rank", m)
        assert found.drop > math.log(5)


def test_finite_rank_is_seen_from_the_largest_values() -> None:
    J = normal(200, 7, 0)
    S = lanczos(gram_operator(J), 15, generator=torch.Generator().manual_seed(0))
    assert (fit_decay(S).verdict, fit_decay(S).rank) == ("finite rank", 7)


def test_the_largest_values_are_enough_for_a_law() -> None:
    S = eigendecompose(motion(200, 1))
    assert fit_decay(S.largest(60)).power == fit_decay(S).power


@pytest.mark.parametrize("alpha", [0.7, 0.85, 0.98])
def test_a_dominant_first_value_is_left_out_and_the_regime_is_named(alpha: float) -> None:
    mu = index(400).pow(-alpha) * torch.exp(0.05 * normal(400, 1, 0)[:, 0])
    mu[0] = mu[1:].sum()  # half of the trace
    found = of_values(mu)
    assert found.verdict == "power"
    assert found.power is not None
    assert found.power.first == 2
    assert covers(found.exponent_interval, alpha)
    assert any("outside the trace-class regime of the theorem" in remark for remark in found.remarks)
    assert any("the eigenvalues before number 2 do not belong to the law" in remark for remark in found.remarks)


def test_a_steep_power_law_is_within_the_regime() -> None:
    assert not any("trace-class" in remark for remark in of_values(index(300).pow(-2)).remarks)


def test_a_flat_tail_is_subtracted() -> None:
    noise = 0.01 * torch.eye(300, dtype=DOUBLE)
    found = [fit_decay(eigendecompose(motion(300, seed) + noise)) for seed in range(8)]
    assert all(decay.verdict == "power" for decay in found)
    assert all(covers(decay.exponent_interval, 2) for decay in found)
    assert all("a flat tail" in " ".join(decay.remarks) for decay in found)


J = index(400)


@pytest.mark.parametrize(("mu", "reason"), [
    (torch.where(J < 25, J.pow(-3.0), 25**-3.0 * (J / 25).pow(-0.7)), "eigenvalue"),
    (torch.where(J < 20, J.pow(-0.5), 20**-0.5 * (J / 20).pow(-3.0)), "eigenvalue"),
    (torch.where(J < 25, 1.0, 1 / 30) / J, "law"),
    (torch.exp(-3 * J.sqrt()), "too close to tell them apart"),
    (torch.exp(-((J / 60) ** 0.25) * 12) * (1.5 + torch.sin(3 * J.log())).pow(2), "law"),
    (J[:4].pow(-2), "fewer than 6 eigenvalues"), (torch.ones(400), "the eigenvalues fall by a factor 1"),
], ids=["-3 then -0.7", "-0.5 then -3", "step", "stretched", "waves", "few", "flat"])  # fmt: skip
def test_no_law_is_no_law(mu: Tensor, reason: str) -> None:
    for seed in range(3):
        found = of_values(mu * torch.exp(0.02 * normal(len(mu), 1, seed)[:, 0]))
        assert found.verdict == "none", found
        assert reason in found.remarks[0]


def test_units_do_not_matter() -> None:
    mu = eigendecompose(motion(150, 3)).values
    one, other = of_values(mu), of_values(1e-7 * mu)
    assert one.verdict == other.verdict
    assert one.exponent == pytest.approx(other.exponent, rel=1e-9)
    assert one.exponent_interval == pytest.approx(other.exponent_interval, rel=1e-6)


def test_more_confidence_is_a_wider_interval() -> None:
    S = eigendecompose(motion(150, 3))
    widths = [math.dist(*[[end] for end in fit_decay(S, confidence=c).exponent_interval]) for c in (0.5, 0.8, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0]


@pytest.mark.parametrize(("bad", "text"), [
    (lambda: fit_decay(Spectrum(torch.ones(9), 9), confidence=95), "confidence: expected a number below 1, got 95.0; pass e.g. 0.95"),
    (lambda: fit_decay(Spectrum(torch.ones(9), 9), confidence=0.0), "confidence: expected a finite number > 0"),
    (lambda: fit_decay(Spectrum(torch.zeros(9), 9)), "spectrum: expected a positive eigenvalue, got zeros only"),
])  # fmt: skip
def test_bad_input_is_named(bad, text) -> None:
    with pytest.raises(InputError, match=text):
        bad()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 12])
def test_small_spectra_have_a_verdict(n: int) -> None:
    for mu in (torch.ones(n), index(n).pow(-2), torch.exp(-5 * index(n)), torch.eye(n)[0]):
        found = of_values(mu)
        assert found.verdict in ("finite rank", "exponential", "power", "none")
        assert math.isnan(found.exponent) == (found.power is None)
