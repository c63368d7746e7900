"""The laws of a value, for every family and shape, and the exact laws of the closed-form mixture.

Tolerances: two evaluations of one formula in another order differ by rounding, `ROUNDING` times the scale of the numbers. Quadrature is
on trapezoid grids, exact to rounding for these Gaussian integrands. Statistics are held to five standard errors with fixed seeds.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from driftway.transport import MixtureValue, NetworkValue, Value
from driftway.transport.value import EndpointLaw
from tests.closed_forms.answers import DOUBLE, gaussian_pair, symmetric_bridge

ROUNDING = {torch.float32: 2e-4, torch.float64: 1e-10}
TIMES = (0.0, 0.35, 0.8)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def network(event: tuple[int, ...], *, heads: int, depth: int) -> Value:
    """A network far from its initialisation: pieces that cross, a sharp soft minimum."""
    value = NetworkValue(event, width=11, depth=depth, heads=heads)
    with torch.no_grad():
        for i, parameter in enumerate(value.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=i) * (0.7 if parameter.ndim == 2 else 0.4))
        value.V.log_beta.fill_(0.8)
    return value


def mixture(event: tuple[int, ...], *, components: int, eps: float = 0.3) -> MixtureValue:
    """Components of unlike weights, places, widths and axes."""
    value, d = MixtureValue(event, components=components, eps=eps), math.prod(event)
    with torch.no_grad():
        value.double()
        value.eps.fill_(eps)
        value.u.copy_(0.3 * draw(components, seed=1))
        value.r.copy_(draw(components, d, seed=2))
        value.lower.copy_(0.4 * draw(components, d, d, seed=3))
        value.log_diagonal.copy_(0.3 * draw(components, d, seed=4) - 0.3)
    return value


FAMILIES: dict[str, Callable[[], Value]] = {
    "network-1-head": lambda: network((3,), heads=1, depth=2),
    "network-2-heads-shallow": lambda: network((1,), heads=2, depth=1),
    "network-9-heads-deep": lambda: network((2,), heads=9, depth=4),
    "network-image": lambda: network((2, 3), heads=4, depth=3),
    "mixture-1": lambda: mixture((1,), components=3),
    "mixture-2": lambda: mixture((2,), components=4),
    "mixture-5": lambda: mixture((5,), components=3),
    "mixture-alone": lambda: mixture((2,), components=1),
    "mixture-image": lambda: mixture((2, 2), components=2),
}
every_value = pytest.mark.parametrize("name", FAMILIES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def states(value: Value, dtype: torch.dtype = DOUBLE, n: int = 12) -> tuple[Tensor, Tensor]:
    """Rows and their times, the ends of [0, 1) among them."""
    t = torch.linspace(0, 0.98, n, dtype=DOUBLE)
    return (1.5 * draw(n, *value.event, seed=7)).to(dtype), t.to(dtype)


def slope(value: Value, x: Tensor, t: Tensor, *, create_graph: bool = False) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(value.value(x, t).sum(), x, create_graph=create_graph)[0]


def close(found: Tensor, known: Tensor, tolerance: float) -> None:
    assert found.shape == known.shape
    scale = float(known.abs().max()) or 1.0
    assert float((found - known).abs().max()) <= tolerance * scale


# --- every value --------------------------------------------------------------------------------------------------------


@every_value
@every_dtype
def test_the_gradient_is_that_of_the_value(name, dtype):
    value = FAMILIES[name]().to(dtype)
    x, t = states(value, dtype)
    with torch.inference_mode():
        found = value.gradient(x, t)
    assert found.dtype == dtype
    close(found, slope(value, x, t), ROUNDING[dtype])


@every_value
def test_the_gradient_predicts_differences_of_the_value(name):
    """Central differences: the error is h^2 times a third derivative, or h times the jump of a second one."""
    value = FAMILIES[name]().double().requires_grad_(False)
    x, t = states(value)
    h, gradient = 1e-5, value.gradient(x, t)
    for seed in range(3):
        step = draw(*x.shape, seed=20 + seed)
        rise = (value.value(x + h * step, t) - value.value(x - h * step, t)) / (2 * h)
        close(rise, (gradient * step).flatten(1).sum(1), 1e-5)


@every_value
def test_training_on_the_gradient_is_training_on_the_slope(name):
    """The hand-written gradient has the same derivative in the parameters as the slope that autograd takes of the value."""
    value = FAMILIES[name]().double()
    x, t = states(value)
    weight = draw(*x.shape, seed=5)
    parameters = [p for n, p in value.named_parameters() if not n.startswith("g.")]
    ours = torch.autograd.grad((weight * value.gradient(x, t)).sum(), parameters, allow_unused=True)
    known = torch.autograd.grad((weight * slope(value, x, t, create_graph=True)).sum(), parameters, allow_unused=True)
    scale, compared = max(float(b.abs().max()) for b in known if b is not None), 0
    for a, b in zip(ours, known, strict=True):
        a, b = (torch.zeros(()) if z is None else z for z in (a, b))
        assert float((a - b).abs().max()) <= 1e-10 * scale
        compared += float(b.abs().max()) > 1e-6 * scale
    assert compared >= 3


@every_value
def test_rows_do_not_mix(name):
    value = FAMILIES[name]().double().requires_grad_(False)
    x, t = states(value)
    for i in (0, 5, 11):
        close(value.value(x[i : i + 1], t[i : i + 1]), value.value(x, t)[i : i + 1], 1e-12)
        close(value.gradient(x[i : i + 1], t[i : i + 1]), value.gradient(x, t)[i : i + 1], 1e-12)
        close(value.price(x[i : i + 1]), value.price(x)[i : i + 1], 1e-12)


@every_value
def test_many_rows_are_as_few(name):
    """Rows may be worked on in blocks, of any size, with and without a graph."""
    value = FAMILIES[name]().double().requires_grad_(False)
    n = 20_001
    x, t = draw(n, *value.event, seed=3), torch.linspace(0, 0.98, n, dtype=DOUBLE)
    some = torch.tensor([0, 4095, 4096, 8191, 8192, n - 1])
    few = value.gradient(x[some], t[some])
    with torch.no_grad():
        close(value.gradient(x, t)[some], few, 1e-12)
    close(value.gradient(x[:9000], t[:9000])[some[:5]], few[:5], 1e-12)


@every_value
def test_single_precision_is_double_precision_rounded(name):
    value = FAMILIES[name]().double().requires_grad_(False)
    x, t = states(value)
    known = value.value(x, t), value.gradient(x, t), value.price(x)
    value.float()
    x, t = x.float(), t.float()
    for found, exact in zip((value.value(x, t), value.gradient(x, t), value.price(x)), known, strict=True):
        assert found.dtype == torch.float32
        close(found.double(), exact, ROUNDING[torch.float32])


def test_a_perceptron_gives_value_and_gradient_together():
    value = network((3,), heads=5, depth=2).double().requires_grad_(False)
    x, t = states(value)
    V, gradient = value.V.value_and_gradient(x, t)
    close(V, value.value(x, t), 1e-12)
    close(gradient, slope(value, x, t), 1e-10)


def test_the_value_is_a_soft_minimum_of_its_pieces():
    """It lies below the least piece, by at most log(K)/beta: so it has kinks where pieces cross."""
    value = network((2,), heads=9, depth=2).double().requires_grad_(False)
    x, t = states(value, n=200)
    pieces = -value.V.head(value.V._features(x, t, None)[-1])
    below, beta = pieces.amin(1) - value.value(x, t), float(value.V.log_beta.exp())
    assert (below >= -1e-12).all()
    assert (below <= math.log(9) / beta + 1e-12).all()
    assert len(pieces.argmin(1).unique()) > 1


def test_the_end_point_law_belongs_to_the_mixture_alone():
    assert isinstance(mixture((2,), components=2), EndpointLaw)
    assert not isinstance(network((2,), heads=2, depth=1), EndpointLaw)


# --- the mixture, against quadrature ------------------------------------------------------------------------------------


def grid(d: int, reach: float = 9.0) -> tuple[Tensor, float]:
    """Nodes and the log of their cell's volume."""
    m = 4001 if d == 1 else 361
    line = torch.linspace(-reach, reach, m, dtype=DOUBLE)
    return torch.cartesian_prod(*[line] * d).reshape(-1, d), d * math.log(2 * reach / (m - 1))


