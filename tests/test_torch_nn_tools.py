"""What takes PyTorch's modules takes ours: tools keep the function or refuse, files that exporters
write need no saddlepoint, and `to_torch` is the way back.
"""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import saddlepoint.torch.nn as ours
from saddlepoint import _core
from saddlepoint.norm import Noise, batch_norm_apply
from saddlepoint.torch.nn import convert, functional

torch.set_num_threads(1)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of PyTorch's own tools
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

ACTIVATIONS = {"relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(0.3), "gelu": nn.GELU(),
               "tanh": nn.Tanh()}  # fmt: skip


def statistics(model: nn.Module) -> nn.Module:
    """The same model with parameters and running statistics that are told apart."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3)
            if name.endswith("running_var"):
                tensor.add_(1.0)
    return model


def plain(activation: str = "relu") -> nn.Sequential:
    """PyTorch's own."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), copy.deepcopy(ACTIVATIONS[activation]),
        nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(),
    )  # fmt: skip
    statistics(net)
    return net


def converted(activation: str = "relu") -> nn.Sequential:
    return ours.convert_batch_norm(plain(activation))


class Residual(nn.Module):
    """A user of `BatchNormAct` with a residual, a shared one, and one of no activation."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, dtype=dtype)
        self.first = ours.BatchNormAct(ours.BatchNorm2d(3, dtype=dtype), "gelu")
        self.rest = nn.Sequential(self.first, ours.BatchNormAct(ours.BatchNorm2d(3, dtype=dtype)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rest(self.first(self.conv(x), x))
        return out


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))


def near(got: Tensor, wanted: Tensor, slack: float = 1e-5) -> bool:
    return bool(torch.allclose(got, wanted, rtol=slack, atol=slack))


# A fused module is no batch normalization.


@pytest.mark.parametrize("norm", [ours.BatchNorm2d, ours.SyncBatchNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_is_norm_residual_and_activation(
    norm: Any, activation: str, residual: bool, training: bool
) -> None:
    held = ours.BatchNormAct(statistics(norm(3)), activation, 0.3).train(training)
    exact = nn.BatchNorm2d(3)
    exact.load_state_dict(held.norm.state_dict())
    exact.train(training)
    y = held(X, X.flip(0)) if residual else held(X)
    z = exact(X) + X.flip(0) if residual else exact(X)
    assert near(y, ACTIVATIONS[activation](z))
    assert near(held.norm.running_var, exact.running_var)


def test_has_nothing_of_a_batch_norm() -> None:
    held = converted()[1]
    assert not isinstance(held, _BatchNorm)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked", "eps",
                 "momentum", "num_features", "affine"):  # fmt: skip
        assert not hasattr(held, name), name
    assert repr(held) == (
        "BatchNormAct(\n  activation='relu'\n  (norm): " + repr(nn.BatchNorm2d(4)) + "\n)"
    )


@pytest.mark.parametrize("module", [ours.BatchNorm1d(3), ours.BatchNormAct(nn.BatchNorm1d(3))])
@pytest.mark.parametrize("training", [True, False])
def test_script_says_what_to_take_instead(module: nn.Module, training: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), module).train(training)
    with pytest.raises(RuntimeError, match=r"expected torch\.export .*to_torch.*, got "):
        torch.jit.script(model)
    assert model[1] is module
    assert torch.jit.script(ours.to_torch(model))(torch.ones(4, 3)).shape == (4, 3)


def test_a_wrong_norm_is_refused() -> None:
    with pytest.raises(TypeError, match="norm: expected a module, got int"):
        ours.BatchNormAct(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"activation: expected .*, got 'elu'"):
        ours.BatchNormAct(nn.BatchNorm1d(3), "elu")


REFUSED: dict[str, Callable[[nn.Sequential], object]] = {
    "fuse_conv_bn_eval": lambda m: fuse_conv_bn_eval(m[0], m[1]),  # type: ignore[type-var]
    "fuse_linear_bn_eval": lambda m: fuse_linear_bn_eval(nn.Linear(5, 4).eval(), m[1]),  # type: ignore[type-var]
    "folding by attributes": lambda m: m[1].weight / torch.sqrt(m[1].running_var + m[1].eps),
    "quantization": lambda m: torch.ao.quantization.fuse_modules(m, [["0", "1"]]),
}


@pytest.mark.parametrize("tool", REFUSED.values(), ids=REFUSED)
def test_tools_that_would_drop_the_activation_raise(tool: Any) -> None:
    with pytest.raises((AttributeError, AssertionError)):
        tool(converted().eval())


class Frozen(nn.Module):
    """A batch norm with statistics that stay, as torchvision and timm put it into a model."""

    def __init__(self, bn: Any) -> None:
        super().__init__()
        scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("shift", (bn.bias - bn.running_mean * scale).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.scale + self.shift
        return out


def freeze(module: Any) -> Any:
    """timm's: children are replaced where they are batch norms by isinstance."""
    if isinstance(module, _BatchNorm) and module.track_running_stats:
        return Frozen(module)
    for name, child in module.named_children():
        setattr(module, name, freeze(child))
    return module


