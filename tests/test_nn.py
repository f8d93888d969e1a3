"""Layers: the five identities of their four methods, the reference, and what a network is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from networks import leaves, random_problem, to_reference, to_torch
from reference import derivative, layers
from reference.batch_norm import running_update as reference_update
from saddlepoint import _core, nn

Array = NDArray[Any]
Setting = Callable[[Callable[[], Any]], dict[str, Any]]

EPS = np.finfo(np.float64).eps

# A layer for an input of c columns, and whether batch normalization is frozen.
LAYERS: dict[str, tuple[Callable[[int], nn.Layer], bool]] = {
    "linear": (lambda c: nn.Linear(c, c + 2), False),
    "linear-narrow": (lambda c: nn.Linear(c, 1), False),
    "linear-without-bias": (lambda c: nn.Linear(c, 2 * c, bias=False), False),
    "batch-norm": (lambda c: nn.BatchNorm(c, eps=1e-3), False),
    # Over two rows all of dx but eps/(var + eps) cancels: a larger eps leaves something to compare.
    "batch-norm-plain": (lambda c: nn.BatchNorm(c, eps=0.1, affine=False), False),
    "batch-norm-frozen": (lambda c: nn.BatchNorm(c), True),
    "batch-norm-plain-frozen": (lambda c: nn.BatchNorm(c, affine=False), True),
    "relu": (lambda c: nn.ReLU(), False),
    "leaky-relu": (lambda c: nn.LeakyReLU(), False),
    "gelu": (lambda c: nn.GELU(), False),
    "tanh": (lambda c: nn.Tanh(), False),
    "sigmoid": (lambda c: nn.Sigmoid(), False),
    "identity": (lambda c: nn.Identity(), False),
    "sequential": (lambda c: mixed(c), False),
    "sequential-frozen": (lambda c: mixed(c), True),
}
# Rows and columns: the smallest, then past a slab of 64 rows and a block of 128 columns.
SHAPES = [(2, 1), (5, 3), (67, 130), (150, 33)]


def mixed(columns: int) -> nn.Layer:
    inner = nn.Sequential(nn.ReLU(), nn.Linear(7, 5, bias=False), nn.Sigmoid())
    return nn.Sequential(
        nn.BatchNorm(columns), nn.Linear(columns, 7), nn.Tanh(), inner, nn.BatchNorm(5, 1e-2)
    )


@dataclass
class Map:
    """A layer as a map z = (θ, x) ↦ y of vectors, with its native derivatives at one z."""

    layer: nn.Layer
    frozen: bool
    buffers: Array
    rows: int
    columns: int
    z: Array

    @cached_property
    def spec(self) -> dict[str, Any]:
        return self.layer.spec(self.columns)

    @cached_property
    def native(self) -> Any:
        native = _core.Pass_float64(self.spec, self.rows, "product", self.frozen, True)
        theta, x = self.split(self.z[None])
        native.evaluate(
            x[0], None, None, theta[0], self.buffers, False, 1.0, np.empty(theta[0].size), False
        )
        return native

    @property
    def y_shape(self) -> tuple[int, int]:
        return self.rows, self.spec["outputs"]

    def split(self, z: Array) -> tuple[Array, Array]:
        """θ (k, n) and x (k, rows, columns) of k vectors."""
        n = self.layer.size
        return z[:, :n].copy(), z[:, n:].reshape(len(z), self.rows, self.columns).copy()

    def join(self, theta: Array, x: Array) -> Array:
        return np.concatenate([theta, x.reshape(len(x), -1)], axis=1)

    def at(self, z: Array) -> Map:
        return Map(self.layer, self.frozen, self.buffers, self.rows, self.columns, z)

    def value(self) -> Array:
        y = np.empty(self.y_shape)
        self.native.output(y)
        return np.ravel(y)

    def tangent(self, directions: Array) -> Array:
        """J v for each row v: (k, |z|) -> (k, |y|)."""
        yt = np.empty((len(directions), *self.y_shape))
        self.native.forward_tangent(*self.split(directions), yt)
        return yt.reshape(len(directions), -1)

    def pull_back(self, dy: Array) -> Array:
        """Jᵀ dy."""
        theta, x = np.empty((1, self.layer.size)), np.empty((1, self.rows, self.columns))
        self.native.backward(dy.reshape(self.y_shape), theta[0], x[0])
        joined = self.join(theta, x)
        return np.ravel(joined)

    def pull_back_tangent(self, dy: Array, directions: Array, dyt: Array) -> Array:
        """The derivative of Jᵀ dy where z moves along each direction, and dy along dyt."""
        k = len(directions)
        self.pull_back(dy)
        self.tangent(directions)
        theta, x = np.empty((k, self.layer.size)), np.empty((k, self.rows, self.columns))
        self.native.backward_tangent(dyt.reshape(k, *self.y_shape), theta, x)
        return self.join(theta, x)


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    rows, columns = request.param
    return rows, columns


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest, shape: tuple[int, int], rng: np.random.Generator) -> Map:
    make, frozen = LAYERS[request.param]
    rows, columns = shape
    made = make(columns)
    params = made.init(rng, "float64")
    theta = params.theta + 0.3 * rng.standard_normal(made.size)
    buffers = np.abs(params.buffers + 0.5 * rng.standard_normal(params.buffers.size)) + 0.1
    x = rng.standard_normal(shape)
    x += np.copysign(0.05, x)  # finite differences stay on one side of ReLU's kink
    return Map(made, frozen, buffers, rows, columns, np.concatenate([theta, x.ravel()]))


def scaled(error: Array | float, *factors: Array) -> float:
    """An error relative to the product of norms."""
    return float(np.linalg.norm(error) / max(np.prod([np.linalg.norm(f) for f in factors]), 1e-300))


# Central differences err by h²/6 times a third derivative and by EPS/h: 1e-10 each at this h; the
# third derivatives of a normalization over 2 rows, 1/var^(3/2), are up to a thousand.
H = 1e-5
DIFFERENCES = 1e-6


def test_tangents_are_differences_of_values(layer: Map, rng: np.random.Generator) -> None:
    v = rng.standard_normal(layer.z.size)
    difference = (layer.at(layer.z + H * v).value() - layer.at(layer.z - H * v).value()) / (2 * H)
    assert scaled(layer.tangent(v[None])[0] - difference, difference) < DIFFERENCES


def test_product_tangents_are_differences_of_gradients(
    layer: Map, rng: np.random.Generator
) -> None:
    v = rng.standard_normal(layer.z.size)
    dy, dyt = rng.standard_normal((2, layer.value().size))
    above, below = (layer.at(layer.z + s * v).pull_back(dy + s * dyt) for s in (H, -H))
    difference = (above - below) / (2 * H)
    product = layer.pull_back_tangent(dy, v[None], dyt[None])[0]
    assert scaled(product - difference, difference) < DIFFERENCES


# Sums of up to 2e4 terms of either sign: a few hundred roundings of the product of norms at most.
ROUNDING = 200 * EPS


def test_backward_is_the_adjoint_of_the_tangent(layer: Map, rng: np.random.Generator) -> None:
    v, dy = rng.standard_normal(layer.z.size), rng.standard_normal(layer.value().size)
    yt, dz = layer.tangent(v[None])[0], layer.pull_back(dy)
    assert scaled(dy @ yt - dz @ v, dy, yt) < ROUNDING


def test_hessian_is_symmetric(layer: Map, rng: np.random.Generator) -> None:
    """H of ⟨c, y⟩ + ½‖y‖² at dy = c + y: its product moves dy along y', the tangent of y."""
    dy = rng.standard_normal(layer.value().size) + layer.value()
    v = rng.standard_normal((2, layer.z.size))
    hv = layer.pull_back_tangent(dy, v, layer.tangent(v))
    assert scaled(v[0] @ hv[1] - v[1] @ hv[0], v[0], hv[1]) < ROUNDING


