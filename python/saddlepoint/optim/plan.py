"""What optimizers of arrays and of PyTorch share: options, rows of numbers, the native plan."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeAlias, TypedDict

from .._native import module
from ..errors import expected

__all__ = ["Common", "Group", "Options", "Plan", "Rule", "Shared"]

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
        if common.get("differentiable"):
            raise ValueError(expected("differentiable", "False", True))
        options = cls(**{k: v for k, v in common.items() if k in cls.__dataclass_fields__})
        if options.max_norm is not None and not number("max_norm", options.max_norm) > 0:
            raise ValueError(expected("max_norm", "above 0", options.max_norm))
        decay = options.ema_decay
        if decay is not None and not 0 <= number("ema_decay", decay) < 1:
            raise ValueError(expected("ema_decay", "within [0, 1)", decay))
        if options.state_dtype not in (None, "float32", "float64", "bfloat16"):
            wanted = "'float32', 'float64' or 'bfloat16'"
            raise ValueError(expected("state_dtype", wanted, repr(options.state_dtype)))
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
        return [bool(m) for m in mask]


class Rule(abc.ABC):
    """An optimizer's constructor, and what it asks of the core for a parameter group."""

    #: Numbers that the rule carries from step to step, by PyTorch's names.
    carried: tuple[str, ...] = ()
    #: States that options other than a group's could call for.
    known: tuple[str, ...] = ()
    #: Whether PyTorch keeps a step count in the state.
    counts: bool = True
    #: Hyper-parameters that are at least 0.
    from_zero: tuple[str, ...] = ("lr", "weight_decay", "eps", "momentum")
    #: Whether a step needs all of a tensor, so that shards of it cannot be stepped alone.
    whole: bool = False
    _options: Options

    @abc.abstractmethod
    def _start(self, params: Any, defaults: Group, common: Common) -> None:
        """Take the parameters; each storage does it its way."""

    @abc.abstractmethod
    def _rule(self, group: Group) -> str:
        """The rule's name in the core."""

    @abc.abstractmethod
    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        """Names of the arrays beside a parameter, in the rule's order."""

    @abc.abstractmethod
    def _values(self, group: Group) -> dict[str, float]:
        """The rule's numbers by name, without rate, decay and direction."""

    def _check(self, group: Group) -> None:
        """Raise ValueError for hyper-parameters that make no sense."""
        for name in Options.__dataclass_fields__:
            # ZeroRedundancyOptimizer writes what it hands on into the groups too.
            if name in group and group[name] is not getattr(self._options, name):
                raise TypeError(expected(name, "an argument of the whole optimizer", "a group's"))
        if hasattr(group["lr"], "shape") and size_of(group["lr"].shape) != 1:
            raise ValueError(expected("lr", "one number", f"shape {tuple(group['lr'].shape)}"))
        at_least_zero(**{name: group[name] for name in self.from_zero if name in group})

    def _decoupled(self, group: Group) -> bool:
        return bool(group.get("decoupled_weight_decay", False))

    def _initial(self, group: Group, name: str) -> float:
        """What a state holds before the first step."""
        return 0.0

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A state's shape beside a parameter of ``shape``."""
        return shape


def number(name: str, value: Any) -> float:
    """A real number of Python or NumPy, or an array of one; TypeError for anything else."""
    if isinstance(value, Real) or size_of(getattr(value, "shape", (0,))) == 1:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(expected(name, "a number within float64", "a larger one")) from None
    raise TypeError(expected(name, "a number", repr(value)))


def numbers(name: str, values: Any, count: int, what: str = "") -> tuple[float, ...]:
    """``count`` of them, in a tuple or list."""
    if not isinstance(values, tuple | list) or len(values) != count:
        raise ValueError(expected(name, what or f"{count} numbers", repr(values)))
    return tuple(number(name, value) for value in values)


def steps_of(value: Any) -> int:
    """A step count as state dicts keep it: a whole number from 0, of any kind."""
    steps = number("step", value)
    if not (0 <= steps < 2**63 and steps == int(steps)):
        raise ValueError(expected("step", "a whole number within [0, 2^63)", value))
    return int(value) if isinstance(value, Integral) else int(steps)


def at_least_zero(**values: Any) -> None:
    """Raise ValueError for the first that is not at least 0."""
    for name, value in values.items():
        if not number(name, value) >= 0.0:
            raise ValueError(expected(name, "at least 0", value))


