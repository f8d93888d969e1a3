"""IDX files, the format of MNIST."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, count, expected, path_of
from .streams import MAX_BYTES, PathLike, check_size, opened, read_up_to

__all__ = ["read_idx", "read_idx_folder"]

Array = NDArray[Any]


def read_idx_folder(folder: Path, max_bytes: int) -> list[tuple[Array, Array]]:
    """Images and labels of a folder, and those of its test part."""

    def find(stem: str) -> Path | None:
        return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)

    parts = []
    for prefix in ("train", "t10k"):
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, labels = map(find, names)
        if prefix == "t10k" and images is None and labels is None:
            break
        if images is None or labels is None:
            missing = names[0] if images is None else names[1]
            raise FileNotFoundError(expected(str(folder), f"a file {missing}[.gz]", "none"))
        x, y = read_idx(images, max_bytes), read_idx(labels, max_bytes)
        if x.ndim < 2:
            raise FileFormatError(expected(str(images), "two axes or more", x.shape))
        if y.shape != x.shape[:1]:
            raise FileFormatError(expected(str(labels), f"{len(x)} labels", f"shape {y.shape}"))
        parts.append((x, y))
    return parts


_HEADER = 4 + 4 * 255 + 1  # bytes at most, and the one that tells a longer file
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: PathLike, max_bytes: int = MAX_BYTES) -> Array:
    """The array of an IDX file, plain or gzip, in native byte order.

    The format of the MNIST distribution: two zero bytes, a type, the number of axes, their lengths
    as big-endian uint32, then the elements, big-endian, row by row. Types are uint8, int8, int16,
    int32, float32 and float64.

    Raises
    ------
    FileFormatError
        For another magic number, damaged gzip, more or fewer bytes than the lengths declare, or
        more than ``max_bytes``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
    ...     read_idx(path)
    array([5, 0, 4], dtype=uint8)
    """
    with opened(path_of("path", path), count("max_bytes", max_bytes, 0) + _HEADER) as stream:
        magic = bytes(read_up_to(stream, 4))
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or not magic[3]:
            what = "an IDX magic number (0, 0, type, axes)"
            raise FileFormatError(expected(str(path), what, magic.hex(" ") or "an empty file"))
        dtype = np.dtype(_IDX_DTYPES[magic[2]])
        lengths = read_up_to(stream, 4 * magic[3])
        if len(lengths) < 4 * magic[3]:
            what = f"the lengths of {magic[3]} axes"
            raise FileFormatError(expected(str(path), what, "the end of the file"))
        shape = tuple(np.frombuffer(lengths, ">u4").tolist())
        size = math.prod(shape) * dtype.itemsize
        check_size(path, size, max_bytes)
        # One byte more than declared tells a longer file; a shorter one costs what it holds.
        data = read_up_to(stream, size + 1)
    if len(data) != size:
        got = "more" if len(data) > size else len(data)
        raise FileFormatError(expected(str(path), f"{size} bytes for {dtype.name} {shape}", got))
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # more axes, or longer empty ones, than NumPy has
        raise FileFormatError(expected(str(path), "a shape NumPy can hold", shape)) from error
    return array.astype(dtype.newbyteorder("="), copy=False)
