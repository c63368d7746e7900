"""Code and derivations point at each other: a number that is cited exists, and every numbered equation is cited where it is computed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC, DOCS = ROOT / "src" / "driftway", ROOT / "docs"
ROOMS = {"transport": ("transport",), "kernels": ("kernels", "linalg"), "finetune": ("finetune", "stopping"), "adapt": ("adapt",)}
LETTERS = {"T": "transport", "K": "kernels", "F": "finetune", "A": "adapt"}
CITED = re.compile(r"\(([TKFA]\d+)\)")
CODE = {path: path.read_text("utf-8") for path in SRC.rglob("*.py")}
every_page = pytest.mark.parametrize("page", ROOMS)


def text(page: str) -> str:
    return (DOCS / "derivations" / f"{page}.md").read_text("utf-8")


def numbered(part: str) -> list[str]:
    return re.findall(r"\\tag\{([^}]+)\}", part)


def sections(page: str) -> list[tuple[list[str], list[str]]]:
    """Of each section, the files that its first line names, and its equations."""
    found = []
    for part in text(page).split("\n## ")[1:]:
        head = part.split("\n\n")[1]
        named = re.findall(r"`([\w/]+(?:\.py|/))`", head) if head.startswith("*") else []
        found.append((named, numbered(part)))
    return found


def place(page: str, name: str) -> Path | None:
    """A file or folder that a derivation names: in one of its rooms, in the package, or in the repository."""
    return next((path for path in (*(SRC / room / name for room in ROOMS[page]), SRC / name, ROOT / name) if path.exists()), None)


def cites(path: Path, equation: str) -> bool:
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return any(equation in CITED.findall(CODE[file]) for file in files if file in CODE)


KNOWN = {equation for page in ROOMS for equation in numbered(text(page))}


@every_page
def test_numbers_count_up_from_one(page):
    letter = next(letter for letter, name in LETTERS.items() if name == page)
    found = numbered(text(page))
    assert found == [f"{letter}{i + 1}" for i in range(len(found))]
    assert len(found) > 20


@every_page
def test_sections_name_files_that_exist(page):
    for named, equations in sections(page):
        assert named or not equations, f"a section with {equations} names no file"
        missing = [name for name in named if place(page, name) is None]
        assert not missing


@every_page
def test_every_equation_is_cited_by_a_file_that_its_section_names(page):
    """Or computed outside of the package, by a script that the section names."""
    for named, equations in sections(page):
        places = [found for name in named if (found := place(page, name))]
        inside = [found for found in places if SRC in found.parents]
        if inside:
            lost = [equation for equation in equations if not any(cites(found, equation) for found in inside)]
            assert not lost, f"{named} do not cite {lost}"


def test_what_code_cites_exists_and_is_on_the_page_that_it_names():
    lines = 0
    for path, code in CODE.items():
        unknown = set(CITED.findall(code)) - KNOWN
        assert not unknown, f"{path.name} cites {unknown}"
        for line in re.findall(r"^Equations? .*docs/derivations/\w+\.md\.$", code, re.MULTILINE):
            (page,) = re.findall(r"docs/derivations/(\w+)\.md", line)
            assert {LETTERS[equation[0]] for equation in CITED.findall(line)} == {page}, f"{path.name}: {line}"
            lines += 1
    assert lines > 50


def test_what_the_pages_cite_exists():
    for path in DOCS.rglob("*.md"):
        unknown = set(CITED.findall(path.read_text("utf-8"))) - KNOWN
        assert not unknown, f"{path.name} cites {unknown}"
