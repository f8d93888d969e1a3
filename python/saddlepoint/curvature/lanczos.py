"""Extreme eigenvalues of a symmetric operator, by Lanczos with full reorthogonalization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import count, number_from_0, one_of
from ..progress import progress
from ..results import COLORS, Result, panels
from ..vector import ArrayLike, axpy, copy, dot, norm, random, scale
from ..vector import generator as make_generator
from .krylov import Operator, Subspace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Eigenpairs", "draw_eigenvalues", "eigsh"]

_UNLIKELY = 1e-3  # the chance to overlook one more of a multiple eigenvalue


@dataclass(frozen=True)
class Eigenpairs(Result):
    """Eigenvalues with their certificates.

    Attributes
    ----------
    values : (k,) float64, ascending
    vectors : list of k arrays (n,)
        Unit vectors, of the kind and on the device of the operator's.
    residuals : (k,) float64
        ‖Hv − λv‖, computed with one more product each: some eigenvalue lies within this distance
        of λ. (It bounds the distance to *an* eigenvalue; it does not say which.)
    converged : bool
        Whether each residual is at most its ``tolerance``, and no further copy of a multiple
        eigenvalue is left among the wanted.
    tolerance : (k,) float64
        What each residual is held against; see ``tol`` of `eigsh`.
    products : int
        Products with the operator, those for the residuals and the symmetry included.
    """

    values: NDArray[np.float64]
    vectors: list[ArrayLike]
    residuals: NDArray[np.float64]
    converged: bool
    tolerance: NDArray[np.float64]
    products: int

    _large = frozenset({"vectors"})

    def __str__(self) -> str:
        pairs = zip(self.values, self.residuals, strict=True)
        shown = ", ".join(f"{value:.6g} ± {residual:.1g}" for value, residual in pairs)
        how = "converged" if self.converged else "not converged"
        many = "eigenvalue" if len(self.values) == 1 else "eigenvalues"
        text = f"{len(self.values)} {many}: {shown} ({how}, {self.products} products)"
        return text.replace("-", "−")

    def plot(self, ax: Axes | None = None) -> Figure:
        """The eigenvalues with their residuals."""
        figure, (panel,) = panels(ax, 1, 1)
        draw_eigenvalues(panel, self.values, self.residuals, 0.0)
        return figure


def _decades(least: float, reach: float) -> NDArray[np.float64]:
    """0, and two powers of ten on either side of it: more would run into one another."""
    last = math.floor(math.log10(reach))
    powers = 10.0 ** np.array([last - max(1, math.floor(math.log10(reach / least)) // 2), last])
    return np.concatenate([-powers[::-1], [0.0], powers])


def draw_eigenvalues(
    panel: Axes, values: NDArray[np.float64], residuals: NDArray[np.float64], tolerance: float
) -> None:
    """Eigenvalues over their rank, residuals as bars, and the band in which they count as zero.

    The axis is logarithmic outside the band where that is far inside the values.
    """
    reach = float(np.abs(values).max(initial=0.0))
    if 0.0 < 30.0 * tolerance < reach:
        panel.set_xscale("symlog", linthresh=tolerance)
        panel.set_xticks(_decades(tolerance, reach))
    if tolerance > 0.0:
        panel.axvspan(-tolerance, tolerance, color=COLORS["muted"], alpha=0.15, lw=0)
    panel.axvline(0.0, color=COLORS["muted"], lw=0.8)
    rank = np.arange(1, len(values) + 1)
    for color, chosen in (
        (COLORS["orange"], values < -tolerance),
        (COLORS["muted"], np.abs(values) <= tolerance),
        (COLORS["blue"], values > tolerance),
    ):
        if chosen.any():
            panel.errorbar(
                values[chosen], rank[chosen], xerr=residuals[chosen], fmt="o", color=color
            )
    panel.set(xlabel="eigenvalue", ylabel="in ascending order", yticks=[])


def _wanted(m: int, k: int, which: str, values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the k wanted among m ascending values."""
    k = min(k, m)
    if which == "LA":
        return np.arange(m - k, m)
    if which == "SA":
        return np.arange(k)
    if which == "LM":
        return np.sort(np.argsort(-np.abs(values), kind="stable")[:k])
    low = k // 2  # "BE": both ends, one more from the high end, as SciPy
    return np.concatenate([np.arange(low), np.arange(m - (k - low), m)])


