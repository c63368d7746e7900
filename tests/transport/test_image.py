"""The inner-product potentials: their gradient is the derivative of their value, and an untrained policy is the linear one."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from driftway.checks import InputError
from driftway.transport.image import ImageValue
from driftway.transport.inner import InnerProduct, VectorValue
from driftway.transport.stream import generator

IMAGES = {"8x8": (1, 8, 8), "9x7": (1, 9, 7), "28x28": (1, 28, 28), "rgb": (3, 6, 8)}
CONDITIONS = {"none": {}, "class": {"classes": 3}, "vector": {"columns": 2}}
FAMILIES = ["image", "vector"]


def build(family: str, *, seed: int = 0, trained: bool = True, shape: tuple[int, int, int] = (1, 8, 8), **options: int) -> InnerProduct:
    """A value in float64 whose weights, if trained, are all random, the zero-initialised ones too."""
    own = generator(seed, family)
    if family == "image":
        c, h, w = shape
        V: InnerProduct = ImageValue((c * h * w,), channels=c, height=h, width=w, base=4, **options)
    else:
        V = VectorValue((shape[0] * shape[1] * shape[2],), width=12, depth=3, **options)
    V = V.double()
    for p in V.parameters() if trained else []:
        nn.init.normal_(p, std=0.2, generator=own)
    return V


def states(V: InnerProduct, n: int = 5, *, kind: str = "none") -> tuple[Tensor, Tensor, Tensor | None]:
    own = generator(1, "states")
    x, t = torch.randn(n, *V.event, generator=own).double(), torch.rand(n, generator=own).double()
    labels, vectors = torch.arange(n) % 4 - 1, torch.randn(n, 2, generator=own).double()
    vectors[1] = float("nan")
    return x, t, {"none": None, "class": labels, "vector": vectors}[kind]


def derivative(V: InnerProduct, x: Tensor, t: Tensor, c: Tensor | None) -> Tensor:
    z = x.clone().requires_grad_()
    return torch.autograd.grad(V.value(z, t, c).sum(), z)[0]


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_the_derivative_of_the_value(family, kind):
    V = build(family, **CONDITIONS[kind])
    x, t, c = states(V, kind=kind)
    value, gradient = V.value_and_gradient(x, t, c)
    torch.testing.assert_close(value, V.value(x, t, c))
    torch.testing.assert_close(gradient, derivative(V, x, t, c))
    e, h = torch.randn(x.shape, generator=generator(2, "direction")).double(), 1e-5
    torch.testing.assert_close((V.value(x + h * e, t, c) - V.value(x - h * e, t, c)) / (2 * h), (gradient * e).sum(1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_every_shape(name):
    V = build("image", shape=IMAGES[name])
    x, t, _ = states(V, 2)
    torch.testing.assert_close(V.gradient(x, t), derivative(V, x, t, None))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_gradient_is_the_derivative_of_the_loss(family):
    """Against finite differences in the parameters."""
    V = build(family, classes=3)
    x, t, c = states(V, kind="class")
    V.value_and_gradient(x, t, c)[1].square().sum().backward()
    for name, p in V.named_parameters():
        if name.startswith(("g.", "b.")) or p.grad is None:
            assert name.startswith(("g.", "b."))
            continue
        i, h, losses = int(p.grad.abs().argmax()), 1e-5, []
        for sign in (1, -2, 1):
            with torch.no_grad():
                p.view(-1)[i] += sign * h
            losses.append(V.gradient(x, t, c).square().sum().item())
        slope = float(p.grad.view(-1)[i])
        assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_policy_is_the_regression_between_independent_normal_laws(family):
    V = build(family, trained=False)
    x, t, _ = states(V)
    covariance, variance = t - (1 - t), (1 - t) ** 2 + t**2  # of X_1 - X_0 with X_t; of X_t
    torch.testing.assert_close(-V.gradient(x, t), (covariance / variance)[:, None] * x)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trained", [False, True])
def test_training_at_the_origin_stays_finite(family, trained):
    V = build(family, trained=trained)
    x, t, _ = states(V)
    (V.value_and_gradient(0 * x, t)[1] - 1).square().sum().backward()
    gradients = [p.grad for n, p in V.named_parameters() if not n.startswith(("g.", "b."))]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_without_a_graph(family):
    V = build(family)
    x, t, _ = states(V)
    with torch.no_grad():
        value, gradient = V.value_and_gradient(x, t)
    assert not value.requires_grad
    assert not gradient.requires_grad
    torch.testing.assert_close(gradient, derivative(V, x, t, None))
    assert not x.requires_grad


@pytest.mark.parametrize("kind", ["class", "vector"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_condition_is_the_null_row(family, kind):
    V = build(family, **CONDITIONS[kind])
    x, t, c = states(V, kind=kind)
    null = 0 * c - 1 if kind == "class" else float("nan") * c
    for f in (V.value, V.gradient, lambda x, t, c: V.price(x, c)):
        torch.testing.assert_close(f(x, t, null), f(x, t, None))
        same = torch.isclose(f(x, t, c), f(x, t, None)).reshape(5, -1).all(1)
        assert same.tolist() == ([i % 4 == 0 for i in range(5)] if kind == "class" else [i == 1 for i in range(5)])


def test_wrong_conditions_and_shapes_are_refused():
    with pytest.raises(InputError, match="columns"):
        build("vector", classes=2, columns=2)
    with pytest.raises(InputError, match="event"):
        ImageValue((65,), channels=1, height=8, width=8)
    V = build("image")
    x, t, _ = states(V)
    with pytest.raises(InputError, match=r"^c:"):
        V.value(x, t, torch.zeros(5, dtype=torch.int64))


def test_inactive_pixels_are_zeros_of_the_image():
    """A value over the active pixels is the value over all pixels, at images that are 0 elsewhere, with the columns of those."""
    full = build("image")
    active = torch.rand(64, generator=generator(3, "active")) < 0.6
    part = ImageValue((int(active.sum()),), channels=1, height=8, width=8, base=4).double()
    part.U.load_state_dict(full.U.state_dict())
    part.b.load_state_dict(full.b.state_dict())
    with pytest.raises(InputError, match="active"):
        part.activate(~active)
    part.activate(active)
    x, t, _ = states(full)
    x = x * active
    torch.testing.assert_close(part.value(x[:, active], t), full.value(x, t))
    torch.testing.assert_close(part.gradient(x[:, active], t), full.gradient(x, t)[:, active])


def test_a_value_returns_from_its_tensors():
    V, other = build("image", classes=3, shape=(1, 4, 4)), build("image", classes=3, shape=(1, 4, 4), seed=1)
    x, t, c = states(V, kind="class")
    assert not torch.allclose(V.value(x, t, c), other.value(x, t, c))
    V.prepare(precision="bfloat16")
    other.load_state_dict(V.state_dict())
    V.prepare()
    torch.testing.assert_close(V.gradient(x, t, c), other.gradient(x, t, c))
    torch.testing.assert_close(V.price(x, c), other.price(x, c))


@pytest.mark.parametrize("train", [False, True])
def test_half_precision_is_close(train):
    V = build("image").float()
    x, t, _ = states(V)
    x, t = x.float(), t.float()
    exact = V.gradient(x, t)
    V.prepare(precision="bfloat16")
    with torch.set_grad_enabled(train):
        half = V.gradient(x, t)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).norm() / exact.norm() < 0.05
    if train:
        half.square().sum().backward()


@pytest.mark.skipif(torch.__version__ < "2.13", reason="older ones compile another function")
def test_a_compiled_value_is_the_same_function(monkeypatch):
    """With the translation but without the C++ step, which takes minutes; a deep copy runs on its own weights."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    V = build("image", shape=(1, 4, 4), levels=1)
    x, t, _ = states(V)
    V.gradient(x, t).square().sum().backward()
    expected, slopes = V.gradient(x, t), [p.grad for p in V.U.parameters()]
    V.zero_grad()
    V.prepare(compiled=True)
    gradient = V.gradient(x, t)
    torch.testing.assert_close(gradient, expected)
    gradient.square().sum().backward()
    torch.testing.assert_close([p.grad for p in V.U.parameters()], slopes)
    other = copy.deepcopy(V)
    nn.init.zeros_(other.U.head.weight)
    assert not torch.allclose(other.gradient(x, t), expected)
