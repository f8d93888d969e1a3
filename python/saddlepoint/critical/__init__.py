"""Critical points: what kind of point is this, and how to leave it."""

from .classify import CriticalPoint, classify
from .escape import Escape, escape

__all__ = ["CriticalPoint", "Escape", "classify", "escape"]
