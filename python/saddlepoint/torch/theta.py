"""The parameters of a module as one vector θ, in the order of ``named_parameters()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.dlpack import from_dlpack

from ..errors import expected, instance
from ..kinds import Vector, check_array, dtype_name
from ..objective import chosen_names

__all__ = [
    "Layout",
    "Selection",
    "exchanged",
    "get_theta",
    "load_theta",
    "unwrapped",
    "written_parameters",
]

# Names, patterns of the shell, or what says of a name and its parameter whether it is taken.
Selection: TypeAlias = "str | Iterable[str] | Callable[[str, nn.Parameter], bool] | None"


def unwrapped(module: Any) -> nn.Module:
    """The module itself, out of what compiles or replicates it; TypeError for none."""
    inner = instance("module", module, nn.Module, "a torch.nn.Module")
    while True:
        if "_orig_mod" in inner._modules:  # of torch.compile
            inner = inner.get_submodule("_orig_mod")
        elif isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.get_submodule("module")
        else:
            return inner


@dataclass(frozen=True)
class Layout:
    """Which parameters θ holds, one after the other."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    sizes: list[int]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(
        cls, module: nn.Module, params: Selection = None, dtype: torch.dtype | None = None
    ) -> Layout:
        """Those of a module that are chosen; by default all that ask for gradients.

        Raises
        ------
        TypeError
            For parameters that are no dense real numbers in memory, or of another dtype than
            float32 or float64 where no ``dtype`` is given.
        ValueError
            For a name or pattern that no parameter has, or for parameters on several devices.
        """
        chosen = _chosen(dict(module.named_parameters()), params)
        for name, p in chosen.items():
            _check_parameter(name, p)
        if not chosen:
            got = "none, or none that asks for a gradient"
            raise ValueError(expected("params", "at least one parameter", got))
        devices = {p.device for p in chosen.values()}
        if len(devices) > 1:
            got = ", ".join(sorted(map(str, devices)))
            raise ValueError(expected("module", "parameters on one device", got))
        dtypes = {p.dtype for p in chosen.values()}
        if dtype is None and (len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}):
            got = ", ".join(sorted(map(dtype_name, dtypes)))
            what = "parameters of float32, or of float64 (dtype= takes others)"
            raise TypeError(expected("module", what, got))
        shapes = tuple(p.shape for p in chosen.values())
        return cls(
            tuple(chosen), shapes, [s.numel() for s in shapes], dtype or dtypes.pop(),
            devices.pop(),
        )  # fmt: skip

    @property
    def size(self) -> int:
        """n, the length of θ."""
        return sum(self.sizes)

    def split(self, theta: Tensor) -> list[Tensor]:
        """The parameters in a vector (n,), in its memory."""
        parts = torch.split(theta, self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def joined(self, parts: Iterable[Tensor]) -> Tensor:
        """One vector (n,) of parts in the shapes of the parameters."""
        return torch.cat([part.reshape(-1) for part in parts])


def written_parameters(module: nn.Module) -> list[str]:
    """Those that a forward pass writes to: embeddings shorten their rows to ``max_norm``."""
    return [
        f"{name}.weight".lstrip(".")
        for name, m in module.named_modules()
        if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) and m.max_norm is not None
    ]


