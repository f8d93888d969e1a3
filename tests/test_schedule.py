"""Schedules: values worked out by hand, and PyTorch's schedulers on an optimizer that does nothing.

The lectures' four (constant, 1/k, 1/k², exponential) are in test_optim.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.optim import lr_scheduler

from saddlepoint.optim import schedule

Schedule = schedule.Schedule

SQRT_HALF = math.sqrt(0.5)

# A schedule, and its values at some k.
VALUES: list[tuple[str, Schedule, dict[int, float]]] = [
    ("step", schedule.step(3), {0: 1, 1: 1, 2: 1, 3: 0.1, 5: 0.1, 6: 0.01, 10: 1e-3}),
    ("step-each", schedule.step(1, gamma=0.5), {0: 1, 1: 0.5, 10: 2.0**-10}),
    ("step-up", schedule.step(np.int64(5), gamma=2),  # type: ignore[arg-type]
     {0: 1, 1: 1, 4: 1, 5: 2, 10: 4}),
    ("step-off", schedule.step(2, gamma=0.0), {0: 1, 1: 1, 2: 0, 10: 0}),
    ("cosine", schedule.cosine(4),
     {0: 1, 1: (1 + SQRT_HALF) / 2, 2: 0.5, 3: (1 - SQRT_HALF) / 2, 4: 0, 6: 0.5, 8: 1, 10: 0.5}),
    ("cosine-minimum", schedule.cosine(10, minimum=0.2), {0: 1, 5: 0.6, 10: 0.2, 20: 1}),
    ("warmup", schedule.warmup(10), {0: 0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 1, 11: 1, 1000: 1}),
    ("warmup-start", schedule.warmup(4, start=0.5), {0: 0.5, 1: 0.625, 4: 1, 10: 1}),
    ("warmup-one", schedule.warmup(1, start=0.3), {0: 0.3, 1: 1, 10: 1}),
    # a = 0.3·20 − 1 = 5, and 14 epochs down; (1 + cos(π/5)) / 2 = (5 + √5) / 8.
    ("one-cycle", schedule.one_cycle(20),
     {0: 0.04, 1: 1 - 0.96 * (5 + math.sqrt(5)) / 8, 5: 1, 12: (1 + 4e-6) / 2, 19: 4e-6, 20: 4e-6,
      1000: 4e-6}),
    ("one-cycle-own", schedule.one_cycle(11, start=0.5, end=0.1, rise=5 / 11),
     {0: 0.5, 2: 0.75, 4: 1, 7: 0.55, 10: 0.1, 11: 0.1}),
    ("one-cycle-at-once", schedule.one_cycle(10, end=0.2, rise=0.1), {0: 1, 9: 0.2}),
    ("one-cycle-up", schedule.one_cycle(11, start=0.0, end=0.2, rise=1.0), {0: 0, 5: 0.5, 10: 1,
                                                                            11: 0.2}),
    ("one-cycle-one", schedule.one_cycle(1, end=0.25), {0: 0.25, 1: 0.25}),
    ("polynomial", schedule.polynomial(10), {0: 1, 1: 0.9, 5: 0.5, 9: 0.1, 10: 0, 11: 0}),
    ("polynomial-root", schedule.polynomial(100, power=0.5), {0: 1, 19: 0.9, 64: 0.6, 100: 0}),
    ("polynomial-cube", schedule.polynomial(10, power=3), {0: 1, 1: 0.729, 5: 0.125, 10: 0, 20: 0}),
    ("chained", schedule.chained(schedule.step(2, gamma=0.5), schedule.inverse()),
     {0: 1, 1: 0.5, 2: 0.5 / 3, 10: 0.5**5 / 11}),
    ("chained-one", schedule.chained(schedule.inverse()), {0: 1, 1: 0.5, 10: 1 / 11}),
    ("sequence", schedule.sequence(
        [schedule.warmup(2), schedule.constant(), schedule.inverse()], [2, 5]),
     {0: 0, 1: 0.5, 2: 1, 4: 1, 5: 1, 6: 0.5, 10: 1 / 6}),
    ("sequence-one", schedule.sequence([schedule.inverse()], []), {0: 1, 1: 0.5, 10: 1 / 11}),
]  # fmt: skip


@pytest.mark.parametrize(("rate", "values"), [v[1:] for v in VALUES], ids=[v[0] for v in VALUES])
def test_values(rate: Schedule, values: dict[int, float]) -> None:
    """A few roundings, of numbers of at most 4."""
    assert_allclose([rate(k) for k in values], list(values.values()), rtol=4e-15, atol=2e-16)
    assert all(type(rate(k)) is float for k in values)


@pytest.mark.parametrize(
    ("rate", "total", "rest"),
    [
        # Σ 1/(k + 1)² from n on lies between 1/(n + 1) and 1/n.
        (schedule.inverse_square(), math.pi**2 / 6, 1e-4),
        (schedule.exponential(0.1), 1 / (1 - math.exp(-0.1)), 1e-12),
        (schedule.step(30, gamma=0.5), 30 / (1 - 0.5), 1e-12),
    ],
)
def test_sums_that_are_finite(rate: Schedule, total: float, rest: float) -> None:
    """What the docstrings warn of."""
    assert total - rest <= math.fsum(rate(k) for k in range(10_000)) <= total + 1e-12


@pytest.mark.parametrize(
    "warned",
    [schedule.inverse_square, schedule.exponential, schedule.step],
    ids=lambda f: f.__name__,
)
def test_finite_sums_are_warned_of(warned: Any) -> None:
    assert "Ση is finite" in warned.__doc__
    assert "can stop short" in warned.__doc__


LR = 0.7

Scheduler = Callable[[torch.optim.Optimizer], Any]

# A schedule, PyTorch's scheduler, and how many steps to take: past every end that PyTorch has.
PEERS: list[tuple[str, Schedule, Scheduler, int]] = [
    ("step", schedule.step(7, gamma=0.3), lambda o: lr_scheduler.StepLR(o, 7, 0.3), 40),
    ("step-default", schedule.step(30), lambda o: lr_scheduler.StepLR(o, 30), 100),
    ("cosine", schedule.cosine(45), lambda o: lr_scheduler.CosineAnnealingLR(o, 45), 200),
    ("cosine-minimum", schedule.cosine(10, minimum=0.1),
     lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.1 * LR), 45),
    ("warmup", schedule.warmup(5, start=1 / 3), lambda o: lr_scheduler.LinearLR(o), 20),
    ("warmup-long", schedule.warmup(100, start=0.01),
     lambda o: lr_scheduler.LinearLR(o, 0.01, 1.0, 100), 150),
    ("one-cycle", schedule.one_cycle(100),
     lambda o: lr_scheduler.OneCycleLR(o, LR, 100, cycle_momentum=False), 100),
    ("one-cycle-own", schedule.one_cycle(17, start=1 / 10, end=1 / 1000, rise=0.41),
     lambda o: lr_scheduler.OneCycleLR(
         o, LR, 17, pct_start=0.41, div_factor=10.0, final_div_factor=100.0, cycle_momentum=False
     ), 17),
    # a < 0: PyTorch is on its way down at k = 0 already.
    ("one-cycle-down", schedule.one_cycle(9, rise=0.05),
     lambda o: lr_scheduler.OneCycleLR(o, LR, 9, pct_start=0.05, cycle_momentum=False), 9),
    ("polynomial", schedule.polynomial(30), lambda o: lr_scheduler.PolynomialLR(o, 30), 40),
    ("polynomial-power", schedule.polynomial(30, power=2.5),
     lambda o: lr_scheduler.PolynomialLR(o, 30, power=2.5), 40),
    ("chained",
     schedule.chained(schedule.warmup(8, 0.1), schedule.step(5, 0.5), schedule.exponential(0.02)),
     lambda o: lr_scheduler.ChainedScheduler([
         lr_scheduler.LinearLR(o, 0.1, 1.0, 8),
         lr_scheduler.StepLR(o, 5, 0.5),
         lr_scheduler.ExponentialLR(o, math.exp(-0.02)),
     ]), 40),
    ("sequence",
     schedule.sequence(
         [schedule.warmup(5, 0.2), schedule.cosine(20, 0.05), schedule.step(4, 0.5)], [5, 25]),
     lambda o: lr_scheduler.SequentialLR(o, [
         lr_scheduler.LinearLR(o, 0.2, 1.0, 5),
         lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.05 * LR),
         lr_scheduler.StepLR(o, 4, 0.5),
     ], [5, 25]), 60),
    # What the module's first lines promise.
    ("lambda", schedule.inverse(), lambda o: lr_scheduler.LambdaLR(o, schedule.inverse()), 20),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rate", "scheduler", "steps"), [p[1:] for p in PEERS], ids=[p[0] for p in PEERS]
)
def test_as_pytorch(rate: Schedule, scheduler: Scheduler, steps: int) -> None:
    """Within 1e-12 of the first rate; PyTorch multiplies a ratio a step, we do not."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    theirs = scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert_allclose([LR * rate(k) for k in range(steps)], rates, rtol=0, atol=1e-12 * LR)


