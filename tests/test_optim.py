"""Optimizers against torch.optim, the papers' formulas, and the lectures' steps by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from reference import optim as reference
from saddlepoint import Vector, _native, optim, vector
from saddlepoint.errors import DeviceError

Array = NDArray[Any]
Setting = Callable[[Callable[[], Any]], dict[str, Any]]

torch.set_num_threads(1)  # the oracle's work is small

STEPS = 100
EPS32 = float(np.finfo(np.float32).eps)

# An optimizer, its name in torch.optim, and its arguments.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01, "maximize": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.05, "momentum": 0.5, "nesterov": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"betas": (0.0, 0.1), "weight_decay": 0.01}),
    ("Adam", {"lr": 0.02, "amsgrad": True}),
    ("Adam", {"lr": 0.02, "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}),
    ("AdamW", {"lr": 0.02, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.0}),
]
IDS = [f"{name}-{'-'.join(arguments) or 'defaults'}" for name, arguments in CASES]
ADAMS = [(case, id_) for case, id_ in zip(CASES, IDS, strict=True) if case[0] != "SGD"]

every_case = pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)


def gradients(rng: np.random.Generator, shapes: list[tuple[int, ...]], dtype: str) -> list[Array]:
    """Of one step: magnitudes over six decades, changing sign from step to step."""
    return [
        np.asarray(rng.standard_normal(s) * 10.0 ** rng.uniform(-4, 2, s), dtype) for s in shapes
    ]


def torch_optimizer(name: str, params: list[Array], **arguments: Any) -> Any:
    tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in params]
    # PyTorch's own default of lr differs for none of the three.
    return getattr(torch.optim, name)(tensors, **arguments)


def torch_step(theirs: Any, grads: list[Array]) -> list[Array]:
    tensors = theirs.param_groups[0]["params"]
    for p, g in zip(tensors, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())
    theirs.step()
    return [p.detach().numpy() for p in tensors]


def whole_vectors(x: Array) -> Array:
    """The first multiple of 8 elements."""
    return x.ravel()[: x.size - x.size % 8]


@every_case
def test_float64_is_pytorch(name: str, arguments: dict[str, Any], rng: np.random.Generator) -> None:
    """After each of 100 steps, |Δp| ≤ 1e-12 max(|p|, lr)."""
    shapes = [(1,), (3,), (17, 4), (2, 3, 5), (), (1001,)]
    params = [np.asarray(rng.standard_normal(s)) for s in shapes]
    mine = getattr(optim, name)(params, **arguments)
    theirs = torch_optimizer(name, params, foreach=False, **arguments)
    for _ in range(STEPS):
        grads = gradients(rng, shapes, "float64")
        mine.step(grads)
        for got, wanted in zip(params, torch_step(theirs, grads), strict=True):
            assert np.all(np.abs(got - wanted) <= 1e-12 * np.maximum(np.abs(wanted), mine.lr))
    assert mine.steps == STEPS


def pick(g: Array, _: Array) -> Array:
    """A gradient that does not depend on where p is."""
    return g


@every_case
def test_float64_is_the_reference(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    p = rng.standard_normal(50)
    grads = [gradients(rng, [(50,)], "float64")[0] for _ in range(STEPS)]
    mine = getattr(optim, name)(p, **arguments)
    rule = reference.sgd if name == "SGD" else reference.adam
    defaults = {} if name == "SGD" else {"lr": 1e-3}
    if name == "AdamW":
        defaults |= {"decoupled": True, "weight_decay": 0.01}
    constants = [partial(pick, g) for g in grads]
    path = rule(p.copy(), constants, **{**defaults, **arguments})
    for g, wanted in zip(grads, path, strict=True):
        mine.step(g)
        assert np.all(np.abs(p - wanted) <= 1e-12 * np.maximum(np.abs(wanted), mine.lr))


@pytest.mark.parametrize(("name", "arguments"), [a[0] for a in ADAMS], ids=[a[1] for a in ADAMS])
def test_float32_has_the_bits_of_pytorchs_fused_kernel(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """Parameters and states over 100 steps, but for the last size mod 8 elements of a tensor:

    PyTorch's loop over them rounds (1 − β₂)g² before it adds β₂v, its loop over vectors of 8 (on
    every machine with AVX2) the other way round.
    """
    shapes: list[tuple[int, ...]] = [(1,), (3,), (17,), (10, 100), (100_003,)]
    params = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    mine = getattr(optim, name)(params, **arguments)
    theirs = torch_optimizer(name, params, fused=True, **arguments)
    some = [gradients(rng, shapes, "float32") for _ in range(7)]
    for step in range(STEPS):
        grads = some[step % len(some)]
        mine.step(grads)
        for got, wanted in zip(params, torch_step(theirs, grads), strict=True):
            where = f"shape {got.shape}, step {step + 1}"
            assert whole_vectors(got).tobytes() == whole_vectors(wanted).tobytes(), where
            # Each step may round the other way, in an element that was up to |p| + 1 large.
            assert_allclose(got, wanted, atol=STEPS * EPS32 * (np.abs(wanted).max() + 1))
    for state in mine.state_names:
        for got, p in zip(
            mine.state_dict()["states"][state], theirs.param_groups[0]["params"], strict=True
        ):
            wanted = theirs.state[p][state].numpy()
            assert_array_equal(whole_vectors(got), whole_vectors(wanted))
            assert_allclose(got, wanted, rtol=STEPS * EPS32)


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spreads_as_in_pytorch(
    name: str, arguments: dict[str, Any], bad: float, rng: np.random.Generator
) -> None:
    """A bad gradient at one place in step 2, and a bad parameter from the start."""
    params = [rng.standard_normal(40)]
    params[0][7] = bad
    mine = getattr(optim, name)(params, **arguments)
    theirs = torch_optimizer(name, params, foreach=False, **arguments)
    for step in range(4):
        grads = [rng.standard_normal(40)]
        if step == 1:
            grads[0][21] = bad
        mine.step(grads)
        wanted = torch_step(theirs, grads)
        assert_array_equal(np.isnan(params[0]), np.isnan(wanted[0]))
        assert_allclose(params[0], wanted[0], rtol=1e-12, atol=1e-12 * mine.lr)
    assert np.isfinite(params[0]).sum() >= 38


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_at_every_setting(
    name: str,
    arguments: dict[str, Any],
    dtype: str,
    rng: np.random.Generator,
    on_every_setting: Setting,
) -> None:
    shapes: list[tuple[int, ...]] = [(1,), (77,), (20_011,)]
    start = [rng.standard_normal(s).astype(dtype) for s in shapes]
    grads = [gradients(rng, shapes, dtype) for _ in range(3)]

    def run() -> list[bytes]:
        params = [p.copy() for p in start]
        optimizer = getattr(optim, name)(params, **arguments)
        for g in grads:
            optimizer.step(g)
        return [p.tobytes() for p in params]

    results = on_every_setting(run)
    first = results["base, 1 threads"]
    assert [setting for setting, got in results.items() if got != first] == []


@every_case
def test_kinds_of_arrays_in_place(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """NumPy arrays, Vectors and tensors, one or a list: the same bits, in the array given."""
    start = rng.standard_normal((5, 7)).astype(np.float32)
    grads = [gradients(rng, [(5, 7)], "float32")[0] for _ in range(3)]
    results = []
    for kind in (np.copy, Vector.from_numpy, torch.tensor):
        for single in (True, False):
            p = kind(start)
            optimizer = getattr(optim, name)(p if single else [p], **arguments)
            for g in grads:
                optimizer.step(kind(g) if single else [kind(g)])
            results.append(vector.gather(p))
    assert not np.array_equal(results[0], start)
    for other in results[1:]:
        assert_array_equal(other, results[0])


@every_case
def test_a_late_state_dict_continues_to_the_bit(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    shapes: list[tuple[int, ...]] = [(3,), (11, 2)]
    params = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    optimizer = getattr(optim, name)(params, **arguments)
    for _ in range(60):
        optimizer.step(gradients(rng, shapes, "float32"))
    saved, other_params = optimizer.state_dict(), [p.copy() for p in params]
    kept = {k: [a.copy() for a in v] for k, v in saved["states"].items()}
    other = getattr(optim, name)(other_params, **arguments)
    other.load_state_dict(saved)
    assert other.steps == 60
    for _ in range(20):
        grads = gradients(rng, shapes, "float32")
        optimizer.step(grads)
        other.step(grads)
    for p, q in zip(params, other_params, strict=True):
        assert_array_equal(p, q)
    for state, arrays in kept.items():  # what was saved is a copy
        for a, b in zip(arrays, saved["states"][state], strict=True):
            assert_array_equal(a, b)
    sizes = sum(p.nbytes for p in params)
    assert optimizer.memory() == dict.fromkeys(optimizer.state_names, sizes)


def test_empty_arrays() -> None:
    p, nothing = np.ones(3), np.empty((0, 4))
    optim.SGD([nothing, p, nothing], lr=1.0).step([nothing, p.copy(), nothing])
    assert_array_equal(p, np.zeros(3))


# The lectures.


def quadratic(w: Array) -> Array:
    """∇ of w², the surface of the steps by hand."""
    return 2.0 * w


@pytest.mark.parametrize(
    ("nesterov", "wanted"),
    [
        # S2.12: Δ = −0.2, −0.26, −0.238.
        (False, [0.8, 0.54, 0.302]),
        # S2.13: Δ = −0.2, −0.24, −0.208; what stands here is W + βΔ.
        (True, [0.7, 0.44, 0.248]),
    ],
)
def test_three_steps_by_hand(nesterov: bool, wanted: list[float]) -> None:
    """ΔW ← βΔW − η∇ on w² from 1 with η = 0.1, β = 0.5."""
    p = np.array([1.0])
    optimizer = optim.SGD(p, lr=0.1, momentum=0.5, nesterov=nesterov)
    path = []
    for _ in range(3):
        optimizer.step(quadratic(p))
        path.append(p[0])
    assert_allclose(path, wanted, rtol=4e-16)  # decimal fractions are rounded


def walk(rates: list[float], beta: float, nesterov: bool = False) -> tuple[Array, list[Array]]:
    """SGD on a tilted quartic with a rate of its own for each step."""
    p = np.array([1.0, -0.5, 0.25])
    optimizer = optim.SGD(p, momentum=beta, nesterov=nesterov)
    start, path = p.copy(), []
    for rate in rates:
        optimizer.lr = rate
        optimizer.step(quartic(p))
        path.append(p.copy())
    return start, path


def quartic(w: Array) -> Array:
    return np.asarray(4 * w**3 - 2 * w + 0.3)


CONSTANT, FALLING = [0.05] * 30, [0.05 / (k + 1) for k in range(30)]


def test_momentum_forms() -> None:
    """S0.18, S1.13, S2.13: at constant η all forms take one path; else only Polyak's is ours."""
    for rates, same in ((CONSTANT, True), (FALLING, False)):
        start, path = walk(rates, 0.9)
        fs = [quartic] * len(rates)
        assert_allclose(path, reference.polyak(start, fs, rates, 0.9), rtol=1e-12)
        inside = reference.heavy_ball(start, fs, rates, 0.9)
        assert np.allclose(path, inside, rtol=1e-12) == same
        ahead = reference.nesterov(start, fs, rates, 0.9)
        assert np.allclose(walk(rates, 0.9, nesterov=True)[1], ahead, rtol=1e-12) == same


