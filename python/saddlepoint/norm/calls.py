"""What the calls of the extension have in common."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..errors import brief, expected, instance
from ..kinds import ArrayLike
from .arrays import channel_like, dense_like, double_table, octets
from .options import curved
from .saved import Saved

__all__ = [
    "Reduce", "check_saved", "empty_sums", "gradients", "start",
]  # fmt: skip

# Adds the sums of all processes, in place.
Reduce = Callable[[ArrayLike], object]


def start(extension: ModuleType, saved: Saved, tables: int, residual: ArrayLike | None) -> int:
    """Allocate what the forward pass writes, and keep the residual if it takes it; the groups."""
    gated = residual is not None and saved.activation is not None and not curved(saved.activation)
    groups, gate_bytes = 1, 0
    if saved.ghost or gated:
        groups, gate_bytes = extension.batch_norm_sizes(saved)
    if tables:
        channels = int(saved.x.shape[saved.axis])
        saved.statistics = double_table(saved.x, tables, groups, channels)
    saved.has_residual = residual is not None
    if gated:
        saved.gate = octets(saved.x, gate_bytes)
    elif saved.activation is not None:
        saved.residual = residual
    return groups


def check_saved(saved: Any, reduce: Any = None) -> None:
    """Raise unless these are what a derivative can be made of."""
    instance("saved", saved, Saved, "what batch_norm returned beside y")
    if reduce is not None and not callable(reduce):
        raise TypeError(expected("reduce", "a function of an array", brief(reduce)))


def gradients(saved: Saved) -> tuple[ArrayLike, ArrayLike]:
    """(dweight, dbias), still empty, of the parameters' dtypes."""
    channels = int(saved.statistics.shape[2])
    weight, bias = saved.weight, saved.bias
    dweight = channel_like(saved.x, channels) if weight is None else dense_like(weight)
    dbias = channel_like(saved.x, channels) if bias is None else dense_like(bias)
    return dweight, dbias


def empty_sums(saved: Saved, number: int) -> ArrayLike:
    """A table for sums of each group and channel."""
    return double_table(saved.x, number, *saved.statistics.shape[1:])
