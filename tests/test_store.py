"""A model folder is read back as it was written, survives a kill at any moment, and refuses what it does not know."""

import json
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from driftway import store
from driftway.checks import InputError
from driftway.store import CONFIG, TENSORS, VERSION, read_folder, read_tensors, write_file, write_folder, write_tensors

OLD, NEW = {"step": torch.tensor([1.0, 2.0])}, {"step": torch.tensor([3.0, 4.0])}


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "model", OLD, {"name": "old"})
    return tmp_path / "model"


def fault(read, path):
    with pytest.raises(InputError) as caught:
        read("--model", path)
    assert str(caught.value).startswith("--model: expected ")
    return str(caught.value)


def no_partials(folder):
    return not [entry for entry in folder.iterdir() if entry.name.endswith(".part")]


def test_a_folder_is_read_back(folder):
    config, tensors = read_folder("--model", folder)
    assert config == {"version": VERSION, "name": "old"}
    assert torch.equal(tensors["step"], OLD["step"])
    assert sorted(entry.name for entry in folder.iterdir()) == [CONFIG, TENSORS]


def test_every_kind_of_tensor(tmp_path):
    tensors = {
        "strided": torch.arange(12.0).reshape(3, 4).T[::2],
        "grad": torch.ones(2, requires_grad=True),
        "half": torch.ones(2, dtype=torch.float16),
        "whole": torch.tensor([2**40]),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
    }
    write_tensors(tmp_path / TENSORS, tensors, {"nested": {"a": [1, None, "é"]}})
    config, read = read_tensors("--model", tmp_path / TENSORS)
    assert config == {"version": VERSION, "nested": {"a": [1, None, "é"]}}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.detach())


def test_a_save_that_fails_before_the_tensors_keeps_the_old_model(folder, monkeypatch):
    def fail(_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_folder(folder, NEW, {"name": "new"})
    config, tensors = read_folder("--model", folder)
    assert config["name"] == "old"
    assert torch.equal(tensors["step"], OLD["step"])
    assert no_partials(folder)


def between_files(monkeypatch):
    """A write_file that does the tensors and fails at the configuration."""

    def write(path, data, **how):
        if path.name == CONFIG:
            raise KeyboardInterrupt
        write_file(path, data, **how)

    monkeypatch.setattr(store, "write_file", write)


def test_a_save_that_stops_between_the_files_is_the_new_model(folder, monkeypatch):
    between_files(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, NEW, {"name": "new"})
    with pytest.warns(UserWarning, match=r"differs from the copy inside"):
        config, tensors = read_folder("--model", folder)
    assert config["name"] == "new"
    assert torch.equal(tensors["step"], NEW["step"])


def test_a_first_save_that_stops_between_the_files_is_no_model_yet(tmp_path, monkeypatch):
    between_files(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", NEW, {"name": "new"})
    assert f"got no {CONFIG}; the folder is half-written" in fault(read_folder, tmp_path / "model")


def test_a_killed_process_leaves_one_whole_model(tmp_path):
    code = f"""
import sys, torch
from pathlib import Path
from driftway.store import write_folder
for step in range(10**9):
    write_folder(Path({str(tmp_path)!r}), {{"step": torch.full((50_000,), float(step % 1000))}}, {{"step": step % 1000}})
    print(step, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    config, tensors = read_tensors("--model", tmp_path / TENSORS)
    assert (tensors["step"] == config["step"]).all()
    write_folder(tmp_path, NEW, {"name": "new"})
    assert read_folder("--model", tmp_path)[0]["name"] == "new"


def test_a_partial_file_of_a_killed_process_is_no_hindrance(folder):
    (folder / f".{TENSORS}.0123.part").write_bytes(b"half")
    assert read_folder("--model", folder)[0]["name"] == "old"
    write_folder(folder, NEW, {"name": "new"})
    assert read_folder("--model", folder)[0]["name"] == "new"


def test_write_file_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "er" / "a.bin"
    write_file(path, b"old")
    assert path.read_bytes() == b"old"

    def fail(*_):
        raise PermissionError("no")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(PermissionError):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert no_partials(path.parent)


def test_a_configuration_edited_by_hand_warns_and_is_not_used(folder):
    (folder / CONFIG).write_text(json.dumps({"version": VERSION, "name": "edited"}))
    with pytest.warns(UserWarning, match=r"config\.json differs from the copy inside model\.safetensors"):
        config, _ = read_folder("--model", folder)
    assert config["name"] == "old"


def test_whitespace_is_no_edit(folder, recwarn):
    (folder / CONFIG).write_text(json.dumps({"name": "old", "version": VERSION}))
    read_folder("--model", folder)
    assert not recwarn


@pytest.mark.parametrize("version", [VERSION + 1, None, "1"])
def test_an_unknown_version(folder, version):
    (folder / CONFIG).write_text(json.dumps({"version": version}))
    assert f"expected format version {VERSION} in {folder / CONFIG}, got version {version}" in fault(read_folder, folder)
    write_tensors(folder / TENSORS, OLD, {"version": version})
    assert f"got version {version}; load it with the driftway release that wrote it" in fault(read_tensors, folder / TENSORS)


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null"])
def test_json_that_is_no_configuration(folder, content):
    (folder / CONFIG).write_text(content)
    assert "got version None" in fault(read_folder, folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}"])
def test_damaged_json(folder, content):
    (folder / CONFIG).write_bytes(content)
    assert "got a damaged file" in fault(read_folder, folder)


def test_damaged_tensors(folder):
    path = folder / TENSORS
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"\x00" * len(whole), pickle.dumps(OLD)):
        path.write_bytes(content)
        assert "got a damaged one" in fault(read_folder, folder)
        assert f"delete {path}" in fault(read_tensors, path)


def test_tensors_that_are_not_ours(tmp_path):
    save_file(OLD, tmp_path / TENSORS)
    assert "written by driftway" in fault(read_tensors, tmp_path / TENSORS)
    save_file(OLD, tmp_path / TENSORS, metadata={"config": "{"})
    assert "written by driftway" in fault(read_tensors, tmp_path / TENSORS)


def test_missing_parts(tmp_path, folder):
    assert "which is no folder" in fault(read_folder, tmp_path / "none")
    assert "which is no folder" in fault(read_folder, folder / CONFIG)
    assert f"expected a file {TENSORS}" in fault(read_tensors, tmp_path / TENSORS)
    (folder / TENSORS).unlink()
    assert f"got no {TENSORS}" in fault(read_folder, folder)
