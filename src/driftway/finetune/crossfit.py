"""Cross-validation of the training time inside the kernel: what training does to rows it has not seen, without training a network.

Fold k keeps its rows F_k out, and trains on the N_k others. With f_0 at the start, K not divided by n, and the mean loss l:

    squared          f' = K M_k (y - f) / N_k              in closed form (flow.py)
    cross entropy    beta' = M_k (y - p(f)) / N_k,   f = f_0 + K beta,   p = sigmoid or softmax

    train(eta) = loss on all n rows, trained on all          held(eta) = mean loss of a row in the fold that lacks it

The network is trained on all rows; only its kernel is divided. Nothing is assumed of the noise, and a part of the kernel that a row shares
with no other, such as the diagonal of a kernel of signs, neither helps nor misleads. Cross entropy is followed by descent with steps of at
most 1 / (L mu_1), L = 1/4 or 1/2 (`logistic.py`), until the held rows are well past their best.

Under Adam, time runs faster as gradients shrink: a step of learning rate a moves eta by a (v_0 / v)^(1/2), where v, the running mean of
squared gradients, falls as the mean of u^2 = (y - p)^2 since the start. So the steps to eta are those of a plain clock to

    nominal(eta) = integral_0^eta (v / v_0)^(1/2)
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import choice, count, require
from driftway.finetune.flow import Flow
from driftway.finetune.logistic import _loss, _probability
from driftway.linalg import eigendecompose

LOSSES = ("squared", "cross_entropy")
FINE, RATIO, PAST, STEPS = 0.5, 2 ** (1 / 3), 1.1, 40_000  # step in 1 / (L mu_1); times; where to end; the most steps


@dataclass(frozen=True)
class Validation:
    """Losses along the path.

    Attributes:
        eta: times, the first of them 0.
        train: mean loss of the training rows, trained on all.
        held: mean loss of rows that were held out.
        error: part of the held rows whose class is not the one of the largest score; NaN for numbers.
        nominal: sum of learning rates by which Adam gets there.
    """

    eta: Float[Tensor, " t"]
    train: Float[Tensor, " t"]
    held: Float[Tensor, " t"]
    error: Float[Tensor, " t"]
    nominal: Float[Tensor, " t"]

    @property
    def best(self) -> float:
        """The time of the lowest held loss, on the parabola through its neighbours; infinite if the loss falls to the end."""
        i = int(self.held.argmin())
        if i == 0:
            return 0.0
        if i == len(self.eta) - 1:
            return math.inf
        if i == 1:
            return float(self.eta[1])
        a, b, c = self.held[i - 1 : i + 2].tolist()
        bend = a - 2 * b + c
        return float(self.eta[i]) * RATIO ** (0.5 * (a - c) / bend if bend > 0 else 0.0)

    def at(self, eta: float, values: Float[Tensor, " t"]) -> float:
        """One of the curves at a time, between its points."""
        if eta >= float(self.eta[-1]):
            return float(values[-1])
        i = max(int(torch.searchsorted(self.eta, eta)), 1)
        share = (eta - float(self.eta[i - 1])) / float(self.eta[i] - self.eta[i - 1])
        return float(values[i - 1]) * (1 - share) + float(values[i]) * share

    def steps_time(self, eta: float) -> float:
        """nominal(eta), going on at the last speed after the end."""
        end = float(self.eta[-1])
        if eta <= end or len(self.eta) < 2:
            return self.at(eta, self.nominal)
        speed = float(self.nominal[-1] - self.nominal[-2]) / float(self.eta[-1] - self.eta[-2])
        return float(self.nominal[-1]) + (eta - end) * speed


@torch.no_grad()
def cross_validate(K: Float[Tensor, "n n"], y: Float[Tensor, "n *k"], *, start: Float[Tensor, "n *k"] | None = None, loss: str = "squared",
                   folds: int = 10, generator: torch.Generator | None = None) -> Validation:  # fmt: skip
    """The path of training, and of rows held out of it.

    Args:
        K: tangent kernel, not divided by n.
        y: targets, numbers; for cross entropy 0. and 1., or one-hot rows.
        start: f_0(X); for cross entropy scores. 0 if None.
        loss: "squared" or "cross_entropy".
        folds: from 2 to n.
        generator: of the division, on the CPU; that of seed 0 if None.

    Raises:
        InputError: if shapes do not fit, there are more folds than rows, or the kernel is zero.
    """
    choice("loss", loss, LOSSES)
    n = len(y)
    require(K.shape == (n, n), "K", expected=f"shape ({n}, {n})", got=tuple(K.shape), cure="pass the kernel of the rows of y")
    require(2 <= count("folds", folds) <= n, "folds", expected=f"2 to {n}, the number of rows", got=folds, cure="pass e.g. folds=10")
    K, y = K.double(), y.double().to(K.device)
    f0 = torch.zeros_like(y) if start is None else start.double().to(K.device)
    order = torch.randperm(n, generator=generator or torch.Generator().manual_seed(0)).to(K.device)
    parts = [order[k::folds] for k in range(folds)]
    largest = float(torch.linalg.eigvalsh(K)[-1]) / n
    require(largest > 0, "K", expected="a kernel that is not zero", got="zeros", cure="check the scope and the head")
    if loss == "squared":
        return _closed(K, y - f0, parts, largest)
    return _walk(K, y, f0, parts, largest * (0.25 if y.ndim == 1 else 0.5))


def _closed(K: Tensor, r: Tensor, parts: list[Tensor], largest: float) -> Validation:
    n, whole = len(r), Flow(eigendecompose(K), r)
    eta = torch.cat([r.new_zeros(1), whole.times(200).to(r)])
    held = torch.zeros_like(eta)
    for out in parts:
        seen = torch.ones(n, dtype=torch.bool, device=r.device)
        seen[out] = False
        flow = Flow(eigendecompose(K[seen][:, seen]), r[seen])
        for part, into in zip(eta.split(16), held.split(16), strict=True):
            into += (r[out] - flow.predict(K[out][:, seen], part)).square().reshape(len(part), len(out), -1).mean(2).sum(1) / n
    train = whole.loss(eta).to(r)
    return Validation(eta, train, held, torch.full_like(eta, math.nan), _nominal(eta, train))


def _walk(K: Tensor, y: Tensor, f0: Tensor, parts: list[Tensor], sharpness: float) -> Validation:
    n, folds, k = len(y), len(parts), 1 if y.ndim == 1 else y.shape[1]
    trained = torch.ones(folds + 1, n, dtype=y.dtype, device=y.device)  # the last row: nothing held out
    for number, out in enumerate(parts):
        trained[number, out] = 0
    share = (trained / trained.sum(1, keepdim=True)).reshape(folds + 1, n, *[1] * (y.ndim - 1))
    fold = torch.empty(n, dtype=torch.long, device=y.device)
    for number, out in enumerate(parts):
        fold[out] = number
    rows = torch.arange(n, device=y.device)
    beta = torch.zeros(folds + 1, *y.shape, dtype=y.dtype, device=y.device)
    found: list[tuple[float, float, float, float, float]] = []

    def scores() -> Tensor:
        flat = beta.reshape(folds + 1, n, k).movedim(0, 1).reshape(n, -1)
        return f0 + (K @ flat).reshape(n, folds + 1, k).movedim(1, 0).reshape(beta.shape)

    def record(eta: float, f: Tensor) -> None:
        own = f[fold, rows]
        wrong = (own > 0) != (y > 0.5) if y.ndim == 1 else own.argmax(1) != y.argmax(1)
        found.append((eta, float(_loss(f[-1], y)), float(_loss(own, y)), float(wrong.double().mean()),
                      float((y - _probability(f[-1])).square().mean())))  # fmt: skip

    record(0.0, f := scores())
    eta, aim, taken = 0.0, FINE / sharpness, 0
    while taken < STEPS:
        m = max(1, math.ceil((aim - eta) * sharpness / FINE - 1e-9))
        for _ in range(m):
            p = f.sigmoid() if y.ndim == 1 else f.softmax(2)
            beta = beta + (aim - eta) / m * share * (y - p)
            f = scores()
        taken, eta, aim = taken + m, aim, aim * RATIO
        record(eta, f)
        losses = [entry[2] for entry in found]
        best = losses.index(min(losses))
        if (losses[-1] > PAST * losses[best] or found[-1][1] < 1e-3) and len(found) - 1 - best >= 6:
            break
    eta_, train, held, wrong, u2 = torch.tensor(found, dtype=y.dtype).T
    return Validation(eta_, train, held, wrong, _nominal(eta_, u2))


def _nominal(eta: Float[Tensor, " t"], u2: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """nominal(eta), with v the mean of u2 over the steps so far."""
    found, seen = [0.0], 0.0
    mean = float(u2[0])
    for i in range(1, len(eta)):
        step = float(eta[i] - eta[i - 1]) * math.sqrt(max(mean / float(u2[0]), 1e-12))
        seen += step * float(u2[i - 1] + u2[i]) / 2
        found.append(found[-1] + step)
        mean = seen / found[-1]
    return eta.new_tensor(found)
