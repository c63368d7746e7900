"""Every layer and way of calling it against one backward pass for each sample and output, and which of them have a rule."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from driftway.checks import InputError
from driftway.kernels.tangent import tangent_features, tangent_gram
from tests.kernels.jacobian import DOUBLE, draw, jacobian, shaken, trace_gram

N = 5


def tokens(n: int = N, T: int = 4, *, of: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(of, (n, T), generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Any modules, and a function that calls them: net(self, x)."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, entry in parts.items():
            setattr(self, name, entry)

    def forward(self, x):
        return self.call(self, x)


def agrees(model: nn.Module, x, *, fast: bool | None = None, tolerance: float = 1e-10, **options) -> frozenset[str]:
    """Check Gram matrix, features and diagonal; `fast`: that no parameter, or some, went sample by sample."""
    J = jacobian(model, x)
    K, found = trace_gram(J), tangent_features(model, x, **options)
    scale = float(K.abs().max())
    assert scale > 0
    assert float((found.gram() - K).abs().max()) <= tolerance * scale
    assert float((found.diagonal() - K.diagonal()).abs().max()) <= tolerance * scale
    full = tangent_features(model, x, outputs="full", **options).gram()
    assert float((full - J.flatten(0, 1) @ J.flatten(0, 1).mT).abs().max()) <= tolerance * scale
    if fast is not None:
        assert bool(found.slow) != fast, found.slow
    return found.slow


# --- layers with a rule ---------------------------------------------------------------------------------------------------

def flat(*layers: nn.Module) -> nn.Module:
    """Layers, a curved function, and the mean over all but samples and two groups of what is left."""
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.AdaptiveAvgPool1d(2))


class ShiftedRMSNorm(nn.Module):
    """As other libraries write it: eps under another name."""

    def __init__(self, d):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(d)), 0.3

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))


class Conv1D(nn.Module):
    """GPT-2's linear layer."""

    def __init__(self, out, into):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(into, out)), nn.Parameter(torch.empty(out))
        nn.init.normal_(self.weight)
        nn.init.normal_(self.bias)

    def forward(self, x):
        return x @ self.weight + self.bias


def positions(with_batch: bool) -> nn.Module:
    def call(net, x):
        row = torch.arange(x.shape[1])
        return net.head((net.words(x) + net.places(row[None] if with_batch else row)).tanh().mean(1))

    return Net(call, words=nn.Embedding(7, 6), places=nn.Embedding(4, 6), head=nn.Linear(6, 2))


