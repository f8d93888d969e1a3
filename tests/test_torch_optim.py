"""`saddlepoint.torch.optim` where torch.optim stood: the same calls, paths, files and loops."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import pickle
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import saddlepoint.torch.optim as ours
from test_optim import NAMES, rows

torch.set_num_threads(1)  # the oracle's work is small

EPS32 = torch.finfo(torch.float32).eps
SHARED = [name for name in NAMES if hasattr(torch.optim, name)]
every_name = pytest.mark.parametrize("name", NAMES)
every_shared_name = pytest.mark.parametrize("name", SHARED)
# PyTorch has no such option.
every_shared_case = rows(
    lambda name, arguments: (
        name in SHARED
        and "clamp" not in arguments
        and not (name == "Muon" and "maximize" in arguments)
    )
)

pytestmark = pytest.mark.usefixtures("double_precision", "muon_in_full_precision")


@pytest.fixture
def double_precision() -> Iterator[None]:
    """PyTorch keeps NAdam's μ₁…μₜ and ASGD's η in its default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def muon_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's Muon rounds to bfloat16 before it iterates, ours does not."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


# What both sides run.


def network(name: str = "", dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Muon takes matrices alone."""
    torch.manual_seed(1)
    bias = name != "Muon"
    layers = nn.Linear(5, 8, bias), nn.Tanh(), nn.Linear(8, 3, bias)
    return nn.Sequential(*layers).to(dtype)


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 5, generator=numbers, dtype=torch.float64)
    return x.to(dtype), torch.sin(3 * x[:, :3]).to(dtype)


def loss_of(module: nn.Module, seed: int) -> Tensor:
    x, y = batch(seed, next(module.parameters()).dtype)
    return nn.functional.mse_loss(module(x), y)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> list[Tensor]:
    for seed in seeds:
        optimizer.zero_grad()
        loss_of(module, seed).backward()
        optimizer.step()
    return list(module.parameters())


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    numbers = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=numbers)) for s in shapes]


def feed(params: list[nn.Parameter], seed: int) -> None:
    """Gradients that do not depend on where the parameters are."""
    numbers = torch.Generator().manual_seed(1000 + seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=numbers, dtype=torch.float64).to(p.dtype)


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], seeds: range) -> None:
    for seed in seeds:
        feed(params, seed)
        optimizer.step()


def assert_near(got: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-12) -> None:
    """To within ``tolerance`` of the largest element: float64's rounding over a few steps."""
    assert len(got) == len(wanted) > 0
    for x, y in zip(got, wanted, strict=True):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        if y.numel():
            bound = tolerance * max(1.0, float(y.detach().abs().max()))
            assert float((x - y).detach().abs().max()) <= bound


def assert_as_torch(scenario: Callable[[Any], list[Tensor]]) -> None:
    """A scenario gives the same with our classes as with torch.optim's."""
    assert_near(scenario(ours), scenario(torch.optim))


def contents(x: Any) -> Any:
    """What a state dict holds, as things that compare by value."""
    if isinstance(x, Tensor):
        raw = x.detach().contiguous().flatten().view(torch.uint8) if x.numel() else x
        return str(x.dtype), tuple(x.shape), raw.tolist()
    if isinstance(x, dict):
        return {k: contents(v) for k, v in x.items()}
    return [contents(v) for v in x] if isinstance(x, list | tuple) else x


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint that holds nothing but tensors and plain containers."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def shapes_for(name: str) -> list[tuple[int, ...]]:
    return [(4, 3), (2, 6), (3, 3)] if name == "Muon" else [(4, 3), (7,), (2, 3, 2)]


# Constructors.


@every_name
def test_is_a_torch_optimizer(name: str) -> None:
    module = network(name)
    optimizer = getattr(ours, name)(module.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert repr(optimizer).startswith(name)
    train(module, optimizer, range(1))


@every_shared_name
def test_constructor_takes_the_arguments_of_its_namesake(name: str) -> None:
    """By position where PyTorch takes them so, all by name, and with its defaults."""
    theirs, mine = (inspect.signature(getattr(m, name)).parameters for m in (torch.optim, ours))
    by_position = [p for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert list(mine)[: len(by_position)] == [p.name for p in by_position]
    params = parameters((2, 2))
    for argument in list(theirs.values())[1:]:
        optimizer = getattr(ours, name)(params, **{argument.name: argument.default})
        # AdamW's is no argument; the rest stands in the groups under its name.
        assert optimizer.defaults[argument.name] == argument.default
        assert optimizer.param_groups[0][argument.name] == argument.default
        if argument.name in mine:
            assert mine[argument.name].default == argument.default


@every_shared_name
def test_defaults_are_those_of_its_namesake(name: str) -> None:
    theirs = getattr(torch.optim, name)(parameters((2, 2))).defaults
    mine = getattr(ours, name)(parameters((2, 2))).defaults
    assert {k: mine[k] for k in theirs} == theirs


@every_name
def test_implementation_flags_make_no_difference(name: str) -> None:
    paths = []
    for flags in ({}, {"foreach": True, "capturable": True}, {"fused": True, "foreach": False}):
        module = network(name)
        paths.append(train(module, getattr(ours, name)(module.parameters(), **flags), range(3)))
    for path in paths[1:]:
        assert contents(path) == contents(paths[0])


@every_name
def test_differentiable_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="differentiable: expected False, got True"):
        getattr(ours, name)(parameters((2, 2)), differentiable=True)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {"lr": -1.0}),
        ("SGD", {"nesterov": True}),
        ("Adam", {"betas": (1.0, 0.9)}),
        ("Adam", {"eps": -1.0}),
        ("Adam", {"lr": torch.tensor([0.1, 0.2])}),
        ("Rprop", {"etas": (1.5, 2.0)}),
        ("Adadelta", {"rho": 1.5}),
        ("Muon", {"adjust_lr_fn": "none"}),
    ],
)
def test_arguments_that_both_refuse(name: str, arguments: dict[str, Any]) -> None:
    for optimizers in (torch.optim, ours):
        with pytest.raises(ValueError):
            getattr(optimizers, name)(parameters((2, 2)), **arguments)


@pytest.mark.parametrize("optimizers", [torch.optim, ours])
def test_parameters_that_both_refuse(optimizers: Any) -> None:
    p, q = parameters((2, 2), (3,))
    with pytest.raises(ValueError, match="empty parameter list"):
        optimizers.Adam([])
    with pytest.raises(TypeError):
        optimizers.Adam(p)
    with pytest.raises(ValueError, match="non-leaf"):
        optimizers.Adam([p * 2])
    with pytest.raises(ValueError):
        optimizers.Muon([q])


