"""Operators against the matrices that they stand for. Two orders of one sum differ by rounding, 1e-12 of the scale."""

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.linalg import SymmetricOperator, dense_operator, gram_operator


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


J, v, V = draw(7, 4), draw(7, seed=1), draw(7, 3, seed=2)
K = J @ J.T


def test_algebra_is_that_of_matrices() -> None:
    B = draw(7, 7, seed=3)
    B = B + B.T
    op = 2.0 * gram_operator(J) + dense_operator(B) * -3 + dense_operator(K).shift(0.5)
    A = 3 * K - 3 * B + 0.5 * torch.eye(7)
    torch.testing.assert_close(op @ V, A @ V, rtol=0, atol=1e-12)
    torch.testing.assert_close(op @ v, A @ v, rtol=0, atol=1e-12)
    torch.testing.assert_close(op.dense(), A, rtol=0, atol=1e-12)
    torch.testing.assert_close(op.diagonal, A.diagonal(), rtol=0, atol=1e-12)
    torch.testing.assert_close(op.column(5), A[5], rtol=0, atol=1e-12)
    assert torch.equal(op.dense(), op.dense().T)


def test_unknown_diagonals_stay_unknown() -> None:
    blind = SymmetricOperator(7, K.dtype, K.device, lambda v: K @ v)
    assert (blind + dense_operator(K)).diagonal is None
    assert blind.shift(1.0).diagonal is None
    assert (2.0 * blind).diagonal is None
    torch.testing.assert_close((blind + dense_operator(K)).dense(), 2 * K, rtol=0, atol=1e-12)


def test_arguments_stay_as_they_were_and_dtypes_follow() -> None:
    before = K.clone()
    dense_operator(K) @ v
    assert torch.equal(before, K)
    assert (gram_operator(J.float()) @ v.float()).dtype == torch.float32
    assert dense_operator(torch.eye(3, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize(("bad", "text"), [
    (lambda: dense_operator(draw(3, 4)), r"K: expected a square matrix \(n, n\), got shape \(3, 4\)"),
    (lambda: dense_operator(draw(3, 3)), "K: expected a symmetric matrix, got entries that differ from K\\^T by"),
    (lambda: dense_operator(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]])), r"K: expected finite numbers, got nan at \(0, 1\)"),
    (lambda: dense_operator(K.half()), "K: expected dtype float32 or float64, got torch.float16"),
    (lambda: gram_operator(v), r"J: expected a floating matrix \(n, p\)"),
    (lambda: gram_operator(J) @ draw(6), r"v: expected shape \(7,\) or \(7, k\), got shape \(6,\)"),
    (lambda: gram_operator(J) @ v.float(), "v: expected dtype torch.float64, as the operator has, got torch.float32"),
    (lambda: gram_operator(J) + gram_operator(J[:5]), "other: expected an operator of size"),
    (lambda: gram_operator(J).shift(float("nan")), "lam: expected a finite number, got nan"),
    (lambda: gram_operator(J).column(7), "i: expected a column below 7, got 7"),
])  # fmt: skip
def test_bad_input_is_named(bad, text) -> None:
    with pytest.raises(InputError, match=text):
        bad()


def test_rounding_is_no_asymmetry() -> None:
    X = draw(40, 300).float()
    rough = X @ X.T
    rough[3, 4] *= 1 + 1e-6
    assert torch.equal(dense_operator(rough).dense(), dense_operator(rough).dense().T)
