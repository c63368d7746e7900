"""Texts with one label each, from csv, tsv and parquet files and from folders written by `save_to_disk` of the package datasets.

    labels                           in kind="auto"
    text, booleans, class numbers    classes
    whole numbers                    classes if at most 20 different ones and at most half as many as rows, else numbers
    other numbers                    numbers

Text that reads as numbers counts as numbers: 3, 3.0 and 03 are one label. Class numbers are those that a data set has names for. An
empty cell, NaN, null and the class number -1 are no label. Rows are counted from 1, as a spreadsheet does: the header of a csv or tsv
file is row 1, empty rows count, and a text of several lines is one row.
"""

import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.checks import InputError, choice, require
from driftway.data.cells import Source, cell_number, exists
from driftway.data.images import encode

LEAST, FEW, MOST = 20, 20, 1000  # rows; classes that whole numbers may be; classes
ENDINGS = (".csv", ".tsv", ".parquet")
SAVED = "a folder saved by datasets (dataset.save_to_disk)"


@dataclass(frozen=True)
class Texts:
    """Texts, and a class or a number for every one.

    Args:
        texts: n of them, none empty.
        labels: (n,) int64 indices into classes, or (n,) float32 numbers.
        classes: names, in numerical order if all are whole numbers, else in alphabetical order, or in that of a data set which names
            them; empty where labels are numbers.
        path: the file or folder.
    """

    texts: list[str]
    labels: Int[Tensor, " n"] | Float[Tensor, " n"]
    classes: tuple[str, ...]
    path: Path


@dataclass(frozen=True)
class _Columns:
    """Two columns as they are in the file, the number of each row, and the names of classes where the file has them."""

    texts: list[Any]
    labels: list[Any]
    rows: Sequence[int]
    names: tuple[str, ...] = ()


def read_texts(argument: str, path: str | Path, *, text: str = "text", label: str = "label", split: str | None = None,
               kind: str = "auto", classes: Sequence[str] | None = None) -> Texts:  # fmt: skip
    """Read texts and their labels.

    Args:
        argument: what an error calls the file, e.g. the option that named it.
        path: a file ending in .csv, .tsv or .parquet, or a folder that `datasets` has saved.
        text: the column with the texts.
        label: the column with the labels.
        split: of a folder with several; "train" if None.
        kind: "classes", "numbers", or "auto".
        classes: those of the training data, to read test data with: labels are their indices, or numbers if there are none. Test data
            may be few rows, and of one class.

    Raises:
        InputError: if the file or folder is missing, empty, damaged or of an unknown kind, has no such column or split, fewer than 20
            rows, a row without text or label, labels that are all the same or of the wrong kind, or unknown to `classes`.
    """
    path = Path(path)
    source = Source(argument, path, None, None, label)
    choice("kind", kind, ("auto", "classes", "numbers"))
    known = f"a file ending in {', '.join(ENDINGS)}, or {SAVED}"
    require(exists(path), argument, expected=known, got=f"{str(path)!r:.200}, which does not exist", cure="check the path")
    require(path.is_dir() or path.suffix.lower() in ENDINGS, argument, expected=known, got=str(path), cure="convert it to one of those")
    try:
        columns = _folder(source, text, split) if path.is_dir() else _file(source, text, split)
    except InputError:
        raise
    except pd.errors.EmptyDataError:
        source.fail("the names of columns in the first line", "an empty line", "write them there")
    except UnicodeDecodeError as error:
        source.fail("UTF-8 text", f"other bytes ({error})", "save it as UTF-8")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, pa.ArrowException, pd.errors.ParserWarning) as error:
        source.damaged("a whole file" if path.is_file() else "a whole data set", error,
                       "write it again; in a csv file, quote cells that hold separators, and double the quotes in them")  # fmt: skip
    _present(source, columns, text)
    if len(columns.texts) < (least := LEAST if classes is None else 1):
        source.fail(f"at least {least} rows", str(len(columns.texts)), "give it more rows")
    labels, found = _labels(source, columns, kind, classes)
    if classes is None and bool((labels == labels[0]).all()):
        source.fail("labels that differ", f"{columns.labels[0]!r} in all {len(labels)} rows", "give it other rows, or another column")
    return Texts(columns.texts, labels, found, path)


