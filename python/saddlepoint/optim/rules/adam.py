"""Adam and AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import flag
from ..options import Common, Group
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adam", "AdamW"]


class Adam(Rule):
    """Adam (Kingma & Ba 2015), as ``torch.optim.Adam``.

    m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²;
    p ← p − lr·m̂ / (√v̂ + eps), with m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).

    ``weight_decay`` adds weight_decay·p to g, or shrinks p as in `AdamW` with
    ``decoupled_weight_decay``. With ``amsgrad`` the largest v so far stands for v (Reddi, Kale &
    Kumar 2018, as PyTorch: the maximum of the raw v, corrected afterwards). In float32 the bits of
    PyTorch's fused CPU kernel, save for the last size mod 8 elements of the pieces that it cuts a
    tensor into for its threads, which it rounds otherwise than all others.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    eps, weight_decay : float
    amsgrad, maximize, decoupled_weight_decay : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Adam(p, lr=0.1).step(np.array([7.0]))  # the first step is lr sign(g)
    >>> p.round(6)
    array([0.9])
    """

    core = "adam"
    states = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    betas = 2
    bounds: ClassVar = {"amsgrad": flag}
    variants: ClassVar = {"": {}, "AMSGrad": {"amsgrad": True}}
    fused_in_torch = "yes"
    source = "Kingma & Ba 2015; Reddi et al. 2018"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        self._start(params, defaults, common)

    def _rule(self, group: Group) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if group["amsgrad"] else 2]


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as ``torch.optim.AdamW``.

    p ← (1 − lr·weight_decay)·p before the step of `Adam`.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    eps, weight_decay : float
    amsgrad, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.AdamW(p, lr=0.1, weight_decay=0.5).step(np.array([7.0]))
    >>> p.round(6)
    array([0.85])
    """

    source = "Loshchilov & Hutter 2019; Reddi et al. 2018"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
            **common,
        )
