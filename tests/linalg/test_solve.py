"""Solvers against `torch.linalg`, and the laws of their iterations."""

import math

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.linalg import (
    SymmetricOperator,
    cholesky,
    conjugate_gradient,
    dense_operator,
    gram_operator,
    low_rank_preconditioner,
    pivoted_cholesky,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(n: int, width: float = 0.3) -> Tensor:
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    return torch.exp(-(x[:, None] - x).square() / (2 * width**2))


def well_conditioned(n: int = 30) -> Tensor:
    J = draw(n, 2 * n)
    return J @ J.T / n


@pytest.mark.parametrize("shape", [(30,), (30, 4)])
def test_a_factor_solves_whitens_and_has_the_determinant(shape: tuple[int, ...]) -> None:
    K, b = well_conditioned(), draw(*shape, seed=1)
    factor = cholesky(K)
    assert factor.jitter == 0
    torch.testing.assert_close(K @ factor.solve(b), b, rtol=0, atol=1e-10)
    torch.testing.assert_close(factor.whiten(b).square().sum(0), (b * torch.linalg.solve(K, b)).sum(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(factor.logdet(), torch.logdet(K), rtol=1e-10, atol=0)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_jitter_is_the_least_that_works_and_is_reported(dtype: torch.dtype, most: float) -> None:
    K = gaussian(80).to(dtype)  # numerical rank about 15 of 80
    factor = cholesky(7 * K)
    assert 80 * torch.finfo(dtype).eps <= factor.jitter <= most
    error = (factor.L @ factor.L.T - 7 * K - factor.jitter * 7 * torch.eye(80, dtype=dtype)).abs().max()
    assert error <= 80 * 7 * torch.finfo(dtype).eps
    assert cholesky(K, jitter=1e-3).jitter == 1e-3


def test_cholesky_differentiates() -> None:
    K = well_conditioned(6).requires_grad_()
    (slope,) = torch.autograd.grad(cholesky(K).logdet(), K)
    torch.testing.assert_close(slope, torch.linalg.inv(K.detach()), rtol=1e-9, atol=1e-9)


def test_an_indefinite_matrix_is_refused_with_its_least_eigenvalue() -> None:
    U = torch.linalg.qr(draw(10, 10))[0]
    K = U @ torch.diag(torch.tensor([-2.0] + 9 * [4.0]).double()) @ U.T  # mean eigenvalue 3.4
    with pytest.raises(InputError, match=r"K: expected a positive semi-definite matrix, got a least eigenvalue of -0.59 times the mean"):
        cholesky(K)
    with pytest.raises(InputError, match="K: expected finite numbers"):
        cholesky(K / 0)
    with pytest.raises(InputError, match="K: expected a positive semi-definite matrix"):
        cholesky(torch.zeros(3, 3))


def test_conjugate_gradients_solve_all_columns() -> None:
    K, b = well_conditioned(), draw(30, 5, seed=1)
    b[:, 2] = 0
    found = conjugate_gradient(dense_operator(K), b, tolerance=1e-12)
    assert found.converged
    assert found.residuals.max() <= 1e-12
    assert torch.equal(found.x[:, 2], torch.zeros(30).double())
    torch.testing.assert_close(found.x, torch.linalg.solve(K, b), rtol=0, atol=1e-9)
    one = conjugate_gradient(dense_operator(K), b[:, 0], tolerance=1e-12).x
    torch.testing.assert_close(one, found.x[:, 0], rtol=0, atol=1e-10)


def test_steps_equal_the_number_of_distinct_eigenvalues() -> None:
    U = torch.linalg.qr(draw(40, 40))[0]
    K = U @ torch.diag(torch.tensor([1.0, 2.0, 5.0, 9.0]).double().repeat(10)) @ U.T
    assert conjugate_gradient(dense_operator(K), draw(40, seed=1), tolerance=1e-10).steps == 4


def test_the_error_falls_by_the_chebyshev_bound() -> None:
    K, b = gaussian(100, 0.02) + 0.05 * torch.eye(100), draw(100, seed=1)
    mu = torch.linalg.eigvalsh(K)
    root, x = math.sqrt(float(mu[-1] / mu[0])), torch.linalg.solve(K, b)
    for steps in (2, 5, 10, 20):
        error = conjugate_gradient(dense_operator(K), b, tolerance=1e-14, steps=steps).x - x
        assert (error @ K @ error / (x @ K @ x)).sqrt() <= 2 * ((root - 1) / (root + 1)) ** steps


def test_reaching_no_solution_is_said() -> None:
    found = conjugate_gradient(dense_operator(gaussian(100) + 1e-6 * torch.eye(100)), draw(100), steps=3)
    assert not found.converged
    assert found.steps == 3
    assert found.residuals.max() > 1e-6


def test_residuals_are_the_true_ones_in_float32() -> None:
    K, b = (gaussian(200) + 0.1 * torch.eye(200)).float(), draw(200, 2).float()
    found = conjugate_gradient(dense_operator(K), b, tolerance=1e-3)
    true = (b.double() - K.double() @ found.x.double()).norm(dim=0) / b.norm(dim=0)
    assert found.converged
    torch.testing.assert_close(found.residuals.double(), true, rtol=0, atol=2e-4)


def test_an_indefinite_operator_is_refused() -> None:
    with pytest.raises(InputError, match=r"op: expected a positive semi-definite operator, got p\.A p = -"):
        conjugate_gradient(dense_operator(well_conditioned()).shift(-50), draw(30))
    broken = SymmetricOperator(30, torch.float64, torch.device("cpu"), lambda v: v * torch.nan)
    with pytest.raises(InputError, match="b - op @ x: expected finite numbers"):
        conjugate_gradient(broken, draw(30))


def test_pivoted_cholesky_is_exact_at_full_rank_and_near_the_best_before() -> None:
    J = draw(50, 8)
    op = gram_operator(J)
    L = pivoted_cholesky(op.diagonal, op.column, rank=50)
    assert L.shape == (50, 8)
    torch.testing.assert_close(L @ L.T, J @ J.T, rtol=0, atol=1e-10)
    K = gaussian(100)
    op, mu = dense_operator(K), torch.linalg.eigvalsh(K).flip(0)
    for rank in (3, 6):
        L = pivoted_cholesky(op.diagonal, op.column, rank=rank)
        left = float((K - L @ L.T).trace())
        assert mu[rank:].sum() <= left <= 20 * mu[rank:].sum()
    L = pivoted_cholesky(op.diagonal, op.column, rank=100, tolerance=0.01)
    assert (K - L @ L.T).trace() <= 0.01 * K.trace()
    assert L.shape[1] < 8


def test_the_preconditioner_is_an_inverse_and_saves_steps() -> None:
    K, lam, b = gaussian(200, 0.05), 1e-4, draw(200, 3, seed=1)
    op = dense_operator(K)
    L = pivoted_cholesky(op.diagonal, op.column, rank=30)
    P = low_rank_preconditioner(L, lam)
    torch.testing.assert_close(P(L @ (L.T @ b) + lam * b), b, rtol=0, atol=1e-6)
    plain = conjugate_gradient(op.shift(lam), b, tolerance=1e-8)
    fast = conjugate_gradient(op.shift(lam), b, tolerance=1e-8, preconditioner=P)
    assert fast.converged
    assert fast.steps < plain.steps / 3
    with pytest.raises(InputError, match="lam: expected a finite number > 0"):
        low_rank_preconditioner(L, 0)
