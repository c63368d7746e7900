"""A run that was stopped, killed, interrupted or spoilt continues as if nothing had happened, or says in one line why it cannot."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, TensorDataset

from driftway import checks, store
from driftway.checks import Diverged, InputError
from driftway.transport import Interrupted, Problem, Settings, TransportModel, fit, held_labels, held_rows, iterate
from driftway.transport.checkpoint import CHECKPOINT, load_run
from driftway.transport.run import Plan, start_run
from tests.transport.recipes import DOUBLE, FAMILIES, SMALL, draw, identical, uneven, weights

Y, X = uneven(150), draw(130, 2, seed=5, dtype=torch.float32)
DATA = {
    "array": lambda rows: rows.numpy(),
    "sampler": lambda rows: lambda n, own: rows[torch.randint(len(rows), (n,), generator=own)],
    "sampler-global": lambda rows: lambda n: rows[torch.randint(len(rows), (n,))],
    "loader": lambda rows: DataLoader(TensorDataset(rows), batch_size=20, shuffle=True),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


class Stop(Exception):
    """The power goes out."""


def stopping(at, action=None):
    """An on_step that stops the run after the step of that number."""

    def on_step(record):
        if record.index == at:
            if action is None:
                raise Stop
            action()

    return on_step


def train(folder, *, at=None, action=None, source=None, target=Y, resume=False, steps=30, **options):
    """A short run in a folder, checkpointed after every step."""
    options = {"family": "network", "settings": SMALL, "seed": 2, "certify_every": 7, "checkpoint_seconds": 0.0, **options}
    place = {"resume": folder} if resume else {"out": folder}
    return fit(source, target, steps=steps, on_step=stopping(at, action), **options, **place)


def fault(call, argument, *words):
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert caught.value.argument == argument
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def contents(folder):
    """Every file and its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- stopped and resumed ------------------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(("source", "target"), [
    (None, "array"), ("array", "array"), (None, "sampler"), ("sampler-global", "loader"), ("loader", "array"),
])  # fmt: skip
def test_a_resumed_run_ends_as_an_uninterrupted_one(family, source, target, tmp_path):
    """To the bit, over three interruptions at random steps, certificates included."""

    def data():
        return {"source": None if source is None else DATA[source](X), "target": DATA[target](Y), "family": family}

    whole = train(tmp_path / "whole", **data())
    chance = random.Random(f"{family} {source} {target}")
    stops = sorted(chance.sample(range(1, 30), 3))
    for i, at in enumerate(stops):
        with pytest.raises(Stop):
            train(tmp_path / "parts", at=at, resume=i > 0, **data())
        assert not (tmp_path / "parts" / store.TENSORS).exists(), "no model before the end"
    model = train(tmp_path / "parts", resume=True, **data())
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    history = [[[row[0], *row[2:]] for row in each.training["history"]] for each in (whole, model)]
    assert history[0] == history[1]
    assert len(history[0]) == 4


@every_family
@pytest.mark.parametrize("options", [
    {"problem": Problem(sigma=0.6)}, {"problem": Problem(eps=0.3), "standardize": "none"}, {"holdout": 0.0}, {"target": Y.double()},
], ids=["noise", "entropy", "no-holdout", "double"])  # fmt: skip
def test_a_resumed_run_keeps_its_plan(family, options, tmp_path):
    """What is not given again is read from the folder; what is given again is not used."""
    train(tmp_path / "whole", family=family, **options)
    with pytest.raises(Stop):
        train(tmp_path / "parts", at=11, family=family, **options)
    fit(None, options.get("target", Y), resume=tmp_path / "parts", steps=30, seed=77, settings=Settings(width=5, components=2))
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_resumed_run_keeps_its_own_held_out_rows(tmp_path):
    """Rows given as `held` need not be given again, and cost the run none of its training rows."""
    held = (draw(20, 2, dtype=torch.float32), uneven(25, seed=8))
    train(tmp_path / "whole", held=held)
    with pytest.raises(Stop):
        train(tmp_path / "parts", at=11, held=held)
    fit(None, Y, resume=tmp_path / "parts", steps=30)
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert torch.equal(held_rows(tmp_path / "parts")[1], held[1])


