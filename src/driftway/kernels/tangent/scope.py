"""Which parameters of a module a tangent kernel is taken over.

A scope is a part of a network, a glob over parameter names, or several of them. Each parameter belongs to one part, so the Gram matrices
of all parts sum to that of the whole:

    lora       adapters of low rank: a name with lora_
    norm       weights and biases of normalisation layers
    embedding  tables of tokens, positions and types
    attention  what else stands under a name with attn or attention
    head       what else stands under a name like classifier, score, lm_head, pooler
    mlp        what else stands in a numbered block (layer.3, h.11, 0), or under a name like mlp or ffn
    other      the rest

and beside these "all", and "trainable" for what requires a gradient.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from driftway.checks import InputError, kind, require

PARTS = ("lora", "norm", "embedding", "attention", "head", "mlp", "other")
Scope = str | Sequence[str]

_NORM = re.compile(r"Norm(\dd)?$")
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$|^(cls|pos|mask)_token$")
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_HEAD = re.compile(r"^(\w*head|\w*classifier|score|scorer|pooler|readout|qa_outputs|cls|fc|out_proj|output_layer)$")
_MLP = re.compile(r"^(mlp|ffn|ff|feed_?forward|fc\d|lin(ear)?\d|\d+)$")


def part(owner: nn.Module, name: str) -> str:
    """The part of a network that the parameter `name` of the module `owner` belongs to."""
    path = name.removeprefix("module.").removeprefix("base_model.model.").split(".")  # as data parallel and PEFT models have it
    if any("lora_" in step for step in path):
        return "lora"
    if _NORM.search(type(owner).__name__) or "norm" in path[-2:-1]:
        return "norm"
    if isinstance(owner, nn.Embedding) or any(_EMBEDDING.search(step) for step in path):
        return "embedding"
    if any(_ATTENTION.search(step) for step in path):
        return "attention"
    if any(_HEAD.search(step) for step in path[:2]):
        return "head"
    return "mlp" if any(_MLP.search(step) for step in path) else "other"


def select(model: nn.Module, scope: Scope) -> dict[str, nn.Parameter]:
    """The parameters in a scope, by name, in the model's order.

    A tied parameter belongs to the part of its first name, is found by a glob for any of its names, and counted once.

    Args:
        model: any module.
        scope: names of parts ("attention"), "all", "trainable", or globs over parameter names ("encoder.layer.5.*", "*.bias").

    Raises:
        InputError: if the model has no parameters, or an entry of the scope matches none of them.
    """
    kind("model", model, nn.Module, "a module")
    require(isinstance(scope, str | list | tuple), "scope", expected="a name or a list of names", got=repr(scope)[:80],
            cure='pass e.g. scope="attention"')  # fmt: skip
    entries = (scope,) if isinstance(scope, str) else tuple(scope)
    known = list(_parameters(model))
    require(bool(known), "model", expected="a module with parameters", got=type(model).__name__, cure="pass a network")
    require(bool(entries) and all(isinstance(entry, str) for entry in entries), "scope", expected="a name or a list of names",
            got=repr(scope), cure='pass e.g. scope="attention"')  # fmt: skip
    chosen: set[int] = set()
    first = {id(parameter): name for name, _, parameter in reversed(known)}
    for entry in entries:
        found = {id(parameter) for name, owner, parameter in known if _matches(entry, name, owner, parameter, first[id(parameter)])}
        if not found:
            raise _nothing(entry, known)
        chosen |= found
    return {name: parameter for name, _, parameter in known if id(parameter) in chosen and first[id(parameter)] == name}


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """All names of all parameters, tied ones under each of theirs, with the modules that own them."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{prefix}.{name}".lstrip("."), module, parameter


def _matches(entry: str, name: str, owner: nn.Module, parameter: nn.Parameter, first: str) -> bool:
    if entry == "trainable":
        return parameter.requires_grad
    return entry in ("all", name) or (name == first and part(owner, name) == entry) or fnmatchcase(name, entry)


def _nothing(entry: str, known: list[tuple[str, nn.Module, nn.Parameter]]) -> InputError:
    names = [name for name, _, _ in known]
    parts = sorted({part(owner, name) for name, owner, _ in known})
    steps = sorted({step for name in names for step in name.split(".") if not step.isdigit()})
    near_steps = get_close_matches(entry.strip("*."), steps, n=3, cutoff=0.5)
    close = get_close_matches(entry, names, n=3, cutoff=0.4) or [n for step in near_steps for n in names if step in n.split(".")][:3]
    near = f"close names: {', '.join(close)}" if close else f"the first names: {', '.join(names[:3])}"
    return InputError("scope", expected="a part of the network or a glob over parameter names", got=f"{entry!r}, which matches none",
                      cure=f'pass one of the parts it has ({", ".join(parts)}), "all", or a glob such as "*.bias"; {near}')  # fmt: skip
