"""Initializers: variances of weights (fan_out, fan_in), and of what flows through them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import Array

VARIANCE: dict[str, Callable[[int, int], float]] = {
    "lecun": lambda fan_out, fan_in: 1 / fan_in,  # LeCun et al. 1998, §4.6
    "xavier": lambda fan_out, fan_in: 2 / (fan_in + fan_out),  # Glorot & Bengio 2010, eq. 12
    "he": lambda fan_out, fan_in: 2 / fan_in,  # He et al. 2015, eq. 10
    "pytorch": lambda fan_out, fan_in: 1 / (3 * fan_in),  # U(±1/√fan_in)
}


def deviations(weights: list[Array], x: Array, activation: Callable[[Array], Array]) -> list[float]:
    """The standard deviation of all activations of each layer, a(x Wᵀ)."""
    result = []
    for weight in weights:
        x = activation(x @ weight.T)
        result.append(float(x.std()))
    return result


def relu(x: Array) -> Array:
    return np.maximum(x, 0)
