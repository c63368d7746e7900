"""`driftway adapt fit | predict`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from driftway import checks, store
from driftway.adapt.explain import Explanation, explain
from driftway.adapt.folder import save
from driftway.adapt.scale import APPROXIMATIONS
from driftway.cli import COMMANDS
from driftway.cli.adapting import METHODS, Options, Prepared, prepare
from driftway.cli.adapting import fit as fit_rows
from driftway.cli.folders import REPORT, RUN, free, note, noted
from driftway.cli.predicting import predict as predict_rows
from driftway.cli.predicting import table_of
from driftway.cli.terminal import err, out, say_adaptation, typed, working
from driftway.data import writable, write_table
from driftway.report import adapt as page

app = typer.Typer(no_args_is_help=True, add_completion=False, help=COMMANDS["adapt"])


@app.command()
def fit(
    target: Annotated[Path, typer.Option(help="rows of the target: csv, tsv or parquet; an empty cell of --y is a row without label")],
    y: Annotated[list[str], typer.Option("--y", help="column to predict; several with commas, or repeated")],
    output: Annotated[Path, typer.Option("--out", help="folder for model and report")],
    source: Annotated[list[Path] | None, typer.Option(help="labelled rows of a source, with the same columns; repeat for several")] = None,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "auto",
    weight: Annotated[str | None, typer.Option(help="column with weights of rows")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="column to leave out; several with commas, or repeated")] = None,
    steps: Annotated[int, typer.Option(help="quasi-Newton steps of a fit, at most")] = 40,
    approximation: Annotated[str, typer.Option(help=f"{', '.join(APPROXIMATIONS)}; auto: exact up to 5,000 labelled rows")] = "auto",
    features: Annotated[int, typer.Option(help="that rows far from the target are summarised by, beyond 5,000")] = 1000,
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    threads: Annotated[int, typer.Option(help="of PyTorch; 1 is fastest up to some thousand rows")] = 1,
) -> None:
    """Fit, say whether transfer pays, write the model and a report with pictures."""
    _use(threads)
    chosen = Options(tuple(source or ()), target, tuple(y), output, method, weight, tuple(drop or ()), steps, seed, approximation,
                     features)  # fmt: skip
    report = output / REPORT
    with store.writing("out", output):
        free(output, _halves(output))
        rows = prepare(chosen)
        with working("fitting", total=None):
            estimator = fit_rows(chosen, rows)
            explanation = explain(estimator, domains=rows.domains, seed=seed)
        _write(chosen, rows, explanation)
        title = f"{', '.join(rows.outputs[:3])} of {target.name}" + (f" from {', '.join(rows.domains[1:4])}" if source else "")
        page.write_adaptation_report(report, explanation, command=typed(), title=title, settings=_settings(chosen, rows), rows=rows.rows)
        save(estimator, output)  # last: without it the rest is no run
    say_adaptation(explanation, rows.remarks)
    out.print(f"model and report: {report}", markup=False, soft_wrap=True)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="folder that `driftway adapt fit` wrote", metavar="RUN")],
    data: Annotated[Path, typer.Argument(help="rows of the target: csv, tsv or parquet, with the columns of the fit", metavar="DATA")],
    output: Annotated[Path, typer.Option("--out", "-o", help="file to write: csv, parquet, npy or npz")],
    level: Annotated[float, typer.Option(help="of the intervals")] = 0.9,
    threads: Annotated[int, typer.Option(help="of PyTorch; 1 is fastest up to some thousand rows")] = 1,
) -> None:
    """Predict: mean, standard deviation and the ends of an interval for every row, of the label with its noise."""
    _use(threads)
    output = writable("-o", output)
    checks.require(output.suffix.lower() != ".png", "-o", expected="a table", got=str(output), cure="name a .csv or .parquet file")
    level = checks.real("level", level, least=0, strict=True)
    checks.require(level < 1, "level", expected="a number between 0 and 1", got=f"{level:g}", cure="pass --level 0.9 for 90 %")
    found = predict_rows(run, data, level)
    write_table(output, found.values, found.names if output.suffix.lower() in (".csv", ".parquet") else ())
    for sentence in found.remarks:
        err.print(f"- {sentence}", markup=False, soft_wrap=True)
    out.print(f"{len(found.values)} predictions: {output}", markup=False, soft_wrap=True)


def _use(threads: int) -> None:
    torch.set_num_threads(checks.count("threads", threads))


def _halves(folder: Path) -> tuple[str, ...]:
    """Files that a fit left which did not come to its end."""
    return (RUN, REPORT, store.TENSORS) if "table" in noted(folder) and not (folder / store.CONFIG).exists() else ()


def _settings(chosen: Options, rows: Prepared) -> dict[str, object]:
    """For the report."""
    levels = sum(map(len, rows.encoding.levels.values()))
    return {"method": chosen.method, "sources": ", ".join(map(str, chosen.source)) or None, "target": str(chosen.target),
            "rows": len(rows.X), "columns": len(rows.encoding.columns), "of text": f"{len(rows.encoding.levels)}, with {levels} levels",
            "weights": chosen.weight, "dropped": ", ".join(chosen.drop) or None, "steps": chosen.steps,
            "approximation": chosen.approximation, "seed": chosen.seed}  # fmt: skip


def _write(chosen: Options, rows: Prepared, explanation: Explanation) -> None:
    decision = explanation.decision
    known = {"command": typed(), "options": chosen.written, "table": table_of(rows.encoding, rows.outputs),
             "verdict": page.verdict(explanation), "remarks": [*rows.remarks, *page.remarks(explanation)],
             "decision": None if decision is None else asdict(decision)}  # fmt: skip
    note(chosen.output / RUN, known)
