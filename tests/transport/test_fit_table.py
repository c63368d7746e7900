"""Tables as models: ends are the rows, in equal shares, at the least cost; saved and loaded they are the same."""

import math
from dataclasses import replace

import pytest
import torch

from driftway.checks import InputError
from driftway.transport import TransportModel, certificate, exact_coupling, fit, w2
from driftway.transport.fit_table import fit_table
from driftway.transport.problem import cost

DOUBLE = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def rows_of(z, y):
    """The index of the row of y that each row of z is."""
    distance, index = torch.cdist(z.flatten(1), y.flatten(1)).min(1)
    assert float(distance.max()) < 1e-6
    return index


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_a_saved_table_gives_the_same_samples_and_they_have_the_law_of_the_rows(eps, tmp_path):
    y = 3 + 2 * draw(60, 2, seed=1)
    model = fit_table(None, y, eps=eps, tolerance=0.03)
    assert model.training["converged"]
    assert model.training["marginal_error"] <= 0.03
    model.save(tmp_path / "run")
    again = TransportModel.load(tmp_path / "run")
    z = model.sample(3000, seed=5)
    assert (again.sample(3000, seed=5) == z).all()
    assert again.training == model.training
    assert again.problem == model.problem
    rows_of(z, y)
    halves = [z[k : k + 600] for k in range(0, 3000, 600)]
    own = [y[torch.randint(60, (600,), generator=torch.Generator().manual_seed(k))] for k in range(5)]
    near, floor = (sum(w2(part, y.repeat(10, 1)) for part in parts) / 5 for parts in (halves, own))
    assert near < 1.25 * floor, "as far from the rows as independent draws of them are"


def test_between_data_sets_it_is_the_exact_assignment_in_units_of_the_data():
    x, y = 100 * draw(20, 2), 100 + 50 * draw(20, 2, seed=1)
    model, known = fit_table(x, y, tolerance=0.01, batch=20), exact_coupling(cost(x, y))
    torch.testing.assert_close(model.sample(x, steps=1), known.map(y))
    torch.testing.assert_close(model.sample(x, steps=3, rule="explicit"), known.map(y))
    dual = float(model.value(x, 0.0).mean() - model.price(y).mean())
    assert dual == pytest.approx(known.total, rel=1e-6)
    assert certificate(model, x, y).gap < 1e-6


def test_entropy_is_in_units_of_the_data():
    """The mean end of a state, sum_j y_j exp(-(C_j + g_j)/eps) over its normaliser, with prices from the model itself."""
    x, y, eps = 10 * draw(30, 2), 5 + 10 * draw(8, 2, seed=1), 60.0
    model = fit_table(x, y, eps=eps, tolerance=0.01, batch=30)
    P = (-(cost(x, y) + model.price(y)) / eps).softmax(1)
    assert float((P.mean(0) - 1 / 8).abs().sum()) / 2 < 0.011
    mean = x + model.path(x, steps=1, rule="explicit").actions[0]
    torch.testing.assert_close(mean, P @ y, atol=1e-6, rtol=1e-6)


def test_images_samplers_and_constant_columns():
    y = draw(20, 2, 3, seed=1)
    y[:, 0, 1] = 7
    with pytest.warns(UserWarning, match="constant"):
        model = fit_table(None, y, tolerance=0.1)
    found = rows_of(model.sample(400, seed=1), y)
    assert (found.bincount(minlength=20) > 0).all()
    model = fit_table(lambda n, generator: torch.rand(n, 1, dtype=DOUBLE, generator=generator), torch.tensor([[0.0], [1.0]]).double())
    ends = model.sample(torch.tensor([[0.05], [0.45], [0.55], [0.95]]).double())[:, 0]
    assert ends.tolist() == pytest.approx([0, 0, 1, 1])


def test_a_fitted_model_is_a_start():
    x, y = draw(200, 2), 1 + draw(20, 2, seed=1) * torch.tensor([2.0, 0.5])
    cold = fit_table(x, y, tolerance=0.02)
    warm = fit_table(x, y, tolerance=0.03, start=cold)
    assert warm.training["steps"] == 0 < cold.training["steps"]
    torch.testing.assert_close(warm.sample(x), cold.sample(x))
    mixture = fit(x, y, steps=30, holdout=0.0)
    better = fit_table(x, y, tolerance=0.02, start=mixture)
    assert better.training["converged"]


def test_it_says_when_it_gave_up():
    with pytest.warns(UserWarning, match="marginal error is .* above the tolerance"):
        model = fit_table(None, 5 + draw(50, 2) ** 3, max_steps=1)
    assert not model.training["converged"]
    assert model.training["marginal_error"] > 0.02


BASE = {"source": draw(9, 2), "y": draw(8, 2, seed=1)}


@pytest.mark.parametrize(("argument", "change"), [
    ("y", {"y": draw(1, 2)}), ("y", {"y": draw(4, 2) * math.nan}), ("source", {"source": draw(9, 3)}),
    ("source", {"source": draw(9, 2).float()}), ("eps", {"eps": -1.0}), ("tolerance", {"tolerance": 0.0}), ("batch", {"batch": 0}),
    ("max_steps", {"max_steps": 0}), ("seed", {"seed": -1}), ("standardize", {"standardize": "rows"}),
    ("standardize", {"standardize": "columns"}), ("y", {"y": torch.ones(4, 2).double()}),
])  # fmt: skip
def test_bad_input_is_named(argument, change):
    with pytest.raises(InputError, match=f"^{argument}: expected"):
        fit_table(**{**BASE, **change})


def test_a_start_must_be_of_the_same_laws():
    model = fit_table(**BASE, tolerance=0.5)
    for start, source in ((model, None), (replace(model, backward=True), BASE["source"])):
        with pytest.raises(InputError, match=r"^start: expected a model from"):
            fit_table(source, BASE["y"], start=start)
