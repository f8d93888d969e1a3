"""Batch normalization in training: forward, backward, and the backward of the backward.

With the activation and the residual that PyTorch computes in passes of their own, in both memory
orders. Ours writes into arrays that are there; PyTorch allocates its outputs, so that eager has a
column with a malloc that keeps its pages besides, one in channels-last, and ``torch.compile`` has
one. PyTorch's in-place activations count as eager where autograd allows them.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saddlepoint import norm, vector

from . import peers
from .bench_optim import first_compilation
from .runner import Bar, Case, Clock, Contestant, Floor, Meter, Options, Roof
from .tuned import LIBRARY as TUNED
from .tuned import Tuned

TITLE = "Batch normalization"

Array: TypeAlias = NDArray[Any]
Way: TypeAlias = tuple[Callable[[], Any], Callable[[Any], Array]]  # what to call, and to read

OURS, EAGER, COMPILED, LAST = "saddlepoint", "torch", "torch.compile", "channels-last"
CUDNN, NATIVE = "cuDNN", "native"
AGAINST = {"cpu": (EAGER,), "cuda": (CUDNN, NATIVE)}  # whom the bars are for
EPS, MOMENTUM = 1e-5, 0.1
# Of the largest value: float32 sums over 10⁵ elements in different orders.
TOLERANCE = 1e-5
# One unit in the last of bfloat16's eight bits.
LOW_TOLERANCE = 2.0**-7

# The arrays that a pass reads, for its sums and perhaps once more afterwards, and those it writes.
MOVED = {
    "forward": (("x",), ("y",)),
    "backward": (("x", "dy"), ("dx",)),
    "double backward": (("x", "dy", "ddx"), ("ddy", "dx")),
}


@dataclass(frozen=True)
class Work:
    """One pass over one batch."""

    direction: str
    shape: tuple[int, ...]
    activation: str | None = None
    residual: bool = False
    last: bool = False  # channels last in memory
    dtype: str = "float32"

    def __str__(self) -> str:
        parts = [self.direction, *["add"] * self.residual]
        parts += [] if self.activation is None else ["ReLU"]
        if len(self.shape) == 2:
            where = f"({self.shape[0]}, {self.shape[1]})"
        else:
            where = f"{'NHWC' if self.last else 'NCHW'} {'×'.join(map(str, self.shape))}"
        low = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{' + '.join(parts)}, {where}{low}"

    @property
    def n(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return 4 if self.dtype == "float32" else 2

    @property
    def arrays(self) -> int:
        return len([array for moved in MOVED[self.direction] for array in moved]) + self.residual

    def floors(self) -> list[Floor]:
        """With what is read twice in cache the second time, and from memory."""
        read, written = (", ".join(arrays) for arrays in MOVED[self.direction])
        once = f"{read}{', residual' if self.residual else ''} read, {written} written"
        cached = self.size * self.arrays
        texts = {
            cached: once,
            cached + self.size * len(MOVED[self.direction][0]): f"{once}; {read} read once more",
        }
        return [
            Floor(bytes_ * self.n, "B", f"{bytes_} B an element: {text}", ROOFS)
            for bytes_, text in texts.items()
        ]


ROOFS = ("in place", "copy")
IMAGES = (32, 64, 56, 56)
# The works with the least ratio wanted to eager PyTorch on the same layout; to cuDNN and native,
# where 64 channels are few: a GPU has more multiprocessors.
WORKS: list[tuple[Work, float | None, float | None]] = [
    (Work("forward", IMAGES), 5.0, 2.0),
    (Work("forward", IMAGES, "relu"), 6.0, 1.5),
    (Work("forward", IMAGES, "relu", residual=True), None, 1.8),
    (Work("forward", (32, 256, 14, 14)), 6.0, None),
    (Work("forward", IMAGES, "relu", last=True), 1.5, 1.5),
    (Work("forward", IMAGES, "relu", residual=True, last=True), 2.0, 1.8),
    (Work("forward", (64, 3, 32, 32), last=True), 5.0, None),
    (Work("backward", IMAGES), 1.0, None),
    (Work("backward", IMAGES, "relu"), 1.5, 1.4),
    (Work("backward", IMAGES, last=True), None, None),
    (Work("backward", IMAGES, "relu", last=True), None, 1.4),
    (Work("forward", (4096, 512), "relu"), 1.5, 1.5),
    (Work("backward", (4096, 512), "relu"), 1.5, 1.4),
    (Work("forward", IMAGES, dtype="bfloat16"), 1.8, None),
    (Work("forward", IMAGES, last=True, dtype="bfloat16"), 1.8, None),
    (Work("double backward", (16, 64, 28, 28)), 4.0, 3.0),
]

CLOCK = Clock()
PROCESS = Tuned(CLOCK)
METER = Meter(CLOCK, PROCESS.interruptions, PROCESS.page_faults)


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    """All works, each beside the bandwidth of as much memory."""
    torch = peers.load("torch", options.device)
    with PROCESS:
        for work, *bars in WORKS:
            if isinstance(torch, str) and work.dtype != "float32":
                continue  # NumPy has no bfloat16
            bar = bars[options.device == "cuda"]
            yield partial(_case, torch, _small(work) if options.quick else work, bar, options)


def _small(work: Work) -> Work:
    """An eighth of each side, but at least three, where there are so many."""
    return replace(work, shape=tuple(max(min(s, 3), s // 8) for s in work.shape))


def _case(torch: Any, work: Work, bar: float | None, options: Options) -> Case:
    device = options.device
    contestants = [_ours(torch, work, device)]
    absent: dict[str, str] = {}
    more: dict[str, Any] = {}
    bars: list[Bar] = []
    if isinstance(torch, str):
        absent["torch"] = torch
    else:
        contestants += _eager(torch, work, device)
        taking_part = {c.library for c in contestants}
        absent |= {x: "does not take this" for x in AGAINST[device] if x not in taking_part}
        if bar is not None:
            bars += [Bar(library, bar) for library in AGAINST[device]]
        if len(work.shape) > 2 and not work.last:
            ways = _ways(torch, replace(work, last=True), device)
            contestants.append(_leanest(LAST, ways))
        if options.compile and not options.quick:  # compiling takes seconds
            compiled = _compiled(torch, work, device)
            if isinstance(compiled, str):
                absent[COMPILED] = compiled
            else:
                contestants.append(compiled)
                more["first_compilation_seconds"] = first_compilation(torch, device)
        bars += [Bar(library, 1.0) for library in (TUNED, LAST, COMPILED)]
    return Case(
        f"batch norm {work}",
        {
            "direction": work.direction,
            "shape": list(work.shape),
            "memory": "channels last" if work.last else "contiguous",
            "dtype": work.dtype,
            "activation": work.activation,
            "residual": work.residual,
            **more,
        },
        contestants,
        _roofs(torch, work, device),
        work.floors(),
        bars,
        absent,
        tolerance=TOLERANCE if work.dtype == "float32" else LOW_TOLERANCE,
        budget=options.budget(10.0),
    )


# What the contestants work on.


@lru_cache(maxsize=1)
def _values(shape: tuple[int, ...]) -> dict[str, Array]:
    """Of the batch, (N, C, …), and of each channel."""
    rng = np.random.default_rng(0)
    channels = shape[1]
    values = {name: rng.standard_normal(shape, np.float32) for name in ("x", "dy", "residual")}
    values["ddx"] = values["residual"]
    for name in ("weight", "bias", "ddweight", "ddbias"):
        values[name] = rng.standard_normal(channels, np.float32)
    values["mean"], values["var"] = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    # Where rounding decides on ReLU's side of 0, no gradient comes.
    rows = (channels, *[1] * (len(shape) - 2))
    axes = tuple(a for a in range(len(shape)) if a != 1)
    x, weight, bias = values["x"], values["weight"].reshape(rows), values["bias"].reshape(rows)
    h = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPS)
    values["dy"][np.abs(h * weight + bias) < 1e-4] = 0.0
    return values


class _Inputs:
    """The arrays of a work, made when they are asked for: PyTorch's, or our own without it."""

    def __init__(self, torch: Any, work: Work, device: str) -> None:
        self._torch, self._work, self._device = torch, work, device

    def __getattr__(self, name: str) -> Any:
        if name not in (values := _values(self._work.shape)):
            raise AttributeError(name)
        placed = self._place(values[name])
        setattr(self, name, placed)  # found without us from now on
        return placed

    def _place(self, value: Array) -> Any:
        work, torch = self._work, self._torch
        if isinstance(torch, str):
            if work.last and value.ndim > 1:
                value = np.moveaxis(np.ascontiguousarray(np.moveaxis(value, 1, -1)), -1, 1)
            return peers.place(value, self._device)
        placed = torch.tensor(value, device=self._device)
        if value.ndim == 1:
            return placed
        order = torch.channels_last if work.last else torch.contiguous_format
        return placed.to(getattr(torch, work.dtype), memory_format=order)

    def like(self, name: str) -> Any:
        """An array to write to."""
        return vector.copy(getattr(self, name))

    def learned(self, *names: str) -> list[Any]:
        """Copies that ask for gradients."""
        return [getattr(self, name).clone().requires_grad_() for name in names]

    @cached_property
    def read(self) -> Callable[[Any], Array]:
        """What one call has returned: arrays of the batch as they are, others at their scale."""
        scale = math.sqrt(self._work.n / self._work.shape[1])  # of a sum over a channel

        def read(arrays: Any) -> Array:
            hosts = [peers.host(a) for a in arrays]
            return np.concatenate([a.ravel() / (scale if a.ndim == 1 else 1.0) for a in hosts])

        return read


