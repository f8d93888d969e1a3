"""Activations as layers; the list, and the formulas, are ``csrc/core/activations.hpp``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .._native import module
from ..errors import expected, number
from .layers import Layer

__all__ = ["ACTIVATIONS", "GELU", "LeakyReLU", "ReLU", "Sigmoid", "Tanh"]


@dataclass(frozen=True)
class ReLU(Layer):
    """max(x, 0), with slope 0 at 0."""

    kind = "relu"


@dataclass(frozen=True)
class LeakyReLU(Layer):
    """x, times ``negative_slope`` where it is not above 0."""

    negative_slope: float = 0.01
    kind = "leaky_relu"

    def __post_init__(self) -> None:
        slope = number("negative_slope", self.negative_slope)
        if not math.isfinite(slope):
            raise ValueError(expected("negative_slope", "a finite number", slope))
        object.__setattr__(self, "negative_slope", slope)  # an array of one stays its owner's

    def _spec(self, inputs: int, parameters: int, buffers: int) -> dict[str, Any]:
        spec = super()._spec(inputs, parameters, buffers)
        return {**spec, "negative_slope": self.negative_slope}


@dataclass(frozen=True)
class GELU(Layer):
    """x Φ(x), with the standard normal distribution Φ (Hendrycks & Gimpel 2016).

    0 at −∞, the limit, where PyTorch has NaN.
    """

    kind = "gelu"


@dataclass(frozen=True)
class Tanh(Layer):
    """tanh(x)."""

    kind = "tanh"


@dataclass(frozen=True)
class Sigmoid(Layer):
    """1 / (1 + e⁻ˣ)."""

    kind = "sigmoid"


_LAYERS: dict[str, type[Layer]] = {
    layer.kind: layer for layer in (ReLU, LeakyReLU, GELU, Tanh, Sigmoid)
}
#: The layer of each activation that the core has, by its word.
ACTIVATIONS: dict[str, type[Layer]] = {word: _LAYERS[word] for word in module("cpu").activations}
