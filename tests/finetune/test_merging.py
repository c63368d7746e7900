"""Predicted merges: exact where the network is linear, right to first order where it is not, and the same from kernels alone."""

import itertools
import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from driftway.checks import InputError
from driftway.finetune.merging import change, changes, kernel_changes, kernel_cosines, plan_merge, pulled, sample_weights
from driftway.finetune.taskvector import TaskVector, combined
from driftway.kernels import tangent_features

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def regression(X, y):
    """A linear model at 0, and the task vector of least squares."""
    base = nn.Linear(X.shape[1], 1, bias=False, dtype=DOUBLE)
    nn.init.zeros_(base.weight)
    return base, TaskVector({"weight": (torch.linalg.pinv(X) @ y)[None]})


def mlp(outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, outputs)).double()


def random_vector(model, seed, size=1.0):
    return TaskVector({name: size * draw(*p.shape, seed=seed + i) for i, (name, p) in enumerate(model.named_parameters())})


def real_losses(model, vectors, c, data):
    merged = combined(vectors, c.tolist()).apply(model)
    with torch.no_grad():
        return torch.stack([(y - merged(X).view(y.shape)).square().sum() / (2 * len(y)) for X, y in data])


def test_tasks_of_other_features_do_not_interfere_and_both_are_kept_whole():
    X = draw(10, 4), draw(8, 4, seed=1)
    X[0][:, 2:] = 0
    X[1][:, :2] = 0
    y = X[0] @ draw(4, seed=2), X[1] @ draw(4, seed=3)
    (base, a), (_, b) = regression(X[0], y[0]), regression(X[1], y[1])
    D = changes([tangent_features(base, x) for x in X], [a, b])
    plan = plan_merge([d.squeeze(-1) for d in D], y)
    torch.testing.assert_close(plan.interference, torch.eye(2, dtype=DOUBLE))
    torch.testing.assert_close(plan.coefficients, torch.ones(2, dtype=DOUBLE))
    torch.testing.assert_close(plan.losses, torch.zeros(2, dtype=DOUBLE))
    torch.testing.assert_close(plan.start, torch.stack([v.square().sum() / (2 * len(v)) for v in y]))
    assert plan.remarks == ()


def test_tasks_of_the_same_features_meet_half_way():
    X, y, z = draw(9, 3), draw(9, seed=1), draw(9, seed=2)
    (base, a), (_, b) = regression(X, y), regression(X, z)
    plan = plan_merge(changes([tangent_features(base, X)] * 2, [a, b]), [y, z], names=["price", "size"])
    P = X @ torch.linalg.pinv(X)
    u, v = P @ y, P @ z
    torch.testing.assert_close(plan.coefficients, torch.full((2,), 0.5, dtype=DOUBLE))
    torch.testing.assert_close(plan.interference[0, 1], u @ v / (u @ u))
    torch.testing.assert_close(plan.interference[1, 0], u @ v / (v @ v))
    outside = torch.stack([(t - P @ t).square().sum() for t in (y, z)])
    torch.testing.assert_close(plan.alone, outside / 18)
    torch.testing.assert_close(plan.losses, (outside + (u - v).square().sum() / 4) / 18)
    assert any(remark.startswith("price pays for the merge") for remark in plan.remarks)


@pytest.mark.parametrize("c", [(1.0, 1.0), (-2.0, 0.3)])
def test_predictions_for_a_linear_model_are_exact_at_any_coefficients(c):
    X, y = (draw(9, 3), draw(5, 3, seed=4)), (draw(9, seed=1), draw(5, seed=2))
    base = nn.Linear(3, 1).double()
    vectors = [random_vector(base, seed) for seed in (10, 20)]
    residuals = [t - base(x).detach().flatten() for x, t in zip(X, y, strict=True)]
    plan = plan_merge(changes([tangent_features(base, x) for x in X], vectors), residuals)
    c = torch.tensor(c, dtype=DOUBLE)
    torch.testing.assert_close(plan.predicted(c), real_losses(base, vectors, c, list(zip(X, y, strict=True))))
    torch.testing.assert_close(plan.predicted(plan.coefficients), plan.losses)


