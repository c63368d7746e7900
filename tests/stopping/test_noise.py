"""Sigma and R by maximum likelihood: recovery, invariance, the density itself."""

import math

import pytest
import torch

from driftway.checks import InputError
from driftway.linalg import Spectrum, eigendecompose
from driftway.stopping import Flow, centred_one_hot, fit_noise
from driftway.stopping.noise import lowest

DOUBLE = torch.float64


def motion(n):
    x = torch.arange(1, n + 1, dtype=DOUBLE) / n
    return torch.minimum(x[:, None], x)


def draws(K, a, sigma, m, seed=0):
    own = torch.Generator().manual_seed(seed)
    n = len(K)
    L = torch.linalg.cholesky(a**2 * K + sigma**2 * torch.eye(n, dtype=DOUBLE))
    return L @ torch.randn(n, m, dtype=DOUBLE, generator=own)


def test_sigma_and_amplitude_are_recovered():
    K = motion(300)
    spectrum, y = eigendecompose(K), draws(K, 2.0, 0.3, 40)
    found = [fit_noise(Flow(spectrum, y[:, i])) for i in range(40)]
    for name, known in (("sigma", 0.3), ("amplitude", 2.0)):
        values = torch.tensor([getattr(noise, name) for noise in found])
        assert abs(float(values.mean()) - known) < 3.5 * float(values.std()) / 40**0.5 + 0.01 * known
    together = fit_noise(Flow(spectrum, y))
    assert together.sigma == pytest.approx(0.3, rel=0.03)
    assert together.amplitude == pytest.approx(2.0, rel=0.05)


def test_the_fit_is_a_maximum_of_the_density():
    K = motion(60)
    y = draws(K, 1.0, 0.4, 1, seed=3)[:, 0]
    noise = fit_noise(Flow(eigendecompose(K), y))

    def log_density(a, sigma):
        covariance = a**2 * K + sigma**2 * torch.eye(60, dtype=DOUBLE)
        return float(torch.distributions.MultivariateNormal(torch.zeros(60, dtype=DOUBLE), covariance).log_prob(y))

    best = log_density(noise.amplitude, noise.sigma)
    for c in (0.97, 1.03):
        assert log_density(c * noise.amplitude, noise.sigma) < best
        assert log_density(noise.amplitude, c * noise.sigma) < best
    alone = float(y.square().mean().sqrt())
    assert best - log_density(0.0, alone) == pytest.approx(noise.gain, rel=1e-6)


def test_the_radius_is_the_norm_of_the_posterior_mean():
    K = motion(60)
    y = draws(K, 1.0, 0.4, 1, seed=3)[:, 0]
    noise = fit_noise(Flow(eigendecompose(K), y))
    beta = torch.linalg.solve(K + (noise.sigma / noise.amplitude) ** 2 * torch.eye(60, dtype=DOUBLE), y)
    assert noise.radius == pytest.approx(float(beta @ K @ beta) ** 0.5, rel=1e-6)


def test_a_known_sigma_is_kept_and_the_joint_fit_agrees_with_it():
    K = motion(100)
    flow = Flow(eigendecompose(K), draws(K, 1.0, 0.2, 1, seed=5)[:, 0])
    joint = fit_noise(flow)
    given = fit_noise(flow, sigma=joint.sigma)
    assert given.sigma == pytest.approx(joint.sigma, rel=1e-12)
    assert given.amplitude == pytest.approx(joint.amplitude, rel=1e-3)
    assert "sigma was given" in given.found


def test_a_larger_residual_and_a_larger_kernel_change_only_the_units():
    K = motion(80)
    y = draws(K, 1.0, 0.2, 1, seed=6)[:, 0]
    one, other = fit_noise(Flow(eigendecompose(K), y)), fit_noise(Flow(eigendecompose(25 * K), 10 * y))
    assert other.sigma == pytest.approx(10 * one.sigma, rel=1e-4)
    assert other.amplitude == pytest.approx(2 * one.amplitude, rel=1e-4)
    assert other.radius == pytest.approx(2 * one.radius, rel=1e-4)
    assert other.gain == pytest.approx(one.gain, rel=1e-6)


def test_noise_alone_rarely_looks_like_signal():
    own, spectrum = torch.Generator().manual_seed(1), eigendecompose(motion(100))
    found = [fit_noise(Flow(spectrum, torch.randn(100, dtype=DOUBLE, generator=own))) for _ in range(100)]
    assert sum(noise.signal for noise in found) <= 12  # 5 % expected
    assert all(abs(noise.sigma - 1) < 0.3 for noise in found)


def test_mirror_columns_count_once():
    labels = torch.arange(50) // 25
    spectrum, hot = eigendecompose(motion(50)), centred_one_hot(labels).double()
    two, one = fit_noise(Flow(spectrum, hot)), fit_noise(Flow(spectrum, hot[:, 1]))
    assert two.gain == pytest.approx(one.gain)
    assert two.sigma == pytest.approx(one.sigma)


def test_independent_columns_add_their_evidence():
    """A second column of the same energies in all directions, with other signs."""
    spectrum = eigendecompose(motion(50))
    y = draws(motion(50), 1.0, 0.3, 1, seed=7)
    other = spectrum.vectors @ (spectrum.vectors.T @ y * (-1.0) ** torch.arange(50)[:, None])
    one, two = fit_noise(Flow(spectrum, y)), fit_noise(Flow(spectrum, torch.cat([y, other], 1)))
    assert two.gain == pytest.approx(2 * one.gain)
    assert (two.sigma, two.radius) == (pytest.approx(one.sigma), pytest.approx(one.radius))


def test_a_constant_kernel_has_the_mean_in_closed_form():
    """K/n = diag(1, 0, 0, ...): z_1 is signal and noise, the others are noise alone."""
    n = 50
    y = torch.ones(n, dtype=DOUBLE) / 5
    y[0] = 3 * n**0.5
    noise = fit_noise(Flow(Spectrum(torch.tensor([1.0]), n, torch.eye(n, 1, dtype=DOUBLE)), y))
    assert noise.sigma == pytest.approx(0.2, rel=1e-4)
    assert noise.amplitude == pytest.approx(math.sqrt(9 - 0.04 / n), rel=1e-4)


def test_the_lowest_point_is_found_between_the_grid():
    grid = torch.logspace(-3, 3, 30, dtype=DOUBLE)
    at, value = lowest(grid, lambda x: (x.log() - 0.4321).square() + 2)
    assert at == pytest.approx(math.exp(0.4321), rel=6 / 29 * math.log(10) / 16**4)  # one spacing of the last grid
    assert value == pytest.approx(2)


@pytest.mark.parametrize(("sigma", "scale", "text"), [(None, 0.0, "residual: expected numbers that are not all zero"),
                                                      (-1.0, 1.0, "sigma: expected a finite number > 0")])  # fmt: skip
def test_bad_input_is_named(sigma, scale, text):
    with pytest.raises(InputError) as error:
        fit_noise(Flow(eigendecompose(motion(20)), scale * torch.ones(20, dtype=DOUBLE)), sigma=sigma)
    assert text in str(error.value)
