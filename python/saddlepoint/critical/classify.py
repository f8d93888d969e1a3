"""What kind of point is this: minimum, maximum, saddle, or none of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..curvature import HessianOperator, eigsh, hessian
from ..curvature.lanczos import draw_eigenvalues
from ..errors import count, expected, flag, number_from_0
from ..objective import Objective
from ..results import Result, panels
from ..vector import ArrayLike, axpy, copy, dot, gather, norm, scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CriticalPoint", "classify"]

_EXACT_UP_TO = 500  # parameters: below, all eigenvalues cost less than they are worth


@dataclass(frozen=True)
class CriticalPoint(Result):
    """A verdict with the evidence it rests on.

    Attributes
    ----------
    kind : str
        "not critical", "minimum", "maximum", "saddle", "degenerate" or "undecided".
    reason : str
        The evidence in a sentence.
    loss, gradient_norm, gradient_tolerance : float
        The point is critical when ‖g‖ is at most the tolerance.
    lambda_min, lambda_max, residual_min, residual_max : float
        Extreme eigenvalues of H; an eigenvalue lies within the residual of each.
    tolerance : float
        Eigenvalues within ± this count as zero.
    lipschitz : float
        ρ, how fast the curvature changes: |uᵀ(H(θ+tu) − H(θ))u| / t, the larger of those along the
        eigenvector of ``lambda_min`` and along g, at t = max(1, ‖θ‖) / 100. NaN where no curvature
        is certainly negative: it is not needed then.
    stationarity : float
        The least ε for which θ is a second-order stationary point: ‖g‖ ≤ ε and λ_min ≥ −√(ρε)
        (Nesterov & Polyak 2006; Jin et al. 2017). Infinite where the negative curvature does not
        change.
    index_at_least : int
        Eigenvalues certainly below −tolerance (the number of them, where ``exact``).
    exact : bool
        Whether all eigenvalues were computed.
    eigenvalues, residuals : (m,) float64
        What was computed, ascending.
    direction, direction_max : (n,) arrays on the host
        Unit eigenvectors of ``lambda_min`` and ``lambda_max``.
    size, products : int
        Parameters; products with H.
    """

    kind: str
    reason: str
    loss: float
    gradient_norm: float
    gradient_tolerance: float
    lambda_min: float
    lambda_max: float
    residual_min: float
    residual_max: float
    tolerance: float
    lipschitz: float
    stationarity: float
    index_at_least: int
    exact: bool
    eigenvalues: NDArray[np.float64]
    residuals: NDArray[np.float64]
    direction: NDArray[Any]
    direction_max: NDArray[Any]
    size: int
    products: int

    _large = frozenset({"direction", "direction_max"})

    def __str__(self) -> str:
        article = {"not critical": "", "degenerate": "", "undecided": ""}.get(self.kind, "a ")
        return (
            f"This point is {article}{self.kind}. {self.reason} "
            f"(loss {self.loss:.6g}, {self.size} parameters, {self.products} Hessian products)"
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """The eigenvalues that were computed, and the band in which they count as zero."""
        figure, (panel,) = panels(ax, 1, 1)
        draw_eigenvalues(panel, self.eigenvalues, self.residuals, self.tolerance)
        panel.set_title(f"{self.kind}, ‖g‖ = {self.gradient_norm:.3g}")
        return figure


def classify(
    objective: Objective,
    theta: ArrayLike,
    gradient_tolerance: float | None = None,
    tolerance: float | None = None,
    k: int = 2,
    exact: bool | None = None,
    max_products: int | None = None,
    rng: int | np.random.Generator | None = 0,
    show_progress: bool | None = None,
) -> CriticalPoint:
    """Say what kind of point θ is, and on what evidence.

    Parameters
    ----------
    objective : Objective
    theta : (n,) array
    gradient_tolerance : float, optional
        ‖g‖ up to which the point counts as critical. By default eps^(2/3) |λ|max max(1, ‖θ‖): what
        rounding two thirds of the digits of θ would make of a zero gradient. It scales with the
        loss, so a plateau with a tiny gradient and tinier curvature is not mistaken for critical.
        A common looser choice is 1e-3 of the gradient norm at the start of training.
    tolerance : float, optional
        Eigenvalues within ± this count as zero; √eps |λ|max by default, and never less than the
        residual of the eigenvalue in question.
    k : int
        Eigenvalues computed by Lanczos, both ends together.
    exact : bool, optional
        Compute all eigenvalues, from the dense Hessian; by default up to 500 parameters.
    max_products : int, optional
        Budget of Hessian products for the two ends. Where λ_min is negative, three more measure ρ.

    Returns
    -------
    CriticalPoint

    Raises
    ------
    TypeError
        For what is no objective, no int, or a tolerance that is no number.
    ValueError
        For a loss, gradient or Hessian that is not finite, or a tolerance that is not
        finite or below 0.

    Notes
    -----
    "Saddle" rests on two Rayleigh quotients beyond their error bounds, on either side of zero: it
    is certain for this loss on these data. "Minimum" is certain where ``exact``; from Lanczos it
    says that a Krylov space with a random start shows nothing below the tolerance. A singular
    Hessian decides nothing and is called "degenerate".

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> sp.classify(sp.surfaces.Saddle(), np.zeros(2)).kind  # 5x² − y²
    'saddle'
    """
    for name, value in (("gradient_tolerance", gradient_tolerance), ("tolerance", tolerance)):
        if value is not None:
            number_from_0(name, value)
    k = max(count("k", k, 1), 2)
    if max_products is not None:
        count("max_products", max_products, 1)
    H, gradient_norm = finite_hessian(objective, theta)
    exact = H.shape[0] <= _EXACT_UP_TO if exact is None else flag("exact", exact)
    values, residuals, directions, converged = (
        _all_eigenvalues(H) if exact else _ends(H, k, max_products, rng, show_progress)
    )
    eps = H.eps
    low, high = float(values[0]), float(values[-1])
    largest = max(abs(low), abs(high))
    if gradient_tolerance is None:
        gradient_tolerance = eps ** (2 / 3) * largest * max(1.0, norm(theta))
    zero = eps**0.5 * largest if tolerance is None else tolerance
    below, above = max(zero, float(residuals[0])), max(zero, float(residuals[-1]))
    lipschitz = _lipschitz(H, directions[0], low, gradient_norm) if low < -below else math.nan
    kind, reason = _verdict(
        gradient_norm, gradient_tolerance, low, below, high, above, exact, converged
    )
    return CriticalPoint(
        kind=kind,
        reason=reason,
        loss=H.loss,
        gradient_norm=gradient_norm,
        gradient_tolerance=gradient_tolerance,
        lambda_min=low,
        lambda_max=high,
        residual_min=float(residuals[0]),
        residual_max=float(residuals[-1]),
        tolerance=zero,
        lipschitz=lipschitz,
        stationarity=_stationarity(gradient_norm, low, lipschitz),
        index_at_least=int(np.sum(values < -np.maximum(residuals, zero))),
        exact=exact,
        eigenvalues=values,
        residuals=residuals,
        direction=directions[0],
        direction_max=directions[1],
        size=H.shape[0],
        products=H.products,
    )


def finite_hessian(objective: Objective, theta: ArrayLike) -> tuple[HessianOperator, float]:
    """H and ‖g‖ at θ; ValueError where loss or gradient are not finite."""
    H = hessian(objective, theta)
    gradient_norm = norm(H.gradient)
    if not np.isfinite(H.loss) or not np.isfinite(gradient_norm):
        got = f"loss {H.loss}, ‖g‖ {gradient_norm}"
        raise ValueError(expected("theta", "a finite loss and gradient", got))
    return H, gradient_norm


# Values, residuals, the eigenvectors of the two ends, and whether they converged.
_Spectrum = tuple[NDArray[np.float64], NDArray[np.float64], tuple[NDArray[Any], NDArray[Any]], bool]


def _all_eigenvalues(H: HessianOperator) -> _Spectrum:
    """Dense: the error bound is what rounding and the products' asymmetry leave."""
    dense = H.dense()
    if not np.isfinite(dense).all():
        raise ValueError(expected("H", "finite products", "NaN or infinity"))
    symmetric = 0.5 * (dense + dense.T)
    values, vectors = np.linalg.eigh(symmetric)
    asymmetry = float(np.linalg.norm(dense - symmetric, 2))
    rounding = H.eps * H.shape[0] ** 0.5 * float(np.abs(values).max())
    bounds = np.full(len(values), asymmetry + rounding)
    return values, bounds, (vectors[:, 0].copy(), vectors[:, -1].copy()), True


