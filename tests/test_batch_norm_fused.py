"""Batch normalization of whole tensors against PyTorch in float64 and formulas in NumPy.

The first order and the backward of the backward come from `torch.nn.functional.batch_norm` through
autograd; tangents of the backward pass from the formula written out in elementary operations,
because forward-over-reverse through PyTorch's own batch normalization is not to be relied on.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from saddlepoint import nn, norm
from saddlepoint.vector import Vector

Array = NDArray[Any]
Setting = Callable[[Callable[[], Any]], dict[str, Any]]

torch.set_num_threads(1)  # the oracle's work is small
# PyTorch's own, on the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

ACTIVATIONS: tuple[str | None, ...] = (None, "relu", "leaky_relu", "gelu", "tanh")
SMOOTH = ("gelu", "tanh")
SLOPE = 0.2
EPS = 0.1


def dense(a: Array) -> Array:
    return np.ascontiguousarray(a)


def channels_last(a: Array) -> Array:
    """The same numbers with axis 1 innermost in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1)


def strided(a: Array) -> Array:
    """A view of every other element of each axis, the first one backwards."""
    memory = np.full([2 * n + 1 for n in a.shape], np.nan, a.dtype)
    view = memory[tuple(slice(1, 2 * n, 2) for n in a.shape)][::-1]
    view[...] = a
    return view


