"""The verdict on trainings that were made to hang, to blow up, to stand still, and to go well."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

import saddlepoint as sp
from saddlepoint import nn
from saddlepoint.cli import main
from saddlepoint.critical import Standing, Training, judge
from saddlepoint.critical.escape import gradient_step
from saddlepoint.critical.verdict import diverged, last_tenth
from saddlepoint.optim.schedule import polynomial
from saddlepoint.report.pages import write_analysis
from saddlepoint.runs import Analysis, Config, Run, analyze, train
from saddlepoint.surfaces import FactoredLinear, Quadratic, Saddle

Array = NDArray[Any]


def plain(**changes: Any) -> Config:
    """Gradient descent on the digits, without batch norm."""
    return Config(**{"optimizer": "sgd", "batch_norm": False, "lr": 0.1, **changes})


def started(config: Config, theta: Callable[[Array], Array], **more: Any) -> Run:
    """A run whose weights begin elsewhere than the configuration has it, or with a schedule."""
    data, net = config.load_data(), config.network()
    loss = nn.MeanSquaredError() if data.classes is None else nn.CrossEntropy()
    params = net.init(config.seed)
    params.theta[...] = theta(params.theta)
    result = sp.fit(
        net, params, loss, (data.x, data.y), optimizer=config.make_optimizer, rng=0,
        epochs=config.epochs, batch_size=config.batch_size, **more,
    )  # fmt: skip
    return Run(config, result.params, result.history, result.stopped, math.nan)


def bilinear(tmp_path: Path, **changes: Any) -> Config:
    """One hidden layer of tanh that is to learn two columns of a linear map, batch by batch."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 4)).astype(np.float32)
    y = (x @ rng.standard_normal((4, 2))).astype(np.float32)
    np.savez(tmp_path / "map.npz", x=x - x.mean(0), y=y - y.mean(0))
    return plain(
        **{"data": str(tmp_path / "map.npz"), "layers": (4, 8, 2), "activation": "tanh",
           "epochs": 250, "batch_size": 200, "lr": 0.05, **changes}
    )  # fmt: skip


def judged(run: Run) -> Analysis:
    """With the run as it was before."""
    theta, buffers = run.params.theta.copy(), run.params.buffers.copy()
    found = analyze(run, samples=400)
    assert_array_equal(run.params.theta, theta)
    assert_array_equal(run.params.buffers, buffers)
    assert not any(word in str(found) for word in ("nan", "None", "  "))
    return found


@pytest.mark.parametrize(
    "config",
    [
        Config(epochs=3),
        Config(epochs=20),
        plain(epochs=2),
        plain(epochs=20),
        plain(epochs=10, momentum=0.9, lr=0.05, batch_norm=True),
        plain(epochs=5, activation="tanh", lr=1.0),
    ],
    ids=str,
)
def test_healthy_trainings_are_on_their_way(config: Config) -> None:
    found = judged(train(config))
    assert found.verdict == "descending"
    assert found.cure.startswith("Go on")


def test_a_healthy_run_at_its_end_is_not_stuck(tmp_path: Path) -> None:
    run = train(Config(epochs=80, lr=1e-2))
    found = judged(run)
    assert found.point is not None
    assert found.point.kind == "saddle"  # so say the second derivatives, of a loss near 0
    assert found.point.loss < 1e-3
    assert found.standing.escape is not None
    assert found.verdict in ("descending", "minimum", "degenerate")
    page = write_analysis(run, found, tmp_path).read_text()
    assert "Stuck at a saddle point" not in page
    # The same point, of a run that had stood still: what the curvature has to offer is nothing.
    still = replace(run, history=replace(run.history, train_loss=np.full(80, 1e-3)))
    assert judged(still).verdict in ("minimum", "degenerate")


