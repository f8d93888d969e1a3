"""Batch normalization of arrays: forward, backward, and the tangents of both."""

from .batch_norm import (
    Saved,
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_tangent,
    batch_norm_tangent,
)

__all__ = [
    "Saved",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_tangent",
    "batch_norm_tangent",
]
