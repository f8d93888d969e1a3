"""Functions whose second derivative PyTorch lacks or gets wrong, by others that have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["TwiceDifferentiable"]


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / ‖v‖, the norm over all axes but ``dim``.

    PyTorch's own (2.13) leaves the norm out of its second derivative.
    """
    return v * (g / torch.norm_except_dim(v, 2, dim))


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums or means of embeddings by bag; PyTorch's own has one derivative."""
    del sparse
    if mode == "max":
        raise NotImplementedError("the second derivative of embedding_bag with mode='max'")
    if input.ndim == 2:
        bags, length = input.shape
        bag = torch.arange(bags, device=input.device).repeat_interleave(length)
    else:
        assert offsets is not None
        begins = offsets[:-1] if include_last_offset else offsets
        bags = len(begins)
        places = torch.arange(len(input), device=input.device)
        bag = torch.searchsorted(begins.contiguous(), places, right=True) - 1
    words = input.reshape(-1)
    if padding_idx is not None:
        kept = words != padding_idx % len(weight)
        words, bag = words[kept], bag[kept]
    each = F.embedding(words, weight, None, max_norm, norm_type, scale_grad_by_freq)
    if per_sample_weights is not None:
        by = per_sample_weights.reshape(-1)
        each = each * (by if padding_idx is None else by[kept])[:, None]
    sums = each.new_zeros(bags, each.shape[1]).index_add(0, bag, each)
    if mode == "sum":
        return sums
    return sums / torch.bincount(bag, minlength=bags).clamp(min=1)[:, None]


_INSTEAD: dict[Any, Callable[..., Any]] = {
    torch._weight_norm: weight_norm,
    F.embedding_bag: embedding_bag,
}


class TwiceDifferentiable(TorchFunctionMode):
    """Where it is entered, calls of these functions go to their substitutes."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _INSTEAD.get(func, func)(*args, **(kwargs or {}))
