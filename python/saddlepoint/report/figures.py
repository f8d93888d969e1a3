"""Figures of the report: a result goes in, a Plotly figure that carries its own caption comes out.

Colours are roles with a light and a dark value. A figure is drawn in the light ones; the page
exchanges them, so a figure never knows which mode it is seen in.
"""

from __future__ import annotations

import html
import importlib
import math
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from ..errors import expected

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = [
    "DARK",
    "LIGHT",
    "Figure",
    "caption",
    "escape_line",
    "extreme_eigenvalues",
    "loss_comparison",
    "loss_surface",
    "training_curves",
]

# Hues after Okabe & Ito (2008): told apart under every common colour blindness. No value is used
# for two roles, because the page finds the role by the light value.
LIGHT: Final[Mapping[str, str]] = {
    "paper": "#fdfcfa",
    "ink": "#1a1d21",
    "muted": "#5c6570",
    "rule": "#e3e0da",
    "zero": "#a9adb3",
    "blue": "#1f5fa8",
    "blue-faint": "rgba(31,95,168,0.30)",
    "orange": "#bf4a12",
    "green": "#0b7a66",
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


class History(Protocol):
    """The part of a training history that is drawn; arrays (S,) per update and (E,) per epoch."""

    @property
    def step(self) -> Array: ...
    @property
    def loss(self) -> Array: ...
    @property
    def gradient_norm(self) -> Array: ...
    @property
    def epoch_step(self) -> Array: ...
    @property
    def train_loss(self) -> Array: ...
    @property
    def validation_loss(self) -> Array: ...
    @property
    def validation_accuracy(self) -> Array: ...


class CriticalPoint(Protocol):
    """The part of a classified point that is drawn; eigenvalues (m,) ascend."""

    @property
    def kind(self) -> str: ...
    @property
    def gradient_norm(self) -> float: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def size(self) -> int: ...
    @property
    def eigenvalues(self) -> Array: ...
    @property
    def residuals(self) -> Array: ...
    @property
    def products(self) -> int: ...


class Escape(Protocol):
    """The part of an escape that is drawn; steps and losses (m,) are its line search."""

    @property
    def eigenvalue(self) -> float: ...
    @property
    def residual(self) -> float: ...
    @property
    def step(self) -> float: ...
    @property
    def loss_before(self) -> float: ...
    @property
    def loss_after(self) -> float: ...
    @property
    def predicted_drop(self) -> float: ...
    @property
    def actual_drop(self) -> float: ...
    @property
    def steps(self) -> Array: ...
    @property
    def losses(self) -> Array: ...
    @property
    def gradient(self) -> float: ...


class Slice2D(Protocol):
    """The loss on a plane: losses (a, b) at θ + αd + βe; path None or (p, 3) of α, β, loss."""

    @property
    def alphas(self) -> Array: ...
    @property
    def betas(self) -> Array: ...
    @property
    def losses(self) -> Array: ...
    @property
    def labels(self) -> tuple[str, str]: ...
    @property
    def path(self) -> Array | None: ...


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


def training_curves(history: History) -> Figure:
    """Loss of every update and every epoch, gradient norm below, accuracy if it was measured.

    Raises
    ------
    ValueError
        If the history holds no update.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> figure = training_curves(SimpleNamespace(
    ...     step=np.arange(1, 5), loss=np.array([2.3, 1.1, 0.6, 0.4]),
    ...     gradient_norm=np.array([1.0, 0.7, 0.3, 0.2]), epoch_step=np.array([2, 4]),
    ...     train_loss=np.array([1.7, 0.5]), validation_loss=np.array([1.8, 0.7]),
    ...     validation_accuracy=np.array([np.nan, np.nan])))
    >>> print(caption(figure))
    Over 4 updates the training loss goes from 2.3 to 0.4. The validation loss is lowest, 0.7, \
after update 4. The gradient norm below is largest, 1, at update 1 and ends at 0.2.
    """
    step, loss, norm = map(_real, (history.step, history.loss, history.gradient_norm))
    epoch, train = _real(history.epoch_step), _real(history.train_loss)
    valid, accuracy = _real(history.validation_loss), _real(history.validation_accuracy)
    if not step.size:
        raise ValueError(expected("history", "at least one update", "none"))

    rows = 3 if np.isfinite(accuracy).any() else 2
    figure = require("plotly.subplots").make_subplots(
        rows=rows,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.07,
        row_heights=[0.5, 0.28, 0.22][:rows],
    )
    _line(figure, *_envelope(step, loss), "each update", "blue-faint", width=1.2, row=1)
    _line(figure, epoch, train, "training, per epoch", "blue", markers="circle", row=1)
    _line(figure, epoch, valid, "validation", "orange", "dash", markers="diamond", row=1)
    positive = np.where(norm > 0, norm, np.nan)
    _line(figure, *_envelope(step, positive), "gradient norm", "green", width=1.2, row=2)
    if rows == 3:
        _line(figure, epoch, accuracy, "validation accuracy", "purple", markers="circle", row=3)
        figure.update_yaxes(title_text="accuracy", tickformat=".0%", row=3, col=1)
    figure.update_yaxes(title_text="loss", type=_axis(loss, train, valid), row=1, col=1)
    figure.update_yaxes(title_text="gradient norm", type="log", row=2, col=1)
    figure.update_xaxes(exponentformat="none", separatethousands=True)
    figure.update_xaxes(title_text="update", row=rows, col=1)

    words = f"Over {step.size:,} updates the training loss goes {_ends(loss)}."
    if (broken := np.flatnonzero(~np.isfinite(loss))).size:
        words += f" The loss is not finite at update {step[broken[0]]:,.0f}."
    if np.isfinite(valid).any():
        best = int(np.nanargmin(valid))
        words += f" The validation loss is lowest, {_number(valid[best])}, "
        words += f"after update {epoch[best]:,.0f}."
    if rows == 3:
        best = int(np.nanargmax(accuracy))
        words += f" The best validation accuracy is {accuracy[best]:.1%}."
    if np.isfinite(norm).any():
        top, last = int(np.nanargmax(norm)), norm[np.isfinite(norm)][-1]
        words += f" The gradient norm below is largest, {_number(norm[top])}, at update "
        words += f"{step[top]:,.0f} and ends at {_number(last)}."
    if zeros := int(np.count_nonzero(norm == 0)):
        words += f" It is exactly zero at {zeros:,} updates, which a logarithmic axis leaves out."
    return _finish(figure, words, height=620 if rows == 3 else 520)


def extreme_eigenvalues(point: CriticalPoint) -> Figure:
    """Both ends of the Hessian's spectrum, with residuals ‖Hv − λv‖ and the tolerance around zero.

    Each residual bounds the distance from the drawn value to an eigenvalue (Parlett, *The Symmetric
    Eigenvalue Problem*, 1998, theorem 4.5.1), so an error bar clear of the band is a proof. Where a
    linear axis would hide the small ones, it is asinh(λ / tolerance): linear inside the band,
    logarithmic outside.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> figure = extreme_eigenvalues(SimpleNamespace(
    ...     kind="saddle", gradient_norm=1e-9, tolerance=1e-4, size=2, products=2,
    ...     eigenvalues=np.array([-2.0, 2.0]), residuals=np.array([1e-8, 1e-8])))
    >>> print(caption(figure))
    2 of the Hessian's 2 eigenvalues, from −2 (±1×10⁻⁸) to 2 (±1×10⁻⁸), found with 2 products. \
1 lies below the shaded band of ±0.0001 around zero, 0 inside it and 1 above. Bars are residuals; \
one that stays clear of it proves the sign of an eigenvalue. The axis is linear near zero and \
logarithmic farther out.
    """
    graph = require("plotly.graph_objects")
    figure = graph.Figure()
    values, residuals = _real(point.eigenvalues), np.abs(_real(point.residuals))
    if values.shape != residuals.shape:
        raise ValueError(expected("residuals", f"shape {values.shape}", residuals.shape))
    keep = np.isfinite(values)
    values, residuals = values[keep], residuals[keep]
    tolerance = float(point.tolerance)
    if not values.size:
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        figure.add_annotation(text="no eigenvalue was computed", showarrow=False, font_size=16)
        return _finish(
            figure,
            f"No eigenvalue was computed: the point is {point.kind}, its gradient norm is "
            f"{_number(point.gradient_norm)}.",
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
        _line(figure, stems, np.repeat(y, 3), name, role, width=2, legend=False, hover=False)
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
    band, where = f"the shaded band of ±{_number(tolerance)} around zero", "inside"
    if tolerance <= 0:
        band, where = "zero", "at"
    words = (
        f"{values.size:,} of the Hessian's {point.size:,} eigenvalues, from {_number(values[0])} "
        f"(±{_number(residuals[0], 2)}) to {_number(values[-1])} "
        f"(±{_number(residuals[-1], 2)}), found with {point.products:,} products. "
        f"{below} {'lies' if below == 1 else 'lie'} below {band}, {inside} {where} it and {above} "
        "above. Bars are residuals; one that stays clear of it proves the sign of an eigenvalue."
    )
    words += "" if linear else " The axis is linear near zero and logarithmic farther out."
    return _finish(figure, words, height=260 + 18 * min(values.size, 20))


def escape_line(escape: Escape) -> Figure:
    """The loss along the direction of negative curvature, and the parabola that predicted it.

    The parabola is L(s) = L₀ + (gᵀu) s + ½ λ s², the second-order Taylor polynomial along u.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> s = np.linspace(-1, 1, 5)
    >>> figure = escape_line(SimpleNamespace(
    ...     eigenvalue=-2.0, residual=1e-9, step=1.0, loss_before=0.0, loss_after=-1.0,
    ...     predicted_drop=1.0, actual_drop=1.0, steps=s, losses=-s**2, gradient=0.0))
    >>> print(caption(figure))
    Along a direction of curvature −2 (residual 1×10⁻⁹) the loss falls from 0 to −1 at the chosen \
step 1: a drop of 1, where the dashed parabola promises 1. The gradient along it is 0, so \
gradient descent does not see this way down.
    """
    steps, losses = _real(escape.steps), _real(escape.losses)
    if steps.ndim != 1 or steps.shape != losses.shape:
        raise ValueError(expected("losses", f"shape {steps.shape}", losses.shape))
    order = np.argsort(steps)
    steps, losses = steps[order], losses[order]
    ends = np.array([0.0, escape.step])
    before, after = float(escape.loss_before), float(escape.loss_after)
    low, high = _range(np.append(losses, [before, after]))
    if before > low:
        high = min(high, before + 2 * (before - low))  # far out the loss may explode
    left, right = _range(np.append(steps[losses <= high], ends))
    pads = 0.08 * (high - low), 0.04 * (right - left)
    s = np.linspace(left - pads[1], right + pads[1], 201)
    parabola = before + escape.gradient * s + 0.5 * escape.eigenvalue * s**2

    figure = require("plotly.graph_objects").Figure()
    _line(figure, s, parabola, "quadratic model", "muted", "dash", width=2)
    _line(figure, steps, losses, "loss", "blue", width=3)
    _point(figure, 0.0, before, "critical point", "ink", "circle")
    _point(figure, float(escape.step), after, "chosen step", "orange", "diamond")
    figure.update_yaxes(title_text="loss", range=[low - pads[0], high + pads[0]])
    figure.update_xaxes(
        title_text="signed step along the direction",
        range=[left - pads[1], right + pads[1]],
        zeroline=True,
    )

    words = (
        f"Along a direction of curvature {_number(escape.eigenvalue)} (residual "
        f"{_number(escape.residual, 2)}) the loss {'falls' if after < before else 'goes'} from "
        f"{_number(before)} to {_number(after)} at the chosen step {_number(escape.step)}: a drop "
        f"of {_number(escape.actual_drop)}, where the dashed parabola promises "
        f"{_number(escape.predicted_drop)}. The gradient along it is {_number(escape.gradient)}"
    )
    # the linear term moves the loss by less than a hundredth of what the quadratic one does
    blind = abs(escape.gradient * escape.step) <= 0.01 * abs(escape.predicted_drop)
    words += ", so gradient descent does not see this way down." if blind else "."
    return _finish(figure, words, height=440)


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
    >>> from types import SimpleNamespace
    >>> x = np.linspace(-1, 1, 21)
    >>> figure = loss_surface(SimpleNamespace(
    ...     alphas=x, betas=x, losses=x[None, :]**2 - x[:, None]**2, path=None,
    ...     labels=("down", "up")))
    >>> print(caption(figure))
    The loss over the plane through the point, the black ball at 0. Along “down” it goes to −1 \
and −1 at the two ends, along “up” to 1 and 1. Blue is below the point, orange above; the lowest \
loss shown is −1.
    """
    graph = require("plotly.graph_objects")
    alphas, betas, losses = map(_real, (slice2d.alphas, slice2d.betas, slice2d.losses))
    if losses.shape != (alphas.size, betas.size):
        raise ValueError(expected("losses", f"shape {(alphas.size, betas.size)}", losses.shape))
    if not np.isfinite(losses).any():
        raise ValueError(expected("losses", "a finite value", "none"))
    along_alpha = np.array([np.interp(0.0, betas, row) for row in losses])
    along_beta = np.array([np.interp(0.0, alphas, column) for column in losses.T])
    here = float(np.interp(0.0, alphas, along_alpha))
    low, high = _range(losses)
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
    path = np.empty((0, 3)) if slice2d.path is None else _real(slice2d.path)
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
        f"The loss over the plane through the point, the black ball at {_number(here)}. "
        f"Along “{slice2d.labels[0]}” it goes to {_number(along_alpha[0])} and "
        f"{_number(along_alpha[-1])} at the two ends, along “{slice2d.labels[1]}” to "
        f"{_number(along_beta[0])} and {_number(along_beta[-1])}. Blue is below the point, orange "
        f"above; the lowest loss shown is {_number(low)}."
    )
    if high < top:
        words += f" The surface is cut off at {_number(high)}; it rises to {_number(top)}."
    if inside.any():
        words += " The black line is the path of training, projected onto the plane."
    return _finish(figure, words, height=560, flat=False)


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
        x, y = _real(x), _real(y)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(expected(f"curves[{name!r}]", f"y of shape {x.shape}", y.shape))
        role, dash = SERIES[i % len(SERIES)], DASHES[(i + i // len(SERIES)) % len(DASHES)]
        _line(figure, *_envelope(x, y), _text(name), role, dash, width=3)
        words.append(f"“{name}” goes {_ends(y)} over {x.size:,} points.")
    scale = _axis(*(_real(y) for _, y in curves.values()))
    if log is not None:
        scale = "log" if log else "linear"
    figure.update_yaxes(title_text=_text(ylabel), type=scale)
    figure.update_xaxes(title_text=_text(xlabel), exponentformat="none", separatethousands=True)
    return _finish(figure, " ".join(words), height=440)


def _real(x: Any) -> Array:
    """A float64 copy in which every value that cannot be drawn is NaN."""
    real: Array = np.array(x, dtype=np.float64)
    real[~np.isfinite(real)] = np.nan
    return real


def _text(label: str) -> str:
    """Text as Plotly shall show it: to Plotly a label is markup."""
    return html.escape(label, quote=False)


def _number(x: float, digits: int = 4) -> str:
    """A number as one writes it on paper: −1.2×10⁻⁵."""
    if not math.isfinite(x):
        return "not finite"
    mantissa, _, exponent = f"{x + 0.0:.{digits}g}".partition("e")
    if exponent:
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        mantissa += f"×10{power}"
    return mantissa.replace("-", "−")


def _power(x: float) -> str:
    """A power of ten with its sign, as Plotly's markup."""
    if x == 0:
        return "0"
    power = f"{round(math.log10(abs(x)))}".replace("-", "−")
    return f"{'−' if x < 0 else ''}10<sup>{power}</sup>"


def _ends(y: Array) -> str:
    """Where the finite values begin and end."""
    y = y[np.isfinite(y)]
    return f"from {_number(y[0])} to {_number(y[-1])}" if y.size else "nowhere finite"


def _range(x: Array) -> tuple[float, float]:
    """The smallest and largest finite value, apart by more than nothing."""
    x = x[np.isfinite(x)]
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    size = max(abs(low), abs(high), 1e-3)
    return (low, high) if high - low > 1e-9 * size else (low - 0.05 * size, high + 0.05 * size)


def _axis(*values: Array) -> str:
    """A logarithmic axis for positive values over more than a factor of 50, else a linear one."""
    x = np.concatenate([value.ravel() for value in values])
    low, high = _range(x)
    return "log" if low > 0 and high > 50 * low else "linear"


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


def _envelope(x: Array, y: Array, most: int = 3000) -> tuple[Array, Array]:
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


def _line(
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


def _point(figure: Any, x: float, y: float, name: str, role: str, symbol: str) -> None:
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


def _finish(figure: Any, words: str, *, height: int, flat: bool = True) -> Figure:
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
