"""Tables of numbers to csv, parquet, npy and npz files, for `read_table` to read. A file is written whole or not at all."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from driftway.checks import require
from driftway.data.readers import cell_number
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


def writable(argument: str, path: str | Path) -> Path:
    """A path that `write_table` can write to, checked before the work that makes the table.

    Raises:
        InputError: if it has an unknown ending, is a directory, or lies where no file can be made.
    """
    path = Path(path)
    known = f"a file ending in {', '.join(_WRITERS)}"
    require(path.suffix.lower() in _WRITERS, argument, expected=known, got=str(path), cure="name one of those")
    require(not path.is_dir(), argument, expected=known, got=f"{path}, a directory", cure="name a file in it")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    require(above.is_dir() and os.access(above, os.W_OK | os.X_OK), argument, expected="a place to write to",
            got=f"{path} below {above}", cure="choose a folder that you may write to")  # fmt: skip
    return path


def write_table(path: str | Path, values: np.ndarray, names: Sequence[str] = ()) -> None:
    """Write a table, atomically: an older file at the path is replaced at the end or kept.

    Args:
        path: a file ending in .csv, .parquet, .npy or .npz. Only the first two keep names; the last two take any shape.
        values: one sample per row, (n, *event).
        names: one name per column, x0, x1, ... if empty.

    Raises:
        InputError: if the path is not `writable`, or names and values do not fit each other or the file.
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
    write_file(path, _WRITERS[path.suffix.lower()](values, names))
