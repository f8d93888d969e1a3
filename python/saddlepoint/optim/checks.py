"""Checks of hyper-parameters: each raises with their name, or has nothing to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral
from typing import Any, TypeAlias

from ..errors import brief, expected, instance, number

__all__ = [
    "Check",
    "at_least_zero",
    "check_params",
    "check_saved",
    "each_once",
    "numbers",
    "size_of",
    "steps_of",
    "within",
    "within_one",
]

#: Called with a name and a value.
Check: TypeAlias = Callable[[str, Any], object]


def numbers(name: str, values: Any, count: int, what: str = "") -> tuple[float, ...]:
    """``count`` of them, in a tuple or list."""
    if not isinstance(values, tuple | list) or len(values) != count:
        raise ValueError(expected(name, what or f"{count} numbers", repr(values)))
    return tuple(number(name, value) for value in values)


def steps_of(value: Any) -> int:
    """A step count as state dicts keep it: a whole number from 0, of any kind."""
    steps = number("step", value)
    if not (0 <= steps < 2**63 and steps == int(steps)):
        raise ValueError(expected("step", "a whole number within [0, 2^63)", value))
    return int(value) if isinstance(value, Integral) else int(steps)


def at_least_zero(name: str, value: Any) -> None:
    """Raise ValueError unless a number is at least 0."""
    if not number(name, value) >= 0.0:
        raise ValueError(expected(name, "at least 0", value))


def within(low: float, high: float) -> Check:
    """Of a number within [low, high]."""

    def check(name: str, value: Any) -> None:
        if not low <= number(name, value) <= high:
            raise ValueError(expected(name, f"within [{low:g}, {high:g}]", value))

    return check


def within_one(name: str, values: Any, count: int) -> None:
    """Raise ValueError unless there are ``count`` numbers within [0, 1)."""
    what = f"{count} numbers within [0, 1)"
    if not all(0.0 <= b < 1.0 for b in numbers(name, values, count, what)):
        raise ValueError(expected(name, what, tuple(values)))


def each_once(params: Sequence[Any], names: Sequence[str] | None = None) -> None:
    """Raise ValueError where a parameter stands in two places."""
    first: dict[int, int] = {}
    for i, p in enumerate(params):
        if (before := first.setdefault(id(p), i)) != i:
            what = f"number {i}" if names is None else repr(names[i])
            where = f"number {before}" if names is None else repr(names[before])
            raise ValueError(expected("params", "each parameter once", f"{what} as {where} again"))


def check_params(params: Any) -> None:
    """Raise TypeError for what holds no arrays, nor groups of them."""
    if not isinstance(params, Iterable) or isinstance(params, (str, bytes, dict)):
        what = "an array, or a list of arrays or groups"
        raise TypeError(expected("params", what, type(params).__name__))


def check_saved(saved: Any, entries: type) -> None:
    """Raise unless this has the form of a state dict, with its entries in an ``entries``."""
    if not isinstance(saved, dict):
        raise TypeError(expected("state_dict", "a dict", type(saved).__name__))
    if not {"state", "param_groups"} <= set(saved):
        raise ValueError(expected("state_dict", "state and param_groups", brief([*saved])))
    instance("state", saved["state"], entries, f"a {entries.__name__}")
    for group in instance("param_groups", saved["param_groups"], list, "a list"):
        instance("param_groups", group, dict, "dicts")


def size_of(shape: Sequence[int]) -> int:
    """The number of elements."""
    return math.prod(shape)
