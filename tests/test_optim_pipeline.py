"""What goes with a step in the same call, and every kind of memory it may work on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from reference import optim as reference
from saddlepoint import Vector, optim, vector
from test_optim import (
    ANY_SHAPES,
    MATRIX_SHAPES,
    REFERENCES,
    WHOLE_TENSOR,
    Array,
    Laid,
    Setting,
    Shapes,
    assert_close,
    every_case,
    every_name,
    gradients,
    laid_out,
    reference_path,
    rows,
    shapes_for,
    states_of,
    torch_optimizer,
)

# Low precision, by bits.


def bfloat16_nearest(x: Array) -> Array:
    """The bits of float32 to bfloat16, ties to even: add just under half, and half where odd."""
    u = x.view(np.uint32)
    near = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, near).astype(np.uint16)


def bfloat16_value(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def float16_nearest(x: Array) -> Array:
    with np.errstate(over="ignore"):
        half = x.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), 0x7E00, half).astype(np.uint16)


def float16_value(bits: Array) -> Array:
    return bits.view(np.float16).astype(np.float32)


@dataclass(frozen=True)
class Low:
    """A type of 16 bits: PyTorch's, its roundings, and the bits of its mantissa."""

    dtype: torch.dtype
    nearest: Callable[[Array], Array]
    value: Callable[[Array], Array]
    digits: int
    smallest: float  # the distance of subnormal numbers

    def tensor(self, bits: Array) -> torch.Tensor:
        return torch.from_numpy(bits.copy().view(np.int16)).view(self.dtype)

    def rounded(self, x: Array) -> torch.Tensor:
        return self.tensor(self.nearest(np.asarray(x, np.float32)))

    def values(self, x: torch.Tensor) -> Array:
        return self.value(bits_of(x))

    def half_spacing(self, x: Array) -> Array:
        _, exponent = np.frexp(x)  # |x| within [½, 1) 2^exponent
        return np.maximum(np.ldexp(1.0, exponent - 1 - self.digits), self.smallest) / 2


def bits_of(x: torch.Tensor) -> Array:
    return x.contiguous().view(torch.int16).numpy().view(np.uint16)


BF16 = Low(torch.bfloat16, bfloat16_nearest, bfloat16_value, 7, 2.0**-133)
F16 = Low(torch.float16, float16_nearest, float16_value, 10, 2.0**-24)

every_low = pytest.mark.parametrize("low", [BF16, F16], ids=["bfloat16", "float16"])


_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of NumPy's, one for one


def bytes_of(arrays: Any) -> list[bytes]:
    """Of arrays of any kind and dtype, to see whether anything was written."""
    return [
        x.contiguous().view(_WORDS[x.element_size()]).numpy().tobytes()
        if isinstance(x, torch.Tensor)
        else vector.gather(x).tobytes()
        for x in arrays
    ]


def assert_same_state(one: Any, two: Any) -> None:
    mine, other = states_of(one), states_of(two)
    assert set(mine) == set(other)
    for name, arrays in mine.items():
        assert bytes_of(arrays) == bytes_of(other[name]), name


# The norm and the clip.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_grad_norm_is_the_norm_of_all(dtype: str, size: float, rng: np.random.Generator) -> None:
    """Summed in float64, also where float32 squares would leave its range; None counts nothing."""
    shapes: Shapes = [(70_001,), (17, 4), (0, 3), (), *[(2, 3, 5)] * 700, (9,)]
    params = [np.zeros(s, dtype) for s in shapes]
    grads: list[Any] = [np.asarray(size * rng.standard_normal(s), dtype) for s in shapes]
    grads[-1] = None
    optimizer = optim.SGD(params, max_norm=1.0)
    optimizer.step([g if g is None else laid_out(rng, g).array for g in grads])
    wanted = size * np.linalg.norm(
        np.concatenate([np.ravel(g).astype(np.float64) / size for g in grads if g is not None])
    )
    assert_allclose(optimizer.grad_norm, wanted, rtol=1e-13)
    assert isinstance(optimizer.grad_norm, float)
    optimizer.step([None] * len(shapes))
    assert optimizer.grad_norm == 0.0


