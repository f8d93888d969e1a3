"""Initializers: functions (rng, shape) -> float64 weights, with shape (fan_out, fan_in).

Each keeps some variance from layer to layer; the docstrings say which. Drawn on the host in
float64, so that dtypes and devices start from the same numbers.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Initializer",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "pytorch_uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]


class Initializer(Protocol):
    """Draws the weights of one layer."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]: ...


def _normal(rng: np.random.Generator, shape: tuple[int, int], variance: float) -> NDArray[Any]:
    return rng.normal(0.0, math.sqrt(variance), shape)


def _uniform(rng: np.random.Generator, shape: tuple[int, int], variance: float) -> NDArray[Any]:
    limit = math.sqrt(3.0 * variance)  # Var U(-a, a) = a²/3
    return rng.uniform(-limit, limit, shape)


def lecun_normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Var = 1 / fan_in: a linear layer keeps the variance of its input (LeCun et al. 1998)."""
    return _normal(rng, shape, 1.0 / shape[1])


def lecun_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """`lecun_normal`'s variance, uniform."""
    return _uniform(rng, shape, 1.0 / shape[1])


def xavier_normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Var = 2 / (fan_in + fan_out): between forward and backward (Glorot & Bengio 2010)."""
    return _normal(rng, shape, 2.0 / sum(shape))


def xavier_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """`xavier_normal`'s variance, U(±√6/√(fan_in + fan_out))."""
    return _uniform(rng, shape, 2.0 / sum(shape))


def he_normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Var = 2 / fan_in: a ReLU halves the second moment (He et al. 2015)."""
    return _normal(rng, shape, 2.0 / shape[1])


def he_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """`he_normal`'s variance, uniform."""
    return _uniform(rng, shape, 2.0 / shape[1])


def pytorch_uniform(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """U(±1/√fan_in), Var = 1 / (3 fan_in): the default of ``torch.nn.Linear``."""
    return _uniform(rng, shape, 1.0 / (3.0 * shape[1]))


def zeros(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Zero weights: the saddle point of a deep linear network."""
    del rng
    return np.zeros(shape)
