"""Two runs into one folder: the second is refused in one line, a dead run keeps nobody out, and readers are never in the way."""

import os
import signal
import threading
import time
import warnings

import pytest

from driftway import store
from driftway.checks import InputError
from driftway.cli import adapt as _adapt  # noqa: F401 (children inherit what is imported)
from driftway.cli import transport as _transport  # noqa: F401
from driftway.kernels.tangent import tangent_features, tangent_gram
from driftway.transport import TransportModel
from tests.reliability import jobs
from tests.transport.recipes import mixture, model_of


def hold(folder, helper=False):
    """A run that writes to a folder until it is killed, alone or with a helper process that outlives it."""
    with store.writing("out", folder):
        number = os.fork() if helper else 0
        if helper and number == 0:
            time.sleep(600)
            os._exit(0)
        (folder / "held.new").write_text(str(number))
        (folder / "held.new").rename(folder / "held")
        time.sleep(600)


def held_by_another(folder, helper=False):
    child = jobs.begin(folder, hold, folder, helper)
    assert child.until((folder / "held").exists)
    return child


def refusal(folder):
    with pytest.raises(InputError) as caught, store.writing("out", folder):
        pass
    return str(caught.value)


def test_the_lock_of_another_process_is_told_and_dies_with_it(tmp_path):
    folder = tmp_path / "run"
    child = held_by_another(folder)
    text = refusal(folder)
    assert text.startswith(f"out: expected a folder that no other run writes to, got {folder}, which process {child.process.pid} on ")
    assert text.endswith("wait for its end, or name another folder")
    (tmp_path / "other-name").symlink_to(folder)
    assert "no other run" in refusal(tmp_path / "other-name")
    child.kill()
    assert (folder / store.LOCK).exists()  # what is left of it is no hindrance
    with store.writing("out", folder):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["held"]


def test_helper_processes_do_not_keep_the_lock(tmp_path):
    child = held_by_another(tmp_path / "run", helper=True)
    helper = int((tmp_path / "run" / "held").read_text())
    try:
        assert "no other run" in refusal(tmp_path / "run")
        os.kill(child.process.pid, signal.SIGKILL)
        os.waitpid(child.process.pid, 0)
        with store.writing("out", tmp_path / "run"):
            os.kill(helper, 0)  # it lives
    finally:
        os.kill(helper, signal.SIGKILL)


def test_one_thread_may_take_it_again_and_another_not(tmp_path):
    folder, seen = tmp_path / "run", []
    with store.writing("out", folder):
        with store.writing("out", folder):
            pass
        assert (folder / store.LOCK).exists()
        thread = threading.Thread(target=lambda: seen.append(refusal(folder)))
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in seen[0]
    with store.writing("out", folder):
        pass


def test_a_folder_that_stays_empty_is_removed_and_no_other(tmp_path):
    with store.writing("out", tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with store.writing("out", tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(KeyError), store.writing("out", tmp_path / "empty"):
        raise KeyError
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]
    assert (tmp_path / "empty").is_dir()


def test_only_what_was_half_written_is_swept(tmp_path):
    (tmp_path / f".model.{'0' * 32}.part").touch()
    (tmp_path / ".film.mp4.part").touch()
    with store.writing("out", tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".film.mp4.part", store.LOCK]


@pytest.fixture
def words(tmp_path, model):
    from driftway.cli import finetune  # noqa: F401

    target, data = jobs.moved(tmp_path / "t.csv"), jobs.texts(tmp_path / "x.csv")
    rows = jobs.houses(tmp_path / "s.csv", 20, seed=0, labels=20), jobs.houses(tmp_path / "h.csv", 16, seed=1, labels=8)
    return {
        "transport fit": lambda folder: jobs.transport(target, folder), "adapt fit": lambda folder: jobs.adapt(*rows, folder),
        "transport fit --resume": lambda folder: jobs.transport(target, folder, "--resume"),
        "finetune run": lambda folder: jobs.finetune(model, data, folder),
        "finetune stop": lambda folder: jobs.finetune(model, data, folder, kind="stop"),
    }  # fmt: skip


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_command_refuses_a_folder_that_another_writes_to(tmp_path, words, tally):
    folder = tmp_path / "run"
    with store.writing("out", folder):
        before, passed = contents(folder), 0
        for name, line in words.items():
            ended = jobs.run(folder, jobs.command, *line(folder))
            assert ended.code == 2, f"{name}: {ended.said}"
            assert f"got {folder}, which process {os.getpid()} on " in ended.said, name
            assert ended.said.count("\n") == 1
            assert contents(folder) == before
            passed += 1
        ended = jobs.run(folder, jobs.gram, folder, tmp_path / "answer.npy")
        assert "cache: expected a folder that no other run writes to" in ended.said
        passed += ended.code != 0
    tally("a second run into one folder is refused", passed, len(words) + 1)


def test_of_two_at_the_same_time_one_runs(tmp_path, words, rounds, tally):
    """The other is refused, by the lock or, if it comes late, by what it finds."""
    passed, names = 0, rounds(1, 3) * ["adapt fit"] + rounds(0, 2) * ["transport fit", "finetune run", "finetune stop"]
    for i, name in enumerate(names):
        folder = tmp_path / f"run-{i}"
        pair = [jobs.begin(folder, jobs.command, *words[name](folder)) for _ in range(2)]
        ends = sorted((child.wait() for child in pair), key=lambda ended: ended.code)
        late = name == "finetune stop"  # which may be done again
        assert ends[0].code == 0, ends[0].said
        assert ends[1].code == 2 or late, ends[1].said
        passed += late or "no other run" in ends[1].said or "a folder without a run" in ends[1].said
    tally("two runs at the same time: one runs", passed, len(names))


def test_a_cache_that_another_model_has_taken_is_noticed(tmp_path):
    """Features read their files when they are used: those of another model are no answer."""
    (model, x), (other, _) = jobs.perceptron(), jobs.perceptron(1)
    features = tangent_features(model, x, cache=tmp_path, batch_size=4)
    known = features.gram()
    assert (known == tangent_gram(model, x, batch_size=4)).all()
    tangent_features(other, x, cache=tmp_path, batch_size=4)
    with pytest.raises(InputError, match=r"cache: expected .*rows-000000.safetensors as it was written, got that of other data"):
        features.gram()


def test_readers_are_not_in_the_way_and_read_whole_models(tmp_path, rounds, tally):
    """While a process saves one model after the other, every one that is read is one of them."""
    models = [model_of(mixture(2, seed=seed)) for seed in range(2)]
    models[0].save(tmp_path / "run")
    child = jobs.begin(tmp_path / "run", save_in_turn, tmp_path / "run")
    n = rounds(15, 1000)
    for _ in range(n):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*differs from the copy inside.*")
            found = TransportModel.load(tmp_path / "run").value_function.state_dict()
        assert any(all((found[name] == z).all() for name, z in known.value_function.state_dict().items()) for known in models)
    assert child.kill().code != 0
    tally("models read while they are written: whole", n, n)


def save_in_turn(folder):
    with store.writing("out", folder):
        while True:
            for seed in range(2):
                model_of(mixture(2, seed=seed)).save(folder)
