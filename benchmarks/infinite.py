"""Kernels of infinite networks, seconds and memory: `python -m benchmarks.infinite`.

NNGP and NTK of n random rows with themselves, for a fully connected ReLU network of 6 hidden layers. The peers: neural-tangents, in an
environment of its own (built at the first run, in benchmarks/.cache/neural-tangents), and the recursion on whole matrices in torch,
plain and compiled. Every method runs in a process of its own, all of them on the same two cores. One call of each in turn is a round,
so that what else the machine does hits all alike.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import neural_tangents as peer
from benchmarks.record import THREADS, Cell, Goal, Record, Table, arguments, machine, show, versions, write
from driftway.kernels.infinite import FullyConnected
from driftway.store import write_file

DEPTH, W_STD, B_STD, D, CORES, SEED = 6, 1.5, 0.05, 100, 2, 0
DTYPES = ("float32", "float64")
OURS, PEER, BLOCKS = "driftway", "neural-tangents", f"neural-tangents, blocks of {peer.BLOCK}"
WHOLE, COMPILED = "torch, whole matrices", "torch, whole matrices, compiled"
COMPARED = (OURS, PEER)
FASTER = {"float32": 6.0, "float64": 4.0}
SPARE, EXACT = 1.1, 1e-12
ENVIRONMENT = Path(__file__).parent / ".cache" / "neural-tangents"
PYTHON = ENVIRONMENT / "bin" / "python"
PINS = ("neural-tangents==0.6.5", "jax==0.5.3", "jaxlib==0.5.3", "ml_dtypes==0.5.4", "opt_einsum==3.4.0", "frozendict==2.5.1",
        "numpy==2.2.6", "scipy==1.15.3")  # fmt: skip
LONG = "left out of the short form: it compiles for longer than all else takes"
NOTES = (
    "Seconds are wall seconds of a warm call. The first call, which compiles where there is something to compile, is stated by itself. "
    "Ratios are of medians.",
    "Memory is the peak of the resident set in a warm call, above what the process held before it: the two results and all the call "
    "works with, without libraries, inputs and compilers. The allocator is told to give back what is freed (blocks of 1 MB or more), "
    "so this is memory in use at once. The goal is one for the full size: the short form's results are too small for it.",
    "Differences are relative, the largest over all entries. On the diagonal the kernels are known in closed form, and both libraries "
    "are held against it. Both dtypes see the same rows, drawn in float32.",
    "jax 0.5.3 is the last one that neural-tangents 0.6.5 runs with. It is installed without TensorFlow, which only its experimental "
    "part imports.",
)
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Protocol:
    """Sizes of a run.

    Attributes:
        n: rows.
        rounds: calls of each method that are timed.
        methods: names.
        left_out: method -> why it is not among them.
    """

    n: int
    rounds: int
    methods: tuple[str, ...]
    left_out: Mapping[str, str]


FULL = Protocol(5000, 9, (OURS, PEER, BLOCKS, WHOLE, COMPILED), {})
QUICK = Protocol(1500, 5, (OURS, PEER, BLOCKS, WHOLE), {COMPILED: LONG})


class NotRunError(RuntimeError):
    """A method that cannot run here, and why."""


def whole_matrices(x: Tensor, depth: int, w: float, b: float) -> tuple[Tensor, Tensor]:
    """NNGP and NTK of a ReLU network, straight from the recursion, one matrix at a time."""
    S, Theta, q = x @ x.T / x.shape[1], torch.zeros(()), x.square().mean(1)
    for layer in range(depth + 1):
        if layer:
            size = torch.outer(q, q)
            sine = (size - S**2).clamp(min=0).sqrt()
            slope = (math.pi - torch.atan2(sine, S)) / (2 * math.pi)
            S, Theta, q = sine / (2 * math.pi) + S * slope, Theta * slope, q / 2
        S, q = w**2 * S + b**2, w**2 * q + b**2
        Theta = S + w**2 * Theta
    return S, Theta


def prepare(order: peer.Order, x: np.ndarray) -> tuple[peer.Compute, dict[str, str]]:
    """The methods that run in this environment."""
    torch.set_num_threads(CORES)
    rows, sizes = torch.from_numpy(x), (order["depth"], order["w_std"], order["b_std"])
    if order["method"] == OURS:
        net = FullyConnected(order["depth"], w_std=order["w_std"], b_std=order["b_std"])

        def ours() -> tuple[Tensor, Tensor]:
            pair = net.kernels(rows)
            return pair.nngp, pair.ntk

        return ours, {}
    compute = torch.compile(whole_matrices, dynamic=False, fullgraph=True) if order["method"] == COMPILED else whole_matrices
    return lambda: compute(rows, *sizes), {}


def build(folder: Path = ENVIRONMENT, pins: Sequence[str] = PINS) -> None:
    """Build the environment of neural-tangents, if there is none with these pins.

    Raises:
        NotRunError: if it cannot be built, with pip's own reason.
    """
    python, stamp, wanted = folder / "bin" / "python", folder / "pins.txt", "\n".join(pins) + "\n"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"building an environment for neural-tangents in {folder} (560 MB, less than a minute): {', '.join(pins)}", flush=True)
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--only-binary", ":all:")
    for command in ([sys.executable, "-m", "venv", "--clear", folder], [python, *install, *pins]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise NotRunError(f"no environment with {', '.join(pins[:3])}: {reason(done.stderr or done.stdout)}")
    write_file(stamp, wanted.encode())


def available(protocol: Protocol) -> Protocol:
    """The protocol without neural-tangents where its environment cannot be built."""
    try:
        build()
    except NotRunError as error:
        theirs = dict.fromkeys((PEER, BLOCKS), str(error))
        return replace(protocol, methods=tuple(m for m in protocol.methods if m not in theirs), left_out={**protocol.left_out, **theirs})
    return protocol


def reason(text: str) -> str:
    """The line of an error's output that says most: the last with an error in it, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return (telling or lines or ["no message"])[-1][:300]


