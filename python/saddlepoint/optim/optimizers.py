"""Optimizers of NumPy arrays, `Vector`s and writable DLPack tensors, updated in place."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import expected, number
from ..kinds import ArrayLike, check_array, device_of, dtype_name, is_array, kind_of
from ..vector import gather
from .arrays import State, allocate
from .checks import check_params, check_saved, each_once, steps_of
from .options import Common, Group, Options, state_dtype
from .plan import Plan
from .rules import Rule

__all__ = ["Optimizer"]


class Optimizer(Rule):
    """What the optimizers of arrays share: arrays updated in place, states beside them.

    `saddlepoint.optim` tells the arguments that all of them take.
    """

    #: The groups, as in PyTorch; hyper-parameters may be changed between steps.
    param_groups: list[Group]

    def _start(self, params: Any, defaults: Group, common: Common) -> None:
        self._options = Options.of(common)
        self.defaults = defaults
        if is_array(params):
            params = [params]
        check_params(params)
        given: list[Any] = list(params)
        grouped = [isinstance(g, dict) for g in given]
        if not any(grouped):
            given = [{"params": given}]
        elif not all(grouped):
            raise TypeError(expected("params", "arrays or groups", "both"))
        self.param_groups = []
        for group in given:
            if "params" not in group:
                raise ValueError(expected("params", 'groups with "params"', sorted(group)))
            arrays = group["params"]
            arrays = [arrays] if is_array(arrays) else list(arrays)
            self.param_groups.append({**defaults, **group, "params": arrays})
            self._check(self.param_groups[-1])
        flat = [p for group in self.param_groups for p in group["params"]]
        each_once(flat)
        for p in flat:
            check_array("params", p)
        if self._options.process_group is not None:
            wanted = "None: arrays lie in one process"
            raise ValueError(expected("process_group", wanted, self._options.process_group))
        self._device = device_of(flat[0]) if flat else "cpu"
        self._lock = threading.RLock()
        self._make_plan()

    def _make_plan(self) -> None:
        options = self._options
        plan = self._plan = Plan(self, self.param_groups, options, self._device)
        copies = options.copies if options.copies is not None else [None] * len(plan.params)
        if len(copies) != len(plan.params):
            raise ValueError(expected("copies", f"{len(plan.params)} arrays", len(copies)))
        self._names: list[tuple[str, ...]] = []
        wanted: list[tuple[tuple[int, ...], tuple[int, ...], str]] = []
        for i, p in enumerate(plan.params):
            group = self.param_groups[plan.group_of[i]]
            shape, strides, dtype = plan.native.dense(i)
            names = self._states(group, p)
            self._names.append(names)
            for name in names:
                of = self._shape(name, shape)
                lies = strides if of == shape else _c_strides(of)
                wanted.append((of, lies, state_dtype(options, dtype)))
            if options.ema_decay is not None:
                wanted.append((shape, strides, "float64" if dtype == "float64" else "float32"))
            if options.master:
                wanted.append((shape, strides, "int16"))
        arrays = iter(allocate(self._device, wanted))
        self._arrays: list[list[State]] = []
        self._ema: list[State] = []
        self._remainders: list[State] = []
        for i, p in enumerate(plan.params):
            group = self.param_groups[plan.group_of[i]]
            states = [next(arrays) for _ in self._names[i]]
            for name, state in zip(self._names[i], states, strict=True):
                initial = self._initial(group, name)
                if initial:
                    state.assign(np.full(state.shape, initial))
            self._arrays.append(states)
            if options.ema_decay is not None:
                self._ema.append(next(arrays))
                self._ema[-1].assign(_host(p))
            if options.master:
                self._remainders.append(next(arrays))
        self._bind(range(len(plan.params)))

    def _bind(self, which: Iterable[int]) -> None:
        """Tell the plan of the arrays beside parameters."""
        copies = self._options.copies
        for i in which:
            self._plan.native.bind(
                i,
                self._arrays[i],
                self._ema[i] if self._ema else None,
                None if copies is None else copies[i],
                self._remainders[i] if self._remainders else None,
            )

    def __getstate__(self) -> dict[str, Any]:
        own = {name: vars(self)[name] for name in ("defaults", "param_groups", "_options")}
        return {**own, "saved": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._start(state["param_groups"], state["defaults"], vars(state["_options"]))
        self.load_state_dict(state["saved"])

    @property
    def lr(self) -> float:
        """The rate of the first group; setting it sets that of every group."""
        rate: float = self.param_groups[0]["lr"] if self.param_groups else self.defaults["lr"]
        return rate

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.param_groups:
            group["lr"] = value

    @property
    def steps(self) -> int:
        """How often the parameter that was stepped most was stepped."""
        count = len(self._plan.params)
        with self._lock:
            return max((self._plan.native.clock(i)[0] for i in range(count)), default=0)

    @property
    def grad_norm(self) -> float:
        """The norm of all gradients at the last step, unscaled, before clipping.

        Only with ``max_norm`` or ``check_finite``.
        """
        if self._options.max_norm is None and not self._options.check_finite:
            raise ValueError(expected("grad_norm", "max_norm or check_finite to be set", "neither"))
        with self._lock:
            norm: float = self._plan.native.norm
        return norm

    @property
    def skipped(self) -> bool:
        """Whether the last step was left out because the gradients were not finite."""
        with self._lock:
            skipped: bool = self._plan.native.skipped
        return skipped

    @property
    def ema(self) -> list[ArrayLike]:
        """The parameters' exponential moving averages."""
        if self._options.ema_decay is None:
            raise ValueError(expected("ema", "ema_decay to be set", "None"))
        return list(self._ema)

    def step(
        self,
        grads: ArrayLike | Sequence[ArrayLike | None],
        loss_scale: float | None = None,
    ) -> None:
        """Update the parameters once.

        Parameters
        ----------
        grads : array, or sequence of arrays and None
            Of the parameters' shapes and dtypes, in the order of the groups; only read, unless
            ``zero_grads`` was asked for. None leaves its parameter, states and count as they are.
        loss_scale : float, optional
            What the loss was multiplied by; gradients are divided by it.

        Raises
        ------
        TypeError, ValueError
            For gradients of another dtype, shape or number, or that share memory with what is
            written; nothing has been written then.
        """
        if loss_scale is not None and not 0 < number("loss_scale", loss_scale) < math.inf:
            raise ValueError(expected("loss_scale", "above 0 and finite", loss_scale))
        with self._lock:
            if not self._plan.fits(self, self.param_groups):
                wanted = "the rules and parameters they began with"
                raise ValueError(expected("param_groups", wanted, "others"))
            alone = grads is None or is_array(grads)
            if not alone and not isinstance(grads, Iterable):
                what = "an array, or a list of arrays and None"
                raise TypeError(expected("grads", what, type(grads).__name__))
            many = [grads] if alone else list(grads)
            self._plan.run(
                self, self.param_groups, self._options, many, self._bind, loss_scale=loss_scale
            )

    def memory(self) -> dict[str, int]:
        """Bytes of the arrays beside the parameters, by name."""
        total: dict[str, int] = {}
        for names, states in zip(self._names, self._arrays, strict=True):
            for name, state in zip(names, states, strict=True):
                total[name] = total.get(name, 0) + state.nbytes
        if self._options.ema_decay is not None:
            total["ema"] = sum(a.nbytes for a in self._ema)
        if self._options.master:
            total["remainder"] = sum(a.nbytes for a in self._remainders)
        return total

    def state_dict(self) -> dict[str, Any]:
        """Everything a later run needs to go on exactly, as host arrays by parameter."""
        with self._lock:
            native = self._plan.native
            entries = []
            for i, (names, states) in enumerate(zip(self._names, self._arrays, strict=True)):
                steps, carry = native.clock(i)
                entry: dict[str, Any] = {"step": steps}
                entry |= dict(zip(self.carried, carry, strict=False))
                entry |= {n: s.numpy() for n, s in zip(names, states, strict=True)}
                if self._ema:
                    entry["ema"] = self._ema[i].numpy()
                if self._remainders:
                    entry["remainder"] = self._remainders[i].numpy()
                entries.append(entry)
            groups = [
                {k: v for k, v in group.items() if k != "params"} for group in self.param_groups
            ]
            return {"state": entries, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take what `state_dict` gave, for parameters of the same shapes.

        Raises
        ------
        TypeError, ValueError
            For anything else; nothing has been changed then.
        """
        entries, groups = self._checked_groups(saved)
        targets = []
        clocks = []
        for i, entry in enumerate(entries):
            named = dict(zip(self._names[i], self._arrays[i], strict=True))
            if self._ema:
                named["ema"] = self._ema[i]
            if self._remainders:
                named["remainder"] = self._remainders[i]
            names = {*named, "step", *self.carried}
            if not isinstance(entry, dict) or set(entry) != names:
                got = sorted(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
                raise ValueError(expected("state", sorted(names), got))
            for name, target in named.items():
                target.check(entry[name], name)
                targets.append((target, entry[name]))
            clocks.append((steps_of(entry["step"]), [number(n, entry[n]) for n in self.carried]))
        with self._lock:
            for target, values in targets:
                target.assign(values)
            for i, (steps, carry) in enumerate(clocks):
                self._plan.native.set_clock(i, steps, carry)
            for group, values in zip(self.param_groups, groups, strict=True):
                group.update(values)

    def _checked_groups(self, saved: Any) -> tuple[list[Any], list[Group]]:
        """The two parts of a state dict whose groups this optimizer can take."""
        check_saved(saved, list)
        entries, groups = saved["state"], saved["param_groups"]
        if len(entries) != len(self._arrays) or len(groups) != len(self.param_groups):
            wanted = f"{len(self._arrays)} parameters in {len(self.param_groups)} groups"
            got = f"{len(entries)} in {len(groups)}"
            raise ValueError(expected("state", wanted, got))
        for group, values, rule in zip(self.param_groups, groups, self._plan.rules, strict=True):
            if missing := sorted(set(self.defaults) - set(values)):
                raise ValueError(expected("param_groups", missing, sorted(values)))
            if "params" in values:
                raise ValueError(expected("param_groups", "no arrays", "params"))
            loaded = {**group, **values}
            self._check(loaded)
            if (other := self._rule(loaded)) != rule:
                raise ValueError(expected("param_groups", f"the rule {rule}", other))
        return entries, groups

    def update(
        self,
        params: ArrayLike | Iterable[ArrayLike],
        grads: ArrayLike | Sequence[ArrayLike | None],
        state: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """A step for arrays that cannot change, such as JAX's.

        Parameters
        ----------
        params : array or iterable of arrays
            Of the shapes of this optimizer's own, which stay as they are.
        grads : array or sequence of arrays and None
        state : dict, optional
            What the step before gave; None for the first step.

        Returns
        -------
        (params, state)
            New arrays, of the kind given, and what the next step takes.
        """
        single = is_array(params)
        given = [params] if single else list(params)
        for p in given:
            check_array("params", p)
        if len(given) != len(self._plan.params):
            raise ValueError(expected("params", f"{len(self._plan.params)} arrays", len(given)))
        rest = iter(kind_of(p).writable(p) for p in given)
        groups = [
            {**group, "params": [next(rest) for _ in group["params"]]}
            for group in self.param_groups
        ]
        other = object.__new__(type(self))
        other._start(groups, self.defaults, vars(self._options))  # type: ignore[arg-type]
        if state is not None:
            other.load_state_dict(state)
        other.step(grads)
        news = [
            kind_of(p).returned(new, p) for p, new in zip(given, other._plan.params, strict=True)
        ]
        return news[0] if single else news, other.state_dict()


def _c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[a + 1 :]) for a in range(len(shape)))


def _host(p: ArrayLike) -> NDArray[Any]:
    """The values on the host; bfloat16, which NumPy lacks, as float32."""
    return gather(kind_of(p).astype(p, np.float32) if dtype_name(p.dtype) == "bfloat16" else p)
