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
    "Diagonal": "curvature",
    "DeviceError": "errors",
    "Eigenpairs": "curvature",
    "Escape": "critical",
    "FileFormatError": "errors",
    "Fit": "train",
    "GaussNewtonOperator": "curvature",
    "HessianOperator": "curvature",
    "History": "train",
    "NetworkObjective": "nn.objective",
    "LayerCurvature": "curvature",
    "Objective": "objective",
    "SpectralDensity": "curvature",
    "Trace": "curvature",
    "Vector": "vector",
    "Verification": "curvature",
    "classify": "critical",
    "curvature_by_layer": "curvature",
    "diagonal": "curvature",
    "eigsh": "curvature",
    "escape": "critical",
    "fit": "train",
    "gauss_newton": "curvature",
    "hessian": "curvature",
    "info": "_info",
    "num_threads": "_native",
    "preconditioned": "curvature",
    "set_num_threads": "_native",
    "spectral_density": "curvature",
    "trace": "curvature",
}
_MODULES = {
    "critical", "curvature", "data", "errors", "landscape", "nn", "norm", "objective", "optim",
    "report", "runs", "studies", "surfaces", "train", "vector",
}  # fmt: skip

__all__ = ["__version__", *sorted(_WHERE), *sorted(_MODULES)]

if TYPE_CHECKING:  # what the two tables say, for those who cannot run them
    from . import critical as critical
    from . import curvature as curvature
    from . import data as data
    from . import errors as errors
    from . import landscape as landscape
    from . import nn as nn
    from . import norm as norm
    from . import objective as objective
    from . import optim as optim
    from . import report as report
    from . import runs as runs
    from . import studies as studies
    from . import surfaces as surfaces
    from . import train as train
    from . import vector as vector
    from ._info import info as info
    from ._native import num_threads as num_threads
    from ._native import set_num_threads as set_num_threads
    from .critical.classify import CriticalPoint as CriticalPoint
    from .critical.classify import classify as classify
    from .critical.escape import Escape as Escape
    from .critical.escape import escape as escape
    from .curvature.density import SpectralDensity as SpectralDensity
    from .curvature.density import spectral_density as spectral_density
    from .curvature.gauss_newton import GaussNewtonOperator as GaussNewtonOperator
    from .curvature.gauss_newton import gauss_newton as gauss_newton
    from .curvature.hessian import HessianOperator as HessianOperator
    from .curvature.hessian import Verification as Verification
    from .curvature.hessian import hessian as hessian
    from .curvature.lanczos import Eigenpairs as Eigenpairs
    from .curvature.lanczos import eigsh as eigsh
    from .curvature.layers import LayerCurvature as LayerCurvature
    from .curvature.layers import curvature_by_layer as curvature_by_layer
    from .curvature.preconditioned import preconditioned as preconditioned
    from .curvature.trace import Diagonal as Diagonal
    from .curvature.trace import Trace as Trace
    from .curvature.trace import diagonal as diagonal
    from .curvature.trace import trace as trace
    from .errors import DeviceError as DeviceError
    from .errors import FileFormatError as FileFormatError
    from .nn.objective import NetworkObjective as NetworkObjective
    from .objective import Objective as Objective
    from .train import Fit as Fit
    from .train import History as History
    from .train import fit as fit
    from .vector import Vector as Vector


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
