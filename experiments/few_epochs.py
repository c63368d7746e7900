"""Do a few epochs suffice, and which? The best epoch of real fine-tuning, against the one that the tangent kernel gives.

    python -m experiments.few_epochs [--quick] [--json FILE]

Cells of `benchmarks.stopping_text` (MiniLM with a random head, AdamW and SGD, full and LoRA, real tasks, 160 rows), and more of them with
other numbers of rows under AdamW. For each: the epoch of the lowest test loss, known only in hindsight; the epoch that the kernel predicts
before training, with its size taken as fixed; and the epoch at which the callback stops, whose clock follows the kernel as it grows. Test
loss is scored after whole epochs and twice between; a best epoch that is the last of the run means "that or later".
"""

import argparse
import json
import math
import platform
import warnings
from pathlib import Path
from statistics import median

import torch
import transformers

import driftway
from benchmarks.stopping_cells import EPOCHS, MODES, SPLITS, N, cell, default_stop, hindsight
from benchmarks.stopping_text import models
from benchmarks.texts import TASKS

SIZES = {"rotten_tomatoes": (64, 256), "pc_mac": (64, 256)}  # rows, beside those of the benchmark
RULE = "cross_validation"


def row(found):
    """Epochs of one cell."""
    each, own = found["steps_per_epoch"], found["rules"][RULE]
    loss, best = min((entry[1], entry[0]) for entry in found["curve"])
    last = found["curve"][-1][0]
    ended = default_stop(found)
    stop = last if ended is None else ended
    ratio = hindsight(found, 1)[0]
    return {"task": found["task"], "mode": found["mode"], "seed": found["seed"], "n": found["n"], "best epoch": best / each,
            "best loss": loss, "last epoch": last / each,
            "predicted epoch": None if own["predicted"] is None else own["predicted"] / each,
            "stop epoch": stop / each, "stopped": ended is not None, "lowest loss of an epoch": ratio}  # fmt: skip


def factor(rows, name):
    """The median factor between an epoch and the best, where both are within the run; later than a best at the end is right."""
    found = []
    for own in rows:
        epoch, best, last = own[name], own["best epoch"], own["last epoch"]
        epoch = last if epoch is None else min(epoch, last)
        found.append(math.exp(abs(math.log(max(epoch, 0.1) / max(best, 0.1)))))
    return median(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small cell")
    parser.add_argument("--json", type=Path, help="where the figures go; the full run's default is beside the script")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    model = models()["minilm"]
    if options.quick:
        jobs = [("pc_mac", "lora adamw", 0, 32, 2)]
    else:
        jobs = [(task, mode, seed, N, None) for task in TASKS for mode in MODES for seed in range(SPLITS)]
        jobs += [(task, "full adamw", 0, n, None) for task, sizes in SIZES.items() for n in sizes]
    rows = [row(cell(task, mode, seed, n=n, model=model, epochs=epochs, peer=n == N or options.quick))
            for task, mode, seed, n, epochs in jobs]  # fmt: skip
    for mode in MODES:
        own = [entry for entry in rows if entry["mode"] == mode]
        if own:
            print(f"{mode:11s} best epoch {median(r['best epoch'] for r in own):5.2f} of {EPOCHS[mode]}, stop "
                  f"{median(r['stop epoch'] for r in own):5.2f}; off by a factor of {factor(own, 'stop epoch'):.2f} (clock), "
                  f"{factor(own, 'predicted epoch'):.2f} (before training)")  # fmt: skip
    for task, sizes in SIZES.items():
        for n in sorted({*sizes, N}):
            own = [entry for entry in rows if entry["task"] == task and entry["n"] == n and entry["mode"] == "full adamw"]
            if own:
                print(f"{task}, n = {n}: best epoch {median(r['best epoch'] for r in own):.2f}, "
                      f"stop {median(r['stop epoch'] for r in own):.2f}")  # fmt: skip
    path = options.json or (None if options.quick else Path(__file__).with_suffix(".json"))
    if path:
        record = {"rows": rows, "python": platform.python_version(), "torch": torch.__version__, "driftway": driftway.__version__,
                  "factor": {mode: {name: factor([r for r in rows if r["mode"] == mode], f"{name} epoch") for name in ("stop", "predicted")}
                             for mode in MODES if any(r["mode"] == mode for r in rows)}}  # fmt: skip
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not options.quick:
        assert factor(rows, "stop epoch") < 2, "the clock is off by more than a factor of two in the median"


if __name__ == "__main__":
    main()
