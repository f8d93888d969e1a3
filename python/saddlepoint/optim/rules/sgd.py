"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import expected, flag, number
from ..options import Common, Group
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["SGD"]


class SGD(Rule):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``.

    g ← g + weight_decay·p;  b ← momentum·b + (1 − dampening)·g, with b = g at the first step;
    p ← p − lr·b, or p − lr·(g + momentum·b) with ``nesterov``.

    The rate is outside the buffer. The lectures' m ← λm − ηg, p ← p + m has it inside: the same
    path with m = −η·b as long as η is constant, another one when it changes. The lectures'
    Nesterov step takes the gradient at the look-ahead point W + βΔ; with p = W + βΔ it is
    ``nesterov=True`` (Sutskever et al. 2013).

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    momentum, dampening, weight_decay : float
    nesterov, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0, 2.0])
    >>> optim.SGD(p, lr=0.5).step(np.array([1.0, 1.0]))
    >>> p
    array([0.5, 1.5])
    """

    core = "sgd"
    states = ("momentum_buffer",)
    counts = False
    bounds: ClassVar = {"dampening": number, "nesterov": flag}
    variants: ClassVar = {"": {}, "momentum or Nesterov": {"momentum": 0.9}}
    fused_in_torch = "yes"
    source = "Robbins & Monro 1951; Polyak 1964, Sutskever et al. 2013"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(expected("nesterov", "momentum above 0 and dampening 0", "others"))

    def _rule(self, group: Group) -> str:
        return "sgd_momentum" if group["momentum"] else "sgd"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()
