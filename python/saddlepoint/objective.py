"""What analysis stands on: a loss with its gradient and its Hessian products."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._native import check_array, module, refuse_mask
from .errors import count, expected, instance, one_of
from .nn import BatchNorm, Layer, Loss, Parameters
from .vector import (
    ArrayLike,
    Vector,
    check_directions,
    copy,
    dot,
    empty_like,
    float_dtype,
    gather,
    on_device,
)

__all__ = ["Linearization", "NetworkObjective", "Objective"]

_GIB = 1 << 30


class Linearization(Protocol):
    """An objective at one point: loss, gradient, and products with the Hessian."""

    @property
    def loss(self) -> float: ...
    @property
    def gradient(self) -> ArrayLike: ...
    def hvp(self, v: ArrayLike) -> ArrayLike: ...


@runtime_checkable
class Objective(Protocol):
    """A twice differentiable loss of a vector θ ∈ ℝⁿ."""

    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def device(self) -> str: ...
    def loss(self, theta: ArrayLike) -> float: ...
    def gradient(self, theta: ArrayLike) -> ArrayLike: ...
    def linearize(self, theta: ArrayLike) -> Linearization: ...


def check_point(objective: Any, theta: Any) -> None:
    """Raise unless these are an objective and an array, in this order."""
    if not isinstance(objective, Objective):
        what = "an objective (size, loss, gradient, linearize), and theta after it"
        raise TypeError(expected("objective", what, type(objective).__name__))
    _check_theta(theta, objective)


def _check_theta(theta: Any, objective: Any) -> None:
    """Raise unless this is an (n,) array of an objective's dtype."""
    check_array("theta", theta)
    wanted, got = _dtype_name(objective.dtype), _dtype_name(theta.dtype)
    if wanted != got:
        raise TypeError(expected("theta", f"dtype {wanted}", got))
    if tuple(theta.shape) != (objective.size,):
        raise ValueError(expected("theta", f"shape ({objective.size},)", tuple(theta.shape)))


def _dtype_name(dtype: Any) -> str:
    name = str(dtype)
    return name.removeprefix("torch.") if name.startswith("torch.") else np.dtype(dtype).name


@dataclass(frozen=True)
class _Chunk:
    """Rows [begin, end) of the data, evaluated together; their loss weighs ``weight``."""

    begin: int
    end: int
    weight: float

    @property
    def rows(self) -> int:
        return self.end - self.begin


