r"""Maps of inputs: from the law of a source's rows to the law of the target's.

Rows are centred at the target's mean, and each column is divided by the root of the mean of its two variances, so that no unit counts.
Two maps T, with target prices g that prove how far T is from the cheapest one:

    value      T(x) = x - grad V_0(x), where V_0 solves the transport problem of `driftway.transport` with sigma = 0: one explicit step
    moments    T(x)_j = m'_j + D_j (x_j - m_j),  D_j = s'_j / s_j;      g(y) = sum_j (y_j - m'_j)^2 / (2 D_j) + m_j y_j - |y|^2 / 2

with means m, m' and deviations s, s' of source and target. The second is optimal between normal laws with independent columns: g is the
Legendre transform of the potential sum_j D_j (x_j - m_j)^2 / 2 + m'_j x_j, less |y|^2 / 2 (Brenier, 1991).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.frame import canonical
from driftway.checks import choice, require
from driftway.kernels import Gaussian, MMDTest, median_bandwidth, mmd_test
from driftway.transport import Certificate, Settings, TransportModel, certificate, fit
from driftway.transport.dual import bracket

STEPS, ROWS, MOST = 500, 10, 1000  # steps of training; rows of a component, for each column; rows of a test and of a certificate


@dataclass(frozen=True)
class Moments:
    """The diagonal normal map, and its target prices.

    Attributes:
        m: (k,) mean of the source.
        own: (k,) m', mean of the target.
        D: (k,) ratio of the deviations; 0 where the source does not vary.
    """

    m: Float[Tensor, " k"]
    own: Float[Tensor, " k"]
    D: Float[Tensor, " k"]

    def map(self, x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """T(x)."""
        return self.own + self.D * (x - self.m)

    def price(self, y: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """g(y), up to a constant."""
        square = torch.where(self.D > 0, (y - self.own).square() / (2 * self.D), 0.0)
        return (square + self.m * y - y.square() / 2).sum(1)


@dataclass(frozen=True)
class InputMap:
    """From the inputs of a source to those of the target, and what is known of it.

    Attributes:
        columns: which are mapped; the others stay as they are.
        centre: (k,) subtracted from them.
        unit: (k,) what is left is divided by this.
        inner: the map of such rows.
        certificate: bracket of half the squared W2 distance of the mapped columns, in these units, from at most 1,000 rows of each domain.
        after: test of equal laws of these columns, with the source mapped. The map has seen these rows: a small p-value says that it
            fell short, a large one says little.
    """

    columns: tuple[int, ...]
    centre: Float[Tensor, " k"]
    unit: Float[Tensor, " k"]
    inner: Moments | TransportModel
    certificate: Certificate
    after: MMDTest

    def __call__(self, X: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows of the source, mapped; a copy."""
        mapped, own = X.clone(), list(self.columns)
        mapped[:, own] = moved(self.inner, (X[:, own] - self.centre) / self.unit) * self.unit + self.centre
        return mapped


