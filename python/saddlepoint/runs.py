"""A training run as a folder: what was asked for, what happened, what came out.

The folder holds ``config.json``, ``history.json`` and ``parameters.safetensors``; training goes on
from ``state.json`` and ``state.safetensors``.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import data as data_module
from . import optim
from .critical import CriticalPoint, Standing, Training, classify, judge
from .critical.verdict import diverged, last_tenth
from .data import MAX_BYTES, Dataset
from .data.tables import Column, Layout
from .data.tensors import require_safetensors
from .errors import FileFormatError, count, expected, flag, instance, one_of, path_of
from .history import (
    FILES,
    VERSION,
    Fit,
    History,
    State,
    UnsavedError,
    checked,
    digest,
    pack,
    unpack,
)
from .kinds import ArrayLike, on_device
from .nn import (
    ACTIVATIONS,
    BatchNorm,
    CrossEntropy,
    Identity,
    Layer,
    Linear,
    Loss,
    MeanSquaredError,
    Parameters,
    Sequential,
    init,
)
from .nn.objective import NetworkObjective
from .optim import Optimizer
from .results import Result, panels
from .store import check_folder, number, write_folder
from .train import accuracy, fit, predict
from .vector import norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Analysis", "Config", "Run", "analyze", "build_network", "load_run", "train"]

_ACTIVATIONS: dict[str, type[Layer]] = {**ACTIVATIONS, "identity": Identity}
# Those that make sense for all parameters as one vector.
_OPTIMIZERS: dict[str, type[Optimizer]] = {
    name.lower(): getattr(optim, name) for name, rule in optim.rules.RULES.items() if not rule.whole
}


@dataclass(frozen=True)
class Config:
    """What `train` is asked for; the options of ``saddlepoint train`` by the same names.

    Attributes
    ----------
    data : str
        A folder of IDX files, an .npz or a CSV; "digits" are the ones that come along.
    layers : tuple of int
        Columns from the input to the output.
    activation : str
        A word of `saddlepoint.nn.ACTIVATIONS`, or "identity".
    batch_norm : bool
        Whether each hidden layer is normalized before its activation.
    optimizer : str
        "sgd", "adam", "rmsprop", …: an optimizer of `saddlepoint.optim` in small letters.
    lr, momentum : float
        The momentum is SGD's.
    epochs, batch_size, seed : int
    device : str
    label, header, index, separator, test, max_bytes
        How the data are read: see `saddlepoint.data.load`.
    """

    data: str = "digits"
    layers: tuple[int, ...] = (64, 64, 32, 10)
    activation: str = "relu"
    batch_norm: bool = True
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.0
    epochs: int = 20
    batch_size: int = 64
    seed: int = 0
    device: str = "cpu"
    label: Column | tuple[Column, ...] | None = None
    header: bool | None = None
    index: bool | Column | None = None
    separator: str | None = None
    test: str | float | None = None
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        for name in ("data", "activation", "optimizer", "device"):
            checked(name, getattr(self, name), str)
        for name in ("data", "test"):
            _check_text(name, getattr(self, name))
        checked("batch_norm", self.batch_norm, bool)
        for name, low in (("epochs", 1), ("batch_size", 1), ("seed", 0), ("max_bytes", 0)):
            checked(name, getattr(self, name), int, low)
        for name in ("lr", "momentum"):
            checked(name, getattr(self, name), float, 0.0)
        _check_layers(self.layers)
        Layout(self.label, self.header, self.index, self.separator)
        if self.test is not None and not isinstance(self.test, str):
            checked("test", self.test, float, 0.0, 1.0)
        for name, table in (("activation", _ACTIVATIONS), ("optimizer", _OPTIMIZERS)):
            value = getattr(self, name)
            if value not in table:
                raise ValueError(expected(name, f"one of {', '.join(table)}", repr(value)))
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(expected("momentum", "0 unless the optimizer is sgd", self.momentum))

    def network(self) -> Sequential:
        """The network that the configuration describes."""
        return build_network(self.layers, self.activation, self.batch_norm)

    def make_optimizer(self, theta: ArrayLike) -> Optimizer:
        """The optimizer for a flat vector of parameters."""
        extra = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        make: Callable[..., Optimizer] = _OPTIMIZERS[self.optimizer]
        return make(theta, lr=self.lr, **extra)

    def load_data(self) -> Dataset:
        """The data set, checked against the layers."""
        options = {name: getattr(self, name) for name in _DATA_OPTIONS}
        if self.data == "digits":
            given = [name for name, value in options.items() if value != _DEFAULTS[name]]
            if given:
                raise ValueError(expected(given[0], "none for digits", options[given[0]]))
            dataset = data_module.digits()
        else:
            dataset = data_module.load(self.data, **options)
        outputs = dataset.classes or dataset.y.shape[1]
        if dataset.x.shape[1] != self.layers[0]:
            raise ValueError(
                expected("layers", f"{dataset.x.shape[1]} inputs, as {self.data}", self.layers[0])
            )
        if dataset.classes is None and outputs != self.layers[-1]:
            raise ValueError(expected("layers", f"{outputs} outputs", self.layers[-1]))
        if dataset.classes is not None and outputs > self.layers[-1]:
            raise ValueError(
                expected("layers", f"at least {outputs} outputs, one a class", self.layers[-1])
            )
        return dataset


_DATA_OPTIONS = ("label", "header", "index", "separator", "test", "max_bytes")
_DEFAULTS = {f.name: f.default for f in fields(Config)}


def _check_text(name: str, path: Any) -> None:
    """Raise for a path of bytes that are no text: JSON could not keep it."""
    if isinstance(path, str) and not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError:
            what = "a path in UTF-8 (rename it, or link to it)"
            raise ValueError(expected(name, what, ascii(path))) from None


def _check_layers(layers: Any) -> None:
    if not isinstance(layers, (tuple, list)):
        raise TypeError(expected("layers", "integers", type(layers).__name__))
    for width in layers:
        checked("layers", width, int, 1)
    if len(layers) < 2:
        raise ValueError(expected("layers", "at least two positive numbers", layers))


def build_network(
    layers: tuple[int, ...], activation: str = "relu", batch_norm: bool = False
) -> Sequential:
    """Linear layers with an activation between them, and batch norm before it if asked for.

    Weights start as He et al. have it for ReLU, as Glorot & Bengio for the others.

    Examples
    --------
    >>> from saddlepoint.runs import build_network
    >>> build_network((4, 3, 2), "tanh").size
    23
    """
    _check_layers(layers)
    one_of("activation", activation, _ACTIVATIONS)
    flag("batch_norm", batch_norm)
    draw = init.he_normal if activation == "relu" else init.xavier_normal
    parts: list[Layer] = []
    for inputs, outputs in pairwise(layers[:-1]):
        parts.append(Linear(inputs, outputs, weight_init=draw))
        if batch_norm:
            parts.append(BatchNorm(outputs))
        parts.append(_ACTIVATIONS[activation]())
    parts.append(Linear(layers[-2], layers[-1], weight_init=init.xavier_normal))
    return Sequential(*parts)


@dataclass(frozen=True)
class Run(Result):
    """A finished run.

    Attributes
    ----------
    config : Config
    params : Parameters
    history : History
    stopped : str
    test_accuracy : float
        Share of the test rows; NaN without a test part or labels.
    state : State or None
        What ``train(..., resume=)`` takes up.
    data : str or None
        SHA-256 of the training rows, by which others are noticed.
    """

    config: Config
    params: Parameters
    history: History
    stopped: str
    test_accuracy: float
    state: State | None = None
    data: str | None = None

    _large = frozenset({"params", "state"})

    def __str__(self) -> str:
        text = f"Training {self.stopped}: {self.history}"
        measured = not math.isnan(self.test_accuracy)
        return f"{text}, test accuracy {self.test_accuracy:.2%}." if measured else f"{text}."

    def plot(self, ax: Axes | None = None) -> Figure:
        """The history."""
        return self.history.plot(ax)

    def save(
        self, folder: str | os.PathLike[str], overwrite: bool = False, keep_others: bool = False
    ) -> Path:
        """Write the run into a folder, which appears whole or not at all.

        Raises
        ------
        FileExistsError
            If there is a folder already: a run is replaced only with ``overwrite``, and one that
            holds other files only with ``keep_others``, and they stay in it.
        NotADirectoryError, OSError
            If nothing can be made there.
        ImportError
            If safetensors is not installed.
        """
        net = self.config.network()
        arrays = {
            **net.unflatten(self.params.theta),
            **net.unflatten_buffers(self.params.buffers),
        }
        fitted = Fit(self.params, self.history, self.stopped, self.state)
        result = {"test_accuracy": number(self.test_accuracy), "data": self.data}
        config = {"version": VERSION, **asdict(self.config)}
        files = pack(fitted, arrays, result, config)
        return write_folder(folder, files, FILES, overwrite, keep_others)


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run that `Run.save` wrote, now or in an earlier version.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, FileFormatError
        If it is no such folder, a file is missing, or not what it should be.
    """
    path = path_of("folder", folder)
    found = unpack(path)
    config = _read_config(path / "config.json", found.config)
    net = config.network()
    file = path / "parameters.safetensors"
    size = net.size + sum(entry.size for entry in net.buffer_table)
    held = sum(values.size for values in found.arrays.values())
    if size != held:  # before a network of that size is made
        what = f"{size} numbers for layers {tuple(config.layers)}"
        raise FileFormatError(expected(str(file), what, held))
    params = Parameters(np.empty(net.size, np.float32), np.empty(size - net.size, np.float32))
    views = {**net.unflatten(params.theta), **net.unflatten_buffers(params.buffers)}
    for name, view in views.items():
        got = found.arrays.get(name)
        if got is None or got.shape != view.shape or got.dtype != view.dtype:
            wanted = f"{name} of shape {view.shape}, {view.dtype}"
            raise FileFormatError(
                expected(str(file), wanted, None if got is None else (got.shape, got.dtype))
            )
        view[...] = got
    found.check_whole()
    return Run(
        config, params, found.history, found.stopped, found.test_accuracy, found.state, found.data
    )


