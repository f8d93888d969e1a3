"""Batch normalization of arrays: forward, backward, and everything to second order."""

from .first import batch_norm, batch_norm_backward, batch_norm_tangent
from .options import Noise
from .parts import (
    batch_norm_apply,
    batch_norm_backward_apply,
    batch_norm_backward_reduce,
    batch_norm_statistics,
    combine,
)
from .saved import Moments, Saved
from .second import (
    batch_norm_backward_tangent,
    batch_norm_double_backward,
    batch_norm_second_tangent,
)

__all__ = [
    "Moments",
    "Noise",
    "Saved",
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_reduce",
    "batch_norm_backward_tangent",
    "batch_norm_double_backward",
    "batch_norm_second_tangent",
    "batch_norm_statistics",
    "batch_norm_tangent",
    "combine",
]
