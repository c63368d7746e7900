"""Spectra of matrices whose eigenvalues are known, and the laws of what is computed from them."""

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.linalg import Spectrum, SymmetricOperator, dense_operator, eigendecompose, gram_operator, lanczos


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed))


def min_kernel(n: int) -> Tensor:
    """min(x, y) on the grid x_i = i/n."""
    x = torch.arange(1, n + 1, dtype=torch.float64) / n
    return torch.minimum(x[:, None], x)


def with_values(mu: Tensor, seed: int = 0) -> Tensor:
    U = torch.linalg.qr(draw(len(mu), len(mu), seed=seed))[0]
    return U @ (mu[:, None] * U.T)


def test_the_min_kernel_has_its_known_spectrum() -> None:
    """K^-1 is n times a second difference with a free end, so mu_j = 1 / (2 n sin((2j-1) pi / (4n+2)))^2."""
    n, j = 60, torch.arange(1, 61, dtype=torch.float64)
    S = eigendecompose(min_kernel(n))
    torch.testing.assert_close(S.values, (2 * n * ((2 * j - 1) * torch.pi / (4 * n + 2)).sin()).pow(-2), rtol=1e-10, atol=0)
    assert S.trace == pytest.approx((n + 1) / (2 * n))
    assert (S.truncated, S.explained, S.rank, S.clipped) == (False, 1, n, 0)


def test_the_matrix_is_that_of_the_values_that_are_known() -> None:
    K = with_values(torch.tensor([5.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64))
    S = eigendecompose(K)
    torch.testing.assert_close(S.matrix(), K)
    u = S.vectors[:, :2] if S.vectors is not None else K
    torch.testing.assert_close(S.largest(2).matrix(), u @ torch.diag(torch.tensor([5.0, 2.0]).double()) @ u.T)
    with pytest.raises(InputError, match="spectrum: expected eigenvectors, got none"):
        Spectrum(S.values, 5).matrix()


def test_vectors_diagonalise_and_coordinates_are_an_isometry() -> None:
    K, y = min_kernel(40), draw(40, 3)
    S = eigendecompose(K)
    assert S.vectors is not None
    torch.testing.assert_close(S.vectors @ (S.values[:, None] * S.vectors.T), K / 40, rtol=0, atol=1e-14)
    torch.testing.assert_close(S.coordinates(y).square().sum(0), y.square().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(S.coordinates(y[:, 0]), S.coordinates(y)[:, 0], rtol=0, atol=1e-14)
    torch.testing.assert_close((S.values * S.coordinates(y[:, 1]).square()).sum(), y[:, 1] @ K @ y[:, 1] / 40**2, rtol=1e-12, atol=0)


def test_effective_dimension_is_the_trace_of_the_ridge_smoother() -> None:
    K = min_kernel(30)
    S = eigendecompose(K)
    for lam in (1e-3, 0.1):
        smoother = torch.linalg.solve(K / 30 + lam * torch.eye(30).double(), K / 30)
        assert float(S.effective_dimension(lam)) == pytest.approx(float(smoother.trace()), rel=1e-10)
    grid = torch.tensor([[1e-12, 1.0], [1e9, 0.3]])
    d = S.effective_dimension(grid)
    assert d.shape == grid.shape
    assert float(d[0, 0]) == pytest.approx(30, abs=1e-4)
    assert float(d[1, 0]) == pytest.approx(S.trace / 1e9, rel=1e-6)


def test_bounds_of_a_truncated_spectrum_hold_and_are_attained() -> None:
    full = eigendecompose(min_kernel(50))
    part = full.largest(8)
    assert part.truncated
    assert part.explained == pytest.approx(float(full.values[:8].sum()) / full.trace)
    lam = torch.logspace(-6, 1, 15)
    lower, upper = part.dimension_bounds(lam)
    assert bool((lower <= full.effective_dimension(lam)).all())
    assert bool((full.effective_dimension(lam) <= upper).all())
    equal = Spectrum(torch.ones(20), 20)  # all values alike: both bounds are attained
    for bound in equal.largest(4).dimension_bounds(0.5):
        assert float(bound) == pytest.approx(20 / 1.5)


def test_a_spectrum_from_values_alone() -> None:
    S = Spectrum(values=torch.tensor([1.0, 4.0, 2.0]), size=10)
    assert S.values.tolist() == [4, 2, 1]
    assert (S.trace, S.truncated, S.rest, S.vectors) == (7, True, 0, None)
    assert float(S.effective_dimension(1)) == pytest.approx(4 / 5 + 2 / 3 + 1 / 2)
    vectors = torch.eye(3).double()
    assert torch.equal(Spectrum(torch.tensor([1.0, 4.0, 2.0]), 3, vectors).vectors, vectors[:, [1, 2, 0]])


def test_rounding_is_clipped_and_remembered() -> None:
    S = Spectrum(torch.tensor([1.0, 0.5, -1e-9], dtype=torch.float64), 3)
    assert S.values[2] == 0
    assert S.clipped == pytest.approx(1e-9 / 1.5)
    assert S.floor == pytest.approx(1e-9)
    assert S.rank == 2
    assert S.largest(2).clipped == S.clipped


def test_numerical_rank_knows_the_precision_of_the_kernel() -> None:
    J = draw(100, 12)
    assert eigendecompose(J @ J.T).rank == 12
    rough = eigendecompose((J @ J.T).float())
    assert rough.rank == 12
    assert rough.values.dtype == torch.float64
    assert rough.precision == torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("bad", "text"), [
    (lambda: Spectrum(torch.ones(4), 3), r"values: expected a vector of 1 to 3 finite numbers \(size=3\), got shape \(4,\)"),
    (lambda: Spectrum(torch.tensor([1.0, torch.inf]), 3), "values: expected a vector of 1 to 3 finite numbers"),
    (lambda: Spectrum(torch.tensor([1.0, -0.1]), 3), "values: expected eigenvalues of a positive semi-definite matrix, got -0.1 beside"),
    (lambda: eigendecompose(-torch.eye(3)), "K: expected eigenvalues of a positive semi-definite matrix"),
    (lambda: eigendecompose(torch.diag(torch.tensor([1.0, 1.0, -1.0])), k=1), "K: expected eigenvalues of a positive semi-definite"),
    (lambda: Spectrum(torch.ones(2), 3, trace=1.0), "trace: expected the sum of the values, 2, or more, got 1"),
    (lambda: Spectrum(torch.ones(2), 3, torch.ones(3, 1)), r"vectors: expected shape \(3, 2\), got \(3, 1\)"),
    (lambda: Spectrum(torch.ones(2), 0), "size: expected a whole number >= 1, got 0"),
    (lambda: Spectrum(torch.ones(2), 3).coordinates(torch.ones(3)), "vectors: expected eigenvectors, got None"),
    (lambda: eigendecompose(torch.eye(3)).coordinates(torch.ones(2)), "y: expected 3 rows"),
    (lambda: Spectrum(torch.ones(2), 3).effective_dimension(0.0), "lam: expected positive penalties, got 0.0"),
    (lambda: lanczos(dense_operator(torch.eye(3)), 4, generator=generator()), "k: expected at most 3, the size of the operator, got 4"),
    (lambda: lanczos(dense_operator(min_kernel(300)), 40, generator=generator(), steps=1), "steps: expected residuals within 1e-08"),
])  # fmt: skip
def test_bad_input_is_named(bad, text) -> None:
    with pytest.raises(InputError, match=text):
        bad()


def test_lanczos_finds_what_a_full_decomposition_finds() -> None:
    K = min_kernel(300)
    whole, part = eigendecompose(K, k=25), lanczos(dense_operator(K), 25, generator=generator())
    torch.testing.assert_close(part.values, whole.values, rtol=1e-9, atol=0)
    assert part.trace == pytest.approx(whole.trace, rel=1e-12)
    assert part.trace_error == 0
    assert part.vectors is not None
    assert whole.vectors is not None
    overlap = (part.vectors * whole.vectors).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones(25).double(), rtol=0, atol=1e-6)


