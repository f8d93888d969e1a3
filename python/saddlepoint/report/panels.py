"""Which figure draws what of a result: the one place where a new one is entered."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, NamedTuple

from ..demo import Demo
from ..kinds import on_device
from ..landscape import Slice1D, line
from ..results import Result
from ..runs import Analysis, Run
from .figures.comparison import loss_comparison
from .figures.escape import escape_line
from .figures.slices import curvature_slices
from .figures.spectrum import extreme_eigenvalues
from .figures.surface import loss_surface
from .figures.training import training_curves
from .page import Panel
from .theme import Figure

__all__ = ["PANELS", "Entry", "panels_of"]


class Entry(NamedTuple):
    """A panel that a kind of result has.

    ``find`` gives what ``figure`` draws: a field of the result, or an analysis that goes on from
    it; None leaves the panel out.
    """

    id: str
    title: str
    find: Callable[[Any], Any]
    figure: Callable[[Any], Figure]


def _descents(found: Demo) -> Figure:
    curves = {"gradient descent": found.descent, "with escapes": found.escaped}
    return loss_comparison(
        {name: (curve[:, 0], curve[:, 1]) for name, curve in curves.items()},
        xlabel="gradient evaluations (a Hessian product counts as two)",
        log=False,
    )


def _lines(found: Analysis) -> list[Slice1D] | None:
    """Along the eigenvectors of both ends of the spectrum."""
    if found.point is None:
        return None
    ends = {
        "the most negative curvature" if found.point.lambda_min < 0.0 else "the least curvature":
            found.point.direction,
        "the largest curvature": found.point.direction_max,
    }  # fmt: skip
    return [
        line(found.objective, found.theta, on_device(end, found.objective.device), label=label)
        for label, end in ends.items()
    ]


#: By kind of result, in the order of the page.
PANELS: Final[dict[type[Result], tuple[Entry, ...]]] = {
    Analysis: (
        Entry("eigenvalues", "Curvature at both ends", attrgetter("point"), extreme_eigenvalues),
        Entry("slices", "The loss along both ends", _lines, curvature_slices),
    ),
    Run: (Entry("training", "How training went", attrgetter("history"), training_curves),),
    Demo: (
        Entry("surface", "The loss around the saddle", attrgetter("surface"), loss_surface),
        Entry("escape", "The way down", lambda found: found.stages[0].way, escape_line),
        Entry("comparison", "With and without the escapes", lambda found: found, _descents),
        Entry(
            "eigenvalues",
            "Curvature where the digits network ended",
            attrgetter("analysis.point"),
            extreme_eigenvalues,
        ),
        Entry(
            "training",
            "How the digits network trained",
            attrgetter("run.history"),
            training_curves,
        ),
    ),
}


def panels_of(*results: Result) -> list[Panel]:
    """The panels of some results, in the order of the table."""
    return [
        Panel(entry.id, entry.title, "", entry.figure(drawn))
        for result in results
        for entry in PANELS[type(result)]
        if (drawn := entry.find(result)) is not None
    ]
