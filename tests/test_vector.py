"""The eight functions on every kind of array against NumPy, and the exchange of memory."""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.utils.dlpack import from_dlpack

from saddlepoint import Vector, vector

EPS = np.finfo(np.float64).eps
BLOCK = 8192  # of the sums in csrc/ops
SIZES = [0, 1, 17, BLOCK + 1, 1_000_003]
DTYPES = ["float32", "float64"]

# Each kind of array from a NumPy array, sharing nothing with it.
KINDS: dict[str, Callable[[Any], Any]] = {
    "numpy": np.array,
    "Vector": Vector.from_numpy,
    "torch": lambda x: torch.from_numpy(x.copy()),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
sizes = pytest.mark.parametrize("n", SIZES)


@kinds
@dtypes
@sizes
def test_dot_and_norm(kind: Any, dtype: str, n: int, rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, n)).astype(dtype)
    wide = x.astype(np.longdouble), y.astype(np.longdouble)
    # 16 lanes: a term goes through 512 sums in its lane, 4 over lanes, and one for each block.
    steps = BLOCK // 16 + 5 + n // BLOCK
    error = abs(vector.dot(kind(x), kind(y)) - wide[0] @ wide[1])
    assert error <= steps * EPS * (abs(wide[0]) @ abs(wide[1]))
    exact = np.sqrt(wide[0] @ wide[0])
    assert abs(vector.norm(kind(x)) - exact) <= steps * EPS * exact


@dtypes
def test_dot_of_more_blocks_than_are_summed_at_once(dtype: str) -> None:
    x = np.ones(1024 * BLOCK + 3, dtype)  # 1024: at_once in csrc/ops/vector.cpp
    x[-3:] = 5
    y = np.ones_like(x)
    y[0], y[-1] = 7, 3
    assert vector.dot(x, y) == len(x) + 6 + 4 + 4 + 14  # of integers: exact


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-157, 1e170, 1e300])
def test_norm_where_squares_leave_the_range(scale: float) -> None:
    # A handful of roundings; the squares alone would give 0, a few bits, or infinity.
    assert abs(vector.norm(scale * np.array([3.0, 4.0])) / (5.0 * scale) - 1.0) <= 10 * EPS


@kinds
@dtypes
@sizes
def test_axpy_and_scale_have_numpys_bits(
    kind: Any, dtype: str, n: int, rng: np.random.Generator
) -> None:
    x, y = rng.standard_normal((2, n)).astype(dtype)
    a = np.dtype(dtype).type(-1.7)
    there, with_x = kind(y), kind(x)
    vector.axpy(float(a), with_x, there)
    assert_array_equal(vector.gather(there), y + a * x)  # no contraction: two roundings
    assert_array_equal(vector.gather(with_x), x)
    vector.scale(float(a), with_x)
    assert_array_equal(vector.gather(with_x), a * x)


@kinds
@dtypes
def test_copies_random_and_gather(kind: Any, dtype: str) -> None:
    x = np.arange(6.0, dtype=dtype).reshape(2, 3)
    source = kind(x)
    same, empty = vector.copy(source), vector.empty_like(source)
    other, drawn = vector.empty_like(source, (4,)), vector.random(source, 7)
    for made, shape in ((same, (2, 3)), (empty, (2, 3)), (other, (4,)), (drawn, (2, 3))):
        assert type(made) is type(source)
        assert made.dtype == source.dtype
        assert tuple(made.shape) == shape
    vector.scale(2.0, same)
    vector.scale(0.0, drawn)
    host = vector.gather(source)
    host += 1.0
    assert_array_equal(vector.gather(source), x)
    assert_array_equal(vector.gather(same), 2.0 * x)
    expected = np.random.default_rng(7).standard_normal((2, 3)).astype(dtype)
    assert_array_equal(vector.gather(vector.random(source, 7)), expected)


@dtypes
@pytest.mark.parametrize("n", [5, 3 * BLOCK + 11, 1_000_003])
def test_same_bits_at_any_setting(
    dtype: str, n: int, rng: np.random.Generator, on_every_setting: Any
) -> None:
    x, y = rng.standard_normal((2, n)).astype(dtype)

    def results() -> list[Any]:
        moved = y.copy()
        vector.axpy(0.3, x, moved)
        vector.scale(1.1, moved)
        return [vector.dot(x, y), vector.dot(moved, moved), moved]

    first, *others = on_every_setting(results).values()
    assert others
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert_array_equal(a, b)


