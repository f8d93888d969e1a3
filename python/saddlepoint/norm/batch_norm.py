"""The functions; formulas and kernels are in ``csrc/norm/fused.hpp``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..errors import brief, count, expected, flag, instance, number, number_from_0, one_of
from ..kinds import ArrayLike, check_array, kind_of, module_of
from ..vector import copy, gather
from .arrays import channel_dtype, channel_like, dense_like, double_table, octets, row_of, stacked

__all__ = [
    "Moments",
    "Noise",
    "Saved",
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_reduce",
    "batch_norm_backward_tangent",
    "batch_norm_double_backward",
    "batch_norm_second_tangent",
    "batch_norm_statistics",
    "batch_norm_tangent",
    "combine",
]

# Adds the sums of all processes, in place.
Reduce = Callable[[ArrayLike], object]

_ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2, "gelu": 3, "tanh": 4}
_LAYOUTS = {
    "NC": 1, "NCL": 1, "NCHW": 1, "NCDHW": 1, "NLC": -1, "NHWC": -1, "NDHWC": -1,
}  # fmt: skip
# What csrc/norm/fused.hpp calls the origins of the statistics, and the stages of a derivative.
_BATCH, _RUNNING, _GIVEN = 0, 1, 2
_SUMS, _MORE_SUMS, _APPLY = 1, 2, 4
_ALL = _SUMS | _MORE_SUMS | _APPLY


class Noise(NamedTuple):
    """Noise on the normalized values: each unit's mean and scale are redrawn at every step.

    After normalization and the affine part, a unit is multiplied by a number from [1, scale) and
    moved by one from [−mean, mean): the time-varying part of the noise in Santurkar et al. (2018),
    algorithm 1, with their ranges as the defaults. Only in training.

    Attributes
    ----------
    seed, step : int
        The draws are a function of both and of the unit.
    mean, scale : float
        The largest shift, and the largest factor.
    """

    seed: int
    step: int = 0
    mean: float = 0.5
    scale: float = 1.25


class Moments(NamedTuple):
    """Statistics of a part of a batch, to be put together with others by `combine`.

    Attributes
    ----------
    elements : int
        Of each channel.
    mean : (C,) float64 array
    m2 : (C,) float64 array
        The sum of squared distances from the mean.
    """

    elements: int
    mean: ArrayLike
    m2: ArrayLike


@dataclass(slots=True, eq=False)
class Saved:
    """What the derivatives need of a forward pass; arrays are kept, not copied.

    Attributes
    ----------
    x, weight, bias, residual : array
        The inputs; ``residual`` is kept before a smooth activation alone.
    statistics : (2 or 6, groups, C) float64 array
        Mean and 1/√(var + eps), and, with renormalization or noise, the constants α, β, γ, δ of
        ``weight (α h + β) + bias γ + δ``.
    training : bool
        Whether the statistics depend on x.
    activation : str or None
    negative_slope : float
    gate : uint8 array or None
        After a residual: a bit for each value, set where the activation's argument was positive.
    has_residual : bool
    axis : int
        The axis of the channels.
    ghost : int
        Rows of a sub-batch; 0 for the whole batch.
    count : float
        Elements that share statistics, where parts of the batch are elsewhere; 0: those of x.
    """

    x: ArrayLike
    weight: ArrayLike | None
    bias: ArrayLike | None
    statistics: Any
    training: bool
    activation: str | None = None
    negative_slope: float = 0.01
    residual: ArrayLike | None = None
    gate: ArrayLike | None = None
    has_residual: bool = False
    axis: int = 1
    ghost: int = 0
    count: float = 0.0

    @property
    def mean(self) -> ArrayLike:
        """The means, (C,) or (groups, C), in the dtype of statistics."""
        return self._row(0)

    @property
    def r(self) -> ArrayLike:
        """1/√(var + eps), (C,) or (groups, C), in the dtype of statistics."""
        return self._row(1)

    def _row(self, k: int) -> ArrayLike:
        row = row_of(self.statistics, k)
        return kind_of(row).astype(row, channel_dtype(self.x))

    @property
    def _layer(self) -> tuple[Any, ...]:
        return (
            self.x, self.axis, self.ghost, self.weight, self.bias, self.statistics,
            _ACTIVATIONS[self.activation], self.negative_slope, self.residual, self.gate,
        )  # fmt: skip

    @property
    def _weighs(self) -> float:
        """What a sum is multiplied by to make a mean: see Parts in csrc/norm/fused.hpp."""
        if not self.training:
            return 0.0
        return 1.0 / self.count if self.count else -1.0

    @property
    def _channels(self) -> int:
        return int(self.x.shape[self.axis])

    @property
    def _groups(self) -> int:
        return int(self.statistics.shape[1])


def _axis(layout: str, x: ArrayLike) -> int:
    """The axis of the channels, counted from the front."""
    one_of("layout", layout, _LAYOUTS)
    axis = _LAYOUTS[layout]
    check_array("x", x)
    axes = len(x.shape)
    # NCHW and NHWC stand for any number of axes.
    if axes < 2 or (axes != len(layout) and axes > 2 and layout not in ("NCHW", "NHWC")):
        raise ValueError(expected("x", f"an axis for each letter of {layout}", tuple(x.shape)))
    return axis if axis > 0 else axes - 1


def check_activation(activation: str | None, negative_slope: float) -> None:
    """Raise for a name that is none, or a slope that is no number."""
    one_of("activation", activation, _ACTIVATIONS)
    number("negative_slope", negative_slope)


def check_numbers(eps: Any, momentum: Any) -> tuple[float, float | None]:
    """Both as Python's numbers; raises for what makes no average and no root."""
    eps = number("eps", eps)
    if not 0.0 <= eps < float("inf"):
        raise ValueError(expected("eps", "a finite number of at least 0", eps))
    if momentum is None:
        return eps, None
    momentum = number("momentum", momentum)
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(expected("momentum", "None or a number within [0, 1]", momentum))
    return eps, momentum


