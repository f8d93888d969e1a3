"""The Hessian of an objective at a point, as a linear operator."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import expected
from ..objective import Linearization, Objective, check_point
from ..vector import (
    ArrayLike,
    axpy,
    copy,
    dot,
    gather,
    in_float64,
    norm,
    owned,
    random,
    scale,
)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

__all__ = ["HessianOperator", "Verification", "hessian"]


@dataclass(frozen=True)
class Verification:
    """How far an operator is from the Hessian it claims to be.

    Attributes
    ----------
    ok : bool
    finite_difference : float
        ‖Hv − (g(θ+hv) − g(θ−hv))/2h‖ / ‖Hv‖ for a random v.
    symmetry : float
        |uᵀHv − vᵀHu| / (‖u‖ ‖Hv‖).
    repeatability : float
        ‖Hv − Hv‖ / ‖Hv‖ of the same product computed twice.
    tolerances : dict
        What each is held against.
    """

    ok: bool
    finite_difference: float
    symmetry: float
    repeatability: float
    tolerances: dict[str, float]

    def __str__(self) -> str:
        lines = [
            f"{name.replace('_', ' ')}: {getattr(self, name):.1e} (tolerance {tolerance:.1e})"
            for name, tolerance in self.tolerances.items()
        ]
        return "\n".join(["verified" if self.ok else "NOT the Hessian", *lines])


_counting = threading.Lock()  # of products, which threads may ask for together


class HessianOperator:
    """H = ∇²L(θ), by its products.

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
    """

    def __init__(self, objective: Objective, theta: ArrayLike) -> None:
        check_point(objective, theta)
        if objective.size < 1:
            raise ValueError(expected("objective", "at least one parameter", objective.size))
        self.objective = objective
        self.theta = copy(theta)
        self._linearization: Linearization = objective.linearize(self.theta)
        self.loss = float(self._linearization.loss)
        self.gradient = owned(self._linearization.gradient, self.theta, "gradient")
        self.shape = (objective.size, objective.size)
        self.dtype = objective.dtype
        self.products = 0

    def matvec(self, v: ArrayLike) -> ArrayLike:
        """H v for v (n,) or (n, 1), in the shape of v."""
        return self._product(v, 1)

    rmatvec = matvec  # H is symmetric

    def matmat(self, v: ArrayLike) -> ArrayLike:
        """H V for a block (n, k)."""
        return self._product(v, int(v.shape[1]))

    def _product(self, v: ArrayLike, directions: int) -> ArrayLike:
        with _counting:
            self.products += directions
        return owned(self._linearization.hvp(v), self.theta, "H")

    def __matmul__(self, v: ArrayLike) -> ArrayLike:
        return self.matvec(v) if len(v.shape) == 1 else self.matmat(v)

    def dense(self, block: int = 64) -> NDArray[Any]:
        """H as an (n, n) host array in float64, from ``block`` products at a time."""
        n = self.shape[0]
        result = np.empty((n, n))
        for begin in range(0, n, block):
            columns = np.arange(begin, min(begin + block, n))
            unit = np.zeros((n, len(columns)), self.dtype, order="F")
            unit[columns, columns - begin] = 1.0
            result[:, columns] = gather(self.matmat(self._like_theta(unit)))
        return result

    def _like_theta(self, x: NDArray[Any]) -> ArrayLike:
        """A host array as the kind of array that θ is."""
        if isinstance(self.theta, np.ndarray):
            return x
        if hasattr(self.theta, "new_tensor"):
            return self.theta.new_tensor(x)
        return type(self.theta).from_numpy(x, self.theta.device)

    def to_scipy(self) -> LinearOperator:
        """A ``scipy.sparse.linalg.LinearOperator`` on host arrays."""
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError("scipy is not installed: pip install scipy") from error

        def product(v: NDArray[Any]) -> NDArray[Any]:
            x = np.asarray(v, self.dtype, order="F")
            return gather(self @ self._like_theta(x))

        return LinearOperator(
            self.shape, matvec=product, rmatvec=product, matmat=product, dtype=self.dtype
        )

    def _gradient_difference(self, v: ArrayLike) -> tuple[NDArray[np.float64], float]:
        """(g(θ+hv) − g(θ−hv)) / 2h on the host, and the eps of the precision it was taken in."""
        objective, theta = self.objective, self.theta
        if self.dtype != np.float64 and hasattr(objective, "astype"):
            objective = objective.astype(np.float64)
            theta, v = in_float64(theta), in_float64(v)
        eps = float(np.finfo(objective.dtype).eps)
        h = eps ** (1 / 3) * max(1.0, norm(theta))
        plus, minus = copy(theta), copy(theta)
        axpy(h, v, plus)
        axpy(-h, v, minus)
        ahead, behind = objective.gradient(plus), objective.gradient(minus)
        return (gather(ahead).astype(np.float64) - gather(behind)) / (2.0 * h), eps

    def verify(self, rng: int | np.random.Generator | None = 0) -> Verification:
        """Check products against differences of the gradient, their symmetry, and repeatability.

        The difference has error O(h²) + O(eps/h), so h = eps^(1/3) max(1, ‖θ‖). It is taken in
        float64 where the objective can change its precision (``astype``), since in float32 the
        kinks of a ReLU between θ ± hv drown it. Its tolerance is 100 eps^(2/3) for the difference
        and 1000 eps of the products' own dtype, which symmetry and repeatability are held to.
        """
        eps = float(np.finfo(self.dtype).eps)
        generator = np.random.default_rng(rng)
        u, v = random(self.theta, generator), random(self.theta, generator)
        for x in (u, v):
            scale(1.0 / norm(x), x)
        hv, again, hu = self.matvec(v), self.matvec(v), self.matvec(u)
        size = norm(hv)
        floor = size if size > 0.0 else 1.0

        difference, difference_eps = self._gradient_difference(v)
        difference -= gather(hv)
        axpy(-1.0, hv, again)

        found = {
            "finite_difference": float(np.linalg.norm(difference)) / floor,
            "symmetry": abs(dot(u, hv) - dot(v, hu)) / floor,
            "repeatability": norm(again) / floor,
        }
        tolerances = {
            "finite_difference": 100.0 * difference_eps ** (2 / 3) + 1000.0 * eps,
            "symmetry": 1000.0 * eps,
            "repeatability": 1000.0 * eps,
        }
        ok = all(found[name] <= tolerances[name] for name in found)
        return Verification(ok=ok, tolerances=tolerances, **found)


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
