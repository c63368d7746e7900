import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from driftway.checks import InputError
from driftway.kernels.infinite import FullyConnected
from driftway.kernels.predict import gradient_flow, posterior
from driftway.linalg import Spectrum, eigendecompose

DOUBLE = torch.float64
GOLDEN = json.loads((Path(__file__).parents[1] / "closed_forms" / "neural_kernels.json").read_text())["pred"]


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=keyed(seed))


def kernel(n: int, m: int, *, rank: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """K_ll, K_*l and K_** of a linear kernel with that many features."""
    J = normal(n + m, rank, seed=seed)
    K = J @ J.T / rank
    return K[:n, :n], K[n:, :n], K[n:, n:]


def test_golden_numbers_of_a_deep_network():
    gold = {name: torch.tensor(value, dtype=DOUBLE) for name, value in GOLDEN.items()}
    net, X, Z = FullyConnected(2), gold["Xtr"], gold["Xte"]
    train, cross, test = net.kernels(X), net.kernels(Z, X), net.kernels(Z)
    given = posterior(train.nngp, gold["y"], relative_noise=GOLDEN["diag_reg"])
    flow = gradient_flow(train.ntk, gold["y"], relative_ridge=GOLDEN["diag_reg"])
    ensemble = flow.covariance(cross.ntk, nngp_train=train.nngp, nngp_cross=cross.nngp, nngp_test=test.nngp)
    torch.testing.assert_close(given.mean(cross.nngp), gold["nngp_mean"], atol=1e-10, rtol=0)
    torch.testing.assert_close(given.covariance(cross.nngp, test.nngp), gold["nngp_cov"], atol=1e-10, rtol=0)
    torch.testing.assert_close(flow.mean(cross.ntk), gold["ntk_mean"], atol=1e-10, rtol=0)
    torch.testing.assert_close(ensemble, gold["ntk_cov"], atol=1e-10, rtol=0)


class TestPosterior:
    def test_evidence_is_the_normal_density_and_outputs_are_independent(self):
        K, _, _ = kernel(6, 1, rank=4)
        y, noise = normal(6, 2, seed=1), torch.linspace(0.1, 0.6, 6, dtype=DOUBLE)
        S = K + noise.diag() + 0.01 * K.diagonal().mean() * torch.eye(6)
        law = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=DOUBLE), S)
        given = posterior(K, y, noise=noise, relative_noise=0.01)
        torch.testing.assert_close(given.log_marginal_likelihood(), law.log_prob(y.T).sum())

    def test_conditioning_on_rows_one_after_another_is_conditioning_on_all(self):
        K, C, T = kernel(7, 3, rank=12)
        y, s = normal(7, seed=1), 0.3
        a, b = slice(0, 4), slice(4, 7)
        whole = posterior(K, y, noise=s)
        first = posterior(K[a, a], y[a], noise=s)
        full = torch.cat([torch.cat([K[b, b], C[:, b].T], 1), torch.cat([C[:, b], T], 1)])  # of rows b and *
        cross = torch.cat([K[b, a], C[:, a]])
        mean, cov = first.mean(cross), first.covariance(cross, full)
        second = posterior(cov[:3, :3], y[b] - mean[:3], noise=s)
        torch.testing.assert_close(mean[3:] + second.mean(cov[3:, :3]), whole.mean(C))
        torch.testing.assert_close(second.covariance(cov[3:, :3], cov[3:, 3:]), whole.covariance(C, T))
        torch.testing.assert_close(first.log_marginal_likelihood() + second.log_marginal_likelihood(), whole.log_marginal_likelihood())
        torch.testing.assert_close(whole.variance(C, T.diagonal()), whole.covariance(C, T).diagonal())

    def test_gradients_in_kernel_targets_and_noise(self):
        K, C, _ = kernel(4, 2, rank=6)
        y, s = normal(4, seed=1), torch.tensor(0.2, dtype=DOUBLE)

        def answers(scale: Tensor, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            given = posterior(scale * K, y, noise=s, relative_noise=s)
            return given.mean(scale * C), given.log_marginal_likelihood()

        leaves = [leaf.requires_grad_() for leaf in (torch.tensor(1.3, dtype=DOUBLE), y, s)]
        assert torch.autograd.gradcheck(answers, leaves)

    def test_float32_input_is_solved_in_float64(self):
        x = torch.linspace(-1, 1, 12)
        K = torch.exp(-(x[:, None] - x).square())  # condition number 1e12: float32 solves have no correct digit
        y = torch.sin(3 * x)
        exact = posterior(K.double(), y.double(), noise=1e-6)
        given = posterior(K, y, noise=1e-6)
        assert given.mean(K).dtype == torch.float32
        torch.testing.assert_close(given.mean(K).double(), exact.mean(K.double()), atol=1e-6, rtol=0)


class TestGradientFlow:
    TIMES = torch.tensor([[0.0, 0.3], [2.0, math.inf]], dtype=DOUBLE)

    def flow(self, rank: int = 9, **options):
        K, C, T = kernel(5, 3, rank=rank)
        return gradient_flow(K, normal(5, 2, seed=1), **options), K, C, T

    @pytest.mark.parametrize("ridge", [0.0, 0.4])
    @pytest.mark.parametrize("rank", [3, 9])
    def test_agrees_with_gradient_descent_on_the_weights_with_an_error_of_first_order(self, ridge: float, rank: int):
        n, m, t = 5, 3, 2.0
        J, w0, c = normal(n + m, rank, seed=2), normal(rank, 2, seed=3), normal(n + m, 2, seed=4)
        y, start = normal(n, 2, seed=5), J @ w0 + c  # f(w) = J w + c: linear in w, starting at fixed weights
        K = J @ J.T
        flow = gradient_flow(K[:n, :n], y, start=start[:n], ridge=ridge)
        mean, residual = flow.mean(K[n:, :n], t, start=start[n:]), flow.residual(t)
        errors = []
        for steps in (500, 1000):
            w = w0
            for _ in range(steps):
                w = w - t / steps * (J[:n].T @ (J[:n] @ w + c[:n] - y) + ridge * (w - w0)) / n
            f = J @ w + c
            errors.append(max((f[n:] - mean).abs().max(), (y - f[:n] - residual).abs().max()))
        assert errors[0] < 0.02
        assert errors[0] / errors[1] == pytest.approx(2, abs=0.05)

    def test_many_times_at_once_are_each_time_alone(self):
        flow, K, C, T = self.flow()
        nngp = {"nngp_train": K, "nngp_cross": C}
        mean, residual = flow.mean(C, self.TIMES), flow.residual(self.TIMES)
        cov = flow.covariance(C, self.TIMES, nngp_test=T, **nngp)
        var = flow.variance(C, self.TIMES, nngp_diagonal=T.diagonal(), **nngp)
        assert (mean.shape, residual.shape, cov.shape, var.shape) == ((2, 2, 3, 2), (2, 2, 5, 2), (2, 2, 3, 3), (2, 2, 3))
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            t = float(self.TIMES[i, j])
            torch.testing.assert_close(mean[i, j], flow.mean(C, t))
            torch.testing.assert_close(residual[i, j], flow.residual(t))
            torch.testing.assert_close(cov[i, j], flow.covariance(C, t, nngp_test=T, **nngp))
        torch.testing.assert_close(var, cov.diagonal(dim1=-2, dim2=-1))

    def test_nothing_has_happened_at_time_zero(self):
        flow, K, C, T = self.flow()
        assert torch.equal(flow.mean(C, 0), torch.zeros(3, 2, dtype=DOUBLE))
        torch.testing.assert_close(flow.residual(0), normal(5, 2, seed=1))
        torch.testing.assert_close(flow.covariance(C, 0.0, nngp_train=K, nngp_cross=C, nngp_test=T), T)

    def test_long_times_approach_the_end_at_the_rate_of_the_least_eigenvalue(self):
        flow, _, C, _ = self.flow()
        least = float(flow.mu.min())
        late = [(flow.mean(C, k / least) - flow.mean(C)).norm() for k in (10, 11, 12)]
        assert late[0] > 1e-6
        for a, b in pairwise(late):
            assert float(b / a) == pytest.approx(math.exp(-1), rel=1e-3)

    def test_the_end_is_kernel_regression(self):
        K, C, T = kernel(5, 3, rank=9)
        y = normal(5, seed=1)
        torch.testing.assert_close(gradient_flow(K, y, ridge=0.3).mean(C), posterior(K, y, noise=0.3).mean(C))
        torch.testing.assert_close(gradient_flow(K, y).mean(C), C @ torch.linalg.solve(K, y))
        # trained on all layers with the tangent kernel K and prior K is the posterior without noise
        cov = gradient_flow(K, y).covariance(C, nngp_train=K, nngp_cross=C, nngp_test=T)
        torch.testing.assert_close(cov, posterior(K, y).covariance(C, T))

    def test_times_add_up(self):
        n, s, t = 5, 0.7, 1.9
        K, C, _ = kernel(n, 3, rank=9)
        y, f0, g0 = normal(n, 2, seed=1), normal(n, 2, seed=2), normal(3, 2, seed=3)
        whole = gradient_flow(K, y, start=f0)
        first = whole.residual(s)
        second = gradient_flow(K, y, start=y - first)
        torch.testing.assert_close(second.residual(t), whole.residual(s + t))
        torch.testing.assert_close(second.mean(C, t, start=whole.mean(C, s, start=g0)), whole.mean(C, s + t, start=g0))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_what_the_kernel_does_not_see_is_never_learned(self, dtype: torch.dtype):
        n, m, rank = 40, 3, 4
        J, y = normal(n + m, rank, seed=0).to(dtype), normal(n, seed=1).to(dtype)
        K = J @ J.T
        flow = gradient_flow(K[:n, :n], y)
        w = torch.linalg.lstsq(J[:n].double(), y.double()[:, None]).solution[:, 0]
        accuracy = 1e-10 if dtype == DOUBLE else 1e-5
        assert len(flow.mu) == rank
        torch.testing.assert_close(flow.mean(K[n:, :n]).double(), J[n:].double() @ w, atol=accuracy, rtol=0)
        torch.testing.assert_close(flow.residual(math.inf).double(), y.double() - J[:n].double() @ w, atol=accuracy, rtol=0)
        zero = gradient_flow(torch.zeros(n, n, dtype=dtype), y)
        assert torch.equal(zero.residual(math.inf), y)
        assert torch.equal(zero.mean(K[n:, :n]), torch.zeros(m, dtype=dtype))

    def test_rounding_of_float32_kernels_is_not_taken_for_structure(self):
        for seed in range(10):  # the largest rounding error of the eigenvalues is as often positive as negative
            J = normal(40, 4, seed=seed).float()
            assert len(gradient_flow(J @ J.T, J[:, 0]).mu) == 4

    def test_a_spectrum_serves_as_well_and_a_truncated_one_learns_what_it_has(self):
        K, C, _ = kernel(5, 3, rank=9)
        y, spectrum = normal(5, seed=1), eigendecompose(K)
        torch.testing.assert_close(gradient_flow(spectrum, y, relative_ridge=0.1).mean(C, 2.0),
                                   gradient_flow(K, y, relative_ridge=0.1).mean(C, 2.0))  # fmt: skip
        U = spectrum.vectors[:, :2]
        torch.testing.assert_close(gradient_flow(spectrum.largest(2), y).residual(math.inf), y - U @ (U.T @ y))

    def test_slopes_in_targets_time_and_ridge(self):
        K, C, _ = kernel(5, 3, rank=9)

        def answer(y: Tensor, t: Tensor, ridge: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
            flow = gradient_flow(K, y, ridge=ridge)
            return flow.mean(C, t), flow.mean(C)

        t, ridge = torch.tensor([0.8, 0.2], dtype=DOUBLE)
        leaves = [leaf.clone().requires_grad_() for leaf in (normal(5, seed=1), t, ridge, C)]
        assert torch.autograd.gradcheck(answer, leaves)


def test_ensemble_of_trained_linearised_networks_has_the_law_of_the_kernels():
    """Networks (2/width)^(1/2) v.relu(W x / d^(1/2)), each linearised at its own weights and trained by gradient descent to t = 3."""
    n, m, d, width, nets, t, steps = 3, 2, 3, 512, 3000, 3.0, 150
    X, y = normal(n + m, d, seed=0), normal(n, seed=1)
    generator, parts = keyed(2), []
    for _ in range(nets // 300):
        W = torch.randn(300, width, d, dtype=DOUBLE, generator=generator)
        v = torch.randn(300, width, dtype=DOUBLE, generator=generator)
        z = torch.einsum("swd,id->siw", W, X) / d**0.5
        h, slope = z.relu(), (z > 0) * v[:, None]
        f = (2 / width) ** 0.5 * (h * v[:, None]).sum(-1)
        Theta = 2 / width * (h @ h.mT + slope @ slope.mT * (X @ X.T / d))
        for _ in range(steps):
            f = f - t / steps / n * (Theta[..., :n] @ (f[:, :n] - y)[..., None])[..., 0]
        parts.append(f[:, n:])
    f = torch.cat(parts)
    net = FullyConnected(1, w_std=2**0.5, b_std=0.0).kernels(X)
    K, Theta = net.nngp / 2, net.ntk / 2  # w_std^2 at both layers, where the networks above have it once
    flow = gradient_flow(Theta[:n, :n], y)
    cov = flow.covariance(Theta[n:, :n], t, nngp_train=K[:n, :n], nngp_cross=K[n:, :n], nngp_test=K[n:, n:])
    mean, spread = flow.mean(Theta[n:, :n], t), cov.diagonal().sqrt()
    error = 4 / nets**0.5
    assert ((f.mean(0) - mean) / spread).abs().max() < error + 0.01  # an ensemble mean's standard error, and steps and width
    ratio = (f.T.cov() - cov) / (spread[:, None] * spread)
    assert ratio.abs().max() < error * 2**0.5 + 0.02
    assert (cov - K[n:, n:]).abs().max() > 0.2 * spread.square().max()  # training has done something


class TestBadInput:
    K, C, _ = kernel(4, 2, rank=6)
    y = normal(4, seed=1)

    @pytest.mark.parametrize(("text", "options"), [
        ("noise: expected finite numbers >= 0, got -1.0", {"noise": -1.0}),
        (r"noise: expected one number or \(n,\), got shape \(3,\)", {"noise": torch.ones(3)}),
        (r"relative_noise: expected one number, got shape \(4,\)", {"relative_noise": torch.ones(4)}),
    ])
    def test_noise(self, text: str, options: dict):
        with pytest.raises(InputError, match=text):
            posterior(self.K, self.y, **options)

    def test_targets(self):
        with pytest.raises(InputError, match=r"y: expected 4 rows, shape \(n,\) or \(n, k\), got shape \(4, 1, 1\)"):
            posterior(self.K, self.y[:, None, None])
        with pytest.raises(InputError, match="y: expected finite numbers, got NaN or inf"):
            gradient_flow(self.K, self.y / 0)
        with pytest.raises(InputError, match=r"y: expected dtype torch.float64"):
            posterior(self.K, self.y.float())
        with pytest.raises(InputError, match=r"y: expected 4 rows, .* got shape \(3,\)"):
            gradient_flow(eigendecompose(self.K), self.y[:3])

    def test_kernel(self):
        with pytest.raises(InputError, match="Theta: expected a symmetric matrix"):
            gradient_flow(self.K.triu(), self.y)
        with pytest.raises(InputError, match="Theta: expected a matrix without gradient"):
            gradient_flow(self.K.clone().requires_grad_(), self.y)
        with pytest.raises(InputError, match="Theta: expected a spectrum with eigenvectors"):
            gradient_flow(Spectrum(torch.ones(4), 4), self.y)

    def test_start_and_time(self):
        flow = gradient_flow(self.K, self.y)
        with pytest.raises(InputError, match="got f_0 of the test rows only"):
            flow.mean(self.C, start=self.y[:2])
        with pytest.raises(InputError, match="got f_0 of the training rows only"):
            gradient_flow(self.K, self.y, start=self.y).mean(self.C)
        with pytest.raises(InputError, match=r"t: expected times >= 0, got -1.0"):
            flow.residual(-1.0)
