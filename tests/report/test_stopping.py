"""The page of fine-tuning says what the numbers say, refers to nothing outside, and what is saved comes back."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from driftway.finetune import Schedule, stopping_time
from driftway.linalg import eigendecompose
from driftway.report import Study, Training, load_study, save_study, write_stopping_report
from driftway.report.curves import draw_path, draw_risk, draw_spectrum, draw_training, draw_validation
from driftway.report.stopping import happened, hindsight, rules, sensitivity, spectrum_facts, verdict, violations
from driftway.stopping.crossfit import cross_validate
from tests.report import test_page
from tests.report.test_page import HOSTILE, Page

RULES = ("marginal_likelihood", "cross_validation", "rademacher", "discrepancy", "sure", "gcv")
RAN = Training(12, 0.5, True, ((1.0, 0.9), (6.0, 0.7), (12.0, 0.6)), ((4.0, 0.1), (8.0, 0.25)), ("momentum was on",),
               (("test error", 0.125),))  # fmt: skip


def study(n=80, rows=None, *, rates=None, noise=1.0, signal=1.0, seed=0, exponent=1.5, adaptive=False):
    """Eigenvalues j^-exponent, and a residual drawn from this kernel, with noise."""
    g = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    mu = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    y = signal * n**0.5 * U @ (mu.sqrt() * torch.randn(n, generator=g, dtype=torch.float64))
    y = y + noise * torch.randn(n, generator=g, dtype=torch.float64)
    N = n if rows is None else rows
    spectrum, schedule = eigendecompose(n * (U * mu) @ U.T), Schedule([0.5] * 1000 if rates is None else rates)
    seen = cross_validate(spectrum.matrix(), y)
    given = {"schedule": schedule, "rows": N, "batch": 16, "validation": seen, "adaptive": adaptive}
    stops = tuple(stopping_time(spectrum, y, rule, **given) for rule in RULES)
    return Study(spectrum, y, schedule, N, 16, stops, seen, adaptive)


@pytest.fixture(scope="module")
def known():
    return study()


def test_the_risk_is_bias_and_the_noise_that_all_rows_let_through(known):
    more = replace(known, rows=4 * known.n)
    eta = known.stop.eta
    one, other = (float(part.curves([eta]).variance) for part in (known, more))
    assert other == pytest.approx(one / 4)
    assert known.risk(eta)[0] - more.risk(eta)[0] == pytest.approx(0.75 * one)
    assert known.risk(0.0, eta, math.inf) == pytest.approx(known.stop.risk)


def test_steps_and_epochs_are_those_of_the_schedule(known):
    assert known.when(5.0) == (10, 2.0)
    assert known.when(5.2) == (10, 2.0)
    assert known.when(500.0) == (1000, 200.0)
    assert known.when(500.1) is None
    assert known.when(math.inf) is None
    half = replace(known, schedule=Schedule([known.stop.eta / 2.5] * 2))
    assert not half.reached
    assert half.needed == 1  # 0.4 epochs reach 0.8 of the way


def test_the_clock_of_adam_is_turned_back():
    made = study(adaptive=True)
    for steps in (1, 7, 100):
        assert made.clock(made.time(steps)) == pytest.approx(0.5 * steps, rel=1e-6)
        assert made.when(made.time(steps) * (1 + 1e-9))[0] == steps
        assert made.time(steps) > 0.5 * steps  # gradients shrink
    assert made.when(made.stop.eta)[0] == made.stop.steps


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_is_saved_comes_back(tmp_path, adaptive):
    known = study(adaptive=adaptive)
    save_study(tmp_path / "spectrum.safetensors", known)
    again = load_study(tmp_path / "spectrum.safetensors")
    first, second = known.plain(), again.plain()
    for name in ("risk", "sensitivity", "schedule", "spectrum", "held_loss"):
        assert second[name] == pytest.approx(first[name])
    assert second["rules"].keys() == first["rules"].keys()
    assert again.stop.violations == known.stop.violations
    times = torch.logspace(-2, 3, 20, dtype=torch.float64)
    for name in ("bias", "variance", "loss", "dof", "complexity"):
        torch.testing.assert_close(getattr(again.curves(times), name), getattr(known.curves(times), name))
    assert verdict(again) == verdict(known)
    assert violations(again) == violations(known)


def test_plain_numbers_are_json(known):
    forever = replace(known, stops=(replace(known.stop, eta=math.inf, lam=0.0), *known.stops[1:]))
    for part in (known, forever):
        text = json.dumps(part.plain(), allow_nan=False)
        assert json.loads(text)["rule"] == "marginal_likelihood"
    assert forever.plain()["eta"] is None
    assert known.plain()["risk"]["stop"] == pytest.approx(known.stop.risk[1])


def test_the_verdict_is_what_the_numbers_say(known):
    stop = known.stop
    steps = int(stop.eta / 0.5)
    first, second = verdict(known)
    assert first == f"Stop after step {steps:,}, epoch {steps / 5:.3g} of 200, at eta {stop.eta:.3g} (by marginal likelihood)."
    before, at, end = known.held(0.0, stop.eta, 500.0)
    less = 100 * (1 - at / before)
    assert second.startswith(f"Expected loss of unseen rows: {before:.3g} before training and {at:.3g} at the stop, {less:.2g} % less")
    assert f"it would be {end:.3g}" in second
    other = replace(known, rows=800)
    before, at, end = other.risk(0.0, stop.eta, 500.0)
    assert verdict(other)[1].startswith(f"Estimated error: {before:.3g} before training and {at:.3g} at the stop")
    assert 0 < other.risk(stop.eta)[0] < known.risk(stop.eta)[0]

    def words(**changes):
        return verdict(replace(known, stops=(replace(stop, **changes), *known.stops[1:])))[0]

    assert words(eta=math.inf).startswith("Train to the end of the schedule (200 epochs, eta 500): no time before it is better")
    assert words(eta=0.0).startswith("Do not train")
    assert "gets 50 % of the way to the stop at eta 1e+03 (by marginal likelihood); 400 epochs" in words(eta=1000.0)
    assert words(eta=1e6).endswith("steps 2e+03 times as large would get there.")
    assert "take a smaller learning rate" in words(eta=0.1)
    part = replace(known, rows=800)
    assert "from 80 of 800 rows" in verdict(part)[0]
    assert "nothing stands out from noise in 80 of 800 rows" in verdict(replace(part, stops=(replace(stop, eta=0.0),)))[0]


def test_an_error_estimated_below_zero_is_no_percentage(known):
    silent = study(signal=0.0, noise=1.0, seed=3)
    for part in (silent, replace(silent, stops=(replace(silent.stop, eta=1.0, sigma=1.5),))):
        for sentence in verdict(part):
            assert "nan" not in sentence
            assert "inf" not in sentence


def test_tables_hold_every_rule_and_size(known):
    found = rules(known)
    assert [row["rule"] for row in found] == ["marginal likelihood", "cross-validation", "rademacher", "discrepancy", "SURE", "GCV"]
    assert found[0]["eta"] == f"{known.stop.eta:.3g}"
    assert [row["if"] for row in sensitivity(known)] == ["R x 0.5", "R x 1", "R x 2"]
    short = replace(known, schedule=Schedule([0.01] * 7))
    assert rules(short)[0]["step"] == "> 7"
    assert dict(spectrum_facts(known))["decay"] == "power"
    assert violations(known, RAN)[-1] == "Momentum was on."
    assert "12 steps, epoch 2.4, eta 0.5; test error 0.125" in happened(known, RAN)


def test_pictures_show_what_was_computed(known):
    axes, above = draw_risk(known).axes
    bias, variance, risk = (np.asarray(line.get_ydata()) for line in axes.lines[:3])
    assert np.allclose(bias + variance, risk)
    marks = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    assert marks == [stop.eta for stop in known.stops if math.isfinite(stop.eta)]
    for place, name in zip(above.get_xticks(), above.get_xticklabels(), strict=True):
        assert known.when(float(place))[1] == pytest.approx(float(name.get_text()), rel=0.03)
    assert len(above.get_xticks()) >= 3
    train, held, *_ = draw_validation(known).axes[0].lines
    assert np.diff(train.get_ydata()).max() <= 1e-9
    assert min(held.get_ydata()) == pytest.approx(known.held(known.validation.best)[0], rel=0.02)
    dots, *lines = draw_spectrum(known).axes[0].lines
    assert dots.get_ydata() == pytest.approx(known.spectrum.values[: known.spectrum.rank].numpy())
    solid = next(line for line in lines if str(line.get_label()).startswith("power law"))
    assert np.asarray(solid.get_ydata()) == pytest.approx(np.asarray(solid.get_xdata()) ** -1.5, rel=0.1)
    left, right = draw_training(RAN.losses, RAN.drifts, stop_step=12).axes
    assert left.lines[0].get_ydata().tolist() == [0.9, 0.7, 0.6]
    assert right.lines[0].get_ydata() == pytest.approx([10, 25])
    draw_training((), (), stop_step=None)


KINDS = {
    "stop": (study, None), "run": (study, RAN), "part": (lambda: study(rows=500, rates=[0.1 * (1 - t / 60) for t in range(60)]), RAN),
    "noise": (lambda: study(signal=0.0, n=40), None), "no noise": (lambda: study(noise=1e-6, n=40), None),
    "flat": (lambda: study(exponent=0.2, n=30), None), "adam": (lambda: study(adaptive=True), RAN),
    "one step": (lambda: study(rates=[1e-3]), replace(RAN, losses=(), drifts=())),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_whole_and_refer_to_nothing_outside(tmp_path, kind):
    make, training = KINDS[kind]
    made = make()
    write_stopping_report(tmp_path / "new" / "report.html", made, command=HOSTILE, title=HOSTILE, settings={"model": HOSTILE, "rate": 0.01},
                          training=training)  # fmt: skip
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    test_page.test_it_refers_to_nothing_outside(html)
    found = Page(html)
    assert found.text["title"] == found.text["h1"] == found.text["code"] == HOSTILE
    assert not found.all("script")
    assert len(found.all("h1")) == 1
    assert len(found.all("img")) == 3 + bool(training and training.losses)
    assert all(len(image["alt"]) > 20 for image in found.all("img"))
    identities = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(identities) == len(set(identities))
    for wanted in ("What each rule says", "Assumptions that do not hold", "Spectrum", "Settings", "How to read this page"):
        assert wanted in found.text["h2"]
    assert "prefers-color-scheme: dark" in found.text["style"]
    assert "nan" not in found.text["td"]


def test_hindsight_is_what_the_path_says(known):
    unseen = ((0.0, 2.0), (5.0, 1.6), (12.0, 1.5), (15.0, 1.25), (1000.0, 3.0))
    assert hindsight(known, None) == hindsight(known, RAN) == []
    ran = replace(RAN, unseen=unseen)
    assert hindsight(known, ran) == ["Loss of rows that it did not see: 2 before training, 1.5 at the stop, 25 % less. In hindsight the "
                                     "lowest was 1.25, at epoch 3; at the end of the schedule it was 3."]  # fmt: skip
    foreseen, measured, stop, best = draw_path(known, unseen, stop=12).axes[0].get_lines()
    np.testing.assert_allclose(measured.get_xydata(), np.array(unseen) / [known.per_epoch, 1])
    assert list(stop.get_xdata()) == [12 / 5, 12 / 5]
    assert best.get_xydata().tolist() == [[3.0, 1.25]]
    steps = np.rint(np.asarray(foreseen.get_xdata()) * known.per_epoch).astype(int)
    assert steps[0] == 0
    assert (np.diff(steps) > 0).all()
    assert known.time(int(steps[-1])) <= float(known.validation.eta[-1])
    np.testing.assert_allclose(foreseen.get_ydata(), [known.held(known.time(int(step)))[0] for step in steps])
