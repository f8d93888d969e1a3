"""Verdicts on points whose kind is known, and ways out of saddles with known drops."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import saddlepoint as sp
from saddlepoint import nn, surfaces
from saddlepoint.surfaces import (
    ExponentialDecay,
    FactoredLinear,
    MonkeySaddle,
    Quadratic,
    Quartic,
    Rosenbrock,
    Saddle,
    SeparableLogistic,
)
from saddlepoint.vector import gather

Array = NDArray[Any]
EPS = float(np.finfo(np.float64).eps)


def deep_linear(dtype: str, widths: tuple[int, int, int] = (4, 5, 3)) -> Any:
    """Two linear layers on whitened data, fitting y = Ax: the objective, and A.

    L = (‖A − W₂W₁‖² / outputs): at zero its Hessian is ±2σᵢ/outputs, each as often as there are
    hidden units, and 0 (Baldi & Hornik 1989).
    """
    rng = np.random.default_rng(widths)
    inputs, hidden, outputs = widths
    x = np.linalg.qr(rng.standard_normal((64, inputs)))[0] * 8.0  # xᵀx = 64 I
    a = rng.standard_normal((outputs, inputs))
    net = nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs, False))
    data = x.astype(dtype), (x @ a.T).astype(dtype)
    return sp.NetworkObjective(net, nn.MeanSquaredError(), *data, dtype=dtype), a


def least_squares(dtype: str) -> tuple[sp.NetworkObjective, Array]:
    """One linear layer on noisy data, and its only minimum."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 6)), rng.standard_normal((50, 2))
    solution = np.linalg.lstsq(x, y, rcond=None)[0].T.ravel()
    objective = sp.NetworkObjective(
        nn.Linear(6, 2, bias=False), nn.MeanSquaredError(), x.astype(dtype), y.astype(dtype),
        dtype=dtype,
    )  # fmt: skip
    return objective, solution.astype(dtype)


def of_kind(kind: str, theta: Array) -> Any:
    makers: dict[str, Any] = {
        "numpy": np.copy,
        "Vector": sp.Vector.from_numpy,
        "torch": torch.from_numpy,
    }
    return makers[kind](theta)


KNOWN = [
    Quadratic([2.0, 2.0]),  # S0.3: x² + y²
    Quadratic([-2.0, -2.0]),  # −x² − y²
    Quadratic([2.0, -2.0]),  # x² − y²
    Quartic(1),  # x⁴
    MonkeySaddle(),
    Saddle(),
    Quartic(3),
    Quadratic([3.0, -1.0, 0.0], rng=1),
    Quadratic([3.0, 1.0, 0.0], rng=2),
    Quadratic([0.0, -1.0, -2.0], rng=3),
    *map(FactoredLinear, (1, 2, 3, 5)),
    *map(Rosenbrock, (2, 5, 12)),
]


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_s0_3_every_known_point_of_every_surface(scale: float) -> None:
    classes = {type(s) for s in KNOWN} | {ExponentialDecay, SeparableLogistic, surfaces.Surface}
    everything = {getattr(surfaces, name) for name in surfaces.__all__}
    assert classes == {c for c in everything if issubclass(c, surfaces.Surface)}
    for surface in KNOWN:
        for known in surface.critical_points:
            found = sp.classify(Scaled(surface, scale), known.theta)
            assert found.kind == known.kind, (surface, known)
            if known.eigenvalues is not None:
                size = np.abs(known.eigenvalues).max()
                # The Hessian of each is right to a few roundings of its largest eigenvalue.
                values = found.eigenvalues / scale
                assert_allclose(values, known.eigenvalues, rtol=0, atol=100 * EPS * size)
                assert found.index_at_least == np.sum(known.eigenvalues < 0)
            assert found.exact
            assert found.size == surface.size
            negative = found.lambda_min < -found.tolerance  # then ρ is measured as well
            assert found.products - found.size in ((1, 3) if negative else (0,))


