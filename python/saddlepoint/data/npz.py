"""NumPy's archives, with every declared size checked before memory is asked for."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, expected
from .streams import check_size, read_up_to

__all__ = ["read_npz"]

Array = NDArray[Any]

_KEYS = ("x", "x_train", "y", "y_train", "x_test", "y_test")

# What zipfile and NumPy raise on damaged files. OSError: a directory that points to no place.
_FAULTS = (
    ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    NotImplementedError, KeyError, TypeError, SyntaxError, OverflowError, IndexError,
    struct.error, tokenize.TokenError,
)  # fmt: skip


def read_npz(path: Path, max_bytes: int) -> list[tuple[Array, Array]]:
    """Inputs and targets of an archive, and those of its test part."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
                members = {k: archive.getinfo(f"{k}.npy") for k in _KEYS if f"{k}.npy" in names}
                check_size(path, sum(info.file_size for info in members.values()), max_bytes)
                arrays = {}
                for key, info in members.items():
                    with archive.open(info) as member:
                        arrays[key] = _read_array(member)
        except FileFormatError:
            raise
        except _FAULTS as error:
            what = "an intact .npz of plain arrays"
            raise FileFormatError(expected(str(path), what, f"'{_line(error)}'")) from error

    def take(*keys: str) -> Array:
        for key in keys:
            if key in arrays:
                return arrays[key]
        raise FileFormatError(
            expected(
                str(path),
                f"an array {' or '.join(keys)}",
                [name.removesuffix(".npy") for name in names[:20]],
            )
        )

    parts = [(take("x", "x_train"), take("y", "y_train"))]
    if "x_test" in arrays or "y_test" in arrays:
        parts.append((take("x_test"), take("y_test")))
    return parts


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _read_array(member: IO[bytes]) -> Array:
    version = np.lib.format.read_magic(member)
    if version not in _HEADERS:
        raise ValueError(expected("version of the array", "1.0 or 2.0", version))
    shape, fortran, dtype = _HEADERS[version](member)
    if dtype.hasobject:
        raise ValueError("Object arrays are pickles, which are never loaded")
    if any(length < 0 for length in shape):
        raise ValueError(expected("shape", "lengths from 0", shape))
    wanted = math.prod(shape) * dtype.itemsize
    data = read_up_to(member, wanted + 1)  # to the end, where the checksum is compared
    if len(data) != wanted:
        got = "more" if len(data) > wanted else len(data)
        raise ValueError(expected("data", f"{wanted} bytes for {dtype} {shape}", got))
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
