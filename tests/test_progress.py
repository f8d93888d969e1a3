"""What a progress bar is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rich.progress

from saddlepoint import eigsh
from saddlepoint.progress import progress


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[rich.progress.Progress]:
    """The bars that are drawn."""
    drawn = []

    class Kept(rich.progress.Progress):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(rich.progress, "Progress", Kept)
    return drawn


def test_work_adds_up_and_the_last_note_stays(bars: list[rich.progress.Progress]) -> None:
    with progress("training", 10, show=True) as tick:
        task = bars[0].tasks[0]
        assert (task.description, task.total, task.completed) == ("training", 10, 0)
        tick()
        tick(4)
        tick(0, "loss 0.5")
        assert (task.completed, task.fields["note"]) == (5, "loss 0.5")
        tick(2)
        assert (task.completed, task.fields["note"]) == (7, "loss 0.5")


@pytest.mark.parametrize("show", [False, None])  # standard error is no terminal here
def test_nothing_is_drawn_unless_asked_for(
    show: bool | None, bars: list[rich.progress.Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training", 10, show) as tick:
        tick(3, "loss 0.5")
    assert bars == []
    assert capsys.readouterr() == ("", "")


def test_standard_error_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)  # as Python has it under pythonw, or after 2>&-
    assert eigsh(np.diag([1.0, 2.0, 3.0]), k=1, which="LA").values == pytest.approx([3.0])
