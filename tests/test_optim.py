"""Optimizers against torch.optim, the papers' formulas, and the lectures' steps by hand."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
Shapes = list[tuple[int, ...]]

torch.set_num_threads(1)  # the oracle's work is small

STEPS = 100
EPS32 = float(np.finfo(np.float32).eps)

# An optimizer and its arguments: every option of each, and those that meet in a formula together.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01, "maximize": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.05, "momentum": 0.5, "nesterov": True}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.01, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.05}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "eps": 1e-3}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 1e-3, "alpha": 0.5, "eps": 1e-3}),
    ("RMSprop", {"momentum": 0.9}),
    ("RMSprop", {"centered": True, "alpha": 0.9}),
    ("RMSprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"weight_decay": 0.1, "maximize": True}),
    ("RMSprop", {"centered": True, "clamp": True}),
    ("RMSprop", {"centered": True, "clamp": True, "momentum": 0.9, "weight_decay": 0.01}),
    ("Adam", {}),
    ("Adam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}),
    ("Adam", {"betas": (0.0, 0.1), "weight_decay": 0.01}),
    ("Adam", {"lr": 0.02, "amsgrad": True}),
    ("Adam", {"lr": 0.02, "amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}),
    ("AdamW", {"lr": 0.02, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.02, "weight_decay": 0.0}),
    ("Rprop", {}),
    ("Rprop", {"lr": 0.1, "etas": (0.3, 1.5), "maximize": True}),
    ("Rprop", {"lr": 0.1, "step_sizes": (0.01, 0.2)}),
    ("Rprop", {"lr": 100.0}),  # at once at the upper bound
    ("Adadelta", {}),
    ("Adadelta", {"lr": 0.5, "rho": 0.5, "eps": 1e-3}),
    ("Adadelta", {"weight_decay": 0.1, "maximize": True}),
    ("Adamax", {}),
    ("Adamax", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3}),
    ("Adamax", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "momentum_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "maximize": True}),
    ("NAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3}),
    ("RAdam", {"lr": 0.01, "betas": (0.9, 0.6)}),  # its variance is never tractable
    ("RAdam", {"weight_decay": 0.1, "maximize": True}),
    ("RAdam", {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("ASGD", {}),
    ("ASGD", {"lr": 0.1, "lambd": 0.1, "alpha": 0.5, "t0": 10.0}),
    ("ASGD", {"lr": 0.1, "t0": 0.0, "weight_decay": 0.1, "maximize": True}),
    ("Lion", {}),
    ("Lion", {"lr": 0.01, "betas": (0.5, 0.7)}),
    ("Lion", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("Adan", {}),
    ("Adan", {"lr": 0.01, "betas": (0.9, 0.5, 0.8), "eps": 1e-3}),
    ("Adan", {"lr": 0.02, "weight_decay": 0.1}),
    ("Adan", {"lr": 0.02, "weight_decay": 0.1, "no_prox": True, "maximize": True}),
    ("LAMB", {}),
    ("LAMB", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.0}),
    ("LAMB", {"lr": 0.02, "weight_decay": 0.1, "maximize": True}),
    ("LARS", {}),
    ("LARS", {"lr": 0.5, "momentum": 0.0, "trust_coefficient": 0.02, "eps": 0.1}),
    ("LARS", {"lr": 2.0, "trust_coefficient": 0.01, "weight_decay": 0.1, "maximize": True}),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.5, "beta2_decay": -0.5, "eps": (1e-4, 0.1)}),
    ("Adafactor", {"d": 2.0, "weight_decay": 0.1, "maximize": True}),
    ("Muon", {}),
    ("Muon", {"lr": 0.02, "nesterov": False, "weight_decay": 0.0}),
    ("Muon", {"lr": 0.02, "momentum": 0.5, "adjust_lr_fn": "match_rms_adamw"}),
    ("Muon", {"lr": 0.02, "adjust_lr_fn": "original", "ns_steps": 3, "eps": 1e-3}),
    ("Muon", {"lr": 0.02, "ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 9, "maximize": True}),
]  # fmt: skip
IDS = [f"{name}-{'-'.join(arguments) or 'defaults'}" for name, arguments in CASES]
REFERENCES = {name: getattr(reference, name.lower()) for name in optim.rules.RULES}
NAMES = list(REFERENCES)
# Where one bad element need not stay alone.
WHOLE_TENSOR = tuple(name for name, rule in optim.rules.RULES.items() if rule.whole)


def rows(wanted: Callable[[str, dict[str, Any]], bool]) -> Any:
    """Parametrizes by the cases that are wanted."""
    some = [(case, id_) for case, id_ in zip(CASES, IDS, strict=True) if wanted(*case)]
    return pytest.mark.parametrize(
        ("name", "arguments"), [c for c, _ in some], ids=[i for _, i in some]
    )


def torch_has(name: str, arguments: dict[str, Any]) -> bool:
    """PyTorch's Muon iterates in bfloat16: it has a test of its own."""
    return hasattr(torch.optim, name) and name != "Muon" and "clamp" not in arguments


every_case = rows(lambda name, arguments: True)
every_name = pytest.mark.parametrize("name", NAMES)


