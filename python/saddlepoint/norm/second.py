"""Second derivatives of the layer."""

from __future__ import annotations

from ..errors import expected
from ..kinds import ArrayLike, kind_of, module_of
from ..vector import copy
from .arrays import dense_like
from .calls import Reduce, check_saved, empty_sums, gradients
from .options import curved
from .saved import Saved

__all__ = [
    "batch_norm_backward_tangent",
    "batch_norm_double_backward",
    "batch_norm_second_tangent",
]


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
    check_saved(saved, reduce)
    result = dense_like(saved.x)
    given = {
        "x_tangent": x_tangent, "weight_tangent": weight_tangent, "bias_tangent": bias_tangent,
        "residual_tangent": residual_tangent, "x_tangent2": x_tangent2,
        "weight_tangent2": weight_tangent2, "bias_tangent2": bias_tangent2,
        "residual_tangent2": residual_tangent2,
    }  # fmt: skip
    function = module_of(saved.x).batch_norm_second_tangent
    if reduce is None:
        function(saved, **given, y_tangent2=result)
    else:
        sums = empty_sums(saved, 5)
        function(saved, **given, sums=sums, stage="sums")
        reduce(sums)
        function(saved, **given, y_tangent2=result, sums=sums, stage="apply")
    return result


def _second(
    saved: Saved,
    given: dict[str, ArrayLike | None],
    outputs: dict[str, ArrayLike | None],
    reduce: Reduce | None,
) -> tuple[ArrayLike, ArrayLike]:
    """Fills the outputs (dx', dresidual', y'); gives (dweight', dbias')."""
    dweight, dbias = gradients(saved)
    outputs |= {"dweight_tangent": dweight, "dbias_tangent": dbias}
    function = module_of(saved.x).batch_norm_second
    if reduce is None:
        function(saved, **given, **outputs, sums=None, own=None, stage="all")
        return dweight, dbias
    if not kind_of(saved.x).arithmetic:
        raise TypeError(expected("reduce", "None for a Vector, which has no arithmetic", "one"))
    sums = empty_sums(saved, 7)
    function(saved, **given, sums=sums, stage="sums")
    own = copy(sums)
    reduce(sums)
    if curved(saved.activation):
        function(saved, **given, sums=sums, stage="more_sums")
        own[5:] = sums[5:]
        reduce(sums[5:])
    function(saved, **given, **outputs, sums=sums, own=own, stage="apply")
    return dweight, dbias


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
    check_saved(saved, reduce)
    dxt = dense_like(saved.x)
    dresidual_t = dense_like(saved.x) if saved.has_residual else None
    given = {
        "x_tangent": x_tangent, "weight_tangent": weight_tangent, "bias_tangent": bias_tangent,
        "residual_tangent": residual_tangent, "dy": dy, "dy_tangent": dy_tangent,
    }  # fmt: skip
    outputs = {"dx_tangent": dxt, "dresidual_tangent": dresidual_t}
    pair = _second(saved, given, outputs, reduce)
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
    check_saved(saved, reduce)
    smooth = curved(saved.activation)
    dx, ddy = dense_like(saved.x), dense_like(saved.x)
    dresidual = dense_like(saved.x) if saved.has_residual and smooth else None
    given = {
        "x_tangent": ddx, "weight_tangent": ddweight, "bias_tangent": ddbias,
        "residual_tangent": ddresidual, "dy": dy, "dy_tangent": None,
    }  # fmt: skip
    outputs = {"dx_tangent": dx, "dresidual_tangent": dresidual, "y_tangent": ddy}
    dweight, dbias = _second(saved, given, outputs, reduce)
    if not smooth:
        return ddy, dx, dweight
    return (ddy, dx, dweight, dbias) if dresidual is None else (ddy, dx, dweight, dbias, dresidual)