# The contestants.


def _ours(torch: Any, work: Work, device: str) -> Contestant:
    on = _Inputs(torch, work, device)
    out = on.like("x")

    def forward() -> Any:
        return norm.batch_norm(
            on.x, on.weight, on.bias, on.mean, on.var, True, MOMENTUM, EPS, work.activation,
            on.residual if work.residual else None, out=out,
        )  # fmt: skip

    if work.direction == "forward":
        return Contestant(OURS, OURS, forward, lambda r: on.read(r[:1]), note="out= reused")
    saved = forward()[1]
    if work.direction == "backward":
        return Contestant(
            OURS,
            OURS,
            lambda: norm.batch_norm_backward(on.dy, saved, out),
            on.read,
            note="out= reused",
        )
    return Contestant(
        OURS,
        OURS,
        lambda: norm.batch_norm_double_backward(on.ddx, on.ddweight, on.ddbias, on.dy, saved),
        on.read,
    )


def _eager(torch: Any, work: Work, device: str) -> list[Contestant]:
    """On the CPU with malloc as it is and tuned; on a GPU with cuDNN and without."""
    made = []
    for library in AGAINST[device]:
        if library == CUDNN and not _cudnn_takes(torch, work, device):
            continue
        for name, (call, read) in _ways(torch, work, device, library != NATIVE).items():
            made.append(Contestant(f"{library} {name}", library, call, read))
    if device == "cpu":
        made.append(PROCESS.contestant(TUNED, _leanest_way, work, device))
    return made


