"""Drop-in optimizers for ``torch.optim``: its constructors, groups, hooks and state dicts.

Each is a ``torch.optim.Optimizer``, so learning-rate schedulers, closures, ``GradScaler`` and
trainers take it. A step is one native call over all parameters. `saddlepoint.optim` tells the
keyword arguments that all of them share; ``max_norm`` stands for ``clip_grad_norm_``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy

from .._native import device_of
from ..errors import expected
from ..optim import rules
from ..optim.arrays import allocate
from ..optim.plan import Common, Group, Options, Plan, Rule, state_dtype

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
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
]

# What PyTorch's optimizers have in their groups, and what makes no difference here.
_IGNORED = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}

# Until 2.5 or so increment_version took one tensor.
_TAKES_MANY = "Iterable" in str(increment_version.__annotations__)

# The part of a state dict that PyTorch's own classes do not look at.
_OURS = "saddlepoint"

_Clock = tuple[int, list[float]]
_Slot = tuple[tuple[int, ...], tuple[int, ...], str]  # shape, strides, dtype


class _Changes:
    """Whether somebody changed an entry of an optimizer's state."""

    made = False


class _Entry(dict[str, Any]):
    """A parameter's states; tells when they are replaced, which the native plan must hear of."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.changes = _Changes()

    def __reduce__(self) -> Any:
        return _Entry, (dict(self),)


class _State(defaultdict[Tensor, Any]):
    """``Optimizer.state``, which tells of changes as its entries do."""

    def __init__(self, given: Mapping[Tensor, Any]) -> None:
        super().__init__(None)
        self.changes = _Changes()
        self.changes.made = True
        self.update(given)

    def __missing__(self, p: Tensor) -> Any:
        self[p] = {}
        return self[p]

    def __setitem__(self, p: Tensor, value: Any) -> None:
        if isinstance(value, dict):
            value = value if isinstance(value, _Entry) else _Entry(value)
            value.changes = self.changes
        self.changes.made = True
        super().__setitem__(p, value)

    def setdefault(self, p: Tensor, default: Any = None) -> Any:
        """The entry of ``p``, made of ``default`` where there is none."""
        if p not in self:
            self[p] = default
        return self[p]

    def update(self, *given: Any) -> None:
        """Set entries."""
        for p, value in dict(*given).items():
            self[p] = value

    def __reduce__(self) -> Any:
        return _State, (dict(self),)


def _telling(kind: type, name: str) -> None:
    """Have a method of ``kind`` tell of the change that it makes."""
    method = getattr(kind, name)

    def told(self: Any, *given: Any, **named: Any) -> Any:
        self.changes.made = True
        return method(self, *given, **named)

    setattr(kind, name, told)


for _name in (
    "__setitem__",
    "__delitem__",
    "__ior__",
    "clear",
    "pop",
    "popitem",
    "setdefault",
    "update",
):
    _telling(_Entry, _name)
for _name in ("__delitem__", "__ior__", "clear", "pop", "popitem"):
    _telling(_State, _name)


class _Kept:
    """A state on its way through ``load_state_dict``, which would cast a bare tensor."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Optimizer(Rule, torch.optim.Optimizer):
    """What the optimizers of PyTorch's parameters share; see `saddlepoint.torch.optim`.

    A parameter's states come into being with its first gradient, as in PyTorch, and lie as the
    parameter does. Sparse gradients and tensors without memory of their own raise TypeError.
    """

    def _start(self, params: Any, defaults: Group, common: Common) -> None:
        self._options = Options.of(common)
        self._plan: Plan | None = None
        self._unplanned: list[Tensor] = []
        self._holders: list[object] = []
        # By what a count belongs to: a state's entry, which may move to another parameter.
        self._clocks: dict[int, tuple[object, _Clock]] = {}
        self._extra: dict[Tensor, dict[str, Tensor]] = {}
        ignored = {k: common.get(k, v) for k, v in _IGNORED.items()}
        torch.optim.Optimizer.__init__(self, params, {**defaults, **ignored})
        self._step_supports_amp_scaling = True

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The states by parameter, as PyTorch's but for the step count: see `state_dict`."""
        return self._state

    @state.setter
    def state(self, given: Mapping[Tensor, Any]) -> None:
        self._state = _State(given)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as ``torch.optim.Optimizer.add_param_group``."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _flat(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _names(self) -> dict[Tensor, tuple[str, ...]]:
        """The names of every parameter's states; nothing for those without a shape yet."""
        return {
            p: () if is_lazy(p) else self._states(group, p)
            for group in self.param_groups
            for p in group["params"]
        }

    def _holder(self, p: Tensor) -> object:
        return self._state.get(p, p)

    def _forget_plan(self) -> None:
        """Keep what the plan counted, and make another one when next needed."""
        if self._plan is not None:
            native = self._plan.native
            clocks = [native.clock(i) for i in range(len(self._holders))]
            self._clocks = {
                id(owner): (owner, clock)
                for owners in (self._plan.params, self._holders)
                for owner, clock in zip(owners, clocks, strict=True)
            }
        self._plan = None

    def _clock(self, p: Tensor, names: tuple[str, ...]) -> _Clock:
        """How often ``p`` was stepped, where there is no plan; counts of a user's entry first."""
        if names and p not in self._state:
            return 0, []  # its states were deleted: it begins anew, as in PyTorch
        holder = self._holder(p)
        kept = self._clocks.get(id(holder)) or self._clocks.get(id(p))
        if kept is None and not isinstance(holder, dict):
            return 0, []
        steps, carry = kept[1] if kept else (0, [])
        if isinstance(holder, dict):
            if not holder:
                return 0, []
            steps = int(holder.pop("step", steps))
            if all(name in holder for name in self.carried):
                carry = [float(holder.pop(name)) for name in self.carried] or carry
            if not steps and not self.counts and holder:
                steps = 1  # a momentum that came without a count
        return steps, carry

    def _ready_plan(self) -> Plan:
        plan = self._plan
        groups = self.param_groups
        if any(is_lazy(p) for p in self._unplanned):
            groups = [{**g, "params": [p for p in g["params"] if not is_lazy(p)]} for g in groups]
        if plan and not self._state.changes.made and plan.fits(self, groups):
            return plan
        self._forget_plan()
        self._unplanned = [p for p in self._flat() if is_lazy(p)]
        groups = [{**g, "params": [p for p in g["params"] if not is_lazy(p)]} for g in groups]
        first = next((p for group in groups for p in group["params"]), None)
        device = "cpu" if first is None else device_of(first.detach())
        plan = Plan(self, groups, self._options, device)
        copies = self._options.copies
        if copies is not None and len(copies) != len(plan.params):
            raise ValueError(expected("copies", f"{len(plan.params)} tensors", len(copies)))
        for i, p in enumerate(plan.params):
            steps, carry = self._clock(p, self._states(groups[plan.group_of[i]], p))
            if steps:
                plan.native.set_clock(i, steps, carry)
            if copies is not None and copies[i] is not None:
                copies[i].copy_(p.detach())  # also where no gradient ever comes
        self._plan = plan
        self._holders = [self._holder(p) for p in plan.params]
        self._state.changes.made = False
        return plan

    def _bind(self, plan: Plan, missing: list[int]) -> None:
        """Give parameters the arrays that they lack, and tell the plan of all of them."""
        options = self._options
        wanted: list[tuple[dict[str, Tensor], str, float | Tensor]] = []
        slots: list[_Slot] = []
        for i in missing:
            p = plan.params[i]
            group = self.param_groups[plan.group_of[i]]
            shape, strides, dtype = plan.native.dense(i)
            names = self._states(group, p)
            state = self._state[p] if names else {}
            extra = self._extra.setdefault(p, {})
            for name in (name for name in names if name not in state):
                slots.append(self._slot(name, shape, strides, dtype))
                wanted.append((state, name, self._initial(group, name)))
            if options.ema_decay is not None and "ema" not in extra:
                wanted.append((extra, "ema", p.detach()))
                slots.append((shape, strides, "float64" if dtype == "float64" else "float32"))
            if options.master and "remainder" not in extra:
                wanted.append((extra, "remainder", 0.0))
                slots.append((shape, strides, "int16"))
        made = _tensors(plan.params[missing[0]].device, slots)
        for (holder, name, initial), tensor in zip(wanted, made, strict=True):
            if isinstance(initial, Tensor):
                tensor.copy_(initial)
            elif initial:
                tensor.fill_(initial)
            holder[name] = tensor
        copies = self._options.copies
        for i in missing:
            p = plan.params[i]
            extra = self._extra[p]
            plan.native.bind(
                i,
                [self._state[p][n] for n in self._states(self.param_groups[plan.group_of[i]], p)],
                extra.get("ema"),
                None if copies is None else copies[i],
                extra.get("remainder"),
            )
            self._holders[i] = self._holder(p)
        self._state.changes.made = False

    def _slot(
        self, name: str, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
    ) -> _Slot:
        """Where a state lies beside a parameter that lies so."""
        of = self._shape(name, shape)
        dense = strides if of == shape else torch.empty(of, device="meta").stride()
        return of, tuple(dense), state_dtype(self._options, dtype)

    # Opaque to torch.compile: a graph break, not a trace through the native plan. As PyTorch's own
    # optimizers say it: `torch.compiler.disable` takes a second of every import.
    @_disable_dynamo
    def _step_now(self) -> None:
        plan = self._ready_plan()
        zero = self._options.zero_grads
        if missing := plan.native.collect(None, zero):
            self._bind(plan, missing)
            plan.native.collect(None, zero)
        device = plan.params[0].device if plan.params else torch.device("cpu")
        plan.run(
            self,
            self.param_groups,
            self._options,
            scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            stream=torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None,
        )
        stepped = plan.params
        if not plan.native.all_stepped:
            stepped = [plan.params[i] for i in plan.native.stepped()]
        _written(stepped)
        if zero:
            _written([p.grad for p in stepped])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and its gradients once more.

        Returns
        -------
        The closure's loss, or None.

        Raises
        ------
        TypeError, ValueError
            For sparse gradients, dtypes that do not go together, or tensors that share memory;
            nothing has been written then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_now()
        return loss

    @property
    def grad_norm(self) -> float:
        """The norm of all gradients at the last step, unscaled, before clipping.

        Only with ``max_norm`` or ``check_finite``.
        """
        if self._options.max_norm is None and not self._options.check_finite:
            raise ValueError(expected("grad_norm", "max_norm or check_finite to be set", "neither"))
        return float(self._plan.native.norm) if self._plan else 0.0

    @property
    def skipped(self) -> bool:
        """Whether the last step was left out because the gradients were not finite."""
        return bool(self._plan.native.skipped) if self._plan else False

    @property
    def ema(self) -> list[Tensor]:
        """The parameters' exponential moving averages, in the order of the groups."""
        if self._options.ema_decay is None:
            raise ValueError(expected("ema", "ema_decay to be set", "None"))
        return [self._extra.get(p, {}).get("ema", p.detach()) for p in self._flat()]

    def memory(self) -> dict[str, int]:
        """Bytes of the tensors beside the parameters, by name."""
        total: dict[str, int] = {}
        for held in (*self._state.values(), *self._extra.values()):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    total[name] = total.get(name, 0) + value.nbytes
        return total

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's layout, with its step counts; what it has no place for under "saddlepoint"."""
        if self._plan is not None:
            self._ready_plan()
        clocks = self._counts()
        own = self._state
        full: dict[Tensor, dict[str, Any]] = {}
        for p in self._flat():
            steps, carry = clocks[p]
            entry = dict(own[p]) if p in own else {}
            if steps and self.counts:
                entry = {"step": _scalar(float(steps)), **entry}
            if steps:
                entry |= {n: _scalar(c) for n, c in zip(self.carried, carry, strict=False)}
            if entry:
                full[p] = entry
        # The base class packs `self.state`, hooks included.
        self._state = cast(Any, full)
        try:
            saved: dict[str, Any] = super().state_dict()
        finally:
            self._state = own
        places = {p: i for i, p in enumerate(self._flat())}
        ours: dict[str, Any] = {"clocks": {places[p]: c for p, c in clocks.items() if c[0]}}
        for name in ("ema", "remainder"):
            if held := {places[p]: x[name] for p, x in self._extra.items() if name in x}:
                ours[name] = held
        saved[_OURS] = ours
        return saved

    def _counts(self) -> dict[Tensor, _Clock]:
        """The clock of every parameter."""
        counts: dict[Tensor, _Clock] = {p: (0, []) for p in self._flat()}
        if self._plan is not None:
            native = self._plan.native
            return counts | {p: native.clock(i) for i, p in enumerate(self._plan.params)}
        known = {p: self._clocks.get(id(self._holder(p))) for p in counts}
        return counts | {p: clock[1] for p, clock in known.items() if clock is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state dict of this class or of PyTorch's own.

        Averages and remainders that it lacks begin anew at the parameters.

        Raises
        ------
        TypeError, ValueError
            For other names, shapes or groups; nothing has been changed then.
        """
        loaded: dict[str, Any] = {}

        def keep(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            loaded.update(given)
            self._check_loaded(given)
            state = {
                i: {name: _Kept(value) for name, value in entry.items()}
                for i, entry in given["state"].items()
            }
            return {**given, "state": state}

        # Registered last, so that it sees what other hooks made of the dict.
        handle = self.register_load_state_dict_pre_hook(cast(Any, keep))
        self._ours_loaded = loaded
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            del self._ours_loaded

    def _check_loaded(self, given: dict[str, Any]) -> None:
        flat = self._flat()
        groups = given["param_groups"]
        numbers = [i for group in groups for i in group["params"]]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            return  # PyTorch says it better
        of = {i: {**self.defaults, **group} for group in groups for i in group["params"]}
        ours = given.get(_OURS, {})
        for place, (i, p) in enumerate(zip(numbers, flat, strict=True)):
            for name in ("ema", "remainder"):
                if place in ours.get(name, {}):
                    _check_shape(name, ours[name][place], tuple(p.shape))
            entry = given["state"].get(i)
            if not entry:
                continue
            names = self._states({**of[i], "params": [p]}, p)
            counted = {"step"} if self.counts else set()
            needed = {*counted, *self.carried, *names}
            known = {*needed, *self.known}
            if not needed <= set(entry) or not set(entry) <= known | self._own_names(p):
                raise ValueError(expected("state", sorted(known), sorted(entry)))
            for name in names:
                if entry[name] is not None:
                    _check_shape(name, entry[name], self._shape(name, tuple(p.shape)))

    def _own_names(self, p: Tensor) -> set[str]:
        """What the user keeps among the states of ``p``."""
        return set(self._state[p]) if p in self._state else set()

    def __getstate__(self) -> dict[str, Any]:
        counts = self._counts()
        return {
            **super().__getstate__(),
            "_options": self._options,
            "_extra": self._extra,
            "_counted": [counts[p] for p in self._flat()],
            "_step_supports_amp_scaling": True,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        self._unplanned, self._holders = [], []
        if "state" in self.__dict__:
            self.state = self.__dict__.pop("state")
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if hasattr(self, "_ours_loaded"):
            self._unwrap(self._ours_loaded)
        elif "_counted" in self.__dict__:
            counted = self.__dict__.pop("_counted")
            self._keep_clocks(dict(zip(self._flat(), counted, strict=True)))

    def _keep_clocks(self, clocks: Mapping[Tensor, _Clock]) -> None:
        holders = {p: self._holder(p) for p in clocks}
        self._clocks = {id(holders[p]): (holders[p], clock) for p, clock in clocks.items()}

    def _unwrap(self, loaded: dict[str, Any]) -> None:
        """Make our states and clocks of what ``load_state_dict`` left."""
        ours = loaded.get(_OURS, {})
        exact = ours.get("clocks", {})
        names = self._names()
        given = {
            p: {k: v.value if isinstance(v, _Kept) else v for k, v in entry.items()}
            for p, entry in self._state.items()
        }
        self.state = {}
        self._extra = {}
        clocks: dict[Tensor, _Clock] = {}
        begun: list[tuple[Tensor, str]] = []
        slots: dict[torch.device, list[_Slot]] = {}
        for i, p in enumerate(self._flat()):
            entry = given.get(p, {})
            steps, carry = exact.get(i, (0, []))
            if "step" in entry:
                counted = int(entry.pop("step"))
                rounded = [float(entry.pop(name)) for name in self.carried]
                steps, carry = counted, carry if counted == steps else rounded
            states = {name: entry.pop(name) for name in names[p] if name in entry}
            if names[p] and states and all(value is not None for value in states.values()):
                if not self.counts:
                    steps = steps or 1  # a momentum that came without a count
                dtype = str(p.dtype).removeprefix("torch.")
                strides = torch.empty_like(p, device="meta").stride()
                for name, value in states.items():
                    slots.setdefault(p.device, []).append(
                        self._slot(name, tuple(p.shape), tuple(strides), dtype)
                    )
                    begun.append((p, name))
                    entry[name] = value
            if entry:
                self._state[p] = entry
            if steps:
                clocks[p] = (steps, list(carry))
            for name in ("ema", "remainder"):
                if i in ours.get(name, {}):
                    self._extra.setdefault(p, {})[name] = ours[name][i].clone().to(p.device)
        made = {device: iter(_tensors(device, of)) for device, of in slots.items()}
        for p, name in begun:
            self._state[p][name] = next(made[p.device]).copy_(self._state[p][name])
        self._keep_clocks(clocks)


def _check_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless ``value`` is a tensor of ``shape``."""
    if not isinstance(value, Tensor):
        raise TypeError(expected(name, "a tensor", type(value).__name__))
    if tuple(value.shape) != shape:
        raise ValueError(expected(name, f"shape {shape}", tuple(value.shape)))


def _written(tensors: list[Tensor]) -> None:
    """Tell autograd that tensors changed."""
    if _TAKES_MANY:
        increment_version(tensors)
    else:
        for t in tensors:
            increment_version(t)


def _scalar(value: float) -> Tensor:
    """A scalar state as PyTorch keeps it."""
    wide = torch.get_default_dtype() == torch.float64
    return torch.tensor(value, dtype=torch.float64 if wide else torch.float32)


def _tensors(
    device: torch.device, slots: list[tuple[tuple[int, ...], tuple[int, ...], str]]
) -> list[Tensor]:
    """Zeros of shapes, strides and dtypes."""
    if device.type == "cpu":
        return [torch.utils.dlpack.from_dlpack(array) for array in allocate("cpu", slots)]
    return [
        torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=device).zero_()
        for shape, strides, dtype in slots
    ]