def test_kinds_mix_and_nan_propagates() -> None:
    x = np.array([1.0, np.nan, np.inf])
    y = Vector.from_numpy(np.zeros(3))
    vector.axpy(2.0, torch.from_numpy(x), y)
    assert_array_equal(y.numpy(), [2.0, np.nan, np.inf])
    assert np.isnan(vector.dot(x, y))


IMPORTS: dict[str, Callable[[Any], Any]] = {"numpy": np.from_dlpack, "torch": from_dlpack}
imports = pytest.mark.parametrize("take", IMPORTS.values(), ids=IMPORTS)
LAYOUTS: dict[str, Callable[[], Vector]] = {
    "1d": lambda: Vector.from_numpy(np.arange(5.0)),
    "C": lambda: Vector.from_numpy(np.arange(12.0).reshape(4, 3)),
    "F": lambda: Vector.from_numpy(np.asfortranarray(np.arange(12.0).reshape(4, 3))),
    "T": lambda: Vector.from_numpy(np.arange(12.0).reshape(3, 4)).T,
    "rows": lambda: Vector.from_numpy(np.arange(18.0).reshape(6, 3)).rows(slice(1, 5)),
    "rows of rows": lambda: (
        Vector.from_numpy(np.arange(18.0).reshape(6, 3)).rows(slice(1, 6)).rows(slice(-3, None))
    ),
    "3d": lambda: Vector.from_numpy(np.arange(24.0).reshape(2, 3, 4)),
    "no rows": lambda: Vector((0, 3), "float64"),
}


@imports
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_dlpack_shares_the_memory_in_every_layout(take: Any, make: Callable[[], Vector]) -> None:
    x = make()
    host, view = x.numpy(), take(x)
    assert tuple(view.shape) == x.shape == host.shape
    assert_array_equal(np.asarray(view), host)
    assert_array_equal(x.copy().numpy(), host)
    view += 1.0
    assert_array_equal(x.numpy(), host + 1.0)


def test_orders_and_views_hold_what_numpy_would() -> None:
    matrix = np.arange(12.0).reshape(4, 3)
    c, f = Vector.from_numpy(matrix), Vector.from_numpy(np.asfortranarray(matrix))
    assert (c.order, f.order, f.T.order) == ("C", "F", "C")
    assert np.from_dlpack(f).flags.f_contiguous
    assert_array_equal(f.T.numpy(), matrix.T)
    assert_array_equal(c.rows(slice(1, 3)).T.numpy(), matrix[1:3].T)
    assert_array_equal(c.rows(slice(1, 4)).rows(slice(1, 3)).numpy(), matrix[2:4])
    assert_array_equal(Vector.from_numpy(matrix[::2, ::-1]).numpy(), matrix[::2, ::-1])
    assert (c.size, c.ndim, len(c), c.dtype.name) == (12, 2, 4, "float64")
    np.from_dlpack(c.rows(slice(2, 3)))[:] = -1.0
    assert_array_equal(c.numpy()[1:4], [[3, 4, 5], [-1, -1, -1], [9, 10, 11]])
    assert not Vector(1000).numpy().any()


@imports
def test_memory_outlives_the_vector(take: Any) -> None:
    def made() -> Any:
        return take(Vector.from_numpy(np.arange(300_000.0)).rows(slice(1000, None)))

    views = [made() for _ in range(5)]
    gc.collect()
    others = [Vector.from_numpy(np.full(300_000, -1.0)) for _ in range(10)]
    for view in views:
        assert_array_equal(np.asarray(view), np.arange(1000.0, 300_000.0))
    assert len(others) == 10


def test_capsules_give_their_memory_back() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def lend_and_drop(version: tuple[int, int] | None) -> None:
        x = Vector(1 << 20)  # 4 MiB, written to
        x.__dlpack__(max_version=version)  # nobody takes this capsule
        np.from_dlpack(x)
        from_dlpack(x)

    before = resident()
    for _ in range(20):
        for version in (None, (0, 8), (1, 0), (2, 0)):
            lend_and_drop(version)
    gc.collect()
    assert resident() - before < 100 * 2**20  # of 320 MiB


def test_dlpack_copies_when_asked_to() -> None:
    x = Vector.from_numpy(np.zeros(3))
    taken: Any = np.from_dlpack(x, copy=True)
    taken += 1.0
    assert_array_equal(x.numpy(), np.zeros(3))


