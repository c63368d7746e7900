"""Batches without end, from whatever holds the samples, in an order that a few integers restore exactly."""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from driftway import checks
from driftway.checks import InputError, require

Data = Any  # an array, a tensor, a sampler callable or a DataLoader
PROBE = 4096


def generator(*key: object) -> torch.Generator:
    """A generator on the CPU whose stream is a function of the key alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def split_rows(rows: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Training rows and held-out rows: a random fraction, at most 1,000; all rows twice where fewer than 2 would be held out."""
    held = min(int(fraction * len(rows)), 1000)
    if held < 2:
        return rows, rows[:1000]
    order = torch.randperm(len(rows), generator=generator(seed, "held-out")).to(rows.device)
    return rows[order[held:].sort().values], rows[order[:held]]


@runtime_checkable
class Stream(Protocol):
    """Batches (n, *event) without end."""

    def draw(self, n: int) -> Tensor:
        """The next n rows; fewer where the data set has fewer."""
        ...

    def state(self) -> list[int]:
        """Integers that restore the position."""
        ...

    def restore(self, state: list[int]) -> None:
        """Continue from a position."""
        ...

    def digest(self) -> str:
        """A fingerprint of the data."""
        ...

    def probe(self) -> Tensor:
        """Rows to fit a scale on; drawing them moves no position."""
        ...


class Counted:
    """A stream whose n-th batch is a function of n: the base of samplers."""

    def __init__(self, name: str, sample: Callable[[int, torch.Generator], Tensor], seed: int) -> None:
        self.name, self.sample, self.seed, self.drawn = name, sample, seed, 0

    def draw(self, n: int) -> Tensor:
        self.drawn += 1
        return self.sample(n, generator(self.seed, self.name, self.drawn))

    def state(self) -> list[int]:
        return [self.drawn]

    def restore(self, state: list[int]) -> None:
        (self.drawn,) = state

    def probe(self) -> Tensor:
        return self.sample(PROBE, generator(self.seed, self.name, "probe"))

    def digest(self) -> str:
        return _digest(self.sample(64, generator(0, self.name, "digest")))


class Rows:
    """An array in shuffled epochs without replacement; what is left at the end of an epoch is skipped."""

    def __init__(self, name: str, rows: Tensor, seed: int) -> None:
        self.name, self.rows, self.seed = name, rows, seed
        self.restore([0, 0])

    def draw(self, n: int) -> Tensor:
        n = min(n, len(self.rows))
        if self.position + n > len(self.rows):
            self.restore([self.epoch + 1, 0])
        batch = self.rows[self.order[self.position : self.position + n]]
        self.position += n
        return batch

    def state(self) -> list[int]:
        return [self.epoch, self.position]

    def restore(self, state: list[int]) -> None:
        self.epoch, self.position = state
        order = torch.randperm(len(self.rows), generator=generator(self.seed, self.name, self.epoch))
        self.order = order.to(self.rows.device)

    def probe(self) -> Tensor:
        return self.rows

    def digest(self) -> str:
        return _digest(self.rows)


class Loader:
    """A DataLoader: the first entry of each batch. The shuffle of each epoch is seeded, and the global stream is left alone."""

    def __init__(self, name: str, loader: DataLoader[Any], seed: int) -> None:
        self.name, self.loader, self.seed = name, loader, seed
        self.restore([0, 0])

    def draw(self, n: int) -> Tensor:
        fresh = self.position == 0
        batch = self._take(n)
        if len(batch) < n and not fresh:
            self.restore([self.epoch + 1, 0])
            batch = self._take(n)
        require(len(batch) >= 2, self.name, expected="a DataLoader with at least 2 rows an epoch", got=len(batch),
                cure="give it more data")  # fmt: skip
        return batch

    def state(self) -> list[int]:
        return [self.epoch, self.position]

    def restore(self, state: list[int]) -> None:
        self.epoch, position = state
        self.position, self.buffer = 0, []
        self.batches = self._epoch(self.epoch)
        if position:
            self._take(position)

    def probe(self) -> Tensor:
        rows: list[Tensor] = []
        for batch in self._epoch(-1):
            rows.append(batch)
            if sum(map(len, rows)) >= PROBE:
                break
        require(sum(map(len, rows)) >= 2, self.name, expected="a DataLoader with at least 2 rows", got="fewer", cure="give it data")
        return torch.cat(rows)

    def digest(self) -> str:
        return _digest(self.probe())

    def _take(self, n: int) -> Tensor:
        while sum(map(len, self.buffer)) < n:
            batch = next(self.batches, None)
            if batch is None:
                break
            self.buffer.append(batch)
        rows = torch.cat(self.buffer) if self.buffer else torch.empty(0)
        self.buffer = [rows[n:]] if len(rows) > n else []
        self.position += len(rows[:n])
        return rows[:n]

    def _epoch(self, epoch: int) -> Iterator[Tensor]:
        state = generator(self.seed, self.name, epoch).get_state()
        own, own_state, batches = self.loader.generator, state, None
        while True:
            kept = own.get_state() if own is not None else None
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                if own is not None:
                    own.set_state(own_state)
                batches = iter(self.loader) if batches is None else batches
                batch = next(batches, None)
                state = torch.get_rng_state()
            if own is not None and kept is not None:
                own_state = own.get_state()
                own.set_state(kept)
            if batch is None:
                return
            yield checks.samples(self.name, batch[0] if isinstance(batch, list | tuple) else batch, least=1)


def open_stream(name: str, data: Data, *, seed: int) -> Stream:
    """A stream over an array, a tensor, a sampler `f(n, generator)`, `f(n, *, generator)` or `f(n)`, or a DataLoader.

    Raises:
        InputError: if the data is none of these, or its samples are unusable.
    """
    if isinstance(data, DataLoader):
        return Loader(name, data, seed)
    if not callable(data) or isinstance(data, Tensor):
        return Rows(name, checks.samples(name, data), seed)
    call = _calling(name, data)

    def sample(n: int, own: torch.Generator) -> Tensor:
        if call == "keyword":
            rows = data(n, generator=own)
        elif call == "second":
            rows = data(n, own)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(own.get_state())
                rows = data(n)
        rows = checks.samples(name, rows, least=1)
        require(len(rows) == n, name, expected=f"{n} rows from the sampler", got=len(rows), cure="return n rows")
        return rows

    return Counted(name, sample, seed)


def _calling(name: str, sampler: Callable[..., Any]) -> str:
    """How a sampler takes its generator: by keyword, as its second argument, or not at all."""
    try:
        signature = inspect.signature(sampler)
    except (TypeError, ValueError):
        return "none"
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for how, arguments, options in (("keyword", (1,), {"generator": 1}), ("second", (1, 1), {}), ("none", (1,), {})):
        if how == "second" and len(needed) != 2:
            continue
        try:
            signature.bind(*arguments, **options)
        except TypeError:
            continue
        if how != "keyword" or "generator" in signature.parameters:
            return how
    raise InputError(name, expected="a sampler f(n, generator) or f(n)", got=f"a callable with {len(needed)} parameters",
                     cure="wrap it in a function of n and generator")  # fmt: skip


def normal_stream(size: int, like: Tensor, *, seed: int) -> Stream:
    """The standard normal of `size` columns, in the dtype and on the device of `like`."""
    return Counted("source", lambda n, own: torch.randn(n, size, generator=own).to(like), seed)


def _digest(rows: Tensor) -> str:
    header = f"{tuple(rows.shape)}{rows.dtype}".encode()
    data = rows.contiguous().cpu().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(header + data.tobytes()).hexdigest()[:32]
