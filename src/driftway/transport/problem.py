"""The control problem, its dual, and the values that are known in closed form.

Move a law nu_src to a law nu_tgt in H stages, at times t_h = h/H. At the state x an action a, a velocity, gives

    x_{h+1} = x_h + a_h/H + sigma sqrt(1/H) xi_h        xi_h ~ N(0, I)        x_0 ~ nu_src,  x_H ~ nu_tgt

for the cost sum_h E|a_h|^2/(2H). With sigma = 0 this is optimal transport for the quadratic cost. With sigma > 0 a stage
picks a whole transition law q(.|x) and pays sigma^2 KL(q || N(x, sigma^2/H)), which is |a|^2/(2H) for the shift above:
so read, the problem is the Schrödinger bridge for every H. Shifts alone end in a law blurred by the last noise and reach
the bridge only in the limit of large H. The dual variables are values: maximise E_src V_0 - E_tgt V_H subject to the
Bellman inequality V_h(x) <= cost of the stage + E V_{h+1}(x_{h+1}) for all x, h and a (or q), tight at the optimal
a = -grad V_h(x) (or q, of mean x + a/H). The stages chain: with prices g_j of the candidate ends y_j and t in [0, 1),

    sigma = 0:   V_t(x) = min_j C(x, y_j)/(1-t) + g_j                                      (Hopf-Lax)   C(x, y) = |x - y|^2/2
    eps > 0:     V_t(x) = -eps log sum_j m_j exp(-(C(x, y_j)/(1-t) + g_j)/eps)             (Cole-Hopf)
                 p_t(y_j|x) = m_j exp((V_t(x) - C(x, y_j)/(1-t) - g_j)/eps)                (law of the end)
    both:        grad V_t(x) = (x - E[y|x])/(1-t)

eps = sigma^2 when sigma > 0; with sigma = 0, eps > 0 smooths the minimum. Two conventions fix the additive constants:
- m_j are the masses as given, 1/m each unless said otherwise, so V_0 is the soft c-transform inside the semi-dual
  J_eps(g) = E_src V_0 - E_tgt g, whose gradient in g_j is E_src p_0(y_j|x) - m_j;
- the kernel is exp(-C/((1-t) eps)), without its normaliser. The Gaussian-kernel value, which solves the Bellman equation
  between any two times, is W_t = V_t + (eps d/2) log(2 pi eps (1-t)), d the dimension; the gradients are the same.

Sources: Moreno-Muñoz, Müller and Neu (2026), arXiv 2605.22507; Léonard (2014), arXiv 1308.0215, for the bridge.

Equation (T1): docs/derivations/transport.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import InputError, count, real, require, same_dtype

States = Float[Tensor, "n *event"]
Ends = Float[Tensor, "m *event"]
Prices = Float[Tensor, " m"]
Values = Float[Tensor, " n"]
Matrix = Float[Tensor, "n m"]
Time = float | Float[Tensor, " n"]


@dataclass(frozen=True)
class Problem:
    """Horizon H, noise sigma and entropy eps of a control problem.

    Args:
        horizon: the number of stages H, at least 1.
        sigma: the noise level, at least 0.
        eps: the entropy of the primal step, above 0. None is sigma^2, or with sigma = 0 a choice left to the fit.

    Raises:
        InputError: if one is out of range, or sigma > 0 and eps is not sigma^2.
    """

    horizon: int = 20
    sigma: float = 0.0
    eps: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizon", count("horizon", self.horizon))
        object.__setattr__(self, "sigma", real("sigma", self.sigma, least=0.0))
        if self.eps is not None:
            object.__setattr__(self, "eps", real("eps", self.eps, least=0.0, strict=True))
            require(self.sigma == 0 or math.isclose(self.eps, self.sigma**2, rel_tol=1e-6), "eps", got=f"{self.eps:g}",
                    expected=f"sigma^2 = {self.sigma**2:g}", cure="leave eps out when sigma > 0")  # fmt: skip

    @property
    def entropy(self) -> float | None:
        """The entropy of the primal step: sigma^2 when sigma > 0, else eps; None where the fit shall choose it."""
        return self.sigma**2 if self.sigma > 0 else self.eps

    @property
    def times(self) -> tuple[float, ...]:
        """The H + 1 stage times h/H, from 0 at the source to 1 at the target."""
        return tuple(h / self.horizon for h in range(self.horizon + 1))

    def step_cost(self, a: States) -> Values:
        """The cost |a|^2/(2H) of one stage, per row."""
        return a.flatten(1).square().sum(1) / (2 * self.horizon)


def cost(x: States, y: Ends) -> Matrix:
    """C_ij = |x_i - y_j|^2/2 over flattened events, in one matrix product, centred on y and never below zero.

    Raises:
        InputError: if the event shapes, dtypes or devices of x and y differ.
    """
    same_dtype("x", x, "y", y)
    require(x.shape[1:] == y.shape[1:], "y", expected=f"rows of shape {tuple(x.shape[1:])}, as x has",
            got=f"{tuple(y.shape[1:])}", cure="give both the same columns")  # fmt: skip
    centre = y.detach().flatten(1).mean(0)
    x, y = x.flatten(1) - centre, y.flatten(1) - centre
    return torch.addmm(x.square().sum(1)[:, None] / 2 + y.square().sum(1) / 2, x, y.T, alpha=-1).clamp_min(0)


def _left(t: Time) -> float | Float[Tensor, "n 1"]:
    """The time left, 1 - t, to divide rows by."""
    many = isinstance(t, Tensor)
    if not (((t >= 0) & (t < 1)).all() if many else 0 <= t < 1):
        raise InputError("t", expected="times in [0, 1)", got=f"{t.min():g} to {t.max():g}" if many else f"{t}",
                         cure="at t = 1 use the terminal prices g themselves")  # fmt: skip
    return (1 - t)[:, None] if many else 1 - t


def _logits(x: States, left: float | Tensor, y: Ends, g: Prices, eps: float, log_mass: Prices | None) -> Matrix:
    """log m_j - (C_ij/(1-t) + g_j)/eps."""
    log_m = -math.log(len(y)) if log_mass is None else log_mass
    return log_m - (cost(x, y) / left + g) / real("eps", eps, least=0.0, strict=True)


def hopf_lax(x: States, t: Time, y: Ends, g: Prices) -> Values:
    """V_t(x) = min_j C(x, y_j)/(1-t) + g_j. t is one time for all rows, or one per row.

    Raises:
        InputError: if a time is outside [0, 1), or x and y differ in event shape, dtype or device.
    """
    return (cost(x, y) / _left(t) + g).amin(1)


def hopf_lax_gradient(x: States, t: Time, y: Ends, g: Prices) -> States:
    """grad V_t(x) = (x - y_j)/(1-t) at the minimising j, the first one of a tie (a kink of V_t). Errors as `hopf_lax`."""
    left = _left(t)
    end = y[(cost(x, y) / left + g).argmin(1)]
    return ((x - end).flatten(1) / left).reshape(x.shape)


def end_law(x: States, t: Time, y: Ends, g: Prices, *, eps: float, log_mass: Prices | None = None) -> Matrix:
    """p_t(y_j|x): the probability of each end y_j from x at time t. Arguments and errors as `cole_hopf`."""
    return _logits(x, _left(t), y, g, eps, log_mass).softmax(1)


def cole_hopf(x: States, t: Time, y: Ends, g: Prices, *, eps: float, log_mass: Prices | None = None) -> Values:
    """V_t(x) = -eps log sum_j m_j exp(-(C(x, y_j)/(1-t) + g_j)/eps), without the kernel's normaliser.

    `log_mass` is log m_j, used as given (the m_j need not sum to 1); None is the uniform mass 1/m.

    Raises:
        InputError: as `hopf_lax`, or if eps <= 0.
    """
    return -eps * _logits(x, _left(t), y, g, eps, log_mass).logsumexp(1)


def cole_hopf_gradient(x: States, t: Time, y: Ends, g: Prices, *, eps: float, log_mass: Prices | None = None) -> States:
    """grad V_t(x) = (x - E[y|x])/(1-t) under the law of the end. Arguments and errors as `cole_hopf`."""
    left = _left(t)
    mean = _logits(x, left, y, g, eps, log_mass).softmax(1) @ y.flatten(1)
    return ((x.flatten(1) - mean) / left).reshape(x.shape)
