"""Long jobs in processes of their own, which are killed at a chosen moment, or whose disk fails at one.

A moment is a change of the job's folder: a file that is opened for writing, moved or removed. Python tells of it before it happens, so
that a job dies, or meets an error, between any two of them. To die in the middle of writing is to die with half of the file.
"""

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from driftway import cli, store
from driftway.kernels.tangent import tangent_gram

CONTEXT: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
SOON = 120.0  # seconds that a child may take on a machine that is busy


@dataclass
class Moments:
    """Counts the changes of a folder; at the chosen one the process dies, or the system says no.

    Attributes:
        folder: what is watched.
        at: number of the moment, from 1; none if 0.
        half: dies with half of the file that is about to be moved to its place.
        error: number of the system's error, raised at the moment and at each that follows; 0 to die.
        only: dies at moments whose path contains this.
    """

    folder: Path
    at: int = 0
    half: bool = False
    error: int = 0
    only: str = ""
    seen: int = 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            changed = isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            changed = event in CHANGES
        path = os.fspath(args[0]) if changed and isinstance(args[0], str | os.PathLike) else ""
        inside = path == str(self.folder) or path.startswith(f"{self.folder}{os.sep}")
        if not inside or path.endswith(store.LOCK) or self.only not in path:
            return
        self.seen += 1
        if self.at and self.seen >= self.at:
            if self.error:
                raise OSError(self.error, os.strerror(self.error))
            if self.half and event == "os.rename" and Path(path).is_file():
                os.truncate(path, Path(path).stat().st_size // 2)
            if self.half and event == "open":
                self.at = 0
                Path(path).write_bytes(b"{")
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, what it said, and how many moments it saw."""

    code: int
    said: str
    moments: int


@dataclass(frozen=True)
class Child:
    """A job that runs."""

    process: BaseProcess
    folder: Path
    notes: Path

    def wait(self) -> Ended:
        self.process.join(SOON)
        assert self.process.exitcode is not None, "a child hangs"
        moments = self.notes.with_suffix(".moments")
        said = self.notes.read_text() if self.notes.exists() else ""  # it may die before it can say a word
        return Ended(self.process.exitcode, said, int(moments.read_text()) if moments.exists() else 0)

    def kill(self) -> Ended:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        return self.wait()

    def until(self, holds: Callable[[], bool]) -> bool:
        """Wait for something, or for the child's end; whether it came to hold."""
        begun = time.monotonic()
        while self.process.is_alive() and time.monotonic() - begun < SOON:
            if holds():
                return True
        return holds()


def begin(folder: Path, work: Callable[..., None], *args: Any, moments: Moments | None = None, size: int | None = None) -> Child:
    """Start a job on a folder; `size` limits the bytes of a file."""
    notes = folder.parent / f"{folder.name}.{time.monotonic_ns()}.said"
    process = CONTEXT.Process(target=_life, args=(work, args, notes, moments or Moments(folder), size))
    process.start()
    return Child(process, folder, notes)


def run(folder: Path, work: Callable[..., None], *args: Any, moments: Moments | None = None, size: int | None = None) -> Ended:
    """A whole life."""
    return begin(folder, work, *args, moments=moments, size=size).wait()


def _life(work: Callable[..., None], args: Sequence[Any], notes: Path, moments: Moments, size: int | None) -> None:
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = notes.open("w")
    code = 0
    if size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.addaudithook(moments)
    try:
        work(*args)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    if size is None:
        notes.with_suffix(".moments").write_text(str(moments.seen))
    sys.stdout.flush()
    os._exit(code)


def command(*words: Any) -> None:
    """A command of driftway; with empty reports, which take most of the time of a small job, and are one file more."""
    for module, name, short in SHORT:
        setattr(import_module(module), name, short)
    sys.argv = ["driftway", *map(str, words)]
    cli.main()


def _blank(path: Path, *args: Any, **options: Any) -> None:
    store.write_file(Path(path), b"<html></html>")


def _unshown(model: Any, folder: Path, **options: Any) -> None:
    model.save(folder)
    _blank(folder / "report.html")


SHORT = (("driftway.cli.transport", "finish", _unshown), ("driftway.report.adapt", "write_adaptation_report", _blank),
         ("driftway.cli.finetune", "write_stopping_report", _blank))  # fmt: skip


# --- the jobs -------------------------------------------------------------------------------------------------------------


def write_csv(path: Path, columns: dict[str, Sequence[Any]]) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def moved(path: Path, n: int = 60) -> Path:
    """A target for a transport."""
    z = np.random.default_rng(0).normal(size=(n, 2)).round(4)
    return write_csv(path, {"a": z[:, 0], "b": z[:, 1] ** 2})


def transport(target: Path, folder: Path, *words: Any) -> list[Any]:
    return ["transport", "fit", "--target", target, "--out", folder, "--steps", 12, "--checkpoint-seconds", 0, "--family", "network",
            "--width", 8, "--depth", 2, "--batch", 16, "--candidates", 16, "--seed", 3, *words]  # fmt: skip


def houses(path: Path, n: int, *, seed: int, labels: int) -> Path:
    """Rows of a source or a target: a price of rooms and age, known in the first rows."""
    rng = np.random.default_rng(seed)
    rooms, age = rng.normal(3 + seed, 1, n).round(3), rng.uniform(0, 5, n).round(3)
    price = (10 * rooms - age + rng.normal(0, 1, n)).round(3)
    return write_csv(path, {"rooms": rooms, "age": age, "price": [*price[:labels], *[""] * (n - labels)]})


def adapt(source: Path, target: Path, folder: Path, *words: Any) -> list[Any]:
    return ["adapt", "fit", "--source", source, "--target", target, "--y", "price", "--out", folder, "--steps", 2, "--method", "transfer",
            *words]  # fmt: skip


def finetune(model: Path, data: Path, folder: Path, *words: Any, kind: str = "run") -> list[Any]:
    return ["finetune", kind, "--model", model, "--data", data, "--out", folder, "--length", 12, "--threads", 1, "--rows", 24, "--epochs",
            3, "--batch", 8, "--lr", 1e-4, "--head", "random", *words]  # fmt: skip


def texts(path: Path, n: int = 24) -> Path:
    """Rows of six words, of which two tell the class."""
    g = torch.Generator().manual_seed(0)
    words = torch.randint(10, 30, (n, 6), generator=g)
    words[:, :2] = torch.randint(4, (n, 2), generator=g) + 4 * (torch.arange(n) % 2)[:, None]
    return write_csv(path, {"text": [" ".join(f"w{word}" for word in row) for row in words.tolist()], "label": ["bad", "good"] * (n // 2)})


def small_model(transformers: Any, tokenizer: Any, folder: Path) -> Path:
    """A random encoder without a head."""
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(
        vocab_size=33, max_position_embeddings=24, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        pad_token_id=1)).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


def perceptron(seed: int = 0, width: int = 6) -> tuple[nn.Module, Tensor]:
    """A network in double precision, and rows for it."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) / 2)
    return model, torch.randn(20, 4, generator=g, dtype=torch.float64)


def gram(folder: Path, answer: Path) -> None:
    """A tangent Gram matrix in five batches, saved after each parameter."""
    from driftway.kernels.tangent import features

    features.PAUSE = -1.0
    model, x = perceptron()
    np.save(answer, tangent_gram(model, x, batch_size=4, cache=folder).numpy())


# --- what they leave ------------------------------------------------------------------------------------------------------


def known(path: Path, *leave: str) -> dict[str, Any]:
    """A JSON file, without what differs from run to run."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in leave}


# --- disks ----------------------------------------------------------------------------------------------------------------

PRIVATE, SLAVE, READ_ONLY = 0x20000, 0x4000 | 0x80000, 1  # of unshare(2) and mount(2)
NO_MOUNT = 77  # exit code where the system does not let a process mount


def on_disk(folder: Path, kib: int, work: Callable[..., None], *args: Any) -> None:
    """Do something with a small disk at the place of a folder, which this process alone sees; without size, one that cannot be written."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    if libc.unshare(PRIVATE) != 0 and libc.unshare(PRIVATE | 0x10000000) != 0:  # as an ordinary user, in a name space of its own
        raise SystemExit(NO_MOUNT)
    made = libc.mount(None, b"/", None, SLAVE, None) == 0 and \
        libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0 if kib else READ_ONLY, f"size={kib or 4}k".encode()) == 0  # fmt: skip
    if not made:
        raise SystemExit(NO_MOUNT)
    work(*args)
