"""Tables read from files: every fault named in one line, every number as it was written."""

import pickle
import random
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from driftway.checks import InputError
from driftway.data import Labelled, Table, read_labelled, read_table


def fault(path, **options):
    """The one line that reading the file ends in."""
    with pytest.raises(InputError) as caught:
        (read_labelled if "labels" in options else read_table)("--data", path, **options)
    text = str(caught.value)
    assert text.startswith("--data: expected ")
    assert "\n" not in text
    return text


@pytest.fixture
def text(tmp_path):
    def write(content, name="a.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def arrays(tmp_path):
    def write(name="a.npz", **content):
        path = tmp_path / name
        np.savez(path, **content)
        return path

    return write


def frame(tmp_path, **columns):
    path = tmp_path / "a.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_csv_with_a_header(text):
    path = text("height, weight\n1.5,2\n\n-3e2,True\n")
    table = read_table("--data", path)
    assert isinstance(table, Table)
    assert table.names == ("height", "weight")
    assert table.path == path
    assert table.values.dtype == np.float64
    assert table.values.tolist() == [[1.5, 2.0], [-300.0, 1.0]]


def test_csv_without_a_header(text):
    table = read_table("--data", str(text("1,2\n3,4\n")))
    assert table.names == ("x0", "x1")
    assert table.values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("content", [
    "a,b\r\n1,2\r\n3,4\r\n", "\ufeffa,b\n1,2\n3,4", '"a","b"\n"1","2"\n 3, 4 \n', "\n\na,b\n1,2\n3,4\n  \n",
], ids=["crlf", "bom", "quoted", "empty lines"])  # fmt: skip
def test_csv_dialects(text, content):
    table = read_table("--data", text(content, "A.CSV"))
    assert table.names == ("a", "b")
    assert table.values.tolist() == [[1, 2], [3, 4]]


def test_columns_are_read_in_the_order_asked(text, tmp_path):
    path = text("id,a,b,c\nk,1,2,3\nl,4,5,6\n")
    table = read_table("--data", path, columns=["c", "a"])
    assert table.names == ("c", "a")
    assert table.values.tolist() == [[3, 1], [6, 4]]
    path = frame(tmp_path, id=["k", "l"], a=[1, 2], b=[3, 4])
    assert read_table("--data", path, columns=("b", "a")).values.tolist() == [[3, 1], [4, 2]]
    np.save(tmp_path / "a.npy", np.arange(6.0).reshape(2, 3))
    assert read_table("--data", tmp_path / "a.npy", columns=["x2", "x0"]).values.tolist() == [[2, 0], [5, 3]]


@pytest.mark.parametrize(("content", "said"), [
    ("", "an empty file"),
    ("\n \n\n", "only empty lines"),
    ("a,b\n", "column names and no rows"),
    ("a,b\n1,2\n", "one row"),
    ("1,2\n", "one row"),
    ("a,b\n1,2\n3,oak\n", "got 'oak' at row 3, column 'b'"),
    ("1,2\n\n3,oak\n", "got 'oak' at row 3, column 'x1'"),
    ("a,b\n1,2\n3,1_000\n", "got '1_000' at row 3, column 'b'"),
    ("a,b\n1,2\n,4\n", "got an empty cell at row 3, column 'a'"),
    ("a,b\n1,2\n3,nan\n5,inf\n", "got nan at row 3, column 'b' (2 such cells)"),
    ("a,b\n1,2\n\n3,-inf\n", "got -inf at row 4, column 'b' (1 such cells)"),
    ("nan,1\n2,3\n", "got nan at row 1, column 'x0'"),
    ("1e999,1\n2,3\n", "got inf at row 1, column 'x0'"),
    ("a,b\n1,2\n3\n", "expected 2 cells in every row, got 1 at row 3"),
    ("a,b\n1,2\n3,4,5\n", "expected 2 cells in every row, got 3 at row 3"),
    ("1.5,oak\n2,3\n4,5\n", "got 'oak' beside numbers"),
    (",a\n0,1\n1,2\n", "expected a name for every column, got none for column 1"),
    ("a,a\n0,1\n1,2\n", "got column 'a' twice"),
    ("a;b\n1;2\n3;4\n", "separate the columns by commas"),
    ("a\n" + "x" * 500 + "\n", "'" + "x" * 36 + "... at row 2"),
    ("é,b\n1,2\n".encode("latin-1"), "save it as UTF-8"),
    (b"a,b\n1,2\n3,4\x00\n", "'4\\x00' at row 3"),
    ('a,b\n1,2\n3,"4\n' + "5" * 200_000, "damage (field larger than field limit"),
])  # fmt: skip
def test_csv_faults(text, content, said):
    assert said in fault(text(content))


def test_wrong_columns(text):
    path = text("a,b\n1,2\n3,4\n")
    assert "expected columns among a, b, got no column 'c'" in fault(path, columns=["c"])
    assert "column 'a' twice" in fault(path, columns=["a", "a"])
    assert "no column" in fault(path, columns=[])
    many = text(",".join(f"c{j}" for j in range(50)) + "\n")
    assert "c11, ..., got no column 'z'" in fault(many, columns=["z"])


def test_an_unnamed_column_may_be_left_out(text):
    assert read_table("--data", text(",a\n0,1\n1,2\n"), columns=["a"]).values.tolist() == [[1], [2]]


def test_wrong_paths(tmp_path, text):
    assert "which does not exist; check the path" in fault(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "a directory; name a file in it" in fault(tmp_path / "folder.csv")
    said = fault(text("1,2\n", "a.xlsx"))
    assert "a file ending in .csv, .parquet, .npy, .npz" in said
    assert "a.xlsx" in said


@pytest.mark.parametrize(("dtype", "becomes"), [
    ("bool", "float32"), ("uint8", "float32"), ("int16", "float32"), ("float16", "float32"), ("float32", "float32"),
    (">f4", "float32"), ("int32", "float64"), ("int64", "float64"), ("float64", "float64"), ("longdouble", "float64"),
])  # fmt: skip
def test_arrays_become_floats(tmp_path, dtype, becomes):
    np.save(tmp_path / "a.npy", np.array([[0, 1], [1, 1], [1, 0]], dtype=dtype))
    table = read_table("--data", tmp_path / "a.npy")
    assert table.values.dtype == np.dtype(becomes)
    assert table.values.dtype.isnative
    assert table.values.tolist() == [[0, 1], [1, 1], [1, 0]]
    assert table.names == ("x0", "x1")


def test_images_have_no_column_names(tmp_path):
    x = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", np.asfortranarray(x))
    table = read_table("--data", tmp_path / "a.npy")
    assert table.names == ()
    np.testing.assert_array_equal(table.values, x)
    assert "two dimensions to choose columns of" in fault(tmp_path / "a.npy", columns=["x0"])


def test_one_array_of_an_npz(arrays):
    assert read_table("--data", arrays(x=np.eye(2))).values.tolist() == [[1, 0], [0, 1]]


def test_one_array_of_several(arrays):
    path = arrays(train=np.eye(2), test=np.ones((3, 2)))
    assert read_table("--data", f"{path}:test").values.shape == (3, 2)
    assert read_table("--data", f"{path}:test").path == path
    said = fault(path)
    assert "expected one array, got 2 (train, test)" in said
    assert "name its key, as in a.npz:key" in said
    assert "expected a key among train, test, got no array 'valid'" in fault(f"{path}:valid")
    assert "got 0 (none)" in fault(arrays("b.npz"))


@pytest.mark.parametrize(("array", "said"), [
    (np.zeros((0, 2)), "no rows"),
    (np.ones((1, 2)), "one row"),
    (np.ones(5), "reshape one column to (n, 1)"),
    (np.float64(3), "shape ()"),
    (np.ones((5, 0)), "shape (5, 0)"),
    (np.array([[1, 2], [3, np.nan]]), "got nan at row 2, column 'x1' (1 such cells)"),
    (np.where(np.arange(8).reshape(2, 2, 2) == 6, np.inf, 0), "got inf at row 2, entry (1, 0)"),
    (np.array([[1, 2], [3, 4j]]), "dtype complex128"),
    (np.array([["a", "b"], ["c", "d"]]), "dtype <U1"),
    (np.array([[1, 2], [3, 4]], dtype="datetime64[s]"), "dtype datetime64[s]"),
    (np.zeros(3, dtype=[("a", "f4"), ("b", "f4")]), "dtype [('a'"),
    (np.array([[1, None], [2, 3]], dtype=object), "got pickled objects"),
])  # fmt: skip
def test_array_faults(tmp_path, arrays, array, said):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    assert said in fault(tmp_path / "a.npy")
    assert said in fault(arrays(x=array))


class Trap:
    """A pickle that would act when it is loaded."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_never_loaded(tmp_path, arrays, text):
    trap = np.array([Trap(), Trap()], dtype=object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    assert "pickled" in fault(tmp_path / "a.npy")
    assert "pickled" in fault(arrays(x=trap))
    for name in ("b.npy", "b.npz", "b.parquet"):
        assert "expected a whole" in fault(text(pickle.dumps(Trap()), name))


def test_parquet(tmp_path):
    path = frame(tmp_path, a=np.array([1, 2, 3], "float32"), b=[True, False, True], c=pd.array([1, 2, 3], "Int64"))
    table = read_table("--data", path)
    assert table.names == ("a", "b", "c")
    assert table.values.tolist() == [[1, 1, 1], [2, 0, 2], [3, 1, 3]]


def test_parquet_of_one_precision_keeps_it(tmp_path):
    assert read_table("--data", frame(tmp_path, a=np.ones(3, "float32"), b=np.ones(3, "float32"))).values.dtype == np.float32


def test_an_index_is_no_column(tmp_path):
    pd.DataFrame({"a": [1.0, 2.0]}, index=["k", "l"]).to_parquet(tmp_path / "a.parquet")
    assert read_table("--data", tmp_path / "a.parquet").names == ("a",)


@pytest.mark.parametrize(("columns", "said"), [
    ({"a": [1.0, 2.0], "b": [None, "oak"]}, "got 'oak' at row 2, column 'b'"),
    ({"a": [1.0, np.nan, 3.0]}, "got nan at row 2, column 'a'"),
    ({"a": pd.array([1, 2, None], dtype="Int64")}, "got nan at row 3, column 'a'"),
    ({"a": pd.array([True, None], dtype="boolean")}, "got nan at row 2, column 'a'"),
    ({"a": pd.to_datetime(["2020-01-01", "2020-01-02"])}, "Timestamp('2020-01-01 00:00:00') at row 1, column 'a'"),
    ({"a": [None, None]}, "None at row 1, column 'a'"),
    ({"a": [[1.0, 2.0], [3.0]]}, "at row 1, column 'a'"),
    ({"a": [1.0]}, "one row"),
    ({"a": np.zeros(0)}, "no rows"),
    ({}, "no column"),
])  # fmt: skip
def test_parquet_faults(tmp_path, columns, said):
    assert said in fault(frame(tmp_path, **columns))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
def test_damage_is_an_error_or_harmless(tmp_path, name):
    path, draw = tmp_path / name, random.Random(0)
    x = np.arange(40.0).reshape(20, 2)
    if name == "a.npy":
        np.save(path, x)
    elif name == "a.npz":
        np.savez_compressed(path, x=x)
    else:
        pd.DataFrame(x, columns=["a", "b"]).to_parquet(path)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(bytes(damaged[: draw.choice([len(whole), draw.randrange(len(whole))])]))
        try:
            read_table("--data", path)
        except InputError as error:
            assert re.match(r"--data: expected [^\n]+\Z", str(error))  # noqa: PT017 (either outcome is right)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.parquet"])
def test_a_file_cut_short(tmp_path, name, text):
    assert "expected a whole" in fault(text(b"\x93NUMPY nothing more", name))


def read(path, labels="kind", **options):
    """Values, and the labels by name."""
    found = read_labelled("--data", path, labels=labels, **options)
    assert isinstance(found, Labelled)
    assert found.labels.dtype == np.int64
    assert set(found.labels.tolist()) == set(range(len(found.classes)))
    return found, [found.classes[i] for i in found.labels]


LABELS = [
    (["oak", "ash", "oak"], ["oak", "ash", "oak"], ("ash", "oak")),
    (["10", "9", "9.0"], ["10", "9", "9"], ("9", "10")),
    (["10", "9", "b"], ["10", "9", "b"], ("10", "9", "b")),
    (["-1", "+3", "03"], ["-1", "3", "3"], ("-1", "3")),
    (["True", "False", "True"], ["True", "False", "True"], ("False", "True")),
    ([" oak ", "none", "1_0"], ["oak", "none", "1_0"], ("1_0", "none", "oak")),
    ([f"{2**53 + 1}", f"{2**53}", "0"], [f"{2**53 + 1}", f"{2**53}", "0"], ("0", f"{2**53}", f"{2**53 + 1}")),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "names", "classes"), LABELS)
def test_text_labels(text, tmp_path, arrays, cells, names, classes):
    csv_file = text("a,kind,b\n" + "".join(f"{i},{cell},{-i}\n" for i, cell in enumerate(cells)))
    numbers = {"a": [0.0, 1.0, 2.0], "b": [0.0, -1.0, -2.0]}
    values = np.column_stack(list(numbers.values()))
    for path in (csv_file, frame(tmp_path, **numbers, kind=cells), arrays(x=values, kind=np.array(cells))):
        found, labels = read(path)
        assert (labels, found.classes) == (names, classes)
        np.testing.assert_array_equal(found.table.values, values)
        assert found.table.names == (("x0", "x1") if path.suffix == ".npz" else ("a", "b"))
        assert found.table.path == path


@pytest.mark.parametrize(("labels", "classes"), [
    (np.array([10, 9, 10], "uint8"), ("9", "10")), (np.array([2**63 + 1, 2**63, 0], "uint64"), ("0", str(2**63), str(2**63 + 1))),
    (np.array([True, False, True]), ("False", "True")), (np.array([2.0, -1.0, 2.0], "float32"), ("-1", "2")),
])  # fmt: skip
def test_labels_of_other_types(tmp_path, arrays, labels, classes):
    for path in (frame(tmp_path, a=[1.0, 2.0, 3.0], kind=labels), arrays(x=np.eye(3), kind=labels)):
        found, names = read(path)
        assert found.classes == classes
        assert names == [str(x) if labels.dtype.kind == "b" else str(int(x)) for x in labels]


def test_labels_of_types_that_only_parquet_has(tmp_path):
    for labels in (pd.Categorical(["b", "a"]), pd.array([3, 2], "Int64"), pd.array([True, False], "boolean")):
        found, names = read(frame(tmp_path, a=[1.0, 2.0], kind=labels))
        assert names == [str(x) for x in labels]
        assert found.table.values.tolist() == [[1], [2]]


def test_labels_beside_chosen_columns(text):
    path = text("id,a,kind,b\nk,1,oak,2\nl,3,ash,4\n")
    found, labels = read(path, columns=["b", "a"])
    assert found.table.names == ("b", "a")
    assert found.table.values.tolist() == [[2, 1], [4, 3]]
    assert labels == ["oak", "ash"]
    assert "expected columns beside the labels, got column 'kind' as data" in fault(path, labels="kind", columns=["a", "kind"])


def test_labels_in_a_file_without_a_header(text):
    found, labels = read(text("1,0,3\n4,1,6\n"), "x1")
    assert found.table.names == ("x0", "x2")
    assert labels == ["0", "1"]


def test_labels_of_one_array_of_several(arrays):
    path = arrays(train=np.ones((3, 2, 2)), test=np.zeros((2, 2, 2)), kind=np.array([1, 0, 1]))
    found, labels = read(f"{path}:train")
    assert found.table.values.shape == (3, 2, 2)
    assert labels == ["1", "0", "1"]
    assert "one array beside the labels 'kind', got 2 (train, test)" in fault(path, labels="kind")
    assert "expected one label per row, shape (2,), got shape (3,) of 'kind'" in fault(f"{path}:test", labels="kind")
    assert "a key among train, test, kind, got no array 'sort'" in fault(path, labels="sort")
    assert "got 1 (kind)" in fault(f"{path}:kind", labels="kind")
    assert "one label per row, shape (3,), got shape (3, 1)" in fault(arrays(x=np.eye(3), kind=np.ones((3, 1))), labels="kind")
    pickled = arrays(x=np.eye(2), kind=np.array([Trap(), Trap()], dtype=object))
    assert "got pickled objects" in fault(pickled, labels="kind")
    assert "text labels to dtype=str" in fault(pickled, labels="kind")


@pytest.mark.parametrize(("content", "said"), [
    ("a,kind\n1,oak\n\n2,\n3,nan\n4,Null\n", "expected a label in every row, got none at row 4 (3 such rows)"),
    ("a,kind\n1,1\n2,2.5\n", "expected labels of text, whole numbers or booleans, got 2.5 at row 3"),
    ("a,kind\n1,1\n2,inf\n", "got inf at row 3"),
    ("a,b\n1,2\n3,4\n", "expected columns among a, b, got no column 'kind'"),
    ("a,kind,kind\n1,2,3\n3,4,5\n", "column 'kind' twice"),
    ("kind\noak\nash\n", "no column"),
    ("a,kind\n1,oak\n2\n", "expected 2 cells in every row, got 1 at row 3"),
    ("a,kind,b\n1,oak,2\n3,ash,elm\n", "got 'elm' at row 3, column 'b'"),
    ("a,kind\n1,oak\n\nnan,ash\n", "got nan at row 4, column 'a' (1 such cells)"),
    ("a,kind\n1,oak\n", "one row"),
    ("a,kind\n" + "".join(f"1,{i}\n" for i in range(1001)), "expected at most 1000 different labels, got 1001 of 'kind'"),
])  # fmt: skip
def test_label_faults(text, content, said):
    assert said in fault(text(content), labels="kind")


def test_a_thousand_classes_are_not_too_many(text):
    assert read(text("a,kind\n" + "".join(f"1,{i}\n" for i in range(1000))))[0].labels.tolist() == list(range(1000))


@pytest.mark.parametrize(("labels", "said"), [
    (["oak", None], "got none at row 2 (1 such rows)"),
    (pd.array([None, 3], "Int64"), "got none at row 1"),
    ([np.nan, 3.0], "got none at row 1"),
    ([0.5, 3.0], "got 0.5 at row 1"),
    (pd.to_datetime(["2020-01-01", "2020-01-02"]), "got Timestamp at row 1"),
    ([[1.0], [2.0]], "got ndarray at row 1"),
])  # fmt: skip
def test_parquet_label_faults(tmp_path, labels, said):
    assert said in fault(frame(tmp_path, a=[1.0, 2.0], kind=labels), labels="kind")


def test_an_npy_has_no_place_for_labels(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3))
    assert "put data and labels into one .npz file" in fault(tmp_path / "a.npy", labels="x0")


def test_a_folder_of_images_is_labelled_by_its_sub_folders(tmp_path):
    for name in ("10/a.png", "9/b.png", "10/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (3, 2), 51).save(tmp_path / name)
    found, labels = read(tmp_path, "folder")
    assert found.classes == ("9", "10")
    assert labels == ["10", "10", "9"]
    np.testing.assert_allclose(found.table.values, np.full((3, 2, 3), 0.2), rtol=1e-6)
    assert "got no sub-folders" in fault(tmp_path / "10", labels="folder")
    for options in ({"labels": "kind"}, {"labels": "folder", "columns": ["x0"]}):
        with pytest.raises(InputError, match=r"^labels: expected 'folder' for a folder of images"):
            read_labelled("--data", tmp_path, **options)
