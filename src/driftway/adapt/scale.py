"""Many rows: parameters from a part of them, and a posterior whose time and memory are linear in their number.

Most rows of the sources are far from the target, and together say little that some features phi of the kernel do not hold. So far rows F
are summarised through their features, and what these lose of the variance of a row counts as noise of its own (FITC: Snelson and
Ghahramani, 2006), D the variances of the noise:

    Lam_i = D_i + K_ii - |phi_i|^2,    V = I + Phi' Lam^-1 Phi,    c = Phi' Lam^-1 Y,    m(x) = phi(x) V^-1 c        sums over F
    K~(x, x') = K(x, x') - phi(x) phi(x')' + phi(x) V^-1 phi(x')'

is the process given F, and the near rows N, all labelled rows of the target among them, are conditioned on one by one, by `joint` with the
covariance K~ and the labels Y - m: one block of a partially independent process (PIC: Snelson and Ghahramani, 2007), where the predictions
are wanted. N are the rows of the sources that are nearest to any row of the target, in units of the relevance; Z, the rows of the
features, are drawn from all. N = all rows is the exact process, and so is Z = all rows.

Random features are not part of K (phi phi' > K is possible), so K~ = phi V^-1 phi' and N has the target's rows alone: the posterior of a
network of finite width, in its last layer.

Equations (A35), (A36): docs/derivations/adapt.md.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.adapt.distribution_kernel import DistributionKernel, Rows
from driftway.adapt.joint import Joint, joint
from driftway.adapt.scale_features import Features, blocks, channels, inducing
from driftway.checks import choice, count
from driftway.linalg import Factor, cholesky

APPROXIMATIONS = ("auto", "exact", "inducing", "features")
EXACT, TRAINED = 5000, 1500  # rows up to which "auto" is exact, for processes and for trained networks
AIMS = 500  # rows of the target whose neighbours are near


@dataclass(frozen=True)
class Scale:
    """What is done with many rows.

    Attributes:
        approximation: exact, inducing, features, or auto: exact up to 5,000 labelled rows, then inducing.
        features: p, how many; there are 2 p near rows of the sources.
        rows: that parameters are learned on, at most.
        seed: of what is drawn.
    """

    approximation: str = "auto"
    features: int = 1000
    rows: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InputError: if the approximation is unknown, or a number is no count.
        """
        choice("approximation", self.approximation, APPROXIMATIONS)
        count("features", self.features)
        count("rows", self.rows)

    def exact(self, n: int, limit: int = EXACT) -> bool:
        """Whether n labelled rows are conditioned on one by one, where auto does so up to a limit."""
        return self.approximation == "exact" or (self.approximation == "auto" and n <= limit)

    def generator(self) -> torch.Generator:
        """A new one."""
        return torch.Generator().manual_seed(self.seed)


def diagonal(kernel: DistributionKernel, rows: Rows) -> Float[Tensor, " n"]:
    """K of each row with itself, in blocks."""
    return torch.cat([kernel.diagonal(rows[part]) for part in blocks(len(rows), AIMS, rows.X.device)])