def fuse(model: Any) -> Any:
    from torch.fx.experimental import optimization  # warns of PyTorch's own

    return optimization.fuse(model)


KEPT: dict[str, Callable[[Any], Any]] = {
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
    "our SyncBatchNorm": ours.convert_sync_batchnorm,
    "freeze": freeze,
    "symbolic_trace": fx.symbolic_trace,
    "fuse": fuse,
    "deepcopy": copy.deepcopy,
    "to_torch": ours.to_torch,
    "jit.trace": lambda m: torch.jit.trace(m, (X,)),
    "export": lambda m: torch.export.export(m, (X,)).module(),
    "export strictly": lambda m: torch.export.export(m, (X,), strict=True).module(),
    "make_fx": lambda m: make_fx(m)(X),
    "make_fx of no-grad": lambda m: torch.no_grad()(make_fx(m))(X),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tool", KEPT.values(), ids=KEPT)
def test_tools_keep_the_function_in_evaluation(tool: Any, activation: str) -> None:
    wanted = plain(activation).eval()
    got = tool(converted(activation).eval())
    for x in (X, X.flip(0) * 2 + 1):
        assert near(got(x), wanted(x))


@pytest.mark.parametrize("tool", ["symbolic_trace", "deepcopy", "to_torch"])
def test_tools_keep_the_function_in_training(tool: str) -> None:
    wanted, got = plain(), KEPT[tool](converted())
    for _ in range(2):
        assert near(got(X), wanted(X))
    wanted.eval(), got.eval()
    assert near(got(X), wanted(X))
    assert near(got(2 * X), wanted(2 * X))


def test_replace_all_batch_norm_modules() -> None:
    wanted, got = plain(), converted()
    for model in (wanted, got):
        torch.func.replace_all_batch_norm_modules_(model)
    assert near(got(X), wanted(X))
    assert got[1].norm.running_mean is None


def double(norm: nn.Module) -> None:
    norm.register_forward_hook(lambda m, args, y: 2 * y)


def double_the_input(norm: nn.Module) -> None:
    norm.register_forward_pre_hook(lambda m, args: (2 * args[0],))


def replace_forward(norm: Any) -> None:
    norm.forward = lambda x: x + 1


WRAPPED: dict[str, tuple[Callable[[nn.Module], None], Callable[[nn.Module, Tensor], Tensor]]] = {
    "hook": (double, lambda norm, x: 2 * norm(x)),
    "pre-hook": (double_the_input, lambda norm, x: norm(2 * x)),
    "forward": (replace_forward, lambda norm, x: x + 1),
}


@pytest.mark.parametrize(("wrap", "wanted"), WRAPPED.values(), ids=WRAPPED)
def test_what_is_done_to_the_inner_norm_is_done(wrap: Any, wanted: Any) -> None:
    held = ours.BatchNormAct(statistics(ours.BatchNorm2d(3)), "tanh").eval()
    other = copy.deepcopy(held.norm)
    wrap(held.norm)
    assert near(held(X, X), torch.tanh(wanted(other, X) + X))


def test_global_hooks_see_the_inner_norm() -> None:
    seen: list[type] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, y: seen.append(type(m)))
    with handle:
        ours.BatchNormAct(ours.BatchNorm2d(3))(X)
    assert seen == [ours.BatchNorm2d, ours.BatchNormAct]


def test_fx_records_modules() -> None:
    """As PyTorch's own: they train and evaluate as they are told, and a feature has their name."""
    own = Residual()
    traced = fx.symbolic_trace(copy.deepcopy(own))
    calls = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    assert {"conv", "first", "rest.1"} <= calls
    x = torch.randn(2, 3, 4, 4)
    for training in (True, False):
        traced.train(training), own.train(training)
        assert torch.equal(traced(x), own(x))

    def f(x: Tensor) -> Tensor:
        return ours.functional.batch_norm(x, None, None, training=True, residual=x)

    assert torch.equal(fx.symbolic_trace(f)(x), f(x))


# Files.


def without_saddlepoint(code: str, folder: Path) -> str:
    """What a process prints in which saddlepoint cannot be imported."""
    first = "import sys; sys.modules['saddlepoint'] = None\nimport torch\n"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", first + code], cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def residual_in_evaluation() -> nn.Module:
    return statistics(Residual()).eval()


