"""The optimizers' constructors and formulas, whatever holds the parameters.

Each class has the constructor of its namesake in ``torch.optim`` (those that PyTorch lacks: of
their papers), and names its rule in ``csrc/optim/rules`` with the numbers that the rule takes.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from ..errors import brief, expected, number, one_of
from .plan import Common, Group, Rule, Shared, at_least_zero, numbers, within_one

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "ASGD",
    "LAMB",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Lion",
    "Muon",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
]


def _betas(group: Group, count: int = 2) -> dict[str, float]:
    betas = numbers("betas", group["betas"], count)
    return {f"beta{i}": b for i, b in enumerate(betas, start=1)}


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

    counts = False
    known = ("momentum_buffer",)

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
        number("dampening", group["dampening"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(expected("nesterov", "momentum above 0 and dampening 0", "others"))

    def _rule(self, group: Group) -> str:
        return "sgd_momentum" if group["momentum"] else "sgd"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _values(self, group: Group) -> dict[str, float]:
        return {
            "momentum": group["momentum"],
            "dampening": group["dampening"],
            "nesterov": float(group["nesterov"]),
        }


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

    def _check(self, group: Group) -> None:
        super()._check(group)
        names = ("lr_decay", "initial_accumulator_value")
        at_least_zero(**{name: group[name] for name in names})

    def _rule(self, group: Group) -> str:
        return "adagrad"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("sum",)

    def _initial(self, group: Group, name: str) -> float:
        return float(group["initial_accumulator_value"])

    def _values(self, group: Group) -> dict[str, float]:
        return {"lr_decay": group["lr_decay"], "eps": group["eps"]}


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

    known = ("square_avg", "grad_avg", "momentum_buffer")

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

    def _check(self, group: Group) -> None:
        super()._check(group)
        at_least_zero(alpha=group["alpha"])

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

    def _values(self, group: Group) -> dict[str, float]:
        names = ("alpha", "eps", "momentum", "clamp")
        return {name: float(group[name]) for name in names}


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

    known = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

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

    def _check(self, group: Group) -> None:
        super()._check(group)
        within_one("betas", group["betas"], 2)

    def _rule(self, group: Group) -> str:
        return "amsgrad" if group["amsgrad"] else "adam"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if group["amsgrad"] else 2]

    def _values(self, group: Group) -> dict[str, float]:
        return {**_betas(group), "eps": group["eps"]}


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

    def _check(self, group: Group) -> None:
        super()._check(group)
        minus, plus = numbers("etas", group["etas"], 2)
        if any(math.isnan(size) for size in numbers("step_sizes", group["step_sizes"], 2)):
            raise ValueError(expected("step_sizes", "2 numbers", group["step_sizes"]))
        if not 0.0 < minus < 1.0 < plus:
            raise ValueError(expected("etas", "0 < etas[0] < 1 < etas[1]", (minus, plus)))

    def _rule(self, group: Group) -> str:
        return "rprop"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("prev", "step_size")

    def _initial(self, group: Group, name: str) -> float:
        return float(group["lr"]) if name == "step_size" else 0.0

    def _values(self, group: Group) -> dict[str, float]:
        names = ("eta_minus", "eta_plus", "smallest_step", "largest_step")
        return dict(zip(names, (*group["etas"], *group["step_sizes"]), strict=True))


class Adadelta(Rule):
    """Adadelta (Zeiler 2012), as ``torch.optim.Adadelta``.

    s ← rho·s + (1 − rho)·g²;  δ = √(a + eps) / √(s + eps) · g;  a ← rho·a + (1 − rho)·δ²;
    p ← p − lr·δ.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, rho, eps, weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Adadelta(p).step(np.array([4.0]))
    >>> p.round(4)  # √eps / √(0.1·16 + eps) · 4
    array([0.9968])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
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
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        choices = Common(
            foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable
        )
        self._start(params, defaults, {**common, **choices})

    def _check(self, group: Group) -> None:
        super()._check(group)
        if not 0.0 <= number("rho", group["rho"]) <= 1.0:
            raise ValueError(expected("rho", "within [0, 1]", group["rho"]))

    def _rule(self, group: Group) -> str:
        return "adadelta"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def _values(self, group: Group) -> dict[str, float]:
        return {"rho": group["rho"], "eps": group["eps"]}


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

    def _check(self, group: Group) -> None:
        super()._check(group)
        within_one("betas", group["betas"], 2)

    def _rule(self, group: Group) -> str:
        return "adamax"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    def _values(self, group: Group) -> dict[str, float]:
        return {**_betas(group), "eps": group["eps"]}


