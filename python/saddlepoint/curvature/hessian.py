"""The Hessian of an objective at a point, as a linear operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..kinds import kind_of
from ..objective import Objective
from ..results import COLORS, Result, panels
from ..vector import (
    ArrayLike,
    axpy,
    copy,
    dot,
    gather,
    generator,
    norm,
    owned,
    random,
    rounding,
    scale,
)
from .operator import CurvatureOperator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["HessianOperator", "Verification", "hessian"]


_AGREE = 0.01  # difference quotients apart by less, relatively, have begun to converge


@dataclass(frozen=True)
class Verification(Result):
    """How far an operator is from the Hessian it claims to be.

    Attributes
    ----------
    verdict : str
        "verified", "not the Hessian", or "inconclusive: kinks", where differences of the gradient
        do not converge (to one value from both sides), as at a kink of a ReLU, so that there is
        nothing to hold the products against.
    finite_difference : float
        ‖Hv − d‖ / ‖Hv‖ for a random v, d the difference quotient of the gradient along v.
    symmetry : float
        |uᵀHv − vᵀHu| / (‖u‖ ‖Hv‖).
    repeatability : float
        ‖Hv − Hv‖ / ‖Hv‖ of the same product computed twice.
    tolerances : dict
        What each is held against.
    step : float
        The h of the difference.
    """

    verdict: str
    finite_difference: float
    symmetry: float
    repeatability: float
    tolerances: dict[str, float]
    step: float

    @property
    def ok(self) -> bool:
        """Whether the products are verified."""
        return self.verdict == "verified"

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = [
            f"{name.replace('_', ' ')}: {getattr(self, name):.1e} (tolerance {tolerance:.1e})"
            for name, tolerance in self.tolerances.items()
        ]
        return "\n".join([self.verdict, *lines])

    def plot(self, ax: Axes | None = None) -> Figure:
        """Each measure over its tolerance: beyond 1 it fails."""
        figure, (panel,) = panels(ax, 1, 1)
        names = [name.replace("_", " ") for name in self.tolerances]
        shares = [getattr(self, name) / limit for name, limit in self.tolerances.items()]
        colors = [COLORS["blue" if share <= 1.0 else "orange"] for share in shares]
        panel.barh(range(len(names)), shares, color=colors)
        panel.set_yticks(range(len(names)), names)
        panel.axvline(1.0, color=COLORS["muted"], ls="--")
        panel.set(xlabel="measured / tolerance", title=self.verdict)
        panel.set_xscale("symlog", linthresh=1e-3)
        return figure


class _Quotients:
    """Difference quotients of one kind, at steps that shrink, against a product."""

    def __init__(self, product: NDArray[np.float64]) -> None:
        self._product = product
        self._before: NDArray[np.float64] | None = None
        self.size = 1.0  # of the larger, product or latest quotient
        self._apart: list[float] = []  # of consecutive quotients, relatively
        self._errors: list[float] = []

    def add(self, quotient: NDArray[np.float64]) -> float:
        """Take in the next; how far the product is from it, relatively to the larger."""
        self.size = max(_length(self._product), _length(quotient)) or 1.0
        if self._before is not None:
            self._apart.append(_length(quotient - self._before) / self.size)
        self._before = quotient
        self._errors.append(_length(self._product - quotient) / self.size)
        return self._errors[-1]

    def best(self) -> tuple[int, float, float]:
        """Where three in a row agree best, how far apart they are, and the product's error."""
        apart = np.maximum(self._apart[:-1], self._apart[1:])
        i = int(apart.argmin())
        return i + 1, float(apart[i]), self._errors[i + 1]


def _length(x: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(x))