def test_tangents_are_linear(layer: Map, rng: np.random.Generator) -> None:
    v, w = rng.standard_normal((2, layer.z.size))
    dy, dv, dw = rng.standard_normal((3, layer.value().size))
    sum_ = 2.0 * v - 3.0 * w
    yt = layer.tangent(np.array([v, w, sum_]))
    assert scaled(2.0 * yt[0] - 3.0 * yt[1] - yt[2], yt[2]) < ROUNDING
    hv = layer.pull_back_tangent(
        dy, np.array([v, w, sum_]), np.array([dv, dw, 2.0 * dv - 3.0 * dw])
    )
    assert scaled(2.0 * hv[0] - 3.0 * hv[1] - hv[2], hv[2]) < ROUNDING


def test_a_block_of_directions_is_one_by_one(layer: Map, rng: np.random.Generator) -> None:
    """To the bit: each direction goes through the same operations."""
    v = rng.standard_normal((3, layer.z.size))
    dy, *dyt = rng.standard_normal((4, layer.value().size))
    block = layer.tangent(v)
    products = layer.pull_back_tangent(dy, v, np.array(dyt))
    for i in range(3):
        one = slice(i, i + 1)
        assert_array_equal(layer.tangent(v[one]), block[one])
        assert_array_equal(layer.pull_back_tangent(dy, v[one], dyt[i][None]), products[one])


