"""Pages that are made while the site is built: one for each example, with its text, its code and its picture.

An example is a percent script: cells begin with `# %%`, cells of text with `# %% [markdown]`.
"""

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
