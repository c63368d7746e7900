"""Cross-validation inside the kernel against training fold by fold, and its limits."""

import math
import time

import pytest
import torch
from torch.nn.functional import one_hot

from driftway.checks import InputError
from driftway.stopping.chebyshev import chebyshev
from driftway.stopping.crossfit import RATIO, Validation, _nominal, cross_validate
from driftway.stopping.logistic import logistic_path

DOUBLE = torch.float64


def data(n=24, k=2, seed=0, power=1.0, first=4.0, signal=4.0):
    """Labels drawn from scores in the leading directions of a kernel, and the kernel."""
    g = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=DOUBLE))[0]
    mu = torch.arange(1, n + 1, dtype=DOUBLE).pow(-power)
    mu[0] = first
    f = signal * n**0.5 * U[:, :4] @ torch.randn(4, max(k, 1), generator=g, dtype=DOUBLE) / 2
    if k == 1:
        y = f[:, 0] / 2 + torch.randn(n, generator=g, dtype=DOUBLE)
    else:
        label = torch.multinomial(f.softmax(1), 1, generator=g)[:, 0]
        y = label.double() if k == 2 else one_hot(label, k).double()
    return n * (U * mu) @ U.T, y


def parts_of(n, folds):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return [order[k::folds] for k in range(folds)]


def others(out, n):
    seen = torch.ones(n, dtype=torch.bool)
    seen[out] = False
    return seen


