"""Where the curvature sits: each layer's diagonal block of the Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import count, expected
from ..objective import parts_of
from ..progress import progress
from ..results import COLORS, Result, panels
from .lanczos import eigsh
from .operator import CurvatureOperator
from .trace import trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LayerCurvature", "curvature_by_layer"]

_TOLERANCE = 1e-3  # of a layer's extreme eigenvalues: what a table shows


@dataclass(frozen=True)
class LayerCurvature(Result):
    """The curvature of each layer, the others held fixed.

    Attributes
    ----------
    layers : list of str
        Names without that of the array: ``"0"`` of ``"0.weight"`` and ``"0.bias"``.
    sizes : (m,) int64
        Parameters of each.
    lambda_min, lambda_max : (m,) float64
        Extreme eigenvalues of each block.
    traces, errors : (m,) float64
        And its trace, with the standard error.
    share : (m,) float64
        Of each in the sum of the traces' sizes.
    products : int
    """

    layers: list[str]
    sizes: NDArray[np.int64]
    lambda_min: NDArray[np.float64]
    lambda_max: NDArray[np.float64]
    traces: NDArray[np.float64]
    errors: NDArray[np.float64]
    share: NDArray[np.float64]
    products: int

    def __str__(self) -> str:
        width = max(map(len, (*self.layers, "layer")))
        lines = [f"{'layer':{width}}  parameters      λmin      λmax     trace  share"]
        rows = zip(
            self.layers, self.sizes, self.lambda_min, self.lambda_max, self.traces, self.share,
            strict=True,
        )  # fmt: skip
        for name, size, low, high, total, share in rows:
            numbers = "".join(f"{x:10.3g}" for x in (low, high, total))
            lines.append(f"{name:{width}}{size:12d}{numbers}{share:7.0%}")
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Figure:
        """The interval of each layer's eigenvalues, and its share."""
        figure, (left, right) = panels(ax, 1, 2)
        y = np.arange(len(self.layers))[::-1]
        left.hlines(y, self.lambda_min, self.lambda_max, color=COLORS["blue"], lw=3)
        left.axvline(0.0, color=COLORS["muted"], lw=0.8)
        left.set(xlabel="eigenvalues", yticks=y, yticklabels=self.layers)
        right.barh(y, self.share, color=COLORS["green"])
        right.set(xlabel="share of the traces", yticks=[])
        return figure


def curvature_by_layer(
    H: CurvatureOperator,
    products: int = 40,
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> LayerCurvature:
    """λmin, λmax and trace of each layer's block of the Hessian.

    Parameters
    ----------
    H : HessianOperator or GaussNewtonOperator
        Of an objective whose θ has names: a network's, or a PyTorch module's.
    products : int
        For the trace of each layer; see `trace`. Its eigenvalues take some more.
    rng : int, Generator or None

    Returns
    -------
    LayerCurvature

    Raises
    ------
    TypeError, ValueError
        For another operator, or a budget too small.

    Examples
    --------
    >>> import saddlepoint as sp
    >>> from saddlepoint import nn
    >>> digits = sp.data.digits("float64")
    >>> net = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))
    >>> loss = sp.NetworkObjective(net, nn.CrossEntropy(), digits.x, digits.y, dtype="float64")
    >>> table = sp.curvature_by_layer(sp.hessian(loss, net.init(0, "float64").theta))
    >>> table.layers, table.sizes
    (['0', '2'], array([520,  90]))
    """
    if not isinstance(H, CurvatureOperator):
        raise TypeError(expected("H", "a Hessian or Gauss-Newton operator", type(H).__name__))
    count("products", products, 4)
    layers: dict[str, list[str]] = {}
    for name in parts_of(H.objective):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
    sizes, low, high, traces, errors, spent = [], [], [], [], [], 0
    with progress("layers", len(layers), show_progress) as tick:
        for names in layers.values():
            block = H.restrict(names)
            ends = eigsh(block, 2, "BE", tol=_TOLERANCE, rng=rng, show_progress=False)
            total = trace(block, products, rng=rng, show_progress=False)
            sizes.append(block.shape[0])
            low.append(float(ends.values[0]))
            high.append(float(ends.values[-1]))
            traces.append(total.value)
            errors.append(total.error)
            spent += block.products
            tick()
    weights = np.abs(traces)
    whole = float(weights.sum())
    return LayerCurvature(
        layers=list(layers),
        sizes=np.array(sizes, np.int64),
        lambda_min=np.array(low),
        lambda_max=np.array(high),
        traces=np.array(traces),
        errors=np.array(errors),
        share=weights / whole if whole > 0.0 else np.zeros(len(weights)),
        products=spent,
    )
