"""Hostile folders: configurations and tensors that were changed, files that are none. Each is refused by name, or works as a model.

Nothing in a folder is executed, no file outside of it is read, and no memory is taken for what it only claims to hold.
"""

import json
import os
import pickle
import resource
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from driftway import adapt, kernels, transport
from driftway.adapt.folder import load
from driftway.adapt.folder import save as save_regressor
from driftway.checks import InputError
from driftway.finetune import TaskVector
from tests.reliability.calls import BASE, CODES, NET, TINY, VECTOR, N, rows, tensor, y_of
from tests.reliability.files import changed
from tests.reliability.strategies import budget, finite, outcome, unchecked

MEMORY = 2**28  # bytes that a small folder may take, at most
DEEP = "[" * 100_000 + "]" * 100_000


def fit(folder: Path, **more) -> None:
    transport.fit(torch.tensor(rows(12, 2)), torch.tensor(rows(12, 2, 1)), settings=TINY, out=folder, **{"steps": 1, **more})


def use_model(folder: Path) -> None:
    model = transport.TransportModel.load(folder)
    shown = torch.zeros(3, *model.event, dtype=model.scaler.shift.dtype)
    drawn = model.sample(3 if model.scaler.noise and not model.backward else shown, steps=2)
    assert drawn.shape == shown.shape
    finite(drawn)


def use_checkpoint(folder: Path) -> None:
    model = transport.fit(torch.tensor(rows(12, 2)), torch.tensor(rows(12, 2, 1)), resume=folder, steps=2)
    finite(model.sample(torch.zeros(3, 2, dtype=torch.float64)))


def use_regressor(folder: Path) -> None:
    found = load(folder)
    mean, std = found.predict(np.zeros((2, found.n_features_in_)), return_std=True)
    finite([np.asarray(mean), np.asarray(std)])


def use_cache(folder: Path) -> None:
    K = kernels.tangent_gram(NET, tensor(5, 3), cache=folder, batch_size=3)
    finite(K)
    assert K.shape == (5, 5)


def use_vector(folder: Path) -> None:
    finite(TaskVector.load(folder).applied_to(BASE.state_dict()))


def regressor(made: type, folder: Path) -> None:
    small = {name: 4 for name in ("base",) if name in made().get_params()}
    save_regressor(made(max_iter=1, **small).fit(rows(N, 2), y_of(), CODES), folder)


FOLDERS = {  # how to write one, how to use it, and the file with the tensors
    "model": (lambda folder: fit(folder, family="mixture"), use_model, "model.safetensors"),
    "model of a network": (lambda folder: fit(folder, family="network"), use_model, "model.safetensors"),
    "model with labels": (lambda folder: fit(folder, labels=["a", "b"] * 6, family="residual"), use_model, "model.safetensors"),
    "checkpoint": (lambda folder: fit(folder, family="mixture"), use_checkpoint, "checkpoint.safetensors"),
    "regressor": (lambda folder: regressor(adapt.TransferGPRegressor, folder), use_regressor, "model.safetensors"),
    "dino": (lambda folder: regressor(adapt.DINOTrainRegressor, folder), use_regressor, "model.safetensors"),
    "vector": (lambda folder: VECTOR.save(folder), use_vector, "model.safetensors"),
    "cache": (use_cache, use_cache, "rows/rows-000000.safetensors"),
    "cached matrix": (use_cache, use_cache, "gram-0.safetensors"),
}  # fmt: skip
ENTRIES = (None, True, False, float("nan"), float("inf"), -1, 0, 1, 3, 2**31, 2**63, 10**30, 0.5, -0.5, 1e-300, 1e300, "", "x",
           "../../etc/passwd", [], {}, [1], [[1]], {"a": 1}, "1", ["a"], [None], [float("nan")])  # fmt: skip


@cache
def written(name: str) -> Path:
    """A folder of a kind; not to be changed."""
    folder = Path(mkdtemp(prefix="driftway-test-")) / "whole"
    with unchecked():
        FOLDERS[name][0](folder)
    return folder


def contents(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def store(folder: Path, file: str, config: object, tensors: dict[str, torch.Tensor]) -> None:
    """Write both places of a configuration, as a person would who means to deceive."""
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / file).write_bytes(save({name: t.contiguous() for name, t in tensors.items()}, metadata={"config": text}))
    if file == "model.safetensors":
        (folder / "config.json").write_text(text)


