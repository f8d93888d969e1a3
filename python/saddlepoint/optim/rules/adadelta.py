"""Adadelta."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..checks import within
from ..options import Common, Shared
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adadelta"]


class Adadelta(Rule):
    """Adadelta (Zeiler 2012), as ``torch.optim.Adadelta``.

    s ← rho·s + (1 − rho)·g²;  δ = √(a + eps) / √(s + eps) · g;  a ← rho·a + (1 − rho)·δ²;
    p ← p − lr·δ.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, rho, eps, weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Adadelta(p).step(np.array([4.0]))
    >>> p.round(4)  # √eps / √(0.1·16 + eps) · 4
    array([0.9968])
    """

    core = "adadelta"
    states = ("square_avg", "acc_delta")
    bounds: ClassVar = {"rho": within(0.0, 1.0)}
    source = "Zeiler 2012"

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        **common: Unpack[Shared],
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        choices = Common(
            foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable
        )
        self._start(params, defaults, {**common, **choices})
