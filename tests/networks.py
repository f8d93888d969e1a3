"""Random networks on random data, and the same networks for PyTorch and for the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reference import layers
from saddlepoint import nn

Array = NDArray[Any]

# The oracle's work is small: threads of its own would only wait for each other.
torch.set_num_threads(1)

ACTIVATIONS = (*nn.ACTIVATIONS.values(), nn.Identity)


def random_network(
    rng: np.random.Generator, inputs: int, outputs: int, batch_norm: bool
) -> nn.Sequential:
    """One to four linear layers of odd widths; activations, biases and γ, β at random."""
    children: list[nn.Layer] = []
    width = inputs
    for _ in range(int(rng.integers(0, 4))):
        wider = int(rng.choice([1, 2, 3, 5, 9, 17, 33]))
        children.append(nn.Linear(width, wider, bias=bool(rng.integers(2))))
        if batch_norm:
            eps = float(rng.choice([1e-5, 1e-3, 0.1]))
            children.append(nn.BatchNorm(wider, eps=eps, affine=bool(rng.integers(4))))
        children.append(ACTIVATIONS[rng.integers(len(ACTIVATIONS))]())
        width = wider
    if batch_norm and rng.integers(2):
        children.insert(0, nn.BatchNorm(inputs))
    return nn.Sequential(*children, nn.Linear(width, outputs))


@dataclass(frozen=True)
class Problem:
    """A network with parameters away from their initial values, a loss, and data; float64."""

    net: nn.Sequential
    loss: nn.Loss
    params: nn.Parameters
    x: Array
    y: Array


def random_problem(seed: int, batch_norm: bool = True) -> Problem:
    """Problem number ``seed``: rows from 2, columns from 1, both losses in turn."""
    rng = np.random.default_rng([seed, batch_norm])
    rows = int(rng.choice([2, 3, 7, 31, 65, 131]))
    inputs, outputs = int(rng.choice([1, 2, 5, 13])), int(rng.choice([1, 2, 3, 11]))
    net = random_network(rng, inputs, outputs, batch_norm)
    params = net.init(rng, "float64")
    params.theta += 0.3 * rng.standard_normal(net.size)
    for name, buffer in net.unflatten_buffers(params.buffers).items():
        if not name.endswith("num_batches_tracked"):
            buffer[:] = np.abs(buffer + 0.5 * rng.standard_normal(buffer.shape)) + 0.1
    x = rng.standard_normal((rows, inputs))
    if seed % 2:
        return Problem(net, nn.CrossEntropy(), params, x, rng.integers(0, outputs, rows))
    return Problem(net, nn.MeanSquaredError(), params, x, rng.standard_normal((rows, outputs)))


def leaves(net: nn.Layer) -> list[nn.Layer]:
    """The layers that compute, in order."""
    return [layer for layer in net.layers() if layer.kind != "sequential"]


def to_reference(net: nn.Layer, buffers: Array | None = None) -> list[layers.Layer]:
    """The network for the reference; batch normalization frozen where ``buffers`` are given."""
    result = []
    at = 0
    for leaf in leaves(net):
        shapes: tuple[tuple[int, ...], ...] = ()
        eps, running = 0.0, None
        if isinstance(leaf, nn.Linear):
            shapes = ((leaf.out_features, leaf.in_features), (leaf.out_features,))
            shapes = shapes[: 1 + leaf.bias]
        elif isinstance(leaf, nn.BatchNorm):
            n, eps = leaf.num_features, leaf.eps
            shapes = ((n,), (n,)) if leaf.affine else ()
            if buffers is not None:
                running = buffers[at : at + n], buffers[at + n : at + 2 * n]
            at += 2 * n + 1
        result.append(layers.Layer(leaf.kind, shapes, eps, running))
    return result


def to_torch(layer: nn.Layer) -> torch.nn.Module:
    """A module with the same parameters, in float32 and by PyTorch's own initial values."""
    if isinstance(layer, nn.Sequential):
        return torch.nn.Sequential(*map(to_torch, layer.children))
    if isinstance(layer, nn.Linear):
        return torch.nn.Linear(layer.in_features, layer.out_features, layer.bias)
    if isinstance(layer, nn.BatchNorm):
        return torch.nn.BatchNorm1d(layer.num_features, layer.eps, layer.momentum, layer.affine)
    if isinstance(layer, nn.LeakyReLU):
        return torch.nn.LeakyReLU(layer.negative_slope)
    made: torch.nn.Module = getattr(torch.nn, type(layer).__name__)()  # of the same name
    return made


class TorchLoss:
    """A problem's loss, gradient and Hessian products by PyTorch's double backward.

    θ is the concatenation of ``named_parameters``; ``frozen`` uses the running statistics.
    """

    def __init__(self, problem: Problem, frozen: bool = False, dtype: str = "float64") -> None:
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.module = to_torch(problem.net).to(self.dtype)
        self.module.train(not frozen)
        stored = list(self.module.buffers())
        sizes = [b.numel() for b in stored]
        pieces = np.split(problem.params.buffers, np.cumsum(sizes)[:-1]) if sizes else []
        for buffer, values in zip(stored, pieces, strict=True):
            buffer.copy_(torch.from_numpy(values).reshape(buffer.shape))
        self.theta = self.tensor(problem.params.theta)
        torch.nn.utils.vector_to_parameters(self.theta, self.module.parameters())
        self.criterion: torch.nn.Module = (
            torch.nn.CrossEntropyLoss() if problem.y.ndim == 1 else torch.nn.MSELoss()
        )
        self.x = self.tensor(problem.x)
        self.y = torch.from_numpy(problem.y) if problem.y.ndim == 1 else self.tensor(problem.y)

    def tensor(self, x: Array) -> torch.Tensor:
        return torch.from_numpy(x).to(self.dtype)

    def gradient(self, rows: slice = slice(None)) -> tuple[float, Array]:
        """The loss of some rows, and its gradient."""
        value, gradient = self._gradient(rows)
        return value, gradient.detach().numpy()

    def product(self, v: Array, rows: slice = slice(None)) -> Array:
        """H v."""
        _, gradient = self._gradient(rows)
        parameters = list(self.module.parameters())
        product = torch.autograd.grad(
            gradient, parameters, self.tensor(v), materialize_grads=True, retain_graph=False
        )
        return torch.cat([p.ravel() for p in product]).detach().numpy()

    def _gradient(self, rows: slice) -> tuple[float, torch.Tensor]:
        parameters = list(self.module.parameters())
        loss = self.criterion(self.module(self.x[rows]), self.y[rows])
        parts = torch.autograd.grad(loss, parameters, create_graph=True)
        return float(loss.detach()), torch.cat([p.ravel() for p in parts])
