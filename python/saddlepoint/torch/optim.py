"""Drop-in optimizers for ``torch.optim``: its constructors, groups, hooks and state dicts.

Each is a ``torch.optim.Optimizer``, so learning-rate schedulers, closures, ``GradScaler`` and
trainers take it. A step is one native call over all parameters. `saddlepoint.optim` tells the
keyword arguments that all of them share; ``max_norm`` stands for ``clip_grad_norm_``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

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


class _Kept:
    """A state on its way through ``load_state_dict``, which would cast a bare tensor."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Optimizer(Rule, torch.optim.Optimizer):
    """What the optimizers of PyTorch's parameters share; see `saddlepoint.torch.optim`.

    A parameter's states come into being with its first gradient, as in PyTorch, and lie as the
    parameter does. Sparse gradients raise TypeError.
    """

    def _start(self, params: Any, defaults: Group, common: Common) -> None:
        self._options = Options.of(common)
        self._plan: Plan | None = None
        self._clocks: dict[Tensor, _Clock] = {}
        self._extra: dict[Tensor, dict[str, Tensor]] = {}
        self._planned_state: object = None
        ignored = {k: common.get(k, v) for k, v in _IGNORED.items()}
        torch.optim.Optimizer.__init__(self, params, {**defaults, **ignored})
        self._step_supports_amp_scaling = True

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as ``torch.optim.Optimizer.add_param_group``."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._forget_plan()

    def _forget_plan(self) -> None:
        """Keep what the plan counted, and make another one when next needed."""
        self._clocks = dict(self._current_clocks())
        self._plan = None

    def _current_clocks(self) -> Iterator[tuple[Tensor, _Clock]]:
        if self._plan is None:
            yield from self._clocks.items()
        else:
            for i, p in enumerate(self._plan.params):
                clock: _Clock = self._plan.native.clock(i)
                if clock[0]:
                    yield p, clock

    def _ready_plan(self) -> Plan:
        plan = self._plan
        if plan and self._planned_state is self.state and plan.fits(self, self.param_groups):
            return plan
        self._forget_plan()
        first = next((p for group in self.param_groups for p in group["params"]), None)
        device = "cpu" if first is None else device_of(first.detach())
        plan = Plan(self, self.param_groups, self._options, device)
        copies = self._options.copies
        if copies is not None and len(copies) != len(plan.params):
            raise ValueError(expected("copies", f"{len(plan.params)} tensors", len(copies)))
        for i, p in enumerate(plan.params):
            if p in self._clocks:
                plan.native.set_clock(i, *self._clocks[p])
            if copies is not None and copies[i] is not None:
                copies[i].copy_(p.detach())  # also where no gradient ever comes
        self._plan, self._planned_state = plan, self.state
        return plan

    def _bind(self, plan: Plan, missing: list[int]) -> None:
        """Give parameters the arrays that they lack, and tell the plan of all of them."""
        options = self._options
        wanted: list[tuple[dict[str, Tensor], str, float | Tensor]] = []
        slots: list[tuple[tuple[int, ...], tuple[int, ...], str]] = []
        for i in missing:
            p = plan.params[i]
            group = self.param_groups[plan.group_of[i]]
            shape, strides, dtype = plan.native.dense(i)
            names = self._states(group, p)
            state = self.state[p] if names else {}
            extra = self._extra.setdefault(p, {})
            for name in (name for name in names if name not in state):
                of = self._shape(name, shape)
                dense = strides if of == shape else tuple(torch.empty(of, device="meta").stride())
                wanted.append((state, name, self._initial(group, name)))
                slots.append((of, dense, state_dtype(options, dtype)))
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
            names = self._states(self.param_groups[plan.group_of[i]], p)
            state = self.state[p] if names else {}
            extra = self._extra[p]
            plan.native.bind(
                i,
                [state[name] for name in names],
                extra.get("ema"),
                None if copies is None else copies[i],
                extra.get("remainder"),
                state,
                names,
            )

    # Opaque to torch.compile: a graph break, not a trace through the native plan.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        params = [p for group in self.param_groups for p in group["params"]]
        return [self._extra.get(p, {}).get("ema", p.detach()) for p in params]

    def memory(self) -> dict[str, int]:
        """Bytes of the tensors beside the parameters, by name."""
        total: dict[str, int] = {}
        for held in (*self.state.values(), *self._extra.values()):
            for name, value in held.items():
                total[name] = total.get(name, 0) + value.nbytes
        return total

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's layout, with its step counts; what it has no place for under "saddlepoint"."""
        clocks = dict(self._current_clocks())
        own = self.state
        full: defaultdict[Tensor, Any] = defaultdict(dict)
        for p, (steps, carry) in clocks.items():
            names = self._states(self._group_of(p), p)
            if self.counts:
                full[p]["step"] = _scalar(float(steps))
            full[p] |= {n: _scalar(c) for n, c in zip(self.carried, carry, strict=False)}
            full[p] |= {name: own[p][name] for name in names}
            if not full[p]:
                del full[p]
        self.state = full
        try:
            saved: dict[str, Any] = super().state_dict()
        finally:
            self.state = own
        places = {p: i for i, p in enumerate(self._flat())}
        ours: dict[str, Any] = {"steps": {places[p]: steps for p, (steps, _) in clocks.items()}}
        for name in ("ema", "remainder"):
            if held := {places[p]: x[name] for p, x in self._extra.items() if name in x}:
                ours[name] = held
        saved[_OURS] = ours
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state dict of this class or of PyTorch's own.

        Averages and remainders that it lacks begin anew at the parameters.

        Raises
        ------
        ValueError
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
        numbers = [i for group in given["param_groups"] for i in group["params"]]
        if len(numbers) != len(flat):
            return  # PyTorch says it better
        groups = {i: {**self.defaults, **g} for g in given["param_groups"] for i in g["params"]}
        for i, p in zip(numbers, flat, strict=True):
            entry = given["state"].get(i)
            if not entry:
                continue
            if self.counts and "step" not in entry:
                raise ValueError(expected("state", "a step count", sorted(entry)))
            names = self._states({**groups[i], "params": [p]}, p)
            known = {"step", *self.carried, *names}
            if not set(names) <= set(entry) or not set(entry) <= known:
                raise ValueError(expected("state", sorted(known), sorted(entry)))
            for name in names:
                shape = self._shape(name, tuple(p.shape))
                if entry[name] is not None and tuple(entry[name].shape) != shape:
                    raise ValueError(expected(name, f"shape {shape}", tuple(entry[name].shape)))

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_options": self._options,
            "_clocks": dict(self._current_clocks()),
            "_extra": self._extra,
            "_step_supports_amp_scaling": True,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        self._planned_state = None
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if hasattr(self, "_ours_loaded"):
            self._unwrap(self._ours_loaded)

    def _unwrap(self, loaded: dict[str, Any]) -> None:
        """Make our states and clocks of what ``load_state_dict`` left."""
        ours = loaded.get(_OURS, {})
        self._clocks, self._extra = {}, {}
        flat = self._flat()
        held = self.state
        self.state = defaultdict(dict)
        entries = [
            {k: v.value if isinstance(v, _Kept) else v for k, v in held.get(p, {}).items()}
            for p in flat
        ]
        for i, (p, entry) in enumerate(zip(flat, entries, strict=True)):
            names = self._states(self._group_of(p), p)
            begun = bool(entry) and all(entry[name] is not None for name in names)
            steps = ours.get("steps", {}).get(i, 1 if begun else 0)
            if "step" in entry:
                steps = int(entry["step"])
            if steps:
                self._clocks[p] = (steps, [float(entry[name]) for name in self.carried])
            for name, tensor in zip(names, _tensors_like(self, p, names), strict=True):
                if begun:
                    self.state[p][name] = tensor.copy_(entry[name])
            for name in ("ema", "remainder"):
                if i in ours.get(name, {}):
                    self._extra.setdefault(p, {})[name] = ours[name][i].clone().to(p.device)

    def _flat(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _group_of(self, p: Tensor) -> Group:
        return next(g for g in self.param_groups if any(p is q for q in g["params"]))


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


def _tensors_like(rule: Optimizer, p: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    """Zeros for the states of a parameter, that lie as it does."""
    dtype = state_dtype(rule._options, str(p.dtype).removeprefix("torch."))
    out = []
    for name in names:
        of = rule._shape(name, tuple(p.shape))
        strides = torch.empty_like(p, device="meta") if of == p.shape else torch.empty(of)
        out += _tensors(p.device, [(of, tuple(strides.stride()), dtype)])
    return out


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
