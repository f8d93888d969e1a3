"""``torch.nn``'s batch normalization modules with an activation and a residual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import expected
from ...norm import Noise
from ...norm.batch_norm import check_activation
from .functional import batch_norm

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"]


class Fused(_BatchNorm):
    """What the modules share; state dicts are PyTorch's."""

    # Also of a module that was PyTorch's until now.
    activation: str | None = None
    negative_slope = 0.01
    ghost: int | None = None
    renorm: tuple[float, float] | None = None
    noise: Noise | None = None

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
        activation: str | None = None,
        negative_slope: float = 0.01,
        ghost: int | None = None,
        renorm: tuple[float, float] | None = None,
        noise: Noise | None = None,
    ) -> None:
        check_activation(activation)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype,
            **({} if bias else {"bias": False}),  # new in PyTorch 2.13
        )  # fmt: skip
        self.activation = activation
        self.negative_slope = negative_slope
        self.ghost = ghost
        self.renorm = renorm
        self.noise = noise

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """act(γ (input − mean)/√(var + eps) + β + residual)."""
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
            activation=self.activation,
            negative_slope=self.negative_slope,
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

    def extra_repr(self) -> str:
        """The arguments, those of our own where they are in use."""
        parts: list[str] = [super().extra_repr()]  # type: ignore[no-untyped-call]
        if self.activation is not None:
            parts.append(f"activation={self.activation!r}")
        if self.activation == "leaky_relu":
            parts.append(f"negative_slope={self.negative_slope}")
        for name in ("ghost", "renorm", "noise"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join(parts)


class BatchNorm1d(Fused, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` of (N, C) or (N, C, L), with an activation and a residual.

    Parameters
    ----------
    num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        As in PyTorch.
    activation : None, "relu", "leaky_relu", "gelu" or "tanh"
    negative_slope : float
        Of "leaky_relu".
    ghost, renorm, noise : optional
        See `saddlepoint.norm.batch_norm`. The step of the noise is drawn by PyTorch's generator.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch import nn
    >>> layer = nn.BatchNorm1d(1, eps=0.0, activation="relu")
    >>> layer(torch.tensor([[1.0], [3.0]])).tolist()
    [[0.0], [1.0]]
    """


class BatchNorm2d(Fused, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` of (N, C, H, W), with an activation and a residual.

    The parameters are those of `BatchNorm1d`. Tensors may be channels-last.

    Examples
    --------
    >>> import torch
    >>> from saddlepoint.torch import nn
    >>> layer = nn.BatchNorm2d(3, activation="relu")
    >>> x = torch.randn(2, 3, 4, 4)
    >>> layer(x, residual=x).shape
    torch.Size([2, 3, 4, 4])
    """


class BatchNorm3d(Fused, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` of (N, C, D, H, W), with an activation and a residual.

    The parameters are those of `BatchNorm1d`. Tensors may be channels-last.
    """


class SyncBatchNorm(Fused):
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
    activation, negative_slope
        As in `BatchNorm1d`.

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
        activation: str | None = None,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            activation=activation, negative_slope=negative_slope,
        )  # fmt: skip
        self.process_group = process_group

    def _sharing(self) -> Any:
        if not (distributed.is_available() and distributed.is_initialized()):
            return None
        group = self.process_group or distributed.group.WORLD
        return group if distributed.get_world_size(group) > 1 else None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(expected("input", "at least 2 axes", input.dim()))
