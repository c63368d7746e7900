"""What `driftway finetune` does: from options to a model with its head, to a study, to a training run. transformers is imported late."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from driftway.checks import choice, count, real, require
from driftway.checks import seed as checked_seed
from driftway.data import Texts, read_texts
from driftway.finetune import Schedule
from driftway.finetune.heads import Head, head, one_hot
from driftway.finetune.intake import PASS, rates
from driftway.finetune.language import LanguageModel, load_language_model, with_lora
from driftway.finetune.probe import ENOUGH, LEAST, Problem, affordable, find_stop, problem_of
from driftway.kernels.tangent.scope import select
from driftway.report import Study
from driftway.stopping.stop import ALONE

HEADS, SCHEDULES, OPTIMIZERS = ("auto", "probe", "zero", "random", "keep"), ("constant", "linear", "cosine"), ("sgd", "adamw")
LOSSES = {
    "auto": "",
    "smoothed": "labels are smoothed by 0.1: the stop is that of the plain cross entropy",
    "huber": "the loss is Huber's: the stop is that of the squared loss, with which it agrees for errors below 1 only",
}


@dataclass(frozen=True)
class Options:
    """What was asked for; the names are those of the command line."""

    model: Path
    data: Path
    output: Path
    text: str
    label: str
    kind: str
    split: str | None
    scope: str
    rule: str
    optimizer: str
    lr: float | None
    batch: int
    epochs: float
    schedule: str
    warmup: int
    loss: str
    head: str
    lora: int | None
    length: int
    budget: float
    rows: int
    seed: int

    def __post_init__(self) -> None:
        """Check what can be checked before the work.

        Raises:
            InputError: if a name is unknown or a number out of range.
        """
        for name, known in (("rule", ALONE), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("loss", tuple(LOSSES)), ("head", HEADS)):
            choice(name, getattr(self, name), known)
        for name, least in (("batch", 1), ("warmup", 0), ("length", 2), ("rows", LEAST)):
            count(name, getattr(self, name), least=least)
        checked_seed("seed", self.seed)
        for name in ("epochs", "budget", *(() if self.lr is None else ("lr",))):
            real(name, getattr(self, name), least=0, strict=True)
        if self.lora is not None:
            count("lora", self.lora)
            require(self.scope in ("trainable", "lora"), "scope", expected="trainable or lora, with adapters", got=repr(self.scope),
                    cure="leave out --scope, or --lora")  # fmt: skip

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.lr or (1e-2 if self.optimizer == "sgd" else 1e-3 if self.lora else 5e-5)

    @property
    def written(self) -> dict[str, Any]:
        """As text and numbers."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Setup:
    """A model ready to train, and its data.

    Attributes:
        chosen: the options.
        texts: training rows.
        language: the model, with its head, with adapters if there are such, all else frozen.
        head: the kind of head.
        fitted: the head, where it was fitted to the training rows.
    """

    chosen: Options
    texts: Texts
    language: LanguageModel
    head: str
    fitted: Head | None

    @property
    def total(self) -> int:
        """Steps of the schedule."""
        return max(math.ceil(self.chosen.epochs * math.ceil(len(self.texts.texts) / self.chosen.batch)), 1)

    @property
    def settings(self) -> dict[str, Any]:
        """For the report."""
        chosen, model = self.chosen, self.language.model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        loss = chosen.loss if chosen.loss != "auto" else "cross entropy" if self.texts.classes else "squared error"
        classes = {"classes": ", ".join(self.texts.classes[:12])} if self.texts.classes else {}
        return {"model": chosen.model.name, "kind": type(model).__name__, "data": chosen.data.name, "rows": len(self.texts.texts),
                **classes, "scope": chosen.scope if chosen.lora is None else f"LoRA of rank {chosen.lora}",
                "trained parameters": f"{trained:,}", "head": self.head, "loss": loss, "optimizer": chosen.optimizer,
                "learning rate": chosen.rate, "schedule": chosen.schedule,
                "warmup steps": chosen.warmup, "batch": chosen.batch, "epochs": chosen.epochs, "tokens of a text": chosen.length,
                "budget (s)": chosen.budget, "seed": chosen.seed}  # fmt: skip

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the options the theory does not cover."""
        return (LOSSES[self.chosen.loss],) if self.chosen.loss != "auto" else ()


def prepare(chosen: Options, *, resumed: bool = False) -> Setup:
    """Read the texts, load the model, install its head; a run that is resumed gets its weights from the checkpoint.

    Raises:
        InputError: if something is missing or does not fit.
    """
    texts = read_texts("data", chosen.data, text=chosen.text, label=chosen.label, split=chosen.split, kind=chosen.kind)
    require(chosen.loss != "smoothed" or bool(texts.classes), "loss", expected="auto or huber for numbers", got="'smoothed'",
            cure="smoothing is for classes")  # fmt: skip
    require(chosen.loss != "huber" or not texts.classes, "loss", expected="auto or smoothed for classes", got="'huber'",
            cure="Huber's loss is for numbers")  # fmt: skip
    language = load_language_model("model", chosen.model, outputs=max(len(texts.classes), 1), length=chosen.length, seed=chosen.seed)
    kind = chosen.head if chosen.head != "auto" else "keep" if language.kept else "random"
    require(kind != "keep" or language.kept, "head", expected=f"a model with a head of {language.outputs} outputs, to keep it",
            got="one without", cure="pass --head random or probe")  # fmt: skip
    if torch.cuda.is_available():
        language.model.to("cuda")
    fitted = None
    if kind != "keep" and not resumed:
        features = language.features(language.batches(texts.texts, size=PASS))
        targets = one_hot(texts.labels, len(texts.classes)) if texts.classes else texts.labels
        made = head(kind, features, targets, generator=torch.Generator().manual_seed(chosen.seed),
                    loss="cross_entropy" if texts.classes else "squared")  # fmt: skip
        language.set_head(made, features=features)
        fitted = made if kind == "probe" else None
    if chosen.lora is not None:
        language = with_lora(language, rank=chosen.lora, seed=chosen.seed)
    model: Any = language.model
    if chosen.scope != "trainable":
        kept = {id(p) for p in select(model, chosen.scope.split(",")).values()}
        for p in model.parameters():
            p.requires_grad_(id(p) in kept)
    if texts.classes:
        model.config.id2label = dict(enumerate(texts.classes))
        model.config.label2id = {name: i for i, name in enumerate(texts.classes)}
    return Setup(chosen, texts, language, kind, fitted)


def foresee(setup: Setup) -> Study:
    """The kernel of as many rows as the budget allows, and the stops.

    Raises:
        InputError: if the budget is too small, or labels or scope do not fit.
    """
    chosen, texts, language, N = setup.chosen, setup.texts, setup.language, len(setup.texts.texts)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(chosen.seed))
    tries = [language.batches([texts.texts[i] for i in order[:m]], size=m)[0] for m in (PASS // 2, PASS)]
    n, each = affordable(language.model, tries, budget=chosen.budget, most=chosen.rows)
    n = min(n, N)
    require(n >= LEAST, "budget", expected=f"time for at least {LEAST} rows", got=f"{chosen.budget:g} s, enough for {n}",
            cure=f"pass --budget {math.ceil(2 * ENOUGH * each)} or more, or a narrower --scope")  # fmt: skip
    taken = order[:n]
    found = problem_of(language.model, language.batches([texts.texts[i] for i in taken], size=PASS), texts.labels[taken], setup.fitted,
                       taken.tolist(), metric="adam" if chosen.optimizer == "adamw" else "gradient", batch=chosen.batch)  # fmt: skip
    return study_of(setup, found, _rates(chosen, setup.total))


def study_of(setup: Setup, found: Problem, steps: list[float]) -> Study:
    """The stops of a problem by all rules, the chosen one first."""
    chosen, N = setup.chosen, len(setup.texts.texts)
    schedule = Schedule(steps, found.scale)
    rules = sorted(ALONE, key=lambda rule: rule != chosen.rule)
    first, *others = (find_stop(found, rule, schedule=schedule, rows=N, batch=chosen.batch) for rule in rules)
    first = replace(first, violations=(*first.violations, *setup.notes))
    return Study(found.spectrum, found.residual.cpu(), schedule, N, chosen.batch, (first, *others), found.validation,
                 found.metric == "adam")  # fmt: skip


def _rates(chosen: Options, total: int) -> list[float]:
    """The learning rate of each step, as transformers' Trainer has it."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=chosen.rate)
    scheduler = get_scheduler(schedule_name(chosen), optimizer, num_warmup_steps=chosen.warmup, num_training_steps=total)
    return rates(scheduler, optimizer, total)[0]


def schedule_name(chosen: Options) -> str:
    """What transformers calls the schedule."""
    return "constant_with_warmup" if chosen.schedule == "constant" and chosen.warmup else chosen.schedule
