"""The bytes of plain and gzip files, and no more of them than a limit."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from ..errors import FileFormatError, expected

__all__ = ["MAX_BYTES", "PathLike", "check_size", "opened", "read_up_to"]

PathLike = str | os.PathLike[str]

#: What a file may unfold to, and its arrays may take, unless ``max_bytes`` says otherwise: 1 GiB.
MAX_BYTES = 1 << 30


def check_size(path: PathLike, size: int, max_bytes: int) -> None:
    """Raise FileFormatError for more bytes than the limit."""
    if size > max_bytes:
        raise FileFormatError(expected(str(path), f"at most max_bytes = {max_bytes} bytes", size))


class _Limited(io.RawIOBase):
    """A stream that raises once more than a limit has come out of it."""

    def __init__(self, stream: io.BufferedIOBase, path: PathLike, max_bytes: int) -> None:
        self._stream, self._path, self._max = stream, path, max_bytes
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        self._read += len(piece)
        if self._read > self._max:
            check_size(self._path, self._read, self._max)
        buffer[: len(piece)] = piece
        return len(piece)


@contextmanager
def opened(path: PathLike, max_bytes: int = MAX_BYTES) -> Iterator[io.BufferedReader]:
    """Plain bytes of a plain or gzip file, told apart by content, whatever the name."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            plain = gzip.GzipFile(fileobj=file) if is_gzip else file
            yield io.BufferedReader(_Limited(plain, path, max_bytes), 1 << 17)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FileFormatError(expected(str(path), "intact gzip", f"'{error}'")) from error


def read_up_to(stream: IO[bytes], count: int) -> bytearray:
    """So many bytes, or those there are."""
    # In pieces: one read(count) would allocate whatever a damaged header declares.
    data = bytearray()
    while piece := stream.read(min(count - len(data), 1 << 20)):
        data += piece
    return data
