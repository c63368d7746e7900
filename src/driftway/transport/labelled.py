"""A closed-form mixture for each class, and one for the whole law: V(.|c) is the value of class c, and V(.|null) of all rows.

The dual is the sum of the duals of the parts: each class has its own transport problem, from the source rows that go to it (all of
them where the source has no labels) to the target rows of that label.
"""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from driftway.checks import InputError, count, require
from driftway.transport.mixture import FULL, MixtureValue
from driftway.transport.mixture_start import initialise
from driftway.transport.stream import generator
from driftway.transport.value import Value

PAIRED = 1024  # rows that a part is initialised on


class LabelledMixture(Value):
    """One mixture for each class, 0 to classes - 1, and one for null, -1. Every row goes to the part of its own class.

    Args:
        event: shape of one state.
        components: components of each part.
        classes: number of classes.
        eps: entropy of all parts.
        rank: -1 for full covariances, 0 for diagonal ones.
    """

    def __init__(self, event: tuple[int, ...], *, components: int, classes: int, eps: float = 1.0, rank: int = FULL) -> None:
        super().__init__()
        self.event, self.classes = tuple(event), count("classes", classes)
        self.parts = nn.ModuleList(MixtureValue(event, components=components, eps=eps, rank=rank) for _ in range(classes + 1))

    @property
    def eps(self) -> Tensor:
        """The entropy, one for all parts."""
        return self.part(-1).eps

    def set_eps(self, eps: float) -> None:
        """Give all parts one entropy."""
        for c in range(-1, self.classes):
            self.part(c).eps.fill_(eps)

    def part(self, c: int) -> MixtureValue:
        """The mixture of class c; -1 is null."""
        return cast("MixtureValue", self.parts[c])

    def log_c(self, x: Float[Tensor, "n *event"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        """log c(x) of each row's class."""
        return self._dispatch(c, lambda part, x: part.log_c(x), x)

    def log_v(self, y: Float[Tensor, "m *event"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        """log v(y) of each row's class."""
        return self._dispatch(c, lambda part, y: part.log_v(y), y)

    def price(self, y: Float[Tensor, "m *event"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        return self._dispatch(c, lambda part, y: part.price(y), y)

    def value(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        return self._dispatch(c, lambda part, x, t: part.value(x, t), x, t)

    def gradient(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:
        return self._dispatch(c, lambda part, x, t: part.gradient(x, t), x, t)

    def endpoint(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], *, uniform: Float[Tensor, " n"],
                 normal: Float[Tensor, "n *event"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:  # fmt: skip
        def draw(part: MixtureValue, x: Tensor, t: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
            return part.endpoint(x, t, uniform=uniform, normal=normal)

        return self._dispatch(c, draw, x, t, uniform, normal)

    def _dispatch(self, c: Tensor | None, f: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """f(part, rows of its class), back in the order of the rows; no condition is null."""
        if c is None:
            return f(self.part(-1), *rows)
        _classes(c, len(rows[0]), self.classes)
        order = c.argsort(stable=True)
        present, sizes = c.unique(return_counts=True)
        blocks = [z[order].split(sizes.tolist()) for z in rows]
        if len(present) == 0:
            return f(self.part(-1), *rows)
        parts = [f(self.part(k), *block) for k, *block in zip(present.tolist(), *blocks, strict=True)]
        return torch.cat(parts)[order.argsort()]


def initialise_labelled(value: LabelledMixture, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], labels: Int[Tensor, " m"], *,
                        seed: int, source_labels: Int[Tensor, " n"] | None = None) -> None:  # fmt: skip
    """Initialise every part on rows of its class, null on rows of all.

    Args:
        value: the mixture whose parameters are set.
        x: source rows.
        y: target rows.
        labels: class of each target row; rows of class -1 serve null alone.
        seed: of the rows and of the clustering.
        source_labels: class of each source row; None when every row may go to every class.

    Raises:
        InputError: if a label is out of range or a class has no rows.
    """
    _classes(labels, len(y), value.classes)
    if source_labels is not None:
        _classes(source_labels, len(x), value.classes)
    for c in range(-1, value.classes):
        own = generator(seed, "class", c)
        ends = y if c < 0 else y[labels == c]
        starts = x if c < 0 or source_labels is None else x[source_labels == c]
        for argument, rows in (("labels", ends), ("source_labels", starts)):
            require(len(rows) > 0, argument, expected="rows of every class", got=f"no row of class {c}", cure="leave empty classes out")
        n = min(PAIRED, len(starts), max(len(ends), 256))
        m = min(PAIRED, len(ends))
        initialise(value.part(c), _some(starts, n, own), _some(ends, m, own), seed=seed)


def _some(rows: Tensor, n: int, own: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=own)[:n].to(rows.device)]


def _classes(c: Tensor, n: int, classes: int) -> None:
    """Class indices of n rows.

    Raises:
        InputError: if they are not whole numbers from -1 to classes - 1, one per row.
    """
    if c.dtype.is_floating_point or c.dtype == torch.bool or c.shape != (n,):
        raise InputError("c", expected=f"class indices of shape ({n},), whole numbers", got=f"{c.dtype} of shape {tuple(c.shape)}",
                         cure="pass an int64 tensor, one class per row")  # fmt: skip
    low, high = (int(c.min()), int(c.max())) if n else (-1, -1)
    require(low >= -1 and high < classes, "c", expected=f"classes from -1 (null) to {classes - 1}", got=f"{low} to {high}",
            cure="use the classes of training")  # fmt: skip