def _cudnn_takes(torch: Any, work: Work, device: str) -> bool:
    on = _Inputs(torch, work, device)
    arguments = (on.x, on.weight, on.bias, on.mean, on.var, True, EPS)
    chosen = torch._C._select_batch_norm_backend(*arguments)
    return bool(chosen == torch._C._BatchNormBackend.Cudnn)


def _ways(torch: Any, work: Work, device: str, cudnn: bool = True) -> dict[str, Way]:
    """What PyTorch offers, the leanest last."""
    on = _Inputs(torch, work, device)

    def normalized(*arrays: Any) -> Any:
        return torch.batch_norm(*arrays, True, MOMENTUM, EPS, cudnn)

    def fresh() -> Any:
        return normalized(on.x, on.weight, on.bias, on.mean, on.var)

    if work.direction == "forward":
        return _forward_ways(work, on, fresh)

    learned = on.learned("x", "weight", "bias")
    # The graph remembers its running statistics, and refuses ones that have moved on.
    y = normalized(*learned, on.like("mean"), on.like("var"))
    if work.direction == "backward":
        y = y if work.activation is None else y.relu_()
        ways: dict[str, Way] = {
            "autograd": (
                lambda: torch.autograd.grad(y, learned, on.dy, retain_graph=True),
                on.read,
            )
        }
        if device == "cpu":  # on a GPU these are the native kernels
            ways["aten"] = (_aten_backward(torch, work, on), on.read)
        return ways

    (dy,) = on.learned("dy")
    first = torch.autograd.grad(y, learned, dy, create_graph=True)
    along = (on.ddx, on.ddweight, on.ddbias)
    dot = sum((a * b).sum() for a, b in zip(first, along, strict=True))
    wanted = (dy, *learned[:2])
    return {
        "of the dot product": (
            lambda: torch.autograd.grad(dot, wanted, retain_graph=True),
            on.read,
        ),
        "with grad_outputs": (
            lambda: torch.autograd.grad(first, wanted, along, retain_graph=True),
            on.read,
        ),
    }


