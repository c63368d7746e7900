"""The tangent Gram matrix of a real text encoder: seconds, peak memory and equality with other ways: `python -m benchmarks.tangent`.

All attention weights and biases of all-MiniLM-L6-v2 on reviews of 48 tokens, against torch.func, hooks that form J, nngeometry, and a
bound that methods of this kind cannot beat (`tangent_peers`). Seconds are taken in one process, method after method, in rounds; peak
memory in a fresh process for each method, as a peak cannot be taken back.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import tangent_peers as peers
from benchmarks.record import Goal, Record, Table, arguments, show, write
from driftway.kernels.tangent import tangent_gram

Rows = Sequence[Mapping[str, Any]]
Batch = peers.Batch
MEMORY = 0.15  # GiB, the budget given to `tangent_gram`
OURS, TUTORIAL, TUNED, HOOKED, NNGEOMETRY = "driftway", "torch.func (tutorial)", "torch.func (tuned)", "hooks, J whole", "nngeometry"
METHODS: dict[str, Callable[[peers.TextScore, Batch], Tensor]] = {
    OURS: lambda score, batch: tangent_gram(score, dict(batch), scope="attention", memory=MEMORY),
    TUNED: peers.contraction,
    HOOKED: peers.hooked,
    NNGEOMETRY: peers.nngeometry,
    TUTORIAL: peers.tutorial,
}
FASTER = {TUTORIAL: 3.0, TUNED: 3.0, NNGEOMETRY: 2.0}  # how often ours must go into a peer's seconds
SLOWER, SMALLER = 1.25, 0.1  # ours over the bound's seconds, and over a peer's memory, at most
EQUAL = {"float32": 1e-5, "float64": 1e-10}  # differences, relative
NOTES = (
    "Seconds are processor seconds of one thread, the least of the rounds; all methods run once in each round. Every method has run on "
    "two texts before. Wall seconds stand beside them: on a quiet machine they differ by what waits for files.",
    "The bound: a forward and a backward pass to all activations, without weight gradients, at its best batch size; and n^2 P / 2 "
    "multiply-adds, what the lower triangle of J J^T costs when J is there, at the best rate of a matrix product in this run. It leaves "
    "out that J has to be formed from activations, and that a triangle is made of tiles.",
    "The tutorial's function takes two sets of inputs and computes both Jacobians, also if they are equal. Tuned is its best use that we "
    "found: one Jacobian, only parameters in scope differentiated, in chunks, J J^T parameter by parameter.",
    "nngeometry's rule for linear layers knows inputs without positions only, so each layer is given to it as a convolution of width 1 "
    "with the same numbers, computed as the linear layer that it is. It runs in its default and fastest form, all texts in one batch; "
    "small batches take less memory and more passes, as each pair of batches takes one.",
    "Peak memory is the growth of the resident set from the loaded model with its inputs, after a run on two texts, in a process of its "
    "own for each method. Temporary files are what the process wrote meanwhile.",
    "Differences: in norm, |K - K'| / |K'|; by entry, the largest of |K_ij - K'_ij| / (K'_ii K'_jj)^(1/2).",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """Sizes of a run.

    Attributes:
        n: texts.
        rounds: of all methods.
        exact: texts in float64.
        sizes: of the batches that the bound is the best of.
        jobs: processes at a time that memory is measured in.
    """

    n: int
    rounds: int
    exact: int
    sizes: tuple[int, ...]
    jobs: int


FULL = Protocol(n=256, rounds=2, exact=32, sizes=(8, 16, 32), jobs=1)
QUICK = Protocol(n=48, rounds=1, exact=4, sizes=(16,), jobs=2)
SEED, WARM = 0, 2
PRELOAD = ["benchmarks.tangent_peers", "driftway.kernels.tangent", "transformers.models.bert.modeling_bert", "nngeometry.gram"]


def time_method(name: str, score: peers.TextScore, batch: Batch) -> tuple[dict[str, Any], Tensor]:
    """One run of a method: its seconds, and the Gram matrix."""
    wall, begun = time.perf_counter(), time.process_time()
    K = METHODS[name](score, batch)
    return {"method": name, "seconds": time.process_time() - begun, "wall": time.perf_counter() - wall}, K


def measure_memory(name: str, arrays: Mapping[str, np.ndarray], threads: int) -> dict[str, Any]:
    """Growth of this process's resident set while a method runs, and what it wrote, in MB. To be called in a fresh process."""
    torch.set_num_threads(threads)
    score = peers.text_score(seed=SEED)
    batch = {key: torch.from_numpy(array) for key, array in arrays.items()}
    METHODS[name](score, peers.take(batch, slice(0, WARM)))  # PyTorch loads parts of itself at first use
    before, written = _start_peak(), _status("io", "wchar")
    METHODS[name](score, batch)
    return {"method": name, "baseline": before, "peak": _status("status", "VmHWM") / 1e3 - before,
            "written": (_status("io", "wchar") - written) / 1e6}  # fmt: skip