@every_name
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_max_norm_is_pytorchs_clip(name: str, max_norm: float, rng: np.random.Generator) -> None:
    """clip_grad_norm_ and a step in float64; where PyTorch lacks the rule, the reference's step."""
    shapes = MATRIX_SHAPES if name == "Muon" else ANY_SHAPES
    start = [np.asarray(rng.standard_normal(s)) for s in shapes]
    params = [p.copy() for p in start]
    mine = getattr(optim, name)(params, max_norm=max_norm)
    clipped: list[list[Array]] = []
    for _ in range(20):
        grads = gradients(rng, shapes, "float64")
        tensors = [torch.zeros(s, dtype=torch.float64) for s in shapes]
        for t, g in zip(tensors, grads, strict=True):
            t.grad = torch.from_numpy(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
        clipped.append([t.grad.numpy() for t in tensors])
        mine.step(grads)
        assert_allclose(mine.grad_norm, float(norm), rtol=1e-13)
        assert not mine.skipped
    for p, first, own in zip(params, start, zip(*clipped, strict=True), strict=True):
        assert_close(p, reference_path(name, {}, first, list(own))[-1], mine.lr)


@every_name
def test_a_norm_below_the_bound_changes_no_bit(name: str, rng: np.random.Generator) -> None:
    shapes = shapes_for(name, [(33,)], [(7, 5)])
    start = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    results = []
    for options in ({}, {"max_norm": 1e9}, {"check_finite": True}):
        params = [p.copy() for p in start]
        optimizer = getattr(optim, name)(params, **options)
        for seed in range(3):
            optimizer.step(gradients(np.random.default_rng(seed), shapes, "float32"))
        results.append(bytes_of(params))
    assert results[1] == results[2] == results[0]


def test_a_norm_that_is_not_finite_clips_as_pytorch() -> None:
    """Without a check: an infinite norm makes finite gradients 0, a NaN reaches everything."""
    for bad in (np.inf, np.nan):
        g = np.array([1.0, bad, 2.0])
        p = np.zeros(3)
        optimizer = optim.SGD(p, lr=1.0, max_norm=1.0)
        optimizer.step(g)
        t = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        t.grad = torch.from_numpy(g.copy())
        torch.nn.utils.clip_grad_norm_([t], 1.0)
        torch.optim.SGD([t], lr=1.0).step()
        assert_array_equal(p, t.detach().numpy())
        assert_array_equal(optimizer.grad_norm, bad)
        assert not optimizer.skipped


def test_the_norm_has_the_same_bits_at_every_setting(
    rng: np.random.Generator, on_every_setting: Setting
) -> None:
    shapes: Shapes = [(100_003,), (3,), (200, 77)]
    grads = gradients(rng, shapes, "float32")

    def run() -> float:
        optimizer = optim.SGD([np.zeros(s, np.float32) for s in shapes], max_norm=1.0)
        optimizer.step(grads)
        return float(optimizer.grad_norm)

    assert len(set(on_every_setting(run).values())) == 1


def test_the_bound_may_change_between_steps() -> None:
    """A group's entry, as every hyper-parameter; the norm is that of all groups together."""
    p, q = np.zeros(1), np.zeros(1)
    optimizer = optim.SGD([{"params": [p]}, {"params": [q]}], lr=1.0, max_norm=2.5)
    optimizer.step([np.array([3.0]), np.array([4.0])])
    assert optimizer.grad_norm == 5.0
    assert_allclose([p[0], q[0]], [-1.5, -2.0], rtol=1e-6)  # the 1e-6 beside the norm


# The loss scale and the check.


@every_name
@pytest.mark.parametrize("scale", [2.0**16, 3.0])
def test_the_loss_scale_is_divided_out(name: str, scale: float, rng: np.random.Generator) -> None:
    """A power of two leaves the bits as they are; `.grad_norm` is of unscaled gradients."""
    shapes = shapes_for(name, [(33,)], [(7, 5)])
    start = [rng.standard_normal(s) for s in shapes]
    plain, scaled = [p.copy() for p in start], [p.copy() for p in start]
    one = getattr(optim, name)(plain, max_norm=1.0)
    two = getattr(optim, name)(scaled, max_norm=1.0)
    for _ in range(5):
        grads = gradients(rng, shapes, "float64")
        one.step(grads)
        two.step([g * scale for g in grads], loss_scale=scale)
        assert_allclose(two.grad_norm, one.grad_norm, rtol=1e-14)
        for p, q in zip(plain, scaled, strict=True):
            if scale == 3.0:
                assert_close(q, p, one.lr)
            else:
                assert_array_equal(q, p)


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_checked_step_is_skipped_whole(
    name: str, arguments: dict[str, Any], bad: float, rng: np.random.Generator
) -> None:
    """Parameters, states, averages, copies and step counts stay; the run goes on as without it."""
    shapes = shapes_for(name, [(5,), (77,)], [(5, 3), (4, 9)])
    start = [rng.standard_normal(s).astype(np.float32) for s in shapes]

    def build() -> tuple[list[Array], list[torch.Tensor], Any]:
        params = [p.copy() for p in start]
        copies = [torch.zeros(s, dtype=torch.bfloat16) for s in shapes]
        options = {"check_finite": True, "ema_decay": 0.9, "copies": copies}
        return params, copies, getattr(optim, name)(params, **arguments, **options)

    params, copies, optimizer = build()
    others, other_copies, undisturbed = build()
    for step in range(6):
        grads = gradients(rng, shapes, "float32")
        if step in (0, 3, 4):
            where = [g.copy() for g in grads]
            where[step % len(shapes)].flat[-1] = bad
            before = bytes_of([*params, *copies, *optimizer.ema])
            steps = optimizer.steps
            optimizer.step(where)
            assert optimizer.skipped
            assert not math.isfinite(optimizer.grad_norm)
            assert optimizer.steps == steps
            assert bytes_of([*params, *copies, *optimizer.ema]) == before
            assert_same_state(optimizer, undisturbed)
        else:
            optimizer.step(grads)
            undisturbed.step(grads)
            assert not optimizer.skipped
    assert optimizer.steps == undisturbed.steps == 3
    assert bytes_of([*params, *copies, *optimizer.ema]) == bytes_of(
        [*others, *other_copies, *undisturbed.ema]
    )


def test_large_finite_gradients_are_not_skipped() -> None:
    """Squares of float32 never overflow; a norm that overflows float64 counts as not finite."""
    p = np.zeros(4, np.float32)
    optimizer = optim.SGD(p, lr=1e-38, check_finite=True)
    optimizer.step(np.full(4, 3e38, np.float32))
    assert not optimizer.skipped
    assert_allclose(p, np.full(4, -3.0), rtol=1e-6)
    large = np.zeros(4)
    optimizer = optim.SGD(large, lr=1e-300, check_finite=True)
    optimizer.step(np.full(4, 1e300))
    assert optimizer.skipped
    assert_array_equal(large, np.zeros(4))


# Averages, zeroed gradients, copies.


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ema_follows_the_parameters(decay: float, dtype: str, rng: np.random.Generator) -> None:
    shapes: Shapes = [(33,), (4, 5)]
    start = [rng.standard_normal(s).astype(dtype) for s in shapes]
    laid = [laid_out(rng, p) for p in start]
    params = [x.array for x in laid]
    optimizer = optim.Adam(params, lr=0.1, ema_decay=decay)
    for average, p in zip(optimizer.ema, params, strict=True):
        assert_array_equal(vector.gather(average), p)
    wanted = [p.astype(np.float64) for p in params]
    for _ in range(30):
        optimizer.step(gradients(rng, shapes, dtype))
        wanted = [e + (1 - decay) * (p - e) for e, p in zip(wanted, params, strict=True)]
    for average, e in zip(optimizer.ema, wanted, strict=True):
        # Two roundings a step of a number of the size of p.
        tolerance = 60 * float(np.finfo(dtype).eps) * np.abs(e).max()
        assert_allclose(vector.gather(average), e, atol=tolerance, rtol=0)


def test_averages_and_copies_of_a_tensor_without_a_gradient() -> None:
    """As in passes of their own: its average draws nearer, its copy is there from the start."""
    p, q = np.zeros(1), np.ones(1)
    copies = [np.full(1, np.nan, np.float32) for _ in range(2)]
    optimizer = optim.SGD([p, q], lr=1.0, ema_decay=0.5, copies=copies)
    optimizer.step([np.ones(1), None])
    assert [float(c[0]) for c in copies] == [-1.0, 1.0]
    assert [float(vector.gather(e)[0]) for e in optimizer.ema] == [-0.5, 1.0]
    optimizer.step([None, np.ones(1)])
    assert [float(c[0]) for c in copies] == [-1.0, 0.0]
    assert [float(vector.gather(e)[0]) for e in optimizer.ema] == [-0.75, 0.5]


@every_name
def test_zero_grads_zeroes_what_it_was_given(name: str, rng: np.random.Generator) -> None:
    """In any layout, nothing beside it, and the step is that of the gradient it was."""
    shapes = shapes_for(name, [(5,), (8, 3)], [(8, 3), (4, 9)])
    start = [rng.standard_normal(s) for s in shapes]
    plain, params = [p.copy() for p in start], [p.copy() for p in start]
    one = getattr(optim, name)(plain)
    two = getattr(optim, name)(params, zero_grads=True)
    for _ in range(3):
        grads = gradients(rng, shapes, "float64")
        laid = [laid_out(rng, g) for g in grads]
        one.step(grads)
        two.step([x.array for x in laid])
        for x, p, q in zip(laid, plain, params, strict=True):
            assert_array_equal(x.array, np.zeros_like(p))
            x.assert_nothing_else_is_written()
            if name in WHOLE_TENSOR:
                assert_close(q, p, one.lr)
            else:
                assert_array_equal(q, p)


def test_zero_grads_of_a_skipped_step() -> None:
    """They are zeroed too: what the next backward pass adds must not meet a NaN."""
    g = np.array([1.0, np.nan])
    p = np.ones(2)
    optimizer = optim.SGD(p, check_finite=True, zero_grads=True)
    optimizer.step(g)
    assert optimizer.skipped
    assert_array_equal(p, np.ones(2))
    assert_array_equal(g, np.zeros(2))


# Zeros, subnormal numbers, the ends of every range, infinities, NaNs, and ties of either type.
SPECIAL_BITS = [
    0x0, 0x80000000, 0x1, 0x8000, 0x7FFF, 0x8001, 0x18000, 0x807FFFFF, 0x7F7FFFFF, 0x7F7F7FFF,
    0x7F7F8000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0x3F808000, 0x3F818000,
    0x3F808001, 0x3F807FFF, 0xBF818000, 0x477FE000, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001,
    0x32FFFFFF, 0x387FE000, 0x387FF000, 0x33C00000, 0x3F801000, 0x3F803000, 0x3F803001,
]  # fmt: skip
SPECIAL = np.array(SPECIAL_BITS, np.uint32).view(np.float32)


@every_low
def test_copies_are_the_parameters_rounded(low: Low, rng: np.random.Generator) -> None:
    """Any bits of float32, to the nearest, ties to even."""
    some = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = (some[:20_000] & 0xFFFF0000) | 0x8000
    half_ties = (some[20_000:40_000] & 0xFFFFE000) | 0x1000
    p = np.concatenate([SPECIAL, *(x.view(np.float32) for x in (some, ties, half_ties))])
    copies: list[Any] = [torch.zeros(p.size, dtype=low.dtype), None]
    optimizer = optim.SGD([p, p[:3].copy()], lr=0.0, copies=copies)
    optimizer.step([np.zeros_like(p), np.zeros(3, np.float32)])
    got, wanted = bits_of(copies[0]), low.nearest(p)
    good = ~np.isnan(p)
    assert_array_equal(got[good], wanted[good])
    assert np.isnan(low.value(got[~good])).all()


@every_low
def test_every_low_number_is_read_exactly(low: Low) -> None:
    """p = 0 − g for every finite g of 16 bits."""
    g = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    g = g[np.isfinite(low.value(g))]
    p = np.zeros(g.size, np.float32)
    optim.SGD(p, lr=1.0).step(low.tensor(g))
    assert_array_equal(p, -low.value(g))


def test_copies_of_any_layout_and_wider_parameters(rng: np.random.Generator) -> None:
    """float64 to float32; a transposed copy; the parameter at hand is the one after the step."""
    p = rng.standard_normal((6, 5))
    laid = laid_out(rng, np.zeros((6, 5), np.float32))
    optimizer = optim.Adam(p, lr=0.1, copies=[laid.array])
    for _ in range(3):
        optimizer.step(rng.standard_normal((6, 5)))
        assert_array_equal(laid.array, p.astype(np.float32))
    laid.assert_nothing_else_is_written()


@every_name
def test_all_together_is_each_after_the_other(name: str, rng: np.random.Generator) -> None:
    """Unscale, check, clip, step, average, copy and zero: the bits of passes of their own.

    The scale is a power of two, so that dividing by it and clipping round once either way.
    """
    shapes = shapes_for(name, [(5,), (8, 3), (1003,)], [(8, 3), (4, 9)])
    start = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    params, plain = [p.copy() for p in start], [p.copy() for p in start]
    copies = [torch.zeros(s, dtype=torch.bfloat16) for s in shapes]
    together = getattr(optim, name)(
        params, max_norm=1.0, check_finite=True, ema_decay=0.9, zero_grads=True, copies=copies
    )
    step = getattr(optim, name)(plain, ema_decay=0.9)
    for _ in range(10):
        grads = gradients(rng, shapes, "float32")
        given = [g * np.float32(1024.0) for g in grads]
        together.step(given, loss_scale=1024.0)
        coefficient = np.float32(min(1.0, 1.0 / (together.grad_norm + 1e-6)))
        step.step([g * coefficient for g in grads])
        assert bytes_of(params) == bytes_of(plain)
        assert bytes_of(together.ema) == bytes_of(step.ema)
        for c, p, g in zip(copies, plain, given, strict=True):
            assert_array_equal(bits_of(c), bfloat16_nearest(p))
            assert_array_equal(g, np.zeros_like(g))
    assert_same_state(together, step)


# Low precision.

NO_SUCH_STATES = ("Adafactor", "bfloat16")


@rows(lambda name, _: name in ("Adam", "AdamW"))
@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
@pytest.mark.parametrize(
    ("of_p", "of_g"), [(BF16, BF16), (F16, F16), (None, BF16), (BF16, None)],
    ids=["bfloat16", "float16", "float32-bfloat16", "bfloat16-float32"],
)  # fmt: skip
def test_low_precision_is_float32_rounded_at_the_end(
    name: str,
    arguments: dict[str, Any],
    state_dtype: str | None,
    of_p: Low | None,
    of_g: Low | None,
    rng: np.random.Generator,
) -> None:
    """PyTorch's fused kernel in float32 on the same numbers, its results rounded: the bits."""
    shape = (8, 13)

    def stored(x: Array, low: Low | None) -> Any:
        return torch.from_numpy(x.copy()) if low is None else low.rounded(x)

    def seen(x: torch.Tensor, low: Low | None) -> Array:
        return x.numpy().copy() if low is None else low.values(x)

    p = stored(rng.standard_normal(shape).astype(np.float32), of_p)
    mine = getattr(optim, name)(p, **arguments, state_dtype=state_dtype)
    theirs = torch_optimizer(name, [seen(p, of_p)], fused=True, **arguments)
    (parameter,) = theirs.param_groups[0]["params"]
    states = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * bool(arguments.get("amsgrad"))
    for _ in range(30):
        g = stored(gradients(rng, [shape], "float32")[0], of_g)
        mine.step(g)
        parameter.grad = torch.from_numpy(seen(g, of_g))
        theirs.step()
        with torch.no_grad():
            wanted = stored(parameter.numpy(), of_p)
            parameter.copy_(torch.from_numpy(seen(wanted, of_p)))
            if state_dtype:
                for state in states:
                    low = BF16.values(BF16.rounded(theirs.state[parameter][state].numpy()))
                    theirs.state[parameter][state].copy_(torch.from_numpy(low))
        assert bytes_of([p]) == bytes_of([wanted])
    width = 2 if state_dtype else 4
    assert mine.memory() == dict.fromkeys(states, width * math.prod(shape))


@every_case
@every_low
def test_low_precision_lands_on_the_nearest(
    name: str, arguments: dict[str, Any], low: Low, rng: np.random.Generator
) -> None:
    """A step of the reference from the same p and the same past gradients is half a spacing away.

    Beside the rounding stands float32's own error: below 1e-4 of a step, and 1e-6 of p.
    """
    shape = (8, 6)
    if name == "Adafactor":  # its default eps is the parameter's type's
        arguments = {"eps": (1e-6, 1e-3), **arguments}
    start = low.rounded(rng.standard_normal(shape).astype(np.float32))
    p = start.clone()
    grads = [low.rounded(gradients(rng, [shape], "float32")[0]) for _ in range(10)]
    optimizer = getattr(optim, name)(p, **arguments)
    stood = [low.values(start).astype(np.float64)]
    for g in grads:
        optimizer.step(g)
        stood.append(low.values(p).astype(np.float64))

    landed: list[Array] = []

    def from_where_it_stood(g: Array, before: Array, here: Array) -> Array:
        landed.append(here.copy())
        here[...] = before
        return g

    fs = [
        partial(from_where_it_stood, low.values(g).astype(np.float64), before)
        for g, before in zip(grads, stood[:-1], strict=True)
    ]
    end = REFERENCES[name](stood[0].copy(), fs, **arguments)[-1]
    for before, wanted, got in zip(stood[:-1], [*landed[1:], end], stood[1:], strict=True):
        slack = 1e-4 * np.abs(wanted - before) + 1e-6 * np.abs(wanted)
        assert np.all(np.abs(got - wanted) <= low.half_spacing(wanted) + slack)


@pytest.mark.parametrize(
    ("name", "state_dtype"),
    # Adafactor's, of a row's and a column's size, stay float32: see REFUSED.
    [(n, d) for n in REFERENCES for d in ("float32", "bfloat16") if (n, d) != NO_SUCH_STATES],
)
def test_the_type_of_the_states(name: str, state_dtype: str, rng: np.random.Generator) -> None:
    """Half the bytes; float32 parameters, whose path stays near that with float32 states."""
    shape = (8, 6)
    start = rng.standard_normal(shape).astype(np.float32)
    exact, p = start.copy(), start.copy()
    one = getattr(optim, name)(exact)
    two = getattr(optim, name)(p, state_dtype=state_dtype)
    for _ in range(5):
        (g,) = gradients(rng, [shape], "float32")
        one.step(g)
        two.step(g)
    half = state_dtype == "bfloat16"
    assert two.memory() == {k: v // (2 if half else 1) for k, v in one.memory().items()}
    if half:
        # Each step to within the roundings of its states, 2^-8 each, of what it is.
        moved = reference.norm(exact - start)
        assert reference.norm(p - exact) <= 0.1 * moved
    else:
        assert_array_equal(p, exact)


@every_case
def test_master_is_float32_to_the_bit(
    name: str, arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    """bfloat16 and 16 bits more hold a float32 run; the parameter is the nearest to it."""
    if name == "Adafactor":  # its default eps is the parameter's type's
        arguments = {"eps": (1e-6, 1e-3), **arguments}
    shapes = shapes_for(name, [(5,), (8, 3), (301,)], [(8, 3), (4, 9)])
    p16 = [BF16.rounded(rng.standard_normal(s).astype(np.float32)) for s in shapes]
    p32 = [BF16.values(p) for p in p16]
    mine = getattr(optim, name)(p16, **arguments, master=True)
    plain = getattr(optim, name)(p32, **arguments)
    for _ in range(40):
        grads = [BF16.rounded(g) for g in gradients(rng, shapes, "float32")]
        mine.step(grads)
        plain.step([BF16.values(g) for g in grads])
        for low, exact in zip(p16, p32, strict=True):
            tie = (exact.view(np.uint32) & 0xFFFF) == 0x8000  # either neighbour is the nearest
            got = bits_of(low)
            assert_array_equal(got[~tie], bfloat16_nearest(exact)[~tie])
            assert np.isin(got[tie] - (exact.view(np.uint32)[tie] >> 16), (0, 1)).all()
    extra = set(mine.memory()) - set(plain.memory())
    assert sum(mine.memory()[k] for k in extra) == 2 * sum(p.size for p in p32)
    assert {k: v for k, v in mine.memory().items() if k not in extra} == plain.memory()


def test_a_master_keeps_steps_below_a_rounding() -> None:
    """1000 steps of 1e-5 from 1: bfloat16 alone does not move, the master arrives."""
    ends = []
    for master in (False, True):
        p = torch.ones(3, dtype=torch.bfloat16)
        optimizer = optim.SGD(p, lr=1e-5, master=master)
        for _ in range(1000):
            optimizer.step(torch.ones(3, dtype=torch.bfloat16))
        ends.append(p.float().tolist())
    assert ends[0] == [1.0] * 3
    assert ends[1] == [BF16.value(bfloat16_nearest(np.full(1, 0.99, np.float32))).item()] * 3


@every_case
@pytest.mark.parametrize(
    "options",
    [{"master": True}, {"ema_decay": 0.9}, {"stochastic_rounding": 3, "state_dtype": "bfloat16"}],
    ids=["master", "ema", "stochastic"],
)
def test_a_late_state_dict_of_low_precision_continues_to_the_bit(
    name: str, arguments: dict[str, Any], options: dict[str, Any], rng: np.random.Generator
) -> None:
    options = {k: v for k, v in options.items() if (name, v) != NO_SUCH_STATES}
    shapes = shapes_for(name, [(3,), (11, 2)], [(11, 2), (2, 5)])
    params = [BF16.rounded(rng.standard_normal(s).astype(np.float32)) for s in shapes]
    optimizer = getattr(optim, name)(params, **arguments, **options)
    for _ in range(20):
        optimizer.step([BF16.rounded(g) for g in gradients(rng, shapes, "float32")])
    others = [p.clone() for p in params]
    other = getattr(optim, name)(others, **arguments, **options)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(20):
        grads = [BF16.rounded(g) for g in gradients(rng, shapes, "float32")]
        optimizer.step(grads)
        other.step(grads)
        assert bytes_of(params) == bytes_of(others)
    assert_same_state(optimizer, other)
    if "ema_decay" in options:
        assert bytes_of(optimizer.ema) == bytes_of(other.ema)


# Stochastic rounding.


@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.5, 0.9])
@pytest.mark.parametrize("toward", [1, -1])
@pytest.mark.parametrize("start", [1.0, -1.5, 2.0**-14, 0.0])
@every_low
def test_stochastic_rounding_keeps_the_mean(
    low: Low, start: float, toward: int, fraction: float
) -> None:
    """To one of the two neighbours, the further one as often as the step is a part of the way."""
    n = 2**18
    p = low.rounded(np.full(n, start, np.float32))
    step = 2.0 ** (-12 if low is BF16 else -16)  # within the spacing at ±1 and beyond, else across
    g = low.rounded(np.full(n, -toward, np.float32))
    here = np.float32(start) + np.float32(toward * fraction * step)
    optim.SGD(p, lr=fraction * step, stochastic_rounding=1).step(g)
    got = low.values(p).astype(np.float64)
    near = float(low.value(low.nearest(np.full(1, here)))[0])
    values = np.unique(got)
    spread = 2 * float(low.half_spacing(np.full(1, here, np.float64))[0])
    assert np.all(np.abs(values - here) < spread)
    assert values.size <= 2
    if near == here:
        assert_array_equal(values, [near])
    else:
        # A number of 16 or 13 random bits is short of the odds by less than its last.
        below = 2.0**-13 * spread
        assert abs(got.mean() - here) <= 5 * got.std() / math.sqrt(n) + below
        assert values.size == 2


def test_stochastic_rounding_of_states_keeps_their_mean() -> None:
    """v = 0.999 v + 0.001 g², which stands still when rounded to the nearest bfloat16."""
    n, steps = 2**16, 400
    means = []
    for seed in (None, 5):
        p = torch.zeros(n, dtype=torch.bfloat16)
        optimizer = optim.Adam(p, lr=0.0, state_dtype="bfloat16", stochastic_rounding=seed)
        for _ in range(steps):
            optimizer.step(torch.ones(n, dtype=torch.bfloat16))
        v = states_of(optimizer)["exp_avg_sq"][0].astype(np.float64)
        means.append((float(v.mean()), 5 * float(v.std()) / math.sqrt(n)))
    wanted = 1 - 0.999**steps
    assert abs(means[0][0] - wanted) > 0.05
    assert abs(means[1][0] - wanted) <= means[1][1] + 1e-5


def test_stochastic_rounding_differs_by_seed_step_tensor_and_element() -> None:
    """Half of the bits agree by chance, to within 5σ."""
    n = 2**16
    half_up = 2.0**-8

    def run(seed: int, steps: int = 1) -> list[Array]:
        params = [torch.ones(n, dtype=torch.bfloat16) for _ in range(2)]
        optimizer = optim.SGD(params, lr=half_up, stochastic_rounding=seed)
        for _ in range(steps):
            for p in params:
                p.fill_(1.0)
            optimizer.step([torch.full((n,), -1.0, dtype=torch.bfloat16)] * 2)
        return [bits_of(p) for p in params]

    def agree(a: Array, b: Array) -> float:
        return abs(float(np.mean(a == b)) - 0.5)

    one, chance = run(1), 5 * 0.5 / math.sqrt(n)
    assert bytes(one[0]) == bytes(run(1)[0])
    assert agree(one[0], run(2)[0]) <= chance
    assert agree(one[0], run(1, steps=2)[0]) <= chance
    assert agree(one[0], one[1]) <= chance
    for apart in (1, 2, 4, 8, 16, 64, 1024):
        assert agree(one[0][apart:], one[0][:-apart]) <= chance * 1.01
    assert agree(one[0], np.full(n, 0x3F80)) <= chance


@every_name
@every_low
def test_stochastic_rounding_has_the_same_bits_at_every_setting_and_layout(
    name: str, low: Low, rng: np.random.Generator, on_every_setting: Setting
) -> None:
    """A draw belongs to the logical element, wherever it lies."""
    shapes = shapes_for(name, [(77,), (30, 201), (0,)], [(7, 11), (30, 20)])
    start = [low.rounded(rng.standard_normal(s).astype(np.float32)) for s in shapes]
    grads = [[low.rounded(g) for g in gradients(rng, shapes, "float32")] for _ in range(3)]

    def run(transposed: bool = False) -> list[bytes]:
        def lay(x: torch.Tensor) -> torch.Tensor:
            return x.clone().T.contiguous().T if transposed and x.ndim == 2 else x.clone()

        params = [lay(p) for p in start]
        state_dtype = "float32" if (name, "bfloat16") == NO_SUCH_STATES else "bfloat16"
        options = {"state_dtype": state_dtype, "stochastic_rounding": 7}
        optimizer = getattr(optim, name)(params, **options)
        for row in grads:
            optimizer.step([lay(g) for g in row])
        return bytes_of(params)

    results = on_every_setting(run)
    first = results["base, 1 threads"]
    assert [setting for setting, got in results.items() if got != first] == []
    if name not in WHOLE_TENSOR:  # where a sum's order follows memory
        assert run(transposed=True) == first


@every_low
def test_stochastic_rounding_lets_through_what_is_not_finite(low: Low) -> None:
    p = low.rounded(np.array([np.inf, -np.inf, np.nan, 1.0, 1.0], np.float32))
    g = low.rounded(np.array([0.0, 0.0, 0.0, np.inf, np.nan], np.float32))
    optim.SGD(p, lr=1.0, stochastic_rounding=0).step(g)
    assert_array_equal(low.values(p), [np.inf, -np.inf, np.nan, -np.inf, np.nan])


# Sizes and places.


@every_name
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_any_size_at_any_address(name: str, dtype: str, rng: np.random.Generator) -> None:
    """Views that begin off every alignment: the bits of aligned arrays, and nothing beside them."""
    sizes = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 1001]
    start = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    grads = [[rng.standard_normal(n).astype(np.float32) for n in sizes] for _ in range(3)]
    kind = getattr(torch, dtype)

    def placed(x: Array, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
        around = torch.full((x.size + offset + 3,), Laid.GUARD, dtype=kind)
        inside = around[offset : offset + x.size]
        inside.copy_(torch.from_numpy(x))
        return around, inside.reshape(1, -1) if name == "Muon" else inside

    results = []
    for offset in (0, 1, 3):
        places = [placed(p, offset) for p in start]
        params = [inside for _, inside in places]
        optimizer = getattr(optim, name)(params)
        for row in grads:
            optimizer.step([placed(g, (offset + i) % 4)[1] for i, g in enumerate(row)])
        results.append(bytes_of([p.reshape(-1) for p in params]))
        for around, inside in places:
            outside = torch.cat([around[:offset], around[offset + inside.numel() :]])
            assert torch.equal(outside, torch.full_like(outside, Laid.GUARD))
        assert optimizer.steps == 3
    assert results[1] == results[0]
    assert results[2] == results[0]
    assert results[0] != bytes_of([placed(p, 0)[1].reshape(-1) for p in start])


def available_bytes() -> int:
    with open("/proc/meminfo") as lines:
        return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))