class HessianOperator(CurvatureOperator):
    """H = ∇²L(θ), by its products.

    As every `CurvatureOperator`, and checked by `verify`.

    Parameters
    ----------
    objective : Objective
    theta : (n,) array of the objective's dtype
    """

    def __init__(self, objective: Objective, theta: ArrayLike) -> None:
        super().__init__(objective, theta)
        self._nearby = False  # made to verify another

    def _times(self, v: ArrayLike) -> ArrayLike:
        return self._linearization.hvp(v)

    def _against_differences(
        self, direction: ArrayLike, hv: ArrayLike
    ) -> tuple[str, float, float, float]:
        """Verdict on H times a direction, its error and tolerance, and the step h."""
        objective, theta, v = self.objective, self.theta, direction
        product = gather(hv).astype(np.float64)
        if self.dtype != np.float64 and hasattr(objective, "astype"):
            objective = objective.astype(np.float64)
            theta, v = (kind_of(x).astype(x, np.float64) for x in (theta, direction))
        eps = float(np.finfo(objective.dtype).eps)

        def gradient(s: float) -> NDArray[np.float64]:
            nonlocal eps
            moved = copy(theta)
            axpy(s, v, moved)
            found = objective.gradient(moved)
            eps = rounding(found, eps)
            return gather(owned(found, theta, "gradient", self.shape[:1])).astype(np.float64)

        here = gradient(0.0)
        # A ReLU within rounding of its kink may take another side in float32: that costs the
        # gradient some digits, and products two more.
        lost = _length(gather(self.gradient) - here) / (_length(here) or 1.0)
        own = max(1000.0 * self.eps, min(100.0 * lost, 5e-3))
        tolerance = 100.0 * eps ** (2 / 3) + own
        both, ahead, behind = (_Quotients(product) for _ in range(3))
        first, many = eps ** (1 / 3) * max(1.0, norm(theta)), 1 - int(math.log(eps, 8.0) / 3.0)
        steps = [first / 8.0**i for i in range(many)]
        jumps = []  # of the derivative at θ, between its two sides
        for h in steps:
            plus, minus = gradient(h), gradient(-h)
            error = both.add((plus - minus) / (2.0 * h))
            if h == first:  # all that is left of a difference may be rounding
                tolerance += 10.0 * eps * _length(here) / (h * both.size)
            if error <= tolerance:
                return "verified", error, tolerance, h
            ahead.add((plus - here) / h)
            behind.add((here - minus) / h)
            jumps.append(_length(plus - 2.0 * here + minus) / (h * both.size))
        i, apart, error = both.best()
        if apart <= _AGREE and jumps[i] <= _AGREE:
            tolerance = max(tolerance, 10.0 * apart)
            if error <= tolerance:
                return "verified", error, tolerance, steps[i]
            fault = objective is self.objective or not self._verifies_nearby(direction)
            verdict = "not the Hessian" if fault else "inconclusive: kinks"
            return verdict, error, tolerance, steps[i]
        for side in (ahead, behind):
            j, apart, one_sided = side.best()
            if apart <= _AGREE and one_sided <= max(tolerance, 10.0 * apart):
                return "verified", one_sided, max(tolerance, 10.0 * apart), steps[j]
        inconclusive = "inconclusive: kinks", error, tolerance, steps[i]
        # At a kink the gradient jumps along the kink's normal: off its coordinates all is smooth.
        jump = np.abs(plus - 2.0 * here + minus)
        smooth = gather(direction) * (jump <= 1e-4 * jump.max())
        if not smooth.any() or np.count_nonzero(smooth) == np.count_nonzero(gather(direction)):
            return inconclusive
        off = self._like_theta(smooth)
        scale(1.0 / norm(off), off)
        return self._against_differences(off, self.matvec(off))

    def _verifies_nearby(self, direction: ArrayLike) -> bool:
        """Whether the same products pass where rounding moves no unit across its kink.

        In few rows, one that it does move is a large part of the product.
        """
        if self._nearby:
            return False
        moved, away = copy(self.theta), random(self.theta, 1)
        axpy(1e-3 * max(1.0, norm(moved)) / norm(away), away, moved)
        there = HessianOperator(self.objective, moved)
        there._nearby = True
        return there._against_differences(direction, there.matvec(direction))[0] == "verified"

    def verify(self, rng: int | np.random.Generator | None = 0) -> Verification:
        """Check products against differences of the gradient, their symmetry, and repeatability.

        A difference (g(θ+hv) − g(θ−hv)) / 2h has error O(h²) + O(eps/h), so h begins with
        eps^(1/3) max(1, ‖θ‖), where it is to agree to 100 eps^(2/3), and to 1000 eps of the
        products' own dtype, which symmetry and repeatability are held to. It is taken in float64
        where the objective can change its precision (``astype``); a hundred times what the gradient
        loses in its own dtype is granted to the products as well, up to 5e-3.

        Kinks (of a ReLU) within θ ± hv spoil a difference, so h shrinks to eps^(2/3), eightfold at
        a time. Where three quotients in a row agree, the derivative is known that well, and the
        product is held against it, with ten times their distance as tolerance; where θ itself lies
        on a kink, against those of one side, or along a direction without the coordinates in which
        the gradient jumps. Where nothing agrees there is no derivative: "inconclusive: kinks". So
        it is where float32 products miss, and pass a thousandth of ‖θ‖ away: there a unit within
        rounding of its kink took the other side.
        """
        draws = generator(rng)
        u, v = random(self.theta, draws), random(self.theta, draws)
        for x in (u, v):
            scale(1.0 / norm(x), x)
        hv, again, hu = self.matvec(v), self.matvec(v), self.matvec(u)
        floor = norm(hv) or 1.0
        axpy(-1.0, hv, again)
        verdict, error, tolerance, step = self._against_differences(v, hv)
        exact = 1000.0 * self.eps
        symmetry, repeatability = abs(dot(u, hv) - dot(v, hu)) / floor, norm(again) / floor
        if not (symmetry <= exact and repeatability <= exact):
            verdict = "not the Hessian"
        return Verification(
            verdict=verdict,
            finite_difference=error,
            symmetry=symmetry,
            repeatability=repeatability,
            tolerances={"finite_difference": tolerance, "symmetry": exact, "repeatability": exact},
            step=step,
        )


def hessian(objective: Objective, theta: ArrayLike) -> HessianOperator:
    """The Hessian of an objective at θ.

    Parameters
    ----------
    objective : Objective
    theta : (n,) array of the objective's dtype

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> H = sp.hessian(sp.surfaces.Saddle(), np.zeros(2))  # 5x² − y²
    >>> H @ np.array([1.0, 1.0])
    array([10., -2.])
    """
    return HessianOperator(objective, theta)
