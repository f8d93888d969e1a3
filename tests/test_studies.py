"""The lectures' claims on batch normalization (S1.17 to S1.22), on the digits, over seeds."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

import saddlepoint as sp
from saddlepoint import nn
from saddlepoint.data import Dataset, digits
from saddlepoint.studies import batch_norm as study
from saddlepoint.studies.batch_norm import NORMALIZED, PLAIN, Noise, Setting

Array = NDArray[Any]
DATA = digits()
ROOT = Path(__file__).resolve().parents[1]
seeds = pytest.mark.parametrize("seed", range(3))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are tiny: a second thread is only waited for."""
    before = sp.num_threads()
    sp.set_num_threads(1)
    yield
    sp.set_num_threads(before)


@pytest.fixture(autouse=True)
def figures_off_screen() -> Iterator[None]:
    matplotlib.use("Agg")
    yield
    pyplot.close("all")


def small(rows: int = 96, columns: int = 6, dtype: str = "float64") -> Dataset:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, columns)).astype(dtype)
    return Dataset(x, rng.integers(0, 3, rows), classes=3)


# S1.17


@seeds
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_s1_17_output_has_mean_β_and_deviation_γ(seed: int, eps: float) -> None:
    result = study.layer_output(DATA, eps=eps, seed=seed)
    assert_allclose(result.output_mean, result.bias, atol=1e-13)
    assert_allclose(result.output_deviation, result.predicted_deviation, rtol=1e-12)
    # eps takes its share: next to nothing of 1e-5, and plainly of 0.5.
    shrunk = result.predicted_deviation / np.abs(result.weight)
    assert_allclose(shrunk, np.sqrt(1 - eps / (result.input_deviation**2 + eps)), rtol=1e-12)
    assert (shrunk > 0.9999).all() if eps == 1e-5 else (shrunk < 0.95).all()
    # The input had neither, or there would be nothing to see.
    assert np.abs(result.input_mean - result.bias).max() > 0.5


@seeds
def test_s1_17_gradient_goes_through_the_statistics_and_evaluation_is_of_one_row(seed: int) -> None:
    result = study.layer_output(DATA, seed=seed)
    # Central differences at 1e-5 err by some 1e-10 and, in rounding, 1e-16/1e-5 of the sum's terms.
    assert result.gradient_error < 1e-7
    assert result.constant_statistics_error > 1e-3  # what a layer that forgot them would get
    assert result.companions_training > 0.05
    assert result.companions_evaluation == 0.0


# S1.18


@pytest.mark.parametrize("seed", range(5))
def test_s1_18_trains_at_a_rate_where_the_plain_network_diverges(seed: int) -> None:
    curves = study.learning_curves(DATA, (0.05, 0.5), setting=Setting(depth=15, seed=seed))
    assert [run.name for run in curves.runs] == [PLAIN, NORMALIZED] * 2
    assert [run.lr for run in curves.runs] == [0.05, 0.05, 0.5, 0.5]
    # Over 20 seeds: the plain one ends at 1.46 at most, and at 2.24 at least; the other at 0.30 and
    # 0.24 at most, with a best accuracy from 95 percent on.
    slow, _, diverged, normalized = curves.runs
    assert [run.diverged for run in curves.runs] == [False, False, True, False]
    assert_allclose(normalized.chance, np.log(10), rtol=1e-3)  # ten classes, about as frequent
    assert slow.epoch_loss[-1] < 0.8 * slow.chance
    assert not np.isfinite(diverged.loss[-1]) or diverged.epoch_loss[-1] > 0.9 * diverged.chance
    assert normalized.epoch_loss[-1] < 0.2 * normalized.chance
    assert normalized.accuracy.max() > 0.9


def test_divergence_to_infinity_is_flagged_and_drawn() -> None:
    curves = study.learning_curves(DATA, (1e3,), epochs=1, setting=Setting(depth=3, width=16))
    plain = curves.runs[0]
    assert plain.diverged
    assert not len(plain.epoch_loss)
    labels = [text.get_text() for text in curves.plot().axes[0].get_legend().get_texts()]
    assert labels[0] == "plain, rate 1000 (diverged)"


# S1.20


