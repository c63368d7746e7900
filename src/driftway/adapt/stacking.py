"""Several processes side by side: how well each foresees the target's labels, and how much each should count.

Candidate c foresees label i of the target, given all other rows (trained networks: all but its fold), with density p_c(y_i). The weights
of the mixture maximise the predictive score of the mixture under a flat Dirichlet prior worth alpha rows for each of C candidates,

    sum_i log sum_c w_c p_c(y_i) + alpha sum_c log w_c,    w_c <- (sum_i w_c p_ic / sum_c' w_c' p_ic' + alpha) / (m + alpha C)

by expectation maximisation, which increases it (stacking of predictive distributions: Yao et al., 2018). Choosing the single best instead
is choosing by twenty noisy numbers. With few labels the prior keeps all candidates, with none they count alike.

    gain     = mean_i log (sum_c w_c p_ic) - mean_i log (the same over the candidates without sources, at their own best weights)

is what transfer is worth, in nats for each label. It does not pay where the candidates without sources weigh half or more, or the gain is
within one standard error of nothing. Without labels there is no telling what the domains share: all rows are pooled.

Equations (A21), (A23): docs/derivations/adapt.md.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt import dino_init, dino_train
from driftway.adapt.dino_init import Prediction, Settings, first_stage, weighted
from driftway.adapt.dino_train import Trained
from driftway.adapt.family import constant
from driftway.adapt.frame import Frame, frame
from driftway.adapt.learn import Learned
from driftway.adapt.scale import held
from driftway.adapt.shift import Shift
from driftway.kernels import FullyConnected

PROCESSES = ("target", "pooled", "linear", "transfer", "dino")
LINEAR = FullyConnected(0, w_std=2**0.5, b_std=0.3)  # no hidden layer
ALPHA, ROUNDS = 0.5, 500


@dataclass(frozen=True)
class Candidate:
    """A fitted process, at initialisation or trained.

    Attributes:
        name: of the process.
        model: what is fitted.
        residuals: of the target's labels, each foreseen without it, standardised.
        variance: of a label foreseen so, in units of B.
        log_density: of each, in the units of the targets.
    """

    name: str
    model: Learned | Trained
    residuals: Float[Tensor, "m k"]
    variance: Float[Tensor, " m"]
    log_density: Float[Tensor, " m"]

    @property
    def trained(self) -> bool:
        """Whether all layers are trained."""
        return isinstance(self.model, Trained)

    @property
    def process(self) -> Learned:
        """The process at initialisation."""
        return self.model.start if isinstance(self.model, Trained) else self.model

    @property
    def frame(self) -> Frame:
        """Rows, and units."""
        return self.process.frame

    def predict(self, X: Float[Tensor, "q d"]) -> Prediction:
        """At rows of the target."""
        return dino_train.predict(self.model, X) if isinstance(self.model, Trained) else dino_init.predict(self.model, X)

    def covariance(self, X: Float[Tensor, "q d"]) -> Float[Tensor, "q q"]:
        """Of f at rows of the target, in units of B."""
        return dino_train.covariance(self.model, X) if isinstance(self.model, Trained) else dino_init.covariance(self.model, X)


def candidate(name: str, model: Learned | Trained) -> Candidate:
    """With how well it foresees the target's labels."""
    process = model.start if isinstance(model, Trained) else model
    residuals, variance = (model.residuals, model.spread) if isinstance(model, Trained) else model.joint.leave_one_out()
    kept = held(process.frame.target, process.scale)
    if len(kept) < len(residuals):
        residuals, variance = residuals[kept], variance[kept]
    R, k = torch.linalg.cholesky(process.joint.B), residuals.shape[1]
    fit = torch.linalg.solve_triangular(R, residuals.mT, upper=False).square().sum(0) / variance
    logs = k * (variance * 2 * math.pi).log() + 2 * (R.diagonal().log().sum() + process.frame.y_scale.log().sum())
    return Candidate(name, model, residuals, variance, -(fit + logs) / 2)


def candidates(shift: Shift, names: tuple[str, ...], settings: Settings, *, form: str = "cosine", trained: bool = True) -> list[Candidate]:
    """Fit the named processes, and the networks that start from them.

    Args:
        shift: rows of all domains.
        names: of `PROCESSES`.
        settings: which they share.
        form: of the k_P of "dino".
        trained: also the trained networks of all but the linear one, and of dino in the exponential form, which no network has.
    """
    found: dict[str, Learned] = {}
    rows = frame(shift)
    if not shift.labels and "pooled" in names:
        names = ("pooled",)
    if "target" in names and shift.labels:
        own = frame(shift.alone())
        own = replace(own, y_scale=own.y_scale.where((own.y.abs() > 1e-3).any(0), rows.y_scale))  # one label alone has no units
        found["target"] = first_stage(own, shift.sources, settings, constant(shift.sources, 0.0))
    if shift.sources and "pooled" in names:
        found["pooled"] = first_stage(rows, shift.sources, settings, constant(shift.sources, 1.0))
    if shift.sources and "linear" in names:
        found["linear"] = first_stage(rows, shift.sources, replace(settings, network=LINEAR))
    if shift.sources and ("transfer" in names or "dino" in names):
        found["transfer"] = first_stage(rows, shift.sources, settings)
    if shift.sources and "dino" in names:
        found["dino"] = weighted(shift, found["transfer"], form, settings)
    chosen = [candidate(name, model) for name, model in found.items() if name in names]
    return chosen + [candidate(own.name, dino_train.train(own.process)) for own in chosen
                     if trained and own.name != "linear" and (own.name, form) != ("dino", "exponential")]  # fmt: skip


def stack(log_density: Float[Tensor, "m c"], *, alpha: float = ALPHA) -> Float[Tensor, " c"]:
    """The weights w."""
    m, c = log_density.shape
    w = log_density.new_full((c,), 1 / c)
    p = (log_density - log_density.max(1, keepdim=True).values).exp() if m else log_density
    for _ in range(ROUNDS):
        share = w * p
        w = ((share / share.sum(1, keepdim=True)).sum(0) + alpha) / (m + alpha * c)
    return w


def densities(log_density: Float[Tensor, "m c"], w: Float[Tensor, " c"]) -> Float[Tensor, " m"]:
    """Log density of each label by the mixture."""
    return (log_density + w.log()).logsumexp(1)
