"""Fits with labels: every label goes to its own rows, no label to all of them, and vectors are followed."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from driftway.checks import InputError
from driftway.transport import Settings, TransportModel, fit, held_labels, split_rows, w2
from tests.transport.recipes import SMALL, draw, rng

torch.set_num_threads(1)
QUICK = Settings(batch=96, candidates=192, width=24, depth=2, heads=4, components=4, mixture_batch=128, lr=1e-2,
                 dropout=0.2)  # fmt: skip
STEPS = {"network": 180, "vector": 180, "mixture": 60}
CENTRES = torch.tensor([[-6.0, 0.0], [6.0, 2.0]])
SHARE = 0.3
every_family = pytest.mark.parametrize("family", STEPS)


def clusters(n=600, seed=0):
    """Two clusters twelve apart; three tenths of the rows are "right"."""
    side = (torch.arange(n) % 10 < 10 * SHARE).long()
    return CENTRES[side] + 0.5 * draw(n, 2, seed=seed, dtype=torch.float32), np.array(["left", "right"])[side.numpy()]


Y, NAMES = clusters()


@pytest.fixture(scope="module", params=STEPS)
def fitted(request):
    return fit(None, Y, labels=NAMES, family=request.param, settings=QUICK, steps=STEPS[request.param])


def test_a_label_lands_in_its_cluster(fitted):
    assert fitted.classes == ("left", "right")
    for name, centre, guidance in (("left", CENTRES[0], 1.0), ("right", CENTRES[1], 1.0), ("right", CENTRES[1], 2.0)):
        z = fitted.sample(400, steps=8, label=name, guidance=guidance)
        assert float((z[:, 0].sign() == centre[0].sign()).float().mean()) > 0.97, (name, guidance)
        if guidance == 1:
            assert float((z.mean(0) - centre).abs().max()) < 0.5
            assert float(z.std(0).max()) < 2


def test_no_label_is_the_whole_law(fitted):
    z = fitted.sample(1000, steps=8)
    assert abs(float((z[:, 0] > 0).float().mean()) - SHARE) < 0.07
    near = torch.cdist(z, CENTRES).amin(1)
    assert float((near < 2.5).float().mean()) > 0.6, "between them run paths that are not learned yet"
    assert w2(z, clusters(1000, seed=9)[0]) < 2.2, "the clusters are twelve apart"


def test_labels_per_row_in_any_order(fitted):
    labels = np.array(["left", "right"])[torch.randint(2, (300,), generator=rng()).numpy()]
    z = fitted.sample(300, label=labels)
    assert float(((z[:, 0] > 0).numpy() == (labels == "right")).mean()) > 0.97


def test_classes_survive_the_folder(fitted, tmp_path):
    fitted.save(tmp_path)
    again = TransportModel.load(tmp_path)
    assert again.conditions == fitted.conditions
    assert torch.equal(again.sample(50, label="right", guidance=1.5), fitted.sample(50, label="right", guidance=1.5))
    assert torch.equal(again.price(Y, label=NAMES), fitted.price(Y, label=NAMES))


@every_family
def test_source_labels_are_kept_in_translation(family):
    """The source's "left" lies on the right: rows cross over, though that is the longer way."""
    x, names = clusters(400, seed=3)
    x = -x
    model = fit(x, Y, labels=NAMES, source_labels=names, family=family, settings=QUICK, steps=STEPS[family])
    z = model.sample(x, label=names)
    assert float(((z[:, 0] > 0).numpy() == (names == "right")).mean()) > 0.98
    assert float((z - x)[:, 0].abs().min()) > 6, "every row has crossed over"


@pytest.mark.parametrize("family", ["network", "vector"])
def test_a_condition_vector_is_followed(family):
    """y = (2 c, sin c) + noise: the mean of the samples is that function of c, which nothing but the condition tells."""
    c = 2 * draw(1500, 1, seed=7, dtype=torch.float32) + 5
    f = lambda c: torch.cat([2 * c, (c - 5).sin()], 1)  # noqa: E731
    y = f(c) + 0.2 * draw(1500, 2, seed=8, dtype=torch.float32)
    model = fit(None, y, labels=c, family=family, settings=QUICK, steps=250)
    assert model.conditions.shift == pytest.approx([float(c.mean())], rel=1e-5)
    fresh = 5 + torch.linspace(-3, 3, 500)[:, None]
    error = (model.sample(500, label=fresh) - f(fresh)).square().mean(0)
    assert (error / f(fresh).var(0) < torch.tensor([0.1, 0.4])).all(), "explained: 90 % and 60 % of the variance"
    spread = model.sample(500).std(0)
    torch.testing.assert_close(spread, y.std(0), rtol=0.3, atol=0, msg="without a condition the whole law")
    one = model.sample(200, label=[7.0])
    assert abs(float(one[:, 0].mean()) - 14) < 1
    assert float(one[:, 0].std()) < 0.5 * float(y[:, 0].std())


