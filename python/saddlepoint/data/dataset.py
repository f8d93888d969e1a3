"""Data sets: what they hold, and the files they come from."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import FileFormatError, count, expected, instance, path_of
from ..kinds import float_dtype, refuse_mask
from .idx import read_idx_folder
from .npz import read_npz
from .streams import MAX_BYTES
from .tables import Column, DataWarning, Layout, Table, read_table

__all__ = ["Dataset", "digits", "load"]

Array = NDArray[Any]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and targets, with or without a test part.

    Attributes
    ----------
    x
        Inputs (N, features), float32 or float64, C-contiguous, finite; N and features at least 1.
    y
        Labels (N,), int64, in [0, ``classes``); or targets (N, targets) of the dtype of ``x``.
    x_test, y_test
        The same for the test part, or both None.
    classes
        Number of classes; None for targets.
    name
        What messages and reports call it.
    class_names
        Names of the classes, where the file has words for labels.
    notes
        What `load` guessed of the file or made of it, in sentences.

    Raises
    ------
    TypeError
        For a wrong dtype, or something that is not an array.
    ValueError
        For parts that do not fit each other, non-finite numbers, labels out of range.

    Examples
    --------
    >>> import numpy as np
    >>> xor = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    >>> Dataset(xor, np.array([0, 1, 1, 0]), classes=2, name="xor").x.shape
    (4, 2)
    """

    x: Array
    y: Array
    x_test: Array | None = None
    y_test: Array | None = None
    classes: int | None = None
    name: str = "data"
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes is not None:
            count("classes", self.classes, 1)
        if self.class_names is not None:
            instance("class_names", self.class_names, tuple, "a tuple of names")
        self._check_part("", self.x, self.y)
        if self.class_names is not None and len(self.class_names) != self.classes:
            what, held = f"{self.classes} names", len(self.class_names)
            raise ValueError(expected(f"{self.name} class_names", what, held))
        if self.x_test is None and self.y_test is None:
            return
        if self.x_test is None or self.y_test is None:
            raise ValueError(expected(f"{self.name} x_test, y_test", "both or neither", "one"))
        self._check_part("_test", self.x_test, self.y_test)
        for part, train, test in (("x", self.x, self.x_test), ("y", self.y, self.y_test)):
            if (test.dtype, test.shape[1:]) != (train.dtype, train.shape[1:]):
                what = f"rows like {part}, {train.dtype} {train.shape[1:]}"
                got = f"{test.dtype} {test.shape[1:]}"
                raise ValueError(expected(f"{self.name} {part}_test", what, got))

    def _check_part(self, part: str, x: Array, y: Array) -> None:
        x_name, y_name = f"{self.name} x{part}", f"{self.name} y{part}"
        _check_matrix(x_name, x, "a float32 or float64 array")
        if self.classes is not None:
            _check_labels(y_name, y, self.classes)
        else:
            _check_matrix(y_name, y, f"{x.dtype} targets (labels need classes)")
            if y.dtype != x.dtype:
                raise TypeError(expected(y_name, f"dtype {x.dtype} like x{part}", y.dtype))
        if len(y) != len(x):
            raise ValueError(expected(y_name, f"{len(x)} rows like x{part}", len(y)))


def _check_matrix(name: str, array: Array, what: str) -> None:
    refuse_mask(name, array)
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
        raise TypeError(expected(name, what, getattr(array, "dtype", type(array).__name__)))
    if array.ndim != 2 or array.size == 0:
        raise ValueError(expected(name, "two axes of length at least 1", array.shape))
    if not array.flags.c_contiguous:
        raise ValueError(expected(name, "a C-contiguous array", f"strides {array.strides}"))
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = array[row][~np.isfinite(array[row])][0]
        raise ValueError(expected(name, "finite numbers", f"{value} in row {row}"))


def _check_labels(name: str, labels: Array, classes: int) -> None:
    refuse_mask(name, labels)
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int64:
        got = getattr(labels, "dtype", type(labels).__name__)
        raise TypeError(expected(name, "int64 labels (targets have no classes)", got))
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(expected(name, "one axis of length at least 1", labels.shape))
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise ValueError(expected(name, f"labels in [0, {classes})", labels[outside][0]))


def digits(dtype: DTypeLike = "float32") -> Dataset:
    """The UCI handwritten digits that come with the package: 8×8 pixels in [0, 1], ten classes.

    1437 training and 360 test rows, the same on every machine. Source: E. Alpaydin, C. Kaynak,
    Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (CC BY 4.0).

    Examples
    --------
    >>> data = digits()
    >>> data.x.shape, data.y.dtype, float(data.x.max())
    ((1437, 64), dtype('int64'), 1.0)
    """
    every = load(Path(__file__).with_name("digits.csv.gz"), dtype, label=-1, header=False)
    # RandomState, since only its stream is promised to stay as it is (NEP 19).
    order = np.random.RandomState(0).permutation(len(every.x))
    train, test = order[:1437], order[1437:]
    x, y = every.x / 16, every.y
    return Dataset(x[train], y[train], x[test], y[test], every.classes, "digits")


