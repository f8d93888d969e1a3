"""The loss over a plane through a point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import count, expected, number
from .kinds import check_array
from .objective import Objective, check_point
from .progress import progress
from .results import COLORS, Result, panels
from .vector import ArrayLike, axpy, copy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Slice2D", "plane"]


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
    for name, axis in (("d", d), ("e", e)):
        check_array(name, axis)
        if tuple(axis.shape) != tuple(theta.shape):
            raise ValueError(expected(name, f"shape {tuple(theta.shape)}", tuple(axis.shape)))
    if count("points", points, 3) % 2 == 0:
        raise ValueError(expected("points", "an odd number", points))
    both = radius if isinstance(radius, (tuple, list, np.ndarray)) else (radius, radius)
    reach = np.array([number("radius", r) for r in both], np.float64)
    if reach.shape != (2,) or not np.isfinite(reach).all():
        raise ValueError(expected("radius", "a finite number, or two", radius))
    alphas, betas = (np.linspace(-r, r, points) for r in reach.tolist())
    losses = np.empty((points, points))
    with progress("loss surface", points * points, show_progress) as tick:
        for i, alpha in enumerate(alphas.tolist()):
            for j, beta in enumerate(betas.tolist()):
                moved: Any = copy(theta)
                axpy(alpha, d, moved)
                axpy(beta, e, moved)
                losses[i, j] = objective.loss(moved)
                tick()
    return Slice2D(alphas, betas, losses, labels, path)