class Process:
    """A method at work in a process of its own.

    Args:
        command: that starts it.
        log: where its standard error goes.
    """

    def __init__(self, command: Sequence[str | Path], log: IO[str]) -> None:
        self.log = log
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def ask(self, *question: str) -> Any:
        """The answer to one line, see `benchmarks.neural_tangents`.

        Raises:
            NotRunError: if it has ended, with its last words.
        """
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: `answer` says why
            print(json.dumps(question), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        """The next answer; the first, which needs no question, is the versions.

        Raises:
            NotRunError: if it has ended, with its last words.
        """
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.wait()
        raise NotRunError(f"its process ended with code {self.process.returncode}: {reason(Path(self.log.name).read_text())}")


@contextmanager
def start(method: str, dtype: str, folder: Path) -> Iterator[Process]:
    """A process for a method, which ends with the block."""
    order = json.dumps({"method": method, "dtype": dtype, "inputs": str(folder / "x.npy"), "blocks": method == BLOCKS,
                        "depth": DEPTH, "w_std": W_STD, "b_std": B_STD})  # fmt: skip
    own = [sys.executable, "-c", "from benchmarks import infinite; infinite.main_of_process()", order]
    command = [PYTHON, "-P", peer.__file__, order] if method in (PEER, BLOCKS) else own
    with (folder / f"{method} {dtype}.log").open("w") as log:
        process = Process(command, log)
        try:
            yield process
        finally:
            process.process.communicate()  # no more questions: it ends


def measure_dtype(protocol: Protocol, dtype: str, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, str]]:
    """Figures of the methods that ran, why the others did not, and versions. Leaves the kernels to compare as files in the folder."""
    found: dict[str, str] = {}
    missing = [{"method": method, "dtype": dtype, "why": why} for method, why in protocol.left_out.items()]
    with ExitStack() as stack:
        running = {method: stack.enter_context(start(method, dtype, folder)) for method in protocol.methods}
        figures = {method: {"method": method, "dtype": dtype, "seconds": []} for method in running}

        def each(action: Callable[[str, Process], object]) -> None:
            for method in list(running):
                time.sleep(0.05)  # threads that wait actively for more work give up
                try:
                    action(method, running[method])
                except NotRunError as error:
                    missing.append({"method": method, "dtype": dtype, "why": str(error)})
                    del running[method], figures[method]

        each(lambda _, process: found.update(process.answer()))
        each(lambda method, process: figures[method].update(first=process.ask("time")))
        for _ in range(protocol.rounds):
            each(lambda method, process: figures[method]["seconds"].append(process.ask("time")))
        each(lambda method, process: figures[method].update(bytes=process.ask("memory")))
        each(lambda method, process: method in COMPARED and process.ask("save", *map(str, files(folder, method, dtype))))
    return list(figures.values()), missing, found


