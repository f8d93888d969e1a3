"""`saddlepoint.torch.nn.SyncBatchNorm`: several processes are one, on the whole batch.

Starting processes takes seconds, so all cases run in the same ones, for each number of processes;
the tests then look at what they told.
"""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import saddlepoint.torch.nn as ours
from test_torch_nn import assert_near, channels_last, formula, leaves_of, normal

pytestmark = pytest.mark.slow

ACTIVATIONS: tuple[str | None, ...] = (None, "relu", "leaky_relu", "gelu")
CHANNELS = 3
# The rows of each of up to three processes.
SHARES = {"equal": (4, 4, 4), "unequal": (1, 6, 3), "empty": (0, 5, 4), "empty last": (5, 4, 0)}
SHAPES = {"NC": (), "NCHW": (3, 4)}


def numbers(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def share(whole: Tensor, rows: tuple[int, ...], rank: int) -> Tensor:
    return whole.split(rows)[rank].clone(memory_format=torch.preserve_format)


def inputs(name: str, rows: int, inner: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """((x, residual, dy, and directions of x, residual), (weight, bias, and directions))"""
    rng = numbers(name)
    wide = [normal(rng, rows, CHANNELS, *inner) for _ in range(5)]
    return [2 * wide[0] + 1, *wide[1:]], [normal(rng, CHANNELS) + k for k in (2, 0, 0, 0)]


def to_second_order(
    f: Callable[[Tensor, Tensor], Tensor], wide: list[Tensor], narrow: list[Tensor], bn: Any
) -> dict[str, Tensor]:
    """y, its gradients, and those of their product with a direction; of whatever part is here."""
    x, residual, dy = leaves_of(wide[:3])
    at = (x, residual, bn.weight, bn.bias)
    y = f(x, residual)
    first = torch.autograd.grad(y, at, dy, create_graph=True)
    product = sum((g * v).sum() for g, v in zip(first, (*wide[3:], *narrow[2:]), strict=True))
    second = torch.autograd.grad(product, (*at, dy), materialize_grads=True)
    names = ("x", "residual", "weight", "bias", "dy")
    return {
        "y": y,
        **{f"d{n}": g for n, g in zip(names, first, strict=False)},
        **{f"dd{n}": g for n, g in zip(names, second, strict=True)},
    }


def state(bn: nn.Module) -> dict[str, Tensor]:
    return {k: b.clone() for k, b in bn.named_buffers()}


# What a process does, case by case. A result is a tensor, or the text of an error.

Told = dict[str, Any]


def orders(name: str, rows: tuple[int, ...], rank: int, activation: str | None) -> Told:
    wide, narrow = inputs(name, sum(rows), SHAPES[name.split(", ")[0]])
    norm = ours.SyncBatchNorm(CHANNELS, 0.1, 0.3, dtype=torch.float64)
    bn = ours.BatchNormAct(norm, activation, 0.2)
    with torch.no_grad():
        norm.weight.copy_(narrow[0]), norm.bias.copy_(narrow[1])
    parts = [share(t, rows, rank) for t in wide]
    told = to_second_order(bn, parts, narrow, norm) | state(norm)
    # Evaluation asks nobody.
    bn.eval()
    if rank == 0:
        told["evaluated"] = bn(*parts[:2])
    return told


def network(norm: Callable[[int], nn.Module], activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(5)
    layers = nn.Conv2d(2, 4, 3), norm(4), activation, nn.Flatten(), nn.Linear(36, 2)
    return nn.Sequential(*layers).double()


def wrapped(rank: int, world: int) -> Told:
    """DistributedDataParallel averages the gradients of equal shares' means."""
    model = ours.convert_sync_batchnorm(network(nn.BatchNorm2d, nn.ReLU()))
    parallel = nn.parallel.DistributedDataParallel(model)
    x = share(normal(numbers("wrapped"), 4 * world, 2, 5, 5), (4,) * world, rank)
    for _ in range(2):
        parallel.zero_grad()
        parallel(x).square().mean().backward()
    return {
        **{k: p.grad for k, p in model.named_parameters()},
        **dict(model.named_buffers()),
    }


def options(rank: int, world: int) -> Told:
    """Momentum, statistics, parameters and memory of other kinds."""
    rows = (4, 2, 3)[:world]
    x = share(normal(numbers("options"), sum(rows), CHANNELS, 4, 5), rows, rank)
    told: Told = {}
    for name, given in OPTIONS.items():
        bn = ours.SyncBatchNorm(CHANNELS, dtype=torch.float64, **given)
        for scale in (1.0, 2.0):
            y = bn(scale * x)
        told |= {f"{name} y": y} | {f"{name} {k}": b for k, b in state(bn).items()}
    last = channels_last(x)
    y = ours.SyncBatchNorm(CHANNELS, dtype=torch.float64)(last.requires_grad_())
    (dx,) = torch.autograd.grad(y.square().sum(), last)
    told["channels last"] = y
    told["order"] = [t.is_contiguous(memory_format=torch.channels_last) for t in (y, dx)]
    single = ours.SyncBatchNorm(CHANNELS)
    y = single(x.float())
    told |= {"float32": y, "float32 var": single.running_var}
    told["bfloat16"] = ours.SyncBatchNorm(CHANNELS)(x.bfloat16())
    return told


OPTIONS: dict[str, dict[str, Any]] = {
    "average of all": {"momentum": None},
    "without statistics": {"track_running_stats": False},
    "without parameters": {"affine": False},
}


def one_row_each(rank: int, world: int) -> Told:
    x = share(normal(numbers("one row"), world, CHANNELS), (1,) * world, rank)
    bn = ours.SyncBatchNorm(CHANNELS, dtype=torch.float64)
    return {"y": bn(x)} | state(bn)


def too_few(rank: int, world: int) -> Told:
    """One row in all, which every process is told of."""
    rows = (1, 0, 0)[:world]
    bn = ours.SyncBatchNorm(CHANNELS, dtype=torch.float64)
    try:
        bn(share(torch.ones(1, CHANNELS, dtype=torch.float64), rows, rank))
    except ValueError as error:
        return {"error": str(error)} | state(bn)
    return {"error": None}


def groups(rank: int, world: int) -> Told:
    """The first two together, the third alone."""
    pair = dist.new_group([0, 1])
    alone = dist.new_group([2]) if world == 3 else None
    rows = (3, 2, 4)[:world]
    x = share(normal(numbers("groups"), sum(rows), CHANNELS), rows, rank).requires_grad_()
    group = alone if rank == 2 else pair
    bn = ours.SyncBatchNorm(CHANNELS, dtype=torch.float64, process_group=group)
    y = bn(x)
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x)
    model = ours.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(CHANNELS)).double(), group)
    # A module holds no group that it was not given, so it can be copied in the middle of a run.
    whole = ours.SyncBatchNorm(CHANNELS, dtype=torch.float64)
    whole(x.detach())
    assert_near(list(pickle.loads(pickle.dumps(whole)).buffers()), list(whole.buffers()), 0.0)
    return {"y": y, "dx": dx, "converted": model(x)} | state(bn)


