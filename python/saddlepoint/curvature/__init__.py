"""Curvature: the Hessian and the Gauss-Newton matrix as operators; spectrum, trace and diagonal."""

from .density import SpectralDensity, spectral_density
from .gauss_newton import GaussNewtonOperator, gauss_newton
from .hessian import HessianOperator, Verification, hessian
from .lanczos import Eigenpairs, eigsh
from .layers import LayerCurvature, curvature_by_layer
from .operator import BlockOperator, CurvatureOperator
from .preconditioned import PreconditionedOperator, preconditioned
from .trace import Diagonal, Trace, diagonal, trace

__all__ = [
    "BlockOperator",
    "CurvatureOperator",
    "Diagonal",
    "Eigenpairs",
    "GaussNewtonOperator",
    "HessianOperator",
    "LayerCurvature",
    "PreconditionedOperator",
    "SpectralDensity",
    "Trace",
    "Verification",
    "curvature_by_layer",
    "diagonal",
    "eigsh",
    "gauss_newton",
    "hessian",
    "preconditioned",
    "spectral_density",
    "trace",
]
