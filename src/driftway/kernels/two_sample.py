"""The permutation test of equal laws by MMD (Gretton et al., 2012).

If x and y have one law, the rows of the joint sample are exchangeable: any n of them may be called x. Neither statistic of `mmd2`
changes when f_i + f_j is added to the joint Gram matrix, so let its row means be zero. With z the indicator of the n rows called x,
q = z'Kz and d = z'diag(K),

    z'K(1-z) = -q,   (1-z)'K(1-z) = q:      V = q (1/n + 1/m)^2,      U = (q - d) / (n (n-1)) + 2 q / (n m) + (q - tr K + d) / (m (m-1))

and q of all permutations is one matrix product. The p-value

    p = (1 + number of permuted statistics >= the observed one) / (1 + permutations)

is valid for any number of permutations: P(p <= level) <= level (Phipson and Smyth, 2010). All is done in float64.

Equations (K29), (K30): docs/derivations/kernels.md.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import choice, count, kind, real, require
from driftway.kernels.base import Kernel
from driftway.kernels.embedding import STATISTICS, pair
from driftway.kernels.memory import require_memory
from driftway.linalg.operator import symmetric_matrix


@dataclass(frozen=True)
class MMDTest:
    """The answer of a permutation test of equal laws.

    Attributes:
        statistic: MMD^2.
        p_value: at least 1 / (1 + permutations).
        null: (permutations,) the statistic of the permuted samples, in float64.
        level: the probability at which an equal law may be rejected.
    """

    statistic: float
    p_value: float
    null: Float[Tensor, " permutations"]
    level: float

    @property
    def rejected(self) -> bool:
        """Whether the laws are declared unequal."""
        return self.p_value <= self.level


def mmd_test(x: object, y: object, *, kernel: Kernel, generator: torch.Generator, permutations: int = 999, statistic: str = "u",
             level: float = 0.05) -> MMDTest:  # fmt: skip
    """The permutation test of "x and y have one law".

    Args:
        x: points (n, *event), independent.
        y: points (m, *event), independent.
        kernel: k; fixed beforehand, or chosen by a symmetric function of the joint sample, as `median_bandwidth(x, y)` is.
        generator: draws the permutations.
        permutations: how many.
        statistic: "u" or "v".
        level: the probability at which an equal law may be rejected.

    Raises:
        InputError: if an argument is not what it should be, or the joint Gram matrix does not fit into memory.
    """
    a, b = pair(x, y, kernel)
    return mmd_test_from_gram(kernel.to(torch.float64)(torch.cat([a, b]).double()), len(a), generator=generator, permutations=permutations,
                              statistic=statistic, level=level)  # fmt: skip


@torch.no_grad()
def mmd_test_from_gram(K: Float[Tensor, "N N"], n: int, *, generator: torch.Generator, permutations: int = 999, statistic: str = "u",
                       level: float = 0.05) -> MMDTest:  # fmt: skip
    """The same from the Gram matrix of the joint sample, whose first n rows are x.

    Raises:
        InputError: if an argument is not what it should be, or the work does not fit into memory.
    """
    choice("statistic", statistic, STATISTICS)
    kind("generator", generator, torch.Generator, "a torch.Generator")
    K = symmetric_matrix("K", K)
    least = 2 if statistic == "u" else 1
    N, P, m = len(K), count("permutations", permutations) + 1, len(K) - count("n", n, least=least)
    require(m >= least, "n", expected=f"at most {N - least}, for a Gram matrix of {N} rows", got=n, cure=f"leave {least} or more rows to y")
    require(0 < real("level", level) < 1, "level", expected="a number between 0 and 1", got=level, cure="pass level=0.05")
    require_memory("permutations", 8 * (2 * N * N + 4 * N * P), "pass fewer rows or permutations", device=K.device)

    K = K.double()
    mean = K.mean(1)
    K = K - mean[:, None] - mean + mean.mean()
    order = torch.rand(P, N, generator=generator, dtype=torch.float64, device=generator.device).argsort(1).to(K.device)
    order[0] = torch.arange(N, device=K.device)
    z = torch.zeros(P, N, dtype=K.dtype, device=K.device).scatter_(1, order[:, :n], 1.0)
    q = (z @ K * z).sum(1)
    if statistic == "v":
        values = q * (1 / n + 1 / m) ** 2
    else:
        d = z @ K.diagonal()
        values = (q - d) / (n * (n - 1)) + 2 * q / (n * m) + (q - K.trace() + d) / (m * (m - 1))
    rounding = 1e-10 * float(values.abs().max())
    extreme = int((values[1:] >= values[0] - rounding).sum())
    return MMDTest(float(values[0]), (1 + extreme) / P, values[1:], float(level))
