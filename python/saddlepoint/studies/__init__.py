"""What the lectures claim, measured: functions that return numbers which draw themselves."""

from . import batch_norm

__all__ = ["batch_norm"]
