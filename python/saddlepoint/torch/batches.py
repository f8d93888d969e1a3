"""The data of an objective: batches in a fixed order, on a device, each with its weight."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

from ..errors import expected

__all__ = ["Batch", "LossFunction", "batches_of", "joined", "mapped", "rows_of", "tensors"]


@dataclass(frozen=True)
class Batch:
    """What a module is called with, and its target; ``whole`` is the batch as it came."""

    inputs: Any
    target: Any
    whole: Any

    @property
    def rows(self) -> int:
        """Samples: as many as targets, where those are a tensor."""
        by_target = isinstance(self.target, Tensor) and self.target.ndim > 0
        return rows_of(self.target if by_target else self.inputs)

    def call(self, module: Callable[..., Any]) -> Any:
        """The module's output: tuples are arguments, mappings are named ones."""
        if isinstance(self.inputs, Mapping):
            return module(**self.inputs)
        if isinstance(self.inputs, (tuple, list)):
            return module(*self.inputs)
        return module(self.inputs)


def mapped(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A structure of tuples, lists and mappings with its tensors replaced."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(f, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(f, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(mapped(f, value) for value in tree)
    return tree


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of a structure."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from tensors(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from tensors(value)


def joined(tree: Any, other: Any) -> Any:
    """Two structures as one of all their rows; None where their rows differ in shape."""
    pairs = list(zip(tensors(tree), tensors(other), strict=True))
    if any(a.shape[1:] != b.shape[1:] for a, b in pairs):
        return None
    both = iter([torch.cat([a, b]) if a.ndim else a for a, b in pairs])
    return mapped(lambda _: next(both), tree)


def rows_of(tree: Any) -> int:
    """The length of the first tensor: the samples of a batch."""
    for tensor in tensors(tree):
        return int(tensor.shape[0]) if tensor.ndim else 1
    raise TypeError(expected("data", "batches with tensors", type(tree).__name__))


def _is_pair(data: Any) -> bool:
    """One (input, target), and not a list of two batches."""
    return (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and isinstance(data[1], Tensor)
        and not (isinstance(data, list) and isinstance(data[0], (tuple, list)))
    )


def batches_of(data: Any, place: Callable[[Tensor], Tensor], whole: bool) -> list[Batch]:
    """The batches of a loader, a list, or one pair, in their order.

    ``place`` brings a tensor to its device and dtype; ``whole`` says that the loss takes batches
    as they come.
    """
    if isinstance(data, DataLoader):
        _refuse_shuffling(data)
        given: Iterable[Any] = data
    elif _is_pair(data) or isinstance(data, (Tensor, Mapping)):
        given = [data]
    elif isinstance(data, Iterable):
        given = data
    else:
        what = "an (input, target) pair, a list of them, or a DataLoader"
        raise TypeError(expected("data", what, type(data).__name__))
    batches = []
    for item in given:
        there = mapped(place, item)
        if whole:
            batches.append(Batch(there, None, there))
        elif isinstance(there, (tuple, list)) and len(there) == 2:
            batches.append(Batch(there[0], there[1], there))
        else:
            what = "(input, target) pairs, or a loss of (module, batch)"
            raise TypeError(expected("data", what, _described(item)))
    if not batches or not sum(batch.rows for batch in batches):
        raise ValueError(expected("data", "at least one sample", "none"))
    return [batch for batch in batches if batch.rows]


def _described(item: Any) -> str:
    length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
    return f"a {type(item).__name__}{length}"


def _refuse_shuffling(loader: DataLoader[Any]) -> None:
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, (RandomSampler, WeightedRandomSampler)):
        remedy = "DataLoader(loader.dataset, batch_size=…) without shuffle"
        raise ValueError(
            expected("data", f"a loader with a fixed order ({remedy})", type(sampler).__name__)
        )


