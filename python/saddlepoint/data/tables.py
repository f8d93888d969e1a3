"""CSV files: what the columns are is asked for, or guessed from the file and said.

A guess that the file cannot settle raises, and the message names the option that does.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, expected
from .streams import check_size, opened

__all__ = ["Column", "DataWarning", "Layout", "Table", "read_table"]

Array = NDArray[Any]
Column = str | int
Record = tuple[int, list[str]]  # the line that it ends on, and its cells

_LABEL_NAMES = ("label", "class", "target", "y")
_MISSING = {
    "", "?", "-", ".", "na", "n/a", "n.a.", "#n/a", "<na>", "nan", "null", "nil", "none", "missing",
}  # fmt: skip
_SEPARATORS = ",;\t"
_SAMPLE = 20  # lines that guesses are made from
_BLANKS = 1 << 16  # lines that may stand before them and between them
_LINE = 1 << 22  # characters of a line at most
_CLASSES = 1 << 16  # names of classes at most
_INDEX_NAME = re.compile(r"(Unnamed: \d+)?")  # pandas', written once and twice


class DataWarning(UserWarning):
    """A file was read, but what it holds is probably not what was meant."""


@dataclass(frozen=True)
class Layout:
    """Which columns are what; None where that is to be guessed.

    Attributes
    ----------
    label : str, int or sequence of them
        Column of the class label, or of the target where it is not whole; several, or a sequence
        of one, are targets.
    header : bool
        Whether the first line names the columns.
    index : bool, str or int
        Column that only numbers the rows and is left out; True is the first, False none.
    separator : str
        One character.
    """

    label: Column | Sequence[Column] | None = None
    header: bool | None = None
    index: bool | Column | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        several = isinstance(self.label, (list, tuple))
        for column in self.label if several else [self.label]:  # type: ignore[union-attr]
            if (column is not None or several) and not _is_column(column):
                raise TypeError(expected("label", "a name or number of a column", repr(column)))
        if several and not self.label:
            raise ValueError(expected("label", "a column or more", "none"))
        if not isinstance(self.header, bool | None):
            raise TypeError(expected("header", "True, False or None", repr(self.header)))
        if not (isinstance(self.index, bool | None) or _is_column(self.index)):
            raise TypeError(expected("index", "a bool, a name or a number", repr(self.index)))
        if not isinstance(self.separator, str | None):
            raise TypeError(expected("separator", "a character", repr(self.separator)))
        if self.separator is not None and (
            len(self.separator) != 1 or self.separator in '"\r\n' or self.separator.isalnum()
        ):
            what = "one character that is no letter, digit or quote"
            raise ValueError(expected("separator", what, repr(self.separator)))


def _is_column(value: object) -> bool:
    return isinstance(value, (str, int, np.integer)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Table:
    """What a file holds: inputs (N, features), and labels (N,) or targets (N, targets).

    ``names`` are those of the classes, where labels are words; ``y`` then holds places in them.
    ``layout`` is the one that was used and ``header`` its names; ``notes`` say what was guessed,
    ``doubts`` what is probably not meant.
    """

    x: Array
    y: Array
    names: list[str] | None
    layout: Layout
    header: list[str] | None
    notes: list[str]
    doubts: list[str]


def read_table(path: os.PathLike[str], dtype: np.dtype[Any], asked: Layout, limit: int) -> Table:
    """The table of a CSV file; see `load` for the rules."""
    with opened(path, limit) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            return _Reader(str(path), dtype, asked, limit).read(_lines(str(path), text))
        except UnicodeDecodeError as error:
            raise FileFormatError(expected(str(path), "UTF-8 text", f"'{error}'")) from error


def _lines(path: str, text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_LINE + 1):
        if len(line) > _LINE:
            what = f"lines of at most {_LINE} characters"
            raise FileFormatError(expected(path, what, "a longer one"))
        yield line


class _Reader:
    """One reading of one file."""

    def __init__(self, path: str, dtype: np.dtype[Any], asked: Layout, limit: int) -> None:
        self.path, self.dtype, self.asked, self.limit = path, dtype, asked, limit
        self.notes: list[str] = []
        self.doubts: list[str] = []
        self.header: list[str] | None = None

    def fault(self, what: str, got: object) -> FileFormatError:
        return FileFormatError(expected(self.path, what, got))

    def read(self, lines: Iterator[str]) -> Table:
        head: list[str] = []
        full = 0
        for line in islice(lines, _BLANKS):
            head.append(line)
            full += bool(line.strip())
            if full == _SAMPLE:
                break
        separator = self.asked.separator or self._separator(head)
        sample = list(self._records(head, separator, strict=False))
        if not sample:
            raise self.fault("at least one row of numbers", "none")
        header = self.asked.header
        if header is None:
            header = self._has_header(sample)
            if header:
                self.notes.append("the first line is a header")
        begin = 0
        self.width = len(sample[0][1])
        if header:
            begin, names = sample.pop(0)
            self.header = [name.strip() for name in names]
        index = self._index()
        labels = self._labels(index)
        if len({*labels, *([] if index is None else [index])}) == self.width:
            what = "two columns or more, one of them the label"
            raise self.fault(what, "one" if self.width == 1 else "no inputs")
        words = len(labels) == 1 and bool(sample) and self._is_word(sample[0][1], labels[0])
        rest = chain(head[begin:], lines)
        return self._fill(rest, begin, separator, index, labels, {} if words else None)

    def _is_word(self, cells: list[str], j: int) -> bool:
        return j < len(cells) and _kind(cells[j]) == "word"

    def _records(
        self, lines: Iterable[str], separator: str, begin: int = 0, strict: bool = True
    ) -> Iterator[Record]:
        rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=strict)
        try:
            for cells in rows:
                if cells and not (len(cells) == 1 and not cells[0].strip()):
                    yield begin + rows.line_num, cells
        except csv.Error as error:
            got = f"'{error}' on line {begin + rows.line_num}"
            raise self.fault("rows of numbers, equally long", got) from error

    def _separator(self, head: list[str]) -> str:
        def merit(separator: str) -> tuple[bool, int]:
            rows = [row for row in csv.reader(head, delimiter=separator) if row]
            widths = {len(row) for row in rows}
            steady = len(widths) == 1 and max(widths) > 1
            return steady, sum(_kind(c) == "number" for row in rows for c in row) if steady else 0

        try:
            merits = {separator: merit(separator) for separator in _SEPARATORS}
        except csv.Error:
            return ","
        best = max(merits, key=lambda separator: merits[separator])
        equal = [separator for separator, of in merits.items() if of == merits[best] and of[0]]
        if len(equal) > 1:
            raise self.fault("separator= to be told", f"lines that {equal} split alike")
        if best != ",":
            self.notes.append(f"the separator is {'a tab' if best == chr(9) else best!r}")
        return best

    def _has_header(self, sample: list[Record]) -> bool:
        (line, first), others = sample[0], [cells for _, cells in sample[1:]]
        kinds = [_kind(cell) for cell in first]
        if kinds[0] == "missing" and _counts(first[1:]) == 0:
            return True  # pandas' index beside numbered columns
        if "word" in kinds:
            if not others:
                return set(kinds) == {"word"}
            # A word above numbers names its column; one above words may be a label.
            below = {
                j: [_kind(row[j]) for row in others if j < len(row)]
                for j, kind in enumerate(kinds)
                if kind == "word"
            }
            names = [j for j, found in below.items() if "number" in found]
            rest = [cell for cell, kind in zip(first, kinds, strict=True) if kind != "word"]
            if not names or not {"number", "infinite"} & {*kinds}:
                return bool(names)
            steady = all({*found} == {"number"} for found in below.values())
            if steady and _counts(rest) is not None:
                return True  # a named column beside numbered ones
            what = "header=True or header=False, for a first line of numbers and a word above some"
            at = f"line {line}, column {names[0] + 1} of {len(first)}"
            raise self.fault(what, f"{first[names[0]].strip()[:40]!r} on {at}")
        start = _counts(first)
        if start is None or any(_counts(row) is not None for row in others):
            return False
        if (start == 0 and len(first) < 4) or (start != 0 and len(first) > 4):
            what = "header=True or header=False, for a first line that could be either"
            raise self.fault(what, ", ".join(first)[:40])
        return start == 0

    def _find(self, option: str, column: Column) -> int:
        if isinstance(column, str):
            names = self.header or []
            if names.count(column) != 1:
                got = (
                    f"{names.count(column)} in {names[:20]}" if names else "a file without a header"
                )
                raise ValueError(expected(f"{self.path}: {option}", f"one column {column!r}", got))
            return names.index(column)
        if not -self.width <= column < self.width:
            what = f"a number of {self.width} columns"
            raise ValueError(expected(f"{self.path}: {option}", what, column))
        return int(column) % self.width

    def _index(self) -> int | None:
        asked = self.asked.index
        if isinstance(asked, bool):
            return 0 if asked else None
        if asked is not None:
            return self._find("index", asked)
        if self.header is not None and _INDEX_NAME.fullmatch(self.header[0]):
            return 0
        return None

    def _labels(self, index: int | None) -> list[int]:
        asked = self.asked.label
        if asked is not None:
            columns: Sequence[Any] = asked if isinstance(asked, (list, tuple)) else [asked]
            found = [self._find("label", column) for column in columns]
            if len(set(found)) < len(found) or index in found:
                raise ValueError(
                    expected(f"{self.path}: label", "columns once, and no index", asked)
                )
            return found
        names = [] if self.header is None else [name.casefold() for name in self.header]
        named = [j for j, name in enumerate(names) if name in _LABEL_NAMES and j != index]
        if len(named) > 1:
            got = f"a header with {', '.join(names[j] for j in named)}"
            raise ValueError(expected(f"{self.path}: label", "label= to name the column", got))
        return named or [self.width - 1]

    def called(self, j: int) -> str:
        return repr(self.header[j]) if self.header else f"{j + 1} of {self.width}"

    def _fill(
        self,
        lines: Iterator[str],
        begin: int,
        separator: str,
        index: int | None,
        labels: list[int],
        names: dict[str, int] | None,
    ) -> Table:
        apart = sorted({*labels, *([] if index is None else [index])}, reverse=True)
        inputs: array[float] = array(self.dtype.char)
        targets, counted = array("d"), array("d")
        counts = index is not None and self.asked.index is None
        while names is None and (block := _block(lines)):
            table = self._quick(block, separator)
            if table is None:  # something to be looked at cell by cell, from here on
                lines = chain(block, lines)
                break
            begin += len(block)
            targets.frombytes(table[:, labels].tobytes())
            if counts:
                counted.frombytes(table[:, index].tobytes())
            with np.errstate(over="ignore"):  # what overflows is inf, and refused as such
                kept = np.delete(table, apart, axis=1).astype(self.dtype)
            inputs.frombytes(kept.tobytes())
            check_size(self.path, inputs.itemsize * len(inputs), self.limit)
        for line, cells in self._records(lines, separator, begin):
            if len(cells) != self.width:
                got = f"{len(cells)} values on line {line}, {self.width} before"
                raise self.fault("rows of numbers, equally long", got)
            for j in labels:
                if names is None:
                    targets.append(self._number(line, j, cells[j]))
                else:
                    targets.append(names.setdefault(self._word(line, j, cells[j]), len(names)))
            if names is not None and len(names) > _CLASSES:
                raise self.fault(f"at most {_CLASSES} classes", f"more by line {line}")
            if counts and index is not None:
                counted.append(self._number(line, index, cells[index]))
            inputs.extend(self._number(line, j, c) for j, c in enumerate(cells) if j not in apart)
            check_size(self.path, inputs.itemsize * len(inputs), self.limit)
        rows = len(targets) // len(labels)
        if rows == 0:
            raise self.fault("at least one row of numbers", "none")
        x = np.frombuffer(inputs, self.dtype).reshape(rows, -1)
        values = np.frombuffer(targets).reshape(rows, len(labels))
        self._check_index(index, np.frombuffer(counted), x)
        y = self._targets(values, x, labels, names)
        layout = Layout(
            labels if isinstance(self.asked.label, (list, tuple)) else labels[0],
            self.header is not None,
            False if index is None else index,
            separator,
        )
        words = None if names is None else list(names)
        return Table(x, y, words, layout, self.header, self.notes, self.doubts)

    def _quick(self, block: list[str], separator: str) -> Array | None:
        """Plain finite numbers, by NumPy's reader; None for anything else."""
        text = "".join(block)
        if not text.strip() or _SUSPECT.search(text):
            return None
        try:
            table = np.loadtxt(block, delimiter=separator, comments=None, ndmin=2)
        except ValueError:
            return None
        return table if table.shape[1] == self.width else None

    def _number(self, line: int, j: int, cell: str) -> float:
        if _kind(cell) == "number":
            return float(cell)
        what = "a value, not a missing one" if _kind(cell) == "missing" else "a finite number"
        raise self.fault(what, f"{cell.strip()[:40]!r} on line {line}, column {self.called(j)}")

    def _word(self, line: int, j: int, cell: str) -> str:
        if _kind(cell) == "missing":
            got = f"{cell.strip()!r} on line {line}, column {self.called(j)}"
            raise self.fault("a value, not a missing one", got)
        return cell.strip()

    def _check_index(self, index: int | None, counted: Array, x: Array) -> None:
        if self.asked.index is not None:
            return
        if index is not None:
            if len(np.unique(counted)) < len(counted):
                what = "index=True or index=False, for a first column that has no name"
                raise self.fault(what, "numbers that repeat")
            self.notes.append("the first column, without a name, numbers the rows and is left out")
        elif len(x) > 2 and x.shape[1] > 1 and (np.diff(x[:, 0]) == 1).all():
            self.doubts.append(
                "the first input counts the rows: index=True leaves it out, index=False keeps it"
            )

    def _targets(
        self, values: Array, x: Array, labels: list[int], names: dict[str, int] | None
    ) -> Array:
        asked = self.asked.label
        if isinstance(asked, (list, tuple)):
            if names is not None:
                raise self.fault("numbers as targets", f"{next(iter(names))!r}")
            return values.astype(self.dtype)
        column = values[:, 0]
        by_place = asked is None and not (
            self.header and self.header[labels[0]].casefold() in _LABEL_NAMES
        )
        whole = _whole(column)
        if not whole.all():
            if by_place:
                first = ", or label=0 for the first" if _whole(x[:, 0]).all() else ""
                what = f"integer labels in the last column (label= names another or targets{first})"
                raise self.fault(what, column[~whole][0])
            return values.astype(self.dtype)
        if asked is None:
            self.notes.append(f"the label is column {self.called(labels[0])}")
        return column.astype(np.int64)


_SUSPECT = re.compile(r'["_nN]')  # quotes, digits that Python alone reads, NaN, the infinities


def _block(lines: Iterator[str]) -> list[str]:
    """The next lines, a megabyte or so of them."""
    block, size = [], 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= 1 << 20:
            break
    return block


def _whole(values: Array) -> NDArray[np.bool_]:
    whole: NDArray[np.bool_] = (np.floor(values) == values) & (np.abs(values) < 2**53)
    return whole


def _kind(cell: str) -> str:
    """What a cell is: "missing", "number", "infinite" or "word"."""
    if cell.strip().casefold() in _MISSING:
        return "missing"
    try:
        value = float(cell)
    except ValueError:
        return "word"
    return "word" if "_" in cell else "number" if math.isfinite(value) else "infinite"


def _counts(cells: Sequence[str]) -> int | None:
    """Where integers begin that grow by one from cell to cell; None if these do not."""
    if len(cells) < 2 or not re.fullmatch(r"\s*\d{1,9}\s*", cells[0], re.ASCII):
        return None
    start = int(cells[0])
    steady = all(cell.strip() == str(start + j) for j, cell in enumerate(cells))
    return start if steady else None
