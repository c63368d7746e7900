"""What users hold their samples in, opened as streams."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from driftway import checks
from driftway.checks import InputError, require
from driftway.transport.condition import Conditions, fit_conditions
from driftway.transport.stream import PROBE, Batch, Counted, Loader, Rows, Stream, batch_of, split_rows

Data = Any  # an array, a tensor, a sampler callable or a DataLoader
Labels = Any  # an array of labels, one per row; "batch" where the data yields pairs (rows, labels); or None
Held = tuple[Any, Any]
BATCH = "batch"


@dataclass(frozen=True)
class Opened:
    """The data of a run: streams over training rows, held-out rows in data units, and the conditions that labels stand for.

    Attributes:
        source: None for the standard normal.
        target: of the target rows.
        held: source rows (None for the standard normal) and target rows with their encoded labels.
        conditions: of the labels, if any.
    """

    source: Stream | None
    target: Stream
    held: tuple[Tensor | None, Batch]
    conditions: Conditions


@dataclass(frozen=True)
class Mapped:
    """A stream seen through a map of its batches."""

    stream: Stream
    apply: Callable[[Batch], Batch]

    def draw(self, n: int) -> Batch:
        """The next n rows, mapped."""
        return self.apply(self.stream.draw(n))

    def state(self) -> list[int]:
        """Integers that restore the position."""
        return self.stream.state()

    def restore(self, state: list[int]) -> None:
        """Continue from a position."""
        self.stream.restore(state)

    def digest(self) -> str:
        """A fingerprint of the data, taken once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return self.stream.digest()

    def probe(self, n: int = PROBE) -> Batch:
        """About n rows that move no position, mapped."""
        return self.apply(self.stream.probe(n))


def open_data(source: Data | None, target: Data, *, labels: Labels, source_labels: Labels, held: Held | None, holdout: float,
              seed: int, conditions: Conditions | None = None) -> Opened:  # fmt: skip
    """Open both sides, encode their labels, and keep held-out rows. A resumed run brings its conditions.

    Raises:
        InputError: if the data is unusable, or the two sides differ in shape, dtype or device.
    """
    pair = held is None or isinstance(held, Tensor | np.ndarray) or (isinstance(held, tuple | list) and len(held) == 2)
    require(pair, "held", expected="a pair (source rows or None, target rows)", got=type(held).__name__,
            cure="pass held=(None, rows) without a source")  # fmt: skip
    require(source_labels is None or (source is not None and labels is not None), "source_labels",
            expected="None, without source data and target labels", got="labels", cure="pass source and labels too")  # fmt: skip
    x_stream = None if source is None else open_stream("source", source, seed=seed, labelled=batched(source_labels))
    y_stream = open_stream("target", target, seed=seed, labelled=batched(labels))
    if labels is not None:
        y_stream, conditions = _labelled(y_stream, "labels", labels, conditions)
    if x_stream is not None and source_labels is not None:
        x_stream, _ = _labelled(x_stream, "source_labels", source_labels, conditions)
    x_held, y_held = _keep(x_stream, "source", held, holdout, seed), _keep(y_stream, "target", held, holdout, seed)
    for argument, stream in (("labels", y_stream), ("source_labels", x_stream)):
        _every_class(argument, stream, conditions)
    require(y_held is not None, "held", expected="held-out target rows", got="None", cure="pass held=(source or None, target)")
    assert y_held is not None  # noqa: S101 (as required above)
    y = y_stream.probe().x
    require(y.dtype in (torch.float32, torch.float64), "target", expected="float32 or float64", got=y.dtype,
            cure="convert the data, e.g. target.float()")  # fmt: skip
    if x_stream is not None:
        x = x_stream.probe().x
        require(x.shape[1:] == y.shape[1:], "source", expected=f"rows of shape {tuple(y.shape[1:])}, as the target has",
                got=f"{tuple(x.shape[1:])}", cure="give both the same columns")  # fmt: skip
        checks.same_dtype("target", y, "source", x)
        require(x_held is not None, "held", expected="held-out source rows, as there is a source", got="None", cure="pass both")
    for name, batch in (("held source", x_held), ("held target", y_held)):
        if batch is not None:
            checks.samples(name, batch.x, event=tuple(y.shape[1:]))
            checks.same_dtype("target", y, name, batch.x)
    return Opened(x_stream, y_stream, (None if x_held is None else x_held.x, y_held), conditions or Conditions())


def batched(labels: Labels) -> bool:
    """Whether the data brings its labels."""
    return isinstance(labels, str) and labels == BATCH


