"""What a forward pass leaves to its derivatives: the extension reads it by these names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..kinds import ArrayLike, kind_of
from .arrays import channel_dtype, row_of

__all__ = ["Moments", "Saved"]


class Moments(NamedTuple):
    """Statistics of a part of a batch, to be put together with others by `combine`.

    Attributes
    ----------
    elements : int
        Of each channel.
    mean : (C,) float64 array
    m2 : (C,) float64 array
        The sum of squared distances from the mean.
    """

    elements: int
    mean: ArrayLike
    m2: ArrayLike


@dataclass(slots=True, eq=False)
class Saved:
    """What the derivatives need of a forward pass; arrays are kept, not copied.

    Attributes
    ----------
    x, weight, bias, residual : array
        The inputs; ``residual`` is kept before a smooth activation alone.
    statistics : (2 or 6, groups, C) float64 array
        Mean and 1/√(var + eps), and, with renormalization or noise, the constants α, β, γ, δ of
        ``weight (α h + β) + bias γ + δ``.
    training : bool
        Whether the statistics depend on x.
    activation : str or None
    negative_slope : float
    gate : uint8 array or None
        After a residual: a bit for each value, set where the activation's argument was positive.
    has_residual : bool
    axis : int
        The axis of the channels.
    ghost : int
        Rows of a sub-batch in training; 0 for the whole batch.
    count : float
        Elements that share statistics, where parts of the batch are elsewhere; 0: those of x.
    """

    x: ArrayLike
    weight: ArrayLike | None
    bias: ArrayLike | None
    statistics: Any
    training: bool
    activation: str | None = None
    negative_slope: float = 0.01
    residual: ArrayLike | None = None
    gate: ArrayLike | None = None
    has_residual: bool = False
    axis: int = 1
    ghost: int = 0
    count: float = 0.0

    @property
    def mean(self) -> ArrayLike:
        """The means, (C,) or (groups, C), in the dtype of statistics."""
        return self._row(0)

    @property
    def r(self) -> ArrayLike:
        """1/√(var + eps), (C,) or (groups, C), in the dtype of statistics."""
        return self._row(1)

    def _row(self, k: int) -> ArrayLike:
        row = row_of(self.statistics, k)
        return kind_of(row).astype(row, channel_dtype(self.x))
