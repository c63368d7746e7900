"""The map between data and model space: there and back, constant columns, and costs that keep their order."""

import warnings

import pytest
import torch

from driftway.checks import InputError
from driftway.transport.problem import cost
from driftway.transport.scaler import Scaler, fit_scaler
from tests.transport.recipes import DOUBLE, draw

WIDE = torch.tensor([1.0, 100.0, 0.01, 5.0], dtype=DOUBLE)


def rows(n=50, seed=0):
    """Columns of very unlike spread, away from zero."""
    return draw(n, 4, seed=seed) * WIDE + torch.tensor([0.0, -300.0, 1.0, 20.0], dtype=DOUBLE)


def with_constants(y):
    y = y.clone()
    y[:, [0, 2]] = torch.tensor([7.0, -1.5], dtype=y.dtype)
    return y


def quiet(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit_scaler(*arguments, **options)


MODES = [("auto", False), ("columns", False), ("common", False), ("none", False), ("auto", True), ("common", True), ("none", True)]
every_mode = pytest.mark.parametrize(("mode", "data_source"), MODES)


@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("constants", [False, True])
def test_rows_come_back(mode, data_source, dtype, constants):
    y = (with_constants(rows()) if constants else rows()).to(dtype)
    scaler = quiet(y, source=rows(30, 1).to(dtype) if data_source else None, mode=mode)
    z = scaler.target(y)
    assert z.shape == (50, scaler.size)
    assert torch.isfinite(z).all()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    error = (scaler.data(z) - y).abs().amax(0)
    assert (error <= tolerance * (y.abs().amax(0) + scaler.shift.abs())).all()


@every_mode
def test_images_come_back(mode, data_source):
    y = draw(20, 3, 2, 2)
    y[:, 1, 0] = 0.5
    scaler = quiet(y, source=draw(20, 3, 2, 2, seed=1) if data_source else None, mode=mode)
    assert scaler.event == (3, 2, 2)
    torch.testing.assert_close(scaler.data(scaler.target(y)), y)


def test_columns_get_unit_variance():
    y = rows(200)
    z = fit_scaler(y, source=None).target(y)
    torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=DOUBLE), atol=1e-10, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(4, dtype=DOUBLE))


def test_a_common_scale_keeps_the_shape_of_the_data():
    y = rows(200)
    z = fit_scaler(y, source=None, mode="common").target(y)
    assert float(z.var(0).mean()) == pytest.approx(1)
    torch.testing.assert_close(z.std(0) / z.std(0)[0], y.std(0) / y.std(0)[0])
    scaler = quiet(with_constants(y), source=None, mode="common")
    assert float(scaler.target(with_constants(y)).var(0).mean()) == pytest.approx(1), "constant columns do not count"


def test_none_changes_nothing():
    y = rows()
    assert torch.equal(fit_scaler(y, source=None, mode="none").target(y), y)
    assert torch.equal(fit_scaler(y, source=rows(9, 1), mode="none").source(rows(9, 1)), rows(9, 1))


def test_rows_of_the_standard_normal_are_in_model_space_already():
    x = draw(30, 4, seed=3)
    assert torch.equal(fit_scaler(rows(), source=None).source(x), x)


# --- a data source: costs keep their order ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "common", "none"])
@pytest.mark.parametrize("constants", [False, True])
def test_costs_between_data_sets_scale_by_one_factor(mode, constants):
    """So the optimal plan is that of the data, and `cost_scale` turns costs back: constant columns of the target count too."""
    x, y = 2 + rows(30, 1), with_constants(rows()) if constants else rows()
    scaler = quiet(y, source=x, mode=mode)
    torch.testing.assert_close(scaler.cost_scale * cost(scaler.source(x), scaler.target(y)), cost(x, y), rtol=1e-9, atol=1e-6)


def test_costs_from_the_standard_normal_are_those_of_model_space():
    assert fit_scaler(rows(), source=None).cost_scale == 1.0


# --- constant columns ---------------------------------------------------------------------------------------------------


@every_mode
def test_constant_columns_are_kept_with_a_warning(mode, data_source):
    y = with_constants(rows())
    with pytest.warns(UserWarning, match=r"target: 2 of 4 columns are constant and are kept as constants \(columns 0, 2\)"):
        scaler = fit_scaler(y, source=rows(30, 1) if data_source else None, mode=mode)
    assert scaler.constant.tolist() == [True, False, True, False]
    assert scaler.size == (4 if data_source else 2)
    out = scaler.data(5 * draw(40, scaler.size, seed=9))
    assert torch.equal(out[:, 0], torch.full((40,), 7.0, dtype=DOUBLE))
    assert torch.equal(out[:, 2], torch.full((40,), -1.5, dtype=DOUBLE))
    assert out[:, 1].std() > 1


