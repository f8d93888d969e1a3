"""Batch normalization: what it does to a layer, to training, and to the loss along a step.

Each function measures one claim of Ioffe & Szegedy (2015) or Santurkar et al. (2018) on networks
that differ in batch normalization only, and returns a frozen dataclass of numbers whose ``plot``
draws them. ``data`` is a `saddlepoint.data.Dataset` with labels; `Setting` names the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import nn, norm, optim
from ..curvature import eigsh, hessian
from ..data import Dataset
from ..errors import count, expected, instance
from ..nn.objective import NetworkObjective
from ..objective import Objective
from ..results import COLORS, Result, panels
from ..train import Fit, accuracy, fit, predict
from ..vector import ArrayLike, axpy, copy, dot
from ..vector import norm as length

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ActivationHistory",
    "Hypotheses",
    "LayerOutput",
    "LearningCurves",
    "Noise",
    "NoisyTraining",
    "OneStep",
    "Run",
    "Setting",
    "StepLandscape",
    "activation_history",
    "hypotheses",
    "layer_output",
    "learning_curves",
    "noisy_training",
    "one_step",
    "step_landscape",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]

PLAIN, NORMALIZED, NOISY = "plain", "batch norm", "noisy batch norm"
_COLORS = {PLAIN: COLORS["orange"], NORMALIZED: COLORS["blue"], NOISY: COLORS["green"]}

# Where Santurkar et al. look: between half a step and four steps along the gradient.
FACTORS = tuple(np.geomspace(0.5, 4.0, 8).tolist())


@dataclass(frozen=True)
class Setting:
    """The networks of a study: equal but for batch normalization.

    Attributes
    ----------
    depth, width : int
        Hidden layers, and units in each.
    activation : Layer
        Nonlinearity; `nn.Identity` makes a deep linear network.
    weight_init : initializer of `saddlepoint.nn.init`
    batch_size : int
    seed : int
        Of the initial weights, the order of the samples, and the noise.
    """

    depth: int = 10
    width: int = 64
    activation: nn.Layer = field(default_factory=nn.ReLU)
    weight_init: nn.init.Initializer = nn.init.he_normal
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("depth", 0), ("width", 1), ("batch_size", 1), ("seed", 0)):
            count(name, getattr(self, name), least)
        if not isinstance(self.activation, (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity)):
            what = "ReLU, Tanh, Sigmoid or Identity"
            raise TypeError(expected("activation", what, type(self.activation).__name__))

    def network(self, data: Dataset, batch_norm: bool) -> nn.Sequential:
        """Linear, batch normalization where asked for, nonlinearity, so often; then Linear.

        β stands in for the bias of the linear layers it follows.
        """
        if not 2 <= self.batch_size <= len(data.y):
            what = f"2 to {len(data.y)}, the rows of the data"
            raise ValueError(expected("batch_size", what, self.batch_size))
        children: list[nn.Layer] = []
        columns = data.x.shape[1]
        for _ in range(self.depth):
            children.append(nn.Linear(columns, self.width, not batch_norm, self.weight_init))
            children += [nn.BatchNorm(self.width)] if batch_norm else []
            children.append(self.activation)
            columns = self.width
        return nn.Sequential(
            *children, nn.Linear(columns, _classes(data), weight_init=self.weight_init)
        )


def _classes(data: Dataset) -> int:
    """How many; data with targets have none, and are refused."""
    instance("data", data, Dataset, "a saddlepoint.data.Dataset")
    if data.classes is None:
        raise ValueError(expected("data", "labels", "targets"))
    return data.classes


# ---- S1.17: one layer


@dataclass(frozen=True)
class LayerOutput(Result):
    """What one batch-normalized layer puts out, per unit, and what its output depends on.

    Attributes
    ----------
    weight, bias : (C,) float64
        γ and β.
    input_mean, input_deviation, output_mean, output_deviation : (C,) float64
        Over one mini-batch, in training.
    predicted_deviation : (C,) float64
        |γ| √(var / (var + eps)), which the output deviation is to equal; β is for the mean.
    gradient_error, constant_statistics_error : float
        Relative error, against central differences, of the gradient through the statistics, and of
        the one that takes them for constants.
    companions_training, companions_evaluation : float
        How far a row's output moves, at most, when the other rows of its batch are exchanged.
    """

    weight: Floats
    bias: Floats
    input_mean: Floats
    input_deviation: Floats
    output_mean: Floats
    output_deviation: Floats
    predicted_deviation: Floats
    gradient_error: float
    constant_statistics_error: float
    companions_training: float
    companions_evaluation: float

    def __str__(self) -> str:
        return (
            f"{len(self.weight)} units; error of the gradient through the statistics "
            f"{self.gradient_error:.1e}, of the one that takes them for constants "
            f"{self.constant_statistics_error:.1e}; other companions move a row by "
            f"{self.companions_training:.3g} in training and {self.companions_evaluation:.3g} in "
            "evaluation."
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """Mean and deviation of each unit: before, after, and as predicted."""
        figure, (left, right) = panels(ax, 1, 2)
        for panel, before, after, predicted, name in (
            (left, self.input_mean, self.output_mean, self.bias, "mean"),
            (right, self.input_deviation, self.output_deviation, self.predicted_deviation,
             "deviation"),
        ):  # fmt: skip
            order = np.argsort(predicted)
            panel.plot(before[order], ".", color=_COLORS[PLAIN], label="input")
            panel.plot(after[order], "o", ms=3, color=_COLORS[NORMALIZED], label="output")
            panel.plot(predicted[order], "k-", lw=0.8, label="from γ and β")
            panel.set(xlabel="unit", title=name)
        left.legend()
        return figure


def layer_output(
    data: Dataset, width: int = 32, rows: int = 128, eps: float = 1e-5, seed: int = 0
) -> LayerOutput:
    """Pass a mini-batch through Linear and batch normalization with random γ and β, in float64.

    The evaluation uses the mean statistics of all mini-batches of the data.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import data
    >>> result = layer_output(data.digits())
    >>> bool(np.allclose(result.output_mean, result.bias, atol=1e-12))
    True
    """
    instance("data", data, Dataset, "a saddlepoint.data.Dataset")
    count("width", width, 1)
    count("rows", rows, 2)
    count("seed", seed, 0)
    rng = np.random.default_rng(seed)
    x = data.x.astype(np.float64)
    z = x @ nn.init.he_normal(rng, (width, x.shape[1])).T
    weight, bias = rng.normal(1.0, 0.5, width), rng.normal(0.0, 1.0, width)
    order = rng.permutation(len(z))
    batches = [z[order[b : b + rows]] for b in range(0, len(z) - rows + 1, rows)]
    if len(batches) < 2:
        raise ValueError(expected("data", f"at least {2 * rows} rows", len(z)))
    batch = batches[0]
    y, saved = norm.batch_norm(batch, weight, bias, eps=eps)
    variance = batch.var(axis=0)

    upstream, direction = rng.standard_normal((2, *batch.shape))
    gradient = norm.batch_norm_backward(upstream, saved)[0]
    constant = upstream * weight / np.sqrt(variance + eps)
    h = 1e-5  # near eps^(1/3), where truncation and rounding meet

    def value(t: float) -> float:
        moved = norm.batch_norm(batch + t * direction, weight, bias, eps=eps)[0]
        return float(np.sum(upstream * moved))

    slope = (value(h) - value(-h)) / (2.0 * h)

    running_mean, running_var = np.zeros(width), np.ones(width)
    for k, each in enumerate(batches, 1):  # momentum 1/k: all batches weigh alike
        norm.batch_norm(each, None, None, running_mean, running_var, momentum=1.0 / k, eps=eps)
    other = np.concatenate([batch[:1], batches[1][1:]])
    changes = []
    for training in (True, False):
        first, second = (
            norm.batch_norm(
                b, weight, bias, running_mean.copy(), running_var.copy(), training, eps=eps
            )[0][0]
            for b in (batch, other)
        )
        changes.append(float(np.abs(first - second).max()))
    return LayerOutput(
        weight=weight,
        bias=bias,
        input_mean=batch.mean(axis=0),
        input_deviation=batch.std(axis=0),
        output_mean=y.mean(axis=0),
        output_deviation=y.std(axis=0),
        predicted_deviation=np.abs(weight) * np.sqrt(variance / (variance + eps)),
        gradient_error=abs(float(np.sum(gradient * direction)) - slope) / abs(slope),
        constant_statistics_error=abs(float(np.sum(constant * direction)) - slope) / abs(slope),
        companions_training=changes[0],
        companions_evaluation=changes[1],
    )


# ---- S1.18: learning curves


@dataclass(frozen=True)
class Run(Result):
    """One training.

    Attributes
    ----------
    name : str
        "plain" or "batch norm".
    lr : float
    loss : (S,) float64
        Of each mini-batch.
    epoch_loss, accuracy : (E,) float64
        Mean training loss of each epoch; accuracy after it on the test part, or on the training
        part where there is none.
    diverged : bool
        The loss stopped being finite, or the last epoch's is not below nine tenths of `chance`.
    chance : float
        The loss of the best constant prediction: the entropy of the labels.
    """

    name: str
    lr: float
    loss: Floats
    epoch_loss: Floats
    accuracy: Floats
    diverged: bool
    chance: float

    def __str__(self) -> str:
        if self.diverged:
            return f"{self.name}, rate {self.lr:g}: diverged"
        return (
            f"{self.name}, rate {self.lr:g}: loss {self.epoch_loss[-1]:.4g}, accuracy "
            f"{self.accuracy[-1]:.1%}"
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """Loss over updates, beside that of the best constant prediction."""
        figure, (panel,) = panels(ax, 1, 1)
        panel.plot(*_smooth(self.loss), color=_COLORS[self.name])
        panel.axhline(self.chance, color="k", lw=0.6, ls=":")
        panel.set(xlabel="update", ylabel="training loss", ylim=(0, 1.5 * self.chance))
        return figure


@dataclass(frozen=True)
class LearningCurves(Result):
    """Trainings with and without batch normalization at several rates.

    Attributes
    ----------
    runs : tuple of Run
        For each rate, plain and then batch-normalized.
    """

    runs: tuple[Run, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.runs))

    def plot(self, ax: Axes | None = None) -> Figure:
        """Loss over updates and accuracy over epochs; what diverged is dashed, and said."""
        figure, (left, right) = panels(ax, 1, 2)
        rates = sorted({run.lr for run in self.runs})
        for run in self.runs:
            style: dict[str, Any] = {
                "color": _COLORS[run.name],
                "ls": "--" if run.diverged else "-",
                "alpha": 0.4 + 0.6 * (1 + rates.index(run.lr)) / len(rates),
            }
            label = f"{run.name}, rate {run.lr:g}" + (" (diverged)" if run.diverged else "")
            left.plot(*_smooth(run.loss), label=label, **style)
            right.plot(np.arange(1, len(run.accuracy) + 1), run.accuracy, marker=".", **style)
        chance = self.runs[0].chance
        left.axhline(chance, color="k", lw=0.6, ls=":")
        left.set(xlabel="update", ylabel="training loss", ylim=(0, 1.5 * chance))
        right.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
        left.legend()
        return figure


def learning_curves(
    data: Dataset,
    rates: Sequence[float] = (0.1, 0.5),
    epochs: int = 15,
    setting: Setting = Setting(),
) -> LearningCurves:
    """Train by plain SGD at each rate, with and without batch normalization."""
    shares = np.bincount(data.y, minlength=_classes(data)) / len(data.y)
    validation = (data.x, data.y)
    if data.x_test is not None and data.y_test is not None:
        validation = (data.x_test, data.y_test)
    chance = -float(np.sum(shares[shares > 0] * np.log(shares[shares > 0])))
    runs = []
    for lr in rates:
        for name in (PLAIN, NORMALIZED):
            net = setting.network(data, name == NORMALIZED)
            start = net.init(setting.seed, data.x.dtype)
            result = _fit(net, start, data, lr, epochs, setting, validation)
            history = result.history
            failed = result.stopped == "diverged"
            failed = failed or not history.train_loss[-1] < 0.9 * chance
            runs.append(
                Run(name, lr, history.loss, history.train_loss, history.validation_accuracy,
                    failed, chance)
            )  # fmt: skip
    return LearningCurves(tuple(runs))


def _fit(
    net: nn.Layer,
    params: nn.Parameters,
    data: Dataset,
    lr: float,
    epochs: int,
    setting: Setting,
    validation: tuple[Array, Array] | None = None,
) -> Fit:
    """Plain SGD; Ctrl-C ends the study, not this run alone."""
    result = fit(
        net,
        params,
        nn.CrossEntropy(),
        (data.x, data.y),
        optimizer=partial(optim.SGD, lr=lr),
        epochs=epochs,
        batch_size=setting.batch_size,
        rng=setting.seed,
        validation=validation,
    )
    if result.stopped == "interrupted":
        raise KeyboardInterrupt
    return result


# ---- S1.20, S1.21: what the nonlinearities receive


@dataclass(frozen=True)
class Noise:
    """Noise behind batch normalization that undoes what it did (Santurkar et al. 2018, app. A).

    Anew at every step, each unit draws μ ~ U(−mean, mean) and σ ~ U(1, deviation); each sample
    then draws m ~ U(μ − mean_spread, μ + mean_spread) and s ~ N(σ, deviation_spread), and the
    unit's output a becomes s·a + m. So the noise is not Gaussian: its own mean and scale are
    redrawn. The defaults are the paper's as we know them; they were not checked against its text.
    """

    mean: float = 0.5
    deviation: float = 1.25
    mean_spread: float = 0.1
    deviation_spread: float = 0.1

    def draw(
        self, rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> tuple[Array, Array]:
        """s and m, each (rows, units), of one step."""
        units = shape[1]
        mu = rng.uniform(-self.mean, self.mean, units)
        sigma = rng.uniform(1.0, self.deviation, units)
        m = rng.uniform(mu - self.mean_spread, mu + self.mean_spread, shape)
        s = rng.normal(sigma, self.deviation_spread, shape)
        return s.astype(dtype), m.astype(dtype)


@dataclass(frozen=True)
class ActivationHistory(Result):
    """What the nonlinearities of each network receive, over training.

    K networks, L layers, T times, B bins. The rows are the same at all times; batch normalization
    takes its statistics from them.

    Attributes
    ----------
    names : (K,) str
    steps : (T,) int64
        Updates done.
    edges : (K, L, B + 1) float64
        Of the histograms: the middle 99 percent of what a unit of the layer receives, all times.
    density : (K, L, T, B) float64
        Histograms of that unit over the rows; each integrates to the share within the edges.
    mean, deviation : (K, L, T) float64
        Over rows and units.
    drift : (K, L, T - 1) float64
        From each time to the next: the Wasserstein-1 distance of a unit's values over the rows, in
        units of its deviation at the earlier time, averaged over units.
    """

    names: tuple[str, ...]
    steps: NDArray[np.int64]
    edges: Floats
    density: Floats
    mean: Floats
    deviation: Floats
    drift: Floats

    def __str__(self) -> str:
        means = _by_name(self.names, _finite(self.drift).mean(axis=(1, 2)))
        return f"Mean drift over {self.edges.shape[1]} layers, {len(self.steps)} times: {means}"

    def plot(self, ax: Axes | None = None) -> Figure:
        """A row for each network: histograms of four layers over time, and all layers' drift."""
        layers = np.unique(np.linspace(0, self.edges.shape[1] - 1, 4).astype(int))
        figure, drawn = panels(ax, len(self.names), len(layers) + 1)
        times = len(self.steps)
        highest = float(np.max(self.drift, where=np.isfinite(self.drift), initial=1e-3))
        for k, name in enumerate(self.names):
            row = drawn[k * (len(layers) + 1) :]
            for panel, layer in zip(row, layers, strict=False):
                centres = (self.edges[k, layer, 1:] + self.edges[k, layer, :-1]) / 2
                tallest = float(self.density[k, layer].max(initial=1e-300))
                for t in range(times):  # early at the top, as ridges
                    base = float(times - 1 - t)
                    ridge = base + 1.5 * self.density[k, layer, t] / tallest
                    panel.fill_between(
                        centres, base, ridge, color=_COLORS[name], alpha=0.6, lw=0.5, ec="w"
                    )
                panel.set_yticks([times - 1, 0], [str(self.steps[0]), str(self.steps[-1])])
                panel.set_title(f"{name}, a unit of layer {layer + 1}", fontsize=9)
            row[0].set_ylabel("update")
            last = row[len(layers)]
            for layer in range(self.drift.shape[1]):
                shade = 0.25 + 0.75 * layer / self.drift.shape[1]
                last.plot(
                    self.steps[1:], self.drift[k, layer], color=_COLORS[name], alpha=shade, lw=1
                )
            last.set_ylim(0, 1.05 * highest)
            last.set_title("drift, each layer", fontsize=9)
        return figure


