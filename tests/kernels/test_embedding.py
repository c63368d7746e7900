"""MMD against loops and closed forms, its witness, and its digits.

The closed form: for x ~ N(m, S), y ~ N(m', S') and a Gaussian kernel of width h,
E k(x, y) = |I + (S + S')/h^2|^(-1/2) exp(-(m - m').(h^2 I + S + S')^-1 (m - m') / 2).
"""

import math

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.kernels import Energy, Gaussian, Kernel, Linear, MeanEmbedding, embed, mmd2, mmd2_from_gram, witness

DOUBLE = torch.float64
KERNELS = {"linear": Linear(), "gaussian": Gaussian(1.1), "energy": Energy(), "sum": Linear() + 0.5 * Gaussian(0.6)}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
every_statistic = pytest.mark.parametrize("statistic", ["v", "u"])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def weights(n: int, seed: int = 0) -> Tensor:
    """Uneven, some negative, of sum 1."""
    w = 1 + 0.8 * draw(n, seed=seed)
    return w / w.sum()


def by_loops(kernel: Kernel, x: Tensor, y: Tensor, a: list[float], b: list[float], statistic: str) -> float:
    def mean(x: Tensor, y: Tensor, a: list[float], b: list[float], *, same: bool) -> float:
        total = mass = 0.0
        for i in range(len(x)):
            for j in range(len(y)):
                if not (same and i == j and statistic == "u"):
                    total += a[i] * b[j] * float(kernel.cross(x[i : i + 1], y[j : j + 1]))
                    mass += a[i] * b[j]
        return total / mass

    return mean(x, x, a, a, same=True) - 2 * mean(x, y, a, b, same=False) + mean(y, y, b, b, same=True)


@every_kernel
@every_statistic
@pytest.mark.parametrize("weighted", [False, True])
def test_by_loops(kernel, statistic, weighted):
    x, y = draw(9, 2), draw(7, 2, seed=1) + 0.4
    a, b = (weights(9, 2), weights(7, 3)) if weighted else (None, None)
    known = by_loops(kernel, x, y, [1 / 9] * 9 if a is None else a.tolist(), [1 / 7] * 7 if b is None else b.tolist(), statistic)
    found = mmd2(x, y, kernel=kernel, weights_x=a, weights_y=b, statistic=statistic)
    assert math.isclose(float(found), known, abs_tol=1e-12)
    small = mmd2(x, y, kernel=kernel, weights_x=a, weights_y=b, statistic=statistic, memory=1e-9)
    torch.testing.assert_close(small, found, atol=1e-13, rtol=0)
    matrices = mmd2_from_gram(kernel(x), kernel(x, y), kernel(y), weights_x=a, weights_y=b, statistic=statistic)
    torch.testing.assert_close(matrices, found, atol=1e-13, rtol=0)


def test_a_linear_kernel_measures_the_distance_of_means():
    x, y, a = draw(40, 5), draw(30, 5, seed=1) + 0.3, weights(40)
    torch.testing.assert_close(mmd2(x, y, kernel=Linear()), (x.mean(0) - y.mean(0)).square().sum())
    torch.testing.assert_close(mmd2(x, y, kernel=Linear(), weights_x=a), (a @ x - y.mean(0)).square().sum())


def test_a_squared_linear_kernel_measures_second_moments():
    x, y = draw(40, 3), 1.5 * draw(30, 3, seed=1)
    known = (x.mT @ x / 40 - y.mT @ y / 30).square().sum()
    torch.testing.assert_close(mmd2(x, y, kernel=Linear() * Linear()), known)


def test_weights_are_as_repeated_points():
    x, y, repeats = draw(6, 2), draw(5, 2, seed=1), torch.tensor([1, 3, 2, 1, 0, 4])
    many = mmd2(x.repeat_interleave(repeats, 0), y, kernel=Gaussian(0.9))
    torch.testing.assert_close(mmd2(x, y, kernel=Gaussian(0.9), weights_x=repeats / 11), many)


def gaussian_mean(m: Tensor, S: Tensor, h: float) -> float:
    """E k of a difference of law N(m, S)."""
    wide = torch.eye(len(m), dtype=DOUBLE) + S / h**2
    return float(torch.exp(-(m @ torch.linalg.solve(wide, m)) / (2 * h**2)) / wide.det().sqrt())


