"""An adaptation as one HTML file that needs nothing else: whether to transfer, how well labels are foreseen, and what it rests on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binom

from driftway import store
from driftway.adapt.explain import Explanation, Rating
from driftway.report.adapt_figures import (
    BARS,
    CELLS,
    LEVEL,
    PANELS,
    draw_calibration,
    draw_correlation,
    draw_foreseen,
    draw_relevance,
)
from driftway.report.stopping import percent_of
from driftway.report.template import Picture, facts, fill, picture

FEW, THIN, MOST = 10, 0.1, 20  # labels; effective rows, as a part; sources that are listed
NONE, SAID = "n/a", f"{100 * LEVEL:.0f} %"
NAMES = {"target": "target alone", "pooled": "pooled", "linear": "linear transfer", "transfer": "transfer",
         "dino": "distribution kernel"}  # fmt: skip
METHODS = {
    "TargetOnlyGP": "target alone", "PooledGP": "pooled process", "TransferGPRegressor": "transfer process",
    "ReweightedGP": "reweighted process", "MeanEmbeddingGP": "process of mean embeddings", "DINOInitRegressor": "DINO-INIT",
    "DINOTrainRegressor": "DINO-TRAIN", "AutoTransferRegressor": "mixture of candidates",
}  # fmt: skip


def write_adaptation_report(path: str | Path, explanation: Explanation, *, command: str, title: str, settings: Mapping[str, Any],
                            rows: Sequence[str] | None = None, measured: str | None = None) -> None:  # fmt: skip
    """Write the report, atomically, as one HTML file without references to others.

    Args:
        path: the file; its folder is made if need be.
        explanation: what is known of the estimator.
        command: what the reader types to get this again.
        title: the heading.
        settings: names and values of what was chosen.
        rows: what each row of the training table is called; its index if None.
        measured: a sentence on rows with labels that the fit has not seen.

    Raises:
        OSError: if the file cannot be written.
    """
    known = candidates(explanation)
    page = fill(
        "adapt.html", title=title, command=command, verdict=[*verdict(explanation), *([measured] if measured else [])],
        pictures=pictures(explanation), candidates=known, best=known[0]["candidate"], domains=domains(explanation),
        distances=distances(explanation), top=top(explanation, rows), remarks=remarks(explanation), settings=facts(dict(settings)),
        explanation=explanation, level=SAID,
    )  # fmt: skip
    store.write_file(Path(path), page.encode())


def verdict(explanation: Explanation) -> list[str]:
    """Whether to transfer, and how well the target's labels are foreseen."""
    return [_transfer(explanation), *_accuracy(explanation)]


def _transfer(explanation: Explanation) -> str:
    decision, m = explanation.decision, len(explanation.foreseen.y)
    if decision is None:
        name = METHODS.get(explanation.method, explanation.method)
        sources = len(explanation.domains) - 1
        also = f" and {_count(sources, 'source')}" if sources else ""
        asked = "; whether transfer pays was not asked: the method auto compares with the target alone" if sources and m else ""
        return f"Fitted: {name}, {_count(m, 'label')} of the target{also}{asked}."
    if not m or len({own.name == "target" for own in explanation.candidates}) < 2:  # nothing to compare
        return f"{decision.sentence[0].upper()}{decision.sentence[1:]}."
    change = (f"{abs(decision.gain):.2f} ± {decision.error:.2f} nats {'better' if decision.gain > 0 else 'worse'} with the sources "
              "than without")  # fmt: skip
    first = (f"{'Transfer' if decision.transfer else 'Do not transfer'}: a label of the target is foreseen {change}; "
             f"the target alone weighs {percent_of(decision.target_weight)} of the mixture.")  # fmt: skip
    return first if decision.transfer or decision.target_weight > 0.995 else f"{first} Predictions are those of the mixture all the same."


def _accuracy(explanation: Explanation) -> list[str]:
    seen = explanation.foreseen
    m, k = seen.y.shape
    if not m:
        return ["The target has no labels: nothing could be checked on it."]
    each = f"{_count(m, 'label')} of the target, each foreseen from all others" if m > 1 else "The one label of the target"
    inside = round(seen.coverage(LEVEL) * m * k)
    held = f"{inside} of {m * k} in their {SAID} intervals"
    if m * k == 1:
        held = f"{'in' if inside else 'outside'} its {SAID} interval"
    error = "" if math.isnan(seen.error) else f"error {seen.error:.2g} of their standard deviation, "
    return [f"{each}: {error}{held}."]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _number(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.3g}"


def name_of(own: Rating) -> str:
    """A candidate in words."""
    return NAMES.get(own.name, METHODS.get(own.name, own.name)) + ", trained" * own.trained


def candidates(explanation: Explanation) -> list[dict[str, str]]:
    """The candidates side by side, by weight."""
    several = len(explanation.domains) > 2
    found = []
    for own in explanation.candidates:
        lam = NONE if not own.correlation else f"{own.correlation[0]:.2f}" if not several else (
            f"{min(own.correlation):.2f}\u2013{max(own.correlation):.2f}")  # fmt: skip
        found.append({
            "candidate": name_of(own), "weight": percent_of(own.weight) if own.weight >= 5e-4 else "0 %",
            "log density": _number(own.density), "error": _number(own.foreseen.error),
            f"in {SAID}": NONE if math.isnan(own.foreseen.coverage(LEVEL)) else percent_of(own.foreseen.coverage(LEVEL)),
            "corr.": lam,
        })  # fmt: skip
    return found


