"""The CPU extension; `_cuda` has the same classes and functions for its device."""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .norm import Noise, Saved

class _Array(Protocol):
    """NumPy's, a `saddlepoint.Vector`, or a tensor: what bindings/view.hpp looks at."""

    def __dlpack__(self) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

_Level: TypeAlias = Literal["value", "gradient", "product"]
_Stage: TypeAlias = Literal["all", "sums", "more_sums", "apply"]

version: str
activations: list[str]
rules: dict[str, tuple[int, list[str]]]

def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def blas() -> str: ...
def dot(x: _Array, y: _Array) -> float: ...
def axpy(a: float, x: _Array, y: _Array) -> None: ...
def scale(a: float, x: _Array) -> None: ...

class Buffer:
    def __init__(self, nbytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def copy_from(self, x: NDArray[np.generic], offset: int = 0) -> None: ...
    def copy_to(self, out: NDArray[np.generic], offset: int) -> None: ...
    def copy(self, offset: int, nbytes: int) -> Buffer: ...
    def dlpack(
        self,
        offset: int,
        shape: list[int],
        strides: list[int],
        code: int,
        bits: int,
        versioned: bool,
        stream: int | None = None,
    ) -> object: ...
    def dlpack_device(self) -> tuple[int, int]: ...

class Update:
    def __init__(
        self, params: Sequence[_Array], rules: list[str], rows: list[int], ids: list[int]
    ) -> None: ...
    @property
    def all_stepped(self) -> bool: ...
    def bind(
        self,
        i: int,
        states: Sequence[_Array],
        ema: _Array | None = None,
        copy: _Array | None = None,
        remainder: _Array | None = None,
        clock: Sequence[_Array] = (),
    ) -> None: ...
    def clock(self, i: int) -> tuple[int, list[float]]: ...
    def dense(self, i: int) -> tuple[tuple[int, ...], tuple[int, ...], str]: ...
    def holds(self, lists: list[list[_Array]]) -> bool: ...
    @property
    def norm(self) -> float: ...
    def run(
        self,
        grads: Sequence[_Array | None] | None,
        hyper: list[list[float]],
        unscale: float = 1.0,
        max_norm: float | None = None,
        check: bool = False,
        zero: bool = False,
        ema_weight: float = 0.0,
        seed: int | None = None,
        rates: Sequence[_Array | None] = (),
        scale: _Array | None = None,
        found_inf: _Array | None = None,
        stream: int | None = None,
        lent: bool = True,
    ) -> list[int]: ...
    def set_clock(self, i: int, steps: int, carry: list[float]) -> None: ...
    @property
    def skipped(self) -> bool: ...
    def stepped(self) -> list[int]: ...

class Scratch:
    def __init__(self) -> None: ...

class Pass_float32:
    def __init__(
        self,
        spec: dict[str, object],
        rows: int,
        level: _Level,
        frozen: bool,
        input_gradient: bool = False,
        scratch: Scratch | None = None,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def tangent_nbytes(self, directions: int) -> int: ...
    def evaluate(
        self,
        x: _Array,
        y: _Array | None,
        indices: _Array | None,
        theta: _Array,
        buffers: _Array | None,
        update_buffers: bool,
        weight: float,
        gradient: _Array | None,
        accumulate: bool,
    ) -> None: ...
    def release(self) -> None: ...
    def loss(self) -> float: ...
    def output(self, out: _Array) -> None: ...
    def product(self, v: _Array, out: _Array, accumulate: bool) -> None: ...
    def backward(self, dy: _Array, gradient: _Array, dx: _Array) -> None: ...
    def forward_tangent(self, v: _Array, xt: _Array, yt: _Array) -> None: ...
    def backward_tangent(self, dyt: _Array, out: _Array, dxt: _Array) -> None: ...

class Pass_float64(Pass_float32): ...

batch_norm_activations: dict[str, bool]

def batch_norm_sizes(saved: Saved) -> tuple[int, int]: ...
def batch_norm_moments(x: _Array, axis: int, out: _Array) -> None: ...
def batch_norm_forward(
    saved: Saved,
    *,
    out: _Array,
    residual: _Array | None = None,
    given: bool = False,
    eps: float = 0.0,
    running_mean: _Array | None = None,
    running_var: _Array | None = None,
    momentum: float | None = None,
    seen: float = 0.0,
    renorm: tuple[float, float] | None = None,
    noise: Noise | None = None,
) -> None: ...
def batch_norm_backward(
    saved: Saved,
    *,
    dy: _Array,
    dx: _Array | None = None,
    dresidual: _Array | None = None,
    dweight: _Array | None = None,
    dbias: _Array | None = None,
    sums: _Array | None = None,
    stage: _Stage = "all",
) -> None: ...
def batch_norm_tangent(
    saved: Saved,
    *,
    x_tangent: _Array | None = None,
    weight_tangent: _Array | None = None,
    bias_tangent: _Array | None = None,
    residual_tangent: _Array | None = None,
    y_tangent: _Array | None = None,
    sums: _Array | None = None,
    stage: _Stage = "all",
) -> None: ...
def batch_norm_second_tangent(
    saved: Saved,
    *,
    x_tangent: _Array | None = None,
    weight_tangent: _Array | None = None,
    bias_tangent: _Array | None = None,
    residual_tangent: _Array | None = None,
    x_tangent2: _Array | None = None,
    weight_tangent2: _Array | None = None,
    bias_tangent2: _Array | None = None,
    residual_tangent2: _Array | None = None,
    y_tangent2: _Array | None = None,
    sums: _Array | None = None,
    stage: _Stage = "all",
) -> None: ...
def batch_norm_second(
    saved: Saved,
    *,
    x_tangent: _Array | None = None,
    weight_tangent: _Array | None = None,
    bias_tangent: _Array | None = None,
    residual_tangent: _Array | None = None,
    dy: _Array,
    dy_tangent: _Array | None = None,
    dx_tangent: _Array | None = None,
    dresidual_tangent: _Array | None = None,
    y_tangent: _Array | None = None,
    dweight_tangent: _Array | None = None,
    dbias_tangent: _Array | None = None,
    sums: _Array | None = None,
    own: _Array | None = None,
    stage: _Stage = "all",
) -> None: ...
