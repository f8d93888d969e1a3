"""Optimizer steps: one large tensor, many small ones, ResNet-50's, and all that goes round a step.

A step reads and writes each array once, so its floor is a number of bytes an element. What
PyTorch's steps reach is its best of the default, foreach and fused settings; ``torch.compile`` of
the step is a peer of its own. Contestants are compared by how far three steps have moved the
parameters.
"""

from __future__ import annotations

import atexit
import importlib
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from saddlepoint import Vector, optim, vector

from . import peers
from .runner import Bar, Case, Clock, Contestant, Floor, Meter, Options, Roof

TITLE = "Optimizers"

Array: TypeAlias = NDArray[Any]
Shapes: TypeAlias = Sequence[tuple[int, ...]]

OURS, COMPILED = "saddlepoint", "torch.compile"
EAGER = ("fused", "foreach", "default")
MAX_NORM, EMA = 1.0, 0.9
# Of the largest change: roundings of parameters of at most 0.6 that move by 1e-3 and more.
TOLERANCE = 1e-4
# The peer's norm is a float32 sum: of 50 million squares it came out 0.3 % too small, which is 1e-3
# in the parameters.
PIPELINE_TOLERANCE = 5e-3
# Three roundings to bfloat16 (numbers below 1 are 1/256 apart) of parameters that move by 0.3.
LOW_TOLERANCE = 0.1


CLOCK = Clock()
METER = Meter(CLOCK)


@dataclass(frozen=True)
class Rule:
    """An optimizer as both sides construct it, and what a step has to move."""

    name: str
    arguments: dict[str, Any]
    touched: str  # arrays read and written; the gradient is read besides
    eager: tuple[str, ...] = EAGER[1:]
    initial: dict[str, float] = field(default_factory=dict)  # states that do not begin at 0

    def settings(self, device: str) -> tuple[str, ...]:
        """PyTorch's on a device: its fused Adagrad is the CPU's alone."""
        alone = self.name == "Adagrad" and device == "cuda"
        return tuple(how for how in self.eager if not (alone and how == "fused"))

    @property
    def arrays(self) -> int:
        """How many, with the gradient."""
        return len(self.touched.split(", ")) + 1

    def floor(self, n: int, **more: Any) -> Floor:
        """Of a float32 step of n elements."""
        bytes_ = 4 * (2 * self.arrays - 1)
        formula = f"{bytes_} B an element: {self.touched} read and written, the gradient read"
        return Floor(bytes_ * n, "B", formula, **more)


SGD = Rule("SGD", {"lr": 0.1, "momentum": 0.9}, "p, momentum", EAGER)
ADAGRAD = Rule("Adagrad", {"lr": 0.01}, "p, sum", EAGER)
ADAMW = Rule("AdamW", {"lr": 0.01}, "p, m, v", EAGER)
NEVER_FUSED = (
    Rule("RMSprop", {"lr": 0.01}, "p, v"),
    Rule("Adadelta", {"lr": 1.0}, "p, v, acc"),
    Rule("Adamax", {"lr": 0.01}, "p, m, u"),
    Rule("NAdam", {"lr": 0.01}, "p, m, v", initial={"mu_product": 1.0}),
    Rule("RAdam", {"lr": 0.1}, "p, m, v"),
    Rule("ASGD", {"lr": 0.1}, "p, ax", initial={"eta": 0.1, "mu": 1.0}),
    Rule("Rprop", {"lr": 0.01}, "p, prev, step", initial={"step_size": 0.01}),
)


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    """One large tensor, then lists of tensors, then the pipeline, then bfloat16."""
    n = 20_000 if options.quick else 50_000_000
    torch = peers.load("torch", options.device)
    for rule in (SGD, ADAGRAD, ADAMW):
        yield partial(_flat, torch, rule, n, options)
    if isinstance(torch, str):
        return
    for rule in (SGD, ADAGRAD, ADAMW):
        yield partial(_one, torch, rule, n, options)
    for rule in NEVER_FUSED:
        yield partial(_one, torch, rule, n, options)
    many = 50 if options.quick else 1000
    small: Shapes = [(64,)] * many
    yield partial(_many, torch, small, f"{many} tensors of 64, gradients kept", 15.0, options)
    yield partial(
        _many, torch, small, f"{many} tensors of 64, new gradients", 8.0, options, fresh=True
    )
    yield partial(_many, torch, [(1024,)] * many, f"{many} tensors of 1024", 5.0, options)
    resnet = resnet50(1 / 16 if options.quick else 1)
    yield partial(_many, torch, resnet, "ResNet-50's tensors", 1.05, options, default=2.0)
    yield partial(_pipeline, torch, [(n,)], f"one tensor of {n:,}", 1.5, options)
    yield partial(_pipeline, torch, [(10_000,)] * many, f"{many} tensors of 10,000", 5.0, options)
    yield partial(_pipeline, torch, resnet, "ResNet-50's tensors", 1.7, options)
    for rule in (SGD, ADAGRAD, ADAMW):
        yield partial(_low, torch, rule, n, options)


