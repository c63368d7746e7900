"""DINO-INIT: the distribution-informed network at initialisation, or with its last layer trained; a Gaussian process (Wu et al., 2022).

    stage 1    relevance of the columns, noise, level, scale: those of the process with free correlations (learn.py)
    stage 2    base samples in the network with these relevances; weights w_d(x), the size of k_P, noise, level and scale, with k_X held

Weights start uniform, where the process is that of fixed mean embeddings, and their prior pulls them back to it: each of them would be
free to fit twenty labels. Prediction is the posterior of the distribution kernel, for rows of the target.
"""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.distribution_kernel import Base, Rows, base
from driftway.adapt.family import Family, attended, correlated
from driftway.adapt.frame import Frame, canonical
from driftway.adapt.learn import Learned, begin, learn
from driftway.adapt.scale import Scale, thin
from driftway.adapt.shift import Shift
from driftway.kernels import FullyConnected, Network


@dataclass(frozen=True)
class Prediction:
    """Targets of new rows, standardised.

    Attributes:
        mean: of f.
        variance: of f, in units of B.
        noise: of a label of the target, in units of B.
        B: covariance of the outputs.
    """

    mean: Float[Tensor, "q k"]
    variance: Float[Tensor, " q"]
    noise: Float[Tensor, ""]
    B: Float[Tensor, "k k"]


@dataclass(frozen=True)
class Settings:
    """What all processes of a comparison share.

    Attributes:
        network: whose kernels are used.
        kappa: how much the likelihood of the sources counts.
        strength: how much the prior counts.
        base: base samples of a domain, at most.
        rank: features of phi.
        pull: standard deviation of the prior of A and v.
        steps: quasi-Newton steps.
        seed: of base samples and phi.
        scale: what is done with many rows.
    """

    network: Network = field(default_factory=lambda: FullyConnected(2, "relu", w_std=2**0.5, b_std=0.3))
    kappa: float = 0.3
    strength: float = 1.0
    base: int = 100
    rank: int = 4
    pull: float = 0.1
    steps: int = 40
    seed: int = 0
    scale: Scale = field(default_factory=Scale)


def first_stage(rows: Frame, sources: int, settings: Settings, family: Family | None = None) -> Learned:
    """All parameters at once."""
    return learn(rows, settings.network, family or correlated(sources), begin(rows, sources), kappa=settings.kappa,
                 strength=settings.strength, steps=settings.steps, scale=settings.scale)  # fmt: skip


def parameters(rows: Frame, sources: int, settings: Settings) -> Learned:
    """The first stage for the second: not conditioned on more rows than its parameters were learned on."""
    few = first_stage(rows[thin(rows.rows.domain, settings.scale)], sources, settings)
    return replace(few, frame=rows)


def second_stage(stage: Learned, family: Family, settings: Settings) -> Learned:
    """Another k_P, with the relevance that was learned."""
    start = {name: value for name, value in stage.raw.items() if name in ("relevance", "scale", "offset", "noise")}
    return learn(stage.frame, settings.network, family, start, frozen=("relevance",), kappa=settings.kappa, strength=settings.strength,
                 steps=settings.steps, scale=settings.scale)  # fmt: skip


def base_samples(shift: Shift, stage: Learned, settings: Settings) -> Base:
    """Base samples of every domain, labelled or not, drawn in an order that does not depend on the order of the rows."""
    shift = shift.select(shift.weight > 0)
    generator, parts = torch.Generator().manual_seed(settings.seed), []
    for domain in range(shift.sources + 1):
        own = shift.rows(domain)
        own = own[canonical(shift.X[own], shift.weight[own, None])]
        parts.append(own[torch.randperm(len(own), generator=generator)[: settings.base].to(own.device)])
    index = torch.cat(parts)
    rows = Rows(stage.frame.standard(shift.X[index]), shift.domain[index])
    return base(settings.network, rows, stage.kernel.relevance, shift.weight[index])


def weighted(shift: Shift, stage: Learned, form: str, settings: Settings) -> Learned:
    """Learn the weights of base samples."""
    samples = base_samples(shift, stage, settings)
    return second_stage(stage, attended(samples, form, rank=settings.rank, pull=settings.pull), settings)


def at_target(found: Learned, X: Float[Tensor, "q d"]) -> Rows:
    """Rows of the target as the kernel sees them."""
    return Rows(found.frame.standard(X), torch.zeros(len(X), dtype=torch.long, device=X.device))


def covariance(found: Learned, X: Float[Tensor, "q d"]) -> Float[Tensor, "q q"]:
    """Covariance of f at rows of the target, in units of B."""
    rows = at_target(found, X)
    return found.joint.covariance(found.at(rows)[0], found.gram(rows))


def predict(found: Learned, X: Float[Tensor, "q d"]) -> Prediction:
    """The posterior at rows of the target, in blocks."""
    means, variances = [], []
    for part in X.split(1024):
        cross, diagonal, shift = found.at(at_target(found, part))
        means.append(found.joint.mean(cross) + shift)
        variances.append(found.joint.variance(cross, diagonal))
    return Prediction(torch.cat(means), torch.cat(variances), found.raw["noise"][0].exp(), found.joint.B)

