"""The distribution kernel: how alike two rows are, times how alike the distributions that they were drawn from.

    K((x, P), (x', P')) = s^2 (k_X(x, x') k_P(P, P') + o^2 [P = P'])

k_X is the kernel of an infinitely wide network, s the scale, o the level that a domain has of its own. k_P compares mean embeddings: with
base samples b_i of the domains and K_base = F F^T, their matrix in the same network, the embedding of a row x of domain d is

    h_d(x) = sum_{i in d} w_d(x)_i F_i,    w_d(x) = softmax_i((phi x).A_d (phi b_i) + v_d.(phi b_i))

    product        k_P = h.h'                                   the kernel of the paper (Wu et al., 2022)
    cosine         k_P = h.h' / (|h| |h'|)                      the same, of unit variance
    centred        the cosine of (h - m, tau)                   m the mean embedding of all base samples, tau learned
    exponential    k_P = exp(-|h - h'|^2 / (2 l^2))             l learned (Christmann and Steinwart, 2010); |h - h'| is the MMD

Nested in it, exactly: A = v = 0 are uniform weights, so that k_P is one number for two domains, lam = c_st / (c_ss c_tt)^(1/2) with
c_dd' = mean K_base over d x d' in the cosine form, and |h - h'|^2 = c_ss + c_tt - 2 c_st. A = 0 alone makes the weights independent of x:
importance weights. Equal base samples give k_P = 1, the pooled process. `Correlation` has the numbers themselves: lam free is the adaptive
transfer process (Cao et al., 2010), lam = 0 the target alone, lam = 1 the pooled one. What does not depend on i cancels in the softmax, so
that weights of the form v.[phi x; phi b_i] would not depend on x at all: hence the product with A_d.

As N grows, f(x, P) = N^(-1/2) sum_j a_j g_j(x) h_j(P), with g and h two networks of N outputs and h_j(P) = sum_i w_i h_j(b_i), has this
covariance, and the tangent kernel (network.py)

    Theta = K_g K_h + Theta_g K_h + K_g Theta_h,    Theta_h = w^T Theta_base w'          readout + product rule

Equations (A2), (A3), (A4), (A5), (A6): docs/derivations/adapt.md.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.checks import choice
from driftway.kernels import Network, Pair

FORMS = ("product", "cosine", "centred", "exponential")


@dataclass(frozen=True)
class Rows:
    """Rows with their domains.

    Attributes:
        X: inputs, standardised.
        domain: 0 for the target, 1, ..., D for the sources.
    """

    X: Float[Tensor, "n d"]
    domain: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: "slice | Tensor") -> "Rows":
        return Rows(self.X[index], self.domain[index])


class Domains(ABC):
    """How alike the domains of rows are: k_P, and what training the embedding adds."""

    @abstractmethod
    def kernels(self, a: Rows, b: Rows) -> Pair:
        """k_P between rows, and its tangent kernel; the latter is 0 where nothing is trained."""

    @abstractmethod
    def diagonals(self, a: Rows) -> Pair:
        """The same of each row with itself."""

    def correlation(self, a: Rows, b: Rows) -> Float[Tensor, "n m"]:
        """k_P between rows alone."""
        return self.kernels(a, b).nngp


@dataclass(frozen=True)
class Correlation(Domains):
    """Numbers: the target is e_0, source d is lam_d e_0 + (1 - lam_d^2)^(1/2) e_d.

    So sources share what they share with the target, and k_P is positive semidefinite for |lam_d| <= 1.

    Attributes:
        lam: correlation of each source with the target.
    """

    lam: Float[Tensor, " D"]

    @property
    def matrix(self) -> Float[Tensor, "domains domains"]:
        """k_P of the domains, the target first."""
        u = torch.cat([self.lam.new_ones(1), self.lam])
        own = torch.cat([self.lam.new_zeros(1), 1 - self.lam.square()])
        return torch.outer(u, u) + torch.diag(own)

    def kernels(self, a: Rows, b: Rows) -> Pair:
        k = self.matrix[a.domain][:, b.domain]
        return Pair(k, torch.zeros_like(k))

    def diagonals(self, a: Rows) -> Pair:
        k = self.lam.new_ones(len(a))
        return Pair(k, torch.zeros_like(k))


@dataclass(frozen=True)
class Base:
    """Base samples of all domains, and their kernel.

    Attributes:
        rows: the samples.
        weight: how much each counts.
        F: coordinates, F F^T = K_base.
        T: the same of the tangent kernel Theta_base.
    """

    rows: Rows
    weight: Float[Tensor, " b"]
    F: Float[Tensor, "b r"]
    T: Float[Tensor, "b t"]


@torch.no_grad()
def base(network: Network, rows: Rows, relevance: Float[Tensor, " d"], weight: Float[Tensor, " b"] | None = None) -> Base:
    """Coordinates of base samples in the network."""
    pair = network.kernels(rows.X * relevance)
    return Base(rows, rows.X.new_ones(len(rows)) if weight is None else weight, _coordinates(pair.nngp), _coordinates(pair.ntk))


def _coordinates(K: Float[Tensor, "b b"]) -> Float[Tensor, "b r"]:
    mu, U = torch.linalg.eigh(K)
    live = mu > len(K) * torch.finfo(K.dtype).eps * mu[-1]
    return U[:, live] * mu[live].sqrt()


@dataclass(frozen=True)
class Attention:
    """Weights of base samples for each row.

    Attributes:
        phi: map of inputs to r features.
        A: one matrix for each domain.
        v: one vector for each domain.
    """

    phi: Float[Tensor, "r d"]
    A: Float[Tensor, "domains r r"]
    v: Float[Tensor, "domains r"]

    def weights(self, a: Rows, b: Base) -> Float[Tensor, "n b"]:
        """w_d(x) over the base samples, 0 outside of the row's own domain."""
        left, right = a.X @ self.phi.mT, b.rows.X @ self.phi.mT
        scores = (torch.einsum("nr,nrs->ns", left, self.A[a.domain]) + self.v[a.domain]) @ right.mT + b.weight.log()
        return scores.masked_fill(a.domain[:, None] != b.rows.domain, -torch.inf).softmax(1)