def resnet50(width: float = 1) -> list[tuple[int, ...]]:
    """The shapes of ResNet-50's 161 parameters, in their order; ``width`` scales the channels."""

    def channels(c: int) -> int:
        return math.ceil(c * width)

    def with_norm(out: int, in_: int, k: int) -> list[tuple[int, ...]]:
        return [(out, in_, k, k), (out,), (out,)]

    in_ = channels(64)
    shapes = with_norm(in_, 3, 7)
    for blocks, narrow in ((3, 64), (4, 128), (6, 256), (3, 512)):
        c, out = channels(narrow), channels(4 * narrow)
        for block in range(blocks):
            shapes += with_norm(c, in_, 1) + with_norm(c, c, 3) + with_norm(out, c, 1)
            if block == 0:
                shapes += with_norm(out, in_, 1)
            in_ = out
    return [*shapes, (1000, in_), (1000,)]


# What the contestants work on.


@cache
def _values(n: int) -> tuple[Array, Array]:
    """Parameters and gradients."""
    rng = np.random.default_rng(0)
    start, slope = (0.1 * rng.standard_normal(n, np.float32) for _ in range(2))
    return start, slope


def _tensors(torch: Any, flat: Array, shapes: Shapes, options: Options, dtype: Any) -> list[Any]:
    """Tensors of their own memory, filled from a flat array."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [
        torch.tensor(part, device=options.device).reshape(shape).to(dtype)
        for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)
    ]


class _Work:
    """The numbers of a case in PyTorch's memory; each contestant gets parameters of its own."""

    def __init__(
        self, torch: Any, shapes: Shapes, options: Options, dtype: str = "float32"
    ) -> None:
        self.torch, self.shapes, self.options = torch, shapes, options
        self.dtype = getattr(torch, dtype)
        self.n = sum(math.prod(shape) for shape in shapes)
        self.start, slope = _values(self.n)
        self.slopes = _tensors(torch, slope, shapes, options, self.dtype)
        self.wait = peers.synchronizer(options.device)

    def parameters(self, shared: bool = True) -> list[Any]:
        """With gradients that all contestants share, or with their own."""
        made = _tensors(self.torch, self.start, self.shapes, self.options, self.dtype)
        params = [self.torch.nn.Parameter(p) for p in made]
        for p, g in zip(params, self.slopes, strict=True):
            p.grad = g if shared else g.clone()
        return params

    def read(self, params: list[Any], *others: list[Any]) -> Callable[[Any], Array]:
        """How far the parameters and other tensors have moved from where they began."""
        return lambda _: np.concatenate([_moved(x, self.start) for x in (params, *others)])

    def ours(
        self, rule: Rule, name: str = OURS, fresh: bool = False, **arguments: Any
    ) -> Contestant:
        """Our optimizer of PyTorch's tensors."""
        params = self.parameters()
        ours = importlib.import_module("saddlepoint.torch.optim")
        optimizer = getattr(ours, rule.name)(params, **rule.arguments, **arguments)
        return Contestant(name, OURS, self._call(optimizer, params, fresh), self.read(params))

    def theirs(self, rule: Rule, how: str, fresh: bool = False, note: str = "") -> Contestant:
        """PyTorch's with one of its settings."""
        params = self.parameters()
        optimizer = self.optimizer(rule, how, params)
        call = self._call(optimizer, params, fresh)
        return Contestant(f"torch {how}", "torch", call, self.read(params), note=note)

    def optimizer(self, rule: Rule, how: str, params: list[Any], **more: Any) -> Any:
        setting = {"foreach": False} if how == "default" else {how: True}
        return getattr(self.torch.optim, rule.name)(params, **rule.arguments, **setting, **more)

    def _call(self, optimizer: Any, params: list[Any], fresh: bool) -> Callable[[], Any]:
        if not fresh:
            step: Callable[[], Any] = optimizer.step
            return step

        def backward() -> None:
            # All before the old ones go, so that each has a new address.
            for p, g in zip(params, [g.clone() for g in self.slopes], strict=True):
                p.grad = g

        def call() -> None:
            CLOCK.leave_out(backward, self.wait)
            optimizer.step()

        return call

    def best(self, rule: Rule, settings: Sequence[str]) -> Contestant:
        """PyTorch's fastest setting, in a short trial."""
        trial: dict[str, float] = {}
        for how in settings:
            optimizer = self.optimizer(rule, how, self.parameters())
            seconds = []
            for _ in range(3):
                began = time.perf_counter()
                optimizer.step()
                self.wait()
                seconds.append(time.perf_counter() - began)
            trial[how] = min(seconds[1:])  # the first makes the states
            del optimizer  # before the next one needs its memory
        fastest = min(settings, key=lambda how: trial[how])
        note = ", ".join(f"{how} {1e3 * trial[how]:.3g} ms" for how in settings)
        return self.theirs(rule, fastest, note=f"in a trial: {note}")

    def compiled(self, rule: Rule) -> Contestant | str:
        """``torch.compile`` of the step, back at its beginning; or why there is none."""
        torch = self.torch
        first = first_compilation(torch, self.options.device)
        if isinstance(first, str):
            return first
        torch._dynamo.reset()  # the last one's tensors go
        params = self.parameters()
        optimizer = self.optimizer(rule, "foreach", params)
        step = torch.compile(optimizer.step)
        began = time.perf_counter()
        for _ in range(2):  # the first step makes states, and some look at them once more
            step()
        self.wait()
        note = f"compiled in {time.perf_counter() - began:.1f} s"
        with torch.no_grad():
            for p, before in zip(params, self.parameters(), strict=True):
                p.copy_(before)
                for name, state in optimizer.state[p].items():
                    state.fill_(rule.initial.get(name, 0.0))
        return Contestant(COMPILED, COMPILED, step, self.read(params), note=note)

    def roof(self, arrays: float) -> list[Roof]:
        """In place over as many bytes as ``arrays`` float32 arrays have; a GPU's copy besides."""
        size = max(int(arrays * self.n), 1)
        x = self.torch.ones(size, device=self.options.device)
        roofs = [Roof("in place, torch", lambda: vector.scale(1.0, x), 8.0 * size)]
        if self.options.device == "cuda":
            y = self.torch.empty_like(x)
            roofs.append(Roof("copy, torch", lambda: y.copy_(x), 8.0 * size))
        return roofs


