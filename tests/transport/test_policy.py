"""Acting on values whose optimal actions are known, and noise that belongs to the sample.

Statistics are held to five standard errors with fixed seeds.
"""

import pytest
import torch
from scipy import stats
from torch import Tensor

from driftway.transport import MixtureValue, TransportModel, Value, path_energy, straightness
from driftway.transport.policy import BLOCK, SampleNoise, explicit, proximal, simulate
from tests.closed_forms.answers import GaussianPair, gaussian_pair, symmetric_bridge
from tests.transport.recipes import DOUBLE, draw, mixture, model_of, network, rng


class Quadratic(Value):
    """V_t(x) = x.A x/2 + b.x at every time."""

    def __init__(self, A: Tensor, b: Tensor) -> None:
        super().__init__()
        self.event, self.A, self.b = (len(b),), A, b

    def value(self, x, t):
        return ((x @ self.A) * x).sum(1) / 2 + x @ self.b

    def gradient(self, x, t):
        return x @ self.A + self.b

    def price(self, y):
        return self.value(y, None)


class Known(Value):
    """The value of a Gaussian pair, exact at every time."""

    def __init__(self, pair: GaussianPair) -> None:
        super().__init__()
        self.event, self.pair = (len(pair.m0),), pair

    def value(self, x, t):
        return self.pair.value(x, float(t[0]))

    def gradient(self, x, t):
        t = float(t[0])
        return self.pair.gradient(x, t) if t < 1 else torch.func.grad(lambda z: self.pair.value(z, 1.0).sum())(x)

    def price(self, y):
        return self.pair.g(y)


def stiff(kappa: float, d: int = 1) -> Quadratic:
    """Curvature kappa in every direction, around zero."""
    return Quadratic(kappa * torch.eye(d, dtype=DOUBLE), torch.zeros(d, dtype=DOUBLE))


def run(value: Value, x: Tensor, steps: int, *, rule: str, sigma: float = 0.0, seed: int = 0) -> Tensor:
    """All states, (steps + 1, n, d)."""
    noise = SampleNoise(seed, first=0, n=len(x), like=x)
    times = [h / steps for h in range(steps + 1)]
    return torch.stack([x, *(z for _, z in simulate(value, x, times=times, sigma=sigma, rule=rule, noise=noise))])


# --- explicit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_explicit_steps_on_a_quadratic_are_powers_of_a_matrix(steps):
    A, b = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE), torch.tensor([0.3, -1.0], dtype=DOUBLE)
    x, rest = draw(5, 2), -torch.linalg.solve(A, b)
    once = torch.eye(2, dtype=DOUBLE) - A / steps
    known = rest + (x - rest) @ torch.linalg.matrix_power(once, steps)
    torch.testing.assert_close(run(Quadratic(A, b), x, steps, rule="explicit")[-1], known)


@pytest.mark.parametrize("steps", [1, 2, 13])
def test_explicit_steps_on_an_exact_value_run_straight_to_the_optimal_end(steps):
    """Without noise the gradient is constant along an optimal path, so no number of steps makes an error."""
    pair = gaussian_pair(3, seed=4)
    x = pair.source(50, generator=rng())
    states, end = run(Known(pair), x, steps, rule="explicit"), pair.end_mean(x, 0.0)
    for t, z in zip(torch.linspace(0, 1, steps + 1, dtype=DOUBLE), states, strict=True):
        torch.testing.assert_close(z, (1 - t) * x + t * end, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 5])
def test_noise_of_any_number_of_steps_adds_up(steps):
    """Without a value, x_1 - x_0 is normal of variance sigma^2 and independent of the start."""
    n, sigma = 30_000, 0.7
    x = draw(n, 1)
    moved = (run(stiff(0.0), x, steps, rule="explicit", sigma=sigma)[-1] - x)[:, 0] / sigma
    assert stats.kstest(moved.numpy(), "norm").pvalue > 1e-4
    assert abs(float((moved * x[:, 0]).mean())) * n**0.5 < 5


def test_explicit_steps_approach_the_bridge_from_above():
    """Shifts end in a law blurred by the last noise; the excess variance vanishes like one over the number of steps."""
    pair, n = symmetric_bridge(1), 200_000
    x = pair.source(n, generator=rng(1))
    excess = [float(run(Known(pair), x, steps, rule="explicit", sigma=1.0)[-1].var()) - 1 for steps in (2, 4, 8)]
    assert excess[0] > 0.1
    for a, b in ((0, 1), (1, 2)):
        assert excess[a] / excess[b] == pytest.approx(2, abs=0.4)


