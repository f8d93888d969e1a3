"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import number
from ..options import Common, Shared
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ASGD"]


class ASGD(Rule):
    """Averaged stochastic gradient descent (Polyak & Juditsky 1992), as ``torch.optim.ASGD``.

    p ← (1 − lambd·η)p − η·g;  ax ← ax + μ(p − ax);  then η = lr/(1 + lambd·lr·t)^alpha and
    μ = 1/max(1, t − t0). The average is the state ``ax``.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, lambd, alpha, t0, weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.ASGD(p, lr=0.1, lambd=0.0).step(np.array([2.0]))
    >>> p.round(6)
    array([0.8])
    """

    core = "asgd"
    states = ("ax",)
    carried = ("eta", "mu")
    bounds: ClassVar = {"lambd": number, "alpha": number, "t0": number}
    source = "Polyak & Juditsky 1992"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        fused: bool | None = None,
        **common: Unpack[Shared],
    ) -> None:
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        choices = Common(
            foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable
        )
        self._start(params, defaults, {**common, **choices})