class NetworkObjective:
    """The mean loss of a network on a data set, as a function of its parameters.

    Parameters
    ----------
    net : Layer
    loss : CrossEntropy or MeanSquaredError
    x : (N, features) array of ``dtype``
    y : (N,) integer labels, or (N, outputs) array of ``dtype``
    params : Parameters, optional
        Brings the running statistics that ``batch_norm="frozen"`` uses.
    batch_size : int, optional
        Rows that batch normalization sees together; all of them by default. The last batch may be
        smaller. Without batch statistics it changes nothing: every sample weighs 1/N.
    batch_norm : "batch" or "frozen"
        Differentiate through the statistics of the (fixed) batches, or use the running ones.
    dtype : float32 or float64
    device : "cpu" or "cuda"
    memory_budget : int
        Bytes that the stored activations may take. Above it, products recompute them chunk by
        chunk; see `recomputes`.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or shape, values that are not finite, labels out of range, no data, or a
        batch of one row under batch statistics.
    DeviceError
        If the device is not there.

    Notes
    -----
    Products are exact: the R-operator of Pearlmutter (1994), which differentiates the gradient
    computation along a direction.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> from saddlepoint import nn
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.standard_normal((32, 4)), rng.integers(0, 3, 32)
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> objective = sp.NetworkObjective(net, nn.CrossEntropy(), x, y, dtype="float64")
    >>> theta = net.init(rng=0, dtype="float64").theta
    >>> at = objective.linearize(theta)
    >>> at.hvp(np.ones(objective.size)).shape
    (67,)
    """

    def __init__(
        self,
        net: Layer,
        loss: Loss,
        x: NDArray[Any],
        y: NDArray[Any],
        params: Parameters | None = None,
        batch_size: int | None = None,
        batch_norm: str = "batch",
        dtype: DTypeLike = "float32",
        device: str = "cpu",
        memory_budget: int = 2 * _GIB,
    ) -> None:
        instance("net", net, Layer, "a layer of saddlepoint.nn")
        instance("loss", loss, Loss, "a loss of saddlepoint.nn")
        self._native = module(device)
        self.dtype = float_dtype(dtype)
        self.device = device
        self.net = net
        self.size = net.size
        features = checked_inputs(x, self.dtype, net)
        self.samples = features.shape[0]
        self._spec = net.spec(features.shape[1], loss.kind)
        targets = loss.targets(y, self.samples, self._spec["outputs"], self.dtype)
        one_of("batch_norm", batch_norm, ("batch", "frozen"))
        if batch_size is not None:
            count("batch_size", batch_size, 1)
        count("memory_budget", memory_budget, 0)
        normalizes = any(isinstance(layer, BatchNorm) for layer in net.layers())
        self._frozen = batch_norm == "frozen"
        if self._frozen and normalizes and params is None:
            raise ValueError(expected("params", "Parameters with running statistics", None))
        if params is not None:
            check_params(params, net, self.dtype)
        self._buffers = None if params is None else on_device(params.buffers.copy(), device)
        self._x, self._y = on_device(features, device), on_device(targets, device)
        self._loss, self._batch_size, self._batch_norm = loss, batch_size, batch_norm
        self._budget = memory_budget
        self._chunks = self._cut(batch_size, normalizes and not self._frozen)
        stored = sum(self._pass(c.rows, "product").nbytes for c in self._chunks)
        #: Whether products recompute the activations, because storing them exceeds the budget.
        self.recomputes = stored > memory_budget

    def _cut(self, batch_size: int | None, couples_rows: bool) -> list[_Chunk]:
        n = self.samples
        size = min(batch_size or n, n)
        if couples_rows:
            if size == 1 or n % size == 1:
                raise ValueError(
                    expected("batch_size", "at least 2 rows in each batch, for their variance", 1)
                )
            needed = self._pass(size, "product").nbytes
            if needed > self._budget:
                raise MemoryError(
                    f"memory_budget: a batch of {size} rows needs {needed} bytes, "
                    f"and the budget is {self._budget}"
                )
        else:
            each = self._pass(n, "product").nbytes / n
            size = max(1, min(n, int(self._budget / each)))
        return [
            _Chunk(begin, min(begin + size, n), (min(begin + size, n) - begin) / n)
            for begin in range(0, n, size)
        ]

    def _pass(self, rows: int, level: str, scratch: Any = None) -> Any:
        kind = getattr(self._native, f"Pass_{self.dtype}")
        return kind(self._spec, rows, level, self._frozen, scratch=scratch)

    def _evaluate(
        self, native: Any, chunk: _Chunk, theta: Any, gradient: Any, first: bool
    ) -> float:
        rows = slice(chunk.begin, chunk.end)
        whole = chunk.rows == self.samples
        native.evaluate(
            x=self._x if whole else self._rows(self._x, rows),
            y=self._y if whole else self._rows(self._y, rows),
            indices=None,
            theta=theta,
            buffers=self._buffers,
            update_buffers=False,
            weight=chunk.weight,
            gradient=gradient,
            accumulate=not first,
        )
        return float(native.loss())

    @staticmethod
    def _rows(x: ArrayLike, rows: slice) -> ArrayLike:
        return x.rows(rows) if isinstance(x, Vector) else x[rows]

    def check_theta(self, theta: ArrayLike) -> None:
        """Raise unless ``theta`` is an (n,) array of this objective's dtype."""
        _check_theta(theta, self)

    def astype(self, dtype: DTypeLike) -> NetworkObjective:
        """The same objective in another precision, on copies of the data."""
        return NetworkObjective(*self._arguments(float_dtype(dtype)))

    def _arguments(self, dtype: np.dtype[Any]) -> tuple[Any, ...]:
        """What `NetworkObjective` makes this one of, in a precision."""
        x, y = gather(self._x), gather(self._y)
        params = None
        if self._buffers is not None:
            buffers = gather(self._buffers).astype(dtype)
            params = Parameters(np.empty(self.size, dtype), buffers)
        return (
            self.net,
            self._loss,
            x.astype(dtype),
            y.astype(dtype) if y.dtype.kind == "f" else y,
            params,
            self._batch_size,
            self._batch_norm,
            dtype,
            self.device,
            self._budget,
        )

    def __reduce__(self) -> Any:
        return NetworkObjective, self._arguments(self.dtype)

    def loss(self, theta: ArrayLike) -> float:
        """The mean loss at θ."""
        self.check_theta(theta)
        passes: dict[int, Any] = {}
        total = 0.0
        for chunk in self._chunks:
            native = passes.setdefault(chunk.rows, self._pass(chunk.rows, "value"))
            total += self._evaluate(native, chunk, theta, None, True)
        return total

    def gradient(self, theta: ArrayLike) -> ArrayLike:
        """∇L at θ, (n,), of the kind of ``theta``."""
        self.check_theta(theta)
        result = empty_like(theta)
        passes: dict[int, Any] = {}
        for chunk in self._chunks:
            native = passes.setdefault(chunk.rows, self._pass(chunk.rows, "gradient"))
            self._evaluate(native, chunk, theta, result, chunk is self._chunks[0])
        return result

    def linearize(self, theta: ArrayLike) -> NetworkLinearization:
        """Loss, gradient and Hessian products at θ, which is copied."""
        self.check_theta(theta)
        return NetworkLinearization(self, copy(theta))


