"""Files written here byte by byte, read back; and the same files damaged."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

import saddlepoint.data
from saddlepoint.data import (
    Dataset,
    digits,
    load,
    read_idx,
    read_safetensors,
    write_safetensors,
)
from saddlepoint.errors import FileFormatError

Array = NDArray[Any]
IDX_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
DIGITS = Path(saddlepoint.data.__file__).with_name("digits.csv.gz")


def idx_bytes(array: Array) -> bytes:
    head = struct.pack(">BBBB", 0, 0, IDX_CODES[array.dtype.str[1:]], array.ndim)
    lengths = b"".join(struct.pack(">I", length) for length in array.shape)
    return head + lengths + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


IMAGES = np.array([[[0, 51], [255, 1]], [[2, 3], [4, 5]], [[6, 7], [8, 9]]], np.uint8)
LABELS = np.array([2, 0, 1], np.uint8)


def idx_folder(folder: Path, **changed: bytes | None) -> Path:
    """A small MNIST: three training and two test images; None leaves a file out."""
    files: dict[str, bytes | None] = {
        "train-images-idx3-ubyte": idx_bytes(IMAGES),
        "train-labels-idx1-ubyte": idx_bytes(LABELS),
        "t10k-images-idx3-ubyte": idx_bytes(IMAGES[:2]),
        "t10k-labels-idx1-ubyte": idx_bytes(LABELS[:2]),
    }
    for key, content in changed.items():
        (name,) = (name for name in files if name.startswith(key.replace("_", "-")))
        files[name] = content
    for name, content in files.items():
        if content is not None:
            write(folder / name, content)
    return folder


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


X = np.array([[1.0, 2.0], [3.0, 4.5]])
Y = np.array([0, 1])


@pytest.mark.parametrize("kind", sorted(IDX_CODES))
@pytest.mark.parametrize("shape", [(7,), (2, 3), (2, 1, 3), (0, 4)])
def test_read_idx_returns_what_was_written(
    tmp_path: Path, kind: str, shape: tuple[int, ...]
) -> None:
    written = np.arange(-3, math.prod(shape) - 3).astype(kind).reshape(shape)
    plain = write(tmp_path / "plain", idx_bytes(written))
    zipped = write(tmp_path / "zipped.gz", gzip.compress(idx_bytes(written)))
    for path in (plain, zipped, str(plain)):
        array = read_idx(path)
        assert array.dtype == np.dtype(kind)
        assert array.dtype.isnative
        assert array.flags.writeable
        assert_array_equal(array, written)


INTACT = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))
ZIPPED = gzip.compress(INTACT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IDX magic number .* got an empty file"),
        (b"\0\0\x08", "IDX magic number .* got 00 00 08"),
        (b"\x01" + INTACT[1:], "IDX magic number .* got 01 00 08 02"),
        (b"\0\0\x07" + INTACT[3:], "IDX magic number"),
        (b"\0\0\x08\0", "IDX magic number"),
        (b"P5 2 3 255 ......", "IDX magic number"),
        (INTACT[:9], "lengths of 2 axes, got the end"),
        (INTACT[:-1], r"6 bytes for uint8 \(2, 3\), got 5"),
        (INTACT + b"\0", r"6 bytes for uint8 \(2, 3\), got more"),
        (b"\0\0\x08\xff" + b"\0\0\0\x01" * 255 + b"x", "a shape NumPy can hold"),
        (b"\0\0\x08\x03" + b"\0\0\0\0" + b"\xff" * 8, "a shape NumPy can hold"),
        (ZIPPED[:-1], "intact gzip"),
        (ZIPPED[:12], "intact gzip"),
        (ZIPPED[:-6] + b"\0\0" + ZIPPED[-4:], "intact gzip"),
        (ZIPPED[:10] + b"\xff" * 8 + ZIPPED[18:], "intact gzip"),
        (gzip.compress(INTACT + b"\0"), "got more"),
        (gzip.compress(INTACT[:-1]), "got 5"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "images", content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_does_not_allocate_what_a_header_declares(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    half_gib = b"\0\0\x08\x02" + struct.pack(">II", 1 << 19, 1 << 10)
    path = write(tmp_path / "bomb", pack(half_gib + bytes(100)))
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"536870912 bytes .* got 100"):
            read_idx(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20  # a piece is 1 MiB


def test_load_idx_folder(tmp_path: Path) -> None:
    data = load(idx_folder(tmp_path))
    assert data.x.dtype == np.float32
    # /255 rounded once, as a float64 quotient would be.
    assert_array_equal(data.x[0], np.array([0.0, 51 / 255, 1.0, 1 / 255], np.float32))
    assert_array_equal(data.y, [2, 0, 1])
    assert data.y.dtype == np.int64
    assert data.x_test is not None
    assert_array_equal(data.x_test, data.x[:2])
    assert_array_equal(data.y_test, [2, 0])
    assert (data.classes, data.name) == (3, tmp_path.name)


def test_load_idx_folder_zipped_without_a_test_part(tmp_path: Path) -> None:
    plain = load(idx_folder(tmp_path, t10k_images=None, t10k_labels=None), dtype="float64")
    for path in list(tmp_path.iterdir()):
        write(path.with_name(path.name + ".gz"), gzip.compress(path.read_bytes()))
        path.unlink()
    zipped = load(str(tmp_path), dtype=np.float64)
    assert zipped.x.dtype == np.float64
    assert zipped.x_test is None
    assert zipped.y_test is None
    assert_array_equal(zipped.x, plain.x)
    assert_array_equal(zipped.x, IMAGES.reshape(3, 4) / 255)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"train_images": None}, FileNotFoundError, "a file train-images-idx3-ubyte"),
        ({"train_labels": None}, FileNotFoundError, "a file train-labels-idx1-ubyte"),
        ({"t10k_labels": None}, FileNotFoundError, "a file t10k-labels-idx1-ubyte"),
        ({"train_labels": idx_bytes(LABELS[:2])}, FileFormatError, r"3 labels, got shape \(2,\)"),
        ({"train_labels": idx_bytes(IMAGES)}, FileFormatError, "3 labels, got shape"),
        ({"train_images": idx_bytes(LABELS)}, FileFormatError, "two axes or more"),
        ({"t10k_images": idx_bytes(IMAGES[:2, :1])}, ValueError, "x_test: expected rows like x"),
        (
            {"train_images": idx_bytes(IMAGES[:0]), "train_labels": idx_bytes(LABELS[:0])},
            ValueError,
            "length at least 1",
        ),
        ({"train_labels": idx_bytes(np.array([1, -1, 0], np.int8))}, ValueError, "labels in .*-1"),
        (
            {"t10k_labels": idx_bytes(np.array([1, 0], np.float32))},
            FileFormatError,
            "labels or targets",
        ),
    ],
)
def test_idx_folders_that_are_no_data_set_are_refused(
    tmp_path: Path, changed: dict[str, bytes | None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load(idx_folder(tmp_path, **changed))
    assert tmp_path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
def test_load_npz(tmp_path: Path, names: tuple[str, str]) -> None:
    data = load(
        npz(
            tmp_path / "two.npz",
            **{names[0]: np.asfortranarray(X), names[1]: Y.astype(np.uint8)},
            x_test=X[:1],
            y_test=np.array([5]),
            unused=np.array([None]),  # a pickle, never opened
        )
    )
    assert data.x.flags.c_contiguous
    assert_array_equal(data.x, X.astype(np.float32))
    assert_array_equal(data.y, Y)
    assert data.y.dtype == np.int64
    assert_array_equal(data.x_test, X[:1].astype(np.float32))
    assert (data.classes, data.name) == (6, "two.npz")


def test_load_npz_of_targets_and_of_images(tmp_path: Path) -> None:
    targets = load(npz(tmp_path / "a.npz", x=X, y=np.array([0.1, -2.0])), dtype="float64")
    assert_array_equal(targets.y, [[0.1], [-2.0]])
    assert targets.classes is None
    images = load(npz(tmp_path / "b.npz", x=IMAGES, y=LABELS), dtype="float64")
    assert_array_equal(images.x, IMAGES.reshape(3, 4) / 255)
    columns = np.asfortranarray(IMAGES.reshape(3, 4, 1))
    assert_array_equal(load(npz(tmp_path / "d.npz", x=columns, y=LABELS), "float64").x, images.x)
    table = load(npz(tmp_path / "c.npz", x=IMAGES[0], y=LABELS[:2]))
    assert_array_equal(table.x, IMAGES[0])  # uint8, but no image: as it is


@pytest.mark.parametrize("test", [IMAGES.reshape(3, 4), IMAGES.astype(np.float32)])
def test_both_parts_are_divided_by_255_or_none(test: np.ndarray, tmp_path: Path) -> None:
    one, other = (
        npz(tmp_path / name, x=x, y=LABELS) for name, x in (("a.npz", IMAGES), ("b.npz", test))
    )
    both = npz(tmp_path / "c.npz", x=IMAGES, y=LABELS, x_test=test, y_test=LABELS)
    for path, more in ((both, None), (one, other), (other, one)):
        with pytest.raises(FileFormatError, match="expected uint8 images of three axes or more in"):
            load(path, test=more)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"an array y or y_train, got \['x'\]"),
        ({"y": Y}, "an array x or x_train"),
        ({"x": X, "y": Y, "x_test": X}, "an array y_test"),
        ({"x": X, "y": np.array([0, None], dtype=object)}, "plain arrays, got 'Object arrays"),
        ({"x": np.array([["a"], ["b"]]), "y": Y}, "rows of numbers, got <U1"),
        ({"x": X + 1j, "y": Y}, "rows of numbers, got complex128"),
        ({"x": np.array(1.0), "y": Y}, "rows of numbers"),
        ({"x": X, "y": np.array(["a", "b"])}, "labels or numeric targets"),
        ({"x": X, "y": Y, "x_test": X, "y_test": X}, "labels or targets in both"),
        ({"x": X, "y": np.array([0])}, "y: expected 2 rows like x, got 1"),
        ({"x": X, "y": np.array([[0], [1]])}, "y: expected one axis"),
        ({"x": X, "y": X[None]}, "y: expected two axes"),
        ({"x": X, "y": np.array([-1, -2])}, r"y: expected labels in \[0, 1\), got -1"),
        ({"x": X[:0], "y": Y[:0]}, "x: expected two axes of length at least 1"),
        ({"x": X[:, :0], "y": Y}, "x: expected two axes of length at least 1"),
        ({"x": X * [[1.0], [np.nan]], "y": Y}, "x: expected finite numbers, got nan in row 1"),
        ({"x": X * 1e300, "y": Y}, "x: expected finite numbers, got inf in row 0"),
        ({"x": X, "y": np.array([1.0, np.inf])}, "y: expected finite numbers, got inf in row 1"),
        ({"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y}, "x_test: expected rows like x"),
        ({"x": X, "y": X, "x_test": X, "y_test": X[:, :1]}, "y_test: expected rows like y"),
    ],
)
def test_npz_that_is_no_data_set_is_refused(
    tmp_path: Path, arrays: dict[str, Array], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(npz(tmp_path / "odd.npz", **arrays))
    assert "odd.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def npy_bytes(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a zip", b"PK\x03\x04 but no more", npy_bytes(X)],
    ids=["empty", "text", "broken-zip", "npy"],
)
def test_npz_that_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.npz", content)
    with pytest.raises(FileFormatError, match=r"expected an intact \.npz") as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_npz_members_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy_bytes(X)[:-1])
        archive.writestr("y.npy", npy_bytes(Y))
    with pytest.raises(FileFormatError, match=r"intact .* 32 bytes for float64 \(2, 2\), got 31"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy_bytes(X) + b"\0")
        archive.writestr("y.npy", npy_bytes(Y))
    with pytest.raises(FileFormatError, match=r"intact .* 32 bytes for float64 \(2, 2\), got more"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"bytes without a header")
        archive.writestr("y.npy", npy_bytes(Y))
    with pytest.raises(FileFormatError, match="an array x or x_train"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,0\n3,4.5,1\n",
        "1,2,0\r\n3,4.5,1",
        "\n a , b , label\n\n1,2,0\n   \n3,4.5e0,1.0\n\n",
        "0,1,label\n1,2,0\n3,4.5,1\n",
        "\ufeff1,2,0\n3,4.5,1\n",
    ],
    ids=["plain", "crlf", "header-and-blanks", "numbered-header", "bom"],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_load_csv(tmp_path: Path, text: str, pack: Callable[[bytes], bytes]) -> None:
    name = "a.csv" if pack is bytes else "a.CSV.gz"
    data = load(write(tmp_path / name, pack(text.encode())))
    assert data.x.flags.c_contiguous
    assert_array_equal(data.x, X.astype(np.float32))
    assert_array_equal(data.y, Y)
    assert data.y.dtype == np.int64
    assert (data.classes, data.name) == (2, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least one row of numbers, got none"),
        (b"\n \n", "at least one row of numbers"),
        (b"a,b,label\n", "at least one row of numbers"),
        (b"a,b,label\n\n1,2,0\n1,0\n", "equally long, got 2 values on line 4, 3 before"),
        (b"1,2,0\n1,2,0,\n", "got 4 values on line 2, 3 before"),
        (b"1,2,0\n1,two,0\n", "got 'two' on line 2"),
        (b"1,2,0\n1,,0\n", "got '' on line 2"),
        (b"#1,2,0\n", "got '#1' on line 1"),
        (b"1,2,0\n1,2,zero\n", "got 'zero' on line 2"),
        (b"1_0,2,0\n", "got '1_0' on line 1, column 1 of 3"),
        (b"1|2|0\n1|2|0\n", "two columns or more"),
        (b"1,2,0.5\n", "integer labels in the last column .*, got 0.5"),
        (b"1,2,nan\n", "a value, not a missing one, got 'nan' on line 1, column 3"),
        (b"1,2,1e30\n", "integer labels in the last column .*, got 1e"),
        (b"0\n1\n", "two columns or more"),
        (b"1,\xff,0\n", "UTF-8"),
        (gzip.compress(b"1,2,0\n" * 99)[:-9], "intact gzip"),
        (b"1,2,0\ninf,2,0\n", "a finite number, got 'inf' on line 2, column 1 of 3"),
        (b"1,2,0\n1e99,2,1\n", "finite numbers, got inf in row 1"),
        (b"1,2,-1\n1,2,3\n", r"labels in \[0, 4\), got -1"),
    ],
)
def test_csv_that_is_no_data_set_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(write(tmp_path / "odd.csv", content))
    assert "odd.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: expected a file or folder"):
        load(tmp_path / "nowhere.csv")
    with pytest.raises(FileFormatError, match=r"a\.txt: expected a folder of IDX files, \.npz"):
        load(write(tmp_path / "a.txt", "1,0\n"))
    for dtype in ("float16", "int64"):
        with pytest.raises(TypeError, match="dtype: expected dtype float32 or float64"):
            load(write(tmp_path / "a.csv", "1,0\n"), dtype=dtype)


@pytest.mark.filterwarnings("ignore::saddlepoint.data.DataWarning")
def test_damage_anywhere_raises_only_what_is_promised(tmp_path: Path) -> None:
    intact = [
        npz(tmp_path / "a.npz", x=X, y=Y),
        write(tmp_path / "a.csv.gz", gzip.compress(b"a,b,label\n1,2,0\n3,4,1\n")),
        write(tmp_path / "a.csv", b"a,b,label\n1,2,0\n3,4,1\n"),
    ]
    rng = np.random.default_rng(0)
    messages = []
    for path in intact:
        content = path.read_bytes()
        for position in rng.integers(0, len(content), 200):
            damaged = bytearray(content)
            if rng.random() < 0.3:
                del damaged[position:]
            else:
                damaged[position] ^= int(rng.integers(1, 256))
            try:
                load(write(path, bytes(damaged)))
            except ValueError as error:
                messages.append(str(error))
    assert len(messages) > 300  # of 600: the damage is real
    assert [text for text in messages if "\n" in text or "a." not in text] == []


X32 = X.astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X32.tolist()}, TypeError, "d x: expected a float32 or float64 array, got list"),
        ({"x": X.astype(np.int64)}, TypeError, "x: expected a float32 or float64 array, got int64"),
        ({"x": X32[0]}, ValueError, "x: expected two axes"),
        ({"x": X32.T}, ValueError, "x: expected a C-contiguous array"),
        ({"y": Y.astype(np.int32)}, TypeError, "y: expected int64 labels"),
        ({"y": X32}, TypeError, "y: expected int64 labels"),
        ({"y": Y, "classes": 1}, ValueError, r"y: expected labels in \[0, 1\), got 1"),
        ({"classes": None}, TypeError, "y: expected float32 targets .labels need classes."),
        ({"y": X, "classes": None}, TypeError, "y: expected dtype float32 like x, got float64"),
        ({"y": X32[:1], "classes": None}, ValueError, "y: expected 2 rows like x, got 1"),
        ({"x_test": X32}, ValueError, "x_test, y_test: expected both or neither"),
        ({"y_test": Y}, ValueError, "x_test, y_test: expected both or neither"),
        ({"x_test": X, "y_test": Y}, ValueError, "x_test: expected rows like x, float32"),
        ({"x_test": X32, "y_test": Y + 9}, ValueError, r"y_test: expected labels in \[0, 2\)"),
    ],
)
def test_dataset_refuses_parts_that_do_not_fit(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    fitting: dict[str, Any] = {"x": X32, "y": Y, "classes": 2, "name": "d"}
    Dataset(**fitting)
    with pytest.raises(error, match=message):
        Dataset(**(fitting | arguments))


def test_digits_are_the_published_ones() -> None:
    digest = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
    assert hashlib.sha256(DIGITS.read_bytes()).hexdigest() == digest
    data = digits()
    assert data.x_test is not None
    assert data.y_test is not None
    assert (data.x.shape, data.x_test.shape) == ((1437, 64), (360, 64))
    assert data.x.dtype == np.float32
    assert (data.classes, data.name) == (10, "digits")
    with gzip.open(DIGITS, "rt") as stream:
        rows = sorted([*map(int, row)] for row in csv.reader(stream))
    # Pixels are sixteenths, exact in float32: the parts together are the file, each row once.
    pixels = 16 * np.concatenate([data.x, data.x_test])
    labels = np.concatenate([data.y, data.y_test])
    assert sorted(np.column_stack([pixels, labels]).astype(int).tolist()) == rows


def test_digits_split_is_fixed() -> None:
    first, again = digits(), digits("float64")
    assert again.x.dtype == np.float64
    assert_array_equal(first.x, again.x)
    assert_array_equal(first.y_test, again.y_test)
    assert first.y_test is not None
    # Printed once; a change would make every published accuracy incomparable.
    assert first.y_test[:10].tolist() == [7, 9, 4, 7, 0, 2, 6, 1, 3, 1]
    assert min(np.bincount(first.y_test)) >= 25  # of 36 expected: no class is missing from the test


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    matrix = np.arange(6.0).reshape(2, 3)
    arrays = {
        "theta": np.arange(5, dtype=np.float32),
        "fortran": np.asfortranarray(matrix),
        "strided": matrix[:, ::2],
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 3)),
        "big-endian": np.arange(3, dtype=">f8"),
    }
    write_safetensors(path, arrays, {"epoch": "3"})
    back = read_safetensors(path)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype.newbyteorder("=")
        assert back[name].shape == array.shape
        assert_array_equal(back[name], array)
        assert back[name].flags.writeable
    # The format's own layout: a length, then JSON.
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"epoch": "3"}
    assert header["theta"]["dtype"] == "F32"


def test_safetensors_write_is_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"theta": np.zeros(3)})
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_safetensors(path, {"theta": np.ones(3)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    write_safetensors(path, {"theta": np.ones(3)})
    assert_array_equal(read_safetensors(path)["theta"], np.ones(3))
    with pytest.raises(FileNotFoundError):
        write_safetensors(tmp_path / "no folder" / "a", {"theta": np.ones(3)})


def test_safetensors_refuses_what_the_format_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a"
    a_list: Any = [1.0]
    a_number: Any = 3
    with pytest.raises(TypeError, match=r"arrays\['theta'\]: expected an array, got list"):
        write_safetensors(path, {"theta": a_list})
    with pytest.raises(TypeError, match="arrays: expected dtypes of safetensors"):
        write_safetensors(path, {"theta": np.array([None])})
    with pytest.raises(TypeError, match="metadata"):
        write_safetensors(path, {"theta": np.zeros(1)}, {"epoch": a_number})
    assert not list(tmp_path.iterdir())


def test_damaged_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"theta": np.arange(4.0)})
    content = path.read_bytes()
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    half = len(header).to_bytes(8, "little") + header + b"\0\0"
    for damaged in (b"", content[:-1], content[:20], content + b"\0", b"\xff" * 64, half):
        write(path, damaged)
        with pytest.raises(FileFormatError, match="intact safetensors file") as caught:
            read_safetensors(path)
        assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "nowhere")


def test_safetensors_missing_is_said_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    message = r"safetensors is not installed: pip install 'saddlepoint\[cli\]'"
    with pytest.raises(ImportError, match=message):
        read_safetensors(tmp_path / "a")
    with pytest.raises(ImportError, match=message):
        write_safetensors(tmp_path / "a", {})


def frame(header: str, rows: list[str]) -> str:
    return "\n".join([header, *rows]) + "\n"


FEATURES = np.array([[0.5, 7.0], [0.25, 6.0], [4.0, 2.0], [0.125, 9.0]])
CLASS = [1, 0, 2, 1]
PLAIN = [f"{a},{b},{c}" for (a, b), c in zip(FEATURES, CLASS, strict=True)]
FIRST = [f"{c},{a},{b}" for (a, b), c in zip(FEATURES, CLASS, strict=True)]
NUMBERED = [f"{i},{row}" for i, row in enumerate(PLAIN)]
WIDE = [f"{a},{b},{b},{c}" for (a, b), c in zip(FEATURES, CLASS, strict=True)]
WIDE_X = FEATURES[:, [0, 1, 1]]
QUOTED = [f'"{row}"'.replace(",", '","') for row in PLAIN]
WORDS = ["cat", "ant", "dog", "cat"]  # in order: ant, cat, dog
NAMED = [f"{a},{b},{w}" for (a, b), w in zip(FEATURES, WORDS, strict=True)]

READ: dict[str, tuple[str, dict[str, Any], Array]] = {
    "a header of numbers": (frame("0,1,2,3", WIDE), {}, WIDE_X),
    "a short header of numbers": (frame("0,1,2", PLAIN), {"header": True}, FEATURES),
    "a name beside numbers": (frame("label,0,1", FIRST), {}, FEATURES),
    "a name beside years": (frame("label,2020,2021", FIRST), {}, FEATURES),
    "names and numbers": (frame("label,1,x", FIRST), {"header": True}, FEATURES),
    "no header": ("\n".join(PLAIN), {"header": False}, FEATURES),
    "pandas' index": (frame(",a,b,label", NUMBERED), {}, FEATURES),
    "pandas' index over numbers": (frame(",0,1,2", NUMBERED), {}, FEATURES),
    "pandas' index, shuffled": (frame(",a,b,label", NUMBERED[::-1]), {}, FEATURES[::-1]),
    "pandas' index, written twice": (frame("Unnamed: 0,a,b,label", NUMBERED), {}, FEATURES),
    "an index by name": (frame("id,a,b,label", NUMBERED), {"index": "id"}, FEATURES),
    "an index by number": ("\n".join(NUMBERED), {"index": True}, FEATURES),
    "a label named first": (frame("Label,a,b", FIRST), {}, FEATURES),
    "a label by name": (frame("kind,a,b", FIRST), {"label": "kind"}, FEATURES),
    "a label by NumPy's number": ("\n".join(FIRST), {"label": np.int64(0)}, FEATURES),
    "a label by number": ("\n".join(FIRST), {"label": 0}, FEATURES),
    "a label from the right": ("\n".join(FIRST), {"label": -3}, FEATURES),
    "semicolons": ("\n".join(PLAIN).replace(",", ";"), {}, FEATURES),
    "tabs": (frame("a,b,c", PLAIN).replace(",", "\t"), {}, FEATURES),
    "bars": ("\n".join(PLAIN).replace(",", "|"), {"separator": "|"}, FEATURES),
    "quotes": (frame('"a, ""b""",b,"la\nbel"', QUOTED), {}, FEATURES),
    "blanks after commas": ("\n".join(PLAIN).replace(",", ', '), {}, FEATURES),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_columns_are_what_they_are(tmp_path: Path, case: str) -> None:
    text, options, x = READ[case]
    data = load(write(tmp_path / "a.csv", text), **options)
    assert_array_equal(data.x, x.astype(np.float32))
    assert_array_equal(data.y, CLASS[::-1] if "shuffled" in case else CLASS)
    assert data.classes == 3


