"""Tables of numbers to csv, parquet, npy and npz files, for `read_table` to read, and images to a png sheet for the eye.

A file is written whole or not at all. A sheet is a near-square grid of images with seams of one pixel, in grey or RGB:

    pixel = 255 (x - low) / (high - low), cut to 0..255          (low, high) the span, by default of the images shown
"""

import io
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from driftway.checks import InputError, real, require
from driftway.data.cells import cell_number
from driftway.store import write_file


def _csv(values: np.ndarray, names: Sequence[str]) -> bytes:
    return pd.DataFrame(values, columns=list(names)).to_csv(index=False, lineterminator="\n").encode()


def _parquet(values: np.ndarray, names: Sequence[str]) -> bytes:
    return pd.DataFrame(values, columns=list(names)).to_parquet(index=False)


def _npy(values: np.ndarray, names: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _npz(values: np.ndarray, names: Sequence[str]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, values=values)
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[np.ndarray, Sequence[str]], bytes]] = {
    ".csv": _csv, ".parquet": _parquet, ".npy": _npy, ".npz": _npz,
}  # fmt: skip
_SHEET, _SHOWN, _SEAM = ".png", 100, 128
_FLAT = {64: (8, 8), 784: (28, 28)}


def _pictures(values: np.ndarray) -> np.ndarray:
    """The first images of a sheet, (n, h, w, 1) or (n, h, w, 3)."""
    event = values.shape[1:]
    if len(event) == 1 and event[0] in _FLAT:
        event = (1, *_FLAT[event[0]])
    event = (1, *event) if len(event) == 2 else event
    if len(event) != 3 or event[0] not in (1, 3) or 0 in event or len(values) == 0:
        raise InputError("values", expected="images (n, h, w), (n, 1, h, w), (n, 3, h, w) or 64 or 784 columns for a .png file",
                         got=f"shape {values.shape}", cure="reshape the rows, or write another kind of file")  # fmt: skip
    return np.moveaxis(values[:_SHOWN].astype(np.float64).reshape(-1, *event), 1, -1)


def _png(values: np.ndarray, span: tuple[float, float] | None) -> bytes:
    images = _pictures(values)
    require(bool(np.isfinite(images).all()), "values", expected="finite numbers for a .png file", got="NaN or infinity",
            cure="drop those rows")  # fmt: skip
    low, high = (float(images.min()), float(images.max())) if span is None else (real("span", bound) for bound in span)
    require(low < high or span is None, "span", expected="(low, high) with low < high", got=span, cure="leave it out or widen it")
    pixels = np.rint(255 * np.clip((images - low) / (high - low or 1.0), 0, 1)).astype(np.uint8)
    n, h, w, channels = pixels.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h + 1, w + 1, channels), _SEAM, np.uint8)
    cells[:n, :h, :w] = pixels
    sheet = cells.reshape(rows, columns, h + 1, w + 1, channels).swapaxes(1, 2).reshape(rows * (h + 1), columns * (w + 1), channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet[:-1, :-1].squeeze(-1) if channels == 1 else sheet[:-1, :-1]).save(buffer, "PNG")
    return buffer.getvalue()


def writable(argument: str, path: str | Path) -> Path:
    """A path that `write_table` can write to, checked before the work that makes the table.

    Raises:
        InputError: if it has an unknown ending, is a directory, or lies where no file can be made.
    """
    path = Path(path)
    known = f"a file ending in {', '.join((*_WRITERS, _SHEET))}"
    require(path.suffix.lower() in (*_WRITERS, _SHEET), argument, expected=known, got=str(path), cure="name one of those")
    require(not path.is_dir(), argument, expected=known, got=f"{path}, a directory", cure="name a file in it")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    require(above.is_dir() and os.access(above, os.W_OK | os.X_OK), argument, expected="a place to write to",
            got=f"{path} below {above}", cure="choose a folder that you may write to")  # fmt: skip
    return path


def write_table(path: str | Path, values: np.ndarray, names: Sequence[str] = (), *, span: tuple[float, float] | None = None) -> None:
    """Write a table, atomically: an older file at the path is replaced at the end or kept.

    Args:
        path: a file ending in .csv, .parquet, .npy, .npz or .png. Only the first two keep names; .npy and .npz take any shape. A
            .png file is a sheet of the first 100 images: grey (n, h, w) or (n, 1, h, w), RGB (n, 3, h, w), or 64 or 784 columns.
        values: one sample per row, (n, *event).
        names: one name per column, x0, x1, ... if empty.
        span: of a .png file, the values that are black and white; those of the darkest and the brightest pixel if None.

    Raises:
        InputError: if the path is not `writable`, or names, values and span do not fit each other or the file.
    """
    path = writable("path", path)
    require(isinstance(values, np.ndarray) and values.dtype.kind in "biuf", "values", expected="an array of real numbers",
            got=getattr(values, "dtype", type(values).__name__), cure="convert it to a float array")  # fmt: skip
    if path.suffix.lower() in (".csv", ".parquet"):
        require(values.ndim == 2 and values.shape[1] > 0, "values", expected=f"rows and columns for {path.name}",
                got=f"shape {values.shape}", cure="write a .npy or .npz file, or flatten the rows")  # fmt: skip
        names = list(names) or [f"x{j}" for j in range(values.shape[1])]
        require(len(names) == values.shape[1], "names", expected=f"{values.shape[1]} names, one per column",
                got=f"{len(names)}", cure="name every column")  # fmt: skip
        require(all(names) and len(set(names)) == len(names), "names", expected="different names", got=f"{names}",
                cure="name every column differently")  # fmt: skip
        if path.suffix.lower() == ".csv":
            plain = [name for name in names if cell_number(name) is not None]
            require(not plain, "names", expected="names that are not numbers, which a csv reader takes for a row",
                    got=f"{plain}", cure="rename the columns or write a .parquet file")  # fmt: skip
    suffix = path.suffix.lower()
    write_file(path, _png(values, span) if suffix == _SHEET else _WRITERS[suffix](values, names))