def _edges(wanted: NDArray[np.float64], which: str) -> list[tuple[int, int, float]]:
    """The ends that could hide one more of the wanted: sign, which comes last, sign times it.

    Whatever lies beyond that one would be wanted too. One value alone has no copy that matters.
    """
    k = len(wanted)
    if which == "LM":
        last = int(np.abs(wanted).argmin())
        return [(sign, last, abs(float(wanted[last]))) for sign in (1, -1)] if k > 1 else []
    low = {"SA": k, "LA": 0, "BE": k // 2}[which]
    ends = [(-1, low - 1)] * (low > 1) + [(1, low)] * (k - low > 1)
    return [(sign, last, sign * float(wanted[last])) for sign, last in ends]


def _tolerance(
    values: NDArray[np.float64], largest: float, tol: float, floor: float
) -> NDArray[np.float64]:
    """What residuals are held against; see ``tol`` of `eigsh`."""
    own: NDArray[np.float64] = np.minimum(tol * largest, tol**0.5 * np.abs(values))
    return np.maximum(own, floor * largest)


def _unlikely_beyond(edge: float, found: float, spread: float, steps: int, n: int) -> bool:
    """Whether Lanczos from a random start would have passed ``edge`` by now, if anything did.

    The extreme Ritz value after s steps is off by more than ε times the spread with a probability
    of at most 1.648 √n exp(−√ε (2s − 1)) (Kuczyński & Woźniakowski 1992).
    """
    if not edge > found:
        return False
    epsilon = min((edge - found) / spread, 1.0)
    return 1.648 * math.sqrt(n) * math.exp(-math.sqrt(epsilon) * (2 * steps - 1)) <= _UNLIKELY


def eigsh(
    H: Any,
    k: int = 2,
    which: str = "BE",
    tol: float | None = None,
    max_products: int | None = None,
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> Eigenpairs:
    """Eigenpairs at the ends of the spectrum of a symmetric operator.

    Parameters
    ----------
    H : HessianOperator, or anything with ``shape``, ``dtype`` and ``H @ v``
        NumPy arrays, PyTorch tensors and SciPy operators included; integers count as float64, as
        in SciPy. Its products may be any array, and are never written to.
    k : int
        How many; all n where k exceeds n.
    which : "LA", "SA", "BE" or "LM"
        Largest, smallest (most negative), both ends, or largest magnitude.
    tol : float, optional
        Residual to stop at, √eps of the dtype by default: relative to the largest |λ|; and √tol
        relative to the pair's own |λ|, which fixes its sign and its first digits. Where rounding
        reaches no further, 10 √n eps times the largest |λ| will do.
    max_products : int, optional
        Budget, kept exactly, from 2k on (and one more where symmetry is to be seen); by default
        300 besides the k of the residuals. The basis, up to so many vectors, is kept in memory.
    rng : int, Generator or None
        Draws the start vectors.

    Returns
    -------
    Eigenpairs
        Check ``converged``: out of budget, the pairs are the best found.

    Raises
    ------
    TypeError
        For what is no matrix or operator of real numbers, a k or max_products that is no int, or a
        tol that is no number.
    ValueError
        For another shape, k below 1, a budget too small, a matrix that is not symmetric, or
        products that are not finite or below the normal range of the dtype.

    Notes
    -----
    One Krylov space serves both ends. Full reorthogonalization keeps copies of converged
    eigenvalues ("ghosts") out (Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, ch. 13).
    A sequence with one start vector holds one vector of each eigenspace. So where two or more are
    wanted of an end, the iteration goes on from a fresh direction, orthogonal to all before, until
    that shows nothing more to be wanted: its own extreme value has converged short of the wanted
    ones, or would have passed them by now with a probability of 99.9 % (Kuczyński & Woźniakowski
    1992).

    A matrix is symmetric to 1000 eps, or refused. An operator is asked for one product more:
    uᵀHv = vᵀHu for two random vectors. A HessianOperator is believed; see its `verify`.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> pairs = sp.eigsh(np.diag([-2.0, 0.0, 1.0, 5.0]), k=2)
    >>> pairs.values.round(6)
    array([-2.,  5.])
    """
    operator = Operator(H)
    n, like = operator.size, operator.like
    k = min(count("k", k, 1), n)
    one_of("which", which, ("LA", "SA", "BE", "LM"))
    if tol is not None:
        tol = number_from_0("tol", tol)
    besides = k + operator.probes
    if max_products is not None:
        count("max_products", max_products, k + besides)
    most = min(n, 300 if max_products is None else max_products - besides)
    generator = make_generator(rng)

    space = Subspace(operator)
    q = random(like, generator)
    complete = False
    with progress("Lanczos", most, show_progress) as tick:
        while True:
            rest = space.add(q)
            m = len(space)
            if m == 1:
                hq = copy(space.outside[0][1])
                axpy(float(space.projected()[0, 0]), space.basis[0], hq)
                operator.check(space.basis[0], hq, random(like, generator))
                eps = operator.eps
                wished = eps**0.5 if tol is None else tol
                floor = 10.0 * math.sqrt(n) * eps
                largest = norm(hq)
            # The small problem costs O(m³): past the first steps it is not solved at each.
            if m > 20 and m % 5 != 0 and m < most and rest > 10.0 * eps * largest * m:
                tick()
                q = space.follow(m - 1)
                continue
            projected = space.projected()
            values, ritz = np.linalg.eigh(projected)
            tick(note=f"λ from {values[0]:.3g} to {values[-1]:.3g}")
            chosen = _wanted(m, k, which, values)
            largest = float(np.abs(values).max())
            tolerance = _tolerance(values[chosen], largest, wished, floor)
            errors = space.errors(ritz[:, chosen]).sum(axis=0)
            done = m == n or (m >= k and bool(np.all(errors <= 0.5 * tolerance)))
            settled, told = space.random_start, True
            inner, vectors = values, ritz
            if space.run > 0:
                inner, vectors = np.linalg.eigh(projected[space.run :, space.run :])
            for sign, last, edge in _edges(values[chosen], which):
                end = -1 if sign > 0 else 0
                found, error = sign * float(inner[end]), rest * abs(float(vectors[-1, end]))
                converged = error <= tolerance[last]
                short = (converged and found <= edge + tolerance[last]) or _unlikely_beyond(
                    edge, found, float(values[-1] - values[0]), len(inner), n - space.run
                )
                settled, told = settled and short, told and (short or converged)
            complete = done and (settled or m == n)
            if complete or m >= most:
                break
            exhausted = rest <= 10.0 * eps * largest * m
            if exhausted:
                del space.outside[m - 1]
            if m >= k and not done and space.outside:
                # Where sequences were left, go on with the one that holds the wanted back most.
                pull = space.errors(ritz[:, chosen]).max(axis=1)
                q = space.follow(list(space.outside)[int(pull.argmax())])
                if norm(q) <= 10.0 * eps * largest * m:
                    q = space.fresh(random(like, generator))
            elif exhausted or (done and (told or space.run == 0 or not space.random_start)):
                q = space.fresh(random(like, generator))
            else:
                q = space.follow(m - 1)

    found_vectors, residuals = [], np.empty(len(chosen))
    rayleigh = np.empty(len(chosen))
    for i, c in enumerate(chosen):
        v = copy(space.basis[0])
        scale(float(ritz[0, c]), v)
        for j in range(1, m):
            axpy(float(ritz[j, c]), space.basis[j], v)
        scale(1.0 / norm(v), v)
        hv = operator(v)
        rayleigh[i] = dot(v, hv)
        axpy(-float(rayleigh[i]), v, hv)
        residuals[i] = norm(hv)
        found_vectors.append(v)
    order = np.argsort(rayleigh, kind="stable")
    tolerance = _tolerance(rayleigh, largest, wished, floor)
    return Eigenpairs(
        values=rayleigh[order],
        vectors=[found_vectors[i] for i in order],
        residuals=residuals[order],
        converged=complete and bool(np.all(residuals <= tolerance)),
        tolerance=tolerance[order],
        products=operator.products,
    )