@pytest.mark.parametrize("outputs", [None, 3])
def test_squared_loss_is_descent_fold_by_fold(outputs):
    K, y = data(k=1)
    n = len(y)
    start = 0.3 * torch.randn(n, *([outputs] if outputs else []), generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    y = y if outputs is None else y[:, None] * torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    found = cross_validate(K, y, start=start, folds=4)
    for eta in (0.2, 2.0, 9.0):
        error = torch.zeros(n, dtype=DOUBLE)
        for out in parts_of(n, 4):
            seen, f = others(out, n), start.clone()
            for _ in range(2000):
                f = f + eta / 2000 * K[:, seen] @ (y - f)[seen] / int(seen.sum())
            error[out] = (y - f)[out].square().reshape(len(out), -1).mean(1)
        assert found.at(eta, found.held) == pytest.approx(float(error.mean()), rel=3e-3)
    assert found.error.isnan().all()


def test_leave_one_out_of_squared_loss_at_the_end_is_its_closed_form():
    """Interpolation without row i misses it by (K^-1 y)_i / (K^-1)_ii."""
    K, y = data(k=1, power=0.5)
    found = cross_validate(K, y, folds=len(y))
    P = torch.linalg.inv(K)
    assert float(found.held[-1]) == pytest.approx(float((P @ y / P.diagonal()).square().mean()), rel=1e-4)
    assert float(found.train[-1]) < 1e-12


@pytest.mark.parametrize(("k", "first"), [(2, 4.0), (3, 4.0), (2, 60.0)])
def test_cross_entropy_is_training_fold_by_fold(k, first):
    """Against the classical Runge-Kutta method with small steps, on all rows and without those of each fold in turn."""
    K, y = data(k=k, first=first)
    n, start = len(y), torch.randn(*y.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    found = cross_validate(K, y, start=start, loss="cross_entropy", folds=3)
    taken = torch.arange(2, len(found.eta), 3)
    taken = taken[found.eta[taken] < 4000 / first]
    assert len(taken) > 2
    eta, whole = found.eta[taken], logistic_path(K, y, found.eta[taken], start=start)
    held = torch.zeros(len(eta), n, dtype=DOUBLE)
    for out in parts_of(n, 3):
        seen = others(out, n)
        path = logistic_path(K[seen][:, seen], y[seen], eta, start=start[seen])
        f = start[out] + path.predict(K[out][:, seen])
        for row, own in zip(held, f, strict=True):
            q = own.log_softmax(1)[y[out] > 0.5] if k > 2 else torch.nn.functional.logsigmoid(torch.where(y[out] > 0.5, own, -own))
            row[out] = -q
    torch.testing.assert_close(found.held[taken], held.mean(1), rtol=4e-3, atol=1e-4)
    torch.testing.assert_close(found.train[taken], whole.loss, rtol=4e-3, atol=1e-4)


def test_cross_entropy_is_descent_of_the_weights():
    """A linear model, trained by small steps of plain descent on the rows outside of the fold."""
    g = torch.Generator().manual_seed(3)
    X = torch.randn(20, 6, generator=g, dtype=DOUBLE)
    y = (X[:, 0] + torch.randn(20, generator=g, dtype=DOUBLE) > 0).double()
    found, (first, second) = cross_validate(X @ X.T, y, loss="cross_entropy", folds=2), parts_of(20, 2)
    eta, wrong, loss = float(found.eta[10]), 0, 0.0
    for out, seen in ((first, second), (second, first)):
        w = torch.zeros(6, dtype=DOUBLE)
        for _ in range(5000):
            w = w + eta / 5000 * X[seen].T @ (y[seen] - (X[seen] @ w).sigmoid()) / 10
        loss += float(torch.nn.functional.binary_cross_entropy_with_logits(X[out] @ w, y[out], reduction="sum"))
        wrong += int(((X[out] @ w > 0) != (y[out] > 0.5)).sum())
    assert float(found.held[10]) == pytest.approx(loss / 20, rel=2e-3)
    assert float(found.error[10]) == pytest.approx(wrong / 20)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_before_training_losses_are_those_of_the_start(k):
    K, y = data(k=k)
    loss = "squared" if k == 1 else "cross_entropy"
    found = cross_validate(K, y, loss=loss)
    expected = float(y.square().mean()) if k == 1 else math.log(k)
    assert float(found.eta[0]) == float(found.nominal[0]) == 0
    assert float(found.held[0]) == pytest.approx(expected)
    assert float(found.train[0]) == pytest.approx(expected)
    assert float(found.train[-1]) < float(found.train[0])


def test_rows_that_may_not_be_held_out_are_always_trained_on():
    K, y = data(k=1)
    held = torch.tensor([2, 5, 11, 17])
    found = cross_validate(K, y, folds=4, held=held)
    total = 0.0
    for i in held.tolist():
        seen = others(torch.tensor([i]), len(y))
        total += float((y[i] - K[i, seen] @ torch.linalg.solve(K[seen][:, seen], y[seen])) ** 2)
    assert float(found.held[-1]) == pytest.approx(total / 4, rel=1e-3)


def of(held, ratio=RATIO):
    t = len(held)
    eta = torch.cat([torch.zeros(1), ratio ** torch.arange(t - 1)]).double()
    held = torch.as_tensor(held, dtype=DOUBLE)
    return Validation(eta, held, held, held, eta)


@pytest.mark.parametrize(("ratio", "close"), [(1.02, 0.01), (RATIO, 0.12)])
def test_best_is_where_a_known_parabola_is_nearly_at_its_lowest(ratio, close):
    """1 + (log eta - 2)^2 is 1.02 first at log eta = 2 - 0.02^(1/2)."""
    x = torch.arange(-1, 400 if ratio < 1.1 else 40).double() * math.log(ratio)
    found = of([9.0, *(1 + (x[1:] - 2).square())], ratio)
    assert math.log(found.best) == pytest.approx(2 - math.sqrt(0.02), abs=close)
    assert found.gains
    assert found.at(found.best, found.held) == pytest.approx(1.02 * float(found.held.min()))
    assert (found.held[found.eta < found.best] > 1.02 * found.held.min()).all()


def test_best_at_the_ends():
    assert of([3.0, 1.0, 2.0]).best == pytest.approx(1.98 / 2)
    assert math.isinf(of([3.0, 2.0, 1.0]).best)
    worse, flat = of([1.0, 2.0, 3.0]), of([1.0, 0.99, 1.0, 1.0, 1.04])
    assert not worse.gains
    assert worse.best == pytest.approx(0.02)
    assert not flat.gains
    assert float(flat.eta[3]) < flat.best == pytest.approx(float(flat.eta[3:].mean()))
    assert math.isinf(of([1.0, 0.99, 1.0]).best)


def test_curves_between_points_and_after_the_end():
    found = of([4.0, 2.0, 1.0, 3.0])
    assert found.at(0.0, found.held) == 4
    assert found.at(0.5, found.held) == pytest.approx(3.0)
    assert found.at(1.0, found.held) == pytest.approx(2.0)
    assert found.at(1e9, found.held) == 3
    assert found.steps_time(0.5) == pytest.approx(0.5)
    assert found.steps_time(100.0) == pytest.approx(100.0)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_labels_without_signal_gain_nothing(loss):
    """Each row has the opposite label of its neighbours: whatever is learned from other rows is wrong."""
    n, x = 40, torch.arange(40).double()
    y = x.remainder(2)
    K = n * torch.exp(-((x[:, None] - x) ** 2) / 2)
    found = cross_validate(K, y if loss == "cross_entropy" else 2 * y - 1, loss=loss, folds=n)
    assert not found.gains
    assert found.at(found.best, found.held) <= 1.02 * float(found.held[0]) + 1e-9


def test_labels_without_noise_are_trained_to_the_end():
    x = torch.linspace(-1, 1, 30, dtype=DOUBLE)
    assert math.isinf(cross_validate(x[:, None] * x + 1, (x > 0).double(), loss="cross_entropy").best)


@pytest.mark.parametrize("u", [lambda e: 0.25 * math.exp(-2 * e), lambda e: 0.25 / (1 + e), lambda e: 0.05 + 0.2 * math.exp(-2 * e)])
def test_nominal_is_adams_clock_step_by_step(u):
    eta = torch.cat([torch.zeros(1), 0.05 * RATIO ** torch.arange(24)]).double()
    found = _nominal(eta, torch.tensor([u(e) for e in eta.tolist()], dtype=DOUBLE))
    now, taken, total, lr = 0.0, 0, 0.0, 1e-3
    for e, expected in list(zip(eta.tolist(), found.tolist(), strict=True))[1::4]:
        while now < e:
            total, taken = total + u(now), taken + 1
            now += lr * math.sqrt(u(0.0) / (total / taken))
        assert taken * lr == pytest.approx(expected, rel=5e-3, abs=2 * lr)


def test_fitted_rows_have_a_clock():
    K, y = data(k=1)
    found = cross_validate(K, y, start=y)
    assert not found.gains
    assert found.nominal.isfinite().all()
    assert found.held.abs().max() < 1e-20


@pytest.mark.parametrize("order", [1.0, -1.0])
def test_a_confident_start_ends(order):
    K, y = data(k=2)
    found = cross_validate(K, y, start=order * 50 * (2 * y - 1), loss="cross_entropy")
    for part in (found.train, found.held, found.nominal):
        assert part.isfinite().all()
    assert found.gains == (order < 0)


def test_one_direction_much_larger_than_the_rest_does_not_end_the_walk_early():
    K, y = data(n=60, k=2, first=1e4)
    small, _ = data(n=60, k=2, first=1.0)
    before = time.process_time()
    found = cross_validate(K, y, loss="cross_entropy")
    assert time.process_time() - before < 3
    assert float(found.eta[-1]) > 20  # the other eigenvalues begin at 1/2
    assert found.best == pytest.approx(cross_validate(small, y, loss="cross_entropy").best, rel=0.5)


def test_dtypes_and_scales():
    K, y = data(k=2)
    full = cross_validate(K, y, loss="cross_entropy")
    single = cross_validate(K.float(), y.float(), start=torch.zeros(len(y)), loss="cross_entropy")
    assert single.held.dtype == DOUBLE
    assert single.best == pytest.approx(full.best, rel=1e-3)
    assert cross_validate(7 * K, y, loss="cross_entropy").best * 7 == pytest.approx(full.best)
    numbers = cross_validate(K, torch.randn(len(y), generator=torch.Generator().manual_seed(0)))
    assert numbers.held.dtype == DOUBLE


def test_two_equal_classes_of_softmax_are_a_sigmoid():
    """Softmax of (f/2, -f/2) with K for each is a sigmoid of f with 2 K."""
    K, y = data(k=2)
    two = cross_validate(K, torch.stack([y, 1 - y], 1), loss="cross_entropy")
    one = cross_validate(2 * K, y, loss="cross_entropy")
    torch.testing.assert_close(two.eta, one.eta)
    torch.testing.assert_close(two.held, one.held, rtol=1e-9, atol=0)
    assert float(two.error[10]) == float(one.error[10])


@pytest.mark.parametrize("stiff", [2.0, 300.0, 1e5])
def test_the_stabilised_method_is_of_order_two_and_stable(stiff):
    rates = torch.tensor([1.0, 0.3, stiff], dtype=DOUBLE)

    def run(steps):
        f = torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE)
        for _ in range(steps):
            f, _ = chebyshev(lambda f: -rates * f, f, 1 / steps, rho=stiff)
        return f

    exact = torch.exp(-rates) * torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE)
    coarse, fine = (float((run(steps) - exact)[:2].abs().max()) for steps in (4, 8))
    assert coarse < 5e-3
    assert 3.3 < coarse / fine < 4.7
    f = torch.ones(3, dtype=DOUBLE)
    for _ in range(60):
        f, stages = chebyshev(lambda f: -rates * f, f, 1.0, rho=stiff)
    assert f.abs().max() < 0.1
    assert stages < 2 + 1.3 * math.sqrt(stiff)


