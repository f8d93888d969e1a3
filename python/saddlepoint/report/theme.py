"""How the report's figures look: colours with a light and a dark value, numbers, lines.

A figure is drawn in the light ones; the page exchanges them, so a figure never knows which mode it
is seen in.
"""

from __future__ import annotations

import html
import importlib
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from ..results import COLORS

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = [
    "DARK",
    "DASHES",
    "FONT",
    "LIGHT",
    "SERIES",
    "Figure",
    "add_line",
    "add_point",
    "axis_type",
    "caption",
    "ends",
    "envelope",
    "extent",
    "finish",
    "number",
    "real",
    "require",
    "text",
]

# No value is used for two roles, because the page finds the role by the light value.
LIGHT: Final[Mapping[str, str]] = {
    "paper": "#fdfcfa",
    "ink": "#1a1d21",
    "muted": COLORS["muted"],
    "rule": "#e3e0da",
    "zero": "#a9adb3",
    "blue": COLORS["blue"],
    "blue-faint": "rgba(31,95,168,0.30)",
    "orange": COLORS["orange"],
    "green": COLORS["green"],
    "purple": "#7c4d9e",
    "gold": "#8f6a00",
    "band": "rgba(92,101,112,0.13)",
    "low-3": "#123f73",
    "low-2": "#3f7dbf",
    "low-1": "#a9cbe8",
    "level": "#f4efe4",
    "high-1": "#f3c79b",
    "high-2": "#d97b3c",
    "high-3": "#97390c",
    "contour": "#ffffff",
    "mark": "#16181c",
}
DARK: Final[Mapping[str, str]] = {
    "paper": "#121417",
    "ink": "#eceae5",
    "muted": "#a2abb5",
    "rule": "#2b3037",
    "zero": "#636b75",
    "blue": "#78b0f2",
    "blue-faint": "rgba(120,176,242,0.34)",
    "orange": "#ff9660",
    "green": "#4fc9b0",
    "purple": "#c7a2ea",
    "gold": "#e2b84d",
    "band": "rgba(162,171,181,0.17)",
    "low-3": "#1b5fae",
    "low-2": "#4a92dd",
    "low-1": "#9cc6ee",
    "level": "#e9e4d8",
    "high-1": "#f0bd8c",
    "high-2": "#e2843f",
    "high-3": "#b34a14",
    "contour": "#f6f3ec",
    "mark": "#0b0c0e",
}
SERIES: Final = ("blue", "orange", "green", "purple", "gold")
DASHES: Final = ("solid", "dash", "dashdot", "dot", "longdash")
FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Figure(Protocol):
    """What the page needs of a :class:`plotly.graph_objects.Figure`."""

    layout: Any

    def to_json(self) -> str:
        """The figure as Plotly's JSON."""