def test_named_parameters() -> None:
    module = network()
    optimizer = ours.Adam(module.named_parameters())
    train(module, optimizer, range(1))
    names = [name for name, _ in module.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


# Paths.


@every_shared_case
def test_float64_training_is_pytorchs(name: str, arguments: dict[str, Any]) -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        module = network(name)
        optimizer = getattr(optimizers, name)(module.parameters(), **arguments)
        return train(module, optimizer, range(15))

    # Training feeds rounding back: ten times the bound of a path on given gradients.
    assert_near(scenario(ours), scenario(torch.optim), 1e-11)


@every_shared_case
def test_float32_training_is_as_near_as_pytorchs(name: str, arguments: dict[str, Any]) -> None:
    """At most twice the distance of PyTorch's float32 from its float64, in the root mean square."""
    torch.set_default_dtype(torch.float32)

    def path(optimizers: Any, dtype: torch.dtype) -> Tensor:
        module = network(name).to(dtype)
        optimizer = getattr(optimizers, name)(module.parameters(), **arguments)
        flat = [p.detach().double().ravel() for p in train(module, optimizer, range(15))]
        return torch.cat(flat)

    exact = path(torch.optim, torch.float64)
    theirs = path(torch.optim, torch.float32)
    mine = path(ours, torch.float32)
    rounding = EPS32 * float(exact.norm())
    assert float((mine - exact).norm()) <= 2 * float((theirs - exact).norm()) + rounding


# State dicts.


@pytest.mark.parametrize("way", ["ours to torch", "torch to ours", "ours to ours"])
@every_shared_case
def test_state_dict_goes_both_ways_in_the_middle_of_a_run(
    name: str, arguments: dict[str, Any], way: str
) -> None:
    """The last parameter has its first gradient after the switch."""
    first, second = ({"ours": ours, "torch": torch.optim}[w] for w in way.split(" to "))

    def run(before: Any, after: Any) -> tuple[list[Tensor], dict[str, Any]]:
        params = parameters(*shapes_for(name))
        optimizer = getattr(before, name)(params, **arguments)
        steps(optimizer, params[:-1], range(4))
        if before is not after or way == "ours to ours":
            saved = through_a_file(optimizer.state_dict())
            optimizer = getattr(after, name)(params, **{**arguments, "lr": 7.0})  # not the file's
            optimizer.load_state_dict(saved)
        steps(optimizer, params, range(4, 8))
        return [p.detach() for p in params], optimizer.state_dict()

    got, states = run(first, second)
    wanted, their_states = run(torch.optim, torch.optim)
    assert_near(got, wanted)
    assert states["state"].keys() == their_states["state"].keys()
    for i, entry in their_states["state"].items():
        assert states["state"][i].keys() == entry.keys()
        for state, value in entry.items():
            assert_near([states["state"][i][state]], [value])


@every_name
def test_resumed_from_a_file_to_the_bit(name: str) -> None:
    """Also at PyTorch's usual default dtype, in which it would keep scalars."""
    torch.set_default_dtype(torch.float32)

    def run(switch: bool) -> Any:
        params = [nn.Parameter(p.double()) for p in parameters(*shapes_for(name))]
        optimizer = getattr(ours, name)(params, lr=0.1)
        steps(optimizer, params, range(5))
        if switch:
            saved = through_a_file(optimizer.state_dict())
            optimizer = getattr(ours, name)(params)
            optimizer.load_state_dict(saved)
        steps(optimizer, params, range(5, 10))
        return contents([params, optimizer.state_dict()])

    assert run(True) == run(False)


@every_shared_name
def test_state_dict_has_pytorchs_layout(name: str) -> None:
    saved = {}
    for optimizers in (torch.optim, ours):
        params = parameters(*shapes_for(name))
        optimizer = getattr(optimizers, name)(params)
        steps(optimizer, params, range(3))
        saved[optimizers] = optimizer.state_dict()
    mine, theirs = saved[ours], saved[torch.optim]
    assert mine["state"].keys() == theirs["state"].keys()
    for i, entry in theirs["state"].items():
        layout = {k: (v.shape, v.dtype, v.device) for k, v in entry.items()}
        assert {k: (v.shape, v.dtype, v.device) for k, v in mine["state"][i].items()} == layout
    (group,), (their_group,) = mine["param_groups"], theirs["param_groups"]
    assert {k: group[k] for k in their_group} == their_group


@pytest.mark.parametrize("step", [4, 4.0, torch.tensor(4.0), torch.tensor([4]), torch.tensor(4)])
def test_every_form_that_a_step_count_had(step: Any) -> None:
    """PyTorch saved plain numbers before 1.12, and tensors of other dtypes from other places."""
    params = parameters((3,))
    optimizer = ours.Adam(params)
    steps(optimizer, params, range(4))
    start, saved = params[0].detach().clone(), optimizer.state_dict()
    steps(optimizer, params, range(4, 6))
    wanted = params[0].detach().clone()
    saved = copy.deepcopy(saved)
    with torch.no_grad():
        params[0].copy_(start)
    saved["state"][0] = {
        "step": step,
        "exp_avg": torch.zeros(3),
        "exp_avg_sq": torch.zeros(3),
    }
    fresh, theirs = ours.Adam(params), torch.optim.Adam(twin := [copy.deepcopy(params[0])])
    fresh.load_state_dict(saved)
    their_step = torch.tensor(4.0)
    theirs.load_state_dict({**saved, "state": {0: {**saved["state"][0], "step": their_step}}})
    steps(fresh, params, range(4, 6))
    steps(theirs, twin, range(4, 6))
    assert_near(params, twin)
    assert not torch.equal(params[0], wanted)  # the loaded zeros were used


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_buffers_that_are_none(momentum: float) -> None:
    """As PyTorch saved them for parameters without a gradient, and for SGD without momentum."""

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3,), (2, 2))
        optimizer = optimizers.SGD(params, lr=0.1, momentum=momentum, dampening=0.5)
        state = {i: {"momentum_buffer": None} for i in range(2)}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        steps(optimizer, params, range(3))
        return list(params)

    assert_as_torch(scenario)


def test_momentum_that_was_switched_off_and_on() -> None:
    """The buffers stay meanwhile, in the state and in a checkpoint."""

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3,), (2, 2))
        optimizer = optimizers.SGD(params, lr=0.1, momentum=0.9)
        for momentum in (0.9, 0.0, 0.8):
            optimizer.param_groups[0]["momentum"] = momentum
            steps(optimizer, params, range(3))
            saved = through_a_file(optimizer.state_dict())
            assert set(saved["state"][0]) == {"momentum_buffer"}
            optimizer = optimizers.SGD(params)
            optimizer.load_state_dict(saved)
        return list(params)

    assert_as_torch(scenario)


def test_adagrads_accumulator_before_the_first_step() -> None:
    """PyTorch's is there from the constructor on."""

    def run(before: Any, after: Any) -> list[Tensor]:
        params = parameters((3,))
        optimizer = before.Adagrad(params, initial_accumulator_value=0.5)
        saved = optimizer.state_dict()
        # PyTorch's takes the value for states that a file lacks from here, ours from the file.
        optimizer = after.Adagrad(params, initial_accumulator_value=0.5)
        optimizer.load_state_dict(saved)
        steps(optimizer, params, range(3))
        return list(params)

    wanted = run(torch.optim, torch.optim)
    assert_near(run(torch.optim, ours), wanted)
    assert_near(run(ours, ours), wanted)
    assert_near(run(ours, torch.optim), wanted)


def _without(state: str) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        del saved["state"][1][state]

    return change


