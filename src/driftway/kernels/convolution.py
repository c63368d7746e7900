"""Infinitely wide convolutional networks: `depth` convolutions with activations, a head, and a dense readout.

S(p, q) and Theta(p, q) are the covariance and the tangent kernel of pixel p of one image and pixel q of another. With filters of
k x k offsets d, C channels, and S = Theta = 0 where p + d or q + d is outside of an image padded with zeros,

    start         S(p, q) = sum_c x_cp x'_cq / C,    Theta = 0
    convolution   S' = w^2 a(S) + b^2,    Theta' = S' + w^2 a(Theta)       a(S)(p, q) = sum_d S(p + d, q + d) / k^2
    activation    S' = T(S),              Theta' = Theta Tdot(S)           `activations`; these need the variances S(p, p) too
    head          flatten: the mean over p = q,    pool: the mean over all p and q (global average pooling)
    readout       S' = w^2 S + b^2,       Theta' = S' + w^2 Theta

(Novak et al., 2019; Arora et al., 2019, section 4). A head that flattens needs the pixels p = q only, H W numbers for each pair of
images; one that pools needs all (H W)^2. In the standard parameterisation weights of variance w^2 / fan-in are trained as they are:
Theta' = fan-in a(S) + [bias] + w^2 a(Theta). A convolution has fan-in k^2 channels, C for the first and `width` for the others, and the
readout `width` times the pixels that it sees; [bias] as in `infinite`.

Pairs of images are computed in blocks that fit a cache and the budget of memory. With gradients, each block is computed again in the
backward pass.

Equations (K11), (K12), (K13): docs/derivations/kernels.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from driftway.checks import choice, count, real, require
from driftway.kernels.activations import Activation, activation
from driftway.kernels.base import GIB, points
from driftway.kernels.network import PARTS, Network, Pair

ENTRIES = {"cpu": 2**17}  # of a block that fits the cache, on devices where that matters
HELD = 8, 12  # arrays of the size of a block that exist at once: without gradients; with gradients, for each layer


@dataclass(frozen=True)
class Convolutional(Network):
    """A convolutional network of infinite width on images (n, C, H, W).

    Attributes:
        depth: convolutions, each followed by the activation; 0 is a linear model.
        kernel_size: k.
        head: "flatten" or "pool".
        activation: relu, leaky_relu, abs, erf or gelu, or an `Activation`.
        w_std: w, of all weights; a number or a scalar tensor, > 0.
        b_std: b, of all biases; a number or a scalar tensor, or None for no biases.
        padding: "same" (zeros), "valid" (none) or "circular" (the image repeats).
        strides: of every convolution. "same" and "circular" give ceil(H / strides) rows; of an odd number of padded rows, the larger half
            is at the end, as in JAX.
        parameterization: "ntk" or "standard".
        width: channels after a convolution, as the standard NTK counts them; "ntk" has no use for it.
        memory: GiB that the work on a block may take.

    Raises:
        InputError: if an argument is none of these.
    """

    depth: int
    kernel_size: int = 3
    head: str = "flatten"
    activation: str | Activation = "relu"
    w_std: float | int | Tensor = 1.5
    b_std: float | int | Tensor | None = 0.05
    padding: str = "same"
    strides: int = 1
    parameterization: str = "ntk"
    width: int = 512
    memory: float | int = 1.0

    def __post_init__(self) -> None:
        count("depth", self.depth, least=0)
        for name in ("kernel_size", "strides", "width"):
            count(name, getattr(self, name))
        choice("head", self.head, ("flatten", "pool"))
        choice("padding", self.padding, ("same", "valid", "circular"))
        choice("parameterization", self.parameterization, ("ntk", "standard"))
        activation(self.activation)
        for name, strict in (("w_std", True), ("b_std", False)):
            value = 0 if getattr(self, name) is None and not strict else getattr(self, name)
            real(name, value.item() if isinstance(value, Tensor) and value.ndim == 0 else value, least=0, strict=strict)
        real("memory", self.memory, least=0, strict=True)

    def kernels(self, x: Tensor, y: Tensor | None = None) -> Pair:
        return Pair(*self._matrices(PARTS, x, y))

    def kernel(self, part: str, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self._matrices(PARTS if choice("part", part, PARTS) == "ntk" else ("nngp",), x, y)[-1]

    def kernel_diagonals(self, x: Tensor) -> Pair:
        x, _ = points(x)
        i = torch.arange(len(x), device=x.device)
        return Pair(*self._pairs(PARTS, x, x, i, i, same=True))

    def _matrices(self, parts: Sequence[str], x: Tensor, y: Tensor | None) -> list[Tensor]:
        """The named kernels, the NNGP and perhaps the NTK."""
        symmetric, (x, y) = y is None, points(x, y)
        n, m = len(x), len(y)
        if not symmetric:
            i, j = torch.arange(n * m, device=x.device) // m, torch.arange(n * m, device=x.device) % m
            return [K.reshape(n, m) for K in self._pairs(parts, x, y, i, j)]
        i, j = torch.triu_indices(n, n, 1, device=x.device)
        place = torch.arange(n, device=x.device).diag()  # where the entries of K are in the list: diagonal, then upper triangle
        place[i, j] = place[j, i] = n + torch.arange(len(i), device=x.device)
        diagonals, upper = self.kernel_diagonals(x), self._pairs(parts, x, x, i, j)
        return [torch.cat([getattr(diagonals, part), K])[place] for part, K in zip(parts, upper, strict=True)]

    def _pairs(self, parts: Sequence[str], x: Tensor, y: Tensor, i: Int[Tensor, " p"], j: Int[Tensor, " p"], *,
               same: bool = False) -> list[Tensor]:  # fmt: skip
        """The named kernels of x_i and y_j for lists of i and j, block by block; `same` if these are the same images."""
        gradients = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, y, self.w_std, self.b_std))
        step = self._step(x, gradients)
        v_x = self._variances(x)
        v_y = v_x if y is x else self._variances(y)
        found = []
        for a, b in zip(i.split(step), j.split(step), strict=True):
            block = (len(parts) > 1, same, x[a], y[b], [v[a] for v in v_x], [v[b] for v in v_y])
            found.append(checkpoint(self._layers, *block, use_reentrant=False, preserve_rng_state=False) if gradients
                         else self._layers(*block))  # fmt: skip
        return [torch.cat(blocks) for blocks in zip(*found, strict=True)]

    def _layers(self, tangent: bool, same: bool, x: Tensor, y: Tensor, v_x: list[Tensor], v_y: list[Tensor]) -> list[Tensor]:
        """S, and Theta if `tangent`, of x_p and y_p for each p, from the variances before each activation."""
        k2, channels, pool = self.kernel_size**2, x.shape[1], self.head == "pool"
        if pool:
            S, axes = torch.einsum("pchw,pcij->phwij", x, y) / channels, ((1, 3), (2, 4))
            v_x, v_y = [v[..., None, None] for v in v_x], [v[:, None, None] for v in v_y]
        else:
            S, axes = (x * y).sum(1) / channels, ((1,), (2,))
        Theta = torch.zeros_like(S) if tangent else None
        for s11, s22 in zip(v_x, v_y, strict=True):
            A = self._average(S, axes)
            S, Theta = self._dense(A, None if Theta is None else self._average(Theta, axes), k2 * channels)
            S, Theta = self._activated(S, Theta, s11, s22, same and not pool)
            channels = self.width
        seen = channels * (1 if pool else S.shape[1:].numel())
        S, Theta = self._dense(S.flatten(1).mean(1), None if Theta is None else Theta.flatten(1).mean(1), seen)
        return [S] if Theta is None else [S, Theta]

    def _dense(self, A: Tensor, B: Tensor | None, fan_in: int) -> tuple[Tensor, Tensor | None]:
        """What weights and biases make of the averages A of S and B of Theta."""
        S = self.w_std**2 * A + (0.0 if self.b_std is None else self.b_std**2)
        if B is None:
            return S, None
        return S, (S if self.parameterization == "ntk" else fan_in * A + (self.b_std is not None)) + self.w_std**2 * B

    def _activated(self, S: Tensor, Theta: Tensor | None, s11: Tensor, s22: Tensor, same: bool) -> tuple[Tensor, Tensor | None]:
        """T(S) and Theta Tdot(S), some rows of pixels at a time."""
        phi = activation(self.activation)
        if same:
            T, slope = phi.dual_diagonal(S)
        else:
            rows = max(1, ENTRIES.get(S.device.type, S.numel()) // max(1, S[:, 0].numel()))
            pieces = S.split(rows, 1)
            variances = (s.split(rows, 1) if s.shape[1] > 1 else [s] * len(pieces) for s in (s11, s22))  # to pool, s22 has one row
            T, slope = (torch.cat(parts, 1) for parts in zip(*map(phi.dual, pieces, *variances), strict=True))
        return T, None if Theta is None else Theta * slope

    def _variances(self, x: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """S(p, p) of every pixel before each activation."""
        S, variances = x.square().sum(1) / x.shape[1], []
        for _ in range(self.depth):
            variances.append(self._dense(self._average(S, ((1,), (2,))), None, 1)[0])
            S, _ = activation(self.activation).dual_diagonal(variances[-1])
        return variances

    def _average(self, S: Tensor, axes: tuple[tuple[int, ...], ...]) -> Tensor:
        """a(S). The axes of a group, rows or columns of pixels, are shifted together."""
        k, s = self.kernel_size, self.strides
        for group in axes:
            size = S.shape[group[0]]
            extra = 0 if self.padding == "valid" else max((-(-size // s) - 1) * s + k - size, 0)
            low, length = extra // 2, (size + extra - k) // s + 1
            if self.padding == "circular":
                for axis in group:
                    S = S.index_select(axis, torch.arange(-low, size + extra - low, device=S.device) % size)
                low, size = 0, size + extra
            total = S[_at(group, slice(0, (length - 1) * s + 1, s))].clone()  # the filter's pixel d = low, which is never outside
            for e in (d - low for d in range(k) if d != low):
                first, last = max(0, -(e // s)), min(length - 1, (size - 1 - e) // s)  # pixel o s + e is inside
                if first <= last:
                    total[_at(group, slice(first, last + 1))] += S[_at(group, slice(first * s + e, last * s + e + 1, s))]
            S = total
        return S.div_(k**2)

    def _step(self, x: Tensor, gradients: bool) -> int:
        """How many pairs of images to hold at once.

        Raises:
            InputError: if x is not images, they are too small for the filters, or the budget is too small for one pair.
        """
        require(x.ndim == 4, "x", expected="images, shape (n, C, H, W)", got=f"shape {tuple(x.shape)}",
                cure="reshape it; a grey image has C = 1")  # fmt: skip
        h, w = x.shape[2:]
        least = 1
        for _ in range(self.depth if self.padding == "valid" else 0):
            least = (least - 1) * self.strides + self.kernel_size
        require(min(h, w) >= least, "x", expected=f"at least {least} x {least} pixels for {self.depth} convolutions without padding",
                got=f"{h} x {w}", cure='pass padding="same"')  # fmt: skip
        entries = (h * w) ** (2 if self.head == "pool" else 1)
        need = entries * x.element_size() * (HELD[1] * (self.depth + 1) if gradients else HELD[0]) / GIB
        require(need <= self.memory, "memory", expected=f"at least {need:.3g} GiB for one pair of images of {h} x {w} pixels"
                + " with gradients" * gradients, got=f"{self.memory:g} GiB",
                cure='raise memory, or use head="flatten", float32 or smaller images')  # fmt: skip
        return max(1, int(min(ENTRIES.get(x.device.type, torch.inf) / entries, self.memory / need)))


def _at(group: tuple[int, ...], place: slice) -> tuple[slice, ...]:
    return tuple(place if axis in group else slice(None) for axis in range(max(group) + 1))
