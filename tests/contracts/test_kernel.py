"""The laws of a kernel, for every kernel. To add one, add a line to `KERNELS`.

The points contain what is hard: a zero, a pair of equal points, a point near another, a multiple of another. Two evaluations of one
formula in another order differ by rounding, `ROUNDING` times the largest entry.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from driftway.kernels import Energy, Gaussian, Kernel, Linear, blocks, operator
from driftway.kernels.infinite import FullyConnected

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}
DOUBLE = torch.float64


@dataclass(frozen=True)
class Case:
    """A kernel and the shape of its points."""

    build: Callable[[], Kernel]
    event: tuple[int, ...] = (4,)


KERNELS: dict[str, Case] = {
    "linear": Case(Linear),
    "linear-image": Case(Linear, (2, 3, 3)),
    "gaussian": Case(lambda: Gaussian(1.3)),
    "gaussian-image": Case(lambda: Gaussian(2), (2, 3, 3)),
    "energy": Case(Energy),
    "sum": Case(lambda: Linear() + Gaussian(0.7)),
    "product": Case(lambda: Linear() * Gaussian(0.7)),
    "scale": Case(lambda: 2.5 * Gaussian(0.7)),
    "columns": Case(lambda: Gaussian(0.7).columns([3, 1])),
    "cast": Case(lambda: Gaussian(0.7).to(DOUBLE)),
    "nested": Case(lambda: (Linear().columns([0]) + 0.5 * Energy()) * (Gaussian(1.0) + Linear() * Linear()).columns([2, 1, 0])),
    "relu-nngp": Case(lambda: FullyConnected(3).nngp),
    "relu-ntk": Case(lambda: FullyConnected(3).ntk),
    "erf-ntk": Case(lambda: FullyConnected(2, "erf").ntk),
    "gelu-nngp": Case(lambda: FullyConnected(2, "gelu").nngp),
    "abs-ntk": Case(lambda: FullyConnected(2, "abs").ntk),
    "product-ntk": Case(lambda: (FullyConnected(2) * FullyConnected(1, "erf")).ntk),
    "relu-image": Case(lambda: FullyConnected(2).ntk, (2, 3, 3)),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])


def draw(case: Case, n: int = 12, dtype: torch.dtype = DOUBLE, seed: int = 0) -> Tensor:
    x = torch.randn(n, *case.event, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    x[1], x[3], x[5], x[7] = 0, x[2], x[4] + 1e-4, -3 * x[6]
    return x.to(dtype)


def close(found: Tensor, known: Tensor, *, times: float = 1) -> None:
    assert found.shape == known.shape
    assert float((found - known).abs().max()) <= times * ROUNDING[found.dtype] * float(known.abs().max())


@every_kernel
@every_dtype
def test_gram_cross_diagonal_agree(name, dtype):
    case = KERNELS[name]
    k, x = case.build(), draw(case, dtype=dtype)
    K = k.gram(x)
    assert K.shape == (12, 12)
    assert torch.equal(K, K.mT)
    close(K, k.cross(x, x.clone()))
    close(k.diagonal(x), K.diagonal())
    assert torch.equal(k(x), K)
    assert torch.equal(k(x, x[:5]), k.cross(x, x[:5]))


@every_kernel
def test_the_order_of_the_arguments_does_not_matter(name):
    case = KERNELS[name]
    k, x, y = case.build(), draw(case), draw(case, 9, seed=1)
    close(k.cross(x, y), k.cross(y, x).mT)


@every_kernel
def test_rows_do_not_mix(name):
    case = KERNELS[name]
    k, x, y = case.build(), draw(case), draw(case, 9, seed=1)
    K = k.cross(x, y)
    for i, j in ((0, 3), (1, 1), (5, 8)):
        entry = k.cross(x[i : i + 1], y[j : j + 1])
        assert float((entry - K[i, j]).abs()) <= ROUNDING[DOUBLE] * float(K.abs().max())
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    close(k.gram(x[order]), k.gram(x)[order][:, order])


@every_kernel
@every_dtype
def test_positive_semidefinite(name, dtype):
    """Up to n times the rounding of an entry, by Weyl's inequality."""
    case = KERNELS[name]
    x = draw(case, 40, dtype)
    K = case.build().gram(x)
    assert (K.diagonal() >= 0).all()
    assert float(torch.linalg.eigvalsh(K.double()).min()) >= -40 * ROUNDING[K.dtype] * float(K.abs().max())