RULED = {
    "linear": (lambda: flat(nn.Linear(4, 6)), lambda: draw(N, 4)),
    "linear-no-bias": (lambda: flat(nn.Linear(4, 6, bias=False)), lambda: draw(N, 4)),
    "linear-positions": (lambda: flat(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), lambda: draw(N, 3, 4)),
    "linear-positions-wide": (lambda: flat(nn.Linear(14, 13)), lambda: draw(N, 2, 14)),
    "linear-4d": (lambda: flat(nn.Linear(4, 6)), lambda: draw(N, 3, 2, 4)),
    "linear-one-output": (lambda: nn.Linear(4, 1), lambda: draw(N, 4)),
    "conv1d": (lambda: flat(nn.Conv1d(2, 4, 3, stride=2, padding=1)), lambda: draw(N, 2, 8)),
    "conv1d-dilated": (lambda: flat(nn.Conv1d(4, 6, 3, dilation=2, groups=2, padding="same")), lambda: draw(N, 4, 8)),
    "conv1d-circular": (lambda: flat(nn.Conv1d(2, 3, 4, padding=3, padding_mode="circular")), lambda: draw(N, 2, 7)),
    "conv2d": (lambda: flat(nn.Conv2d(2, 4, 3)), lambda: draw(N, 2, 5, 6)),
    "conv2d-stride": (lambda: flat(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0))), lambda: draw(N, 2, 6, 5)),
    "conv2d-dilation": (lambda: flat(nn.Conv2d(2, 4, 3, dilation=(1, 2), bias=False)), lambda: draw(N, 2, 6, 6)),
    "conv2d-groups": (lambda: flat(nn.Conv2d(4, 6, 3, groups=2, padding=1)), lambda: draw(N, 4, 5, 5)),
    "conv2d-depthwise": (lambda: flat(nn.Conv2d(4, 8, 3, groups=4, padding=1)), lambda: draw(N, 4, 5, 5)),
    "conv2d-depthwise-few-places": (lambda: flat(nn.Conv2d(4, 24, 5, groups=4)), lambda: draw(N, 4, 6, 5)),
    "conv2d-same": (lambda: flat(nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2))), lambda: draw(N, 2, 5, 6)),
    "conv2d-valid": (lambda: flat(nn.Conv2d(2, 3, 2, padding="valid")), lambda: draw(N, 2, 4, 4)),
    "conv2d-reflect": (lambda: flat(nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect")), lambda: draw(N, 2, 5, 5)),
    "conv2d-replicate": (lambda: flat(nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")), lambda: draw(N, 2, 5, 5)),
    "conv2d-circular-same": (lambda: flat(nn.Conv2d(2, 3, 4, padding="same", padding_mode="circular")), lambda: draw(N, 2, 5, 5)),
    "conv2d-1x1": (lambda: flat(nn.Conv2d(12, 12, 1)), lambda: draw(N, 12, 1, 2)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "embedding-padding": (lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=2), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "embedding-last-padding": (lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=-1), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "embedding-repeated": (lambda: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 2)), lambda: tokens(of=2)),
    "embedding-sparse": (lambda: nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "embedding-one-token": (lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)), lambda: tokens()[:, 0]),
    "positions-of-one-row": (lambda: positions(with_batch=True), tokens),
    "layernorm": (lambda: flat(nn.Linear(4, 6), nn.LayerNorm(6, eps=0.1)), lambda: draw(N, 3, 4)),
    "layernorm-axes": (lambda: flat(nn.LayerNorm((3, 4)), nn.Linear(4, 4)), lambda: draw(N, 2, 3, 4)),
    "layernorm-no-bias": (lambda: flat(nn.LayerNorm(4, bias=False)), lambda: draw(N, 4)),
    "rmsnorm": (lambda: flat(nn.RMSNorm(4), nn.Linear(4, 4), nn.RMSNorm(4, eps=0.2)), lambda: draw(N, 3, 4)),
    "rmsnorm-axes": (lambda: flat(nn.RMSNorm((3, 4))), lambda: draw(N, 2, 3, 4)),
    "rmsnorm-home-made": (lambda: flat(ShiftedRMSNorm(4), nn.Linear(4, 4)), lambda: draw(N, 3, 4)),
    "groupnorm": (lambda: flat(nn.Conv2d(2, 6, 2), nn.GroupNorm(3, 6)), lambda: draw(N, 2, 4, 4)),
    "batchnorm1d": (lambda: flat(nn.Linear(4, 6), nn.BatchNorm1d(6)), lambda: draw(N, 4)),
    "batchnorm1d-line": (lambda: flat(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3)), lambda: draw(N, 2, 5)),
    "batchnorm2d": (lambda: flat(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)), lambda: draw(N, 2, 4, 4)),
    "gpt2-linear": (lambda: flat(Conv1D(6, 4), nn.GELU(), Conv1D(3, 6)), lambda: draw(N, 3, 4)),
    "relu-in-place": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(True), nn.Linear(6, 2)),
                      lambda: draw(N, 4)),
    "relu-in-place-conv": (lambda: flat(nn.Conv2d(2, 3, 2), nn.ReLU(True), nn.BatchNorm2d(3), nn.ReLU(True)), lambda: draw(N, 2, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", RULED)
def test_rules_give_the_jacobian(name):
    build, data = RULED[name]
    assert agrees(shaken(build()), data(), fast=True) == frozenset()


@pytest.mark.parametrize("name", ["linear-positions-wide", "conv2d-depthwise-few-places", "embedding-repeated", "layernorm-axes"])
def test_rules_hold_when_one_sample_is_alone_in_the_last_batch(name):
    build, data = RULED[name]
    agrees(shaken(build()), data(), fast=True, batch_size=2)


@pytest.mark.parametrize("outputs", ["trace", "full", 1])
def test_both_ways_to_contract_agree(outputs):
    """Few positions of a wide layer: the identity. Many of a small one: the gradients are formed. Between: each alone, and blocks."""
    for T, d in ((1, 20), (2, 20), (30, 3), (4, 9)):
        model, x = shaken(nn.Sequential(nn.Linear(d, d), nn.Tanh(), Mean(), nn.Linear(d, 2))), draw(6, T, d)
        J = jacobian(model, x)
        known = {"trace": trace_gram(J), "full": J.flatten(0, 1) @ J.flatten(0, 1).mT, 1: J[:, 1] @ J[:, 1].mT}[outputs]
        for memory in (1.0, 2.0e-6, 1e-9):
            found = tangent_gram(model, x, outputs=outputs, memory=memory)
            torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-10 * float(known.abs().max()))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_padding_is_left_out_and_rows_of_padding_alone_count_nothing():
    """Positions without gradient are dropped from the factors; here whole rows are."""
    def call(net, x):
        return (net.b(net.a(x).tanh()) * (x[..., :1] > 0)).sum(1)

    model, x = shaken(Net(call, a=nn.Linear(14, 14), b=nn.Linear(14, 2))), draw(N, 4, 14)
    x[..., 0] = -1
    x[0, 1, 0] = x[1, :3, 0] = 1
    agrees(model, x, fast=True)
    found = tangent_features(model, x, outputs=0)
    assert torch.equal(found.diagonal()[2:], torch.zeros(N - 2, dtype=DOUBLE))
    J = jacobian(model, x)[:, 0]
    torch.testing.assert_close(found.dense(), J, rtol=1e-10, atol=1e-12)


# --- weights that are shared, unused or used otherwise --------------------------------------------------------------------


def twice() -> nn.Module:
    return Net(lambda net, x: net.b(net.a(net.a(x).tanh()).tanh()), a=nn.Linear(4, 4), b=nn.Linear(4, 2))


def tied_linear() -> nn.Module:
    net = Net(lambda net, x: net.c(net.b(net.a(x).tanh()).tanh()), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))
    net.b.weight = net.a.weight
    return net