def test_the_buffer_is_the_weighted_sum_of_gradients(rng: np.random.Generator) -> None:
    """S0.18: m² = −ληg⁰ − ηg¹ with m = −η b, to machine precision."""
    p, rate, decay = np.zeros(100), 0.1, 0.7
    optimizer = optim.SGD(p, lr=rate, momentum=decay)
    g = rng.standard_normal((2, 100))
    for row in g:
        optimizer.step(row)
    m = -rate * optimizer.state_dict()["states"]["momentum_buffer"][0]
    wanted = -decay * rate * g[0] - rate * g[1]
    assert_allclose(m, wanted, atol=4 * np.finfo(np.float64).eps * rate * np.abs(g).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adams_first_step_is_the_rate_in_the_gradients_sign(
    dtype: str, rng: np.random.Generator
) -> None:
    """S1.14: bias correction makes it lr·sign(g), whatever the size of g."""
    g = rng.standard_normal(1000) * 10.0 ** rng.uniform(-6, 6, 1000)
    p = np.zeros(1000, dtype)
    optim.Adam(p, lr=0.25, eps=0.0).step(g.astype(dtype))
    # A handful of roundings.
    assert_allclose(p, -0.25 * np.sign(g), rtol=float(4 * np.finfo(dtype).eps))
    p[:] = 0
    optim.Adam(p, lr=0.25).step(p.copy())
    assert_array_equal(p, np.zeros(1000, dtype))


def test_without_momentum_adam_forgets_old_gradients() -> None:
    """β₁ = 0: m is g itself, also after a gradient beside which g is less than a rounding."""
    optimizer = optim.Adam(np.zeros(1, np.float32), betas=(0.0, 0.9))
    for g in (1e6, 1e-3):
        optimizer.step(np.array([g], np.float32))
    assert optimizer.state_dict()["states"]["exp_avg"][0] == np.float32(1e-3)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (optim.schedule.constant(), [1.0, 1.0, 1.0]),
        (optim.schedule.inverse(), [1.0, 0.5, 1 / 11]),
        (optim.schedule.inverse_square(), [1.0, 0.25, 1 / 121]),
        (optim.schedule.exponential(0.1), [1.0, 0.9048374180359595, 0.36787944117144233]),
        (optim.schedule.exponential(0.0), [1.0, 1.0, 1.0]),
    ],
)
def test_schedules(schedule: optim.schedule.Schedule, wanted: list[float]) -> None:
    """S2.10: the values at k = 0, 1, 10."""
    assert_allclose([schedule(k) for k in (0, 1, 10)], wanted, rtol=1e-15)


