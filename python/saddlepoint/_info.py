"""What this build is, and what it runs on."""

from __future__ import annotations

from typing import Any

from . import __version__, _core
from ._native import cuda_module

__all__ = ["info"]


def info() -> dict[str, Any]:
    """Version, instruction set, threads, BLAS, CUDA build and devices, as plain values.

    Examples
    --------
    >>> import saddlepoint as sp
    >>> sp.info()["instruction set"] in {"base", "v3", "v4"}
    True
    """
    facts: dict[str, Any] = {
        "version": __version__,
        "instruction set": _core.isa(),
        "threads": _core.num_threads(),
        "BLAS": _core.blas(),
    }
    cuda = cuda_module()
    facts["CUDA build"] = "none" if cuda is None else cuda.build()
    facts["CUDA devices"] = [] if cuda is None else cuda.devices()
    if cuda is not None and not cuda.available():
        facts["CUDA unavailable because"] = cuda.reason()
    return facts
