"""Networks: layers, losses, initializers."""

from . import init
from .activations import ACTIVATIONS, GELU, LeakyReLU, ReLU, Sigmoid, Tanh
from .layers import BatchNorm, Entry, Identity, Layer, Linear, Parameters, Sequential
from .losses import CrossEntropy, Loss, MeanSquaredError

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "BatchNorm",
    "CrossEntropy",
    "Entry",
    "Identity",
    "Layer",
    "LeakyReLU",
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