@pytest.mark.slow
@pytest.mark.skipif(available_bytes() < 6e9, reason="needs 6 GB of free memory")
def test_more_elements_than_32_bits_count() -> None:
    """2³¹ + 5 parameters; the gradient is one number, expanded."""
    n = 2**31 + 5
    words = np.zeros(n, np.int16)  # NumPy asks for large pages, PyTorch does not
    p = torch.from_numpy(words).view(torch.bfloat16)
    optimizer = optim.SGD(p, lr=1.0, max_norm=1e9)
    optimizer.step(torch.full((1,), -1.5, dtype=torch.bfloat16).expand(n))
    assert words.min() == words.max() == 0x3FC0
    assert_allclose(optimizer.grad_norm, 1.5 * math.sqrt(n), rtol=1e-13)


@every_name
def test_a_layout_may_change_between_steps(name: str, rng: np.random.Generator) -> None:
    """As when a model is moved to channels-last after its first steps: the states follow."""
    if name == "Muon":
        shape, move = (6, 8), lambda x: x.T.contiguous().T
    else:
        shape, move = (2, 3, 4, 5), lambda x: x.contiguous(memory_format=torch.channels_last)
    start = torch.from_numpy(rng.standard_normal(shape))
    moved, stays = start.clone(), start.clone()
    one, two = getattr(optim, name)(moved), getattr(optim, name)(stays)
    for step in range(6):
        g = torch.from_numpy(gradients(rng, [shape], "float64")[0])
        if step in (2, 5):
            moved.data = move(moved)
            assert not moved.is_contiguous()
        one.step(move(g) if step > 3 else g)
        two.step(g)
        if name in WHOLE_TENSOR:
            assert_close(moved.numpy(), stays.numpy(), one.lr)
        else:
            assert torch.equal(moved, stays)


