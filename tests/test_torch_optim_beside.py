"""What lies beside the parameters of `saddlepoint.torch.optim`: it follows its owner everywhere."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import saddlepoint.torch.optim as ours
from saddlepoint import optim
from saddlepoint.optim.plan import Plan
from test_optim import NAMES
from test_torch_optim import SHARED, contents, double_precision, feed, shapes_for, steps

torch.set_num_threads(1)

__all__ = ["double_precision"]  # a fixture

every_name = pytest.mark.parametrize("name", NAMES)


def parameters(name: str, dtype: torch.dtype = torch.float32, many: int = 1) -> list[nn.Parameter]:
    numbers = torch.Generator().manual_seed(3)
    shapes = shapes_for(name) * many
    return [nn.Parameter(torch.randn(s, generator=numbers).to(dtype)) for s in shapes]


# Memory that its owner replaces.


def elsewhere(t: Tensor) -> None:
    t.data = t.data.clone()


def shared(t: Tensor) -> None:
    t.share_memory_()


def emptied_and_back(t: Tensor) -> None:
    if not t.untyped_storage().resizable():
        return elsewhere(t)  # PyTorch does not resize what it took over by DLPack
    kept = t.detach().clone()
    t.untyped_storage().resize_(0)
    t.untyped_storage().resize_(kept.numel() * kept.element_size())
    t.detach().copy_(kept)
    return None


def other_strides(t: Tensor) -> None:
    wide = torch.empty((*t.shape, 2), dtype=t.dtype)
    t.data = wide[..., 0].copy_(t.detach())


MOVES = (elsewhere, shared, emptied_and_back, other_strides)


@pytest.mark.parametrize("many", [1, 50], ids=["few", "many"])
@pytest.mark.parametrize("move", MOVES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "which", ["param", "exp_avg", "exp_avg_sq", "step", "ema", "remainder", "copy"]
)
def test_what_moves_is_followed(which: str, move: Callable[[Tensor], None], many: int) -> None:
    """Among the last of many, and where a parameter has no gradient."""
    if which == "step" and move is other_strides:
        move = elsewhere  # a number has no strides

    def run(moves: bool) -> Any:
        params = parameters("Adam", torch.bfloat16, many)
        copies = [torch.zeros_like(p, dtype=torch.float16) for p in params]
        optimizer = ours.AdamW(params, lr=0.1, ema_decay=0.5, master=True, copies=copies)
        steps(optimizer, params, range(2))
        last = params[-1]
        if moves:
            owned = {"param": last, "copy": copies[-1], **optimizer.state[last]}
            move(owned[which])
        steps(optimizer, params, range(2, 5))
        for p in params:
            p.grad = None
        if moves:
            move({"param": last, "copy": copies[-1], **optimizer.state[last]}[which])
        with torch.no_grad():
            last.add_(1.0)
        optimizer.step()
        return contents([params, copies, optimizer.ema, optimizer.state_dict()["state"]])

    assert run(True) == run(False)


# What others could have moved is looked at: how they come to a tensor of the state.
LENT: dict[str, Callable[[Any, nn.Parameter, Any], Tensor]] = {
    "by a mapping from before the first step": lambda o, p, early: early[p]["exp_avg"],
    "by the state": lambda o, p, _: o.state[p]["exp_avg"],
    "by a state dict": lambda o, p, _: o.state_dict()["state"][0]["exp_avg"],
    "by what is pickled": lambda o, p, _: o.__getstate__()["state"][p]["exp_avg"],
    "as an average": lambda o, p, _: o.ema[0],
}


@pytest.mark.parametrize("how", LENT)
def test_what_was_lent_may_move_at_any_time(how: str) -> None:
    def run(moves: bool) -> Any:
        params = parameters("Adam")
        optimizer = ours.Adam(params, lr=0.1, ema_decay=0.5)
        optimizer.load_state_dict(optimizer.state_dict())  # lends nothing, since there is nothing
        early = optimizer.state if "before" in how else None
        steps(optimizer, params, range(2))
        lent = LENT[how](optimizer, params[0], early)
        steps(optimizer, params, range(2, 4))
        if moves:
            elsewhere(lent)
        steps(optimizer, params, range(4, 6))
        return contents([params, optimizer.ema, optimizer.state_dict()["state"]])

    assert run(True) == run(False)


def test_a_state_of_the_dict_that_was_loaded_is_lent() -> None:
    """AMSGrad's, which is first worked on where the group is told to."""

    def run(moves: bool) -> Any:
        params = parameters("Adam")
        first, second = (ours.Adam(params, lr=0.1, amsgrad=amsgrad) for amsgrad in (True, False))
        steps(first, params, range(2))
        saved = first.state_dict()
        second.load_state_dict({**saved, "param_groups": second.state_dict()["param_groups"]})
        second.param_groups[0]["amsgrad"] = True
        steps(second, params, range(2, 4))
        if moves:
            elsewhere(saved["state"][0]["max_exp_avg_sq"])
        steps(second, params, range(4, 6))
        return contents([params, second.state_dict()["state"]])

    assert run(True) == run(False)


