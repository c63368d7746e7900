"""Flow, descent and ridge in the eigenbasis, against explicit training and closed forms."""

import math

import pytest
import torch

from driftway.checks import InputError
from driftway.kernels import gradient_flow
from driftway.linalg import Spectrum, eigendecompose
from driftway.stopping import Flow, Schedule

DOUBLE = torch.float64


def problem(n=30, p=12, k=None, seed=0):
    own = torch.Generator().manual_seed(seed)
    X = torch.randn(n, p, dtype=DOUBLE, generator=own)
    return X, torch.randn(*((n,) if k is None else (n, k)), dtype=DOUBLE, generator=own)


def test_one_row_is_an_exponential():
    flow = Flow(eigendecompose(torch.tensor([[3.0]], dtype=DOUBLE)), torch.tensor([2.0], dtype=DOUBLE))
    assert float(flow.residual(0.5)) == pytest.approx(2 * math.exp(-1.5))
    assert float(flow.dof(0.5)) == pytest.approx(1 - math.exp(-1.5))
    assert float(flow.loss(0.5)) == pytest.approx(4 * math.exp(-3.0))


def test_a_diagonal_kernel_trains_each_row_alone():
    k, r = torch.tensor([4.0, 2.0, 1.0], dtype=DOUBLE), torch.tensor([1.0, -2.0, 3.0], dtype=DOUBLE)
    torch.testing.assert_close(Flow(eigendecompose(k.diag()), r).residual(1.5), r * torch.exp(-1.5 * k / 3))


@pytest.mark.parametrize("k", [None, 3])
def test_descent_is_explicit_gradient_descent_on_a_linear_model(k):
    X, r = problem(k=k)
    alpha = torch.tensor([0.3, 0.1, 0.25, 0.05, 0.2, 0.3], dtype=DOUBLE)
    w = torch.zeros(12, *r.shape[1:], dtype=DOUBLE, requires_grad=True)
    for a in alpha.tolist():
        (g,) = torch.autograd.grad((X @ w - r).square().sum() / (2 * len(X)), w)
        w = (w - a * g).requires_grad_()
    torch.testing.assert_close(Flow(eigendecompose(X @ X.T), r).descend(alpha), (r - X @ w).detach(), rtol=1e-9, atol=1e-10)


def test_descent_comes_to_flow_at_first_order_in_the_step():
    X, r = problem()
    flow = Flow(eigendecompose(X @ X.T), r)
    miss = [float((flow.descend(torch.full((m,), 2.0 / m, dtype=DOUBLE)) - flow.residual(2.0)).norm()) for m in (100, 200)]
    assert miss[0] / miss[1] == pytest.approx(2, rel=0.05)


def test_flow_and_ridge_stay_within_the_known_ratio():
    mu = torch.logspace(-6, 6, 200, dtype=DOUBLE)
    flow = Flow(Spectrum(mu, 200, torch.eye(200, dtype=DOUBLE)), torch.ones(200, dtype=DOUBLE))
    learned, penalised = 1 - flow.residual(1.0), 1 - flow.ridge(1.0)
    ratio = learned / penalised
    assert float(ratio.min()) >= 1 - 1e-9
    assert 1.298 < float(ratio.max()) <= 1.2985


def test_ridge_is_ridge_regression():
    X, r = problem(k=2)
    K = X @ X.T
    fitted = K @ torch.linalg.solve(K + 30 / 0.7 * torch.eye(30, dtype=DOUBLE), r)
    torch.testing.assert_close(Flow(eigendecompose(K), r).ridge(0.7), r - fitted)


