"""The algebra of kernels, the checks of input, and work in blocks."""

import numpy as np
import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.kernels import Gaussian, Kernel, Linear, blocks, operator
from driftway.kernels import memory as memory_module
from driftway.kernels.base import GIB
from driftway.kernels.memory import available_memory, require_memory, row_slices
from driftway.linalg import conjugate_gradient

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


class Lopsided(Kernel):
    """x.y whose rounding depends on the order of the arguments."""

    def cross(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.mT + 1e-15 * torch.arange(len(x) * len(y), dtype=x.dtype).reshape(len(x), len(y))

    def diagonal(self, x: Tensor) -> Tensor:
        return x.square().sum(1)


def test_the_algebra_is_that_of_the_features():
    """x.y + 2 x.y (x.y) has the features x and 2^(1/2) x_i x_j."""
    k, x, y = Linear() + 2.0 * (Linear() * Linear()), draw(5, 3), draw(4, 3, seed=1)

    def features(z: Tensor) -> Tensor:
        return torch.cat([z, 2**0.5 * (z[:, :, None] * z[:, None, :]).flatten(1)], 1)

    torch.testing.assert_close(k(x, y), features(x) @ features(y).mT)
    torch.testing.assert_close(k(x), features(x) @ features(x).mT)
    torch.testing.assert_close(k.diagonal(x), features(x).square().sum(1))


def test_columns_add_up():
    """A linear kernel is the sum of those of its columns, a Gaussian one their product."""
    x, y = draw(5, 3), draw(4, 3, seed=1)
    torch.testing.assert_close((Linear().columns([2, 0]) + Linear().columns([1]))(x, y), Linear()(x, y))
    torch.testing.assert_close((Gaussian(0.8).columns([2, 0]) * Gaussian(0.8).columns([1]))(x, y), Gaussian(0.8)(x, y))


def test_columns_of_an_image_are_its_channels():
    x = draw(5, 3, 2, 2)
    torch.testing.assert_close(Linear().columns([0, 2])(x), Linear()(x) - Linear().columns([1])(x))


@pytest.mark.parametrize("factor", [2, 2.0, torch.tensor(2.0), torch.tensor([2.0])])
def test_a_factor_stands_on_either_side(factor):
    x = draw(5, 3)
    for k in (factor * Linear(), Linear() * factor):
        torch.testing.assert_close(k(x), 2 * Linear()(x))
        assert k(x).dtype == DOUBLE


def test_a_factor_learns():
    c, x = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True), draw(5, 3)
    (slope,) = torch.autograd.grad((c * Linear())(x).sum(), c)
    torch.testing.assert_close(slope, Linear()(x).sum())


def test_gram_is_symmetric_though_cross_is_not():
    x = draw(30, 3)
    K = Lopsided()(x)
    assert not torch.equal(Lopsided().cross(x, x), Lopsided().cross(x, x).mT)
    assert torch.equal(K, K.mT)


def test_a_kernel_of_its_own_dtype():
    """Points near 1e4 in float32: their dot products have eight digits more than float32 holds."""
    x = (1e4 + draw(6, 3)).float()
    K = Linear().to(DOUBLE)(x)
    assert K.dtype == DOUBLE
    assert torch.equal(K, Linear()(x.double()))
    assert float((Linear()(x) - K).abs().max()) > 1
    assert (Linear().to(DOUBLE).to(torch.float32) + Linear())(x.double()).dtype == DOUBLE


def test_arrays_and_whole_numbers_are_points():
    x = np.arange(6).reshape(3, 2)
    assert Linear()(x).dtype == torch.float32
    assert Linear()(x).tolist() == (x @ x.T).tolist()
    assert Linear()(x.astype(np.float64)).dtype == DOUBLE
    assert torch.equal(Linear()(draw(3, 2).numpy(), draw(3, 2)), Linear()(draw(3, 2), draw(3, 2)))


def test_gradients_pass_the_checks():
    x = draw(4, 2).requires_grad_()
    (slope,) = torch.autograd.grad(Linear()(x).sum(), x)
    torch.testing.assert_close(slope, 2 * x.sum(0).expand(4, 2))


def test_an_operator_solves_systems_without_the_matrix():
    x, b = draw(60, 3), draw(60, 2, seed=1)
    k = Gaussian(1.0)
    op = operator(k, x, memory=1e-6).shift(0.1)
    found = conjugate_gradient(op, b, tolerance=1e-12, steps=200).x
    torch.testing.assert_close(found, torch.linalg.solve(k(x) + 0.1 * torch.eye(60, dtype=DOUBLE), b), atol=1e-9, rtol=1e-9)


