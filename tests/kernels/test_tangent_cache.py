"""A cache folder: an interrupted call goes on, changes are noticed, damage is told."""

import functools
import re

import numpy as np
import pytest
import torch
from torch import nn

from driftway.checks import InputError
from driftway.kernels.tangent import features, tangent_features, tangent_gram
from tests.kernels.jacobian import DOUBLE, draw, shaken

SIZE = 3  # rows of a batch: four batches of the data below


def network(act: type[nn.Module] = nn.Tanh) -> nn.Module:
    return shaken(nn.Sequential(nn.Linear(5, 7), act(), nn.Linear(7, 3)))


X = draw(11, 5)


class Boom(RuntimeError):
    pass


class Calls:
    """The batches of more than one row that a model was called with, and the number of the call that fails."""

    def __init__(self, fail: int = -1):
        self.seen: list[torch.Tensor] = []
        self.fail = fail


def times(calls: Calls, part: torch.Tensor) -> int:
    return sum(torch.equal(part, batch) for batch in calls.seen)


def gram(model, folder, x=X, **options):
    return tangent_gram(model, x, cache=folder, batch_size=SIZE, **options)


def passes(model, folder, x=X, *, fail=-1, **options):
    """The matrix (None after the failure asked for), and the batches that the model was called with."""
    calls = Calls(fail)

    def before(module, args):
        if len(args[0]) > 1:
            if len(calls.seen) == calls.fail:
                raise Boom
            calls.seen.append(args[0])

    handle = model.register_forward_pre_hook(before)
    try:
        return gram(model, folder, x, **options), calls
    except Boom:
        return None, calls
    finally:
        handle.remove()


@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_an_interrupted_call_goes_on_where_it_was(tmp_path, outputs):
    model = network()
    whole, all_of_it = passes(model, tmp_path / "whole", outputs=outputs)
    each = len(all_of_it.seen)
    assert {times(all_of_it, part) for part in X.split(SIZE)} >= {1}
    failed, _ = passes(model, tmp_path / "half", fail=each - 2, outputs=outputs)
    assert failed is None
    resumed, rest = passes(model, tmp_path / "half", outputs=outputs)
    assert len(rest.seen) == 2  # not again for what was finished
    assert torch.equal(resumed, whole)
    again, none = passes(model, tmp_path / "half", outputs=outputs)
    assert none.seen == []
    assert torch.equal(again, whole)
    torch.testing.assert_close(whole, tangent_gram(model, X, outputs=outputs), rtol=1e-12, atol=1e-11)


def test_features_are_found_again_in_all_their_forms(tmp_path):
    def call(model, ids):
        return model[1](model[0](ids).tanh() * (ids > 0)[..., None]).sum(1)

    model, ids = shaken(nn.Sequential(nn.Embedding(9, 14), nn.Linear(14, 14))), torch.arange(24).reshape(8, 3) % 9
    once, twice = (tangent_features(model, ids, forward=call, cache=tmp_path, batch_size=SIZE, outputs=(0, 1)) for _ in range(2))
    fresh = tangent_features(model, ids, forward=call, batch_size=SIZE, outputs=(0, 1))
    for found in (once, twice):
        assert found.shapes == fresh.shapes
        assert torch.equal(found.scores, fresh.scores)
        torch.testing.assert_close(found.dense(), fresh.dense(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.gram(), fresh.gram(), rtol=1e-12, atol=1e-12)


def test_slow_parameters_are_known_after_resuming(tmp_path):
    model, x = shaken(nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Flatten(), nn.Linear(12, 2))), draw(5, 3, 4)
    known = tangent_features(model, x, batch_size=2)
    for _ in range(2):
        found = tangent_features(model, x, batch_size=2, cache=tmp_path)
        assert found.slow == known.slow
        torch.testing.assert_close(found.gram(), known.gram(), rtol=1e-12, atol=1e-12)
    last = sorted(tmp_path.glob("rows-*"))[-1]
    last.unlink()
    torch.testing.assert_close(tangent_features(model, x, batch_size=2, cache=tmp_path).gram(), known.gram(), rtol=1e-12, atol=1e-12)


def test_a_killed_gram_matrix_goes_on(tmp_path, monkeypatch):
    """Stop after two of four parameters: the rest alone is done, and the result is the same to the last bit."""
    model, inner, done = network(), features.add_inner, []
    whole = gram(model, tmp_path / "whole")

    def counting(*args, **options):
        if len(done) == stop:
            raise Boom
        inner(*args, **options)
        done.append(1)

    monkeypatch.setattr(features, "add_inner", counting)
    monkeypatch.setattr(features, "PAUSE", -1.0)
    stop = 2
    with pytest.raises(Boom):
        gram(model, tmp_path / "half")
    stop = -1
    found, calls = passes(model, tmp_path / "half")
    assert len(done) == 4
    assert calls.seen == []
    assert torch.equal(found, whole)
    assert torch.equal(gram(model, tmp_path / "half"), whole)
    assert len(done) == 4


def test_two_data_sets_and_the_sign_kernel_have_their_own_files(tmp_path):
    model, y = network(), draw(4, 5, seed=1)
    for _ in range(2):
        for sign in ("none", "both", "left"):
            for other in (None, y):
                found = tangent_gram(model, X, other, sign=sign, cache=tmp_path, batch_size=SIZE)
                torch.testing.assert_close(found, tangent_gram(model, X, other, sign=sign), rtol=1e-12, atol=1e-11)


