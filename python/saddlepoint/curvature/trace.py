"""The trace and the diagonal of a symmetric operator, from products with random signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import count, one_of
from ..kinds import kind_of
from ..progress import progress
from ..results import COLORS, Result, panels
from ..vector import ArrayLike, axpy, copy, dot, gather, norm, scale
from ..vector import generator as make_generator
from .krylov import Operator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Diagonal", "Trace", "diagonal", "trace"]

METHODS = ("hutchinson", "hutch++", "xtrace")


@dataclass(frozen=True)
class Trace(Result):
    """A trace, estimated.

    Attributes
    ----------
    value, error : float
        The estimate and its standard error; NaN of a single probe.
    samples : (m,) float64
        Their mean is the estimate.
    method : str
    exact : bool
        Whether the products sufficed for all of the diagonal.
    products : int
    """

    value: float
    error: float
    samples: NDArray[np.float64]
    method: str
    exact: bool
    products: int

    def __str__(self) -> str:
        how = "exact" if self.exact else f"± {self.error:.2g}, by {self.method}"
        return f"trace {self.value:.6g} ({how}, {self.products} products)".replace("-", "−")

    def plot(self, ax: Axes | None = None) -> Figure:
        """The samples, and their mean with its standard error."""
        figure, (panel,) = panels(ax, 1, 1)
        panel.plot(self.samples, "o", color=COLORS["blue"])
        panel.axhline(self.value, color=COLORS["orange"])
        if math.isfinite(self.error):
            low, high = self.value - self.error, self.value + self.error
            panel.axhspan(low, high, color=COLORS["orange"], alpha=0.2, lw=0)
        panel.set(xlabel="sample", ylabel="trace", title=str(self))
        return figure


@dataclass(frozen=True)
class Diagonal(Result):
    """A diagonal, estimated.

    Attributes
    ----------
    values, errors : (n,) float64, on the host
        The estimates and their standard errors.
    products : int
    """

    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    products: int

    _large = frozenset({"values", "errors"})

    def __str__(self) -> str:
        typical = float(np.median(self.errors)) if len(self.errors) else 0.0
        return f"diagonal of {len(self.values)} (± {typical:.2g}, {self.products} products)"

    def plot(self, ax: Axes | None = None) -> Figure:
        """The values in ascending order, with their errors."""
        figure, (panel,) = panels(ax, 1, 1)
        order = np.argsort(self.values)
        x = np.arange(len(order))
        values, errors = self.values[order], self.errors[order]
        panel.fill_between(x, values - errors, values + errors, color=COLORS["blue"], alpha=0.25)
        panel.plot(x, values, color=COLORS["blue"])
        panel.set(xlabel="in ascending order", ylabel="diagonal")
        return figure


def _signs(operator: Operator, draws: np.random.Generator) -> ArrayLike:
    """Random signs (Rademacher), which have the least variance of all (Hutchinson 1989)."""
    drawn = draws.integers(0, 2, operator.size) * 2.0 - 1.0
    return kind_of(operator.like).from_host(drawn, operator.like)


def _unit(operator: Operator, i: int) -> ArrayLike:
    e = np.zeros(operator.size)
    e[i] = 1.0
    return kind_of(operator.like).from_host(e, operator.like)


def trace(
    H: Any,
    products: int = 60,
    method: str = "xtrace",
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> Trace:
    """The trace of a symmetric operator: the sum of its eigenvalues.

    Parameters
    ----------
    H : HessianOperator, or anything with ``shape``, ``dtype`` and ``H @ v``
        As in `eigsh`.
    products : int
        Budget. From n on, the diagonal is computed, and the trace is exact.
    method : "xtrace", "hutch++" or "hutchinson"
        XTrace (Epperly, Tropp & Webber 2024) and Hutch++ (Meyer et al. 2021) take out what a few
        directions hold, and are better where few eigenvalues are large; Hutchinson's mean of vᵀHv
        (1989) needs least memory.
    rng : int, Generator or None

    Returns
    -------
    Trace

    Raises
    ------
    TypeError, ValueError
        For what is no operator, an unknown method, or a budget too small for it.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> sp.trace(np.diag([1.0, 2.0, -4.0])).value
    -1.0
    """
    operator = Operator(H)
    one_of("method", method, METHODS)
    budget = count("products", products, {"hutchinson": 1, "hutch++": 3, "xtrace": 4}[method])
    draws = make_generator(rng)
    n = operator.size
    with progress("trace", min(budget, n), show_progress) as tick:
        if n <= budget:
            entries = []
            for i in range(n):
                e = _unit(operator, i)
                entries.append(dot(e, operator(e)))
                tick()
            total = math.fsum(entries)
            return Trace(total, 0.0, np.array([total]), method, True, operator.products)
        if method == "hutchinson":
            samples = _hutchinson(operator, budget, draws, [], tick)
        elif method == "hutch++":
            basis, _ = _orthonormal([operator(_signs(operator, draws)) for _ in range(budget // 3)])
            images = [operator(q) for q in basis]
            tick(2 * (budget // 3))
            inside = sum(dot(q, z) for q, z in zip(basis, images, strict=True))
            rest = budget - 2 * (budget // 3)
            samples = inside + _hutchinson(operator, rest, draws, basis, tick)
        else:
            samples = _xtrace(operator, budget // 2, draws, tick)
    m = len(samples)
    error = float(samples.std(ddof=1)) / math.sqrt(m) if m > 1 else math.nan
    return Trace(float(samples.mean()), error, samples, method, False, operator.products)


def _hutchinson(
    operator: Operator,
    many: int,
    draws: np.random.Generator,
    basis: list[ArrayLike],
    tick: Any,
) -> NDArray[np.float64]:
    """vᵀHv of random signs, outside of a basis."""
    samples = np.empty(many)
    for i in range(many):
        v = _signs(operator, draws)
        for q in basis:
            axpy(-dot(q, v), q, v)
        samples[i] = dot(v, operator(v))
        tick()
    return samples


def _orthonormal(vectors: list[ArrayLike]) -> tuple[list[ArrayLike], NDArray[np.float64]]:
    """Q and R of vectors, by Gram and Schmidt, twice; those that others span are left out."""
    basis: list[ArrayLike] = []
    coefficients = np.zeros((len(vectors), len(vectors)))
    for j, vector in enumerate(vectors):
        w, size = copy(vector), norm(vector)
        for _ in range(2):
            for i, q in enumerate(basis):
                c = dot(q, w)
                axpy(-c, q, w)
                coefficients[i, j] += c
        rest = norm(w)
        if rest > 1e-6 * size:
            coefficients[len(basis), j] = rest
            scale(1.0 / rest, w)
            basis.append(w)
    return basis, coefficients[: len(basis)]


def _table(rows: list[ArrayLike], columns: list[ArrayLike]) -> NDArray[np.float64]:
    return np.array([[dot(a, b) for b in columns] for a in rows])


def _xtrace(
    operator: Operator, many: int, draws: np.random.Generator, tick: Any
) -> NDArray[np.float64]:
    """A sample for each vector, outside of the basis that the others' images span.

    With HΩ = QR, the basis without the i-th is Q (I − s sᵀ), s the unit vector along R⁻ᵀe: so
    x = (I − s sᵀ) Qᵀω and u = ω − Q x, for which uᵀHu needs no product more.
    """
    signs = [_signs(operator, draws) for _ in range(many)]
    basis, r = _orthonormal([operator(v) for v in signs])
    tick(many)
    if len(basis) < many:  # H is of so low a rank that the basis holds all of it
        images = [operator(q) for q in basis]
        total = sum(dot(q, z) for q, z in zip(basis, images, strict=True))
        return np.full(2, total)
    images = [operator(q) for q in basis]
    tick(many)
    w, h, t = _table(basis, signs), _table(basis, images), _table(images, signs)
    s = np.linalg.inv(r).T
    s /= np.linalg.norm(s, axis=0)
    x = w - s * (s * w).sum(0)
    inside = np.trace(h) - (s * (h @ s)).sum(0)
    samples: NDArray[np.float64] = (
        inside + (w * r).sum(0) - (t * x).sum(0) - (x * r).sum(0) + (x * (h @ x)).sum(0)
    )
    return samples


def diagonal(
    H: Any,
    products: int = 60,
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> Diagonal:
    """The diagonal of a symmetric operator: the curvature along each parameter.

    Parameters
    ----------
    H : HessianOperator, or anything with ``shape``, ``dtype`` and ``H @ v``
        As in `eigsh`.
    products : int
        Budget, at least 2. From n on, the diagonal is computed, and exact.
    rng : int, Generator or None

    Returns
    -------
    Diagonal

    Raises
    ------
    TypeError, ValueError
        For what is no operator, or a budget too small.

    Notes
    -----
    The mean of v ∘ Hv over random signs v (Bekas, Kokiopoulou & Saad 2007). An entry's variance is
    the sum of squares of the others of its row.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> sp.diagonal(np.array([[2.0, 1.0], [1.0, -3.0]])).values
    array([ 2., -3.])
    """
    operator = Operator(H)
    budget, n = count("products", products, 2), operator.size
    draws = make_generator(rng)
    mean, squares = np.zeros(n), np.zeros(n)
    with progress("diagonal", min(budget, n), show_progress) as tick:
        if n <= budget:
            for i in range(n):
                e = _unit(operator, i)
                mean[i] = dot(e, operator(e))
                tick()
            return Diagonal(mean, np.zeros(n), operator.products)
        for k in range(budget):
            v = _signs(operator, draws)
            sample = gather(v).astype(np.float64) * gather(operator(v))
            delta = sample - mean
            mean += delta / (k + 1)
            squares += delta * (sample - mean)
            tick()
    return Diagonal(mean, np.sqrt(squares / (budget * (budget - 1))), operator.products)
