"""Tables of numbers from csv, parquet, npy and npz files. A fault is named by its file, row and column.

Rows are counted from 1, as a person reads them; in a csv file the header is row 1 and empty lines count. A csv file whose
first row is all numbers has no header: its columns are called x0, x1, ..., and so are those of a two-dimensional array.

A label is text, a whole number or a boolean. If all labels read as whole numbers, 3, 3.0 and 03 are one label. An empty cell, NaN
and null are no label.
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
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa

from driftway.checks import InputError, require
from driftway.data.images import encode, read_images

MOST_CLASSES = 1000

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
class Labelled:
    """Numbers from a file, and a class for every row.

    Args:
        table: the numbers, without the labels.
        labels: int64 indices into classes, (n,).
        classes: the different labels as text, in numerical order if all are whole numbers, else in alphabetical order.
    """

    table: Table
    labels: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """A file under reading: what an error about it says."""

    argument: str
    path: Path
    key: str | None
    columns: Sequence[str] | None
    label: str | None

    def fail(self, expected: str, got: str, cure: str) -> NoReturn:
        raise InputError(self.argument, expected=expected, got=f"{' '.join(got.split())} in {self.path}", cure=cure)

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
class _Cells:
    """What a file holds: values, names, the row of the file where it is not index + 1, labels if asked for."""

    values: np.ndarray
    names: tuple[str, ...]
    rows: Sequence[int] | None = None
    labels: Sequence[Any] = ()

    def row(self, index: int) -> int:
        return index + 1 if self.rows is None else self.rows[index]


def cell_number(text: str) -> float | None:
    """The number that a csv cell holds, or None. True and False are 1 and 0; an underscore makes text."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower())


def _read_csv(source: _Source) -> _Cells:
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
    return _Cells(np.array(cells).reshape(len(rows), len(keep)), tuple(names[j] for j in keep), rows, labels)


def _read_parquet(source: _Source) -> _Cells:
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
    return _Cells(np.column_stack(columns), tuple(names[j] for j in keep), labels=labels)


def _of_array(source: _Source, values: np.ndarray, labels: Sequence[Any] = ()) -> _Cells:
    if values.dtype.kind not in "biuf":
        source.fail("an array of real numbers", f"dtype {values.dtype}", "convert it to a float array")
    if values.ndim != 2:
        if source.columns is not None:
            source.fail("two dimensions to choose columns of", f"shape {values.shape}", "leave the columns out")
        return _Cells(values, (), labels=labels)
    names = tuple(f"x{j}" for j in range(values.shape[1]))
    keep = source.select(names) if names else []
    return _Cells(values[:, keep], tuple(names[j] for j in keep), labels=labels)


def _read_npy(source: _Source) -> _Cells:
    if source.label is not None:
        source.fail("a place for labels", "one array and no more", "put data and labels into one .npz file")
    with source.path.open("rb") as file:
        return _of_array(source, np.lib.format.read_array(file, allow_pickle=False))


def _read_npz(source: _Source) -> _Cells:
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
    source = _locate(argument, Path(path), columns, None)
    return _table(source, _load(source))


def read_labelled(argument: str, path: str | Path, *, labels: str, columns: Sequence[str] | None = None) -> Labelled:
    """Read a table as `read_table` does, with one column or array of it taken out as labels; or a folder of images by class.

    Args:
        argument: what an error calls the file, e.g. the option that named it.
        path: a file ending in .csv, .parquet or .npz, or a folder with a sub-folder of images for every class.
        labels: the column with the labels; in an npz file the key of an array (n,); for images the word "folder".
        columns: the columns of numbers to read, in this order; all but the labels if None.

    Raises:
        InputError: as `read_table` and `read_images` do, and if there are no such labels, a row has none, one is neither text nor
            a whole number nor a boolean, or there are more than 1000 different ones.
    """
    path = Path(path)
    if path.is_dir():
        require(labels == "folder" and columns is None, "labels", expected="'folder' for a folder of images, and no columns",
                got=f"{labels!r}", cure="name the sub-folders by class and pass 'folder'")  # fmt: skip
        images = read_images(argument, path)
        if images.labels is None:
            raise InputError(argument, expected="a sub-folder of images for every class", got=f"no sub-folders in {path}",
                             cure="sort the images into sub-folders named by class")  # fmt: skip
        return Labelled(Table(images.values, (), path), images.labels, images.classes)
    source = _locate(argument, path, columns, labels)
    cells = _load(source)
    return Labelled(_table(source, cells), *encode(_label_names(source, cells)))


def _locate(argument: str, path: Path, columns: Sequence[str] | None, label: str | None) -> _Source:
    key = None
    inside = re.fullmatch(r"(.+\.npz):([^:]+)", str(path), re.IGNORECASE)
    if inside and not path.exists():
        path, key = Path(inside[1]), inside[2]
    known = f"a file ending in {', '.join(_READERS)}"
    require(not path.is_dir(), argument, expected=known, got=f"{path}, a directory", cure="name a file in it")
    require(path.exists(), argument, expected="a file", got=f"{path}, which does not exist", cure="check the path")
    require(path.suffix.lower() in _READERS, argument, expected=known, got=str(path), cure="convert it to one of those")
    return _Source(argument, path, key, columns, label)


def _load(source: _Source) -> _Cells:
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
        source.fail(f"a whole {source.path.suffix} file", f"damage ({error})", "write the file again")


def _table(source: _Source, cells: _Cells) -> Table:
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


def _label_names(source: _Source, cells: _Cells) -> list[str]:
    """The labels as text, whole numbers in their shortest form."""
    texts = []
    for i, label in enumerate(cells.labels):
        label = "" if label is None or label is pd.NA else label
        if not isinstance(label, str | bool | int | float):
            source.fail("labels of text, whole numbers or booleans", f"{type(label).__name__} at row {cells.row(i)}",
                        "convert the labels to text")  # fmt: skip
        texts.append(str(label).strip())
    absent = [i for i, text in enumerate(texts) if text.lower() in ("", "nan", "null")]
    if absent:
        source.fail("a label in every row", f"none at row {cells.row(absent[0])} ({len(absent)} such rows)",
                    "fill the labels or drop the rows")  # fmt: skip
    numbers = {text: cell_number(text) for text in set(texts) if text.lower() not in ("true", "false")}
    if len(numbers) == len(set(texts)) and None not in numbers.values():
        for i, text in enumerate(texts):
            if not float(text).is_integer():
                source.fail("labels of text, whole numbers or booleans", f"{text} at row {cells.row(i)}",
                            "choose the column with the classes, or round the labels")  # fmt: skip
        texts = [str(int(text) if re.fullmatch(r"[+-]?\d{1,4000}", text) else int(float(text))) for text in texts]
    if len(set(texts)) > MOST_CLASSES:
        source.fail(f"at most {MOST_CLASSES} different labels", f"{len(set(texts))} of {source.label!r}",
                    "choose the column with the classes, or group the rare ones")  # fmt: skip
    return texts
