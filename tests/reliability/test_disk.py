"""A disk that is full, folders that cannot be written, and folders of something else: one line says so, and what was good stays.

A disk fails in three ways: a limit on the size of files, which all writers meet, those in C++ and Rust too; a small disk that is
mounted for one process, where the system lets it; and errors at chosen moments (`jobs`).
"""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from driftway import store
from driftway.adapt.folder import load
from driftway.checks import InputError
from driftway.cli import adapt as _adapt  # noqa: F401 (children inherit what is imported)
from driftway.cli import transport as _transport  # noqa: F401
from driftway.cli.folders import CHECKPOINTS, KNOWN, MODEL, REPORT, RUN, SPECTRUM, STUDY
from driftway.transport import TransportModel
from driftway.transport.checkpoint import CHECKPOINT
from tests.cli.test_cli import run as command
from tests.reliability import jobs
from tests.reliability.jobs import Moments
from tests.transport.recipes import mixture, model_of

COMMANDS = ("transport fit", "adapt fit", "finetune run", "finetune stop")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def words(place, model):
    """name, folder -> the command."""
    from driftway.cli import finetune, training  # noqa: F401

    target, data = jobs.moved(place / "t.csv"), jobs.texts(place / "x.csv")
    rows = jobs.houses(place / "s.csv", 20, seed=0, labels=20), jobs.houses(place / "h.csv", 16, seed=1, labels=8)
    lines = {
        "transport fit": lambda folder, *more: jobs.transport(target, folder, *more),
        "adapt fit": lambda folder, *more: jobs.adapt(*rows, folder, *more),
        "finetune run": lambda folder, *more: jobs.finetune(model, data, folder, *more),
        "finetune stop": lambda folder, *more: jobs.finetune(model, data, folder, *more, kind="stop"),
    }  # fmt: skip
    return lambda name, folder, *more: lines[name](folder, *more)


def one_line(ended, code, *shown):
    """The exit code, and one line on stderr that names what it should; what a command prints before is no part of it."""
    lines = [line for line in ended.said.splitlines() if line.lower().startswith("error") or "Error:" in line]
    assert ended.code == code, ended.said
    assert len(lines) == 1, ended.said
    assert "Traceback" not in ended.said
    assert lines[0].startswith("error: ")
    for word in (*shown, "expected", "got"):
        assert word in lines[0], lines[0]


def nothing_whole(folder):
    """No file or folder that a command would take for a result or go on from."""
    for read in (TransportModel.load, load):
        with pytest.raises(InputError):
            read(folder)
    assert not (folder / MODEL).exists()
    assert not json.loads((folder / RUN).read_text()).get("finished") if (folder / RUN).exists() else True
    for file in (CHECKPOINT, SPECTRUM):
        if (folder / file).exists():
            store.read_tensors("file", folder / file)


# --- full -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("transport fit", 2000), ("adapt fit", 1500), ("finetune run", 7000), ("finetune stop", 1000)])
def test_files_that_grow_too_large(name, size, words, place, rounds, tally):
    """The first run fails; done again with room, it is as any other."""
    if name == "finetune stop" and rounds(0, 1) == 0:
        pytest.skip("in full only")
    folder = place / f"large {name}"
    ended = jobs.run(folder, jobs.command, *words(name, folder), size=size)
    one_line(ended, 3, str(folder), "File too large", "free some space")
    if folder.exists():
        nothing_whole(folder)
    begun = (folder / {"transport fit": CHECKPOINT, "finetune run": RUN}.get(name, "none")).exists()
    ended = jobs.run(folder, jobs.command, *words(name, folder, *["--resume"] * begun))
    assert ended.code == 0, ended.said
    assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    tally("a full disk: one line, and the same folder can be used later", 1, 1)