def _with(state: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved["state"][1][state] = value

    return change


def _with_average(value: Tensor) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        saved["state"][1]["ema"] = value

    return change


def _other_groups(saved: dict[str, Any]) -> None:
    saved["param_groups"].append({**saved["param_groups"][0], "params": [9]})


def _other_count(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["params"].append(9)


REFUSED = [
    *((name, state, _without(state)) for name, state in [
        ("Adagrad", "sum"), ("RMSprop", "square_avg"), ("RMSprop", "grad_avg"),
        ("RMSprop", "momentum_buffer"), ("Adam", "exp_avg"), ("Adam", "exp_avg_sq"),
        ("Adam", "max_exp_avg_sq"), ("Adam", "step"), ("Rprop", "prev"), ("Rprop", "step_size"),
        ("Adadelta", "square_avg"), ("Adadelta", "acc_delta"), ("Adamax", "exp_inf"),
        ("NAdam", "exp_avg"), ("NAdam", "mu_product"), ("RAdam", "exp_avg_sq"), ("ASGD", "ax"),
        ("ASGD", "eta"), ("ASGD", "mu"), ("Adan", "previous_grad"), ("LAMB", "exp_avg"),
        ("Adafactor", "row_var"),
    ]),
    *((name, state, _with(state, torch.zeros(9))) for name, state in [
        ("SGD", "momentum_buffer"), ("Adam", "exp_avg"), ("Adam", "max_exp_avg_sq"),
        ("Adafactor", "col_var"), ("Muon", "momentum_buffer"), ("Lion", "exp_avg"),
        ("Adam", "hessian"), ("SGD", "exp_avg"),
    ]),
    ("Adam", "exp_avg", _with("exp_avg", "text")),
    ("Adam", "ema", _with_average(torch.zeros(9))),
    ("Adam", "group", _other_groups),
    ("Adam", "group", _other_count),
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Adam": {"amsgrad": True},
}


GROUP: dict[str, Any] = {"lr": 0.1, "params": [0]}
MALFORMED: dict[str, tuple[Any, str]] = {
    "empty": ({}, "state_dict"),
    "a list": ([], "state_dict"),
    "nothing": (None, "state_dict"),
    "states in a list": ({"state": [], "param_groups": [GROUP]}, "state"),
    "a state of no names": ({"state": {0: 5}, "param_groups": [GROUP]}, "state"),
    "names that are numbers": ({"state": {0: {1: 5}}, "param_groups": [GROUP]}, "state"),
    "groups in a dict": ({"state": {}, "param_groups": {}}, "param_groups"),
    "a group that is a number": ({"state": {}, "param_groups": [1]}, "param_groups"),
    "a group without parameters": ({"state": {}, "param_groups": [{}]}, "params"),
    "a number of parameters": ({"state": {}, "param_groups": [{"params": 1}]}, "params"),
}


@pytest.mark.parametrize(("saved", "name"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_state_dict_is_refused(saved: Any, name: str) -> None:
    params = parameters((3,))
    optimizer = ours.Adam(params)
    steps(optimizer, params, range(2))
    before = contents(optimizer.state_dict())
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*, got "):
        optimizer.load_state_dict(saved)
    assert contents(optimizer.state_dict()) == before


@pytest.mark.parametrize("given", [None, "x", 5, {"params": []}], ids=str)
def test_what_holds_no_parameters_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"^params: expected an array, or a list"):
        ours.SGD(given)


@pytest.mark.parametrize("group", ["x", {}], ids=str)
def test_a_group_that_is_none_is_refused(group: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^param_group: expected"):
        ours.SGD(parameters((3,))).add_param_group(group)


@pytest.mark.parametrize(
    ("name", "state", "change"),
    REFUSED,
    ids=[f"{n}-{s}-{i}" for i, (n, s, _) in enumerate(REFUSED)],
)
def test_state_dict_is_refused_by_name_and_nothing_changes(
    name: str, state: str, change: Callable[[dict[str, Any]], None]
) -> None:
    def run(disturbed: bool) -> Any:
        params = parameters((4, 3), (2, 3))
        optimizer = getattr(ours, name)(params, ema_decay=0.9, **OPTIONS.get(name, {}))
        steps(optimizer, params, range(3))
        if disturbed:
            before = contents(optimizer.state_dict())
            saved = copy.deepcopy(optimizer.state_dict())
            saved["param_groups"][0]["lr"] = 7.0
            change(saved)
            with pytest.raises((ValueError, TypeError), match=re.escape(state)):
                optimizer.load_state_dict(saved)
            assert contents(optimizer.state_dict()) == before
        steps(optimizer, params, range(3, 6))
        return contents([params, optimizer.state_dict()])

    assert run(True) == run(False)


def test_bfloat16_states_stay_so_through_a_file() -> None:
    params = parameters((4, 3), (7,))
    params = [nn.Parameter(p.detach().to(torch.bfloat16)) for p in params]

    def make() -> ours.Adam:
        return ours.Adam(params, lr=0.1, state_dtype="bfloat16", stochastic_rounding=3)

    optimizer = make()
    steps(optimizer, params, range(3))
    saved = through_a_file(optimizer.state_dict())
    resumed = make()
    resumed.load_state_dict(saved)
    for p in params:
        for state in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[p][state].dtype == torch.bfloat16
            assert resumed.state[p][state].dtype == torch.bfloat16
            assert torch.equal(resumed.state[p][state], optimizer.state[p][state])
    assert contents(resumed.state_dict()) == contents(saved)


def test_averages_and_remainders_survive() -> None:
    start = [p.detach().to(torch.bfloat16) for p in parameters((4, 3), (7,))]

    def run(switch: bool) -> Any:
        params = [nn.Parameter(p.clone()) for p in start]
        make = partial(ours.AdamW, params, master=True, ema_decay=0.9)
        optimizer = make()
        steps(optimizer, params, range(4))
        if switch:
            saved = through_a_file(optimizer.state_dict())
            optimizer = make()
            optimizer.load_state_dict(saved)
        steps(optimizer, params, range(4, 8))
        return contents([params, optimizer.ema, optimizer.state_dict()])

    assert run(True) == run(False)


def test_averages_begin_at_the_parameters_without_a_file_of_ours() -> None:
    params = parameters((4, 3))
    theirs = torch.optim.Adam(params)
    steps(theirs, params, range(3))
    mine = ours.Adam(params, lr=0.1, ema_decay=0.75)
    mine.load_state_dict(theirs.state_dict())
    before = params[0].detach().clone()
    assert torch.equal(mine.ema[0], before)
    steps(mine, params, range(3, 4))
    assert_near(mine.ema, [before + 0.25 * (params[0].detach() - before)])


def test_averages_begin_at_the_parameters_whoever_looks() -> None:
    params = parameters((4, 3))
    mine = ours.Adam(params, lr=0.1, ema_decay=0.75)
    before = params[0].detach().clone()
    steps(mine, params, range(1))
    assert_near(mine.ema, [before + 0.25 * (params[0].detach() - before)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_adafactors_eps_is_the_spacing_at_one(dtype: torch.dtype) -> None:
    """A gradient of a tenth of it is divided by it."""
    p, eps = nn.Parameter(torch.ones(8, dtype=dtype)), torch.finfo(dtype).eps
    p.grad = torch.full_like(p, 0.1 * eps)
    ours.Adafactor([p], lr=1.0).step()
    assert_near([p.detach()], [torch.full_like(p, 0.9)], 2 * eps)


def test_an_average_alone_is_saved_and_loaded() -> None:
    stepped, waiting = parameters((4, 3), (2,))
    mine = ours.Adam([stepped, waiting], ema_decay=0.75)
    steps(mine, [stepped], range(2))
    wanted = [average.clone() for average in mine.ema]
    saved = through_a_file(mine.state_dict())
    assert set(saved["state"][1]) == {"ema"}  # what waits for a gradient has no moments yet
    other = ours.Adam([p.detach().clone() + 1.0 for p in (stepped, waiting)], ema_decay=0.75)
    other.load_state_dict(saved)
    assert_near(other.ema, wanted)


def test_saving_many_parameters_takes_one_pass() -> None:
    """Eight times as many parameters take about eight times as long."""

    def seconds(count: int) -> float:
        params = [nn.Parameter(torch.zeros(1)) for _ in range(count)]
        optimizer = ours.Adam(params)
        for p in params:
            p.grad = torch.ones(1)
        optimizer.step()
        best = float("inf")
        for _ in range(5):
            begin = time.process_time()
            saved = optimizer.state_dict()
            best = min(best, time.process_time() - begin)
        assert len(saved["state"]) == count
        return best

    assert seconds(4000) <= 24 * seconds(500)  # 64 times if every one looks at every other


def file_size(state_dict: dict[str, Any]) -> int:
    file = io.BytesIO()
    torch.save(state_dict, file)
    return len(file.getvalue())


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_file_holds_each_state_once(state_dtype: str | None) -> None:
    """torch.save writes the whole memory that a tensor is a view of."""
    params = [nn.Parameter(torch.zeros(1000, dtype=torch.float32)) for _ in range(20)]
    optimizer = ours.Adam(params, state_dtype=state_dtype, ema_decay=0.9)
    steps(optimizer, params, range(1))
    held = sum(optimizer.memory().values())
    # A file has about 300 bytes of its own for each of its tensors.
    assert held < file_size(optimizer.state_dict()) <= held + 20 * 4 * 500
    assert held == 20 * 1000 * (4 + 2 * (2 if state_dtype else 4))


def test_file_of_states_of_several_dtypes() -> None:
    params = parameters((5,), (4,))
    params[0].data = params[0].data.float()
    optimizer = ours.Adam(params)
    steps(optimizer, params, range(1))
    saved = through_a_file(optimizer.state_dict())
    assert contents(saved) == contents(optimizer.state_dict())


def test_distributed_checkpoints_own_functions() -> None:
    """They flatten names, and fill a fresh optimizer's states by a step at rate 0."""
    from torch.distributed.checkpoint import state_dict as checkpoint

    def scenario(optimizers: Any) -> list[Tensor]:
        module = network()
        optimizer = optimizers.AdamW(module.parameters(), lr=0.05)
        train(module, optimizer, range(3))
        saved = checkpoint.get_optimizer_state_dict(module, optimizer)
        fresh = optimizers.AdamW(module.parameters(), lr=0.05)
        checkpoint.set_optimizer_state_dict(module, fresh, saved)
        return train(module, fresh, range(3, 6))

    assert_as_torch(scenario)


# Groups, schedulers, hooks.


def test_groups_with_their_own_arguments() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        module = network()
        groups = [
            {"params": module[0].parameters(), "lr": 0.1, "betas": (0.5, 0.9), "amsgrad": True},
            {"params": [module[2].weight], "weight_decay": 0.3, "maximize": True},
            {"params": [module[2].bias], "eps": 1e-2, "name": "mine"},
        ]
        optimizer = optimizers.Adam(groups, lr=0.03)
        assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.03, 0.03]
        assert optimizer.param_groups[2]["name"] == "mine"
        return train(module, optimizer, range(6))

    assert_as_torch(scenario)


def test_arguments_that_change_between_steps() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3, 2), (4,))
        optimizer = optimizers.AdamW(params, lr=0.1)
        for k in range(6):
            group = optimizer.param_groups[0]
            group.update(lr=0.1 / (1 + k), betas=(0.5 + k / 20, 0.9), weight_decay=k / 10)
            group["maximize"] = k % 2 == 1
            steps(optimizer, params, range(k, k + 1))
        return list(params)

    assert_as_torch(scenario)


def test_numbers_that_change_in_place() -> None:
    def run(in_place: bool) -> list[Tensor]:
        params = parameters((3, 2), (4,))
        decay: Any = np.array(0.1)
        optimizer = ours.AdamW(params, lr=torch.tensor(0.1), betas=[0.5, 0.9], weight_decay=decay)
        group = optimizer.param_groups[0]
        steps(optimizer, params, range(2))
        if in_place:
            group["betas"][0] = 0.8
            group["weight_decay"] += 0.1
            group["lr"].mul_(0.5)
        else:
            group.update(betas=(0.8, 0.9), weight_decay=0.2, lr=0.05)
        steps(optimizer, params, range(2, 4))
        return [p.detach() for p in params]

    assert all(map(torch.equal, run(True), run(False)))


def test_group_added_after_steps() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3, 2), (4,))
        optimizer = optimizers.NAdam(params[:1], lr=0.1)
        steps(optimizer, params, range(3))
        optimizer.add_param_group({"params": params[1:], "lr": 0.02})
        steps(optimizer, params, range(3, 6))
        return list(params)

    assert_as_torch(scenario)


def test_group_that_makes_no_sense_is_not_added() -> None:
    params = parameters((3, 2), (4,))
    optimizer = ours.Adam(params[:1])
    with pytest.raises(ValueError, match="betas"):
        optimizer.add_param_group({"params": params[1:], "betas": (2.0, 0.9)})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params[:1]})
    steps(optimizer, params, range(2))


