"""Kernels of infinite fully connected networks: reference numbers, closed forms, laws, and finite networks."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.kernels import infinite
from driftway.kernels.activations import ABReLU, Activation, activation
from driftway.kernels.infinite import FullyConnected, Pair

DOUBLE = torch.float64
KNOWN = json.loads((Path(__file__).parent.parent / "closed_forms" / "neural_kernels.json").read_text())
PARTS = ("nngp", "ntk")
ANY: list[str | Activation] = ["relu", "leaky_relu", "abs", "erf", "gelu", ABReLU(0.3, -0.8), ABReLU(1.0, 1.0)]
every_activation = pytest.mark.parametrize("phi", ANY, ids=str)


def rows(n: int, d: int, *, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(n, d, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def naive(net: FullyConnected, x: Tensor, y: Tensor) -> Pair:
    """The recursion on whole matrices, with a graph."""
    phi, standard = activation(net.activation), net.parameterization == "standard"
    b2, bias = (0.0, 0.0) if net.b_std is None else (net.b_std**2, 1.0)
    S, S11, S22, d = x @ y.mT / x.shape[1], x.square().mean(1)[:, None], y.square().mean(1), x.shape[1]
    Theta = d * S + bias if standard else net.w_std**2 * S + b2
    for _ in range(net.depth):
        S, S11, S22 = (net.w_std**2 * s + b2 for s in (S, S11, S22))
        (S, slope), (S11, _), (S22, _) = phi.dual(S, S11, S22), phi.dual(S11, S11, S11), phi.dual(S22, S22, S22)
        Theta = net.w_std**2 * Theta * slope + (net.width * S + bias if standard else net.w_std**2 * S + b2)
    return Pair(net.w_std**2 * S + b2, Theta)


def close(found: Pair, known: Pair, tolerance: float) -> None:
    for part in PARTS:
        one, two = getattr(found, part), getattr(known, part)
        scale = float(two.abs().max()) or 1.0
        torch.testing.assert_close(one, two, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("key", [key for key in KNOWN if key.startswith(("relu", "erf"))])
def test_reference_numbers(key: str) -> None:
    name, depth, part, *same = key.split("_")
    x, y = (torch.tensor(KNOWN[k], dtype=DOUBLE) for k in ("X", "Z"))
    net = FullyConnected(int(depth[1:]), name, w_std=1.5, b_std=0.05)
    pair = net.kernels(x) if same else net.kernels(x, y)
    torch.testing.assert_close(getattr(pair, part), torch.tensor(KNOWN[key], dtype=DOUBLE), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("parameterization", "b_std"), [("ntk", 0.05), ("ntk", 0.0), ("standard", 0.0), ("standard", None)])
@every_activation
def test_blocks_agree_with_whole_matrices(phi: str | Activation, parameterization: str, b_std: float | None) -> None:
    """On shapes that blocks do not divide, with a zero row and rows that are parallel, opposite and equal."""
    net = FullyConnected(3, phi, w_std=1.3, b_std=b_std, parameterization=parameterization, width=5)
    x, y = rows(150, 7), rows(270, 7, seed=1)
    x[3], x[4], x[5], x[6], y[2] = 0, 2 * x[0], -x[0], x[0], x[1]
    for dtype, tolerance in ((DOUBLE, 3e-8), (torch.float32, 2e-3)):  # what half the digits of an angle leave of Tdot
        a, b = x.to(dtype), y.to(dtype)
        off = 1 - torch.eye(150, dtype=dtype)  # the diagonal is the limit of small rows, also for a zero row
        found, known = net.kernels(a), naive(net, a, a)
        close(Pair(found.nngp * off, found.ntk * off), Pair(known.nngp * off, known.ntk * off), tolerance)
        close(net.kernels(a, b), naive(net, a, b), tolerance)
        close(net.kernels(a[7:], b[3:]), naive(net, a[7:], b[3:]), {DOUBLE: 1e-13, torch.float32: 3e-5}[dtype])


@every_activation
def test_gram_is_symmetric_positive_definite_and_has_the_diagonal(phi: str | Activation) -> None:
    net, x = FullyConnected(2, phi), rows(150, 3)
    for part in PARTS:
        K = getattr(net.kernels(x), part)
        assert torch.equal(K, K.mT)
        assert torch.equal(K.diagonal(), getattr(net.kernel_diagonals(x), part))
        assert torch.linalg.eigvalsh(K)[0] > -1e-10 * K.trace()


def test_one_kernel_alone_equals_its_half_of_the_pair() -> None:
    x, y = rows(140, 3), rows(9, 3, seed=1)
    for net in (FullyConnected(2), FullyConnected(2, "gelu"), FullyConnected(1) * FullyConnected(2, "erf")):
        pair, cross = net.kernels(x), net.kernels(x, y)
        for part, kernel in (("nngp", net.nngp), ("ntk", net.ntk)):
            assert torch.equal(kernel(x), getattr(pair, part))
            assert torch.equal(kernel(x, y), getattr(cross, part))
            assert torch.equal(kernel.diagonal(x), getattr(net.kernel_diagonals(x), part))


def test_depth_zero_is_the_linear_kernel() -> None:
    x, y = rows(5, 3), rows(4, 3, seed=1)
    linear = 4 * x @ y.mT / 3 + 0.25
    pair = FullyConnected(0, w_std=2, b_std=0.5).kernels(x, y)
    close(pair, Pair(linear, linear), 1e-14)
    pair = FullyConnected(0, w_std=2, b_std=0.5, parameterization="standard").kernels(x, y)
    close(pair, Pair(linear, x @ y.mT + 1), 1e-14)


def test_erf_of_depth_one_is_the_arcsine_kernel() -> None:
    """Williams (1997), equation 11, in dot products of the rows with a one appended."""
    x, y = rows(5, 3), rows(4, 3, seed=1)
    a, b = (torch.cat([torch.full((len(z), 1), 0.3, dtype=DOUBLE), 1.2 * z / math.sqrt(3)], 1) for z in (x, y))
    sine = 2 * a @ b.mT / ((1 + 2 * a.square().sum(1))[:, None] * (1 + 2 * b.square().sum(1))).sqrt()
    found = FullyConnected(1, "erf", w_std=1.2, b_std=0.3).nngp(x, y)
    torch.testing.assert_close(found, 1.44 * 2 / math.pi * torch.asin(sine) + 0.09, rtol=1e-13, atol=0)


def test_relu_without_bias_keeps_length_and_composes_angles() -> None:
    """With w^2 = 2 the NNGP of depth L is |x| |x'| kappa(...kappa(c)) / d, and k(c x, y) = c k(x, y)."""
    net, x, y = FullyConnected(3, w_std=math.sqrt(2), b_std=None), rows(6, 4), rows(5, 4, seed=1)
    c = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).mT
    for _ in range(3):
        angle = torch.acos(c)
        c = (angle.sin() + (math.pi - angle) * c) / math.pi
    lengths = x.norm(dim=1)[:, None] * y.norm(dim=1)
    torch.testing.assert_close(net.nngp(x, y), 2 * lengths * c / 4, rtol=1e-12, atol=0)
    scaled, pair = net.kernels(7 * x, y), net.kernels(x, y)
    close(scaled, Pair(7 * pair.nngp, 7 * pair.ntk), 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@every_activation
def test_equal_rows_have_the_values_of_the_diagonal(phi: str | Activation, dtype: torch.dtype) -> None:
    net, x = FullyConnected(3, phi), rows(40, 5, dtype=dtype)
    diagonals, cross = net.kernel_diagonals(x), net.kernels(x, x.clone())
    close(Pair(cross.nngp.diagonal(), cross.ntk.diagonal()), diagonals, {torch.float32: 3e-5, DOUBLE: 1e-12}[dtype])


@pytest.mark.parametrize("depth", [1, 6])
def test_float32_agrees_with_float64(depth: int) -> None:
    net, x = FullyConnected(depth), rows(300, 20)
    exact, found = net.kernels(x), net.kernels(x.float())
    for part in PARTS:
        K = getattr(exact, part)
        scale = (K.diagonal()[:, None] * K.diagonal()).sqrt()
        assert ((getattr(found, part).double() - K) / scale).abs().max() < 5e-6


# Gradients.


def scalars(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in values)


def value(phi: str | Activation, pick: Callable[[Pair], Tensor]) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def of(x: Tensor, y: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return pick(FullyConnected(2, phi, w_std=w, b_std=b).kernels(x, y))

    return of


@pytest.mark.parametrize("part", PARTS)
@every_activation
def test_gradients_match_finite_differences_off_the_diagonal(phi: str | Activation, part: str) -> None:
    arguments = [rows(3, 2), rows(2, 2, seed=1), torch.tensor(1.2, dtype=DOUBLE), torch.tensor(0.3, dtype=DOUBLE)]
    assert torch.autograd.gradcheck(value(phi, lambda pair: getattr(pair, part)), [a.requires_grad_() for a in arguments])


@every_activation
def test_gradients_of_the_gram_match_finite_differences_on_the_diagonal_too(phi: str | Activation) -> None:
    w, b = (torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (1.2, 0.3))

    def both(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        pair = FullyConnected(2, phi, w_std=w, b_std=b).kernels(x)
        return pair.nngp, pair.ntk

    assert torch.autograd.gradcheck(both, (rows(3, 2).requires_grad_(), w, b))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("b_std", [0.2, 0.0])
@every_activation
def test_gradients_are_finite_at_equal_opposite_and_zero_rows(phi: str | Activation, b_std: float, dtype: torch.dtype) -> None:
    x = rows(2, 3, dtype=dtype)
    x = torch.cat([x, x[:1], -x[:1], torch.zeros_like(x[:1]), 3 * x[:1]]).requires_grad_()
    w, b = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (1.2, b_std))
    net = FullyConnected(3, phi, w_std=w, b_std=b)
    for pair in (net.kernels(x), net.kernels(x, x.detach().clone())):
        slopes = torch.autograd.grad(pair.nngp.sum() + pair.ntk.sum(), (x, w, b))
        assert all(torch.isfinite(s).all() and s.abs().max() < 1e5 for s in slopes)


def test_gradient_at_equal_rows_is_that_of_the_path_of_both() -> None:
    """k(x_1, x_2) with x_1 = x_2 = x moves like k(x, x): both halves of its gradient are half the diagonal's."""
    net, x = FullyConnected(3), rows(1, 4)
    a, b, c = (x.clone().requires_grad_() for _ in range(3))
    for part in PARTS:
        one = torch.autograd.grad(net.kernel(part, a, b).sum(), (a, b))
        both = torch.autograd.grad(getattr(net.kernel_diagonals(c), part).sum(), c)[0]
        torch.testing.assert_close(one[0], both / 2, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(one[1], both / 2, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("standard", [False, True])
def test_gradients_by_strips_equal_those_of_whole_matrices(standard: bool, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infinite, "HELD", {"cpu": 60, "cuda": 60})
    found = []
    for whole in (False, True):
        x, y, w, b = rows(25, 3).requires_grad_(), rows(9, 3, seed=1).requires_grad_(), *scalars(1.1, 0.3)
        net = FullyConnected(2, w_std=w, b_std=b, parameterization="standard" if standard else "ntk", width=4)
        z = x if symmetric else y
        pair = naive(net, x, z) if whole else net.kernels(x, None if symmetric else y)
        loss = (pair.nngp * (pair.ntk + x @ z.mT * z[:, 0]).cos()).sum()
        found.append((loss, *torch.autograd.grad(loss, (x, z, w, b))))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-7)


def test_one_kernel_and_one_argument_can_move_alone() -> None:
    x, y = rows(4, 3), rows(3, 3, seed=1).requires_grad_()
    (w, b), net = scalars(1.1, 0.3), FullyConnected(2)
    assert torch.autograd.grad(net.ntk(x, y).sum(), y)[0].shape == y.shape
    pair = FullyConnected(2, w_std=w, b_std=0.3).kernels(x)
    torch.testing.assert_close(torch.autograd.grad(pair.nngp.sum(), w)[0], torch.autograd.grad(naive(
        FullyConnected(2, w_std=w, b_std=0.3), x, x).nngp.sum(), w)[0])  # fmt: skip
    pair = FullyConnected(0, w_std=w, b_std=b, parameterization="standard").kernels(x)
    assert torch.autograd.grad(pair.ntk.sum(), b, allow_unused=True)[0] is None  # its tangent kernel has no b


def test_second_gradients_match_finite_differences() -> None:
    arguments = (rows(2, 1).requires_grad_(), rows(1, 1, seed=1).requires_grad_(), *scalars(1.2, 0.3))
    for part in PARTS:
        assert torch.autograd.gradgradcheck(value("relu", lambda pair, part=part: getattr(pair, part)), arguments)
    assert torch.autograd.gradgradcheck(lambda x: FullyConnected(1, "gelu").kernels(x).nngp, rows(2, 2).requires_grad_())


# Finite networks.

Layers = list[tuple[Tensor, Tensor]]


def draw_layers(sizes: list[int], *, draws: int, w: float, b: float, standard: bool, seed: int) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for d, out in itertools.pairwise(sizes):
        W, B = (torch.randn(shape, dtype=DOUBLE, generator=generator) for shape in ((draws, out, d), (draws, out)))
        layers.append((W * (w / math.sqrt(d)), B * b) if standard else (W, B))
    return layers


def output(layers: Layers, x: Tensor, phi: Activation, *, w: float, b: float, standard: bool) -> Tensor:
    """The outputs of one network, from its definition."""
    for i, (W, B) in enumerate(layers):
        x = phi(x) if i else x
        x = x @ W.mT + B if standard else w / math.sqrt(x.shape[1]) * x @ W.mT + b * B
    return x[:, 0]


def empirical(f: Callable[[Layers, Tensor], Tensor], layers: Layers, x: Tensor) -> Pair:
    """f f^T and the tangent kernel of every draw, (draws, n, n)."""

    def one(layers: Layers) -> tuple[Tensor, Tensor]:
        slopes = torch.func.jacrev(f)(layers, x)
        J = torch.cat([t.flatten(1) for pair in slopes for t in pair], 1)
        out = f(layers, x)
        return out[:, None] * out, J @ J.mT

    return Pair(*torch.func.vmap(one)(layers))


def within_errors(found: Pair, known: Pair, *, errors: float = 5.0, slack: float = 0.0) -> None:
    for part in PARTS:
        draws, K = getattr(found, part), getattr(known, part)
        allowed = errors * draws.std(0) / math.sqrt(len(draws)) + slack * K.abs().max()
        assert ((draws.mean(0) - K).abs() <= allowed).all()


@pytest.mark.parametrize("name", ["relu", "gelu", "erf"])
@pytest.mark.parametrize("standard", [False, True])
def test_one_hidden_layer_of_any_width_has_these_kernels_on_average(name: str, standard: bool) -> None:
    x, sizes, shared = rows(3, 2), [2, 6, 1], {"w": 1.2, "b": 0.4, "standard": standard}
    layers = draw_layers(sizes, draws=4000, seed=1, **shared)
    net = FullyConnected(1, name, w_std=1.2, b_std=0.4, parameterization="standard" if standard else "ntk", width=6)
    found = empirical(lambda layers, x: output(layers, x, activation(name), **shared), layers, x)
    within_errors(found, net.kernels(x))


@pytest.mark.parametrize("standard", [False, True])
def test_wide_networks_approach_these_kernels(standard: bool) -> None:
    """Two hidden layers: the mean is off by 1/width, each draw by 1/width^(1/2)."""
    x, shared, spread = rows(3, 2), {"w": 1.4, "b": 0.4, "standard": standard}, []
    for width in (16, 256):
        layers = draw_layers([2, width, width, 1], draws=60, seed=2, **shared)
        net = FullyConnected(2, w_std=1.4, b_std=0.4, parameterization="standard" if standard else "ntk", width=width)
        known = net.kernels(x)
        found = empirical(lambda layers, x: output(layers, x, activation("relu"), **shared), layers, x)
        within_errors(found, known, slack=3 / width)
        spread.append(float(((found.ntk - known.ntk).square().mean(0).sqrt() / known.ntk.abs().max()).max()))
    assert 2.5 < spread[0] / spread[1] < 6.5  # 4 = (256/16)^(1/2)


def test_products_of_finite_networks_have_the_kernels_of_the_product_rule() -> None:
    """f on two columns and g on the third, each with one hidden layer: exact on average."""
    x, shared = rows(3, 3), {"w": 1.2, "b": 0.4, "standard": False}
    layers = [*draw_layers([2, 5, 1], draws=6000, seed=3, **shared), *draw_layers([1, 4, 1], draws=6000, seed=4, **shared)]

    def product(layers: Layers, x: Tensor) -> Tensor:
        f = output(layers[:2], x[:, [0, 2]], activation("relu"), **shared)
        return f * output(layers[2:], x[:, [1]], activation("erf"), **shared)

    net = FullyConnected(1, w_std=1.2, b_std=0.4).columns([0, 2]) * FullyConnected(1, "erf", w_std=1.2, b_std=0.4).columns([1])
    found = empirical(product, layers, x)
    within_errors(found, net.kernels(x))
    close(Pair(net.nngp.diagonal(x), net.ntk.diagonal(x)), net.kernel_diagonals(x), 0)


# Networks of other networks, and bad input.


def test_columns_and_dtypes() -> None:
    net, x, y = FullyConnected(2), rows(5, 4, dtype=torch.float32), rows(3, 4, seed=1, dtype=torch.float32)
    assert torch.equal(net.columns([2, 0]).ntk(x, y), net.ntk(x[:, [2, 0]], y[:, [2, 0]]))
    assert torch.equal(net.columns([1]).kernels(x).nngp, net.nngp(x[:, [1]]))
    assert torch.equal(net.to(DOUBLE).nngp(x), net.nngp(x.double()))
    assert net.to(DOUBLE).kernels(x, y).ntk.dtype == DOUBLE
    assert torch.equal(net.nngp(torch.arange(6).reshape(3, 2)), net.nngp(torch.arange(6.0).reshape(3, 2)))
    images = rows(4, 12).reshape(4, 3, 2, 2)
    assert torch.equal(net.ntk(images), net.ntk(images.flatten(1)))
    assert torch.equal((net.ntk * 2.0)(x), 2 * net.ntk(x))


def test_scalar_tensors_stand_for_numbers() -> None:
    x = rows(6, 3, dtype=torch.float32)
    one = FullyConnected(2, w_std=torch.tensor(1.3, dtype=DOUBLE), b_std=torch.tensor(0.2, dtype=DOUBLE)).kernels(x)
    two = FullyConnected(2, w_std=1.3, b_std=0.2).kernels(x)
    assert torch.equal(one.ntk, two.ntk)
    with torch.no_grad():
        free = FullyConnected(2, w_std=torch.tensor(1.3, dtype=DOUBLE, requires_grad=True), b_std=0.2).kernels(x.requires_grad_())
    assert torch.equal(free.ntk, two.ntk)
    assert not free.ntk.requires_grad


@pytest.mark.parametrize(("arguments", "message"), [
    ({"depth": -1}, "depth: expected a whole number >= 0"),
    ({"depth": 1, "activation": "tanh"}, "activation: expected one of relu"),
    ({"depth": 1, "w_std": 0.0}, "w_std: expected a finite number > 0"),
    ({"depth": 1, "b_std": -0.1}, "b_std: expected a finite number >= 0"),
    ({"depth": 1, "w_std": torch.ones(2)}, "w_std, b_std: expected scalar tensors"),
    ({"depth": 1, "parameterization": "mup"}, "parameterization: expected one of ntk, standard"),
    ({"depth": 1, "width": 0}, "width: expected a whole number >= 1"),
])  # fmt: skip
def test_bad_networks_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FullyConnected(**arguments)  # type: ignore[arg-type]


def test_bad_rows_are_refused() -> None:
    net, x = FullyConnected(1), rows(4, 3)
    with pytest.raises(InputError, match=r"y: expected rows of shape \(3,\)"):
        net.kernels(x, rows(4, 2))
    with pytest.raises(InputError, match=r"y: expected dtype torch\.float64"):
        net.kernels(x, x.float())
    with pytest.raises(InputError, match=r"x: expected float32 or float64, got torch\.float16"):
        net.nngp(x.half())
    with pytest.raises(InputError, match="columns: expected columns below 3"):
        net.columns([3]).kernels(x)
    with pytest.raises(InputError, match="columns: expected one or more distinct columns"):
        net.columns([1, 1])
    with pytest.raises(InputError, match="part: expected one of nngp, ntk"):
        net.kernel("ntks", x)
    with pytest.raises(InputError, match="x: expected what fits into"):
        net.ntk(torch.zeros(10**6, 1))