MODELS = {"folded": lambda: converted("gelu").eval(), "residual": residual_in_evaluation}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("format", ["export", "jit"])
def test_files_need_no_saddlepoint(tmp_path: Path, model: Any, format: str) -> None:
    net, file = model(), tmp_path / "net"
    other = 2 * X + 1
    torch.save((other, net(other).detach()), tmp_path / "pair")
    if format == "jit":
        torch.jit.save(torch.jit.trace(net, (X,)), str(file))
        load = "torch.jit.load('net')"
    else:
        file = file.with_suffix(".pt2")
        torch.export.save(torch.export.export(net, (X,)), file)
        load = "torch.export.load('net.pt2').module()"
    code = f"x, y = torch.load('pair')\nprint(torch.allclose({load}(x), y, atol=1e-5))"
    assert without_saddlepoint(code, tmp_path) == "True"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch's exporters
def test_onnx(tmp_path: Path, model: Any, dynamo: bool) -> None:
    """The file answers to its input, as the model does."""
    import onnxruntime

    net, file = model(), tmp_path / "net.onnx"
    torch.onnx.export(net, (X,), file, dynamo=dynamo, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for x in (X, 2 * X + 1):
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert near(torch.from_numpy(y), net(x), 1e-4)


WRITERS: dict[str, Callable[[nn.Module], object]] = {
    "export": lambda m: torch.export.export(m, (X,)),
    "jit.trace": lambda m: torch.jit.trace(m, (X,)),
    "make_fx": lambda m: make_fx(m)(X),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_training_is_not_written_down(writer: Any) -> None:
    net = converted()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"(?s)model\.eval\(\).*to_torch\(model\)"):
        writer(net)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())


def test_without_statistics_training_is_a_function() -> None:
    """As in evaluation of a module that tracks none, it can be written down."""
    bn = ours.BatchNorm2d(3, track_running_stats=False)
    program = torch.export.export(bn, (X,)).module()
    assert near(program(2 * X), nn.BatchNorm2d(3, track_running_stats=False)(2 * X))


def test_what_is_written_down_has_the_slope() -> None:
    act = ours.BatchNormAct(ours.BatchNorm2d(3), "leaky_relu", 0.3).eval()
    assert near(make_fx(act)(X)(-X), nn.functional.leaky_relu(act.norm(-X), 0.3))


# Tensors without numbers.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_tensors_without_numbers(kind: str, training: bool) -> None:
    if kind == "meta":
        net, x = Residual().to("meta").train(training), X.to("meta")
        y = net(x)
    else:
        mode = FakeTensorMode()
        with mode:
            net, x = Residual().train(training), torch.empty(2, 3, 6, 6)
            y = net(x)
    assert (type(y), y.device, y.shape, y.dtype) == (type(x), x.device, X.shape, X.dtype)
    y.sum().backward()
    assert net.first.norm.weight.grad is not None


# State dicts.


