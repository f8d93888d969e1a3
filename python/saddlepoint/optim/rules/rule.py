"""What an optimizer's declaration has, whatever holds the parameters."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from ...errors import expected, flag
from ..checks import Check, at_least_zero, numbers, size_of, within_one
from ..options import Common, Group, Options

__all__ = ["Rule"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Rule(abc.ABC):
    """An optimizer's constructor, and what it asks of the core for a parameter group.

    The attributes are what a new optimizer declares. A method is for what depends on the options.
    """

    #: The rule's name in the core (``csrc/optim/rules``).
    core: ClassVar[str]
    #: The arrays beside a parameter by PyTorch's names, in the core's order.
    states: ClassVar[tuple[str, ...]] = ()
    #: Numbers that the rule carries from step to step, by PyTorch's names.
    carried: ClassVar[tuple[str, ...]] = ()
    #: How many averages' weights it takes as ``betas``.
    betas: ClassVar[int] = 0
    #: What hyper-parameters are held to, besides those below.
    bounds: ClassVar[Mapping[str, Check]] = _NOTHING
    #: Whether PyTorch keeps a step count in the state.
    counts: ClassVar[bool] = True
    #: Whether a step needs all of a tensor (its norm, its rows), so that neither shards of it nor
    #: many tensors as one vector can be stepped.
    whole: ClassVar[bool] = False
    #: Whether weight decay shrinks the parameter whatever the options say.
    decoupled: ClassVar[bool] = False

    #: For the table of optimizers: options by which the arrays differ, where the formula is from,
    #: whether PyTorch fuses it on the CPU ("–": it has no such), and what a count of states does
    #: not tell.
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"": _NOTHING})
    source: ClassVar[str] = ""
    fused_in_torch: ClassVar[str] = "no"
    arrays: ClassVar[str] = ""
    traffic: ClassVar[str] = ""

    _options: Options

    @abc.abstractmethod
    def _start(self, params: Any, defaults: Group, common: Common) -> None:
        """Take the parameters; each storage does it its way."""

    def _rule(self, group: Group) -> str:
        """The rule's name in the core, by a group's options."""
        return self.core

    def _states(self, group: Group, p: Any) -> tuple[str, ...]:
        """Names of the arrays beside a parameter, in the rule's order."""
        return self.states

    def _values(self, group: Group) -> Mapping[str, Any]:
        """The rule's numbers by the core's names, without rate, decay and direction."""
        if not self.betas:
            return group
        betas = numbers("betas", group["betas"], self.betas)
        return {**group, **{f"beta{i}": b for i, b in enumerate(betas, start=1)}}

    def _check(self, group: Group) -> None:
        """Raise TypeError or ValueError for hyper-parameters that make no sense."""
        for name in Options.__dataclass_fields__:
            # ZeroRedundancyOptimizer writes what it hands on into the groups too.
            if name in group and group[name] is not getattr(self._options, name):
                raise TypeError(expected(name, "an argument of the whole optimizer", "a group's"))
        if hasattr(group["lr"], "shape") and size_of(group["lr"].shape) != 1:
            raise ValueError(expected("lr", "one number", f"shape {tuple(group['lr'].shape)}"))
        if self.betas:
            within_one("betas", group["betas"], self.betas)
        for name, check in {**_BOUNDS, **self.bounds}.items():
            if name in group:
                check(name, group[name])

    def _decoupled(self, group: Group) -> bool:
        return self.decoupled or bool(group.get("decoupled_weight_decay", False))

    def _initial(self, group: Group, name: str) -> float:
        """What a state holds before the first step."""
        return 0.0

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A state's shape beside a parameter of ``shape``."""
        return shape


_BOUNDS: Mapping[str, Check] = {
    **dict.fromkeys(("lr", "weight_decay", "eps", "momentum"), at_least_zero),
    **dict.fromkeys(("decoupled_weight_decay", "maximize"), flag),
}