def planes(a: Array) -> Array:
    """The same numbers with the last axis before the pixels in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 1)), 1, -1)


def swapped(a: Array) -> Array:
    """Dense, with the axes in memory in the opposite order."""
    return np.asfortranarray(a)


# name: (shape, layout, memory)
TENSORS: dict[str, tuple[tuple[int, ...], str, Callable[[Array], Array]]] = {
    "NC": ((33, 7), "NC", dense),
    "NC in columns": ((33, 7), "NC", swapped),
    "NC of NHWC": ((9, 4), "NHWC", dense),
    "two rows": ((2, 5), "NCHW", dense),
    "one channel": ((4, 1, 3, 5), "NCHW", dense),
    "one channel last": ((40, 1), "NCHW", dense),
    "1025 channels": ((3, 1025), "NCHW", dense),
    "1025 planes": ((2, 1025, 1, 3), "NCHW", dense),
    "NCL": ((5, 3, 11), "NCL", dense),
    "NLC": ((5, 11, 3), "NLC", dense),
    "NCHW": ((4, 5, 6, 7), "NCHW", dense),
    "NHWC": ((4, 6, 7, 5), "NHWC", dense),
    "three channels": ((4, 6, 7, 3), "NHWC", dense),
    "channels last": ((4, 5, 6, 7), "NCHW", channels_last),
    "NHWC with planes": ((4, 6, 7, 5), "NHWC", planes),
    "NCDHW": ((2, 3, 4, 3, 5), "NCDHW", dense),
    "NDHWC": ((2, 4, 3, 5, 3), "NDHWC", dense),
    "spatial 1": ((6, 17, 1, 1), "NCHW", dense),
    "one image": ((1, 4, 5, 5), "NCHW", dense),
    "strided": ((3, 4, 5, 6), "NCHW", strided),
    "strided NHWC": ((3, 5, 6, 4), "NHWC", strided),
    "strided rows": ((12, 4), "NC", strided),
    "axes swapped": ((3, 4, 5, 6), "NCHW", swapped),
}  # fmt: skip
FEW = ("NC", "NCHW", "channels last", "strided NHWC")


def channel_axis(layout: str, axes: int) -> int:
    return 1 if axes == 2 or layout[1] == "C" else axes - 1


@dataclass
class Case:
    """A layer at a point, a direction of its inputs, and gradients, in one dtype."""

    layout: str
    axis: int
    training: bool
    activation: str | None
    x: Any
    weight: Any
    bias: Any
    residual: Any
    mean: Any
    var: Any
    dy: Any
    xt: Any
    weight_t: Any
    bias_t: Any
    residual_t: Any
    dyt: Any

    def forward(self) -> tuple[Any, norm.Saved]:
        running = (None, None) if self.training else (self.mean, self.var)
        return norm.batch_norm(
            self.x, self.weight, self.bias, *running, self.training, eps=EPS,
            activation=self.activation, residual=self.residual, layout=self.layout,
            negative_slope=SLOPE,
        )  # fmt: skip

    def point(self, dtype: torch.dtype | None = torch.float64) -> tuple[torch.Tensor, ...]:
        """(x, weight, bias[, residual]) as leaves."""
        given = (self.x, self.weight, self.bias, self.residual)
        return tuple(leaf(a, dtype) for a in given if a is not None)

    def direction(self) -> tuple[torch.Tensor, ...]:
        given = (self.xt, self.weight_t, self.bias_t, self.residual_t)
        return tuple(leaf(a).detach() for a in given if a is not None)


def leaf(a: Any, dtype: torch.dtype | None = torch.float64) -> torch.Tensor:
    """A dense copy of an array or tensor."""
    if not isinstance(a, torch.Tensor):
        a = torch.from_numpy(np.array(a, order="C"))
    a = a.detach().contiguous()
    return a.to(dtype or a.dtype, copy=True).requires_grad_()


def make(
    rng: np.random.Generator,
    tensor: str,
    training: bool = True,
    activation: str | None = None,
    residual: bool = False,
    dtype: str = "float64",
) -> Case:
    shape, layout, memory = TENSORS[tensor]
    axis = channel_axis(layout, len(shape))
    wide = [memory(a.astype(dtype)) for a in rng.standard_normal((6, *shape))]
    narrow = rng.standard_normal((6, shape[axis]))
    narrow[0] += 2.0
    narrow[3] = narrow[3] ** 2 + 0.1
    x, dy, xt, dyt, extra, extra_t = wide
    x[...] = 2 * x + 1
    weight, bias, mean, var, weight_t, bias_t = narrow.astype(dtype)
    return Case(
        layout, axis, training, activation, x, weight, bias, extra if residual else None, mean, var,
        dy, xt, weight_t, bias_t, extra_t if residual else None, dyt,
    )  # fmt: skip


def activated(z: torch.Tensor, activation: str | None) -> torch.Tensor:
    if activation is None:
        return z
    if activation == "leaky_relu":
        return F.leaky_relu(z, SLOPE)
    return {"relu": torch.relu, "gelu": F.gelu, "tanh": torch.tanh}[activation](z)


def by_torch(c: Case) -> Callable[..., torch.Tensor]:
    """PyTorch's own batch normalization, in the dtype of what it is given."""

    def forward(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        weight, bias, *residual = others
        mean, var = leaf(c.mean, weight.dtype).detach(), leaf(c.var, weight.dtype).detach()
        inside = x.movedim(c.axis, 1)
        h = F.batch_norm(inside, mean, var, weight, bias, c.training, 0.1, EPS)
        z = h.movedim(1, c.axis)
        return activated(z + residual[0] if residual else z, c.activation)

    return forward


def written_out(c: Case) -> Callable[..., torch.Tensor]:
    """The formula in elementary operations."""
    others = [a for a in range(c.x.ndim) if a != c.axis]
    shape = [-1 if a == c.axis else 1 for a in range(c.x.ndim)]
    fixed_mean, fixed_var = leaf(c.mean).detach(), leaf(c.var).detach()

    def forward(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        weight, bias, *residual = parameters
        if c.training:
            mean, var = x.mean(others, keepdim=True), x.var(others, False, keepdim=True)
        else:
            mean, var = fixed_mean.view(shape), fixed_var.view(shape)
        z = weight.view(shape) * (x - mean) * (var + EPS) ** -0.5 + bias.view(shape)
        return activated(z + residual[0] if residual else z, c.activation)

    return forward


def numbers(a: Any) -> Array:
    """The float64 values of an array or tensor."""
    return a.detach().double().numpy() if isinstance(a, torch.Tensor) else np.asarray(a, np.float64)


def assert_close(actual: Any, wanted: Any, digits: float = 1e-12, what: str = "") -> None:
    """Relative to each number or to the largest: sums over a channel cancel to zero."""
    actual, wanted = numbers(actual), numbers(wanted)
    scale = np.abs(wanted).max(initial=1.0)
    assert_allclose(actual, wanted, rtol=digits, atol=digits * scale, err_msg=what)


def assert_all_close(actual: Any, wanted: Any, digits: float = 1e-12) -> None:
    assert len(actual) == len(wanted)
    for k, (a, b) in enumerate(zip(actual, wanted, strict=True)):
        assert_close(a, b, digits, f"result {k}")


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("tensor", TENSORS)
def test_values_and_gradients(
    rng: np.random.Generator, tensor: str, activation: str | None, training: bool, residual: bool
) -> None:
    c = make(rng, tensor, training, activation, residual)
    y, saved = c.forward()
    point = c.point()
    wanted = by_torch(c)(*point)
    assert_close(y, wanted)
    gradients = torch.autograd.grad(wanted, point, leaf(c.dy).detach())
    assert_all_close(norm.batch_norm_backward(c.dy, saved), gradients)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("tensor", FEW)
def test_tangents_and_second_order(
    rng: np.random.Generator, tensor: str, activation: str | None, training: bool, residual: bool
) -> None:
    c = make(rng, tensor, training, activation, residual)
    saved = c.forward()[1]
    point, along = c.point(), c.direction()
    dy, dyt = leaf(c.dy), leaf(c.dyt).detach()
    given = (c.weight_t, c.bias_t, c.residual_t)

    fixed = tuple(p.detach() for p in point)
    formula = written_out(c)
    tangent = torch.func.jvp(formula, fixed, along)[1]
    assert_close(norm.batch_norm_tangent(c.xt, saved, *given), tangent)

    def backward(dy: torch.Tensor, *p: torch.Tensor) -> Any:
        return torch.func.vjp(formula, *p)[1](dy)

    tangents = torch.func.jvp(backward, (dy.detach(), *fixed), (dyt, *along))[1]
    assert_all_close(norm.batch_norm_backward_tangent(c.dy, c.dyt, c.xt, saved, *given), tangents)

    gradients = torch.autograd.grad(by_torch(c)(*point), point, dy, create_graph=True)
    second = torch.autograd.grad(gradients, (dy, *point), along, materialize_grads=True)
    actual = norm.batch_norm_double_backward(
        c.xt, c.weight_t, c.bias_t, c.dy, saved, c.residual_t
    )  # fmt: skip
    assert_all_close(actual, second[: len(actual)])
    # What is not returned is zero.
    assert not any(numbers(g).any() for g in second[len(actual) :])
    assert len(actual) == (len(second) if activation in SMOOTH else 3)


def mixed(
    formula: Callable[..., torch.Tensor],
    point: tuple[torch.Tensor, ...],
    along: tuple[torch.Tensor, ...],
    other: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """The derivative along one direction, and of that along another."""

    def first(*p: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(formula, p, along)[1]

    return torch.func.jvp(first, point, other)[1]


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("tensor", TENSORS)
def test_second_tangent(
    rng: np.random.Generator, tensor: str, activation: str | None, training: bool, residual: bool
) -> None:
    c = make(rng, tensor, training, activation, residual)
    saved = c.forward()[1]
    point, along = tuple(p.detach() for p in c.point()), c.direction()
    other = tuple(torch.from_numpy(rng.standard_normal(t.shape)) for t in along)
    wanted = mixed(written_out(c), point, along, other)
    xu, *parameters_u = (t.numpy() for t in other)
    first = (c.weight_t, c.bias_t, c.residual_t)
    second = (*parameters_u, None)[:3]
    actual = norm.batch_norm_second_tangent(c.xt, xu, saved, *first, *second)
    assert_close(actual, wanted)
    assert_close(norm.batch_norm_second_tangent(xu, c.xt, saved, *second, *first), wanted)
    # What is None is zero.
    zero = tuple(np.zeros_like(a) if a is not None else None for a in first)
    assert_close(
        norm.batch_norm_second_tangent(c.xt, xu, saved, *first),
        norm.batch_norm_second_tangent(c.xt, xu, saved, *first, *zero),
    )
    assert_close(
        norm.batch_norm_second_tangent(None, xu, saved, None, None, None, *second),
        norm.batch_norm_second_tangent(np.zeros_like(c.x), xu, saved, *zero, *second),
    )


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("tensor", FEW)
def test_absent_tangents_are_zero(rng: np.random.Generator, tensor: str, activation: str) -> None:
    c = make(rng, tensor, True, activation, True)
    saved = c.forward()[1]
    zero, none = np.zeros_like(c.x), np.zeros_like(c.weight)
    assert_array_equal(
        norm.batch_norm_tangent(None, saved, c.weight_t),
        norm.batch_norm_tangent(zero, saved, c.weight_t, none, zero),
    )
    for few, all_ in (
        ((c.dy, c.dyt, None, saved), (c.dy, c.dyt, zero, saved, none, none, zero)),
        ((c.dy, None, c.xt, saved), (c.dy, zero, c.xt, saved, none, none, zero)),
    ):
        actual = norm.batch_norm_backward_tangent(*few)
        assert_all_close(actual, norm.batch_norm_backward_tangent(*all_))
    assert_all_close(
        norm.batch_norm_double_backward(c.xt, None, None, c.dy, saved),
        norm.batch_norm_double_backward(c.xt, none, none, c.dy, saved, zero),
    )


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("tensor", FEW)
def test_identities(rng: np.random.Generator, tensor: str, activation: str | None) -> None:
    """The backward pass is the tangent's transpose, and second derivatives are symmetric."""
    c = make(rng, tensor, True, activation, True)
    saved = c.forward()[1]
    first = (c.xt, c.weight_t, c.bias_t, c.residual_t)
    other = [rng.standard_normal(a.shape) for a in first]

    def product(a: Any, b: Any) -> float:
        return float(sum((u * v).sum() for u, v in zip(a, b, strict=True)))

    def along(t: Any) -> Any:
        return norm.batch_norm_backward_tangent(c.dy, None, t[0], saved, *t[1:])

    forward = norm.batch_norm_tangent(c.xt, saved, *first[1:])
    back = norm.batch_norm_backward(c.dy, saved)
    scale = product([abs(forward)], [abs(c.dy)])
    assert abs(product([forward], [c.dy]) - product(back, first)) < 1e-13 * scale
    left, right = along(first), along(other)
    scale = product(map(abs, left), map(abs, other))
    assert abs(product(left, other) - product(right, first)) < 1e-13 * scale
    ddy = norm.batch_norm_double_backward(*first[:3], c.dy, saved, c.residual_t)[0]
    assert_close(ddy, forward)


@pytest.mark.parametrize("tensor", FEW)
def test_other_memory(rng: np.random.Generator, tensor: str) -> None:
    """Gradients, residuals and outputs may lie otherwise than x."""
    c = make(rng, tensor, True, "relu", True)
    y, saved = c.forward()
    wanted = norm.batch_norm_backward(c.dy, saved)
    for memory in (dense, swapped, strided, channels_last):
        d = Case(**{**vars(c), "residual": memory(c.residual)})
        assert_array_equal(d.forward()[0], y)
        out = memory(np.zeros_like(c.x))
        result = norm.batch_norm(
            c.x, c.weight, c.bias, eps=EPS, activation="relu", residual=c.residual,
            layout=c.layout, out=out,
        )[0]  # fmt: skip
        assert result is out
        assert_array_equal(out, y)
        dx = memory(np.zeros_like(c.x))
        actual = norm.batch_norm_backward(memory(c.dy), saved, dx)
        assert actual[0] is dx
        for a, b in zip(actual, wanted, strict=True):
            assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"], ids=str)
@pytest.mark.parametrize("tensor", ["NC", "NCHW", "NHWC"])
def test_vectors(rng: np.random.Generator, tensor: str, activation: str | None, dtype: str) -> None:
    """The same bits from `Vector`s, in whole and in parts."""
    c = make(rng, tensor, True, activation, True, dtype)
    xu = c.dyt.copy()

    def everything(place: Callable[[Array], Any]) -> list[Any]:
        x, residual, dy, dyt, xt, along = map(place, (c.x, c.residual, c.dy, c.dyt, c.xt, xu))
        weight, bias, mean, var, weight_t = map(
            place, (c.weight, c.bias, c.mean.copy(), c.var.copy(), c.weight_t)
        )
        y, saved = norm.batch_norm(
            x, weight, bias, mean, var, activation=activation, residual=residual, layout=c.layout
        )
        moments = norm.combine([norm.batch_norm_statistics(x, c.layout)] * 2)
        again, part = norm.batch_norm_apply(
            x, saved.mean, saved.r, weight, bias, activation, residual, c.layout, count=1000
        )
        sums = norm.batch_norm_backward_reduce(dy, part)
        return [
            y, mean, var, saved.mean, saved.r, again, *moments[1:], *sums,
            *norm.batch_norm_backward(dy, saved),
            norm.batch_norm_tangent(xt, saved, weight_t),
            norm.batch_norm_second_tangent(xt, along, saved, weight_t, None, residual),
            *norm.batch_norm_backward_tangent(dy, dyt, xt, saved, weight_t),
            *norm.batch_norm_double_backward(xt, weight_t, None, dy, saved),
            *norm.batch_norm_backward_apply(dy, part, *sums, 1000),
        ]  # fmt: skip

    wanted = everything(lambda a: a)
    actual = everything(Vector.from_numpy)
    for k, (a, b) in enumerate(zip(actual, wanted, strict=True)):
        assert isinstance(a, Vector)
        assert a.dtype == b.dtype
        assert_array_equal(a.numpy(), b, err_msg=f"result {k}")


def test_memory_order_of_results(rng: np.random.Generator) -> None:
    c = make(rng, "channels last")
    y, saved = c.forward()
    assert y.strides == c.x.strides
    assert norm.batch_norm_backward(c.dy, saved)[0].strides == c.x.strides


def to_second_order(c: Case, dtype: torch.dtype) -> list[Array]:
    """y, its gradients, and the backward of the backward for (dy, x, weight), by PyTorch."""
    point = c.point(dtype)
    y = by_torch(c)(*point)
    dy = leaf(c.dy, dtype)
    first = torch.autograd.grad(y, point, dy, create_graph=True)
    along = [t.to(dtype) for t in c.direction()]
    second = torch.autograd.grad(first, (dy, *point), along, materialize_grads=True)
    return [numbers(a) for a in (y, *first, *second[:3])]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("tensor", ["NC", "NCHW", "NHWC", "channels last", "1025 planes"])
def test_float32(
    rng: np.random.Generator, tensor: str, training: bool, activation: str | None
) -> None:
    """At most twice PyTorch's own error against float64, in the mean of a few draws.

    One draw tells little: a result has few numbers, and either side may be lucky.
    """
    draws = 6
    ours, torchs, roundings = np.zeros((3, 8))
    for _ in range(draws):
        c = make(rng, tensor, training, activation, activation is not None, "float32")
        y, saved = c.forward()
        second = norm.batch_norm_double_backward(
            c.xt, c.weight_t, c.bias_t, c.dy, saved, c.residual_t
        )
        mine = [y, *norm.batch_norm_backward(c.dy, saved), *second[:3]]
        exact, single = (to_second_order(c, dtype) for dtype in (torch.float64, torch.float32))
        for k, (a, b, wanted) in enumerate(zip(mine, single, exact, strict=True)):
            assert a.dtype == np.float32
            ours[k] += np.linalg.norm(a - wanted) / draws
            torchs[k] += np.linalg.norm(b - wanted) / draws
            roundings[k] += np.finfo(np.float32).eps / 2 * np.linalg.norm(wanted) / draws
    # A result as good as correctly rounded is good enough.
    assert (ours <= np.maximum(2 * torchs, roundings)).all(), ours / np.maximum(torchs, 1e-300)


@pytest.mark.parametrize("own", [False, True], ids=["float32 parameters", "own parameters"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory", ["NCHW", "channels last", "NC"])
def test_sixteen_bits(
    rng: np.random.Generator, memory: str, dtype: torch.dtype, activation: str | None, own: bool
) -> None:
    """Rounded once, after a computation in float32."""
    c = make(rng, memory, True, activation, True)
    wide = ("x", "residual", "dy", "xt", "residual_t", "dyt")
    narrow = ("weight", "bias", "mean", "var", "weight_t", "bias_t")
    d = Case(**{
        **vars(c),
        **{k: torch.from_numpy(getattr(c, k)).to(dtype) for k in wide},
        **{k: torch.from_numpy(getattr(c, k)).to(dtype if own else torch.float32) for k in narrow},
    })  # fmt: skip
    y, saved = d.forward()
    assert y.dtype is dtype
    assert y.stride() == d.x.stride()
    point = d.point()
    wanted = by_torch(d)(*point)
    gradients = torch.autograd.grad(wanted, point, leaf(d.dy).detach())
    actual = norm.batch_norm_backward(d.dy, saved)
    for a, b in zip((y, *actual), (wanted, *gradients), strict=True):
        # Half a unit in the last place, and float32's own error before it.
        unit = torch.finfo(a.dtype).eps / 2 if a.dtype is dtype else 0.0
        exact = numbers(b)
        limit = 1.01 * unit * np.abs(exact) + 4e-6 * max(1.0, np.abs(exact).max())
        assert (np.abs(numbers(a) - exact) <= limit).all()
    assert actual[1].dtype is d.weight.dtype
    assert actual[2].dtype is d.bias.dtype


@pytest.mark.parametrize("tensor", FEW)
def test_without_parameters(rng: np.random.Generator, tensor: str) -> None:
    c = make(rng, tensor)
    ones, zeros = np.ones_like(c.weight), np.zeros_like(c.weight)
    y, saved = norm.batch_norm(c.x, eps=EPS, layout=c.layout)
    d = Case(**{**vars(c), "weight": ones, "bias": zeros})
    point = d.point()
    wanted = by_torch(d)(*point)
    assert_close(y, wanted)
    gradients = torch.autograd.grad(wanted, point, leaf(c.dy).detach())
    assert_all_close(norm.batch_norm_backward(c.dy, saved), gradients)


def flat(a: Array, axis: int) -> Array:
    """(N, elements of a row, C)"""
    moved = np.moveaxis(np.asarray(a, np.float64), axis, -1)
    return moved.reshape(len(moved), -1, moved.shape[-1])


@pytest.mark.parametrize("tensor", TENSORS)
def test_saved_and_running_statistics(rng: np.random.Generator, tensor: str) -> None:
    c = make(rng, tensor)
    x = flat(c.x, c.axis).reshape(-1, c.x.shape[c.axis])
    mean, var = x.mean(0), x.var(0)
    old = c.mean.copy(), c.var.copy()
    saved = norm.batch_norm(
        c.x, c.weight, c.bias, c.mean, c.var, momentum=0.3, eps=EPS, layout=c.layout
    )[1]  # fmt: skip
    assert_close(saved.mean, mean)
    assert_close(saved.r, 1 / np.sqrt(var + EPS))
    assert_close(c.mean, 0.7 * old[0] + 0.3 * mean)
    assert_close(c.var, 0.7 * old[1] + 0.3 * x.var(0, ddof=1))


def test_average_of_all_batches(rng: np.random.Generator) -> None:
    mean, var, count = np.zeros(3), np.ones(3), np.zeros((), np.int64)
    batches = rng.standard_normal((4, 6, 3, 5))
    for batch in batches:
        norm.batch_norm(batch, None, None, mean, var, momentum=None, count=count)
    assert count == 4
    assert_close(mean, batches.mean((0, 1, 3)))
    assert_close(var, np.mean([b.var((0, 2), ddof=1) for b in batches], axis=0))
    before = mean.copy(), var.copy()
    norm.batch_norm(batches[0], None, None, mean, var, False, momentum=None, count=count)
    assert count == 4
    assert_array_equal((mean, var), before)


@pytest.mark.parametrize("order", ["C", "F"])
def test_vectors_keep_their_order(order: str, rng: np.random.Generator) -> None:
    x = np.asarray(rng.standard_normal((4, 3)), order=order)
    y, saved = norm.batch_norm(Vector.from_numpy(x))
    dx = norm.batch_norm_backward(Vector.from_numpy(x), saved)[0]
    assert (y.order, dx.order) == (order, order)
    assert_array_equal(y.numpy(), norm.batch_norm(x)[0])


def test_every_ghost_batch_counts(rng: np.random.Generator) -> None:
    x = rng.standard_normal((6, 3))
    mean, var, count = np.zeros(3), np.ones(3), np.array(1.0)
    norm.batch_norm(x, None, None, mean, var, momentum=None, count=count, ghost=2)
    assert count == 4
    # The average with the batch before, whose mean was 0 and variance 1.
    parts = x.reshape(3, 2, 3)
    assert_allclose(mean, parts.mean(1).sum(0) / 4, rtol=1e-13)
    assert_allclose(var, (1.0 + parts.var(1, ddof=1).sum(0)) / 4, rtol=1e-13)


def test_ghosts_are_of_training(rng: np.random.Generator) -> None:
    x, mean, var = rng.standard_normal((6, 3)), np.zeros(3), np.ones(3)
    for training, groups in ((True, 3), (False, 1)):
        _, saved = norm.batch_norm(x, None, None, mean, var, training, ghost=2)
        assert saved.statistics.shape == (2, groups, 3)


def test_a_momentum_of_zero_leaves_the_statistics(rng: np.random.Generator) -> None:
    mean, var = rng.standard_normal(3), rng.random(3) + 0.5
    before = mean.copy(), var.copy()
    norm.batch_norm(rng.standard_normal((5, 3)), None, None, mean, var, momentum=0.0)
    assert_array_equal((mean, var), before)


def test_count_with_a_momentum(rng: np.random.Generator) -> None:
    count = np.array(7)
    norm.batch_norm(rng.standard_normal((6, 3)), count=count)
    assert count == 8


@dataclass
class Constants:
    """α, β, γ and δ of each sub-batch, (groups, C)."""

    alpha: Array
    beta: Array
    gamma: Array
    delta: Array


def in_numpy(
    c: Case,
    rows: int,
    running: tuple[Array, Array],
    momentum: float,
    renorm: tuple[float, float] | None,
    draws: tuple[Array, Array] | None,
) -> tuple[Array, list[Array], tuple[Array, Array], Constants]:
    """(y, gradients, running statistics, constants), sub-batch after sub-batch."""
    x, dy = flat(c.x, c.axis), flat(c.dy, c.axis)
    mean, var = (a.copy() for a in running)
    y, dx = np.empty_like(x), np.empty_like(x)
    dweight, dbias = np.zeros_like(c.weight), np.zeros_like(c.bias)
    constants: list[tuple[Array, ...]] = []
    for g, start in enumerate(range(0, len(x), rows)):
        part = slice(start, start + rows)
        u = x[part].reshape(-1, x.shape[-1])
        batch_mean, deviation = u.mean(0), np.sqrt(u.var(0) + EPS)
        alpha, beta = np.ones_like(mean), np.zeros_like(mean)
        if renorm:
            sigma = np.sqrt(var + EPS)
            alpha = np.clip(deviation / sigma, 1 / renorm[0], renorm[0])
            beta = np.clip((batch_mean - mean) / sigma, -renorm[1], renorm[1])
        gamma, delta = (d[g] for d in draws) if draws else (np.ones_like(mean), 0 * mean)
        constants.append((alpha * gamma, beta * gamma, gamma, delta))
        h = (u - batch_mean) / deviation
        towards = alpha * h + beta
        z = gamma * (c.weight * towards + c.bias) + delta
        slope = np.where(z > 0, 1.0, SLOPE) if c.activation == "leaky_relu" else np.ones_like(z)
        y[part] = (slope * z).reshape(x[part].shape)
        dz = gamma * slope * dy[part].reshape(z.shape)
        dweight += (dz * towards).sum(0)
        dbias += dz.sum(0)
        dh = c.weight * alpha * dz
        dx[part] = ((dh - dh.mean(0) - h * (dh * h).mean(0)) / deviation).reshape(x[part].shape)
        mean += momentum * (batch_mean - mean)
        var += momentum * (u.var(0, ddof=1) - var)
    stacked = Constants(*(np.array(k) for k in zip(*constants, strict=True)))
    return y, [dx, dweight, dbias], (mean, var), stacked


@pytest.mark.parametrize("noise", [None, norm.Noise(11, 5)], ids=["", "noise"])
@pytest.mark.parametrize("renorm", [None, (1.1, 0.3), (1e9, 1e9)], ids=["", "renorm", "unbounded"])
@pytest.mark.parametrize("ghost", [None, 3, 5, 100], ids=lambda g: f"ghost {g}")
@pytest.mark.parametrize("tensor", ["NC in columns", "NC", "NCHW", "NHWC", "channels last", "NCL",
                                    "strided", "axes swapped"])  # fmt: skip
def test_variants(
    rng: np.random.Generator,
    tensor: str,
    ghost: int | None,
    renorm: tuple[float, float] | None,
    noise: norm.Noise | None,
) -> None:
    c = make(rng, tensor, True, "leaky_relu")
    size = c.x.shape[0]
    ghost = 2 if ghost == 5 and size == 4 else ghost
    rows = min(ghost or size, size)
    running = c.mean.copy(), c.var.copy()
    y, saved = norm.batch_norm(
        c.x, c.weight, c.bias, c.mean, c.var, eps=EPS, momentum=0.3, activation=c.activation,
        negative_slope=SLOPE, layout=c.layout, ghost=ghost, renorm=renorm, noise=noise,
    )  # fmt: skip
    draws = (saved.statistics[4], saved.statistics[5]) if noise else None
    if draws:
        assert (draws[0] >= 1).all()
        assert (draws[0] < 1.25).all()
        assert (np.abs(draws[1]) <= 0.5).all()
        assert np.ptp(draws[1][0]) > 0.1  # of each unit
    wanted = in_numpy(c, rows, running, 0.3, renorm, draws)
    assert_close(flat(y, c.axis), wanted[0])
    dx, dweight, dbias = norm.batch_norm_backward(c.dy, saved)
    assert_all_close([flat(dx, c.axis), dweight, dbias], wanted[1])
    assert_all_close([c.mean, c.var], wanted[2])


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("tensor", ["NCHW", "NHWC", "channels last"])
def test_second_order_of_variants(
    rng: np.random.Generator, tensor: str, activation: str | None
) -> None:
    """α to δ are constants of differentiation."""
    c = make(rng, tensor, True, activation, True)
    ghost, axes = 3, c.x.ndim  # 3 rows and 1
    saved = norm.batch_norm(
        c.x, c.weight, c.bias, c.mean, c.var, eps=EPS, activation=activation,
        residual=c.residual, layout=c.layout, negative_slope=SLOPE, ghost=ghost,
        renorm=(2.0, 1.0), noise=norm.Noise(3),
    )[1]  # fmt: skip
    constants = torch.from_numpy(saved.statistics[2:].copy())
    others = [a for a in range(axes) if a != c.axis]
    shape = [-1 if a == c.axis else 1 for a in range(axes)]

    def forward(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        weight, bias, residual = parameters
        parts = []
        for g, u in enumerate(x.split(ghost)):
            alpha, beta, gamma, delta = (k[g].view(shape) for k in constants)
            mean, var = u.mean(others, keepdim=True), u.var(others, False, keepdim=True)
            h = alpha * (u - mean) * (var + EPS) ** -0.5 + beta
            parts.append(weight.view(shape) * h + bias.view(shape) * gamma + delta)
        return activated(torch.cat(parts) + residual, activation)

    def backward(dy: torch.Tensor, *p: torch.Tensor) -> Any:
        return torch.func.vjp(forward, *p)[1](dy)

    point = tuple(p.detach() for p in c.point())
    dy, dyt = leaf(c.dy).detach(), leaf(c.dyt).detach()
    given = (c.weight_t, c.bias_t, c.residual_t)
    tangent = torch.func.jvp(forward, point, c.direction())[1]
    assert_close(norm.batch_norm_tangent(c.xt, saved, *given), tangent)
    tangents = torch.func.jvp(backward, (dy, *point), (dyt, *c.direction()))[1]
    assert_all_close(norm.batch_norm_backward_tangent(c.dy, c.dyt, c.xt, saved, *given), tangents)
    other = tuple(torch.from_numpy(rng.standard_normal(t.shape)) for t in c.direction())
    second = norm.batch_norm_second_tangent(
        c.xt, other[0].numpy(), saved, *given, *(t.numpy() for t in other[1:])
    )
    assert_close(second, mixed(forward, point, c.direction(), other))


def test_draws_of_noise(rng: np.random.Generator) -> None:
    """A function of seed, step and unit, even over both ranges; none in evaluation."""
    x = rng.standard_normal((4, 5000))

    def draws(seed: int, step: int) -> Array:
        noise = norm.Noise(seed, step, 0.5, 1.5)
        return norm.batch_norm(x, noise=noise)[1].statistics[4:, 0]

    scale, shift = draws(1, 1)
    assert_array_equal(draws(1, 1), (scale, shift))
    for other in (draws(2, 1), draws(1, 2)):
        assert (other != (scale, shift)).all()
    for d, low, high in ((scale, 1.0, 1.5), (shift, -0.5, 0.5)):
        counts = np.histogram(d, bins=10, range=(low, high))[0]
        assert counts.sum() == d.size
        assert np.abs(counts - 500).max() < 6 * np.sqrt(500)  # six deviations
    assert abs(np.corrcoef(scale, shift)[0, 1]) < 6 / np.sqrt(d.size)
    mean, var = np.zeros(5000), np.ones(5000)
    quiet = norm.batch_norm(x, None, None, mean, var, False, noise=norm.Noise(1))[0]
    assert_array_equal(quiet, norm.batch_norm(x, None, None, mean, var, False)[0])


CUTS = {"even": (4, 8), "uneven": (1, 4), "empty": (0, 5), "all in one": (0, 12)}


def shards(a: Array, cuts: tuple[int, int]) -> list[Array]:
    return [part.copy() for part in np.split(a, cuts)]


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_statistics_of_parts(rng: np.random.Generator, layout: str, cuts: tuple[int, int]) -> None:
    x = 3 * rng.standard_normal((12, 5, 3, 5)) + 100
    axis = channel_axis(layout, 4)
    parts = [norm.batch_norm_statistics(p, layout) for p in shards(x, cuts)]
    count, mean, m2 = norm.combine(parts)
    u = flat(x, axis).reshape(-1, 5)
    assert count == len(u)
    assert_allclose(mean, u.mean(0), rtol=1e-12)
    assert_allclose(m2, len(u) * u.var(0), rtol=1e-12)
    with pytest.raises(ValueError, match="parts: expected at least one, got none"):
        norm.combine([])


def across(processes: int, call: Callable[[int, Callable[[Array], None]], Any]) -> list[Any]:
    """What each process gets when all add their sums: calls again until all sums are known."""
    known: list[Array] = []
    while True:
        found: list[Array] = []
        results = []
        for k in range(processes):
            turn = 0

            def reduce(sums: Array, found: list[Array] = found) -> None:
                nonlocal turn
                if turn < len(known):
                    sums[...] = known[turn]
                elif turn == len(known):
                    found.append(sums.copy())
                turn += 1

            results.append(call(k, reduce))
        if not found:
            return results
        known.append(np.sum(found, axis=0))


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_parts_are_the_whole(
    rng: np.random.Generator, layout: str, activation: str | None, cuts: tuple[int, int]
) -> None:
    shape = (12, 3, 5, 3)
    axis = channel_axis(layout, 4)
    x, residual, dy, dyt, xt, residual_t = rng.standard_normal((6, *shape))
    weight, bias, weight_t, bias_t = rng.standard_normal((4, 3))
    whole = Case(
        layout, axis, True, activation, x, weight, bias, residual, 0 * bias, 0 * bias + 1, dy, xt,
        weight_t, bias_t, residual_t, dyt,
    )  # fmt: skip
    fixed = tuple(p.detach() for p in whole.point())
    formula = written_out(whole)
    along = whole.direction()

    def backward(dy: torch.Tensor, *p: torch.Tensor) -> Any:
        return torch.func.vjp(formula, *p)[1](dy)

    first = backward(leaf(dy).detach(), *fixed)
    y_t = torch.func.jvp(formula, fixed, along)[1]
    tangents = torch.func.jvp(backward, (leaf(dy).detach(), *fixed), (leaf(dyt).detach(), *along))[
        1
    ]

    xs, rs, dys, dyts, xts, rts = (shards(a, cuts) for a in (x, residual, dy, dyt, xt, residual_t))
    moments = norm.combine([norm.batch_norm_statistics(p, layout) for p in xs])
    r = 1 / np.sqrt(moments.m2 / moments.elements + EPS)
    ys, saved = zip(*(
        norm.batch_norm_apply(
            a, moments.mean, r, weight, bias, activation, b, layout, negative_slope=SLOPE,
            count=moments.elements,
        )
        for a, b in zip(xs, rs, strict=True)
    ), strict=True)  # fmt: skip
    assert_close(np.concatenate(ys), by_torch(whole)(*whole.point()))

    def assert_joined(results: Any, wanted: Any) -> None:
        """Tensors are put side by side, the parameters' gradients added."""
        for k, w in enumerate(wanted):
            parts = [result[k] for result in results]
            assert_close(np.concatenate(parts) if w.ndim > 1 else sum(parts), w, what=f"{k}")

    sums = [norm.batch_norm_backward_reduce(d, s) for d, s in zip(dys, saved, strict=True)]
    total = [sum(s[k] for s in sums) for k in (0, 1)]
    assert_close(total[0], first[2])
    assert_close(total[1], first[1])
    applied = [
        norm.batch_norm_backward_apply(d, s, *total, moments.elements)
        for d, s in zip(dys, saved, strict=True)
    ]
    assert_joined(applied, (first[0], first[3]))

    def shared(call: Callable[..., Any]) -> list[Any]:
        return across(3, call)

    assert_joined(
        shared(lambda k, add: norm.batch_norm_backward(dys[k], saved[k], reduce=add)), first
    )
    assert_joined(
        shared(lambda k, add: [norm.batch_norm_tangent(
            xts[k], saved[k], weight_t, bias_t, rts[k], reduce=add)]),
        [y_t],
    )  # fmt: skip
    assert_joined(
        shared(lambda k, add: norm.batch_norm_backward_tangent(
            dys[k], dyts[k], xts[k], saved[k], weight_t, bias_t, rts[k], reduce=add)),
        tangents,
    )  # fmt: skip
    other = tuple(leaf(a).detach() for a in (dyt, bias_t, weight_t, dy))
    assert_joined(
        shared(lambda k, add: [norm.batch_norm_second_tangent(
            xts[k], dyts[k], saved[k], weight_t, bias_t, rts[k], bias_t, weight_t, dys[k],
            reduce=add)]),
        [mixed(formula, fixed, along, other)],
    )  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("options", [{}, {"ghost": 5}, {"noise": norm.Noise(3)}], ids=str)
def test_sums_that_nobody_adds_to(
    rng: np.random.Generator, activation: str | None, options: dict[str, Any]
) -> None:
    x, dy, dyt, xt = rng.standard_normal((4, 12, 3))
    weight, bias, weight_t, bias_t = rng.standard_normal((4, 3))
    _, saved = norm.batch_norm(x, weight, bias, activation=activation, **options)
    along = (weight_t, bias_t)
    for call in (
        lambda reduce: norm.batch_norm_backward(dy, saved, reduce=reduce),
        lambda reduce: [norm.batch_norm_tangent(xt, saved, *along, reduce=reduce)],
        lambda reduce: norm.batch_norm_backward_tangent(dy, dyt, xt, saved, *along, reduce=reduce),
        lambda reduce: norm.batch_norm_double_backward(xt, *along, dy, saved, reduce=reduce),
        lambda reduce: [norm.batch_norm_second_tangent(xt, dyt, saved, *along, reduce=reduce)],
    ):
        for parted, whole in zip(call(lambda sums: None), call(None), strict=True):
            assert_array_equal(parted, whole)


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("axis", "one", "saved.axis: expected an int, got str"),
        ("ghost", 2.5, "saved.ghost: expected an int, got float"),
        ("count", None, "saved.count: expected a number, got NoneType"),
        ("negative_slope", "steep", "saved.negative_slope: expected a number, got str"),
        ("activation", 1, "activation: expected None or a word, got int"),
    ],
)
def test_a_record_of_wrong_kinds_is_refused(field: str, wrong: Any, message: str) -> None:
    x = np.arange(6.0).reshape(3, 2)
    _, saved = norm.batch_norm(x)
    setattr(saved, field, wrong)
    with pytest.raises(TypeError, match=re.escape(message)):
        norm.batch_norm_backward(x, saved)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5, 5), (2, 5, 5, 3)], ids=str)
def test_equal_values(shape: tuple[int, ...], dtype: str) -> None:
    x = np.full(shape, 3.7, dtype)
    bias = np.array([1.0, -2.0, 0.1], dtype)
    layout = "NHWC" if shape[-1] == 3 else "NCHW"
    mean, var = np.zeros(3, dtype), np.ones(3, dtype)
    y, saved = norm.batch_norm(x, None, bias, mean, var, layout=layout, momentum=1.0)
    assert_array_equal(y, np.broadcast_to(bias if layout == "NHWC" else bias[:, None, None], shape)
                       if len(shape) > 2 else np.broadcast_to(bias, shape))  # fmt: skip
    assert_array_equal(mean, x.ravel()[0])
    assert_array_equal(var, 0)
    # Every gradient is even over the channel, so nothing is left of it.
    dx = norm.batch_norm_backward(np.ones_like(x), saved)[0]
    assert_array_equal(dx, 0)


@pytest.mark.parametrize("layout", ["NC", "NCHW", "NHWC"])
@pytest.mark.parametrize(("scale", "offset"), [(1e30, 0.0), (1.0, 1e4), (1e-41, 0.0), (1.0, -1e6)])
def test_extreme_values(rng: np.random.Generator, layout: str, scale: float, offset: float) -> None:
    shape = {"NC": (500, 4), "NCHW": (5, 4, 10, 10), "NHWC": (5, 10, 10, 4)}[layout]
    x = (scale * rng.standard_normal(shape) + offset).astype(np.float32)
    y, saved = norm.batch_norm(x, layout=layout)
    exact = x.astype(np.float64)
    others = tuple(a for a in range(x.ndim) if a != channel_axis(layout, x.ndim))
    mean, var = exact.mean(others, keepdims=True), exact.var(others, keepdims=True)
    wanted = (exact - mean) / np.sqrt(var + 1e-5)
    # Of the numbers, or of the smallest subnormal.
    assert_allclose(y, wanted, rtol=1e-6, atol=max(1e-6 * np.abs(wanted).max(), 3e-45))
    assert_allclose(saved.r, 1 / np.sqrt(var + 1e-5).ravel(), rtol=1e-6)


def test_evaluation_in_place(rng: np.random.Generator) -> None:
    for tensor in FEW:
        c = make(rng, tensor, False, "tanh", True)
        wanted = c.forward()[0].copy()
        y = norm.batch_norm(
            c.x, c.weight, c.bias, c.mean, c.var, False, eps=EPS, activation="tanh",
            residual=c.residual, layout=c.layout, out=c.x,
        )[0]  # fmt: skip
        assert y is c.x
        assert_array_equal(y, wanted)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (2, 3, 0)], ids=str)
