"""A fine-tuning run by transformers' Trainer that stops at the computed time."""

import errno
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from driftway.cli.tuning import Setup, schedule_name, study_of
from driftway.finetune.intake import PASS, rates
from driftway.finetune.trainer import SpectralStopping
from driftway.report import Study, Training
from driftway.store import naming


@dataclass(frozen=True)
class Hooks:
    """What the command line wants to know of a run.

    Attributes:
        on_study: called as training begins, with what was computed; not in a run that is resumed.
        on_step: called after each step with the part of the run that is done, and a few words.
        interrupted: whether the user has asked to stop.
    """

    on_study: Callable[[Study], None]
    on_step: Callable[[float, str], None]
    interrupted: Callable[[], bool]


class _Watch(TrainerCallback):
    """Tells the command line what happens; on request saves a checkpoint and ends the run."""

    def __init__(self, setup: Setup, spectral: SpectralStopping, hooks: Hooks) -> None:
        self.setup, self.spectral, self.hooks, self.left = setup, spectral, hooks, False

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any) -> None:
        if self.spectral.problem is not None:
            study = study_of(self.setup, self.spectral.problem, rates(lr_scheduler, optimizer, state.max_steps)[0])
            self.hooks.on_study(study)
        state.logging_steps = max(min(self.spectral.stop_step or state.max_steps, state.max_steps) // 50, 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        end = min(self.spectral.stop_step or state.max_steps, state.max_steps)
        self.hooks.on_step(min(state.global_step / max(end, 1), 1.0), f"step {state.global_step}  eta {self.spectral.eta:.3g}")
        if self.hooks.interrupted() and not control.should_training_stop:
            control.should_save = control.should_training_stop = self.left = True


def train(setup: Setup, hooks: Hooks, *, folder: Path, checkpoint: Path | None) -> Training | None:
    """Train the model in place, from a checkpoint if there is one; None if the user stopped it, after a checkpoint in the folder.

    Raises:
        InputError: if the stop cannot be computed.
        OSError: if a checkpoint cannot be written; the one before is kept.
    """
    chosen, texts, language = setup.chosen, setup.texts, setup.language
    descent = chosen.optimizer == "sgd"
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=chosen.batch, max_steps=setup.total, learning_rate=chosen.rate,
        lr_scheduler_type=schedule_name(chosen), warmup_steps=chosen.warmup, optim="sgd" if descent else "adamw_torch",
        max_grad_norm=0.0 if descent else 1.0, label_smoothing_factor=0.1 if chosen.loss == "smoothed" else 0.0, seed=chosen.seed,
        save_strategy="epoch", save_total_limit=1, logging_first_step=True, report_to=[], disable_tqdm=True)  # fmt: skip
    spectral = SpectralStopping(chosen.rule, budget=chosen.budget, rows=chosen.rows, head=setup.fitted, seed=chosen.seed)
    watch = _Watch(setup, spectral, hooks)
    tokens = language.tokenizer(texts.texts, truncation=True, max_length=chosen.length)
    data = [{**{name: column[i] for name, column in tokens.items()}, "labels": label} for i, label in enumerate(texts.labels.tolist())]
    trainer = Trainer(language.model, args, train_dataset=data,  # type: ignore[arg-type] (a list is a data set)
                      data_collator=DataCollatorWithPadding(language.tokenizer), callbacks=[spectral, watch],
                      compute_loss_func=_huber if chosen.loss == "huber" else None)  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    with quiet(), saving(folder):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if watch.left:
        return None
    losses = tuple((float(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry)
    steps = trainer.state.global_step
    return Training(steps, spectral.eta, steps < setup.total, losses, tuple((float(step), change) for step, change in spectral.drifts),
                    (*spectral.report[1:], *setup.notes))  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings, whose sentences are in the report, nor bars of transformers."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Make what safetensors and PyTorch say of a file that cannot be written an error of the system that names the folder."""
    try:
        with naming(folder):
            yield
    except (SafetensorError, RuntimeError) as error:
        known = re.search(r"os error (\d+)", str(error))
        if known is None and "PytorchStreamWriter" not in str(error):
            raise
        full = shutil.disk_usage(folder if folder.exists() else folder.parent).free < 2**20
        number = int(known[1]) if known else errno.ENOSPC if full else errno.EIO
        raise OSError(number, os.strerror(number), str(folder)) from error


@torch.no_grad()
def errors(setup: Setup, texts: list[str], labels: Tensor) -> tuple[tuple[str, float], ...]:
    """Errors of the model on other rows, by name."""
    model, device = setup.language.model.eval(), next(setup.language.model.parameters()).device
    batches = setup.language.batches(texts, size=2 * PASS)
    scores = torch.cat([model(**{name: entry.to(device) for name, entry in batch.items()}).logits.cpu() for batch in batches])
    if setup.texts.classes:
        return (("test error", float((scores.argmax(1) != labels).double().mean())),)
    return (("test error (root mean square)", float((scores.squeeze(1) - labels).square().mean().sqrt())),)


def _huber(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return torch.nn.functional.huber_loss(outputs.logits.squeeze(1), labels.float())
