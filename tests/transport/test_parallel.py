"""Two processes with a batch of B train as one with a batch of 2 B does, and only the first writes files."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from driftway import cli, store
from driftway.checks import InputError
from driftway.parallel import Group, launched
from driftway.transport import Settings, TransportModel, fit
from tests.transport.recipes import DOUBLE, draw, uneven, weights

Y, X = uneven(90, dtype=DOUBLE), draw(70, 2, seed=5)
RARE = [0] * 50 + [1] * 37 + [2] * 3  # in many batches one process has no row of class 2
LABELS = {
    "none": {}, "classes": {"labels": RARE}, "both": {"labels": RARE, "source_labels": [0, 1, 0, 1, 2] * 14},
    "vectors": {"labels": Y[:, :1].sin()},
}  # fmt: skip
CASES = [(family, kind) for family in ("network", "vector", "mixture") for kind in LABELS if (family, kind) != ("mixture", "vectors")]
STEPS = 8
installed = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None,
                               reason="training in several processes needs Accelerate: pip install 'driftway[accelerate]'")  # fmt: skip
torch.set_num_threads(1)


def train(family, kind, processes, **options):
    """A few steps whose batches are the same in all, for any number of processes."""
    settings = Settings(batch=32 // processes, candidates=48 // processes, mixture_batch=60 // processes, width=12, depth=2, heads=4,
                        components=3)  # fmt: skip
    source = X if kind == "both" else None
    return fit(source, Y, family=family, settings=settings, seed=2, steps=STEPS, certify_every=STEPS // 2, holdout=0.0,
               **LABELS[kind], **options)  # fmt: skip


SCRIPT = """
import os, sys
from pathlib import Path
from driftway.cli import main
from tests.transport.test_parallel import CASES, train
folder = Path(sys.argv.pop(1))
for family, kind in CASES:
    train(family, kind, 2, out=folder / f"rank{os.environ['RANK']}" / f"{family}-{kind}")
main()  # the words that are left
"""


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A folder that two processes trained all cases in and ran the command line, and what each of them said."""
    folder = tmp_path_factory.mktemp("group")
    rows = "\n".join(["a,b,kind", *(f"{a},{b},{'left' if a < 0 else 'right'}" for a, b in uneven(60).tolist())])
    (folder / "t.csv").write_text(rows)
    words = ["transport", "fit", "--target", folder / "t.csv", "--labels", "kind", "--out", folder / "run", "--steps", STEPS,
             "--family", "network", "--width", 8, "--batch", 16, "--candidates", 32, "--threads", 1]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    everywhere = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "1",
                  "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, *map(str, [folder / "cases", *words])]
    processes = [subprocess.Popen(command, env={**everywhere, "RANK": rank, "LOCAL_RANK": rank}, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) for rank in "01"]  # fmt: skip
    try:
        said = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(error[-3000:] for _, error in said)
    return folder, [output for output, _ in said]


@installed
@pytest.mark.parametrize(("family", "kind"), CASES)
def test_two_processes_train_as_one_of_twice_the_batch(group, family, kind, tmp_path):
    place = group[0] / "cases" / "rank0" / f"{family}-{kind}"
    found = weights(place)
    train(family, kind, 1, out=tmp_path)
    known = weights(tmp_path)
    assert found.keys() == known.keys()
    for name, tensor in known.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    history = [json.loads((folder / store.CONFIG).read_text())["training"]["history"] for folder in (place, tmp_path)]
    assert len(history[0]) == 2
    for a, b in zip(*history, strict=True):
        assert a[0] == b[0]
        assert a[2:] == pytest.approx(b[2:], rel=1e-6)


@installed
def test_only_the_first_process_writes(group):
    assert {path.name for path in (group[0] / "cases").iterdir()} == {"rank0"}
    assert len(list((group[0] / "cases" / "rank0").iterdir())) == len(CASES)


@installed
def test_the_command_line_trains_in_two_processes(group):
    folder, (first, second) = group
    assert "certificate:" in first
    assert second == ""
    assert TransportModel.load(folder / "run").classes == ("left", "right")
    assert (folder / "run" / "report.html").exists()


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert launched() == Group()
    assert launched().main


def test_several_processes_without_accelerate_are_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"^WORLD_SIZE: expected Accelerate for several processes, got 3 processes w"):
        launched()
    monkeypatch.setattr(sys, "argv", ["driftway", "transport", "fit", "--target", "t.csv", "--out", "run"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_rows_are_shared_out_and_none_is_lost():
    rows = torch.arange(11)
    parts = [Group(rank=r, size=3).own(rows) for r in range(3)]
    assert torch.equal(torch.cat(parts).sort().values, rows)
    assert [len(part) for part in parts] == [4, 4, 3]
