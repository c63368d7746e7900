r"""What is left to gain in the prices of a network, and how fast training can get it: the dual in the basis of its tangent kernel.

    J(g) = mean_i [-eps log mean_j exp(-(C_ij + g_j) / eps)] - mean_j g_j            the semi-dual of n states and m ends, g_j = g(y_j)
    r_j  = m p_j - 1,   p = mean_i P_ij                                              mass received over mass due, less 1: m dJ/dg_j
    K    = H G G' H,    G_j = grad_theta g(y_j),   H = I - 1 1'/m                    prices count up to a constant

Gradient flow of the weights on J moves the prices by dg/dtau = K r/m. With K/m = U diag(mu) U' and z = U'r/sqrt(m)

    dJ/dtau = r'K r/m^2 = sum_k mu_k z_k^2,                                          the MMD^2, in this kernel, of the ends and the target

each part of what is left at its own rate; what lies outside of the span of K stays. The quadratic model of J in g, of curvature A, has

    A = (m/e) (diag(q) - Q'Q/n),   S = (K/m)^(1/2) A (K/m)^(1/2) = V diag(s) V',   b = V'(K/m)^(1/2) r/sqrt(m)
    J(tau) - J(0) = sum_k gain_k (1 - exp(-2 s_k tau)),                              gain_k = b_k^2 / (2 s_k)

where Q and its mean q are P at the entropy e = eps + mean gap between the least and the second least C + g of a state: at eps itself, A
is -m times the Hessian, which is good for changes of g up to eps; e is the change that moves a state to its next end. Two samples have
chance in them. With F = sqrt(m) (K/m)^(1/2) V

    b_k = mean_i (P F)_ik - mean_j F_jk,      noise_k = var_i (P F)_ik / n + var_j I_jk / m,      I = r F - (m/n) P'P F

with I_j the influence of y_j, which also stands in the normaliser of P. A gain counts where b_k^2 > 2 log(m) noise_k, the bound that m
normal variates keep (Donoho and Johnstone, 1994), and then less its noise.
Kernel and curvature are those of the present weights, and tau is the time of gradient flow: other optimizers have other clocks.

Sources: Jacot, Gabriel and Hongler (2018) for the flow; Genevay et al. (2016) for J.

Equations (T25), (T26), (T27): docs/derivations/transport.md.
"""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from driftway import checks
from driftway.checks import require
from driftway.kernels import tangent_features
from driftway.linalg import Decay, Spectrum, eigendecompose, fit_decay
from driftway.transport import dual
from driftway.transport.model import TransportModel
from driftway.transport.problem import cost
from driftway.transport.residual import ResidualValue
from driftway.transport.stream import generator
from driftway.transport.value import Trainable

ROUNDING = 1e-12  # of the largest rate


@dataclass(frozen=True)
class TangentDiagnosis:
    """The prices of a network at m target rows: what is left, in which directions, at which rates. Costs are in the certificate's units.

    Attributes:
        objective: J.
        speed: dJ/dtau.
        chance: what `speed` would be on average for perfect prices, by the chance of the two samples.
        residual: (m,) r.
        shares: (m,) share z_k^2 / |z|^2 of the squared residual along each eigenvector of K.
        spectrum: of K.
        decay: the law of the spectrum, and how sure it is.
        rates: (k,) s_k, descending.
        gains: (k,) gain_k.
        noise: (k,) what gain_k would be on average for perfect prices.
        eps: entropy of J.
    """

    objective: float
    speed: float
    chance: float
    residual: Float[Tensor, " m"]
    shares: Float[Tensor, " m"]
    spectrum: Spectrum
    decay: Decay
    rates: Float[Tensor, " k"]
    gains: Float[Tensor, " k"]
    noise: Float[Tensor, " k"]
    eps: float

    @property
    def seen(self) -> Bool[Tensor, " k"]:
        """Which gains stand out of the noise."""
        return self.gains > 2 * math.log(len(self.residual)) * self.noise

    def gain(self, time: float | int) -> float:
        """J(time) - J(0) of the quadratic model, of what stands out of the noise and less it.

        Raises:
            InputError: if the time is negative.
        """
        time = checks.real("time", time, least=0)
        return float(((self.gains - self.noise) * -torch.expm1(-2 * time * self.rates))[self.seen].sum())

    @property
    def left(self) -> float:
        """What is left to gain in all: the limit of `gain`."""
        return float((self.gains - self.noise)[self.seen].sum())

    @property
    def half_life(self) -> float:
        """The time in which half of that is gained; NaN where nothing is left."""
        if not bool(self.seen.any()):
            return math.nan
        late, early = 1 / float(self.rates[self.seen].min()), 0.1 / float(self.rates[0])  # 86 % of every part, and 18 % of any
        for _ in range(60):
            middle = math.sqrt(late * early)
            late, early = (middle, early) if self.gain(middle) >= self.left / 2 else (late, middle)
        return late

    @property
    def dimension(self) -> float:
        """Effective dimension of K at the penalty 1 / half_life: how many directions have moved by then. NaN where nothing is left."""
        time = self.half_life
        return math.nan if math.isnan(time) else float(self.spectrum.effective_dimension(1 / time))

    @property
    def outside(self) -> float:
        """Share of the squared residual outside of the numerical span of K: no flow at these weights reaches it."""
        return float(self.shares[self.spectrum.rank :].sum())

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        rows, seen, by_chance = len(self.residual), int(self.seen.sum()), min(self.chance / max(self.speed, 1e-300), 1)
        if seen == 0:
            return (f"nothing is left to gain that {rows:,} target rows tell from chance, which alone would make {by_chance:.0%} of the "
                    "present speed")  # fmt: skip
        return (f"about {self.left:.2g} of the dual is left to gain, in {seen} of {len(self.rates)} directions, half of it within time "
                f"{self.half_life:.2g} of gradient flow; chance makes {by_chance:.0%} of the present speed")  # fmt: skip