def _labelled(stream: Stream, argument: str, given: Labels, conditions: Conditions | None) -> tuple[Stream, Conditions]:
    """The stream with encoded labels, and the conditions they stand for."""
    if isinstance(stream, Rows):
        conditions = conditions or fit_conditions(argument, given)
        shape = tuple(np.shape(given))
        require(shape[:1] == (len(stream.rows),), argument, expected=f"{len(stream.rows)} labels, one per row", got=f"shape {shape}",
                cure="give as many labels as rows")  # fmt: skip
        stream.rows = Batch(stream.rows.x, conditions.encode(argument, given, len(stream.rows), stream.rows.x))
        return stream, conditions
    known = conditions or fit_conditions(argument, stream.probe().c)
    return Mapped(stream, lambda batch: Batch(batch.x, known.encode(argument, batch.c, len(batch), batch.x))), known


def _every_class(argument: str, stream: Stream | None, conditions: Conditions | None) -> None:
    """Refuse an array that has no row of some class to train on."""
    if isinstance(stream, Rows) and conditions and conditions.classes and stream.rows.c is not None:
        missing = set(range(len(conditions.classes))) - set(stream.rows.c.unique().tolist())
        require(not missing, argument, expected="rows of every class to train on",
                got=f"none of {conditions.classes[min(missing, default=0)]!r}",
                cure="lower holdout, or leave this class out of both sides")  # fmt: skip


def _keep(stream: Stream | None, name: str, held: Held | None, holdout: float, seed: int) -> Batch | None:
    """Held-out rows of a side: split off an array, fresh ones of a sampler, or those that were passed."""
    side = ("source", "target").index(name)
    if held is not None:
        rows = held[side]
        return None if rows is None else rows if isinstance(rows, Batch) else Batch(checks.samples(f"held {name}", rows))
    if not isinstance(stream, Rows):
        return None if stream is None else stream.probe()[:1000]
    row = torch.arange(len(stream.rows), device=stream.rows.x.device)
    training, kept = split_rows(row, holdout, seed=seed + side)
    whole = stream.rows
    stream.rows = whole[training]
    require(len(training) >= 2, name, expected="at least 2 rows to train on", got=len(training), cure="lower holdout")
    stream.restore([0, 0])
    return whole[kept]


def open_stream(name: str, data: Data, *, seed: int, labelled: bool = False) -> Stream:
    """A stream over an array, a tensor, a sampler `f(n, generator)`, `f(n, *, generator)` or `f(n)`, or a DataLoader.

    `labelled` samplers and DataLoaders give pairs (rows, labels).

    Raises:
        InputError: if the data is none of these, or its samples are unusable.
    """
    if isinstance(data, DataLoader):
        return Loader(name, data, seed, labelled=labelled)
    if not callable(data) or isinstance(data, Tensor):
        require(not labelled, name, expected="a sampler or a DataLoader of pairs (rows, labels), as labels='batch' says",
                got="an array", cure="pass its labels as an array")  # fmt: skip
        return Rows(name, Batch(checks.samples(name, data)), seed)
    call = _calling(name, data)

    def sample(n: int, own: torch.Generator) -> Batch:
        if call == "keyword":
            rows = data(n, generator=own)
        elif call == "second":
            rows = data(n, own)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(own.get_state())
                rows = data(n)
        rows = batch_of(name, rows, labelled)
        require(len(rows) == n, name, expected=f"{n} rows from the sampler", got=len(rows), cure="return n rows")
        return rows

    return Counted(name, sample, seed)


def _calling(name: str, sampler: Callable[..., Any]) -> str:
    """How a sampler takes its generator: by keyword, as its second argument, or not at all."""
    try:
        signature = inspect.signature(sampler)
    except (TypeError, ValueError):
        return "none"
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for how, arguments, options in (("keyword", (1,), {"generator": 1}), ("second", (1, 1), {}), ("none", (1,), {})):
        if how == "second" and len(needed) != 2:
            continue
        try:
            signature.bind(*arguments, **options)
        except TypeError:
            continue
        if how != "keyword" or "generator" in signature.parameters:
            return how
    raise InputError(name, expected="a sampler f(n, generator) or f(n)", got=f"a callable with {len(needed)} parameters",
                     cure="wrap it in a function of n and generator")  # fmt: skip


def normal_stream(size: int, like: Tensor, *, seed: int) -> Stream:
    """The standard normal of `size` columns, in the dtype and on the device of `like`."""
    return Counted("source", lambda n, own: Batch(torch.randn(n, size, generator=own).to(like)), seed)
