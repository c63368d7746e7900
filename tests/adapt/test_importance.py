"""Importance weights: against normal laws with a known ratio, refits one by one, the optimality of each program, and limits."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear
from torch import Tensor

from driftway.adapt.importance import METHODS, RIDGES, effective_sample_size, importance_weights, leave_one_out
from driftway.checks import InputError
from driftway.kernels import Gaussian

every_method = pytest.mark.parametrize("method", METHODS)


def normal(n: int, d: int = 1, *, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> Tensor:
    x = scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, 0] += mean
    return x


def ratio(x: Tensor, mean: float, scale: float) -> Tensor:
    """N(mean, scale^2) to N(0, 1)."""
    return torch.exp(x[:, 0] ** 2 / 2 - ((x[:, 0] - mean) / scale) ** 2 / 2) / scale


def units(S: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Both in standard deviations of the joint sample, the units of a width."""
    both = torch.cat([S, T])
    return (S - both.mean(0)) / both.std(0), (T - both.mean(0)) / both.std(0)


@pytest.mark.parametrize(("method", "mean", "scale", "least"), [
    ("kulsif", 1.0, 1.0, 0.97), ("kmm", 1.0, 1.0, 0.97), ("logistic", 1.0, 1.0, 0.99), ("kulsif", 1.0, 0.7, 0.97), ("kmm", 1.0, 0.7, 0.97),
])  # fmt: skip
def test_weights_follow_the_known_ratio(method, mean, scale, least):
    """The logistic model is right for equal variances only."""
    S, T = normal(500), normal(500, mean=mean, scale=scale, seed=1)
    w, true = importance_weights(S, T, method=method), ratio(S, mean, scale)
    assert float(torch.corrcoef(torch.stack([w, true]))[0, 1]) > least
    assert float((w - true).abs().mean()) < 0.35
    assert math.isclose(float(w.mean()), 1, rel_tol=1e-12)
    assert float(w.min()) >= 0
    assert abs(effective_sample_size(w) / effective_sample_size(true) - 1) < 0.25


@every_method
def test_equal_laws_have_weights_near_one(method):
    for seed in range(0, 6, 2):
        w = importance_weights(normal(400, 2, seed=seed), normal(400, 2, seed=seed + 1), method=method)
        assert float((w - 1).abs().mean()) < 0.15
        assert effective_sample_size(w) > 0.96 * 400


