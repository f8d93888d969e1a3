"""Adam with Nesterov's momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..checks import at_least_zero
from ..options import Common
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["NAdam"]


class NAdam(Rule):
    """Adam with Nesterov's momentum (Dozat 2016), as ``torch.optim.NAdam``.

    m and v of `Adam`;  μₜ = β₁(1 − ½·0.96^(t·momentum_decay)),  d = √v̂ + eps;
    p ← p − lr·(1 − μₜ)/(1 − μ₁⋯μₜ) · g/d − lr·μₜ₊₁/(1 − μ₁⋯μₜ₊₁) · m/d.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    eps, weight_decay, momentum_decay : float
    decoupled_weight_decay, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.NAdam(p, lr=0.1).step(np.array([7.0]))
    >>> bool(p[0] < 1.0)
    True
    """

    core = "nadam"
    states = ("exp_avg", "exp_avg_sq")
    betas = 2
    carried = ("mu_product",)
    bounds: ClassVar = {"momentum_decay": at_least_zero}
    source = "Dozat 2016"

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        self._start(params, defaults, common)