def shapes_for(name: str, vectors: Shapes, matrices: Shapes) -> Shapes:
    return matrices if name == "Muon" else vectors + matrices if name == "Adafactor" else vectors


def gradients(rng: np.random.Generator, shapes: Shapes, dtype: str) -> list[Array]:
    """Of one step: magnitudes over six decades, changing sign from step to step."""
    return [
        np.asarray(rng.standard_normal(s) * 10.0 ** rng.uniform(-4, 2, s), dtype) for s in shapes
    ]


@dataclass
class Laid:
    """An array that is a view of a larger one, which is GUARD around it."""

    GUARD = 12345.0

    around: Array
    where: tuple[Any, ...]
    axes: tuple[int, ...]

    @property
    def array(self) -> Array:
        return self.around[self.where].transpose(self.axes)

    def assert_nothing_else_is_written(self) -> None:
        rest = self.around.copy()
        rest[self.where] = self.GUARD
        assert_array_equal(rest, np.full_like(rest, self.GUARD))


def laid_out(rng: np.random.Generator, x: Array, flips: bool = True) -> Laid:
    """x, its axes in any order, and densely or with steps, gaps and (``flips``) backwards."""
    order = rng.permutation(x.ndim)
    gaps = rng.random() < 0.5
    where, around = [], []
    for n in (x.shape[axis] for axis in order):
        step, before, after = (
            (int(rng.integers(1, 4)), *rng.integers(0, 3, 2)) if gaps else (1, 0, 0)
        )
        if flips and gaps and rng.random() < 0.5 and n:
            last = before if before else None
            where.append(slice(before + (n - 1) * step, last - 1 if last else None, -step))
        else:
            where.append(slice(before, before + n * step, step))
        around.append(before + n * step + after)
    laid = Laid(np.full(around, Laid.GUARD, x.dtype), (*where, ...), tuple(np.argsort(order)))
    laid.array[...] = x
    return laid