def test_empty_batch(shape: tuple[int, ...]) -> None:
    x = np.empty(shape)
    seen = np.array(4.0)
    y, saved = norm.batch_norm(x, np.ones(3), np.zeros(3), count=seen)
    assert seen == 5.0  # as PyTorch counts
    dx, dweight, dbias = norm.batch_norm_backward(x, saved)
    assert y.shape == dx.shape == shape
    assert_array_equal((dweight, dbias), np.zeros((2, 3)))


SIZES = {
    "NCHW": ("NCHW", (12, 16, 24, 25)),
    "few large planes": ("NCHW", (2, 3, 100, 101)),
    "NHWC": ("NHWC", (8, 20, 21, 16)),
    "three channels": ("NHWC", (8, 40, 41, 3)),
    "NC": ("NC", (1500, 37)),
    "1025 channels": ("NC", (64, 1025)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["leaky_relu", "gelu"])
@pytest.mark.parametrize("size", SIZES)
def test_same_bits_at_every_setting(
    rng: np.random.Generator,
    on_every_setting: Setting,
    size: str,
    activation: str,
    dtype: torch.dtype,
) -> None:
    layout, shape = SIZES[size]
    channels = shape[channel_axis(layout, len(shape))]
    wide = torch.from_numpy(rng.standard_normal((4, *shape))).to(dtype)
    x, dy, xt, residual = wide
    parameter = torch.float64 if dtype is torch.float64 else torch.float32
    weight, bias, weight_t = torch.from_numpy(rng.standard_normal((3, channels))).to(parameter)

    def everything() -> list[bytes]:
        mean, var = torch.zeros(channels, dtype=parameter), torch.ones(channels, dtype=parameter)
        y, saved = norm.batch_norm(
            x, weight, bias, mean, var, activation=activation, residual=residual, layout=layout
        )
        results = [
            y, mean, var, saved.statistics,
            *norm.batch_norm_backward(dy, saved),
            norm.batch_norm_tangent(xt, saved, weight_t),
            *norm.batch_norm_backward_tangent(dy, xt, xt, saved, weight_t),
            *norm.batch_norm_double_backward(xt, weight_t, None, dy, saved),
            norm.batch_norm_second_tangent(xt, dy, saved, weight_t, None, residual),
        ]  # fmt: skip
        return [a.contiguous().view(torch.uint8).numpy().tobytes() for a in results]

    results = on_every_setting(everything)
    first = next(iter(results.values()))
    for setting, result in results.items():
        assert [a == b for a, b in zip(result, first, strict=True)] == [True] * len(first), setting


def test_saves_a_bit_a_value(rng: np.random.Generator) -> None:
    c = make(rng, "NCHW", True, "relu")
    assert c.forward()[1].gate is None
    c = make(rng, "NCHW", True, "relu", True)
    saved = c.forward()[1]
    assert saved.residual is None
    rounded = 8 * c.x.shape[0] * c.x.shape[1]  # a plane may start at a word of its own
    assert saved.gate.nbytes <= c.x.size / 8 + rounded


X = np.arange(24.0).reshape(4, 3, 2)
ONE = np.ones(3)
ASKED: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "dtype": (TypeError, "x: expected dtype float32, float64, bfloat16 or float16, got int64",
              lambda: norm.batch_norm(X.astype(np.int64))),
    "axes": (ValueError, "x: expected an axis for each letter of NCHW, got (24,)",
             lambda: norm.batch_norm(X.ravel())),
    "letters": (ValueError, "x: expected an axis for each letter of NCDHW, got (4, 3, 2)",
                lambda: norm.batch_norm(X, layout="NCDHW")),
    "layout": (ValueError, "layout: expected 'NC', 'NCL', 'NCHW', 'NCDHW', 'NLC', 'NHWC' or "
               "'NDHWC', got 'NCWH'", lambda: norm.batch_norm(X, layout="NCWH")),
    "activation": (ValueError, "activation: expected None, 'relu', 'leaky_relu', 'gelu' or 'tanh', "
                   "got 'elu'", lambda: norm.batch_norm(X, activation="elu")),
    "weight's shape": (ValueError, "weight: expected shape (3,), got (2,)",
                       lambda: norm.batch_norm(X, np.ones(2))),
    "weight's dtype": (TypeError, "weight: expected dtype float64, got float32",
                       lambda: norm.batch_norm(X, np.ones(3, np.float32))),
    "residual's shape": (ValueError, "residual: expected shape (4, 3, 2), got (4, 3, 1)",
                         lambda: norm.batch_norm(X, residual=X[:, :, :1])),
    "residual's dtype": (TypeError, "residual: expected dtype float64, got float32",
                         lambda: norm.batch_norm(X, residual=X.astype(np.float32))),
    "one value": (ValueError, "x: expected more than 1 value per channel when training, got (1, 3)",
                  lambda: norm.batch_norm(X[:1, :, 0])),
    "one pixel": (ValueError, "x: expected more than 1 value per channel when training, "
                  "got (1, 3, 1)", lambda: norm.batch_norm(X[:1, :, :1])),
    "one row left": (ValueError, "x: expected more than 1 value per channel when training, "
                     "got (4, 3)", lambda: norm.batch_norm(X[:, :, 0], ghost=3)),
    "running statistics": (ValueError, "running_mean: expected an array in evaluation, got None",
                           lambda: norm.batch_norm(X, training=False)),
    "one of them": (ValueError, "running_var: expected given together with running_mean, "
                    "got one of them", lambda: norm.batch_norm(X, running_mean=ONE)),
    "renorm": (ValueError, "running_mean: expected an array in renormalization, got None",
               lambda: norm.batch_norm(X, renorm=(2.0, 1.0))),
    "renorm's bounds": (ValueError, "renorm: expected r_max of at least 1 and d_max of at least 0, "
                        "got (0.5, 1.0)",
                        lambda: norm.batch_norm(X, None, None, 0 * ONE, ONE, renorm=(0.5, 1.0))),
    "noise": (ValueError, "noise.scale: expected a finite number of at least 1",
              lambda: norm.batch_norm(X, noise=norm.Noise(1, scale=0.5))),
    "count": (ValueError, "count: expected an array for momentum=None, got None",
              lambda: norm.batch_norm(X, None, None, 0 * ONE, ONE, momentum=None)),
    "ghost": (ValueError, "ghost: expected at least 1, got 0",
              lambda: norm.batch_norm(X, ghost=0)),
    "out": (ValueError, "out: expected shape (4, 3, 2), got (4, 2, 3)",
            lambda: norm.batch_norm(X, out=np.empty((4, 2, 3)))),
}  # fmt: skip


