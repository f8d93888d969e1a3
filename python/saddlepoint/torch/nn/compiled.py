"""The call as an operator that ``torch.compile`` puts into its graph as it is.

An operator that autograd goes through may not change its arguments: the running statistics come out
as new tensors, and the graph copies them. A residual is kept whole before ReLU, since the size of
its bits is no formula of symbolic shapes; the graph often holds it anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from ... import norm
from .call import Call, Given, How

__all__ = ["batch_norm", "uncompiled"]

F = TypeVar("F", bound=Callable[..., Any])
uncompiled: Callable[[F], F] = torch.compiler.disable  # breaks the graph

_WORDS: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", float: "float", str | None: "str?",
    float | None: "float?", int | None: "int?", tuple[float, float] | None: "float[]?",
}  # fmt: skip


def _schema(kind: type, *names: str) -> list[str]:
    """Fields, all or some, as PyTorch writes the arguments of an operator."""
    hints = get_type_hints(kind)
    return [f"{_WORDS[hints[name]]} {name}" for name in names or hints]


# Graphs in the compiler's cache on disk call the operators: a name keeps its arguments.
_INPUTS = 4  # the first tensors of `Given`: the others are the running statistics
_KEPT = ("training", "activation", "negative_slope", "ghost")  # that a derivative is told
_TENSORS, _HOW, _KEPT_HOW = _schema(Given), _schema(How), _schema(How, *_KEPT)


def _read(arguments: tuple[Any, ...]) -> tuple[Given, Call]:
    n = len(_TENSORS)
    given: Any = arguments[:n]
    return Given(*given), Call(*arguments[n:])


@torch.library.custom_op(
    "saddlepoint::batch_norm",
    mutates_args=(),
    schema=f"({', '.join(_TENSORS + _HOW)}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    """(y, statistics, running_mean, running_var, batches); empty tensors for what is not there."""
    given, call = _read(arguments)
    running = [None if t is None else t.clone() for t in given[_INPUTS:]]
    y, saved = call.forward(Given(given.input, *given[1:_INPUTS], *running))
    return y, saved.statistics, *(y.new_empty(0) if t is None else t for t in running)


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    given, call = _read(arguments)
    x, ghost = given.input, call.ghost
    # The sizes may be symbols, which the extension cannot be asked about.
    groups = (x.shape[0] + ghost - 1) // ghost if call.training and ghost else 1
    tables = 6 if call.training and call.renorm else 2
    statistics = x.new_empty((tables, groups, x.shape[1]), dtype=torch.float64)
    new = (x.new_empty(0) if t is None else torch.empty_like(t) for t in given[_INPUTS:])
    return torch.empty_like(x), statistics, *new


@torch.library.custom_op(
    "saddlepoint::batch_norm_backward",
    mutates_args=(),
    schema=f"({', '.join(['Tensor dy', *_TENSORS[:_INPUTS], 'Tensor statistics', *_KEPT_HOW])})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """(dx, dweight, dbias, dresidual); the last is empty without a residual."""
    kept, how = arguments[: _INPUTS + 1], arguments[_INPUTS + 1 :]
    call = Call(**dict(zip(_KEPT, how, strict=True)), has_residual=kept[3] is not None)
    saved = call.saved((*kept, None))
    dx, dweight, dbias, *dresidual = norm.batch_norm_backward(dy, saved)
    return dx, dweight, dbias, dresidual[0] if dresidual else dx.new_empty(0)


@_backward.register_fake
def _(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    x, weight, bias, residual, *_ = arguments
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    of_channels = (
        x.new_empty(x.shape[1], dtype=dtype) if t is None else torch.empty_like(t)
        for t in (weight, bias)
    )
    return (
        torch.empty_like(x),
        *of_channels,
        x.new_empty(0) if residual is None else torch.empty_like(x),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    how = How(*inputs[len(_TENSORS) :])
    ctx.how = [getattr(how, name) for name in _KEPT]
    ctx.save_for_backward(*inputs[:_INPUTS], output[1])


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    kept = ctx.saved_tensors
    dx, *others = _backward(dy, *kept, *ctx.how)
    of_inputs = (g if t is not None else None for t, g in zip(kept[1:4], others, strict=True))
    return dx, *of_inputs, *(None,) * (len(_TENSORS) - _INPUTS + len(_HOW))


_forward.register_autograd(_gradients, setup_context=_keep)


def batch_norm(given: Given, how: tuple[Any, ...]) -> Tensor:
    """The forward pass; ``how`` are the fields of `How`. Running statistics change in place."""
    *rest, renorm = how
    y: Tensor
    y, _, *new = _forward(*given, *rest, None if renorm is None else [*renorm])
    if how[0]:
        for old, updated in zip(given[_INPUTS:], new, strict=True):
            if old is not None:
                old.copy_(updated.detach())
    return y
