"""Training against a plain PyTorch loop in float64, and the promises of `fit`."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import saddlepoint as sp
from networks import to_torch
from saddlepoint import nn, optim
from saddlepoint.train import History, UnsavedError, predict

Array = NDArray[Any]


def data(rows: int, columns: int = 5, classes: int = 3, dtype: str = "float64") -> tuple[Any, Any]:
    rng = np.random.default_rng([rows, columns])
    return rng.standard_normal((rows, columns)).astype(dtype), rng.integers(0, classes, rows)


def network(batch_norm: bool = False, inputs: int = 5, outputs: int = 3) -> nn.Sequential:
    if not batch_norm:
        return nn.Sequential(nn.Linear(inputs, 7), nn.Tanh(), nn.Linear(7, outputs))
    hidden = nn.Linear(inputs, 7, bias=False), nn.BatchNorm(7), nn.ReLU()
    return nn.Sequential(*hidden, nn.BatchNorm(7, momentum=None), nn.Linear(7, outputs))


def visits(losses: Array, sizes: list[int], rows: int) -> list[set[int]]:
    """The samples of each update, where sample i costs 4ⁱ: the loss spells them in base 4."""
    result = []
    for loss, size in zip(losses, sizes, strict=True):
        total = round(loss * size)  # the loss is a mean
        digits = [total >> 2 * i & 3 for i in range(rows)]
        assert sum(digits) == size
        assert max(digits) == 1
        result.append({i for i, digit in enumerate(digits) if digit})
    return result


@pytest.mark.parametrize(
    ("rows", "batch", "sizes"),
    [
        (20, 20, [20]),  # S0.10: one update an epoch
        (20, 1, [1] * 20),  # S0.10: and twenty
        (20, 8, [8, 8, 4]),
        (20, 19, [19, 1]),
        (20, 50, [20]),
        (1, 1, [1]),
    ],
)
def test_s0_9_each_sample_once_an_epoch(rows: int, batch: int, sizes: list[int]) -> None:
    net = nn.Linear(1, 1, bias=False, weight_init=nn.init.zeros)
    y = 2.0 ** np.arange(rows)[:, None]  # squares are powers of 4; the prediction stays 0
    run = sp.fit(
        net, net.init(0, "float64"), nn.MeanSquaredError(), (np.ones((rows, 1)), y),
        optimizer=lambda theta: optim.SGD(theta, lr=0.0), epochs=3, batch_size=batch, rng=5,
    )  # fmt: skip
    seen = visits(run.history.loss, 3 * sizes, rows)
    orders = np.random.default_rng(5)
    epochs = [seen[i : i + len(sizes)] for i in range(0, len(seen), len(sizes))]
    for epoch in epochs:
        assert set.union(*epoch) == set(range(rows))
        order = orders.permutation(rows)
        assert epoch == [set(order[b : b + batch].tolist()) for b in range(0, rows, batch)]
    assert_array_equal(run.history.epoch_step, len(sizes) * np.arange(1, 4))
    # Means weighted by rows: what the whole set costs, to a rounding for each update.
    assert_allclose(run.history.train_loss, np.mean(y**2), rtol=1e-14)


CONSTANT = optim.schedule.constant()


@dataclass(frozen=True)
class Case:
    """What `fit` is given, and the same for PyTorch."""

    batch_norm: bool
    loss: nn.Loss
    ours: Callable[[Any], optim.Optimizer]
    theirs: Callable[[Any], torch.optim.Optimizer]
    rate: float
    schedule: Callable[[int], float] = CONSTANT
    rows: int = 45
    batch: int = 8
    skips: int = 0  # rows that a batch of their own would hold


CASES = {
    "sgd": Case(
        False,
        nn.CrossEntropy(),
        lambda theta: optim.SGD(theta, lr=0.3),
        lambda p: torch.optim.SGD(p, lr=0.3),
        0.3,
    ),
    "nesterov, decay": Case(
        False,
        nn.MeanSquaredError(),
        lambda theta: optim.SGD(theta, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        0.1,
        optim.schedule.inverse(),
    ),
    "adamw, one batch": Case(
        False,
        nn.CrossEntropy(),
        lambda theta: optim.AdamW(theta, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        0.01,
        optim.schedule.exponential(0.5),
        batch=1000,
    ),
    "batch norm": Case(
        True,
        nn.CrossEntropy(),
        lambda theta: optim.SGD(theta, lr=0.2, momentum=0.5),
        lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.5),
        0.2,
        optim.schedule.inverse_square(),
    ),
    "batch norm, rest of one": Case(
        True,
        nn.MeanSquaredError(),
        lambda theta: optim.SGD(theta, lr=0.2),
        lambda p: torch.optim.SGD(p, lr=0.2),
        0.2,
        rows=41,
        skips=1,
    ),
}


def flat(tensors: Iterable[torch.Tensor]) -> Array:
    pieces = [t.detach().numpy().astype(np.float64).ravel() for t in tensors]
    return np.concatenate([np.empty(0), *pieces])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_a_pytorch_loop(case: Case) -> None:
    net = network(case.batch_norm)
    params = net.init(1, "float64")
    x, labels = data(case.rows)
    squares = isinstance(case.loss, nn.MeanSquaredError)
    y = np.random.default_rng(2).standard_normal((case.rows, 3)) if squares else labels
    epochs = 3
    run = sp.fit(
        net, params, case.loss, (x, y), case.ours, case.schedule, epochs, case.batch, rng=3,
        validation=(x, y),
    )  # fmt: skip

    module = to_torch(net).double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(params.theta), module.parameters())
    criterion: torch.nn.Module = torch.nn.MSELoss() if squares else torch.nn.CrossEntropyLoss()
    optimizer = case.theirs(module.parameters())
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    orders = np.random.default_rng(3)
    losses, norms, rates, means, validation = [], [], [], [], []
    for epoch in range(epochs):
        module.train()
        rate = optimizer.param_groups[0]["lr"] = case.rate * case.schedule(epoch)
        order = torch.from_numpy(orders.permutation(case.rows)[: case.rows - case.skips])
        weighted = 0.0
        for begin in range(0, len(order), case.batch):
            rows = order[begin : begin + case.batch]
            optimizer.zero_grad()
            loss = criterion(module(inputs[rows]), targets[rows])
            loss.backward()
            losses.append(float(loss.detach()))
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            norms.append(np.linalg.norm(flat(gradients)))
            rates.append(rate)
            weighted += losses[-1] * len(rows) / len(order)
            optimizer.step()
        means.append(weighted)
        module.eval()
        with torch.no_grad():
            outputs = module(inputs)
            validation.append(float(criterion(outputs, targets)))
    accuracy = np.nan if squares else np.mean(outputs.argmax(1).numpy() == y)

    # Some 20 updates of sums of a few hundred terms, each right to about 1e-15.
    near: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    assert_allclose(run.params.theta, flat(module.parameters()), **near)
    assert_allclose(run.params.buffers, flat(module.buffers()), **near)
    history = run.history
    assert_allclose(history.loss, losses, **near)
    assert_allclose(history.gradient_norm, norms, **near)
    assert_array_equal(history.learning_rate, rates)
    assert_allclose(history.train_loss, means, **near)
    assert_allclose(history.validation_loss, validation, **near)
    assert_array_equal(history.validation_accuracy[-1], accuracy)
    assert_allclose(predict(net, run.params, x), outputs.numpy(), **near)
    assert run.stopped == "finished"


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_seed_same_bits_at_any_setting(
    batch_norm: bool, dtype: str, on_every_setting: Any
) -> None:
    x, y = data(700, 60, 10, dtype)
    net = nn.Sequential(
        nn.Linear(60, 90), *([nn.BatchNorm(90)] if batch_norm else []), nn.ReLU(), nn.Linear(90, 10)
    )
    params = net.init(0, dtype)

    def bits() -> list[Array]:
        run = sp.fit(net, params, nn.CrossEntropy(), (x, y), epochs=2, rng=9, validation=(x, y))
        series = run.history.to_dict()
        del series["seconds"]
        return [run.params.theta, run.params.buffers, *map(np.array, series.values())]

    results: dict[str, list[Array]] = on_every_setting(bits)
    first, *others = [*results.values(), bits()]
    assert len(others) >= 2
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert_array_equal(a, b)


def test_seeds_and_generators() -> None:
    net, (x, y) = network(), data(40)
    params = net.init(0, "float64")

    def theta(rng: Any) -> Array:
        return sp.fit(net, params, nn.CrossEntropy(), (x, y), batch_size=8, rng=rng).params.theta

    assert_array_equal(theta(1), theta(np.random.default_rng(1)))
    assert (theta(1) != theta(2)).any()
    assert (theta(None) != theta(None)).any()


def test_inputs_are_not_written_to() -> None:
    net, (x, y) = network(batch_norm=True), data(40)
    params = net.init(0, "float64")
    given = [params.theta, params.buffers, x, y]
    kept = [a.copy() for a in given]
    for a in given:
        a.setflags(write=False)
    run = sp.fit(net, params, nn.CrossEntropy(), (x, y), rng=0)
    for a, b in zip(given, kept, strict=True):
        assert_array_equal(a, b)
    run.params.theta[:] = 0.0  # the result is the caller's
    assert not np.shares_memory(run.params.buffers, params.buffers)


def test_memory_order_of_the_data_changes_nothing() -> None:
    net, (x, y) = network(), data(40)
    params = net.init(0, "float64")
    wide = np.repeat(x, 2, axis=1)[:, ::2]
    labels = np.repeat(y.astype(np.uint8), 2)[::2]
    runs = [
        sp.fit(net, params, nn.CrossEntropy(), pair, rng=0).params.theta
        for pair in ((x, y), (np.asfortranarray(x), y), (wide, labels))
    ]
    assert_array_equal(runs[0], runs[1])
    assert_array_equal(runs[0], runs[2])


def test_history_has_the_shapes_it_says_and_survives_json() -> None:
    net, (x, y) = network(), data(50)
    run = sp.fit(net, net.init(0, "float64"), nn.CrossEntropy(), (x, y), epochs=3, batch_size=20)
    history = run.history
    for name in History.__dataclass_fields__:
        series = getattr(history, name)
        integers = name in ("step", "epoch_step")
        assert series.dtype == (np.int64 if integers else np.float64)
        per_update = name in ("step", "loss", "gradient_norm", "learning_rate")
        assert series.shape == ((9,) if per_update else (3,))
    assert_array_equal(history.step, np.arange(1, 10))
    assert_array_equal(history.epoch_step, [3, 6, 9])
    assert np.isnan(history.validation_loss).all()
    assert np.isnan(history.validation_accuracy).all()
    assert (history.seconds > 0).all()
    again = History.from_dict(json.loads(json.dumps(history.to_dict())))
    for name in History.__dataclass_fields__:
        assert_array_equal(getattr(again, name), getattr(history, name), strict=True)


class Timed(optim.SGD):
    """Every update takes two seconds of `Timed.clock`; the fourth may be interrupted."""

    clock = 0.0
    stop = False

    def step(self, *args: Any, **kwargs: Any) -> None:
        super().step(*args, **kwargs)
        Timed.clock += 2.0
        if Timed.stop and self.steps == 4:
            raise KeyboardInterrupt


def test_seconds_are_those_of_the_updates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def passing(seconds: float, result: Any) -> Any:
        Timed.clock += seconds
        return result

    monkeypatch.setattr(Timed, "clock", 1e5)
    monkeypatch.setattr(Timed, "stop", True)
    module = sys.modules["saddlepoint.train"]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: Timed.clock))
    monkeypatch.setattr(module, "_scores", lambda *_: passing(100.0, (0.5, 0.5)))
    net, pair = network(), data(48)
    how: dict[str, Any] = {
        "optimizer": Timed, "epochs": 3, "batch_size": 24, "rng": 0, "validation": pair,
        "checkpoint": lambda _: passing(1000.0, None), "checkpoint_every": 0.0,
    }  # fmt: skip
    begun = sp.fit(net, net.init(0, "float64"), nn.CrossEntropy(), pair, **how)
    assert begun.stopped == "interrupted"
    assert_array_equal(begun.history.seconds, [4.0])
    Timed.stop = False
    run = sp.fit(net, begun.params, nn.CrossEntropy(), pair, resume=begun, **how)
    assert_array_equal(run.history.seconds, [4.0, 4.0, 4.0])


def test_divergence_stops_the_run() -> None:
    net, (x, _) = network(), data(50)
    run = sp.fit(
        net, net.init(0, "float64"), nn.MeanSquaredError(), (x, np.ones((50, 3))),
        lambda theta: optim.SGD(theta, lr=1e100), epochs=50, batch_size=10, rng=0,
    )  # fmt: skip
    assert run.stopped == "diverged"
    updates = len(run.history.step)
    assert 1 <= updates < 10
    assert np.isfinite(run.history.loss).all()
    assert len(run.history.train_loss) == updates // 5


def interrupted_schedule(epoch: int) -> float:
    if epoch == 2:
        raise KeyboardInterrupt
    return 1.0


class InterruptedSGD(optim.SGD):
    """Ctrl-C at the sixth update, before it."""

    def step(self, grads: Any) -> None:
        if self.steps == 5:
            raise KeyboardInterrupt
        super().step(grads)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "done"),
    [(optim.SGD, interrupted_schedule, 6), (InterruptedSGD, CONSTANT, 5)],
)
def test_interruption_keeps_what_there_is(optimizer: Any, schedule: Any, done: int) -> None:
    net, (x, y) = network(), data(30)
    params = net.init(0, "float64")

    def run(optimizer: Any, schedule: Any, epochs: int) -> sp.Fit:
        return sp.fit(
            net, params, nn.CrossEntropy(), (x, y), lambda theta: optimizer(theta, lr=0.1),
            schedule, epochs, batch_size=10, rng=4,
        )  # fmt: skip

    stopped = run(optimizer, schedule, 50)
    assert stopped.stopped == "interrupted"
    taken: list[Array] = []  # θ after each update of a run that nothing interrupts

    class Recorded(optim.SGD):
        def step(self, grads: Any) -> None:
            super().step(grads)
            taken.append(np.array(self.param_groups[0]["params"][0]))

    whole = run(Recorded, CONSTANT, 3)
    assert_array_equal(stopped.params.theta, taken[done - 1])
    assert len(stopped.history.step) == done
    assert_array_equal(stopped.history.loss, whole.history.loss[:done])
    assert len(stopped.history.train_loss) == done // 3


def test_predict_equals_pytorch_in_evaluation_over_many_chunks() -> None:
    net = network(batch_norm=True)
    x, y = data(9001)
    run = sp.fit(net, net.init(0, "float64"), nn.CrossEntropy(), (x, y), rng=0, validation=(x, y))
    module = to_torch(net).double().eval()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(run.params.theta), module.parameters())
    at = 0
    for buffer in module.buffers():
        n = buffer.numel()
        buffer.copy_(torch.from_numpy(run.params.buffers[at : at + n]).reshape(buffer.shape))
        at += n
    with torch.no_grad():
        outputs = module(torch.from_numpy(x))
        loss = float(torch.nn.functional.cross_entropy(outputs, torch.from_numpy(y)))
    assert_allclose(predict(net, run.params, x), outputs.numpy(), rtol=1e-12, atol=1e-12)
    assert_array_equal(predict(net, run.params, x[:1]), predict(net, run.params, x)[:1])
    assert_allclose(run.history.validation_loss, [loss], rtol=1e-12)
    right = outputs.argmax(1).numpy() == y
    assert_array_equal(run.history.validation_accuracy, [np.mean(right)])
    assert 0.2 < np.mean(right) < 0.99


X, Y = data(10)
NET, NORMALIZED = network(), network(batch_norm=True)
PARAMS, RUNNING = NET.init(0, "float64"), NORMALIZED.init(0, "float64")
GOOD: dict[str, Any] = {"net": NET, "params": PARAMS, "loss": nn.CrossEntropy(), "data": (X, Y)}
NORM = {"net": NORMALIZED, "params": RUNNING}
SINGLE = nn.Parameters(PARAMS.theta.astype(np.float32), PARAMS.buffers)
HALF = nn.Parameters(PARAMS.theta.astype(np.float16), PARAMS.buffers)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "net": ({"net": "a net"}, TypeError, "net: expected a layer of saddlepoint.nn, got str"),
    "no loss": ({"loss": None}, TypeError, "loss: expected a loss of saddlepoint.nn, got NoneType"),
    "loss class": ({"loss": nn.CrossEntropy}, TypeError, "loss: expected a loss of saddlepoint.nn"),
    "theta": (
        {"params": nn.Parameters(PARAMS.theta[1:], PARAMS.buffers)},
        ValueError,
        r"params: expected theta of shape \(66,\), got \(65,\)",
    ),
    "half": ({"params": HALF, "data": (X.astype("f2"), Y)}, TypeError, "expected dtype float32 or"),
    "short buffers": (
        {**NORM, "params": nn.Parameters(RUNNING.theta, RUNNING.buffers[:-1])},
        ValueError,
        r"buffers.* shape \(30,\), got \(29,\)",
    ),
    "no buffers": (
        {**NORM, "params": nn.Parameters(RUNNING.theta, RUNNING.buffers[:0])},
        ValueError,
        r"buffers.* shape \(30,\), got \(0,\)",
    ),
    "buffers dtype": (
        {**NORM, "params": nn.Parameters(RUNNING.theta, RUNNING.buffers.astype("f4"))},
        TypeError,
        "buffers.* dtype float64, got float32",
    ),
    "x dtype": ({"params": SINGLE}, TypeError, "data: x: expected dtype float32, got float64"),
    "x list": ({"data": (X.tolist(), Y)}, TypeError, "data: x: expected a NumPy array, got list"),
    "x shape": ({"data": (X[0], Y)}, ValueError, r"data: x: expected shape \(N, features\)"),
    "columns": ({"data": (X[:, 1:], Y)}, ValueError, "data: x: expected 5 columns, got 4"),
    "no rows": ({"data": (X[:0], Y[:0])}, ValueError, "data: x: expected at least one row"),
    "nan": ({"data": (X * np.nan, Y)}, ValueError, "data: x: expected finite .* in row 0"),
    "y rows": ({"data": (X, Y[1:])}, ValueError, r"data: y: expected shape \(10,\), got \(9,\)"),
    "y dtype": ({"data": (X, 1.0 * Y)}, TypeError, "data: y: expected integer labels, got dtype"),
    "y range": ({"data": (X, Y + 5)}, ValueError, "data: y: expected labels from 0 to 2, got 7"),
    "y shape": (
        {"loss": nn.MeanSquaredError(), "data": (X, X[:, 0])},
        ValueError,
        r"data: y: expected shape \(10, 3\), got \(10,\)",
    ),
    "validation": ({"validation": (X[:, 1:], Y)}, ValueError, "validation: x: expected 5 columns"),
    "epochs": ({"epochs": 0}, ValueError, "epochs: expected at least 1, got 0"),
    "half an epoch": ({"epochs": 1.5}, TypeError, "epochs: expected an int"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
    "half a batch": ({"batch_size": 1.5}, TypeError, "batch_size: expected an int"),
    "batch of one": ({**NORM, "batch_size": 1}, ValueError, "batch_size: expected at least 2"),
    "params": ({"params": PARAMS.theta}, TypeError, "params: expected what net.init gives, got nd"),
    "data alone": ({"data": X}, TypeError, r"data: expected a pair \(x, y\), got ndarray"),
    "optimizer": ({"optimizer": "adam"}, TypeError, "optimizer: expected a callable .* got 'adam'"),
    "another's optimizer": (
        {"optimizer": lambda theta: theta},
        TypeError,
        "optimizer: expected a callable that makes an optimizer .* got a ndarray",
    ),
    "schedule": ({"schedule": 0.5}, TypeError, "schedule: expected a function of the epoch"),
    **{
        f"schedule's {value}": (
            {"schedule": lambda epoch, value=value: value},
            error,
            "schedule: expected a finite number from 0, got .* for epoch 0",
        )
        for value, error in [
            (-0.5, ValueError),
            (float("nan"), ValueError),
            (float("inf"), ValueError),
            ((1.0, 0.5), TypeError),
            ("1", TypeError),
            (None, TypeError),
            (True, TypeError),
        ]
    },
    "an optimizer of a copy": (
        {"optimizer": lambda theta: optim.Adam(theta.copy())},
        ValueError,
        "optimizer: expected one of the array it is given, got one of others",
    ),
    "an optimizer of more": (
        {"optimizer": lambda theta: optim.Adam([theta, theta.copy()])},
        ValueError,
        "optimizer: expected one of the array it is given, got one of others",
    ),
    "checkpoint_every": ({"checkpoint_every": -1}, ValueError, "checkpoint_every: expected a numb"),
    "resume": ({"resume": PARAMS}, TypeError, "resume: expected what fit returned, got Parameters"),
    "device": ({"device": "tpu"}, ValueError, "device: expected 'cpu' or 'cuda', got 'tpu'"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sp.fit(**{**GOOD, **changes})


def test_predict_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"params: expected theta of shape \(66,\), got \(65,\)"):
        predict(NET, nn.Parameters(PARAMS.theta[1:], PARAMS.buffers), X)
    with pytest.raises(ValueError, match=r"buffers.* shape \(30,\), got \(1,\)"):
        predict(NORMALIZED, nn.Parameters(RUNNING.theta, RUNNING.buffers[:1]), X)
    with pytest.raises(ValueError, match="x: expected 5 columns, got 4"):
        predict(NET, PARAMS, X[:, 1:])


def everything(run: sp.Fit) -> dict[str, Any]:
    """All that a training leaves, but for how long it took."""
    history = {name: series for name, series in vars(run.history).items() if name != "seconds"}
    assert run.state is not None
    (arrays,) = run.state.optimizer["state"]
    return {**history, **vars(run.params), **arrays, "stopped": run.stopped}


def groups(run: sp.Fit) -> list[dict[str, Any]]:
    assert run.state is not None
    found: list[dict[str, Any]] = run.state.optimizer["param_groups"]
    return found


def assert_same(a: sp.Fit, b: sp.Fit) -> None:
    ours, theirs = everything(a), everything(b)
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert_array_equal(values, theirs[name], err_msg=name)
    assert groups(a) == groups(b)


GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


def adam(theta: Any) -> optim.Optimizer:
    return optim.Adam(theta, 0.01, amsgrad=True, max_norm=1.0, ema_decay=0.9)


def train(epochs: int, rng: Any = 3, **more: Any) -> sp.Fit:
    net, (x, y) = network(batch_norm=True), data(50)
    start = net.init(0, "float64")
    return sp.fit(
        net, start, nn.CrossEntropy(), (x, y), more.pop("optimizer", adam),
        optim.schedule.inverse(), epochs, 8, rng, (x, y), **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", GENERATORS)
def test_five_epochs_and_five_are_ten(name: str, tmp_path: Path) -> None:
    def rng() -> np.random.Generator:
        return np.random.Generator(getattr(np.random, name)(3))

    whole, half = train(10, rng()), train(5, rng())
    assert_same(train(10, resume=half), whole)
    assert_same(train(10, resume=sp.Fit.load(half.save(tmp_path / "half"))), whole)
    assert len(half.history.step) == 35  # what went on is not what was given


STATEFUL: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda theta: optim.SGD(theta, 0.1, momentum=0.9),
    "ASGD": lambda theta: optim.ASGD(theta, 0.1),
    "NAdam": lambda theta: optim.NAdam(theta, 0.01),
    "Adan": lambda theta: optim.Adan(theta, 0.01),
    "Rprop": lambda theta: optim.Rprop(theta, 0.01),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_every_kind_of_state_goes_on_from_a_file(name: str, tmp_path: Path) -> None:
    made = {"optimizer": STATEFUL[name]}
    half = sp.Fit.load(train(2, **made).save(tmp_path / "half"))
    assert_same(train(4, resume=half, **made), train(4, **made))


@pytest.mark.parametrize("update", range(1, 22))
def test_a_training_stopped_anywhere_goes_on_to_the_same_bits(update: int, tmp_path: Path) -> None:
    class Stopped(optim.Adam):
        def step(self, grads: Any) -> None:
            super().step(grads)
            if self.steps == update:
                os.kill(os.getpid(), signal.SIGINT)  # waits until the update is recorded

    stopped = train(3, optimizer=Stopped)
    assert stopped.stopped == "interrupted"
    assert len(stopped.history.step) == update
    saved = sp.Fit.load(stopped.save(tmp_path / "run"))
    assert_same(train(3, optimizer=optim.Adam, resume=saved), train(3, optimizer=optim.Adam))


def test_what_cannot_go_on_is_said() -> None:
    half = train(2)
    with pytest.raises(ValueError, match="epochs: expected at least the 2 begun before, got 1"):
        train(1, resume=half)
    assert half.state is not None
    begun = dataclasses.replace(half, state=dataclasses.replace(half.state, updates=1))
    with pytest.raises(ValueError, match="epochs: expected at least the 3 begun before, got 2"):
        train(2, resume=begun)
    net, (x, y) = network(batch_norm=True), data(40)
    with pytest.raises(ValueError, match="data: expected the 50 rows of before, got 40"):
        sp.fit(net, half.params, nn.CrossEntropy(), (x, y), epochs=3, resume=half)
    diverged = dataclasses.replace(half, stopped="diverged", state=None)
    with pytest.raises(ValueError, match="resume: expected a training that can go on"):
        train(3, resume=diverged)
    with pytest.raises(ValueError, match=r"param_groups: expected"):
        train(3, resume=half, optimizer=optim.SGD)
    assert_same(train(2, resume=half), half)


def _one_label(x: Array, y: Array) -> tuple[Array, Array]:
    return x, np.where(np.arange(len(y)) == 7, (y + 1) % 3, y)


OTHER_DATA: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "one value": lambda x, y: (x + (np.arange(x.size).reshape(x.shape) == 33) * 1e-6, y),
    "one label": _one_label,
    "the signs": lambda x, y: (-x, y),
    "another order": lambda x, y: (x[::-1].copy(), y[::-1].copy()),
}


@pytest.mark.parametrize("rows", [50, 5000])
@pytest.mark.parametrize("change", OTHER_DATA)
def test_other_data_are_noticed(change: str, rows: int, tmp_path: Path) -> None:
    def go_on(x: Array, y: Array, resume: sp.Fit | None) -> sp.Fit:
        asked = net, net.init(0, "float64"), nn.CrossEntropy(), (x, y)
        return sp.fit(*asked, epochs=1 if resume is None else 2, resume=resume)

    net, (x, y) = network(), data(rows)
    half = go_on(x, y, None)
    for before in (half, sp.Fit.load(half.save(tmp_path / "run"))):
        with pytest.raises(ValueError, match=r"^data: expected the training data of before, got"):
            go_on(*OTHER_DATA[change](x, y), before)
        go_on(x, y.astype(np.uint8), before)  # the same labels
        state = dataclasses.replace(before.state, data=None)  # of before states said it
        go_on(*OTHER_DATA[change](x, y), dataclasses.replace(before, state=state))


def test_checkpoints(tmp_path: Path) -> None:
    seen: list[sp.Fit] = []
    whole = train(4, checkpoint=seen.append, checkpoint_every=0)
    assert [run.stopped for run in seen] == [*["unfinished"] * 4, "finished"]
    assert [len(run.history.seconds) for run in seen] == [0, 1, 2, 3, 4]
    for run in seen[:4]:
        assert_same(train(4, resume=run), whole)
    train(4, checkpoint=seen.append, checkpoint_every=1e9)
    assert [len(run.history.seconds) for run in seen[5:]] == [0, 4]
    train(2, checkpoint=tmp_path / "run")
    train(4, checkpoint=tmp_path / "run", resume=sp.Fit.load(tmp_path / "run"))
    assert_same(sp.Fit.load(tmp_path / "run"), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_place_for_checkpoints_is_looked_at_first(tmp_path: Path) -> None:
    def never(theta: Any) -> optim.Optimizer:
        return Forbidden(theta)

    class Forbidden(optim.SGD):
        def step(self, grads: Any) -> None:
            raise AssertionError("work was done")

    (tmp_path / "file").write_text("")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("")
    with pytest.raises(NotADirectoryError, match="expected a folder, got a file"):
        train(1, optimizer=never, checkpoint=tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="expected a folder, got a file"):
        train(1, optimizer=never, checkpoint=tmp_path / "file" / "run")
    with pytest.raises(FileExistsError, match=r"holds nothing else, got one with mine\.txt"):
        train(1, optimizer=never, checkpoint=tmp_path / "notes")
    with pytest.raises(OSError, match="a place that can be written"):
        train(1, optimizer=never, checkpoint="/proc/run")


def unwell(epoch: int) -> float:
    raise RuntimeError("no rate")


FAILING: dict[str, dict[str, Any]] = {
    "schedule": {"schedule": unwell},
    "rate": {"schedule": lambda epoch: -1.0},
    "optimizer": {"optimizer": lambda theta: optim.Adam(theta.copy())},
    "step": {"optimizer": type("Failing", (optim.SGD,), {"step": lambda self, grads: unwell(0)})},
}


@pytest.mark.parametrize("case", FAILING)
def test_a_training_that_fails_at_once_leaves_the_older_checkpoint(
    tmp_path: Path, case: str
) -> None:
    older = sp.fit(**{**GOOD, "epochs": 3}, checkpoint=tmp_path / "run")
    with pytest.raises((RuntimeError, ValueError)):
        sp.fit(**{**GOOD, **FAILING[case]}, checkpoint=tmp_path / "run")
    assert_same(sp.Fit.load(tmp_path / "run"), older)


def test_files_that_come_while_training_stay(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def noting(epoch: int) -> float:
        if epoch == 1:
            (path / "notes.txt").write_text("mine")
        return 1.0

    done = sp.fit(**{**GOOD, "epochs": 3, "schedule": noting}, checkpoint=path, checkpoint_every=0)
    assert (path / "notes.txt").read_text() == "mine"
    assert_same(sp.Fit.load(path), done)


def test_a_checkpoint_that_cannot_be_saved_stops_nothing() -> None:
    seen: list[sp.Fit] = []

    def full(run: sp.Fit) -> None:
        seen.append(run)
        if len(seen) in (2, 3):
            raise OSError(28, "No space left on device")

    with pytest.warns(UserWarning, match=r"checkpoint: .*No space.*; training goes on") as told:
        done = train(4, checkpoint=full, checkpoint_every=0)
    assert len(told) == 2
    assert len(seen) == 5
    assert_same(done, train(4))


def test_what_could_not_be_saved_at_the_end_is_in_the_error() -> None:
    def full(run: sp.Fit) -> None:
        if run.stopped == "finished":
            raise OSError(28, "No space left on device")

    with pytest.raises(UnsavedError, match="No space left on device") as told:
        train(2, checkpoint=full)
    assert_same(told.value.fit, train(2))


def test_one_array_in_a_group_is_trained_as_without() -> None:
    def grouped(theta: Any) -> optim.Optimizer:
        return optim.SGD([{"params": [theta], "lr": 0.1}])

    ours = train(2, optimizer=grouped)
    assert_same(ours, train(2, optimizer=lambda theta: optim.SGD(theta, lr=0.1)))


@pytest.mark.parametrize("value", [np.float32(0.5), np.array([0.5]), torch.tensor(0.5)])
def test_a_schedule_may_give_any_one_number(value: Any) -> None:
    ours = sp.fit(**{**GOOD, "rng": 0, "schedule": lambda epoch: value})
    assert_same(ours, sp.fit(**{**GOOD, "rng": 0, "schedule": lambda epoch: 0.5}))


def test_other_hyper_parameters_than_those_saved_are_named() -> None:
    half = train(1)
    with pytest.warns(
        UserWarning, match=r"^resume: goes on with lr=0\.01, not 0\.5, eps=1e-08, not"
    ):
        ours = train(
            2,
            resume=half,
            optimizer=lambda t: optim.Adam(
                t, 0.5, eps=0.1, amsgrad=True, max_norm=1.0, ema_decay=0.9
            ),
        )
    assert_same(ours, train(2))


INTERRUPTED = """
import os, random, signal, sys, threading, time
import numpy as np, saddlepoint as sp
from saddlepoint import nn
rng = np.random.default_rng(0)
x, y = rng.standard_normal((64, 5)), rng.integers(0, 3, 64)
net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm(7), nn.ReLU(), nn.Linear(7, 3))
start = net.init(0, "float64")
def train(epochs, **more):
    return sp.fit(net, start, nn.CrossEntropy(), (x, y), epochs=epochs, batch_size=4, rng=1, **more)
