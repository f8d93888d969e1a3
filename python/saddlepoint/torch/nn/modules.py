"""``torch.nn``'s batch normalization modules, and one that holds one with what follows it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, distributed, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from ...errors import expected
from ...norm import Noise
from ...norm.options import check_activation, check_variants
from .functional import activated, batch_norm

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNormAct", "SyncBatchNorm", "hooked"]


class Plain(_BatchNorm):
    """What the modules share; state dicts, and values in evaluation, are PyTorch's."""

    # Also of a module that was PyTorch's until now.
    ghost: int | None = None
    renorm: tuple[float, float] | None = None
    noise: Noise | None = None

    def __new__(
        cls, *given: Any, activation: str | None = None, negative_slope: float = 0.01, **named: Any
    ) -> Any:
        """With an activation, the module that holds the plain one."""
        if activation is None:
            return super().__new__(cls)
        return BatchNormAct(cls(*given, **named), activation, negative_slope)

    def __init_subclass__(cls) -> None:
        # What tools and help read: `__init__`'s arguments and those that `__new__` takes.
        more = inspect.signature(Plain.__new__).parameters
        own = [*inspect.signature(cls.__init__).parameters.values()][1:]
        own += [more["activation"], more["negative_slope"]]
        cls.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        ghost: int | None = None,
        renorm: tuple[float, float] | None = None,
        noise: Noise | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            **({} if bias else {"bias": False}),  # new in PyTorch 2.13
        )  # fmt: skip
        check_variants(ghost, renorm, noise)
        self.ghost = ghost
        self.renorm = renorm
        self.noise = noise

    def forward(self, input: Tensor) -> Tensor:
        """γ (input − mean)/√(var + eps) + β."""
        if isinstance(input, fx.Proxy):
            return _leaf(self, input)
        return self.normalize(input, None, None, 0.01)

    def normalize(
        self, input: Tensor, residual: Tensor | None, activation: str | None, negative_slope: float
    ) -> Tensor:
        """`forward` with what `BatchNormAct` adds to it."""
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        batch = self.training or self.running_mean is None
        tracked = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            batch,
            self.momentum,
            self.eps,
            activation=activation,
            negative_slope=negative_slope,
            residual=residual,
            ghost=self.ghost,
            renorm=self.renorm,
            noise=None if self.noise is None or not batch else self._drawn_noise(),
            num_batches_tracked=self.num_batches_tracked if tracked else None,
            process_group=self._sharing() if self.training else None,
        )

    def _sharing(self) -> Any:
        """The processes that share their statistics."""
        return None

    def _drawn_noise(self) -> Noise:
        # By PyTorch's generator, as dropout: checkpoints and `manual_seed` repeat it.
        assert self.noise is not None
        return self.noise._replace(step=int(torch.randint(2**62, ())))

    def __prepare_scriptable__(self) -> None:
        _unscriptable(self)

    def extra_repr(self) -> str:
        """The arguments, those of our own where they are in use."""
        parts: list[str] = [super().extra_repr()]  # type: ignore[no-untyped-call]
        for name in ("ghost", "renorm", "noise"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts)


def _leaf(module: nn.Module, *inputs: Any) -> Tensor:
    """What ``torch.fx`` records: a call of the module, as of PyTorch's own."""
    tracer = inputs[0].tracer
    y: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(module), inputs, {})
    return y


