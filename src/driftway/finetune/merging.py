"""Merging task vectors: what each does to every task, and the best coefficients, known to first order before any merge.

Task A has rows X_A and residual targets r_A = y_A - f(theta_0, X_A). A task vector tau_k moves its outputs by

    D_Ak = J_A tau_k                                         from tangent features, for any tau_k
         = K_Ak w_k,    K_Ak = J_A J_k^T                     from kernels alone, for tau_k = J_k^T w_k of the linearised training,
                        w_k = (1/n) U diag(phi_t) U^T r_k    with phi_t of kernels/predict.py

so that at theta_0 + sum_k c_k tau_k, with an error of second order in c (none for a linearised model),

    L_A(c) = (1/2n) |r_A - sum_k c_k D_Ak|^2 = s_A - b_A.c + c.G_A c / 2
    s_A = |r_A|^2/2n        b_Ak = <D_Ak, r_A>/n        G_Akl = <D_Ak, D_Al>/n

The best c minimises sum_A omega_A L_A(c) + (ridge/2) |c|^2, if wanted over c >= 0. The interference of tau_k with task A is

    I_Ak = <D_AA, D_Ak> / |D_AA|^2        1 adds as much again of what tau_A does for task A, 0 leaves it alone, -1 undoes it.

Inner products of vectors are forms of the same kernels, <tau_k, tau_l> = w_k.K_kl w_l. Ilharco et al. (2023) add task vectors;
Ortiz-Jimenez et al. (2023) explain when it works by the tangent kernel.

Equations (F30), (F31), (F32), (F33): docs/derivations/finetune.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

from driftway.checks import kind, moderate, numbers, real, require, shaped
from driftway.finetune.taskvector import TaskVector
from driftway.kernels import TangentFeatures, gradient_flow

FAR = 2.0  # coefficients beyond which a merge leaves the weights that training visited far behind
FLAT = 1e-8  # of the largest curvature: below, the data do not fix a direction of c


@dataclass(frozen=True, eq=False)
class MergePlan:
    """A merge, predicted.

    Attributes:
        coefficients: (m,) c.
        losses: (T,) L_A(c).
        start: (T,) L_A(0), before merging.
        alone: (m,) L_A with tau_A alone, for the tasks with a vector of their own.
        interference: (m, m) I_Ak: row A for the task, column k for the vector.
        level: (T,) s_A.
        slope: (T, m) b_A.
        curvature: (T, m, m) G_A.
        remarks: what to know, in sentences.
    """

    coefficients: Float[Tensor, " m"]
    losses: Float[Tensor, " T"]
    start: Float[Tensor, " T"]
    alone: Float[Tensor, " m"]
    interference: Float[Tensor, "m m"]
    level: Float[Tensor, " T"]
    slope: Float[Tensor, "T m"]
    curvature: Float[Tensor, "T m m"]
    remarks: tuple[str, ...]

    def predicted(self, c: Float[Tensor, " m"]) -> Float[Tensor, " T"]:
        """L_A(c) of every task at any coefficients."""
        return _losses(self.level, self.slope, self.curvature, c.to(self.slope))


def plan_merge(changes: Sequence[Tensor], residuals: Sequence[Tensor], *, weights: Sequence[float | int] | None = None,
               nonnegative: bool = False, ridge: float | int = 0.0, names: Sequence[str] | None = None) -> MergePlan:  # fmt: skip
    """The best coefficients, with predicted losses of all tasks.

    Args:
        changes: for each task (m, n, *k), D_Ak for all m vectors; the k-th vector belongs to the k-th task. Further tasks, such as a
            control that should stay as it is, have no vector.
        residuals: for each task (n, *k), r_A; its own number of rows and outputs.
        weights: omega, one for each task; ones by default. A negative one is for a task to unlearn.
        nonnegative: whether c >= 0.
        ridge: pull of c towards 0, in units of the loss.
        names: of the tasks, for the remarks.

    Raises:
        InputError: if shapes disagree, numbers are not finite, or weights leave the best c undetermined.
    """
    changes = [numbers(f"changes[{A}]", D).detach() for A, D in enumerate(_listed("changes", changes))]
    residuals = [numbers(f"residuals[{A}]", r).detach() for A, r in enumerate(_listed("residuals", residuals))]
    require(all(D.ndim > 1 for D in changes), "changes", expected="shape (m, n, *k) for each task", got="a vector or a number",
            cure="pass changes(features, vectors) of all tasks")  # fmt: skip
    T, m = len(residuals), len(changes[0]) if len(changes) else 0
    require(len(changes) == T and 1 <= m <= T, "changes", expected="one entry for each task, of as many vectors at most",
            got=f"{len(changes)} entries for {T} tasks, {m} vectors", cure="pass changes(features, vectors) of all tasks")  # fmt: skip
    kind("nonnegative", nonnegative, bool, "True or False")
    labels = [f"task {A}" for A in range(T)] if names is None else [str(name) for name in _listed("names", names)]
    omega = torch.tensor([1.0] * T if weights is None else [real("weights", w) for w in _listed("weights", weights)], dtype=torch.float64)
    ridge = real("ridge", ridge, least=0.0)
    for given, argument in ((labels, "names"), (omega, "weights")):
        require(len(given) == T, argument, expected=f"{T}, one for each task", got=len(given), cure="pass as many")
    parts = [_quadratic(f"changes[{A}]", D, f"residuals[{A}]", r, m) for A, (D, r) in enumerate(zip(changes, residuals, strict=True))]
    level, slope, curvature = (torch.stack(entries) for entries in zip(*parts, strict=True))
    total = torch.einsum("a,akl->kl", omega, curvature) + ridge * torch.eye(m, dtype=torch.float64)
    c, determined = _minimum(total, omega @ slope, nonnegative)
    losses = _losses(level, slope, curvature, c)
    alone = torch.stack([_losses(level, slope, curvature, e)[A] for A, e in enumerate(torch.eye(m, dtype=torch.float64))])
    own = curvature[range(m), range(m), range(m)]
    interference = curvature[range(m), range(m)] / torch.where(own > 0, own, math.nan)[:, None]
    remarks = _remarks(labels, c, losses, level, alone, own, determined)
    return MergePlan(c, losses, level, alone, interference, level, slope, curvature, remarks)


def _listed(argument: str, value: Any) -> Any:
    """A list, of one entry for each task; an array of several axes is one."""
    known = isinstance(value, list | tuple) or (isinstance(value, Tensor | np.ndarray) and value.ndim > 0)
    require(known, argument, expected="a list with one entry for each task", got=type(value).__name__, cure="pass a list")
    return value


def changes(features: Sequence[TangentFeatures], vectors: Sequence[TaskVector]) -> list[Tensor]:
    """D_Ak = J_A tau_k for all tasks and vectors, for each task (m, n, *k) in float64: a pass over the factors for each pair.

    Args:
        features: of each task, at theta_0, of one output or a contrast, or with outputs="full".
        vectors: tau_k, with no parameter outside the scope of the features.

    Raises:
        InputError: if the features sum over outputs, or lack a parameter of a vector.
    """
    for vector in _listed("vectors", vectors):
        kind("vectors", vector, TaskVector, "a list of task vectors")
    return [torch.stack([change(own, vector) for vector in vectors]) for own in features]


def change(features: TangentFeatures, vector: TaskVector) -> Float[Tensor, "n *k"]:
    """J tau: (n,) for one output or a contrast, (n, k) for outputs="full".

    Raises:
        InputError: see `changes`.
    """
    n, k = features.scores.shape
    require(features.full or k == 1, "features", expected="one output, a contrast, or every output apart", got=f'the "trace" of {k}',
            cure='make them with outputs="full", or outputs=(1, 0) for the difference of two logits')  # fmt: skip
    unlike = [name for name, tau in vector.tensors.items() if features.shapes.get(name) != tau.shape]
    require(not unlike, "features", expected="the parameters of the vector in scope", got=f"none, or another shape, for {unlike[:3]}",
            cure="take features and task vector of one model and scope")  # fmt: skip
    total = torch.zeros(features.size, dtype=torch.float64, device=features.scores.device)
    for name, tau in vector.tensors.items():
        side = features.side(name)
        total += side.dot(tau.reshape(side.shape))
    require(bool(total.isfinite().all()), "features", expected="rows whose gradients are finite numbers", got="changes of NaN or infinity",
            cure="look for rows that are too large for the model")  # fmt: skip
    return total.view(n, k) if features.full else total


def pulled(features: TangentFeatures, w: Float[Tensor, " N"]) -> TaskVector:
    """J^T w: the task vector of weights on samples, such as `sample_weights` gives for training that never took place.

    Raises:
        InputError: if there is not one weight for each row of J.
    """
    require(len(w) == features.size, "w", expected=f"{features.size} weights, one for each row of J", got=len(w),
            cure="take them of the features' own Gram matrix")  # fmt: skip
    return TaskVector({name: features.side(name).combine(w).reshape(shape) for name, shape in features.shapes.items()})


def sample_weights(K: Float[Tensor, "N N"], residual: Float[Tensor, "n *k"], *, eta: float | int = math.inf,
                   ridge: float | int = 0.0) -> Float[Tensor, " N"]:  # fmt: skip
    """w with tau = J^T w, for the linearised network trained on (1/2n) |f - y|^2 + (ridge/2n) |tau|^2 from theta_0 for the time eta.

    Args:
        K: (N, N) with N = n, or n k where residuals are (n, k): the Gram matrix of outputs="full".
        residual: y - f_0.
        eta: the sum of step sizes; inf for training to the end.
        ridge: weight decay times n.

    Raises:
        InputError: if sizes disagree, or numbers are out of range.
    """
    residual, K = numbers("residual", residual), numbers("K", K)
    require(residual.ndim in (1, 2), "residual", expected="shape (n,) or (n, k)", got=f"shape {tuple(residual.shape)}",
            cure="pass y - f_0 of each row")  # fmt: skip
    r = residual.double().flatten()
    require(K.shape == (len(r), len(r)), "K", expected=f"shape ({len(r)}, {len(r)}), a row for each number of residual",
            got=tuple(K.shape), cure='take the Gram matrix of outputs="full", or residuals (n,)')  # fmt: skip
    flow = gradient_flow(K.double(), r, ridge=ridge)
    time = real("eta", eta, least=0.0) * len(r) / len(residual) if eta != math.inf else eta  # gradient_flow has 1/2N for 1/2n
    return flow.mean(torch.eye(len(r), dtype=torch.float64, device=r.device), time)


def kernel_changes(K: Sequence[Sequence[Tensor]], weights: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """D_Ak = K_Ak w_k for all tasks and vectors, for each task (m, n, *k), from kernels alone.

    Args:
        K: `K[A][k]`, (N, M): `features[A].cross(features[k])`.
        weights: w_k (M,) of `sample_weights`.
        residuals: (n, *k) of each task, for the shapes.

    Raises:
        InputError: if there is not one matrix for each task and vector, or sizes disagree.
    """
    weights = [shaped(f"weights[{k}]", w, (None,)) for k, w in enumerate(_listed("weights", weights))]
    residuals = [numbers(f"residuals[{A}]", r) for A, r in enumerate(_listed("residuals", residuals))]
    whole = len(_listed("K", K)) == len(residuals) > 0 and all(len(_listed("K", row)) == len(weights) > 0 for row in K)
    require(whole, "K",
            expected=f"{len(residuals)} rows of {len(weights)} matrices, a row for each task", got="others",
            cure="pass [[a.cross(b) for b in features] for a in features]")  # fmt: skip
    K = [[shaped(f"K[{A}][{k}]", K_Ak, (r.numel(), len(w))).to(w.dtype) for k, (K_Ak, w) in enumerate(zip(row, weights, strict=True))]
         for A, (row, r) in enumerate(zip(K, residuals, strict=True))]  # fmt: skip
    return [torch.stack([(K_Ak.double() @ w.double()).view(r.shape) for K_Ak, w in zip(row, weights, strict=True)])
            for row, r in zip(K, residuals, strict=True)]  # fmt: skip


def kernel_cosines(K: Sequence[Sequence[Tensor]], weights: Sequence[Tensor]) -> Float[Tensor, "m m"]:
    """<tau_k, tau_l> / |tau_k| |tau_l| from the K and w_k of `kernel_changes`; nan for a vector that is zero."""
    M = torch.stack([torch.stack([w @ (K_kl.double() @ v) for K_kl, v in zip(row, weights, strict=True)])
                     for w, row in zip(weights, K, strict=True)])  # fmt: skip
    size = M.diagonal().clamp_min(0).sqrt()
    return M / (size[:, None] * size)


def _quadratic(first: str, D: Tensor, second: str, r: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """s, b and G of one task."""
    require(D.shape == (m, *r.shape) and len(r) > 0, first, expected=f"shape {(m, *r.shape)}, vectors and then as {second}",
            got=tuple(D.shape), cure="take both of the same rows and outputs")  # fmt: skip
    require(bool(D.isfinite().all() & r.isfinite().all()), first, expected="finite numbers, also in the residuals",
            got="NaN or infinite ones", cure="drop such rows")  # fmt: skip
    moderate(first, D)
    moderate(second, r)
    D, y, n = D.double().cpu().flatten(1), r.double().cpu().flatten(), len(r)
    return y @ y / (2 * n), D @ y / n, D @ D.mT / n


def _losses(s: Tensor, b: Tensor, G: Tensor, c: Tensor) -> Tensor:
    return (s - b @ c + torch.einsum("k,akl,l->a", c, G, c) / 2).clamp_min(0)  # of cancellation


def _minimum(G: Tensor, b: Tensor, nonnegative: bool) -> tuple[Tensor, bool]:
    """The shortest c of least c.G c / 2 - b.c, and whether it is the only one."""
    values, U = torch.linalg.eigh(G)
    most = float(values.abs().max())
    require(float(values.min()) >= -FLAT * most, "weights", expected="a sum of losses that is bounded below",
            got=f"curvature {float(values.min()):.2g} along some c", cure="raise ridge, or the weights of tasks to keep")  # fmt: skip
    live = values > FLAT * most
    root, U = values[live].sqrt(), U[:, live]
    target = (U.mT @ b) / root  # |R c - target|^2 / 2 with R = root U^T
    if nonnegative:
        c = torch.from_numpy(nnls((root[:, None] * U.mT).numpy(), target.numpy())[0]) if len(root) else torch.zeros_like(b)
    else:
        c = U @ (target / root)
    return c, bool(live.all())


def _remarks(names: list[str], c: Tensor, losses: Tensor, start: Tensor, alone: Tensor, own: Tensor, determined: bool) -> tuple[str, ...]:
    found = []
    if not determined:
        found.append("Some vectors do the same to all tasks: of the equally good coefficients these are the smallest.")
    for name, value, size in zip(names, c.tolist(), own.tolist(), strict=False):
        if size == 0:
            found.append(f"The vector of {name} does not change the outputs of its own task.")
        elif abs(value) > FAR:
            found.append(f"The coefficient {value:.2f} of {name} is far from where it was trained: expect a large second-order error.")
        elif value < 0:
            found.append(f"The vector of {name} is best subtracted.")
    for name, after, before in zip(names, losses.tolist(), start.tolist(), strict=True):
        if after > before:
            found.append(f"The loss of {name} is predicted to rise from {before:.3g} to {after:.3g}.")
    for name, after, single, before in zip(names, losses.tolist(), alone.tolist(), start.tolist(), strict=False):
        if after > 1.1 * single + FLAT * before:
            found.append(f"{name} pays for the merge: {after:.3g} against {single:.3g} with its vector alone.")
    return tuple(found)