def load(
    path: PathLike,
    dtype: DTypeLike = "float32",
    label: Column | Sequence[Column] | None = None,
    header: bool | None = None,
    index: bool | Column | None = None,
    separator: str | None = None,
    test: PathLike | float | None = None,
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """A data set from a folder of IDX files, an NPZ or a CSV file.

    Inputs are flattened to rows and cast to ``dtype``; integer targets become int64 labels and fix
    ``classes`` as the largest plus one. Images, that is uint8 with three axes or more, are divided
    by 255. Nothing is standardized.

    Parameters
    ----------
    path
        - A folder with ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, and
          ``t10k-...`` for a test part (the names of MNIST), each with or without ``.gz``.
        - ``*.npz`` with ``x`` and ``y`` (or ``x_train`` and ``y_train``), and ``x_test`` and
          ``y_test`` for a test part. Float ``y`` are targets. Pickled objects are never loaded.
        - ``*.csv`` or ``*.csv.gz``: numbers, cells quoted or not, one column the label: an integer,
          or a word, whose classes are numbered in alphabetical order. Blank lines are ignored; a
          missing cell (empty, ``?``, ``-``, ``NA``, ``None``, …) is an error.
    dtype
        float32 or float64.
    label
        Column of a CSV by name or number, negative ones from the right: labels where they are whole
        or words, else targets. A sequence of columns is targets. None: the one column that a header
        calls label, class, target or y, else the last, which then has to hold labels.
    header
        Whether the first line of a CSV names the columns. None: if it has words where other lines
        have numbers, or if it alone counts 0, 1, 2, … over four columns or more, as pandas does.
        One with numbers beside such words raises, unless they count up by one (``label,0,1,2``).
    index
        Column of a CSV that only numbers the rows, and is left out; True is the first, False none.
        None: the first, if the header has no name for it and it holds different numbers.
    separator
        None: a comma, semicolon or tab, by which every line has the same number of cells.
    test
        A second file or folder of the same kind as the test part; or a share of the rows, between 0
        and 1, drawn at random, the same ones every time.
    max_bytes
        What a file may unfold to, and its inputs may take: 1 GiB by default.

    Warns
    -----
    DataWarning
        For labels of one class, and for a first input that counts the rows.

    Raises
    ------
    FileNotFoundError
        If the path, or a file that the folder needs, is not there.
    FileFormatError
        If a file is damaged, not of its kind, larger than ``max_bytes``, or if an option has to say
        what its columns are.
    ValueError
        If what it holds is not a data set (see `Dataset`), or an option does not fit it.
    TypeError
        For an option of another kind.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "and.csv")
    ...     rows = [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 1]]
    ...     np.savetxt(path, rows, fmt="%d", delimiter=",", header="a,b,label", comments="")
    ...     data = load(path)
    >>> data.x[3], data.y, data.classes
    (array([1., 1.], dtype=float32), array([0, 0, 0, 1]), 2)
    >>> data.notes
    ('the first line is a header', "the label is column 'label'")
    """
    path, dtype = path_of("path", path), float_dtype(dtype)
    count("max_bytes", max_bytes, 0)
    share = _share(test)
    other = None if test is None or share is not None else Path(os.fspath(test))  # type: ignore[arg-type]
    asked = Layout(label, header, index, separator)
    read = _read_table if _is_csv(path) else _read_arrays
    parts, words, notes, doubts = read(path, dtype, asked, other, int(max_bytes))
    if len({y.dtype for _, y in parts}) > 1:
        raise FileFormatError(expected(str(path), "labels or targets in both parts", "one of each"))
    if share is not None:
        parts = _split(path, parts, share)
        notes.append(f"{len(parts[1][0])} rows, drawn at random, are the test part")
    labels = [y for _, y in parts if y.dtype == np.int64]
    classes = 1 + max(int(y.max(initial=0)) for y in labels) if labels else None
    x_test, y_test = parts[1] if len(parts) > 1 else (None, None)
    x, y = parts[0]
    made = Dataset(x, y, x_test, y_test, classes, path.resolve().name, words, tuple(notes))
    if classes is not None and (made.y == made.y[0]).all():
        doubts.append(f"all {len(made.y)} labels are {_called(words, made.y[0])}")
    for doubt in doubts:
        warnings.warn(f"{path}: {doubt}", DataWarning, stacklevel=2)
    return made


def _called(words: tuple[str, ...] | None, label: int) -> str:
    return str(label) if words is None else repr(words[label])


def _share(test: PathLike | float | None) -> float | None:
    if test is None or isinstance(test, (str, os.PathLike)):
        return None
    if isinstance(test, bool) or not isinstance(test, (int, float, np.integer, np.floating)):
        raise TypeError(expected("test", "a path, or a share of the rows", type(test).__name__))
    if not 0 < test < 1:
        raise ValueError(expected("test", "a share between 0 and 1", test))
    return float(test)


_Parts = list[tuple[Array, Array]]
_Read = tuple[_Parts, tuple[str, ...] | None, list[str], list[str]]  # words, notes and doubts


def _is_csv(path: Path) -> bool:
    return not path.is_dir() and path.name.lower().endswith((".csv", ".csv.gz"))


def _read_arrays(
    path: Path, dtype: np.dtype[Any], asked: Layout, test: Path | None, max_bytes: int
) -> _Read:
    for option, value in vars(asked).items():
        if value is not None:
            raise ValueError(expected(option, f"None, since {path} is no CSV", repr(value)))
    parts: _Parts = []
    images: set[bool] = set()
    for file in (path, test):
        if file is None:
            continue
        if file.is_dir():
            found = read_idx_folder(file, max_bytes)
        elif not file.exists():
            raise FileNotFoundError(expected(str(file), "a file or folder", "nothing there"))
        elif file.name.lower().endswith(".npz"):
            found = read_npz(file, max_bytes)
        else:
            what = "a folder of IDX files, .npz, .csv or .csv.gz"
            raise FileFormatError(expected(str(file), what, "another kind of file"))
        if test is not None and len(found) > 1:
            what = "a file without a test part, since test= is given"
            raise ValueError(expected(str(file), what, "one with"))
        images |= {_are_images(x) for x, _ in found}
        if len(images) > 1:  # one would be divided by 255, and the other not
            what = "uint8 images of three axes or more in both parts, or in none"
            raise FileFormatError(expected(str(file), what, "them in one"))
        parts += [(_inputs(file, x, dtype), _targets(file, y, dtype)) for x, y in found]
    return parts, None, [], []


def _read_table(
    path: Path, dtype: np.dtype[Any], asked: Layout, test: Path | None, max_bytes: int
) -> _Read:
    for file in (path, test):
        if file is not None and not file.exists():
            raise FileNotFoundError(expected(str(file), "a file or folder", "nothing there"))
        if file is not None and not _is_csv(file):
            raise FileFormatError(expected(str(file), f"a CSV file, like {path}", "another kind"))
    tables = [read_table(path, dtype, asked, max_bytes)]
    if test is not None:
        tables.append(read_table(test, dtype, tables[0].layout, max_bytes))
        if tables[1].header != tables[0].header:
            raise ValueError(expected(str(test), f"the header of {path}", tables[1].header))
    if len({table.names is None for table in tables}) > 1:
        raise FileFormatError(
            expected(str(test), f"labels like {path}'s", "words or numbers alone")
        )
    first = tables[0]
    if first.names is None:
        return [(table.x, table.y) for table in tables], None, first.notes, first.doubts
    words = sorted({name for table in tables for name in table.names or ()})
    return (
        [(table.x, _coded(table, words)) for table in tables],
        tuple(words),
        first.notes,
        first.doubts,
    )


def _coded(table: Table, words: list[str]) -> Array:
    place = {word: i for i, word in enumerate(words)}
    return np.array([place[name] for name in table.names or ()], np.int64)[table.y]


def _split(path: Path, parts: _Parts, share: float) -> _Parts:
    if len(parts) > 1:
        what = "a file without a test part, since test= is given"
        raise ValueError(expected(str(path), what, "one with"))
    x, y = parts[0]
    held_out = round(share * len(x))
    if not 0 < held_out < len(x):
        what = "a share that leaves rows on both sides"
        raise ValueError(expected("test", what, f"{share:g} of {len(x)}"))
    # RandomState, since only its stream is promised to stay as it is (NEP 19).
    order = np.random.RandomState(0).permutation(len(x))
    test, train = order[:held_out], order[held_out:]
    return [(x[train], y[train]), (x[test], y[test])]


def _are_images(raw: Array) -> bool:
    return raw.dtype == np.uint8 and raw.ndim > 2


def _inputs(path: Path, raw: Array, dtype: np.dtype[Any]) -> Array:
    if raw.dtype.kind not in "buif" or raw.ndim == 0:
        raise FileFormatError(expected(str(path), "inputs that are rows of numbers", _brief(raw)))
    rows = raw.reshape(len(raw), math.prod(raw.shape[1:]))
    if _are_images(raw):
        return np.divide(rows, 255, dtype=dtype, order="C")
    with np.errstate(over="ignore"):  # what overflows is inf, and refused as such
        return np.ascontiguousarray(rows, dtype=dtype)


def _targets(path: Path, raw: Array, dtype: np.dtype[Any]) -> Array:
    if raw.dtype.kind not in "buif" or raw.ndim == 0:
        raise FileFormatError(expected(str(path), "labels or numeric targets", _brief(raw)))
    if raw.dtype.kind != "f":
        return raw.astype(np.int64)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(raw[:, None] if raw.ndim == 1 else raw, dtype=dtype)


def _brief(array: Array) -> str:
    return f"{array.dtype} {array.shape}"