@every_kernel
def test_blocks_and_operator_are_the_matrix(name):
    case = KERNELS[name]
    k, x, y = case.build(), draw(case), draw(case, 9, seed=1)
    small = 5 * 8 * 4 * 9 / 2**30  # five rows of y at a time, three of x
    parts = list(blocks(k, x, y, memory=small))
    assert len(parts) == 3
    assert [i for rows, _ in parts for i in range(12)[rows]] == list(range(12))
    close(torch.cat([K for _, K in parts]), k.cross(x, y))
    close(torch.cat([K for _, K in blocks(k, x, memory=small)]), k.gram(x))
    v = draw(Case(Linear, (3,)), seed=3)
    op = operator(k, x, memory=small)
    close(op @ v, k.gram(x) @ v)
    close(op @ v[:, 0], k.gram(x) @ v[:, 0])
    assert op.diagonal is not None
    close(op.diagonal, k.diagonal(x))


@every_kernel
def test_single_precision_is_double_precision_rounded(name):
    case = KERNELS[name]
    k, x = case.build(), draw(case, dtype=torch.float32)
    known = k.gram(x.double())
    assert (float((k.gram(x) - known).abs().max())) <= ROUNDING[torch.float32] * float(known.abs().max())
    wide = k.to(DOUBLE)
    for found, exact in ((wide.gram(x), known), (wide.cross(x, x[:4]), k.cross(x.double(), x[:4].double())),
                         (wide.diagonal(x), k.diagonal(x.double()))):  # fmt: skip
        assert found.dtype == DOUBLE
        assert torch.equal(found, exact)


@every_kernel
@every_dtype
def test_dtype_and_device_follow_the_points(name, dtype):
    if name == "cast":
        pytest.skip("a kernel with a dtype of its own")
    case = KERNELS[name]
    k, x = case.build(), draw(case, dtype=dtype)
    assert {K.dtype for K in (k.gram(x), k.cross(x, x[:3]), k.diagonal(x), operator(k, x) @ x.flatten(1))} == {dtype}
    assert operator(k, x).dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_kernel
def test_a_gpu_agrees(name):
    case = KERNELS[name]
    k, x = case.build(), draw(case)
    for found, known in ((k(x.cuda()), k(x)), (k(x.cuda(), x[:5].cuda()), k(x, x[:5])), (k.diagonal(x.cuda()), k.diagonal(x))):
        assert found.device.type == "cuda"
        close(found.cpu(), known, times=30)  # sums in another order, and the angle of rows 1e-4 apart divides their rounding by that


@every_kernel
def test_columns_are_the_kernel_of_those_columns(name):
    case = KERNELS[name]
    k, x = case.build(), draw(case)
    permuted = list(range(case.event[0]))[::-1]
    close(k.columns(permuted).gram(x), k.gram(x.flip(1)))
    close(k.columns(permuted).cross(x, x[:4]), k.cross(x.flip(1), x[:4].flip(1)))
    close(k.columns(permuted).diagonal(x), k.diagonal(x.flip(1)))


@every_kernel
def test_gradients_are_finite_and_right(name):
    """Finite at every point, the hard ones too; at plain points they predict central differences, whose error is about h^2."""
    case = KERNELS[name]
    k, x = case.build(), draw(case)
    weights = draw(Case(Linear, (12,)), seed=4)

    def loss(x: Tensor) -> Tensor:
        return (weights * k.gram(x)).sum() + (weights[:, :5] * k.cross(x, x[:5])).sum() + (weights[0] * k.diagonal(x)).sum()

    x.requires_grad_()
    (slope,) = torch.autograd.grad(loss(x), x)
    assert slope.isfinite().all()
    plain = torch.randn(12, *case.event, dtype=DOUBLE, generator=torch.Generator().manual_seed(5)).requires_grad_()
    (slope,) = torch.autograd.grad(loss(plain), plain)
    h, step = 1e-5, torch.randn(plain.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        rise = (loss(plain + h * step) - loss(plain - h * step)) / (2 * h)
    assert abs(float((slope * step).sum() - rise)) <= 1e-5 * float(slope.norm() * step.norm())


@every_kernel
def test_arguments_are_not_changed(name):
    case = KERNELS[name]
    k, x = case.build(), draw(case)
    before = x.clone()
    k.gram(x), k.cross(x, x), k.diagonal(x)
    assert torch.equal(x, before)