def uniform(a: Rows, b: Base) -> Float[Tensor, "n b"]:
    """Equal weights of all base samples of a row's domain, but for how much they count."""
    own = (a.domain[:, None] == b.rows.domain) * b.weight
    return own / own.sum(1, keepdim=True)


@dataclass(frozen=True)
class Embedded(Domains):
    """Mean embeddings of base samples.

    Attributes:
        base: the samples.
        form: product, cosine, centred or exponential.
        size: tau or l, for the latter two.
        attention: weights by row; uniform if None.
    """

    base: Base
    form: str = "cosine"
    size: Float[Tensor, ""] | None = None
    attention: Attention | None = None

    def __post_init__(self) -> None:
        choice("form", self.form, FORMS)

    def weights(self, a: Rows) -> Float[Tensor, "n b"]:
        """w_d(x) of every row over all base samples."""
        return uniform(a, self.base) if self.attention is None else self.attention.weights(a, self.base)

    def embed(self, a: Rows) -> tuple[Float[Tensor, "n r"], Float[Tensor, "n t"]]:
        """Coordinates whose inner products are k_P (distances, for the exponential form), and those of its tangent kernel."""
        W = self.weights(a)
        h, norm = self._embed(W)
        t = W @ self.base.T
        if self.form == "centred":
            t = t - self._share @ self.base.T
        return h, t / norm

    def _embed(self, W: Float[Tensor, "n b"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, "n 1"]]:
        """The first of them, and what both are divided by."""
        h = W @ self.base.F
        if self.form == "centred":
            h = torch.cat([h - self._share @ self.base.F, self._size.expand(len(h), 1)], 1)
        norm = h.norm(dim=1, keepdim=True) if self.form in ("cosine", "centred") else h.new_ones(len(h), 1)
        return h / norm, norm

    @property
    def _share(self) -> Float[Tensor, " b"]:
        return self.base.weight / self.base.weight.sum()

    def kernels(self, a: Rows, b: Rows) -> Pair:
        k = self.correlation(a, b)
        if self.form == "exponential":
            return Pair(k, torch.zeros_like(k))
        return Pair(k, self.embed(a)[1] @ self.embed(b)[1].mT)

    def correlation(self, a: Rows, b: Rows) -> Float[Tensor, "n m"]:
        h = self._embed(self.weights(a))[0]
        g = h if a is b else self._embed(self.weights(b))[0]
        if self.form != "exponential":
            return h @ g.mT
        square = h.square().sum(1, keepdim=True) + g.square().sum(1) - 2 * h @ g.mT
        return torch.exp(-square.clamp_min(0) / (2 * self._size**2))

    def diagonals(self, a: Rows) -> Pair:
        h, t = self.embed(a)
        if self.form != "exponential":
            return Pair(h.square().sum(1), t.square().sum(1))
        return Pair(h.new_ones(len(h)), h.new_zeros(len(h)))

    @property
    def _size(self) -> Float[Tensor, ""]:
        return self.base.F.new_ones(()) if self.size is None else self.size


