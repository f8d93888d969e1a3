"""Layers, losses and networks of them: the value, and the gradient by backpropagation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from . import Array, batch_norm, derivative


@dataclass(frozen=True)
class Layer:
    """A layer whose arrays lie in θ one after the other, row-major: weight, then bias.

    ``shapes`` are theirs; ``running`` is the (mean, var) of a frozen batch normalization.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...] = ()
    eps: float = 1e-5
    running: tuple[Array, Array] | None = None


def activation(kind: str, x: Array) -> tuple[Array, Array]:
    """The value and the slope."""
    if kind == "relu":
        return np.where(x.real > 0, x, 0.0), np.where(x.real > 0, 1.0, 0.0)
    if kind == "leaky_relu":
        slope = np.where(x.real > 0, 1.0, 0.01)
        return slope * x, slope
    if kind == "gelu":
        below = 0.5 * (1.0 + special.erf(x / math.sqrt(2.0)))
        return x * below, below + x * np.exp(-0.5 * x**2) / math.sqrt(2.0 * math.pi)
    if kind == "tanh":
        return np.tanh(x), 1.0 - np.tanh(x) ** 2
    if kind == "sigmoid":
        y = 1.0 / (1.0 + np.exp(-x))
        return y, y * (1.0 - y)
    raise KeyError(kind)


def _affine(arrays: Sequence[Array], x: Array) -> tuple[Array, Array]:
    """γ and β of a batch normalization: 1 and 0 where it has none."""
    weight, bias = arrays if arrays else (np.ones(x.shape[1]), np.zeros(x.shape[1]))
    return weight, bias


def forward(layer: Layer, arrays: Sequence[Array], x: Array) -> Array:
    """y of (rows, columns)."""
    if layer.kind == "linear":  # y = x Wᵀ + b, W (outputs, inputs)
        return x @ arrays[0].T + (arrays[1] if len(arrays) == 2 else 0.0)
    if layer.kind == "batch_norm":
        return batch_norm.forward(x, *_affine(arrays, x), layer.eps, layer.running)
    return activation(layer.kind, x)[0]


def backward(
    layer: Layer, arrays: Sequence[Array], x: Array, dy: Array
) -> tuple[Array, list[Array]]:
    """dx, and the gradients of the layer's arrays."""
    if layer.kind == "linear":
        return dy @ arrays[0], [dy.T @ x, dy.sum(axis=0)][: len(arrays)]
    if layer.kind == "batch_norm":
        weight, _ = _affine(arrays, x)
        dx, dweight, dbias = batch_norm.backward(dy, x, weight, layer.eps, layer.running)
        return dx, [dweight, dbias][: len(arrays)]
    return dy * activation(layer.kind, x)[1], []


def cross_entropy(z: Array, labels: Array) -> tuple[complex, Array]:
    """−log softmax(z)[label], mean over rows, and its gradient (softmax − onehot)/rows."""
    rows = np.arange(len(z))
    e = np.exp(z - z.real.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    dz = p.copy()
    dz[rows, labels] -= 1.0
    return -np.log(p[rows, labels]).mean(), dz / len(z)


def mean_squared_error(z: Array, targets: Array) -> tuple[complex, Array]:
    """(z − t)², mean over rows and columns, and its gradient 2(z − t)/(rows·columns)."""
    return ((z - targets) ** 2).mean(), 2.0 * (z - targets) / z.size


LOSSES = {"cross_entropy": cross_entropy, "mean_squared_error": mean_squared_error}


def split(layers: Sequence[Layer], theta: Array) -> list[list[Array]]:
    """The arrays of each layer, views of θ."""
    result, at = [], 0
    for layer in layers:
        arrays = []
        for shape in layer.shapes:
            arrays.append(theta[at : at + math.prod(shape)].reshape(shape))
            at += math.prod(shape)
        result.append(arrays)
    return result


def outputs(layers: Sequence[Layer], theta: Array, x: Array) -> Array:
    """The network's outputs."""
    for layer, arrays in zip(layers, split(layers, theta), strict=True):
        x = forward(layer, arrays, x)
    return x


def pull_back(layers: Sequence[Layer], theta: Array, x: Array, dy: Array) -> tuple[Array, Array]:
    """(dx, dθ) for the gradient dy of the outputs: backpropagation."""
    inputs, parts = [x], split(layers, theta)
    for layer, arrays in zip(layers, parts, strict=True):
        inputs.append(forward(layer, arrays, inputs[-1]))
    gradient: list[Array] = []
    for layer, arrays, at in zip(layers[::-1], parts[::-1], inputs[-2::-1], strict=True):
        dy, own = backward(layer, arrays, at, dy)
        gradient = [*(np.ravel(a) for a in own), *gradient]
    return dy, np.concatenate([np.empty(0), *gradient])


def loss(layers: Sequence[Layer], kind: str, theta: Array, x: Array, targets: Array) -> float:
    """The mean loss."""
    return float(LOSSES[kind](outputs(layers, theta, x), targets)[0].real)


def gradient(layers: Sequence[Layer], kind: str, theta: Array, x: Array, targets: Array) -> Array:
    """∇ of the mean loss with respect to θ."""
    dz = LOSSES[kind](outputs(layers, theta, x), targets)[1]
    return pull_back(layers, theta, x, dz)[1]


def hessian_product(
    layers: Sequence[Layer], kind: str, theta: Array, x: Array, targets: Array, v: Array
) -> Array:
    """H v, the derivative of the gradient along v."""
    return derivative(lambda t: gradient(layers, kind, t, x, targets), theta, v)
