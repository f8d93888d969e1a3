"""A plugin of pytest that lends the tests of the CUDA path an emulated device.

`saddlepoint` finds its CUDA build beside that device's runtime, and tensors of a PyTorch without
CUDA can lie on the device: their numbers are in its memory, where PyTorch's own functions work on
them on the CPU. Graphs hold the package's work alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import saddlepoint

BUILT = Path(os.environ["SADDLEPOINT_EMULATED"]) / "saddlepoint"
saddlepoint.__path__.insert(0, str(BUILT))  # before a CUDA build that is installed
runtime = ctypes.CDLL(str(BUILT / "libcublas.so.13"))
runtime.emulation_fault.restype = ctypes.c_char_p
runtime.emulation_holds.argtypes = [ctypes.c_void_p]
runtime.cudaFreeAsync.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

CUDA = torch.device("cuda", 0)


def check(status: int) -> None:
    if status:
        runtime.cudaGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(runtime.cudaGetErrorString(status).decode())


def _exchange() -> Any:
    """PyTorch's functions for others than Python, which say that a tensor is the device's."""
    new, get = ctypes.pythonapi.PyCapsule_New, ctypes.pythonapi.PyCapsule_GetPointer
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name = b"dlpack_exchange_api"
    runtime.emulation_exchange.restype = ctypes.c_void_p
    runtime.emulation_exchange.argtypes = [ctypes.c_void_p]
    return new(
        runtime.emulation_exchange(get(torch.Tensor.__dlpack_c_exchange_api__, name)), name, None
    )


def fault() -> str:
    """The oldest that was not told yet, with the place in the source; empty without one."""
    text = (runtime.emulation_fault() or b"").decode()
    found = re.search(r" \(([^()]*)\+(0x[0-9a-f]+)\)$", text)
    if found is None:
        return text
    library, at = found.groups()
    command = ["addr2line", "-C", "-f", "-i", "-e", library, at]
    place = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text[: found.start()] + "\n" + place


class Emulated(torch.Tensor):
    """A tensor of the emulated device."""

    __dlpack_c_exchange_api__ = _exchange()
    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


captured: list[Any] = []  # what a graph under way will want


def room(shape: Any, strides: Any, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in the device's memory, which nothing was written to."""
    reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    if 0 in shape:
        return torch.empty_strided(shape, strides, dtype=dtype)
    at = ctypes.c_void_p()
    size = reach * dtype.itemsize
    check(runtime.cudaMallocAsync(ctypes.byref(at), ctypes.c_size_t(size), None))
    buffer = (ctypes.c_char * size).from_address(at.value)
    weakref.finalize(buffer, runtime.cudaFreeAsync, at.value, None).atexit = False
    if Emulation.capturing:
        captured.append(buffer)
    return torch.frombuffer(buffer, dtype=dtype).as_strided(shape, strides)


def placed(x: torch.Tensor, filled: bool = True) -> torch.Tensor:
    """A tensor of the device with these numbers; what is in its memory already stays there."""
    if isinstance(x, Emulated) or x.device.type == "meta":
        return x
    if runtime.emulation_holds(x.data_ptr()) or x.grad_fn is not None:
        return x.as_subclass(Emulated)
    dense = torch.empty_like(x)  # in its memory order
    with torch.no_grad():
        there = room(dense.shape, dense.stride(), x.dtype)
        if filled:
            there.copy_(x)
    return there.as_subclass(Emulated).requires_grad_(x.requires_grad)


# Functions that take tensors of both devices.
ACROSS = ("to", "copy_", "__getitem__", "__setitem__")


def is_cuda(x: Any) -> bool:
    return isinstance(x, (str, torch.device)) and torch.device(x).type == "cuda"


class Emulation(TorchFunctionMode):
    """Calls of PyTorch on what lies on the device, or shall."""

    capturing = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = tree_leaves((args, kwargs))
        there = any(isinstance(x, Emulated) for x in given)
        name = getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if name == "cpu":
                return args[0].clone().as_subclass(torch.Tensor) if there else args[0]
            if name == "cuda":
                return placed(args[0])
            plain = (
                isinstance(x, torch.Tensor) and not isinstance(x, Emulated) and x.ndim > 0
                for x in given
            )
            if there and name not in ACROSS and any(plain):
                raise RuntimeError(f"{name}: expected all tensors on one device")
            wanted = [kwargs["device"]] if kwargs.get("device") is not None else []
            if name == "to":
                wanted += [x for x in args[1:] if isinstance(x, (str, torch.device))]
                wanted += [x.device for x in args[1:] if isinstance(x, torch.Tensor)]
            if wanted:
                moved, there = there, is_cuda(wanted[0])
                args, kwargs = tree_map(lambda x: "cpu" if is_cuda(x) else x, (args, kwargs))
                if name == "to" and moved and not there:
                    args = (args[0].clone().as_subclass(torch.Tensor), *args[1:])
            result = func(*args, **kwargs)
            if not there:
                return result
            own = {id(x) for x in given if isinstance(x, torch.Tensor) and name != "to"}
            filled = "empty" not in name
            return tree_map(
                lambda x: (
                    placed(x, filled) if isinstance(x, torch.Tensor) and id(x) not in own else x
                ),
                result,
            )


class Stream:
    """As torch.cuda.Stream."""

    def __init__(self, handle: int | None = None) -> None:
        self.cuda_stream = handle or 0
        if handle is None:
            made = ctypes.c_void_p()
            check(runtime.cudaStreamCreateWithFlags(ctypes.byref(made), 1))
            self.cuda_stream = made.value or 0

    def wait_stream(self, other: Stream) -> None:
        pass

    def synchronize(self) -> None:
        check(runtime.cudaStreamSynchronize(ctypes.c_void_p(self.cuda_stream)))


current = ctypes.c_void_p.in_dll(runtime, "emulation_stream")


def current_stream(device: Any = None) -> Stream:
    return Stream(current.value or 0)


@contextmanager
def stream(s: Stream) -> Iterator[None]:
    before, current.value = current.value, s.cuda_stream
    try:
        yield
    finally:
        current.value = before


def synchronize(device: Any = None) -> None:
    check(runtime.cudaDeviceSynchronize())


class CUDAGraph:
    """As torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.exec = ctypes.c_void_p()
        self.kept: list[Any] = []

    def replay(self) -> None:
        check(runtime.cudaGraphLaunch(self.exec, ctypes.c_void_p(current.value)))


@contextmanager
def graph(g: CUDAGraph) -> Iterator[None]:
    side, made = Stream(), ctypes.c_void_p()
    with stream(side):
        check(runtime.cudaStreamBeginCapture(ctypes.c_void_p(side.cuda_stream), 0))
        Emulation.capturing = True
        try:
            yield
        finally:
            Emulation.capturing = False
            check(
                runtime.cudaStreamEndCapture(ctypes.c_void_p(side.cuda_stream), ctypes.byref(made))
            )
            g.kept, captured[:] = captured[:], []
    check(runtime.cudaGraphInstantiate(ctypes.byref(g.exec), made, ctypes.c_ulonglong(0)))


@pytest.fixture(autouse=True)
def _emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, mine in (
        ("Stream", Stream), ("current_stream", current_stream), ("stream", stream),
        ("synchronize", synchronize), ("CUDAGraph", CUDAGraph), ("graph", graph),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, mine)
    raw = "_cuda_getCurrentRawStream"
    monkeypatch.setattr(torch._C, raw, lambda device: current.value or 0, raising=False)
    with Emulation():
        yield
    # Some faults have no call that could report them: what was written beside an array, say.
    faults = "\n".join(iter(fault, ""))
    assert not faults, faults