@contextmanager
def exchanged(module: nn.Module, new: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with other parameters and buffers, by name, each wherever it stands.

    `torch.func.functional_call` (2.13) leaves its tensors in a module that is there twice.
    """
    named = chain(module.named_parameters(), module.named_buffers())
    instead = {id(tensor): new[name] for name, tensor in named if name in new}
    tables = [table for m in module.modules() for table in (m._parameters, m._buffers)]
    places: list[tuple[Any, str, Any]] = [
        (table, key, old) for table in tables for key, old in table.items() if id(old) in instead
    ]
    recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
    flat = [{key: vars(m)[key] for key in _FLAT if key in vars(m)} for m in recurrent]
    try:
        for table, key, old in places:
            table[key] = instead[id(old)]
        yield
    finally:
        for table, key, old in places:
            table[key] = old
        for m, lists in zip(recurrent, flat, strict=True):
            vars(m).update(lists)


_FLAT = ("_flat_weights", "_flat_weight_refs")  # lists of its own that a recurrent layer keeps


def _chosen(all_: dict[str, nn.Parameter], params: Selection) -> dict[str, nn.Parameter]:
    if params is None:
        return {name: p for name, p in all_.items() if p.requires_grad}
    if callable(params):
        return {name: p for name, p in all_.items() if params(name, p)}
    return {name: all_[name] for name in chosen_names(list(all_), params, "params")}


def _check_parameter(name: str, p: nn.Parameter) -> None:
    whose = f"module: expected {name} "
    if is_lazy(p):
        raise TypeError(f"{whose}to have a shape, got a lazy one (run a batch through it first)")
    if p.is_meta:
        raise TypeError(f"{whose}to be in memory, got device meta")
    if type(p).__name__ == "DTensor" or type(p.data).__name__ == "DTensor":
        raise TypeError(f"{whose}to be whole, got a DTensor (gather it with full_tensor() first)")
    if p.layout is not torch.strided or p.is_quantized or not p.dtype.is_floating_point:
        kind = p.layout if p.layout is not torch.strided else p.dtype
        raise TypeError(f"{whose}to be dense real numbers, got {str(kind).removeprefix('torch.')}")


def get_theta(module: nn.Module, params: Selection = None) -> Tensor:
    """θ of a module: a copy of its parameters as one vector.

    Parameters
    ----------
    module : torch.nn.Module
    params : str, iterable of str, or callable, optional
        Names or patterns (``"blocks.*.weight"``), or ``f(name, parameter) -> bool``; by default all
        that ask for gradients. Tied weights are there once.

    Returns
    -------
    (n,) tensor
        In the order of ``named_parameters()``, detached.

    Examples
    --------
    >>> import torch, saddlepoint.torch as st
    >>> st.get_theta(torch.nn.Linear(3, 2)).shape
    torch.Size([8])
    """
    inner = unwrapped(module)
    layout = Layout.of(inner, params)
    with torch.no_grad():
        return layout.joined(inner.get_parameter(name).detach() for name in layout.names)


def load_theta(module: nn.Module, theta: Any, params: Selection = None) -> None:
    """Put θ into a module's parameters, in place.

    Parameters
    ----------
    module : torch.nn.Module
    theta : (n,) array of the parameters' dtype
        Of PyTorch, NumPy, or any that speaks DLPack; on any device.
    params : str, iterable of str, or callable, optional
        As in `get_theta`.

    Raises
    ------
    TypeError, ValueError
        For another dtype or shape; nothing is written then.

    Examples
    --------
    >>> import torch, saddlepoint.torch as st
    >>> model = torch.nn.Linear(3, 2)
    >>> st.load_theta(model, torch.zeros(8))
    """
    inner = unwrapped(module)
    layout = Layout.of(inner, params)
    parts = layout.split(as_tensor(theta, layout))
    with torch.no_grad():
        for name, part in zip(layout.names, parts, strict=True):
            inner.get_parameter(name).copy_(part)


def as_tensor(theta: Any, layout: Layout) -> Tensor:
    """θ as a tensor, in its own memory where PyTorch can look at it."""
    check_array("theta", theta)
    if dtype_name(theta.dtype) != dtype_name(layout.dtype):
        wanted = f"dtype {dtype_name(layout.dtype)}"
        raise TypeError(expected("theta", wanted, dtype_name(theta.dtype)))
    if tuple(theta.shape) != (layout.size,):
        raise ValueError(expected("theta", f"shape ({layout.size},)", tuple(theta.shape)))
    if isinstance(theta, Tensor):
        return theta.detach()
    if isinstance(theta, np.ndarray) and not theta.flags.writeable:
        theta = theta.copy()  # PyTorch has no arrays that are read only
    return from_dlpack(theta)


def as_kind(x: Tensor, like: Any) -> Any:
    """A tensor as an array of the kind of ``like``, in the same memory where that can be."""
    if isinstance(like, Vector):
        result = Vector(tuple(x.shape), dtype_name(x.dtype), like.device)
        from_dlpack(result).copy_(x)
        return result
    return x.numpy() if isinstance(like, np.ndarray) else x