class Scaled:
    """An objective times a number, restricted to some coordinates."""

    device = "cpu"

    def __init__(self, whole: Any, factor: float = 1.0, kept: Any = slice(None)) -> None:
        self.whole, self.factor, self.dtype = whole, factor, whole.dtype
        self.embed = np.eye(whole.size, dtype=whole.dtype)[:, kept]
        self.size = self.embed.shape[1]

    def loss(self, theta: Array) -> float:
        return self.factor * float(self.whole.loss(self.embed @ theta))

    def gradient(self, theta: Array) -> Array:
        gradient: Array = self.factor * (self.embed.T @ self.whole.gradient(self.embed @ theta))
        return gradient

    def linearize(self, theta: Array) -> Any:
        return _ScaledLinearization(self, theta)


class _ScaledLinearization:
    def __init__(self, of: Scaled, theta: Array) -> None:
        self.of, self.at = of, of.whole.linearize(of.embed @ theta)
        self.loss, self.gradient = of.loss(theta), of.gradient(theta)

    def hvp(self, v: Array) -> Array:
        product: Array = self.of.factor * (self.of.embed.T @ self.at.hvp(self.of.embed @ v))
        return product


def test_s0_7_a_minimum_in_the_plane_is_a_saddle_in_space() -> None:
    space = Quadratic([2.0, 2.0, -2.0])  # x² + y² − z²
    plane = Scaled(space, kept=[0, 1])
    inside, outside = sp.classify(plane, np.zeros(2)), sp.classify(space, np.zeros(3))
    assert (inside.kind, inside.index_at_least) == ("minimum", 0)
    assert (outside.kind, outside.index_at_least) == ("saddle", 1)
    assert_allclose(np.abs(outside.direction), [0, 0, 1], atol=1e-15)


def test_s0_4_the_factored_surface_by_its_closed_form() -> None:
    surface = FactoredLinear()
    origin = sp.classify(surface, np.zeros(2))
    assert_allclose(origin.eigenvalues, [-2.0, 2.0], rtol=4 * EPS)
    assert_allclose(abs(origin.direction @ [1.0, 1.0]), np.sqrt(2.0), rtol=4 * EPS)
    assert_allclose(abs(origin.direction_max @ [1.0, -1.0]), np.sqrt(2.0), rtol=4 * EPS)
    for w in (0.25, 1.0, -2.0):
        on_manifold = sp.classify(surface, np.array([w, 1 / w]))
        assert on_manifold.kind == "degenerate"
        curvature = 2 * (w**2 + w**-2)
        assert_allclose(on_manifold.eigenvalues, [0, curvature], rtol=0, atol=10 * EPS * curvature)
    assert sp.classify(surface, np.array([0.5, 0.5])).kind == "not critical"


@pytest.mark.parametrize("x", [-5.0, 0.0, 20.0, 150.0, 300.0, 700.0])
def test_s3_12_functions_without_a_critical_point(x: float) -> None:
    # However flat, the slope is e⁻ˣ and so is the curvature: at x = 700, both near 1e-304.
    assert sp.classify(ExponentialDecay(), np.array([x])).kind == "not critical"
    if x < 300:  # at the margin 900 the loss underflows
        assert sp.classify(SeparableLogistic(), np.full(2, x)).kind == "not critical"


def test_s3_23_a_chain_of_five() -> None:
    point = sp.classify(FactoredLinear(5), np.full(5, 0.1))
    assert point.kind == "not critical"
    # The row halves the loss: ‖g‖ = 2.2e-4, λ = (−.004, .001 four times), to two digits.
    assert_allclose(0.5 * point.gradient_norm, 2.2e-4, rtol=0.02)
    assert_allclose(0.5 * point.eigenvalues, [-0.004] + 4 * [0.001], rtol=0.02)
    way = sp.escape(FactoredLinear(5), np.full(5, 0.1))
    # The gradient lies along (1, …, 1) as well, and helps.
    model = 0.5 * abs(way.eigenvalue) * way.step**2 + point.gradient_norm * abs(way.step)
    assert_allclose(way.predicted_drop, model, rtol=1e-9)
    # From there the direction (1, …, 1) leads to the minimum at 1, found to √eps of the step.
    assert_allclose(way.theta, np.ones(5), atol=1e-6)
    assert way.loss_after < 1e-10


