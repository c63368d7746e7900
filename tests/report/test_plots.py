"""What the figures show is what was given: points, images, curves, floors and directions."""

import sys

import matplotlib
import numpy as np
import pytest
import torch

from driftway.report import (
    draw_certificate,
    draw_landscape,
    draw_neighbours,
    draw_quality,
    draw_samples,
    draw_trajectories,
    evaluate,
)
from driftway.report.classes import draw_class_images, draw_class_points
from driftway.report.plots import PATHS
from driftway.report.style import embed, percent
from driftway.report.view import image_shape, plane, sheet
from tests.report.known import TRAINING, rows, translation


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


@pytest.mark.parametrize(("event", "shape"), [
    ((64,), (8, 8)), ((784,), (28, 28)), ((5, 7), (5, 7)), ((1, 5, 7), (5, 7)),
    ((3, 5, 7), (3, 5, 7)), ((2,), None), ((63,), None), ((1, 2), None), ((4, 4, 4), None), ((3, 4, 1), None),
])  # fmt: skip
def test_which_rows_are_images(event, shape):
    assert image_shape(event) == shape


def test_the_plane_of_two_columns_is_the_data_itself():
    y = rows(20, 1, 2)
    assert np.array_equal(plane(y).of(y), y.flatten(1).numpy())


def test_the_plane_of_many_columns_is_that_of_largest_variance():
    y = rows(500, 5) * torch.tensor([1.0, 9.0, 0.1, 4.0, 0.5])
    points = plane(y).of(y)
    assert points.mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert np.abs(np.corrcoef(points[:, 0], y[:, 1])[0, 1]) > 0.99
    assert np.abs(np.corrcoef(points[:, 1], y[:, 3])[0, 1]) > 0.99
    assert "(8" in plane(y).labels[0]  # 81 of 98.3 = 82 %


def test_a_sheet_holds_every_image_in_reading_order():
    images = torch.arange(3 * 4, dtype=torch.float64).reshape(3, 4)
    page = sheet(images, (2, 2), 2)
    assert page.shape == (5, 5)
    assert page[:2, 3:].tolist() == [[4, 5], [6, 7]]
    assert page[3:, :2].tolist() == [[8, 9], [10, 11]]
    assert np.isnan(page[2]).all()
    assert np.isnan(page[3:, 3:]).all()


