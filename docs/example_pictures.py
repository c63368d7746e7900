"""The pictures of the examples, drawn by the examples themselves: `python docs/example_pictures.py [NAME ...]`.

An example leaves its `picture`, a matplotlib figure. All are drawn in the look of the reports, in `docs/images/examples`.
"""

import runpy
import sys
from pathlib import Path

from matplotlib.figure import Figure

from driftway.report.style import styled

DOCS = Path(__file__).parent
EXAMPLES, IMAGES = DOCS / "examples", DOCS / "images" / "examples"
DOTS = 100  # per inch: some 900 pixels across


@styled
def draw(name: str) -> Path:
    """Run an example, and keep its picture."""
    picture = runpy.run_path(str(EXAMPLES / f"{name}.py"))["picture"]
    assert isinstance(picture, Figure)
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.png"
    picture.savefig(path, dpi=DOTS, metadata={"Software": None})
    return path


def main() -> None:
    for name in sys.argv[1:] or sorted(path.stem for path in EXAMPLES.glob("*.py")):
        print(draw(name))


if __name__ == "__main__":
    main()
