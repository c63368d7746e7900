"""Values that a person may pass by mistake, and what may come of a call with them: an input error by name, or a finite result.

A value is drawn as a kind and a seed, so that a failure is told in one line: `Hostile("tiny float32 tensor", seed=3)`. It stands for one
argument of a call that is valid otherwise.
"""

import math
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

import jaxtyping
import numpy as np
import pandas as pd
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

from driftway.checks import Diverged, InputError
from tests.reliability.size import FULL, rounds

Make = Callable[[np.random.Generator, tuple[int, ...]], Any]
MOST_WARNINGS, LONGEST = 6, 1500


@dataclass(frozen=True)
class Kind:
    """A kind of value; `wrong` if no call may take it."""

    name: str
    make: Callable[[np.random.Generator], Any] = field(repr=False)
    wrong: bool = False


@dataclass(frozen=True)
class Hostile:
    """One value of a kind."""

    kind: str
    seed: int
    value: Any = field(repr=False, compare=False)
    wrong: bool = False


def hostile(kinds: Sequence[Kind]) -> st.SearchStrategy[Hostile]:
    """A value of one of the kinds."""
    return st.builds(drawn, st.sampled_from(kinds), st.integers(0, 2**16))


def drawn(kind: Kind, seed: int) -> Hostile:
    """The value of a kind and a seed."""
    return Hostile(kind.name, seed, kind.make(np.random.default_rng(seed)), kind.wrong)


