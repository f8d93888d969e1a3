"""The Gauss-Newton matrix of an objective at a point."""

from __future__ import annotations

from ..errors import expected
from ..objective import Objective
from ..vector import ArrayLike
from .operator import CurvatureOperator

__all__ = ["GaussNewtonOperator", "gauss_newton"]


class GaussNewtonOperator(CurvatureOperator):
    """G = Σ Jᵀ H_L J, by its products: the Hessian without the curvature of the network itself.

    J is the Jacobian of the network's outputs, H_L the Hessian of the loss by them. It has no
    negative eigenvalues where the loss is convex in the outputs, and is then the Fisher matrix of
    the model that the loss is the negative log-likelihood of.

    Parameters
    ----------
    objective : Objective
        One whose linearization has ``ggnvp``.
    theta : (n,) array of the objective's dtype
    """

    def __init__(self, objective: Objective, theta: ArrayLike) -> None:
        super().__init__(objective, theta)
        if not hasattr(self._linearization, "ggnvp"):
            what = "one with Gauss-Newton products (of saddlepoint.torch.objective, say)"
            raise TypeError(expected("objective", what, type(objective).__name__))

    def _times(self, v: ArrayLike) -> ArrayLike:
        product: ArrayLike = self._linearization.ggnvp(v)  # type: ignore[attr-defined]
        return product


def gauss_newton(objective: Objective, theta: ArrayLike) -> GaussNewtonOperator:
    """The Gauss-Newton matrix of an objective at θ, for `eigsh`, `spectral_density` and `trace`.

    Parameters
    ----------
    objective : Objective
        One whose linearization has ``ggnvp``: those of `saddlepoint.torch.objective` with a loss of
        (output, target).
    theta : (n,) array of the objective's dtype

    Raises
    ------
    TypeError
        For another objective.

    Notes
    -----
    Schraudolph (2002). For squared errors and cross-entropy it is also the Fisher matrix.

    Examples
    --------
    >>> import torch, saddlepoint as sp, saddlepoint.torch as st
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.eye(2), torch.zeros(2, 1)
    >>> loss = st.objective(model, torch.nn.functional.mse_loss, (x, y))
    >>> (sp.gauss_newton(loss, st.get_theta(model)) @ torch.ones(2)).tolist()  # XᵀX, for n = 2
    [1.0, 1.0]
    """
    return GaussNewtonOperator(objective, theta)