def _file(source: Source, text: str, split: str | None) -> _Columns:
    """The two columns of a csv, tsv or parquet file."""
    path = source.path
    if split is not None:
        source.fail("no split for a single file", f"split {split!r}", "leave it out, and name the file of the split")
    if path.stat().st_size == 0:
        source.fail("rows of texts", "an empty file, nothing", "write the file again")
    if path.suffix.lower() == ".parquet":
        return _of_table(source, text, pq.ParquetFile(path).read())
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",", header=None, dtype=str, keep_default_na=False,
                            skip_blank_lines=False, skipinitialspace=True, encoding="utf-8-sig").fillna("")  # fmt: skip
    frame.index = frame.index + 1
    frame = frame[(frame != "").any(axis=1)]
    names = [name.strip() for name in frame.iloc[0]]
    if len(names) == 1 and re.search("[;\t|,]", names[0]):
        source.fail("several columns", f"one, named {names[0]!r}", "separate the columns by commas in .csv and by tabs in .tsv files")
    texts, labels = (frame.iloc[1:, source.place(names, name)] for name in (text, str(source.label)))
    if path.suffix.lower() == ".tsv" and texts.str.contains("\t").any():  # rows that one open quote has made a single one
        row = texts.index[texts.str.contains("\t")][0]
        source.fail("texts without tabs", f"some at row {row}", "close the quote that the text begins with, or double it")
    return _Columns(texts.tolist(), labels.tolist(), texts.index.tolist())


def _folder(source: Source, text: str, split: str | None) -> _Columns:
    """The two columns of a data set that `datasets` has saved, or of one split of several."""
    path = source.path
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json")["splits"]
        split = "train" if split is None else split
        if split not in splits:
            source.fail(f"a split among {', '.join(splits)}", f"no split {split!r}", "choose from those names")
        if Path(split).name != split:
            source.fail("a split of the data set", f"{split!r}", "choose from those names")
        path = path / split
    elif split is not None:
        source.fail("no split for a single data set", f"split {split!r}", "leave it out, or name the folder that holds the splits")
    if not (path / "state.json").is_file():
        source.fail(SAVED, f"no state.json under {path.name}", "save the data set by its method save_to_disk, or name a file")
    state = _json(path / "state.json")
    if any(value for key, value in state.items() if key.startswith("_indices")):
        source.fail("rows in their order", "a selection of rows (indices)", "call dataset.flatten_indices() before you save it")
    tables = []
    for entry in state["_data_files"]:
        if Path(entry["filename"]).name != entry["filename"]:
            source.fail("names of files in the data set", f"{entry['filename']!r}", "save it again by its method save_to_disk")
        with pa.memory_map(str(path / entry["filename"])) as file, pa.ipc.open_stream(file) as stream:
            tables.append(stream.read_all())
            tables[-1].validate(full=True)  # offsets of a damaged file point anywhere
    if not tables:
        source.fail("rows of texts", "a data set without data files", "save it again")
    info = _json(path / "dataset_info.json") if (path / "dataset_info.json").is_file() else {}
    return _of_table(source, text, pa.concat_tables(tables), info.get("features"))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _of_table(source: Source, text: str, table: pa.Table, features: dict[str, Any] | None = None) -> _Columns:
    """The two columns of a table, with the names that `datasets` gives its classes."""
    names = [str(name) for name in table.column_names]
    places = [source.place(names, name) for name in (text, str(source.label))]
    if features is None:
        features = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    feature = (features or {}).get(str(source.label), {})
    known = tuple(str(name) for name in feature.get("names") or ()) if feature.get("_type") == "ClassLabel" else ()
    texts, labels = (table.column(j).to_pylist() for j in places)
    return _Columns(texts, labels, range(1, len(texts) + 1), known)


