"""RMSProp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import flag
from ..checks import at_least_zero
from ..options import Common, Group, Shared
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["RMSprop"]


class RMSprop(Rule):
    """RMSProp (Tieleman & Hinton 2012), as ``torch.optim.RMSprop``.

    s ← alpha·s + (1 − alpha)·g²;  p ← p − lr·g / (√s + eps).

    ``centered`` (Graves 2013) divides by √(s − a²) + eps with a the average of g; ``momentum``
    moves by b ← momentum·b + that quotient. On constant gradients s − a² is a rounding error that
    may be negative, and the step then NaN, as in PyTorch; ``clamp`` takes it as 0.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, alpha, eps, weight_decay, momentum : float
    centered, maximize : bool
    clamp : bool
        Keep s − a² from being negative. PyTorch has no such option.
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.RMSprop(p, lr=0.01).step(np.array([4.0]))  # the first step is lr / √(1 − alpha)
    >>> p.round(6)
    array([0.9])
    """

    core = "rmsprop"
    states = ("square_avg", "grad_avg", "momentum_buffer")
    bounds: ClassVar = {"alpha": at_least_zero, "centered": flag, "clamp": flag}
    variants: ClassVar = {
        "": {},
        "momentum or centered": {"centered": True},
        "both": {"centered": True, "momentum": 0.9},
    }
    source = "Tieleman & Hinton 2012, Graves 2013"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        clamp: bool = False,
        fused: bool | None = None,
        **common: Unpack[Shared],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "clamp": clamp,
        }
        choices = Common(
            foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable
        )
        self._start(params, defaults, {**common, **choices})

    def _rule(self, group: Group) -> str:
        centered = "_centered" if group["centered"] else ""
        return f"rmsprop{centered}{'_momentum' if group['momentum'] else ''}"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        names = ["square_avg"]
        if group["centered"]:
            names.append("grad_avg")
        if group["momentum"]:
            names.append("momentum_buffer")
        return tuple(names)