def _read_config(file: Path, saved: dict[str, Any] | None) -> Config:
    if saved is None:
        raise FileNotFoundError(
            expected(str(file.parent), "a run folder", "one without config.json")
        )
    version = saved.get("version")
    # What the first runs did not have is as it was for all of them.
    needed = {*_DEFAULTS} - ({*_DATA_OPTIONS} if version is None else set())
    given = {*saved} - {"version"}
    if not needed <= given <= {*_DEFAULTS}:
        odd = sorted(needed - given) or sorted(given - {*_DEFAULTS})
        what = f"the fields of version {version}"
        raise FileFormatError(expected(str(file), what, f"{odd[0]!r} missing or unknown"))
    values: dict[str, Any]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in given}
    try:
        return Config(**values)
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{file}: {error}") from None


def train(
    config: Config,
    show_progress: bool | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: Run | None = None,
    checkpoint_every: float = 60.0,
    tell: Callable[[str], object] | None = None,
) -> Run:
    """Train a network as a configuration asks for.

    Parameters
    ----------
    config : Config
        Its paths become absolute.
    show_progress : bool, optional
    out : path, optional
        Folder to save the run in: after the first update, every so often while it goes on, and at
        the end, as `fit` has it. Where the system cannot at the end, the run is saved in a new
        folder for temporary files, which the error names.
    overwrite : bool
        Whether a run that is there may be replaced.
    resume : Run, optional
        One to go on with, whose configuration differs in ``epochs`` at most.
    checkpoint_every : float
        Seconds between two times that the run is saved, at ends of epochs.
    tell : callable, optional
        Called with each of the data's notes, before training.

    Raises
    ------
    DeviceError, FileFormatError, OSError, TypeError, ValueError
        If the device, the data, the folder or the run to go on with are not what they should be.

    Examples
    --------
    >>> from saddlepoint.runs import Config, train
    >>> run = train(Config(epochs=10))
    >>> run.test_accuracy > 0.9
    True
    """
    config = _located(instance("config", config, Config, "a Config"))
    if resume is not None:
        instance("resume", resume, Run, "a Run")
    if resume is not None and replace(resume.config, epochs=config.epochs) != config:
        theirs, ours = vars(resume.config), vars(config)
        name = next(n for n in ours if n != "epochs" and ours[n] != theirs[n])
        raise ValueError(expected(name, f"{theirs[name]!r} as before", repr(ours[name])))
    if out is not None:
        out = path_of("out", out)
        require_safetensors()
        check_folder(out, FILES, overwrite)
    dataset = config.load_data()
    if tell is not None:
        for note in dataset.notes:
            tell(note)
    rows = _digest(dataset)
    if resume is not None:
        _check_rows(resume, rows)
    net = config.network()
    held_out = None
    if dataset.x_test is not None and dataset.y_test is not None:
        held_out = (dataset.x_test, dataset.y_test)
    before = None
    if resume is not None:
        before = Fit(resume.params, resume.history, resume.stopped, resume.state)
    kept: list[Run] = []

    def keep(result: Fit) -> None:
        score = math.nan
        if held_out is not None and dataset.classes is not None:
            score = accuracy(predict(net, result.params, held_out[0], config.device), held_out[1])
        run = Run(config, result.params, result.history, result.stopped, score, result.state, rows)
        first = not kept
        kept[:] = [run]
        if out is not None:
            run.save(out, overwrite or not first, keep_others=True)

    try:
        result = fit(
            net,
            net.init(config.seed),
            _loss(dataset),
            (dataset.x, dataset.y),
            optimizer=config.make_optimizer,
            epochs=config.epochs,
            batch_size=config.batch_size,
            rng=config.seed,
            validation=held_out,
            device=config.device,
            show_progress=show_progress,
            resume=before,
            checkpoint=keep,
            checkpoint_every=checkpoint_every,
        )
    except UnsavedError as error:
        beside = kept[0].save(tempfile.mkdtemp(prefix="saddlepoint-run-"))
        what = f"to save the run, which is in {beside}"
        raise OSError(expected(str(out), what, str(error.__cause__))) from error
    return replace(kept[0], stopped=result.stopped)


