"""Training: mini-batches, history, and predictions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import vector
from ._native import module
from .errors import expected
from .nn import BatchNorm, Layer, Loss, Parameters
from .objective import check_params, checked_inputs
from .optim import Adam, Optimizer, schedule
from .progress import progress
from .vector import ArrayLike, Vector, float_dtype, gather, on_device

__all__ = ["Fit", "History", "accuracy", "fit", "predict"]

Data = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True)
class History:
    """What happened, per update and per epoch.

    Attributes
    ----------
    step : (S,) int64
        Number of the update, from 1.
    loss, gradient_norm, learning_rate : (S,) float64
        Of the mini-batch, before the update.
    epoch_step : (E,) int64
        Updates done when each epoch ended.
    train_loss : (E,) float64
        Mean of the epoch's mini-batch losses, weighted by their rows.
    validation_loss, validation_accuracy : (E,) float64
        NaN without validation data, or labels.
    seconds : (E,) float64
        Time of each epoch, validation excluded.
    """

    step: NDArray[np.int64]
    loss: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]
    learning_rate: NDArray[np.float64]
    epoch_step: NDArray[np.int64]
    train_loss: NDArray[np.float64]
    validation_loss: NDArray[np.float64]
    validation_accuracy: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, for JSON."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, saved: dict[str, list[float]]) -> History:
        """What `to_dict` gave."""
        integers = ("step", "epoch_step")
        arrays: dict[str, Any] = {
            name: np.asarray(saved[name], np.int64 if name in integers else np.float64)
            for name in cls.__dataclass_fields__
        }
        return cls(**arrays)


@dataclass(frozen=True)
class Fit:
    """The result of `fit`.

    Attributes
    ----------
    params : Parameters
    history : History
    stopped : str
        "finished", "interrupted" (Ctrl-C) or "diverged" (a loss or parameter that is not finite).
    """

    params: Parameters
    history: History
    stopped: str


class _Records:
    """Rows of the history while they come in."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, float, float]] = []
        self.epochs: list[tuple[float, float, float, float, float]] = []

    def history(self) -> History:
        loss, gradient_norm, rate = np.array(self.updates, np.float64).reshape(-1, 3).T.copy()
        epochs = np.array(self.epochs, np.float64).reshape(-1, 5).T.copy()
        return History(
            step=np.arange(1, len(loss) + 1),
            loss=loss,
            gradient_norm=gradient_norm,
            learning_rate=rate,
            epoch_step=epochs[0].astype(np.int64),
            train_loss=epochs[1],
            validation_loss=epochs[2],
            validation_accuracy=epochs[3],
            seconds=epochs[4],
        )


