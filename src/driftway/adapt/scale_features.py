"""Features phi(x) whose inner products are the distribution kernel, or nearly so.

    inducing     phi(x) = K_xZ L^-T,  L L^T = K_ZZ             phi phi' <= K, with equality at the rows Z      (Williams and Seeger, 2001)
    random       phi_j(x, P) = s g_j(x) h_j(P) / N^(1/2)       E phi.phi' = K                                 (Rahimi and Recht, 2007)

g_j are the N outputs of a network drawn at width N, in whose limit k_X is E g_j(x) g_j(x'). h_j(P) = z_j.h(P) with z_j ~ N(0, I) and the
coordinates h of k_P = h.h', or 2^(1/2) cos(z_j.h / l + b_j) for the exponential form. So the random features are the channels of the
finite network (network.py), whose posterior has a normal law for each width. s o e_P, with e_P the unit vector of the domain, is the level.
Rows are scaled to their own variance K_ii.

Equation (A34): docs/derivations/adapt.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driftway.adapt.distribution_kernel import Correlation, DistributionKernel, Domains, Embedded, Rows
from driftway.adapt.network import Perceptron
from driftway.checks import InputError
from driftway.kernels import FullyConnected
from driftway.kernels.memory import row_slices
from driftway.linalg import Factor, cholesky

Features = Callable[[Rows], Tensor]
MEMORY = 0.25  # GiB of a block of rows


@dataclass(frozen=True)
class Inducing:
    """Features from the kernel with some rows.

    Attributes:
        cross: kernel between rows.
        rows: Z.
        factor: of K_ZZ.
    """

    cross: Callable[[Rows, Rows], Tensor]
    rows: Rows
    factor: Factor

    def __call__(self, a: Rows) -> Float[Tensor, "n p"]:
        return self.factor.whiten(self.cross(a, self.rows).mT).mT


def inducing(kernel: DistributionKernel, rows: Rows) -> Inducing:
    """The features of these rows in K."""
    return Inducing(kernel.cross, rows, cholesky(kernel.gram(rows)))


@dataclass(frozen=True)
class Channels:
    """Features of a random network.

    Attributes:
        kernel: K.
        g: the network of a row.
        z: what the coordinates of a domain are multiplied by.
        phase: b, for the exponential form.
        levels: domains.
    """

    kernel: DistributionKernel
    g: nn.Module
    z: Float[Tensor, "r N"]
    phase: Float[Tensor, " N"]
    levels: int

    @torch.no_grad()
    def __call__(self, a: Rows) -> Float[Tensor, "n p"]:
        kernel, domains = self.kernel, self.kernel.domains
        h = coordinates(domains, a) @ self.z
        if isinstance(domains, Embedded) and domains.form == "exponential":
            h = 2**0.5 * (h + self.phase).cos()
        level = nn.functional.one_hot(a.domain, self.levels).to(h) * kernel.offset
        phi = torch.cat([self.g(a.X * kernel.relevance) * h / h.shape[1] ** 0.5, level], 1)
        return phi * (kernel.diagonal(a) / phi.square().sum(1)).sqrt()[:, None]


def channels(kernel: DistributionKernel, rows: Rows, size: int, generator: torch.Generator) -> Channels:
    """Draw features.

    Args:
        kernel: K.
        rows: of all domains.
        size: N.
        generator: of all that is drawn.

    Raises:
        InputError: if the kernel is not that of a fully connected network.
    """
    network = kernel.network
    if not isinstance(network, FullyConnected):
        raise InputError("approximation", expected="a FullyConnected network for features", got=type(network).__name__,
                         cure="pass approximation='inducing'")  # fmt: skip

    def draw(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=rows.X.dtype).to(rows.X.device), requires_grad=False)

    z = draw(coordinates(kernel.domains, rows[:1]).shape[1], size).detach()
    phase = 2 * math.pi * torch.rand(size, generator=generator, dtype=rows.X.dtype).to(rows.X.device)
    return Channels(kernel, Perceptron(network, rows.X.shape[1], size, draw), z, phase, int(rows.domain.max()) + 1)


def coordinates(domains: Domains, a: Rows) -> Float[Tensor, "n r"]:
    """H with k_P = h.h'; for the exponential form, h / l with k_P = exp(-|h - h'|^2 / 2)."""
    if isinstance(domains, Correlation):
        u = torch.cat([domains.lam.new_ones(1), domains.lam])
        own = torch.diag((1 - u.square()).clamp_min(0).sqrt())
        return torch.cat([u[:, None], own[:, 1:]], 1)[a.domain]
    if not isinstance(domains, Embedded):
        raise InputError("approximation", expected="numbers or embeddings for features", got=type(domains).__name__,
                         cure="pass approximation='inducing'")  # fmt: skip
    h = domains.embed(a)[0]
    return h / domains.size if domains.form == "exponential" and domains.size is not None else h


def blocks(n: int, width: int, device: torch.device) -> list[slice]:
    """Slices of n rows, each with so many features that they fit into the cache."""
    return row_slices(n, width, memory=MEMORY, device=device)