def _forward_ways(work: Work, on: _Inputs, fresh: Callable[[], Any]) -> dict[str, Way]:
    def read(y: Any) -> Array:
        return on.read([y])

    if work.residual:
        return {
            "add, relu": (lambda: (fresh() + on.residual).relu(), read),
            "add_, relu_": (lambda: fresh().add_(on.residual).relu_(), read),
        }
    if work.activation is not None:
        return {
            "relu": (lambda: fresh().relu(), read),
            "relu_": (lambda: fresh().relu_(), read),
        }
    return {"batch_norm": (fresh, read)}


def _aten_backward(torch: Any, work: Work, on: _Inputs) -> Callable[[], Any]:
    """What autograd calls, without autograd."""
    aten = torch.ops.aten
    arguments = (on.x, on.weight, on.bias, on.mean, on.var, True, MOMENTUM, EPS)
    y, *statistics = aten.native_batch_norm(*arguments)

    def backward(dz: Any) -> Any:
        return aten.native_batch_norm_backward(
            dz, on.x, on.weight, on.mean, on.var, *statistics, True, EPS, [True] * 3
        )

    if work.activation is None:
        return lambda: backward(on.dy)
    y.relu_()
    return lambda: backward(aten.threshold_backward(on.dy, y, 0))


def _leanest(library: str, ways: dict[str, Way]) -> Contestant:
    name, (call, read) = list(ways.items())[-1]
    return Contestant(library, library, call, read, note=name)


def _leanest_way(work: Work, device: str) -> Way:
    """In another process, from scratch."""
    ways = _ways(peers.load("torch", device), work, device)
    return list(ways.values())[-1]


def _compiled(torch: Any, work: Work, device: str) -> Contestant | str:
    """``torch.compile`` of the layer; or why there is none."""
    if work.direction == "double backward":
        return "no double backward"
    first = first_compilation(torch, device)
    if isinstance(first, str):
        return first
    torch._dynamo.reset()  # the last one's tensors go
    on = _Inputs(torch, work, device)
    mean, var = on.mean, on.var

    def layer(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS)
        y = y if residual is None else y + residual
        return y if work.activation is None else y.relu()

    residual = on.residual if work.residual else None
    compiled = torch.compile(layer, dynamic=False)
    began = time.perf_counter()
    if work.direction == "forward":

        def call() -> Any:
            return (compiled(on.x, on.weight, on.bias, residual),)

    else:
        learned = on.learned("x", "weight", "bias")
        # Donated buffers are gone after one backward pass; ours is timed more than once.
        config = importlib.import_module("torch._functorch.config")
        with config.patch(donated_buffer=False):
            y = compiled(*learned, residual)

        def call() -> Any:
            return torch.autograd.grad(y, learned, on.dy, retain_graph=True)

    call()
    peers.synchronizer(device)()
    note = f"compiled in {time.perf_counter() - began:.1f} s"
    return Contestant(COMPILED, COMPILED, call, on.read, note=note)


def _roofs(torch: Any, work: Work, device: str) -> list[Roof]:
    """In place over as many bytes as the arrays of a contestant have; a GPU's copy besides."""
    n = work.size * work.arrays * work.n // 4
    ones = np.ones(n, np.float32)
    tensors = not isinstance(torch, str)
    x = torch.tensor(ones, device=device) if tensors else peers.place(ones, device)
    roofs = [Roof("in place", lambda: vector.scale(1.0, x), 8.0 * n)]
    if device == "cuda" and tensors:
        y = torch.empty_like(x)
        roofs.append(Roof("copy", lambda: y.copy_(x), 8.0 * n))
    return roofs