def _ends(
    H: HessianOperator,
    k: int,
    max_products: int | None,
    rng: int | np.random.Generator | None,
    show_progress: bool | None,
) -> _Spectrum:
    pairs = eigsh(H, k, "BE", max_products=max_products, rng=rng, show_progress=show_progress)
    ends = gather(pairs.vectors[0]), gather(pairs.vectors[-1])
    # The verdict rests on the outermost two: further copies of others change nothing.
    converged = bool(np.all(pairs.residuals[[0, -1]] <= pairs.tolerance[[0, -1]]))
    return pairs.values, pairs.residuals, ends, converged


def _lipschitz(
    H: HessianOperator, direction: NDArray[Any], curvature: float, gradient_norm: float
) -> float:
    """ρ along the eigenvector of a curvature, and along the gradient; 0 where it is not finite."""
    lines = [(H._like_theta(direction), curvature)]
    if gradient_norm > 0.0:
        along = copy(H.gradient)
        scale(1.0 / gradient_norm, along)
        lines.append((along, dot(along, H @ along)))
    t = max(1.0, norm(H.theta)) / 100.0
    found = [0.0]
    for u, here in lines:
        moved = copy(H.theta)
        axpy(t, u, moved)
        there = dot(u, hessian(H.objective, moved) @ u)
        H.products += 1
        found.append(abs(there - here) / t)
    return max(rho for rho in found if math.isfinite(rho))