def test_a_sheet_in_colour_is_its_three_channels():
    images = torch.rand(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    page = sheet(images, (3, 4, 6), 2)
    for channel in range(3):
        assert np.array_equal(page[..., channel], sheet(images[:, channel], (4, 6), 2), equal_nan=True)


def test_colours_are_shown_as_they_are_and_seams_are_blank():
    y = torch.zeros(6, 3, 4, 4)
    y[:, 0] = 0.5
    y[3, 0] = 1.0
    image = draw_samples(y, y, steps=1).axes[0].images[0].get_array()
    assert image.shape[2] == 3
    assert image[0, 0].tolist() == [0.5, 0, 0]
    assert image[0, 4].tolist() == [1, 1, 1]


def test_every_class_has_its_row_of_images():
    rows_of = torch.arange(3.0).repeat_interleave(8)[:, None, None].expand(24, 5, 4)
    figure = draw_class_images([("guidance 1", rows_of), ("guidance 2", 2 - rows_of)], rows_of, ["a", "$b$", "_c"])
    assert titles(figure) == ["guidance 1", "guidance 2"]
    for axes, values in zip(figure.axes, ([0, 1, 2], [2, 1, 0]), strict=True):
        image, places = axes.images[0].get_array(), axes.get_yticks()
        assert [float(image[round(place), 0]) for place in places] == values
        assert [text.get_text() for text in axes.get_yticklabels()] == ["a", r"\$b\$", " _c"]
    embed(figure, "png")


def test_every_class_has_its_points():
    drawn, y, names = rows(40, 2), rows(40, 2, seed=1), ["first" if i % 3 else "_$x" for i in range(40)]
    figure = draw_class_points(drawn, y, names, names, ["_$x", "first"])
    assert titles(figure) == ["samples by label", "held-out data by label"]
    for axes, given in zip(figure.axes, (drawn, y), strict=True):
        for points, name in zip(axes.collections, ("_$x", "first"), strict=True):
            assert np.allclose(points.get_offsets(), given[[own == name for own in names]])
        assert len({tuple(points.get_facecolor()[0][:3]) for points in axes.collections}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r" _\$x", "first"]
    embed(figure, "png")


@pytest.mark.parametrize("event", [(1,), (5,)])
def test_classes_of_every_shape(event):
    drawn, names = rows(30, *event), [str(i % 2) for i in range(30)]
    _, inches = embed(draw_class_points(drawn, drawn, names, names, ["0", "1"]), "png")
    assert 4 < inches < 10


def test_scatter_shows_the_rows_on_common_axes():
    start, drawn, y = rows(30, 2), rows(30, 2, seed=1), rows(40, 2, seed=2)
    figure = draw_samples(drawn, y, start=start, steps=4)
    assert titles(figure) == ["source", "samples (4 steps)", "held-out data"]
    for axes, given in zip(figure.axes, (start, drawn, y), strict=True):
        assert np.allclose(axes.collections[0].get_offsets(), given)
        assert axes.get_xlim() == figure.axes[0].get_xlim()


def test_a_stray_sample_does_not_hide_the_data():
    y, drawn = rows(100, 2), torch.cat([rows(99, 2, seed=1), torch.tensor([[1e6, 0.0]]).double()])
    low, high = draw_samples(drawn, y, steps=1).axes[0].get_xlim()
    assert high - low < 20


@pytest.mark.parametrize("event", [(1,), (6, 4)])  # the pages show 2, 5 and 64 columns
def test_every_shape_has_figures(event):
    x, y = rows(12, *event), rows(12, *event, seed=1)
    model = translation(torch.zeros(*event).flatten(), event)
    path = model.path(x, steps=3)
    for figure in (draw_samples(x, y, steps=1), draw_trajectories(path, y), draw_neighbours(x, y)):
        uri, inches = embed(figure, "png")
        assert uri.startswith("data:image/png;base64,")
        assert 4 < inches < 10


def test_trajectories_run_from_start_to_end():
    model = translation([3, 4])
    x = rows(PATHS + 10, 2)
    lines = draw_trajectories(model.path(x, steps=5), x + 3).axes[0].collections[1].get_segments()
    assert len(lines) == PATHS
    assert np.allclose(lines[7][0], x[7])
    assert np.allclose(lines[7][-1], x[7] + torch.tensor([3, 4]), atol=1e-6)


@pytest.mark.parametrize("noise", [False, True])
def test_landscape_arrows_point_where_the_model_goes(noise):
    model = translation([1, 2], noise=noise, scale=3.0)
    x = rows(50, 2)
    figure = draw_landscape(model, 3 * x, 3 * x + 1, unit="units")
    arrows = next(found for found in figure.axes[0].collections if hasattr(found, "U"))
    assert np.allclose(arrows.V, 2 * arrows.U, rtol=1e-4)
    assert (arrows.U > 0).all()


def test_a_copied_image_is_its_own_neighbour():
    y = rows(20, 64)
    figure = draw_neighbours(y[[3, 5]], y)
    panels = np.array(figure.axes).reshape(4, 2)
    assert panels[1, 0].get_xlabel() == "0"
    assert np.array_equal(panels[0, 0].images[0].get_array(), panels[1, 0].images[0].get_array())
    own = torch.cdist(y[3:4], y).sort().values[0, 1]
    assert panels[2, 0].get_xlabel() == f"{own:.3g}"


def test_certificate_shows_both_bounds_and_the_gap():
    left, right = draw_certificate(TRAINING["history"], unit="units").axes
    upper, lower = (line.get_ydata() for line in left.lines)
    assert upper.tolist() == [0.9, 0.6, 0.525]
    assert lower.tolist() == [0.1, 0.3, 0.5]
    assert right.get_yscale() == "log"
    assert right.lines[0].get_ydata() == pytest.approx([800 / 9, 50, 100 / 21])


def test_quality_stands_beside_its_floor():
    found = evaluate(translation([0, 0]), rows(40, 2), rows(40, 2, seed=1), steps=(4, 1))
    left, right = draw_quality(found).axes
    curve, floor = left.lines
    assert curve.get_xdata().tolist() == [1, 4]
    assert set(floor.get_ydata()) == {found.floor}
    assert left.get_ylim()[1] > max(found.floor, *curve.get_ydata())
    assert right.lines[0].get_ydata().tolist() == [100 * q.normalised_energy for q in reversed(found.qualities)]


def test_figures_ignore_and_keep_the_users_settings():
    y = rows(20, 2)
    plain = embed(draw_samples(y, y, steps=1), "svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        assert embed(draw_samples(y, y, steps=1), "svg") == plain
        after = dict(matplotlib.rcParams)
        assert {name for name in before if before[name] != after[name]} <= {"backend"}  # resolved on first use
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_percentages_are_readable():
    assert [percent(p) for p in (0.123, 4.56, 99.4, 135.2, 2350.0)] == ["0.12 %", "4.6 %", "99 %", "135 %", "2350 %"]
