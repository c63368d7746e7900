"""From a shift to the parameters of its kernel: what is standardised, what is learned, and under which prior.

Learned are the relevance of every column (what it is multiplied by), the scale s and level o of the kernel, the noise of every domain,
and what a `Family` of domain kernels k_P adds. All are found at once, by maximum a posteriori,

    log p(Y_t | Y_s) + kappa log p(Y_s) + log prior,

with quasi-Newton steps (L-BFGS). The likelihood of the sources is tempered by kappa (a power prior: Ibrahim and Chen, 2000). With kappa = 1
it is that of all rows. Twenty labels do not determine d columns, and with kappa = 0, as in the adaptive transfer process, they overfit;
the sources determine them, and no longer those of the target when these differ. Parameters are logarithms with normal priors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.adapt.distribution_kernel import Attention, Base, Correlation, DistributionKernel, Domains, Embedded, Rows, uniform
from driftway.adapt.joint import Joint
from driftway.adapt.likelihood import log_likelihood
from driftway.adapt.scale import AIMS, Far, Scale, condition, diagonal, thin
from driftway.adapt.shift import Shift
from driftway.checks import InputError
from driftway.kernels import Network

Singular = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]
Raw = dict[str, Tensor]
Prior = Mapping[str, tuple[float, float]]
# Mean and standard deviation of logarithms.
PRIOR: Prior = {"noise": (math.log(0.1), 2.0), "relevance": (0.0, 0.6), "scale": (0.0, 1.0), "offset": (-1.0, 1.0)}
FLOOR = 1e-6  # of the noise, as a part of the mean diagonal
STEPS = 60
NEVER = -30.0  # the logarithm of nothing


@dataclass(frozen=True)
class Frame:
    """The labelled rows of a shift as the kernel sees them: sources first, then the target, in order of the domains.

    Attributes:
        rows: standardised inputs, and domains.
        y: standardised targets.
        weight: sample weights.
        target: m, the labelled rows of the target.
        x_mean: of the columns, over all rows.
        x_scale: their standard deviations; 1 for a constant column.
        y_mean: of the outputs, over labelled rows.
        y_scale: likewise.
        aim: inputs of rows of the target, labelled or not, at most 500.
    """

    rows: Rows
    y: Float[Tensor, "n k"]
    weight: Float[Tensor, " n"]
    target: int
    x_mean: Float[Tensor, " d"]
    x_scale: Float[Tensor, " d"]
    y_mean: Float[Tensor, " k"]
    y_scale: Float[Tensor, " k"]
    aim: Float[Tensor, "t columns"] = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.float64))

    def __getitem__(self, index: Int[Tensor, " r"]) -> "Frame":
        """Some of the rows, in the same units."""
        rows = self.rows[index]
        return replace(self, rows=rows, y=self.y[index], weight=self.weight[index], target=int((rows.domain == 0).sum()))

    def standard(self, X: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
        """Inputs in the units of the kernel."""
        return (X - self.x_mean) / self.x_scale


def frame(shift: Shift) -> Frame:
    """Standardise, and put the labelled rows in an order of their own: by domain, the target last; within it by their values.

    So the order in which rows were given changes nothing. Rows of weight 0 are left out.
    """
    shift = shift.select(shift.weight > 0)
    used = shift.labelled.nonzero()[:, 0]
    order = used[canonical(shift.X[used], shift.y[used], shift.weight[used, None])]
    domain = shift.domain[order]
    order = order[domain.where(domain > 0, shift.sources + 1).argsort(stable=True)]
    x_mean, x_scale = _moments(shift.X, shift.weight)
    y_mean, y_scale = _moments(shift.y[used], shift.weight[used])
    rows, y, target = Rows((shift.X[order] - x_mean) / x_scale, shift.domain[order]), (shift.y[order] - y_mean) / y_scale, shift.domain == 0
    aim = shift.X[target][canonical(shift.X[target])]
    aim = (aim[:: -(-len(aim) // AIMS) or 1] - x_mean) / x_scale
    return Frame(rows, y, shift.weight[order], int(target[order].sum()), x_mean, x_scale, y_mean, y_scale, aim)


def canonical(*columns: Float[Tensor, "n _"]) -> Tensor:
    """Indices that sort rows by their first column, then by the second, and so on: only equal rows keep the order in which they came."""
    table = torch.cat(columns, 1).nan_to_num(0.0)
    return table.unique(dim=0, return_inverse=True)[1].argsort(stable=True)


def _moments(x: Float[Tensor, "n d"], weight: Float[Tensor, " n"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    share = weight / weight.sum()
    mean = share @ x
    scale = (share @ (x - mean).square()).sqrt()
    return mean, scale.where(scale > 1e-12 * mean.abs(), 1.0)


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

    optimizer = torch.optim.LBFGS(list(free.values()), lr=0.5, max_iter=steps, tolerance_change=1e-6, tolerance_grad=1e-4,
                                  line_search_fn="strong_wolfe") if free else None  # fmt: skip

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()  # type: ignore[union-attr]
        try:
            value = objective()
        except (InputError, Singular):  # a trial step so far out that the matrix is singular: refused by the line search
            return sum((p.square().sum() for p in free.values()), rows.y.new_full((), 1e12))
        value.backward()
        return value

    with torch.enable_grad():
        if optimizer is not None:
            optimizer.step(closure)
    with torch.no_grad():
        free = {name: value.detach() for name, value in free.items()}
        raw = {**raw, **free}
        if not rows.target:  # nor its noise
            raw["noise"] = torch.cat([raw["noise"][1:].mean(0, keepdim=True), raw["noise"][1:]])
        value, rows, own = -float(objective()), everything, kernel(network, family, raw)
        noise = raw["noise"].exp()[rows.rows.domain] + FLOOR * (rows.weight @ diagonal(own, rows.rows)) / rows.weight.sum()
        found, far = condition(own, rows.rows, rows.y, noise, target=rows.target, weight=rows.weight, aim=rows.aim, scale=scale)
        return Learned(rows, own, noise / rows.weight, found, raw, value, calls, scale, far)
