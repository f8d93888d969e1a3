"""LAMB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import Common
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LAMB"]


class LAMB(Rule):
    """Layerwise adaptive rates for large batches (You et al. 2020, Algorithm 2).

    r = m̂ / (√v̂ + eps) + weight_decay·p, with Adam's m̂ and v̂;  p ← p − lr·(‖p‖/‖r‖)·r, the norms
    being an array's, and their ratio 1 where either is 0.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    eps, weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([3.0, 4.0])
    >>> optim.LAMB(p, lr=0.1, eps=0.0, weight_decay=0.0).step(np.array([1.0, 1.0]))
    >>> p.round(4)  # 0.1·5/√2 less
    array([2.6464, 3.6464])
    """

    core = "lamb"
    states = ("exp_avg", "exp_avg_sq")
    betas = 2
    whole = True
    decoupled = True
    traffic = "44 (two passes)"
    fused_in_torch = "–"
    source = "You et al. 2020"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        self._start(params, defaults, common)
