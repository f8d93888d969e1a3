"""The CUDA path against the CPU path: the same sources above, other twins below.

Run with ``pytest -m cuda`` on a machine with a GPU; the tests whose names hold "sanitize" are small
enough for compute-sanitizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import saddlepoint as sp
import saddlepoint.torch.optim as ours
from saddlepoint import nn, norm, optim, vector
from saddlepoint.vector import Vector, gather
from test_optim import CASES, IDS

pytestmark = pytest.mark.cuda

Array = NDArray[Any]

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


def same_path(
    name: str, arguments: dict[str, Any], dtype: str, rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Parameters of a run on the device and of the same run on the host."""
    shapes: list[tuple[int, ...]] = [(17, 5), (5, 17)]
    if name != "Muon":
        shapes += [(3,), (0,), (1,), (4099,), (2, 20_000)]
    host = [rng.standard_normal(s).astype(dtype) for s in shapes]
    device = [there(p) for p in host]
    on_host = getattr(optim, name)(host, **arguments)
    on_device = getattr(optim, name)(device, **arguments)
    for step in range(5):
        grads: list[Array | None] = [rng.standard_normal(s).astype(dtype) for s in shapes]
        if step == 2:
            grads[1] = None  # late ones have steps of their own
        on_host.step([None if g is None else g.copy() for g in grads])
        on_device.step([None if g is None else there(g) for g in grads])
    yield from ((gather(q), p) for p, q in zip(host, device, strict=True))
    if "ema_decay" in arguments:
        averages = zip(on_device.ema, on_host.ema, strict=True)
        yield from ((got.numpy(), wanted.numpy()) for got, wanted in averages)
    if "max_norm" in arguments:
        yield np.array(on_device.grad_norm), np.array(on_host.grad_norm)


# Their sums and products go in another order on a device.
BY_SUMS = ("LAMB", "Adafactor", "Muon")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_sanitize_optimizers_have_the_same_bits(
    name: str, arguments: dict[str, Any], dtype: str, rng: np.random.Generator
) -> None:
    for got, wanted in same_path(name, arguments, dtype, rng):
        if name in BY_SUMS:
            assert_allclose(
                got, wanted, rtol=0, atol=2000 * EPS[dtype] * np.abs(wanted).max(initial=1)
            )
        else:
            assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["SGD", "Adam", "RAdam", "LAMB", "Adafactor"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_norm": 0.5},
        {"ema_decay": 0.9},
        {"check_finite": True, "max_norm": 1.0, "ema_decay": 0.5},
    ],
    ids=["clip", "average", "all"],
)
def test_sanitize_the_pipeline_has_the_same_bits(
    name: str, options: dict[str, Any], rng: np.random.Generator
) -> None:
    for got, wanted in same_path(name, {"lr": 0.01, **options}, "float32", rng):
        if name in BY_SUMS:
            assert_allclose(got, wanted, rtol=2000 * EPS["float32"], atol=2000 * EPS["float32"])
        else:
            assert_array_equal(got, wanted)


def test_sanitize_a_step_that_is_not_finite_is_skipped() -> None:
    p = there(np.ones(1000, np.float32))
    optimizer = optim.Adam(p, lr=0.1, check_finite=True)
    optimizer.step(there(np.ones(1000, np.float32)))
    before = gather(p)
    bad = np.ones(1000, np.float32)
    bad[777] = np.inf
    optimizer.step(there(bad))
    assert optimizer.skipped
    assert_array_equal(gather(p), before)
    assert optimizer.steps == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", [{}, {"stochastic_rounding": 3}], ids=["near", "stochastic"])
def test_torch_parameters_on_the_device(dtype: str, options: dict[str, Any]) -> None:
    """The same bits as on the host, transposed gradients and zeroing included."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    start, grads = torch.randn(33, 65).to(kind), torch.randn(3, 65, 33).to(kind)
    results = []
    for device in ("cpu", "cuda"):
        p = torch.nn.Parameter(start.to(device).clone())
        optimizer = ours.AdamW([p], lr=0.01, zero_grads=True, max_norm=1.0, **options)
        for g in grads:
            p.grad = g.to(device).clone().t()
            optimizer.step()
            assert not p.grad.any()
        results.append(p.detach().cpu())
    assert torch.equal(*results)


def test_a_step_in_a_cuda_graph() -> None:
    """Steps and rate live on the device: a replay goes on counting."""
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(1000, device="cuda"))
        p.grad = torch.randn(1000, device="cuda")
        rate = torch.tensor(0.1, device="cuda")
        optimizer = ours.Adam([p], lr=rate, max_norm=1.0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(side)
        step = optimizer.step
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            step = graph.replay
        for k in range(4):
            rate.fill_(0.1 / (k + 1))
            step()
        torch.cuda.synchronize()
        results.append(p.detach().cpu())
        assert optimizer.state_dict()["state"][0]["step"] == 7
    assert torch.equal(*results)


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
            *norm.batch_norm_backward_tangent(place(dy), place(dyt), place(xt), saved),
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
