"""Adan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import flag
from ..options import Common
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adan"]


class Adan(Rule):
    """Adaptive Nesterov momentum (Xie et al. 2022, Algorithm 1), as its authors' implementation.

    d = g − g₋ (0 at the first step);  m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)d;
    n ← β₃n + (1 − β₃)(g + β₂d)²;  u = (m̂ + β₂v̂) / (√n̂ + eps);
    p ← (p − lr·u) / (1 + lr·weight_decay), or with ``no_prox`` (1 − lr·weight_decay)p − lr·u.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float, float)
    eps, weight_decay : float
    no_prox, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Adan(p, lr=0.1).step(np.array([7.0]))
    >>> p.round(6)
    array([0.9])
    """

    core = "adan"
    states = ("exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad")
    betas = 3
    decoupled = True
    bounds: ClassVar = {"no_prox": flag}
    fused_in_torch = "–"
    source = "Xie et al. 2022"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "no_prox": no_prox,
            "maximize": maximize,
        }
        self._start(params, defaults, common)