def planted(trial: int) -> tuple[str, Array]:
    """A kind and a spectrum that has it; every sixth is above the exact limit."""
    rng = np.random.default_rng([trial, 77])
    n = int(rng.integers(501, 560)) if trial % 6 == 0 else int(rng.integers(3, 60))
    kind = ("minimum", "saddle", "maximum", "saddle", "saddle")[trial % 5]
    values = rng.uniform(0.3, 0.8, n)
    values[-2:] = 0.1, 1.0  # ends apart from the rest, for Lanczos to be quick
    if kind == "saddle":
        # Down to −1e-3 of the largest, one or a third of all.
        below = n // 3 if trial % 2 else 1
        values[:below] = -(10.0 ** rng.uniform(-3, 0, below))
        values[0] = -(10.0 ** -(trial % 4))
    return kind, rng.permutation(-values if kind == "maximum" else values)


@pytest.mark.slow
def test_a_hundred_planted_spectra_are_never_misjudged() -> None:
    undecided = 0
    for trial in range(100):
        kind, values = planted(trial)
        # Lanczos starts at random: for it, a rotation is nothing new, and large ones take long.
        surface = Quadratic(values, rng=trial if values.size <= 500 else None)
        point = sp.classify(surface, np.zeros(surface.size))
        assert point.kind in (kind, "undecided"), (trial, str(point))
        undecided += point.kind == "undecided"
        assert point.exact == (surface.size <= 500)
        assert point.index_at_least <= np.sum(values < 0)
        if point.exact:
            assert point.index_at_least == np.sum(values < 0)
        u, v = point.direction, point.direction_max
        assert_allclose(u @ surface.matrix @ u, point.lambda_min, rtol=0, atol=1e-12)
        assert_allclose(v @ surface.matrix @ v, point.lambda_max, rtol=0, atol=1e-12)
        # Ends within their bounds of eigenvalues, and inside the spectrum.
        assert np.abs(values - point.lambda_min).min() <= point.residual_min + 1e-12
        assert np.abs(values - point.lambda_max).min() <= point.residual_max + 1e-12
        if trial % 10 == 0:  # a step aside is no critical point, above the limit or below
            aside = 1e-6 * np.random.default_rng(trial).standard_normal(surface.size)
            assert sp.classify(surface, aside).kind == "not critical"
    assert undecided <= 5


