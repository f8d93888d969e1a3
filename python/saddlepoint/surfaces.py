"""Analytic objectives whose critical points are known: the lectures' pictures, in closed form.

Every surface is an objective in NumPy float64 on the CPU, so whatever analyses a network analyses a
surface too; what it then says can be compared with ``critical_points``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saddlepoint.errors import brief, count, expected
from saddlepoint.kinds import refuse_mask
from saddlepoint.vector import generator

__all__ = [
    "ExponentialDecay",
    "FactoredLinear",
    "KnownPoint",
    "MonkeySaddle",
    "Quadratic",
    "Quartic",
    "Rosenbrock",
    "Saddle",
    "SeparableLogistic",
    "Surface",
    "SurfaceLinearization",
]

Array = NDArray[np.float64]
Kind = Literal["minimum", "maximum", "saddle", "degenerate"]

# Far from home a surface is inf or nan; the value says so, and a warning would only repeat it.
_propagate = np.errstate(over="ignore", invalid="ignore")


class KnownPoint(NamedTuple):
    """A critical point in closed form: where it is, and what its Hessian says it is.

    ``kind`` is what second derivatives can decide: a Hessian with eigenvalues of both signs is a
    ``"saddle"``, a singular one without is ``"degenerate"``, even where the point is a minimum (x⁴)
    or a saddle (monkey). ``eigenvalues`` are ascending, shape (n,), or None if not known in closed
    form.

    Examples
    --------
    >>> from saddlepoint.surfaces import Saddle
    >>> Saddle().critical_points
    (KnownPoint(theta=array([0., 0.]), kind='saddle', eigenvalues=array([-2., 10.])),)
    """

    theta: Array
    kind: Kind
    eigenvalues: Array | None


@dataclass(frozen=True, eq=False)
class SurfaceLinearization:
    """A surface at one point: ``loss``, ``gradient`` (n,), ``hessian`` (n, n) and its products.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint.surfaces import Saddle
    >>> point = Saddle().linearize(np.array([1.0, 1.0]))
    >>> point.loss, point.gradient, point.hvp(np.array([0.0, 1.0]))
    (4.0, array([10., -2.]), array([ 0., -2.]))
    """

    loss: float
    gradient: Array
    hessian: Array

    @_propagate
    def hvp(self, v: Array) -> Array:
        """Hv for one vector (n,) or the k columns of a block (n, k); the shape of ``v``, float64.

        Raises
        ------
        TypeError
            If ``v`` is not a float64 array.
        ValueError
            If its shape is neither (n,) nor (n, k).
        """
        n = self.gradient.size
        _check_float64("v", v)
        if v.ndim not in (1, 2) or v.shape[0] != n:
            raise ValueError(expected("v", f"shape ({n},) or ({n}, k)", v.shape))
        product: Array = self.hessian @ v
        return product


class Surface(ABC):
    """The objective that all surfaces share; one gives a loss, its gradient and its Hessian.

    ``theta`` is a float64 array of shape (size,): anything else raises ``TypeError`` (kind, dtype)
    or ``ValueError`` (shape). Non-finite values propagate.
    """

    size: int
    dtype: np.dtype[Any] = np.dtype(np.float64)
    device: str = "cpu"
    critical_points: tuple[KnownPoint, ...] = ()

    @_propagate
    def loss(self, theta: Array) -> float:
        """L(θ)."""
        return self._loss(self._checked(theta))

    @_propagate
    def gradient(self, theta: Array) -> Array:
        """∇L(θ), shape (n,), float64."""
        return self._gradient(self._checked(theta))

    @_propagate
    def hessian(self, theta: Array) -> Array:
        """∇²L(θ), shape (n, n), float64, symmetric."""
        return self._hessian(self._checked(theta))

    @_propagate
    def linearize(self, theta: Array) -> SurfaceLinearization:
        """Loss, gradient and Hessian at ``theta``, none of which follows it afterwards."""
        theta = self._checked(theta)
        return SurfaceLinearization(self._loss(theta), self._gradient(theta), self._hessian(theta))

    def _checked(self, theta: Array) -> Array:
        _check_float64("theta", theta)
        if theta.shape != (self.size,):
            raise ValueError(expected("theta", f"shape ({self.size},)", theta.shape))
        return theta

    @abstractmethod
    def _loss(self, theta: Array) -> float: ...

    @abstractmethod
    def _gradient(self, theta: Array) -> Array: ...

    @abstractmethod
    def _hessian(self, theta: Array) -> Array: ...


class Quadratic(Surface):
    """½ θᵀAθ with A = Q diag(λ) Qᵀ; the origin is critical, its kind is the signs of λ.

    Parameters
    ----------
    eigenvalues
        λ, shape (n,), n ≥ 1, finite, in any order.
    rng
        Seed or generator of a random orthogonal Q, uniform over O(n); None leaves A diagonal.

    Attributes
    ----------
    matrix, eigenvalues, eigenvectors
        A (n, n), λ (n,) and Q (n, n); column i of Q belongs to λ_i.
    minimizer
        The origin if no λ is negative (the only one if all are positive), else None: L is
        unbounded below.

    Examples
    --------
    >>> import numpy as np
    >>> bowl = Quadratic([1.0, 3.0])
    >>> bowl.loss(np.array([2.0, 1.0])), bowl.critical_points[0].kind
    (3.5, 'minimum')
    """

    def __init__(
        self,
        eigenvalues: Sequence[float] | Array,
        rng: int | np.random.Generator | None = None,
    ) -> None:
        refuse_mask("eigenvalues", eigenvalues)
        try:
            values = np.array(eigenvalues, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise TypeError(expected("eigenvalues", "numbers", brief(eigenvalues))) from None
        if values.ndim != 1 or values.size == 0:
            raise ValueError(expected("eigenvalues", "shape (n,), n >= 1", values.shape))
        if not np.isfinite(values).all():
            raise ValueError(expected("eigenvalues", "finite values", values))
        self.size = values.size
        self.eigenvalues = values
        self.eigenvectors = np.eye(self.size) if rng is None else _orthogonal(self.size, rng)
        scaled = self.eigenvectors * values
        # One rounding apart from symmetric as it stands.
        self.matrix: Array = 0.5 * (scaled @ self.eigenvectors.T + self.eigenvectors @ scaled.T)
        origin = np.zeros(self.size)
        self.minimizer: Array | None = origin if values.min() >= 0 else None
        self.critical_points = (_known(origin, values),)

    def _loss(self, theta: Array) -> float:
        return 0.5 * float(theta @ self.matrix @ theta)

    def _gradient(self, theta: Array) -> Array:
        return self.matrix @ theta

    def _hessian(self, theta: Array) -> Array:
        return np.array(self.matrix)


class Saddle(Quadratic):
    """5x² − y², on which Newton's method ends at the saddle (Dauphin et al. 2014, arXiv:1406.2572).

    Examples
    --------
    >>> import numpy as np
    >>> Saddle().gradient(np.array([1.0, 1.0]))
    array([10., -2.])
    """

    def __init__(self) -> None:
        super().__init__([10.0, -2.0])


class FactoredLinear(Surface):
    """(1 − w₁⋯w_d)²: fitting y = x by y = w₁⋯w_d x, a network of d linear layers one unit wide.

    Where the product is 1 lies a manifold of global minima, its Hessian of rank one; the origin is
    a saddle for d = 2, and for d ≥ 3 a plateau on which the Hessian vanishes. With P₋ᵢ the product
    without w_i and P₋ᵢⱼ without w_i and w_j, the gradient is −2(1−P)P₋ᵢ and the Hessian
    2P₋ᵢP₋ⱼ − 2(1−P)P₋ᵢⱼ off, 2P₋ᵢ² on the diagonal.

    Examples
    --------
    >>> import numpy as np
    >>> FactoredLinear().hessian(np.zeros(2))
    array([[ 0., -2.],
           [-2.,  0.]])
    """

    def __init__(self, depth: int = 2) -> None:
        self.size = n = count("depth", depth, 1)
        # On the manifold H = 2ppᵀ with p_i = 1/w_i: one eigenvalue is 2 Σ 1/w_i², the others are 0.
        points = [_known(np.ones(n), [0.0] * (n - 1) + [2.0 * n])]
        if n >= 2:
            rest, flat = np.ones(n - 2), np.zeros(n - 2)
            points += [
                _known(np.r_[2.0, 0.5, rest], np.r_[flat, 0.0, 2.0 * n + 4.5]),
                _known(np.r_[0.0, 0.0, rest], np.r_[flat, -2.0, 2.0]),
            ]
        if n >= 3:
            points.append(_known(np.zeros(n), np.zeros(n)))
        self.critical_points = tuple(points)

    def _loss(self, theta: Array) -> float:
        return float((1.0 - theta.prod()) ** 2)

    def _gradient(self, theta: Array) -> Array:
        residual = 1.0 - float(theta.prod())
        return -2.0 * residual * self._without_one(theta)

    def _hessian(self, theta: Array) -> Array:
        residual = 1.0 - float(theta.prod())
        one = np.eye(self.size, dtype=np.bool_)
        without_one = self._without_one(theta)
        without_two = np.where(one[:, None] | one[None, :], 1.0, theta).prod(axis=2)
        np.fill_diagonal(without_two, 0.0)  # P is linear in each w_i
        hessian: Array = 2.0 * np.outer(without_one, without_one) - 2.0 * residual * without_two
        return hessian

    def _without_one(self, theta: Array) -> Array:
        product: Array = np.where(np.eye(self.size, dtype=np.bool_), 1.0, theta).prod(axis=1)
        return product


class MonkeySaddle(Surface):
    """x³ − 3xy²: three valleys meet at the origin, where the Hessian vanishes.

    Examples
    --------
    >>> import numpy as np
    >>> MonkeySaddle().gradient(np.array([1.0, 2.0]))
    array([ -9., -12.])
    """

    size = 2
    critical_points = (KnownPoint(np.zeros(2), "degenerate", np.zeros(2)),)

    def _loss(self, theta: Array) -> float:
        x, y = theta
        return float(x**3 - 3.0 * x * y**2)

    def _gradient(self, theta: Array) -> Array:
        x, y = theta
        return np.array([3.0 * (x**2 - y**2), -6.0 * x * y])

    def _hessian(self, theta: Array) -> Array:
        x, y = theta
        return 6.0 * np.array([[x, -y], [-y, -x]])


class Quartic(Surface):
    """Σ xᵢ⁴: a minimum that second derivatives cannot see.

    Examples
    --------
    >>> import numpy as np
    >>> Quartic(2).hessian(np.array([1.0, 0.0]))
    array([[12.,  0.],
           [ 0.,  0.]])
    """

    def __init__(self, size: int = 1) -> None:
        self.size = count("size", size, 1)
        self.critical_points = (_known(np.zeros(self.size), np.zeros(self.size)),)

    def _loss(self, theta: Array) -> float:
        return float(np.sum(theta**4))

    def _gradient(self, theta: Array) -> Array:
        return 4.0 * theta**3

    def _hessian(self, theta: Array) -> Array:
        return np.diag(12.0 * theta**2)


class Rosenbrock(Surface):
    """Σᵢ 100(xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²: a curved valley; the global minimum is at (1, …, 1).

    From n = 4 on there are further critical points, without a closed form and not listed.

    Examples
    --------
    >>> import numpy as np
    >>> Rosenbrock().loss(np.array([-1.0, 1.0]))
    4.0
    """

    def __init__(self, size: int = 2) -> None:
        self.size = count("size", size, 2)
        largest = 501.0 + np.sqrt(250601.0)
        # det H = 400 at n = 2; 501 − √250601 would cancel.
        eigenvalues = np.array([400.0 / largest, largest]) if self.size == 2 else None
        self.critical_points = (KnownPoint(np.ones(self.size), "minimum", eigenvalues),)

    def _loss(self, theta: Array) -> float:
        x, after = theta[:-1], theta[1:]
        return float(np.sum(100.0 * (after - x**2) ** 2 + (1.0 - x) ** 2))

    def _gradient(self, theta: Array) -> Array:
        x, after = theta[:-1], theta[1:]
        gap = after - x**2
        gradient = np.zeros(self.size)
        gradient[:-1] = -400.0 * x * gap - 2.0 * (1.0 - x)
        gradient[1:] += 200.0 * gap
        return gradient

    def _hessian(self, theta: Array) -> Array:
        x, after = theta[:-1], theta[1:]
        diagonal = np.zeros(self.size)
        diagonal[:-1] = 1200.0 * x**2 - 400.0 * after + 2.0
        diagonal[1:] += 200.0
        beside = -400.0 * x
        return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


class ExponentialDecay(Surface):
    """e⁻ˣ: always downhill, convex, and without a critical point.

    Examples
    --------
    >>> import numpy as np
    >>> ExponentialDecay().gradient(np.zeros(1))
    array([-1.])
    """

    size = 1

    def _loss(self, theta: Array) -> float:
        return float(np.exp(-theta[0]))

    def _gradient(self, theta: Array) -> Array:
        return -np.exp(-theta)

    def _hessian(self, theta: Array) -> Array:
        return np.exp(-theta)[:, None]


class SeparableLogistic(Surface):
    """The mean of log(1 + exp(−y xᵀw)) over rows that a plane through the origin separates.

    If some w has y xᵀw > 0 on every row, which is not checked, the loss falls along it for ever:
    no critical point, and ‖w‖ → ∞ under gradient descent.

    Parameters
    ----------
    x
        Rows, float64, shape (N, n).
    y
        −1.0 or +1.0, float64, shape (N,). Without ``x`` and ``y``: four points in the plane.

    Examples
    --------
    >>> import numpy as np
    >>> surface = SeparableLogistic()
    >>> [round(surface.loss(np.array([s, s])), 4) for s in (0.0, 1.0, 10.0)]
    [0.6931, 0.0334, 0.0]
    """

    def __init__(self, x: Array | None = None, y: Array | None = None) -> None:
        if (x is None) != (y is None):
            raise TypeError(expected("x, y", "both or neither", "one"))
        if x is None or y is None:
            x = np.array([[2.0, 1.0], [1.0, 3.0], [-1.0, -2.0], [-3.0, -1.0]])
            y = np.array([1.0, 1.0, -1.0, -1.0])
        _check_float64("x", x)
        _check_float64("y", y)
        if x.ndim != 2 or x.size == 0:
            raise ValueError(expected("x", "shape (N, n), N >= 1, n >= 1", x.shape))
        if y.shape != (len(x),):
            raise ValueError(expected("y", f"shape ({len(x)},)", y.shape))
        if not np.isin(y, (-1.0, 1.0)).all():
            raise ValueError(expected("y", "-1 or +1", np.unique(y)))
        self.size = x.shape[1]
        self._rows: Array = x * y[:, None]  # the margins are one product: m = rows @ w

    def _loss(self, theta: Array) -> float:
        return float(np.mean(np.logaddexp(0.0, -(self._rows @ theta))))

    def _gradient(self, theta: Array) -> Array:
        return -_sigmoid(-(self._rows @ theta)) @ self._rows / len(self._rows)

    def _hessian(self, theta: Array) -> Array:
        margin = self._rows @ theta
        weight = np.sqrt(_sigmoid(margin) * _sigmoid(-margin) / len(margin))
        scaled = weight[:, None] * self._rows
        hessian: Array = scaled.T @ scaled
        return hessian


def _sigmoid(z: Array) -> Array:
    sigmoid: Array = 1.0 / (1.0 + np.exp(-z))  # where exp overflows, 0 is the right limit
    return sigmoid


def _known(theta: Array, eigenvalues: Sequence[float] | Array) -> KnownPoint:
    values = np.sort(np.asarray(eigenvalues, dtype=np.float64))
    least, largest = values[0], values[-1]
    kind: Kind = "degenerate"
    if least < 0 < largest:
        kind = "saddle"
    elif least > 0:
        kind = "minimum"
    elif largest < 0:
        kind = "maximum"
    return KnownPoint(theta, kind, values)


def _orthogonal(n: int, rng: int | np.random.Generator) -> Array:
    # QR of a Gaussian matrix, with the signs that make it uniform (Mezzadri, math-ph/0609050).
    q, r = np.linalg.qr(generator(rng).standard_normal((n, n)))
    rotation: Array = q * np.where(np.diag(r) < 0, -1.0, 1.0)
    return rotation


def _check_float64(name: str, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(expected(name, "a float64 array", type(array).__name__))
    refuse_mask(name, array)
    if array.dtype != np.float64:
        raise TypeError(expected(name, "dtype float64", array.dtype))
