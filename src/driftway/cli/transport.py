"""`driftway transport fit | sample | evaluate`."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from driftway import checks, store
from driftway.cli import COMMANDS
from driftway.cli.folders import REPORT, free
from driftway.cli.terminal import err, out, progress, say_certificate, say_evaluation, typed
from driftway.data import Table, read_images, read_labelled, read_table, writable, write_table
from driftway.parallel import launched
from driftway.report import evaluate as evaluate_model
from driftway.report import write_report
from driftway.transport import Interrupted, Problem, Settings, TransportModel, held_labels, held_rows
from driftway.transport import fit as fit_transport
from driftway.transport.checkpoint import CHECKPOINT

app = typer.Typer(no_args_is_help=True, add_completion=False, help=COMMANDS["transport"])

Run = Annotated[Path, typer.Argument(help="folder of a finished run", metavar="RUN")]
Source = Annotated[Path | None, typer.Option(help="source rows; the standard normal if left out")]
DEFAULT = Settings()


@app.command()
def fit(
    target: Annotated[Path, typer.Option(help="target rows: csv, parquet, npy, npz (file.npz:key), or a folder of images")],
    output: Annotated[Path, typer.Option("--out", help="folder for checkpoints, model and report")],
    source: Source = None,
    labels: Annotated[str | None, typer.Option(help="column (npz: key) with labels; 'folder': sub-folders of images")] = None,
    source_labels: Annotated[str | None, typer.Option(help="the same for a source whose rows are to keep their label")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out, bit by bit")] = False,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    max_seconds: Annotated[float | None, typer.Option(help="stop after this much training time")] = None,
    steps: Annotated[int | None, typer.Option(help="stop after this many training steps")] = None,
    gap: Annotated[float | None, typer.Option(help="stop at this optimality gap, e.g. 0.01")] = None,
    family: Annotated[str, typer.Option(help="auto, mixture, network, residual, vector or image")] = "auto",
    sigma: Annotated[float, typer.Option(help="noise; 0 is optimal transport, > 0 a Schrödinger bridge")] = 0.0,
    eps: Annotated[float | None, typer.Option(help="entropy of the primal step")] = None,
    horizon: Annotated[int, typer.Option(help="stages of the control problem")] = 20,
    standardize: Annotated[str, typer.Option(help="auto, columns, common or none")] = "auto",
    holdout: Annotated[float, typer.Option(help="fraction of rows kept for certificate and report")] = 0.1,
    checkpoint_seconds: Annotated[float, typer.Option(help="time between checkpoints")] = 30.0,
    width: Annotated[int | None, typer.Option(help="networks: units per layer; 64 or 256 if left out")] = DEFAULT.width,
    depth: Annotated[int, typer.Option(help="networks: layers")] = DEFAULT.depth,
    batch: Annotated[int, typer.Option(help="networks: source rows per step")] = DEFAULT.batch,
    candidates: Annotated[int, typer.Option(help="networks: target rows per step")] = DEFAULT.candidates,
    lr: Annotated[float, typer.Option(help="networks: step size")] = DEFAULT.lr,
    components: Annotated[int, typer.Option(help="mixture: components")] = DEFAULT.components,
    precision: Annotated[str, typer.Option(help="image: float32, or bfloat16 on GPUs")] = DEFAULT.precision,
    compiled: Annotated[bool, typer.Option("--compile", help="image: translate the U-Net by torch.compile, for long runs")] = False,
    base: Annotated[int, typer.Option(help="image: channels of the first level")] = DEFAULT.base,
    dropout: Annotated[float, typer.Option(help="with labels: fraction of the states that learn the whole law")] = DEFAULT.dropout,
    threads: Annotated[int | None, typer.Option(help="of PyTorch; 1 is fastest for small batches on shared cores")] = None,
) -> None:
    """Train a transport, write the model and a report with pictures."""
    if threads is not None:
        torch.set_num_threads(checks.count("threads", threads))
    group = launched()
    rows, other = _read_both(source, target, labels=labels, source_labels=source_labels)
    device = group.accelerator.device if group.accelerator else "cpu"
    x, y = (None if side is None else side.values.to(device) for side in (other, rows))
    settings = replace(DEFAULT, width=width, depth=depth, batch=batch, candidates=candidates, lr=lr, components=components, base=base,
                       dropout=dropout, precision=precision, compiled=compiled)  # fmt: skip
    with store.writing("out", output) if group.main else nullcontext():
        if not resume:
            own = (CHECKPOINT, store.CONFIG, store.TENSORS)  # of these a fit says more
            free(output, (*own, REPORT) if (output / CHECKPOINT).exists() else own)
        with progress(steps, max_seconds, shown=group.main) as on_step:
            try:
                model = fit_transport(
                    x, y, labels=rows.labels, source_labels=None if other is None else other.labels,
                    problem=Problem(horizon, float(sigma), eps), family=family,
                    steps=steps, max_seconds=max_seconds, gap=gap, seed=seed, settings=settings, standardize=standardize,
                    holdout=holdout, checkpoint_seconds=checkpoint_seconds, on_step=on_step, out=output,
                    resume=output if resume else None, group=group,
                )  # fmt: skip
            except Interrupted as stop:
                err.print(f"saved in {stop.folder}; continue with: {typed(again=True)}", markup=False, soft_wrap=True)
                raise typer.Exit(130) from None
        if not group.main:
            return
        title = f"{source.name} to {target.name}" if source else f"the standard normal to {target.name}"
        finish(model, output, source_is_data=x is not None, names=rows.names, title=title, command=typed())


def finish(model: TransportModel, folder: Path, *, source_is_data: bool, names: tuple[str, ...], title: str, command: str) -> None:
    """Save the model, evaluate it on the held-out rows, print the figures, write the report."""
    model = replace(model, training={**model.training, "columns": list(names), "command": command})
    model.save(folder)
    (x, y), labels = held_rows(folder), held_labels(folder)
    evaluation = evaluate_model(model, x if source_is_data else None, y, labels=labels)
    write_report(folder / "report.html", model, evaluation, x, y, command=command, title=title, labels=labels)
    facts = model.training
    out.print(f"{model.family} value, {facts['steps']} steps in {facts['seconds']:.1f} s")
    say_certificate(evaluation.certificate, proven=model.problem.sigma == 0)
    say_evaluation(evaluation)
    out.print(f"model and report: {folder / 'report.html'}", soft_wrap=True)


@app.command()
def sample(
    run: Run,
    output: Annotated[Path, typer.Option("--out", "-o", help="file to write: csv, parquet, npy, npz, or png for images")],
    n: Annotated[int | None, typer.Option("-n", help="how many samples; 1000 (png: 100), or all source rows, if left out")] = None,
    steps: Annotated[int, typer.Option(help="policy steps")] = 4,
    label: Annotated[str | None, typer.Option(help="label of the samples; condition vectors as numbers with commas")] = None,
    guidance: Annotated[float, typer.Option(help="1 none; more exaggerates the label")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the samples")] = 0,
    source: Source = None,
    rule: Annotated[str, typer.Option(help="auto, explicit, proximal or endpoint")] = "auto",
    reverse: Annotated[bool, typer.Option("--reverse", help="move target rows, given as --source, back to the source")] = False,
) -> None:
    """Draw samples, or move the rows of a file."""
    output = writable("-o", output)
    model = TransportModel.load(run)
    model = model.reverse() if reverse else model
    checks.require(n is None or source is None, "-n", expected="either -n or --source", got="both", cure="leave one out")
    few = 100 if output.suffix.lower() == ".png" else 1000
    rows = None if source is None else _read("source", source, None, dtype=model.scaler.shift.dtype).values
    x0 = checks.count("-n", few if n is None else n) if rows is None else rows
    z = model.sample(x0, steps=steps, label=_label(model, label), guidance=float(guidance), seed=seed, rule=rule).cpu().numpy()
    names = tuple(model.training.get("columns", ()))
    write_table(output, z, names if output.suffix.lower() in (".csv", ".parquet") else ())
    out.print(f"{len(z)} samples: {output}", soft_wrap=True)


@app.command()
def evaluate(
    run: Run,
    target: Annotated[Path, typer.Option(help="held-out target rows")],
    source: Source = None,
    labels: Annotated[str | None, typer.Option(help="column (npz: key) with the target's labels, or 'folder'")] = None,
    report: Annotated[Path | None, typer.Option(help="also write a report page here")] = None,
    seed: Annotated[int, typer.Option(help="of the samples")] = 0,
    kernel: Annotated[str, typer.Option(help="of the distance beside W2 (MMD): rbf, nngp or ntk")] = "rbf",
) -> None:
    """Quality against steps, with the same-law floor and the certificate, on held-out rows."""
    checks.require(report is None or (report.name != "" and not report.is_dir()), "--report", expected="a file to write", got=str(report),
                   cure="name it, e.g. --report report.html")  # fmt: skip
    model = TransportModel.load(run)
    rows, other = _read_both(source, target, labels=labels, dtype=model.scaler.shift.dtype)
    checks.require(model.scaler.noise == (other is None), "source", expected="none, as the run's source is the standard normal"
                   if model.scaler.noise else "held-out source rows", got="none" if other is None else "a file",
                   cure="give what the run was trained with")  # fmt: skip
    x, y = None if other is None else other.values, rows.values
    evaluation = evaluate_model(model, x, y, labels=rows.labels, seed=seed, kernel=kernel)
    say_certificate(evaluation.certificate, proven=model.problem.sigma == 0)
    say_evaluation(evaluation)
    if report is not None:
        write_report(report, model, evaluation, x, y, command=typed(), title=f"{target.name} held out",
                     labels=rows.labels)  # fmt: skip
        out.print(f"report: {report}", soft_wrap=True)


@dataclass(frozen=True)
class Rows:
    """One side's data: rows, the names of their columns, and their labels."""

    values: Tensor
    names: tuple[str, ...]
    labels: list[str] | None


