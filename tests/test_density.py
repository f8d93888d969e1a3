"""Densities, traces and diagonals against all eigenvalues of dense matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy import stats

import saddlepoint as sp
from saddlepoint import nn
from saddlepoint.curvature.density import _below, student

Array = NDArray[np.float64]


def symmetric(values: Array, rng: np.random.Generator) -> Array:
    """A matrix with given eigenvalues in random directions."""
    q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    matrix: Array = (q * values) @ q.T
    return 0.5 * (matrix + matrix.T)


def spectra(n: int, rng: np.random.Generator) -> dict[str, Array]:
    """As Hessians have them: a bulk about zero and outliers; both signs; zeros; one value."""
    return {
        "bulk": np.concatenate([0.01 * rng.standard_normal(n - 5), [1.0, 2.0, 3.0, 5.0, 9.0]]),
        "both signs": rng.standard_normal(n),
        "zeros": np.concatenate([np.zeros(n // 2), rng.standard_normal(n - n // 2)]),
        "negative": -rng.uniform(1.0, 2.0, n),
        "one": np.full(n, 3.0),
        "two": np.repeat([-1.0, 2.0], [n // 3, n - n // 3]),
    }


@pytest.mark.parametrize("name", ["bulk", "both signs", "zeros", "negative", "one", "two"])
def test_shares_and_counts(name: str, rng: np.random.Generator) -> None:
    n = 200
    values = spectra(n, rng)[name]
    tolerance = 0.005
    found = sp.spectral_density(
        symmetric(values, rng), steps=40, probes=20, tolerance=tolerance, confidence=0.999
    )
    exact = {
        "negative": np.mean(values < -tolerance),
        "zero": np.mean(np.abs(values) <= tolerance),
        "positive": np.mean(values > tolerance),
    }
    for part, share in exact.items():
        got = getattr(found, part)
        assert got.low <= share <= got.high
        assert abs(got.value - share) < 0.15
    assert found.negative_at_least <= np.sum(values < -tolerance)
    assert found.positive_at_least <= np.sum(values > tolerance)
    assert_allclose(found.weights.sum(1), 1.0, rtol=1e-12)
    shares = found.negative.value + found.zero.value + found.positive.value
    assert shares == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
def test_counts_never_exceed_the_exact_ones(rng: np.random.Generator) -> None:
    for case in range(1000):
        n = int(rng.integers(1, 40))
        values = rng.standard_normal(n) * rng.choice([0.0, 1e-3, 1.0], n)
        tolerance = float(rng.choice([0.0, 1e-4, 0.1]))
        matrix = symmetric(values, rng)
        exact = np.linalg.eigvalsh(matrix)
        rounding = 1e-13 * (np.abs(exact).max() or 1.0)
        found = sp.spectral_density(matrix, int(rng.integers(1, 30)), 2, tolerance, rng=case)
        assert found.negative_at_least <= np.sum(exact < -tolerance + rounding)
        assert found.positive_at_least <= np.sum(exact > tolerance - rounding)


@pytest.mark.slow
def test_intervals_hold_as_often_as_they_say(rng: np.random.Generator) -> None:
    values = rng.standard_normal(60)
    matrix = symmetric(values, rng)
    share = float(np.mean(values < -0.2))
    held = 0
    for seed in range(300):
        found = sp.spectral_density(matrix, 15, 5, 0.2, 0.9, rng=seed).negative
        held += found.low <= share <= found.high
    assert held >= 300 * 0.9 - 3 * math.sqrt(300 * 0.09)  # they are wider for the quadrature


def test_the_mean_over_probes_is_the_density(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.standard_normal(80), [4.0, 6.0]])
    found = sp.spectral_density(symmetric(values, rng), 60, 400)
    x, width = np.linspace(-4.0, 8.0, 121), 0.3
    exact = np.exp(-0.5 * ((x[:, None] - values) / width) ** 2).mean(1)
    exact /= width * math.sqrt(2.0 * math.pi)
    mean, low, high = found.curve(x, width)
    assert_allclose(mean, exact, rtol=0, atol=0.05 * exact.max())
    assert np.mean((low <= exact) & (exact <= high)) > 0.85
    moments = [(found.nodes**k * found.weights).sum(1).mean() for k in range(3)]
    assert_allclose(moments, [1.0, values.mean(), (values**2).mean()], rtol=0.1, atol=0.1)


def test_a_probe_is_the_quadrature_of_its_vector(rng: np.random.Generator) -> None:
    """Σ w p(θ) = vᵀ p(H) v for every polynomial of degree up to 2m − 1."""
    matrix = symmetric(rng.standard_normal(30), rng)
    found = sp.spectral_density(matrix, 5, 1, rng=np.random.default_rng(7))
    draws = np.random.default_rng(7)
    v = draws.standard_normal(30)
    v /= np.linalg.norm(v)
    for degree in range(10):
        exact = v @ np.linalg.matrix_power(matrix, degree) @ v
        assert found.weights[0] @ found.nodes[0] ** degree == pytest.approx(
            exact, rel=1e-9, abs=1e-11
        )
    tenth = v @ np.linalg.matrix_power(matrix, 10) @ v
    assert abs(found.weights[0] @ found.nodes[0] ** 10 - tenth) > 1e-6 * tenth


def test_a_quadrature_bounds_what_is_below(rng: np.random.Generator) -> None:
    """Of each vector's own measure, wherever one looks; and no bound is always reached."""
    reached = 0
    for seed in range(40):
        values = rng.standard_normal(25)
        q, _ = np.linalg.qr(rng.standard_normal((25, 25)))
        found = sp.spectral_density((q * values) @ q.T, 6, 1, rng=seed)
        v = np.random.default_rng(seed).standard_normal(25)
        weights = (q.T @ (v / np.linalg.norm(v))) ** 2
        for x in rng.uniform(-2.5, 2.5, 20):
            value, low, high = _below(found.nodes[0], found.weights[0], x, 25)
            exact = weights[values < x].sum()
            assert low - 1e-10 <= exact <= high + 1e-10
            reached += exact < value - 1e-3 or exact > value + 1e-3
    assert reached > 100  # the quadrature alone would not do


