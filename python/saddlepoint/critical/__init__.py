"""Critical points: what kind of point is this, how to leave it, and is a training stuck there."""

from .classify import CriticalPoint, classify
from .escape import Escape, escape
from .verdict import Standing, Training, judge

__all__ = ["CriticalPoint", "Escape", "Standing", "Training", "classify", "escape", "judge"]
