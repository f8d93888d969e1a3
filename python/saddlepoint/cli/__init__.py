"""The command line; each command is a short call of the package, and says which."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from ..errors import DeviceError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """The entry point of ``saddlepoint``; exits with 2 on bad input, whatever it is."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print("saddlepoint: pip install 'saddlepoint[cli]' for the command line", file=sys.stderr)
        raise SystemExit(2) from None
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without λ shows a question mark

    from .app import make_app
    from .printing import complain

    try:
        make_app()(args=arguments, prog_name="saddlepoint")
    except (ValueError, TypeError, OSError, DeviceError, ImportError, MemoryError) as error:
        complain(str(error))
        raise SystemExit(2) from None
