"""The loss along the way out of a saddle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import expected
from ..theme import Figure, add_line, add_point, extent, finish, number, real, require

if TYPE_CHECKING:
    import numpy.typing as npt

    from ...critical import Escape

    Array = npt.NDArray[Any]

__all__ = ["escape_line"]


def escape_line(escape: Escape) -> Figure:
    """The loss along the direction of negative curvature, and the parabola that predicted it.

    The parabola is `Escape.model`, the second-order Taylor polynomial along u.

    Examples
    --------
    >>> import saddlepoint as sp
    >>> way = sp.escape(sp.surfaces.FactoredLinear(), np.zeros(2))  # (1 − xy)²
    >>> print(sp.report.caption(escape_line(way)))  # doctest: +ELLIPSIS
    Along a direction of curvature −2 (residual ...) the loss falls from 1 to ... at the chosen \
step 1.414: a drop of 1, where the dashed parabola promises 2. The gradient along it is 0, so \
gradient descent does not see this way down.
    """
    steps, losses = real(escape.steps), real(escape.losses)
    if steps.ndim != 1 or steps.shape != losses.shape:
        raise ValueError(expected("losses", f"shape {steps.shape}", losses.shape))
    order = np.argsort(steps)
    steps, losses = steps[order], losses[order]
    ends = np.array([0.0, escape.step])
    before, after = float(escape.loss_before), float(escape.loss_after)
    low, high = extent(np.append(losses, [before, after]))
    if before > low:
        high = min(high, before + 2 * (before - low))  # far out the loss may explode
    left, right = extent(np.append(steps[losses <= high], ends))
    pads = 0.08 * (high - low), 0.04 * (right - left)
    s = np.linspace(left - pads[1], right + pads[1], 201)

    figure = require("plotly.graph_objects").Figure()
    add_line(figure, s, escape.model(s), "quadratic model", "muted", "dash", width=2)
    add_line(figure, steps, losses, "loss", "blue", width=3)
    add_point(figure, 0.0, before, "critical point", "ink", "circle")
    add_point(figure, float(escape.step), after, "chosen step", "orange", "diamond")
    figure.update_yaxes(title_text="loss", range=[low - pads[0], high + pads[0]])
    figure.update_xaxes(
        title_text="signed step along the direction",
        range=[left - pads[1], right + pads[1]],
        zeroline=True,
    )

    words = (
        f"Along a direction of curvature {number(escape.eigenvalue)} (residual "
        f"{number(escape.residual, 2)}) the loss {'falls' if after < before else 'goes'} from "
        f"{number(before)} to {number(after)} at the chosen step {number(escape.step)}: a drop "
        f"of {number(escape.actual_drop)}, where the dashed parabola promises "
        f"{number(escape.predicted_drop)}. The gradient along it is {number(escape.gradient)}"
    )
    # the linear term moves the loss by less than a hundredth of what the quadratic one does
    blind = abs(escape.gradient * escape.step) <= 0.01 * abs(escape.predicted_drop)
    words += ", so gradient descent does not see this way down." if blind else "."
    return finish(figure, words, height=440)
