"""The parts of `driftway demo` on transport and on adaptation: data that is there, a model, a report, and what to say of it."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftway.adapt import AutoTransferRegressor, TargetOnlyGP
from driftway.adapt.explain import explain
from driftway.adapt.folder import save
from driftway.cli.terminal import progress, working
from driftway.data import PAIRS, Law, digits
from driftway.report import adapt as adapt_page
from driftway.report import draw_samples, draw_trajectories, evaluate, page, write_report
from driftway.report.index import Entry
from driftway.report.template import picture
from driftway.transport import Settings, TransportModel, fit, held_labels, held_rows

WIDTH, PATHS = 128, 120  # of transport networks; paths that are drawn
LABELS, STEPS = 12, 40  # of the target; quasi-Newton steps
REACH = 1.645  # standard deviations of a 90 % interval


def show_moons(folder: Path, *, seconds: float, seed: int, command: str) -> Entry:
    """One set of points moved to another."""
    title, (source, target) = "Two moons to eight Gaussians", PAIRS["moons-8gaussians"]
    model = _fitted(folder, _sampler(source), _sampler(target), None, seconds=seconds, seed=seed, command=command)
    found = _reported(model, folder, title, command=command, source_is_data=True)
    x, y = held_rows(folder)
    path = model.path(x[:PATHS], steps=20, seed=seed)
    shown = picture(draw_trajectories(path, y), "Paths from source to target", f"Paths of {PATHS} points from two moons to eight clusters.",
                    "Paths as straight as these are why one step is as good as twenty.")  # fmt: skip
    question = "Points of one shape move to another, of which no pairs are known: a value is learned, and every point goes down it."
    return Entry(title, question, found, f"{folder.name}/report.html", shown)


def show_digits(folder: Path, *, seconds: float, seed: int, command: str) -> Entry:
    """Handwritten digits, by label."""
    title, question = "Handwritten digits from noise", "Images of 8 x 8 pixels from noise, in a few steps, of any label that is asked for."
    pixels, labels = digits()
    model = _fitted(folder, None, pixels.reshape(-1, 8, 8), labels, seconds=seconds, seed=seed, command=command)
    found = _reported(model, folder, title, command=command, source_is_data=False)
    y, names = held_rows(folder)[1], held_labels(folder)
    drawn = model.sample(64, steps=4, label=None if names is None else names[:64], seed=seed)
    shown = picture(draw_samples(drawn, y[:64], steps=4), "Samples beside held-out data", "64 generated digits beside 64 real ones.",
                    "Not chosen. The right half was kept out of training.")  # fmt: skip
    return Entry(title, question, found, f"{folder.name}/report.html", shown)


def show_adapt(folder: Path, *, seed: int, command: str, steps: int | None = None) -> Entry:
    """Patients of one sex, from few of them and many of the other."""
    from sklearn.datasets import load_diabetes  # late: it takes a second

    table: Any = load_diabetes(as_frame=True, scaled=False)
    X, y, target = table.data.drop(columns="sex"), table.target.rename("progression"), (table.data.sex == 2).to_numpy()
    own = np.random.default_rng(seed).permutation(np.flatnonzero(target))
    known, test = own[:LABELS], own[LABELS:]
    rows = np.concatenate([np.flatnonzero(~target), known])
    domain, limit = np.where(target[rows], -2, 1), STEPS if steps is None else steps
    with working("fitting", total=None), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the report
        both, alone = (made(max_iter=limit, random_state=seed).fit(X.iloc[rows], y.iloc[rows], domain)
                       for made in (AutoTransferRegressor, TargetOnlyGP))  # fmt: skip
    truth, (mean, std) = y.iloc[test], both.predict(X.iloc[test], return_std=True)
    constant, single, error = (np.abs(guess - truth) for guess in (y.iloc[known].mean(), alone.predict(X.iloc[test]), mean))
    measured = (f"On {len(test)} patients that no model has seen the mean absolute error is {single.mean():.1f} from the {LABELS} labels "
                f"alone and {error.mean():.1f} with transfer; {100 * (error < REACH * std).mean():.0f} % of their labels are in their 90 % "
                f"intervals. The mean of the {LABELS} labels errs by {constant.mean():.1f}.")  # fmt: skip
    explanation = explain(both, domains=("one sex", "the other sex"), seed=seed)
    save(both, folder)
    title = "Progression of diabetes, from one sex to the other"
    settings = {"data": "diabetes, as scikit-learn ships it", "method": "auto", "rows": len(rows), "labels of the target": LABELS,
                "test rows": len(test), "steps": limit, "seed": seed}  # fmt: skip
    adapt_page.write_adaptation_report(folder / "report.html", explanation, command=command, title=title, settings=settings,
                                       rows=[f"patient {i}" for i in rows], measured=measured)  # fmt: skip
    question = (f"How diabetes goes on in a year, from nine measurements: {int((~target).sum())} patients of one sex are on record, and "
                f"{LABELS} of the other. Do the records help, and how much?")  # fmt: skip
    return Entry(title, question, (*adapt_page.verdict(explanation), measured), f"{folder.name}/report.html",
                 adapt_page.pictures(explanation)[0])  # fmt: skip


def _fitted(folder: Path, source: Callable | None, target: Callable | torch.Tensor, labels: torch.Tensor | None, *, seconds: float,
            seed: int, command: str) -> TransportModel:  # fmt: skip
    """A trained model, saved in its folder."""
    with progress(None, seconds) as on_step, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "target: .* columns are constant")  # the corners of the digits
        model = fit(source, target, labels=labels, max_seconds=seconds, seed=seed, out=folder, on_step=on_step,
                    settings=Settings(width=WIDTH))  # fmt: skip
    model = replace(model, training={**model.training, "command": command})
    model.save(folder)
    return model


def _reported(model: TransportModel, folder: Path, title: str, *, command: str, source_is_data: bool) -> tuple[str, ...]:
    """Write the report; what to say of the model."""
    (x, y), labels = held_rows(folder), held_labels(folder)
    evaluation = evaluate(model, x if source_is_data else None, y, labels=labels)
    write_report(folder / "report.html", model, evaluation, x, y, command=command, title=title, labels=labels)
    certificate = evaluation.certificate
    bracket = f"Certificate: {certificate.lower:.4g} ≤ W2²/2 ≤ {certificate.upper:.4g} on held-out rows."
    return (*page.verdict(model, evaluation), bracket)


def _sampler(law: Law) -> Callable[[int, torch.Generator], torch.Tensor]:
    return lambda n, generator: law.sample(n, generator=generator)
