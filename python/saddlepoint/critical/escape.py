"""The way out of a saddle: along the most negative curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..curvature import eigsh
from ..errors import brief, count, expected
from ..kinds import refuse_mask
from ..objective import Objective
from ..results import COLORS, Result, panels
from ..vector import ArrayLike, axpy, copy, dot, gather, norm, owned, scale
from .classify import finite_hessian

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Escape", "escape"]

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class Escape(Result):
    """A step along negative curvature, and what it brought.

    Attributes
    ----------
    theta : (n,) array
        Where it led: θ + step·direction, of the kind of θ.
    direction : (n,) array
        Unit eigenvector u of the most negative eigenvalue, on the host.
    eigenvalue, residual : float
        λ = uᵀHu, and ‖Hu − λu‖.
    gradient : float
        gᵀu, the slope at the start.
    step : float
        Signed length s; 0 where no step was found to lower the loss.
    loss_before, loss_after, actual_drop : float
    predicted_drop : float
        ½|λ|s² − s gᵀu, of the quadratic model.
    steps, losses : (m,) float64
        The line search, sorted: signed lengths and the loss there.
    evaluations : int
        Losses that the search computed.
    products : int
        Hessian products, for the eigenvector.
    """

    theta: ArrayLike
    direction: NDArray[Any]
    eigenvalue: float
    residual: float
    gradient: float
    step: float
    loss_before: float
    loss_after: float
    actual_drop: float
    predicted_drop: float
    steps: NDArray[np.float64]
    losses: NDArray[np.float64]
    evaluations: int
    products: int

    _large = frozenset({"theta", "direction"})

    def model(self, s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The quadratic model of the loss at θ + su: L₀ + s gᵀu + ½ λ s²."""
        return self.loss_before + s * self.gradient + 0.5 * self.eigenvalue * s**2

    def plot(self, ax: Axes | None = None) -> Figure:
        """The loss along the direction, the quadratic model, and the step that was chosen."""
        figure, (panel,) = panels(ax, 1, 1)
        fall = max(self.loss_before - self.loss_after, 1e-12 + 1e-3 * abs(self.loss_before))
        near = self.losses <= self.loss_before + 2.0 * fall  # far out the loss may explode
        s = np.linspace(self.steps[near].min(), self.steps[near].max(), 101)
        panel.plot(self.steps[near], self.losses[near], color=COLORS["blue"], label="loss")
        panel.plot(s, self.model(s), "--", color=COLORS["muted"], label="quadratic model")
        panel.plot(self.step, self.loss_after, "D", color=COLORS["orange"], label="chosen step")
        panel.set(xlabel="step along the direction", ylabel="loss")
        panel.legend()
        return figure

    def gradient_steps(self, lr: float) -> float:
        """Steps that gradient descent would take to go as far along u, in the quadratic model.

        ln(1 + s|λ|/|uᵀg|) / ln(1 + η|λ|), infinite where the gradient has no part along u, or the
        rate is 0.
        """
        curvature = abs(self.eigenvalue)
        if self.gradient == 0.0 or lr == 0.0:
            return math.inf
        far = math.log1p(abs(self.step) * curvature / abs(self.gradient))
        return far / math.log1p(lr * curvature)

    def __str__(self) -> str:
        if self.step == 0.0:
            return (
                f"No step along λ = {self.eigenvalue:.3g} ± {self.residual:.1g} was found to lower "
                f"the loss from {self.loss_before:.6g}."
            )
        return (
            f"Escaped along λ = {self.eigenvalue:.3g} ± {self.residual:.1g}: a step of "
            f"{self.step:.3g} took the loss from {self.loss_before:.6g} to {self.loss_after:.6g} "
            f"(drop {self.actual_drop:.3g}, predicted {self.predicted_drop:.3g})."
        )