@pytest.fixture
def float64_scalars() -> Iterator[None]:
    """PyTorch keeps NAdam's μ₁…μₜ and ASGD's η in its default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def torch_optimizer(name: str, params: list[Array], **arguments: Any) -> Any:
    tensors = [torch.from_numpy(p.copy()).requires_grad_() for p in params]
    return getattr(torch.optim, name)(tensors, **arguments)


def torch_step(theirs: Any, grads: list[Array]) -> list[Array]:
    tensors = theirs.param_groups[0]["params"]
    for p, g in zip(tensors, grads, strict=True):
        p.grad = torch.from_numpy(g.copy())
    theirs.step()
    return [p.detach().numpy() for p in tensors]


def pick(g: Array, _: Array) -> Array:
    """A gradient that does not depend on where p is."""
    return g


def reference_path(
    name: str, arguments: dict[str, Any], p: Array, grads: list[Array]
) -> list[Array]:
    return REFERENCES[name](p.copy(), [partial(pick, g) for g in grads], **arguments)


def states_of(optimizer: Any) -> dict[str, list[Array]]:
    """What its arrays hold, by name; of the parameters that have one of this name."""
    named: dict[str, list[Array]] = {}
    for entry in optimizer.state_dict()["state"]:
        for name, value in entry.items():
            if isinstance(value, np.ndarray):
                named.setdefault(name, []).append(value)
    return named


def assert_close(got: Array, wanted: Array, lr: float) -> None:
    """To within 1e-12 of the larger of p and a step."""
    error = np.abs(got - wanted) / np.maximum(np.abs(wanted), lr)
    assert np.max(error, initial=0.0) <= 1e-12


def whole_vectors(x: Array) -> Array:
    """The first multiple of 8 elements."""
    return x.ravel()[: x.size - x.size % 8]


ANY_SHAPES: Shapes = [(1,), (3,), (17, 4), (2, 3, 5), (), (1001,)]
MATRIX_SHAPES: Shapes = [(1, 7), (5, 1), (17, 4), (9, 30), (8, 8)]


@rows(torch_has)
@pytest.mark.usefixtures("float64_scalars")
def test_float64_is_pytorch_in_any_layout(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """After each of 100 steps, and the states after the last; nothing around is written."""
    start = [np.asarray(rng.standard_normal(s)) for s in ANY_SHAPES]
    laid = [laid_out(rng, p) for p in start]
    params = [x.array for x in laid]
    mine = getattr(optim, name)(params, **arguments)
    theirs = torch_optimizer(name, start, **arguments)
    for _ in range(STEPS):
        grads = gradients(rng, ANY_SHAPES, "float64")
        mine.step([laid_out(rng, g).array for g in grads])
        for got, wanted in zip(params, torch_step(theirs, grads), strict=True):
            assert_close(got, wanted, mine.lr)
    for x in laid:
        x.assert_nothing_else_is_written()
    assert mine.steps == STEPS
    for entry, p in zip(mine.state_dict()["state"], theirs.param_groups[0]["params"], strict=True):
        others = {k: v for k, v in theirs.state[p].items() if v is not None}
        assert set(entry) | {"step"} == set(others) | {"step"}
        for state in others:
            wanted = theirs.state[p][state].numpy()
            assert_allclose(entry[state], wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())


@every_case
def test_float64_is_the_reference_in_any_layout(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    shapes = shapes_for(name, [(50,)], MATRIX_SHAPES)
    start = [rng.standard_normal(s) for s in shapes]
    laid = [laid_out(rng, p) for p in start]
    params = [x.array for x in laid]
    mine = getattr(optim, name)(params, **arguments)
    grads = [gradients(rng, shapes, "float64") for _ in range(STEPS)]
    paths = [
        reference_path(name, arguments, p, list(g))
        for p, g in zip(start, zip(*grads, strict=True), strict=True)
    ]
    for step, row in enumerate(grads):
        mine.step([laid_out(rng, g).array for g in row])
        for p, path in zip(params, paths, strict=True):
            assert_close(p, path[step], mine.lr)
    for x in laid:
        x.assert_nothing_else_is_written()


@every_case
def test_float32_is_as_near_as_numpy(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """At most twice the error of the reference in float32, in the root mean square."""
    shape = (60, 40)
    start = rng.standard_normal(shape).astype(np.float32)
    grads = [gradients(rng, [shape], "float32")[0] for _ in range(20)]
    p = start.copy()
    mine = getattr(optim, name)(p, **arguments)
    for g in grads:
        mine.step(g)
    wide = [g.astype(np.float64) for g in grads]
    exact = reference_path(name, arguments, start.astype(np.float64), wide)[-1]
    plain = reference_path(name, arguments, start, grads)[-1]
    assert plain.dtype == p.dtype == np.float32
    rounding = EPS32 * reference.norm(exact)  # where NumPy's own happens to be exact
    assert reference.norm(p - exact) <= 2 * reference.norm(plain - exact) + rounding


@rows(lambda name, _: name in ("Adam", "AdamW"))
def test_float32_has_the_bits_of_pytorchs_fused_kernel(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """Parameters and states over 100 steps, but for the last size mod 8 elements of a tensor:

    PyTorch's loop over them rounds (1 − β₂)g² before it adds β₂v, its loop over vectors of 8 (on
    every machine with AVX2) the other way round.
    """
    shapes: Shapes = [(1,), (3,), (17,), (10, 100), (100_003,)]
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
    states = states_of(mine)
    assert len(states) == 3 if arguments.get("amsgrad") else 2
    for state, arrays in states.items():
        for got, p in zip(arrays, theirs.param_groups[0]["params"], strict=True):
            wanted = theirs.state[p][state].numpy()
            assert_array_equal(whole_vectors(got), whole_vectors(wanted))
            assert_allclose(got, wanted, rtol=STEPS * EPS32)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (48, 6)])
def test_muon_is_near_pytorchs_in_bfloat16(
    shape: tuple[int, int], nesterov: bool, rng: np.random.Generator
) -> None:
    """A step's direction to within 15 roundings of bfloat16, one for each of its products.

    The gradients are well-conditioned: a small singular value grows by 3.4 an iteration, and with
    it what was rounded before.
    """
    p = rng.standard_normal(shape)
    mine = optim.Muon(p, lr=1.0, weight_decay=0.0, nesterov=nesterov)
    theirs = torch_optimizer("Muon", [p], lr=1.0, weight_decay=0.0, nesterov=nesterov)
    before = [p.copy(), p.copy()]
    for _ in range(10):
        g = rng.standard_normal(shape)
        mine.step(g)
        (after,) = torch_step(theirs, [g])
        direction, wanted = before[0] - p, before[1] - after
        assert reference.norm(direction - wanted) <= 15 * 2.0**-9 * reference.norm(wanted)
        before = [p.copy(), after.copy()]


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.usefixtures("float64_scalars")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the reference's own
def test_what_is_not_finite_spreads_as_in_pytorch(
    name: str, arguments: dict[str, Any], bad: float, rng: np.random.Generator
) -> None:
    """A bad gradient at one place in step 2, and a bad parameter from the start."""
    shape = (8, 5) if name in WHOLE_TENSOR else (40,)
    start = rng.standard_normal(shape)
    grads = [rng.standard_normal(shape) for _ in range(4)]
    start.flat[7] = grads[1].flat[21] = bad
    if torch_has(name, arguments):
        theirs = torch_optimizer(name, [start], **arguments)
        path = [torch_step(theirs, [g])[0].copy() for g in grads]
    else:
        path = reference_path(name, arguments, start, grads)
    p = start.copy()
    mine = getattr(optim, name)(p, **arguments)
    for g, wanted in zip(grads, path, strict=True):
        mine.step(g)
        assert_array_equal(np.isnan(p), np.isnan(wanted))
        assert_allclose(p, wanted, rtol=1e-12, atol=1e-12 * mine.lr)
    assert np.isfinite(p).sum() >= 38 or name in WHOLE_TENSOR


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_at_every_setting(
    name: str,
    arguments: dict[str, Any],
    dtype: str,
    rng: np.random.Generator,
    on_every_setting: Setting,
) -> None:
    shapes = shapes_for(name, [(1,), (77,), (20_011,)], [(3, 5), (64, 40), (90, 200)])
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
def test_same_bits_in_any_layout(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """Where no sum over a tensor takes part; a sum's order may follow memory."""
    shapes = shapes_for(name, [(33, 7), (2, 3, 50)], [(33, 7)])
    start = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    grads = [gradients(rng, shapes, "float32") for _ in range(3)]
    results = []
    for dense in (True, False):
        params = [p.copy() if dense else laid_out(rng, p).array for p in start]
        optimizer = getattr(optim, name)(params, **arguments)
        for row in grads:
            optimizer.step([g if dense else laid_out(rng, g).array for g in row])
        results.append(params)
    for dense_p, p in zip(*results, strict=True):
        if name in WHOLE_TENSOR:
            assert_allclose(p, dense_p, rtol=1e-4, atol=1e-5)
        else:
            assert_array_equal(p, dense_p)


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


