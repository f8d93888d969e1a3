"""The report: what training is stuck on, drawn, on one page that opens offline."""

from __future__ import annotations

from .figures import (
    escape_line,
    extreme_eigenvalues,
    loss_comparison,
    loss_surface,
    training_curves,
)
from .page import Panel, Report, Verdict, write
from .theme import caption

__all__ = [
    "Panel",
    "Report",
    "Verdict",
    "caption",
    "escape_line",
    "extreme_eigenvalues",
    "loss_comparison",
    "loss_surface",
    "training_curves",
    "write",
]
