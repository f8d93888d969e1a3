"""Whether Adam is at the edge of its stability: the curvature that its steps see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..curvature import CurvatureOperator, eigsh, preconditioned
from ..errors import expected
from ..results import COLORS, Result, panels
from .objective import ModuleObjective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["AdamStability", "adam_diagonal", "adam_stability"]


@dataclass(frozen=True)
class AdamStability(Result):
    """The sharpness that Adam's steps see, beside its limit.

    Attributes
    ----------
    sharpness, residual : float
        λmax of P^(−1/2) H P^(−1/2), P = (√v̂ + ε) / η, and its error bound.
    limit : float
        2 (1 + β₁) / (1 − β₁): beyond it steps with frozen second moments grow along that direction.
    products : int
    """

    sharpness: float
    residual: float
    limit: float
    products: int

    @property
    def stable(self) -> bool:
        """Whether the sharpness is certainly below the limit."""
        return self.sharpness + self.residual < self.limit

    def __str__(self) -> str:
        where = "below" if self.stable else "at or beyond"
        return (
            f"preconditioned sharpness {self.sharpness:.4g} ± {self.residual:.1g}, {where} "
            f"Adam's limit {self.limit:.4g} ({self.products} products)"
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """The sharpness over the limit."""
        figure, (panel,) = panels(ax, 1, 1)
        color = COLORS["blue" if self.stable else "orange"]
        panel.barh([0], [self.sharpness], xerr=[self.residual], color=color)
        panel.axvline(self.limit, color=COLORS["muted"], ls="--")
        panel.set(xlabel="preconditioned sharpness", yticks=[], title=str(self))
        return figure


def adam_diagonal(objective: ModuleObjective, optimizer: Any) -> tuple[Tensor, float]:
    """P = (√v̂ + ε) / η of an Adam-like optimizer in the order of θ, and its β₁.

    Parameters
    ----------
    objective : ModuleObjective
    optimizer : torch.optim.Adam, AdamW or NAdam, or this package's
        It has stepped the module's parameters.

    Returns
    -------
    diagonal : (n,) tensor of the objective's dtype
    beta1 : float

    Raises
    ------
    TypeError, ValueError
        For an optimizer without second moments, or that has not stepped all of the parameters.
    """
    groups = getattr(optimizer, "param_groups", None)
    if groups is None or not all("betas" in group for group in groups):
        got = type(optimizer).__name__
        raise TypeError(expected("optimizer", "one like Adam, with betas and second moments", got))
    of = {id(p): group for group in groups for p in group["params"]}
    parts, firsts = [], set()
    for name in objective.layout.names:
        p = objective.module.get_parameter(name)
        state = optimizer.state.get(p, {})
        if id(p) not in of or "exp_avg_sq" not in state:
            raise ValueError(
                expected("optimizer", f"one that has stepped {name}", "no state of it")
            )
        group = of[id(p)]
        beta1, beta2 = (float(b) for b in group["betas"])
        moments = state.get("max_exp_avg_sq", state["exp_avg_sq"]).detach().double()
        corrected = moments / (1.0 - beta2 ** float(state["step"]))
        parts.append((corrected.sqrt() + float(group["eps"])) / float(group["lr"]))
        firsts.add(beta1)
    if len(firsts) > 1:
        raise ValueError(expected("optimizer", "one β₁ for all parameters", sorted(firsts)))
    diagonal = torch.cat([part.reshape(-1) for part in parts])
    return diagonal.to(objective.layout.device, objective.layout.dtype), firsts.pop()


def adam_stability(
    H: CurvatureOperator,
    optimizer: Any,
    max_products: int | None = None,
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> AdamStability:
    """How near Adam is to the edge of its stability.

    Parameters
    ----------
    H : HessianOperator or GaussNewtonOperator
        Of `objective`, at a θ that is a tensor.
    optimizer : torch.optim.Adam, AdamW or NAdam, or this package's
        It has stepped the module's parameters. Decoupled weight decay is left out.
    max_products : int, optional
        Budget of Hessian products.
    rng : int, Generator or None

    Returns
    -------
    AdamStability

    Raises
    ------
    TypeError, ValueError
        For another operator, or an optimizer without second moments of all parameters.

    Notes
    -----
    Training with Adam brings the preconditioned sharpness up to this limit and keeps it there
    (Cohen et al. 2022, Adaptive gradient methods at the edge of stability): 38 at β₁ = 0.9.

    Examples
    --------
    >>> import torch, saddlepoint as sp, saddlepoint.torch as st
    >>> model = torch.nn.Linear(2, 1)
    >>> adam = torch.optim.Adam(model.parameters())
    >>> x, y = torch.eye(2), torch.ones(2, 1)
    >>> torch.nn.functional.mse_loss(model(x), y).backward()
    >>> adam.step()
    >>> loss = st.objective(model, torch.nn.functional.mse_loss, (x, y))
    >>> st.adam_stability(sp.hessian(loss, st.get_theta(model)), adam).stable
    True
    """
    objective = getattr(H, "objective", None)
    if not isinstance(objective, ModuleObjective):
        what = "an operator of saddlepoint.torch.objective"
        raise TypeError(expected("H", what, type(H).__name__))
    diagonal, beta1 = adam_diagonal(objective, optimizer)
    operator = preconditioned(H, diagonal)
    pairs = eigsh(
        operator, 1, "LA", max_products=max_products, rng=rng, show_progress=show_progress
    )
    limit = 2.0 * (1.0 + beta1) / (1.0 - beta1) if beta1 < 1.0 else math.inf
    return AdamStability(
        float(pairs.values[0]), float(pairs.residuals[0]), limit, operator.products
    )