def _sequence(optimizer: Any) -> Any:
    rise = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    fall = lr_scheduler.ExponentialLR(optimizer, 0.7)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], [2])


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.3),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=10),  # momentum, too
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "sequence": _sequence,
}


@pytest.mark.parametrize("tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler: str, name: str, tensor: bool) -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3, 2), (4,))
        arguments = {"momentum": 0.9} if name == "SGD" else {}
        lr: Any = torch.tensor(0.1) if tensor else 0.1
        optimizer = getattr(optimizers, name)(params, lr=lr, **arguments)
        schedule = SCHEDULERS[scheduler](optimizer)
        rates = []
        for k in range(8):
            steps(optimizer, params, range(k, k + 1))
            schedule.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
        assert len(set(rates)) > 2
        return [*params, torch.tensor(rates)]

    assert_as_torch(scenario)


def test_reduce_on_plateau() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3, 2))
        optimizer = optimizers.SGD(params, lr=0.1)
        schedule = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        for k in range(6):
            steps(optimizer, params, range(k, k + 1))
            schedule.step(1.0)
        assert optimizer.param_groups[0]["lr"] < 0.02
        return list(params)

    assert_as_torch(scenario)


@every_shared_name
def test_rate_as_a_tensor_that_changes_in_place(name: str) -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters(*shapes_for(name))
        # PyTorch's Muon takes numbers alone.
        tensor = torch.tensor(0.1)
        lr: Any = 0.1 if name == "Muon" and optimizers is torch.optim else tensor
        optimizer = getattr(optimizers, name)(params, lr=lr)
        steps(optimizer, params, range(2))
        if lr is tensor:
            tensor.fill_(0.03)
        else:
            optimizer.param_groups[0]["lr"] = 0.03
        steps(optimizer, params, range(2, 4))
        return list(params)

    assert_as_torch(scenario)


def test_closure() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        module = network()
        optimizer = optimizers.RMSprop(module.parameters())

        def closure() -> Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = loss_of(module, 0)
            loss.backward()
            return loss

        losses = [optimizer.step(closure) for _ in range(3)]
        with torch.no_grad():
            losses.append(optimizer.step(closure))
        return [*module.parameters(), torch.stack(losses).detach()]

    assert_as_torch(scenario)


def test_hooks_around_a_step() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3, 2))
        optimizer = optimizers.SGD(params, lr=0.1)
        seen: list[str] = []

        def before(opt: Any, args: Any, kwargs: Any) -> None:
            assert opt is optimizer
            seen.append("before")
            for p in params:
                p.grad.clamp_(-0.1, 0.1)

        def after(opt: Any, args: Any, kwargs: Any) -> None:
            seen.append("after")
            opt.param_groups[0]["lr"] /= 2

        handle = optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        steps(optimizer, params, range(2))
        handle.remove()
        steps(optimizer, params, range(2, 3))
        assert seen == ["before", "after"] * 2 + ["after"]
        return list(params)

    assert_as_torch(scenario)


def test_hooks_of_all_optimizers() -> None:
    (p,) = parameters((3,))
    optimizer = ours.SGD([p], lr=0.1)
    seen: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda opt, *_: seen.append("before")),
        register_optimizer_step_post_hook(lambda opt, *_: seen.append("after")),
    ]
    try:
        optimizer.step()
        handles.pop(0).remove()
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert seen == ["before", "after", "after"]


def test_a_step_has_its_range_in_a_profile() -> None:
    (p,) = parameters((3,))
    optimizer = ours.SGD([p], lr=0.1)
    optimizer.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    assert [e.count for e in profile.key_averages() if e.key == "Optimizer.step#SGD.step"] == [1]


def test_hooks_around_state_dicts() -> None:
    params = parameters((3, 2))
    optimizer = ours.Adam(params)
    steps(optimizer, params, range(2))
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("save"))

    def rename(opt: Any, saved: dict[str, Any]) -> dict[str, Any]:
        return {"inner" if k == "state" else k: v for k, v in saved.items()}

    def rename_back(opt: Any, saved: dict[str, Any]) -> dict[str, Any]:
        return {"state" if k == "inner" else k: v for k, v in saved.items()}

    optimizer.register_state_dict_post_hook(rename)
    saved = optimizer.state_dict()
    assert "state" not in saved
    fresh = ours.Adam(params)
    fresh.register_load_state_dict_pre_hook(rename_back)
    fresh.register_load_state_dict_post_hook(lambda opt: seen.append("loaded"))
    fresh.load_state_dict(saved)
    assert seen == ["save", "loaded"]
    assert torch.equal(fresh.state[params[0]]["exp_avg"], optimizer.state[params[0]]["exp_avg"])