def _label(model: TransportModel, label: str | None) -> str | list[float] | None:
    """A label from the command line: the name of a class, or a vector."""
    if label is None or not model.conditions.shift:
        return label
    try:
        return [float(entry) for entry in label.split(",")]
    except ValueError:
        raise checks.InputError("--label", expected=f"{len(model.conditions.shift)} numbers with commas", got=repr(label),
                                cure="write e.g. --label 0.5,1") from None  # fmt: skip


def _read(argument: str, path: Path, labels: str | None, *, dtype: torch.dtype) -> Rows:
    if labels is not None:
        found = read_labelled(argument, path, labels=labels)
        table, names = found.table, [found.classes[i] for i in found.labels]
    else:
        table = Table(read_images(argument, path).values, (), path) if path.is_dir() else read_table(argument, path)
        names = None
    return Rows(torch.as_tensor(np.ascontiguousarray(table.values)).to(dtype), table.names, names)


def _read_both(source: Path | None, target: Path, *, labels: str | None, source_labels: str | None = None,
               dtype: torch.dtype = torch.float32) -> tuple[Rows, Rows | None]:  # fmt: skip
    rows = _read("target", target, labels, dtype=dtype)
    checks.require(source is not None or source_labels is None, "--source-labels", expected="none without --source", got=source_labels,
                   cure="name the source, or leave it out")  # fmt: skip
    if source is None:
        return rows, None
    other = _read("source", source, source_labels, dtype=dtype)
    checks.require(not (rows.names and other.names) or rows.names == other.names, "source",
                   expected=f"the columns {', '.join(rows.names)}, as the target has", got=", ".join(other.names),
                   cure="give both files the same columns in the same order")  # fmt: skip
    return rows, other
