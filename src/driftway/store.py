"""A model folder: `config.json` + `model.safetensors`, written atomically and read without pickle.

Each file is written beside its place and moved there whole. The tensor file carries its own copy of the configuration, so
one atomic move changes both: a process killed at any moment leaves the old model or the new one, never half of either. Who writes to
a folder for long holds a lock on it, which ends with its process.
"""

import errno
import json
import os
import platform
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from driftway.checks import InputError, require

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG, TENSORS, VERSION = "config.json", "model.safetensors", 1
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Config = dict[str, Any]
_held: dict[Path, tuple[int, int]] = {}  # folders that this process has locked: by which thread, and the open file


def write_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all; if `durable`, it is on the disk when this returns.

    Raises:
        OSError: if it cannot be written; it names the file.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(OSError):  # what went wrong before is the news
                partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a path in errors of the system, which name none if a disk is full, and else what is beside the path."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def described(error: OSError) -> str:
    """An error of the system in one sentence: the file, what was expected, what came, and the cure."""
    cure = "free some space, or name a folder on another disk" if error.errno in FULL else "name a file or folder that you may use"
    return f"{error.filename or 'files'}: expected to read or write there, got {error.strerror or error}; {cure}"


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for partial in folder.glob(f".*.{'[0-9a-f]' * 32}.part"):
        partial.unlink(missing_ok=True)


@contextmanager
def writing(argument: str, folder: Path) -> Iterator[None]:
    """Lock a folder for a run that writes to it, and sweep it. It is made if need be, and removed if it stays empty.

    The lock ends with its process, however that ends. The thread that holds it may take it again; who only reads needs none. Where the
    system has no such locks (Windows, some network disks), nobody is kept out.

    Raises:
        InputError: if another run writes to the folder, or it cannot be made or written to.
    """
    place = folder.resolve()
    if place in _held and _held[place][0] == get_ident():
        yield
        return
    made: list[Path] = []
    try:
        made += [path for path in (place, *place.parents) if not path.exists()]
        place.mkdir(parents=True, exist_ok=True)
        lock = _lock(place / LOCK)
    except BlockingIOError as error:
        raise InputError(argument, expected="a folder that no other run writes to", got=f"{folder}, which {error.strerror} writes to",
                         cure="wait for its end, or name another folder") from None  # fmt: skip
    except OSError as error:
        _remove(made)
        raise InputError(argument, expected="a folder to write to", got=f"{folder} ({error.strerror})", cure="free some space"
                         if error.errno in FULL else "name a folder that you may write to") from None  # fmt: skip
    _held[place] = get_ident(), lock
    try:
        sweep(place)
        yield
    finally:
        if place in _held:  # not in a fork of this process
            del _held[place]
            with suppress(OSError):
                (place / LOCK).unlink()
            os.close(lock)
            _remove(made)


def _lock(path: Path) -> int:
    """A lock file, open, locked and signed."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(lock)
            if os.path.samestat(os.fstat(lock), path.stat()):
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
                return lock
        except BlockingIOError:
            owner = os.read(lock, 200).decode() or "another process"
            os.close(lock)
            raise BlockingIOError(errno.EAGAIN, owner) from None
        except FileNotFoundError:
            pass  # its owner ended, and removed it: another try
        except OSError:
            path.unlink(missing_ok=True)
            os.close(lock)
            raise
        os.close(lock)


def _flock(lock: int) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise  # any other is that of a disk without locks


def _remove(folders: list[Path]) -> None:
    """Those that are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _forget() -> None:
    """A fork shares the open files, and would keep the locks when its parent has ended."""
    for _, lock in _held.values():
        os.close(lock)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_forget)


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
    except (SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
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
    except (ValueError, RecursionError) as error:
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
