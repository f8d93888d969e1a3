"""Signals that wait for a place where everything is consistent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Held", "Terminated", "held", "terminable"]


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as Ctrl-C is."""


class Held:
    """Signals that came and wait for `deliver`; a second one does not wait."""

    def __init__(self) -> None:
        self.at_once = False
        self._came: list[tuple[int, FrameType | None]] = []
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def deliver(self) -> None:
        """Call the handlers of what came; they may raise, KeyboardInterrupt for one."""
        while self._came:
            number, frame = self._came.pop(0)
            self._handlers[number](number, frame)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self.at_once = bool(self._came)
        self._came.append((number, frame))
        if self.at_once:
            self._came.clear()
            self._handlers[number](number, frame)


@contextmanager
def held() -> Iterator[Held]:
    """Hold SIGINT and SIGTERM back until `Held.deliver`, where Python handles them.

    Only the main thread is interrupted by them; in another nothing is done.
    """
    waiting = Held()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                waiting._handlers[number] = handler
                signal.signal(number, waiting._hold)
    try:
        yield waiting
    finally:
        for held_back, handler in waiting._handlers.items():
            signal.signal(held_back, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` within, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
