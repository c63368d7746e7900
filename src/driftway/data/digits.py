"""Handwritten digits, 8 x 8 pixels: a real data set that needs no download."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def digits() -> tuple[Float[Tensor, "1797 64"], Int[Tensor, " 1797"]]:
    """The images as float32 rows of pixel values 0..16, row after row of the image, and their labels 0..9 as int64.

    Raises:
        OSError: if scikit-learn was installed without its data files.

    Source: Alpaydin and Kaynak (1998), UCI repository, the test part; as scikit-learn ships it.
    """
    from sklearn.datasets import load_digits  # here: the import takes a second, and laws and readers do without it

    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).to(torch.float32), torch.from_numpy(labels).to(torch.int64)