@pytest.mark.parametrize("to_none", [True, False])
@every_shared_name
def test_zero_grad(name: str, to_none: bool) -> None:
    """A gradient of zeros is a step, none is not; every gradient is at a new place, or the old."""

    def scenario(optimizers: Any) -> list[Tensor]:
        module = network(name)
        optimizer = getattr(optimizers, name)(module.parameters(), lr=0.01)
        for seed in range(4):
            loss_of(module, seed).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
            optimizer.step()
        return list(module.parameters())

    assert_near(scenario(ours), scenario(torch.optim), 1e-11)


# Mixed precision and clipping.


@pytest.mark.parametrize("unscale", [False, True])
@every_name
def test_grad_scaler_leaves_out_a_step_with_an_infinite_gradient(name: str, unscale: bool) -> None:
    """PyTorch's class, or (Lion, Adan, LAMB) our own without a scaler and without that step."""

    def run(make: Any, scaled: bool) -> list[Tensor]:
        module = network(name)
        optimizer = make(module.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for seed in range(6):
            optimizer.zero_grad()
            bad = seed in (1, 4)
            if bad and not scaled:
                continue
            scaler.scale(loss_of(module, seed)).backward()
            if bad:
                next(module.parameters()).grad.view(-1)[0] = float("inf" if seed == 1 else "nan")
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            if scaled and isinstance(optimizer, ours.Optimizer):
                assert optimizer.skipped == bad
            scaler.update()
        if scaled:
            assert scaler.get_scale() == 1024.0 / 4
        return list(module.parameters())

    theirs = getattr(torch.optim, name, getattr(ours, name))
    assert_near(run(getattr(ours, name), True), run(theirs, name in SHARED), 1e-11)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("max_norm", [0.05, 100.0])
@every_shared_name
def test_max_norm_is_clip_grad_norm(name: str, max_norm: float, scaled: bool) -> None:
    """But the gradients stay as they are."""
    norms: dict[Any, list[float]] = {ours: [], torch.optim: []}

    def scenario(optimizers: Any) -> list[Tensor]:
        module = network(name)
        params = list(module.parameters())
        mine = optimizers is ours
        arguments = {"max_norm": max_norm} if mine else {}
        optimizer = getattr(optimizers, name)(params, lr=0.01, **arguments)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        for seed in range(5):
            optimizer.zero_grad()
            scaler.scale(loss_of(module, seed)).backward()
            if not mine:
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(params, max_norm)
            before = contents([p.grad for p in params])
            scaler.step(optimizer)
            scaler.update()
            if mine:
                assert contents([p.grad for p in params]) == before
            norms[optimizers].append(optimizer.grad_norm if mine else float(norm))
        return params

    assert_near(scenario(ours), scenario(torch.optim), 1e-11)
    assert_near([torch.tensor(norms[ours])], [torch.tensor(norms[torch.optim])])


# Autograd.


def test_saved_tensors_know_that_they_were_changed() -> None:
    p, q, frozen = parameters((3,), (3,), (3,))
    optimizer = ours.Adam([p, q, frozen])
    p.grad = torch.ones(3)
    q.grad = torch.ones(3)
    versions = p._version, frozen._version
    changed, kept = (p * p).sum(), (frozen * frozen).sum()
    optimizer.step()
    assert p._version > versions[0]
    assert frozen._version == versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed.backward()
    kept.backward()
    assert torch.equal(frozen.grad, 2 * frozen.detach())


def test_copies_know_that_they_were_changed() -> None:
    (p,) = parameters((3,))
    low = p.detach().to(torch.bfloat16).requires_grad_()
    optimizer = ours.SGD([p], lr=0.1, copies=[low.detach()])
    p.grad = torch.ones(3)
    loss = (low * low).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_zeroed_gradients_know_that_they_were_changed() -> None:
    (p,) = parameters((3,))
    optimizer = ours.SGD([p], lr=0.1, zero_grads=True)
    p.grad = torch.ones(3)
    version = p.grad._version
    optimizer.step()
    assert torch.equal(p.grad, torch.zeros(3))
    assert p.grad._version > version


def test_zeroed_gradients_are_compared_when_they_come_and_move() -> None:
    params = parameters((3,), (3,), (3,))
    optimizer = ours.SGD(params, lr=0.1, zero_grads=True)
    shared, *others = (torch.ones(3) for _ in range(3))

    def step(*grads: Tensor | None) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()

    step(shared, *others)
    step(None, others[0], shared)  # where the first one was
    before = [p.detach().clone() for p in params]
    for _ in range(2):  # what was refused is refused again
        with pytest.raises(ValueError, match="grads: expected memory of its own"):
            step(shared, others[0], shared)  # back at its old place
    assert all(map(torch.equal, params, before))
    step(shared, *others)


def test_step_where_gradients_are_off() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3,))
        optimizer = optimizers.Adam(params)
        feed(params, 0)
        with torch.no_grad():
            optimizer.step()
        with torch.inference_mode():
            optimizer.step()
        (params[0] * params[0]).sum().backward()
        optimizer.step()
        return list(params)

    assert_as_torch(scenario)


def test_late_gradients_count_from_their_own_first_step() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3,), (2, 2), (4,))
        optimizer = optimizers.NAdam(params, lr=0.1)
        for k, some in enumerate([[0], [0, 1], [1], [0, 1, 2], [2]]):
            optimizer.zero_grad()
            steps(optimizer, [params[i] for i in some], range(k, k + 1))
        return list(params)

    assert_as_torch(scenario)


def test_frozen_parameters() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        module = network()
        module[0].requires_grad_(False)
        optimizer = optimizers.AdamW(module.parameters(), lr=0.1, weight_decay=0.5)
        before = module[0].weight.detach().clone()
        train(module, optimizer, range(3))
        assert torch.equal(module[0].weight, before)
        assert module[0].weight not in optimizer.state
        module[0].requires_grad_(True)
        return train(module, optimizer, range(3, 6))

    assert_as_torch(scenario)


@every_name
def test_no_gradients_at_all(name: str) -> None:
    module = network(name)
    before = contents(list(module.parameters()))
    optimizer = getattr(ours, name)(module.parameters(), weight_decay=0.5) if name != "Rprop" else (
        ours.Rprop(module.parameters())
    )  # fmt: skip
    for _ in range(2):
        assert optimizer.step() is None
    assert contents(list(module.parameters())) == before
    assert optimizer.state_dict()["state"] == {}
    train(module, optimizer, range(1))
    assert contents(list(module.parameters())) != before


@every_name
def test_sparse_gradients_are_refused(name: str) -> None:
    """Before anything is written, the dense ones included."""
    table = nn.Embedding(5, 3, sparse=True)
    dense = nn.Linear(3, 3, bias=False)
    params = [dense.weight, table.weight]
    optimizer = getattr(ours, name)(params)
    before = contents(params)
    dense(table(torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(TypeError, match="grads: expected a dense array, got a sparse one"):
        optimizer.step()
    assert contents(params) == before


def test_negated_gradient_views() -> None:
    """Real tensors that carry a lazy sign, as the imaginary part of a conjugate does: refused."""
    (p,) = parameters((4,))
    optimizer = ours.SGD([p], lr=0.1)
    p.grad = torch._neg_view(torch.arange(4.0))
    before = p.detach().clone()
    with pytest.raises(ValueError, match="grads: expected its numbers in memory, got a lazy neg"):
        optimizer.step()
    assert torch.equal(p, before)


def test_expanded_gradients() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        (p,) = parameters((4, 3))
        optimizer = optimizers.Adam([p], lr=0.1)
        p.grad = torch.tensor(0.5).expand(4, 3)
        optimizer.step()
        p.grad = torch.arange(3.0).expand(4, 3)
        optimizer.step()
        return [p]

    assert_as_torch(scenario)


def test_complex_parameters_are_refused_by_their_dtype() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.complex128))
    optimizer = ours.Adam([p])
    p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"params: expected dtype .*, got complex128"):
        optimizer.step()


# Copies of the optimizer, and compilers.


def _deep(pair: Any) -> Any:
    return copy.deepcopy(pair)


