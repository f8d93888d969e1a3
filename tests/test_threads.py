"""Objects that several threads use at once: right numbers, or a clear error, and no crash.

`.ci/sanitize thread` runs this file under ThreadSanitizer, which tells of races that gave right
numbers by luck.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import saddlepoint as sp
from saddlepoint import nn, norm, optim

THREADS = 3


@pytest.fixture(params=[1, 2], ids=["alone", "teams"])
def members(request: pytest.FixtureRequest) -> Iterator[int]:
    before = sp.num_threads()
    sp.set_num_threads(request.param)
    yield request.param
    sp.set_num_threads(before)


@contextmanager
def meanwhile(do: Callable[[], Any]) -> Iterator[None]:
    """Has another thread do something again and again."""
    over = False

    def loop() -> None:
        while not over:
            do()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(loop)
        try:
            yield
        finally:
            over = True
        other.result()


def same_together(do: Callable[[int], Any], count: int) -> None:
    """What each call gives alone, and beside others."""
    alone = [do(i) for i in range(count)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(do, range(count)))
    for a, b in zip(alone, together, strict=True):
        assert_array_equal(a, b)


@pytest.mark.usefixtures("members")
def test_an_operator_and_an_objective() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 20)).astype(np.float32)
    y = rng.integers(0, 5, 300)
    net = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm(32), nn.Tanh(), nn.Linear(32, 5))
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y)
    theta = net.init(0).theta
    H = sp.hessian(objective, theta)
    directions = rng.standard_normal((12, objective.size)).astype(np.float32)
    same_together(lambda i: H @ directions[i], 12)
    same_together(lambda i: objective.gradient(theta * (1 + i / 8)), 8)
    assert H.products == 24


@pytest.mark.usefixtures("members")
def test_an_input_and_what_a_forward_pass_saved() -> None:
    x = np.random.default_rng(1).standard_normal((2048, 48)).astype(np.float32)
    vector = sp.Vector.from_numpy(x)
    y, saved = norm.batch_norm(vector, activation="relu")

    def both(i: int) -> Any:
        if i % 2:
            return norm.batch_norm(vector, activation="relu")[0].numpy()
        return norm.batch_norm_backward(y, saved)[0].numpy()

    same_together(both, 12)


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize("name", ["Adam", "LAMB", "Adafactor", "Muon"])
def test_an_optimizer(name: str) -> None:
    """Constant gradients, so that the order of the steps makes no difference."""

    def run(threads: int) -> Any:
        rng = np.random.default_rng(2)
        params = [rng.standard_normal(s).astype(np.float32) for s in ((300, 200), (100, 40))]
        grads = [rng.standard_normal(p.shape).astype(np.float32) for p in params]
        optimizer = getattr(optim, name)(params, lr=1e-3, ema_decay=0.9, max_norm=1.0)

        def step(_: int) -> None:
            optimizer.step(grads)
            assert optimizer.steps <= 12
            assert optimizer.grad_norm > 0
            optimizer.state_dict()

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(step, range(12)))
        return np.concatenate([p.ravel() for p in params])

    assert_array_equal(run(THREADS), run(1))


def test_the_number_of_threads_set_meanwhile() -> None:
    """Memory by member is for as many members as come."""
    x = np.random.default_rng(2).standard_normal((4096, 96)).astype(np.float32)
    before, numbers = sp.num_threads(), iter(range(1 << 60))
    wanted = norm.batch_norm(x)[0]
    try:
        with meanwhile(lambda: sp.set_num_threads(1 + next(numbers) % 8)):
            for _ in range(40):
                assert_array_equal(norm.batch_norm(x)[0], wanted)
    finally:
        sp.set_num_threads(before)


MEDDLED = """
import sys, threading, time
import torch
import saddlepoint.torch as st

torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
size = int(sys.argv[1])
params = [torch.nn.Parameter(torch.ones(size)) for _ in range(3)]
copies = [torch.zeros(size, dtype=torch.bfloat16) for _ in params]
optimizer = st.optim.Adam(params, ema_decay=0.9, copies=copies, zero_grads=True)

gradients = []

def new(t):
    t.data = torch.ones(size, dtype=t.dtype)

def states():
    for entry in list(optimizer.state.values()):
        for value in list(entry.values()):
            value.data = value.clone()

def each(do):
    return lambda: [do(p) for p in params]

ways = {
    "state cleared": lambda: optimizer.state.clear(),
    "entries set": each(lambda p: optimizer.state.update({p: {}})),
    "entries cleared": each(lambda p: optimizer.state[p].clear()),
    "memory of states": states,
    "memory of copies": lambda: new(copies[0]),
    "memory of parameters": each(new),
    "memory of gradients": lambda: [new(g) for g in list(gradients)],  # nobody else reads p.grad
    "loaded": lambda: optimizer.load_state_dict(optimizer.state_dict()),
}
for name, way in ways.items():
    over = False

    def meddle():
        while not over:
            way()

    other = threading.Thread(target=meddle, daemon=True)
    stepped = refused = 0
    other.start()
    end = time.monotonic() + 0.4
    while time.monotonic() < end or stepped + refused < 5:
        gradients = [torch.ones(size) for p in params]
        for p, gradient in zip(params, gradients):
            p.grad = gradient
        try:
            optimizer.step()
            stepped += 1
        except ValueError as error:
            assert "expected memory that stays where it is during a step" in str(error), error
            refused += 1
    over = True
    other.join()
    print(name, stepped, refused, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_what_a_step_works_on_is_replaced_meanwhile(size: int) -> None:
    """By its owner, who holds no lock: the memory stays until the step is over.

    Gradients themselves are not replaced: where one thread sets ``p.grad`` that another reads,
    PyTorch 2.13 at times ends the process, without an optimizer too.
    """
    done = subprocess.run(
        [sys.executable, "-c", MEDDLED, str(size)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
