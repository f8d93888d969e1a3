"""Files and folders that are whole or absent, and JSON that every reader takes.

What is written goes under a hidden name beside its place, ``.NAME.PID-COUNT.new``, and is then
renamed. What a killed process left so is put right by the next one that looks at the same place.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import FileFormatError, expected, path_of

__all__ = [
    "check_folder",
    "dump_json",
    "number",
    "parse_json",
    "plain",
    "settle",
    "write_file",
    "write_folder",
]

PathLike = str | os.PathLike[str]

_count = itertools.count()


def write_file(path: PathLike, content: bytes) -> Path:
    """Write a file, which replaces one of that name at once.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(Path(folder, "a"), b"whole").read_bytes()
    b'whole'
    """
    place = _place(path)
    settle(place)
    draft = _beside(place, "new")
    try:
        _write(draft, content)
        os.replace(draft, place)
    finally:
        draft.unlink(missing_ok=True)
    return Path(path)


def write_folder(
    path: PathLike,
    files: Mapping[str, bytes],
    known: Collection[str],
    overwrite: bool = False,
    keep_others: bool = False,
) -> Path:
    """Write a folder of files: the new one or the old one is there, never a mixture.

    A folder that is there is replaced if ``overwrite`` says so and all its files are ``known``;
    with ``keep_others`` those that are not go over into the new one.

    Raises
    ------
    FileExistsError, NotADirectoryError, OSError
        As `check_folder`.
    """
    place = _place(path)
    check_folder(place, known, overwrite, keep_others)
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(place, "new")
    draft.mkdir()
    aside = draft.with_suffix(".old")
    try:
        for name, content in files.items():
            _write(draft / name, content)
        _sync(draft)
        while not _renamed(draft, place):  # again where another process was faster
            check_folder(place, known, overwrite, keep_others)
            _carry(place, draft, known)
            if _exchanged(draft, place):
                break
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(FileNotFoundError):
                os.rename(place, aside)
            _carry(aside, draft, known)
        _carry(draft, place, known)  # what came just before they were exchanged
        _sync(place.parent)
    except BaseException:
        if not place.exists() and aside.exists():
            _renamed(aside, place)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
    return Path(path)


def _carry(old: Path, new: Path, known: Collection[str]) -> None:
    """Link what is not known from one folder into another: whoever writes to it goes on."""
    with suppress(FileNotFoundError):
        for entry in os.scandir(old):
            target = new / entry.name
            if entry.name in known or os.path.lexists(target):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.copytree(entry, target, symlinks=True, copy_function=_link)
            else:
                _link(entry.path, target)


def _link(source: PathLike, target: PathLike) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # file systems without links
        shutil.copy2(source, target, follow_symlinks=False)


def _renamed(draft: Path, place: Path) -> bool:
    try:
        os.rename(draft, place)  # takes the place of nothing or of an empty folder
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange two folders at once, where the system can: then there is no time without one."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


def check_folder(
    path: PathLike,
    known: Collection[str] = (),
    overwrite: bool = False,
    keep_others: bool = False,
) -> None:
    """Raise unless `write_folder` could write there; nothing is left behind.

    Raises
    ------
    NotADirectoryError
        If the path, or what should hold it, is a file.
    FileExistsError
        If there is a folder already that is not to be overwritten, or that holds other files,
        unless these are kept.
    OSError
        If nothing can be made there.
    """
    place = _place(path)
    settle(place)
    _probe(place.parent, place)
    held: list[str] = []
    try:
        with suppress(FileNotFoundError):  # another process may move it away at any time
            held = sorted(os.listdir(place))
    except NotADirectoryError:
        raise NotADirectoryError(expected(str(path), "a folder", "a file")) from None
    others = [name for name in held if name not in known]
    if keep_others:
        held = [name for name in held if name in known]
    elif others:
        what = "a new or empty folder, or one that holds nothing else"
        raise FileExistsError(expected(str(path), what, f"one with {others[0]}"))
    if held and not overwrite:
        what = "a new or empty folder, or leave to overwrite"
        raise FileExistsError(expected(str(path), what, f"one with {held[0]}"))


def check_writable(path: PathLike) -> None:
    """Raise unless a folder is there, or can be made, and can be written to.

    Raises
    ------
    NotADirectoryError
        If the path, or what should hold it, is a file.
    OSError
        If nothing can be made there.
    """
    place = _place(path)
    _probe(place, place)


def _probe(folder: Path, place: Path) -> None:
    """Make a folder there and take it away, by a name that `settle` of a place knows."""
    ground = next(found for found in (folder, *folder.parents) if os.path.lexists(found))
    if not ground.is_dir():
        raise NotADirectoryError(expected(str(ground), "a folder", "a file"))
    probe = ground / _beside(place, "new").name
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        got = error.strerror or str(error)
        raise type(error)(expected(str(folder), "a place that can be written", got)) from None


def settle(path: PathLike) -> None:
    """Put right what killed processes left beside a file or folder: drafts go, a moved one returns.

    A process that was killed between the two renames of an exchange had moved the old folder away
    and not yet put the new one there.
    """
    place = _place(path)
    if not place.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(place.name)}\.(\d+)-\d+\.(new|old)")
    left = [
        (found[2], place.with_name(found[0]))
        for found in map(pattern.fullmatch, os.listdir(place.parent))
        if found and not _alive(int(found[1]))
    ]
    for kind, rest in sorted(left, reverse=True):  # "old" before "new"
        with suppress(FileNotFoundError):  # another process is putting it right
            if kind == "old" and not place.exists() and _renamed(rest, place):
                continue
            if rest.is_dir():
                shutil.rmtree(rest)
            else:
                rest.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _place(path: PathLike) -> Path:
    return Path(os.path.realpath(path_of("path", path)))  # a link is followed, not replaced


def _beside(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{os.getpid()}-{next(_count)}.{kind}")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dump_json(value: Mapping[str, Any]) -> bytes:
    """UTF-8 JSON as RFC 8259 has it; non-finite numbers are the caller's to spell.

    Raises
    ------
    ValueError
        For a NaN or an infinity, which JSON has no word for.

    Examples
    --------
    >>> dump_json({"seed": 0})
    b'{\\n "seed": 0\\n}\\n'
    """
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def parse_json(name: str, content: bytes) -> dict[str, Any]:
    """The object that a file holds.

    Raises
    ------
    FileFormatError
        If it is not JSON, or not an object.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileFormatError(expected(name, "JSON", f"'{error}'")) from None
    if not isinstance(value, dict):
        raise FileFormatError(expected(name, "a JSON object", type(value).__name__))
    return value


def number(value: float) -> float | str | None:
    """A number for JSON: None for NaN, and the infinities by name.

    Examples
    --------
    >>> [number(v) for v in (0.5, math.nan, -math.inf)]
    [0.5, None, '-inf']
    """
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def plain(value: Any, spell: bool = True) -> Any:
    """Dictionaries, lists and numbers that JSON has, with ``spell`` those of `number`.

    Results become their ``to_dict()`` and arrays lists; what is none of these stays as it is.

    Examples
    --------
    >>> plain({"loss": np.array([0.5, np.nan]), "layers": (64, 10)})
    {'loss': [0.5, None], 'layers': [64, 10]}
    """
    if isinstance(value, float):
        return number(value) if spell else value
    if isinstance(value, Mapping):
        return {key: plain(item, spell) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, spell) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist(), spell)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict(), spell)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), spell) for f in fields(value)}
    return value