def replicates(statistic: str, *, weighted: bool) -> tuple[Tensor, float, float]:
    """The statistic of 300 pairs of samples of 12 and 8 points, the true MMD^2, and the bias of "v"."""
    h, d, n, m = 1.2, 2, 12, 8
    A, B = torch.tensor([[1.0, 0.0], [0.5, 0.7]], dtype=DOUBLE), 0.8 * torch.eye(d, dtype=DOUBLE)
    shift = torch.tensor([0.6, -0.3], dtype=DOUBLE)
    S, T, zero = A @ A.mT, B @ B.mT, torch.zeros(d, dtype=DOUBLE)
    xx, yy, xy = gaussian_mean(zero, 2 * S, h), gaussian_mean(zero, 2 * T, h), gaussian_mean(shift, S + T, h)
    a, b = (weights(n, 5), weights(m, 6)) if weighted else (None, None)
    x, y = draw(300, n, d, seed=7) @ A.mT, draw(300, m, d, seed=8) @ B.mT + shift
    values = torch.stack([mmd2(p, q, kernel=Gaussian(h), statistic=statistic, weights_x=a, weights_y=b) for p, q in zip(x, y, strict=True)])
    return values, xx - 2 * xy + yy, (1 - xx) / n + (1 - yy) / m


@pytest.mark.parametrize("weighted", [False, True])
def test_u_is_unbiased(weighted):
    values, known, _ = replicates("u", weighted=weighted)
    assert abs(float(values.mean()) - known) < 4 * float(values.std()) / 300**0.5
    assert (values < 0).any()


def test_v_is_biased_by_the_pairs_of_a_point_with_itself():
    values, known, bias = replicates("v", weighted=False)
    error = float(values.std()) / 300**0.5
    assert abs(float(values.mean()) - known - bias) < 4 * error
    assert bias > 10 * error


def test_large_samples_in_little_memory():
    """3,000 points in blocks of a megabyte lie within four standard errors; var U is near 4 var w / n for each sample."""
    x, y, h = draw(3000, 3).float(), (draw(3000, 3, seed=1) + 0.5).float(), 1.5
    zero, S = torch.zeros(3, dtype=DOUBLE), 2 * torch.eye(3, dtype=DOUBLE)
    known = 2 * gaussian_mean(zero, S, h) - 2 * gaussian_mean(zero + 0.5, S, h)
    found = mmd2(x, y, kernel=Gaussian(h), statistic="u", memory=0.004)
    scores = witness(x, y, kernel=Gaussian(h))
    error = 2 * (scores.evaluate(x).var() / 3000 + scores.evaluate(y).var() / 3000).sqrt()
    assert abs(float(found) - known) < 4 * float(error) < 0.3 * known


# --- laws ---------------------------------------------------------------------------------------------------------------


@every_kernel
@every_statistic
def test_the_order_of_samples_and_points_does_not_matter(kernel, statistic):
    x, y = draw(9, 2), draw(7, 2, seed=1)
    known = mmd2(x, y, kernel=kernel, statistic=statistic)
    torch.testing.assert_close(mmd2(y, x, kernel=kernel, statistic=statistic), known, atol=1e-13, rtol=0)
    torch.testing.assert_close(mmd2(x.flip(0), y, kernel=kernel, statistic=statistic), known, atol=1e-13, rtol=0)


@every_kernel
def test_a_sample_has_no_distance_from_itself(kernel):
    x = draw(9, 2)
    value = float(mmd2(x, x.flip(0), kernel=kernel))
    assert 0 <= value < 1e-14


@every_kernel
def test_embeddings_obey_the_triangle_inequality_and_cauchy_schwarz(kernel):
    mu, nu, rho = (embed(draw(8, 2, seed=s) + s / 3, kernel=kernel) for s in range(3))
    assert (mu - rho).norm() <= (mu - nu).norm() + (nu - rho).norm()
    assert mu.inner(nu).abs() <= mu.norm() * nu.norm()
    torch.testing.assert_close((mu - nu).norm() ** 2, mu.norm() ** 2 - 2 * mu.inner(nu) + nu.norm() ** 2, atol=1e-13, rtol=1e-13)


@every_kernel
def test_an_embedding_has_the_reproducing_property(kernel):
    """<mu, k(z, .)> = mu(z), and k(z, .) is the embedding of the one point z."""
    mu, z = embed(draw(8, 2), kernel=kernel, weights=weights(8)), draw(4, 2, seed=1)
    points = torch.stack([mu.inner(embed(z[i : i + 1], kernel=kernel)) for i in range(4)])
    torch.testing.assert_close(mu.evaluate(z), points)
    torch.testing.assert_close(mu.evaluate(z, memory=1e-9), points)


@every_kernel
def test_the_witness_explains_the_distance(kernel):
    x, y, a, b = draw(9, 2), draw(7, 2, seed=1), weights(9, 2), weights(7, 3)
    w = witness(x, y, kernel=kernel, weights_x=a, weights_y=b)
    known = mmd2(x, y, kernel=kernel, weights_x=a, weights_y=b)
    torch.testing.assert_close(a @ w.evaluate(x) - b @ w.evaluate(y), known, atol=1e-12, rtol=0)
    torch.testing.assert_close(w.norm() ** 2, known, atol=1e-12, rtol=0)


