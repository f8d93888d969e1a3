"""A curvature matrix as an adaptive method sees it."""

from __future__ import annotations

import numpy as np

from ..errors import expected
from ..kinds import check_array, kind_of
from ..vector import ArrayLike, gather, owned
from .operator import CurvatureOperator

__all__ = ["PreconditionedOperator", "preconditioned"]


class PreconditionedOperator(CurvatureOperator):
    """P^(−1/2) A P^(−1/2) for a diagonal P above 0; see `preconditioned`.

    Attributes
    ----------
    diagonal : (n,) array
        That of P.
    """

    def __init__(self, whole: CurvatureOperator, diagonal: ArrayLike) -> None:
        if not isinstance(whole, CurvatureOperator):
            what = "a Hessian or Gauss-Newton operator"
            raise TypeError(expected("H", what, type(whole).__name__))
        check_array("diagonal", diagonal)
        self.diagonal = owned(diagonal, whole.theta, "diagonal", whole.shape[:1])
        if not kind_of(whole.theta).arithmetic:
            what = "arrays that can be multiplied, of NumPy or PyTorch"
            raise TypeError(expected("theta", what, type(whole.theta).__name__))
        host = gather(self.diagonal)
        if not (np.isfinite(host).all() and (host > 0.0).all()):
            raise ValueError(expected("diagonal", "finite numbers above 0", f"{host.min():.3g}"))
        self._whole, self._root = whole, self.diagonal**-0.5
        self.objective, self.loss = whole.objective, whole.loss
        self.theta, self.gradient = whole.theta, self._root * whole.gradient
        self.dtype, self.eps, self.shape, self.products = whole.dtype, whole.eps, whole.shape, 0

    def _times(self, v: ArrayLike) -> ArrayLike:
        root = self._root if len(v.shape) == 1 else self._root[:, None]
        return root * (self._whole @ (root * v))


def preconditioned(H: CurvatureOperator, diagonal: ArrayLike) -> PreconditionedOperator:
    """H in the coordinates in which an adaptive method's step is a plain gradient step.

    Parameters
    ----------
    H : HessianOperator or GaussNewtonOperator
        At a θ of NumPy or PyTorch.
    diagonal : (n,) array
        P of a step θ − P⁻¹g: √v̂ + ε over the learning rate for Adam.

    Returns
    -------
    PreconditionedOperator
        P^(−1/2) H P^(−1/2), for `eigsh` and the others.

    Raises
    ------
    TypeError, ValueError
        For what is no operator, a `Vector`, another shape, or numbers that are not above 0.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> H = sp.hessian(sp.surfaces.Saddle(), np.zeros(2))  # diag(10, −2)
    >>> sp.preconditioned(H, np.array([10.0, 1.0])).dense().tolist()
    [[1.0, 0.0], [0.0, -2.0]]
    """
    return PreconditionedOperator(H, diagonal)
