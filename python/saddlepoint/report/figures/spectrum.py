"""Both ends of the Hessian's spectrum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import expected
from ..theme import LIGHT, Figure, add_line, finish, number, real, require

if TYPE_CHECKING:
    import numpy.typing as npt

    from ...critical import CriticalPoint

    Array = npt.NDArray[Any]

__all__ = ["extreme_eigenvalues"]


def extreme_eigenvalues(point: CriticalPoint) -> Figure:
    """Both ends of the Hessian's spectrum, with residuals ‖Hv − λv‖ and the tolerance around zero.

    Each residual bounds the distance from the drawn value to an eigenvalue (Parlett, *The Symmetric
    Eigenvalue Problem*, 1998, theorem 4.5.1), so an error bar clear of the band is a proof. Where a
    linear axis would hide the small ones, it is asinh(λ / tolerance): linear inside the band,
    logarithmic outside.

    Examples
    --------
    >>> import saddlepoint as sp
    >>> point = sp.classify(sp.surfaces.Saddle(), np.zeros(2))  # 5x² − y²
    >>> print(sp.report.caption(extreme_eigenvalues(point)))  # doctest: +ELLIPSIS
    2 of the Hessian's 2 eigenvalues, from −2 (±...) to 10 (±...), found with 3 products. \
1 lies below the shaded band of ±1.49×10⁻⁷ around zero, 0 inside it and 1 above. Bars are \
residuals; one that stays clear of it proves the sign of an eigenvalue. The axis is linear near \
zero and logarithmic farther out.
    """
    graph = require("plotly.graph_objects")
    figure = graph.Figure()
    values, residuals = real(point.eigenvalues), np.abs(real(point.residuals))
    if values.shape != residuals.shape:
        raise ValueError(expected("residuals", f"shape {values.shape}", residuals.shape))
    keep = np.isfinite(values)
    values, residuals = values[keep], residuals[keep]
    tolerance = float(point.tolerance)
    if not values.size:
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(text="no eigenvalue was computed", showarrow=False, font_size=16)
        return finish(
            figure,
            f"No eigenvalue was computed: the point is {point.kind}, its gradient norm is "
            f"{number(point.gradient_norm)}.",
            height=240,
        )

    reach = float(np.max(np.abs(values) + np.nan_to_num(residuals))) or 1.0
    scale = tolerance if 0 < tolerance < reach else _smallest(values, reach)
    linear = reach < 30 * scale

    def place(x: Array | float) -> Array:
        spot: Array = np.asarray(x if linear else np.arcsinh(np.asarray(x) / scale))
        return spot

    spots, rank = place(values), np.arange(values.size)
    parts = (
        ("negative", "orange", "circle", values < -tolerance),
        ("within the tolerance", "muted", "square", np.abs(values) <= tolerance),
        ("positive", "blue", "diamond", values > tolerance),
    )
    if tolerance > 0:
        edge = float(place(tolerance))
        figure.add_vrect(x0=-edge, x1=edge, fillcolor=LIGHT["band"], line_width=0, layer="below")
    figure.add_vline(x=0, line_color=LIGHT["zero"], line_width=1.5, layer="below")
    for name, role, symbol, chosen in parts:
        if not chosen.any():
            continue
        x, y = spots[chosen], rank[chosen]
        stems = np.stack([np.zeros_like(x), x, np.full_like(x, np.nan)], 1).ravel()
        add_line(figure, stems, np.repeat(y, 3), name, role, width=2, legend=False, hover=False)
        figure.add_trace(
            graph.Scatter(
                x=x,
                y=y,
                mode="markers",
                name=name,
                marker={"color": LIGHT[role], "size": 11, "symbol": symbol},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": place(values + residuals)[chosen] - x,
                    "arrayminus": x - place(values - residuals)[chosen],
                    "color": LIGHT["ink"],
                    "thickness": 1.5,
                    "width": 5,
                },
                customdata=np.stack([values, residuals], 1)[chosen],
                hovertemplate="%{customdata[0]:.5g} ± %{customdata[1]:.1g}<extra></extra>",
            )
        )
    if not linear:
        ticks = _decades(scale, reach)
        figure.update_xaxes(
            tickvals=place(ticks), ticktext=[_power(tick) for tick in ticks], tickangle=0
        )
    figure.update_xaxes(title_text="eigenvalue", zeroline=False)
    figure.update_yaxes(
        title_text="in ascending order", showticklabels=False, showgrid=False, zeroline=False
    )
    below, above = int(np.sum(values < -tolerance)), int(np.sum(values > tolerance))
    inside = values.size - below - above
    band, where = f"the shaded band of ±{number(tolerance)} around zero", "inside"
    if tolerance <= 0:
        band, where = "zero", "at"
    words = (
        f"{values.size:,} of the Hessian's {point.size:,} eigenvalues, from {number(values[0])} "
        f"(±{number(residuals[0], 2)}) to {number(values[-1])} "
        f"(±{number(residuals[-1], 2)}), found with {point.products:,} products. "
        f"{below} {'lies' if below == 1 else 'lie'} below {band}, {inside} {where} it and {above} "
        "above. Bars are residuals; one that stays clear of it proves the sign of an eigenvalue."
    )
    words += "" if linear else " The axis is linear near zero and logarithmic farther out."
    return finish(figure, words, height=260 + 18 * min(values.size, 20))


def _power(x: float) -> str:
    """A power of ten with its sign, as Plotly's markup."""
    if x == 0:
        return "0"
    power = f"{round(math.log10(abs(x)))}".replace("-", "−")
    return f"{'−' if x < 0 else ''}10<sup>{power}</sup>"


def _smallest(values: Array, reach: float) -> float:
    """The smallest size worth telling from zero."""
    sizes = np.abs(values)
    return float(max(sizes[sizes > 0].min(initial=reach), 1e-12 * reach))


def _decades(scale: float, reach: float) -> Array:
    """Ticks at 0 and at no more than three powers of ten on either side, none crowding 0."""
    first, last = math.ceil(math.log10(3 * scale)), math.floor(math.log10(reach))
    stride = max(1, math.ceil((last - first + 1) / 3))
    powers = 10.0 ** np.arange(last, first - 1, -stride, dtype=float)[::-1]
    return np.concatenate([-powers[::-1], [0.0], powers])