REFUSED: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("size", lambda: schedule.step(0), ValueError, "size: expected at least 1, got 0"),
    ("size-kind", lambda: schedule.step(2.5), TypeError,  # type: ignore[arg-type]
     "size: expected an int, got float"),
    ("gamma", lambda: schedule.step(3, -0.1), ValueError,
     "gamma: expected at least 0 and finite, got -0.1"),
    ("gamma-nan", lambda: schedule.step(3, math.nan), ValueError,
     "gamma: expected at least 0 and finite, got nan"),
    ("total", lambda: schedule.cosine(-1), ValueError, "total: expected at least 1, got -1"),
    ("minimum", lambda: schedule.cosine(5, 1.5), ValueError,
     "minimum: expected within [0, 1], got 1.5"),
    ("steps", lambda: schedule.warmup(0), ValueError, "steps: expected at least 1, got 0"),
    ("start", lambda: schedule.warmup(5, math.nan), ValueError,
     "start: expected within [0, 1], got nan"),
    ("one-cycle-total", lambda: schedule.one_cycle(0), ValueError,
     "total: expected at least 1, got 0"),
    ("one-cycle-start", lambda: schedule.one_cycle(5, start=25.0), ValueError,
     "start: expected within [0, 1], got 25.0"),
    ("one-cycle-end", lambda: schedule.one_cycle(5, end=-1e-3), ValueError,
     "end: expected within [0, 1], got -0.001"),
    ("rise", lambda: schedule.one_cycle(5, rise=30), ValueError,
     "rise: expected within [0, 1], got 30"),
    ("polynomial-total", lambda: schedule.polynomial(0), ValueError,
     "total: expected at least 1, got 0"),
    ("power", lambda: schedule.polynomial(5, power=0.0), ValueError,
     "power: expected above 0 and finite, got 0.0"),
    ("chained", lambda: schedule.chained(), ValueError, "schedules: expected at least 1, got 0"),
    ("sequence", lambda: schedule.sequence([schedule.constant()], [3]), ValueError,
     "schedules: expected 2, one more than milestones, got 1"),
    ("milestones", lambda: schedule.sequence([schedule.constant()] * 3, [3, 3]), ValueError,
     "milestones: expected increasing numbers above 0, got (3, 3)"),
    ("milestone", lambda: schedule.sequence([schedule.constant()] * 2, [0]), ValueError,
     "milestones: expected increasing numbers above 0, got (0,)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_refusals(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message