def _located(config: Config) -> Config:
    """With absolute paths, so that the run can be read from anywhere."""
    paths = {"data": config.data, "test": config.test}
    found: dict[str, Any] = {
        name: os.path.abspath(path)
        for name, path in paths.items()
        if isinstance(path, str) and path != "digits"
    }
    return replace(config, **found)


def _digest(dataset: Dataset) -> str:
    return digest({}, {"x": dataset.x, "y": dataset.y})


def _check_rows(run: Run, found: str) -> None:
    if run.data is not None and run.data != found:  # early runs do not say
        what = f"the training rows of before (SHA-256 {run.data[:12]}…)"
        raise ValueError(expected(run.config.data, what, f"others ({found[:12]}…)"))


def _loss(dataset: Dataset) -> Loss:
    return MeanSquaredError() if dataset.classes is None else CrossEntropy()


@dataclass(frozen=True)
class Analysis(Result):
    """The verdict on the point that a run reached.

    Attributes
    ----------
    standing : Standing
        The verdict, its reason, what would help, and the numbers it rests on.
    point : CriticalPoint or None
        What kind of point it is; None where loss or gradient are not finite.
    initial_gradient_norm : float
        ‖g‖ where training began, on the same data: the scale for the one reached.
    samples : int
        Training rows that the loss was taken over.
    rows : int
        Training rows that there are.
    seed : int
        What drew the samples, where they are not all rows.
    objective : NetworkObjective
        That loss, in float64: what else is asked about the point is asked of it.
    theta : (n,) float64 array
        The point, on the device of the run.
    """

    standing: Standing
    point: CriticalPoint | None
    initial_gradient_norm: float
    samples: int
    rows: int
    seed: int
    objective: NetworkObjective = field(repr=False)
    theta: ArrayLike = field(repr=False)

    _large = frozenset({"objective", "theta"})

    @property
    def verdict(self) -> str:
        """What training is doing: "saddle", "descending", …; see `Standing`."""
        return self.standing.verdict

    @property
    def reason(self) -> str:
        """Why, in a sentence with the numbers."""
        return self.standing.reason

    @property
    def cure(self) -> str:
        """What to do next."""
        return self.standing.cure

    @property
    def sample(self) -> str:
        """Which training rows the loss was taken over, in words."""
        if self.samples == self.rows:
            return f"all {self.rows}"
        return f"{self.samples} of {self.rows}, drawn with seed {self.seed}"

    def __str__(self) -> str:
        return f"{self.standing} (Training rows: {self.sample}.)"

    def plot(self, ax: Axes | None = None) -> Figure:
        """The eigenvalues, where there are some, and what two steps would take off the loss."""
        if self.point is None:
            return self.standing.plot(ax)
        figure, (left, right) = panels(ax, 1, 2)
        self.point.plot(left)
        self.standing.plot(right)
        return figure