def test_four_methods_are_the_references(layer: Map, rng: np.random.Generator) -> None:
    """Value and gradient of the formulas, and complex-step derivatives of both."""
    reference = to_reference(layer.layer, layer.buffers if layer.frozen else None)
    v = rng.standard_normal(layer.z.size)
    dy, dyt = rng.standard_normal((2, layer.value().size))

    def value(z: Array) -> Array:
        theta, x = layer.split(z[None])
        return layers.outputs(reference, theta[0], x[0]).ravel()

    def pull_back(pair: Array) -> Array:
        z, dy = pair[: layer.z.size], pair[layer.z.size :].reshape(layer.y_shape)
        theta, x = layer.split(z[None])
        dx, dtheta = layers.pull_back(reference, theta[0], x[0], dy)
        return np.concatenate([dtheta, dx.ravel()])

    pair, along = np.concatenate([layer.z, dy]), np.concatenate([v, dyt])
    for got, wanted in [
        (layer.value(), value(layer.z)),
        (layer.pull_back(dy), pull_back(pair)),
        (layer.tangent(v[None])[0], derivative(value, layer.z, v)),
        (layer.pull_back_tangent(dy, v[None], dyt[None])[0], derivative(pull_back, pair, along)),
    ]:
        # Both sides round; over 2 rows what is left of dx is smaller than what cancels by var/eps.
        assert scaled(got - wanted, wanted) < 1e-11


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "batch-norm", "sequential"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_at_every_setting(
    name: str, dtype: str, rng: np.random.Generator, on_every_setting: Setting
) -> None:
    """All four methods, at 1 and 2 threads, on every instruction set of the machine."""
    rows, columns, k = 333, 37, 2
    made = LAYERS[name][0](columns)
    spec = made.spec(columns)
    params = made.init(rng, dtype)
    x, xt = (rng.standard_normal(s).astype(dtype) for s in ((rows, columns), (k, rows, columns)))
    dy = rng.standard_normal((rows, spec["outputs"])).astype(dtype)
    dyt = rng.standard_normal((k, *dy.shape)).astype(dtype)
    v = rng.standard_normal((k, made.size)).astype(dtype)

    def four_methods() -> list[bytes]:
        native = getattr(_core, f"Pass_{dtype}")(spec, rows, "product", False, True)
        y, yt = np.empty_like(dy), np.empty_like(dyt)
        dtheta, dx = np.empty_like(params.theta), np.empty_like(x)
        dthetat, dxt = np.empty_like(v), np.empty_like(xt)
        native.evaluate(x, None, None, params.theta, None, False, 1.0, dtheta, False)
        native.output(y)
        native.backward(dy, dtheta, dx)
        native.forward_tangent(v, xt, yt)
        native.backward_tangent(dyt, dthetat, dxt)
        return [a.tobytes() for a in (y, dtheta, dx, yt, dthetat, dxt)]

    results = on_every_setting(four_methods)
    first = results["base, 1 threads"]
    assert [setting for setting, got in results.items() if got != first] == []


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running_statistics(momentum: float | None, dtype: str, rng: np.random.Generator) -> None:
    """Three batches of other sizes, as the reference and as torch.nn.BatchNorm1d."""
    columns = 5
    net = nn.Sequential(nn.Identity(), nn.BatchNorm(columns, momentum=momentum))
    params = net.init(rng, dtype)
    torch_norm = torch.nn.BatchNorm1d(columns, momentum=momentum, dtype=getattr(torch, dtype))
    from_reference = np.zeros(columns), np.ones(columns)
    for seen, rows in enumerate((2, 70, 9)):
        x = (3.0 + 2.0 * rng.standard_normal((rows, columns))).astype(dtype)
        native = getattr(_core, f"Pass_{dtype}")(net.spec(columns), rows, "value", False)
        native.evaluate(x, None, None, params.theta, params.buffers, True, 1.0, None, False)
        from_reference = reference_update(from_reference, x.astype(np.float64), momentum, seen)
        torch_norm(torch.from_numpy(x))
    got = net.unflatten_buffers(params.buffers)
    # Three updates, each a few roundings in double and one when stored.
    tolerance = float(8 * np.finfo(dtype).eps)
    for mine, its, theirs in zip(
        got.values(), (*from_reference, np.array(3)), torch_norm.buffers(), strict=True
    ):
        np.testing.assert_allclose(mine, np.atleast_1d(its), rtol=tolerance, atol=tolerance)
        # PyTorch rounds to its dtype in between.
        np.testing.assert_allclose(mine, theirs.numpy().reshape(-1), rtol=8 * tolerance)