class _Model:
    """A network with data on a device: steps over mini-batches, and evaluations."""

    def __init__(self, net: Layer, loss: Loss | None, params: Parameters, device: str) -> None:
        self.net, self.loss = net, loss
        self.native = module(device)
        self.device = device
        self.theta: ArrayLike = on_device(params.theta, device)
        self.buffers: ArrayLike = on_device(params.buffers, device)
        self.dtype = params.theta.dtype
        self._passes: dict[tuple[int, str, bool], Any] = {}

    def place(self, data: Data, name: str) -> tuple[ArrayLike, ArrayLike]:
        """Checked data on the device."""
        assert self.loss is not None
        try:
            x = checked_inputs(data[0], self.dtype, self.net)
            outputs = self.net.outputs(x.shape[1])
            y = self.loss.targets(data[1], x.shape[0], outputs, self.dtype)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        return on_device(x, self.device), on_device(y, self.device)

    def bound(self, rows: int, inputs: int, level: str, frozen: bool) -> Any:
        """The native pass for so many rows; made once."""
        key = (rows, level, frozen)
        if key not in self._passes:
            spec = self.net.spec(inputs, self.loss.kind if self.loss else "")
            kind = getattr(self.native, f"Pass_{self.dtype}")
            self._passes[key] = kind(spec, rows, level, frozen)
        return self._passes[key]

    def evaluate(
        self, bound: Any, x: ArrayLike, y: ArrayLike, indices: ArrayLike, gradient: ArrayLike
    ) -> None:
        """Loss, and gradient where one is given: the training pass, which moves the statistics."""
        training = gradient is not None
        bound.evaluate(
            x=x,
            y=y,
            indices=indices,
            theta=self.theta,
            buffers=self.buffers,
            update_buffers=training,
            weight=1.0,
            gradient=gradient,
            accumulate=False,
        )

    def in_chunks(self, x: ArrayLike, y: ArrayLike) -> tuple[float, NDArray[Any]]:
        """Mean loss (NaN without one) and outputs over all rows, with the running statistics."""
        rows, inputs = x.shape
        outputs = np.empty((rows, self.net.outputs(inputs)), self.dtype)
        total: float = math.nan if self.loss is None else 0.0
        for begin in range(0, rows, _EVALUATION_ROWS):
            part = slice(begin, min(begin + _EVALUATION_ROWS, rows))
            n = part.stop - part.start
            bound = self.bound(n, inputs, "value", True)
            self.evaluate(bound, _rows(x, part), None if y is None else _rows(y, part), None, None)
            if self.loss is not None:
                total += float(bound.loss()) * n / rows
            if self.device == "cpu":
                bound.output(outputs[part])
            else:
                out = Vector((n, outputs.shape[1]), self.dtype, self.device)
                bound.output(out)
                outputs[part] = out.numpy()
        return total, outputs

    def params(self) -> Parameters:
        """The parameters as they are now, on the host."""
        return Parameters(gather(self.theta), gather(self.buffers))


_EVALUATION_ROWS = 4096


def _rows(x: ArrayLike, rows: slice) -> ArrayLike:
    return x.rows(rows) if isinstance(x, Vector) else x[rows]