def escape(
    objective: Objective,
    theta: ArrayLike,
    direction: NDArray[Any] | None = None,
    points: int = 41,
    max_products: int | None = None,
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> Escape:
    """Leave θ along ± the most negative eigenvector, by a line search on the true loss.

    Parameters
    ----------
    objective : Objective
    theta : (n,) array
    direction : (n,) array, optional
        Take this instead of computing the eigenvector: `CriticalPoint.direction`, say.
    points : int
        Losses evaluated besides, for a picture of the line, from 0; they are not counted.
    max_products : int, optional
        Budget for the eigenvector.

    Returns
    -------
    Escape

    Raises
    ------
    ValueError
        If there is no certified negative curvature: λ + residual is not below zero.

    Notes
    -----
    From the shortest step that shows above rounding, the step grows fourfold while the loss falls,
    in the direction in which it falls more; then golden section finds the minimum in between. To
    second order the loss drops by ½|λ|s².

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> way = sp.escape(sp.surfaces.FactoredLinear(), np.zeros(2))  # (1 − w₁w₂)²
    >>> round(abs(way.step), 3), round(way.loss_after, 6)
    (1.414, 0.0)
    """
    count("points", points, 0)
    if max_products is not None:
        count("max_products", max_products, 2)
    H, _ = finite_hessian(objective, theta)
    if direction is None:
        pairs = eigsh(H, 1, "SA", max_products=max_products, rng=rng, show_progress=show_progress)
        u = pairs.vectors[0]
    else:
        refuse_mask("direction", direction)
        try:
            u = H._like_theta(direction)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(expected("direction", "an array", brief(direction))) from None
        if tuple(u.shape) != (H.shape[0],):
            raise ValueError(expected("direction", f"shape ({H.shape[0]},)", tuple(u.shape)))
    length = norm(u)
    if not 0.0 < length < math.inf:
        raise ValueError(expected("direction", "a finite direction, not zero", f"norm {length}"))
    u = copy(u)
    scale(1.0 / length, u)
    hu = H @ u
    eigenvalue = dot(u, hu)
    axpy(-eigenvalue, u, hu)
    residual = norm(hu)
    if not eigenvalue + residual < 0.0:
        raise ValueError(
            expected("theta", "negative curvature", f"λ_min = {eigenvalue:.3g} ± {residual:.1g}")
        )

    loss = _Line(objective, theta, u, H.loss)
    # The shortest step that shows: above the rounding of the loss, and of θ.
    eps = float(np.finfo(H.dtype).eps)
    shows = math.sqrt(200.0 * eps * abs(H.loss) / abs(eigenvalue))
    step = _line_search(loss, max(shows, math.sqrt(eps) * max(1.0, norm(theta))))
    evaluations = len(loss.seen) - 1
    for s in np.linspace(-1.5 * abs(step), 1.5 * abs(step), points):
        loss(float(s))
    slope = dot(H.gradient, u)
    steps = np.array(sorted(loss.seen))
    return Escape(
        theta=loss.point(step),
        direction=gather(u),
        eigenvalue=eigenvalue,
        residual=residual,
        gradient=slope,
        step=step,
        loss_before=H.loss,
        loss_after=loss(step),
        actual_drop=H.loss - loss(step),
        predicted_drop=0.5 * abs(eigenvalue) * step**2 - slope * step,
        steps=steps,
        losses=np.array([loss(s) for s in steps.tolist()]),
        evaluations=evaluations,
        products=H.products,
    )


def gradient_step(objective: Objective, theta: ArrayLike) -> tuple[float, float]:
    """How far the loss falls along −g, by a line search on the true loss, and in what step."""
    here = float(objective.loss(theta))
    u = owned(objective.gradient(theta), theta, "gradient", (objective.size,))
    slope = norm(u)
    if slope == 0.0:
        return 0.0, 0.0
    scale(-1.0 / slope, u)
    loss = _Line(objective, theta, u, here)
    eps = float(np.finfo(objective.dtype).eps)
    step = _line_search(loss, max(200.0 * eps * abs(here) / slope, eps * max(1.0, norm(theta))))
    return max(0.0, here - loss(step)), abs(step)


class _Line:
    """The loss at θ + su, each value computed once; infinite where it is not finite."""

    def __init__(self, objective: Objective, theta: ArrayLike, u: ArrayLike, here: float) -> None:
        self._objective, self._theta, self._u = objective, theta, u
        self.seen = {0.0: here}

    def point(self, s: float) -> ArrayLike:
        moved = copy(self._theta)
        axpy(s, self._u, moved)
        return moved

    def __call__(self, s: float) -> float:
        if s not in self.seen:
            value = float(self._objective.loss(self.point(s)))
            self.seen[s] = value if math.isfinite(value) else math.inf
        return self.seen[s]


def _line_search(loss: Callable[[float], float], first: float) -> float:
    """The signed step at which the loss is least, in the direction in which it falls more.

    0 where none that was tried has a lower loss: the loss around is not finite, say.
    """
    sign = 1.0 if loss(first) <= loss(-first) else -1.0
    far = first
    while loss(sign * 4.0 * far) < loss(sign * far) and far < 1e12:
        far *= 4.0
    low, high = 0.0, 4.0 * far
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    while high - low > 1e-6 * high:
        if loss(sign * a) < loss(sign * b):
            high, b = b, a
            a = high - _GOLDEN * (high - low)
        else:
            low, a = a, b
            b = low + _GOLDEN * (high - low)
    return min((sign * 0.5 * (low + high), sign * far, 0.0), key=loss)
