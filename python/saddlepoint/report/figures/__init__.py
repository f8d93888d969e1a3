"""Figures: a result goes in, a Plotly figure that carries its own caption comes out."""

from __future__ import annotations

from .comparison import loss_comparison
from .escape import escape_line
from .spectrum import extreme_eigenvalues
from .surface import loss_surface
from .training import training_curves

__all__ = [
    "escape_line",
    "extreme_eigenvalues",
    "loss_comparison",
    "loss_surface",
    "training_curves",
]