@pytest.mark.parametrize("outputs", ["full", (1, 0)])
def test_the_error_of_a_nonlinear_network_is_of_second_order(outputs):
    model, X = mlp(2), draw(12, 3)
    tau = random_vector(model, 5)
    D = change(tangent_features(model, X, outputs=outputs), tau)
    read = (lambda f: f) if outputs == "full" else (lambda f: f[:, 1] - f[:, 0])
    scales = torch.logspace(-3, -1, 7, dtype=DOUBLE)
    with torch.no_grad():
        errors = torch.stack([(read(tau.apply(model, float(s))(X)) - read(model(X)) - s * D).norm() for s in scales])
    x, e = scales.log() - scales.log().mean(), errors.log()
    assert float(x @ e / (x @ x)) == pytest.approx(2, abs=0.05)


def test_the_change_is_the_product_with_the_jacobian_for_every_kind_of_factor():
    torch.manual_seed(0)

    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.mix, self.head = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 3)
            self.free = nn.Parameter(torch.randn(2, 3))

        def forward(self, ids):
            return self.head(torch.tanh(self.mix(self.norm(self.table(ids)))).mean(1)) * self.free.prod(0)

    model, ids = Texts().double().eval(), torch.randint(9, (7, 5), generator=torch.Generator().manual_seed(0))
    tau = random_vector(model, 3)
    theta = {name: p.detach() for name, p in model.named_parameters()}
    _, expected = jvp(lambda w: functional_call(model, w, (ids,)), (theta,), (dict(tau.tensors),))
    full = tangent_features(model, ids, outputs="full", batch_size=3)
    torch.testing.assert_close(change(full, tau), expected)
    part = TaskVector({name: t for name, t in tau.tensors.items() if name.startswith("table")})
    own = {name: theta[name] for name in part.tensors}
    _, expected = jvp(lambda w: functional_call(model, theta | w, (ids,)), (own,), (dict(part.tensors),))
    torch.testing.assert_close(change(full, part), expected)
    w = draw(21, seed=8)
    torch.testing.assert_close(float(w @ change(full, tau).flatten()), pulled(full, w).dot(tau))


@pytest.mark.parametrize("outputs", [0, "full"])
def test_kernels_alone_predict_what_jacobians_do(outputs):
    model, X, k = mlp(2), [draw(6, 3, seed=1), draw(4, 3, seed=2)], (2,) if outputs == "full" else ()
    residuals = [draw(len(x), *k, seed=3) for x in X]
    features = [tangent_features(model, x, outputs=outputs) for x in X]
    K = [[a.cross(b) for b in features] for a in features]
    weights = [sample_weights(K[i][i], r, eta=eta) for i, (r, eta) in enumerate(zip(residuals, (5.0, math.inf), strict=True))]
    vectors = [pulled(own, w) for own, w in zip(features, weights, strict=True)]
    for found, expected in zip(kernel_changes(K, weights, residuals), changes(features, vectors), strict=True):
        torch.testing.assert_close(found, expected)
    assert float(kernel_cosines(K, weights)[0, 1]) == pytest.approx(vectors[0].cosine(vectors[1]))
    torch.testing.assert_close(kernel_changes(K, weights, residuals)[1][1], residuals[1])  # training to the end, with K of full rank


def test_weights_on_samples_are_those_of_gradient_descent():
    X, Y, lam, steps, alpha = draw(6, 3), draw(6, 2, seed=1), 0.3, 4000, 1e-3
    K = torch.kron(X @ X.mT, torch.eye(2, dtype=DOUBLE))  # of the outputs of a linear layer with two
    W = torch.zeros(2, 3, dtype=DOUBLE)
    for _ in range(steps):
        W += alpha * ((Y - X @ W.mT).mT @ X - lam * W) / 6
    w = sample_weights(K, Y, eta=alpha * steps, ridge=lam).view(6, 2)
    torch.testing.assert_close(w.mT @ X, W, rtol=2e-3, atol=2e-3)


