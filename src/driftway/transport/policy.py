"""Acting on a value: step rules, noise that belongs to the sample, and the simulation of paths.

    explicit   a = -grad V_t(x)
    proximal   a = (y - x)/dt,  y = argmin_y |y - x|^2 / 2dt + V_{t+dt}(y)        a few damped gradient steps; sturdier for few steps
    endpoint   a = (y - x)/(1-t), y drawn once from the law of X_1 given x_0      exact for every number of steps; needs `EndpointLaw`

    x_{t+dt} = x + dt a + sigma sqrt(dt) xi                              explicit, proximal
    x_{t+dt} = x + dt a + sigma sqrt(dt (1-t-dt)/(1-t)) xi               endpoint: the Brownian bridge to y

An action aims at the end x + (1-t) a. Where a box that holds the data is known, an end outside is moved to its nearest point in the
box. Each step goes a part dt/(1-t) <= 1 of the way to the end, so states stay between the start and the box: without noise no
path can diverge, whatever the value and the number of steps.

Equation (T23): docs/derivations/transport.md.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.transport.stream import generator
from driftway.transport.value import EndpointLaw, Value

BLOCK = 256
States = Float[Tensor, "n *event"]
Box = tuple[Tensor, Tensor]
Rule = Callable[[Value, Tensor, float, float], Tensor]


class SampleNoise:
    """Variates for rows first, ..., first + n - 1, each a function of the seed and of its own row number alone.

    Rows are drawn in blocks of 256 from one generator per block, on the CPU in float64, whatever the batch size and device.

    Args:
        seed: any whole number.
        first: row number of the first row; a multiple of 256.
        n: number of rows.
        like: tensor whose dtype and device the variates take.
    """

    def __init__(self, seed: int, *, first: int, n: int, like: Tensor) -> None:
        self.n, self.like = n, like
        blocks = range(first // BLOCK, -(-(first + n) // BLOCK))
        self.generators = [generator(seed, block) for block in blocks]

    def normal(self, *event: int) -> Float[Tensor, "n *event"]:
        """Standard normal variates (n, *event)."""
        return self._draw(torch.randn, event)

    def uniform(self) -> Float[Tensor, " n"]:
        """Uniform variates on [0, 1)."""
        return self._draw(torch.rand, ())

    def _draw(self, kind: Callable[..., Tensor], event: tuple[int, ...]) -> Tensor:
        rows = [kind(BLOCK, *event, generator=own, dtype=torch.float64) for own in self.generators]
        return torch.cat(rows)[: self.n].to(self.like)



def explicit(value: Value, x: States, t: float, dt: float) -> States:
    """The action of one gradient of the value: a = -grad V_t(x)."""
    del dt
    return -value.gradient(x, x.new_full((len(x),), t))


def proximal(value: Value, x: States, t: float, dt: float, *, iterations: int = 5) -> States:
    """The action whose end minimises F(y) = |y - x|^2 / 2dt + V_{t+dt}(y).

    Gradient descent on F with a step size per row that shrinks where F would rise, from the better of x and the explicit step: no
    curvature of V makes it diverge.
    """
    later = x.new_full((len(x),), t + dt)

    def objective(y: Tensor) -> Tensor:
        return (y - x).flatten(1).square().sum(1) / (2 * dt) + value.value(y, later)

    def better(y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        f, h = objective(y), objective(z)
        down = h <= f
        return down, torch.where(down.reshape(-1, *[1] * (x.ndim - 1)), z, y)

    _, y = better(x, x + dt * explicit(value, x, t, dt))
    size = x.new_full((len(x), *[1] * (x.ndim - 1)), dt / 2)
    for _ in range(iterations):
        down, y = better(y, y - size * ((y - x) / dt + value.gradient(y, later)))
        size = torch.where(down.reshape(size.shape), size, size / 4)
    return (y - x) / dt


RULES: dict[str, Rule] = {"explicit": explicit, "proximal": proximal}


def simulate(value: Value, x: States, *, times: Sequence[float], sigma: float, rule: str, noise: SampleNoise, box: Box | None = None,
             on_step: Callable[[int, float, Tensor], Value | None] | None = None) -> Iterator[tuple[States, States]]:  # fmt: skip
    """Act from times[0] to times[-1]; yields (action, next state) of each step.

    Args:
        value: the value acted on.
        x: states at times[0].
        times: increasing, in [0, 1].
        sigma: noise level of the problem.
        rule: "explicit", "proximal" or "endpoint".
        noise: the rows' own variates.
        box: lower and upper corner, broadcast to a row, of where ends may lie.
        on_step: told the number, the time and the states of each step; gives the value to act on from there, or None.
    """
    event = x.shape[1:]
    end = None
    if rule == "endpoint" and isinstance(value, EndpointLaw):
        start = x.new_full((len(x),), times[0])
        with torch.no_grad():
            end = value.endpoint(x, start, uniform=noise.uniform(), normal=noise.normal(*event))
    for h, (t, later) in enumerate(pairwise(times)):
        dt = later - t
        value = (on_step and on_step(h, t, x)) or value
        with torch.no_grad():  # around each step and never around a yield
            a = RULES[rule](value, x, t, dt) if end is None else (end - x) / (1 - t)
            if end is None and box is not None:
                a = ((x + (1 - t) * a).clamp(*box) - x) / (1 - t)
            x = x + dt * a
        if sigma > 0:
            spread = dt if end is None else dt * (1 - later) / (1 - t)
            x = x + sigma * spread**0.5 * noise.normal(*event)
        yield a, x
