"""RESULTS.md from the result files: `python -m benchmarks.results`. Nothing in it is typed by hand."""

import sys
from collections.abc import Sequence

from benchmarks.record import RESULTS, Cell, Record, Table, cell, read
from driftway.store import write_file

TARGET = RESULTS.parents[1] / "RESULTS.md"
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


def main() -> None:
    paths = sorted(RESULTS.glob("*.json"))
    if not paths:
        sys.exit(f"no result files in {RESULTS.parent.name}/{RESULTS.name}; run `make bench`")
    write_file(TARGET, document([read(path) for path in paths]).encode())
    print(f"{TARGET.name}: {', '.join(path.stem for path in paths)}")


def _is_number(entry: Cell) -> bool:
    return entry is None or isinstance(entry, int | float)


def _escaped(entry: Cell) -> str:
    return cell(entry).replace("|", "\\|")


if __name__ == "__main__":
    main()
