"""How much each label counts in the predictions, and how well the labels of the target are foreseen without themselves.

For rows X_* of the target, the mean is linear in the labels Y of all domains. Label i counts by the mean of |H_*i| over these rows, as a
part of the sum over all labels:

    f(X_*) = H Y,    H = K_*l S^-1                      a process (joint.py)
                     H = A_t D^(-1/2)                   a trained network (dino_train.py)
                     H = sum_c w_c H_c                  a mixture (stacking.py)

and, with many rows (scale.py), H = W at the near rows N, and at the others (phi_* - W phi_N) V^-1 phi' Lam^-1, from their features phi.

A label is foreseen from all others, with parameters held; by trained networks from all but those of its fold. Mean and variance are those
of the mixture. An interval of level p should hold a part p of the labels.

Equations (A33), (A37): docs/derivations/adapt.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.adapt.dino_init import at_target
from driftway.adapt.dino_train import Trained
from driftway.adapt.frame import Frame, canonical
from driftway.adapt.scale import held
from driftway.adapt.shift import Shift
from driftway.adapt.stacking import Candidate

BLOCK = 2048  # rows that are summarised at once

@dataclass(frozen=True)
class Foreseen:
    """The labels of the target, each foreseen without itself, in their units.

    Attributes:
        index: rows, in the order of the user's table.
        y: labels.
        mean: foreseen.
        std: their standard deviations.
    """

    index: Int[Tensor, " m"]
    y: Float[Tensor, "m k"]
    mean: Float[Tensor, "m k"]
    std: Float[Tensor, "m k"]

    def coverage(self, level: float | int) -> float:
        """Part of the labels, over all outputs, that are in their intervals of this level; NaN without labels."""
        return float(((self.y - self.mean).abs() <= reach(level) * self.std).double().mean())

    @property
    def error(self) -> float:
        """Root mean square over labels and outputs, in standard deviations of the labels; NaN with fewer than two of them."""
        if len(self.y) < 2:
            return math.nan
        scale = self.y.std(0)
        return float(((self.y - self.mean) / scale.where(scale > 0, 1.0)).square().mean().sqrt())


def reach(level: float | int) -> float:
    """Half the width of a normal interval, in standard deviations."""
    return NormalDist().inv_cdf((1 + level) / 2)


def foreseen(own: Candidate, shift: Shift) -> Foreseen:
    """By one candidate."""
    rows, m = own.frame, own.frame.target
    part = torch.arange(m) if len(own.residuals) == m else held(m, own.process.scale)
    index = part.to(rows.y.device) + len(rows.y) - m
    y = rows.y[index] * rows.y_scale + rows.y_mean
    std = (own.variance[:, None] * own.process.joint.B.diagonal()).sqrt() * rows.y_scale
    return Foreseen(order(shift, rows)[index], y, y - own.residuals * rows.y_scale, std)


def mixed(parts: Sequence[Foreseen], w: Float[Tensor, " c"]) -> Foreseen:
    """By the mixture."""
    means, variances = (torch.stack(part) for part in zip(*((part.mean, part.std.square()) for part in parts), strict=True))
    weight = w[:, None, None]
    mean = (weight * means).sum(0)
    return replace(parts[0], mean=mean, std=(weight * (variances + (means - mean).square())).sum(0).sqrt())


def influence(known: Sequence[Candidate], w: Float[Tensor, " c"], shift: Shift, target: Int[Tensor, " q"]) -> Float[Tensor, " n"]:
    """Part of each row's label in the predictions for some rows of the target; 0 for rows without label."""
    H = shift.X.new_zeros(len(target), len(shift.X))
    for weight, own in zip(w, known, strict=True):
        H.index_add_(1, order(shift, own.frame), weight * smoother(own, shift.X[target]))
    mean = H.abs().mean(0)
    return mean / mean.sum().clamp_min(torch.finfo(mean.dtype).tiny)


def smoother(own: Candidate, X: Float[Tensor, "q d"]) -> Float[Tensor, "q n"]:
    """H at rows of the target."""
    process, labelled, model, far = own.process, own.frame.rows, own.model, own.model.far
    new = at_target(process, X)
    if isinstance(model, Trained):
        rows, root = (labelled, process.noise.sqrt()) if far is None else (far.rows, process.noise[far.near].sqrt())
        flow = replace(model.flow, r=torch.eye(len(root), dtype=root.dtype, device=root.device))
        W = flow.mean(process.kernel.pair(new, rows).ntk / root, model.time) / root
    else:
        W = process.joint.factor.solve(process.at(new)[0].mT).mT
    if far is None:
        return W
    G, phi = far.factor.solve((far.features(new) - W @ far.phi).mT).mT, far.features
    H, left = X.new_zeros(len(X), len(labelled)), torch.ones(len(labelled), dtype=torch.bool, device=X.device)
    H[:, far.near], left[far.near] = W, False
    for part in left.nonzero()[:, 0].split(BLOCK):
        F = phi(labelled[part])
        H[:, part] = G @ F.mT / (process.noise[part] + (process.kernel.diagonal(labelled[part]) - F.square().sum(1)).clamp_min(0))
    return H


def order(shift: Shift, rows: Frame) -> Int[Tensor, " n"]:
    """Indices, in the user's table, of the rows of a process: as a frame sorts them."""
    used = shift.labelled & (shift.weight > 0)
    if bool((rows.rows.domain == 0).all()):
        used = used & (shift.domain == 0)
    index = used.nonzero()[:, 0]
    last = shift.domain.where(shift.domain > 0, shift.sources + 1).to(shift.X)
    return index[canonical(last[index, None], shift.X[index], shift.y[index], shift.weight[index, None])]