def test_memory_that_is_gone_is_named() -> None:
    p = nn.Parameter(torch.ones(4))
    low = torch.zeros(4)
    optimizer = ours.Adam([p], ema_decay=0.5, copies=[low])
    steps(optimizer, [p], range(1))
    low.untyped_storage().resize_(0)
    before = p.detach().clone()
    with pytest.raises(ValueError, match="expected a tensor with memory, got one without"):
        steps(optimizer, [p], range(1, 2))
    assert torch.equal(p, before)


def test_copies_of_numpy_and_their_shapes() -> None:
    p = np.ones(6, np.float32)
    low = np.zeros(6, np.float32)
    optimizer = optim.SGD(p, lr=1.0, copies=[low])
    optimizer.step(np.ones(6, np.float32))
    moved = torch.zeros(6)
    optimizer = optim.SGD(p, lr=1.0, copies=[moved])
    optimizer.step(np.ones(6, np.float32))
    moved.data = torch.zeros(6)
    optimizer.step(np.ones(6, np.float32))
    assert moved.tolist() == p.tolist() == [-2.0] * 6
    assert low.tolist() == [0.0] * 6


# Numbers that their owner sets.


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "Adamax"])
def test_a_count_set_in_place_counts(name: str) -> None:
    def run(optimizers: Any) -> list[Tensor]:
        params = parameters(name, torch.float64)
        optimizer = getattr(optimizers, name)(params, lr=0.05)
        steps(optimizer, params, range(3))
        assert [float(optimizer.state[p]["step"]) for p in params] == [3.0] * len(params)
        optimizer.state[params[0]]["step"].fill_(10.0)
        optimizer.state[params[1]]["step"] = torch.tensor(1.0)
        steps(optimizer, params, range(3, 6))
        assert [float(optimizer.state[p]["step"]) for p in params[:2]] == [13.0, 4.0]
        return [p.detach() for p in params]

    for x, y in zip(run(ours), run(torch.optim), strict=True):
        assert float((x - y).abs().max()) <= 1e-12


def test_a_count_that_is_none_is_refused_first() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p])
    steps(optimizer, [p], range(1))
    before = contents([p, optimizer.state_dict()])
    for bad in (-1.0, 0.5, float("nan")):
        kept = float(optimizer.state[p]["step"])
        optimizer.state[p]["step"].fill_(bad)
        with pytest.raises(ValueError, match=r"^step: expected a whole number"):
            steps(optimizer, [p], range(1, 2))
        optimizer.state[p]["step"].fill_(kept)
        assert contents([p, optimizer.state_dict()]) == before


# Every option, with every rule, on both faces.


class Torch:
    """The torch face, as the table below sees it."""

    def __init__(self, name: str, dtype: torch.dtype, **options: Any) -> None:
        self.params = parameters(name, dtype)
        if options.pop("copied", False):
            options["copies"] = [torch.zeros_like(p, dtype=torch.float16) for p in self.params]
        self.copies = options.get("copies", [])
        self.optimizer = getattr(ours, name)(self.params, lr=0.05, **options)

    def step(self, grads: list[Tensor]) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g
        self.optimizer.step()

    @property
    def ema(self) -> list[Tensor]:
        return self.optimizer.ema


class Arrays(Torch):
    """The array face, on the same tensors."""

    def __init__(self, name: str, dtype: torch.dtype, **options: Any) -> None:
        self.params = [p.detach() for p in parameters(name, dtype)]
        if options.pop("copied", False):
            options["copies"] = [torch.zeros_like(p, dtype=torch.float16) for p in self.params]
        self.copies = options.get("copies", [])
        self.optimizer = getattr(optim, name)(self.params, lr=0.05, **options)

    def step(self, grads: list[Tensor]) -> None:
        self.optimizer.step(grads)

    @property
    def ema(self) -> list[Tensor]:
        return [torch.from_numpy(e.numpy()) for e in self.optimizer.ema]


