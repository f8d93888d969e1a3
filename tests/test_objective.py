"""The objective of a network on data: against PyTorch's double backward and the reference."""

from __future__ import annotations

import copy
import pickle
import re
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import saddlepoint as sp
from networks import Problem, TorchLoss, random_network, random_problem, to_reference
from reference import layers as reference
from saddlepoint import Vector, _native, nn, vector

Array = NDArray[Any]
Setting = Callable[[Callable[[], Any]], dict[str, Any]]

EPS = np.finfo(np.float64).eps
EPS32 = np.finfo(np.float32).eps


def objective(p: Problem, **arguments: Any) -> sp.NetworkObjective:
    return sp.NetworkObjective(
        p.net, p.loss, p.x, p.y, p.params, **{"dtype": p.params.theta.dtype, **arguments}
    )


def distance(got: Any, wanted: Any) -> float:
    """Relative to the norm of what is wanted; zero for two zeros."""
    error = float(np.linalg.norm(np.asarray(got) - wanted))
    return error / max(float(np.linalg.norm(wanted)), 1e-300)


def direction(p: Problem, rng: np.random.Generator, *k: int) -> Array:
    return rng.standard_normal((p.net.size, *k)).astype(p.params.theta.dtype)


modes = pytest.mark.parametrize(
    ("batch_norm", "mode"), [(False, "batch"), (True, "batch"), (True, "frozen")]
)


@modes
@pytest.mark.parametrize("seed", range(32))
def test_gradients_and_products_are_pytorchs(
    seed: int, batch_norm: bool, mode: str, rng: np.random.Generator
) -> None:
    """Double backward in float64. 1e-10 leaves room for what cancels over two rows: 1/eps = 1e5."""
    p = random_problem(seed, batch_norm)
    theirs = TorchLoss(p, frozen=mode == "frozen")
    mine = objective(p, batch_norm=mode)
    v = direction(p, rng)
    value, gradient = theirs.gradient()
    at = mine.linearize(p.params.theta)
    assert distance(at.loss, value) < 1e-12
    assert distance(at.gradient, gradient) < 1e-10
    assert distance(at.hvp(v), theirs.product(v)) < 1e-10
    assert mine.loss(p.params.theta) == at.loss
    assert_array_equal(mine.gradient(p.params.theta), at.gradient)