ROOFS = ("in place, torch", "copy, torch")


@cache
def first_compilation(torch: Any, device: str) -> float | str:
    """Seconds of a trivial function's, in an empty cache that goes with the process."""
    folder = tempfile.mkdtemp(prefix="saddlepoint-benchmarks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    began = time.perf_counter()
    try:
        torch.compile(lambda x: x.sin() + 1.0)(torch.zeros(64, device=device))
    except torch._dynamo.exc.TorchDynamoException as error:
        return f"failed: {type(error).__name__}"
    return time.perf_counter() - began


def _moved(arrays: Sequence[Any], start: Array) -> Array:
    """From ``start``; a million elements of larger ones, with the ends of each array."""
    every = max(1, start.size // 2**20)
    moved, offset = [], 0
    for array in arrays:
        size = math.prod(array.shape)
        torch = hasattr(array, "detach")  # which also has bfloat16, unlike NumPy
        now = array.detach().float().cpu().numpy() if torch else peers.host(array)
        flat = now.reshape(-1)
        before = start[offset : offset + size]
        for part in (slice(None, None, every), slice(max(size - 64, 0), None)):
            moved.append(flat[part] - before[part])
        offset += size
    return np.concatenate(moved)


# The cases.


def _flat(torch: Any, rule: Rule, n: int, options: Options) -> Case:
    """Our own buffer and NumPy's, each beside the bandwidth of its pages."""
    device = options.device
    start, slope = _values(n)
    makers: dict[str, Callable[[Array], Any]] = {"Vector": lambda x: Vector.from_numpy(x, device)}
    if device == "cpu":
        makers["NumPy"] = np.copy
    contestants, roofs, floors = [], [], []
    for name, make in makers.items():
        p, g = make(start), make(slope)
        optimizer = getattr(optim, rule.name)(p, **rule.arguments)
        read = partial(lambda p, _: _moved([p], start), p)
        contestants.append(Contestant(f"{OURS} on {name}", OURS, partial(optimizer.step, g), read))
        # As large as all arrays of a contestant together, so that it is in the same caches.
        filled = make(np.ones(rule.arrays * n, np.float32))
        roofs.append(
            Roof(f"in place, {name}", partial(vector.scale, 1.0, filled), 8.0 * rule.arrays * n)
        )
        floors.append(rule.floor(n, roofs=(roofs[-1].name,), of=(contestants[-1].name,)))
    absent = {}
    if isinstance(torch, str):
        absent["torch"] = torch
    else:
        work = _Work(torch, [(n,)], options)
        contestants.append(work.theirs(rule, rule.settings(device)[0]))
    return Case(
        f"{_named(rule)}, flat buffer of {n:,}",
        {**_parameters(rule, n), "least_share": {contestants[0].name: 0.9}},
        contestants,
        roofs,
        floors,
        absent=absent,
        tolerance=TOLERANCE,
        budget=options.budget(5.0),
    )


def _one(torch: Any, rule: Rule, n: int, options: Options) -> Case:
    """One tensor of PyTorch's."""
    work = _Work(torch, [(n,)], options)
    contestants = [work.ours(rule), work.best(rule, rule.settings(options.device))]
    more: dict[str, Any] = {}
    absent = {}
    if options.compile and not options.quick:  # compiling takes seconds
        compiled = work.compiled(rule)
        if isinstance(compiled, str):
            absent[COMPILED] = compiled
        else:
            contestants.append(compiled)
            more["first_compilation_seconds"] = first_compilation(torch, options.device)
    if rule in NEVER_FUSED:
        faster = 8.0 if rule.name == "Rprop" and options.device == "cpu" else 2.0
        bars = [Bar("torch", faster), Bar(COMPILED, 0.95)]
    else:
        bars = [Bar("torch", 0.97 if options.device == "cpu" else 0.95)]
    if options.device == "cuda":
        more["least_share"] = {OURS: 0.88}
    return Case(
        f"{_named(rule)}, one tensor of {n:,}",
        {**_parameters(rule, n), **more},
        contestants,
        work.roof(rule.arrays),
        [rule.floor(n, roofs=ROOFS)],
        bars,
        absent,
        tolerance=TOLERANCE,
        budget=options.budget(5.0),
    )


def _many(
    torch: Any,
    shapes: Shapes,
    what: str,
    bar: float,
    options: Options,
    default: float | None = None,
    fresh: bool = False,
) -> Case:
    """AdamW on a list; with gradients that stay, or come anew before each step."""
    work = _Work(torch, shapes, options)
    cuda_small = options.device == "cuda" and default is None
    bars = [Bar("torch", 5.0 if cuda_small else bar)]
    if default is not None:
        bars.append(Bar("torch default", default))
    return Case(
        f"AdamW, {what}",
        {**_parameters(ADAMW, work.n), "tensors": len(shapes)},
        [work.ours(ADAMW, fresh=fresh), *(work.theirs(ADAMW, how, fresh) for how in EAGER)],
        work.roof(ADAMW.arrays),
        [ADAMW.floor(work.n, roofs=ROOFS)],
        bars,
        tolerance=TOLERANCE,
        budget=options.budget(3.0 if fresh else 5.0),
    )


def _pipeline(torch: Any, shapes: Shapes, what: str, bar: float, options: Options) -> Case:
    """Clip, AdamW, average, zero; the gradients come anew before each, untimed."""
    work = _Work(torch, shapes, options)
    # Of the size of the clipped gradients, so that their norm shows in the parameters.
    arguments = {"lr": 0.1, "eps": MAX_NORM / math.sqrt(work.n)}
    rule = Rule("AdamW", arguments, ADAMW.touched, EAGER)

    def refilled(params: list[Any], rest: Callable[[], Any]) -> Callable[[], Any]:
        grads = [p.grad for p in params]

        def call() -> None:
            CLOCK.leave_out(partial(torch._foreach_copy_, grads, work.slopes), work.wait)
            rest()

        return call

    params = work.parameters(shared=False)
    fused = importlib.import_module("saddlepoint.torch.optim").AdamW(
        params, **arguments, max_norm=MAX_NORM, ema_decay=EMA, zero_grads=True
    )
    ours = Contestant(
        OURS,
        OURS,
        refilled(params, fused.step),
        lambda _: np.append(work.read(params, fused.ema)(None), _left(params)),
    )
    theirs = work.parameters(shared=False)
    detached = [p.detach() for p in theirs]
    average = [p.clone() for p in detached]
    optimizer = work.optimizer(rule, "fused", theirs)

    def separate() -> None:
        torch.nn.utils.clip_grad_norm_(theirs, MAX_NORM)
        optimizer.step()
        torch._foreach_lerp_(average, detached, 1.0 - EMA)
        optimizer.zero_grad(set_to_none=False)

    peer = Contestant(
        "torch clip_grad_norm_, fused, _foreach_lerp_, zero_grad",
        "torch",
        refilled(theirs, separate),
        lambda _: np.append(work.read(theirs, average)(None), _left(theirs)),
    )
    bytes_ = 44
    formula = f"{bytes_} B an element: AdamW's 28, the norm 4, the average 8, the zeros 4"
    return Case(
        f"clip + AdamW + EMA + zero, {what}",
        {
            **_parameters(rule, work.n),
            "tensors": len(shapes),
            "max_norm": MAX_NORM,
            "ema_decay": EMA,
        },
        [ours, peer],
        work.roof(5),
        [Floor(bytes_ * work.n, "B", formula, ROOFS)],
        [Bar("torch", 1.5 if options.device == "cuda" else bar)],
        tolerance=PIPELINE_TOLERANCE,
        budget=options.budget(5.0),
    )


def _left(params: list[Any]) -> float:
    """The largest gradient; 0 after zeroing."""
    return max(float(p.grad.abs().max()) for p in params)


def _low(torch: Any, rule: Rule, n: int, options: Options) -> Case:
    """bfloat16 parameters and gradients."""
    rule = Rule(rule.name, {**rule.arguments, "lr": 0.1}, rule.touched, rule.eager)
    work = _Work(torch, [(n,)], options, "bfloat16")
    states = rule.arrays - 2
    # A contestant: its arguments, and the bytes of an element of each state.
    ways: dict[str, tuple[dict[str, Any], int]] = {OURS: ({"state_dtype": "bfloat16"}, 2)}
    if rule.name == "AdamW":
        ways[f"{OURS}, stochastic rounding"] = (
            {"state_dtype": "bfloat16", "stochastic_rounding": 0},
            2,
        )
        ways[f"{OURS}, master"] = ({"state_dtype": "bfloat16", "master": True}, 2)
        ways[f"{OURS}, float32 states"] = ({"state_dtype": "float32"}, 4)
    contestants = [work.ours(rule, name, **arguments) for name, (arguments, _) in ways.items()]
    # PyTorch 2.13's fused SGD of bfloat16 leaves most parameters as they are (pytorch#191763).
    settings = rule.settings(options.device)
    settings = [how for how in settings if (rule.name, how) != ("SGD", "fused")]
    peer = work.best(rule, settings)
    floors: dict[int, list[str]] = {}
    for name, (arguments, each) in ways.items():
        bytes_ = 2 * (2 + each * states) + 2 + (4 if "master" in arguments else 0)
        floors.setdefault(bytes_, []).append(name)
    floors[2 * (2 + 2 * states) + 2].append(peer.name)
    return Case(
        f"{_named(rule)} in bfloat16, one tensor of {n:,}",
        {**_parameters(rule, n), "dtype": "bfloat16"},
        [*contestants, peer],
        work.roof(rule.arrays / 2),
        [
            Floor(bytes_ * n, "B", f"{bytes_} B an element", ROOFS, tuple(names))
            for bytes_, names in floors.items()
        ],
        tolerance=LOW_TOLERANCE,
        budget=options.budget(5.0),
    )


def _named(rule: Rule) -> str:
    return "SGD with momentum" if rule.name == "SGD" else rule.name


def _parameters(rule: Rule, n: int) -> dict[str, Any]:
    return {"n": n, "dtype": "float32", **rule.arguments}
