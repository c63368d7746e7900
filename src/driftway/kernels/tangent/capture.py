"""One forward and one backward pass of a batch, with the factors of every sample's gradient caught on the way.

Weights are constants in these passes, so autograd computes no weight gradients, and goes no deeper than the lowest layer in scope.
Hooks on layers see x, hooks on what they return see b, and `rules.py` makes factors of them. The model is not changed: its tensors
are passed as arguments, and the hooks are removed.

Rules rest on assumptions: the first axis of x and b is the sample, a layer computes what its class says, and all uses of a weight go
through layers. They are tested against autograd on two samples of the first batch, each alone. A parameter that fails the test is
differentiated sample by sample, as is one whose layer has no rule.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from driftway.kernels.tangent.batches import Batch, rows, take
from driftway.kernels.tangent.factors import Direct, Factor, Outer, beside, merge, pack, whole
from driftway.kernels.tangent.outputs import Forward, Outputs, scores_of
from driftway.kernels.tangent.rules import rule_for

TOLERANCE = {torch.float64: 1e-8}  # of a rule against autograd, relative; 1e-3 in other dtypes: kernels differ with the batch size
SPECK = 1e-6  # a gradient this small beside the largest is rounding, such as that of the bias of keys


@dataclass(frozen=True)
class Piece:
    """What one pass found.

    Attributes:
        factors: of each parameter.
        scores: (n, k); with "full" the samples of `factors` are n k, else n.
    """

    factors: Mapping[str, list[Factor]]
    scores: Float[Tensor, "n k"]


@dataclass(frozen=True)
class Capture:
    """How to take the gradients of a batch.

    Attributes:
        model: the network.
        parameters: in scope, by name.
        forward: (model, batch) -> (n,) or (n, outputs).
        outputs: which outputs, and how they combine.
        dtype: to compute in.
        slow: names that are differentiated sample by sample.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    forward: Forward
    outputs: Outputs
    dtype: torch.dtype
    slow: frozenset[str] = frozenset()

    @property
    def full(self) -> bool:
        """Whether outputs are samples of their own."""
        return isinstance(self.outputs, str) and self.outputs == "full"

    def fast(self, batch: Batch) -> Piece:
        """Factors of all layers with rules, from one pass. The samples are n k."""
        record = _Record(rows(batch))
        scored = _Scored(self.model, self.forward, self.outputs)
        with torch.enable_grad(), _layers_called(), _hooked(self._layers(), record):
            scores = functional_call(scored, self._tensors(), (batch,))
            k = scores.shape[1]
            for c in range(k if record.leaves else 0):
                record.output = c
                torch.autograd.grad(scores[:, c].sum(), record.leaves, retain_graph=c + 1 < k, allow_unused=True)
        found: defaultdict[str, list[Factor]] = defaultdict(list)
        for use in record.uses:
            if use.b:
                for name, factor in self._by_rule(use, k).items():
                    found[name].append(factor)
        merged, shared = {name: merge(factors) for name, factors in found.items()}, {}
        if k == 1 or self.full:  # a trace lays the outputs of a sample side by side, which needs equal positions
            merged = {name: [pack(f, shared) if isinstance(f, Outer) else f for f in factors] for name, factors in merged.items()}
        return Piece(merged, scores.detach())

    def alone(self, batch: Batch, names: Collection[str]) -> dict[str, Float[Tensor, "k r c"]]:
        """Gradients of one sample by autograd."""
        tensors = self._tensors()
        own = {name: tensors[f"model.{name}"].clone().requires_grad_() for name in names}
        scored = _Scored(self.model, self.forward, self.outputs)
        with torch.enable_grad():
            scores = functional_call(scored, {**tensors, **{f"model.{name}": own[name] for name in names}}, (batch,))
            k = scores.shape[1]
            if not scores.requires_grad:
                return {name: _matrix(p.detach().new_zeros(k, *p.shape)) for name, p in own.items()}
            grads = [torch.autograd.grad(scores[0, c], list(own.values()), retain_graph=c + 1 < k, allow_unused=True,
                                         materialize_grads=True) for c in range(k)]  # fmt: skip
        return {name: _matrix(torch.stack([g.to_dense() for g in grad])) for name, grad in zip(own, zip(*grads, strict=True), strict=True)}

    def _tensors(self) -> dict[str, Tensor]:
        """The model's parameters and buffers, as constants."""
        found = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {f"model.{name}": tensor.detach().to(self.dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in found.items()}  # fmt: skip

    def _layers(self) -> list[nn.Module]:
        names = self._names()
        return [module for module in self.model.modules()
                if rule_for(module) and any(id(parameter) in names for parameter in module.parameters(recurse=False))]  # fmt: skip

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.parameters.items() if name not in self.slow}

    def _by_rule(self, use: "_Use", k: int) -> dict[str, Factor]:
        """The factors of one use of a layer, by the names of its parameters in scope."""
        rule, names = rule_for(use.module), self._names()
        zero, x = torch.zeros_like(next(iter(use.b.values()))), use.x
        b = torch.stack([use.b.get(c, zero) for c in range(k)], 1).flatten(0, 1)
        x = x.repeat_interleave(k, 0) if k > 1 else x
        x, b = (a.float() if a.dtype in (torch.float16, torch.bfloat16) else a for a in (x, b))
        own = {local: names[id(p)] for local, p in use.module.named_parameters(recurse=False, remove_duplicate=False) if id(p) in names}
        return {own[local]: factor for local, factor in rule(use.module, x, b).items() if local in own} if rule else {}


