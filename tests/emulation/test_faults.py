"""The emulated device sees what kernels do wrong: each fault of faults.cu, by its name."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

BUILT = os.environ.get("SADDLEPOINT_EMULATED")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(BUILT is None, reason="of the emulated device alone"),
]

Run = Callable[..., NDArray[np.float32]]


@pytest.fixture
def run() -> Run:
    """Launches a kernel on an array of the device, frees that, and gives back what was in it."""
    assert BUILT is not None
    faults = ctypes.CDLL(str(Path(BUILT) / "saddlepoint" / "libfaults.so"))
    faults.kernel.restype = ctypes.c_void_p
    faults.launch.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int] * 3

    def call(
        name: str, n: int = 0, size: int = 256, width: int = 64, shared: int = 0
    ) -> NDArray[np.float32]:
        x = ctypes.c_void_p()
        faults.cudaMalloc(ctypes.byref(x), ctypes.c_size_t(size))
        call.status = faults.launch(faults.kernel(name.encode()), x, n, width, shared)
        host = np.empty(size // 4, np.float32)
        faults.cudaMemcpy(host.ctypes.data_as(ctypes.c_void_p), x, ctypes.c_size_t(host.nbytes), 2)
        faults.cudaFree(x)
        return host

    return call


# name, arguments: what is told
FAULTS = [
    ("past_the_end", {"n": 64}, r"thread \(\d+, 0, 0\): no access to byte \d+ of.*faults.cu:11"),
    ("past_the_end", {"n": -1200}, "no access to .*faults.cu"),
    ("beside", {"n": 250, "size": 250}, "written beside an array of 250 bytes"),
    ("beside", {"n": -1}, "written beside an array of 256 bytes"),
    ("off_its_address", {}, "no such number.*off_its_address"),
    ("past_a_shared_array", {"n": 1}, "out of bounds"),
    ("past_dynamic_memory", {"n": 1, "shared": 256}, "byte 256 of an array of 256"),
    ("another_barrier", {}, r"32 \(from 0\) in __syncthreads at faults.cu:\d+; 32 \(from 32\)"),
    ("lanes_that_left", {"width": 32}, r"20 \(from 0\) in __shfl_down.*12 \(from 20\) have ended"),
    ("lanes_elsewhere", {"width": 32}, r"16 \(from 1\) in __shfl_xor.*16 \(from 0\) in __sync"),
    ("lane_not_in_the_mask", {}, "not in its mask"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), FAULTS)
def test_a_fault_is_told(run: Run, name: str, arguments: dict[str, int], message: str) -> None:
    from emulated import fault

    run(name, **arguments)
    text = fault()
    assert re.search(message, text, re.DOTALL), text
    run("unwritten", 64)
    assert not fault()  # the device goes on


def test_what_was_not_written_is_nan(run: Run) -> None:
    assert np.isnan(run("unwritten", 5)).sum() == 59
    for name in ("no_barrier", "before_it_is_copied"):
        size = 256 if name == "no_barrier" else 1024
        assert np.isnan(run(name, size=size)[4:68]).any(), name


def test_no_order_of_threads_is_kept(run: Run) -> None:
    assert {float(run("last_of_two")[0]) for _ in range(40)} == {3.0, 40.0}


@pytest.mark.parametrize("arguments", [{"width": 1025}, {"width": 0}, {"shared": 300_000}])
def test_a_launch_that_the_device_has_no_room_for(run: Run, arguments: dict[str, int]) -> None:
    run("unwritten", 64, **arguments)
    assert run.status == 9  # cudaErrorInvalidConfiguration