@every_name
def test_no_parameters_and_empty_ones(name: str) -> None:
    """A group that ends with an empty tensor, and nothing at all."""
    p = np.ones((3, 2))
    nothing = np.empty((0, 4))
    optimizer = getattr(optim, name)([nothing, p, nothing.copy()], max_norm=1.0, ema_decay=0.9)
    optimizer.step([nothing, np.ones((3, 2)), nothing])
    assert not np.array_equal(p, np.ones((3, 2)))
    assert np.isfinite(p).all()
    assert_allclose(optimizer.grad_norm, math.sqrt(6), rtol=1e-14)
    none = getattr(optim, name)([])
    none.step([])
    assert none.memory() == dict.fromkeys(none.memory(), 0)


# Memory of its own.


LINE, ONES = np.zeros(12), np.ones(12)
SQUARE = np.zeros((4, 6))
OVERLAPS: list[tuple[str, Callable[[], object]]] = [
    ("twice", lambda: optim.SGD([LINE, LINE[:]])),
    ("shared", lambda: optim.SGD([LINE[:7], LINE[6:]])),
    ("one-of-every-other", lambda: optim.SGD([LINE[::2], LINE[4:5]])),
    ("strides-that-meet", lambda: optim.SGD([LINE[::2], LINE[::3]])),
    ("columns-that-meet", lambda: optim.SGD([SQUARE[:, ::2], SQUARE[2:3, 1:]])),
    ("transposed", lambda: optim.SGD([SQUARE, SQUARE.T])),
    ("in-two-groups", lambda: optim.SGD([{"params": [LINE]}, {"params": [LINE[3:]]}])),
    ("copies", lambda: optim.SGD([LINE], copies=[LINE]).step([np.ones(12)])),
    ("zeroed-gradients", lambda: optim.SGD([LINE, np.ones(12)], zero_grads=True).step(
        [ONES, ONES])),
]  # fmt: skip
# Elements of one array that share memory.
FOLDED: list[tuple[str, Callable[[], object]]] = [
    ("expanded", lambda: optim.SGD([torch.zeros(1).expand(4)])),
    ("windows", lambda: optim.SGD([np.lib.stride_tricks.as_strided(LINE, (3, 3), (8, 8))])),
    ("expanded-copy", lambda: optim.SGD([np.ones(4)], copies=[torch.zeros(1).expand(4)])),
    ("zeroed-gradient", lambda: optim.SGD([np.ones(4, np.float32)], zero_grads=True).step(
        [torch.ones(1).expand(4)])),
]  # fmt: skip