def _pickled(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


def _saved_whole(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [_deep, _pickled, _saved_whole])
@every_name
def test_copy_goes_on_by_itself(name: str, duplicate: Callable[[Any], Any]) -> None:
    module = network(name)
    optimizer = getattr(ours, name)(module.parameters(), lr=0.01, ema_decay=0.9, max_norm=1.0)
    train(module, optimizer, range(3))
    twin, twins = duplicate((module, optimizer))
    assert contents(twins.state_dict()) == contents(optimizer.state_dict())
    before = contents([list(module.parameters()), optimizer.state_dict(), optimizer.ema])
    train(twin, twins, range(3, 6))
    assert contents([list(module.parameters()), optimizer.state_dict(), optimizer.ema]) == before
    train(module, optimizer, range(3, 6))
    mine = contents([list(module.parameters()), optimizer.state_dict(), optimizer.ema])
    assert contents([list(twin.parameters()), twins.state_dict(), twins.ema]) == mine


def test_copy_of_a_fresh_optimizer() -> None:
    pair = network(), None
    module, _ = pair
    optimizer = ours.SGD(module.parameters(), lr=0.1, momentum=0.9)
    twin, twins = copy.deepcopy((module, optimizer))
    assert contents(train(module, optimizer, range(3))) == contents(train(twin, twins, range(3)))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_training_step(backend: str) -> None:
    torch._dynamo.reset()

    def run(compiled: bool) -> list[Tensor]:
        module = network()
        optimizer = ours.AdamW(module.parameters(), lr=0.05)

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(x), y)
            loss.backward()
            optimizer.step()
            return loss

        f = torch.compile(step, backend=backend) if compiled else step
        losses = [f(*batch(seed)) for seed in range(4)]
        return [*module.parameters(), torch.stack(losses).detach()]

    assert_near(run(True), run(False))


@pytest.mark.filterwarnings("ignore")
def test_compiled_step_alone() -> None:
    torch._dynamo.reset()

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((3, 2), (4,))
        optimizer = optimizers.Adam(params, lr=0.1)
        mine = optimizers is ours
        step = torch.compile(optimizer.step, backend="eager") if mine else optimizer.step
        for k in range(4):
            feed(params, k)
            step()
        return list(params)

    assert_as_torch(scenario)


# Where the parameters, gradients and states lie.


def convolutions() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))


def see(module: nn.Module, optimizer: Any, seeds: range) -> list[Tensor]:
    for seed in seeds:
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
    return list(module.parameters())


LAYOUT_NAMES = [name for name in SHARED if name != "Muon"]


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_module_moved_to_channels_last_between_steps(name: str) -> None:
    """The states stay as they lie."""

    def scenario(optimizers: Any) -> list[Tensor]:
        module = convolutions()
        optimizer = getattr(optimizers, name)(module.parameters(), lr=0.01, **OPTIONS.get(name, {}))
        see(module, optimizer, range(2))
        states = {k: v.stride() for k, v in optimizer.state[module[0].weight].items()}
        module.to(memory_format=torch.channels_last)
        assert module[0].weight.stride() == (27, 1, 9, 3)
        see(module, optimizer, range(2, 5))
        after = {k: v.stride() for k, v in optimizer.state[module[0].weight].items()}
        assert after == states
        return list(module.parameters())

    assert_near(scenario(ours), scenario(torch.optim), 1e-11)


@pytest.mark.parametrize("name", LAYOUT_NAMES)
def test_checkpoint_of_another_layout(name: str) -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        module = convolutions()
        optimizer = getattr(optimizers, name)(module.parameters(), lr=0.01, **OPTIONS.get(name, {}))
        see(module, optimizer, range(2))
        saved = through_a_file(optimizer.state_dict())
        weights = through_a_file(module.state_dict())
        module = convolutions().to(memory_format=torch.channels_last)
        module.load_state_dict(weights)
        optimizer = getattr(optimizers, name)(module.parameters())
        optimizer.load_state_dict(saved)
        return see(module, optimizer, range(2, 5))

    assert_near(scenario(ours), scenario(torch.optim), 1e-11)


@every_shared_name
def test_gradients_that_lie_otherwise(name: str) -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((5, 4), (6, 3))
        optimizer = getattr(optimizers, name)(params, lr=0.01)
        for k in range(5):
            feed(params, k)
            p, q = params
            if k % 2:
                p.grad = p.grad.T.contiguous().T
                wide = torch.full((6, 9), 7.0)
                wide[:, 1::3] = q.grad
                q.grad = wide[:, 1::3]
            optimizer.step()
        return list(params)

    assert_as_torch(scenario)


@every_shared_name
def test_parameters_that_are_views(name: str) -> None:
    """What is around them stays."""

    def scenario(optimizers: Any) -> list[Tensor]:
        around = torch.full((7, 12), 12345.0)
        view = around[1:6, 2:11:2]
        view.copy_(parameters((5, 5))[0].detach())
        params = [nn.Parameter(view.T)]
        optimizer = getattr(optimizers, name)(params, lr=0.01)
        steps(optimizer, params, range(4))
        rest = around.clone()
        rest[1:6, 2:11:2] = 12345.0
        assert torch.equal(rest, torch.full((7, 12), 12345.0))
        assert not torch.equal(params[0], parameters((5, 5))[0].T)
        return [around]

    assert_near(scenario(ours), scenario(torch.optim), 1e-12)


def test_data_replaced_between_steps() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((5, 4), (3,))
        optimizer = optimizers.Adam(params, lr=0.1)
        for k in range(4):
            steps(optimizer, params, range(k, k + 1))
            params[0].data = params[0].data * 1.5
            params[1].data = params[1].data.clone()
        return list(params)

    assert_as_torch(scenario)


def _entries(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p]["exp_avg"] = torch.full_like(p, 0.5)


def _entries_in_place(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p]["exp_avg"].fill_(0.5)


def _dictionary(optimizer: Any, p: Tensor) -> None:
    entry = optimizer.state[p]
    optimizer.state[p] = {
        k: v if k == "step" else torch.full_like(v, 0.5) for k, v in entry.items()
    }


def _deleted(optimizer: Any, p: Tensor) -> None:
    del optimizer.state[p]


def _popped(optimizer: Any, p: Tensor) -> None:
    optimizer.state.pop(p)


def _emptied(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p].clear()


def _cleared(optimizer: Any, p: Tensor) -> None:
    optimizer.state.clear()


def _anew(optimizer: Any, p: Tensor) -> None:
    optimizer.state = defaultdict(dict)


def _set_state(optimizer: Any, p: Tensor) -> None:
    optimizer.__setstate__({"state": defaultdict(dict)})


@pytest.mark.parametrize(
    "change",
    [_entries, _entries_in_place, _dictionary, _deleted, _popped, _emptied, _cleared, _anew,
     _set_state],
)  # fmt: skip
def test_states_that_the_user_changed(change: Callable[[Any, Tensor], None]) -> None:
    """Where they are gone the parameter begins anew, its count of steps included."""

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((5, 4), (3,))
        optimizer = optimizers.Adam(params, lr=0.1)
        steps(optimizer, params, range(4))
        change(optimizer, params[0])
        steps(optimizer, params, range(4, 40))
        saved = optimizer.state_dict()["state"]
        return [*params, *(saved[i][k] for i in (0, 1) for k in ("exp_avg", "exp_avg_sq", "step"))]

    assert_as_torch(scenario)


@pytest.mark.parametrize("before", [1, 4, 15, 16, 17, 32])
def test_state_whose_memory_the_user_replaced(before: int) -> None:
    """As those do who move states to another place and back."""

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((5, 4), (3,))
        optimizer = optimizers.Adam(params, lr=0.1)
        steps(optimizer, params, range(before))
        for k in range(3):
            state = optimizer.state[params[k % 2]]["exp_avg"]
            state.data = torch.full_like(state, 0.5)
            steps(optimizer, params, range(k, k + 1))
        return [*params, *(optimizer.state[p]["exp_avg"] for p in params)]

    assert_as_torch(scenario)


