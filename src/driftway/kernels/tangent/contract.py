"""From factors to inner products, one parameter at a time and never the whole Jacobian.

    K_ij = sum over parameters of <g_i, g_j>,    a Gram matrix by its lower triangle; sums of products in float64

Three ways, the cheapest for each parameter:

    formed      some rows of the gradients at a time, for all samples; then a matrix product       (n + m) T p q + n m p q
    identity    sum_{s,s'} (b_is . b_js') (x_is . x_js')                                           n m T^2 (p + q)
    tables      row by row of the table, for the samples that touch it                             few

Equations (K21), (K22), (K23): docs/derivations/kernels.md.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import prod
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.kernels.tangent.factors import Factor, Outer, Packed, Rows, Spec, padded, samples_of

TILE, DEPTH = 64, 3072  # of one matrix product: few entries above the diagonal, operands that stay in the cache
Part = TypeVar("Part")
Load = Callable[[], Iterator[list[Factor]]]


@dataclass(frozen=True)
class Side:
    """One parameter's factors, of all samples.

    Attributes:
        n: number of samples.
        specs: of the factors.
        load: the factors, piece by piece; called as often as needed.
        dtype: of the factors.
        device: where they are.
    """

    n: int
    specs: Set[Spec]
    load: Load
    dtype: torch.dtype
    device: torch.device

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a gradient."""
        known = next(iter(self.specs))
        return known.r, known.c

    def held(self) -> "Side":
        """The same with its factors in memory, for those who go through them more than once."""
        return replace(self, load=partial(iter, list(self.load())))

    def dot(self, w: Float[Tensor, "r c"]) -> Float[Tensor, " n"]:
        """<g_i, w> for every sample, in float64."""
        out, w = torch.zeros(self.n, dtype=torch.float64, device=self.device), w.to(self.device, self.dtype)
        for start, factors in placed(self):
            for factor in factors:
                out[start : start + samples_of(factor)] += factor.dot(w)
        return out

    def combine(self, v: Float[Tensor, " n"]) -> Float[Tensor, "r c"]:
        """sum_i v_i g_i."""
        v = v.to(self.device, self.dtype)
        parts = [factor.combine(v[start : start + samples_of(factor)]) for start, factors in placed(self) for factor in factors]
        return torch.stack(parts).sum(0)


def add_inner(K: Float[Tensor, "n m"], x: Side, y: Side | None, *, room: Tensor, share: tuple[int, int] = (0, 1),
              change: tuple[Callable[[Tensor], Tensor], ...] = ()) -> None:  # fmt: skip
    """Add one parameter's inner products to K; without y those of x with itself, to the lower triangle.

    Args:
        K: float64.
        x: of the rows of K.
        y: of the columns.
        room: to form gradients in, of any shape, and of the factors' dtype. It is used again and again: fresh memory costs as much time
            as the gradients that are written to it.
        share: (r, R), to do each R-th part of the work, from the r-th: what one of R processes does.
        change: of the gradients of x and of y, entry by entry.
    """
    specs = x.specs | (y.specs if y else set())
    kinds, other = {known.kind for known in specs}, y or x
    if kinds == {"rows"}:
        _by_table(K, x, other, share, change)
    elif kinds <= {"outer", "packed"} and not change and _identity_is_cheaper(specs, x.n, other.n):
        _by_identity(K, x, y, room.numel(), share)
    else:
        _by_forming(K, x, y, specs, room, share, change)


def formed(side: Side, rows: slice, c: int, room: Tensor) -> Float[Tensor, "n d"]:
    """Some rows of the gradients, for all samples, written into `room`."""
    shape = (side.n, rows.stop - rows.start, c)
    out = room.flatten()[: prod(shape)].view(shape)
    for start, factors in placed(side):
        own = out[start : start + samples_of(factors[0])]
        for number, factor in enumerate(factors):
            factor.form(rows, own, add=number > 0)
    return out.flatten(1)


