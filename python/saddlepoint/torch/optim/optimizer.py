"""What the optimizers of PyTorch's parameters share."""

from __future__ import annotations

import math
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from ...errors import brief, expected, instance, number
from ...kinds import device_of
from ...optim.arrays import allocate
from ...optim.checks import check_params, check_saved, each_once, steps_of
from ...optim.options import Common, Group, Options, state_dtype
from ...optim.plan import Plan
from ...optim.rules import Rule
from .sharded import norm_over_processes, of_shard, refuse_shard, shard, wants_processes

__all__ = ["Optimizer"]

# What PyTorch's optimizers have in their groups, and what makes no difference here.
_IGNORED = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}

# Until 2.5 or so increment_version took one tensor.
_TAKES_MANY = "Iterable" in str(increment_version.__annotations__)

# What options put beside a parameter, whatever the rule: an average, and the bits of a master.
_BESIDE = ("ema", "remainder")

_Slot = tuple[tuple[int, ...], tuple[int, ...], str]  # shape, strides, dtype


class _Changes:
    """Whether somebody changed an entry of an optimizer's state, and what to hold for it."""

    def __init__(self, lock: threading.RLock | None = None) -> None:
        self.made = False
        self.lock = lock or threading.RLock()


class _Entry(dict[str, Any]):
    """A parameter's states; tells when they are replaced, which the native plan must hear of."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.changes = _Changes()

    def __reduce__(self) -> Any:
        return _Entry, (dict(self),)


class _State(defaultdict[Tensor, Any]):
    """``Optimizer.state``, which tells of changes as its entries do."""

    def __init__(self, given: Mapping[Tensor, Any], changes: _Changes | None = None) -> None:
        super().__init__(None)
        self.changes = changes or _Changes()
        self.changes.made = True
        self.update(given)

    def __missing__(self, p: Tensor) -> Any:
        self[p] = {}
        return self[p]

    def __setitem__(self, p: Tensor, value: Any) -> None:
        if isinstance(value, dict):
            value = value if isinstance(value, _Entry) else _Entry(value)
            value.changes = self.changes
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
    """Have a method of ``kind`` tell of the change that it makes, which waits for a step's end."""
    method = getattr(kind, name)

    def told(self: Any, *given: Any, **named: Any) -> Any:
        with self.changes.lock:
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
for _name in ("__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem"):
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
        check_params(params)
        self._begin()
        ignored = {k: common.get(k, v) for k, v in _IGNORED.items()}
        torch.optim.Optimizer.__init__(self, params, {**defaults, **ignored})
        self._step_supports_amp_scaling = True

    def _begin(self) -> None:
        self._plan: Plan | None = None
        self._owners: list[Tensor] = []  # of the plan's tensors,
        self._sharded = False  # which may be their shards
        self._unplanned: list[Tensor] = []
        # Over all processes, where several have a share: the norm, and whether it spoilt the step.
        self._shared_norm: float | None = None
        self._shared_skip = False
        if "_lock" not in self.__dict__:
            self._lock = threading.RLock()

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The states by parameter, as PyTorch's, with "ema" and "remainder" among them.

        On CUDA the "step" is brought up to date by asking for this.
        """
        with self._lock:
            self._show_clocks()
            self._lent = True
            return self._state

    @state.setter
    def state(self, given: Mapping[Tensor, Any]) -> None:
        with self._lock:
            self._state = _State(given, _Changes(self._lock))
            # Whether others may have a tensor of the state: only then it can move.
            self._lent = bool(given)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as ``torch.optim.Optimizer.add_param_group``."""
        with self._lock:
            self._add(param_group)

    def _add(self, param_group: Group) -> None:
        if "params" not in instance("param_group", param_group, dict, "a dict"):
            raise ValueError(expected("param_group", '"params"', brief([*param_group])))
        with warnings.catch_warnings():
            # It warns of a parameter that stands twice in a group, which is an error here.
            warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
            super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            each_once(group["params"], group.get("param_names"))
            self._check(group)
            if self.whole:
                for p in group["params"]:
                    refuse_shard(p, type(self).__name__)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @staticmethod
    def profile_hook_step(step: Callable[..., Any]) -> Callable[..., Any]:
        """PyTorch's, which takes longer than a small step, where it has something to tell."""
        hooked = torch.optim.Optimizer.profile_hook_step(step)

        @wraps(step)
        def told(self: Optimizer, *given: Any, **named: Any) -> Any:
            heard = (
                torch._C._autograd._profiler_enabled()
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
            )
            return (hooked if heard else step)(self, *given, **named)

        return told

    def _flat(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _numbers(self) -> tuple[str, ...]:
        """The names of the numbers in a parameter's state: how often it was stepped, and so on."""
        counted = self.counts or self._options.stochastic_rounding is not None
        return ("step", *self.carried) if counted else ()

    def _beside(self) -> tuple[str, ...]:
        """The names of what the options put beside a parameter."""
        asked = (self._options.ema_decay is not None, self._options.master)
        return tuple(name for name, wanted in zip(_BESIDE, asked, strict=True) if wanted)

    def _forget_plan(self) -> None:
        """Have another plan made when one is next needed."""
        self._show_clocks()
        self._plan = None

    def _show_clocks(self) -> None:
        """Write what a CUDA plan counts on the device into the entries; on the CPU it is there."""
        if self._plan is None or self._plan.device == "cpu" or not self._numbers():
            return
        for i, p in enumerate(self._owners):
            entry = self._state.get(p, {})
            steps, carry = self._plan.native.clock(i)
            for name, value in zip(self._numbers(), (steps, *carry), strict=False):
                if name in entry:
                    entry[name].fill_(value)

    def _clock(self, p: Tensor, names: tuple[str, ...]) -> tuple[int, list[float]]:
        """How often ``p`` was stepped, and what its rule carries on, by its entry."""
        entry = self._state.get(p) or {}
        if self._numbers() and all(name in entry for name in self._numbers()):
            steps, *carry = (entry[name] for name in self._numbers())
            return steps_of(steps), [number("state", value) for value in carry]
        # A momentum comes without a count: its first step is behind it.
        return int(any(entry.get(name) is not None for name in names)), []

    def _ready_plan(self) -> Plan:
        plan = self._plan
        groups = self._planned_groups() if self._unplanned or self._sharded else self.param_groups
        if plan and not self._state.changes.made and plan.fits(self, groups):
            return plan
        self._forget_plan()
        self._unplanned = [p for p in self._flat() if is_lazy(p)]
        groups = self._planned_groups()
        self._owners = [p for p in self._flat() if not is_lazy(p)]
        self._sharded = any(shard(p) is not p for p in self._owners)
        for p in self._owners:
            if p.is_meta or hasattr(p, "fake_mode"):
                got = "one on the meta device" if p.is_meta else "a fake one"
                raise TypeError(expected("params", "tensors with memory of their own", got))
        first = next(iter(self._owners), None)
        device = "cpu" if first is None else device_of(shard(first).detach())
        plan = Plan(self, groups, self._options, device)
        self._begin_copies(plan)
        for i, (p, owner) in enumerate(zip(plan.params, self._owners, strict=True)):
            steps, carry = self._clock(owner, self._states(groups[plan.group_of[i]], p))
            if steps:
                plan.native.set_clock(i, steps, carry)
        self._plan = plan
        self._state.changes.made = False
        return plan

    def _begin_copies(self, plan: Plan) -> None:
        """Give the copies the parameters' values, which stay where no gradient ever comes."""
        copies = self._options.copies
        if copies is None:
            return
        if len(copies) != len(plan.params):
            raise ValueError(expected("copies", f"{len(plan.params)} tensors", len(copies)))
        pairs = [(c, p) for c, p in zip(copies, plan.params, strict=True) if c is not None]
        for c, p in pairs:
            _check_shape("copies", c, tuple(p.shape))
            if c is p:
                raise ValueError(expected("copies", "memory of its own", "the parameter"))
        for c, p in pairs:
            c.detach().copy_(p.detach())

    def _planned_groups(self) -> list[Group]:
        """The groups with the tensors that a plan works on: shards, and none without a shape."""
        return [
            {**group, "params": [shard(p) for p in group["params"] if not is_lazy(p)]}
            for group in self.param_groups
        ]

    def _bind(self, plan: Plan, missing: list[int]) -> None:
        """Give parameters what they lack, and tell the plan of all that is beside them."""
        self._fill(plan, missing)
        numbers = self._numbers() if plan.device == "cpu" else ()
        copies = self._options.copies
        for i in missing:
            entry = self._state.get(self._owners[i], {})
            names = self._states(self.param_groups[plan.group_of[i]], plan.params[i])
            ema, remainder = (
                shard(entry[name]) if name in self._beside() else None for name in _BESIDE
            )
            plan.native.bind(
                i,
                [shard(entry[name]) for name in names],
                ema,
                None if copies is None else copies[i],
                remainder,
                [entry[name] for name in numbers],
            )
        self._state.changes.made = False

    def _fill(self, plan: Plan, which: list[int]) -> None:
        """Put into the entries of parameters what the rule and the options want there."""
        wanted: list[tuple[Tensor, str, float | Tensor]] = []
        slots: list[_Slot] = []
        for i in which:
            p, owner = plan.params[i], self._owners[i]
            group = self.param_groups[plan.group_of[i]]
            shape, strides, dtype = plan.native.dense(i)
            names = (*self._states(group, p), *self._beside())
            if not (names or self._numbers()):
                continue
            entry = self._state[owner]
            steps, carry = plan.native.clock(i)
            for name, value in zip(self._numbers(), (steps, *carry), strict=False):
                if not _is_scalar(name, entry.get(name)):
                    entry[name] = _scalar(name, value)
            for name in names:
                slot = self._slot(name, shape, strides, dtype)
                held = entry.get(name)
                if held is None:
                    fresh = p.detach() if name == "ema" else self._initial(group, name)
                    wanted.append((owner, name, fresh))
                    slots.append(slot)
                    continue
                _check_shape(name, shard(held), slot[0])
                cast_since = (held.dtype == torch.float64) != (slot[2] == "float64")
                # Rules on whole tensors read their states as they are laid out here.
                lies = not self.whole or shard(held).stride() == slot[1]
                if cast_since or not lies:
                    wanted.append((owner, name, shard(held)))
                    slots.append(slot)
        made = _tensors(plan.params[which[0]].device, slots)
        for (owner, name, initial), tensor in zip(wanted, made, strict=True):
            if isinstance(initial, Tensor):
                tensor.copy_(initial)
            elif initial:
                tensor.fill_(initial)
            self._state[owner][name] = of_shard(tensor, owner)

    def _slot(
        self, name: str, shape: tuple[int, ...], strides: tuple[int, ...], dtype: str
    ) -> _Slot:
        """Where something lies beside a parameter that lies so."""
        if name in _BESIDE:
            average = "float64" if dtype == "float64" else "float32"
            return shape, strides, average if name == "ema" else "int16"
        of = self._shape(name, shape)
        dense = strides if of == shape else torch.empty(of, device="meta").stride()
        return of, tuple(dense), state_dtype(self._options, dtype)

    def _run(
        self, plan: Plan, options: Options, factor: float | None, scale: Tensor | None
    ) -> None:
        grads = None
        if self._sharded:
            grads = [None if (g := p.grad) is None else shard(g, p) for p in self._owners]
        device = plan.params[0].device if plan.params else torch.device("cpu")
        plan.run(
            self,
            self.param_groups,
            options,
            grads,
            partial(self._bind, plan),
            loss_scale=factor,
            scale=scale,
            found_inf=getattr(self, "found_inf", None),
            # torch.cuda.current_stream makes an object of it first.
            stream=torch._C._cuda_getCurrentRawStream(device.index)
            if device.type == "cuda"
            else None,
            lent=self._lent,
        )

    # Opaque to torch.compile: a graph break, not a trace through the native plan. As PyTorch's own
    # optimizers say it: `torch.compiler.disable` takes a second of every import.
    @_disable_dynamo
    def _step_now(self) -> None:
        plan = self._ready_plan()
        options, scale = self._options, getattr(self, "grad_scale", None)
        factor = None
        if (options.max_norm is not None or options.check_finite) and wants_processes(
            self._owners, options.process_group
        ):
            factor = self._shared_factor(scale)
            if factor is None:
                return
            options = replace(options, max_norm=None, check_finite=False)
        try:
            self._run(plan, options, factor, scale)
        except TypeError:
            if all(
                str(p.dtype) == f"torch.{plan.native.dense(i)[2]}"
                for i, p in enumerate(plan.params)
            ):
                raise
            self._forget_plan()  # parameters were cast
            plan = self._ready_plan()
            self._run(plan, options, factor, scale)
        stepped = self._owners
        if not plan.native.all_stepped:
            stepped = [stepped[i] for i in plan.native.stepped()]
        _written(stepped)
        if options.zero_grads:
            _written([g for p in stepped if (g := p.grad) is not None])

    def _shared_factor(self, scale: Tensor | None) -> float | None:
        """What the gradients are divided by, for the norm that all processes have; None to skip."""
        grads = [g for p in self._owners if (g := p.grad) is not None]
        norm = norm_over_processes(grads, self._options.process_group)
        norm /= 1.0 if scale is None else float(scale)
        self._shared_norm = norm
        self._shared_skip = self._options.check_finite and not math.isfinite(norm)
        if self._shared_skip:
            if self._options.zero_grads:
                torch._foreach_zero_([shard(g) for g in grads])
            return None
        if self._options.max_norm is None:
            return 1.0
        # As clip_grad_norm_; a norm that is not a number goes through.
        factor = (norm + 1e-6) / self._options.max_norm
        return 1.0 if factor <= 1.0 else factor

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
        with self._lock:
            self._step_now()
        return loss

    @property
    def grad_norm(self) -> float:
        """The norm of all gradients at the last step, unscaled, before clipping.

        Only with ``max_norm`` or ``check_finite``.
        """
        if self._options.max_norm is None and not self._options.check_finite:
            raise ValueError(expected("grad_norm", "max_norm or check_finite to be set", "neither"))
        with self._lock:
            if self._shared_norm is not None:
                return self._shared_norm
            return float(self._plan.native.norm) if self._plan else 0.0

    @property
    def skipped(self) -> bool:
        """Whether the last step was left out because the gradients were not finite."""
        with self._lock:
            return self._shared_skip or bool(self._plan and self._plan.native.skipped)

    @property
    def ema(self) -> list[Tensor]:
        """The parameters' exponential moving averages, in the order of the groups."""
        if self._options.ema_decay is None:
            raise ValueError(expected("ema", "ema_decay to be set", "None"))
        with self._lock:
            self._lent = True
            for p in self._flat():
                if not is_lazy(p) and "ema" not in self._state.get(p, {}):
                    wide = torch.float64 if p.dtype == torch.float64 else torch.float32
                    self._state[p]["ema"] = p.detach().to(wide, copy=True)
            return [p.detach() if is_lazy(p) else self._state[p]["ema"] for p in self._flat()]

    def memory(self) -> dict[str, int]:
        """Bytes of the tensors beside the parameters, by name."""
        total: dict[str, int] = {}
        with self._lock:
            for entry in self._state.values():
                for name, value in entry.items():
                    if isinstance(value, Tensor) and name not in self._numbers():
                        total[name] = total.get(name, 0) + shard(value).nbytes
        return total

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's layout; averages and remainders are among the states."""
        with self._lock:
            self._show_clocks()
            own, lent = self._state, self._lent or bool(self._state)
            # As plain dicts, which any loader takes. The base class packs `self.state`.
            self._state = cast(Any, {p: dict(entry) for p, entry in own.items() if entry})
            try:
                saved: dict[str, Any] = super().state_dict()
            finally:
                self._state, self._lent = own, lent
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state dict of this class or of PyTorch's own.

        Averages and remainders that it lacks begin anew at the parameters; those that this
        optimizer does not keep are left out.

        Raises
        ------
        TypeError, ValueError
            For other names, shapes, numbers or groups; nothing has been changed then.
        """

        def keep(_: Any, given: dict[str, Any]) -> dict[str, Any]:
            self._check_loaded(given)
            state = {
                i: {name: _Kept(value) for name, value in entry.items()}
                for i, entry in given["state"].items()
            }
            return {**given, "state": state}

        instance("state_dict", state_dict, dict, "a dict")
        with self._lock:
            # Registered last, so that it sees what other hooks made of the dict.
            handle = self.register_load_state_dict_pre_hook(cast(Any, keep))
            try:
                super().load_state_dict(state_dict)
            finally:
                handle.remove()

    def _check_loaded(self, given: dict[str, Any]) -> None:
        check_saved(given, dict)
        flat = self._flat()
        groups = given["param_groups"]
        for group in groups:
            instance("params", group.get("params"), list, "a list in each of param_groups")
        numbers = [i for group in groups for i in group["params"]]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            return  # PyTorch says it better
        of: dict[Any, Group] = {}
        for group, own in zip(groups, self.param_groups, strict=True):
            loaded = {**self.defaults, **group, "params": own["params"]}
            self._check(loaded)
            of |= {
                i: {**loaded, "params": [p]}
                for i, p in zip(group["params"], own["params"], strict=True)
            }
        for i, p in zip(numbers, flat, strict=True):
            entry = instance("state", given["state"].get(i) or {}, dict, "dicts")
            if not entry:
                continue
            names = self._states(of[i], p)
            needed = {*(self._numbers() if self.counts else ()), *names}
            known = {*needed, *self.states, *self._numbers(), *_BESIDE}
            own_names = set(self._state[p]) if p in self._state else set()
            # Without its states a parameter has what the options put beside it.
            begun = set(entry) - set(_BESIDE)
            if (begun and not needed <= set(entry)) or not set(entry) <= known | own_names:
                raise ValueError(expected("state", sorted(known), sorted(map(str, entry))))
            for name in (*names, *self._beside()):
                if entry.get(name) is not None:
                    _check_shape(name, entry[name], self._slot(name, tuple(p.shape), (), "")[0])
            for name in self._numbers():
                if name in entry:
                    (steps_of if name == "step" else partial(number, name))(entry[name])

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_options": self._options,
            "_step_supports_amp_scaling": True,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()
        if "state" in self.__dict__:
            self.state = self.__dict__.pop("state")
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        if any(isinstance(v, _Kept) for entry in self._state.values() for v in entry.values()):
            self._unwrap()

    def _unwrap(self) -> None:
        """Make our states of what ``load_state_dict`` left."""
        given = {p: {k: v.value for k, v in entry.items()} for p, entry in self._state.items()}
        self.state = {}
        begun: list[tuple[Tensor, str]] = []
        slots: dict[torch.device, list[_Slot]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                entry = given.get(p, {})
                for name in _BESIDE:
                    if name not in self._beside():
                        entry.pop(name, None)
                for name in self._numbers():
                    if name in entry:
                        entry[name] = _scalar(name, entry[name])
                local = shard(p)
                names = () if is_lazy(p) else (*self._states(group, local), *self._beside())
                for name in names:
                    if entry.get(name) is None:
                        entry.pop(name, None)
                        continue
                    dtype = str(p.dtype).removeprefix("torch.")
                    strides = torch.empty_like(local, device="meta").stride()
                    slot = self._slot(name, tuple(local.shape), tuple(strides), dtype)
                    slots.setdefault(local.device, []).append(slot)
                    begun.append((p, name))
                # What is not to be made here is the dict's, which others have.
                self._lent = self._lent or not entry.keys() <= {*names, *self._numbers()}
                if entry:
                    self._state[p] = entry
        made = {device: iter(_tensors(device, of)) for device, of in slots.items()}
        for p, name in begun:
            tensor = next(made[shard(p).device]).copy_(shard(self._state[p][name]))
            self._state[p][name] = of_shard(tensor, p)


def _check_shape(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise unless ``value`` is a tensor of ``shape``."""
    if not isinstance(value, Tensor):
        raise TypeError(expected(name, "a tensor", type(value).__name__))
    if value.is_meta or value.layout != torch.strided or value.is_complex():
        kind = "a meta" if value.is_meta else f"a {value.dtype} {value.layout}"
        raise TypeError(expected(name, "a real dense tensor with memory", f"{kind} one"))
    if tuple(value.shape) != shape:
        raise ValueError(expected(name, f"shape {shape}", tuple(value.shape)))


def _written(tensors: list[Tensor]) -> None:
    """Tell autograd that tensors changed."""
    if _TAKES_MANY:
        increment_version(tensors)
    else:
        for t in tensors:
            increment_version(t)


def _scalar(name: str, value: Any) -> Tensor:
    """A number as PyTorch keeps it; what a rule carries on stays exact in float64."""
    wide = name != "step" or torch.get_default_dtype() == torch.float64
    return torch.tensor(float(value), dtype=torch.float64 if wide else torch.float32)


def _is_scalar(name: str, held: Any) -> bool:
    """Whether an entry's number can be shown in place."""
    kinds = (torch.float32, torch.float64) if name == "step" else (torch.float64,)
    plain = isinstance(held, Tensor) and held.device.type == "cpu" and held.dtype in kinds
    return plain and held.numel() == 1


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