def test_checkpoints_of_the_model_before() -> None:
    before, after = plain(), converted()
    for tensor in before.state_dict().values():
        tensor.add_(1)
    after.load_state_dict(before.state_dict(), strict=True)
    for a, b in zip(after.state_dict().values(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [*after.state_dict()][2] == "1.norm.weight"
    after.load_state_dict(after.state_dict(), strict=True)
    before.load_state_dict(ours.to_torch(after).state_dict(), strict=True)


def test_wrong_keys_are_reported() -> None:
    net, state = converted(), plain().state_dict()
    state["1.other"] = state.pop("1.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*1\.norm\.weight.*Unexpected.*other"):
        net.load_state_dict(state)
    alone = ours.BatchNormAct(ours.BatchNorm2d(4))
    alone.load_state_dict(nn.BatchNorm2d(4).state_dict())


# Back to PyTorch.


def test_to_torch_is_the_way_back() -> None:
    before = plain("leaky_relu")
    before[1].eval()
    back = ours.to_torch(converted("leaky_relu"))
    assert str(back) == str(before)
    assert [*back.state_dict()] == [*before.state_dict()]
    assert not any(type(m).__module__.startswith("saddlepoint") for m in back.modules())


def test_to_torch_of_what_was_never_torchs() -> None:
    net = statistics(Residual())
    wanted = copy.deepcopy(net)
    parameters = [*net.parameters()]
    back = ours.to_torch(net)
    assert [id(p) for p in back.parameters()] == [id(p) for p in parameters]
    assert type(back.first) is ours.BatchNormAct  # it is given a residual
    assert type(back.first.norm) is nn.BatchNorm2d
    assert [type(m) for m in back.rest] == [nn.Sequential, nn.Sequential]
    for _ in range(2):
        assert near(back(X), wanted(X))
    assert near(back.eval()(X), wanted.eval()(X))
    synced = ours.to_torch(nn.Sequential(ours.SyncBatchNorm(3)))
    assert type(synced[0]) is nn.SyncBatchNorm
    assert near(synced.eval()(X), nn.BatchNorm2d(3).eval()(X))
    assert type(ours.to_torch(ours.BatchNorm3d(2))) is nn.BatchNorm3d


@pytest.mark.parametrize(
    "variant",
    [{"ghost": 2}, {"renorm": (2.0, 1.0)}, {"noise": Noise(1)}],
    ids=lambda v: next(iter(v)),
)
def test_to_torch_refuses_variants(variant: dict[str, Any]) -> None:
    net = nn.Sequential(ours.BatchNorm2d(3), ours.BatchNormAct(ours.BatchNorm2d(3, **variant)))
    with pytest.raises(ValueError, match=f"{next(iter(variant))}: expected None in another module"):
        ours.to_torch(net)
    assert type(net[0]) is ours.BatchNorm2d


# Numbers.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"eps": -1}, ValueError), ({"eps": float("nan")}, ValueError), ({"eps": "1"}, TypeError),
        ({"eps": None}, TypeError), ({"momentum": -1}, ValueError), ({"momentum": "a"}, TypeError),
        ({"momentum": float("nan")}, ValueError), ({"momentum": 2}, ValueError),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("module", [ours.BatchNorm2d, ours.SyncBatchNorm])
def test_refused_numbers(module: Any, given: Any, error: Any, training: bool) -> None:
    bn = module(3, **given).train(training)
    before = copy.deepcopy(bn.state_dict())
    with pytest.raises(error, match=f"{next(iter(given))}: expected"):
        bn(X)
    assert all(torch.equal(t, before[k]) for k, t in bn.state_dict().items())


def test_eps_of_zero_is_for_evaluation() -> None:
    """As in PyTorch 2.13."""
    bn, theirs = ours.BatchNorm2d(3, 0.0), nn.BatchNorm2d(3, 0.0)
    for norm in (bn, theirs):
        with pytest.raises(ValueError, match="eps"):
            norm(X)
    assert near(bn.eval()(X), theirs.eval()(X))


@pytest.mark.parametrize("number", [torch.tensor(0.5), True, 1], ids=str)
def test_numbers_that_torch_takes(number: Any) -> None:
    bn, theirs = ours.BatchNorm2d(3, momentum=number), nn.BatchNorm2d(3, momentum=number)
    assert near(bn(X), theirs(X))
    assert near(bn.running_mean, theirs.running_mean)


def test_an_activation_makes_it_a_module_that_holds_the_norm() -> None:
    made = ours.BatchNorm2d(3, eps=0.5, activation="leaky_relu", negative_slope=0.2)
    assert type(made) is ours.BatchNormAct
    assert not isinstance(made, nn.modules.batchnorm._BatchNorm)
    assert (type(made.norm), made.norm.eps) == (ours.BatchNorm2d, 0.5)
    x = torch.randn(4, 3, 5, 5)
    wanted = nn.functional.leaky_relu(ours.BatchNorm2d(3, eps=0.5)(x), 0.2)
    assert torch.equal(made(x), wanted)
    with pytest.raises(ValueError, match="activation: expected"):
        ours.BatchNorm1d(3, activation="elu")
    for kind in (ours.BatchNorm3d, ours.SyncBatchNorm):
        assert {"num_features", "activation"} <= set(inspect.signature(kind).parameters)


def test_an_activation_with_another_forward_is_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()).eval()
    model[1].forward = lambda z: z * 7
    x = torch.ones(2, 3)
    wanted = model(x)
    assert torch.allclose(ours.convert_batch_norm(model)(x), wanted)


def test_torch_has_every_activation_of_the_norm() -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    zero, one = np.zeros(1), np.ones(1)
    assert {*convert._ACTIVATIONS} == {*_core.batch_norm_activations}
    for word, kind in convert._ACTIVATIONS.items():
        slope = {"negative_slope": 0.2} if word == "leaky_relu" else {}
        y, _ = batch_norm_apply(z.numpy()[:, None], zero, one, activation=word, negative_slope=0.2)
        assert_allclose(y[:, 0], kind(**slope)(z), rtol=1e-14, atol=1e-16)
        assert_allclose(y[:, 0], functional.activated(z, word, 0.2), rtol=1e-14, atol=1e-16)
