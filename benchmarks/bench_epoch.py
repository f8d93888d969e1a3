"""One epoch of a batch-normalized network on MNIST with Adam: everything `fit` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saddlepoint as sp
from saddlepoint import data, nn, optim

from . import peers
from .bench_hvp import gemms
from .runner import Bar, Case, Contestant, Floor, Options

TITLE = "One epoch"
WIDTHS = (784, 300, 100, 10)
BATCH, RATE, SEED = 128, 1e-3, 0
EPS, MOMENTUM, BETA1, BETA2, ADAM_EPS = 1e-5, 0.1, 0.9, 0.999, 1e-8


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    """The only one."""
    yield partial(_case, options)


def _case(options: Options) -> Case:
    """All start from the same parameters and take the same batches in the same order."""
    x, y, source = images(options)
    device = options.device
    net = network()
    params = net.init(SEED)

    contestants = [fitted(net, params, x, y, device)]
    roofs, absent = [], {}
    torch, jax = (peers.load(name, device) for name in ("torch", "jax"))
    if isinstance(torch, str):
        absent["torch"] = torch
    else:
        contestants.append(eager(torch, params, x, y, device))
        roofs = gemms(torch, device, options.quick)
    if isinstance(jax, str):
        absent["jax"] = jax
    else:
        contestants += _jax(jax, net, params, x, y)
    weights = [i * o for i, o in pairwise(WIDTHS)]
    flops = 2.0 * len(x) * (2 * weights[0] + 3 * sum(weights[1:]))
    return Case(
        "one epoch, 784-300-100-10 with batch norm, batch 128, Adam",
        {
            "data": source,
            "rows": len(x),
            "widths": list(WIDTHS),
            "batch_size": BATCH,
            "lr": RATE,
            "dtype": "float32",
        },
        contestants,
        roofs,
        [
            Floor(
                flops,
                "flop",
                f"2·{len(x)}·(2·784·300 + 3·300·100 + 3·100·10) flops of matrix products",
                tuple(r.name for r in roofs),
            )
        ],
        [Bar("torch", 1.3), Bar("jax", 1.3)],
        absent,
        tolerance=0.01,  # of the loss, in means over 10 updates: rounding grows along the path
        budget=options.budget(120.0),
    )


def fitted(net: nn.Layer, params: nn.Parameters, x: Any, y: Any, device: str) -> Contestant:
    """An epoch by `fit`."""

    def epoch() -> Any:
        return sp.fit(
            net,
            params,
            nn.CrossEntropy(),
            (x, y),
            optimizer=lambda theta: optim.Adam(theta, lr=RATE),
            epochs=1,
            batch_size=BATCH,
            rng=SEED,
            device=device,
            show_progress=False,
        )

    note = "with checks of the data, history, and the gradient's norm at each step"
    return Contestant(
        "saddlepoint fit", "saddlepoint", epoch, lambda run: _curve(run.history.loss), note=note
    )


def images(options: Options) -> tuple[NDArray[Any], NDArray[Any], str]:
    """Images of MNIST from ``--data`` or SADDLEPOINT_DATA, else noise of the same shape."""
    folder = options.data or os.environ.get("SADDLEPOINT_DATA")
    if folder is not None:
        path = Path(folder)
        train = data.load(path / "mnist" if (path / "mnist").is_dir() else path)
        x, y, source = train.x, train.y, "MNIST"
    else:
        rng = np.random.default_rng(1)
        x = rng.random((60_000, WIDTHS[0]), np.float32)
        y = (x[:, :32].sum(1) * 1.5 % 10).astype(np.int64)
        source = "synthetic, of the shape of MNIST"
    rows = 2_000 if options.quick else len(x)
    return x[:rows], y[:rows], source


def network(widths: tuple[int, ...] = WIDTHS) -> nn.Layer:
    """Batch norm and ReLU after every linear layer but the last."""
    layers: list[nn.Layer] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.BatchNorm(o), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


def _curve(losses: NDArray[Any]) -> NDArray[Any]:
    """Means over 10 updates."""
    whole = len(losses) // 10 * 10
    means: NDArray[Any] = np.asarray(losses[:whole], np.float64).reshape(-1, 10).mean(1)
    return means


def _order(rows: int) -> NDArray[np.int64]:
    """The order that `fit` draws."""
    return np.random.default_rng(SEED).permutation(rows)


def eager(
    torch: Any,
    params: nn.Parameters,
    x: Any,
    y: Any,
    device: str,
    widths: tuple[int, ...] = WIDTHS,
) -> Contestant:
    """An epoch as PyTorch's users write it."""
    layers: list[Any] = []
    for i, o in pairwise(widths):
        layers += [
            torch.nn.Linear(i, o),
            torch.nn.BatchNorm1d(o, eps=EPS, momentum=MOMENTUM),
            torch.nn.ReLU(),
        ]
    model = torch.nn.Sequential(*layers[:-2]).to(device)
    start = torch.tensor(params.theta, device=device)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    x, y = torch.tensor(x, device=device), torch.tensor(y, device=device)

    def epoch() -> Any:
        torch.nn.utils.vector_to_parameters(start.clone(), model.parameters())
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
        order = torch.from_numpy(_order(len(x))).to(device)
        losses = []
        for rows in order.split(BATCH):
            loss = torch.nn.functional.cross_entropy(
                model(x.index_select(0, rows)), y.index_select(0, rows)
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    note = "fused Adam, set_to_none, batches by index_select, no DataLoader"
    return Contestant(
        "torch eager", "torch", epoch, lambda losses: _curve(peers.host(losses)), note=note
    )


def _jax(jax: Any, net: nn.Layer, params: nn.Parameters, x: Any, y: Any) -> list[Contestant]:
    jnp = jax.numpy
    x, y = jnp.array(x), jnp.array(y)
    theta = {k: jnp.array(a) for k, a in net.unflatten(params.theta).items()}
    statistics = {
        k: jnp.array(a)
        for k, a in net.unflatten_buffers(params.buffers).items()
        if not k.endswith("num_batches_tracked")
    }
    last = 3 * (len(WIDTHS) - 2)

    def loss_of(theta: Any, statistics: Any, x: Any, y: Any) -> Any:
        moved = {}
        for i in range(0, last + 1, 3):
            x = x @ theta[f"{i}.weight"].T + theta[f"{i}.bias"]
            if i == last:
                break
            n, norm = x.shape[0], f"{i + 1}."
            mean, var = x.mean(0), x.var(0)
            for name, new in (("running_mean", mean), ("running_var", var * n / (n - 1))):
                moved[norm + name] = (1 - MOMENTUM) * statistics[norm + name] + MOMENTUM * new
            x = (x - mean) * jax.lax.rsqrt(var + EPS) * theta[norm + "weight"]
            x = jax.nn.relu(x + theta[norm + "bias"])
        chosen = jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)
        return -chosen.mean(), moved

    slope = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: Any, rows: Any) -> Any:
        theta, statistics, m, v, t = state
        batch = (a.at[rows].get(mode="promise_in_bounds") for a in (x, y))
        (loss, statistics), g = slope(theta, statistics, *batch)
        t = t + 1
        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
        rate, root = RATE / (1 - BETA1**t), jnp.sqrt(1 - BETA2**t)
        theta = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + ADAM_EPS), theta, m, v
        )
        return (theta, statistics, m, v, t), loss

    def scanned(state: Any, order: Any) -> Any:
        whole = len(order) // BATCH * BATCH
        state, losses = jax.lax.scan(step, state, order[:whole].reshape(-1, BATCH))
        if whole == len(order):
            return state, losses
        state, loss = step(state, order[whole:])
        return state, jnp.append(losses, loss)

    one = jax.jit(step, donate_argnums=0)
    all_ = jax.jit(scanned, donate_argnums=0)

    def start() -> Any:
        def zeros() -> Any:
            return jax.tree.map(jnp.zeros_like, theta)

        copied = jax.tree.map(jnp.copy, (theta, statistics))
        return (*copied, zeros(), zeros(), jnp.float32(0))

    def loop() -> Any:
        state, losses = start(), []
        order = _order(len(x))
        for begin in range(0, len(order), BATCH):
            state, loss = one(state, order[begin : begin + BATCH])
            losses.append(loss)
        return jax.block_until_ready(losses)

    def scan() -> Any:
        return jax.block_until_ready(all_(start(), _order(len(x))))[1]

    return [
        Contestant("JAX jit step", "jax", loop, lambda r: _curve(np.array(r))),
        Contestant("JAX jit scan", "jax", scan, lambda r: _curve(np.array(r))),
    ]
