import pytest
import torch
from torch import nn

from driftway.checks import InputError
from driftway.finetune.heads import GRID, Head, head, one_hot


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ridge(H, y, lam):
    """Ridge regression with an intercept that is not penalised, by its normal equations."""
    n, p = H.shape
    X = torch.cat([H, torch.ones(n, 1, dtype=H.dtype)], 1)
    penalty = n * lam * torch.diag(torch.tensor([1.0] * p + [0.0], dtype=H.dtype))
    wb = torch.linalg.solve(X.T @ X + penalty, X.T @ y)
    return wb[:-1].T, wb[-1]


def data(n=40, p=6, k=2, noise=0.3, seed=0):
    g = seeded(seed)
    H = torch.randn(n, p, generator=g, dtype=torch.float64) + 2
    w = torch.randn(k, p, generator=g, dtype=torch.float64)
    return H, H @ w.T + noise * torch.randn(n, k, generator=g, dtype=torch.float64)


def left_out(H, y, lam):
    """Prediction of each row by a fit without it. The penalty n lam stays that of n rows, as in the closed form."""
    n, rows = len(H), []
    for i in range(n):
        seen = [j for j in range(n) if j != i]
        w, b = ridge(H[seen], y[seen], lam * n / (n - 1))
        rows.append(H[i] @ w.T + b)
    return torch.stack(rows)


def test_the_probe_is_ridge_regression_at_the_best_penalty_of_leave_one_out():
    H, y = data()
    found = head("probe", H, y, generator=seeded())
    w, b = ridge(H, y, found.lam)
    torch.testing.assert_close(found.weight, w)
    torch.testing.assert_close(found.bias, b)
    errors = {float(lam): float((y - left_out(H, y, float(lam))).square().mean())
              for lam in found.lam * torch.tensor([0.1, 10**-0.25, 1, 10**0.25, 10], dtype=torch.float64)}
    assert min(errors, key=errors.__getitem__) == found.lam


def test_generalised_cross_validation_is_minimised_too():
    H, y = data(noise=3.0)
    found = head("probe", H, y, generator=seeded(), criterion="gcv")
    C, n = H - H.mean(0), len(H)

    def gcv(lam):
        A = torch.full((n, n), 1 / n, dtype=H.dtype) + C @ torch.linalg.solve(C.T @ C + n * lam * torch.eye(6, dtype=H.dtype), C.T)
        return float((y - A @ y).square().sum() / n / (1 - A.trace() / n) ** 2)

    step = float(GRID[1] / GRID[0])
    assert gcv(found.lam) < min(gcv(found.lam * step), gcv(found.lam / step))


def test_initial_outputs_are_those_of_probes_without_the_row():
    H, y = data(n=12)
    found = head("probe", H, y, generator=seeded(), folds=12)
    for i in range(12):
        seen = [j for j in range(12) if j != i]
        without = head("probe", H[seen], y[seen], generator=seeded())
        torch.testing.assert_close(found.initial[i], without.predict(H[i : i + 1])[0])


def test_cross_fitting_keeps_the_noise_that_a_fit_on_the_same_rows_swallows():
    g = seeded()
    H, y = torch.randn(60, 50, generator=g), torch.randn(60, 1, generator=g)
    y = y + H[:, :1] * 3
    found = head("probe", H, y, generator=g)
    inside, outside = (y - found.predict(H)).square().mean(), (y - found.initial).square().mean()
    fresh = torch.randn(4000, 50, generator=g)
    truth = (fresh[:, :1] * 3 + torch.randn(4000, 1, generator=g) - found.predict(fresh)).square().mean()
    assert inside < 0.5 * truth
    assert 0.6 * truth < outside < 1.8 * truth


def test_pure_noise_is_not_fitted():
    g = seeded()
    found = head("probe", torch.randn(200, 5, generator=g), torch.randn(200, generator=g), generator=g)
    assert found.weight.norm() < 0.2
    assert found.weight.shape == (1, 5)