def test_tensors_that_require_gradients_are_read() -> None:
    x = torch.full((4,), 2.0, requires_grad=True)
    assert not vector.copy(x).requires_grad
    assert tuple(vector.empty_like(x).shape) == (4,)
    assert_array_equal(vector.gather(x), np.full(4, 2.0))


class OnMetal:
    """An array on a device that is neither."""

    shape = (2,)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 8, 0


def read_only(n: int) -> Any:
    x = np.ones(n)
    x.setflags(write=False)
    return x


def test_read_only_arrays_are_inputs() -> None:
    x, y = read_only(3), np.zeros(3)
    vector.axpy(2.0, x, y)
    assert vector.dot(x, y) == 6.0
    assert_array_equal(vector.gather(x), x)


ones = np.ones
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "kind": (lambda: vector.dot([1.0], ones(1)), TypeError, "x: expected an array .* got list"),
    "int": (lambda: vector.norm(ones(2, int)), TypeError, "x: expected dtype float32 or float64"),
    "bfloat16": (
        lambda: vector.scale(2.0, torch.ones(2, dtype=torch.bfloat16)),
        TypeError,
        "x: expected dtype float32 or float64, got bfloat16",
    ),
    "swapped": (lambda: vector.norm(ones(2, ">f8")), TypeError, "x: expected native byte order"),
    "dtypes": (
        lambda: vector.axpy(1.0, ones(2, "f4"), ones(2)),
        TypeError,
        "y: expected dtype float32, got float64",
    ),
    "shapes": (
        lambda: vector.dot(ones(2), Vector(3, "float64")),
        ValueError,
        r"y: expected shape \(2,\), got \(3,\)",
    ),
    "strided": (
        lambda: vector.norm(ones(4)[::2]),
        ValueError,
        r"x: expected a C-contiguous array, got strides \(2,\)",
    ),
    "strided torch": (lambda: vector.norm(torch.ones(4)[::2]), ValueError, "x: expected a C-"),
    "fortran": (lambda: vector.norm(ones((2, 3)).T), ValueError, "x: expected a C-contiguous"),
    "as many, otherwise": (
        lambda: vector.dot(ones((2, 3)), ones((3, 2))),
        ValueError,
        r"y: expected shape \(2, 3\), got \(3, 2\)",
    ),
    "read-only y": (
        lambda: vector.axpy(1.0, ones(2), read_only(2)),
        ValueError,
        "y: expected a writable array, got a read-only one",
    ),
    "read-only x": (lambda: vector.scale(1.0, read_only(2)), ValueError, "x: expected a writable"),
    "device": (
        lambda: vector.norm(OnMetal()),
        TypeError,
        "x: expected device cpu or cuda, got DLPack device 8",
    ),
    "Vector device": (lambda: Vector(2, device="tpu"), ValueError, "device: expected 'cpu' or"),
    "Vector dtype": (lambda: Vector(2, "int32"), TypeError, "dtype: expected dtype float32 or"),
    "from_numpy": (lambda: Vector.from_numpy(ones(2, int)), TypeError, "x: expected dtype float32"),
    "negative": (lambda: Vector(-1), ValueError, "expected .*at least 0"),
    "negative twice": (lambda: Vector((-1, -1)), ValueError, "expected .*at least 0"),
    "order": (lambda: Vector((2, 3), order="Q"), ValueError, "order: expected 'C' or 'F'"),
    "rows of F": (
        lambda: Vector((4, 3), order="F").rows(slice(1, 2)),
        ValueError,
        "expected .*C",
    ),
    "every other row": (lambda: Vector(4).rows(slice(0, 4, 2)), ValueError, "rows: expected"),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_an_overlap_is_refused_and_nothing_written() -> None:
    x = np.arange(5.0)
    for y in (x, x[1:]):
        with pytest.raises(ValueError, match="y: expected memory of its own, got an overlap"):
            vector.axpy(1.0, x[: len(y)], y)
    block = Vector.from_numpy(np.arange(6.0).reshape(3, 2))
    with pytest.raises(ValueError, match="overlap"):
        vector.axpy(1.0, block.rows(slice(0, 2)), block.rows(slice(1, 3)))
    vector.axpy(1.0, block.rows(slice(0, 1)), block.rows(slice(1, 2)))
    assert_array_equal(block.numpy(), [[0, 1], [2, 4], [4, 5]])
    assert_array_equal(x, np.arange(5.0))


def test_an_empty_range_of_rows_is_empty() -> None:
    assert Vector((4, 3)).rows(slice(3, 1)).numpy().shape == (0, 3)