@dataclass(frozen=True)
class DistributionKernel:
    """K, as at the top of the file.

    Attributes:
        network: whose kernels k_X and Theta_X are.
        relevance: what columns are multiplied by before the network sees them.
        domains: k_P.
        scale: s.
        offset: o.
    """

    network: Network
    relevance: Float[Tensor, " d"]
    domains: Domains
    scale: Float[Tensor, ""]
    offset: Float[Tensor, ""]

    def gram(self, a: Rows) -> Float[Tensor, "n n"]:
        """K of rows with themselves."""
        return self.compose(self.network.kernel("nngp", a.X * self.relevance), a, a)

    def cross(self, a: Rows, b: Rows) -> Float[Tensor, "n m"]:
        """K between rows."""
        return self.compose(self.network.kernel("nngp", a.X * self.relevance, b.X * self.relevance), a, b)

    def diagonal(self, a: Rows) -> Float[Tensor, " n"]:
        """K of each row with itself."""
        k = self.network.kernel_diagonals(a.X * self.relevance).nngp
        return self.scale**2 * (k * self.domains.diagonals(a).nngp + self.offset**2)

    def compose(self, k: Float[Tensor, "n m"], a: Rows, b: Rows) -> Float[Tensor, "n m"]:
        """K between rows, from k_X between them."""
        same = (a.domain[:, None] == b.domain).to(k)
        return self.scale**2 * (k * self.domains.correlation(a, b) + self.offset**2 * same)

    def pair(self, a: Rows, b: Rows | None = None) -> Pair:
        """K and Theta between rows. The level of a domain is a parameter of the last layer: in Theta as it is in K."""
        x = self.network.kernels(a.X * self.relevance, None if b is None else b.X * self.relevance)
        b = a if b is None else b
        same = (a.domain[:, None] == b.domain).to(x.nngp)
        return self._pair(x, self.domains.kernels(a, b), same)

    def pair_diagonals(self, a: Rows) -> Pair:
        """K and Theta of each row with itself."""
        return self._pair(self.network.kernel_diagonals(a.X * self.relevance), self.domains.diagonals(a), a.X.new_ones(len(a)))

    def _pair(self, x: Pair, p: Pair, same: Tensor) -> Pair:
        K = x.nngp * p.nngp + self.offset**2 * same
        return Pair(self.scale**2 * K, self.scale**2 * (K + x.ntk * p.nngp + x.nngp * p.ntk))
