"""The arrays beside the parameters: states, averages, remainders."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import module
from ..errors import expected
from ..kinds import refuse_mask

__all__ = ["State", "allocate"]

# DLPack's code and bits of the dtypes that arrays beside a parameter have.
_CODES = {
    "float32": (2, 32),
    "float64": (2, 64),
    "bfloat16": (4, 16),
    "float16": (2, 16),
    "int16": (0, 16),
}


class State:
    """An array beside a parameter, in a piece of a buffer that all of them share.

    NumPy has no bfloat16, so that a `Vector` could not hold one. On the host a 16-bit float is a
    float32 of the same value.
    """

    def __init__(
        self, buffer: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
    ) -> None:
        self._buffer, self._offset = buffer, offset
        self.shape, self.strides, self.dtype = shape, strides, dtype
        self._code, self._bits = _CODES[dtype]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.size * self._bits // 8

    def __dlpack__(
        self, *, stream: int | None = None, max_version: tuple[int, int] | None = None, **_: Any
    ) -> Any:
        versioned = max_version is not None and max_version[0] >= 1
        return self._buffer.dlpack(
            self._offset,
            list(self.shape),
            list(self.strides),
            self._code,
            self._bits,
            versioned,
            stream,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._buffer.dlpack_device()
        return device

    def _in_memory_order(self, x: NDArray[Any]) -> NDArray[Any]:
        order = sorted(range(len(self.shape)), key=lambda a: -self.strides[a])
        return x.transpose(order)

    def numpy(self) -> NDArray[Any]:
        """A copy on the host."""
        raw = np.empty(self.size, f"u{self._bits // 8}")
        self._buffer.copy_to(raw, self._offset)
        if self.dtype == "bfloat16":
            flat: NDArray[Any] = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            flat = raw.view(self.dtype)
        if self.dtype == "float16":
            flat = flat.astype(np.float32)
        out = np.empty(self.shape, flat.dtype)
        view = self._in_memory_order(out)
        view[...] = flat.reshape(view.shape)
        return out

    def check(self, x: Any, name: str) -> None:
        """Raise TypeError or ValueError unless ``x`` could be what `numpy` gave."""
        if not isinstance(x, np.ndarray):
            raise TypeError(expected(name, "a NumPy array", type(x).__name__))
        refuse_mask(name, x)
        if x.shape != self.shape:
            raise ValueError(expected(name, f"shape {self.shape}", x.shape))
        wanted = self.dtype if self.dtype.endswith(("int16", "64")) else "float32"
        if x.dtype != wanted:
            raise TypeError(expected(name, f"dtype {wanted}", x.dtype))
        if self.dtype == "bfloat16" and np.any(np.asarray(x, order="C").view(np.uint32) & 0xFFFF):
            raise ValueError(expected(name, "values of bfloat16", "others"))

    def assign(self, x: NDArray[Any]) -> None:
        """Take the values of a host array, rounded to nearest where this is bfloat16."""
        flat = np.ascontiguousarray(self._in_memory_order(np.asarray(x))).reshape(-1)
        if self.dtype == "bfloat16":
            bits = flat.astype(np.float32).view(np.uint32)
            flat = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        else:
            flat = flat.astype(self.dtype)
        self._buffer.copy_from(flat, self._offset)


def allocate(
    device: str, wanted: list[tuple[tuple[int, ...], tuple[int, ...], str]]
) -> list[State]:
    """Arrays of zeros, given by shape, strides and dtype, in one buffer.

    Large ones are moved apart by an odd number of cache lines each: arrays of one loop at equal
    offsets within their pages compete for the same cache sets.
    """
    offsets, at = [], 0
    for shape, _, dtype in wanted:
        nbytes = math.prod(shape) * _CODES[dtype][1] // 8
        offsets.append(at)
        at += -(-nbytes // 64) * 64 + (576 if nbytes >= 1 << 16 else 0)
    buffer = module(device).Buffer(at)
    return [State(buffer, o, *w) for o, w in zip(offsets, wanted, strict=True)]
