"""Rectified Adam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import Common
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RAdam"]


class RAdam(Rule):
    """Rectified Adam (Liu et al. 2020), as ``torch.optim.RAdam``.

    m and v of `Adam`; as long as v has seen too little (ρₜ ≤ 5) p ← p − lr·m̂, later
    p ← p − lr·m̂·r·√(1 − β₂ᵗ) / (√v + eps), with the paper's rectification r.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    eps, weight_decay : float
    decoupled_weight_decay, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.RAdam(p, lr=0.1).step(np.array([2.0]))  # gradient descent at first
    >>> p.round(6)
    array([0.8])
    """

    core = "radam"
    states = ("exp_avg", "exp_avg_sq")
    betas = 2
    source = "Liu et al. 2020"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
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
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        self._start(params, defaults, common)
