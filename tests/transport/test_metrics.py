"""Distances and path figures on samples and paths whose figures are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from driftway.checks import InputError
from driftway.kernels import Energy, Gaussian, TangentKernel, mmd2, mmd_test
from driftway.transport import Path, kernel_distance, normalised_path_energy, path_energy, straightness, w2
from driftway.transport.metrics import kernel_for
from driftway.transport.stream import generator
from tests.closed_forms.answers import LinePair, convex_map
from tests.transport.recipes import DOUBLE, draw


def path(*states, t=None):
    """A path of one or more samples through the given states."""
    z = torch.stack([torch.as_tensor(state, dtype=DOUBLE) for state in states])
    t = torch.linspace(0, 1, len(z), dtype=DOUBLE) if t is None else torch.tensor(t, dtype=DOUBLE)
    return Path(t, z, z.diff(dim=0) / t.diff()[(..., *[None] * (z.ndim - 1))])


# --- W2 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_w2_of_translated_samples_is_the_translation(dtype):
    """Translation is optimal, so W2 is its length: no sampling noise, rounding only."""
    x, c = draw(60, 3).to(dtype), torch.tensor([1.0, -2.0, 2.0], dtype=dtype)
    assert w2(x, x + c) == pytest.approx(3, rel=1e-6 if dtype == torch.float32 else 1e-9)
    assert w2(x, (x + c).flip(0)) == pytest.approx(3, rel=1e-6 if dtype == torch.float32 else 1e-9)


def test_w2_of_a_convex_map_is_the_distance_of_partners():
    x, known = draw(80, 4), convex_map(4)
    y = known.map(x)
    assert w2(x, y) == pytest.approx(float((x - y).square().sum(1).mean().sqrt()), rel=1e-9)


def test_w2_on_the_line_is_the_distance_of_quantiles():
    """Normal to gamma by their quantiles; the mean over 500 of them is within 2 % of the integral."""
    pair = LinePair(stats.norm(), stats.gamma(3))
    x, y = pair.source(500), pair.target(500)
    assert w2(x, y) == pytest.approx(float((x - y).square().mean().sqrt()), rel=1e-9)
    assert w2(x, y) ** 2 == pytest.approx(pair.w2_squared, rel=2e-2)


def test_w2_does_not_count_copies():
    x, y = draw(12, 2), draw(20, 2, seed=1)
    assert w2(x.repeat(3, 1), y) == pytest.approx(w2(x, y), rel=1e-9)
    assert w2(x, x.repeat(2, 1)) == pytest.approx(0, abs=1e-7)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**20), st.integers(1, 15), st.integers(1, 15), st.integers(1, 15))
def test_w2_is_a_distance(seed, n, m, k):
    x, y, z = draw(n, 2, seed=seed), 2 * draw(m, 2, seed=seed + 1), draw(k, 2, seed=seed + 2)
    assert w2(x, y) == pytest.approx(w2(y, x), rel=1e-9, abs=1e-9)
    assert w2(x, z) <= w2(x, y) + w2(y, z) + 1e-9
    mean = float((x.mean(0) - y.mean(0)).norm())
    assert w2(x, y) >= mean - 1e-9


def test_w2_of_images_is_that_of_their_pixels():
    x, y = draw(9, 4, 3), draw(9, 4, 3, seed=1)
    assert w2(x, y) == pytest.approx(w2(x.reshape(9, 12), y.reshape(9, 12)), rel=1e-12)


def test_w2_is_exact_far_from_the_origin():
    x, y = draw(30, 2), draw(30, 2, seed=1)
    assert w2(x + 1e4, y + 1e4) == pytest.approx(w2(x, y), rel=1e-6)


@pytest.mark.parametrize(("x", "y", "argument"), [
    (torch.tensor([[math.nan]]), torch.ones(2, 1), "x"),
    (torch.ones(2, 1), torch.tensor([[math.inf]]), "y"),
    (torch.ones(3, 2), torch.ones(0, 2), "y"),
])  # fmt: skip
def test_w2_faults(x, y, argument):
    with pytest.raises(InputError) as caught:
        w2(x, y)
    assert caught.value.argument == argument


# --- paths --------------------------------------------------------------------------------------------------------------


def test_a_straight_path_at_constant_speed():
    """From 0 to (3, 4): energy 25 in any number of steps, straightness 1."""
    end = torch.tensor([[3.0, 4.0]])
    for t in ([0, 1], [0, 0.5, 1], [0, 0.1, 0.3, 0.95, 1]):
        straight = path(*[s * end for s in t], t=t)
        assert path_energy(straight) == pytest.approx(25, rel=1e-12)
        assert straightness(straight) == pytest.approx(1, rel=1e-12)
        assert normalised_path_energy(straight, 25.0) == pytest.approx(0, abs=1e-12)


def test_a_detour_and_a_change_of_speed():
    """0, 1, 0, 1 in three steps is 9 times the energy of the chord; three quarters of the way in half the time is 5/4."""
    zigzag = path([[0.0]], [[1.0]], [[0.0]], [[1.0]])
    assert path_energy(zigzag) == pytest.approx(9)
    assert straightness(zigzag) == pytest.approx(1 / 9)
    assert normalised_path_energy(zigzag, 1.0) == pytest.approx(8)
    hasty = path([[0.0]], [[0.75]], [[1.0]])
    assert path_energy(hasty) == pytest.approx(1.25)
    assert straightness(hasty) == pytest.approx(0.8)
    assert normalised_path_energy(path([[0.0]], [[1.0]]), 2.0) == pytest.approx(0.5), "a miss counts as well"


def test_path_figures_are_means_over_the_samples():
    both = path([[0.0], [0.0]], [[1.0], [1.0]], [[0.0], [2.0]])
    assert path_energy(both) == pytest.approx((4 + 4) / 2)
    assert straightness(both) == pytest.approx((0 + 4) / 8)


def test_a_path_that_stays_is_straight():
    assert straightness(path([[1.0]], [[1.0]])) == 1.0


def test_figures_of_image_paths():
    states = [draw(5, 2, 3, seed=i) for i in range(4)]
    flat = path(*[state.reshape(5, 6) for state in states])
    assert path_energy(path(*states)) == pytest.approx(path_energy(flat), rel=1e-12)
    assert straightness(path(*states)) == pytest.approx(straightness(flat), rel=1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**20), st.integers(1, 8), st.integers(1, 12), st.lists(st.floats(0.05, 1), min_size=1, max_size=6))
def test_the_energy_of_a_path_is_at_least_the_squared_distance_of_its_ends(seed, n, scale, spans):
    """Cauchy-Schwarz, then the least cost over all pairings; and straightness is at most 1."""
    t = torch.tensor([0.0, *spans], dtype=DOUBLE).cumsum(0) / sum(spans)
    any_path = path(*[scale * draw(n, 2, seed=seed + i) for i in range(len(t))], t=t.tolist())
    assert path_energy(any_path) >= w2(any_path.states[0], any_path.states[-1]) ** 2 - 1e-9
    assert straightness(any_path) <= 1 + 1e-12


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_normalised_energy_needs_a_distance(value):
    with pytest.raises(InputError, match="squared_w2: expected a finite number > 0"):
        normalised_path_energy(path([[0.0]], [[1.0]]), value)


# --- kernels ------------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """A small network of rows of two columns."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 8), torch.nn.Linear(8, 1)
        for i, parameter in enumerate(self.parameters()):
            parameter.data = draw(*parameter.shape, seed=i)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("kernel", ["rbf", "nngp", "ntk", Energy(), Gaussian(0.7), TangentKernel(Net())])