@pytest.mark.parametrize("call", [c for _, c in OVERLAPS], ids=[i for i, _ in OVERLAPS])
def test_overlapping_memory_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^\w+: expected memory of its own, got an overlap with "):
        call()


@pytest.mark.parametrize("call", [c for _, c in FOLDED], ids=[i for i, _ in FOLDED])
def test_elements_that_share_memory_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^\w+: expected elements that share no memory, got "):
        call()


@pytest.mark.parametrize(
    ("params", "grads"),
    [
        ([SQUARE[0]], [SQUARE[0]]),
        ([SQUARE[:, ::2]], [SQUARE[:, 2:5]]),
        ([SQUARE[0], SQUARE[1]], [np.ones(6), SQUARE[0]]),
    ],
)
def test_a_gradient_over_a_parameter_is_refused(params: list[Array], grads: list[Array]) -> None:
    optimizer = optim.SGD(params, momentum=0.9)
    with pytest.raises(ValueError, match=r"^\w+: expected memory of its own, got an overlap with "):
        optimizer.step(grads)
    assert optimizer.steps == 0
    assert_array_equal(SQUARE, np.zeros((4, 6)))


def test_a_gradient_is_looked_at_again_when_only_its_strides_change() -> None:
    """At the same address and of the same shape, between the parameter's elements and over them."""
    x = np.zeros(6)
    optimizer = optim.SGD(x[::2])
    optimizer.step(x[1::2])
    with pytest.raises(ValueError, match=r"^\w+: expected memory of its own, got an overlap with "):
        optimizer.step(x[1:4])


