"""Standardisation and learning: against formulas by hand, known parameters, and what must not matter."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from driftway.adapt.distribution_kernel import FORMS, Base, Correlation, DistributionKernel, Embedded, Rows, base
from driftway.adapt.family import Family, attended, constant, correlated, embedded
from driftway.adapt.frame import Frame, canonical, frame
from driftway.adapt.learn import FLOOR, PRIOR, Learned, begin, kernel, learn
from driftway.adapt.shift import Shift
from driftway.kernels import FullyConnected

DOUBLE = torch.float64
NET = FullyConnected(1, "relu", w_std=2**0.5, b_std=0.3)
FAMILIES = {"target": lambda b: constant(1, 0.0), "pooled": lambda b: constant(1, 1.0), "correlated": lambda b: correlated(1),
            **{form: lambda b, form=form: embedded(b, form) for form in FORMS},
            **{f"{form}, by row": lambda b, form=form: attended(b, form, rank=2, pull=0.3) for form in FORMS}}  # fmt: skip
some_families = pytest.mark.parametrize("name", ["correlated", "exponential", "centred, by row", "cosine, by row"])


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, known: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, known, atol=tolerance, rtol=tolerance)


def shift(sources: int = 12, labels: int = 6, unlabelled: int = 4, *, k: int = 1, d: int = 2) -> Shift:
    n = sources + labels + unlabelled
    X, code = normal(n, d, seed=0), torch.tensor([3] * sources + [-1] * (labels + unlabelled))
    X[sources:] += 0.5
    y = torch.stack([X[:, 0].sin() + 0.5 * (code < 0) + j * X[:, -1] for j in range(k)], 1) + 0.1 * normal(n, k, seed=1)
    y[sources + labels :] = math.nan
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    return Shift.from_domains(X[order], y[order], code[order])


def samples(found: Shift) -> Base:
    rows = frame(found)
    return base(NET, Rows(rows.standard(found.X), found.domain), torch.ones(found.X.shape[1], dtype=DOUBLE))


def learned(found: Shift, name: str = "correlated", **options) -> Learned:
    rows = frame(found)
    return learn(rows, NET, FAMILIES[name](samples(found)), begin(rows, found.sources), **options)


def penalty(raw: dict[str, Tensor], prior) -> Tensor:
    """-log of the normal priors, without their constants."""
    return sum((((raw[name] - mean) / spread).square().sum() / 2 for name, (mean, spread) in prior.items()), torch.zeros((), dtype=DOUBLE))


class TestFrame:
    def test_standard_with_sources_first(self):
        given = shift(k=2)
        rows = frame(given)
        assert (len(rows.rows), rows.target) == (18, 6)
        assert rows.rows.domain.tolist() == [1] * 12 + [0] * 6
        close(rows.x_mean, given.X.mean(0))
        close(rows.x_scale, given.X.std(0, correction=0))
        seen = given.y[given.labelled]
        close(rows.y_mean, seen.mean(0))
        close(rows.y_scale, seen.std(0, correction=0))
        close(rows.standard(given.X), (given.X - given.X.mean(0)) / given.X.std(0, correction=0))
        back = torch.cat([rows.rows.X * rows.x_scale + rows.x_mean, rows.y * rows.y_scale + rows.y_mean, rows.rows.domain[:, None]], 1)
        table = torch.cat([given.X, given.y, given.domain[:, None]], 1)[given.labelled]
        assert sorted(back.round(decimals=9).tolist()) == sorted(table.round(decimals=9).tolist())

    def test_several_sources_are_in_order_of_their_codes(self):
        X, y = normal(9, 2, seed=0), normal(9, seed=1)
        rows = frame(Shift.from_domains(X, y, [-5, 7, 2, 7, -5, 2, 4, 4, -5]))
        assert rows.rows.domain.tolist() == [1, 1, 2, 2, 3, 3, 0, 0, 0]

    def test_weights_are_as_many_rows(self):
        given = shift(k=2)
        times = torch.arange(len(given.X)) % 4
        one, two = frame(replace(given, weight=times.double())), frame(given.select(torch.arange(len(times)).repeat_interleave(times)))
        for name in ("x_mean", "x_scale", "y_mean", "y_scale"):
            close(getattr(one, name), getattr(two, name))
        assert float(one.weight.sum()) == len(two.rows)
        assert len(one.rows) == int((given.labelled & (times > 0)).sum())

    @pytest.mark.parametrize("kind", ["numbers", "integers", "equal rows"])
    def test_the_order_of_the_rows_does_not_matter(self, kind: str):
        """Integers tie in many combinations: they have to be told apart column by column."""
        given = shift(40, 20, 10, d=4)
        X = {"numbers": given.X, "integers": (2 * given.X).round(), "equal rows": torch.ones_like(given.X)}[kind]
        given = replace(given, X=X, weight=torch.arange(1, 71, dtype=DOUBLE))
        order = torch.randperm(70, generator=torch.Generator().manual_seed(5))
        one, two = frame(given), frame(given.select(order))
        close(one.rows.X, two.rows.X)
        close(one.y, two.y)
        close(one.weight, two.weight)

    def test_canonical_sorts_by_column_after_column(self):
        table = torch.tensor([[1.0, 4.0], [0.0, 9.0], [1.0, -2.0], [0.0, 9.0], [math.nan, 1.0]], dtype=DOUBLE)
        assert canonical(table).tolist() == [4, 1, 3, 2, 0]
        assert canonical(table[:, :1], table[:, 1:]).tolist() == [4, 1, 3, 2, 0]

    @pytest.mark.parametrize("unit", [1e-20, 1e-6, 1e6, 1e20])
    def test_units_do_not_matter(self, unit: float):
        given = shift(k=2)
        one, two = frame(given), frame(replace(given, y=unit * given.y, X=unit * given.X))
        close(one.y, two.y)
        close(one.rows.X, two.rows.X)
        close(two.y_scale, unit * one.y_scale, 0.0 if unit == 1 else 1e-9 * unit)

    def test_what_is_constant_has_scale_one(self):
        given = shift(k=2)
        X, y = given.X.clone(), given.y.clone()
        X[:, 0], y[given.labelled, 1] = 0.1, 1e9 / 7
        rows = frame(replace(given, X=X, y=y))
        assert float(rows.x_scale[0]) == float(rows.y_scale[1]) == 1
        assert float(rows.rows.X[:, 0].abs().max()) < 1e-15
        assert float(rows.y[:, 1].abs().max()) < 1e-6
        assert rows.y[:, 0].square().mean() == pytest.approx(1)

    def test_a_huge_offset_keeps_what_doubles_can_hold(self):
        given = shift()
        rows = frame(replace(given, X=given.X + 1e9))
        close(rows.rows.X, frame(given).rows.X, 1e-6)

    def test_nothing_is_written_into(self):
        given = shift()
        copies = given.X.clone(), given.y.clone()
        frame(given)
        assert torch.equal(given.X, copies[0])
        assert torch.equal(given.y.nan_to_num(7), copies[1].nan_to_num(7))


class TestObjective:
    @pytest.mark.parametrize(("name", "kappa"), [*((name, 0.3) for name in FAMILIES), ("correlated", 0.0), ("correlated", 1.0)])
    def test_is_tempered_likelihood_and_prior_by_hand(self, name: str, kappa: float):
        given = shift()
        found = learned(given, name, kappa=kappa, strength=0.7, steps=3)
        raw, rows, family = found.raw, found.frame, FAMILIES[name](samples(given))
        K = kernel(NET, family, raw).gram(rows.rows)
        s = raw["noise"].exp()[rows.rows.domain] + FLOOR * K.diagonal().mean()
        matrix, y, own = K + s.diag(), rows.y, rows.rows.domain > 0
        ss, ts, tt = matrix[own][:, own], matrix[~own][:, own], matrix[~own][:, ~own]
        mu, C = ts @ torch.linalg.solve(ss, y[own]), tt - ts @ torch.linalg.solve(ss, ts.mT)
        quadratic = kappa * (y[own] * torch.linalg.solve(ss, y[own])).sum() + ((y[~own] - mu) * torch.linalg.solve(C, y[~own] - mu)).sum()
        B = float((quadratic + 2) / (kappa * 12 + 6 + 2))
        logs = kappa * stats.multivariate_normal(cov=(B * ss).numpy()).logpdf(y[own, 0].numpy())
        logs += stats.multivariate_normal(mu[:, 0].numpy(), (B * C).numpy()).logpdf(y[~own, 0].numpy())
        prior = {key: value for key, value in {**PRIOR, **family.prior}.items() if key in raw}
        assert found.objective == pytest.approx(logs - 0.7 * float(penalty(raw, prior)), abs=1e-8)
        close(found.noise, s)

    @some_families
    def test_learning_raises_it(self, name: str):
        given = shift()
        frozen = tuple({**PRIOR, **FAMILIES[name](samples(given)).prior})
        before = learned(given, name, frozen=frozen)
        assert before.evaluations == 0
        few, many = learned(given, name, steps=3), learned(given, name, steps=20)
        assert before.objective < few.objective < many.objective + 1e-9
        assert 1 <= few.evaluations < many.evaluations or few.objective == pytest.approx(many.objective, abs=1e-4)

    @pytest.mark.parametrize("name", ["correlated", "centred", "cosine, by row"])
    def test_ends_where_no_parameter_can_improve(self, name: str):
        given = shift()
        found = learned(given, name, steps=150)
        rows, family = found.frame, FAMILIES[name](samples(given))
        prior = {key: value for key, value in {**PRIOR, **family.prior}.items() if key in found.raw}
        for key in prior:
            for sign in (-1, 1):
                moved = {**found.raw, key: found.raw[key] + sign * 0.03}
                likelihood = learn(rows, NET, family, moved, frozen=tuple(prior)).objective
                assert likelihood - float(penalty(moved, prior)) < found.objective + 1e-6

    def test_what_is_frozen_stays(self):
        given = shift()
        rows = frame(given)
        start = {**begin(rows, 1), "relevance": torch.tensor([0.3, -0.4], dtype=DOUBLE)}
        found = learn(rows, NET, correlated(1), start, frozen=("relevance", "noise"))
        assert torch.equal(found.raw["relevance"], start["relevance"])
        assert torch.equal(found.raw["noise"], start["noise"])
        assert not torch.equal(found.raw["scale"], start["scale"])
        close(found.kernel.relevance, start["relevance"].exp())
        close(found.kernel.gram(rows.rows), kernel(NET, correlated(1), found.raw).gram(rows.rows))

    def test_without_labels_of_the_target_the_sources_count_in_full(self):
        given = shift(labels=0)
        none, full = learned(given, kappa=0.0, steps=5), learned(given, kappa=1.0, steps=5)
        assert none.objective == pytest.approx(full.objective, abs=1e-9)
        assert none.frame.target == 0

    def test_a_strong_prior_holds(self):
        found = learned(shift(), strength=1e6, steps=60)
        for name, (mean, _) in {**PRIOR, "lam": (1.0, 1.0)}.items():
            close(found.raw[name], torch.full_like(found.raw[name], mean), 1e-3)

    def test_no_pull_leaves_weights_uniform(self):
        given = shift()
        b, rows = samples(given), frame(given)
        plain = learn(rows, NET, embedded(b, "cosine"), begin(rows, 1), steps=10)
        held = learn(rows, NET, attended(b, "cosine", rank=2, pull=0.0), begin(rows, 1), steps=10)
        close(held.joint.A, plain.joint.A, 1e-9)
        assert not held.raw["A"].any()
        assert not held.raw["v"].any()

    def test_a_start_is_kept_whole(self):
        """The parameters that were given, and those that a family adds, are what learning starts from."""
        given = shift()
        rows, names = frame(given), (*PRIOR, "lam")
        found = learn(rows, NET, correlated(1), {**begin(rows, 1), "lam": torch.tensor([-0.2], dtype=DOUBLE)}, frozen=names)
        close(found.kernel.domains.lam, torch.tensor([-0.2], dtype=DOUBLE).tanh())
        assert float(learn(rows, NET, correlated(1), begin(rows, 1), frozen=names).raw["lam"]) == 1

    def test_arguments_are_not_changed(self):
        given = shift()
        rows, family = frame(given), correlated(1)
        start = begin(rows, 1)
        copies = {name: value.clone() for name, value in start.items()}
        learn(rows, NET, family, start, steps=5)
        assert all(torch.equal(start[name], copies[name]) for name in copies)
        assert float(family.start["lam"]) == 1


class TestFamilies:
    def test_lam_is_the_hyperbolic_tangent(self):
        raw = {"scale": torch.zeros((), dtype=DOUBLE), "lam": torch.tensor([0.3, -2.0], dtype=DOUBLE)}
        assert torch.equal(correlated(2).make(raw).lam, raw["lam"].tanh())
        assert constant(2, 0.5).make(raw).lam.tolist() == [0.5, 0.5]

    def test_the_first_size_is_the_distance_of_the_embeddings(self):
        b = samples(shift())
        means = torch.stack([b.F[b.rows.domain == d].mean(0) for d in (0, 1)])
        for form in ("centred", "exponential"):
            close(embedded(b, form).start["size"].exp(), (means[1] - means[0]).norm())
        assert not embedded(b, "cosine").start

    def test_features_are_uncorrelated_of_unit_variance(self):
        given = shift(40, 6, 10, d=5)
        b = samples(given)
        phi = attended(b, "cosine", rank=3, pull=1.0).start["phi"]
        Z = (b.rows.X - b.rows.X.mean(0)) @ phi.mT
        close(Z.mT @ Z / len(Z), torch.eye(3, dtype=DOUBLE))

    @pytest.mark.parametrize("columns", [0, 1])
    def test_features_of_columns_that_do_not_vary(self, columns: int):
        """One column that varies gives one feature, none gives none: the weights are uniform then."""
        given = shift()
        X = torch.ones_like(given.X)
        X[:, :columns] = given.X[:, :columns]
        given = replace(given, X=X)
        start = attended(samples(given), "cosine", rank=4, pull=1.0).start
        assert [tuple(start[name].shape) for name in ("phi", "A", "v")] == [(columns, 2), (2, columns, columns), (2, columns)]
        found = learned(given, "cosine, by row", steps=5)
        assert found.joint.A.isfinite().all()

    def test_equal_base_samples_have_a_size_all_the_same(self):
        given = shift()
        rows = Rows(torch.ones(6, 2, dtype=DOUBLE), torch.arange(6) % 2)
        b = base(NET, rows, torch.ones(2, dtype=DOUBLE))
        for form in ("centred", "exponential"):
            found = learn(frame(given), NET, embedded(b, form), begin(frame(given), 1), steps=5)
            close(found.kernel.domains.kernels(frame(given).rows, frame(given).rows).nngp, torch.ones(18, 18, dtype=DOUBLE))

    def test_kernel_has_the_parameters(self):
        raw = {"relevance": torch.tensor([0.1, -0.2], dtype=DOUBLE), "scale": torch.tensor(0.3, dtype=DOUBLE),
               "offset": torch.tensor(-0.5, dtype=DOUBLE), "lam": torch.tensor([0.6], dtype=DOUBLE)}  # fmt: skip
        k = kernel(NET, correlated(1), raw)
        known = DistributionKernel(NET, raw["relevance"].exp(), Correlation(raw["lam"].tanh()), raw["scale"].exp(), raw["offset"].exp())
        rows = Rows(normal(5, 2, seed=0), torch.tensor([0, 1, 0, 1, 1]))
        assert torch.equal(k.gram(rows), known.gram(rows))


class TestRecovery:
    """Targets drawn from a process with known parameters."""

    def drawn(self, lam: float, noise: tuple[float, float], seed: int, n: int = 80) -> Frame:
        X, domain = normal(n, 2, seed=seed), torch.arange(n).ge(n // 2).logical_not().long()
        rows = Rows(X, domain)
        K = DistributionKernel(NET, torch.tensor([1.5, 0.2], dtype=DOUBLE), Correlation(torch.tensor([lam], dtype=DOUBLE)),
                               torch.tensor(1.0, dtype=DOUBLE), torch.tensor(0.1, dtype=DOUBLE)).gram(rows)  # fmt: skip
        f = torch.linalg.cholesky(K + 1e-9 * torch.eye(n)) @ normal(n, 1, seed=seed + 1)
        y = f + torch.tensor(noise, dtype=DOUBLE).sqrt()[domain][:, None] * normal(n, 1, seed=seed + 2)
        return Frame(rows, y, torch.ones(n, dtype=DOUBLE), n // 2, *(c for c in torch.tensor([[0.0, 0], [1, 1]], dtype=DOUBLE)),
                     *(c for c in torch.tensor([[0.0], [1]], dtype=DOUBLE)))  # fmt: skip

    def test_noise_of_each_domain_and_relevance(self):
        rows = self.drawn(0.9, (0.01, 0.2), seed=10)
        found = learn(rows, NET, correlated(1), begin(rows, 1), kappa=1.0)
        target, source = (found.raw["noise"].exp() * found.joint.B[0, 0]).tolist()
        assert 0.004 < target < 0.025
        assert 0.1 < source < 0.4
        assert float(found.raw["relevance"][0] - found.raw["relevance"][1]) > 0.5

    def test_correlation(self):
        """Two draws of a process tell little more than the sign; the prior has its mean at .76."""
        guess = {}
        for lam in (-0.95, 0.0, 0.95):
            drawn = (self.drawn(lam, (0.01, 0.01), seed=seed) for seed in (20, 30))
            guess[lam] = sum(float(learn(rows, NET, correlated(1), begin(rows, 1), kappa=1.0).kernel.domains.lam) for rows in drawn) / 2
        assert guess[-0.95] < -0.6
        assert guess[-0.95] < guess[0.0] < guess[0.95] - 0.1
        assert guess[0.95] > 0.85


@some_families
@pytest.mark.parametrize("kind", ["equal rows", "constant columns", "zeros", "one label", "two at one place", "more columns than rows"])
def test_degenerate_rows_can_be_learned(name: str, kind: str):
    given = shift(labels=1 if kind == "one label" else 6, d=60 if kind == "more columns than rows" else 2)
    X = given.X.clone()
    if kind == "equal rows":
        X[:] = X[0]
    elif kind == "constant columns":
        X[:, 1] = 3.0
    elif kind == "zeros":
        X[:] = 0
    elif kind == "two at one place":
        X[given.domain == 0] = X[0].clone()
    found = learned(replace(given, X=X), name, steps=8)
    assert math.isfinite(found.objective)
    assert all(bool(value.isfinite().all()) for value in (found.joint.A, found.joint.B, found.noise, *found.raw.values()))


def test_a_family_of_ones_own():
    """A kernel between domains that the library does not have: lam = cos(angle)."""
    given = shift()
    turned = Family(lambda raw: Correlation(raw["angle"].cos()[None]), {"angle": torch.tensor(0.5, dtype=DOUBLE)}, {"angle": (0.0, 1.0)})
    found = learn(frame(given), NET, turned, begin(frame(given), 1), steps=10)
    assert float(found.raw["angle"]) != 0.5
    close(found.kernel.domains.lam, found.raw["angle"].cos()[None])


def test_embedded_family_makes_embeddings():
    b = samples(shift())
    made = embedded(b, "product").make({"scale": torch.zeros((), dtype=DOUBLE)})
    assert isinstance(made, Embedded)
    assert made.size is None