def _unscriptable(module: nn.Module) -> None:
    """`torch.jit.script` asks for this: it reads source text, and ours is not in its language."""
    raise RuntimeError(
        f"{type(module).__name__}: expected torch.export or torch.jit.trace of model.eval(), or "
        "PyTorch's own modules (saddlepoint.torch.nn.to_torch(model)), got torch.jit.script"
    )


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module is more than its ``forward``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class BatchNorm1d(Plain, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` of (N, C) or (N, C, L).

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As in PyTorch.
    ghost, renorm, noise : optional
        See `saddlepoint.norm.batch_norm`. The step of the noise is drawn by PyTorch's generator.
        They are of training alone; what puts another module in this one's place leaves them out.
    activation, negative_slope : optional
        Make this a `BatchNormAct` around the module without them.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch import nn
    >>> layer = nn.BatchNorm1d(1, eps=3.0)
    >>> layer(torch.tensor([[1.0], [3.0]])).tolist()
    [[-0.5], [0.5]]
    """


class BatchNorm2d(Plain, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` of (N, C, H, W).

    The parameters are those of `BatchNorm1d`. Tensors may be channels-last.
    """


class BatchNorm3d(Plain, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` of (N, C, D, H, W).

    The parameters are those of `BatchNorm1d`. Tensors may be channels-last.
    """


class SyncBatchNorm(Plain):
    """Batch normalization with the statistics of all processes' batches in training.

    Works on the CPU (gloo) and on GPUs (NCCL), for shares of different sizes, also empty ones.
    Each process must call it, and run the backward pass, as often as the others. Without
    ``torch.distributed.init_process_group`` it is plain batch normalization.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats
        As in ``torch.nn.SyncBatchNorm``.
    process_group : optional
        The processes; all of them by default.

    Notes
    -----
    Means and sums of squares are gathered in float64 and put together in the order of the
    processes, so all hold the same bits. The second order goes by the same collectives; there the
    weight's direction must be one for all processes, or a ValueError is raised on each.
    """

    process_group: Any = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.process_group = process_group

    def _sharing(self) -> Any:
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        group = self.process_group or distributed.group.WORLD
        return group if distributed.get_world_size(group) > 1 else None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(expected("input", "at least 2 axes", input.dim()))


class BatchNormAct(nn.Module):
    """act(norm(input) + residual), in one pass over memory where ``norm`` is one of this package.

    It is no batch normalization by ``isinstance`` and has none of its attributes, so nothing takes
    it for one and drops the activation. What stands in ``norm`` may be replaced by any module, or
    given hooks: then it is called, and PyTorch's own functions do the rest.

    Parameters
    ----------
    norm : torch.nn.Module
        A `BatchNorm2d`, say.
    activation : None, "relu", "leaky_relu", "gelu" or "tanh"
    negative_slope : float
        Of "leaky_relu".

    Raises
    ------
    TypeError, ValueError
        For a ``norm`` that is no module, or an unknown activation.

    Notes
    -----
    State dicts have ``norm.weight`` and so on; those of ``norm`` alone can be loaded as well, as
    they are in checkpoints of the model before `convert_batch_norm`.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch import nn
    >>> layer = nn.BatchNormAct(nn.BatchNorm1d(1, eps=3.0), "relu")
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> layer(x).tolist(), layer(x, residual=x).tolist()
    ([[0.0], [0.5]], [[0.5], [3.5]])
    """

    def __init__(
        self, norm: nn.Module, activation: str | None = None, negative_slope: float = 0.01
    ) -> None:
        check_activation(activation, negative_slope)
        if not isinstance(norm, nn.Module):
            raise TypeError(expected("norm", "a module", type(norm).__name__))
        super().__init__()
        self.norm = norm
        self.activation = activation
        self.negative_slope = negative_slope
        self.training = norm.training

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(norm(input) + residual), the residual being a tensor like ``input``."""
        norm = self.norm
        if type(norm).forward is not Plain.forward or "forward" in vars(norm) or _watched(norm):
            y = norm(input)
            y = y if residual is None else y + residual
            return activated(y, self.activation, self.negative_slope)
        if isinstance(input, fx.Proxy):
            return _leaf(self, input) if residual is None else _leaf(self, input, residual)
        assert isinstance(norm, Plain)
        return norm.normalize(input, residual, self.activation, self.negative_slope)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            name = key[len(prefix) :]
            if not name.startswith("norm."):
                state_dict[f"{prefix}norm.{name}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __prepare_scriptable__(self) -> None:
        _unscriptable(self)

    def extra_repr(self) -> str:
        """The activation, and the slope where it is used."""
        slope = f", negative_slope={self.negative_slope}"
        return f"activation={self.activation!r}" + slope * (self.activation == "leaky_relu")


def _watched(module: nn.Module) -> bool:
    anywhere: bool = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return anywhere or hooked(module)