class NAdam(Rule):
    """Adam with Nesterov's momentum (Dozat 2016), as ``torch.optim.NAdam``.

    m and v of `Adam`;  μₜ = β₁(1 − ½·0.96^(t·momentum_decay)),  d = √v̂ + eps;
    p ← p − lr·(1 − μₜ)/(1 − μ₁⋯μₜ) · g/d − lr·μₜ₊₁/(1 − μ₁⋯μₜ₊₁) · m/d.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    eps, weight_decay, momentum_decay : float
    decoupled_weight_decay, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.NAdam(p, lr=0.1).step(np.array([7.0]))
    >>> bool(p[0] < 1.0)
    True
    """

    carried = ("mu_product",)

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
        }
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        within_one("betas", group["betas"], 2)
        at_least_zero(momentum_decay=group["momentum_decay"])

    def _rule(self, group: Group) -> str:
        return "nadam"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _values(self, group: Group) -> dict[str, float]:
        return {**_betas(group), "eps": group["eps"], "momentum_decay": group["momentum_decay"]}


class RAdam(Rule):
    """Rectified Adam (Liu et al. 2020), as ``torch.optim.RAdam``.

    m and v of `Adam`; as long as v has seen too little (ρₜ ≤ 5) p ← p − lr·m̂, later
    p ← p − lr·m̂·r·√(1 − β₂ᵗ) / (√v + eps), with the paper's rectification r.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    eps, weight_decay : float
    decoupled_weight_decay, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.RAdam(p, lr=0.1).step(np.array([2.0]))  # gradient descent at first
    >>> p.round(6)
    array([0.8])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        within_one("betas", group["betas"], 2)

    def _rule(self, group: Group) -> str:
        return "radam"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _values(self, group: Group) -> dict[str, float]:
        return {**_betas(group), "eps": group["eps"]}


class ASGD(Rule):
    """Averaged stochastic gradient descent (Polyak & Juditsky 1992), as ``torch.optim.ASGD``.

    p ← (1 − lambd·η)p − η·g;  ax ← ax + μ(p − ax);  then η = lr/(1 + lambd·lr·t)^alpha and
    μ = 1/max(1, t − t0). The average is the state ``ax``.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr, lambd, alpha, t0, weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.ASGD(p, lr=0.1, lambd=0.0).step(np.array([2.0]))
    >>> p.round(6)
    array([0.8])
    """

    carried = ("eta", "mu")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        fused: bool | None = None,
        **common: Unpack[Shared],
    ) -> None:
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        choices = Common(
            foreach=foreach, fused=fused, capturable=capturable, differentiable=differentiable
        )
        self._start(params, defaults, {**common, **choices})

    def _rule(self, group: Group) -> str:
        return "asgd"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("ax",)

    def _check(self, group: Group) -> None:
        super()._check(group)
        for name in ("lambd", "alpha", "t0"):
            number(name, group[name])

    def _values(self, group: Group) -> dict[str, float]:
        return {"lambd": group["lambd"], "alpha": group["alpha"], "t0": group["t0"]}


class Lion(Rule):
    """Evolved sign momentum (Chen et al. 2023, Algorithm 2).

    p ← (1 − lr·weight_decay)p − lr·sign(β₁m + (1 − β₁)g);  m ← β₂m + (1 − β₂)g.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float)
    weight_decay : float
    maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Lion(p, lr=0.1).step(np.array([7.0]))
    >>> p.round(6)
    array([0.9])
    """

    counts = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        within_one("betas", group["betas"], 2)

    def _decoupled(self, group: Group) -> bool:
        return True

    def _rule(self, group: Group) -> str:
        return "lion"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg",)

    def _values(self, group: Group) -> dict[str, float]:
        return _betas(group)


class Adan(Rule):
    """Adaptive Nesterov momentum (Xie et al. 2022, Algorithm 1), as its authors' implementation.

    d = g − g₋ (0 at the first step);  m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)d;
    n ← β₃n + (1 − β₃)(g + β₂d)²;  u = (m̂ + β₂v̂) / (√n̂ + eps);
    p ← (p − lr·u) / (1 + lr·weight_decay), or with ``no_prox`` (1 − lr·weight_decay)p − lr·u.

    Parameters
    ----------
    params : array, iterable of arrays, or iterable of groups
    lr : float
    betas : (float, float, float)
    eps, weight_decay : float
    no_prox, maximize : bool
    **common
        See `saddlepoint.optim`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Adan(p, lr=0.1).step(np.array([7.0]))
    >>> p.round(6)
    array([0.9])
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "no_prox": no_prox,
            "maximize": maximize,
        }
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        within_one("betas", group["betas"], 3)

    def _decoupled(self, group: Group) -> bool:
        return True

    def _rule(self, group: Group) -> str:
        return "adan"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad")

    def _values(self, group: Group) -> dict[str, float]:
        return {**_betas(group, 3), "eps": group["eps"], "no_prox": float(group["no_prox"])}


