"""`driftway demo`: all three parts on data that is there, with a report of each and a page that leads to them."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from driftway import checks
from driftway.cli.showing import show_adapt, show_digits, show_moons
from driftway.cli.showing_finetune import show_finetune
from driftway.cli.terminal import err, out
from driftway.report.index import Entry, write_index

app = typer.Typer(add_completion=False)
QUICK = {"seconds": 2.0, "epochs": 20, "steps": 4}


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--out", help="folder of the runs; a number is added if it is taken")] = Path("driftway-demo"),
    max_seconds: Annotated[float, typer.Option(help="training time of the longest run")] = 60.0,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a few seconds for each, to see that it works")] = False,
) -> None:
    """Move points, generate digits, stop a fine-tuning in time, and regress from few labels; write reports, and a page to open."""
    seconds = QUICK["seconds"] if quick else checks.real("max-seconds", max_seconds, least=0, strict=True)
    checks.count("seed", seed, least=0)
    torch.set_num_threads(1)  # batches this small gain nothing from more, and lose much where cores are shared
    folder, number = output, 1
    while folder.exists():
        number += 1
        folder = output.with_name(f"{output.name}-{number}")
    asked = ["--quick"] if quick else ["--max-seconds", f"{max_seconds:g}"]
    command, began = shlex.join(["driftway", "demo", *asked, "--seed", str(seed)]), time.perf_counter()
    shared = {"seed": seed, "command": command}
    epochs, steps = ({"epochs": QUICK["epochs"]}, {"steps": QUICK["steps"]}) if quick else ({}, {})
    entries, said = [], []

    def say(sentence: str) -> None:
        if sentence not in said:
            out.print(sentence, markup=False, soft_wrap=True)
        said.append(sentence)

    parts: list[tuple[str, Callable[[], Entry]]] = [
        (f"1 of 4: two moons to eight Gaussians, {seconds / 6:.3g} s of training",
         lambda: show_moons(folder / "moons", seconds=seconds / 6, **shared)),
        (f"2 of 4: handwritten digits from noise, {seconds:.3g} s of training",
         lambda: show_digits(folder / "digits", seconds=seconds, **shared)),
        ("3 of 4: when to stop fine-tuning", lambda: show_finetune(folder / "finetune", say=say, **shared, **epochs)),
        ("4 of 4: regression with few labels", lambda: show_adapt(folder / "adapt", **shared, **steps)),
    ]  # fmt: skip
    try:
        for title, show in parts:
            out.print(f"\n[bold]{title}[/bold]", soft_wrap=True)
            entries.append(show())
            for sentence in entries[-1].found:
                say(sentence)
    except KeyboardInterrupt:
        err.print(f"stopped; what is finished is in {folder}", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    index, spent = folder / "index.html", time.perf_counter() - began
    verdict = ["Samples moved from one law to another, a stop of fine-tuning known before it begins, and a regression that says whether "
               f"old records help: four runs on small data, made in {spent:.0f} seconds by one command."]  # fmt: skip
    write_index(index, entries, command=command, title="driftway, on data that is there", verdict=verdict,
                settings={"training time (s)": seconds, "seed": seed})  # fmt: skip
    sample = f"driftway transport sample {shlex.quote(str(folder / 'digits'))} --label 7 --guidance 1.5 --steps 4 -o sevens.png"
    out.print(f"\ndone in {spent:.0f} s; draw sevens with\n  {sample}", markup=False, soft_wrap=True)
    out.print(f"open in a browser: {index}", markup=False, soft_wrap=True)
