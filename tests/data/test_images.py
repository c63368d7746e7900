"""Folders of images: pixels as they were saved, classes from sub-folders, every bad file named in one line."""

import random
import re

import numpy as np
import pytest
from PIL import Image

from driftway.checks import InputError
from driftway.data import ImageSet, read_images
from driftway.data.images import encode


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def fault(folder):
    """The one line that reading the folder ends in."""
    with pytest.raises(InputError) as caught:
        read_images("--data", folder)
    assert re.fullmatch(r"--data: expected [^\n]+", str(caught.value))
    return str(caught.value)


def test_grey_pixels_are_shares_of_white(tmp_path):
    a, b = pixels(5, 7), pixels(5, 7, seed=1)
    a[0, 0], a[0, 1] = 0, 255
    save(tmp_path / "b.bmp", b)
    save(tmp_path / "a.png", a)
    images = read_images("--data", str(tmp_path))
    assert isinstance(images, ImageSet)
    assert images.values.dtype == np.float32
    np.testing.assert_allclose(images.values, np.stack([a, b]) / 255, rtol=1e-6)
    assert (images.values[0, 0, 0], images.values[0, 0, 1]) == (0, 1)
    assert (images.labels, images.classes, images.path) == (None, (), tmp_path)


@pytest.mark.parametrize("ending", ["png", "PNG", "bmp", "webp", "tif", "tiff"])
def test_colour_is_channels_first(tmp_path, ending):
    a, b = pixels(5, 7, 3), pixels(5, 7, 3, seed=1)
    for name, x in (("a", a), ("b", b)):
        save(tmp_path / f"{name}.{ending}", x, **({"lossless": True} if ending == "webp" else {}))
    np.testing.assert_allclose(read_images("--data", tmp_path).values, np.stack([a, b]).transpose(0, 3, 1, 2) / 255, rtol=1e-6)


@pytest.mark.parametrize("ending", ["jpg", "jpeg"])
def test_jpeg_is_read_within_its_loss(tmp_path, ending):
    smooth = np.add.outer(np.arange(16), np.arange(24)).astype(np.uint8) * 5
    for name in "ab":
        save(tmp_path / f"{name}.{ending}", smooth, quality=95)
    np.testing.assert_allclose(read_images("--data", tmp_path).values[1], smooth / 255, atol=0.03)