@pytest.mark.parametrize("header", ["a,b,kind", None])
def test_words_are_labels_in_alphabetical_order(tmp_path: Path, header: str | None) -> None:
    text = "\n".join(NAMED) if header is None else frame(header, NAMED)
    data = load(write(tmp_path / "a.csv", text))
    assert data.class_names == ("ant", "cat", "dog")
    assert_array_equal(data.y, [1, 0, 2, 1])
    assert_array_equal(data.x, FEATURES.astype(np.float32))  # the first row is one of them


def test_targets_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", frame("a,b,c", ["1,2,0.5", "3,4,-1.5"]))
    for label in ("c", -1, ["c"]):
        data = load(path, label=label)
        assert data.classes is None
        assert_array_equal(data.y, np.array([[0.5], [-1.5]], np.float32))
    both = load(path, "float64", label=("c", "a"))
    assert_array_equal(both.y, [[0.5, 1.0], [-1.5, 3.0]])
    assert_array_equal(both.x, [[2.0], [4.0]])
    whole = load(path, label=["b"])  # a sequence: targets, though they are whole
    assert whole.classes is None
    assert_array_equal(whole.y, [[2.0], [4.0]])


def test_guesses_are_said(tmp_path: Path) -> None:
    text = frame(",a,b,label", NUMBERED).replace(",", ";")
    assert load(write(tmp_path / "a.csv", text)).notes == (
        "the separator is ';'",
        "the first line is a header",
        "the first column, without a name, numbers the rows and is left out",
        "the label is column 'label'",
    )
    told = load(tmp_path / "a.csv", label="label", header=True, index=True, separator=";")
    assert told.notes == ()