_BY_LABELS = (nn.CrossEntropyLoss, nn.NLLLoss)
_BY_ELEMENTS = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss, nn.GaussianNLLLoss, nn.SoftMarginLoss,
)  # fmt: skip
_FUNCTIONS: dict[Any, Any] = {
    F.cross_entropy: nn.CrossEntropyLoss, F.nll_loss: nn.NLLLoss, F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss, F.smooth_l1_loss: nn.SmoothL1Loss, F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss, F.soft_margin_loss: nn.SoftMarginLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}  # fmt: skip
_WHOLE = ("module", "model", "net")


class LossFunction:
    """A loss of outputs and targets, or of a module and its batch, and what a batch weighs.

    The loss of all data is what the function would give of one batch of them all: a sum where it
    sums, else a mean over what it counts: samples, elements, or labels that are not ignored. One
    that returns (total, count) says itself.
    """

    def __init__(self, function: Any) -> None:
        if not callable(function):
            what = "a callable: loss(output, target), or loss(module, batch)"
            raise TypeError(expected("loss", what, type(function).__name__))
        self.function = function
        #: Whether it calls the module itself.
        self.whole = not isinstance(function, nn.Module) and _first_name(function) in _WHOLE

    def __call__(self, module: Callable[..., Any], batch: Batch) -> tuple[Tensor, float | None]:
        """The loss of a batch, and what it says that it counts."""
        if self.whole:
            return self._told(self.function(module, batch.whole))
        return self.of_output(batch.call(module), batch)

    def of_output(self, output: Any, batch: Batch) -> tuple[Tensor, float | None]:
        """The same, of what the module gave for the batch."""
        return self._told(self.function(output, batch.target))

    @staticmethod
    def _told(result: Any) -> tuple[Tensor, float | None]:
        counted = None
        if isinstance(result, (tuple, list)) and len(result) == 2:
            total, said = result
            counted = float(said.detach() if isinstance(said, Tensor) else said)
            result = total / said if counted else 0.0 * total
        if not isinstance(result, Tensor) or result.numel() != 1:
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise TypeError(expected("loss", "one number a batch, or (total, count)", got))
        if result.is_complex():
            raise TypeError(expected("loss", "a real number", "a complex one"))
        return result.reshape(()), counted

    @property
    def sums(self) -> bool:
        """Whether it is known to add up what it is given."""
        return bool(self.settings.get("reduction", "mean") == "sum")

    def weight(self, batch: Batch) -> float:
        """What the mean over a batch is over, where the function does not say."""
        settings, target = self.settings, batch.target
        kind = settings["kind"]
        if issubclass(kind, _BY_LABELS) and not target.is_floating_point():
            kept = target != settings.get("ignore_index", -100)
            of_class = settings.get("weight")
            if of_class is None:
                return float(kept.sum())
            return float(of_class.to(target.device)[target[kept]].sum())
        if issubclass(kind, _BY_ELEMENTS):
            return float(target.numel())
        return float(batch.rows)

    @property
    def known(self) -> bool:
        """Whether it is one of PyTorch's, whose means are known."""
        kind = self.settings["kind"]
        return issubclass(kind, (*_BY_LABELS, *_BY_ELEMENTS))

    @property
    def settings(self) -> dict[str, Any]:
        """Which of PyTorch's it is (``kind``), and what it was given by name."""
        function = self.function
        if isinstance(function, nn.Module):
            names = ("reduction", "ignore_index", "weight", "label_smoothing")
            found = {name: getattr(function, name) for name in names if hasattr(function, name)}
            return {"kind": type(function), **found}
        keywords: dict[str, Any] = {}
        while isinstance(function, functools.partial):
            keywords = {**function.keywords, **keywords}
            function = function.func
        try:
            return {"kind": _FUNCTIONS.get(function, object), **keywords}
        except TypeError:  # cannot be a key
            return {"kind": object}


def _first_name(function: Any) -> str:
    try:
        return next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):
        return ""