# --- proximal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.1, 0.5])
def test_the_proximal_step_ends_in_the_proximal_point(dt):
    """argmin |y-x|^2/2dt + y.A y/2 + b.y solves (I + dt A) y = x - dt b.

    By the default effort within 4 % of the way; with more of it to half of the digits, which is what an objective knows of its minimiser.
    """
    A, b = torch.tensor([[2.0, 0.5], [0.5, 0.4]], dtype=DOUBLE), torch.tensor([0.3, -1.0], dtype=DOUBLE)
    x = draw(6, 2)
    known = torch.linalg.solve(torch.eye(2, dtype=DOUBLE) + dt * A, (x - dt * b).T).T
    for iterations, tolerance in ((100, 1e-7), (None, 0.04)):
        options = {} if iterations is None else {"iterations": iterations}
        y = x + dt * proximal(Quadratic(A, b), x, 0.0, dt, **options)
        assert float((y - known).norm()) <= tolerance * float((x - known).norm())


def test_the_proximal_step_is_stable_where_the_explicit_one_is_not():
    """dt times curvature above 2: explicit steps grow by |1 - kappa|, the proximal point shrinks by 1/(1 + kappa)."""
    steps, x, kappa = 12, draw(20, 1), 2.5
    value = stiff(kappa * steps)
    assert run(value, x, steps, rule="explicit")[-1].abs().mean() > 50 * x.abs().mean()
    assert run(value, x, steps, rule="proximal")[-1].abs().mean() < x.abs().mean()


@pytest.mark.parametrize("kappa", [2.9, 4.0, 9.0, 40.0])
def test_the_proximal_step_is_stable_at_any_curvature(kappa):
    """A target much narrower than the source has such a terminal value: N(0, 1) to N(0, 0.01) in one step is kappa = 9."""
    x = draw(20, 1)
    y = x + proximal(stiff(kappa), x, 0.0, 1.0)
    assert y.abs().max() < x.abs().max()


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_proximal_steps_on_an_exact_value_reach_the_optimal_end(steps):
    """The explicit start is the proximal point of an exact value already, and the iteration stays there."""
    pair = gaussian_pair(2, seed=5)
    x = pair.source(30, generator=rng())
    torch.testing.assert_close(run(Known(pair), x, steps, rule="proximal")[-1], pair.end_mean(x, 0.0), rtol=1e-6, atol=1e-6)


# --- noise that belongs to the sample -----------------------------------------------------------------------------------


def test_variates_are_a_function_of_seed_and_row():
    like = torch.zeros((), dtype=DOUBLE)
    whole = SampleNoise(3, first=0, n=700, like=like)
    normal, uniform, again = whole.normal(2), whole.uniform(), whole.normal(2)
    part = SampleNoise(3, first=BLOCK, n=10, like=like)
    assert torch.equal(part.normal(2), normal[BLOCK : BLOCK + 10])
    assert torch.equal(part.uniform(), uniform[BLOCK : BLOCK + 10])
    assert torch.equal(part.normal(2), again[BLOCK : BLOCK + 10])
    other = SampleNoise(4, first=0, n=700, like=like).normal(2)
    for a, b in ((normal, other), (normal, again), (normal[:BLOCK], normal[BLOCK : 2 * BLOCK])):
        assert abs(float((a * b).mean())) * a.numel() ** 0.5 < 5, "independent"


