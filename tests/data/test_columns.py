"""Columns of numbers and of text are told apart, and what is neither is refused by row and column; text becomes columns of 0 and 1."""

import numpy as np
import pandas as pd
import pytest

from driftway.checks import InputError
from driftway.data import encoding_of, read_columns


def write(path, text):
    path.write_text(text)
    return path


GOOD = "size,kind,flag,none\n1.5,flat,True,\n-2e1, a house ,false,NA\n\n,villa,1,nan\n"


def test_columns_of_a_csv_file(tmp_path):
    found = read_columns("target", write(tmp_path / "t.csv", GOOD))
    assert found.names == ("size", "kind", "flag", "none")
    assert list(found.rows) == [2, 3, 5]
    assert len(found) == 3
    np.testing.assert_array_equal(found.values["size"], [1.5, -20, np.nan])
    assert found.values["kind"].tolist() == ["flat", "a house", "villa"]
    assert found.values["flag"].tolist() == [1, 0, 1]
    assert np.isnan(found.values["none"]).all()
    assert found.empty("size").tolist() == [False, False, True]
    assert [found.is_text(name) for name in found.values] == [False, True, False, False]


def test_a_tsv_and_a_parquet_file_give_the_same(tmp_path):
    one = read_columns("t", write(tmp_path / "t.csv", GOOD))
    two = read_columns("t", write(tmp_path / "t.tsv", GOOD.replace(",", "\t")))
    frame = pd.DataFrame({"size": [1.5, -20, None], "kind": pd.Categorical(["flat", "a house", "villa"]), "flag": [True, False, True],
                          "none": [None, None, None]})  # fmt: skip
    frame.to_parquet(tmp_path / "t.parquet")
    three = read_columns("t", tmp_path / "t.parquet")
    for other in (two, three):
        for name, values in one.values.items():
            np.testing.assert_array_equal(values, other.values[name])
    assert list(three.rows) == [1, 2, 3]


def test_only_what_is_asked_for_is_read(tmp_path):
    path = write(tmp_path / "t.csv", "a,day,c\n1,2020-01-02,x\n2,2020-01-03,y\n")
    assert list(read_columns("t", path, drop=["day"]).values) == ["a", "c"]
    found = read_columns("t", path, only=["c", "more"])
    assert list(found.values) == ["c"]
    assert found.names == ("a", "day", "c")


