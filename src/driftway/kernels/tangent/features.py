"""The tangent features of a data set, held as factors: Gram matrices, products and projections without the Jacobian.

    J (N, P), rows grad f(x_i) over the parameters in scope      K = J J^T      K v = J (J^T v)      sketch: J S^T

The sketch adds each column of J, with a random sign, to one of `dim` random places (Charikar, Chen and Farach-Colton, 2002;
Weinberger et al., 2009). Its inner products have the expectation K_ij and a variance of at most (K_ii K_jj + K_ij^2) / dim.

Equations (K24), (K25): docs/derivations/kernels.md.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from time import monotonic

import torch
from jaxtyping import Float
from torch import Tensor

from driftway.checks import choice, count, kind, require
from driftway.kernels.base import require_memory
from driftway.kernels.tangent.contract import Side, add_inner, chunks, formed
from driftway.kernels.tangent.spool import Spool
from driftway.linalg import SymmetricOperator
from driftway.parallel import Group
from driftway.store import read_tensors, write_tensors

CHANGES: Mapping[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "none": (), "both": (torch.sign, torch.sign), "left": (torch.sign, lambda g: g)}  # fmt: skip
ROOM = 2**26  # bytes of gradients that are formed at a time; more only where factors are read from files each time
PAUSE = 30.0  # seconds between two saves of an unfinished Gram matrix
LESS = 'use operator() or project() of tangent_features, pass fewer rows, or a contrast of outputs in place of "full"'


@dataclass(frozen=True)
class Projection:
    """Features of fewer columns.

    Attributes:
        features: (N, dim).
        error: bound on the standard deviation of <features_i, features_j> - K_ij, in units of sqrt(K_ii K_jj).
    """

    features: Float[Tensor, "N dim"]
    error: float


@dataclass(frozen=True, eq=False)
class TangentFeatures:
    """Gradients of a network's outputs with respect to its parameters in scope, one row of J for every row of the data.

    With outputs="full" there are N = n k rows, the k outputs of a data row after each other. Otherwise N = n.

    Attributes:
        shapes: of the parameters in scope, by name.
        scores: (n, k) the outputs.
        full: whether outputs have rows of their own.
        slow: parameters that were differentiated sample by sample: no rule knows their layers.
        dtype: of the factors.
        spool: the factors of this process.
        group: the processes; each holds some batches.
        memory: bytes that the work may take.
        key: of model, data and options, for files; "" without a cache.
    """

    shapes: Mapping[str, torch.Size]
    scores: Float[Tensor, "n k"]
    full: bool
    slow: frozenset[str]
    dtype: torch.dtype
    spool: Spool
    group: Group
    memory: float
    key: str

    @property
    def size(self) -> int:
        """N."""
        return self.scores.numel() if self.full else len(self.scores)

    def gram(self, *, sign: str = "none", weights: Mapping[str, float] | None = None) -> Float[Tensor, "N N"]:
        """K = J J^T in float64, symmetric to the last bit (but for sign="left").

        Args:
            sign: "none"; "both" for <sign g_i, sign g_j>; "left" for <sign g_i, g_j>, the kernel of sign descent (Malladi et al., 2023).
            weights: sum_p w_p <g_p, g_p'> over parameters p in place of the plain sum: a preconditioner with one number a parameter.

        Raises:
            InputError: if the matrix does not fit into memory, or a parameter has no weight.
        """
        return inner(self, self if sign == "left" else None, sign=sign, weights=weights)

    def cross(self, other: "TangentFeatures", *, sign: str = "none",
              weights: Mapping[str, float] | None = None) -> Float[Tensor, "N M"]:  # fmt: skip
        """J J'^T in float64, with the features of other data by the same network, scope and outputs.

        Raises:
            InputError: if these differ, or the matrix does not fit into memory.
        """
        return inner(self, other, sign=sign, weights=weights)

    def diagonal(self) -> Float[Tensor, " N"]:
        """The diagonal of K in float64."""
        total = torch.zeros(self.size, dtype=torch.float64, device=self.scores.device)
        for name in self.shapes:
            for _, G in self._formed(name):
                total += G.square().sum(1, dtype=torch.float64)
        return total

    def dense(self) -> Float[Tensor, "N P"]:
        """J itself: parameters in the order of `shapes`, each flattened; with "trace" of k outputs, k gradients of each.

        Raises:
            InputError: if it does not fit into memory.
        """
        width = sum(shape.numel() for shape in self.shapes.values()) * (1 if self.full else self.scores.shape[1])
        require_memory("features", 2 * self.size * width * self.dtype.itemsize, LESS, device=self.scores.device)
        return torch.cat([G.clone() for name in self.shapes for _, G in self._formed(name)], 1)

    def operator(self) -> SymmetricOperator:
        """v -> J (J^T v). A product costs a pass over the factors; nothing of the size N N or N P is formed."""
        return SymmetricOperator(self.size, torch.float64, self.scores.device, self._product)

    def project(self, dim: int, *, generator: torch.Generator) -> Projection:
        """A random projection. Generators of one seed give the features of two data sets the same projection.

        Args:
            dim: columns to keep.
            generator: on the CPU.

        Raises:
            InputError: if dim is not a whole number of at least 1.
        """
        dim, device = count("dim", dim), self.scores.device
        sketch = torch.zeros(dim, self.size, dtype=self.dtype, device=device)
        for name in self.shapes:
            width = prod(self.side(name).shape)
            place = torch.randint(dim, (width,), generator=generator).to(device)
            signs = (2 * torch.randint(2, (width,), generator=generator) - 1).to(sketch)
            for columns, G in self._formed(name):
                sketch.index_add_(0, place[columns], (G * signs[columns]).mT)
        return Projection(sketch.mT.contiguous(), sqrt(2 / dim))

    def side(self, name: str) -> Side:
        """The factors of one parameter, of all processes."""
        return self.spool.side(name, self.size, self.group, dtype=self.dtype, device=self.scores.device)

    def room(self, samples: int) -> Tensor:
        """Memory to form gradients of so many samples in, a row of them at least."""
        size = self.memory / 4 if self.spool.spilled else min(ROOM, self.memory / 4)
        widest = max(shape[1:].numel() for shape in self.shapes.values())
        return torch.empty(max(int(size / self.dtype.itemsize), samples * widest), dtype=self.dtype, device=self.scores.device)

    def _formed(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Columns of J that belong to one parameter, some at a time, with their place among them."""
        side = self.side(name)
        c, room = side.shape[1], self.room(self.size)
        for rows in chunks(side.specs, room.numel() // (self.size * c)):
            yield slice(rows.start * c, rows.stop * c), formed(side, rows, c, room)

    def _product(self, V: Float[Tensor, "N k"]) -> Float[Tensor, "N k"]:
        out = torch.zeros_like(V)
        for name in self.shapes:
            side = self.side(name).held()
            for v, into in zip(V.mT, out.mT, strict=True):
                into += side.dot(side.combine(v))
        return out


def inner(x: TangentFeatures, y: TangentFeatures | None, *, sign: str = "none", weights: Mapping[str, float] | None = None,
          folder: Path | None = None) -> Float[Tensor, "N M"]:  # fmt: skip
    """The Gram matrix of x, or with y the cross-Gram matrix, in float64; a weighted sum over parameters if there are weights.

    With a folder, what is done of it is kept there, and a call with the same data goes on from there.

    Raises:
        InputError: if the two do not belong together, or the matrix does not fit into memory.
    """
    sign, other, device = choice("sign", sign, CHANGES), y or x, x.scores.device
    if weights is not None:
        kind("weights", weights, Mapping, "a dictionary of numbers")
    lacking = sorted(set(x.shapes) - set(weights)) if weights is not None else []
    require(not lacking, "weights", expected="a weight for each parameter in scope", got=f"none for {', '.join(lacking[:3])}",
            cure="name parameters as the model does")  # fmt: skip
    alike = (x.shapes, x.scores.shape[1], x.full) == (other.shapes, other.scores.shape[1], other.full)
    require(alike, "other", expected="features by the same network, scope and outputs",
            got=f"{len(other.shapes)} parameters and {other.scores.shape[1]} outputs",
            cure="take both with the same options")  # fmt: skip
    require_memory("batches", 8 * x.size * other.size * (2 if y is None else 1), LESS, device=device)
    K, done = torch.zeros(x.size, other.size, dtype=torch.float64, device=device), 0
    key = f"{x.key} {other.key} {sign} {x.group.rank} of {x.group.size}"
    key += f" {sorted(weights.items())}" if weights else ""
    path = folder / f"gram-{x.group.rank}.safetensors" if folder else None
    if path and path.is_file():
        config, tensors = read_tensors("cache", path)
        if config.get("key") == key:
            held, done = tensors.get("K", K[:0]), config.get("done", -1)
            require(held.shape == K.shape and held.dtype == K.dtype and type(done) is int and 0 <= done <= len(x.shapes), "cache",
                    expected=f"a matrix {tuple(K.shape)} in {path}", got=f"{tuple(held.shape)} of {held.dtype}", cure="delete that file")
            K = held.to(device)
    if len(set(x.group.gather(done))) > 1:  # processes that were stopped at different places begin together
        K, done = torch.zeros_like(K), 0
    saved, names, room = monotonic(), tuple(x.shapes), x.room(x.size + (y.size if y else 0))
    for number in range(done, len(names)):
        own, its = x.side(names[number]), y.side(names[number]) if y else None
        with torch.autocast(device.type, enabled=False):
            part = torch.zeros_like(K) if weights else K
            add_inner(part, own, its, room=room, share=(x.group.rank, x.group.size), change=CHANGES[sign])
            if weights:
                K.add_(part, alpha=weights[names[number]])
        if path and (number + 1 == len(names) or monotonic() - saved > PAUSE):
            write_tensors(path, {"K": K}, {"key": key, "done": number + 1})
            saved = monotonic()
    K = x.group.total(K)
    K = K if y else K.tril_().add_(K.tril(-1).mT)
    bad = (~torch.isfinite(K)).any(1).nonzero().flatten().tolist()
    require(not bad, "forward", expected="finite gradients", got=f"NaN or infinite ones in {len(bad)} rows, the first of them {bad[:1]}",
            cure="look for a root of zero or an overflow, or compute with dtype=torch.float64")  # fmt: skip
    return K
