"""AdaGrad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..checks import at_least_zero
from ..options import Common, Group, Shared
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adagrad"]


class Adagrad(Rule):
    """AdaGrad (Duchi, Hazan & Singer 2011), as ``torch.optim.Adagrad``.

    s ← s + g²;  p ← p − lr/(1 + (t − 1)·lr_decay) · g / (√s + eps).

    The lectures' η/σ with σ the root mean square of all gradients is this with η/√(t + 1) as the
    rate: the mean's 1/(t + 1) and the rate's cancel.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, lr_decay, weight_decay, initial_accumulator_value, eps : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Adagrad(p, lr=0.5).step(np.array([4.0]))  # the first step is lr sign(g)
    >>> p.round(6)
    array([0.5])
    """

    core = "adagrad"
    states = ("sum",)
    bounds: ClassVar = {"lr_decay": at_least_zero, "initial_accumulator_value": at_least_zero}
    fused_in_torch = "yes"
    source = "Duchi et al. 2011"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
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
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "maximize": maximize,
        }
        choices = Common(
            foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable
        )
        self._start(params, defaults, {**common, **choices})

    def _initial(self, group: Group, name: str) -> float:
        return float(group["initial_accumulator_value"])
