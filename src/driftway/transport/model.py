"""A trained transport: sample, follow paths, read values, certify, save, load."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftway import checks, store
from driftway.checks import require
from driftway.transport.dual import Certificate, bracket
from driftway.transport.metrics import Path
from driftway.transport.mixture import MixtureValue
from driftway.transport.policy import BLOCK, SampleNoise, simulate
from driftway.transport.problem import Problem
from driftway.transport.scaler import Scaler
from driftway.transport.value import EndpointLaw, NetworkValue, Value

KIND = "driftway.transport"


@dataclass(frozen=True)
class TransportModel:
    """A value with the problem it solves and the standardisation it was trained under.

    Attributes:
        value_function: the value, in model space.
        problem: horizon, noise and entropy, in the units of the data.
        scaler: the map between data and model space.
        family: "network" or "mixture".
        shape: what the value was built with.
        training: facts of the run that made it (steps, seconds, seed, final certificate); free text for people.
    """

    value_function: Value
    problem: Problem
    scaler: Scaler
    family: str
    shape: dict[str, int]
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.scaler.event

    @property
    def sigma(self) -> float:
        """The noise level in model space."""
        return self.problem.sigma / self.scaler.cost_scale**0.5

    def sample(self, x0: int | Float[Tensor, "n *event"], *, steps: int = 4, rule: str = "auto", seed: int = 0,
               budget: int = 2**24) -> Float[Tensor, "n *event"]:  # fmt: skip
        """Move samples from the source to the target.

        Args:
            x0: source samples (n, *event), or how many standard normal ones to draw if the source is the standard normal.
            steps: policy steps, at least 1.
            rule: "explicit", "proximal", "endpoint" (mixtures), or "auto": endpoint where the law of the end is known.
            seed: of the start and the noise. Row i depends on the seed and i alone, not on the batch, up to rounding.
            budget: the most floating-point numbers held at once, about; it bounds memory.

        Returns:
            Samples (n, *event), in the units, dtype and device of the training data.

        Raises:
            InputError: if an argument is unusable.
        """
        return torch.cat([self.scaler.data(states[-1]) for _, states in self._batches(x0, steps, rule, seed, budget, False)])

    def path(self, x0: int | Float[Tensor, "n *event"], *, steps: int = 20, rule: str = "auto", seed: int = 0) -> Path:
        """Like `sample`, keeping every state and action, in the units of the data. Raises InputError as `sample` does."""
        parts = [(torch.stack(actions), torch.stack(states)) for actions, states in self._batches(x0, steps, rule, seed, 2**24, True)]
        a, z = torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)
        scaler, t = self.scaler, torch.tensor([h / steps for h in range(steps + 1)], dtype=torch.float64, device=z.device)
        if not scaler.noise and scaler.constant.any():  # on the straight line to the constant
            a[..., scaler.constant] = -z[0][..., scaler.constant]
            z[..., scaler.constant] *= (1 - t).to(z)[:, None, None]
        actions, states = (part.new_zeros(*part.shape[:2], len(scaler.shift)) for part in (a, z))
        actions[..., scaler.active], states[..., scaler.active] = a, z
        states, actions = states * scaler.scale + scaler.shift, actions * scaler.scale
        return Path(t, states.reshape(*z.shape[:2], *self.event), actions.reshape(*a.shape[:2], *self.event))

    def value(self, x: Float[Tensor, "n *event"], t: float) -> Float[Tensor, " n"]:
        """V_t(x) for x in the units of the data: cost in data units, or in model space if the source is the standard normal.

        Raises:
            InputError: if x is unusable or t is not in [0, 1].
        """
        x = self._rows("x", x)
        t = checks.real("t", t, least=0)
        require(t <= 1, "t", expected="a time in [0, 1]", got=t, cure="0 is the source, 1 the target")
        with torch.no_grad():
            z = self.scaler.target(x)
            return self.scaler.cost_scale * self.value_function.value(z, z.new_full((len(z),), t))

    def price(self, y: Float[Tensor, "m *event"]) -> Float[Tensor, " m"]:
        """g(y), the terminal price, in the units of `value`.

        Raises:
            InputError: if y is unusable.
        """
        with torch.no_grad():
            return self.scaler.cost_scale * self.value_function.price(self.scaler.target(self._rows("y", y)))

    def save(self, folder: str | FilePath) -> None:
        """Write config.json and model.safetensors, atomically."""
        tensors = {f"value.{name}": tensor for name, tensor in self.value_function.state_dict().items()}
        scaler = {"event": list(self.event), "noise": self.scaler.noise}
        config = {"kind": KIND, "family": self.family, "shape": self.shape, "problem": asdict(self.problem), "scaler": scaler,
                  "dtype": str(self.scaler.shift.dtype).removeprefix("torch."), "training": self.training}  # fmt: skip
        store.write_folder(FilePath(folder), {**tensors, **self.scaler.tensors()}, config)

    @classmethod
    def load(cls, folder: str | FilePath, *, device: str | torch.device = "cpu") -> "TransportModel":
        """Read a saved model.

        Raises:
            InputError: if the folder is missing, half-written, damaged, of an unknown version, or holds another kind of model.
        """
        config, tensors = store.read_folder("folder", FilePath(folder))
        require(config.get("kind") == KIND, "folder", expected=f"a {KIND} model", got=config.get("kind"), cure="name another folder")
        scaler = Scaler.of({name: tensor.to(device) for name, tensor in tensors.items()}, config["scaler"])
        value = build_value(config["family"], scaler, config["shape"])
        value.load_state_dict({n.removeprefix("value."): z for n, z in tensors.items() if n.startswith("value.")})
        problem = Problem(**config["problem"])
        return cls(value.requires_grad_(False), problem, scaler, config["family"], config["shape"], config["training"])

    def _rows(self, name: str, x: Any) -> Tensor:
        rows = checks.samples(name, x, event=self.event, least=1)
        checks.same_dtype("the model", self.scaler.shift, name, rows)
        return rows

    def _batches(self, x0: Any, steps: int, rule: str, seed: int, budget: int, keep: bool) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        steps, budget, seed = checks.count("steps", steps), checks.count("budget", budget), checks.count("seed", seed, least=0)
        rule = checks.choice("rule", rule, ("auto", "explicit", "proximal", "endpoint"))
        known = isinstance(self.value_function, EndpointLaw)
        require(known or rule != "endpoint", "rule", expected="explicit or proximal for a network", got=rule, cure="use rule='auto'")
        rule = ("endpoint" if known else "explicit") if rule == "auto" else rule
        rows = None if isinstance(x0, int) else self._rows("x0", x0)
        require(rows is not None or self.scaler.noise, "x0", expected="source samples, as this model moves data to data",
                got=f"a count ({x0})", cure="pass an array of source rows")  # fmt: skip
        n = checks.count("x0", x0) if rows is None else len(rows)
        per_row = self.scaler.size * (self.shape.get("components", 0) * 6 + self.shape.get("width", 0) * 4 // max(self.scaler.size, 1) + 8)
        size = max(1, budget // per_row // BLOCK) * BLOCK
        times = [h / steps for h in range(steps + 1)]
        for first in range(0, n, size):
            count = min(size, n - first)
            noise = SampleNoise(seed, first=first, n=count, like=self.scaler.shift)
            x = noise.normal(self.scaler.size) if rows is None else self.scaler.source(rows[first : first + count])
            actions, states = [], [x]
            for a, z in simulate(self.value_function, x, times=times, sigma=self.sigma, rule=rule, noise=noise):
                actions = [*actions, a] if keep else []
                states = [*states, z] if keep else [z]
            yield actions, states


def build_value(family: str, scaler: Scaler, shape: dict[str, int]) -> Value:
    """An untrained value of a family, for the model space of a scaler."""
    kind = {"network": NetworkValue, "mixture": MixtureValue}[family]
    with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global stream
        return kind((scaler.size,), **shape).to(scaler.shift)


def certificate(model: TransportModel, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], *, steps: int = 4,
                rule: str = "auto") -> Certificate:  # fmt: skip
    """Bracket W2^2 / 2 of the samples x and y by the model's prices (below) and its policy (above).

    Both bounds are proven for any model, held-out rows or not. Units: those of the data; of model space if the source is the
    standard normal, where x is a sample of it. With sigma > 0 the policy is not the optimal transport and the gap does not close.

    Raises:
        InputError: if x or y is unusable.
    """
    x, y = model._rows("x", x), model._rows("y", y)
    states = torch.cat([states[-1] for _, states in model._batches(x, steps, rule, 0, 2**24, False)])
    model_y = model.scaler.target(y)
    with torch.no_grad():
        inside = bracket(model.scaler.source(x), states, model_y, model.value_function.price(model_y))
    unit = model.scaler.cost_scale
    return Certificate(lower=unit * inside.lower, upper=unit * inside.upper, n=inside.n, m=inside.m)
