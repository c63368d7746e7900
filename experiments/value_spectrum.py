"""Does the tangent spectrum of the prices foretell what training will still gain?

    python -m experiments.value_spectrum [--quick] [--json FILE] [--picture FILE]

Values of the family "network" are trained on two pairs: moons to 8 gaussians in the plane, and in 16 dimensions the standard normal to 8
round clusters of standard deviation 0.6 at 4 e_1 .. 4 e_8. Each seed is trained at three step sizes, so that runs of one age differ in
what they have left to gain. At steps s = 2^k times the first, the running average is diagnosed (`driftway.transport.diagnose`) on
held-out rows, and the certificate is taken at s and at 2 s on other held-out rows. What is to be foretold is

    shrink = gap(s) - gap(2 s)        gap: (upper - lower) / upper
    gained = J(end) - J(s)            the dual on the rows of the certificate: what was left, as far as the run went

and the foretellers are compared by Spearman's rank correlation with it: over all pairs of a run and a step, and within a step over the
runs of that age, averaged over steps. The second is the harder and the fairer one: over all steps anything that falls along a run does
well, and at one age -s knows nothing. The spectrum's figures are `left`, the gain that stands out of the noise, and `speed - chance`,
dJ/dtau less what two samples make of it; rivals that need no kernel are the gap itself, the mean squared residual, the shrink of the
step before, and -s.
The p-value of a mean within steps is that of random orders within every step, one-sided. `left` is compared with `gained` as a number too.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata

import driftway
from driftway.data import PAIRS
from driftway.report.style import DATA, FAINT, SAMPLES, SOURCE, styled
from driftway.transport import Problem, Settings, certificate, diagnose, dual, iterate
from driftway.transport.run import Plan, start_run
from driftway.transport.stream import generator

PLANE, WIDE, RATES = "moons to 8 gaussians", "8 clusters, 16 dimensions", (1e-3, 5e-3, 2e-2)
FIRST = {PLANE: 60, WIDE: 15}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "value_spectrum.png"
TARGETS = {"shrink": "next fall of the gap", "gained": "dual gained to the end"}
FORETELLERS = {"left": "left to gain", "net": "speed - chance", "gap": "the gap itself", "square": "mean squared residual",
               "before": "shrink of the step before", "age": "- step"}  # fmt: skip


def normal(n, own):
    return torch.randn(n, 16, generator=own)


def clusters(n, own):
    return 0.6 * torch.randn(n, 16, generator=own) + 4 * torch.eye(16)[torch.randint(8, (n,), generator=own)]


def laws(case):
    """Samplers of source and target."""
    if case == WIDE:
        return normal, clusters
    return tuple(lambda n, own, law=law: law.sample(n, generator=own) for law in PAIRS["moons-8gaussians"])


def follow(case, seed, lr, *, doublings, rows):
    """One run: a row for each step s, s = first 2^k."""
    source, target = laws(case)
    own = generator("value spectrum", case, seed)
    x, y, x_other, y_other = (law(rows, own) for law in (source, target, source, target))
    run = start_run(Plan(Problem(), Settings(width=64, lr=lr), seed, "network", "auto", 0.1, 10**9), source, target, None)
    due, found = [FIRST[case] * 2**k for k in range(doublings + 1)], []
    for step in iterate(run):
        if step.index not in due:
            continue
        model = run.model()
        bracket = certificate(model, x_other, y_other)
        inside = [model.scaler.source(x_other).double(), model.scaler.target(y_other)]
        with torch.no_grad():
            g = model.value_function.price(inside[1]).double()
        eps = model.training["eps"] / model.scaler.cost_scale
        row = {"case": case, "seed": seed, "lr": lr, "step": step.index, "gap": bracket.gap, "lower": bracket.lower, "upper": bracket.upper,
               "J": model.scaler.cost_scale * float(dual.semi_dual(inside[0], inside[1].double(), g, eps=eps))}  # fmt: skip
        if step.index < due[-1]:
            d = diagnose(model, x, y)
            row |= {"left": d.left, "net": d.speed - d.chance, "speed": d.speed, "chance": d.chance, "seen": int(d.seen.sum()),
                    "half_life": d.half_life if d.left else None, "square": float(d.residual.square().mean()), "decay": d.decay.verdict,
                    "exponent": d.decay.exponent, "outside": d.outside}  # fmt: skip
        found.append(row)
        if step.index == due[-1]:
            return found
    raise AssertionError


def pairs(rows):
    """What is foretold and by what, one row for each run and step that has a step after it; the first step has none before it."""
    runs, found = {}, []
    for row in rows:
        runs.setdefault((row["case"], row["seed"], row["lr"]), []).append(row)
    for own in runs.values():
        for k in range(1, len(own) - 1):
            before, now, after = own[k - 1 : k + 2]
            found.append({**now, "shrink": now["gap"] - after["gap"], "before": before["gap"] - now["gap"], "age": -now["step"],
                          "gained": own[-1]["J"] - now["J"]})  # fmt: skip
    return found


def spearman(a, b):
    """The rank correlation; 0 where one of the two does not vary."""
    a, b = (torch.tensor(rankdata(z)) for z in (a, b))
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else 0.0


def beyond(rows, name, rival, target):
    """The partial rank correlation of a foreteller with the target, a rival held fixed, over all rows."""
    a, b, c = ([row[key] for row in rows] for key in (name, target, rival))
    ab, ac, bc = spearman(a, b), spearman(a, c), spearman(b, c)
    return (ab - ac * bc) / max((1 - ac**2) * (1 - bc**2), 1e-12) ** 0.5


def judge(rows, name, target, *, permutations=2000):
    """Rank correlations of a foreteller with the target: over all rows, and within a step, with a permutation p-value (one-sided)."""
    own = [[row for row in rows if row["step"] == step] for step in sorted({row["step"] for row in rows})]

    def within(order):
        return sum(spearman([row[name] for row in part], [part[i][target] for i in place])
                   for part, place in zip(own, order, strict=True)) / len(own)  # fmt: skip

    mean, coin = within([range(len(part)) for part in own]), torch.Generator().manual_seed(0)
    null = [within([torch.randperm(len(part), generator=coin).tolist() for part in own]) for _ in range(permutations)]
    return {"all": spearman([row[name] for row in rows], [row[target] for row in rows]), "within": mean,
            "p": (1 + sum(z >= mean - 1e-12 for z in null)) / (1 + permutations)}  # fmt: skip


def judged(rows):
    """All foretellers of a case by both targets, what `left` and the gap know beyond each other, and `left` as a number."""
    return {"foretellers": {target: {name: judge(rows, name, target) for name in FORETELLERS} for target in TARGETS},
            "left_beyond_gap": {target: beyond(rows, "left", "gap", target) for target in TARGETS},
            "gap_beyond_left": {target: beyond(rows, "gap", "left", target) for target in TARGETS},
            "calibration": calibration(rows), "pairs": len(rows)}  # fmt: skip


def quartiles(numbers):
    cut = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return torch.tensor(numbers, dtype=torch.float64).quantile(cut).tolist() if numbers else None


def calibration(rows):
    """Quartiles of left / gained and of (upper - lower) / gained where something is left, and of the same figures where nothing is."""
    sure = [row for row in rows if row["left"] > 0 and row["gained"] > 0]
    none = [row for row in rows if row["left"] == 0]
    return {"sure": len(sure), "none": len(none), "left over gained": quartiles([row["left"] / row["gained"] for row in sure]),
            "width over gained": quartiles([(row["upper"] - row["lower"]) / row["gained"] for row in sure]),
            "gained where none": quartiles([row["gained"] for row in none]),
            "width where none": quartiles([row["upper"] - row["lower"] for row in none]),
            "J": sum(row["J"] for row in rows) / len(rows)}  # fmt: skip


@styled
def draw(found):
    """Left against gained; left against the shrink of the gap; the foretellers compared."""
    figure = Figure(figsize=(12.4, 3.9))
    first, second, third = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    for case, colour in ((PLANE, DATA), (WIDE, SAMPLES)):
        rows = [row for row in pairs(found["rows"]) if row["case"] == case]
        sure = [row for row in rows if row["left"] > 0]
        first.plot([r["left"] for r in sure], [r["gained"] for r in sure], "o", color=colour, markersize=4, alpha=0.7, label=case)
        second.plot([r["left"] for r in rows], [100 * r["shrink"] for r in rows], "o", color=colour, markersize=4, alpha=0.7)
    line = [row["left"] for row in pairs(found["rows"]) if row["left"] > 0]
    first.plot([min(line), max(line)], [min(line), max(line)], color=FAINT, linewidth=1, zorder=0)
    first.set(xscale="log", yscale="log", title="What the spectrum says is left", xlabel="left to gain at step s",
              ylabel="dual gained from s to the end")  # fmt: skip
    first.legend(loc="upper left", fontsize=8.5, handlelength=1)
    second.axhline(0, color=SOURCE, linewidth=1, zorder=0)
    second.set_xscale("symlog", linthresh=1e-3)
    second.set_xlim(left=-4e-4)
    second.set(title="The gap's next fall", xlabel="left to gain at step s (0: nothing seen)", ylabel="fall from s to 2 s, points")
    names = [name for name in FORETELLERS if name != "age"]
    for shift, case, colour in ((-0.15, PLANE, DATA), (0.15, WIDE, SAMPLES)):
        own = found["cases"][case]["foretellers"]
        for target, face in (("shrink", colour), ("gained", "white")):
            third.plot([own[target][name]["within"] for name in names], [k + shift for k in range(len(names))], "o", color=colour,
                       markersize=6, markerfacecolor=face)  # fmt: skip
    third.axvline(0, color=SOURCE, linewidth=1, zorder=0)
    third.set_yticks(range(len(names)), [FORETELLERS[name] for name in names])
    for face, name in ((SOURCE, "next fall of the gap"), ("white", "gained to the end")):
        third.plot([], [], "o", color=SOURCE, markerfacecolor=face, label=name)
    third.set(title="Rank correlation within a step", xlim=(-1.05, 1.05), ylim=(len(names) + 0.3, -0.6))
    third.grid(visible=False, axis="y")
    third.legend(loc="lower left", fontsize=8.5, handlelength=1, ncols=2)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, shorter runs")
    parser.add_argument("--json", type=Path, help="file for the figures; the full run's default is value_spectrum.json beside the script")
    parser.add_argument("--picture", type=Path, help="file for the picture; the full run's default is docs/images/value_spectrum.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seeds, doublings, rows = (1, {PLANE: 3, WIDE: 3}, 300) if args.quick else (3, {PLANE: 5, WIDE: 5}, 500)
    found, cases = [], {}
    for case in (PLANE, WIDE):
        print(f"{case}\n seed     lr   step      gap     left  speed  chance  seen  |r|^2   decay")
        for seed in range(seeds):
            for lr in RATES:
                own = follow(case, seed, lr, doublings=doublings[case], rows=rows)
                found += own
                for row in own:
                    tail = "" if "left" not in row else (f"{row['left']:9.4f}{row['speed']:7.3f}{row['chance']:8.3f}{row['seen']:6}"
                                                         f"{row['square']:7.2f}   {row['decay']}")  # fmt: skip
                    print(f"{seed:5}{lr:7g}{row['step']:7}{row['gap']:9.4f}{tail}", flush=True)
        pairs_here = [row for row in pairs(found) if row["case"] == case]
        cases[case] = own = judged(pairs_here)
        print(f"rank correlations, {len(pairs_here)} pairs of a run and a step")
        for target, words in TARGETS.items():
            for name, known in own["foretellers"][target].items():
                figures = f"all {known['all']:6.2f}   within a step {known['within']:6.2f} (p = {known['p']:.4f})"
                print(f"  {words:28}{FORETELLERS[name]:26}{figures}")
            print(f"  {words:28}left, the gap held fixed: {own['left_beyond_gap'][target]:.2f}; the gap, left held fixed: "
                  f"{own['gap_beyond_left'][target]:.2f}")  # fmt: skip
        for name, numbers in own["calibration"].items():
            shown = " ".join(f"{z:.3g}" for z in numbers) if isinstance(numbers, list) else f"{numbers or 0:.3g}"
            print(f"  {name:20} {shown}", flush=True)
    whole = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine(), "seeds": seeds, "lr": RATES,
             "rows_of_each_sample": rows, "cases": cases, "rows": found}  # fmt: skip
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    picture = args.picture or (None if args.quick else PICTURE)
    if file:
        file.write_text(json.dumps(whole, indent=1) + "\n")
    if picture:
        draw(whole).savefig(picture, metadata={"Software": None})


if __name__ == "__main__":
    main()
