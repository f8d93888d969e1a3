"""The application: every command, and what holds for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import typer

from .. import __version__
from ..data import DataWarning
from ..signals import Terminated, terminable
from .analyze import analyze
from .demo import demo
from .info import info
from .options import EXITS
from .printing import complain, say
from .train import train

__all__ = ["COMMANDS", "make_app"]

#: In the order of ``saddlepoint --help``.
COMMANDS: Final[tuple[Callable[..., None], ...]] = (info, demo, train, analyze)


def make_app() -> Callable[..., Any]:
    """The commands as one callable, which takes ``args``."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Find out what a network's training is stuck on, and get it moving again.",
    )
    app.callback()(_about)
    for command in COMMANDS:
        app.command()(_stoppable(command))
    return app


def _stoppable(function: Callable[..., None]) -> Callable[..., None]:
    """A command that ends as shells have it when a signal stops it, and tells doubts about data."""

    @wraps(function)
    def stoppable(*args: Any, **kwargs: Any) -> None:
        try:
            with terminable(), warnings.catch_warnings():
                warnings.simplefilter("always", DataWarning)
                warnings.showwarning = lambda message, *_, **__: complain(str(message))
                function(*args, **kwargs)
        except KeyboardInterrupt as error:
            stopped = "terminated" if isinstance(error, Terminated) else "interrupted"
            complain(stopped)
            raise SystemExit(EXITS[stopped]) from None

    return stoppable


def _version(asked: bool) -> None:
    if asked:
        say(f"saddlepoint {__version__}")
        raise typer.Exit


def _about(
    shown: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="print the version and stop"
    ),
) -> None:
    pass
