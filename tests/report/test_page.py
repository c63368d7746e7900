"""The report is one file, complete, without references, safe against its own inputs, and written whole or not at all."""

import base64
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.figure import Figure

from driftway.report import Quality, evaluate, page, write_report
from driftway.report.page import verdict
from tests.report.known import labelled_translation, rows, translation

HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)> & {{ 7*7 }}"
KINDS = {"2-D": (2,), "5-D": (5,), "digits": (64,)}  # the first under hostile words


class Page(HTMLParser):
    """Every tag with its attributes, and the text inside each kind of tag."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open = [], {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def build(path, event, *, words="driftway transport y.csv", **kind):
    y = rows(60, *event)
    x = None if kind.get("noise") else rows(60, *event, seed=1)
    model = translation(torch.ones(*event), event, **kind)
    write_report(path, model, evaluate(model, x, y), x, y, command=words, title=words)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=KINDS)
def html(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    kind = {"2-D": {"words": HOSTILE}, "digits": {"noise": True}}.get(request.param, {})
    return build(path, KINDS[request.param], **kind)


def test_it_refers_to_nothing_outside(html):
    found = Page(html)
    for _, attrs in found.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert attrs.get(name, "data:").startswith("data:")
    bare = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", bare)
    for picture in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html):
        svg = base64.b64decode(picture).decode()
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', svg))
        assert "<script" not in svg
    assert len(html) < 1_500_000


def test_it_is_accessible_and_complete(html):
    found = Page(html)
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("h1")) == 1
    assert all(len(image["alt"]) > 20 for image in found.all("img"))
    assert len(found.all("img")) >= 5
    assert {cell["scope"] for cell in found.all("th")} == {"row", "col"}
    assert "prefers-color-scheme: dark" in found.text["style"]
    identities = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(identities) == len(set(identities))
    for wanted in ("Pictures", "Quality by number of steps", "Certificate", "Settings", "How to read this page"):
        assert wanted in found.text["h2"]
    for setting in ("driftway", "torch", "python", "float64", "cpu", "mixture", "60"):
        assert setting in found.text["dt"] + found.text["dd"]


LABELLED = {"2-D": (2,), "1-D": (1,), "digits": (64,), "colour": (3, 4, 4)}
CLASSES = (HOSTILE, "$x_", *(f"class {k}" for k in range(10)))


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_have_a_picture(kind, tmp_path, monkeypatch):
    for name in ("samples", "trajectories", "neighbours", "landscape", "quality", "certificate"):
        monkeypatch.setattr(page.plots, f"draw_{name}", lambda *_, **__: Figure((1, 1)))  # the other pictures have their own tests
    event = LABELLED[kind]
    y = rows(60, *event)
    names = [CLASSES[i % 12] for i in range(60)]
    model = labelled_translation({name: torch.full(y[0].shape, float(k)).flatten() for k, name in enumerate(CLASSES)}, event, noise=True)
    evaluation = evaluate(model, None, y, labels=names, steps=[1])
    for given, path in ((names, tmp_path / "with.html"), (None, tmp_path / "without.html")):
        write_report(path, model, evaluation, None, y, command="fit", title="labels", labels=given)
    html, without = ((tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("with", "without"))
    test_it_refers_to_nothing_outside(html)
    found, other = Page(html), Page(without)
    assert "Samples by label" in found.text["h3"]
    assert "Samples by label" not in other.text["h3"]
    assert len(found.all("img")) == len(other.all("img")) + 1
    (alt,) = [image["alt"] for image in found.all("img") if "the first 10 of 12 labels" in image["alt"]]
    assert "class 7" in alt
    assert "class 8" not in alt
    assert ("guidance" in alt) == (kind in ("digits", "colour"))
    assert not found.all("script")
    assert "12 (" in found.text["dd"]
    assert "labels of the held-out rows" in html
    assert "labels of the held-out rows" not in without


def test_titles_and_commands_are_text(html):
    found = Page(html)
    assert found.text["title"] == found.text["h1"] == found.text["code"]
    assert found.text["code"] in (HOSTILE, "driftway transport y.csv")
    assert not found.all("script")
    assert not any(name.startswith("on") for _, attrs in found.tags for name in attrs)


def test_a_run_may_lack_certificates_and_facts(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "pictures", lambda *_: [])
    found = build(tmp_path / "report.html", (1,), noise=True, training={})
    assert "No certificates were computed during training." in found
    assert "<div><dt>training steps</dt><dd>n/a</dd></div>" in found


def test_a_failed_write_keeps_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(page, "render", lambda *_, **__: "new")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        build(path, (1,))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_verdict_is_what_the_numbers_say():
    x = rows(80, 2)
    near, cost = verdict(translation([3, 4]), evaluate(translation([3, 4]), x, x + torch.tensor([3, 4])))
    assert near.startswith("In 4 steps, samples are about as close to held-out data as fresh data is: W2 is ")
    assert re.fullmatch(r"The transport cost is proven to be within \S+ % of the optimum on these rows\.", cost)
    luck = replace(evaluate(translation([0, 0]), x, x), floors=(0.1, 0.9), qualities=(Quality(4, 1.0, 0.8, 1.0, 1.0, 1.0),))
    assert "samples are 1.6 times as far" in verdict(translation([0, 0]), luck)[0]
    assert verdict(translation([0, 0]), luck)[0].endswith("may explain: W2 is 0.8, the floor 0.5 (0.1 to 0.9).")
    far, _ = verdict(translation([3, 4]), evaluate(translation([3, 4]), x, x, steps=[1]))
    assert re.match(r"In 1 step, samples are \d\S* times as far from held-out data as fresh data is: W2 is 4\.9", far)
    _, nothing = verdict(translation([9, 0]), evaluate(translation([9, 0]), x, x))
    assert "proves nothing" in nothing
    _, noisy = verdict(translation([0, 0], sigma=1.0), evaluate(translation([0, 0], sigma=1.0), x, x))
    assert "noisy by design" in noisy


def test_only_the_settings_of_the_family_are_told():
    model = translation([1, 1])
    told = dict(page.settings(model, evaluate(model, rows(8, 2), rows(8, 2))))
    assert told["mixture lr"] == "0.01"
    assert "lr" not in told