@pytest.mark.parametrize("n", [30, 530])
def test_planted_singular_spectra_are_degenerate(n: int) -> None:
    values = np.r_[np.zeros(n // 3), np.linspace(0.4, 0.8, n - n // 3 - 1), 1.0]
    for sign in (1.0, -1.0):
        assert sp.classify(Quadratic(sign * values, rng=0), np.zeros(n)).kind == "degenerate"


def test_a_tiny_budget_leaves_a_minimum_undecided_and_proves_a_saddle() -> None:
    minimum = Quadratic(np.logspace(-2, 0, 600), rng=0)
    point = sp.classify(minimum, np.zeros(600), max_products=6)
    assert point.kind == "undecided"
    assert point.products <= 6
    assert "max_products" in point.reason
    saddle = Quadratic(np.r_[-1.0, np.linspace(0.1, 0.5, 598), 1.0], rng=0)
    point = sp.classify(saddle, np.zeros(600), max_products=12)
    assert point.kind == "saddle"  # two quotients beyond their bounds are enough
    assert point.lambda_min + point.residual_min < 0 < point.lambda_max - point.residual_max
    assert point.index_at_least == 1


def test_lanczos_and_dense_agree_when_asked_for_either() -> None:
    surface = Quadratic(np.r_[-0.5, np.linspace(0.2, 1.0, 80)], rng=0)
    dense = sp.classify(surface, np.zeros(81))
    ends = sp.classify(surface, np.zeros(81), exact=False, k=4)
    assert (dense.exact, ends.exact, ends.kind) == (True, False, "saddle")
    assert ends.products < 81
    assert_allclose(ends.eigenvalues, dense.eigenvalues[[0, 1, -2, -1]], rtol=0, atol=1e-8)
    assert_allclose(abs(ends.direction @ dense.direction), 1.0, rtol=1e-12)


class Cubic:
    """½λ(x² − y²/2) + ρ/6·(x³ + y³): third derivative ρ along both axes."""

    size, dtype, device = 2, np.dtype(np.float64), "cpu"

    def __init__(self, curvature: float, rho: float) -> None:
        self.curvature, self.rho = curvature * np.array([1.0, -0.5]), rho

    def loss(self, theta: Array) -> float:
        return float(self.curvature @ theta**2 / 2 + self.rho * (theta**3).sum() / 6)

    def gradient(self, theta: Array) -> Array:
        gradient: Array = self.curvature * theta + self.rho * theta**2 / 2
        return gradient

    def linearize(self, theta: Array) -> Any:
        at = _ScaledLinearization.__new__(_ScaledLinearization)
        at.loss, at.gradient = self.loss(theta), self.gradient(theta)
        diagonal = self.curvature + self.rho * theta
        at.hvp = lambda v: (diagonal * v.T).T  # type: ignore[method-assign]
        return at


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("rho", [0.3, -5.0])
def test_second_order_stationarity(rho: float, scale: float) -> None:
    point = sp.classify(Cubic(2.0 * scale, rho * scale), np.zeros(2))
    # λ_min = −1 and H changes by ρ along it: the least ε with −1 ≥ −√(ρε) is 1/|ρ|.
    assert point.kind == "saddle"
    assert_allclose(point.lipschitz, abs(rho) * scale, rtol=1e-10)
    assert_allclose(point.stationarity, scale / abs(rho), rtol=1e-10)
    # Where the gradient is what is large, it is the gradient's norm.
    away = sp.classify(Cubic(2.0 * scale, 1e3 * scale), np.array([0.01, -0.01]))
    assert away.lambda_min < 0.0
    assert_allclose(away.stationarity, max(away.gradient_norm, away.lambda_min**2 / away.lipschitz))
    bowl = sp.classify(Quadratic([scale, 2.0 * scale], rng=0), np.ones(2))
    assert np.isnan(bowl.lipschitz)
    assert bowl.stationarity == bowl.gradient_norm
    # (1 − t²/2)² along its own direction: the curvature grows by 3t², at t = 1/100.
    even = sp.classify(Scaled(FactoredLinear(2), scale), np.zeros(2))
    assert_allclose(even.lipschitz, 0.03 * scale, rtol=1e-10)
    flat = sp.classify(Saddle(), np.zeros(2))  # its negative curvature is the same everywhere
    assert (flat.lipschitz, flat.stationarity) == (0.0, np.inf)
    assert flat.to_dict()["stationarity"] == "inf"


NONSENSE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nan": ({"gradient_tolerance": np.nan}, ValueError, "gradient_tolerance: expected a finite"),
    "inf": ({"gradient_tolerance": np.inf}, ValueError, "gradient_tolerance: expected a finite"),
    "negative": ({"gradient_tolerance": -1.0}, ValueError, "gradient_tolerance: expected a finite"),
    "word": ({"gradient_tolerance": "x"}, TypeError, "gradient_tolerance: expected a number"),
    "list": ({"tolerance": [1]}, TypeError, "tolerance: expected a number, got list"),
    "complex": ({"tolerance": 1j}, TypeError, "tolerance: expected a number, got complex"),
    "k bool": ({"k": True}, TypeError, "k: expected an int, got bool"),
    "zero is": ({"tolerance": np.nan}, ValueError, "tolerance: expected a finite number from 0"),
    "k": ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
    "k float": ({"k": 2.0}, TypeError, "k: expected an int, got float"),
    "budget": ({"max_products": 0}, ValueError, "max_products: expected at least 1, got 0"),
    "budget float": ({"max_products": 9.5}, TypeError, "max_products: expected an int, got float"),
    "too small": (
        {"max_products": 3, "exact": False}, ValueError, "max_products: expected at least 4, got 3"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused_first(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="^" + message):
        sp.classify(Saddle(), np.zeros(2), **options)


def test_arguments_the_wrong_way_round() -> None:
    calls: list[Any] = [
        lambda: sp.classify(np.zeros(2), Saddle()),  # type: ignore[arg-type]
        lambda: sp.escape(np.zeros(2), Saddle()),  # type: ignore[arg-type]
        lambda: sp.landscape.plane(np.zeros(2), Saddle(), *np.eye(2)),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(
            TypeError, match=r"^objective: expected an objective .*, and theta after"
        ):
            call()
    with pytest.raises(TypeError, match=r"^objective: expected an objective .* got Linear"):
        sp.classify(torch.nn.Linear(2, 2), np.zeros(6))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^theta: expected an array.*, got Linear"):
        sp.classify(Saddle(), torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^points: expected at least 0, got -1"):
        sp.escape(Saddle(), np.zeros(2), points=-1)
    with pytest.raises(ValueError, match=r"^max_products: expected at least 2, got 1"):
        sp.escape(Saddle(), np.zeros(2), max_products=1)


# The loss over a plane.


def test_a_plane_has_two_axes_of_its_own() -> None:
    surface = Quadratic([3.0, -1.0, 0.5], rng=1)
    theta, d, e = np.random.default_rng(0).standard_normal((3, 3))
    found = sp.landscape.plane(surface, theta, d, e, radius=(2.0, 0.5), points=5)
    assert_allclose(found.alphas, [-2.0, -1.0, 0.0, 1.0, 2.0])
    assert_allclose(found.betas, [-0.5, -0.25, 0.0, 0.25, 0.5])
    for i, alpha in enumerate(found.alphas):
        for j, beta in enumerate(found.betas):
            there = theta + alpha * d + beta * e
            assert_allclose(found.losses[i, j], 0.5 * there @ surface.matrix @ there, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"points": 4}, ValueError, "points: expected an odd number, got 4"),
        ({"points": 1}, ValueError, "points: expected at least 3, got 1"),
        ({"points": 5.0}, TypeError, "points: expected an int, got float"),
        ({"radius": np.nan}, ValueError, "radius: expected a finite number, or two, got nan"),
        ({"radius": (1.0, 2.0, 3.0)}, ValueError, "radius: expected a finite number, or two"),
    ],
)
def test_a_plane_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + message):
        sp.landscape.plane(Saddle(), np.zeros(2), *np.eye(2), **options)


def test_tolerances_are_the_callers() -> None:
    origin = np.zeros(2)
    assert sp.classify(Saddle(), origin, tolerance=1.9).kind == "saddle"
    loose = sp.classify(Saddle(), origin, tolerance=2.1)  # −2 counts as zero
    assert (loose.kind, loose.index_at_least) == ("degenerate", 0)
    aside = np.array([0.01, 0.0])  # ‖g‖ = 0.1
    assert sp.classify(Saddle(), aside).kind == "not critical"
    assert sp.classify(Saddle(), aside, gradient_tolerance=0.11).kind == "saddle"
    assert sp.classify(Saddle(), origin + 1e-14).kind == "saddle"  # rounding of θ


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "Vector", "torch"])
def test_networks(kind: str, dtype: str) -> None:
    objective, a = deep_linear(dtype)
    point = sp.classify(objective, of_kind(kind, np.zeros(objective.size, dtype)))
    sigma = np.linalg.svd(a)[1]
    curvature = np.repeat(2.0 * sigma / 3.0, 5)
    expected = np.sort(np.r_[curvature, -curvature, np.zeros(objective.size - 30)])
    eps = float(np.finfo(dtype).eps)
    assert (point.kind, point.index_at_least) == ("saddle", 15)
    # Sums of 64 rows.
    assert_allclose(point.eigenvalues, expected, rtol=0, atol=64 * eps * curvature.max())

    objective, solution = least_squares(dtype)
    point = sp.classify(objective, of_kind(kind, solution))
    assert (point.kind, point.index_at_least) == ("minimum", 0)
    aside = of_kind(kind, solution + np.ones(12, dtype))
    assert sp.classify(objective, aside).kind == "not critical"


