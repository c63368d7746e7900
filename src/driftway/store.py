"""A model folder: `config.json` + `model.safetensors`, written atomically and read without pickle.

Each file is written beside its place and moved there whole. The tensor file carries its own copy of the configuration, so
one atomic move changes both: a process killed at any moment leaves the old model or the new one, never half of either.
"""

import json
import os
import uuid
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from driftway.checks import InputError, require

CONFIG, TENSORS, VERSION = "config.json", "model.safetensors", 1
Config = dict[str, Any]


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all; if `durable`, it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for partial in folder.glob(f".*.{'[0-9a-f]' * 32}.part"):
        partial.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], config: Config, *, durable: bool = True) -> None:
    """Write named tensors and their configuration as one safetensors file, atomically."""
    text = json.dumps({"version": VERSION, **config}, sort_keys=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(path, save(contiguous, metadata={"config": text}), durable=durable)


def read_tensors(argument: str, path: Path, *, names: Collection[str] | None = None) -> tuple[Config, dict[str, Tensor]]:
    """Read what `write_tensors` wrote: the configuration and the tensors, or those of them that are named, on the CPU.

    Raises:
        InputError: if the file is missing, damaged, not ours, or of an unknown version.
    """
    require(path.is_file(), argument, expected=f"a file {path.name} in {path.parent}", got="none",
            cure="name a folder that a finished save wrote, or begin anew without resuming")  # fmt: skip
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
        config = json.loads(metadata["config"])
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(argument, expected=f"a whole {path.name} written by driftway", got=f"a damaged one ({error})",
                         cure=f"delete {path} and save or train again") from None  # fmt: skip
    return _known(argument, config, path), tensors


def write_folder(folder: Path, tensors: Mapping[str, Tensor], config: Config) -> None:
    """Write a model folder, atomically."""
    write_tensors(folder / TENSORS, tensors, config)
    write_file(folder / CONFIG, (json.dumps({"version": VERSION, **config}, indent=2, sort_keys=True) + "\n").encode())


def read_folder(argument: str, folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """Read a model folder.

    Raises:
        InputError: if the folder or a file is missing, damaged, or of an unknown version.
    """
    require(folder.is_dir(), argument, expected="a model folder", got=f"{folder}, which is no folder",
            cure="name the folder that training wrote")  # fmt: skip
    for name in (CONFIG, TENSORS):
        require((folder / name).is_file(), argument, expected=f"{CONFIG} and {TENSORS} in {folder}", got=f"no {name}",
                cure="the folder is half-written: resume its training or train again")  # fmt: skip
    try:
        readable = json.loads((folder / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(argument, expected=f"JSON in {folder / CONFIG}", got=f"a damaged file ({error})",
                         cure="restore the file or train again") from None  # fmt: skip
    _known(argument, readable, folder / CONFIG)
    config, tensors = read_tensors(argument, folder / TENSORS)
    if config != readable:
        warnings.warn(f"{folder / CONFIG} differs from the copy inside {TENSORS} (an edit, or an interrupted save); "
                      "the copy inside is used", stacklevel=3)  # fmt: skip
    return config, tensors


def _known(argument: str, config: Any, path: Path) -> Config:
    version = config.get("version") if isinstance(config, dict) else None
    require(version == VERSION, argument, expected=f"format version {VERSION} in {path}", got=f"version {version}",
            cure="load it with the driftway release that wrote it, or train again")  # fmt: skip
    return config
