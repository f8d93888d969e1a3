"""safetensors files: arrays by name, and text beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, expected, instance, path_of
from ..kinds import refuse_mask
from ..store import write_file

__all__ = [
    "parse_safetensors",
    "read_safetensors",
    "require_safetensors",
    "safetensors_bytes",
    "write_safetensors",
]

Array = NDArray[Any]
PathLike = str | os.PathLike[str]


def read_safetensors(path: PathLike) -> dict[str, Array]:
    """The arrays of a safetensors file by name, writable and independent of the file.

    Raises
    ------
    FileFormatError
        If the file is damaged, or holds a dtype that NumPy lacks (bfloat16).
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.safetensors")
    ...     write_safetensors(path, {"theta": np.arange(3.0)}, {"epoch": "7"})
    ...     read_safetensors(path)
    {'theta': array([0., 1., 2.])}
    """
    require_safetensors()
    return parse_safetensors(str(path), path_of("path", path).read_bytes())[0]


def parse_safetensors(name: str, content: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the text that the bytes of a file hold; the name is for messages.

    Raises
    ------
    FileFormatError, ImportError
        As `read_safetensors`.
    """
    safetensors = require_safetensors()
    try:
        # Rust compares what the header declares with what there is, before anything is made.
        arrays: dict[str, Array] = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OverflowError) as error:
        what = "an intact safetensors file of NumPy dtypes"
        raise FileFormatError(expected(name, what, f"'{error}'")) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return arrays, header.get("__metadata__") or {}


def write_safetensors(
    path: PathLike, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays, in any memory order, and text beside them, all or nothing.

    The file is written under another name in the same folder and then renamed, so that a reader
    finds the old one or the new one, and an interrupted write leaves the old one.

    Raises
    ------
    TypeError
        For a value that is not an array, a dtype the format lacks, or metadata that is not text.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    See `read_safetensors`.
    """
    write_file(path, safetensors_bytes(arrays, metadata))


def safetensors_bytes(
    arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of such a file.

    Raises
    ------
    TypeError, ImportError
        As `write_safetensors`.
    """
    safetensors = require_safetensors()
    texts = _named("metadata", {} if metadata is None else metadata)
    for text in texts.values():
        instance("metadata", text, str, "text")
    arrays = _named("arrays", arrays)
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(expected(f"arrays[{name!r}]", "an array", type(array).__name__))
        refuse_mask(f"arrays[{name!r}]", array)
    try:
        # It copies memory as it lies, whatever the strides.
        ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        content: bytes = safetensors.numpy.save(ordered, texts or None)
    except safetensors.SafetensorError as error:
        raise TypeError(expected("arrays", "dtypes of safetensors", f"'{error}'")) from error
    return content


def _named(name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise TypeError(expected(name, "a mapping by name", type(values).__name__))
    return {instance(name, key, str, "names that are text"): v for key, v in values.items()}


def require_safetensors() -> ModuleType:
    """The library, or ImportError that says how to get it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        message = "safetensors is not installed: pip install 'saddlepoint[cli]'"
        raise ImportError(message) from error
    return safetensors
