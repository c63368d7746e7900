"""The methods under labels: ours, and flow matching by torchcfm on the networks, the scale and the sampler of ours.

    v(x, t, c) = U(x, t, c) - alpha(t) x          U the perceptron or the U-Net of `driftway.transport.inner`, alpha as there
    x_t = (1-t) x_0 + t x_1                       loss = E |v(x_t, t, c) - (x_1 - x_0)|^2,     c dropped on a tenth of the rows

    OT-CFM              pairs from the exact plan of the batch, and the label goes with its row: torchcfm's label-aware sampler
    OT-CFM in classes   rows of one label are paired among themselves, by an exact plan each: our own, as the plan of the whole
                        batch makes the start depend on the label, which sampling does not know
    I-CFM               independent pairs

-alpha(t) x is the best linear velocity, and it helps the peers as it helps us. Schedule, weight average and guidance are ours as well,
and the ends of paths are kept in the box of the data. What differs is what is learned, a velocity in place of a value, and the pairs.

Source: Tong et al. (2024), TMLR, arXiv 2302.00482; Ho and Salimans (2022), arXiv 2207.12598; torchcfm on PyPI.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks import peers
from benchmarks.images import mnist5k
from driftway.data import digits
from driftway.transport import ImageValue, Problem, Settings, TransportModel, VectorValue, iterate
from driftway.transport.condition import NULL, fit_conditions
from driftway.transport.inner import InnerProduct, alpha
from driftway.transport.learner import Learner
from driftway.transport.run import Plan, seed_parameters, shape_of, start_run
from driftway.transport.scaler import Scaler, fit_scaler
from driftway.transport.stream import generator

OURS = "driftway"
EXACT, CLASSES, INDEPENDENT = "OT-CFM", "OT-CFM in classes", "I-CFM"
NAMES = (EXACT, CLASSES, INDEPENDENT)
METHODS = (OURS, *NAMES)


@dataclass(frozen=True)
class Recipe:
    """How a peer is trained.

    Attributes:
        name: one of `NAMES`.
        batch: rows of each law per step.
        lr: step size of `peers.Recipe.step_size`, with the schedule of ours.
    """

    name: str
    batch: int
    lr: float = 2e-3


class Velocity(InnerProduct):
    """A network of ours with -v in the place of the gradient, so that it is sampled and guided like ours."""

    def gradient(self, x: Float[Tensor, "n k"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n k"]:
        return alpha(t) * x - self.vector(x, t, c)


class VectorVelocity(Velocity, VectorValue):
    """The perceptron."""


class ImageVelocity(Velocity, ImageValue):
    """The U-Net."""


@dataclass(frozen=True)
class Task:
    """A data set and the network that every method uses on it.

    Attributes:
        load: gives rows (n, h, w) in 0..1 and their labels.
        held: test rows.
        family: "vector" or "image".
        settings: of ours; the peers take the sizes of the network and the dropout from them.
        recipes: of the peers.
    """

    load: Callable[[], tuple[Tensor, Tensor]]
    held: int
    family: str
    settings: Settings
    recipes: tuple[Recipe, ...]

    @property
    def about(self) -> str:
        """Network, batches and step sizes, in words."""
        own = self.settings
        network = f"U-Net of {own.base} channels" if self.family == "image" else f"{own.depth} x {own.width}"
        theirs = "; ".join(f"{recipe.name} {recipe.batch}, {recipe.lr:g}" for recipe in self.recipes)
        return (f"{self.held} test rows; {network}; batch and step size: {OURS} {own.batch} with {own.candidates} candidates, {own.lr:g}; "
                f"{theirs}")  # fmt: skip


def digit_rows() -> tuple[Tensor, Tensor]:
    pixels, labels = digits()
    return pixels.reshape(-1, 8, 8) / 16, labels


def mnist_rows() -> tuple[Tensor, Tensor]:
    pixels, labels = mnist5k()
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def _recipes(batch: int, lr: float = 2e-3) -> tuple[Recipe, ...]:
    return tuple(Recipe(name, batch, lr) for name in NAMES)


TASKS = {
    "digits, perceptron": Task(digit_rows, 500, "vector", Settings(width=256, lr=5e-3), _recipes(256, 5e-3)),
    "MNIST, perceptron": Task(mnist_rows, 1000, "vector", Settings(width=512, lr=2e-3), _recipes(256)),
    "MNIST, U-Net": Task(mnist_rows, 1000, "image", Settings(base=16, lr=2e-3, batch=128, candidates=256), _recipes(128)),
}


@dataclass(frozen=True)
class Trained:
    """What a method comes to.

    Attributes:
        model: its sampler; values and prices of a peer's mean nothing.
        steps: training steps done.
        seconds: they took, set-up included.
    """

    model: TransportModel
    steps: int
    seconds: float


def train(task: Task, method: str, rows: Float[Tensor, "n h w"], labels: Int[Tensor, " n"], *, seconds: float, seed: int) -> Trained:
    """Train one method, ours or a peer, for so many processor seconds of this process, data and set-up included."""
    if method != OURS:
        return train_peer(next(recipe for recipe in task.recipes if recipe.name == method), task, rows, labels, seconds=seconds, seed=seed)
    begun = time.process_time()
    plan = Plan(problem=Problem(), settings=task.settings, seed=seed, family=task.family, standardize="auto", holdout=0.0,
                certify_every=2**60)  # fmt: skip
    run = start_run(plan, None, rows, (None, rows), labels=labels)  # nothing is asked of the held-out rows
    for _ in iterate(run):
        if time.process_time() - begun >= seconds:
            break
    return Trained(run.model(), run.index, time.process_time() - begun)


def train_peer(recipe: Recipe, task: Task, rows: Float[Tensor, "n h w"], labels: Int[Tensor, " n"], *, seconds: float,
               seed: int) -> Trained:  # fmt: skip
    """Train a peer, likewise."""
    independent, exact = peers.matcher_of("independent"), peers.matcher_of("exact")
    with peers.global_streams(seed):
        begun = time.process_time()
        scaler, conditions = fit_scaler(rows, source=None), fit_conditions("labels", labels)
        y_all = scaler.target(rows)
        c_all = conditions.encode("labels", labels, len(rows), y_all)
        shape = shape_of(task.family, task.settings, scaler, conditions)
        network, own = build(task.family, scaler, shape, seed), generator(seed, recipe.name, "data")
        average = copy.deepcopy(network).requires_grad_(False)
        used = [name for name, _ in network.named_parameters() if not name.startswith(("g.", "b."))]
        live, means = ([module.get_parameter(name) for name in used] for module in (network, average))
        schedule = peers.Recipe(recipe.name, "", lr=recipe.lr, warmup=Learner.warmup, decay=Learner.decay, horizon=Learner.horizon)
        descent = peers.Descent(schedule, live, means)
        while time.process_time() - begun < seconds:
            i = torch.randint(len(y_all), (recipe.batch,), generator=own)
            x, y, c = torch.randn(recipe.batch, scaler.size, generator=own), y_all[i], c_all[i]
            if recipe.name == EXACT:
                t, x_t, u, _, c = exact.guided_sample_location_and_conditional_flow(x, y, y1=c)
            else:
                x = pair_in_classes(x, y, c) if recipe.name == CLASSES else x
                t, x_t, u = independent.sample_location_and_conditional_flow(x, y)
            c = torch.where(torch.rand(recipe.batch, generator=own) < task.settings.dropout, NULL, c)
            loss = (network.gradient(x_t, t, c) + u).square().mean()
            descent.step(loss)
        model = TransportModel(average, Problem(), scaler, task.family, shape, {}, conditions)
        return Trained(model, descent.k, time.process_time() - begun)


def build(family: str, scaler: Scaler, shape: dict[str, int], seed: int) -> Velocity:
    """An untrained velocity, started as the values of ours are."""
    kind: Any = {"vector": VectorVelocity, "image": ImageVelocity}[family]
    network = kind((scaler.size,), **shape).to(scaler.shift)
    if family == "image":
        network.activate(scaler.active)
    seed_parameters(network, generator(seed, "initialisation"))
    return network


def pair_in_classes(x: Float[Tensor, "n k"], y: Float[Tensor, "n k"], c: Int[Tensor, " n"]) -> Float[Tensor, "n k"]:
    """The rows of x in another order: row i belongs to row i of y in the exact plan of the rows of its label."""
    paired = x.clone()
    for label in c.unique():
        i = (c == label).nonzero()[:, 0]
        start, end = map(torch.from_numpy, linear_sum_assignment(torch.cdist(x[i], y[i]).square().numpy()))
        paired[i[end]] = x[i[start]]
    return paired
