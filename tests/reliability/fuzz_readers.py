"""The readers under bytes that are found by coverage: `python -m tests.reliability.fuzz_readers --runs N`.

With atheris installed (`pip install atheris`) it looks for inputs that reach new code of the package. Without it, valid files are
changed at random. It ends with the first input that is neither read nor refused by name, and writes it to the folder `--out`.
"""

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

try:
    import atheris
except ImportError:
    atheris = None

# What is watched must be watched as it is imported.
with atheris.instrument_imports(include=["driftway.data", "driftway.checks"]) if atheris else nullcontext():
    from tests.reliability.files import READERS, changed, place, valid
    from tests.reliability.strategies import outcome

NAMES = [(reader, name) for reader, (_, names) in READERS.items() for name in names]


def one(which: int, data: bytes, out: Path) -> None:
    """Read one file; the bytes are kept if that goes wrong."""
    reader, name = NAMES[which % len(NAMES)]
    with TemporaryDirectory() as folder:
        path = place(Path(folder), name, data)
        try:
            outcome(READERS[reader][0], path)
        except BaseException:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{reader}-{name}").write_bytes(data)
            raise


def by_coverage(runs: int, out: Path) -> None:
    """Atheris: its own changes of the valid files, whose first byte says which reader they are for."""
    with TemporaryDirectory() as corpus:
        for which, (reader, name) in enumerate(NAMES):
            (Path(corpus) / f"{reader}-{name}").write_bytes(bytes([which]) + valid(name))
        atheris.Setup([sys.argv[0], f"-runs={runs}", "-max_len=8192", "-verbosity=0", corpus],
                      lambda data: one(data[0], data[1:], out) if data else None)  # fmt: skip
        atheris.Fuzz()


def at_random(runs: int, out: Path, seed: int) -> None:
    """Changes of the valid files."""
    for run in range(runs):
        rng = np.random.default_rng((seed, run))
        which = int(rng.integers(len(NAMES)))
        one(which, changed(valid(NAMES[which][1]), rng), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--random", action="store_true", help="do not use atheris")
    options = parser.parse_args()
    if options.random or atheris is None:
        at_random(options.runs, options.out, options.seed)
    else:
        by_coverage(options.runs, options.out)


if __name__ == "__main__":
    main()