def test_to_dict_is_json_and_str_is_a_sentence() -> None:
    rng = np.random.default_rng(0)
    cases: dict[str, tuple[Any, Array, dict[str, Any]]] = {
        "saddle": (Saddle(), np.zeros(2), {}),
        "minimum": (Rosenbrock(), np.ones(2), {}),
        "maximum": (Quadratic([-1.0, -2.0]), np.zeros(2), {}),
        "degenerate": (Quartic(2), np.zeros(2), {}),
        "not critical": (Rosenbrock(), np.zeros(2), {}),
        "undecided": (Quadratic(rng.uniform(0.01, 1, 600)), np.zeros(600), {"max_products": 4}),
    }
    for kind, (surface, theta, options) in cases.items():
        point = sp.classify(surface, theta, **options)
        plain = json.loads(json.dumps(point.to_dict(), allow_nan=False))
        assert plain["kind"] == point.kind == kind
        assert plain["eigenvalues"] == point.eigenvalues.tolist()
        assert plain["direction"] == {"shape": [point.size], "dtype": "float64"}
        article = "a " if kind in ("saddle", "minimum", "maximum") else ""
        text = str(point)
        assert text.startswith(f"This point is {article}{kind}. ‖g‖ = ")
        assert re.search(r"λ_min = \S+ ± \S+ and λ_max = \S+ ± \S+", text)
        assert f"{point.size} parameters" in text
        assert text.endswith("Hessian products)")
        assert not re.search(r"nan|None|  |\n", text)


