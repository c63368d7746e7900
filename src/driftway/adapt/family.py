"""How alike domains may be: families of domain kernels k_P, with the parameters that each adds and their priors.

A family makes k_P from the logarithms, or other free numbers, that are learned. Priors are normal; see `learn`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.distribution_kernel import Attention, Base, Correlation, Domains, Embedded, Rows, uniform

Raw = dict[str, Tensor]
Prior = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Family:
    """How alike domains may be.

    Attributes:
        make: k_P from the parameters.
        start: the parameters that it adds.
        prior: their prior: mean and standard deviation.
    """

    make: Callable[[Raw], Domains]
    start: Raw = field(default_factory=dict)
    prior: Prior = field(default_factory=dict)


def constant(sources: int, lam: float) -> Family:
    """Correlations that are known: 0 or 1."""
    return Family(lambda raw: Correlation(raw["scale"].new_full((sources,), lam)))


def correlated(sources: int) -> Family:
    """Free correlations lam = tanh(.) of every source with the target."""
    return Family(lambda raw: Correlation(raw["lam"].tanh()), {"lam": torch.ones(sources, dtype=torch.float64)}, {"lam": (1.0, 1.0)})


def embedded(base: Base, form: str) -> Family:
    """Mean embeddings with uniform weights."""
    sized = form in ("centred", "exponential")
    return Family(lambda raw: Embedded(base, form, raw["size"].exp() if sized else None),
                  {"size": _spread(base).log()} if sized else {}, {"size": (float(_spread(base).log()), 2.0)} if sized else {})  # fmt: skip


def attended(base: Base, form: str, *, rank: int, pull: float) -> Family:
    """Mean embeddings with weights by row, which start uniform. phi are the leading principal directions of the base samples.

    Args:
        base: the samples.
        form: of k_P.
        rank: how many directions.
        pull: standard deviation of the prior of A and v.
    """
    plain, domains = embedded(base, form), int(base.rows.domain.max()) + 1
    share = base.weight / base.weight.sum()
    X = share.sqrt()[:, None] * (base.rows.X - share @ base.rows.X)
    _, values, axes = torch.linalg.svd(X, full_matrices=False)
    live = values > 1e-9 * (values[0] + 1e-9)
    phi = (axes[live] / values[live, None])[:rank]  # features of unit variance

    def make(raw: Raw) -> Domains:
        size = raw["size"].exp() if "size" in raw else None
        return Embedded(base, form, size, Attention(raw["phi"], raw["A"], raw["v"]))

    zero = torch.zeros(domains, len(phi), len(phi), dtype=torch.float64, device=X.device)
    start = {**plain.start, "phi": phi, "A": zero, "v": zero.sum(2)}
    return Family(make, start, {**plain.prior, "A": (0.0, pull), "v": (0.0, pull)} if pull else plain.prior)


def _spread(base: Base) -> Float[Tensor, ""]:
    """The distance of the mean embeddings, or what is left of it."""
    domains = base.rows.domain.unique()
    means = uniform(Rows(base.rows.X[: len(domains)], domains), base) @ base.F
    return (means[1:] - means[0]).square().sum(1).mean().sqrt().clamp_min(1e-3) if len(means) > 1 else base.F.new_ones(())