@pytest.mark.parametrize("method", ["kulsif", "kmm"])
def test_a_large_ridge_says_no_shift(method):
    w = importance_weights(normal(40), normal(30, mean=2, seed=1), method=method, width=1.0, ridge=1e9)
    assert torch.allclose(w, torch.ones(40, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize(("n", "m"), [(12, 12), (15, 9), (8, 14)])
def test_leave_one_out_is_refitting_without_the_pair(n, m):
    S, T, k, ridges = normal(n, 2), normal(m, 2, mean=0.5, seed=1), Gaussian(0.9), (0.01, 0.3, 5.0)
    known = []
    for lam in ridges:
        error = []
        for pair in range(min(n, m)):
            s, t = (torch.cat([Z[:pair], Z[pair + 1 :]]) for Z in (S, T))
            # w = 1 + g, g = sum_i a_i k(s_i, .) + (1 / lam) mean_j k(t_j, .): the gradient in a vanishes
            at = torch.stack([S[pair], T[pair]])
            rhs = -(1 + k(s, t).mean(1) / lam) / (n - 1)
            a = torch.linalg.solve(k(s, s) / (n - 1) + lam * torch.eye(n - 1).double(), rhs)
            w = (1 + k(at, s) @ a + k(at, t).mean(1) / lam).clamp_min(0)
            error.append(w[0] ** 2 / 2 - w[1])
        known.append(torch.stack(error).mean())
    assert torch.allclose(leave_one_out(S, T, 0.9, ridges), torch.stack(known), rtol=1e-9, atol=1e-11)


def test_kulsif_minimises_its_functional():
    """Over w = 1 + sum_i a_i k(z_i, .) for the points of both samples, by a dense solve that shares no formula with it."""
    S, T = units(normal(20, 2), normal(15, 2, mean=0.6, seed=1))
    Z, lam = torch.cat([S, T]), 0.2
    a = torch.zeros(35, dtype=torch.float64, requires_grad=True)

    def functional(a):
        g = Gaussian(0.8)(Z, Z) @ a
        return (1 + g[:20]).square().mean() / 2 - (1 + g[20:]).mean() + lam / 2 * a @ Gaussian(0.8)(Z, Z) @ a

    H = torch.autograd.functional.hessian(functional, a)
    (gradient,) = torch.autograd.grad(functional(a), a)
    best = -torch.linalg.lstsq(H, gradient, driver="gelsd").solution
    expected = (1 + Gaussian(0.8)(S, Z) @ best).clamp_min(0)
    assert torch.allclose(importance_weights(S, T, width=0.8, ridge=lam, normalise=False), expected, atol=1e-8)


def test_kmm_is_non_negative_least_squares():
    S, T, lam = normal(40), normal(30, mean=2.5, scale=0.3, seed=1), 1e-3
    x, t = units(S, T)
    w = importance_weights(S, T, method="kmm", width=0.5, ridge=lam, normalise=False)
    Q, c = Gaussian(0.5).gram(x) / 40 + lam * torch.eye(40).double(), Gaussian(0.5)(x, t).mean(1) + lam
    L = torch.linalg.cholesky(Q)
    known = lsq_linear(L.mT.numpy(), torch.linalg.solve_triangular(L, c[:, None], upper=False)[:, 0].numpy(), (0, np.inf), tol=1e-14).x
    assert (w == 0).any()
    assert torch.allclose(w, torch.from_numpy(known), atol=1e-5)
    gradient = Q @ w - c
    assert float(gradient[w > 0].abs().max()) < 1e-8
    assert float(gradient.min()) > -1e-8


def test_the_classifier_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    S, T = normal(80, 3), normal(50, 3, mean=0.8, seed=1)
    x, t = units(S, T)
    C = 1 / (0.05 * 130)
    model = LogisticRegression(C=C, tol=1e-12, max_iter=10_000).fit(torch.cat([x, t]).numpy(), [0] * 80 + [1] * 50)
    known = 80 / 50 * np.exp(model.decision_function(x.numpy()))
    w = importance_weights(S, T, method="logistic", ridge=0.05, normalise=False)
    assert np.allclose(w.numpy(), known, rtol=1e-5)


@every_method
@pytest.mark.parametrize("mean", [50.0, 1e9])
def test_samples_without_overlap_keep_finite_weights(method, mean):
    w = importance_weights(normal(50), normal(50, mean=mean, seed=1), method=method)
    assert bool(w.isfinite().all())
    assert math.isclose(float(w.mean()), 1)


@every_method
def test_relative_weights_are_bounded_and_the_ratio_to_the_mixture(method):
    S, T = normal(200), normal(150, mean=2, seed=1)
    w, r = (importance_weights(S, T, method=method, alpha=alpha, normalise=False) for alpha in (0, 0.2))
    assert torch.allclose(r, w / (0.2 * w + 0.8))
    assert float(r.max()) <= 1 / 0.2
    assert effective_sample_size(r) > effective_sample_size(w)
    assert math.isclose(float(importance_weights(S, T, method=method, alpha=0.2).mean()), 1)


@every_method
def test_units_of_the_columns_and_order_of_the_target_do_not_matter(method):
    S, T, units_ = normal(60, 2), normal(50, 2, mean=1, seed=1), torch.tensor([1e3, 1e-3]).double()
    w = importance_weights(S, T, method=method)
    assert torch.allclose(importance_weights(S * units_ + 7, T * units_ + 7, method=method), w, atol=1e-6)
    fixed = {} if method == "logistic" else {"width": 1.0, "ridge": 0.01}
    w = importance_weights(S, T, method=method, **fixed)
    assert torch.allclose(importance_weights(S, T.flip(0), method=method, **fixed), w, atol=1e-8)


def test_a_constant_column_is_ignored():
    S, T = normal(60), normal(50, mean=1, seed=1)
    w = importance_weights(torch.cat([S, torch.full((60, 1), 0.1)], 1), torch.cat([T, torch.full((50, 1), 0.1)], 1))
    assert torch.allclose(w, importance_weights(S, T))
    assert torch.allclose(importance_weights(torch.ones(5, 2), torch.ones(4, 2)), torch.ones(5).double())


def test_more_than_the_rows_that_choose():
    """The kernel is chosen on 500 rows that the seed draws; the weights use all of them."""
    S, T = normal(900), normal(700, mean=1, seed=1)
    w = importance_weights(S, T, seed=3)
    assert torch.equal(w, importance_weights(S, T, seed=3))
    assert float(torch.corrcoef(torch.stack([w, ratio(S, 1, 1)]))[0, 1]) > 0.97


def test_effective_sample_size():
    assert effective_sample_size(torch.ones(7)) == 7
    assert effective_sample_size(torch.tensor([3.0, 0, 0])) == 1
    assert effective_sample_size(torch.tensor([1.0, 1, 0, 0])) == 2
    assert len(RIDGES) == len(set(RIDGES))


@pytest.mark.parametrize(("options", "argument"), [
    ({"method": "density"}, "method"), ({"width": 0}, "width"), ({"ridge": -1.0}, "ridge"),
    ({"alpha": 1.0}, "alpha"), ({"alpha": -0.1}, "alpha"),
])  # fmt: skip
def test_options_are_checked(options, argument):
    with pytest.raises(InputError) as error:
        importance_weights(normal(9), normal(9), **options)
    assert error.value.argument == argument


@pytest.mark.parametrize(("S", "T", "argument"), [
    (normal(9, 2), normal(9, 3), "X_target"), (normal(1), normal(9), "X_source"), (normal(9), normal(9)[:, 0], "X_target"),
    (normal(9) * float("nan"), normal(9), "X_source"),
])  # fmt: skip
def test_samples_are_checked(S, T, argument):
    with pytest.raises(InputError) as error:
        importance_weights(S, T)
    assert error.value.argument == argument
