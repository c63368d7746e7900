"""How much of the suite runs: a bounded part with all other tests, everything if DRIFTWAY_RELIABILITY is `full`."""

import os

FULL = os.environ.get("DRIFTWAY_RELIABILITY") == "full"


def rounds(bounded: int, full: int) -> int:
    """How often something is repeated."""
    return full if FULL else bounded
