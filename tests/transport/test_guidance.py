"""Guidance mixes values linearly; a step callback steers rows of its own block, in data units, once per step."""

from typing import Any

import pytest
import torch

from driftway.checks import InputError
from driftway.transport import Conditions, Guidance, NetworkValue, Problem, TransportModel, VectorValue
from driftway.transport.guidance import Guided
from driftway.transport.labelled import LabelledMixture
from driftway.transport.policy import BLOCK
from driftway.transport.scaler import Scaler
from tests.transport.recipes import DOUBLE, draw, model_of, network

SMALL = {"network": {"width": 12, "depth": 2, "heads": 4}, "vector": {"width": 16, "depth": 2}, "mixture": {"components": 3}}
KINDS: dict[str, Any] = {"network": NetworkValue, "vector": VectorValue, "mixture": LabelledMixture}
NAMES = ("a", "b", "c")


def conditional(family, *, vectors=False, noise=True, shift=0.0, scale=1.0):
    """An untrained model of three classes, or of condition vectors of two entries, with values that differ between conditions."""
    known = {"columns": 2} if vectors else {"classes": 3}
    value = KINDS[family]((2,), **SMALL[family], **known).double().requires_grad_(False)
    for i, parameter in enumerate(value.parameters()):
        parameter.copy_(0.4 * draw(*parameter.shape, seed=i))
    if family == "mixture":
        value.set_eps(0.3)
    affine = (torch.full((2,), z, dtype=DOUBLE) for z in (shift, scale))
    scaler = Scaler((2,), noise, *affine, torch.zeros(2, dtype=torch.bool))
    conditions = Conditions(shift=(1.0, -1.0), scale=(2.0, 0.5)) if vectors else Conditions(classes=NAMES)
    return TransportModel(value, Problem(), scaler, family, {**SMALL[family], **known}, {}, conditions)


every_kind = pytest.mark.parametrize(("family", "vectors"), [
    ("network", False), ("vector", False), ("mixture", False), ("network", True), ("vector", True),
])  # fmt: skip
X, T = draw(7, 2, seed=40), torch.linspace(0, 0.9, 7, dtype=DOUBLE)


def read(value, c=None):
    return value.value(X, T, c), value.gradient(X, T, c), value.price(X, c)


def some_label(vectors):
    return [0.5, 0.25] if vectors else "b"


@every_kind
def test_values_gradients_and_prices_are_linear_in_the_weight(family, vectors):
    model = conditional(family, vectors=vectors)
    value, label = model.value_function, some_label(vectors)
    c = model.conditions.encode("label", label, 7, X)
    own, null = read(value, c), read(value, model.conditions.null(7, X))
    for w in (0.0, 0.3, 1.0, 2.5, -1.0):
        for found, a, b in zip(read(Guided(value, c, w)), own, null, strict=True):
            torch.testing.assert_close(found, (1 - w) * b + w * a, atol=1e-10, rtol=1e-10)
            assert float((a - b).abs().max()) > 1e-3, "conditions matter here"


@every_kind
def test_weight_one_is_the_label_and_weight_zero_the_whole_law(family, vectors):
    model, label = conditional(family, vectors=vectors), some_label(vectors)
    sample = {"steps": 3, "rule": "explicit"}
    torch.testing.assert_close(model.sample(X, label=label, guidance=0.0, **sample), model.sample(X, **sample))
    assert torch.equal(model.sample(X, label=label, guidance=1, **sample), model.sample(X, label=label, **sample))
    assert (model.sample(X, label=label, guidance=2.0, **sample) - model.sample(X, label=label, **sample)).abs().max() > 1e-3
    assert (model.sample(X, label=label, **sample) - model.sample(X, **sample)).abs().max() > 1e-3


def test_a_guided_step_is_its_formula():
    model = conditional("network")
    c, zero = torch.full((7,), 1), torch.zeros(7, dtype=DOUBLE)
    whole = model.value_function.gradient(X, zero, torch.full((7,), -1))
    end = X - whole - 3 * (model.value_function.gradient(X, zero, c) - whole)
    torch.testing.assert_close(model.sample(X, steps=1, label="b", guidance=3.0), end)


@every_kind
def test_every_row_follows_its_own_label(family, vectors):
    model = conditional(family, vectors=vectors)
    labels = draw(7, 2, seed=3) if vectors else ["a", "b", "c", "a", "b", "c", "c"]
    together = model.sample(X, label=labels, guidance=1.5, steps=3)
    for i in range(7):
        alone = model.sample(X[i : i + 1], label=labels[i : i + 1], guidance=1.5, steps=3)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-9, rtol=1e-9)


# --- the callback -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [True, False])
def test_the_callback_is_told_each_step_of_each_block(noise):
    """In data units, at the times of the grid, before the step."""
    model, seen, n = conditional("network", noise=noise, shift=3.0, scale=10.0), [], 2 * BLOCK + 40
    x = 3 + 10 * draw(n, 2) if not noise else draw(n, 2)
    out = model.sample(x, steps=[0.0, 0.1, 0.5, 1.0], label="c", on_step=seen.append, budget=1)
    assert [(m.index, m.t, m.first, len(m.states)) for m in seen] == [
        (h, t, first, min(BLOCK, n - first)) for first in (0, BLOCK, 2 * BLOCK) for h, t in enumerate((0, 0.1, 0.5))
    ]
    path = model.path(x, steps=[0.0, 0.1, 0.5, 1.0], label="c")
    for moment in seen:
        torch.testing.assert_close(moment.states, path.states[moment.index, moment.first : moment.first + BLOCK])
    start = x if not noise else 3 + 10 * x
    torch.testing.assert_close(seen[0].states, start[:BLOCK])
    torch.testing.assert_close(out, path.states[-1])


