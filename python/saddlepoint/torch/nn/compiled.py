"""The call as an operator that ``torch.compile`` puts into its graph as it is.

An operator that autograd goes through may not change its arguments: the running statistics come out
as new tensors, and the graph copies them. A residual is kept whole before ReLU, since the size of
its bits is no formula of symbolic shapes; the graph often holds it anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ... import norm
from ...norm import Saved

__all__ = ["batch_norm", "uncompiled"]

F = TypeVar("F", bound=Callable[..., Any])
uncompiled: Callable[[F], F] = torch.compiler.disable  # breaks the graph

Maybe = Tensor | None


@torch.library.custom_op("saddlepoint::batch_norm", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    ghost: int | None,
    renorm: list[float] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, statistics, running_mean, running_var, batches); empty tensors for what is not there."""
    running = [None if t is None else t.clone() for t in (running_mean, running_var, batches)]
    y, saved = norm.batch_norm(
        x, weight, bias, running[0], running[1], training, momentum, eps, activation, residual,
        negative_slope=negative_slope, count=running[2], ghost=ghost,
        renorm=None if renorm is None else (renorm[0], renorm[1]),
    )  # fmt: skip
    mean, var, count = (x.new_empty(0) if t is None else t for t in running)
    return y, saved.statistics, mean, var, count


@_forward.register_fake
def _(
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    running_mean: Maybe,
    running_var: Maybe,
    batches: Maybe,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    ghost: int | None,
    renorm: list[float] | None,
) -> tuple[Tensor, ...]:
    groups = (x.shape[0] + ghost - 1) // ghost if training and ghost else 1
    tables = 6 if training and renorm else 2
    statistics = x.new_empty((tables, groups, x.shape[1]), dtype=torch.float64)
    running = (running_mean, running_var, batches)
    new = (x.new_empty(0) if t is None else torch.empty_like(t) for t in running)
    return torch.empty_like(x), statistics, *new


@torch.library.custom_op("saddlepoint::batch_norm_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    training: bool,
    activation: str | None,
    negative_slope: float,
    ghost: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dresidual); the last is empty without a residual."""
    rows = ghost if training and ghost and ghost < len(x) else 0
    saved = Saved(
        x, weight, bias, statistics, training, activation, negative_slope, residual, None,
        residual is not None, 1, rows,
    )  # fmt: skip
    dx, dweight, dbias, *dresidual = norm.batch_norm_backward(dy, saved)
    return dx, dweight, dbias, dresidual[0] if dresidual else x.new_empty(0)


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    statistics: Tensor,
    training: bool,
    activation: str | None,
    negative_slope: float,
    ghost: int | None,
) -> tuple[Tensor, ...]:
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    of_channels = (
        x.new_empty(x.shape[1], dtype=dtype) if t is None else torch.empty_like(t)
        for t in (weight, bias)
    )
    return (
        torch.empty_like(x),
        *of_channels,
        x.new_empty(0) if residual is None else (torch.empty_like(x)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual = inputs[:4]
    ctx.save_for_backward(x, weight, bias, residual, output[1])
    training, _, _, activation, negative_slope, ghost, _ = inputs[7:]
    ctx.rest = training, activation, negative_slope, ghost


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    _, weight, bias, residual, _ = ctx.saved_tensors
    dx, dweight, dbias, dresidual = _backward(dy, *ctx.saved_tensors, *ctx.rest)
    of_inputs = (
        gradient if given is not None else None
        for given, gradient in ((weight, dweight), (bias, dbias), (residual, dresidual))
    )
    return dx, *of_inputs, *(None,) * 10


_forward.register_autograd(_gradients, setup_context=_keep)


def batch_norm(
    x: Tensor,
    weight: Maybe,
    bias: Maybe,
    residual: Maybe,
    running_mean: Maybe,
    running_var: Maybe,
    batches: Maybe,
    training: bool,
    momentum: float | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    ghost: int | None,
    renorm: tuple[float, float] | None,
) -> Tensor:
    """The forward pass; the running statistics are changed in place."""
    y: Tensor
    y, _, *new = _forward(
        x, weight, bias, residual, running_mean, running_var, batches, training, momentum, eps,
        activation, negative_slope, ghost, None if renorm is None else [*renorm],
    )  # fmt: skip
    if training:
        for old, updated in zip((running_mean, running_var, batches), new, strict=True):
            if old is not None:
                old.copy_(updated.detach())
    return y
