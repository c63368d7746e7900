"""From a shift to the parameters of its kernel: what is learned, and under which prior.

Learned are the relevance of every column (what it is multiplied by), the scale s and level o of the kernel, the noise of every domain,
and what a `Family` of domain kernels k_P adds. All are found at once, by maximum a posteriori,

    log p(Y_t | Y_s) + kappa log p(Y_s) + log prior,

with quasi-Newton steps (L-BFGS of scipy: that of torch loads torch's compiler at its first step, which takes seconds). The likelihood of
the sources is tempered by kappa (a power prior: Ibrahim and Chen, 2000). With kappa = 1 it is that of all rows. Twenty labels do not
determine d columns, and with kappa = 0, as in the adaptive transfer process, they overfit; the sources determine them, and no longer
those of the target when these differ. Parameters are logarithms with normal priors.

Equation (A17): docs/derivations/adapt.md.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from driftway.adapt.distribution_kernel import DistributionKernel, Rows
from driftway.adapt.family import Family, Prior, Raw
from driftway.adapt.frame import Frame
from driftway.adapt.joint import Joint
from driftway.adapt.likelihood import log_likelihood
from driftway.adapt.scale import Far, Scale, condition, diagonal, thin
from driftway.checks import InputError
from driftway.kernels import Network

Singular = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
# Mean and standard deviation of logarithms.
PRIOR: Prior = {"noise": (math.log(0.1), 2.0), "relevance": (0.0, 0.6), "scale": (0.0, 1.0), "offset": (-1.0, 1.0)}
FLOOR = 1e-6  # of the noise, as a part of the mean diagonal
STEPS = 60
NEVER = -30.0  # the logarithm of nothing


@dataclass(frozen=True)
class Learned:
    """A fitted process.

    Attributes:
        frame: its rows.
        kernel: K.
        noise: variance of each row's label, by its weight, in units of B.
        joint: given the labels; of the near rows, where there are far ones.
        raw: the parameters as they were learned.
        objective: what was maximised.
        evaluations: of the objective.
        scale: what is done with many rows.
        far: what rows say that the joint process does not hold.
    """

    frame: Frame
    kernel: DistributionKernel
    noise: Float[Tensor, " n"]
    joint: Joint
    raw: Raw
    objective: float
    evaluations: int
    scale: Scale = field(default_factory=Scale)
    far: Far | None = None

    def at(self, a: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """For `joint`, at other rows: covariance with its own, variances, and what to add to the mean."""
        if self.far is not None:
            return self.far.at(self.kernel, a)
        return self.kernel.cross(a, self.frame.rows), self.kernel.diagonal(a), self.frame.y.new_zeros(())

    def gram(self, a: Rows) -> Float[Tensor, "n n"]:
        """For `joint`, the covariance of other rows."""
        return self.kernel.gram(a) if self.far is None else self.far.gram(self.kernel, a)


def begin(rows: Frame, sources: int) -> Raw:
    """Parameters to start from."""
    d, like = rows.rows.X.shape[1], rows.rows.X
    return {"relevance": like.new_zeros(d), "scale": like.new_zeros(()), "offset": like.new_full((), -1.0),
            "noise": like.new_full((sources + 1,), math.log(0.1))}  # fmt: skip


def kernel(network: Network, family: Family, raw: Raw) -> DistributionKernel:
    """The kernel with these parameters."""
    return DistributionKernel(network, raw["relevance"].exp(), family.make(raw), raw["scale"].exp(), raw["offset"].exp())


def together(values: Iterable[Tensor]) -> np.ndarray:
    """Tensors as one vector of numpy."""
    return torch.cat([value.detach().flatten() for value in values]).double().cpu().numpy()


def apart(z: Float[Tensor, " p"], like: Raw) -> Raw:
    """The way back: leaves of a graph."""
    parts = z.clone().split([value.numel() for value in like.values()])
    return {name: part.to(value).view_as(value).requires_grad_() for (name, value), part in zip(like.items(), parts, strict=True)}


def learn(rows: Frame, network: Network, family: Family, start: Raw, *, frozen: tuple[str, ...] = (), kappa: float = 1.0,
          strength: float = 1.0, steps: int = STEPS, scale: Scale | None = None) -> Learned:  # fmt: skip
    """Maximise, on some rows if there are many, and condition on all labels.

    Args:
        rows: the labelled rows.
        network: whose kernel k_X is.
        family: of k_P.
        start: parameters to start from; those that the family adds may lack.
        frozen: names of those to leave as they are.
        kappa: how much the likelihood of the sources counts.
        strength: how much the prior counts.
        steps: quasi-Newton steps.
        scale: what is done with many rows.
    """
    scale = scale or Scale()
    everything, rows = rows, rows[thin(rows.rows.domain, scale)]
    raw = {**{name: value.to(rows.y) for name, value in family.start.items()}, **start}
    if not rows.target:  # nothing tells the level of the target: it is that of the sources
        raw, frozen = {**raw, "offset": torch.full_like(raw["offset"], NEVER)}, (*frozen, "offset")
    prior = {**PRIOR, **family.prior}
    free = {name: value.clone().requires_grad_() for name, value in raw.items() if name in prior and name not in frozen and value.numel()}
    known = network.kernel("nngp", rows.rows.X * raw["relevance"].exp()) if "relevance" not in free else None
    calls = 0

    def objective() -> Tensor:
        values = {**raw, **free}
        own = kernel(network, family, values)
        K = own.gram(rows.rows) if known is None else own.compose(known, rows.rows, rows.rows)
        noise = values["noise"].exp()[rows.rows.domain] + FLOOR * (rows.weight @ K.diagonal()) / rows.weight.sum()
        misfit = sum((((values[name] - prior[name][0]) / prior[name][1]).square().sum() / 2 for name in free), rows.y.new_zeros(()))
        return strength * misfit - log_likelihood(K, noise, rows.y, target=rows.target, weight=rows.weight, kappa=kappa)

    def at(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal calls
        calls += 1
        free.update(apart(torch.from_numpy(z), free))
        try:
            with torch.enable_grad():
                value = objective()
            found = torch.autograd.grad(value, list(free.values()))
        except (InputError, Singular):  # a trial step so far out that the matrix is singular: refused by the line search
            return 1e12 + float(z @ z), 2 * z
        return float(value.detach()), together(found)

    if free:
        best = minimize(at, together(free.values()), jac=True, method="L-BFGS-B", options={"maxiter": steps, "ftol": 1e-7, "gtol": 1e-4})
        free.update(apart(torch.from_numpy(best.x), free))
    with torch.no_grad():
        free = {name: value.detach() for name, value in free.items()}
        raw = {**raw, **free}
        if not rows.target:  # nor its noise
            raw["noise"] = torch.cat([raw["noise"][1:].mean(0, keepdim=True), raw["noise"][1:]])
        value, rows, own = -float(objective()), everything, kernel(network, family, raw)
        noise = raw["noise"].exp()[rows.rows.domain] + FLOOR * (rows.weight @ diagonal(own, rows.rows)) / rows.weight.sum()
        found, far = condition(own, rows.rows, rows.y, noise, target=rows.target, weight=rows.weight, aim=rows.aim, scale=scale)
        return Learned(rows, own, noise / rows.weight, found, raw, value, calls, scale, far)
