"""Schrödinger bridges (sigma > 0): samples of X_t at any time, and checks that need no likelihood and no known answer.

A law of paths is the Schrödinger bridge of its own two ends if and only if it is Markov and reciprocal, that is, a mixture of
Brownian bridges (Léonard, Roelly and Zambrini, 2014, arXiv 1308.0576). With a policy the first holds by construction, and

    R_t = (X_t - (1-t) X_0 - t X_1) / (sigma sqrt(t (1-t)))  ~  N(0, I),  independent of (X_0, X_1)           reciprocal
    W_0(X_0) - W_T(X_T) = int_0^T |grad W|^2 / 2 dt - M_T,   M_T = int_0^T grad W.(dX + grad W dt)             value and policy

are left to check, beside the law of the end. The first by the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, which is -w.D.w for
the matrix D of distances and weights w = 1/n and -1/m (Székely and Rizzo, 2013): (X_0, R_t, X_1) and (X_0, fresh normal, X_1) are
exchangeable row by row, so swapping them within rows gives an exact p-value; so does reshuffling ends and target rows. The second is
Itô's formula with the Hamilton-Jacobi equation; M_T has mean zero. W is the Gaussian-kernel value of `problem`: mixtures, and
residual values on top of one, store it; networks V_t = W_t - (eps d/2) log(1-t) + const.

Equations (T21), (T22): docs/derivations/transport.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.transport.guidance import Guidance
from driftway.transport.metrics import w2
from driftway.transport.model import TransportModel
from driftway.transport.residual import ResidualValue
from driftway.transport.stream import generator
from driftway.transport.value import EndpointLaw

QUARTERS = (0.25, 0.5, 0.75)
ERRORS = 4.0  # standard errors that a mean may be away
SLACK = 0.02  # of the action: its error over a hundred steps


@dataclass(frozen=True)
class EndCheck:
    """The law of the end against held-out target rows.

    Attributes:
        w2: W2 of the ends to target rows.
        floor: W2 of target rows to as many other target rows: what a perfect model scores.
        p: probability of an energy distance this large if the two laws are one.
    """

    w2: float
    floor: float
    p: float


@dataclass(frozen=True)
class ReciprocalCheck:
    """The state at one time against Brownian bridges pinned at the same ends.

    Attributes:
        t: the time.
        spread: mean square of R_t; 1 for a perfect bridge.
        spread_error: standard error of `spread`.
        energy: energy distance of (X_0, R_t, X_1) to pinned Brownian bridges.
        floor: its mean over swapped rows: what a perfect bridge scores.
        p: probability of a distance this large for a perfect bridge.
    """

    t: float
    spread: float
    spread_error: float
    energy: float
    floor: float
    p: float


@dataclass(frozen=True)
class BridgeChecks:
    """What `check_bridge` found; every number stands beside the one that a perfect bridge would give.

    Attributes:
        end: the law of the end.
        reciprocal: the state at t = 1/4, 1/2 and 3/4.
        action: E int |grad V|^2 / 2 dt up to t = 3/4 along the paths, in model space.
        fall: of the value along the same paths, which equals it for a perfect bridge.
        fall_error: standard error of the difference of the two.
        n: paths.
        steps: policy steps.
    """

    end: EndCheck
    reciprocal: tuple[ReciprocalCheck, ...]
    action: float
    fall: float
    fall_error: float
    n: int
    steps: int

    def failures(self, *, level: float = 0.01) -> tuple[str, ...]:
        """The checks that a perfect bridge would hardly fail: "end", "reciprocal at t = ..." and "value"; `level` is for all p-values."""
        share = level / (1 + len(self.reciprocal))
        failed = ["end"] if self.end.p < share else []
        for found in self.reciprocal:
            if found.p < share or abs(found.spread - 1) > ERRORS * found.spread_error:
                failed.append(f"reciprocal at t = {found.t:g}")
        return (*failed, *["value"] * (abs(self.action - self.fall) > ERRORS * self.fall_error + SLACK * self.action))


def marginal(model: TransportModel, x: int | Float[Tensor, "n *event"], t: float | int, *, steps: int | None = None, label: Any = None,
             rule: str = "auto", seed: int = 0) -> Float[Tensor, "n *event"]:  # fmt: skip
    """Samples of X_t, in the units of the data: one per source row, or as many standard normal starts as x says.

    Exact where the law of the end is known (rule "endpoint", which "auto" picks for mixtures): the end is drawn, then the Brownian bridge
    to it. Else the policy is simulated up to t, the last step shortened; where t is one of its times, these are the states of
    `TransportModel.path` with the same steps, rule and seed. As there, a standard normal start is shown in the units of the target.

    Args:
        model: the model.
        x: source rows (n, *event), or a number of standard normal ones, as for `TransportModel.sample`.
        t: a time in [0, 1].
        steps: policy steps from 0 to 1; by default the problem's horizon.
        label: as for `TransportModel.sample`.
        rule: as for `TransportModel.sample`.
        seed: of the start and the noise.

    Raises:
        InputError: if an argument is unusable.
    """
    t = checks.real("t", t, least=0)
    require(t <= 1, "t", expected="a time in [0, 1]", got=t, cure="0 is the source, 1 the target")
    steps = model.problem.horizon if steps is None else checks.count("steps", steps)
    exact = rule in ("auto", "endpoint") and isinstance(model.value_function, EndpointLaw)
    inner = [] if exact else [h / steps for h in range(1, steps) if h / steps < t - 1e-9]
    times = sorted({0.0, *inner, t, 1.0})
    return model.path(x, steps=times, label=label, rule=rule, seed=seed).states[times.index(t)]


def check_bridge(model: TransportModel, x: int | Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], *, steps: int = 100,
                 label: Any = None, rule: str = "auto", seed: int = 0, permutations: int = 499,
                 most: int = 1000) -> BridgeChecks:  # fmt: skip
    """Check a model with sigma > 0 on held-out rows: is it the Schrödinger bridge from the source to the target?

    How to read it. `end` asks whether paths end in the target law; a wrong drift or a wrong noise level fails it: w2 stands above its
    floor and p is small. `reciprocal` asks whether, between its ends, a path is a Brownian bridge of the model's noise; if that holds,
    a Markov process is the optimal one between its ends. `spread` is 1 then; below 1 paths are pulled together in the middle, above 1
    they scatter. `action` and `fall` agree if V is the value of its own policy, its changes over time included. Sampling uses the
    gradient alone: if only "value" fails, it is the level of V that is off. Many rows find small faults: a network that serves its
    purpose may still be told from a perfect bridge, so read the numbers beside `failures()`.

    A policy of few steps ends in a law blurred by its last noise, and the checks find that too. The rule "endpoint", which "auto" picks
    for mixtures, is a mixture of Brownian bridges by construction: pass rule="explicit" to check the policy of a mixture.

    Args:
        model: a model with sigma > 0.
        x: held-out source rows, or a number of standard normal ones.
        y: held-out target rows, at least 4; of the label, if one is given.
        steps: policy steps, at least 4.
        label: one label for all paths, or None.
        rule: as for `TransportModel.sample`.
        seed: of everything random.
        permutations: of each p-value, which is at least 1 / (permutations + 1).
        most: rows of each side used at most; the work grows with its square.

    Raises:
        InputError: if sigma is 0 or an argument is unusable.
    """
    require(model.problem.sigma > 0, "model", expected="a Schrödinger bridge, sigma > 0", got="sigma = 0",
            cure="use `certificate` for optimal transport")  # fmt: skip
    steps, permutations = checks.count("steps", steps, least=4), checks.count("permutations", permutations, least=19)
    most, own = checks.count("most", most, least=4), generator(seed, "checks")
    y = _some(checks.samples("y", y, event=model.event, least=4), most, own)
    starts = min(x, most) if isinstance(x, int) else _some(checks.samples("x", x, event=model.event), most, own)
    path = model.path(starts, steps=steps, label=label, rule=rule, seed=seed)
    states, scaler, times = path.states.flatten(2), model.scaler, path.t.tolist()
    noise = (model.sigma * scaler.scale.double()).expand(states.shape[2])[~scaler.constant]
    x0, *inner, x1 = (states[round(q * steps)][:, ~scaler.constant].double() for q in (0, *QUARTERS, 1))
    at = [times[round(q * steps)] for q in QUARTERS]
    found = tuple(_reciprocal(t, x0, x_t, x1, noise, permutations, own) for t, x_t in zip(at, inner, strict=True))
    last = round(QUARTERS[-1] * steps)
    z = scaler.target(states[: last + 1].flatten(0, 1)).reshape(last + 1, states.shape[1], -1)
    action, fall = _actions(model, z, times, label)
    error = float((action - fall).std()) / len(fall) ** 0.5
    return BridgeChecks(end=_end(path.states[-1], y, permutations, own), reciprocal=found, action=float(action.mean()),
                        fall=float(fall.mean()), fall_error=error, n=states.shape[1], steps=steps)  # fmt: skip


def energy_test(z: Float[Tensor, "N d"], signs: Float[Tensor, "P N"]) -> tuple[float, float, float]:
    """Energy distance of the two samples of z that the first row of signs weighs, its mean over the other rows, and the p-value.

    Each row of signs has the weights 1/n on one sample and -1/m on the other; rows after the first are equally likely relabellings.
    """
    distances = torch.cdist(z, z)
    found = -((signs @ distances) * signs).sum(1)
    as_large = int((found[1:] >= found[0] - 1e-9 * found[0].abs()).sum())
    return float(found[0]), float(found[1:].mean()), (1 + as_large) / len(found)


def _end(ends: Tensor, y: Tensor, permutations: int, own: torch.Generator) -> EndCheck:
    """W2 and floor on halves of y, and the energy test on all rows."""
    k = min(len(ends), len(y) // 2)
    first, second = y[:k], y[k : 2 * k]
    z = torch.cat([ends, y]).flatten(1).double()
    weights = torch.cat([z.new_full((len(ends),), 1 / len(ends)), z.new_full((len(y),), -1 / len(y))])
    orders = torch.rand(permutations, len(z), generator=own, dtype=torch.float64).argsort(1).to(z.device)
    _, _, p = energy_test(z, torch.cat([weights[None], weights[orders]]))
    return EndCheck(w2=(w2(ends[:k], first) + w2(ends[:k], second)) / 2, floor=w2(second, first), p=p)


def _reciprocal(t: float, x: Tensor, x_t: Tensor, y: Tensor, noise: Float[Tensor, " d"], permutations: int,
                own: torch.Generator) -> ReciprocalCheck:  # fmt: skip
    """The check at one time; `noise` is sigma of each column."""
    R = (x_t - (1 - t) * x - t * y) / (noise * math.sqrt(t * (1 - t)))
    pinned = torch.randn(R.shape, generator=own, dtype=torch.float64).to(R)
    ends = [(z - z.mean(0)) / z.std(0).clamp_min(1e-12) for z in (x, y)]
    z = torch.cat([torch.cat([ends[0], part, ends[1]], 1) for part in (R, pinned)])
    swaps = 1 - 2 * torch.randint(2, (permutations + 1, len(x)), generator=own).to(z)
    swaps[0] = 1
    energy, floor, p = energy_test(z, torch.cat([swaps, -swaps], 1) / len(x))
    squares = R.square().mean(1)
    return ReciprocalCheck(t=t, spread=float(squares.mean()), spread_error=float(squares.std()) / len(x) ** 0.5, energy=energy,
                           floor=floor, p=p)  # fmt: skip


@torch.no_grad()
def _actions(model: TransportModel, z: Tensor, times: Sequence[float], label: Any) -> tuple[Tensor, Tensor]:
    """Per path, in model space: int_0^T |grad W|^2 / 2 dt, and W_0 - W_T + M_T, T the time of the last state."""
    n, T, dt = z.shape[1], times[len(z) - 1], times[1]
    value, at = model._acting(Guidance(label), n), [z.new_full((n,), t) for t in times[: len(z)]]
    slopes = torch.stack([value.gradient(x, t) for x, t in zip(z[:-1], at[:-1], strict=True)])
    martingale = (slopes * (z.diff(dim=0) + dt * slopes)).sum((0, 2))
    whole = value.endpoint_law or isinstance(model.value_function, ResidualValue)
    kernel = 0.0 if whole else model.sigma**2 * z.shape[2] / 2 * math.log(1 - T)
    fall = value.value(z[0], at[0]) - value.value(z[-1], at[-1]) - kernel + martingale
    return (dt * slopes.square().sum((0, 2)) / 2).double(), fall.double()


def _some(rows: Tensor, most: int, own: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=own)[:most].to(rows.device)]