class NetworkLinearization:
    """A `NetworkObjective` at one point: it owns its activations and a copy of θ.

    Threads may share one: its products are made one after the other.

    Attributes
    ----------
    loss : float
    gradient : (n,) array
    """

    def __init__(self, objective: NetworkObjective, theta: ArrayLike) -> None:
        self._objective, self._theta = objective, theta
        self._scratch = objective._native.Scratch()
        self._passes: dict[int, Any] = {}
        self._one_at_a_time = threading.Lock()  # products share scratch and release the GIL
        self.gradient: ArrayLike = empty_like(theta)
        self.loss = sum(self._evaluated(chunk, self.gradient)[1] for chunk in objective._chunks)

    def __reduce__(self) -> Any:
        return self._objective.linearize, (self._theta,)

    def _evaluated(self, chunk: _Chunk, gradient: ArrayLike) -> tuple[Any, float]:
        objective = self._objective
        key = chunk.rows if objective.recomputes else chunk.begin
        if key not in self._passes:
            self._passes[key] = objective._pass(chunk.rows, "product", self._scratch)
        first = chunk is objective._chunks[0]
        loss = objective._evaluate(self._passes[key], chunk, self._theta, gradient, first)
        return self._passes[key], loss

    def _passes_in_turn(self) -> Iterator[tuple[bool, Any]]:
        """The passes of all chunks, each evaluated, and whether it is the first."""
        chunks = self._objective._chunks
        if not self._objective.recomputes:
            for chunk in chunks:
                yield chunk is chunks[0], self._passes[chunk.begin]
            return
        spare = empty_like(self._theta)
        for chunk in chunks:
            yield chunk is chunks[0], self._evaluated(chunk, spare)[0]

    def hvp(self, v: ArrayLike) -> ArrayLike:
        """H v for one direction (n,), or for each column of a block (n, k).

        Raises
        ------
        TypeError, ValueError
            For another dtype or shape.
        """
        check_directions(v, self._objective.size)
        # The core wants each direction contiguous: free in Fortran order.
        rows = v if len(v.shape) == 1 else v.T
        if isinstance(rows, np.ndarray):
            rows = np.ascontiguousarray(rows)
        elif hasattr(rows, "contiguous"):
            rows = rows.contiguous()
        elif isinstance(rows, Vector) and rows.order == "F" and rows.ndim == 2:
            raise ValueError(expected("v", "a block in Fortran order", "C order"))
        out = empty_like(self._theta, tuple(rows.shape))
        with self._one_at_a_time:
            self._product(rows, out)
        return out if len(v.shape) == 1 else out.T

    def _product(self, v: ArrayLike, out: ArrayLike) -> None:
        block = self._block_size()
        for first, native in self._passes_in_turn():
            if len(v.shape) == 1 or v.shape[0] <= block:
                native.product(v, out, not first)
                continue
            for begin in range(0, v.shape[0], block):
                rows = slice(begin, begin + block)
                view = NetworkObjective._rows
                native.product(view(v, rows), view(out, rows), not first)

    def _block_size(self) -> int:
        """Directions whose tangents fit the memory budget together."""
        largest = max(self._passes.values(), key=lambda p: int(p.nbytes))
        return max(1, int(self._objective._budget // largest.tangent_nbytes(1)))


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