class LAMB(Rule):
    """Layerwise adaptive rates for large batches (You et al. 2020, Algorithm 2).

    r = m̂ / (√v̂ + eps) + weight_decay·p, with Adam's m̂ and v̂;  p ← p − lr·(‖p‖/‖r‖)·r, the norms
    being an array's, and their ratio 1 where either is 0.

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
    >>> p = np.array([3.0, 4.0])
    >>> optim.LAMB(p, lr=0.1, eps=0.0, weight_decay=0.0).step(np.array([1.0, 1.0]))
    >>> p.round(4)  # 0.1·5/√2 less
    array([2.6464, 3.6464])
    """

    whole = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        **common: Unpack[Common],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        self._start(params, defaults, common)

    def _check(self, group: Group) -> None:
        super()._check(group)
        within_one("betas", group["betas"], 2)

    def _decoupled(self, group: Group) -> bool:
        return True

    def _rule(self, group: Group) -> str:
        return "lamb"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _values(self, group: Group) -> dict[str, float]:
        return {**_betas(group), "eps": group["eps"]}


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

    from_zero = ("lr", "weight_decay")  # eps are two
    whole = True

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
        if not number("beta2_decay", group["beta2_decay"]) <= 0.0:
            raise ValueError(expected("beta2_decay", "at most 0", group["beta2_decay"]))
        if not number("d", group["d"]) >= 1.0:
            raise ValueError(expected("d", "at least 1", group["d"]))
        if self._options.state_dtype == "bfloat16":
            raise TypeError(expected("state_dtype", "float32 or float64 for Adafactor", "bfloat16"))
        if not isinstance(group["eps"], (tuple, list)) or len(group["eps"]) != 2:
            raise ValueError(expected("eps", "two numbers, the first or None", brief(group["eps"])))
        eps1, eps2 = group["eps"]
        at_least_zero(eps=0.0 if eps1 is None else eps1)
        at_least_zero(eps=eps2)

    def _decoupled(self, group: Group) -> bool:
        return True

    def _rule(self, group: Group) -> str:
        return "adafactor"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("row_var", "col_var") if len(p.shape) > 1 else ("variance",)

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name == "row_var":
            return (*shape[:-1], 1)
        return (*shape[:-2], 1, shape[-1]) if name == "col_var" else shape

    def _values(self, group: Group) -> dict[str, float]:
        if not isinstance(group["eps"], (tuple, list)) or len(group["eps"]) != 2:
            raise ValueError(expected("eps", "two numbers, the first or None", brief(group["eps"])))
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

    whole = True
    counts = False

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
        one_of("adjust_lr_fn", group["adjust_lr_fn"], (None, "original", "match_rms_adamw"))
        if not 0 < number("ns_steps", group["ns_steps"]) < 100 or group["ns_steps"] % 1:
            raise ValueError(expected("ns_steps", "within [1, 99]", group["ns_steps"]))
        numbers("ns_coefficients", group["ns_coefficients"], 3)
        for p in group["params"]:
            if len(p.shape) != 2:
                raise ValueError(expected("params", "matrices", f"shape {tuple(p.shape)}"))

    def _decoupled(self, group: Group) -> bool:
        return True

    def _rule(self, group: Group) -> str:
        return "muon"

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        return ("momentum_buffer",)

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
