"""What the commands share: how an option is declared, and what a command ends with."""

from __future__ import annotations

from typing import Any, Final

import typer

__all__ = ["EXITS", "option"]

#: What a command ends with: as shells have it for the signals that stop a program.
EXITS: Final = {"finished": 0, "diverged": 1, "interrupted": 130, "terminated": 143}


def option(default: Any, *names: str, help: str) -> Any:
    """An option of a command."""
    return typer.Option(default, *names, help=help, show_default=default is not None)
