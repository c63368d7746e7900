"""The Runge-Kutta-Chebyshev method of order 2, for stiff descent: a stage is one slope, and a step with s stages is stable up to 0.65 s^2.

    f' = F(f), where the Jacobian's eigenvalues lie in [-rho, 0];  h rho <= 2/3 (s^2 - 1)(1 - 2/15 e);  T_j: Chebyshev polynomials

    w_0 = 1 + e/s^2,  w_1 = T_s'(w_0) / T_s''(w_0),  b_j = T_j''(w_0) / T_j'(w_0)^2,  a_j = 1 - b_j T_j(w_0),  b_0 = b_1 = b_2
    Y_1 = f + b_1 w_1 h F(f)
    Y_j = (1 - m_j - n_j) f + m_j Y_{j-1} + n_j Y_{j-2} + q_j h (F(Y_{j-1}) - a_{j-1} F(f))
    m_j = 2 b_j w_0 / b_{j-1},  n_j = -b_j / b_{j-2},  q_j = 2 b_j w_1 / b_{j-1}

(Sommeijer, Shampine and Verwer, 1998, "RKC: an explicit solver for parabolic PDEs", eq. 2.4 to 2.9.) Descent on a loss through a kernel is
such a problem, and its stiffest directions are those that are fitted first.

Equation (F17): docs/derivations/finetune.md.
"""

import math
from collections.abc import Callable

from torch import Tensor

DAMPING = 2 / 13  # e


def chebyshev(slope: Callable[[Tensor], Tensor], f: Tensor, h: float, *, rho: float) -> tuple[Tensor, int]:
    """One step of time h, and the slopes it took.

    Args:
        slope: F.
        f: where to start.
        h: time.
        rho: bound of the Jacobian's eigenvalues.
    """
    s = max(2, math.ceil(math.sqrt(1 + 1.5 * h * rho / (1 - 2 / 15 * DAMPING))))
    w0 = 1 + DAMPING / s**2
    T, D, E = [1.0, w0], [0.0, 1.0], [0.0, 0.0]  # T_j, T_j', T_j''
    for _ in range(2, s + 1):
        T, D, E = [*T, 2 * w0 * T[-1] - T[-2]], [*D, 2 * T[-1] + 2 * w0 * D[-1] - D[-2]], [*E, 4 * D[-1] + 2 * w0 * E[-1] - E[-2]]
    b = [e / d**2 for e, d in zip(E[2:], D[2:], strict=True)]
    b = [b[0], b[0], *b]
    w1, F = D[s] / E[s], slope(f)
    before, now = f, f + b[1] * w1 * h * F
    for j in range(2, s + 1):
        m, n, q, a = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1], 1 - b[j - 1] * T[j - 1]
        before, now = now, (1 - m - n) * f + m * now + n * before + q * h * (slope(now) - a * F)
    return now, s
