"""Semidiscrete transport against linear programs, quantiles and brute force; its marginal error is a bound; blocks change nothing."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from driftway.checks import InputError
from driftway.transport import exact_coupling, solve_assignment_program
from driftway.transport.dual import occupancy, semi_dual
from driftway.transport.measure import Semidiscrete
from driftway.transport.problem import cole_hopf, cole_hopf_gradient, cost, end_law, hopf_lax, hopf_lax_gradient
from driftway.transport.semidiscrete import solve_semidiscrete
from driftway.transport.table import TableValue
from driftway.transport.value import EndpointLaw

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of small steps: threads that wait for each other on shared cores make them many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def uniform(n, generator):
    return torch.rand(n, 1, dtype=DOUBLE, generator=generator)


def normal(n, generator):
    return torch.randn(n, 2, dtype=DOUBLE, generator=generator)


def table(eps, *, m=23, block=5, event=(3,)):
    value = TableValue(event, rows=m, eps=eps, block=block).double()
    value.eps.fill_(eps)
    value.y.copy_(4 + draw(m, *event, seed=1))
    value.g.copy_(draw(m, seed=2))
    value.log_mass.copy_(draw(m, seed=3).log_softmax(0))
    return value


def close(found, known, atol=1e-10):
    torch.testing.assert_close(found, known, atol=atol, rtol=1e-9)


# --- the value of a table -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 5, 23, 100])
@pytest.mark.parametrize("event", [(3,), (2, 2)])
def test_blocks_are_the_closed_forms(block, event):
    x, t = 4 + 2 * draw(11, *event, seed=4), torch.linspace(0, 0.95, 11, dtype=DOUBLE)
    for eps in (0.0, 0.3):
        value = table(eps, block=block, event=event)
        y, g, log_mass = value.y, value.g, value.log_mass
        if eps == 0:
            close(value.value(x, t), hopf_lax(x, t, y, g))
            close(value.gradient(x, t), hopf_lax_gradient(x, t, y, g))
        else:
            close(value.value(x, t), cole_hopf(x, t, y, g, eps=eps, log_mass=log_mass))
            close(value.gradient(x, t), cole_hopf_gradient(x, t, y, g, eps=eps, log_mass=log_mass))
        mass, square, moved = value.arrivals(x)
        zero = torch.zeros(11, dtype=DOUBLE)
        P = end_law(x, zero, y, g, eps=eps or 1e-9, log_mass=log_mass)
        close(mass, P.sum(0))
        close(square, P.square().sum(0))
        close(moved, P.T @ x.flatten(1))


def test_gaps_are_the_difference_of_the_two_least_costs():
    value, x = table(0.0, block=4), 4 + 2 * draw(50, 3, seed=8)
    least = (cost(x, value.y) + value.g).topk(2, 1, largest=False)
    gap, rows = value.gaps(x)
    close(rows, least.indices[:, 0].bincount(minlength=23).double())
    close(gap, torch.zeros(23, dtype=DOUBLE).index_add(0, least.indices[:, 0], least.values.diff(dim=1)[:, 0]))


@pytest.mark.parametrize("eps", [0.0, 0.4])
def test_the_gradient_is_that_of_the_value(eps):
    value, x, t = table(eps), (4 + draw(9, 3, seed=5)).requires_grad_(), torch.linspace(0, 0.9, 9, dtype=DOUBLE)
    (slope,) = torch.autograd.grad(value.value(x, t).sum(), x)
    close(value.gradient(x.detach(), t), slope)


def test_drawn_ends_follow_the_law_of_the_end():
    value, n = table(0.4), 40_000
    assert isinstance(value, EndpointLaw)
    x = (4 + draw(1, 3, seed=6)).expand(n, 3)
    t = torch.full((n,), 0.3, dtype=DOUBLE)
    u = torch.rand(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    y = value.endpoint(x, t, uniform=u, normal=torch.zeros_like(x))
    P = end_law(x[:1], 0.3, value.y, value.g, eps=0.4, log_mass=value.log_mass)[0]
    found = (y[:, None] == value.y).all(2).double().mean(0)
    assert ((found - P).abs() <= 5 * (P * (1 - P) / n).sqrt() + 1e-12).all()


class Largest(TorchDispatchMode):
    """Records the entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for z in out if isinstance(out, tuple | list) else [out]:
            if isinstance(z, torch.Tensor) and z.untyped_storage().nbytes():
                self.entries = max(self.entries, z.untyped_storage().nbytes() // z.element_size())
        return out


@pytest.mark.parametrize("eps", [0.0, 0.5])
def test_memory_is_of_the_order_of_a_block(eps):
    """2,000 ends and 500 states make 1,000,000 costs; no tensor holds more than a block of them, or the table."""
    value, x = table(eps, m=2000, block=100), draw(500, 3, seed=7)
    t = torch.zeros(500, dtype=DOUBLE)
    with Largest() as seen, torch.no_grad():
        value.value(x, t)
        value.gradient(x, t)
        value.endpoint(x, t, uniform=t + 0.5, normal=x)
        value.price(x)
        value.arrivals(x)
        value.gaps(x)
    assert 0 < seen.entries <= 500 * 102


# --- solutions ----------------------------------------------------------------------------------------------------------


def test_it_finds_the_exact_assignment():
    """Two finite sets of equal size: the program's cost, and prices that send every row to its partner."""
    x, y = draw(40, 2), 1 + 0.5 * draw(40, 2, seed=1)
    found = solve_semidiscrete(x, y, tolerance=1e-3, batch=40)
    known = exact_coupling(cost(x, y))
    assert found.converged
    assert found.floor == 0
    assert found.rows == 40
    close(found.map(x), known.map(y))
    assert found.dual == pytest.approx(known.total, rel=1e-9)
    assert float(semi_dual(x, y, found.g, eps=1e-9)) == pytest.approx(solve_assignment_program(x, y).cost, rel=1e-6)


def test_prices_of_many_rows_are_those_of_the_program():
    """With 50 source rows for each end the prices are pinned to the width of the program's optimal face."""
    x, y = draw(500, 1), 2 * draw(10, 1, seed=1)
    found, known = solve_semidiscrete(x, y, tolerance=2e-3, batch=500), exact_coupling(cost(x, y))
    assert found.converged
    assert known.total * (1 - 1e-3) <= found.dual <= known.total + 1e-9
    a, b = found.g - found.g.mean(), known.g - known.g.mean()
    assert float((a - b).abs().max()) < 0.02 * float(b.max() - b.min())


def test_the_entropic_solution_is_that_of_full_scalings():
    x, y, eps = draw(60, 2), 1 + draw(15, 2, seed=1), 0.6
    found = solve_semidiscrete(x, y, eps=eps, tolerance=1e-4, batch=60)
    best = occupancy(x, y, torch.zeros(15, dtype=DOUBLE), eps=eps, scalings=2000).g
    assert found.converged
    assert (found.g - (best - best.mean())).abs().max() < 5e-3
    assert found.dual == pytest.approx(float(semi_dual(x, y, best, eps=eps)), rel=1e-5)


@pytest.mark.parametrize("log_mass", [None, torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 5.0], dtype=DOUBLE).log()])
def test_cells_of_a_uniform_law_are_quantiles(log_mass):
    """In one dimension the cell of the j-th smallest end is [M_{j-1}, M_j], M the cumulated masses."""
    y = torch.tensor([0.1, 0.25, 0.3, 0.7, 1.4, 5.0], dtype=DOUBLE)[:, None]
    found = solve_semidiscrete(uniform, y, tolerance=0.03, log_mass=log_mass)
    assert found.converged
    m = torch.full((6,), 1 / 6, dtype=DOUBLE) if log_mass is None else log_mass.softmax(0)
    edges = m.cumsum(0)[:-1]
    boundary = ((found.g + y[:, 0].square() / 2).diff() / y[:, 0].diff()).clamp(0, 1)
    assert (boundary - edges).abs().sum() < 0.06, "each boundary moves mass between two cells: TV <= the sum <= 2 TV in a chain of cells"
    cut = torch.cat([edges.new_zeros(1), edges, edges.new_ones(1)])
    dual = sum(((b - p) ** 3 - (a - p) ** 3) / 6 for a, b, p in zip(cut[:-1], cut[1:], y[:, 0], strict=True))
    assert found.dual == pytest.approx(float(dual), rel=0.02)


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_the_error_is_a_bound_on_independent_rows(eps):
    y = draw(60, 2, seed=1)
    found = solve_semidiscrete(normal, y, eps=eps, tolerance=0.03)
    assert found.converged
    assert found.error <= 0.03
    n = 100_000
    x = normal(n, torch.Generator().manual_seed(99))
    again = found.table.arrivals(x)[0] / n
    raw = float((again - 1 / 60).abs().sum()) / 2
    assert raw <= found.error + math.sqrt(60 / n) * 0.4


