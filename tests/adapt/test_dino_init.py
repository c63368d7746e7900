"""DINO-INIT: its stages, and its predictions against explicit inverses and the processes that it nests."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from driftway.adapt.dino_init import (
    Settings,
    at_target,
    base_samples,
    covariance,
    first_stage,
    predict,
    second_stage,
    weighted,
)
from driftway.adapt.distribution_kernel import FORMS, Correlation, Domains, Embedded, Rows
from driftway.adapt.family import constant, embedded
from driftway.adapt.frame import frame
from driftway.adapt.joint import joint
from driftway.adapt.learn import Learned, begin, learn
from driftway.adapt.shift import Shift
from driftway.kernels import FullyConnected

DOUBLE = torch.float64
NET = FullyConnected(1, "relu", w_std=2**0.5, b_std=0.3)
SETTINGS = Settings(network=NET, base=8, rank=2, steps=5, pull=0.3)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, known: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, known, atol=tolerance, rtol=tolerance)


def shift(k: int = 1, *, d: int = 3, sources: int = 1) -> Shift:
    """12 rows of each source, 5 labelled and 9 other rows of the target."""
    n = 12 * sources + 14
    code = torch.cat([torch.arange(1, sources + 1).repeat_interleave(12), torch.full((14,), -1)])
    X = normal(n, d, seed=0) + 0.5 * (code < 0)[:, None]
    y = torch.stack([X[:, 0].sin() + j * X[:, -1] for j in range(k)], 1) + 0.1 * normal(n, k, seed=1)
    y[-9:] = math.nan
    return Shift.from_domains(X, y, code)


def rebuilt(found: Learned, domains: Domains) -> Learned:
    """The same parameters with another k_P."""
    k = replace(found.kernel, domains=domains)
    rows = found.frame
    return replace(found, kernel=k, joint=joint(k.gram(rows.rows), found.noise, rows.y, target=rows.target))


@pytest.fixture(scope="module")
def stage() -> Learned:
    return first_stage(frame(shift()), 1, SETTINGS)


class TestStages:
    def test_the_first_learns_all_and_the_second_holds_the_relevance(self, stage: Learned):
        assert bool((stage.raw["relevance"] != 0).all())
        found = weighted(shift(), stage, "centred", SETTINGS)
        assert torch.equal(found.raw["relevance"], stage.raw["relevance"])
        for name in ("scale", "offset", "noise"):
            assert not torch.equal(found.raw[name], stage.raw[name])
        assert found.raw["A"].any()
        assert "lam" not in found.raw

    def test_the_second_starts_where_the_first_ended(self, stage: Learned):
        b = base_samples(shift(), stage, SETTINGS)
        names = ("relevance", "scale", "offset", "noise")
        known = learn(stage.frame, NET, embedded(b, "cosine"), {name: stage.raw[name] for name in names}, frozen=("relevance",),
                      kappa=SETTINGS.kappa, steps=5)  # fmt: skip
        close(second_stage(stage, embedded(b, "cosine"), SETTINGS).joint.A, known.joint.A)

    def test_settings_reach_the_learning(self):
        rows = frame(shift())
        for change in ({"kappa": 1.0}, {"strength": 3.0}, {"steps": 1}):
            found, plain = first_stage(rows, 1, replace(SETTINGS, **change)), first_stage(rows, 1, SETTINGS)
            assert not torch.equal(found.raw["relevance"], plain.raw["relevance"])
        few = first_stage(rows, 1, replace(SETTINGS, steps=1))
        assert few.evaluations < first_stage(rows, 1, SETTINGS).evaluations

    @pytest.mark.parametrize("form", FORMS)
    def test_without_pull_it_is_the_fixed_embedding(self, stage: Learned, form: str):
        free = weighted(shift(), stage, form, replace(SETTINGS, pull=0.0))
        fixed = second_stage(stage, embedded(base_samples(shift(), stage, SETTINGS), form), SETTINGS)
        new = normal(6, 3, seed=3)
        for a, b in zip(predict(free, new).__dict__.values(), predict(fixed, new).__dict__.values(), strict=True):
            close(a, b)


class TestBaseSamples:
    def test_all_rows_of_a_small_domain_labelled_or_not(self, stage: Learned):
        given = shift()
        b = base_samples(given, stage, replace(SETTINGS, base=100))
        assert [int((b.rows.domain == d).sum()) for d in (0, 1)] == [14, 12]
        known = (given.X - stage.frame.x_mean) / stage.frame.x_scale
        assert sorted(b.rows.X.round(decimals=9).tolist()) == sorted(known.round(decimals=9).tolist())
        pair = NET.kernels(b.rows.X * stage.kernel.relevance)
        close(b.F @ b.F.mT, pair.nngp)
        close(b.T @ b.T.mT, pair.ntk)

    def test_at_most_so_many_of_each_by_the_seed(self, stage: Learned):
        one, two, other = (base_samples(shift(), stage, replace(SETTINGS, base=5, seed=seed)) for seed in (0, 0, 1))
        assert [int((one.rows.domain == d).sum()) for d in (0, 1)] == [5, 5]
        assert len(one.rows.X.unique(dim=0)) == 10
        assert torch.equal(one.rows.X, two.rows.X)
        assert not torch.equal(one.rows.X, other.rows.X)

    @pytest.mark.parametrize("integers", [False, True])
    def test_the_order_of_the_rows_does_not_matter(self, stage: Learned, integers: bool):
        """Among whole numbers many rows have equal sums, and equal rows may have other weights."""
        given = shift(d=4)
        given = replace(given, X=(1.5 * given.X).round() if integers else given.X, weight=torch.linspace(0.5, 2, 26, dtype=DOUBLE))
        stage = first_stage(frame(given), 1, replace(SETTINGS, steps=1))
        order = torch.randperm(26, generator=torch.Generator().manual_seed(3))
        one, two = (base_samples(own, stage, SETTINGS) for own in (given, given.select(order)))
        assert torch.equal(one.rows.X, two.rows.X)
        assert torch.equal(one.weight, two.weight)

    def test_rows_without_weight_are_no_samples(self, stage: Learned):
        given = shift()
        weight = torch.ones(26, dtype=DOUBLE)
        weight[::2] = 0
        b = base_samples(replace(given, weight=weight), stage, replace(SETTINGS, base=100))
        assert len(b.rows) == 13
        assert bool((b.weight == 1).all())

    def test_the_global_generator_is_left_alone(self, stage: Learned):
        state = torch.get_rng_state()
        base_samples(shift(), stage, SETTINGS)
        assert torch.equal(state, torch.get_rng_state())


class TestPrediction:
    @pytest.mark.parametrize("k", [1, 2])
    @pytest.mark.parametrize("form", [None, *FORMS])
    def test_explicit_inverse(self, k: int, form: str | None):
        given = shift(k)
        found = first_stage(frame(given), 1, SETTINGS)
        if form is not None:
            found = weighted(given, found, form, SETTINGS)
        new = normal(6, 3, seed=3)
        rows, labelled = Rows((new - given.X.mean(0)) / given.X.std(0, correction=0), torch.zeros(6, dtype=torch.long)), found.frame.rows
        inverse = torch.linalg.inv(found.kernel.gram(labelled) + found.noise.diag())
        cross = found.kernel.cross(rows, labelled)
        got = predict(found, new)
        close(got.mean, cross @ inverse @ found.frame.y, 1e-9)
        known = found.kernel.gram(rows) - cross @ inverse @ cross.mT
        close(got.variance, known.diagonal(), 1e-9)
        close(covariance(found, new), known, 1e-9)
        close(got.noise, found.raw["noise"][0].exp())
        close(got.B, (found.frame.y.mT @ inverse @ found.frame.y + 2 * torch.eye(k)) / (17 + 2), 1e-9)

    def test_blocks_of_rows_do_not_show(self, stage: Learned):
        new = normal(2100, 3, seed=4)
        whole, some = predict(stage, new), torch.tensor([0, 1023, 1024, 2047, 2048, 2099])
        few = predict(stage, new[some])
        close(whole.mean[some], few.mean, 1e-12)
        close(whole.variance[some], few.variance, 1e-12)

    def test_rows_of_the_target_in_its_units(self, stage: Learned):
        given = shift()
        rows = at_target(stage, given.X)
        assert not rows.domain.any()
        close(rows.X.mean(0), torch.zeros(3, dtype=DOUBLE))

    @pytest.mark.parametrize("form", FORMS)
    def test_the_order_of_the_rows_does_not_matter(self, form: str):
        given, new = shift(sources=2), normal(5, 3, seed=4)
        order = torch.randperm(len(given.X), generator=torch.Generator().manual_seed(1))
        answers = []
        for own in (given, given.select(order)):
            found = predict(weighted(own, first_stage(frame(own), 2, SETTINGS), form, SETTINGS), new)
            answers.append(torch.cat([found.mean[:, 0], found.variance]))
        close(*answers, 1e-8)


class TestNested:
    """At the same parameters, to rounding."""

    NEW = normal(6, 3, seed=3)

    def same(self, one: Learned, two: Learned) -> None:
        a, b = predict(one, self.NEW), predict(two, self.NEW)
        close(a.mean, b.mean)
        close(a.variance, b.variance)
        close(one.joint.log_conditional(), two.joint.log_conditional())

    def test_no_shift_is_the_pooled_process(self, stage: Learned):
        """Equal base samples in both domains."""
        pooled = rebuilt(stage, Correlation(torch.ones(1, dtype=DOUBLE)))
        b = base_samples(shift(), stage, SETTINGS)
        target = b.rows.domain == 0
        X, F, T = (torch.cat([part[target], part[target]]) for part in (b.rows.X, b.F, b.T))
        equal = replace(b, rows=Rows(X, torch.arange(2).repeat_interleave(8)), F=F, T=T, weight=torch.ones(16, dtype=DOUBLE))
        for form in ("cosine", "centred", "exponential"):
            self.same(rebuilt(stage, Embedded(equal, form, torch.tensor(0.7, dtype=DOUBLE))), pooled)

    def test_no_correlation_is_the_target_alone(self, stage: Learned):
        found, rows = rebuilt(stage, Correlation(torch.zeros(1, dtype=DOUBLE))), stage.frame
        own = rows.rows.domain == 0
        alone = replace(found, frame=replace(rows, rows=rows.rows[own], y=rows.y[own], weight=rows.weight[own]), noise=found.noise[own],
                        joint=joint(found.kernel.gram(rows.rows[own]), found.noise[own], rows.y[own], target=5))  # fmt: skip
        a, b = predict(found, self.NEW), predict(alone, self.NEW)
        close(a.mean, b.mean)
        close(a.variance, b.variance)

    def test_uniform_weights_are_the_adaptive_transfer_process(self, stage: Learned):
        b = base_samples(shift(), stage, SETTINGS)
        gram = NET.kernel("nngp", b.rows.X * stage.kernel.relevance)
        t, s = b.rows.domain == 0, b.rows.domain == 1
        lam = gram[s][:, t].mean() / (gram[s][:, s].mean() * gram[t][:, t].mean()).sqrt()
        self.same(rebuilt(stage, Embedded(b, "cosine")), rebuilt(stage, Correlation(lam[None])))

    def test_predictions_are_linear_in_the_targets(self, stage: Learned):
        found = rebuilt(stage, Embedded(base_samples(shift(), stage, SETTINGS), "centred", torch.tensor(0.7, dtype=DOUBLE)))
        a, b = normal(17, 1, seed=5), normal(17, 1, seed=6)
        means = []
        for y in (a, b, 2 * a - 3 * b):
            own = replace(found, joint=joint(found.kernel.gram(found.frame.rows), found.noise, y, target=5))
            means.append(predict(own, self.NEW).mean)
        close(means[2], 2 * means[0] - 3 * means[1])

    def test_correlations_that_are_given_are_not_learned(self):
        found = first_stage(frame(shift(sources=2)), 2, SETTINGS, constant(2, 1.0))
        assert found.kernel.domains.lam.tolist() == [1.0, 1.0]
        assert set(found.raw) == set(begin(found.frame, 2))