def test_weights_have_their_own_files(tmp_path):
    model = network()
    names = [name for name, _ in model.named_parameters()]
    for _ in range(2):
        for weights in (None, dict.fromkeys(names, 2.0), {name: 1.0 + i for i, name in enumerate(names)}):
            found = tangent_gram(model, X, weights=weights, cache=tmp_path, batch_size=SIZE)
            torch.testing.assert_close(found, tangent_gram(model, X, weights=weights), rtol=1e-12, atol=1e-11)


# --- changes --------------------------------------------------------------------------------------------------------------


def column(c):
    return lambda model, batch: model(batch)[:, c]


def scaled(model, batch, *, scale):
    return model(batch) * scale


class Reader:
    """Reads by a method; with a number, an array."""

    def __init__(self, scale, weights=()):
        self.scale, self.weights = scale, np.array(weights)

    def read(self, model, batch):
        return model(batch) * self.scale

    def weigh(self, model, batch):
        return model(batch) * float(self.weights.sum())


class Times:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, model, batch):
        return model(batch) * self.scale


def with_default(c):
    def read(model, batch, c=c):
        return model(batch)[:, c]

    return read


def nested(c):
    def read(model, batch):
        return (lambda scores: scores[:, c])(model(batch))

    return read


W = torch.tensor([0.12341, 1.0, 2.0], dtype=DOUBLE)
CHANGED = {
    "column": ({"forward": column(0)}, {"forward": column(1)}),
    "default": ({"forward": with_default(0)}, {"forward": with_default(1)}),
    "nested": ({"forward": nested(0)}, {"forward": nested(1)}),
    "partial": ({"forward": functools.partial(scaled, scale=1.0)}, {"forward": functools.partial(scaled, scale=2.0)}),
    "object": ({"forward": Times(1.0)}, {"forward": Times(2.0)}),
    "method": ({"forward": Reader(1.0).read}, {"forward": Reader(2.0).read}),
    "long-array": ({"forward": Reader(1.0, [1.0] * 3000).weigh}, {"forward": Reader(1.0, [1.0] * 1500 + [2.0] + [1.0] * 1499).weigh}),
    "constant": ({"forward": lambda model, batch: model(batch) * 2}, {"forward": lambda model, batch: model(batch) * 3}),
    "outputs": ({"outputs": 0}, {"outputs": 1}),
    "weights-a-little": ({"outputs": W}, {"outputs": W + 2e-6}),
    "scope": ({"scope": "0.*"}, {"scope": "2.*"}),
    "dtype": ({"dtype": torch.float32}, {"dtype": DOUBLE}),
    "rows": ({}, {"x": X + 1e-9}),
    "order": ({}, {"x": X.flip(0)}),
    "fewer": ({}, {"x": X[:4]}),
    "more": ({"x": X[:4]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_changed_questions_have_new_answers(name, tmp_path):
    model, (first, second) = network(), CHANGED[name]
    gram(model, tmp_path, **first)
    found = gram(model, tmp_path, **second)
    options = {k: v for k, v in second.items() if k != "x"}
    torch.testing.assert_close(found, tangent_gram(model, second.get("x", X), batch_size=SIZE, **options), rtol=1e-9, atol=1e-9)


def test_changed_networks_have_new_answers(tmp_path):
    model, other = network(), network(nn.GELU)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    normed = shaken(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, affine=False), nn.Linear(7, 3)))
    eps, own = (shaken(nn.Sequential(nn.Linear(5, 7), norm, nn.Linear(7, 3))) for norm in (nn.LayerNorm(7, eps=1e-5), Norm(7)))
    steps = [(model, None), (other, None), (model, nudged), (normed, None), (normed, shifted), (eps, None), (eps, looser), (own, None),
             (own, looser)]  # fmt: skip
    for now, change in steps:
        if change:
            change(now)
        torch.testing.assert_close(gram(now, tmp_path), tangent_gram(now, X, batch_size=SIZE), rtol=1e-12, atol=1e-11)


class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), 1e-5

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def nudged(model):
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-3


def shifted(model):
    model[1].running_var.add_(1)


def looser(model):
    model[1].eps = 0.5


def test_the_same_question_asked_anew_has_the_same_key(tmp_path):
    """Functions written alike, with functions inside, are found again."""
    first, second = (tangent_features(network(), X, forward=nested(1), cache=tmp_path / name, batch_size=SIZE).key for name in "ab")
    assert first == second != ""


# --- damage ---------------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def emptied(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"\xff" * 200)


@pytest.mark.parametrize("damage", [cut, emptied, garbage])
@pytest.mark.parametrize("file", ["rows/rows-000001.safetensors", "gram-0.safetensors"])
def test_damaged_files_are_told_with_the_cure(damage, file, tmp_path):
    model = network()
    known = gram(model, tmp_path)
    damage(tmp_path / file)
    with pytest.raises(InputError, match=rf"^cache: expected a whole .* delete {re.escape(str(tmp_path / file))}"):
        gram(model, tmp_path)
    (tmp_path / file).unlink()
    assert torch.equal(gram(model, tmp_path), known)


def test_a_cache_that_is_a_file_is_told(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises((InputError, OSError)):
        gram(network(), tmp_path / "cache")


def test_layers_with_one_input_wait_in_files():
    """Query, key and value share their input: three views of one memory, which a file holds once."""
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x):
            return (self.q(x).tanh() * self.k(x) + self.v(x).square()).sum((1, 2))

    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(6, 5, 32, dtype=torch.float64)
    spilled, held = tangent_gram(model, x, memory=1e-9, batch_size=4), tangent_gram(model, x, batch_size=4)
    torch.testing.assert_close(spilled, held, rtol=1e-12, atol=0.0)
