"""The likelihood that parameters are learned by, with its gradient in closed form: a third of the time of one through the factor.

In the letters of joint.py, with counts kappa at the n - m rows s of the sources and 1 at the m rows t of the target,

    C = Y' S^-1 Y - (1 - kappa) Y_s' S_ss^-1 Y_s,    c = kappa sum_s w + sum_t w,    B = (C + nu I) / (c + nu)
    l = -(tr B^-1 C + c log |B| + k (log |S| - (1 - kappa) log |S_ss|)) / 2 + terms in weights and noise alone

    dl/dC = G = -((1 + c / (c + nu)) B^-1 - B^-1 C B^-1 / (c + nu)) / 2
    dl/dS = -A G A' - k S^-1 / 2 + (1 - kappa) (A_s G A_s' + k S_ss^-1 / 2)_ss

with A = S^-1 Y and A_s = S_ss^-1 Y_s. One inverse P = S^-1 is enough: S_ss^-1 = P_ss - P_st P_tt^-1 P_ts.

Equations (A17), (A40), (A41): docs/derivations/adapt.md.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.adapt.joint import PRIOR
from driftway.linalg import cholesky


def log_likelihood(K: Float[Tensor, "n n"], noise: Float[Tensor, " n"], y: Float[Tensor, "n k"], *, target: int,
                   weight: Float[Tensor, " n"], kappa: float) -> Float[Tensor, ""]:  # fmt: skip
    """`Joint.log_likelihood` with the counts above; differentiable in K and the noise, once.

    Args:
        K: prior covariance of f.
        noise: variance s of one label.
        y: targets, those of the target domain last.
        target: m.
        weight: w.
        kappa: how much the sources count.

    Raises:
        InputError: if K is not positive semidefinite.
    """
    return _Likelihood.apply(K, noise, y, weight, len(y) - target, kappa if target else 1.0)  # type: ignore[return-value]


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, K: Tensor, noise: Tensor, y: Tensor, weight: Tensor, first: int, kappa: float) -> Tensor:  # pyright: ignore
        k, S, counts = y.shape[1], K.clone(), torch.ones_like(weight)
        S.diagonal().add_(noise / weight)
        L = cholesky(S).L
        counts[:first] = kappa
        Z = torch.linalg.solve_triangular(L, y, upper=False)
        C, c = (Z.mT * counts) @ Z, counts @ weight
        R = torch.linalg.cholesky((C + PRIOR * torch.eye(k).to(C)) / (c + PRIOR))
        inverse = torch.cholesky_inverse(R)
        ctx.save_for_backward(L, Z, noise, weight, counts, C, inverse)
        ctx.first, ctx.kappa = first, kappa
        rows = 2 * L.diagonal().log() + (weight - 1) * noise.log() + weight * math.log(2 * math.pi) + weight.log()
        return -((inverse * C).sum() + 2 * c * R.diagonal().log().sum() + k * (counts @ rows)) / 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        L, Z, noise, weight, counts, C, inverse = ctx.saved_tensors
        s, kappa, k, c = ctx.first, ctx.kappa, len(C), counts @ weight
        G = -((1 + c / (c + PRIOR)) * inverse - inverse @ C @ inverse / (c + PRIOR)) / 2
        A = torch.linalg.solve_triangular(L.mT, Z, upper=True)
        P = torch.cholesky_inverse(L)
        dS = -k / 2 * P - A @ G @ A.mT
        if s and kappa != 1:
            A_s = torch.linalg.solve_triangular(L[:s, :s].mT, Z[:s], upper=True)
            without = P[:s, :s] - P[:s, s:] @ torch.linalg.solve(P[s:, s:], P[s:, :s])
            dS[:s, :s] += (1 - kappa) * (k / 2 * without + A_s @ G @ A_s.mT)
        dS *= slope
        return dS, dS.diagonal() / weight - slope * k / 2 * counts * (weight - 1) / noise, None, None, None, None
