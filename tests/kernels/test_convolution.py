import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from driftway.checks import InputError
from driftway.kernels import convolution
from driftway.kernels.convolution import Convolutional
from driftway.kernels.infinite import FullyConnected, Pair

DOUBLE = torch.float64
GOLDEN = json.loads((Path(__file__).parents[1] / "closed_forms" / "neural_kernels.json").read_text())


def images(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def close(pair: Pair, other: Pair, **accuracy: float) -> None:
    for a, b in ((pair.nngp, other.nngp), (pair.ntk, other.ntk)):
        torch.testing.assert_close(a, b, **accuracy)


def test_golden_numbers_of_two_convolutions():
    rng = np.random.RandomState(0)
    A, B = (torch.from_numpy(rng.randn(2, 4, 4, 2)).permute(0, 3, 1, 2) for _ in range(2))
    golden = Pair(*(torch.tensor(GOLDEN[f"conv_flatten_{part}"], dtype=DOUBLE) for part in ("nngp", "ntk")))
    close(Convolutional(2).kernels(A, B), golden, atol=1e-10, rtol=0)


class Naive:
    """Two images pixel pair by pixel pair and offset by offset, in plain numbers; ReLU by its arc-cosine formulas."""

    def __init__(self, net: Convolutional):
        self.net, self.w2, self.b2 = net, float(net.w_std) ** 2, float(net.b_std or 0) ** 2

    def inside(self, o: int, d: int, size: int) -> int | None:
        """The input pixel that the filter at output pixel o sees at offset d."""
        k, s = self.net.kernel_size, self.net.strides
        low = 0 if self.net.padding == "valid" else max((self.length(size) - 1) * s + k - size, 0) // 2
        p = o * s + d - low
        if self.net.padding == "circular":
            return p % size
        return p if 0 <= p < size else None

    def length(self, size: int) -> int:
        whole = size - self.net.kernel_size + 1 if self.net.padding == "valid" else size
        return math.ceil(whole / self.net.strides)

    def average(self, S: dict, h: int, w: int) -> dict:
        k, out = self.net.kernel_size, {}
        pixels = list(product(range(self.length(h)), range(self.length(w))))
        for p, q in product(pixels, pixels):
            total = 0.0
            for d in product(range(k), range(k)):
                where = [self.inside(o, e, size) for o, e, size in zip((*p, *q), (*d, *d), (h, w, h, w), strict=True)]
                if None not in where:
                    total += S[tuple(where[:2]), tuple(where[2:])]
            out[p, q] = total / k**2
        return out

    def variances(self, x: Tensor) -> list[dict]:
        (c, h, w), found = x.shape, []
        S = {(p, q): float(x[:, *p] @ x[:, *q]) / c for p in product(range(h), range(w)) for q in product(range(h), range(w))}
        for _ in range(self.net.depth):
            S = {pq: self.w2 * value + self.b2 for pq, value in self.average(S, h, w).items()}
            found.append({p: value for (p, q), value in S.items() if p == q})
            S = {(p, q): self.dual(value, found[-1][p], found[-1][q])[0] for (p, q), value in S.items()}
            h, w = self.length(h), self.length(w)
        return found

    @staticmethod
    def dual(s12: float, s11: float, s22: float) -> tuple[float, float]:
        angle = math.acos(min(1.0, max(-1.0, s12 / math.sqrt(s11 * s22))))
        return math.sqrt(s11 * s22) / (2 * math.pi) * (math.sin(angle) + (math.pi - angle) * math.cos(angle)), 0.5 - angle / (2 * math.pi)

    def kernels(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        net, (c, h, w) = self.net, x.shape
        standard, bias = net.parameterization == "standard", net.b_std is not None
        pixels = list(product(range(h), range(w)))
        S = {(p, q): float(x[:, *p] @ y[:, *q]) / c for p in pixels for q in pixels}
        Theta = dict.fromkeys(S, 0.0)
        for v_x, v_y in zip(self.variances(x), self.variances(y), strict=True):
            A, B = self.average(S, h, w), self.average(Theta, h, w)
            S = {pq: self.w2 * a + self.b2 for pq, a in A.items()}
            duals = {(p, q): self.dual(s, v_x[p], v_y[q]) for (p, q), s in S.items()}
            new = {pq: net.kernel_size**2 * c * a + bias for pq, a in A.items()} if standard else S
            Theta = {pq: (new[pq] + self.w2 * B[pq]) * duals[pq][1] for pq in S}
            S, c, h, w = {pq: T for pq, (T, _) in duals.items()}, net.width, self.length(h), self.length(w)
        chosen = [pq for pq in S if net.head == "pool" or pq[0] == pq[1]]
        A, B = (sum(kernel[pq] for pq in chosen) / len(chosen) for kernel in (S, Theta))
        seen = c * (1 if net.head == "pool" else len(chosen))
        S = self.w2 * A + self.b2
        return S, (seen * A + bias if standard else S) + self.w2 * B


CASES = [
    Convolutional(2, head="flatten"),
    Convolutional(2, head="pool", b_std=0.3),
    Convolutional(2, kernel_size=2, head="pool", padding="circular", b_std=None),
    Convolutional(2, kernel_size=2, head="pool", padding="valid", parameterization="standard", width=7),
    Convolutional(2, kernel_size=3, head="flatten", strides=2, parameterization="standard", b_std=None, width=5),
    Convolutional(1, kernel_size=4, head="pool", padding="same", strides=3),
    Convolutional(1, kernel_size=5, head="pool", padding="circular", strides=2),
    Convolutional(1, kernel_size=2, head="flatten", padding="valid", strides=2, parameterization="standard"),
    Convolutional(0, head="pool", parameterization="standard"),
]


@pytest.mark.parametrize("net", CASES, ids=range(len(CASES)))
def test_loops_over_pixel_pairs_and_offsets_agree(net: Convolutional):
    x, y = images(1, 2, 3, 4, seed=0), images(1, 2, 3, 4, seed=1)
    naive = torch.tensor([Naive(net).kernels(x[0], y[0]), Naive(net).kernels(x[0], x[0])], dtype=DOUBLE)
    close(net.kernels(x, torch.cat([y, x])), Pair(*naive.T[:, None]), atol=1e-7, rtol=1e-7)  # arc cosines near 1 lose half the digits
    close(net.kernel_diagonals(x), Pair(*naive.T[:, 1:]), atol=1e-7, rtol=1e-7)


def finite_network(net: Convolutional, channels: int, pixels: int, *, width: int, generator: torch.Generator) -> tuple[list, Callable]:
    """Weights of a finite network and the function (weights, images) -> (features, output)."""
    standard, w, b, k = net.parameterization == "standard", float(net.w_std), float(net.b_std or 0), net.kernel_size
    fans = [k**2 * c for c in [channels] + [width] * (net.depth - 1)] + [width * (1 if net.head == "pool" else pixels)]
    shapes = [(width, fan // k**2, k, k) for fan in fans[:-1]] + [(1, fans[-1])]
    scales = [(w / fan**0.5, b) for fan in fans]
    weights = []
    for shape, (sw, sb) in zip(shapes, scales, strict=True):
        for size, scale in ((shape, sw), (shape[:1], sb)):
            weights.append((torch.randn(*size, generator=generator) * (scale if standard else 1)).requires_grad_())
    low, high = (k - 1) // 2, k // 2

    def forward(weights: list, x: Tensor) -> tuple[Tensor, Tensor]:
        layers = [(W * (1 if standard else sw), B * (1 if standard else sb))
                  for W, B, (sw, sb) in zip(weights[::2], weights[1::2], scales, strict=True)]  # fmt: skip
        for W, B in layers[:-1]:
            if net.padding != "valid":
                x = functional.pad(x, [low, high] * 2, mode="circular" if net.padding == "circular" else "constant")
            x = functional.conv2d(x, W, B, stride=net.strides).relu()
        x = x.mean((2, 3)) if net.head == "pool" else x.flatten(1)
        return x, functional.linear(x, *layers[-1])[:, 0]

    return weights, forward


@pytest.mark.parametrize(("net", "pixels"), [
    (Convolutional(2, head="flatten", b_std=0.4), 16),
    (Convolutional(2, kernel_size=2, head="pool", padding="circular", b_std=0.4), 16),
    (Convolutional(2, kernel_size=2, head="flatten", padding="valid", parameterization="standard", width=128), 4),
    (Convolutional(2, head="pool", parameterization="standard", b_std=0.4, width=128), 16),
    (Convolutional(1, kernel_size=2, head="pool", padding="valid", strides=2, b_std=0.4), 4),
])  # fmt: skip
def test_kernels_are_the_limit_of_finite_networks(net: Convolutional, pixels: int):
    """Covariance of outputs over the readout, given the features, and inner products of gradients; means over draws of the weights."""
    draws, width, x = 100, 128, images(3, 2, 4, 4, seed=3).float()
    generator, found = torch.Generator().manual_seed(4), []
    for _ in range(draws):
        weights, forward = finite_network(net, 2, pixels, width=width, generator=generator)
        h, f = forward(weights, x)
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(value, weights, retain_graph=True)]) for value in f]
        J = torch.stack(rows)
        nngp = float(net.w_std) ** 2 * (h @ h.mT) / h.shape[1] + float(net.b_std or 0) ** 2
        found.append(torch.stack([nngp.detach(), J @ J.mT]))
    kernels = net.kernels(x)
    for sample, exact in zip(torch.stack(found, 1), (kernels.nngp, kernels.ntk), strict=True):
        error = 4 * sample.std(0) / draws**0.5 + 1.5 / width * exact.diagonal().max()  # standard error, and the finite width
        assert ((sample.mean(0) - exact).abs() < error).all()
        assert (error < 0.2 * exact.diagonal().max()).all()


def test_one_pixel_or_one_filter_position_is_a_fully_connected_network():
    x, y = images(3, 5, 1, 1, seed=0), images(2, 5, 1, 1, seed=1)
    for head, kind in product(("flatten", "pool"), ("ntk", "standard")):
        options = {"activation": "gelu", "parameterization": kind, "width": 9, "b_std": 0.2}
        net, dense = Convolutional(3, kernel_size=1, head=head, **options), FullyConnected(3, **options)
        close(net.kernels(x, y), dense.kernels(x, y))
        close(net.kernels(x), dense.kernels(x))
        close(net.kernel_diagonals(x), dense.kernel_diagonals(x))
    x = images(3, 2, 4, 4, seed=2)
    for kind in ("ntk", "standard"):
        net = Convolutional(1, kernel_size=4, padding="valid", parameterization=kind)
        close(net.kernels(x), FullyConnected(1, parameterization=kind).kernels(x))


def test_a_pooled_circular_network_does_not_see_shifts_and_a_flat_one_sees_only_relative_ones():
    x, y = images(2, 2, 4, 5, seed=0), images(2, 2, 4, 5, seed=1)
    moved = x.roll((1, 3), (2, 3))
    pool, flat = (Convolutional(2, head=head, padding="circular") for head in ("pool", "flatten"))
    close(pool.kernels(moved, y), pool.kernels(x, y))
    close(flat.kernels(moved, y.roll((1, 3), (2, 3))), flat.kernels(x, y))
    assert (flat.kernels(moved, y).nngp - flat.kernels(x, y).nngp).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["flatten", "pool"])