def gradients(name: str, k: int, dtype: torch.dtype) -> list[Tensor]:
    numbers = torch.Generator().manual_seed(50 + k)
    return [torch.randn(s, generator=numbers).to(dtype) for s in shapes_for(name)]


def path(face: Any, name: str, dtype: torch.dtype, count: int = 4, **options: Any) -> list[Any]:
    """The parameters before and after each step."""
    run = face(name, dtype, **options)
    points = [[p.detach().clone() for p in run.params]]
    for k in range(count):
        run.step(gradients(name, k, dtype))
        points.append([p.detach().clone() for p in run.params])
    return points


every_face = pytest.mark.parametrize("face", [Torch, Arrays])


@every_face
@every_name
def test_an_average_is_the_recursion(name: str, face: Any) -> None:
    run, plain = face(name, torch.float64, ema_decay=0.75), path(face, name, torch.float64)
    wanted = [p.clone() for p in plain[0]]
    for k in range(4):
        run.step(gradients(name, k, torch.float64))
        wanted = [e + 0.25 * (p - e) for e, p in zip(wanted, plain[k + 1], strict=True)]
    for e, w in zip(run.ema, wanted, strict=True):
        assert float((e - w).abs().max()) <= 1e-14 * (1 + float(w.abs().max()))


@every_face
@every_name
def test_copies_are_the_parameters_rounded(name: str, face: Any) -> None:
    run, plain = face(name, torch.float32, copied=True), path(face, name, torch.float32)
    for k in range(4):
        run.step(gradients(name, k, torch.float32))
        for low, p in zip(run.copies, plain[k + 1], strict=True):
            assert torch.equal(low, p.to(torch.float16))


@every_face
@every_name
def test_a_master_is_float32(name: str, face: Any) -> None:
    """The same gradients move float32 parameters along the same path, to be rounded."""
    run = face(name, torch.bfloat16, master=True)
    eps = {"eps": (torch.finfo(torch.bfloat16).eps, 1e-3)} if name == "Adafactor" else {}
    wide = face(name, torch.float32, **eps)
    for p, q in zip(wide.params, run.params, strict=True):
        p.detach().copy_(q.detach())
    for k in range(4):
        run.step(gradients(name, k, torch.bfloat16))
        wide.step([g.float() for g in gradients(name, k, torch.bfloat16)])
        for p, q in zip(wide.params, run.params, strict=True):
            # As near as the nearest, which at a tie there are two of.
            nearest = (p.to(torch.bfloat16).float() - p).abs().detach()
            assert torch.equal((q.float() - p).abs().detach(), nearest)


@every_face
@every_name
def test_gradients_are_zeroed_clipped_and_left_out(name: str, face: Any) -> None:
    plain = path(face, name, torch.float64)
    zeroed = face(name, torch.float64, zero_grads=True)
    clipped, scaled = face(name, torch.float64, max_norm=0.5), face(name, torch.float64)
    careful = face(name, torch.float64, check_finite=True)
    for k in range(4):
        grads = gradients(name, k, torch.float64)
        zeroed.step(grads)
        assert all(not g.any() for g in grads)
        grads = gradients(name, k, torch.float64)
        norm = float(torch.cat([g.ravel() for g in grads]).norm())
        clipped.step([g.clone() for g in grads])
        scaled.step([g * min(1.0, 0.5 / (norm + 1e-6)) for g in grads])
        assert abs(clipped.optimizer.grad_norm - norm) <= 1e-14 * norm
        spoilt = [g.clone() for g in grads]
        spoilt[0].view(-1)[0] = torch.inf
        before = contents([p.detach() for p in careful.params])
        careful.step(spoilt)
        assert careful.optimizer.skipped
        assert contents([p.detach() for p in careful.params]) == before
        careful.step(grads)
        for run in (zeroed, careful):
            assert contents([p.detach() for p in run.params]) == contents(plain[k + 1])
        for p, q in zip(clipped.params, scaled.params, strict=True):
            assert float((p - q).detach().abs().max()) <= 1e-12


