"""Data sets and the files they come from: IDX, NPZ, CSV, the bundled digits; and safetensors.

What a file holds is checked when it is read. One that is not what it should be raises
``FileFormatError`` with a line that names it; contents no model can use raise ``ValueError``.
"""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from saddlepoint.errors import FileFormatError, expected

__all__ = ["Dataset", "digits", "load", "read_idx", "read_safetensors", "write_safetensors"]

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

    def __post_init__(self) -> None:
        self._check_part("", self.x, self.y)
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
    every = load(Path(__file__).with_name("digits.csv.gz"), dtype)
    # RandomState, since only its stream is promised to stay as it is (NEP 19).
    order = np.random.RandomState(0).permutation(len(every.x))
    train, test = order[:1437], order[1437:]
    x, y = every.x / 16, every.y
    return Dataset(x[train], y[train], x[test], y[test], every.classes, "digits")


def load(path: PathLike, dtype: DTypeLike = "float32") -> Dataset:
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
        - ``*.csv`` or ``*.csv.gz``: comma-separated numbers, the last column an integer label.
          Blank lines are ignored; a first line that does not end in a number is a header.
    dtype
        float32 or float64.

    Raises
    ------
    FileNotFoundError
        If the path, or a file that the folder needs, is not there.
    FileFormatError
        If a file is damaged or not of its kind.
    ValueError
        If what it holds is not a data set: see `Dataset`.

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
    """
    path, dtype = Path(path), np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise TypeError(expected("dtype", "float32 or float64", dtype))
    name = path.name.lower()
    if path.is_dir():
        parts = _read_idx_folder(path)
    elif not path.exists():
        raise FileNotFoundError(expected(str(path), "a file or folder", "nothing there"))
    elif name.endswith(".npz"):
        parts = _read_npz(path)
    elif name.endswith((".csv", ".csv.gz")):
        parts = _read_csv(path)
    else:
        what = "a folder of IDX files, .npz, .csv or .csv.gz"
        raise FileFormatError(expected(str(path), what, "another kind of file"))
    parts = [(_inputs(path, x, dtype), _targets(path, y, dtype)) for x, y in parts]
    if len({y.dtype for _, y in parts}) > 1:
        raise FileFormatError(expected(str(path), "labels or targets in both parts", "one of each"))
    labels = [y for _, y in parts if y.dtype == np.int64]
    classes = 1 + max(int(y.max(initial=0)) for y in labels) if labels else None
    x_test, y_test = parts[1] if len(parts) > 1 else (None, None)
    return Dataset(*parts[0], x_test, y_test, classes, path.resolve().name)


def _inputs(path: Path, raw: Array, dtype: np.dtype[Any]) -> Array:
    if raw.dtype.kind not in "buif" or raw.ndim == 0:
        raise FileFormatError(expected(str(path), "inputs that are rows of numbers", _brief(raw)))
    rows = raw.reshape(len(raw), math.prod(raw.shape[1:]))
    if raw.dtype == np.uint8 and raw.ndim > 2:
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


def _read_idx_folder(folder: Path) -> list[tuple[Array, Array]]:
    def find(stem: str) -> Path | None:
        return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)

    parts = []
    for prefix in ("train", "t10k"):
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, labels = map(find, names)
        if prefix == "t10k" and images is None and labels is None:
            break
        if images is None or labels is None:
            missing = names[0] if images is None else names[1]
            raise FileNotFoundError(expected(str(folder), f"a file {missing}[.gz]", "none"))
        x, y = read_idx(images), read_idx(labels)
        if x.ndim < 2:
            raise FileFormatError(expected(str(images), "two axes or more", x.shape))
        if y.shape != x.shape[:1]:
            raise FileFormatError(expected(str(labels), f"{len(x)} labels", f"shape {y.shape}"))
        parts.append((x, y))
    return parts


_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: PathLike) -> Array:
    """The array of an IDX file, plain or gzip, in native byte order.

    The format of the MNIST distribution: two zero bytes, a type, the number of axes, their lengths
    as big-endian uint32, then the elements, big-endian, row by row. Types are uint8, int8, int16,
    int32, float32 and float64.

    Raises
    ------
    FileFormatError
        For another magic number, damaged gzip, or more or fewer bytes than the lengths declare.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
    ...     read_idx(path)
    array([5, 0, 4], dtype=uint8)
    """
    with _opened(path) as stream:
        magic = bytes(_read_up_to(stream, 4))
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or not magic[3]:
            what = "an IDX magic number (0, 0, type, axes)"
            raise FileFormatError(expected(str(path), what, magic.hex(" ") or "an empty file"))
        dtype = np.dtype(_IDX_DTYPES[magic[2]])
        lengths = _read_up_to(stream, 4 * magic[3])
        if len(lengths) < 4 * magic[3]:
            what = f"the lengths of {magic[3]} axes"
            raise FileFormatError(expected(str(path), what, "the end of the file"))
        shape = tuple(np.frombuffer(lengths, ">u4").tolist())
        size = math.prod(shape) * dtype.itemsize
        # One byte more than declared tells a longer file; a shorter one costs what it holds.
        data = _read_up_to(stream, size + 1)
    if len(data) != size:
        got = "more" if len(data) > size else len(data)
        raise FileFormatError(expected(str(path), f"{size} bytes for {dtype.name} {shape}", got))
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:  # more axes, or longer empty ones, than NumPy has
        raise FileFormatError(expected(str(path), "a shape NumPy can hold", shape)) from error
    return array.astype(dtype.newbyteorder("="), copy=False)


@contextmanager
def _opened(path: PathLike) -> Iterator[BufferedIOBase]:
    """Plain bytes of a plain or gzip file, told apart by content, whatever the name."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_gzip:
            yield file
            return
        try:
            with gzip.open(file) as unzipped:
                yield unzipped
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FileFormatError(expected(str(path), "intact gzip", f"'{error}'")) from error


