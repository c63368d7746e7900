"""Conditions: what users call a label becomes a class index or a standardised vector, and that becomes features of a network.

    classes   label -> 0..L-1, and -1 for null (no label)                  features: a learned row per class, one more for null
    vectors   c -> (c - shift) / scale, and a row of NaN for null          features: a learned affine map, and a row for null

Null is a condition like the others. What is learned for it is the value of the whole law, so that guidance can mix the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import InputError, numbers, require

NULL = -1
MOST = 10_000
Label = int | str


@dataclass(frozen=True)
class Conditions:
    """Which conditions a model knows: named classes, vectors, or (both empty) none.

    Attributes:
        classes: labels as users write them, in the order of their indices.
        shift: (k,) means of the columns of condition vectors.
        scale: (k,) their standard deviations, 1 for a constant column.
    """

    classes: tuple[Label, ...] = ()
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the model takes conditions at all."""
        return bool(self.classes or self.shift)

    @property
    def shape(self) -> dict[str, int]:
        """What a conditional value is built with, beside its sizes."""
        return ({"classes": len(self.classes)} if self.classes else {}) | ({"columns": len(self.shift)} if self.shift else {})

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Conditions":
        """The conditions that a configuration was written from."""
        return cls(**{name: tuple(entries) for name, entries in config.items()})

    def null(self, n: int, like: Tensor) -> Tensor | None:
        """The null condition for n rows; None for a model without conditions."""
        if self.classes:
            return torch.full((n,), NULL, device=like.device)
        return like.new_full((n, len(self.shift)), torch.nan) if self.shift else None

    def encode(self, argument: str, labels: Any, n: int, like: Tensor) -> Tensor:
        """Labels of n rows, or one label for all of them, as the conditions that values take.

        Raises:
            InputError: if there are no conditions, a label is missing or unknown, or their number is not n.
        """
        require(self.known, argument, expected="None, as this model was trained without labels", got=repr(labels),
                cure="leave it out, or train with labels")  # fmt: skip
        if self.shift:
            rows = _vectors(argument, labels, like)
            k = len(self.shift)
            require(rows.shape in ((n, k), (1, k)), argument, expected=f"condition vectors of shape ({n}, {k})",
                    got=f"{tuple(rows.shape)}", cure="give one vector per row, or one for all")  # fmt: skip
            rows = rows.expand(n, -1)
            return (rows - like.new_tensor(self.shift)) / like.new_tensor(self.scale)
        names = _names(argument, [labels] if isinstance(labels, int | str | np.integer) else labels)
        index = {str(name): i for i, name in enumerate(self.classes)}
        for row, name in enumerate(names):
            place = f" at row {row}" if len(names) > 1 else ""
            require(str(name) in index, argument, expected=f"one of {_listed(self.classes)}", got=f"{name!r}{place}",
                    cure="use a label that the training data has")  # fmt: skip
        found = torch.tensor([index[str(name)] for name in names], device=like.device)
        found = found.expand(n) if len(found) == 1 else found
        require(len(found) == n, argument, expected=f"{n} labels, one per row, or one for all", got=f"{len(found)}",
                cure="give as many labels as rows")  # fmt: skip
        return found


def fit_conditions(argument: str, labels: Any) -> Conditions:
    """The conditions that training labels stand for: (n,) whole numbers or text are classes, (n, k) numbers are vectors.

    Raises:
        InputError: if they are neither, a label is missing, or there are more than 10,000 classes.
    """
    if getattr(labels, "ndim", 1) == 2 or (isinstance(labels, list | tuple) and labels and all(np.ndim(row) == 1 for row in labels)):
        rows = _vectors(argument, labels, torch.empty(0, dtype=torch.float64))
        require(len(rows) > 1, argument, expected="a condition vector for each row", got="one", cure="give one per row")
        spread = rows.std(0)
        return Conditions(shift=tuple(rows.mean(0).tolist()), scale=tuple(torch.where(spread > 0, spread, 1.0).tolist()))
    names = _names(argument, labels)
    kinds = {type(name) for name in names}
    require(len(kinds) == 1, argument, expected="labels of one kind", got="whole numbers and text", cure="write all of them as text")
    whole = all(isinstance(name, int) or name.lstrip("+-").isdecimal() for name in set(names))
    classes = tuple(sorted(set(names), key=lambda name: (int(name), str(name)) if whole else (0, str(name))))
    require(len(classes) <= MOST, argument, expected=f"at most {MOST:,} classes", got=f"{len(classes):,}",
            cure="pass numbers that measure something as vectors, shape (n, 1)")  # fmt: skip
    return Conditions(classes=classes)


