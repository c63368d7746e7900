"""Acting under a condition, and classifier-free guidance by mixing values.

    V^w_t(x | c) = V_t(x | null) + w (V_t(x | c) - V_t(x | null))

w = 1 is the value under the condition, w = 0 the value of the whole law, w > 1 exaggerates what tells the condition apart. Values mix
linearly, hence so do their gradients. Reversed in time, the value of the way back is -V_{1-t}: the same straight paths, walked from
the other end.

Source: Ho and Salimans (2022), arXiv 2207.12598, for the mixing.

Equations (T7), (T8): docs/derivations/transport.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from driftway.transport.condition import nulls
from driftway.transport.value import EndpointLaw, Value


@dataclass(frozen=True)
class Guidance:
    """What a step is to aim for.

    Attributes:
        label: one label, one per row, condition vectors, or None for the whole law.
        weight: w.
    """

    label: Any = None
    weight: float | int = 1.0


@dataclass(frozen=True)
class Moment:
    """What a step callback is told before each step.

    Attributes:
        index: of the step, from 0.
        t: time of the states.
        states: (n, *event) in the units of the data.
        first: row number of the first state, as long sampling goes in blocks of rows.
    """

    index: int
    t: float
    states: Tensor
    first: int


StepCallback = Callable[[Moment], Guidance | None]


class Guided(Value):
    """A value with the condition of its rows and the weight of guidance filled in.

    Args:
        value: the conditional value.
        c: condition of each row; None for a value without conditions.
        weight: w.
    """

    def __init__(self, value: Value, c: Tensor | None, weight: float = 1.0) -> None:
        super().__init__()
        self.inner, self.c, self.weight, self.event = value, c, weight, value.event

    def value(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self._mix(lambda condition: self.inner.value(x, t, condition))

    def gradient(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return self._mix(lambda condition: self.inner.gradient(x, t, condition))

    def price(self, y: Tensor, c: Tensor | None = None) -> Tensor:
        return self._mix(lambda condition: self.inner.price(y, condition))

    @property
    def endpoint_law(self) -> bool:
        """Whether the law of the end is known: not for a mixture of two values."""
        return self.weight == 1 and isinstance(self.inner, EndpointLaw)

    def endpoint(self, x: Tensor, t: Tensor, *, uniform: Tensor, normal: Tensor, c: Tensor | None = None) -> Tensor:
        assert isinstance(self.inner, EndpointLaw)  # noqa: S101 (asked before)
        return self.inner.endpoint(x, t, uniform=uniform, normal=normal, c=self.c)

    def _mix(self, read: Callable[[Tensor | None], Tensor]) -> Tensor:
        if self.c is None or self.weight == 1:
            return read(self.c)
        whole = read(nulls(self.c))
        return whole + self.weight * (read(self.c) - whole)


class Reversed(Value):
    """The value of the way back: -V_{1-t}, with the prices of the other side, -V_0.

    Args:
        value: of the way there.
    """

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.inner, self.event = value, value.event

    def value(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return -self.inner.value(x, 1 - t, c)

    def gradient(self, x: Tensor, t: Tensor, c: Tensor | None = None) -> Tensor:
        return -self.inner.gradient(x, 1 - t, c)

    def price(self, y: Tensor, c: Tensor | None = None) -> Tensor:
        return -self.inner.value(y, torch.zeros_like(y[:, 0]), c)
