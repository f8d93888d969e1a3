"""The CUDA path against the CPU path: the same sources above, other twins below.

Run with ``pytest -m cuda`` on a machine with a GPU; the tests whose names hold "sanitize" are small
enough for compute-sanitizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import saddlepoint as sp
import saddlepoint.torch.optim as ours
from saddlepoint import nn, norm, optim, vector
from saddlepoint.nn.evaluator import Evaluator
from saddlepoint.vector import Vector, gather
from test_optim import CASES, IDS

pytestmark = pytest.mark.cuda

Array = NDArray[Any]

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}
DTYPES = ("float32", "float64")


def there(x: np.ndarray) -> Vector:
    return Vector.from_numpy(x, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 31, 1000, 600_003])
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
    vector.scale(-3.0, on_y.rows(slice(1, None)))  # of other alignment
    vector.scale(-3.0, y[1:])
    assert_array_equal(gather(on_y), y)


def test_vectors_on_the_current_stream() -> None:
    x = torch.randn(1024, 1024, device="cuda") / 32

    def chain() -> torch.Tensor:
        y = x
        for _ in range(30):
            y = torch.tanh(y @ x)
        return y

    wanted = 2 * chain() + 3 * x
    for other in (x, there(x.cpu().numpy())):  # of one stream, and of two
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            y = chain()  # still running when we are called
            vector.scale(2.0, y)
            vector.axpy(3.0, other, y)
            square = vector.dot(y, other)
            z = y.clone()
        torch.cuda.synchronize()
        assert torch.equal(z, wanted)
        assert square == pytest.approx((wanted.double() * x.double()).sum().item(), rel=1e-9)


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
BY_SUMS = tuple(name for name, rule in optim.rules.RULES.items() if rule.whole)


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


def test_a_norm_of_more_slabs_than_lanes(rng: np.random.Generator) -> None:
    host = [rng.standard_normal(5).astype(np.float32) for _ in range(700)]
    device = [there(p) for p in host]
    on_host, on_device = optim.SGD(host, max_norm=1.0), optim.SGD(device, max_norm=1.0)
    grads = [rng.standard_normal(5).astype(np.float32) for _ in host]
    on_host.step(grads)
    on_device.step([there(g) for g in grads])
    assert on_device.grad_norm == on_host.grad_norm
    for p, q in zip(host, device, strict=True):
        assert_array_equal(gather(q), p)


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


def test_what_moves_between_steps_on_the_device() -> None:
    """The device is told where arrays lie: anew when one of them lies elsewhere."""
    torch.manual_seed(0)
    start, grads = torch.randn(2, 33, 65), torch.randn(7, 2, 33, 65)
    results = []
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(s.to(device)) for s in start.clone()]
        optimizer = ours.AdamW(params, lr=0.01, ema_decay=0.5)
        for k, given in enumerate(grads.to(device)):
            for p, g in zip(params, given, strict=True):
                p.grad = g.clone()
            if k == 1:
                params[0].grad = given[0].t().contiguous().t()
            elif k == 2:
                params[0].grad = None
            elif k == 3:
                params[1].data = params[1].detach().clone()
            elif k == 4:
                state = optimizer.state[params[1]]["exp_avg"]
                state.data = state.clone()
            elif k == 5:
                optimizer.ema[0].data = optimizer.ema[0].t().contiguous().t()
            optimizer.step()
        results.append([x.detach().cpu() for x in (*params, *optimizer.ema)])
    assert all(map(torch.equal, *results))


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


# name: (shape, layout); rows, planes, vectors and what does not fill them, channels held on chip or
# spread over several blocks.
NORM_TENSORS = {
    "NC": ((33, 7), "NC"),
    "two rows": ((2, 1), "NC"),
    "NC in vectors": ((1000, 128), "NC"),
    "1025 channels": ((64, 1025), "NC"),
    "one channel": ((3000, 1), "NC"),
    "NHWC": ((4, 9, 11, 64), "NHWC"),
    "three channels": ((4, 30, 31, 3), "NHWC"),
    "NCHW": ((6, 5, 8, 12), "NCHW"),
    "odd planes": ((6, 160, 7, 7), "NCHW"),
    "small planes": ((3, 4100, 1, 3), "NCHW"),
    "large planes": ((2, 3, 200, 201), "NCHW"),
    "NCDHW": ((3, 4, 3, 4, 5), "NCDHW"),
}  # fmt: skip
NORM_FEW = ("NC", "three channels", "NCHW", "odd planes")
NORM_EPS = {**EPS, "bfloat16": 2.0**-8, "float16": 2.0**-11}
ACTIVATIONS = (None, "relu", "leaky_relu", "gelu", "tanh")

Place = Callable[[torch.Tensor], Any]


def on_gpu(x: torch.Tensor) -> torch.Tensor:
    return x.cuda()


def as_vector(x: torch.Tensor) -> Vector:
    return there(x.numpy())


def host_of(x: Any) -> torch.Tensor:
    return x.cpu() if isinstance(x, torch.Tensor) else torch.from_numpy(gather(x))


def of_batch_norm(
    place: Place,
    tensor: str,
    dtype: str,
    seed: int,
    activation: str | None = None,
    residual: bool = False,
    training: bool = True,
    **options: Any,
) -> list[torch.Tensor]:
    """All functions of `norm` at one point, by a place for the arrays."""
    shape, layout = NORM_TENSORS[tensor]
    draw = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    wide = torch.randn((8, *shape), generator=draw, dtype=torch.float64).to(kind)
    x, dy, xt, dyt, xu, extra, extra_t, extra_u = (place(a.clone()) for a in wide)
    channels = shape[-1] if layout in ("NC", "NHWC") else shape[1]
    parameter = torch.float64 if dtype == "float64" else torch.float32
    narrow = torch.randn((8, channels), generator=draw, dtype=torch.float64).to(parameter)
    narrow[3] = narrow[3] ** 2 + 0.5
    weight, bias, mean, var, weight_t, bias_t, weight_u, bias_u = (place(a.clone()) for a in narrow)
    y, saved = norm.batch_norm(
        x, weight, bias, mean, var, training, 0.3, 0.1, activation, extra if residual else None,
        layout, negative_slope=0.2, **options,
    )  # fmt: skip
    first = (weight_t, bias_t, extra_t if residual else None)
    second = (weight_u, bias_u, extra_u if residual else None)
    results = [
        y, mean, var, saved.mean, saved.r, saved.statistics,
        *norm.batch_norm_backward(dy, saved),
        norm.batch_norm_tangent(xt, saved, *first),
        norm.batch_norm_second_tangent(xt, xu, saved, *first, *second),
        *norm.batch_norm_backward_tangent(dy, dyt, xt, saved, *first),
        *norm.batch_norm_double_backward(xt, *first[:2], dy, saved, first[2]),
    ]  # fmt: skip
    return [host_of(a) for a in results]


def assert_like_the_cpu(place: Place, *arguments: Any, **options: Any) -> None:
    """Sums go in another order; what is computed from them is rounded the same way."""
    device = of_batch_norm(place, *arguments, **options)
    host = of_batch_norm(lambda a: a, *arguments, **options)
    for k, (got, wanted) in enumerate(zip(device, host, strict=True)):
        assert got.dtype is wanted.dtype
        assert got.shape == wanted.shape
        name = str(wanted.dtype).removeprefix("torch.")
        # Statistics are float64 tables of sums in the type that is computed in.
        inner = EPS["float64"] if arguments[1] == "float64" else EPS["float32"]
        a, b = got.double().numpy(), wanted.double().numpy()
        scale = np.abs(b).max(initial=1.0)
        if k > 5 and b.ndim == 1:  # the parameters', past y and the statistics
            # A sum of m terms of size 1 passes through numbers of size √m, wherever it ends.
            scale = max(scale, (host[0].numel() / b.size) ** 0.5)
        assert_allclose(
            a, b, rtol=2 * NORM_EPS[name], atol=100 * inner * scale, err_msg=f"result {k}"
        )


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("dtype", NORM_EPS)
@pytest.mark.parametrize("tensor", NORM_TENSORS)
def test_batch_norm(tensor: str, dtype: str, activation: str | None, residual: bool) -> None:
    assert_like_the_cpu(on_gpu, tensor, dtype, 1, activation, residual)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tensor", NORM_FEW)
def test_sanitize_batch_norm(tensor: str, dtype: str, activation: str, training: bool) -> None:
    assert_like_the_cpu(as_vector, tensor, dtype, 2, activation, True, training)


@pytest.mark.parametrize("activation", [None, "relu", "tanh"], ids=str)
@pytest.mark.parametrize("dtype", NORM_EPS)
@pytest.mark.parametrize("tensor", NORM_TENSORS)
def test_batch_norm_in_evaluation(tensor: str, dtype: str, activation: str | None) -> None:
    assert_like_the_cpu(on_gpu, tensor, dtype, 3, activation, True, False)


@pytest.mark.parametrize("noise", [None, norm.Noise(11, 5)], ids=["", "noise"])
@pytest.mark.parametrize("renorm", [None, (1.1, 0.3)], ids=["", "renorm"])
@pytest.mark.parametrize("ghost", [None, 2, 4], ids=lambda g: f"ghost {g}")
@pytest.mark.parametrize("tensor", NORM_FEW)
def test_sanitize_batch_norm_variants(
    tensor: str, ghost: int | None, renorm: tuple[float, float] | None, noise: norm.Noise | None
) -> None:
    if tensor == "NC" and ghost:
        ghost += 1  # no row is left alone
    assert_like_the_cpu(
        on_gpu, tensor, "float32", 4, "leaky_relu", True, ghost=ghost, renorm=renorm, noise=noise
    )


@pytest.mark.parametrize("memory", ["channels last", "every other", "transposed"])
def test_sanitize_batch_norm_of_other_memory(memory: str) -> None:
    def place(x: torch.Tensor) -> torch.Tensor:
        if x.ndim < 4:
            return x.cuda()
        if memory == "channels last":
            return x.cuda().contiguous(memory_format=torch.channels_last)
        if memory == "transposed":
            return x.cuda().transpose(2, 3).contiguous().transpose(2, 3)
        room = torch.full([2 * n for n in x.shape], torch.nan, dtype=x.dtype, device="cuda")
        view = room[::2, ::2, ::2, ::2]
        view.copy_(x)
        return view

    assert_like_the_cpu(place, "NCHW", "float32", 5, "relu", True)


def test_batch_norm_averages_all_batches() -> None:
    kept = []
    for device in ("cpu", "cuda"):
        draw = torch.Generator().manual_seed(0)
        mean, var = torch.zeros(5, device=device), torch.ones(5, device=device)
        count = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(4):
            batch = torch.randn(6, 5, 3, generator=draw).to(device)
            norm.batch_norm(batch, None, None, mean, var, momentum=None, count=count)
        assert count == 4
        kept.append((mean.cpu(), var.cpu()))
    for got, wanted in zip(*reversed(kept), strict=True):
        assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["NC", "NCHW", "NHWC"])
@pytest.mark.parametrize(("scale", "offset"), [(1e30, 0.0), (1.0, 1e4), (1e-41, 0.0), (1.0, -1e6)])
def test_sanitize_batch_norm_of_extreme_values(layout: str, scale: float, offset: float) -> None:
    shape = {"NC": (500, 4), "NCHW": (5, 4, 10, 10), "NHWC": (5, 10, 10, 4)}[layout]
    draw = torch.Generator().manual_seed(1)
    drawn = torch.randn(shape, generator=draw, dtype=torch.float64)
    x = (scale * drawn + offset).float()
    y, saved = norm.batch_norm(x.cuda(), layout=layout)
    exact = x.double()
    others = [a for a in range(x.ndim) if a != (x.ndim - 1 if layout == "NHWC" else 1)]
    mean, var = exact.mean(others, keepdim=True), exact.var(others, False, keepdim=True)
    wanted = ((exact - mean) / torch.sqrt(var + 1e-5)).numpy()
    limit = max(1e-6 * np.abs(wanted).max(), 3e-45)  # of the numbers, or the smallest subnormal
    assert_allclose(y.cpu(), wanted, rtol=1e-6, atol=limit)
    assert_allclose(saved.r.cpu(), 1 / torch.sqrt(var + 1e-5).flatten(), rtol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_batch_norm_in_parts(layout: str, activation: str) -> None:
    """Statistics and sums of two halves, put together, are those of the whole."""
    draw = torch.Generator().manual_seed(2)
    x, dy = torch.randn(2, 8, 6, 6, 6, generator=draw, dtype=torch.float64).cuda()
    whole, saved = norm.batch_norm(x, eps=0.1, activation=activation, layout=layout)
    parts = [norm.batch_norm_statistics(h, layout) for h in x.chunk(2)]
    moments = norm.combine(parts)
    r = (moments.m2 / moments.elements + 0.1) ** -0.5
    halves = [
        norm.batch_norm_apply(
            h, moments.mean, r, activation=activation, layout=layout, count=moments.elements
        )
        for h in x.chunk(2)
    ]
    assert torch.allclose(torch.cat([y for y, _ in halves]), whole, rtol=0, atol=1e-12)
    sums = [
        norm.batch_norm_backward_reduce(d, s) for d, (_, s) in zip(dy.chunk(2), halves, strict=True)
    ]
    total = [sums[0][k] + sums[1][k] for k in (0, 1)]
    dx = [
        norm.batch_norm_backward_apply(d, s, *total, moments.elements)
        for d, (_, s) in zip(dy.chunk(2), halves, strict=True)
    ]
    assert torch.allclose(torch.cat(dx), norm.batch_norm_backward(dy, saved)[0], rtol=0, atol=1e-12)


def test_batch_norm_is_the_same_every_time() -> None:
    first, again = (of_batch_norm(on_gpu, "large planes", "float32", 6, "gelu") for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)


def test_batch_norm_runs_on_the_current_stream() -> None:
    side = torch.cuda.Stream()
    x = torch.randn(4096, 512, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        late = (torch.matmul(x, x.t()) @ x) / 100  # still running when we are called
        y = norm.batch_norm(late, activation="relu")[0]
        wanted = torch.relu(torch.nn.functional.batch_norm(late, None, None, training=True))
        side.synchronize()
    assert torch.allclose(y, wanted, rtol=0, atol=1e-4)


def test_batch_norm_takes_vectors_and_tensors_together() -> None:
    x = torch.randn(300, 16, device="cuda")
    weight = np.arange(1.0, 17.0, dtype=np.float32)
    y = norm.batch_norm(x, there(weight))[0]
    wanted = norm.batch_norm(x, torch.from_numpy(weight).cuda())[0]
    assert torch.equal(y, wanted)


def test_batch_norm_in_a_cuda_graph() -> None:
    x = torch.randn(64, 32, 8, 8, device="cuda")
    mean, var = torch.zeros(32, device="cuda"), torch.ones(32, device="cuda")
    out = torch.empty_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        norm.batch_norm(x, None, None, mean, var, out=out)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        norm.batch_norm(x, None, None, mean, var, out=out)
    x.copy_(3 * torch.randn_like(x) + 1)
    mean.zero_(), var.fill_(1)
    graph.replay()
    torch.cuda.synchronize()
    wanted = torch.nn.functional.batch_norm(x, None, None, training=True)
    assert torch.allclose(out, wanted, rtol=0, atol=1e-5)
    assert torch.allclose(mean, 0.1 * x.mean((0, 2, 3)), rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [20, 1500])  # one block of a sum, and more
def test_sanitize_products_of_a_block(rows: int, dtype: str, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(9, 20), nn.Tanh(), nn.Linear(20, 33), nn.ReLU(), nn.Linear(33, 4))
    x = rng.standard_normal((rows, 9)).astype(dtype)
    y = rng.integers(0, 4, rows)
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype=dtype, device="cuda")
    at = objective.linearize(there(net.init(0, dtype).theta))
    v = np.asfortranarray(rng.standard_normal((net.size, 5)).astype(dtype))
    single = np.stack([gather(at.hvp(there(column.copy()))) for column in v.T], axis=1)
    # The same sums, in orders that cuBLAS picks by the size of a product.
    tolerance = 50 * EPS[dtype] * np.abs(single).max()
    assert_allclose(gather(at.hvp(there(v))), single, rtol=0, atol=tolerance)


@pytest.mark.parametrize("batch_size", [None, 32])  # one pass, and two that add up
def test_sanitize_products_again_and_elsewhere(
    batch_size: int | None, rng: np.random.Generator
) -> None:
    net = nn.Sequential(nn.Linear(9, 20), nn.BatchNorm(20), nn.Tanh(), nn.Linear(20, 4))
    x, y = rng.standard_normal((64, 9)), rng.integers(0, 4, 64)
    how = {"batch_size": batch_size, "dtype": "float64"}
    host = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, **how)
    device = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, **how, device="cuda")
    thetas = [net.init(seed, "float64").theta for seed in range(2)]
    here = [host.linearize(theta) for theta in thetas]
    on_gpu = [device.linearize(there(theta)) for theta in thetas]
    for turn in range(8):  # the first as they come, later ones from a recording
        v = np.asfortranarray(rng.standard_normal((net.size, 1 + turn // 4)))
        for at, wanted_at in zip(on_gpu, here, strict=True):
            wanted = wanted_at.hvp(v)
            got = gather(at.hvp(there(v)))
            assert_allclose(got, wanted, rtol=0, atol=1e-13 * np.abs(wanted).max())


def test_products_from_two_threads(rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(30, 200), nn.Tanh(), nn.Linear(200, 4))
    x, y = rng.standard_normal((500, 30)), rng.integers(0, 4, 500)
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype="float64", device="cuda")
    at = objective.linearize(there(net.init(0, "float64").theta))
    vectors = [there(rng.standard_normal(net.size)) for _ in range(2)]
    wanted = [gather(at.hvp(v)) for v in vectors]

    def products(v: Vector) -> list[Array]:
        return [gather(product) for product in [at.hvp(v) for _ in range(20)]]

    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(products, vectors))
    for product, several, mine in zip(wanted, others, map(products, vectors), strict=True):
        for one in several + mine:
            assert_allclose(one, product, rtol=0, atol=1e-13 * np.abs(product).max())
    with ThreadPoolExecutor(1) as pool:  # made there, read here
        product = pool.submit(at.hvp, vectors[0]).result()
        assert_allclose(gather(product), wanted[0], rtol=0, atol=1e-13 * np.abs(wanted[0]).max())


@pytest.mark.parametrize("shape", [(1, 1), (33, 70), (300, 5)])  # inputs, outputs
@pytest.mark.parametrize("rows", [1, 40, 130])
def test_sanitize_products_of_small_matrices(
    shape: tuple[int, int], rows: int, rng: np.random.Generator
) -> None:
    net = nn.Sequential(nn.Linear(*shape), nn.Sigmoid(), nn.Linear(shape[1], 3))
    x, y = rng.standard_normal((rows, shape[0])), rng.standard_normal((rows, 3))
    theta, v = net.init(0, "float64").theta, rng.standard_normal(net.size)
    host, device = (
        sp.NetworkObjective(net, nn.MeanSquaredError(), x, y, dtype="float64", device=where)
        for where in ("cpu", "cuda")
    )
    here, on_gpu = host.linearize(theta), device.linearize(there(theta))
    for got, wanted in ((on_gpu.gradient, here.gradient), (on_gpu.hvp(there(v)), here.hvp(v))):
        assert_allclose(gather(got), wanted, rtol=0, atol=1e-13 * np.abs(wanted).max())


@pytest.mark.parametrize("columns", [1, 3, 4, 1200])  # words of 4 bytes, and of 16
def test_sanitize_the_rows_of_a_batch(columns: int, rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.Linear(columns, 2))
    x = rng.standard_normal((50, columns)).astype(np.float32)
    picked = rng.integers(0, 50, 300)
    params = net.init(0)
    host, device = (Evaluator(net, None, x.dtype, where) for where in ("cpu", "cuda"))
    outputs = [np.empty((300, 2), np.float32) for _ in range(2)]
    host.evaluate(x[picked], None, params.theta, params.buffers, frozen=True, outputs=outputs[0])
    out = there(outputs[1])
    arrays = (there(x), None, there(params.theta), there(params.buffers))
    indices = Vector._from_host(picked, "cuda")
    device.evaluate(*arrays, frozen=True, indices=indices, outputs=out)
    tolerance = 2 * columns * EPS["float32"] * np.abs(outputs[0]).max()
    assert_allclose(gather(out), outputs[0], rtol=0, atol=tolerance)


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
