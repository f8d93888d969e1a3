"""`saddlepoint.torch.nn` where torch.nn stood: values, derivatives of two orders, and manners.

Derivatives are held against the formula in elementary operations: PyTorch's own batch normalization
is wrong under two forward modes, and at third order (pytorch#196699, #186256).
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, func, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import saddlepoint.torch.nn as ours
from saddlepoint.norm import Noise

torch.set_num_threads(1)  # the oracle's work is small
# PyTorch's own, on the first use of forward mode and in linearize.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]

ACTIVATIONS: tuple[str | None, ...] = (None, "relu", "leaky_relu", "gelu", "tanh")
SLOPE = 0.2
EPS = 0.1
SHAPES = {"NC": (9, 4), "NCL": (4, 3, 5), "NCHW": (3, 4, 3, 5), "NCDHW": (2, 3, 2, 3, 2)}

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_mode = pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])


# Tensors, and the memory they lie in.


def normal(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def dense(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """The same numbers with axis 1 innermost in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def swapped(x: Tensor) -> Tensor:
    """Dense, with the axes in memory in the opposite order."""
    return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))


def strided(x: Tensor) -> Tensor:
    """A view of every other element of each axis."""
    memory = torch.full([2 * n + 1 for n in x.shape], torch.nan, dtype=x.dtype)
    view = memory[tuple(slice(1, 2 * n, 2) for n in x.shape)]
    return view.copy_(x)


MEMORIES = (dense, channels_last, swapped, strided)
every_memory = pytest.mark.parametrize("memory", MEMORIES, ids=lambda f: f.__name__)


