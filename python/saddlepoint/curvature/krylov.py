"""What Krylov methods share: the operator they are given, and the space that they grow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import expected
from ..kinds import dtype_name, kind_of, refuse_mask
from ..vector import ArrayLike, axpy, copy, dot, norm, owned, rounding, scale
from .operator import CurvatureOperator

__all__ = ["Operator", "Subspace"]


class Operator:
    """A matrix or operator that was given, as products in memory of ours; they count themselves."""

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
            self._believed = isinstance(H, CurvatureOperator)
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


class Subspace:
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

    def size_of_last(self) -> float:
        """The largest entry of the last column of QᵀHQ."""
        return float(np.abs(self._columns[-1]).max())

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