def domains(explanation: Explanation) -> list[dict[str, str]]:
    """The domains side by side, the target first."""
    found, several = [], len(explanation.domains) > 1
    for i, own in enumerate(explanation.domains[: MOST + 1]):
        row = {"domain": own.name, "rows": f"{own.rows:,}", "labels": f"{own.labelled:,}", "share in predictions": percent_of(own.share)}
        worth = NONE if math.isnan(own.effective) else f"{own.effective * own.rows:,.0f}"
        found.append(row | ({"correlation": f"{float(explanation.correlation[0, i]):.2f}", "effective rows": worth} if several else {}))
    return found


def distances(explanation: Explanation) -> list[dict[str, str]]:
    """How far the rows of each source are from those of the target, in both kernels."""
    found = []
    for own in explanation.domains[1 : MOST + 1]:
        for kernel, far in (("NNGP", own.nngp), ("NTK", own.ntk)):
            if far is not None:
                found.append({"source": own.name, "kernel": kernel, "MMD²": f"{far.mmd2:.3g}", "p value": f"{far.p_value:.3g}",
                              "between domains": percent_of(far.part)})  # fmt: skip
    return found


def top(explanation: Explanation, rows: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The source rows that count most."""
    labels = explanation.outputs[:PANELS]
    return [{"row": str(own.index) if rows is None else rows[own.index], "source": own.domain, "share": f"{100 * own.share:.2g} %",
             **{f"label: {name}": f"{value:.4g}" for name, value in zip(labels, own.y, strict=False)},
             **{_broken(name): f"{value:.4g}" for name, value in own.x.items()}} for own in explanation.top]  # fmt: skip


def _broken(name: str) -> str:
    """A name that may be broken after its marks."""
    return name.replace("_", "_\u200b").replace("=", "=\u200b")


def remarks(explanation: Explanation) -> list[str]:
    """What to know before relying on it."""
    found, seen = list(explanation.remarks), explanation.foreseen
    m = len(seen.y)
    if 0 < m < FEW:
        found.append(f"{_count(m, 'label')} of the target {'are' if m > 1 else 'is'} few: weights and errors found from them are rough")
    for level in (LEVEL, 0.5) if m >= FEW else ():
        covered, (low, high) = seen.coverage(level), (float(binom.ppf(p, m, level)) / m for p in (0.05, 0.95))
        if not low <= covered <= high:
            found.append(f"intervals are too {'narrow' if covered < low else 'wide'}: {percent_of(covered)} of the labels are in those of "
                         f"{percent_of(level)}, where chance allows {percent_of(low)} to {percent_of(high)}")  # fmt: skip
            break
    for own in explanation.domains[1 : MOST + 1]:
        if own.effective < THIN:
            worth = percent_of(own.effective)
            found.append(f"few rows of {own.name} look like the target: weighted to resemble it, they are worth {worth} of their number")
    return [f"{sentence[0].upper()}{sentence[1:]}{'' if sentence[-1] in '.?!' else '.'}" for sentence in dict.fromkeys(found)]


def pictures(explanation: Explanation) -> list[Picture]:
    """Labels foreseen, calibration, the domains, the columns."""
    seen, found = explanation.foreseen, []
    m, k = seen.y.shape
    if m:
        inside = round(seen.coverage(LEVEL) * m * k)
        rest = "" if k <= PANELS else f" The first {PANELS} of {k} outputs are shown."
        found += [
            picture(
                draw_foreseen(explanation), "The target's labels, each foreseen without itself",
                f"Foreseen values against labels, {inside} of {m * k} in their {SAID} intervals.",
                "On the dashed line, a label is foreseen exactly. Each is left out while it is foreseen; what was learned of columns, "
                f"noise and domains was learned with it.{rest}", "svg",
            ),
            picture(
                draw_calibration(explanation), "Calibration",
                f"Part of the labels in their intervals: {percent_of(seen.coverage(0.5))} at level 50 %, "
                f"{percent_of(seen.coverage(0.9))} at level 90 %.",
                "Below the line, intervals are too narrow; above it, too wide. The grey band is what chance allows for so few labels.",
                "svg",
            ),
        ]  # fmt: skip
    if len(explanation.domains) > 1:
        nearest = ", ".join(f"{own.name} {float(explanation.correlation[0, i]):.2f}"
                            for i, own in enumerate(explanation.domains[1:CELLS], 1))  # fmt: skip
        rest = "" if len(explanation.domains) <= CELLS else f" The first {CELLS} of {len(explanation.domains)} domains are shown."
        found.append(picture(
            draw_correlation(explanation), "How alike the domains are to the model",
            f"Heat map of the correlation between domains; with the target: {nearest}.",
            f"At 1 a row of one domain is as good as one of the other; at 0 it says nothing about it. Process: "
            f"{NAMES.get(explanation.described, METHODS.get(explanation.described, explanation.described))}.{rest}", "png",
            given=True,
        ))  # fmt: skip
    (first, most), d = explanation.relevance[0], len(explanation.relevance)
    found.append(picture(
        draw_relevance(explanation), "Which columns count",
        f"Bars of the relevance of {min(d, BARS)} of {_count(d, 'column')}, the largest {most:.2g} for {first}.",
        "A column of small relevance hardly changes predictions. Correlated columns share theirs.", "svg",
    ))  # fmt: skip
    return found
