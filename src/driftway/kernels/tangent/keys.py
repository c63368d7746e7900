"""Names for files that hold results: a digest of all that a result depends on."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, tuple, type(None))  # attributes of a module that may change what it computes


def digest(*things: Any) -> str:
    """A digest of tensors, modules, functions, numbers and texts, alone or in lists and dictionaries.

    Of a function, it holds code, defaults and closure, but no globals.
    """
    found, seen = hashlib.sha256(), set()
    for thing in things:
        _add(found, thing, seen)
    return found.hexdigest()


def _add(found: Any, thing: Any, seen: set[int]) -> None:
    kind = type(thing)
    found.update(f"<{kind.__qualname__}>".encode())
    inside: Iterable[Any] = ()
    match thing:
        case Tensor() | np.ndarray():
            tensor = torch.as_tensor(thing).detach().cpu()
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1))
            found.update(flat.view(torch.uint8).numpy())
        case None | bool() | int() | float() | complex() | str() | bytes() | torch.dtype() | torch.device():
            found.update(repr(thing).encode())
        case _ if id(thing) in seen:
            return
        case nn.Module():
            plain = {name: entry for name, entry in vars(thing).items() if isinstance(entry, PLAIN)}
            inside = [getattr(kind.forward, "__code__", None), plain, thing._parameters, thing._buffers, thing._modules]
        case Mapping():
            inside = [entry for pair in thing.items() for entry in pair]
        case list() | tuple() | set() | frozenset():
            inside = sorted(thing, key=repr) if isinstance(thing, set | frozenset) else thing
        case CodeType():
            inside = [thing.co_code, thing.co_names, thing.co_consts]
        case FunctionType():
            held = [cell.cell_contents for cell in thing.__closure__ or ()]
            inside = [thing.__code__, thing.__defaults__, thing.__kwdefaults__, held]
        case MethodType():
            inside = [thing.__func__, thing.__self__]
        case partial():
            inside = [thing.func, thing.args, thing.keywords]
        case type():
            found.update(thing.__qualname__.encode())
        case _:
            inside = [getattr(kind.__call__, "__code__", None), getattr(thing, "__dict__", repr(thing))]
    seen.add(id(thing))
    for entry in inside:
        _add(found, entry, seen)
