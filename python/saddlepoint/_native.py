"""The one place that picks the native module of a device."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from . import _core
from .errors import DeviceError, count, expected, one_of

__all__ = ["device_of", "module", "module_of", "num_threads", "set_num_threads"]


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
    one_of("device", device, ("cpu", "cuda"))
    if device == "cpu":
        return _core
    return _cuda()


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


def check_array(name: str, x: Any) -> None:
    """Raise TypeError unless this is an array; one whose mask would be lost is none."""
    if type(x) is np.ndarray:
        return
    if isinstance(x, type) or not all(
        hasattr(x, needed) for needed in ("shape", "dtype", "__dlpack_device__")
    ):
        raise TypeError(expected(name, "an array (NumPy or DLPack)", type(x).__name__))
    refuse_mask(name, x)


def refuse_mask(name: str, x: Any) -> None:
    """Raise TypeError for an array whose mask would be lost."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(expected(name, "an array without a mask (x.filled(…))", "a masked array"))


def device_of(x: Any) -> str:
    """``"cpu"`` or ``"cuda"``, for an array of NumPy or one that speaks DLPack."""
    if not hasattr(x, "__dlpack_device__") or isinstance(x, type):
        raise TypeError(expected("x", "an array (NumPy or DLPack)", type(x).__name__))
    refuse_mask("x", x)
    kind = int(x.__dlpack_device__()[0])
    names = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}
    if kind not in names:
        raise TypeError(expected("x", "device cpu or cuda", f"DLPack device {kind}"))
    return names[kind]


def module_of(x: Any) -> ModuleType:
    """The extension for the device that an array lies on."""
    return module(device_of(x))