@pytest.mark.parametrize("seed", range(8))
def test_parameters_lie_as_pytorch_lists_them(seed: int) -> None:
    net = random_problem(seed).net
    module = to_torch(net)
    offsets = np.cumsum([0, *(p.numel() for p in module.parameters())])
    wanted = [
        (name, tuple(p.shape), int(offset))
        for (name, p), offset in zip(module.named_parameters(), offsets, strict=False)
    ]
    assert [(e.name, e.shape, e.offset) for e in net.table] == wanted
    assert net.size == offsets[-1]
    assert [e.name for e in net.buffer_table] == [name for name, _ in module.named_buffers()]


def test_nested_networks_are_flat_ones(rng: np.random.Generator) -> None:
    """The same layers in other brackets: the same numbers from the same seed."""
    parts = [nn.Linear(4, 6), nn.BatchNorm(6), nn.Tanh(), nn.Linear(6, 3), nn.BatchNorm(3)]
    flat = nn.Sequential(*parts)
    nested = nn.Sequential(
        nn.Sequential(*parts[:2]), nn.Sequential(nn.Sequential(parts[2]), *parts[3:])
    )
    assert leaves(nested) == leaves(flat)
    assert [e.name for e in nested.table][-2:] == ["1.2.weight", "1.2.bias"]
    params = flat.init(7, "float64")
    assert_array_equal(nested.init(7, "float64").theta, params.theta)
    x = rng.standard_normal((9, 4))
    outputs = [
        Map(net, True, params.buffers, 9, 4, np.concatenate([params.theta, x.ravel()])).value()
        for net in (flat, nested)
    ]
    assert_array_equal(outputs[0], outputs[1])