def _stationarity(gradient_norm: float, low: float, lipschitz: float) -> float:
    """The least ε with ‖g‖ ≤ ε and λ_min ≥ −√(ρε)."""
    if math.isnan(lipschitz):
        return gradient_norm
    return max(gradient_norm, low * low / lipschitz) if lipschitz > 0.0 else math.inf


def _verdict(
    gradient: float,
    gradient_tolerance: float,
    low: float,
    below: float,
    high: float,
    above: float,
    exact: bool,
    converged: bool,
) -> tuple[str, str]:
    ends = f"λ_min = {low:.3g} ± {below:.1g} and λ_max = {high:.3g} ± {above:.1g}"
    if gradient > gradient_tolerance:
        return "not critical", (
            f"‖g‖ = {gradient:.3g} exceeds {gradient_tolerance:.1g}: there is a slope to follow. "
            f"The curvature here: {ends}."
        )
    flat = f"‖g‖ = {gradient:.3g} is within {gradient_tolerance:.1g}, {ends}"
    if low < -below and high > above:
        return "saddle", f"{flat}: the loss falls along one direction and rises along another."
    # Short of the tolerance asked for, an eigenvalue ten times its error is still one of its sign.
    if not converged and not (below < 0.1 * abs(low) and above < 0.1 * abs(high)):
        return "undecided", f"{flat}, not converged: a larger max_products would tell."
    shown = "all eigenvalues" if exact else "no eigenvalue that Lanczos found lies below, and all"
    if low > below:
        return "minimum", f"{flat}: {shown} are positive."
    if high < -above:
        return "maximum", f"{flat}: {shown.replace('below', 'above')} are negative."
    return "degenerate", f"{flat}: the Hessian is singular, and the second order decides nothing."