def test_options_hold_in_every_group() -> None:
    """Plain SGD beside a group with a momentum."""
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = ours.SGD(
        [{"params": [params[0]]}, {"params": [params[1]], "momentum": 0.9}], lr=0.1, ema_decay=0.5
    )
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    assert [e.tolist() for e in optimizer.ema] == [pytest.approx([0.95] * 3)] * 2
    assert all(e.data_ptr() != p.data_ptr() for e, p in zip(optimizer.ema, params, strict=True))
    assert optimizer.memory() == {"ema": 24, "momentum_buffer": 12}


def test_averages_asked_for_first_have_memory_of_their_own() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([p], lr=1.0, ema_decay=0.5)
    optimizer.ema[0].fill_(7.0)
    assert p.tolist() == [1.0] * 3
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.ema[0].tolist() == [3.5] * 3


# A parameter that is cast.


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float64])
def test_a_cast_parameter_goes_on(name: str, to: torch.dtype) -> None:
    """As an optimizer of cast parameters that takes the same states."""
    params = parameters(name)
    optimizer = getattr(ours, name)(params, lr=0.05)
    steps(optimizer, params, range(3))
    fresh = [nn.Parameter(p.detach().to(to)) for p in params]
    other = getattr(ours, name)(fresh, lr=0.05)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p in params:
        p.data = p.data.to(to)
        p.grad = None
    steps(optimizer, params, range(3, 6))
    steps(other, fresh, range(3, 6))
    assert contents([params, optimizer.state_dict()]) == contents([fresh, other.state_dict()])


# Checkpoints by PyTorch's own tools.


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@every_name
def test_pytorchs_checkpoint_tools_keep_all_of_it(name: str, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(2)
        module = nn.Linear(4, 3, bias=name != "Muon").to(torch.bfloat16)
        return module, getattr(ours, name)(module.parameters(), lr=0.05, ema_decay=0.5, master=True)

    module, optimizer = make()
    steps(optimizer, list(module.parameters()), range(3))
    saved = copy.deepcopy(get_optimizer_state_dict(module, optimizer, options=options))
    again, resumed = make()
    again.load_state_dict(module.state_dict())
    set_optimizer_state_dict(again, resumed, saved, options=options)
    for m, o in ((module, optimizer), (again, resumed)):
        steps(o, list(m.parameters()), range(3, 6))
    mine = contents([*module.parameters(), optimizer.ema, optimizer.state_dict()["state"]])
    assert contents([*again.parameters(), resumed.ema, resumed.state_dict()["state"]]) == mine


# Construction, copies, threads.


def test_parameters_without_memory_are_named_and_may_get_some() -> None:
    """A model made on the meta device, as large ones are; and one that is only traced."""
    module = nn.Linear(3, 2, device="meta")
    optimizer = ours.SGD(module.parameters(), lr=1.0)
    for p in module.parameters():
        p.grad = torch.empty_like(p)
    with pytest.raises(TypeError, match=r"^params: expected tensors with memory of their own, got"):
        optimizer.step()
    with FakeTensorMode():
        fake = nn.Parameter(torch.empty(3))
        fake.grad = torch.empty(3)
        with pytest.raises(TypeError, match=r"^params: .* got a fake one"):
            ours.SGD([fake], lr=1.0).step()
    module.to_empty(device="cpu")
    for p in module.parameters():
        p.data.zero_()
    later = ours.SGD(module.parameters(), lr=1.0)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    later.step()
    assert all((p == -1.0).all() for p in module.parameters())


def test_a_parameter_that_stands_twice_is_named() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"^params: expected each parameter once, got number 2 as"):
        ours.Adam([p, q, p])
    with pytest.raises(ValueError, match="got 'tied' as 'weight' again"):
        ours.SGD([("weight", p), ("tied", p)], lr=0.1)
    a = np.ones(2)
    with pytest.raises(ValueError, match="got number 1 as number 0 again"):
        optim.Adam([{"params": [a]}, {"params": [a]}])


@every_name
def test_the_array_face_is_copied_and_pickled(name: str) -> None:
    def after(change: Callable[[Any], Any]) -> Any:
        shapes = shapes_for(name)
        arrays = [np.full(s, 0.5, np.float32) for s in shapes]
        optimizer = getattr(optim, name)(arrays, lr=0.05, ema_decay=0.9)
        for k in range(6):
            if k == 3:
                optimizer = change(optimizer)
            optimizer.step([g.numpy() for g in gradients(name, k, torch.float32)])
        params = [p for group in optimizer.param_groups for p in group["params"]]
        saved = optimizer.state_dict()["state"]
        return [p.tolist() for p in params], [
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in e.items()} for e in saved
        ]

    wanted = after(lambda o: o)
    assert after(copy.deepcopy) == wanted
    assert after(lambda o: pickle.loads(pickle.dumps(o))) == wanted