def test_one_colour_image_makes_all_colour(tmp_path):
    grey, colour = pixels(4, 4), pixels(4, 4, 3)
    save(tmp_path / "a.png", grey)
    save(tmp_path / "b.png", colour)
    values = read_images("--data", tmp_path).values
    np.testing.assert_allclose(values[0], np.stack([grey] * 3) / 255, rtol=1e-6)
    np.testing.assert_allclose(values[1], colour.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_depths_mix(tmp_path):
    deep = np.array([[0, 65535], [32768, 257]], dtype=np.uint16)
    save(tmp_path / "a.png", Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1"))
    save(tmp_path / "b.png", Image.fromarray(deep))
    save(tmp_path / "c.tif", Image.fromarray(deep))
    values = read_images("--data", tmp_path).values
    assert values[0].tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(values[1:], np.stack([deep, deep]) / 65535, rtol=1e-6)


def test_the_first_frame_of_a_gif(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    for name in "ab":
        save(tmp_path / f"{name}.gif", frames[0], save_all=True, append_images=frames[1:])
    values = read_images("--data", tmp_path).values
    assert values.shape == (2, 3, 3, 4)
    assert (values[:, 0] == 1).all()
    assert (values[:, 1:] == 0).all()


def test_photographs_are_upright(tmp_path):
    x, exif = pixels(4, 6), Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    for name in "ab":
        save(tmp_path / f"{name}.png", x, exif=exif)
    np.testing.assert_allclose(read_images("--data", tmp_path).values[0], np.rot90(x, -1) / 255, rtol=1e-6)


def test_sub_folders_are_classes(tmp_path):
    for i, name in enumerate(["oak/deep/1.png", "ash/2.png", "oak/0.png", "elm/3.png"]):
        save(tmp_path / name, np.full((2, 2), i, np.uint8))
    (tmp_path / "empty").mkdir()
    images = read_images("--data", tmp_path)
    assert images.classes == ("ash", "elm", "oak")
    assert images.labels is not None
    assert images.labels.dtype == np.int64
    order = np.rint(255 * images.values[:, 0, 0]).astype(int).tolist()
    assert order == [1, 3, 2, 0], "sorted by path"
    assert images.labels.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(("names", "classes"), [
    (["10", "9", "-1", "9"], ("-1", "9", "10")), (["10", "9", "b"], ("10", "9", "b")), (["b", "a", "b"], ("a", "b")),
])  # fmt: skip
def test_classes_are_in_order_and_indices_point_to_them(names, classes):
    labels, found = encode(names)
    assert found == classes
    assert [found[i] for i in labels] == names


def test_other_files_are_passed_over(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, pixels(2, 2))
    for name in (".c.png", ".hidden/d.png", "notes.txt", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    assert len(read_images("--data", tmp_path).values) == 2


def test_wrong_folders(tmp_path):
    assert "which is no folder" in fault(tmp_path / "none")
    assert "at least 2 images" in fault(tmp_path)
    path = save(tmp_path / "a.png", pixels(2, 2))
    assert f"got 1 in {tmp_path}" in fault(tmp_path)
    assert "which is no folder" in fault(path)
    save(tmp_path / "oak" / "b.png", pixels(2, 2))
    assert f"got both in {tmp_path}, e.g. a.png" in fault(tmp_path)


def test_the_first_odd_size_is_named(tmp_path):
    for name, shape in (("a", (5, 7)), ("b", (5, 7)), ("c", (7, 5)), ("d", (2, 2))):
        save(tmp_path / f"{name}.png", pixels(*shape))
    said = fault(tmp_path)
    assert "expected images of 7 x 5 pixels, as a.png has" in said
    assert f"got 5 x 7 in {tmp_path / 'c.png'}" in said


def alpha(mode, least):
    image = Image.fromarray(pixels(3, 3)).convert(mode)
    image.putalpha(Image.fromarray(np.array([[255, 255, 255], [255, least, 255], [255] * 3], dtype=np.uint8)))
    return image


@pytest.mark.parametrize(("mode", "shape"), [("L", (2, 3, 3)), ("RGB", (2, 3, 3, 3))])
def test_opaque_alpha_is_dropped_and_other_alpha_refused(tmp_path, mode, shape):
    for name in "ab":
        save(tmp_path / f"{name}.png", alpha(mode, 255))
    values = read_images("--data", tmp_path).values
    assert values.shape == shape
    np.testing.assert_allclose(values[0] if mode == "L" else values[0, 2], pixels(3, 3) / 255, rtol=1e-6)
    save(tmp_path / "b.png", alpha(mode, 254))
    assert f"expected images without transparent pixels, got some in {tmp_path / 'b.png'}" in fault(tmp_path)


def test_a_transparent_colour_is_alpha(tmp_path):
    save(tmp_path / "a.png", np.full((2, 2), 7, np.uint8), transparency=8)
    save(tmp_path / "b.png", np.full((2, 2), 7, np.uint8), transparency=8)
    assert read_images("--data", tmp_path).values.shape == (2, 2, 2)
    save(tmp_path / "b.png", np.full((2, 2), 7, np.uint8), transparency=7)
    assert "transparent" in fault(tmp_path)


def test_numbers_that_are_no_grey_are_refused(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.tif", np.full((2, 2), np.nan, np.float32))
    assert f"expected grey or RGB images, got mode F in {tmp_path / 'a.tif'}" in fault(tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    for name in "ab":
        save(tmp_path / f"{name}.png", pixels(20, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert len(read_images("--data", tmp_path).values) == 2
    for limit in (599, 299):  # Pillow warns above the limit and raises above twice that
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert f"below {limit} pixels, got {tmp_path / 'a.png'}" in fault(tmp_path)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "webp", "gif", "tif"])
def test_damage_is_an_error_or_harmless(tmp_path, ending):
    draw = random.Random(0)
    save(tmp_path / f"a.{ending}", pixels(12, 12, 3))
    path = save(tmp_path / f"b.{ending}", pixels(12, 12, 3))
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert f"in {path}; write the file again" in fault(tmp_path)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            read_images("--data", tmp_path)
        except InputError as error:
            assert re.fullmatch(r"--data: expected [^\n]+", str(error))  # noqa: PT017 (either outcome is right)
