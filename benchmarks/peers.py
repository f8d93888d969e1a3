"""The libraries we compare with, where they are installed and have the device."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saddlepoint as sp
from saddlepoint.vector import gather

__all__ = ["host", "load", "place", "synchronizer"]


@cache
def load(name: str, device: str) -> ModuleType | str:
    """The peer ``"torch"`` or ``"jax"``, on as many threads as we use; or why there is none."""
    # JAX would take three quarters of the device's memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        module = importlib.import_module(name)
    except ImportError:
        return "not installed"
    if name == "torch":
        if device == "cuda" and not module.cuda.is_available():
            return "no CUDA device"
        module.set_num_threads(sp.num_threads())
        return module
    try:
        module.config.update("jax_default_device", module.devices(device)[0])
    except RuntimeError:
        return f"no {device} backend"
    # On a GPU its float32 products would be TensorFloat-32, which nobody else here uses.
    module.config.update("jax_default_matmul_precision", "highest")
    return module


def place(x: NDArray[Any], device: str) -> Any:
    """A copy of ours on a device: NumPy on the CPU, a `Vector` elsewhere."""
    return x.copy() if device == "cpu" else sp.Vector.from_numpy(x, device)


def host(x: Any) -> NDArray[Any]:
    """A copy on the host of anybody's array; 16 bits become float32 (NumPy has no bfloat16)."""
    if isinstance(x, sp.Vector | np.ndarray):
        return gather(x)
    if hasattr(x, "detach"):
        tensor = x.detach().cpu()
        x = (tensor.float() if tensor.element_size() == 2 else tensor).numpy()
    return np.array(x)


def synchronizer(device: str) -> Callable[[], None]:
    """Waits for all queued work of the device.

    Not CUDA events: they see one stream, and each library has its own.
    """
    if device == "cpu":
        return lambda: None
    torch = load("torch", device)
    if isinstance(torch, str):
        probe = sp.Vector.from_numpy(np.zeros(1, np.float32), device)
        return lambda: (sp.vector.dot(probe, probe), None)[1]  # our stream; JAX waits by itself
    wait: Callable[[], None] = torch.cuda.synchronize
    return wait
