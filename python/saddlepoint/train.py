"""Training: mini-batches, history, and predictions."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import vector
from .data.tensors import require_safetensors
from .errors import expected, instance, path_of
from .history import FILES, Fit, History, PathLike, State, UnsavedError, checked, digest, plain
from .kinds import ArrayLike, float_dtype, kind_of, on_device, refuse_mask
from .nn import BatchNorm, Layer, Loss, Parameters
from .nn.evaluator import Evaluator, check_params, checked_inputs
from .optim import Adam, Optimizer, schedule
from .progress import progress
from .signals import Terminated, held
from .store import check_folder
from .vector import gather

__all__ = ["Fit", "History", "State", "UnsavedError", "accuracy", "fit", "predict"]

Data = tuple[NDArray[Any], NDArray[Any]]


class _Records:
    """Rows of the history while they come in."""

    def __init__(self, before: History | None) -> None:
        self.updates: list[tuple[float, ...]] = []
        self.epochs: list[tuple[float, ...]] = []
        if before is not None:
            h = before
            self.updates += zip(h.loss, h.gradient_norm, h.learning_rate, strict=True)
            scores = h.validation_loss, h.validation_accuracy
            self.epochs += zip(h.epoch_step, h.train_loss, *scores, h.seconds, strict=True)

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
    resume: Fit | None = None,
    checkpoint: PathLike | Callable[[Fit], object] | None = None,
    checkpoint_every: float = 60.0,
) -> Fit:
    """Train a network on mini-batches, reshuffled each epoch.

    Parameters
    ----------
    net : Layer
    params : Parameters
        Where to start, unless ``resume`` says it; not written to.
    loss : Loss
    data : (x, y)
        (N, features) of the dtype of the parameters, and (N,) labels or (N, outputs) targets.
    optimizer : callable
        Makes the optimizer from the flat parameters, which it is to update: a class of
        `saddlepoint.optim`, or ``lambda theta: optim.SGD(theta, lr=0.1, momentum=0.9)``.
    schedule : callable
        Factor of the optimizer's rate in epoch k, a finite number from 0; see
        `saddlepoint.optim.schedule`.
    epochs, batch_size : int
        Epochs in total, those before a ``resume`` included. The last batch of an epoch may be
        smaller; a rest of one row is left out where batch normalization needs two.
    rng : int, Generator or None
        Orders the samples. The same seed gives the same run, bit for bit, at any thread count.
    validation : (x, y), optional
        Evaluated after each epoch with the running statistics.
    device : "cpu" or "cuda"
    show_progress : bool, optional
        None: where standard error is a terminal.
    resume : Fit, optional
        What an earlier call returned or `Fit.load` read. Training goes on from there, within an
        epoch too, with its parameters, optimizer state, rate, order of samples and history: to the
        bits of a training that nothing stopped, where the other arguments are the same. ``rng`` is
        not asked then, and hyper-parameters are those of before: a warning names any that
        ``optimizer`` gives otherwise.
    checkpoint : path or callable, optional
        Where to save what there is (`Fit.save`, over what was saved before), or what to call with
        it: after the first update, after an epoch once ``checkpoint_every`` seconds have gone by,
        and at the end. Files of others that come into the folder meanwhile stay there. Where the
        system cannot save between the first and the last, a warning says so and training goes on.
    checkpoint_every : float
        0: after every epoch.

    Returns
    -------
    Fit
        Also after Ctrl-C or SIGTERM (where Python handles it), with what there is: these wait until
        an update is whole. A second one does not wait, and is raised.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit, before anything is done.
    OSError
        If the checkpoint could not be written there, before anything is done.
    saddlepoint.train.UnsavedError
        An OSError with the result as ``fit``, if the last checkpoint could not be saved.

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
        checked(name, count, int, 1)
    checked("checkpoint_every", checkpoint_every, float, 0.0)
    instance("net", net, Layer, "a layer of saddlepoint.nn")
    instance("loss", loss, Loss, "a loss of saddlepoint.nn")
    if not callable(optimizer):
        what = "a callable that makes one, such as saddlepoint.optim.Adam"
        raise TypeError(expected("optimizer", what, repr(optimizer)))
    if not callable(schedule):
        raise TypeError(expected("schedule", "a function of the epoch", repr(schedule)))
    state = None if resume is None else _resumable(resume)
    start = params if resume is None else resume.params
    instance("params", start, Parameters, "what net.init gives")
    dtype = float_dtype(start.theta.dtype, "params")
    check_params(start, net, dtype)
    evaluator = Evaluator(net, loss, dtype, device)
    theta, buffers = (on_device(part.copy(), device) for part in (start.theta, start.buffers))
    on_host = _checked("data", data, evaluator)
    mark = _fingerprint(*on_host)
    x, y = (on_device(part, device) for part in on_host)
    held_out: list[ArrayLike] = []
    if validation is not None:
        held_out += (on_device(p, device) for p in _checked("validation", validation, evaluator))
    rows = x.shape[0]
    batch_size = min(batch_size, rows)
    couples_rows = any(isinstance(layer, BatchNorm) for layer in net.layers())
    if couples_rows and batch_size == 1:
        raise ValueError(expected("batch_size", "at least 2, for the variance of a batch", 1))
    starts = [b for b in range(0, rows, batch_size) if not (couples_rows and rows - b == 1)]
    updater = optimizer(theta)
    if not isinstance(updater, Optimizer):
        what = "a callable that makes an optimizer of saddlepoint.optim"
        raise TypeError(expected("optimizer", what, f"a {type(updater).__name__}"))
    updated = [p for group in updater.param_groups for p in group["params"]]
    if len(updated) != 1 or updated[0] is not theta:
        raise ValueError(expected("optimizer", "one of the array it is given", "one of others"))
    if state is None:
        generator = vector.generator(rng)
        state = State(0, 0, 0.0, 0.0, updater.lr, rows, batch_size, {}, {}, mark)
    else:
        _check_resumed(state, epochs, rows, batch_size, mark)
        generator = state.make_generator()
        given = updater.state_dict()["param_groups"]
        updater.load_state_dict(state.optimizer)
        _warn_of_others(given, state)
    save = _saver(checkpoint)
    gradient = vector.empty_like(theta)
    records = _Records(None if resume is None else resume.history)
    stopped = "finished"
    # Where the epoch stands; with the generator as it began, that is all there is to know.
    done, count, total, seconds = state.epochs, state.updates, state.loss_sum, state.seconds
    order_state = generator.bit_generator.state

    def now(why: str) -> Fit:
        at = None
        if why != "diverged":
            at = State(
                done, count, total, seconds, state.rate, rows, batch_size,
                dict(order_state), updater.state_dict(), mark,
            )  # fmt: skip
        return Fit(Parameters(gather(theta), gather(buffers)), records.history(), why, at)

    steps = (epochs - done) * len(starts) - count
    saved, begun = time.perf_counter(), False
    with held() as signals, progress("training", steps, show_progress) as tick:
        try:
            while done < epochs and stopped == "finished":
                updater.lr = state.rate * _factor(schedule, done)
                order = on_device(generator.permutation(rows), device)
                began = time.perf_counter() - seconds
                for begin in starts[count:]:
                    some = slice(begin, min(begin + batch_size, rows))
                    indices = kind_of(order).rows(order, some)
                    value = evaluator.evaluate(
                        x, y, theta, buffers, frozen=False, indices=indices, gradient=gradient,
                        update_buffers=True,
                    )  # fmt: skip
                    if not math.isfinite(value):
                        stopped = "diverged"
                        break
                    record = (value, vector.norm(gradient), updater.lr)
                    updater.step(gradient)
                    records.updates.append(record)
                    count += 1
                    total += value * indices.shape[0]
                    seconds = time.perf_counter() - began
                    if checkpoint is not None and not begun:
                        save(now("unfinished"))  # takes the place, once it is known to work
                        saved, begun = time.perf_counter(), True
                        began = saved - seconds  # the epoch's time goes on as it stood
                    tick()
                    signals.deliver()
                if stopped == "diverged":
                    break
                scores = math.nan, math.nan
                if held_out:
                    scores = _scores(evaluator, held_out, theta, buffers)
                mean = total / min(rows, len(starts) * batch_size)
                records.epochs.append((len(records.updates), mean, *scores, seconds))
                done, count, total, seconds = done + 1, 0, 0.0, 0.0
                order_state = generator.bit_generator.state
                tick(0, f"loss {mean:.4f}")
                due = checkpoint is not None and time.perf_counter() - saved >= checkpoint_every
                if due and done < epochs and math.isfinite(vector.norm(theta)):
                    try:
                        save(now("unfinished"))
                    except OSError as error:
                        warnings.warn(f"checkpoint: {error}; training goes on", stacklevel=2)
                    saved = time.perf_counter()
                signals.deliver()
        except KeyboardInterrupt as error:
            if signals.at_once:
                raise
            stopped = _why(error)
        if not math.isfinite(vector.norm(theta)):
            stopped = "diverged"
        result = now(stopped)
        try:
            save(result)
        except OSError as error:
            raise UnsavedError(result, error) from error
    try:
        signals.deliver()  # what came while the last was saved
    except KeyboardInterrupt as error:
        result = replace(result, stopped=_why(error))
    return result


