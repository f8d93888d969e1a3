"""The CPU extension; `_cuda` has the same classes and functions for its device."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from .kinds import ArrayLike
from .norm import Noise, Saved

_Stage: TypeAlias = Literal["all", "sums", "more_sums", "apply"]

version: str
activations: list[str]
rules: dict[str, tuple[int, list[str]]]

def num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def blas() -> str: ...
def dot(x: ArrayLike, y: ArrayLike) -> float: ...
def axpy(a: float, x: ArrayLike, y: ArrayLike) -> None: ...
def scale(a: float, x: ArrayLike) -> None: ...

class Buffer:
    def __init__(self, nbytes: int) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def copy_from(self, x: Any, offset: int = 0) -> None: ...
    def copy_to(self, out: Any, offset: int) -> None: ...
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
    ) -> Any: ...
    def dlpack_device(self) -> tuple[int, int]: ...

class Update:
    def __init__(self, params: Any, rules: list[str], rows: list[int], ids: list[int]) -> None: ...
    @property
    def all_stepped(self) -> bool: ...
    def bind(
        self,
        i: int,
        states: Any,
        ema: Any = None,
        copy: Any = None,
        remainder: Any = None,
        clock: Sequence[Any] = (),
    ) -> None: ...
    def clock(self, i: int) -> tuple[int, list[float]]: ...
    def dense(self, i: int) -> tuple[tuple[int, ...], tuple[int, ...], str]: ...
    def holds(self, lists: list[list[Any]]) -> bool: ...
    @property
    def norm(self) -> float: ...
    def run(
        self,
        grads: Any,
        hyper: list[list[float]],
        unscale: float = 1.0,
        max_norm: float | None = None,
        check: bool = False,
        zero: bool = False,
        ema_weight: float = 0.0,
        seed: int | None = None,
        rates: Any = (),
        scale: Any = None,
        found_inf: Any = None,
        stream: int | None = None,
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
        spec: dict[str, Any],
        rows: int,
        level: str,
        frozen: bool,
        input_gradient: bool = False,
        scratch: Scratch | None = None,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def tangent_nbytes(self, directions: int) -> int: ...
    def evaluate(
        self,
        x: Any,
        y: Any,
        indices: Any,
        theta: Any,
        buffers: Any,
        update_buffers: bool,
        weight: float,
        gradient: Any,
        accumulate: bool,
    ) -> None: ...
    def release(self) -> None: ...
    def loss(self) -> float: ...
    def output(self, out: Any) -> None: ...
    def product(self, v: Any, out: Any, accumulate: bool) -> None: ...
    def backward(self, dy: Any, gradient: Any, dx: Any) -> None: ...
    def forward_tangent(self, v: Any, xt: Any, yt: Any) -> None: ...
    def backward_tangent(self, dyt: Any, out: Any, dxt: Any) -> None: ...

class Pass_float64(Pass_float32): ...

batch_norm_activations: dict[str, bool]

def batch_norm_sizes(saved: Saved) -> tuple[int, int]: ...
def batch_norm_moments(x: ArrayLike, axis: int, out: ArrayLike) -> None: ...
def batch_norm_forward(
    saved: Saved,
    *,
    out: ArrayLike,
    residual: ArrayLike | None = None,
    given: bool = False,
    eps: float = 0.0,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    momentum: float | None = None,
    seen: float = 0.0,
    renorm: tuple[float, float] | None = None,
    noise: Noise | None = None,
) -> None: ...
def batch_norm_backward(
    saved: Saved,
    *,
    dy: ArrayLike,
    dx: ArrayLike | None = None,
    dresidual: ArrayLike | None = None,
    dweight: ArrayLike | None = None,
    dbias: ArrayLike | None = None,
    sums: ArrayLike | None = None,
    stage: _Stage = "all",
) -> None: ...
def batch_norm_tangent(
    saved: Saved,
    *,
    x_tangent: ArrayLike | None = None,
    weight_tangent: ArrayLike | None = None,
    bias_tangent: ArrayLike | None = None,
    residual_tangent: ArrayLike | None = None,
    y_tangent: ArrayLike | None = None,
    sums: ArrayLike | None = None,
    stage: _Stage = "all",
) -> None: ...
def batch_norm_second_tangent(
    saved: Saved,
    *,
    x_tangent: ArrayLike | None = None,
    weight_tangent: ArrayLike | None = None,
    bias_tangent: ArrayLike | None = None,
    residual_tangent: ArrayLike | None = None,
    x_tangent2: ArrayLike | None = None,
    weight_tangent2: ArrayLike | None = None,
    bias_tangent2: ArrayLike | None = None,
    residual_tangent2: ArrayLike | None = None,
    y_tangent2: ArrayLike | None = None,
    sums: ArrayLike | None = None,
    stage: _Stage = "all",
) -> None: ...
def batch_norm_second(
    saved: Saved,
    *,
    x_tangent: ArrayLike | None = None,
    weight_tangent: ArrayLike | None = None,
    bias_tangent: ArrayLike | None = None,
    residual_tangent: ArrayLike | None = None,
    dy: ArrayLike,
    dy_tangent: ArrayLike | None = None,
    dx_tangent: ArrayLike | None = None,
    dresidual_tangent: ArrayLike | None = None,
    y_tangent: ArrayLike | None = None,
    dweight_tangent: ArrayLike | None = None,
    dbias_tangent: ArrayLike | None = None,
    sums: ArrayLike | None = None,
    own: ArrayLike | None = None,
    stage: _Stage = "all",
) -> None: ...