MISSING = [
    "",
    "?",
    "NA",
    "nan",
    " N/A ",
    "NULL",
    "-",
    ".",
    "None",
    "#N/A",
    "n.a.",
    "nil",
    "missing",
]


@pytest.mark.parametrize("cell", MISSING)
@pytest.mark.parametrize("line", [0, 2])
@pytest.mark.parametrize("column", [0, 2])
def test_a_missing_cell_is_an_error_on_every_line(
    tmp_path: Path, cell: str, line: int, column: int
) -> None:
    cells = [row.split(",") for row in PLAIN]
    cells[line][column] = cell
    text = "\n".join(",".join(row) for row in cells)
    where = rf"on line {line + 1}, column {column + 1} of 3"
    with pytest.raises(FileFormatError, match=rf"a value, not a missing one, got .* {where}"):
        load(write(tmp_path / "a.csv", text))
    with pytest.raises(FileFormatError, match=rf"line {line + 2}, column 'c{column}'"):
        load(write(tmp_path / "b.csv", "c0,c1,c2\n" + text))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (frame("0,1,2", PLAIN), {}, "header=True or header=False, .* got 0, 1, 2"),
        (frame("1,2,3,4,5", [f"{r},1" for r in WIDE]), {}, "header=True or header=False"),
        (
            frame("0.5,7.O,1", PLAIN),
            {},
            r"header=True or header=False, .* got '7\.O' on line 1, column 2 of 3",
        ),
        (frame("\ny,3,1", FIRST), {}, "header=True or .* got 'y' on line 2, column 1 of 3"),
        (frame("5,x", ["1,0", "2,1"]), {}, "header=True or .* got 'x' on line 1, column 2 of 2"),
        (frame("0.5,7.O,1", PLAIN), {"header": False}, r"'7\.O' on line 1, column 2 of 3"),
        ("1,0.5\n0,0.25\n", {}, r"in the last column \(label= .* label=0 for the first\), got 0.5"),
        ("1.5,0.5\n0,0.25\n", {}, r"in the last column \(label= names another or targets\)"),
        (frame("class,a,y", PLAIN), {}, "label= to name the column, got a header with class, y"),
        (frame(",a,b,label", [f"1,{r}" for r in PLAIN]), {}, "index=True or index=False"),
        (frame("a,b,c", PLAIN), {"label": "d"}, "label: expected one column 'd', got 0 in"),
        (frame("a,a,c", PLAIN), {"label": "a"}, "label: expected one column 'a', got 2 in"),
        (frame("a,b,c", PLAIN), {"label": 3}, "label: expected a number of 3 columns, got 3"),
        ("\n".join(PLAIN), {"label": "a"}, "label: expected one column 'a', got a file without"),
        (frame("a,b,c", PLAIN), {"label": ["a", 0]}, "label: expected columns once"),
        (frame("a,b,c", PLAIN), {"label": 0, "index": True}, "label: expected columns once"),
        (frame("a,b,c", PLAIN), {"label": ["a", "b", "c"]}, "no inputs"),
        (frame("a,b,c", NAMED), {"label": ["c"]}, "numbers as targets, got 'cat'"),
        (frame("a,b,c", NAMED), {"label": "a"}, "a finite number, got 'cat' on line 2, column 'c'"),
        ("1,2\n1,red\n", {}, "a finite number, got 'red' on line 2"),
        ('1,"2"x,0\n', {}, "equally long, got .* on line 1"),
        ('1,2,0\n1,"2,0\n', {}, "equally long, got .* on line 2"),
        (frame("a,b,c", PLAIN), {"separator": ",,"}, "separator: expected one character"),
        (frame("a,b,c", PLAIN), {"test": 1.0}, "test: expected a share between 0 and 1"),
        (frame("a,b,c", PLAIN), {"test": 0.01}, "test: expected a share that leaves rows"),
    ],
)
def test_what_a_csv_leaves_open_names_the_option(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path / "a.csv", text), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": 1.5}, "label: expected a name or number"),
        ({"label": True}, "label: expected a name or number"),
        ({"header": 1}, "header: expected True, False or None"),
        ({"index": 0.5}, "index: expected a bool, a name or a number"),
        ({"separator": b","}, "separator: expected a character"),
        ({"test": True}, "test: expected a path, or a share"),
        ({"max_bytes": 1e6}, "max_bytes: expected an int"),
    ],
)
def test_options_of_another_kind(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.csv", "\n".join(PLAIN))
    with pytest.raises(TypeError, match=message):
        load(path, **options)


def test_csv_options_of_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label: expected None, since .* is no CSV, got 0"):
        load(npz(tmp_path / "a.npz", x=X, y=Y), label=0)


def test_doubtful_data_warn(tmp_path: Path) -> None:
    one = write(tmp_path / "one.csv", "1,2,4\n3,1,4\n")
    with pytest.warns(saddlepoint.data.DataWarning, match=r"one\.csv: all 2 labels are 4"):
        load(one)
    counted = write(tmp_path / "counted.csv", frame("id,a,b,label", NUMBERED))
    with pytest.warns(saddlepoint.data.DataWarning, match="the first input counts the rows"):
        load(counted)
    assert load(counted, index=False).x.shape == (4, 3)  # and says nothing


def test_a_test_part_of_a_csv(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", frame(";a;b;label", NUMBERED).replace(",", ";"))
    other = write(tmp_path / "b.csv", frame(";a;b;label", NUMBERED[:3]).replace(",", ";"))
    data = load(train, test=other)
    assert data.x_test is not None
    assert_array_equal(data.x_test, FEATURES[:3].astype(np.float32))
    assert_array_equal(data.y_test, CLASS[:3])
    with pytest.raises(ValueError, match=r"c\.csv: expected the header of"):
        load(train, test=write(tmp_path / "c.csv", frame(";b;a;label", NUMBERED).replace(",", ";")))
    words = write(tmp_path / "d.csv", "\n".join(NAMED[:2]))
    more = write(tmp_path / "e.csv", "\n".join(NAMED[1:]))
    named = load(words, test=more)
    assert named.class_names == ("ant", "cat", "dog")
    assert_array_equal(named.y_test, [0, 2, 1])
    with pytest.raises(FileFormatError, match="words or numbers alone"):
        load(words, test=write(tmp_path / "f.csv", "\n".join(PLAIN)))
    with pytest.raises(ValueError, match="a file without a test part"):
        load(npz(tmp_path / "a.npz", x=X, y=Y, x_test=X, y_test=Y), test=0.5)


def test_a_share_is_the_same_every_time_and_each_row_is_used_once(tmp_path: Path) -> None:
    rows = [f"{i * 7 % 40},{i},{i % 3}" for i in range(40)]
    path = write(tmp_path / "a.csv", "\n".join(rows))
    data, again = load(path, test=0.25), load(path, test=0.25)
    assert data.x_test is not None
    assert len(data.x_test) == 10
    assert_array_equal(data.x_test, again.x_test)
    assert sorted([*data.x[:, 1], *data.x_test[:, 1]]) == list(range(40))
    # The nearest whole number of rows.
    assert [len(load(path, test=share).y) for share in (0.26, 0.27)] == [30, 29]
    with pytest.raises(ValueError, match="test: expected a share that leaves rows"):
        load(path, test=0.99)


def test_labels_are_exact_as_far_as_float64_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"0.5,1\n0.25,{2**53 - 1}\n")
    assert load(path, header=False).y.tolist() == [1, 2**53 - 1]
    path = write(tmp_path / "b.csv", f"0.5,1\n0.25,{2**53}\n")
    assert load(path, header=False, label=1).y.dtype == np.float32


def test_a_file_may_be_as_large_as_the_limit(tmp_path: Path) -> None:
    text = "0.125,0\n0.250,1\n"
    path = write(tmp_path / "a.csv", text)
    assert len(load(path, header=False, max_bytes=len(text)).x) == 2
    with pytest.raises(FileFormatError, match=f"at most max_bytes = {len(text) - 1} bytes"):
        load(path, header=False, max_bytes=len(text) - 1)
    labels = tmp_path / "labels-idx1-ubyte"
    labels.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
    assert read_idx(labels, max_bytes=3).tolist() == [5, 0, 4]
    with pytest.raises(FileFormatError, match="at most max_bytes = 2 bytes, got 3"):
        read_idx(labels, max_bytes=2)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.npz", "idx"])
def test_a_small_file_does_not_unfold_beyond_the_limit(tmp_path: Path, name: str) -> None:
    limit = 1 << 20
    path = tmp_path / name
    zeros = np.zeros((1 << 11, 1 << 13), np.uint8)  # 16 MiB
    if name == "a.csv.gz":
        write(path, gzip.compress((b"0," * 499 + b"0\n") * (1 << 14)))
    elif name == "a.npz":
        np.savez_compressed(path, x=zeros, y=zeros[:, 0])
    else:
        path.mkdir()
        write(path / "train-images-idx3-ubyte", gzip.compress(idx_bytes(zeros)))
        write(path / "train-labels-idx1-ubyte", gzip.compress(idx_bytes(zeros[:, 0])))
    del zeros
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=rf"at most max_bytes = {limit} bytes, got"):
            load(path, max_bytes=limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * limit
    assert saddlepoint.data.MAX_BYTES == 1 << 30


@pytest.mark.parametrize("label", ["0", "red"])
def test_inputs_do_not_take_more_than_the_limit(tmp_path: Path, label: str) -> None:
    """Two bytes a cell in the file, four in memory."""
    path = write(tmp_path / "a.csv", ("0," * 500 + label + "\n") * 200)
    assert path.stat().st_size < 300_000
    with pytest.raises(FileFormatError, match=r"at most max_bytes = 300000 bytes, got \d+"):
        load(path, max_bytes=300_000)


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="lines of at most 4194304 characters"):
        load(write(tmp_path / "a.csv.gz", gzip.compress(b"0," * (3 << 20))))


def test_npz_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    """562 bytes that declare four terabytes."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 500000), }"
    header = header.ljust(117) + b"\n"
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        archive.writestr("y.npy", npy_bytes(Y))
    with pytest.raises(FileFormatError, match=r"4000000000000 bytes for float64 .*, got 0"):
        load(path)


def test_lines_that_two_separators_split_alike_want_to_be_told(tmp_path: Path) -> None:
    file = tmp_path / "decimal-commas.csv"
    file.write_text("1,5;0\n2,5;1\n3,1;0\n4,0;1\n")
    with pytest.raises(FileFormatError, match=r"expected separator= to be told, got lines that"):
        load(file)
    with pytest.raises(FileFormatError, match="expected a finite number, got '1,5' on line 1"):
        load(file, separator=";", header=False)
