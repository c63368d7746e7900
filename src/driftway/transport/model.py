"""A trained transport: sample, follow paths, read values, certify, save, load."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path as FilePath
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftway import checks, store
from driftway.checks import require
from driftway.kernels.memory import require_memory
from driftway.transport.condition import Conditions
from driftway.transport.dual import Certificate, bracket
from driftway.transport.guidance import Guidance, Guided, Moment, Reversed, StepCallback
from driftway.transport.metrics import Path
from driftway.transport.policy import BLOCK, SampleNoise, simulate
from driftway.transport.problem import Problem
from driftway.transport.rebuild import rebuilt, sound
from driftway.transport.scaler import Scaler
from driftway.transport.value import Value

KIND = "driftway.transport"
RULES = ("auto", "explicit", "proximal", "endpoint")
BUDGET = 2**24
Steps = int | Sequence[float | int]


@dataclass(frozen=True)
class TransportModel:
    """A value with the problem it solves and the standardisation it was trained under.

    Attributes:
        value_function: the value, in model space.
        problem: horizon, noise and entropy, in the units of the data.
        scaler: the map between data and model space.
        family: "mixture", "network", "residual", "vector", "image" or "table".
        shape: what the value was built with.
        training: facts of the run that made it (steps, seconds, seed, final certificate); free text for people.
        conditions: the labels that it knows.
        backward: whether it moves the target to the source.
    """

    value_function: Value
    problem: Problem
    scaler: Scaler
    family: str
    shape: dict[str, int]
    training: dict[str, Any] = field(default_factory=dict)
    conditions: Conditions = field(default_factory=Conditions)
    backward: bool = False

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.scaler.event

    @property
    def sigma(self) -> float:
        """The noise level in model space."""
        return self.problem.sigma / self.scaler.cost_scale**0.5

    @property
    def classes(self) -> tuple[int | str, ...]:
        """The labels of a model that was trained with classes."""
        return self.conditions.classes

    def reverse(self) -> "TransportModel":
        """The model of the way back, from the target to the source: the same straight paths, walked from their ends.

        Raises:
            InputError: if sigma > 0, where the way back has a drift of its own, or for a table, whose rows have no way back.
        """
        require(self.family != "table", "reverse", expected="another family than table", got="table", cure="fit the other direction")
        require(self.problem.sigma == 0, "reverse", expected="a model with sigma = 0", got=f"sigma = {self.problem.sigma:g}",
                cure="train the way back with source and target exchanged")  # fmt: skip
        return replace(self, backward=not self.backward)

    def sample(self, x0: int | Float[Tensor, "n *event"], *, steps: Steps = 4, label: Any = None, guidance: float | int = 1.0,
               rule: str = "auto", seed: int = 0, on_step: StepCallback | None = None,
               budget: int = BUDGET) -> Float[Tensor, "n *event"]:  # fmt: skip
        """Move samples from the source to the target.

        Args:
            x0: source samples (n, *event), or how many standard normal ones to draw if the source is the standard normal.
            steps: policy steps, at least 1; or the times of a grid that increases from 0 to 1.
            label: one label for all samples, one per sample, or condition vectors; None for the whole law.
            guidance: weight w of classifier-free guidance: 1 none, more exaggerates the label (see `Guidance`).
            rule: "explicit", "proximal", "endpoint" (mixtures), or "auto": endpoint where the law of the end is known.
            seed: of the start and the noise. Row i depends on the seed and i alone, not on the batch, up to rounding.
            on_step: called before every step of every block of rows with a `Moment`; may return the `Guidance` to use from there on.
            budget: the most floating-point numbers held at once, about; it bounds memory.

        Returns:
            Samples (n, *event), in the units, dtype and device of the training data.

        Raises:
            InputError: if an argument is unusable.
        """
        acts = self._batches(x0, steps, rule, seed, budget, False, Guidance(label, guidance), on_step)
        return torch.cat([self._out(states[-1]) for _, states in acts])

    def path(self, x0: int | Float[Tensor, "n *event"], *, steps: Steps = 20, label: Any = None, guidance: float | int = 1.0,
             rule: str = "auto", seed: int = 0, on_step: StepCallback | None = None) -> Path:  # fmt: skip
        """Like `sample`, keeping every state and action, in the units of the data. Raises InputError as `sample` does."""
        acts = self._batches(x0, steps, rule, seed, BUDGET, True, Guidance(label, guidance), on_step)
        parts = [(torch.stack(actions), torch.stack(states)) for actions, states in acts]
        a, z = torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)
        scaler, t = self.scaler, torch.tensor(_times(steps), dtype=torch.float64, device=z.device)
        if not scaler.noise and not self.backward and scaler.constant.any():  # on the straight line to the constant
            a[..., scaler.constant] = -z[0][..., scaler.constant]
            z[..., scaler.constant] = z[0][..., scaler.constant] * (1 - t).to(z)[:, None, None]
        actions, states = (part.new_zeros(*part.shape[:2], len(scaler.shift)) for part in (a, z))
        actions[..., scaler.active], states[..., scaler.active] = a, z
        states, actions = states * scaler.scale + scaler.shift, actions * scaler.scale
        return Path(t, states.reshape(*z.shape[:2], *self.event), actions.reshape(*a.shape[:2], *self.event))

    def value(self, x: Float[Tensor, "n *event"], t: float, *, label: Any = None) -> Float[Tensor, " n"]:
        """V_t(x) for x in the units of the data: cost in data units, or in model space if the source is the standard normal.

        Raises:
            InputError: if x or the label is unusable or t is not in [0, 1].
        """
        x = self._rows("x", x)
        t = checks.real("t", t, least=0)
        require(t <= 1, "t", expected="a time in [0, 1]", got=t, cure="0 is the source, 1 the target")
        with torch.no_grad():
            z = self.scaler.target(x)
            return self.scaler.cost_scale * self._acting(Guidance(label), len(z)).value(z, z.new_full((len(z),), t))

    def price(self, y: Float[Tensor, "m *event"], *, label: Any = None) -> Float[Tensor, " m"]:
        """g(y), the terminal price, in the units of `value`.

        Raises:
            InputError: if y or the label is unusable.
        """
        with torch.no_grad():
            z = self.scaler.target(self._rows("y", y))
            return self.scaler.cost_scale * self._acting(Guidance(label), len(z)).price(z)

    def save(self, folder: str | FilePath) -> None:
        """Write config.json and model.safetensors, atomically."""
        tensors = {f"value.{name}": tensor for name, tensor in self.value_function.state_dict().items()}
        scaler = {"event": list(self.event), "noise": self.scaler.noise}
        config = {"kind": KIND, "family": self.family, "shape": self.shape, "problem": asdict(self.problem), "scaler": scaler,
                  "conditions": asdict(self.conditions), "backward": self.backward,
                  "dtype": str(self.scaler.shift.dtype).removeprefix("torch."), "training": self.training}  # fmt: skip
        store.write_folder(FilePath(folder), {**tensors, **self.scaler.tensors()}, config)

    @classmethod
    def load(cls, folder: str | FilePath, *, device: str | torch.device = "cpu") -> "TransportModel":
        """Read a saved model.

        Raises:
            InputError: if the folder is missing, half-written, damaged, changed, of an unknown version, or holds another kind of model.
        """
        config, tensors = store.read_folder("folder", FilePath(folder))
        require(config.get("kind") == KIND, "folder", expected=f"a {KIND} model", got=config.get("kind"), cure="name another folder")
        model = cls(**rebuilt(config, {name: tensor.to(device) for name, tensor in tensors.items()}))
        sound(model)
        return model

    def _rows(self, name: str, x: Any) -> Tensor:
        rows = checks.samples(name, x, event=self.event, least=1)
        checks.same_dtype("the model", self.scaler.shift, name, rows)
        return rows

    def _in(self, x: Tensor) -> Tensor:
        return self.scaler.target(x) if self.backward else self.scaler.source(x)

    def _out(self, z: Tensor) -> Tensor:
        return self.scaler.start(z) if self.backward else self.scaler.data(z)

    def _acting(self, guidance: Guidance, n: int, rows: slice = slice(None)) -> Guided:
        """The value for n rows under a label and a weight; `rows` of them."""
        weight, like = checks.real("guidance", guidance.weight), self.scaler.shift
        require(weight == 1 or (self.conditions.known and guidance.label is not None), "guidance",
                expected="1 without a label, as there is nothing to exaggerate", got=f"{weight:g}",
                cure="pass a label" if self.conditions.known else "train with labels")  # fmt: skip
        c = self.conditions.null(n, like) if guidance.label is None else self.conditions.encode("label", guidance.label, n, like)
        value = Reversed(self.value_function) if self.backward else self.value_function
        return Guided(value, None if c is None else c[rows], weight)

    def _batches(self, x0: Any, steps: Steps, rule: str, seed: int, budget: int, keep: bool, guidance: Guidance,
                 on_step: StepCallback | None = None) -> Iterator[tuple[list[Tensor], list[Tensor]]]:  # fmt: skip
        checks.function("on_step", on_step, "a Moment")
        times, budget, seed = _times(steps), checks.count("budget", budget), checks.count("seed", seed, least=0)
        rule = checks.choice("rule", rule, RULES)
        rows = None if isinstance(x0, int) else self._rows("x0", x0)
        drawn = self.scaler.noise and not self.backward
        require(rows is not None or drawn, "x0", expected="source samples, as this model moves data to data", got=f"a count ({x0})",
                cure="pass an array of source rows")  # fmt: skip
        n = checks.count("x0", x0) if rows is None else len(rows)
        require_memory("x0", n * prod(self.event) * self.scaler.shift.itemsize, "draw fewer samples at a time, with other seeds",
                       device=self.scaler.shift.device)  # fmt: skip
        known = self._acting(guidance, n).endpoint_law and on_step is None
        require(known or rule != "endpoint", "rule", expected="explicit or proximal without a law of the end (networks, guidance, "
                "callbacks, the way back)", got=rule, cure="use rule='auto'")  # fmt: skip
        rule = ("endpoint" if known else "explicit") if rule == "auto" else rule
        per_row = self.scaler.size * (self.shape.get("components", 0) * 6 + self.shape.get("width", 0) * 4 // max(self.scaler.size, 1) + 8)
        size = max(1, budget // per_row // BLOCK) * BLOCK
        box = None if self.backward and self.scaler.noise else self.scaler.bounds
        for first in range(0, n, size):
            block = slice(first, min(first + size, n))
            noise = SampleNoise(seed, first=first, n=block.stop - first, like=self.scaler.shift)
            x = noise.normal(self.scaler.size) if rows is None else self._in(rows[block])

            def ask(h: int, t: float, z: Tensor, block: slice = block) -> Guided | None:
                found = on_step and on_step(Moment(h, t, self._out(z), block.start))
                return None if found is None else self._acting(found, n, block)

            actions, states = [], [x]
            for a, z in simulate(self._acting(guidance, n, block), x, times=times, sigma=self.sigma, rule=rule, noise=noise, box=box,
                                 on_step=ask if on_step else None):  # fmt: skip
                actions = [*actions, a] if keep else []
                states = [*states, z] if keep else [z]
            yield actions, states


def _times(steps: Steps) -> list[float]:
    """The grid of times that a number of steps stands for, or a given one."""
    if not isinstance(steps, Sequence):
        count = checks.count("steps", steps)
        return [h / count for h in range(count + 1)]
    times = [checks.real("steps", t) for t in steps]
    rising = len(times) > 1 and times[0] == 0 and times[-1] == 1 and all(a < b for a, b in pairwise(times))
    require(rising, "steps", expected="a number, or times that rise from 0 to 1", got=f"{times[:8]}", cure="pass e.g. [0, 0.1, 0.5, 1]")
    return times


def certificate(model: TransportModel, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], *, label: Any = None,
                steps: int = 4, rule: str = "auto") -> Certificate:  # fmt: skip
    """Bracket W2^2 / 2 of the samples x and y by the model's prices (below) and its policy (above).

    Both bounds are proven for any model, held-out rows or not. Units: those of the data; of model space if the source is the
    standard normal, where x is a sample of it. With sigma > 0 the policy is not the optimal transport and the gap does not close.
    With a label, y are rows of that label, and so are x if the source has labels.

    Raises:
        InputError: if x, y or the label is unusable.
    """
    x, y = model._rows("x", x), model._rows("y", y)
    states = torch.cat([states[-1] for _, states in model._batches(x, steps, rule, 0, BUDGET, False, Guidance(label))])
    model_y = model.scaler.source(y) if model.backward else model.scaler.target(y)
    with torch.no_grad():
        inside = bracket(model._in(x), states, model_y, model._acting(Guidance(label), len(y)).price(model_y))
    unit = model.scaler.cost_scale
    return Certificate(lower=unit * inside.lower, upper=unit * inside.upper, n=inside.n, m=inside.m)