def thin(domain: Int[Tensor, " n"], scale: Scale) -> Int[Tensor, " r"]:
    """Rows to learn parameters on, in their order: those of the target, if they are not over half; of every source its share."""
    n, m, generator, parts = len(domain), int((domain == 0).sum()), scale.generator(), []
    if n <= scale.rows:
        return torch.arange(n, device=domain.device)
    labels = min(m, max(scale.rows // 2, scale.rows - (n - m)))
    for d in domain.unique().tolist():
        own = (domain == d).nonzero()[:, 0]
        parts.append(_some(own, labels if d == 0 else max(1, (scale.rows - labels) * len(own) // (n - m)), generator))
    return torch.cat(parts).sort().values


def held(m: int, scale: Scale) -> Int[Tensor, " l"]:
    """Which of the m labelled rows of the target are near, and can be left out one by one: all, if they are not very many."""
    own = torch.arange(m)
    return own if scale.exact(m, TRAINED) else _some(own, scale.features, scale.generator()).sort().values


def neighbours(X: Float[Tensor, "n d"], aim: Float[Tensor, "t d"], size: int, generator: torch.Generator) -> Int[Tensor, " s"]:
    """Rows nearest to any of the aims: the nearest of each, then the second nearest of each, and so on; at random where these are few."""
    n, device, depth = len(X), X.device, max(8, 8 * size // max(len(aim), 1))
    aim = aim[torch.randperm(len(aim), generator=generator).to(device)]
    best, index = aim.new_zeros(0, len(aim)), torch.zeros(0, len(aim), dtype=torch.long, device=device)
    for part in blocks(n, max(len(aim), 1), device):
        new = torch.arange(n, device=device)[part, None].expand(-1, len(aim))
        best = torch.cat([best, torch.cdist(X[part], aim)])
        best, order = best.topk(min(depth, len(best)), dim=0, largest=False)
        index = torch.cat([index, new]).gather(0, order)
    flat = torch.cat([index.flatten(), torch.randperm(n, generator=generator).to(device)])
    rank = torch.full((n,), len(flat), device=device).scatter_reduce(0, flat, torch.arange(len(flat), device=device), "amin")
    return rank.argsort()[:size]


@dataclass(frozen=True)
class Far:
    """What rows say that are not conditioned on one by one.

    Attributes:
        near: indices of those that are.
        rows: these.
        features: phi.
        whole: whether K~ is made of K, or of the features alone.
        factor: of V.
        a: V^-1 c.
        phi: features of the near rows.
        w: R^-1 phi' of them, V = R R'.
        target: how many of the last near rows are left out one by one, all of the target.
    """

    near: Int[Tensor, " b"]
    rows: Rows
    features: Features
    whole: bool
    factor: Factor
    a: Float[Tensor, "p k"]
    phi: Float[Tensor, "b p"]
    w: Float[Tensor, "p b"]
    target: int

    @property
    def mean(self) -> Float[Tensor, "b k"]:
        """M at the near rows."""
        return self.phi @ self.a

    def at(self, kernel: DistributionKernel, a: Rows) -> tuple[Float[Tensor, "n b"], Float[Tensor, " n"], Float[Tensor, "n k"]]:
        """K~ between rows and the near ones, its diagonal, and m."""
        phi = self.features(a)
        w = self.factor.whiten(phi.mT)
        cross, diagonal = w.mT @ self.w, w.square().sum(0)
        if self.whole:
            cross += kernel.cross(a, self.rows) - phi @ self.phi.mT
            diagonal += (kernel.diagonal(a) - phi.square().sum(1)).clamp_min(0)
        return cross, diagonal, phi @ self.a

    def gram(self, kernel: DistributionKernel, a: Rows) -> Float[Tensor, "n n"]:
        """K~ of rows with themselves."""
        phi = self.features(a)
        w = self.factor.whiten(phi.mT)
        K = w.mT @ w
        return K + kernel.gram(a) - phi @ phi.mT if self.whole else K


def condition(kernel: DistributionKernel, rows: Rows, y: Float[Tensor, "n k"], noise: Float[Tensor, " n"], *, target: int,
              weight: Float[Tensor, " n"], aim: Float[Tensor, "t d"], scale: Scale,
              near: int | None = None) -> tuple[Joint, Far | None]:  # fmt: skip
    """The process given its labelled rows, those of the target last.

    Args:
        kernel: K.
        rows: all labelled rows.
        y: their targets.
        noise: variance of one label.
        target: m.
        weight: w.
        aim: inputs of rows of the target, labelled or not.
        scale: what is done with many rows.
        near: how many near rows to find beside the held ones, if there are so many; 2 p and exactness up to 5,000 rows if None.
    """
    n, generator, whole = len(rows), scale.generator(), scale.approximation != "features"
    own = held(target, scale).to(y.device) + n - target
    left = torch.ones(n, dtype=torch.bool, device=y.device).index_fill(0, own, False).nonzero()[:, 0]
    size = (near or 2 * scale.features) * whole
    if scale.exact(n, EXACT if near is None else 0) or len(left) <= size:
        return joint(kernel.gram(rows), noise, y, target=target, weight=weight), None
    found = neighbours(rows.X[left] * kernel.relevance, aim * kernel.relevance, size, generator) if size else left[:0]
    index = torch.cat([left[found].sort().values, own])
    far = summarise(kernel, _features(kernel, rows, scale, generator), rows, y, noise / weight, index, whole=whole, target=len(own))
    return joint(far.gram(kernel, far.rows), noise[index], y[index] - far.mean, target=len(own), weight=weight[index]), far


def _features(kernel: DistributionKernel, rows: Rows, scale: Scale, generator: torch.Generator) -> Features:
    if scale.approximation == "features":
        return channels(kernel, rows, scale.features, generator)
    drawn = _some(torch.arange(len(rows), device=rows.X.device), scale.features, generator)
    return inducing(kernel, rows[drawn.sort().values])


def summarise(kernel: DistributionKernel, features: Features, rows: Rows, y: Float[Tensor, "n k"], D: Float[Tensor, " n"],
              near: Int[Tensor, " b"], *, whole: bool, target: int) -> Far:  # fmt: skip
    """Sum over all rows that are not near, in blocks.

    Args:
        kernel: K.
        features: phi.
        rows: all labelled rows.
        y: their targets.
        D: variances of their noise.
        near: indices of the near rows.
        whole: whether K~ is made of K.
        target: how many of the last near rows are left out one by one.
    """
    phi = features(rows[near])
    p = phi.shape[1]
    V, c = torch.eye(p, dtype=y.dtype, device=y.device), y.new_zeros(p, y.shape[1])
    left = torch.ones(len(y), dtype=torch.bool, device=y.device).index_fill(0, near, False).nonzero()[:, 0]
    for part in blocks(len(left), p, y.device):
        own = left[part]
        F = features(rows[own])
        lost = (kernel.diagonal(rows[own]) - F.square().sum(1)).clamp_min(0)
        scaled = F.mT / (D[own] + lost)
        V.addmm_(scaled, F)
        c.addmm_(scaled, y[own])
    factor = cholesky(V)
    return Far(near, rows[near], features, whole, factor, factor.solve(c), phi, factor.whiten(phi.mT), target)


def _some(index: Int[Tensor, " n"], size: int, generator: torch.Generator) -> Int[Tensor, " s"]:
    """Drawn without repeats."""
    return index[torch.randperm(len(index), generator=generator)[:size].to(index.device)]
