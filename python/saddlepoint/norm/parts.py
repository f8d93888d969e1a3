"""The layer in parts, for a batch that is spread over several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import brief, expected, number_from_0
from ..kinds import ArrayLike, check_array, kind_of, module_of
from ..vector import gather
from .arrays import dense_like, double_table, row_of, stacked
from .calls import check_saved, empty_sums, start
from .options import channel_axis, check_activation
from .saved import Moments, Saved

__all__ = [
    "batch_norm_apply",
    "batch_norm_backward_apply",
    "batch_norm_backward_reduce",
    "batch_norm_statistics",
    "combine",
]


def _check_rows(x: ArrayLike, axis: int, **rows: Any) -> None:
    """Raise unless each has one number a channel."""
    for name, row in rows.items():
        check_array(name, row)
        if tuple(row.shape) != (int(x.shape[axis]),):
            what = f"shape ({int(x.shape[axis])},)"
            raise ValueError(expected(name, what, tuple(row.shape)))


def batch_norm_statistics(x: ArrayLike, layout: str = "NCHW") -> Moments:
    """Statistics of a part of a batch: count, mean and sum of squares about it, in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import norm
    >>> part = norm.batch_norm_statistics(np.array([[1.0], [3.0]]))
    >>> part.elements, part.mean, part.m2
    (2, array([2.]), array([2.]))
    """
    axis = channel_axis(layout, x)
    channels = int(x.shape[axis])
    table = double_table(x, 2, 1, channels)
    module_of(x).batch_norm_moments(x, axis, table)
    count = 1
    for a, n in enumerate(x.shape):
        if a != axis:
            count *= int(n)
    return Moments(count, row_of(table, 0), row_of(table, 1))


def combine(parts: Sequence[tuple[int, ArrayLike, ArrayLike]]) -> Moments:
    """The statistics of all parts together (Chan, Golub & LeVeque 1983); empty parts are fine.

    Of `Vector`s it is done on the host: they are a few numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import norm
    >>> x = np.array([[1.0], [3.0], [8.0]])
    >>> whole = norm.combine([norm.batch_norm_statistics(p) for p in (x[:1], x[1:])])
    >>> whole.mean, whole.m2
    (array([4.]), array([26.]))
    """
    if not isinstance(parts, (list, tuple)) or any(
        not isinstance(part, tuple) or len(part) != 3 for part in parts
    ):
        raise TypeError(expected("parts", "a list of Moments", brief(parts)))
    if not parts:
        raise ValueError(expected("parts", "at least one", "none"))
    like = parts[0][1]
    on_host = not kind_of(like).arithmetic
    if on_host:
        parts = [(elements, gather(mean), gather(m2)) for elements, mean, m2 in parts]
    total, mean, m2 = 0, parts[0][1] * 0.0, parts[0][2] * 0.0
    for elements, part_mean, part_m2 in parts:
        elements = int(elements)
        if elements == 0:
            continue
        total += elements
        distance = part_mean - mean
        mean = mean + distance * (elements / total)
        m2 = m2 + part_m2 + distance * distance * (elements * (total - elements) / total)
    if on_host:
        mean, m2 = (kind_of(like).from_host(moment, like) for moment in (mean, m2))
    return Moments(total, mean, m2)


def batch_norm_apply(
    x: ArrayLike,
    mean: ArrayLike,
    r: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    residual: ArrayLike | None = None,
    layout: str = "NCHW",
    out: ArrayLike | None = None,
    *,
    negative_slope: float = 0.01,
    count: int = 0,
    training: bool = True,
) -> tuple[ArrayLike, Saved]:
    """`batch_norm` with statistics that are given: y = act(γ (x − mean) r + β + residual).

    Parameters
    ----------
    mean, r : (C,) arrays
        The mean and 1/√(var + eps), best in float64.
    count : int
        Elements of each channel that share these statistics; 0 for those of x alone.
    training : bool
        Whether the statistics depend on x, so that derivatives go through them.
    """
    check_activation(activation, negative_slope)
    axis = channel_axis(layout, x)
    _check_rows(x, axis, mean=mean, r=r)
    elements = number_from_0("count", count)
    saved = Saved(
        x, weight, bias, stacked(x, mean, r), training, activation, negative_slope, axis=axis,
        count=elements,
    )  # fmt: skip
    module = module_of(x)
    start(module, saved, 0, residual)
    y = dense_like(x) if out is None else out
    module.batch_norm_forward(saved, out=y, residual=residual, given=True)
    return y, saved


def batch_norm_backward_reduce(dy: ArrayLike, saved: Saved) -> tuple[ArrayLike, ArrayLike]:
    """The sums of dz and of h dz over each channel, in float64: this process's dbias and dweight.

    The first half of `batch_norm_backward`, so that the sums of several processes can be added.
    """
    check_saved(saved)
    sums = empty_sums(saved, 2)
    module_of(saved.x).batch_norm_backward(saved, dy=dy, sums=sums, stage="sums")
    return row_of(sums, 0), row_of(sums, 1)


def batch_norm_backward_apply(
    dy: ArrayLike,
    saved: Saved,
    sum_dz: ArrayLike,
    sum_dz_h: ArrayLike,
    count: int,
    out: ArrayLike | None = None,
) -> Any:
    """dx from the sums over all processes and their count; (dx, dresidual) with a residual."""
    check_saved(saved)
    _check_rows(saved.x, saved.axis, sum_dz=sum_dz, sum_dz_h=sum_dz_h)
    elements = number_from_0("count", count)
    sums = stacked(saved.x, sum_dz, sum_dz_h)
    dx = dense_like(saved.x) if out is None else out
    dresidual = dense_like(saved.x) if saved.has_residual else None
    shared = replace(saved, training=saved.training and elements > 0.0, count=elements)
    function = module_of(saved.x).batch_norm_backward
    function(shared, dy=dy, dx=dx, dresidual=dresidual, sums=sums, stage="apply")
    return dx if dresidual is None else (dx, dresidual)
