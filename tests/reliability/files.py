"""Valid files of every kind that is read, and what becomes of them on the way: bytes changed, cut, repeated, moved."""

import io
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from driftway.data import read_columns, read_images, read_labelled, read_table, read_texts
from tests.reliability.strategies import finite

ROWS = 24
TOKENS = (b"\x00", b"\xff", b"nan", b"inf", b"1e999", b"-", b'"', b",", b"\n", b"\r\n", b"\t", b"", b"\xef\xbb\xbf", b"\xff\xfe",
          b"9" * 400, b"PK\x03\x04", b"PAR1", b"\x93NUMPY", b"'descr': '|O'", b"(2147483647, 2147483647)",
          b"{", b"\x80\x04", struct.pack("<q", 2**60),
          struct.pack("<i", -1), "é".encode(), b"1_000", b"#N/A")  # fmt: skip


def numbers() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 3)).round(3)


def frame() -> pd.DataFrame:
    table = pd.DataFrame(numbers(), columns=["a", "b", "c"])
    table["text"] = [f"row {i} is {'good' if i % 2 else 'bad'}" for i in range(ROWS)]
    table["label"] = ["yes" if i % 2 else "no" for i in range(ROWS)]
    return table


def _written(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _image(ending: str) -> bytes:
    grey = (np.random.default_rng(1).random((6, 5)) * 255).astype(np.uint8)
    return _written(lambda file: Image.fromarray(grey).save(file, format=ending))


@cache
def valid(name: str) -> bytes:
    """The bytes of a file."""
    table = frame()
    plain, labels = numbers(), np.arange(ROWS) % 2
    return {
        "table.csv": lambda: table[["a", "b", "c"]].to_csv(index=False).encode(),
        "labelled.csv": lambda: table[["a", "b", "label"]].to_csv(index=False).encode(),
        "mixed.csv": lambda: table.to_csv(index=False).encode(),
        "mixed.tsv": lambda: table.to_csv(index=False, sep="\t").encode(),
        "texts.csv": lambda: table[["text", "label"]].to_csv(index=False).encode(),
        "texts.tsv": lambda: table[["text", "label"]].to_csv(index=False, sep="\t").encode(),
        "table.parquet": lambda: _written(lambda file: table[["a", "b", "c"]].to_parquet(file, compression=None)),
        "mixed.parquet": lambda: _written(lambda file: table.to_parquet(file, compression=None)),
        "table.npy": lambda: _written(lambda file: np.save(file, plain)),
        "table.npz": lambda: _written(lambda file: np.savez(file, x=plain)),
        "labelled.npz": lambda: _written(lambda file: np.savez_compressed(file, x=plain, label=labels)),
        **{f"image.{ending}": (lambda ending=ending: _image(ending)) for ending in ("png", "bmp", "gif", "tiff", "webp", "jpeg")},
    }[name]()


def changed(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, from one to a few places."""
    for _ in range(min(int(rng.geometric(0.6)), 5)):
        size = max(len(data), 1)
        i, j = (int(k) for k in np.sort(rng.integers(0, size, 2)))
        way = rng.integers(8)
        if way == 0 and data:  # a bit
            data = data[:i] + bytes([data[i] ^ (1 << int(rng.integers(8)))]) + data[i + 1 :]
        elif way == 1:
            data = data[:i] + rng.bytes(int(rng.integers(1, 9))) + data[i:]
        elif way == 2:
            data = data[:i]
        elif way == 3:
            data = data[:i] + data[min(j, i + 64) :]
        elif way == 4:
            data = data[:j] + data[i:j] + data[j:]
        else:
            token = TOKENS[int(rng.integers(len(TOKENS)))]
            data = data[:i] + token + data[i + (len(token) if way > 5 else 0) :]
    return data


def _read_texts(path: Path) -> None:
    found = read_texts("data", path)
    finite(found.labels)
    assert len(found.texts) == len(found.labels)
    assert all(found.texts)


def _read_table(path: Path) -> None:
    found = read_table("data", path)
    finite(found.values)
    assert len(found.values) > 1
    assert not found.names or len(found.names) == found.values.shape[1]


def _read_labelled(path: Path) -> None:
    found = read_labelled("data", path, labels="label")
    finite(found.table.values)
    assert len(found.labels) == len(found.table.values)
    assert found.labels.max() < len(found.classes)


def _read_columns(path: Path) -> None:
    found = read_columns("data", path)
    assert all(len(column) == len(found) for column in found.values.values())
    assert not any(np.isinf(column).any() for name, column in found.values.items() if not found.is_text(name))


def _read_images(path: Path) -> None:
    found = read_images("data", path.parent)
    finite(found.values)
    assert 0 <= found.values.min() <= found.values.max() <= 1


IMAGES = tuple(f"image.{ending}" for ending in ("png", "bmp", "gif", "tiff", "webp", "jpeg"))
READERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "table": (_read_table, ("table.csv", "table.parquet", "table.npy", "table.npz")),
    "labelled": (_read_labelled, ("labelled.csv", "labelled.npz")),
    "columns": (_read_columns, ("mixed.csv", "mixed.tsv", "mixed.parquet")),
    "texts": (_read_texts, ("texts.csv", "texts.tsv", "mixed.parquet")),
    "images": (_read_images, IMAGES),
}


def place(folder: Path, name: str, data: bytes) -> Path:
    """Write the file, an image beside a whole one; of a saved data set see `data_set`."""
    path = folder / name
    if name in IMAGES:
        (folder / f"whole.{name}").write_bytes(valid(name))
    path.write_bytes(data)
    return path


def data_set(folder: Path) -> Path:
    """A folder as `datasets` saves it."""
    folder.mkdir()
    table = pa.Table.from_pandas(frame()[["text", "label"]], preserve_index=False)
    with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(
        '{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": null, "_indices": null}'
    )
    (folder / "dataset_info.json").write_text('{"features": {"text": {"dtype": "string", "_type": "Value"}}}')
    return folder
