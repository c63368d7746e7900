"""Claim: a training run that is killed at any moment, any number of times, ends in the weights it would have had anyway, bit for bit.

A process trains with a checkpoint every few milliseconds; it is killed with SIGKILL at a random moment of its life (imports,
setting up, reading a checkpoint, training, writing), started again on the same folder, and so on, until the run ends by itself. The
weights are then compared with those of a run that nobody disturbed. Families and kinds of data take turns.

    python -m experiments.kill_resume [--kills 20] [--seed 0] [--quick] [--json FILE]

Exits with 1 if any weight differs, and with 2 if a process fails for another reason than being killed.
"""

import argparse
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from driftway import store
from driftway.data import eight_gaussians, moons
from driftway.transport import Settings, Step, fit
from driftway.transport.checkpoint import CHECKPOINT

CASES = [("network", "array"), ("mixture", "loader"), ("network", "sampler"), ("mixture", "array")]
STEPS = 400
SETTINGS = Settings(batch=64, candidates=128, width=24, depth=2, heads=8, components=16, mixture_batch=256)


def data(kind: str) -> Any:
    """The target, the same in every process."""
    rows = eight_gaussians.sample(1000, generator=torch.Generator().manual_seed(1))
    if kind == "loader":
        return DataLoader(TensorDataset(rows), batch_size=100, shuffle=True)
    return rows if kind == "array" else lambda n, own: eight_gaussians.sample(n, generator=own)


def train(family: str, kind: str, folder: Path) -> None:
    """One life of the run: begin it, or go on from its checkpoint, and say when the first step is done."""
    source = moons.sample(800, generator=torch.Generator().manual_seed(2))
    place = {"resume": folder} if (folder / CHECKPOINT).exists() else {"out": folder}
    steps = iter(range(STEPS))

    def on_step(record: Step) -> None:
        if next(steps) == 0:
            print(f"step {record.index}", flush=True)
        time.sleep(0.002)  # there is more to hit

    fit(source, data(kind), family=family, settings=SETTINGS, steps=STEPS, seed=3, certify_every=50, checkpoint_seconds=0.01,
        on_step=on_step, **place)  # fmt: skip


def begin(family: str, kind: str, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "experiments.kill_resume", "--train", family, kind, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights(folder: Path) -> dict[str, Tensor]:
    return store.read_tensors("folder", folder / store.TENSORS)[1]


def finish(process: "subprocess.Popen[str]") -> None:
    """Wait for a process that nobody kills."""
    _, errors = process.communicate()
    if process.returncode != 0:
        print(f"a process failed by itself ({process.returncode}):\n{errors}")
        raise SystemExit(2)


def progress(folder: Path) -> int:
    """Steps in the checkpoint; -1 without one. A damaged one raises."""
    return store.read_tensors("folder", folder / CHECKPOINT)[0]["index"] if (folder / CHECKPOINT).exists() else -1


def harass(family: str, kind: str, folder: Path, kills: int, chance: random.Random) -> tuple[list[int], int]:
    """Kill the run `kills` times, or until it ends: the steps in the checkpoint after each kill, and how many files were half-written.

    Three kills in four come within 0.6 s of the first step of that life, one in four while it imports and sets up.
    """
    reached: list[int] = []
    halves = 0
    while len(reached) < kills:
        process = begin(family, kind, folder)
        assert process.stdout is not None
        if chance.random() < 0.75:
            process.stdout.readline()
            time.sleep(chance.uniform(0, 0.6))
        else:
            time.sleep(chance.uniform(0, 5))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        if process.returncode != -signal.SIGKILL:
            print(f"a process failed by itself ({process.returncode}):\n{errors}")
            raise SystemExit(2)
        reached.append(progress(folder))
        halves += len(list(folder.glob(".*.part")))  # swept up by the next life
    finish(begin(family, kind, folder))
    return reached, halves


def compare(family: str, kind: str, kills: int, place: Path, chance: random.Random) -> dict[str, Any]:
    """One family and kind of data: undisturbed against harassed, in as many rounds as it takes to deliver the kills."""
    whole = place / f"{family}-{kind}-whole"
    finish(begin(family, kind, whole))
    known, reached, differing, halves = weights(whole), [], [], 0
    while len(reached) < kills:
        folder = place / f"{family}-{kind}-{len(reached)}"
        more, torn = harass(family, kind, folder, kills - len(reached), chance)
        reached, halves = reached + more, halves + torn
        found = weights(folder)
        differing += [name for name in known.keys() | found.keys()
                      if name not in known or name not in found or not torch.equal(known[name], found[name])]  # fmt: skip
    return {"family": family, "data": kind, "kills": len(reached), "steps_after_each_kill": reached, "killed_while_writing": halves,
            "tensors": len(known), "differing": sorted(set(differing))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="kills in all, over the four cases")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--quick", action="store_true", help="four kills")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--train", nargs=3, metavar=("FAMILY", "DATA", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        family, kind, folder = options.train
        train(family, kind, Path(folder))
        return
    kills, chance = 4 if options.quick else options.kills, random.Random(options.seed)
    shares = [kills // len(CASES) + (i < kills % len(CASES)) for i in range(len(CASES))]
    results = []
    with tempfile.TemporaryDirectory() as place:
        for (family, kind), share in zip(CASES, shares, strict=True):
            if share == 0:
                continue
            results.append(compare(family, kind, share, Path(place), chance))
            last = results[-1]
            verdict = "DIFFERENT: " + ", ".join(last["differing"]) if last["differing"] else f"identical in all {last['tensors']} tensors"
            print(f"{family:8} {kind:8} {last['kills']:3} kills at steps {last['steps_after_each_kill']}, "
                  f"{last['killed_while_writing']} while writing: {verdict}", flush=True)  # fmt: skip
    bad = [result for result in results if result["differing"]]
    total = sum(result["kills"] for result in results)
    if options.json:
        machine = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine(), "seed": options.seed}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"kills": total, "steps": STEPS, **machine, "cases": results}, indent=2) + "\n")
    if bad:
        print(f"FAILED: after {total} kills the weights differ in {len(bad)} of {len(results)} cases")
        raise SystemExit(1)
    print(f"PASSED: after {total} kills the weights of all {len(results)} cases are those of undisturbed runs, bit for bit")


if __name__ == "__main__":
    main()