@pytest.mark.parametrize("k", [None, 2])
def test_predictions_are_those_of_the_kernels_room(k):
    X, r = problem(k=k)
    cross, eta = problem(7, seed=1)[0] @ X.T, torch.tensor([0.0, 0.3, math.inf], dtype=DOUBLE)
    reference, flow = gradient_flow(X @ X.T, r), Flow(eigendecompose(X @ X.T), r)
    torch.testing.assert_close(flow.predict(cross, eta), reference.mean(cross, eta))
    torch.testing.assert_close(flow.residual(eta), reference.residual(eta), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(flow.predict(X @ X.T, 0.3), flow.fitted(0.3))


def test_scalars_are_those_of_the_vectors():
    X, r = problem(k=2)
    K, eta = X @ X.T, torch.tensor([0.1, 2.0], dtype=DOUBLE)
    flow = Flow(eigendecompose(K), r)
    torch.testing.assert_close(flow.loss(eta), flow.residual(eta).square().mean((1, 2)))
    learn = torch.linalg.matrix_exp(-eta[:, None, None] * K / 30)
    torch.testing.assert_close(flow.dof(eta), 30 - learn.diagonal(dim1=1, dim2=2).sum(1))


def test_a_truncated_spectrum_with_a_flat_rest_is_exact():
    own = torch.Generator().manual_seed(2)
    U = torch.linalg.qr(torch.randn(20, 20, dtype=DOUBLE, generator=own))[0]
    K = 20 * (U * torch.cat([torch.tensor([4.0, 2.0, 1.0]), torch.full((17,), 0.1)]).double()) @ U.T
    K = (K + K.T) / 2
    _, r = problem(20, k=2)
    whole, part = Flow(eigendecompose(K), r), Flow(eigendecompose(K).largest(3), r)
    eta = torch.tensor([0.5, 5.0], dtype=DOUBLE)
    for law in (Flow.residual, Flow.loss, Flow.dof, Flow.complexity):
        torch.testing.assert_close(law(part, eta), law(whole, eta))
    torch.testing.assert_close(part.predict(K[:4], eta), whole.predict(K[:4], eta))
    torch.testing.assert_close(part.risk(eta, sigma=0.3), whole.risk(eta, sigma=0.3))


def test_steins_risk_is_unbiased_and_the_true_risk_is_the_mean_error():
    X, f = problem(40, 40, seed=3)
    spectrum, own, sigma, eta = eigendecompose(X @ X.T), torch.Generator().manual_seed(4), 0.8, torch.tensor([0.2, 1.0, 8.0]).double()
    draws = [f + sigma * torch.randn(40, dtype=DOUBLE, generator=own) for _ in range(800)]
    flows = [Flow(spectrum, y) for y in draws]
    stein = torch.stack([flow.risk(eta, sigma=sigma) for flow in flows])
    error = torch.stack([(flow.fitted(eta) - f).square().mean(1) for flow in flows])
    curves = flows[0].curves(eta, sigma=sigma, truth=f)
    for estimate in (stein, error):
        z = (estimate.mean(0) - curves.risk) / (estimate.std(0) / 800**0.5)
        assert float(z.abs().max()) < 3.5
    direct = flows[0].loss(eta) + 2 * sigma**2 * flows[0].dof(eta) / 40 - sigma**2
    torch.testing.assert_close(stein[0], direct)


def test_schedules_count_what_was_walked():
    constant, listed = Schedule(0.1, 2.0), Schedule([0.0, 0.1, 0.2, 0.3])
    assert constant.eta(7) == pytest.approx(1.4)
    assert constant.steps_for(constant.eta(7)) == 7
    assert constant.steps_for(1.39) == 6
    assert constant.steps_for(math.inf) is None
    assert [listed.steps_for(eta) for eta in (0.0, 0.1, 0.29, 0.3, 9.0)] == [1, 2, 2, 3, 4]
    assert all(listed.eta(listed.steps_for(eta)) <= eta + 1e-9 for eta in (0.0, 0.1, 0.29, 0.3, 9.0))
    assert constant.epochs_for(1.4, 100, 30) == 7 / 4
    assert Schedule(0.1).steps_for(0.1 * 3) == 3  # 0.30000000000000004


def test_the_scale_of_the_mean_squared_error_is_two():
    X, r = problem()
    w = torch.zeros(12, dtype=DOUBLE, requires_grad=True)
    for _ in range(5):
        (g,) = torch.autograd.grad(torch.nn.functional.mse_loss(X @ w, r), w)
        w = (w - 0.1 * g).requires_grad_()
    flow = Flow(eigendecompose(X @ X.T), r)
    torch.testing.assert_close(flow.descend(Schedule([0.1] * 5, 2.0).alpha), (r - X @ w).detach())


def test_results_keep_the_dtype_of_the_residual():
    X, r = problem()
    flow = Flow(eigendecompose(X @ X.T), r.float())
    assert flow.residual(1.0).dtype == flow.fitted(1.0).dtype == flow.predict(X @ X.T, 1.0).dtype == torch.float32


@pytest.mark.parametrize(("call", "text"), [
    (lambda flow: flow.residual(-1.0), "eta: expected times >= 0"),
    (lambda flow: flow.predict(torch.ones(2, 3).double(), 1.0), "cross: expected 30 columns"),
    (lambda flow: Flow(flow.spectrum, flow.r[:5]), "y: expected 30 rows"),
    (lambda flow: Flow(flow.spectrum, flow.r / 0), "residual: expected finite floats, got NaN or inf"),
    (lambda flow: Flow(eigendecompose(torch.zeros(30, 30)), flow.r), "spectrum: expected a positive eigenvalue"),
    (lambda flow: Schedule(0.0), "rates: expected a finite number > 0"),
    (lambda flow: Schedule([]), "rates: expected a positive learning rate"),
    (lambda flow: Schedule([0.1]).eta(2), "steps: expected at most 1, got 2"),
])  # fmt: skip
def test_bad_input_is_named(call, text):
    X, r = problem()
    with pytest.raises(InputError) as error:
        call(Flow(eigendecompose(X @ X.T), r))
    assert text in str(error.value)
