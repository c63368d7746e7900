"""Cross-validation of the training time inside the kernel: what training does to rows it has not seen, without training a network.

Fold k keeps its rows F_k out, and trains on the N_k others. With f_0 at the start, K not divided by n, and the mean loss l:

    squared          f' = K M_k (y - f) / N_k              in closed form (flow.py)
    cross entropy    beta' = M_k (y - p(f)) / N_k,   f = f_0 + K beta,   p = sigmoid or softmax

    train(eta) = loss on all n rows, trained on all          held(eta) = mean loss of a row in the fold that lacks it

The network is trained on all rows; only its kernel is divided. Nothing is assumed of the noise, and a part of the kernel that a row shares
with no other, such as the diagonal of a kernel of signs, neither helps nor misleads. Cross entropy is followed by a stabilised method
(chebyshev.py; L = 1/4 or 1/2 bounds its Hessian, as in logistic.py) until the held rows are well past their best.

Under Adam, time runs faster as gradients shrink: a step of learning rate a moves eta by a (v_0 / v)^(1/2), where v, the running mean of
squared gradients, falls as the mean of u^2 = (y - p)^2 since the start. So the steps to eta are those of a plain clock to

    nominal(eta) = integral_0^eta (v / v_0)^(1/2)

Equations (F17), (F25): docs/derivations/finetune.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.checks import choice, count, moderate, numbers, require
from driftway.linalg import eigendecompose
from driftway.linalg.operator import symmetric_matrix
from driftway.stopping.chebyshev import chebyshev
from driftway.stopping.flow import Flow
from driftway.stopping.logistic import checked_start, cross_entropy, probability

LOSSES = ("squared", "cross_entropy")
FIRST, RATIO = 0.02, 2 ** (1 / 3)  # the first time in 1 / (L mu_1); each time over the one before
CLOSE, WORSE = 0.02, 0.02  # of the lowest held loss, and of the start, as a part of it
PAST, FITTED, AFTER, MOST = 1.1, 1e-3, 6, 4000  # held loss over its best, training loss, and times since, to end at; the most slopes


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

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InputError: if there are not 2 times or more that increase from 0.
        """
        require(len(self.eta) > 1 and float(self.eta[0]) == 0 and bool((self.eta.diff() > 0).all()), "validation",
                expected="2 times or more that increase from 0", got=f"{len(self.eta)} from {float(self.eta[:1].sum()):g}",
                cure="take it from cross_validate or Problem.validation")  # fmt: skip

    @property
    def gains(self) -> bool:
        """Whether the held loss falls from the start by more than CLOSE of its lowest."""
        return float(self.held[0]) > (1 + CLOSE) * float(self.held.min())

    @property
    def best(self) -> float:
        """The first time at which the held loss is within CLOSE of its lowest; infinite if that is where the path ends.

        The curve is flat near its lowest point, and networks leave the kernel's path towards overfitting: the early side is the safer one.
        Where nothing is gained, the last time up to which the loss is within WORSE of the start.
        """
        held = self.held
        if not self.gains:
            worse = (held > (1 + WORSE) * held[0]).nonzero().flatten()
            return self._crossing(int(worse[0]), (1 + WORSE) * float(held[0])) if len(worse) else math.inf
        level = (1 + CLOSE) * float(held.min())
        i = int((held <= level).nonzero()[0])
        return math.inf if i == len(held) - 1 else self._crossing(i, level)

    def _crossing(self, i: int, level: float) -> float:
        """The time between the points i - 1 and i at which the held loss passes a level."""
        before, after = self.held[i - 1 : i + 1].tolist()
        share = (level - before) / (after - before) if after != before else 1.0
        return float(self.eta[i - 1]) + min(max(share, 0.0), 1.0) * float(self.eta[i] - self.eta[i - 1])

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
        if eta <= end:
            return self.at(eta, self.nominal)
        speed = float(self.nominal[-1] - self.nominal[-2]) / float(self.eta[-1] - self.eta[-2])
        return float(self.nominal[-1]) + (eta - end) * speed


