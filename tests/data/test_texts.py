"""Texts with labels: every fault in one line, every text as it was written."""

import json
import re

import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driftway.checks import InputError
from driftway.data import Texts, read_texts


def fault(path, **options):
    """The one line that reading ends in."""
    with pytest.raises(InputError) as caught:
        read_texts("--data", path, **options)
    text = str(caught.value)
    assert text.startswith("--data: expected ")
    assert "\n" not in text
    return text


@pytest.fixture
def written(tmp_path):
    def write(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def rows(labels, n=24, texts=None):
    labels = [labels[i % len(labels)] for i in range(n)]
    return {"text": texts or [f"text {i}, it's" for i in range(n)], "label": labels}


def csv(tmp_path, columns, name="a.csv", **options):
    path = tmp_path / name
    pd.DataFrame(columns).to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",", **options)
    return path


def parquet(tmp_path, columns, name="a.parquet"):
    path = tmp_path / name
    pd.DataFrame(columns).to_parquet(path)
    return path


def saved(folder, columns, shards=1, names=None, state=None, types=None):
    """What `datasets` writes by save_to_disk."""
    folder.mkdir(parents=True)
    table = pa.table(columns) if types is None else pa.table(columns, schema=pa.schema(types))
    size = -(-len(table) // shards)
    files = []
    for i in range(shards):
        files.append({"filename": f"data-{i:05}-of-{shards:05}.arrow"})
        with pa.OSFile(str(folder / files[-1]["filename"]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table.slice(i * size, size), max_chunksize=5)
    kinds = {name: {"dtype": str(table.schema.field(name).type), "_type": "Value"} for name in table.column_names}
    if names:
        kinds["label"] = {"names": names, "_type": "ClassLabel"}
    (folder / "dataset_info.json").write_text(json.dumps({"features": kinds}))
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_format_type": None, "_split": "train"} | (state or {})))
    return folder


@pytest.mark.parametrize("write", [csv, parquet, lambda t, c: csv(t, c, "a.tsv"), lambda t, c: saved(t / "a", c, shards=2)])
@pytest.mark.parametrize(("labels", "classes", "codes"), [
    (["pos", "neg", "other"], ("neg", "other", "pos"), [2, 0, 1]),
    ([10, 9], ("9", "10"), [1, 0]),
    ([-1, 1], ("-1", "1"), [0, 1]),
    ([True, False], ("False", "True"), [1, 0]),
    ([2.0, 1.0], ("1", "2"), [1, 0]),
    (["03", "1"], ("1", "3"), [1, 0]),
    (["3", "x"], ("3", "x"), [0, 1]),
])  # fmt: skip
def test_classes(tmp_path, write, labels, classes, codes):
    columns = rows(labels)
    columns["text"][3] = 'a "quoted"\nline, and\nmore'
    path = write(tmp_path, columns)
    found = read_texts("--data", path)
    assert isinstance(found, Texts)
    assert found.texts == columns["text"]
    assert found.classes == classes
    assert found.labels.dtype == torch.int64
    assert found.labels.tolist() == (codes * 24)[:24]
    assert found.path == path


@pytest.mark.parametrize("write", [csv, parquet, lambda t, c: saved(t / "a", c)])
@pytest.mark.parametrize(("labels", "kind"), [([0.5, 1.0, -3e2], "auto"), ([3, 1, 2], "numbers"), (list(range(13)), "auto"),
                                              (list(range(21)), "auto")])  # fmt: skip
def test_numbers(tmp_path, write, labels, kind):
    columns = rows(labels)
    found = read_texts("--data", write(tmp_path, columns), kind=kind)
    assert found.classes == ()
    assert found.labels.dtype == torch.float32
    assert found.labels.tolist() == [pytest.approx(x) for x in columns["label"]]


def test_whole_numbers_are_classes_if_few_or_if_told(tmp_path):
    few, many = (csv(tmp_path, rows(list(range(k)), n=60), f"{k}.csv") for k in (20, 21))
    assert read_texts("--data", few).classes == tuple(map(str, range(20)))
    assert read_texts("--data", many).classes == ()
    assert read_texts("--data", many, kind="classes").classes == tuple(map(str, range(21)))
    assert read_texts("--data", few, kind="numbers").classes == ()


def test_other_columns_and_names(tmp_path):
    columns = {"id": range(24), "review": rows([0])["text"], "stars": rows([1, 5])["label"], "note": [None] * 24}
    for path in (csv(tmp_path, columns), parquet(tmp_path, columns)):
        found = read_texts("--data", path, text="review", label="stars")
        assert found.texts == columns["review"]
        assert found.classes == ("1", "5")
        assert "expected columns among id, review, stars, note, got no column 'text'" in fault(path, label="stars")
        assert "got no column 'label'" in fault(path, text="review")


def test_parquet_categories(tmp_path):
    columns = rows([0]) | {"label": pd.Categorical(["b", "a"] * 12)}
    found = read_texts("--data", parquet(tmp_path, columns))
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [1, 0] * 12


def test_class_names_of_a_data_set_and_its_splits(tmp_path):
    whole = tmp_path / "whole"
    saved(whole / "train", rows([1, 0, 1]), shards=3, names=["neg", "pos", "unused"])
    saved(whole / "test", rows([0, 1], n=4), names=["neg", "pos", "unused"])
    (whole / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    train = read_texts("--data", whole)
    assert train.classes == ("neg", "pos", "unused")
    assert train.labels.tolist() == [1, 0, 1] * 8
    assert train.texts == rows([0])["text"]
    test = read_texts("--data", whole, split="test", classes=train.classes)
    assert test.labels.tolist() == [0, 1, 0, 1]
    other = read_texts("--data", whole, split="test", classes=("pos", "neg"))
    assert other.labels.tolist() == [1, 0, 1, 0]
    assert read_texts("--data", whole, kind="numbers").labels.tolist() == [1.0, 0.0, 1.0] * 8
    assert "expected a split among train, test, got no split 'dev'" in fault(whole, split="dev")
    hidden = saved(tmp_path / "hidden", rows([-1, 0]), names=["neg", "pos"])
    assert "expected a label in every row, got none at rows 1, 3, 5, 7, 9, ... (12 of 24)" in fault(hidden)
    beyond = saved(tmp_path / "beyond", rows([0, 7]), names=["neg", "pos"])
    assert "expected class numbers from 0 to 1, got 7 at row 2" in fault(beyond)


def test_parquet_of_datasets_keeps_class_names(tmp_path):
    table = pa.table(rows([1, 0]))
    info = {"info": {"features": {"text": {"_type": "Value"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    pa.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "a.parquet")
    assert read_texts("--data", tmp_path / "a.parquet").classes == ("no", "yes")


def test_shards_come_in_the_order_of_the_state(tmp_path):
    folder = saved(tmp_path / "a", rows([0, 1]), shards=2)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    texts = rows([0])["text"]
    assert read_texts("--data", folder).texts == texts[12:] + texts[:12]


def test_bad_folders(tmp_path, written):
    assert "expected a folder saved by datasets (dataset.save_to_disk), got no state.json" in fault(tmp_path)
    assert "expected rows in their order, got a selection of rows" in fault(
        saved(tmp_path / "a", rows([0, 1]), state={"_indices_data_files": [{"filename": "indices.arrow"}]}))
    assert "expected no split for a single data set, got split 'train'" in fault(saved(tmp_path / "b", rows([0, 1])), split="train")
    lost = saved(tmp_path / "c", rows([0, 1]), shards=2)
    (lost / "data-00001-of-00002.arrow").unlink()
    assert "expected a whole data set, got damage" in fault(lost)
    torn = saved(tmp_path / "d", rows([0, 1]))
    file = torn / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:300])
    assert "expected a whole data set, got damage" in fault(torn)
    for content in ("{", "[]", "{}"):
        (torn / "state.json").write_text(content)
        assert "expected a whole data set, got damage" in fault(torn)
    assert "without data files" in fault(saved(tmp_path / "e", rows([0, 1]), state={"_data_files": []}))


def test_bad_files(tmp_path, written):
    assert "which does not exist" in fault(tmp_path / "none.csv")
    assert "expected a file ending in .csv, .tsv, .parquet, or a folder saved by datasets" in fault(written("{}", "a.json"))
    for name in ("a.csv", "a.parquet"):
        assert "expected rows of texts, got an empty file" in fault(written("", name))
    assert "expected the names of columns in the first line, got an empty line" in fault(written("\n\n"))
    assert "expected the names of columns in the first line, got an empty line" in fault(written("\ntext,label\na,1\n"))
    assert "expected at least 20 rows, got 0" in fault(written("text,label\n"))
    assert "expected UTF-8 text, got other bytes" in fault(written("text,label\ncaf\xe9,1\n".encode("latin-1")))
    assert "expected UTF-8 text" in fault(written("text,label\na,1\n".encode("utf-16")))
    assert "expected a whole file, got damage" in fault(written("PAR1 and no more", "a.parquet"))
    assert re.search(r"expected a whole file, got damage \(.*line 3.*double the quotes", fault(written("text,label\na,1\nb, c,2\n")))
    assert re.search(r"expected a whole file, got damage \(.*EOF inside string", fault(written('text,label\n"a,1\nb,2\n')))
    assert "expected several columns, got one, named 'text;label'" in fault(written("text;label\na;1\n"))
    assert "expected texts without tabs, got some at row 2" in fault(written('text\tlabel\n"open\t1\n"shut\t0\n' + "a\t1\n" * 20, "a.tsv"))
    assert "expected no split for a single file" in fault(csv(tmp_path, rows([0, 1])), split="train")
    assert "expected columns with names of their own, got column 'text' twice" in fault(written("text,text,label\na,b,1\n"))


def test_rows_without_text_or_label(tmp_path, written):
    body = ["a,1", "b,2"] * 10
    assert fault(written("\n".join(["text,label", *body, " ,1", "", "c,2", ",2"]))).startswith(
        "--data: expected a text in every row, got none at rows 22, 25 (2 of 23)")
    assert "expected a label in every row, got none at rows 2, 4 (2 of 23)" in fault(
        written("\n".join(["text,label", "a,", "b,1", "c", *body])))
    assert "expected a label in every row, got none at row 1 (1 of 24)" in fault(
        parquet(tmp_path, rows([0.5, 2.5]) | {"label": [None] + [1.5, 2.5, 3.5] * 7 + [1.0, 2.0]}))
    assert "expected a text in every row, got none at row 2 (1 of 24)" in fault(
        parquet(tmp_path, rows([0, 1], texts=["a", None] + ["b"] * 22)))
    found = read_texts("--data", written("\n".join(["text,label", *body, "", "null,1", ",", ""])))
    assert len(found.texts) == 21
    assert found.texts[-1] == "null"


def test_labels_that_cannot_be_used(tmp_path):
    assert "expected at least 20 rows, got 19" in fault(csv(tmp_path, rows([0, 1], n=19)))
    assert "expected labels that differ, got 'a' in all 24 rows" in fault(csv(tmp_path, rows(["a"])))
    assert "expected labels that differ, got '0.5' in all 24 rows" in fault(csv(tmp_path, rows([0.5])))
    assert "expected labels that differ, got '7' in all 24 rows" in fault(csv(tmp_path, rows([7])))
    assert "expected at most 12 different labels in 24 rows, got 13 of 'label'" in fault(csv(tmp_path, rows([f"c{i}" for i in range(13)])))
    assert "expected labels of text or whole numbers, got 0.5 at row 3" in fault(csv(tmp_path, rows([1, 0.5])), kind="classes")
    assert "expected finite numbers as labels, got 'x' at row 3 (12 such rows)" in fault(csv(tmp_path, rows([1, "x"])), kind="numbers")
    assert "expected finite numbers as labels, got inf at row 2 (12 such rows)" in fault(parquet(tmp_path, rows([0.5, float("inf")])))
    assert "expected text, numbers or booleans in column 'label', got list at row 1" in fault(parquet(tmp_path, rows([[1], [2]])))
    assert "expected text in column 'text', got int at row 1" in fault(parquet(tmp_path, rows([0, 1], texts=list(range(24)))))
    with pytest.raises(InputError, match="kind: expected one of auto, classes, numbers, got 'both'"):
        read_texts("--data", csv(tmp_path, rows([0, 1])), kind="both")


def test_test_data_is_read_with_the_classes_of_training(tmp_path):
    path = csv(tmp_path, rows([2, 1], n=3))
    assert read_texts("--test", path, classes=("1", "2", "3")).labels.tolist() == [1, 0, 1]
    assert read_texts("--test", path, classes=()).labels.tolist() == [2.0, 1.0, 2.0]
    assert read_texts("--test", csv(tmp_path, rows(["b"], n=1)), classes=("a", "b")).labels.tolist() == [1]
    with pytest.raises(InputError, match=r"--test: expected labels among a, b, got 'c' at row 3.*drop these rows"):
        read_texts("--test", csv(tmp_path, rows(["a", "c"], n=3)), classes=("a", "b"))
    with pytest.raises(InputError, match="--test: expected at least 1 rows, got 0"):
        read_texts("--test", csv(tmp_path, rows(["a"], n=0)), classes=("a", "b"))


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff", exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text.strip())  # fmt: skip


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORDS, st.integers(-3, 3)), min_size=20, max_size=30).filter(lambda r: len({label for _, label in r}) > 1))
def test_every_format_gives_the_same(tmp_path, drawn):
    """As long as a text does not begin with spaces, which csv files may be aligned with."""
    columns = {"text": [text.lstrip() for text, _ in drawn], "label": [label for _, label in drawn]}
    path = tmp_path / "set"
    if path.exists():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    one, two, three = (read_texts("--data", file) for file in (csv(tmp_path, columns), parquet(tmp_path, columns), saved(path, columns)))
    assert one.texts == two.texts == three.texts == columns["text"]
    assert one.classes == two.classes == three.classes
    assert one.labels.tolist() == two.labels.tolist() == three.labels.tolist()
    assert [int(one.classes[i]) for i in one.labels] == columns["label"]
