"""Every exception of the package, and the one form their messages have.

``TypeError`` for a wrong kind or dtype, ``ValueError`` for a wrong shape, value or overlap; the two
below for what the built-in exceptions do not name.
"""

from __future__ import annotations

__all__ = ["DeviceError", "FileFormatError", "expected"]


class DeviceError(RuntimeError):
    """A device that this build or this machine does not have; the message says why."""


class FileFormatError(ValueError):
    """A file is corrupt, truncated, or not what its name says."""


def expected(name: str, what: object, got: object) -> str:
    """The text of an error: ``name: expected what, got got``."""
    return f"{name}: expected {what}, got {got}"
