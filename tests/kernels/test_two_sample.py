"""The permutation test: against every permutation, against `mmd2`, its level and its power."""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from driftway.checks import InputError
from driftway.kernels import Energy, Gaussian, Linear, median_bandwidth, mmd2, mmd_test, mmd_test_from_gram

DOUBLE = torch.float64
every_statistic = pytest.mark.parametrize("statistic", ["v", "u"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_statistic
@pytest.mark.parametrize("kernel", [Linear(), Gaussian(0.8), Energy()], ids=["linear", "gaussian", "energy"])
def test_the_null_is_the_statistic_of_every_split(kernel, statistic):
    """4 and 3 points have 35 splits: the null holds all of them and nothing else, each about as often."""
    x, y = draw(4, 2) + 5, draw(3, 2, seed=1) + 6
    z = torch.cat([x, y])
    splits = [(list(c), [i for i in range(7) if i not in c]) for c in itertools.combinations(range(7), 4)]
    known = torch.stack([mmd2(z[a], z[b], kernel=kernel, statistic=statistic) for a, b in splits])
    answer = mmd_test(x, y, kernel=kernel, generator=seeded(), permutations=7000, statistic=statistic)
    assert math.isclose(answer.statistic, float(known[0]), abs_tol=1e-12)
    distance, which = (answer.null[:, None] - known).abs().min(1)
    assert float(distance.max()) < 1e-12
    assert stats.chisquare(torch.bincount(which, minlength=35).numpy()).pvalue > 1e-4
    exact = float((known >= known[0] - 1e-12).double().mean())
    assert abs(answer.p_value - exact) < 4 * (exact * (1 - exact) / 7000) ** 0.5 + 1 / 7000


@every_statistic
def test_the_statistic_is_mmd2(statistic):
    x, y = draw(60, 3), draw(45, 3, seed=1) + 0.2
    answer = mmd_test(x, y, kernel=Gaussian(1.5), generator=seeded(), permutations=9, statistic=statistic)
    assert math.isclose(answer.statistic, float(mmd2(x, y, kernel=Gaussian(1.5), statistic=statistic)), abs_tol=1e-13)
    assert answer.null.shape == (9,)
    K = Gaussian(1.5)(torch.cat([x, y]))
    again = mmd_test_from_gram(K, 60, generator=seeded(), permutations=9, statistic=statistic)
    assert torch.equal(again.null, answer.null)
    assert again.p_value == answer.p_value


@every_statistic
def test_p_values_are_uniform_under_the_null(statistic):
    """400 tests of 99 permutations, of unequal sizes, with a width chosen from the joint sample: p is uniform on 1/100, ..., 1."""
    x, y = draw(400, 15, 2), draw(400, 10, 2, seed=1)
    generator = seeded(2)
    p = [mmd_test(a, b, kernel=Gaussian(median_bandwidth(a, b)), generator=generator, permutations=99, statistic=statistic).p_value
         for a, b in zip(x, y, strict=True)]  # fmt: skip
    counts = torch.bincount((torch.tensor(p, dtype=DOUBLE) * 100).round().long(), minlength=101)[1:]
    assert stats.chisquare(counts.reshape(10, 10).sum(1).numpy()).pvalue > 1e-3
    for level in (0.05, 0.1):
        assert stats.binomtest(int(counts[: round(100 * level)].sum()), 400, level).pvalue > 1e-3


@every_statistic
def test_a_shift_is_found(statistic):
    """A shift of a standard deviation in one of five columns. The power is near 0.9: 45 of 60 are four standard errors below."""
    x, y = draw(60, 40, 5), draw(60, 40, 5, seed=1)
    y[..., 0] += 1
    found = [mmd_test(a, b, kernel=Gaussian(2.0), generator=seeded(i), permutations=199, statistic=statistic)
             for i, (a, b) in enumerate(zip(x, y, strict=True))]  # fmt: skip
    assert sum(answer.rejected for answer in found) >= 45


def test_a_gaussian_kernel_sees_what_a_linear_one_cannot():
    x, y = draw(200, 2), 2 * draw(200, 2, seed=1)
    x, y = x - x.mean(0), y - y.mean(0)
    assert mmd_test(x, y, kernel=Gaussian(1.5), generator=seeded()).p_value == 1 / 1000
    assert mmd_test(x, y, kernel=Linear(), generator=seeded()).p_value > 0.9


def test_equal_statistics_count_as_extreme():
    """All points alike but for rounding: no split is more extreme than another."""
    answer = mmd_test(torch.full((6, 1), 0.1), torch.full((5, 1), 0.1), kernel=Linear(), generator=seeded(), permutations=50)
    assert answer.p_value == 1
    assert not answer.rejected


def test_level_decides():
    x, y = draw(30, 1), draw(30, 1, seed=1) + 0.4
    strict, loose = (mmd_test(x, y, kernel=Energy(), generator=seeded(), level=level) for level in (0.001, 0.999))
    assert strict.p_value == loose.p_value
    assert loose.rejected
    assert not strict.rejected


@every_statistic
def test_an_offset_of_the_kernel_costs_no_digits(statistic):
    """Constants, and functions of one point, fall out of the statistic."""
    x, y = draw(30, 2), draw(25, 2, seed=1)
    K, f = Gaussian(1.0)(torch.cat([x, y])), 1e4 * draw(55, seed=2)
    plain, moved = (mmd_test_from_gram(M, 30, generator=seeded(), statistic=statistic) for M in (K, K + f[:, None] + f + 1e5))
    torch.testing.assert_close(moved.null, plain.null, atol=1e-9, rtol=0)
    assert moved.p_value == plain.p_value


def test_the_generator_decides_and_nothing_else():
    x, y = draw(30, 2).float(), draw(25, 2, seed=1).float()
    one, same, other = (mmd_test(x, y, kernel=Gaussian(1.0), generator=seeded(s), permutations=20) for s in (0, 0, 1))
    assert torch.equal(one.null, same.null)
    assert not torch.equal(one.null, other.null)
    assert one.null.dtype == DOUBLE


X, Y = draw(5, 2), draw(4, 2, seed=1)


def run(**options: object) -> object:
    return mmd_test(X, Y, kernel=Linear(), generator=seeded(), **options)  # type: ignore[arg-type]


BAD = {
    "event": (lambda: mmd_test(X, draw(4, 3), kernel=Linear(), generator=seeded()), r"y: expected rows of shape \(2,\), got \(3,\)"),
    "one": (lambda: mmd_test(X, Y[:1], kernel=Linear(), generator=seeded()), r"n: expected at most 4, for a Gram matrix of 6 rows, got 5"),
    "permutations": (lambda: run(permutations=0), r"permutations: expected a whole number >= 1"),
    "statistic": (lambda: run(statistic="w"), r"statistic: expected one of v, u, got 'w'"),
    "level": (lambda: run(level=1.0), r"level: expected a number between 0 and 1, got 1.0"),
    "many": (lambda: run(permutations=10**13), r"permutations: expected what fits into .*; pass fewer"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()