def test_constant_columns_are_remembered(tmp_path):
    y = torch.cat([Y, torch.full((len(Y), 1), 3.0)], 1)
    for folder, at in (("whole", None), ("parts", 9)):
        try:
            with pytest.warns(UserWarning, match="constant"):
                train(tmp_path / folder, at=at, target=y)
        except Stop:
            train(tmp_path / folder, target=y, resume=True)
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_a_finished_run_goes_on(tmp_path):
    """Fifteen steps and fifteen more are thirty; fifteen again change nothing."""
    train(tmp_path / "whole")
    train(tmp_path / "parts", steps=15)
    halfway = weights(tmp_path / "parts")
    train(tmp_path / "parts", steps=15, resume=True)
    assert identical(weights(tmp_path / "parts"), halfway)
    train(tmp_path / "parts", resume=True)
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_seconds_add_up_over_the_parts(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, at=20)
    before = store.read_tensors("folder", tmp_path / CHECKPOINT)[0]["seconds"]
    seen = []
    fit(None, Y, resume=tmp_path, steps=30, on_step=seen.append)
    assert seen[0].seconds > before > 0


def test_checkpoints_are_written_at_their_time(tmp_path):
    """Far apart: only the one at the start is there when the power goes out."""
    with pytest.raises(Stop):
        train(tmp_path, at=20, checkpoint_seconds=1000.0)
    assert store.read_tensors("folder", tmp_path / CHECKPOINT)[0]["index"] == 0
    train(tmp_path, resume=True)
    train(tmp_path.with_name("whole"))
    assert identical(weights(tmp_path), weights(tmp_path.with_name("whole")))


def test_the_held_out_rows_of_a_folder_are_in_data_units(tmp_path):
    train(tmp_path, steps=1)
    x, y = held_rows(tmp_path)
    assert y.shape == (15, 2)
    assert all((row == Y).all(1).any() for row in y)
    assert x.shape == (15, 2)
    fault(lambda: held_rows(tmp_path / "none"), "folder", "got none")


LABELS = {"classes": ["a", "b", "b"] * 50, "numbers": torch.arange(150) % 3, "vectors": Y[:, :1].sin().numpy()}
PAIRS = [(family, name) for family in (*FAMILIES, "vector") for name in LABELS if (family, name) != ("mixture", "vectors")]


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_a_run_with_labels_ends_as_an_uninterrupted_one(family, name, tmp_path):
    options = {"family": family, "labels": LABELS[name]}
    if name == "classes":
        options |= {"source": X, "source_labels": ["b", "a"] * 65}
    whole = train(tmp_path / "whole", **options)
    with pytest.raises(Stop):
        train(tmp_path / "parts", at=11, **options)
    parts = train(tmp_path / "parts", resume=True, **options)
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert parts.conditions == whole.conditions


@pytest.mark.parametrize("target", ["sampler", "loader"])
def test_a_run_on_pairs_ends_as_an_uninterrupted_one(target, tmp_path):
    labels = torch.arange(150) % 3

    def pairs(n, own):
        rows = torch.randint(len(Y), (n,), generator=own)
        return Y[rows], labels[rows]

    for folder, at in (("whole", None), ("parts", 11)):
        data = pairs if target == "sampler" else DataLoader(TensorDataset(Y, labels), batch_size=20, shuffle=True)
        try:
            train(tmp_path / folder, at=at, target=data, labels="batch")
        except Stop:
            train(tmp_path / folder, target=data, labels="batch", resume=True)
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(("labels", "source_labels", "argument", "words"), [
    (None, None, "labels", "expected the run's labels, got none; pass what the run was begun with"),
    (["b", "a", "a"] * 50, ["b", "a"] * 65, "target", "got other data"),
    (["a", "b", "c"] * 50, ["b", "a"] * 65, "labels", "expected one of a, b, got 'c' at row 2"),
    (["a", "b", "b"] * 50, None, "source", "got other data"),
    (["a", "b", "b"] * 50, ["a", "b"] * 65, "source", "got other data"),
    (["a", "b", "b"], ["b", "a"] * 65, "labels", "expected 150 labels"),
])  # fmt: skip
def test_other_labels_are_refused(labels, source_labels, argument, words, tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, at=3, source=X, labels=LABELS["classes"], source_labels=["b", "a"] * 65)
    before = contents(tmp_path)
    fault(lambda: fit(X, Y, labels=labels, source_labels=source_labels, resume=tmp_path, steps=30), argument, words)
    assert contents(tmp_path) == before


