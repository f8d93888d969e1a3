"""Curvature: the Hessian as an operator, checked; its spectrum, trace and diagonal."""

from .density import SpectralDensity, spectral_density
from .hessian import HessianOperator, Verification, hessian
from .lanczos import Eigenpairs, eigsh
from .trace import Diagonal, Trace, diagonal, trace

__all__ = [
    "Diagonal",
    "Eigenpairs",
    "HessianOperator",
    "SpectralDensity",
    "Trace",
    "Verification",
    "diagonal",
    "eigsh",
    "hessian",
    "spectral_density",
    "trace",
]
