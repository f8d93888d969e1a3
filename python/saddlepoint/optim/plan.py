"""Parameters and what lies beside them, laid out for the core once; a step as one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any

from .._native import module
from ..errors import expected, number
from ..kinds import is_array
from .options import Group, Options
from .rules import Rule

__all__ = ["Plan"]

_DECAYS = ("weight_decay", "decoupled_decay")


def _stays(group: Group) -> bool:
    """Whether a group has no number that could change and be the same object."""

    def fixed(x: Any) -> bool:
        return isinstance(x, str | float | int | None) or (
            isinstance(x, tuple) and all(map(fixed, x))
        )

    # Parameters are no numbers, and a rate in an array is read where it lies.
    return all(
        fixed(x) or name in ("params", "param_names") or (name == "lr" and is_array(x))
        for name, x in group.items()
    )


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
        self._given: list[Any] = []  # what the groups held when they were read
        self._rows: list[list[float]] = []
        self._rates: Sequence[Any] = ()

    def fits(self, rule: Rule, groups: Sequence[Group]) -> bool:
        """Whether the groups still name the same rules and hold the same parameters."""
        return [rule._rule(group) for group in groups] == self.rules and self.native.holds(
            [group["params"] for group in groups]
        )

    def _numbers(
        self, rule: Rule, groups: Sequence[Group]
    ) -> tuple[list[list[float]], Sequence[Any]]:
        """The groups' rows, and what lies on the device instead of their rates, if any does."""
        rows: list[list[float]] = []
        rates: list[Any] = []
        for group, names in zip(groups, self.names, strict=True):
            lr = group["lr"]
            tensor = is_array(lr)
            rates += [lr if tensor else None] * 2
            decay = number("weight_decay", group.get("weight_decay", 0.0))
            decoupled = rule._decoupled(group)
            values = {
                **rule._values(group),
                "lr": 0.0 if tensor else lr,
                "maximize": bool(group.get("maximize", False)),
                "weight_decay": 0.0 if decoupled else decay,
                "decoupled_decay": decay if decoupled else 0.0,
            }
            row = {name: number(name, values[name]) for name in names}
            rows.append([*row.values()])
            rows.append([0.0 if name in _DECAYS else row[name] for name in names])
        return rows, () if all(rate is None for rate in rates) else rates

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
        lent: bool = True,
    ) -> None:
        """One step on gradients, or on the parameters' own.

        ``bind`` tells the native plan what lies beside parameters that lack it. ``lent`` is
        whether others may have what it told, besides copies, and so have moved it. One native call
        looks at memory and works on it: in between another thread could move it.
        """
        # To read the groups takes longer than a step of one small tensor.
        given = [x for group in groups for x in (*group, *group.values())]
        if len(given) != len(self._given) or not all(map(is_, given, self._given)):
            self._given = []
            self._rows, self._rates = self._numbers(rule, groups)
            if all(map(_stays, groups)):
                self._given = given
        step = partial(
            self.native.run,
            grads,
            self._rows,
            1.0 if loss_scale is None else 1.0 / loss_scale,
            options.max_norm,
            options.check_finite,
            options.zero_grads,
            0.0 if options.ema_decay is None else 1.0 - options.ema_decay,
            options.stochastic_rounding,
            self._rates,
            scale,
            found_inf,
            stream,
            lent,
        )
        if missing := step():
            bind(missing)
            if step():
                wanted = "memory that stays where it is during a step"
                raise ValueError(expected("state", wanted, "other memory"))
