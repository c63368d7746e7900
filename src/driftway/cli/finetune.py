"""`driftway finetune stop | run`."""

import json
import shutil
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from driftway import checks, store
from driftway.cli import COMMANDS
from driftway.cli.folders import CHECKPOINTS, MODEL, REPORT, RUN, SPECTRUM, STUDY, free, note, noted
from driftway.cli.terminal import err, out, say_study, typed, working
from driftway.cli.tuning import Options, Setup, foresee, prepare
from driftway.data import read_texts
from driftway.report import Study, Training, load_study, save_study, write_stopping_report
from driftway.report.stopping import happened
from driftway.transport.fit import deferred_interrupt

app = typer.Typer(no_args_is_help=True, add_completion=False, help=COMMANDS["finetune"])

Model = Annotated[Path, typer.Option(help="folder of a transformers model or a PEFT adapter, or a .gguf file")]
Data = Annotated[Path, typer.Option(help="training rows: csv, tsv, parquet, or a folder saved by datasets")]
Out = Annotated[Path, typer.Option("--out", help="folder for what comes out")]
Text = Annotated[str, typer.Option(help="column with the texts")]
Label = Annotated[str, typer.Option(help="column with the labels")]
Kind = Annotated[str, typer.Option(help="of the labels: auto, classes or numbers")]
Split = Annotated[str | None, typer.Option(help="of a datasets folder with several; train if left out")]
Scope = Annotated[str, typer.Option(help="what is trained: all, attention, mlp, head, ..., a glob, or several with commas")]
Rule = Annotated[str, typer.Option(help="cross_validation, marginal_likelihood, rademacher, discrepancy, sure or gcv")]
Optimizer = Annotated[str, typer.Option(help="sgd or adamw")]
Rate = Annotated[float | None, typer.Option(help="learning rate; 5e-5 for adamw, 1e-3 with --lora, 1e-2 for sgd, if left out")]
Batch = Annotated[int, typer.Option(help="rows of a step")]
Epochs = Annotated[float, typer.Option(help="length of the schedule")]
Form = Annotated[str, typer.Option(help="of the learning rate: constant, linear or cosine")]
Warmup = Annotated[int, typer.Option(help="steps of a linear warm-up")]
Loss = Annotated[str, typer.Option(help="auto (cross entropy or squared error), smoothed (labels) or huber (numbers)")]
Head = Annotated[str, typer.Option(help="probe (fitted first), zero, random, or keep the model's; auto: keep, or random")]
Lora = Annotated[int | None, typer.Option(help="train adapters of this rank, and the head")]
Length = Annotated[int, typer.Option(help="tokens of a text, above which it is cut")]
Budget = Annotated[float, typer.Option(help="seconds for the kernel")]
Rows = Annotated[int, typer.Option(help="most rows of the kernel")]
Seed = Annotated[int, typer.Option(help="of everything random")]
Threads = Annotated[int | None, typer.Option(help="of PyTorch")]
FORESEEN = (STUDY, SPECTRUM, REPORT)  # by `stop`, which may be done again


