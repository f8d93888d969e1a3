"""Contestants in a process whose malloc keeps its pages, driven in step with the others.

Above 32 MB glibc maps fresh pages for every array and gives them back, so that each call pays for
page faults; a user can switch that off for a whole process, not back on. So what is tuned runs in a
process of its own, which sleeps while others are timed.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from numpy.typing import NDArray

from .runner import BLOCK, WARM_UPS, Clock, Contestant

__all__ = ["LIBRARY", "Tuned"]

LIBRARY = "tuned malloc"
# malloc.h: no array is mapped on its own, and the heap is never trimmed.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}
NOTE = "mallopt(M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GiB, M_TOP_PAD 64 MiB), in a process of its own"

# What a contestant calls, and what reads its result.
Work = tuple[Callable[[], Any], Callable[[Any], NDArray[Any]]]


class Tuned:
    """The process; it lives within a ``with``. Its seconds and counts stand for the caller's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._interruptions = self._page_faults = 0

    def __enter__(self) -> Tuned:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()  # which ends it
            self._process.join()
            self._process.close()
        self._process = self._pipe = None

    def interruptions(self) -> int:
        """Involuntary context switches, here and there."""
        return self._interruptions + resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    def page_faults(self) -> int:
        """Minor ones, here and there."""
        return self._page_faults + resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def contestant(self, name: str, make: Callable[..., Work], *arguments: Any) -> Contestant:
        """Of the work that ``make(*arguments)`` returns there; it replaces the last one's."""
        units = self._ask("make", make, arguments)
        return Contestant(
            name, LIBRARY, self._call, lambda _: self._ask("read"), units=units, note=NOTE
        )

    def _call(self) -> None:
        def there() -> float:
            seconds, interruptions, page_faults = self._ask("call")
            self._interruptions += interruptions
            self._page_faults += page_faults
            return float(seconds)

        self._clock.instead(there)

    def _ask(self, *order: Any) -> Any:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")  # OpenMP's teams do not survive a fork
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipe, self._process = ours, process
        try:
            self._pipe.send(order)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise RuntimeError(
                f"{LIBRARY}: expected an answer to {order[0]!r}, got the end of its process"
            ) from None


def _serve(pipe: Connection) -> None:
    """Does what it is asked for until the pipe is closed."""
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in SETTINGS.items():
        if mallopt(parameter, value) != 1:
            raise RuntimeError(f"mallopt: expected 1 for {parameter}, got a refusal")
    call: Callable[[], Any]
    read: Callable[[Any], NDArray[Any]]
    result, units = None, 1
    while True:
        try:
            order, *arguments = pipe.recv()
        except EOFError:
            return
        if order == "make":
            result = call = read = None  # type: ignore[assignment]  # its memory is for the next
            gc.enable()
            gc.collect()
            make, given = arguments
            call, read = make(*given)
            units = _enough_for_a_block(call)
            gc.disable()
            pipe.send(units)
        elif order == "call":
            result = None
            call()  # while the other process falls asleep
            before = resource.getrusage(resource.RUSAGE_SELF)
            began = time.perf_counter()
            for _ in range(units - 1):
                call()
            result = call()
            seconds = time.perf_counter() - began
            after = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(
                (
                    seconds,
                    after.ru_nivcsw - before.ru_nivcsw,
                    after.ru_minflt - before.ru_minflt,
                )
            )
        else:
            pipe.send(read(result))


def _enough_for_a_block(call: Callable[[], Any]) -> int:
    """Calls that take as long as a timed block, so that no sleep falls between them."""
    seconds = []
    for _ in range(WARM_UPS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return max(1, math.ceil(BLOCK / max(min(seconds[1:]), 1e-9)))
