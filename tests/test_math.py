"""csrc/core/math.hpp, through the activations that use it, against 80-bit arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray
from scipy.special import ndtr

from saddlepoint import _core, nn, norm

Array = NDArray[Any]

DTYPES = ("float32", "float64")
# Below it exp would be subnormal: it is zero there, and so is the sigmoid.
BOTTOM = {"float32": np.log(np.finfo("f4").tiny), "float64": np.log(np.finfo("f8").tiny)}


def apply(layer: nn.Layer, x: Array) -> Array:
    """The layer's output for a row of any length."""
    native = getattr(_core, f"Pass_{x.dtype}")(layer.spec(x.size), 1, "value", False)
    row, y = x.reshape(1, -1), np.empty((1, x.size), x.dtype)
    native.evaluate(row, None, None, np.empty(0, x.dtype), None, False, 1.0, None, False)
    native.output(y)
    return np.ravel(y)


def errors(y: Array, exact: Array) -> Array:
    """|y − exact| in units of the last place of the exact value."""
    rounded = np.maximum(np.abs(exact.astype(y.dtype)), np.finfo(y.dtype).tiny)
    return np.asarray(np.abs(y - exact) / np.spacing(rounded))


def grid(dtype: str) -> Array:
    """Dense where the functions bend, spread over all magnitudes elsewhere."""
    tiny = np.log10(np.finfo(dtype).tiny)
    magnitudes = np.logspace(tiny, np.log10(-BOTTOM[dtype]), 200_001)[:-1]
    bends = np.linspace(-45.0, 45.0, 400_001), np.linspace(-3.0, 3.0, 400_001)
    return np.concatenate([magnitudes, -magnitudes, *bends]).astype(dtype)


def exact_tanh(x: Array) -> Array:
    return np.asarray(np.tanh(x.astype(np.longdouble)))


def exact_sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.longdouble))))


# The header's bounds; measured here: tanh 2.4 and 2.5 ulp, sigmoid 2.8 and 2.8.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("layer", "exact", "bound"), [(nn.Tanh(), exact_tanh, 3.0), (nn.Sigmoid(), exact_sigmoid, 3.0)]
)
def test_errors_stay_within_the_stated_bounds(
    layer: nn.Layer, exact: Callable[[Array], Array], bound: float, dtype: str
) -> None:
    x = grid(dtype)
    assert errors(apply(layer, x), exact(x)).max() <= bound


# 1 + e rounds to 1 below −40, so the sigmoid is exp itself there. Measured over all floats: 1.06.
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1.1), ("float64", 1.0)])
def test_exp_where_the_sigmoid_is_exp(dtype: str, bound: float) -> None:
    x = np.linspace(BOTTOM[dtype] + 1e-3, -40.0, 1_000_001).astype(dtype)
    exact = np.asarray(np.exp(x.astype(np.longdouble)))
    assert errors(apply(nn.Sigmoid(), x), exact).max() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(dtype: str) -> None:
    limits = np.finfo(dtype)
    below = 1.01 * BOTTOM[dtype]
    subnormal = float(limits.smallest_subnormal)
    cases: list[tuple[float, float, float, float]] = [
        # x, tanh, sigmoid, relu
        (0.0, 0.0, 0.5, 0.0),
        (-0.0, 0.0, 0.5, 0.0),
        (np.inf, 1.0, 1.0, np.inf),
        (-np.inf, -1.0, 0.0, 0.0),
        (np.nan, np.nan, np.nan, np.nan),
        (float(limits.max), 1.0, 1.0, float(limits.max)),
        (-float(limits.max), -1.0, 0.0, 0.0),
        (float(limits.tiny), float(limits.tiny), 0.5, float(limits.tiny)),
        (-float(limits.tiny), -float(limits.tiny), 0.5, 0.0),
        (subnormal, subnormal, 0.5, subnormal),
        (-subnormal, -subnormal, 0.5, 0.0),
        (below, -1.0, 0.0, 0.0),
        (-below, 1.0, 1.0, np.array(-below, dtype).item()),
    ]
    x, tanh, sigmoid, relu = np.array(cases).astype(dtype).T.copy()
    assert_array_equal(apply(nn.Tanh(), x), tanh)
    assert_array_equal(apply(nn.Sigmoid(), x), sigmoid)
    assert_array_equal(apply(nn.ReLU(), x), relu)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [nn.Tanh(), nn.Sigmoid()])