@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [
        (np.full(2, np.nan), ValueError, "theta: expected a finite loss and gradient"),
        (np.full(2, 1e200), ValueError, "theta: expected a finite loss and gradient"),
        (np.zeros(3), ValueError, r"theta: expected shape \(2,\), got \(3,\)"),
        (np.zeros(2, "f4"), TypeError, "theta: expected dtype float64, got float32"),
    ],
)
def test_bad_points(theta: Array, error: type[Exception], message: str) -> None:
    for analyse in (sp.classify, sp.escape):
        with pytest.raises(error, match=message):
            analyse(Saddle(), theta)


@pytest.mark.parametrize("n", [3, 600])
def test_products_that_are_not_finite(n: int) -> None:
    broken = Scaled(Quadratic(np.ones(n)))
    broken.linearize = lambda theta: _NotFinite(broken, theta)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="H: expected finite products, got NaN or infinity"):
        sp.classify(broken, np.zeros(n))


class _NotFinite(_ScaledLinearization):
    def hvp(self, v: Array) -> Array:
        return super().hvp(v) * np.nan


# The way out.


def test_s0_5_the_drop_is_predicted() -> None:
    way = sp.escape(FactoredLinear(), np.zeros(2))
    # L = (1 − s²/2)² along u = (1, 1)/√2: least at s² = 2, where the model promises ½·2·2.
    assert_allclose(way.eigenvalue, -2.0, rtol=4 * EPS)
    assert_allclose(np.abs(way.direction), np.sqrt([0.5, 0.5]), rtol=1e-8)
    assert_allclose(abs(way.step), np.sqrt(2.0), rtol=1e-6)  # the bracket's width
    assert_allclose(way.predicted_drop, way.step**2, rtol=1e-12)
    assert_allclose(way.actual_drop, 1.0, atol=1e-11)
    assert_allclose(way.losses, (1.0 - way.steps**2 / 2.0) ** 2, rtol=0, atol=1e-12)
    assert_array_equal(way.steps, np.sort(way.steps))
    assert way.steps[0] < -abs(way.step) < abs(way.step) < way.steps[-1]
    assert way.loss_before == 1.0
    assert way.loss_after == FactoredLinear().loss(way.theta)
    assert_allclose(way.theta, way.step * way.direction, rtol=1e-15)
    assert (way.gradient, way.gradient_steps(0.1)) == (0.0, np.inf)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "Vector", "torch"])
