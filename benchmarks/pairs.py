"""Pairs of laws in any dimension whose optimal map is known: T = grad psi with psi convex (Brenier, 1991).

    gaussians     N(0, A A^T) -> N(m, B B^T)       T(x) = m + R^-1 (R B B^T R)^(1/2) R^-1 x,  R = (A A^T)^(1/2)
    ridges        a Gaussian mixture -> T#source   psi = x.H x / 2 + sum_k c/s log cosh(s u_k.x + b_k)
                                                   T(x) = H x + sum_k c u_k tanh(s u_k.x + b_k)
    pieces        N(0, I) -> T#source              psi = tau log sum_k exp((x.S_k x / 2 + r_k.x + a_k) / tau)
                                                   T(x) = sum_k w_k (S_k x + r_k),  w = softmax((x.S_k x / 2 + r_k.x + a_k) / tau)

`ridges` lies in none of our families; `pieces` has kinks and several modes and is near the mixture family; `gaussians` is a mixture
with one component, and the base of the residual family. Both laws of a pair are shifted by one vector and divided by one number,
so that the target has mean 0 and mean variance 1. A map z of source rows x with true ends y = T(x) is scored by

    L2-UVP = 100 E|z - y|^2 / sum of the variances of y           percent of the target's variance that is unexplained
    cosine = E (z-x).(y-x) / (E|z-x|^2 E|y-x|^2)^(1/2)

Sources: Bures (1969) for the normal laws; Korotin et al. (2021), arXiv 2106.01954, section 4, for the scores.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from driftway.transport.stream import generator

Sampler = Callable[[int, torch.Generator], Tensor]
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """Two laws and the optimal map between them.

    Attributes:
        source: sampler (n, generator) -> (n, d).
        optimal: T, (n, d) -> (n, d).
    """

    source: Sampler
    optimal: Map

    def target(self, n: int, own: torch.Generator) -> Float[Tensor, "n d"]:
        """Rows of the target, independent of source rows drawn elsewhere."""
        return self.optimal(self.source(n, own))


def gaussians(d: int, seed: int) -> Pair:
    """Random covariances that do not commute."""
    own = generator("gaussians", d, seed)
    A, B = (torch.randn(d, d, generator=own) / d**0.5 + 0.5 * torch.eye(d) for _ in range(2))
    m = torch.randn(d, generator=own)
    R = _root((A @ A.T).double())
    inverse = torch.linalg.inv(R)
    T = (inverse @ _root(R @ (B @ B.T).double() @ R) @ inverse).float()
    return _standard(lambda n, own: torch.randn(n, d, generator=own) @ A.T, lambda x: x @ T + m)


def ridges(d: int, seed: int, *, modes: int = 4, s: float = 4.0) -> Pair:
    """Gaussian mixture, pushed by a quadratic plus max(4, d) log-cosh ridges in random directions; s sets how sharp they are."""
    own, K = generator("ridges", d, seed), max(4, d)
    centres = 1.2 * torch.randn(modes, d, generator=own)
    widths = 0.5 + 0.5 * torch.rand(modes, generator=own)
    Q = torch.linalg.qr(torch.randn(d, d, generator=own)).Q
    H = Q @ torch.diag(0.1 + 0.3 * torch.rand(d, generator=own)) @ Q.T
    directions = torch.linalg.qr(torch.randn(d, d, generator=own)).Q if d == K else torch.randn(K, d, generator=own)
    u = normalize(directions + 0.3 / d**0.5 * torch.randn(K, d, generator=own), dim=1)
    b, c = torch.randn(K, generator=own), d / K

    def source(n: int, own: torch.Generator) -> Tensor:
        k = torch.randint(modes, (n,), generator=own)
        return centres[k] + widths[k, None] * torch.randn(n, d, generator=own)

    return _standard(source, lambda x: x @ H + c * torch.tanh(s * x @ u.T + b) @ u)


def pieces(d: int, seed: int, *, modes: int = 5, tau: float = 0.3) -> Pair:
    """Standard normal, cut into cells of about equal mass that are moved by affine maps of their own; tau blunts the kinks."""
    own = generator("pieces", d, seed)
    r = 1.2 * d**0.5 * normalize(torch.randn(modes, d, generator=own), dim=1)
    M = torch.randn(modes, d, d, generator=own) / d**0.5
    S = 0.2 * torch.eye(d) + 0.15 * M @ M.mT
    a = torch.zeros(modes)

    def levels(x: Tensor) -> Tensor:
        return ((x @ S) * x).sum(2).T / 2 + x @ r.T + a

    x = torch.randn(4096, d, generator=own)
    free = levels(x)
    for _ in range(500):
        a = a + 0.3 * d**0.5 * (1 / modes - one_hot((free + a).argmax(1), modes).float().mean(0))

    def optimal(x: Tensor) -> Tensor:
        w = (levels(x) / tau).softmax(1)
        return torch.einsum("nk,kne->ne", w, x @ S) + w @ r

    return _standard(lambda n, own: torch.randn(n, d, generator=own), optimal)


PAIRS: dict[str, Callable[[int, int], Pair]] = {"gaussians": gaussians, "ridges": ridges, "pieces": pieces}


def linear(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> float:
    """L2-UVP of the best affine map from x to y, in the least-squares sense: what any model must beat."""
    one = torch.cat([x, torch.ones_like(x[:, :1])], 1).double()
    return score((one @ torch.linalg.lstsq(one, y.double()).solution), x, y)[0]


def score(z: Float[Tensor, "n d"], x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> tuple[float, float]:
    """L2-UVP in percent and cosine of ends z for starts x and true ends y."""
    uvp = 100 * (z - y).square().sum(1).mean() / y.var(0).sum()
    cosine = ((z - x) * (y - x)).sum() / ((z - x).square().sum() * (y - x).square().sum()).sqrt()
    return float(uvp), float(cosine)


def _standard(source: Sampler, optimal: Map) -> Pair:
    """Both laws shifted by the target's mean and divided by the root of its mean variance: T stays optimal."""
    y = optimal(source(20_000, generator("moments")))
    shift, scale = y.mean(0), y.var(0).mean().sqrt()
    return Pair(lambda n, own: (source(n, own) - shift) / scale, lambda x: (optimal(x * scale + shift) - shift) / scale)


def _root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    s, U = torch.linalg.eigh(matrix)
    return (U * s.clamp_min(0).sqrt()) @ U.T
