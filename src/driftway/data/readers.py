"""Tables of numbers from csv, parquet, npy and npz files. A fault is named by its file, row and column.

Rows are counted from 1, as a person reads them; in a csv file the header is row 1 and empty lines count. A csv file whose
first row is all numbers has no header: its columns are called x0, x1, ..., and so are those of a two-dimensional array.
"""

import csv
import re
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa

from driftway.checks import InputError, require

# What the parsers raise on a damaged file: zipfile a RuntimeError for a locked one, numpy a MemoryError for a false shape.
_DAMAGE = (OSError, EOFError, ValueError, LookupError, RuntimeError, MemoryError, OverflowError,
           zipfile.BadZipFile, zlib.error, csv.Error, tokenize.TokenError, pa.ArrowException)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Numbers from a file.

    Args:
        values: one sample per row, (n, *event) with n >= 2, float32 or float64, all finite. Floats of these kinds stay as
            they are; whole numbers of up to 16 bits become float32, larger ones and text float64.
        names: one name per column of a two-dimensional table, else empty.
        path: the file.
    """

    values: np.ndarray
    names: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class _Source:
    """A file under reading: what an error about it says."""

    argument: str
    path: Path
    key: str | None
    columns: Sequence[str] | None

    def fail(self, expected: str, got: str, cure: str) -> NoReturn:
        raise InputError(self.argument, expected=expected, got=f"{' '.join(got.split())} in {self.path}", cure=cure)

    def select(self, names: Sequence[str]) -> list[int]:
        """The positions of the wanted columns."""
        wanted = list(names if self.columns is None else self.columns)
        if not all(wanted) or not wanted:
            self.fail("a name for every column", f"none for column {wanted.index('') + 1}" if wanted else "no column",
                      "name it in the header, or choose the columns to read")  # fmt: skip
        for name in wanted:
            if name not in names:
                known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
                self.fail(f"columns among {known}", f"no column {name!r}", "choose from those names")
            if wanted.count(name) > 1 or list(names).count(name) > 1:
                self.fail("columns with names of their own", f"column {name!r} twice", "rename or drop one of them")
        return [list(names).index(name) for name in wanted]

    def text(self, value: object, row: int, name: str) -> NoReturn:
        """Report a cell that is no number."""
        shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
        cure = "fix the cell, or choose the columns to read"
        if isinstance(value, str):
            shown = shown if value.strip() else "an empty cell"
            cure = "separate the columns by commas" if re.search("[;\t|]", value) else cure
        self.fail("numbers", f"{shown} at row {row}, column {name!r}", cure)


_Cells = tuple[np.ndarray, tuple[str, ...], Sequence[int] | None]  # values, names, row of the file where not index + 1


def cell_number(text: str) -> float | None:
    """The number that a csv cell holds, or None. True and False are 1 and 0; an underscore makes text."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower())


def _read_csv(source: _Source) -> _Cells:
    names: list[str] = []
    keep: list[int] = []
    cells, rows = array("d"), array("q")
    with source.path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, skipinitialspace=True)
        for row in reader:
            if len(row) < 2 and not "".join(row).strip():
                continue  # an empty line
            if not names:
                filled = [cell for cell in row if cell.strip()]
                texts = [cell for cell in filled if cell_number(cell) is None]
                if texts and len(texts) < len(filled):
                    source.fail("a first row of only names or only numbers", f"{texts[0]!r} beside numbers",
                                "fix the cell, or give the columns names that are not numbers")  # fmt: skip
                names = [cell.strip() for cell in row] if texts else [f"x{j}" for j in range(len(row))]
                keep = source.select(names)
                if texts:
                    continue
            if len(row) != len(names):
                source.fail(f"{len(names)} cells in every row", f"{len(row)} at row {reader.line_num}",
                            "fill or fix the row, and quote cells that hold commas")  # fmt: skip
            for j in keep:
                x = cell_number(row[j])
                if x is None:
                    source.text(row[j], reader.line_num, names[j])
                cells.append(x)
            rows.append(reader.line_num)
    if not names:
        source.fail("rows of numbers", "only empty lines", "give it the data")
    return np.array(cells).reshape(len(rows), len(keep)), tuple(names[j] for j in keep), rows


def _read_parquet(source: _Source) -> _Cells:
    frame = pd.read_parquet(source.path)
    names = [str(name) for name in frame.columns]
    keep = source.select(names)
    columns = []
    for j in keep:
        column = frame.iloc[:, j]
        if not pd.api.types.is_numeric_dtype(column.dtype):  # which includes bool
            present = np.flatnonzero(column.notna())
            row = int(present[0]) if len(present) else 0
            source.text(column.iloc[row] if len(column) else str(column.dtype), row + 1, names[j])
        numpy = isinstance(column.dtype, np.dtype)
        columns.append(column.to_numpy() if numpy else column.to_numpy(dtype=np.float64, na_value=np.nan))
    return np.column_stack(columns), tuple(names[j] for j in keep), None