def test_escape_leaves_the_deep_linear_saddle(kind: str, dtype: str) -> None:
    objective, a = deep_linear(dtype)
    theta = of_kind(kind, np.zeros(objective.size, dtype))
    way = sp.escape(objective, theta)
    assert type(way.theta) is type(theta)
    assert not gather(theta).any()
    eps = float(np.finfo(dtype).eps)
    sigma = np.linalg.svd(a)[1][0]
    # W₂W₁ grows to the leading singular pair: s² = 2σ₁, and ‖A‖²/3 loses σ₁²/3.
    assert_allclose(way.eigenvalue, -2.0 * sigma / 3.0, rtol=64 * eps)
    assert_allclose(way.actual_drop, sigma**2 / 3.0, rtol=256 * eps + 1e-10)
    # Flat at the minimum, so the step is known to √eps.
    assert_allclose(way.step**2, 2.0 * sigma, rtol=4 * eps**0.5 + 1e-6)
    assert_allclose(objective.loss(way.theta), way.loss_after, rtol=0)
    assert way.residual < eps**0.5
    assert sp.classify(objective, way.theta, gradient_tolerance=0.01).kind == "saddle"


def test_escape_takes_a_direction_of_any_length() -> None:
    surface = FactoredLinear()
    unit = sp.escape(surface, np.zeros(2), direction=np.sqrt([0.5, 0.5]))
    for length in (0.1, 3.0):
        way = sp.escape(surface, np.zeros(2), direction=length * np.sqrt([0.5, 0.5]))
        assert_allclose(way.eigenvalue, -2.0, rtol=1e-14)
        assert_allclose(way.theta, unit.theta, rtol=1e-5)
        assert_allclose(way.theta, way.step * way.direction, rtol=1e-14)
        assert_allclose(way.predicted_drop, unit.predicted_drop, rtol=1e-5)
        assert_allclose(np.linalg.norm(way.direction), 1.0, rtol=1e-14)
    given = sp.classify(Saddle(), np.zeros(2)).direction
    assert sp.escape(Saddle(), np.zeros(2), direction=given).eigenvalue == -2.0
    with pytest.raises(ValueError, match=r"direction: expected shape \(2,\), got \(3,\)"):
        sp.escape(surface, np.zeros(2), direction=np.ones(3))
    with pytest.raises(ValueError, match="direction: expected"):
        sp.escape(surface, np.zeros(2), direction=np.zeros(2))
    with pytest.raises(ValueError, match="negative curvature, got λ_min = 2 ±"):
        sp.escape(surface, np.zeros(2), direction=np.array([1.0, -1.0]))


@pytest.mark.parametrize(
    ("surface", "theta"),
    [
        (Quadratic([1.0, 2.0], rng=0), np.zeros(2)),
        (Rosenbrock(), np.ones(2)),
        (Quartic(2), np.zeros(2)),
        (FactoredLinear(3), np.ones(3)),
        (Quadratic(np.r_[0.1, np.linspace(0.4, 1.0, 599)]), np.zeros(600)),
    ],
    ids=["bowl", "rosenbrock", "quartic", "manifold", "large"],
)
def test_escape_refuses_where_no_curvature_is_certainly_negative(surface: Any, theta: Any) -> None:
    message = r"theta: expected negative curvature, got λ_min = \S+ ± \S+"
    with pytest.raises(ValueError, match=message):
        sp.escape(surface, theta)