def test_drift_is_the_wasserstein_distance_in_deviations(rng: np.random.Generator) -> None:
    values = rng.standard_normal((3, 50, 4)) * [1.0, 2.0, 0.5, 3.0] + rng.standard_normal((3, 1, 4))
    wanted = [
        np.mean([wasserstein_distance(a, b) / a.std() for a, b in zip(one.T, two.T, strict=True)])
        for one, two in pairwise(values)
    ]
    assert_allclose(study._drift(values), wanted, rtol=1e-12)
    # A unit of one value has no deviation to measure by: it counts as still, whatever comes next.
    values[0, :, 0] = 1.0
    others = [
        wasserstein_distance(a, b) / a.std()
        for a, b in zip(values[0, :, 1:].T, values[1, :, 1:].T, strict=True)
    ]
    assert_allclose(study._drift(values)[0], sum(others) / 4, rtol=1e-12)


@pytest.mark.slow
@seeds
def test_s1_20_batch_norm_steadies_what_the_nonlinearities_receive(seed: int) -> None:
    setting = Setting(seed=seed)
    history = study.activation_history(DATA, epochs=4, times=5, setting=setting)
    assert history.names == (PLAIN, NORMALIZED)
    assert_array_equal(history.steps, np.linspace(0, 4 * (1437 // 128), 5))
    assert history.density.shape == (2, setting.depth, 5, 30)
    # The share within the edges is 99 percent, over all times.
    inside = (history.density.mean(axis=2) * np.diff(history.edges)).sum(axis=-1)
    assert_allclose(inside, 0.99, atol=2e-3)
    # Before the first update γ = 1 and β = 0.
    assert_allclose(history.mean[1, :, 0], 0, atol=1e-5)
    assert_allclose(history.deviation[1, :, 0], 1, rtol=1e-3)
    plain, normalized = history.drift.mean(axis=2)
    assert (normalized < plain / 2).all()  # in each layer
    # Over ten seeds: from 6 times less in each layer, from 17 times over all.
    assert normalized.mean() < plain.mean() / 5


# S1.21


def test_noise_is_redrawn_for_each_unit_and_for_each_sample() -> None:
    rng, rows, units = np.random.default_rng(0), 2000, 1000
    s, m = Noise().draw(rng, (rows, units), np.dtype("float64"))
    again, _ = Noise().draw(rng, (2, units), np.dtype("float64"))
    # Of each unit: μ ~ U(−½, ½), σ ~ U(1, 1.25); a uniform law of width w has deviation w/√12.
    # The bounds are five standard errors: of 1000 units' deviation 2 percent each, of 2000
    # samples' 1.6 percent, halved and more by the mean over units.
    assert_allclose(m.mean(axis=0).std(), 1 / np.sqrt(12), rtol=0.1)
    assert_allclose(s.mean(axis=0).std(), 0.25 / np.sqrt(12), rtol=0.1)
    assert_allclose(m.std(axis=0).mean(), 0.2 / np.sqrt(12), rtol=0.01)
    assert_allclose(s.std(axis=0).mean(), 0.1, rtol=0.01)
    assert_allclose(s.mean(), 1.125, atol=0.012)
    assert np.abs(m).max() <= 0.6
    assert abs(np.corrcoef(s.mean(axis=0), again.mean(axis=0))[0, 1]) < 0.2  # another step's


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Identity()], ids=str)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_noisy_networks_pass_is_the_packages_without_noise(
    activation: nn.Layer, batch_norm: bool, rng: np.random.Generator
) -> None:
    data = small()
    net = Setting(3, 7, activation, batch_size=32).network(data, batch_norm)
    theta = net.init(0, "float64").theta + 0.1 * rng.standard_normal(net.size)
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), data.x, data.y, dtype="float64")
    passed = study._forward(net, theta, data.x)
    loss, slope = study._cross_entropy(passed.output, data.y)
    wanted = objective.gradient(theta)
    assert_allclose(loss, objective.loss(theta), rtol=1e-12)
    # Both round each of the sums once in their own order.
    assert_allclose(passed.backward(slope), wanted, rtol=1e-9, atol=1e-12 * np.abs(wanted).max())


def test_gradient_through_the_noise(rng: np.random.Generator) -> None:
    data = small()
    net = Setting(2, 5, nn.Tanh(), batch_size=32).network(data, True)
    theta = net.init(0, "float64").theta
    v = rng.standard_normal(net.size)

    def passed(t: float) -> study._Forward:
        return study._forward(net, theta + t * v, data.x, Noise(), np.random.default_rng(7))

    def loss(t: float) -> float:
        return study._cross_entropy(passed(t).output, data.y)[0]

    at = passed(0.0)
    gradient = at.backward(study._cross_entropy(at.output, data.y)[1])
    h = 1e-5
    assert_allclose(v @ gradient, (loss(h) - loss(-h)) / (2 * h), rtol=1e-7)


