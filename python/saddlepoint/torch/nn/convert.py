"""Takes a model's batch normalization over."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, TypeVar

from torch import nn

from .functional import refuse_variants
from .modules import BatchNorm1d, BatchNorm2d, BatchNorm3d, Fused, SyncBatchNorm

__all__ = ["convert_batch_norm", "convert_sync_batchnorm"]

Module = TypeVar("Module", bound=nn.Module)
Taken = TypeVar("Taken", bound=Fused)

_OURS: dict[type[nn.Module], type[Fused]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def convert_batch_norm(module: Module, *, fold_activations: bool = True) -> Module:
    """Put our modules in the place of ``torch.nn.BatchNorm1d``, ``2d`` and ``3d``.

    Parameters, buffers, hooks and names stay, so optimizers and state dicts go on.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and returned; where it is itself a batch normalization, the new one is
        returned instead. Subclasses of PyTorch's modules are left alone.
    fold_activations : bool
        In a ``Sequential`` the ReLU, LeakyReLU, exact GELU or Tanh after a batch normalization
        becomes part of it, and an ``Identity`` stands where it was. Not where one of the two has
        hooks or stands in a second place. A model that takes single elements out of the
        ``Sequential`` sees the activation earlier.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch import nn
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    >>> model = nn.convert_batch_norm(model)
    >>> model[0].activation, model[1]
    ('relu', Identity())
    """
    result: Module = _replace(module, {}, _taken_over)
    if fold_activations:
        places = Counter(id(m) for _, m in result.named_modules(remove_duplicate=False))
        for m in result.modules():
            if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
                _fold(m, places)
    return result


def convert_sync_batchnorm(module: Module, process_group: Any = None) -> Module:
    """Put `SyncBatchNorm` in the place of PyTorch's and our ``BatchNorm*d``; activations stay.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and returned; where it is itself a batch normalization, the new one is
        returned instead.
    process_group : optional
        The processes; all of them by default.

    Notes
    -----
    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` takes our modules for PyTorch's and would drop
    their activations.

    Raises
    ------
    ValueError
        For a module with ``ghost``, ``renorm`` or ``noise``; nothing has been changed then.
    """
    for m in module.modules():
        if isinstance(m, Fused):
            refuse_variants(m)

    def shared(old: nn.Module) -> nn.Module | None:
        if type(old) not in _OURS and type(old) not in _OURS.values():
            return None
        new = _take_over(SyncBatchNorm, old)
        new.process_group = process_group
        return new

    result: Module = _replace(module, {}, shared)
    return result


def _taken_over(old: nn.Module) -> nn.Module | None:
    ours = _OURS.get(type(old))
    return None if ours is None else _take_over(ours, old)


def _take_over(ours: type[Taken], old: nn.Module) -> Taken:
    """A module of ours with everything that the old one holds."""
    new = ours.__new__(ours)
    new.__dict__.update(old.__dict__)
    return new


def _replace(module: Any, done: dict[nn.Module, nn.Module], convert: Any) -> Any:
    """Replaces in the whole tree; a module in several places has one replacement."""
    if module not in done:
        new = convert(module)
        done[module] = module if new is None else new
        for name, child in [*module._modules.items()]:
            if child is not None and (replaced := _replace(child, done, convert)) is not child:
                setattr(module, name, replaced)
    return done[module]


def _fold(sequence: nn.Sequential, places: Counter[int]) -> None:
    for (_, norm), (name, activation) in pairwise([*sequence.named_children()]):
        word = _word(activation)
        if word is None or not isinstance(norm, Fused) or norm.activation is not None:
            continue
        if any(places[id(m)] > 1 or any(getattr(m, h) for h in _HOOKS) for m in (norm, activation)):
            continue
        norm.activation = word
        norm.negative_slope = getattr(activation, "negative_slope", norm.negative_slope)
        setattr(sequence, name, nn.Identity().train(activation.training))


def _word(module: nn.Module) -> str | None:
    """Our name of an activation."""
    if type(module) is nn.GELU:
        return "gelu" if module.approximate == "none" else None
    return {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu", nn.Tanh: "tanh"}.get(type(module))
