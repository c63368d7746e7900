"""What `driftway adapt fit` does: from files to rows with domains, and to a fitted estimator."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from driftway import adapt
from driftway.adapt.scale import APPROXIMATIONS
from driftway.checks import InputError, choice, count, require
from driftway.data import Columns, Encoding, encoding_of, read_columns

METHODS = {
    "auto": adapt.AutoTransferRegressor, "target": adapt.TargetOnlyGP, "pooled": adapt.PooledGP, "transfer": adapt.TransferGPRegressor,
    "mean-embedding": adapt.MeanEmbeddingGP, "dino-init": adapt.DINOInitRegressor, "dino-train": adapt.DINOTrainRegressor,
    "reweighted": adapt.ReweightedGP,
}  # fmt: skip
MOST = 12  # names in an error


@dataclass(frozen=True)
class Options:
    """What was asked for; the names are those of the command line."""

    source: tuple[Path, ...]
    target: Path
    y: tuple[str, ...]
    output: Path
    method: str
    weight: str | None
    drop: tuple[str, ...]
    steps: int
    seed: int
    approximation: str = "auto"
    features: int = 1000

    def __post_init__(self) -> None:
        """Check what can be checked before the work.

        Raises:
            InputError: if a name is unknown or a number out of range.
        """
        choice("method", self.method, METHODS)
        count("steps", self.steps)
        count("seed", self.seed, least=0)
        choice("approximation", self.approximation, APPROXIMATIONS)
        count("features", self.features)

    @property
    def written(self) -> dict[str, Any]:
        """As text and numbers."""
        return {name: str(value) if isinstance(value, Path) else list(map(str, value)) if isinstance(value, tuple) else value
                for name, value in asdict(self).items()}  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """Rows of all files, the target's last.

    Attributes:
        X: inputs, all numbers.
        y: one or several outputs, NaN in a target row without label.
        domain: 1, 2, ... for the sources, in their order; negative for the target.
        weight: of rows, if a column was named.
        rows: what each row is called: its file and its number there.
        domains: names, the target's first.
        encoding: from the columns of a file to X.
        remarks: what to know.
    """

    X: pd.DataFrame
    y: pd.DataFrame | pd.Series
    domain: np.ndarray
    weight: np.ndarray | None
    rows: tuple[str, ...]
    domains: tuple[str, ...]
    encoding: Encoding
    remarks: tuple[str, ...]

    @property
    def outputs(self) -> list[str]:
        """Names."""
        return [str(self.y.name)] if isinstance(self.y, pd.Series) else [str(name) for name in self.y.columns]


def prepare(chosen: Options) -> Prepared:
    """Read the files.

    Raises:
        InputError: if a file cannot be read, or its columns do not fit those of the others.
    """
    dropped = {name for entry in chosen.drop for name in (entry, *_parts(entry))}
    named = [("source" if len(chosen.source) == 1 else f"source {i + 1}", path) for i, path in enumerate(chosen.source)]
    tables = [(argument, read_columns(argument, path, drop=dropped)) for argument, path in (*named, ("target", chosen.target))]
    known = list(dict.fromkeys(name for _, table in tables for name in table.names))
    _resolved("drop", chosen.drop, known)
    outputs = _resolved("y", chosen.y, [name for name in known if name not in dropped])
    weight = None if chosen.weight is None else _resolved("weight", (chosen.weight,), [name for name in known if name not in dropped])[0]
    require(weight not in outputs, "weight", expected="another column than y", got=repr(weight), cure="leave one out")
    inputs = [name for name in dict.fromkeys(name for _, table in tables for name in table.values) if name not in (*outputs, weight)]
    require(len(inputs) > 0, "target", expected=f"columns to predict {', '.join(outputs)} from", got=f"none in {chosen.target}",
            cure="give files with more columns, or drop fewer")  # fmt: skip
    encoding = encoding_of(tables, inputs)
    remarks, y = [], []
    for argument, table in tables:
        y.append(_labels(argument, table, outputs))
    if not any(name in tables[-1][1].values for name in outputs):
        remarks.append(f"{chosen.target} has no column {outputs[0]!r}: all its rows are taken for rows without label")
    labels = np.concatenate(y)
    require(not np.isnan(labels).all(), "y", expected="at least one label", got=f"empty cells only in {chosen.target}",
            cure="write labels, or pass --source")  # fmt: skip
    require(chosen.method != "target" or not np.isnan(y[-1]).all(), "y", expected=f"labels in {chosen.target}, for --method target",
            got="none", cure="label some of its rows, or pass --method pooled")  # fmt: skip
    require(len(labels) >= 2, "target", expected="at least 2 rows, with those of the sources", got=len(labels), cure="give it more")
    sizes = [len(table) for _, table in tables]
    codes = [*range(1, len(chosen.source) + 1), -len(chosen.source) - 1]
    made = pd.DataFrame(labels, columns=outputs)
    return Prepared(
        pd.DataFrame(np.concatenate([encoding.encode(argument, table) for argument, table in tables]), columns=list(encoding.names)),
        made[outputs[0]] if len(outputs) == 1 else made, np.repeat(codes, sizes),
        None if weight is None else np.concatenate([_weights(argument, table, weight) for argument, table in tables]),
        tuple(f"{table.path.name}:{row}" for _, table in tables for row in table.rows), _domains(chosen.source), encoding, tuple(remarks),
    )  # fmt: skip


def fit(chosen: Options, rows: Prepared) -> Any:
    """The fitted estimator; what it has to say is in its explanation."""
    made: Any = METHODS[chosen.method](max_iter=chosen.steps, random_state=chosen.seed, approximation=chosen.approximation,
                                       features=chosen.features)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made.fit(rows.X, rows.y, rows.domain, rows.weight)


def _parts(entry: str) -> list[str]:
    return [part.strip() for part in entry.split(",")]


def _resolved(argument: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    """Names of columns, of which one entry may hold several, with commas.

    Raises:
        InputError: if there is no such column.
    """
    found = [name for entry in given for name in ([entry] if entry in known else _parts(entry))]
    for name in found:
        shown = ", ".join(known[:MOST]) + (", ..." if len(known) > MOST else "")
        require(name in known, argument, expected=f"columns among {shown}", got=f"no column {name!r}", cure="choose from those names")
    require(len(found) == len(set(found)), argument, expected="each column once", got=", ".join(found), cure="leave out the second")
    return found


def _domains(sources: Sequence[Path]) -> tuple[str, ...]:
    names = [path.name for path in sources]
    return ("target", *(str(path) if names.count(path.name) > 1 else path.name for path in sources))


def _numbers(argument: str, table: Columns, name: str) -> np.ndarray:
    """A column of numbers."""
    values = table.values[name]
    first = next((i for i, text in enumerate(values) if text != ""), 0) if table.is_text(name) else 0
    require(not table.is_text(name), argument, expected=f"numbers in column {name!r}", got=f"{str(values[first])!r} at row "
            f"{table.rows[first]} of {table.path}", cure="write numbers, or nothing where none is known")  # fmt: skip
    return values


def _labels(argument: str, table: Columns, outputs: Sequence[str]) -> np.ndarray:
    """The outputs of a table; NaN where the target has none."""
    there, target = [name for name in outputs if name in table.values], argument == "target"
    if target and not there:
        return np.full((len(table), len(outputs)), np.nan)
    absent = [name for name in outputs if name not in there]
    shown = ", ".join(table.names[:MOST]) + (", ..." if len(table.names) > MOST else "")
    require(not absent, argument, expected=f"the column {absent[0] if absent else ''!r}, which is to be predicted",
            got=f"{shown} in {table.path}", cure="add it")  # fmt: skip
    y = np.stack([_numbers(argument, table, name) for name in outputs], 1)
    gaps = np.isnan(y)
    odd = np.flatnonzero(gaps.any(1) & ~(gaps.all(1) & target)).tolist()
    if odd:
        wanted, cure = "a label in every row of a source", "fill the cells, or drop the rows"
        if target:
            wanted, cure = "all outputs in a row, or none", "empty the others too, or fit each output for itself"
        raise InputError(argument, expected=wanted, got=f"an empty cell at row {table.rows[odd[0]]}, column "
                         f"{outputs[int(gaps[odd[0]].argmax())]!r} ({len(odd)} such rows) in {table.path}", cure=cure)  # fmt: skip
    return y


def _weights(argument: str, table: Columns, name: str) -> np.ndarray:
    require(name in table.values, argument, expected=f"the column {name!r}, with the weights of rows", got=f"none in {table.path}",
            cure="add it, or leave out --weight")  # fmt: skip
    w = _numbers(argument, table, name)
    odd = np.flatnonzero(~(w >= 0)).tolist()
    require(not odd, argument, expected=f"numbers >= 0 in column {name!r}", got=f"{w[odd[0]] if odd else 0:g} at row "
            f"{table.rows[odd[0]] if odd else 0} of {table.path}", cure="fix the cell, or drop the row")  # fmt: skip
    return w
