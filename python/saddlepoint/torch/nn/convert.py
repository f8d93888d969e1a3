"""Takes a model's batch normalization over, and gives it back."""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from ...errors import instance
from .functional import refuse_variants
from .modules import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchNormAct,
    Plain,
    SyncBatchNorm,
    hooked,
)

__all__ = ["convert_batch_norm", "convert_sync_batchnorm", "to_torch"]

Module = TypeVar("Module", bound=nn.Module)
Taken = TypeVar("Taken", bound=nn.Module)

_OURS: dict[type[nn.Module], type[Plain]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_THEIRS: dict[type[nn.Module], type[nn.Module]] = {
    **{ours: theirs for theirs, ours in _OURS.items()},
    SyncBatchNorm: nn.SyncBatchNorm,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def convert_batch_norm(module: Module, *, fold_activations: bool = True) -> Module:
    """Put our modules in the place of ``torch.nn.BatchNorm1d``, ``2d`` and ``3d``.

    Parameters, buffers and hooks stay, so optimizers go on; checkpoints of the model before can be
    loaded after. `to_torch` is the way back.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and returned; where it is itself a batch normalization, the new one is
        returned instead. Subclasses of PyTorch's modules are left alone, with a warning that names
        them: they may do more. So are lazy modules that have not seen a batch.
    fold_activations : bool
        In a ``Sequential`` the ReLU, LeakyReLU, exact GELU or Tanh after a batch normalization
        becomes part of it: a `BatchNormAct` holds both, and an ``Identity`` stands where the
        activation was. Not where one of the two has hooks or stands in a second place. A model that
        takes single elements out of the ``Sequential`` sees the activation earlier.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch import nn
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    >>> model = nn.convert_batch_norm(model)
    >>> model[0].activation, model[1]
    ('relu', Identity())
    """
    _check_module(module)
    _say_what_stays(module, "convert_batch_norm")
    result: Module = _replace(module, {}, lambda old: _taken_over(old, _OURS))
    if fold_activations:
        places = _places(result)
        for sequence in _sequences(result):
            _fold(sequence, places)
    return result


def convert_sync_batchnorm(module: Module, process_group: Any = None) -> Module:
    """Put `SyncBatchNorm` in the place of PyTorch's and our ``BatchNorm*d``; activations stay.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and returned; where it is itself a batch normalization, the new one is
        returned instead. What `convert_batch_norm` leaves alone is left alone, with a warning.
    process_group : optional
        The processes; all of them by default.

    Raises
    ------
    ValueError
        For a module with ``ghost``, ``renorm`` or ``noise``; nothing has been changed then.
    """
    _refuse_variants(module)
    _say_what_stays(module, "convert_sync_batchnorm")

    def shared(old: nn.Module) -> nn.Module | None:
        if type(old) not in _OURS and type(old) not in _OURS.values():
            return None
        new = _take_over(SyncBatchNorm, old)
        new.process_group = process_group
        return new

    result: Module = _replace(module, {}, shared)
    return result


def to_torch(module: Module) -> Module:
    """Put PyTorch's modules in the place of ours: the way back from `convert_batch_norm`.

    Parameters, buffers, hooks and values stay.

    Parameters
    ----------
    module : torch.nn.Module
        Changed in place, and returned; where it is itself one of ours, the new one is returned
        instead. In a ``Sequential`` the activation of a `BatchNormAct` goes to the ``Identity``
        after it, where it once was, or a ``Sequential`` of ``norm`` and ``activation`` takes its
        place. Elsewhere a residual may come with the call: there the `BatchNormAct` stays, around
        PyTorch's batch normalization and with PyTorch's own functions.

    Raises
    ------
    ValueError
        For a module with ``ghost``, ``renorm`` or ``noise``; nothing has been changed then.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch import nn
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    >>> [type(m).__name__ for m in nn.to_torch(nn.convert_batch_norm(model))]
    ['BatchNorm1d', 'ReLU']
    """
    _refuse_variants(module)
    result: Module = _replace(module, {}, lambda old: _taken_over(old, _THEIRS))
    places = _places(result)
    done: dict[nn.Module, nn.Module] = {}
    for sequence in _sequences(result):
        _unfold(sequence, places, done)
    return result


def _check_module(module: Any) -> None:
    instance("module", module, nn.Module, "a torch.nn.Module")


def _refuse_variants(module: nn.Module) -> None:
    _check_module(module)
    for m in module.modules():
        if isinstance(m, Plain):
            refuse_variants(m, "in another module")


def _say_what_stays(module: nn.Module, name: str) -> None:
    """Warns of batch normalization that is neither ours nor exactly PyTorch's."""
    left = []
    for path, m in module.named_modules():
        if not isinstance(m, _BatchNorm) or isinstance(m, Plain) or type(m) in _OURS:
            continue
        cure = "run one batch first" if isinstance(m, LazyModuleMixin) else "it may do more"
        left.append(f"{path or 'the module itself'} ({type(m).__name__}: {cure})")
    if left:
        warnings.warn(f"{name}: left alone: {', '.join(left)}", UserWarning, stacklevel=3)


def _taken_over(old: nn.Module, classes: dict[type[nn.Module], Any]) -> nn.Module | None:
    new = classes.get(type(old))
    return None if new is None else _take_over(new, old)


def _take_over(new_class: type[Taken], old: nn.Module) -> Taken:
    """A module of another class with everything that the old one holds."""
    new = new_class.__new__(new_class)
    new.__dict__.update(old.__dict__)
    return new


def _replace(
    module: Any, done: dict[nn.Module, nn.Module], convert: Callable[[nn.Module], nn.Module | None]
) -> Any:
    """Replaces in the whole tree; a module in several places has one replacement."""
    if module not in done:
        new = convert(module)
        done[module] = module if new is None else new
        for name, child in [*module._modules.items()]:
            if child is not None and (replaced := _replace(child, done, convert)) is not child:
                setattr(module, name, replaced)
    return done[module]


def _places(module: nn.Module) -> Counter[int]:
    """How often each module stands in the tree, by its id."""
    return Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))


