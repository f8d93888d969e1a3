"""The Hessian as an operator, its check, and its extreme eigenvalues against dense ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.sparse import linalg as sparse

import saddlepoint as sp
from networks import Problem, TorchLoss, random_problem
from saddlepoint import nn
from saddlepoint.surfaces import FactoredLinear, Quadratic, Rosenbrock, Saddle, SeparableLogistic
from saddlepoint.vector import gather

Array = NDArray[Any]
EPS = float(np.finfo(np.float64).eps)


def tanh_network(
    dtype: str = "float64", activation: type[nn.Layer] = nn.Tanh, width: int = 8
) -> tuple[sp.NetworkObjective, Array]:
    """5-w-w-3 on 40 rows with cross-entropy, and parameters."""
    rng = np.random.default_rng(width)
    x, y = rng.standard_normal((40, 5)), rng.integers(0, 3, 40)
    net = nn.Sequential(
        nn.Linear(5, width), activation(), nn.Linear(width, width), activation(),
        nn.Linear(width, 3),
    )  # fmt: skip
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), x.astype(dtype), y, dtype=dtype)
    return objective, net.init(1, dtype).theta


def native(problem: Problem, frozen: bool = False) -> sp.NetworkObjective:
    return sp.NetworkObjective(
        problem.net, problem.loss, problem.x, problem.y, problem.params, dtype="float64",
        batch_norm="frozen" if frozen else "batch",
    )  # fmt: skip


@pytest.mark.parametrize(
    "surface",
    [Quadratic([3.0, -1.0, 0.0], rng=1), FactoredLinear(3), Rosenbrock(5), SeparableLogistic()],
    ids=lambda s: type(s).__name__,
)
def test_surfaces(surface: Any) -> None:
    theta = np.random.default_rng(0).standard_normal(surface.size)
    H = sp.hessian(surface, theta)
    explicit = surface.hessian(theta)
    assert_array_equal(H.dense(), explicit)
    assert_array_equal(H.dense(block=2), explicit)
    assert (H.loss, H.shape) == (surface.loss(theta), explicit.shape)
    assert_array_equal(H.gradient, surface.gradient(theta))
    assert H.verify().ok


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("frozen", [False, True])
def test_networks_against_double_backward(seed: int, frozen: bool) -> None:
    problem = random_problem(seed)
    oracle = TorchLoss(problem, frozen)
    H = sp.hessian(native(problem, frozen), problem.params.theta)
    v = np.random.default_rng(seed).standard_normal((3, H.shape[0]))
    expected = np.stack([oracle.product(row) for row in v], axis=1)
    block = H.matmat(v.T)
    # Sums of up to some thousand roundings; batch statistics of 2 rows cancel most.
    scale = max(1.0, np.abs(expected).max())
    assert_allclose(block, expected, rtol=0, atol=1e-10 * scale)
    assert_allclose(H.dense() @ v.T, expected, rtol=0, atol=1e-10 * scale)


def test_every_way_to_multiply_agrees() -> None:
    objective, theta = tanh_network()
    H = sp.hessian(objective, theta)
    v = np.random.default_rng(0).standard_normal((H.shape[0], 3))
    expected = H.dense() @ v
    before = H.products
    near: dict[str, Any] = {"rtol": 0, "atol": 1e-13}  # 139 terms below 1
    assert_allclose(H @ v, expected, **near)
    assert_allclose(H @ np.asfortranarray(v), expected, **near)
    assert_allclose(H.matmat(v[:, :1]), expected[:, :1], **near)
    assert H.products == before + 7
    for one in (H @ v[:, 0], H.matvec(v[:, 0]), H.rmatvec(v[:, 0])):
        assert_allclose(one, expected[:, 0], **near)
    assert_allclose(H.matvec(v[:, :1]), expected[:, :1], **near)
    assert H.products == before + 11
    for wrong in (v[:-1], v[0, 0] * np.ones((139, 2, 2)), v[:-1, 0]):
        with pytest.raises(ValueError, match="v: expected shape"):
            H.matvec(wrong)
    with pytest.raises(TypeError, match="v: expected dtype float64, got float32"):
        H.matvec(v[:, 0].astype(np.float32))


def test_a_block_of_no_vectors() -> None:
    objective, theta = tanh_network()
    assert (sp.hessian(objective, theta) @ np.empty((theta.size, 0))).shape == (theta.size, 0)


def test_the_operator_does_not_follow_theta_and_two_can_live() -> None:
    objective, theta = tanh_network()
    kept, v = theta.copy(), np.ones(theta.size)
    first = sp.hessian(objective, theta)
    product = first @ v
    theta *= 2.0
    second = sp.hessian(objective, theta)
    other = second @ v
    assert np.abs(other - product).max() > 1e-3
    assert_array_equal(first @ v, product)
    assert_array_equal(first.theta, kept)
    assert_array_equal(second @ v, other)


def arrays(theta: Array) -> dict[str, Any]:
    return {"Vector": sp.Vector.from_numpy(theta), "torch": torch.from_numpy(theta.copy())}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["Vector", "torch"])
def test_any_kind_of_theta_gives_the_same_bits(kind: str, dtype: str) -> None:
    objective, theta = tanh_network(dtype)
    there = arrays(theta)[kind]
    host, other = sp.hessian(objective, theta), sp.hessian(objective, there)
    assert_array_equal(other.dense(), host.dense())
    x = np.random.default_rng(0).standard_normal(objective.size).astype(dtype)
    block = np.asfortranarray(np.stack([x, -x], axis=1))
    assert_array_equal(gather(other @ arrays(x)[kind]), host @ x)
    assert_array_equal(gather(other @ arrays(block)[kind]), host @ block)
    assert_array_equal(other.to_scipy() @ x, host @ x)
    assert_array_equal(other.to_scipy() @ block, host @ block)
    pairs, expected = sp.eigsh(other, k=3), sp.eigsh(host, k=3)
    assert_array_equal(pairs.values, expected.values)
    assert_array_equal(pairs.residuals, expected.residuals)
    for v, w in zip(pairs.vectors, expected.vectors, strict=True):
        assert type(v) is type(there)
        assert_array_equal(gather(v), w)
    assert other.verify() == host.verify()


def test_a_block_in_c_order_is_transposed_or_refused() -> None:
    objective, theta = tanh_network()
    block = np.random.default_rng(0).standard_normal((objective.size, 2))
    there, blocks = arrays(theta), arrays(block)
    product = sp.hessian(objective, there["torch"]) @ blocks["torch"]
    assert_array_equal(gather(product), sp.hessian(objective, theta) @ block)
    with pytest.raises(ValueError, match="v: expected a block in Fortran order, got C order"):
        sp.hessian(objective, there["Vector"]) @ blocks["Vector"]
    column = arrays(block[:, :1].copy())["Vector"]  # in either order
    product = sp.hessian(objective, there["Vector"]) @ column
    assert_array_equal(gather(product), sp.hessian(objective, theta) @ block[:, :1])


def test_scipy_takes_the_operator_either_way() -> None:
    objective, theta = tanh_network()
    H = sp.hessian(objective, theta)
    expected = np.linalg.eigvalsh(H.dense())[[0, 1, -2, -1]]
    operators: list[Any] = [H, H.to_scipy()]
    for operator in operators:
        found = sparse.eigsh(operator, k=4, which="BE", return_eigenvectors=False)
        assert_allclose(np.sort(found), expected, rtol=0, atol=1e-12)  # ARPACK at machine precision


@dataclass
class Wrong:
    """An objective whose products are not of its Hessian."""

    right: Any
    bend: Callable[[Array, int], Array]  # (product, how many before it)

    def __post_init__(self) -> None:
        self.size, self.dtype, self.device = self.right.size, self.right.dtype, "cpu"
        self.loss, self.gradient = self.right.loss, self.right.gradient

    def astype(self, dtype: str) -> Any:
        return self.right.astype(dtype)

    def linearize(self, theta: Array) -> Any:
        at = self.right.linearize(theta)
        return _WrongLinearization(at.loss, at.gradient, at, self.bend)


@dataclass
class _WrongLinearization:
    loss: float
    gradient: Array
    at: Any
    bend: Callable[[Array, int], Array]
    count: int = -1

    def hvp(self, v: Array) -> Array:
        self.count += 1
        return self.bend(self.at.hvp(v), self.count)


BENDS: dict[str, tuple[Callable[[Array, int], Array], set[str]]] = {
    "nothing": (lambda hv, _: hv, set()),
    "asymmetric": (
        lambda hv, _: hv + 1e-4 * np.linalg.norm(hv) * np.eye(hv.size)[0],
        {"finite_difference", "symmetry"},
    ),
    "scaled": (lambda hv, _: 1.001 * hv, {"finite_difference"}),
    "zero": (lambda hv, _: 0.0 * hv, {"finite_difference"}),
    "drifting": (lambda hv, i: hv * (1 + 1e-11 * i), {"symmetry", "repeatability"}),
}


@pytest.mark.parametrize(("bend", "failing"), BENDS.values(), ids=BENDS)
def test_verify_detects(bend: Callable[[Array, int], Array], failing: set[str]) -> None:
    objective, theta = tanh_network()
    found = sp.hessian(Wrong(objective, bend), theta).verify()
    exceeded = {name for name, most in found.tolerances.items() if getattr(found, name) > most}
    assert exceeded == failing
    assert found.ok == (not failing)
    assert found.verdict == ("not the Hessian" if failing else "verified")
    assert bool(found) == found.ok
    assert str(found).startswith(found.verdict)
    for name in found.tolerances:
        assert name.replace("_", " ") in str(found)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("kind", ["numpy", "Vector", "torch"])
def test_float32_networks_verify(activation: type[nn.Layer], kind: str) -> None:
    objective, theta = tanh_network("float32", activation)
    there = {"numpy": theta, **arrays(theta)}[kind]
    assert sp.hessian(objective, there).verify().ok
    bent = Wrong(objective, lambda hv, _: hv * np.float32(1.001))
    assert not sp.hessian(bent, theta).verify().ok


def digits_network(
    dtype: str, activation: type[nn.Layer], seed: int
) -> tuple[sp.NetworkObjective, Array]:
    """Two hidden layers with batch norm, as the README trains on MNIST, on 300 digits."""
    digits = sp.data.digits(dtype)
    net = nn.Sequential(
        nn.Linear(64, 300, weight_init=nn.init.he_normal), nn.BatchNorm(300), activation(),
        nn.Linear(300, 100, weight_init=nn.init.he_normal), nn.BatchNorm(100), activation(),
        nn.Linear(100, 10),
    )  # fmt: skip
    data = digits.x[:300], digits.y[:300]
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), *data, dtype=dtype)
    return objective, net.init(seed, dtype).theta


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_right_products_verify_whatever_kinks_lie_near(
    activation: type[nn.Layer], dtype: str
) -> None:
    first = set()
    for seed in range(8):
        objective, theta = digits_network(dtype, activation, seed)
        found = sp.hessian(objective, theta).verify(rng=seed)
        assert found.verdict == "verified", (seed, str(found))
        first.add(found.step > 1e-5 * np.linalg.norm(theta) / 2)
    assert (activation is nn.ReLU) == (False in first)  # kinks do lie within the longest step


def test_a_unit_that_rounding_moves_across_its_kink_is_no_fault() -> None:
    """In float32 one unit of one row stands on the other side than in float64."""
    objective, theta = tanh_network("float32", nn.ReLU)
    net = objective.net
    wide = theta.astype(np.float64)
    x = gather(objective._x).astype(np.float64)
    weight = net.unflatten(wide)["0.weight"]
    for unit, row in product(range(8), range(40)):
        # The bias that float32 rounds to the kink, and float64 leaves a little beyond it.
        moved = theta.copy()
        bias = net.unflatten(moved)["0.bias"]
        bias[unit] = -np.float32(weight[unit] @ x[row])
        exact = weight[unit] @ x[row] + float(bias[unit])
        H = sp.hessian(objective, moved)
        lost = np.linalg.norm(
            H.gradient - objective.astype("float64").gradient(moved.astype(float))
        )
        if lost > 1e-4 * np.linalg.norm(H.gradient):
            break
    else:
        pytest.fail("no unit flips")
    assert 0.0 < abs(exact) < 1e-6
    assert H.verify().verdict != "not the Hessian"
    bent = Wrong(objective, lambda hv, _: hv * np.float32(1.01))
    assert sp.hessian(bent, moved).verify().verdict == "not the Hessian"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_wrong_products_do_not_pass_for_kinks(activation: type[nn.Layer], dtype: str) -> None:
    objective, theta = digits_network(dtype, activation, 0)
    net = objective.net

    def one_sign(hv: Array, _: int) -> Array:
        bent = hv.copy()
        net.unflatten(bent)["3.weight"][...] *= -1
        return bent

    def without_curvature_of_the_loss(hv: Array, _: int) -> Array:
        bent = hv.copy()
        net.unflatten(bent)["6.weight"][...] = 0
        return bent

    bends: list[Callable[[Array, int], Array]] = [
        lambda hv, _: hv * hv.dtype.type(1.01),
        one_sign,
        without_curvature_of_the_loss,
        lambda hv, _: hv[::-1].copy(),
    ]
    for bend in bends:
        assert sp.hessian(Wrong(objective, bend), theta).verify().verdict == "not the Hessian"


def at_a_kink() -> tuple[sp.NetworkObjective, Array]:
    """Rows of zeros and zero biases: the hidden units stand exactly at the kink of their ReLU."""
    rng = np.random.default_rng(0)
    x = np.vstack([np.zeros((2, 3)), rng.standard_normal((4, 3))])
    net = nn.Sequential(
        nn.Linear(3, 4, weight_init=nn.init.he_normal), nn.ReLU(),
        nn.Linear(4, 2, weight_init=nn.init.xavier_normal),
    )  # fmt: skip
    objective = sp.NetworkObjective(
        net, nn.CrossEntropy(), x, np.array([0, 1, 0, 1, 0, 1]), dtype="float64"
    )
    return objective, net.init(0, "float64").theta


def test_at_a_kink_products_are_held_against_smooth_directions() -> None:
    objective, theta = at_a_kink()
    assert sp.hessian(objective, theta).verify().verdict == "verified"
    bent = sp.hessian(Wrong(objective, lambda hv, _: 1.01 * hv), theta)
    assert bent.verify().verdict == "not the Hessian"


class HalfBowl:
    """Half of max(θ, 0)²: the gradient has no jump at 0, and the curvature is 0 or 1."""

    size, dtype, device = 1, np.dtype(np.float64), "cpu"

    def __init__(self, curvature: float) -> None:
        self.curvature = curvature

    def loss(self, theta: Array) -> float:
        return float(0.5 * np.maximum(theta, 0.0) ** 2)

    def gradient(self, theta: Array) -> Array:
        return np.maximum(theta, 0.0)

    def linearize(self, theta: Array) -> Any:
        at = _WrongLinearization(0.0, self.gradient(theta), None, lambda hv, _: hv)
        at.hvp = lambda v: self.curvature * v  # type: ignore[method-assign]
        return at


@pytest.mark.parametrize(
    ("curvature", "verdict"),
    [(0.0, "verified"), (1.0, "verified"), (2.0, "inconclusive: kinks")],
)
def test_a_kink_is_verified_from_either_side(curvature: float, verdict: str) -> None:
    assert sp.hessian(HalfBowl(curvature), np.zeros(1)).verify().verdict == verdict
    assert sp.hessian(HalfBowl(2.0), np.ones(1)).verify().verdict == "not the Hessian"


class Steps:
    """A loss whose gradient has a kink wherever one looks: |θ| to its least power and finer."""

    size, dtype, device = 3, np.dtype(np.float64), "cpu"

    def loss(self, theta: Array) -> float:
        return float(np.abs(theta).sum())

    def gradient(self, theta: Array) -> Array:
        return np.sign(np.sin(1e14 * theta))

    def linearize(self, theta: Array) -> Any:
        return _WrongLinearization(self.loss(theta), self.gradient(theta), None, lambda hv, _: hv)


def test_where_no_difference_converges_nothing_is_said_against_the_products() -> None:
    H = sp.hessian(Steps(), np.ones(3))
    H._linearization.hvp = lambda v: 2.0 * v  # type: ignore[method-assign]
    found = H.verify()
    assert found.verdict == "inconclusive: kinks"
    assert not found.ok
    assert str(found).startswith("inconclusive: kinks\nfinite difference: ")


def test_a_constant_gradient_has_no_hessian_and_verifies() -> None:
    class Linear(Steps):
        slope = np.array([1.0, -3.0, 0.1])

        def gradient(self, theta: Array) -> Array:
            return self.slope * (1.0 + 4e-16 * np.sin(1e15 * theta))  # rounding of its own

    H = sp.hessian(Linear(), np.ones(3))
    H._linearization.hvp = np.zeros_like  # type: ignore[method-assign]
    assert H.verify().verdict == "verified"


@pytest.mark.parametrize("seed", range(6))
def test_batch_norm_networks_verify(seed: int) -> None:
    problem = random_problem(seed)
    assert sp.hessian(native(problem), problem.params.theta).verify().ok


def test_s3_4_directional_curvature_is_a_weighted_mean_of_eigenvalues() -> None:
    objective, theta = tanh_network()
    H = sp.hessian(objective, theta)
    values, vectors = np.linalg.eigh(H.dense())
    for d in np.random.default_rng(0).standard_normal((5, objective.size)):
        d /= np.linalg.norm(d)
        cosines = vectors.T @ d
        assert_allclose(d @ (H @ d), values @ cosines**2, rtol=0, atol=100 * EPS)  # 139 terms
        assert values[0] <= d @ (H @ d) <= values[-1]


# Eigenvalues.


def spectrum(name: str, n: int) -> Array:
    rng = np.random.default_rng(n)
    ramp = np.linspace(-1.0, 1.0, n) if n > 1 else np.ones(1)
    spectra: dict[str, Array] = {
        "random": rng.standard_normal(n),
        "clustered": np.sign(ramp) * (1.0 + 1e-5 * rng.random(n)),
        "indefinite": ramp**3 - 0.1,
        "positive": np.logspace(-1, 0, n),
        "rank-deficient": np.r_[2.0, -1.0, 0.5, np.zeros(n)][:n],
        "all equal": np.full(n, -3.0),
        "pairs": np.repeat(np.arange(1.0, n + 1.0), 2)[:n],
        "zero": np.zeros(n),
    }
    return spectra[name]


def planted(values: Array) -> Array:
    rng = np.random.default_rng(values.size)
    q = np.linalg.qr(rng.standard_normal((values.size, values.size)))[0]
    matrix: Array = (q * values) @ q.T
    return 0.5 * (matrix + matrix.T)


def wanted(values: Array, k: int, which: str) -> Array:
    """By the definition: the k at that end, ascending."""
    if which == "LM":
        values, low = values[np.argsort(np.abs(values))[-k:]], k
    else:
        low = {"SA": k, "LA": 0, "BE": k // 2}[which]
    ends: Array = np.r_[values[:low], values[values.size - (k - low) :]]
    return np.sort(ends)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("name", ["random", "clustered", "indefinite", "positive"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 3), (2, 1), (2, 5), (3, 2), (40, 4), (300, 2)])
def test_eigsh_against_dense(name: str, n: int, k: int, which: str) -> None:
    matrix = planted(spectrum(name, n))
    pairs = sp.eigsh(matrix, k, which)
    exact = np.linalg.eigvalsh(matrix)
    size = np.abs(exact).max()
    expected = wanted(exact, min(k, n), which)
    assert pairs.values.shape == pairs.residuals.shape == expected.shape
    if which == "LM":  # signs of equal magnitudes are a draw
        assert_allclose(
            np.abs(pairs.values).min(), np.abs(expected).min(), atol=pairs.tolerance.max()
        )
    else:
        # Residual r puts an eigenvalue within r; the dense ones have a few eps of their own.
        assert_allclose(pairs.values, expected, rtol=0, atol=pairs.tolerance.max() + n * EPS * size)
    check(pairs, matrix)
    assert pairs.converged
    relative = np.minimum(EPS**0.5 * size, EPS**0.25 * np.abs(pairs.values))
    floor = 10.0 * n**0.5 * EPS * size
    assert_allclose(pairs.tolerance, np.maximum(relative, floor), rtol=1e-6)


def check(pairs: sp.Eigenpairs, matrix: Array) -> None:
    """What holds of any result: true residuals, unit and orthogonal vectors, no ghosts."""
    n, size = len(matrix), float(np.linalg.norm(matrix, 2))
    vectors = np.stack(pairs.vectors, axis=1)
    assert_array_equal(pairs.values, np.sort(pairs.values))
    true = np.linalg.norm(matrix @ vectors - vectors * pairs.values, axis=0)
    # A product of n terms is uncertain by that much, and so is the norm of a residual near zero.
    assert_allclose(true, pairs.residuals, rtol=1e-6, atol=4 * n * EPS * size)
    assert bool(np.all(pairs.residuals <= pairs.tolerance)) or not pairs.converged
    gram = vectors.T @ vectors
    assert_allclose(gram, np.eye(len(gram)), atol=1e-7)  # of converged pairs: residual / gap
    exact = np.linalg.eigvalsh(matrix)
    reach = pairs.residuals.max() + 10 * n * EPS * size
    for value in pairs.values[pairs.residuals <= pairs.tolerance]:
        found = np.sum(np.abs(pairs.values - value) <= reach)
        assert found <= np.sum(np.abs(exact - value) <= 3 * reach)


MULTIPLE = [
    *product(
        ["rank-deficient", "pairs", "all equal", "zero"],
        [(1, 1), (2, 2), (30, 2), (30, 6), (30, 40)],
        ["LA", "SA", "LM", "BE"],
    ),
    ("rank-deficient", (300, 2), "BE"),
    ("pairs", (300, 2), "SA"),
    ("all equal", (100, 2), "LA"),
]


@pytest.mark.parametrize(("name", "sizes", "which"), MULTIPLE)
def test_eigsh_of_multiple_eigenvalues_has_no_ghosts(
    name: str, sizes: tuple[int, int], which: str
) -> None:
    n, k = sizes
    matrix = planted(spectrum(name, n))
    pairs = sp.eigsh(matrix, k, which)
    check(pairs, matrix)
    assert pairs.converged
    exact = np.linalg.eigvalsh(matrix)
    found = wanted(exact, min(k, n), which)
    atol = pairs.tolerance.max() + n * EPS * np.abs(exact).max()
    assert_allclose(pairs.values, found, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "values", [[5.0, 5.0, 1.0] + 77 * [0.0], [5.0, 5.0, 4.0, 3.0] + 46 * [0.0]]
)
def test_an_exhausted_space_goes_on_to_multiple_eigenvalues(values: list[float]) -> None:
    # Three or four directions are all that one start vector sees; the second 5 is beyond them.
    pairs = sp.eigsh(np.diag(values), k=2, which="LA")
    assert_allclose(pairs.values, [5.0, 5.0], rtol=0, atol=pairs.tolerance.max())


@pytest.mark.slow
def test_two_hundred_spectra_with_planted_multiplicities() -> None:
    for trial in range(200):
        rng = np.random.default_rng([trial, 5])
        n, k = int(rng.integers(2, 60)), int(rng.integers(1, 9))
        which = ("LA", "SA", "BE", "LM")[trial % 4]
        pool = (rng.standard_normal(n), np.round(rng.standard_normal(n), 1), rng.uniform(0, 1, n))
        values = rng.choice(pool[trial % 3][: int(rng.integers(1, n + 1))], n)
        if trial % 5 == 0:
            values[: n // 2] = 0.0
        matrix = planted(values)
        pairs = sp.eigsh(matrix, k, which, rng=trial)
        check(pairs, matrix)
        assert pairs.converged, trial
        exact = np.linalg.eigvalsh(matrix)
        found, expected = pairs.values, wanted(exact, min(k, n), which)
        if which == "LM":  # signs of equal magnitudes are a draw
            found, expected = np.sort(np.abs(found)), np.sort(np.abs(expected))
        atol = pairs.tolerance.max() + n * EPS * np.abs(exact).max()
        assert_allclose(found, expected, rtol=0, atol=atol, err_msg=f"trial {trial}")


@pytest.mark.slow
def test_six_zeros_of_three_hundred() -> None:
    rng = np.random.default_rng(0)
    values = np.r_[np.zeros(6), rng.uniform(0.01, 2.0, 294)]
    matrix = planted(values)
    pairs = sp.eigsh(matrix, 8, "SA")
    assert pairs.converged
    assert_allclose(pairs.values, np.sort(values)[:8], rtol=0, atol=pairs.tolerance.max())
    assert not sp.eigsh(matrix, 8, "SA", max_products=150).converged


@pytest.mark.parametrize("values", [[10.0, 10.0, 10.0, 5.0, 5.0], [10.0, 9.9, 9.8, 9.7, 9.6]])
def test_copies_above_a_bulk_cost_few_products(values: list[float]) -> None:
    rng = np.random.default_rng(0)
    diagonal = np.r_[values, 0.1 * rng.standard_normal(2995)]
    operator = sparse.LinearOperator(
        (3000, 3000), matvec=lambda v: diagonal * v.ravel(), dtype=np.float64
    )
    pairs = sp.eigsh(operator, 4, "LA")
    assert pairs.converged
    assert pairs.products < 100
    assert_allclose(pairs.values, values[3::-1], rtol=0, atol=pairs.tolerance.max())


def test_a_small_eigenvalue_beside_a_large_one_has_its_sign_or_is_not_converged() -> None:
    diagonal = np.r_[1e8, -1e-3, np.linspace(0.0, 1.0, 48)]
    pairs = sp.eigsh(np.diag(diagonal), 1, "SA")
    assert pairs.converged
    assert_allclose(pairs.values, -1e-3, rtol=0, atol=1e-5)
    assert pairs.residuals < 0.1 * abs(pairs.values)
    few = sp.eigsh(np.diag(diagonal), 1, "SA", max_products=8)
    assert few.residuals > 1e-3  # short of 1e8 √eps, and yet
    assert not few.converged


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
def test_eigsh_is_free_of_scale(scale: float) -> None:
    matrix = planted(np.array([-2.0, 0.5, 1.0, 3.0]))
    found, plain = sp.eigsh(scale * matrix, k=4), sp.eigsh(matrix, k=4)
    assert_allclose(found.values / scale, plain.values, rtol=1e-12)
    assert found.converged


def test_float32_matrices_and_scipy_operators() -> None:
    matrix = planted(spectrum("random", 60))
    single = sp.eigsh(matrix.astype(np.float32), k=2)
    exact = np.linalg.eigvalsh(matrix)
    assert single.vectors[0].dtype == np.float32
    # √eps of the dtype bounds the residual.
    atol = 2.0 * np.finfo(np.float32).eps ** 0.5 * np.abs(exact).max()
    assert_allclose(single.values, exact[[0, -1]], rtol=0, atol=atol)
    operator = sparse.aslinearoperator(matrix)
    assert_array_equal(sp.eigsh(operator, k=2).values, sp.eigsh(matrix, k=2).values)


@pytest.mark.parametrize(("which", "k"), [("LA", 3), ("SA", 3), ("BE", 6), ("LM", 3)])
def test_s0_6_lanczos_equals_dense_on_a_network(which: str, k: int) -> None:
    objective, theta = tanh_network(width=20)  # n = 603
    H = sp.hessian(objective, theta)
    exact = np.linalg.eigvalsh(H.dense())
    before = H.products
    pairs = sp.eigsh(H, k, which)
    assert pairs.converged
    assert pairs.products == H.products - before < 300
    assert_allclose(pairs.values, wanted(exact, k, which), rtol=0, atol=pairs.tolerance.max())
    for value, residual, v in zip(pairs.values, pairs.residuals, pairs.vectors, strict=True):
        true = np.linalg.norm(H @ v - value * v)
        assert_allclose(true, residual, rtol=1e-6, atol=1e-14)


def test_a_tiny_budget_is_kept_and_admitted() -> None:
    matrix = planted(spectrum("positive", 200))
    for budget in (6, 20):
        pairs = sp.eigsh(matrix, k=2, max_products=budget)
        assert not pairs.converged
        assert pairs.products <= budget
        check(pairs, matrix)
        # Rayleigh quotients lie within the spectrum.
        assert 0.1 - 200 * EPS <= pairs.values[0] < pairs.values[1] <= 1.0 + 200 * EPS
    # At the least, k for the space and k for the residuals.
    assert sp.eigsh(matrix, k=2, max_products=4).products <= 4


def test_start_vectors_are_drawn_from_rng() -> None:
    matrix = planted(spectrum("random", 50))
    first, again, other = (sp.eigsh(matrix, rng=seed) for seed in (1, 1, 2))
    assert_array_equal(first.vectors[0], again.vectors[0])
    assert (np.abs(first.vectors[0]) != np.abs(other.vectors[0])).any()
    assert_allclose(first.values, other.values, rtol=0, atol=first.tolerance.max())


class Surprise:
    """A matrix one of whose products is not finite."""

    shape, dtype = (50, 50), np.dtype(np.float64)

    def __init__(self, bad: float, at: int) -> None:
        self.bad, self.left = bad, at

    def __matmul__(self, v: Array) -> Array:
        self.left -= 1
        return v * np.arange(50.0) if self.left else np.full(50, self.bad)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "nan": (lambda: sp.eigsh(np.full((3, 3), np.nan)), "H: expected finite products, got NaN or"),
    "later": (lambda: sp.eigsh(Surprise(np.nan, 5)), "H: expected finite products"),
    "inf": (lambda: sp.eigsh(Surprise(np.inf, 5)), "H: expected finite products"),
    "rectangle": (lambda: sp.eigsh(np.ones((2, 3))), r"H: expected shape \(n, n\) .* got \(2, 3\)"),
    "vector": (lambda: sp.eigsh(np.ones(3)), r"H: expected shape \(n, n\)"),
    "empty": (lambda: sp.eigsh(np.ones((0, 0))), r"H: expected shape \(n, n\) with n at least 1"),
    "k": (lambda: sp.eigsh(np.eye(3), k=0), "k: expected at least 1, got 0"),
    "tol": (
        lambda: sp.eigsh(np.eye(3), tol=np.nan),
        "tol: expected a finite number from 0, got nan",
    ),
    "budget": (
        lambda: sp.eigsh(np.eye(9), k=3, max_products=5),
        "max_products: expected at least 6, got 5",
    ),
    "budget of an operator": (
        lambda: sp.eigsh(sparse.aslinearoperator(np.eye(9)), k=3, max_products=6),
        "max_products: expected at least 7, got 6",
    ),
    "triangle": (
        lambda: sp.eigsh(np.triu(np.ones((9, 9)))),
        "H: expected a symmetric matrix, got entries that differ from their mirrors by up to 1",
    ),
    "triangle tensor": (
        lambda: sp.eigsh(torch.ones(9, 9).triu()),
        "H: expected a symmetric matrix, got",
    ),
    "triangle operator": (
        lambda: sp.eigsh(sparse.aslinearoperator(np.triu(np.ones((9, 9))))),
        "H: expected a symmetric operator, got uᵀHv and vᵀHu that differ by",
    ),
    "subnormal": (
        lambda: sp.eigsh(np.diag([1.0, 2.0, 3.0]) * 1e-320),
        "H: expected products within the normal range, from 2.2e-308",
    ),
    "short products": (
        lambda: sp.eigsh(Product(lambda v: v[:-1])),
        r"H: expected products of shape \(30,\), got \(29,\)",
    ),
    "which": (lambda: sp.eigsh(np.eye(3), which="SM"), "which: expected 'LA', 'SA', 'BE' or 'LM'"),
    "size 0": (
        lambda: sp.hessian(
            sp.NetworkObjective(
                nn.Identity(), nn.CrossEntropy(), np.ones((4, 2)), np.zeros(4, int), dtype="float64"
            ),
            np.empty(0),
        ),
        "objective: expected at least one parameter, got 0",
    ),
    "theta": (lambda: sp.hessian(Saddle(), np.zeros(3)), r"theta: expected shape \(2,\)"),
    "row of products": (
        lambda: sp.eigsh(Product(lambda v: v[None])),
        r"H: expected products of shape \(30,\), got \(1, 30\)",
    ),
    "no shape": (lambda: sp.eigsh(Shaped(None)), r"H: expected shape \(n, n\) .* got None"),
    "shape 4": (lambda: sp.eigsh(Shaped(4)), r"H: expected shape \(n, n\) .* got 4"),
    "shape of floats": (lambda: sp.eigsh(Shaped((4.0, 4.0))), r"H: expected shape \(n, n\)"),
    "dense(-1)": (
        lambda: sp.hessian(Saddle(), np.zeros(2)).dense(-1),
        "block: expected at least 1",
    ),
    "dense(0)": (lambda: sp.hessian(Saddle(), np.zeros(2)).dense(0), "block: expected at least"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


WRONG_KIND: dict[str, tuple[Callable[[], Any], str]] = {
    "complex": (lambda: sp.eigsh(1j * np.eye(3)), "H: expected dtype float32, float64 or integers"),
    "float16": (lambda: sp.eigsh(np.eye(3, dtype="f2")), "H: expected dtype float32, float64 or"),
    "list": (lambda: sp.eigsh([[1.0, 0.0], [0.0, 1.0]]), "H: expected a matrix .* got list"),
    "None": (lambda: sp.eigsh(None), "H: expected a matrix or an operator .* got NoneType"),
    "bfloat16": (lambda: sp.eigsh(torch.eye(3, dtype=torch.bfloat16)), "H: expected dtype float32"),
    "sparse tensor": (lambda: sp.eigsh(torch.eye(3).to_sparse()), "H: expected a dense tensor"),
    "k": (lambda: sp.eigsh(np.eye(3), k=2.0), "k: expected an int, got float"),  # type: ignore[arg-type]
    "max_products": (
        lambda: sp.eigsh(np.eye(3), max_products=9.0),  # type: ignore[arg-type]
        "max_products: expected an int, got float",
    ),
    "complex products": (
        lambda: sp.eigsh(Product(lambda v: v + 0j)),
        "H: expected real numbers, got dtype complex128",
    ),
    "swapped": (
        lambda: sp.hessian(np.zeros(2), Saddle()),  # type: ignore[arg-type]
        "objective: expected an objective .*, and theta after it, got ndarray",
    ),
    "module": (
        lambda: sp.hessian(torch.nn.Linear(2, 2), np.zeros(6)),  # type: ignore[arg-type]
        "objective: expected an objective .* got Linear",
    ),
    "theta": (lambda: sp.hessian(Saddle(), [0.0, 0.0]), "theta: expected an array.*, got list"),
    "theta of another dtype": (
        lambda: sp.hessian(Handed(), np.ones(3, np.float32)),
        "theta: expected dtype float64, got float32",
    ),
    "theta of integers": (
        lambda: sp.classify(Handed(), np.ones(3, int)),
        "theta: expected dtype float64, got int",
    ),
    "tol": (lambda: sp.eigsh(np.eye(3), tol="x"), "tol: expected a number, got str"),  # type: ignore[arg-type]
    "k of bool": (lambda: sp.eigsh(np.eye(3), k=True), "k: expected an int, got bool"),
    "dense(1.5)": (
        lambda: sp.hessian(Saddle(), np.zeros(2)).dense(1.5),  # type: ignore[arg-type]
        "block: expected an int, got float",
    ),
    "dense('x')": (
        lambda: sp.hessian(Saddle(), np.zeros(2)).dense("x"),  # type: ignore[arg-type]
        "block: expected an int, got str",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG_KIND.values(), ids=WRONG_KIND)
def test_wrong_kinds(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match="^" + message):
        call()


# Operators that others make: any array may come back.


class Product:
    """An operator by a function alone."""

    shape, dtype = (30, 30), np.dtype(np.float64)

    def __init__(self, f: Callable[[Array], Any]) -> None:
        self.f = f

    def __matmul__(self, v: Array) -> Any:
        return self.f(v)


class Shaped:
    """An operator that says of its shape what it likes."""

    dtype = np.dtype(np.float64)

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def __matmul__(self, v: Array) -> Array:
        return v


@dataclass
class Handed:
    """½θᵀAθ of somebody else's, whose products and gradients come in a form of their own."""

    of_product: Callable[[Array], Any] = np.asarray
    of_gradient: Callable[[Array], Any] = np.asarray
    matrix: Any = None
    device = "cpu"
    dtype = np.dtype(np.float64)

    def __post_init__(self) -> None:
        self.matrix = np.diag([1.0, 2.0, -3.0]) if self.matrix is None else self.matrix
        self.size = len(self.matrix)

    def loss(self, theta: Array) -> float:
        return float(0.5 * theta @ self.matrix @ theta)

    def gradient(self, theta: Array) -> Any:
        return self.of_gradient(self.matrix @ theta)

    def linearize(self, theta: Array) -> Any:
        return At(self, self.loss(theta), self.gradient(theta))


