"""The joint process against scipy's densities, explicit inverses and refits."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from driftway.adapt.joint import PRIOR, Joint, joint
from driftway.checks import InputError
from driftway.kernels import posterior

DOUBLE = torch.float64
S, M, Q = 6, 4, 3  # rows of the sources, labelled rows of the target, new rows
every_k = pytest.mark.parametrize("k", [1, 3])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def kernels(rank: int = 15, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """K_ll, K_*l and K_** of one process."""
    J = normal(S + M + Q, rank, seed=seed) / rank**0.5
    K, n = J @ J.mT, S + M
    return K[:n, :n], K[n:, :n], K[n:, n:]


def noises() -> Tensor:
    return torch.linspace(0.1, 0.5, S + M, dtype=DOUBLE)


def close(found: Tensor, known: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, known, atol=tolerance, rtol=tolerance)


def total(K: Tensor, s: Tensor) -> Tensor:
    return K + s.diag()


def blocks(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ss, ts, tt."""
    return matrix[:S, :S], matrix[S:, :S], matrix[S:, S:]


def naive(K: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """mu_t and C_t of the labels of the target, with an explicit inverse (Cao et al., 2010)."""
    ss, ts, tt = blocks(total(K, s))
    inverse = torch.linalg.inv(ss)
    return ts @ inverse @ y[:S], tt - ts @ inverse @ ts.mT


class TestDensity:
    @every_k
    def test_all_rows_are_matrix_normal(self, k: int):
        (K, _, _), s, y = kernels(), noises(), normal(S + M, k, seed=1)
        found = joint(K, s, y, target=M)
        law = stats.matrix_normal(rowcov=total(K, s).numpy(), colcov=found.B.numpy())
        assert float(found.log_likelihood(torch.ones(S + M, dtype=DOUBLE))) == pytest.approx(law.logpdf(y.numpy()), abs=1e-10)

    @every_k
    def test_the_conditional_is_that_of_the_naive_formula(self, k: int):
        (K, _, _), s, y = kernels(), noises(), normal(S + M, k, seed=1)
        found = joint(K, s, y, target=M)
        mu, C = naive(K, s, y)
        law = stats.multivariate_normal((mu.flatten()).numpy(), torch.kron(C, found.B).numpy())
        assert float(found.log_conditional()) == pytest.approx(law.logpdf(y[S:].flatten().numpy()), abs=1e-10)
        difference = y[S:] - mu
        fit = torch.trace(torch.linalg.inv(found.B) @ difference.mT @ torch.linalg.inv(C) @ difference)
        by_hand = -(fit + k * C.logdet() + M * found.B.logdet() + M * k * math.log(2 * math.pi)) / 2
        close(found.log_conditional(), by_hand)

    @every_k
    def test_the_covariance_of_the_outputs_is_the_posterior_mode(self, k: int):
        (K, _, _), s, y = kernels(), noises(), normal(S + M, k, seed=1)
        found, quadratic = joint(K, s, y, target=M).B, y.mT @ torch.linalg.inv(total(K, s)) @ y
        close(found, (quadratic + PRIOR * torch.eye(k)) / (S + M + PRIOR))
        B = found.clone().requires_grad_()
        density = -((S + M + PRIOR) * B.logdet() + torch.trace(torch.linalg.inv(B) @ (quadratic + PRIOR * torch.eye(k)))) / 2
        (slope,) = torch.autograd.grad(density, B)
        close(slope, torch.zeros(k, k, dtype=DOUBLE))

    @every_k
    @pytest.mark.parametrize("kappa", [0.0, 0.3])
    def test_the_sources_can_count_less(self, k: int, kappa: float):
        """Log p(Y_t | Y_s) + kappa log p(Y_s), with the B of these counts."""
        (K, _, _), s, y = kernels(), noises(), normal(S + M, k, seed=1)
        mu, C = naive(K, s, y)
        ss, _, _ = blocks(total(K, s))
        quadratic = kappa * y[:S].mT @ torch.linalg.inv(ss) @ y[:S] + (y[S:] - mu).mT @ torch.linalg.inv(C) @ (y[S:] - mu)
        B = ((quadratic + PRIOR * torch.eye(k)) / (kappa * S + M + PRIOR)).numpy()
        known = kappa * stats.matrix_normal(rowcov=ss.numpy(), colcov=B).logpdf(y[:S].numpy())
        known += stats.matrix_normal(mean=mu.numpy(), rowcov=C.numpy(), colcov=B).logpdf(y[S:].numpy())
        counts = torch.cat([torch.full((S,), kappa, dtype=DOUBLE), torch.ones(M, dtype=DOUBLE)])
        assert float(joint(K, s, y, target=M).log_likelihood(counts)) == pytest.approx(float(known), abs=1e-10)

    def test_gradients_pass(self):
        (K, _, _), s, y = kernels(), noises(), normal(S + M, 2, seed=1)
        counts = torch.cat([torch.full((S,), 0.3, dtype=DOUBLE), torch.ones(M, dtype=DOUBLE)])
        w = torch.linspace(0.5, 2, S + M, dtype=DOUBLE)

        def answers(scale: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            found = joint(scale * K, s, y, target=M, weight=w)
            return found.log_likelihood(counts), found.log_conditional()

        assert torch.autograd.gradcheck(answers, [t.requires_grad_() for t in (torch.tensor(1.3, dtype=DOUBLE), s, y)])

    def test_sources_that_tell_nothing_change_nothing_but_the_scale(self):
        (K, C, _), s, y = kernels(), noises(), normal(S + M, 1, seed=1)
        K[S:, :S] = K[:S, S:] = C[:, :S] = 0
        both, alone = joint(K, s, y, target=M), joint(K[S:, S:], s[S:], y[S:], target=M)
        close(both.mean(C), alone.mean(C[:, S:]))
        close(both.variance(C, torch.ones(Q, dtype=DOUBLE)), alone.variance(C[:, S:], torch.ones(Q, dtype=DOUBLE)))
        close(both.leave_one_out()[0], alone.leave_one_out()[0])
        law = stats.multivariate_normal(cov=(float(both.B) * total(K, s)[S:, S:]).numpy())
        assert float(both.log_conditional()) == pytest.approx(law.logpdf(y[S:, 0].numpy()), abs=1e-10)


class TestPrediction:
    @every_k
    def test_the_posterior_is_that_of_the_explicit_inverse(self, k: int):
        (K, C, T), s, y = kernels(), noises(), normal(S + M, k, seed=1)
        found, inverse = joint(K, s, y, target=M), torch.linalg.inv(total(K, s))
        close(found.mean(C), C @ inverse @ y)
        close(found.covariance(C, T), T - C @ inverse @ C.mT)
        close(found.variance(C, T.diagonal()), found.covariance(C, T).diagonal())
        plain = posterior(K, y, noise=s)
        close(found.mean(C), plain.mean(C))
        close(found.covariance(C, T), plain.covariance(C, T))

    def test_predictions_are_linear_in_the_targets(self):
        (K, C, _), s = kernels(), noises()
        a, b = normal(S + M, 2, seed=1), normal(S + M, 2, seed=2)
        mean = {name: joint(K, s, y, target=M).mean(C) for name, y in (("a", a), ("b", b), ("both", 3 * a - 0.5 * b))}
        close(mean["both"], 3 * mean["a"] - 0.5 * mean["b"])

    def test_the_order_within_a_domain_changes_nothing(self):
        (K, C, T), s, y = kernels(), noises(), normal(S + M, 2, seed=1)
        order = torch.tensor([3, 0, 5, 1, 4, 2, 8, 6, 9, 7])
        one, two = joint(K, s, y, target=M), joint(K[order][:, order], s[order], y[order], target=M)
        close(one.mean(C), two.mean(C[:, order]))
        close(one.covariance(C, T), two.covariance(C[:, order], T))
        close(one.log_conditional(), two.log_conditional())
        close(one.leave_one_out()[0][order[S:] - S], two.leave_one_out()[0])

    def test_equal_rows_with_other_labels_are_their_mean_with_half_the_noise(self):
        (K, C, T), s, y = kernels(), torch.full((S + M,), 0.2, dtype=DOUBLE), normal(S + M, 1, seed=1)
        twice = [*range(S + M), S + M - 1]
        found = joint(K[twice][:, twice], torch.cat([s, s[-1:]]), torch.cat([y, y[-1:] + 3]), target=M + 1)
        s[-1], y[-1] = 0.1, y[-1] + 1.5
        known = joint(K, s, y, target=M)
        close(found.mean(C[:, twice]), known.mean(C))
        close(found.covariance(C[:, twice], T), known.covariance(C, T))


@every_k
def test_leave_one_out_is_a_refit_without_the_row(k: int):
    (K, _, _), s, y = kernels(), noises(), normal(S + M, k, seed=1)
    residuals, variance = joint(K, s, y, target=M).leave_one_out()
    assert (residuals.shape, variance.shape) == ((M, k), (M,))
    for i in range(M):
        others = torch.arange(S + M) != S + i
        refit = joint(K[others][:, others], s[others], y[others], target=M - 1)
        cross = K[S + i, others][None]
        close(residuals[i], y[S + i] - refit.mean(cross)[0])
        close(variance[i], refit.variance(cross, K[S + i, S + i][None])[0] + s[S + i])


class TestWeights:
    TIMES = torch.tensor([1, 3, 1, 1, 2, 1, 2, 1, 1, 4])

    def pair(self, k: int) -> tuple[Joint, Joint, Tensor, Tensor]:
        """Weighted, and with rows repeated; K_*l of either, which end in the same rows of the target."""
        (K, C, _), s, y = kernels(), noises(), normal(S + M, k, seed=1)
        rows = torch.arange(S + M).repeat_interleave(self.TIMES)
        repeated = joint(K[rows][:, rows], s[rows], y[rows], target=int(self.TIMES[S:].sum()))
        return joint(K, s, y, target=M, weight=self.TIMES.double()), repeated, C, C[:, rows]

    @every_k
    def test_a_weighted_row_is_as_many_rows_with_its_label(self, k: int):
        weighted, repeated, C, D = self.pair(k)
        close(weighted.B, repeated.B, 1e-9)
        close(weighted.mean(C), repeated.mean(D), 1e-9)
        close(weighted.variance(C, C.new_ones(Q)), repeated.variance(D, C.new_ones(Q)), 1e-9)
        close(weighted.log_conditional(), repeated.log_conditional(), 1e-9)
        for kappa in (0.0, 0.3, 1.0):
            few, many = (torch.cat([torch.full((len(one.y) - one.target,), kappa, dtype=DOUBLE), torch.ones(one.target, dtype=DOUBLE)])
                         for one in (weighted, repeated))  # fmt: skip
            close(weighted.log_likelihood(few), repeated.log_likelihood(many), 1e-9)

    def test_left_out_is_the_row_with_all_its_weight(self):
        weighted, repeated, _, _ = self.pair(2)
        last, rows = int(self.TIMES[-1]), len(repeated.y)
        S_ = repeated.factor.L @ repeated.factor.L.mT
        seen = slice(0, rows - last)
        gain = S_[-1, seen] @ torch.linalg.inv(S_[seen, seen])
        residuals, variance = weighted.leave_one_out()
        close(residuals[-1], repeated.y[-1] - gain @ repeated.y[seen], 1e-9)
        close(variance[-1], S_[-1, -2] - gain @ S_[seen, -1] + repeated.noise[-1] / last, 1e-9)  # the mean of its labels


def test_no_labelled_row_of_the_target():
    (K, C, _), s, y = kernels(), noises(), normal(S + M, 2, seed=1)
    found = joint(K, s, y, target=0)
    assert float(found.log_conditional()) == 0
    assert [tuple(t.shape) for t in found.leave_one_out()] == [(0, 2), (0,)]
    close(found.mean(C), joint(K, s, y, target=M).mean(C))


def test_one_row():
    one = torch.ones(1, 1, dtype=DOUBLE)
    found = joint(one, one[0], 2 * one, target=1)
    close(found.B, 4 * one / 3)  # (2^2 / 2 + 2) / (1 + 2)
    close(found.mean(one), one)
    close(torch.stack([*found.leave_one_out()[0][0], *found.leave_one_out()[1]]), torch.tensor([2.0, 2.0], dtype=DOUBLE))


def test_errors():
    (K, _, _), s, y = kernels(), noises(), normal(S + M, 1, seed=1)
    for target in (S + M + 1, -1):
        with pytest.raises(InputError, match=f"target: expected a number from 0 to 10, the rows, got {target}"):
            joint(K, s, y, target=target)
    with pytest.raises(InputError, match="K: expected a positive semi-definite matrix"):
        joint(K - 5 * torch.eye(S + M), s, y, target=M)
    with pytest.raises(InputError, match="K: expected finite numbers"):
        joint(K * np.inf, s, y, target=M)
