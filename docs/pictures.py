"""The pictures of README and documentation: `python -m docs.pictures [transport] [finite_width] [few_epochs]
[gaussian_process_limit] [few_labels]` draws them into docs/images/.

"transport" and "few_labels" fit small models; the others draw the figures of `experiments/NAME.json`. Without a name, all.
`python -m docs.pictures screenshots` takes the pages that `driftway demo` has left in ./driftway-demo, in a headless Chromium.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from PIL import Image

from driftway.adapt import AutoTransferRegressor, DINOTrainRegressor, PooledGP, TargetOnlyGP
from driftway.data import PAIRS, digits
from driftway.kernels import tangent_gram
from driftway.report.style import DATA, FAINT, LABELS, SAMPLES, SOURCE, styled
from driftway.transport import Settings, fit
from experiments import few_epochs as few
from experiments import finite_width as finite
from experiments import gaussian_process_limit as process

IMAGES = Path(__file__).parent / "images"
PAPER, INK, START, END = "#ffffff", "#333333", "#8a8a8a", "#d95f02"


def transport() -> Figure:
    source, target = PAIRS["moons-8gaussians"]
    model = fit(lambda n, own: source.sample(n, generator=own), lambda n, own: target.sample(n, generator=own), family="network",
                max_seconds=60, settings=Settings(width=128))  # fmt: skip
    own = torch.Generator().manual_seed(1)
    x = source.sample(400, generator=own)
    path = model.path(x, steps=20)
    figure = Figure(figsize=(12, 4), layout="constrained", facecolor=PAPER)
    left, middle, right = figure.subplots(1, 3)
    for i in range(200):
        left.plot(*path.states[:, i].T, color="#a6bddb", lw=0.6, zorder=1)
    left.scatter(*x.T, s=5, color=START, label="source", zorder=2)
    left.scatter(*path.states[-1].T, s=5, color=END, label="after the policy", zorder=3)
    left.set_title("moons to 8 gaussians: paths of the policy", color=INK)
    left.legend(frameon=False, loc="lower left")

    line = torch.linspace(-8, 8, 121)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    value = model.value(grid, 0.5).reshape(121, 121)
    middle.contourf(line, line, value, levels=24, cmap="cividis")
    some = torch.stack(torch.meshgrid(line[4::8], line[4::8], indexing="xy"), -1).reshape(-1, 2)
    inside = model.scaler.target(some)
    down = -model.value_function.gradient(inside, inside.new_full((len(inside),), 0.5)).detach()
    middle.quiver(*some.T, *down.T, color="white", alpha=0.8, width=0.003)
    middle.set_title("the value at t = 1/2; samples go down it", color=INK)
    for axes in (left, middle):
        axes.set(xlim=(-8, 8), ylim=(-7, 7), aspect="equal", xticks=[], yticks=[])

    images = fit(None, digits()[0].reshape(-1, 8, 8), max_seconds=60, settings=Settings(width=128))
    drawn = images.sample(77, steps=4, seed=3)
    spaced = torch.nn.functional.pad(drawn, (1, 1, 1, 1))
    rows = spaced.reshape(7, 11, 10, 10).permute(0, 2, 1, 3).reshape(70, 110)
    right.imshow(rows, cmap="gray_r", vmin=0, vmax=16)
    right.set_title("handwritten digits in 4 steps, not chosen", color=INK)
    right.set(xticks=[], yticks=[])
    assert math.isfinite(float(value.sum()))
    return figure


@styled
def finite_width() -> Figure:
    """Tangent kernels of finite networks on a circle; the fall of their error with the width; its slopes."""
    found = json.loads(Path(finite.__file__).with_suffix(".json").read_text())
    figure = Figure(figsize=(12.4, 3.9))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 0.95))

    angle = torch.linspace(-math.pi, math.pi, 121, dtype=torch.float64)
    x = 2**0.5 * torch.stack([angle.cos(), angle.sin()], 1)
    middle_row = len(x) // 2  # angle 0
    for width, colour, line in ((32, FAINT, 0.8), (256, "#7FB8DA", 0.9), (2048, DATA, 1.0)):
        for seed in range(10):
            net = finite.build("dense, ReLU", x, width, ("circle", seed)).double()
            K = tangent_gram(net, x[middle_row : middle_row + 1], x)[0]
            left.plot(angle, K, color=colour, linewidth=line, alpha=0.8, label=f"10 networks of width {width:,}" if seed == 0 else None)
    limit = finite.CASES["dense, ReLU"][0].ntk(x[middle_row : middle_row + 1], x)[0]
    left.plot(angle, limit, color=SAMPLES, linewidth=2.2, label="infinite width")
    left.set(title="Tangent kernel of two rows on a circle", xlabel="angle between the rows", ylim=(0, 32), xlim=(-math.pi, math.pi))
    left.set_xticks([-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi], [r"$-\pi$", r"$-\pi/2$", "0", r"$\pi/2$", r"$\pi$"])
    left.legend(loc="upper left", fontsize=8.5, handlelength=1.4, borderaxespad=0.1)

    colours = dict(zip(found["cases"], (LABELS[0], LABELS[1], LABELS[2], LABELS[3], LABELS[7]), strict=True))
    for case, own in found["cases"].items():
        rows = own["rows"]
        middle.plot([r["width"] for r in rows], [r["ntk"]["rms"] for r in rows], "o-", color=colours[case], linewidth=1.3, markersize=4.5,
                    markeredgecolor="white", markeredgewidth=0.6, label=case)  # fmt: skip
    guide = torch.tensor([32.0, 2048.0])
    middle.plot(guide, 3.6 * guide**-0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    middle.text(300, 0.235, "width$^{-1/2}$", color=INK)
    middle.set(xscale="log", yscale="log", title="Relative error of the tangent kernel", xlabel="width", ylim=(0.03, 0.8))
    middle.xaxis.set_major_locator(FixedLocator([32, 128, 512, 2048]))
    middle.yaxis.set_major_locator(FixedLocator([0.05, 0.1, 0.2, 0.5]))
    for axis, names in ((middle.xaxis, ["32", "128", "512", "2,048"]), (middle.yaxis, ["5 %", "10 %", "20 %", "50 %"])):
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_ticklabels(names)

    ends = []
    for row, (case, own) in enumerate(found["cases"].items()):
        for part, shift, face in (("nngp", -0.15, "white"), ("ntk", 0.15, colours[case])):
            slope = own[part]
            right.errorbar(slope["slope"], row + shift, xerr=2 * slope["error"], fmt="o", color=colours[case], markerfacecolor=face,
                           markersize=5.5, elinewidth=1.5, capsize=0)  # fmt: skip
            ends.append(abs(slope["slope"] + 0.5) + 2 * slope["error"])
    right.axvline(-0.5, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    reach = 1.15 * max(ends)
    right.set(title="Slopes, two standard errors", xlabel="slope of log error on log width", xlim=(-0.5 - reach, -0.5 + reach),
              ylim=(len(colours) - 0.4, -0.75))  # fmt: skip
    right.set_yticks(range(len(colours)), list(colours))
    right.grid(visible=False, axis="y")
    for face, name in (("white", "NNGP"), (SOURCE, "NTK")):
        right.plot([], [], "o", color=SOURCE, markerfacecolor=face, label=name)
    right.legend(loc="upper right", ncols=2, fontsize=8.5, handletextpad=0.1, columnspacing=0.8, borderaxespad=0)
    return figure


@styled
def few_epochs() -> Figure:
    """The epoch at which training stops, and the one predicted before it, against the best in hindsight."""
    rows = json.loads(Path(few.__file__).with_suffix(".json").read_text())["rows"]
    figure = Figure(figsize=(10.4, 4.7))
    left, right = figure.subplots(1, 2, sharey=True)
    modes = dict(zip(dict.fromkeys(row["mode"] for row in rows), LABELS, strict=False))
    shift = torch.Generator().manual_seed(0)
    for axes, name, title in ((left, "stop epoch", "Stopped: the clock follows the kernel"),
                              (right, "predicted epoch", "Predicted before training: its size is fixed")):  # fmt: skip
        axes.plot([0.2, 10], [0.2, 10], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for mode, colour in modes.items():
            own = [row for row in rows if row["mode"] == mode]
            jitter = (0.04 * torch.randn(len(own), 2, generator=shift)).exp().tolist()
            points = [(min(row[name] if row[name] is not None else math.inf, 40.0), row["best epoch"]) for row in own]
            axes.scatter([max(x, 0.2) * a for (x, _), (a, _) in zip(points, jitter, strict=True)],
                         [max(y, 0.2) * b for (_, y), (_, b) in zip(points, jitter, strict=True)],
                         s=22, color=colour, alpha=0.75, linewidths=0.4, edgecolors="white", label=mode)  # fmt: skip
        axes.set(xscale="log", yscale="log", title=title, xlabel=f"{name.split()[0]} epoch", xlim=(0.17, 50), ylim=(0.17, 12))
        for axis, marks in ((axes.xaxis, (0.2, 0.5, 1, 2, 5, 10, 20, 40)), (axes.yaxis, (0.2, 0.5, 1, 2, 5, 10))):
            axis.set_major_locator(FixedLocator(marks))
            axis.set_minor_locator(NullLocator())
            axis.set_ticklabels([f"{mark:g}" for mark in marks])
    left.set_ylabel("epoch of the lowest test loss, in hindsight")
    left.legend(loc="upper left", fontsize=8.5, handletextpad=0.1)
    return figure


@styled
def gaussian_process_limit() -> Figure:
    """Trained networks in their limit; the fall of their distance from it, and of what is not normal about them, with the width."""
    found = json.loads(Path(process.__file__).with_suffix(".json").read_text())
    figure = Figure(figsize=(12.4, 3.9))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))

    own = found["ensemble"]["all parameters"]
    row, t = own["row"], own["t"]
    for i, f in enumerate(row["networks"]):
        left.plot(t, f, color="#7FB8DA", linewidth=0.8, label=f"20 networks of width {found['ensemble']['width']}" if i == 0 else None)
    for who, colour, line, name in (("limit ", SAMPLES, "-", "infinite width"), ("", DATA, (0, (2, 2)), f"{own['networks']} networks")):
        mean, deviation = torch.tensor(row[who + "mean"]), torch.tensor(row[who + "variance"]).sqrt()
        for k in (0, -2, 2):
            left.plot(t, mean + k * deviation, color=colour, linestyle=line, linewidth=1.4 if k else 2.2,
                      label=f"{name}: mean, 2 deviations" if k == 0 else None)  # fmt: skip
    left.set(xscale="log", title="Training of all parameters: one target row", xlabel="time", xlim=(t[0], t[-1]))
    low, high = left.get_ylim()
    left.set_ylim(low, high + 0.35 * (high - low))
    left.legend(loc="upper left", fontsize=8.5, handlelength=1.8, borderaxespad=0.1)

    names = {"NNGP": "covariance (NNGP)", "NTK": "tangent kernel", "readout alone": "path, readout trained",
             "all parameters": "path, all trained"}  # fmt: skip
    laws = {"kurtosis": "excess kurtosis", "squares": "correlation of squares", "KS": "distribution function"}
    for axes, keys, power, level, limits, widths, marks, title in (
            (middle, names, -0.5, 6.5, (0.02, 2.2), (16, 64, 256, 1024), ("5 %", "10 %", "20 %", "50 %", "100 %"), "from the limit"),
            (right, laws, -1.0, 45.0, (1.2e-4, 4), (16, 64, 256), ("0.001", "0.01", "0.1", "1"), "from a normal law")):  # fmt: skip
        for (key, name), colour in zip(keys.items(), LABELS, strict=False):
            rows = found["normality" if key in found["normality"][0] else "training"]
            slope, error = found["slopes"][key].values()
            axes.plot([r["width"] for r in rows], [r[key]["value"] for r in rows], "o-", color=colour, linewidth=1.3, markersize=4.5,
                      markeredgecolor="white", markeredgewidth=0.6, label=f"{name}, {slope:.3f} ± {error:.3f}")  # fmt: skip
        guide = torch.tensor([16.0, 1024.0 if axes is middle else 512.0])
        axes.plot(guide, level * guide**power, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"slope {power:g}")
        axes.set(xscale="log", yscale="log", title=f"Distance {title}", xlabel="width", ylim=limits)
        values = [float(mark.removesuffix(" %")) / (100 if mark.endswith("%") else 1) for mark in marks]
        for axis, where, labels in ((axes.xaxis, widths, [f"{width:,}" for width in widths]), (axes.yaxis, values, marks)):
            axis.set_major_locator(FixedLocator(where))
            axis.set_minor_locator(NullLocator())
            axis.set_ticklabels(labels)
        axes.legend(loc="lower left", fontsize=8.5, handlelength=1.6, borderaxespad=0.1)
    return figure


@styled
def few_labels() -> Figure:
    """A function of one variable that has moved and shrunk, from twelve labels; and what a mixture makes of a source."""
    own, n, m, unlabelled = np.random.default_rng(0), 90, 12, 60
    xs, xt = own.uniform(-3, 2, n), own.uniform(-1.2, 2.6, m + unlabelled)
    ys, yt = (truth + 0.15 * own.standard_normal(len(truth)) for truth in (_moved(xs, 1, 0), _moved(xt, 0.8, 0.7)))
    X, domain = np.concatenate([xs, xt])[:, None], np.repeat([1, -1], [n, m + unlabelled])

    def table(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return X, np.concatenate([labels, yt[:m], np.full(unlabelled, np.nan)]), domain

    figure, line = Figure(figsize=(12.4, 3.9)), np.linspace(-1.2, 2.6, 150)
    *panels, last = figure.subplots(1, 4, width_ratios=(1, 1, 1, 0.9))
    models = {"Twelve labels alone": TargetOnlyGP(), "One function, two levels": PooledGP(), "DINO-TRAIN": DINOTrainRegressor()}
    for axes, (title, model) in zip(panels, models.items(), strict=True):
        mean, std = model.fit(*table(ys)).predict(line[:, None], return_std=True)
        axes.plot(xs, ys, ".", color=FAINT, markersize=4, label="source")
        axes.fill_between(line, mean - 1.645 * std, mean + 1.645 * std, color=DATA, alpha=0.18, linewidth=0, label="90 % of new labels")
        axes.plot(line, mean, color=DATA, label="mean")
        axes.plot(line, _moved(line, 0.8, 0.7), color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="truth of the target")
        axes.plot(xt[:m], yt[:m], "o", color=SAMPLES, markeredgecolor="white", label="labels of the target")
        axes.set(title=title, xlim=(-1.2, 2.6), ylim=(-2.4, 4.2), xlabel="x")
        shown = axes.get_legend_handles_labels()[0]  # in order of drawing
        axes.legend(handles=[shown[0], *shown[3:]] if axes is panels[0] else shown[1:3] if axes is panels[1] else [], loc="upper left",
                    fontsize=8.5, handlelength=1.8, borderaxespad=0.1)  # fmt: skip

    shares: dict[str, dict[str, float]] = {}
    for case, labels in (("the source as it is", ys), ("its labels shuffled", own.permutation(ys))):
        mixture = AutoTransferRegressor()
        mixture.fit(*table(labels))
        found = shares.setdefault(f"{case}: {'' if mixture.decision_.transfer else 'do not '}transfer", {})
        for name, weight in mixture.decision_.weights.items():
            process = name.removesuffix(", trained")
            found[process] = found.get(process, 0) + weight
    names = list(next(iter(shares.values())))
    for (label, found), shift, colour in zip(shares.items(), (-0.2, 0.2), (SAMPLES, SOURCE), strict=True):
        last.barh(np.arange(len(names)) + shift, list(found.values()), height=0.38, color=colour, label=label)
    last.set_yticks(range(len(names)), names)
    last.set(title="Weights in the mixture", ylim=(len(names) + 0.3, -0.6))
    last.grid(visible=False, axis="y")
    last.legend(loc="lower right", fontsize=8.5, borderaxespad=0.1)
    return figure


def _moved(x: np.ndarray, scale: float, level: float) -> np.ndarray:
    return scale * np.sin(4 * x) + 0.35 * x + level


DEMO = Path("driftway-demo")
PAGES = {"demo_index": "index.html", "report_transport": "digits/report.html", "report_finetune": "finetune/report.html",
         "report_adapt": "adapt/report.html"}  # fmt: skip
TALL = 1250


def screenshots() -> None:
    """The upper parts of the demo's pages."""
    if not (DEMO / PAGES["demo_index"]).is_file():
        sys.exit(f"no demo in {DEMO}; run `driftway demo` first")
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None) or sys.exit("no chromium on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        for name, page in PAGES.items():
            taken = Path(folder) / "taken.png"
            subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                            f"--user-data-dir={folder}/profile", f"--window-size=1080,{TALL}", f"--screenshot={taken}",
                            (DEMO / page).resolve().as_uri()], check=True, stderr=subprocess.DEVNULL)  # fmt: skip
            with Image.open(taken) as image:
                image.convert("RGB").save(IMAGES / f"{name}.png", optimize=True)


PICTURES = {"few_epochs": (few_epochs, 150), "few_labels": (few_labels, 110), "transport": (transport, 110),
            "finite_width": (finite_width, 150), "gaussian_process_limit": (gaussian_process_limit, 150)}  # fmt: skip


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    if sys.argv[1:] == ["screenshots"]:
        screenshots()
        return
    for name in sys.argv[1:] or PICTURES:
        draw, dots = PICTURES[name]
        draw().savefig(IMAGES / f"{name}.png", dpi=dots)


if __name__ == "__main__":
    main()
