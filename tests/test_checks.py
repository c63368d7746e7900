"""Every input error: its argument, what was expected, what came and the cure, in one line."""

import math

import numpy as np
import pytest
import torch

from driftway.checks import Diverged, InputError, choice, count, real, require, same_dtype, samples


def message(check, *arguments, **options):
    with pytest.raises(InputError) as caught:
        check(*arguments, **options)
    assert caught.value.argument
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_input_error_is_a_value_error_that_names_its_argument():
    error = InputError("steps", expected="5", got="6", cure="pass 5")
    assert isinstance(error, ValueError)
    assert error.argument == "steps"
    assert str(error) == "steps: expected 5, got 6; pass 5"


def test_require():
    require(True, "x", expected="a", got="b", cure="c")
    assert message(require, False, "x", expected="a", got=7, cure="c") == "x: expected a, got 7; c"


@pytest.mark.parametrize("value", [1, 3, np.int64(3), torch.tensor(3)])
def test_count(value):
    number = count("n", value)
    assert number == int(value)
    assert type(number) is int


def test_count_from_zero():
    assert count("n", 0, least=0) == 0


@pytest.mark.parametrize("value", [0, -2, True, 2.0, "3", None])
def test_count_faults(value):
    assert message(count, "n", value) == f"n: expected a whole number >= 1, got {value!r}; pass n=1 or more"


@pytest.mark.parametrize("value", [0.5, 2, np.float32(0.5), np.int64(2)])
def test_real(value):
    number = real("x", value)
    assert number == value
    assert type(number) is float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, 1j])
def test_real_faults(value):
    assert message(real, "x", value) == f"x: expected a finite number, got {value!r}; pass x as a number"


def test_real_bounds():
    assert real("x", 0.0, least=0.0) == 0.0
    assert message(real, "x", -0.1, least=0.0).startswith("x: expected a finite number >= 0, got -0.1")
    assert message(real, "x", 0.0, least=0.0, strict=True).startswith("x: expected a finite number > 0, got 0.0")


def test_choice():
    assert choice("kind", "a", ["a", "b"]) == "a"
    assert message(choice, "kind", "c", ["a", "b"]) == "kind: expected one of a, b, got 'c'; pass one of those names"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_samples_keep_floats(dtype):
    x = torch.ones(3, 2, dtype=dtype)
    assert torch.equal(samples("x", x), x)
    assert samples("x", x).dtype == dtype


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_samples_of_whole_numbers_become_float32(dtype):
    x = np.array([[0, 1], [1, 1]], dtype=dtype)
    assert samples("x", x).dtype == torch.float32
    assert samples("x", torch.from_numpy(x)).tolist() == [[0, 1], [1, 1]]


def test_samples_from_strided_arrays_and_graphs():
    x = np.arange(12.0).reshape(3, 4)
    assert torch.equal(samples("x", x[::-1, ::2]), torch.tensor(x[::-1, ::2].copy()))
    assert not samples("x", torch.ones(2, 2, requires_grad=True)).requires_grad


def test_samples_of_events():
    x = torch.zeros(2, 3, 4)
    assert samples("x", x, event=(3, 4)).shape == (2, 3, 4)
    assert samples("x", torch.zeros(1, 3), least=1).shape == (1, 3)


@pytest.mark.parametrize(("value", "said"), [
    ([[1.0, 2.0]], "expected an array or tensor of numbers, got list"),
    (None, "got NoneType"),
    (np.array([["a"], ["b"]]), "got ndarray of dtype <U1"),
    (np.ones((2, 2), dtype=complex), "got ndarray of dtype complex128"),
    (torch.ones(2, 2, dtype=torch.complex64), "got Tensor of dtype torch.complex64"),
    (torch.ones(5), "got shape (5,); reshape one column to (n, 1)"),
    (torch.tensor(1.0), "got shape ()"),
    (torch.ones(1, 2), "expected at least 2 rows, got 1"),
    (torch.ones(0, 2), "expected at least 2 rows, got 0"),
    (torch.ones(2, 0), "expected at least one column, got shape (2, 0)"),
    (torch.tensor([[0, 1], [math.nan, math.inf]]), "got nan at row 1, column 0 (2 such entries)"),
    (torch.tensor([[[0.0, 1]], [[2, -math.inf]]]), "got -inf at row 1, column (0, 1) (1 such entries)"),
])  # fmt: skip
def test_samples_faults(value, said):
    text = message(samples, "x", value)
    assert text.startswith("x: expected ")
    assert said in text


def test_samples_of_another_event():
    assert "expected rows of shape (3,), got (2,)" in message(samples, "x", torch.ones(2, 2), event=(3,))


def test_same_dtype():
    x, y = torch.ones(1), torch.ones(1, dtype=torch.float64)
    same_dtype("x", x, "y", x)
    assert message(same_dtype, "x", x, "y", y) == (
        "y: expected dtype torch.float32 on cpu, as x has, got torch.float64 on cpu; convert one of them, e.g. y.to(x)"
    )


def test_diverged_names_the_step_and_the_cure():
    error = Diverged(7, "V nan", "the model of step 6 is kept")
    assert not isinstance(error, ValueError), "the input was fine"
    assert str(error).startswith("step 7: expected finite losses, got V nan; the model of step 6 is kept; lower")
    assert "\n" not in str(error)
