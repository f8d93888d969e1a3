"""A call of batch normalization: its tensors and what it is told, listed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, distributed

from ... import norm
from ...norm import Noise, Saved
from ...norm.options import curved

__all__ = ["Call", "Given", "How"]

Maybe = Tensor | None


class Given(NamedTuple):
    """The tensors of a call, by the names that PyTorch has for them."""

    input: Tensor
    weight: Maybe
    bias: Maybe
    residual: Maybe
    running_mean: Maybe
    running_var: Maybe
    num_batches_tracked: Maybe


@dataclass(slots=True, eq=False)
class How:
    """What a call is told that an operator of a graph can be told, too."""

    training: bool
    momentum: float | None = 0.1
    eps: float = 1e-5
    activation: str | None = None
    negative_slope: float = 0.01
    ghost: int | None = None
    renorm: tuple[float, float] | None = None


@dataclass(slots=True, eq=False)
class Call(How):
    """What a call is told beside its tensors, and its derivatives after it."""

    noise: Noise | None = None
    group: Any = None  # of processes that share their statistics
    has_residual: bool = False
    elements: int = 0  # that share statistics, where other processes have some of them

    @property
    def curved(self) -> bool:
        """Whether gradients depend on bias and residual other than by a sign."""
        return curved(self.activation)

    @property
    def shared(self) -> bool:
        """Whether statistics are those of several processes."""
        return self.group is not None and self.training

    @property
    def reduce(self) -> Callable[[Tensor], object] | None:
        """Adds up the sums of all processes, for `saddlepoint.norm`."""
        return partial(distributed.all_reduce, group=self.group) if self.shared else None

    def forward(self, given: Given) -> tuple[Tensor, Saved]:
        """`saddlepoint.norm.batch_norm`, of this process's own batch."""
        x, weight, bias, residual, mean, var, batches = given
        y, saved = norm.batch_norm(
            x, weight, bias, mean, var, self.training, self.momentum, self.eps, self.activation,
            residual, negative_slope=self.negative_slope, count=batches, ghost=self.ghost,
            renorm=self.renorm, noise=self.noise,
        )  # fmt: skip
        return y, saved

    def saved(self, tensors: tuple[Any, ...]) -> Saved:
        """The record that `saddlepoint.norm` wants, of what autograd kept."""
        x, weight, bias, residual, statistics, gate = tensors
        return Saved(
            x, weight, bias, statistics, self.training, self.activation, self.negative_slope,
            residual, gate, self.has_residual, 1, self.ghost or 0, self.elements,
        )  # fmt: skip
