"""The dual variables are the value function: do V and g become the optimal duals, and does V obey Bellman's equation?

    python -m experiments.value_is_value [--quick] [--json FILE]

A standard normal to 8 gaussians, n points of each, both families. At growing processor seconds of one run:

    program    squared correlation of V_0 and of g with the duals of the exact linear program
    bound      mean_i min_j [C_ij + g_j] - mean_j g_j over the cost of that program: at most 1 for any g, and 1 at the optimum
    level      E V_0 - E g over the same cost: 1 at the optimum, but no bound before it
    Bellman    for states x of the model's own paths at t = 0, 1/4 and 1/2, with dt = 1/4 and y over a grid of the plane,

                   V_t(x)   against   min_y |y - x|^2 / 2 dt + V_{t+dt}(y)

               the standard deviation of the difference over that of V_t(x), and its mean over the same
    step       root mean square distance of the minimiser from the policy's x - grad V_t(x) dt, over that of the step

The grid's spacing h alone makes the minimum too large by up to h^2 / 4 dt, about 0.01 here.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import driftway
from driftway.data import PAIRS
from driftway.transport import Problem, Settings, iterate, solve_assignment_program
from driftway.transport.run import Plan, start_run

DT, TIMES = 0.25, (0.0, 0.25, 0.5)


def squared_correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1] ** 2)


def bellman(model, x, grid):
    """For each time: spread and mean of the difference, and distance of the minimiser from the policy's step."""
    path, found = model.path(x, steps=4, rule="explicit"), []
    for h, t in enumerate(TIMES):
        state = path.states[h]
        after = torch.cdist(state, grid).square() / (2 * DT) + model.value(grid, t + DT)
        least, best = after.min(1)
        now = model.value(state, t)
        step = path.actions[h] * DT
        miss = (grid[best] - state - step).square().sum(1).mean() / step.square().sum(1).mean()
        found.append({"t": t, "spread": float((now - least).std() / now.std()), "mean": float((now - least).mean() / now.std()),
                      "step": float(miss.sqrt())})  # fmt: skip
    return found


def measure(family, x, y, exact, grid, stops):
    """A row of figures at each stop, in processor seconds of training."""
    begun, stops, paused = time.process_time(), list(stops), 0.0
    run = start_run(Plan(Problem(), Settings(), 0, family, "auto", 0.0, 2**60), x, y, (x[:2], y[:2]))  # no rows are split off
    for _ in iterate(run):
        if time.process_time() - begun - paused < stops[0]:
            continue
        pause, model = time.process_time(), run.model()
        V, g = model.value(x, 0.0), model.price(y)
        bound = (torch.cdist(x, y).square() / 2 + g).amin(1).mean() - g.mean()
        yield {"family": family, "seconds": stops.pop(0), "steps": run.index, "V_0": squared_correlation(V, exact.values[0]),
               "g": squared_correlation(g, exact.g), "bound": float(bound) / exact.cost, "level": float(V.mean() - g.mean()) / exact.cost,
               "bellman": bellman(model, x, grid)}  # fmt: skip
        paused += time.process_time() - pause
        if not stops:
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer points, shorter training")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is value_is_value.json beside the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    n, stops = (200, (1, 4)) if args.quick else (500, (1, 3, 10, 30))
    own = torch.Generator().manual_seed(0)
    x, y = (law.sample(n, generator=own) for law in PAIRS["normal-8gaussians"])
    exact = solve_assignment_program(x.numpy(), y.numpy())
    line = torch.linspace(-8, 8, 161)
    grid = torch.cartesian_prod(line, line)
    heads = "   ".join(f"Bellman, step t={t:<4}" for t in TIMES)
    print(f"{'family':8} {'seconds':>7} {'steps':>6}  R2 V_0   R2 g  bound   level   {heads}")
    rows = []
    for family in ("mixture", "network"):
        for row in measure(family, x, y, exact, grid, stops):
            rows.append(row)
            shown = "   ".join(f"{b['spread']:5.3f} {b['mean']:+6.3f} {b['step']:6.3f}" for b in row["bellman"])
            duals = f"{row['V_0']:7.4f} {row['g']:6.4f} {row['bound']:6.4f} {row['level']:7.4f}"
            print(f"{family:8} {row['seconds']:7} {row['steps']:6} {duals}   {shown}", flush=True)
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        found = {"driftway": driftway.__version__, "torch": torch.__version__, "points": n, "cost": exact.cost, "rows": rows}
        file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
