"""The loss along a line, and over a plane, through a point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import count, expected, number
from .kinds import check_array
from .objective import Objective, check_point
from .progress import progress
from .results import COLORS, Result, panels
from .vector import ArrayLike, axpy, copy, dot, norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Slice1D", "Slice2D", "line", "plane"]


@dataclass(frozen=True)
class Slice2D(Result):
    """Losses L(θ + αd + βe) on a grid.

    Attributes
    ----------
    alphas : (a,) float64
    betas : (b,) float64
    losses : (a, b) float64
    labels : (str, str)
        What d and e are.
    path : (p, 3) float64, optional
        A trajectory: α, β and the loss.
    """

    alphas: NDArray[np.float64]
    betas: NDArray[np.float64]
    losses: NDArray[np.float64]
    labels: tuple[str, str]
    path: NDArray[np.float64] | None = None

    def __str__(self) -> str:
        low, high = np.nanmin(self.losses), np.nanmax(self.losses)
        here = self.losses[len(self.alphas) // 2, len(self.betas) // 2]
        return (
            f"The loss along {self.labels[0]} and {self.labels[1]}: {here:.4g} at the point, from "
            f"{low:.4g} to {high:.4g} on a grid of {len(self.alphas)} × {len(self.betas)}."
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """Levels of the loss, the point in the middle, and the path where there is one."""
        figure, (panel,) = panels(ax, 1, 1)
        losses = np.ma.masked_invalid(self.losses.T)
        panel.contourf(self.alphas, self.betas, losses, levels=24, cmap="Blues_r")
        panel.contour(self.alphas, self.betas, losses, levels=24, colors="white", linewidths=0.4)
        panel.plot(0.0, 0.0, "o", color=COLORS["orange"])
        if self.path is not None:
            panel.plot(self.path[:, 0], self.path[:, 1], color=COLORS["orange"])
        panel.set(xlabel=self.labels[0], ylabel=self.labels[1])
        return figure


@dataclass(frozen=True)
class Slice1D(Result):
    """Losses L(θ + sd) along a line, and the parabola that gradient and Hessian predict.

    Attributes
    ----------
    steps, losses : (m,) float64
        s, and the loss there; the middle one is θ.
    slope, curvature : float
        gᵀd and dᵀHd at θ, with the exact Hessian.
    label : str
        What d is.
    """

    steps: NDArray[np.float64]
    losses: NDArray[np.float64]
    slope: float
    curvature: float
    label: str

    @property
    def loss(self) -> float:
        """L(θ)."""
        return float(self.losses[len(self.losses) // 2])

    def model(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The parabola L + s gᵀd + ½ s² dᵀHd."""
        return self.loss + s * self.slope + 0.5 * s**2 * self.curvature

    def __str__(self) -> str:
        low = int(np.nanargmin(self.losses))
        return (
            f"Along {self.label}: loss {self.loss:.4g}, slope {self.slope:.3g}, curvature "
            f"{self.curvature:.3g}; lowest {self.losses[low]:.4g} at {self.steps[low]:.3g}."
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """The losses and the parabola."""
        figure, (panel,) = panels(ax, 1, 1)
        panel.plot(self.steps, self.losses, color=COLORS["blue"], label="loss")
        model = self.model(self.steps)
        panel.plot(self.steps, model, "--", color=COLORS["muted"], label="quadratic model")
        panel.plot(0.0, self.loss, "o", color=COLORS["orange"])
        panel.set(xlabel=self.label, ylabel="loss")
        panel.legend()
        return figure


def line(
    objective: Objective,
    theta: ArrayLike,
    direction: ArrayLike,
    radius: float | None = None,
    points: int = 61,
    label: str = "d",
    show_progress: bool | None = None,
) -> Slice1D:
    """Evaluate the loss along a line through θ, and what second order predicts there.

    Parameters
    ----------
    objective : Objective
    theta, direction : (n,) arrays of one kind
    radius : float, optional
        s goes from −radius to radius; by default √(2|L / dᵀHd|), where the curvature moves the
        parabola by as much as the loss is, but no farther than max(1, ‖θ‖) / ‖d‖.
    points : int
        An odd number of points, so that θ itself is the middle one.
    label : str
        What the direction is.

    Returns
    -------
    Slice1D

    Raises
    ------
    TypeError, ValueError
        For what is no objective, a direction of another shape or of length 0, a number of points
        that is even or below 3, a radius that is not finite and above 0, or a loss that is not
        finite at θ.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> found = sp.landscape.line(sp.surfaces.Saddle(), np.zeros(2), np.eye(2)[1], 1.0, points=3)
    >>> found.losses, found.curvature  # −y²
    (array([-1.,  0., -1.]), -2.0)
    """
    check_point(objective, theta)
    _check_direction("direction", direction, theta)
    _check_points(points)
    length = norm(direction)
    if not 0.0 < length < math.inf:
        raise ValueError(expected("direction", "a finite length above 0", length))
    here = objective.linearize(theta)
    if not math.isfinite(here.loss):
        raise ValueError(expected("theta", "a finite loss", here.loss))
    curvature = dot(direction, here.hvp(direction))
    if radius is None:
        far = max(1.0, norm(theta)) / length
        bent = math.sqrt(2.0 * abs(here.loss / curvature)) if curvature else 0.0
        radius = min(bent, far) if bent > 0.0 else far
    elif not 0.0 < (radius := number("radius", radius)) < math.inf:
        raise ValueError(expected("radius", "a finite number above 0", radius))
    steps = np.linspace(-radius, radius, points)
    losses = np.empty(points)
    with progress("loss along a line", points, show_progress) as tick:
        for i, s in enumerate(steps.tolist()):
            moved = copy(theta)
            axpy(s, direction, moved)
            losses[i] = objective.loss(moved)
            tick()
    return Slice1D(steps, losses, dot(here.gradient, direction), curvature, label)


def _check_direction(name: str, direction: Any, theta: Any) -> None:
    check_array(name, direction)
    wanted, got = tuple(theta.shape), tuple(direction.shape)
    if wanted != got:
        raise ValueError(expected(name, f"shape {wanted}", got))


def _check_points(points: Any) -> None:
    if count("points", points, 3) % 2 == 0:
        raise ValueError(expected("points", "an odd number", points))


def plane(
    objective: Objective,
    theta: ArrayLike,
    d: ArrayLike,
    e: ArrayLike,
    radius: float | tuple[float, float] = 1.0,
    points: int = 31,
    labels: tuple[str, str] = ("d", "e"),
    path: NDArray[np.float64] | None = None,
    show_progress: bool | None = None,
) -> Slice2D:
    """Evaluate the loss on a grid in the plane through θ that d and e span.

    Parameters
    ----------
    objective : Objective
    theta, d, e : (n,) arrays of one kind
    radius : float or (float, float)
        α and β go from −radius to radius.
    points : int
        An odd number of points in each direction, so that θ itself is the middle one.

    Returns
    -------
    Slice2D

    Raises
    ------
    TypeError, ValueError
        For what is no objective, a number of points that is even or below 3, or a radius that is
        not finite.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> from saddlepoint.landscape import plane
    >>> x, y = np.eye(2)
    >>> plane(sp.surfaces.Saddle(), np.zeros(2), x, y, points=3).losses[:, 1]  # 5x² − y²
    array([5., 0., 5.])
    """
    check_point(objective, theta)
    _check_direction("d", d, theta)
    _check_direction("e", e, theta)
    _check_points(points)
    both = radius if isinstance(radius, (tuple, list, np.ndarray)) else (radius, radius)
    reach = np.array([number("radius", r) for r in both], np.float64)
    if reach.shape != (2,) or not np.isfinite(reach).all():
        raise ValueError(expected("radius", "a finite number, or two", radius))
    alphas, betas = (np.linspace(-r, r, points) for r in reach.tolist())
    losses = np.empty((points, points))
    with progress("loss surface", points * points, show_progress) as tick:
        for i, alpha in enumerate(alphas.tolist()):
            for j, beta in enumerate(betas.tolist()):
                moved = copy(theta)
                axpy(alpha, d, moved)
                axpy(beta, e, moved)
                losses[i, j] = objective.loss(moved)
                tick()
    return Slice2D(alphas, betas, losses, labels, path)