NUMBERS: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "eps below 0": (ValueError, "eps: expected a finite number of at least 0, got -1.0",
                    {"eps": -1}),
    "eps NaN": (ValueError, "eps: expected a finite number", {"eps": np.float32(np.nan)}),
    "eps infinite": (ValueError, "eps: expected a finite number", {"eps": np.inf}),
    "eps a word": (TypeError, "eps: expected a number, got '1e-5'", {"eps": "1e-5"}),
    "eps None": (TypeError, "eps: expected a number, got None", {"eps": None}),
    "eps complex": (TypeError, "eps: expected a number, got 1j", {"eps": 1j}),
    "eps an array": (TypeError, "eps: expected a number, got array", {"eps": np.ones(3)}),
    "momentum below 0": (ValueError, "momentum: expected None or a number within [0, 1], got -1.0",
                         {"momentum": -1.0}),
    "momentum above 1": (ValueError, "momentum: expected None", {"momentum": 1.5}),
    "momentum NaN": (ValueError, "momentum: expected None", {"momentum": np.nan}),
    "momentum a word": (TypeError, "momentum: expected a number, got '0.1'", {"momentum": "0.1"}),
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("error", "message", "given"), NUMBERS.values(), ids=NUMBERS)
def test_refused_numbers(
    error: type[Exception], message: str, given: dict[str, Any], training: bool
) -> None:
    mean, var, count = 0 * ONE, ONE.copy(), np.zeros(())
    with pytest.raises(error, match=re.escape(message)):
        norm.batch_norm(X, None, None, mean, var, training, count=count, **given)
    assert_array_equal((mean, var), (0 * ONE, ONE))
    assert count == 0
    with pytest.raises(error, match=re.escape(message)):
        nn.BatchNorm(3, **given)