def test_a_constant_column_takes_the_source_to_its_constant():
    """Between data sets it is transported like any other: the rows of the target sit at one place there."""
    x, y = rows(30, 1), with_constants(rows())
    scaler = quiet(y, source=x)
    assert float(scaler.target(y)[:, 0].std()) == 0
    assert float(scaler.source(x)[:, 0].std()) > 0


def test_many_constant_columns_are_not_all_listed():
    y = torch.cat([torch.ones(5, 20), draw(5, 1).float()], 1)
    with pytest.warns(UserWarning, match=r"20 of 21 .*columns 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\)"):
        fit_scaler(y, source=None)


def test_no_warning_without_constants(recwarn):
    fit_scaler(rows(), source=None)
    assert not recwarn


# --- saved and read, and faults -----------------------------------------------------------------------------------------


@every_mode
def test_a_scaler_comes_back_from_its_tensors(mode, data_source):
    y = with_constants(rows())
    scaler = quiet(y, source=rows(30, 1) if data_source else None, mode=mode)
    again = Scaler.of(scaler.tensors(), {"event": list(scaler.event), "noise": scaler.noise})
    assert torch.equal(again.target(y), scaler.target(y))
    z = draw(7, scaler.size)
    assert torch.equal(again.data(z), scaler.data(z))
    assert again.cost_scale == scaler.cost_scale


def test_nothing_is_written_into_the_arguments():
    x, y = rows(30, 1), with_constants(rows())
    kept = x.clone(), y.clone()
    scaler = quiet(y, source=x)
    scaler.source(x)
    z = scaler.target(y)
    before = z.clone()
    scaler.data(z)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert torch.equal(z, before)


def test_columns_are_not_scaled_apart_between_data_sets():
    with pytest.raises(InputError, match="standardize: expected common or none with a data source, got columns"):
        fit_scaler(rows(), source=rows(9, 1), mode="columns")


@pytest.mark.parametrize("data_source", [False, True])
def test_constant_rows_are_refused(data_source):
    with pytest.raises(InputError, match="target: expected a column that varies, got constant rows"):
        fit_scaler(torch.ones(5, 3), source=torch.ones(4, 3) if data_source else None)


# --- the box ------------------------------------------------------------------------------------------------------------


@every_mode
def test_the_box_holds_all_training_rows(mode, data_source):
    """Half a range wider on each side for vectors; in model space its corners are those of the data."""
    y, x = with_constants(rows()), rows(30, 1) if data_source else None
    scaler = quiet(y, source=x, mode=mode)
    whole = y if x is None else torch.cat([y, x])
    low, high = whole.amin(0), whole.amax(0)
    torch.testing.assert_close(scaler.box, torch.stack([low - (high - low) / 2, high + (high - low) / 2]))
    corners = scaler.bounds
    assert corners is not None
    torch.testing.assert_close(scaler.target(scaler.box), torch.stack(corners))
    assert all(((scaler.target(z) >= corners[0]) & (scaler.target(z) <= corners[1])).all() for z in (y, x) if z is not None)


def test_the_box_of_images_is_their_range():
    y = torch.rand(20, 3, 4)
    scaler = fit_scaler(y, source=None)
    torch.testing.assert_close(scaler.box, torch.stack([y.flatten(1).amin(0), y.flatten(1).amax(0)]))


def test_the_box_is_kept_and_an_older_scaler_has_none():
    scaler = fit_scaler(rows(), source=None)
    config = {"event": [4], "noise": True}
    assert torch.equal(Scaler.of(scaler.tensors(), config).box, scaler.box)
    old = Scaler.of({name: z for name, z in scaler.tensors().items() if name != "scaler.box"}, config)
    assert old.bounds is None


@every_mode
def test_starts_come_back(mode, data_source):
    """`start` is the inverse of `source`, but for constant columns, which have no place in model space."""
    x = rows(30, 1)
    scaler = quiet(rows(), source=x if data_source else None, mode=mode)
    torch.testing.assert_close(scaler.start(scaler.source(x)), x)
