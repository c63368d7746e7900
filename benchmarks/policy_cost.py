"""What acting on a value costs: `python -m benchmarks.policy_cost`.

    ours    x - grad V_t(x)/H       V a perceptron of 3 x 64 units with 1 or 32 heads; gradient by hand, no autograd graph
    peer    v(x, t)                 one forward pass of a velocity network of 3 x 64 units, d outputs

Repeats of all contestants are interleaved, so that what else the machine does hits all alike; medians are compared.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import DEPTH, WIDTH, velocity_network
from benchmarks.record import Goal, Record, Table, arguments, show, write
from driftway.transport import NetworkValue, explicit
from driftway.transport.stream import generator

HEADS = (1, 32)
ACTIVATIONS = ("selu", "elu")
ROWS, DIMENSIONS = (256, 4096, 65536), (2, 64)
LIMIT, H, T = 2.0, 4, 0.5
SPAN = 0.004  # seconds that one measurement lasts at least
NOTES = ("The peer's time is that of its network alone; ours includes the step.",)


def contestants(n: int, d: int) -> dict[str, Callable[[], Tensor]]:
    """Steps of ours by number of heads, forward passes of the peer by activation."""
    x = torch.randn(n, d, generator=generator("policy", n, d))
    ours = {f"{heads} heads": NetworkValue((d,), width=WIDTH, depth=DEPTH, heads=heads).requires_grad_(False) for heads in HEADS}
    theirs = {name: velocity_network(d, activation=name).requires_grad_(False) for name in ACTIVATIONS}
    acts = {name: lambda value=value: x + explicit(value, x, T, 1 / H) / H for name, value in ours.items()}
    passes = {name: lambda net=net: net(torch.cat([x, x.new_full((n, 1), T)], 1)) for name, net in theirs.items()}
    return {**acts, **passes}


@torch.no_grad()
def seconds(calls: dict[str, Callable[[], Tensor]], *, repeats: int) -> dict[str, float]:
    """Median seconds of one call of each, the repeats interleaved."""
    loops = {}
    for name, call in calls.items():
        call()
        begun = time.perf_counter()
        call()
        loops[name] = max(1, round(SPAN / (time.perf_counter() - begun)))
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(loops[name]):
                call()
            spent[name].append((time.perf_counter() - begun) / loops[name])
    return {name: median(times) for name, times in spent.items()}


def measure(repeats: int) -> list[dict[str, Any]]:
    """One row per size, heads and activation."""
    rows = []
    for d in DIMENSIONS:
        for n in ROWS:
            found = seconds(contestants(n, d), repeats=repeats)
            rows += [{"n": n, "d": d, "heads": heads, "peer": peer, "step_us": 1e6 * found[f"{heads} heads"], "peer_us": 1e6 * found[peer],
                      "ratio": found[f"{heads} heads"] / found[peer]} for heads in HEADS for peer in ACTIVATIONS]  # fmt: skip
    return rows


def goal(rows: Sequence[dict[str, Any]]) -> Goal:
    """Every ratio at most 2."""
    checks = [[row["d"], row["n"], row["heads"], row["peer"].upper(), round(row["ratio"], 2), "met" if row["ratio"] <= LIMIT else "not met"]
              for row in rows]  # fmt: skip
    claim = f"A policy step costs at most {LIMIT:g} times a forward pass of a velocity network of the same size"
    return Goal(claim, ["d", "rows", "heads", "peer's units", "ratio", "verdict"], checks)


def main() -> None:
    options, command = arguments("policy_cost", "A policy step against a forward pass of a velocity network.")
    repeats = 7 if options.quick else 31
    rows = measure(repeats)
    times = [[row["d"], row["n"], row["heads"], row["peer"].upper(), round(row["step_us"], 1), round(row["peer_us"], 1)] for row in rows]
    shown = Table("Microseconds", ["d", "rows", "heads", "peer's units", "policy step", "peer's pass"], times, f"Medians of {repeats}.")
    record = Record(name="policy_cost", title="Cost of a policy step", command=command, quick=options.quick, seeds=(0,),
                    protocol={"hidden layers": f"{DEPTH} x {WIDTH}", "repeats": repeats}, notes=NOTES, figures={"single": rows},
                    tables=[shown], goals=[goal(rows)], complete=True)  # fmt: skip
    write(record, options.json)
    show(record)


if __name__ == "__main__":
    main()