def test_a_copy_of_an_array_optimizer_is_apart() -> None:
    p = np.ones(3)
    optimizer = optim.SGD(p, lr=1.0, momentum=0.5)
    other = copy.deepcopy(optimizer)
    other.step(np.ones(3))
    assert p.tolist() == [1.0] * 3
    assert other.param_groups[0]["params"][0].tolist() == [0.0] * 3


@every_face
def test_two_threads_share_an_optimizer(face: Any) -> None:
    """Constant gradients, so that the order of the steps makes no difference."""
    size, count = 100_000, 60

    def run(threads: int) -> list[float]:
        p = torch.ones(size)
        if face is Torch:
            p = nn.Parameter(p)
            p.grad = torch.ones(size)
            optimizer: Any = ours.Adam([p], lr=1e-3)
            step = optimizer.step
        else:
            optimizer = optim.Adam(p, lr=1e-3)

            def step() -> None:
                optimizer.step(torch.ones(size))

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(step) for _ in range(count)]:
                done.result()
        return p.detach().tolist()

    assert run(2) == run(1)


def test_groups_are_checked_before_they_are_loaded() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p])
    steps(optimizer, [p], range(2))
    before = contents(optimizer.state_dict())
    for key, bad in (("lr", "x"), ("lr", -1.0), ("betas", (0.9,)), ("eps", float("nan"))):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0][key] = bad
        with pytest.raises((TypeError, ValueError), match=rf"^{key}: expected"):
            optimizer.load_state_dict(saved)
    for bad in (-1.0, 0.5, float("inf"), None):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["step"] = bad
        with pytest.raises((TypeError, ValueError), match=r"^step: expected"):
            optimizer.load_state_dict(saved)
    assert contents(optimizer.state_dict()) == before


@pytest.mark.parametrize("face", [ours, optim], ids=["torch", "arrays"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SGD", {"lr": np.float32(-0.1)}), ("SGD", {"lr": np.int64(-1)}), ("SGD", {"lr": "0.1"}),
        ("SGD", {"lr": torch.tensor(-0.1)}), ("SGD", {"lr": None}), ("SGD", {"lr": 1j}),
        ("SGD", {"weight_decay": np.float32(-1)}), ("SGD", {"momentum": np.float16(-1)}),
        ("SGD", {"dampening": "0"}), ("Adam", {"eps": np.float32(-1)}),
        ("Adam", {"eps": torch.tensor(-1.0)}), ("Adam", {"eps": float("nan")}),
        ("Adam", {"betas": 0.9}), ("Adam", {"betas": (0.9, "0.99")}), ("Adam", {"betas": (0.9,)}),
        ("Adam", {"betas": (np.float32(1.5), 0.9)}), ("Rprop", {"etas": (0.5,)}),
        ("Rprop", {"step_sizes": (1e-6, None)}), ("ASGD", {"lambd": "1"}),
        ("Adagrad", {"lr_decay": np.float32(-1)}), ("RMSprop", {"alpha": "0.9"}),
        ("NAdam", {"momentum_decay": np.float64(-1)}), ("Adadelta", {"rho": np.float32(2)}),
        ("Adafactor", {"d": np.float32(0.5)}), ("Muon", {"ns_steps": "5"}),
        ("Adam", {"max_norm": np.float32(-1)}), ("Adam", {"ema_decay": np.float32(2)}),
        ("Adam", {"max_norm": "1"}), ("Adam", {"stochastic_rounding": 0.5}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(f"{k}={x!r}" for k, x in v.items()),
)  # fmt: skip
def test_numbers_of_any_kind_are_checked(face: Any, name: str, arguments: dict[str, Any]) -> None:
    (argument,) = arguments
    with pytest.raises((TypeError, ValueError), match=rf"^{argument}: expected"):
        getattr(face, name)([nn.Parameter(torch.ones(2, 2)).detach()], **arguments)


def test_betas_that_were_shortened_are_named() -> None:
    p = np.ones(2)
    optimizer = optim.Adam(p)
    optimizer.param_groups[0]["betas"] = (0.9,)
    with pytest.raises(ValueError, match=r"^betas: expected 2 numbers"):
        optimizer.step(np.ones(2))
    assert p.tolist() == [1.0, 1.0]
    q = nn.Parameter(torch.ones(2))
    feed([q], 0)
    second = ours.SGD([q], lr=0.1)
    second.param_groups[0]["lr"] = "x"
    with pytest.raises(TypeError, match=r"^lr: expected a number, got 'x'"):
        second.step()


@pytest.mark.parametrize("name", NAMES)
def test_states_that_are_put_elsewhere_are_read_as_they_lie(name: str) -> None:
    """By their owner, with strides of its own."""

    def run(changes: bool) -> Any:
        params = parameters(name)
        optimizer = getattr(ours, name)(params, lr=0.05)
        for k in range(4):
            if k == 2 and changes:
                for p in params:
                    for key, held in optimizer.state[p].items():
                        if held.ndim:
                            wide = torch.zeros(*held.shape, 2, dtype=held.dtype)[..., 0]
                            optimizer.state[p][key] = wide.copy_(held)
            steps(optimizer, params, range(k, k + 1))
        return contents(params)

    assert run(True) == run(False)


def test_faces_begin_with_the_same_16_bits() -> None:
    for name, given in (("Rprop", {"lr": 0.01}), ("Adagrad", {"initial_accumulator_value": 0.3})):
        a, t = np.ones(4, np.float32), nn.Parameter(torch.ones(4))
        getattr(optim, name)(a, state_dtype="bfloat16", **given).step(np.ones(4, np.float32))
        t.grad = torch.ones(4)
        getattr(ours, name)([t], state_dtype="bfloat16", **given).step()
        assert a.tolist() == t.tolist()


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(3, device="meta"),
        torch.ones(3).to_sparse(),
        torch.ones(3, dtype=torch.complex64),
        [1.0] * 3,
        torch.ones(4),
    ],
    ids=["meta", "sparse", "complex", "list", "shape"],
)
def test_states_without_numbers_are_refused_first(bad: Any) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = ours.Adam([p], ema_decay=0.5)
    steps(optimizer, [p], range(2))
    before = contents(optimizer.state_dict())
    for key in ("exp_avg", "ema"):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0][key] = bad
        with pytest.raises((TypeError, ValueError), match=rf"^{key}: expected"):
            optimizer.load_state_dict(saved)
    assert contents(optimizer.state_dict()) == before


