"""Batch normalization (Ioffe & Szegedy 2015, Algorithm 1) of (rows, columns)."""

from __future__ import annotations

import numpy as np

from . import Array


def statistics(x: Array) -> tuple[Array, Array]:
    """The mean of each column and its biased variance, which normalizes in training."""
    mean: Array = x.mean(axis=0)
    return mean, ((x - mean) ** 2).mean(axis=0)


def forward(
    x: Array, weight: Array, bias: Array, eps: float, running: tuple[Array, Array] | None = None
) -> Array:
    """y = γ h + β, h = (x − mean)/√(var + eps); by the running (mean, var) where they are given."""
    mean, variance = statistics(x) if running is None else running
    y: Array = weight * (x - mean) / np.sqrt(variance + eps) + bias
    return y


def backward(
    dy: Array, x: Array, weight: Array, eps: float, running: tuple[Array, Array] | None = None
) -> tuple[Array, Array, Array]:
    """(dx, dweight, dbias), by the chain rule through mean and variance as in the paper, §3."""
    mean, variance = statistics(x) if running is None else running
    r = 1.0 / np.sqrt(variance + eps)
    dweight, dbias = (dy * (x - mean) * r).sum(axis=0), dy.sum(axis=0)
    dh = dy * weight
    if running is not None:
        return dh * r, dweight, dbias
    n = x.shape[0]
    dvariance = (dh * (x - mean)).sum(axis=0) * (-0.5) * r**3
    dmean = -(dh * r).sum(axis=0) - 2.0 * dvariance * (x - mean).mean(axis=0)
    return dh * r + dvariance * 2.0 * (x - mean) / n + dmean / n, dweight, dbias


def running_update(
    running: tuple[Array, Array], x: Array, momentum: float | None, seen: int = 0
) -> tuple[Array, Array]:
    """running ← (1 − m) running + m new, with the unbiased variance.

    m is the momentum; without one 1/(seen + 1), which averages all batches alike.
    """
    m = 1.0 / (seen + 1) if momentum is None else momentum
    mean, variance = statistics(x)
    unbiased = variance * x.shape[0] / (x.shape[0] - 1)
    return (1 - m) * running[0] + m * mean, (1 - m) * running[1] + m * unbiased