class WeakSaddle32:
    """2 + ½(x² − cy²) + ¼y⁴ in float32, whose loss is a float32 too."""

    size, dtype, device = 2, np.dtype(np.float32), "cpu"

    def __init__(self, c: float) -> None:
        self.curvature = np.array([1.0, -c], np.float32)
        self.quartic = np.array([0.0, 1.0], np.float32)

    def loss(self, theta: Array) -> float:
        return float(np.float32(2) + np.float32(self.curvature @ theta**2 / 2 + theta[1] ** 4 / 4))

    def gradient(self, theta: Array) -> Array:
        gradient: Array = self.curvature * theta + self.quartic * theta**3
        return gradient

    def linearize(self, theta: Array) -> Any:
        at = _ScaledLinearization.__new__(_ScaledLinearization)
        at.loss, at.gradient = self.loss(theta), self.gradient(theta)
        diagonal = self.curvature + 3 * self.quartic * theta**2
        at.hvp = lambda v: (diagonal * v.T).T  # type: ignore[method-assign]
        return at


@pytest.mark.parametrize("c", [1.0, 0.1, 0.01])
def test_escape_steps_beyond_the_rounding_of_the_loss(c: float) -> None:
    way = sp.escape(WeakSaddle32(c), np.zeros(2, np.float32))
    # Least at y² = c, c²/4 lower. At c = 0.01 a step of 1e-3 changes the loss by 5e-9: nothing,
    # beside an eps of 2e-7.
    resolution = 2.0 * float(np.finfo(np.float32).eps)
    assert_allclose(way.actual_drop, c**2 / 4, rtol=0, atol=2 * resolution)


class Island(Saddle):
    """A saddle in a lake of NaN."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def loss(self, theta: Array) -> float:
        return super().loss(theta) if np.linalg.norm(theta) <= self.radius else np.nan


def test_an_escape_never_raises_the_loss() -> None:
    nowhere = sp.escape(Island(0.0), np.zeros(2))
    assert (nowhere.step, nowhere.actual_drop, nowhere.loss_after) == (0.0, 0.0, 0.0)
    assert_array_equal(nowhere.theta, np.zeros(2))
    assert str(nowhere).startswith("No step along λ = -2 ")
    shore = sp.escape(Island(1.0), np.zeros(2))
    assert 0.9 < abs(shore.step) <= 1.0
    assert_allclose(shore.actual_drop, shore.step**2)


def test_gradient_steps_are_those_of_gradient_descent() -> None:
    curvature, lr = 0.5, 0.1
    surface = Quadratic([3.0, -curvature], rng=0)
    start = surface.eigenvectors @ np.array([0.0, 1e-3])
    way = sp.escape(surface, start)
    assert_allclose(abs(way.gradient), curvature * 1e-3, rtol=1e-10)
    assert way.gradient_steps(0.0) == np.inf
    for step in (0.01, 1.0, 300.0):
        predicted = replace(way, step=np.sign(way.step) * step).gradient_steps(lr)
        theta, steps = start.copy(), 0
        while abs(way.direction @ (theta - start)) < step:
            theta, steps = theta - lr * surface.gradient(theta), steps + 1
        assert steps - 1 < predicted <= steps
        # Between two steps, geometric: (1 + ηc)^k − 1 in units of g/c.
        assert_allclose(1e-3 * np.expm1(predicted * np.log1p(lr * curvature)), step, rtol=1e-9)


def test_an_escape_reads_as_a_sentence_and_counts_its_work() -> None:
    calls = []
    surface = FactoredLinear()
    counted = Scaled(surface)
    counted.loss = lambda theta: calls.append(1) or surface.loss(theta)  # type: ignore[method-assign,func-returns-value]
    way = sp.escape(counted, np.zeros(2), points=11)
    assert 0 < way.evaluations <= len(calls) <= way.evaluations + 13
    assert len(way.steps) == len(way.losses) >= 11
    assert re.fullmatch(
        r"Escaped along λ = -2 ± \S+: a step of -?1\.41 took the loss from 1 to \S+ "
        r"\(drop 1, predicted 2\)\.",
        str(way),
    )
