"""Making factors: of a layer's input and output gradient, of several uses of a weight, of several outputs, without empty positions."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from driftway.kernels.tangent.factors import Direct, Factor, Outer, Packed, Rows, padded, samples_of


def empty(like: Float[Tensor, "r c"], n: int, dtype: torch.dtype) -> Packed:
    """Gradients that are zero for all samples."""
    r, c = like.shape
    return Packed(like.new_empty(0, r, dtype=dtype), like.new_empty(0, c, dtype=dtype), (0,) * n)


def outer(left: Float[Tensor, "n groups T q"], right: Float[Tensor, "n groups T p"]) -> Direct | Outer:
    """Factors, or the gradients themselves where these are smaller."""
    T, q, p = *left.shape[2:], right.shape[3]
    return Outer(left, right) if T * (p + q) <= p * q else Direct((left.mT @ right).flatten(1, 2))


def pack(factor: Outer, shared: dict[tuple[Any, ...], Tensor]) -> Outer | Packed:
    """The factor without its empty positions, if a tenth are. `shared` holds inputs that several layers have in common."""
    n, groups, T, q = factor.left.shape
    left = factor.left.reshape(-1, q)
    used = left[:, 0] != 0  # almost always enough; the rest is looked at in full
    rest = (~used).nonzero().flatten()
    if groups > 1 or len(rest) < 0.1 * n * T:
        return factor
    used[rest] = left.index_select(0, rest).any(1)
    place = used.nonzero().flatten()
    key = (factor.right.data_ptr(), factor.right.shape, place.cpu().numpy().tobytes())
    if key not in shared:
        shared[key] = factor.right.reshape(n * T, -1).index_select(0, place)
    return Packed(left.index_select(0, place), shared[key], tuple(used.view(n, T).sum(1).tolist()))


def scatter(index: Int[Tensor, "n T"], b: Float[Tensor, "n T c"], r: int) -> Rows:
    """Rows of a table from one gradient for each position. Positions with a negative index are dropped."""
    n, used = len(index), index.flatten() >= 0
    sample = torch.arange(n, device=index.device).repeat_interleave(index.shape[1])
    return _summed(sample[used], index.flatten()[used], b.flatten(0, 1)[used], n, r)


def merge(factors: Sequence[Direct | Outer | Rows]) -> list[Factor]:
    """All uses of one parameter: positions side by side, tables and gradients summed. At most an Outer and a Rows, or a Direct."""
    if len(factors) == 1:
        return list(factors)
    outers, tables = [f for f in factors if isinstance(f, Outer)], [f for f in factors if isinstance(f, Rows)]
    if len(outers) + len(tables) < len(factors):  # one is formed, so the others are too
        out = next(f.g for f in factors if isinstance(f, Direct)).new_zeros(samples_of(factors[0]), *factors[0].shape)
        for f in factors:
            f.form(slice(0, f.shape[0]), out, add=True)
        return [Direct(out)]
    merged: list[Factor] = []
    if outers:
        merged.append(Outer(torch.cat([f.left for f in outers], 2), torch.cat([f.right for f in outers], 2)))
    if tables:
        sample, index, values = (torch.cat(side) for side in zip(*((f.sample, f.index, f.values) for f in tables), strict=True))
        merged.append(_summed(sample, index, values, tables[0].n, tables[0].r))
    return merged


def beside(factor: Factor, k: int) -> Factor:
    """From n k samples, k outputs of each of n, to n samples with k gradients below each other: their inner products are a trace."""
    if k == 1:
        return factor
    if isinstance(factor, Rows):
        index = factor.sample % k * factor.r + factor.index
        return Rows(factor.sample // k, index, factor.values, factor.n // k, k * factor.r)
    factor = padded(factor) if isinstance(factor, Packed) else factor
    if isinstance(factor, Outer):
        return Outer(*(a.reshape(len(a) // k, k * a.shape[1], *a.shape[2:]) for a in (factor.left, factor.right)))
    return Direct(factor.g.reshape(len(factor.g) // k, k * factor.g.shape[1], factor.g.shape[2]))


def _summed(sample: Int[Tensor, " u"], index: Int[Tensor, " u"], values: Float[Tensor, "u c"], n: int, r: int) -> Rows:
    """Entries of equal sample and index become one."""
    place, where = (sample * r + index).unique(return_inverse=True)
    total = values.new_zeros(len(place), values.shape[1]).index_add_(0, where, values)
    return Rows(place // r, place % r, total, n, r)
