"""The families of value: which suits the data, and how one is built from a few whole numbers."""

from typing import Any

import torch

from driftway.checks import require
from driftway.transport.condition import Conditions
from driftway.transport.image import ImageValue
from driftway.transport.inner import VectorValue
from driftway.transport.labelled import LabelledMixture
from driftway.transport.mixture import MixtureValue
from driftway.transport.problem import Problem
from driftway.transport.residual import ResidualValue
from driftway.transport.scaler import Scaler
from driftway.transport.table import TableValue
from driftway.transport.value import NetworkValue, Value

FAMILIES = ("mixture", "network", "residual", "vector", "image")
SIZES = {
    "mixture": ("components", "rank"),
    "network": ("width", "depth", "heads"),
    "residual": ("width", "depth", "heads"),
    "vector": ("width", "depth"),
    "image": ("base",),
}
LOW_DIMENSION, BRIDGED = 8, 64


def automatic(scaler: Scaler, problem: Problem, conditions: Conditions) -> str:
    """The family for data of this shape: exact ends while mixtures can be fitted, then networks.

    Bridges stay with mixtures longer: one component is already exact between normal laws.
    """
    if scaler.size <= (BRIDGED if problem.sigma > 0 else LOW_DIMENSION):
        return "network" if conditions.shift else "mixture"
    return "vector" if len(scaler.event) > 1 and scaler.noise and problem.sigma == 0 else "residual"


def shape_of(family: str, settings: Any, scaler: Scaler, conditions: Conditions) -> dict[str, int]:
    """What a value of a family is built with: its sizes among the settings, the grid of images, the conditions."""
    width = 64 if scaler.size <= LOW_DIMENSION else 256
    shape = {name: width if name == "width" and settings.width is None else getattr(settings, name) for name in SIZES[family]}
    return {**(grid(scaler.event) if family == "image" else {}), **shape, **conditions.shape}


def grid(event: tuple[int, ...]) -> dict[str, int]:
    """Channels, height and width of events that are images: (h, w) or (channels, h, w).

    Raises:
        InputError: if they are not.
    """
    require(len(event) in (2, 3), "family", expected="rows of shape (h, w) or (channels, h, w) for images", got=f"{event}",
            cure="reshape the data, or choose another family")  # fmt: skip
    channels, height, width = (1, *event)[-3:]
    return {"channels": channels, "height": height, "width": width}


def build_value(family: str, scaler: Scaler, shape: dict[str, int]) -> Value:
    """An untrained value of a family, for the model space of a scaler."""
    mixture = LabelledMixture if "classes" in shape else MixtureValue
    kind = {"network": NetworkValue, "mixture": mixture, "residual": ResidualValue, "vector": VectorValue, "image": ImageValue,
            "table": TableValue}[family]  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global stream
        value = kind((scaler.size,), **shape).to(scaler.shift)
    if isinstance(value, ImageValue):
        value.activate(scaler.active)
    return value