@app.command()
def stop(model: Model, data: Data, output: Out, text: Text = "text", label: Label = "label", kind: Kind = "auto", split: Split = None,
         scope: Scope = "trainable", rule: Rule = "cross_validation", optimizer: Optimizer = "adamw", lr: Rate = None, batch: Batch = 16,
         epochs: Epochs = 10.0, schedule: Form = "constant", warmup: Warmup = 0, loss: Loss = "auto", head: Head = "auto",
         lora: Lora = None, length: Length = 128, budget: Budget = 120.0, rows: Rows = 1024, seed: Seed = 0,
         threads: Threads = None) -> None:  # fmt: skip
    """Compute when to stop, without training."""
    _use(threads)
    chosen = Options(model, data, output, text, label, kind, split, scope, rule, optimizer, lr, batch, epochs, schedule, warmup, loss,
                     head, lora, length, budget, rows, seed)  # fmt: skip
    with store.writing("out", output):
        _free(output)
        with working("computing the kernel", total=None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setup = prepare(chosen)
            study = foresee(setup)
        _save(setup, study)
        say_study(study)
        _report(setup, study)


@app.command()
def run(model: Model, data: Data, output: Out, text: Text = "text", label: Label = "label", kind: Kind = "auto", split: Split = None,
        scope: Scope = "trainable", rule: Rule = "cross_validation", optimizer: Optimizer = "adamw", lr: Rate = None, batch: Batch = 16,
        epochs: Epochs = 10.0, schedule: Form = "constant", warmup: Warmup = 0, loss: Loss = "auto", head: Head = "auto",
        lora: Lora = None, length: Length = 128, budget: Budget = 120.0, rows: Rows = 1024, seed: Seed = 0,
        threads: Threads = None,
        test: Annotated[Path | None, typer.Option(help="rows to measure the error on, with the same columns")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False) -> None:  # fmt: skip
    """Fine-tune, and stop at the computed time."""
    _use(threads)
    chosen = Options(model, data, output, text, label, kind, split, scope, rule, optimizer, lr, batch, epochs, schedule, warmup, loss,
                     head, lora, length, budget, rows, seed)  # fmt: skip
    with store.writing("out", output):
        if resume:
            _same(chosen)
        else:
            _free(output)
        _run(chosen, test, resume=resume)


def _run(chosen: Options, test: Path | None, *, resume: bool) -> None:
    """A run in a folder that nobody else writes to."""
    output = chosen.output
    checkpoint = _checkpoint(output) if resume else None
    setup = prepare(chosen, resumed=checkpoint is not None)
    from driftway.cli.training import Hooks, errors, quiet, saving, train  # late: it imports transformers

    held = None if test is None else read_texts("test", test, text=chosen.text, label=chosen.label, classes=setup.texts.classes)

    def on_study(study: Study) -> None:
        _save(setup, study)
        note(output / RUN, {"options": chosen.written, "finished": False})
        say_study(study)

    with deferred_interrupt() as interrupted, working("training") as on_step:
        training = train(setup, Hooks(on_study, on_step, interrupted), folder=output / CHECKPOINTS, checkpoint=checkpoint)
    if training is None:
        err.print(f"saved in {output}; continue with: {typed(again=True)}", markup=False, soft_wrap=True)
        raise typer.Exit(130)
    with quiet(), saving(output):
        _save_model(setup)
    if held is not None:
        training = replace(training, test=errors(setup, held.texts, held.labels))
    study = load_study(output / SPECTRUM)
    for sentence in training.remarks:
        if sentence not in study.stop.violations:
            out.print(f"- {sentence}", markup=False, soft_wrap=True)
    out.print(happened(study, training), markup=False, soft_wrap=True, style="bold")
    out.print(f"model: {output / MODEL}", markup=False, soft_wrap=True)
    _report(setup, study, training)
    note(output / RUN, {"options": chosen.written, "finished": True, **asdict(training)})  # last: until now it can be resumed
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)


def _use(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(checks.count("threads", threads))


def _free(folder: Path) -> None:
    """An error if there is a run in the folder."""
    free(folder, (*FORESEEN, CHECKPOINTS), cure="continue that run by --resume, or name another folder")


def _same(chosen: Options) -> None:
    """An error unless the folder holds a run with these options that is not finished."""
    checks.require((chosen.output / RUN).is_file(), "resume", expected=f"a run to continue in {chosen.output}", got=f"no {RUN} there",
                   cure="leave out --resume")  # fmt: skip
    held = noted(chosen.output)
    checks.require("finished" in held and isinstance(held.get("options"), dict), "resume", expected=f"a fine-tuning run in {chosen.output}",
                   got=f"another, or a damaged {RUN}", cure="name another folder")  # fmt: skip
    if held["finished"]:
        shutil.rmtree(chosen.output / CHECKPOINTS, ignore_errors=True)  # if it was killed after its end
    checks.require(not held["finished"], "resume", expected="a run that was interrupted", got=f"a finished one in {chosen.output}",
                   cure="name another folder")  # fmt: skip
    other = {name: value for name, value in held["options"].items() if name != "output" and value != chosen.written.get(name)}
    checks.require(not other, "resume", expected="the options of the run, " + ", ".join(f"{name}={value}" for name, value in other.items()),
                   got=", ".join(f"{name}={chosen.written.get(name)}" for name in other), cure="pass the same ones")  # fmt: skip


def _checkpoint(folder: Path) -> Path | None:
    """The newest that is whole; None if there is none. Others are removed: a run would add its files to them."""
    whole = []
    for path in (folder / CHECKPOINTS).glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text())  # written last
            whole.append(path)
        except (OSError, json.JSONDecodeError, UnicodeDecodeError):
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _save(setup: Setup, study: Study) -> None:
    save_study(setup.chosen.output / SPECTRUM, study)
    note(setup.chosen.output / STUDY, {"command": typed(), "options": setup.chosen.written, **study.plain()})


def _save_model(setup: Setup) -> None:
    """The model and its tokenizer, in their place only when they are whole."""
    place = setup.chosen.output / MODEL
    partial = place.with_name(f".{MODEL}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        setup.language.model.save_pretrained(partial)  # type: ignore[operator] (a model of transformers or peft)
        setup.language.tokenizer.save_pretrained(partial)
        shutil.rmtree(place, ignore_errors=True)  # of this run, if it was killed after this
        partial.replace(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _report(setup: Setup, study: Study, training: Training | None = None) -> None:
    path = setup.chosen.output / REPORT
    title = f"{setup.chosen.data.name} on {setup.chosen.model.name}" + (": when to stop" if training is None else "")
    write_stopping_report(path, study, command=typed(), title=title, settings=setup.settings, training=training)
    out.print(f"report: {path}", markup=False, soft_wrap=True)