def assert_near(got: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    """To within ``tolerance`` of the largest element, and of the same kind."""
    if isinstance(wanted, Tensor):
        got, wanted = [got], [wanted]
    assert len(got) == len(wanted) > 0
    for k, (x, y) in enumerate(zip(got, wanted, strict=True)):
        assert x.shape == y.shape, k
        assert x.dtype == y.dtype, k
        if y.numel():
            bound = tolerance * max(1.0, float(y.detach().abs().max()))
            distance = float((x.double() - y.double()).detach().abs().max())
            assert distance <= bound, (k, distance, bound)


def leaves_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Leaves of their own in the same memory."""
    return [t.detach().requires_grad_() for t in tensors]


# The formula.


def activated(z: Tensor, activation: str | None, slope: float = SLOPE) -> Tensor:
    if activation == "relu":
        return torch.where(z > 0, z, torch.zeros_like(z))
    if activation == "leaky_relu":
        return torch.where(z > 0, z, slope * z)
    if activation == "gelu":
        return 0.5 * z * (1 + torch.erf(z * 0.5**0.5))
    return torch.tanh(z) if activation == "tanh" else z


def formula(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    eps: float = EPS,
    slope: float = SLOPE,
) -> Tensor:
    """y = act(γ (x − mean)/√(var + eps) + β + residual), in elementary operations."""
    others = [a for a in range(x.ndim) if a != 1]
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if running is None:
        centred = x - x.mean(others, keepdim=True)
        var = (centred * centred).mean(others, keepdim=True)
    else:
        centred, var = x - running[0].view(shape), running[1].view(shape)
    z = centred * (var + eps) ** -0.5
    if weight is not None:
        z = z * weight.view(shape)
    if bias is not None:
        z = z + bias.view(shape)
    return activated(z if residual is None else z + residual, activation, slope)


class Formula(nn.Module):
    """A layer of `formula`, without running statistics."""

    def __init__(self, channels: int, activation: str | None = None) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.ones(channels, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float64))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return formula(
            x, self.weight, self.bias, residual, activation=self.activation, eps=1e-5, slope=0.01
        )


def functional(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str | None = None,
    running: tuple[Tensor, Tensor] | None = None,
    **options: Any,
) -> Tensor:
    """`ours.functional.batch_norm` with `formula`'s arguments."""
    mean, var = running or (None, None)
    return ours.functional.batch_norm(
        x, mean, var, weight, bias, running is None, eps=EPS, activation=activation,
        negative_slope=SLOPE, residual=residual, **options,
    )  # fmt: skip


def inputs(
    rng: np.random.Generator, shape: tuple[int, ...], memory: Callable[[Tensor], Tensor] = dense
) -> tuple[Tensor, ...]:
    """(x, weight, bias, residual)"""
    channels = shape[1]
    x, residual = memory(2 * normal(rng, *shape) + 1), memory(normal(rng, *shape))
    return x, normal(rng, channels) + 2, normal(rng, channels), residual


def statistics(rng: np.random.Generator, shape: tuple[int, ...], training: bool) -> Any:
    """Running (mean, var) for evaluation; None in training."""
    mean, var = normal(rng, 2, shape[1])
    return None if training else (mean, var**2 + 0.1)


def layer(module: Any, shape: tuple[int, ...], *args: Any, **options: Any) -> Any:
    """A BatchNorm of torch.nn or ours, for tensors of a shape."""
    axes = max(1, len(shape) - 2)
    return getattr(module, f"BatchNorm{axes}d")(shape[1], *args, dtype=torch.float64, **options)


def pair(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    *args: Any,
    residual: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """PyTorch's layer and ours, with the same random parameters and statistics."""
    fused = {k: options.pop(k) for k in ("activation", "negative_slope") if k in options}
    theirs = layer(nn, shape, *args, **options)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(normal(rng, *tensor.shape) ** 2 + 0.1)
    mine = layer(ours, shape, *args, **options)
    if fused or residual:
        mine = ours.BatchNormAct(mine, **fused)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


# The modules' faces.


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_is_a_torch_module(axes: int) -> None:
    name = f"BatchNorm{axes}d"
    theirs, mine = getattr(nn, name), getattr(ours, name)
    assert issubclass(mine, theirs)
    given, taken = (inspect.signature(c).parameters for c in (theirs, mine))
    for argument in list(given.values()):
        if argument.kind is argument.POSITIONAL_OR_KEYWORD:
            assert taken[argument.name].default == argument.default
    assert list(taken)[:5] == ["num_features", "eps", "momentum", "affine", "track_running_stats"]
    assert repr(mine(3)) == repr(theirs(3))
    forward, wanted = (inspect.signature(c.forward).parameters for c in (mine, theirs))
    assert list(forward) == list(wanted)


def test_functional_takes_the_arguments_of_its_namesake() -> None:
    theirs = inspect.signature(nn.functional.batch_norm).parameters
    mine = inspect.signature(ours.functional.batch_norm).parameters
    assert list(mine)[: len(theirs)] == list(theirs)
    for name, argument in theirs.items():
        assert mine[name].default == argument.default


def test_factory_arguments() -> None:
    bn = ours.BatchNorm1d(3, dtype=torch.float64, device="meta")
    assert bn.weight.is_meta
    assert bn.running_var.is_meta
    assert bn.weight.dtype is torch.float64
    bn = ours.BatchNorm2d(3, 1e-3, 0.2, False, False)
    assert (bn.eps, bn.momentum, bn.affine, bn.track_running_stats) == (1e-3, 0.2, False, False)
    assert bn.weight is None
    assert bn.running_mean is None


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "average of all": {"momentum": None},
    "momentum and eps": {"momentum": 0.7, "eps": 0.3},
    "without statistics": {"track_running_stats": False},
    "without parameters": {"affine": False},
    "bare": {"affine": False, "track_running_stats": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_memory
@every_shape
def test_trains_and_evaluates_as_torch(
    rng: np.random.Generator, shape: tuple[int, ...], memory: Any, options: dict[str, Any]
) -> None:
    """Outputs, gradients and states over three batches, and one in evaluation."""
    theirs, mine = pair(rng, shape, **options)
    for step in range(4):
        x, dy = memory(normal(rng, *shape)), memory(normal(rng, *shape))
        results = []
        for bn in (theirs, mine):
            bn.train(step < 3)
            (leaf,) = leaves_of([x])
            y = bn(leaf)
            results.append([y, *torch.autograd.grad(y, (leaf, *bn.parameters()), dy)])
        assert_near(results[1], results[0])
        assert_near([x, *mine.state_dict().values()], [x, *theirs.state_dict().values()])


def test_tracking_that_ends_leaves_the_statistics_to_evaluation(rng: np.random.Generator) -> None:
    theirs, mine = pair(rng, (5, 3))
    before = [tensor.clone() for tensor in theirs.state_dict().values()]
    for bn in (theirs, mine):
        bn.track_running_stats = False
    for train in (True, False):
        x = normal(rng, 5, 3)
        assert_near(mine.train(train)(x), theirs.train(train)(x))
        assert_near([*mine.state_dict().values()], before)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@every_mode
@every_activation
@every_shape
def test_activation_and_residual(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    activation: str | None,
    training: bool,
    residual: bool,
) -> None:
    theirs, mine = pair(rng, shape, activation=activation, negative_slope=SLOPE)
    theirs.train(training), mine.train(training)
    x, _, _, added = inputs(rng, shape)
    given = (x, added) if residual else (x,)
    dy = normal(rng, *shape)
    one, other = leaves_of(given), leaves_of(given)
    z = theirs(one[0])
    wanted = activated(z + one[1] if residual else z, activation)
    y = mine(*other)
    assert_near(y, wanted)
    first = torch.autograd.grad(wanted, (*one, *theirs.parameters()), dy)
    assert_near(torch.autograd.grad(y, (*other, *mine.parameters()), dy), first)
    assert_near([*mine.buffers()], [*theirs.buffers()])


def test_residual_by_name(rng: np.random.Generator) -> None:
    x, _, _, residual = inputs(rng, (4, 3))
    bn = ours.BatchNormAct(ours.BatchNorm1d(3, dtype=torch.float64))
    assert torch.equal(bn(x, residual), bn(x, residual=residual))


def test_residual_is_the_input(rng: np.random.Generator) -> None:
    x = normal(rng, 6, 3).requires_grad_()
    bn = ours.BatchNormAct(ours.BatchNorm1d(3, dtype=torch.float64), "relu")
    (dx,) = torch.autograd.grad(bn(x, x).sum(), x)
    (wanted,) = torch.autograd.grad(Formula(3, "relu")(x, x).sum(), x)
    assert_near(dx, wanted)


@every_memory
@pytest.mark.parametrize("shape", [(8, 1025), (4, 1, 3, 5), (6, 17, 1, 1), (1, 4, 5, 5), (2, 5)])
def test_shapes(rng: np.random.Generator, shape: tuple[int, ...], memory: Any) -> None:
    given = inputs(rng, shape, memory)
    dy = normal(rng, *shape)
    one, other = leaves_of(given), leaves_of(given)
    y, wanted = functional(*one, activation="relu"), formula(*other, activation="relu")
    assert_near(y, wanted)
    assert_near(torch.autograd.grad(y, one, dy), torch.autograd.grad(wanted, other, dy))


def test_random_shapes_strides_and_options(rng: np.random.Generator) -> None:
    """Every tensor lies in a memory of its own kind; some take no gradient."""
    for _ in range(150):
        axes = int(rng.integers(2, 6))
        shape = (int(rng.integers(2, 6)), *(int(n) for n in rng.integers(1, 6, axes - 1)))
        activation = ACTIVATIONS[rng.integers(5)]
        x, weight, bias, residual = inputs(rng, shape)
        x, residual, dy = (MEMORIES[rng.integers(4)](t) for t in (x, residual, normal(rng, *shape)))
        given = [x, weight, bias, residual]
        running = statistics(rng, shape, bool(rng.integers(2)))
        wants = [bool(w) for w in rng.integers(2, size=4)]
        wants[rng.integers(4)] = True
        sides = []
        for f in (functional, formula):
            leaves = [t.detach().requires_grad_(w) for t, w in zip(given, wants, strict=True)]
            y = f(*leaves, activation=activation, running=running)
            sides.append([y, *torch.autograd.grad(y, [t for t in leaves if t.requires_grad], dy)])
        assert_near(*sides)


# Precision.


def passes(
    f: Callable[..., Tensor], given: Sequence[Tensor], dy: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """y, its gradients, and the gradients of ⟨gradient of x, x⟩."""
    leaves = [t.to(dtype).requires_grad_() for t in given]
    y = f(*leaves)
    first = torch.autograd.grad(y, leaves, dy.to(dtype), create_graph=True)
    second = torch.autograd.grad((first[0] * given[0].to(dtype)).sum(), leaves[:2])
    return [t.detach().double() for t in (y, *first, *second)]


@pytest.mark.parametrize("activation", [None, "relu", "gelu"], ids=str)
@pytest.mark.parametrize("shape", [(65, 33), (4, 5, 9, 11), (3, 4, 3, 5, 7)], ids=str)
def test_float32(rng: np.random.Generator, shape: tuple[int, ...], activation: str | None) -> None:
    """At most twice PyTorch's own error against float64, in the mean of a few draws."""
    act = {None: lambda z: z, "relu": torch.relu, "gelu": nn.functional.gelu}[activation]

    def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        h = nn.functional.batch_norm(x, None, None, weight, bias, True, 0.1, EPS)
        out: Tensor = act(h)
        return out

    mine = partial(functional, activation=activation)
    sums = np.zeros((3, 6))
    for _ in range(6):
        given = [t.float() for t in inputs(rng, shape)[:3]]
        dy = normal(rng, *shape).float()
        exact = passes(theirs, given, dy, torch.float64)
        single, fused = (passes(f, given, dy, torch.float32) for f in (theirs, mine))
        for k, (e, s, m) in enumerate(zip(exact, single, fused, strict=True)):
            rounding = torch.finfo(torch.float32).eps / 2 * e.norm()
            sums[:, k] += [(m - e).norm().item(), (s - e).norm().item(), rounding.item()]
    # A result as good as correctly rounded is good enough.
    assert (sums[0] <= np.maximum(2 * sums[1], sums[2])).all(), sums


@pytest.mark.parametrize("own", [False, True], ids=["float32 parameters", "own parameters"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_activation
def test_sixteen_bits(
    rng: np.random.Generator, activation: str | None, dtype: torch.dtype, own: bool
) -> None:
    """Rounded once, after a computation in float32."""
    given = [t.to(dtype) for t in inputs(rng, (5, 3, 4, 6), channels_last)]
    if not own:
        given[1:3] = [t.float() for t in given[1:3]]
    dy = normal(rng, 5, 3, 4, 6).to(dtype)
    one = leaves_of(given)
    other = [t.double().detach().requires_grad_() for t in given]
    y, wanted = functional(*one, activation=activation), formula(*other, activation=activation)
    got = [y, *torch.autograd.grad(y, one, dy)]
    exact = [wanted, *torch.autograd.grad(wanted, other, dy.double())]
    for a, e, like in zip(got, exact, [given[0], *given], strict=True):
        assert a.dtype is like.dtype
        half = torch.finfo(a.dtype).eps / 2 if a.dtype is dtype else 0.0
        limit = 1.01 * half * e.abs() + 4e-6 * e.abs().max().clamp(min=1.0)
        assert bool(((a.double() - e).abs() <= limit).all())


def test_low_precision_module(rng: np.random.Generator) -> None:
    """A converted module keeps its statistics in its dtype, like PyTorch's."""
    x = normal(rng, 32, 5, 7).bfloat16()
    theirs, mine = (m.BatchNorm1d(5).to(torch.bfloat16) for m in (nn, ours))
    exact = nn.BatchNorm1d(5, dtype=torch.float64)
    y = mine(x)
    assert y.dtype is torch.bfloat16
    theirs(x), exact(x.double())
    for name, buffer in theirs.named_buffers():
        got = mine.get_buffer(name)
        assert got.dtype is buffer.dtype
        wanted = exact.get_buffer(name).double()
        limit = torch.finfo(torch.bfloat16).eps * wanted.abs() + 1e-6
        assert bool(((got.double() - wanted).abs() <= limit).all()), name
    y.sum().backward()
    assert mine.weight.grad.dtype is torch.bfloat16


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="dtype"):
        ours.functional.batch_norm(torch.ones(4, 3, dtype=torch.int64), None, None, training=True)
    with pytest.raises(TypeError, match="dtype"):
        ours.BatchNorm1d(3)(torch.ones(4, 3, dtype=torch.float64))


# What is saved and loaded.


def through_a_file(x: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_state_dicts_interchange(rng: np.random.Generator, options: dict[str, Any]) -> None:
    theirs = layer(nn, (4, 3), **options)
    mine = layer(ours, (4, 3), **options, noise=Noise(3))
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for one, other in ((theirs, mine), (mine, theirs)):
        one(normal(rng, 8, 3))
        other.load_state_dict(through_a_file(one.state_dict()))
        x = normal(rng, 1)
        assert_near([*one.state_dict().values(), x], [*other.state_dict().values(), x], 0.0)


def test_old_state_dict_has_no_count() -> None:
    """As PyTorch's before version 2."""
    old = {k: v for k, v in nn.BatchNorm1d(3).state_dict().items() if "num" not in k}
    bn = ours.BatchNorm1d(3)
    bn.load_state_dict(old)
    assert int(bn.num_batches_tracked) == 0


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        partial(through_a_file, weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_are_the_same_layer(rng: np.random.Generator, copied: Any) -> None:
    norm = ours.BatchNorm1d(
        3, 0.2, None, ghost=4, renorm=(2.0, 1.0), noise=Noise(5), dtype=torch.float64
    )
    bn = ours.BatchNormAct(norm, "leaky_relu", SLOPE)
    bn(normal(rng, 8, 3))
    other = copied(bn)
    assert type(other) is type(bn)
    assert repr(other) == repr(bn)
    assert other.norm.weight is not bn.norm.weight
    for _ in range(2):
        x = normal(rng, 8, 3)
        torch.manual_seed(4)
        y = other(x)
        torch.manual_seed(4)
        assert torch.equal(y, bn(x))
    assert_near(list(other.buffers()), list(bn.buffers()), 0.0)


def test_reset() -> None:
    bn = ours.BatchNorm1d(3)
    bn(torch.randn(8, 3))
    bn.reset_running_stats()
    assert int(bn.num_batches_tracked) == 0
    assert torch.equal(bn.running_var, torch.ones(3))
    bn.reset_parameters()
    assert torch.equal(bn.weight, torch.ones(3))


# Errors.

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "one value": (lambda: ours.BatchNorm1d(3)(torch.ones(1, 3)),
                  "x: expected more than 1 value per channel when training, got"),
    "one pixel": (lambda: ours.BatchNorm2d(3)(torch.ones(1, 3, 1, 1)),
                  "x: expected more than 1 value per channel when training, got"),
    "one value without statistics": (
        lambda: ours.BatchNorm1d(3, track_running_stats=False).eval()(torch.ones(1, 3)),
        "x: expected more than 1 value per channel when training, got"),
    "channels": (lambda: ours.BatchNorm2d(3)(torch.ones(2, 4, 2, 2)), "expected .*, got"),
    "channels in evaluation": (lambda: ours.BatchNorm2d(3).eval()(torch.ones(2, 4, 2, 2)),
                               "expected .*, got"),
    "1d axes": (lambda: ours.BatchNorm1d(3)(torch.ones(2, 3, 2, 2)), "expected .*got"),
    "2d axes": (lambda: ours.BatchNorm2d(3)(torch.ones(2, 3, 2)), "expected .*got"),
    "3d axes": (lambda: ours.BatchNorm3d(3)(torch.ones(2, 3, 2, 2)), "expected .*got"),
    "activation": (lambda: ours.BatchNormAct(nn.BatchNorm1d(3), "elu"),
                   "activation: expected .*'elu'"),
    "ghost": (lambda: ours.BatchNorm1d(3, ghost=0)(torch.ones(4, 3)), "ghost: expected .*, got"),
    "residual": (lambda: ours.BatchNormAct(ours.BatchNorm1d(3))(torch.ones(4, 3), torch.ones(4, 2)),
                 "residual: expected .*, got"),
    "statistics": (lambda: ours.functional.batch_norm(torch.ones(4, 3), None, None),
                   "running_mean: expected .*, got"),
    "residual of another dtype": (
        lambda: ours.BatchNormAct(ours.BatchNorm1d(3))(torch.ones(4, 3), torch.ones(3).double()),
        r"residual: expected shape \(4, 3\), got \(3,\)"),
}  # fmt: skip
WRONG_KINDS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: ours.functional.batch_norm(
        **{"input": torch.ones(4, 3), "running_mean": None, "running_var": None, name: "x"},
        training=True,
    ) for name in (
        "input", "weight", "bias", "residual", "running_mean", "running_var",
        "num_batches_tracked", "eps", "momentum", "negative_slope", "ghost", "renorm", "noise",
    )},
    "ghost of modules": lambda: ours.BatchNorm1d(3, ghost=1.5),
    "renorm of modules": lambda: ours.BatchNorm1d(3, renorm=3),
    "noise of modules": lambda: ours.BatchNorm1d(3, noise="x"),
    "module of convert_batch_norm": lambda: ours.convert_batch_norm("x"),
    "module of convert_sync_batchnorm": lambda: ours.convert_sync_batchnorm("x"),
    "module of to_torch": lambda: ours.to_torch("x"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_KINDS)
def test_wrong_kinds(what: str) -> None:
    with pytest.raises(TypeError, match=f"^{what.split()[0]}: expected .*, got "):
        WRONG_KINDS[what]()


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_errors_leave_the_state_alone() -> None:
    bn = ours.BatchNormAct(ours.BatchNorm1d(3, noise=Noise(1)))
    before = copy.deepcopy(bn.state_dict())
    for x, residual in (
        (torch.ones(1, 3), None),
        (torch.ones(4, 2), None),
        (torch.ones(4, 3), torch.ones(4, 2)),
    ):
        with pytest.raises(ValueError):
            bn(x, residual)
    for name, tensor in bn.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (2, 3, 0)], ids=str)
def test_empty_batch(shape: tuple[int, ...]) -> None:
    theirs, mine = layer(nn, shape), layer(ours, shape)
    x = torch.empty(shape, dtype=torch.float64, requires_grad=True)
    for training in (theirs, mine):
        training(x)
    for name, buffer in theirs.named_buffers():  # the batch counts
        assert torch.equal(getattr(mine, name), buffer)
    theirs.eval(), mine.eval()
    y = mine(x)
    assert y.shape == theirs(x).shape
    gradients = torch.autograd.grad(y.sum(), (x, *mine.parameters()))
    assert gradients[0].shape == shape
    assert not any(g.any() for g in gradients[1:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_values_stay_in_their_channel(rng: np.random.Generator, bad: float) -> None:
    x = normal(rng, 6, 3)
    x[2, 1] = bad
    y = functional(x)
    assert bool(y[:, 1].isnan().any())
    assert_near(y[:, [0, 2]], formula(x)[:, [0, 2]])


# First and second derivatives, in every way that PyTorch knows.

Point = tuple[Tensor, ...]


def scalar(f: Callable[..., Tensor], w: Tensor) -> Callable[..., Tensor]:
    """A loss that bends with y, so that dy depends on the inputs too."""
    return lambda *p: ((y := f(*p)) * w).sum() + (y**3).sum()


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return sum(
        ((u * v).sum() for u, v in zip(a, b, strict=True)), torch.zeros((), dtype=a[0].dtype)
    )


def reverse_over_reverse(f: Any, p: Point, v: Point) -> Any:
    leaves = leaves_of(p)
    first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(dot(first, v), leaves, materialize_grads=True)


def forward_over_reverse(f: Any, p: Point, v: Point) -> Any:
    leaves = leaves_of(p)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, b) for a, b in zip(leaves, v, strict=True)]
        first = torch.autograd.grad(f(*duals), duals, create_graph=True)
        return [forward_ad.unpack_dual(g).tangent for g in first]


def reverse_over_forward(f: Any, p: Point, v: Point) -> Any:
    leaves = leaves_of(p)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(a, b) for a, b in zip(leaves, v, strict=True)]
        tangent = forward_ad.unpack_dual(f(*duals)).tangent
    # Outside: inside, the backward pass would have a tangent too, of third order.
    return torch.autograd.grad(tangent, leaves, materialize_grads=True)


def all_arguments(p: Point) -> tuple[int, ...]:
    return tuple(range(len(p)))


def func_reverse_over_reverse(f: Any, p: Point, v: Point) -> Any:
    first = func.grad(f, all_arguments(p))
    return func.grad(lambda *q: dot(first(*q), v), all_arguments(p))(*p)


def func_forward_over_reverse(f: Any, p: Point, v: Point) -> Any:
    return func.jvp(func.grad(f, all_arguments(p)), p, v)[1]


def func_reverse_over_forward(f: Any, p: Point, v: Point) -> Any:
    return func.grad(lambda *q: func.jvp(f, q, v)[1], all_arguments(p))(*p)


def func_vjp_over_vjp(f: Any, p: Point, v: Point) -> Any:
    def first(*q: Tensor) -> Any:
        return func.vjp(f, *q)[1](torch.ones((), dtype=torch.float64))

    return func.vjp(first, *p)[1](v)


WAYS = (
    reverse_over_reverse,
    forward_over_reverse,
    reverse_over_forward,
    func_reverse_over_reverse,
    func_forward_over_reverse,
    func_reverse_over_forward,
    func_vjp_over_vjp,
)
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)


@every_way
@every_mode
@every_activation
@pytest.mark.parametrize("shape", [SHAPES["NC"], SHAPES["NCHW"]], ids=["NC", "NCHW"])
def test_second_order(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    activation: str | None,
    training: bool,
    way: Callable[[Any, Point, Point], Any],
) -> None:
    """Products with the Hessian over all inputs."""
    p, v = inputs(rng, shape, channels_last), inputs(rng, shape)
    running = statistics(rng, shape, training)
    w = normal(rng, *shape)
    f, exact = (
        scalar(partial(g, activation=activation, running=running), w) for g in (functional, formula)
    )
    assert_near(way(f, p, v), reverse_over_reverse(exact, p, v), 1e-11)


@every_mode
@every_activation
@every_shape
def test_forward_over_forward(
    rng: np.random.Generator, shape: tuple[int, ...], activation: str | None, training: bool
) -> None:
    """Of the whole output, along two directions."""
    p, u, v = (inputs(rng, shape) for _ in range(3))
    running = statistics(rng, shape, training)

    def twice(f: Any) -> Tensor:
        f = partial(f, activation=activation, running=running)
        out: Tensor = func.jvp(lambda *q: func.jvp(f, q, u)[1], p, v)[1]
        return out

    assert_near(twice(functional), twice(formula), 1e-11)


@every_activation
@every_memory
@every_shape
def test_tangents(
    rng: np.random.Generator, shape: tuple[int, ...], memory: Any, activation: str | None
) -> None:
    """Of any subset of the inputs, by both of PyTorch's forward modes."""
    p, v = inputs(rng, shape, memory), inputs(rng, shape)
    f, exact = (partial(g, activation=activation) for g in (functional, formula))
    wanted = func.jvp(exact, p, v)[1]
    y, tangent = func.jvp(f, p, v)
    assert_near([y, tangent], [exact(*p), wanted])
    for which in ((0,), (1,), (3,), (0, 2), (1, 2, 3)):
        with forward_ad.dual_level():
            q = [forward_ad.make_dual(p[k], v[k]) if k in which else p[k] for k in range(4)]
            tangent = forward_ad.unpack_dual(f(*q)).tangent
        part = tuple(v[k] if k in which else torch.zeros_like(v[k]) for k in range(4))
        assert_near(tangent, func.jvp(exact, p, part)[1])


@pytest.mark.parametrize("subset", [(0,), (1,), (2,), (0, 1), (0, 3), (1, 2), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@every_way
def test_second_order_of_some_inputs(
    rng: np.random.Generator, way: Any, activation: str, subset: tuple[int, ...]
) -> None:
    p, v = inputs(rng, (5, 3)), inputs(rng, (5, 3))
    w = normal(rng, 5, 3)

    def some(g: Any) -> Callable[..., Tensor]:
        def f(*q: Tensor) -> Tensor:
            given = list(p)
            for k, t in zip(subset, q, strict=True):
                given[k] = t
            out: Tensor = g(*given, activation=activation)
            return out

        return scalar(f, w)

    q, u = (tuple(t[k] for k in subset) for t in (p, v))
    assert_near(way(some(functional), q, u), reverse_over_reverse(some(formula), q, u), 1e-11)


@every_way
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("affine", [False, True], ids=["bare", "affine"])
def test_second_order_without_inputs(
    rng: np.random.Generator, affine: bool, residual: bool, way: Any
) -> None:
    """Parameters and residual may be None."""
    p, v = inputs(rng, (4, 3, 5)), inputs(rng, (4, 3, 5))
    which = [0] + [1, 2] * affine + [3] * residual
    w = normal(rng, 4, 3, 5)

    def named(g: Any) -> Callable[..., Tensor]:
        names = ("x", "weight", "bias", "residual")
        return scalar(
            lambda *q: g(**dict(zip([names[k] for k in which], q, strict=True)), activation="tanh"),
            w,
        )

    q, u = (tuple(t[k] for k in which) for t in (p, v))
    assert_near(way(named(functional), q, u), reverse_over_reverse(named(formula), q, u), 1e-11)


@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
@every_activation
def test_gradcheck(rng: np.random.Generator, activation: str | None, training: bool) -> None:
    shape = (4, 2, 3)
    p = [t.requires_grad_() for t in inputs(rng, shape)]
    f = partial(functional, activation=activation, running=statistics(rng, shape, training))
    assert torch.autograd.gradcheck(
        f, p, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(f, p, check_fwd_over_rev=True, check_batched_grad=True)


def test_backward_is_differentiated_by_its_gradient_alone(rng: np.random.Generator) -> None:
    """The gradient of the gradient by dy, as in a product with the Jacobian by two transposes."""
    p = leaves_of(inputs(rng, (5, 3, 2)))
    dy = normal(rng, 5, 3, 2).requires_grad_()
    v = inputs(rng, (5, 3, 2))
    got, wanted = (
        torch.autograd.grad(
            dot(torch.autograd.grad(f(*p, activation="relu"), p, dy, create_graph=True), v), dy
        )
        for f in (functional, formula)
    )
    assert_near(got, wanted)


# torch.func.

FUNCTIONS = {
    "jacrev": lambda f, n: func.jacrev(f, tuple(range(n))),
    "jacfwd": lambda f, n: func.jacfwd(f, tuple(range(n))),
    "jacrev in chunks": lambda f, n: func.jacrev(f, tuple(range(n)), chunk_size=7),
    "hessian": lambda f, n: func.hessian(lambda *p: (f(*p) ** 3).sum(), tuple(range(n))),
    "jacrev of grad": lambda f, n: func.jacrev(func.grad(lambda *p: (f(*p) ** 3).sum())),
    "jacrev of jacrev": lambda f, n: func.jacrev(func.jacrev(lambda *p: f(*p)[0])),
    "jacrev of jacfwd": lambda f, n: func.jacrev(func.jacfwd(lambda *p: f(*p)[0])),
    "jacfwd of jacfwd": lambda f, n: func.jacfwd(func.jacfwd(lambda *p: f(*p)[0])),
    "vjp": lambda f, n: lambda *p: func.vjp(f, *p)[1](p[0]),
}


@pytest.mark.parametrize("transform", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("activation", [None, "relu", "gelu"], ids=str)
def test_transforms(rng: np.random.Generator, activation: str | None, transform: Any) -> None:
    p = inputs(rng, (3, 2, 2))
    got, wanted = (
        torch.utils._pytree.tree_leaves(transform(partial(f, activation=activation), 4)(*p))
        for f in (functional, formula)
    )
    assert_near(got, wanted, 1e-11)


@pytest.mark.parametrize("batched", list(itertools.product([None, 0, -1], [None, 0])), ids=str)
@every_mode
@every_activation
def test_vmap_is_the_loop(
    rng: np.random.Generator, activation: str | None, training: bool, batched: Any
) -> None:
    """Over x and residual, over the parameters, or over both; the axis may be any."""
    dim, parameters = batched
    if dim is None and parameters is None:
        dim = 1
    shape, many = (4, 3, 5), 3
    dims = (dim, parameters, parameters, dim)
    each = [inputs(rng, shape) for _ in range(many)]
    given = [
        each[0][k] if d is None else torch.stack([e[k] for e in each], d)
        for k, d in enumerate(dims)
    ]
    running = statistics(rng, shape, training)
    f, exact = (partial(g, activation=activation, running=running) for g in (functional, formula))
    loop = [
        exact(*(each[0 if d is None else n][k] for k, d in enumerate(dims))) for n in range(many)
    ]
    assert_near(func.vmap(f, dims, 1)(*given), torch.stack(loop, 1))
    # And its gradients, from outside and from inside.
    w = normal(rng, *shape)
    losses = [scalar(g, w) for g in (f, exact)]
    for transform in (
        lambda g: func.grad(lambda *q: func.vmap(g, dims)(*q).sum(), (0, 1, 2, 3)),
        lambda g: func.vmap(func.grad(g, (0, 1, 2, 3)), dims),
        lambda g: func.vmap(lambda *q: func.jvp(g, q, q)[1], dims),
    ):
        got, wanted = (transform(g)(*given) for g in losses)
        assert_near(got, wanted, 1e-11)


def test_nested_vmap(rng: np.random.Generator) -> None:
    x = normal(rng, 2, 3, 6, 4)
    got, wanted = (func.vmap(func.vmap(f))(x) for f in (functional, formula))
    assert_near(got, wanted)


def test_ensemble(rng: np.random.Generator) -> None:
    """As in PyTorch's tutorial: stacked modules under one vmap, per-model gradients."""
    models = [
        nn.Sequential(
            nn.Linear(4, 3),
            ours.BatchNormAct(ours.BatchNorm1d(3, track_running_stats=False), "relu"),
        ).double()
        for _ in range(3)
    ]
    parameters, buffers = func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    x = normal(rng, 8, 4)

    def loss(p: Any, b: Any) -> Tensor:
        out: Tensor = (func.functional_call(base, (p, b), (x,)) ** 2).sum()
        return out

    got = func.vmap(func.grad(loss))(parameters, buffers)
    for k, model in enumerate(models):
        wanted = torch.autograd.grad((model(x) ** 2).sum(), tuple(model.parameters()))
        assert_near([g[k] for g in got.values()], list(wanted))


def test_vmap_refuses_running_statistics(rng: np.random.Generator) -> None:
    bn = ours.BatchNorm1d(3, dtype=torch.float64)
    x = normal(rng, 4, 6, 3)
    before = copy.deepcopy(bn.state_dict())
    with pytest.raises(RuntimeError, match=r"(?i)running.?(statistics|mean|stats)"):
        func.vmap(bn)(x)
    for name, tensor in bn.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    func.replace_all_batch_norm_modules_(bn)
    assert bn.running_mean is None
    assert_near(func.vmap(bn)(x), torch.stack([Formula(3)(part) for part in x]))


def test_transforms_update_running_statistics_where_they_can(rng: np.random.Generator) -> None:
    """functional_call with the buffers as arguments; evaluation under vmap."""
    theirs, mine = pair(rng, (4, 3), activation="tanh")
    x = normal(rng, 6, 3)

    def loss(p: Any, b: Any) -> Tensor:
        out: Tensor = (func.functional_call(mine, (p, b), (x,)) ** 2).sum()
        return out

    parameters = dict(mine.named_parameters())
    buffers = {k: b.clone() for k, b in mine.named_buffers()}
    got = func.grad(loss)(parameters, buffers)
    wanted = torch.autograd.grad((torch.tanh(theirs(x)) ** 2).sum(), tuple(theirs.parameters()))
    assert_near(list(got.values()), list(wanted))
    theirs.eval(), mine.eval()
    xs = normal(rng, 2, 6, 3)
    mine.load_state_dict(theirs.state_dict())
    assert_near(func.vmap(mine)(xs), torch.stack([torch.tanh(theirs(part)) for part in xs]))


# What is known to go wrong with PyTorch's own.


def published(batch_norm: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of pytorch#196699."""

    def f(t: Tensor) -> Tensor:
        x = torch.stack([(i + 1) * t + (i % 3 - 1) * t * t + i for i in range(8)]).reshape(2, 2, 2)
        weight = torch.tensor([1.5, -0.5], dtype=t.dtype)
        bias = torch.tensor([0.25, 1], dtype=t.dtype)
        y = batch_norm(
            x, None, None, weight=weight, bias=bias, training=True, momentum=0.1, eps=0.25
        )
        return (y * torch.arange(1, 9, dtype=t.dtype).reshape(2, 2, 2)).sum()

    return f


def test_published_second_tangent() -> None:
    """pytorch#196699: −2.132… instead of −0.207…, in two of the four compositions."""
    f = published(ours.functional.batch_norm)
    t, one = torch.tensor(-6.0, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    wanted = torch.tensor(-0.20703015646993195, dtype=torch.float64)

    def tangent(t: Tensor) -> Tensor:
        out: Tensor = func.jvp(f, (t,), (one,))[1]
        return out

    assert_near(func.jvp(tangent, (t,), (one,))[1], wanted)
    assert_near(func.grad(tangent)(t), wanted)
    assert_near(func.jvp(func.grad(f), (t,), (one,))[1], wanted)
    assert_near(func.grad(func.grad(f))(t), wanted)


def along(orders: Sequence[str], f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative of a function of a number, by one mode after the other."""
    for order in orders:
        if order == "r":
            f = func.grad(f)
        else:
            f = partial(lambda g, t: func.jvp(g, (t,), (torch.ones_like(t),))[1], f)
    return f


@pytest.mark.parametrize("orders", ["".join(o) for o in itertools.product("fr", repeat=3)])
def test_third_order_raises(orders: str) -> None:
    """pytorch#186256: silently wrong."""
    t = torch.tensor(-6.0, dtype=torch.float64)
    f = published(ours.functional.batch_norm)
    with pytest.raises(RuntimeError, match="third"):
        along(orders, f)(t)
    # Nothing is left behind.
    assert_near(along(orders[:2], f)(t), along("rr", f)(t))


@every_activation
def test_third_order_raises_in_autograd(rng: np.random.Generator, activation: str | None) -> None:
    p = leaves_of(inputs(rng, (4, 3)))
    y = functional(*p, activation=activation)
    first = torch.autograd.grad((y**3).sum(), p, create_graph=True)
    second = torch.autograd.grad((first[0] ** 3).sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match="third"):
        torch.autograd.grad((second[0] ** 3).sum(), p)


def test_second_order_with_a_graph_is_no_third(rng: np.random.Generator) -> None:
    """A gradient penalty, differentiated with create_graph, is right."""
    p = leaves_of(inputs(rng, (4, 3)))
    results = []
    for f in (functional, formula):
        first = torch.autograd.grad((f(*p, activation="relu") ** 3).sum(), p, create_graph=True)
        penalty = sum((g**2).sum() for g in first)
        results.append(torch.autograd.grad(penalty, p, create_graph=True))
    assert_near(*results)


@every_memory
@pytest.mark.parametrize(("scale", "offset"), [(1e30, 0.0), (1e30, 1e30), (1.0, 1e4)])
def test_large_values(rng: np.random.Generator, scale: float, offset: float, memory: Any) -> None:
    """pytorch#162489, #178123, #180156: the variance overflows, the output is 0."""
    x = memory((scale * normal(rng, 8, 3, 5, 7) + offset).float())
    y = ours.functional.batch_norm(x, None, None, training=True)
    assert_near(y.double(), formula(x.double(), eps=1e-5), 2e-6)
    bn = ours.BatchNorm2d(3)
    assert_near(bn(x), y)
    assert_near(bn.running_mean, (0.1 * x.double().mean((0, 2, 3))).float(), 1e-6)


def test_a_channel_of_equal_values() -> None:
    x = torch.full((8, 3, 5), 3.7, requires_grad=True)
    y = ours.functional.batch_norm(x, None, None, training=True)
    assert not y.any()
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert not dx.any()


def test_discriminator_with_a_gradient_penalty(rng: np.random.Generator) -> None:
    """pytorch#3076, #2309: the network that needs the double backward."""

    def net(bn: nn.Module, act: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Conv2d(2, 3, 3, stride=2), bn, act, nn.Flatten(), nn.Linear(27, 1)
        return nn.Sequential(*layers).double()

    slope = nn.LeakyReLU(0.2)
    mine = ours.BatchNormAct(ours.BatchNorm2d(3), "leaky_relu", 0.2)
    x = normal(rng, 5, 2, 8, 8).requires_grad_()
    results = []
    for model in (net(mine, nn.Identity()), net(Formula(3), slope)):
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        penalty = ((g.flatten(1).norm(dim=1) - 1) ** 2).mean()
        results.append(
            torch.autograd.grad(penalty, tuple(model.parameters()), materialize_grads=True)
        )
    assert_near(*results, 1e-11)


# Networks.


class Block(nn.Module):
    """A residual block, of our layers or of the formula's."""

    def __init__(self, norm: Callable[[int, str | None], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
        self.bn1 = norm(3, "relu")
        self.conv2 = nn.Conv2d(3, 2, 3, padding=1, dtype=torch.float64)
        self.bn2 = norm(2, "gelu")
        self.head = nn.Linear(2, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x))), x)
        out: Tensor = self.head(h.mean((2, 3)))
        return out


def blocks() -> tuple[Block, Block]:
    torch.manual_seed(3)
    mine = Block(lambda c, a: ours.BatchNormAct(ours.BatchNorm2d(c, dtype=torch.float64), a))
    exact = Block(Formula)
    mine.load_state_dict(exact.state_dict(), strict=False)
    names = [name.replace(".norm.", ".") for name, _ in mine.named_parameters()]
    assert names == list(dict(exact.named_parameters()))
    return mine, exact


@every_way
def test_hessian_vector_products_of_a_network(rng: np.random.Generator, way: Any) -> None:
    x, targets = normal(rng, 6, 2, 5, 5), normal(rng, 6, 3)
    mine, exact = blocks()
    func.replace_all_batch_norm_modules_(mine)
    p = tuple(q.detach() for q in mine.parameters())
    v = tuple(normal(rng, *q.shape) for q in p)

    def loss(model: nn.Module) -> Callable[..., Tensor]:
        names = [name for name, _ in model.named_parameters()]

        def f(*q: Tensor) -> Tensor:
            y = func.functional_call(model, dict(zip(names, q, strict=True)), (x,))
            out: Tensor = ((y - targets) ** 4).mean()
            return out

        return f

    assert_near(way(loss(mine), p, v), reverse_over_reverse(loss(exact), p, v), 1e-10)


def test_reverse_over_reverse_with_running_statistics(rng: np.random.Generator) -> None:
    """In plain training; the statistics are updated once."""
    mine, exact = blocks()
    x = normal(rng, 6, 2, 5, 5)
    results = []
    for model in (mine, exact):
        p = tuple(model.parameters())
        first = torch.autograd.grad((model(x) ** 2).sum(), p, create_graph=True)
        results.append(torch.autograd.grad(dot(first, first), p))
    assert_near(*results, 1e-10)
    assert int(mine.bn1.norm.num_batches_tracked) == 1


def test_training_follows_torch(rng: np.random.Generator) -> None:
    """Ten steps of SGD with momentum, on batches of unequal size."""
    theirs = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    mine = ours.convert_batch_norm(copy.deepcopy(theirs))
    for model in (theirs, mine):
        numbers = np.random.default_rng(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(10):
            x = normal(numbers, 5 + step, 4)
            optimizer.zero_grad()
            (model(x) - x[:, :2] ** 2).square().mean().backward()
            optimizer.step()
    x = normal(rng, 1)
    assert_near([*mine.state_dict().values(), x], [*theirs.state_dict().values(), x], 1e-11)


# Autograd's manners.


@pytest.mark.parametrize("wants", list(itertools.product([False, True], repeat=4)), ids=str)
@every_activation
def test_only_what_is_asked_for(
    rng: np.random.Generator, activation: str | None, wants: tuple[bool, ...]
) -> None:
    given = [t.requires_grad_(w) for t, w in zip(inputs(rng, (4, 3)), wants, strict=True)]
    y, wanted = (f(*given, activation=activation) for f in (functional, formula))
    assert_near(y, wanted)
    assert y.requires_grad == any(wants)
    asked = [t for t in given if t.requires_grad]
    if asked:
        dy = normal(rng, 4, 3)
        assert_near(torch.autograd.grad(y, asked, dy), torch.autograd.grad(wanted, asked, dy))


def test_frozen_parameters(rng: np.random.Generator) -> None:
    norm = ours.BatchNorm1d(3, dtype=torch.float64)
    bn = ours.BatchNormAct(norm, "relu").requires_grad_(False)
    x = normal(rng, 5, 3).requires_grad_()
    bn(x).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(rng: np.random.Generator, mode: Any) -> None:
    theirs, mine = pair(rng, (4, 3, 5), activation="relu")
    for training in (True, False):
        theirs.train(training), mine.train(training)
        x = normal(rng, 4, 3, 5)
        with mode():
            y, wanted = mine(x), torch.relu(theirs(x))
        assert not y.requires_grad
        assert_near(y, wanted)
    assert_near([*mine.buffers()], [*theirs.buffers()])


def test_versions_of_the_buffers() -> None:
    """Autograd is told of writes, and of nothing in evaluation."""
    bn = ours.BatchNorm1d(3)
    for training in (True, False):
        bn.train(training)
        before = [b._version for b in bn.buffers()]
        bn(torch.randn(4, 3))
        after = [b._version for b in bn.buffers()]
        assert [a > b for a, b in zip(after, before, strict=True)] == [training] * 3


def test_evaluation_keeps_the_statistics_it_used(rng: np.random.Generator) -> None:
    """Training before the backward pass changes the buffers, and not the gradient."""
    bn = ours.BatchNorm1d(3, dtype=torch.float64).eval()
    x = normal(rng, 4, 3).requires_grad_()
    running = bn.running_mean.clone(), bn.running_var.clone()
    y = bn(x)
    bn.train()(3 * normal(rng, 4, 3))
    wanted = torch.autograd.grad(formula(x, running=running, eps=1e-5).pow(3).sum(), x)
    assert_near(torch.autograd.grad(y.pow(3).sum(), x), wanted)


def test_a_changed_input_is_noticed() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    h = x * 1.0
    y = ours.functional.batch_norm(h, None, None, training=True, activation="relu")
    h.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_activation
def test_output_may_be_changed_where_torch_allows(activation: str | None) -> None:
    """Nothing but the output is needed of the output: it is not saved."""
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = functional(x, activation=activation)
    wanted = formula(x, activation=activation)
    dy = torch.randn_like(y)
    (expected,) = torch.autograd.grad(wanted * 1.0, x, 2 * dy)
    y.mul_(2.0)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert_near(dx, expected)


def test_input_is_left_alone(rng: np.random.Generator) -> None:
    given = leaves_of(inputs(rng, (4, 3, 2)))
    before = [t.detach().clone() for t in given]
    y = functional(*given, activation="relu")
    dy = torch.ones_like(y)
    torch.autograd.grad(dot(torch.autograd.grad(y, given, dy, create_graph=True), given), given)
    for t, b in zip(given, before, strict=True):
        assert torch.equal(t, b)
        assert t._version == 0
    assert torch.equal(dy, torch.ones_like(dy))


def test_twice_in_one_graph(rng: np.random.Generator) -> None:
    theirs, mine = pair(rng, (6, 3), activation="tanh")
    x = normal(rng, 6, 3)
    results = []
    for f, bn in ((lambda h: torch.tanh(theirs(h)), theirs), (mine, mine)):
        (leaf,) = leaves_of([x])
        y = f(f(leaf) * 2)
        results.append([y, *torch.autograd.grad(y.pow(2).sum(), (leaf, *bn.parameters())),
                        *(b for b in bn.buffers())])  # fmt: skip
    assert_near(*reversed(results))


def test_backward_twice(rng: np.random.Generator) -> None:
    x = normal(rng, 6, 3).requires_grad_()
    y = functional(x, activation="relu").square().sum()
    one = torch.autograd.grad(y, x, retain_graph=True)
    assert_near(torch.autograd.grad(y, x, retain_graph=True), one, 0.0)
    torch.autograd.grad(y, x)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(rng: np.random.Generator, use_reentrant: bool) -> None:
    """Run twice, as PyTorch's: gradients are the same, and the statistics see both runs."""
    theirs, mine = pair(rng, (6, 3), activation="relu")
    x = normal(rng, 6, 3)
    results = []
    for f, bn in ((lambda h: torch.relu(theirs(h)), theirs), (mine, mine)):
        (leaf,) = leaves_of([x])
        y = checkpoint(f, leaf, use_reentrant=use_reentrant)
        y.pow(2).sum().backward()
        results.append([leaf.grad, *(p.grad for p in bn.parameters()), *bn.buffers()])
    assert_near(*reversed(results))


def test_saved_tensor_hooks(rng: np.random.Generator) -> None:
    """What is kept for backward goes through save_for_backward: it can be packed away."""
    packed: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t.clone()

    x = normal(rng, 6, 3, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = functional(x, activation="relu")
    assert any(t.shape == x.shape for t in packed)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(formula(x, activation="relu").square().sum(), x)
    assert_near(dx, wanted)


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_relu_saves_no_more_than_a_bit_a_value(rng: np.random.Generator, residual: bool) -> None:
    packed: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        packed[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x, added = (normal(rng, 16, 8, 12, 12, dtype=torch.float32) for _ in range(2))
    x.requires_grad_()
    bn = ours.BatchNormAct(ours.BatchNorm2d(8), "relu")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        bn(x, added) if residual else bn(x)
    others = sum(packed.values()) - packed[x.untyped_storage().data_ptr()]
    bits = x.numel() / 8 if residual else 0
    assert others <= bits + 8 * 16 * 8 + 4096  # a plane may start at a word of its own


def test_hooks(rng: np.random.Generator) -> None:
    bn = ours.BatchNorm1d(3, dtype=torch.float64)
    seen: list[str] = []
    bn.register_forward_pre_hook(lambda m, args: seen.append("before"))
    bn.register_forward_hook(lambda m, args, y: 2 * y)
    bn.register_full_backward_hook(lambda m, gi, go: seen.append("backward"))
    x = normal(rng, 4, 3).requires_grad_()
    y = bn(x)
    assert_near(y, 2 * Formula(3)(x))
    y.sum().backward()
    assert seen == ["before", "backward"]
    weight = ours.BatchNorm1d(3, dtype=torch.float64)
    weight.weight.register_hook(lambda g: 3 * g)
    weight(x).square().sum().backward()
    theirs = nn.BatchNorm1d(3, dtype=torch.float64)
    theirs(x).square().sum().backward()
    assert_near(weight.weight.grad, 3 * theirs.weight.grad)


def test_anomaly_mode(rng: np.random.Generator) -> None:
    x = normal(rng, 4, 3).requires_grad_()
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly():
        functional(x, activation="relu").sum().backward()
    assert x.grad is not None


def test_gradients_of_other_kinds(rng: np.random.Generator) -> None:
    """Expanded ones, as sum() sends, and none, where the output is not used."""
    p = leaves_of(inputs(rng, (4, 3, 5)))
    (got,), (wanted,) = (torch.autograd.grad(f(*p).sum(), p[3]) for f in (functional, formula))
    assert_near(got, wanted)
    weight = normal(rng, 1, 3, 1).expand(4, 3, 5)
    got, wanted = (torch.autograd.grad(f(*p), p, weight) for f in (functional, formula))
    assert_near(got, wanted)


def test_expanded_input(rng: np.random.Generator) -> None:
    x = normal(rng, 4, 3, 1).expand(4, 3, 5).detach().requires_grad_()
    y, wanted = functional(x), formula(x)
    assert_near(y, wanted)
    assert_near(torch.autograd.grad(y.pow(3).sum(), x), torch.autograd.grad(wanted.pow(3).sum(), x))


# Memory order.


@pytest.mark.parametrize("axes", [2, 3])
@every_activation
def test_channels_last_stays(rng: np.random.Generator, activation: str | None, axes: int) -> None:
    order = torch.channels_last if axes == 2 else torch.channels_last_3d
    shape = (2, 3, 4, 5, 6)[: axes + 2]
    x, residual = (
        normal(rng, *shape).contiguous(memory_format=order).requires_grad_() for _ in range(2)
    )
    y = functional(x, residual=residual, activation=activation)
    assert y.is_contiguous(memory_format=order)
    dy = normal(rng, *shape).contiguous(memory_format=order)
    for g in torch.autograd.grad(y, (x, residual), dy):
        assert g.is_contiguous(memory_format=order)


def test_dense_stays(rng: np.random.Generator) -> None:
    x = normal(rng, 2, 3, 4, 5).requires_grad_()
    y = functional(x)
    assert y.is_contiguous()
    dy = channels_last(normal(rng, 2, 3, 4, 5))
    (dx,) = torch.autograd.grad(y, x, dy)
    assert dx.is_contiguous()


def test_model_in_channels_last(rng: np.random.Generator) -> None:
    mine, _ = blocks()
    x = normal(rng, 4, 2, 5, 5)
    wanted = mine(x)
    mine.to(memory_format=torch.channels_last)
    assert_near(mine(x.contiguous(memory_format=torch.channels_last)), wanted)


# Mixed precision.


def test_autocast(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 8, 3), ours.BatchNorm2d(8)
    bn = ours.BatchNormAct(norm, "relu")
    x = normal(rng, 4, 3, 9, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        h = conv(x)
        h.retain_grad()
        y = bn(h)
        loss = y.float().square().sum()
    assert y.dtype is torch.bfloat16
    loss.backward()
    assert norm.running_mean.dtype is torch.float32
    assert conv.weight.grad.dtype is torch.float32
    # In float64, from the rounded output of the convolution and the rounded gradient of y.
    exact = h.detach().double().requires_grad_()
    weight = torch.ones(8, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    wanted = formula(exact, weight, bias, activation="relu", eps=1e-5)
    assert_near(y.double(), wanted, 2.0**-8)
    dy = (2 * y.detach().float()).bfloat16().double()
    gradients = torch.autograd.grad(wanted, (exact, weight, bias), dy)
    assert_near(h.grad.double(), gradients[0], 2.0**-8)
    assert_near([norm.weight.grad, norm.bias.grad], [g.float() for g in gradients[1:]], 1e-5)
    mean = 0.1 * exact.mean((0, 2, 3))
    assert_near(norm.running_mean, mean.detach().float(), 1e-6)


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(("x", "residual"), [*itertools.permutations(DTYPES, 2)], ids=str)
def test_a_residual_of_another_dtype_is_added_as_in_pytorch(
    rng: np.random.Generator, x: torch.dtype, residual: torch.dtype
) -> None:
    norm = ours.BatchNorm1d(3).to(x)
    a, b = normal(rng, 8, 3).to(x), normal(rng, 8, 3).to(residual)
    wanted = torch.relu(norm(a) + b)
    assert torch.equal(ours.BatchNormAct(norm, "relu")(a, b), wanted)


@pytest.mark.parametrize(
    ("x", "residual"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
    ],
    ids=str,
)
def test_autocast_promotes_a_residual_as_an_addition(
    rng: np.random.Generator, x: torch.dtype, residual: torch.dtype
) -> None:
    bn = ours.BatchNormAct(ours.BatchNorm2d(3), "relu")
    a = normal(rng, 4, 3, 5, 5).to(x).requires_grad_()
    b = normal(rng, 4, 3, 5, 5).to(residual).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = bn(a, b)
    assert y.dtype is torch.promote_types(x, residual)
    wanted = formula(a.detach().double(), residual=b.detach().double(), activation="relu", eps=1e-5)
    assert_near(y.double(), wanted, 2.0**-7)
    y.float().sum().backward()
    assert a.grad.dtype is x
    assert b.grad.dtype is residual


def test_autocast_and_second_order(rng: np.random.Generator) -> None:
    bn = ours.BatchNormAct(ours.BatchNorm1d(3), "gelu")
    x = normal(rng, 64, 3).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    weight = torch.ones(3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y = bn(x)
    results = []
    for leaf, out in ((x, y), (exact, formula(exact, weight, activation="gelu", eps=1e-5))):
        (g,) = torch.autograd.grad((out.double() ** 2).sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad((g.double() ** 2).sum(), leaf)[0].double())
    assert_near(*results, 0.05)


# torch.compile.


@pytest.fixture
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


compiles = [
    pytest.mark.usefixtures("_compiler"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of PyTorch's own code
]


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), ours.BatchNormAct(ours.BatchNorm2d(4), "relu"), nn.Conv2d(4, 3, 3),
        ours.BatchNormAct(ours.BatchNorm2d(3, momentum=None), "gelu"), nn.Flatten(1),
    ).double()  # fmt: skip


def assert_compiled_as_eager(
    model: nn.Module, batches: Sequence[Tensor], compiled: Callable[[nn.Module], Any], **slack: Any
) -> None:
    """Outputs, gradients of everything, running statistics and counts; then evaluation."""
    other = copy.deepcopy(model)
    run = compiled(other)
    for x in batches:
        results = []
        for f, m in ((model, model), (run, other)):
            m.zero_grad()
            (leaf,) = leaves_of([x])
            y = f(leaf)
            y.pow(2).sum().backward()
            results.append([y, leaf.grad, *(p.grad for p in m.parameters()), *m.buffers()])
        assert_near(results[1], results[0], **slack)
    model.eval(), other.eval()
    assert_near(run(batches[0]), model(batches[0]), **slack)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
class TestCompile:
    pytestmark = compiles

    def test_as_eager(self, rng: np.random.Generator, backend: str) -> None:
        batches = [normal(rng, 4, 2, 7, 7) for _ in range(3)]
        assert_compiled_as_eager(
            small_network(), batches, partial(torch.compile, backend=backend, fullgraph=True)
        )

    def test_ghosts_are_of_training_alone(self, rng: np.random.Generator, backend: str) -> None:
        x = normal(rng, 5, 2, 3, 3)
        for train in (True, False):
            model = ours.BatchNorm2d(2, ghost=2).double().train(train)
            model.running_var.fill_(4.0)
            results = []
            for m in (model, torch.compile(copy.deepcopy(model), backend=backend, fullgraph=True)):
                (leaf,) = leaves_of([x])
                y = m(leaf)
                y.pow(3).sum().backward()
                results.append([y, leaf.grad, *(p.grad for p in m.parameters())])
            assert_near(results[1], results[0])

    def test_dynamic_shapes(self, rng: np.random.Generator, backend: str) -> None:
        """Compiled once for all batch sizes."""
        counter = CompileCounterWithBackend(backend)
        run = torch.compile(
            (model := small_network()[:4]), backend=counter, fullgraph=True, dynamic=True
        )
        other = copy.deepcopy(model)
        for n in (4, 6, 9):
            x = normal(rng, n, 2, 7, 7)
            assert_near(run(x), other(x))
            if n == 4:
                frames = counter.frame_count
        assert_near(list(model.buffers()), list(other.buffers()))
        assert counter.frame_count == frames > 0

    def test_residual_and_channels_last(self, rng: np.random.Generator, backend: str) -> None:
        mine, _ = blocks()
        order = torch.channels_last
        batches = [normal(rng, 4, 2, 5, 5).contiguous(memory_format=order) for _ in range(2)]
        assert_compiled_as_eager(
            mine, batches, partial(torch.compile, backend=backend, fullgraph=True)
        )

    def test_functional(self, rng: np.random.Generator, backend: str) -> None:
        p = leaves_of(inputs(rng, (4, 3, 5)))
        run = torch.compile(partial(functional, activation="tanh"), backend=backend, fullgraph=True)
        y, wanted = run(*p), formula(*p, activation="tanh")
        dy = torch.ones_like(y)
        assert_near(y, wanted)
        assert_near(torch.autograd.grad(y, p, dy), torch.autograd.grad(wanted, p, dy))


def test_operators_keep_their_arguments() -> None:
    """Graphs that the compiler has on disk call them by position."""
    from saddlepoint.torch.nn import compiled

    def kinds(operator: Any) -> list[str]:
        schema = str(operator._opoverload._schema)
        return [
            a.split()[0] for a in schema[schema.index("(") + 1 : schema.index(") ->")].split(", ")
        ]

    tensors = ["Tensor", *["Tensor?"] * 3]
    how = ["bool", "float?", "float", "str?", "float", "int?", "float[]?"]
    assert kinds(compiled._forward) == [*tensors, *["Tensor?"] * 3, *how]
    kept = ["bool", "str?", "float", "int?"]
    assert kinds(compiled._backward) == ["Tensor", *tensors, "Tensor", *kept]


@pytest.mark.slow
class TestInductor:
    pytestmark = compiles

    def test_as_eager(self, rng: np.random.Generator) -> None:
        batches = [normal(rng, n, 2, 7, 7) for n in (4, 4, 6)]
        assert_compiled_as_eager(
            small_network(), batches, partial(torch.compile, fullgraph=True), tolerance=1e-11
        )

    def test_autocast(self, rng: np.random.Generator) -> None:
        model = small_network().float()
        other = copy.deepcopy(model)
        run = torch.compile(other, fullgraph=True)
        x = normal(rng, 4, 2, 7, 7, dtype=torch.float32)
        for f in (model, run):
            with torch.autocast("cpu", torch.bfloat16):
                y = f(x)
            assert y.dtype is torch.bfloat16
            y.float().sum().backward()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert_near(q.grad, p.grad, 0.05)


# Variants.


@pytest.mark.parametrize("ghost", [2, 3, 100])
@every_memory
@every_activation
def test_ghost_batches(
    rng: np.random.Generator, activation: str | None, memory: Any, ghost: int
) -> None:
    """Each sub-batch by itself, to second order; the running statistics see one after the other."""
    shape = (7, 3, 4, 2)
    p, v = inputs(rng, shape, memory), inputs(rng, shape)
    w = normal(rng, *shape)

    def parts(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return torch.cat([
            formula(a, weight, bias, b, activation=activation)
            for a, b in zip(x.split(ghost), residual.split(ghost), strict=True)
        ])  # fmt: skip

    mine = partial(functional, activation=activation, ghost=ghost)
    assert_near(mine(*p), parts(*p))
    for way in (reverse_over_reverse, func_forward_over_reverse, func_reverse_over_forward):
        got, wanted = way(scalar(mine, w), p, v), reverse_over_reverse(scalar(parts, w), p, v)
        assert_near(got, wanted, 1e-11)
    bn, theirs = (layer(m, shape, **o) for m, o in ((ours, {"ghost": ghost}), (nn, {})))
    bn(p[0])
    for part in p[0].split(ghost):
        theirs(part)
    assert_near([bn.running_mean, bn.running_var], [theirs.running_mean, theirs.running_var])
    assert_near(bn.eval()(p[0]), theirs.eval()(p[0]))


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (1.5, 0.5), (1e9, 1e9)], ids=str)
def test_renormalization(rng: np.random.Generator, bounds: tuple[float, float]) -> None:
    """Ioffe (2017), algorithm 1: r and d are constants of differentiation."""
    shape = (5, 3, 4)
    p, v = inputs(rng, shape)[:3], inputs(rng, shape)[:3]
    mean, var = normal(rng, 3), normal(rng, 3) ** 2 + 0.1
    x = p[0]
    sigma = (x.var((0, 2), correction=0) + EPS).sqrt()
    running = (var + EPS).sqrt()
    r = (sigma / running).clamp(1 / bounds[0], bounds[0]).view(1, 3, 1)
    d = ((x.mean((0, 2)) - mean) / running).clamp(-bounds[1], bounds[1]).view(1, 3, 1)

    def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return weight.view(1, 3, 1) * (formula(x) * r + d) + bias.view(1, 3, 1)

    def mine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ours.functional.batch_norm(
            x, mean.clone(), var.clone(), weight, bias, True, eps=EPS, renorm=bounds
        )

    assert_near(mine(*p), exact(*p))
    w = normal(rng, *shape)
    got = reverse_over_reverse(scalar(mine, w), p, v)
    assert_near(got, reverse_over_reverse(scalar(exact, w), p, v), 1e-11)
    if bounds[0] == 1e9:  # then it is the running statistics' own normalization
        assert_near(mine(*p), formula(*p, running=(mean, var)), 1e-11)


def fit(noisy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """(factor, shift) of each unit, which must fit all of its values."""
    noisy, clean = noisy.detach(), clean.detach()
    low, high = clean.argmin(0), clean.argmax(0)
    units = torch.arange(clean.shape[1])
    factor = (noisy[high, units] - noisy[low, units]) / (clean[high, units] - clean[low, units])
    shift = noisy[low, units] - factor * clean[low, units]
    assert_near(factor * clean + shift, noisy, 1e-11)
    return factor, shift


def test_noise(rng: np.random.Generator) -> None:
    """A factor and a shift a unit, others at each step; none in evaluation."""
    bn = ours.BatchNorm1d(50, dtype=torch.float64, noise=Noise(7, mean=0.3, scale=1.5))
    plain = ours.BatchNorm1d(50, dtype=torch.float64)
    assert list(bn.state_dict()) == list(plain.state_dict())
    x = normal(rng, 6, 50)
    draws = []
    torch.manual_seed(1)
    for _ in range(3):
        factor, shift = fit(bn(x), plain(x))
        assert bool(((factor > 1 - 1e-9) & (factor < 1.5 + 1e-9)).all())
        assert bool((shift.abs() <= 0.3 + 1e-9).all())
        assert float(factor.max() - factor.min()) > 0.3
        assert float(shift.max() - shift.min()) > 0.4
        draws.append(torch.cat((factor, shift)))
    for a, b in itertools.combinations(draws, 2):
        assert int((a == b).sum()) == 0
    assert_near(bn.running_var, plain.running_var)
    assert_near(bn.eval()(x), plain.eval()(x))
    # The same seeds make the same steps.
    torch.manual_seed(1)
    again = ours.BatchNorm1d(50, dtype=torch.float64, noise=Noise(7, mean=0.3, scale=1.5))
    for draw in draws:
        assert_near(torch.cat(fit(again(x), formula(x, eps=1e-5))), draw, 1e-9)


def test_derivatives_of_noise(rng: np.random.Generator) -> None:
    noise = Noise(2, 9)
    p, v = inputs(rng, (6, 4))[:3], inputs(rng, (6, 4))[:3]
    factor, shift = fit(functional(*p, noise=noise), formula(*p))

    def exact(*q: Tensor) -> Tensor:
        return factor * formula(*q) + shift

    w = normal(rng, 6, 4)
    got = reverse_over_reverse(scalar(partial(functional, noise=noise), w), p, v)
    assert_near(got, reverse_over_reverse(scalar(exact, w), p, v), 1e-9)


def test_evaluation_advances_no_noise(rng: np.random.Generator) -> None:
    one, other = (ours.BatchNorm1d(5, noise=Noise(3), dtype=torch.float64) for _ in range(2))
    x = normal(rng, 6, 5)
    torch.manual_seed(2)
    one(x), one(x)
    wanted = one(x)
    torch.manual_seed(2)
    other(x)
    other.eval()(x)
    other.train()(x)
    assert torch.equal(other(x), wanted)


def test_a_checkpoint_repeats_noise(rng: np.random.Generator) -> None:
    bn = ours.BatchNorm1d(5, noise=Noise(3), dtype=torch.float64)
    x = normal(rng, 6, 5).requires_grad_()
    torch.manual_seed(3)
    (wanted,) = torch.autograd.grad(copy.deepcopy(bn)(x).square().sum(), x)
    torch.manual_seed(3)
    y = checkpoint(bn, x, use_reentrant=False)
    torch.rand(5)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert_near(dx, wanted)


@every_mode
def test_linearize(rng: np.random.Generator, training: bool) -> None:
    """It writes down aten operators, and is given PyTorch's."""
    x, along = normal(rng, 6, 5), normal(rng, 6, 5)
    running = statistics(rng, (6, 5), training)
    f, exact = (partial(g, activation="gelu", running=running) for g in (functional, formula))
    y, product = func.linearize(f, x)
    assert_near([y, product(along)], func.jvp(exact, (x,), (along,)))


# Whole modules.


class Net(nn.Module):
    """Every kind of place where batch normalization stands."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.leaky = nn.Sequential(nn.BatchNorm2d(4), nn.LeakyReLU(0.3))
        self.nested = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=None)), nn.GELU()
        )
        self.smooth = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Tanh(), nn.GELU())
        self.exact = nn.Sequential(nn.BatchNorm2d(4, eps=0.1), nn.GELU())
        self.approximate = nn.Sequential(nn.BatchNorm2d(4), nn.GELU(approximate="tanh"))
        self.list = nn.ModuleList([nn.BatchNorm2d(4), nn.ReLU()])
        self.lone = nn.BatchNorm1d(4, track_running_stats=False)
        self.volume = nn.Sequential(nn.BatchNorm3d(4), nn.Hardtanh())

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.stem, self.leaky, self.nested, self.smooth, self.exact, self.approximate):
            x = part(x)
        x = self.list[0](self.list[1](x))
        x = self.volume(x[..., None])[..., 0]
        out: Tensor = self.lone(x.flatten(2))
        return out


def assert_same_function(
    one: nn.Module, other: nn.Module, x: Tensor, tolerance: float = 1e-12
) -> None:
    """Outputs, gradients and statistics, of two batches in training and one in evaluation."""
    for scale in (1.0, 3.0, 2.0):
        if scale == 2.0:
            one.eval(), other.eval()
        sides = []
        for model in (one, other):
            (leaf,) = leaves_of([scale * x])
            y = model(leaf)
            dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            gradients = torch.autograd.grad(
                y, (leaf, *model.parameters()), dy, materialize_grads=True
            )
            sides.append([y, *gradients, *model.buffers()])
        assert_near(sides[1], sides[0], tolerance)


def unfolded(model: nn.Module) -> list[str]:
    """Names in its state dict, without that of a `BatchNormAct`'s own."""
    return [name.replace(".norm.", ".") for name in model.state_dict()]


@pytest.mark.parametrize("fold_activations", [True, False])
def test_converts_whole_modules(rng: np.random.Generator, fold_activations: bool) -> None:
    torch.manual_seed(0)
    net = Net().double()
    net.leaky[0].eval()
    net.stem[1].weight.requires_grad_(False)
    original = copy.deepcopy(net)
    tensors = [id(t) for t in (*net.parameters(), *net.buffers())]
    mine = ours.convert_batch_norm(net, fold_activations=fold_activations)
    assert [id(t) for t in (*mine.parameters(), *mine.buffers())] == tensors
    assert unfolded(mine) == list(original.state_dict())
    for name, module in original.named_modules():
        got = mine.get_submodule(name)
        assert got.training == module.training, name
        got = got.norm if isinstance(got, ours.BatchNormAct) else got
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert type(got) is getattr(ours, type(module).__name__)
            for option in ("eps", "momentum", "affine", "track_running_stats", "num_features"):
                assert getattr(got, option) == getattr(module, option)
    stem = mine.stem[1].norm if fold_activations else mine.stem[1]
    assert not stem.weight.requires_grad
    stem.weight.requires_grad_(), original.stem[1].weight.requires_grad_()
    folded = {"stem.2", "leaky.1", "smooth.1", "exact.1"} if fold_activations else set()
    identities = {n for n, m in mine.named_modules() if isinstance(m, nn.Identity)}
    assert identities == folded
    given = {n: m.activation for n, m in mine.named_modules() if isinstance(m, ours.BatchNormAct)}
    assert given == (
        {"stem.1": "relu", "leaky.0": "leaky_relu", "smooth.0": "tanh", "exact.0": "gelu"}
        if fold_activations
        else {}
    )
    mine.train(), original.train()
    assert_same_function(original, mine, normal(rng, 4, 2, 7, 7))


def test_converts_a_lone_layer(rng: np.random.Generator) -> None:
    theirs = nn.BatchNorm1d(3, dtype=torch.float64)
    mine = ours.convert_batch_norm(copy.deepcopy(theirs))
    assert type(mine) is ours.BatchNorm1d
    assert_same_function(theirs, mine, normal(rng, 5, 3))


def test_conversion_is_idempotent(rng: np.random.Generator) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()).double()
    once = ours.convert_batch_norm(copy.deepcopy(net))
    assert_same_function(net, ours.convert_batch_norm(once), normal(rng, 5, 3))


class TwiceReLU(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Branching(nn.Sequential):
    """Uses the output before the activation too."""

    def forward(self, x: Tensor) -> Tensor:
        h = self[0](x)
        out: Tensor = self[1](h) + h
        return out


class Own(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class Reused(nn.Module):
    """The parts of a Sequential are called from elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
        self.bn = self.part[0]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.part(x))
        return out


def shared_relu() -> nn.Module:
    relu = nn.ReLU()
    layers = nn.BatchNorm1d(3), relu, nn.Linear(3, 3), relu, nn.BatchNorm1d(3), relu
    return nn.Sequential(*layers)


def shared_norm() -> nn.Module:
    bn = nn.BatchNorm1d(3)
    return nn.Sequential(bn, nn.ReLU(), nn.Linear(3, 3), bn)


def shared_norm_and_relu() -> nn.Module:
    bn, relu = nn.BatchNorm1d(3), nn.ReLU()
    return nn.Sequential(bn, relu, nn.Linear(3, 3), bn, relu)


def shared_sequential() -> nn.Module:
    part = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    return nn.Sequential(part, nn.Linear(3, 3), part)


TRAPS: dict[str, Callable[[], nn.Module]] = {
    "a ReLU in several places": shared_relu,
    "a norm in several places": shared_norm,
    "both in several places": shared_norm_and_relu,
    "a Sequential in several places": shared_sequential,
    "a norm used from outside": Reused,
    "a subclass of ReLU": lambda: nn.Sequential(nn.BatchNorm1d(3), TwiceReLU()),
    "a Sequential of its own mind": lambda: Branching(nn.BatchNorm1d(3), nn.ReLU()),
    "a subclass of BatchNorm1d": lambda: nn.Sequential(Own(3), nn.ReLU()),
    "two activations": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.ReLU()),
    "already ours": lambda: nn.Sequential(ours.BatchNormAct(ours.BatchNorm1d(3), "tanh"),
                                          nn.ReLU()),
    "a negative slope above one": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.LeakyReLU(1.5)),
    "a negative slope below zero": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.LeakyReLU(-0.5)),
    "instance norm": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Unflatten(1, (3, 1)),
                                           nn.Flatten(1), nn.ReLU()),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:convert_batch_norm. left alone:UserWarning")
@pytest.mark.parametrize("build", TRAPS.values(), ids=TRAPS)
def test_conversion_keeps_the_function(rng: np.random.Generator, build: Any) -> None:
    torch.manual_seed(0)
    net = build().double()
    mine = ours.convert_batch_norm(copy.deepcopy(net))
    assert unfolded(mine) == unfolded(net)
    for one, other in itertools.combinations(net.named_modules(remove_duplicate=False), 2):
        same = mine.get_submodule(one[0]) is mine.get_submodule(other[0])
        assert one[1] is not other[1] or same, (one[0], other[0])
    assert_same_function(net, mine, normal(rng, 7, 3))


class WithActivation(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a batch normalization by its class, and more."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(super().forward(x)))
        return out


@pytest.mark.parametrize("convert", [ours.convert_batch_norm, ours.convert_sync_batchnorm])
def test_what_is_left_alone_is_said(convert: Any) -> None:
    net = nn.ModuleDict(
        {"own": Own(3), "act": WithActivation(3), "lazy": nn.LazyBatchNorm2d(), "sure": nn.ReLU()}
    )
    said = "own .Own: .*act .WithActivation: .*lazy .LazyBatchNorm2d: run one batch first"
    with pytest.warns(UserWarning, match=said) as warned:
        convert(net)
    assert len(warned) == 1
    assert [type(m) for m in net.values()] == [Own, WithActivation, nn.LazyBatchNorm2d, nn.ReLU]
    net["lazy"](torch.ones(2, 3, 4, 4))
    with pytest.warns(UserWarning, match="own") as warned:
        convert(net)
    assert "lazy" not in str(warned[0].message)
    assert isinstance(net["lazy"], ours.BatchNorm2d | ours.SyncBatchNorm)


def test_a_relu_with_hooks_is_not_folded(rng: np.random.Generator) -> None:
    seen: list[Tensor] = []
    net = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()).double()
    net[1].register_forward_hook(lambda m, args, y: seen.append(args[0]))
    mine = ours.convert_batch_norm(net)
    x = normal(rng, 5, 3)
    mine(x)
    assert_near(seen[0], Formula(3)(x))


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("place", [0, 1])
def test_what_has_a_hook_is_not_folded(kind: str, place: int) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    getattr(net[place], f"register_{kind}_hook")(lambda *_: None)
    mine = ours.convert_batch_norm(net)
    assert [type(m) for m in mine] == [ours.BatchNorm1d, nn.ReLU]


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_a_norm_are_kept(rng: np.random.Generator, kind: str) -> None:
    """And see what they saw."""
    seen: list[list[Any]] = []
    net = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()).double()
    register = getattr(net[0], f"register_{kind}_hook")
    register(lambda m, *args: seen.append(torch.utils._pytree.tree_leaves(args)))
    x = normal(rng, 5, 3).requires_grad_()
    net(x).square().sum().backward()
    mine = ours.convert_batch_norm(net)
    mine(x).square().sum().backward()
    assert len(seen) == 2
    assert_near([t.detach() for t in seen[1]], [t.detach() for t in seen[0]])


def test_conversion_in_training(rng: np.random.Generator) -> None:
    """An optimizer made before still moves the parameters."""
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()).double()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    mine = ours.convert_batch_norm(net)
    weight = mine[1].norm.weight
    before = weight.detach().clone()
    mine(normal(rng, 5, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(weight, before)


def test_lazy_negatives(rng: np.random.Generator) -> None:
    """The imaginary part of a conjugate is a negative that is not in memory."""
    z = torch.from_numpy(rng.standard_normal((6, 5)) + 1j * rng.standard_normal((6, 5)))
    x = z.conj().imag
    assert x.is_neg()
    y = ours.functional.batch_norm(x, None, None, training=True)
    assert_near(y, ours.functional.batch_norm(x.clone(), None, None, training=True))
    assert_near(y, formula(x, eps=1e-5))
