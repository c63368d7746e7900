"""From what a model folder holds to a model, read with suspicion: sizes are checked before anything of that size is made."""

from collections.abc import Mapping
from dataclasses import fields, replace
from math import isfinite, prod
from typing import Any

import torch
from torch import Tensor

from driftway.checks import InputError, choice, require
from driftway.transport.condition import Conditions
from driftway.transport.families import FAMILIES, build_value
from driftway.transport.problem import Problem
from driftway.transport.scaler import Scaler
from driftway.transport.value import Value

CURE = "the folder was changed or is damaged: train again, or restore it"
FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError, ZeroDivisionError,
          RecursionError)  # fmt: skip


def check(condition: bool, expected: str, got: object = "something else") -> None:
    """Refuse the folder unless the condition holds."""
    require(condition, "folder", expected=expected, got=str(got)[:200], cure=CURE)


def rebuilt(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of a `TransportModel` by name.

    Raises:
        InputError: if an entry or a tensor lacks, is too much, or cannot be one of a model.
    """
    try:
        return _rebuilt(config, tensors)
    except InputError as error:
        raise InputError("folder", expected=f"{error.argument} as {error.parts['expected']}" if error.argument != "folder" else
                         error.parts["expected"], got=error.parts["got"], cure=CURE) from None  # fmt: skip
    except FAULTS as error:
        said = " ".join(str(error).split())[:200]
        raise InputError("folder", expected="the entries and tensors of a model", got=f"{type(error).__name__} ({said})",
                         cure=CURE) from None  # fmt: skip


@torch.no_grad()
def sound(model: Any) -> None:
    """Move one row, to see that a model that was read can be used.

    Raises:
        InputError: if it cannot, or the result is not finite.
    """
    origin = model.scaler.shift.reshape(1, *model.event)
    try:
        moved = model.sample(1 if model.scaler.noise and not model.backward else origin, steps=1)
        known = bool(moved.isfinite().all())
    except FAULTS:
        known = False
    check(known, "numbers that can be computed with", "a model without finite samples")


def _rebuilt(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    scaler, conditions = _scaler(config["scaler"], tensors), _conditions(config.get("conditions", {}))
    family, shape = choice("family", config["family"], (*FAMILIES, "table")), config["shape"]
    problem, training, backward = config["problem"], config["training"], config.get("backward", False)
    check(isinstance(problem, dict) and set(problem) == {part.name for part in fields(Problem)}, "a problem of this release", problem)
    check(isinstance(training, dict), "facts of the training by name", type(training).__name__)
    check(isinstance(backward, bool), "backward as true or false", repr(backward))
    own = {name.removeprefix("value."): tensor for name, tensor in tensors.items() if name.startswith("value.")}
    kept = {f"scaler.{name}" for name in ("shift", "scale", "constant", "box")} | {f"value.{name}" for name in own}
    check(set(tensors) <= kept, "no further tensors", ", ".join(sorted(set(tensors) - kept)[:3]))
    most = sum(tensor.numel() for tensor in tensors.values()) + 1
    check(isinstance(shape, dict) and all(type(size) is int and -1 <= size <= most for size in shape.values()),
          f"a shape of whole numbers up to {most}", shape)  # fmt: skip
    check(shape.get("depth", 0) <= len(tensors), f"at most {len(tensors)} layers", shape.get("depth"))
    check((shape.get("classes", 0), shape.get("columns", 0)) == (len(conditions.classes), len(conditions.shift)),
          "conditions of the value's shape", shape)  # fmt: skip
    with torch.device("meta"):  # without numbers in it, and so without memory
        wanted = build_value(family, replace(scaler, shift=scaler.shift.to("meta")), shape).state_dict()
    check(set(wanted) == set(own), "the tensors of the value", ", ".join(sorted(set(wanted) ^ set(own))[:3]))
    for name, tensor in own.items():
        alike = tensor.shape == wanted[name].shape and tensor.dtype == wanted[name].dtype
        check(alike, f"{name} of shape {tuple(wanted[name].shape)}, {wanted[name].dtype}", f"{tuple(tensor.shape)}, {tensor.dtype}")
        check(not tensor.isnan().any(), f"numbers in {name}", "NaN")
    value: Value = build_value(family, scaler, shape)
    value.load_state_dict(own)
    return {"value_function": value.requires_grad_(False), "problem": Problem(**problem), "scaler": scaler, "family": family,
            "shape": shape, "training": training, "conditions": conditions, "backward": backward}  # fmt: skip


def _scaler(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Scaler:
    event, noise = about["event"], about["noise"]
    check(isinstance(event, list) and len(event) > 0 and all(type(size) is int and size > 0 for size in event), "the shape of a row", event)
    check(isinstance(noise, bool), "noise as true or false", repr(noise))
    return checked_scaler(Scaler.of(dict(tensors), dict(about)))


def checked_scaler(found: Scaler) -> Scaler:
    """A scaler that was read.

    Raises:
        InputError: if its tensors do not fit each other, or have numbers that cannot be.
    """
    d = prod(found.event)
    dtype = found.shift.dtype
    check(dtype in (torch.float32, torch.float64), "a scaler in float32 or float64", dtype)
    for name, tensor, shape in (("shift", found.shift, (d,)), ("scale", found.scale, (d,)), ("box", found.box, (2, d))):
        if tensor is not None:
            fits = tensor.shape == shape and tensor.dtype == dtype and bool(tensor.isfinite().all())
            check(fits, f"finite numbers in scaler.{name}, {shape}", f"{tuple(tensor.shape)} of {tensor.dtype}")
    check(bool((found.scale > 0).all()), "positive scales", "others")
    check(found.constant.shape == (d,) and found.constant.dtype == torch.bool and found.size > 0, "which columns are constant, not all")
    return found


def _conditions(about: Mapping[str, Any]) -> Conditions:
    check(isinstance(about, Mapping) and all(isinstance(entries, list) for entries in about.values()), "conditions in lists", about)
    found = Conditions.of(dict(about))
    check(all(isinstance(name, str) or type(name) is int for name in found.classes), "classes of text or whole numbers", found.classes)
    check(len({str(name) for name in found.classes}) == len(found.classes), "classes that differ", found.classes)
    vector = [*found.shift, *found.scale]
    check(len(found.shift) == len(found.scale) and all(isinstance(entry, float | int) and isfinite(entry) for entry in vector)
          and all(entry > 0 for entry in found.scale), "means and scales of condition vectors", vector)  # fmt: skip
    check(not (found.classes and found.shift), "classes or condition vectors", "both")
    return found
