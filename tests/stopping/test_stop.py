"""Stopping times: closed forms, the definitions written out, and what a Stop says about itself."""

import math

import pytest
import torch

from driftway.checks import InputError
from driftway.linalg import Spectrum, eigendecompose
from driftway.stopping import RULES, Flow, Schedule, fit_noise, rules, stopping_time
from driftway.stopping.crossfit import Validation

DOUBLE = torch.float64


def of(mu, n=None, z=None):
    """A flow whose eigenvectors are the axes."""
    n = n or len(mu)
    r = torch.ones(n, dtype=DOUBLE) if z is None else z
    return Flow(Spectrum(mu, n, torch.eye(n, len(mu), dtype=DOUBLE)), r)


def motion(n, sigma=0.15, seed=0):
    x = torch.arange(1, n + 1, dtype=DOUBLE) / n
    f = (x - 0.5).abs() - 0.5
    y = f + sigma * torch.randn(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return eigendecompose(torch.minimum(x[:, None], x)), f, y


@pytest.mark.parametrize("m", [1, 4, 9])
def test_finite_rank_has_the_exact_radius(m):
    flow = of(torch.cat([torch.full((m,), 5.0), torch.zeros(100 - m)]).double())
    assert rules.critical_radius(flow, sigma=0.3) == pytest.approx(4 * math.e**2 * 0.09 * m / 100, rel=1e-12)


def test_the_radius_solves_its_equation_for_any_spectrum():
    own = torch.Generator().manual_seed(0)
    for _ in range(20):
        flow = of(torch.rand(50, dtype=DOUBLE, generator=own).pow(8).sort(descending=True).values)
        x = torch.tensor(rules.critical_radius(flow, sigma=0.2, radius=3.0), dtype=DOUBLE)
        assert float(flow.complexity(1 / x)) == pytest.approx(float(x) * 3 / (2 * math.e * 0.2), rel=1e-10)


@pytest.mark.parametrize(("sigma", "n", "known"), [(0.15, 200, 240), (0.15, 800, 612), (1.0, 100, 10)])
def test_the_plain_rule_is_its_definition(sigma, n, known):
    """T = min{t : R(eta_t^(-1/2)) > 1 / (2 e sigma eta_t)} - 1, step by step, and the figures of an earlier simulation."""
    spectrum, _, y = motion(n)
    stop = stopping_time(spectrum, y, "rademacher", sigma=sigma, radius=1.0, schedule=Schedule(0.25))
    t = 1
    while float((spectrum.values.clamp_max(1 / (0.25 * t)).sum() / n).sqrt()) <= 1 / (2 * math.e * sigma * 0.25 * t):
        t += 1
    assert stop.steps == t - 1 == known


def test_more_noise_stops_earlier():
    spectrum, _, y = motion(100)
    flow = Flow(spectrum, y)
    for rule in (lambda s: rules.rademacher(flow, sigma=s, radius=1.0), lambda s: rules.discrepancy(flow, sigma=s),
                 lambda s: rules.marginal_likelihood(flow, lam=s**2)):  # fmt: skip
        times = [rule(s) for s in (0.1, 0.14, 0.2, 0.4)]
        assert times == sorted(times, reverse=True)
        assert times[0] > times[-1]


def test_one_row_in_closed_form():
    """K = 2, r = 3: loss 9 exp(-4 eta); risk 9 s^2 - sigma^2 s^2 + sigma^2 (1-s)^2; posterior mean 3 * 2/(2 + lam)."""
    flow = Flow(eigendecompose(torch.tensor([[2.0]], dtype=DOUBLE)), torch.tensor([3.0], dtype=DOUBLE))
    assert rules.discrepancy(flow, sigma=1.5) == pytest.approx(math.log(4.0) / 4)
    assert rules.sure(flow, sigma=1.5) == pytest.approx(-math.log(1.5**2 / 9) / 2, rel=1e-5)
    assert rules.marginal_likelihood(flow, lam=0.5) == pytest.approx(math.log(5.0) / 2, rel=1e-5)
    assert rules.oracle(flow, truth=torch.tensor([2.0], dtype=DOUBLE)) == pytest.approx(math.log(3.0) / 2, rel=1e-5)
    assert rules.rademacher(flow, sigma=1.0, radius=1.0) == pytest.approx(1 / (2 * math.e * math.sqrt(2.0)))


def test_equal_eigenvalues_give_sure_and_ridge_in_closed_form():
    """One eigenvalue for all: s = sigma^2 / mean of r^2 is best for SURE; lam / (mu + lam) for the posterior."""
    own = torch.Generator().manual_seed(1)
    r = torch.randn(40, dtype=DOUBLE, generator=own)
    flow = Flow(eigendecompose(80 * torch.eye(40, dtype=DOUBLE)), r)
    assert rules.sure(flow, sigma=0.3) == pytest.approx(-math.log(0.09 / float(r.square().mean())) / 2, rel=1e-5)
    assert rules.marginal_likelihood(flow, lam=0.7) == pytest.approx(math.log(2.7 / 0.7) / 2, rel=1e-5)


def test_oracle_and_holdout_are_the_best_of_a_fine_grid():
    spectrum, f, y = motion(100)
    flow, eta = Flow(spectrum, y), torch.logspace(-1, 5, 3000, dtype=DOUBLE)
    best = (flow.fitted(eta) - f).square().mean(1)
    chosen = rules.oracle(flow, truth=f)
    assert float((flow.fitted(chosen) - f).square().mean()) <= float(best.min()) * (1 + 1e-6)
    x = torch.arange(1, 101, dtype=DOUBLE) / 100
    K, odd, even = torch.minimum(x[:, None], x), torch.arange(0, 100, 2), torch.arange(1, 100, 2)
    stop = stopping_time(eigendecompose(K[odd][:, odd]), y[odd], "holdout", held=(K[even][:, odd], y[even]))
    half = Flow(eigendecompose(K[odd][:, odd]), y[odd])
    errors = (half.predict(K[even][:, odd], eta) - y[even]).square().mean(1)
    assert float((half.predict(K[even][:, odd], stop.eta) - y[even]).square().mean()) <= float(errors.min()) * (1 + 1e-6)


def test_gcv_is_the_generalised_cross_validation_of_the_smoother():
    spectrum, _, y = motion(60)
    flow, eta = Flow(spectrum, y), torch.logspace(-1, 4, 400, dtype=DOUBLE)
    S = torch.eye(60, dtype=DOUBLE) - torch.stack([(spectrum.vectors * torch.exp(-t * spectrum.values)) @ spectrum.vectors.T for t in eta])
    score = (y - S @ y).square().mean(1) / (1 - S.diagonal(dim1=1, dim2=2).mean(1)).square()
    assert math.log(rules.gcv(flow) / float(eta[score.argmin()])) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_beats_no_training_and_training_to_the_end(rule):
    spectrum, f, y = motion(200)
    x = torch.arange(1, 201, dtype=DOUBLE) / 200
    extra = {"holdout": {"held": (torch.minimum(x[:, None] - 0.0025, x), f)}, "oracle": {"truth": f}}.get(rule, {})
    stop = stopping_time(spectrum, y, rule, **extra)
    flow = Flow(spectrum, y)
    error = (flow.fitted(torch.tensor([0.0, stop.eta, math.inf], dtype=DOUBLE)) - f).square().mean(1)
    assert float(error[1]) < 0.1 * min(float(error[0]), float(error[2]))
    assert stop.sigma == pytest.approx(0.15, rel=0.15)
    assert stop.lam == pytest.approx(1 / stop.eta)
    assert stop.dof == pytest.approx(float(flow.dof(stop.eta)))
    assert "maximum likelihood" in stop.found
    assert stop.risk[1] == min(stop.risk)


def test_sensitivity_is_the_stop_for_another_radius():
    spectrum, _, y = motion(150)
    plain = stopping_time(spectrum, y, "rademacher", sigma=0.15, radius=1.0)
    assert plain.sensitivity["R x 2"] == stopping_time(spectrum, y, "rademacher", sigma=0.15, radius=2.0).eta
    assert plain.sensitivity["R x 1"] == plain.eta
    ml = stopping_time(spectrum, y)
    lam = (ml.sigma / fit_noise(Flow(spectrum, y)).amplitude) ** 2 / 150
    for c in (0.5, 1.0, 2.0):
        assert ml.sensitivity[f"R x {c:g}"] == pytest.approx(rules.marginal_likelihood(Flow(spectrum, y), lam=lam / c**2))
    assert stopping_time(spectrum, y, "gcv").sensitivity == {}


def test_the_stop_does_not_depend_on_the_units():
    spectrum, _, y = motion(100)
    larger = Spectrum(7 * spectrum.values, 100, spectrum.vectors)
    for rule in ("rademacher", "discrepancy", "sure", "gcv", "marginal_likelihood"):
        one, other = stopping_time(spectrum, y, rule), stopping_time(larger, 3 * y, rule)
        assert other.eta * 7 == pytest.approx(one.eta, rel=1e-4)


def test_identical_columns_have_the_stop_of_one():
    spectrum, _, y = motion(100)
    for rule in ("rademacher", "sure", "marginal_likelihood"):
        several = stopping_time(spectrum, y[:, None].repeat(1, 3), rule)
        assert several.eta == pytest.approx(stopping_time(spectrum, y, rule).eta, rel=1e-6)
        assert any("3 outputs" in text for text in several.violations)


def test_steps_and_epochs_of_a_subsample():
    spectrum, _, y = motion(100)
    stop = stopping_time(spectrum, y, "rademacher", sigma=0.15, radius=1.0, schedule=Schedule(0.25), rows=1000, batch=32)
    assert stop.epochs == stop.steps / 32
    assert stop.steps == math.floor(stop.eta / 0.25)


def test_the_time_of_other_rules_grows_with_rows_as_that_of_marginal_likelihood():
    spectrum, _, y = motion(100)
    grown = [stopping_time(spectrum, y, "marginal_likelihood", rows=rows).eta for rows in (100, 1000)]
    for rule in ("cross_validation", "gcv", "sure", "discrepancy"):
        few, many = (stopping_time(spectrum, y, rule, rows=rows) for rows in (100, 1000))
        assert many.eta / few.eta == pytest.approx(grown[1] / grown[0])
        assert "100 of 1000 rows" in said(many)
        assert "100 of" not in said(few)


def test_cross_validation_is_near_the_oracle():
    spectrum, f, y = motion(200)
    stop, best = stopping_time(spectrum, y, "cross_validation"), stopping_time(spectrum, y, "oracle", truth=f)
    error = (Flow(spectrum, y).fitted(torch.tensor([stop.eta, best.eta], dtype=DOUBLE)) - f).square().mean(1)
    assert stop.validation is not None
    assert stop.eta == stop.validation.best
    assert float(error[0]) < 1.6 * float(error[1])
    assert best.validation is None


def test_steps_of_adam_are_counted_by_its_clock():
    spectrum, _, y = motion(100)
    plain, adam = (stopping_time(spectrum, y, "cross_validation", schedule=Schedule(0.01), adaptive=own) for own in (False, True))
    assert plain.eta == adam.eta
    assert adam.steps == math.floor(adam.validation.steps_time(adam.eta) / 0.01)
    assert adam.steps < 0.9 * plain.steps


def test_a_validation_that_is_given_is_taken_as_it_is():
    spectrum, _, y = motion(50)
    eta = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=DOUBLE)
    given = Validation(eta, eta, torch.tensor([4.0, 2.0, 1.0, 3.0], dtype=DOUBLE), eta, eta)
    assert stopping_time(spectrum, y, "cross_validation", validation=given).eta == given.best
    ends = Validation(eta, eta, torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=DOUBLE), eta, eta)
    stop = stopping_time(spectrum, y, "cross_validation", validation=ends, schedule=Schedule([0.1] * 5), adaptive=True, rows=500)
    assert math.isinf(stop.eta)
    assert stop.steps == 5
    assert "would train to the end" in said(stop)
    assert "the schedule ends at time 0.5, before the stop at inf" in said(stop)