def test_the_distance_is_the_mmd_of_the_kernels(kernel):
    x, y = draw(30, 2), 0.5 + draw(21, 2, seed=1)
    found = kernel_distance(x, y, kernel=kernel, seed=3)
    known = kernel_for(kernel, x, y) if isinstance(kernel, str) else kernel
    assert found.mmd**2 == pytest.approx(float(mmd2(x, y, kernel=known)), rel=1e-9)
    assert (found.n, found.m) == (30, 21)
    test = mmd_test(x, y, kernel=known, generator=generator(3, "kernel distance"), statistic="v")
    assert found.p_value == test.p_value
    assert found.ratio == found.mmd / found.floor
    assert kernel_distance(x, y, kernel=kernel, seed=3) == found


def test_named_kernels_know_no_units_and_treat_both_samples_alike():
    x, y = draw(25, 2), 1 + draw(25, 2, seed=1)
    for name in ("rbf", "nngp", "ntk"):
        one, two = kernel_distance(x, y, kernel=name), kernel_distance(100 + 7 * x, 100 + 7 * y, kernel=name)
        assert two.mmd == pytest.approx(one.mmd, rel=1e-9)
        assert two.floor == pytest.approx(one.floor, rel=1e-9)
        assert kernel_distance(y, x, kernel=name).mmd == pytest.approx(one.mmd, rel=1e-9)


@pytest.mark.parametrize("kernel", ["rbf", "nngp", "ntk"])
def test_a_sample_is_at_no_distance_from_itself_in_any_order(kernel):
    x = draw(40, 3)
    found = kernel_distance(x, x.flip(0).reshape(40, 3), kernel=kernel)
    assert found.mmd == pytest.approx(0, abs=2e-7)
    assert found.p_value == 1


