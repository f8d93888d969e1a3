"""How the eigenvalues of a symmetric operator are distributed, by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import count, expected, number, number_from_0
from ..progress import progress
from ..results import COLORS, Result, panels
from ..vector import generator as make_generator
from ..vector import random
from .krylov import Operator, Subspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Share", "SpectralDensity", "spectral_density", "student"]


class Share(NamedTuple):
    """A share of the eigenvalues, and the interval that holds it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SpectralDensity(Result):
    """The distribution of eigenvalues, as far as some random vectors see it.

    Attributes
    ----------
    nodes, weights : (probes, steps) float64
        The quadrature of each probe, nodes ascending; the weights of each add up to 1. Where a
        probe ended early, weights of 0 fill up.
    tolerance : float
        Eigenvalues within ± this count as zero.
    confidence : float
        How often the intervals hold the true shares.
    negative, zero, positive : Share
        The shares of eigenvalues below −tolerance, within ±tolerance, and above.
    negative_at_least, positive_at_least : int
        So many eigenvalues are below −tolerance, and above tolerance: certain, but for rounding.
    size, products : int
        n; products with the operator.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]
    tolerance: float
    confidence: float
    negative: Share
    zero: Share
    positive: Share
    negative_at_least: int
    positive_at_least: int
    size: int
    products: int

    def __str__(self) -> str:
        parts = []
        for name in ("negative", "zero", "positive"):
            value, low, high = getattr(self, name)
            parts.append(f"{100 * value:.1f} % {name} ({100 * low:.1f} to {100 * high:.1f})")
        text = (
            f"Of {self.size} eigenvalues {', '.join(parts)}, zero being within "
            f"±{self.tolerance:.2g}; at least {self.negative_at_least} are negative and "
            f"{self.positive_at_least} positive ({self.products} products)"
        )
        return text.replace("-", "−")

    def curve(
        self, x: NDArray[np.float64], width: float | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The density at x, each eigenvalue drawn as a normal curve, with its band.

        Parameters
        ----------
        x : (m,) float64
        width : float, optional
            Standard deviation of the curves; a hundredth of the reach of the nodes by default.

        Returns
        -------
        density, low, high : (m,) float64
        """
        x = np.asarray(x, np.float64)
        if width is None:
            width = 0.01 * float(np.ptp(self.nodes)) or 1e-3
        if not number("width", width) > 0.0:
            raise ValueError(expected("width", "above 0", width))
        curves = np.stack([
            (w[:, None] * np.exp(-0.5 * ((x - t[:, None]) / width) ** 2)).sum(0)
            for t, w in zip(self.nodes, self.weights, strict=True)
        ]) / (width * math.sqrt(2.0 * math.pi))  # fmt: skip
        mean = curves.mean(0)
        half = student(self.confidence, len(curves) - 1) * _error(curves)
        return mean, np.maximum(mean - half, 0.0), mean + half

    def plot(self, ax: Axes | None = None) -> Figure:
        """The density on a logarithmic scale, its band, and the band of zero."""
        figure, (panel,) = panels(ax, 1, 1)
        low, high = float(self.nodes.min()), float(self.nodes.max())
        margin = 0.05 * (high - low) or 1.0
        x = np.linspace(low - margin, high + margin, 800)
        mean, below, above = self.curve(x)
        least = 1e-6 * float(mean.max())
        panel.fill_between(x, np.maximum(below, least), above, color=COLORS["blue"], alpha=0.25)
        panel.plot(x, np.maximum(mean, least), color=COLORS["blue"])
        panel.axvspan(-self.tolerance, self.tolerance, color=COLORS["muted"], alpha=0.3, lw=0)
        panel.set_yscale("log")
        panel.set_ylim(bottom=least)
        panel.set(xlabel="eigenvalue", ylabel="density", title=f"{self.size} eigenvalues")
        return figure


