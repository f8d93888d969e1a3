"""New arrays beside a given one: of its kind, on its device."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kinds import ArrayLike, kind_of

__all__ = [
    "channel_dtype", "channel_like", "dense_like", "double_table", "octets", "row_of", "stacked",
]  # fmt: skip


def dense_like(x: ArrayLike) -> ArrayLike:
    """A dense array of the shape and dtype of ``x`` and, as far as it has one, its memory order."""
    return kind_of(x).dense_like(x)


def channel_dtype(x: ArrayLike) -> type[np.floating[Any]]:
    """The dtype that parameters have by default."""
    return np.float64 if kind_of(x).is_float64(x) else np.float32


def channel_like(x: ArrayLike, channels: int) -> ArrayLike:
    """One number a channel, of the dtype that parameters have by default."""
    return kind_of(x).empty(x, (channels,), channel_dtype(x))


def double_table(x: ArrayLike, *shape: int) -> ArrayLike:
    """A float64 table of the kind of ``x``."""
    return kind_of(x).empty(x, shape, np.float64)


def octets(x: ArrayLike, count: int) -> ArrayLike:
    """Bytes of the kind of ``x``."""
    return kind_of(x).empty(x, (count,), np.uint8)


def row_of(table: ArrayLike, k: int) -> ArrayLike:
    """Row k of a table (rows, groups, channels) in the same memory; (channels,) of one group."""
    kind, shape = kind_of(table), tuple(table.shape)
    row = kind.rows(table, slice(k, k + 1))
    return kind.reshaped(row, shape[2:] if shape[1] == 1 else shape[1:])


def stacked(x: ArrayLike, *rows: ArrayLike) -> ArrayLike:
    """Rows of one number a channel as a float64 table (rows, 1, channels) of the kind of ``x``."""
    kind = kind_of(x)
    return kind.reshaped(kind.stacked(x, rows), (len(rows), 1, int(rows[0].shape[0])))