def test_a_callback_that_returns_none_changes_nothing():
    model = conditional("vector", scale=2.0)
    known = model.sample(300, label="a", guidance=1.5, steps=4)
    assert torch.equal(model.sample(300, label="a", guidance=1.5, steps=4, on_step=lambda moment: None), known)


@every_kind
def test_the_callback_changes_label_and_weight_at_any_step(family, vectors):
    """What it returns holds until it returns something else; checked by hand, step by step."""
    model = conditional(family, vectors=vectors)
    first, second = ([0.5, 0.25], [3.0, -1.0]) if vectors else ("a", "c")
    plan = {1: Guidance(second, 2.0), 3: Guidance(None), 4: Guidance(first, 0.5)}
    out = model.sample(X, steps=5, label=first, on_step=lambda moment: plan.get(moment.index))
    x, code = X, model.conditions.encode
    a, b, null = code("label", first, 7, X), code("label", second, 7, X), model.conditions.null(7, X)
    for h, (c, w) in enumerate([(a, 1.0), (b, 2.0), (b, 2.0), (null, 1.0), (a, 0.5)]):
        x = x - Guided(model.value_function, c, w).gradient(x, torch.full((7,), h / 5, dtype=DOUBLE)) / 5
    torch.testing.assert_close(out, x)


def test_labels_and_states_may_be_changed_by_nobody_else():
    """A callback that writes into the states it is shown moves no sample."""
    model = conditional("network", scale=2.0)

    def spoil(moment):
        moment.states.zero_()

    assert torch.equal(model.sample(X, label="a", on_step=spoil), model.sample(X, label="a", rule="explicit"))


def test_one_label_per_row_from_the_callback_is_for_all_rows():
    """Labels are given for the whole sample, whatever the blocks are."""
    model, n = conditional("network"), 2 * BLOCK + 9
    labels = [NAMES[i % 3] for i in range(n)]
    known = model.sample(n, label=labels, guidance=2.0, steps=3)
    for budget in (1, 2**24):
        torch.testing.assert_close(model.sample(n, steps=3, on_step=lambda moment: Guidance(labels, 2.0), budget=budget), known)


@every_kind
def test_the_size_of_the_blocks_changes_nothing(family, vectors):
    model, n = conditional(family, vectors=vectors, scale=3.0), 2 * BLOCK + 40
    labels = draw(n, 2, seed=3) if vectors else [NAMES[i * i % 3] for i in range(n)]
    for guidance in (1.0, 1.7):
        many, one = (model.sample(n, label=labels, guidance=guidance, steps=3, budget=budget) for budget in (1, 2**26))
        torch.testing.assert_close(many, one, atol=1e-9, rtol=1e-9)


# --- time grids ---------------------------------------------------------------------------------------------------------


@every_kind
def test_a_time_grid_of_equal_steps_is_their_number(family, vectors):
    model, label = conditional(family, vectors=vectors), some_label(vectors)
    for rule in ("explicit", "proximal"):
        torch.testing.assert_close(model.sample(X, steps=[0.0, 0.25, 0.5, 0.75, 1.0], rule=rule, label=label),
                                   model.sample(X, steps=4, rule=rule, label=label))  # fmt: skip
    path = model.path(X, steps=[0.0, 0.1, 0.5, 1.0], label=label)
    assert path.t.tolist() == [0.0, 0.1, 0.5, 1.0]
    steps = path.t.diff()[:, None, None]
    torch.testing.assert_close(path.states[:-1] + steps * path.actions, path.states[1:])


@pytest.mark.parametrize("steps", [
    [0.0, 0.5], [0.1, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, 0.7, 0.3, 1.0], [0.0], [], [1.0, 0.0], [0.0, float("nan"), 1.0], [-0.1, 0.0, 1.0],
    [0.0, 1.0, 1.1],
], ids=str)  # fmt: skip
def test_a_bad_grid_is_refused(steps):
    model = model_of(network(2))
    for call in (model.sample, model.path):
        with pytest.raises(InputError, match=r"^steps: expected "):
            call(3, steps=steps)


# --- refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "argument", "words"), [
    ({"guidance": 2.0}, "guidance", "expected 1 without a label, as there is nothing to exaggerate, got 2; pass a label"),
    ({"guidance": 0.0}, "guidance", "pass a label"),
    ({"label": "a", "guidance": float("nan")}, "guidance", "expected a finite number"),
    ({"label": "d"}, "label", "expected one of a, b, c, got 'd'"),
    ({"label": ["a", "b"]}, "label", "expected 3 labels"),
    ({"label": "a", "guidance": 2.0, "rule": "endpoint"}, "rule", "expected explicit or proximal"),
    ({"on_step": lambda moment: Guidance("d")}, "label", "got 'd'"),
    ({"on_step": lambda moment: Guidance(None, 2.0)}, "guidance", "pass a label"),
])  # fmt: skip
def test_bad_guidance_is_named(options, argument, words):
    with pytest.raises(InputError, match=f"^{argument}: ") as caught:
        conditional("mixture").sample(3, **options)
    assert words in str(caught.value)


def test_a_model_without_labels_takes_no_label_and_no_guidance():
    model = model_of(network(2))
    with pytest.raises(InputError, match=r"^guidance: expected 1 without a label.*; train with labels"):
        model.sample(3, guidance=1.5)
    for call in (lambda: model.sample(3, label=0), lambda: model.price(X, label="a"), lambda: model.value(X, 0.5, label=1)):
        with pytest.raises(InputError, match=r"^label: expected None, as this model was trained without labels"):
            call()