def check_variants(ghost: Any, renorm: Any, noise: Any) -> None:
    """Raise unless each is None or makes sense."""
    if ghost is not None:
        count("ghost", ghost, 1)
    if renorm is not None:
        if not isinstance(renorm, (tuple, list)) or len(renorm) != 2:
            raise TypeError(expected("renorm", "(r_max, d_max)", brief(renorm)))
        r_max, d_max = (number("renorm", bound) for bound in renorm)
        if not (r_max >= 1.0 and d_max >= 0.0):
            what = "r_max of at least 1 and d_max of at least 0"
            raise ValueError(expected("renorm", what, renorm))
    if noise is not None:
        instance("noise", noise, Noise, "a saddlepoint.norm.Noise")
        for name, value in (("seed", noise.seed), ("step", noise.step)):
            count(f"noise.{name}", value, 0, 2**64 - 1)
        for name, value, least in (("mean", noise.mean, 0.0), ("scale", noise.scale, 1.0)):
            if not least <= number(f"noise.{name}", value) < float("inf"):
                what = f"a finite number of at least {least:g}"
                raise ValueError(expected(f"noise.{name}", what, value))


def _check_count(count: Any) -> None:
    """Raise unless ``count`` can be added to in place."""
    if getattr(count, "shape", None) != () or isinstance(count, np.generic):
        raise TypeError(expected("count", "an array of no axes", repr(count)))
    if isinstance(count, np.ndarray) and not count.flags.writeable:
        raise ValueError(expected("count", "a writable array", "a read-only one"))
    if not float(count) >= 0:
        raise ValueError(expected("count", "at least 0", float(count)))


def _check_counts(x: ArrayLike, axis: int, ghost: int) -> None:
    shape = tuple(x.shape)
    per_row = 1
    for a, n in enumerate(shape):
        if a not in (0, axis):
            per_row *= n
    last = shape[0] % ghost if ghost else 0
    least = min(shape[0], ghost or shape[0], last or shape[0])
    if least * per_row == 1:
        raise ValueError(expected("x", "more than 1 value per channel when training", shape))


def _gate_for(module: ModuleType, x: ArrayLike, saved: Saved) -> ArrayLike:
    return octets(x, module.batch_norm_gate_bytes(x, saved.axis, saved.ghost))