def test_a_gaussian_witness_is_positive_where_x_is_denser():
    w = witness(draw(200, 1) - 2, draw(200, 1, seed=1) + 2, kernel=Gaussian(1.0))
    assert w.evaluate(torch.tensor([[-2.0]], dtype=DOUBLE)) > 0.3 > -0.3 > w.evaluate(torch.tensor([[2.0]], dtype=DOUBLE))


@every_kernel
@every_statistic
def test_gradients(kernel, statistic):
    x, y, u = draw(5, 2).requires_grad_(), (draw(4, 2, seed=1) + 1).requires_grad_(), draw(5, seed=2).requires_grad_()

    def loss(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        return mmd2(x, y, kernel=kernel, weights_x=u.softmax(0), statistic=statistic)

    assert torch.autograd.gradcheck(loss, (x, y, u))


def test_descent_on_a_linear_kernel_moves_the_mean():
    x, y = draw(10, 2), draw(8, 2, seed=1) + 3
    for _ in range(60):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(mmd2(x, y, kernel=Linear()), x)
        x = (x - 2 * slope).detach()
    torch.testing.assert_close(x.mean(0), y.mean(0), atol=1e-6, rtol=0)  # within rounding of zero the value, and its slope, is zero


# --- digits -------------------------------------------------------------------------------------------------------------


@every_kernel
@every_statistic
def test_an_offset_in_single_precision_leaves_the_value(kernel, statistic):
    """Entries near 1e7 with a difference near 0.01: sums in float32 would be wrong by the size of the answer."""
    x, y = (1e3 + draw(200, 10)).float(), (1e3 + 0.1 + draw(150, 10, seed=1)).float()
    known = mmd2(x.double(), y.double(), kernel=kernel, statistic=statistic)
    found = mmd2(x, y, kernel=kernel, statistic=statistic)
    assert found.dtype == torch.float32
    assert abs(float(found) - float(known)) <= 1e-6 * abs(float(known)) + 1e-9


def test_a_kernel_may_stay_in_single_precision():
    x, y = draw(200, 3).float(), draw(150, 3, seed=1).float()
    narrow, wide = (mmd2(x, y, kernel=k) for k in (Gaussian(1.0).to(torch.float32), Gaussian(1.0)))
    assert narrow != wide
    torch.testing.assert_close(narrow, wide, atol=1e-7, rtol=0)


def test_rounded_weights_are_made_to_sum_to_one():
    """A million-fold offset of the kernel multiplies the rounding of the weights' sum."""
    x, y = 1e3 + draw(30, 2), 1e3 + draw(20, 2, seed=1)
    a = weights(30).float()
    torch.testing.assert_close(mmd2(x, y, kernel=Linear(), weights_x=a), (a.double() / a.double().sum() @ x - y.mean(0)).square().sum(),
                               rtol=1e-7, atol=1e-9)  # fmt: skip


# --- bad input ----------------------------------------------------------------------------------------------------------

X, Y = draw(5, 2), draw(4, 2, seed=1)
BAD = {
    "event": (lambda: mmd2(X, draw(4, 3), kernel=Linear()), r"y: expected rows of shape \(2,\), got \(3,\)"),
    "nan": (lambda: embed(X / 0 * 0, kernel=Linear()), r"x: expected finite numbers, got nan"),
    "evaluate": (lambda: embed(X, kernel=Linear()).evaluate(draw(4, 3)), r"y: expected rows of shape \(2,\), got \(3,\)"),
    "sum": (lambda: mmd2(X, Y, kernel=Linear(), weights_x=torch.ones(5)), r"weights_x: expected finite weights of sum 1, got sum 5;"),
    "nan-weights": (lambda: embed(X, kernel=Linear(), weights=torch.full((5,), torch.nan)), r"weights: .* got sum nan"),
    "number": (lambda: mmd2(X, Y, kernel=Linear(), weights_y=torch.ones(5) / 5), r"weights_y: expected one weight for each of 4 points"),
    "statistic": (lambda: mmd2(X, Y, kernel=Linear(), statistic="w"), r"statistic: expected one of v, u, got 'w'"),
    "one": (lambda: mmd2(X, Y[:1], kernel=Linear(), statistic="u"), r'y: expected at least two points .*; pass statistic="v"'),
    "kernels": (lambda: embed(X, kernel=Linear()).inner(embed(Y, kernel=Energy())), r"other: expected an embedding by the kernel Linear"),
    "difference": (lambda: embed(X, kernel=Gaussian(1.0)) - embed(Y, kernel=Gaussian(2.0)), r"other: expected an embedding by the kernel"),
    "memory": (lambda: mmd2(X, Y, kernel=Linear(), memory=0.0), r"memory: expected a finite number > 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()


def test_embeddings_by_equal_kernels_meet():
    mu, nu = embed(X, kernel=Gaussian(1.0)), embed(Y, kernel=Gaussian(1.0))
    assert isinstance(mu - nu, MeanEmbedding)
    torch.testing.assert_close((mu - nu).norm() ** 2, mmd2(X, Y, kernel=Gaussian(1.0)))
