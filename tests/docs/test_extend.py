"""The page on extension: its code runs, ends in an assertion, and keeps the contracts of what it extends."""

import ast
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sklearn.utils.estimator_checks import check_estimator

from tests.contracts import test_adapt_estimators as estimators
from tests.contracts import test_kernel as kernel
from tests.contracts import test_value as value

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
ADDED = "added on the page"


@cache
def names(index: int) -> dict[str, Any]:
    """What a block defines."""
    module = sys.modules[f"extend_{index}"] = ModuleType(f"extend_{index}")  # pickle looks classes up there
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        exec(compile(BLOCKS[index], f"{PAGE.name}, block {index}", "exec"), vars(module))
    return vars(module)


def defining(name: str) -> Any:
    (index,) = [i for i, block in enumerate(BLOCKS) if f"\nclass {name}(" in block]
    return names(index)[name]


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_code_runs_and_ends_in_an_assertion(index):
    assert isinstance(ast.parse(BLOCKS[index]).body[-1], ast.Assert)
    assert names(index)


def test_every_section_has_code():
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("\n## ") == 5


def _parts(names: str | Sequence[str]) -> list[str]:
    return [part.strip() for part in names.split(",")] if isinstance(names, str) else list(names)


def laws(module: ModuleType, skip: tuple[str, ...] = ()) -> Iterator[Any]:
    """The tests of a contract that take a name, with all values of their other parameters."""
    holders = [module, *(member for name, member in vars(module).items() if name.startswith("Test"))]
    for holder, name in [(one, name) for one in holders for name in vars(one) if name.startswith("test_") and name not in skip]:
        law = getattr(holder, name)
        marks = [mark for mark in getattr(law, "pytestmark", []) if mark.name == "parametrize"]
        if not any(mark.args[0] == "name" for mark in marks):
            continue
        others = [(_parts(mark.args[0]), mark.args[1]) for mark in marks if mark.args[0] != "name"]
        for values in itertools.product(*(choices for _, choices in others)):
            given = {}
            for (arguments, _), chosen in zip(others, values, strict=True):
                given |= dict(zip(arguments, chosen if len(arguments) > 1 else (chosen,), strict=True))
            call = law if isinstance(holder, ModuleType) else getattr(holder(), name)
            yield pytest.param(call, given, id=f"{name}-{'-'.join(str(part)[:12] for part in given.values())}")


def wave() -> Any:
    """Far from where it starts."""
    own = defining("WaveValue")((3,), waves=16)
    with torch.no_grad():
        own.a.copy_(value.draw(16, seed=1))
    return own


@pytest.mark.parametrize(("law", "given"), list(laws(value)))
def test_the_value_keeps_its_contract(monkeypatch, law: Callable[..., None], given: dict[str, Any]):
    monkeypatch.setitem(value.FAMILIES, ADDED, wave)
    law(ADDED, **given)


GPU = () if torch.cuda.is_available() else ("test_a_gpu_agrees",)


@pytest.mark.parametrize(("law", "given"), list(laws(kernel, GPU)))
def test_the_kernel_keeps_its_contract(monkeypatch, law: Callable[..., None], given: dict[str, Any]):
    monkeypatch.setitem(kernel.KERNELS, ADDED, kernel.Case(lambda: defining("RationalQuadratic")(1.3, alpha=0.7)))
    law(ADDED, **given)


@pytest.mark.parametrize(("law", "given"), list(laws(estimators, ("test_weights_are_as_many_rows",))))
def test_the_regressor_keeps_its_contract(monkeypatch, law: Callable[..., None], given: dict[str, Any]):
    if given.keys() & {"parameter"}:
        pytest.skip("about parameters of one class")
    for table in (estimators.ESTIMATORS, estimators.EVERY):
        monkeypatch.setitem(table, ADDED, lambda: defining("AlikeGPRegressor")(**estimators.TINY))
    law(name=ADDED, **given)


def test_the_regressor_passes_the_checks_of_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(defining("AlikeGPRegressor")(depth=1, max_iter=1), on_skip=None)
    assert len(found) > 40
