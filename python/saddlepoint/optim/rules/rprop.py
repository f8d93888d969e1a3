"""Resilient propagation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import expected
from ..checks import numbers
from ..options import Common, Group
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Rprop"]


def _etas(name: str, value: Any) -> None:
    minus, plus = numbers(name, value, 2)
    if not 0.0 < minus < 1.0 < plus:
        raise ValueError(expected(name, "0 < etas[0] < 1 < etas[1]", (minus, plus)))


def _step_sizes(name: str, value: Any) -> None:
    if any(math.isnan(size) for size in numbers(name, value, 2)):
        raise ValueError(expected(name, "2 numbers", value))


class Rprop(Rule):
    """Resilient propagation (Riedmiller & Braun 1993), as ``torch.optim.Rprop``.

    Every element has a step of its own, lr at first: times etas[1] where the gradient kept its
    sign, times etas[0] where it changed, within ``step_sizes``. p moves by it against the
    gradient's sign; where the sign changed p stays, and the next step size is kept (iRprop⁻,
    Igel & Hüsken 2000). The path does not depend on the gradient's scale.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    etas, step_sizes : (float, float)
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optimizer = optim.Rprop(p, lr=0.1)
    >>> for gradient in (3.0, 1e-3):
    ...     optimizer.step(np.array([gradient]))
    >>> p.round(6)  # 1 − 0.1 − 1.2·0.1
    array([0.78])
    """

    core = "rprop"
    states = ("prev", "step_size")
    bounds: ClassVar = {"etas": _etas, "step_sizes": _step_sizes}
    source = "Riedmiller & Braun 1993"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {"lr": lr, "etas": etas, "step_sizes": step_sizes, "maximize": maximize}
        self._start(params, defaults, common)

    def _initial(self, group: Group, name: str) -> float:
        return float(group["lr"]) if name == "step_size" else 0.0

    def _values(self, group: Group) -> dict[str, float]:
        names = ("eta_minus", "eta_plus", "smallest_step", "largest_step")
        return dict(zip(names, (*group["etas"], *group["step_sizes"]), strict=True))
