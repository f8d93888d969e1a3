"""Initializers: their variances, and what they keep from layer to layer (lectures, S1.23-25)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from reference.init import VARIANCE, deviations, relu
from saddlepoint import nn

Array = NDArray[Any]

NORMAL = ["lecun_normal", "xavier_normal", "he_normal"]
UNIFORM = ["lecun_uniform", "xavier_uniform", "he_uniform", "pytorch_uniform"]


def draw(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return np.asarray(getattr(nn.init, name)(rng, shape))


@pytest.mark.parametrize("shape", [(300, 200), (30, 2000), (2000, 30)], ids=str)
@pytest.mark.parametrize("name", NORMAL + UNIFORM)
def test_variance(name: str, shape: tuple[int, int], rng: np.random.Generator) -> None:
    """S1.23, S1.25. Within 5 deviations of the mean (σ/√n) and variance (σ²√(2/n)) of n draws."""
    w = draw(name, rng, shape)
    variance = VARIANCE[name.split("_")[0]](*shape)
    assert w.shape == shape
    assert w.dtype == np.float64
    assert abs(w.mean()) < 5 * math.sqrt(variance / w.size)
    assert_allclose(w.var(), variance, rtol=5 * math.sqrt(2 / w.size))
    # 60000 normal draws reach past 3.5 deviations; uniform ones stop at √3, and come near.
    furthest = np.abs(w).max() / math.sqrt(variance)
    assert 3.5 < furthest < 6 if name in NORMAL else 0.999 * math.sqrt(3) < furthest < math.sqrt(3)


def test_xavier_uniform_ends_at_the_lectures_limit(rng: np.random.Generator) -> None:
    """S1.25: U(±√6/√(in + out))."""
    w = draw("xavier_uniform", rng, (100, 500))
    limit = math.sqrt(6) / math.sqrt(600)
    assert 0.999 * limit < w.max() < limit
    assert -limit < w.min() < -0.999 * limit


def test_zeros(rng: np.random.Generator) -> None:
    assert_array_equal(nn.init.zeros(rng, (3, 4)), np.zeros((3, 4)))


@pytest.mark.parametrize("name", ["lecun_normal", "lecun_uniform"])
def test_lecun_keeps_the_variance_through_a_linear_layer(
    name: str, rng: np.random.Generator
) -> None:
    """S1.23: Var[y] = 1 for Var[x] = 1. Over 300 neurons of ‖w‖² = 1 ± √(2/400): 0.4 %, times 5."""
    layer = nn.Linear(400, 300, weight_init=getattr(nn.init, name))
    named = layer.unflatten(layer.init(rng, "float64").theta)
    y = rng.standard_normal((1000, 400)) @ named["weight"].T + named["bias"]
    assert_allclose(y.var(), 1, rtol=0.02)


# Measured for the lectures, six layers of 1000 (std by layer). Other draws of tanh networks differ
# by 0.01. Behind ReLU all rows share a direction, so the mean square of a layer is one over 1000
# neurons whose squares have variance 5: 0.03 for a layer, 0.05 for six layers of 3 networks.
LAYERS = [
    ("pytorch_uniform", np.tanh, [0.46, 0.25, 0.14, 0.08, 0.05, 0.03]),
    ("lecun_normal", np.tanh, [0.63, 0.49, 0.41, 0.36, 0.32, 0.30]),
    ("xavier_normal", np.tanh, [0.63, 0.49, 0.41, 0.36, 0.32, 0.29]),
    ("xavier_uniform", np.tanh, [0.63, 0.49, 0.41, 0.36, 0.32, 0.29]),
    ("he_normal", relu, [0.83, 0.83, 0.81, 0.82, 0.81, 0.82]),
    ("he_uniform", relu, [0.83, 0.83, 0.81, 0.82, 0.81, 0.82]),
]


@pytest.mark.parametrize(("name", "activation", "wanted"), LAYERS, ids=[r[0] for r in LAYERS])
def test_deviation_by_layer(
    name: str, activation: Any, wanted: list[float], rng: np.random.Generator
) -> None:
    """S1.24, S1.25: tanh shrinks the signal slowly with Glorot's weights, fast with U(±1/√n)."""
    initializer = getattr(nn.init, name)
    net = nn.Sequential(*(nn.Linear(1000, 1000, False, initializer) for _ in wanted))
    x = rng.standard_normal((200, 1000)).astype(np.float32)
    measured = []
    for _ in range(3):
        weights = list(net.unflatten(net.init(rng).theta).values())
        measured.append(deviations(weights, x, activation))
    assert_allclose(np.mean(measured, axis=0), wanted, atol=0.1 if activation is relu else 0.01)


def test_tanh_does_not_keep_the_variance(rng: np.random.Generator) -> None:
    """S1.24, and error 14 of the lectures: Var[tanh(y)] = 0.394 for y ~ N(0, 1), not 1."""
    w = draw("lecun_normal", rng, (500, 500))
    (deviation,) = deviations([w], rng.standard_normal((500, 500)), np.tanh)
    assert_allclose(deviation**2, 0.394, atol=0.01)


def test_biases_start_at_zero_except_as_pytorchs(rng: np.random.Generator) -> None:
    layer = nn.Linear(50, 4000)
    bias = layer.unflatten(layer.init(rng, "float64").theta)["bias"]
    assert 0.999 / math.sqrt(50) < np.abs(bias).max() < 1 / math.sqrt(50)
    assert_allclose(bias.var(), 1 / 150, rtol=5 * math.sqrt(2 / 4000))
    for name in NORMAL + UNIFORM[:-1]:
        layer = nn.Linear(3, 5, weight_init=getattr(nn.init, name))
        assert_array_equal(layer.unflatten(layer.init(rng).theta)["bias"], np.zeros(5))