def test_vectors_survive_the_folder(tmp_path):
    c = 100 + 7 * draw(150, 3, seed=7, dtype=torch.float32)
    model = fit(None, Y[:150], labels=c, family="network", settings=SMALL, steps=5, out=tmp_path)
    again = TransportModel.load(tmp_path)
    assert again.conditions == model.conditions
    assert again.conditions.shift == pytest.approx(c.mean(0).tolist(), rel=1e-5)
    assert torch.equal(again.sample(9, label=[100.0, 90.0, 107.0]), model.sample(9, label=[100.0, 90.0, 107.0]))
    assert held_labels(tmp_path) is None


@pytest.mark.parametrize("labels", [
    np.arange(600) % 3, torch.arange(600) % 3, [i % 3 for i in range(600)], (np.arange(600) % 3).astype(float),
], ids=["numpy", "torch", "list", "float"])  # fmt: skip
def test_whole_numbers_stay_whole_numbers(labels, tmp_path):
    model = fit(None, Y, labels=labels, family="network", settings=SMALL, steps=3, out=tmp_path)
    again = TransportModel.load(tmp_path)
    assert again.classes == (0, 1, 2)
    assert torch.equal(again.sample(9, label=2), model.sample(9, label="2"))
    assert set(held_labels(tmp_path) or ()) == {0, 1, 2}


def test_the_container_of_the_labels_does_not_matter():
    indices = [i % 3 for i in range(600)]
    models = [fit(None, Y, labels=kind(indices), family="network", settings=SMALL, steps=3) for kind in (list, np.array, torch.tensor)]
    assert len({model.sample(9, label=1).numpy().tobytes() for model in models}) == 1


# --- streams of pairs ---------------------------------------------------------------------------------------------------

SIDES = (Y[:, 0] > 0).long()


def pairs(n, own):
    rows = torch.randint(len(Y), (n,), generator=own)
    return Y[rows], SIDES[rows]


