"""What every result can do: say itself in a sentence, become JSON, and draw itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Final

from .store import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "Result", "panels"]

#: Hues after Okabe & Ito (2008): told apart under every common colour blindness.
COLORS: Final = {"blue": "#1f5fa8", "orange": "#bf4a12", "green": "#0b7a66", "muted": "#5c6570"}


class Result(ABC):
    """Base of the frozen dataclasses that functions return.

    Examples
    --------
    >>> import json, numpy as np, saddlepoint as sp
    >>> pairs = sp.eigsh(np.diag([-2.0, 0.0, 1.0, 5.0]), k=2)
    >>> print(pairs)  # doctest: +ELLIPSIS
    2 eigenvalues: −2 ± ..., 5 ± ... (converged, ... products)
    >>> json.dumps(pairs.to_dict()["vectors"])
    '[{"shape": [4], "dtype": "float64"}, {"shape": [4], "dtype": "float64"}]'
    """

    # Fields that to_dict tells by shape: as large as the parameters, or what they belong to.
    _large: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def __str__(self) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field, for strict JSON.

        NaN becomes None, and the infinities "inf" and "-inf". A vector of parameters, which may
        hold millions of numbers, is told by its shape and dtype.
        """
        return {
            f.name: _outline(value) if f.name in self._large else plain(value)
            for f in fields(self)  # type: ignore[arg-type]
            for value in (getattr(self, f.name),)
        }

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw with Matplotlib: in a new figure, or within ``ax``.

        Raises
        ------
        ImportError
            If a new figure is wanted and Matplotlib is not installed.
        """


def _outline(value: Any) -> Any:
    """Arrays by shape and dtype, what holds some likewise, and others by their type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dtype = str(value.dtype).removeprefix("torch.")
        return {"shape": [int(n) for n in value.shape], "dtype": dtype}
    if isinstance(value, (list, tuple)):
        return [_outline(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _outline(getattr(value, f.name)) for f in fields(value)}
    return value if isinstance(value, (int, str, type(None))) else type(value).__name__


def panels(ax: Axes | None, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Panels of a new figure, or within ``ax``, row by row."""
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            what = "matplotlib is not installed: pip install 'saddlepoint[report]'"
            raise ImportError(what) from error
        size = (3.6 * columns + 1.2, 3.0 * rows + 0.6)
        figure, grid = pyplot.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained"
        )
        return figure, list(grid.ravel())
    if rows == columns == 1:
        return ax.figure, [ax]  # type: ignore[return-value]
    ax.set_axis_off()
    wide, high = 1.0 / columns, 1.0 / rows
    return ax.figure, [  # type: ignore[return-value]
        ax.inset_axes((c * wide, 1.0 - (r + 1) * high, 0.8 * wide, 0.75 * high))
        for r in range(rows)
        for c in range(columns)
    ]
