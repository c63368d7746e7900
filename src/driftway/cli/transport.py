"""`driftway transport fit | sample | evaluate`."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from driftway import checks
from driftway.cli.terminal import err, out, progress, say_certificate, say_evaluation
from driftway.data import Table, read_table, writable, write_table
from driftway.report import evaluate as evaluate_model
from driftway.report import write_report
from driftway.transport import Interrupted, Problem, Settings, TransportModel, held_rows
from driftway.transport import fit as fit_transport

app = typer.Typer(no_args_is_help=True, help="Value-driven transport: samples of one law moved to another.")

Run = Annotated[Path, typer.Argument(help="folder of a finished run", metavar="RUN")]
Source = Annotated[Path | None, typer.Option(help="source rows; the standard normal if left out")]
DEFAULT = Settings()


@app.command()
def fit(
    target: Annotated[Path, typer.Option(help="target rows: csv, parquet, npy, or npz (file.npz:key)")],
    output: Annotated[Path, typer.Option("--out", help="folder for checkpoints, model and report")],
    source: Source = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out, bit by bit")] = False,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="stop after this much training time")] = None,
    steps: Annotated[int | None, typer.Option(help="stop after this many training steps")] = None,
    gap: Annotated[float | None, typer.Option(help="stop at this optimality gap, e.g. 0.01")] = None,
    family: Annotated[str, typer.Option(help="auto, mixture or network")] = "auto",
    sigma: Annotated[float, typer.Option(help="noise; 0 is optimal transport, > 0 a Schrödinger bridge")] = 0.0,
    eps: Annotated[float | None, typer.Option(help="entropy of the primal step")] = None,
    horizon: Annotated[int, typer.Option(help="stages of the control problem")] = 20,
    standardize: Annotated[str, typer.Option(help="auto, columns, common or none")] = "auto",
    holdout: Annotated[float, typer.Option(help="fraction of rows kept for certificate and report")] = 0.1,
    checkpoint_seconds: Annotated[float, typer.Option(help="time between checkpoints")] = 30.0,
    width: Annotated[int, typer.Option(help="network: units per layer")] = DEFAULT.width,
    depth: Annotated[int, typer.Option(help="network: layers")] = DEFAULT.depth,
    batch: Annotated[int, typer.Option(help="network: source rows per step")] = DEFAULT.batch,
    candidates: Annotated[int, typer.Option(help="network: target rows per step")] = DEFAULT.candidates,
    lr: Annotated[float, typer.Option(help="network: step size")] = DEFAULT.lr,
    components: Annotated[int, typer.Option(help="mixture: components")] = DEFAULT.components,
    threads: Annotated[int | None, typer.Option(help="of PyTorch; 1 is fastest for small batches on shared cores")] = None,
) -> None:
    """Train a transport, write the model and a report with pictures."""
    if threads is not None:
        torch.set_num_threads(checks.count("threads", threads))
    table, (x, y) = _read_both(source, target)
    settings = replace(DEFAULT, width=width, depth=depth, batch=batch, candidates=candidates, lr=lr, components=components)
    with progress(steps, max_seconds) as on_step:
        try:
            model = fit_transport(
                x, y, problem=Problem(horizon, float(sigma), eps), family=family, steps=steps, max_seconds=max_seconds, gap=gap, seed=seed,
                settings=settings, standardize=standardize, holdout=holdout, checkpoint_seconds=checkpoint_seconds, on_step=on_step,
                out=output, resume=output if resume else None,
            )  # fmt: skip
        except Interrupted as stop:
            words = [word for word in _command() if word != "--resume"]
            again = shlex.join([*words, "--resume"])
            err.print(f"saved in {stop.folder}; continue with: {again}", markup=False, soft_wrap=True)
            raise typer.Exit(130) from None
    title = f"{source.name} to {target.name}" if source else f"the standard normal to {target.name}"
    finish(model, output, source_is_data=x is not None, names=table.names, title=title, command=shlex.join(_command()))


def finish(model: TransportModel, folder: Path, *, source_is_data: bool, names: tuple[str, ...], title: str, command: str) -> None:
    """Save the model, evaluate it on the held-out rows, print the figures, write the report."""
    model = replace(model, training={**model.training, "columns": list(names), "command": command})
    model.save(folder)
    x, y = held_rows(folder)
    evaluation = evaluate_model(model, x if source_is_data else None, y)
    write_report(folder / "report.html", model, evaluation, x, y, command=command, title=title)
    facts = model.training
    out.print(f"{model.family} value, {facts['steps']} steps in {facts['seconds']:.1f} s")
    say_certificate(evaluation.certificate, proven=model.problem.sigma == 0)
    say_evaluation(evaluation)
    out.print(f"model and report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
def sample(
    run: Run,
    output: Annotated[Path, typer.Option("--out", "-o", help="file to write: csv, parquet, npy or npz")],
    n: Annotated[int | None, typer.Option("-n", help="how many samples; 1000, or all source rows, if left out")] = None,
    steps: Annotated[int, typer.Option(help="policy steps")] = 4,
    seed: Annotated[int, typer.Option(help="of the samples")] = 0,
    source: Source = None,
    rule: Annotated[str, typer.Option(help="auto, explicit, proximal or endpoint")] = "auto",
) -> None:
    """Draw samples, or move the rows of a file."""
    output = writable("-o", output)
    model = TransportModel.load(run)
    checks.require(n is None or source is None, "-n", expected="either -n or --source", got="both", cure="leave one out")
    x0 = checks.count("-n", 1000 if n is None else n) if source is None else _tensor(read_table("source", source), model.scaler.shift.dtype)
    z = model.sample(x0, steps=steps, seed=seed, rule=rule).cpu().numpy()
    names = tuple(model.training.get("columns", ()))
    write_table(output, z, names if output.suffix.lower() in (".csv", ".parquet") else ())
    out.print(f"{len(z)} samples: {output}", soft_wrap=True)


@app.command()
def evaluate(
    run: Run,
    target: Annotated[Path, typer.Option(help="held-out target rows")],
    source: Source = None,
    report: Annotated[Path | None, typer.Option(help="also write a report page here")] = None,
    seed: Annotated[int, typer.Option(help="of the samples")] = 0,
) -> None:
    """Quality against steps, with the same-law floor and the certificate, on held-out rows."""
    model = TransportModel.load(run)
    _, (x, y) = _read_both(source, target, dtype=model.scaler.shift.dtype)
    checks.require(model.scaler.noise == (x is None), "source", expected="none, as the run's source is the standard normal"
                   if model.scaler.noise else "held-out source rows", got="none" if x is None else "a file",
                   cure="give what the run was trained with")  # fmt: skip
    evaluation = evaluate_model(model, x, y, seed=seed)
    say_certificate(evaluation.certificate, proven=model.problem.sigma == 0)
    say_evaluation(evaluation)
    if report is not None:
        write_report(report, model, evaluation, x, y, command=shlex.join(_command()), title=f"{target.name} held out")
        out.print(f"report: {report}", soft_wrap=True)


def _command() -> list[str]:
    return ["driftway", *sys.argv[1:]]


def _tensor(table: Table, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(table.values)).to(dtype)


def _read_both(source: Path | None, target: Path, *, dtype: torch.dtype = torch.float32) -> tuple[Table, tuple[Tensor | None, Tensor]]:
    table = read_table("target", target)
    if source is None:
        return table, (None, _tensor(table, dtype))
    other = read_table("source", source)
    checks.require(not (table.names and other.names) or table.names == other.names, "source",
                   expected=f"the columns {', '.join(table.names)}, as the target has", got=", ".join(other.names),
                   cure="give both files the same columns in the same order")  # fmt: skip
    return table, (_tensor(other, dtype), _tensor(table, dtype))
