"""Products with the Hessian of a tanh network's cross-entropy, at one point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saddlepoint as sp
from saddlepoint import nn

from . import peers
from .runner import Bar, Case, Contestant, Floor, Options, Roof

TITLE = "Hessian-vector product"
BLOCK = 8
GRAPH_KEPT = "torch double backward, graph kept"
LARGE, SMALL = (784, 512, 512, 10), (64, 32, 32, 10)


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    """Two networks on large and small batches, one vector and a block."""
    # The least ratios wanted to PyTorch's kept graph, on the CPU and on a GPU.
    sizes = [(SMALL, 256, (6.0, 10.0)), (LARGE, 4096, (1.1, 3.0)), (LARGE, 128, (None, 3.0))]
    for widths, rows, bars in sizes[:1] if options.quick else sizes:
        problem = _Problem(widths, rows, options.device)
        for block in (1, BLOCK):
            yield partial(_case, problem, block, bars[options.device == "cuda"], options)


class _Problem:
    """A network, its data, its parameters and a block of directions, on the host."""

    def __init__(self, widths: tuple[int, ...], rows: int, device: str) -> None:
        rng = np.random.default_rng(0)
        self.widths, self.rows, self.device = widths, rows, device
        layers: list[nn.Layer] = []
        for i, o in pairwise(widths):
            layers += [nn.Linear(i, o), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        self.x = rng.standard_normal((rows, widths[0]), np.float32)
        self.y = rng.integers(0, widths[-1], rows)
        self.theta = self.net.init(0).theta
        # Fortran order, as the products want it.
        self.v = rng.standard_normal((BLOCK, self.net.size), np.float32).T

    def flops(self) -> tuple[float, str]:
        """Of the matrix products: six a layer, two in the first, whose input does not move."""
        shapes = list(pairwise(self.widths))
        terms = [2 * shapes[0][0] * shapes[0][1], *(6 * i * o for i, o in shapes[1:])]
        text = " + ".join(f"{2 if k == 0 else 6}·{i}·{o}" for k, (i, o) in enumerate(shapes))
        return 2.0 * self.rows * sum(terms), f"2·{self.rows}·({text}) flops of matrix products"

    def arrays(self, flat: NDArray[Any]) -> list[NDArray[Any]]:
        """The named arrays of a flat vector, weight and bias in turn."""
        return list(self.net.unflatten(flat).values())


def _case(problem: _Problem, block: int, bar: float | None, options: Options) -> Case:
    contestants = [_ours(problem, block)]
    roofs: list[Roof] = []
    absent: dict[str, str] = {}
    torch, jax = (peers.load(name, problem.device) for name in ("torch", "jax"))
    if isinstance(torch, str):
        absent["torch"] = torch
    else:
        contestants += _torch(torch, problem, block)
        roofs += gemms(torch, problem.device, options.quick)
    if isinstance(jax, str):
        absent["jax"] = jax
    else:
        contestants += _jax(jax, problem, block)
    flops, formula = problem.flops()
    name = "-".join(map(str, problem.widths))
    what = "one vector" if block == 1 else f"block of {block}, a vector"
    return Case(
        f"product, {name} on {problem.rows}, {what}",
        {
            "widths": list(problem.widths),
            "rows": problem.rows,
            "block": block,
            "parameters": problem.net.size,
            "dtype": "float32",
            "activation": "tanh",
            "loss": "cross-entropy",
        },
        contestants,
        roofs,
        [Floor(flops, "flop", formula, tuple(r.name for r in roofs))],
        [Bar(GRAPH_KEPT, bar)] if bar and block == 1 else [],
        absent,
        # Each is within 1e-6 of float64; a kept graph of PyTorch was once 3e-5 off.
        tolerance=1e-4,
        budget=options.budget(25.0),
    )


def _ours(problem: _Problem, block: int) -> Contestant:
    device = problem.device
    objective = sp.NetworkObjective(
        problem.net, nn.CrossEntropy(), problem.x, problem.y, device=device
    )
    at = objective.linearize(peers.place(problem.theta, device))
    v = problem.v[:, 0].copy() if block == 1 else problem.v
    there = v if device == "cpu" else sp.Vector.from_numpy(v, device)
    return Contestant(
        "saddlepoint", "saddlepoint", lambda: at.hvp(there), lambda r: _columns(r), units=block
    )


def _columns(product: Any) -> NDArray[Any]:
    """(n, k), whoever computed it."""
    flat = peers.host(product)
    return flat.reshape(len(flat), -1)


def gemms(torch: Any, device: str, quick: bool) -> list[Roof]:
    """Matrix products large enough to reach the peak."""
    shapes = [(256, 256, 256)] if quick else [(1024, 1024, 1024), (4096, 512, 784)]
    if device == "cuda":
        shapes = [(8192, 8192, 8192)]
    roofs = []
    for m, n, k in shapes:
        a, b = torch.ones(m, k, device=device), torch.ones(k, n, device=device)
        c = torch.empty(m, n, device=device)
        name = f"gemm {m}x{n}x{k}"
        roofs.append(Roof(name, partial(torch.mm, a, b, out=c), 2.0 * m * n * k))
    return roofs


def _torch(torch: Any, problem: _Problem, block: int) -> list[Contestant]:
    device = problem.device
    x, y = (torch.tensor(a, device=device) for a in (problem.x, problem.y))
    theta = [torch.tensor(a, device=device) for a in problem.arrays(problem.theta)]
    directions = [
        [torch.tensor(a, device=device) for a in problem.arrays(v)]
        for v in np.ascontiguousarray(problem.v.T)
    ]
    v = directions[0] if block == 1 else [torch.stack(a) for a in zip(*directions, strict=True)]

    def loss(*theta: Any) -> Any:
        h = x
        for i in range(0, len(theta), 2):
            h = torch.nn.functional.linear(torch.tanh(h) if i else h, theta[i], theta[i + 1])
        return torch.nn.functional.cross_entropy(h, y)

    leaves = [a.clone().requires_grad_() for a in theta]
    gradient = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)

    def graph_kept() -> Any:
        return torch.autograd.grad(
            gradient, leaves, v, retain_graph=True, is_grads_batched=block > 1
        )

    slope = torch.func.grad(loss, tuple(range(len(theta))))

    def along(*v: Any) -> Any:
        return torch.func.jvp(slope, tuple(theta), tuple(v))[1]

    jvp = along if block == 1 else torch.func.vmap(along)

    def read(result: Any) -> NDArray[Any]:
        lead = () if block == 1 else (block,)
        return np.concatenate([peers.host(a).reshape(*lead, -1) for a in result], -1).T.reshape(
            -1, block
        )

    return [
        Contestant(GRAPH_KEPT, "torch", graph_kept, read, block),
        Contestant("torch.func jvp(grad)", "torch", lambda: jvp(*v), read, block),
    ]


def _jax(jax: Any, problem: _Problem, block: int) -> list[Contestant]:
    x, y = jax.numpy.array(problem.x), jax.numpy.array(problem.y)
    theta = [jax.numpy.array(a) for a in problem.arrays(problem.theta)]
    directions = [problem.arrays(v) for v in np.ascontiguousarray(problem.v.T)]
    stacked = [jax.numpy.array(np.stack(a)) for a in zip(*directions, strict=True)]
    v = [a[0] for a in stacked] if block == 1 else stacked

    def loss(theta: Any) -> Any:
        h = x
        for i in range(0, len(theta), 2):
            h = (jax.numpy.tanh(h) if i else h) @ theta[i].T + theta[i + 1]
        chosen = jax.numpy.take_along_axis(jax.nn.log_softmax(h), y[:, None], 1)
        return -chosen.mean()

    slope = jax.grad(loss)

    def along(theta: Any, v: Any) -> Any:
        return jax.jvp(slope, (theta,), (v,))[1]

    linear = jax.linearize(slope, theta)[1]
    many = block > 1
    jvp = jax.jit(jax.vmap(along, (None, 0)) if many else along)
    apply = jax.jit(jax.vmap(linear) if many else linear)

    def read(result: Any) -> NDArray[Any]:
        return np.concatenate([peers.host(a).reshape(block, -1) for a in result], -1).T

    wait = jax.block_until_ready
    return [
        Contestant("JAX jit jvp(grad)", "jax", lambda: wait(jvp(theta, v)), read, block),
        Contestant("JAX linearize, jit apply", "jax", lambda: wait(apply(v)), read, block),
    ]
