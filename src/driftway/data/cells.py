"""A file under reading: its cells, and what an error about one of them says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from driftway.checks import InputError


@dataclass(frozen=True)
class Source:
    """A file under reading: what an error about it says."""

    argument: str
    path: Path
    key: str | None
    columns: Sequence[str] | None
    label: str | None

    def fail(self, expected: str, got: str, cure: str) -> NoReturn:
        raise InputError(self.argument, expected=expected, got=f"{' '.join(got.split())} in {self.path}", cure=cure)

    def damaged(self, expected: str, error: Exception, cure: str) -> NoReturn:
        """With the beginning of what was said of the damage."""
        self.fail(expected, f"damage ({str(error)[:200]})", cure)

    def select(self, names: Sequence[str]) -> list[int]:
        """The positions of the wanted columns."""
        wanted = [name for name in names if name != self.label] if self.columns is None else list(self.columns)
        if not all(wanted) or not wanted:
            self.fail("a name for every column", f"none for column {wanted.index('') + 1}" if wanted else "no column",
                      "name it in the header, or choose the columns to read")  # fmt: skip
        if self.label in wanted:
            self.fail("columns beside the labels", f"column {self.label!r} as data", "leave it out of the columns to read")
        for name in wanted:
            if wanted.count(name) > 1:
                self.twice(name)
        return [self.place(names, name) for name in wanted]

    def place(self, names: Sequence[str], name: str) -> int:
        """The position of one column."""
        if name not in names:
            known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            self.fail(f"columns among {known}", f"no column {name!r}", "choose from those names")
        if list(names).count(name) > 1:
            self.twice(name)
        return list(names).index(name)

    def twice(self, name: str) -> NoReturn:
        """Report a name that means two columns."""
        self.fail("columns with names of their own", f"column {name!r} twice", "rename or drop one of them")

    def text(self, value: object, row: int, name: str) -> NoReturn:
        """Report a cell that is no number."""
        shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
        cure = "fix the cell, or choose the columns to read"
        if isinstance(value, str):
            shown = shown if value.strip() else "an empty cell"
            cure = "separate the columns by commas" if re.search("[;\t|]", value) else cure
        self.fail("numbers", f"{shown} at row {row}, column {name!r}", cure)


@dataclass(frozen=True)
class Cells:
    """What a file holds: values, names, the row of the file where it is not index + 1, labels if asked for."""

    values: np.ndarray
    names: tuple[str, ...]
    rows: Sequence[int] | None = None
    labels: Sequence[Any] = ()

    def row(self, index: int) -> int:
        return index + 1 if self.rows is None else self.rows[index]


def exists(path: Path) -> bool:
    """Whether there is such a path; one that the system cannot look for, such as a name too long, is not there."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def cell_number(text: str) -> float | None:
    """The number that a csv cell holds, or None. True and False are 1 and 0; an underscore makes text."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower())