# --- memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("memory", [1e-12, 1e-6, 1e-3, 1.0])
def test_slices_cover_the_rows_within_the_budget(n, memory):
    width = 50
    slices = row_slices(n, width, memory=memory, device=torch.device("cpu"))
    assert [i for rows in slices for i in range(n)[rows]] == list(range(n))
    largest = max(rows.stop - rows.start for rows in slices)
    assert largest == 1 or largest * width * 8 * memory_module.COPIES <= memory * GIB
    assert memory < 1 or len(slices) == 1


def test_blocks_on_a_cpu_stay_near_the_cache():
    """With any memory: but not below 32 rows, where matrix products are slow."""
    cpu = torch.device("cpu")
    assert row_slices(10**6, 10**4, memory=100.0, device=cpu)[0].stop == int(memory_module.CACHE / 8e4)
    assert row_slices(10**6, 10**6, memory=100.0, device=cpu)[0].stop == 32
    assert row_slices(10**6, 10**4, memory=4.0, device=torch.device("cuda"))[0].stop == int(4 * GIB / 8e4 / memory_module.COPIES)


def test_free_memory_is_less_than_all():
    free = available_memory()
    assert free is not None
    assert 2**24 < free < 2**50


def test_free_memory_without_the_linux_file(monkeypatch):
    monkeypatch.setattr(memory_module.Path, "is_file", lambda self: False)
    total = available_memory()
    assert total is not None
    monkeypatch.undo()
    free = available_memory()
    assert free is not None
    assert free <= total


def test_what_cannot_fit_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr(memory_module, "available_memory", lambda device: 3 * GIB)
    require_memory("x", 3 * GIB, "pass fewer rows")
    with pytest.raises(InputError, match=r"^x: expected what fits into 3 GiB, the free memory of cpu, got 4.5 GiB to hold; pass fewer"):
        require_memory("x", 4 * GIB + GIB // 2, "pass fewer rows")
    monkeypatch.setattr(memory_module, "available_memory", lambda device: None)
    require_memory("x", 2**60, "pass fewer rows")


def test_a_gram_matrix_beyond_memory_is_refused():
    """A column of a million numbers would need 7.3 TiB; their blocks need none of it."""
    x = torch.linspace(0, 1, 10**6, dtype=DOUBLE)[:, None]
    with pytest.raises(InputError, match=r"x: .* got 7\.45e\+03 GiB to hold; evaluate it in parts, with driftway.kernels.blocks"):
        Linear()(x)
    rows, K = next(iter(blocks(Linear(), x)))
    assert K.shape == (rows.stop, 10**6)


# --- bad input ----------------------------------------------------------------------------------------------------------

BAD = {
    "nan": (lambda: Linear()(torch.tensor([[1.0], [float("nan")]])), r"x: expected finite numbers, got nan at row 1, column 0"),
    "inf-y": (lambda: Linear()(torch.ones(2, 1), torch.full((2, 1), torch.inf)), r"y: expected finite numbers, got inf at row 0"),
    "vector": (lambda: Linear()(torch.ones(3)), r"x: expected samples in rows, shape \(n, \.\.\.\), got shape \(3,\); reshape"),
    "event": (lambda: Linear()(torch.ones(3, 2), torch.ones(3, 4)), r"y: expected rows of shape \(2,\), got \(4,\)"),
    "dtype": (lambda: Linear()(torch.ones(3, 2), draw(3, 2)), r"y: expected dtype torch.float32 on cpu, as x has, got torch.float64"),
    "text": (lambda: Linear()("points"), r"x: expected an array or tensor of numbers, got str"),
    "empty": (lambda: Linear()(torch.ones(0, 2)), r"x: expected at least 1 rows, got 0"),
    "negative": (lambda: -1.0 * Linear(), r"factor: expected a finite number >= 0, got -1.0; pass factor as a number >= 0"),
    "factor-shape": (lambda: Linear() * torch.ones(2), r"factor: expected a finite number >= 0, got tensor"),
    "columns-none": (lambda: Linear().columns([]), r"columns: expected one or more distinct columns, got \(\); name each"),
    "columns-twice": (lambda: Linear().columns([1, 1]), r"columns: expected one or more distinct columns, got \(1, 1\)"),
    "columns-negative": (lambda: Linear().columns([-1]), r"columns: expected a whole number >= 0, got -1"),
    "columns-beyond": (lambda: Linear().columns([0, 2])(torch.ones(3, 2)), r"columns: expected columns below 2, .* got 2; name"),
    "memory": (lambda: list(blocks(Linear(), torch.ones(3, 2), memory=0)), r"memory: expected a finite number > 0, got 0"),
    "operator": (lambda: operator(Linear(), torch.full((2, 2), torch.nan)), r"x: expected finite numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()