def test_labels_for_a_run_without_are_refused(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, at=3)
    fault(lambda: fit(None, Y, labels=LABELS["classes"], resume=tmp_path, steps=30), "labels", "expected none, as in the run, got labels")


def test_held_out_labels_are_those_of_the_held_out_rows(tmp_path):
    train(tmp_path / "split", steps=1, labels=LABELS["classes"])
    _, y = held_rows(tmp_path / "split")
    rows = [int((row == Y).all(1).nonzero()[0]) for row in y]
    assert held_labels(tmp_path / "split") == [LABELS["classes"][i] for i in rows]
    train(tmp_path / "given", steps=1, labels=LABELS["classes"], held=(draw(9, 2).float(), Y[:9]))
    assert held_labels(tmp_path / "given") is None
    train(tmp_path / "none", steps=1)
    assert held_labels(tmp_path / "none") is None


# --- killed -------------------------------------------------------------------------------------------------------------

KILLED = """
import sys, time
import torch
from driftway.transport import fit
from tests.transport.recipes import SMALL, uneven

def pause(record):
    print("stepping", flush=True)
    time.sleep(0.003)

torch.set_num_threads(int(sys.argv[3]))
print("starting", flush=True)
fit(None, uneven(150), family="network", settings=SMALL, seed=2, steps=400, certify_every=50, checkpoint_seconds=0.02,
    on_step=pause, **{sys.argv[1]: sys.argv[2]})
"""


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path):
    """kill -9 three times at random moments of setting up, training and saving; the weights are the same to the bit."""
    options = {"steps": 400, "certify_every": 50, "checkpoint_seconds": 1000.0}
    train(tmp_path / "whole", **options)
    folder, chance, reached = tmp_path / "killed", random.Random(0), []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for moment in ("stepping", "starting", "stepping"):
        place = "resume" if (folder / CHECKPOINT).exists() else "out"
        command = [sys.executable, "-c", KILLED, place, str(folder), str(torch.get_num_threads())]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert process.stdout is not None
        said = []
        while f"{moment}\n" not in said:
            said.append(process.stdout.readline())
            assert said[-1], f"it ended by itself: {''.join(said)}"
        time.sleep(chance.uniform(0.05, 0.5))  # less than half of the 1.2 s that the pauses of the steps alone take
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        reached.append(store.read_tensors("folder", folder / CHECKPOINT)[0]["index"] if (folder / CHECKPOINT).exists() else -1)
    assert reached == sorted(reached)
    assert reached[-1] > 0
    assert not (folder / store.TENSORS).exists()
    train(folder, **options, resume=True)
    assert identical(weights(tmp_path / "whole"), weights(folder)), f"killed at steps {reached}"


