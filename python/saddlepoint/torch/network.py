"""PyTorch's modules as networks of `saddlepoint.nn`, where those have all of their layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import nn as native
from ..errors import expected
from ..nn.objective import NetworkObjective
from .batches import Batch, LossFunction
from .nn.modules import BatchNorm1d
from .theta import get_theta, unwrapped

__all__ = ["native_objective", "to_network"]

_PLAIN: dict[type[nn.Module], type[native.Layer]] = {
    nn.Identity: native.Identity,
    nn.ReLU: native.ReLU,
    nn.Sigmoid: native.Sigmoid,
    nn.Tanh: native.Tanh,
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Foreign(ValueError):
    """A module that `saddlepoint.nn` has not."""


def _layers(module: Any, name: str) -> Iterator[native.Layer]:
    """Subclasses are others: they may do anything."""
    kind = type(module)
    if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
        raise _Foreign(f"{name}, which is hooked")
    if kind is nn.Sequential:
        for key, child in module._modules.items():  # named_children leaves out what comes again
            yield from _layers(child, f"{name}.{key}".lstrip("."))
    elif kind in _PLAIN:
        yield _PLAIN[kind]()
    elif kind is nn.Linear:
        yield native.Linear(module.in_features, module.out_features, module.bias is not None)
    elif kind in (nn.BatchNorm1d, BatchNorm1d) and module.track_running_stats:
        of = (module.num_features, module.eps, module.momentum, module.affine)
        yield native.BatchNorm(*of)
    elif kind is nn.LeakyReLU:
        yield native.LeakyReLU(module.negative_slope)
    elif kind is nn.GELU and module.approximate == "none":
        yield native.GELU()
    elif kind is not nn.Dropout:  # which is nothing in evaluation
        raise _Foreign(f"{name or 'it'}, a {kind.__name__}")


def to_network(module: nn.Module) -> tuple[native.Sequential, native.Parameters]:
    """A network of `saddlepoint.nn` that computes what a module does in evaluation.

    Parameters
    ----------
    module : torch.nn.Module
        Linear layers, activations, batch normalization of (N, C) and dropout, in Sequentials.

    Returns
    -------
    net : Sequential
    params : Parameters
        A copy of the module's, and of its running statistics, on the host.

    Raises
    ------
    ValueError
        For a module with a layer that `saddlepoint.nn` has not, which it names.

    Examples
    --------
    >>> import torch, saddlepoint.torch as st
    >>> net, params = st.to_network(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()))
    >>> net.size, params.theta.shape
    (9, (9,))
    """
    inner = unwrapped(module)
    net, buffers = _network(inner)
    theta = get_theta(inner, lambda name, p: True).cpu().numpy()
    return net, native.Parameters(theta, buffers.astype(theta.dtype))


def _network(module: nn.Module) -> tuple[native.Sequential, NDArray[np.float64]]:
    """The network, and the running statistics."""
    try:
        net = native.Sequential(*_layers(module, ""))
    except _Foreign as error:
        raise ValueError(expected("module", "layers of saddlepoint.nn", error)) from None
    if net.size != sum(p.numel() for p in module.parameters()):
        raise ValueError(expected("module", "each layer once", "one that is there twice"))
    buffers = [b.detach().reshape(-1).to("cpu", torch.float64).numpy() for b in module.buffers()]
    return net, np.concatenate([np.empty(0), *buffers])


def _loss(loss: LossFunction, batches: Sequence[Batch]) -> native.Loss | None:
    """The native loss that is the same on these targets."""
    kind, settings = loss.settings["kind"], loss.settings
    targets = [batch.target for batch in batches]
    if settings.get("reduction", "mean") != "mean" or loss.whole:
        return None
    if kind is nn.MSELoss and settings.get("weight") is None:
        return native.MeanSquaredError()
    plain = settings.get("weight") is None and not settings.get("label_smoothing", 0.0)
    ignored = settings.get("ignore_index", -100)
    if kind is nn.CrossEntropyLoss and plain:
        taken = (
            t.ndim == 1
            and t.dtype == torch.int64
            and int(t.min()) >= 0
            and bool((t != ignored).all())
            for t in targets
        )
        return native.CrossEntropy() if all(taken) else None
    return None


def native_objective(
    module: nn.Module,
    loss: LossFunction,
    batches: Sequence[Batch],
    batch_norm: str,
    dtype: np.dtype[Any],
    device: str,
    memory_budget: int,
) -> NetworkObjective:
    """The objective on the native engine.

    Raises
    ------
    ValueError
        Where it has none; the message says why.
    """
    net, buffers = _network(module)
    same = _loss(loss, batches)
    if same is None:
        raise ValueError(expected("loss", "a mean of cross-entropy or squares", loss.function))
    inputs, targets = [b.inputs for b in batches], [b.target for b in batches]
    if not all(isinstance(x, Tensor) and x.ndim == 2 for x in inputs):
        raise ValueError(expected("data", "inputs (N, features)", "others"))
    sizes = [len(x) for x in inputs]
    if batch_norm == "batch" and (len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]):
        raise ValueError(expected("data", "batches of one size, but for the last", sizes))
    x, y = (torch.cat(list(parts)).cpu().numpy() for parts in (inputs, targets))
    return NetworkObjective(
        net, same, x.astype(dtype), y if y.dtype.kind == "i" else y.astype(dtype),
        native.Parameters(np.empty(net.size, dtype), buffers.astype(dtype)),
        sizes[0], batch_norm, dtype, device, memory_budget,
    )  # fmt: skip
