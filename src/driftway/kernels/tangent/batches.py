"""What users hold their inputs in, as batches of rows: a tensor, a dictionary of tensors, or an iterable of either.

The first axis of every tensor is the row. Entries that are not tensors or have no axes, and tensors of one row beside others of many,
go to every row.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftway.checks import InputError, numbers, require

LABELS = ("label", "labels")  # left out: scores do not need them
Batch = Tensor | Mapping[str, Any]


def parts(argument: str, batches: Any, size: int) -> Iterator[Batch]:
    """Batches of at most `size` rows, in the given order.

    Raises:
        InputError: if a batch is neither a tensor nor a dictionary of tensors, has no rows, differing numbers of rows, or numbers that
            are not finite; or if there is no batch.
    """
    whole = isinstance(batches, Tensor | np.ndarray | Mapping)
    require(whole or isinstance(batches, Iterable), argument, expected="a tensor, a dictionary of tensors, or an iterable of them",
            got=type(batches).__name__, cure="pass the model's inputs, e.g. a tokenizer's output with return_tensors=\"pt\"")  # fmt: skip
    count = 0
    for batch in [batches] if whole else batches:
        checked = _checked(f"{argument}[{count}]" if not whole else argument, batch)
        n = rows(checked)
        for start in range(0, n, size):
            yield take(checked, slice(start, min(start + size, n)))
        count += 1
    require(count > 0, argument, expected="at least one batch", got="none", cure="pass some rows (a generator is used up by one pass)")


def rows(batch: Batch) -> int:
    """Number of rows."""
    if isinstance(batch, Tensor):
        return len(batch)
    return max(len(entry) for entry in batch.values() if isinstance(entry, Tensor) and entry.ndim)


def take(batch: Batch, part: slice | list[int]) -> Batch:
    """Some rows of a batch."""
    if isinstance(batch, Tensor):
        return batch[part]
    n = rows(batch)
    return {name: entry[part] if isinstance(entry, Tensor) and entry.ndim and len(entry) == n else entry for name, entry in batch.items()}


def convert(batch: Batch, dtype: torch.dtype, device: torch.device) -> Batch:
    """The batch on a device, its floats in a dtype."""
    def one(entry: Any) -> Any:
        if not isinstance(entry, Tensor):
            return entry
        moved = entry.to(device, dtype) if entry.dtype.is_floating_point else entry.to(device)
        return moved.clone() if moved.is_inference() else moved

    return one(batch) if isinstance(batch, Tensor) else {name: one(entry) for name, entry in batch.items()}


def _checked(argument: str, batch: Any) -> Batch:
    if isinstance(batch, Mapping):
        found = {name: _entry(f"{argument}[{name!r}]", entry) for name, entry in batch.items() if name not in LABELS}
        sizes = {name: len(entry) for name, entry in found.items() if isinstance(entry, Tensor) and entry.ndim}
        require(bool(sizes), argument, expected="tensors", got=f"a dictionary of {', '.join(found) or 'nothing'}",
                cure='tokenize with return_tensors="pt"')  # fmt: skip
        require(len(set(sizes.values()) - {1}) <= 1, argument, expected="the same number of rows in every tensor", got=f"{sizes}",
                cure="give every tensor one row for each example")  # fmt: skip
        return found
    if not isinstance(batch, Tensor | np.ndarray) or not batch.ndim:
        raise InputError(argument, expected="a tensor or a dictionary of tensors", got=type(batch).__name__,
                         cure="from a loader of (x, y) pass the x alone, e.g. (x for x, _ in loader)")  # fmt: skip
    return _entry(argument, batch)


def _entry(argument: str, entry: Any) -> Any:
    if isinstance(entry, np.ndarray):
        require(entry.dtype.kind in "biuf", argument, expected="numbers", got=f"dtype {entry.dtype}", cure="tokenize texts first")
        entry = numbers(argument, entry)
    if not isinstance(entry, Tensor) or not entry.ndim:
        return entry
    entry = numbers(argument, entry)
    require(len(entry) > 0, argument, expected="at least one row", got=f"shape {tuple(entry.shape)}",
            cure="give the first axis one entry for each example")  # fmt: skip
    if entry.dtype.is_floating_point:
        bad = entry.isnan() | (entry == torch.inf)  # additive masks are -inf
        require(not bool(bad.any()), argument, expected="finite numbers", got=f"{int(bad.sum())} entries that are not",
                cure="drop or fill them")  # fmt: skip
    return entry
