"""Several losses on one pair of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import expected
from ..theme import (
    DASHES,
    SERIES,
    Figure,
    add_line,
    axis_type,
    ends,
    envelope,
    finish,
    real,
    require,
    text,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["loss_comparison"]


def loss_comparison(
    curves: Mapping[str, tuple[Array, Array]],
    xlabel: str,
    ylabel: str = "loss",
    log: bool | None = None,
) -> Figure:
    """Several losses on one pair of axes.

    Parameters
    ----------
    curves : mapping of str to (x, y)
        Arrays (m,) each; y may hold NaN.
    xlabel, ylabel : str
        Titles of the axes.
    log : bool, optional
        Logarithmic y axis; by default wherever all losses are positive and span a factor of 50.

    Raises
    ------
    ValueError
        If there is no curve, or an x and its y differ in shape.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint.report import caption
    >>> x = np.arange(3)
    >>> figure = loss_comparison({"plain": (x, np.ones(3)), "escape": (x, 1 / (1 + x))}, "update")
    >>> print(caption(figure))
    “plain” goes from 1 to 1 over 3 points. “escape” goes from 1 to 0.3333 over 3 points.
    """
    if not curves:
        raise ValueError(expected("curves", "at least one", "none"))
    figure = require("plotly.graph_objects").Figure()
    words = []
    for i, (name, (x, y)) in enumerate(curves.items()):
        x, y = real(x), real(y)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(expected(f"curves[{name!r}]", f"y of shape {x.shape}", y.shape))
        role, dash = SERIES[i % len(SERIES)], DASHES[(i + i // len(SERIES)) % len(DASHES)]
        add_line(figure, *envelope(x, y), text(name), role, dash, width=3)
        words.append(f"“{name}” goes {ends(y)} over {x.size:,} points.")
    scale = axis_type(*(real(y) for _, y in curves.values()))
    if log is not None:
        scale = "log" if log else "linear"
    figure.update_yaxes(title_text=text(ylabel), type=scale)
    figure.update_xaxes(title_text=text(xlabel), exponentformat="none", separatethousands=True)
    return finish(figure, " ".join(words), height=440)