def differing_directions(rank: int, world: int) -> Told:
    """Second order along a direction of the parameters that is another one in another process."""
    told: Told = {}
    for name in ("weight", "bias"):
        norm = ours.SyncBatchNorm(CHANNELS, dtype=torch.float64)
        x = normal(numbers(f"{rank}"), 4, CHANNELS).requires_grad_()
        y = ours.BatchNormAct(norm, "gelu")(x)
        (g,) = torch.autograd.grad(y.pow(3).sum(), getattr(norm, name), create_graph=True)
        direction = torch.full((CHANNELS,), 1.0 + rank, dtype=torch.float64)
        try:
            told[name] = torch.autograd.grad(g, x, direction)[0]
        except ValueError as error:
            told[name] = str(error)
    # The group is as good as before.
    total = torch.ones(())
    dist.all_reduce(total)
    told["total"] = float(total)
    return told


def frozen(rank: int, world: int) -> Told:
    """The parameters take no gradient, or x does not."""
    rows = (4, 2, 3)[:world]
    x = share(normal(numbers("frozen"), sum(rows), CHANNELS), rows, rank)
    bn = ours.BatchNormAct(ours.SyncBatchNorm(CHANNELS, dtype=torch.float64), "relu")
    told = {"dweight": torch.autograd.grad(bn(x).pow(2).sum(), bn.norm.weight)[0]}
    bn.requires_grad_(False)
    (leaf,) = leaves_of([x])
    told["dx"] = torch.autograd.grad(bn(leaf).pow(2).sum(), leaf)[0]
    with torch.no_grad():
        told["y"] = bn(x)
    return told