def places(value: object, here: tuple = ()) -> list[tuple]:
    """All entries of a configuration, by the way to them."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for name, entry in inside for way in [(*here, name), *places(entry, (*here, name))]]


def with_entry(config: dict, rng: np.random.Generator) -> dict:
    ways = places(config)
    *way, last = ways[rng.integers(len(ways))]
    inside = config
    for step in way:
        inside = inside[step]
    act = rng.integers(5)
    if act == 0:
        del inside[last]
    elif act == 1 and isinstance(inside, dict):
        inside[f"{last}2"] = inside[last]
    else:
        inside[last] = ENTRIES[rng.integers(len(ENTRIES))]
    return config


def with_tensor(tensors: dict[str, torch.Tensor], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[rng.integers(len(tensors))]
    t = tensors[name]
    act = rng.integers(12)
    if act == 0:
        del tensors[name]
    elif act == 1:
        tensors[f"{name}.more"] = t.clone()
    elif act == 2:
        tensors["../" + name] = tensors.pop(name)
    elif act < 5:
        tensors[name] = t.to((torch.float16, torch.float32, torch.float64, torch.int64, torch.bool, torch.int8)[rng.integers(6)])
    elif act < 9:
        tensors[name] = (
            t[None],
            t.flatten(),
            t.flatten()[:0],
            torch.cat([t.flatten()] * 3),
            t.mT if t.ndim > 1 else t[:, None] if t.ndim else t[None],
        )[rng.integers(5)]
    elif t.is_floating_point() and t.numel():
        tensors[name] = torch.full_like(t, (float("nan"), float("inf"), -1.0, 0.0, 1e30)[rng.integers(5)])
    else:
        tensors[name] = (
            torch.full_like(t, 1),
            torch.full_like(t, 0),
            -t if t.dtype != torch.bool else ~t,
            t + 100 if t.dtype != torch.bool else ~t,
        )[rng.integers(4)]
    return tensors


def survives(name: str, spoil) -> object:
    """Copy the folder, spoil it, use it; the result, or the error that it was refused with."""
    _, use, file = FOLDERS[name]
    with TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        shutil.copytree(written(name), folder)
        spoil(folder, file)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = outcome(use, folder)
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
        return result


@pytest.mark.parametrize("name", FOLDERS)
def test_whole_folders(name):
    survives(name, lambda folder, file: None)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("part", ["configuration", "tensors", "bytes"])
def test_changed_folders(name, part, tally):
    tried = 0

    def spoil(seed):
        def of(folder: Path, file: str) -> None:
            rng = np.random.default_rng(seed)
            if part == "bytes":
                path = folder / "config.json" if file == "model.safetensors" and rng.integers(2) else folder / file
                path.write_bytes(changed(path.read_bytes(), rng))
                return
            config, tensors = contents(folder / file)
            store(
                folder,
                file,
                *((with_entry(config, rng), tensors) if part == "configuration" else (config, with_tensor(tensors, rng))),
            )

        return of

    @budget(1, 75)
    @given(st.integers(0, 2**32))
    def attempt(seed):
        nonlocal tried
        survives(name, spoil(seed))
        tried += 1

    attempt()
    tally(f"changed {part}", tried, tried)


class Payload:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def header(text: bytes, *, size: int | None = None) -> bytes:
    return (len(text) if size is None else size).to_bytes(8, "little") + text


CLAIM = json.dumps(
    {"__metadata__": {"config": '{"version": 1}'}, "x": {"dtype": "F64", "shape": [2**57], "data_offsets": [0, 2**60]}}
).encode()
FILES = {
    "a header of 2^60 bytes": header(b"{}", size=2**60),
    "a header of -1 bytes": b"\xff" * 8,
    "a tensor of 2^60 bytes": header(CLAIM),
    "a shape that overflows": header(CLAIM.replace(b"144115188075855872", b"4294967296, 4294967296, 8")),
    "offsets backwards": header(CLAIM.replace(b"[0, 1152921504606846976]", b"[8, 0]")),
    "a deep header": header(DEEP.encode()),
    "no metadata": save({"x": torch.zeros(2)}),
    "a deep configuration": save({"x": torch.zeros(2)}, metadata={"config": DEEP}),
    "a configuration with a long number": save({"x": torch.zeros(2)}, metadata={"config": '{"version": ' + "1" * 10_000 + "}"}),
    "a configuration that is a list": save({"x": torch.zeros(2)}, metadata={"config": "[1]"}),
    "a configuration that is no JSON": save({"x": torch.zeros(2)}, metadata={"config": "{'version': 1}"}),
    "nothing": b"",
    "zeros": bytes(4096),
}
LONG = ("a deep configuration", "a configuration with a long number")


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", list(FILES))
def test_files_that_are_none(name, kind, tally):
    survives(name, lambda folder, file: (folder / file).write_bytes(FILES[kind]))
    tally("files that are none", 1, 1)


@pytest.mark.parametrize("name", FOLDERS)
def test_pickles_are_not_read(name, tmp_path):
    trace = tmp_path / "trace"
    for data in (pickle.dumps(Payload(trace)), b"\x80\x04", None):

        def spoil(folder: Path, file: str, data: bytes | None = data) -> None:
            if data is None:
                torch.save({"x": Payload(trace)}, folder / file)
            else:
                (folder / file).write_bytes(data)

        survives(name, spoil)
    assert not trace.exists()


@pytest.mark.parametrize("name", [name for name, (_, _, file) in FOLDERS.items() if file == "model.safetensors"])
@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "1" * 10_000,
        "NaN",
        "null",
        "[]",
        '{"version": NaN}',
        '{"version": 1e400}',
        "\ufeff{}",
        "\0",
        '"' + "x" * 10**6,
    ],
)
def test_readable_configurations(name, text):
    def spoil(folder: Path, file: str) -> None:
        (folder / "config.json").write_text(text)

    assert isinstance(survives(name, spoil), InputError)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("target", ["/dev/zero", "/nowhere", "itself", "a pipe", "a folder"])
def test_links_to_what_is_no_file(name, target):
    def spoil(folder: Path, file: str) -> None:
        path = folder / file
        path.unlink()
        if target == "a pipe":
            os.mkfifo(path)
        elif target == "a folder":
            path.mkdir()
        else:
            path.symlink_to(path if target == "itself" else target)

    with suppress(InputError, OSError):  # that of the system names the file that cannot be written
        result = survives(name, spoil)
        assert isinstance(result, InputError | OSError) or not isinstance(result, Exception)