def test_a_run_at_its_minimum(tmp_path: Path) -> None:
    config = bilinear(tmp_path, layers=(4, 2), epochs=300)
    found = judged(train(config))
    assert found.verdict == "minimum"
    assert found.reason.endswith("all eigenvalues are positive.")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (plain(epochs=10, lr=1e-6), "ηλ_max = "),
        (plain(epochs=10, lr=1e-6, activation="tanh"), "ηλ_max = "),
        (plain(epochs=10, lr=1e-6, batch_norm=True), "ηλ_max = "),
        (Config(epochs=10, lr=1e-6), "go at most 0.00023 a parameter"),
        (plain(epochs=10, lr=0.0), "ηλ_max = 0,"),
    ],
    ids=str,
)
def test_a_rate_that_is_too_small(config: Config, why: str) -> None:
    found = judged(train(config))
    assert found.verdict == "standing still"
    assert why in found.reason
    assert found.reason.endswith("the rate is too small.")
    assert found.cure.startswith(f"Raise the rate from {config.lr:.2g}: to ")
    assert found.standing.gradient_drop > 0.01 * found.point.loss  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "config", [plain(epochs=8), Config(epochs=8), plain(epochs=8, momentum=0.9)]
)
def test_a_schedule_that_came_to_its_end(config: Config) -> None:
    """The rate is 0 because that was asked for: it is not too small a rate that was chosen."""
    config = replace(config, lr=1e-4)
    found = judged(started(config, lambda w: w, schedule=polynomial(2)))
    assert found.verdict == "standing still"
    assert f"the rate from {config.lr / (1 - config.momentum):.2g} to 0: training" in found.reason
    assert "schedule over more epochs" in found.cure
    # One that ends at a fiftieth of the rate had a rate.
    some = judged(started(config, lambda w: w, schedule=lambda k: 1.0 if k < 2 else 0.02))
    assert "schedule" not in str(some)


@pytest.mark.parametrize(
    ("optimizer", "tells"), [("adam", True), ("rprop", False), ("adadelta", False)]
)
def test_what_a_rate_is_depends_on_the_optimizer(optimizer: str, tells: bool) -> None:
    """The first step of Rprop is its rate alone; the way that Adam made is known from it."""
    still = np.full(4, 2.3)
    run = train(Config(optimizer=optimizer, epochs=4, lr=1e-9))
    found = judged(replace(run, history=replace(run.history, train_loss=still)))
    assert found.verdict == "standing still"
    assert ("go at most" in found.reason) is tells
    assert ("does not tell how far" in found.reason) is not tells


@pytest.mark.parametrize(("batch_size", "whole"), [(1436, False), (1437, True), (5000, True)])
def test_batches_of_all_rows_have_no_noise(batch_size: int, whole: bool) -> None:
    run = train(plain(epochs=4, lr=0.02, batch_size=batch_size))
    found = judged(replace(run, history=replace(run.history, train_loss=np.full(4, 2.3))))
    assert found.verdict == "standing still"
    assert ("the noise of mini-batches" in found.reason) is not whole


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_makes_the_rate_longer(momentum: float) -> None:
    found = judged(train(plain(epochs=4, lr=1e-6, momentum=momentum)))
    assert found.point is not None
    steady = 1e-6 / (1.0 - momentum)  # of a heavy ball under a constant gradient
    assert_allclose(found.standing.edge, steady * found.point.lambda_max, rtol=1e-6)


def test_the_cure_for_a_small_rate_is_one(tmp_path: Path) -> None:
    slow = judged(train(plain(epochs=4, lr=1e-6)))
    assert slow.point is not None
    run = train(plain(epochs=4, lr=1.0 / slow.point.lambda_max))
    assert run.history.train_loss[-1] < 0.5 * slow.point.loss


@pytest.mark.parametrize(
    "config",
    [
        plain(epochs=3, lr=5.0, activation="tanh"),  # stays up
        plain(epochs=3, lr=1e4, activation="tanh"),
        plain(epochs=3, lr=1e30, activation="tanh"),
        plain(epochs=3, lr=5.0),  # comes down to a plateau, dead
        Config(epochs=3, lr=10.0),
    ],
    ids=str,
)
def test_a_rate_that_is_too_large(config: Config) -> None:
    found = judged(train(config))
    assert found.verdict == "diverged"
    assert "blew up" in found.reason
    assert "slope to follow" not in str(found)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    run = train(plain(epochs=2, lr=1e38, layers=(64, 10)))
    run.params.theta[0] = np.inf
    found = judged(run)
    assert (found.verdict, found.point) == ("diverged", None)
    assert "Training blew up" in write_analysis(run, found, tmp_path).read_text()
    stopped = replace(train(plain(epochs=2)), stopped="diverged")
    assert judged(stopped).verdict == "diverged"


