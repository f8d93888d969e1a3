"""Batch normalization of (rows, columns) in training: forward, backward, and both."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from saddlepoint import Vector, norm, vector

from . import peers
from .runner import Case, Contestant, Floor, Options, Roof

TITLE = "Batch normalization"
EPS, MOMENTUM = 1e-5, 0.1
# Bytes an element: with a slab of columns kept in cache, and with the inputs read a second time.
FLOORS = {
    "forward": {8: "x read, y written", 12: "x read twice, y written"},
    "backward": {12: "x, dy read, dx written", 20: "x, dy read twice, dx written"},
    "forward and backward": {20: "both, inputs read once each", 32: "both, inputs read twice each"},
}


def cases(options: Options) -> Iterator[Case]:
    """The three directions on the same data."""
    rows, columns = (256, 64) if options.quick else (4096, 512)
    device = options.device
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((rows, columns), np.float32) for _ in range(2))
    weight, bias = (rng.standard_normal(columns, np.float32) for _ in range(2))
    calls = _ours(x, dy, weight, bias, device)
    torch = peers.load("torch", device)
    absent = {"torch": torch} if isinstance(torch, str) else {}
    theirs = {} if absent else _torch(torch, x, dy, weight, bias, options)
    large = Vector.from_numpy(np.ones((rows, columns), np.float32), device)
    for direction, floors in FLOORS.items():
        yield Case(
            f"batch norm ({rows}, {columns}), {direction}",
            {"rows": rows, "columns": columns, "dtype": "float32", "training": True},
            [calls[direction], *theirs.get(direction, ())],
            [Roof("in place", lambda: vector.scale(1.0, large), 8.0 * rows * columns)],
            [
                Floor(bytes_ * rows * columns, "B", f"{bytes_} B an element: {what}", ("in place",))
                for bytes_, what in floors.items()
            ],
            absent=absent,
            tolerance=1e-4,  # sums over rows in another order; a float's eps grows with their root
            budget=options.budget(20.0),
        )


def _ours(x: Any, dy: Any, weight: Any, bias: Any, device: str) -> dict[str, Contestant]:
    x, dy, weight, bias = (peers.place(a, device) for a in (x, dy, weight, bias))
    mean, var = (peers.place(np.full(weight.shape, v, np.float32), device) for v in (0.0, 1.0))
    y = peers.place(np.empty(x.shape, np.float32), device)

    def forward() -> Any:
        return norm.batch_norm(x, weight, bias, mean, var, True, MOMENTUM, EPS, out=y)

    saved = forward()[1]

    def both() -> Any:
        return norm.batch_norm_backward(dy, forward()[1])

    return {
        "forward": Contestant(
            "saddlepoint", "saddlepoint", forward, lambda r: peers.host(r[0]), note="out= reused"
        ),
        "backward": Contestant(
            "saddlepoint",
            "saddlepoint",
            lambda: norm.batch_norm_backward(dy, saved),
            lambda r: peers.host(r[0]),
        ),
        "forward and backward": Contestant(
            "saddlepoint", "saddlepoint", both, lambda r: peers.host(r[0]), note="out= reused"
        ),
    }


def _torch(
    torch: Any, x: Any, dy: Any, weight: Any, bias: Any, options: Options
) -> dict[str, list[Contestant]]:
    x, dy, weight, bias = (torch.tensor(a, device=options.device) for a in (x, dy, weight, bias))
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    learned = [a.clone().requires_grad_() for a in (x, weight, bias)]
    aten = torch.ops.aten
    arguments = (x, weight, bias, mean, var, True, MOMENTUM, EPS)

    def function(x: Any, weight: Any, bias: Any, mean: Any = mean, var: Any = var) -> Any:
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS)

    def native() -> Any:
        return aten.native_batch_norm(*arguments)

    def native_backward(saved: Any) -> Any:
        mask = [True] * 3
        return aten.native_batch_norm_backward(
            dy, x, weight, mean, var, saved[1], saved[2], True, EPS, mask
        )

    # The graph remembers its running statistics, and refuses ones that have moved on.
    saved, graph = native(), function(*learned, *(a.clone() for a in (mean, var)))

    def forward_only(f: Callable[..., Any]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return (f(x, weight, bias),)

        return call

    def both(f: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(f(*learned), learned, dy)

    def peer(name: str, call: Callable[[], Any], note: str = "") -> Contestant:
        return Contestant(name, "torch", call, lambda r: peers.host(r[0]), note=note)

    outputs = {
        name: torch.empty_like(a)
        for name, a in (("out", x), ("save_mean", weight), ("save_invstd", weight))
    }
    reused = partial(aten.native_batch_norm.out, *arguments, **outputs)
    result = {
        "forward": [
            peer("torch batch_norm", forward_only(function)),
            peer("torch native_batch_norm", native),
            peer("torch native_batch_norm, out reused", reused),
        ],
        "backward": [
            peer(
                "torch autograd",
                lambda: torch.autograd.grad(graph, learned, dy, retain_graph=True),
            ),
            peer("torch native_batch_norm_backward", lambda: native_backward(saved)),
        ],
        "forward and backward": [
            peer("torch autograd", both(function)),
            peer("torch native_batch_norm, and its backward", lambda: native_backward(native())),
        ],
    }
    if options.quick:
        return result  # compiling takes many seconds
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    for direction, wrap in (("forward", forward_only), ("forward and backward", both)):
        compiled = wrap(torch.compile(function, dynamic=False))
        began = time.perf_counter()
        try:
            compiled()
        except torch._dynamo.exc.TorchDynamoException as error:
            note = f"torch.compile failed: {type(error).__name__}"
            result[direction][0] = replace(result[direction][0], note=note)
            continue
        note = f"compiled in {time.perf_counter() - began:.1f} s"
        result[direction].append(peer("torch.compile", compiled, note))
    return result
