"""Lion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import Common
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Lion"]


class Lion(Rule):
    """Evolved sign momentum (Chen et al. 2023, Algorithm 2).

    p ← (1 − lr·weight_decay)p − lr·sign(β₁m + (1 − β₁)g);  m ← β₂m + (1 − β₂)g.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Lion(p, lr=0.1).step(np.array([7.0]))
    >>> p.round(6)
    array([0.9])
    """

    core = "lion"
    states = ("exp_avg",)
    betas = 2
    counts = False
    decoupled = True
    fused_in_torch = "–"
    source = "Chen et al. 2023"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        self._start(params, defaults, common)