def within_one(name: str, values: Any, count: int) -> None:
    """Raise ValueError unless there are ``count`` numbers within [0, 1)."""
    what = f"{count} numbers within [0, 1)"
    if not all(0.0 <= b < 1.0 for b in numbers(name, values, count, what)):
        raise ValueError(expected(name, what, tuple(values)))


def each_once(params: Sequence[Any], names: Sequence[str] | None = None) -> None:
    """Raise ValueError where a parameter stands in two places."""
    first: dict[int, int] = {}
    for i, p in enumerate(params):
        if (before := first.setdefault(id(p), i)) != i:
            what = f"number {i}" if names is None else repr(names[i])
            where = f"number {before}" if names is None else repr(names[before])
            raise ValueError(expected("params", "each parameter once", f"{what} as {where} again"))


_DECAYS = ("weight_decay", "decoupled_decay")


class Plan:
    """Parameters and their arrays, laid out for the core once.

    ``native`` is the core's plan. Its row 2g has the numbers of group g, row 2g + 1 the same
    without weight decay.
    """

    def __init__(self, rule: Rule, groups: Sequence[Group], options: Options, device: str) -> None:
        native = module(device)
        self.device = device
        self.params: list[Any] = []
        self.group_of: list[int] = []
        for g, group in enumerate(groups):
            self.params += group["params"]
            self.group_of += [g] * len(group["params"])
        decays = options.decays(self.params)
        self.rules = [rule._rule(group) for group in groups]
        self.names = [native.rules[name][1] for name in self.rules]
        self.native = native.Update(
            self.params,
            [self.rules[g] for g in self.group_of],
            [2 * g + (not d) for g, d in zip(self.group_of, decays, strict=True)],
            list(range(len(self.params))),
        )

    def fits(self, rule: Rule, groups: Sequence[Group]) -> bool:
        """Whether the groups still name the same rules and hold the same parameters."""
        return [rule._rule(group) for group in groups] == self.rules and self.native.holds(
            [group["params"] for group in groups]
        )

    def run(
        self,
        rule: Rule,
        groups: Sequence[Group],
        options: Options,
        grads: Sequence[Any] | None,
        bind: Callable[[list[int]], None],
        *,
        loss_scale: float | None = None,
        scale: Any = None,
        found_inf: Any = None,
        stream: int | None = None,
    ) -> None:
        """One step on gradients, or on the parameters' own.

        ``bind`` tells the native plan what lies beside parameters that lack it. One native call
        looks at memory and works on it: in between another thread could move it.
        """
        rows: list[list[float]] = []
        rates: list[Any] = []
        device_rate = False
        for group, names in zip(groups, self.names, strict=True):
            lr = group["lr"]
            tensor = hasattr(lr, "__dlpack__")
            device_rate = device_rate or tensor
            rates += [lr if tensor else None] * 2
            decay = number("weight_decay", group.get("weight_decay", 0.0))
            decoupled = rule._decoupled(group)
            values = rule._values(group)
            values["lr"] = 0.0 if tensor else lr
            values["maximize"] = float(bool(group.get("maximize", False)))
            values["weight_decay"] = 0.0 if decoupled else decay
            values["decoupled_decay"] = decay if decoupled else 0.0
            row = {name: number(name, values[name]) for name in names}
            rows.append([*row.values()])
            rows.append([0.0 if name in _DECAYS else row[name] for name in names])
        step = partial(
            self.native.run,
            grads,
            rows,
            1.0 if loss_scale is None else 1.0 / loss_scale,
            options.max_norm,
            options.check_finite,
            options.zero_grads,
            0.0 if options.ema_decay is None else 1.0 - options.ema_decay,
            options.stochastic_rounding,
            rates if device_rate else (),
            scale,
            found_inf,
            stream,
        )
        if missing := step():
            bind(missing)
            if step():
                wanted = "memory that stays where it is during a step"
                raise ValueError(expected("state", wanted, "other memory"))


def state_dtype(options: Options, dtype: str) -> str:
    """The dtype of the states beside a parameter of ``dtype``."""
    wide = dtype == "float64"
    wanted = options.state_dtype or ("float64" if wide else "float32")
    if (wanted == "float64") != wide:
        raise TypeError(expected("state_dtype", f"one for {dtype} parameters", wanted))
    return wanted


def size_of(shape: Sequence[int]) -> int:
    """The number of elements."""
    return math.prod(shape)