whole = train(40)
random.seed(int(sys.argv[1]))
stops = 0
began = time.perf_counter()
train(40)
span = time.perf_counter() - began
for _ in range(100):
    timer = threading.Timer(random.random() * span, os.kill, (os.getpid(), signal.SIGINT))
    run = None
    try:
        timer.start()
        run = train(40)
        timer.join()
    except KeyboardInterrupt:  # outside of fit
        timer.join()
    if run is None or run.stopped == "finished":
        continue
    stops += 1
    assert run.stopped == "interrupted", run.stopped
    assert len(run.history.step) == run.state.optimizer["state"][0]["step"]
    done = len(run.history.step)
    assert (run.history.loss == whole.history.loss[:done]).all()
    again = train(40, resume=run)
    assert (again.params.theta == whole.params.theta).all()
    assert (again.params.buffers == whole.params.buffers).all()
    assert (again.history.loss == whole.history.loss).all()
print(stops)
"""


@pytest.mark.slow
def test_ctrl_c_at_any_time_leaves_whole_updates() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "0"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30  # of 100: within fit


TWICE = """
import os, signal, numpy as np, saddlepoint as sp
from saddlepoint import nn, optim
class Twice(optim.SGD):
    def step(self, grads):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second one waited")
net = nn.Linear(2, 1)
x = np.ones((4, 2), np.float32)
try:
    sp.fit(net, net.init(0), nn.MeanSquaredError(), (x, x[:, :1]), Twice)
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("at once")
"""


def test_a_second_ctrl_c_stops_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60)
    assert done.stdout == "at once\n", done.stderr


def test_json_of_a_history_is_strict() -> None:
    net, (x, y) = network(), data(50)
    history = sp.fit(net, net.init(0, "float64"), nn.CrossEntropy(), (x, y)).history
    history.gradient_norm[0] = np.inf
    text = json.dumps(history.to_dict(), allow_nan=False)
    assert json.loads(text)["validation_loss"] == [None]
    again = History.from_dict(json.loads(text))
    for name, series in vars(history).items():
        assert_array_equal(getattr(again, name), series, strict=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": [1.0]}, ValueError, r"step, loss, .* expected equal lengths, got \[2, 1, 2, 2\]"),
        ({"seconds": [1.0, 2.0]}, ValueError, "epoch_step, .* expected equal lengths"),
        ({"step": [1, 3]}, ValueError, "step: expected what a training leaves"),
        ({"step": [1, 2.0]}, TypeError, "step: expected an int, got float 2.0"),
        ({"epoch_step": [3]}, ValueError, "epoch_step: expected what a training leaves"),
        ({"epoch_step": [2**60]}, ValueError, "epoch_step: expected at least 0"),
        ({"loss": [1.0, "2"]}, TypeError, "loss: expected a number or null, got '2'"),
        ({"loss": [1.0, 10**400]}, ValueError, "loss: expected a number or null, got 1000"),
        ({"loss": [1.0, True]}, TypeError, "loss: expected a number or null, got True"),
        ({"loss": 1.0}, TypeError, "loss: expected a list of numbers, got float"),
        ({"gradient_norm": [1.0, -1.0]}, ValueError, "gradient_norm: expected what"),
        ({"learning_rate": [1.0, None]}, ValueError, "learning_rate: expected what"),
        ({"seconds": [-1.0]}, ValueError, "seconds: expected what"),
        ({"validation_accuracy": [1.5]}, ValueError, "validation_accuracy: expected what"),
        ({"validation_accuracy": [-0.5]}, ValueError, "validation_accuracy: expected what"),
    ],
)
def test_histories_that_no_training_leaves(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    saved: dict[str, Any] = {
        "step": [1, 2], "loss": [1.0, 0.5], "gradient_norm": [1.0, 1.0],
        "learning_rate": [0.1, 0.1], "epoch_step": [2], "train_loss": [0.75],
        "validation_loss": [None], "validation_accuracy": [None], "seconds": [0.1],
    }  # fmt: skip
    History.from_dict(saved)
    History.from_dict({**saved, "seconds": [0.0]})  # a clock may be coarse
    with pytest.raises(error, match=message):
        History.from_dict({**saved, **change})
