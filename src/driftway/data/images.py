"""Folders of images as one array, with sub-folders as classes; and labels as class indices, wherever they come from."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from driftway.checks import InputError, require

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
_GREY, _DEEP = {"1", "L"}, {"I;16", "I;16L", "I;16B", "I;16N"}
_PLAIN = {"LA": "L", "La": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "RGBa": "RGB", "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}


@dataclass(frozen=True)
class ImageSet:
    """Images from a folder, in the order of their paths.

    Args:
        values: float32 in 0..1, (n, h, w) if all images are grey, else (n, 3, h, w); n >= 2.
        labels: int64 indices into classes, (n,), or None without sub-folders.
        classes: the names of the sub-folders, in numerical order if all are whole numbers, else in alphabetical order.
        path: the folder.
    """

    values: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    path: Path


def encode(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class names as int64 indices into the different ones, which stand in numerical order if all are whole numbers."""
    whole = all(re.fullmatch(r"[+-]?\d{1,4000}", name) for name in set(names))
    classes = tuple(sorted(set(names), key=lambda name: (int(name), name) if whole else (0, name)))
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for name in names], dtype=np.int64), classes


def read_images(argument: str, path: str | Path) -> ImageSet:
    """Read the images below a folder: png, jpg, bmp, webp, gif (the first frame) and tif.

    Hidden files and other kinds of files are passed over. Photographs are turned upright, as their Exif tag says. Images below a
    sub-folder, at any depth, have its name as their class.

    Args:
        argument: what an error calls the folder, e.g. the option that named it.
        path: the folder.

    Raises:
        InputError: if it is no folder or has fewer than two images, if images lie both in it and in sub-folders, or if an image
            is damaged, too large to be safe, partly transparent, neither grey nor RGB, or of another size than the first.
    """
    path = Path(path)
    require(path.is_dir(), argument, expected="a folder of images", got=f"{path}, which is no folder", cure="name a folder")
    inside = [file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file()]
    files = sorted(file for file in inside if not any(part.startswith(".") for part in file.parts))
    require(len(files) >= 2, argument, expected=f"at least 2 images ({', '.join(ENDINGS)})", got=f"{len(files)} in {path}",
            cure="give it more images, in one of those formats")  # fmt: skip
    top = [file for file in files if len(file.parts) == 1]
    require(len(top) in (0, len(files)), argument, expected="all images in the folder, or all in sub-folders named by class",
            got=f"both in {path}, e.g. {top[0] if top else ''}", cure="move every image to a sub-folder, or none")  # fmt: skip
    images = [_pixels(argument, path / file) for file in files]
    height, width = images[0].shape[:2]
    for file, image in zip(files, images, strict=True):
        require(image.shape[:2] == (height, width), argument, expected=f"images of {width} x {height} pixels, as {files[0]} has",
                got=f"{image.shape[1]} x {image.shape[0]} in {path / file}", cure="resize or crop the images to one size")  # fmt: skip
    colour = any(image.ndim == 3 for image in images)
    values = np.empty((len(images), 3, height, width) if colour else (len(images), height, width), np.float32)
    for value, image in zip(values, images, strict=True):
        value[...] = np.moveaxis(image, -1, 0) if image.ndim == 3 else image  # a grey image fills three channels alike
        value /= np.iinfo(image.dtype).max
    labels, classes = (None, ()) if top else encode([file.parts[0] for file in files])
    return ImageSet(values, labels, classes, path)


def _pixels(argument: str, file: Path) -> np.ndarray:
    """One image as whole numbers of 8 or 16 bits, (h, w) or (h, w, 3)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tags that no pixel depends on
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                image = ImageOps.exif_transpose(opened)
        least = image.convert("RGBA").getchannel("A").getextrema()[0] if image.has_transparency_data else 255
        mode = _PLAIN.get(image.mode, image.mode)
        image = image if mode == image.mode else image.convert(mode)
        pixels = np.uint8(255) * np.asarray(image) if mode == "1" else np.asarray(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(argument, expected=f"images below {Image.MAX_IMAGE_PIXELS} pixels", got=f"{file} ({error})",
                         cure="shrink it, or remove it if you do not know it") from None  # fmt: skip
    except Exception as error:  # a damaged file makes Pillow raise OSError, SyntaxError, struct.error, ...: whatever its format met
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(argument, expected="whole images", got=f"damage ({said}) in {file}",
                         cure="write the file again or remove it") from None  # fmt: skip
    require(least == 255, argument, expected="images without transparent pixels", got=f"some in {file}",
            cure="put it on a background of your choice")  # fmt: skip
    require(mode in _GREY | _DEEP | {"RGB"}, argument, expected="grey or RGB images", got=f"mode {mode} in {file}",
            cure="convert it to 8-bit grey or RGB")  # fmt: skip
    return pixels
