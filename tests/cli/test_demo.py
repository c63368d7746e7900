"""The demo as a person meets it: three parts, a page that leads to their reports, and figures that are those of the reports."""

import re

import pytest
import torch

from driftway.cli import demo, showing, showing_finetune
from driftway.transport import TransportModel
from tests.cli.test_cli import run
from tests.report.test_page import Page

PARTS = ("moons", "digits", "finetune", "adapt")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "QUICK", {"seconds": 0.3, "epochs": 8, "steps": 1})
    monkeypatch.setattr(showing_finetune, "ROWS", 60)
    monkeypatch.setattr(showing_finetune, "PRETRAINING", 20)
    monkeypatch.setattr(showing_finetune, "WIDTH", 64)


def test_the_demo_shows_all_parts_and_leads_to_their_reports(monkeypatch, capsys, tmp_path, small):
    (tmp_path / "demo").mkdir()  # taken
    before = torch.get_rng_state()
    code, out, err = run(monkeypatch, capsys, "demo", "--quick", "--out", tmp_path / "demo", "--seed", 1)
    assert code == 0, err
    assert err == ""
    folder = tmp_path / "demo-2"
    assert not any((tmp_path / "demo").iterdir())
    assert out.splitlines()[-1] == f"open in a browser: {folder / 'index.html'}"
    assert re.search(r"Certificate: .* ≤ W2²/2 ≤ .* on held-out rows", out)
    assert "mean absolute error" in out
    assert out.count("(by cross-validation)") == 1
    assert torch.equal(before, torch.get_rng_state())

    index = (folder / "index.html").read_text(encoding="utf-8")
    page = Page(index)
    assert [link["href"] for link in page.all("a")][::2] == [f"{part}/report.html" for part in PARTS]
    assert len(page.all("img")) == len(PARTS)
    assert "driftway demo --quick --seed 1" in page.text["code"]
    reports = {part: Page((folder / part / "report.html").read_text(encoding="utf-8")) for part in PARTS}
    for part, report in reports.items():
        assert report.text["code"] == page.text["code"], part
        assert f">{report.text['h1']}</a>" in index
    for sentence in out.splitlines():
        if sentence.startswith(("In ", "The transport", "Stop ", "Training ", "On ", "Transfer", "Do not transfer")):
            assert any(sentence in report.text["p"] for report in reports.values()), sentence
    assert TransportModel.load(folder / "digits").classes


def test_the_test_loss_of_the_demo_is_measured_along_the_whole_path(small):
    generator = torch.Generator().manual_seed(0)
    known, (train, test) = showing_finetune._tasks(generator)
    assert len(train.x) + len(test.x) + len(known.x) == 1797
    assert 0.15 < float((train.labels != train.truth).double().mean()) < 0.45
    assert 0.25 < float((test.labels != test.truth).double().mean()) < 0.35
    net = showing_finetune._pretrained(known, generator)
    net[-1] = showing_finetune._linear(64, showing_finetune.CLASSES, generator)
    study, found = showing_finetune._foresee(net, train, 8)
    start = showing_finetune._loss(net, test)
    ran = showing_finetune._train(net, train, test, study, found, generator, lambda done, words: None)
    measured = dict(ran.unseen)
    assert measured[0] == start
    assert measured[study.total] == showing_finetune._loss(net, test)
    assert set(range(0, study.total + 1, study.per_epoch)) | {ran.steps} == set(measured)
    assert ran.eta <= study.stop.eta * (1 + 1e-9) or not ran.stopped
    assert dict(ran.test)["at the end of the schedule"] == showing_finetune._error(net, test)


def test_the_demo_can_be_stopped(monkeypatch, capsys, tmp_path):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(showing, "fit", stopped)
    code, _, err = run(monkeypatch, capsys, "demo", "--out", tmp_path / "demo")
    assert code == 130
    assert err.splitlines() == [f"stopped; what is finished is in {tmp_path / 'demo'}"]


@pytest.mark.parametrize("words", [("--max-seconds", 0), ("--seed", -1)])
def test_the_demo_refuses_what_it_cannot_do(monkeypatch, capsys, tmp_path, words):
    code, out, err = run(monkeypatch, capsys, "demo", "--out", tmp_path / "demo", *words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "demo").exists()