def fit(
    net: Layer,
    params: Parameters,
    loss: Loss,
    data: Data,
    optimizer: Callable[[ArrayLike], Optimizer] = Adam,
    schedule: schedule.Schedule = schedule.constant(),  # noqa: B008 - a function without state
    epochs: int = 1,
    batch_size: int = 128,
    rng: int | np.random.Generator | None = None,
    validation: Data | None = None,
    device: str = "cpu",
    show_progress: bool | None = None,
) -> Fit:
    """Train a network on mini-batches, reshuffled each epoch.

    Parameters
    ----------
    net : Layer
    params : Parameters
        Where to start; not written to.
    loss : Loss
    data : (x, y)
        (N, features) of the dtype of the parameters, and (N,) labels or (N, outputs) targets.
    optimizer : callable
        Makes the optimizer from the flat parameters: a class of `saddlepoint.optim`, or
        ``lambda theta: optim.SGD(theta, lr=0.1, momentum=0.9)``.
    schedule : callable
        Factor of the optimizer's rate in epoch k; see `saddlepoint.optim.schedule`.
    epochs, batch_size : int
        The last batch of an epoch may be smaller; a rest of one row is left out where batch
        normalization needs two.
    rng : int, Generator or None
        Orders the samples. The same seed gives the same run, bit for bit, at any thread count.
    validation : (x, y), optional
        Evaluated after each epoch with the running statistics.
    device : "cpu" or "cuda"
    show_progress : bool, optional
        None: where standard error is a terminal.

    Returns
    -------
    Fit
        Also after Ctrl-C, with what there is.

    Raises
    ------
    TypeError, ValueError
        For data that do not fit, before anything is done.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> from saddlepoint import nn, optim
    >>> x = np.random.default_rng(0).standard_normal((64, 2), dtype=np.float32)
    >>> y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    >>> run = sp.fit(net, net.init(0), nn.CrossEntropy(), (x, y), epochs=50, batch_size=16,
    ...              optimizer=lambda theta: optim.Adam(theta, lr=0.01), rng=0)
    >>> run.stopped, bool(run.history.train_loss[-1] < run.history.train_loss[0])
    ('finished', True)
    """
    for name, count in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(count, (int, np.integer)):
            raise TypeError(expected(name, "an int", type(count).__name__))
        if count < 1:
            raise ValueError(expected(name, "at least 1", count))
    if not isinstance(net, Layer):
        raise TypeError(expected("net", "a layer of saddlepoint.nn", type(net).__name__))
    if not isinstance(loss, Loss):
        raise TypeError(expected("loss", "a loss of saddlepoint.nn", type(loss).__name__))
    check_params(params, net, float_dtype(params.theta.dtype, "params"))
    model = _Model(net, loss, params.copy(), device)
    x, y = model.place(data, "data")
    held_out = None if validation is None else model.place(validation, "validation")
    rows, inputs = x.shape
    batch_size = min(batch_size, rows)
    couples_rows = any(isinstance(layer, BatchNorm) for layer in net.layers())
    if couples_rows and batch_size == 1:
        raise ValueError(expected("batch_size", "at least 2, for the variance of a batch", 1))
    starts = [b for b in range(0, rows, batch_size) if not (couples_rows and rows - b == 1)]
    generator = np.random.default_rng(rng)
    updater = optimizer(model.theta)
    rate = updater.lr
    gradient = vector.empty_like(model.theta)
    records = _Records()
    stopped = "finished"
    with progress("training", epochs * len(starts), show_progress) as tick:
        try:
            for epoch in range(epochs):
                updater.lr = rate * schedule(epoch)
                began = time.perf_counter()
                order = on_device(generator.permutation(rows), device)
                total = 0.0
                for begin in starts:
                    indices = _rows(order, slice(begin, min(begin + batch_size, rows)))
                    bound = model.bound(indices.shape[0], inputs, "gradient", False)
                    model.evaluate(bound, x, y, indices, gradient)
                    value = float(bound.loss())
                    if not math.isfinite(value):
                        stopped = "diverged"
                        break
                    records.updates.append((value, vector.norm(gradient), updater.lr))
                    updater.step(gradient)
                    total += value * indices.shape[0]
                    tick()
                if stopped == "diverged":
                    break
                seconds = time.perf_counter() - began
                scores = (math.nan, math.nan) if held_out is None else _scores(model, *held_out)
                mean = total / min(rows, len(starts) * batch_size)
                records.epochs.append((len(records.updates), mean, *scores, seconds))
                tick(0, f"loss {mean:.4f}")
        except KeyboardInterrupt:
            stopped = "interrupted"
    if not math.isfinite(vector.norm(model.theta)):
        stopped = "diverged"
    return Fit(model.params(), records.history(), stopped)


def _scores(model: _Model, x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Loss and, for labels, accuracy."""
    value, outputs = model.in_chunks(x, y)
    labels = gather(y)
    return value, accuracy(outputs, labels) if labels.ndim == 1 else math.nan


def accuracy(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of rows whose largest output is at the label."""
    return float(np.mean(outputs.argmax(axis=1) == labels))


def predict(net: Layer, params: Parameters, x: NDArray[Any], device: str = "cpu") -> NDArray[Any]:
    """Outputs (N, outputs) of a network, with the running statistics.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import nn
    >>> from saddlepoint.train import predict
    >>> net = nn.Linear(2, 1, weight_init=nn.init.zeros)
    >>> predict(net, net.init(0), np.ones((3, 2), np.float32)).ravel()
    array([0., 0., 0.], dtype=float32)
    """
    check_params(params, net, float_dtype(params.theta.dtype, "params"))
    model = _Model(net, None, params, device)
    features = on_device(checked_inputs(x, model.dtype, net), device)
    return model.in_chunks(features, None)[1]
