"""``saddlepoint info``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .._info import info as facts

__all__ = ["info"]


def info() -> None:
    """Print version, instruction set, threads, BLAS, CUDA build and devices."""
    table = Table(show_header=False, box=None)
    for name, value in facts().items():
        for i, line in enumerate(value if isinstance(value, list) else [value]):
            table.add_row(name if i == 0 else "", str(line))
        if value == []:
            table.add_row(name, "none")
    Console().print(table)