@torch.no_grad()
def cross_validate(K: Float[Tensor, "n n"], y: Tensor, *, start: Tensor | None = None, loss: str = "squared",
                   folds: int = 10, held: Int[Tensor, " m"] | None = None,
                   generator: torch.Generator | None = None) -> Validation:  # fmt: skip
    """The path of training, and of rows held out of it.

    Args:
        K: tangent kernel, not divided by n.
        y: (n,) or (n, k) targets, numbers; for cross entropy 0. and 1., or one-hot rows.
        start: f_0(X); for cross entropy scores. 0 if None.
        loss: "squared" or "cross_entropy".
        folds: from 2 to the number of rows that are held out.
        held: rows to hold out in turn, where the kernel knows the labels of the others (`Head.half`); all if None.
        generator: of the division, on the CPU; that of seed 0 if None.

    Raises:
        InputError: if shapes do not fit, numbers are not finite, targets of cross entropy are no probabilities, there are more folds than
            rows, or the kernel is zero.
    """
    choice("loss", loss, LOSSES)
    K, n = symmetric_matrix("K", K).double(), len(K)
    y, start = numbers("y", y), None if start is None else numbers("start", start)
    rows = f"{len(y)}" if y.ndim in (1, 2) and y.numel() else f"shape {tuple(y.shape)}"
    require(rows == f"{n}", "y", expected=f"{n} rows, as K has", got=rows, cure="pass the kernel of the rows of y")
    out = torch.arange(n) if held is None else held.cpu()
    require(2 <= count("folds", folds) <= len(out), "folds", expected=f"2 to {len(out)}, the rows to hold out", got=folds,
            cure="pass e.g. folds=5")  # fmt: skip
    y = y.double().to(K.device)
    f0 = torch.zeros_like(y) if start is None else start.double().to(K.device)
    require(f0.shape == y.shape, "start", expected=f"shape {tuple(y.shape)}, that of y", got=tuple(f0.shape), cure="pass f_0(X)")
    for argument, given in (("y", y), ("start", f0)):
        moderate(argument, given)
    if loss == "cross_entropy":
        checked_start(K, y, f0)
    order = out[torch.randperm(len(out), generator=generator or torch.Generator().manual_seed(0))].to(K.device)
    parts = [order[k::folds] for k in range(folds)]
    largest = float(torch.linalg.eigvalsh(K)[-1]) / n
    require(largest > 0, "K", expected="a kernel that is not zero", got="zeros", cure="check the scope and the head")
    if loss == "squared":
        return _closed(K, y - f0, parts)
    return _walk(K, y, f0, parts, largest * (0.25 if y.ndim == 1 else 0.5))


def _closed(K: Tensor, r: Tensor, parts: list[Tensor]) -> Validation:
    n, whole = len(r), Flow(eigendecompose(K), r)
    eta = torch.cat([r.new_zeros(1), whole.times(200).to(r)])
    held, total = torch.zeros_like(eta), sum(map(len, parts))
    for out in parts:
        seen = torch.ones(n, dtype=torch.bool, device=r.device)
        seen[out] = False
        flow = Flow(eigendecompose(K[seen][:, seen]), r[seen])
        for part, into in zip(eta.split(16), held.split(16), strict=True):
            into += (r[out] - flow.predict(K[out][:, seen], part)).square().reshape(len(part), len(out), -1).mean(2).sum(1) / total
    eta, train, held = eta.cpu(), whole.loss(eta).to(r).cpu(), held.cpu()
    return Validation(eta, train, held, torch.full_like(eta, math.nan), _nominal(eta, train))


def _walk(K: Tensor, y: Tensor, f0: Tensor, parts: list[Tensor], sharpness: float) -> Validation:
    n, folds, shape = len(y), len(parts), (len(parts) + 1, *y.shape)
    trained = torch.ones(folds + 1, n, dtype=y.dtype, device=y.device)  # the last row: nothing held out
    rows, fold = torch.cat(parts), torch.cat([torch.full_like(out, number) for number, out in enumerate(parts)])
    trained[fold, rows] = 0
    share = (trained / trained.sum(1, keepdim=True)).reshape(folds + 1, n, *[1] * (y.ndim - 1))

    def slope(f: Tensor) -> Tensor:
        gap = share * (y - (f.sigmoid() if y.ndim == 1 else f.softmax(2)))
        return (K @ gap.reshape(folds + 1, n, -1).movedim(0, 1).reshape(n, -1)).reshape(n, folds + 1, -1).movedim(1, 0).reshape(shape)

    def seen(eta: float, f: Tensor) -> tuple[float, float, float, float, float]:
        own, true = f[fold, rows], y[rows]
        wrong = (own > 0) != (true > 0.5) if y.ndim == 1 else own.argmax(1) != true.argmax(1)
        return (eta, float(cross_entropy(f[-1], y)), float(cross_entropy(own, true)), float(wrong.double().mean()),
                float((y - probability(f[-1])).square().mean()))  # fmt: skip

    f = f0.expand(shape).clone()
    eta, aim, taken, best, found = 0.0, FIRST / sharpness, 0, 0, [seen(0.0, f)]
    while taken < MOST:
        f, stages = chebyshev(slope, f, aim - eta, rho=sharpness)
        found.append(seen(aim, f))
        eta, aim, taken = aim, aim * RATIO, taken + stages
        best = len(found) - 1 if found[-1][2] < found[best][2] else best
        if (found[-1][2] > PAST * found[best][2] or found[-1][1] < FITTED) and len(found) - 1 - best >= AFTER:
            break
    times, train, held, error, u2 = torch.tensor(found, dtype=torch.float64).T.contiguous()
    return Validation(times, train, held, error, _nominal(times, u2))


def _nominal(eta: Float[Tensor, " t"], u2: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """nominal(eta), with v the mean of u2 over the steps so far: at the start of an interval, and at its end as that would have it."""
    first = max(float(u2[0]), 1e-300)
    found, seen, mean = [0.0], 0.0, first
    for gap, u in zip(eta.diff().tolist(), ((u2[1:] + u2[:-1]) / 2).tolist(), strict=True):
        step = gap * math.sqrt(mean / first)
        after = (seen + step * u) / (found[-1] + step)
        step = max(gap * (math.sqrt(mean / first) + math.sqrt(after / first)) / 2, 1e-6 * gap)
        seen += step * u
        found.append(found[-1] + step)
        mean = seen / found[-1]
    return eta.new_tensor(found)
