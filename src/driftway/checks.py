"""The wording of every input error: the argument, what was expected, what came, and the cure.

A check returns its argument in the form the code below it works with, or raises [`InputError`][driftway.checks.InputError].
"""

import math
import operator
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor


class InputError(ValueError):
    """An argument that cannot be used. One line: its name, what was expected, what came, and the cure."""

    def __init__(self, argument: str, *, expected: str, got: str, cure: str) -> None:
        super().__init__(f"{argument}: expected {expected}, got {got}; {cure}")
        self.argument, self.parts = argument, {"expected": expected, "got": got, "cure": cure}

    def __reduce__(self) -> tuple[Any, ...]:  # keywords do not travel between processes by themselves
        return partial(type(self), **self.parts), (self.argument,)


def require(condition: bool, argument: str, *, expected: str, got: object, cure: str) -> None:
    """Raise [`InputError`][driftway.checks.InputError] unless the condition holds."""
    if not condition:
        raise InputError(argument, expected=expected, got=str(got), cure=cure)


def count(argument: str, value: object, *, least: int = 1) -> int:
    """A whole number that is at least `least`.

    Raises:
        InputError: if it is a bool, not a whole number, or too small.
    """
    expected, cure = f"a whole number >= {least}", f"pass {argument}={max(least, 1)} or more"
    require(not isinstance(value, bool), argument, expected=expected, got=value, cure=cure)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(argument, expected=expected, got=f"{value!r}", cure=cure) from None
    require(number >= least, argument, expected=expected, got=number, cure=cure)
    return number


def real(argument: str, value: object, *, least: float | int = -math.inf, strict: bool = False) -> float:
    """A finite number that is at least `least` (above it, if `strict`).

    Raises:
        InputError: if it is not a number, not finite, or too small.
    """
    bound = "" if least == -math.inf else f" {'>' if strict else '>='} {least:g}"
    expected, cure = f"a finite number{bound}", f"pass {argument} as a number{bound}"
    require(isinstance(value, int | float | np.number) and not isinstance(value, bool), argument,
            expected=expected, got=repr(value), cure=cure)  # fmt: skip
    number = float(value)  # type: ignore[arg-type]
    enough = number > least if strict else number >= least
    require(math.isfinite(number) and enough, argument, expected=expected, got=repr(value), cure=cure)
    return number


def choice(argument: str, value: object, options: Collection[str]) -> str:
    """One of the named options.

    Raises:
        InputError: if it is none of them.
    """
    names = ", ".join(options)
    require(value in options, argument, expected=f"one of {names}", got=repr(value), cure="pass one of those names")
    return str(value)


def samples(argument: str, value: object, *, event: tuple[int, ...] | None = None, least: int = 2) -> Tensor:
    """Samples (n, *event) as a floating tensor: an array or tensor of finite numbers with at least `least` rows.

    Whole numbers become float32; floats keep their dtype and device.

    Raises:
        InputError: if it is no array of numbers, has too few rows, another event shape, or a NaN or infinite entry.
    """
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value))
    got = f"{type(value).__name__}" + (f" of dtype {value.dtype}" if hasattr(value, "dtype") else "")  # type: ignore[attr-defined]
    if not isinstance(value, Tensor) or value.dtype.is_complex:
        raise InputError(argument, expected="an array or tensor of numbers", got=got,
                         cure="convert it to a float array")  # fmt: skip
    x = value.detach() if value.dtype.is_floating_point else value.to(torch.float32)
    shape = tuple(x.shape)
    require(x.ndim >= 2, argument, expected="samples in rows, shape (n, ...)", got=f"shape {shape}",
            cure="reshape one column to (n, 1)")  # fmt: skip
    require(len(x) >= least, argument, expected=f"at least {least} rows", got=f"{len(x)}", cure="give it more samples")
    require(math.prod(shape[1:]) > 0, argument, expected="at least one column", got=f"shape {shape}",
            cure="give it data with columns")  # fmt: skip
    if event is not None:
        require(shape[1:] == tuple(event), argument, expected=f"rows of shape {tuple(event)}", got=f"{shape[1:]}",
                cure="give every array the same columns in the same order")  # fmt: skip
    bad = ~torch.isfinite(x)
    if bad.any():
        row, *column = bad.nonzero()[0].tolist()
        raise InputError(argument, expected="finite numbers", got=f"{x[row][tuple(column)].item()} at row {row}, column "
                         f"{column[0] if len(column) == 1 else tuple(column)} ({int(bad.sum())} such entries)",
                         cure="drop or fill the missing entries")  # fmt: skip
    return x


def same_dtype(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Two tensors of one dtype and device.

    Raises:
        InputError: if they differ.
    """
    require((a.dtype, a.device) == (b.dtype, b.device), second, expected=f"dtype {a.dtype} on {a.device}, as {first} has",
            got=f"{b.dtype} on {b.device}", cure=f"convert one of them, e.g. {second}.to({first})")  # fmt: skip


class Diverged(ArithmeticError):
    """Training met a loss that is not finite and stopped."""

    def __init__(self, step: int, losses: str, kept: str) -> None:
        self.step, self.losses, self.kept = step, losses, kept
        super().__init__(f"step {step}: expected finite losses, got {losses}; {kept}; lower the step size (lr), raise the entropy "
                         "(eps_end), or look for extreme rows in the data")  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.losses, self.kept)