def test_entries_of_the_user_are_saved_as_pytorch_saves_them() -> None:
    for optimizers in (torch.optim, ours):
        params = parameters((2,))
        optimizer = optimizers.Adam(params)
        steps(optimizer, params, range(1))
        optimizer.state[params[0]]["mine"] = torch.ones(3)
        assert "mine" in optimizer.state_dict()["state"][0], optimizers


def test_parameter_replaced_in_its_group() -> None:
    """With its states, as those who grow and prune parameters do."""

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((4, 2), (3,))
        optimizer = optimizers.Adam(params, lr=0.1)
        steps(optimizer, params, range(3))
        old = optimizer.param_groups[0]["params"][0]
        entry = optimizer.state.pop(old)
        grown = nn.Parameter(torch.cat([old.detach(), torch.ones(2, 2)]))
        for state in ("exp_avg", "exp_avg_sq"):
            entry[state] = torch.cat([entry[state], torch.zeros(2, 2)])
        optimizer.param_groups[0]["params"][0] = grown
        optimizer.state[grown] = entry
        params[0] = grown
        steps(optimizer, params, range(3, 6))
        return list(params)

    assert_as_torch(scenario)


def test_list_of_parameters_replaced_in_its_group() -> None:
    """Without states: they begin anew."""

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((4, 2), (3,))
        optimizer = optimizers.Adam(params, lr=0.1)
        steps(optimizer, params, range(3))
        others = [nn.Parameter(p.detach().clone()) for p in params]
        optimizer.param_groups[0]["params"] = others
        steps(optimizer, others, range(3, 6))
        return [*others, *params]

    assert_as_torch(scenario)


# Kinds of modules and parameters.


def test_tied_parameters() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        torch.manual_seed(3)
        module = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
        module[2].weight = module[0].weight
        assert len(list(module.parameters())) == 5
        return train(module, optimizers.Adam(module.parameters(), lr=0.1), range(5))

    assert_near(scenario(ours), scenario(torch.optim), 1e-11)


def test_parameters_that_share_memory_are_refused() -> None:
    (p,) = parameters((4,))
    optimizer = ours.SGD([p, nn.Parameter(p.data[2:])], lr=0.1)
    feed(optimizer.param_groups[0]["params"], 0)
    before = p.detach().clone()
    with pytest.raises(ValueError, match="params: expected memory of its own"):
        optimizer.step()
    assert torch.equal(p, before)


class Scaled(nn.Parameter):
    """A parameter that knows something more."""


def test_subclasses_of_parameter() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        params: list[nn.Parameter] = [Scaled(p.detach()) for p in parameters((3, 2), (4,))]
        optimizer = optimizers.RAdam(params, lr=0.1)
        steps(optimizer, params, range(8))
        assert all(type(p) is Scaled for p in params)
        return [p.detach().as_subclass(Tensor) for p in params]

    assert_as_torch(scenario)


class Wrapper(Tensor):
    """Without memory of its own, as DTensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made: Wrapper = Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = [a.inner if isinstance(a, Wrapper) else a for a in args]
        made = f(*inner, **(kwargs or {}))
        return Wrapper(made) if isinstance(made, Tensor) else made


# Of one element: what reads at a null address with an offset of nothing stays in the process.
def test_parameters_without_memory_are_refused() -> None:
    one = torch.ones(1, dtype=torch.float32)
    p = nn.Parameter(Wrapper(one))
    p.grad = Wrapper(one)
    with pytest.raises((TypeError, ValueError), match="params: "):
        ours.SGD([p], lr=0.1).step()


def test_gradients_without_memory_are_refused() -> None:
    (p,) = parameters((1,))
    before = p.detach().clone()
    p.grad = Wrapper(torch.ones(1))
    with pytest.raises((TypeError, ValueError), match="grads: "):
        ours.SGD([p], lr=0.1).step()
    assert torch.equal(p.detach(), before)


def test_parameters_whose_memory_was_freed_are_refused() -> None:
    """As trainers do that shard parameters."""
    p = nn.Parameter(torch.ones(1, dtype=torch.float32))
    optimizer = ours.SGD([p], lr=0.1)
    p.grad = torch.ones_like(p)
    p.untyped_storage().resize_(0)
    with pytest.raises((TypeError, ValueError), match="params: "):
        optimizer.step()


def test_lazy_modules() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        torch.manual_seed(4)
        module = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3))
        optimizer = optimizers.Adam(module.parameters(), lr=0.1)
        optimizer.load_state_dict(optimizer.state_dict())
        module(batch(0)[0])
        return train(module, optimizer, range(3))

    assert_as_torch(scenario)


def test_module_made_double_before_the_first_step() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        module = network(dtype=torch.float32)
        optimizer = optimizers.Adam(module.parameters(), lr=0.1)
        return train(module.double(), optimizer, range(3))

    assert_as_torch(scenario)


def test_module_made_double_between_steps() -> None:
    def scenario(optimizers: Any) -> list[Tensor]:
        module = network(dtype=torch.float32)
        optimizer = optimizers.SGD(module.parameters(), lr=0.1, momentum=0.5)
        for p in module.parameters():
            p.grad = torch.full_like(p, 0.25)  # buffers that float32 holds exactly
        optimizer.step()
        module.double()
        if optimizers is torch.optim:  # which leaves its buffers as they are, and raises
            for entry in optimizer.state.values():
                entry["momentum_buffer"] = entry["momentum_buffer"].double()
        return train(module, optimizer, range(3))

    assert_as_torch(scenario)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_name
def test_low_precision_modules(name: str, dtype: torch.dtype) -> None:
    """A step is the float32 step on the same numbers, rounded once; the states are float32."""
    low = [nn.Parameter(p.detach().to(dtype)) for p in parameters(*shapes_for(name))]
    wide = [nn.Parameter(p.detach().float()) for p in low]
    lr = 50.0 if name in ("Adadelta", "LARS") else 0.05  # their first steps are small
    optimizer = getattr(ours, name)(low, lr=lr)
    eps = {"eps": (torch.finfo(dtype).eps, 1e-3)} if name == "Adafactor" else {}
    exact = getattr(ours, name)(wide, lr=lr, **eps)
    for k in range(3):
        feed(low, k)
        for p, q in zip(low, wide, strict=True):
            q.data = p.detach().float()
            q.grad = p.grad.float()
        before = [p.detach().clone() for p in low]
        optimizer.step()
        exact.step()
        for p, q, old in zip(low, wide, before, strict=True):
            assert torch.equal(p.detach(), q.detach().to(dtype))
            assert not torch.equal(p.detach(), old)
    numbers = {"step", *optimizer.carried}  # exact, in a dtype of their own
    for p in low:
        states = {k: v.dtype for k, v in optimizer.state[p].items() if k not in numbers}
        assert all(dtype == torch.float32 for dtype in states.values())


def test_low_precision_states_of_pytorch_go_on_in_float32() -> None:
    params = [nn.Parameter(p.detach().to(torch.bfloat16)) for p in parameters((4, 3))]
    theirs = torch.optim.Adam(params)
    steps(theirs, params, range(2))
    mine = ours.Adam(params)
    mine.load_state_dict(theirs.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        state = mine.state[params[0]][name]
        assert state.dtype == torch.float32
        assert torch.equal(state, theirs.state[params[0]][name].float())
    theirs.load_state_dict(through_a_file(mine.state_dict()))
    assert theirs.state[params[0]]["exp_avg"].dtype == torch.bfloat16
    steps(theirs, params, range(2, 3))


@every_name
def test_empty_and_scalar_parameters(name: str) -> None:
    def run(some: bool) -> list[Tensor]:
        shapes = [(0, 3), (2, 3), (4, 0)] if name == "Muon" else [(0,), (2, 3), (), (3, 0)]
        params = parameters(*shapes)
        kept = [p for p in params if p.numel()] if some else params
        optimizer = getattr(ours, name)(kept, lr=0.1)
        for k in range(3):
            feed(params, k)
            optimizer.step()
        return [p for p in params if p.numel()]

    assert contents(run(False)) == contents(run(True))


# What other implementations fail at.


def _bfloat16_moves(name: str) -> None:
    """A fused step that leaves whole vectors of 16-bit parameters as they were."""
    lr = 100.0 if name in ("Adadelta", "LARS") else 0.1  # their first steps are small
    p = nn.Parameter(torch.linspace(-1, 1, 4096).to(torch.bfloat16))
    before = p.detach().clone()
    p.grad = torch.full_like(p, 1.0)
    getattr(ours, name)([p], lr=lr).step()
    assert bool((p != before).all())
    torch.manual_seed(0)
    module = nn.Linear(5, 3, dtype=torch.bfloat16)
    start = [q.detach().clone() for q in module.parameters()]
    train(module, getattr(ours, name)(module.parameters(), lr=lr), range(10))
    assert not any(torch.equal(q, s) for q, s in zip(module.parameters(), start, strict=True))


def _strides_count(name: str) -> None:
    """A fused step that takes every array for a contiguous one."""

    def scenario(optimizers: Any) -> list[Tensor]:
        params = parameters((2, 3, 4, 4))
        params[0].data = params[0].data.to(memory_format=torch.channels_last)
        optimizer = getattr(optimizers, name)(params, lr=0.01)
        for k in range(3):
            feed(params, k)  # contiguous gradients
            optimizer.step()
        return list(params)

    assert_as_torch(scenario)


def _gradients_stay(name: str) -> None:
    """Nesterov's step that adds the momentum to the gradient itself."""
    params = parameters(*shapes_for(name))
    options: dict[str, Any] = {"nesterov": True, "momentum": 0.9} if name == "SGD" else {}
    decay = {} if name == "Rprop" else {"weight_decay": 0.1}
    optimizer = getattr(ours, name)(params, lr=0.1, maximize=True, max_norm=0.1, **options, **decay)
    for k in range(3):
        feed(params, k)
        before = contents([p.grad for p in params])
        optimizer.step()
        assert contents([p.grad for p in params]) == before