@pytest.mark.parametrize("share", [1, 3, 10])
def test_tangents_of_a_block_stay_within_the_budget(share: int, rng: np.random.Generator) -> None:
    p = random_problem(4, batch_norm=False)
    stored = objective(p)._pass(len(p.x)).nbytes
    budget = share * stored
    at = objective(p, memory_budget=budget).linearize(p.params.theta)
    each = max(native.tangent_nbytes(1) for native in at._passes.values())
    assert at._block_size() == max(1, budget // each)
    v = np.asfortranarray(direction(p, rng, 2 * at._block_size() + 1))
    columns = [at.hvp(np.ascontiguousarray(column)) for column in v.T]
    assert distance(at.hvp(v), np.stack(columns, axis=1)) < 1e-13


@pytest.mark.parametrize("first", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Identity()], ids=repr)
def test_what_comes_before_the_first_parameter_does_not_move(
    first: nn.Layer, rng: np.random.Generator
) -> None:
    net = nn.Sequential(first, nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    p = Problem(net, nn.MeanSquaredError(), net.init(rng, "float64"), x, y)
    theirs, at, v = TorchLoss(p), objective(p).linearize(p.params.theta), direction(p, rng)
    for _ in range(2):  # memory that was used before holds no zeros
        assert distance(at.hvp(v), theirs.product(v)) < 1e-10


@modes
@pytest.mark.parametrize("seed", range(32, 40))
def test_gradients_and_products_are_the_references(
    seed: int, batch_norm: bool, mode: str, rng: np.random.Generator
) -> None:
    p = random_problem(seed, batch_norm)
    layers = to_reference(p.net, p.params.buffers if mode == "frozen" else None)
    arguments = layers, p.loss.kind, p.params.theta, p.x, p.y
    at = objective(p, batch_norm=mode).linearize(p.params.theta)
    v = direction(p, rng)
    assert distance(at.loss, reference.loss(*arguments)) < 1e-12
    assert distance(at.gradient, reference.gradient(*arguments)) < 1e-10
    assert distance(at.hvp(v), reference.hessian_product(*arguments, v)) < 1e-10


def in_float32(p: Problem) -> tuple[Problem, Problem]:
    """The problem rounded to float32, in float32 and in float64."""

    def cast(dtype: str) -> Problem:
        def f(x: Array) -> Array:
            return x if x.dtype.kind == "i" else x.astype(np.float32).astype(dtype)

        params = nn.Parameters(f(p.params.theta), f(p.params.buffers))
        return Problem(p.net, p.loss, params, f(p.x), f(p.y))

    return cast("float32"), cast("float64")


@modes
@pytest.mark.parametrize("seed", range(10))
def test_float32_is_as_exact_as_pytorch(
    seed: int, batch_norm: bool, mode: str, rng: np.random.Generator
) -> None:
    """Against float64, the median over 9 points is at most twice PyTorch's error, or a rounding.

    The median, because a single error may be small by luck on either side.
    """
    p, frozen = random_problem(seed, batch_norm), mode == "frozen"
    errors = []
    for _ in range(9):
        p.params.theta[:] += 0.1 * rng.standard_normal(p.net.size)
        p32, p64 = in_float32(p)
        v = direction(p32, rng)
        exact, theirs = TorchLoss(p64, frozen), TorchLoss(p32, frozen, "float32")
        at = objective(p32, batch_norm=mode).linearize(p32.params.theta)
        gradient, product = exact.gradient()[1], exact.product(v.astype(np.float64))
        errors.append(
            [
                [distance(at.gradient, gradient), distance(at.hvp(v), product)],
                [distance(theirs.gradient()[1], gradient), distance(theirs.product(v), product)],
            ]
        )
    mine, pytorchs = np.median(errors, axis=0)
    assert np.all(mine <= 2 * pytorchs + EPS32)


@modes
def test_a_block_is_its_columns(batch_norm: bool, mode: str, rng: np.random.Generator) -> None:
    """To the bit, in either memory order."""
    p = random_problem(4, batch_norm)
    at = objective(p, batch_norm=mode).linearize(p.params.theta)
    v = direction(p, rng, 5)
    wanted = np.stack([at.hvp(v[:, i].copy()) for i in range(5)], axis=1)
    assert_array_equal(at.hvp(v), wanted)
    assert_array_equal(at.hvp(np.asfortranarray(v)), wanted)
    assert_array_equal(at.hvp(v[:, 1:2]), wanted[:, 1:2])


def test_a_block_of_no_columns(rng: np.random.Generator) -> None:
    p = random_problem(4)
    at = objective(p).linearize(p.params.theta)
    assert at.hvp(direction(p, rng, 0)).shape == (p.net.size, 0)


def test_chunks_within_a_budget(rng: np.random.Generator) -> None:
    """A small budget recomputes chunk by chunk; one byte means one row and one direction a time."""
    net = random_network(rng, 7, 3, batch_norm=False)
    params = net.init(rng, "float64")
    p = Problem(
        net, nn.CrossEntropy(), params, rng.standard_normal((45, 7)), rng.integers(0, 3, 45)
    )
    whole = objective(p)
    v = direction(p, rng, 3)
    assert not whole.recomputes
    wanted = whole.linearize(params.theta)
    stored = whole._pass(45).nbytes
    for budget in (1, stored // 7, stored // 2):
        small = objective(p, memory_budget=budget)
        assert small.recomputes
        at = small.linearize(params.theta)
        # The same 45 terms in another order.
        assert abs(at.loss - wanted.loss) <= 45 * EPS * wanted.loss
        assert abs(small.loss(params.theta) - wanted.loss) <= 45 * EPS * wanted.loss
        for got, exact in [
            (at.gradient, wanted.gradient),
            (small.gradient(params.theta), wanted.gradient),
            (at.hvp(v), wanted.hvp(v)),
            (at.hvp(v[:, 0].copy()), wanted.hvp(v[:, 0].copy())),
            (at.hvp(v), wanted.hvp(v)),  # and again
        ]:
            assert distance(got, exact) < 1e-13


def batches(p: Problem, size: int, v: Array) -> tuple[float, Array, Array]:
    """Loss, gradient and product as a sum over batches, each weighted by its rows."""
    layers = to_reference(p.net)
    loss, gradient, product = 0.0, np.zeros(p.net.size), np.zeros(p.net.size)
    for begin in range(0, len(p.x), size):
        x, y = p.x[begin : begin + size], p.y[begin : begin + size]
        arguments = layers, p.loss.kind, p.params.theta, x, y
        weight = len(x) / len(p.x)
        loss += weight * reference.loss(*arguments)
        gradient += weight * reference.gradient(*arguments)
        product += weight * reference.hessian_product(*arguments, v)
    return loss, gradient, product


@pytest.mark.parametrize("kind", ["cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize("size", [2, 5, 9, 22, 23, 100])
@pytest.mark.parametrize("recomputes", [False, True])
def test_batches_of_batch_statistics(
    size: int, kind: str, recomputes: bool, rng: np.random.Generator
) -> None:
    """Every batch has its own statistics, and every sample the same weight: 23 = 4·5 + 3."""
    rows = 24 if size == 2 else 23 + (size == 22)
    net = nn.Sequential(
        nn.BatchNorm(4), nn.Linear(4, 6), nn.BatchNorm(6, eps=0.1), nn.Tanh(), nn.Linear(6, 3)
    )
    params = net.init(rng, "float64")
    params.theta += 0.3 * rng.standard_normal(net.size)
    x = rng.standard_normal((rows, 4))
    if kind == "cross_entropy":
        p = Problem(net, nn.CrossEntropy(), params, x, rng.integers(0, 3, rows))
    else:
        p = Problem(net, nn.MeanSquaredError(), params, x, rng.standard_normal((rows, 3)))
    mine = objective(p, batch_size=size)
    if recomputes and size < rows:
        # One batch fits, two do not.
        one = objective(p, batch_size=size)._pass(size).nbytes
        mine = objective(p, batch_size=size, memory_budget=one)
        assert mine.recomputes
        with pytest.raises(
            MemoryError, match=rf"^memory_budget: a batch of {size} rows needs {one}"
        ):
            objective(p, batch_size=size, memory_budget=one - 1)
    v = direction(p, rng)
    loss, gradient, product = batches(p, size, v)
    at = mine.linearize(params.theta)
    assert distance(at.loss, loss) < 1e-13
    assert distance(mine.loss(params.theta), loss) < 1e-13
    assert distance(at.gradient, gradient) < 1e-11
    assert distance(at.hvp(v), product) < 1e-11
    assert distance(at.hvp(v[:, None])[:, 0], product) < 1e-11


@pytest.mark.parametrize(("batch_norm", "mode"), [(False, "batch"), (True, "frozen")])
def test_batches_change_nothing_where_rows_are_alone(
    batch_norm: bool, mode: str, rng: np.random.Generator
) -> None:
    p = random_problem(6, batch_norm)
    v = direction(p, rng)
    one, many = (
        objective(p, batch_norm=mode, batch_size=size).linearize(p.params.theta)
        for size in (None, 1)
    )
    assert one.loss == many.loss
    assert_array_equal(one.gradient, many.gradient)
    assert_array_equal(one.hvp(v), many.hvp(v))


@modes
def test_a_linearization_stays_where_it_was_made(
    batch_norm: bool, mode: str, rng: np.random.Generator
) -> None:
    """Neither later writes to θ, nor a second point, nor other calls move it."""
    p = random_problem(8, batch_norm)
    mine, v = objective(p, batch_norm=mode), direction(p, rng, 2)
    theta = p.params.theta.copy()
    elsewhere = theta + 0.2 * rng.standard_normal(theta.size)
    wanted = [mine.linearize(t.copy()).hvp(v) for t in (theta, elsewhere)]
    gradient = mine.gradient(theta)
    first = mine.linearize(theta)
    theta[:] = np.nan
    second = mine.linearize(elsewhere)
    for _ in range(2):
        assert_array_equal(first.hvp(v), wanted[0])
        assert_array_equal(second.hvp(v), wanted[1])
        assert_array_equal(second.hvp(v[:, 0].copy()), wanted[1][:, 0])
    mine.loss(elsewhere)
    assert_array_equal(first.gradient, gradient)
    assert not np.array_equal(*wanted)


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_an_analysis_leaves_the_model_alone(mode: str, rng: np.random.Generator) -> None:
    p = random_problem(10)
    kept = [a.tobytes() for a in (p.params.theta, p.params.buffers, p.x, p.y)]
    mine = objective(p, batch_norm=mode)
    mine.loss(p.params.theta)
    mine.linearize(p.params.theta).hvp(direction(p, rng))
    assert [a.tobytes() for a in (p.params.theta, p.params.buffers, p.x, p.y)] == kept
    # The running statistics are a copy: later training does not move the objective.
    value = mine.loss(p.params.theta)
    p.params.buffers[:] = 1.0
    assert mine.loss(p.params.theta) == value


@pytest.mark.parametrize("kind", ["numpy", "Vector", "torch"])
def test_vectors_of_every_kind(kind: str, rng: np.random.Generator) -> None:
    """The same bits, in the kind that θ has."""
    kinds: dict[str, Callable[[Array], Any]]
    p = in_float32(random_problem(11))[0]
    mine, v = objective(p), direction(p, rng, 3)
    kinds = {"numpy": np.copy, "Vector": Vector.from_numpy, "torch": torch.tensor}
    make = kinds[kind]
    wanted, at = (mine.linearize(f(p.params.theta)) for f in (np.copy, make))
    one = v[:, 0].copy()
    assert at.loss == wanted.loss == mine.loss(make(p.params.theta))
    for got, exact in [
        (at.gradient, wanted.gradient),
        (mine.gradient(make(p.params.theta)), wanted.gradient),
        (at.hvp(make(one)), wanted.hvp(one)),
        (at.hvp(make(np.asfortranarray(v))), wanted.hvp(v)),
    ]:
        assert type(got) is type(make(one))
        assert_array_equal(vector.gather(got), exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["cross_entropy", "mean_squared_error"])
def test_same_bits_at_every_setting(
    kind: str, dtype: str, rng: np.random.Generator, on_every_setting: Setting
) -> None:
    """Loss, gradient and products, at 1 and 2 threads, on every instruction set."""
    net = nn.Sequential(
        nn.Linear(150, 40), nn.BatchNorm(40), nn.Tanh(), nn.Linear(40, 21), nn.ReLU(),
        nn.Linear(21, 5),
    )  # fmt: skip
    params = net.init(rng, dtype)
    x = rng.standard_normal((301, 150)).astype(dtype)
    labels, targets = rng.integers(0, 5, 301), rng.standard_normal((301, 5)).astype(dtype)
    if kind == "cross_entropy":
        mine = sp.NetworkObjective(net, nn.CrossEntropy(), x, labels, dtype=dtype)
    else:
        mine = sp.NetworkObjective(net, nn.MeanSquaredError(), x, targets, dtype=dtype)
    v = rng.standard_normal((net.size, 2)).astype(dtype)

    def bits() -> list[bytes]:
        at = mine.linearize(params.theta)
        return [np.asarray(a).tobytes() for a in (at.loss, at.gradient, at.hvp(v))]

    results = on_every_setting(bits)
    first = results["base, 1 threads"]
    assert [setting for setting, got in results.items() if got != first] == []


@pytest.mark.parametrize("mode", ["batch", "frozen"])
@pytest.mark.parametrize("seed", [12, 13])
def test_astype(seed: int, mode: str, rng: np.random.Generator) -> None:
    p32, p64 = in_float32(random_problem(seed))
    wide = objective(p32, batch_norm=mode, batch_size=40).astype("float64")
    same = objective(p64, batch_norm=mode, batch_size=40)
    v = direction(p64, rng)
    assert wide.dtype == np.float64
    assert wide.loss(p64.params.theta) == same.loss(p64.params.theta)
    hv = (o.linearize(p64.params.theta).hvp(v) for o in (wide, same))
    assert_array_equal(*hv)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_logits_do_not_overflow(dtype: str) -> None:
    """log Σ exp is shifted by the largest logit: exp(500) has no float32, the loss has."""
    net = nn.Linear(1, 3, bias=False)
    x, y = np.ones((2, 1), dtype), np.array([0, 2])
    mine = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype=dtype)
    at = mine.linearize(np.array([500.0, -500.0, 499.0], dtype))
    # log(1 + e⁻¹) and the same + 1; p = 1/(1 + e⁻¹), 0, 1/(1 + e).
    p = 1 / (1 + np.exp(-1.0))
    eps = np.finfo(dtype).eps
    assert abs(at.loss - (np.log1p(np.exp(-1.0)) + 0.5)) <= 4 * eps
    assert np.abs(at.gradient - [p - 0.5, 0.0, 0.5 - p]).max() <= 4 * eps
    h = at.hvp(np.array([1.0, 0.0, 0.0], dtype))
    assert np.abs(h - [p * (1 - p), 0.0, -p * (1 - p)]).max() <= 4 * eps


# What is refused.

NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
NORM = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm(4), nn.Linear(4, 2))
X, LABELS = np.linspace(-1, 1, 15).reshape(5, 3), np.array([0, 1, 1, 0, 1])
TARGETS = np.linspace(0, 1, 10).reshape(5, 2)


def with_(x: Array, index: Any, value: float) -> Array:
    x = x.copy()
    x[index] = value
    return x


def make(net: Any = NET, loss: Any = None, x: Any = X, y: Any = LABELS, **arguments: Any) -> Any:
    loss = nn.CrossEntropy() if loss is None else loss
    return sp.NetworkObjective(net, loss, x, y, **{"dtype": "float64", **arguments})


def made(net: nn.Layer, dtype: str = "float64") -> nn.Parameters:
    return net.init(0, dtype)


MSE = nn.MeanSquaredError()
REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("net", {"net": torch.nn.Linear(3, 2)}, TypeError,
     "net: expected a layer of saddlepoint.nn, got Linear"),
    ("loss", {"loss": "cross_entropy"}, TypeError,
     "loss: expected a loss of saddlepoint.nn, got str"),
    ("dtype", {"dtype": "float16"}, TypeError,
     "dtype: expected dtype float32 or float64, got float16"),
    ("x-list", {"x": [[1.0, 2.0, 3.0]]}, TypeError, "x: expected a NumPy array, got list"),
    ("x-dtype", {"x": X.astype("f4")}, TypeError, "x: expected dtype float64, got float32"),
    ("x-vector", {"x": X[0]}, ValueError, "x: expected shape (N, features), got (3,)"),
    ("x-columns", {"x": np.ones((5, 2))}, ValueError, "x: expected 3 columns, got 2"),
    ("x-empty", {"x": np.ones((0, 3)), "y": LABELS[:0]}, ValueError,
     "x: expected at least one row, got (0, 3)"),
    ("x-nan", {"x": with_(X, (3, 1), np.nan)}, ValueError,
     "x: expected finite values, got NaN or infinity in row 3"),
    ("x-infinite", {"x": with_(X, (0, 0), np.inf)}, ValueError,
     "x: expected finite values, got NaN or infinity in row 0"),
    ("labels-float", {"y": LABELS.astype(float)}, TypeError,
     "y: expected integer labels, got dtype float64"),
    ("labels-shape", {"y": LABELS[:4]}, ValueError, "y: expected shape (5,), got (4,)"),
    ("labels-column", {"y": LABELS[:, None]}, ValueError, "y: expected shape (5,), got (5, 1)"),
    ("labels-high", {"y": with_(LABELS, 2, 2)}, ValueError,
     "y: expected labels from 0 to 1, got 2"),
    ("labels-low", {"y": with_(LABELS, 2, -1)}, ValueError,
     "y: expected labels from 0 to 1, got -1"),
    ("labels-huge", {"y": with_(LABELS, 2, 2**32)}, ValueError,
     "y: expected labels from 0 to 1, got 4294967296"),
    ("targets-dtype", {"loss": MSE, "y": TARGETS.astype("f4")}, TypeError,
     "y: expected dtype float64, got float32"),
    ("targets-shape", {"loss": MSE, "y": TARGETS[:, :1]}, ValueError,
     "y: expected shape (5, 2), got (5, 1)"),
    ("targets-nan", {"loss": MSE, "y": with_(TARGETS, (1, 1), np.nan)}, ValueError,
     "y: expected finite values, got NaN or infinity"),
    ("batch-norm", {"batch_norm": "running"}, ValueError,
     "batch_norm: expected 'batch' or 'frozen', got 'running'"),
    ("no-params", {"net": NORM, "batch_norm": "frozen"}, ValueError,
     "params: expected Parameters with running statistics, got None"),
    ("params-dtype", {"net": NORM, "params": made(NORM, "float32")}, TypeError,
     "params: expected dtype float64, got float32"),
    ("params-of-another", {"net": NORM, "batch_norm": "frozen", "params": made(NET)}, ValueError,
     "params: expected theta of shape (34,), got (26,)"),
    ("params-without-buffers", {"net": NORM, "batch_norm": "frozen", "params": nn.Parameters(
        made(NORM).theta, made(NET).buffers)}, ValueError,
     "params: expected buffers of shape (9,), got (0,)"),
    ("batch-size", {"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
    ("one-row", {"net": NORM, "x": X[:1], "y": LABELS[:1]}, ValueError,
     "batch_size: expected at least 2 rows in each batch, for their variance, got 1"),
    ("batches-of-one", {"net": NORM, "batch_size": 1}, ValueError,
     "batch_size: expected at least 2 rows in each batch, for their variance, got 1"),
    ("last-batch-of-one", {"net": NORM, "batch_size": 4}, ValueError,
     "batch_size: expected at least 2 rows in each batch, for their variance, got 1"),
    ("budget", {"net": NORM, "memory_budget": 100}, MemoryError,
     "memory_budget: a batch of 5 rows needs "),
    ("device", {"device": "tpu"}, ValueError, "device: expected 'cpu' or 'cuda', got 'tpu'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_constructor_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        make(**change)


THETA = np.linspace(-1.0, 1.0, NET.size)
CALLS: list[tuple[str, Callable[[Any], object], type[Exception], str]] = [
    ("theta-list", lambda o: o.loss(THETA.tolist()), TypeError,
     "theta: expected an array (NumPy or DLPack), got list"),
    ("theta-dtype", lambda o: o.gradient(THETA.astype("f4")), TypeError,
     "theta: expected dtype float64, got float32"),
    ("theta-tensor", lambda o: o.linearize(torch.zeros(NET.size)), TypeError,
     "theta: expected dtype float64, got float32"),
    ("theta-shape", lambda o: o.linearize(THETA[:-1]), ValueError,
     "theta: expected shape (26,), got (25,)"),
    ("theta-matrix", lambda o: o.loss(THETA[:, None]), ValueError,
     "theta: expected shape (26,), got (26, 1)"),
    ("theta-strided", lambda o: o.loss(np.zeros(52)[::2]), ValueError,
     "theta: expected a C-contiguous array, got strides (2,)"),
    ("v-shape", lambda o: o.linearize(THETA).hvp(THETA[1:]), ValueError,
     "v: expected shape (26,) or (26, k), got (25,)"),
    ("v-rows", lambda o: o.linearize(THETA).hvp(np.zeros((2, 26))), ValueError,
     "v: expected shape (26,) or (26, k), got (2, 26)"),
    ("v-order", lambda o: o.linearize(Vector.from_numpy(THETA)).hvp(Vector((26, 2), "float64")),
     ValueError, "v: expected a block in Fortran order, got C order"),
    ("v-dtype", lambda o: o.linearize(THETA).hvp(THETA.astype("f4")), TypeError,
     "v: expected dtype float64, got float32"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS]
)
def test_methods_refuse(
    call: Callable[[Any], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        call(make())


def test_an_absent_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_module", lambda: None)
    _native._cuda.cache_clear()
    with pytest.raises(sp.DeviceError, match=r"^device: this saddlepoint was built without CUDA"):
        make(device="cuda")


def test_inputs_may_be_read_only(rng: np.random.Generator) -> None:
    p = random_problem(14)
    for a in (p.x, p.y, p.params.theta, p.params.buffers):
        a.flags.writeable = False
    v = direction(p, rng)
    v.flags.writeable = False
    assert np.isfinite(objective(p).linearize(p.params.theta).hvp(v)).all()


COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("batch_norm", ["batch", "frozen"])
def test_copies_are_made_of_the_same_parts(how: str, batch_norm: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 2)), rng.integers(0, 2, 12)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(3), nn.Tanh(), nn.Linear(3, 2))
    params = net.init(0, "float64")
    params.buffers[3:6] = 2.0
    objective = sp.NetworkObjective(
        net, nn.CrossEntropy(), x, y, params, 4, batch_norm, "float64", memory_budget=1 << 20
    )
    other, theta, v = COPIES[how](objective), params.theta, np.ones(net.size)
    assert other._budget == 1 << 20
    at = objective.linearize(theta)
    for copied in (other.linearize(theta), COPIES[how](at)):
        assert copied.loss == at.loss
        assert_array_equal(copied.gradient, at.gradient)
        assert_array_equal(copied.hvp(v), at.hvp(v))
    assert_array_equal(COPIES[how](sp.hessian(objective, theta)) @ v, at.hvp(v))


def test_frozen_statistics_of_infinite_values_are_as_in_pytorch() -> None:
    """A unit that overflows and saturates has slope 0: 0 times ∞ is not in its way back."""
    x, y = np.array([[1e300, 1.0], [0.5, -1.0], [2.0, 3.0]]), np.array([0, 1, 0])
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm(2), nn.Tanh(), nn.Linear(2, 2))
    params = net.init(0, "float64")
    params.theta[:6] = 1e10, 1.0, 0.3, 0.4, 0.0, 0.0
    asked = net, nn.CrossEntropy(), x, y, params
    at = sp.NetworkObjective(*asked, batch_norm="frozen", dtype="float64").linearize(params.theta)
    batch_norm = torch.nn.BatchNorm1d(2)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(2, 2), batch_norm, torch.nn.Tanh(), torch.nn.Linear(2, 2)
    )
    theirs = theirs.double().eval()
    values = {name: torch.tensor(a) for name, a in net.unflatten(params.theta).items()}
    theirs.load_state_dict(values, strict=False)
    loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
    leaves = list(theirs.parameters())
    gradient = torch.autograd.grad(loss, leaves, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    assert_allclose(at.gradient, flat.detach().numpy(), rtol=1e-12)
    assert np.isnan(at.gradient).sum() == 1  # Σ h dy of that unit, with h infinite
    v = np.zeros(net.size)
    v[10:] = 1.0  # of the last layer
    product = torch.autograd.grad(flat[10:].sum(), leaves)
    wanted = torch.cat([p.flatten() for p in product]).numpy()
    assert_allclose(at.hvp(v), wanted, rtol=1e-12, atol=1e-15)


def kept_bytes(mine: sp.NetworkObjective) -> int:
    return sum(bound.nbytes for bound in vars(mine._evaluator._own).get("kept", {}).values())


def test_asking_again_makes_no_passes(rng: np.random.Generator) -> None:
    p = random_problem(4, batch_norm=False)
    mine, wanted = objective(p), objective(p).linearize(p.params.theta)
    elsewhere = p.params.theta + 1.0
    make, made = mine._evaluator.make, []
    mine._evaluator.make = lambda *key: made.append(key) or make(*key)  # type: ignore[method-assign]
    for _ in range(3):
        assert mine.loss(p.params.theta) == wanted.loss
        assert_array_equal(mine.gradient(p.params.theta), wanted.gradient)
        mine.gradient(elsewhere)
        mine.loss(elsewhere)
    assert [level for _, _, level, _ in made] == ["value", "gradient"]
    # What fails is not kept, and does not stand in the way.
    with pytest.raises(ValueError, match=r"^theta: expected shape"):
        mine._evaluator.evaluate(p.x, mine._y, elsewhere[1:], None, frozen=False)
    assert mine.loss(p.params.theta) == wanted.loss


def test_kept_passes_take_an_eighth_of_the_budget() -> None:
    p = random_problem(4, batch_norm=False)

    def after_both(**budget: int) -> tuple[int, int]:
        mine = objective(p, **budget)
        mine.gradient(p.params.theta)
        gradient = kept_bytes(mine)
        mine.loss(p.params.theta)
        return gradient, kept_bytes(mine)

    gradient, both = after_both()
    value = both - gradient
    assert 0 < value < gradient
    assert objective(p)._pass(len(p.x)).nbytes < 8 * (gradient - 1)  # the chunks stay the same
    assert after_both(memory_budget=8 * both) == (gradient, both)
    assert after_both(memory_budget=8 * both - 1) == (gradient, gradient)
    assert after_both(memory_budget=8 * gradient - 1) == (0, value)


def test_kept_passes_hold_no_array_of_the_callers() -> None:
    p = random_problem(4)
    mine, theta = objective(p), p.params.theta.copy()
    mine.gradient(theta)
    mine.loss(theta)
    gone = weakref.ref(theta)
    del theta
    assert gone() is None


def test_threads_have_passes_of_their_own() -> None:
    p = random_problem(8)
    mine = objective(p)
    points = [p.params.theta + 0.1 * i for i in range(8)]
    wanted = [(mine.loss(t), mine.gradient(t)) for t in points]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            values, slopes = pool.map(mine.loss, points), pool.map(mine.gradient, points)
            for (value, slope), v, s in zip(wanted, values, slopes, strict=True):
                assert v == value
                assert_array_equal(s, slope)
