"""Named tensors as a vector space: sums of multiples, inner products, and how a module or a state dict is one of its vectors.

    a = {name: tensor},    sum_k c_k a_k by name,    <a, b> = sum over names of <a_name, b_name>, in float64
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from driftway.checks import kind, require

Params = Mapping[str, Tensor]


def parameters(source: nn.Module | Params, argument: str = "weights") -> dict[str, Tensor]:
    """The parameters of a module or the floating tensors of a state dict, detached; tied ones once, under the first of their names.

    Raises:
        InputError: if it is neither.
    """
    if not isinstance(source, nn.Module):
        _named(argument, source)
    named = source.named_parameters() if isinstance(source, nn.Module) else source.items()
    found: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, tensor in named:
        if tensor.is_floating_point() and place(tensor) not in seen:
            seen.add(place(tensor))
            found[name] = tensor.detach()
    return found


def place(tensor: Tensor) -> object:
    """What tied tensors have in common: their memory and how it is read; without memory, the tensor itself."""
    where = tensor.data_ptr() if tensor.device.type != "meta" else 0
    return (tensor.device, where, tensor.dtype, tensor.shape, tensor.stride()) if where else id(tensor)


def aligned(first: str, a: Params, second: str, b: Params) -> None:
    """Two vectors of one space: the same names, the same shapes.

    Raises:
        InputError: if they differ; it names the tensors.
    """
    contained(first, a, second, b)
    contained(second, b, first, a)


def contained(first: str, a: Params, second: str, b: Params) -> None:
    """All tensors of b are in a, with the same shapes.

    Raises:
        InputError: if they are not; it names the tensors.
    """
    _named(first, a)
    _named(second, b)
    missing = [name for name in b if name not in a]
    require(not missing, first, expected=f"the tensors of {second}", got=f"none named {_few(missing)}",
            cure="pass weights of one architecture, under the same names, and the same scope")  # fmt: skip
    unlike = [f"{name} {tuple(a[name].shape)} against {tuple(b[name].shape)}" for name in b if a[name].shape != b[name].shape]
    require(not unlike, first, expected=f"the shapes of {second}", got=_few(unlike), cure="pass weights of one architecture")


def _named(argument: str, a: Any) -> None:
    """Refuse what is no dictionary of named tensors."""
    kind(argument, a, Mapping, "a module, or a dictionary of tensors by name")
    odd = [f"the entry {name!r} with {type(t).__name__}" for name, t in a.items() if not (isinstance(name, str) and isinstance(t, Tensor))]
    require(not odd, argument, expected="tensors by name", got=_few(odd), cure="pass model.state_dict()")


def combine(coefficients: Sequence[float | int], vectors: Sequence[Params]) -> dict[str, Tensor]:
    """sum_k c_k a_k, in the names and dtypes of the first; at least one vector.

    Raises:
        InputError: if the vectors are of different spaces.
    """
    for k, vector in enumerate(vectors[1:], start=1):
        aligned("vectors[0]", vectors[0], f"vectors[{k}]", vector)
    total = {name: tensor * coefficients[0] for name, tensor in vectors[0].items()}
    for c, vector in zip(coefficients[1:], vectors[1:], strict=True):
        for name, tensor in total.items():
            tensor.add_(vector[name].to(tensor), alpha=c)
    return total


def dot(a: Params, b: Params) -> float:
    """<a, b>.

    Raises:
        InputError: if the vectors are of different spaces.
    """
    aligned("a", a, "b", b)
    return sum(float(torch.dot(a[name].double().flatten(), b[name].to(a[name].device).double().flatten())) for name in a)


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
