"""The loss of a PyTorch module on data, as an objective."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from ..errors import DeviceError, brief, count, expected, instance, one_of
from ..kinds import ArrayLike, device_of, dtype_name, float_dtype, kind_of
from ..nn.objective import NetworkLinearization, NetworkObjective
from ..vector import axpy, check_directions, copy, norm
from .batches import Batch, LossFunction, batches_of, joined, mapped, tensors
from .conditions import couples_rows, kept_random_state, normalizations, precise, running, seed
from .network import native_objective
from .theta import (
    Layout,
    Selection,
    as_kind,
    as_tensor,
    exchanged,
    unwrapped,
    written_parameters,
)

__all__ = ["ModuleLinearization", "ModuleObjective", "objective"]

_GIB = 1 << 30
_SEED = 0  # of the one mask of dropout="fixed"


class ModuleObjective:
    """The loss of a PyTorch module on data, for `hessian`, `eigsh`, `classify` and `escape`.

    Parameters
    ----------
    module : torch.nn.Module
        It is found again as it was: parameters, buffers, gradients, modes, random state. Wrappers
        of ``torch.compile``, DataParallel and DistributedDataParallel are taken off.
    loss : callable
        ``loss(output, target)``, PyTorch's modules and functions among them; or
        ``loss(module, batch)``, told by the name of its first argument (module, model or net), for
        modules that compute their loss. Either returns one number, or (total, count) where it is
        a mean over something else than samples: tokens that are no padding, say.
    data : pair, list of pairs, or DataLoader
        (input, target) pairs of tensors. A tuple as input is the module's arguments, a mapping its
        named ones. Loaders are read once, in their order; those that shuffle are refused.
    params : str, iterable of str, or callable, optional
        Names or patterns of parameters, or ``f(name, parameter) -> bool``; by default all that ask
        for gradients. Those that the loss does not use have zero gradients.
    batch_norm : "frozen" or "batch"
        Normalize with the running statistics, or with those of each batch, through which the
        derivatives go. Statistics are never updated.
    dropout : "off" or "fixed"
        No dropout, or one mask for each batch, the same in every evaluation. With "fixed" all
        submodules but normalizations are in training mode.
    micro_batch : int, optional
        Rows that are evaluated together, where samples do not depend on each other.
    device : optional
        For a check: data go to the module's device.
    group : torch.distributed group, or True, optional
        Each rank has its share of the data; losses, gradients and products are of all. True is the
        default group.
    dtype : float32 or float64, optional
        Compute in it, whatever the parameters are: they, buffers and data are converted on the way.
    memory_budget : int
        Bytes that the stored activations may take; above it, products recompute them batch by
        batch.
    engine : "auto", "autograd" or "native"
        What computes Hessian products: PyTorch's double backward, or the kernels of this package,
        which have linear layers, activations and batch normalization of (N, C) in Sequentials, with
        a mean of cross-entropy or squares. "auto" takes the native ones where they have everything,
        and where loss and gradient at θ agree with PyTorch's to rounding.

    Attributes
    ----------
    size : int
        n. It works on arrays (n,) of its ``dtype``: PyTorch's, NumPy's, or `Vector`.
    parts : dict
        Where each parameter lies in θ, by name.
    native : NetworkObjective or None
        The same objective on the native engine, where that has its layers and its loss.

    Raises
    ------
    TypeError, ValueError
        For modules with lazy, meta, complex, sparse, quantized or distributed parameters, half
        precision without ``dtype``, data without samples, a loader that shuffles, a loss that is
        no scalar, or a ``micro_batch`` where batch statistics couple rows.

    Notes
    -----
    Every sample weighs the same: a batch's mean counts by what it is a mean over (samples,
    elements, labels that are not ignored, by their class weights). Attention runs by PyTorch's math
    kernel, the one that has a second derivative; float32 is float32, without TensorFloat-32.

    Examples
    --------
    >>> import torch, saddlepoint as sp, saddlepoint.torch as st
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> x = torch.randn(8, 2)
    >>> loss = st.objective(model, torch.nn.functional.mse_loss, (x, x.sum(1, keepdim=True)))
    >>> H = sp.hessian(loss, st.get_theta(model))
    >>> H.shape, (H @ torch.ones(13)).shape
    ((13, 13), torch.Size([13]))
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Any,
        data: Any,
        params: Selection = None,
        batch_norm: str = "frozen",
        dropout: str = "off",
        micro_batch: int | None = None,
        device: Any = None,
        group: Any = None,
        dtype: DTypeLike | None = None,
        memory_budget: int = 2 * _GIB,
        engine: str = "auto",
    ) -> None:
        self.module = unwrapped(module)
        one_of("batch_norm", batch_norm, ("frozen", "batch"))
        one_of("dropout", dropout, ("off", "fixed"))
        one_of("engine", engine, ("auto", "autograd", "native"))
        count("memory_budget", memory_budget, 0, 2**62)
        if micro_batch is not None:
            count("micro_batch", micro_batch, 1)
        self._params = params
        self._batch_norm, self._dropout = batch_norm, dropout
        self._lock = threading.Lock()  # the module is in its modes for one at a time
        self._budget, self._group = memory_budget, _checked_group(group)
        _refuse_quantized(self.module)
        self._converts = dtype is not None
        kind = None if dtype is None else getattr(torch, float_dtype(dtype).name)
        self.layout = Layout.of(self.module, params, kind)
        if device is not None and str(device).partition(":")[0] != self.layout.device.type:
            wanted = f"the module's device ({self.layout.device}; move it by module.to)"
            raise ValueError(expected("device", wanted, brief(device)))
        self.size = self.layout.size
        self.dtype = np.dtype(str(self.layout.dtype).removeprefix("torch."))
        self.device = self.layout.device.type
        self._loss = LossFunction(loss)
        # A loader draws from PyTorch's generator even where it does not shuffle.
        with kept_random_state(self.layout.device):
            self._batches = batches_of(data, self._place, self._loss.whole)
        if micro_batch is not None:
            self._batches = self._cut(micro_batch)
        self._weights = self._weighed()
        # A mean over nothing is not a number.
        counted = [i for i, weight in enumerate(self._weights) if weight != 0.0]
        self._batches = [self._batches[i] for i in counted]
        self._weights = [self._weights[i] for i in counted]
        self._recomputes: bool | None = None
        self._engine = engine
        #: The same objective on the native engine, where that has its layers and its loss.
        self.native = None if engine == "autograd" else self._natively()

    def _natively(self) -> NetworkObjective | None:
        couples = self._batch_norm == "batch" and bool(normalizations(self.module))
        try:
            if (
                self._group is not None
                or self._dropout == "fixed"
                or self.layout.size != sum(p.numel() for p in self.module.parameters())
            ):
                what = "all parameters, no group, and no dropout"
                raise ValueError(expected("engine", what, "others"))
            return native_objective(
                self.module, self._loss, self._batches, "batch" if couples else "frozen",
                self.dtype, self.device, self._budget,
            )  # fmt: skip
        except (ValueError, DeviceError, MemoryError):
            if self._engine == "native":
                raise
            return None

    # The data.

    def _place(self, x: Tensor) -> Tensor:
        converts = self._converts and x.is_floating_point()
        return x.detach().to(self.layout.device, self.layout.dtype if converts else None)

    def _cut(self, most: int) -> list[Batch]:
        """Batches of at most so many rows, which changes nothing where rows are alone."""
        if couples_rows(self.module, self._batch_norm):
            what = "None, since batch statistics couple the rows of a batch"
            raise ValueError(expected("micro_batch", what, most))
        pieces = []
        for batch in self._batches:
            for begin in range(0, batch.rows, most):
                rows = slice(begin, begin + most)

                def part(x: Tensor, all_: int = batch.rows, rows: slice = rows) -> Tensor:
                    return x[rows] if x.ndim and x.shape[0] == all_ else x

                pieces.append(
                    Batch(*(mapped(part, t) for t in (batch.inputs, batch.target, batch.whole)))
                )
        return pieces

    def _weighed(self) -> list[float]:
        """What each batch's loss counts for; the sum over the batches is that of the data."""
        parts, batches, counts = self._all_ranks(len(self._batches)), self._batches, None
        with self._modes(), torch.no_grad():
            said = self._evaluated(0)[1]
            if said is not None:
                rest = (self._evaluated(i)[1] for i in range(1, len(batches)))
                counts = [said, *(c or 0.0 for c in rest)]
            elif parts > 1 and (self._loss.sums or not (self._loss.known or self._means())):
                return [1.0] * len(batches)
        if counts is None:
            counts = [self._loss.weight(batch) for batch in batches]
        total = self._all_ranks(sum(counts))
        if not total > 0.0:
            raise ValueError(expected("data", "something that the loss counts", "nothing"))
        return [c / total for c in counts] if parts > 1 else [1.0]

    def _means(self) -> bool:
        """Whether a loss that nothing is known of is a mean over samples, and not a sum.

        Told by the first batch and the last, apart and as one. A loss of (module, batch) is taken
        for a mean over samples, unless it ignores labels.
        """
        first, last = self._batches[0], self._batches[-1]
        if self._loss.whole:
            labels = first.whole.get("labels") if isinstance(first.whole, dict) else None
            if isinstance(labels, Tensor) and bool((labels < 0).any()):
                what = "(total, count), since labels are ignored in part"
                raise ValueError(expected("loss", what, "one number"))
            return True

        def apart_and_together(module: Callable[..., Any]) -> list[float]:
            output, other = first.call(module), last.call(module)
            both = joined((output, first.target), (other, last.target))
            if both is None:  # of other lengths
                other, both = output, joined((output, first.target), (output, first.target))
            target = first.target if other is output else last.target
            losses = ((output, first.target), (other, target), both)
            return [float(self._loss.function(z, t)) for z, t in losses]

        one, another, both = self._with(apart_and_together)
        rows, others = first.rows, last.rows
        mean = (rows * one + others * another) / (rows + others)
        for value, answer in ((mean, True), (one + another, False)):
            if math.isclose(both, value, rel_tol=1e-4, abs_tol=1e-7):
                return answer
        what = "a mean or a sum over the samples of a batch, or (total, count)"
        got = f"{one:.6g} and {another:.6g} of two batches, {both:.6g} of them as one"
        raise ValueError(expected("loss", what, got))

    def _all_ranks(self, x: float) -> float:
        if self._group is None:
            return x
        shared = torch.tensor([x], dtype=torch.float64, device=self.layout.device)
        torch.distributed.all_reduce(shared, group=self._group)
        return float(shared)

    def _reduce(self, x: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self._group is not None:
            torch.distributed.all_reduce(x, group=self._group)
        return x

    # The module.

    @contextmanager
    def _modes(self) -> Iterator[None]:
        modes = running(self.module, self.layout.device, self._batch_norm, self._dropout)
        with self._lock, modes:
            yield

    def _with(self, f: Callable[[nn.Module], Any], parameters: list[Tensor] | None = None) -> Any:
        """f(module), on given parameters, its own by default, and on copies of its buffers."""

        def cast(x: Tensor) -> Tensor:
            converts = self._converts and x.is_floating_point()
            return x.detach().to(self.layout.dtype) if converts else x.detach()

        state = {name: cast(p) for name, p in self.module.named_parameters()}
        state |= {name: state[name].clone() for name in written_parameters(self.module)}
        state |= {name: cast(b).clone() for name, b in self.module.named_buffers()}
        if parameters is not None:
            state |= zip(self.layout.names, parameters, strict=True)
        with exchanged(self.module, state):
            return f(self.module)

    def _evaluated(
        self, index: int, parameters: list[Tensor] | None = None
    ) -> tuple[Tensor, float | None]:
        """The loss of a batch, and what it says that it counts; with the batch's dropout masks."""
        seed(self.layout.device, _SEED + index)
        batch = self._batches[index]
        loss, said = self._with(lambda module: self._loss(module, batch), parameters)
        return loss, said

    def _part(self, index: int, parameters: list[Tensor]) -> Tensor:
        """What a batch gives to the loss."""
        weight, loss = self._weights[index], self._evaluated(index, parameters)[0]
        return loss if weight == 1.0 else weight * loss  # a node less to go back through

    def _leaves(self, theta: Tensor) -> list[Tensor]:
        return [p.detach().requires_grad_() for p in self.layout.split(theta)]

    # The protocol.

    def check_theta(self, theta: ArrayLike) -> Tensor:
        """θ as a tensor on the module's device.

        Raises
        ------
        TypeError, ValueError
            For another dtype, shape or device.
        """
        there = as_tensor(theta, self.layout)
        if there.device.type != self.device:
            raise TypeError(expected("theta", f"device {self.device}", there.device.type))
        return there

    def loss(self, theta: ArrayLike) -> float:
        """L at θ."""
        # A copy, since there are modules that write to their parameters.
        parameters = self.layout.split(self.check_theta(theta).clone())
        with self._modes(), torch.no_grad():
            total = sum(float(self._part(i, parameters)) for i in range(len(self._batches)))
        return self._all_ranks(total)

    def gradient(self, theta: ArrayLike) -> ArrayLike:
        """∇L at θ, (n,), of the kind of ``theta``."""
        leaves = self._leaves(self.check_theta(theta).clone())
        total = torch.zeros(self.size, dtype=self.layout.dtype, device=self.layout.device)
        with self._modes():
            for i in range(len(self._batches)):
                total += self.layout.joined(_gradients(self._part(i, leaves), leaves, False))
        return as_kind(self._reduce(total), theta)

    def linearize(self, theta: ArrayLike) -> ModuleLinearization:
        """Loss, gradient and Hessian products at θ, which is copied."""
        self.check_theta(theta)
        return ModuleLinearization(self, copy(theta))

    def astype(self, dtype: DTypeLike) -> ModuleObjective:
        """The same objective in another precision."""
        return ModuleObjective(*self._arguments(dtype))

    def _arguments(self, dtype: DTypeLike | None) -> tuple[Any, ...]:
        """What `ModuleObjective` makes this one of; the batches have been read and cut."""
        data = [batch.whole for batch in self._batches]
        modes = (self._batch_norm, self._dropout)
        return (
            self.module, self._loss.function, data, self._params, *modes, None, None,
            self._group, dtype, self._budget, self._engine,
        )  # fmt: skip

    def __reduce__(self) -> Any:
        return ModuleObjective, self._arguments(self.dtype if self._converts else None)

    @property
    def parts(self) -> dict[str, slice]:
        """Where each parameter lies in θ."""
        ends = list(accumulate(self.layout.sizes))
        begins = (0, *ends[:-1])
        spans = zip(self.layout.names, begins, ends, strict=True)
        return {name: slice(begin, end) for name, begin, end in spans}

    def get_theta(self) -> Tensor:
        """θ of the module as it is now, in the objective's dtype."""
        parts = (self.module.get_parameter(name).detach() for name in self.layout.names)
        return self.layout.joined(parts).to(self.layout.dtype)

    @property
    def samples(self) -> int:
        """How many there are here; other ranks have theirs."""
        return sum(batch.rows for batch in self._batches)

    @property
    def recomputes(self) -> bool:
        """Whether products recompute the activations, as storing them exceeds the budget."""
        if self._recomputes is None:
            self._recomputes = len(self._batches) > 1 and self._stored() > self._budget
        return self._recomputes

    def _stored(self) -> float:
        """Bytes that autograd keeps for products, told by the first batch."""
        seen: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return x.detach()

        leaves = self._leaves(self.get_theta())
        with self._modes(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            _gradients(self._part(0, leaves), leaves, True)
        for leaf in leaves:
            seen.pop(leaf.untyped_storage().data_ptr(), None)
        return sum(seen.values()) * self.samples / self._batches[0].rows


def _gradients(loss: Tensor, leaves: list[Tensor], create_graph: bool) -> list[Tensor]:
    """∇L by parameters; zeros for those that the loss does not depend on."""
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(
        loss, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return list(found)


class ModuleLinearization:
    """A `ModuleObjective` at one point: it owns the graph of its gradient, and a copy of θ.

    Attributes
    ----------
    loss : float
    gradient : (n,) array
    """

    def __init__(self, objective: ModuleObjective, theta: ArrayLike) -> None:
        self._objective, self._theta = objective, theta
        self._leaves = objective._leaves(objective.check_theta(theta))
        self._graphs: list[list[Tensor]] = []  # the gradients of each batch
        self._pushed: list[_Pushed] = []
        self._native: NetworkLinearization | None = None
        if objective.native is not None:
            self._evaluate(False)
            native = objective.native.linearize(theta)
            if self._agrees(native):
                self._native = native
        if self._native is None:
            self._evaluate(not objective.recomputes)

    @property
    def engine(self) -> str:
        """What computes Hessian products here, "native" or "autograd"."""
        return "autograd" if self._native is None else "native"

    def _evaluate(self, keeps: bool) -> None:
        objective, layout = self._objective, self._objective.layout
        total, loss = torch.zeros(layout.size, dtype=layout.dtype, device=layout.device), 0.0
        with objective._modes():
            for index in range(len(objective._batches)):
                value, found = self._gradient_of(index, keeps)
                loss += float(value)
                total += layout.joined(g.detach() for g in found)
                if keeps:
                    self._graphs.append(found)
        self.loss = objective._all_ranks(loss)
        self.gradient: ArrayLike = as_kind(objective._reduce(total), self._theta)

    def _agrees(self, native: NetworkLinearization) -> bool:
        """Whether loss and gradient are PyTorch's, up to rounding in sums over samples."""
        apart = copy(self.gradient)
        axpy(-1.0, native.gradient, apart)
        scale = max(norm(self.gradient), abs(self.loss) / max(norm(self._theta), 1.0))
        limit = 1000.0 * float(np.finfo(self._objective.dtype).eps)
        near = math.isclose(native.loss, self.loss, rel_tol=limit, abs_tol=1e-300)
        return near and norm(apart) <= limit * scale

    def _gradient_of(self, index: int, graph: bool = True) -> tuple[Tensor, list[Tensor]]:
        value = self._objective._part(index, self._leaves)
        return value.detach(), _gradients(value, self._leaves, graph)

    def hvp(self, v: ArrayLike) -> ArrayLike:
        """H v for one direction (n,), or for each column of a block (n, k).

        Reverse over reverse, Hv = ∇(gᵀv) with the graph of g kept, or the native R-operator
        (Pearlmutter 1994); see ``engine``.

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.
        """
        if self._native is not None:
            check_directions(v, self._objective.size)
            _check_kind(v, self._objective)
            return self._native.hvp(v)

        def product(index: int) -> Callable[[list[Tensor]], list[Tensor]]:
            graph = self._graphs[index] if self._graphs else self._gradient_of(index)[1]
            return partial(_along, graph, self._leaves)

        return self._multiplied(v, product, bool(self._graphs))

    def ggnvp(self, v: ArrayLike) -> ArrayLike:
        """Jᵀ H_L J v for one direction (n,), or for each column of a block (n, k).

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape, or a loss that calls the module itself.
        """
        if self._objective._loss.whole:
            raise TypeError(expected("loss", "loss(output, target)", "one of (module, batch)"))
        if not self._pushed and not self._objective.recomputes:
            with self._objective._modes():
                indices = range(len(self._objective._batches))
                self._pushed = [_Pushed(self._objective, i, self._leaves) for i in indices]

        def product(index: int) -> Callable[[list[Tensor]], list[Tensor]]:
            if self._pushed:
                return self._pushed[index]
            return _Pushed(self._objective, index, self._leaves)

        return self._multiplied(v, product, bool(self._pushed))

    def _multiplied(
        self,
        v: ArrayLike,
        product: Callable[[int], Callable[[list[Tensor]], list[Tensor]]],
        kept: bool,
    ) -> ArrayLike:
        """The sum over batches of their products with each direction."""
        objective, layout = self._objective, self._objective.layout
        check_directions(v, objective.size)
        # As rows, each direction in one piece; a vector is a block of one.
        directions = _rows_of(kind_of(v).columns(v), objective)
        along = [layout.split(direction) for direction in directions]
        # A graph that is kept runs no module: only its precision is to be as it was.
        with precise(layout.device) if kept else objective._modes():
            sums = [layout.joined(f) for f in map(product(0), along)]
            for index in range(1, len(objective._batches)):
                for total, found in zip(sums, map(product(index), along), strict=True):
                    total += layout.joined(found)
        for total in sums:
            objective._reduce(total)
        return as_kind(sums[0], v) if len(v.shape) == 1 else as_kind(torch.stack(sums), v).T


def _along(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], directions: Sequence[Tensor]
) -> list[Tensor]:
    """∇ Σ outputsᵀdirections by the inputs; zeros where nothing depends on them."""
    live = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not live:
        return [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(
        [outputs[i] for i in live],
        inputs,
        [directions[i] for i in live],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(found)


class _Pushed:
    """Jᵀ H_L J of one batch: J by differentiating Jᵀu, which is linear in u, once more."""

    def __init__(self, objective: ModuleObjective, index: int, leaves: list[Tensor]) -> None:
        seed(objective.layout.device, _SEED + index)
        batch = objective._batches[index]
        output = objective._with(batch.call, leaves)
        self._leaves = leaves
        self._outputs = [z for z in tensors(output) if z.requires_grad]
        self._dummies = [torch.zeros_like(z).requires_grad_() for z in self._outputs]
        self._pulled: Sequence[Tensor] = ()
        if self._outputs:
            self._pulled = torch.autograd.grad(
                self._outputs,
                leaves,
                self._dummies,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        self._inputs: list[Tensor] = []  # of the loss, in place of the outputs

        def taken(z: Tensor) -> Tensor:
            if not z.requires_grad:
                return z
            self._inputs.append(z.detach().requires_grad_())
            return self._inputs[-1]

        loss = objective._loss.of_output(mapped(taken, output), batch)[0]
        self._slopes = _gradients(objective._weights[index] * loss, self._inputs, True)

    def __call__(self, direction: list[Tensor]) -> list[Tensor]:
        pushed = _along(self._pulled, self._dummies, direction)
        curved = _along(self._slopes, self._inputs, pushed)
        return _along(self._outputs, self._leaves, curved)


def _rows_of(rows: Any, objective: ModuleObjective) -> Tensor:
    _check_kind(rows, objective)
    there = rows.detach() if isinstance(rows, Tensor) else from_dlpack(rows)
    return there.reshape(-1, objective.size)


def _check_kind(v: Any, objective: ModuleObjective) -> None:
    dtype, device = dtype_name(v.dtype), device_of(v)
    if dtype != objective.dtype.name or device != objective.device:
        wanted = f"{objective.dtype} on {objective.device}"
        raise TypeError(expected("v", wanted, f"{dtype} on {device}"))


def _checked_group(group: Any) -> Any:
    """A process group, where there is one; that of all ranks for True."""
    if group is None:
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise ValueError(expected("group", "torch.distributed to be initialized", brief(group)))
    if group is True:
        return distributed.group.WORLD
    return instance("group", group, distributed.ProcessGroup, "a process group, True or None")


def _refuse_quantized(module: nn.Module) -> None:
    for name, part in module.named_modules():
        where = type(part).__module__
        if where.startswith("torch.") and ".quantized" in where:
            got = f"{name or 'itself'}, a {type(part).__name__}"
            raise TypeError(expected("module", "no quantized parts, which have no gradient", got))


#: What users call: ``st.objective(module, loss, data)``.
objective = ModuleObjective