def said(stop):
    return " | ".join(stop.violations)


def test_violations_are_said():
    own = torch.Generator().manual_seed(0)
    n = 120
    mu = torch.arange(1, n + 1, dtype=DOUBLE).pow(-0.8)
    r = of(mu).spectrum, torch.randn(n, dtype=DOUBLE, generator=own) * (n * mu + 1).sqrt()
    heavy = stopping_time(*r, schedule=Schedule(1.5), radius=1e-3)
    assert "outside the trace-class regime" in said(heavy)
    assert "exceeds the theorem's bound min(1, 1/mu_1) = 1" in said(heavy)
    assert "exceeds R = 0.001" in said(heavy)
    assert "diverges" in said(stopping_time(*r, schedule=Schedule(2.5)))
    assert "the schedule ends at time 0.02" in said(stopping_time(*r, schedule=Schedule([0.01, 0.01])))
    assert "truncated: 10 of 120" in said(stopping_time(r[0].largest(10), r[1]))
    assert "negative eigenvalues" in said(stopping_time(Spectrum(mu, n, r[0].vectors, clipped=0.01), r[1]))
    small = stopping_time(eigendecompose(torch.eye(20, dtype=DOUBLE)), torch.ones(20, dtype=DOUBLE), "gcv")
    assert "n = 20 rows are few" in said(small)


