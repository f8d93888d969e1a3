"""``torch.nn.functional.batch_norm`` with the activation and the residual fused in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from ...errors import expected, instance
from ...norm import Noise
from ...norm.options import check_activation, check_numbers, check_variants
from .autograd import Forward, traced
from .call import Call, Given

__all__ = ["batch_norm"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    ghost: int | None = None,
    renorm: tuple[float, float] | None = None,
    noise: Noise | None = None,
    num_batches_tracked: Tensor | None = None,
    process_group: Any = None,
) -> Tensor:
    """act(γ (x − mean)/√(var + eps) + β + residual) for each channel.

    Parameters
    ----------
    input : (N, C, …) tensor
        float32, float64, bfloat16 or float16; of any strides, and y has the same.
    running_mean, running_var, weight, bias, training, momentum, eps
        As in ``torch.nn.functional.batch_norm``.
    activation : None, "relu", "leaky_relu", "gelu" or "tanh"
    negative_slope : float
        Of "leaky_relu".
    residual : tensor like input, optional
        Added before the activation. One of another dtype is added by ``+``, with what that rounds.
    ghost, renorm, noise : optional
        See `saddlepoint.norm.batch_norm`.
    num_batches_tracked : tensor of no axes, optional
        In training increased in place; ``momentum=None`` needs it.
    process_group : optional
        Of processes that share the statistics in training, ``torch.distributed.group.WORLD`` say;
        their shares may be empty, and each must call.

    Raises
    ------
    TypeError, ValueError
        For wrong dtypes or shapes, one value a channel in training, an unknown activation, or an
        eps or momentum out of range; in training eps must be above 0, as in PyTorch.
    RuntimeError
        For a third derivative, ``vmap`` over running statistics, and where a training step is to be
        written down as operators (``torch.export``, ``torch.jit.trace``, ``make_fx``, ONNX).

    Notes
    -----
    Batch normalization of Ioffe & Szegedy (2015); mean and variance over all axes but the second.
    Differentiable twice in forward and reverse mode, in any composition, also by ``torch.func``;
    a third derivative raises RuntimeError. (Inside ``dual_level`` a gradient has a tangent, so the
    gradient of a tangent is of third order there: take it outside.) Under ``torch.compile`` a call
    is an operator of the graph, and a break in the graph with ``noise`` or a process group. In
    evaluation ``torch.export``, ``torch.jit.trace``, ``make_fx`` and both ONNX exporters are given
    PyTorch's own operators, so what they write needs no saddlepoint; so are meta and fake tensors.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch.nn.functional import batch_norm
    >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    >>> batch_norm(x, None, None, training=True, eps=3.0, activation="relu")
    tensor([[0.0000],
            [0.5000]], dtype=torch.float64)
    """
    if isinstance(input, fx.Proxy):
        positional = (input, running_mean, running_var, weight, bias, training, momentum, eps)
        options = {
            "activation": activation, "negative_slope": negative_slope, "residual": residual,
            "ghost": ghost, "renorm": renorm, "noise": noise,
            "num_batches_tracked": num_batches_tracked, "process_group": process_group,
        }  # fmt: skip
        y: Tensor = input.tracer.create_proxy("call_function", batch_norm, positional, options)
        return y
    check_activation(activation, negative_slope)
    check_variants(ghost, renorm, noise)
    eps, momentum = check_numbers(eps, momentum)
    if training and eps == 0.0:
        raise ValueError(expected("eps", "above 0 in training", eps))
    given = Given(input, weight, bias, residual, running_mean, running_var, num_batches_tracked)
    for name, tensor in zip(Given._fields, given, strict=True):
        if name == "input" or tensor is not None:
            instance(name, tensor, Tensor, "a tensor")
    if residual is not None and residual.dtype != input.dtype:
        if residual.shape != input.shape:
            what = f"shape {tuple(input.shape)}"
            raise ValueError(expected("residual", what, tuple(residual.shape)))
        y = batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps,
            ghost=ghost, renorm=renorm, noise=noise, num_batches_tracked=num_batches_tracked,
            process_group=process_group,
        )  # fmt: skip
        return activated(y + residual, activation, negative_slope)
    recorded = _recorded()
    if recorded and training:
        others = (running_mean, ghost, renorm, noise, process_group)
        if any(other is not None for other in others):
            raise RuntimeError(
                expected("training", "False where operators are written down (model.eval())", True)
                + "; saddlepoint.torch.nn.to_torch(model) has PyTorch's own modules"
            )
    if recorded or input.is_meta or (type(input) is not Tensor and hasattr(input, "fake_mode")):
        if training and num_batches_tracked is not None:
            num_batches_tracked.add_(1)
        y = functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum or 0.0, eps
        )
        return activated(y if residual is None else y + residual, activation, negative_slope)
    how = (training, momentum, eps, activation, negative_slope, ghost, renorm)
    if torch.compiler.is_compiling():
        from . import compiled

        if noise is None and process_group is None:
            return compiled.batch_norm(given, how)
        return compiled.uncompiled(_apply)(given, *how, noise, process_group)
    return _apply(given, *how, noise, process_group)


def activated(z: Tensor, activation: str | None, negative_slope: float) -> Tensor:
    """By PyTorch's own functions."""
    if activation == "relu":
        return functional.relu(z)
    if activation == "leaky_relu":
        return functional.leaky_relu(z, negative_slope)
    if activation == "gelu":
        return functional.gelu(z)
    return torch.tanh(z) if activation == "tanh" else z


def _recorded() -> bool:
    """Whether somebody writes down the operators that run, to run them elsewhere."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._get_tracing_state() is not None or traced()


def _apply(given: Given, *how: Any) -> Tensor:
    """Through autograd's functions; ``how`` are the fields of `Call`."""
    call = Call(*how)
    call.has_residual = given.residual is not None
    if call.shared:
        refuse_variants(call, "with a process group")
    y: Tensor = Forward.apply(call, *given)[0]
    return y


def refuse_variants(holder: Any, where: str) -> None:
    """Of these there are none over several processes, nor in PyTorch."""
    for name in ("ghost", "renorm", "noise"):
        if (value := getattr(holder, name)) is not None:
            raise ValueError(expected(name, f"None {where}", repr(value)))
