"""The page of an adaptation says what the numbers say, refers to nothing outside, and shows what was computed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from driftway.adapt import AutoTransferRegressor, Decision, DINOTrainRegressor, PooledGP, TransferGPRegressor
from driftway.adapt.explain import explain
from driftway.adapt.influence import Foreseen
from driftway.report.adapt import candidates, distances, domains, pictures, remarks, top, verdict, write_adaptation_report
from driftway.report.adapt_figures import LEVELS, draw_calibration, draw_correlation, draw_foreseen, draw_relevance
from tests.adapt.fitted import fit, fitted, frames, shift
from tests.report import test_page
from tests.report.test_page import HOSTILE, Page

KINDS = {
    "auto": (AutoTransferRegressor, {"sources": 2, "outputs": 2}), "no labels": (TransferGPRegressor, {"labels": 0}),
    "one domain": (AutoTransferRegressor, {"sources": 0}), "one label": (PooledGP, {"labels": 1}),
    "trained": (DINOTrainRegressor, {"sources": 2, "outputs": 2}), "many sources": (PooledGP, {"sources": 14, "rows": 3}),
}  # fmt: skip


@pytest.fixture(scope="module")
def known():
    return explain(fitted(AutoTransferRegressor, sources=2, outputs=2), permutations=19)


@pytest.fixture(scope="module")
def named():
    return explain(fit(PooledGP, *frames(*shift(labels=12))), permutations=19)


def decided(known, *, transfer=True, gain=0.3, target_weight=0.1):
    return verdict(replace(known, decision=Decision(transfer, gain, 0.08, target_weight, {}, {}, "words")))[0]


def test_the_verdict_is_what_the_numbers_say(known):
    assert decided(known) == ("Transfer: a label of the target is foreseen 0.30 ± 0.08 nats better with the sources than without; "
                              "the target alone weighs 10 % of the mixture.")  # fmt: skip
    assert decided(known, transfer=False, gain=-0.25, target_weight=0.6).startswith(
        "Do not transfer: a label of the target is foreseen 0.25 ± 0.08 nats worse with the sources than without; the target alone")
    assert decided(known, transfer=False).endswith("Predictions are those of the mixture all the same.")
    assert "Predictions are" not in decided(known, transfer=False, target_weight=1.0)
    seen = known.foreseen
    inside = int(((seen.y - seen.mean).abs() <= 1.6449 * seen.std).sum())
    assert verdict(known)[1] == (f"8 labels of the target, each foreseen from all others: error {seen.error:.2g} of their standard "
                                 f"deviation, {inside} of 16 in their 90 % intervals.")  # fmt: skip


def test_a_verdict_without_a_comparison(known):
    none = replace(known, foreseen=Foreseen(*(part[:0] for part in (known.foreseen.index, known.foreseen.y, known.foreseen.mean,
                                                                   known.foreseen.std))))  # fmt: skip
    first, second = verdict(replace(none, decision=replace(known.decision, sentence="transfer was not compared")))
    assert first == "Transfer was not compared."
    assert second == "The target has no labels: nothing could be checked on it."
    words = verdict(replace(known, decision=None, method="PooledGP"))[0]
    assert words == ("Fitted: pooled process, 8 labels of the target and 2 sources; whether transfer pays was not asked: the method auto "
                     "compares with the target alone.")  # fmt: skip
    alone = explain(fitted(AutoTransferRegressor, sources=0), permutations=19)
    assert verdict(alone)[0] == "There is nothing to transfer."
    one = explain(fitted(PooledGP, labels=1), permutations=19)
    assert verdict(one)[1].startswith("The one label of the target: ")


def test_tables_hold_the_numbers(known, named):
    found = candidates(known)
    assert len(found) == len(known.candidates)
    weights = [float(row["weight"].split()[0]) for row in found]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(100, abs=3)
    for row, own in zip(found, known.candidates, strict=True):
        assert row["candidate"].endswith(", trained") == own.trained
        assert float(row["log density"]) == pytest.approx(own.density, rel=0.01)
        assert float(row["error"]) == pytest.approx(own.foreseen.error, rel=0.01)
        assert row["corr."] == f"{min(own.correlation):.2f}\u2013{max(own.correlation):.2f}"
    for i, (row, own) in enumerate(zip(domains(known), known.domains, strict=True)):
        assert (row["domain"], row["rows"], row["labels"]) == (own.name, str(own.rows), str(own.labelled))
        assert row["correlation"] == f"{float(known.correlation[0, i]):.2f}"
        assert row["effective rows"] == ("n/a" if i == 0 else f"{own.effective * own.rows:,.0f}")
    rows = distances(known)
    assert [(row["source"], row["kernel"]) for row in rows] == [(f"source {d}", kernel) for d in (1, 2) for kernel in ("NNGP", "NTK")]
    assert rows[3]["MMD²"] == f"{known.domains[2].ntk.mmd2:.3g}"
    assert rows[3]["p value"] == f"{known.domains[2].ntk.p_value:.3g}"
    best = top(named, [f"s.csv:{i}" for i in range(len(named.influence))])
    assert best[0]["row"] == f"s.csv:{named.top[0].index}"
    assert best[0]["label: price"] == f"{named.top[0].y[0]:.4g}"
    assert best[0]["size"] == f"{named.top[0].x['size']:.4g}"
    assert "labels of the target are few" in " ".join(remarks(known))


def test_remarks_on_calibration_and_on_sources_that_are_far(named):
    y = torch.arange(40.0, dtype=torch.float64)[:, None]
    narrow = Foreseen(torch.arange(40), y, y + 1, torch.full_like(y, 0.5))
    assert "Intervals are too narrow: 0 % of the labels" in remarks(replace(named, foreseen=narrow))[0]
    wide = remarks(replace(named, foreseen=replace(narrow, mean=y)))
    assert "too wide: 100 %" in wide[0]
    normal = y + 0.5 * torch.special.ndtri((torch.arange(40, dtype=torch.float64)[:, None] + 0.5) / 40)
    assert not [words for words in remarks(replace(named, foreseen=replace(narrow, mean=normal))) if "intervals" in words.lower()]
    flat = remarks(replace(named, foreseen=replace(narrow, mean=torch.where((y - normal).abs() < 0.7, y, normal))))
    assert "too wide: 85 % of the labels are in those of 50 %" in flat[0]
    far = (named.domains[0], replace(named.domains[1], effective=0.04))
    last = remarks(replace(named, domains=far))[-1]
    assert "Few rows of source look like the target: weighted to resemble it, they are worth 4 %" in last


def test_figures_show_what_was_computed(known, named):
    observed = draw_calibration(named).axes[0].lines[1]
    assert observed.get_xdata() == pytest.approx(100 * LEVELS)
    assert observed.get_ydata() == pytest.approx([100 * named.foreseen.coverage(level) for level in LEVELS])
    panels = [axes for axes in draw_foreseen(known).axes if axes.get_visible()]
    assert len(panels) == 2
    points = np.concatenate([np.column_stack(bars.lines[0].get_data()) for bars in panels[1].containers])
    wanted = np.column_stack([known.foreseen.y[:, 1], known.foreseen.mean[:, 1]])
    np.testing.assert_allclose(points[points[:, 0].argsort()], wanted[wanted[:, 0].argsort()])
    heat = draw_correlation(known).axes[0]
    np.testing.assert_allclose(heat.images[0].get_array(), known.correlation)
    assert [text.get_text() for text in heat.texts][:3] == [f"{value:.2f}" for value in known.correlation[0].tolist()]
    bars = draw_relevance(named).axes[0]
    assert [bar.get_width() for bar in bars.patches] == [value for _, value in named.relevance]
    assert [text.get_text() for text in bars.get_yticklabels()] == [name for name, _ in named.relevance]


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_whole_and_refer_to_nothing_outside(tmp_path, kind):
    made, sizes = KINDS[kind]
    found = explain(fitted(made, **sizes), permutations=19)
    names = [f"{HOSTILE} {i}" for i in range(len(found.domains))]
    found = replace(found, domains=tuple(replace(own, name=name) for own, name in zip(found.domains, names, strict=True)),
                    relevance=((HOSTILE, 2.0), *found.relevance[1:]), outputs=tuple(f"$y_{HOSTILE}" for _ in found.outputs))  # fmt: skip
    settings = {"method": HOSTILE, "seed": 0}
    write_adaptation_report(tmp_path / "new" / "report.html", found, command=HOSTILE, title=HOSTILE, settings=settings)
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    test_page.test_it_refers_to_nothing_outside(html)
    page = Page(html)
    assert page.text["title"] == page.text["h1"] == page.text["code"] == HOSTILE
    assert not page.all("script")
    labels, sources = len(found.foreseen.y), len(found.domains) - 1
    assert len(page.all("img")) == 1 + 2 * bool(labels) + bool(sources)
    assert all(len(image["alt"]) > 20 for image in page.all("img"))
    identities = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(identities) == len(set(identities))
    for wanted in ("Candidates", "Domains", "Pictures", "Settings", "How to read this page"):
        assert wanted in page.text["h2"]
    assert ("How far the sources are" in page.text["h2"]) == (sources > 0)
    assert "prefers-color-scheme: dark" in page.text["style"]
    assert "nan" not in page.text["td"]
    assert "nan" not in page.text["p"].lower().replace("nansen", "")


def test_pictures_have_words_for_those_who_do_not_see_them(named):
    first, second, third, fourth = pictures(named)
    inside = int(((named.foreseen.y - named.foreseen.mean).abs() <= 1.6449 * named.foreseen.std).sum())
    assert f"{inside} of 12 in their 90 % intervals" in first.alt
    assert "at level 90 %" in second.alt
    assert "source 1.00" in third.alt
    assert named.relevance[0][0] in fourth.alt
    assert math.isclose(first.inches, second.inches, rel_tol=0.2)
