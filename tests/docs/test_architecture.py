"""The map of the house is whole: every file of the package stands in it, and every file that it names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "driftway"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
HEADINGS = {"transport": "Transport", "kernels": "Kernels", "finetune": "Fine-tuning", "stopping": "Fine-tuning", "adapt": "Adaptation",
            "align": "Alignment", "linalg": "Linear algebra", "data": "Data", "report": "Report", "cli": "Command line"}  # fmt: skip
ROOMS = sorted(path.name for path in SRC.iterdir() if (path / "__init__.py").exists())


def section(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def tables(text: str) -> list[str]:
    """The names in the first column of its tables."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([\w/]+\.\w+)`", row)]


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_of_a_room_is_in_its_table(room):
    named = {name.rsplit("/", 1)[-1] for name in tables(section(HEADINGS[room]))}
    files = {path.name for path in (SRC / room).rglob("*.py") if path.name != "__init__.py"}
    assert files
    assert not files - named


def test_rooms_of_one_file_are_on_a_floor():
    floors = PAGE.split("\n## ")[0]
    assert [path.stem for path in SRC.glob("*.py") if path.name != "__init__.py" and f"`{path.stem}`" not in floors] == []
    assert [room for room in ROOMS if f"`{room}`" not in floors] == []


def test_every_file_in_a_table_exists():
    there = {path.name for path in SRC.rglob("*.*")}
    assert [name for name in tables(PAGE) if name.rsplit("/", 1)[-1] not in there] == []
