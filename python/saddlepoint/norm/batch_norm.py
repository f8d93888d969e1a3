"""The functions; formulas and kernels are in ``csrc/norm/batch_norm.hpp``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._native import module_of
from ..errors import expected
from ..vector import ArrayLike, Vector, empty_like, float_dtype

__all__ = [
    "Saved",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_tangent",
    "batch_norm_tangent",
]


@dataclass(frozen=True)
class Saved:
    """What the derivatives need of a forward pass.

    Attributes
    ----------
    x : (N, C) array
        The input itself, not a copy.
    weight, mean, r : (C,) arrays
        γ, the mean, and 1/√(var + eps).
    training : bool
    """

    x: ArrayLike
    weight: ArrayLike
    mean: ArrayLike
    r: ArrayLike
    training: bool


def _function(x: ArrayLike, name: str) -> Any:
    dtype = float_dtype(str(x.dtype).removeprefix("torch."), "x")
    return getattr(module_of(x), f"batch_norm_{name}_{dtype}")


def _filled(like: ArrayLike, columns: int, value: float) -> ArrayLike:
    if isinstance(like, Vector):
        return Vector.from_numpy(np.full(columns, value, like.dtype), like.device)
    result = empty_like(like, (columns,))
    result[:] = value
    return result


def batch_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out: ArrayLike | None = None,
) -> tuple[ArrayLike, Saved]:
    """Normalize each column: y = γ (x − mean)/√(var + eps) + β (Ioffe & Szegedy 2015).

    Parameters
    ----------
    x : (N, C) array, float32 or float64, C-contiguous
    weight, bias : (C,) arrays, optional
        γ and β; 1 and 0 by default.
    running_mean, running_var : (C,) arrays, optional
        In training updated in place, ``running ← (1 − momentum)·running + momentum·new``, with the
        unbiased variance; in evaluation used for mean and var, and required.
    training : bool
        Use the batch's own mean and biased variance.
    momentum, eps : float
    out : (N, C) array, optional
        Takes y. In evaluation it may be ``x`` itself.

    Returns
    -------
    y : (N, C) array
    saved : Saved

    Raises
    ------
    TypeError, ValueError
        For wrong dtypes, shapes or layouts, one row in training, missing running statistics in
        evaluation, or overlapping memory; nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import norm
    >>> x = np.array([[1.0], [3.0]])
    >>> y, saved = norm.batch_norm(x, eps=0.0)
    >>> y.ravel()
    array([-1.,  1.])
    """
    forward = _function(x, "forward")
    if len(x.shape) != 2:
        raise ValueError(expected("x", "shape (N, C)", tuple(x.shape)))
    rows, columns = x.shape
    if (running_mean is None) != (running_var is None):
        raise ValueError(expected("running_var", "given together with running_mean", "one of them"))
    if training and rows < 2:
        raise ValueError(expected("x", "at least 2 rows in training", rows))
    if not training and running_mean is None:
        raise ValueError(expected("running_mean", "an array in evaluation", None))
    weight = _filled(x, columns, 1.0) if weight is None else weight
    bias = _filled(x, columns, 0.0) if bias is None else bias
    y = empty_like(x) if out is None else out
    mean, r = empty_like(x, (columns,)), empty_like(x, (columns,))
    forward(x, weight, bias, running_mean, running_var, training, momentum, eps, y, mean, r)
    return y, Saved(x, weight, mean, r, training)


def batch_norm_backward(dy: ArrayLike, saved: Saved) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """The gradients (dx, dweight, dbias) for the gradient ``dy`` (N, C) of y.

    dx = γ r (dy − mean(dy) − h mean(h dy)) with h = (x − mean) r; in evaluation γ r dy.
    """
    backward = _function(saved.x, "backward")
    columns = saved.x.shape[1]
    dx = empty_like(saved.x)
    dweight, dbias = empty_like(saved.x, (columns,)), empty_like(saved.x, (columns,))
    frozen = not saved.training
    backward(dy, saved.x, saved.weight, saved.mean, saved.r, frozen, dx, dweight, dbias)
    return dx, dweight, dbias


def batch_norm_tangent(
    x_tangent: ArrayLike,
    saved: Saved,
    weight_tangent: ArrayLike | None = None,
    bias_tangent: ArrayLike | None = None,
) -> ArrayLike:
    """The derivative of y along a direction of (x, weight, bias), through the batch statistics."""
    tangent = _function(saved.x, "tangent")
    columns = saved.x.shape[1]
    weight_t = _filled(saved.x, columns, 0.0) if weight_tangent is None else weight_tangent
    bias_t = _filled(saved.x, columns, 0.0) if bias_tangent is None else bias_tangent
    yt = empty_like(saved.x)
    frozen = not saved.training
    tangent(x_tangent, weight_t, bias_t, saved.x, saved.weight, saved.mean, saved.r, frozen, yt)
    return yt


def batch_norm_backward_tangent(
    dy_tangent: ArrayLike,
    dy: ArrayLike,
    x_tangent: ArrayLike,
    saved: Saved,
    weight_tangent: ArrayLike | None = None,
) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
    """The derivative of `batch_norm_backward` along a direction of (dy, x, weight)."""
    function = _function(saved.x, "backward_tangent")
    columns = saved.x.shape[1]
    weight_t = _filled(saved.x, columns, 0.0) if weight_tangent is None else weight_tangent
    dxt = empty_like(saved.x)
    dweight_t, dbias_t = empty_like(saved.x, (columns,)), empty_like(saved.x, (columns,))
    function(
        dy_tangent, dy, x_tangent, weight_t, saved.x, saved.weight, saved.mean, saved.r,
        not saved.training, dxt, dweight_t, dbias_t,
    )  # fmt: skip
    return dxt, dweight_t, dbias_t
