"""saddlepoint.norm against the paper's formulas and against PyTorch, to second order."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from reference import batch_norm as reference
from reference import derivative
from saddlepoint import Vector, norm, vector

Array = NDArray[Any]
Setting = Callable[[Callable[[], Any]], dict[str, Any]]

torch.set_num_threads(1)  # the oracle's work is small

SHAPES = [(2, 1), (2, 1025), (3, 7), (64, 1025), (257, 33), (1000, 5)]
MODES = {"batch": True, "running": False}


@dataclass
class Case:
    """Everything that goes into the four methods, in one dtype."""

    training: bool
    eps: float
    x: Array
    weight: Array
    bias: Array
    running_mean: Array
    running_var: Array
    dy: Array
    # A direction of (x, weight, bias) and of dy.
    xt: Array
    weight_t: Array
    bias_t: Array
    dyt: Array

    @property
    def running(self) -> tuple[Array, Array] | None:
        return None if self.training else (self.running_mean, self.running_var)

    def astype(self, dtype: str) -> Case:
        arrays = {k: v.astype(dtype) for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return Case(**{**vars(self), **arrays})


def make(rng: np.random.Generator, shape: tuple[int, int], training: bool, dtype: str) -> Case:
    x, dy, xt, dyt = rng.standard_normal((4, *shape))
    weight, bias, mean, var, weight_t, bias_t = rng.standard_normal((6, shape[1]))
    # Over two rows all of dx but eps/(var + eps) cancels: this eps leaves something to compare.
    case = Case(
        training, 0.5, 2 * x + 1, weight + 2, bias, mean, var**2 + 0.1, dy, xt, weight_t, bias_t,
        dyt,
    )  # fmt: skip
    return case.astype(dtype)


RESULTS = ("y", "dx", "dweight", "dbias", "yt", "dxt", "dweight_t", "dbias_t")


def native(c: Case) -> list[Array]:
    y, saved = norm.batch_norm(
        c.x,
        c.weight,
        c.bias,
        vector.copy(c.running_mean),
        vector.copy(c.running_var),
        c.training,
        eps=c.eps,
    )
    return [
        y,
        *norm.batch_norm_backward(c.dy, saved),
        norm.batch_norm_tangent(c.xt, saved, c.weight_t, c.bias_t),
        *norm.batch_norm_backward_tangent(c.dy, c.dyt, c.xt, saved, c.weight_t),
    ]


def by_reference(c: Case) -> list[Array]:
    """Tangents are complex steps of the formulas along the whole direction."""
    rows = len(c.x)

    def forward(p: Array) -> Array:
        x, weight, bias = p[:-2], p[-2], p[-1]
        return reference.forward(x, weight, bias, c.eps, c.running)

    def backward(p: Array) -> Array:
        dy, x, weight = p[:rows], p[rows:-1], p[-1]
        return np.vstack(reference.backward(dy, x, weight, c.eps, c.running))

    def parts(stacked: Array) -> list[Array]:
        return [stacked[:rows], stacked[rows], stacked[rows + 1]]

    at, along = np.vstack([c.x, c.weight, c.bias]), np.vstack([c.xt, c.weight_t, c.bias_t])
    from_, moving = np.vstack([c.dy, c.x, c.weight]), np.vstack([c.dyt, c.xt, c.weight_t])
    return [
        forward(at),
        *parts(backward(from_)),
        derivative(forward, at, along),
        *parts(derivative(backward, from_, moving)),
    ]


def by_torch(c: Case) -> list[Array]:
    """Tangents by double and triple backward."""
    t = {k: torch.from_numpy(v) for k, v in vars(c).items() if isinstance(v, np.ndarray)}
    mean, var = t["running_mean"].clone(), t["running_var"].clone()

    def forward(*p: torch.Tensor) -> torch.Tensor:
        x, weight, bias = p
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, c.training, 0.1, c.eps)

    def backward(dy: torch.Tensor, *p: torch.Tensor) -> Any:
        return torch.autograd.grad(forward(*p), p, dy, create_graph=True)

    point, along = (t["x"], t["weight"], t["bias"]), (t["xt"], t["weight_t"], t["bias_t"])
    jvp: Any = torch.autograd.functional.jvp
    y, yt = jvp(forward, point, along)
    gradients, tangents = jvp(backward, (t["dy"], *point), (t["dyt"], *along))
    return [r.detach().numpy() for r in (y, *gradients, yt, *tangents)]


def errors(got: list[Array], exact: list[Array]) -> Array:
    """Of each result, relative to its norm."""
    return np.array(
        [np.linalg.norm(g - e) / np.linalg.norm(e) for g, e in zip(got, exact, strict=True)]
    )


def too_large(error: Array, limit: Array | float) -> list[str]:
    """The results whose error is not within the limit."""
    return [r for r, good in zip(RESULTS, error <= limit, strict=True) if not good]


@pytest.mark.parametrize("training", MODES.values(), ids=MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_is_reference_and_pytorch(
    shape: tuple[int, int], training: bool, rng: np.random.Generator
) -> None:
    """All four methods; 1e-12 is some thousand roundings, past any sum of these sizes."""
    case = make(rng, shape, training, "float64")
    got = native(case)
    for exact in (by_reference(case), by_torch(case)):
        assert too_large(errors(got, exact), 1e-12) == []


@pytest.mark.parametrize("training", MODES.values(), ids=MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_as_exact_as_pytorch(
    shape: tuple[int, int], training: bool, rng: np.random.Generator
) -> None:
    """The median error over 9 draws is at most twice PyTorch's, or one rounding."""
    mine, torchs = [], []
    for _ in range(9):
        case = make(rng, shape, training, "float32")
        exact = by_reference(case.astype("float64"))
        mine.append(errors(native(case), exact))
        torchs.append(errors(by_torch(case), exact))
    limit = 2 * np.median(torchs, axis=0) + np.finfo(np.float32).eps
    assert too_large(np.median(mine, axis=0), limit) == []


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.75, 1.0])
@pytest.mark.parametrize("rows", [2, 63])
def test_running_statistics(rows: int, momentum: float, rng: np.random.Generator) -> None:
    """Unbiased variance, as the reference and PyTorch; evaluation only reads them."""
    x = 3 + 2 * rng.standard_normal((rows, 9))
    mean, var = rng.standard_normal(9), rng.random(9) + 0.5
    wanted = reference.running_update((mean, var), x, momentum)
    torchs = torch.from_numpy(mean.copy()), torch.from_numpy(var.copy())
    torch.nn.functional.batch_norm(torch.from_numpy(x), *torchs, None, None, True, momentum)
    norm.batch_norm(x, running_mean=mean, running_var=var, momentum=momentum)
    for got, its, theirs in zip((mean, var), wanted, torchs, strict=True):
        assert_allclose(got, its, rtol=1e-14, atol=1e-15)  # a few roundings
        assert_allclose(got, theirs.numpy(), rtol=1e-14, atol=1e-15)
    kept = mean.copy(), var.copy()
    norm.batch_norm(x, running_mean=mean, running_var=var, training=False, momentum=momentum)
    assert_array_equal((mean, var), kept)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_output_has_mean_zero_and_deviation_one(dtype: str, rng: np.random.Generator) -> None:
    x = (rng.uniform(0.1, 30, 40) * rng.standard_normal((500, 40)) + 3).astype(dtype)
    y, _ = norm.batch_norm(x, eps=0.0)
    # Of each element, hence of their mean.
    tolerance = float(4 * np.finfo(dtype).eps * np.abs(y).max())
    assert_allclose(y.mean(axis=0, dtype=np.float64), 0, atol=tolerance)
    assert_allclose(y.std(axis=0, dtype=np.float64), 1, atol=tolerance)
    weight, bias = rng.random(40).astype(dtype) + 1, rng.standard_normal(40).astype(dtype)
    y, _ = norm.batch_norm(x, weight, bias, eps=0.0)
    assert_allclose(y.mean(axis=0, dtype=np.float64), bias, atol=4 * tolerance)
    assert_allclose(y.std(axis=0, dtype=np.float64), weight, atol=4 * tolerance)