def differences(K: Tensor, other: Tensor) -> dict[str, float]:
    """How far K is from another Gram matrix: in norm, and entry by entry on the scale of the diagonal."""
    K, other = K.double(), other.double()
    scale = other.diagonal().sqrt()
    return {"norm": float((K - other).norm() / other.norm()), "entry": float(((K - other) / scale / scale[:, None]).abs().max())}


def measure(protocol: Protocol) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All figures so far, after every step."""
    found: dict[str, list[dict[str, Any]]] = {"seconds": [], "bound": [], "differences": [], "memory": []}
    batch = peers.tokens(peers.texts(protocol.n, seed=SEED))
    found["inputs"] = [{"n": protocol.n, "length": peers.LENGTH, "mean tokens": float(batch["attention_mask"].sum(1).double().mean())}]
    score, few = peers.text_score(seed=SEED), peers.take(batch, slice(0, WARM))
    for name in METHODS:
        time_method(name, score, few)
    peers.bound(score, few, sizes=(WARM,))
    grams: dict[str, Tensor] = {}
    for number in range(protocol.rounds):
        for name in METHODS:
            row, grams[name] = time_method(name, score, batch)
            found["seconds"].append({"round": number, **row})
        found["bound"].append({"round": number, **peers.bound(score, batch, sizes=protocol.sizes, clock=time.process_time)})
        yield found
    found["differences"] += [{"method": name, "dtype": "float32", "n": protocol.n, **differences(grams[name], grams[TUNED])}
                             for name in METHODS if name != TUNED]  # fmt: skip
    found["differences"] += _exact(protocol, score, batch)
    yield found
    arrays = {key: entry.numpy() for key, entry in batch.items()}
    context = get_context("forkserver")  # a server that has imported, and computed nothing, is copied for each method
    context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(protocol.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for done in [pool.submit(measure_memory, name, arrays, torch.get_num_threads()) for name in METHODS]:
            found["memory"].append(done.result())
            yield found


def _exact(protocol: Protocol, score: peers.TextScore, batch: Batch) -> list[dict[str, Any]]:
    """Ours against torch.func in float64, and float32 against that."""
    some, double = peers.take(batch, slice(0, protocol.exact)), copy.deepcopy(score).double()
    exact = METHODS[TUNED](double, some)
    compared = {"float64": METHODS[OURS](double, some), "float32, exact": METHODS[OURS](score, some)}
    return [{"method": OURS, "dtype": dtype, "n": protocol.exact, **differences(K, exact)} for dtype, K in compared.items()]


def best(rows: Rows, name: str) -> dict[str, float]:
    """A method's least seconds over the rounds."""
    own = [row for row in rows if row["method"] == name]
    return {kind: min((row[kind] for row in own), default=float("nan")) for kind in ("seconds", "wall")}


def least_bound(rows: Rows) -> dict[str, float]:
    """The round with the least bound, with its total."""
    return min(({**row, "total": row["forward"] + row["backward"] + row["gram"]} for row in rows), key=lambda row: row["total"])


