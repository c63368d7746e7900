"""What is made while the site is built: a page for each example, with its text, its code and its picture; and formulas as MathML.

An example is a percent script: cells begin with `# %%`, cells of text with `# %% [markdown]`. MathML is drawn by browsers themselves, so
that no page loads a script from elsewhere.
"""

import html
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def cells(code: str) -> list[tuple[bool, str]]:
    """The cells of a percent script: whether it is text, and what it holds."""
    found = []
    for part in re.split(r"^# %%", code, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        text = "[markdown]" in head
        found.append((text, re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip() if text else body.strip()))
    return found


def page(name: str, code: str) -> str:
    """An example as markdown. Its picture stands after the cell that draws it."""
    parts = []
    for text, body in cells(code):
        parts.append(body if text else f"```python\n{body}\n```")
        if not text and re.search(r"^picture = ", body, re.MULTILINE):
            parts.append(f"![What the cell above draws](../images/examples/{name}.png)")
    return "\n\n".join([*parts, f"The script: [docs/examples/{name}.py]({name}.py).", ""])


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File  # late: what is above needs no mkdocs

    for path in sorted((DOCS / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{path.stem}.md", content=page(path.stem, path.read_text("utf-8"))))
    return files


def formula(tex: str, *, display: bool) -> str:
    """LaTeX as MathML; a numbered equation with its number, and a place that links can lead to."""
    from latex2mathml.converter import convert

    tag = re.search(r"\\tag\{(\w+)\}", tex)
    tex = re.sub(r"\\tag\{\w+\}", "", tex).replace(r"\lVert", r"\|").replace(r"\rVert", r"\|")
    drawn = convert(tex.strip(), display="block" if display else "inline")
    if not display:
        return drawn
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    return f'<div class="equation"{f" id={tag[1]!r}" if tag else ""}>{drawn}{number}</div>'


def on_page_content(content: str, **_: Any) -> str:
    """Draw the formulas."""
    for pattern, display in ((r'<span class="arithmatex">\\\((.*?)\\\)</span>', False),
                             (r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', True)):  # fmt: skip
        content = re.sub(pattern, lambda found, display=display: formula(html.unescape(found[1]), display=display), content,
                         flags=re.DOTALL)  # fmt: skip
    return content