def test_the_floor_is_what_fresh_rows_of_the_target_law_score():
    """Root mean squares over 300 pairs of samples, within 5 %: a standard error is near 2 %."""
    kernel, n, m = Gaussian(1.0), 12, 20
    found = [kernel_distance(draw(n, 2, seed=2 * i), draw(m, 2, seed=2 * i + 1), kernel=kernel, permutations=1) for i in range(300)]
    scored, foretold = (torch.tensor([getattr(one, name) ** 2 for one in found]).mean().sqrt() for name in ("mmd", "floor"))
    assert float(scored / foretold) == pytest.approx(1, abs=0.05)
    far = kernel_distance(5 + draw(n, 2), draw(m, 2, seed=1), kernel=kernel, permutations=1)
    assert far.floor == kernel_distance(draw(n, 2), draw(m, 2, seed=1), kernel=kernel, permutations=1).floor, "it is of the target alone"


def test_the_p_value_is_uniform_under_the_null_and_small_off_it():
    """200 pairs of one law: the empirical law of p is within the 1 % point of Kolmogorov's statistic, 1.63 / sqrt(200)."""
    p = torch.tensor([kernel_distance(draw(15, 2, seed=2 * i), draw(15, 2, seed=2 * i + 1), kernel="rbf", permutations=99, seed=i).p_value
                      for i in range(200)])  # fmt: skip
    assert stats.kstest(p.numpy(), "uniform").statistic < 1.63 / 200**0.5 + 0.01  # p is a multiple of 1/100
    assert kernel_distance(1.5 + draw(40, 2), draw(40, 2, seed=1)).p_value == 1 / 1000


def test_within_classes_the_distance_is_that_of_their_rows():
    """Swapped labels: the whole law is right, and both classes are wrong."""
    y, names = torch.cat([draw(30, 2) - 4, draw(20, 2, seed=1) + 4]), ["a"] * 30 + ["b"] * 20
    x, kernel = torch.cat([draw(30, 2, seed=2) - 4, draw(20, 2, seed=3) + 4]), Gaussian(2.0)
    right = kernel_distance(x, y, kernel=kernel, labels=names, target_labels=names)
    assert list(right.classes) == ["a", "b"]
    for name, rows in (("a", slice(30)), ("b", slice(30, 50))):
        alone = kernel_distance(x[rows], y[rows], kernel=kernel)
        assert (right.classes[name].mmd, right.classes[name].floor) == pytest.approx((alone.mmd, alone.floor), rel=1e-9)
        assert right.classes[name].p_value > 0.01
    swapped = kernel_distance(x, y, kernel=kernel, labels=["b"] * 30 + ["a"] * 20, target_labels=names)
    assert swapped.mmd == right.mmd
    assert all(own.p_value == 1 / 1000 and own.ratio > 3 for own in swapped.classes.values())


def test_single_rows_and_images():
    one = kernel_distance(draw(1, 2), draw(1, 2, seed=1), kernel=Gaussian(1.0))
    assert one.p_value == 1
    assert math.isnan(one.floor)
    assert math.isnan(one.ratio)
    x, y = draw(9, 4, 3), draw(9, 4, 3, seed=1)
    for name in ("rbf", "ntk"):
        assert kernel_distance(x, y, kernel=name).mmd == pytest.approx(kernel_distance(x.flatten(1), y.flatten(1), kernel=name).mmd)


@pytest.mark.parametrize(("options", "message"), [
    ({"y": torch.ones(4, 3, dtype=DOUBLE)}, "y: expected rows of shape"),
    ({"x": torch.full((4, 2), math.nan, dtype=DOUBLE)}, "x: expected finite numbers"),
    ({"kernel": "laplace"}, "kernel: expected one of rbf, nngp, ntk"),
    ({"x": torch.ones(4, 2, dtype=DOUBLE), "y": torch.ones(4, 2, dtype=DOUBLE)}, "x: expected at least two unequal"),
    ({"x": torch.ones(4, 2, dtype=DOUBLE), "y": torch.ones(4, 2, dtype=DOUBLE), "kernel": "ntk"}, "x: expected at least two unequal"),
    ({"labels": ["a"] * 4}, "target_labels: expected 4 classes, one per row, got 0"),
    ({"labels": ["a"] * 3, "target_labels": ["a"] * 4}, "labels: expected 4 classes, one per row, got 3"),
    ({"labels": ["a"] * 4, "target_labels": ["a"] * 3 + ["b"]}, "labels: expected the classes of the target rows"),
    ({"permutations": 0}, "permutations: expected a whole number"),
    ({"seed": -1}, "seed: expected a whole number"),
])  # fmt: skip
def test_faults_of_kernel_distances(options, message):
    with pytest.raises(InputError, match=message):
        kernel_distance(**{"x": draw(4, 2), "y": draw(4, 2, seed=1), **options})