def test_no_ghosts(rng: np.random.Generator) -> None:
    """An outlier is seen once by each probe, however long it goes on."""
    values = np.concatenate([rng.uniform(-1.0, 1.0, 299), [100.0]])
    found = sp.spectral_density(symmetric(values, rng), 120, 3)
    assert np.all((found.nodes > 50.0).sum(1) == 1)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 30, 1000])
def test_quantiles_of_student(freedom: int, confidence: float) -> None:
    exact = stats.t.ppf(0.5 * (1.0 + confidence), freedom)
    assert student(confidence, freedom) == pytest.approx(exact, rel=0.02 if freedom == 3 else 4e-3)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("name", ["bulk", "both signs", "zeros", "negative", "one", "two"])
def test_traces_are_within_their_errors(name: str, method: str, rng: np.random.Generator) -> None:
    values = spectra(150, rng)[name]
    matrix = symmetric(values, rng)
    z = []
    for seed in range(12):
        found = sp.trace(matrix, 45, method, rng=seed)
        assert not found.exact
        z.append((found.value - values.sum()) / max(found.error, 1e-9 * abs(values).sum()))
    assert np.abs(np.median(z)) < 2.0  # no bias
    assert np.abs(z).max() < 6.0


def naive_xtrace(matrix: Array, signs: Array) -> Array:
    """Each sample from a basis of its own, as the paper defines it."""
    samples = []
    for i in range(signs.shape[1]):
        q, _ = np.linalg.qr(matrix @ np.delete(signs, i, axis=1))
        u = signs[:, i] - q @ (q.T @ signs[:, i])
        samples.append(np.trace(q.T @ matrix @ q) + u @ matrix @ u)
    return np.array(samples)


def test_xtrace_is_that_of_the_paper(rng: np.random.Generator) -> None:
    matrix = symmetric(rng.standard_normal(40), rng)
    found = sp.trace(matrix, 12, rng=np.random.default_rng(3))
    draws = np.random.default_rng(3)
    signs = np.stack([draws.integers(0, 2, 40) * 2.0 - 1.0 for _ in range(6)], 1)
    assert_allclose(found.samples, naive_xtrace(matrix, signs), rtol=1e-9)
    assert found.products == 12


def test_few_directions_are_found_by_the_better_ones(rng: np.random.Generator) -> None:
    values = np.concatenate([[100.0, -70.0, 50.0], 1e-3 * rng.standard_normal(197)])
    matrix = symmetric(values, rng)
    plain = sp.trace(matrix, 30, "hutchinson").error
    for method in ("hutch++", "xtrace"):
        assert sp.trace(matrix, 30, method).error < 1e-2 * plain


def test_low_rank_is_exact(rng: np.random.Generator) -> None:
    values = np.zeros(100)
    values[:3] = 5.0, -2.0, 1.0
    found = sp.trace(symmetric(values, rng), 40)
    assert found.value == pytest.approx(4.0, rel=1e-10)


