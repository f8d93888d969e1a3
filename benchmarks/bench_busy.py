"""An epoch while somebody else uses one of the cores: what it costs to wait for a member."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import saddlepoint as sp
from saddlepoint import data

from . import peers
from .bench_epoch import BATCH, SEED, WIDTHS, eager, fitted, images, network
from .runner import Case, Contestant, Options

TITLE = "One core in use elsewhere"


def cases(options: Options) -> Iterator[Callable[[], Case]]:
    """A small network and a middling one, with two threads and with one."""
    digits = data.digits()
    pixels, labels, source = images(options)
    rows = 2_000 if options.quick else 10_000
    for name, widths, x, y in (
        ("digits, 64-64-32-10", (64, 64, 32, 10), digits.x, digits.y),
        (f"{source}, 784-300-100-10", WIDTHS, pixels[:rows], labels[:rows]),
    ):
        net = network(widths)
        params = net.init(SEED)
        absent: dict[str, str] = {}
        ways = [(fitted(net, params, x, y, "cpu"), sp.set_num_threads)]
        torch = peers.load("torch", "cpu")
        if isinstance(torch, str):
            absent["torch"] = torch
        else:
            ways.append((eager(torch, params, x, y, "cpu", widths), torch.set_num_threads))
        with _busy_core():
            yield partial(
                Case,
                f"an epoch beside a busy core, {name}",
                {"rows": len(x), "widths": list(widths), "batch_size": BATCH},
                [_with_threads(c, n, use) for c, use in ways for n in (2, 1)],
                absent=absent,
                tolerance=0.01,
                budget=options.budget(40.0),
            )


def _with_threads(way: Contestant, count: int, use: Callable[[int], Any]) -> Contestant:
    def call() -> Any:
        use(count)
        return way.call()

    threads = "2 threads" if count == 2 else "1 thread"
    return replace(way, name=f"{way.name}, {threads}", call=call)


@contextmanager
def _busy_core() -> Iterator[None]:
    """A process that works on one core without end."""
    core = min(os.sched_getaffinity(0))
    work = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    neighbour = subprocess.Popen([sys.executable, "-c", work])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()
