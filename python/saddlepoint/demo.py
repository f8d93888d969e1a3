"""The demonstration: a network trained and judged, a saddle point found and left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .critical import CriticalPoint, Escape, classify, escape
from .landscape import Slice2D, plane
from .nn import Linear, MeanSquaredError, Sequential
from .nn.objective import NetworkObjective
from .results import COLORS, Result, panels
from .runs import Analysis, Config, Run, analyze, train
from .vector import axpy, norm
from .vector import generator as make_generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Demo", "Stage", "demo", "factored_linear_objective"]


@dataclass(frozen=True)
class Stage(Result):
    """A place where gradient descent hung, and the way out of it."""

    updates: int
    point: CriticalPoint
    way: Escape

    def __str__(self) -> str:
        return f"After {self.updates} gradient evaluations: {self.point} {self.way}"

    def plot(self, ax: Axes | None = None) -> Figure:
        """The way out."""
        return self.way.plot(ax)


@dataclass(frozen=True)
class Demo(Result):
    """Everything the demonstration found.

    Attributes
    ----------
    run : Run
        The digits network.
    analysis : Analysis
        The verdict on the point it reached.
    stages : list of Stage
        Saddle points of the factored linear network that were left, in order.
    final : CriticalPoint
        Where the escapes ended.
    descent, escaped : (m, 2) float64
        Gradient evaluations spent (a Hessian product counts as two), and the loss: of gradient
        descent alone, and with escapes.
    lr : float
        Of gradient descent.
    surface : Slice2D
        The loss around the first saddle.
    """

    run: Run
    analysis: Analysis
    stages: list[Stage]
    final: CriticalPoint
    descent: NDArray[np.float64]
    escaped: NDArray[np.float64]
    lr: float
    surface: Slice2D

    def __str__(self) -> str:
        return "\n".join(map(str, (self.run, self.analysis, *self.stages, self.final)))

    def plot(self, ax: Axes | None = None) -> Figure:
        """The first saddle and the way out of it, the losses, and where the digits ended."""
        figure, (surface, way, losses, curvature) = panels(ax, 2, 2)
        self.surface.plot(surface)
        self.stages[0].plot(way)
        losses.plot(*self.descent.T, color=COLORS["blue"], label="gradient descent")
        losses.plot(*self.escaped.T, "--", color=COLORS["orange"], label="with escapes")
        losses.set(xlabel="gradient evaluations", ylabel="loss")
        losses.legend()
        (self.analysis.point or self.analysis.standing).plot(curvature)
        return figure


def factored_linear_objective(
    strengths: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0), columns: int = 8, rng: int = 0
) -> NetworkObjective:
    """A linear network with one hidden layer, W₂W₁x, that is to learn a matrix.

    The inputs are white and the matrix has the given singular values, so the saddle at zero and
    all others are known in closed form (Baldi & Hornik 1989; Saxe et al. 2014).
    """
    generator = make_generator(rng)
    rows = 4 * columns
    x = np.linalg.qr(generator.standard_normal((rows, columns)))[0] * np.sqrt(rows)
    left = np.linalg.qr(generator.standard_normal((columns, columns)))[0]
    right = np.linalg.qr(generator.standard_normal((columns, columns)))[0]
    k = len(strengths)
    matrix = (left[:, :k] * strengths) @ right[:, :k].T
    net = Sequential(Linear(columns, k, bias=False), Linear(k, columns, bias=False))
    return NetworkObjective(net, MeanSquaredError(), x, x @ matrix.T, dtype="float64")


def _descend(
    objective: NetworkObjective, theta: NDArray[Any], lr: float, updates: int
) -> NDArray[np.float64]:
    """Plain gradient descent, in place; the loss before each update."""
    losses = np.empty(updates)
    for i in range(updates):
        losses[i] = objective.loss(theta)
        axpy(-lr, objective.gradient(theta), theta)
    return losses


def demo(seed: int = 0, show_progress: bool | None = None) -> Demo:
    """Train the digits network and judge it; then watch gradient descent hang, and leave.

    Examples
    --------
    >>> from saddlepoint.demo import demo
    >>> found = demo()
    >>> [stage.point.kind for stage in found.stages], found.final.kind
    (['saddle', 'saddle', 'saddle', 'saddle'], 'degenerate')
    """
    run = train(Config(seed=seed), show_progress)
    analysis = analyze(run, show_progress=show_progress)

    objective = factored_linear_objective(rng=seed)
    size = objective.size
    start = 1e-7 * np.random.default_rng(seed).standard_normal(size)
    # What a gradient is like away from any critical point: the scale for calling one zero.
    away = np.random.default_rng(seed + 1).standard_normal(size) / np.sqrt(objective.net.size)
    scale = norm(objective.gradient(away))
    lr, patience = 0.05, 30

    theta = start.copy()
    spent = 0
    curve: list[tuple[float, float]] = []
    stages: list[Stage] = []
    while True:
        losses = _descend(objective, theta, lr, patience)
        curve += [(float(spent + i), float(loss)) for i, loss in enumerate(losses)]
        spent += patience
        if norm(objective.gradient(theta)) > 1e-3 * scale:
            continue
        point = classify(objective, theta, gradient_tolerance=1e-3 * scale, exact=False)
        spent += 2 * point.products
        if point.kind != "saddle":
            break
        way = escape(objective, theta, point.direction)
        spent += way.evaluations
        theta = way.theta
        curve += [(float(spent), way.loss_before), (float(spent), way.loss_after)]
        stages.append(Stage(spent, point, way))
    curve.append((float(spent), objective.loss(theta)))

    alone = start.copy()
    plain = _descend(objective, alone, lr, spent)
    first = stages[0]
    reach = 1.4 * abs(first.way.step)
    surface = plane(
        objective,
        start,
        first.point.direction,
        first.point.direction_max,
        reach,
        labels=("most negative curvature", "most positive curvature"),
        show_progress=show_progress,
    )
    return Demo(
        run=run,
        analysis=analysis,
        stages=stages,
        final=point,
        descent=np.stack([np.arange(float(spent)), plain], axis=1),
        escaped=np.array(curve),
        lr=lr,
        surface=surface,
    )
