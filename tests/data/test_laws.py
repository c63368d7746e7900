"""The toy laws against moments derived by hand, scikit-learn's samplers, and what stratified points must do."""

import math

import numpy as np
import ot
import pytest
import scipy.stats
import torch
from sklearn.datasets import make_moons, make_s_curve

from driftway.checks import InputError
from driftway.data import PAIRS, digits, eight_gaussians, moons, s_curve, standard_normal

LAWS = [eight_gaussians, moons, s_curve, standard_normal(2), standard_normal(5)]
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: f"{law.name}-{law.dim}")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def moments(law):
    """Mean and covariance."""
    if law.name == "8gaussians":  # eight points on a circle have second moment radius^2/2 on each axis
        return np.zeros(2), (25 / 2 + 0.1) * np.eye(2)
    if law.name == "moons":  # c = e + b s: e uniform on the circle, b = [inner], s = (1, 1/2), E[b e] = (0, -1/pi)
        s, be = np.array([1, 1 / 2]), np.array([0, -1 / math.pi])
        cov = np.eye(2) / 2 + np.outer(s, s) / 4 + np.outer(be, s) + np.outer(s, be) + 0.2**2 * np.eye(2)
        return 3 * s / 2 - 1, 9 * cov
    if law.name == "scurve":  # integrals over |a| < 3 pi/2: E cos a = -2/(3 pi), E |sin a| sign(a) (cos a - 1) = -1/(3 pi)
        cov = np.array([[1 / 2, -1 / (3 * math.pi)], [-1 / (3 * math.pi), 3 / 2 + 4 / (3 * math.pi)]]) + 0.05**2 * np.eye(2)
        return np.zeros(2), 2.25 * cov
    return np.zeros(law.dim), np.eye(law.dim)


def energy_p_value(x, y, shuffles=199, seed=0):
    """Permutation test of one law, by energy distance. The statistic is -s.D.s with s = 1/n on x, -1/m on y."""
    z = torch.tensor(np.concatenate([x, y]), dtype=torch.float32)
    s = torch.cat([torch.full((len(x),), 1 / len(x)), torch.full((len(y),), -1 / len(y))])
    generator = rng(seed)
    orders = [torch.randperm(len(z), generator=generator) for _ in range(shuffles)]
    signs = s[torch.stack([torch.arange(len(z)), *orders])]
    statistic = -(signs @ torch.cdist(z, z) * signs).sum(1)
    return float((statistic >= statistic[0]).float().mean())


def w2(x, y):
    return math.sqrt(ot.emd2([], [], ot.dist(x.double().numpy(), y.double().numpy())))


def test_the_test_of_one_law_is_calibrated():
    p = [energy_p_value(*standard_normal(2).sample(256, generator=rng(i)).numpy().reshape(2, 128, 2)) for i in range(60)]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


@every_law
def test_moments_are_the_ones_derived_by_hand(law):
    mean, cov = moments(law)
    x = law.sample(200_000, generator=rng(1)).double().numpy()
    error = 5 * np.sqrt(np.diag(cov) / len(x))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), error)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.012 * cov.max())
    x = law.quasi(2**14, generator=rng(2)).double().numpy()
    np.testing.assert_allclose(x.mean(0), mean, atol=0.002 * math.sqrt(cov.max()))
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.006 * cov.max())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("law", "theirs"), [
    (moons, lambda n, seed: 3 * make_moons(n, noise=0.2, random_state=seed)[0] - 1),
    (s_curve, lambda n, seed: 1.5 * make_s_curve(n, noise=0.05, random_state=seed)[0][:, [0, 2]]),
], ids=["moons", "scurve"])  # fmt: skip
def test_laws_are_scikit_learns(law, theirs, seed):
    x, y = law.sample(1000, generator=rng(seed)).numpy(), theirs(1000, seed)
    assert energy_p_value(x, y) > 0.01
    assert energy_p_value(x + 0.3, y) <= 0.01, "the test must see a small shift"
    np.testing.assert_allclose(y.mean(0), moments(law)[0], atol=0.2)