def _first_gradient_later(name: str) -> None:
    """A fused step that fails where a parameter is late."""
    params = parameters(*shapes_for(name))
    options: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(ours, name)(params, lr=0.1, fused=True, **options)
    steps(optimizer, params[:1], range(2))
    before = contents(params[1:])
    params[0].grad = None
    steps(optimizer, params[1:], range(1))
    assert contents(params[1:]) != before
    alone = parameters(*shapes_for(name))[1:]
    steps(getattr(ours, name)(alone, lr=0.1, **options), alone, range(1))
    assert contents(params[1:]) == contents(alone)


def _step_count_resumes(name: str) -> None:
    """A resumed step count on another device, or of another kind, than a fused step wants."""
    params = parameters(*shapes_for(name))
    optimizer = getattr(ours, name)(params, lr=0.1)
    steps(optimizer, params, range(2))
    saved = through_a_file(optimizer.state_dict())
    for entry in saved["state"].values():
        if "step" in entry:
            assert entry["step"].device.type == "cpu"
            assert entry["step"].shape == ()
            entry["step"] = entry["step"].to(torch.float32).reshape(1)
    fresh = getattr(ours, name)(params, fused=True)
    fresh.load_state_dict(saved)
    assert contents(fresh.state_dict()["state"]) == contents(optimizer.state_dict()["state"])
    steps(fresh, params, range(2, 3))


def _empty_last(name: str) -> None:
    """A step that silently leaves out a group that ends with an empty tensor."""
    full = (3, 4)
    params = parameters(full, full, (0, 4))
    before = contents(params[:2])
    optimizer = getattr(ours, name)(params, lr=0.1)
    steps(optimizer, params, range(1))
    for was, p in zip(before, params, strict=False):
        assert contents(p) != was


CONFORMANCE = {
    "1 bfloat16 moves": _bfloat16_moves,
    "2 strides count": _strides_count,
    "14 gradients stay": _gradients_stay,
    "14 first gradient later": _first_gradient_later,
    "15 step count resumes": _step_count_resumes,
    "18 empty tensor last": _empty_last,
}
# 1 and 2 want parameters that Muon does not take, 2 an oracle.
ROWS = [
    (case, name)
    for case in CONFORMANCE
    for name in NAMES
    if not (name == "Muon" and case[:2] in ("1 ", "2 ")) and (case[:2] != "2 " or name in SHARED)
]


@pytest.mark.parametrize(("case", "name"), ROWS, ids=["-".join(row) for row in ROWS])
def test_conformance(case: str, name: str) -> None:
    CONFORMANCE[case](name)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_conformance_13_centered_rmsprop_on_constant_gradients(momentum: float) -> None:
    """s − a² is a rounding error that may be negative. PyTorch's NaN, and none with ``clamp``."""
    torch.set_default_dtype(torch.float32)
    start = torch.linspace(0.1, 3.0, 1000)

    def run(make: Any, **more: Any) -> Tensor:
        p = nn.Parameter(start.clone())
        optimizer = make([p], lr=1e-3, centered=True, momentum=momentum, **more)
        p.grad = start.clone()
        for _ in range(3000):
            optimizer.step()
        return p.detach()

    assert bool(run(torch.optim.RMSprop).isnan().any())  # or this would show nothing
    assert bool(run(ours.RMSprop, clamp=True).isfinite().all())


def test_conformance_18_twenty_one_thousand_tensors() -> None:
    params = [nn.Parameter(torch.full((2,), float(k))) for k in range(21_000)]
    for p in params:
        p.grad = torch.ones(2)
    ours.SGD(params, lr=0.5).step()
    got = torch.stack([p.detach() for p in params])
    assert torch.equal(got, torch.arange(21_000.0)[:, None].expand(-1, 2) - 0.5)


# Trainers.

EPOCH, EPOCHS = range(3), 2


def plain_loop() -> list[Tensor]:
    module = network()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    schedule = lr_scheduler.StepLR(optimizer, 2, 0.5)
    for seed in [*EPOCH] * EPOCHS:
        optimizer.zero_grad()
        loss_of(module, seed).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    return list(module.parameters())


class Batches(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return len(EPOCH)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        return batch(EPOCH[k])


@pytest.mark.filterwarnings("ignore")  # the trainer's own
def test_lightning_trains_and_resumes(tmp_path: Path) -> None:
    """In one run, and in two with a checkpoint between them."""
    import lightning

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, pair: tuple[Tensor, Tensor], _: int) -> Tensor:
            return nn.functional.mse_loss(self.net(pair[0]), pair[1])

        def configure_optimizers(self) -> Any:
            optimizer = ours.AdamW(self.parameters(), lr=0.05)
            schedule = lr_scheduler.StepLR(optimizer, 2, 0.5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def fit(epochs: int, resume: Path | None = None) -> tuple[list[Tensor], lightning.Trainer]:
        task = Task()
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            gradient_clip_val=0.5,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        loader = torch.utils.data.DataLoader(Batches(), batch_size=None)
        trainer.fit(task, loader, ckpt_path=resume)
        return list(task.parameters()), trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    wanted = plain_loop()
    got, _ = fit(EPOCHS)
    assert_near(got, wanted, 1e-11)
    half, trainer = fit(1)
    assert not torch.allclose(half[0], wanted[0])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(EPOCHS, tmp_path / "half.ckpt")
    assert contents(resumed) == contents(got)


@pytest.mark.filterwarnings("ignore")  # the trainer's own
def test_accelerate_trains_and_resumes(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    try:
        accelerator = Accelerator(cpu=True)
        module = network()
        optimizer = ours.AdamW(module.parameters(), lr=0.05)
        schedule = lr_scheduler.StepLR(optimizer, 2, 0.5)
        loader = torch.utils.data.DataLoader(Batches(), batch_size=None)
        model, wrapped, loader, schedule = accelerator.prepare(module, optimizer, loader, schedule)
        for _ in range(EPOCHS):
            for x, y in loader:
                wrapped.zero_grad()
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
                wrapped.step()
                schedule.step()
            accelerator.save_state(str(tmp_path))
            before = contents(optimizer.state_dict())
            accelerator.load_state(str(tmp_path))
            assert contents(optimizer.state_dict()) == before
        assert_near(list(module.parameters()), plain_loop(), 1e-11)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
