"""What `driftway adapt predict` does: from a folder and a file to predictions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftway import store
from driftway.adapt.folder import load
from driftway.adapt.influence import reach
from driftway.checks import InputError, require
from driftway.cli.folders import RUN
from driftway.data import Columns, Encoding, read_columns


def table_of(encoding: Encoding, outputs: Sequence[str]) -> dict[str, Any]:
    """What a later file is read by."""
    return {"columns": list(encoding.columns), "levels": {name: list(levels) for name, levels in encoding.levels.items()},
            "outputs": list(outputs)}  # fmt: skip


@dataclass(frozen=True)
class Predicted:
    """Predictions for the rows of a file.

    Attributes:
        values: (n, 4k) mean, standard deviation and ends of the interval, for each output.
        names: of these columns.
        remarks: what to know.
    """

    values: np.ndarray
    names: tuple[str, ...]
    remarks: tuple[str, ...]


def predict(run: Path, data: Path, level: float) -> Predicted:
    """Read a folder and a file, and predict.

    Raises:
        InputError: if the folder is damaged or was changed, or the file does not have its columns.
    """
    encoding, outputs = _read_run(run)
    estimator: Any = load(run)
    require(tuple(getattr(estimator, "feature_names_in_", ())) == encoding.names and estimator.shift_.outputs == len(outputs), "run",
            expected=f"the columns of the model in {run / RUN}", got="others", cure="the folder was changed: fit again")  # fmt: skip
    table = read_columns("data", data, only=(*encoding.columns, *outputs))
    X = pd.DataFrame(encoding.encode("data", table), columns=list(encoding.names))
    mean, std = (np.asarray(part).reshape(len(X), -1) for part in estimator.predict(X, return_std=True))
    half = reach(level) * std
    parts = {"mean": mean, "std": std, "low": mean - half, "high": mean + half}
    values = np.stack(list(parts.values()), 2).reshape(len(X), -1)
    names = tuple(parts) if len(outputs) == 1 else tuple(f"{output}_{part}" for output in outputs for part in parts)
    remarks = []
    for name, texts in encoding.unknown(table).items():
        shown = ", ".join(map(repr, texts[:5])) + ", ..." * (len(texts) > 5)
        remarks.append(f"column {name!r}: {shown} did not occur in the fit, and count{'s' * (len(texts) == 1)} as none of the known")
    return Predicted(values, names, (*remarks, *_checked(table, outputs, mean, half, level)))


def _checked(table: Columns, outputs: Sequence[str], mean: np.ndarray, half: np.ndarray, level: float) -> list[str]:
    """How the predictions compare with labels, where the file has some."""
    found = []
    for j, name in enumerate(outputs):
        if name in table.values and not table.is_text(name) and not table.empty(name).all():
            there = ~table.empty(name)
            error = table.values[name][there] - mean[there, j]
            inside = int((np.abs(error) <= half[there, j]).sum())
            found.append(f"the file has {there.sum()} labels {name!r}: root mean square error {np.sqrt((error**2).mean()):.4g}, mean "
                         f"absolute error {np.abs(error).mean():.4g}, {inside} in their {100 * level:g} % intervals")  # fmt: skip
    return found


def _read_run(run: Path) -> tuple[Encoding, list[str]]:
    """The encoding and the outputs of a run."""
    file = run / RUN
    require(file.is_file(), "run", expected="a folder that `driftway adapt fit` wrote", got=f"no {RUN} in {run}", cure="name that folder")
    try:
        held = json.loads(file.read_text())
        table = held["table"]
        columns, levels, outputs = table["columns"], table["levels"], table["outputs"]
        texts = [*columns, *outputs, *levels, *(level for own in levels.values() for level in own)]
        whole = held["version"] == store.VERSION and all(isinstance(text, str) for text in texts) and set(levels) <= set(columns)
        whole = whole and all(isinstance(own, list) for own in (columns, outputs, *levels.values())) and len(columns) * len(outputs) > 0
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        whole, columns, levels, outputs = False, [], {}, []
    if not whole:
        raise InputError("run", expected=f"a whole {RUN} of this release in {run}", got="a damaged or changed one", cure="fit again")
    return Encoding(tuple(columns), {name: tuple(own) for name, own in levels.items()}), outputs
