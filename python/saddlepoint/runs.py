"""A training run as a folder: what was asked for, what happened, what came out.

The folder holds ``config.json``, ``history.json`` and ``parameters.safetensors``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from . import data as data_module
from . import optim
from .critical import CriticalPoint, Standing, Training, classify, judge
from .critical.verdict import diverged, last_tenth
from .data import Dataset, read_safetensors, write_safetensors
from .errors import FileFormatError, count, expected
from .nn import (
    BatchNorm,
    CrossEntropy,
    Identity,
    Layer,
    Linear,
    Loss,
    MeanSquaredError,
    Parameters,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
    init,
)
from .objective import NetworkObjective
from .optim import Optimizer
from .train import Fit, History, accuracy, fit, predict
from .vector import ArrayLike, norm, on_device

__all__ = ["Analysis", "Config", "Run", "analyze", "build_network", "load_run", "train"]

_ACTIVATIONS: dict[str, Callable[[], Layer]] = {
    "relu": ReLU,
    "tanh": Tanh,
    "sigmoid": Sigmoid,
    "identity": Identity,
}
# Those that make sense for all parameters as one vector: not Muon, LAMB and Adafactor.
_OPTIMIZERS: dict[str, type[Optimizer]] = {
    made.__name__.lower(): made
    for made in (
        optim.SGD,
        optim.Adagrad,
        optim.RMSprop,
        optim.Adam,
        optim.AdamW,
        optim.Rprop,
        optim.Adadelta,
        optim.Adamax,
        optim.NAdam,
        optim.RAdam,
        optim.ASGD,
        optim.Lion,
        optim.Adan,
    )
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
        "relu", "tanh", "sigmoid" or "identity".
    batch_norm : bool
        Whether each hidden layer is normalized before its activation.
    optimizer : str
        "sgd", "adam", "rmsprop", …: an optimizer of `saddlepoint.optim` in small letters.
    lr, momentum : float
        The momentum is SGD's.
    epochs, batch_size, seed : int
    device : str
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

    def __post_init__(self) -> None:
        for name, table in (("activation", _ACTIVATIONS), ("optimizer", _OPTIMIZERS)):
            value = getattr(self, name)
            if value not in table:
                raise ValueError(expected(name, f"one of {', '.join(table)}", repr(value)))
        if len(self.layers) < 2 or min(self.layers) < 1:
            raise ValueError(expected("layers", "at least two positive numbers", self.layers))
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(expected("momentum", "0 unless the optimizer is sgd", self.momentum))
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(expected("lr", "a number from 0", self.lr))

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
        dataset = data_module.digits() if self.data == "digits" else data_module.load(self.data)
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
class Run:
    """A finished run.

    Attributes
    ----------
    config : Config
    params : Parameters
    history : History
    stopped : str
    test_accuracy : float
        Share of the test rows; NaN without a test part or labels.
    """

    config: Config
    params: Parameters
    history: History
    stopped: str
    test_accuracy: float

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the run into a folder, which is made if need be.

        The parameters come last: a folder that has them is whole.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        result = {"stopped": self.stopped, "test_accuracy": self.test_accuracy}
        net = self.config.network()
        arrays = {
            **net.unflatten(self.params.theta),
            **net.unflatten_buffers(self.params.buffers),
        }
        _write_json(path / "config.json", asdict(self.config))
        _write_json(path / "history.json", {**self.history.to_dict(), **result})
        write_safetensors(path / "parameters.safetensors", arrays, {"format": "saddlepoint"})
        return path


def _write_json(path: Path, value: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileFormatError(expected(str(path), "JSON", str(error))) from None
    if not isinstance(value, dict):
        raise FileFormatError(expected(str(path), "a JSON object", type(value).__name__))
    return value


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run that `Run.save` wrote.

    Raises
    ------
    FileNotFoundError, FileFormatError
        If a file is missing, or not what it should be.
    """
    path = Path(folder)
    saved = _read_json(path / "config.json")
    names = {f.name for f in fields(Config)}
    if set(saved) != names:
        raise FileFormatError(expected(str(path / "config.json"), sorted(names), sorted(saved)))
    try:
        config = Config(**{**saved, "layers": tuple(saved["layers"])})
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"{path / 'config.json'}: {error}") from None
    history = _read_json(path / "history.json")
    file = path / "parameters.safetensors"
    arrays = read_safetensors(file)
    net = config.network()
    params = net.init(0)
    for flat, views in (
        (params.theta, net.unflatten(params.theta)),
        (params.buffers, net.unflatten_buffers(params.buffers)),
    ):
        for name, view in views.items():
            got = arrays.get(name)
            if got is None or got.shape != view.shape or got.dtype != flat.dtype:
                wanted = f"{name} of shape {view.shape}, {flat.dtype}"
                raise FileFormatError(
                    expected(str(file), wanted, None if got is None else (got.shape, got.dtype))
                )
            view[...] = got
    try:
        return Run(
            config,
            params,
            History.from_dict(history),
            str(history["stopped"]),
            float(history["test_accuracy"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            expected(str(path / "history.json"), "the history of a run", repr(error))
        ) from None


def train(config: Config, show_progress: bool | None = None) -> Run:
    """Train a network as a configuration asks for.

    Examples
    --------
    >>> from saddlepoint.runs import Config, train
    >>> run = train(Config(epochs=10))
    >>> run.test_accuracy > 0.9
    True
    """
    dataset = config.load_data()
    net = config.network()
    loss = _loss(dataset)
    held_out = None
    if dataset.x_test is not None and dataset.y_test is not None:
        held_out = (dataset.x_test, dataset.y_test)
    result: Fit = fit(
        net,
        net.init(config.seed),
        loss,
        (dataset.x, dataset.y),
        optimizer=config.make_optimizer,
        epochs=config.epochs,
        batch_size=config.batch_size,
        rng=config.seed,
        validation=held_out,
        device=config.device,
        show_progress=show_progress,
    )
    score = math.nan
    if held_out is not None and dataset.classes is not None:
        score = accuracy(predict(net, result.params, held_out[0], config.device), held_out[1])
    return Run(config, result.params, result.history, result.stopped, score)


def _loss(dataset: Dataset) -> Loss:
    return MeanSquaredError() if dataset.classes is None else CrossEntropy()


@dataclass(frozen=True)
class Analysis:
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
    """

    standing: Standing
    point: CriticalPoint | None
    initial_gradient_norm: float
    samples: int

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

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason} {self.cure}"


def analyze(
    run: Run,
    samples: int = 4096,
    k: int = 4,
    max_products: int | None = None,
    show_progress: bool | None = None,
) -> Analysis:
    """Say where a run got to: stuck at a saddle, descending, at a minimum, …, and what would help.

    The loss is that of the first ``samples`` training rows (all, where there are fewer), in
    float64, with batch statistics over all of them. For ``point`` it counts as critical where the
    gradient norm is below 1e-3 of that of the initial point; the verdict weighs what curvature and
    gradient have to offer, see `saddlepoint.critical.judge`. The run is not changed.

    Raises
    ------
    DeviceError, FileNotFoundError, FileFormatError, ValueError
        If the run's device or data are not there any more, or are others.

    Examples
    --------
    >>> from saddlepoint.runs import Config, analyze, train
    >>> analyze(train(Config(epochs=3)), samples=200).verdict
    'descending'
    """
    count("samples", samples, 2)
    count("k", k, 1)
    if max_products is not None:
        count("max_products", max_products, 2 * max(k, 2))
    config = run.config
    dataset = config.load_data()
    net = config.network()
    x = dataset.x[:samples].astype(np.float64)
    y = dataset.y[:samples]
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
    rate = float(history.learning_rate[-1]) if len(history.learning_rate) else config.lr
    training = Training(
        updates=len(history.loss),
        fall=last_tenth(history.loss, history.train_loss),
        rate=rate / (1.0 - config.momentum) if config.momentum < 1.0 else math.inf,
        plain=config.optimizer == "sgd",
        initial_loss=objective.loss(start),
        initial_gradient_norm=initial,
        highest_loss=float(np.max(history.loss, initial=0.0)),
        diverged=run.stopped == "diverged",
    )
    here = objective.loss(theta), norm(objective.gradient(theta))
    if not np.isfinite(here).all():
        blown = diverged(training, *here)
        assert blown is not None
        return Analysis(blown, None, initial, objective.samples)
    point = classify(
        objective,
        theta,
        gradient_tolerance=1e-3 * initial if initial > 0.0 else None,
        k=k,
        max_products=max_products,
        show_progress=show_progress,
    )
    standing = judge(objective, theta, point, training)
    return Analysis(standing, point, initial, objective.samples)