def _error(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard error of the mean over the first axis; infinite of one."""
    n = len(x)
    if n < 2:
        return np.full(x.shape[1:], math.inf)
    error: NDArray[np.float64] = x.std(0, ddof=1) / math.sqrt(n)
    return error


def student(confidence: float, freedom: int) -> float:
    """The quantile of Student's t that a two-sided interval goes to.

    Closed forms for one and two degrees of freedom, else the expansion about the normal quantile
    (Abramowitz & Stegun 26.7.5), to some thousandths.
    """
    p = 0.5 * (1.0 + confidence)
    if freedom < 1:
        return math.inf
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2.0 * p - 1.0) * math.sqrt(2.0 / (4.0 * p * (1.0 - p)))
    z, v = NormalDist().inv_cdf(p), float(freedom)
    terms = (
        z,
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4),
    )
    return sum(terms)


def _below(
    nodes: NDArray[np.float64], weights: NDArray[np.float64], x: float, size: int
) -> tuple[float, float, float]:
    """A probe's weight of the spectrum below x: by its quadrature, at least, and at most.

    The bounds are those of Chebyshev, Markov and Stieltjes: the weight below a node is at least
    that of the nodes before it, and at most that with its own. All are exact where a probe saw all.
    """
    under = int(np.sum(nodes < x))
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    value = float(sums[under])
    if np.count_nonzero(weights) >= size:
        return value, value, value
    low = float(sums[max(under - 1, 0)])
    return value, low, float(min(sums[min(under + 1, len(weights))], 1.0))


def spectral_density(
    H: Any,
    steps: int = 80,
    probes: int = 8,
    tolerance: float | None = None,
    confidence: float = 0.95,
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> SpectralDensity:
    """The distribution of the eigenvalues of a symmetric operator.

    Parameters
    ----------
    H : HessianOperator, or anything with ``shape``, ``dtype`` and ``H @ v``
        As in `eigsh`.
    steps : int
        Products for each probe; its quadrature is exact for polynomials of degree 2 steps − 1.
    probes : int
        Random vectors. One gives no intervals.
    tolerance : float, optional
        Eigenvalues within ± this count as zero; √eps |λ|max by default. A share of negative
        eigenvalues says nothing without it.
    confidence : float
        Of the intervals, between 0 and 1.
    rng : int, Generator or None

    Returns
    -------
    SpectralDensity

    Raises
    ------
    TypeError, ValueError
        For what is no operator, numbers that are none, or products that are not finite.

    Notes
    -----
    The Lanczos process from a random unit vector v gives the Gauss quadrature of v's own spectral
    measure, whose mean is the distribution of the eigenvalues (Ubaru, Chen & Saad 2017). Full
    reorthogonalization keeps copies of converged eigenvalues out, which would count twice. The
    intervals join what the probes differ by (Student's t) and what each quadrature leaves open.
    The counts are those of the Ritz values, which interlace with the eigenvalues (Cauchy).

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> found = sp.spectral_density(np.diag([-2.0, -1.0, 1.0, 5.0]), tolerance=0.1, probes=400)
    >>> round(found.negative.value, 1), found.negative_at_least, found.positive_at_least
    (0.5, 2, 2)
    """
    operator = Operator(H)
    n = operator.size
    steps, probes = min(count("steps", steps, 1), n), count("probes", probes, 1, 2**20)
    if tolerance is not None:
        tolerance = number_from_0("tolerance", tolerance)
    if not 0.0 < number("confidence", confidence) < 1.0:
        raise ValueError(expected("confidence", "between 0 and 1", confidence))
    draws = make_generator(rng)
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    if operator.probes:
        v = random(operator.like, draws)
        operator.check(v, operator(v), random(operator.like, draws))
    with progress("density", probes * steps, show_progress) as tick:
        for probe in range(probes):
            found, weight = _quadrature(operator, steps, draws, tick)
            nodes[probe, : len(found)], weights[probe, : len(found)] = found, weight
            nodes[probe, len(found) :] = found[-1]
    if tolerance is None:
        tolerance = operator.eps**0.5 * float(np.abs(nodes).max())
    below, above = -tolerance, float(np.nextafter(tolerance, math.inf))
    each = list(zip(nodes, weights, strict=True))
    negative = np.array([_below(t, w, below, n) for t, w in each])
    through = np.array([_below(t, w, above, n) for t, w in each])
    positive = 1.0 - through[:, [0, 2, 1]]
    zero = np.stack([
        through[:, 0] - negative[:, 0],
        np.maximum(through[:, 1] - negative[:, 2], 0.0),
        through[:, 2] - negative[:, 1],
    ], 1)  # fmt: skip
    real = weights > 0.0
    return SpectralDensity(
        nodes=nodes,
        weights=weights,
        tolerance=tolerance,
        confidence=float(confidence),
        negative=_share(negative, confidence),
        zero=_share(zero, confidence),
        positive=_share(positive, confidence),
        negative_at_least=int(((nodes < below) & real).sum(1).max()),
        positive_at_least=int(((nodes >= above) & real).sum(1).max()),
        size=n,
        products=operator.products,
    )


def _share(of_probes: NDArray[np.float64], confidence: float) -> Share:
    """From (probes, 3): by the quadrature, at least, at most."""
    value, low, high = of_probes.mean(0)
    if len(of_probes) < 2:
        return Share(float(value), 0.0, 1.0)
    half = student(confidence, len(of_probes) - 1) * _error(of_probes)
    rounding = 1e-12
    lowest, highest = float(low - half[1]) - rounding, float(high + half[2]) + rounding
    return Share(float(value), max(lowest, 0.0), min(highest, 1.0))


def _quadrature(
    operator: Operator, steps: int, draws: np.random.Generator, tick: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights of the spectral measure of a random vector."""
    space = Subspace(operator)
    q, largest = random(operator.like, draws), 0.0
    for step in range(steps):
        rest = space.add(q)
        tick()
        largest = max(largest, space.size_of_last(), rest)
        if rest <= 10.0 * operator.eps * largest * (step + 1):
            break  # the vector lies in as many eigenspaces
        q = space.follow(len(space) - 1)
    values, vectors = np.linalg.eigh(space.projected())
    return values, vectors[0] ** 2
