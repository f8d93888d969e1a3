"""Schedules: how the rate depends on the epoch k = 0, 1, 2, …

A schedule is a function of k that multiplies the optimizer's ``lr``. Frameworks call other things
"linear decay"; here the names say the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from ..errors import expected

__all__ = ["Schedule", "constant", "exponential", "inverse", "inverse_square"]

Schedule: TypeAlias = Callable[[int], float]


def constant() -> Schedule:
    """η_k = η₀."""
    return lambda k: 1.0


def inverse() -> Schedule:
    """η_k = η₀ / (k + 1), the lectures' "linear" decay.

    Ση diverges and Ση² does not, as Robbins & Monro (1951) ask.
    """
    return lambda k: 1.0 / (k + 1)


def inverse_square() -> Schedule:
    """η_k = η₀ / (k + 1)², the lectures' "quadratic" decay.

    Ση is finite (π²/6 η₀): the iterates can stop short of any critical point.
    """
    return lambda k: 1.0 / (k + 1) ** 2


def exponential(beta: float) -> Schedule:
    """η_k = η₀ e^(−βk).

    Ση is finite (η₀ / (1 − e^(−β))): the iterates can stop short of any critical point.
    """
    if not beta >= 0:
        raise ValueError(expected("beta", "at least 0", beta))
    return lambda k: math.exp(-beta * k)
