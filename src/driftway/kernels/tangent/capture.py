"""One forward and one backward pass of a batch, with the factors of every sample's gradient caught on the way.

Weights are constants in these passes, so autograd computes no weight gradients, and goes no deeper than the lowest layer in scope.
Hooks on layers see x, hooks on what they return see b, and `rules.py` makes factors of them. The model is not changed: its tensors
are passed as arguments, and the hooks are removed.

Rules rest on assumptions: the first axis of x and b is the sample, a layer computes what its class says, all uses of a weight go
through layers. So they are tested on a few rows of the first batch, or of every batch: their scores must not depend on the other rows,
and an uneven sum of their gradients, sum_i v_i g_i, must agree with autograd. A parameter that fails is differentiated sample by
sample, as is one without a rule.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from driftway.checks import require
from driftway.kernels.tangent.assemble import beside, empty, merge, pack
from driftway.kernels.tangent.batches import Batch, rows, take
from driftway.kernels.tangent.factors import Direct, Factor, Outer, Rows
from driftway.kernels.tangent.outputs import Forward, Outputs, read, scores_of
from driftway.kernels.tangent.rules import rule_for
from driftway.kernels.tangent.watch import Record, Use, hooked, recording

TESTED = 4  # rows
SPECK = 1e-6  # a gradient this small beside the largest is rounding, such as that of the bias of keys


@dataclass(frozen=True)
class Piece:
    """What one pass found.

    Attributes:
        factors: of each parameter.
        scores: (n, k); with "full" the samples of `factors` are n k, else n.
        odd: parameters whose layer was not called as its rule expects.
    """

    factors: Mapping[str, list[Factor]]
    scores: Float[Tensor, "n k"]
    odd: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Capture:
    """How to take the gradients of a batch.

    Attributes:
        model: the network.
        parameters: in scope, by name.
        forward: (model, batch) -> (n,) or (n, outputs).
        outputs: which outputs, and how they combine.
        dtype: to compute in. Factors have it too, but float32 for narrower ones.
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

    @property
    def wide(self) -> torch.dtype:
        """The dtype of factors."""
        return torch.promote_types(self.dtype, torch.float32)

    def fast(self, batch: Batch) -> Piece:
        """Factors of all layers with rules, from one pass. The samples are n k."""
        record, names = Record(rows(batch)), {id(p): name for name, p in self.parameters.items() if name not in self.slow}
        layers = [m for m in self.model.modules() if rule_for(m) and any(id(p) in names for p in m.parameters(recurse=False))]
        with recording(), hooked(layers, record):
            scores = self._scores(batch, {})
            k = scores.shape[1]
            for c in range(k if record.leaves and scores.requires_grad else 0):
                record.output = c
                torch.autograd.grad(scores[:, c].sum(), record.leaves, retain_graph=c + 1 < k, allow_unused=True)
        found: defaultdict[str, list[Direct | Outer | Rows]] = defaultdict(list)
        odd = {names[id(p)] for layer in record.odd for p in layer.parameters(recurse=False) if id(p) in names}
        for use in record.uses:
            try:
                by_name = _by_rule(use, k, names, self.wide) if use.b else {}
            except (RuntimeError, IndexError, TypeError, ValueError):  # a layer that is not what its class says
                odd |= {names[id(p)] for p in use.module.parameters(recurse=False) if id(p) in names}
                continue
            for name, factor in by_name.items():
                found[name].append(factor)
        shared: dict[tuple[Any, ...], Tensor] = {}
        packed = k == 1 or self.full  # a trace lays the outputs of a sample side by side, which needs equal positions
        factors: dict[str, list[Factor]] = {}
        for name in names.values():
            if name in found:
                factors[name] = [pack(f, shared) if packed and isinstance(f, Outer) else f for f in merge(found[name])]
            else:  # not called, or without influence on the scores
                factors[name] = [empty(_matrix(self.parameters[name].detach()[None])[0], k * len(scores), self.wide)]
        return Piece(factors, scores.detach().to(self.wide), frozenset(odd))

    def alone(self, batch: Batch, names: Collection[str]) -> dict[str, Float[Tensor, "k r c"]]:
        """Gradients of one sample by autograd."""
        with recording():
            own = {name: self._constant(self.parameters[name]).clone().requires_grad_() for name in names}
            scores = self._scores(batch, own)
            k = scores.shape[1]
            grads = [_gradients(scores[0, c], own, again=c + 1 < k) for c in range(k)]
        return {name: _matrix(torch.stack([g[name] for g in grads])).to(self.wide) for name in names}

    def summed(self, batch: Batch, v: Float[Tensor, "n k"]) -> tuple[Float[Tensor, "n k"], dict[str, Float[Tensor, "r c"]]]:
        """Scores, and the gradients of sum_ic v_ic f_c(x_i) by autograd."""
        with recording():
            own = {name: self._constant(p).clone().requires_grad_() for name, p in self.parameters.items()}
            scores = self._scores(batch, own)
            grads = _gradients((scores * v.to(scores)).sum(), own)
        return scores.detach().to(self.wide), {name: _matrix(g[None])[0].to(self.wide) for name, g in grads.items()}

    def _scores(self, batch: Batch, own: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
        """The model's scores with constants for its tensors, but for those in `own`, which go to every place of a tied parameter."""
        mine = {id(self.parameters[name]): tensor for name, tensor in own.items()}
        tensors = {slot: mine.get(id(held), constant) for slot, (held, constant) in self._slots.items()}
        return functional_call(_Scored(self.model, self.forward, self.outputs), tensors, (batch,), tie_weights=False)

    @cached_property
    def _slots(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Every place of a parameter or buffer, once: what it holds, and that as a constant of our dtype."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        made: dict[int, Tensor] = {}
        for prefix, module in self.model.named_modules(prefix="model"):
            held = (*module.named_parameters(recurse=False, remove_duplicate=False),
                    *module.named_buffers(recurse=False, remove_duplicate=False))  # fmt: skip
            for local, tensor in held:
                constant = made.setdefault(id(tensor), self._constant(tensor))
                if getattr(module, "max_norm", None) is not None:  # an embedding that rescales its table as it is read
                    constant = constant.clone()
                found[f"{prefix}.{local}"] = tensor, constant
        return found

    def _constant(self, tensor: Tensor) -> Tensor:
        constant = tensor.detach().to(self.dtype if tensor.is_floating_point() else tensor.dtype)
        shared = isinstance(tensor, nn.Parameter) and not constant.is_inference()
        return constant if shared else constant.clone()  # a forward pass may write into buffers


def capture(how: Capture, batch: Batch, piece: Piece | None = None) -> Piece:
    """The gradients of a batch: by rules, as `how.fast` found them, and sample by sample where a rule is missing or fails."""
    n, k = (piece := piece or how.fast(batch)).scores.shape
    slow = how.slow | piece.odd
    found = {name: factors for name, factors in piece.factors.items() if name not in slow}
    if slow:
        each = [how.alone(take(batch, [i]), slow) for i in range(n)]
        found |= {name: [Direct(torch.cat([own[name] for own in each]))] for name in slow}
    together = 1 if how.full else k
    return Piece({name: [beside(factor, together) for factor in found[name]] for name in how.parameters}, piece.scores)


def tested(how: Capture, batch: Batch) -> tuple[Capture, Piece]:
    """The plan with its slow parameters known, and what `how.fast` found for the batch.

    Raises:
        InputError: if the score of a row depends on chance, or on the other rows.
    """
    piece = how.fast(batch)
    n, k = piece.scores.shape
    m = min(TESTED, max(1, n - 1))  # not all, so that a mean over rows is noticed
    some = sorted({i * (n - 1) // max(1, m - 1) for i in range(m)})
    v = torch.zeros_like(piece.scores)
    v[some] = torch.arange(1.0, 1 + len(some) * k, dtype=v.dtype, device=v.device).cos().view(-1, k)
    scores, summed = how.summed(take(batch, some), v[some])
    tolerance = torch.finfo(how.dtype).eps ** 0.5
    off = float((scores - piece.scores[some]).abs().max())
    require(off <= tolerance * (1e-3 + float(scores.abs().max())), "model", expected="scores that depend on nothing but their row",
            got=f"scores that change by {off:.2g} when some rows are taken alone",
            cure="call model.eval(), and take out what mixes rows or draws random numbers")  # fmt: skip
    largest = max(float(g.norm()) for g in summed.values())
    unruled = {id(p) for module in how.model.modules() if not rule_for(module) for p in module.parameters(recurse=False)}
    failing = {name for name, p in how.parameters.items() if id(p) in unruled}
    for name in set(piece.factors) - failing:
        found = torch.stack([factor.combine(v.flatten()) for factor in piece.factors[name]]).sum(0)
        if not float((found - summed[name]).norm()) <= tolerance * float(summed[name].norm()) + SPECK * largest:
            failing.add(name)
    return replace(how, slow=how.slow | failing), piece


class _Scored(nn.Module):
    """A model and the reading of scores from it, as one module that can be called with other tensors."""

    def __init__(self, model: nn.Module, forward: Forward, outputs: Outputs) -> None:
        super().__init__()
        self.model, self.read, self.outputs = model, forward, outputs

    def forward(self, batch: Batch) -> Tensor:
        return scores_of(read(self.read, self.model, batch), self.outputs, rows(batch))


def _by_rule(use: Use, k: int, names: Mapping[int, str], dtype: torch.dtype) -> dict[str, Direct | Outer | Rows]:
    """The factors of one use of a layer, by the names of its parameters in scope."""
    rule, x, zero = rule_for(use.module), use.x, torch.zeros_like(next(iter(use.b.values())))
    assert rule  # noqa: S101 (for the type checker: layers without rules have no hooks)
    b = torch.stack([use.b.get(c, zero) for c in range(k)], 1).flatten(0, 1) if k > 1 else use.b[0]
    x = x.repeat_interleave(k, 0) if k > 1 else x
    own = {local: names[id(p)] for local, p in use.module.named_parameters(recurse=False, remove_duplicate=False) if id(p) in names}
    found = rule(use.module, x.to(dtype) if x.is_floating_point() else x, b.to(dtype))
    return {own[local]: factor for local, factor in found.items() if local in own}


def _gradients(score: Float[Tensor, ""], own: Mapping[str, Tensor], *, again: bool = False) -> dict[str, Tensor]:
    if not score.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    found = torch.autograd.grad(score, list(own.values()), retain_graph=again, allow_unused=True, materialize_grads=True)
    return {name: g.to_dense() for name, g in zip(own, found, strict=True)}


def _matrix(g: Float[Tensor, "k *shape"]) -> Float[Tensor, "k r c"]:
    return g.reshape(len(g), g.shape[1] if g.ndim > 1 else 1, -1)
