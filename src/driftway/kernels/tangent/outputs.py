"""From what a model returns to the scores whose gradients are taken.

    trace    all outputs; Gram entries are sums over outputs of <grad f_c(x), grad f_c(x')>
    full     all outputs, each pair of them: entries (i, c, j, c')
    c        one output, f_c
    (a, b)   a contrast of two, f_a - f_b
    tensor   any contrast, sum_c weights_c f_c
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.checks import InputError, require

Forward = Callable[[nn.Module, Any], Any]
Outputs = str | int | tuple[int, int] | Tensor


def forward(model: nn.Module, batch: Any) -> Any:
    """What a model returns for a batch; its logits if it has such."""
    out = model(**batch) if isinstance(batch, Mapping) else model(batch)
    return getattr(out, "logits", out)


def read(forward: Forward, model: nn.Module, batch: Any) -> Any:
    """What is read from a model for a batch.

    Raises:
        InputError: if the model cannot take it.
    """
    try:
        return forward(model, batch)
    except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
        if type(error) not in (RuntimeError, TypeError, IndexError, ValueError, AttributeError):
            raise  # of another kind, such as a lack of memory
        entries = batch.items() if isinstance(batch, Mapping) else [("", batch)]
        shown = ", ".join(f"{name} {tuple(e.shape)} of {e.dtype}".strip() for name, e in list(entries)[:4] if isinstance(e, Tensor))
        said = " ".join(str(error).split())
        raise InputError("batches", expected="inputs that the model and forward can take", got=f"{shown}, at which they raise "
                         f"{type(error).__name__} ({said[:300]})", cure="call the model on such a batch yourself")  from error  # fmt: skip


def scores_of(out: Any, outputs: Outputs, n: int) -> Float[Tensor, "n k"]:
    """The scores that gradients are taken of.

    Raises:
        InputError: if a model returned something other than (n,) or (n, outputs) numbers, or has no such outputs.
    """
    cure = "pass forward=lambda model, batch: ... that returns one row of scores for each example, e.g. model(**batch).logits[:, 1]"
    if not isinstance(out, Tensor):
        raise InputError("forward", expected="a tensor of scores from the model", got=type(out).__name__, cure=cure)
    out = out[None] if out.ndim == 0 and n == 1 else out  # .squeeze() of a single row
    require(out.ndim in (1, 2) and len(out) == n, "forward", expected=f"scores of shape ({n},) or ({n}, outputs) for {n} rows",
            got=f"shape {tuple(out.shape)}", cure=cure)  # fmt: skip
    require(bool(torch.isfinite(out.detach()).all()), "forward", expected="finite scores", got="NaN or infinite ones",
            cure="look for extreme inputs, or compute with dtype=torch.float64")  # fmt: skip
    out = out[:, None] if out.ndim == 1 else out
    if isinstance(outputs, str):
        return out
    C = out.shape[1]
    if isinstance(outputs, Tensor):
        require(outputs.shape == (C,), "outputs", expected=f"one weight for each of the {C} outputs", got=f"shape {tuple(outputs.shape)}",
                cure=f"pass weights of shape ({C},)")  # fmt: skip
        return out @ outputs.to(out)[:, None]
    pair = (outputs,) if isinstance(outputs, int) else outputs
    require(all(-C <= c < C for c in pair), "outputs", expected=f"numbers of outputs below {C}", got=f"{outputs}",
            cure="count outputs from 0")  # fmt: skip
    return out[:, [pair[0]]] - (out[:, [pair[1]]] if len(pair) == 2 else 0)


def checked(outputs: Any) -> Outputs:
    """`outputs` as a user passed it.

    Raises:
        InputError: if it is none of the forms above.
    """
    match outputs:
        case "trace" | "full":
            return outputs
        case int() if not isinstance(outputs, bool):
            return outputs
        case [int(a), int(b)]:
            return a, b
        case Tensor() if outputs.ndim == 1:
            return outputs
    raise InputError("outputs", expected='"trace", "full", the number of an output, two such numbers, or one weight for each output',
                     got=repr(outputs), cure="pass e.g. outputs=(1, 0) for the difference of two logits")  # fmt: skip
