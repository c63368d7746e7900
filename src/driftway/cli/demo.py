"""`driftway demo`: two transports trained while you watch, with their reports."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from driftway.cli.terminal import out, progress
from driftway.cli.transport import finish
from driftway.data import Law, digits, moons, standard_normal
from driftway.transport import Settings, TransportModel, fit

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--out", help="folder of the two runs; a number is added if it is taken")] = Path("driftway-demo"),
    max_seconds: Annotated[float, typer.Option(help="training time of the longer run")] = 75.0,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
) -> None:
    """Train on handwritten digits (scikit-learn's, 8 x 8) and on two moons; print certificates, write reports."""
    torch.set_num_threads(1)  # batches this small gain nothing from more, and lose much where cores are shared
    folder, number = output, 1
    while folder.exists():
        number += 1
        folder = output.with_name(f"{output.name}-{number}")
    command = shlex.join(["driftway", "demo", "--max-seconds", f"{max_seconds:g}", "--seed", str(seed)])

    def run(name: str, title: str, source: Callable | None, target: Callable | torch.Tensor, seconds: float,
            labels: torch.Tensor | None = None) -> None:  # fmt: skip
        out.print(f"\n[bold]{title}[/bold], {seconds:g} s of training")
        with progress(None, seconds) as on_step:
            model: TransportModel = fit(source, target, labels=labels, max_seconds=seconds, seed=seed, out=folder / name, on_step=on_step,
                                        settings=Settings(width=128))  # fmt: skip
        finish(model, folder / name, source_is_data=source is not None, names=(), title=title, command=command)

    run("moons", "the standard normal to two moons", _sampler(standard_normal(2)), _sampler(moons), max_seconds / 5)
    pixels, labels = digits()
    run("digits", "the standard normal to handwritten digits", None, pixels.reshape(-1, 8, 8), max_seconds, labels)
    sample = f"driftway transport sample {folder / 'digits'} --label 7 --guidance 1.5 --steps 4 -o sevens.png"
    out.print(f"\nopen {folder / 'digits' / 'report.html'} in a browser; draw sevens with\n  {sample}", soft_wrap=True)


def _sampler(law: Law) -> Callable[[int, torch.Generator], torch.Tensor]:
    return lambda n, generator: law.sample(n, generator=generator)
