"""What analysis stands on: a loss with its gradient and its Hessian products."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .errors import expected, kind_with_remedy
from .kinds import ArrayLike, check_array, dtype_name

__all__ = ["Linearization", "Objective", "check_point", "check_theta", "chosen_names", "parts_of"]


class Linearization(Protocol):
    """An objective at one point: loss, gradient, and products with the Hessian."""

    @property
    def loss(self) -> float: ...
    @property
    def gradient(self) -> ArrayLike: ...
    def hvp(self, v: ArrayLike) -> ArrayLike: ...


@runtime_checkable
class Objective(Protocol):
    """A twice differentiable loss of a vector θ ∈ ℝⁿ.

    Where the parts of θ have names, ``parts`` is a dict of their slices.
    """

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def device(self) -> str: ...
    def loss(self, theta: ArrayLike) -> float: ...
    def gradient(self, theta: ArrayLike) -> ArrayLike: ...
    def linearize(self, theta: ArrayLike) -> Linearization: ...


def check_point(objective: Any, theta: Any) -> None:
    """Raise unless these are an objective and an array, in this order."""
    if not isinstance(objective, Objective):
        what = "an objective (size, loss, gradient, linearize), and theta after it"
        raise TypeError(expected("objective", what, kind_with_remedy(objective)))
    check_theta(theta, objective)


def check_theta(theta: Any, objective: Any) -> None:
    """Raise unless this is an (n,) array of an objective's dtype."""
    check_array("theta", theta)
    wanted, got = dtype_name(objective.dtype), dtype_name(theta.dtype)
    if wanted != got:
        raise TypeError(expected("theta", f"dtype {wanted}", got))
    if tuple(theta.shape) != (objective.size,):
        raise ValueError(expected("theta", f"shape ({objective.size},)", tuple(theta.shape)))


def parts_of(objective: Any) -> dict[str, slice]:
    """Where the named parts of θ lie; TypeError where they have no names."""
    parts = getattr(objective, "parts", None)
    if not isinstance(parts, dict):
        what = "one whose θ has names (parts)"
        raise TypeError(expected("objective", what, type(objective).__name__))
    return parts


def chosen_names(all_: Sequence[str], wanted: Any, argument: str) -> tuple[str, ...]:
    """Those that names or patterns of the shell pick, in their own order.

    Raises
    ------
    TypeError
        For what is no text, or no collection of texts.
    ValueError
        For a pattern that picks nothing; the message has names that are close.
    """
    patterns = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else wanted
    taken: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(expected(argument, "names or patterns", type(pattern).__name__))
        found = fnmatch.filter(all_, pattern)
        if not found:
            close = difflib.get_close_matches(pattern, all_, 3, 0.3) or list(all_)[:3]
            what = f"names of parameters ({', '.join(close)}, …)"
            raise ValueError(expected(argument, what, repr(pattern)))
        taken.update(found)
    if not taken:
        raise ValueError(expected(argument, "at least one name", "none"))
    return tuple(name for name in all_ if name in taken)
