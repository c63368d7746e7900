"""Every unusable argument of the room: one line that names the argument, what was expected, what came, and the cure.

All calls are made in one process of its own, without the shape checks that run in tests: what a caller sees is tested, where those
would speak first. Run this file by itself to read all the messages.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from driftway.checks import InputError
from driftway.transport import (
    Problem,
    Settings,
    TransportModel,
    certificate,
    fit,
    held_rows,
    normalised_path_energy,
    solve_assignment_program,
    solve_program,
    w2,
)
from tests.transport.recipes import DOUBLE, SMALL, mixture, model_of, network, uneven

Y = uneven(40)
NAN, INF = (Y.index_fill(0, torch.tensor([3]), value) for value in (float("nan"), float("inf")))
NOISE, MIXED = (model_of(value, dtype=torch.float32) for value in (network(2), mixture(2)))
MOVED = model_of(network(2), noise=False)


def try_fit(source=None, target=Y, **options):
    """A fit whose folder must stay away."""
    options = {"settings": SMALL, "steps": 2, "certify_every": 1, **options}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        try:
            return fit(source, target, out=folder, **options)
        finally:
            if folder.exists():
                raise AssertionError(f"the fit began, and wrote {[path.name for path in folder.iterdir()]}")


def sampler(rows):
    return lambda n, own: rows[torch.randint(len(rows), (n,), generator=own)]


CASES: dict[str, tuple[Callable[[], object], str, str]] = {
    # rows
    "target-nan": (lambda: try_fit(target=NAN), "target", "got nan at row 3, column 0 (2 such entries); drop or fill"),
    "target-inf": (lambda: try_fit(target=INF.numpy()), "target", "got inf at row 3, column 0"),
    "target-image-nan": (lambda: try_fit(target=NAN.reshape(20, 2, 2)), "target", "got nan at row 1, column (1, 0)"),
    "target-list": (lambda: try_fit(target=Y.tolist()), "target", "got list; convert it to a float array"),
    "target-none": (lambda: try_fit(target=None), "target", "got NoneType"),
    "target-path": (lambda: try_fit(target="rows.csv"), "target", "got str"),
    "target-text": (lambda: try_fit(target=np.array([["a"], ["b"]])), "target", "got ndarray of dtype <U1"),
    "target-complex": (lambda: try_fit(target=torch.ones(4, 2, dtype=torch.complex64)), "target", "got Tensor of dtype torch.complex64"),
    "target-half": (lambda: try_fit(target=Y.half()), "target", "float16"),
    "target-bfloat": (lambda: try_fit(target=Y.bfloat16(), family="network"), "target", "bfloat16"),
    "target-flat": (lambda: try_fit(target=Y[:, 0]), "target", "got shape (40,); reshape one column to (n, 1)"),
    "target-one-row": (lambda: try_fit(target=Y[:1]), "target", "expected at least 2 rows, got 1"),
    "target-no-rows": (lambda: try_fit(target=Y[:0]), "target", "expected at least 2 rows, got 0"),
    "target-no-columns": (lambda: try_fit(target=Y[:, :0]), "target", "expected at least one column"),
    "target-constant": (lambda: try_fit(target=torch.ones(9, 2)), "target", "expected a column that varies, got constant rows"),
    "target-all-held-out": (lambda: try_fit(target=Y[:3], holdout=0.9), "target", "at least 2 rows"),
    "source-nan": (lambda: try_fit(NAN), "source", "got nan at row 3"),
    "source-one-row": (lambda: try_fit(Y[:1]), "source", "expected at least 2 rows, got 1"),
    "source-all-held-out": (lambda: try_fit(Y[:3], holdout=0.9), "source", "at least 2 rows"),
    "source-columns": (lambda: try_fit(Y[:, :1]), "source", "expected rows of shape (2,), as the target has, got (1,)"),
    "source-images": (lambda: try_fit(Y.reshape(10, 4, 2), Y.reshape(10, 2, 4)), "source", "expected rows of shape (2, 4)"),
    "source-dtype": (lambda: try_fit(Y.double()), "source", "expected dtype torch.float32 on cpu, as target has, got torch.float64"),
    "source-array-dtype": (lambda: try_fit(Y.double().numpy()), "source", "got torch.float64 on cpu; convert one of them"),
    "source-sampler-columns": (lambda: try_fit(sampler(Y[:, :1])), "source", "expected rows of shape (2,)"),
    "sampler-nan": (lambda: try_fit(target=lambda n: torch.full((n, 2), float("nan"))), "target", "got nan"),
    "sampler-count": (lambda: try_fit(target=lambda n: Y), "target", "rows from the sampler, got 40; return n rows"),
    "sampler-parameters": (lambda: try_fit(target=lambda n, own, more: Y), "target", "got a callable with 3 parameters"),
    "loader-dict": (lambda: try_fit(target=DataLoader([{"x": row} for row in Y], 8)), "target", "got dict"),
    "loader-one-row": (lambda: try_fit(target=DataLoader(Y[:1], 8)), "target", "at least 2 rows"),
    "held-columns": (lambda: try_fit(held=(None, Y[:, :1]), certify_every=100), "held target", "expected rows of shape (2,)"),
    "held-dtype": (lambda: try_fit(held=(None, Y.double()), certify_every=100), "held target", "expected dtype torch.float32"),
    "held-nan": (lambda: try_fit(held=(None, NAN)), "held target", "got nan"),
    "held-source-dtype": (lambda: try_fit(Y, held=(Y.double(), Y), certify_every=100), "held source", "expected dtype torch.float32"),
    "held-no-target": (lambda: try_fit(held=(None, None)), "held", "expected held-out target rows, got None"),
    "held-no-source": (lambda: try_fit(Y, held=(None, Y), certify_every=100), "held", "source rows"),
    "held-alone": (lambda: try_fit(held=Y, certify_every=100), "held source", "got shape (2,)"),
    # options of a fit
    "steps-zero": (lambda: try_fit(steps=0), "steps", "expected a whole number >= 1, got 0; pass steps=1 or more"),
    "steps-negative": (lambda: try_fit(steps=-5), "steps", "got -5"),
    "steps-fraction": (lambda: try_fit(steps=2.5), "steps", "got 2.5"),
    "steps-text": (lambda: try_fit(steps="10"), "steps", "got '10'"),
    "steps-bool": (lambda: try_fit(steps=True), "steps", "got True"),
    "max-seconds-zero": (lambda: try_fit(max_seconds=0), "max_seconds", "expected a finite number > 0, got 0"),
    "max-seconds-nan": (lambda: try_fit(max_seconds=float("nan")), "max_seconds", "got nan"),
    "gap-zero": (lambda: try_fit(gap=0.0), "gap", "expected a finite number > 0, got 0.0"),
    "gap-text": (lambda: try_fit(gap="1%"), "gap", "got '1%'"),
    "gap-noise": (lambda: try_fit(gap=0.1, problem=Problem(sigma=0.5)), "gap", "expected None when sigma > 0"),
    "checkpoint-seconds": (lambda: try_fit(checkpoint_seconds=-1), "checkpoint_seconds", "expected a finite number >= 0, got -1"),
    "certify-every": (lambda: try_fit(certify_every=0), "certify_every", "expected a whole number >= 1, got 0"),
    "seed-negative": (lambda: try_fit(seed=-1), "seed", "expected a whole number >= 0, got -1"),
    "seed-fraction": (lambda: try_fit(seed=0.5), "seed", "got 0.5"),
    "family": (lambda: try_fit(family="flow"), "family", "expected one of auto, mixture, network, residual, vector, image, got 'flow'"),
    "standardize": (lambda: try_fit(standardize="rows"), "standardize", "expected one of auto, columns, common, none, got 'rows'"),
    "standardize-columns": (lambda: try_fit(Y, standardize="columns"), "standardize", "expected common or none with a data source"),
    "holdout-one": (lambda: try_fit(holdout=1.0), "holdout", "expected a fraction in [0, 1), got 1.0"),
    "holdout-negative": (lambda: try_fit(holdout=-0.1), "holdout", "got -0.1"),
    "holdout-text": (lambda: try_fit(holdout="a tenth"), "holdout", "expected a finite number, got 'a tenth'"),
    "resume-nowhere": (lambda: fit(None, Y, resume="/nowhere/run"), "resume", "name a folder that a finished save wrote"),
    # settings and problems
    **{f"settings-{name}": (lambda name=name: Settings(**{name: 0}), name, "got 0")
       for name in ("batch", "candidates", "mixture_batch", "width", "depth", "heads", "components", "lr", "mixture_lr", "eps_start",
                    "eps_end", "mixture_eps_end")},
    "settings-batch-one": (lambda: Settings(batch=1), "batch", "expected a whole number >= 2, got 1"),
    "settings-scalings": (lambda: Settings(scalings=-1), "scalings", "expected a whole number >= 0, got -1"),
    "settings-level": (lambda: Settings(level=-0.1), "level", "expected a finite number >= 0, got -0.1"),
    "settings-lr-nan": (lambda: Settings(lr=float("nan")), "lr", "got nan"),
    "sigma-negative": (lambda: Problem(sigma=-0.1), "sigma", "expected a finite number >= 0, got -0.1"),
    "sigma-inf": (lambda: Problem(sigma=float("inf")), "sigma", "got inf"),
    "horizon": (lambda: Problem(horizon=0), "horizon", "expected a whole number >= 1, got 0"),
    "eps": (lambda: Problem(eps=0.0), "eps", "expected a finite number > 0, got 0.0"),
    "eps-and-sigma": (lambda: Problem(sigma=1.0, eps=2.0), "eps", "expected sigma^2 = 1, got 2"),
    # sampling and reading
    "count-for-data": (lambda: MOVED.sample(5), "x0", "expected source samples, as this model moves data to data, got a count (5)"),
    "path-count-for-data": (lambda: MOVED.path(5), "x0", "got a count (5); pass an array of source rows"),
    "count-zero": (lambda: NOISE.sample(0), "x0", "expected a whole number >= 1, got 0"),
    "count-negative": (lambda: NOISE.sample(-3), "x0", "got -3"),
    "count-bool": (lambda: NOISE.sample(True), "x0", "got True"),
    "x0-columns": (lambda: NOISE.sample(torch.ones(3, 3)), "x0", "expected rows of shape (2,), got (3,)"),
    "x0-dtype": (lambda: NOISE.sample(Y.double()), "x0", "expected dtype torch.float32 on cpu"),
    "x0-nan": (lambda: NOISE.sample(NAN), "x0", "got nan at row 3"),
    "x0-list": (lambda: NOISE.sample([1, 2]), "x0", "got list"),
    "sample-steps": (lambda: NOISE.sample(5, steps=0), "steps", "expected a whole number >= 1, got 0"),
    "path-steps": (lambda: NOISE.path(5, steps=-1), "steps", "got -1"),
    "rule": (lambda: NOISE.sample(5, rule="euler"), "rule", "expected one of auto, explicit, proximal, endpoint, got 'euler'"),
    "rule-endpoint": (lambda: NOISE.sample(5, rule="endpoint"), "rule", "expected explicit or proximal without a law of the end"),
    "budget": (lambda: MIXED.sample(5, budget=0), "budget", "expected a whole number >= 1, got 0"),
    "sample-seed": (lambda: NOISE.sample(5, seed="lucky"), "seed", "'lucky'"),
    "time-negative": (lambda: NOISE.value(Y, -0.1), "t", "expected a finite number >= 0, got -0.1"),
    "time-late": (lambda: NOISE.value(Y, 1.5), "t", "expected a time in [0, 1], got 1.5; 0 is the source, 1 the target"),
    "time-nan": (lambda: MIXED.value(Y, float("nan")), "t", "got nan"),
    "time-none": (lambda: MIXED.value(Y, None), "t", "got None"),
    "value-columns": (lambda: NOISE.value(torch.ones(3, 1), 0.5), "x", "expected rows of shape (2,), got (1,)"),
    "value-dtype": (lambda: NOISE.value(Y.double(), 0.5), "x", "expected dtype torch.float32"),
    "price-columns": (lambda: NOISE.price(torch.ones(3, 1)), "y", "expected rows of shape (2,), got (1,)"),
    "price-nan": (lambda: NOISE.price(INF), "y", "got inf"),
    "certificate-source": (lambda: certificate(NOISE, Y[:, :1], Y), "x", "expected rows of shape (2,)"),
    "certificate-target": (lambda: certificate(NOISE, Y, NAN), "y", "got nan"),
    "certificate-steps": (lambda: certificate(NOISE, Y, Y, steps=0), "steps", "got 0"),
    "label-unconditional": (lambda: NOISE.sample(5, label=3), "label", "expected None, as this model was trained without labels, got 3"),
    "value-label": (lambda: MIXED.value(Y, 0.5, label="a"), "label", "got 'a'; leave it out, or train with labels"),
    "guidance-unconditional": (lambda: NOISE.sample(5, guidance=2), "guidance", "expected 1 without a label"),
    "guidance-text": (lambda: NOISE.sample(5, guidance="much"), "guidance", "expected a finite number, got 'much'"),
    "guidance-bool": (lambda: NOISE.sample(5, guidance=True), "guidance", "got True"),
    "grid-end": (lambda: NOISE.sample(5, steps=[0, 0.5]), "steps", "expected a number, or times that rise from 0 to 1, got [0.0, 0.5]"),
    "grid-falls": (lambda: NOISE.path(5, steps=(0, 0.7, 0.3, 1)), "steps", "pass e.g. [0, 0.1, 0.5, 1]"),
    "grid-text": (lambda: NOISE.sample(5, steps=[0, "half", 1]), "steps", "expected a finite number, got 'half'"),
    "grid-word": (lambda: NOISE.sample(5, steps="four"), "steps", "got 'f'"),
    "grid-nan": (lambda: NOISE.sample(5, steps=[0, float("nan"), 1]), "steps", "got nan"),
    "reverse-noise": (lambda: model_of(mixture(2), sigma=0.5).reverse(), "reverse", "expected a model with sigma = 0"),
    "labels-count": (lambda: try_fit(labels=[1] * 39), "labels", "expected 40 labels, one per row, got shape (39,)"),
    "labels-none": (lambda: try_fit(labels=[1, None] * 20), "labels", "got no label at row 1 (20 such rows)"),
    "labels-mixed": (lambda: try_fit(labels=[1, "a"] * 20), "labels", "expected labels of one kind"),
    "labels-numbers": (lambda: try_fit(labels=np.arange(40) / 7), "labels", "round them, or pass numbers that measure something"),
    "labels-word": (lambda: try_fit(labels="kind"), "labels", "got shape ()"),
    "labels-batch": (lambda: try_fit(labels="batch"), "target", "expected a sampler or a DataLoader of pairs (rows, labels)"),
    "labels-vectors-nan": (lambda: try_fit(labels=NAN, family="network"), "labels", "at row 3 (1 such rows)"),
    "source-labels-alone": (lambda: try_fit(Y, source_labels=[1] * 40), "source_labels", "expected None, without source data"),
    "settings-dropout": (lambda: Settings(dropout=1.0), "dropout", "expected a fraction in [0, 1), got 1.0"),
    "settings-closeness": (lambda: Settings(closeness=-1), "closeness", "expected a finite number >= 0, got -1"),
    "load": (lambda: TransportModel.load("/nowhere/model"), "folder", "which is no folder; name the folder that training wrote"),
    "held-rows": (lambda: held_rows("/nowhere/run"), "folder", "expected a file checkpoint.safetensors"),
    # metrics and programs
    "w2-columns": (lambda: w2(Y, Y[:, :1]), "y", "expected rows of shape (2,), got (1,)"),
    "w2-empty": (lambda: w2(Y[:0], Y), "x", "expected at least 1 rows, got 0"),
    "w2-nan": (lambda: w2(Y, NAN), "y", "got nan"),
    "energy": (lambda: normalised_path_energy(NOISE.path(3), 0.0), "squared_w2", "expected a finite number > 0, got 0.0"),
    "program-columns": (lambda: solve_assignment_program(Y, Y[:, :1]), "states[1]", "expected rows of shape (2,)"),
    "program-stages": (lambda: solve_program([Y], np.ones(40) / 40, np.ones(40) / 40), "states", "expected at least 2 stages, got 1"),
    "program-weights": (lambda: solve_program([Y, Y], np.ones(40), np.ones(40) / 40), "source", "expected weights that sum to 1"),
}  # fmt: skip


def report() -> dict[str, list[str | None]]:
    """What each call raised: the kind of error, its argument, its text."""
    found: dict[str, list[str | None]] = {}
    warnings.simplefilter("ignore")
    for name, (call, _, _) in CASES.items():
        try:
            call()
        except BaseException as error:
            found[name] = [type(error).__name__, getattr(error, "argument", None), str(error)]
        else:
            found[name] = ["nothing", None, "no error was raised"]
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, list[str | None]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import json\nfrom tests.transport.test_bad_input import report\nprint('\\n' + json.dumps(report()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_a_bad_argument_is_named_in_one_line(found, name):
    kind, argument, text = found[name]
    _, known, words = CASES[name]
    assert (kind, argument) == (InputError.__name__, known), f"{kind}: {text}"
    assert text is not None
    assert "\n" not in text
    start, _, cure = text.rpartition("; ") if text.count("; ") == 1 else text.partition("; ")
    assert start.startswith(f"{known}: expected "), text
    assert ", got " in start
    assert len(cure) > 5
    assert words in text


def test_good_arguments_raise_nothing():
    """The calls above fail for what they say, not because nothing works."""
    assert NOISE.sample(3).shape == (3, 2)
    assert MOVED.sample(Y.to(DOUBLE)[:1]).shape == (1, 2)
    assert torch.isfinite(MIXED.value(Y, 1.0)).all()
    assert fit(None, Y, settings=SMALL, steps=1).training["steps"] == 1


if __name__ == "__main__":
    for case, (_, _, message) in report().items():
        sys.stdout.write(f"{case:24} {message}\n")