def test_a_solution_that_is_off_says_so():
    """After one step the prices are far off, and the error is the true one, known from the boundary of two cells of a uniform law."""
    y = torch.tensor([[0.0], [0.4]], dtype=DOUBLE)
    found = solve_semidiscrete(uniform, y, tolerance=0.05, max_steps=1, batch=1)
    boundary = float((found.g.diff() + y[1].square() / 2) / 0.4)
    true = abs(min(max(boundary, 0.0), 1.0) - 0.5)
    assert true > 0.05
    assert not found.converged
    assert found.steps == 1
    assert true - 0.03 <= found.error <= 1.3 * true + 0.06


def test_blocks_and_seeds():
    y = draw(30, 2, seed=1)
    first, blocked = (solve_semidiscrete(normal, y, tolerance=0.05, block=block) for block in (2**14, 7))
    close(first.g, blocked.g, atol=1e-8)
    assert (first.steps, first.rows) == (blocked.steps, blocked.rows)
    again, other = (solve_semidiscrete(normal, y, tolerance=0.05, seed=seed) for seed in (0, 1))
    assert (again.g == first.g).all()
    assert (other.g != first.g).any()


def test_a_good_start_saves_the_steps():
    y = draw(40, 2, seed=1)
    cold = solve_semidiscrete(normal, y, tolerance=0.04)
    warm = solve_semidiscrete(normal, y, tolerance=0.06, g=cold.g, seed=1)
    assert warm.converged
    assert warm.steps == 0
    close(warm.g, cold.g - cold.g.mean(), atol=1e-12)
    assert not solve_semidiscrete(normal, 5 + 3 * y, tolerance=0.02, max_steps=4).converged


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_the_price_extends_the_table_and_keeps_the_certificate(eps):
    y = 1 + draw(50, 2, seed=1)
    found = solve_semidiscrete(normal, y, eps=eps, tolerance=0.03)
    close(found.table.price(y), found.g, atol=1e-6)
    x, fresh = normal(300, torch.Generator().manual_seed(5)), 1 + draw(300, 2, seed=6)
    g = found.table.price(fresh)
    lower, exact = float((cost(x, fresh) + g).amin(1).mean() - g.mean()), exact_coupling(cost(x, fresh)).total
    assert 0.8 * exact < lower <= exact + 1e-9