def test_a_good_result_outlives_a_full_disk(words, place, tally):
    """A finished run that is to be trained further keeps its model and its checkpoint."""
    folder = place / "large transport fit"
    if not (folder / CHECKPOINT).exists():
        assert jobs.run(folder, jobs.command, *words("transport fit", folder)).code == 0
    before = {name: (folder / name).read_bytes() for name in (CHECKPOINT, store.TENSORS, store.CONFIG)}
    ended = jobs.run(folder, jobs.command, *words("transport fit", folder, "--resume", "--steps", 15), size=2000)
    one_line(ended, 3, str(folder / CHECKPOINT), "File too large")
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert TransportModel.load(folder).training["steps"] == 12
    tally("a full disk: the good result before is kept", 1, 1)


def test_a_cache_on_a_full_disk_names_its_file_and_goes_on(place):
    folder, answer = place / "cache", place / "answer.npy"
    ended = jobs.run(folder, _said, folder, answer, size=3500)
    assert ended.said.startswith(f"[Errno {errno.EFBIG}] File too large: '{folder / 'rows'}")
    assert not answer.exists()
    assert jobs.run(folder, jobs.gram, folder, answer).code == 0
    jobs.gram(place / "fresh", place / "fresh.npy")
    assert np.array_equal(np.load(answer), np.load(place / "fresh.npy"))


def _said(folder, answer):
    try:
        jobs.gram(folder, answer)
    except OSError as error:
        sys.stdout.write(str(error))
        raise SystemExit(1) from None


@pytest.mark.parametrize("name", COMMANDS)
def test_the_system_says_no_at_any_moment(name, words, place, rounds, tally):
    """Of all changes of the folder, from one on: each ends in one line, and nothing on the disk looks whole but what is."""
    if (n := rounds(0, 12)) == 0:
        pytest.skip("in full only")
    whole = place / f"moments {name}"
    ended = jobs.run(whole, jobs.command, *words(name, whole))
    assert ended.code == 0, ended.said
    passed = 0
    for i in range(n):
        folder, at = place / f"no {name} {i}", 1 + i * ended.moments // n
        number = (errno.ENOSPC, errno.EROFS, errno.EIO)[i % 3]
        failed = jobs.run(folder, jobs.command, *words(name, folder), moments=Moments(folder, at, error=number))
        if failed.code != 0:  # removing what is in the way may fail without harm
            one_line(failed, 2 if "error: out" in failed.said else 3, str(folder), os.strerror(number))
            if folder.exists() and not (folder / store.CONFIG).exists() and not (folder / MODEL).exists():
                nothing_whole(folder)
        passed += 1
    tally(f"errors of the system at a change: {name}, one line", passed, n)


@pytest.mark.parametrize("name", COMMANDS[:3])
def test_a_disk_that_is_full(name, words, place, rounds, tally):
    if name != COMMANDS[0] and rounds(0, 1) == 0:
        pytest.skip("in full only")
    folder = place / f"disk {name}"
    ended = jobs.run(folder, jobs.on_disk, folder, 16, _filled, folder, words(name, folder))
    if ended.code == jobs.NO_MOUNT:
        pytest.skip("this system does not let a process mount a disk of its own")
    one_line(ended, 3, str(folder), "No space left on device", "free some space")
    tally("a small disk that is full: one line", 1, 1)


def _filled(folder, line):
    try:
        jobs.command(*line)
    finally:
        nothing_whole(folder)