def analyze(
    run: Run,
    samples: int = 4096,
    k: int = 4,
    max_products: int | None = None,
    show_progress: bool | None = None,
    seed: int = 0,
) -> Analysis:
    """Say where a run got to: stuck at a saddle, descending, at a minimum, …, and what would help.

    The loss is that of ``samples`` training rows, which ``seed`` draws without replacement (all,
    where there are no more), in float64, with batch statistics over all of them. For ``point`` it
    counts as critical where the gradient norm is below 1e-3 of that of the initial point; the
    verdict weighs what curvature and gradient have to offer, see `saddlepoint.critical.judge`. The
    run is not changed.

    Raises
    ------
    DeviceError, FileNotFoundError, FileFormatError, ValueError
        If the run's device or data are not there any more, or are others.

    Examples
    --------
    >>> from saddlepoint.runs import Config, analyze, train
    >>> found = analyze(train(Config(epochs=3)), samples=200, seed=7)
    >>> found.verdict, found.sample
    ('descending', '200 of 1437, drawn with seed 7')
    """
    count("samples", samples, 2)
    count("k", k, 1)
    count("seed", seed, 0)
    if max_products is not None:
        count("max_products", max_products, 2 * max(k, 2))
    config = instance("run", run, Run, "a Run").config
    dataset = config.load_data()
    _check_rows(run, _digest(dataset))
    net = config.network()
    rows = len(dataset.x)
    chosen: Any = slice(None)
    if samples < rows:
        drawn = np.random.default_rng(seed).choice(rows, samples, replace=False)
        chosen = np.sort(drawn)
    x, y = dataset.x[chosen].astype(np.float64), dataset.y[chosen]
    objective = NetworkObjective(
        net,
        _loss(dataset),
        x,
        y.astype(np.float64) if y.dtype.kind == "f" else y,
        dtype=np.float64,
        device=config.device,
    )
    start = on_device(net.init(config.seed).theta.astype(np.float64), config.device)
    theta = on_device(run.params.theta.astype(np.float64), config.device)
    initial = norm(objective.gradient(start))
    history = run.history
    rates = history.learning_rate if len(history.learning_rate) else np.array([config.lr])
    if config.momentum < 1.0:
        rate, highest = (float(r) / (1.0 - config.momentum) for r in (rates[-1], rates.max()))
    else:
        rate = highest = math.inf if rates[-1] else 0.0
    training = Training(
        updates=len(history.loss),
        fall=last_tenth(history.loss, history.train_loss),
        rate=rate,
        highest_rate=highest,
        plain=config.optimizer in ("sgd", "asgd"),
        rate_is_step=config.optimizer not in ("rprop", "adadelta"),
        whole_batches=config.batch_size >= rows,
        initial_loss=objective.loss(start),
        initial_gradient_norm=initial,
        highest_loss=float(np.max(history.loss, initial=0.0)),
        diverged=run.stopped == "diverged",
    )

    def result(standing: Standing, point: CriticalPoint | None) -> Analysis:
        return Analysis(standing, point, initial, objective.samples, rows, seed, objective, theta)

    here = objective.loss(theta), norm(objective.gradient(theta))
    if not np.isfinite(here).all():
        blown = diverged(training, *here)
        assert blown is not None
        return result(blown, None)
    point = classify(
        objective,
        theta,
        gradient_tolerance=1e-3 * initial if initial > 0.0 else None,
        k=k,
        max_products=max_products,
        show_progress=show_progress,
    )
    return result(judge(objective, theta, point, training), point)