def test_grams_are_symmetric_crosses_and_positive_semidefinite(head: str):
    x = images(5, 2, 4, 4, seed=0)
    net = Convolutional(2, head=head, activation="erf")
    for kernel in (net.nngp, net.ntk):
        K = kernel(x)
        assert torch.equal(K, K.T)
        torch.testing.assert_close(K, kernel(x, x.clone()))
        torch.testing.assert_close(K.diagonal(), kernel.diagonal(x))
        assert torch.linalg.eigvalsh(K)[0] > 0
    assert torch.equal(net.nngp(x), net.kernels(x).nngp)
    assert net.ntk(x.float()).dtype == torch.float32
    assert net.kernels(x[:1]).ntk.shape == (1, 1)


@pytest.mark.parametrize("head", ["flatten", "pool"])
def test_blocks_and_pieces_do_not_change_results_or_slopes(head: str, monkeypatch: pytest.MonkeyPatch):
    x, y = images(3, 2, 4, 4, seed=0).requires_grad_(), images(4, 2, 4, 4, seed=1)
    whole = Convolutional(2, head=head).kernels(x, y)
    (slope,) = torch.autograd.grad((whole.ntk + whole.nngp).square().sum(), x)
    entries = 4**4 if head == "pool" else 4**2
    monkeypatch.setitem(convolution.ENTRIES, "cpu", entries // 4)  # a piece of one row
    parts = Convolutional(2, head=head, memory=40 * entries * 8 / 2**30).kernels(x, y)  # a block of one pair
    (other,) = torch.autograd.grad((parts.ntk + parts.nngp).square().sum(), x)
    close(parts, whole)
    torch.testing.assert_close(other, slope)


@pytest.mark.parametrize("head", ["flatten", "pool"])
def test_slopes(head: str):
    x, y = images(2, 1, 2, 3, seed=0), images(1, 1, 2, 3, seed=1)

    def entries(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        pair = Convolutional(2, kernel_size=2, head=head, w_std=w, b_std=b).kernels(x, y)
        return pair.nngp, pair.ntk

    w, b = torch.tensor([1.2, 0.3], dtype=DOUBLE)
    assert torch.autograd.gradcheck(entries, [leaf.clone().requires_grad_() for leaf in (x, y, w, b)])


@pytest.mark.parametrize("head", ["flatten", "pool"])
@pytest.mark.parametrize("b_std", [0.05, None])
def test_slopes_are_finite_on_the_diagonal_and_at_black_pixels(head: str, b_std: float | None):
    x = images(3, 2, 4, 4, seed=0)
    x[0], x[1, :, :2] = 0, 0
    x.requires_grad_()
    net = Convolutional(2, head=head, b_std=b_std)
    for pair in (net.kernels(x), net.kernel_diagonals(x), net.kernels(x, x.detach().clone())):
        (slope,) = torch.autograd.grad(pair.nngp.sum() + pair.ntk.sum(), x)
        assert slope.isfinite().all()
        assert slope[2].abs().max() > 0


class TestBadInput:
    def test_budget(self):
        x = images(2, 3, 32, 32, seed=0)
        text = r'at least 0.0625 GiB for one pair of images of 32 x 32 pixels, got 0.01 GiB; raise memory, or use head="flatten"'
        with pytest.raises(InputError, match=text):
            Convolutional(2, head="pool", memory=0.01).nngp(x)
        with pytest.raises(InputError, match=r"at least 0.281 GiB for one pair of images of 32 x 32 pixels with gradients"):
            Convolutional(2, head="pool", memory=0.1).nngp(x.requires_grad_())

    def test_images(self):
        with pytest.raises(InputError, match=r"x: expected images, shape \(n, C, H, W\), got shape \(2, 3, 4\); reshape it"):
            Convolutional(2).nngp(images(2, 3, 4, seed=0))
        with pytest.raises(InputError, match="x: expected at least 7 x 7 pixels for 2 convolutions without padding, got 8 x 6"):
            Convolutional(2, padding="valid", strides=2).nngp(images(2, 3, 8, 6, seed=0))

    @pytest.mark.parametrize(("text", "options"), [
        ("depth: expected a whole number >= 0, got -1", {"depth": -1}),
        ("strides: expected a whole number >= 1, got 0", {"strides": 0}),
        ("head: expected one of flatten, pool, got 'gap'", {"head": "gap"}),
        ("padding: expected one of same, valid, circular, got 'full'", {"padding": "full"}),
        ("parameterization: expected one of ntk, standard, got 'mup'", {"parameterization": "mup"}),
        ("w_std: expected a finite number > 0, got 0", {"w_std": 0.0}),
        ("b_std: expected a finite number >= 0, got -1", {"b_std": -1.0}),
        ("w_std: expected a finite number > 0, got tensor", {"w_std": torch.ones(2)}),
        ("memory: expected a finite number > 0, got 0", {"memory": 0}),
    ])
    def test_options(self, text: str, options: dict):
        with pytest.raises(InputError, match=text):
            Convolutional(**{"depth": 2, **options})
