"""The one place that picks the native module of a device."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

from . import _core
from .errors import DeviceError, count, one_of

__all__ = ["cuda_module", "module", "num_threads", "set_num_threads"]


def num_threads() -> int:
    """Threads that CPU work is shared among (OpenMP's default, until set)."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Share CPU work among ``n`` threads from now on; results do not depend on it."""
    _core.set_num_threads(count("n", n, 1, 2**31 - 1))


def module(device: str) -> ModuleType:
    """The extension that works on ``device``, ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    DeviceError
        If the device is not there; the message says why.
    """
    if type(device) is not str or device not in ("cpu", "cuda"):  # each call of many asks
        one_of("device", device, ("cpu", "cuda"))
    return _core if device == "cpu" else _cuda()


def cuda_module() -> ModuleType | None:
    """The CUDA extension, whether or not it finds a device; None where it was not built."""
    if importlib.util.find_spec("saddlepoint._cuda") is None:
        return None
    return importlib.import_module("saddlepoint._cuda")


@cache
def _cuda() -> ModuleType:
    cuda = cuda_module()
    if cuda is None:
        raise DeviceError("device: this saddlepoint was built without CUDA")
    if not cuda.available():
        raise DeviceError(f"device: no CUDA device can be used: {cuda.reason()}")
    # cuBLAS from its wheel, if that is installed; the loader's own path otherwise.
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in sorted(Path(folder).glob("cu*/lib/libcublas.so.*")):
            cuda.set_cublas_path(str(library))
    return cuda
