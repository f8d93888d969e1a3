"""Whatever is done about signals is undone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from saddlepoint.signals import Terminated, held, terminable

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("context", [held, terminable])
@pytest.mark.parametrize("fails", [False, True])
def test_the_handlers_of_before_come_back(
    context: Callable[[], AbstractContextManager[Any]], fails: bool
) -> None:
    def own(*_: object) -> None:
        raise AssertionError("nobody sent anything")

    before = [signal.signal(number, own) for number in SIGNALS]
    try:
        try:
            with context():
                assert signal.getsignal(signal.SIGTERM) is not own
                if fails:
                    raise KeyError
        except KeyError:
            assert fails
        assert [signal.getsignal(number) for number in SIGNALS] == [own, own]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_sigterm_is_raised_within() -> None:
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("context", [held, terminable])
def test_other_threads_leave_the_handlers_alone(
    context: Callable[[], AbstractContextManager[Any]],
) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    within: list[Any] = []

    def look() -> None:
        with context():
            within.extend(signal.getsignal(number) for number in SIGNALS)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert within == before
