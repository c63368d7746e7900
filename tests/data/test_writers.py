"""Tables written to files: read back as they were, refused before the work, whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from driftway.checks import InputError
from driftway.data import read_images, read_table, writable, write_table

ENDINGS = [".csv", ".parquet", ".npy", ".npz"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back_exactly(tmp_path, ending, dtype):
    x = np.random.default_rng(0).lognormal(sigma=9, size=(50, 3)).astype(dtype)
    path = tmp_path / "new" / f"a{ending}"
    write_table(path, x, ("height", "body weight", 'a "b", c'))
    table = read_table("--data", path)
    np.testing.assert_array_equal(table.values.astype(dtype), x)
    named = ending in (".csv", ".parquet")
    assert table.names == (("height", "body weight", 'a "b", c') if named else ("x0", "x1", "x2"))
    assert table.values.dtype == (np.float64 if ending == ".csv" else np.dtype(dtype))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_columns_without_names_are_numbered(tmp_path, ending):
    write_table(tmp_path / f"a{ending}", np.eye(2))
    assert read_table("--data", tmp_path / f"a{ending}").names == ("x0", "x1")


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_images(tmp_path, ending):
    x = np.arange(24.0).reshape(2, 3, 4)
    write_table(tmp_path / f"a{ending}", x)
    np.testing.assert_array_equal(read_table("--data", tmp_path / f"a{ending}").values, x)


def refused(path, values=None, names=(), match=""):
    with pytest.raises(InputError, match=match):
        write_table(path, np.eye(2) if values is None else values, names)
    assert not path.is_file()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_faults_of_a_table_with_columns(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    refused(path, np.ones((2, 3, 4)), match=r"^values: .*write a .npy or .npz file")
    refused(path, np.ones((2, 0)), match=r"^values: ")
    refused(path, names=["a"], match=r"^names: expected 2 names, one per column, got 1")
    refused(path, names=["a", "a"], match=r"^names: expected different names")
    refused(path, names=["a", ""], match=r"^names: ")


def test_csv_names_must_not_read_as_numbers(tmp_path):
    refused(tmp_path / "a.csv", names=["0", "1"], match=r"^names: .*write a .parquet file")
    write_table(tmp_path / "a.parquet", np.eye(2), ["0", "1"])
    assert read_table("--data", tmp_path / "a.parquet").names == ("0", "1")


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_numbers_are_written(tmp_path, ending):
    refused(tmp_path / f"a{ending}", np.array([["a"], ["b"]]), match=r"^values: expected an array of real numbers")
    refused(tmp_path / f"a{ending}", np.array([[None], [1]], dtype=object), match=r"^values: ")
    refused(tmp_path / f"a{ending}", np.ones((2, 2), dtype=complex), match=r"^values: ")


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"^--out: expected a file ending in \.csv, \.parquet, \.npy, \.npz, \.png, got .*a\.txt"):
        writable("--out", tmp_path / "a.txt")
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match=r"^--out: .*a directory"):
        writable("--out", tmp_path / "a.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^--out: expected a place to write to"):
        writable("--out", tmp_path / "file" / "b" / "a.csv")
    assert writable("--out", str(tmp_path / "new" / "b" / "a.csv")) == tmp_path / "new" / "b" / "a.csv"
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match=r"^path: .*a directory"):
        write_table(tmp_path / "a.csv", np.eye(2))
    assert (tmp_path / "a.csv").is_dir()


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_older_file_is_replaced_whole_or_kept(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a{ending}"
    write_table(path, np.eye(2))
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(OSError, match="the disk is full"):
            write_table(path, np.ones((2, 2)))
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    write_table(path, np.ones((2, 2)))
    assert read_table("--data", path).values.tolist() == [[1, 1], [1, 1]]


def sheet(path):
    return np.asarray(Image.open(path))


def test_a_sheet_holds_every_image_in_reading_order(tmp_path):
    x = np.arange(7 * 4 * 5, dtype=np.uint8).reshape(7, 4, 5)
    write_table(tmp_path / "a.png", x, span=(0.0, 255.0))
    pixels = sheet(tmp_path / "a.png")
    assert pixels.shape == (3 * 4 + 2, 3 * 5 + 2)
    seen = np.zeros(pixels.shape, bool)
    for i in range(7):
        place = np.s_[i // 3 * 5 : i // 3 * 5 + 4, i % 3 * 6 : i % 3 * 6 + 5]
        np.testing.assert_array_equal(pixels[place], x[i])
        seen[place] = True
    assert len(set(pixels[~seen].tolist())) == 1, "seams and empty places are of one grey"


@pytest.mark.parametrize(("shape", "flat"), [((2, 8, 8), (2, 64)), ((2, 28, 28), (2, 784)), ((2, 6, 4), (2, 1, 6, 4))])
def test_forms_of_grey_images(tmp_path, shape, flat):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_table(tmp_path / "a.png", x)
    write_table(tmp_path / "b.png", x.reshape(flat))
    np.testing.assert_array_equal(sheet(tmp_path / "a.png"), sheet(tmp_path / "b.png"))


def test_colour_channels_keep_their_places(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 5, 7))
    write_table(tmp_path / "a.png", x, span=(0.0, 255.0))
    np.testing.assert_array_equal(sheet(tmp_path / "a.png"), x[0].transpose(1, 2, 0))


def test_the_span_is_black_to_white(tmp_path):
    x = np.array([[[-2.0, 0.0], [1.0, 2.0]]])
    write_table(tmp_path / "a.png", x)
    assert sheet(tmp_path / "a.png").tolist() == [[0, 128], [191, 255]]
    write_table(tmp_path / "a.png", x, span=(0.0, 1.0))
    assert sheet(tmp_path / "a.png").tolist() == [[0, 0], [255, 255]]
    write_table(tmp_path / "a.png", np.ones((1, 2, 2), bool))
    assert sheet(tmp_path / "a.png").tolist() == [[0, 0], [0, 0]], "one value has no span"


def test_a_sheet_holds_a_hundred_images(tmp_path):
    x = np.arange(150.0)[:, None, None] * np.ones((150, 2, 2))
    write_table(tmp_path / "a.png", x)
    assert sheet(tmp_path / "a.png").shape == (29, 29)
    assert sheet(tmp_path / "a.png")[-1, -1] == 255, "the span is of the images shown"


def test_single_images_are_read_back(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (2, 5, 7)) / 255
    for i in range(2):
        write_table(tmp_path / f"{i}.png", x[i : i + 1], span=(0.0, 1.0))
    np.testing.assert_allclose(read_images("--data", tmp_path).values, x, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 63), (5, 2, 8, 8), (5, 8, 8, 3), (0, 8, 8), (5, 0, 8), (2, 2, 3, 4, 4)])
def test_rows_that_are_no_images(tmp_path, shape):
    refused(tmp_path / "a.png", np.zeros(shape), match=r"^values: expected images .*write another kind of file$")


def test_faults_of_a_sheet(tmp_path):
    refused(tmp_path / "a.png", np.full((2, 8, 8), np.nan), match=r"^values: expected finite numbers")
    for span in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf)):
        with pytest.raises(InputError, match=r"^span: "):
            write_table(tmp_path / "a.png", np.zeros((2, 8, 8)), span=span)
    assert not list(tmp_path.iterdir())


def test_an_older_sheet_is_kept_when_writing_fails(tmp_path, monkeypatch):
    write_table(tmp_path / "a.png", np.eye(4)[None])
    old = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="the disk is full"):
        write_table(tmp_path / "a.png", np.ones((1, 4, 4)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == old
