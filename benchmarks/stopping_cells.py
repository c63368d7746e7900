"""One cell of `stopping_text`: a task, a way of fine-tuning, a split.

MiniLM starts with a random head, as it does for most, and is trained by transformers' Trainer to the end; test rows are scored as it goes.
Nothing that happens before a stop depends on it, so one run serves all rules: the test error of a stop is read off the curve, between two
scored steps in proportion. A second run, on 80 % of the rows, is stopped by transformers' EarlyStoppingCallback on the others, and keeps
its best epoch. Cells are kept as they are done, with the machine that did them, and an interrupted benchmark goes on. A GPU is used where
there is one: its dropout is another draw than that of a CPU.
"""

import json
import math
import time
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.record import here
from benchmarks.texts import Task, task
from driftway.finetune.language import LanguageModel, load_language_model, with_lora
from driftway.finetune.probe import find_stop, problem
from driftway.finetune.trainer import SpectralStopping
from driftway.stopping.crossfit import Validation
from driftway.stopping.schedule import Schedule
from driftway.store import write_file

MODES = ("full adamw", "lora adamw", "full sgd", "lora sgd")
RULES = ("cross_validation", "marginal_likelihood", "sure", "gcv", "discrepancy", "rademacher")
CACHE = Path(__file__).parent / ".cache" / "stopping_text"
SPLITS, N, TEST, BATCH = 5, 160, 200, 16
LENGTHS = {"drug_rating": 64}  # tokens; 32 for the others
EPOCHS = {"full adamw": 5, "lora adamw": 6, "full sgd": 5, "lora sgd": 5}
RATES = {"full adamw": 1e-4, "lora adamw": 2e-3}  # sgd: SHARE of what descent is stable at, 2 / mu_1, one digit
SHARE, MOMENTUM, PATIENCE, HELD = 0.05, 0.9, 2, 0.2
PEER = "EarlyStoppingCallback"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Recorder(TrainerCallback):
    """Scores the test rows after some steps."""

    def __init__(self, marks: set[int], score: Any) -> None:
        self.marks, self.score = marks, score
        self.curve: list[list[float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.curve.append([0, *self.score()])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.marks:
            self.curve.append([state.global_step, *self.score()])


class Watched(SpectralStopping):
    """The callback, going on after its stop, with the stops of all rules on the same clock."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.found: dict[str, Any] = {}
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times: list[float] = []
        began = time.perf_counter()
        super().on_train_begin(args, state, control, **kwargs)
        self.seconds = time.perf_counter() - began
        found, seen = self.problem, self.problem.validation
        schedule, rows = Schedule(args.learning_rate, found.scale), len(found.kernel)
        for rule in RULES:
            stop = find_stop(found, rule, schedule=schedule, rows=rows, batch=BATCH)
            self.found[rule] = {"eta": stop.eta, "predicted": stop.steps, "step": None}
        self.path = {"eta": seen.eta.tolist(), "train": seen.train.tolist(), "held": seen.held.tolist(), "error": seen.error.tolist(),
                     "nominal": seen.nominal.tolist(), "scale": found.scale}  # fmt: skip
        self.stop_eta = math.inf

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, optimizer=optimizer, **kwargs)
        self.times.append(self.eta)
        ahead = self.eta + self.clock.step(optimizer)
        for own in self.found.values():
            if own["step"] is None and own["eta"] > 0 and ahead > own["eta"] * (1 + 1e-9):
                own["step"] = state.global_step


def start(work: Task, mode: str, seed: int, model: Path) -> LanguageModel:
    """The model with a random head, as transformers makes it."""
    language = load_language_model("model", model, outputs=work.outputs, length=length(work), seed=seed)
    language = with_lora(language, seed=seed) if mode.startswith("lora") else language
    language.model.to(DEVICE)
    return language


def length(work: Task) -> int:
    """Tokens of a text."""
    return LENGTHS.get(work.name, 32)


def data(language: LanguageModel, texts: list[str], labels: Tensor) -> list[dict[str, Any]]:
    """Rows for the Trainer, all of one length."""
    tokens = language.tokenizer(texts, truncation=True, max_length=language.length, padding=True)
    return [{**{name: tokens[name][i] for name in ("input_ids", "attention_mask")}, "labels": labels[i].item()} for i in range(len(texts))]


def scorer(language: LanguageModel, texts: list[str], labels: Tensor) -> Any:
    """The mean loss, and the part of wrong classes or the mean squared error."""
    batches = [{name: entry.to(DEVICE) for name, entry in batch.items()} for batch in language.batches(texts, size=32)]
    labels = labels.to(DEVICE)

    def score() -> tuple[float, float]:
        model = language.model
        before = model.training
        model.eval()
        with torch.no_grad():
            f = torch.cat([model(**batch).logits for batch in batches])
        model.train(before)
        if f.shape[1] == 1:
            error = float((f[:, 0] - labels).square().mean())
            return error, error
        return float(torch.nn.functional.cross_entropy(f, labels)), float((f.argmax(1) != labels).float().mean())

    return score


def descent(model: torch.nn.Module, mode: str, lr: float) -> torch.optim.Optimizer:
    """AdamW as transformers has it, or descent with momentum."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if mode.endswith("sgd"):
        return torch.optim.SGD(trained, lr=lr, momentum=MOMENTUM)
    return torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)


def training(lr: float, epochs: float, seed: int, folder: str, **more: Any) -> TrainingArguments:
    return TrainingArguments(folder, per_device_train_batch_size=BATCH, per_device_eval_batch_size=32, learning_rate=lr,
                             num_train_epochs=epochs, seed=seed, report_to=[], lr_scheduler_type="constant",
                             disable_tqdm=True, use_cpu=DEVICE == "cpu", logging_strategy="no",
                             dataloader_pin_memory=False, **{"save_strategy": "no", **more})  # fmt: skip


@cache
def rate(name: str, mode: str, model: Path) -> float:
    """The learning rate of descent for a task: the same for all splits, and for the peer."""
    work = task(name, n=64, test=2, seed=0)
    language = start(work, mode, 0, model)
    found = problem(language.model, language.batches(work.texts), work.labels)
    stable = 2 / float(torch.linalg.eigvalsh(found.kernel)[-1] / 64) / found.scale
    digit = 10 ** math.floor(math.log10(SHARE * stable))
    return round(SHARE * stable / digit) * digit


def cell(name: str, mode: str, seed: int, *, n: int = N, model: Path, label: str = "minilm", epochs: int | None = None,
         peer: bool = True) -> dict[str, Any]:  # fmt: skip
    """One cell, from its file if it is there."""
    path = CACHE / f"{label}-{name}-{mode.replace(' ', '-')}-{n}-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    work, began = task(name, n=n, test=TEST, seed=seed), time.perf_counter()
    epochs = epochs or EPOCHS[mode]
    lr = RATES.get(mode) or rate(name, mode, model)
    language = start(work, mode, seed, model)
    each = math.ceil(n / BATCH)
    marks = {each // 2, each + each // 2} | {each * epoch for epoch in range(1, epochs + 1)}
    watched = Watched(budget=1e6, rows=n, drift_every=max(each // 2, 1), drift_rows=8, seed=seed)
    recorder = Recorder(marks, scorer(language, work.test_texts, work.test_labels))
    with TemporaryDirectory() as folder:
        Trainer(language.model, training(lr, epochs, seed, folder), train_dataset=data(language, work.texts, work.labels),
                callbacks=[recorder, watched], optimizers=(descent(language.model, mode, lr), None)).train()  # fmt: skip
    found = {"task": name, "mode": mode, "seed": seed, "n": n, "model": label, "lr": lr, "epochs": epochs, "steps_per_epoch": each,
             "classes": work.classes, "curve": recorder.curve, "rules": watched.found, "clock": watched.times,
             "path": watched.path, "drifts": watched.drifts, "kernel_seconds": watched.seconds}  # fmt: skip
    found["seconds"] = time.perf_counter() - began
    found["machine"] = f"{torch.cuda.get_device_name()}, torch {torch.__version__}" if DEVICE == "cuda" else here()
    if peer:
        found["peer"] = early_stopping(work, mode, seed, lr, epochs, model)
    write_file(path, (json.dumps(found) + "\n").encode())
    return found


def early_stopping(work: Task, mode: str, seed: int, lr: float, epochs: int, model: Path) -> dict[str, Any]:
    """What transformers' callback gets from 80 % of the rows, with the others to validate on."""
    n, began = len(work.texts), time.perf_counter()
    held = round(HELD * n)
    kept = list(range(held, n))
    language = start(work, mode, seed, model)
    with TemporaryDirectory() as folder:
        args = training(lr, epochs, seed, folder, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
                        metric_for_best_model="eval_loss", greater_is_better=False, save_total_limit=1, save_only_model=True)  # fmt: skip
        trainer = Trainer(language.model, args, train_dataset=data(language, [work.texts[i] for i in kept], work.labels[kept]),
                          eval_dataset=data(language, work.texts[:held], work.labels[:held]),
                          callbacks=[EarlyStoppingCallback(early_stopping_patience=PATIENCE)],
                          optimizers=(descent(language.model, mode, lr), None))  # fmt: skip
        trainer.train()
    loss, error = scorer(language, work.test_texts, work.test_labels)()
    return {"loss": loss, "error": error, "steps": trainer.state.global_step, "best": trainer.state.best_global_step,
            "seconds": time.perf_counter() - began}  # fmt: skip


def read(cell: dict[str, Any], step: int | None, column: int) -> float:
    """Loss (1) or error (2) of the test rows after a step; the end if None."""
    curve = cell["curve"]
    for before, after in pairwise(curve):
        if step is not None and step <= after[0]:
            share = (step - before[0]) / (after[0] - before[0])
            return before[column] * (1 - share) + after[column] * share
    return curve[-1][column]


def hindsight(cell: dict[str, Any], column: int) -> tuple[float, int]:
    """The lowest loss (1) or error (2) after a whole epoch, or before training, and its step."""
    each = cell["steps_per_epoch"]
    return min((entry[column], int(entry[0])) for entry in cell["curve"] if entry[0] % each == 0)


def default_stop(cell: dict[str, Any]) -> int | None:
    """The step at which the default rule ends the run, from the path that the kernel predicted and the clock of the run."""
    path = cell["path"]
    eta = Validation(*(torch.tensor(path[name], dtype=torch.float64) for name in ("eta", "train", "held", "error", "nominal"))).best
    ahead = [*cell["clock"][1:], math.nan]
    return next((number + 1 for number, then in enumerate(ahead) if then > eta * (1 + 1e-9)), None)
