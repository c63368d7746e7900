"""`driftway demo`: two transports trained while you watch, with their reports."""

import shlex
from pathlib import Path
from typing import Annotated

import torch
import typer

from driftway.cli.terminal import out, progress
from driftway.cli.transport import finish
from driftway.data import digits, moons
from driftway.transport import Settings, fit

TASKS = {"moons": "the standard normal to two moons", "digits": "the standard normal to handwritten digits"}


def demo(
    output: Annotated[Path, typer.Option("--out", help="folder of the two runs; a number is added if it is taken")] = Path("driftway-demo"),
    max_seconds: Annotated[float, typer.Option(help="training time of the longer run")] = 75.0,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
) -> None:
    """Train on handwritten digits (scikit-learn's, 8 x 8) and on two moons; print certificates, write reports."""
    folder, number = output, 1
    while folder.exists():
        number += 1
        folder = output.with_name(f"{output.name}-{number}")
    rows = {"moons": moons.sample(4000, generator=torch.Generator().manual_seed(seed)), "digits": digits()[0].reshape(-1, 8, 8)}
    budget = {"moons": max_seconds / 5, "digits": max_seconds}
    command = shlex.join(["driftway", "demo", "--max-seconds", f"{max_seconds:g}", "--seed", str(seed)])
    for name, title in TASKS.items():
        out.print(f"\n[bold]{title}[/bold]: {len(rows[name])} rows of shape {tuple(rows[name].shape[1:])}")
        with progress(None, budget[name]) as on_step:
            model = fit(None, rows[name], max_seconds=budget[name], seed=seed, out=folder / name, on_step=on_step, settings=Settings(width=128))
        finish(model, folder / name, source_is_data=False, names=(), title=title, command=command)
    out.print(f"\nopen {folder / 'digits' / 'report.html'} in a browser; draw samples with\n"
              f"  driftway transport sample {folder / 'digits'} -n 1000 --steps 4 -o samples.npy", soft_wrap=True)  # fmt: skip
