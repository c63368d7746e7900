"""DINO-TRAIN against gradient descent step by step, draws of its start and of the noise, explicit inverses, and refits."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from driftway.adapt.dino_init import Settings, at_target, first_stage, weighted
from driftway.adapt.dino_train import FOLDS, LEAST, Trained, covariance, predict, train
from driftway.adapt.distribution_kernel import Rows
from driftway.adapt.frame import Frame, frame
from driftway.adapt.joint import joint
from driftway.adapt.learn import Learned
from driftway.adapt.shift import Shift
from driftway.checks import InputError
from driftway.kernels import FullyConnected
from driftway.stopping.crossfit import CLOSE
from driftway.stopping.stop import ALONE

DOUBLE = torch.float64
SETTINGS = Settings(network=FullyConnected(1, "relu", w_std=2**0.5, b_std=0.3), base=8, rank=2, steps=4, pull=0.3)
NEW = torch.randn(4, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(9))
TIMES = (0.0, 0.7, 15.0, math.inf)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, known: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(found, known, atol=tolerance, rtol=tolerance)


def shift(k: int = 1, *, labels: int = 8, sources: int = 12) -> Shift:
    n = sources + labels + 4
    X, code = normal(n, 2, seed=0), torch.tensor([1] * sources + [-1] * (labels + 4))
    y = torch.stack([X[:, 0].sin() + 0.4 * (code < 0) + j * X[:, -1] for j in range(k)], 1) + 0.3 * normal(n, k, seed=1)
    y[sources + labels :] = math.nan
    return Shift.from_domains(X, y, code)


def start(form: str = "cosine", k: int = 1, *, labels: int = 8) -> Learned:
    given = shift(k, labels=labels)
    return weighted(given, first_stage(frame(given), 1, SETTINGS), form, SETTINGS)


@pytest.fixture(scope="module")
def process() -> Learned:
    return start(k=2)


def kernels(found: Learned) -> tuple[Tensor, Tensor, int]:
    """K and Theta of the labelled rows and of NEW, in the units of the targets, and how many rows are labelled."""
    new = at_target(found, NEW)
    rows = Rows(torch.cat([found.frame.rows.X, new.X]), torch.cat([found.frame.rows.domain, new.domain]))
    pair = found.kernel.pair(rows)
    return pair.nngp, pair.ntk, len(found.frame.rows)


def naive(found: Learned, t: float) -> tuple[Tensor, Tensor]:
    """Mean, and covariance with the noise of the labels, from matrix exponentials and inverses."""
    K, Theta, n = kernels(found)
    noise = found.noise.diag()
    rate = Theta[:n, :n] @ torch.linalg.inv(noise) / n  # f' = -rate (f - y)
    unlearned = torch.zeros(n, n, dtype=DOUBLE) if t == math.inf else torch.linalg.matrix_exp(-rate * t)
    A = Theta[n:, :n] @ torch.linalg.inv(Theta[:n, :n]) @ (torch.eye(n) - unlearned)
    C = K[n:, :n] @ A.mT
    return A @ found.frame.y, K[n:, n:] + A @ (K[:n, :n] + noise) @ A.mT - C - C.mT


class TestPrediction:
    @pytest.mark.parametrize("t", TIMES)
    @pytest.mark.parametrize("form", ["product", "cosine", "centred"])
    def test_the_naive_formula(self, form: str, t: float):
        found = start(form, 2)
        own, (mean, cov) = train(found, time=t), naive(found, t)
        got = predict(own, NEW)
        close(got.mean, mean, 1e-6)
        close(covariance(own, NEW), cov, 1e-6)
        close(got.variance, covariance(own, NEW).diagonal(), 1e-9)
        close(got.noise, found.raw["noise"][0].exp())
        close(got.B, found.joint.B)

    def test_gradient_descent_from_random_starts_on_noisy_labels(self, process: Learned):
        """f = f_0 + J w with J J' = Theta and f_0 ~ N(0, K), w from 0 by steps on (1/2n) sum_i (f_i - y_i - e_i)^2 / D_i."""
        K, Theta, n = kernels(process)
        t, steps, draws = 15.0, 400, 4000
        generator = torch.Generator().manual_seed(0)

        def root(matrix: Tensor) -> Tensor:
            values, V = torch.linalg.eigh(matrix)
            return V * values.clamp_min(0).sqrt()

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=DOUBLE, generator=generator)

        J, y, D = root(Theta), process.frame.y[:, :1], process.noise[:, None]
        f0, e = root(K) @ randn(len(K), draws), D.sqrt() * randn(n, draws)

        def descend(f0: Tensor, y: Tensor, steps: int) -> Tensor:
            w = torch.zeros(len(K), f0.shape[1], dtype=DOUBLE)
            for _ in range(steps):
                w = w - t / steps * J[:n].mT @ ((f0[:n] + J[:n] @ w - y) / D) / n
            return (f0 + J @ w)[n:]

        own = train(process, time=t)
        mean, cov = predict(own, NEW).mean[:, 0], covariance(own, NEW)
        errors = [float((descend(torch.zeros(len(K), 1, dtype=DOUBLE), y, count)[:, 0] - mean).abs().max()) for count in (1000, 2000)]
        assert errors[1] < 0.02
        assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)  # the error of steps is of first order
        f, spread = descend(f0, y + e, steps), cov.diagonal().sqrt()
        error = 4 / draws**0.5
        assert float(((f.mean(1) - mean) / spread).abs().max()) < error + 0.03
        assert float(((f.cov() - cov) / (spread[:, None] * spread)).abs().max()) < error * 2**0.5 + 0.03
        alone = descend(f0, y.expand(-1, draws), steps)  # the noise of the labels is part of the variance
        assert float(((alone.cov() - cov) / (spread[:, None] * spread)).abs().max()) > 0.1

    def test_nothing_has_happened_at_time_zero(self, process: Learned):
        K, _, n = kernels(process)
        own = train(process, time=0)
        assert not predict(own, NEW).mean.any()
        close(covariance(own, NEW), K[n:, n:], 1e-12)
        close(own.residuals, process.frame.y[-8:])
        close(own.spread, K.diagonal()[n - 8 : n] + process.noise[-8:])

    def test_the_end_goes_through_the_labels(self, process: Learned):
        given = shift(2)
        own, target = train(process, time=math.inf), given.labelled & (given.domain == 0)
        y = predict(own, given.X[target]).mean * process.frame.y_scale + process.frame.y_mean
        close(y, given.y[target], 1e-6)
        close(predict(own, given.X[target]).variance, process.noise[-8:], 1e-6)  # f_0 is forgotten, the noise of the labels is not

    def test_predictions_are_linear_in_the_targets(self, process: Learned):
        a, b = normal(20, 2, seed=5), normal(20, 2, seed=6)
        means = []
        for y in (a, b, 2 * a - 3 * b):
            own = replace(process, frame=replace(process.frame, y=y))
            means.append(predict(train(own, time=15.0), NEW).mean)
        close(means[2], 2 * means[0] - 3 * means[1])

    def test_blocks_of_rows_do_not_show(self, process: Learned):
        new, own, some = normal(1030, 2, seed=4), train(process, time=3.0), torch.tensor([0, 1023, 1024, 1029])
        whole, few = predict(own, new), predict(own, new[some])
        close(whole.mean[some], few.mean)
        close(whole.variance[some], few.variance)


