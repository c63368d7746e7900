"""How good a model is on held-out rows x of the source and y of the target, for several numbers of steps.

    W2         W2(z, y)                   z the ends of the paths from x; n rows of each
    floor      W2(y_b, y_a)               y_a and y_b disjoint sets of m held-out rows: what a perfect model would score
    W2 at m    W2(z_c, y_a)               the same y_a, and m of the ends, so that the two compare
    energy     E sum_h |x_h+1 - x_h|^2 H        at least W2(x, y)^2 if y is hit
    normalised |energy - W2(x, y)^2| / W2(x, y)^2
    straight   E|x_H - x_0|^2 / energy          1 for straight paths at constant speed

n is the number of rows that both sides have, at most `limit`; m = n where y has 2n rows, else half the rows of y. The last two
are means over a few random choices of y_a, y_b and z_c, as one choice is mostly luck where the data has clusters. With labels the
paths take those of y, z_c those of y_b, and W2(x, y)^2 is its mean over the labels, each with its own rows. All is in the units of
the data, except the certificate of a model whose source is the standard normal (see `certificate`). With a kernel there is also the
MMD of z and n rows of y, whose floor needs no second set of rows (see `kernel_distance`); with classes, within each of them too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from driftway import checks
from driftway.checks import require
from driftway.kernels import Kernel
from driftway.transport import (
    Certificate,
    KernelDistance,
    TransportModel,
    certificate,
    kernel_distance,
    normalised_path_energy,
    path_energy,
    straightness,
    w2,
)
from driftway.transport.metrics import KERNELS
from driftway.transport.stream import generator

HEADLINE, SPLITS = 4, 4


@dataclass(frozen=True)
class Quality:
    """What a number of steps gives.

    Attributes:
        steps: policy steps.
        w2: distance of n samples to n held-out rows.
        w2_at_floor: the same for as many rows as the floor is computed from; a mean over random choices of them. If that is n, both
            are this mean.
        energy: path energy.
        normalised_energy: excess of the path energy over W2^2 of source and target rows, relative; NaN where W2 is 0.
        straightness: of the paths, at most 1.
        kernel: distance of n samples to n held-out rows in the kernel, if there is one.
    """

    steps: int
    w2: float
    w2_at_floor: float
    energy: float
    normalised_energy: float
    straightness: float
    kernel: KernelDistance | None = None


@dataclass(frozen=True)
class Evaluation:
    """The qualities of a model on held-out rows, with what they are to be compared to.

    Attributes:
        qualities: one per number of steps.
        floors: W2 of two disjoint sets of `floor_rows` held-out target rows, for several random choices of them.
        squared_w2: W2^2 of the source and target rows, with labels within these.
        certificate: bracket of half of it, by the model's prices and its policy of four steps.
        n: rows of each side.
        floor_rows: rows of each set behind the floor.
        seed: of the choice of rows, the start and the noise.
        kernel: name of the kernel of the qualities, if they have one.
    """

    qualities: tuple[Quality, ...]
    floors: tuple[float, ...]
    squared_w2: float
    certificate: Certificate
    n: int
    floor_rows: int
    seed: int
    kernel: str = ""

    @property
    def floor(self) -> float:
        """The mean of the floors."""
        return fmean(self.floors)

    @property
    def headline(self) -> Quality:
        """The quality at four steps, or at the number of steps nearest to four."""
        return min(self.qualities, key=lambda quality: abs(quality.steps - HEADLINE))

    def ratio(self, quality: Quality) -> float:
        """W2 over the floor, at equal numbers of rows: about 1 for a perfect model. NaN where the floor is 0."""
        return quality.w2_at_floor / self.floor if self.floor > 0 else math.nan

    def rows(self) -> list[dict[str, str]]:
        """The table, one row per number of steps: heading -> cell, as text."""
        few, n = self.floor_rows, self.n
        return [
            {
                "steps": str(q.steps),
                f"W2 ({n:,} rows)": _cell(q.w2),
                **({} if few == n else {f"W2 ({few:,} rows)": _cell(q.w2_at_floor)}),
                f"floor ({few:,} rows)": _cell(self.floor),
                "W2 / floor": _cell(self.ratio(q), 3),
                "path energy": _cell(q.energy),
                "normalised path energy": _cell(q.normalised_energy, 3),
                "straightness": _cell(q.straightness),
            }
            for q in self.qualities
        ]

    def kernel_rows(self) -> list[dict[str, str]]:
        """The table of the distances in the kernel: for each number of steps, then within each class at the headline's number."""
        known = [(str(q.steps), q.kernel) for q in self.qualities if q.kernel]
        headline = self.headline.kernel
        known += [(f"{self.headline.steps}, {name}", own) for name, own in (headline.classes if headline else {}).items()]
        return [
            {"steps": name, "rows": f"{own.m:,}", f"MMD ({self.kernel})": _cell(own.mmd), "floor": _cell(own.floor),
             "MMD / floor": _cell(own.ratio, 3), "p": _cell(own.p_value, 2)}
            for name, own in known
        ]  # fmt: skip


