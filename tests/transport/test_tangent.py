"""What is left to gain in the prices of a network, against Jacobians by autograd, small steps of the weights and the flow itself."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from driftway.checks import InputError
from driftway.kernels import mmd2_from_gram
from driftway.transport import Conditions, ImageValue, Problem, ResidualValue, TransportModel, VectorValue, diagnose, dual
from driftway.transport.problem import cost
from driftway.transport.residual import fit_base
from driftway.transport.scaler import Scaler
from driftway.transport.tangent import _diagnosis
from tests.transport.recipes import DOUBLE, draw, mixture, model_of, network, uneven

EPS = 0.4


def plane(seed=0, **options):
    return model_of(network(2, seed=seed), **options), draw(30, 2, seed=seed + 1), uneven(24, seed=seed + 2, dtype=DOUBLE)


def jacobian(value, y, c=None):
    """Rows of gradients of g at y, one backward pass each."""
    value = copy.deepcopy(value).requires_grad_()
    rows = []
    for i in range(len(y)):
        found = torch.autograd.grad(value.price(y, c)[i], list(value.parameters()), allow_unused=True)
        rows.append(torch.cat([torch.zeros_like(p).flatten() if z is None else z.flatten()
                               for p, z in zip(value.parameters(), found, strict=True)]))  # fmt: skip
    return torch.stack(rows)


def centred(G):
    return G - G.mean(0)


def moved(model, change):
    """The model with all its weights changed."""
    value, place = copy.deepcopy(model.value_function), 0
    for parameter in value.parameters():
        parameter.data += change[place : place + parameter.numel()].reshape(parameter.shape)
        place += parameter.numel()
    return replace(model, value_function=value)


def objective(model, x, y, eps=EPS):
    return float(dual.semi_dual(x, y, model.value_function.price(y), eps=eps))


def parts(model, x, y, eps=EPS):
    """P, r and the curvature A, from their definitions."""
    C = cost(x, y) + model.value_function.price(y)
    two = C.sort(1).values[:, :2]
    e, m = eps + float((two[:, 1] - two[:, 0]).mean()), len(y)
    P, Q = (torch.softmax(-C / entropy, 1) for entropy in (eps, e))
    return P, m * P.mean(0) - 1, m / e * (torch.diag(Q.mean(0)) - Q.T @ Q / len(x))


# --- the kernel ---------------------------------------------------------------------------------------------------------


def family(name):
    """A value with two classes, three columns (16 for images), its model and rows."""
    torch.manual_seed(0)
    d = 16 if name == "image" else 3
    kind = {"residual": ResidualValue, "vector": VectorValue, "image": ImageValue}[name]
    shape = {"base": 4, "channels": 1, "height": 4, "width": 4} if name == "image" else {"width": 8, "depth": 2}
    value = kind((d,), classes=2, **shape).double()
    if isinstance(value, ResidualValue):
        fit_base(value, draw(50, d), draw(50, d, seed=1), eps=0.0)
    scaler = Scaler((d,), True, torch.zeros(d, dtype=DOUBLE), torch.ones(d, dtype=DOUBLE), torch.zeros(d, dtype=torch.bool))
    model = TransportModel(value.requires_grad_(False), Problem(eps=EPS), scaler, name, {**shape, "classes": 2},
                           conditions=Conditions(classes=("a", "b")))  # fmt: skip
    return model, draw(15, d, seed=2), draw(10, d, seed=3)


@pytest.mark.parametrize("name", ["residual", "vector", "image"])
@pytest.mark.parametrize(("label", "index"), [(None, -1), ("b", 1)])
def test_the_spectrum_is_that_of_the_jacobian_in_every_family(name, label, index):
    model, x, y = family(name)
    c = torch.full((len(y),), index)
    value = copy.deepcopy(model.value_function)
    if isinstance(value, ResidualValue):
        value.base = mixture(3, components=1)  # does not change: its gradients are no part of K
        value.base.price = lambda y: torch.zeros_like(y[:, 0])
    G = centred(jacobian(value, y, c))
    found = diagnose(model, x, y, label=label)
    assert torch.allclose(found.spectrum.values, torch.linalg.eigvalsh(G @ G.T / len(y)).flip(0).clamp_min(0), rtol=1e-8, atol=1e-12)
    expected = float(dual.semi_dual(x, y, model.value_function.price(y, c), eps=EPS))
    assert found.objective == pytest.approx(expected, rel=1e-10), "the price of the whole, the base included"


def test_the_network_family_against_its_jacobian():
    model, x, y = plane()
    found, G = diagnose(model, x, y, eps=EPS), centred(jacobian(model.value_function, y))
    assert torch.allclose(found.spectrum.matrix(), G @ G.T, rtol=1e-8, atol=1e-10)
    assert torch.allclose(found.residual, parts(model, x, y)[1], atol=1e-12)
    assert float(found.shares.sum()) == pytest.approx(1)
    assert found.outside == pytest.approx(0, abs=1e-9), "95 parameters span 23 directions"


# --- the flow -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_step_along_an_eigenvector_gains_what_is_foretold(k):
    """The weights move by h G'u_k z_k / sqrt(m): J grows by h mu_k z_k^2, and the surrogate D falls as much, to first order."""
    model, x, y = plane()
    found, G, m, h = diagnose(model, x, y, eps=EPS), centred(jacobian(model.value_function, y)), len(y), 1e-6
    u, mu = found.spectrum.vectors[:, k], float(found.spectrum.values[k])
    z = float(found.spectrum.coordinates(found.residual)[k])
    after, before = (moved(model, sign * h * z / math.sqrt(m) * G.T @ u) for sign in (1, -1))
    expected = mu * z**2
    assert (objective(after, x, y) - objective(before, x, y)) / (2 * h) == pytest.approx(expected, rel=1e-5)
    weights = parts(model, x, y)[0]
    loss = [float(dual.dual_loss(one.value_function.price(y), weights)) for one in (after, before)]
    assert (loss[0] - loss[1]) / (2 * h) == pytest.approx(-expected, rel=1e-5)


