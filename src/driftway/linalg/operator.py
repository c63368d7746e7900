"""Symmetric matrices that are known by their products, v -> A v.

    (A + B) v = A v + B v        (c A) v = c (A v)        A.shift(lam) v = A v + lam v        (J J^T) v = J (J^T v)

A product costs what its parts cost, and no matrix is formed before `dense` is called.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import InputError, count, kind, moderate, numbers, real, require


@dataclass(frozen=True)
class SymmetricOperator:
    """A symmetric matrix A (n, n), known by its products.

    Attributes:
        size: n.
        dtype: of the vectors it takes and gives.
        device: likewise.
        apply: V (n, k) -> A V (n, k); linear and symmetric, which is not checked.
        diagonal: (n,) of A, or None where it is not known. Trace estimates and preconditioners use it.
    """

    size: int
    dtype: torch.dtype
    device: torch.device
    apply: Callable[[Tensor], Tensor]
    diagonal: Float[Tensor, " n"] | None = None

    def __matmul__(self, v: Tensor) -> Tensor:
        kind("v", v, Tensor, "a tensor")
        fits = v.ndim in (1, 2) and len(v) == self.size
        require(fits, "v", expected=f"shape ({self.size},) or ({self.size}, k)", got=f"shape {tuple(v.shape)}",
                cure="pass vectors as columns")  # fmt: skip
        require(v.dtype == self.dtype, "v", expected=f"dtype {self.dtype}, as the operator has", got=v.dtype,
                cure="convert the vectors with .to(op.dtype)")  # fmt: skip
        return self.apply(v[:, None])[:, 0] if v.ndim == 1 else self.apply(v)

    def __add__(self, other: "SymmetricOperator") -> "SymmetricOperator":
        mine, its = (self.size, self.dtype, self.device), (other.size, other.dtype, other.device)
        require(mine == its, "other", expected=f"an operator of size, dtype and device {mine}", got=its, cure="convert one of them")
        known = None if self.diagonal is None or other.diagonal is None else self.diagonal + other.diagonal
        return SymmetricOperator(*mine, lambda v: self.apply(v) + other.apply(v), known)

    def __mul__(self, factor: float | int) -> "SymmetricOperator":
        factor = real("factor", factor)
        known = None if self.diagonal is None else factor * self.diagonal
        return SymmetricOperator(self.size, self.dtype, self.device, lambda v: factor * self.apply(v), known)

    __rmul__ = __mul__

    def shift(self, lam: float | int) -> "SymmetricOperator":
        """A + lam I.

        Raises:
            InputError: if lam is not a finite number.
        """
        lam = real("lam", lam)
        known = None if self.diagonal is None else self.diagonal + lam
        return SymmetricOperator(self.size, self.dtype, self.device, lambda v: self.apply(v) + lam * v, known)

    def column(self, i: int) -> Float[Tensor, " n"]:
        """Column i of A, at the price of one product.

        Raises:
            InputError: if there is no such column.
        """
        i = count("i", i, least=0)
        require(i < self.size, "i", expected=f"a column below {self.size}", got=i, cure="count from 0")
        unit = torch.zeros(self.size, 1, dtype=self.dtype, device=self.device)
        unit[i] = 1
        return self.apply(unit)[:, 0]

    def dense(self) -> Float[Tensor, "n n"]:
        """A itself, exactly symmetric."""
        A = self.apply(torch.eye(self.size, dtype=self.dtype, device=self.device))
        return (A + A.T) / 2


def symmetric_matrix(argument: str, K: object) -> Float[Tensor, "n n"]:
    """K as an exactly symmetric matrix of float32 or float64; whole numbers become float32.

    Rounding differences between K and K^T up to 1e-4 of the largest entry are averaged away.

    Raises:
        InputError: if it is no square matrix of finite numbers, or not symmetric.
    """
    K = numbers(argument, K)
    K = K if K.dtype.is_floating_point else K.float()
    shape = tuple(K.shape)
    require(len(shape) == 2 and shape[0] == shape[1] > 0, argument, expected="a square matrix (n, n)", got=f"shape {shape}",
            cure="pass the kernel of one set of points with itself")  # fmt: skip
    require(K.dtype in (torch.float32, torch.float64), argument, expected="dtype float32 or float64", got=K.dtype,
            cure="convert it with .double()")  # fmt: skip
    with torch.no_grad():
        bad = ~torch.isfinite(K)
        if bad.any():
            i, j = bad.nonzero()[0].tolist()
            raise InputError(argument, expected="finite numbers", got=f"{K[i, j].item()} at ({i}, {j}) ({int(bad.sum())} such entries)",
                             cure="look for missing values in the inputs of the kernel")  # fmt: skip
        scale, apart = float(K.abs().max()), float((K - K.T).abs().max())
    require(apart <= 1e-4 * scale, argument, expected="a symmetric matrix",
            got=f"entries that differ from K^T by {apart / (scale or 1):.2g} of the largest",
            cure="pass the kernel of one set of points with itself, or (K + K.T) / 2")  # fmt: skip
    return (K + K.T) / 2


def dense_operator(K: Tensor) -> SymmetricOperator:
    """The operator of a matrix at hand.

    Raises:
        InputError: if K is not a symmetric matrix of finite numbers.
    """
    K = symmetric_matrix("K", K)
    return SymmetricOperator(len(K), K.dtype, K.device, lambda v: K @ v, K.diagonal())


def gram_operator(J: Tensor) -> SymmetricOperator:
    """J J^T for features J (n, p), never formed: a product costs 2 n p multiply-adds per vector.

    Raises:
        InputError: if J is not a floating matrix of finite numbers.
    """
    J = numbers("J", J)
    fits = J.ndim == 2 and J.dtype.is_floating_point and J.numel() > 0 and bool(torch.isfinite(J).all())
    require(fits, "J", expected="a floating matrix (n, p) of finite numbers", got=f"dtype {J.dtype}, shape {tuple(J.shape)}",
            cure="pass one row of features per point, without NaN")  # fmt: skip
    moderate("J", J)
    return SymmetricOperator(len(J), J.dtype, J.device, lambda v: J @ (J.T @ v), J.square().sum(1))
