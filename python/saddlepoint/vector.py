"""Vectors on any device, and the eight functions through which all analysis touches them.

``dot``, ``axpy``, ``scale``, ``norm``, ``copy``, ``empty_like``, ``random`` and ``gather`` take
NumPy arrays, `Vector` and PyTorch tensors, stay on their device, and sum in float64 over blocks
that do not depend on the number of threads. Only ``gather`` brings data to the host.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import brief, expected, number
from .kinds import (
    VECTOR,
    ArrayLike,
    Vector,
    check_array,
    dtype_name,
    kind_of,
    lengths,
    module_of,
    refuse_mask,
)

__all__ = [
    "ArrayLike",
    "Vector",
    "axpy",
    "copy",
    "dot",
    "empty_like",
    "gather",
    "norm",
    "random",
    "scale",
]


def check_directions(v: Any, n: int) -> None:
    """Raise unless this is one direction (n,), or a block (n, k) of them."""
    if not hasattr(v, "shape"):
        raise TypeError(expected("v", "an array", type(v).__name__))
    refuse_mask("v", v)
    if len(v.shape) not in (1, 2) or v.shape[0] != n:
        raise ValueError(expected("v", f"shape ({n},) or ({n}, k)", tuple(v.shape)))


def dot(x: ArrayLike, y: ArrayLike) -> float:
    """Inner product xᵀy, summed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import vector
    >>> vector.dot(np.ones(4), np.arange(4.0))
    6.0
    """
    return float(module_of(x).dot(x, y))


def norm(x: ArrayLike) -> float:
    """Euclidean norm ‖x‖, summed in float64, also where squares leave its range."""
    square = dot(x, x)
    if 1e-280 < square < math.inf or dtype_name(x.dtype) == "float32":
        return math.sqrt(square)
    factor = 2.0**-600 if square > 1.0 else 2.0**600
    scaled = copy(x)
    scale(factor, scaled)
    return math.sqrt(dot(scaled, scaled)) / factor


def axpy(a: float, x: ArrayLike, y: ArrayLike) -> None:
    """``y += a x``, in place."""
    module_of(y).axpy(number("a", a), x, y)


def scale(a: float, x: ArrayLike) -> None:
    """``x *= a``, in place."""
    module_of(x).scale(number("a", a), x)


def copy(x: ArrayLike) -> ArrayLike:
    """A copy of the same kind on the same device."""
    check_array("x", x)
    return kind_of(x).copy(x)


def owned(x: Any, like: ArrayLike, name: str, shape: tuple[int, ...], of: str = "") -> ArrayLike:
    """A copy of what foreign code returned, of the kind, dtype and device of ``like``.

    As SciPy has it, ``x`` may be any array: read-only, of another precision, an argument handed
    back, or memory that its maker goes on writing to. Only its shape is fixed; ``of`` says of what.
    """
    refuse_mask(name, x)
    kind = kind_of(like)
    if kind_of(x) is VECTOR is not kind:
        raise TypeError(expected(name, "an array", type(x).__name__))
    result = kind.adopted(x, like, name)
    if tuple(result.shape) != shape:
        raise ValueError(expected(name, f"{of}shape {shape}", tuple(result.shape)))
    return result


_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


def rounding(x: Any, least: float) -> float:
    """eps of what foreign code returned, where that is coarser than ``least``."""
    return max(_EPS.get(dtype_name(getattr(x, "dtype", "")), 0.0), least)


def empty_like(x: ArrayLike, shape: int | tuple[int, ...] | None = None) -> ArrayLike:
    """An array of the kind, dtype and device of ``x``, with its shape unless one is given."""
    check_array("x", x)
    return kind_of(x).empty(x, tuple(x.shape) if shape is None else lengths(shape))


def generator(rng: Any) -> np.random.Generator:
    """What ``rng=`` stands for, everywhere.

    Raises
    ------
    TypeError, ValueError
        If NumPy makes no generator of it.
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        what = "an int from 0, a numpy.random.Generator or None"
        raise type(error)(expected("rng", what, brief(rng))) from None


def random(like: ArrayLike, rng: int | np.random.Generator | None = None) -> ArrayLike:
    """A standard normal vector of the kind of ``like``, drawn on the host so that devices agree."""
    check_array("like", like)
    drawn = generator(rng).standard_normal(tuple(like.shape))
    return kind_of(like).from_host(drawn, like)


def gather(x: ArrayLike) -> NDArray[Any]:
    """A copy on the host, as a NumPy array."""
    check_array("x", x)
    return kind_of(x).to_host(x)
