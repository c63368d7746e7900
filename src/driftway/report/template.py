"""What every report page is made from: pictures, facts as text, and templates with one look (`base.html`, `parts.html`)."""

import platform
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from jinja2 import Environment, FunctionLoader, StrictUndefined
from matplotlib.figure import Figure

from driftway import __version__
from driftway.report.style import embed


@dataclass(frozen=True)
class Picture:
    """A figure for the page.

    Attributes:
        title: its heading.
        alt: what it shows, in words.
        caption: how to read it.
        uri: its data address.
        inches: its width.
        given: whether its colours are those of data or of a scale, so that a dark page leaves them as they are.
    """

    title: str
    alt: str
    caption: str
    uri: str
    inches: float
    given: bool = False


def picture(figure: Figure, title: str, alt: str, caption: str, kind: str = "png", *, given: bool = False) -> Picture:
    """A figure as a picture of a page."""
    return Picture(title, alt, caption, *embed(figure, kind), given)


def fill(name: str, **values: Any) -> str:
    """A page from the template `name` of this folder. Values are text: what is special in HTML is escaped."""
    loader = FunctionLoader(lambda part: files("driftway.report").joinpath(part).read_text(encoding="utf-8"))
    room = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return room.get_template(name).render(version=__version__, **values)


def facts(known: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values of settings as text, and the versions that they were used with."""
    known = known | {"driftway": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return [(name.replace("_", " "), _text(value)) for name, value in known.items()]


def _text(value: Any) -> str:
    return "n/a" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
