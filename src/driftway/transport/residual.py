r"""Values with a quadratic base: the answer for two normal laws with the data's moments, and perceptrons for the rest.

    V_t(x) = V^q_t(x) + R(x, t)        g(y) = g^q(y) + h(y)        V^q, g^q: a mixture of one component, y | x ~ N(S x + r, eps S)
    S = Cx^(-1/2) ((Cx^(1/2) Cy Cx^(1/2) + eps^2/4 I)^(1/2) - eps/2 I) Cx^(-1/2)        r = E y - S E x

S solves S Cx S + eps S = Cy, so the base has the target's mean and covariance: with eps = 0 it is the optimal map T(x) = S x + r
between the normal laws (Bures), with eps = sigma^2 their Schrödinger bridge. Moments are unbiased by batches, so the base leaves to
the networks only what is not linear.

Sources: Bures (1969); Bunne et al. (2023), arXiv 2202.05722, Theorem 3, for the bridge.

Equations (T11), (T12): docs/derivations/transport.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.transport.inner import Price
from driftway.transport.mixture import ManyTimes, MixtureValue
from driftway.transport.value import NetworkValue, Trainable

SHARP = 1e-3  # entropy at which the base is read when sigma = 0, in model space, where a column has unit variance


class ResidualValue(Trainable):
    """A quadratic base and a residual network: the family for vectors of many entries.

    Args:
        event: shape of one state.
        width: units per hidden layer.
        depth: hidden layers.
        heads: pieces of the residual's soft minimum.
        classes: classes of the condition, or 0.
        columns: entries of condition vectors, or 0.
    """

    def __init__(self, event: tuple[int, ...], *, width: int = 64, depth: int = 3, heads: int = 32, classes: int = 0,
                 columns: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.event = tuple(event)
        self.base = MixtureValue(event, components=1).requires_grad_(False)
        self.rest = NetworkValue(event, width=width, depth=depth, heads=heads, classes=classes, columns=columns)
        self.b = Price(1, width=32, classes=classes, columns=columns)
        self.law: tuple[object, ManyTimes] | None = None

    def value(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, " n"]:
        return self.quadratic(x, t)[0] + self.rest.value(x, t, c) + self.b(t[:, None], c)

    def gradient(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None) -> Float[Tensor, "n *event"]:
        return self.quadratic(x, t)[1] + self.rest.gradient(x, t, c)

    def quadratic(self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *event"]]:
        """Value and gradient of the base, in the axes of S, which are found once: the base does not change while networks train."""
        key = [(tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in self.base.parameters()]
        if self.law is None or self.law[0] != key:
            self.law = (key, self.base.many_times())
        logits, slope = self.law[1].logits_and_slope(x.flatten(1), t)
        return -self.base.eps * logits[:, 0], slope.reshape(x.shape)

    def value_and_gradient(
        self, x: Float[Tensor, "n *event"], t: Float[Tensor, " n"], c: Tensor | None = None
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *event"]]:
        """V is differentiable in b alone, grad V in the residual."""
        R, gradient = self.rest.value_and_gradient(x, t, c)
        level, slope = self.quadratic(x, t)
        return level + R.detach() + self.b(t[:, None], c), slope + gradient

    def price(self, y: Float[Tensor, "m *event"], c: Tensor | None = None) -> Float[Tensor, " m"]:
        return self.base.price(y) + self.rest.price(y, c)

    @torch.no_grad()
    def map(self, x: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        """T(x) = S x + r of the base."""
        return x - self.quadratic(x, torch.zeros_like(x.flatten(1)[:, 0]))[1]


@torch.no_grad()
def fit_base(value: ResidualValue, x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], *, eps: float) -> None:
    """Set the base from the moments of source rows x and target rows y; the residual starts near zero.

    Args:
        value: whose base is set.
        x: many source rows.
        y: many target rows.
        eps: sigma^2, or 0.
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    eye = torch.eye(x.shape[1]).to(x)
    covariances = (torch.cov(rows.T).reshape(eye.shape) for rows in (x, y))
    Cx, Cy = (covariance + 1e-4 * covariance.trace() / len(covariance) * eye for covariance in covariances)
    s, U = torch.linalg.eigh(Cx)
    root, inverse = (U * s.sqrt()) @ U.T, (U / s.sqrt()) @ U.T
    w, W = torch.linalg.eigh(root @ Cy @ root)
    inner = (W * ((w.clamp_min(0) + eps**2 / 4).sqrt() - eps / 2).clamp_min(1e-9)) @ W.T
    S = inverse @ inner @ inverse
    base = value.base
    base.eps.fill_(eps or SHARP)
    L = torch.linalg.cholesky((S + S.T) / 2 + 1e-7 * eye)
    found = {"r": y.mean(0) - S @ x.mean(0), "lower": L.tril(-1), "log_diagonal": L.diagonal().log()}
    base.load_state_dict({**base.state_dict(), **{name: tensor[None] for name, tensor in found.items()}})
    value.rest.V.head.weight.mul_(0.1)
    value.rest.g.head.weight.mul_(0.1)