def test_no_noise_is_batch_norm_bit_for_bit() -> None:
    silent = Noise(0.0, 1.0, 0.0, 0.0)
    result = study.noisy_training(DATA, epochs=2, noise=silent, setting=Setting(depth=3))
    assert_array_equal(result.loss[1], result.loss[2])
    assert_array_equal(result.activations.drift[1], result.activations.drift[2])


@pytest.mark.slow
@seeds
def test_s1_21_noisy_batch_norm_trains_as_well_on_less_steady_activations(seed: int) -> None:
    setting = Setting(depth=5, activation=nn.Tanh(), seed=seed)
    result = study.noisy_training(DATA, setting=setting)
    plain, normalized, noisy = range(3)
    # In the second half of the training; over ten seeds from 2.7 and 23 times.
    drift = result.activations.drift[:, :, 4:].mean(axis=(1, 2))
    assert drift[noisy] > 1.5 * drift[plain]
    assert drift[noisy] > 10 * drift[normalized]
    last = result.accuracy[:, -11:].mean(axis=1)  # the last epoch
    assert last[noisy] > last[normalized] - 0.05
    assert result.test_accuracy[noisy] > result.test_accuracy[normalized] - 0.03
    assert result.test_accuracy[noisy] > 0.93


@pytest.mark.slow
@seeds
def test_s1_21_noisy_batch_norm_trains_faster_than_a_deep_plain_network(seed: int) -> None:
    result = study.noisy_training(DATA, times=2, setting=Setting(seed=seed))
    plain, normalized, noisy = result.loss[:, -22:].mean(axis=1)  # the last two epochs
    # Over ten seeds: 0.64 of the plain loss at most, 5 points of accuracy more at least.
    assert normalized < noisy < 0.8 * plain
    assert result.test_accuracy[2] > result.test_accuracy[0] + 0.02


def test_divergence_leaves_nan() -> None:
    setting = Setting(depth=3, width=16)
    result = study.noisy_training(DATA, lr=1e3, epochs=1, times=3, setting=setting)
    assert np.isfinite(result.loss[0, 0])
    assert np.isnan(result.loss[0, -1])
    assert np.isnan(result.test_accuracy[0])
    assert np.isnan(result.activations.drift[0, 0, -1])
    assert np.isfinite(result.activations.density).all()
    assert result.activations.plot().axes


# S1.22


def test_one_step_on_a_quadratic_is_as_calculated(rng: np.random.Generator) -> None:
    surface = sp.surfaces.Quadratic([3.0, 1.0, 0.2, -0.5, -2.0], rng)
    H = surface.matrix
    theta, lr, factors = rng.standard_normal(5), 0.07, (0.5, 1.0, 4.0)
    g = surface.gradient(theta)
    step = study.one_step(surface, theta, lr, factors)
    t = lr * np.array(factors)
    assert_allclose(step.distances, t * np.linalg.norm(g), rtol=1e-14)
    assert_allclose(step.gradient_norm, np.linalg.norm(g), rtol=1e-14)
    wanted = step.loss - t * (g @ g) + t * t / 2 * (g @ H @ g)
    assert_allclose(step.losses, wanted, rtol=1e-12, atol=1e-12)  # its terms are about 1
    assert_allclose(step.gradient_changes, t * np.linalg.norm(H @ g), rtol=1e-12)
    assert_allclose(step.smoothness, np.linalg.norm(H @ g) / np.linalg.norm(g), rtol=1e-12)
    assert_allclose(step.curvature, (g @ H @ g) / (g @ g), rtol=1e-12)


