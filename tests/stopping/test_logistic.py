"""The cross-entropy path against explicit descent, its limits, and the squared-loss problem it is near the start."""

import math

import pytest
import torch

from driftway.checks import InputError
from driftway.linalg import eigendecompose
from driftway.stopping import Flow, centred_one_hot, logistic_path, stopping_time, working_problem

DOUBLE = torch.float64


def problem(k=None, n=12, p=5, seed=0):
    own = torch.Generator().manual_seed(seed)
    X = torch.randn(n, p, dtype=DOUBLE, generator=own)
    labels = torch.arange(n) % (k or 2)
    y = labels.double() if k is None else torch.nn.functional.one_hot(labels).double()
    return X, y


def loss(f, y):
    if y.ndim == 1:
        return torch.nn.functional.binary_cross_entropy_with_logits(f, y)
    return torch.nn.functional.cross_entropy(f, y)


@pytest.mark.parametrize("k", [None, 3])
def test_the_path_is_the_limit_of_explicit_descent(k):
    """Descent on the weights of a linear model from a start that is not 0: its distance to the path falls as its step."""
    X, y = problem(k)
    start, new = 0.5 * torch.sin(torch.arange(y.numel()).double()).reshape(y.shape), problem(k, 4, seed=1)[0]
    path = logistic_path(X @ X.T, y, torch.tensor([3.0], dtype=DOUBLE), start=start)
    miss = []
    for m in (200, 400):
        w = torch.zeros(5, *y.shape[1:], dtype=DOUBLE, requires_grad=True)
        for _ in range(m):
            (g,) = torch.autograd.grad(loss(start + X @ w, y), w)
            w = (w - 3.0 / m * g).requires_grad_()
        miss.append(float((start + X @ w - path.scores[0]).detach().norm()))
    assert miss[0] / miss[1] == pytest.approx(2, rel=0.05)
    assert miss[1] < 0.01 * float((path.scores[0] - start).norm())
    torch.testing.assert_close(path.predict(new @ X.T)[0], (new @ w).detach(), rtol=0.05, atol=0.02)
    assert float(path.loss[0]) == pytest.approx(float(loss(path.scores[0], y)))


def test_one_row_has_a_closed_form():
    """f' = K / (1 + e^f) from 0: f + e^f = K eta + 1."""
    path = logistic_path(torch.tensor([[2.0]], dtype=DOUBLE), torch.tensor([1.0], dtype=DOUBLE), torch.tensor([0.5, 4.0], dtype=DOUBLE))
    f = path.scores[:, 0]
    torch.testing.assert_close(f + f.exp(), 2 * path.eta + 1, rtol=5 * 0.25**5 / 120, atol=0.0)  # a few steps of order 5, each 1/(4 L mu_1)


@pytest.mark.parametrize(("k", "order"), [(None, 4), (3, 3)])
def test_near_the_start_it_is_the_squared_loss_of_the_rescaled_kernel(k, order):
    """Sigmoid: K/4 and targets 4 (y - 1/2); softmax: K/k and k (y - 1/k). The distance is of order eta^4 and eta^3."""
    X, y = problem(k)
    K, c = X @ X.T, 4.0 if k is None else float(k)
    target = c * (y - 0.5) if k is None else c * (y - 1 / k)
    flow, eta = Flow(eigendecompose(K / c), target), torch.tensor([0.02, 0.04], dtype=DOUBLE)
    miss = (logistic_path(K, y, eta).scores - flow.fitted(eta)).flatten(1).norm(dim=1)
    assert math.log2(float(miss[1] / miss[0])) == pytest.approx(order, abs=0.2)
    working, r = working_problem(K, y)
    torch.testing.assert_close(working, K / c)
    torch.testing.assert_close(r, target / c**0.5)