def tied_head() -> nn.Module:
    net = Net(lambda net, x: net.head(net.words(x).mean(1).tanh()), words=nn.Embedding(7, 3), head=nn.Linear(3, 7))
    net.head.weight = net.words.weight
    return net


SHARED = {
    "called-twice": (twice, lambda: draw(N, 4)),
    "called-twice-wide": (lambda: Net(lambda net, x: net.a(net.a(x).tanh()).mean(1), a=nn.Linear(14, 14)), lambda: draw(N, 2, 14)),
    "tied-linear": (tied_linear, lambda: draw(N, 4)),
    "tied-embedding-and-head": (tied_head, tokens),
    "one-module-two-names": (lambda: (lambda a: nn.Sequential(a, nn.Tanh(), a, nn.Tanh(), nn.Linear(4, 2)))(nn.Linear(4, 4)),
                             lambda: draw(N, 4)),
    "norm-called-twice": (lambda: (lambda a: nn.Sequential(a, nn.Linear(4, 4), nn.Tanh(), a))(nn.LayerNorm(4)), lambda: draw(N, 4)),
    "keyword-input": (lambda: Net(lambda net, x: net.b(input=net.a(input=x).tanh()), a=nn.Linear(4, 4), b=nn.Linear(4, 2)),
                      lambda: draw(N, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_shared_weights_add_their_gradients(name):
    build, data = SHARED[name]
    agrees(shaken(build()), data(), fast=True)


class Scaled(nn.Linear):
    """Not what its class says."""

    def forward(self, input):
        return 3 * super().forward(input)


class PaddedConv(nn.Conv2d):
    """Pads by itself, as several libraries do for "same" with strides."""

    def forward(self, input):
        return functional.conv2d(functional.pad(input, (1, 1, 1, 1)), self.weight, self.bias)


class SoftEmbedding(nn.Embedding):
    """Takes weights of tokens in place of tokens."""

    def forward(self, input):
        return input @ self.weight


class ShiftedEmbedding(nn.Embedding):
    def forward(self, input):
        return super().forward(input + 2)


class OddRMSNorm(ShiftedRMSNorm):
    def forward(self, x):
        return super().forward(x).square()


def routed() -> nn.Module:
    def call(net, x):
        out, on = x.new_zeros(len(x), 2), x[:, 0] > 0
        if on.any():
            out[on] = net.a(x[on])
        if not on.all():
            out[~on] = net.b(x[~on])
        return out

    return Net(call, a=nn.Linear(4, 2), b=nn.Linear(4, 2))


def gated(layer: nn.Module) -> nn.Module:
    """The layer works for rows whose first column is positive."""
    return Net(lambda net, x: net.b(x) + (x[:, :1] > 0) * net.a(x), a=layer, b=nn.Linear(4, 2))


def sorting() -> nn.Module:
    """Sorts the rows of its batch, and puts its results back in order."""
    def call(net, x):
        order = x[:, 0].argsort()
        return net.b(net.a(x[order]).tanh())[order.argsort()]

    return Net(call, a=nn.Linear(4, 3), b=nn.Linear(3, 2))


def column(*values: float) -> Tensor:
    x = draw(len(values), 4)
    x[:, 0] = torch.tensor(values)
    return x


def frozen_body() -> nn.Module:
    def call(net, x):
        with torch.no_grad():
            h = net.a(x).tanh()
        return net.b(h)

    return Net(call, a=nn.Linear(4, 5), b=nn.Linear(5, 2))


SLOW = {
    "subclass": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Scaled(4, 2)), lambda: draw(N, 4)),
    "subclass-that-most-rows-do-not-use": (lambda: gated(Scaled(4, 2)), lambda: column(-1, 1, 1, -1, -1)),
    "conv-that-pads": (lambda: flat(PaddedConv(2, 3, 3)), lambda: draw(N, 2, 4, 4)),
    "embedding-of-weights": (lambda: nn.Sequential(SoftEmbedding(4, 3), nn.Tanh(), nn.Linear(3, 2)), lambda: draw(N, 4)),
    "embedding-that-shifts": (lambda: nn.Sequential(ShiftedEmbedding(9, 3), nn.Flatten(), nn.Linear(12, 2)), tokens),
    "odd-rmsnorm": (lambda: nn.Sequential(OddRMSNorm(4), nn.Linear(4, 2)), lambda: draw(N, 4)),
    "functional-use": (lambda: Net(lambda net, x: net.b(functional.linear(net.a(x).tanh(), net.a.weight)), a=nn.Linear(4, 4),
                                   b=nn.Linear(4, 2)), lambda: draw(N, 4)),
    "functional-only": (lambda: Net(lambda net, x: functional.linear(x, net.a.weight), a=nn.Linear(4, 2, bias=False)), lambda: draw(N, 4)),
    "token-of-the-model": (lambda: Net(lambda net, x: net.b(torch.cat([net.token.expand(len(x), 1, 4), x], 1).tanh().mean(1)),
                                       token=nn.Parameter(torch.zeros(1, 1, 4)), b=nn.Linear(4, 2)), lambda: draw(N, 3, 4)),
    "layer-on-a-token": (lambda: Net(lambda net, x: net.b((x + net.a(net.token)).tanh()), token=nn.Parameter(torch.zeros(N)),
                                     a=nn.Linear(N, N), b=nn.Linear(N, 2)), lambda: draw(N, N)),
    "positions-first": (lambda: Net(lambda net, x: net.a(x.transpose(0, 1)).tanh().mean(0), a=nn.Linear(4, 2)), lambda: draw(N, N, 4)),
    "positions-first-uneven": (lambda: Net(lambda net, x: net.a(x.transpose(0, 1)).tanh().mean(0), a=nn.Linear(4, 2)),
                               lambda: draw(N, 3, 4)),
    "position-first-of-one": (lambda: Net(lambda net, x: net.a(x[None]).tanh().squeeze(0), a=nn.Linear(4, 2)), lambda: draw(N, 4)),
    "positions-of-no-row": (lambda: positions(with_batch=False), tokens),
    "positions-as-many-as-rows": (lambda: positions(with_batch=False), lambda: tokens(4, 4)),
    "type-of-no-axis": (lambda: Net(lambda net, x: net.b((x + net.e(torch.tensor(1))).tanh()), e=nn.Embedding(3, 4), b=nn.Linear(4, 2)),
                        lambda: draw(N, 4)),
    "attention": (lambda: Net(lambda net, x: net.a(x, x, x)[0].mean(1), a=nn.MultiheadAttention(4, 2, batch_first=True)),
                  lambda: draw(N, 3, 4)),
    "transformer-layer": (lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), Mean(), nn.Linear(4, 2)),
                          lambda: draw(N, 3, 4)),
    "recurrent": (lambda: Net(lambda net, x: net.b(net.a(x)[0][:, -1]), a=nn.GRU(4, 3, batch_first=True), b=nn.Linear(3, 2)),
                  lambda: draw(N, 3, 4)),
    "transposed-conv": (lambda: flat(nn.ConvTranspose1d(2, 3, 2)), lambda: draw(N, 2, 4)),
    "bilinear": (lambda: Net(lambda net, x: net.a(x, x), a=nn.Bilinear(4, 4, 2)), lambda: draw(N, 4)),
    "routed-rows": (routed, lambda: column(1, -1, 1, -1, -1)),
    "sorted-rows": (sorting, lambda: column(-9, 0.5, -0.5, 0.2, 9)),
    "weight-norm": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)),
                    lambda: draw(N, 4)),
    "spectral-norm": (lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)),
                      lambda: draw(N, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_what_no_rule_knows_is_found_and_exact(name):
    build, data = SLOW[name]
    agrees(shaken(build()), data(), fast=False)


EXACT = {  # fast or slow
    "unused": (lambda: Net(lambda net, x: net.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 2)), lambda: draw(N, 4)),
    "called-for-nothing": (lambda: Net(lambda net, x: (net.a(x), net.b(x))[1], a=nn.Linear(4, 4), b=nn.Linear(4, 2)), lambda: draw(N, 4)),
    "body-without-gradients": (frozen_body, lambda: draw(N, 4)),
    "cut-off-body": (lambda: Net(lambda net, x: net.b(net.a(x).detach().tanh()), a=nn.Linear(4, 4), b=nn.Linear(4, 2)), lambda: draw(N, 4)),
    "rows-of-positions": (lambda: Net(lambda net, x: net.b(net.a(x.reshape(-1, 4)).tanh().reshape(len(x), -1)), a=nn.Linear(4, 2),
                                      b=nn.Linear(6, 2)), lambda: draw(N, 3, 4)),
    "module-that-returns-two": (lambda: Net(lambda net, x: net.b(net.a(x)[0]), b=nn.Linear(4, 2),
                                            a=Net(lambda net, x: (net.c(x).tanh(), x), c=nn.Linear(4, 4))), lambda: draw(N, 4)),
    "squeezed-scores": (lambda: Net(lambda net, x: net.b(x).squeeze(), b=nn.Linear(4, 1)), lambda: draw(N, 4)),
    "residual": (lambda: Net(lambda net, x: net.b(net.a(x).tanh() + x), a=nn.Linear(4, 4), b=nn.Linear(4, 2)), lambda: draw(N, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_other_ways_to_call_layers_are_exact(name):
    build, data = EXACT[name]
    agrees(shaken(build()), data())


def test_a_scope_that_does_not_reach_the_scores_has_a_zero_kernel():
    for name in ("unused", "called-for-nothing", "body-without-gradients", "cut-off-body"):
        model = shaken(EXACT[name][0]())
        assert torch.equal(tangent_gram(model, draw(N, 4), scope="a.*"), torch.zeros(N, N, dtype=DOUBLE))


LATER = {  # the first of two batches, of three rows each, says nothing about the second
    "unused-later": (lambda: Net(lambda net, x: net.b(x) + (net.a(x) if (x[:, 0] > 0).any() else 0), a=nn.Linear(4, 2), b=nn.Linear(4, 2)),
                     column(1, 1, 1, -1, -1, -1)),
    "used-later": (lambda: Net(lambda net, x: net.b(x) + (net.a(x) if (x[:, 0] > 0).any() else 0), a=nn.Linear(4, 2), b=nn.Linear(4, 2)),
                   column(-1, -1, -1, 1, 1, 1)),
    "routed-later": (routed, column(1, 1, 1, 1, -1, -1)),
    "one-row-routed-later": (routed, column(1, 1, 1, -1, -1, 1)),
    "other-way-later": (routed, column(1, 1, 1, -1, -1, -1)),
    "sorted-first": (sorting, column(-3, -2, -1, 5, -5, 1)),
    "subclass-later": (lambda: gated(Scaled(4, 2)), column(-1, -1, -1, 1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_what_only_later_batches_show_is_exact_or_refused(name):
    """Never a wrong number with test="every": a model that takes other ways later is done exactly, or the call ends with an error."""
    build, x = LATER[name]
    model = shaken(build())
    K = trace_gram(jacobian(model, x))
    try:
        found = tangent_gram(model, x, batch_size=3, test="every")
    except InputError as error:
        assert "batch" in str(error) or "row" in str(error)  # noqa: PT017 -- either way is right
        return
    torch.testing.assert_close(found, K, rtol=1e-9, atol=1e-9 * float(K.abs().max()))


# --- dtypes and other surroundings ----------------------------------------------------------------------------------------


def test_a_bfloat16_model_is_close_to_its_own_weights_in_double():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Flatten(), nn.Linear(64, 2)).bfloat16()
    found = tangent_features(model, tokens())
    assert found.slow == frozenset()
    K = found.gram()
    assert K.dtype == DOUBLE
    known = tangent_gram(model, tokens(), dtype=DOUBLE)
    assert float((K - known).abs().max()) <= 0.05 * float(known.abs().max())  # a few roundings of 2^-8


def test_scores_of_another_dtype_than_the_layers_are_fine():
    model = shaken(Net(lambda net, x: net.b(net.a(x).tanh()).float(), a=nn.Linear(14, 14), b=nn.Linear(14, 2)))
    x = draw(N, 2, 14)
    wide = Net(lambda net, x: net.inner(x).mean(1), inner=model)
    K = trace_gram(jacobian(Net(lambda net, x: net.b(net.a(x).tanh()).mean(1), a=model.a, b=model.b), x))
    torch.testing.assert_close(tangent_gram(wide, x), K, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_callers_may_have_switched_gradients_off(around):
    model, x = shaken(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))), draw(N, 4)
    known = tangent_gram(model, x)
    with around():
        assert torch.equal(tangent_gram(model, x.clone()), known)


def test_old_weight_norm_is_exact():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))
    agrees(shaken(model), draw(N, 4), fast=False)
