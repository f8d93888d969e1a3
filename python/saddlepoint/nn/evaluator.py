"""A network on a device: its native passes, each made once, evaluated on rows of data."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._native import module
from ..errors import expected, instance
from ..kinds import ArrayLike, Vector, kind_of, refuse_mask
from ..vector import dot
from .layers import Layer, Parameters
from .losses import Loss

__all__ = ["Evaluator", "check_params", "checked_inputs"]

_ROWS = 4096  # of an evaluation over all rows, at a time


class Evaluator:
    """A network, with a loss or without one, in one precision on one device.

    A pass is made at the first call for its number of rows, and kept for the next. Each thread has
    its own, since passes hold memory that they work in, and the stream that they were made on.

    Parameters
    ----------
    net : Layer
    loss : Loss or None
    dtype : float32 or float64
    device : "cpu" or "cuda"
    keep : float
        Bytes that a thread's passes may hold between calls; others are made for each call.
    """

    def __init__(
        self,
        net: Layer,
        loss: Loss | None,
        dtype: np.dtype[Any],
        device: str,
        keep: float = math.inf,
    ) -> None:
        self.net, self.loss, self.dtype, self.device = net, loss, dtype, device
        self.native = module(device)
        self._keep = keep
        self._own = threading.local()

    def checked(self, x: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Data as the network and the loss take them, on the host."""
        assert self.loss is not None
        inputs = checked_inputs(x, self.dtype, self.net)
        outputs = self.net.outputs(inputs.shape[1])
        return inputs, self.loss.targets(y, inputs.shape[0], outputs, self.dtype)

    def make(self, rows: int, inputs: int, level: str, frozen: bool, scratch: Any = None) -> Any:
        """A native pass, which takes memory at its first evaluation."""
        spec = self.net.spec(inputs, self.loss.kind if self.loss else "")
        kind = getattr(self.native, f"Pass_{self.dtype}")
        return kind(spec, rows, level, frozen, scratch=scratch)

    def run(
        self,
        bound: Any,
        x: ArrayLike,
        y: ArrayLike,
        theta: ArrayLike,
        buffers: ArrayLike,
        *,
        indices: ArrayLike = None,
        update_buffers: bool = False,
        weight: float = 1.0,
        gradient: ArrayLike = None,
        accumulate: bool = False,
    ) -> float:
        """Evaluate a pass: ``weight`` times the mean loss of the rows, NaN without a loss."""
        bound.evaluate(x, y, indices, theta, buffers, update_buffers, weight, gradient, accumulate)
        return math.nan if self.loss is None else float(bound.loss())

    def evaluate(
        self,
        x: ArrayLike,
        y: ArrayLike,
        theta: ArrayLike,
        buffers: ArrayLike,
        *,
        frozen: bool,
        indices: ArrayLike = None,
        gradient: ArrayLike = None,
        outputs: ArrayLike = None,
        **how: Any,
    ) -> float:
        """As `run`, by a pass that is at hand; fills ``gradient`` and ``outputs`` if given."""
        rows = (x if indices is None else indices).shape[0]
        key = (rows, x.shape[1], "value" if gradient is None else "gradient", frozen)
        kept: dict[Any, Any] = self._own.__dict__.setdefault("kept", {})
        # Taken out meanwhile: one that fails is dropped, and a call from within makes its own.
        bound = kept.pop(key, None) or self.make(*key)
        value = self.run(bound, x, y, theta, buffers, indices=indices, gradient=gradient, **how)
        if outputs is not None:
            bound.output(outputs)
        bound.release()
        kept[key] = bound
        if self._keep < math.inf and sum(each.nbytes for each in kept.values()) > self._keep:
            del kept[key]
        return value

    def over_rows(
        self, x: ArrayLike, y: ArrayLike, theta: ArrayLike, buffers: ArrayLike
    ) -> tuple[float, NDArray[Any]]:
        """Mean loss (NaN without one) and outputs over all rows, with the running statistics."""
        rows, inputs = x.shape
        outputs = np.empty((rows, self.net.outputs(inputs)), self.dtype)
        total = 0.0
        for begin in range(0, rows, _ROWS):
            part = slice(begin, min(begin + _ROWS, rows))
            there = outputs[part]
            out: ArrayLike = there
            if self.device != "cpu":
                out = Vector(there.shape, self.dtype, self.device)
            some_x = kind_of(x).rows(x, part)
            some_y = None if y is None else kind_of(y).rows(y, part)
            mean = self.evaluate(some_x, some_y, theta, buffers, frozen=True, outputs=out)
            total += mean * len(there) / rows
            if out is not there:
                there[:] = out.numpy()
        return total, outputs


def check_params(params: Parameters, net: Layer, dtype: np.dtype[Any]) -> None:
    """Raise unless the parameters are those of a network, in one dtype."""
    instance("params", params, Parameters, "what net.init gives")
    buffers = sum(entry.size for entry in net.buffer_table)
    for name, array, n in (("theta", params.theta, net.size), ("buffers", params.buffers, buffers)):
        refuse_mask("params", array)
        if array.dtype != dtype and (n or array.size):
            what = "" if array is params.theta else "buffers of "
            raise TypeError(expected("params", f"{what}dtype {dtype}", array.dtype))
        if array.shape != (n,):
            raise ValueError(expected("params", f"{name} of shape ({n},)", array.shape))


def checked_inputs(x: Any, dtype: np.dtype[Any], net: Layer) -> NDArray[Any]:
    """``x`` as the network takes it: (N, features), of its dtype, finite, not empty."""
    if not isinstance(x, np.ndarray):
        raise TypeError(expected("x", "a NumPy array", type(x).__name__))
    refuse_mask("x", x)
    if x.dtype != dtype:
        raise TypeError(expected("x", f"dtype {dtype}", x.dtype))
    if x.ndim != 2:
        raise ValueError(expected("x", "shape (N, features)", x.shape))
    if x.shape[0] == 0:
        raise ValueError(expected("x", "at least one row", x.shape))
    if net.inputs not in (None, x.shape[1]):
        raise ValueError(expected("x", f"{net.inputs} columns", x.shape[1]))
    rows: NDArray[Any] = np.ascontiguousarray(x)
    # A sum of squares in float64 sees NaN and infinity ten times faster than a look at each value;
    # where it overflows, the values are looked at.
    if not np.isfinite(dot(rows, rows)) and not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ValueError(expected("x", "finite values", f"NaN or infinity in row {row}"))
    return rows
