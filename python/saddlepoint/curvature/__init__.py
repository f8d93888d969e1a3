"""Curvature: the Hessian and the Gauss-Newton matrix as operators; spectrum, trace and diagonal."""

from .density import SpectralDensity, spectral_density
from .gauss_newton import GaussNewtonOperator, gauss_newton
from .hessian import HessianOperator, Verification, hessian
from .lanczos import Eigenpairs, eigsh
from .trace import Diagonal, Trace, diagonal, trace

__all__ = [
    "Diagonal",
    "Eigenpairs",
    "GaussNewtonOperator",
    "HessianOperator",
    "SpectralDensity",
    "Trace",
    "Verification",
    "diagonal",
    "eigsh",
    "gauss_newton",
    "hessian",
    "spectral_density",
    "trace",
]