def chunks(specs: Set[Spec], rows: int) -> Iterator[slice]:
    """The rows of a gradient in parts of at most `rows`: whole groups, or some rows of one group."""
    r, q = next(iter(specs)).r, min(known.q for known in specs)
    if rows >= q:
        yield from _even(0, r, rows // q * q, unit=q)
        return
    for group in range(0, r, q):
        yield from _even(group, group + q, rows)


def _even(start: int, stop: int, most: int, *, unit: int = 1) -> Iterator[slice]:
    """A range in parts of at most `most`, whole units and as equal as can be."""
    units, parts = (stop - start) // unit, -(-(stop - start) // most)
    ends = [start + units * number // parts * unit for number in range(parts + 1)]
    yield from map(slice, ends[:-1], ends[1:])


def _by_forming(K: Tensor, x: Side, y: Side | None, specs: Set[Spec], room: Tensor, share: tuple[int, int],
                change: tuple[Callable[[Tensor], Tensor], ...]) -> None:  # fmt: skip
    c, room = x.shape[1], room.flatten()
    first = room.numel() * x.n // (x.n + y.n) if y else room.numel()
    for rows in _own(share, chunks(specs, first // (x.n * c))):
        G = formed(x, rows, c, room[:first])
        H = formed(y, rows, c, room[first:]) if y else G
        if change:
            G, H = change[0](G), change[1](H)
        K += G @ H.mT if y else _lower(G)


def _lower(G: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """G G^T; on a CPU without most of what is above the diagonal.

    BLAS has syrk for this, but torch does not pass it on, and the threads of another library's BLAS and torch's wait for each other.
    """
    if G.device.type != "cpu":
        return G @ G.mT
    out = G.new_zeros(len(G), len(G))
    for part in G.split(DEPTH, 1):
        for j in range(0, len(G), TILE):
            out[j:, j : j + TILE].addmm_(part[j:], part[j : j + TILE].mT)
    return out


def _identity_is_cheaper(specs: Set[Spec], n: int, m: int) -> bool:
    T, q, p = max(known.T for known in specs), max(known.q for known in specs), max(known.c for known in specs)
    return n * m * T * T * (p + q) < n * m * p * q + (n + m) * T * p * q


def _by_identity(K: Tensor, x: Side, y: Side | None, numbers: int, share: tuple[int, int]) -> None:
    T = max(1, *(known.T for known in x.specs | (y.specs if y else set())))
    step = max(1, int((numbers / 2) ** 0.5 / T))  # samples of which all pairs of positions fit, twice
    pairs = ((a, b) for a in _outers(x, step) for b in _outers(y or x, step) if y is not None or b[0] <= a[0])
    for (i, a), (j, b) in _own(share, pairs):
        for g in range(a.left.shape[1]):
            left = a.left[:, g].flatten(0, 1) @ b.left[:, g].flatten(0, 1).mT
            left *= a.right[:, g].flatten(0, 1) @ b.right[:, g].flatten(0, 1).mT
            n, m = len(a.left), len(b.left)
            K[i : i + n, j : j + m] += left.view(n, a.left.shape[2], m, b.left.shape[2]).sum((1, 3), dtype=torch.float64)


def _outers(side: Side, step: int) -> Iterator[tuple[int, Outer]]:
    """The factors in blocks of at most `step` samples, with the place of the first."""
    for start, factors in placed(side):
        (f,) = factors
        f = padded(f) if isinstance(f, Packed) else f
        assert isinstance(f, Outer)  # noqa: S101 (for the type checker)
        for i in range(0, len(f.left), step):
            yield start + i, Outer(f.left[i : i + step], f.right[i : i + step])


def _by_table(K: Tensor, x: Side, y: Side, share: tuple[int, int], change: tuple[Callable[[Tensor], Tensor], ...]) -> None:
    (index, sample, values), (index2, sample2, values2) = _entries(x), _entries(y)
    if change:
        values, values2 = change[0](values), change[1](values2)
    place, place2 = (torch.stack(torch.unique_consecutive(i, return_counts=True)).tolist() for i in (index, index2))
    spans = dict(_spans(*place2))
    for row, (a, b) in _own(share, _spans(*place)):
        if row in spans:
            c, d = spans[row]
            K[sample[a:b, None], sample2[c:d]] += (values[a:b] @ values2[c:d].mT).to(K.dtype)


def _entries(side: Side) -> tuple[Tensor, Tensor, Tensor]:
    """Index, sample and values of all entries of a table's gradients, ordered by index."""
    found = [(f.index, f.sample + start, f.values) for start, factors in placed(side) for f in factors if isinstance(f, Rows)]
    index, sample, values = (torch.cat(field) for field in zip(*found, strict=True))
    order = index.argsort(stable=True)
    return index[order], sample[order], values[order]


def _spans(rows: list[int], counts: list[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    start = 0
    for row, size in zip(rows, counts, strict=True):
        yield row, (start, start + size)
        start += size


def _own(share: tuple[int, int], parts: Iterable[Part]) -> Iterator[Part]:
    return islice(iter(parts), share[0], None, share[1])


def placed(side: Side) -> Iterator[tuple[int, list[Factor]]]:
    """The pieces, with the place of their first sample."""
    start = 0
    for factors in side.load():
        yield start, factors
        start += samples_of(factors[0])
