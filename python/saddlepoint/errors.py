"""Every exception of the package, the one form their messages have, and the kinds they speak of.

``TypeError`` for a wrong kind or dtype, ``ValueError`` for a wrong shape, value or overlap; the two
below for what the built-in exceptions do not name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, TypeVar

__all__ = [
    "DeviceError",
    "FileFormatError",
    "brief",
    "count",
    "expected",
    "flag",
    "instance",
    "kind_with_remedy",
    "number",
    "number_from_0",
    "one_of",
    "path_of",
]

Kind = TypeVar("Kind")


class DeviceError(RuntimeError):
    """A device that this build or this machine does not have; the message says why."""


class FileFormatError(ValueError):
    """A file is corrupt, truncated, or not what its name says."""


def expected(name: str, what: object, got: object) -> str:
    """The text of an error: ``name: expected what, got got``."""
    return f"{name}: expected {what}, got {got}"


def brief(value: object) -> str:
    """A value in a message: one line, and not all of a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def kind_with_remedy(value: object) -> str:
    """The type of a value in a message; of PyTorch's modules, what makes an objective of them."""
    name = type(value).__name__
    if hasattr(value, "named_parameters"):
        return f"{name} (saddlepoint.torch.objective(module, loss, data) makes one of it)"
    return name


def instance(name: str, value: Any, kind: type[Kind], what: str) -> Kind:
    """``value`` if it is of a kind, which ``what`` says in words; TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(expected(name, what, kind_with_remedy(value)))
    return value


def one_of(name: str, value: Any, words: Collection[str | None]) -> None:
    """Raise ValueError unless ``value`` is one of some words; None may be among them."""
    if not (value is None or isinstance(value, str)) or value not in words:
        *first, last = map(repr, words)
        raise ValueError(expected(name, f"{', '.join(first)} or {last}", brief(value)))


def flag(name: str, value: Any) -> bool:
    """``value`` if it is true or false: a bool of Python or NumPy, 0 or 1."""
    if value is True or value is False:
        return value
    if getattr(value, "shape", ()) != () or not (value == 0 or value == 1):
        raise TypeError(expected(name, "True or False", brief(value)))
    return bool(value)


def path_of(name: str, value: Any) -> Path:
    """``value`` as a path, if it is text or a path: a number is not taken for an open file."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(expected(name, "a path", type(value).__name__))
    return Path(value)


def number(name: str, value: Any) -> float:
    """A real number of Python or NumPy, or an array of one; TypeError for anything else."""
    if type(value) is float:  # at once: an abstract class takes its time
        return value
    if isinstance(value, Real) or math.prod(getattr(value, "shape", (0,))) == 1:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(expected(name, "a number within float64", "a larger one")) from None
        except (TypeError, ValueError):
            raise TypeError(expected(name, "a number", brief(value))) from None
    raise TypeError(expected(name, "a number", brief(value)))


def count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """``value`` if it is an integer, of Python or NumPy, from ``least`` up to ``most``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        whole = index(value)
    except TypeError:
        raise TypeError(expected(name, "an int", type(value).__name__)) from None
    if whole < least:
        raise ValueError(expected(name, f"at least {least}", value))
    if most is not None and whole > most:
        raise ValueError(expected(name, f"at most {most}", brief(value)))
    return whole


def number_from_0(name: str, value: Any) -> float:
    """``value`` as a float if it is a finite real number, of Python or NumPy, of at least 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(expected(name, "a number", type(value).__name__))
    if not 0.0 <= number(name, value) < math.inf:
        raise ValueError(expected(name, "a finite number from 0", value))
    return float(value)