def test_what_a_kill_leaves_behind_is_cleared_away(tmp_path):
    """Half-written files are swept up when the run goes on: a folder does not grow with every kill. Files of others stay."""
    with pytest.raises(Stop):
        train(tmp_path, at=5)
    (tmp_path / f".{CHECKPOINT}.0123456789abcdef0123456789abcdef.part").write_bytes(b"half")
    (tmp_path / ".film.mp4.part").write_bytes(b"somebody's download")
    train(tmp_path, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {CHECKPOINT, store.CONFIG, store.TENSORS, ".film.mp4.part"}


class Counting(Dataset):
    """Rows that count how often they are read."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return len(Y)

    def __getitem__(self, i):
        self.read += 1
        return Y[i]


def test_a_checkpoint_does_not_read_the_data_again(tmp_path):
    """Its fingerprint is taken once: rows may be slow to load, and checkpoints many."""
    reads = []
    for folder, seconds in (("rare", 1000.0), ("often", 0.0)):
        rows = Counting()
        train(tmp_path / folder, target=DataLoader(rows, batch_size=20), checkpoint_seconds=seconds, steps=20)
        reads.append(rows.read)
    assert reads[1] == reads[0]


# --- interrupted --------------------------------------------------------------------------------------------------------


@every_family
def test_an_interrupt_waits_for_the_step_and_saves(family, tmp_path):
    train(tmp_path / "whole", family=family)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"stopped; resume from {tmp_path / 'parts'}") as caught:
        train(tmp_path / "parts", family=family, at=13, checkpoint_seconds=1000.0, action=lambda: signal.raise_signal(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.folder == tmp_path / "parts"
    assert store.read_tensors("folder", tmp_path / "parts" / CHECKPOINT)[0]["index"] == 13
    train(tmp_path / "parts", family=family, resume=True)
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_an_interrupt_without_a_folder():
    with pytest.raises(Interrupted, match="no folder was given, so nothing was saved") as caught:
        fit(None, Y, family="network", settings=SMALL, steps=9, on_step=stopping(3, lambda: signal.raise_signal(signal.SIGINT)))
    assert caught.value.folder is None


def test_a_second_interrupt_does_not_wait(tmp_path):
    """And the run on disk is still whole."""

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(tmp_path, at=13, action=twice)
    assert not isinstance(caught.value, Interrupted)
    assert load_run(tmp_path, None, Y).index == 12


def test_an_error_of_the_callback_gives_the_signal_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Stop):
        train(tmp_path, at=2)
    assert signal.getsignal(signal.SIGINT) is before


# --- spoilt -------------------------------------------------------------------------------------------------------------


def finite(tensors):
    return all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())


class Outburst:
    """A sampler whose batches are scaled by a factor beyond the range of single precision, or by NaN, after so many steps."""

    def __init__(self, calm, factor=1e30):
        self.calm, self.factor, self.batches = calm, factor, 0

    def __call__(self, n, own):
        rows = Y[torch.randint(len(Y), (n,), generator=own)]
        self.batches += n in (SMALL.candidates, SMALL.mixture_batch)  # not when it is asked for a probe or a fingerprint
        return rows if self.batches <= self.calm else rows * self.factor


@every_family
def test_losses_that_are_not_finite_stop_the_run_and_keep_the_last_good_checkpoint(family, tmp_path, monkeypatch):
    """It can be read, and with the cause removed the run goes on from it."""
    monkeypatch.setattr(checks, "moderate", lambda *numbers: None)  # such rows are refused otherwise
    train(tmp_path / "whole", family=family, target=Outburst(100))
    with pytest.raises(Diverged) as caught:
        train(tmp_path / "parts", family=family, target=Outburst(14))
    text = str(caught.value)
    assert "\n" not in text
    assert f"the last good checkpoint is in {tmp_path / 'parts'}" in text
    assert "lower the step size" in text
    config, tensors = store.read_tensors("folder", tmp_path / "parts" / CHECKPOINT)
    assert config["index"] == 14
    assert text.startswith("step 15: expected finite losses, got ")
    assert "nan" in text or "inf" in text
    assert finite(tensors)
    assert not (tmp_path / "parts" / store.TENSORS).exists()
    train(tmp_path / "parts", family=family, target=Outburst(100), resume=True)
    assert identical(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_divergence_without_a_folder_names_the_option():
    with pytest.raises(Diverged, match=r"pass out= to keep checkpoints"):
        fit(None, Y, family="network", steps=50, settings=Settings(batch=32, candidates=32, width=8, depth=2, heads=2, lr=1e12))


def test_a_run_that_diverged_is_at_the_step_before(monkeypatch):
    """Stepping by hand: the weights in memory are the last good ones."""
    monkeypatch.setattr(checks, "moderate", lambda *numbers: None)
    plan = Plan(problem=Problem(), settings=SMALL, seed=0, family="network", standardize="auto", holdout=0.1, certify_every=100)
    run = start_run(plan, None, Outburst(14), None)
    kept = {}
    with pytest.raises(Diverged):  # noqa: PT012 (the loop is what diverges)
        for _ in iterate(run):
            kept = {name: tensor.clone() for name, tensor in run.learner.value.state_dict().items()}
    assert run.index == 14
    assert finite(run.learner.value.state_dict())
    assert finite(run.learner.average.state_dict())
    assert identical(run.learner.value.state_dict(), kept)


def test_a_sampler_that_returns_nan_is_named_and_the_checkpoint_kept(tmp_path):
    fault(lambda: train(tmp_path, target=Outburst(14, torch.nan)), "target", "expected finite numbers, got nan")
    config, tensors = store.read_tensors("folder", tmp_path / CHECKPOINT)
    assert config["index"] == 14
    assert finite(tensors)


# --- refused ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with an interrupted run from X to Y; tests copy it."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(Stop):
        train(folder, at=5, source=X)
    return folder


@pytest.fixture
def folder(stopped, tmp_path):
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize(("source", "target", "argument", "words"), [
    (X, Y + 1e-3, "target", "got other data"),
    (X + 1e-3, Y, "source", "got other data"),
    (X, Y[:-1], "target", "got other data"),
    (X, DATA["sampler"](Y), "target", "got other data"),
    (X.flip(0), Y, "source", "got other data"),
    (None, Y, "source", "expected the run's source data, got none"),
    (X, X, "target", "got other data"),
    (torch.cat([X, X], 1), torch.cat([Y, Y], 1), "source", "got other data"),
    (X.double(), Y.double(), "source", "got other data"),
    (X, Y.double(), "source", "expected dtype torch.float64"),
    (X[:, :1], Y, "source", "expected rows of shape (2,)"),
    (X, torch.full_like(Y, torch.nan), "target", "got nan"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_other_data_is_refused(folder, source, target, argument, words):
    before = contents(folder)
    fault(lambda: fit(source, target, resume=folder, steps=30), argument, words)
    assert contents(folder) == before


def test_a_source_for_a_run_from_the_normal_is_refused(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, at=3)
    fault(lambda: fit(X, Y, resume=tmp_path, steps=30), "source", "expected none, as in the run, got data")


def edited(folder, change):
    """The checkpoint with its configuration changed."""
    config, tensors = store.read_tensors("folder", folder / CHECKPOINT)
    change(config)
    save_file(tensors, folder / CHECKPOINT, metadata={"config": json.dumps(config)})


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda folder: (folder / CHECKPOINT).unlink(), f"expected a file {CHECKPOINT}"),
    (shutil.rmtree, f"expected a file {CHECKPOINT}"),
    (lambda folder: (folder / CHECKPOINT).write_bytes(b""), "a damaged one"),
    (lambda folder: (folder / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes()[:-7]), "a damaged one"),
    (lambda folder: (folder / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes()[:100]), "a damaged one"),
    (lambda folder: (folder / CHECKPOINT).write_bytes(os.urandom(5000)), "a damaged one"),
    (lambda folder: edited(folder, lambda config: config.update(version=99)), "expected format version 1"),
    (lambda folder: edited(folder, lambda config: config.pop("version")), "got version None"),
    (lambda folder: edited(folder, lambda config: config.update(kind="another.thing")), "expected a transport run"),
    (lambda folder: edited(folder, lambda config: config["plan"]["settings"].update(future_option=1)), "resume"),
    (lambda folder: edited(folder, lambda config: config["plan"]["settings"].pop("batch")), "resume"),
], ids=["missing", "no-folder", "empty", "cut", "cut-short", "noise",
        "version", "no-version", "kind", "new-setting", "old-setting"])  # fmt: skip
def test_an_unusable_checkpoint_is_refused(folder, spoil, words):
    spoil(folder)
    before = contents(folder) if folder.exists() else None
    fault(lambda: fit(X, Y, resume=folder, steps=30), "resume", words)
    assert (contents(folder) if folder.exists() else None) == before


@pytest.mark.parametrize("kept", [CHECKPOINT, store.CONFIG, store.TENSORS])
def test_a_taken_folder_is_refused(tmp_path, kept):
    train(tmp_path / "run", steps=1)
    for name in (CHECKPOINT, store.CONFIG, store.TENSORS):
        if name != kept:
            (tmp_path / "run" / name).unlink()
    before = contents(tmp_path / "run")
    fault(lambda: train(tmp_path / "run"), "out", "expected a folder without a run", kept, "resume it, or name another folder")
    assert contents(tmp_path / "run") == before


def test_a_folder_with_other_files_is_not_taken(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    train(tmp_path, steps=1)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_resumed_into_another_folder_does_not_overwrite_a_run_there(folder, tmp_path):
    train(tmp_path / "other", steps=1)
    before = contents(tmp_path / "other")
    fault(lambda: fit(X, Y, resume=folder, out=tmp_path / "other", steps=30), "out", "expected a folder without a run")
    assert contents(tmp_path / "other") == before


def test_a_run_resumed_into_a_new_folder_leaves_the_old_one(folder, tmp_path):
    before = contents(folder)
    fit(X, Y, resume=folder, out=tmp_path / "new", steps=30)
    assert contents(folder) == before
    train(tmp_path / "whole", source=X)
    assert identical(weights(tmp_path / "new"), weights(tmp_path / "whole"))


def test_bad_arguments_leave_no_folder(tmp_path):
    for options in ({"steps": 0}, {"family": "none"}, {"target": torch.full((9, 2), torch.nan)}, {"holdout": 2.0}):
        with pytest.raises(InputError):
            train(tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()


# --- models -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*differs from the copy inside")
@pytest.mark.parametrize(("spoil", "words"), [
    (shutil.rmtree, "expected a model folder"),
    (lambda folder: (folder / store.TENSORS).unlink(), f"got no {store.TENSORS}"),
    (lambda folder: (folder / store.CONFIG).unlink(), f"got no {store.CONFIG}"),
    (lambda folder: (folder / store.TENSORS).write_bytes((folder / store.TENSORS).read_bytes()[:-9]), "a damaged one"),
    (lambda folder: (folder / store.CONFIG).write_text('{"version": 99}'), "expected format version 1"),
    (lambda folder: shutil.copy(folder / CHECKPOINT, folder / store.TENSORS), "expected a driftway.transport model"),
], ids=["no-folder", "no-tensors", "no-config", "cut", "version", "kind"])  # fmt: skip
def test_an_unusable_model_is_refused(tmp_path, spoil, words):
    train(tmp_path / "run", steps=1)
    spoil(tmp_path / "run")
    fault(lambda: TransportModel.load(tmp_path / "run"), "folder", words)


@every_family
def test_a_loaded_model_is_the_returned_one(family, tmp_path):
    y = Y.to(DOUBLE)
    model = train(tmp_path, family=family, target=y, problem=Problem(sigma=0.3))
    again = TransportModel.load(tmp_path)
    assert torch.equal(model.sample(50, steps=3), again.sample(50, steps=3))
    assert torch.equal(model.price(y), again.price(y))
    assert again.problem == Problem(sigma=0.3)
    assert again.training == json.loads(json.dumps(model.training))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_continues_where_its_data_is(tmp_path):
    x, y = X.cuda(), Y.cuda()
    whole = train(tmp_path / "whole", source=x, target=y)
    with pytest.raises(Stop):
        train(tmp_path / "cut", source=x, target=y, at=11)
    again = train(tmp_path / "cut", source=x, target=y, resume=True)
    torch.testing.assert_close(again.sample(x), whole.sample(x))
