"""Batch normalization as autograd functions: two orders in any composition, no third.

``y = F(x, …)`` has the backward pass B and the tangent T; their derivatives are the double backward
D (reverse over reverse), the tangent of the backward E (forward over reverse, and what reverse over
forward gives to the inputs), and the second tangent S (forward over forward). Each is a call of
`saddlepoint.norm`. D, E and S raise when they are differentiated themselves, so that a third order
is an error and never a wrong number.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch._C._functorch import is_legacy_batchedtensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function
from torch.autograd.graph import increment_version

from ... import norm
from ...errors import expected
from ...norm import Saved
from .call import Call, Given

__all__ = ["Forward", "traced"]

Maybe = Tensor | None


def traced() -> bool:
    """Whether ``make_fx`` or ``torch.func.linearize`` write down the operators that run."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


class _Derivative(Function):
    """A function of a `Call`, directions, and what autograd keeps of a `Saved`.

    Kept are x, weight, bias, residual, statistics and gate, which are the last arguments.
    """

    x_at = -6

    def __init_subclass__(cls) -> None:
        cls.vmap = staticmethod(partial(_one_by_one, cls))  # type: ignore[method-assign]
        forward = cls.forward
        cls.forward = staticmethod(  # type: ignore[method-assign]
            lambda call, *given: forward(call, *_readable(given, given[cls.x_at]))
        )

    @classmethod
    def apply(cls, *args: Any) -> Any:
        # PyTorch's own looks the signature of `forward` up, which takes as long as a small kernel.
        if traced():
            raise RuntimeError(
                "batch_norm: expected no tracing of aten operators (torch.func.linearize, make_fx),"
                " which this is not made of; torch.func.jvp gives the same numbers"
            )
        if any(isinstance(a, Tensor) and is_legacy_batchedtensor(a) for a in args):
            return _batch_by_batch(cls, args)
        inherited: Any = super()
        if not torch._C._are_functorch_transforms_active():
            inherited, args = super(Function, cls), unwrap_dead_wrappers(args)
        return inherited.apply(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call = inputs[0]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])