def cases(world: int) -> dict[str, Callable[[int], Told]]:
    """In the order in which every process runs them."""
    result: dict[str, Callable[[int], Told]] = {}
    for kind in SHAPES:
        for activation in ACTIVATIONS:
            for name, all_rows in SHARES.items():
                rows, key = all_rows[:world], f"{kind}, {activation}, {name}"
                result[key] = lambda rank, a=(key, rows), b=activation: orders(*a, rank, b)
    for case in (wrapped, options, one_row_each, too_few, groups, frozen, differing_directions):
        result[case.__name__] = lambda rank, case=case: case(rank, world)
    return result


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=60), world, rank)
    told: dict[str, Told] = {}
    try:
        for name, case in cases(world).items():
            try:
                told[name] = case(rank)
            except Exception:
                # The others may be waiting in a collective: nothing after this could be trusted.
                told["failed"] = {"case": name, "text": traceback.format_exc()}
                break
    finally:
        torch.save(told, f"{folder}/{rank}.pt")
        if "failed" not in told:
            dist.destroy_process_group()


class Answers:
    """What the processes told, by case and by name."""

    def __init__(self, world: int, folder: Path) -> None:
        self.world = world
        mp.spawn(process, (world, str(folder)), nprocs=world)
        self.told = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]

    def __call__(self, case: str, name: str) -> list[Any]:
        if any(case not in told for told in self.told):
            failed = [told["failed"] for told in self.told if "failed" in told]
            pytest.fail("\n".join(f"{f['case']}: {f['text']}" for f in failed))
        return [told[case][name] for told in self.told if name in told[case]]

    def whole(self, case: str, name: str) -> Tensor:
        return torch.cat(self(case, name))

    def same(self, case: str, name: str) -> Tensor:
        """What all processes must agree on, to the bit."""
        parts = self(case, name)
        assert len(parts) == self.world
        for part in parts[1:]:
            assert torch.equal(part, parts[0])
        first: Tensor = parts[0]
        return first