def test_zero_and_random_heads():
    H, y = data()
    zero, random = (head(kind, H.float(), y, generator=seeded(), std=0.5) for kind in ("zero", "random"))
    assert not zero.initial.any()
    assert zero.lam == 0
    assert 0.2 < float(random.weight.std()) < 0.9
    torch.testing.assert_close(random.initial, random.predict(H))
    assert random.weight.dtype == torch.float32


def test_the_state_loads_into_a_linear_layer():
    H, y = data()
    found, layer = head("probe", H.float(), y, generator=seeded()), nn.Linear(6, 2)
    layer.load_state_dict(found.state)
    torch.testing.assert_close(layer(H.float()), found.predict(H))


def test_the_probe_of_cross_entropy_is_a_newton_step():
    H, _ = data(k=3)
    labels = torch.arange(40) % 3
    found = head("probe", H, one_hot(labels), generator=seeded(), loss="cross_entropy")

    def loss(wb):
        logits = H @ wb[:, :-1].T + wb[:, -1]
        pull = 20 / 3 * found.lam * wb[:, :-1].square().sum()  # n lam |w|^2 / 2 in units of the curvature 1/k
        return nn.functional.cross_entropy(logits, labels, reduction="sum") + pull

    wb = torch.zeros(3, 7, dtype=torch.float64)
    gradient = torch.func.grad(loss)(wb).flatten()
    step = -torch.linalg.pinv(torch.func.hessian(loss)(wb).reshape(21, 21)) @ gradient
    torch.testing.assert_close(torch.cat([found.weight, found.bias[:, None]], 1), step.reshape(3, 7))


def test_one_hot_targets_sum_to_zero():
    y = one_hot(torch.tensor([0, 2, 1]), 4)
    assert y.shape == (3, 4)
    torch.testing.assert_close(y.sum(1), torch.zeros(3))
    assert float(y[1, 2]) == 0.75


def test_inputs_are_not_changed_and_a_seed_repeats():
    H, y = data()
    H0, y0 = H.clone(), y.clone()
    first, second = (head("probe", H, y, generator=seeded(3)) for _ in range(2))
    torch.testing.assert_close(first.initial, second.initial, rtol=0, atol=0)
    assert torch.equal(H, H0)
    assert torch.equal(y, y0)
    assert isinstance(first, Head)


@pytest.mark.parametrize(("change", "text"), [
    ({"kind": "svm"}, "kind: expected one of zero, random, probe"),
    ({"targets": torch.zeros(39, 1)}, "targets: expected 40 rows, as features have, got 39"),
    ({"targets": torch.ones(40)}, "targets: expected targets that differ"),
    ({"features": torch.ones(40, 3)}, "features: expected rows that differ"),
    ({"features": torch.ones(40, 3, 2)}, r"features: expected one vector for each row, shape \(n, p\)"),
    ({"folds": 41}, "folds: expected 2 to 40"),
    ({"loss": "hinge"}, "loss: expected one of squared, cross_entropy"),
    ({"criterion": "aic"}, "criterion: expected one of loo, gcv"),
])  # fmt: skip
def test_bad_input(change, text):
    H, y = data()
    given = {"kind": "probe", "features": H, "targets": y} | change
    with pytest.raises(InputError, match=text):
        head(**given, generator=seeded())


@pytest.mark.parametrize(("labels", "classes", "text"), [
    ([1, 1, 1], None, "labels: expected at least two classes, got the label 1 in all 3 rows"),
    ([0, 3], 3, "labels: expected class numbers from 0 to 2, got 0 to 3"),
    ([-100, 1], None, "labels: expected class numbers from 0 to 1, got -100 to 1"),
])  # fmt: skip
def test_bad_labels(labels, classes, text):
    with pytest.raises(InputError, match=text):
        one_hot(torch.tensor(labels), classes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_features_on_a_gpu_and_targets_beside_them():
    H, y = data()
    found, known = head("probe", H.cuda(), y, generator=seeded()), head("probe", H, y, generator=seeded())
    torch.testing.assert_close(found.weight.cpu(), known.weight)
    torch.testing.assert_close(found.half.initial.cpu(), known.half.initial)