def test_the_speed_is_that_of_gradient_ascent_and_an_mmd():
    model, x, y = plane()
    found, G, m, h = diagnose(model, x, y, eps=EPS), jacobian(model.value_function, y), len(y), 1e-6
    P, r, _ = parts(model, x, y)
    forth, back = (moved(model, sign * h * G.T @ r / m) for sign in (1, -1))
    assert (objective(forth, x, y) - objective(back, x, y)) / (2 * h) == pytest.approx(found.speed, rel=1e-5)
    K = G @ G.T
    assert float(mmd2_from_gram(K, K, K, weights_x=P.mean(0))) == pytest.approx(found.speed, rel=1e-9)


def test_gains_are_those_of_the_linear_flow():
    """d delta/d tau = K (r - A delta)/m by a matrix exponential, and the quadratic model of J along it."""
    model, x, y = plane()
    found, G, m = diagnose(model, x, y, eps=EPS), centred(jacobian(model.value_function, y)), len(y)
    _, r, A = parts(model, x, y)
    K = G @ G.T / m
    for time in (0.01, 0.3, 10.0):
        generator = torch.zeros(m + 1, m + 1, dtype=DOUBLE)
        generator[:m, :m], generator[:m, m] = -K @ A * time, K @ r * time
        delta = torch.linalg.matrix_exp(generator)[:m, m]
        expected = float(r @ delta - delta @ A @ delta / 2) / m
        assert float((found.gains * -torch.expm1(-2 * time * found.rates)).sum()) == pytest.approx(expected, rel=1e-7)


def test_where_each_end_is_there_twice_the_curvature_is_the_hessian():
    """Then the gap between the two least C + g is 0, and e = eps."""
    model, x, y = plane()
    y = y[:10].repeat(2, 1)
    found, G, m = diagnose(model, x, y, eps=EPS), centred(jacobian(model.value_function, y)), len(y)
    g = model.value_function.price(y)
    H = torch.autograd.functional.hessian(lambda g: dual.semi_dual(x, y, g, eps=EPS), g)
    s = torch.linalg.eigvals(-G @ G.T @ H).real.sort(descending=True).values
    assert len(found.rates) == 9
    assert torch.allclose(found.rates, s[:9], rtol=1e-6)
    assert m == 20


def test_the_quadratic_model_foretells_a_flow_better_than_the_speed():
    """Forty steps of gradient ascent: the weights have moved enough for the curvature to count."""
    model, x, y = plane()
    found, m, h, now = diagnose(model, x, y, eps=20.0), len(y), 5e-4, model
    for _ in range(40):
        P = torch.softmax(-(cost(x, y) + now.value_function.price(y)) / 20, 1)
        now = moved(now, h * jacobian(now.value_function, y).T @ (m * P.mean(0) - 1) / m)
    gained, time = objective(now, x, y, eps=20.0) - objective(model, x, y, eps=20.0), 40 * h
    foretold = float((found.gains * -torch.expm1(-2 * time * found.rates)).sum())
    assert foretold == pytest.approx(gained, rel=0.1)
    assert abs(foretold - gained) < 0.5 * abs(time * found.speed - gained)


# --- chance -------------------------------------------------------------------------------------------------------------


def circle(n, seed):
    angle = 2 * math.pi * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return torch.stack([angle.cos(), angle.sin()], 1)


def flat():
    """A model of constant prices with a tangent kernel: perfect from the circle to itself, by symmetry."""
    value = network(2)
    value.g.head.weight.zero_()
    return model_of(value, noise=False)


def chances(model, n, m, seed):
    """The diagnosis on fresh rows of the circle, its kernel in closed form: only the head's weights have a gradient, the last features."""
    x, y = circle(n, 2 * seed), circle(m, 2 * seed + 1)
    h = model.value_function.g._features(y, None, None)[-1]
    return _diagnosis(h @ h.T, x, y, torch.zeros(m, dtype=DOUBLE), 0.1, 1.0)