def test_variates_have_their_laws():
    noise = SampleNoise(0, first=0, n=20_000, like=torch.zeros((), dtype=DOUBLE))
    assert stats.kstest(noise.normal(1)[:, 0].numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(noise.uniform().numpy(), "uniform").pvalue > 1e-4


def test_single_precision_takes_the_same_variates_rounded():
    double, single = (SampleNoise(1, first=0, n=5, like=torch.zeros((), dtype=kind)).normal(3) for kind in (DOUBLE, torch.float32))
    assert single.dtype == torch.float32
    assert torch.equal(double.float(), single)


RULES = [("mixture", "endpoint"), ("mixture", "explicit"), ("mixture", "proximal"), ("network", "explicit"), ("network", "proximal")]


def sampled(family: str, dtype: torch.dtype, sigma: float) -> TransportModel:
    return model_of(mixture(2, eps=0.3) if family == "mixture" else network(2), sigma=sigma, shift=1.0, scale=2.0, dtype=dtype)


def same(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    tolerance = 5e-4 if dtype == torch.float32 else 1e-12  # proximal steps magnify rounding, which differs by batch and processor
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("family", "rule"), RULES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(family, rule, dtype, sigma):
    """Neither on how many are asked for, nor on how many fit in memory at once, nor on whether the path is kept."""
    model = sampled(family, dtype, sigma)
    whole = model.sample(600, steps=3, rule=rule, seed=5)
    assert whole.dtype == dtype
    for n in (1, 10, BLOCK, BLOCK + 1):
        same(model.sample(n, steps=3, rule=rule, seed=5), whole[:n], dtype)
    for budget in (1, 20_000):
        same(model.sample(600, steps=3, rule=rule, seed=5, budget=budget), whole, dtype)
    same(model.path(600, steps=3, rule=rule, seed=5).states[-1], whole, dtype)
    other = model.sample(600, steps=3, rule=rule, seed=6)
    assert float((other - whole).abs().mean()) > 0.1


def test_the_rows_of_a_sample_are_drawn_apart():
    """Blocks do not repeat one another."""
    z = sampled("mixture", DOUBLE, 0.0).sample(3 * BLOCK)
    assert len(z.unique(dim=0)) == 3 * BLOCK


def test_a_given_start_is_used_with_its_own_noise():
    """Row i of two calls shares its noise, not its neighbours'."""
    model = sampled("network", DOUBLE, 0.5)
    x = draw(20, 2)
    together = model.sample(x, steps=3, seed=2)
    same(model.sample(x[:7], steps=3, seed=2), together[:7], DOUBLE)
    shifted = model.sample(x.flip(0), steps=3, seed=2)
    assert float((shifted.flip(0) - together).abs().max()) > 0.1


def test_sampling_keeps_no_graph_and_leaves_the_global_stream_alone():
    model = sampled("network", DOUBLE, 0.5)
    model.value_function.requires_grad_()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    z, path = model.sample(10), model.path(10)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(part.requires_grad for part in (z, path.states, path.actions))


# --- the end-point rule -------------------------------------------------------------------------------------------------


def bridge_of(pair: GaussianPair) -> MixtureValue:
    """The one component that is the Gaussian bridge of a pair: S is the Jacobian of x -> E[X_1|X_0 = x]."""
    S = torch.autograd.functional.jacobian(lambda x: pair.end_mean(x[None], 0.0)[0], pair.m0)
    L = torch.linalg.cholesky(S)
    value = MixtureValue(tuple(pair.m0.shape), components=1).double().requires_grad_(False)
    value.eps.fill_(pair.eps)
    value.r[0], value.lower[0], value.log_diagonal[0] = pair.m1 - S @ pair.m0, L.tril(-1), L.diagonal().log()
    return value


@pytest.mark.parametrize("pair", [symmetric_bridge(2), gaussian_pair(2, sigma=0.6, seed=6)], ids=["symmetric", "general"])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_end_point_rule_has_the_marginals_of_the_bridge(pair, steps):
    """Exact at every time for every number of steps: mean and covariance of x_t, and the cross-covariance with the start."""
    n = 40_000
    x = pair.source(n, generator=rng(7))
    model = model_of(bridge_of(pair), sigma=pair.sigma, noise=False)
    path = model.path(x, steps=steps, seed=8)
    for h, z in enumerate(path.states):
        mean, cov = pair.marginal(h / steps)
        centred = z - mean
        products = centred[:, :, None] * centred[:, None, :]
        assert (centred.mean(0) / (z.std(0) / n**0.5)).abs().max() < 5
        assert ((products.mean(0) - cov) / (products.std(0) / n**0.5)).abs().max() < 5
    products = (x - pair.m0)[:, :, None] * (path.states[-1] - pair.m1)[:, None, :]
    assert ((products.mean(0) - pair.cross) / (products.std(0) / n**0.5)).abs().max() < 5


def test_the_end_does_not_depend_on_the_number_of_steps():
    """It is drawn once, before the first step."""
    model = sampled("mixture", DOUBLE, 0.5)
    for steps in (2, 11):
        same(model.sample(50, steps=steps), model.sample(50, steps=1), DOUBLE)


def test_the_actions_of_a_noisy_path_lead_to_its_end():
    """Without the noise of its step, each action points from the state straight at the end."""
    path = sampled("mixture", DOUBLE, 0.5).path(40, steps=6)
    for h, a in enumerate(path.actions):
        torch.testing.assert_close(path.states[h] + (1 - h / 6) * a, path.states[-1])


def test_without_noise_the_end_point_rule_is_straight():
    path = sampled("mixture", DOUBLE, 0.0).path(300, steps=7)
    assert straightness(path) == pytest.approx(1, abs=1e-12)
    assert path_energy(path) == pytest.approx(float((path.states[-1] - path.states[0]).square().sum(1).mean()), rel=1e-12)


# --- paths in the units of the data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_the_times_of_a_path_are_exact(steps):
    path = sampled("network", DOUBLE, 0.0).path(2, steps=steps)
    assert path.t.tolist() == pytest.approx([h / steps for h in range(steps + 1)], abs=1e-15)


@pytest.mark.parametrize("noise", [True, False])
def test_the_actions_of_a_path_make_its_moves(noise):
    """In data units, between data sets and from the normal, constant columns included."""
    model = model_of(network(2), noise=noise, shift=1.0, scale=3.0)
    path = model.path(draw(9, 2), steps=4)
    torch.testing.assert_close(path.states[:-1] + path.actions / 4, path.states[1:])
    torch.testing.assert_close(path.states[-1], model.sample(draw(9, 2), steps=4))


def test_a_path_starts_where_it_was_put_and_moves_constant_columns_too():
    """Between data sets a column that is constant in the target is transported to its constant; its energy counts."""
    model = model_of(network(2), noise=False, shift=1.0, scale=3.0)
    model.scaler.constant[1] = True
    x = draw(9, 2)
    path = model.path(x, steps=4)
    torch.testing.assert_close(path.states[0], x)
    assert torch.equal(path.states[-1][:, 1], torch.ones(9, dtype=DOUBLE))
    assert path_energy(path) >= float((path.states[-1] - x).square().sum(1).mean()) - 1e-9


@pytest.mark.parametrize("rule", ["explicit", "proximal"])
def test_a_rule_is_its_function(rule):
    """One step of the model is one call of the rule at time zero."""
    value, x = network(2), draw(9, 2)
    act = {"explicit": explicit, "proximal": proximal}[rule]
    torch.testing.assert_close(model_of(value, noise=False).sample(x, steps=1, rule=rule), x + act(value, x, 0.0, 1.0))


# --- bounded paths ------------------------------------------------------------------------------------------------------


class Absurd(Quadratic):
    """Gradients a million times the state, away from zero or across it."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor * torch.eye(2, dtype=DOUBLE), torch.full((2,), factor, dtype=DOUBLE))


def wild() -> Value:
    """A network whose weights are a thousand times too large."""
    value = network(2)
    for parameter in value.parameters():
        parameter.mul_(1e3 if parameter.ndim else 1.0)
    return value


BOX = torch.tensor([-1.0, -2.0], dtype=DOUBLE), torch.tensor([3.0, 2.0], dtype=DOUBLE)


@pytest.mark.parametrize("rule", ["explicit", "proximal"])
@pytest.mark.parametrize("value", [Absurd(1e6), Absurd(-1e6), wild()], ids=["across", "away", "network"])
@pytest.mark.parametrize("steps", [1, 2, 7, 60])
def test_no_path_leaves_the_hull_of_its_start_and_the_box(value, steps, rule):
    x = 4 * draw(50, 2)
    low, high = torch.minimum(x, BOX[0]) - 1e-9, torch.maximum(x, BOX[1]) + 1e-9
    noise = SampleNoise(0, first=0, n=50, like=x)
    times = [h / steps for h in range(steps + 1)]
    states = [z for _, z in simulate(value, x, times=times, sigma=0.0, rule=rule, noise=noise, box=BOX)]
    assert all(((z >= low) & (z <= high)).all() for z in states)
    assert ((states[-1] >= BOX[0] - 1e-9) & (states[-1] <= BOX[1] + 1e-9)).all(), "the end is in the box"
    if rule == "explicit":
        free = [z for _, z in simulate(value, x, times=times, sigma=0.0, rule=rule, noise=noise)]
        assert not all(((z >= low) & (z <= high)).all() for z in free), "without the box they do leave"


@pytest.mark.parametrize("rule", ["explicit", "proximal"])
def test_paths_whose_ends_are_inside_are_left_alone(rule):
    pair = gaussian_pair(2, seed=4)
    x, noise = pair.source(50, generator=rng()), SampleNoise(0, first=0, n=50, like=draw(1, 2))
    wide = torch.full((2,), -1e3, dtype=DOUBLE), torch.full((2,), 1e3, dtype=DOUBLE)
    times = [0.0, 0.1, 0.5, 1.0]
    free, boxed = ([z for _, z in simulate(Known(pair), x, times=times, sigma=0.0, rule=rule, noise=noise, box=box)]
                   for box in (None, wide))  # fmt: skip
    torch.testing.assert_close(torch.stack(boxed), torch.stack(free), atol=1e-9, rtol=1e-9)


def test_an_infinite_gradient_ends_on_the_box():
    x, noise = 0.5 * draw(9, 2), SampleNoise(0, first=0, n=9, like=draw(1, 2))
    for _, z in simulate(Absurd(-1e308), 1e5 + x, times=[0.0, 0.5, 1.0], sigma=0.0, rule="explicit", noise=noise, box=BOX):
        assert z.isfinite().all()
    torch.testing.assert_close(z, BOX[1].expand(9, 2))