def test_initial_parameters() -> None:
    """Dtypes round the same draws; views write through; copies do not."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm(4), nn.Linear(4, 2, bias=False))
    params = net.init(5, "float64")
    assert_array_equal(net.init(np.random.default_rng(5)).theta, params.theta.astype(np.float32))
    assert not np.array_equal(net.init(6, "float64").theta, params.theta)
    named, buffers = net.unflatten(params.theta), net.unflatten_buffers(params.buffers)
    assert_array_equal(named["1.weight"], np.ones(4))
    assert_array_equal(named["1.bias"], np.zeros(4))
    assert_array_equal(buffers["1.running_mean"], np.zeros(4))
    assert_array_equal(buffers["1.running_var"], np.ones(4))
    assert_array_equal(buffers["1.num_batches_tracked"], [0.0])
    kept = params.copy()
    named["2.weight"][:] = 9.0
    buffers["1.running_var"][:] = 9.0
    assert_array_equal(params.theta[-8:], np.full(8, 9.0))
    assert 9.0 not in kept.theta
    assert 9.0 not in kept.buffers


NET = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm(2))


FINITE = "expected a finite number of at least 0"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Linear(0, 2), ValueError, "in_features: expected at least 1, got 0"),
        (lambda: nn.Linear(2, -1), ValueError, "out_features: expected at least 1, got -1"),
        (lambda: nn.BatchNorm(0), ValueError, "num_features: expected at least 1, got 0"),
        (
            lambda: nn.BatchNorm(2, eps=-1.0),
            ValueError,
            f"eps: {FINITE}, got -1.0",
        ),
        (
            lambda: nn.BatchNorm(2, eps=np.nan),
            ValueError,
            f"eps: {FINITE}, got nan",
        ),
        (
            lambda: nn.BatchNorm(2, momentum=1.5),
            ValueError,
            "momentum: expected None or a number within [0, 1], got 1.5",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(4, 1)),
            ValueError,
            "Linear: expected 4 input columns, got 3",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(2)),
            ValueError,
            "BatchNorm: expected 2 input columns, got 3",
        ),
        (
            lambda: nn.Sequential(nn.Linear(2, 3), torch.nn.Tanh()),  # type: ignore[arg-type]
            TypeError,
            "Sequential: expected layers, got Tanh",
        ),
        (
            lambda: NET.init(0, "float16"),
            TypeError,
            "dtype: expected dtype float32 or float64, got float16",
        ),
        (
            lambda: NET.unflatten(np.zeros(11)),
            ValueError,
            "theta: expected shape (12,), got (11,)",
        ),
        (
            lambda: NET.unflatten_buffers(np.zeros((5, 1))),
            ValueError,
            "buffers: expected shape (5,), got (5, 1)",
        ),
        (
            lambda: _core.Pass_float32(NET.spec(3), 2, "value", False).product(None, None, False),
            ValueError,
            "pass: expected evaluate() first, got none",
        ),
        (
            lambda: _core.Pass_float32(NET.spec(3), 2, "third", False),
            ValueError,
            "level: expected value, gradient or product, got third",
        ),
    ],
)
def test_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


@pytest.mark.parametrize("width", [10**8, 10**12])
def test_a_network_beyond_all_memory_says_how_much_it_needs(width: int) -> None:
    net = nn.Sequential(nn.Linear(width, width, bias=False))
    with pytest.raises(
        MemoryError, match=f"^init: {width**2} parameters need {8 * width**2} bytes"
    ):
        net.init(0)


EDGES = [*(kind() for kind in nn.ACTIVATIONS.values()), nn.LeakyReLU(0.3), nn.LeakyReLU(-0.5)]


@pytest.mark.parametrize("layer", EDGES, ids=repr)
def test_an_activation_at_its_edges_is_pytorchs(layer: nn.Layer) -> None:
    """Signed zeros, the kink, infinities and NaN: value and slope."""
    x = np.array([[0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan]])
    at = Map(layer, False, np.empty(0), *x.shape, x.ravel())
    z = torch.tensor(x.ravel(), requires_grad=True)
    y = to_torch(layer)(z)
    y.backward(torch.ones_like(y))
    assert z.grad is not None
    # PyTorch's GELU has NaN at −∞, and smooth slopes ∞·0 at either; ours have the limit.
    same = np.isfinite(x.ravel()) | (layer.kind in ("relu", "leaky_relu"))
    value, slope = at.value(), at.pull_back(np.ones(x.size))
    np.testing.assert_allclose(value[same], y.detach().numpy()[same], rtol=1e-12)
    np.testing.assert_allclose(slope[same], z.grad.numpy()[same], rtol=1e-12)
    assert np.array_equal(np.signbit(value[:2]), np.signbit(y.detach().numpy()[:2]))
    assert np.isnan(value[-1])


def test_layers_keep_numbers_and_finite_slopes() -> None:
    value = np.array(0.25)
    layers = nn.LeakyReLU(value), nn.BatchNorm(3, eps=value, momentum=value)  # type: ignore[arg-type]
    value[...] = 0.5
    assert layers == (nn.LeakyReLU(0.25), nn.BatchNorm(3, eps=0.25, momentum=0.25))
    assert len({*layers, nn.LeakyReLU(0.25)}) == 2
    for slope in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^negative_slope: expected a finite number, got"):
            nn.LeakyReLU(slope)
