"""Layers: descriptions of a function and of the parameters it reads from the flat vector.

A network is a layer; `Layer.init` draws its `Parameters`. The arithmetic is in ``csrc/nn``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import brief, count, expected, flag
from ..kinds import float_dtype
from ..norm.options import check_numbers
from ..vector import generator as make_generator
from . import init

__all__ = [
    "BatchNorm",
    "Entry",
    "Identity",
    "Layer",
    "Linear",
    "Parameters",
    "Sequential",
]


@dataclass(frozen=True)
class Entry:
    """One array within a flat vector: its name, shape, and first index."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass
class Parameters:
    """Everything a network knows: what is optimized, and what is only carried along.

    Attributes
    ----------
    theta : (n,) array
        Parameters, laid out by the network's ``table``.
    buffers : (b,) array
        Running statistics, laid out by the network's ``buffer_table``.
    """

    theta: NDArray[Any]
    buffers: NDArray[Any]

    def copy(self) -> Parameters:
        """A copy that shares no memory."""
        return Parameters(self.theta.copy(), self.buffers.copy())


_ADDRESSES = 1 << 47  # bytes that a process can have


class Layer:
    """What all layers share; a network is a layer too."""

    kind: str

    @property
    def inputs(self) -> int | None:
        """Columns of the input; None takes any number."""
        return None

    def outputs(self, inputs: int) -> int:
        """Columns of the output for an input of so many columns."""
        return inputs

    def _arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters, in order."""
        return iter(())

    def _buffer_arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        return iter(())

    def _draw(self, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        """Initial values of the parameters, in order."""
        return iter(())

    def _draw_buffers(self) -> Iterator[NDArray[Any]]:
        return iter(())

    def _spec(self, inputs: int, parameters: int, buffers: int) -> dict[str, Any]:
        """The native description, with the offsets of the layer's own arrays."""
        spec = {"kind": self.kind, "inputs": inputs, "outputs": self.outputs(inputs)}
        return {**spec, "parameters": parameters, "buffers": buffers}

    @cached_property
    def table(self) -> tuple[Entry, ...]:
        """The arrays of ``theta``."""
        return _entries(self._arrays())

    @cached_property
    def buffer_table(self) -> tuple[Entry, ...]:
        """The arrays of ``buffers``."""
        return _entries(self._buffer_arrays())

    @cached_property
    def size(self) -> int:
        """Number of parameters n."""
        return sum(entry.size for entry in self.table)

    def layers(self) -> Iterator[Layer]:
        """This layer and all within it."""
        yield self

    def init(
        self, rng: int | np.random.Generator | None = None, dtype: DTypeLike = np.float32
    ) -> Parameters:
        """Draw initial parameters.

        Parameters
        ----------
        rng : int, Generator or None
            Drawn from in float64 on the host, so that dtypes and devices start alike.
        dtype : float32 or float64

        Raises
        ------
        MemoryError
            For more parameters than there is memory for; the message says how much they need.

        Examples
        --------
        >>> from saddlepoint import nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> net.init(rng=0).theta.shape
        (13,)
        """
        wanted = float_dtype(dtype)
        generator = make_generator(rng)
        if 8 * self.size > _ADDRESSES:
            raise MemoryError(f"init: {self.size} parameters need {8 * self.size} bytes")
        return Parameters(_flat(self._draw(generator), wanted), _flat(self._draw_buffers(), wanted))

    def unflatten(self, theta: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Views of the named arrays within a flat vector of parameters."""
        return _views(theta, self.table, "theta")

    def unflatten_buffers(self, buffers: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Views of the named arrays within a flat vector of buffers."""
        return _views(buffers, self.buffer_table, "buffers")

    def spec(self, inputs: int, loss: str = "") -> dict[str, Any]:
        """The description that the native core builds the network from."""
        return {
            "layers": self._spec(inputs, 0, 0),
            "loss": loss,
            "inputs": inputs,
            "outputs": self.outputs(inputs),
            "parameters": self.size,
            "buffers": sum(entry.size for entry in self.buffer_table),
        }


def _entries(arrays: Iterator[tuple[str, tuple[int, ...]]]) -> tuple[Entry, ...]:
    result: list[Entry] = []
    offset = 0
    for name, shape in arrays:
        result.append(Entry(name, shape, offset))
        offset += result[-1].size
    return tuple(result)


def _flat(arrays: Iterator[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate([np.empty(0), *(np.ravel(a) for a in arrays)]).astype(dtype)


def _views(flat: NDArray[Any], table: tuple[Entry, ...], name: str) -> dict[str, NDArray[Any]]:
    n = sum(entry.size for entry in table)
    if flat.shape != (n,):
        raise ValueError(expected(name, f"shape ({n},)", flat.shape))
    return {e.name: flat[e.offset : e.offset + e.size].reshape(e.shape) for e in table}


def _positive(name: str, value: int) -> None:
    count(name, value, 1)


@dataclass(frozen=True)
class Linear(Layer):
    """y = x Wᵀ + b, with W of shape (out_features, in_features).

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    weight_init : initializer of `saddlepoint.nn.init`
        The bias starts at zero, except with `init.pytorch_uniform`, where it follows PyTorch.
    """

    in_features: int
    out_features: int
    bias: bool = True
    weight_init: init.Initializer = init.pytorch_uniform
    kind = "linear"

    def __post_init__(self) -> None:
        _positive("in_features", self.in_features)
        _positive("out_features", self.out_features)
        flag("bias", self.bias)
        if not callable(self.weight_init):
            what = "a function (rng, shape)"
            raise TypeError(expected("weight_init", what, brief(self.weight_init)))

    @property
    def inputs(self) -> int | None:
        return self.in_features

    def outputs(self, inputs: int) -> int:
        if inputs != self.in_features:
            raise ValueError(expected("Linear", f"{self.in_features} input columns", inputs))
        return self.out_features

    def _arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "weight", (self.out_features, self.in_features)
        if self.bias:
            yield "bias", (self.out_features,)

    def _draw(self, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        shape = self.out_features, self.in_features
        weight = self.weight_init(rng, shape)
        if np.shape(weight) != shape:
            raise ValueError(expected("weight_init", f"weights of shape {shape}", np.shape(weight)))
        yield weight
        if self.bias and self.weight_init is init.pytorch_uniform:
            limit = 1.0 / math.sqrt(self.in_features)
            yield rng.uniform(-limit, limit, self.out_features)
        elif self.bias:
            yield np.zeros(self.out_features)

    def _spec(self, inputs: int, parameters: int, buffers: int) -> dict[str, Any]:
        return {**super()._spec(inputs, parameters, buffers), "bias": self.bias}


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalization over the rows (Ioffe & Szegedy 2015), as ``torch.nn.BatchNorm1d``.

    Parameters
    ----------
    num_features : int
    eps : float
        Added to the variance.
    momentum : float or None
        Weight of the new batch in the running statistics; None averages all batches alike.
    affine : bool
        Whether there are weight γ (starts at 1) and bias β (starts at 0).
    """

    num_features: int
    eps: float = 1e-5
    momentum: float | None = 0.1
    affine: bool = True
    kind = "batch_norm"

    def __post_init__(self) -> None:
        _positive("num_features", self.num_features)
        flag("affine", self.affine)
        eps, momentum = check_numbers(self.eps, self.momentum)
        object.__setattr__(self, "eps", eps)  # an array of one stays its owner's
        object.__setattr__(self, "momentum", momentum)

    @property
    def inputs(self) -> int | None:
        return self.num_features

    def outputs(self, inputs: int) -> int:
        if inputs != self.num_features:
            raise ValueError(expected("BatchNorm", f"{self.num_features} input columns", inputs))
        return inputs

    def _arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        if self.affine:
            yield "weight", (self.num_features,)
            yield "bias", (self.num_features,)

    def _buffer_arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "running_mean", (self.num_features,)
        yield "running_var", (self.num_features,)
        yield "num_batches_tracked", (1,)

    def _draw(self, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        if self.affine:
            yield np.ones(self.num_features)
            yield np.zeros(self.num_features)

    def _draw_buffers(self) -> Iterator[NDArray[Any]]:
        yield np.zeros(self.num_features)
        yield np.ones(self.num_features)
        yield np.zeros(1)

    def _spec(self, inputs: int, parameters: int, buffers: int) -> dict[str, Any]:
        return {
            **super()._spec(inputs, parameters, buffers),
            "eps": self.eps,
            **({"cumulative": True} if self.momentum is None else {"momentum": self.momentum}),
            "affine": self.affine,
        }


@dataclass(frozen=True)
class Identity(Layer):
    """x itself."""

    kind = "sequential"  # an empty one


class Sequential(Layer):
    """Layers one after the other.

    Examples
    --------
    >>> from saddlepoint import nn
    >>> net = nn.Sequential(nn.Linear(784, 100), nn.BatchNorm(100), nn.ReLU(), nn.Linear(100, 10))
    >>> [entry.name for entry in net.table]
    ['0.weight', '0.bias', '1.weight', '1.bias', '3.weight', '3.bias']
    """

    kind = "sequential"

    def __init__(self, *children: Layer) -> None:
        for child in children:
            if not isinstance(child, Layer):
                raise TypeError(expected("Sequential", "layers", type(child).__name__))
        self.children = children
        columns = self.inputs
        if columns is not None:
            self.outputs(columns)  # neighbours must fit

    def __repr__(self) -> str:
        return f"Sequential({', '.join(map(repr, self.children))})"

    @property
    def inputs(self) -> int | None:
        return next((c.inputs for c in self.children if c.inputs is not None), None)

    def outputs(self, inputs: int) -> int:
        for child in self.children:
            inputs = child.outputs(inputs)
        return inputs

    def layers(self) -> Iterator[Layer]:
        yield self
        for child in self.children:
            yield from child.layers()

    def _arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for i, child in enumerate(self.children):
            for name, shape in child._arrays():
                yield f"{i}.{name}", shape

    def _buffer_arrays(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for i, child in enumerate(self.children):
            for name, shape in child._buffer_arrays():
                yield f"{i}.{name}", shape

    def _draw(self, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        for child in self.children:
            yield from child._draw(rng)

    def _draw_buffers(self) -> Iterator[NDArray[Any]]:
        for child in self.children:
            yield from child._draw_buffers()

    def _spec(self, inputs: int, parameters: int, buffers: int) -> dict[str, Any]:
        spec = super()._spec(inputs, parameters, buffers)
        children = []
        for child in self.children:
            children.append(child._spec(inputs, parameters, buffers))
            inputs = child.outputs(inputs)
            parameters += child.size
            buffers += sum(entry.size for entry in child.buffer_table)
        return {**spec, "children": children}
