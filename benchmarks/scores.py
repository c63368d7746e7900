"""From single figures to means, ratios, verdicts and tables; no training here.

A figure is one (task, seed, method, steps) with its W2 and NPE; a floor is one (task, seed). With means over seeds,

    ratio    = mean over seeds of W2 / W2 of OT-CFM at the same steps and seed
    excess   = W2 - floor
    few      the better of our two families at 1, 2 or 4 steps beats OT-CFM at 100 steps:  W2 below, excess at most half
    equal    the network beats OT-CFM at equal steps:  W2 below

A W2 that is not finite (a path that left the numbers) counts as infinite.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from benchmarks.record import Cell, Goal, Table

Rows = Sequence[Mapping[str, Any]]
PEER, TUNED, INDEPENDENT = "OT-CFM", "OT-CFM (tuned)", "I-CFM"
NETWORK, MIXTURE = "driftway network", "driftway mixture"
OURS = (MIXTURE, NETWORK)
FEW, MANY = 4, 100


def summarise(figures: Rows, floors: Rows) -> list[dict[str, Any]]:
    """One row per task, method and steps: means and standard deviations over seeds, the ratio to OT-CFM, the floor."""
    single = {(f["task"], f["method"], f["steps"], f["seed"]): f for f in figures}
    rows = []
    for task, method, steps in dict.fromkeys(key[:3] for key in single):
        own = {key[3]: f for key, f in single.items() if key[:3] == (task, method, steps)}
        peer = {seed: single.get((task, PEER, steps, seed)) for seed in own}
        ratios = [_number(f["w2"]) / _number(other["w2"]) for seed, f in own.items() if (other := peer[seed]) is not None]
        row: dict[str, Any] = {"task": task, "method": method, "steps": steps, "seeds": len(own)}
        for name, values in (("w2", [f["w2"] for f in own.values()]), ("npe", [f["npe"] for f in own.values()]), ("ratio", ratios),
                             ("floor", [f["floor"] for f in floors if f["task"] == task])):  # fmt: skip
            row[name], row[f"{name}_std"] = _mean(values), _std(values)
        rows.append(row)
    return rows


def few_steps_goal(summary: Rows, peer: str = PEER) -> Goal:
    """At most four steps of the better of our families against a hundred of a peer, task by task."""
    checks = []
    for task in _tasks(summary):
        ours = [row for row in summary if row["task"] == task and row["method"] in OURS and row["steps"] <= FEW]
        other = _find(summary, task, peer, MANY)
        if not ours or other is None:
            continue
        best = min(ours, key=lambda row: (round(row["w2"], 4), row["steps"]))  # a mixture differs between steps by rounding alone
        excess, allowed = best["w2"] - best["floor"], (other["w2"] - other["floor"]) / 2
        share = excess / (2 * allowed) if allowed > 0 else None
        met = best["w2"] < other["w2"] and excess <= allowed
        checks.append([task, f"{best['method']}, {_steps(best['steps'])}", best["w2"], other["w2"], best["floor"], share, _verdict(met)])
    columns = ["task", "our better one", "W2", f"W2 of {peer}, {MANY} steps", "floor", "excess / its excess", "verdict"]
    claim = f"At {FEW} steps or fewer, W2 is below that of {peer} at {MANY} steps, and its excess over the floor is at most half"
    return Goal(claim, columns, checks)


def equal_steps_goal(summary: Rows, figures: Rows, peer: str = PEER) -> Goal:
    """The network against a peer at the same number of steps, task by task."""
    checks = []
    for row in summary:
        other = _find(summary, row["task"], peer, row["steps"])
        if row["method"] != NETWORK or other is None:
            continue
        pairs = _pairs(figures, row["task"], row["steps"], peer)
        won = f"{sum(ours < theirs for ours, theirs in pairs)} of {len(pairs)}"
        ratio = row["w2"] / other["w2"]
        checks.append([row["task"], row["steps"], row["w2"], other["w2"], ratio, won, _verdict(row["w2"] < other["w2"])])
    columns = ["task", "steps", "W2 of the network", f"W2 of {peer}", "ratio", "seeds won", "verdict"]
    return Goal(f"At equal steps, W2 of the network is below that of {peer}", columns, checks)


def tables(summary: Rows, floors: Rows, trainings: Rows, squared: Rows) -> list[Table]:
    """W2 and NPE per task, the training that bought them, and the certificates."""
    made = []
    for task in _tasks(summary):
        rows = [row for row in summary if row["task"] == task]
        steps = sorted({row["steps"] for row in rows})
        floor = [f["floor"] for f in floors if f["task"] == task]
        heads = ["method", *map(_steps, steps)]
        first = ["floor: two independent target sets", *[_spread(_mean(floor), _std(floor))] * len(steps)]
        note = "Brackets: ratio to OT-CFM at the same steps. The mixture's samples have the same law at every number of steps."
        energy = "Path energy minus W2², without its sign, over W2²; W2 of the test points."
        made += [Table(f"{task}: W2", heads, [first, *_grid(rows, steps, "w2")], note),
                 Table(f"{task}: NPE", heads, _grid(rows, steps, "npe"), energy)]  # fmt: skip
    return [*made, _costs(trainings), _certificates(trainings, squared)]


def _grid(rows: Rows, steps: Sequence[int], name: str) -> list[list[Cell]]:
    lines: list[list[Cell]] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        line: list[Cell] = [method]
        for count in steps:
            row = next((row for row in rows if row["method"] == method and row["steps"] == count), None)
            shown = None if row is None else _spread(row[name], row[f"{name}_std"])
            line.append(f"{shown} ({row['ratio']:.2f})" if row and name == "w2" and math.isfinite(row["ratio"]) else shown)
        lines.append(line)
    return lines


def _costs(trainings: Rows) -> Table:
    rows: list[list[Cell]] = []
    for task, method in dict.fromkeys((run["task"], run["method"]) for run in trainings):
        runs = [run for run in trainings if (run["task"], run["method"]) == (task, method)]
        steps, seconds = fmean(run["steps"] for run in runs), fmean(run["seconds"] for run in runs)
        rows.append([task, method, round(seconds, 2), round(steps), 1000 * seconds / steps if steps else None, runs[0]["parameters"]])
    columns = ["task", "method", "seconds", "steps", "ms per step", "parameters used to sample"]
    return Table("Training", columns, rows, "Means over seeds. Set-up and drawing the data are counted, for every method.")


def _certificates(trainings: Rows, squared: Rows) -> Table:
    exact = {(row["task"], row["seed"]): row["squared_w2"] / 2 for row in squared}
    rows: list[list[Cell]] = []
    for run in trainings:
        if run["lower"] is not None:
            truth = exact[run["task"], run["seed"]]
            rows.append([run["task"], run["method"], run["seed"], run["lower"], truth, run["upper"], f"{run['gap']:.2%}",
                         "holds" if brackets(run["lower"], truth, run["upper"]) else "VIOLATED"])  # fmt: skip
    columns = ["task", "method", "seed", "lower", "exact W2²/2", "upper", "proven gap", "bracket"]
    return Table("Certificates on the test points, policy of 4 steps", columns, rows, "No peer has one.")


def brackets(lower: float, truth: float, upper: float) -> bool:
    """lower <= truth <= upper, up to the rounding of single precision."""
    slack = 1e-5 * abs(truth)
    return lower <= truth + slack and truth <= upper + slack


def _pairs(figures: Rows, task: str, steps: int, peer: str) -> list[tuple[float, float]]:
    of = {(f["method"], f["seed"]): _number(f["w2"]) for f in figures if f["task"] == task and f["steps"] == steps}
    return [(w2, of[peer, seed]) for (method, seed), w2 in of.items() if method == NETWORK and (peer, seed) in of]


def _find(summary: Rows, task: str, method: str, steps: int) -> Mapping[str, Any] | None:
    return next((row for row in summary if (row["task"], row["method"], row["steps"]) == (task, method, steps)), None)


def _tasks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["task"] for row in rows))


def _number(value: float | None) -> float:
    return math.inf if value is None or not math.isfinite(value) else value


def _mean(values: Iterable[float | None]) -> float:
    numbers = [_number(value) for value in values]
    return fmean(numbers) if numbers else math.nan


def _std(values: Iterable[float | None]) -> float | None:
    numbers = [_number(value) for value in values]
    return stdev(numbers) if len(numbers) > 1 and all(map(math.isfinite, numbers)) else None


def _spread(mean: float, std: float | None) -> str:
    if not math.isfinite(mean):
        return "diverged"
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _verdict(met: bool) -> str:
    return "met" if met else "not met"