def test_small_ones_are_exact(rng: np.random.Generator) -> None:
    matrix = symmetric(rng.standard_normal(9), rng)
    for method in ("hutchinson", "hutch++", "xtrace"):
        found = sp.trace(matrix, 60, method)
        assert found.exact
        assert found.value == pytest.approx(np.trace(matrix), rel=1e-12)
        assert found.products == 9
    assert_allclose(sp.diagonal(matrix).values, np.diag(matrix), rtol=1e-13)
    assert not sp.diagonal(matrix).errors.any()


def test_diagonals_are_within_their_errors(rng: np.random.Generator) -> None:
    matrix = symmetric(rng.standard_normal(120), rng)
    found = sp.diagonal(matrix, 80)
    z = (found.values - np.diag(matrix)) / found.errors
    assert 0.8 < z.std() < 1.2
    rows = np.sqrt((matrix**2).sum(1) - np.diag(matrix) ** 2)
    assert_allclose(np.median(found.errors / rows), 1.0 / math.sqrt(80), rtol=0.1)
    assert found.products == 80


@pytest.mark.parametrize("kind", ["numpy", "torch", "Vector"])
def test_of_hessians_on_all_kinds(kind: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = rng.standard_normal((20, 3)), rng.integers(0, 2, 20)
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype="float64")
    place: Any = {"numpy": np.array, "torch": torch.tensor, "Vector": sp.Vector.from_numpy}[kind]
    H = sp.hessian(objective, place(net.init(0, "float64").theta))
    dense = H.dense()
    assert sp.trace(H).value == pytest.approx(np.trace(dense), rel=1e-11)
    assert_allclose(sp.diagonal(H).values, np.diag(dense), rtol=1e-11, atol=1e-14)
    found = sp.spectral_density(H, probes=3)
    assert_allclose(
        found.negative.value, np.mean(np.linalg.eigvalsh(dense) < -found.tolerance), atol=0.3
    )
    again = sp.spectral_density(H, probes=3)
    assert_array_equal(found.nodes, again.nodes)


@pytest.mark.parametrize("kind", ["numpy", "torch", "Vector"])
def test_blocks_are_those_of_the_whole(kind: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = rng.standard_normal((20, 3)), rng.integers(0, 2, 20)
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype="float64")
    place: Any = {"numpy": np.array, "torch": torch.tensor, "Vector": sp.Vector.from_numpy}[kind]
    theta = net.init(0, "float64").theta
    H = sp.hessian(objective, place(theta))
    dense = H.dense()
    for names, places in (
        ("0.weight", range(12)),
        ("*.bias", [12, 13, 14, 15, 24, 25]),
        (["2.*", "0.bias"], [*range(12, 26)]),
        ("*", range(26)),
    ):
        block = H.restrict(names)
        wanted = dense[np.ix_(places, places)]
        assert_allclose(block.dense(), wanted, rtol=0, atol=1e-15)
        assert_array_equal(sp.vector.gather(block.theta), theta[list(places)])
        exact = np.linalg.eigvalsh(wanted)
        assert_allclose(sp.eigsh(block, 2).values, exact[[0, -1]], rtol=1e-9)
    table = sp.curvature_by_layer(H)
    assert table.layers == ["0", "2"]
    for i, span in enumerate((slice(0, 16), slice(16, 26))):
        exact = np.linalg.eigvalsh(dense[span, span])
        assert_allclose(
            [table.lambda_min[i], table.lambda_max[i]], exact[[0, -1]], rtol=1e-3, atol=1e-12
        )
        assert table.traces[i] == pytest.approx(exact.sum(), rel=1e-10)
    assert table.share.sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"names: expected names of parameters \(0\.weight, "):
        H.restrict("0.wight")
    with pytest.raises(TypeError, match="objective: expected one whose θ has names"):
        sp.hessian(sp.surfaces.Saddle(), np.zeros(2)).restrict("a")


def test_bad_arguments() -> None:
    matrix = np.eye(5)
    for call, text in (
        (lambda: sp.spectral_density(3), "H: expected a matrix or an operator"),
        (lambda: sp.spectral_density(matrix, steps=0), "steps: expected at least 1"),
        (lambda: sp.spectral_density(matrix, probes=1.5), "probes: expected an int"),
        (lambda: sp.spectral_density(matrix, tolerance=-1.0), "tolerance: expected a finite"),
        (lambda: sp.spectral_density(matrix, confidence=1.0), "confidence: expected between"),
        (lambda: sp.spectral_density(np.triu(np.ones((3, 3)))), "H: expected a symmetric"),
        (lambda: sp.spectral_density(np.full((2, 2), np.nan)), "H: expected finite"),
        (lambda: sp.trace(matrix, 1), "products: expected at least 4"),
        (lambda: sp.trace(matrix, method="power"), "method: expected 'hutchinson', 'hutch"),
        (lambda: sp.diagonal(matrix, 1), "products: expected at least 2"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            call()