def _present(source: Source, columns: _Columns, text: str) -> None:
    """An error unless every row has a text and a label."""
    no_label = ("", "nan", "null", "-1") if columns.names else ("", "nan", "null")
    for what, name, values, no, kinds in (("text", text, columns.texts, ("",), str),
                                          ("label", source.label, columns.labels, no_label, str | bool | int | float)):  # fmt: skip
        rows = [row for value, row in zip(values, columns.rows, strict=True)
                if value is None or value != value or str(value).strip().lower() in no]  # fmt: skip
        if rows:
            shown = ("s " if len(rows) > 1 else " ") + ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            source.fail(f"a {what} in every row", f"none at row{shown} ({len(rows)} of {len(values)})", "drop these rows, or fill them")
        for value, row in zip(values, columns.rows, strict=True):
            if not isinstance(value, kinds):
                wanted = "text" if kinds is str else "text, numbers or booleans"
                source.fail(f"{wanted} in column {name!r}", f"{type(value).__name__} at row {row}", f"name the column with the {what}s")


def _labels(source: Source, columns: _Columns, kind: str, classes: Sequence[str] | None) -> tuple[Tensor, tuple[str, ...]]:
    """The labels as a tensor, and the classes."""
    rows, values = columns.rows, [value.strip() if isinstance(value, str) else value for value in columns.labels]
    if classes is not None:
        kind = "classes" if classes else "numbers"
    numbers = [None if str(value).lower() in ("true", "false") else cell_number(str(value)) for value in values]
    if kind == "auto":
        whole = all(x is not None and x.is_integer() for x in numbers)
        few = len(set(numbers)) <= min(FEW, len(values) // 2)
        kind = "classes" if columns.names or None in numbers or (whole and few) else "numbers"
    if kind == "numbers":
        found = torch.tensor([math.nan if x is None else x for x in numbers], dtype=torch.float64).float()
        bad = (~torch.isfinite(found)).nonzero().flatten().tolist()
        if bad:
            source.fail("finite numbers as labels", f"{values[bad[0]]!r} at row {rows[bad[0]]} ({len(bad)} such rows)",
                        "fix the labels, or read them as classes")  # fmt: skip
        return found, ()
    names = _names(source, columns, values, numbers)
    if classes is not None:
        index = {name: i for i, name in enumerate(classes)}
        for name, row in zip(names, rows, strict=True):
            if name not in index:
                known = ", ".join(list(classes)[:12]) + (", ..." if len(classes) > 12 else "")
                source.fail(f"labels among {known}", f"{name!r} at row {row}", "drop these rows, or train with some of this class")
        return torch.tensor([index[name] for name in names]), tuple(classes)
    if columns.names:
        return torch.tensor([int(value) for value in values]), columns.names
    most = min(MOST, len(names) // 2)
    if len(set(names)) > most:
        source.fail(f"at most {most} different labels in {len(names)} rows", f"{len(set(names))} of {source.label!r}",
                    "name the column with the classes, or group the rare ones")  # fmt: skip
    labels, found = encode(names)
    return torch.from_numpy(labels), found


def _names(source: Source, columns: _Columns, values: list[Any], numbers: list[float | None]) -> list[str]:
    """The class of every row as text, whole numbers in their shortest form."""
    if columns.names:
        for value, row in zip(values, columns.rows, strict=True):
            if not isinstance(value, int) or not 0 <= value < len(columns.names):
                source.fail(f"class numbers from 0 to {len(columns.names) - 1}", f"{value!r} at row {row}", "save the data set again")
        return [columns.names[value] for value in values]
    if None in numbers:
        return [str(value) for value in values]
    names = []
    for value, x, row in zip(values, numbers, columns.rows, strict=True):
        if x is None or not x.is_integer():
            source.fail("labels of text or whole numbers", f"{value} at row {row}", "read labels as numbers, or name another column")
        names.append(str(int(value) if re.fullmatch(r"[+-]?\d{1,4000}", str(value)) else int(x)))
    return names
