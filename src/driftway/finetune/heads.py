"""Mixed initialisation: a pretrained body h, and a new head that is zero, random, or a linear probe.

    f(x) = w h(x) + b        y: centred one-hot targets, one-hot - 1/k, or numbers

The probe is ridge regression on centred features H = P S Q^T (n, p) (Hoerl and Kennard, 1970):

    w = argmin (1/n) |Y - 1 b - H w^T|^2 + lam |w|^2        fitted = A y,  A = 1 1^T / n + P diag(s^2 / (s^2 + n lam)) P^T
    loo(lam) = (1/n) sum_i |(y - A y)_i / (1 - A_ii)|^2     the error on a row left out, in closed form (Allen, 1974)
    gcv(lam) = (1/n) |y - A y|^2 / (1 - tr A / n)^2         the same with mean leverage (Golub, Heath and Wahba, 1979)

A network that starts with the probe has fitted its training rows already: residuals y - f_0 there are without signal, and a stopping
time computed from them is too early. So f_0 of a training row comes from a probe that has not seen it (cross-fitting, Chernozhukov et al.,
2018), with a lam that is chosen without that row too. The kernel is no better: gradients of the body are those of w h, and w knows the
label of every row that it was fitted to. Where rows are held out of a kernel, it must be that of a head without them: `Head.half`.

The least squares probe times k is the first Newton step of softmax regression from zero; that is the probe for cross-entropy.

Equation (F21): docs/derivations/finetune.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from driftway.checks import InputError, choice, count, real, require, samples

KINDS = ("zero", "random", "probe")
GRID = torch.logspace(-8, 2, 41, dtype=torch.float64)  # lam, in units of s_1^2 / n


@dataclass(frozen=True)
class Head:
    """A linear head and what it says of its training rows.

    Attributes:
        weight: (k, p).
        bias: (k,).
        initial: (n, k) f_0 of the training rows, from a probe without them where the head is a probe.
        lam: penalty of the probe on all rows; 0 for other heads.
        half: the probe of one half of the rows, with its own f_0 of all rows; None for other heads, and where a half has one label only.
        unseen: rows of the other half; None likewise.
    """

    weight: Float[Tensor, "k p"]
    bias: Float[Tensor, " k"]
    initial: Float[Tensor, "n k"]
    lam: float = 0.0
    half: "Head | None" = None
    unseen: Int[Tensor, " m"] | None = None

    @property
    def state(self) -> dict[str, Tensor]:
        """For `load_state_dict` of the model's linear head."""
        return {"weight": self.weight.clone(), "bias": self.bias.clone()}

    def predict(self, features: Float[Tensor, "m p"]) -> Float[Tensor, "m k"]:
        """f_0 of other rows."""
        return features.to(self.weight) @ self.weight.T + self.bias


@contextmanager
def lent(model: nn.Module, head: Head) -> Iterator[tuple[Float[Tensor, "n k"], Int[Tensor, " m"] | None]]:
    """The probe of one half in the place of that of all rows, for as long as a kernel takes; its f_0, and the rows that it has not seen.

    Args:
        model: with the head as one of its linear layers; one that has another is left alone, and all rows count as seen by nobody.
        head: of all rows.
    """
    layer = next((part for part in model.modules() if isinstance(part, nn.Linear) and part.weight.shape == head.weight.shape
                  and torch.equal(part.weight.detach(), head.weight.to(part.weight))), None)  # fmt: skip
    if head.half is None or layer is None:
        yield head.initial, None
        return
    before = {name: entry.clone() for name, entry in layer.state_dict().items()}
    try:
        layer.load_state_dict({name: head.half.state[name] for name in before})
        yield head.half.initial, head.unseen
    finally:
        layer.load_state_dict(before)


def one_hot(labels: Int[Tensor, " n"], classes: int | None = None) -> Float[Tensor, "n k"]:
    """Centred one-hot targets, in float32: 1 - 1/k at the label and -1/k elsewhere.

    Args:
        labels: from 0 to k - 1.
        classes: k; one more than the largest label if None.

    Raises:
        InputError: if a label is not in this range, or all are the same.
    """
    first, last = int(labels.min()), int(labels.max())
    k = last + 1 if classes is None else count("classes", classes, least=2)
    require(first >= 0 and last < k, "labels", expected=f"class numbers from 0 to {k - 1}", got=f"{first} to {last}",
            cure="number the classes from 0")  # fmt: skip
    require(first < last, "labels", expected="at least two classes", got=f"the label {first} in all {len(labels)} rows",
            cure="give it rows of other classes")  # fmt: skip
    return torch.nn.functional.one_hot(labels.long(), k).float() - 1 / k


