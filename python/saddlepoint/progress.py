"""Progress of long work, on a terminal and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

from .errors import flag

__all__ = ["Tick", "progress"]


class Tick(Protocol):
    """Reports work done and what there is to say about it."""

    def __call__(self, done: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int, show: bool | None = None) -> Iterator[Tick]:
    """A bar over ``total`` units of work; the value is called as they are done.

    ``show=None`` draws one if standard error is a terminal and Rich is installed; True asks for it
    and raises ImportError without Rich.
    """
    if show is None:
        terminal = sys.stderr is not None and sys.stderr.isatty()  # None where it is closed
        show = terminal and find_spec("rich") is not None
    wanted = flag("show_progress", show)
    if not wanted:
        yield lambda done=1, note="": None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise ImportError("rich is not installed: pip install 'saddlepoint[cli]'") from error
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, note="")

        def tick(done: int = 1, note: str = "") -> None:
            bar.advance(task, done)
            if note:
                bar.update(task, note=note)

        yield tick