@pytest.mark.parametrize("eps", [np.float32(0.5), np.float64(0.5), np.array(0.5),
                                 torch.tensor(0.5)], ids=lambda e: type(e).__name__)  # fmt: skip
def test_numbers_of_other_kinds(eps: Any) -> None:
    mean, var = 0 * ONE, ONE.copy()
    y, _ = norm.batch_norm(X, None, None, mean, var, momentum=np.float32(0.5), eps=eps)
    assert_array_equal(y, norm.batch_norm(X, eps=0.5)[0])
    assert_allclose(mean, 0.5 * X.mean((0, 2)), rtol=1e-12)


@pytest.mark.parametrize(("error", "message", "call"), ASKED.values(), ids=ASKED)
def test_refusals(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_refused_memory() -> None:
    x, mean, var = X.copy(), 0 * ONE, ONE.copy()
    with pytest.raises(ValueError, match="memory of its own"):
        norm.batch_norm(x, None, None, mean, var, out=x)
    fixed = np.empty_like(x)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="a writable array"):
        norm.batch_norm(x, None, None, mean, var, out=fixed)
    # Nothing has been written.
    assert_array_equal(x, X)
    assert_array_equal((mean, var), (0 * ONE, ONE))
    saved = norm.batch_norm(x)[1]
    with pytest.raises(ValueError, match=re.escape("dy: expected shape (4, 3, 2), got (4, 3)")):
        norm.batch_norm_backward(X[:, :, 0], saved)


