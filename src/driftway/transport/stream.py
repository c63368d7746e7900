"""Batches without end, in an order that a few integers restore exactly."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from driftway import checks
from driftway.checks import InputError, require

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


@dataclass(frozen=True)
class Batch:
    """Rows (n, *event) with their labels (n,), vectors (n, k), or None."""

    x: Tensor
    c: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return Batch(self.x[rows], None if self.c is None else self.c[rows])


def join(batches: list[Batch]) -> Batch:
    """Batches one after another."""
    labels = [batch.c for batch in batches if batch.c is not None]
    return Batch(torch.cat([batch.x for batch in batches]), torch.cat(labels) if labels else None)


@runtime_checkable
class Stream(Protocol):
    """Batches without end."""

    def draw(self, n: int) -> Batch:
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

    def probe(self, n: int = PROBE) -> Batch:
        """About n rows, or all that an array has, to fit a scale on; drawing them moves no position."""
        ...


class Counted:
    """A stream whose n-th batch is a function of n: the base of samplers."""

    def __init__(self, name: str, sample: Callable[[int, torch.Generator], Batch], seed: int) -> None:
        self.name, self.sample, self.seed, self.drawn = name, sample, seed, 0

    def draw(self, n: int) -> Batch:
        self.drawn += 1
        return self.sample(n, generator(self.seed, self.name, self.drawn))

    def state(self) -> list[int]:
        return [self.drawn]

    def restore(self, state: list[int]) -> None:
        (self.drawn,) = state

    def probe(self, n: int = PROBE) -> Batch:
        return self.sample(n, generator(self.seed, self.name, "probe"))

    def digest(self) -> str:
        return _digest(self.sample(64, generator(0, self.name, "digest")))


class Rows:
    """An array in shuffled epochs without replacement; what is left at the end of an epoch is skipped."""

    def __init__(self, name: str, rows: Batch, seed: int) -> None:
        self.name, self.rows, self.seed = name, rows, seed
        self.restore([0, 0])

    def draw(self, n: int) -> Batch:
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
        self.order = order.to(self.rows.x.device)

    def probe(self, n: int = PROBE) -> Batch:
        return self.rows

    def digest(self) -> str:
        return _digest(self.rows)


class Loader:
    """A DataLoader: the first entry of each batch, and the second as labels where these are wanted.

    The shuffle of each epoch is seeded, and the global stream is left alone.
    """

    def __init__(self, name: str, loader: DataLoader[Any], seed: int, *, labelled: bool = False) -> None:
        self.name, self.loader, self.seed, self.labelled = name, loader, seed, labelled
        self.restore([0, 0])

    def draw(self, n: int) -> Batch:
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

    def probe(self, n: int = PROBE) -> Batch:
        rows: list[Batch] = []
        for batch in self._epoch(-1):
            rows.append(batch)
            if sum(map(len, rows)) >= n:
                break
        require(sum(map(len, rows)) >= 2, self.name, expected="a DataLoader with at least 2 rows", got="fewer", cure="give it data")
        return join(rows)

    def digest(self) -> str:
        return _digest(self.probe())

    def _take(self, n: int) -> Batch:
        while sum(map(len, self.buffer)) < n:
            batch = next(self.batches, None)
            if batch is None:
                break
            self.buffer.append(batch)
        rows = join(self.buffer) if self.buffer else Batch(torch.empty(0))
        self.buffer = [rows[n:]] if len(rows) > n else []
        self.position += len(rows[:n])
        return rows[:n]

    def _epoch(self, epoch: int) -> Iterator[Batch]:
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
            yield batch_of(self.name, batch if self.labelled else batch[0] if isinstance(batch, list | tuple) else batch, self.labelled)


def batch_of(name: str, drawn: Any, labelled: bool) -> Batch:
    """What a sampler or a DataLoader gave, as a batch.

    Raises:
        InputError: if it is no rows, or no pair of rows and labels where labels are wanted.
    """
    if not labelled:
        return Batch(checks.samples(name, drawn, least=1))
    pair = list(drawn) if isinstance(drawn, list | tuple) else []
    require(len(pair) >= 2, name, expected="pairs (rows, labels), as labels='batch' says", got=type(drawn).__name__,
            cure="yield rows and labels")  # fmt: skip
    x = checks.samples(name, pair[0], least=1)
    try:
        c = torch.as_tensor(pair[1])
    except (TypeError, ValueError, RuntimeError):
        raise InputError(name, expected="labels as whole numbers, or vectors, in batches", got=repr(pair[1])[:60],
                         cure="number the classes") from None  # fmt: skip
    require(c.ndim in (1, 2) and len(c) == len(x), name, expected=f"{len(x)} labels", got=f"shape {tuple(c.shape)}",
            cure="yield one label per row")  # fmt: skip
    return Batch(x, c)


def _digest(batch: Batch) -> str:
    whole = hashlib.sha256()
    for rows in (batch.x, batch.c):
        if rows is not None:
            whole.update(f"{tuple(rows.shape)}{rows.dtype}".encode())
            whole.update(rows.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:32]
