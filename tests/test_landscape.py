"""Slices of a loss against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from saddlepoint.landscape import line, plane
from saddlepoint.surfaces import FactoredLinear, Rosenbrock, Saddle


def test_the_two_axes_are_two_directions_with_a_reach_each() -> None:
    theta, d, e = np.array([0.5, -0.25]), np.array([1.0, 2.0]), np.array([-3.0, 0.5])
    found = plane(Rosenbrock(), theta, d, e, radius=(1.5, 0.25), points=5, labels=("down", "up"))
    alphas, betas = np.array([-1.5, -0.75, 0, 0.75, 1.5]), np.array([-0.25, -0.125, 0, 0.125, 0.25])
    assert_array_equal(found.alphas, alphas)
    assert_array_equal(found.betas, betas)
    x = 0.5 + alphas[:, None] - 3.0 * betas
    y = -0.25 + 2.0 * alphas[:, None] + 0.5 * betas
    assert_allclose(found.losses, 100.0 * (y - x**2) ** 2 + (1.0 - x) ** 2, rtol=1e-12)
    assert found.labels == ("down", "up")
    assert found.path is None
    assert_array_equal(theta, [0.5, -0.25])  # what was given stays


@pytest.mark.parametrize("points", [1, 4])
def test_the_point_itself_is_on_the_grid(points: int) -> None:
    x, y = np.eye(2)
    with pytest.raises(ValueError, match=f"points: expected .*, got {points}"):
        plane(Rosenbrock(), np.zeros(2), x, y, points=points)


def test_a_line_is_the_loss_and_its_taylor_polynomial() -> None:
    theta, d = np.array([0.5, -0.25]), np.array([1.0, 2.0])
    found = line(Rosenbrock(), theta, d, radius=0.5, points=5, label="uphill")
    s = np.array([-0.5, -0.25, 0.0, 0.25, 0.5])
    assert_array_equal(found.steps, s)

    def f(x, y):
        return 100.0 * (y - x**2) ** 2 + (1.0 - x) ** 2

    assert_allclose(found.losses, f(0.5 + s, -0.25 + 2.0 * s), rtol=1e-12)
    # g = (−400x(y − x²) − 2(1 − x), 200(y − x²)), H = ((1200x² − 400y + 2, −400x), (−400x, 200))
    slope = (-200.0 * -0.5 - 1.0) + 2.0 * (200.0 * -0.5)
    curvature = (300.0 + 100.0 + 2.0) + 4.0 * -200.0 + 4.0 * 200.0
    assert_allclose((found.slope, found.curvature), (slope, curvature), rtol=1e-12)
    assert_allclose(found.model(s), f(0.5, -0.25) + slope * s + 0.5 * curvature * s**2, rtol=1e-12)
    assert found.loss == found.losses[2]
    assert found.label == "uphill"
    assert_array_equal(theta, [0.5, -0.25])  # what was given stays


def test_a_line_goes_where_the_parabola_has_moved_by_the_loss() -> None:
    found = line(FactoredLinear(), np.zeros(2), np.array([2.0, 2.0]))  # (1 − xy)², dᵀHd = −16
    assert_allclose(found.steps[-1], np.sqrt(2.0 / 16.0), rtol=1e-12)
    assert_allclose(found.model(found.steps)[[0, -1]], 0.0, atol=1e-12)
    # Without a loss, or a curvature, as far as θ is from 0, or 1.
    level = line(Saddle(), np.zeros(2), np.array([0.0, 2.0]))
    assert level.steps[-1] == 0.5
    theta = np.array([0.0, 3.0])
    assert line(Saddle(), theta, np.array([1.0, np.sqrt(5.0)])).steps[-1] <= 3.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"direction": np.zeros(2)}, "direction: expected a finite length above 0, got 0.0"),
        ({"direction": np.ones(3)}, r"direction: expected shape \(2,\), got \(3,\)"),
        ({"points": 4}, "points: expected an odd number, got 4"),
        ({"radius": 0.0}, "radius: expected a finite number above 0, got 0.0"),
        ({"radius": np.inf}, "radius: expected a finite number above 0, got inf"),
        ({"theta": np.full(2, 1e200)}, "theta: expected a finite loss, got inf"),
    ],
)
def test_what_is_no_line_is_refused(more: dict[str, object], message: str) -> None:
    asked = {"objective": Rosenbrock(), "theta": np.zeros(2), "direction": np.ones(2), **more}
    with pytest.raises(ValueError, match=message):
        line(**asked)
