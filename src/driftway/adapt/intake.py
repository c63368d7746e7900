"""What users pass as arrays, as float64 tensors: tables, targets, codes of domains, weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from driftway.checks import InputError, moderate, numbers, require

SMALL = 1e-150


def read_numbers(argument: str, value: Any, missing: str) -> Tensor:
    """A copy as a float64 tensor, on the tensor's own device.

    Raises:
        InputError: if it holds anything but real numbers.
    """
    expected, cure = "an array of real numbers", f"convert it to floats{missing}"
    require(value is not None, argument, expected=expected, got="None", cure="pass one")
    require(not hasattr(value, "toarray"), argument, expected="a dense array", got=f"the sparse {type(value).__name__}",
            cure=f"pass {argument}.toarray()")  # fmt: skip
    if isinstance(value, pd.Series | pd.DataFrame):
        kinds = [value.dtype] if isinstance(value, pd.Series) else list(value.dtypes)
        names = [value.name] if isinstance(value, pd.Series) else list(value.columns)
        other = [f"{name!s} ({kind})" for name, kind in zip(names, kinds, strict=True)
                 if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind)]  # fmt: skip
        require(not other, argument, expected="columns of real numbers", got=f"{', '.join(other)}",
                cure="encode them first, e.g. OneHotEncoder in a ColumnTransformer")  # fmt: skip
        value = value.to_numpy(dtype=np.float64, na_value=np.nan)
    if isinstance(value, Tensor):
        return numbers(argument, value).detach().to(torch.float64, copy=True)
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(argument, expected=expected, got="rows of different lengths", cure="give every row the same columns") from None
    got = f"dtype {array.dtype}" if array.ndim else type(value).__name__
    require(array.dtype.kind in "biuf", argument, expected=expected, got=got, cure=cure)
    return torch.from_numpy(np.array(array, dtype=np.float64))


def read_table(argument: str, value: Any) -> tuple[Tensor, tuple[str, ...]]:
    """A table, and the names of its columns where it has some.

    Raises:
        InputError: if it is no table of real numbers, or empty.
    """
    x = read_numbers(argument, value, "")
    require(x.ndim == 2, argument, expected="rows and columns, shape (n, d)", got=f"shape {tuple(x.shape)}",
            cure="reshape one column to (n, 1)")  # fmt: skip
    require(x.numel() > 0, argument, expected="at least one row and one column", got=f"shape {tuple(x.shape)}", cure="give it data")
    return x, tuple(map(str, value.columns)) if isinstance(value, pd.DataFrame) else ()


def check_finite(argument: str, x: Tensor, names: Sequence[str]) -> None:
    """Refuse a NaN or infinite entry, naming row and column.

    Raises:
        InputError: if there is one.
    """
    bad = ~x.isfinite()
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise InputError(argument, expected="finite numbers", got=f"{x[row, column].item()} at row {row}, column {names[column]} "
                         f"({int(bad.sum())} such entries)", cure="drop or fill the missing entries")  # fmt: skip
    _sized(argument, x, names)


def _sized(argument: str, x: Tensor, names: Sequence[str], *, power: int = 2) -> None:
    """Refuse columns whose squares overflow, or vanish."""
    moderate(argument, x, power=power)
    most = x.abs().nan_to_num(0.0).amax(0)
    odd = ((most > 0) & (most < SMALL)).nonzero()[:, 0].tolist()
    j = odd[0] if odd else 0
    require(not odd, argument, expected=f"numbers that are not below {SMALL:g} in size throughout a column, as their squares are lost",
            got=f"{float(most[j]):.3g} at most in column {names[j]}", cure="multiply the column by a number")  # fmt: skip


def as_array(argument: str, value: Any) -> Any:
    """A tensor as an array; all else as it is, but for what scikit-learn would take for numbers: dates, records, masked entries.

    Raises:
        InputError: if it is one of these, or a tensor on another device.
    """
    if isinstance(value, Tensor):
        x = numbers(argument, value).detach()
        require(x.device.type == "cpu", argument, expected="an array, or a tensor in main memory", got=f"a tensor on {x.device}",
                cure=f"pass {argument}.cpu()")  # fmt: skip
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    odd = getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M", "V") or np.ma.is_masked(value)
    require(not odd, argument, expected="an array of real numbers", got="masked entries" if np.ma.is_masked(value) else
            f"dtype {getattr(value, 'dtype', '')}", cure="convert it to floats")  # fmt: skip
    return value


def read_targets(argument: str, value: Any) -> Tensor:
    """Targets (n,) or (n, k), NaN where there is no label.

    Raises:
        InputError: if they are no real numbers, infinite, or of another shape.
    """
    y = read_numbers(argument, value, ", with NaN for a missing label")
    require(y.ndim in (1, 2) and y.shape[1:] != (0,), argument, expected="shape (n,) or (n, k)", got=f"shape {tuple(y.shape)}",
            cure="pass one row of targets for each row of X")  # fmt: skip
    require(y.numel() > 0, argument, expected="at least one row", got=f"shape {tuple(y.shape)}", cure="pass one target for each row of X")
    outputs = y[:, None] if y.ndim == 1 else y
    _sized(argument, outputs.where(outputs.isfinite(), 0.0), [str(j) for j in range(outputs.shape[1])], power=4)
    bad = y.isinf().reshape(len(y), -1).any(1).nonzero()[:, 0].tolist()
    require(not bad, argument, expected="finite numbers, or NaN for a missing label", got=f"inf at row {bad[0] if bad else 0}",
            cure="drop these rows, or write NaN")  # fmt: skip
    return y


def read_codes(sample_domain: Any, n: int, device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    """Domains (n,), 0 for the target, and the user's code of each.

    Raises:
        InputError: if there is not one code for each row, or not one target.
    """
    name = "sample_domain"
    boolean = getattr(sample_domain, "dtype", None) in (torch.bool, np.dtype(bool))
    code = read_numbers(name, sample_domain, "").cpu()
    require(code.shape == (n,), name, expected=f"shape ({n},), one code for each row of X", got=f"shape {tuple(code.shape)}",
            cure="pass one code for each row")  # fmt: skip
    odd = (~code.isfinite() | (code != code.round()) | (code == 0) | (code.abs() > 2**53)).nonzero()[:, 0].tolist()
    row = odd[0] if odd else 0
    require(not odd and not boolean, name, expected="whole numbers other than 0",
            got="booleans" if boolean else f"{code[row].item():g} at row {row}",
            cure="write 1, 2, ... for the sources and -1 for the target")  # fmt: skip
    found = [int(c) for c in code.unique()]
    target, source = [c for c in found if c < 0], [c for c in found if c > 0]
    require(len(target) > 0, name, expected="target rows, which have a negative code", got=f"positive codes only ({_few(source)})",
            cure="give the target's rows the code -1; rows without label may be among them")  # fmt: skip
    require(len(target) == 1, name, expected="one target", got=f"{len(target)} negative codes ({_few(target)})",
            cure="fit one estimator for each target, on its rows and those of the sources")  # fmt: skip
    codes = torch.tensor([target[0], *source], dtype=torch.float64)
    return (code[:, None] == codes).long().argmax(1).to(device), tuple(int(c) for c in codes)


def _few(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def read_weights(value: Any, n: int, device: torch.device) -> Tensor:
    """Sample weights (n,), ones if there are none.

    Raises:
        InputError: if they are negative, not finite, all zero, or not one for each row.
    """
    if value is None:
        return torch.ones(n, dtype=torch.float64, device=device)
    w = read_numbers("sample_weight", value, "").to(device)
    w = w.expand(n).clone() if w.ndim == 0 else w
    require(w.shape == (n,), "sample_weight", expected=f"shape ({n},), one weight for each row of X", got=f"shape {tuple(w.shape)}",
            cure="pass one weight for each row")  # fmt: skip
    odd = (~w.isfinite() | (w < 0)).nonzero()[:, 0].tolist()
    row = odd[0] if odd else 0
    require(not odd, "sample_weight", expected="finite weights >= 0", got=f"{w[row].item():g} at row {row}",
            cure="clip or drop these rows")  # fmt: skip
    require(bool(w.sum() > 0), "sample_weight", expected="a positive weight in at least one row", got="zeros only", cure="leave it out")
    return w
