"""What every optimizer takes beyond its namesake: what a step does besides the rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias, TypedDict

from ..errors import brief, expected, flag, number, one_of

__all__ = ["Common", "Group", "Options", "Shared", "state_dtype"]

#: A parameter group: its hyper-parameters by PyTorch's names, and its arrays under "params".
Group: TypeAlias = dict[str, Any]


class Shared(TypedDict, total=False):
    """What every optimizer takes beyond its namesake in PyTorch; see `saddlepoint.optim`."""

    max_norm: float | None
    check_finite: bool
    ema_decay: float | None
    zero_grads: bool
    copies: Sequence[Any] | None
    state_dtype: str | None
    master: bool
    stochastic_rounding: int | None
    decay_mask: Callable[[Any], bool] | Sequence[bool] | None
    process_group: Any


class Common(Shared, total=False):
    """The same with PyTorch's choices between implementations."""

    foreach: bool | None
    fused: bool | None
    capturable: bool
    differentiable: bool


@dataclass(frozen=True)
class Options:
    """What a step does besides the rule; `Common` after it was checked."""

    max_norm: float | None = None
    check_finite: bool = False
    ema_decay: float | None = None
    zero_grads: bool = False
    copies: Sequence[Any] | None = None
    state_dtype: str | None = None
    master: bool = False
    stochastic_rounding: int | None = None
    decay_mask: Callable[[Any], bool] | Sequence[bool] | None = None
    process_group: Any = None

    @classmethod
    def of(cls, common: Mapping[str, Any]) -> Options:
        """Those of ``common`` that are ours; TypeError for a name nobody knows."""
        for name in common:
            if name not in {**Shared.__annotations__, **Common.__annotations__}:
                raise TypeError(expected(name, "an argument of the optimizer", "an unknown one"))
        differentiable = common.get("differentiable")
        if differentiable is not None and flag("differentiable", differentiable):
            raise ValueError(expected("differentiable", "False", True))
        options = cls(**{k: v for k, v in common.items() if k in cls.__dataclass_fields__})
        if options.max_norm is not None and not number("max_norm", options.max_norm) > 0:
            raise ValueError(expected("max_norm", "above 0", options.max_norm))
        decay = options.ema_decay
        if decay is not None and not 0 <= number("ema_decay", decay) < 1:
            raise ValueError(expected("ema_decay", "within [0, 1)", decay))
        one_of("state_dtype", options.state_dtype, (None, "float32", "float64", "bfloat16"))
        for name in ("check_finite", "zero_grads", "master"):
            flag(name, getattr(options, name))
        for name, value in (("copies", options.copies), ("decay_mask", options.decay_mask)):
            if value is not None and not (name == "decay_mask" and callable(value)):
                _sequence(name, value)
        seed = options.stochastic_rounding
        if seed is not None and not isinstance(seed, Integral):
            raise TypeError(expected("stochastic_rounding", "a seed, an int", repr(seed)))
        if seed is not None and not 0 <= seed < 2**64:
            raise ValueError(expected("stochastic_rounding", "a seed within [0, 2^64)", seed))
        if options.master and seed is not None:
            raise ValueError(expected("master", "False with stochastic_rounding", True))
        return options

    def decays(self, params: Sequence[Any]) -> list[bool]:
        """Whether weight decay applies, for each parameter."""
        mask = self.decay_mask
        if mask is None:
            return [True] * len(params)
        if callable(mask):
            return [bool(mask(p)) for p in params]
        if len(mask) != len(params):
            raise ValueError(expected("decay_mask", f"{len(params)} values", len(mask)))
        return [flag("decay_mask", m) for m in mask]


def _sequence(name: str, values: Any) -> None:
    """Raise TypeError for what holds no things in order, as text does not."""
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__"):
        raise TypeError(expected(name, "a sequence", brief(values)))


def state_dtype(options: Options, dtype: str) -> str:
    """The dtype of the states beside a parameter of ``dtype``."""
    wide = dtype == "float64"
    wanted = options.state_dtype or ("float64" if wide else "float32")
    if (wanted == "float64") != wide:
        raise TypeError(expected("state_dtype", f"one for {dtype} parameters", wanted))
    return wanted