K, Y = data(n=12, k=2)


@pytest.mark.parametrize(("K", "y", "options", "text"), [
    (K, Y, {"loss": "hinge"}, "loss: expected one of squared, cross_entropy"),
    (K, Y[:5], {}, "y: expected 12 rows, as K has, got 5"),
    (K, Y, {"folds": 13}, "folds: expected 2 to 12"),
    (K, Y, {"folds": 1}, "folds: expected 2 to 12"),
    (K, Y, {"held": torch.tensor([1, 2]), "folds": 3}, "folds: expected 2 to 2, the rows to hold out"),
    (K, Y, {"start": torch.zeros(12, 2)}, "start: expected shape (12,), that of y, got (12, 2)"),
    (K, Y, {"start": torch.full((12,), math.nan), "loss": "cross_entropy"}, "start: expected finite scores"),
    (K, 3 * Y, {"loss": "cross_entropy"}, "y: expected probabilities"),
    (K, Y / 0.0, {}, "residual: expected finite floats"),
    (0 * K, Y, {}, "K: expected a kernel that is not zero"),
    (K + math.inf, Y, {}, "K: expected finite numbers"),
])  # fmt: skip
def test_bad_input_is_named(K, y, options, text):
    with pytest.raises(InputError) as error:
        cross_validate(K, y, **options)
    assert text in str(error.value)


def test_a_validation_that_is_none_is_refused():
    eta = torch.tensor([0.0, 1.0, 2.0], dtype=DOUBLE)
    for wrong in (eta + 1, eta[:1], eta.flip(0)):
        with pytest.raises(InputError, match="validation: expected 2 times or more that increase from 0"):
            Validation(wrong, wrong, wrong, wrong, wrong)
