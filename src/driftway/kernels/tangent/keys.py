"""Names for files that hold results: a digest of all that a result depends on."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn


def model_key(model: nn.Module, *rest: Any) -> str:
    """A digest of a network, the numbers in it, and whatever else is named."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return digest(repr(model), repr(getattr(model, "config", "")), tensors, *rest)


def digest(*things: Any) -> str:
    """A digest of tensors, functions, numbers and texts, in dictionaries or alone."""
    found = hashlib.sha256()
    for thing in things:
        _add(found, thing)
    return found.hexdigest()


def _add(found: Any, thing: Any) -> None:
    found.update(f"<{type(thing).__name__}>".encode())
    match thing:
        case Tensor():
            found.update(f"{thing.dtype} {tuple(thing.shape)}".encode())
            found.update(thing.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        case Mapping():
            for name, entry in thing.items():
                _add(found, name)
                _add(found, entry)
        case list() | tuple():
            for entry in thing:
                _add(found, entry)
        case CodeType():
            found.update(thing.co_code)
            _add(found, [thing.co_names, thing.co_consts])
        case FunctionType():
            held = [cell.cell_contents for cell in thing.__closure__ or ()]
            _add(found, [thing.__code__, thing.__defaults__ or (), thing.__kwdefaults__ or {}, held])
        case partial():
            _add(found, [thing.func, thing.args, thing.keywords])
        case nn.Module():
            found.update(model_key(thing).encode())
        case Callable() if hasattr(thing, "__dict__"):
            _add(found, dict(vars(thing)))
        case _:
            found.update(repr(thing).encode())
