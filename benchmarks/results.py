"""RESULTS.md and the README's table from the result files: `python -m benchmarks.results`. Nothing in them is typed by hand."""

import re
import sys
from collections.abc import Sequence

from benchmarks.record import RESULTS, Cell, Record, Table, cell, read
from driftway.store import write_file

TARGET = RESULTS.parents[1] / "RESULTS.md"
README = RESULTS.parents[1] / "README.md"
MARKS = "<!-- measured: begin -->", "<!-- measured: end -->"
SHOWN = (("driftway mixture", 1), ("driftway network", 4), ("OT-CFM", 4), ("OT-CFM", 100), ("OT-CFM (tuned)", 4), ("OT-CFM (tuned)", 100),
         ("I-CFM", 100))  # fmt: skip
HEAD = """# Results

Written by `python -m benchmarks.results` from the files in `benchmarks/results`; do not edit. Losses are listed like wins. A floor
is what a perfect method would score on the same number of points; ± is the standard deviation over seeds.
"""


def document(records: Sequence[Record]) -> str:
    """The whole document."""
    return "\n".join([HEAD, *map(section, sorted(records, key=lambda record: record.name))])


def section(record: Record) -> str:
    """One benchmark: what was run and where, goals, notes, tables."""
    on = ", ".join(f"{name} {value}" for name, value in record.machine.items() if value is not None)
    with_ = ", ".join(f"{name} {value}" for name, value in record.versions.items())
    held = ", ".join(f"{name} {value}" for name, value in record.protocol.items())
    state = [sentence for sentence, holds in (("**The short form, with fewer seeds and sizes.**", record.quick),
                                              ("**Unfinished: some figures are missing.**", not record.complete)) if holds]  # fmt: skip
    facts = [("command", f"`{record.command}`"), ("date", record.date), ("machine", on), ("versions", with_),
             ("seeds", ", ".join(map(str, record.seeds))), ("held fixed", held)]  # fmt: skip
    parts = [f"## {record.title}", *state, "\n".join(f"- {name}: {value}" for name, value in facts if value), *record.notes]
    if record.goals:
        parts += ["### Goals", "\n".join(f"- {goal.claim}: **{goal.verdict}**" for goal in record.goals)]
        parts += [table(Table(f"{goal.claim}: {goal.verdict}", goal.columns, goal.checks)) for goal in record.goals]
    return "\n\n".join([*parts, *map(table, record.tables)]) + "\n"


def table(content: Table) -> str:
    """A table in Markdown, numbers to the right."""
    numeric = [all(_is_number(row[place]) for row in content.rows) for place in range(len(content.columns))]
    lines = [content.columns, ["---:" if right else "---" for right in numeric], *content.rows]
    text = "\n".join("| " + " | ".join(_escaped(entry) for entry in line) + " |" for line in lines)
    return "\n\n".join([f"### {content.title}", text, *([content.note] if content.note else [])])


def headline(record: Record) -> str:
    """The README's short form of `transport_2d`: W2 of every method at its best-known numbers of steps, and the proven gaps."""
    found = {(row["task"], row["method"], row["steps"]): row for row in record.figures["summary"]}
    tasks = list(dict.fromkeys(task for task, _, _ in found))
    rows: list[tuple[Cell, ...]] = []
    for task in tasks:
        floor = found[task, *SHOWN[0]]["floor"]
        best = min(found[task, *key]["w2"] for key in SHOWN)
        shown = [f"{found[task, *key]['w2']:.3f}" for key in SHOWN]
        bold = [f"**{text}**" if found[task, *key]["w2"] == best else text for key, text in zip(SHOWN, shown, strict=True)]
        gaps = [row["gap"] for row in record.figures["trainings"] if row["task"] == task and row["method"] == "driftway network"]
        rows.append((task, f"{floor:.3f}", *bold, f"{sum(gaps) / len(gaps):.1%}"))
    shown = [f"{method}, {steps} step{'s' * (steps > 1)}" for method, steps in SHOWN]
    columns = ("W2, lower is better", "floor", *shown, "proven gap, network")
    lines = [columns, ["---"] * len(columns), *rows]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    verdicts = "\n".join(f"- {goal.claim}: **{goal.verdict}**" for goal in record.goals)
    seconds = record.protocol["training seconds per method"]
    about = (f"Equal training time ({seconds:g} processor seconds each), the same width (3 x 64), {len(record.seeds)} seeds, torchcfm "
             "beside us in the same run. The floor is what two sets of fresh data score. *Tuned* gives the peer our schedule and "
             "weight average.")  # fmt: skip
    return f"{about}\n\n{text}\n\n{verdicts}"


def claims(records: Sequence[Record]) -> str:
    """How many goals of the other benchmarks are met, and how many of the checks that these consist of: one row for each."""
    lines: list[Sequence[Cell]] = [("benchmark", "goals met", "checks met"), ("---", "---:", "---:")]
    for record in records:
        checks = [check[-1] == "met" for goal in record.goals for check in goal.checks]
        met = f"{sum(goal.met for goal in record.goals)} of {len(record.goals)}"
        lines.append((f"[{record.title}](RESULTS.md#{anchor(record.title)})", met, f"{sum(checks)} of {len(checks)}"))
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def anchor(title: str) -> str:
    """Of a heading in Markdown."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main() -> None:
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        sys.exit(f"no result files in {RESULTS.parent.name}/{RESULTS.name}; run `make bench`")
    records = [read(path) for path in paths]
    write_file(TARGET, document(records).encode())
    first = [record for record in records if record.name == "transport_2d"]
    others = [record for record in records if record.name != "transport_2d" and record.goals]
    parts = [*map(headline, first), *([claims(others)] if others else []),
             "A goal is met if all its checks are. Every goal, check and figure, losses included: [RESULTS.md](RESULTS.md). Again: "
             "`make bench`."]  # fmt: skip
    before, _, rest = README.read_text().partition(MARKS[0])
    write_file(README, "\n".join([f"{before}{MARKS[0]}", "\n\n".join(parts), f"{MARKS[1]}{rest.partition(MARKS[1])[2]}"]).encode())
    print(f"{TARGET.name}: {', '.join(path.stem for path in paths)}")


def _is_number(entry: Cell) -> bool:
    return entry is None or isinstance(entry, int | float)


def _escaped(entry: Cell) -> str:
    return cell(entry).replace("|", "\\|")


if __name__ == "__main__":
    main()
