"""A mixture per class: every row meets the part of its own class, in any order, and null meets the whole law."""

import pytest
import torch

from driftway.checks import InputError
from driftway.transport.labelled import LabelledMixture, initialise_labelled
from driftway.transport.value import EndpointLaw

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def value():
    value = LabelledMixture((2,), components=3, classes=4, eps=0.3).double().requires_grad_(False)
    value.set_eps(0.3)
    for seed, parameter in enumerate(value.parameters()):
        parameter.copy_(0.4 * draw(*parameter.shape, seed=seed))
    return value


METHODS = {
    "value": lambda v, x, t, *c: v.value(x, t, *c), "gradient": lambda v, x, t, *c: v.gradient(x, t, *c),
    "price": lambda v, x, t, *c: v.price(x, *c), "log_c": lambda v, x, t, *c: v.log_c(x, *c), "log_v": lambda v, x, t, *c: v.log_v(x, *c),
    "endpoint": lambda v, x, t, *c: v.endpoint(x, t, uniform=(t + 0.3) % 1, normal=x.flip(0), **({"c": c[0]} if c else {})),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_each_row_meets_its_own_part(name, value):
    f, x, t = METHODS[name], draw(50, 2, seed=9), torch.linspace(0, 0.9, 50, dtype=DOUBLE)
    c = torch.randint(-1, 4, (50,), generator=torch.Generator().manual_seed(0))
    found = f(value, x, t, c)
    for k in range(-1, 4):
        whole = f(value.part(k), x, t)
        torch.testing.assert_close(found[c == k], whole[c == k], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(f(value, x, t), f(value.part(-1), x, t))
    assert isinstance(value, EndpointLaw)


def test_no_rows_are_no_rows(value):
    empty = torch.zeros(0, 2, dtype=DOUBLE)
    assert value.gradient(empty, empty[:, 0], torch.zeros(0).long()).shape == (0, 2)
    assert value.price(empty, torch.zeros(0).long()).shape == (0,)


def test_one_entropy_for_all_parts(value):
    value.set_eps(0.07)
    assert [float(value.part(k).eps) for k in range(-1, 4)] == [pytest.approx(0.07)] * 5
    assert float(value.eps) == pytest.approx(0.07)


def test_a_class_is_trained_on_its_own_rows_alone(value):
    value.requires_grad_()
    x, c = draw(20, 2), torch.tensor([0, 2] * 10)
    (value.log_c(x, c) - value.log_v(x, c)).mean().backward()
    assert [value.part(k).r.grad is not None for k in range(-1, 4)] == [False, True, False, True, False]


@pytest.mark.parametrize("source", [False, True])
def test_the_start_sends_each_class_to_its_own_place(source):
    """Four classes in four corners: the mean end of class k is its corner, and that of null is their mean."""
    corners = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]], dtype=DOUBLE)
    labels = torch.arange(400) % 4
    x, y = draw(300, 2), corners[labels] + 0.3 * draw(400, 2, seed=1)
    value = LabelledMixture((2,), components=4, classes=4, eps=0.01).double().requires_grad_(False)
    starts = torch.arange(300) % 4 if source else None
    initialise_labelled(value, x, y, labels, seed=0, source_labels=starts)
    fresh, zero = draw(500, 2, seed=5), torch.zeros(500, dtype=DOUBLE)
    for k, corner in [*enumerate(corners), (-1, corners.mean(0))]:
        ends = fresh - value.gradient(fresh, zero, torch.full((500,), k))
        assert (ends.mean(0) - corner).abs().max() < (0.3 if k >= 0 else 0.8)


NO_CLASSES = [torch.tensor([0, 4]), torch.tensor([-2, 0]), torch.zeros(2), torch.zeros(3).long(), torch.tensor([True, False])]


@pytest.mark.parametrize("c", NO_CLASSES)
def test_conditions_that_are_no_classes_are_named(c, value):
    with pytest.raises(InputError, match=r"^c: expected class"):
        value.price(draw(2, 2), c)


def test_a_class_without_rows_is_named(value):
    with pytest.raises(InputError, match=r"^labels: expected rows of every class, got no row of class 3"):
        initialise_labelled(value, draw(9, 2), draw(9, 2), torch.arange(9) % 3, seed=0)