def _sequences(module: nn.Module) -> Iterator[nn.Sequential]:
    """Those that do nothing but call one after the other."""
    for m in [*module.modules()]:
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
            yield m


def _fold(sequence: nn.Sequential, places: Counter[int]) -> None:
    for (norm_name, norm), (name, activation) in pairwise([*sequence.named_children()]):
        word = _word(activation)
        if word is None or not isinstance(norm, Plain):
            continue
        if any(places[id(m)] > 1 or hooked(m) or "forward" in vars(m) for m in (norm, activation)):
            continue
        slope = getattr(activation, "negative_slope", 0.01)
        setattr(sequence, norm_name, BatchNormAct(norm, word, slope))
        setattr(sequence, name, nn.Identity().train(activation.training))


def _unfold(
    sequence: nn.Sequential, places: Counter[int], done: dict[nn.Module, nn.Module]
) -> None:
    children: list[tuple[str | None, nn.Module | None]] = [*sequence.named_children()]
    for (name, held), (after, identity) in pairwise([*children, (None, None)]):
        if type(held) is not BatchNormAct or hooked(held):
            continue
        assert name is not None
        alone = places[id(held)] == 1 and places[id(identity)] == 1
        if alone and after and type(identity) is nn.Identity and not hooked(identity):
            setattr(sequence, name, held.norm)
            setattr(sequence, after, _activation(held))
            continue
        if held not in done:
            done[held] = nn.Sequential(OrderedDict(norm=held.norm, activation=_activation(held)))
            done[held].training = held.training
        setattr(sequence, name, done[held])


def _word(module: nn.Module) -> str | None:
    """Our name of an activation."""
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return None
    return next((word for word, kind in _ACTIVATIONS.items() if type(module) is kind), None)


def _activation(held: BatchNormAct) -> nn.Module:
    """PyTorch's module."""
    if held.activation is None:
        return nn.Identity().train(held.training)
    slope = {"negative_slope": held.negative_slope} if held.activation == "leaky_relu" else {}
    return _ACTIVATIONS[held.activation](**slope).train(held.training)
