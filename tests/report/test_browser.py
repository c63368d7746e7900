"""Every kind of page in a browser, and without one: whole by itself, at the width of a phone, and legible in the light and in the dark.

All pages are opened in one headless Chromium, each in frames of two widths and two colour schemes, by a page whose script measures them.
"""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from matplotlib.figure import Figure

from driftway.adapt import PooledGP
from driftway.adapt.explain import explain
from driftway.checks import InputError
from driftway.report import evaluate, write_report, write_stopping_report
from driftway.report.adapt import write_adaptation_report
from driftway.report.index import Entry, write_index
from driftway.report.template import picture
from tests.adapt.fitted import fitted
from tests.report.known import labelled_translation, rows, translation
from tests.report.test_page import HOSTILE, Page
from tests.report.test_stopping import RAN, study

KINDS = ("transport", "labels", "stopping", "adapt", "index")
PHONE, DESK = 360, 1200
LONG = "a_column_with_a_name_that_is_as_long_as_such_names_get_where_nobody_minds"
UNSEEN = ((0.0, 1.1), (5.0, 0.9), (12.0, 0.8), (15.0, 0.75), (1000.0, 1.2))

MEASURE = """
const frames = [];
for (const [kind, page] of Object.entries(PAGES)) for (const width of WIDTHS) for (const scheme of ['light', 'dark']) {
  const frame = document.createElement('iframe');
  frame.style = `width:${width}px;height:800px;border:0;color-scheme:${scheme}`;
  frame.srcdoc = page;
  document.body.append(frame);
  frames.push({kind, width, scheme, frame});
}
const luminance = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const rgb = text => { const n = text.match(/[\\d.]+/g).map(Number); const unit = text.startsWith('color(') ? 255 : 1;
  return [...n.slice(0, 3).map(v => v * unit), n[3] === undefined ? 1 : n[3]]; };
function over(element, view) { // the colour behind an element
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(rgb(view.getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((under, c) => under.map((v, i) => c[3] * c[i] + (1 - c[3]) * v), [255, 255, 255]);
}
function measure({kind, width, scheme, frame}) {
  const d = frame.contentDocument, view = frame.contentWindow;
  let low = [99, ''];
  const walk = d.createTreeWalker(d.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) if (node.data.trim()) {
    const e = node.parentElement, pair = [luminance(rgb(view.getComputedStyle(e).color)), luminance(over(e, view))].sort();
    const contrast = (pair[1] + 0.05) / (pair[0] + 0.05);
    if (contrast < low[0]) low = [contrast, node.data.trim().slice(0, 40)];
  }
  const wide = [...d.querySelectorAll('.wide, .card')];
  return {kind, width, scheme, page: d.documentElement.scrollWidth, dark: view.matchMedia('(prefers-color-scheme: dark)').matches,
    back: luminance(rgb(view.getComputedStyle(d.body).backgroundColor)), contrast: low,
    images: [...d.images].map(image => image.naturalWidth),
    turned: [...d.images].map(image => view.getComputedStyle(image).filter !== 'none'),
    given: [...d.images].map(image => image.closest('.given') !== null), drawn: [...d.images].map(image => image.clientWidth),
    scrolls: wide.filter(e => e.scrollWidth > e.clientWidth).length,
    spills: wide.filter(e => e.scrollWidth > e.clientWidth && view.getComputedStyle(e).overflowX !== 'auto').length,
    asked: view.performance.getEntriesByType('resource').map(entry => entry.name.slice(0, 80)).filter(name => !name.startsWith('data:'))};
}
addEventListener('load', () => {
  const out = document.createElement('pre');
  out.id = 'found';
  out.textContent = JSON.stringify(frames.map(measure));
  document.body.append(out);
});
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One small page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    words = {"command": "driftway demo", "title": LONG}
    paths = {kind: folder / f"{kind}.html" for kind in KINDS}

    x, y = rows(40, 2), rows(40, 2, seed=1)
    model = translation(torch.ones(2), (2,))
    write_report(paths["transport"], model, evaluate(model, x, y), x, y, **words)

    model, names = labelled_translation({"a": [1.0, 1], "b": [-1.0, 1]}), ["a", "b"] * 20
    write_report(paths["labels"], model, evaluate(model, x, y, labels=names), x, y, labels=names, **words)

    known = study(40)
    ran = replace(RAN, unseen=UNSEEN)
    write_stopping_report(paths["stopping"], known, settings={LONG: LONG}, training=ran, **words)

    explanation = explain(fitted(PooledGP, sources=1, labels=12), permutations=19, domains=("target", LONG))
    write_adaptation_report(paths["adapt"], explanation, settings={LONG: 1}, measured="On rows that no fit has seen.", **words)

    figure = Figure()
    figure.subplots().plot([0, 1])
    shown = picture(figure, "A line", "A line that rises.", "Words.")
    entry = Entry(LONG, "What was asked.", ("What came out.",), "run/report.html", shown)
    write_index(paths["index"], [entry, replace(entry, title="Another")], verdict=["Two runs."], settings={"seed": 0}, **words)
    return {kind: path.read_text(encoding="utf-8") for kind, path in paths.items()}


@pytest.fixture(scope="module")
def seen(pages, tmp_path_factory):
    """What the browser measures of each page, by kind, width and scheme; and what it wrote to its console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome on the PATH")
    folder = tmp_path_factory.mktemp("browser")
    script = f"const PAGES = {json.dumps(pages)}, WIDTHS = [{PHONE}, {DESK}];{MEASURE}".replace("</", "<\\/")
    frame = folder / "frame.html"
    frame.write_text(f"<!DOCTYPE html><html><head><link rel='icon' href='data:,'></head><body><script>{script}</script></body></html>",
                     encoding="utf-8")  # fmt: skip
    ran = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}",
                          "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom", frame.as_uri()],
                         capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    told = re.search(r'<pre id="found">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert told, ran.stderr[-2000:]
    found = json.loads(told[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return {(one["kind"], one["width"], one["scheme"]): one for one in found}, ran.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_by_itself(pages, kind):
    found, html = Page(pages[kind]), pages[kind]
    assert found.all("html")[0]["lang"] == "en"
    assert found.text["title"] == LONG
    assert len(found.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.all("meta")
    assert found.all("img")
    assert all(len(image["alt"]) > 15 and image["src"].startswith("data:image/") for image in found.all("img"))
    assert not found.all("script")
    assert all({"role", "aria-label"} <= set(svg) for svg in found.all("svg"))
    for tag, attrs in found.tags:
        named = {name: attrs[name] for name in ("src", "href", "srcset", "action", "poster") if name in attrs}
        inside = "run/report.html" if tag == "a" else "data:"
        assert all(value.startswith(inside) for value in named.values()), (tag, named)
        assert not any(name.startswith("on") for name in attrs)
    bare = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|url\(|@import", bare)
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in found.tags if "aria-labelledby" in attrs} <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_a_phone_and_its_tables_move_in_their_boxes(seen, kind):
    for scheme in ("light", "dark"):
        phone, desk = seen[0][kind, PHONE, scheme], seen[0][kind, DESK, scheme]
        assert phone["page"] <= PHONE
        assert desk["page"] <= DESK
        assert phone["spills"] == desk["spills"] == 0
        assert phone["scrolls"] > 0
        assert min(phone["drawn"]) >= 250  # legible: a wide one moves in its frame


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_legible_in_the_light_and_in_the_dark(seen, kind):
    for width in (PHONE, DESK):
        light, dark = (seen[0][kind, width, scheme] for scheme in ("light", "dark"))
        assert (light["dark"], dark["dark"]) == (False, True)
        assert light["back"] > 0.8
        assert dark["back"] < 0.05
        for page in (light, dark):
            assert page["contrast"][0] >= 4.5, page["contrast"]
        assert not any(light["turned"])
        assert dark["turned"] == [not given for given in dark["given"]]
        assert any(dark["given"]) == (kind in ("transport", "labels", "adapt"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_asks_for_nothing_and_its_pictures_are_drawn(seen, kind):
    for (name, _, _), page in seen[0].items():
        if name == kind:
            assert page["asked"] == []
            assert page["images"]
            assert min(page["images"]) > 100


def test_the_console_is_silent(seen):
    assert "CONSOLE" not in seen[1], [line for line in seen[1].splitlines() if "CONSOLE" in line]


def test_a_page_of_pages_leads_to_files_beside_it_only(pages, tmp_path):
    links = Page(pages["index"]).all("a")
    assert {link["href"] for link in links} == {"run/report.html"}
    figure = Figure()
    for href in ("https://example.org/report.html", "/etc/report.html", "../report.html", "javascript:report.html", "run/report.txt"):
        with pytest.raises(InputError, match="href: expected the path of an HTML file"):
            Entry("a", "b", (), href, picture(figure, "a", "b", "c"))
    entry = Entry(HOSTILE, HOSTILE, (HOSTILE,), "run/report.html", picture(figure, HOSTILE, HOSTILE, HOSTILE))
    write_index(tmp_path / "new" / "index.html", [entry], command=HOSTILE, title=HOSTILE, verdict=[HOSTILE], settings={HOSTILE: HOSTILE})
    found = Page((tmp_path / "new" / "index.html").read_text(encoding="utf-8"))
    assert found.text["h1"] == HOSTILE
    assert len(found.all("img")) == 1
    assert not found.all("script")