class SGD(rules.SGD, Optimizer):
    __doc__ = rules.SGD.__doc__


class Adagrad(rules.Adagrad, Optimizer):
    __doc__ = rules.Adagrad.__doc__


class RMSprop(rules.RMSprop, Optimizer):
    __doc__ = rules.RMSprop.__doc__


class Adam(rules.Adam, Optimizer):
    __doc__ = rules.Adam.__doc__


class AdamW(rules.AdamW, Optimizer):
    __doc__ = rules.AdamW.__doc__


class Rprop(rules.Rprop, Optimizer):
    __doc__ = rules.Rprop.__doc__


class Adadelta(rules.Adadelta, Optimizer):
    __doc__ = rules.Adadelta.__doc__


class Adamax(rules.Adamax, Optimizer):
    __doc__ = rules.Adamax.__doc__


class NAdam(rules.NAdam, Optimizer):
    __doc__ = rules.NAdam.__doc__


class RAdam(rules.RAdam, Optimizer):
    __doc__ = rules.RAdam.__doc__


class ASGD(rules.ASGD, Optimizer):
    __doc__ = rules.ASGD.__doc__


class Lion(rules.Lion, Optimizer):
    __doc__ = rules.Lion.__doc__


class Adan(rules.Adan, Optimizer):
    __doc__ = rules.Adan.__doc__


class LAMB(rules.LAMB, Optimizer):
    __doc__ = rules.LAMB.__doc__


class Adafactor(rules.Adafactor, Optimizer):
    __doc__ = rules.Adafactor.__doc__


class Muon(rules.Muon, Optimizer):
    __doc__ = rules.Muon.__doc__
