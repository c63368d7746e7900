"""Commands with options and files that a person may mistype: they work, or end with a code from 1 to 3 and a sentence, not a traceback."""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftway import cli
from tests.reliability.files import changed, valid
from tests.reliability.strategies import budget, unchecked

NUMBERS = ("0", "1", "-1", "2", "0.5", "nan", "inf", "-inf", "1e400", "1e-300", "9" * 26, "a", "", "1_0", "0x10", "None", "--", "True")
SMALL = ("1", "2", "0", "-1", "1.5", "a", "nan")  # of what takes time
FEW = ("0", "1", "-1", "a")  # of threads
NAMES = ("auto", "none", "", "AUTO", "a,b", "a", "label", "b", "price", "price,", ",", "../x", "\u202e", "x" * 300)
PATHS = ("t.csv", "s.csv", "texts.csv", "none.csv", "", ".", "t", "/dev/null", "t.parquet", "x.npy", "x.npz:x", "x.npz:none", "x.npz",
         "pictures", "damaged.csv", "t.csv:x", "~", "t.CSV ", "model", "regressor")  # fmt: skip
PLACES = ("out", "new/out", "t.csv", "", "/dev/null", "/proc/x", "out.csv", "out.npy", "out.png", "out.xyz", "o" * 300, "model")


def options(names: str, values: Sequence[str] | None) -> dict[str, Sequence[str] | None]:
    """The same values for several options; None for one without a value."""
    return {f"--{name}": values for name in names.split()}


FIT = (options("target source", PATHS) | options("out", PLACES) | options("labels source-labels none", NAMES) | options("steps", SMALL)
       | options("seed gap sigma eps horizon holdout checkpoint-seconds lr dropout", NUMBERS) | options("threads", FEW)
       | options("max-seconds", ("0.001", "-1", "0", "nan", "a")) | options("family", ("mixture", "network", "vector", "none", ""))
       | options("standardize", ("none", "common", "columns", "x")) | options("width depth components base", ("0", "1", "99999999", "a"))
       | options("batch candidates", ("1", "2", "-1", "a")) | options("precision", ("float16", "x")) | options("resume", None))  # fmt: skip
STOP = (options("model data test", PATHS) | options("out", PLACES) | options("text label split scope", NAMES) | options("threads", FEW)
        | options("kind rule optimizer schedule loss head", ("classes", "sure", "sgd", "linear", "huber", "zero", "x", ""))
        | options("lr batch epochs warmup lora length budget rows seed", NUMBERS) | options("resume", None))  # fmt: skip
COMMANDS = {
    "transport fit": ("--target t.csv --out out --steps 1 --family mixture --components 2", FIT),
    "transport sample": ("model --out out.csv -n 3", {"-n": SMALL} | options("steps", SMALL) | options("out", PLACES)
                         | options("label", NAMES) | options("guidance seed", NUMBERS) | options("source", PATHS)
                         | options("rule", ("endpoint", "explicit", "x")) | options("reverse", None)),
    "transport evaluate": ("model --target t.csv", options("target source", PATHS) | options("labels", NAMES)
                           | options("report", PLACES) | options("seed", NUMBERS)),
    "adapt fit": ("--source s.csv --target t.csv --y price --out out --steps 1 --method target",
                  options("source target", PATHS) | options("y weight drop", NAMES) | options("out", PLACES) | options("steps", SMALL)
                  | options("method", ("target", "pooled", "none", "")) | options("seed", NUMBERS) | options("threads", FEW)),
    "adapt predict": ("regressor t.csv --out out.csv", options("out", PLACES) | options("level", NUMBERS) | options("threads", FEW)),
    "finetune stop": ("--model model --data texts.csv --out out", STOP),
    "finetune run": ("--model model --data texts.csv --out out", STOP),
    "": ("", options("help version x", None) | {"transport": None, "fit": None, "adapt": NAMES, "finetune": ("none",)}),
}  # fmt: skip


def run(*words: str) -> tuple[int, str]:
    """The exit code of a command, and what it said, in this process."""
    said, before = io.StringIO(), sys.argv
    sys.argv = ["driftway", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), unchecked():
            cli.main()
        return 0, said.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), said.getvalue()
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files, a model and a regressor to begin with."""
    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    for name in ("s", "t"):
        table = pd.DataFrame(rng.normal(size=(14, 3)).round(3), columns=["a", "b", "price"])
        table.to_csv(folder / f"{name}.csv", index=False)
    table.to_parquet(folder / "t.parquet")
    np.save(folder / "x.npy", table.to_numpy())
    np.savez(folder / "x.npz", x=table.to_numpy(), label=np.arange(14) % 2)
    (folder / "texts.csv").write_bytes(valid("texts.csv"))
    (folder / "damaged.csv").write_bytes(changed(valid("table.csv"), rng))
    (folder / "pictures").mkdir()
    for i in range(3):
        (folder / "pictures" / f"{i}.png").write_bytes(valid("image.png"))
    with contextlib.chdir(folder):
        assert run("transport", "fit", "--target", "t.csv", "--out", "model", "--steps", "1", "--components", "2")[0] == 0
        assert (
            run(
                "adapt",
                "fit",
                "--source",
                "s.csv",
                "--target",
                "t.csv",
                "--y",
                "price",
                "--out",
                "regressor",
                "--steps",
                "1",
                "--method",
                "target",
            )[0]
            == 0
        )
    return folder


@st.composite
def mistyped(draw, command):
    """A command with one to three options replaced or added."""
    text, known = COMMANDS[command]
    words = text.split()
    for name in draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True)):
        value = () if known[name] is None else (draw(st.sampled_from(known[name])),)
        if name in words and value:
            words[words.index(name) + 1] = value[0]
        else:
            words += [name, *value]
    if draw(st.integers(0, 9)) == 0 and words:
        del words[draw(st.integers(0, len(words) - 1))]
    return [*command.split(), *words]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command or "driftway")
def test_mistyped_commands(command, whole, tally):
    tried = 0

    @budget(1, 55)
    @given(mistyped(command))
    def attempt(words):
        nonlocal tried
        with TemporaryDirectory() as place, contextlib.chdir(place):
            for path in whole.iterdir():
                (Path(place) / path.name).symlink_to(path)
            code, said = run(*words)
            assert code in (0, 1, 2, 3), f"code {code} of {words}: {said}"
            assert "Traceback" not in said
            assert code == 0 or said.strip(), f"nothing said at {words}"
        tried += 1

    attempt()
    tally("mistyped commands", tried, tried)
