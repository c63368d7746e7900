"""Mixtures with many components, many columns and diagonal covariances: the same laws, in bounded memory."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from driftway.checks import InputError
from driftway.transport import MixtureValue, forms
from driftway.transport.mixture_start import initialise

DOUBLE = torch.float64


def draw(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def diagonal(d, K, eps=0.3):
    value = MixtureValue((d,), components=K, eps=eps, rank=0).double().requires_grad_(False)
    value.eps.fill_(eps)
    for seed, parameter in enumerate((value.u, value.r, value.log_diagonal)):
        parameter.copy_(0.4 * draw(*parameter.shape, seed=seed))
    return value


def as_full(value):
    """The same mixture with full covariances."""
    full = MixtureValue(value.event, components=len(value.u)).double().requires_grad_(False)
    state = value.state_dict()
    full.load_state_dict(state | {"lower": torch.zeros_like(full.lower)})
    return full


TIMES = {"start": torch.zeros(30, dtype=DOUBLE), "later": torch.full((30,), 0.4, dtype=DOUBLE),
         "many": torch.linspace(0, 0.95, 30, dtype=DOUBLE)}  # fmt: skip
every_time = pytest.mark.parametrize("time", TIMES)


@every_time
def test_diagonal_covariances_are_full_ones_without_the_rest(time):
    value, x, t = diagonal(4, 6), 2 * draw(30, 4, seed=5), TIMES[time]
    full = as_full(value)
    u = torch.rand(30, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for f in (lambda v: v.value(x, t), lambda v: v.gradient(x, t), lambda v: v.price(x), lambda v: v.log_c(x), lambda v: v.log_v(x),
              lambda v: v.endpoint(x, t, uniform=u, normal=draw(30, 4, seed=6))):  # fmt: skip
        torch.testing.assert_close(f(value), f(full), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("rank", [-1, 0])
def test_rows_of_one_time_are_rows_of_many_times(rank):
    """Two ways to compute: quadratic forms with a Cholesky factor, and eigenvectors."""
    value = diagonal(5, 7) if rank == 0 else as_full(diagonal(5, 7))
    if value.lower is not None:
        value.lower.copy_(0.3 * draw(7, 5, 5, seed=9))
    x, u = 2 * draw(40, 5, seed=5), torch.rand(40, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for time in (0.0, 0.3, 0.99):
        one = torch.full((40,), time, dtype=DOUBLE)
        many = one.clone()
        many[-1] = 0.5
        for f in (value.value, value.gradient, lambda x, t: value.endpoint(x, t, uniform=u, normal=draw(40, 5, seed=6))):
            torch.testing.assert_close(f(x, one)[:-1], f(x, many)[:-1], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("K", "d"), [(40, 3), (2, 9), (3, 6)])
def test_quadratics_are_the_same_by_monomials_and_by_matrices(K, d):
    A, b, c, x = draw(K, d, d), draw(K, d, seed=1), draw(K, seed=2), draw(8, d, seed=3)
    known = torch.einsum("nd,kde,ne->nk", x, A, x) + x @ b.T + c
    torch.testing.assert_close(forms.quadratics(x, A, b, c), known)


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for z in out if isinstance(out, tuple | list) else [out]:
            if isinstance(z, torch.Tensor):
                self.bytes = max(self.bytes, z.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("K", "d", "n", "rank"), [(4096, 2, 3000, -1), (2, 256, 500, -1), (2000, 64, 1000, 0)])
@pytest.mark.parametrize("time", [0.0, 0.5])
def test_memory_is_bounded(K, d, n, rank, time):
    """No tensor is larger than a block, or than a matrix per component."""
    value = MixtureValue((d,), components=K, rank=rank).requires_grad_(False)
    x, t = draw(n, d, dtype=torch.float32), torch.full((n,), time)
    with Largest() as seen, torch.no_grad():
        y = value.endpoint(x, t, uniform=torch.full((n,), 0.3), normal=x)
        value.gradient(x, t)
        value.value(x[:200], torch.linspace(0, 0.9, 200))
    assert torch.isfinite(y).all()
    assert seen.bytes <= 4 * 1.05 * max(forms.ENTRIES, value.r.numel() * (d if rank else 1))


def test_full_covariances_keep_the_names_of_saved_models():
    assert set(MixtureValue((3,), components=2).state_dict()) == {"u", "r", "lower", "log_diagonal", "eps"}
    assert set(MixtureValue((3,), components=2, rank=0).state_dict()) == {"u", "r", "log_diagonal", "eps"}


@pytest.mark.parametrize("rank", [-1, 0])
def test_the_start_of_one_component_is_the_gaussian_map(rank):
    """Bures: from N(0, 1) to N(1, s^2) by x -> 1 + s x in every column, within what 500 rows tell and the guards add."""
    d = 12
    s = torch.linspace(0.5, 2, d, dtype=DOUBLE)
    x, y = draw(500, d), 1 + s * draw(500, d, seed=1)
    value = MixtureValue((d,), components=1, eps=1e-3, rank=rank).double().requires_grad_(False)
    initialise(value, x, y, seed=0)
    fresh = draw(2000, d, seed=2)
    moved = fresh - value.gradient(fresh, torch.zeros(2000, dtype=DOUBLE))
    uvp = (moved - 1 - s * fresh).square().sum(1).mean() / s.square().sum()
    assert float(uvp) < 0.04


@pytest.mark.parametrize("rank", [-1, 0])
def test_components_beyond_the_rows_split_others(rank):
    x, y = draw(30, 2), 2 + draw(30, 2, seed=1)
    few, many = (MixtureValue((2,), components=K, eps=1e-4, rank=rank).double().requires_grad_(False) for K in (30, 1000))
    for value in (few, many):
        initialise(value, x, y, seed=0)
    assert (many.r[30:] != many.r[:30].repeat(33, 1)[:970]).any(1).all(), "no component is a copy"
    zero = torch.zeros(30, dtype=DOUBLE)
    torch.testing.assert_close(many.value(x, zero), few.value(x, zero), atol=0.05, rtol=0.01)
    weight = torch.logsumexp(many.u / many.eps, 0) - torch.logsumexp(few.u / few.eps, 0)
    assert float(weight) == pytest.approx(0, abs=1e-6), "the weights are shared out"
    most, before = ((value.u / value.eps).log_softmax(0).max() for value in (many, few))
    assert float(most - before) == pytest.approx(-math.log(1000 // 30), abs=1e-6), "among as many copies each"


@pytest.mark.parametrize("rank", [1, -2])
def test_covariances_are_full_or_diagonal(rank):
    with pytest.raises(InputError, match=r"^rank: expected"):
        MixtureValue((2,), components=2, rank=rank)


def test_a_condition_is_refused():
    value, x, t = diagonal(2, 2), draw(3, 2), torch.zeros(3, dtype=DOUBLE)
    c = torch.zeros(3).long()
    for f in (lambda: value.value(x, t, c), lambda: value.gradient(x, t, c), lambda: value.price(x, c),
              lambda: value.endpoint(x, t, uniform=t, normal=x, c=c)):  # fmt: skip
        with pytest.raises(InputError, match=r"^c: expected None"):
            f()
