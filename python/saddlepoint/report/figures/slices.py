"""The loss along lines through a point, and the parabolas that second order predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import expected
from ..theme import Figure, add_line, extent, finish, number, real, require, text

if TYPE_CHECKING:
    from ...landscape import Slice1D

__all__ = ["curvature_slices"]


def curvature_slices(slices: Sequence[Slice1D]) -> Figure:
    """The loss along each line, under one another, with its parabola L + s gᵀd + ½ s² dᵀHd.

    Raises
    ------
    ValueError
        If there is no slice.

    Examples
    --------
    >>> import saddlepoint as sp
    >>> down = sp.landscape.line(
    ...     sp.surfaces.Saddle(), np.zeros(2), np.eye(2)[1], 1.0, label="y")
    >>> print(sp.report.caption(curvature_slices([down])))  # 5x² − y²
    Along “y” the curvature is −2 and the slope 0: from 0 the loss goes to −1 and −1 at the two \
ends, where the dashed parabola has −1 and −1.
    """
    if not slices:
        raise ValueError(expected("slices", "at least one", "none"))
    figure = require("plotly.subplots").make_subplots(
        rows=len(slices), cols=1, vertical_spacing=0.25 / len(slices)
    )
    words = []
    for row, each in enumerate(slices, 1):
        losses, model, first = real(each.losses), each.model(each.steps), row == 1
        add_line(
            figure, each.steps, model, "quadratic model", "muted", "dash",
            width=2, legend=first, row=row,
        )  # fmt: skip
        add_line(figure, each.steps, losses, "loss", "blue", width=3, legend=first, row=row)
        add_line(
            figure, np.zeros(1), np.full(1, each.loss), "the point", "ink",
            markers="circle", legend=first, row=row,
        )  # fmt: skip
        bend = float(np.ptp(model))
        low, high = extent(np.append(losses, model))
        high = min(high, each.loss + 2 * bend) if bend > 0 else high  # far out it may explode
        pad = 0.08 * (high - low)
        figure.update_yaxes(title_text="loss", range=[low - pad, high + pad], row=row, col=1)
        figure.update_xaxes(title_text=f"step along {text(each.label)}", row=row, col=1)
        words.append(
            f"Along “{each.label}” the curvature is {number(each.curvature)} and the slope "
            f"{number(each.slope)}: from {number(each.loss)} the loss goes to "
            f"{number(losses[0])} and {number(losses[-1])} at the two ends, where the dashed "
            f"parabola has {number(model[0])} and {number(model[-1])}."
        )
    return finish(figure, " ".join(words), height=160 + 280 * len(slices))