def test_symmetry_and_range(layer: nn.Layer, dtype: str) -> None:
    """tanh is odd to the bit, and neither leaves its range."""
    x = grid(dtype)
    y = apply(layer, x)
    low = -1.0 if layer.kind == "tanh" else 0.0
    assert low <= y.min()
    assert y.max() <= 1.0
    if layer.kind == "tanh":
        assert_array_equal(apply(layer, -x), -y)


def gelu(x: Array) -> Array:
    """x Φ(x), as batch normalization with mean 0 and variance 1 applies it."""
    zero, one = np.zeros(1, x.dtype), np.ones(1, x.dtype)
    column = x.reshape(-1, 1)
    y, _ = norm.batch_norm(column, None, None, zero, one, False, eps=0.0, activation="gelu")
    return np.ravel(y)


# Measured: 5.0 and 3.6 ulp, the product included.
def test_errors_of_the_normal_distribution() -> None:
    x = np.linspace(-13.0, 6.0, 1_000_001).astype("float32")
    wide = x.astype("float64")
    assert errors(gelu(x), wide * ndtr(wide)).max() <= 5.5
    x = np.concatenate([np.linspace(-37.0, 8.0, 2001), np.linspace(-2.0, 2.0, 1001)])
    with mpmath.workprec(120):
        exact = [str(mpmath.mpf(v) * mpmath.ncdf(mpmath.mpf(v))) for v in x.tolist()]
    assert errors(gelu(x), np.array(exact, np.longdouble)).max() <= 4.5


def cross_entropy(z: Array, label: int = 0) -> float:
    """The loss of one row of logits."""
    native = getattr(_core, f"Pass_{z.dtype}")(
        nn.Identity().spec(z.size, "cross_entropy"), 1, "value", False
    )
    y, theta = np.array([label], np.int32), np.empty(0, z.dtype)
    native.evaluate(z.reshape(1, -1), y, None, theta, None, False, 1.0, None, False)
    return float(native.loss())


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_where_the_cross_entropy_is_log(dtype: str) -> None:
    """Equal logits sum to their number, which is exact. Measured: .55 ulp."""
    numbers = np.arange(2, 3000)
    losses = np.array([cross_entropy(np.full(n, 3.0, dtype)) for n in numbers])
    assert errors(losses, np.log(numbers.astype(np.longdouble))).max() <= 0.6
    assert cross_entropy(np.zeros(1, dtype)) == 0.0


def test_cross_entropy_of_two_is_softplus() -> None:
    """The sum, its smaller part and its logarithm are rounded once each. Measured: 1.3e-16."""
    d = np.linspace(0.0, 50.0, 5001)
    losses = np.array([cross_entropy(np.array([0.0, -x])) for x in d])
    assert np.abs(losses - np.log1p(np.exp(-d.astype(np.longdouble)))).max() <= 2.5e-16


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_passes_the_cross_entropy(dtype: str) -> None:
    """As PyTorch's: an impossible class costs nothing, a certain one or a NaN has no loss."""
    inf, nan = np.inf, np.nan
    rows = [
        ([0.0, -inf], 0, 0.0),
        ([0.0, -inf], 1, inf),
        ([0.0, inf], 0, nan),
        ([0.0, inf], 1, nan),
        ([-inf, -inf], 0, nan),
        ([nan, 0.0], 1, nan),
        ([0.0, nan], 0, nan),
        ([0.0, 1.0, nan, 2.0], 3, nan),
    ]
    for z, label, expected in rows:
        assert_array_equal(cross_entropy(np.array(z, dtype), label), expected)