@pytest.mark.parametrize(("text", "words"), [
    ("a,b\n1,2\n3,x\n4,5\n6,7\n", ["numbers", "'x' at row 3, column 'b'", "empty it"]),
    ("a,b\n1,2\n3,inf\n", ["finite", "inf at row 3", "'b'"]),
    ("a,b\n1,2020-03-04\n2,2020-03-05\n", ["date", "'2020-03-04' at row 2", "'b'", "month"]),
    ("a,b\n1,4.3.2020\n2,5.3.2020\n", ["date", "4.3.2020"]),
    ("a,b\n1,12:30\n2,12:45\n", ["time", "12:30"]),
    ("a,b\n1,2\n3\n", ["2 cells in every row", "1 at row 3"]),
    ("a,a\n1,2\n", ["names of their own", "'a' twice"]),
    ("a,\n1,2\n", ["a name for every column", "column 2"]),
    ("a,b\n", ["at least one row"]),
    ("1,2\n3,4\n", ["names of columns in the first row"]),
    ("a;b\n1;2\n", ["several columns", "by commas"]),
    ("", ["empty file"]),
])  # fmt: skip
def test_bad_files_are_refused_by_row_and_column(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        read_columns("target", write(tmp_path / "t.csv", text))
    assert str(caught.value).startswith("target: expected ")
    assert all(word in str(caught.value) for word in (*words, "t.csv")), caught.value


def test_other_files_are_refused(tmp_path):
    pd.DataFrame({"a": [1, 2], "day": pd.to_datetime(["2020-01-02", "2020-01-03"])}).to_parquet(tmp_path / "d.parquet")
    pd.DataFrame({"a": [[1], [2]]}).to_parquet(tmp_path / "l.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "l.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    for name, word in (("d.parquet", "2020-01-02 00:00:00' at row 1"), ("l.parquet", "row 1, column 'a'"), ("b.parquet", "damage"),
                       ("l.csv", "UTF-8"), ("none.csv", "does not exist"), ("t.npy", "does not exist"), ("", "convert")):  # fmt: skip
        with pytest.raises(InputError, match="target: expected") as caught:
            read_columns("target", tmp_path / name)
        assert word in str(caught.value)


@pytest.fixture
def tables(tmp_path):
    one = read_columns("source", write(tmp_path / "s.csv", "size,kind,y\n1,flat,5\n2,house,6\n"))
    two = read_columns("target", write(tmp_path / "t.csv", "kind,size\nvilla,3\n"))
    return [("source", one), ("target", two)]


def test_text_becomes_columns_of_0_and_1(tables):
    found = encoding_of(tables, ["size", "kind"])
    assert found.levels == {"kind": ("flat", "house", "villa")}
    assert found.names == ("size", "kind=flat", "kind=house", "kind=villa")
    assert found.encode("source", tables[0][1]).tolist() == [[1, 1, 0, 0], [2, 0, 1, 0]]
    assert found.encode("target", tables[1][1]).tolist() == [[3, 0, 0, 1]]


def test_unknown_texts_count_as_none_and_are_named(tmp_path, tables):
    found = encoding_of(tables, ["size", "kind"])
    new = read_columns("data", write(tmp_path / "n.csv", "size,kind\n7,castle\n8,flat\n9,hut\n"))
    assert found.encode("data", new).tolist() == [[7, 0, 0, 0], [8, 1, 0, 0], [9, 0, 0, 0]]
    assert found.unknown(new) == {"kind": ["castle", "hut"]}
    assert not found.unknown(tables[0][1])


def test_levels_that_read_as_numbers_are_found_again(tmp_path):
    first = read_columns("source", write(tmp_path / "s.csv", "zone,y\n1,5\nA,6\nB,7\n"))
    found = encoding_of([("source", first)], ["zone"])
    new = read_columns("data", write(tmp_path / "n.csv", "zone\n1\n"))
    assert not new.is_text("zone")
    assert found.encode("data", new).tolist() == [[1, 0, 0]]
    assert not found.unknown(new)


@pytest.mark.parametrize(("text", "words"), [
    ("size\n3\n", ["target: expected a column 'kind'", "size in"]),
    ("size,kind\n,flat\n", ["a value in every cell", "row 2, column 'size' (1 such cells)", "drop"]),
    ("size,kind\n3,flat\n4,\n", ["row 3, column 'kind'"]),
    ("size,kind\n3,7\n", ["text in column 'kind'", "numbers in"]),
    ("size,kind\nlarge,flat\n", ["numbers in", "column 'size'"]),
    ("size,kind\n" + "".join(f"1,k{i}\n" for i in range(60)), ["at most 50 different texts in column 'kind'", "62"]),
])  # fmt: skip
def test_tables_that_do_not_fit_are_refused(tmp_path, tables, text, words):
    other = read_columns("target", write(tmp_path / "t.csv", text))
    with pytest.raises(InputError) as caught:
        encoding_of([tables[0], ("target", other)], ["size", "kind"])
    assert all(word in str(caught.value) for word in words), caught.value


def test_text_in_place_of_numbers_is_refused_later_too(tmp_path, tables):
    new = read_columns("data", write(tmp_path / "n.csv", "size,kind\nlarge,flat\n"))
    with pytest.raises(InputError, match="data: expected numbers in column 'size', got 'large' at row 2"):
        encoding_of(tables, ["size", "kind"]).encode("data", new)