def test_what_chance_alone_makes_is_what_it_is_said_to_make():
    """Over 250 pairs of samples the mean speed and b^2 are those foretold within 3.5 standard errors, and hardly a gain is seen."""
    model = flat()
    found = [chances(model, 40, 20, seed) for seed in range(250)]
    assert found[0].speed == pytest.approx(diagnose(model, circle(40, 0), circle(20, 1), eps=0.1).speed, rel=1e-9)
    for own, foretold in (([d.speed for d in found], [d.chance for d in found]),
                          ([float(d.rates @ d.gains) for d in found], [float(d.rates @ d.noise) for d in found])):  # fmt: skip
        own, foretold = torch.tensor(own), torch.tensor(foretold)
        error = float(own.std()) / len(own) ** 0.5
        assert abs(float((own - foretold).mean())) < 3.5 * error
        assert error < 0.09 * float(foretold.mean()), "otherwise a third of the noise could be lost"
    assert sum(int(d.seen.sum()) for d in found) < 100
    assert "nothing is left" in next(d for d in found if not d.seen.any()).verdict


def test_a_shift_of_all_prices_changes_nothing():
    model, x, y = plane()
    other = copy.deepcopy(model)
    other.value_function.g.head.bias += 5
    one, two = diagnose(model, x, y, eps=EPS), diagnose(other, x, y, eps=EPS)
    assert two.objective == pytest.approx(one.objective, abs=1e-9)
    assert torch.allclose(two.gains, one.gains, rtol=1e-6, atol=1e-12)


# --- what users see -----------------------------------------------------------------------------------------------------


def test_times_and_words():
    model, x, y = plane()
    found = diagnose(model, x.repeat(40, 1) + 0.1 * draw(1200, 2, seed=9), y + 2, eps=EPS)
    assert found.left > 0
    assert found.gain(0) == 0
    assert found.gain(found.half_life) == pytest.approx(found.left / 2, rel=1e-6)
    assert found.gain(1e12) == pytest.approx(found.left, rel=1e-9)
    assert 0 < found.dimension < len(y)
    assert f"about {found.left:.2g} of the dual" in found.verdict
    none = diagnose(flat(), circle(60, 0), circle(40, 1), eps=0.1)
    assert none.left == 0
    assert math.isnan(none.half_life)
    assert math.isnan(none.dimension)
    with pytest.raises(InputError, match="time: expected a finite number >= 0"):
        found.gain(-1.0)


def test_units_are_those_of_the_data():
    """Rows, shift and scale by a factor of 3 together: costs by 9, rates in model space the same."""
    model, x, y = plane(noise=False)
    wide = model_of(network(2), noise=False, scale=3.0)
    one, two = diagnose(model, x, y, eps=EPS), diagnose(wide, 3 * x, 3 * y, eps=9 * EPS)
    assert two.objective == pytest.approx(9 * one.objective)
    assert two.speed == pytest.approx(9 * one.speed)
    assert two.left == pytest.approx(9 * one.left)
    assert torch.allclose(two.rates, one.rates)


def test_the_model_is_left_as_it_is():
    model, _, y = plane()
    before = {name: tensor.clone() for name, tensor in model.value_function.state_dict().items()}
    one, two = diagnose(model, None, y, eps=EPS, seed=3), diagnose(model, None, y, eps=EPS, seed=3)
    assert one.objective == two.objective, "the drawn source is a function of the seed"
    assert one.objective != diagnose(model, None, y, eps=EPS, seed=4).objective
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.value_function.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.value_function.parameters())


@pytest.mark.parametrize(("change", "message"), [
    (lambda m, x, y: (model_of(mixture(2)), x, y, {}), "model: expected the family network, residual, vector or image, got mixture"),
    (lambda m, x, y: (m.reverse(), x, y, {}), "model: expected the way that was trained"),
    (lambda m, x, y: (replace(m, scaler=replace(m.scaler, noise=False)), None, y, {}), "x: expected source rows"),
    (lambda m, x, y: (m, x, y, {"eps": None}), "eps: expected a number, as this model does not know its own"),
    (lambda m, x, y: (m, x, y, {"eps": -1.0}), "eps: expected a finite number > 0"),
    (lambda m, x, y: (m, x, y[:7], {}), "y: expected at least 8 rows"),
    (lambda m, x, y: (m, x[:1], y, {}), "x: expected at least 2 rows"),
    (lambda m, x, y: (m, x, y * math.nan, {}), "y: expected finite numbers"),
    (lambda m, x, y: (m, x, y, {"label": "a"}), "label: expected None, as this model was trained without labels"),
])  # fmt: skip
def test_faults(change, message):
    model, x, y, options = change(*plane())
    with pytest.raises(InputError, match=message):
        diagnose(model, x, y, **{"eps": EPS, **options})
