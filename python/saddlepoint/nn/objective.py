"""The loss of a native network on data, as an objective."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import count, expected, instance, one_of
from ..kinds import ArrayLike, float_dtype, kind_of, on_device
from ..objective import check_theta
from ..vector import check_directions, copy, empty_like, gather
from .evaluator import Evaluator, check_params
from .layers import BatchNorm, Layer, Parameters
from .losses import Loss

__all__ = ["NetworkLinearization", "NetworkObjective"]

_GIB = 1 << 30


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
        chunk; see `recomputes`. What `loss` and `gradient` work in, a thread keeps for its next
        call within an eighth of it.

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
        count("memory_budget", memory_budget, 0)
        self.dtype = float_dtype(dtype)
        self.device = device
        self.net = net
        self.size = net.size
        self._evaluator = Evaluator(net, loss, self.dtype, device, memory_budget // 8)
        features, targets = self._evaluator.checked(x, y)
        self.samples = features.shape[0]
        one_of("batch_norm", batch_norm, ("batch", "frozen"))
        if batch_size is not None:
            count("batch_size", batch_size, 1)
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
        each = Counter(chunk.rows for chunk in self._chunks)
        stored = sum(n * self._pass(rows).nbytes for rows, n in each.items())
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
            needed = self._pass(size).nbytes
            if needed > self._budget:
                raise MemoryError(
                    f"memory_budget: a batch of {size} rows needs {needed} bytes, "
                    f"and the budget is {self._budget}"
                )
        else:
            each = self._pass(n).nbytes / n
            size = max(1, min(n, int(self._budget / each)))
        return [
            _Chunk(begin, min(begin + size, n), (min(begin + size, n) - begin) / n)
            for begin in range(0, n, size)
        ]

    def _pass(self, rows: int, scratch: Any = None) -> Any:
        """A native pass that gives products."""
        return self._evaluator.make(rows, self._x.shape[1], "product", self._frozen, scratch)

    def _batch(self, chunk: _Chunk, theta: ArrayLike, gradient: ArrayLike = None) -> dict[str, Any]:
        """What the evaluator takes for the rows of a chunk."""
        rows = slice(chunk.begin, chunk.end)
        return {
            "x": kind_of(self._x).rows(self._x, rows),
            "y": kind_of(self._y).rows(self._y, rows),
            "theta": theta,
            "buffers": self._buffers,
            "weight": chunk.weight,
            "gradient": gradient,
            "accumulate": chunk.begin > 0,
        }

    @property
    def parts(self) -> dict[str, slice]:
        """Where each named array of the network lies in θ."""
        return {e.name: slice(e.offset, e.offset + e.size) for e in self.net.table}

    def check_theta(self, theta: ArrayLike) -> None:
        """Raise unless ``theta`` is an (n,) array of this objective's dtype."""
        check_theta(theta, self)

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
        evaluate, frozen = self._evaluator.evaluate, self._frozen
        return sum(evaluate(frozen=frozen, **self._batch(c, theta)) for c in self._chunks)

    def gradient(self, theta: ArrayLike) -> ArrayLike:
        """∇L at θ, (n,), of the kind of ``theta``."""
        self.check_theta(theta)
        result = empty_like(theta)
        for chunk in self._chunks:
            self._evaluator.evaluate(frozen=self._frozen, **self._batch(chunk, theta, result))
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
        self._scratch = objective._evaluator.native.Scratch()
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
            self._passes[key] = objective._pass(chunk.rows, self._scratch)
        batch = objective._batch(chunk, self._theta, gradient)
        return self._passes[key], objective._evaluator.run(self._passes[key], **batch)

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
        rows = kind_of(v).columns(v)
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
                some, there = (kind_of(a).rows(a, rows) for a in (v, out))
                native.product(some, there, not first)

    def _block_size(self) -> int:
        """Directions whose tangents fit the memory budget together."""
        largest = max(self._passes.values(), key=lambda p: int(p.nbytes))
        return max(1, int(self._objective._budget // largest.tangent_nbytes(1)))
