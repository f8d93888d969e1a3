"""Optimizers with the constructors of ``torch.optim``; one pass over memory a step.

Each class names its rule in ``csrc/optim/rules`` and the numbers the rule wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import device_of, module
from ..errors import expected
from ..vector import ArrayLike, Vector, gather

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]


def _at_least_zero(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0.0:
            raise ValueError(expected(name, "at least 0", value))


class Optimizer:
    """What all optimizers share: arrays updated in place, states beside them.

    Parameters
    ----------
    params : array, or iterable of arrays
        NumPy arrays, `Vector`s or writable DLPack tensors of one dtype and device, C-contiguous,
        float32 or float64. They are written to.

    Raises
    ------
    TypeError, ValueError
        For another kind, dtype, device or layout, a read-only array, or arrays that overlap;
        nothing has been written then.
    """

    rule: str
    #: Names of the states, in the rule's order.
    state_names: tuple[str, ...] = ()
    lr: float

    def __init__(self, params: ArrayLike | Iterable[ArrayLike]) -> None:
        single = hasattr(params, "__dlpack__")
        self._params: list[ArrayLike] = [params] if single else list(params)
        self._single = single
        device = device_of(self._params[0]) if self._params else "cpu"
        native = module(device)
        self._states = [
            [
                Vector(tuple(p.shape), str(p.dtype).removeprefix("torch."), device)
                for _ in range(native.rules[self.rule])
            ]
            for p in self._params
        ]
        self._update = native.Update(self.rule, self._params, self._states)
        self.steps = 0

    def _hyper(self) -> dict[str, float]:
        """The rule's numbers at this step."""
        raise NotImplementedError

    def step(self, grads: ArrayLike | Sequence[ArrayLike]) -> None:
        """Update the parameters once, given gradients of their shapes (which are only read).

        Raises
        ------
        TypeError, ValueError
            For gradients of another dtype, shape, layout or number, or that share memory with a
            parameter or state; nothing has been written then.
        """
        many = [grads] if self._single else list(grads)
        self._update.step(many, self._hyper(), self.steps + 1)
        self.steps += 1

    def memory(self) -> dict[str, int]:
        """Bytes of the states, by name."""
        return {
            name: sum(s[i].size * s[i].dtype.itemsize for s in self._states)
            for i, name in enumerate(self.state_names)
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything a later run needs to go on exactly: steps, and each state as host arrays."""
        states: dict[str, list[NDArray[Any]]] = {
            name: [gather(s[i]) for s in self._states] for i, name in enumerate(self.state_names)
        }
        return {"steps": self.steps, "states": states}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take what `state_dict` gave, for parameters of the same shapes."""
        arrays = saved["states"]
        if set(arrays) != set(self.state_names):
            raise ValueError(expected("states", sorted(self.state_names), sorted(arrays)))
        for i, name in enumerate(self.state_names):
            wanted = [(s[i].shape, s[i].dtype) for s in self._states]
            got = [(a.shape, a.dtype) for a in arrays[name]]
            if wanted != got:
                raise ValueError(expected(name, f"arrays {wanted}", got))
        for i, name in enumerate(self.state_names):
            for state, a in zip(self._states, arrays[name], strict=True):
                state[i]._buffer.copy_from(np.ascontiguousarray(a))
        self.steps = int(saved["steps"])


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``.

    g ← g + weight_decay·p;  b ← momentum·b + (1 − dampening)·g, with b = g at the first step;
    p ← p − lr·b, or p − lr·(g + momentum·b) with ``nesterov``.

    The rate is outside the buffer. The lectures' m ← λm − ηg, p ← p + m has it inside: the same
    path with m = −η·b as long as η is constant, another one when it changes.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    momentum, dampening, weight_decay : float
    nesterov, maximize : bool

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0, 2.0])
    >>> optim.SGD(p, lr=0.5).step(np.array([1.0, 1.0]))
    >>> p
    array([0.5, 1.5])
    """

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        _at_least_zero(lr=lr, momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError(expected("nesterov", "momentum above 0 and dampening 0", "others"))
        self.lr, self.momentum, self.dampening = lr, momentum, dampening
        self.weight_decay, self.nesterov, self.maximize = weight_decay, nesterov, maximize
        self.rule = "sgd_momentum" if momentum else "sgd"
        self.state_names = ("momentum_buffer",) if momentum else ()
        super().__init__(params)

    def _hyper(self) -> dict[str, float]:
        return {
            "lr": self.lr,
            "weight_decay": self.weight_decay,
            "maximize": float(self.maximize),
            "momentum": self.momentum,
            "dampening": self.dampening,
            "nesterov": float(self.nesterov),
        }


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), as ``torch.optim.Adam``.

    m ← β₁m + (1 − β₁)g;  v ← β₂v + (1 − β₂)g²;
    p ← p − lr·m̂ / (√v̂ + eps), with m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).

    ``weight_decay`` adds weight_decay·p to g. With ``amsgrad`` the largest v so far stands for v
    (Reddi, Kale & Kumar 2018, as PyTorch: the maximum of the raw v, corrected afterwards). In
    float32 the bits of PyTorch's fused CPU kernel, save for the last size mod 8 elements of a
    tensor, which that kernel rounds otherwise than all others.

    Parameters
    ----------
    params : array or iterable of arrays
    lr : float
    betas : (float, float)
    eps, weight_decay : float
    amsgrad, maximize : bool

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.Adam(p, lr=0.1).step(np.array([7.0]))  # the first step is lr sign(g)
    >>> p.round(6)
    array([0.9])
    """

    _decoupled = False

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        _at_least_zero(lr=lr, eps=eps, weight_decay=weight_decay)
        if len(betas) != 2 or not all(0.0 <= b < 1.0 for b in betas):
            raise ValueError(expected("betas", "two numbers within [0, 1)", betas))
        self.lr, self.betas, self.eps = lr, betas, eps
        self.weight_decay, self.amsgrad, self.maximize = weight_decay, amsgrad, maximize
        self.rule = "amsgrad" if amsgrad else "adam"
        self.state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if amsgrad else 2]
        super().__init__(params)

    def _hyper(self) -> dict[str, float]:
        return {
            "lr": self.lr,
            "weight_decay": 0.0 if self._decoupled else self.weight_decay,
            "decoupled_decay": self.weight_decay if self._decoupled else 0.0,
            "maximize": float(self.maximize),
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
        }


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), as ``torch.optim.AdamW``.

    p ← (1 − lr·weight_decay)·p before the step of `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import optim
    >>> p = np.array([1.0])
    >>> optim.AdamW(p, lr=0.1, weight_decay=0.5).step(np.array([7.0]))
    >>> p.round(6)
    array([0.85])
    """

    _decoupled = True

    def __init__(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
