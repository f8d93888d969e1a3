"""The surfaces against finite differences, and the lectures' closed forms on them (S rows)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from saddlepoint.surfaces import (
    ExponentialDecay,
    FactoredLinear,
    MonkeySaddle,
    Quadratic,
    Quartic,
    Rosenbrock,
    Saddle,
    SeparableLogistic,
    Surface,
)

Array = NDArray[np.float64]
EPS = np.finfo(np.float64).eps

SURFACES: dict[str, Callable[[], Surface]] = {
    "quadratic-diagonal": lambda: Quadratic([3.0, -1.0, 0.0]),
    "quadratic-rotated": lambda: Quadratic([3.0, -1.0, 0.0, 0.5], rng=1),
    "bowl": lambda: Quadratic([2.0, 2.0]),
    "dome": lambda: Quadratic([-2.0, -0.5], rng=2),
    "factored-1": lambda: FactoredLinear(1),
    "factored-2": lambda: FactoredLinear(),
    "factored-3": lambda: FactoredLinear(3),
    "factored-5": lambda: FactoredLinear(depth=5),
    "saddle": Saddle,
    "monkey": MonkeySaddle,
    "quartic-1": lambda: Quartic(),
    "quartic-3": lambda: Quartic(3),
    "rosenbrock-2": lambda: Rosenbrock(),
    "rosenbrock-5": lambda: Rosenbrock(5),
    "exponential": ExponentialDecay,
    "logistic": SeparableLogistic,
}


@pytest.fixture(params=list(SURFACES.values()), ids=list(SURFACES))
def surface(request: pytest.FixtureRequest) -> Surface:
    made: Surface = request.param()
    return made


def descend(surface: Surface, theta: Array, rate: float, steps: int) -> Array:
    """The iterates of gradient descent, (steps + 1, n)."""
    path = [theta]
    for _ in range(steps):
        path.append(path[-1] - rate * surface.gradient(path[-1]))
    return np.array(path)


def directions_around(n: int) -> Array:
    """Unit vectors: dense on the circle for n = 2, random and along the axes above."""
    if n == 2:
        angle = np.linspace(0.0, 2.0 * np.pi, 360, endpoint=False)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    vectors = np.concatenate(
        [np.eye(n), -np.eye(n), np.random.default_rng(0).standard_normal((300, n))]
    )
    unit: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def test_gradient_matches_central_differences(surface: Surface) -> None:
    step = EPS ** (1 / 3)
    for theta in np.random.default_rng(3).standard_normal((5, surface.size)):
        gradient = surface.gradient(theta)
        difference = [
            (surface.loss(theta + step * e) - surface.loss(theta - step * e)) / (2 * step)
            for e in np.eye(surface.size)
        ]
        # The optimal step errs by eps^(2/3) of the size of L and its third derivative; the factor
        # is for the latter, which is the larger one on Rosenbrock.
        scale = 1.0 + abs(surface.loss(theta)) + np.abs(gradient).max()
        assert_allclose(gradient, difference, rtol=0, atol=100 * EPS ** (2 / 3) * scale)


def test_hessian_matches_central_differences(surface: Surface) -> None:
    step = EPS ** (1 / 3)
    for theta in np.random.default_rng(4).standard_normal((5, surface.size)):
        hessian = surface.hessian(theta)
        difference = [
            (surface.gradient(theta + step * e) - surface.gradient(theta - step * e)) / (2 * step)
            for e in np.eye(surface.size)
        ]
        scale = 1.0 + np.abs(surface.gradient(theta)).max() + np.abs(hessian).max()
        assert_allclose(hessian, difference, rtol=0, atol=100 * EPS ** (2 / 3) * scale)
        assert_array_equal(hessian, hessian.T)


def test_linearization_agrees_with_the_surface_and_does_not_follow_theta(surface: Surface) -> None:
    theta = np.random.default_rng(5).standard_normal(surface.size)
    loss, gradient, hessian = surface.loss(theta), surface.gradient(theta), surface.hessian(theta)
    point = surface.linearize(theta)
    theta += 1.0
    assert isinstance(point.loss, float)
    assert point.loss == loss
    assert_array_equal(point.gradient, gradient)
    assert_array_equal(point.hvp(np.eye(surface.size)), hessian)


def test_hvp_of_a_block_is_its_columns_one_by_one(surface: Surface) -> None:
    rng = np.random.default_rng(6)
    point = surface.linearize(rng.standard_normal(surface.size))
    block = rng.standard_normal((surface.size, 3))
    one_by_one = np.stack([point.hvp(column) for column in block.T], axis=1)
    # Sums of n ≤ 5 terms in whatever order BLAS takes for each shape.
    atol = 5 * EPS * np.abs(point.hessian).max() * np.abs(block).max() * surface.size
    for product in (point.hvp(block), point.hvp(np.asfortranarray(block))):
        assert product.shape == block.shape
        assert_allclose(product, one_by_one, rtol=0, atol=atol)
    assert point.hvp(np.zeros((surface.size, 0))).shape == (surface.size, 0)


def test_known_points_are_critical_and_of_their_kind(surface: Surface) -> None:
    for theta, kind, eigenvalues in surface.critical_points:
        assert_array_equal(surface.gradient(theta), np.zeros(surface.size))
        found = np.linalg.eigvalsh(surface.hessian(theta))
        if eigenvalues is not None:
            # Backward stability of eigvalsh: a modest multiple of eps ‖H‖.
            assert_allclose(found, eigenvalues, rtol=0, atol=20 * EPS * np.abs(found).max())
        # The kind by losses alone, on a sphere so small that the quadratic term, ½|λ|·1e-6,
        # decides.
        around = [surface.loss(theta + 1e-3 * d) for d in directions_around(surface.size)]
        rises = np.array(around) - surface.loss(theta) > 1e-8
        falls = np.array(around) - surface.loss(theta) < -1e-8
        if kind == "minimum":
            assert rises.all()
        elif kind == "maximum":
            assert falls.all()
        elif kind == "saddle":
            assert rises.any()
            assert falls.any()
        else:
            assert kind == "degenerate"
            assert not falls.any() or not rises.any()
            assert np.abs(found).min() <= 20 * EPS * max(np.abs(found).max(), 1.0)


def test_bad_theta_and_v_are_refused(surface: Surface) -> None:
    n = surface.size
    point = surface.linearize(np.ones(n))
    a_list: Any = [1.0] * n
    single: Any = np.ones(n, np.float32)
    integers: Any = np.ones(n, np.int64)
    for call in (surface.loss, surface.gradient, surface.hessian, surface.linearize):
        with pytest.raises(TypeError, match=r"theta: expected a float64 array, got list"):
            call(a_list)
        with pytest.raises(TypeError, match=r"theta: expected dtype float64, got float32"):
            call(single)
        for array in (np.ones(()), np.ones(n + 1), np.ones((1, n))):
            with pytest.raises(ValueError, match=r"theta: expected shape"):
                call(array)
    with pytest.raises(TypeError, match=r"v: expected dtype float64, got int64"):
        point.hvp(integers)
    for v in (np.ones(()), np.ones(n + 1), np.ones((n + 1, 2)), np.ones((n, 1, 1))):
        with pytest.raises(ValueError, match=r"v: expected shape"):
            point.hvp(v)


def test_non_finite_values_propagate_without_a_warning(surface: Surface) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (np.nan, np.inf, -np.inf, 1e200, -1e200):
            point = surface.linearize(np.full(surface.size, value))
            point.hvp(np.ones(surface.size))
        assert np.isnan(surface.loss(np.full(surface.size, np.nan)))
        assert np.isnan(surface.gradient(np.full(surface.size, np.nan))).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Quadratic([]), ValueError, "eigenvalues: expected shape"),
        (lambda: Quadratic(np.eye(2)), ValueError, "eigenvalues: expected shape"),
        (lambda: Quadratic([1.0, np.nan]), ValueError, "eigenvalues: expected finite"),
        (lambda: FactoredLinear(0), ValueError, "depth: expected at least 1, got 0"),
        (lambda: FactoredLinear(cast(Any, 2.0)), TypeError, "depth: expected an int"),
        (lambda: Quartic(0), ValueError, "size: expected at least 1"),
        (lambda: Rosenbrock(1), ValueError, "size: expected at least 2"),
        (lambda: SeparableLogistic(np.ones((2, 1))), TypeError, "x, y: expected both"),
        (lambda: SeparableLogistic(np.ones(2), np.ones(2)), ValueError, "x: expected shape"),
        (lambda: SeparableLogistic(np.ones((2, 1)), np.ones(3)), ValueError, "y: expected shape"),
        (lambda: SeparableLogistic(np.ones((2, 1)), np.zeros(2)), ValueError, "y: expected -1 or"),
    ],
)
def test_bad_arguments_are_refused(
    make: Callable[[], Surface], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_quadratic_plants_its_spectrum() -> None:
    planted = np.array([5.0, -2.0, 0.0, 1e-3])
    surface = Quadratic(planted, rng=7)
    q = surface.eigenvectors
    assert_allclose(q.T @ q, np.eye(4), atol=10 * EPS)
    # Column i belongs to eigenvalue i, in the order given.
    assert_allclose(surface.matrix @ q, q * planted, atol=50 * EPS)
    assert_array_equal(surface.matrix, Quadratic(planted, np.random.default_rng(7)).matrix)
    assert_array_equal(Quadratic(planted).matrix, np.diag(planted))
    assert surface.minimizer is None
    minimizer = Quadratic([1.0, 0.0]).minimizer
    assert minimizer is not None
    assert_array_equal(minimizer, [0.0, 0.0])


def test_random_rotations_are_uniform() -> None:
    corner = [Quadratic([1.0, 2.0], rng=seed).eigenvectors[0, 0] for seed in range(200)]
    # QR as it comes fixes this sign. A fair one is off by 40 in 200 with probability 2e-8.
    assert 60 < np.sum(np.array(corner) > 0) < 140


def test_returned_hessian_is_the_callers() -> None:
    surface = Quadratic([1.0, 2.0])
    surface.hessian(np.zeros(2))[0, 0] = 9.0
    assert_array_equal(surface.hessian(np.zeros(2)), np.diag([1.0, 2.0]))


def test_factored_linear_lists_saddle_and_plateau() -> None:
    def kinds(depth: int) -> list[tuple[list[float], str]]:
        known = FactoredLinear(depth).critical_points
        return [(point.theta.tolist(), point.kind) for point in known]

    assert kinds(1) == [([1.0], "minimum")]
    assert ([0.0, 0.0], "saddle") in kinds(2)
    assert ([0.0, 0.0, 1.0], "saddle") in kinds(3)
    assert ([0.0, 0.0, 0.0], "degenerate") in kinds(3)


def test_logistic_is_stable_where_exp_overflows() -> None:
    surface = SeparableLogistic(np.array([[1.0], [-2.0]]), np.array([1.0, -1.0]))
    # Margins are (w, 2w). At w = −1000 the loss is the mean of −margins, the slope that of −rows;
    # at w = 300, log(1 + e⁻³⁰⁰) = e⁻³⁰⁰ (and e⁻⁶⁰⁰ is nothing beside it).
    assert surface.loss(np.array([-1000.0])) == 1500.0
    assert_array_equal(surface.gradient(np.array([-1000.0])), [-1.5])
    # The argument of exp carries an error of 300 eps.
    assert_allclose(surface.loss(np.array([300.0])), 0.5 * np.exp(-300.0), rtol=1e-13)
    assert_allclose(surface.gradient(np.array([300.0])), -0.5 * np.exp([-300.0]), rtol=1e-13)


@pytest.mark.parametrize(
    ("surface", "kind", "signs"),
    [
        (Quadratic([2.0, 2.0]), "minimum", [1, 1]),
        (Quadratic([-2.0, -2.0]), "maximum", [-1, -1]),
        (Quadratic([2.0, -2.0]), "saddle", [-1, 1]),
        (Quartic(1), "degenerate", [0]),
        (MonkeySaddle(), "degenerate", [0, 0]),
    ],
    ids=["x2+y2", "-x2-y2", "x2-y2", "x4", "monkey"],
)
def test_s0_3_eigenvalue_signs_name_the_point(
    surface: Surface, kind: str, signs: list[int]
) -> None:
    (point,) = surface.critical_points
    assert point.kind == kind
    assert_array_equal(np.sign(np.linalg.eigvalsh(surface.hessian(point.theta))), signs)


def test_s0_4_error_surface_of_two_factors() -> None:
    surface = FactoredLinear()
    for w1, w2 in np.random.default_rng(8).standard_normal((5, 2)):
        theta = np.array([w1, w2])
        hessian = [[2 * w2**2, -2 + 4 * w1 * w2], [-2 + 4 * w1 * w2, 2 * w1**2]]
        # A handful of roundings.
        assert_allclose(surface.loss(theta), (1 - w1 * w2) ** 2, rtol=10 * EPS)
        assert_allclose(surface.hessian(theta), hessian, rtol=0, atol=20 * EPS)
    values, vectors = np.linalg.eigh(surface.hessian(np.zeros(2)))
    assert_allclose(values, [-2.0, 2.0], rtol=4 * EPS)
    assert_allclose(np.abs(vectors[:, 0]), [np.sqrt(0.5)] * 2, rtol=4 * EPS)
    assert vectors[0, 0] * vectors[1, 0] > 0
    for w1 in (0.25, 1.0, -2.0):
        on_manifold = np.array([w1, 1 / w1])
        assert_array_equal(surface.gradient(on_manifold), [0.0, 0.0])
        curvature = 2 * (w1**2 + w1**-2)
        values = np.linalg.eigvalsh(surface.hessian(on_manifold))
        assert_allclose(values, [0.0, curvature], rtol=0, atol=10 * EPS * curvature)


def test_s0_5_escape_along_the_negative_direction() -> None:
    surface = FactoredLinear()
    u = np.array([1.0, 1.0]) / np.sqrt(2.0)
    point = surface.linearize(np.zeros(2))
    curvature = u @ point.hvp(u)
    assert_allclose(curvature, -2.0, rtol=4 * EPS)
    for s in (1e-3, 0.1, 1.0, np.sqrt(2.0)):
        actual = surface.loss(s * u)
        assert_allclose(actual, (1 - s**2 / 2) ** 2, rtol=0, atol=8 * EPS)
        # The prediction ½λs² leaves out s⁴/4, and nothing else.
        predicted = point.loss + 0.5 * curvature * s**2
        assert_allclose(actual - predicted, s**4 / 4, rtol=0, atol=8 * EPS)


def test_s2_4_optimal_rate_is_one_over_the_second_derivative() -> None:
    for curvature in (0.3, 2.0, 700.0):
        surface = Quadratic([curvature])
        theta = np.array([-1.7])
        rate = 1.0 / surface.hessian(theta)[0, 0]
        # η E'' is 1 to one rounding, so what remains is one ulp of θ.
        after = theta - rate * surface.gradient(theta)
        assert_allclose(after, [0.0], atol=2 * EPS * 1.7)


@pytest.mark.parametrize(
    ("share", "signs", "shrinks"),
    [(0.25, 1, True), (1.5, -1, True), (2.5, -1, False)],
    ids=["monotone", "oscillate", "diverge"],
)
def test_s2_5_rate_decides_between_monotone_oscillating_and_divergent(
    share: float, signs: int, shrinks: bool
) -> None:
    curvature = 4.0
    path = descend(Quadratic([curvature]), np.array([1.0]), share / curvature, 20)[:, 0]
    # share and curvature are short binary fractions: every iterate is exact.
    assert_array_equal(path, (1.0 - share) ** np.arange(21))
    assert_array_equal(np.sign(path[1:] / path[:-1]), np.full(20, signs))
    assert_array_equal(np.abs(path[1:]) < np.abs(path[:-1]), np.full(20, shrinks))


def test_s2_5_the_optimal_rate_takes_one_step_and_twice_it_never_ends() -> None:
    surface = Quadratic([4.0])
    assert_array_equal(descend(surface, np.array([1.0]), 1 / 4, 2)[:, 0], [1.0, 0.0, 0.0])
    assert_array_equal(descend(surface, np.array([1.0]), 2 / 4, 3)[:, 0], [1.0, -1.0, 1.0, -1.0])


def test_s2_7_coordinates_decouple_when_a_is_diagonal() -> None:
    diagonal = np.array([0.5, 2.0, 8.0])
    surface = Quadratic(diagonal)
    theta = np.array([3.0, -1.0, 5.0])
    for i in range(3):
        moved = theta.copy()
        moved[i] += 1.0
        changed = surface.gradient(moved) != surface.gradient(theta)
        assert_array_equal(changed, np.eye(3, dtype=bool)[i])
    # Powers of two: one step at η_i = 1/a_ii is exact.
    assert_array_equal(theta - surface.gradient(theta) / diagonal, np.zeros(3))
    rotated = Quadratic(diagonal, rng=9)
    after = theta - rotated.gradient(theta) / np.diag(rotated.matrix)
    assert np.abs(after).max() > 0.1  # the same recipe misses where coordinates couple


@pytest.mark.parametrize("spectrum", [[0.5, 2.0, 9.0], [-1.0, 0.5, 4.0], [-3.0, -1.0, -0.1]])
def test_s3_6_taylor_predicts_a_gradient_step_exactly(spectrum: list[float]) -> None:
    surface = Quadratic(spectrum, rng=10)
    theta = np.random.default_rng(11).standard_normal(3)
    point = surface.linearize(theta)
    g = point.gradient
    gg, ghg = float(g @ g), float(g @ point.hvp(g))
    for step in (1e-3, 0.1, 1.0):
        actual = surface.loss(theta - step * g)
        predicted = point.loss - step * gg + 0.5 * step**2 * ghg
        # Roundings of the three terms.
        scale = abs(point.loss) + step * gg + step**2 * abs(ghg)
        assert_allclose(actual, predicted, rtol=0, atol=30 * EPS * scale)
        # No direction of curvature is worse than λmax.
        least_drop = (step - 0.5 * step**2 * max(spectrum)) * gg
        assert point.loss - actual >= least_drop - 30 * EPS * scale
    if ghg <= 0:
        assert surface.loss(theta - 100.0 * g) < surface.loss(theta - g) < point.loss
    else:
        best = gg / ghg
        along = [surface.loss(theta - best * factor * g) for factor in (0.99, 1.0, 1.01)]
        assert along[1] < min(along[0], along[2])
        assert_allclose(point.loss - along[1], 0.5 * gg**2 / ghg, rtol=1e-12)


def test_s3_6_the_worst_case_is_the_steepest_eigenvector() -> None:
    surface = Quadratic([0.5, 2.0, 8.0])
    theta, step = np.array([0.0, 0.0, 1.0]), 0.0625
    g = surface.gradient(theta)
    drop = surface.loss(theta) - surface.loss(theta - step * g)
    assert drop == (step - 0.5 * step**2 * 8.0) * (g @ g)


def test_s3_8_newton_solves_a_quadratic_in_one_step() -> None:
    surface = Quadratic([-3.0, 0.5, 2.0, 7.0], rng=12)
    theta = np.random.default_rng(13).standard_normal(4)
    point = surface.linearize(theta)
    after = theta + np.linalg.solve(point.hessian, -point.gradient)
    # Condition 14 times eps times ‖θ‖, with room for the solve.
    assert_allclose(after, np.zeros(4), atol=14 * 20 * EPS)


def test_s3_9_newton_reaches_the_saddle_and_its_absolute_value_leaves() -> None:
    surface, theta = Saddle(), np.array([1.0, 0.5])
    assert surface.loss(theta) == 5 * 1.0**2 - 0.5**2
    point = surface.linearize(theta)
    newton = theta - np.linalg.solve(point.hessian, point.gradient)
    assert_array_equal(newton, surface.critical_points[0].theta)
    values, q = np.linalg.eigh(point.hessian)
    saddle_free = theta - q @ ((q.T @ point.gradient) / np.abs(values))
    assert_array_equal(saddle_free, [0.0, 1.0])  # x solved, y twice as far out
    assert surface.loss(saddle_free) < surface.loss(newton) < surface.loss(theta)


def test_s3_12_functions_without_a_critical_point() -> None:
    decay, logistic = ExponentialDecay(), SeparableLogistic()
    assert decay.critical_points == logistic.critical_points == ()
    rng = np.random.default_rng(14)
    for theta in 5.0 * rng.standard_normal((20, 1)):
        assert decay.gradient(theta)[0] == -decay.loss(theta) < 0
    # (1, 1) separates the default rows, so every gradient points against it: it never vanishes.
    u = np.ones(2)
    for theta in 5.0 * rng.standard_normal((20, 2)):
        assert logistic.gradient(theta) @ u < 0
    losses = [logistic.loss(s * u) for s in (1.0, 10.0, 100.0, 200.0)]
    assert losses == sorted(losses, reverse=True)
    assert 0 < losses[-1] < 1e-200


def test_s3_14_gradient_flow_flees_the_saddle_as_predicted() -> None:
    spectrum = np.array([-1.5, -0.2, 0.0, 1e-9, 0.7, 3.0])
    surface = Quadratic(spectrum, rng=15)
    theta = np.random.default_rng(16).standard_normal(6)
    time, steps = 2.0, 2000
    g, q = surface.gradient(theta), surface.eigenvectors
    positive = np.where(spectrum == 0, 1.0, spectrum)
    reach = np.where(spectrum == 0, time, -np.expm1(-positive * time) / positive)
    predicted = theta - q @ (reach * (q.T @ g))
    h = time / steps
    state = theta
    for _ in range(steps):  # Runge-Kutta of fourth order on θ' = −∇L
        k1 = -surface.gradient(state)
        k2 = -surface.gradient(state + 0.5 * h * k1)
        k3 = -surface.gradient(state + 0.5 * h * k2)
        k4 = -surface.gradient(state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    # Local error (λh)⁵/120 over 2000 steps, times the growth e³: 3e-12, and their roundings.
    assert_allclose(state, predicted, rtol=0, atol=1e-11)
    assert np.linalg.norm(predicted) > 5 * np.linalg.norm(theta)
    assert surface.loss(predicted) < 0 < surface.loss(q[:, -1])


def test_s3_23_a_chain_of_five_vanishes() -> None:
    surface = FactoredLinear(depth=5)
    point = surface.linearize(np.full(5, 0.1))
    # The row's numbers are of ½(1 − w₁⋯w₅)², half of this surface, to the two digits printed there.
    assert_allclose(0.5 * np.linalg.norm(point.gradient), 2.2e-4, rtol=0.02)
    values = 0.5 * np.linalg.eigvalsh(point.hessian)
    assert_allclose(values, [-0.004, 0.001, 0.001, 0.001, 0.001], rtol=0.02)
    # To all digits: g = −(1 − w⁵)w⁴ each, H = w⁸ on the diagonal, 2w⁸ − w³ beside it.
    w = 0.1
    assert_allclose(0.5 * point.gradient, np.full(5, -(1 - w**5) * w**4), rtol=10 * EPS)
    beside = 2 * w**8 - w**3
    exact = [w**8 + 4 * beside] + [w**8 - beside] * 4
    assert_allclose(values, exact, rtol=0, atol=20 * EPS * 0.004)


def test_s1_9_escape_coefficients_follow_the_power_law() -> None:
    spectrum, rate, steps = np.array([-1.0, -0.1, 0.5, 4.0]), 0.1, 50
    surface = Quadratic(spectrum, rng=17)
    start = np.array([1e-3, -0.7, 0.4, 1.0])
    path = descend(surface, surface.eigenvectors @ start, rate, steps)
    coefficients = path @ surface.eigenvectors
    powers = (1.0 - rate * spectrum) ** np.arange(steps + 1)[:, None]
    # Roundings of one step, 1e-16, grow as the escaping coefficient does, 1.1⁵⁰ = 117 times.
    assert_allclose(coefficients, powers * start, rtol=0, atol=1e-12)
    assert abs(coefficients[-1, 0]) > 100 * abs(start[0])


def test_s1_9_a_start_without_the_escape_direction_stays() -> None:
    path = descend(Quadratic([-1.0, 2.0]), np.array([0.0, 1.0]), 0.25, 60)
    assert_array_equal(path[:, 0], np.zeros(61))
    assert_array_equal(path[:, 1], 0.5 ** np.arange(61))  # into the saddle, exactly


def test_s1_10_gradient_descent_oscillates_on_ellipses_and_newton_does_not() -> None:
    surface = Quadratic([1.0, 50.0])
    theta = np.array([1.0, 1.0])
    path = descend(surface, theta, 1.9 / 50.0, 40)
    assert_array_equal(np.sign(path[:, 1]), (-1.0) ** np.arange(41))
    assert np.all(np.diff(path[:, 0]) < 0)  # while the flat axis creeps, without turning
    assert path[-1, 0] > 0.2
    newton = theta - np.linalg.solve(surface.hessian(theta), surface.gradient(theta))
    assert_array_equal(newton, np.zeros(2))