def shapes_of_states(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    """The shapes of a tensor's states, by PyTorch's names (for Adan and Lion, in their style)."""
    if name == "Adafactor":
        if len(shape) < 2:
            return {"variance": shape}
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}
    names = {
        "SGD": ["momentum_buffer"] if arguments.get("momentum") else [],
        "Adagrad": ["sum"],
        "RMSprop": ["square_avg"]
        + ["grad_avg"] * bool(arguments.get("centered"))
        + ["momentum_buffer"] * bool(arguments.get("momentum")),
        "Rprop": ["prev", "step_size"],
        "Adadelta": ["square_avg", "acc_delta"],
        "Adamax": ["exp_avg", "exp_inf"],
        "ASGD": ["ax"],
        "Lion": ["exp_avg"],
        "Adan": ["exp_avg", "exp_avg_sq", "exp_avg_diff", "previous_grad"],
        "LARS": ["momentum_buffer"],
        "Muon": ["momentum_buffer"],
    }.get(name, ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(arguments.get("amsgrad")))
    return dict.fromkeys(names, shape)


@every_case
def test_a_late_state_dict_continues_to_the_bit(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    shapes = shapes_for(name, [(3,), (11, 2)], [(11, 2), (2, 5)])
    params = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    optimizer = getattr(optim, name)(params, **arguments)
    for _ in range(60):
        optimizer.step(gradients(rng, shapes, "float32"))
    saved, other_params = optimizer.state_dict(), [p.copy() for p in params]
    kept = [
        {k: v.copy() for k, v in entry.items() if isinstance(v, np.ndarray)}
        for entry in saved["state"]
    ]
    other = getattr(optim, name)(other_params, **arguments)
    other.load_state_dict(saved)
    assert other.steps == 60
    for _ in range(20):
        grads = gradients(rng, shapes, "float32")
        optimizer.step(grads)
        other.step(grads)
    for p, q in zip(params, other_params, strict=True):
        assert_array_equal(p, q)
    for entry, before in zip(saved["state"], kept, strict=True):  # what was saved is a copy
        for state, a in before.items():
            assert_array_equal(a, entry[state])


@every_case
def test_memory_is_that_of_the_states(name: str, arguments: dict[str, Any]) -> None:
    shapes = shapes_for(name, [(3,), (4, 11, 2)], [(11, 2), (2, 5)])
    wanted: dict[str, int] = {}
    for shape in shapes:
        for state, size in shapes_of_states(name, arguments, shape).items():
            wanted[state] = wanted.get(state, 0) + 4 * math.prod(size)
    params = [np.ones(s, np.float32) for s in shapes]
    optimizer = getattr(optim, name)(params, **arguments)
    optimizer.step([np.ones(s, np.float32) for s in shapes])
    assert optimizer.memory() == wanted
    assert set(states_of(optimizer)) == set(wanted)


@every_case
def test_a_tensor_without_a_gradient_waits(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """None leaves it, its states and its step count alone: its path is that of its own gradients.

    One gets its first gradient in step 4, one misses steps 3 and 4.
    """
    shape = (6, 5)
    start = [rng.standard_normal(shape) for _ in range(3)]
    params = [p.copy() for p in start]
    optimizer = getattr(optim, name)(params, **arguments)
    given: list[list[Array]] = [[], [], []]
    for step in range(8):
        grads: list[Array | None] = list(gradients(rng, [shape] * 3, "float64"))
        if step < 3:
            grads[1] = None
        if step in (2, 3):
            grads[2] = None
        kept = [p.copy() for p in params]
        optimizer.step(grads)
        for i, g in enumerate(grads):
            if g is None:
                assert_array_equal(params[i], kept[i])
            else:
                given[i].append(g)
    assert optimizer.steps == 8
    for p, first, own in zip(params, start, given, strict=True):
        assert_close(p, reference_path(name, arguments, first, own)[-1], optimizer.lr)


@every_case
def test_gradients_are_only_read(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """Read-only ones do, writable ones stay, and one array may serve two parameters."""
    params = [np.ones((9, 2)), np.ones((9, 2))]
    optimizer = getattr(optim, name)(params, **arguments)
    for writable in (False, True):
        g = rng.standard_normal((9, 2))
        g.flags.writeable = writable
        kept = g.tobytes()
        optimizer.step([g, g])
        assert g.tobytes() == kept
        assert_array_equal(params[0], params[1])


@every_case
def test_groups_are_optimizers_side_by_side(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """Each with hyper-parameters of its own, the rest from the constructor; also when changed."""
    shape = (7, 6)
    start = [rng.standard_normal(shape) for _ in range(3)]
    together, apart = [p.copy() for p in start], [p.copy() for p in start]
    kind = getattr(optim, name)
    one = kind(
        [{"params": together[:2], "lr": 0.03}, {"params": together[2], **arguments}], lr=0.07
    )
    two = [kind(apart[:2], lr=0.03), kind(apart[2], **{"lr": 0.07, **arguments})]
    assert [len(g["params"]) for g in one.param_groups] == [2, 1]
    assert [g["lr"] for g in one.param_groups] == [0.03, arguments.get("lr", 0.07)]
    assert one.lr == 0.03
    for key, value in arguments.items():
        assert one.param_groups[1][key] == value
    for step in range(6):
        if step == 3:
            one.param_groups[1]["lr"] = two[1].lr = 0.005
        if step == 5:
            one.lr = two[0].lr = two[1].lr = 0.001
        grads = gradients(rng, [shape] * 3, "float64")
        one.step(grads)
        two[0].step(grads[:2])
        two[1].step(grads[2])
    assert_array_equal(together, apart)
    assert [g["lr"] for g in one.param_groups] == [0.001, 0.001]


@rows(lambda name, arguments: bool(arguments.get("weight_decay")))
@pytest.mark.parametrize("form", ["callable", "sequence"])
def test_a_mask_says_what_decays(
    name: str, arguments: dict[str, Any], form: str, rng: np.random.Generator
) -> None:
    shapes: Shapes = [(4, 3), (12, 1), (3, 4)]
    mask = [True, False, True]
    start = [rng.standard_normal(s) for s in shapes]
    masked, apart = [p.copy() for p in start], [p.copy() for p in start]
    kind = getattr(optim, name)
    given = mask if form == "sequence" else (lambda p: p.shape[1] > 1)
    one = kind(masked, **arguments, decay_mask=given)
    two = [
        kind(p, **{**arguments, **({} if decays else {"weight_decay": 0.0})})
        for p, decays in zip(apart, mask, strict=True)
    ]
    for _ in range(5):
        grads = gradients(rng, shapes, "float64")
        one.step(grads)
        for optimizer, g in zip(two, grads, strict=True):
            optimizer.step(g)
    for p, q in zip(masked, apart, strict=True):
        assert_array_equal(p, q)


@every_case
def test_maximize_is_the_gradient_negated(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    start = rng.standard_normal((4, 5))
    up, down = start.copy(), start.copy()
    arguments = {k: v for k, v in arguments.items() if k != "maximize"}
    ascent = getattr(optim, name)(up, **arguments, maximize=True)
    descent = getattr(optim, name)(down, **arguments)
    for _ in range(4):
        (g,) = gradients(rng, [(4, 5)], "float64")
        ascent.step(g)
        descent.step(-g)
    assert_array_equal(up, down)


@every_case
def test_update_leaves_its_inputs_alone(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """Read-only arrays as those of JAX: new parameters and states, the bits of `step`."""
    shapes = shapes_for(name, [(3,), (11, 2)], [(11, 2), (2, 5)])
    params = [rng.standard_normal(s) for s in shapes]
    mine = [p.copy() for p in params]
    optimizer = getattr(optim, name)(mine, **arguments)
    functional = getattr(optim, name)([p.copy() for p in params], **arguments)
    state = None
    for _ in range(4):
        grads = gradients(rng, shapes, "float64")
        for x in (*params, *grads):
            x.flags.writeable = False
        kept = [x.tobytes() for x in (*params, *grads)]
        new, state = functional.update(params, grads, state)
        assert [x.tobytes() for x in (*params, *grads)] == kept
        optimizer.step(grads)
        params = list(new)
        for p, q in zip(mine, params, strict=True):
            assert_array_equal(p, q)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_centered_rmsprop_on_constant_gradients_needs_the_clamp(
    dtype: str, momentum: float, rng: np.random.Generator
) -> None:
    """E[g²] − E[g]² is 0 in the end, and rounded below that in some elements: a NaN, as PyTorch."""
    g = rng.standard_normal(2000).astype(dtype)
    finite = []
    for clamp in (False, True):
        p = np.zeros(2000, dtype)
        optimizer = optim.RMSprop(p, alpha=0.5, centered=True, momentum=momentum, clamp=clamp)
        for _ in range(120):
            optimizer.step(g)
        finite.append(np.isfinite(p).all())
    assert finite == [False, True]


@pytest.mark.parametrize("size", [1e-38, 1e-42, 1e-44])
def test_lamb_moves_by_the_rate_however_small_the_gradients(size: float) -> None:
    """‖step‖ = lr ‖p‖, though ‖p‖ / ‖r‖ is beyond float32."""
    rng = np.random.default_rng(1)
    p = rng.standard_normal(1000).astype(np.float32)
    start = p.astype(np.float64)
    g = (size * np.sign(rng.standard_normal(1000))).astype(np.float32)
    optim.LAMB(p, lr=0.01, weight_decay=0.0).step(g)
    wanted = reference.lamb(start, [lambda _: g.astype(np.float64)], lr=0.01, weight_decay=0.0)[-1]
    # A subnormal mean has few digits: at 1e-44 the gradient is 7 times the smallest number.
    assert_allclose(p - start, wanted - start, rtol=2e-2 if size < 1e-43 else 1e-3, atol=1e-7)


def test_empty_arrays() -> None:
    p, nothing, none = np.ones(3), np.empty((0, 4)), np.empty(0)
    optim.SGD([nothing, p, none], lr=1.0).step([nothing, p.copy(), none])
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
    m = -rate * states_of(optimizer)["momentum_buffer"][0]
    wanted = -decay * rate * g[0] - rate * g[1]
    assert_allclose(m, wanted, atol=4 * np.finfo(np.float64).eps * rate * np.abs(g).max())


def past_a_bump(w: Array) -> Array:
    """∇ of −w/2 + 3/5 exp(−2(w − 3)²): downhill to the right, but for a rise before 3."""
    return np.asarray(-0.5 - 2.4 * (w - 3) * np.exp(-2 * (w - 3) ** 2))


def test_momentum_rolls_past_a_bump() -> None:
    """S0.18: with λ past it and on, without into the hollow before it for good."""
    ends = []
    for decay in (0.0, 0.9):
        p = np.zeros(1)
        optimizer = optim.SGD(p, lr=0.05, momentum=decay)
        for _ in range(600):
            optimizer.step(past_a_bump(p))
        ends.append(p[0])
    assert ends[0] < 3
    assert abs(past_a_bump(np.array(ends[0]))) < 1e-6
    assert ends[1] > 10


@pytest.mark.parametrize(
    ("name", "arguments", "grads", "wanted"),
    [
        # S1.11: the sums are 9, 25, 169.
        ("Adagrad", {"eps": 0.0}, [3.0, 4.0, 12.0], [1, 4 / 5, 12 / 13]),
        # S1.12: the averages are 16, 5.76 + 10.24 = 16, 5.76 + 3.24 = 9.
        ("RMSprop", {"alpha": 0.36, "eps": 0.0}, [5.0, 4.0, 2.25], [5 / 4, 1, 3 / 4]),
        # S1.14: corrected, 1²; (1 + 2·11²)/3 = 9²; (1 + 2·11² + 4·5²)/7 = 7².
        ("Adam", {"betas": (0.5, 0.5), "eps": 0.0}, [1.0, 11.0, 5.0], [1, 23 / 27, 43 / 49]),
        # S2.11: grow, turn (stay), neither, grow.
        ("Rprop", {}, [2.0, 5.0, -1.0, -3.0, -1.0], [1, 1.2, 0, -0.6, -0.72]),
    ],
)
def test_adaptive_steps_by_hand(
    name: str, arguments: dict[str, Any], grads: list[float], wanted: list[float]
) -> None:
    """With the rate 1, the steps that the formulas give on paper."""
    p = np.zeros(1)
    optimizer = getattr(optim, name)(p, lr=1.0, **arguments)
    path = [0.0]
    for g in grads:
        optimizer.step(np.array([g]))
        path.append(p[0])
    assert_allclose(-np.diff(path), wanted, rtol=1e-15, atol=1e-15)  # an ulp of p


def test_adagrad_is_the_rate_over_the_rms(rng: np.random.Generator) -> None:
    """S0.22: η/√(t + 1) over the root mean square of the gradients; the first step is η sign(g)."""
    p, rate = np.zeros(100), 0.3
    optimizer = optim.Adagrad(p, lr=rate, eps=0.0)
    grads = rng.standard_normal((20, 100)) * 10.0 ** rng.uniform(-6, 6, 100)
    wanted = np.zeros(100)
    for t, g in enumerate(grads):
        optimizer.step(g)
        wanted -= rate / np.sqrt(t + 1) * g / np.sqrt(np.mean(grads[: t + 1] ** 2, axis=0))
        assert_allclose(p, wanted, rtol=1e-13, atol=1e-13)
        if t == 0:
            assert_allclose(p, -rate * np.sign(g), rtol=1e-15)


def test_rmsprops_step_on_a_constant_gradient(rng: np.random.Generator) -> None:
    """S1.12: from η/√(1 − α) towards η, in the gradient's sign."""
    p, rate, alpha = np.zeros(100), 0.3, 0.9
    optimizer = optim.RMSprop(p, lr=rate, alpha=alpha, eps=0.0)
    g = rng.standard_normal(100) * 10.0 ** rng.uniform(-6, 6, 100)
    for t in range(1, 401):
        before = p.copy()
        optimizer.step(g)
        if t in (1, 10, 400):
            # The difference of two p carries the rounding of p.
            wanted = -rate * np.sign(g) / np.sqrt(1 - alpha**t)
            assert_allclose(p - before, wanted, rtol=1e-13, atol=1e-13)
    assert_allclose(p - before, -rate * np.sign(g), rtol=1e-12)


def test_rprop_sees_signs_only(rng: np.random.Generator) -> None:
    """S2.11: gradients a million times as large, of each element apart, leave the path as it is."""
    paths = []
    grads = rng.standard_normal((30, 50))
    for scale in (np.ones(50), 10.0 ** rng.integers(-6, 7, 50)):
        p = np.zeros(50)
        optimizer = optim.Rprop(p, lr=0.1)
        path = []
        for g in grads:
            optimizer.step(scale * g)
            path.append(p.copy())
        paths.append(path)
    assert_array_equal(paths[0], paths[1])


@pytest.mark.parametrize(("amsgrad", "end"), [(False, 1.0), (True, -0.994)])
def test_adam_may_go_to_the_worst_point(amsgrad: bool, end: float) -> None:
    """S1.15: Reddi, Kale & Kumar 2018, Theorem 1: a third of the losses is 3x, the others −x.

    On [−1, 1] the best point is −1; Adam ends at +1 from any start, AMSGrad nears −1.
    """
    p = np.array([-1.0, 0.0, 1.0])
    optimizer = optim.Adam(p, betas=(0.0, 0.1), amsgrad=amsgrad)
    for t in range(1, 3001):
        optimizer.lr = 0.5 * math.sqrt(0.9) / math.sqrt(t)
        optimizer.step(np.full(3, 3.0 if t % 3 == 1 else -1.0))
        np.clip(p, -1.0, 1.0, out=p)
    assert_allclose(p, end, atol=1e-4)


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
    assert states_of(optimizer)["exp_avg"][0] == np.float32(1e-3)


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
     "params: expected an array (NumPy or DLPack), got list"),
    ("integers", lambda: optim.Adam(np.arange(3)), TypeError,
     "params: expected dtype float32, float64, bfloat16 or float16, got int64"),
    ("complex", lambda: optim.Adam(np.zeros(3, complex)), TypeError,
     "params: expected dtype float32, float64, bfloat16 or float16, got complex128"),
    ("read-only", lambda: optim.Adam(read_only(F4)), ValueError,
     "params: expected a writable array, got a read-only one"),
    ("twice", lambda: optim.Adam([PAIR[0], PAIR[0]]), ValueError,
     "params: expected memory of its own, got an overlap with params"),
    ("overlapping", lambda: optim.SGD([PAIR, PAIR[1]]), ValueError,
     "params: expected memory of its own, got an overlap with params"),
    ("lr", lambda: optim.SGD(F4, lr=-1.0), ValueError, "lr: expected at least 0, got -1.0"),
    ("lr-nan", lambda: optim.Adam(F4, lr=math.nan), ValueError, "lr: expected at least 0, got nan"),
    ("lr-of-a-group", lambda: optim.SGD([{"params": [F4], "lr": -1.0}]), ValueError,
     "lr: expected at least 0, got -1.0"),
    ("momentum", lambda: optim.SGD(F4, momentum=-0.1), ValueError,
     "momentum: expected at least 0, got -0.1"),
    ("weight-decay", lambda: optim.AdamW(F4, weight_decay=-1.0), ValueError,
     "weight_decay: expected at least 0, got -1.0"),
    ("eps", lambda: optim.Adam(F4, eps=-1e-8), ValueError, "eps: expected at least 0, got -1e-08"),
    ("nesterov", lambda: optim.SGD(F4, nesterov=True), ValueError,
     "nesterov: expected momentum above 0 and dampening 0, got "),
    ("nesterov-dampening", lambda: optim.SGD(F4, momentum=0.9, dampening=0.1, nesterov=True),
     ValueError, "nesterov: expected momentum above 0 and dampening 0, got "),
    ("lr-decay", lambda: optim.Adagrad(F4, lr_decay=-1.0), ValueError,
     "lr_decay: expected at least 0, got -1.0"),
    ("accumulator", lambda: optim.Adagrad(F4, initial_accumulator_value=-1.0), ValueError,
     "initial_accumulator_value: expected at least 0, got -1.0"),
    ("alpha", lambda: optim.RMSprop(F4, alpha=-1.0), ValueError,
     "alpha: expected at least 0, got -1.0"),
    ("etas", lambda: optim.Rprop(F4, etas=(0.5, 0.9)), ValueError,
     "etas: expected 0 < etas[0] < 1 < etas[1], got (0.5, 0.9)"),
    ("etas-zero", lambda: optim.Rprop(F4, etas=(0.0, 1.2)), ValueError,
     "etas: expected 0 < etas[0] < 1 < etas[1], got (0.0, 1.2)"),
    ("rho", lambda: optim.Adadelta(F4, rho=1.5), ValueError,
     "rho: expected within [0, 1], got 1.5"),
    ("momentum-decay", lambda: optim.NAdam(F4, momentum_decay=-1.0), ValueError,
     "momentum_decay: expected at least 0, got -1.0"),
    ("betas-3", lambda: optim.Adan(F4, betas=(0.9, 0.9)), ValueError,
     "betas: expected 3 numbers within [0, 1), got (0.9, 0.9)"),
    ("beta2-decay", lambda: optim.Adafactor(F4, beta2_decay=0.5), ValueError,
     "beta2_decay: expected at most 0, got 0.5"),
    ("d", lambda: optim.Adafactor(F4, d=0.5), ValueError, "d: expected at least 1, got 0.5"),
    ("eps-2", lambda: optim.Adafactor(F4, eps=(None, -1.0)), ValueError,
     "eps: expected at least 0, got -1.0"),
    ("muon-vector", lambda: optim.Muon(F4), ValueError, "params: expected "),
    ("muon-lr", lambda: optim.Muon(PAIR, adjust_lr_fn="other"), ValueError,
     "adjust_lr_fn: expected "),
    ("muon-steps", lambda: optim.Muon(PAIR, ns_steps=100), ValueError, "ns_steps: expected "),
    ("muon-coefficients", lambda: optim.Muon(PAIR, ns_coefficients=(1.0, 2.0)), ValueError,
     "ns_coefficients: expected "),
    ("schedule", lambda: optim.schedule.exponential(-0.1), ValueError,
     "beta: expected at least 0, got -0.1"),
    *(
        (f"betas-{name}", partial(getattr(optim, name), F4, betas=(0.9, 1.0)), ValueError,
         "betas: expected 2 numbers within [0, 1), got (0.9, 1.0)")
        for name in ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Lion", "LAMB")
    ),
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
    ("list", lambda p: [F8, [1.0] * 4], TypeError,
     "grads: expected an array (NumPy or DLPack), got list"),
    ("dtype", lambda p: [F4, F8], TypeError, "grads: expected dtype float64, got float32"),
    ("later-dtype", lambda p: [F8, F4], TypeError, "grads: expected dtype float64, got float32"),
    ("shape", lambda p: [F8, np.ones((4, 1))], ValueError,
     "grads: expected shape (4,), got (4, 1)"),
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
    before, states = [p.copy() for p in params], states_of(optimizer)
    with pytest.raises(error, match="^" + re.escape(message)):
        optimizer.step(grads(params))
    assert_array_equal(params, before)
    assert optimizer.steps == 1
    assert_array_equal(list(states_of(optimizer).values()), list(states.values()))


GOOD = {"step": 3, "exp_avg": F8, "exp_avg_sq": F8}


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([{"step": 3, "exp_avg": F8}], "state: expected ['exp_avg', 'exp_avg_sq', 'step'], got "),
        ([{**GOOD, "exp_avg_sq": F8[:3]}], "exp_avg_sq: expected shape (4,), got (3,)"),
        ([{**GOOD, "step": 2.5}], "step: expected a whole number within [0, 2^63), got 2.5"),
        ([GOOD, GOOD], "state: expected 1 parameters in 1 groups, got 2 in 1"),
        ([], "state: expected 1 parameters in 1 groups, got 0 in 1"),
    ],
)
def test_load_state_dict_refuses(saved: list[dict[str, Any]], message: str) -> None:
    optimizer = optim.Adam(np.ones(4))
    groups = optimizer.state_dict()["param_groups"]
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optimizer.load_state_dict({"state": saved, "param_groups": groups})
    assert optimizer.steps == 0
    assert_array_equal(states_of(optimizer)["exp_avg"][0], np.zeros(4))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_states_are_told_where_their_parameter_has_them(
    axes: tuple[int, ...], rng: np.random.Generator
) -> None:
    p = rng.standard_normal((2, 3, 4)).transpose(axes)
    g = rng.standard_normal(p.shape)
    optimizer = optim.Adam(p, betas=(0.5, 0.75))
    optimizer.step(g)
    (entry,) = optimizer.state_dict()["state"]
    assert_allclose(entry["exp_avg"], 0.5 * g, rtol=1e-14)
    assert_allclose(entry["exp_avg_sq"], 0.25 * g * g, rtol=1e-14)


@pytest.mark.parametrize("bit", [0, 15])
def test_states_that_no_bfloat16_holds_are_refused(bit: int) -> None:
    optimizer = optim.Adam(np.ones(4, np.float32), state_dtype="bfloat16")
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = np.full(4, 1.0 + 2.0 ** (bit - 23), np.float32)
    with pytest.raises(ValueError, match="exp_avg: expected values of bfloat16"):
        optimizer.load_state_dict(saved)


def test_a_pickle_goes_on_to_the_bit() -> None:
    optimizer = optim.NAdam(np.ones((2, 3)), lr=0.1, ema_decay=0.5)
    optimizer.step(np.full((2, 3), 0.5))
    twin = pickle.loads(pickle.dumps(optimizer))
    for either in (optimizer, twin):
        either.step(np.arange(6.0).reshape(2, 3))
    for a, b in zip(contents_of(optimizer), contents_of(twin), strict=True):
        assert_array_equal(a, b)


def contents_of(optimizer: Any) -> list[Array]:
    """All arrays and numbers that a step changes."""
    (entry,) = optimizer.state_dict()["state"]
    return [optimizer.param_groups[0]["params"][0], *(entry[name] for name in sorted(entry))]


def test_an_absent_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda_module", lambda: None)
    _native._cuda.cache_clear()
    with pytest.raises(DeviceError, match=r"^device: this saddlepoint was built without CUDA"):
        Vector(3, device="cuda")


@pytest.mark.parametrize("params", [lambda p: p, lambda p: [p]], ids=["array", "list"])
@pytest.mark.parametrize("grads", [lambda g: g, lambda g: [g]], ids=["array", "list"])
def test_one_array_may_stand_for_a_list_of_one(
    params: Callable[[Array], Any], grads: Callable[[Array], Any]
) -> None:
    p = np.array([1.0, 2.0])
    optim.SGD(params(p), lr=0.5).step(grads(np.array([1.0, 1.0])))
    assert_array_equal(p, [0.5, 1.5])
    with pytest.raises(ValueError, match="grads: expected 2 arrays, got 1"):
        optim.SGD([p, p.copy()], lr=0.5).step(np.ones(2))
