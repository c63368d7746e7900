"""Columns of text as columns of 0 and 1, one for each of their levels, the same for every table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from driftway.checks import require
from driftway.data.columns import Columns

LEVELS = 50  # different texts of a column


@dataclass(frozen=True)
class Encoding:
    """How columns become numbers: a column of text becomes one of 0 and 1 for each of its levels.

    Attributes:
        columns: names, in order.
        levels: of the columns of text: their different texts, sorted.
    """

    columns: tuple[str, ...]
    levels: dict[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns of numbers that come out."""
        return tuple(made for name in self.columns for made in ([f"{name}={level}" for level in self.levels[name]]
                                                                if name in self.levels else [name]))  # fmt: skip

    def encode(self, argument: str, table: Columns) -> np.ndarray:
        """The columns as numbers; 0 throughout for a text that is no level.

        Raises:
            InputError: if a column lacks, has an empty cell, or holds text in place of numbers or the reverse.
        """
        parts = []
        for name in self.columns:
            _present(argument, table, name)
            text, levels, values = table.is_text(name), self.levels.get(name), table.values[name]
            require(not text or levels is not None, argument, expected=f"numbers in column {name!r}", got=f"{str(values[0])!r} at row "
                    f"{table.rows[0]} of {table.path}", cure="give it as in the files of the fit")  # fmt: skip
            if levels is None:
                parts.append(values[:, None])
            else:
                known = values if text else np.array([_short(x) for x in values])
                parts.append((known[:, None] == np.array(levels)).astype(np.float64))
        return np.concatenate(parts, 1)

    def unknown(self, table: Columns) -> dict[str, list[str]]:
        """Texts of an encoded table that are no level, by column."""
        found = {name: sorted(set(table.values[name].tolist() if table.is_text(name) else map(_short, table.values[name])) - set(levels))
                 for name, levels in self.levels.items()}  # fmt: skip
        return {name: texts for name, texts in found.items() if texts}


def _short(x: float) -> str:
    return str(int(x)) if float(x).is_integer() else str(x)


def encoding_of(tables: Sequence[tuple[str, Columns]], columns: Sequence[str]) -> Encoding:
    """The encoding of columns that several tables have.

    Args:
        tables: what an error calls each, and the table.
        columns: names.

    Raises:
        InputError: if a column lacks in one, has an empty cell, holds text in some tables only, or too many different texts.
    """
    levels: dict[str, tuple[str, ...]] = {}
    for name in columns:
        for argument, table in tables:
            _present(argument, table, name)
        text = [table.is_text(name) for _, table in tables]
        if any(text):
            argument, table = tables[text.index(False)] if not all(text) else tables[0]
            _, worded = tables[text.index(True)]
            require(all(text), argument, expected=f"text in column {name!r}, as {worded.path} has", got=f"numbers in {table.path}",
                    cure="write it alike in all files, or drop the column")  # fmt: skip
            found = sorted({level for _, table in tables for level in table.values[name].tolist()})
            require(len(found) <= LEVELS, argument, expected=f"at most {LEVELS} different texts in column {name!r}",
                    got=f"{len(found)} ({', '.join(map(repr, found[:3]))}, ...)", cure="group them, or drop the column")  # fmt: skip
            levels[name] = tuple(found)
    return Encoding(tuple(columns), levels)


def _present(argument: str, table: Columns, name: str) -> None:
    """Refuse a column that lacks or has an empty cell."""
    known = ", ".join(list(table.values)[:12]) + (", ..." if len(table.values) > 12 else "")
    require(name in table.values, argument, expected=f"a column {name!r}", got=f"{known or 'none'} in {table.path}",
            cure="add it, or drop it everywhere")  # fmt: skip
    gaps = [table.rows[i] for i in np.flatnonzero(table.empty(name)).tolist()]
    require(not gaps, argument, expected="a value in every cell", got=f"an empty one at row {gaps[0] if gaps else 0}, column {name!r} "
            f"({len(gaps)} such cells) in {table.path}", cure="fill the cells, or drop the rows or the column")  # fmt: skip
