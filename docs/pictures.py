"""The README's picture: `python -m docs.pictures` trains two small models and draws them into docs/images/."""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

from driftway.data import PAIRS, digits
from driftway.transport import Settings, fit

IMAGES = Path(__file__).parent / "images"
PAPER, INK, START, END = "#ffffff", "#333333", "#8a8a8a", "#d95f02"


def main() -> None:
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
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "transport.png", dpi=110)
    assert math.isfinite(float(value.sum()))


if __name__ == "__main__":
    main()
