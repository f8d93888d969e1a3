"""What the matrices of curvature have in common: they are known by their products."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import count, expected
from ..kinds import kind_of, refuse_mask
from ..objective import Linearization, Objective, check_point, chosen_names, parts_of
from ..vector import (
    ArrayLike,
    axpy,
    check_directions,
    copy,
    gather,
    owned,
    rounding,
)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["BlockOperator", "CurvatureOperator"]

_counting = threading.Lock()  # of products, which threads may ask for together


class CurvatureOperator(ABC):
    """A symmetric matrix that belongs to an objective at θ, by its products.

    Works with ``scipy.sparse.linalg`` as it is (``shape``, ``dtype``, ``matvec``, ``matmat``), or
    through `to_scipy`. Products are arrays of the caller's, whatever the objective's own are.
    Threads may share an operator of a `NetworkObjective`: its products take turns.

    Attributes
    ----------
    objective : Objective
    theta : (n,) array
    loss : float
    gradient : (n,) array
    products : int
        Directions multiplied so far.
    eps : float
        Rounding of the products: that of ``dtype``, or of a coarser one that they came in.
    """

    def __init__(self, objective: Objective, theta: ArrayLike) -> None:
        check_point(objective, theta)
        if objective.size < 1:
            raise ValueError(expected("objective", "at least one parameter", objective.size))
        self.objective = objective
        self.theta = copy(theta)
        self._linearization: Linearization = objective.linearize(self.theta)
        self.loss = float(self._linearization.loss)
        n = objective.size
        self.gradient = owned(self._linearization.gradient, self.theta, "gradient", (n,))
        self.shape = (n, n)
        self.dtype = objective.dtype
        self.eps = float(np.finfo(self.dtype).eps)
        self.products = 0

    @abstractmethod
    def _times(self, v: ArrayLike) -> ArrayLike:
        """The product with (n,) or (n, k), in whatever array it comes."""

    def matvec(self, v: ArrayLike) -> ArrayLike:
        """The product with v (n,) or (n, 1), in the shape of v."""
        return self._product(v, 1)

    rmatvec = matvec  # it is symmetric

    def matmat(self, v: ArrayLike) -> ArrayLike:
        """The product with a block (n, k)."""
        return self._product(v, int(v.shape[1]))

    def _product(self, v: ArrayLike, directions: int) -> ArrayLike:
        check_directions(v, self.shape[0])
        product = self._times(v)
        with _counting:
            self.products += directions
            self.eps = rounding(product, self.eps)
        return owned(product, self.theta, "H", tuple(v.shape), "products of ")

    def __matmul__(self, v: ArrayLike) -> ArrayLike:
        check_directions(v, self.shape[0])
        return self.matvec(v) if len(v.shape) == 1 else self.matmat(v)

    def dense(self, block: int = 64) -> NDArray[Any]:
        """All of it, an (n, n) host array in float64, from ``block`` products at a time."""
        n, block = self.shape[0], count("block", block, 1)
        result = np.empty((n, n))
        for begin in range(0, n, block):
            columns = np.arange(begin, min(begin + block, n))
            unit = np.zeros((n, len(columns)), self.dtype, order="F")
            unit[columns, columns - begin] = 1.0
            result[:, columns] = gather(self.matmat(self._like_theta(unit)))
        return result

    def _like_theta(self, x: NDArray[Any]) -> ArrayLike:
        """A host array as the kind of array that θ is, and its dtype."""
        refuse_mask("x", x)
        return kind_of(self.theta).from_host(np.asarray(x, self.dtype), self.theta)

    def restrict(self, names: str | Iterable[str]) -> BlockOperator:
        """The diagonal block of some named parts of θ: a layer's curvature, the others held fixed.

        Parameters
        ----------
        names : str or iterable of str
            Names, or patterns of the shell: ``"layer1.*"``.

        Raises
        ------
        TypeError
            Where the objective's θ has no names.
        ValueError
            For a name that no part has.

        Examples
        --------
        >>> import saddlepoint as sp
        >>> from saddlepoint import nn
        >>> digits = sp.data.digits("float64")
        >>> net = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
        >>> loss = sp.NetworkObjective(net, nn.CrossEntropy(), digits.x, digits.y, dtype="float64")
        >>> sp.hessian(loss, net.init(0, "float64").theta).restrict("2.*").shape
        (90, 90)
        """
        return BlockOperator(self, names)

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator`` on host arrays."""
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError("scipy is not installed: pip install scipy") from error

        def product(v: NDArray[Any]) -> NDArray[Any]:
            return gather(self @ self._like_theta(np.asarray(v, self.dtype, order="F")))

        return LinearOperator(
            self.shape, matvec=product, rmatvec=product, matmat=product, dtype=self.dtype
        )


class BlockOperator(CurvatureOperator):
    """PᵀAP of another operator A, where P picks the named parts of θ; see `restrict`.

    Attributes
    ----------
    names : tuple of str
        The parts, in the order of θ.
    """

    def __init__(self, whole: CurvatureOperator, names: str | Iterable[str]) -> None:
        parts = parts_of(whole.objective)
        self.names = chosen_names(list(parts), names, "names")
        self._whole = whole
        self._spans = [parts[name] for name in self.names]
        ends = list(accumulate(map(_length, self._spans)))
        self._places = list(map(slice, [0, *ends[:-1]], ends))  # where they are here
        self.objective, self.loss = whole.objective, whole.loss
        self.dtype, self.eps, self.products = whole.dtype, whole.eps, 0
        self.shape = (ends[-1], ends[-1])
        self.theta, self.gradient = self._picked(whole.theta), self._picked(whole.gradient)

    def _picked(self, x: ArrayLike) -> ArrayLike:
        """The parts of (n,), one after the other."""
        kind = kind_of(x)
        result = kind.zeros(x, (sum(map(_length, self._spans)),))
        for there, here in zip(self._places, self._spans, strict=True):
            axpy(1.0, kind.rows(x, here), kind.rows(result, there))
        return result

    def _spread(self, v: ArrayLike) -> ArrayLike:
        """(n,) that is v in the parts and 0 elsewhere."""
        kind = kind_of(v)
        result = kind.zeros(v, (self._whole.shape[0],))
        for here, there in zip(self._places, self._spans, strict=True):
            axpy(1.0, kind.rows(v, here), kind.rows(result, there))
        return result

    def _times(self, v: ArrayLike) -> ArrayLike:
        if len(v.shape) == 1:
            return self._picked(self._whole.matvec(self._spread(v)))
        kind, m = kind_of(v), self.shape[0]
        rows = kind.columns(v)  # each direction in one piece
        out = kind.zeros(v, tuple(rows.shape))
        for j in range(rows.shape[0]):
            one, there = (kind.reshaped(kind.rows(x, slice(j, j + 1)), (m,)) for x in (rows, out))
            axpy(1.0, self._times(one), there)
        return out.T


def _length(span: slice) -> int:
    return int(span.stop - span.start)