def budget(bounded: int, full: int) -> settings:
    """How many examples: reproducible with the other tests, new ones in a full run."""
    return settings(max_examples=rounds(bounded, full), derandomize=not FULL, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


@contextmanager
def unchecked():
    """Without the checks of shapes in annotations, as in a user's program."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


# Arrays: `plain` gives finite numbers of a shape.


def plain(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def _scaled(size: float, dtype: Any = np.float64) -> Make:
    return lambda rng, shape: (plain(rng, shape) * size).astype(dtype)


def _spoilt(entry: float) -> Make:
    def make(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        x = plain(rng, shape)
        x.flat[rng.integers(x.size)] = entry
        return x

    return make


def _read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


def _grows(x: np.ndarray) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def _inferred(x: np.ndarray) -> Tensor:
    with torch.inference_mode():
        return torch.tensor(x, dtype=torch.float64)


def _beside(shape: tuple[int, ...], by: int) -> tuple[int, ...]:
    return (shape[0] + by, *shape[1:])


MEANT: dict[str, Make] = {  # a call may take these, and then has to be right
    "float64": plain,
    "float32": _scaled(1, np.float32),
    "tensor": lambda rng, shape: torch.tensor(plain(rng, shape)),
    "float32 tensor": lambda rng, shape: torch.tensor(plain(rng, shape), dtype=torch.float32),
    "integers": lambda rng, shape: rng.integers(-5, 5, shape),
    "bytes": lambda rng, shape: rng.integers(0, 200, shape).astype(np.uint8),
    "booleans": lambda rng, shape: rng.integers(0, 2, shape).astype(bool),
    "boolean tensor": lambda rng, shape: torch.tensor(rng.integers(0, 2, shape).astype(bool)),
    "half": _scaled(1, np.float16),
    "bfloat16": lambda rng, shape: torch.tensor(plain(rng, shape)).bfloat16(),
    "long double": _scaled(1, np.longdouble),
    "big endian": _scaled(1, ">f8"),
    "lists": lambda rng, shape: plain(rng, shape).tolist(),
    "frame": lambda rng, shape: pd.DataFrame(plain(rng, shape)) if len(shape) == 2 else pd.Series(plain(rng, shape).ravel()),
    "nullable frame": lambda rng, shape: pd.DataFrame(plain(rng, (shape[0], 2))).convert_dtypes(),
    "read only": lambda rng, shape: _read_only(plain(rng, shape)),
    "transposed": lambda rng, shape: plain(rng, shape[::-1]).T,
    "reversed": lambda rng, shape: plain(rng, shape)[::-1],
    "strided tensor": lambda rng, shape: torch.tensor(plain(rng, (*shape[:-1], 2 * shape[-1])))[..., ::2],
    "expanded tensor": lambda rng, shape: torch.tensor(plain(rng, shape[1:] or (1,))).expand(shape),
    "requires grad": lambda rng, shape: _grows(plain(rng, shape)),
    "inference tensor": lambda rng, shape: _inferred(plain(rng, shape)),
    "constant": lambda rng, shape: np.full(shape, rng.normal()),
    "zeros": lambda rng, shape: np.zeros(shape),
    "equal rows": lambda rng, shape: np.repeat(plain(rng, (1, *shape[1:])), shape[0], 0),
    "denormal": _scaled(1e-310),
    "1e-160": _scaled(1e-160),
    "1e-30 float32": _scaled(1e-30, np.float32),
    "1e-8": _scaled(1e-8),
    "1e8": _scaled(1e8),
    "1e18 float32": _scaled(1e18, np.float32),
    "1e30 float32": _scaled(1e30, np.float32),
    "1e100": _scaled(1e100),
    "1e160": _scaled(1e160),
    "1e300": _scaled(1e300),
    "one huge": _spoilt(1e200),
    "one large": _spoilt(1e12),
    "far away": lambda rng, shape: plain(rng, shape) + 1e10,
    "mixed scales": lambda rng, shape: plain(rng, shape) * 10.0 ** rng.integers(-12, 12, shape[-1:]),
}
WRONG: dict[str, Make] = {  # no call takes these
    "nan": _spoilt(math.nan),
    "inf": _spoilt(math.inf),
    "-inf": _spoilt(-math.inf),
    "nan tensor": lambda rng, shape: torch.tensor(_spoilt(math.nan)(rng, shape)),
    "complex": lambda rng, shape: plain(rng, shape) + 1j,
    "complex tensor": lambda rng, shape: torch.tensor(plain(rng, shape) + 1j),
    "text": lambda rng, shape: np.full(shape, "a"),
    "objects": lambda rng, shape: np.full(shape, {}, dtype=object),
    "dates": lambda rng, shape: np.full(shape, np.datetime64("2026-01-01")),
    "text frame": lambda rng, shape: pd.DataFrame({"a": ["x"] * shape[0], "b": plain(rng, shape[:1])}),
    "ragged": lambda rng, shape: [[1.0] * (1 + i % 2) for i in range(shape[0])],
    "one number": lambda rng, shape: 1.5,
    "no axis": lambda rng, shape: torch.tensor(1.0),
    "no rows": lambda rng, shape: np.zeros((0, *shape[1:])),
    "no rows tensor": lambda rng, shape: torch.zeros(0, *shape[1:]),
    "empty list": lambda rng, shape: [],
    "a string": lambda rng, shape: "rows",
    "a dict": lambda rng, shape: {"a": 1},
    "a set": lambda rng, shape: {1.0, 2.0},
    "a generator": lambda rng, shape: (i for i in range(3)),
    "sparse": lambda rng, shape: sparse.csr_matrix(np.eye(shape[0], shape[-1])),
    "sparse tensor": lambda rng, shape: torch.eye(shape[0], shape[-1]).to_sparse(),
    "meta tensor": lambda rng, shape: torch.empty(shape, device="meta"),
    "quantised": lambda rng, shape: torch.quantize_per_tensor(torch.ones(shape), 0.1, 0, torch.qint8),
    "structured": lambda rng, shape: np.zeros(shape, dtype=[("a", "f8")]),
    "masked": lambda rng, shape: np.ma.masked_array(
        plain(rng, shape),
        rng.integers(0, 2, shape) | np.eye(shape[0], shape[-1]).astype(int).reshape(shape) if len(shape) == 2 else True,
    ),
}
SHAPES: dict[str, Make] = {  # another shape than the call's other arguments have
    "one row": lambda rng, shape: plain(rng, (1, *shape[1:])),
    "a row more": lambda rng, shape: plain(rng, _beside(shape, 1)),
    "a row less": lambda rng, shape: plain(rng, _beside(shape, -1)),
    "a column more": lambda rng, shape: plain(rng, (*shape[:-1], shape[-1] + 1)),
    "no columns": lambda rng, shape: plain(rng, (shape[0], 0)),
    "flat": lambda rng, shape: plain(rng, (shape[0],)),
    "an axis more": lambda rng, shape: plain(rng, (*shape, 2)),
    "five axes": lambda rng, shape: plain(rng, (shape[0], 1, 1, 1, 2)),
}


def arrays(*shape: int, none: bool = False) -> list[Kind]:
    """Arrays in place of one of a shape; `none` if None is one of the choices of the argument."""
    kinds = [
        Kind(name, partial(make, shape=shape), made is WRONG) for made in (MEANT, SHAPES, WRONG) for name, make in made.items()
    ]
    return [*kinds, Kind("None", lambda rng: None, not none)]


def values(*choices: Any, wrong: Iterable[Any] = ()) -> list[Kind]:
    """Some values, and those that no call may take."""
    return [
        Kind(repr(value)[:60], lambda rng, value=value: value, bad)
        for bad, some in ((False, choices), (True, wrong))
        for value in some
    ]


NO_NUMBER = ("1", "a", [1], {}, object, 1j, math.nan)
COUNTS = values(1, 2, 3, np.int64(2), wrong=(0, -1, True, 1.5, 2.0, None, math.inf, *NO_NUMBER))
SEEDS = values(0, 1, 2**31, 2**40, 2**63 - 1, 2**64, 2**70, np.int64(3), wrong=(-1, True, 0.5, None, *NO_NUMBER))
POSITIVE = values(
    1e-300, 1e-12, 0.5, 1, 7, 1e12, np.float32(0.3), 10**400 // 10**390, wrong=(0, -0.0, -1, math.inf, True, *NO_NUMBER)
)
NOT_NEGATIVE = values(0, 1e-300, 1e-9, 0.5, 3, 1e9, wrong=(-1e-9, -1, math.inf, 10**400, True, *NO_NUMBER))


def choices(*names: str) -> list[Kind]:
    """A name out of several."""
    return values(*names, wrong=("", names[0].upper(), "none of these", 0, None, True, ["a"], {}, math.nan))


# What may come of a call.


def outcome(function: Callable[..., Any], /, *args: Any, others: tuple[str, ...] = (), known: Iterable[str] = (),
            **kwargs: Any) -> Any:  # fmt: skip
    """The result of a call, or the error of ours that it raised; anything else goes on to the test.

    Args:
        function: what is called.
        args: its arguments.
        others: packages whose own checks of values may speak before ours.
        known: names that an error may call its argument by; any if there are none.
        kwargs: its arguments.
    """
    before = [frozen(value) for value in (*args, *kwargs.values())]
    with unchecked(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            result = function(*args, **kwargs)
        except InputError as error:
            said(error, known)
            result = error
        except Diverged as error:
            result = error
        except (TypeError, ValueError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            if not any(f"/{name}/" in last for name in others):
                raise
            result = error
    assert before == [frozen(value) for value in (*args, *kwargs.values())], "an argument was written into"
    told = [f"{entry.category.__name__}: {entry.message} ({entry.filename}:{entry.lineno})" for entry in seen
            if not issubclass(entry.category, DeprecationWarning | PendingDeprecationWarning)]  # fmt: skip
    foreign = [line for line in told if line.startswith("RuntimeWarning") or "/torch/" in line or "/numpy/" in line]
    assert not foreign, f"warnings of other packages: {foreign[:3]}"
    assert len(told) <= MOST_WARNINGS, f"{len(told)} warnings: {told[:3]}"
    return result


def said(error: InputError, known: Iterable[str] = ()) -> None:
    """One line that names the argument and a cure."""
    text, names = str(error), tuple(known)
    assert error.argument
    assert error.parts["cure"]
    assert len(text.splitlines()) == 1, f"an error of several lines: {text!r}"
    assert len(text) <= LONGEST, f"an error of {len(text)} letters"
    own = error.argument.split("[")[0].split(".")[0].lstrip("-")
    assert not names or own in names, f"the error names {error.argument!r}, and the call has {', '.join(names)}: {text}"


def refused(result: Any) -> bool:
    """Whether a call ended in one of our errors."""
    return isinstance(result, Exception)


def finite(result: Any, *, where: str = "result", gaps: tuple[str, ...] = ()) -> None:
    """All numbers in a result are finite, but for fields that may have gaps."""
    if isinstance(result, Tensor):
        assert bool(torch.isfinite(result).all()) or not result.dtype.is_floating_point, f"{where} has NaN or infinity"
    elif isinstance(result, np.ndarray | np.generic):
        assert result.dtype.kind not in "fc" or bool(np.isfinite(result).all()), f"{where} has NaN or infinity"
    elif isinstance(result, pd.DataFrame | pd.Series):
        finite(result.to_numpy(), where=where)
    elif isinstance(result, float):
        assert math.isfinite(result), f"{where} is {result}"
    elif isinstance(result, Mapping):
        for name, entry in result.items():
            finite(entry, where=f"{where}[{name!r}]", gaps=gaps)
    elif isinstance(result, list | tuple):
        for i, entry in enumerate(result):
            finite(entry, where=f"{where}[{i}]", gaps=gaps)
    elif is_dataclass(result):
        for part in fields(result):
            if part.name not in gaps:
                finite(getattr(result, part.name), where=f"{where}.{part.name}", gaps=gaps)


def frozen(value: Any) -> Any:
    """What a value holds, to compare it after a call."""
    if isinstance(value, Tensor):
        if value.device.type == "meta" or value.is_sparse or value.is_quantized:
            return None
        return (
            value.dtype,
            tuple(value.shape),
            value.requires_grad,
            value.detach().contiguous().flatten().clone().view(torch.uint8).numpy().tobytes() if value.numel() else b"",
        )
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, repr(value.tolist()) if value.dtype.hasobject else value.tobytes()
    if isinstance(value, pd.DataFrame | pd.Series):
        return repr(value.to_dict())
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return repr(value) if isinstance(value, dict | set) else None
