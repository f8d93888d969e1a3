"""Slices of a loss against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from saddlepoint.landscape import plane
from saddlepoint.surfaces import Rosenbrock


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
