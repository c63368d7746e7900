"""The table of counts at the end of a full run: what was tried, how often, and how often it held."""

import pytest

from tests.finetune.test_language import tokenizer
from tests.reliability import jobs, size

COUNTS: pytest.StashKey[dict[str, tuple[int, int]]] = pytest.StashKey()


@pytest.fixture(scope="session")
def rounds():
    """rounds(bounded, full): how often to repeat (`tests.reliability.size`)."""
    return size.rounds


@pytest.fixture(scope="session")
def tally(pytestconfig):
    """tally(name, passed, of): adds to a row of the table, and fails the test where passed < of."""
    counts = pytestconfig.stash.setdefault(COUNTS, {})

    def add(name: str, passed: int, of: int) -> None:
        before = counts.get(name, (0, 0))
        counts[name] = before[0] + passed, before[1] + of
        assert passed == of, f"{name}: {passed} of {of}"

    return add


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash.get(COUNTS, {})
    if size.FULL and counts:
        terminalreporter.section("reliability")
        wide = max(map(len, counts))
        for name, (passed, of) in counts.items():
            terminalreporter.write_line(f"{name:{wide}}  {passed:6} of {of:6}{'' if passed == of else '  FAILED'}")


@pytest.fixture(scope="session")
def model(transformers, tmp_path_factory):
    """A folder with a random encoder without a head."""
    words = [f"w{i}" for i in range(30)]
    return jobs.small_model(transformers, tokenizer(transformers, words), tmp_path_factory.mktemp("language") / "model")