def test_a_clean_problem_has_no_violation():
    spectrum, f, y = motion(200)
    stop = stopping_time(spectrum, y, "rademacher", sigma=0.15, radius=2.0, schedule=Schedule(0.25))
    assert stop.violations == ()
    assert "exceeds R" in said(stopping_time(spectrum, y, "oracle", truth=f, radius=0.9))
    assert "exceeds R" not in said(stopping_time(spectrum, y, "oracle", truth=f, radius=1.05))


def test_noise_alone_says_so_and_does_not_train():
    spectrum, _, _ = motion(100)
    U = spectrum.vectors[:, -1]
    stop = stopping_time(spectrum, U * 5, schedule=Schedule(0.1), batch=10)
    assert stop.eta == 0
    assert stop.steps == 0
    assert stop.epochs == 0
    assert "no signal" in said(stop)
    assert math.isinf(stop.lam)


def test_what_the_kernel_cannot_learn_is_trained_to_the_end():
    """Four directions of sixty are seen; the others stay in the residual, which never falls to sigma^2."""
    spectrum = of(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=DOUBLE), 60).spectrum
    stop = stopping_time(Spectrum(spectrum.values, 60, spectrum.vectors), torch.ones(60, dtype=DOUBLE), "discrepancy", sigma=0.1,
                         schedule=Schedule(0.1))  # fmt: skip
    assert math.isinf(stop.eta)
    assert (stop.steps, stop.epochs, stop.lam, stop.dof) == (None, None, 0.0, pytest.approx(4.0))
    assert "would train to the end" in said(stop)


@pytest.mark.parametrize(("rule", "given", "text"), [
    ("early", {}, "rule: expected one of rademacher, discrepancy"),
    ("holdout", {}, "held: expected rows for the rule holdout"),
    ("oracle", {}, "truth: expected f(X) - f_0(X) for the rule oracle"),
    ("sure", {"sigma": 0.0}, "sigma: expected a finite number > 0"),
    ("rademacher", {"radius": -1.0}, "radius: expected a finite number > 0"),
    ("discrepancy", {"tau": 0}, "tau: expected a finite number > 0"),
    ("holdout", {"held": (torch.ones(3, 50).double(), torch.ones(2).double())}, "held: expected 3 rows"),
])  # fmt: skip
def test_bad_input_is_named(rule, given, text):
    spectrum, _, y = motion(50)
    with pytest.raises(InputError) as error:
        stopping_time(spectrum, y, rule, **given)
    assert text in str(error.value)


def test_values_without_vectors_are_refused_by_name():
    spectrum, _, y = motion(50)
    with pytest.raises(InputError, match="vectors: expected eigenvectors, got None"):
        stopping_time(Spectrum(spectrum.values, 50), y)
