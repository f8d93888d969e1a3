"""Networks: layers, losses, initializers."""

from . import init
from .layers import (
    BatchNorm,
    Entry,
    Identity,
    Layer,
    Linear,
    Parameters,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
)
from .losses import CrossEntropy, Loss, MeanSquaredError

__all__ = [
    "BatchNorm",
    "CrossEntropy",
    "Entry",
    "Identity",
    "Layer",
    "Linear",
    "Loss",
    "MeanSquaredError",
    "Parameters",
    "ReLU",
    "Sequential",
    "Sigmoid",
    "Tanh",
    "init",
]
