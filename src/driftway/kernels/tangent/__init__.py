"""The tangent kernel of any network at its present weights, exact and without its Jacobian.

    K(x, x') = <grad f(x), grad f(x')>,    gradients with respect to the parameters in scope

(Jacot, Gabriel and Hongler, 2018, for wide networks; here at any width and any weights.) K is a sum over parameters, so that the
matrices of scopes without common parameters add up.

Equation (K19): docs/derivations/kernels.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import choice, count, real, require
from driftway.kernels.base import GIB, Kernel
from driftway.kernels.tangent.batches import convert, parts
from driftway.kernels.tangent.capture import Capture, capture, tested
from driftway.kernels.tangent.features import CHANGES, Projection, TangentFeatures, inner
from driftway.kernels.tangent.keys import digest
from driftway.kernels.tangent.outputs import Forward, Outputs, checked, forward
from driftway.kernels.tangent.scope import Scope, select
from driftway.kernels.tangent.spool import Spool, alone
from driftway.parallel import launched

__all__ = ["Projection", "TangentFeatures", "TangentKernel", "tangent_features", "tangent_gram"]


@torch.inference_mode(mode=False)
def tangent_features(model: nn.Module, batches: Any, *, scope: Scope = "all", outputs: Outputs = "trace", forward: Forward = forward,
                     dtype: torch.dtype | None = None, batch_size: int = 16, memory: float | int = 1.0, test: str = "first",
                     cache: str | Path | None = None) -> TangentFeatures:  # fmt: skip
    """The tangent features of a data set, as the factors of a forward and a backward pass.

    Linear, Conv1d, Conv2d, Embedding, LayerNorm, RMSNorm, GroupNorm and BatchNorm layers (and GPT-2's Conv1D and RMSNorm layers of
    other libraries) cost that one pass for all samples. Parameters of other layers cost a pass for each sample, and are listed in
    `slow`. With several processes (`accelerate launch`), each takes every R-th batch.

    Args:
        model: any module, in evaluation mode. It is not changed.
        batches: the inputs: a tensor (n, ...), a dictionary of tensors, or an iterable of these.
        scope: which parameters: "all", "attention", "mlp", "head", "norm", "embedding", "lora", "other", "trainable", a glob over names,
            or several of these.
        outputs: "trace" sums over outputs, "full" keeps them apart, c is one, (a, b) the contrast f_a - f_b, a tensor any other.
        forward: (model, batch) -> scores (n,) or (n, outputs); by default the model's output, or its logits.
        dtype: to compute in; the model's by default.
        batch_size: rows of one pass.
        memory: GiB for factors and gradients in memory, beside the passes themselves; more factors than half of it wait in files.
        test: which batches the rules for layers are tested on: "first", or "every" for a network whose computation depends on the rows of
            the batch, such as one that sends rows to experts.
        cache: a folder for the factors, in which an interrupted call with the same model and data goes on. The result reads them there.

    Raises:
        InputError: if another run works in the cache, nothing is in scope (the error lists close names), the model is in training mode
            with layers that are random or mix samples, or inputs or outputs are not as above.
    """
    parameters, outputs, test = select(model, scope), checked(outputs), choice("test", test, ("first", "every"))
    _deterministic(model)
    size, room = count("batch_size", batch_size), real("memory", memory, least=0.0, strict=True) * GIB
    own = next(iter(parameters.values()))
    known = dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
    require(known, "dtype", expected="a floating dtype", got=dtype, cure="pass e.g. torch.float64")
    how = Capture(model, parameters, forward, outputs, dtype or own.dtype)
    group, folder = launched(), None if cache is None else Path(cache)
    spool, keys = Spool(limit=room / 2, folder=folder), []
    state = digest(model, list(parameters), outputs, how.dtype, forward) if folder else ""
    with alone(folder, group):
        for number, part in enumerate(parts("batches", batches, size)):
            batch = convert(part, how.dtype, own.device)
            keys.append(key := digest(state, batch) if folder else "")
            mine = number % group.size == group.rank
            slow = spool.find(number, key) if mine else None
            if slow is not None:
                how = replace(how, slow=how.slow | slow)
                continue
            piece = None
            if number == 0 or (mine and test == "every"):  # all processes test the first batch, and come to the same result
                how, piece = tested(how, batch)
            if mine:
                spool.add(capture(how, batch, piece), number, key=key, slow=how.slow)
        found = group.gather([*zip(spool.numbers, (s.cpu() for s in spool.scores), strict=True)])
    scores = sorted((pair for pairs in found for pair in pairs), key=lambda pair: pair[0])
    return TangentFeatures({name: p.shape for name, p in parameters.items()}, torch.cat([s for _, s in scores]).to(own.device),
                           how.full, how.slow, how.wide, spool, group, room, digest(keys))  # fmt: skip


def tangent_gram(model: nn.Module, batches: Any, other: Any = None, *, scope: Scope = "all", outputs: Outputs = "trace",
                 sign: str = "none", weights: Mapping[str, float] | None = None, forward: Forward = forward,
                 dtype: torch.dtype | None = None, batch_size: int = 16, memory: float | int = 1.0, test: str = "first",
                 cache: str | Path | None = None) -> Float[Tensor, "N M"]:  # fmt: skip
    """The Gram matrix of a network's tangent kernel on a data set, or with `other` the matrix between two, in float64.

    Args:
        model: see `tangent_features`, for all arguments but these:
        batches: the inputs of the rows.
        other: the inputs of the columns; the same as the rows if None.
        scope: which parameters.
        outputs: with "full", rows and columns stand for pairs: entry (i k + c, j k + d) belongs to f_c(x_i) and f_d(x_j).
        sign: "none"; "both" for <sign g_i, sign g_j>; "left" for <sign g_i, g_j>, the kernel of sign descent (Malladi et al., 2023).
            Signs of rounding count too: leave out of scope what has no gradient in exact arithmetic, such as biases of keys.
        weights: of parameters, by name: sum_p w_p <g_p, g_p'>.
        forward: how scores are read.
        dtype: of the passes.
        batch_size: rows of one pass.
        memory: in GiB.
        test: which batches are tested.
        cache: a folder in which an interrupted call goes on.

    Raises:
        InputError: see `tangent_features`; or if the matrix does not fit into memory.
    """
    choice("sign", sign, CHANGES)
    folder = None if cache is None else Path(cache)

    def features(rows: Any, name: str) -> TangentFeatures:
        own = None if folder is None else folder / name
        return tangent_features(model, rows, scope=scope, outputs=outputs, forward=forward, dtype=dtype, batch_size=batch_size,
                                memory=memory, test=test, cache=own)  # fmt: skip

    with alone(folder, launched()):
        x = features(batches, "rows")
        y = features(other, "columns") if other is not None else x if sign == "left" else None
        return inner(x, y, sign=sign, weights=weights, folder=folder)


@dataclass(frozen=True, eq=False)
class TangentKernel(Kernel):
    """The tangent kernel as a `Kernel` of inputs in a floating tensor, for the algebra and for mean embeddings.

    Attributes:
        model: the network, in evaluation mode.
        options: of `tangent_features`; outputs other than "full".
    """

    model: nn.Module
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"scope", "outputs", "forward", "dtype", "batch_size", "memory", "test"}
        require(set(self.options) <= known, "options", expected=f"some of {', '.join(sorted(known))}", got=", ".join(self.options),
                cure="name options of tangent_features")  # fmt: skip
        require(self.options.get("outputs") != "full", "options", expected="one value for each pair of inputs", got='outputs="full"',
                cure='pass outputs="trace", or a contrast')  # fmt: skip

    def cross(self, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
        return tangent_gram(self.model, x, y, **self.options)

    def gram(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n n"]:
        return tangent_gram(self.model, x, **self.options)

    def diagonal(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
        return tangent_features(self.model, x, **self.options).diagonal()


def _deterministic(model: nn.Module) -> None:
    """Refuse a module whose output for a sample is random or depends on other samples."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        mixing = isinstance(module, nn.modules.batchnorm._BatchNorm)
        require(not (module.training and (random or mixing)), "model", expected="evaluation mode",
                got=f"training mode, with {kind} in {name or 'it'}, " + ("which is random" if random else "which mixes samples"),
                cure="call model.eval() before, and model.train() after")  # fmt: skip
