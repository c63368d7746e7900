"""The part of `driftway demo` on fine-tuning: a network that can tell the digits 0 to 4 learns 5 to 9 from few, many of them mislabelled.

Test rows are mislabelled as often as training rows: the stop is where the loss of such labels is foreseen to be lowest. Errors are
counted by the true labels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from driftway.cli.terminal import working
from driftway.data import digits
from driftway.finetune import Schedule
from driftway.finetune.clock import Clock
from driftway.finetune.metric import raw_kernel, spread
from driftway.finetune.probe import Problem, find_stop, problem
from driftway.report import Study, Training, write_stopping_report
from driftway.report.index import Entry
from driftway.report.stopping import happened, hindsight, pictures, verdict
from driftway.stopping.stop import ALONE

CLASSES, WIDTH, PRETRAINING = 5, 512, 300
ROWS, WRONG, BATCH, RATE, EPOCHS = 150, 0.3, 20, 0.05, 150
PROBE, CHECKS = 16, 10  # rows on which the kernel's growth is measured, and how often before the stop


@dataclass(frozen=True)
class Task:
    """Rows, the labels that are given, and the true ones."""

    x: Float[Tensor, "n 64"]
    labels: Int[Tensor, " n"]
    truth: Int[Tensor, " n"]


def show_finetune(folder: Path, *, seed: int, command: str, say: Callable[[str], None], epochs: int = EPOCHS) -> Entry:
    """Pretrain, foresee, train past the stop to the end, and write the report."""
    generator = torch.Generator().manual_seed(seed)
    known, (train, test) = _tasks(generator)
    net = _pretrained(known, generator)
    net[-1] = _linear(WIDTH, CLASSES, generator)
    study, found = _foresee(net, train, epochs)
    say(verdict(study)[0])
    with working("training") as on_step:
        training = _train(net, train, test, study, found, generator, on_step)
    title = "Digits 5 to 9 from mislabelled examples: when to stop"
    wrong = int((train.labels != train.truth).sum())
    settings = {"network": f"64-{WIDTH}-{CLASSES}, ReLU", "pretrained on": f"{len(known.x)} digits 0 to 4", "rows": ROWS,
                "mislabelled": wrong, "test rows": len(test.x), "loss": "cross entropy", "optimizer": "sgd", "learning rate": RATE,
                "batch": BATCH, "epochs": epochs, "seed": seed}  # fmt: skip
    write_stopping_report(folder / "report.html", study, command=command, title=title, settings=settings, training=training)
    question = (f"A network that can tell the digits 0 to 4 learns 5 to 9 from {ROWS} examples, of which {wrong} are mislabelled. When to "
                "stop is computed before the first step, without a validation set.")  # fmt: skip
    return Entry(title, question, (verdict(study)[0], *hindsight(study, training), happened(study, training)),
                 f"{folder.name}/report.html", pictures(study, training)[0])  # fmt: skip


def _tasks(generator: torch.Generator) -> tuple[Task, tuple[Task, Task]]:
    """The task of the pretraining, and the rows of the other one for training and test."""
    pixels, digit = digits()
    x, old = pixels / 16 - 0.3, digit < CLASSES
    order = (~old).nonzero()[:, 0]
    order = order[torch.randperm(len(order), generator=generator)]
    truth = digit[order] - CLASSES
    other = (truth + torch.randint(1, CLASSES, truth.shape, generator=generator)) % CLASSES
    labels = torch.where(torch.rand(len(truth), generator=generator) < WRONG, other, truth)
    parts = [Task(x[order[own]], labels[own], truth[own]) for own in (slice(0, ROWS), slice(ROWS, None))]
    return Task(x[old], digit[old], digit[old]), (parts[0], parts[1])


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A layer with PyTorch's usual weights, from this generator."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    for part in layer.parameters():
        nn.init.uniform_(part, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


def _pretrained(known: Task, generator: torch.Generator) -> nn.Sequential:
    net = nn.Sequential(_linear(known.x.shape[1], WIDTH, generator), nn.ReLU(), _linear(WIDTH, CLASSES, generator))
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(PRETRAINING):
        rows = torch.randint(len(known.x), (64,), generator=generator)
        adam.zero_grad()
        cross_entropy(net(known.x[rows]), known.labels[rows]).backward()
        adam.step()
    return net


def _foresee(net: nn.Module, train: Task, epochs: int) -> tuple[Study, Problem]:
    """The stops of a run by all rules, from the kernel of its training rows."""
    found = problem(net, [{"input": part} for part in train.x.split(BATCH)], train.labels, batch=BATCH)
    schedule = Schedule([RATE] * (epochs * math.ceil(ROWS / BATCH)), found.scale)
    first, *others = (find_stop(found, rule, schedule=schedule, rows=ROWS, batch=BATCH)
                      for rule in sorted(ALONE, key=lambda rule: rule != "cross_validation"))  # fmt: skip
    return Study(found.spectrum, found.residual, schedule, ROWS, BATCH, (first, *others), found.validation), found


def _train(net: nn.Module, train: Task, test: Task, study: Study, found: Problem, generator: torch.Generator,
           on_step: Callable[[float, str], None]) -> Training:  # fmt: skip
    """All epochs, and what was measured at the stop, which the clock finds as `SpectralStopping` does."""
    descent, clock = torch.optim.SGD(net.parameters(), RATE), Clock(scale=found.scale)
    start, few = found.raw[:PROBE, :PROBE], [{"input": train.x[:PROBE]}]
    due = study.when(study.stop.eta)
    every = max((due[0] if due else study.total) // CHECKS, 1)
    losses, drifts, unseen, errors = [], [], {0: _loss(net, test)}, {0: _error(net, test)}
    step, stop, eta = 0, None, 0.0
    while step < study.total:
        batches = torch.randperm(ROWS, generator=generator).split(BATCH)
        total = 0.0
        for rows in batches:
            if stop is None and clock.eta + clock.step(descent) > study.stop.eta * (1 + 1e-9):
                stop, eta, unseen[step], errors[step] = step, clock.eta, _loss(net, test), _error(net, test)
            loss = cross_entropy(net(train.x[rows]), train.labels[rows])
            descent.zero_grad()
            loss.backward()
            descent.step()
            clock.tick(descent)
            step, total = step + 1, total + float(loss.detach())
            if stop is None and step % every == 0:
                K = raw_kernel(net, few)
                clock.growth = spread(K) / spread(start)
                drifts.append((float(step), float((K - start).norm() / start.norm())))
        losses.append((float(step), total / len(batches)))
        on_step(step / study.total, f"step {step}")
        unseen[step], errors[step] = _loss(net, test), _error(net, test)
    stopped = stop is not None
    stop, eta = (stop, eta) if stopped else (step, clock.eta)
    best = min(unseen, key=unseen.__getitem__)
    told = (("test error by the true labels", errors[stop]), ("at the lowest loss", errors[best]),
            ("at the end of the schedule", errors[step]))  # fmt: skip
    path = tuple((float(at), unseen[at]) for at in sorted(unseen))
    return Training(stop, eta, stopped, tuple(losses), tuple(drifts), test=told, unseen=path)


@torch.no_grad()
def _loss(net: nn.Module, test: Task) -> float:
    return float(cross_entropy(net(test.x), test.labels))


@torch.no_grad()
def _error(net: nn.Module, test: Task) -> float:
    return float((net(test.x).argmax(1) != test.truth).double().mean())
