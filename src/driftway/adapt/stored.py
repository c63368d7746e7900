"""What a folder says, read with suspicion: every entry has its name, kind, shape and range, and nothing is left over."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftway.checks import InputError, require

CURE = "the folder was changed or is damaged: fit and save again"
INFINITE = "Infinity"  # as text: JSON has no such number


def plain(name: str, value: Any) -> Any:
    """A parameter as JSON holds it.

    Raises:
        InputError: if it is no text, number, or list of these.
    """
    value = value.item() if isinstance(value, np.generic) else list(value) if isinstance(value, tuple) else value
    if isinstance(value, list):
        return [plain(name, entry) for entry in value]
    require(value is None or isinstance(value, bool | int | float | str), name, expected="text, a number, or a list of these, to save it",
            got=type(value).__name__, cure="pass one by its name")  # fmt: skip
    return INFINITE if value == math.inf else value


def unplain(value: Any) -> Any:
    """The parameter."""
    return tuple(map(unplain, value)) if isinstance(value, list) else math.inf if value == INFINITE else value


@dataclass(frozen=True)
class Reader:
    """A folder under reading, or a part of its configuration.

    Attributes:
        folder: its name.
        config: the configuration, or a part.
        tensors: all of them.
        taken: names of those that were read.
    """

    folder: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    taken: set[str] = field(default_factory=set)

    def check(self, condition: bool, expected: str, got: str) -> None:
        """Refuse the folder unless the condition holds."""
        require(condition, "folder", expected=f"{expected} in {self.folder}", got=got, cure=CURE)

    def entry(self, name: str, kind: type) -> Any:
        """An entry of a type."""
        value = self.config.get(name)
        self.check(isinstance(value, kind) and isinstance(value, bool) <= (kind is bool), f"{name!r} as {kind.__name__}", repr(value))
        return value

    def number(self, name: str) -> float:
        """A number; inf may be one, NaN not."""
        value = unplain(self.config.get(name))
        self.check(isinstance(value, float | int) and not isinstance(value, bool) and value == value, f"{name!r} as a number", repr(value))
        return float(value)

    def named(self, name: str, options: tuple[str, ...]) -> str:
        """One of several names."""
        value = self.config.get(name)
        self.check(isinstance(value, str) and value in options, f"{name!r} as one of {', '.join(options)}", repr(value))
        return str(value)

    def index(self, name: str, below: int) -> int:
        """A place in a list."""
        value = self.entry(name, int)
        self.check(0 <= value < below, f"{name!r} from 0 to {below - 1}", str(value))
        return value

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers."""
        value = self.entry(name, list)
        self.check(all(type(entry) is int for entry in value), f"{name!r} as whole numbers", repr(value))
        return value

    def texts(self, name: str) -> list[str]:
        """A list of names."""
        value = self.entry(name, list)
        self.check(all(isinstance(entry, str) for entry in value) and len(value) > 0, f"{name!r} as names", repr(value)[:80])
        return value

    def length(self, name: str) -> int:
        """Of a list of parts."""
        return len(self.entry(name, list))

    def part(self, name: str, i: int) -> "Reader":
        """An entry of a list of parts."""
        value = self.config[name][i]
        self.check(isinstance(value, dict), f"{name}[{i}] as a table", repr(value)[:80])
        return Reader(self.folder, value, self.tensors, self.taken)

    def inside(self, name: str) -> "Reader":
        """A part."""
        return Reader(self.folder, self.entry(name, dict), self.tensors, self.taken)

    def take(self, name: str, shape: tuple[int | None, ...], *, dtype: torch.dtype = torch.float64, gaps: bool = False,
             least: float = -math.inf, above: float = -math.inf) -> Tensor:  # fmt: skip
        """A tensor.

        Args:
            name: of it.
            shape: None for a size that is free.
            dtype: of it.
            gaps: whether NaN may be in it.
            least: of its numbers.
            above: what its numbers are more than.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise InputError("folder", expected=f"a tensor {name} in {self.folder}", got="none", cure=CURE)
        fits = len(shape) == tensor.ndim and all(size in (None, own) for size, own in zip(shape, tensor.shape, strict=True))
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + f") of {dtype}"
        self.check(fits and tensor.dtype == dtype, f"{name} as {wanted}", f"{tuple(tensor.shape)} of {tensor.dtype}")
        known = tensor[~tensor.isnan()] if gaps else tensor
        self.check(bool(known.isfinite().all()), f"finite numbers in {name}", "NaN or infinity")
        low = least > above or above == -math.inf
        self.check(bool(((known >= least) & (known > above)).all()), f"numbers {f'>= {least:g}' if low else f'> {above:g}'} in {name}",
                   f"{float(known.min()) if known.numel() else 0:g}")  # fmt: skip
        self.taken.add(name)
        return tensor

    def domains(self, name: str, n: int, count: int) -> Tensor:
        """Domains of n rows."""
        domain = self.take(name, (n,), dtype=torch.int64)
        self.check(n > 0 and bool(((domain >= 0) & (domain < count)).all()), f"domains from 0 to {count - 1} in {name}", "others")
        return domain

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        left = sorted(set(self.tensors) - self.taken)
        self.check(not left, "no further tensors", ", ".join(left[:5]))