def test_one_step_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match=r"theta: expected a point with a gradient"):
        study.one_step(sp.surfaces.Saddle(), np.zeros(2), 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_s1_22_the_loss_along_a_step_is_tamer(seed: int) -> None:
    result = study.step_landscape(DATA, setting=Setting(seed=seed))
    width = np.median(result.loss_high - result.loss_low, axis=1)
    change = np.median(result.change_high, axis=1)
    smoothness, curvature = (np.median(v, axis=1) for v in (result.smoothness, result.curvature))
    # Medians over training; over ten seeds from 49, 10, 1.42 and 1.44 times.
    assert width[0] > 10 * width[1]
    assert change[0] > 4 * change[1]
    assert smoothness[0] > 1.2 * smoothness[1]
    assert curvature[0] > 1.2 * curvature[1]
    # The reach is theirs: half a step up to four; β is at least what the far end shows.
    far = result.change_high / (4 * 0.1 * result.gradient_norm)
    assert (result.smoothness >= far * (1 - 1e-9)).all()
    assert (result.loss_low <= result.loss_high).all()


def test_the_steps_looked_at_are_those_of_training() -> None:
    setting = Setting(depth=2, width=16)
    often = study.step_landscape(DATA, steps=9, every=1, setting=setting)
    seldom = study.step_landscape(DATA, steps=9, every=4, setting=setting)
    assert_array_equal(seldom.steps, [0, 4, 8])
    assert_array_equal(often.loss[:, ::4], seldom.loss)
    # The first loss, by a float64 pass that is not the package's: nothing has moved yet.
    net = setting.network(DATA, False)
    chosen = np.random.default_rng(0).permutation(1437)[:128]
    w = net.unflatten(net.init(0).theta.astype(np.float64))
    z = DATA.x[chosen].astype(np.float64)
    for i in (0, 2):
        z = np.maximum(z @ w[f"{i}.weight"].T + w[f"{i}.bias"], 0)
    z = z @ w["4.weight"].T + w["4.bias"]
    shares = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    loss = -np.mean(np.log(shares[np.arange(128), DATA.y[chosen]]))
    assert_allclose(often.loss[0, 0], loss, rtol=1e-5)  # float32


# S1.19


@pytest.mark.slow
@seeds
def test_s1_19_each_hypothesis_has_its_number(seed: int) -> None:
    result = study.hypotheses(DATA, epochs=8, setting=Setting(seed=seed))
    plain, normalized = range(2)
    assert result.active_units[normalized] >= result.active_units[plain]
    assert result.active_units[normalized] > 0.97
    assert result.drift[normalized] < result.drift[plain] / 5
    assert 2 * result.largest_eigenvalue[normalized] < result.largest_eigenvalue[plain]
    assert result.stale_accuracy[plain] == 1.0
    assert result.stale_accuracy[normalized] < 0.95
    assert result.batch_noise[plain] < 1e-5  # rounding: the same rows at another place
    assert result.batch_noise[normalized] > 0.05


# Drawing, and what is refused


SMALL = Setting(depth=2, width=8)
RESULTS = {
    "layer_output": (lambda: study.layer_output(DATA), 2),
    "learning_curves": (lambda: study.learning_curves(DATA, epochs=1, setting=SMALL), 2),
    "activation_history": (
        lambda: study.activation_history(DATA, epochs=1, times=3, setting=SMALL),
        6,
    ),
    "noisy_training": (lambda: study.noisy_training(DATA, epochs=1, times=3, setting=SMALL), 3),
    "one_step": (lambda: study.one_step(sp.surfaces.Saddle(), np.ones(2), 0.1), 1),
    "step_landscape": (lambda: study.step_landscape(DATA, steps=6, setting=SMALL), 4),
    "hypotheses": (lambda: study.hypotheses(DATA, epochs=1, setting=SMALL), 5),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_draw_themselves(name: str, tmp_path: Path) -> None:
    make, panels = RESULTS[name]
    result: Any = make()
    figure = result.plot()
    drawn = [ax for ax in figure.axes if ax.lines or ax.patches or ax.collections]
    assert len(drawn) == panels
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000

    mine, (left, right) = pyplot.subplots(1, 2)
    assert result.plot(ax=right) is mine
    assert not left.lines
    assert len([right, *right.child_axes]) == panels + (panels > 1)


def test_drawing_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'saddlepoint\[report\]'"):
        study.layer_output(DATA).plot()


def test_what_cannot_be_studied_is_refused() -> None:
    targets = Dataset(DATA.x, DATA.x[:, :1].copy())
    with pytest.raises(ValueError, match=r"data: expected labels, got targets"):
        study.learning_curves(targets)
    with pytest.raises(ValueError, match=r"batch_size: expected 2 to 96, .*, got 128"):
        study.step_landscape(small())
    with pytest.raises(ValueError, match=r"data: expected at least 256 rows, got 96"):
        study.layer_output(small())
    with pytest.raises(ValueError, match=r"times: expected at least 2, got 1"):
        study.activation_history(DATA, times=1)
    with pytest.raises(ValueError, match=r"times: expected at most 12, .*, got 13"):
        study.activation_history(DATA, epochs=1, times=13)
    with pytest.raises(TypeError, match=r"activation: expected ReLU, Tanh, .*, got Linear"):
        Setting(activation=nn.Linear(64, 64))


@pytest.mark.slow
def test_the_gallery_makes_every_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "few.npz", x=DATA.x, y=DATA.y)
    arguments = ["gallery.py", "--data", str(tmp_path / "few.npz"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    gallery = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
    gallery["main"]()
    made = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert made == set(gallery["FIGURES"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in made)
