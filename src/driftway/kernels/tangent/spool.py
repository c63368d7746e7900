"""Pieces on their way from the passes to the Gram matrix: in memory up to a limit, then in files.

A Gram matrix needs one parameter at a time, of all rows. So the factors of all parameters wait here, and are loaded by parameter. In a
folder that the user names, files are kept and found again: each carries a key, made from the model's tensors, the rows of the batch
and the options, and a file with another key is written anew.
"""

from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from driftway.checks import InputError, require
from driftway.kernels.tangent.capture import Piece
from driftway.kernels.tangent.contract import Side
from driftway.kernels.tangent.factors import Direct, Factor, Outer, Packed, Rows, Spec, moved, spec
from driftway.parallel import Group
from driftway.store import read_tensors, write_tensors, writing

KINDS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "direct": (Direct, ("g",)), "outer": (Outer, ("left", "right")), "packed": (Packed, ("left", "right")),
    "rows": (Rows, ("sample", "index", "values"))}  # fmt: skip


@dataclass(frozen=True)
class _Stored:
    """A piece in a file: for each factor of each parameter its spec, the names of its tensors and other fields."""

    path: Path
    key: str
    layout: Mapping[str, list[Any]]


@contextmanager
def alone(folder: Path | None, group: Group) -> Iterator[None]:
    """Keep other runs out of a cache, if there is one.

    Raises:
        InputError: if one works there, or it cannot be written to.
    """
    with writing("cache", folder) if folder and group.main else nullcontext():
        group.gather(None)  # nobody writes before the first process has the folder
        yield


class Spool:
    """Pieces in the order of their rows.

    Attributes:
        numbers: of the batches that the pieces come from, ascending; another process may have those between.
        scores: of each piece.
        specs: of the factors of each parameter, over all pieces.
        spilled: whether some pieces are in files.
    """

    def __init__(self, *, limit: float | int, folder: Path | None = None) -> None:
        """`limit` is in bytes. With a `folder`, every piece is a file in it."""
        self.limit, self.folder, self.held, self.spilled = (limit if folder is None else 0), folder, 0, False
        self.pieces: list[Mapping[str, list[Factor]] | _Stored] = []
        self.numbers: list[int] = []
        self.scores: list[Tensor] = []
        self.specs: dict[str, set[Spec]] = {}
        self._own: TemporaryDirectory[str] | None = None

    def find(self, number: int, key: str) -> frozenset[str] | None:
        """Take a piece from its file if there is one with this key; the names of its slow parameters, or None."""
        if self.folder is None or not self._path(number).is_file():
            return None
        config, tensors = read_tensors("cache", self._path(number), names=("scores",))
        if config.get("key") != key:
            return None
        with _whole(self._path(number)):
            scores, slow = tensors["scores"], frozenset(map(str, config["slow"]))
            if scores.ndim != 2 or any(scores.shape[1:] != other.shape[1:] for other in self.scores):
                raise ValueError(f"scores of shape {tuple(scores.shape)}")
            self._keep(_Stored(self._path(number), key, config["layout"]), number, scores)
        return slow

    def add(self, piece: Piece, number: int, *, key: str = "", slow: Collection[str] = ()) -> None:
        """Append the piece of a batch."""
        tensors = {_memory(t): t for factors in piece.factors.values() for f in factors for t in _tensors(f)}  # layers share inputs
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self.held + size <= self.limit:
            self.held += size
            for name, factors in piece.factors.items():
                self.specs.setdefault(name, set()).update(map(spec, factors))
            self.pieces.append(piece.factors)
            self.numbers.append(number)
            self.scores.append(piece.scores)
            return
        names = {t: str(number) for number, t in enumerate(tensors)}
        layout = {name: [_describe(f, names) for f in factors] for name, factors in piece.factors.items()}
        named = {names[t]: tensor for t, tensor in tensors.items()} | {"scores": piece.scores}
        path, config = self._path(number), {"key": key, "slow": sorted(slow), "layout": layout}
        write_tensors(path, named, config, durable=self.folder is not None)
        self._keep(_Stored(path, key, layout), number, piece.scores)

    def load(self, name: str) -> Iterator[list[Factor]]:
        """The factors of one parameter, piece by piece."""
        for piece, scores in zip(self.pieces, self.scores, strict=True):
            if not isinstance(piece, _Stored):
                yield piece[name]
                continue
            with _whole(piece.path):
                described = piece.layout[name]
                config, tensors = read_tensors("cache", piece.path, names={n for _, names, _ in described for n in names})
            require(config.get("key") == piece.key, "cache", expected=f"{piece.path} as it was written", got="that of other data",
                    cure="give every model and data set a cache of its own")  # fmt: skip
            with _whole(piece.path):
                found = [KINDS[known[0]][0](*(tensors[n].to(scores.device) for n in names), *map(_frozen, rest))
                         for known, names, rest in described]  # fmt: skip
                if any(spec(factor) != Spec(*known) for factor, (known, _, _) in zip(found, described, strict=True)):
                    raise ValueError("factors of other shapes")
            yield found

    def side(self, name: str, n: int, group: Group, *, dtype: torch.dtype, device: torch.device) -> Side:
        """The factors of one parameter for all n samples, those of other processes included."""
        specs, load = self.specs.get(name, set()), partial(self.load, name)
        if group.size > 1:
            own = [(number, [moved(f, "cpu") for f in factors]) for number, factors in zip(self.numbers, load(), strict=True)]
            found = group.gather((specs, own))
            pieces = sorted((piece for _, held in found for piece in held), key=lambda piece: piece[0])
            everyone = [[moved(f, device) for f in factors] for _, factors in pieces]
            specs, load = set().union(*(known for known, _ in found)), partial(iter, everyone)
        return Side(n, specs, load, dtype, device)

    def _keep(self, stored: _Stored, number: int, scores: Tensor) -> None:
        self.spilled = True
        for name, described in stored.layout.items():
            self.specs.setdefault(name, set()).update(Spec(*known) for known, _, _ in described)
        self.pieces.append(stored)
        self.numbers.append(number)
        self.scores.append(scores)

    def _path(self, number: int) -> Path:
        if self.folder is None and self._own is None:
            self._own = TemporaryDirectory(prefix="driftway-")
        return (self.folder or Path(self._own.name)) / f"rows-{number:06d}.safetensors"  # type: ignore[union-attr]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """What goes wrong inside is the file's fault."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError("cache", expected=f"a whole {path.name}", got=f"a changed or damaged one ({' '.join(str(error).split())[:200]})",
                         cure=f"delete {path} and call again") from None  # fmt: skip


def _tensors(factor: Factor) -> list[Tensor]:
    return [getattr(factor, name) for name in KINDS[spec(factor).kind][1]]


def _memory(tensor: Tensor) -> Hashable:
    """Equal for tensors that are the same numbers in the same place, as layers with one input have them."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)


def _frozen(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, list) else entry  # what JSON made of a tuple


def _describe(factor: Factor, names: Mapping[Hashable, str]) -> tuple[tuple[Any, ...], list[str], list[Any]]:
    rest: list[Any] = [factor.n, factor.r] if isinstance(factor, Rows) else [factor.sizes] if isinstance(factor, Packed) else []
    return astuple(spec(factor)), [names[_memory(t)] for t in _tensors(factor)], rest