def goals(found: Mapping[str, Rows]) -> list[Goal]:
    """Faster, near the bound, smaller, equal."""
    ours, bound = best(found["seconds"], OURS)["seconds"], least_bound(found["bound"])["total"]
    faster = [[name, seconds, ours, seconds / ours, least, _verdict(seconds / ours >= least)]
              for name, least in FASTER.items() if (seconds := best(found["seconds"], name)["seconds"]) > 0]  # fmt: skip
    peaks = {row["method"]: row["peak"] for row in found["memory"]}
    smaller = [[name, peak, peaks[OURS], peaks[OURS] / peak, SMALLER, _verdict(peaks[OURS] <= SMALLER * peak)]
               for name, peak in peaks.items() if name != OURS and OURS in peaks]  # fmt: skip
    equal = [[row["dtype"], row["n"], row["norm"], row["entry"], most, _verdict(max(row["norm"], row["entry"]) <= most)]
             for row in found["differences"] if row["method"] == OURS and (most := EQUAL.get(row["dtype"]))]  # fmt: skip
    return [
        Goal("Faster than torch.func and nngeometry", ["peer", "its seconds", "ours", "ratio", "at least", "verdict"], faster),
        Goal("Close to the bound", ["bound", "ours", "ratio", "at most", "verdict"],
             [[bound, ours, ours / bound, SLOWER, _verdict(ours <= SLOWER * bound)]]),
        Goal("A tenth of the peers' peak memory", ["peer", "its MB", "ours", "ratio", "at most", "verdict"], smaller),
        Goal(f"Equal to {TUNED}", ["dtype", "texts", "in norm", "by entry", "at most", "verdict"], equal),
    ]  # fmt: skip


def tables(found: Mapping[str, Rows]) -> list[Table]:
    """Seconds, the bound's parts, memory, differences."""
    bound, ours = least_bound(found["bound"]), best(found["seconds"], OURS)["seconds"]
    seconds = []
    for name in METHODS:
        own = best(found["seconds"], name)
        spent = own["seconds"]
        seconds.append([name, spent, own["wall"], spent / bound["total"], spent / ours])
    parts = [bound[part] for part in ("forward", "backward", "gram", "total")]
    return [
        Table("Seconds of a Gram matrix", ["method", "seconds", "wall", "over the bound", "over ours"], seconds),
        Table("The bound", ["forward", "backward", "Gram", "total", "texts of a pass", "Gflop/s of a product"],
              [[*parts, int(bound["size"]), bound["rate"] / 1e9]]),
        Table("Peak memory", ["method", "MB above the loaded model", "MB of temporary files"],
              [[row["method"], row["peak"], row["written"]] for row in found["memory"]]),
        Table("Differences", ["method", "against", "texts", "in norm", "by entry"],
              [[row["method"], AGAINST[row["dtype"]], row["n"], row["norm"], row["entry"]] for row in found["differences"]]),
    ]  # fmt: skip


AGAINST = {"float32": f"{TUNED}, both in float32", "float64": f"{TUNED}, both in float64", "float32, exact": f"{TUNED} in float64"}


def main() -> None:
    options, command = arguments("tangent", "The tangent Gram matrix of a text encoder: seconds, memory, equality.")
    protocol = QUICK if options.quick else FULL
    held = {**asdict(protocol), "encoder": "all-MiniLM-L6-v2", "scope": "weights and biases of query, key, value and output layers",
            "texts": "Rotten Tomatoes, drawn by seed", "tokens": peers.LENGTH, "peers' texts of a pass": peers.CHUNK,
            "memory of driftway (GiB)": MEMORY}  # fmt: skip
    record = Record(name="tangent", title="The tangent kernel of a text encoder", command=command, quick=options.quick, seeds=(SEED,),
                    protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    for step, found in enumerate(measure(protocol)):
        record = replace(record, figures=found, tables=tables(found), goals=goals(found))
        write(record, options.json)
        print(f"step {step + 1} of {protocol.rounds + 1 + len(METHODS)}", flush=True)
    record = replace(record, complete=True)
    write(record, options.json)
    show(record)


def _start_peak() -> float:
    """Make the present resident set the peak; in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("status", "VmRSS") / 1e3


def _status(file: str, entry: str) -> float:
    """A number of /proc/self, in its unit there."""
    lines = Path("/proc/self", file).read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def _verdict(met: bool) -> str:
    return "met" if met else "not met"


if __name__ == "__main__":
    main()
