"""Names of parameters, and the patterns that pick some of them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from .errors import expected

__all__ = ["chosen_names"]


def chosen_names(all_: Sequence[str], wanted: Any, argument: str) -> tuple[str, ...]:
    """Those that names or patterns of the shell pick, in their own order.

    Raises
    ------
    TypeError
        For what is no text, or no collection of texts.
    ValueError
        For a pattern that picks nothing; the message has names that are close.
    """
    patterns = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else wanted
    taken: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(expected(argument, "names or patterns", type(pattern).__name__))
        found = fnmatch.filter(all_, pattern)
        if not found:
            close = difflib.get_close_matches(pattern, all_, 3, 0.3) or list(all_)[:3]
            what = f"names of parameters ({', '.join(close)}, …)"
            raise ValueError(expected(argument, what, repr(pattern)))
        taken.update(found)
    if not taken:
        raise ValueError(expected(argument, "at least one name", "none"))
    return tuple(name for name in all_ if name in taken)
