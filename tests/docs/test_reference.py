"""The reference has every public name of every room, and the site every page."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {path: path.read_text("utf-8") for path in (ROOT / "docs" / "reference").glob("*.md")}
ROOMS = sorted({path.stem for path in (ROOT / "src" / "driftway").glob("[a-z]*") if path.suffix in ("", ".py")} - {"cli"})
DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)\n(?P<options>(?:    .*\n)*)", re.MULTILINE)


def shown() -> dict[str, set[str] | None]:
    """What the reference renders, by its full name; the members of a module that are asked for, or None for all."""
    found: dict[str, set[str] | None] = {}
    for text in PAGES.values():
        for directive in DIRECTIVE.finditer(text + "\n"):
            members = re.search(r"members: \[(.*)\]", directive["options"])
            found[directive["name"]] = None if members is None else set(filter(None, members[1].split(", ")))
    return found


SHOWN = shown()
BARE = re.findall(r"^::: ([\w.]+)\n    options:\n      show_if_no_docstring: true", "\n".join(PAGES.values()), re.MULTILINE)


def public(room: ModuleType) -> list[str]:
    own = (name for name, thing in vars(room).items() if not name.startswith("_") and inspect.getmodule(thing) is room)
    return getattr(room, "__all__", [name for name in own if inspect.isclass(vars(room)[name]) or inspect.isfunction(vars(room)[name])])


def rendered(room: ModuleType, name: str) -> bool:
    """In its own right, with its module, or with its room. Without a docstring a thing is shown where that is asked for."""
    thing = getattr(room, name)
    home = getattr(thing, "__module__", None) or room.__name__
    homes = {room.__name__, home, home.rpartition(".")[0]}  # a package shows what it exports
    documented = (inspect.isclass(thing) or inspect.isfunction(thing)) and bool(inspect.getdoc(thing))
    if any(vars(import_module(bare)).get(name) is thing for bare in BARE):
        return True
    alone = any(home.startswith(room.__name__.rsplit(".", 1)[0]) and home.rsplit(".", 1)[-1] == name for home in SHOWN)
    return alone or (documented and any(home in SHOWN and (SHOWN[home] is None or name in (SHOWN[home] or ())) for home in homes))


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_is_in_the_reference(room):
    module = import_module(f"driftway.{room}")
    names = public(module)
    missing = [name for name in names if not rendered(module, name)]
    assert names
    assert not missing


def test_what_the_reference_asks_for_exists():
    for name, members in SHOWN.items():
        try:
            thing = import_module(name)
        except ModuleNotFoundError:
            home, _, last = name.rpartition(".")
            thing = getattr(import_module(home), last)
        lost = [member for member in members or () if not hasattr(thing, member)]
        assert not lost, f"{name} has no {lost}"


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    docs = ROOT / "docs"
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").split("\nnav:\n")[1].split("\nmarkdown_extensions:")[0]
    entries = set(re.findall(r"(\S+\.md)$", nav, re.MULTILINE))
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md")}
    made = {f"examples/{path.stem}.md" for path in (docs / "examples").glob("*.py")}  # by hooks.py
    assert entries == pages | made
