"""Every argument of the public functions, replaced by values that a person may pass by mistake.

Each ends in an input error that names an argument of the call and a cure, or in a finite result of the right shape; nothing is written
into, and no warning comes from another package. `calls` has the valid calls, with the kinds of values that each argument is replaced by.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reliability.calls import ADAPT, ESTIMATORS, FINETUNE, KERNELS, LINALG, TRANSPORT, Call
from tests.reliability.strategies import budget, hostile, outcome, refused

PARTS = {
    "transport": (TRANSPORT, 25, 1600), "kernels": (KERNELS, 60, 1700), "linalg and stopping": (LINALG, 60, 1800),
    "finetune": (FINETUNE, 40, 900), "adapt": (ADAPT, 40, 1300), "estimators": (ESTIMATORS, 8, 500),
}  # fmt: skip


@st.composite
def abuses(draw, calls):
    """A call, and one or two of its arguments replaced."""
    call = draw(st.sampled_from(calls))
    names = draw(st.lists(st.sampled_from(sorted(call.kinds)), min_size=1, max_size=2, unique=True))
    return call, {name: draw(hostile(call.kinds[name])) for name in names}


def survives(call: Call, replaced) -> bool:
    """Whether the call took the values."""
    given = call.given() | {name: value.value for name, value in replaced.items()}
    result = outcome(call.function, **given, known=call.known, others=call.others)
    if not refused(result):
        taken = [f"{name}={value.kind}" for name, value in replaced.items() if value.wrong]
        assert not taken, f"{call.name} took {', '.join(taken)}"
        call.check(result, given)
    return not refused(result)


@pytest.mark.parametrize("part", PARTS)
def test_every_argument(part, tally):
    calls, bounded, full = PARTS[part]
    tried = 0

    @budget(bounded, full)
    @given(abuses(calls))
    def attempt(abuse):
        nonlocal tried
        survives(*abuse)
        tried += 1

    attempt()
    tally(f"inputs of {part}", tried, tried)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "estimators"])
def test_inside_inference_mode(part):
    for call in PARTS[part][0]:
        with torch.inference_mode():
            assert survives(call, {})


@pytest.mark.parametrize("call", [call for calls, _, _ in PARTS.values() for call in calls], ids=lambda call: call.name)
def test_the_valid_call(call):
    assert survives(call, {})
