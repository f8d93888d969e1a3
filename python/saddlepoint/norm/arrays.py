"""New arrays beside a given one: of its kind, on its device."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..errors import expected
from ..vector import ArrayLike, Vector, axpy, in_float64

__all__ = ["channel_like", "dense_like", "double_table", "octets", "row_of", "stacked"]


def _torch(x: ArrayLike) -> Any:
    """The module that a tensor comes from; None for arrays that are none."""
    return sys.modules["torch"] if hasattr(x, "new_empty") else None


def _host_dtype(x: ArrayLike, name: str = "x") -> np.dtype[Any]:
    """NumPy's dtype of an array, for kinds that we allocate through NumPy."""
    try:
        return np.dtype(str(x.dtype))
    except TypeError:
        raise TypeError(
            expected(name, "a kind of array that bfloat16 can be allocated as", type(x).__name__)
        ) from None


def dense_like(x: ArrayLike) -> ArrayLike:
    """A dense array of the shape and dtype of ``x`` and, as far as it has one, its memory order."""
    if isinstance(x, np.ndarray):
        return np.empty_like(x, subok=False)
    torch = _torch(x)
    if torch is not None:
        return torch.empty_like(x)
    if isinstance(x, Vector):
        return Vector(x.shape, x.dtype, x.device, x.order)
    return np.empty(tuple(x.shape), _host_dtype(x))


def channel_like(x: ArrayLike, channels: int) -> ArrayLike:
    """One number a channel, of the dtype that parameters have by default."""
    if isinstance(x, np.ndarray):
        return np.empty(channels, np.float64 if x.dtype == np.float64 else np.float32)
    torch = _torch(x)
    if torch is not None:
        wide = torch.float64 if x.dtype is torch.float64 else torch.float32
        return x.new_empty(channels, dtype=wide)
    dtype = np.float64 if str(x.dtype) == "float64" else np.float32
    if isinstance(x, Vector):
        return Vector(channels, dtype, x.device)
    return np.empty(channels, dtype)


def double_table(x: ArrayLike, *shape: int) -> ArrayLike:
    """A float64 table of the kind of ``x``."""
    if isinstance(x, np.ndarray):
        return np.empty(shape)
    torch = _torch(x)
    if torch is not None:
        return x.new_empty(shape, dtype=torch.float64)
    if isinstance(x, Vector):
        return Vector(shape, np.float64, x.device)
    return np.empty(shape)


def octets(x: ArrayLike, count: int) -> ArrayLike:
    """Bytes of the kind of ``x``."""
    torch = _torch(x)
    if torch is not None:
        return x.new_empty(count, dtype=torch.uint8)
    if isinstance(x, Vector):
        return Vector.of_bytes(count, x.device)
    return np.empty(count, np.uint8)


def row_of(table: ArrayLike, k: int) -> ArrayLike:
    """Row k of a table (rows, groups, channels) in the same memory; (channels,) of one group."""
    if isinstance(table, Vector):
        row = table.rows(slice(k, k + 1))
        return row.reshaped(table.shape[2:] if table.shape[1] == 1 else table.shape[1:])
    return table[k, 0] if table.shape[1] == 1 else table[k]


def stacked(x: ArrayLike, *rows: ArrayLike) -> ArrayLike:
    """Rows of one number a channel as a float64 table (rows, 1, channels) of the kind of ``x``."""
    torch = _torch(x)
    if torch is not None:
        return torch.stack([row.double() for row in rows]).reshape(len(rows), 1, -1)
    if isinstance(x, Vector):
        table = double_table(x, len(rows), 1, rows[0].size)  # zero
        for k, row in enumerate(rows):
            axpy(1.0, row if row.dtype == np.float64 else in_float64(row), row_of(table, k))
        return table
    return np.stack([np.asarray(row, np.float64) for row in rows]).reshape(len(rows), 1, -1)
