"""A process that computes the kernels of one method, and the method neural-tangents. `benchmarks.infinite` starts and asks it.

neural-tangents lives in an environment of its own, without torch and driftway, so this file needs numpy alone:

    python -P benchmarks/neural_tangents.py ORDER       (-P: this file is not the package of its name)

ORDER is JSON. The process answers a line of JSON with a line of JSON:

    ["time"]            compute, and say the wall seconds
    ["memory"]          compute, and say the bytes above those held before: the peak (VmHWM) less the resident set, on Linux
    ["save", a, b]      compute, and write NNGP and NTK to the files a and b
"""

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

BLOCK = 500  # rows of a block, where neural-tangents works by blocks
MMAP_THRESHOLD = -3  # its number in malloc.h
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Order = Mapping[str, Any]
Compute = Callable[[], tuple[Any, Any]]  # NNGP and NTK as arrays


def serve(order: Order, prepare: Callable[[Order, np.ndarray], tuple[Compute, dict[str, str]]]) -> None:
    """Say the versions that `prepare` found, then answer standard input line by line, until it ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        compute, versions = prepare(order, np.load(order["inputs"]).astype(order["dtype"]))
        print(json.dumps(versions), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(compute, *json.loads(line))), file=answers, flush=True)


def answer(compute: Compute, what: str, *files: str) -> float | int | None:
    """The answer to one line."""
    if what == "memory":
        return memory(compute)
    start = time.perf_counter()
    kernels = compute()
    seconds = time.perf_counter() - start
    for file, kernel in zip(files, kernels, strict=False):
        np.save(file, np.asarray(kernel))
    return seconds


def memory(compute: Compute) -> int | None:
    """Bytes at the peak above those before, of what is in use at once; None where the system does not count them.

    glibc keeps freed memory at will, by sizes it has seen before. Here it gives back blocks of 1 MB or more, in a call that is not
    measured and in one that is, and before the latter everything.
    """
    if not RESET.exists():
        return None
    c = ctypes.CDLL(None)
    if hasattr(c, "malloc_trim"):
        c.mallopt(MMAP_THRESHOLD, 2**20)
        compute()
        gc.collect()
        c.malloc_trim(0)
    RESET.write_text("5")  # the peak is the present from here
    before = resident("VmRSS")
    kernels = compute()
    peak = resident("VmHWM")
    del kernels
    return peak - before


def resident(name: str) -> int:
    """An entry of this process's status, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * int(line.split()[1])


def prepare(order: Order, x: np.ndarray) -> tuple[Compute, dict[str, str]]:
    """neural-tangents under jit, of the whole matrix or by blocks."""
    # its part for TensorFlow asks for 2 GB of packages and has nothing to do with these kernels
    sys.modules["neural_tangents.experimental"] = ModuleType("neural_tangents.experimental")
    import jax
    import jaxlib
    import neural_tangents as nt

    jax.config.update("jax_enable_x64", order["dtype"] == "float64")
    scales = {"W_std": order["w_std"], "b_std": order["b_std"]}
    hidden = [layer for _ in range(order["depth"]) for layer in (nt.stax.Dense(512, **scales), nt.stax.Relu())]
    *_, kernel = nt.stax.serial(*hidden, nt.stax.Dense(1, **scales))
    if order["blocks"]:
        kernels = nt.batch(kernel, batch_size=BLOCK, device_count=0)
    else:
        kernels = jax.jit(lambda x: kernel(x, None, ("nngp", "ntk")))
    rows = jax.numpy.asarray(x)

    def compute() -> tuple[Any, Any]:
        pair = kernels(rows, None, ("nngp", "ntk")) if order["blocks"] else kernels(rows)
        return jax.block_until_ready((pair.nngp, pair.ntk))

    return compute, {"neural-tangents": nt.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]), prepare)
