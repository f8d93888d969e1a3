"""What the package computes, in NumPy float64, from the papers' formulas: the specification.

Nothing here imports saddlepoint. First derivatives are written out; second derivatives are
complex-step derivatives of the first, so every function also takes complex arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_STEP = 1e-100


def derivative(f: Callable[[Array], Array], x: Array, v: Array) -> Array:
    """f'(x) v = Im f(x + i h v) / h for an analytic f: exact to rounding, since nothing cancels.

    Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions".
    """
    return np.imag(f(x + 1j * _STEP * v)) / _STEP