@dataclass(frozen=True)
class NoisyTraining(Result):
    """The noisy variant beside the plain and the batch-normalized network.

    K networks, S updates.

    Attributes
    ----------
    names : (K,) str
    loss, accuracy : (K, S) float64
        Of each mini-batch, before its update, with the noise in place; NaN after a divergence.
    test_accuracy : (K,) float64
        On the test part (or the training part where there is none), without noise, under the
        statistics of all training rows; NaN after a divergence.
    activations : ActivationHistory
    """

    names: tuple[str, ...]
    loss: Floats
    accuracy: Floats
    test_accuracy: Floats
    activations: ActivationHistory

    def __str__(self) -> str:
        return f"Accuracy after training, without noise: {_by_name(self.names, self.test_accuracy)}"

    def plot(self, ax: Axes | None = None) -> Figure:
        """Training loss and accuracy, and each layer's mean drift in the second half."""
        figure, (left, middle, right) = panels(ax, 1, 3)
        for k, name in enumerate(self.names):
            label = f"{name}: {self.test_accuracy[k]:.1%} after"
            left.plot(*_smooth(self.loss[k]), color=_COLORS[name])
            middle.plot(*_smooth(self.accuracy[k]), color=_COLORS[name], label=label)
            drift = self.activations.drift[k]
            drift = drift[:, drift.shape[1] // 2 :].mean(axis=1)
            right.plot(np.arange(1, len(drift) + 1), drift, marker=".", color=_COLORS[name])
        left.set(xlabel="update", ylabel="training loss", ylim=(0, None))
        middle.set(xlabel="update", ylabel="training accuracy", ylim=(0, 1))
        right.set(xlabel="layer", ylabel="drift, second half", ylim=(0, None))
        middle.legend(fontsize=8)
        return figure


def activation_history(
    data: Dataset,
    lr: float = 0.1,
    epochs: int = 10,
    times: int = 9,
    rows: int = 1024,
    unit: int = 0,
    bins: int = 30,
    setting: Setting = Setting(),
) -> ActivationHistory:
    """Histograms of the nonlinearities' inputs by layer and time, with and without normalization.

    Parameters
    ----------
    data : Dataset
    lr, epochs
        Of plain SGD.
    times : int
        At which to look: equally far apart, from before the first update to after the last.
    rows : int
        Of the training data that are looked at.
    unit, bins : int
        Unit of each layer whose histograms are taken, and their bins.
    setting : Setting
    """
    networks: dict[str, Noise | None] = {PLAIN: None, NORMALIZED: None}
    return _trained(data, networks, lr, epochs, times, rows, unit, bins, setting).activations


def noisy_training(
    data: Dataset,
    lr: float = 0.1,
    epochs: int = 10,
    noise: Noise = Noise(),
    times: int = 9,
    rows: int = 1024,
    unit: int = 0,
    bins: int = 30,
    setting: Setting = Setting(),
) -> NoisyTraining:
    """Train plain, batch-normalized, and batch-normalized with `Noise` behind each layer.

    If steady activations were what makes batch normalization work, the noisy network would train
    no better than the plain one. The arguments are those of `activation_history`.
    """
    networks = {PLAIN: None, NORMALIZED: None, NOISY: noise}
    return _trained(data, networks, lr, epochs, times, rows, unit, bins, setting)


# A network that diverges is told by its loss.
@np.errstate(over="ignore", invalid="ignore")
def _trained(
    data: Dataset,
    networks: dict[str, Noise | None],
    lr: float,
    epochs: int,
    times: int,
    rows: int,
    unit: int,
    bins: int,
    setting: Setting,
) -> NoisyTraining:
    """Plain SGD on each network, with looks at its activations."""
    if times < 2:
        raise ValueError(expected("times", "at least 2", times))
    steps = epochs * (len(data.y) // setting.batch_size)
    if steps < times - 1:
        raise ValueError(expected("times", f"at most {steps + 1}, one for each update", times))
    looks = np.linspace(0, steps, times).round().astype(np.int64)
    shape = (len(networks), steps)
    losses, accuracies = np.full(shape, np.nan), np.full(shape, np.nan)
    test_accuracy = []
    seen: list[list[list[Array]]] = []
    for k, (name, noise) in enumerate(networks.items()):
        net = setting.network(data, name != PLAIN)
        params = net.init(setting.seed, data.x.dtype)
        rng, noise_rng = (np.random.default_rng([setting.seed, i]) for i in range(2))
        optimizer = optim.SGD(params.theta, lr=lr)
        seen.append([])
        batches = _batches(len(data.y), setting.batch_size, steps, rng)
        alive = True
        for step in range(steps + 1):
            if step in looks:
                received = _forward(net, params.theta, data.x[:rows], noise, noise_rng).received
                seen[-1].append(received if alive else [np.full_like(z, np.nan) for z in received])
            if step == steps or not alive:
                continue
            chosen = next(batches)
            passed = _forward(net, params.theta, data.x[chosen], noise, noise_rng)
            losses[k, step], slope = _cross_entropy(passed.output, data.y[chosen])
            accuracies[k, step] = accuracy(passed.output, data.y[chosen])
            gradient = passed.backward(slope)
            alive = math.isfinite(losses[k, step]) and math.isfinite(length(gradient))
            if alive:
                optimizer.step(gradient)
        test_accuracy.append(_test_accuracy(net, params, data) if alive else math.nan)
    activations = _history(tuple(networks), looks, seen, unit, bins)
    return NoisyTraining(tuple(networks), losses, accuracies, np.array(test_accuracy), activations)


def _test_accuracy(net: nn.Sequential, params: nn.Parameters, data: Dataset) -> float:
    """On the test part (else the training part), under the statistics of all training rows."""
    params = _with_statistics(net, params, params, data)
    if data.x_test is None or data.y_test is None:
        return accuracy(predict(net, params, data.x), data.y)
    return accuracy(predict(net, params, data.x_test), data.y_test)


def _batches(
    rows: int, size: int, steps: int, rng: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Row numbers of each mini-batch; an epoch's incomplete rest is left out."""
    each = rows // size
    for step in range(steps):
        at = step % each * size
        if at == 0:
            order = rng.permutation(rows)
        yield order[at : at + size]


@dataclass(frozen=True)
class _Forward:
    """A forward pass: its output, what the nonlinearities received, and the way back."""

    output: Array
    received: list[Array]
    backward: Callable[[Array], Array]


def _forward(
    net: nn.Sequential,
    theta: Array,
    x: Array,
    noise: Noise | None = None,
    rng: np.random.Generator | None = None,
) -> _Forward:
    """One training pass in NumPy and `saddlepoint.norm`: the layers of nn know no noise."""
    weights = net.unflatten(theta)
    gradient = np.zeros_like(theta)
    slopes = net.unflatten(gradient)
    received: list[Array] = []
    ways_back: list[Callable[[Array], Array]] = []
    for i, layer in enumerate(net.children):
        if isinstance(layer, nn.Linear):
            x, back = _linear(x, i, weights, slopes)
        elif isinstance(layer, nn.BatchNorm):
            x, back = _batch_norm(x, i, weights, slopes, layer.eps)
            if noise is not None:
                assert rng is not None
                ways_back.append(back)
                s, m = noise.draw(rng, x.shape, x.dtype)
                x, back = s * x + m, partial(np.multiply, s)
        else:
            received.append(x)
            x, slope = _activation(layer, x)
            back = partial(np.multiply, slope)
        ways_back.append(back)

    def backward(d: Array) -> Array:
        for back in reversed(ways_back):
            d = back(d)
        return gradient

    return _Forward(x, received, backward)


_Pair = tuple[Array, Callable[[Array], Array]]


def _linear(x: Array, i: int, weights: dict[str, Array], slopes: dict[str, Array]) -> _Pair:
    """Output, and the way back, which fills the slopes."""
    weight, bias = weights[f"{i}.weight"], weights.get(f"{i}.bias")

    def back(d: Array) -> Array:
        np.matmul(d.T, x, out=slopes[f"{i}.weight"])
        if bias is not None:
            d.sum(axis=0, out=slopes[f"{i}.bias"])
        result: Array = d @ weight
        return result

    return x @ weight.T + (0 if bias is None else bias), back


def _batch_norm(
    x: Array, i: int, weights: dict[str, Array], slopes: dict[str, Array], eps: float
) -> _Pair:
    """As `_linear`, under the statistics of x."""
    y, saved = norm.batch_norm(x, weights[f"{i}.weight"], weights[f"{i}.bias"], eps=eps)

    def back(d: Array) -> Array:
        dx, slopes[f"{i}.weight"][:], slopes[f"{i}.bias"][:] = norm.batch_norm_backward(d, saved)
        result: Array = dx
        return result

    return y, back


def _activation(layer: nn.Layer, x: Array) -> tuple[Array, Array]:
    """Value and slope of ReLU, Tanh, Sigmoid or Identity."""
    if isinstance(layer, nn.ReLU):
        return np.maximum(x, 0), (x > 0).astype(x.dtype)
    if isinstance(layer, nn.Tanh):
        y = np.tanh(x)
        return y, 1 - y * y
    if isinstance(layer, nn.Sigmoid):
        y = 0.5 + 0.5 * np.tanh(0.5 * x)
        return y, y * (1 - y)
    return x, np.ones_like(x)


def _cross_entropy(output: Array, labels: Array) -> tuple[float, Array]:
    """Mean loss and its gradient."""
    rows = np.arange(len(labels))
    shifted = output - output.max(axis=1, keepdims=True)
    shares = np.exp(shifted)
    total = shares.sum(axis=1)
    value = float(np.mean(np.log(total) - shifted[rows, labels], dtype=np.float64))
    shares /= total[:, None]
    shares[rows, labels] -= 1
    return value, shares / len(labels)


def _history(
    names: tuple[str, ...],
    looks: NDArray[np.int64],
    seen: list[list[list[Array]]],
    unit: int,
    bins: int,
) -> ActivationHistory:
    """Histograms and drift of the values [network][time][layer] (rows, units)."""
    networks, layers, times = len(names), len(seen[0][0]), len(looks)
    edges = np.empty((networks, layers, bins + 1))
    density = np.empty((networks, layers, times, bins))
    mean, deviation = np.empty((2, networks, layers, times))
    drift = np.empty((networks, layers, times - 1))
    for k in range(networks):
        for layer in range(layers):
            values = np.stack([look[layer] for look in seen[k]]).astype(np.float64)
            one = values[:, :, unit]
            # The middle 99 percent of all times: a few far values would flatten the rest.
            finite = one[np.isfinite(one)]
            low, high = np.quantile(finite, [0.005, 0.995]) if finite.size else (0.0, 0.0)
            low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
            edges[k, layer] = np.linspace(low, high, bins + 1)
            for t in range(times):
                counts = np.histogram(one[t][np.isfinite(one[t])], edges[k, layer])[0]
                density[k, layer, t] = counts / (one.shape[1] * (high - low) / bins)
            mean[k, layer] = values.mean(axis=(1, 2))
            deviation[k, layer] = values.std(axis=(1, 2))
            drift[k, layer] = _drift(values)
    return ActivationHistory(names, looks, edges, density, mean, deviation, drift)


def _drift(values: Floats) -> Floats:
    """`ActivationHistory.drift` of (times, rows, units); W₁ of equal counts compares by rank."""
    ranked = np.sort(values, axis=1)
    distance = np.abs(ranked[1:] - ranked[:-1]).mean(axis=1)
    scale = ranked[:-1].std(axis=1)
    scale[scale == 0] = np.inf  # a unit with one value has no unit of length: it counts as still
    result: Floats = (distance / scale).mean(axis=1)
    return result


# ---- S1.22: the loss along one step


@dataclass(frozen=True)
class OneStep(Result):
    """A loss along the step θ − t·lr·∇L(θ), for several t.

    Attributes
    ----------
    loss, gradient_norm : float
        L and ‖∇L‖ at θ.
    distances : (F,) float64
        t·lr·‖∇L‖.
    losses : (F,) float64
    gradient_changes : (F,) float64
        ‖∇L(θ − t·lr·∇L) − ∇L(θ)‖.
    curvature : float
        gᵀHg / gᵀg at θ, with the exact Hessian.
    """

    loss: float
    gradient_norm: float
    distances: Floats
    losses: Floats
    gradient_changes: Floats
    curvature: float

    def __str__(self) -> str:
        return (
            f"From loss {self.loss:.4g}, ‖g‖ {self.gradient_norm:.3g}: {self.losses.min():.4g} to "
            f"{self.losses.max():.4g} along the step; effective smoothness {self.smoothness:.3g}, "
            f"curvature {self.curvature:.3g}."
        )

    @property
    def smoothness(self) -> float:
        """The effective β: the largest change of the gradient per distance."""
        return float(np.max(self.gradient_changes / self.distances))

    def plot(self, ax: Axes | None = None) -> Figure:
        """The losses beside those that gradient, and gradient and curvature, predict."""
        figure, (panel,) = panels(ax, 1, 1)
        s = np.linspace(0.0, self.distances.max(), 100)
        line = self.loss - s * self.gradient_norm
        panel.plot(np.r_[0.0, self.distances], np.r_[self.loss, self.losses], "ko-", label="loss")
        panel.plot(s, line, "--", label="L − s ‖g‖")
        panel.plot(s, line + 0.5 * s * s * self.curvature, ":", label="… + ½ s² gᵀHg/gᵀg")
        panel.set(xlabel="distance s along −g", ylabel="loss")
        panel.legend()
        return figure


def one_step(
    objective: Objective, theta: ArrayLike, lr: float, factors: Sequence[float] = FACTORS
) -> OneStep:
    """Measure an objective along its gradient, at ``factors`` times the step lr·∇L(θ).

    Raises
    ------
    ValueError
        Where the gradient vanishes: there is no step then.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> step = one_step(sp.surfaces.Saddle(), np.array([1.0, 0.0]), lr=0.1)  # 5x² − y²
    >>> step.curvature, round(step.smoothness, 9)
    (10.0, 10.0)
    """
    H = hessian(objective, theta)
    g, size = H.gradient, length(H.gradient)
    if size == 0.0:
        raise ValueError(expected("theta", "a point with a gradient", "a critical point"))
    losses, changes = [], []
    for factor in factors:
        moved = copy(theta)
        axpy(-factor * lr, g, moved)
        losses.append(objective.loss(moved))
        change = objective.gradient(moved)
        axpy(-1.0, g, change)
        changes.append(length(change))
    return OneStep(
        loss=H.loss,
        gradient_norm=size,
        distances=np.asarray(factors, np.float64) * lr * size,
        losses=np.array(losses),
        gradient_changes=np.array(changes),
        curvature=dot(g, H @ g) / size**2,
    )


@dataclass(frozen=True)
class StepLandscape(Result):
    """What lies along single steps of training, with and without batch normalization.

    K networks, T times. NaN after a divergence.

    Attributes
    ----------
    names : (K,) str
    steps : (T,) int64
        Updates done.
    loss, gradient_norm : (K, T) float64
        Of the step's mini-batch.
    loss_low, loss_high, change_low, change_high : (K, T) float64
        Range of the loss, and of ‖Δ∇L‖, between half a step and four steps.
    smoothness, curvature : (K, T) float64
        See `OneStep`.
    """

    names: tuple[str, ...]
    steps: NDArray[np.int64]
    loss: Floats
    gradient_norm: Floats
    loss_low: Floats
    loss_high: Floats
    change_low: Floats
    change_high: Floats
    smoothness: Floats
    curvature: Floats

    def __str__(self) -> str:
        highest = _by_name(self.names, _finite(self.smoothness).max(axis=1))
        return f"Largest effective smoothness of {len(self.steps)} steps: {highest}"

    def plot(self, ax: Axes | None = None) -> Figure:
        """Four panels over updates: both ranges, effective smoothness, and gᵀHg/gᵀg."""
        figure, drawn = panels(ax, 1, 4)
        titles = ("loss along the step", "change of the gradient", "effective smoothness",
                  "gᵀHg / gᵀg")  # fmt: skip
        for k, name in enumerate(self.names):
            color = _COLORS[name]
            for panel, low, high in (
                (drawn[0], self.loss_low, self.loss_high),
                (drawn[1], self.change_low, self.change_high),
            ):
                panel.fill_between(self.steps, low[k], high[k], color=color, alpha=0.45, lw=0)
            drawn[2].plot(self.steps, self.smoothness[k], color=color, label=name)
            drawn[3].plot(self.steps, self.curvature[k], color=color)
        for panel, title in zip(drawn, titles, strict=True):
            panel.set_title(title)
            panel.set_xlabel("update")
        drawn[0].set_yscale("log")
        drawn[2].legend()
        return figure


def step_landscape(
    data: Dataset,
    lr: float = 0.1,
    steps: int = 200,
    every: int = 5,
    factors: Sequence[float] = FACTORS,
    setting: Setting = Setting(),
) -> StepLandscape:
    """Train by plain SGD and look along the gradient of every so many steps' own mini-batch.

    Loss and gradient are those of the mini-batch, through its batch statistics: what the step sees.
    """
    looks = np.arange(0, steps, every)
    names = (PLAIN, NORMALIZED)
    columns = np.full((8, len(names), len(looks)), np.nan)
    for k, name in enumerate(names):
        net = setting.network(data, name == NORMALIZED)
        theta = net.init(setting.seed, data.x.dtype).theta
        optimizer = optim.SGD(theta, lr=lr)
        rng = np.random.default_rng(setting.seed)
        for step, chosen in enumerate(_batches(len(data.y), setting.batch_size, steps, rng)):
            objective = _objective(net, data, chosen)
            gradient = objective.gradient(theta)
            if not 0.0 < length(gradient) < math.inf:
                break
            if step % every == 0:
                found = one_step(objective, theta, lr, factors)
                columns[:, k, step // every] = (
                    found.loss, found.gradient_norm, found.losses.min(), found.losses.max(),
                    found.gradient_changes.min(), found.gradient_changes.max(),
                    found.smoothness, found.curvature,
                )  # fmt: skip
            optimizer.step(gradient)
    return StepLandscape(names, looks, *columns)


def _objective(net: nn.Layer, data: Dataset, chosen: NDArray[np.int64]) -> NetworkObjective:
    """The loss of some rows, normalized by their own statistics."""
    x, y = data.x[chosen], data.y[chosen]
    return NetworkObjective(net, nn.CrossEntropy(), x, y, dtype=data.x.dtype)


# ---- S1.19: the hypotheses


@dataclass(frozen=True)
class Hypotheses(Result):
    """A number for each reason that the lecture gives, without and with batch normalization.

    Attributes
    ----------
    names : ("plain", "batch norm")
    active_units : (2,) float64
        After training, the share of hidden units whose nonlinearity has a slope above 0.01 for at
        least one row in a hundred ("keeps the nonlinearities in the active regime").
    drift : (2,) float64
        Mean `ActivationHistory.drift` ("solves the internal covariate shift").
    largest_eigenvalue : (2,) float64
        λ_max of the loss of a probe batch after training ("the Hessian is better").
    stale_accuracy : (2,) float64
        Training accuracy of the trained network under the statistics of the untrained one, over
        that under its own; 1 for the plain network, which has none ("the statistics cannot be
        computed once and for all").
    batch_noise : (2,) float64
        Deviation of a row's outputs over the mini-batches it may be in, relative to their size;
        no more than rounding for the plain network ("adds stochasticity").
    """

    names: tuple[str, str]
    active_units: Floats
    drift: Floats
    largest_eigenvalue: Floats
    stale_accuracy: Floats
    batch_noise: Floats

    def __str__(self) -> str:
        told = [f.name for f in fields(self) if f.name != "names"]
        return "\n".join(
            f"{name.replace('_', ' ')}: {_by_name(self.names, getattr(self, name))}"
            for name in told
        )

    def plot(self, ax: Axes | None = None) -> Figure:
        """One pair of bars for each."""
        told = [f.name for f in fields(self) if f.name != "names"]
        figure, drawn = panels(ax, 1, len(told))
        for panel, name in zip(drawn, told, strict=True):
            values = getattr(self, name)
            bars = panel.bar((0, 1), values, color=[_COLORS[n] for n in self.names])
            panel.bar_label(bars, [f"{v:.3g}" for v in values], fontsize=8)
            panel.set_xticks((0, 1), self.names)
            panel.set_title(name.replace("_", " "), fontsize=9)
        return figure


def hypotheses(
    data: Dataset,
    lr: float = 0.1,
    epochs: int = 10,
    rows: int = 512,
    companions: int = 20,
    setting: Setting = Setting(),
) -> Hypotheses:
    """Train with and without batch normalization and measure what is said to make the difference.

    Parameters
    ----------
    data : Dataset
    lr, epochs
        Of plain SGD.
    rows : int
        Of the training data that activations and curvature are measured on.
    companions : int
        Mini-batches that each probed row is put into.
    setting : Setting
    """
    drift = activation_history(data, lr, epochs, rows=rows, setting=setting).drift.mean((1, 2))
    active, largest, stale, noise = [], [], [], []
    for name in (PLAIN, NORMALIZED):
        net = setting.network(data, name == NORMALIZED)
        start = net.init(setting.seed, data.x.dtype)
        trained = _fit(net, start, data, lr, epochs, setting).params
        rng = np.random.default_rng([setting.seed, 2])
        probe = np.arange(min(rows, len(data.y)))
        received = _forward(net, trained.theta, data.x[probe]).received
        slopes = [_activation(setting.activation, z)[1] for z in received]
        shares = np.concatenate([np.mean(np.abs(s) > 0.01, axis=0) for s in slopes])
        active.append(float(np.mean(shares >= 0.01)))
        H = hessian(_objective(net, data, probe), trained.theta)
        largest.append(float(eigsh(H, 1, "LA", tol=1e-3, rng=setting.seed).values[-1]))
        own = accuracy(predict(net, _with_statistics(net, trained, trained, data), data.x), data.y)
        old = _with_statistics(net, trained, start, data)
        stale.append(accuracy(predict(net, old, data.x), data.y) / own)
        noise.append(_batch_noise(net, trained, data, setting.batch_size, companions, rng))
    return Hypotheses(
        (PLAIN, NORMALIZED), np.array(active), drift, np.array(largest), np.array(stale),
        np.array(noise),
    )  # fmt: skip


def _with_statistics(
    net: nn.Sequential, params: nn.Parameters, source: nn.Parameters, data: Dataset
) -> nn.Parameters:
    """``params`` with the statistics that all the data have in the network of ``source``."""
    result = nn.Parameters(params.theta, source.buffers.copy())
    weights, buffers = net.unflatten(source.theta), net.unflatten_buffers(result.buffers)
    x = data.x
    for i, layer in enumerate(net.children):
        if isinstance(layer, nn.Linear):
            x = _linear(x, i, weights, {})[0]
        elif isinstance(layer, nn.BatchNorm):
            buffers[f"{i}.running_mean"][:] = x.mean(axis=0, dtype=np.float64)
            buffers[f"{i}.running_var"][:] = x.var(axis=0, ddof=1, dtype=np.float64)
            x = _batch_norm(x, i, weights, {}, layer.eps)[0]
        else:
            x = _activation(layer, x)[0]
    return result


def _batch_noise(
    net: nn.Sequential,
    params: nn.Parameters,
    data: Dataset,
    size: int,
    companions: int,
    rng: np.random.Generator,
) -> float:
    """`Hypotheses.batch_noise` of the first rows, eight at most."""
    kept, outputs = min(8, size // 2), []
    for _ in range(companions):
        others = rng.choice(np.arange(kept, len(data.y)), size - kept, replace=False)
        x = data.x[np.concatenate([np.arange(kept), others])]
        outputs.append(_forward(net, params.theta, x).output[:kept])
    values = np.stack(outputs).astype(np.float64)
    return float(np.sqrt(np.mean(values.var(axis=0)) / np.mean(values**2)))


# ---- telling and drawing


def _by_name(names: Sequence[str], values: Floats) -> str:
    told = np.ma.filled(values, np.nan).tolist()
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, told, strict=True))


def _finite(values: Floats) -> Any:
    """Without what came after a divergence."""
    return np.ma.masked_invalid(values)


def _smooth(values: Floats) -> tuple[Floats, Floats]:
    """Means of about 200 consecutive pieces, and the updates they end at."""
    size = max(1, len(values) // 200)
    whole = len(values) // size * size
    return np.arange(size, whole + 1.0, size), values[:whole].reshape(-1, size).mean(axis=1)