class TestHeld:
    @pytest.mark.parametrize("t", TIMES)
    @pytest.mark.parametrize("labels", [1, 13])
    def test_residuals_and_variances_are_those_of_refits(self, t: float, labels: int):
        """Each fold is taken out, and the rest is trained as long for each row: the loss is a mean."""
        found = start("cosine", 2, labels=labels)
        own, rows, n = train(found, time=t), found.frame, 12 + labels
        seen = torch.zeros(labels, dtype=torch.bool)
        for fold in range(min(FOLDS, labels)):
            out = torch.arange(12, n)[fold::FOLDS]
            kept = torch.ones(n, dtype=torch.bool).index_fill(0, out, False)
            less = replace(rows, rows=rows.rows[kept], y=rows.y[kept], weight=rows.weight[kept], target=labels - len(out))
            process = replace(found, frame=less, noise=found.noise[kept])
            refit = predict(train(process, time=t * int(kept.sum()) / n), rows.rows.X[out] * rows.x_scale + rows.x_mean)
            close(own.residuals[out - 12], rows.y[out] - refit.mean, 1e-6)
            close(own.spread[out - 12], refit.variance + found.noise[out], 1e-6)
            seen[out - 12] = True
        assert seen.all()

    def test_the_mean_squared_residual_is_foreseen_by_the_spread(self):
        """For targets that are drawn from the process."""
        found = start(labels=13)
        rows = found.frame
        S = found.kernel.gram(rows.rows) + found.noise.diag()
        y = torch.linalg.cholesky(S) @ normal(25, 400, seed=7)
        zero, one = torch.zeros(400, dtype=DOUBLE), torch.ones(400, dtype=DOUBLE)
        for t in TIMES:
            own = train(replace(found, frame=replace(rows, y=y, y_mean=zero, y_scale=one)), time=t)
            assert float((own.residuals.square().mean(1) / own.spread).mean()) == pytest.approx(1, abs=0.1)


