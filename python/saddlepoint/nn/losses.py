"""Losses: means over the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import expected
from ..kinds import refuse_mask

__all__ = ["CrossEntropy", "Loss", "MeanSquaredError"]


class Loss:
    """What the losses share."""

    kind: str

    def targets(self, y: Any, rows: int, outputs: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The targets as the core takes them, checked."""
        raise NotImplementedError


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """−log softmax(z)[label], averaged over rows, as ``torch.nn.CrossEntropyLoss``.

    Targets are integers (N,) within [0, classes).
    """

    kind = "cross_entropy"

    def targets(self, y: Any, rows: int, outputs: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        del dtype
        refuse_mask("y", y)
        labels = np.asarray(y)
        if labels.dtype.kind not in "iu":
            raise TypeError(expected("y", "integer labels", f"dtype {labels.dtype}"))
        if labels.shape != (rows,):
            raise ValueError(expected("y", f"shape ({rows},)", labels.shape))
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= outputs:
            wrong = low if low < 0 else high
            raise ValueError(expected("y", f"labels from 0 to {outputs - 1}", wrong))
        return np.ascontiguousarray(labels, np.int32)


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """(z − t)², averaged over rows and columns, as ``torch.nn.MSELoss``.

    Targets are (N, outputs) in the dtype of the network.
    """

    kind = "mean_squared_error"

    def targets(self, y: Any, rows: int, outputs: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        refuse_mask("y", y)
        values = np.asarray(y)
        if values.dtype != dtype:
            raise TypeError(expected("y", f"dtype {dtype}", values.dtype))
        if values.shape != (rows, outputs):
            raise ValueError(expected("y", f"shape ({rows}, {outputs})", values.shape))
        if not np.isfinite(values).all():
            raise ValueError(expected("y", "finite values", "NaN or infinity"))
        return np.ascontiguousarray(values)