def moved(inner: Moments | TransportModel, x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """T(x)."""
    return inner.map(x) if isinstance(inner, Moments) else inner.sample(x, steps=1, rule="explicit")


def input_map(X: Float[Tensor, "n d"], Y: Float[Tensor, "m d"], *, how: str = "value", columns: Sequence[int], family: str = "auto",
              steps: int = STEPS, settings: Settings | None = None, seed: int = 0, weight: Float[Tensor, " n"] | None = None,
              weight_target: Float[Tensor, " m"] | None = None) -> InputMap:  # fmt: skip
    """The map from the law of X to that of Y.

    Args:
        X: rows of the source.
        Y: rows of the target.
        how: value or moments.
        columns: which are mapped, at least one.
        family: of the value; auto: mixture up to 8 columns, then residual.
        steps: of its training.
        settings: of its training; None: as few components as the rows support, and small batches.
        seed: of everything random.
        weight: of the rows of X. The value takes rows of weight 0 out and counts the others alike.
        weight_target: of the rows of Y.

    Raises:
        InputError: if how is unknown, no column is given, or a domain has fewer than two rows.
    """
    choice("how", how, ("value", "moments"))
    require(len(columns) > 0, "columns", expected="at least one column", got="none", cure="leave the rows as they are")
    known, (own, spread), unit, (x, y) = _standard(X, Y, weight, weight_target)
    m, s = _weighted(X, known)
    k = list(columns)
    D = torch.where(s > 0, spread / s.where(s > 0, 1.0), 0.0)
    inner: Moments | TransportModel = Moments(((m - own) / unit)[k], torch.zeros_like(own)[k], D[k])
    if how == "value" and bool((y[:, k] != y[:1, k]).any()):  # onto a single point the other is exact
        inner = _valued(x[:, k], y[:, k], family, steps, settings, seed)
    x, y = _some(x[:, k]), _some(y[:, k])
    z = moved(inner, x)
    if isinstance(inner, Moments):
        proven = bracket(x, z, y, inner.price(y))
    else:
        proven = certificate(inner, x, y, steps=1, rule="explicit")
    return InputMap(tuple(k), own[k], unit[k], inner, proven, _tested(z, y, seed))


def equal_laws(X: Float[Tensor, "n d"], Y: Float[Tensor, "m d"], *, seed: int = 0, weight: Float[Tensor, " n"] | None = None,
               weight_target: Float[Tensor, " m"] | None = None) -> MMDTest:  # fmt: skip
    """The permutation test of one law of inputs, on at most 1,000 rows of each domain, by the Gaussian kernel of the median distance.

    Args:
        X: rows of the source.
        Y: rows of the target.
        seed: of the permutations.
        weight: of the rows of X; those of weight 0 are left out.
        weight_target: of the rows of Y.

    Raises:
        InputError: if a domain has fewer than two rows.
    """
    x, y = _standard(X, Y, weight, weight_target)[-1]
    return _tested(_some(x), _some(y), seed)


def _standard(X: Tensor, Y: Tensor, weight: Tensor | None,
              weight_target: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, tuple[Tensor, Tensor]]:  # fmt: skip
    """Weights of X; mean and deviation of Y; the unit; the rows of both that weigh something, in order, in that unit about that mean."""
    w, v = (torch.ones_like(rows[:, 0]) if own is None else own for rows, own in ((X, weight), (Y, weight_target)))
    for name, own in (("source", w), ("target", v)):
        many = int((own > 0).sum())
        require(many > 1, "X", expected=f"at least 2 rows of the {name}, whose law is to be known", got=many,
                cure="add rows; those of the target need no label")  # fmt: skip
    (_, s), (mean, spread) = _weighted(X, w), _weighted(Y, v)
    unit = ((s.square() + spread.square()) / 2).sqrt()
    unit = unit.where(unit > 0, 1.0)
    x, y = (((rows - mean) / unit)[own > 0] for rows, own in ((X, w), (Y, v)))
    return w, (mean, spread), unit, (x[canonical(x)], y[canonical(y)])


def _some(x: Tensor) -> Tensor:
    return x[:: -(-len(x) // MOST)]


def _weighted(X: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations; a deviation of rounding is none."""
    share = weight / weight.sum()
    mean = share @ X
    deviation = (share @ (X - mean).square()).sqrt()
    return mean, deviation.where(deviation > 1e-12 * mean.abs(), 0.0)


def _valued(x: Tensor, y: Tensor, family: str, steps: int, settings: Settings | None, seed: int) -> TransportModel:
    rows = min(len(x), len(y))
    components = max(1, min(64, rows // (ROWS * x.shape[1])))
    small = Settings(components=components, width=64, batch=128, candidates=256, mixture_batch=256) if settings is None else settings
    held = x[:2], y[:2]  # certificates are asked for afterwards
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "target: .* columns are constant")  # mapped to the constant, as they should be
        return fit(x, y, held=held, family=family, steps=steps, settings=small, seed=seed, certify_every=steps + 1)


def _tested(x: Tensor, y: Tensor, seed: int) -> MMDTest:
    both = torch.cat([x, y])
    if bool((both == both[:1]).all()):
        return MMDTest(0.0, 1.0, torch.zeros(1, dtype=x.dtype), 0.05)
    return mmd_test(x, y, kernel=Gaussian(median_bandwidth(x, y)), generator=torch.Generator().manual_seed(seed))