def kernel(x: Tensor, y: Tensor, variance: float) -> Tensor:
    """Log-density at y of the Gaussian around each x."""
    eye = torch.eye(x.shape[1], dtype=DOUBLE)
    return MultivariateNormal(x[:, None], variance * eye).log_prob(y[None])


def law(value: MixtureValue) -> tuple[MixtureSameFamily, Tensor]:
    """The terminal mixture as a distribution, and the logarithm of its mass."""
    eps = float(value.eps)
    parts = MultivariateNormal(value.r, scale_tril=math.sqrt(eps) * value.L)
    return MixtureSameFamily(Categorical(logits=value.u / eps), parts), torch.logsumexp(value.u / eps, 0)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize(("s", "t"), [(0.0, 1.0), (0.35, 1.0), (0.9, 1.0), (0.0, 0.5), (0.2, 0.3)])
def test_a_mixture_solves_the_backup_between_any_two_times(d, s, t):
    """exp(-V_s/eps) is exp(-V_t/eps) seen through the Gaussian kernel of variance eps (t-s)."""
    value = mixture((d,), components=3).requires_grad_(False)
    x, eps = draw(5, d, seed=8), float(value.eps)
    y, log_cell = grid(d)
    later = value.value(y, y.new_full((len(y),), t))
    known = -eps * torch.logsumexp(kernel(x, y, eps * (t - s)) - later / eps + log_cell, 1)
    torch.testing.assert_close(value.value(x, x.new_full((5,), s)), known, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_price_is_the_value_at_the_end(d):
    value = mixture((d,), components=4).requires_grad_(False)
    y = 2 * draw(30, d, seed=3)
    close(value.price(y), value.value(y, torch.ones(30, dtype=DOUBLE)), 1e-10)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_v_is_the_density_of_the_mixture(d):
    value = mixture((d,), components=4).requires_grad_(False)
    y = 2 * draw(30, d, seed=3)
    known, mass = law(value)
    close(value.log_v(y), known.log_prob(y) + mass, 1e-10)


@pytest.mark.parametrize("d", [1, 2])
def test_log_c_is_the_integral_of_the_tilted_mixture(d):
    """c(x) = int exp(x.y/eps) v(y) dy."""
    value = mixture((d,), components=3).requires_grad_(False)
    x, (y, log_cell) = draw(6, d, seed=9), grid(d)
    known, mass = law(value)
    tilt = x @ y.T / float(value.eps)
    torch.testing.assert_close(value.log_c(x), torch.logsumexp(tilt + known.log_prob(y) + mass + log_cell, 1), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_c_and_the_first_value_differ_by_a_parabola(d):
    """They are computed on different paths: monomials for training, eigenvectors for acting."""
    value = mixture((d,), components=4).requires_grad_(False)
    x = 2 * draw(40, d, seed=10)
    offset = value.log_c(x) - (x.square().sum(1) / 2 - value.value(x, torch.zeros(40, dtype=DOUBLE))) / float(value.eps)
    torch.testing.assert_close(offset, offset.mean().expand_as(offset), atol=1e-9, rtol=0)


def test_adding_to_every_weight_shifts_the_value_alone():
    value = mixture((2,), components=4).requires_grad_(False)
    x, t = states(value)
    before, gradient = value.value(x, t), value.gradient(x, t)
    value.u += 0.37
    torch.testing.assert_close(value.value(x, t), before - 0.37)
    torch.testing.assert_close(value.gradient(x, t), gradient)


# --- the end-point law --------------------------------------------------------------------------------------------------


def ends(value: MixtureValue, x: Tensor, t: float, n: int, seed: int = 0) -> Tensor:
    """n draws of X_1 given X_t = x, one state."""
    rows = x.expand(n, -1)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(n, dtype=DOUBLE, generator=generator)
    return value.endpoint(rows, rows.new_full((n,), t), uniform=uniform, normal=draw(n, x.shape[-1], seed=seed + 100))


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("d", [1, 2, 5])
def test_drawn_ends_have_the_mean_and_covariance_that_the_value_implies(d, t):
    """grad V = (x - E[X_1|x])/(1-t), and Cov(X_1|x) = eps (1-t) (I - (1-t) hess V), the Hessian by autograd."""
    value = mixture((d,), components=3, eps=0.8).requires_grad_(False)
    n, eps = 60_000, float(value.eps)
    for seed in (0, 1):
        x = draw(1, d, seed=30 + seed)
        time = x.new_full((1,), t)
        y = ends(value, x, t, n, seed)
        mean = x - (1 - t) * value.gradient(x, time)
        z = (y.mean(0) - mean[0]) / (y.std(0) / n**0.5)
        assert z.abs().max() < 5
        hessian = torch.autograd.functional.hessian(lambda p, time=time: value.value(p[None], time)[0], x[0])
        cov = eps * (1 - t) * (torch.eye(d, dtype=DOUBLE) - (1 - t) * hessian)
        centred = y - mean
        products = centred[:, :, None] * centred[:, None, :]
        z = (products.mean(0) - cov) / (products.std(0) / n**0.5)
        assert z.abs().max() < 5


@pytest.mark.parametrize("t", [*TIMES, 0.99])
def test_drawn_ends_follow_the_kernel_times_the_terminal_weight(t):
    """Chi-square of 24 equally likely bins of the density N(y; x, eps (1-t)) exp(-V_1(y)/eps), normalised on a grid."""
    value = mixture((1,), components=3, eps=0.8).requires_grad_(False)
    n, bins = 20_000, 24
    x = draw(1, 1, seed=40)
    y, _ = grid(1)
    log_density = (kernel(x, y, float(value.eps) * (1 - t)) - value.value(y, torch.ones(len(y), dtype=DOUBLE)) / value.eps)[0]
    cdf = log_density.softmax(0).cumsum(0)
    sample = ends(value, x, t, n, seed=3)[:, 0]
    # the grid's cells are closed on the right by half a step
    below = torch.searchsorted(y[:, 0] + (y[1, 0] - y[0, 0]) / 2, sample)
    counts = torch.bincount((cdf[below] * bins).long().clamp(max=bins - 1), minlength=bins).double()
    edges = (cdf * bins).long().clamp(max=bins - 1)
    masses = torch.zeros(bins, dtype=DOUBLE).index_add(0, edges, log_density.softmax(0))
    assert stats.chisquare(counts.numpy(), n * masses.numpy()).pvalue > 1e-4


def test_an_end_is_a_function_of_its_own_variates():
    value = mixture((2,), components=3).requires_grad_(False)
    x, t = states(value, n=40)
    uniform, normal = torch.rand(40, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)), draw(40, 2, seed=1)
    y = value.endpoint(x, t, uniform=uniform, normal=normal)
    i = 17
    close(value.endpoint(x[i : i + 1], t[i : i + 1], uniform=uniform[i : i + 1], normal=normal[i : i + 1]), y[i : i + 1], 1e-10)
    moved = value.endpoint(x, t, uniform=uniform, normal=normal + torch.eye(40, 2, dtype=DOUBLE))
    assert (moved[2:] == y[2:]).all()
    assert (moved[:2] != y[:2]).any(1).all()


# --- one component is the Gaussian bridge -------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [gaussian_pair(1, sigma=0.7), gaussian_pair(3, sigma=1.3, seed=2), symmetric_bridge(2)])
def test_one_component_is_the_gaussian_bridge(pair):
    """S is the Jacobian of x -> E[X_1|X_0 = x] and r its offset; the values agree up to one constant for all x and t."""
    d = len(pair.m0)
    S = torch.autograd.functional.jacobian(lambda x: pair.end_mean(x[None], 0.0)[0], pair.m0)
    value = MixtureValue((d,), components=1).double().requires_grad_(False)
    L = torch.linalg.cholesky(S)
    value.eps.fill_(pair.eps)
    value.r[0], value.lower[0], value.log_diagonal[0] = pair.m1 - S @ pair.m0, L.tril(-1), L.diagonal().log()
    x = 2 * draw(9, d, seed=4)
    offsets = []
    for t in (0.0, 0.3, 0.7, 0.95):
        time = x.new_full((9,), t)
        close(value.gradient(x, time), pair.gradient(x, t), 1e-9)
        offsets.append(value.value(x, time) - pair.value(x, t))
    y = pair.m1 + draw(9, d, seed=5)
    offsets.append(value.price(y) - (pair.g(y) - pair.eps * pair.log_target(y)))
    for a, b in itertools.pairwise(offsets):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=0)
    assert float(offsets[0].std()) < 1e-8
