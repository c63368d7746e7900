"""`driftway adapt` as a person meets it: what it prints, what it writes, what it predicts, and one-line errors."""

import json
import shutil
import sys
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

from driftway import cli
from driftway.adapt import PooledGP, TargetOnlyGP
from driftway.adapt.folder import CLASSES, load
from driftway.cli import adapting
from tests.cli.test_cli import run as command

KINDS = np.array(["flat", "house", "villa"])


def rows(n, shift=0.0, *, seed=0, labels=None):
    """Prices of houses: 10 rooms, less age, more for villas."""
    rng = np.random.default_rng(seed)
    rooms, age, kind = rng.normal(3 + shift, 1, n), rng.uniform(0, 5, n), rng.integers(3, size=n)
    price = 10 * rooms - age + 4 * kind + rng.normal(0, 1, n)
    table = pd.DataFrame({"rooms": rooms.round(3), "age": age.round(3), "kind": KINDS[kind], "price": price.round(3)})
    table.loc[n if labels is None else labels :, "price"] = np.nan
    return table


def write(path, table):
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "s.csv", rows(30)), write(tmp_path / "t.tsv", rows(20, 1.0, seed=1, labels=10))


@pytest.fixture
def adapt(monkeypatch, capsys, tmp_path):
    def call(*words, out=tmp_path / "run"):
        more = ["--out", out, "--steps", 3, "--threads", 1] if out else []
        return command(monkeypatch, capsys, "adapt", *words, *more)

    return call


def test_fit_says_writes_and_predicts(adapt, tmp_path, files):
    source, target = files
    code, said, err = adapt("fit", "--source", source, "--target", target, "--y", "price")
    assert code == 0, err
    assert "nats" in said
    assert "target alone" in said
    folder = tmp_path / "run"
    held = json.loads((folder / "run.json").read_text())
    assert held["command"].startswith("driftway adapt fit --source")
    assert held["verdict"][0].startswith(("Transfer: ", "Do not transfer: "))
    assert held["verdict"][0] in said
    assert held["options"]["y"] == ["price"]
    assert held["table"]["levels"] == {"kind": ["flat", "house", "villa"]}
    page = (folder / "report.html").read_text()
    assert "driftway adapt fit --source" in page
    assert "s.csv:" in page  # a row of the source, by its number in the file
    estimator = load(folder)
    assert estimator.shift_.names == ("rooms", "age", "kind=flat", "kind=house", "kind=villa")
    assert (estimator.shift_.labels, len(estimator.shift_.X)) == (10, 50)

    new = rows(60, 1.0, seed=2)
    new.loc[3, "kind"] = "castle"
    code, said, err = adapt("predict", folder, write(tmp_path / "new.csv", new), "-o", tmp_path / "p.csv", "--level", 0.8, out=None)
    assert code == 0, err
    assert "60 predictions" in said
    assert "column 'kind': 'castle' did not occur" in err
    found = pd.read_csv(tmp_path / "p.csv")
    assert list(found) == ["mean", "std", "low", "high"]
    np.testing.assert_allclose(found["high"] - found["mean"], 1.2816 * found["std"], rtol=1e-4)
    np.testing.assert_allclose(found["mean"] - found["low"], 1.2816 * found["std"], rtol=1e-4)
    error = new["price"] - found["mean"]
    assert (error**2).mean() ** 0.5 < 0.5 * new["price"].std()
    assert f"root mean square error {(error**2).mean() ** 0.5:.4g}" in err
    assert f"{int(((found['low'] <= new['price']) & (new['price'] <= found['high'])).sum())} in their 80 % intervals" in err
    X = np.c_[new["rooms"], new["age"], new["kind"].to_numpy()[:, None] == KINDS].astype(float)
    X = pd.DataFrame(X, columns=list(estimator.shift_.names))
    np.testing.assert_allclose(found["mean"], estimator.predict(X), rtol=1e-9)

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    code, _, err = adapt("fit", "--source", source, "--target", target, "--y", "price")
    assert code == 2
    assert "run.json in" in err
    assert "name another folder" in err
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_estimator_is_a_method():
    assert set(adapting.METHODS.values()) == set(CLASSES.values())


@pytest.mark.parametrize("method", ["reweighted", "dino-train"])
def test_methods_fit_their_estimators(adapt, tmp_path, files, method):
    code, said, err = adapt("fit", "--source", files[0], "--target", files[1], "--y", "price", "--method", method, "--drop", "kind")
    assert code == 0, err
    assert "Fitted: " in said
    assert type(load(tmp_path / "run")) is adapting.METHODS[method]