@torch.no_grad()
def diagnose(model: TransportModel, x: Float[Tensor, "n *event"] | None, y: Float[Tensor, "m *event"], *, label: Any = None,
             eps: float | int | None = None, seed: int = 0) -> TangentDiagnosis:  # fmt: skip
    """Diagnose the prices of a model of the families "network", "residual", "vector" and "image".

    It takes m gradients and two decompositions of (m, m) matrices: seconds for a thousand rows.

    Args:
        model: what is trained; `Run.model()` while it is.
        x: source rows, best held out; None draws as many standard normal ones as y has rows.
        y: target rows, at least 8, best held out. Fewer of them see less.
        label: of all rows of y, as in `certificate`; None for the whole law.
        eps: entropy of J in the units of `certificate`; by default the one that training ends with.
        seed: of drawn source rows.

    Raises:
        InputError: if rows, label or eps are unusable, the prices are not a network's, or the model is of the way back.
    """
    value, scaler, conditions = model.value_function, model.scaler, model.conditions
    require(isinstance(value, Trainable), "model", expected="the family network, residual, vector or image", got=model.family,
            cure="mixtures and tables have prices in closed form, and no tangent kernel")  # fmt: skip
    require(not model.backward, "model", expected="the way that was trained", got="the way back", cure="pass the model before reverse()")
    require(x is not None or scaler.noise, "x", expected="source rows, as this model moves data to data", got="None",
            cure="pass held-out rows of the source")  # fmt: skip
    y_in = scaler.target(checks.samples("y", y, event=model.event, least=8).to(scaler.shift))
    if x is None:
        x_in = torch.randn(y_in.shape, generator=generator(checks.count("seed", seed, least=0), "tangent")).to(y_in)
    else:
        x_in = scaler.source(checks.samples("x", x, event=model.event).to(scaler.shift))
    own = next((e for e in (eps, model.problem.entropy, model.training.get("eps")) if e is not None), None)
    require(own is not None, "eps", expected="a number, as this model does not know its own", got="None", cure="pass, say, eps=0.01")
    c = conditions.null(len(y_in), y_in) if label is None else conditions.encode("label", label, len(y_in), y_in)
    rows = {"y": y_in} if c is None else {"y": y_in, "c": c}
    scope = "rest.g.*" if isinstance(value, ResidualValue) else "g.*"
    features = tangent_features(value, rows, scope=scope, forward=_price, dtype=torch.float64, batch_size=64)
    e = checks.real("eps", own, least=0, strict=True) / scaler.cost_scale
    return _diagnosis(features.gram(), x_in.double(), y_in.double(), features.scores[:, 0].double(), e, scaler.cost_scale)


def _price(network: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, " m"]:
    return cast("Trainable", network).price(batch["y"], batch.get("c"))


def _diagnosis(K: Float[Tensor, "m m"], x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], g: Float[Tensor, " m"], eps: float,
               unit: float) -> TangentDiagnosis:  # fmt: skip
    n, m = len(x), len(y)
    K = K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    spectrum = eigendecompose((K + K.mT) / 2)
    U, mu = spectrum.vectors, spectrum.values
    assert U is not None  # noqa: S101 (a full decomposition has them)
    least = (cost(x, y) + g).topk(2, largest=False).values
    e = eps + float(least.diff().mean())
    P, Q = (dual.occupancy(x, y, g, eps=entropy, scalings=0).weights for entropy in (eps, e))
    r, q = m * P.mean(0) - 1, Q.mean(0)
    z, root = spectrum.coordinates(r), U * mu.sqrt()
    S = root.mT @ (q[:, None] * root - Q.mT @ (Q @ root) / n) * (m / e)
    s, V = (part.flip(-1) for part in torch.linalg.eigh((S + S.mT) / 2))
    kept = s > ROUNDING * s[0]
    s, F = s[kept], math.sqrt(m) * root @ V[:, kept]
    b = F.mT @ r / m
    return TangentDiagnosis(
        objective=unit * float(dual.semi_dual(x, y, g, eps=eps)), speed=unit * float(mu @ z.square()),
        chance=unit * m * float(mu @ _noise(P, U)), residual=r, shares=z.square() / z.square().sum().clamp_min(1e-300),
        spectrum=spectrum, decay=fit_decay(spectrum), rates=s, gains=unit * b.square() / (2 * s), noise=unit * _noise(P, F) / (2 * s),
        eps=unit * eps,
    )  # fmt: skip


def _noise(P: Float[Tensor, "n m"], F: Float[Tensor, "m k"]) -> Float[Tensor, " k"]:
    """The variance of mean_i (P F)_ik - mean_j F_jk by the chance of both samples; rows of F also stand in the normaliser of P."""
    sent, due = P @ F, len(F) / len(P)
    return sent.var(0) / len(P) + ((due * P.sum(0) - 1)[:, None] * F - due * P.mT @ sent).var(0) / len(F)
