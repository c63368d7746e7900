"""Scores of translations with known answers, the way back of a flow, and goals that can fail."""

import pytest
import torch

from benchmarks import translation
from benchmarks.translation import MAIN, PEERS, RESIDUAL, Flow, Side, coupled, goal, kept, means, pair, restyle, score, sides
from driftway.data import digits
from driftway.transport import Path, Settings, VectorValue
from driftway.transport.scaler import fit_scaler
from driftway.transport.stream import generator

PEER = next(iter(PEERS))


def handwritten(rows, test):
    pixels, labels = digits()
    x = pixels.reshape(-1, 8, 8) / 16
    return Side(x[test : test + rows], labels[test : test + rows], x[:test], labels[:test])


def test_the_identity_keeps_as_many_labels_as_the_classifier_is_right():
    one = handwritten(900, 300)
    judge = translation.images.classifier(one.x.flatten(1).numpy(), one.labels.numpy()).predict

    def still(x, c, steps):
        return Path(torch.tensor([0.0, 1.0]), torch.stack([x, x]), torch.zeros(1, *x.shape))

    found = score(still, one, one, judge, 1)
    assert found["kept"] == kept(one.x_test, one.labels_test, judge) > 0.9
    assert found["w2"] == pytest.approx(0, abs=1e-6)
    assert found["energy"] == 0
    swapped = Side(one.x, one.labels, one.x_test, (one.labels_test + 1) % 10)
    assert score(still, swapped, one, judge, 1)["kept"] < 0.1


def test_a_path_that_leaves_the_numbers_keeps_nothing():
    one = handwritten(50, 20)
    lost = lambda x, c, steps: Path(torch.tensor([0.0, 1.0]), torch.stack([x, x / 0]), torch.zeros(1, *x.shape))  # noqa: E731
    assert score(lost, one, one, lambda rows: rows[:, 0], 1) == {"kept": 0.0, "w2": None, "energy": None}


def test_the_exact_coupling_of_shifted_copies_keeps_every_label_and_of_exchanged_ones_none():
    x = torch.tensor([0.0, 10.0]).repeat(20)[:, None, None] + torch.randn(40, 1, 1, generator=generator("copies"))
    labels = torch.tensor([0, 1]).repeat(20)
    one, two = Side(x, labels, x, labels), Side(x + 3, labels, x, labels)
    assert coupled(one, two) == pytest.approx(1)
    assert coupled(one, Side(x + 3, 1 - labels, x, labels)) == pytest.approx(0)


def test_plans_never_cross_labels_and_use_every_row_once():
    pytest.importorskip("torchcfm")
    own = generator("plans")
    x, y, c = torch.randn(60, 3, generator=own), torch.randn(60, 3, generator=own), torch.randint(4, (60,), generator=own)
    ends = pair(translation.planner(), x, y, c)
    place = (ends[:, None] == y[None]).all(2).int().argmax(1)
    assert sorted(place.tolist()) == list(range(60))
    assert torch.equal(c[place], c)
    assert (x - ends).square().sum() < (x - y).square().sum()


def test_both_sides_have_other_images_and_the_style_is_the_one_described(monkeypatch):
    drawn = torch.rand(700, 28, 28, generator=generator("drawn")).numpy()
    monkeypatch.setattr(translation.images, "mnist5k", lambda: (drawn, drawn[:, 0, 0].round().astype(int)))
    one, two = sides("digits-MNIST", 1, 600, 100)
    assert one.x.shape[1:] == two.x.shape[1:] == (8, 8)
    assert len(one.x) == len(two.x) == 600
    assert not (one.x_test[:, None].flatten(2) == one.x[None].flatten(2)).all(2).any()
    flat = torch.zeros(1, 14, 14).numpy()
    flat[0, 5:9, 1:5] = 1
    styled = torch.from_numpy(restyle(flat))
    assert styled.sum() == pytest.approx(8, rel=0.05)  # half the light of 16 pixels, some of it blurred over the border
    assert styled[0, :, 7:].sum() > 0.95 * styled.sum()


def test_the_way_back_undoes_the_way_there_up_to_the_order_of_euler():
    x = torch.rand(200, 4, 4, generator=generator("there"))
    torch.manual_seed(0)
    network = VectorValue((16,), width=16)
    torch.nn.init.normal_(network.head.weight, std=0.05)
    flow = Flow(network.requires_grad_(False), fit_scaler(x + 1, source=x), 0, 0.0)
    errors = [float((flow.path(flow.path(x, h).states[-1], h, back=True).states[-1] - x).abs().max()) for h in (20, 40)]
    assert errors[0] < 0.1
    assert errors[1] < 0.6 * errors[0]


def test_training_a_flow_moves_one_gaussian_to_the_other():
    pytest.importorskip("torchcfm")
    x, settings = torch.randn(500, 4, generator=generator("flow")), Settings(width=16, lr=1e-2)
    translation.train_flow("exact", x, x + 5, seconds=0.01, seed=0, settings=settings)  # the first use loads torchcfm
    flow = translation.train_flow("exact", x, x + 5, seconds=1.0, seed=0, settings=settings)
    moved = flow.path(x, 4).states[-1]
    assert float((moved - x - 5).mean().abs()) < 0.5
    assert float((flow.path(x + 5, 4, back=True).states[-1] - x).mean().abs()) < 0.5


def rows(shares):
    return [{"task": "a", "way": "there", "method": method, "steps": steps, "seed": seed, "kept": share + seed / 100, "w2": 1.0,
             "energy": None} for (method, steps), share in shares.items() for seed in (0, 1)]  # fmt: skip


@pytest.mark.parametrize(("ours", "met"), [(0.81, True), (0.8, False), (0.5, False)])
def test_the_goal_takes_the_peers_best_step_count_and_only_our_few(ours, met):
    shares = {(MAIN, 2): ours, (MAIN, 20): 0.99, (RESIDUAL, 1): 0.99, (PEER, 1): 0.1, (PEER, 20): 0.8}
    found = goal(means({"figures": rows(shares)}), MAIN)
    assert found.met is met
    assert found.checks[0][:4] == ["a", "there", 2, pytest.approx(ours + 0.005)]


def test_means_are_over_seeds_and_a_missing_figure_stays_missing():
    (row,) = means({"figures": rows({(MAIN, 1): 0.4})})
    assert row["kept"] == pytest.approx(0.405)
    assert row["energy"] is None