STREAMS = {
    "sampler": lambda: pairs, "loader": lambda: DataLoader(TensorDataset(Y, SIDES), batch_size=64, shuffle=True),
    "vectors": lambda: lambda n, own: (pairs(n, own)[0], torch.ones(n, 1) * draw(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", ["sampler", "loader"])
def test_labels_come_with_the_batches(name):
    model = fit(None, STREAMS[name](), labels="batch", family="network", settings=QUICK, steps=140)
    assert model.classes == (0, 1)
    for label in (0, 1):
        z = model.sample(300, label=label)
        assert float(((z[:, 0] > 0) == bool(label)).float().mean()) > 0.95


def test_vectors_come_with_the_batches():
    def sampler(n, own):
        c = torch.randn(n, 2, generator=own)
        return c.flip(1) * 3 + 0.1 * torch.randn(n, 2, generator=own), c

    model = fit(None, sampler, labels="batch", family="network", settings=SMALL, steps=5)
    assert len(model.conditions.shift) == 2
    assert model.sample(4, label=[0.0, 1.0]).shape == (4, 2)


def test_a_source_of_pairs_keeps_its_labels():
    model = fit(lambda n, own: (-pairs(n, own)[0], 1 - SIDES[torch.zeros(n).long()]), pairs, labels="batch", source_labels="batch",
                family="network", settings=SMALL, steps=3)  # fmt: skip
    assert model.classes == (0, 1)


# --- unequal classes ----------------------------------------------------------------------------------------------------


def test_a_source_of_other_proportions_is_no_trouble():
    """Nine tenths "right" in the source, three tenths in the target: each label still goes to its own cluster."""
    x, names = draw(300, 2, dtype=torch.float32), np.where(np.arange(300) % 10 < 9, "right", "left")
    model = fit(x, Y, labels=NAMES, source_labels=names, family="network", settings=QUICK, steps=80)
    z = model.sample(x, label=names)
    assert float(((z[:, 0] > 0).numpy() == (names == "right")).mean()) > 0.98


@every_family
def test_a_class_missing_in_small_batches_is_left_out(family):
    """Batches of four rows out of five classes: training goes on, and stays finite."""
    labels = torch.arange(600) % 5
    tiny = Settings(batch=8, candidates=6, mixture_batch=6, width=8, depth=2, heads=2, components=2, dropout=0.0)
    model = fit(Y.flip(0), Y, labels=labels, source_labels=labels, family=family, settings=tiny, steps=20)
    assert all(model.sample(Y[:9], label=k).isfinite().all() for k in range(5))


WORDS: Any = [*zip(Y, NAMES.tolist(), strict=True)]


def refused(*words, source=None, target=Y, **options):
    with pytest.raises(InputError) as caught:
        fit(source, target, settings=SMALL, steps=2, family=options.pop("family", "network"), **options)
    for word in words:
        assert word in str(caught.value)


@every_family
def test_a_class_without_training_rows_is_named(family):
    """A class of one row, which is held out; and a class that the source lacks, or has alone."""
    row = torch.arange(600)
    alone = int(split_rows(row, 0.5, seed=1)[1][0])  # of a seed 0: the target is side 1
    labels = ["one" if i == alone else "many" for i in range(600)]
    refused("labels: expected rows of every class to train on, got none of 'one'; lower holdout, or leave this class out",
            labels=labels, family=family, holdout=0.5)  # fmt: skip
    some = ["left"] * 600
    refused("source_labels", "got none of 'right'", source=Y, labels=NAMES, source_labels=some, family=family)
    refused("source_labels: expected one of left, got 'right'", source=Y, labels=some, source_labels=NAMES, family=family)


@pytest.mark.parametrize(("words", "options"), [
    (["labels: expected 600 labels, one per row, got shape (599,)"], {"labels": NAMES[:-1]}),
    (["labels: expected 600 labels, one per row, got shape (1,)"], {"labels": ["a"]}),
    (["labels: expected a condition vector for each row, got one; give one per row"], {"labels": np.ones((1, 2))}),
    (["labels", "got no label at row 3 (1 such rows)"], {"labels": [*[1] * 3, None, *[2] * 596]}),
    (["labels", "got no label at row 3 (1 such rows)"], {"labels": [*[1.0] * 3, float("nan"), *[2.0] * 596]}),
    (["labels", "[nan] at row 3 (1 such rows)"], {"labels": torch.ones(600, 1).index_fill(0, torch.tensor([3]), float("nan"))}),
    (["labels: expected labels of one kind"], {"labels": [*[1] * 300, *["a"] * 300]}),
    (["labels", "got 0.5 at row 0", "shape (n, 1)"], {"labels": np.linspace(0.5, 3, 600)}),
    (["target: expected a sampler or a DataLoader of pairs (rows, labels), as labels='batch' says, got an array"], {"labels": "batch"}),
    (["target: expected pairs (rows, labels)", "got Tensor"], {"target": lambda n, own: Y[:n], "labels": "batch"}),
    (["target: expected pairs (rows, labels)"], {"target": DataLoader(TensorDataset(Y), 50), "labels": "batch"}),
    (["target: expected labels as whole numbers"], {"target": DataLoader(WORDS, 50), "labels": "batch"}),
    (["target", "got shape (3,)"], {"target": lambda n, own: (Y[torch.zeros(n).long()], torch.ones(3)), "labels": "batch"}),
    (["source_labels: expected None, without source data and target labels"], {"labels": NAMES, "source_labels": NAMES}),
    (["source_labels: expected None"], {"source": Y, "source_labels": NAMES}),
    (["source_labels", "expected 600 labels, one per row, got shape (10,)"], {"source": Y, "labels": NAMES, "source_labels": NAMES[:10]}),
    (["source_labels: expected one of left, right, got 'up' at row 0"], {"source": Y, "labels": NAMES, "source_labels": ["up"] * 600}),
])  # fmt: skip
def test_labels_that_cannot_be_are_named(words, options):
    refused(*words, **options)


def test_a_family_without_vectors_says_so():
    """And the automatic choice is one that has them."""
    vectors = draw(600, 2, dtype=torch.float32)
    refused("family", labels=vectors, family="mixture")
    assert fit(None, Y, labels=vectors, settings=SMALL, steps=2).family != "mixture"
