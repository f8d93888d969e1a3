"""Memory that is not to be had: an error, and nothing half done.

Each case runs in a process whose ``malloc`` fails at one call, at the next one in the next try, and
so on until a step asks for no more memory than it gets.

Not ours, and left out: products so small that OpenBLAS takes its own path for them, which does not
look whether it got its memory (0.3.34 on SkylakeX: `cblas_sgemm` of 40 × 40, `cblas_dgemm` of
90 × 90 matrices end in a segmentation fault); and making a native object, which pybind11 registers
where no exception may pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_optim import NAMES

pytestmark = pytest.mark.slow

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>

static _Thread_local int inside;
static volatile long left = -1;
static volatile int failed;

/* The count-th allocation from now on fails, once; 0: none. */
void fail_after(long count) { failed = 0; left = count > 0 ? count : -1; }
int has_failed(void) { return failed; }

static int now(void) {
    if (inside || left < 0) return 0;
    if (__sync_sub_and_fetch(&left, 1) != 0) return 0;
    left = -1;
    return failed = 1;
}
void* __libc_malloc(size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) { return now() ? NULL : __libc_malloc(n); }
void* aligned_alloc(size_t a, size_t n) { return now() ? NULL : __libc_memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) {
    if (now()) return ENOMEM;
    *p = __libc_memalign(a, n);
    return *p ? 0 : ENOMEM;
}
"""

DRIVER = """
import ctypes, sys
import numpy as np
from saddlepoint import _core, norm, optim

shim = ctypes.CDLL(None)
_core.set_num_threads(2)

def through(make, call, state, twice=True):
    # Failures in turn until none is left; a failed call must leave what `state` gives as it was.
    failures = 0
    for k in range(1, 400):
        made = make()
        if twice:
            call(made)  # what is laid out once
        before = state(made) if twice else True
        shim.fail_after(k)
        try:
            call(made)
            shim_failed = shim.has_failed()
        except MemoryError:
            shim_failed = True
            failures += 1
            shim.fail_after(0)
            assert state(made) == before, f"half done where allocation {k} failed"
        shim.fail_after(0)
        if not shim_failed:
            print("failures", failures)
            return
    raise AssertionError("no end")

rng = np.random.default_rng(0)
"""

STEPS = """
# Products large enough that OpenBLAS does not take its path for small ones.
name, shapes = sys.argv[1], [(320, 192), (192, 320), (192, 256)]

def make():
    params = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    grads = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    return getattr(optim, name)(params, lr=0.01, ema_decay=0.9, max_norm=1.0), grads, params

def state(made):
    optimizer, _, params = made
    saved = optimizer.state_dict()["state"]
    return [p.tobytes() for p in params] + [
        v.tobytes() if hasattr(v, "tobytes") else v for e in saved for v in e.values()
    ]

through(make, lambda made: made[0].step(made[1]), state)
"""

NORMS = """
shape = {"NC": (4096, 512), "NCHW": (32, 64, 28, 28), "NHWC": (16, 64, 56, 56)}[sys.argv[1]]

def make():
    x = rng.standard_normal(shape).astype(np.float32)
    if sys.argv[1] == "NHWC":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    return x, np.zeros(shape[1], np.float32), np.ones(shape[1], np.float32)

def forward(made):
    x, mean, var = made
    return norm.batch_norm(x, running_mean=mean, running_var=var, activation="relu")

through(make, forward, lambda made: [a.tobytes() for a in made[1:]])

def make_both():
    return forward(make())

def backward(made):
    return norm.batch_norm_backward(made[0], made[1])

through(make_both, backward, lambda made: made[0].tobytes())
"""


PRODUCTS = """
import saddlepoint as sp
from saddlepoint import nn

# Wide enough that OpenBLAS does not take its path for small products.
net = nn.Sequential(nn.Linear(320, 256), nn.BatchNorm(256), nn.Tanh(), nn.Linear(256, 192))
x = rng.standard_normal((512, 320)).astype(np.float32)
y = rng.integers(0, 192, 512)
theta = net.init(0).theta
v = rng.standard_normal((theta.size, 2)).astype(np.float32).copy(order="F")
objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y)
right = objective.linearize(theta)
wanted = right.hvp(v).tobytes()

# A product that failed leaves the next one right.
fresh = iter([objective.linearize(theta) for _ in range(60)])
through(lambda: next(fresh), lambda at: at.hvp(v), lambda at: at.hvp(v).tobytes() == wanted, False)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "a C compiler, as the package's build needs one"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return library


def run(shim: Path, script: str, argument: str) -> int:
    """How many failures there were."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER + script, argument],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_made_or_not(shim: Path, name: str) -> None:
    assert run(shim, STEPS, name) > 0


@pytest.mark.parametrize("layout", ["NC", "NCHW", "NHWC"])
def test_a_normalization_is_made_or_not(shim: Path, layout: str) -> None:
    assert run(shim, NORMS, layout) > 0


def test_a_product_is_made_or_not(shim: Path) -> None:
    assert run(shim, PRODUCTS, "") > 0
