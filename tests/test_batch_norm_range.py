"""Batch normalization where numbers leave their range: huge and tiny deviations, infinities, NaN.

With eps = 0 it does not know units: in x multiplied by a power of two y is the same, and each
derivative is that at 1, multiplied by a power of two. So what is known there is known everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

import saddlepoint.torch.nn as ours
from saddlepoint import norm

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

ACTIVATIONS = (None, "relu", "leaky_relu", "gelu")
# (shape, layout, which channels are scaled)
SHAPES: dict[str, tuple[tuple[int, ...], str, Any]] = {
    "NCHW": ((4, 3, 5, 7), "NCHW", slice(1, 3)),
    "NC": ((33, 40), "NC", [3, 17, 39]),
    "NHWC": ((6, 11, 7, 5), "NHWC", [1]),
    "three channels": ((8, 10, 10, 3), "NHWC", [2]),
    "1025 channels": ((5, 1025), "NC", [0, 8, 1024]),
}
POWERS = (-118, -100, -70, -45, 45, 70, 100, 118)


def everything(
    rng: np.random.Generator, shape: tuple[int, ...], layout: str, activation: str | None,
    residual: bool, unit: Any,
) -> dict[str, Any]:  # fmt: skip
    """All derivatives in units of x of one channel each."""
    channels = shape[1] if layout in ("NC", "NCHW") else shape[-1]
    x, xt, xu, dy, dyt, r, rt, ru = rng.standard_normal((8, *shape)).astype("f4")
    w, b, wt, bt, wu, bu = (rng.standard_normal((6, channels)) + 1).astype("f4")
    units = unit if layout[-1] == "C" else unit.reshape(-1, *(1,) * (len(shape) - 2))
    one = (wt, bt, rt) if residual else (wt, bt)
    other = (wu, bu, ru) if residual else (wu, bu)
    y, saved = norm.batch_norm(
        x * units, w, b, eps=0.0, activation=activation, residual=r if residual else None,
        layout=layout, negative_slope=0.2,
    )  # fmt: skip
    dx, *rest = norm.batch_norm_backward(dy, saved)
    dxt, *rest_t = norm.batch_norm_backward_tangent(dy, dyt, xt * units, saved, *one)
    ddy, dx2, *rest2 = norm.batch_norm_double_backward(
        xt * units, wt, bt, dy, saved, rt if residual else None
    )
    return {
        "y": y, "dx": dx * units, "rest": rest, "dx'": dxt * units, "rest'": rest_t,
        "y'": norm.batch_norm_tangent(xt * units, saved, *one),
        "ddy": ddy, "dx of double backward": dx2 * units, "rest of double backward": rest2,
    } | ({} if residual else {
        "y''": norm.batch_norm_second_tangent(xt * units, xu * units, saved, *one, None, *other),
    })  # fmt: skip


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_units_of_x(kind: str, activation: str | None, residual: bool) -> None:
    shape, layout, scaled = SHAPES[kind]
    channels = shape[1] if layout in ("NC", "NCHW") else shape[-1]
    one = np.ones(channels, "f4")
    wanted = everything(np.random.default_rng(1), shape, layout, activation, residual, one)
    for power in POWERS:
        unit = one.copy()
        unit[scaled] = 2.0**power
        got = everything(np.random.default_rng(1), shape, layout, activation, residual, unit)
        for name, value in wanted.items():
            pairs = zip(got[name], value, strict=True) if isinstance(value, list) else (
                (got[name], value),)  # fmt: skip
            for a, b in pairs:
                bound = 2e-5 * max(1.0, float(np.abs(b).max()))
                assert_allclose(a, b, rtol=0, atol=bound, err_msg=f"2^{power}: {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("power", [-20, -30, 20, 30])
def test_as_torch_in_float64(power: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(power)
    x = (10.0**power * torch.randn(64, 3, generator=generator, dtype=torch.float64)).to(dtype)
    dy = torch.randn(64, 3, generator=generator).to(dtype)
    eps = 1e-5 if power > 0 else 1e-300
    sides = []
    for leaf in (x.double().requires_grad_(), x.clone().requires_grad_()):
        batch_norm = ours.functional.batch_norm if leaf.dtype is dtype else torch.batch_norm
        rest = {} if leaf.dtype is dtype else {"cudnn_enabled": False}
        y = batch_norm(
            leaf, running_mean=None, running_var=None, weight=None, bias=None, training=True,
            momentum=0.1, eps=eps, **rest,
        )  # fmt: skip
        (dx,) = torch.autograd.grad(y, leaf, dy.to(leaf.dtype))
        sides.append((y.detach().double(), dx.double()))
    slack = 1e-6 if dtype is torch.float32 else 2.0**-7
    for wanted, got in zip(*sides, strict=True):
        assert float((got - wanted).abs().max()) <= slack * float(wanted.abs().max())


def test_a_difference_beyond_float32() -> None:
    """x - mean overflows and y does not."""
    x = np.array([[3e38, 1.0], [-3e38, 2.0], [3e38, 3.0], [-2e38, 5.0]], "f4")
    y, saved = norm.batch_norm(x)
    exact = x.astype(np.float64)
    h = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert_allclose(y, h, rtol=1e-6)
    dy = np.array([[1.0, 2.0], [0.5, 1.0], [-1.0, 0.0], [2.0, 1.0]], "f4")
    dx = norm.batch_norm_backward(dy, saved)[0]
    wanted = (dy - dy.mean(0) - h * (h * dy).mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    assert_allclose(dx[:, 1], wanted[:, 1], rtol=1e-5)
    assert_allclose(dx[:, 0], wanted[:, 0], rtol=1e-5, atol=2e-45)  # subnormal


@pytest.mark.parametrize("shape", [(64, 1025), (2, 2, 4, 8)], ids=str)
def test_tiny_numbers_about_zero(shape: tuple[int, ...]) -> None:
    """Their sum is zero, and their squares vanish in float32."""
    x = np.full(shape, 1e-25, "f4")
    (x if len(shape) == 2 else x.T)[1::2] *= -1
    y, saved = norm.batch_norm(x, eps=0.0)
    assert_allclose(np.abs(y), 1.0, rtol=1e-6)
    assert_allclose(saved.r, 1e25, rtol=1e-6)


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 4, 4)], ids=str)
@pytest.mark.parametrize("activation", [None, "relu"], ids=str)
def test_in_place_where_channels_need_double(
    rng: np.random.Generator, shape: tuple[int, ...], activation: str | None
) -> None:
    """Each element is read before it is written, and once."""
    x, residual = rng.standard_normal((2, *shape)).astype("f4")
    mean, var = np.zeros(9, "f4"), np.ones(9, "f4")
    x[:, 4] *= np.float32(1e30)
    var[4] = np.inf
    mean[7], var[2] = 1e35, 1e-30
    given = (None, None, mean, var, False, 0.1, 0.0, activation, residual)
    wanted, kept = norm.batch_norm(x, *given)
    y, saved = norm.batch_norm(x.copy(), *given)
    z = x.copy()
    norm.batch_norm(z, *given, out=z)
    assert_array_equal(z, wanted)
    dy = np.ones_like(x)
    for a, b in zip(
        norm.batch_norm_backward(dy, saved), norm.batch_norm_backward(dy, kept), strict=True
    ):
        assert_array_equal(a, b)
    exact = residual + (x - mean.reshape(9, *(1,) * (x.ndim - 2)).astype("f8")) / np.sqrt(
        var.reshape(9, *(1,) * (x.ndim - 2)).astype("f8")
    )
    plain = exact if activation is None else np.maximum(exact, 0)
    assert_allclose(y, plain, rtol=1e-5, atol=1e-5)
    dresidual = norm.batch_norm_backward(dy, saved)[3]
    assert_array_equal(dresidual, 1.0 if activation is None else exact > 0)


# Evaluation: one number is all that a gradient depends on.


def evaluated(
    x: Tensor, dy: Tensor, residual: Tensor | None, activation: str | None, batch_norm: Any
) -> list[Tensor]:
    weight, bias = torch.tensor([1.5, -0.5, 2.0]), torch.tensor([0.1, 0.2, -0.3])
    mean, var = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 4.0, 0.5])
    leaves = [t.clone().requires_grad_() for t in (x, residual, weight, bias) if t is not None]
    added = leaves[1] if residual is not None else None
    scale, shift = (p.to(torch.float32) for p in leaves[-2:])
    y = batch_norm(leaves[0], mean, var, scale, shift, added, activation)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def by_torch(x: Any, mean: Any, var: Any, w: Any, b: Any, residual: Any, activation: Any) -> Any:
    y = torch.nn.functional.batch_norm(x, mean, var, w, b)
    y = y if residual is None else y + residual
    act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh,
           "leaky_relu": torch.nn.functional.leaky_relu}  # fmt: skip
    return act[activation](y) if activation else y


def by_us(x: Any, mean: Any, var: Any, w: Any, b: Any, residual: Any, activation: Any) -> Any:
    return ours.functional.batch_norm(x, mean, var, w, b, residual=residual, activation=activation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", ["x", "dy"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"], ids=str)
@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 4, 5)], ids=str)
def test_evaluation_with_a_bad_number_is_torchs(
    shape: tuple[int, ...], activation: str | None, residual: bool, bad: float, where: str,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """y, and the gradients of everything."""
    generator = torch.Generator().manual_seed(3)
    x, dy, r = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    (x if where == "x" else dy).view(-1)[1] = bad
    given = (x, dy, r if residual else None, activation)
    got, wanted = evaluated(*given, by_us), evaluated(*given, by_torch)
    slack = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=slack, atol=slack, equal_nan=True)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu"], ids=str)
@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 4, 5)], ids=str)
def test_directions_of_x_in_evaluation(shape: tuple[int, ...], activation: str | None) -> None:
    """They are y' = act' γ r x' and nothing else, whatever x and dy hold elsewhere."""
    rng = np.random.default_rng(2)
    x, dy, xt, xu, dyt = rng.standard_normal((5, *shape)).astype("f4")
    weight, mean, var = np.array([[1.5, -0.5, 2.0], [0.5, -1.0, 0.0], [1.0, 4.0, 0.5]], "f4")
    zeros = (0,) * (len(shape) - 2)
    x[(0, 0, *zeros)] = np.inf
    dy[(1, 1, *zeros)] = -np.inf
    _, saved = norm.batch_norm(x, weight, None, mean, var, False, activation=activation)
    per = (1, 3, *(1,) * (len(shape) - 2))
    r = (1 / np.sqrt(var + 1e-5)).reshape(per)
    z = (x - mean.reshape(per)) * r * weight.reshape(per)
    slope = np.where(z > 0, 1.0, {None: 1.0, "relu": 0.0, "leaky_relu": 0.01}[activation])
    scale = slope * r * weight.reshape(per)
    assert_allclose(norm.batch_norm_tangent(xt, saved), scale * xt, rtol=1e-5)
    assert_array_equal(norm.batch_norm_second_tangent(xt, xu, saved), 0.0)
    dxt, dwt, dbt = norm.batch_norm_backward_tangent(dy, dyt, xt, saved)
    assert_allclose(dxt, scale * dyt, rtol=1e-5)
    others = tuple(a for a in range(x.ndim) if a != 1)
    assert_allclose(dbt, (slope * dyt).sum(others), rtol=1e-4, atol=1e-6)
    finite = [2]  # in the others an infinity is in the sum
    with np.errstate(invalid="ignore"):
        dz, dzt = np.where(slope == 0, 0, slope * dy), slope * dyt
        of_x = (dz * xt * r).sum(others)
        wanted = (dzt * z / weight.reshape(per)).sum(others) + of_x
    assert_allclose(dwt[finite], wanted[finite], rtol=1e-4)
    ddy, dx, dweight = norm.batch_norm_double_backward(xt, None, None, dy, saved)
    assert_allclose(ddy, scale * xt, rtol=1e-5)
    assert_array_equal(dx, 0.0)
    assert_allclose(dweight[finite], of_x[finite], rtol=1e-4)
    assert bool(np.isinf(dweight[1])) == bool(slope[(1, 1, *zeros)])