def require(module: str) -> Any:
    """Import what only the report needs, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the report needs {module.partition('.')[0]}: pip install 'saddlepoint[report]'"
        ) from error


def caption(figure: Figure) -> str:
    """What a figure of this module shows, in words and numbers; empty for any other figure."""
    meta = figure.layout.meta
    return str(meta.get("caption", "")) if isinstance(meta, Mapping) else ""


def real(x: Any) -> Array:
    """A float64 copy in which every value that cannot be drawn is NaN."""
    copied: Array = np.array(x, dtype=np.float64)
    copied[~np.isfinite(copied)] = np.nan
    return copied


def text(label: str) -> str:
    """Text as Plotly shall show it: to Plotly a label is markup."""
    return html.escape(label, quote=False)


def number(x: float, digits: int = 4) -> str:
    """A number as one writes it on paper: −1.2×10⁻⁵."""
    if not math.isfinite(x):
        return "not finite"
    mantissa, _, exponent = f"{x + 0.0:.{digits}g}".partition("e")
    if exponent:
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        mantissa += f"×10{power}"
    return mantissa.replace("-", "−")


def ends(y: Array) -> str:
    """Where the finite values begin and end."""
    y = y[np.isfinite(y)]
    return f"from {number(y[0])} to {number(y[-1])}" if y.size else "nowhere finite"


def extent(x: Array) -> tuple[float, float]:
    """The smallest and largest finite value, apart by more than nothing."""
    x = x[np.isfinite(x)]
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    size = max(abs(low), abs(high), 1e-3)
    return (low, high) if high - low > 1e-9 * size else (low - 0.05 * size, high + 0.05 * size)


def axis_type(*values: Array) -> str:
    """A logarithmic axis for positive values over more than a factor of 50, else a linear one."""
    x = np.concatenate([value.ravel() for value in values])
    low, high = extent(x)
    return "log" if low > 0 and high > 50 * low else "linear"


def envelope(x: Array, y: Array, most: int = 3000) -> tuple[Array, Array]:
    """At most so many points that draw the same line: the lowest and highest of each stretch."""
    if x.size <= most:
        return x, y
    edges = np.linspace(0, x.size, most // 2 + 1).astype(int)
    keep = []
    for start, stop in pairwise(edges):
        part = y[start:stop]
        if np.isfinite(part).any():
            keep += sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))})
        else:
            keep.append(int(start))
    return x[keep], y[keep]


def add_line(
    figure: Any,
    x: Array,
    y: Array,
    name: str,
    role: str,
    dash: str = "solid",
    *,
    width: float = 2.5,
    markers: str | None = None,
    legend: bool = True,
    hover: bool = True,
    row: int | None = None,
) -> None:
    """Add a line in the colour of a role, unless there is nothing to draw."""
    if not np.isfinite(y).any():
        return
    figure.add_trace(
        require("plotly.graph_objects").Scatter(
            x=x,
            y=y,
            name=name,
            mode="lines+markers" if markers else "lines",
            line={"color": LIGHT[role], "dash": dash, "width": width},
            marker={"symbol": markers, "size": 6},
            showlegend=legend,
            hoverinfo=None if hover else "skip",
            hovertemplate=f"{name} %{{y:.4g}}<extra></extra>" if hover else None,
        ),
        row=row,
        col=row and 1,
    )


def add_point(figure: Any, x: float, y: float, name: str, role: str, symbol: str) -> None:
    """Add one marked point."""
    marker = {
        "color": LIGHT[role],
        "size": 13,
        "symbol": symbol,
        "line": {"color": LIGHT["paper"], "width": 2},
    }
    figure.add_trace(
        require("plotly.graph_objects").Scatter(
            x=[x],
            y=[y],
            name=name,
            mode="markers",
            marker=marker,
            hovertemplate=f"{name}<br>step %{{x:.4g}}<br>loss %{{y:.6g}}<extra></extra>",
        )
    )


def finish(figure: Any, words: str, *, height: int, flat: bool = True) -> Figure:
    """Give a figure the look they share, its height in pixels and its caption."""
    axis = {
        "gridcolor": LIGHT["rule"],
        "zerolinecolor": LIGHT["zero"],
        "zerolinewidth": 1,
        "linecolor": LIGHT["zero"],
        "tickfont": {"size": 12},
    }
    flat_axis = axis | {
        "automargin": True,
        "exponentformat": "power",
        "title_standoff": 10,
        "ticks": "",
        "zeroline": False,
    }
    solid_axis = axis | {"showbackground": False, "showspikes": False, "nticks": 5}
    solid_axis |= {"title_font": {"size": 12}}
    figure.update_layout(
        template={
            "layout": {
                "font": {"family": FONT, "size": 13, "color": LIGHT["muted"]},
                "paper_bgcolor": LIGHT["paper"],
                "plot_bgcolor": LIGHT["paper"],
                "xaxis": flat_axis,
                "yaxis": flat_axis,
                "scene": {"xaxis": solid_axis, "yaxis": solid_axis, "zaxis": solid_axis},
                "hoverlabel": {
                    "bgcolor": LIGHT["paper"],
                    "bordercolor": LIGHT["zero"],
                    "font": {"family": FONT, "color": LIGHT["ink"]},
                },
                "legend": {
                    "orientation": "h",
                    "x": 0,
                    "xanchor": "left",
                    "y": 1.02,
                    "yanchor": "bottom",
                    "font": {"color": LIGHT["ink"]},
                },
            }
        },
        meta={"caption": words},
        height=height,
        margin={"l": 8, "r": 12, "t": 12, "b": 8} if flat else {"l": 0, "r": 0, "t": 0, "b": 0},
        # a drag shall scroll a phone's page; only the three-dimensional scene turns
        dragmode=False if flat else "orbit",
        hovermode="closest",
    )
    finished: Figure = figure
    return finished
