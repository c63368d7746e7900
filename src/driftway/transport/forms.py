"""Quadratic forms and matrices by component, for rows in blocks of bounded size. Full matrices are (K, d, d), diagonal ones (K, d)."""

from collections.abc import Callable

import torch
from torch import Tensor

ENTRIES = 2**22  # of a block of rows times components (times columns)


def by_rows(f: Callable[..., Tensor], width: int, *rows: Tensor) -> Tensor:
    """A function of rows, on so few rows at once that rows times width is bounded."""
    n = max(1, ENTRIES // width)
    return f(*rows) if len(rows[0]) <= n else torch.cat([f(*block) for block in zip(*(z.split(n) for z in rows), strict=True)])


def apply(matrices: Tensor, x: Tensor) -> Tensor:
    """Every matrix (K, d, d) applied to every row (n, d), as one matrix product: (n, K, d)."""
    return (x @ matrices.flatten(0, 1).T).unflatten(1, matrices.shape[:2])


def times(matrices: Tensor, x: Tensor) -> Tensor:
    """Row k of x multiplied by matrix k, or by the diagonal matrix of row k; one matrix serves all rows."""
    return matrices * x if matrices.ndim == 2 else (matrices @ x[..., None])[..., 0]


def solve(root: Tensor, x: Tensor, *, upper: bool = False) -> Tensor:
    """The solution z of root z = x for every row; diagonal roots are rows."""
    return x / root if root.ndim == 2 else torch.linalg.solve_triangular(root, x[..., None], upper=upper)[..., 0]


def quadratics(x: Tensor, A: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """x.A_k x + b_k.x + c_k for every row and component, (n, K).

    Diagonal A_k, and full ones of few columns or many components, as one matrix product over the monomials of x; else matrix by matrix.
    """
    if A.ndim == 2:
        return torch.addmm(c, torch.cat([x.square(), x], 1), torch.cat([A, b], 1).T)
    if x.shape[1] > 2 * len(A):
        return torch.einsum("nkd,nd->nk", apply(A, x), x) + torch.addmm(c, x, b.T)
    i, j = torch.triu_indices(x.shape[1], x.shape[1], device=x.device)
    pairs = A[:, i, j] + A[:, j, i] * (i != j)
    return torch.addmm(c, torch.cat([x[:, i] * x[:, j], x], 1), torch.cat([pairs, b], 1).T)