def test_lanczos_restarts_until_a_flat_spectrum_is_resolved() -> None:
    mu = torch.cat([torch.linspace(2, 1, 5), torch.linspace(0.95, 0, 295)]).double()
    part = lanczos(dense_operator(300 * with_values(mu)), 5, generator=generator())  # a block is 13 wide: restarts after 65 of 300
    torch.testing.assert_close(part.values, mu[:5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mu", [
    torch.tensor(12 * [3.0] + 3 * [2.0] + 85 * [0.1]),
    torch.ones(100),
    torch.tensor(6 * [1.0] + 94 * [0.0]),
], ids=["repeated", "identity", "rank 6"])  # fmt: skip
def test_lanczos_finds_every_copy_of_a_repeated_value(mu: Tensor) -> None:
    part = lanczos(dense_operator(100 * with_values(mu.double())), 15, generator=generator())
    torch.testing.assert_close(part.values, mu[:15].double(), rtol=0, atol=1e-10)
    assert part.vectors is not None
    torch.testing.assert_close(part.vectors.T @ part.vectors, torch.eye(15).double(), rtol=0, atol=1e-10)


def test_lanczos_in_float32_and_of_a_small_operator() -> None:
    K = min_kernel(120)
    part = lanczos(dense_operator(K.float()), 10, generator=generator())
    torch.testing.assert_close(part.values, eigendecompose(K).values[:10], rtol=0, atol=1e-6)
    assert part.precision == torch.finfo(torch.float32).eps
    J = draw(9, 3)
    all_of_it = lanczos(gram_operator(J), 9, generator=generator())
    torch.testing.assert_close(all_of_it.values, eigendecompose(J @ J.T).values, rtol=0, atol=1e-12)
    assert float(lanczos(dense_operator(torch.zeros(5, 5)), 2, generator=generator()).values.sum()) == 0


def test_an_estimated_trace_is_within_its_stated_error() -> None:
    K = min_kernel(200) + 0.1 * with_values(torch.linspace(0, 1, 200).double())
    blind = SymmetricOperator(200, K.dtype, K.device, lambda v: K @ v)
    known, scores = float(K.trace()) / 200, []
    for seed in range(20):
        S = lanczos(blind, 6, generator=generator(seed))
        assert 0 < S.trace_error < 0.05 * known
        scores.append((S.trace - known) / S.trace_error)
    z = torch.tensor(scores)
    assert z.mean().abs() < 3 * 1.2 / 20**0.5
    assert 0.5 < z.std() < 1.8  # of Student's t with 13 degrees of freedom: 1.09
    assert lanczos(blind, 6, generator=generator(), trace=float(K.trace())).trace == pytest.approx(known)


def test_lanczos_is_a_function_of_its_generator() -> None:
    op = dense_operator(min_kernel(80))
    assert torch.equal(lanczos(op, 5, generator=generator(3)).values, lanczos(op, 5, generator=generator(3)).values)