def test_how_many_rows_are_met(adapt, tmp_path, files):
    options = ("--method", "transfer", "--drop", "kind", "--approximation", "features", "--features", "50")
    code, _, err = adapt("fit", "--source", files[0], "--target", files[1], "--y", "price", *options)
    assert code == 0, err
    found = load(tmp_path / "run")
    assert (found.approximation, found.features) == ("features", 50)
    code, _, err = adapt("fit", "--source", files[0], "--target", files[1], "--y", "price", "--approximation", "nystrom")
    assert code == 2
    assert "exact" in err
    assert "inducing" in err


def test_several_sources_outputs_weights_and_orders_of_columns(adapt, tmp_path):
    tables = [rows(15, seed=3), rows(15, 0.5, seed=4), rows(20, 1.0, seed=5, labels=8)]
    for i, table in enumerate(tables):
        table["rent"] = table["price"] / 100
        table["w"] = 1.0 + i
        table["note"] = [f"n{j}" for j in range(len(table))]
    one, two = write(tmp_path / "a.parquet", tables[0]), write(tmp_path / "[b].csv", tables[1][list(tables[1])[::-1]])
    target = write(tmp_path / "t.csv", tables[2])
    code, said, err = adapt("fit", "--source", one, "--source", two, "--target", target, "--y", "price, rent", "--weight", "w", "--drop",
                            "note", "--method", "pooled")  # fmt: skip
    assert code == 0, err
    for name in ("a.parquet", "[b].csv"):
        assert name in said
    made = load(tmp_path / "run")
    assert isinstance(made, PooledGP)
    assert made.shift_.codes == (-3, 1, 2)
    assert made.shift_.y[15:30].numpy() == pytest.approx(tables[1][["price", "rent"]].to_numpy())
    assert made.shift_.X[15:30, 0].tolist() == tables[1]["rooms"].tolist()
    assert made.shift_.weight.tolist() == [1.0] * 15 + [2.0] * 15 + [3.0] * 20
    assert adapt("predict", tmp_path / "run", target, "-o", tmp_path / "p.parquet", out=None)[0] == 0
    assert list(pd.read_parquet(tmp_path / "p.parquet"))[3:6] == ["price_high", "rent_mean", "rent_std"]


def test_a_target_without_labels_or_without_sources(adapt, tmp_path, files):
    bare = write(tmp_path / "bare.csv", rows(20, seed=6).drop(columns="price"))
    code, said, err = adapt("fit", "--source", files[0], "--target", bare, "--y", "price", "--method", "transfer")
    assert code == 0, err
    assert "has no column 'price'" in said
    assert "No target row has a label" in said
    assert "nothing could be checked" in said
    code, said, err = adapt("fit", "--target", files[1], "--y", "price", "--method", "target", out=tmp_path / "alone")
    assert code == 0, err
    assert isinstance(load(tmp_path / "alone"), TargetOnlyGP)


def test_remarks_on_labels(adapt, tmp_path):
    source, target = rows(20), rows(12, seed=1, labels=6)
    source.loc[1, ["rooms", "age", "kind"]] = source.loc[0, ["rooms", "age", "kind"]]
    target.loc[:5, "price"] = 7.0
    words = ["fit", "--source", write(tmp_path / "s.csv", source), "--target", write(tmp_path / "t.csv", target), "--y", "price"]
    code, said, err = adapt(*words, "--method", "pooled")
    assert code == 0, err
    assert "2 labelled rows have the inputs of another row" in said
    assert "All 6 target labels equal 7" in said
    assert "6 labels of the target are few" in said


def changed(**columns):
    return lambda table: table.assign(**columns)


def cell(row, name, value):
    def change(table):
        table = table.astype({name: object})
        table.loc[row, name] = value
        return table
    return change  # fmt: skip


