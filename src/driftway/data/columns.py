"""Tables with columns of numbers and columns of text, from csv, tsv and parquet files.

    cells of a column                      it is
    numbers, True and False, empty ones    numbers, NaN where empty
    text, no dates                         text
    more numbers than text                 refused: the first cell of text is named
    dates                                  refused: what of a date matters is for the user to say

The first row of a csv or tsv file names the columns. Empty cells, NA, N/A, NaN and null are empty. Rows are counted from 1, as a person
reads them; in a csv or tsv file the header is row 1 and empty lines count.
"""

import csv
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from driftway.checks import InputError, require
from driftway.data.cells import Source, cell_number, exists

ENDINGS = (".csv", ".tsv", ".parquet")
EMPTY = ("", "na", "n/a", "nan", "null")
DATE = re.compile(r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2}))([T ].*)?|\d{4}-\d{2}|\d{1,2}:\d{2}(:\d{2})?")


@dataclass(frozen=True)
class Columns:
    """Named columns of one length.

    Attributes:
        values: of each column that was read: float64, NaN where empty; or text, "" where empty.
        names: of all columns of the file.
        rows: the number of each row in the file.
        path: the file.
    """

    values: dict[str, np.ndarray]
    names: tuple[str, ...]
    rows: Sequence[int]
    path: Path

    def __len__(self) -> int:
        return len(self.rows)

    def is_text(self, name: str) -> bool:
        """Whether a column holds text."""
        return self.values[name].dtype.kind != "f"

    def empty(self, name: str) -> np.ndarray:
        """Which cells of a column are empty."""
        return self.values[name] == "" if self.is_text(name) else np.isnan(self.values[name])


def read_columns(argument: str, path: str | Path, *, only: Collection[str] | None = None, drop: Collection[str] = ()) -> Columns:
    """Read a table.

    Args:
        argument: what an error calls the file, e.g. the option that named it.
        path: a file ending in .csv, .tsv or .parquet.
        only: names of columns to read, where the file has them; all if None.
        drop: names of columns that are not read.

    Raises:
        InputError: if the file is missing, empty, damaged or of another kind, or a column has no name of its own, or holds dates, numbers
            with some text among them, infinity, or neither numbers nor text.
    """
    path = Path(path)
    source, known = Source(argument, path, None, None, None), f"a file ending in {', '.join(ENDINGS)}"
    require(exists(path), argument, expected=known, got=f"{str(path)!r:.200}, which does not exist", cure="check the path")
    require(path.is_file() and path.suffix.lower() in ENDINGS, argument, expected=known, got=str(path), cure="convert it to one of those")
    if path.stat().st_size == 0:
        source.fail("rows with names of columns", "an empty file, nothing", "write the file again")
    try:
        names, cells, rows = _parquet(path) if path.suffix.lower() == ".parquet" else _delimited(source)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        source.fail("UTF-8 text", f"other bytes ({error})", "save it as UTF-8")
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        source.damaged("a whole file", error, "write it again")
    for name in names:
        if not name:
            source.fail("a name for every column", f"none for column {names.index(name) + 1}", "name it in the header")
        if names.count(name) > 1:
            source.twice(name)
    if not rows:
        source.fail("at least one row", "column names and no rows", "give it data")
    kept = [j for j, name in enumerate(names) if name not in drop and (only is None or name in only)]
    try:
        values = {names[j]: _column(source, names[j], cells[j], rows) for j in kept}
    except (UnicodeDecodeError, pa.ArrowException) as error:  # text is decoded as it is looked at
        source.damaged("a whole file", error, "write it again")
    return Columns(values, tuple(names), rows, path)


def _delimited(source: Source) -> tuple[list[str], list[Any], list[int]]:
    """Names, columns of cells and numbers of rows of a csv or tsv file."""
    tab = source.path.suffix.lower() == ".tsv"
    names: list[str] = []
    lines, rows = [], []
    with source.path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if tab else ",", skipinitialspace=True)
        for line in reader:
            if not "".join(line).strip():
                continue
            if not names:
                names = [cell.strip() for cell in line]
                if all(cell_number(name) is not None for name in names):
                    source.fail("names of columns in the first row", f"numbers ({', '.join(names[:3])}, ...)", "write a header")
                if len(names) == 1 and re.search("[;\t|,]", names[0]):
                    source.fail("several columns", f"one, named {names[0]!r}", f"separate the columns by {'tabs' if tab else 'commas'}")
                continue
            if len(line) != len(names):
                source.fail(f"{len(names)} cells in every row", f"{len(line)} at row {reader.line_num}",
                            "fill or fix the row, and quote cells that hold separators")  # fmt: skip
            lines.append(line)
            rows.append(reader.line_num)
    return names, list(zip(*lines, strict=True)) or [()] * len(names), rows


def _parquet(path: Path) -> tuple[list[str], list[Any], list[int]]:
    frame = pd.read_parquet(path)
    return [str(name) for name in frame.columns], [frame.iloc[:, j] for j in range(frame.shape[1])], list(range(1, len(frame) + 1))


def _column(source: Source, name: str, cells: Any, rows: Sequence[int]) -> np.ndarray:
    """A column as numbers or as text."""
    if isinstance(cells, pd.Series):
        if pd.api.types.is_numeric_dtype(cells.dtype) and not pd.api.types.is_complex_dtype(cells.dtype):  # booleans are among them
            return _finite(source, name, cells.to_numpy(dtype=np.float64, na_value=np.nan), rows)
        cells = ["" if value is None or value is pd.NA or value is pd.NaT or value != value else value for value in cells.tolist()]
    for value, row in zip(cells, rows, strict=True):
        if hasattr(value, "year") or hasattr(value, "hour"):
            _date(source, name, value, row)
        if not isinstance(value, str | bool | int | float):
            source.fail("numbers or text", f"{type(value).__name__} at row {row}, column {name!r}", "convert it, or drop the column")
    texts = [str(value).strip() for value in cells]
    texts = ["" if text.lower() in EMPTY else text for text in texts]
    numbers = [cell_number(text) if text else np.nan for text in texts]
    worded = [i for i, x in enumerate(numbers) if x is None]
    if not worded:
        return _finite(source, name, np.array(numbers, dtype=np.float64), rows)
    first = worded[0]
    if len(worded) < sum(text != "" for text in texts) - len(worded):
        shown = texts[first] if len(texts[first]) <= 40 else texts[first][:37] + "..."
        source.fail("numbers", f"{shown!r} at row {rows[first]}, column {name!r}", "fix the cell, empty it if the value is not known, or "
                    "drop the column")  # fmt: skip
    if all(DATE.fullmatch(texts[i]) for i in worded):
        _date(source, name, texts[first], rows[first])
    return np.array(texts, dtype=str)


def _date(source: Source, name: str, value: object, row: int) -> None:
    source.fail("numbers or categories", f"the date or time {str(value)!r} at row {row}, column {name!r}",
                "write what matters of it as numbers, such as the month or days since a day, or drop the column")  # fmt: skip


def _finite(source: Source, name: str, values: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    bad = np.flatnonzero(np.isinf(values))
    if len(bad):
        source.fail("finite numbers", f"{values[bad[0]]} at row {rows[bad[0]]}, column {name!r}", "fix the cell, or drop the row")
    return values