def capture(how: Capture, batch: Batch, piece: Piece | None = None) -> Piece:
    """The gradients of a batch: by rules, as `how.fast` found them, and sample by sample where a rule is missing or fails."""
    n, k = (piece := piece or how.fast(batch)).scores.shape
    found = {name: factors for name, factors in piece.factors.items() if name not in how.slow}
    if how.slow:
        each = [how.alone(take(batch, slice(i, i + 1)), how.slow) for i in range(n)]
        found |= {name: [Direct(torch.cat([own[name] for own in each]))] for name in how.slow}
    together = 1 if how.full else k
    return Piece({name: [beside(factor, together) for factor in found[name]] for name in how.parameters}, piece.scores)


def tested(how: Capture, batch: Batch) -> tuple[Capture, Piece]:
    """The plan with its slow parameters known, and what `how.fast` found: names without a rule, or whose rule disagrees with autograd."""
    piece = how.fast(batch)
    n, k = piece.scores.shape
    failing = set(how.parameters) - set(piece.factors)
    for i in {0, n - 1}:
        single = how.alone(take(batch, slice(i, i + 1)), how.parameters)
        largest = max(float(g.norm()) for g in single.values())
        for name in set(how.parameters) - failing:
            found = torch.cat([whole([f.pick(j) for f in piece.factors[name]]) for j in range(i * k, i * k + k)])
            off, size = float((found - single[name]).norm()), float(single[name].norm())
            if not off <= TOLERANCE.get(how.dtype, 1e-3) * size + SPECK * largest:
                failing.add(name)
    return replace(how, slow=frozenset(failing)), piece


class _Scored(nn.Module):
    """A model and the reading of scores from it, as one module that can be called with other tensors."""

    def __init__(self, model: nn.Module, forward: Forward, outputs: Outputs) -> None:
        super().__init__()
        self.model, self.read, self.outputs = model, forward, outputs

    def forward(self, batch: Batch) -> Tensor:
        return scores_of(self.read(self.model, batch), self.outputs, rows(batch))


@dataclass
class _Use:
    """One call of a layer: its input and, for each output of the model, the gradient of what it returned."""

    module: nn.Module
    x: Tensor
    b: dict[int, Tensor] = field(default_factory=dict)


class _Record:
    """The forward hook of all watched layers, and what it has seen."""

    def __init__(self, n: int) -> None:
        self.n, self.output = n, 0
        self.uses: list[_Use] = []
        self.leaves: list[Tensor] = []

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Tensor | None:
        x = next((entry for entry in (*args, *kwargs.values()) if isinstance(entry, Tensor)), None)
        if x is None or not isinstance(y, Tensor) or y.ndim == 0 or len(x) != len(y) or len(y) not in (1, self.n):
            return None  # not what its class says: the test will find the parameter without factors
        x = x.detach()
        if len(y) < self.n:  # one row for all samples, such as positions: its gradient would be the sum over samples
            x, y = (a.expand(self.n, *a.shape[1:]) for a in (x, y))
        if not y.requires_grad:  # the graph begins here; the clone may be changed in place, the leaf may not
            leaf = y.detach().requires_grad_()
            self.leaves.append(leaf)
            y = leaf.clone()
        use = _Use(module, x)
        y.register_hook(partial(self._catch, use))
        self.uses.append(use)
        return y

    def _catch(self, use: _Use, grad: Tensor) -> None:
        use.b[self.output] = grad.detach()


@contextmanager
def _hooked(layers: Iterable[nn.Module], record: _Record) -> Iterator[None]:
    handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _layers_called() -> Iterator[None]:
    """Transformer layers of torch call their parts, where otherwise a fused kernel without gradients runs."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _matrix(g: Float[Tensor, "k *shape"]) -> Float[Tensor, "k r c"]:
    return g.reshape(len(g), g.shape[1] if g.ndim > 1 else 1, -1)
