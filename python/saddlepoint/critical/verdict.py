"""What training is doing where it stands: whether it is stuck, on what, and what would help."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import instance
from ..objective import Objective, check_point
from ..results import COLORS, Result, panels
from ..vector import ArrayLike, norm
from .classify import CriticalPoint
from .escape import Escape, escape, gradient_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["VERDICTS", "Standing", "Training", "judge"]


#: What `judge` may say of a training; `classify` tells the kind of a point.
VERDICTS = (
    "diverged", "saddle", "descending", "standing still", "minimum", "degenerate", "undecided",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """What a judgement needs to know of a training besides where it led.

    Attributes
    ----------
    updates : int
    fall : float
        Share of the loss that the last tenth of the updates took away; NaN where nobody can tell.
    rate : float
        The last learning rate; of SGD with momentum, divided by 1 − β: infinite for β from 1 on.
    plain : bool
        Whether an update is −rate times the gradient.
    rate_is_step : bool
        Whether an update, where not ``plain``, moves a parameter by about the rate: of Adam it
        does; of Rprop, whose rate is the first step alone, and of Adadelta it does not.
    whole_batches : bool
        Whether each update saw all rows: no noise of mini-batches then.
    highest_rate : float
        Of all updates, as ``rate``; 0 where nobody can tell. Below a hundredth of it, a schedule
        had come to its end.
    initial_loss, initial_gradient_norm : float
        On the data of the objective, where training began; the norm of a usual start, where it
        began at a critical point.
    highest_loss : float
        Of all updates.
    diverged : bool
        Whether it stopped for a number that is not finite.
    """

    updates: int
    fall: float
    rate: float
    plain: bool
    initial_loss: float
    initial_gradient_norm: float
    highest_loss: float = 0.0
    diverged: bool = False
    rate_is_step: bool = True
    whole_batches: bool = False
    highest_rate: float = 0.0


@dataclass(frozen=True)
class Standing(Result):
    """A judgement with the numbers it rests on.

    Attributes
    ----------
    verdict : str
        One of `VERDICTS`.
    reason, cure : str
        A sentence each.
    gradient_drop : float
        What a line search along −g takes off the loss.
    escape : Escape or None
        The step along the most negative curvature, where there certainly is one.
    edge : float
        ηλ_max: beyond 2, gradient descent cannot settle.
    """

    verdict: str
    reason: str
    cure: str
    gradient_drop: float = math.nan
    escape: Escape | None = None
    edge: float = math.nan

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason} {self.cure}"

    def plot(self, ax: Axes | None = None) -> Figure:
        """What a step along −g, and one along the most negative curvature, take off the loss."""
        figure, (panel,) = panels(ax, 1, 1)
        drops = {"along −g": self.gradient_drop, "along λ_min": math.nan}
        if self.escape is not None:
            drops["along λ_min"] = self.escape.actual_drop
        known = [drop if math.isfinite(drop) else 0.0 for drop in drops.values()]
        bars = panel.barh((0, 1), known, color=(COLORS["green"], COLORS["orange"]))
        told = [f"{d:.3g}" if math.isfinite(d) else "none measured" for d in drops.values()]
        panel.bar_label(bars, told, padding=3)
        panel.set_yticks((0, 1), [*drops])
        panel.margins(x=0.3)
        panel.set(xlabel="drop of the loss", title=self.verdict)
        return figure


def last_tenth(updates: NDArray[np.float64], epochs: NDArray[np.float64]) -> float:
    """Share of the loss that a tenth of the training took away, at its end.

    From the mean losses of epochs, which see the same rows, where there are two; the updates' own
    tell from 10 on. NaN otherwise. Of 10 epochs and more, the second half has to fall by more than
    its own scatter, or what the end took away counts as none.
    """
    losses = epochs if len(epochs) >= 2 else updates
    if len(losses) < (2 if losses is epochs else 10):
        return math.nan
    width = max(1, len(losses) // 10) if losses is epochs else len(losses) // 2
    last, before = losses[-width:].mean(), losses[-2 * width : -width].mean()
    if not before > 0.0:
        return 0.0
    if last < before and len(epochs) >= 10 and not _falls(epochs[len(epochs) // 2 :]):
        return 0.0
    return float((1.0 - last / before) * 0.1 * len(losses) / width)


def _falls(losses: NDArray[np.float64]) -> bool:
    """Whether a line through the logarithms falls by twice the standard error of its slope.

    The error is from second differences: they see no line, and six times the variance.
    """
    if not (losses > 0.0).all():
        return True
    logs, time = np.log(losses), np.arange(len(losses)) - (len(losses) - 1) / 2.0
    spread = float(time @ time)
    error = np.sqrt(np.mean(np.diff(logs, 2) ** 2) / 6.0 / spread)
    return bool(time @ logs / spread < -2.0 * error)


def diverged(training: Training, loss: float, gradient_norm: float) -> Standing | None:
    """The judgement on a training that blew up, or None."""
    start, slope = training.initial_loss, training.initial_gradient_norm
    if training.diverged or not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        what = "Training met numbers that are not finite"
    elif loss > 10.0 * start:
        what = f"The loss went from {start:.3g} up to {loss:.3g}"
    elif training.highest_loss > 10.0 * start and loss > 0.9 * start:
        what = (
            f"The loss went from {start:.3g} up to {training.highest_loss:.3g}, and is {loss:.3g}"
        )
    elif gradient_norm > 1e3 * slope > 0.0:
        what = f"The gradient norm went from {slope:.3g} up to {gradient_norm:.3g}"
    else:
        return None
    cure = (
        f"Start again with a smaller rate than {training.rate:.3g} (a tenth, say), or with the "
        "gradient clipped."
    )
    return Standing(
        "diverged",
        f"{what}: training blew up, and the slope here says nothing about the way on.",
        cure if math.isfinite(training.rate) else f"{_UNDAMPED} {_DAMP}",
    )


def judge(
    objective: Objective, theta: ArrayLike, point: CriticalPoint, training: Training
) -> Standing:
    """Say what a training is doing at θ, by what is to be gained there and by which way.

    A drop of the loss matters where it is at least 1 % of the loss and 1e-3 of the initial one.
    Steps left are taken to be as many as were made.

    - *diverged*: numbers that are not finite; a loss above 10 times the initial one, or that was
      there and has not come back; a gradient norm above 1000 times the initial one.
    - *saddle*: the loss stands still (the last tenth took less than 1 % of it away, or no more than
      noise does); the gradient
      norm is below a tenth of the initial one; negative curvature is certain and a step s along it
      brings a drop that matters, for which curvature and not the slope is to thank
      (‖g‖ s < ½|λ|s²); and the gradient does not get it in the steps left: they bring less by its
      own line search, or by η‖g‖² each, and, for gradient descent, the
      k = ln(1 + s|λ|/|uᵀg|) / ln(1 + η|λ|) that it takes are more than are left.
    - *standing still*: the loss stands still although a line search along −g brings a drop that
      matters.
    - *minimum*, *degenerate*, *undecided*: as `classify` says, or because neither gradient nor
      curvature has anything to offer that matters.
    - *descending*: otherwise.

    Parameters
    ----------
    objective : Objective
    theta : (n,) array
    point : CriticalPoint
        What `classify` found there.
    training : Training

    Returns
    -------
    Standing
    """
    check_point(objective, theta)
    instance("point", point, CriticalPoint, "what classify found")
    instance("training", training, Training, "a Training")
    blown = diverged(training, point.loss, point.gradient_norm)
    if blown is not None:
        return blown
    loss, rate, updates = point.loss, training.rate, training.updates
    slope, low, high = point.gradient_norm, point.lambda_min, point.lambda_max
    ends = f"λ_min = {low:.3g} ± {point.residual_min:.1g}, λ_max = {high:.3g}, ‖g‖ = {slope:.3g}"

    def matters(drop: float) -> bool:
        return drop >= 0.01 * loss and drop >= 1e-3 * training.initial_loss and drop > 0.0

    stalled = training.fall < 0.01
    along_gradient, length = gradient_step(objective, theta)
    way = None
    if low < -max(point.tolerance, point.residual_min):
        way = escape(objective, theta, point.direction, points=0)
    edge = rate * high if math.isfinite(rate) else math.nan
    plain = training.plain and math.isfinite(rate)  # no model has updates that never fade
    shares = f"a step along −g takes {_percent(along_gradient, loss)} of it away"
    if way is not None:
        shares += f", one along λ_min {_percent(way.actual_drop, loss)}"

    def standing(verdict: str, reason: str, cure: str) -> Standing:
        return Standing(verdict, reason, cure, along_gradient, way, edge)

    near = slope < 0.1 * training.initial_gradient_norm or training.initial_gradient_norm == 0.0
    if stalled and near and way is not None and matters(way.actual_drop):
        s = abs(way.step)
        most = updates * rate * slope**2 if plain else math.inf
        needed = way.gradient_steps(rate) if plain else math.inf
        if slope * s < 0.5 * abs(low) * s**2 and way.actual_drop > min(along_gradient, most):
            step = (
                f"The loss stands still at {loss:.4g}, and a step of {s:.3g} along the most "
                f"negative curvature takes it to {way.loss_after:.4g}"
            )
            leave = "Leave along ± the eigenvector: saddlepoint.escape gives the step"
            if needed < updates:
                return standing(
                    "descending",
                    f"{step}; gradient descent gets there by itself in about {needed:.3g} updates, "
                    f"and {updates} were made ({ends}).",
                    f"Go on. {leave} at once.",
                )
            how = f" in less than {needed:.3g} updates" if math.isfinite(needed) else ""
            return standing(
                "saddle",
                f"{step}; the gradient does not get there{how}, and {updates} were made ({ends}).",
                f"{leave}.",
            )
    if stalled and matters(along_gradient):
        return standing(
            "standing still", *_standing_still(objective, theta, point, training, shares, length)
        )
    if point.kind == "minimum":
        return standing("minimum", point.reason, _SETTLED)
    if training.fall >= 0.01:
        return standing(
            "descending",
            f"The last tenth of training took {training.fall:.1%} off the loss, now {loss:.4g} "
            f"({ends}).",
            "Go on: nothing holds it.",
        )
    if matters(along_gradient) or (way is not None and matters(way.actual_drop)):
        return standing(
            "descending",
            f"There is a way down from a loss of {loss:.4g}: {shares} ({ends}).",
            "Go on.",
        )
    if point.kind == "undecided":
        return standing("undecided", point.reason, "A larger max_products would tell.")
    little = f"Neither slope nor curvature leads on from a loss of {loss:.4g}: {shares} ({ends})."
    if low > max(point.tolerance, point.residual_min):
        return standing("minimum", little, _SETTLED)
    if way is None and slope <= point.gradient_tolerance:
        return standing("degenerate", little, _FLOOR)
    again = _SETTLED if loss <= 0.5 * training.initial_loss else _ELSEWHERE
    return standing("degenerate", little, again)


_FLOOR = (
    "As far as the second order tells, the loss is at a floor: no curvature is negative, and "
    "directions without any may be symmetries of the network."
)
_UNDAMPED = "With a momentum of 1 or more, past gradients never fade."
_DAMP = "Lower the momentum below 1: to 0.9, say."
_SETTLED = "Training has come to an end here; another start, or a larger network, may find lower."
_ELSEWHERE = "Start again from other weights, larger ones say, or with batch norm."


def _percent(drop: float, loss: float) -> str:
    return f"{100.0 * drop / loss:.2g} %" if loss > 0.0 else f"{drop:.2g}"


def _standing_still(
    objective: Objective,
    theta: Any,
    point: CriticalPoint,
    training: Training,
    shares: str,
    length: float,
) -> tuple[str, str]:
    """Reason and cure, by the size of the rate; the step along −g has this length."""
    rate, updates, high = training.rate, training.updates, point.lambda_max
    edge = rate * high
    reason = f"The loss stands still at {point.loss:.4g}, though {shares}. "
    if not math.isfinite(rate):
        return reason + _UNDAMPED, _DAMP
    if rate < 0.01 * training.highest_rate:
        fell = f"The schedule had taken the rate from {training.highest_rate:.2g} to {rate:.2g}"
        return (
            f"{reason}{fell}: training stopped because the rate did.",
            "Go on with a schedule over more epochs, or begin this one again from here.",
        )
    if training.plain:
        reason += f"ηλ_max = {edge:.2g}, where 2 is the most that descends"
        small = edge < 0.02
        better = _inverse(point) or f"{10 * rate or 1e-3:.2g}"
    elif training.rate_is_step:
        typical, wanted = (x / math.sqrt(objective.size) for x in (norm(theta), length))
        reason += (
            f"{updates} updates of rate {rate:.2g} go at most {updates * rate:.2g} a parameter, "
            f"parameters are {typical:.2g} in size, and that step goes {wanted:.2g}"
        )
        small = rate == 0.0 or updates * rate < 0.01 * max(typical, wanted)
        least = wanted / max(updates, 1)
        better = f"{max(10 * rate, least) or 0.01 * typical or 1e-3:.2g}"
    elif rate > 0.0:
        batches = "" if training.whole_batches else ", batches four times as large"
        return (
            f"{reason}The rate, {rate:.2g}, does not tell how far the {updates} updates went.",
            f"Compare the optimizer's default rate{batches}, and another optimizer, Adam say.",
        )
    else:
        reason += f"The rate was 0 for {updates} updates"
        small, better = True, "the optimizer's default"
    if small:
        return f"{reason}: the rate is too small.", f"Raise the rate from {rate:.2g}: to {better}."
    if training.plain and edge > 2.0:
        return (
            f"{reason}: the rate is too large.",
            f"Lower the rate from {rate:.2g}: to {better}.",
        )
    if training.whole_batches:
        reason += ": steep directions beside flat ones hold it."
        if training.plain and edge < 1.0:
            return reason, f"Raise the rate from {rate:.2g}: to {better}."
        if training.plain:
            return reason, "Add momentum, 0.9 say, or take Adam."
        return reason, f"Compare a quarter of the rate {rate:.2g}, and four times as much."
    return (
        f"{reason}: the noise of mini-batches, or steep directions beside flat ones, hold it.",
        f"Compare a quarter of the rate {rate:.2g}, and batches four times as large.",
    )


def _inverse(point: CriticalPoint) -> str:
    """1/λ_max, or of λ_min where no curvature is positive; nothing where there is none."""
    if point.lambda_max > 0.0:
        return f"{1.0 / point.lambda_max:.2g}, 1/λ_max"
    return f"{-1.0 / point.lambda_min:.2g}, 1/|λ_min|" if point.lambda_min < 0.0 else ""
