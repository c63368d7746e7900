"""The command line as a person meets it: exit codes, one-line errors, files."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from driftway import cli
from driftway.cli.terminal import say_evaluation
from driftway.report import evaluate
from driftway.transport import TransportModel
from tests.report.known import labelled_translation, rows


def run(monkeypatch, capsys, *words):
    """The exit code, standard output and standard error of one command."""
    monkeypatch.setattr(sys, "argv", ["driftway", *map(str, words)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def write_csv(path, rows, header="a,b"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.fixture
def target(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 2)) * [1, 3] + [5, -2]
    return write_csv(tmp_path / "t.csv", rows)


def test_fit_sample_evaluate(monkeypatch, capsys, tmp_path, target):
    folder = tmp_path / "run"
    code, out, err = run(monkeypatch, capsys, "transport", "fit", "--target", target, "--out", folder, "--steps", 300, "--seed", 3)
    assert code == 0, err
    assert "certificate:" in out
    page = (folder / "report.html").read_text()
    assert "driftway transport fit --target" in page

    first, second = tmp_path / "x.csv", tmp_path / "y.csv"
    assert run(monkeypatch, capsys, "transport", "sample", folder, "-n", 2000, "-o", first, "--seed", 1)[0] == 0
    assert run(monkeypatch, capsys, "transport", "sample", folder, "-n", 10, "-o", second, "--seed", 1)[0] == 0
    text = first.read_text().splitlines()
    assert text[0] == "a,b"
    drawn = np.loadtxt(first, delimiter=",", skiprows=1)
    assert np.abs(drawn.mean(0) - [5, -2]).max() < 0.5
    assert np.abs(drawn.std(0) - [1, 3]).max() < 0.5
    np.testing.assert_allclose(drawn[:10], np.loadtxt(second, delimiter=",", skiprows=1), rtol=1e-4, atol=1e-4)

    code, out, err = run(monkeypatch, capsys, "transport", "evaluate", folder, "--target", target)
    assert code == 0, err
    assert "floor" in out
    assert "MMD (rbf)" in out
    code, other, err = run(monkeypatch, capsys, "transport", "evaluate", folder, "--target", target, "--kernel", "ntk")
    assert code == 0, err
    assert "MMD (ntk)" in other
    code, _, err = run(monkeypatch, capsys, "transport", "evaluate", folder, "--target", target, "--kernel", "laplace")
    assert code == 2
    assert "kernel: expected one of rbf, nngp, ntk" in err


def test_evaluations_print_the_distance_in_a_kernel_within_classes_too(capsys):
    """One class is moved rightly, the other not: the whole law and the first class pass the test, the second fails it."""
    model, left = labelled_translation({"a": [3.0, 0.0], "b": [-3.0, 1.0]}), torch.tensor([3.0, 0.0], dtype=torch.float64)
    y = torch.cat([rows(60, 2, seed=1) + left, rows(60, 2, seed=2) - left])
    found = evaluate(model, rows(120, 2), y, labels=["a"] * 60 + ["b"] * 60, steps=[1, 4], kernel="rbf")
    table = found.kernel_rows()
    assert [row["steps"] for row in table] == ["1", "4", "4, a", "4, b"]
    assert [row["rows"] for row in table] == ["120", "120", "60", "60"]
    assert float(table[2]["p"]) > 0.05
    assert float(table[3]["p"]) == 0.001
    say_evaluation(found)
    shown = capsys.readouterr().out
    assert "MMD (rbf)" in shown
    assert "4, b" in shown
    assert not evaluate(model, rows(20, 2), y[:20], steps=[1]).kernel_rows()


def test_source_rows_are_moved(monkeypatch, capsys, tmp_path, target):
    source = write_csv(tmp_path / "s.csv", np.random.default_rng(1).normal(size=(300, 2)))
    folder, moved = tmp_path / "run", tmp_path / "z.npy"
    assert run(monkeypatch, capsys, "transport", "fit", "--target", target, "--source", source, "--out", folder, "--steps", 300)[0] == 0
    assert run(monkeypatch, capsys, "transport", "sample", folder, "--source", source, "-o", moved)[0] == 0
    z = np.load(moved)
    assert z.shape == (300, 2)
    assert np.abs(z.mean(0) - [5, -2]).max() < 0.5
    code, _, err = run(monkeypatch, capsys, "transport", "sample", folder, "-o", moved)
    assert code == 2, err
    assert "x0: expected source samples" in err
    code, _, err = run(monkeypatch, capsys, "transport", "evaluate", folder, "--target", target)
    assert code == 2
    assert err.count("\n") == 1


def bad(tmp_path, name):
    good = [[1.0, 2.0], [2.0, 1.0], [0.5, 0.25]]
    file = tmp_path / "t.csv"
    out = ["--out", tmp_path / "run", "--steps", "2"]
    if name == "text":
        return ["--target", write_csv(file, [*good, [1.0, "two"]]), *out], ["two", "row 5", "b"]
    if name == "nan":
        return ["--target", write_csv(file, [*good, [1.0, "nan"]]), *out], ["row 5", "b"]
    if name == "one row":
        return ["--target", write_csv(file, good[:1]), *out], ["target"]
    if name == "empty":
        file.write_text("")
        return ["--target", file, *out], ["target"]
    if name == "missing":
        return ["--target", tmp_path / "none.csv", *out], ["target", "none.csv"]
    if name == "shapes":
        other = write_csv(tmp_path / "s.csv", [[1.0, 2.0, 3.0]] * 3, "a,b,c")
        return ["--target", write_csv(file, good), "--source", other, *out], ["source"]
    if name == "steps":
        return ["--target", write_csv(file, good), "--out", tmp_path / "run", "--steps", "0"], ["steps", ">= 1"]
    if name == "family":
        return ["--target", write_csv(file, good), *out, "--family", "gan"], ["family", "mixture", "gan"]
    if name == "gap with noise":
        return ["--target", write_csv(file, good), *out, "--gap", "0.1", "--sigma", "1"], ["gap", "sigma"]
    return ["--target", write_csv(file, good), *out, "--resume"], ["resume", "checkpoint"]


@pytest.mark.parametrize(
    "name", ["text", "nan", "one row", "empty", "missing", "shapes", "steps", "family", "gap with noise", "nothing to resume"]
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, name):
    words, shown = bad(tmp_path, name)
    code, out, err = run(monkeypatch, capsys, "transport", "fit", *words)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert all(word in err for word in (*shown, "expected", "got")), err
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_left_alone(monkeypatch, capsys, tmp_path, target):
    words = ["transport", "fit", "--target", target, "--out", tmp_path / "run", "--steps", 5, "--family", "network"]
    assert run(monkeypatch, capsys, *words)[0] == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "resume it, or name another folder" in err
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    assert run(monkeypatch, capsys, *words[:-3], 8, "--resume")[0] == 0
    assert TransportModel.load(tmp_path / "run").training["steps"] == 8


@pytest.mark.parametrize("name", ["run folder", "unknown ending"])
def test_sample_checks_before_it_works(monkeypatch, capsys, tmp_path, name):
    output = tmp_path / ("x.csv" if name == "run folder" else "x.xyz")
    code, _, err = run(monkeypatch, capsys, "transport", "sample", tmp_path / "none", "-o", output)
    assert code == 2
    assert err.count("\n") == 1
    assert not output.exists()


def test_the_module_is_a_command():
    shown = subprocess.run([sys.executable, "-c", "from driftway.cli import main; main()", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "transport" in shown.stdout