@dataclass
class At:
    of: Handed
    loss: float
    gradient: Any

    def hvp(self, v: Array) -> Any:
        return self.of.of_product(self.of.matrix @ v)


SHAPES: dict[str, Callable[[Array], Any]] = {
    "scalar": lambda v: 3.0,
    "in a row": lambda v: v[None],
    "transposed": lambda v: v[:, None].T if v.ndim == 1 else np.vstack([v, v]).T,
    "short": lambda v: v[:-1],
    "columns": lambda v: v[:, None],
}
USES: dict[str, Callable[[Any, Array], Any]] = {
    "dense": lambda o, theta: sp.hessian(o, theta).dense(),
    "product": lambda o, theta: sp.hessian(o, theta) @ theta,
    "verify": lambda o, theta: sp.hessian(o, theta).verify(),
    "classify": sp.classify,
    "classify by Lanczos": lambda o, theta: sp.classify(o, theta, exact=False),
    "escape": sp.escape,
    "eigsh": lambda o, theta: sp.eigsh(sp.hessian(o, theta)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES)
def test_products_and_gradients_of_another_shape_are_named(
    change: Callable[[Array], Any], use: Callable[[Any, Array], Any]
) -> None:
    with pytest.raises(ValueError, match=r"^H: expected products of shape \(3,( 3)?\), got \("):
        use(Handed(of_product=change), np.ones(3))
    with pytest.raises(ValueError, match=r"^gradient: expected shape \(3,\), got \("):
        use(Handed(of_gradient=change), np.ones(3))


@pytest.mark.parametrize("v", [np.ones(2), np.ones((2, 3)), np.ones((3, 1, 1)), np.float64(1.0)])
def test_directions_of_another_shape_are_named(v: Any) -> None:
    with pytest.raises(ValueError, match=r"^v: expected shape \(3,\) or \(3, k\), got \("):
        sp.hessian(Handed(np.ones_like), np.ones(3)).matvec(v)


@pytest.mark.parametrize("gradient_too", [False, True])
def test_products_in_float32_are_held_to_its_rounding(gradient_too: bool) -> None:
    def single(v: Array) -> Array:
        return v.astype(np.float32)

    matrix = planted(spectrum("random", 30))
    right = Handed(single, single if gradient_too else np.asarray, matrix)
    theta = np.random.default_rng(0).standard_normal(30)
    found = sp.hessian(right, theta).verify()
    assert found.verdict == "verified", str(found)
    assert found.tolerances["symmetry"] == 1000.0 * np.finfo(np.float32).eps
    pairs = sp.eigsh(sp.hessian(right, theta), k=4)
    assert pairs.converged
    assert_allclose(pairs.values, sp.eigsh(matrix, k=4).values, rtol=1e-5)
    wrong = Handed(lambda v: single(1.01 * v), right.of_gradient, matrix)
    assert sp.hessian(wrong, theta).verify().verdict == "not the Hessian"


def test_integer_products_that_round_to_nothing_are_no_operator() -> None:
    products = iter([0, 1])
    with pytest.raises(ValueError, match=r"^H: expected a symmetric operator, got .* ‖Hv‖ = 0"):
        sp.eigsh(Product(lambda v: np.full(30, next(products))))


def foreign(matrix: Array) -> dict[str, Callable[[Array], Any]]:
    memory = np.empty(len(matrix))

    def reused(v: Array) -> Array:
        memory[...] = matrix @ v
        return memory

    def read_only(v: Array) -> Array:
        product: Array = matrix @ v
        product.flags.writeable = False
        return product

    return {
        "fresh": lambda v: matrix @ v,
        "reused": reused,
        "read-only": read_only,
        "a list": lambda v: (matrix @ v).tolist(),
        "a column": lambda v: (matrix @ v)[:, None],
        "a tensor": lambda v: torch.from_numpy(matrix @ v).requires_grad_(),
    }


def test_products_may_be_any_array() -> None:
    matrix = planted(spectrum("random", 30))
    plain = sp.eigsh(matrix, k=4)
    for name, multiply in foreign(matrix).items():
        for operator in (
            Product(multiply),
            sparse.LinearOperator((30, 30), matvec=multiply, dtype=float),
        ):
            if name in ("a list", "a tensor") and not isinstance(operator, Product):
                continue  # SciPy's own wrapper wants arrays
            pairs = sp.eigsh(operator, k=4)
            assert_array_equal(pairs.values, plain.values, err_msg=name)
            assert_array_equal(pairs.residuals, plain.residuals, err_msg=name)
    single = sp.eigsh(Product(lambda v: (matrix @ v).astype(np.float32)), k=4)
    assert single.converged
    assert_allclose(single.values, plain.values, rtol=0, atol=single.tolerance.max())


def test_the_identity_returns_its_argument() -> None:
    pairs = sp.eigsh(Product(lambda v: v), k=3)
    assert_array_equal(pairs.values, np.ones(3))
    assert pairs.converged
    gram = np.stack(pairs.vectors) @ np.stack(pairs.vectors).T
    assert_allclose(gram, np.eye(3), atol=100 * EPS)


def test_integers_and_tensors_are_taken_as_scipy_takes_integers() -> None:
    whole = np.array([[2, 1, 0], [1, 2, 1], [0, 1, 2]])
    exact = np.linalg.eigvalsh(whole)
    for matrix in (whole, sparse.aslinearoperator(whole), torch.from_numpy(whole), whole != 0):
        expected = exact if matrix is not whole and not isinstance(matrix, np.ndarray) else None
        found = sp.eigsh(matrix, k=3).values
        if expected is None:
            expected = np.linalg.eigvalsh(np.asarray(matrix, float))
        assert_allclose(found, expected, rtol=0, atol=1e-14)
    tensor = torch.from_numpy(planted(spectrum("random", 30))).requires_grad_()
    pairs = sp.eigsh(tensor)
    assert all(isinstance(v, torch.Tensor) and not v.requires_grad for v in pairs.vectors)
    assert_allclose(pairs.values, sp.eigsh(tensor.detach().numpy()).values, rtol=1e-12)


class Foreign:
    """A quadratic whose gradient and products come as a foreign function gives them."""

    dtype, device = np.dtype(np.float64), "cpu"

    def __init__(self, matrix: Array, product: Callable[[Array], Any]) -> None:
        self.size, self.matrix, self.gradient = len(matrix), matrix, product

    def loss(self, theta: Array) -> float:
        return float(0.5 * theta @ self.matrix @ theta)

    def linearize(self, theta: Array) -> Any:
        at = _WrongLinearization(self.loss(theta), self.gradient(theta), None, lambda hv, _: hv)
        at.hvp = lambda v: self.gradient(v) if v.ndim == 1 else self.matrix @ v  # type: ignore[method-assign]
        return at


@pytest.mark.parametrize("name", ["fresh", "reused", "read-only"])
def test_every_analysis_takes_any_products_and_writes_to_none(name: str) -> None:
    matrix = planted(spectrum("indefinite", 520))
    objective = Foreign(matrix, foreign(matrix)[name])
    theta = np.full(520, 1e-3)
    theta.flags.writeable = False
    H = sp.hessian(objective, theta)
    assert_array_equal(H.gradient, matrix @ theta)
    assert H.verify().ok
    v = np.ones(520)
    v.flags.writeable = False
    first, second = H @ v, H @ (2.0 * v)
    assert_array_equal(first, matrix @ v)
    assert_array_equal(second, 2.0 * first)
    point = sp.classify(objective, theta, gradient_tolerance=1.0)
    assert point.kind == "saddle"
    assert not point.exact
    way = sp.escape(objective, theta, point.direction)
    assert_allclose(way.eigenvalue, point.lambda_min, rtol=1e-9)
    assert_array_equal(theta, 1e-3)
    d, e = np.eye(520)[:2]
    d.flags.writeable = e.flags.writeable = False
    assert np.isfinite(sp.landscape.plane(objective, theta, d, e, points=3).losses).all()


# Threads.


@pytest.mark.parametrize("recomputes", [False, True])
def test_threads_may_share_an_operator(recomputes: bool) -> None:
    digits = sp.data.digits("float64")
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    budget = {"memory_budget": 1 << 20} if recomputes else {}
    objective = sp.NetworkObjective(
        net, nn.CrossEntropy(), digits.x, digits.y, dtype="float64", **budget
    )
    assert objective.recomputes == recomputes
    H = sp.hessian(objective, net.init(0, "float64").theta)
    rng = np.random.default_rng(0)
    directions: list[Array] = [
        rng.standard_normal((objective.size, k) if k else objective.size)
        for k in ((0, 1, 3, 0, 7) * 4 if recomputes else (0, 1, 3, 0, 7) * 40)
    ]
    serial = [H @ v for v in directions]
    counted = H.products
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda v: H @ v, directions))
    for one, other in zip(serial, together, strict=True):
        assert_array_equal(one, other)
    assert H.products == 2 * counted


