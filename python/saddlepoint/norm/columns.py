"""(N, C) arrays on CUDA, until the kernels of whole tensors have their twin there."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._native import module_of
from ..errors import DeviceError, expected
from ..vector import ArrayLike, Vector, empty_like, float_dtype

__all__ = ["backward", "backward_tangent", "forward", "tangent"]


def _function(x: ArrayLike, name: str) -> Any:
    dtype = float_dtype(str(x.dtype).removeprefix("torch."), "x")
    return getattr(module_of(x), f"batch_norm_{name}_{dtype}")


def _filled(like: ArrayLike, columns: int, value: float) -> ArrayLike:
    if isinstance(like, Vector):
        return Vector.from_numpy(np.full(columns, value, like.dtype), like.device)
    result = empty_like(like, (columns,))
    result[:] = value
    return result


def forward(
    x: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    running: tuple[ArrayLike | None, ArrayLike | None],
    training: bool,
    momentum: float,
    eps: float,
    out: ArrayLike | None,
    others: bool,
) -> tuple[ArrayLike, ArrayLike, tuple[ArrayLike, ArrayLike]]:
    """(y, weight, (mean, r)); ``others`` says that something else was asked for as well."""
    if others or len(x.shape) != 2:
        raise DeviceError("device: only plain batch normalization of (N, C) is on CUDA yet")
    rows, columns = x.shape
    if training and rows < 2:
        raise ValueError(expected("x", "more than 1 value per channel when training", rows))
    weight = _filled(x, columns, 1.0) if weight is None else weight
    bias = _filled(x, columns, 0.0) if bias is None else bias
    y = empty_like(x) if out is None else out
    mean, r = empty_like(x, (columns,)), empty_like(x, (columns,))
    function = _function(x, "forward")
    function(x, weight, bias, *running, training, momentum, eps, y, mean, r)
    return y, weight, (mean, r)


def backward(
    dy: ArrayLike, x: ArrayLike, weight: ArrayLike, mean: ArrayLike, r: ArrayLike, frozen: bool
) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """(dx, dweight, dbias)."""
    columns = x.shape[1]
    dx = empty_like(x)
    dweight, dbias = empty_like(x, (columns,)), empty_like(x, (columns,))
    _function(x, "backward")(dy, x, weight, mean, r, frozen, dx, dweight, dbias)
    return dx, dweight, dbias


def tangent(
    xt: ArrayLike,
    weight_t: ArrayLike | None,
    bias_t: ArrayLike | None,
    x: ArrayLike,
    weight: ArrayLike,
    mean: ArrayLike,
    r: ArrayLike,
    frozen: bool,
) -> ArrayLike:
    """The derivative of y."""
    weight_t = _filled(x, x.shape[1], 0.0) if weight_t is None else weight_t
    bias_t = _filled(x, x.shape[1], 0.0) if bias_t is None else bias_t
    yt = empty_like(x)
    _function(x, "tangent")(xt, weight_t, bias_t, x, weight, mean, r, frozen, yt)
    return yt


def backward_tangent(
    dyt: ArrayLike,
    dy: ArrayLike,
    xt: ArrayLike,
    weight_t: ArrayLike | None,
    x: ArrayLike,
    weight: ArrayLike,
    mean: ArrayLike,
    r: ArrayLike,
    frozen: bool,
) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """The derivative of (dx, dweight, dbias)."""
    columns = x.shape[1]
    weight_t = _filled(x, columns, 0.0) if weight_t is None else weight_t
    dxt = empty_like(x)
    dweight_t, dbias_t = empty_like(x, (columns,)), empty_like(x, (columns,))
    function = _function(x, "backward_tangent")
    function(dyt, dy, xt, weight_t, x, weight, mean, r, frozen, dxt, dweight_t, dbias_t)
    return dxt, dweight_t, dbias_t