def _why(error: KeyboardInterrupt) -> str:
    return "terminated" if isinstance(error, Terminated) else "interrupted"


def _resumable(resume: Fit) -> State:
    instance("resume", resume, Fit, "what fit returned")
    if resume.state is None:
        what = f"one that {resume.stopped}, without a state"
        raise ValueError(expected("resume", "a training that can go on", what))
    return resume.state


def _warn_of_others(given: list[dict[str, Any]], state: State) -> None:
    """Say which hyper-parameters of an optimizer are not those that training goes on with."""
    for new, old in zip(given, state.optimizer["param_groups"], strict=True):
        before = {**old, "lr": state.rate}
        others = [
            f"{name}={before[name]!r}, not {new[name]!r}"
            for name in new
            if name in before and plain(new[name]) != plain(before[name])
        ]
        if others:
            warnings.warn(f"resume: goes on with {', '.join(others)}", stacklevel=3)


def _factor(schedule: schedule.Schedule, epoch: int) -> float:
    """What a schedule says, if it is one finite number from 0."""
    value = np.asarray(schedule(epoch))
    if value.size == 1 and value.dtype.kind in "iuf" and 0.0 <= float(value.item()) < math.inf:
        return float(value.item())
    error = ValueError if value.size == 1 and value.dtype.kind in "iuf" else TypeError
    got = f"{str(value)[:40]} for epoch {epoch}"
    raise error(expected("schedule", "a finite number from 0", got))


