"""The residual family: its base against closed forms, the control variate against the known map, and both steps on normal laws."""

import pytest
import torch
from torch import Tensor

from driftway.parallel import Group
from driftway.transport import Problem, ResidualValue, Settings, fit
from driftway.transport.primal_dual import Part
from driftway.transport.residual import fit_base
from driftway.transport.residual_bridge import BridgeLearner
from driftway.transport.residual_step import ResidualLearner
from driftway.transport.stream import Batch, Counted, generator
from tests.closed_forms.answers import DOUBLE, GaussianPair, gaussian_pair


def whitened(rows: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Rows moved and scaled to exactly these moments."""
    z = rows - rows.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T).reshape(z.shape[1], -1))).T
    return mean + z @ torch.linalg.cholesky(covariance).T


def based(pair: GaussianPair, *, silent: bool = False) -> ResidualValue:
    """A value whose base comes from rows with the pair's moments; `silent` networks are zero."""
    d = len(pair.m0)
    value = ResidualValue((d,), width=16, depth=2, heads=4).double()
    noise = torch.randn(2, 5000, d, dtype=DOUBLE, generator=generator("rows"))
    fit_base(value, whitened(noise[0], pair.m0, pair.S0), whitened(noise[1], pair.m1, pair.S1), eps=pair.eps)
    if silent:
        for parameter in [*value.rest.parameters(), *value.b.parameters()]:
            torch.nn.init.zeros_(parameter)
    return value


@pytest.mark.parametrize("d", [1, 3, 10])
def test_the_base_is_the_optimal_map_between_normal_laws(d):
    pair = gaussian_pair(d, seed=d)
    x = pair.source(50, generator=generator("x"))
    known = pair.m1 + (x - pair.m0) @ torch.linalg.solve(pair.S0, pair.cross)
    torch.testing.assert_close(based(pair).map(x), known, rtol=5e-3, atol=5e-3)  # the ridge on covariances is 1e-4 of their mean


@pytest.mark.parametrize("t", [0.0, 0.4, 0.9])
def test_the_base_is_the_bridge_between_normal_laws(t):
    pair = gaussian_pair(4, sigma=0.8, seed=2)
    x = pair.source(50, generator=generator("x"))
    found = based(pair).base.gradient(x, torch.full((50,), t, dtype=DOUBLE))
    torch.testing.assert_close(found, pair.gradient(x, t), rtol=5e-3, atol=5e-3)


def test_the_gradient_is_that_of_the_value_and_training_moves_the_networks_alone():
    value = based(gaussian_pair(3))
    x = torch.randn(7, 3, dtype=DOUBLE, generator=generator("x")).requires_grad_()
    t = torch.linspace(0, 0.9, 7, dtype=DOUBLE)
    V, gradient = value.value_and_gradient(x, t)
    torch.testing.assert_close(V, value.value(x, t))
    torch.testing.assert_close(gradient, torch.autograd.grad(value.value(x, t).sum(), x)[0])
    level, slope = value.quadratic(x, t)
    torch.testing.assert_close(level, value.base.value(x, t))
    torch.testing.assert_close(slope, value.base.gradient(x, t))
    gradient.square().sum().backward()
    assert all(parameter.grad is None for parameter in value.base.parameters())
    assert any(parameter.grad is not None for parameter in value.rest.V.parameters())


@pytest.mark.parametrize(("debiased", "small"), [(True, True), (False, False)])
def test_the_control_variate_removes_the_bias_of_a_batch(debiased, small):
    """The mean target of one state over many batches: the optimal map with the control, far from it without, in 12 dimensions."""
    pair, own = gaussian_pair(12, seed=5), generator("batches")
    learner = ResidualLearner(based(pair, silent=True), Settings(), eps=(0.5, 0.5), sigma=0.0, group=Group())
    learner.start = 1.1  # every state is at time 0
    x = pair.source(1, generator=own)
    ends = []
    for _ in range(225):
        rows = torch.cat([x, pair.source(31, generator=own)])
        y, other = pair.target(32, generator=own), pair.source(32, generator=own)
        *_, action = learner.fit(0, Part(rows, y, other=other if debiased else None), own)
        ends.append(action[0] + rows[0])
    ends = torch.stack(ends)
    error, noise = ends.mean(0) - based(pair).map(x)[0], ends.std(0) / 15
    assert (float((error / noise).abs().max()) < 4.5) == small


def test_normal_laws_are_learned_in_a_moment():
    """The base is exact; training must not spoil it: L2-UVP below one percent of the target's variance at 1 and 4 steps."""
    pair = gaussian_pair(16, seed=1)
    x, y = (draw(20_000, generator=generator(name)).float() for name, draw in (("x", pair.source), ("y", pair.target)))
    model = fit(x, y, steps=60, settings=Settings(width=32, batch=128, candidates=128), standardize="common", certify_every=1000)
    assert model.family == "residual"
    fresh = pair.source(2000, generator=generator("fresh"))
    known = pair.m1 + (fresh - pair.m0) @ torch.linalg.solve(pair.S0, pair.cross)
    for steps in (1, 4):
        error = (model.sample(fresh.float(), steps=steps) - known).square().sum(1).mean() / pair.S1.trace()
        assert float(error) < 0.01


def test_ends_of_an_exact_base_ask_for_no_correction():
    """With h = 0 the weights of the draws are even: the target of the residual is zero, whatever the draws."""
    pair = gaussian_pair(5, sigma=1.0, seed=3)
    value = based(pair, silent=True)
    learner = BridgeLearner(value, Settings(batch=64, candidates=64), eps=(1.0, 1.0), sigma=1.0, group=Group())

    source, target = (Counted(name, lambda n, own, draw=draw: Batch(draw(n, generator=own)), 0)
                      for name, draw in (("source", pair.source), ("target", pair.target)))  # fmt: skip
    losses = learner.losses(0, source, target, generator("step"))
    assert float(losses["gradient"]) < 1e-20
    assert float(losses["dual"].abs()) < 1e-12


def test_a_bridge_is_learned_by_the_residual_family():
    """Two far modes, which the base cannot know: the ends find both, with the right spread."""
    own = generator("modes")
    y = torch.randn(4000, 2, generator=own) * 0.3 + torch.where(torch.rand(4000, 1, generator=own) < 0.5, 2.0, -2.0)
    model = fit(None, y, problem=Problem(sigma=1.0), family="residual", standardize="none", steps=150, certify_every=1000,
                settings=Settings(batch=128, candidates=128, width=32, heads=8))  # fmt: skip
    z = model.sample(2000, steps=40)
    assert abs(float((z[:, 0] > 0).float().mean()) - 0.5) < 0.08
    middle = float((z.abs().mean(1) < 0.8).float().mean())
    assert middle < 0.15