def _one_by_one(function: Any, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
    """``vmap``: statistics are of each example's own batch, so there is no larger call to make."""
    if function is Forward and args[0].training and args[5] is not None:
        raise RuntimeError(
            "vmap: expected no running statistics in training, which one call after the other would"
            " change; torch.func.replace_all_batch_norm_modules_ takes them out of a module"
        )
    columns = [
        [a] * info.batch_size if d is None else a.unbind(d)
        for a, d in zip(args, in_dims, strict=True)
    ]
    results = [function.apply(*row) for row in zip(*columns, strict=True)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _batch_by_batch(function: Any, args: tuple[Any, ...]) -> Any:
    """``torch.autograd.grad(is_grads_batched=True)``, whose ``vmap`` is not that of torch.func."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    if level != 1:
        raise RuntimeError("batch_norm: expected one level of batched gradients, got several")
    in_dims = tuple(
        0 if isinstance(a, Tensor) and is_legacy_batchedtensor(a) else None for a in args
    )
    columns = [
        a if d is None else torch._remove_batch_dim(a, level, 1, 0)
        for a, d in zip(args, in_dims, strict=True)
    ]
    size = next(len(a) for a, d in zip(columns, in_dims, strict=True) if d is not None)
    results, _ = _one_by_one(function, SimpleNamespace(batch_size=size), in_dims, *columns)
    if isinstance(results, Tensor):
        return torch._add_batch_dim(results, 0, level)
    return tuple(torch._add_batch_dim(r, 0, level) for r in results)


def _readable(given: tuple[Maybe, ...], x: Tensor) -> list[Maybe]:
    """With memory that holds what it says: autograd has zeros without any, and lazy negatives.

    What lies in another order than x is copied by PyTorch, on all threads.
    """
    readable: list[Maybe] = []
    for t in given:
        if t is None:
            readable.append(None)
        elif t._is_zerotensor():
            readable.append(torch.zeros_like(t))
        elif t.stride() != x.stride() and t.shape == x.shape:
            readable.append(torch.empty_like(x).copy_(t))
        else:
            readable.append(t.resolve_neg())
    return readable


def _some(*directions: Maybe) -> bool:
    return any(d is not None for d in directions)


def _plus(a: Maybe, b: Maybe) -> Maybe:
    return b if a is None else a if b is None else a + b


class Forward(_Derivative):
    """A `Call` and what is `Given` to y and its record."""

    x_at = 0

    @staticmethod
    def forward(call: Call, *tensors: Any) -> tuple[Tensor, ...]:
        given = Given(*tensors)
        y, saved = _forward_shared(call, given) if call.shared else call.forward(given)
        for running in (given.running_mean, given.running_var):
            if call.training and running is not None:
                increment_version(running)
        return (y, saved.statistics) if saved.gate is None else (y, saved.statistics, saved.gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, x, weight, bias, residual = inputs[:5]
        ctx.call, ctx.outputs = call, len(output)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        kept = (
            x, weight, bias, residual if call.curved else None, output[1],
            output[2] if len(output) == 3 else None,
        )  # fmt: skip
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, dy: Maybe, *_: None) -> tuple[Maybe, ...]:
        if dy is None:
            return (None,) * 8
        kept = ctx.saved_tensors  # once: checkpoints give them up
        dx, dweight, dbias, *dresidual = Backward.apply(ctx.call, dy, *kept)
        return (
            None, dx, None if kept[1] is None else dweight, None if kept[2] is None else dbias,
            dresidual[0] if dresidual else None, None, None, None,
        )  # fmt: skip

    @staticmethod
    def jvp(ctx: Any, _: None, *along: Maybe) -> tuple[Maybe, ...]:
        yt = Tangent.apply(ctx.call, *along[:4], *ctx.saved_tensors)
        return yt, *(None,) * (ctx.outputs - 1)


class Backward(_Derivative):
    """(call, dy, kept) to (dx, dweight, dbias[, dresidual])."""

    @staticmethod
    def forward(call: Call, dy: Tensor, *kept: Any) -> tuple[Tensor, ...]:
        gradients = norm.batch_norm_backward(dy, call.saved(kept), reduce=call.reduce)
        return cast(tuple[Tensor, ...], gradients)

    @staticmethod
    def backward(ctx: Any, *along: Maybe) -> tuple[Maybe, ...]:
        ddx, ddweight, ddbias, ddresidual = _four(ctx.call, along)
        dy, *kept = ctx.saved_tensors
        if not _some(ddx, ddweight, ddbias, ddresidual):
            return (None,) * 8
        ddy, dx, dweight, *more = DoubleBackward.apply(
            ctx.call, ddx, ddweight, ddbias, ddresidual, dy, *kept
        )
        dbias, dresidual = (*more, None, None)[:2]
        if kept[1] is None:
            dweight = None
        return None, ddy, dx, dweight, None if kept[2] is None else dbias, dresidual, None, None

    @staticmethod
    def jvp(ctx: Any, _: None, dyt: Maybe, *along: Maybe) -> Any:
        return BackwardTangent.apply(ctx.call, dyt, *along[:4], *ctx.saved_tensors)


class Tangent(_Derivative):
    """(call, directions of x, weight, bias and residual, kept) to y'."""

    @staticmethod
    def forward(call: Call, xt: Maybe, wt: Maybe, bt: Maybe, rt: Maybe, *kept: Any) -> Tensor:
        yt = norm.batch_norm_tangent(xt, call.saved(kept), wt, bt, rt, reduce=call.reduce)
        return cast(Tensor, yt)

    @staticmethod
    def backward(ctx: Any, g: Maybe) -> tuple[Maybe, ...]:
        if g is None:
            return (None,) * 11
        call, given = ctx.call, ctx.saved_tensors
        along, kept = given[:4], given[4:]
        of_directions: tuple[Maybe, ...] = (None,) * 4
        of_inputs = of_directions
        if any(ctx.needs_input_grad[1:5]):
            of_directions = _four(call, Backward.apply(call, g, *kept))
        if any(ctx.needs_input_grad[5:9]):
            of_inputs = _four(call, BackwardTangent.apply(call, None, *along, g, *kept))
        pairs = [*zip(of_directions, along, strict=True), *zip(of_inputs, kept, strict=False)]
        return None, *(d if given is not None else None for d, given in pairs), None, None

    @staticmethod
    def jvp(ctx: Any, _: None, *given: Maybe) -> Maybe:
        tensors = ctx.saved_tensors
        along, kept, moved, other = tensors[:4], tensors[4:], given[:4], given[4:8]
        first = second = None
        if _some(*moved):
            first = Tangent.apply(ctx.call, *moved, *kept)
        if _some(*other):
            second = SecondTangent.apply(ctx.call, *along, *other, *kept)
        return _plus(first, second)


class _Last(_Derivative):
    """A derivative of second order."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keeps nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Maybe) -> Any:
        _no_third()

    @staticmethod
    def jvp(ctx: Any, *along: Maybe) -> Any:
        _no_third()


def _no_third() -> None:
    raise RuntimeError(
        "batch_norm: expected derivatives of at most second order, got a third derivative"
    )


class DoubleBackward(_Last):
    """(call, ddx, ddweight, ddbias, ddresidual, dy, kept) to the gradients of dy and kept."""

    @staticmethod
    def forward(
        call: Call, ddx: Maybe, ddw: Maybe, ddb: Maybe, ddr: Maybe, dy: Tensor, *kept: Any
    ) -> tuple[Tensor, ...]:
        _same_everywhere(call, ddw, kept[0])
        return norm.batch_norm_double_backward(
            ddx, ddw, ddb, dy, call.saved(kept), ddr, reduce=call.reduce
        )


class BackwardTangent(_Last):
    """(call, dy', directions of x, weight, bias and residual, dy, kept) to those of `Backward`."""

    @staticmethod
    def forward(
        call: Call, dyt: Maybe, xt: Maybe, wt: Maybe, bt: Maybe, rt: Maybe, dy: Tensor, *kept: Any
    ) -> tuple[Tensor, ...]:
        _same_everywhere(call, wt, kept[0])
        return norm.batch_norm_backward_tangent(
            dy, dyt, xt, call.saved(kept), wt, bt, rt, reduce=call.reduce
        )


class SecondTangent(_Last):
    """(call, four directions, four others, kept) to the derivative of y along both."""

    @staticmethod
    def forward(call: Call, *given: Any) -> Tensor:
        (xt, wt, bt, rt), (xu, wu, bu, ru), kept = given[:4], given[4:8], given[8:]
        ytu = norm.batch_norm_second_tangent(
            xt, xu, call.saved(kept), wt, bt, rt, wu, bu, ru, reduce=call.reduce
        )
        return cast(Tensor, ytu)


def _four(call: Call, gradients: tuple[Maybe, ...]) -> tuple[Maybe, ...]:
    """Gradients of x, weight, bias and residual, that of the residual being there or not."""
    return gradients if call.has_residual else (*gradients[:3], None)


def _forward_shared(call: Call, given: Given) -> tuple[Tensor, Saved]:
    """`Call.forward` with the statistics of all processes' batches."""
    x, weight, bias, residual, running_mean, running_var, batches = given
    part = norm.batch_norm_statistics(x)
    channels = x.shape[1]
    own = torch.cat([part.mean.new_tensor([part.elements]), part.mean, part.m2])
    everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size(call.group))]
    distributed.all_gather(everyone, own, group=call.group)
    # `norm.combine` of all at once: a device is asked for one number, and given few kernels.
    table = torch.stack(everyone)
    counts, means, squares = table[:, :1], table[:, 1 : channels + 1], table[:, channels + 1 :]
    call.elements = int(counts.sum())
    mean = (counts * means).sum(0) / max(call.elements, 1)
    m2 = (squares + counts * (means - mean).square()).sum(0)
    if call.elements == 1:
        raise ValueError(
            expected("x", "more than 1 value per channel when training", "1 in all processes")
        )
    variance = m2 / max(call.elements, 1)
    y, saved = norm.batch_norm_apply(
        x, mean, torch.rsqrt(variance + call.eps), weight, bias, call.activation, residual,
        negative_slope=call.negative_slope, count=call.elements,
    )  # fmt: skip
    if call.elements > 1:
        if batches is not None:
            batches.add_(1)
        if running_mean is not None and running_var is not None:
            share = call.momentum
            if share is None:
                share = 1.0 / float(cast(Tensor, batches))
            unbiased = m2 / (call.elements - 1)
            for old, new in ((running_mean, mean), (running_var, unbiased)):
                old.copy_(old.double().lerp(new, share))
    return y, saved


def _same_everywhere(call: Call, weight_t: Maybe, x: Tensor) -> None:
    """A direction of the weight is under the means over all processes: it must be one for all."""
    if not call.shared:
        return
    own = x.new_zeros(x.shape[1], dtype=torch.float64)
    if weight_t is not None:
        own += weight_t
    ends = torch.cat([own, -own])
    distributed.all_reduce(ends, distributed.ReduceOp.MAX, group=call.group)
    if not torch.equal(ends[: len(own)], -ends[len(own) :]):
        raise ValueError(
            expected("weight", "the same direction in all processes", "different ones")
        )