def test_negation_is_predicted_to_unlearn_and_does():
    model, X = mlp(), draw(20, 3)
    y = torch.sin(X[:, 0])
    control, tuned = draw(20, 3, seed=1), deepcopy(model)
    kept = model(control).detach().flatten() + 0.1 * draw(20, seed=2)
    optimiser = torch.optim.SGD(tuned.parameters(), lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        ((tuned(X).flatten() - y).square().sum() / 40).backward()
        optimiser.step()
    tau = TaskVector.between(model, tuned)
    D = changes([tangent_features(model, x) for x in (X, control)], [tau])
    residuals = [y - model(X).detach().flatten(), kept - model(control).detach().flatten()]
    plan = plan_merge(D, residuals, weights=[-0.1, 1.0], ridge=0.1)
    assert float(plan.coefficients) < 0
    assert plan.losses[0] > plan.start[0] > plan.alone[0]
    real = real_losses(model, [tau], plan.coefficients, [(X, y), (control, kept)])
    torch.testing.assert_close(real, plan.losses, rtol=0.1, atol=0)
    assert "The vector of task 0 is best subtracted." in plan.remarks
    assert any(remark.startswith("The loss of task 0 is predicted to rise from") for remark in plan.remarks)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_no_coefficients_are_better(nonnegative, ridge):
    omega, D, r = [2.0, 0.5, 1.0], [draw(3, 6, seed=s) for s in range(3)], [draw(6, seed=9 + s) for s in range(3)]
    plan = plan_merge(D, r, weights=omega, nonnegative=nonnegative, ridge=ridge)
    c = plan.coefficients
    assert not nonnegative or (float(c.min()) >= 0 and float((c == 0).sum()) > 0)

    def objective(c):
        losses = [(t - c @ d).square().sum() / 12 for d, t in zip(D, r, strict=True)]
        return sum(w * L for w, L in zip(omega, losses, strict=True)) + ridge * c @ c / 2

    for step in itertools.product((-1e-3, 0.0, 1e-3), repeat=3):
        other = c + torch.tensor(step, dtype=DOUBLE)
        assert objective(other.clamp_min(0) if nonnegative else other) >= objective(c) - 1e-12


def test_equal_vectors_share_what_one_would_do():
    D, r = draw(8), draw(8, seed=1)
    plan = plan_merge([torch.stack([D, D])] * 2, [r, r])
    single = plan_merge([D[None]], [r])
    torch.testing.assert_close(plan.coefficients, single.coefficients.expand(2) / 2)
    assert plan.remarks[0].startswith("Some vectors do the same to all tasks")
    none = plan_merge([torch.zeros(1, 8, dtype=DOUBLE)], [r], nonnegative=True)
    assert float(none.coefficients) == 0
    assert math.isnan(float(none.interference))
    assert "The vector of task 0 does not change the outputs of its own task." in none.remarks
    assert any("far from where" in remark for remark in plan_merge([D[None] / 50], [D]).remarks)


def test_bad_input():
    model, X, r = mlp(2), draw(4, 3), draw(4, seed=1)
    tau, D = random_vector(model, 1), draw(1, 4)
    with pytest.raises(InputError, match=r'^features: .* got the "trace" of 2; make them with outputs="full"'):
        change(tangent_features(model, X), tau)
    with pytest.raises(InputError, match=r"^features: expected the parameters of the vector in scope, .*\['0.weight', '0.bias'\]"):
        change(tangent_features(model, X, scope="2.*", outputs=0), tau)
    with pytest.raises(InputError, match=r"^w: expected 4 weights"):
        pulled(tangent_features(model, X, outputs=0), draw(5))
    with pytest.raises(InputError, match=r'^K: expected shape \(8, 8\), .*outputs="full"'):
        sample_weights(torch.eye(4, dtype=DOUBLE), draw(4, 2))
    with pytest.raises(InputError, match=r"^changes: expected one entry for each task, .* got 1 entries for 1 tasks, 2 vectors"):
        plan_merge([draw(2, 4)], [r])
    with pytest.raises(InputError, match=r"^changes\[0\]: expected shape \(1, 4\), .* got \(1, 5\)"):
        plan_merge([draw(1, 5)], [r])
    with pytest.raises(InputError, match=r"^changes\[0\]: expected finite numbers"):
        plan_merge([D * math.nan], [r])
    with pytest.raises(InputError, match=r"^weights: expected a sum of losses that is bounded below, .*; raise ridge"):
        plan_merge([D], [r], weights=[-1.0])
    with pytest.raises(InputError, match=r"^names: expected 1"):
        plan_merge([D], [r], names=["a", "b"])
    with pytest.raises(InputError, match=r"^ridge: "):
        plan_merge([D], [r], ridge=-1.0)