def test_a_tanh_network_that_hangs_at_its_saddle(tmp_path: Path) -> None:
    config = bilinear(tmp_path)
    run = started(config, lambda theta: 1e-12 * theta)
    found = judged(run)
    point, way = found.point, found.standing.escape
    assert point is not None
    assert way is not None
    assert found.verdict == "saddle"
    assert point.gradient_norm < 1e-3
    assert point.lambda_min < -0.1
    assert "Stuck at a saddle point" in write_analysis(run, found, tmp_path).read_text()
    # What it promises is so: gradient descent takes longer than the run did, the step does not.
    needed = way.gradient_steps(config.lr)
    assert needed > 250
    objective = full(config)
    theta = run.params.theta.astype(np.float64)
    assert objective.loss(theta + way.step * way.direction) == way.loss_after
    assert way.actual_drop > 0.1 * way.loss_before
    descent = theta.copy()
    for _ in range(250):
        descent -= config.lr * objective.gradient(descent)
    assert objective.loss(theta) - objective.loss(descent) < 0.01 * way.actual_drop
    for _ in range(int(needed) - 250 + 20):
        descent -= config.lr * objective.gradient(descent)
    assert objective.loss(descent) < way.loss_before - 0.5 * way.actual_drop


def full(config: Config) -> sp.NetworkObjective:
    data = config.load_data()
    x, y = data.x.astype(np.float64), data.y.astype(np.float64)
    return sp.NetworkObjective(config.network(), nn.MeanSquaredError(), x, y, dtype="float64")


def test_a_saddle_that_gradient_descent_leaves_by_itself(tmp_path: Path) -> None:
    config = bilinear(tmp_path, epochs=300)
    found = judged(started(config, lambda theta: 1e-9 * theta))
    assert found.verdict == "descending"
    assert "gets there by itself in about " in found.reason
    assert found.standing.escape is not None
    assert found.standing.escape.gradient_steps(config.lr) < 300


def test_zeros_are_a_saddle_for_any_optimizer() -> None:
    config = Config(layers=(64, 32, 10), epochs=20, batch_norm=False, activation="tanh")
    run = started(config, np.zeros_like)
    found = judged(run)
    assert found.verdict == "saddle"
    assert "the gradient does not get there" in found.reason


def test_a_plateau_without_slope_or_curvature() -> None:
    """Three layers of zeros: the saddle is of third order."""
    config = plain(layers=(64, 64, 32, 10), epochs=20, activation="tanh")
    found = judged(started(config, np.zeros_like))
    assert found.verdict == "degenerate"
    assert found.reason.startswith("Neither slope nor curvature leads on from a loss of 2.30")
    assert "Start again from other weights" in found.cure


def test_no_gradient_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = np.zeros((20, 3), np.float32)
    np.savez(tmp_path / "zeros.npz", x=zeros, y=zeros[:, :1])
    run = train(Config(data=str(tmp_path / "zeros.npz"), layers=(3, 4, 1), epochs=2))
    found = judged(run)
    assert found.initial_gradient_norm == 0.0
    assert found.verdict == "degenerate"
    run.save(tmp_path / "run")
    main_exits(0, "analyze", str(tmp_path / "run"))
    assert "% of what it was" not in capsys.readouterr().out