def test_the_working_problem_holds_at_any_start():
    """The path's first two derivatives are those of the squared-loss flow of W^(1/2) K W^(1/2): the distance is O(eta^3)."""
    X, y = problem()
    K, start = X @ X.T, torch.linspace(-1.0, 1.0, 12).double()
    working, r = working_problem(K, y, start=start)
    p = start.sigmoid()
    eta, root = torch.tensor([0.01, 0.02], dtype=DOUBLE), (p * (1 - p)).sqrt()
    flow = Flow(eigendecompose((working + working.T) / 2), r)
    miss = (logistic_path(K, y, eta, start=start).scores - start - flow.fitted(eta) / root).norm(dim=1)
    assert math.log2(float(miss[1] / miss[0])) == pytest.approx(3, abs=0.2)


def test_its_stop_is_that_of_the_logistic_path():
    """Labels drawn from a known logistic model: the time chosen on the working problem is near the best of the true path."""
    own = torch.Generator().manual_seed(0)
    X = torch.randn(200, 20, dtype=DOUBLE, generator=own)
    f = 0.6 * X[:, 0] - 0.4 * X[:, 1]
    y = (torch.rand(200, dtype=DOUBLE, generator=own) < f.sigmoid()).double()
    stop = stopping_time(eigendecompose(working_problem(X @ X.T, y)[0]), working_problem(X @ X.T, y)[1], sigma=1.0)
    eta = torch.tensor(sorted([0.0, stop.eta, *(2.0**j for j in range(-4, 8))]), dtype=DOUBLE)
    path = logistic_path(X @ X.T, y, eta)
    against = torch.stack([loss(scores, f.sigmoid()) for scores in path.scores]) - loss(f, f.sigmoid())
    chosen = float(against[eta == stop.eta][0])
    assert chosen < 1.3 * float(against.min())
    assert chosen < 0.6 * min(float(against[0]), float(against[-1]))


def test_the_loss_never_rises_and_the_steps_are_enough():
    X, y = problem(3)
    eta = torch.logspace(-2, 3, 15, dtype=DOUBLE)
    path = logistic_path(X @ X.T, y, eta)
    assert bool((path.loss.diff() < 0).all())
    dense, plain = (logistic_path(X @ X.T, y, torch.linspace(0.0, 5.0, m + 1, dtype=DOUBLE)[1:]).scores[-1] for m in (1000, 1))
    torch.testing.assert_close(plain, dense, rtol=1e-5, atol=1e-5)


def test_targets_of_classes_are_centred():
    hot = centred_one_hot(torch.tensor([0, 2, 2, 1]))
    torch.testing.assert_close(hot.sum(0), torch.zeros(3))
    torch.testing.assert_close(hot.sum(1), torch.zeros(4))
    assert hot.argmax(1).tolist() == [0, 2, 2, 1]


@pytest.mark.parametrize(("call", "text"), [
    (lambda K, y: logistic_path(K, 3 * y, torch.ones(1)), "y: expected probabilities, got numbers from 0 to 3"),
    (lambda K, y: logistic_path(K, y[:4], torch.ones(1)), "y: expected (12,) or (12, k)"),
    (lambda K, y: logistic_path(K, y, torch.tensor([2.0, 1.0])), "eta: expected times >= 0 that do not decrease"),
    (lambda K, y: logistic_path(K, y, torch.tensor([1e9])), "eta: expected times that 100000 steps"),
    (lambda K, y: logistic_path(K, y, torch.ones(1), start=y[:3]), "start: expected finite scores of shape (12,)"),
    (lambda K, y: centred_one_hot(torch.tensor([1, 1])), "labels: expected two classes or more, got 1 in every row"),
    (lambda K, y: centred_one_hot(torch.tensor([0.0, 1.0])), "labels: expected (n,) whole numbers >= 0, got torch.float32"),
])  # fmt: skip
def test_bad_input_is_named(call, text):
    X, y = problem()
    with pytest.raises(InputError) as error:
        call(X @ X.T, y)
    assert text in str(error.value)
