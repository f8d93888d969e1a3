"""What every test may ask for: random numbers of its own, and the native settings."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from saddlepoint import _core


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's name: the same numbers in every run and any order."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def _available(isa: str) -> bool:
    try:
        _core.set_isa(isa)
    except ValueError:
        return False
    return True


@pytest.fixture
def on_every_setting() -> Iterator[Callable[[Callable[[], Any]], dict[str, Any]]]:
    """Calls a function at 1 and 2 threads on each instruction set of the machine."""
    isa, threads = _core.isa(), _core.num_threads()

    def call(f: Callable[[], Any]) -> dict[str, Any]:
        results = {}
        for name in filter(_available, ("base", "v3", "v4")):
            for n in (1, 2):
                _core.set_isa(name)
                _core.set_num_threads(n)
                results[f"{name}, {n} threads"] = f()
        return results

    try:
        yield call
    finally:
        _core.set_isa(isa)
        _core.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what the report would otherwise hide: the CUDA path was left out."""
    ran = [r for r in terminalreporter.getreports("passed") if "test_cuda" in r.nodeid]
    if not ran:
        terminalreporter.write_line(
            "CUDA path: not run here; benchmarks/on_gpu.sh runs it on a GPU."
        )