class TestTime:
    @pytest.mark.parametrize("rule", ALONE)
    def test_every_rule_that_stands_alone(self, rule: str):
        own = train(start(), rule=rule)
        assert own.rule == rule
        assert own.time >= 0
        assert predict(own, NEW).mean.isfinite().all()
        close(predict(own, NEW).mean, predict(train(own.start, time=own.time), NEW).mean)

    def test_cross_validation_is_near_the_best_of_a_grid(self):
        """With 8 labels each is a fold of its own. A path is as long in time, not for each row."""
        found = start()
        chosen, root = train(found), found.noise[-8:, None].sqrt()

        def loss(t: float) -> float:
            return float((train(found, time=t * 20 / 19).residuals / root).square().mean())

        grid = [loss(float(t)) for t in torch.logspace(-2, 5, 40)]
        assert loss(chosen.time) <= (1 + 1.5 * CLOSE) * min(grid)
        assert chosen.time > 0

    def test_few_labels_take_the_likelihood(self):
        for labels in (0, LEAST - 1, LEAST):
            rule = train(start(labels=labels)).rule
            assert rule == ("cross_validation" if labels >= LEAST else "marginal_likelihood")

    def test_a_time_that_is_given(self, process: Learned):
        own = train(process, time=3)
        assert (own.rule, own.time) == ("given", 3.0)
        assert train(process, rule="sure", time=math.inf).rule == "given"

    @pytest.mark.parametrize("labels", [1, 8])
    def test_constant_targets_leave_the_time_open(self, labels: int):
        found = start(labels=labels)
        flat = replace(found, frame=replace(found.frame, y=torch.zeros_like(found.frame.y)))
        for rule in ALONE:
            own = train(flat, rule=rule)
            assert own.time == 12 + labels
            assert not predict(own, NEW).mean.any()
            assert predict(own, NEW).variance.isfinite().all()

    def test_errors(self, process: Learned):
        with pytest.raises(InputError, match=r"rule: expected one of rademacher, .*, cross_validation, got 'oracle'"):
            train(process, rule="oracle")
        for time in (-1.0, math.nan, -math.inf):
            with pytest.raises(InputError, match="time: expected a finite number >= 0, got"):
                train(process, time=time)


class TestEdges:
    def test_no_labelled_row_of_the_target(self):
        own = train(start(labels=0))
        assert (own.residuals.shape, own.spread.shape) == ((0, 1), (0,))
        assert predict(own, NEW).mean.isfinite().all()

    @pytest.mark.parametrize("y", [0.0, 1.3])
    @pytest.mark.parametrize("t", [None, 0.0, 2.0, math.inf])
    def test_one_row(self, y: float, t: float | None):
        """There is nothing to foresee it by."""
        found = start()
        one = torch.ones(1, dtype=DOUBLE)
        rows = Frame(found.frame.rows[-1:], y * one[None], one, 1, found.frame.x_mean, found.frame.x_scale, 0 * one, one)
        K = found.kernel.gram(rows.rows)
        alone = replace(found, frame=rows, noise=0.1 * one, joint=joint(K, 0.1 * one, rows.y, target=1))
        own = train(alone, time=t)
        close(own.residuals, rows.y)
        close(own.spread, K[0] + 0.1)
        assert predict(own, NEW).mean.isfinite().all()

    def test_equal_rows_with_other_labels(self):
        given = shift()
        X = given.X.clone()
        X[given.domain == 0] = X[-1].clone()
        given = replace(given, X=X)
        own = train(first_stage(frame(given), 1, SETTINGS), time=math.inf)
        target = given.y[given.labelled & (given.domain == 0)]
        mean = predict(own, X[-1:]).mean * own.start.frame.y_scale + own.start.frame.y_mean
        close(mean[0], target.mean(0), 1e-6)  # what Theta does not see is never learned

    def test_weights_of_rows_speed_them_up(self):
        """Weight w is noise of 1/w of the variance: the flow is w times as fast."""
        given = shift()
        found = first_stage(frame(given), 1, SETTINGS)
        heavy = replace(found, noise=found.noise / 3)
        close(predict(train(found, time=6.0), NEW).mean, predict(train(heavy, time=2.0), NEW).mean)

    def test_it_keeps_its_start(self, process: Learned):
        own = train(process)
        assert isinstance(own, Trained)
        assert own.start is process
        assert not own.K.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_agrees():
    answers = []
    for device in ("cpu", "cuda"):
        given = shift(2)
        given = replace(given, **{name: getattr(given, name).to(device) for name in ("X", "y", "domain", "weight")})
        own = train(weighted(given, first_stage(frame(given), 1, SETTINGS), "centred", SETTINGS))
        found = predict(own, NEW.to(device))
        assert found.mean.device.type == own.residuals.device.type == device
        answers.append(torch.cat([found.mean.flatten(), found.variance, own.residuals.flatten(), own.spread]).cpu())
    close(*answers, 1e-5)
