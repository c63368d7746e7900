"""Rendered shapes against their closed forms, the aligned peers against slow references, and goals that can fail."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import adapt_images, alignment_peers, shapes
from benchmarks.adapt_images import ALIGNED, AUTO, DINO, TARGET, cells, figures, goals, measure, plan, scores, tables
from benchmarks.alignment_peers import RSD, DareGram, Rows, adapt, choose, coral, inverse, rank, ridge, spectrum
from benchmarks.record import here
from benchmarks.shapes import DOMAINS, SUB, R, Sizes, covered, render, waves
from driftway.checks import InputError
from driftway.transport.stream import generator

SIDE = 32
AREAS = (2, math.pi / 2, 3 * math.sqrt(3) / 4)  # of the shapes in a circle of radius 1


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_areas_and_centroids_are_those_of_the_plane(kind):
    n, own = 100, generator("plane", kind)
    targets = torch.rand(n, 3, generator=own)
    targets[:, 0] = (1 + targets[:, 0]) / 2
    m = covered(torch.full((n,), kind), 2 * math.pi * torch.rand(n, generator=own), targets, SIDE)
    r = R * targets[:, 0]
    torch.testing.assert_close(m.mean((1, 2)), AREAS[kind] * r**2, rtol=0.04, atol=0)
    at = (torch.arange(SIDE) + 0.5) / SIDE
    centre = torch.stack([(m * at).sum((1, 2)), (m * at[:, None]).sum((1, 2))], 1) / m.sum((1, 2))[:, None]
    torch.testing.assert_close(centre, R + (1 - 2 * R) * targets[:, 1:], rtol=0, atol=0.5 / SIDE / SUB)
    assert m.amax((1, 2)).min() == 1
    assert set((m * SUB**2).unique().tolist()) <= set(range(SUB**2 + 1))


def test_a_quarter_turn_of_a_square_changes_nothing_and_of_an_ellipse_turns_the_image():
    targets, still, turned = torch.tensor([[1.0, 0.5, 0.5]]), torch.tensor([0.3]), torch.tensor([0.3 + math.pi / 2])
    square, ellipse = (lambda angle, kind=kind: covered(torch.tensor([kind]), angle, targets, SIDE) for kind in (0, 1))
    torch.testing.assert_close(square(still), square(turned), rtol=0, atol=0.2)
    assert (square(still) != square(turned)).float().mean() < 0.01  # points on an edge round either way
    assert (ellipse(still) - ellipse(turned)).abs().max() == 1
    assert (ellipse(still).rot90(1, (1, 2)) - ellipse(turned)).abs().mean() < 0.01


def pictures(domain, n=50, side=SIDE):
    return render(domain, n, generator=generator("pictures", domain), side=side)


@pytest.mark.parametrize("domain", DOMAINS)
def test_images_and_targets_are_in_their_ranges_and_repeat(domain, monkeypatch):
    x, y = pictures(domain)
    assert x.shape == (50, 3, SIDE, SIDE)
    assert x.min() >= 0
    assert x.max() <= 1
    assert (y[:, 0] >= 0.5).all()
    assert ((y >= 0) & (y <= 1)).all()
    monkeypatch.setattr(shapes, "CHUNK", 7)
    again, targets = pictures(domain)
    assert torch.equal(x, again)
    assert torch.equal(y, targets)
    assert not torch.equal(x[0], x[1])


def test_each_style_is_the_one_described(monkeypatch):
    def shown(cover):
        monkeypatch.setattr(shapes, "covered", lambda kinds, angles, targets, side: torch.full((len(kinds), side, side), cover))
        return {domain: pictures(domain)[0] for domain in DOMAINS}

    empty, full, half = shown(0.0), shown(1.0), shown(0.5)
    assert empty["colour"].abs().max() == 0
    assert full["colour"].var((2, 3)).max() < 1e-12  # one colour
    assert full["colour"].min() >= 0.5
    assert (full["noise"] == 1).all()
    assert empty["noise"].mean() == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(half["noise"], (empty["noise"] + 0.5).clamp(max=1))
    torch.testing.assert_close(full["texture"], 1 - empty["texture"])
    torch.testing.assert_close(half["texture"], torch.full_like(half["texture"], 0.5))


def test_waves_fill_the_unit_interval_and_are_smooth():
    x = waves(20, 64, generator=generator("waves"))
    assert (x.amin((2, 3)) == 0).all()
    assert (x.amax((2, 3)) == 1).all()
    assert x.diff(dim=3).abs().max() < 0.35
    assert x.diff(dim=3).abs().mean() < x.std() / 4


@pytest.mark.parametrize(("domain", "n"), [("scream", 3), ("noise", 0)])
def test_unknown_domains_and_no_images_are_refused(domain, n):
    with pytest.raises(InputError):
        render(domain, n, generator=generator("refused"))


def test_features_come_from_the_file_and_a_target_has_the_same_rows_for_every_source(tmp_path):
    sizes = Sizes(images=64, epochs=1, source=30, labelled=8, unlabelled=20, test=15)
    first = shapes.task("colour", "noise", 0, sizes, tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    stamp = kept.stat().st_mtime_ns
    again = shapes.task("colour", "noise", 0, sizes, tmp_path)
    assert kept.stat().st_mtime_ns == stamp
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    other = shapes.task("texture", "noise", 0, sizes, tmp_path)
    assert torch.equal(first.y, other.y)
    assert torch.equal(first.y_t, other.y_t)
    assert len(first.X_t) == len(first.own_t) == 8
    assert first.X_s.mean(0).abs().max() < 1e-5
    assert not torch.equal(first.y_s[:8], first.y_t)


def known(b=4, p=10, seed=0):
    own = generator("known", seed)
    return torch.randn(b, p, generator=own, dtype=torch.float64), torch.randn(b, p, generator=own, dtype=torch.float64)


def test_rsd_is_the_sine_of_an_angle_that_is_known():
    theta, eye = 0.7, torch.eye(6, dtype=torch.float64)
    F_s, F_t = torch.stack([3 * eye[0], eye[1]]), torch.stack([2 * eye[0], math.cos(theta) * eye[1] + math.sin(theta) * eye[2]])
    assert float(RSD(1.0, 0.0)(F_s, F_t)) == pytest.approx(math.sin(theta) + 1e-3, abs=1e-6)
    assert float(RSD(1.0, 0.0)(F_s, eye[4:])) == pytest.approx(2)
    assert float(RSD(1.0, 0.0)(F_s, 100 * F_t)) == pytest.approx(math.sin(theta) + 1e-3, abs=1e-6)
    assert float(RSD(0.0, 1.0)(F_s, F_t)) == pytest.approx(0, abs=1e-6)  # bases in the same order
    swapped = torch.stack([F_s[0] / 9, F_s[1] * 9])
    assert float(RSD(0.0, 1.0)(F_s, swapped)) > 0.5


def test_dare_gram_is_that_of_a_slow_reference():
    F_s, F_t = known(6, 4)
    for tau in (0.5, 0.9, 1.0):
        grams = [np.column_stack([np.ones(6), F.numpy()]) for F in (F_s, F_t)]
        grams = [Z.T @ Z for Z in grams]
        values = [np.linalg.svd(G)[1] for G in grams]
        k = max(next(i for i in range(1, 6) if own[:i].sum() >= tau * own.sum() * (1 - 1e-12)) for own in values)
        inverses = []
        for G in grams:
            U, s, V = np.linalg.svd(G)
            inverses.append(sum(np.outer(V[i], U[:, i]) / s[i] for i in range(k)))
        cos = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(inverses[0].T, inverses[1].T, strict=True)]
        expected = 0.3 * np.mean(1 - np.array(cos)) + 0.2 * np.linalg.norm(values[0][:k] - values[1][:k]) / k
        assert float(DareGram(0.3, 0.2, tau)(F_s, F_t)) == pytest.approx(expected, rel=1e-6)
    assert float(DareGram()(F_s, F_s)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("k", [2, 4])
def test_the_inverse_on_some_eigenvalues_has_its_gradient(k):
    F, _ = known(4, 6)  # rank 4 of 6: autograd's own rule is not finite here
    G = (F.T @ F).requires_grad_(True)

    def symmetric(G):
        G = (G + G.T) / 2
        return inverse(G, k, *spectrum(G))

    assert torch.autograd.gradcheck(symmetric, (G,))
    if k == 4:
        torch.testing.assert_close(symmetric(G)[0], torch.linalg.pinv(F.T @ F, rtol=1e-9))
    assert rank(torch.tensor([5.0, 3.0, 2.0, 0.0]), 0.8) == 2
    assert rank(torch.tensor([5.0, 3.0, 2.0, 0.0]), 0.81) == 3


def test_coral_gives_the_source_the_moments_of_the_target():
    own = generator("coral")
    X_s, X_t = torch.randn(300, 3, generator=own).double(), torch.randn(400, 3, generator=own).double() @ torch.tensor(
        [[2.0, 1, 0], [0, 1, 0], [0, 0, 0.5]]).double() + 5  # fmt: skip
    moved = coral(X_s, X_t, e=1e-9)
    torch.testing.assert_close(moved.mean(0), X_t.mean(0))
    torch.testing.assert_close(torch.cov(moved.T), torch.cov(X_t.T), rtol=1e-6, atol=1e-6)


def rows(m, shift=0.0):
    """y = (x_1 + x_2) / 2 in the source; more by shift in the target."""
    own = generator("rows", m)
    X_s, X_t, X_u = (torch.rand(n, 3, generator=own).double() for n in (200, m, 100))
    mean = lambda X: X[:, :2].mean(1, keepdim=True)  # noqa: E731
    return Rows(X_s, mean(X_s) / 2, X_t, mean(X_t) / 2 + shift, X_u)


def test_an_adaptor_learns_the_source_and_labels_of_the_target_pull_it():
    without, with_ = rows(0), rows(40, shift=0.4)

    def error(part, shift):
        found = adapt(part, None, seed=0).predict(part.X_u)
        return float((found - part.X_u[:, :2].mean(1, keepdim=True) / 2 - shift).abs().mean())

    assert error(without, 0) < 0.03
    assert error(with_, 0.2) < 0.06  # half way: both domains count alike
    same = [adapt(without, None, seed=3, steps=5).predict(without.X_u) for _ in range(2)]
    assert torch.equal(*same)


@pytest.mark.parametrize("align", [RSD(0.1, 1e-3), DareGram(0.5, 1e-2)])
def test_training_with_an_alignment_lowers_it_and_all_steps_count(align):
    own = generator("wide")
    X_s, X_u = (torch.randn(60, 80, generator=own).double() for _ in range(2))
    X_u = X_u * torch.linspace(0, 3, 80)
    part = Rows(X_s, X_s[:, :1].sigmoid(), X_s[:0], X_s[:0, :1], X_u)
    short, long = (adapt(part, align, seed=0, steps=steps) for steps in (1, 40))
    assert short.skipped == long.skipped == 0
    before, after = (float(align(*(found.net.body(X[:36].float()) for X in (X_s, X_u)))) for found in (short, long))
    assert after < 0.9 * before


def test_labels_choose_the_alignment_and_without_any_it_is_the_recommended_one(monkeypatch):
    seen = []

    def pretended(part, align, *, seed):
        seen.append(len(part.X_t))
        return SimpleNamespace(predict=lambda X: X[:, :1] * 0 + align)

    monkeypatch.setattr(alignment_peers, "adapt", pretended)
    part = rows(9)
    best = float(part.y_t.median())
    assert choose(part, [best + 0.1, best, best - 0.2], seed=0) == best
    assert seen == [6] * 9
    assert choose(rows(0), [0.1, 0.2], seed=0) == 0.1


def test_ridge_recovers_a_line():
    X = torch.randn(50, 2, generator=generator("ridge")).double()
    y = X @ torch.tensor([[2.0, 0.0], [1.0, -1.0]]).double() + 3
    torch.testing.assert_close(ridge(X, y)(X), y, rtol=1e-3, atol=1e-3)


def test_scores_of_a_prediction_that_is_off_by_a_known_amount():
    y = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 4.0]]).double()
    found = scores(y + torch.tensor([0.1, -0.2, 0.0]), torch.full_like(y, 0.1), y)
    assert [found[name] for name in ("scale", "x", "y")] == pytest.approx([0.1, 0.2, 0.0])
    assert found["mae"] == pytest.approx(0.3)
    assert found["r2"] == pytest.approx(1 - (0.01 / 0.25 + 0.04 / 1) / 3)
    assert found["coverage"] == pytest.approx(2 / 3)
    assert scores(y, None, y)["coverage"] is None


def test_a_method_that_fails_is_an_outcome_and_the_plan_asks_none_for_labels_that_are_not_there():
    jobs = plan(False, adapt_images.METHODS)
    assert len({job[0] for job in jobs}) == 5
    assert len({job[1] for job in jobs}) == 6
    assert not any(labels == 0 and method in adapt_images.NEEDS_LABELS for _, _, labels, method in jobs)
    broken = SimpleNamespace(X_s=None, y_s=None, X_t=[], y_t=[], X_u=None, own=torch.tensor(torch.nan), X=None, y=None)
    assert "finite" in measure("source network", broken, 0, 0)["failed"]


def cell(method, mae, seed=0, labels=20, coverage=0.9):
    return {"pair": "a to b", "labels": labels, "seed": seed, "method": method, "scale": mae, "x": 0.0, "y": 0.0, "mae": mae, "r2": 0.5,
            "coverage": coverage, "seconds": 1.0, "said": "transfer"}  # fmt: skip


def test_goals_are_met_and_missed_by_figures():
    def verdicts(auto, *, coverage=0.9):
        found = [cell(AUTO, auto + seed / 100, seed, coverage=coverage) for seed in (0, 1)]
        found += [cell(name, mae + seed / 100, seed) for name, mae in ((DINO, 0.5), (TARGET, 0.4), *((peer, 0.3) for peer in ALIGNED))
                  for seed in (0, 1)]  # fmt: skip
        made = figures([*found, {"pair": "a to b", "labels": 20, "seed": 2, "method": AUTO, "failed": "no"}])
        assert len(tables(made)) == 3
        return [goal.met for goal in goals(made)]

    assert verdicts(0.2) == [True, False, False, False, True, True]
    assert verdicts(0.35) == [False, False, False, False, True, True]
    assert verdicts(0.45, coverage=0.5) == [False] * 6


def test_cells_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(adapt_images, "CACHE", tmp_path)
    monkeypatch.setattr(adapt_images, "features", lambda *where: None)
    calls = []
    monkeypatch.setattr(adapt_images, "measure", lambda *how: calls.append(how) or {"mae": 0.1})
    jobs = [(0, ("colour", "noise"), 20, "RSD"), (1, ("colour", "noise"), 20, "RSD")]
    first, again = list(cells(jobs, Sizes())), list(cells(jobs, Sizes()))
    assert first == again
    assert len(calls) == 2
    assert first[0] == {"pair": "colour to noise", "labels": 20, "seed": 0, "method": "RSD", "mae": 0.1, "machine": here()}
