"""What a call may be told beside its arrays, and its checks."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._native import module
from ..errors import brief, count, expected, instance, number, one_of
from ..kinds import ArrayLike, check_array

__all__ = [
    "Noise",
    "channel_axis",
    "check_activation",
    "check_numbers",
    "check_variants",
    "curved",
]

_CURVED: dict[str | None, bool] = {None: False, **module("cpu").batch_norm_activations}
_LAYOUTS = {
    "NC": 1, "NCL": 1, "NCHW": 1, "NCDHW": 1, "NLC": -1, "NHWC": -1, "NDHWC": -1,
}  # fmt: skip


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


def channel_axis(layout: str, x: ArrayLike) -> int:
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
    one_of("activation", activation, _CURVED)
    number("negative_slope", negative_slope)


def curved(activation: str | None) -> bool:
    """Whether an activation has a second derivative: gradients depend on all that is before it."""
    return _CURVED[activation]


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