def test_arrays_that_interleave_are_not_overlaps(rng: np.random.Generator) -> None:
    """Every other element, every other column; a parameter between its own gradient's elements."""
    for split in (
        lambda x: [x.reshape(-1)[::2], x.reshape(-1)[1::2]],
        lambda x: [x[:, ::2], x[:, 1::2]],
        lambda x: [x[::2, 1:4], x[1::2, ::-1]],
        lambda x: [x.T[:3], x.T[3:]],
    ):
        x, apart = rng.standard_normal((4, 6)), []
        params = split(x)
        apart = [p.copy() for p in params]
        grads = [rng.standard_normal(p.shape) for p in params]
        one, two = optim.Adam(params, lr=0.1), optim.Adam(apart, lr=0.1)
        for _ in range(3):
            one.step(grads)
            two.step(grads)
        for p, q in zip(params, apart, strict=True):
            assert_array_equal(p, q)
    both = rng.standard_normal(10)
    p, g = both[::2], both[1::2]
    kept, wanted = g.copy(), p - 0.5 * g
    optim.SGD(p, lr=0.5).step(g)
    assert_array_equal(g, kept)
    assert_allclose(p, wanted, rtol=1e-15)


# What is refused.

F4, F8 = np.ones(4, np.float32), np.ones(4)
B4 = torch.ones(4, dtype=torch.bfloat16)
RECORDS = np.zeros(4, [("x", np.float32), ("y", np.int16)])  # 6 bytes from one x to the next


