"""One page that leads to several reports: of each, what was asked, what came out, and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from driftway import store
from driftway.checks import require
from driftway.report.template import Picture, facts, fill


@dataclass(frozen=True)
class Entry:
    """A report on the page.

    Attributes:
        title: its heading.
        question: what was tried, in a sentence.
        found: what came out, in sentences.
        href: the report, by its path from the page's folder.
        picture: one of its pictures.
    """

    title: str
    question: str
    found: tuple[str, ...]
    href: str
    picture: Picture

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InputError: if the report is not beside the page or below it.
        """
        parts = PurePosixPath(self.href)
        inside = not parts.is_absolute() and ".." not in parts.parts and ":" not in self.href and "\\" not in self.href
        require(inside and parts.suffix == ".html", "href", expected="the path of an HTML file below the page's folder",
                got=repr(self.href), cure="write it relative, with slashes")  # fmt: skip


def write_index(path: str | Path, entries: Sequence[Entry], *, command: str, title: str, verdict: Sequence[str],
                settings: Mapping[str, Any]) -> None:  # fmt: skip
    """Write the page, atomically.

    Args:
        path: the file; its folder is made if need be.
        entries: the reports, in their order.
        command: what the reader types to get all this again.
        title: the heading.
        verdict: sentences below it.
        settings: names and values of what was chosen.

    Raises:
        OSError: if the file cannot be written.
    """
    page = fill("index.html", title=title, command=command, verdict=list(verdict), entries=entries, settings=facts(dict(settings)))
    store.write_file(Path(path), page.encode())