def files(folder: Path, method: str, dtype: str) -> list[Path]:
    """Where a method's NNGP and NTK are kept."""
    return [folder / f"{method} {dtype} {part}.npy" for part in ("nngp", "ntk")]


def difference(one: np.ndarray, two: np.ndarray) -> float:
    """The largest |one - two| / |two| off the diagonal, by blocks of rows."""
    largest = 0.0
    for i in range(0, len(one), 256):
        a, b = one[i : i + 256].astype(np.float64), two[i : i + 256].astype(np.float64)
        apart = np.abs(a - b) / np.abs(b)
        apart[np.arange(len(a)), np.arange(i, i + len(a))] = 0
        largest = float(np.maximum(largest, apart.max()))  # NaN stays
    return largest


def diagonals(x: np.ndarray, depth: int, w: float, b: float) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK of rows with themselves, in closed form: a ReLU halves the variance, and its slope squared has the mean 1/2."""
    S, Theta = np.square(x.astype(np.float64)).mean(1), np.zeros(len(x))
    for layer in range(depth + 1):
        if layer:
            S, Theta = S / 2, Theta / 2
        S = w**2 * S + b**2
        Theta = S + w**2 * Theta
    return S, Theta


def compare(folder: Path) -> list[dict[str, Any]]:
    """Accuracy of the kernels in the folder: one row per comparison with a figure for each kernel."""
    kept = {(method, dtype): [np.load(file, mmap_mode="r") for file in files(folder, method, dtype)]
            for method in COMPARED for dtype in DTYPES if all(file.exists() for file in files(folder, method, dtype))}  # fmt: skip
    pairs = [(f"{OURS} against {PEER}, {dtype}", (OURS, dtype), (PEER, dtype)) for dtype in DTYPES]
    pairs += [(f"{method}, float32 against float64", (method, "float32"), (method, "float64")) for method in COMPARED]
    rows: list[tuple[str | float, ...]] = [(what, *map(difference, kept[one], kept[two]))
                                           for what, one, two in pairs if one in kept and two in kept]  # fmt: skip
    exact = diagonals(np.load(folder / "x.npy"), DEPTH, W_STD, B_STD)
    for (method, dtype), kernels in kept.items():
        off = [float(np.max(np.abs(np.diagonal(K) - known) / known)) for K, known in zip(kernels, exact, strict=True)]
        rows.append((f"{method}, {dtype}, the diagonal", *off))
    return [dict(zip(("what", "nngp", "ntk"), row, strict=True)) for row in rows]


def measure(protocol: Protocol) -> Iterator[tuple[dict[str, list[dict[str, Any]]], dict[str, str]]]:
    """All figures so far and the versions found, after each dtype."""
    found: dict[str, list[dict[str, Any]]] = {"seconds": [], "not run": [], "accuracy": []}
    seen: dict[str, str] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # the processes compile afresh
        np.save(folder / "x.npy", np.random.default_rng(SEED).standard_normal((protocol.n, D)).astype(np.float32))
        for dtype in DTYPES:
            figures, missing, versions_found = measure_dtype(protocol, dtype, folder)
            found["seconds"] += figures
            found["not run"] += missing
            seen |= versions_found
            if dtype == DTYPES[-1]:
                found["accuracy"] = compare(folder)
            yield found, seen


def summarise(figures: Rows, n: int) -> list[dict[str, Any]]:
    """Least and median seconds, the first call, times as slow as driftway, and the peak over the bytes of two results."""
    ours = {row["dtype"]: median(row["seconds"]) for row in figures if row["method"] == OURS}
    rows = []
    for row in figures:
        typical, held, own = median(row["seconds"]), row["bytes"], ours.get(row["dtype"])
        results = 2 * n**2 * np.dtype(row["dtype"]).itemsize
        rows.append({"method": row["method"], "dtype": row["dtype"], "least": min(row["seconds"]), "median": typical,
                     "first": row["first"], "ratio": own and typical / own, "bytes": held, "results": held and held / results})  # fmt: skip
    return rows


def goals(summary: Rows, accuracy: Rows) -> list[Goal]:
    """Speed against neural-tangents, memory, and agreement."""
    of = {(row["method"], row["dtype"]): row for row in summary}
    fast: list[list[Cell]] = []
    small: list[list[Cell]] = []
    for dtype, factor in FASTER.items():
        ours, other = of.get((OURS, dtype)), of.get((PEER, dtype))
        ratio = other["ratio"] if other else None
        enough = ratio is not None and ratio >= factor
        fast.append([dtype, ours["median"] if ours else None, other["median"] if other else None, ratio, factor, verdict(enough)])
        held = ours["results"] if ours else None
        small.append([dtype, megabytes(ours["bytes"]) if ours else None, held, SPARE, verdict(held is not None and held <= SPARE)])
    row = next((row for row in accuracy if row["what"] == f"{OURS} against {PEER}, float64"), None)
    equal = [[part.upper(), row[part] if row else None, EXACT, verdict(row is not None and row[part] <= EXACT)] for part in ("nngp", "ntk")]
    return [Goal("Six times as fast as neural-tangents under jit in float32, four times in float64",
                 ["dtype", "seconds", "its seconds", "ratio", "at least", "verdict"], fast),
            Goal("Peak memory within that of the two results and 10 %",
                 ["dtype", "MB", "over the results", "at most", "verdict"], small),
            Goal("Equal to neural-tangents in float64, off the diagonal",
                 ["kernel", "difference", "at most", "verdict"], equal)]  # fmt: skip


def tables(summary: Rows, missing: Rows, accuracy: Rows) -> list[Table]:
    """Seconds and memory, accuracy, and what did not run."""
    rows = [[row["dtype"], row["method"], row["least"], row["median"], row["first"], row["ratio"], megabytes(row["bytes"]), row["results"]]
            for row in summary]  # fmt: skip
    heads = ["dtype", "method", "least seconds", "median", "first call", f"over {OURS}", "peak MB", "over the results"]
    found = [Table("Seconds and memory", heads, rows)]
    if accuracy:
        found.append(Table("Accuracy", ["what", "NNGP", "NTK"], [list(row.values()) for row in accuracy],
                           "Off the diagonal where nothing else is said; there against the closed form."))  # fmt: skip
    if missing:
        found.append(Table("Not run", ["dtype", "method", "why"], [[row["dtype"], row["method"], row["why"]] for row in missing]))
    return found


def verdict(holds: bool) -> str:
    return "met" if holds else "not met"


def megabytes(held: int | None) -> Cell:
    return None if held is None else round(held / 1e6, 1)


def evaluate(found: Mapping[str, Rows], n: int) -> dict[str, Any]:
    """Figures, tables and goals so far, as fields of a record."""
    summary = summarise(found["seconds"], n)
    return {"figures": {"summary": summary, **found}, "tables": tables(summary, found["not run"], found["accuracy"]),
            "goals": goals(summary, found["accuracy"])}  # fmt: skip


def main_of_process() -> None:
    """One method of this environment at work; the order is the last argument."""
    peer.serve(json.loads(sys.argv[-1]), prepare)


def main() -> None:
    options, command = arguments("infinite", "Kernels of infinite networks, seconds and memory, beside neural-tangents and torch.")
    if options.threads != THREADS:
        sys.exit(f"every method has {CORES} threads here, as neural-tangents takes all it gets; leave out --threads {options.threads}")
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)  # and with it the processes started from here
    os.environ |= {"OMP_NUM_THREADS": str(CORES), "JAX_PLATFORMS": "cpu"}
    protocol = available(QUICK if options.quick else FULL)
    held = {"rows": protocol.n, "columns": D, "hidden layers": DEPTH, "W_std": W_STD, "b_std": B_STD, "parameterization": "NTK",
            "cores": len(cores), "timed calls": protocol.rounds, "environment of neural-tangents": " ".join(PINS)}  # fmt: skip
    record = Record(name="infinite", title="Kernels of infinite networks", command=command, quick=options.quick, seeds=(SEED,),
                    protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False,
                    machine={**machine(), "threads": CORES})  # fmt: skip
    for found, seen in measure(protocol):
        record = replace(record, **evaluate(found, protocol.n), versions={**versions(), **seen})
        write(record, options.json)
        print(f"{found['seconds'][-1]['dtype'] if found['seconds'] else 'nothing'} done", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    show(record)


if __name__ == "__main__":
    main()
