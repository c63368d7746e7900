"""Damaged files: every reader gives finite data of one length, or an input error that names the file."""

import json
import os
import shutil
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftway.checks import InputError
from driftway.data import read_images, read_table, read_texts
from tests.reliability.files import READERS, changed, data_set, place, valid
from tests.reliability.strategies import budget, outcome


@pytest.mark.parametrize(("reader", "name"), [(reader, name) for reader, (_, names) in READERS.items() for name in names])
def test_whole_files(reader, name, tmp_path):
    READERS[reader][0](place(tmp_path, name, valid(name)))


@pytest.mark.parametrize("reader", READERS)
def test_damaged_files(reader, tally):
    read, names = READERS[reader]
    tried = 0

    @budget(30, 330)
    @given(st.sampled_from(names), st.integers(0, 2**32))
    def attempt(name, seed):
        nonlocal tried
        with TemporaryDirectory() as folder:
            path = place(Path(folder), name, changed(valid(name), np.random.default_rng(seed)))
            result = outcome(read, path)
            if isinstance(result, InputError):
                assert "data" in result.argument
        tried += 1

    attempt()
    tally(f"damaged files, {reader}", tried, tried)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow", "dataset_dict.json"])
def test_damaged_data_sets(name, tally, tmp_path):
    whole, tried = data_set(tmp_path / "whole"), 0
    (whole / "dataset_dict.json").write_text('{"splits": ["train"]}') if name == "dataset_dict.json" else None
    shutil.copytree(whole, tmp_path / "copy")

    @budget(10, 60)
    @given(st.integers(0, 2**32))
    def attempt(seed):
        nonlocal tried
        (tmp_path / "copy" / name).write_bytes(changed((whole / name).read_bytes(), np.random.default_rng(seed)))
        outcome(read_texts, "data", tmp_path / "copy", known=("data",))
        tried += 1

    attempt()
    tally("damaged data sets", tried, tried)


KEYS = st.sampled_from(["filename", "_data_files", "features", "names"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(KEYS, part, max_size=3),
    max_leaves=6,
)


def test_data_sets_with_other_configurations(tally, tmp_path):
    whole, tried = data_set(tmp_path / "whole"), 0
    secret = tmp_path / "secret.arrow"
    shutil.copy(whole / "data-00000-of-00001.arrow", secret)

    @budget(20, 150)
    @given(st.sampled_from(["_data_files", "_indices", "features", "filename"]), JSON)
    def attempt(entry, value):
        nonlocal tried
        state, info = (
            {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]},
            {"features": {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}},
        )
        if entry == "filename":
            state["_data_files"][0]["filename"] = value
        elif entry == "features":
            info["features"] = value
        else:
            state[entry] = value
        (whole / "state.json").write_text(json.dumps(state))
        (whole / "dataset_info.json").write_text(json.dumps(info))
        outcome(read_texts, "data", whole, known=("data",))
        tried += 1

    attempt()
    tally("data sets with other configurations", tried, tried)


@pytest.mark.parametrize("name", ["../secret.arrow", "{secret}"])
def test_data_sets_stay_inside_their_folder(name, tmp_path):
    whole, secret = data_set(tmp_path / "whole"), tmp_path / "secret.arrow"
    shutil.copy(whole / "data-00000-of-00001.arrow", secret)
    (whole / "state.json").write_text(json.dumps({"_data_files": [{"filename": name.format(secret=secret)}]}))
    with pytest.raises(InputError, match="data: "):
        read_texts("data", whole)


@pytest.mark.parametrize("read", [read_table, read_texts])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_no_file(read, ending, tmp_path):
    fifo, loop, gone = (tmp_path / f"{name}.{ending}" for name in ("fifo", "loop", "gone"))
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    gone.symlink_to(tmp_path / "nowhere")
    for path in (fifo, loop, gone, tmp_path / f"a\0.{ending}", tmp_path / f"{'x' * 300}.{ending}"):
        with pytest.raises(InputError, match="data: "):
            read("data", path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_the_right_to_read(tmp_path):
    path = place(tmp_path, "table.csv", valid("table.csv"))
    path.chmod(stat.S_IWUSR)
    with pytest.raises(InputError, match="data: "):
        read_table("data", path)


def test_folders_of_images_with_loops(tmp_path):
    place(tmp_path, "image.png", valid("image.png"))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(read_images("data", tmp_path).values) == 2