def _read_up_to(stream: BufferedIOBase, count: int) -> bytearray:
    # In pieces: one read(count) would allocate whatever a damaged header declares.
    data = bytearray()
    while piece := stream.read(min(count - len(data), 1 << 20)):
        data += piece
    return data


_NPZ_KEYS = ("x", "x_train", "y", "y_train", "x_test", "y_test")

# OSError: a damaged directory sends zipfile to an offset that is none.
_NPZ_FAULTS = (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)


def _read_npz(path: Path) -> list[tuple[Array, Array]]:
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {key: archive[key] for key in archive.files if key in _NPZ_KEYS}
        except _NPZ_FAULTS as error:
            what = "an intact .npz of plain arrays"
            raise FileFormatError(expected(str(path), what, f"'{error}'")) from error

    def take(*names: str) -> Array:
        for name in names:
            if isinstance(arrays.get(name), np.ndarray):
                return arrays[name]
        what = f"an array {' or '.join(names)}"
        raise FileFormatError(expected(str(path), what, archive.files))

    parts = [(take("x", "x_train"), take("y", "y_train"))]
    if "x_test" in arrays or "y_test" in arrays:
        parts.append((take("x_test"), take("y_test")))
    return parts


def _read_csv(path: Path) -> list[tuple[Array, Array]]:
    with _opened(path) as stream:
        try:
            text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise FileFormatError(expected(str(path), "UTF-8 text", f"'{error}'")) from error
    lines = {number: line for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    first = next(iter(lines), None)
    if first is not None and not _is_number(lines[first].rpartition(",")[2]):
        del lines[first]
    if not lines:
        raise FileFormatError(expected(str(path), "at least one row of numbers", "none"))
    try:
        table = np.loadtxt(list(lines.values()), delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        got = _first_fault(lines) or f"'{error}'"
        raise FileFormatError(expected(str(path), "rows of numbers, equally long", got)) from error
    if table.shape[1] < 2:
        raise FileFormatError(expected(str(path), "two columns or more, the last the label", "one"))
    labels = table[:, -1]
    whole = (np.floor(labels) == labels) & (np.abs(labels) < 2**53)
    if not whole.all():
        what = "integer labels in the last column"
        raise FileFormatError(expected(str(path), what, labels[~whole][0]))
    return [(table[:, :-1], labels.astype(np.int64))]


def _first_fault(lines: Mapping[int, str]) -> str | None:
    width = next(iter(lines.values())).count(",") + 1
    for number, line in lines.items():
        cells = line.split(",")
        if len(cells) != width:
            return f"{len(cells)} values on line {number}, {width} before"
        for cell in cells:
            if not _is_number(cell):
                return f"{cell.strip()[:40]!r} on line {number}"
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_safetensors(path: PathLike) -> dict[str, Array]:
    """The arrays of a safetensors file by name, writable and independent of the file.

    Raises
    ------
    FileFormatError
        If the file is damaged, or holds a dtype that NumPy lacks (bfloat16).
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.safetensors")
    ...     write_safetensors(path, {"theta": np.arange(3.0)}, {"epoch": "7"})
    ...     read_safetensors(path)
    {'theta': array([0., 1., 2.])}
    """
    safetensors = _safetensors()
    content = Path(path).read_bytes()
    try:
        arrays: dict[str, Array] = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        what = "an intact safetensors file of NumPy dtypes"
        raise FileFormatError(expected(str(path), what, f"'{error}'")) from error
    return arrays


def write_safetensors(
    path: PathLike, arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays, in any memory order, and text beside them, all or nothing.

    The file is written under another name in the same folder and then renamed, so that a reader
    finds the old one or the new one, and an interrupted write leaves the old one.

    Raises
    ------
    TypeError
        For a value that is not an array, a dtype the format lacks, or metadata that is not text.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    See `read_safetensors`.
    """
    safetensors = _safetensors()
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(expected(f"arrays[{name!r}]", "an array", type(array).__name__))
    try:
        # It copies memory as it lies, whatever the strides.
        ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        content = safetensors.numpy.save(ordered, dict(metadata) if metadata else None)
    except safetensors.SafetensorError as error:
        raise TypeError(expected("arrays", "dtypes of safetensors", f"'{error}'")) from error
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        message = "safetensors is not installed: pip install 'saddlepoint[cli]'"
        raise ImportError(message) from error
    return safetensors