@pytest.fixture(scope="module", params=[2, 3], ids=lambda n: f"{n} processes")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(request.param, tmp_path_factory.mktemp("processes"))


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("kind", SHAPES)
def test_processes_are_one(
    answers: Answers, kind: str, activation: str | None, shares: str
) -> None:
    """To second order."""
    case = f"{kind}, {activation}, {shares}"
    rows = sum(SHARES[shares][: answers.world])
    wide, narrow = inputs(case, rows, SHAPES[kind])
    theirs = nn.BatchNorm1d(CHANNELS, momentum=0.3, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(narrow[0]), theirs.bias.copy_(narrow[1])

    def exact(x: Tensor, residual: Tensor) -> Tensor:
        return formula(x, theirs.weight, theirs.bias, residual, activation=activation)

    for name, wanted in to_second_order(exact, wide, narrow, theirs).items():
        if wanted.ndim > 1:
            got = answers.whole(case, name)
        else:  # a parameter's gradient is each process's own, until they are added
            got = torch.stack(answers(case, name)).sum(0)
        assert_near(got, wanted.detach(), 1e-12 if not name.startswith("dd") else 1e-11)
    theirs(wide[0].flatten(2) if wide[0].ndim > 2 else wide[0])
    for name, buffer in theirs.named_buffers():
        assert_near(answers.same(case, name), buffer)
    (evaluated,) = answers(case, "evaluated")
    x, residual = (share(t, SHARES[shares][: answers.world], 0) for t in wide[:2])
    running = theirs.running_mean, theirs.running_var
    wanted = formula(
        x, theirs.weight, theirs.bias, residual, activation=activation, running=running
    )
    assert_near(evaluated, wanted.detach())


def test_as_users_wrap_it(answers: Answers) -> None:
    model = network(nn.BatchNorm2d, nn.ReLU())
    x = normal(numbers("wrapped"), 4 * answers.world, 2, 5, 5)
    for _ in range(2):
        model.zero_grad()
        model(x).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert_near(answers.same("wrapped", name), parameter.grad)
    for name, buffer in model.named_buffers():
        assert_near(answers.same("wrapped", name), buffer)


def test_options(answers: Answers) -> None:
    x = normal(numbers("options"), sum((4, 2, 3)[: answers.world]), CHANNELS, 4, 5)
    for name, given in OPTIONS.items():
        theirs = nn.BatchNorm2d(CHANNELS, dtype=torch.float64, **given)
        for scale in (1.0, 2.0):
            y = theirs(scale * x)
        assert_near(answers.whole("options", f"{name} y"), y.detach())
        for key, buffer in theirs.named_buffers():
            assert_near(answers.same("options", f"{name} {key}"), buffer)
    y = formula(x, eps=1e-5)
    assert_near(answers.whole("options", "channels last"), y)
    assert answers("options", "order") == [[True, True]] * answers.world
    single = x.float().double()
    assert_near(answers.whole("options", "float32"), formula(single, eps=1e-5).float(), 5e-7)
    var = 0.9 + 0.1 * single.var((0, 2, 3))
    assert_near(answers.same("options", "float32 var"), var.float(), 2e-7)
    rounded = formula(x.bfloat16().double(), eps=1e-5)
    assert_near(answers.whole("options", "bfloat16").double(), rounded, 2.0**-8)


def test_one_row_each(answers: Answers) -> None:
    x = normal(numbers("one row"), answers.world, CHANNELS)
    theirs = nn.BatchNorm1d(CHANNELS, dtype=torch.float64)
    assert_near(answers.whole("one_row_each", "y"), theirs(x).detach())
    for name, buffer in theirs.named_buffers():
        assert_near(answers.same("one_row_each", name), buffer)


def test_one_row_in_all_raises_everywhere(answers: Answers) -> None:
    for error in answers("too_few", "error"):
        assert error is not None
        assert "expected more than 1 value per channel when training, got" in error
    assert not answers.same("too_few", "running_mean").any()


def test_groups(answers: Answers) -> None:
    rows = (3, 2, 4)[: answers.world]
    whole = normal(numbers("groups"), sum(rows), CHANNELS)
    y, dx, converted, var = (
        answers("groups", name) for name in ("y", "dx", "converted", "running_var")
    )
    for first, last in ((0, 2), (2, 3))[: answers.world - 1]:
        (x,) = leaves_of([torch.cat(whole.split(rows)[first:last])])
        wanted = formula(x, eps=1e-5)
        gradient = torch.autograd.grad(wanted.pow(3).sum(), x)[0]
        assert_near(torch.cat(y[first:last]), wanted.detach())
        assert_near(torch.cat(converted[first:last]), wanted.detach())
        assert_near(torch.cat(dx[first:last]), gradient, 1e-11)
        for v in var[first:last]:
            assert_near(v, 0.9 + 0.1 * x.detach().var(0))


def test_frozen(answers: Answers) -> None:
    x = normal(numbers("frozen"), sum((4, 2, 3)[: answers.world]), CHANNELS).requires_grad_()
    weight = torch.ones(CHANNELS, dtype=torch.float64, requires_grad=True)
    y = formula(x, weight, activation="relu", eps=1e-5)
    dx, dweight = torch.autograd.grad(y.pow(2).sum(), (x, weight))
    assert_near(answers.whole("frozen", "y"), y.detach())
    assert_near(answers.whole("frozen", "dx"), dx)
    assert_near(torch.stack(answers("frozen", "dweight")).sum(0), dweight)


def test_differing_directions_raise_everywhere(answers: Answers) -> None:
    errors = answers("differing_directions", "weight")
    for error in errors:
        assert isinstance(error, str)
        assert "expected" in error
        assert "got" in error
    assert answers("differing_directions", "total") == [answers.world] * answers.world


def test_differing_directions_of_the_bias(answers: Answers) -> None:
    """Every process may move a bias of its own."""
    told = answers("differing_directions", "bias")
    x = torch.cat([normal(numbers(f"{k}"), 4, CHANNELS) for k in range(answers.world)])
    bias = torch.zeros_like(x)
    x.requires_grad_(), bias.requires_grad_()
    y = formula(x, residual=bias, activation="gelu", eps=1e-5)
    (g,) = torch.autograd.grad(y.pow(3).sum(), bias, create_graph=True)
    direction = torch.arange(1.0, answers.world + 1, dtype=torch.float64).repeat_interleave(4)
    (wanted,) = torch.autograd.grad(g, x, direction[:, None].expand_as(g))
    assert_near(torch.cat(told), wanted, 1e-11)


# In one process.


def test_alone_it_is_batch_norm(rng: np.random.Generator) -> None:
    assert not dist.is_initialized()
    mine = ours.BatchNormAct(ours.SyncBatchNorm(CHANNELS, dtype=torch.float64), "tanh")
    theirs = nn.BatchNorm2d(CHANNELS, dtype=torch.float64)
    x = normal(rng, 4, CHANNELS, 2, 3).requires_grad_()
    results = []
    for bn, act in ((mine, nn.Identity()), (theirs, torch.tanh)):
        y = act(bn(x))
        first = torch.autograd.grad(y.pow(3).sum(), (x, *bn.parameters()), create_graph=True)
        second = torch.autograd.grad(first[0].pow(2).sum(), (x, next(bn.parameters())))
        results.append([y, *first, *second, *bn.buffers()])
    assert_near(*results, 1e-11)
    with pytest.raises(ValueError, match="expected more than 1 value per channel when training"):
        mine(x[:1, :, :1, :1])


def test_is_a_torch_module() -> None:
    assert issubclass(ours.SyncBatchNorm, nn.Module)
    bn = ours.SyncBatchNorm(4, 1e-3, 0.2, True, True, None)
    assert list(bn.state_dict()) == list(nn.SyncBatchNorm(4).state_dict())
    assert (bn.eps, bn.momentum) == (1e-3, 0.2)
    bn.load_state_dict(nn.BatchNorm1d(4).state_dict())


def test_converts_whole_modules(rng: np.random.Generator) -> None:
    """Of PyTorch's layers and ours, with the activations that are folded in."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, 0.1, None), nn.ReLU(),
        nn.Sequential(ours.BatchNormAct(ours.BatchNorm2d(4), "leaky_relu", 0.3)),
        nn.Flatten(2), ours.BatchNorm1d(4, affine=False), nn.Unflatten(2, (5, 5, 1)),
        nn.BatchNorm3d(4, track_running_stats=False),
    ).double()  # fmt: skip
    net[3].eval()
    net[1].bias.requires_grad_(False)
    original = copy.deepcopy(net)
    tensors = {k: id(t) for k, t in (*net.named_parameters(), *net.named_buffers())}
    mine = ours.convert_sync_batchnorm(net)
    assert {k: id(t) for k, t in (*mine.named_parameters(), *mine.named_buffers())} == tensors
    assert list(mine.state_dict()) == list(original.state_dict())
    for name in ("1", "3.0.norm", "5", "7"):
        one, other = original.get_submodule(name), mine.get_submodule(name)
        assert type(other) is ours.SyncBatchNorm
        for option in ("eps", "momentum", "affine", "track_running_stats", "training"):
            assert getattr(one, option) == getattr(other, option)
    assert mine[3][0].activation == "leaky_relu"
    assert mine[3][0].negative_slope == 0.3
    x = normal(rng, 4, 2, 7, 7)
    for _ in range(2):
        assert_near(mine(x), original(x))
    assert_near(list(mine.buffers()), list(original.buffers()))


def test_converts_a_lone_layer() -> None:
    assert type(ours.convert_sync_batchnorm(nn.BatchNorm2d(3))) is ours.SyncBatchNorm
