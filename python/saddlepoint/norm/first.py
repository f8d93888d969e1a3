"""The layer and its first derivatives; formulas and kernels are in ``csrc/norm/``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import expected, flag
from ..kinds import ArrayLike, module_of
from .arrays import dense_like
from .calls import Reduce, check_saved, empty_sums, gradients, start
from .options import Noise, channel_axis, check_activation, check_numbers, check_variants
from .saved import Saved

__all__ = ["batch_norm", "batch_norm_backward", "batch_norm_tangent"]


def _check_count(count: Any) -> None:
    """Raise unless ``count`` can be added to in place."""
    if getattr(count, "shape", None) != () or isinstance(count, np.generic):
        raise TypeError(expected("count", "an array of no axes", repr(count)))
    if isinstance(count, np.ndarray) and not count.flags.writeable:
        raise ValueError(expected("count", "a writable array", "a read-only one"))
    if not float(count) >= 0:
        raise ValueError(expected("count", "at least 0", float(count)))


def batch_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    layout: str = "NCHW",
    out: ArrayLike | None = None,
    *,
    negative_slope: float = 0.01,
    count: ArrayLike | None = None,
    ghost: int | None = None,
    renorm: tuple[float, float] | None = None,
    noise: Noise | None = None,
) -> tuple[ArrayLike, Saved]:
    """Normalize each channel: y = act(γ (x − mean)/√(var + eps) + β + residual).

    Batch normalization of Ioffe & Szegedy (2015), with the activation and the residual in the same
    pass over memory.

    Parameters
    ----------
    x : array of at least two axes, float32, float64, bfloat16 or float16
        Of any strides; dense arrays, channels first or last in memory, are not copied.
    weight, bias : (C,) arrays, optional
        γ and β; 1 and 0 by default. Of float32, or float64 for float64; for 16-bit x also of its
        dtype.
    running_mean, running_var : (C,) arrays, optional
        In training updated in place, ``running ← (1 − momentum)·running + momentum·new``, with the
        unbiased variance; in evaluation used for mean and var, and required.
    training : bool
        Use the batch's own mean and biased variance.
    momentum : float or None
        Within [0, 1]; None averages all batches, 1/k at the k-th, and needs ``count``.
    eps : float
        At least 0.
    activation : None, "relu", "leaky_relu", "gelu" or "tanh"
    residual : array of x's shape and dtype, optional
        Added before the activation.
    layout : str
        The axes of ``x.shape``: NCHW (for any number of axes), NCL or NCDHW, or NHWC, NLC or
        NDHWC.
    out : array of x's shape and dtype, optional
        Takes y. In evaluation it may be ``x`` itself.
    negative_slope : float
        Of "leaky_relu".
    count : array of no axes, optional
        Batches seen so far; in training increased in place.
    ghost : int, optional
        Rows of a sub-batch, each of which has statistics of its own (Hoffer et al. 2017). The last
        one may be smaller. Running statistics see them one after the other.
    renorm : (r_max, d_max), optional
        Batch renormalization (Ioffe 2017): normalizes towards the running statistics, as far as
        the bounds allow. Needs running statistics; no effect in evaluation.
    noise : Noise, optional

    Returns
    -------
    y : array of x's shape, dtype and memory order
    saved : Saved

    Raises
    ------
    TypeError, ValueError
        For wrong dtypes or shapes, one value a channel in training, missing running statistics, an
        eps or momentum out of range, or overlapping memory; nothing has been written then.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import norm
    >>> x = np.array([[1.0], [3.0]])
    >>> y, saved = norm.batch_norm(x, eps=0.0)
    >>> y.ravel()
    array([-1.,  1.])
    """
    check_activation(activation, negative_slope)
    eps, momentum = check_numbers(eps, momentum)
    check_variants(ghost, renorm, noise)
    training = flag("training", training)
    if (running_mean is None) != (running_var is None):
        raise ValueError(expected("running_var", "given together with running_mean", "one of them"))
    if running_mean is None and (not training or renorm is not None):
        where = "in renormalization" if training else "in evaluation"
        raise ValueError(expected("running_mean", f"an array {where}", None))
    axis = channel_axis(layout, x)
    seen = 0.0
    if count is not None:
        _check_count(count)
    if training:
        if momentum is None and running_mean is not None:
            if count is None:
                raise ValueError(expected("count", "an array for momentum=None", None))
            seen = float(count)
    else:
        renorm = noise = None
    saved = Saved(
        x, weight, bias, None, training, activation, negative_slope, axis=axis, ghost=ghost or 0
    )
    module = module_of(x)
    groups = start(module, saved, 2 if renorm is None and noise is None else 6, residual)
    y = dense_like(x) if out is None else out
    module.batch_norm_forward(
        saved, out=y, residual=residual, given=False, eps=eps, running_mean=running_mean,
        running_var=running_var, momentum=momentum, seen=seen, renorm=renorm, noise=noise,
    )  # fmt: skip
    if training and count is not None:
        count += groups  # in place: arrays alone can be given
    return y, saved


def batch_norm_backward(
    dy: ArrayLike,
    saved: Saved,
    out: ArrayLike | None = None,
    *,
    reduce: Reduce | None = None,
) -> tuple[ArrayLike, ...]:
    """The gradients (dx, dweight, dbias) for the gradient ``dy`` of y; dresidual too, if there.

    dx = γ r (dz − mean(dz) − h mean(h dz)) with h = (x − mean) r and dz = dy act'; in evaluation
    γ r dz. The gradient of the residual is dz.

    Parameters
    ----------
    dy : array like y
    saved : Saved
    out : array like x, optional
        Takes dx.
    reduce : callable, optional
        Is given the sums of dz and h dz, a float64 array (2, 1, C), and adds those of other
        processes in place, when the batch is spread over several. dweight and dbias are this
        process's own.
    """
    check_saved(saved, reduce)
    dx = dense_like(saved.x) if out is None else out
    dweight, dbias = gradients(saved)
    dresidual = dense_like(saved.x) if saved.has_residual else None
    function = module_of(saved.x).batch_norm_backward
    if reduce is None:
        function(
            saved, dy=dy, dx=dx, dresidual=dresidual, dweight=dweight, dbias=dbias,
            sums=None, stage="all",
        )  # fmt: skip
    else:
        sums = empty_sums(saved, 2)
        function(saved, dy=dy, dweight=dweight, dbias=dbias, sums=sums, stage="sums")
        reduce(sums)
        function(saved, dy=dy, dx=dx, dresidual=dresidual, sums=sums, stage="apply")
    return (dx, dweight, dbias) if dresidual is None else (dx, dweight, dbias, dresidual)


def batch_norm_tangent(
    x_tangent: ArrayLike | None,
    saved: Saved,
    weight_tangent: ArrayLike | None = None,
    bias_tangent: ArrayLike | None = None,
    residual_tangent: ArrayLike | None = None,
    *,
    reduce: Reduce | None = None,
) -> ArrayLike:
    """The derivative of y along a direction of its inputs, through the batch statistics.

    A tangent that is None is zero. ``reduce`` is as in `batch_norm_backward`, for the sums of x'
    and h x'.
    """
    check_saved(saved, reduce)
    yt = dense_like(saved.x)
    given = {
        "x_tangent": x_tangent, "weight_tangent": weight_tangent, "bias_tangent": bias_tangent,
        "residual_tangent": residual_tangent,
    }  # fmt: skip
    function = module_of(saved.x).batch_norm_tangent
    if reduce is None:
        function(saved, **given, y_tangent=yt, sums=None, stage="all")
    else:
        sums = empty_sums(saved, 2)
        function(saved, **given, sums=sums, stage="sums")
        reduce(sums)
        function(saved, **given, y_tangent=yt, sums=sums, stage="apply")
    return yt