def _check_resumed(state: State, epochs: int, rows: int, batch_size: int, mark: str) -> None:
    begun = state.epochs + (state.updates > 0)
    if epochs < begun:
        raise ValueError(expected("epochs", f"at least the {begun} begun before", epochs))
    if rows != state.rows:
        raise ValueError(expected("data", f"the {state.rows} rows of before", rows))
    if state.data not in (None, mark):  # early states do not say
        raise ValueError(expected("data", "the training data of before", "others"))
    if batch_size != state.batch_size and state.updates:
        what = f"{state.batch_size}, as in the epoch that was begun"
        raise ValueError(expected("batch_size", what, batch_size))


def _fingerprint(x: NDArray[Any], y: NDArray[Any]) -> str:
    """`State.data`; all of x would cost as much as an epoch."""
    some = x[:: max(1, len(x) // 1000)]
    return digest({}, {"x": some, "y": y, "square": np.array(vector.dot(x, x))})


def _saver(checkpoint: PathLike | Callable[[Fit], object] | None) -> Callable[[Fit], object]:
    if checkpoint is None:
        return lambda fit: None
    if callable(checkpoint):
        return checkpoint
    path = path_of("checkpoint", checkpoint)
    require_safetensors()
    check_folder(path, FILES, overwrite=True)
    return lambda fit: fit.save(path, overwrite=True, keep_others=True)


def _checked(name: str, data: Any, evaluator: Evaluator) -> tuple[NDArray[Any], NDArray[Any]]:
    """A pair (x, y) as the evaluator takes it; what is wrong with it is said by its name."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(expected(name, "a pair (x, y)", type(data).__name__))
    try:
        return evaluator.checked(*data)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _scores(
    evaluator: Evaluator, data: list[ArrayLike], theta: ArrayLike, buffers: ArrayLike
) -> tuple[float, float]:
    """Loss and, for labels, accuracy."""
    x, y = data
    value, outputs = evaluator.over_rows(x, y, theta, buffers)
    labels = gather(y)
    return value, accuracy(outputs, labels) if labels.ndim == 1 else math.nan


def accuracy(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Share of rows whose largest output is at the label."""
    instance("outputs", outputs, np.ndarray, "an array (N, outputs)")
    for name, array in (("outputs", outputs), ("labels", labels)):
        refuse_mask(name, array)
    if outputs.ndim != 2 or outputs.size == 0:
        raise ValueError(expected("outputs", "shape (N, outputs)", outputs.shape))
    if np.shape(labels) != (len(outputs),):
        raise ValueError(expected("labels", f"shape ({len(outputs)},)", np.shape(labels)))
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
    instance("net", net, Layer, "a layer of saddlepoint.nn")
    instance("params", params, Parameters, "what net.init gives")
    dtype = float_dtype(params.theta.dtype, "params")
    check_params(params, net, dtype)
    evaluator = Evaluator(net, None, dtype, device)
    features = on_device(checked_inputs(x, dtype, net), device)
    theta, buffers = (on_device(part, device) for part in (params.theta, params.buffers))
    return evaluator.over_rows(features, None, theta, buffers)[1]
