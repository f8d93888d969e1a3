"""Schedules: how the rate depends on the epoch k = 0, 1, 2, …

A schedule is a function of k that multiplies the optimizer's ``lr``; k may as well count steps, and
``torch.optim.lr_scheduler.LambdaLR`` takes it too. Frameworks call other things "linear decay";
here the names say the formula.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from ..errors import count, expected, number

__all__ = [
    "Schedule",
    "chained",
    "constant",
    "cosine",
    "exponential",
    "inverse",
    "inverse_square",
    "one_cycle",
    "polynomial",
    "sequence",
    "step",
    "warmup",
]

Schedule: TypeAlias = Callable[[int], float]


def _count(**values: int) -> None:
    for name, value in values.items():
        count(name, value, 1)


def _fraction(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= number(name, value) <= 1.0:
            raise ValueError(expected(name, "within [0, 1]", value))


def _decay(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= number(name, value) < math.inf:
            raise ValueError(expected(name, "at least 0 and finite", value))


def _functions(schedules: Sequence[Schedule]) -> None:
    for schedule in schedules:
        if not callable(schedule):
            raise TypeError(expected("schedules", "functions of the epoch", repr(schedule)))


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

    Ση is finite (η₀ / (1 − e^(−β))) where β > 0: the iterates can stop short of any critical point.
    """
    if not number("beta", beta) >= 0:
        raise ValueError(expected("beta", "at least 0", beta))
    return lambda k: math.exp(-beta * k)


def step(size: int, gamma: float = 0.1) -> Schedule:
    """η_k = η₀ γ^⌊k / size⌋, as PyTorch's ``StepLR``.

    Ση is finite (size η₀ / (1 − γ)) where γ < 1: the iterates can stop short of any critical point.

    Examples
    --------
    >>> from saddlepoint.optim import schedule
    >>> [schedule.step(2, gamma=0.5)(k) for k in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    _count(size=size)
    _decay(gamma=gamma)
    return lambda k: float(gamma ** (k // size))


def cosine(total: int, minimum: float = 0.0) -> Schedule:
    """η_k = η₀ (a + (1 − a)(1 + cos(πk / total)) / 2) with a = ``minimum``.

    Loshchilov & Hutter (2017) without their restarts. Down to a·η₀ at k = total and up again after
    it, as PyTorch's ``CosineAnnealingLR``, whose ``eta_min`` is a·η₀.

    Examples
    --------
    >>> from saddlepoint.optim import schedule
    >>> [round(schedule.cosine(4)(k), 3) for k in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    _count(total=total)
    _fraction(minimum=minimum)
    return lambda k: minimum + (1.0 - minimum) * (1.0 + math.cos(math.pi * k / total)) / 2.0


def warmup(steps: int, start: float = 0.0) -> Schedule:
    """η_k = η₀ (start + (1 − start) min(k, steps) / steps), as PyTorch's ``LinearLR``.

    With ``start=0`` nothing moves at k = 0; PyTorch refuses that.

    Examples
    --------
    >>> from saddlepoint.optim import schedule
    >>> [schedule.warmup(4, start=0.5)(k) for k in range(6)]
    [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
    """
    _count(steps=steps)
    _fraction(start=start)
    return lambda k: start + (1.0 - start) * min(k, steps) / steps


def one_cycle(
    total: int, start: float = 1 / 25, end: float = 1 / 250_000, rise: float = 0.3
) -> Schedule:
    """η_k rises from start·η₀ to η₀ and falls to end·η₀, both along cosines (Smith & Topin 2018).

    With a = rise·total − 1, s = ``start`` and e = ``end``:
    η_k = η₀ (1 + s − (1 − s) cos(πk / a)) / 2 up to k = a;
    η_k = η₀ (1 + e + (1 − e) cos(π(k − a) / (total − 1 − a))) / 2 up to k = total − 1;
    end·η₀ after it.

    As PyTorch's ``OneCycleLR`` with ``max_lr`` η₀, ``div_factor`` 1/start and ``final_div_factor``
    start/end; that one raises after its last step.

    Examples
    --------
    >>> from saddlepoint.optim import schedule
    >>> [round(schedule.one_cycle(10)(k), 3) for k in (0, 1, 2, 5, 9)]
    [0.04, 0.52, 1.0, 0.611, 0.0]
    """
    _count(total=total)
    _fraction(start=start, end=end, rise=rise)
    top, last = rise * total - 1.0, total - 1.0

    def factor(k: int) -> float:
        if k > last:
            return end
        if k < top:
            return _between(start, 1.0, k / top)
        return _between(1.0, end, (k - top) / (last - top)) if k > top else 1.0

    return factor


def _between(a: float, b: float, part: float) -> float:
    """From a to b along half a cosine."""
    return b + (a - b) * (1.0 + math.cos(math.pi * part)) / 2.0


def polynomial(total: int, power: float = 1.0) -> Schedule:
    """η_k = η₀ (1 − min(k, total) / total)^power, as PyTorch's ``PolynomialLR``.

    0 from k = total on.

    Examples
    --------
    >>> from saddlepoint.optim import schedule
    >>> [schedule.polynomial(4, power=2)(k) for k in range(6)]
    [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    _count(total=total)
    if not 0.0 < number("power", power) < math.inf:
        raise ValueError(expected("power", "above 0 and finite", power))
    return lambda k: float((1.0 - min(k, total) / total) ** power)


def chained(*schedules: Schedule) -> Schedule:
    """η_k = η₀ · the product of the factors at k, as PyTorch's ``ChainedScheduler``.

    Examples
    --------
    >>> from saddlepoint.optim import schedule
    >>> both = schedule.chained(schedule.warmup(2), schedule.step(3, gamma=0.5))
    >>> [both(k) for k in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.5]
    """
    if not schedules:
        raise ValueError(expected("schedules", "at least 1", 0))
    _functions(schedules)
    return lambda k: math.prod(schedule(k) for schedule in schedules)


def sequence(schedules: Sequence[Schedule], milestones: Sequence[int]) -> Schedule:
    """One schedule after another; each counts from the milestone at which it begins.

    ``schedules[0]`` at k up to ``milestones[0]``, then ``schedules[1]`` at k − ``milestones[0]``,
    and so on, as PyTorch's ``SequentialLR``.

    Examples
    --------
    >>> from saddlepoint.optim import schedule
    >>> rate = schedule.sequence([schedule.warmup(2), schedule.polynomial(4)], [2])
    >>> [rate(k) for k in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    for name, values in (("schedules", schedules), ("milestones", milestones)):
        if not isinstance(values, (list, tuple)):
            raise TypeError(expected(name, "a list", type(values).__name__))
    _functions(schedules)
    parts, begins = tuple(schedules), (0, *(count("milestones", m, 0) for m in milestones))
    if len(parts) != len(begins):
        raise ValueError(
            expected("schedules", f"{len(begins)}, one more than milestones", len(parts))
        )
    if any(a >= b for a, b in pairwise(begins)):
        raise ValueError(expected("milestones", "increasing numbers above 0", tuple(milestones)))

    def factor(k: int) -> float:
        i = bisect_right(begins, k) - 1
        return parts[i](k - begins[i])

    return factor