def test_copies_are_checked_before_any_is_written() -> None:
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    feed(params, 0)
    for bad in (torch.zeros(4), np.zeros(3), [0.0] * 3, params[1]):
        first = torch.zeros(3)
        with pytest.raises((TypeError, ValueError), match=r"^copies: expected"):
            ours.Adam(params, copies=[first, bad]).step()
        assert first.tolist() == [0.0] * 3
    trained = torch.zeros(3, requires_grad=True)
    ours.SGD(params, lr=1.0, copies=[torch.zeros(3), trained]).step()
    assert torch.equal(trained.detach(), params[1].detach())


def test_numbers_that_are_none() -> None:
    for name, given in (
        ("Adam", {"eps": [0.1]}),
        ("Adam", {"weight_decay": 10**400}),
        ("Rprop", {"step_sizes": (float("nan"), 50.0)}),
        ("Muon", {"ns_steps": 2.5}),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(given))}: expected"):
            getattr(optim, name)(np.ones((2, 2)), **given)
    q = nn.Parameter(torch.ones(2))
    feed([q], 0)
    for key, value in (("eps", "x"), ("weight_decay", None), ("eps", [0.1])):
        optimizer = ours.Adam([q])
        optimizer.param_groups[0][key] = value
        with pytest.raises(TypeError, match=rf"^{key}: expected a number"):
            optimizer.step()


def test_groups_may_be_added_while_others_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that comes in the middle of a step waits for its end."""
    begun, run = threading.Event(), Plan.run

    def slowly(self: Plan, *given: Any, **named: Any) -> None:
        begun.set()
        time.sleep(0.2)
        run(self, *given, **named)

    monkeypatch.setattr(Plan, "run", slowly)
    params = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    feed(params, 0)
    optimizer = ours.SGD(params[:1], lr=0.1)
    with ThreadPoolExecutor(1) as pool:
        stepped = pool.submit(optimizer.step)
        assert begun.wait(10.0)
        optimizer.add_param_group({"params": params[1:]})
        stepped.result()
    assert torch.equal(params[1].detach(), torch.ones(5))
    optimizer.step()
    assert not torch.equal(params[1].detach(), torch.ones(5))