BAD = {
    "y": (None, None, ["--y", "prize"], ["y: expected columns among rooms, age, kind, price", "no column 'prize'"]),
    "drop": (None, None, ["--drop", "agee"], ["drop: expected columns among", "'agee'"]),
    "weight": (None, None, ["--weight", "w"], ["weight: expected columns among", "'w'"]),
    "method": (None, None, ["--method", "magic"], ["method", "mean-embedding"]),
    "steps": (None, None, ["--seed", -1], ["seed", ">= 0"]),
    "missing in the target": (None, lambda t: t.drop(columns="age"), [], ["target: expected a column 'age'", "rooms, kind, price", "tsv"]),
    "missing in the source": (lambda t: t.drop(columns="age"), None, [], ["source: expected a column 'age'", "s.csv"]),
    "no y in the source": (lambda t: t.drop(columns="price"), None, [], ["source: expected the column 'price'", "rooms, age, kind"]),
    "no target rows": (None, lambda t: t[:0], [], ["target", "at least one row", "no rows"]),
    "no label in the source": (cell(4, "price", None), None, [], ["source", "a label in every row", "row 6, column 'price'"]),
    "empty cell": (None, cell(2, "age", None), [], ["target", "an empty one at row 4, column 'age' (1 such cells)", "drop"]),
    "text among numbers": (cell(3, "age", "old"), None, [], ["source", "'old' at row 5, column 'age'"]),
    "text in y": (None, changed(price="much"), [], ["target: expected numbers in column 'price'", "'much' at row 2"]),
    "dates": (changed(age="2020-01-02"), changed(age="2020-01-02"), [], ["date", "column 'age'", "drop the column"]),
    "many texts": (lambda t: t.assign(age=[f"n{i}" for i in range(len(t))]), changed(age="n1"), [], ["at most 50", "'age'"]),
    "no inputs": (None, None, ["--drop", "rooms,age,kind"], ["columns to predict price from"]),
    "no labels for target": (None, lambda t: t.assign(price=np.nan), ["--method", "target"], ["labels in", "--method pooled"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_line_and_exit_code_2(adapt, tmp_path, kind):
    first, second, words, shown = BAD[kind]
    n = 70 if kind == "many texts" else 12
    source, target = rows(n), rows(12, labels=6)
    source, target = (table if change is None else change(table) for table, change in ((source, first), (target, second)))
    given = ["fit", "--source", write(tmp_path / "s.csv", source), "--target", write(tmp_path / "t.tsv", target)]
    code, said, err = adapt(*given, *([] if "--y" in words else ["--y", "price"]), *words)
    assert code == 2
    assert said == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert all(word in err for word in shown), err
    assert not (tmp_path / "run").exists()


def test_all_labels_missing(adapt, tmp_path):
    code, _, err = adapt("fit", "--target", write(tmp_path / "t.csv", rows(9, labels=0)), "--y", "price")
    assert code == 2
    assert "y: expected at least one label" in err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on the target alone."""
    place = tmp_path_factory.mktemp("adapt")
    write(place / "t.csv", rows(12, labels=8))
    with pytest.MonkeyPatch.context() as patch:
        words = ["--target", place / "t.csv", "--y", "price", "--out", place / "run", "--method", "target", "--steps", 2]
        patch.setattr(sys, "argv", ["driftway", "adapt", "fit", *map(str, words)])
        with suppress(SystemExit):
            cli.main()
    return place / "run"


@pytest.mark.parametrize(("change", "words", "shown"), [
    (lambda t: t.drop(columns="kind"), [], ["data: expected a column 'kind'"]),
    (cell(1, "rooms", None), [], ["data", "row 3, column 'rooms'"]),
    (changed(rooms="many"), [], ["data: expected numbers in column 'rooms'", "'many' at row 2"]),
    (None, ["--level", 1.0], ["level", "0 and 1"]),
    (None, ["--level", 0], ["level", "> 0"]),
    (None, ["-o", "p.png"], ["-o", "a table"]),
])  # fmt: skip
def test_bad_rows_to_predict(adapt, tmp_path, folder, change, words, shown):
    table = rows(5)
    data = write(tmp_path / "n.csv", table if change is None else change(table))
    code, said, err = adapt("predict", folder, data, *(words if "-o" in words else ["-o", tmp_path / "p.csv", *words]), out=None)
    assert code == 2
    assert said == ""
    assert err.count("\n") == 1
    assert all(word in err for word in shown), err
    assert not (tmp_path / "p.csv").exists()


def test_one_row_can_be_predicted(adapt, tmp_path, folder):
    code, _, err = adapt("predict", folder, write(tmp_path / "n.csv", rows(1)), "-o", tmp_path / "p.csv", out=None)
    assert code == 0, err
    assert len(pd.read_csv(tmp_path / "p.csv")) == 1


@pytest.mark.parametrize(("name", "text", "shown"), [
    ("run.json", "{", "a whole run.json"),
    ("run.json", '{"version": 1, "table": {"columns": [1], "levels": {}, "outputs": ["price"]}}', "a whole run.json"),
    ("run.json", '{"version": 1, "table": {"columns": ["a"], "levels": {}, "outputs": ["price"]}}', "the columns of the model"),
    ("run.json", '{"version": 1, "table": {"columns": ["a"], "levels": {"a": "bc"}, "outputs": ["price"]}}', "a whole run.json"),
    ("run.json", None, "no run.json"), ("model.safetensors", "x", "damaged"), ("config.json", None, "no config.json"),
])  # fmt: skip
def test_a_changed_run_is_refused(adapt, tmp_path, folder, name, text, shown):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / name).unlink() if text is None else (copy / name).write_text(text)
    code, _, err = adapt("predict", copy, write(tmp_path / "n.csv", rows(3)), "-o", tmp_path / "p.csv", out=None)
    assert code == 2
    assert err.count("\n") == 1
    assert shown in err