def test_memory_that_is_gone_is_named() -> None:
    """A step reads it by an address; so does this."""
    x, gone = torch.randn(4, 3), torch.randn(4, 3)
    gone.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="x: expected a tensor with memory, got one without"):
        norm.batch_norm(gone)
    with pytest.raises(ValueError, match="out: expected a tensor with memory, got one without"):
        norm.batch_norm(x, out=gone)


def test_interleaved_arrays_share_no_element(rng: np.random.Generator) -> None:
    """Their ranges of addresses meet, and nothing that is read is written."""
    both = rng.standard_normal((6, 4))
    before, out = both[:, ::2].copy(), both[:, 1::2]
    norm.batch_norm(both[:, ::2], out=out)
    assert_array_equal(out, norm.batch_norm(before)[0])
    assert_array_equal(both[:, ::2], before)
    with pytest.raises(ValueError, match="out: expected memory of its own, got an overlap with x"):
        norm.batch_norm(both[:, :2], out=both[:, 1:3])


@pytest.mark.parametrize(
    "lazy",
    [
        torch.ones(4, 3, dtype=torch.complex64).conj().imag,
        torch._efficientzerotensor(4, 3),
    ],
    ids=["negative", "zero"],
)
def test_numbers_that_are_not_in_memory(lazy: torch.Tensor) -> None:
    """PyTorch's lazy tensors say nothing of it through DLPack."""
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="x: expected its numbers in memory"):
        norm.batch_norm(lazy)
    with pytest.raises(ValueError, match="residual: expected its numbers in memory"):
        norm.batch_norm(x, residual=lazy)
    _, saved = norm.batch_norm(x)
    with pytest.raises(ValueError, match="dy: expected its numbers in memory"):
        norm.batch_norm_backward(lazy, saved)
    norm.batch_norm(lazy.clone())


def test_a_count_that_cannot_count_is_refused_first() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    fixed = np.array(0)
    fixed.setflags(write=False)
    for count in (fixed, 3, np.int64(3), np.zeros(2, int), np.array(-1)):
        running = np.zeros(3, np.float32), np.ones(3, np.float32)
        with pytest.raises((TypeError, ValueError), match=r"^count: expected"):
            norm.batch_norm(x, running_mean=running[0], running_var=running[1], count=count)
        assert not running[0].any()
