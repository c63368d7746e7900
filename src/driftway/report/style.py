"""The look of every figure, in one place, and a figure as text that a page can hold.

The colours are two of Okabe and Ito (2008) and a grey, told apart in every common form of colour blindness; values are
drawn in "cividis" (Nuñez, Anderton and Renslow, 2018) and labels in the "muted" colours of Tol (2021) and black for the same reason.
"""

import base64
from collections.abc import Callable
from functools import wraps
from io import BytesIO
from typing import Any, ParamSpec, TypeVar

from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
DATA, SAMPLES, SOURCE, INK, FAINT = "#0072B2", "#D55E00", "#7F7F7F", "#222222", "#BBBBBB"
VALUES = "cividis"
LABELS = ("#332288", "#CC6677", "#44AA99", "#DDCC77", "#882255", "#88CCEE", "#117733", "#AA4499", "#999933", "#000000")
STYLE: dict[str, Any] = {
    "figure.facecolor": "white", "figure.constrained_layout.use": True, "savefig.dpi": 150,
    "savefig.bbox": "tight", "savefig.pad_inches": 0.08, "svg.hashsalt": "driftway",
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelcolor": INK,
    "text.color": INK, "axes.edgecolor": FAINT, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.6, "xtick.color": INK, "ytick.color": INK,
    "xtick.major.size": 3, "ytick.major.size": 3, "xtick.minor.size": 0, "ytick.minor.size": 0, "legend.frameon": False,
    "lines.linewidth": 1.8, "lines.markersize": 5, "image.interpolation": "nearest",
}  # fmt: skip


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in this look, whatever the user's own matplotlib settings are, and leave those as they were."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with rc_context():
            rcdefaults()
            rcParams.update(STYLE)  # type: ignore[arg-type] (matplotlib's stubs name every key)
            return draw(*args, **kwargs)

    return inside


def percent(number: float) -> str:
    """A percentage to two digits, never with an exponent."""
    return f"{number:.2g} %" if number < 99.5 else f"{number:.0f} %"


@styled
def embed(figure: Figure, kind: str) -> tuple[str, float]:
    """The figure, cut to what is drawn, as a "png" or "svg" data address, and its width in inches.

    The same figure gives the same text.
    """
    file = BytesIO()
    figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    data = file.getvalue()
    if kind == "png":
        mime, inches = "image/png", int.from_bytes(data[16:20], "big") / STYLE["savefig.dpi"]
    else:
        mime, inches = "image/svg+xml", float(data.split(b'width="', 1)[1].split(b"pt", 1)[0]) / 72
    return f"data:{mime};base64,{base64.b64encode(data).decode()}", inches