def unconditional(c: Tensor | None) -> None:
    """Refuse a condition.

    Raises:
        InputError: if there is one.
    """
    require(c is None, "c", expected="None, as this value has no conditions", got=type(c).__name__, cure="leave c out")


def nulls(c: Tensor) -> Tensor:
    """The null condition in place of every condition of c."""
    return torch.full_like(c, torch.nan if c.is_floating_point() else NULL)


class Conditioner(nn.Module):
    """Features (n, width) of a condition; None is null. Without classes and columns they are 0, and only None will do.

    Args:
        classes: number L of classes, or 0.
        columns: entries k of condition vectors, or 0.
        width: of the features.
    """

    def __init__(self, *, classes: int, columns: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.rows = nn.Embedding(classes + 1, width) if classes else None
        self.map = nn.Linear(columns, width) if columns else None
        self.none = nn.Parameter(torch.zeros(width)) if columns else None

    def forward(self, c: Tensor | None, like: Tensor) -> Float[Tensor, "#n #width"]:
        """The features for each row of c, or those of null for each row of `like`.

        Raises:
            InputError: if there is a condition, and neither classes nor columns.
        """
        if self.rows is None and self.map is None:
            unconditional(c)
            return like.new_zeros(1, 1)
        if c is None:
            null = self.none if self.rows is None else self.rows.weight[self.classes]
            assert null is not None  # noqa: S101 (it has one of the two)
            return null.expand(len(like), -1)
        if self.rows is not None:
            return self.rows(torch.where(c < 0, self.classes, c))
        assert self.map is not None and self.none is not None  # noqa: S101, PT018 (it has one of the two)
        missing = c.isnan().any(1, keepdim=True)
        return torch.where(missing, self.none, self.map(torch.where(missing, 0.0, c)))


def _names(argument: str, labels: Any) -> list[Label]:
    """Labels as plain whole numbers or text."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else _array(labels)
    expected = "one label per row: whole numbers or text"
    require(array.ndim == 1 and array.size > 0, argument, expected=expected, got=f"shape {array.shape}", cure="flatten them")
    names: list[Label] = []
    for row, entry in enumerate(array.tolist()):
        if _missing(entry):
            raise InputError(argument, expected=expected, got=f"no label at row {row} ({sum(map(_missing, array.tolist()))} such rows)",
                             cure="label these rows or leave them out")  # fmt: skip
        whole = isinstance(entry, bool | int) or (isinstance(entry, float) and entry.is_integer())
        require(whole or isinstance(entry, str), argument, expected=expected, got=f"{entry!r} at row {row}",
                cure="round them, or pass numbers that measure something as vectors, shape (n, 1)")  # fmt: skip
        names.append(entry if isinstance(entry, str) else int(entry))
    return names


def _array(labels: Any) -> np.ndarray:
    """Labels as an array. In a list beside text, numbers and NaN stay what they are."""
    if hasattr(labels, "dtype"):
        return np.asarray(labels)
    own = np.array(labels, dtype=object)
    return own if any(isinstance(entry, str | list | tuple) for entry in own.flat) else np.asarray(labels)


def _missing(entry: Any) -> bool:
    return entry is None or (isinstance(entry, float) and entry != entry) or (isinstance(entry, str) and not entry)


def _vectors(argument: str, labels: Any, like: Tensor) -> Tensor:
    """Condition vectors (n, k), finite, from one vector or rows of them."""
    try:
        rows = numbers(argument, labels).detach().to(like)
    except InputError as error:
        raise InputError(argument, expected="condition vectors of numbers", cure="convert them",
                         got=repr(labels)[:60] if isinstance(labels, str) else error.parts["got"]) from None  # fmt: skip
    rows = rows.reshape(1, -1) if rows.ndim < 2 else rows.flatten(1)
    bad = ~rows.isfinite()
    if bad.any():
        row = int(bad.any(1).nonzero()[0])
        raise InputError(argument, expected="finite numbers", got=f"{rows[row].tolist()} at row {row} ({int(bad.any(1).sum())} such rows)",
                         cure="label these rows or leave them out")  # fmt: skip
    return rows


def _listed(classes: Sequence[Label]) -> str:
    return ", ".join(map(str, classes[:20])) + (", ..." if len(classes) > 20 else "")
