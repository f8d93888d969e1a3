"""What several commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ..runs import Analysis, Run

__all__ = ["complain", "say", "tell_training", "tell_verdict"]


def complain(text: str) -> None:
    """Print a line where errors go."""
    Console(stderr=True, soft_wrap=True).print(
        f"saddlepoint: {text}", style="red", markup=False, highlight=False
    )


def say(text: str, style: str = "") -> None:
    """Print a line as it is: what it says is no markup."""
    Console(soft_wrap=True).print(text, style=style, markup=False, highlight=False)


def tell_training(run: Run) -> None:
    """The first and last epochs, and the test accuracy."""
    history = run.history
    columns = {
        "loss": [f"{v:.4f}" for v in history.train_loss],
        "validation loss": [f"{v:.4f}" for v in history.validation_loss],
        "accuracy": [f"{v:.2%}" for v in history.validation_accuracy],
        "seconds": [f"{v:.2f}" for v in history.seconds],
    }
    # What was not measured at all has no column; one that diverged keeps its nan.
    for name, values in (
        ("validation loss", history.validation_loss),
        ("accuracy", history.validation_accuracy),
    ):
        if np.isnan(values).all():
            del columns[name]
    table = Table("epoch", *columns, box=None)
    count = len(history.train_loss)
    shown = range(count) if count <= 6 else (0, 1, 2, count - 3, count - 2, count - 1)
    for i in shown:
        table.add_row(str(i + 1), *(cells[i] for cells in columns.values()))
    Console().print(table)
    if run.stopped != "finished":
        say(f"training {run.stopped} after {len(history.loss)} updates", "yellow")
    if run.test_accuracy == run.test_accuracy:  # not NaN
        say(f"test accuracy {100 * run.test_accuracy:.2f} %", "bold")
    elif "validation loss" not in columns:
        say("no test part")


def tell_verdict(found: Analysis) -> None:
    """The verdict, its reason and its cure, and the point."""
    say(f"\nWhere training ended: {found.verdict}", "bold")
    say(found.reason)
    say(found.cure)
    say(f"Training rows: {found.sample}.")
    if found.point is None or found.verdict == "diverged":
        return
    say(f"As a point: {found.point.kind}. {found.point.reason}")
    if found.initial_gradient_norm > 0.0:
        share = found.point.gradient_norm / found.initial_gradient_norm
        say(f"‖g‖ is {share:.2%} of what it was at the start.")
