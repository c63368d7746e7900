"""Labels on the command line: read from tables, arrays and folders of images; sampled by name; refused in one line."""

import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from driftway import cli, transport
from driftway.transport import TransportModel
from tests.cli.test_cli import run, write_csv

SMALL = ["--width", 8, "--depth", 2, "--batch", 64, "--candidates", 128, "--family", "network", "--threads", 1]
SIDES = np.arange(200) % 2
ROWS = np.random.default_rng(0).normal(size=(200, 2)) * 0.3 + np.where(SIDES, 5, -5)[:, None]


def kinds(path, names=("left", "right"), rows=ROWS):
    return write_csv(path, [[a, names[side], b] for (a, b), side in zip(rows, SIDES, strict=True)], "a,kind,b")


def fit(monkeypatch, capsys, *words, steps=5):
    return run(monkeypatch, capsys, "transport", "fit", *words, "--steps", steps, *SMALL)


def pictures(folder, names=("3", "cat")):
    """Dark images of one class, bright ones of the other."""
    noise = np.random.default_rng(1)
    for side, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(noise.integers(0, 60, (4, 4)).astype(np.uint8) + np.uint8(190 * side)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with two named classes, five to the left and five to the right; beside it its table."""
    place = tmp_path_factory.mktemp("labels")
    words = ["driftway", "transport", "fit", "--target", kinds(place / "t.csv"), "--labels", "kind", "--out", place / "run", "--steps", 150]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*map(str, [*words, *SMALL])])
        with suppress(SystemExit):
            cli.main()
    return place / "run"


def test_a_column_of_labels_trains_samples_and_evaluates(monkeypatch, capsys, tmp_path, folder):
    assert TransportModel.load(folder).classes == ("left", "right")
    for name, sign, guidance in (("left", -1, 1), ("right", 1, 1.5)):
        words = ["transport", "sample", folder, "-n", 60, "-o", tmp_path / "x.csv", "--label", name, "--guidance", guidance]
        assert run(monkeypatch, capsys, *words)[0] == 0
        assert (tmp_path / "x.csv").read_text().startswith("a,b\n")
        z = np.loadtxt(tmp_path / "x.csv", delimiter=",", skiprows=1)
        assert z.shape == (60, 2)
        assert (np.sign(z[:, 0]) == sign).mean() > 0.85
    code, out, err = run(monkeypatch, capsys, "transport", "evaluate", folder, "--target", folder.parent / "t.csv", "--labels", "kind")
    assert code == 0, err
    assert "floor" in out


def test_the_way_back_on_the_command_line(monkeypatch, capsys, tmp_path, folder):
    y = write_csv(tmp_path / "y.csv", ROWS[:40])
    assert run(monkeypatch, capsys, "transport", "sample", folder, "--reverse", "--source", y, "-o", tmp_path / "z.npy")[0] == 0
    z = np.load(tmp_path / "z.npy")
    assert z.shape == (40, 2)
    assert np.abs(z).max() < 5, "noise lies around zero"
    code, _, err = run(monkeypatch, capsys, "transport", "sample", folder, "--reverse", "-o", tmp_path / "w.npy")
    assert code == 2
    assert err.count("\n") == 1
    assert "x0: expected source samples" in err


def test_an_archive_with_labels(monkeypatch, capsys, tmp_path):
    """Whole numbers; found again whether written as text or as numbers."""
    np.savez(tmp_path / "t.npz", rows=ROWS.astype(np.float32), digit=SIDES + 2)
    words = ["--target", f"{tmp_path / 't.npz'}:rows", "--labels", "digit", "--out", tmp_path / "run"]
    code, _, err = fit(monkeypatch, capsys, *words)
    assert code == 0, err
    model = TransportModel.load(tmp_path / "run")
    assert list(map(str, model.classes)) == ["2", "3"]
    words = ["transport", "sample", tmp_path / "run", "-n", 5, "-o", tmp_path / "x.npy", "--label", "3", "--guidance", "1.5"]
    assert run(monkeypatch, capsys, *words)[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), model.sample(5, label=3, guidance=1.5).numpy(), rtol=1e-6)


def test_a_folder_of_images_by_class(monkeypatch, capsys, tmp_path):
    words = ["--target", pictures(tmp_path / "images"), "--labels", "folder", "--out", tmp_path / "run"]
    code, _, err = fit(monkeypatch, capsys, *words, steps=120)
    assert code == 0, err
    means = {}
    for name in ("3", "cat"):
        words = ["transport", "sample", tmp_path / "run", "-n", 9, "-o", tmp_path / f"{name}.png", "--label", name, "--guidance", 1.5]
        assert run(monkeypatch, capsys, *words)[0] == 0
        means[name] = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), float).mean()
    assert means["cat"] > means["3"] + 30
    assert TransportModel.load(tmp_path / "run").sample(2, label="cat").shape == (2, 4, 4)


def bad(name, tmp_path):
    """Words of a fit, and what the error says."""
    out = ["--out", tmp_path / "new"]
    if name == "no such column":
        return ["--target", kinds(tmp_path / "t.csv"), "--labels", "sort", *out], ["sort", "kind"]
    if name == "missing label":
        return ["--target", kinds(tmp_path / "t.csv", ("", "right")), "--labels", "kind", *out], ["label", "row 2", "100 such rows"]
    if name == "fractions":
        return ["--target", kinds(tmp_path / "t.csv", (0.5, 1.5)), "--labels", "kind", *out], ["0.5", "row 2"]
    if name == "no sub-folders":
        (tmp_path / "flat").mkdir()
        for file in pictures(tmp_path / "images").rglob("*.png"):
            file.rename(tmp_path / "flat" / f"{file.parent.name}{file.name}")
        return ["--target", tmp_path / "flat", "--labels", "folder", *out], ["sub-folder"]
    if name == "text as a feature":
        return ["--target", kinds(tmp_path / "t.csv"), *out], ["kind", "left"]
    if name == "source labels alone":
        return ["--target", kinds(tmp_path / "t.csv"), "--labels", "kind", "--source-labels", "kind", *out], ["--source-labels", "--source"]
    other = kinds(tmp_path / "s.csv", ("up", "right"))
    words = ["--target", kinds(tmp_path / "t.csv"), "--labels", "kind", "--source", other, "--source-labels", "kind", *out]
    return words, ["source_labels", "left, right", "'up'"]


@pytest.mark.parametrize("name", ["no such column", "missing label", "fractions", "no sub-folders", "text as a feature",
                                  "source labels alone", "another class"])  # fmt: skip
def test_labels_that_cannot_be_read_are_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, name):
    words, shown = bad(name, tmp_path)
    code, out, err = fit(monkeypatch, capsys, *words, steps=2)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert all(word in err for word in (*shown, "expected", "got")), err
    assert not (tmp_path / "new").exists()


def test_labels_that_cannot_be_sampled_are_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, folder):
    file = tmp_path / "x.csv"
    for words, shown in ((["--label", "up"], "label: expected one of left, right, got 'up'"),
                         (["--label", ""], "label: expected"),
                         (["--guidance", "2"], "guidance: expected 1 without a label"),
                         (["--label", "left", "--guidance", "nan"], "guidance: expected a finite number")):  # fmt: skip
        code, out, err = run(monkeypatch, capsys, "transport", "sample", folder, "-o", file, *words)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert shown in err
        assert not file.exists()
    plain = transport.Settings(width=8, depth=2)
    transport.fit(None, torch.tensor(ROWS), family="network", settings=plain, steps=1, out=tmp_path / "plain")
    code, _, err = run(monkeypatch, capsys, "transport", "sample", tmp_path / "plain", "-o", file, "--label", "left")
    assert code == 2
    assert "label: expected None, as this model was trained without labels" in err
    words = ["transport", "evaluate", tmp_path / "plain", "--target", folder.parent / "t.csv", "--labels", "kind"]
    code, _, err = run(monkeypatch, capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "trained without labels" in err
