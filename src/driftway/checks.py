"""The wording of every input error: the argument, what was expected, what came, and the cure.

A check returns its argument in the form the code below it works with, or raises [`InputError`][driftway.checks.InputError].
"""

import math
import operator
import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
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
        raise InputError(argument, expected=expected, got=_short(value), cure=cure) from None
    require(number >= least, argument, expected=expected, got=_short(number), cure=cure)
    return number


def real(argument: str, value: object, *, least: float | int = -math.inf, strict: bool = False) -> float:
    """A finite number that is at least `least` (above it, if `strict`).

    Raises:
        InputError: if it is not a number, not finite, or too small.
    """
    bound = "" if least == -math.inf else f" {'>' if strict else '>='} {least:g}"
    expected, cure = f"a finite number{bound}", f"pass {argument} as a number{bound}"
    require(isinstance(value, int | float | np.number) and not isinstance(value, bool), argument,
            expected=expected, got=_short(value), cure=cure)  # fmt: skip
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:  # a whole number of 310 digits
        number = math.inf
    enough = number > least if strict else number >= least
    require(math.isfinite(number) and enough, argument, expected=expected, got=_short(value), cure=cure)
    return number


def seed(argument: str, value: object) -> int:
    """A whole number that generators of PyTorch take.

    Raises:
        InputError: if it is negative, 2^63 or more, or not a whole number.
    """
    number = count(argument, value, least=0)
    require(number < 2**63, argument, expected="a whole number below 2^63", got=_short(number), cure=f"pass {argument}=0")
    return number


def choice(argument: str, value: object, options: Collection[str]) -> str:
    """One of the named options.

    Raises:
        InputError: if it is none of them.
    """
    names = ", ".join(options)
    require(isinstance(value, str) and value in options, argument, expected=f"one of {names}", got=_short(value),
            cure="pass one of those names")  # fmt: skip
    return str(value)


def _short(value: object) -> str:
    """How a value is written, on one line and not at length."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a whole number of more digits than Python writes
        text = f"{type(value).__name__} of very many digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def place(argument: str, value: object) -> Path:
    """The path of a file or a folder.

    Raises:
        InputError: if it is no path, or an empty one.
    """
    known = isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(os.fspath(value), str))
    require(known and value != "" and "\0" not in os.fspath(value), argument, expected="a path", got=_short(value),  # type: ignore[arg-type]
            cure=f"pass {argument} as text or a Path")  # fmt: skip
    return Path(value)  # type: ignore[arg-type]


def numbers(argument: str, value: object) -> Tensor:
    """Real numbers as a dense tensor, from a tensor, an array, a frame, or lists of numbers; with the memory of the first two.

    Raises:
        InputError: if they are something else, or rows of different lengths.
    """
    found = _dense(value if isinstance(value, Tensor | np.ndarray) else _array(value))
    require(found is not None, argument, expected="an array or tensor of real numbers", got=_told(value),
            cure="convert it to a float array")  # fmt: skip
    return found  # type: ignore[return-value]


def _array(value: object) -> object:
    try:
        return np.asarray(value)
    except (ValueError, TypeError):  # rows of different lengths
        return None


def _dense(value: object) -> Tensor | None:
    """A tensor or an array as a dense tensor of numbers in memory; None if it is none."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and not np.ma.is_masked(value):
        wide = (value.dtype.kind == "u" and value.dtype.itemsize > 1) or value.dtype.itemsize > 8  # those have no counterpart
        value = np.asarray(value, np.float64 if wide else value.dtype.newbyteorder("="))
        value = torch.from_numpy(np.ascontiguousarray(value) if value.flags.writeable else value.copy()).reshape(value.shape)
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type == "meta":
        return None
    return None if value.is_quantized or value.dtype.is_complex else value


def _told(value: object) -> str:
    """What kind of thing a value is."""
    about = f" of dtype {value.dtype}" if hasattr(value, "dtype") else ""  # type: ignore[attr-defined]
    if isinstance(value, Tensor):
        about += "" if value.layout is torch.strided else f", {value.layout}"
        about += ", without numbers in it" if value.device.type == "meta" else ""
    return f"{type(value).__name__}{about}" + (", with masked entries" if np.ma.is_masked(value) else "")


def samples(argument: str, value: object, *, event: tuple[int, ...] | None = None, least: int = 2) -> Tensor:
    """Samples (n, *event) as a floating tensor: an array or tensor of finite numbers with at least `least` rows.

    Whole numbers become float32; floats keep their dtype and device.

    Raises:
        InputError: if it is no array of numbers, has too few rows, another event shape, or a NaN or infinite entry.
    """
    found = _dense(value)
    if found is None:
        raise InputError(argument, expected="an array or tensor of numbers", got=_told(value), cure="convert it to a float array")
    x = found.detach() if found.dtype.is_floating_point else found.to(torch.float32)
    x = x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x  # autograd keeps no such tensors
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
    moderate(argument, x)
    return x


def moderate(argument: str, x: Tensor, *, power: int = 2) -> None:
    """Refuse numbers whose powers overflow when a million of them are added up; squares: above 1e16 in float32, 1e151 in float64.

    Raises:
        InputError: if there is one.
    """
    limit = math.inf if x.dtype == torch.float16 or not x.dtype.is_floating_point else torch.finfo(x.dtype).max ** (1 / power) / 1e3
    most = float(x.detach().abs().nan_to_num(0.0, posinf=0.0).max()) if x.numel() else 0.0
    require(most <= limit, argument, expected=f"numbers up to {limit:.0e} in size, whose {'squares' if power == 2 else 'powers'} can be "
            f"added up in {x.dtype}", got=f"{most:.3g}", cure="divide them by their scale, or drop the row if it is a mistake")  # fmt: skip


def shaped(argument: str, value: object, shape: tuple[int | None, ...]) -> Tensor:
    """Finite real numbers of a shape, None where a size is free; whole numbers become float32. Gradients pass.

    Raises:
        InputError: if they are something else.
    """
    x = numbers(argument, value)
    x = x if x.dtype.is_floating_point else x.float()
    fits = x.ndim == len(shape) and x.numel() > 0 and all(size in (None, own) for size, own in zip(shape, x.shape, strict=True))
    wanted = ", ".join("any" if size is None else str(size) for size in shape) + "," * (len(shape) == 1)
    require(fits, argument, expected=f"shape ({wanted})", got=f"shape {tuple(x.shape)}", cure="pass one entry for each")
    require(bool(x.isfinite().all()), argument, expected="finite numbers", got="NaN or inf", cure="drop such rows")
    return x


def kind(argument: str, value: object, wanted: type | tuple[type, ...], expected: str) -> None:
    """Refuse a value of another type.

    Raises:
        InputError: if it is one.
    """
    got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    require(isinstance(value, wanted), argument, expected=expected, got=got, cure=f"pass {expected}")


def function(argument: str, value: object, takes: str) -> None:
    """Refuse what cannot be called; None is no function and stands for none.

    Raises:
        InputError: if it cannot.
    """
    require(value is None or callable(value), argument, expected=f"a function of {takes}, or None", got=type(value).__name__,
            cure="leave it out")  # fmt: skip


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