@pytest.mark.parametrize("shape", [(64, 100), (5000, 3)], ids=str)
def test_a_large_mean_costs_no_digits(shape: tuple[int, int], rng: np.random.Generator) -> None:
    """Mean 1e4 and variance 1 in float32: E[x²] − mean² would be off by 8, 1/std here by an eps."""
    x = (1e4 + rng.standard_normal(shape)).astype(np.float32)
    wide = x.astype(np.float64)
    y, saved = norm.batch_norm(x)
    eps = float(np.finfo(np.float32).eps)
    assert_allclose(saved.r, 1 / np.sqrt(wide.var(axis=0) + 1e-5), rtol=2 * eps)
    assert_allclose(saved.mean, wide.mean(axis=0), rtol=eps / 2 + 1e-12)
    exact = reference.forward(wide, np.ones(shape[1]), np.zeros(shape[1]), 1e-5)
    # The mean is stored in float32: half a unit of its last place, and roundings of y itself.
    half_place = np.spacing(np.float32(1e4)) / 2
    assert np.abs(y - exact).max() <= half_place * saved.r.max() + 4 * eps * np.abs(y).max()


def test_a_constant_column_is_its_bias(rng: np.random.Generator) -> None:
    x = rng.standard_normal((17, 3)).astype(np.float32)
    x[:, 1] = 0.1
    weight, bias = np.full(3, 2, np.float32), np.full(3, 7, np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y, saved = norm.batch_norm(x, weight, bias)
    dx, dweight, _ = norm.batch_norm_backward(dy, saved)
    assert_array_equal(y[:, 1], np.full(17, 7, np.float32))
    assert dweight[1] == 0
    exact = 2 / np.sqrt(1e-5) * (dy[:, 1] - dy[:, 1].mean(dtype=np.float64))
    assert_allclose(dx[:, 1], exact, atol=8 * np.finfo(np.float32).eps * np.abs(exact).max())


def test_saved_names_what_was_used(rng: np.random.Generator) -> None:
    case = make(rng, (9, 4), True, "float64")
    _, saved = norm.batch_norm(case.x, case.weight, eps=case.eps)
    assert saved.x is case.x
    assert saved.weight is case.weight
    assert saved.training
    assert_allclose(saved.mean, case.x.mean(axis=0), rtol=1e-14)
    assert_allclose(saved.r, 1 / np.sqrt(case.x.var(axis=0) + case.eps), rtol=1e-14)


def test_defaults_are_weight_one_and_bias_zero(rng: np.random.Generator) -> None:
    case = make(rng, (9, 4), True, "float32")
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    y, saved = norm.batch_norm(case.x)
    assert_array_equal(y, norm.batch_norm(case.x, ones, zeros)[0])
    assert_array_equal(
        norm.batch_norm_tangent(case.xt, saved),
        norm.batch_norm_tangent(case.xt, saved, zeros, zeros),
    )
    for got, wanted in zip(
        norm.batch_norm_backward_tangent(case.dy, case.dyt, case.xt, saved),
        norm.batch_norm_backward_tangent(case.dy, case.dyt, case.xt, saved, zeros),
        strict=True,
    ):
        assert_array_equal(got, wanted)


def test_evaluation_in_place(rng: np.random.Generator) -> None:
    case = make(rng, (130, 33), False, "float32")
    arguments = case.weight, case.bias, case.running_mean, case.running_var, False
    wanted, _ = norm.batch_norm(case.x, *arguments)
    y, _ = norm.batch_norm(case.x, *arguments, out=case.x)
    assert y is case.x
    assert_array_equal(case.x, wanted)


KINDS: dict[str, Callable[[Array], Any]] = {
    "numpy": lambda x: x,
    "Vector": Vector.from_numpy,
    "torch": torch.from_numpy,
}


@pytest.mark.parametrize("kind", ["Vector", "torch"])
@pytest.mark.parametrize("training", MODES.values(), ids=MODES)
def test_kinds_of_arrays_agree(kind: str, training: bool, rng: np.random.Generator) -> None:
    case = make(rng, (70, 5), training, "float32")
    arrays = {k: KINDS[kind](v) for k, v in vars(case).items() if isinstance(v, np.ndarray)}
    other = Case(**{**vars(case), **arrays})
    assert hasattr(other.x, "numpy")
    results = native(other)
    assert {type(r) for r in results} == {type(other.x)}
    for got, wanted in zip(results, native(case), strict=True):
        assert_array_equal(vector.gather(got), wanted)


@pytest.mark.parametrize("training", MODES.values(), ids=MODES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_at_every_setting(
    dtype: str, training: bool, rng: np.random.Generator, on_every_setting: Setting
) -> None:
    case = make(rng, (1003, 67), training, dtype)
    results = on_every_setting(lambda: [a.tobytes() for a in native(case)])
    first = results["base, 1 threads"]
    assert [setting for setting, got in results.items() if got != first] == []


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


X = np.linspace(-1.0, 2.0, 12).reshape(4, 3)
ROW = np.array([1.0, 2.0, 3.0])
TWO = np.zeros((2, 3))  # memory for two rows that are views of one array

REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("integers", {"x": np.ones((4, 3), int)}, TypeError,
     "x: expected dtype float32, float64, bfloat16 or float16, got int64"),
    ("one-dimensional", {"x": ROW}, ValueError,
     "x: expected an axis for each letter of NCHW, got (3,)"),
    ("one-row", {"x": X[:1]}, ValueError,
     "x: expected more than 1 value per channel when training, got (1, 3)"),
    ("swapped", {"x": X.astype(">f8")}, TypeError, "x: expected "),
    ("weight-dtype", {"weight": ROW.astype("f4")}, TypeError,
     "weight: expected dtype float64, got float32"),
    ("weight-shape", {"weight": ROW[:2]}, ValueError, "weight: expected shape (3,), got (2,)"),
    ("bias-list", {"bias": [0.0, 0.0, 0.0]}, TypeError,
     "bias: expected an array (NumPy or DLPack), got list"),
    ("one-running", {"running_mean": ROW}, ValueError,
     "running_var: expected given together with running_mean, got one of them"),
    ("running-shape", {"running_mean": ROW, "running_var": ROW[:1]}, ValueError,
     "running_var: expected shape (3,), got (1,)"),
    ("running-read-only", {"running_mean": read_only(ROW), "running_var": ROW}, ValueError,
     "running_mean: expected a writable array, got a read-only one"),
    ("running-overlap", {"running_mean": TWO[0], "running_var": TWO[0]}, ValueError,
     "running_var: expected memory of its own, got an overlap with running_mean"),
    ("running-is-weight", {"running_mean": TWO[0], "running_var": TWO[1], "weight": TWO[1]},
     ValueError, "running_var: expected memory of its own, got an overlap with weight"),
    ("running-in-x", {"x": TWO, "running_mean": TWO[0], "running_var": ROW + 0}, ValueError,
     "running_mean: expected memory of its own, got an overlap with x"),
    ("no-running", {"training": False}, ValueError,
     "running_mean: expected an array in evaluation, got None"),
    ("out-shape", {"out": np.zeros((4, 2))}, ValueError, "out: expected shape (4, 3), got (4, 2)"),
    ("out-dtype", {"out": np.zeros((4, 3), "f4")}, TypeError,
     "out: expected dtype float64, got float32"),
    ("out-read-only", {"out": read_only(X)}, ValueError,
     "out: expected a writable array, got a read-only one"),
    ("out-is-x-in-training", {"out": X}, ValueError,
     "out: expected memory of its own, got an overlap with x"),
    ("out-is-weight", {"out": X.reshape(4, 3).copy(), "weight": None}, ValueError,
     "out: expected memory of its own, got an overlap with weight"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused_and_nothing_written(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"x": X, "weight": ROW, "bias": ROW.copy(), **change}
    if "out" in arguments and arguments["weight"] is None:
        arguments["weight"] = arguments["out"][0]
    arrays = {k: v for k, v in arguments.items() if isinstance(v, np.ndarray)}
    before = {k: v.tobytes() for k, v in arrays.items()}
    with pytest.raises(error, match="^" + re.escape(message)):
        norm.batch_norm(**arguments)
    assert {k: v.tobytes() for k, v in arrays.items()} == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: norm.batch_norm_backward(X[:3].copy(), s), ValueError,
         "dy: expected shape (4, 3), got (3, 3)"),
        (lambda s: norm.batch_norm_backward(X.astype("f4"), s), TypeError,
         "dy: expected dtype float64, got float32"),
        (lambda s: norm.batch_norm_tangent(X, s, ROW[:2]), ValueError,
         "weight_tangent: expected shape (3,), got (2,)"),
        (lambda s: norm.batch_norm_backward_tangent(X, X[0], X, s), ValueError,
         "dy_tangent: expected shape (4, 3), got (3,)"),
    ],
)  # fmt: skip
def test_derivatives_refuse(
    call: Callable[[norm.Saved], object], error: type[Exception], message: str
) -> None:
    _, saved = norm.batch_norm(X)
    with pytest.raises(error, match="^" + re.escape(message)):
        call(saved)
