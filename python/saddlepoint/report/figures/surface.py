"""The loss over a plane, in three dimensions."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import expected
from ..theme import LIGHT, Figure, extent, finish, number, real, require

if TYPE_CHECKING:
    import numpy.typing as npt

    from ...landscape import Slice2D

    Array = npt.NDArray[Any]

__all__ = ["loss_surface"]


def loss_surface(slice2d: Slice2D) -> Figure:
    """The loss over the plane θ + αd + βe in three dimensions, the point itself in the middle.

    Colours part at the loss of that point: blue is below it, orange above. The camera looks along
    the axis that bends down, so a saddle is seen as a mountain pass.

    Raises
    ------
    ValueError
        If losses is not (a, b) for alphas (a,) and betas (b,), or path not (p, 3).

    Examples
    --------
    >>> import saddlepoint as sp
    >>> x, y = np.eye(2)
    >>> around = sp.landscape.plane(
    ...     sp.surfaces.Saddle(), np.zeros(2), y, x, points=3, labels=("down", "up"))
    >>> print(sp.report.caption(loss_surface(around)))  # 5x² − y²
    The loss over the plane through the point, the black ball at 0. Along “down” it goes to −1 \
and −1 at the two ends, along “up” to 5 and 5. Blue is below the point, orange above; the lowest \
loss shown is −1. The surface is cut off at 4; it rises to 5.
    """
    graph = require("plotly.graph_objects")
    alphas, betas, losses = map(real, (slice2d.alphas, slice2d.betas, slice2d.losses))
    if losses.shape != (alphas.size, betas.size):
        raise ValueError(expected("losses", f"shape {(alphas.size, betas.size)}", losses.shape))
    if not np.isfinite(losses).any():
        raise ValueError(expected("losses", "a finite value", "none"))
    along_alpha = np.array([np.interp(0.0, betas, row) for row in losses])
    along_beta = np.array([np.interp(0.0, alphas, column) for column in losses.T])
    here = float(np.interp(0.0, alphas, along_alpha))
    low, high = extent(losses)
    top = high
    if here - low > 1e-4 * (high - low):
        high = min(high, here + 4 * (here - low))  # or a steep wall flattens the way down
    spans = np.array([np.ptp(alphas), np.ptp(betas), high - low])
    aspect = np.array([1.0, 1.0, 0.72])
    lift = 0.012 * spans[2]  # keeps a line on the surface from sinking into it

    figure = graph.Figure()
    figure.add_trace(
        graph.Surface(
            x=alphas,
            y=betas,
            z=losses.T,
            colorscale=_parted(here, low, high),
            cmin=low,
            cmax=high,
            showscale=False,
            lighting={"ambient": 0.72, "diffuse": 0.55, "specular": 0.08, "roughness": 0.8},
            lightposition={"x": 2000, "y": -4000, "z": 8000},
            contours={
                "z": {
                    "show": True,
                    "start": low,
                    "end": high,
                    "size": (high - low) / 16,
                    "color": LIGHT["contour"],
                    "width": 1,
                },
            },
            hovertemplate="α %{x:.3g}<br>β %{y:.3g}<br>loss %{z:.4g}<extra></extra>",
        )
    )
    toward = 1.0
    path = np.empty((0, 3)) if slice2d.path is None else real(slice2d.path)
    if path.ndim != 2 or path.shape[1] != 3:
        raise ValueError(expected("path", "shape (p, 3)", path.shape))
    inside = (path[:, 0] >= alphas.min()) & (path[:, 0] <= alphas.max())
    inside &= (path[:, 1] >= betas.min()) & (path[:, 1] <= betas.max())
    if inside.any():
        a, b, z = np.where(inside[:, None], path, np.nan).T
        toward = float(path[inside][-1, 0])
        figure.add_trace(
            graph.Scatter3d(
                x=a,
                y=b,
                z=z + lift,
                mode="lines",
                name="path of training",
                line={"color": LIGHT["mark"], "width": 7},
                customdata=z,
                hovertemplate="loss %{customdata:.4g}<extra>path of training</extra>",
            )
        )
    if math.isfinite(here):
        radii = 0.028 * spans / aspect
        figure.add_trace(
            graph.Mesh3d(
                **_ball(np.array([0.0, 0.0, here + 0.6 * radii[2]]), radii),
                alphahull=0,
                color=LIGHT["mark"],
                lighting={"ambient": 1.0, "diffuse": 0.0, "specular": 0.0},
                hovertemplate=f"loss {here:.4g}<extra>the point</extra>",
            )
        )
    # short lines, or a narrow window cuts them off; a canvas, so nothing to escape
    labels = ["<br>".join(textwrap.wrap(label, 14)) for label in slice2d.labels]
    figure.update_scenes(
        xaxis={"title_text": labels[0], "range": [alphas.min(), alphas.max()]},
        yaxis={"title_text": labels[1], "range": [betas.min(), betas.max()]},
        zaxis={"title_text": "loss", "range": [low - 2 * lift, high + 6 * lift]},
        camera=_camera(along_alpha, along_beta, toward, high < top),
        aspectmode="manual",
        aspectratio=dict(zip("xyz", aspect.tolist(), strict=True)),
    )
    figure.update_layout(showlegend=False)
    words = (
        f"The loss over the plane through the point, the black ball at {number(here)}. "
        f"Along “{slice2d.labels[0]}” it goes to {number(along_alpha[0])} and "
        f"{number(along_alpha[-1])} at the two ends, along “{slice2d.labels[1]}” to "
        f"{number(along_beta[0])} and {number(along_beta[-1])}. Blue is below the point, orange "
        f"above; the lowest loss shown is {number(low)}."
    )
    if high < top:
        words += f" The surface is cut off at {number(high)}; it rises to {number(top)}."
    if inside.any():
        words += " The black line is the path of training, projected onto the plane."
    return finish(figure, words, height=560, flat=False)


def _parted(here: float, low: float, high: float) -> list[tuple[float, str]]:
    """A colour scale that is neutral at `here` and uses its full depth on either side."""
    middle = (here - low) / (high - low) if low <= here <= high else 0.0
    below = [(0.0, "low-3"), (0.4, "low-2"), (0.8, "low-1")] if middle > 0.01 else []
    above = [(0.2, "high-1"), (0.6, "high-2"), (1.0, "high-3")] if middle < 0.99 else []
    stops = [(middle * t, LIGHT[role]) for t, role in below]
    stops.append((middle if below and above else float(bool(below)), LIGHT["level"]))
    return stops + [(middle + (1 - middle) * t, LIGHT[role]) for t, role in above]


def _ball(centre: Array, radii: Array) -> dict[str, Array]:
    """Points on an ellipsoid, which the axes of the scene turn into a ball."""
    turn, tilt = np.meshgrid(np.linspace(0, 2 * np.pi, 24, False), np.linspace(0, np.pi, 13))
    unit = np.stack([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)])
    points = centre[:, None] + radii[:, None] * unit.reshape(3, -1)
    return dict(zip("xyz", points, strict=True))


def _camera(
    along_alpha: Array, along_beta: Array, toward: float, walls: bool
) -> dict[str, dict[str, float]]:
    """An eye over the low end of the axis that bends down most, a little to the side of it."""

    def bend(line: Array) -> float:
        line = line[np.isfinite(line)]
        return float(line[0] + line[-1] - 2 * line[line.size // 2]) if line.size else 0.0

    side = -1.0 if toward < 0 else 1.0
    bends = bend(along_alpha), bend(along_beta)
    ahead, aside, up = 1.45 * side, -0.95, 0.85
    if walls:
        aside, up = -0.3, 1.5  # over the wall, along the valley
    elif min(bends) > 0:
        up = 1.25  # into the bowl
    if bends[0] <= bends[1]:
        eye = {"x": ahead, "y": aside, "z": up}
    else:
        eye = {"x": aside, "y": -abs(ahead), "z": up}
    return {"eye": eye, "center": {"x": 0.0, "y": 0.0, "z": -0.14}}