def test_draws_and_maps_of_a_solution():
    y = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=DOUBLE)
    found = solve_semidiscrete(normal, y, eps=0.2, tolerance=0.05)
    x = normal(20_000, torch.Generator().manual_seed(3))
    ends = found.draw(x, generator=torch.Generator().manual_seed(4))
    assert isinstance(found, Semidiscrete)
    assert found.eps == pytest.approx(0.2)
    assert float(ends[:, 0].mean()) == pytest.approx(2 / 3, abs=0.06), "equal rows share their mass"
    assert float(found.map(x)[:, 0].mean()) == pytest.approx(float(ends[:, 0].mean()), abs=0.02)


def test_a_single_row_takes_everything():
    y = torch.tensor([[1.0, 2.0]])
    found = solve_semidiscrete(torch.zeros(5, 2), y)
    assert found.converged
    assert found.error == 0
    assert found.dual == pytest.approx(2.5)
    assert (found.map(torch.zeros(4, 2)) == y).all()


def test_a_saved_table_is_the_same_table():
    value, other = table(0.3), TableValue((3,), rows=23).double()
    other.load_state_dict(value.state_dict())
    x, t = draw(5, 3), torch.zeros(5, dtype=DOUBLE)
    close(other.value(x, t), value.value(x, t))


@pytest.mark.parametrize(("argument", "change"), [
    ("y", {"y": torch.zeros(0, 2)}), ("y", {"y": torch.tensor([[math.nan, 0.0]])}), ("y", {"y": torch.zeros(3)}),
    ("source", {"source": torch.zeros(9, 3)}), ("source", {"source": torch.full((9, 2), math.inf)}),
    ("source", {"source": lambda n, generator: torch.zeros(n, 5)}), ("eps", {"eps": -0.1}), ("eps", {"eps": math.nan}),
    ("tolerance", {"tolerance": 0.0}), ("batch", {"batch": 0}), ("max_steps", {"max_steps": 0}), ("block", {"block": 0}),
    ("g", {"g": torch.zeros(5)}), ("g", {"g": torch.full((4,), math.nan)}), ("log_mass", {"log_mass": torch.zeros(4, 1)}),
])  # fmt: skip
def test_bad_input_is_named(argument, change):
    given = {"source": torch.zeros(9, 2), "y": torch.ones(4, 2)} | change
    with pytest.raises(InputError, match=f"^{argument}: expected"):
        solve_semidiscrete(**given)


def test_a_table_has_no_conditions():
    with pytest.raises(InputError, match=r"^c: expected"):
        table(0.0).value(draw(2, 3), torch.zeros(2, dtype=DOUBLE), torch.zeros(2).long())
