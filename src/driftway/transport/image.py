r"""A U-Net potential for images: V = alpha |x|^2 / 2 - <x, U(x, t, c)> with a convolutional U (see `inner.py`).

The states are flat: only the `active` pixels are columns, constant pixels take no part. x is scattered into its image, cut into 2 x 2
patches (the first level already has a quarter of the pixels), and comes back the same way. One residual block is

    y = x + K_2 silu((1 + s) * n(K_1 silu(n(x))) + m)        (s, m) = scale and shift, linear in e(t, c)

with n a group normalisation and K 3 x 3 convolutions. Ho, Jain and Abbeel (2020), section 4 and appendix B; the modulation is
Dhariwal and Nichol (2021), section 4.3. At the lowest resolution an image that is linear in e(t, c) is added: convolutions alone tell
no places apart, and take long to learn what a label looks like. All is smooth in x, so grad V may itself be differentiated.

Equation (T9): docs/derivations/transport.md.
"""

from math import prod
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, pixel_shuffle, pixel_unshuffle, silu

from driftway.checks import choice, count, require
from driftway.transport.inner import Clock, InnerProduct

GROUPS = 8


class Block(nn.Module):
    """The residual block at the top of this file."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.n_1, self.n_2 = norm(inputs), norm(outputs)
        self.K_1, self.K_2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "n inputs h w"], modulation: Float[Tensor, "n twice"]) -> Float[Tensor, "n outputs h w"]:
        s, m = modulation[:, :, None, None].chunk(2, 1)
        return self.skip(x) + self.K_2(silu((1 + s) * self.n_2(self.K_1(silu(self.n_1(x)))) + m))


class UNet(nn.Module):
    """An image to an image of the same shape; sides are padded to a multiple of 2^levels.

    Args:
        shape: channels, height and width of the image.
        base: channels of the first level; every further level has twice as many.
        levels: number of resolutions; the first has half the sides of the image.
        blocks: residual blocks per level, on the way down and on the way up.
        classes: see `Condition`.
        columns: see `Condition`.
    """

    def __init__(self, shape: tuple[int, int, int], *, base: int, levels: int, blocks: int, classes: int, columns: int) -> None:
        super().__init__()
        sizes = [base << i for i in range(levels)]
        channels, self.multiple, self.blocks = shape[0], 2**levels, blocks
        self.low = (sizes[-1], -(-shape[1] // self.multiple), -(-shape[2] // self.multiple))
        self.place = nn.Linear(4 * base, prod(self.low))
        self.clock = Clock(4 * base, classes=classes, columns=columns)
        self.lift = nn.Conv2d(4 * channels, base, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, 2 * a, 2, stride=2) for a in sizes[:-1])
        self.up = nn.ModuleList(nn.Conv2d(2 * a, a, 1) for a in reversed(sizes[:-1]))
        self.encoder = nn.ModuleList(Block(a, a) for a in sizes for _ in range(blocks))
        self.decoder = nn.ModuleList(Block(a, a) for a in reversed(sizes[:-1]) for _ in range(blocks))
        self.split = [2 * cast("Block", b).outputs for b in [*self.encoder, *self.decoder]]
        self.modulation = nn.Linear(4 * base, sum(self.split))
        self.norm, self.head = norm(base), nn.Conv2d(base, 4 * channels, 3, padding=1)
        for last in (self.head, *(cast("Block", b).K_2 for b in [*self.encoder, *self.decoder])):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(cast("Tensor", last.bias))

    def forward(
        self, image: Float[Tensor, "n channels h w"], t: Float[Tensor, " n"], c: Tensor | None
    ) -> Float[Tensor, "n channels h w"]:
        height, width = image.shape[2:]
        e = self.clock(t, c)
        modulations = iter(self.modulation(e).split(self.split, 1))
        encoder, decoder = iter(self.encoder), iter(self.decoder)
        h = self.lift(pixel_unshuffle(pad(image, (0, -width % self.multiple, 0, -height % self.multiple)), 2))
        skips = []
        for down in [*self.down, None]:
            h = h + self.place(e).unflatten(1, self.low) if down is None else h
            for _ in range(self.blocks):
                h = next(encoder)(h, next(modulations))
            if down is not None:
                skips.append(h)
                h = down(h)
        for up in self.up:
            h = interpolate(up(h), scale_factor=2.0) + skips.pop()
            for _ in range(self.blocks):
                h = next(decoder)(h, next(modulations))
        return pixel_shuffle(self.head(silu(self.norm(h))), 2)[:, :, :height, :width]


class ImageValue(InnerProduct):
    """V with a U-Net, and g as a perceptron of width 4 * base, over the active pixels of an image.

    Args:
        event: shape of one state, (k,): k active pixels.
        channels: channels of the image.
        height: rows of the image.
        width: columns of the image.
        base: channels of the first level.
        levels: number of resolutions.
        blocks: residual blocks per level and direction.
        classes: number of classes of an index condition; 0 for none.
        columns: number of entries of a condition vector; 0 for none.
    """

    active: Tensor

    def __init__(self, event: tuple[int, ...], *, channels: int, height: int, width: int, base: int = 32, levels: int = 2,
                 blocks: int = 1, classes: int = 0, columns: int = 0) -> None:  # fmt: skip
        super().__init__(event, width=4 * count("base", base), classes=classes, columns=columns)
        self.shape = (count("channels", channels), count("height", height), count("width", width))
        pixels = channels * height * width
        require(self.event[0] <= pixels, "event", expected=f"at most {pixels} columns", got=self.event[0], cure="give the image's shape")
        self.U = UNet(self.shape, base=base, levels=count("levels", levels), blocks=count("blocks", blocks), classes=classes,
                      columns=columns)  # fmt: skip
        self.register_buffer("active", torch.ones(pixels, dtype=torch.bool))
        self.prepare()

    def activate(self, active: Bool[Tensor, " pixels"]) -> None:
        """Say which pixels, channel by channel and row by row, the columns of a state are.

        Raises:
            InputError: if they are not as many as the columns.
        """
        require(active.shape == self.active.shape and int(active.sum()) == self.event[0], "active",
                expected=f"{self.event[0]} of {len(self.active)} pixels", got=f"{int(active.sum())} of {active.numel()}",
                cure="mark one pixel for each column")  # fmt: skip
        self.active.copy_(active)

    def prepare(self, *, precision: str = "float32", compiled: bool = False) -> None:
        """Choose how U runs; neither choice is part of the model.

        Args:
            precision: "bfloat16" for automatic mixed precision inside U; results keep their dtype.
            compiled: whether torch.compile translates U and its pass down; needs a C++ compiler.

        Raises:
            InputError: if there is no such precision.
        """
        self.precision = choice("precision", precision, ("float32", "bfloat16"))
        self._compiled = torch.compile(vector_and_pull) if compiled else None

    def _vector_and_pull(self, x: Tensor, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._compiled(self, x, t, c) if self._compiled else super()._vector_and_pull(x, t, c)

    def vector(self, x: Float[Tensor, "n k"], t: Float[Tensor, " n"], c: Tensor | None) -> Float[Tensor, "n k"]:
        order = (~self.active).to(torch.uint8).argsort(stable=True)[: self.event[0]]  # active pixels, without a wait for the device
        image = x.new_zeros(len(x), len(self.active)).index_copy(1, order, x).unflatten(1, self.shape)
        if x.is_cuda:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            U = self.U(image, t, c)
        return U.to(x.dtype).flatten(1).index_select(1, order)


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in groups of at least four channels."""
    return nn.GroupNorm(next(g for g in range(GROUPS, 0, -1) if channels % g == 0 and (g == 1 or channels >= 4 * g)), channels)


def vector_and_pull(V: ImageValue, x: Tensor, t: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """U and J_U^T x in the form that torch.compile understands; a plain function, so that a copied value runs on its own weights."""
    U, pull = torch.func.vjp(lambda z: V.vector(z, t, c), x)[:2]
    return U, pull(x)[0]