def _of_array(source: _Source, values: np.ndarray) -> _Cells:
    if values.dtype.kind not in "biuf":
        source.fail("an array of real numbers", f"dtype {values.dtype}", "convert it to a float array")
    if values.ndim != 2:
        if source.columns is not None:
            source.fail("two dimensions to choose columns of", f"shape {values.shape}", "leave the columns out")
        return values, (), None
    names = tuple(f"x{j}" for j in range(values.shape[1]))
    keep = source.select(names) if names else []
    return values[:, keep], tuple(names[j] for j in keep), None


def _read_npy(source: _Source) -> _Cells:
    with source.path.open("rb") as file:
        return _of_array(source, np.lib.format.read_array(file, allow_pickle=False))


def _read_npz(source: _Source) -> _Cells:
    with zipfile.ZipFile(source.path) as bundle:
        held = {name.removesuffix(".npy"): name for name in bundle.namelist() if name.endswith(".npy")}
        listed = ", ".join(held) or "none"
        if source.key is None and len(held) != 1:
            source.fail("one array", f"{len(held)} ({listed})", f"name its key, as in {source.path.name}:key")
        key = next(iter(held)) if source.key is None else source.key
        if key not in held:
            source.fail(f"a key among {listed}", f"no array {key!r}", "choose from those keys")
        with bundle.open(held[key]) as file:
            return _of_array(source, np.lib.format.read_array(file, allow_pickle=False))


_READERS: dict[str, Callable[[_Source], _Cells]] = {
    ".csv": _read_csv, ".parquet": _read_parquet, ".npy": _read_npy, ".npz": _read_npz,
}  # fmt: skip


def read_table(argument: str, path: str | Path, *, columns: Sequence[str] | None = None) -> Table:
    """Read a table of finite numbers with at least two rows.

    Args:
        argument: what an error calls the file, e.g. the option that named it.
        path: a file ending in .csv, .parquet, .npy or .npz; one array of several in an npz file is named `file.npz:key`.
        columns: the columns to read, in this order; all of them if None.

    Raises:
        InputError: if the file is missing, empty, damaged, of an unknown kind, pickled, ragged, or has a column without a
            name of its own, a cell that is no finite number, fewer than two rows, or no such column or key.
    """
    path, key = Path(path), None
    inside = re.fullmatch(r"(.+\.npz):([^:]+)", str(path), re.IGNORECASE)
    if inside and not path.exists():
        path, key = Path(inside[1]), inside[2]
    known = f"a file ending in {', '.join(_READERS)}"
    require(not path.is_dir(), argument, expected=known, got=f"{path}, a directory", cure="name a file in it")
    require(path.exists(), argument, expected="a file", got=f"{path}, which does not exist", cure="check the path")
    require(path.suffix.lower() in _READERS, argument, expected=known, got=str(path), cure="convert it to one of those")
    source = _Source(argument, path, key, columns)
    if path.stat().st_size == 0:
        source.fail("rows of numbers", "an empty file, nothing", "write the file again")
    try:
        values, names, rows = _READERS[path.suffix.lower()](source)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        source.fail("UTF-8 text", f"other bytes ({error})", "save it as UTF-8")
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            source.fail("an array of real numbers", "pickled objects", "convert it to a float array")
        source.fail(f"a whole {path.suffix} file", f"damage ({error})", "write the file again")
    return Table(_finite(source, values, names, rows), names, path)


def _finite(source: _Source, values: np.ndarray, names: tuple[str, ...], rows: Sequence[int] | None) -> np.ndarray:
    if values.ndim < 2 or 0 in values.shape[1:]:
        source.fail("samples in rows, with columns", f"shape {values.shape}", "reshape one column to (n, 1)")
    if len(values) < 2:
        got = "one row" if len(values) else "column names and no rows"
        source.fail("at least 2 rows", got, "give it more samples")
    precise = np.promote_types(values.dtype, np.float32)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, dtype=np.float64 if precise.itemsize > 8 else precise)
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        row = rows[index[0]] if rows is not None else index[0] + 1
        place = f"column {names[index[1]]!r}" if names else f"entry {index[1:]}"
        source.fail("finite numbers", f"{values[index]} at row {row}, {place} ({int(bad.sum())} such cells)",
                    "drop or fill the missing cells")  # fmt: skip
    return values
