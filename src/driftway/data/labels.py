"""Tables and folders of images with a class for every row.

A label is text, a whole number or a boolean. If all labels read as whole numbers, 3, 3.0 and 03 are one label. An empty cell, NaN
and null are no label.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from driftway.checks import InputError, require
from driftway.data.cells import Cells, Source, cell_number
from driftway.data.images import encode, read_images
from driftway.data.readers import Table, as_table, load_cells, locate

MOST_CLASSES = 1000


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
    source = locate(argument, path, columns, labels)
    cells = load_cells(source)
    return Labelled(as_table(source, cells), *encode(_names(source, cells)))


def _names(source: Source, cells: Cells) -> list[str]:
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