def test_a_table_on_a_full_disk_keeps_the_one_before(tmp_path, monkeypatch, capsys):
    model_of(mixture(2)).save(tmp_path / "run")
    line = ["transport", "sample", tmp_path / "run", "-n", 400, "-o", tmp_path / "x.csv"]
    assert command(monkeypatch, capsys, *line)[0] == 0
    before = (tmp_path / "x.csv").read_bytes()
    ended = jobs.run(tmp_path / "job", jobs.command, *line, "--seed", 1, size=2000)
    one_line(ended, 3, str(tmp_path / "x.csv"), "File too large")
    assert (tmp_path / "x.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".said") == ["x.csv"]


# --- no place to write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written(name, words, place, tally):
    folder = place / f"read-only {name}"
    ended = jobs.run(folder, jobs.on_disk, folder, 0, jobs.command, *words(name, folder))
    if ended.code == jobs.NO_MOUNT:
        pytest.skip("this system does not let a process mount a disk of its own")
    one_line(ended, 2, f"out: expected a folder to write to, got {folder} (Read-only file system)", "name a folder that you may write to")
    tally("a folder that cannot be written: one line before the work", 1, 1)


@pytest.mark.parametrize("below", ["", "deeper/run"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_the_place_of_a_folder(name, below, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("mine")
    code, _, err = command(monkeypatch, capsys, *words(name, tmp_path / "file" / below))
    assert code == 2
    assert err.startswith("error: out: expected a folder")
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_above_are_made(tmp_path, words):
    folder = tmp_path / "a" / "b" / "run"
    folder.parent.parent.mkdir()
    ended = jobs.run(tmp_path / "job", jobs.command, *words("adapt fit", folder))
    assert ended.code == 0, ended.said
    load(folder)


# --- folders of something else --------------------------------------------------------------------------------------------

FINE = {"finetune run": (STUDY, SPECTRUM, REPORT, CHECKPOINTS), "finetune stop": (STUDY, SPECTRUM, REPORT, CHECKPOINTS)}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_another_run_wrote_is_not_touched(name, words, tmp_path, monkeypatch, capsys, tally):
    """Any file of a run is enough."""
    passed, tried = 0, [mark for mark in KNOWN if mark not in FINE.get(name, ())]
    for mark in tried:
        (tmp_path / mark).mkdir(parents=True)
        (tmp_path / mark / mark).write_text("theirs")
        code, _, err = command(monkeypatch, capsys, *words(name, tmp_path / mark))
        assert code == 2
        assert err.startswith("error: out: expected a folder without a run, got ")
        assert err.count("\n") == 1
        assert mark in err
        assert [path.name for path in (tmp_path / mark).iterdir()] == [mark]
        passed += (tmp_path / mark / mark).read_text() == "theirs"
    tally("a folder with a file of another run is refused", passed, len(tried))


@pytest.mark.parametrize("held", ['{"version": 1, "table": {}}', "{", "[]", "3", "\xff"])
def test_a_run_of_another_kind_is_not_resumed(held, words, tmp_path, monkeypatch, capsys):
    (tmp_path / RUN).write_bytes(held.encode("latin-1"))
    for name, shown in (("finetune run", "resume: expected a fine-tuning run"), ("transport fit", f"resume: expected a file {CHECKPOINT}")):
        code, _, err = command(monkeypatch, capsys, *words(name, tmp_path, "--resume"))
        assert (code, err.count("\n")) == (2, 1)
        assert shown in err
    assert [path.name for path in tmp_path.iterdir()] == [RUN]


def test_models_of_one_kind_are_not_read_as_another(words, place, tmp_path):
    model_of(mixture(2)).save(tmp_path / "transport")
    with pytest.raises(InputError, match="folder: expected an estimator"):
        load(tmp_path / "transport")
    assert jobs.run(tmp_path / "adapt", jobs.command, *words("adapt fit", tmp_path / "adapt")).code == 0
    with pytest.raises(InputError, match=r"folder: expected a driftway\.transport model, got None"):
        TransportModel.load(tmp_path / "adapt")


def test_half_a_model_of_transformers_is_no_checkpoint(words, place, rounds, tmp_path):
    """Checkpoints of transformers are folders; one that lacks its last file, or has half of it, is removed, and the one before taken."""
    from driftway.cli.finetune import _checkpoint

    for number, state in ((3, "{}"), (6, "{}"), (9, '{"half'), (12, None)):
        folder = tmp_path / CHECKPOINTS / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert _checkpoint(tmp_path) == tmp_path / CHECKPOINTS / "checkpoint-6"
    assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == ["checkpoint-3", "checkpoint-6"]
    shutil.rmtree(tmp_path / CHECKPOINTS)
    assert _checkpoint(tmp_path) is None


def test_an_error_of_the_system_names_its_path(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        store.write_file(tmp_path / "a.bin", b"x")
    assert caught.value.filename == str(tmp_path / "a.bin")
    assert store.described(caught.value) == (f"{tmp_path / 'a.bin'}: expected to read or write there, got No space left on device; "
                                             "free some space, or name a folder on another disk")  # fmt: skip
    assert list(Path(tmp_path).iterdir()) == []