# What is refused.


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


PAIR = np.zeros((2, 4), np.float32)
F4, F8 = np.ones(4, np.float32), np.ones(4)

REFUSED: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("list", lambda: optim.SGD([[1.0, 2.0]]), TypeError,
     "x: expected an array (NumPy or DLPack), got list"),
    ("integers", lambda: optim.Adam(np.arange(3)), TypeError,
     "dtype: expected dtype float32 or float64, got int64"),
    ("read-only", lambda: optim.Adam(read_only(F4)), ValueError,
     "params: expected a writable array, got a read-only one"),
    ("strided", lambda: optim.SGD(np.zeros(8)[::2]), ValueError,
     "params: expected a C-contiguous array, got strides (2,)"),
    ("mixed", lambda: optim.Adam([F4, F8]), TypeError,
     "params: expected dtype float32, got float64"),
    ("twice", lambda: optim.Adam([PAIR[0], PAIR[0]]), ValueError,
     "params: expected memory of its own, got an overlap with params"),
    ("overlapping", lambda: optim.SGD([PAIR, PAIR[1]]), ValueError,
     "params: expected memory of its own, got an overlap with params"),
    ("lr", lambda: optim.SGD(F4, lr=-1.0), ValueError, "lr: expected at least 0, got -1.0"),
    ("lr-nan", lambda: optim.Adam(F4, lr=math.nan), ValueError, "lr: expected at least 0, got nan"),
    ("momentum", lambda: optim.SGD(F4, momentum=-0.1), ValueError,
     "momentum: expected at least 0, got -0.1"),
    ("weight-decay", lambda: optim.AdamW(F4, weight_decay=-1.0), ValueError,
     "weight_decay: expected at least 0, got -1.0"),
    ("eps", lambda: optim.Adam(F4, eps=-1e-8), ValueError, "eps: expected at least 0, got -1e-08"),
    ("betas", lambda: optim.Adam(F4, betas=(0.9, 1.0)), ValueError,
     "betas: expected two numbers within [0, 1), got (0.9, 1.0)"),
    ("nesterov", lambda: optim.SGD(F4, nesterov=True), ValueError,
     "nesterov: expected momentum above 0 and dampening 0, got "),
    ("nesterov-dampening", lambda: optim.SGD(F4, momentum=0.9, dampening=0.1, nesterov=True),
     ValueError, "nesterov: expected momentum above 0 and dampening 0, got "),
    ("schedule", lambda: optim.schedule.exponential(-0.1), ValueError,
     "beta: expected at least 0, got -0.1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_constructors_refuse(
    call: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


STEP_REFUSED: list[tuple[str, Callable[[list[Array]], Any], type[Exception], str]] = [
    ("number", lambda p: [F8], ValueError, "grads: expected 2 arrays, got 1"),
    ("none", lambda p: [None, F8], TypeError,
     "grads: expected an array (NumPy or DLPack), got NoneType"),
    ("dtype", lambda p: [F4, F8], TypeError, "grads: expected dtype float64, got float32"),
    ("later-dtype", lambda p: [F8, F4], TypeError, "grads: expected dtype float64, got float32"),
    ("shape", lambda p: [F8, np.ones((4, 1))], ValueError,
     "grads: expected shape (4,), got (4, 1)"),
    ("strided", lambda p: [F8, np.ones(8)[::2]], ValueError,
     "grads: expected a C-contiguous array, got strides (2,)"),
    ("parameter", lambda p: [F8, p[1]], ValueError,
     "params: expected memory of its own, got an overlap with grads"),
    ("other-parameter", lambda p: [p[1], F8], ValueError,
     "params: expected memory of its own, got an overlap with grads"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("grads", "error", "message"), [r[1:] for r in STEP_REFUSED], ids=[r[0] for r in STEP_REFUSED]
)
def test_a_refused_step_writes_nothing(
    grads: Callable[[list[Array]], Any],
    error: type[Exception],
    message: str,
    rng: np.random.Generator,
) -> None:
    params = [rng.standard_normal(4), rng.standard_normal(4)]
    optimizer = optim.Adam(params, amsgrad=True)
    optimizer.step([F8, F8])
    before, states = [p.copy() for p in params], optimizer.state_dict()
    with pytest.raises(error, match="^" + re.escape(message)):
        optimizer.step(grads(params))
    assert_array_equal(params, before)
    after = optimizer.state_dict()
    assert after["steps"] == states["steps"] == 1
    for state in states["states"]:
        assert_array_equal(after["states"][state], states["states"][state])


def test_gradients_are_only_read(rng: np.random.Generator) -> None:
    """Read-only ones do, and the same array may serve two parameters."""
    g = read_only(rng.standard_normal(9))
    for name, arguments in CASES:
        params = [np.ones(9), np.ones(9)]
        kept = g.tobytes()
        getattr(optim, name)(params, **arguments).step([g, g])
        assert g.tobytes() == kept
        assert_array_equal(params[0], params[1])


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"exp_avg": [F8]}, "states: expected ['exp_avg', 'exp_avg_sq'], got ['exp_avg']"),
        ({"exp_avg": [F8], "exp_avg_sq": [F8[:3]]}, "exp_avg_sq: expected arrays "),
        ({"exp_avg": [F4], "exp_avg_sq": [F8]}, "exp_avg: expected arrays "),
        ({"exp_avg": [F8, F8], "exp_avg_sq": [F8]}, "exp_avg: expected arrays "),
    ],
)
def test_load_state_dict_refuses(saved: dict[str, list[Array]], message: str) -> None:
    optimizer = optim.Adam(np.ones(4))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optimizer.load_state_dict({"steps": 3, "states": saved})
    assert optimizer.steps == 0
    assert_array_equal(optimizer.state_dict()["states"]["exp_avg"][0], np.zeros(4))


def test_an_absent_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_module", lambda: None)
    _native._cuda.cache_clear()
    with pytest.raises(DeviceError, match=r"^device: this saddlepoint was built without CUDA"):
        Vector(3, device="cuda")
