"""Curvature: the Hessian as an operator, checked, and its extreme eigenvalues with residuals."""

from .hessian import HessianOperator, Verification, hessian
from .lanczos import Eigenpairs, eigsh

__all__ = ["Eigenpairs", "HessianOperator", "Verification", "eigsh", "hessian"]
