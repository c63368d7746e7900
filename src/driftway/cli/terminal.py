"""What the terminal shows: errors on one line, a progress bar, tables."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from driftway.adapt.explain import Explanation
from driftway.report import Evaluation, Study, adapt, stopping
from driftway.transport import Certificate, Step

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def fail(message: str, code: int) -> int:
    """Print an error on one line; returns the exit code."""
    err.print("error: " + " ".join(message.split()), style="red", markup=False, soft_wrap=True)
    return code


@contextmanager
def progress(steps: int | None, max_seconds: float | None, *, shown: bool = True) -> Iterator[Callable[[Step], None]]:
    """A live bar with loss, gap and time left; yields what is to be called with every step."""
    with working("training", shown=shown, total=1.0 if steps or max_seconds else None) as update:
        last, gap = 0.0, ""

        def on_step(step: Step) -> None:
            nonlocal last, gap
            if step.certificate:
                gap = f"  gap {step.certificate.gap:.2%}"
            if time.monotonic() - last < 0.1:
                return
            last = time.monotonic()
            done = max(step.index / steps if steps else 0.0, step.seconds / max_seconds if max_seconds else 0.0)
            loss = sum(step.losses.values())
            update(min(done, 1.0), f"step {step.index}  loss {loss:.4g}{gap}")

        yield on_step


@contextmanager
def working(what: str, *, shown: bool = True, total: float | None = 1.0) -> Iterator[Callable[[float, str], None]]:
    """A live bar; yields what is to be called with the part that is done and a few words. Without a total, it only moves."""
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn()]  # fmt: skip
    with Progress(*columns, console=err, transient=False, disable=not (shown and err.is_terminal)) as bar:
        task = bar.add_task(what, total=total, shown="")
        yield lambda done, words: bar.update(task, completed=done, shown=words)
        bar.update(task, completed=1.0, total=1.0)


def say_certificate(certificate: Certificate, *, proven: bool) -> None:
    """Print the bracket of W2^2 / 2 and, where the policy is meant to be optimal, the proven gap."""
    text = f"certificate: {certificate.lower:.5g} <= W2²/2 <= {certificate.upper:.5g} on held-out rows"
    out.print(text + (f"; the cost is proven to be within {certificate.gap:.2%} of the optimum" if proven else ""), soft_wrap=True)


def say_evaluation(evaluation: Evaluation) -> None:
    """Print the table of quality against steps, and that of distances in a kernel if there is one."""
    _say_table(evaluation.rows())
    if evaluation.kernel:
        _say_table(evaluation.kernel_rows())


def say_study(study: Study) -> None:
    """Print what is known of a fine-tuning run before it: spectrum, stop, all rules, and what does not hold."""
    out.print("; ".join(f"{name} {value}" for name, value in stopping.spectrum_facts(study)), markup=False, soft_wrap=True)
    _say_table(stopping.rules(study))
    stop = study.stop
    out.print(f"lambda {stop.lam:.3g}, {stop.dof:.1f} degrees of freedom")
    for sentence in stopping.violations(study):
        out.print(f"- {sentence}", markup=False, soft_wrap=True)
    for sentence in stopping.verdict(study):
        out.print(sentence, markup=False, soft_wrap=True, style="bold")


def say_adaptation(explanation: Explanation, remarks: Sequence[str] = ()) -> None:
    """Print what is known of an adaptation: candidates, domains, what to know, and whether to transfer."""
    _say_table(adapt.candidates(explanation))
    _say_table(adapt.domains(explanation))
    for sentence in (*remarks, *adapt.remarks(explanation)):
        out.print(f"- {sentence}", markup=False, soft_wrap=True)
    for sentence in adapt.verdict(explanation):
        out.print(sentence, markup=False, soft_wrap=True, style="bold")


def _say_table(rows: list[dict[str, str]]) -> None:
    table = Table()
    for i, name in enumerate(rows[0]):
        table.add_column(name, no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(escape, row.values()))
    out.print(table)


def typed(*, again: bool = False) -> str:
    """The command as it was typed, or the one that goes on from where it was stopped."""
    words = ["driftway", *sys.argv[1:]]
    return shlex.join([*(word for word in words if word != "--resume"), "--resume"] if again else words)