def test_eight_gaussians_are_tight_modes_on_a_circle():
    x = eight_gaussians.sample(40_000, generator=rng())
    angle = torch.arange(8) * math.pi / 4
    centres = 5 * torch.stack([angle.cos(), angle.sin()], 1)
    mode = torch.cdist(x, centres).argmin(1)
    share = mode.bincount(minlength=8) / len(x)
    assert (share - 1 / 8).abs().max() < 5 * math.sqrt(1 / 8 / len(x))
    spread = x - centres[mode]
    assert scipy.stats.kstest(spread[:, 0] / math.sqrt(0.1), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(spread[:, 1] / math.sqrt(0.1), "norm").pvalue > 1e-3


def test_normal_has_normal_tails():
    x = standard_normal(1).sample(1_000_000, generator=rng())[:, 0]
    assert scipy.stats.kstest(x[:50_000], "norm").pvalue > 1e-3
    assert 4.2 < float(x.max()) < 6.5
    assert -6.5 < float(x.min()) < -4.2


def test_quasi_modes_have_equal_counts():
    x = eight_gaussians.quasi(512, generator=rng(3))
    octant = torch.remainder(torch.round(torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)), 8).long()
    assert octant.bincount(minlength=8).tolist() == [64] * 8


@every_law
def test_quasi_follows_the_same_law(law):
    x, y = law.quasi(1024, generator=rng(4)).numpy(), law.sample(1024, generator=rng(5)).numpy()
    assert energy_p_value(x, y) > 0.01


@every_law
def test_quasi_misses_the_law_by_less(law):
    draws = range(4)
    random = np.mean([w2(law.sample(512, generator=rng(i)), law.sample(512, generator=rng(i + 9))) for i in draws])
    stratified = np.mean([w2(law.quasi(512, generator=rng(i)), law.quasi(512, generator=rng(i + 9))) for i in draws])
    assert stratified < (0.8 if law.dim == 2 else 0.97) * random


def test_rows_of_two_quasi_draws_are_unrelated():
    a, b = (moons.quasi(4096, generator=rng(seed))[:, 0] > 0.5 for seed in (6, 7))
    x, y = (standard_normal(1).quasi(4096, generator=rng(seed))[:, 0] for seed in (6, 7))
    assert abs(torch.corrcoef(torch.stack([a.float(), b.float()]))[0, 1]) < 5 / 64
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 5 / 64
    halves = torch.stack([x[:2048], x[2048:]]).mean(1)
    assert halves.abs().max() > 1e-3, "rows must not keep the order of the net"


@every_law
def test_draws_depend_on_the_generator_alone(law):
    before = torch.random.get_rng_state()
    for draw in (law.sample, law.quasi):
        x, again, other = (draw(64, generator=rng(seed)) for seed in (0, 0, 1))
        assert x.shape == (64, law.dim)
        assert x.dtype == torch.float32
        assert torch.equal(x, again)
        assert not torch.equal(x, other)
        source = rng()
        assert not torch.equal(draw(64, generator=source), draw(64, generator=source))
    assert torch.equal(before, torch.random.get_rng_state())


@every_law
def test_every_draw_is_finite_down_to_one_point(law):
    assert law.quasi(1, generator=rng()).isfinite().all()
    assert law.image(torch.full((1, law.cube), 2.0**-53, dtype=torch.float64)).isfinite().all()
    assert law.image(torch.full((1, law.cube), 1 - 2.0**-53, dtype=torch.float64)).isfinite().all()


def test_wrong_sizes_are_named():
    with pytest.raises(InputError, match=r"^n: expected a power of two, got 100; pass n=64$"):
        moons.quasi(100, generator=rng())
    with pytest.raises(InputError, match=r"^n: expected a whole number >= 1, got 0"):
        moons.sample(0, generator=rng())
    with pytest.raises(InputError, match=r"^dim: "):
        standard_normal(0)


def test_pairs_are_the_four_tasks():
    assert list(PAIRS) == ["normal-8gaussians", "normal-moons", "normal-scurve", "moons-8gaussians"]
    for name, pair in PAIRS.items():
        assert name == "-".join(law.name for law in pair)
        assert {law.dim for law in pair} == {2}


def test_digits_are_pixels_and_labels():
    x, labels = digits()
    assert x.shape == (1797, 64)
    assert x.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (x.min(), x.max()) == (0, 16)
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    ink = x.mean(1)[labels == 8].mean() - x.mean(1)[labels == 1].mean()
    assert ink > 0, "an eight takes more ink than a one"
