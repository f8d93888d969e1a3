"""Adamax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..options import Common, Shared
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adamax"]


class Adamax(Rule):
    """Adamax (Kingma & Ba 2015, Algorithm 2), as ``torch.optim.Adamax``.

    m ← β₁m + (1 − β₁)g;  u ← max(β₂u, |g| + eps);  p ← p − lr/(1 − β₁ᵗ) · m/u.

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
    >>> p = np.array([1.0])
    >>> optim.Adamax(p, lr=0.1).step(np.array([7.0]))
    >>> p.round(6)
    array([0.9])
    """

    core = "adamax"
    states = ("exp_avg", "exp_inf")
    betas = 2
    source = "Kingma & Ba 2015"

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        choices = Common(
            foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable
        )
        self._start(params, defaults, {**common, **choices})
