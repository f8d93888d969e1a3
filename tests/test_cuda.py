"""The CUDA path against the CPU path: the same sources above, other twins below.

Run with ``pytest -m cuda`` on a machine with a GPU; the tests whose names hold "sanitize" are small
enough for compute-sanitizer.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import saddlepoint as sp
from saddlepoint import nn, norm, optim, vector
from saddlepoint.vector import Vector, gather

pytestmark = pytest.mark.cuda

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
DTYPES = ("float32", "float64")


def there(x: np.ndarray) -> Vector:
    return Vector.from_numpy(x, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 31, 1000, 100_003])
def test_sanitize_vectors(n: int, dtype: str, rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, n)).astype(dtype)
    on_x, on_y = there(x), there(y)
    # Both sum in double; the order differs, so n roundings of double at most.
    assert vector.dot(on_x, on_y) == pytest.approx(vector.dot(x, y), abs=1e-13 * max(n, 1))
    vector.axpy(0.5, on_x, on_y)
    vector.axpy(0.5, x, y)
    assert_array_equal(gather(on_y), y)  # elementwise: the same bits
    vector.scale(-3.0, on_x)
    assert_array_equal(gather(on_x), x * np.array(-3.0, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1, weight_decay=0.01),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1),
        lambda p: optim.AdamW(p, lr=0.01, amsgrad=True),
    ],
    ids=["sgd", "momentum", "adam", "amsgrad"],
)
def test_sanitize_optimizers_have_the_same_bits(make, dtype, rng) -> None:  # type: ignore[no-untyped-def]
    shapes = [(3,), (0,), (17, 5), (1,), (4099,)]
    host = [rng.standard_normal(s).astype(dtype) for s in shapes]
    device = [there(p) for p in host]
    on_host, on_device = make(host), make(device)
    for _ in range(5):
        grads = [rng.standard_normal(s).astype(dtype) for s in shapes]
        on_host.step(grads)
        on_device.step([there(g) for g in grads])
    for p, q in zip(host, device, strict=True):
        assert_array_equal(gather(q), p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (33, 7), (1000, 130)])
def test_sanitize_batch_norm(shape: tuple[int, int], dtype: str, rng: np.random.Generator) -> None:
    x, dy, xt, dyt = rng.standard_normal((4, *shape)).astype(dtype)
    weight, bias = rng.standard_normal((2, shape[1])).astype(dtype)

    def everything(place):  # type: ignore[no-untyped-def]
        y, saved = norm.batch_norm(place(x), place(weight), place(bias))
        return [
            y,
            *norm.batch_norm_backward(place(dy), saved),
            norm.batch_norm_tangent(place(xt), saved),
            *norm.batch_norm_backward_tangent(place(dyt), place(dy), place(xt), saved),
        ]

    for got, wanted in zip(everything(there), everything(lambda a: a), strict=True):
        # Sums are in double on both sides; what is left is the rounding of their results.
        scale = max(1.0, float(np.abs(wanted).max()))
        assert_allclose(gather(got), wanted, rtol=0, atol=50 * EPS[dtype] * scale * shape[0] ** 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalized", [False, True])
def test_networks(normalized: bool, dtype: str, rng: np.random.Generator) -> None:
    layers = [nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 4)]
    if normalized:
        layers.insert(1, nn.BatchNorm(20))
    net = nn.Sequential(*layers)
    x = rng.standard_normal((70, 9)).astype(dtype)
    y = rng.integers(0, 4, 70)
    theta = net.init(0, dtype).theta
    v = np.asfortranarray(rng.standard_normal((net.size, 3)).astype(dtype))
    host = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype=dtype)
    device = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype=dtype, device="cuda")
    here, on_gpu = host.linearize(theta), device.linearize(there(theta))
    tolerance = 200 * EPS[dtype]  # products of up to 70 terms, thrice in a row
    assert on_gpu.loss == pytest.approx(here.loss, rel=tolerance)
    for got, wanted in (
        (on_gpu.gradient, here.gradient),
        (on_gpu.hvp(there(v)), here.hvp(v)),
        (on_gpu.hvp(there(v[:, 0].copy())), here.hvp(v[:, 0])),
    ):
        assert_allclose(gather(got), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_training_and_verdict(rng: np.random.Generator) -> None:
    x = rng.standard_normal((100, 4))
    y = (x[:, 0] > 0).astype(np.int64)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm(6), nn.ReLU(), nn.Linear(6, 2))
    start = net.init(0, "float64")
    run = sp.fit(net, start, nn.CrossEntropy(), (x, y), epochs=3, batch_size=32, rng=0)
    same = sp.fit(
        net, start, nn.CrossEntropy(), (x, y), epochs=3, batch_size=32, rng=0, device="cuda"
    )
    # 12 updates of Adam, each of which rounds: far below a step of 1e-3
    assert_allclose(same.params.theta, run.params.theta, rtol=0, atol=1e-9)
    assert_allclose(same.params.buffers, run.params.buffers, rtol=0, atol=1e-9)
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype="float64", device="cuda")
    theta = there(same.params.theta)
    assert sp.hessian(objective, theta).verify().ok
    point = sp.classify(objective, theta)
    assert point.exact
    assert point.kind == "not critical"


def test_devices_do_not_mix() -> None:
    with pytest.raises(TypeError, match="expected device"):
        vector.dot(there(np.ones(3)), np.ones(3))
