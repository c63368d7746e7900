"""Every example of the documentation runs and its assertions hold."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example):
    names = runpy.run_path(str(example))
    assert "certificate" not in names or names["certificate"].n == 1000


def test_there_are_examples():
    assert EXAMPLES
