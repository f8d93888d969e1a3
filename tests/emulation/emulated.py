"""A plugin of pytest that puts the emulated device where `saddlepoint` looks for its CUDA build."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import saddlepoint

built = Path(os.environ["SADDLEPOINT_EMULATED"]) / "saddlepoint"
saddlepoint.__path__.append(str(built))
runtime = ctypes.CDLL(str(built / "libcublas.so.13"))
runtime.emulation_fault.restype = ctypes.c_char_p


@pytest.fixture(autouse=True)
def _no_fault() -> Iterator[None]:
    """Some faults have no call that could report them: what was written beside an array, say."""
    yield
    faults = [f.decode() for f in iter(runtime.emulation_fault, None)]
    assert not faults, "\n".join(faults)
