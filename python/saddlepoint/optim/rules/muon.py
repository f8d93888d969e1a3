"""Muon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import expected, flag, number, one_of
from ..checks import numbers
from ..options import Common, Group
from .rule import Rule

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Muon"]


def _adjust_lr_fn(name: str, value: Any) -> None:
    one_of(name, value, (None, "original", "match_rms_adamw"))


def _ns_steps(name: str, value: Any) -> None:
    if not 0 < number(name, value) < 100 or value % 1:
        raise ValueError(expected(name, "within [1, 99]", value))


def _coefficients(name: str, value: Any) -> None:
    numbers(name, value, 3)


class Muon(Rule):
    """Momentum orthogonalized by Newton-Schulz steps (Jordan et al. 2024), as ``torch.optim.Muon``.

    b ← b + (1 − momentum)(g − b);  u = g + momentum·(b − g) with ``nesterov``, else b;
    X = u / max(‖u‖, eps), then ns_steps times X ← (a + b·G + c·G²)X with G = XXᵀ;
    p ← (1 − lr·weight_decay)p − lr·r·X, with r = √max(1, rows/columns), or
    0.2·√max(rows, columns) with ``adjust_lr_fn="match_rms_adamw"``.

    For matrices only. PyTorch iterates in bfloat16; here it is float32, or float64 for float64
    parameters. A step needs buffers of twice the size of the largest parameter and three times its
    shorter side squared.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, weight_decay, momentum : float
    nesterov : bool
    ns_coefficients : (float, float, float)
    eps : float
    ns_steps : int
    adjust_lr_fn : "original", "match_rms_adamw" or None
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.zeros((2, 2))
    >>> optim.Muon(p, lr=0.1, ns_steps=30, ns_coefficients=(1.5, -0.5, 0.0)).step(
    ...     np.array([[3.0, 0.0], [0.0, 4.0]]))
    >>> p.round(6) + 0.0  # the nearest orthogonal matrix, at the rate
    array([[-0.1,  0. ],
           [ 0. , -0.1]])
    """

    core = "muon"
    states = ("momentum_buffer",)
    counts = False
    whole = True
    decoupled = True
    bounds: ClassVar = {
        "nesterov": flag,
        "adjust_lr_fn": _adjust_lr_fn,
        "ns_steps": _ns_steps,
        "ns_coefficients": _coefficients,
    }
    traffic = "buffers of twice the largest tensor and three times its shorter side squared"
    source = "Jordan et al. 2024"

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "maximize": maximize,
        }
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        for p in group["params"]:
            if len(p.shape) != 2:
                raise ValueError(expected("params", "matrices", f"shape {tuple(p.shape)}"))

    def _values(self, group: Group) -> dict[str, float]:
        a, b, c = group["ns_coefficients"]
        return {
            "momentum": group["momentum"],
            "nesterov": float(group["nesterov"]),
            "a": a,
            "b": b,
            "c": c,
            "eps": group["eps"],
            "ns_steps": float(group["ns_steps"]),
            "match_rms": float(group["adjust_lr_fn"] == "match_rms_adamw"),
        }
