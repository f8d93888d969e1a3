"""Adafactor."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import brief, expected, number
from ..checks import at_least_zero
from ..options import Common, Group
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adafactor"]


def _at_most_zero(name: str, value: Any) -> None:
    if not number(name, value) <= 0.0:
        raise ValueError(expected(name, "at most 0", value))


def _at_least_one(name: str, value: Any) -> None:
    if not number(name, value) >= 1.0:
        raise ValueError(expected(name, "at least 1", value))


def _eps(name: str, value: Any) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(expected(name, "two numbers, the first or None", brief(value)))
    eps1, eps2 = value
    at_least_zero(name, 0.0 if eps1 is None else eps1)
    at_least_zero(name, eps2)


class Adafactor(Rule):
    """Adafactor (Shazeer & Stern 2018), as ``torch.optim.Adafactor``.

    The second moments of a matrix are kept for its rows R and its columns C only, averaged with
    weight t^beta2_decay;  u = g / √max(R·C / max(mean R, eps₁), eps₁²);
    p ← (1 − lr·weight_decay)p − max(eps₂, rms p)·min(lr, 1/√t) / max(1, rms u/d) · u.
    A step needs a buffer of the size of the largest parameter.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, beta2_decay : float
    eps : (float or None, float)
        None stands for the spacing of the parameter's dtype at 1.
    d, weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.ones((2, 2))
    >>> optim.Adafactor(p, lr=0.1).step(np.ones((2, 2)))
    >>> p.round(6)
    array([[0.9, 0.9],
           [0.9, 0.9]])
    """

    core = "adafactor"
    whole = True
    decoupled = True
    bounds: ClassVar = {"beta2_decay": _at_most_zero, "eps": _eps, "d": _at_least_one}
    arrays = "rows and columns"
    traffic = "a buffer of the largest tensor"
    source = "Shazeer & Stern 2018"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        if self._options.state_dtype == "bfloat16":
            raise TypeError(expected("state_dtype", "float32 or float64 for Adafactor", "bfloat16"))

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("row_var", "col_var") if len(p.shape) > 1 else ("variance",)

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name == "row_var":
            return (*shape[:-1], 1)
        return (*shape[:-2], 1, shape[-1]) if name == "col_var" else shape

    def _values(self, group: Group) -> dict[str, float]:
        eps1, eps2 = group["eps"]
        return {
            "beta2_decay": group["beta2_decay"],
            "eps1": _spacing(group) if eps1 is None else eps1,
            "eps2": eps2,
            "d": group["d"],
        }


def _spacing(group: Group) -> float:
    """The spacing at 1 of the group's parameters."""
    spacings = {"float64": sys.float_info.epsilon, "bfloat16": 2.0**-7, "float16": 2.0**-10}
    dtypes = {str(p.dtype).removeprefix("torch.") for p in group["params"]}
    if len(dtypes) > 1:
        raise ValueError(expected("eps", "a number for a group of several dtypes", None))
    return spacings.get(dtypes.pop(), 2.0**-23) if dtypes else 2.0**-23
