"""Extreme eigenvalues of a symmetric operator, by Lanczos with full reorthogonalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import expected
from ..progress import progress
from ..vector import ArrayLike, axpy, copy, dot, norm, random, scale

__all__ = ["Eigenpairs", "eigsh"]


@dataclass(frozen=True)
class Eigenpairs:
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
        Whether each residual is at most ``tolerance``.
    tolerance : float
        ``tol`` times the largest |λ| found.
    products : int
        Products with the operator, those for the residuals included.
    """

    values: NDArray[np.float64]
    vectors: list[ArrayLike]
    residuals: NDArray[np.float64]
    converged: bool
    tolerance: float
    products: int


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


def _orthogonalize(w: ArrayLike, basis: list[ArrayLike]) -> NDArray[np.float64]:
    """Remove the basis from w, twice, in place; the coefficients removed."""
    removed = np.zeros(len(basis))
    for _ in range(2):  # once leaves rounding that grows; twice is enough (Parlett)
        for i, q in enumerate(basis):
            c = dot(q, w)
            axpy(-c, q, w)
            removed[i] += c
    return removed


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
        NumPy arrays and SciPy operators included.
    k : int
        How many; all n where k exceeds n.
    which : "LA", "SA", "BE" or "LM"
        Largest, smallest (most negative), both ends, or largest magnitude.
    tol : float, optional
        Residual, relative to the largest |λ|, at which to stop; √eps of the dtype by default.
    max_products : int, optional
        Budget; 300 by default. The basis, so many vectors, is kept in memory.
    rng : int, Generator or None
        Draws the start vector.

    Returns
    -------
    Eigenpairs
        Check ``converged``: out of budget, the pairs are the best found.

    Raises
    ------
    ValueError
        For another shape, k below 1, or products that are not finite.

    Notes
    -----
    One Krylov space serves both ends. Full reorthogonalization keeps copies of converged
    eigenvalues ("ghosts") out. A space with one start vector holds one vector of each eigenspace:
    of a multiple eigenvalue the further copies are found only when the space is exhausted and the
    iteration goes on from a fresh direction, and are missed when the wanted pairs converge before.
    (Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, ch. 13.)

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> pairs = sp.eigsh(np.diag([-2.0, 0.0, 1.0, 5.0]), k=2)
    >>> pairs.values.round(6)
    array([-2.,  5.])
    """
    n = H.shape[0]
    if len(H.shape) != 2 or H.shape[1] != n or n < 1:
        raise ValueError(expected("H", "shape (n, n) with n at least 1", tuple(H.shape)))
    if k < 1:
        raise ValueError(expected("k", "at least 1", k))
    if which not in ("LA", "SA", "BE", "LM"):
        raise ValueError(expected("which", "'LA', 'SA', 'BE' or 'LM'", repr(which)))
    k = min(k, n)
    eps = float(np.finfo(H.dtype).eps)
    tol = eps**0.5 if tol is None else tol
    budget = min(n, 300 if max_products is None else max(max_products - k, k))
    generator = np.random.default_rng(rng)
    like = getattr(H, "theta", None)
    like = np.empty(n, H.dtype) if like is None else like

    basis: list[ArrayLike] = []
    alpha: list[float] = []
    beta: list[float] = []  # beta[j] couples basis[j] and basis[j + 1]
    q = random(like, generator)
    scale(1.0 / norm(q), q)
    values, ritz = np.empty(0), np.empty((0, 0))
    largest = 0.0
    enough, block = k, 0  # vectors to take at least; where the present Krylov space begins
    with progress("Lanczos", budget, show_progress) as tick:
        while True:
            basis.append(q)
            w = _finite(H @ q)
            removed = _orthogonalize(w, basis)
            alpha.append(float(removed[-1]))
            rest = norm(w)
            m = len(basis)
            largest = max(largest, abs(alpha[-1]))
            exhausted = rest <= 10.0 * eps * largest * m
            done = False
            # The small problem costs O(m³): past the first steps it is not solved at each.
            if m <= 20 or m % 5 == 0 or m >= budget or exhausted:
                values, ritz = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
                chosen = _wanted(m, k, which, values)
                largest = float(np.abs(values).max())
                exhausted = rest <= 10.0 * eps * largest * m
                last = rest * np.abs(ritz[-1, chosen])
                done = m >= enough and bool(np.all(last <= 0.5 * tol * largest))
            tick(note=f"λ from {values[0]:.3g} to {values[-1]:.3g}")
            if m >= budget or (done and not exhausted):
                break
            if exhausted:
                # An invariant space: all its pairs are exact, others may lie outside of it.
                # A fresh Krylov space has at most as many dimensions as this one, and holds the
                # second copies of its eigenvalues.
                enough, block = m + max(m - block, 1), m
                q = random(like, generator)
                _orthogonalize(q, basis)
                scale(1.0 / norm(q), q)
                _orthogonalize(q, basis)
                beta.append(0.0)
            else:
                q = w
                beta.append(rest)
            scale(1.0 / norm(q), q)

    vectors, residuals = [], np.empty(len(chosen))
    rayleigh = np.empty(len(chosen))
    for i, c in enumerate(chosen):
        v = copy(basis[0])
        scale(float(ritz[0, c]), v)
        for j in range(1, len(basis)):
            axpy(float(ritz[j, c]), basis[j], v)
        scale(1.0 / norm(v), v)
        hv = _finite(H @ v)
        rayleigh[i] = dot(v, hv)
        axpy(-float(rayleigh[i]), v, hv)
        residuals[i] = norm(hv)
        vectors.append(v)
    order = np.argsort(rayleigh, kind="stable")
    tolerance = tol * largest
    return Eigenpairs(
        values=rayleigh[order],
        vectors=[vectors[i] for i in order],
        residuals=residuals[order],
        converged=bool(np.all(residuals <= tolerance)),
        tolerance=tolerance,
        products=len(basis) + len(chosen),
    )


def _finite(w: ArrayLike) -> ArrayLike:
    if not np.isfinite(norm(w)):
        raise ValueError(expected("H", "finite products", "NaN or infinity"))
    return w
