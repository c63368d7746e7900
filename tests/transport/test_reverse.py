"""The way back: the same straight paths from the other end, with the value -V_{1-t} and the prices -V_0."""

import warnings

import ot
import pytest
import torch

from driftway.checks import InputError
from driftway.transport import Guidance, Settings, TransportModel, certificate, fit
from driftway.transport.guidance import Reversed
from tests.closed_forms.answers import gaussian_pair
from tests.transport.recipes import DOUBLE, SMALL, draw, mixture, model_of, network, rng, uneven
from tests.transport.test_guidance import conditional


def exact(x, y):
    """W2^2/2 by POT's own command."""
    return float(ot.emd2([], [], ot.dist(x.numpy(), y.numpy()) / 2))  # pyright: ignore[reportArgumentType]


PAIR = gaussian_pair(2, seed=1)
QUICK = Settings(batch=128, candidates=256, width=32, depth=2, heads=8, components=2, mixture_batch=512)
STEPS = {"network": 300, "mixture": 200}


@pytest.fixture(scope="module", params=STEPS)
def gaussian(request):
    x, y = PAIR.source(1500, generator=rng(1)), PAIR.target(1500, generator=rng(2))
    return fit(x, y, family=request.param, settings=QUICK, steps=STEPS[request.param])


def unexplained(found, known):
    return float((found - known).square().sum(1).mean() / known.var(0).sum())


def test_there_and_back_is_where_one_was(gaussian):
    x = PAIR.source(500, generator=rng(3))
    back = gaussian.reverse().sample(gaussian.sample(x, steps=8, rule="explicit"), steps=8)
    assert unexplained(back, x) < 0.02
    y = PAIR.target(500, generator=rng(4))
    again = gaussian.sample(gaussian.reverse().sample(y, steps=8), steps=8, rule="explicit")
    assert unexplained(again, y) < 0.02
    assert unexplained(gaussian.reverse().sample(y, steps=1), y) > 0.1, "it moves"


def test_the_certificate_of_the_way_back_is_a_true_bracket(gaussian):
    x, y = PAIR.source(300, generator=rng(5)), PAIR.target(250, generator=rng(6))
    known = exact(y, x)
    found = certificate(gaussian.reverse(), y, x)
    assert found.lower <= known + 1e-9
    assert found.upper >= known - 1e-9
    assert (found.n, found.m) == (250, 300)
    assert found.gap < 0.25


def test_data_are_encoded_as_a_standard_normal():
    """From uneven rows back to noise: mean, covariance and tails are those of a standard normal."""
    y = uneven(2000)
    model = fit(None, y, family="mixture", settings=Settings(components=16, mixture_batch=512), steps=250)
    z = model.reverse().sample(uneven(2000, seed=50), steps=8).double()
    assert float(z.mean(0).abs().max()) < 0.15
    assert float((z.T.cov() - torch.eye(2)).abs().max()) < 0.2
    assert float((z.abs() > 2).double().mean()) == pytest.approx(0.0455, abs=0.03)
    centred = z - z.mean(0)
    assert float((centred.pow(4).mean(0) / centred.var(0) ** 2 - 3).abs().max()) < 0.8, "kurtosis"


@pytest.mark.parametrize("value", [mixture(2), network(2)], ids=["mixture", "network"])
@pytest.mark.parametrize("noise", [True, False])
def test_its_values_and_prices_are_those_of_the_way_there(value, noise):
    model = model_of(value, noise=noise, shift=2.0, scale=3.0)
    back, x = model.reverse(), 2 + 3 * draw(20, 2)
    for t in (0.0, 0.3, 0.75):
        torch.testing.assert_close(back.value(x, 1 - t), -model.value(x, t))
    torch.testing.assert_close(back.price(x), -model.value(x, 0.0))
    assert back.sigma == model.sigma
    assert torch.equal(back.reverse().price(x), model.price(x))
    z, t = draw(20, 2, seed=3).requires_grad_(), torch.linspace(0.1, 1, 20, dtype=DOUBLE)
    own = Reversed(value)
    (slope,) = torch.autograd.grad(own.value(z, t).sum(), z)
    torch.testing.assert_close(own.gradient(z.detach(), t), slope)


@pytest.mark.parametrize("value", [mixture(2), network(2)], ids=["mixture", "network"])
@pytest.mark.parametrize("noise", [True, False])
def test_an_untrained_way_back_has_a_true_certificate(value, noise):
    model = model_of(value, noise=noise, shift=2.0, scale=3.0)
    x, y = draw(40, 2) if noise else 2 + 3 * draw(40, 2), 1 + 2 * draw(50, 2, seed=1)
    known = exact((y - 2) / 3 if noise else y, x)
    found = certificate(model.reverse(), y, x)
    assert found.lower <= known + 1e-9
    assert found.upper >= known - 1e-9


@pytest.mark.parametrize("noise", [True, False])
def test_one_step_back_is_its_formula(noise):
    """From data y: x = y - grad(-V_1)(y), in the units of the source."""
    value = network(2)
    model = model_of(value, noise=noise, shift=2.0, scale=3.0)
    y = draw(9, 2, seed=2)
    z = (y - 2) / 3
    end = z + value.gradient(z, torch.ones(9, dtype=DOUBLE))
    torch.testing.assert_close(model.reverse().sample(y, steps=1), end if noise else 2 + 3 * end)


@pytest.mark.parametrize("data", [True, False])
def test_constant_columns_go_back_alike_in_samples_and_paths(data):
    y = torch.cat([uneven(100), torch.full((100, 1), 7.0)], 1)
    x = draw(90, 3, seed=3, dtype=torch.float32) if data else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = fit(x, y, family="network", settings=SMALL, steps=3).reverse()
    z = back.sample(y, steps=5)
    assert z.shape == y.shape
    path = back.path(y, steps=5)
    torch.testing.assert_close(path.states[0], y)
    if data:
        torch.testing.assert_close(path.states[-1], z)


def test_labels_and_guidance_work_on_the_way_back():
    model = conditional("network", noise=False)
    back, y = model.reverse(), draw(9, 2, seed=8)
    c, one = torch.full((9,), 1), torch.ones(9, dtype=DOUBLE)
    whole = model.value_function.gradient(y, one, torch.full((9,), -1))
    end = y + whole + 2 * (model.value_function.gradient(y, one, c) - whole)
    torch.testing.assert_close(back.sample(y, steps=1, label="b", guidance=2.0), end)
    torch.testing.assert_close(back.sample(y, steps=1, on_step=lambda moment: Guidance("b", 2.0)), end)


def test_a_reversed_model_survives_its_folder(tmp_path):
    back, y = model_of(mixture(2), shift=2.0, scale=3.0).reverse(), draw(9, 2)
    back.save(tmp_path)
    again = TransportModel.load(tmp_path)
    assert again.backward
    assert torch.equal(again.sample(y, steps=3), back.sample(y, steps=3))


def test_what_has_no_way_back_is_named():
    with pytest.raises(InputError, match=r"^reverse: expected a model with sigma = 0, got sigma = 0.5; train the way back"):
        model_of(mixture(2), sigma=0.5).reverse()
    back = model_of(mixture(2)).reverse()
    with pytest.raises(InputError, match=r"^x0: expected source samples.*got a count \(5\)"):
        back.sample(5)
    with pytest.raises(InputError, match=r"^rule: expected explicit or proximal"):
        back.sample(draw(3, 2), rule="endpoint")