def read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


REFUSED: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("max-norm", lambda: optim.SGD(F4, max_norm=-1.0), ValueError,
     "max_norm: expected above 0, got -1.0"),
    ("max-norm-nan", lambda: optim.SGD(F4, max_norm=math.nan), ValueError,
     "max_norm: expected above 0, got nan"),
    ("ema", lambda: optim.SGD(F4, ema_decay=1.0), ValueError,
     "ema_decay: expected within [0, 1), got 1.0"),
    ("copies", lambda: optim.SGD(F4, copies=[]), ValueError,
     "copies: expected 1 arrays, got 0"),
    ("copies-shape", lambda: optim.SGD(F4, copies=[np.ones(3, np.float32)]), ValueError,
     "copies: expected shape (4,), got (3,)"),
    ("copies-dtype", lambda: optim.SGD(F4, copies=[np.ones(4, np.int32)]), TypeError,
     "copies: expected dtype "),
    ("copies-read-only", lambda: optim.SGD(F4, copies=[read_only(F4)]), ValueError,
     "copies: expected a writable array, got a read-only one"),
    ("state-dtype", lambda: optim.SGD(F4, momentum=0.9, state_dtype="int8"), ValueError,
     "state_dtype: expected "),
    ("state-dtype-float64", lambda: optim.SGD(F8, momentum=0.9, state_dtype="bfloat16"),
     TypeError, "state_dtype: expected one for float64 parameters, got bfloat16"),
    ("state-dtype-of-sums", lambda: optim.Adafactor(F4, state_dtype="bfloat16"), TypeError,
     "state_dtype: expected float32 or float64 for Adafactor, got bfloat16"),
    ("master-float32", lambda: optim.SGD(F4, master=True), TypeError,
     "params: expected dtype bfloat16 for a master of 32 bits, got float32"),
    ("master-float16", lambda: optim.SGD(B4.half(), master=True), TypeError,
     "params: expected dtype bfloat16 for a master of 32 bits, got float16"),
    ("master-stochastic", lambda: optim.SGD(B4, master=True, stochastic_rounding=1), ValueError,
     "master: expected False with stochastic_rounding, got True"),
    ("seed", lambda: optim.SGD(B4, stochastic_rounding=-1), ValueError,
     "stochastic_rounding: expected a seed within [0, 2^64), got -1"),
    ("unknown", lambda: optim.SGD(F4, learning_rate=1.0), TypeError,
     "learning_rate: expected an argument of the optimizer, got an unknown one"),
    ("option-of-a-group", lambda: optim.SGD([{"params": [F4], "max_norm": 1.0}]), TypeError,
     "max_norm: expected "),
    ("field", lambda: optim.SGD(RECORDS["x"]), ValueError, "params: expected "),
    ("field-of-gradients", lambda: optim.SGD(F4.copy()).step(RECORDS["x"]), ValueError,
     "grads: expected "),
    ("wide-gradient", lambda: optim.SGD(F4.copy()).step(F8), TypeError,
     "grads: expected dtype float32, got float64"),
    ("wide-gradient-of-bfloat16", lambda: optim.SGD(B4.clone()).step(F8), TypeError,
     "grads: expected dtype "),
    ("no-norm", lambda: optim.SGD(F4).grad_norm, ValueError,
     "grad_norm: expected max_norm or check_finite to be set, got neither"),
    ("no-ema", lambda: optim.SGD(F4).ema, ValueError,
     "ema: expected ema_decay to be set, got None"),
    ("decay-mask", lambda: optim.SGD(F4, decay_mask=[True, False]), ValueError,
     "decay_mask: expected "),
    ("differentiable", lambda: optim.SGD(F4, differentiable=True), ValueError,
     "differentiable: expected False, got True"),
    ("zero-grads", lambda: optim.SGD(F4.copy(), zero_grads=True).step(read_only(F4)), ValueError,
     "grads: expected a writable array, got a read-only one"),
    ("sparse", lambda: optim.SGD(F4.copy()).step(torch.ones(4).to_sparse()), TypeError,
     "grads: expected "),
    ("loss-scale", lambda: optim.SGD(F4.copy()).step(F4, loss_scale=0.0), ValueError,
     "loss_scale: expected "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


@pytest.mark.parametrize("flag", ["foreach", "fused", "capturable"])
def test_pytorchs_flags_change_nothing(flag: str) -> None:
    results = []
    for options in ({}, {flag: True}, {flag: False}):
        p = np.ones(4)
        optim.Adam(p, **options).step(np.ones(4))
        results.append(p)
    assert_array_equal(results[1], results[0])
    assert_array_equal(results[2], results[0])


@every_name
def test_the_rate_may_be_an_array(name: str, rng: np.random.Generator) -> None:
    results = []
    start = rng.standard_normal((3, 4))
    for lr in (0.03, torch.tensor(0.03, dtype=torch.float64), np.array(0.03)):
        p = start.copy()
        optimizer = getattr(optim, name)(p, lr=lr)
        for seed in range(3):
            optimizer.step(np.random.default_rng(seed).standard_normal((3, 4)))
        results.append(p)
    assert_array_equal(results[1], results[0])
    assert_array_equal(results[2], results[0])


@pytest.mark.parametrize(
    "kind",
    [np.copy, Vector.from_numpy, torch.tensor, lambda x: torch.tensor(x).bfloat16()],
    ids=["numpy", "vector", "torch", "bfloat16"],
)
def test_update_gives_the_kind_it_was_given(kind: Callable[[Array], Any]) -> None:
    """And its dtype: the bits of `step` on it."""
    p, g = (kind(np.full(3, x, np.float32)) for x in (1.0, 0.3))
    (new,), _ = optim.Adam([p], lr=0.1).update([p], [g])
    assert type(new) is type(p)
    assert new.dtype == p.dtype
    optim.Adam([p], lr=0.1).step([g])
    assert bytes_of([new]) == bytes_of([p])


def test_a_state_of_another_dtype_is_refused() -> None:
    wide, narrow = optim.Adam(np.ones(3)), optim.Adam(np.ones(3, np.float32))
    wide.step(np.full(3, 0.1))
    with pytest.raises((TypeError, ValueError), match=r"^exp_avg: expected dtype float32, got "):
        narrow.load_state_dict(wide.state_dict())