def _keep_argument(module: ModuleType, saved: Saved, residual: ArrayLike | None) -> None:
    """Keeps what it takes to find the activation's slope again."""
    saved.has_residual = residual is not None
    if residual is None or saved.activation is None:
        return
    if saved.activation in ("relu", "leaky_relu"):
        saved.gate = _gate_for(module, saved.x, saved)
    else:
        saved.residual = residual


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
    module = module_of(x)
    axis = _axis(layout, x)
    rows = int(x.shape[0])
    sub = ghost if training and ghost is not None and ghost < rows else 0
    seen = 0.0
    if count is not None:
        _check_count(count)
    if training:
        _check_counts(x, axis, sub)
        if momentum is None and running_mean is not None:
            if count is None:
                raise ValueError(expected("count", "an array for momentum=None", None))
            seen = float(count)
    else:
        renorm = noise = None
    groups = -(-rows // sub) if sub else 1
    channels = int(x.shape[axis])
    tables = 2 if renorm is None and noise is None else 6
    saved = Saved(
        x, weight, bias, double_table(x, tables, groups, channels), training, activation,
        negative_slope, None, None, False, axis, sub,
    )  # fmt: skip
    _keep_argument(module, saved, residual)
    layer = (
        x, axis, sub, weight, bias, saved.statistics, _ACTIVATIONS[activation], negative_slope,
        residual, saved.gate,
    )  # fmt: skip
    y = dense_like(x) if out is None else out
    running = (running_mean, running_var, momentum, seen)
    origin = _BATCH if training else _RUNNING
    module.batch_norm_forward(
        layer, origin, eps, running, renorm, None if noise is None else tuple(noise), y
    )
    if training and count is not None:
        count += groups  # in place: arrays alone can be given
    return y, saved


def _check_rows(x: ArrayLike, axis: int, **rows: Any) -> None:
    """Raise unless each has one number a channel."""
    for name, row in rows.items():
        check_array(name, row)
        if tuple(row.shape) != (int(x.shape[axis]),):
            what = f"shape ({int(x.shape[axis])},)"
            raise ValueError(expected(name, what, tuple(row.shape)))


def _check_saved(saved: Any, reduce: Any = None) -> None:
    instance("saved", saved, Saved, "what batch_norm returned beside y")
    if reduce is not None and not callable(reduce):
        raise TypeError(expected("reduce", "a function of an array", brief(reduce)))


def _gradients(saved: Saved) -> tuple[ArrayLike, ArrayLike]:
    """(dweight, dbias), still empty, of the parameters' dtypes."""
    channels = saved._channels
    weight, bias = saved.weight, saved.bias
    dweight = channel_like(saved.x, channels) if weight is None else dense_like(weight)
    dbias = channel_like(saved.x, channels) if bias is None else dense_like(bias)
    return dweight, dbias


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
    _check_saved(saved, reduce)
    dx = dense_like(saved.x) if out is None else out
    dweight, dbias = _gradients(saved)
    dresidual = dense_like(saved.x) if saved.has_residual else None
    function, layer, weighs = module_of(saved.x).batch_norm_backward, saved._layer, saved._weighs
    if reduce is None:
        function(layer, (None, weighs, _ALL), dy, dx, dresidual, dweight, dbias)
    else:
        sums = double_table(saved.x, 2, saved._groups, saved._channels)
        function(layer, (sums, weighs, _SUMS), dy, None, None, dweight, dbias)
        reduce(sums)
        function(layer, (sums, weighs, _APPLY), dy, dx, dresidual, None, None)
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
    _check_saved(saved, reduce)
    yt = dense_like(saved.x)
    function, layer, weighs = module_of(saved.x).batch_norm_tangent, saved._layer, saved._weighs
    along = (x_tangent, weight_tangent, bias_tangent, residual_tangent)
    if reduce is None:
        function(layer, (None, weighs, _ALL), *along, yt)
    else:
        sums = double_table(saved.x, 2, saved._groups, saved._channels)
        function(layer, (sums, weighs, _SUMS), *along, None)
        reduce(sums)
        function(layer, (sums, weighs, _APPLY), *along, yt)
    return yt


def batch_norm_second_tangent(
    x_tangent: ArrayLike | None,
    x_tangent2: ArrayLike | None,
    saved: Saved,
    weight_tangent: ArrayLike | None = None,
    bias_tangent: ArrayLike | None = None,
    residual_tangent: ArrayLike | None = None,
    weight_tangent2: ArrayLike | None = None,
    bias_tangent2: ArrayLike | None = None,
    residual_tangent2: ArrayLike | None = None,
    *,
    reduce: Reduce | None = None,
) -> ArrayLike:
    """The derivative of `batch_norm_tangent` along a second direction: forward over forward.

    Parameters
    ----------
    x_tangent, weight_tangent, bias_tangent, residual_tangent : array, optional
        The first direction; what is None is zero.
    x_tangent2, weight_tangent2, bias_tangent2, residual_tangent2 : array, optional
        The second one.
    saved : Saved
    reduce : callable, optional
        As in `batch_norm_backward`, for the sums (5, 1, C) of v, h v, u, h u and v u, with v and u
        the directions of x.

    Returns
    -------
    array like y
        Symmetric in the two directions.
    """
    _check_saved(saved, reduce)
    result = dense_like(saved.x)
    function, layer = module_of(saved.x).batch_norm_second_tangent, saved._layer
    weighs = saved._weighs
    along = (
        x_tangent, weight_tangent, bias_tangent, residual_tangent,
        x_tangent2, weight_tangent2, bias_tangent2, residual_tangent2,
    )  # fmt: skip
    if reduce is None:
        function(layer, (None, weighs, _ALL), *along, result)
    else:
        sums = double_table(saved.x, 5, saved._groups, saved._channels)
        function(layer, (sums, weighs, _SUMS), *along, None)
        reduce(sums)
        function(layer, (sums, weighs, _APPLY), *along, result)
    return result


def _second(
    saved: Saved,
    along: tuple[ArrayLike | None, ArrayLike | None, ArrayLike | None, ArrayLike | None],
    dy: ArrayLike,
    dy_tangent: ArrayLike | None,
    outputs: tuple[ArrayLike, ArrayLike | None, ArrayLike | None],
    reduce: Reduce | None,
) -> tuple[ArrayLike, ArrayLike]:
    """Fills the outputs (dx', dresidual', y'); gives (dweight', dbias')."""
    dweight_t, dbias_t = _gradients(saved)
    function, layer, weighs = module_of(saved.x).batch_norm_second, saved._layer, saved._weighs
    given = (*along, dy, dy_tangent)
    if reduce is None:
        function(layer, (None, weighs, _ALL), *given, *outputs, dweight_t, dbias_t)
        return dweight_t, dbias_t
    if not kind_of(saved.x).arithmetic:
        raise TypeError(expected("reduce", "None for a Vector, which has no arithmetic", "one"))
    nothing = (None,) * 5
    sums = double_table(saved.x, 7, saved._groups, saved._channels)
    function(layer, (sums, weighs, _SUMS), *given, *nothing)
    own = copy(sums)
    reduce(sums)
    if saved.activation in ("gelu", "tanh"):
        function(layer, (sums, weighs, _MORE_SUMS), *given, *nothing)
        own[5:] = sums[5:]
        more = copy(sums[5:])
        reduce(more)
        sums[5:] = more
    function(layer, (sums, weighs, _APPLY), *given, *outputs, None, None)
    # The parameters' gradients are this process's own share of the sums, with everybody's means.
    x1, x2 = weighs * sums[0], weighs * sums[1]
    product = own[6] + saved.statistics[1] * (own[4] - x1 * own[2] - x2 * own[3])
    shift = own[5]
    if len(saved.statistics) == 6:
        alpha, beta, gamma = saved.statistics[2], saved.statistics[3], saved.statistics[4]
        product, shift = alpha * product + beta * own[5], gamma * own[5]
    dweight_t[:] = product.sum(0)
    dbias_t[:] = shift.sum(0)
    return dweight_t, dbias_t


def batch_norm_backward_tangent(
    dy: ArrayLike,
    dy_tangent: ArrayLike | None,
    x_tangent: ArrayLike | None,
    saved: Saved,
    weight_tangent: ArrayLike | None = None,
    bias_tangent: ArrayLike | None = None,
    residual_tangent: ArrayLike | None = None,
    *,
    reduce: Reduce | None = None,
) -> tuple[ArrayLike, ...]:
    """The derivative of `batch_norm_backward` along a direction of dy and of the inputs.

    A tangent that is None is zero. ``reduce`` is as in `batch_norm_backward`, for float64 arrays
    (7 or 2, 1, C); it is called once, twice with a smooth activation.
    """
    _check_saved(saved, reduce)
    dxt = dense_like(saved.x)
    dresidual_t = dense_like(saved.x) if saved.has_residual else None
    along = (x_tangent, weight_tangent, bias_tangent, residual_tangent)
    pair = _second(saved, along, dy, dy_tangent, (dxt, dresidual_t, None), reduce)
    return (dxt, *pair) if dresidual_t is None else (dxt, *pair, dresidual_t)


def batch_norm_double_backward(
    ddx: ArrayLike | None,
    ddweight: ArrayLike | None,
    ddbias: ArrayLike | None,
    dy: ArrayLike,
    saved: Saved,
    ddresidual: ArrayLike | None = None,
    *,
    reduce: Reduce | None = None,
) -> tuple[ArrayLike, ...]:
    """The backward pass of `batch_norm_backward`: (ddy, dx, dweight) for gradients of its results.

    With a smooth activation the gradients are not constant in bias and residual: then
    (ddy, dx, dweight, dbias), and dresidual where there is a residual. Two passes over memory,
    three with a smooth activation. A gradient that is None is zero.

    Notes
    -----
    The backward pass is linear in dy with the Jacobian's transpose, so ddy is the tangent of y
    along (ddx, ddweight, ddbias, ddresidual), and the rest is the tangent of the backward pass
    along it with dy held fixed, by the symmetry of second derivatives.
    """
    _check_saved(saved, reduce)
    along = (ddx, ddweight, ddbias, ddresidual)
    curved = saved.activation in ("gelu", "tanh")
    dx, ddy = dense_like(saved.x), dense_like(saved.x)
    dresidual = dense_like(saved.x) if saved.has_residual and curved else None
    dweight, dbias = _second(saved, along, dy, None, (dx, dresidual, ddy), reduce)
    if not curved:
        return ddy, dx, dweight
    return (ddy, dx, dweight, dbias) if dresidual is None else (ddy, dx, dweight, dbias, dresidual)


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
    axis = _axis(layout, x)
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
    axis = _axis(layout, x)
    module = module_of(x)
    _check_rows(x, axis, mean=mean, r=r)
    elements = number_from_0("count", count)
    table = stacked(x, mean, r)
    saved = Saved(
        x, weight, bias, table, training, activation, negative_slope, None, None, False, axis, 0,
        elements,
    )  # fmt: skip
    _keep_argument(module, saved, residual)
    layer = (
        x, axis, 0, weight, bias, table, _ACTIVATIONS[activation], negative_slope, residual,
        saved.gate,
    )  # fmt: skip
    y = dense_like(x) if out is None else out
    module.batch_norm_forward(layer, _GIVEN, 0.0, (None, None, None, 0.0), None, None, y)
    return y, saved


def batch_norm_backward_reduce(dy: ArrayLike, saved: Saved) -> tuple[ArrayLike, ArrayLike]:
    """The sums of dz and of h dz over each channel, in float64: this process's dbias and dweight.

    The first half of `batch_norm_backward`, so that the sums of several processes can be added.
    """
    _check_saved(saved)
    sums = double_table(saved.x, 2, saved._groups, saved._channels)
    function = module_of(saved.x).batch_norm_backward
    function(saved._layer, (sums, saved._weighs, _SUMS), dy, None, None, None, None)
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
    _check_saved(saved)
    _check_rows(saved.x, saved.axis, sum_dz=sum_dz, sum_dz_h=sum_dz_h)
    number_from_0("count", count)
    sums = stacked(saved.x, sum_dz, sum_dz_h)
    dx = dense_like(saved.x) if out is None else out
    dresidual = dense_like(saved.x) if saved.has_residual else None
    weighs = 1.0 / count if saved.training and count else 0.0
    function = module_of(saved.x).batch_norm_backward
    function(saved._layer, (sums, weighs, _APPLY), dy, dx, dresidual, None, None)
    return dx if dresidual is None else (dx, dresidual)
