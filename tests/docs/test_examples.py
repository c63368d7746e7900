"""Every example of the documentation runs, its assertions hold, it leaves a picture, and it has a page."""

import ast
import importlib.util
import runpy
from pathlib import Path

import pytest
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
assert spec is not None
assert spec.loader is not None
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


@every_example
def test_example(example):
    names = runpy.run_path(str(example))
    assert "certificate" not in names or names["certificate"].n == 1000
    picture = names["picture"]
    assert isinstance(picture, Figure)
    assert picture.axes
    assert all(axes.has_data() for axes in picture.axes)


@every_example
def test_an_example_ends_in_assertions_and_shows_nothing(example):
    code = example.read_text("utf-8")
    text, last = hooks.cells(code)[-1]
    assert not text
    assert all(isinstance(line, ast.Assert | ast.Assign | ast.Expr) for line in ast.parse(last).body)
    assert isinstance(ast.parse(last).body[-1], ast.Assert)
    assert "pyplot" not in code


@every_example
def test_an_example_has_a_page_with_all_of_its_code_and_its_picture(example):
    code = example.read_text("utf-8")
    page, name = hooks.page(example.stem, code), example.stem
    assert page.startswith("# ")
    written = "\n".join(part.split("```")[0] for part in page.split("```python\n")[1:])
    assert ast.dump(ast.parse(written)) == ast.dump(ast.parse(code))
    assert page.count(f"](../images/examples/{name}.png)") == 1
    assert (DOCS / "images" / "examples" / f"{name}.png").stat().st_size < 300_000
    assert f"](examples/{name}.md)" in (DOCS / "examples.md").read_text("utf-8")


def test_there_are_examples():
    assert EXAMPLES
