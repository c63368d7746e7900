"""Named tensors obey the laws of a vector space, and a module's tied weights are one of its coordinates."""

import pytest
import torch
from torch import nn

from driftway.checks import InputError
from driftway.params import aligned, combine, contained, dot, parameters


def vector(seed, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(3, 2, generator=generator, dtype=dtype), "b": torch.randn(3, generator=generator, dtype=dtype)}


def flat(a):
    return torch.cat([t.flatten() for t in a.values()])


def tied():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5))
    model[1].weight = model[0].weight
    return model


def test_combinations_are_those_of_the_flattened_vectors():
    a, b = vector(0), vector(1)
    copies = {name: t.clone() for name, t in a.items()}
    torch.testing.assert_close(flat(combine([2, -0.5], [a, b])), 2 * flat(a) - 0.5 * flat(b))
    assert all(torch.equal(a[name], copies[name]) for name in a)


def test_the_inner_product_does_not_overflow_in_half_precision_and_keeps_the_order_of_names_out():
    a, b = vector(0), vector(1)
    assert dot(a, dict(reversed(b.items()))) == pytest.approx(float(flat(a) @ flat(b)))
    big = {"w": torch.full((100,), 300.0, dtype=torch.float16)}
    assert dot(big, big) == 9e6


def test_parameters_are_named_once_and_detached_and_whole_numbers_are_left_out():
    model = tied()
    assert list(parameters(model)) == ["0.weight", "2.weight", "2.bias"]
    assert list(parameters(model.state_dict())) == ["0.weight", "2.weight", "2.bias", "2.running_mean", "2.running_var"]
    assert not any(t.requires_grad for t in parameters(model).values())


def test_tensors_without_memory_are_not_taken_for_tied():
    assert len(parameters({"a": torch.empty(0), "b": torch.empty(0)})) == 2
    assert len(parameters({"a": torch.empty(2, device="meta"), "b": torch.empty(2, device="meta")})) == 2


def test_two_views_of_one_memory_are_tied_only_if_they_are_read_alike():
    w = torch.randn(3, 3)
    assert list(parameters({"a": w, "b": w.mT, "c": w[:2], "d": w.view(3, 3)})) == ["a", "b", "c"]


def test_names_and_shapes_are_strict():
    a, more = vector(0), vector(0) | {"extra": torch.zeros(1)}
    contained("more", more, "a", a)
    with pytest.raises(InputError, match=r"^a: expected the tensors of more, got none named extra; "):
        aligned("more", more, "a", a)
    with pytest.raises(InputError, match=r"the shapes of a, got w \(2, 3\) against \(3, 2\)"):
        aligned("b", a | {"w": torch.zeros(2, 3)}, "a", a)
    many = {f"layer.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(InputError, match=r"none named layer.0, layer.1, layer.2 and 6 more"):
        contained("a", a, "many", many)
    with pytest.raises(InputError, match=r"vectors\[0\]: expected the tensors of vectors\[1\]"):
        combine([1, 1], [a, more])