def evaluate(model: TransportModel, x: Float[Tensor, "n *event"] | None, y: Float[Tensor, "m *event"], *,
             labels: Any = None, steps: Sequence[int] = (1, 2, 4, 20), limit: int = 1000, seed: int = 0,
             kernel: Kernel | str | None = None) -> Evaluation:  # fmt: skip
    """Measure a model on held-out rows.

    Args:
        model: what is measured.
        x: held-out source rows, or None to draw standard normal ones.
        y: held-out target rows, at least 2.
        labels: labels of y, (m,), or condition vectors. Samples take the same ones, so their law is that of y; without them it is
            the whole law.
        steps: numbers of policy steps to try.
        limit: the most rows of a side that are used; exact transport costs about limit^2 memory and limit^3 time.
        seed: of everything random; the same arguments give the same numbers.
        kernel: also measure the MMD in this kernel (see `kernel_distance`): "rbf", "nngp", "ntk", or any other. None for no MMD.

    Raises:
        InputError: if rows are unusable or too few, x is None for a model between data sets, a number is out of range, or there is no
            such kernel.
    """
    counts = [checks.count("steps", count) for count in steps]
    require(len(counts) > 0, "steps", expected="one number of steps or more", got="none", cure="pass steps=(1, 4)")
    if isinstance(kernel, str):
        checks.choice("kernel", kernel, KERNELS)
    label = held_names(labels, len(y), seed=seed)
    x, y = held_rows(model, x, y, limit=limit, seed=seed)
    n = len(x)
    label = None if label is None else label[:n]
    few = min(n, len(y) // 2)
    splits = [_split(y, n, few, (seed, split), labelled=label is not None) for split in range(SPLITS)]
    floors = tuple(w2(other, rows) for rows, other, _ in splits)
    y = y[:n]
    squared = _squared(model.scaler.data(model.scaler.source(x)), y, label if model.classes else None)
    same = squared <= 1e-12 * float(y.double().flatten(1).var(0).sum())
    qualities = []
    for count in counts:
        path = model.path(x, steps=count, label=label, seed=seed)
        end = path.states[-1]
        near = fmean(w2(end[chosen], rows) for rows, _, chosen in splits)
        far = near if few == n else w2(end, y)
        normalised = math.nan if same else normalised_path_energy(path, squared)
        names = label if model.classes else None
        mmd = None if kernel is None else kernel_distance(end, y, kernel=kernel, labels=names, target_labels=names, seed=seed)
        qualities.append(Quality(count, far, near, path_energy(path), normalised, straightness(path), mmd))
    found = certificate(model, x, y, steps=HEADLINE)
    return Evaluation(tuple(qualities), floors, squared, found, n=n, floor_rows=few, seed=seed,
                      kernel=kernel if isinstance(kernel, str) else "" if kernel is None else type(kernel).__name__)  # fmt: skip


def held_rows(model: TransportModel, x: Float[Tensor, "n *event"] | None, y: Float[Tensor, "m *event"], *, limit: int,
              seed: int) -> tuple[Float[Tensor, "k *event"], Float[Tensor, "m *event"]]:  # fmt: skip
    """The source rows that an evaluation uses, and all target rows in the order in which it uses them.

    Raises:
        InputError: as `evaluate`.
    """
    like, limit = model.scaler.shift, checks.count("limit", limit, least=2)
    seed = checks.count("seed", seed, least=0)
    y = _shuffled(checks.samples("y", y, event=model.event).to(like), seed, "target")
    n = min(len(y), limit)
    require(x is not None or model.scaler.noise, "x", expected="source rows, as this model moves data to data", got="None",
            cure="pass held-out rows of the source")  # fmt: skip
    if x is None:
        return torch.randn(n, *model.event, generator=generator(seed, "evaluation", "normal")).to(like), y
    return _shuffled(checks.samples("x", x, event=model.event).to(like), seed, "source")[:n], y


def held_names(labels: Any, rows: int, *, seed: int) -> list[Any] | None:
    """The labels of the target rows in the order in which an evaluation uses these; None for None.

    Raises:
        InputError: if they are not one per row.
    """
    if labels is None:
        return None
    require(len(labels) == rows, "labels", expected=f"{rows} labels, one per row of y", got=len(labels), cure="give one label per row")
    return np.asarray(labels)[_order(rows, seed, "target").numpy()].tolist()


def _split(y: Tensor, n: int, few: int, key: tuple[int, int], *, labelled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y_a, y_b, and the indices of z_c. With labels z_c takes those of y_b, so that chance moves the labels of both alike."""
    chosen = _order(n, *key)[:few].to(y.device)
    if not labelled:
        rows = _shuffled(y[: 2 * few], *key)
        return rows[:few], rows[few:], chosen
    rest = torch.ones(len(y), dtype=torch.bool, device=y.device)
    rest[chosen] = False
    return _shuffled(y[rest], *key)[:few], y[chosen], chosen


def _squared(x: Tensor, y: Tensor, label: list[Any] | None) -> float:
    """W2^2, with labels the mean over rows of that within their label: what paths that end in their label cost at least."""
    if label is None:
        return w2(x, y) ** 2
    names = list(map(str, label))
    places = [torch.tensor([i for i, name in enumerate(names) if name == own], device=y.device) for own in sorted(set(names))]
    return sum(len(rows) * w2(x[rows], y[rows]) ** 2 for rows in places) / len(y)


def _shuffled(rows: Tensor, seed: int, key: object) -> Tensor:
    """Files are often sorted, by class or by time; halves and prefixes must not be."""
    return rows[_order(len(rows), seed, key).to(rows.device)]


def _order(n: int, seed: int, key: object) -> Tensor:
    return torch.randperm(n, generator=generator(seed, "evaluation", key))


def _cell(number: float, digits: int = 4) -> str:
    return f"{number:#.{digits}g}".rstrip(".") if math.isfinite(number) else "n/a"