def test_threads_may_share_an_objective_and_a_network() -> None:
    objective, theta = digits_network("float32", nn.ReLU, 0)
    points = [theta * (1 + i / 16) for i in range(16)]
    params = objective.net.init(0)
    x = sp.data.digits("float32").x
    d, e = np.eye(2, theta.size, dtype=np.float32)

    def everything(at: Array) -> list[Any]:
        return [
            objective.loss(at),
            objective.gradient(at),
            sp.hessian(objective, at) @ at,
            sp.landscape.plane(objective, at, d, e, points=3).losses,
            sp.train.predict(objective.net, params, x),
            sp.norm.batch_norm_backward(x, sp.norm.batch_norm(x)[1])[0],
        ]

    serial = [everything(at) for at in points]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(everything, points))
    for one, other in zip(serial, together, strict=True):
        for a, b in zip(one, other, strict=True):
            assert_array_equal(a, b)


def test_a_native_pass_refuses_a_second_thread() -> None:
    objective, theta = digits_network("float32", nn.ReLU, 0)
    at = objective.linearize(theta)
    native = next(iter(at._passes.values()))
    v, outs = theta.copy(), [np.empty_like(theta) for _ in range(2)]
    refused = []

    def products(out: Array) -> None:
        for _ in range(200):
            try:
                native.product(v, out, False)
            except ValueError as error:
                refused.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(products, outs))
    assert set(refused) == {"pass: expected one call at a time, got two threads"}
    native.product(v, outs[0], False)  # and is free again
    assert_array_equal(outs[0], at.hvp(v))


def test_verification_reads_as_a_table() -> None:
    lines = str(sp.hessian(Saddle(), np.zeros(2)).verify()).splitlines()
    assert len(lines) == 4
    number = r"\d\.\de[+-]\d\d"
    assert all(re.fullmatch(rf"[a-z ]+: {number} \(tolerance {number}\)", x) for x in lines[1:])


def test_an_operator_may_write_to_its_argument() -> None:
    class Doubled:
        shape, dtype = (6, 6), np.dtype(np.float64)

        def __matmul__(self, v: Array) -> Array:
            v *= 2.0
            return v

    pairs = sp.eigsh(Doubled(), k=2)
    assert pairs.converged
    assert_allclose(pairs.values, [2.0, 2.0])
