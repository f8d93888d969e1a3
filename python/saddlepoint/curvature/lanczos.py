"""Extreme eigenvalues of a symmetric operator, by Lanczos with full reorthogonalization."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import count, expected, number_from_0, one_of
from ..kinds import dtype_name, kind_of, refuse_mask
from ..progress import progress
from ..results import COLORS, Result, panels
from ..vector import ArrayLike, axpy, copy, dot, norm, owned, random, rounding, scale
from ..vector import generator as make_generator
from .hessian import HessianOperator

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


class _Operator:
    """What `eigsh` is given, as products in memory of ours; they count themselves."""

    def __init__(self, H: Any) -> None:
        if not all(hasattr(H, name) for name in ("shape", "dtype", "__matmul__")):
            what = "a matrix or an operator with shape, dtype and H @ v"
            raise TypeError(expected("H", what, type(H).__name__))
        refuse_mask("H", H)
        shape = tuple(H.shape) if isinstance(H.shape, (tuple, list)) else H.shape
        square = isinstance(shape, tuple) and len(shape) == 2 and shape[0] == shape[1]
        if not (square and isinstance(shape[0], (int, np.integer)) and shape[0] >= 1):
            raise ValueError(expected("H", "shape (n, n) with n at least 1", shape))
        self.size = n = int(shape[0])
        name = dtype_name(H.dtype)
        if name.startswith(("int", "uint", "bool")):  # float64, as SciPy has it
            name = "float64"
        if name not in ("float32", "float64"):
            raise TypeError(expected("H", "dtype float32, float64 or integers", H.dtype))
        self.eps = float(np.finfo(name).eps)
        self._tiny = float(np.finfo(name).tiny)
        self.products = 0
        self._believed = True
        if hasattr(H, "__array__"):
            H = kind_of(H).dense("H", H, name)
            self.like = H[0]
            _check_symmetric(H)
        else:
            self.like = H.theta if hasattr(H, "theta") else np.empty(n, name)
            self._believed = isinstance(H, HessianOperator)
        self._H = H

    @property
    def probes(self) -> int:
        """Products that `check` takes."""
        return 0 if self._believed else 1

    def __call__(self, v: ArrayLike) -> ArrayLike:
        given = self._H @ (v if self._believed else copy(v))  # others may write to it
        self.products += 1
        n = self.size
        column = hasattr(given, "reshape") and tuple(given.shape) == (n, 1)  # as SciPy has it
        w = owned(given.reshape(n) if column else given, self.like, "H", (n,), "products of ")
        if not np.isfinite(norm(w)):
            raise ValueError(expected("H", "finite products", "NaN or infinity"))
        # Whatever H.dtype says; a HessianOperator knows what its own came in.
        self.eps = rounding(given, max(self.eps, getattr(self._H, "eps", 0.0)))
        return w

    def check(self, v: ArrayLike, hv: ArrayLike, u: ArrayLike) -> None:
        """Raise where the first product is below the normal range, or uᵀHv is not vᵀHu."""
        size = norm(hv)
        if 0.0 < size < self._tiny:
            what = f"products within the normal range, from {self._tiny:.1e}"
            raise ValueError(expected("H", what, f"‖Hv‖ = {size:.1e}"))
        if self._believed:
            return
        scale(1.0 / norm(u), u)
        hu = self(u)
        apart = abs(dot(u, hv) - dot(v, hu))
        if not apart <= 1000.0 * self.eps * max(size, norm(hu)):
            got = f"uᵀHv and vᵀHu that differ by {apart:.1e}, for ‖Hv‖ = {size:.1e}"
            raise ValueError(expected("H", "a symmetric operator", got))


def _check_symmetric(matrix: Any) -> None:
    """For a dense matrix of NumPy or PyTorch."""
    size = float(abs(matrix).max())
    if not math.isfinite(size):
        raise ValueError(expected("H", "finite products", "NaN or infinity"))
    apart = float(abs(matrix - matrix.T).max())
    if not apart <= 1000.0 * float(np.finfo(dtype_name(matrix.dtype)).eps) * size:
        got = f"entries that differ from their mirrors by up to {apart:.1e}"
        raise ValueError(expected("H", "a symmetric matrix", got))


class _Subspace:
    """A basis, H projected onto it, and what of H times the basis lies outside."""

    def __init__(self, product: Callable[[ArrayLike], ArrayLike]) -> None:
        self._product = product
        self.basis: list[ArrayLike] = []
        self._columns: list[NDArray[np.float64]] = []
        # Column -> the part of H times it outside of the basis, where no vector follows it.
        self.outside: dict[int, tuple[float, ArrayLike]] = {}
        self.run = 0  # where the present Krylov sequence begins
        self.random_start = True

    def __len__(self) -> int:
        return len(self.basis)

    def projected(self) -> NDArray[np.float64]:
        """QᵀHQ, (m, m)."""
        matrix = np.zeros((len(self), len(self)))
        for j, column in enumerate(self._columns):
            matrix[j, : j + 1] = matrix[: j + 1, j] = column
        return matrix

    def _orthogonalize(self, w: ArrayLike) -> NDArray[np.float64]:
        """Remove the basis from w, twice, in place; the coefficients removed."""
        removed = np.zeros(len(self))
        for _ in range(2):  # once leaves rounding that grows; twice is enough (Parlett)
            for i, q in enumerate(self.basis):
                c = dot(q, w)
                axpy(-c, q, w)
                removed[i] += c
        return removed

    def add(self, q: ArrayLike) -> float:
        """Take in a vector, orthogonal to the basis once scaled; ‖(I − QQᵀ)Hq‖."""
        scale(1.0 / norm(q), q)
        self.basis.append(q)
        w = self._product(q)
        self._columns.append(self._orthogonalize(w))
        rest = norm(w)
        self.outside[len(self) - 1] = rest, w
        return rest

    def follow(self, column: int) -> ArrayLike:
        """The next vector after a column: what of H times it lies outside."""
        _, w = self.outside.pop(column)
        if column != len(self) - 1:
            self.run, self.random_start = len(self), False
            self._outside(w)  # the basis has grown since
        return w

    def fresh(self, drawn: ArrayLike) -> ArrayLike:
        """A new direction, to begin a Krylov sequence of the complement with."""
        self.run, self.random_start = len(self), True
        return self._outside(drawn)

    def _outside(self, w: ArrayLike) -> ArrayLike:
        """w without the basis, to rounding even where little remains."""
        self._orthogonalize(w)
        size = norm(w)
        if size > 0.0:
            scale(1.0 / size, w)
            self._orthogonalize(w)
            scale(size, w)
        return w

    def errors(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bounds on the parts of ‖Hy − λy‖ outside, of Ritz vectors (m, k): (len(outside), k)."""
        parts = [rest * np.abs(vectors[c]) for c, (rest, _) in self.outside.items()]
        return np.array(parts).reshape(-1, vectors.shape[1])


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
    operator = _Operator(H)
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

    space = _Subspace(operator)
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
