"""Find out what a neural network's training is stuck on, and get it moving again.

``import saddlepoint as sp`` imports NumPy and nothing heavier; each name below is loaded when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it; a name that is its module's own stands for the module.
_WHERE = {
    "CriticalPoint": "critical",
    "DeviceError": "errors",
    "Eigenpairs": "curvature",
    "Escape": "critical",
    "FileFormatError": "errors",
    "Fit": "train",
    "HessianOperator": "curvature",
    "History": "train",
    "NetworkObjective": "objective",
    "Objective": "objective",
    "Vector": "vector",
    "Verification": "curvature",
    "classify": "critical",
    "eigsh": "curvature",
    "escape": "critical",
    "fit": "train",
    "hessian": "curvature",
    "info": "info",
    "num_threads": "_native",
    "set_num_threads": "_native",
}
_MODULES = {
    "critical", "curvature", "data", "errors", "nn", "norm", "objective", "optim", "report",
    "surfaces", "train", "vector",
}  # fmt: skip

__all__ = ["__version__", *sorted(_WHERE), *sorted(_MODULES)]

if TYPE_CHECKING:
    from . import (
        critical,
        curvature,
        data,
        errors,
        nn,
        norm,
        objective,
        optim,
        report,
        surfaces,
        train,
        vector,
    )
    from ._native import num_threads, set_num_threads
    from .critical.classify import CriticalPoint, classify
    from .critical.escape import Escape, escape
    from .curvature.hessian import HessianOperator, Verification, hessian
    from .curvature.lanczos import Eigenpairs, eigsh
    from .errors import DeviceError, FileFormatError
    from .info import info
    from .objective import NetworkObjective, Objective
    from .train import Fit, History, fit
    from .vector import Vector


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
