"""Watching layers during a pass: forward hooks for what goes in, hooks on what comes out for its gradient."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Use:
    """One call of a layer: its input and, for each output of the model, the gradient of what it returned."""

    module: nn.Module
    x: Tensor
    b: dict[int, Tensor] = field(default_factory=dict)


class Record:
    """The forward hook of all watched layers, and what it has seen."""

    def __init__(self, n: int) -> None:
        self.n, self.output = n, 0
        self.uses: list[Use] = []
        self.leaves: list[Tensor] = []
        self.odd: list[nn.Module] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None  # nothing in this call has a gradient
        x = next((entry for entry in (*args, *kwargs.values()) if isinstance(entry, Tensor)), None)
        if x is None or not isinstance(y, Tensor) or min(x.ndim, y.ndim) < 2 - isinstance(module, nn.Embedding) or len(x) != len(y):
            self.odd.append(module)
            return None
        x = x.detach()
        if len(y) == 1 < self.n and isinstance(module, nn.Embedding):  # positions: the gradient would be the sum over samples
            x, y = (a.expand(self.n, *a.shape[1:]) for a in (x, y))
        if len(y) != self.n:
            self.odd.append(module)
            return None
        if not y.requires_grad:  # the graph begins here; the clone may be changed in place, the leaf may not
            leaf = y.detach().requires_grad_()
            self.leaves.append(leaf)
            y = leaf.clone()
        use = Use(module, x)
        y.register_hook(partial(self._catch, use))
        self.uses.append(use)
        return y

    def _catch(self, use: Use, grad: Tensor) -> None:
        use.b[self.output] = grad.detach()


@contextmanager
def hooked(layers: Iterable[nn.Module], record: Record) -> Iterator[None]:
    """The record as a hook on layers, for a while."""
    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recording() -> Iterator[None]:
    """Gradients on; and transformer layers of torch call their parts, in place of a fused kernel that has none."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