@torch.no_grad()
def head(kind: str, features: Tensor, targets: Tensor, *, generator: torch.Generator, folds: int = 5,
         criterion: str = "loo", loss: str = "squared", std: float | int = 0.02) -> Head:  # fmt: skip
    """A head for features of a pretrained body, in their dtype.

    Args:
        kind: "zero", "random" with N(0, std^2) weights, or "probe".
        features: (n, p) h of the training rows: what the head will get, with dropout off.
        targets: (n,) or (n, k): numbers, or `one_hot` of labels.
        generator: of the weights and of the folds, on the CPU.
        folds: of the cross-fit; n of them leave out one row at a time.
        criterion: "loo" or "gcv": how lam is chosen.
        loss: "squared", or "cross_entropy": the probe is then scaled to logits.
        std: of random weights.

    Raises:
        InputError: if rows do not match, there are fewer rows than folds, targets are constant, or a name is unknown.
    """
    choice("kind", kind, KINDS)
    choice("loss", loss, ("squared", "cross_entropy"))
    choice("criterion", criterion, ("loo", "gcv"))
    H, y = samples("features", features), samples("targets", targets[:, None] if targets.ndim == 1 else targets)
    require(H.ndim == 2, "features", expected="one vector for each row, shape (n, p)", got=f"shape {tuple(H.shape)}",
            cure="pool over tokens first")  # fmt: skip
    require(len(y) == len(H), "targets", expected=f"{len(H)} rows, as features have", got=len(y), cure="pass one target for each row")
    n, k, p = len(H), y.shape[1], H.shape[1]
    if kind != "probe":
        w = torch.zeros(k, p) if kind == "zero" else real("std", std, least=0) * torch.randn(k, p, generator=generator)
        w = w.to(H)
        return Head(w, w.new_zeros(k), H @ w.T)
    require(2 <= count("folds", folds) <= n, "folds", expected=f"2 to {n}, the number of rows", got=folds, cure="pass e.g. folds=5")
    require(bool((y != y[0]).any()), "targets", expected="targets that differ", got="the same one in all rows", cure="check the labels")
    c, H64, y64 = (k if loss == "cross_entropy" else 1), H.double(), y.to(H.device).double()
    order = torch.randperm(n, generator=generator).to(H.device)

    def probe(rows: Tensor, folds: int, **more: Any) -> Head:
        """That of some rows, with f_0 of all."""
        w, b, lam = _ridge(H64[rows], y64[rows], criterion)
        initial = H64 @ w.T + b
        for out in rows.chunk(folds) if folds < len(rows) else rows.split(1):
            seen = rows[~torch.isin(rows, out)]
            w_out, b_out, _ = _ridge(H64[seen], y64[seen], criterion)
            initial[out] = H64[out] @ w_out.T + b_out
        return Head((c * w).to(H), (c * b).to(H), (c * initial).to(H), lam, **more)

    some, others = order[: n // 2], order[n // 2 :]
    enough = len(some) >= 2 * folds and bool((y64[some] != y64[some[0]]).any())
    return probe(order, folds, **({"half": probe(some, folds), "unseen": others.sort().values} if enough else {}))


def _ridge(H: Float[Tensor, "n p"], y: Float[Tensor, "n k"], criterion: str) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"], float]:
    """w, b and the best lam."""
    n, centre, mean = len(H), H.mean(0), y.mean(0)
    P, s, Qt = torch.linalg.svd(H - centre, full_matrices=False)
    if not len(s) or float(s[0]) <= 1e-10 * float(H.abs().max()):
        raise InputError("features", expected="rows that differ", got=f"the same one in all {n} rows", cure="check the inputs of the body")
    z, r = P.T @ y, y - mean
    scores = []
    for lam in GRID.to(s) * s[0] ** 2 / n:
        shrink = s**2 / (s**2 + n * lam)
        leverage = 1 / n + P.square() @ shrink
        left = 1 - (leverage if criterion == "loo" else leverage.mean().expand(n))
        scores.append(((r - P @ (shrink[:, None] * z)) / left.clamp_min(1e-12)[:, None]).square().mean())
    lam = float(GRID[int(torch.stack(scores).argmin())] * s[0] ** 2 / n)
    w = (Qt.T @ ((s / (s**2 + n * lam))[:, None] * z)).T
    return w, mean - w @ centre, lam
