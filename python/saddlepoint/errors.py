"""Every exception of the package, and the one form their messages have.

``TypeError`` for a wrong kind or dtype, ``ValueError`` for a wrong shape, value or overlap; the two
below for what the built-in exceptions do not name.
"""

from __future__ import annotations

from operator import index
from typing import Any

__all__ = ["DeviceError", "FileFormatError", "count", "expected"]


class DeviceError(RuntimeError):
    """A device that this build or this machine does not have; the message says why."""


class FileFormatError(ValueError):
    """A file is corrupt, truncated, or not what its name says."""


def expected(name: str, what: object, got: object) -> str:
    """The text of an error: ``name: expected what, got got``."""
    return f"{name}: expected {what}, got {got}"


def count(name: str, value: Any, least: int) -> int:
    """``value`` if it is an integer, of Python or NumPy, of at least ``least``."""
    try:
        whole = index(value)
    except TypeError:
        raise TypeError(expected(name, "an int", type(value).__name__)) from None
    if whole < least:
        raise ValueError(expected(name, f"at least {least}", value))
    return whole
