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
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from driftway.checks import InputError, require
from driftway.data.cells import Cells, Source, cell_number, exists

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


def _read_csv(source: Source) -> Cells:
    names: list[str] = []
    keep: list[int] = []
    labels: list[str] = []
    label = -1
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
                label = -1 if source.label is None else source.place(names, source.label)
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
            if label >= 0:
                labels.append(row[label])
            rows.append(reader.line_num)
    if not names:
        source.fail("rows of numbers", "only empty lines", "give it the data")
    return Cells(np.array(cells).reshape(len(rows), len(keep)), tuple(names[j] for j in keep), rows, labels)


def _read_parquet(source: Source) -> Cells:
    frame = pd.read_parquet(source.path)
    names = [str(name) for name in frame.columns]
    labels = () if source.label is None else frame.iloc[:, source.place(names, source.label)].astype(object).tolist()
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
    return Cells(np.column_stack(columns), tuple(names[j] for j in keep), labels=labels)


def _of_array(source: Source, values: np.ndarray, labels: Sequence[Any] = ()) -> Cells:
    if values.dtype.kind not in "biuf":
        source.fail("an array of real numbers", f"dtype {values.dtype}", "convert it to a float array")
    if values.ndim != 2:
        if source.columns is not None:
            source.fail("two dimensions to choose columns of", f"shape {values.shape}", "leave the columns out")
        return Cells(values, (), labels=labels)
    names = tuple(f"x{j}" for j in range(values.shape[1]))
    keep = source.select(names) if names else []
    return Cells(values[:, keep], tuple(names[j] for j in keep), labels=labels)


def _read_npy(source: Source) -> Cells:
    if source.label is not None:
        source.fail("a place for labels", "one array and no more", "put data and labels into one .npz file")
    with source.path.open("rb") as file:
        return _of_array(source, np.lib.format.read_array(file, allow_pickle=False))


def _read_npz(source: Source) -> Cells:
    def array_of(key: str) -> np.ndarray:
        with bundle.open(held[key]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    with zipfile.ZipFile(source.path) as bundle:
        held = {name.removesuffix(".npy"): name for name in bundle.namelist() if name.endswith(".npy")}
        for key in (source.key, source.label):
            if key is not None and key not in held:
                source.fail(f"a key among {', '.join(held) or 'none'}", f"no array {key!r}", "choose from those keys")
        keys = [key for key in held if key != source.label] if source.key is None else [source.key]
        if len(keys) != 1 or keys == [source.label]:
            beside = "" if source.label is None else f" beside the labels {source.label!r}"
            source.fail(f"one array{beside}", f"{len(keys)} ({', '.join(keys) or 'none'})", f"name its key, as in {source.path.name}:key")
        values = array_of(keys[0])
        if source.label is None:
            return _of_array(source, values)
        labels = array_of(source.label)
        if labels.shape != values.shape[:1]:
            source.fail(f"one label per row, shape {values.shape[:1]}", f"shape {labels.shape} of {source.label!r}",
                        "save one label per row")  # fmt: skip
        return _of_array(source, values, labels.tolist())


_READERS: dict[str, Callable[[Source], Cells]] = {
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
    source = locate(argument, Path(path), columns, None)
    return as_table(source, load_cells(source))


def locate(argument: str, path: Path, columns: Sequence[str] | None, label: str | None) -> Source:
    """The file under reading, found and of a known kind; a key is taken off its name."""
    key = None
    inside = re.fullmatch(r"(.+\.npz):([^:]+)", str(path), re.IGNORECASE)
    if inside and not exists(path):
        path, key = Path(inside[1]), inside[2]
    known = f"a file ending in {', '.join(_READERS)}"
    require(exists(path), argument, expected="a file", got=f"{str(path)!r:.200}, which does not exist", cure="check the path")
    require(not path.is_dir(), argument, expected=known, got=f"{path}, a directory", cure="name a file in it")
    require(path.suffix.lower() in _READERS, argument, expected=known, got=str(path), cure="convert it to one of those")
    return Source(argument, path, key, columns, label)


def load_cells(source: Source) -> Cells:
    """What the file holds; damage of any kind is an input error."""
    suffix = source.path.suffix.lower()
    if source.path.stat().st_size == 0:
        source.fail("rows of numbers", "an empty file, nothing", "write the file again")
    try:
        return _READERS[suffix](source)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        source.fail("UTF-8 text", f"other bytes ({error})", "save it as UTF-8")
    except _DAMAGE as error:
        if "allow_pickle" in str(error):
            text = "" if source.label is None else ", and text labels to dtype=str"
            source.fail("an array of real numbers", "pickled objects", f"convert it to a float array{text}")
        source.damaged(f"a whole {source.path.suffix} file", error, "write the file again")


def as_table(source: Source, cells: Cells) -> Table:
    """The cells as a table of finite numbers, or the error that names the first cell that is none."""
    values, names = cells.values, cells.names
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
        place = f"column {names[index[1]]!r}" if names else f"entry {index[1:]}"
        source.fail("finite numbers", f"{values[index]} at row {cells.row(index[0])}, {place} ({int(bad.sum())} such cells)",
                    "drop or fill the missing cells")  # fmt: skip
    return Table(values, names, source.path)