def main_exits(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert left.value.code == code


def test_the_command_says_diverged_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lr in (("up", 5.0), ("far", 1e38)):
        run = train(plain(epochs=2, lr=lr, activation="tanh"))
        run.save(tmp_path / name)
        main_exits(1, "analyze", str(tmp_path / name), "--samples", "200")
        out = capsys.readouterr().out
        assert "Where training ended: diverged" in out
        assert "slope to follow" not in out
        assert (tmp_path / name / "index.html").is_file()
    main_exits(2, "analyze", str(tmp_path / "up"), "--max-products", "0")
    assert "max_products: expected at least 1, got 0" in capsys.readouterr().err
    main_exits(2, "analyze", str(tmp_path / "up"), "--samples", "1")
    assert "samples: expected at least 2, got 1" in capsys.readouterr().err


def test_the_gate_is_a_thousandth_of_the_initial_gradient() -> None:
    config = plain(epochs=3)
    run = train(config)
    found = judged(run)
    assert found.point is not None
    data = config.load_data()
    rows = np.sort(np.random.default_rng(0).choice(len(data.x), 400, replace=False))

    def norm_of_gradient(theta: Array) -> float:
        leaf = torch.from_numpy(theta.astype(np.float64)).requires_grad_()
        h, at = torch.from_numpy(data.x[rows].astype(np.float64)), 0
        for i, (a, b) in enumerate([(64, 64), (64, 32), (32, 10)]):
            weight, at = leaf[at : at + a * b].view(b, a), at + a * b
            h, at = h @ weight.T + leaf[at : at + b], at + b
            h = torch.relu(h) if i < 2 else h
        torch.nn.functional.cross_entropy(h, torch.from_numpy(data.y[rows]).long()).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return float(leaf.grad.norm())

    start = norm_of_gradient(config.network().init(config.seed).theta)
    assert_allclose(found.initial_gradient_norm, start, rtol=1e-10)
    assert_allclose(found.point.gradient_tolerance, 1e-3 * start, rtol=1e-10)
    assert_allclose(found.point.gradient_norm, norm_of_gradient(run.params.theta), rtol=1e-10)
    assert found.point.kind == "not critical"
    with pytest.raises(ValueError, match=r"^k: expected at least 1, got 0"):
        analyze(run, k=0)
    with pytest.raises(TypeError, match=r"^samples: expected an int, got float"):
        analyze(run, samples=100.0)  # type: ignore[arg-type]


# The parts.


def test_the_last_tenth() -> None:
    falling = 0.9 ** (np.arange(20.0) / 2.0)  # a tenth of 20 epochs is two of them
    assert_allclose(last_tenth(np.ones(5), falling), 0.1, rtol=1e-12)
    assert last_tenth(np.ones(1000), np.ones(20)) == 0.0
    assert last_tenth(np.ones(1000), np.arange(1.0, 21.0)) < 0.0
    assert_allclose(last_tenth(np.ones(5), np.array([2.0, 1.0])), 0.1)  # half of the run halves it
    assert_allclose(last_tenth(np.repeat([2.0, 1.0], 10), np.ones(1)), 0.1)  # one epoch: updates
    assert math.isnan(last_tenth(np.ones(9), np.ones(1)))
    assert last_tenth(np.zeros(10), np.zeros(3)) == 0.0
    assert_allclose(last_tenth(np.ones(5), np.r_[np.ones(19), 0.0]), 0.5)  # no logarithm of 0


@pytest.mark.parametrize("epochs", [10, 20, 50])
def test_scatter_is_no_fall_and_a_fall_shows_through_it(epochs: int) -> None:
    rng = np.random.default_rng(0)
    noise = 1.0 + 0.02 * rng.standard_normal((300, epochs))
    still, falling = np.full(epochs, 1.1), 0.2 + np.exp(-np.linspace(0.0, 3.0, epochs))
    one = np.ones(1)
    assert np.mean([last_tenth(one, still * n) >= 0.01 for n in noise]) < 0.06  # 2σ, one-sided
    assert all(last_tenth(one, falling * n) >= 0.01 for n in noise[:, ::-1] ** 0.5)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_dead_network_that_rattles_is_not_on_its_way(seed: int, tmp_path: Path) -> None:
    """Of so deep a network, at such a rate, only the last biases move: the loss is their noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6))
    np.savez(tmp_path / "a.npz", x=x, y=(x @ rng.standard_normal((6, 3))).argmax(1))
    run = train(
        Config(
            data=str(tmp_path / "a.npz"), layers=(6, *(8,) * 6, 3), epochs=20, lr=3.0,
            optimizer="sgd", batch_size=32, batch_norm=False, seed=seed,
        )
    )  # fmt: skip
    last = run.history.train_loss[-2:].mean(), run.history.train_loss[-4:-2].mean()
    assert last[0] < 0.99 * last[1]  # by chance it went down
    assert analyze(run).verdict == "standing still"


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_drop_along_the_gradient(scale: float) -> None:
    surface = Quadratic(scale * np.array([1.0, 3.0]), rng=0)
    theta = surface.eigenvectors @ np.array([1.0, 1.0])
    g, H = surface.gradient(theta), surface.matrix
    assert_allclose(gradient_step(surface, theta)[0], 0.5 * (g @ g) ** 2 / (g @ H @ g), rtol=1e-9)
    assert gradient_step(surface, np.zeros(2))[0] == 0.0


def hanging(**changes: Any) -> Training:
    """A gradient descent that stood still for 600 steps of 0.1."""
    settings: dict[str, Any] = {
        "updates": 600, "fall": 0.0, "rate": 0.1, "plain": True, "initial_loss": 1.0,
        "initial_gradient_norm": 1.0,
    }  # fmt: skip
    return Training(**{**settings, **changes})


def stand(surface: Any, theta: Array, training: Training) -> Standing:
    return judge(surface, theta, sp.classify(surface, theta), training)


def test_what_makes_a_saddle() -> None:
    surface, near = FactoredLinear(2), np.array([1e-60, 1.1e-60])  # (1 − w₁w₂)²
    assert stand(surface, near, hanging()).verdict == "saddle"
    # ln(1 + s|λ|/|uᵀg|) / ln(1 + η|λ|) = 140/0.18 = 763 updates to leave.
    assert stand(surface, near, hanging(updates=740)).verdict == "saddle"
    assert stand(surface, near, hanging(updates=790)).verdict == "descending"
    # For others, steps along −g go as far as they like: here it points the same way.
    assert stand(surface, near, hanging(updates=740, plain=False)).verdict == "standing still"
    # A loss that falls, or a drop of 1 that is nothing beside the loss, is no hanging.
    assert stand(surface, near, hanging(fall=0.02)).verdict == "descending"
    assert stand(surface, near, hanging(fall=math.nan)).verdict == "descending"
    assert stand(surface, near, hanging(initial_loss=1001.0)).verdict == "degenerate"
    # On a slope as steep as at the start the saddle is not what holds it.
    steep = stand(surface, np.array([0.1, 0.1]), hanging(initial_gradient_norm=0.2))
    assert steep.verdict == "standing still"


def test_a_slope_that_brings_more_than_the_curvature_is_no_saddle() -> None:
    surface, theta = FactoredLinear(2), np.array([0.5, 0.5])
    # ‖g‖ = 1.06, λ_min = −1/2: over the s = 0.71 to the minimum ‖g‖s is 0.75 and ½|λ|s² 0.13.
    found = stand(surface, theta, hanging(initial_gradient_norm=20.0, rate=1e-9))
    assert found.verdict == "standing still"
    assert "the rate is too small" in found.reason


@pytest.mark.parametrize(
    ("loss", "slope", "changes", "word"),
    [
        (10.5, 1.0, {}, "The loss went from 1 up to 10.5"),
        (1.0, 1.0, {"highest_loss": 11.0}, "up to 11, and is 1"),
        (1.0, 1.1e3, {}, "The gradient norm went from 1 up to"),
        (math.inf, 1.0, {}, "not finite"),
        (1.0, math.nan, {}, "not finite"),
        (1.0, 1.0, {"diverged": True}, "not finite"),
    ],
)
def test_what_counts_as_blown_up(
    loss: float, slope: float, changes: dict[str, Any], word: str
) -> None:
    found = diverged(hanging(**changes), loss, slope)
    assert found is not None
    assert found.verdict == "diverged"
    assert word in found.reason


def test_what_does_not_count_as_blown_up() -> None:
    assert diverged(hanging(highest_loss=11.0), 0.8, 1.0) is None  # it came back
    assert diverged(hanging(initial_gradient_norm=0.0), 1.0, 1e9) is None  # of nothing
    assert diverged(hanging(), 9.5, 9e2) is None


def test_a_rate_beyond_the_limit_that_still_hangs() -> None:
    surface = Quadratic([1.0, 100.0], rng=0)
    training = hanging(initial_loss=100.0, initial_gradient_norm=1e3)
    found = stand(surface, surface.eigenvectors @ np.ones(2), training)
    assert found.verdict == "standing still"
    assert found.edge == pytest.approx(10.0)
    assert found.reason.endswith("the rate is too large.")
    assert found.cure == "Lower the rate from 0.1: to 0.01, 1/λ_max."


def on_a_slope(**changes: Any) -> Standing:
    """In a narrow valley, whose loss a step along −g lowers by a half and more."""
    surface = Quadratic([1.0, 4.0], rng=0)
    return stand(surface, surface.eigenvectors @ np.ones(2), hanging(**changes))


ADAPTIVE: dict[str, Any] = {"plain": False, "rate_is_step": False}


@pytest.mark.parametrize(
    ("changes", "why", "cure"),
    [
        # Whole batches have no noise: below 1/λ_max the rate is what is left.
        ({"whole_batches": True}, "flat ones hold it.", "Raise the rate from 0.1: to 0.25, 1/"),
        ({"whole_batches": True, "rate": 0.4}, "flat ones hold it.", "Add momentum, 0.9 say, or "),
        ({"whole_batches": True, "plain": False}, "hold it.", "Compare a quarter of the rate"),
        ({"whole_batches": True, **ADAPTIVE}, "does not tell", "Compare the optimizer"),
        ({}, "the noise of mini-batches", "Compare a quarter of the rate 0.1, and batches"),
        # The rate of Rprop is its first step alone, and says nothing of the way made.
        ({"rate": 1e-9, **ADAPTIVE}, "does not tell", "Compare the optimizer's default rate, bat"),
        # 600 updates are to go as far as the step along −g does, 0.78 a parameter.
        ({"rate": 1e-9, "plain": False}, "too small.", "Raise the rate from 1e-09: to 0.0013."),
        ({"rate": 0.0}, "rate is too small.", "Raise the rate from 0: to 0.25, 1/λ"),
        ({"rate": 0.0, "plain": False}, "rate is too small.", "Raise the rate from 0: to 0.0013."),
        ({"rate": 0.0, **ADAPTIVE}, "rate is too small.", "Raise the rate from 0: to the o"),
        # Momentum of 1.
        ({"rate": math.inf}, "a momentum of 1 or more, past gradients", "Lower the momentum"),
    ],
)  # fmt: skip
def test_what_holds_it_on_a_slope(changes: dict[str, Any], why: str, cure: str) -> None:
    found = on_a_slope(**{"initial_loss": 2.5, "initial_gradient_norm": 1e3, **changes})
    assert found.verdict == "standing still"
    assert why in found.reason
    assert found.cure.startswith(cure)
    assert "inf" not in found.reason + found.cure


def test_momentum_of_1_is_what_blew_up() -> None:
    found = diverged(hanging(rate=math.inf), math.nan, 1.0)
    assert found is not None
    assert found.cure.endswith("Lower the momentum below 1: to 0.9, say.")
    assert "inf" not in found.cure
    # And no model says that it leaves a saddle by itself, at once.
    near = np.array([1e-60, 1.1e-60])
    assert (
        "gets there by itself" not in stand(FactoredLinear(2), near, hanging(rate=math.inf)).reason
    )
    run = train(plain(epochs=3, momentum=1.0, lr=1e-3))
    assert "inf" not in str(judged(run))


@pytest.mark.parametrize("initial_loss", [1.0, 1e-3])
def test_a_floor_with_null_directions_is_not_to_be_left(initial_loss: float) -> None:
    """A convex problem at its end: softmax has a direction in which nothing changes."""
    flat = Quadratic([0.0, 1.0, 2.0], rng=0)
    found = stand(flat, np.zeros(3), hanging(initial_loss=initial_loss))
    assert found.verdict == "degenerate"
    assert "the loss is at a floor" in found.cure
    assert "tart" not in found.cure


def test_a_curvature_that_never_ends_has_no_stationarity_and_is_left() -> None:
    found = stand(Saddle(), np.zeros(2), hanging())  # the loss falls without bound
    assert found.verdict != "minimum"


def test_undecided_says_what_would_decide() -> None:
    surface = Quadratic(np.r_[np.logspace(-2, 0, 600)], rng=0)
    point = sp.classify(surface, np.zeros(600), max_products=6)
    assert point.kind == "undecided"
    found = judge(surface, np.zeros(600), point, hanging())
    assert found.verdict == "undecided"
    assert "max_products" in found.cure


def test_a_rate_too_small_for_far_targets_is_told_by_the_step_that_would_help(
    tmp_path: Path,
) -> None:
    """The loss falls at every epoch, by nothing: the parameters' own size says nothing here."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 6))
    np.savez(tmp_path / "far.npz", x=x, y=1e6 * x @ rng.standard_normal((6, 3)))
    config = Config(
        data=str(tmp_path / "far.npz"), layers=(6, 16, 3), epochs=20, lr=1e-2,
        batch_norm=False, batch_size=32,
    )  # fmt: skip
    found = analyze(train(config))
    assert found.verdict == "standing still"
    assert "the rate is too small" in found.reason
    raised = float(re.search(r"Raise the rate from 0.01: to ([0-9.e+]+)\.", found.cure)[1])
    better = train(replace(config, lr=raised))
    assert better.history.train_loss[-1] < 0.9 * better.history.train_loss[0]
