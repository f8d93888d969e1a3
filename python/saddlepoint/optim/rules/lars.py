"""LARS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..checks import at_least_zero
from ..options import Common
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LARS"]


class LARS(Rule):
    """Layerwise adaptive rates (You, Gitman & Ginsburg 2017, Algorithm 1).

    λ = trust_coefficient·‖p‖ / (‖g‖ + weight_decay·‖p‖ + eps), 1 where one of the norms is 0;
    b ← momentum·b + lr·λ·(g + weight_decay·p);  p ← p − b, the norms being an array's.

    The rate is inside the buffer, as in the paper; PyTorch's momentum has it outside.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, momentum, weight_decay, trust_coefficient, eps : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([3.0, 4.0])
    >>> optim.LARS(p, lr=1.0, trust_coefficient=0.1, eps=0.0).step(np.array([0.0, 2.0]))
    >>> p.round(4)  # 0.1·5/2·g less
    array([3. , 3.5])
    """

    core = "lars"
    states = ("momentum_buffer",)
    counts = False
    whole = True
    bounds: ClassVar = {"trust_coefficient": at_least_zero}
    traffic = "32 (two passes)"
    fused_in_torch = "–"
    source = "You et al. 2017"

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "maximize": maximize,
        }
        self._start(params, defaults, common)
