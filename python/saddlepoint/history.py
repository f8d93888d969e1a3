"""What a training leaves: its history, where it stands, and the files that keep both."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .data.tensors import parse_safetensors, safetensors_bytes
from .errors import FileFormatError, expected, path_of
from .nn import Parameters
from .results import COLORS, Result, panels
from .store import dump_json, parse_json, plain, settle, write_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FILES",
    "STOPPED",
    "Fit",
    "History",
    "State",
    "Unpacked",
    "UnsavedError",
    "checked",
    "digest",
    "pack",
    "plain",
    "unpack",
]

Array = NDArray[Any]
PathLike = str | os.PathLike[str]

VERSION = 1
#: What a folder may hold that is written over.
FILES = (
    "config.json",
    "history.json",
    "parameters.safetensors",
    "state.json",
    "state.safetensors",
    "index.html",
)
#: Why a training is where it is.
STOPPED = ("finished", "unfinished", "interrupted", "terminated", "diverged")


@dataclass(frozen=True)
class History(Result):
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

    def __str__(self) -> str:
        text = f"{len(self.step)} updates, {len(self.epoch_step)} epochs"
        for name, values in (
            ("training loss", self.train_loss),
            ("validation loss", self.validation_loss),
            ("accuracy", self.validation_accuracy),
        ):
            if np.isfinite(values).any():
                text += f", {name} {values[0]:.4g} → {values[-1]:.4g}"
        return text

    def plot(self, ax: Axes | None = None) -> Figure:
        """Loss of each update and each epoch, and the gradient norm."""
        figure, (left, right) = panels(ax, 1, 2)
        left.plot(self.step, self.loss, color=COLORS["blue"], alpha=0.3, lw=1, label="update")
        for values, label, color in (
            (self.train_loss, "epoch", COLORS["blue"]),
            (self.validation_loss, "validation", COLORS["orange"]),
        ):
            if np.isfinite(values).any():
                left.plot(self.epoch_step, values, "o-", ms=3, color=color, label=label)
        right.plot(self.step, self.gradient_norm, color=COLORS["green"], lw=1)
        left.set(xlabel="update", ylabel="loss")
        right.set(xlabel="update", ylabel="gradient norm", yscale="log")
        left.legend()
        return figure

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> History:
        """What `to_dict` gave.

        Raises
        ------
        TypeError, ValueError
            For series that are missing, or that no training leaves.
        """
        made = cls(**{f.name: _series(f.name, saved) for f in fields(cls)})
        for names in (_OF_UPDATES, _OF_EPOCHS):
            lengths = [len(getattr(made, name)) for name in names]
            if len(set(lengths)) > 1:
                raise ValueError(expected(", ".join(names), "equal lengths", lengths))
        count = len(made.step)
        right = {
            "step": (made.step == np.arange(1, count + 1)).all(),
            "epoch_step": (np.diff(made.epoch_step, prepend=0, append=count) >= 0).all(),
            "gradient_norm": not (made.gradient_norm < 0).any(),
            "learning_rate": np.isfinite(made.learning_rate).all(),
            "seconds": ((made.seconds >= 0) & np.isfinite(made.seconds)).all(),
            "validation_accuracy": not (np.abs(made.validation_accuracy - 0.5) > 0.5).any(),
        }
        for name, holds in right.items():
            if not holds:
                raise ValueError(expected(name, "what a training leaves", "other numbers"))
        return made


_OF_UPDATES = ("step", "loss", "gradient_norm", "learning_rate")
_OF_EPOCHS = ("epoch_step", "train_loss", "validation_loss", "validation_accuracy", "seconds")


def _series(name: str, saved: Mapping[str, Any]) -> Array:
    values = saved.get(name)
    if not isinstance(values, list):
        raise TypeError(expected(name, "a list of numbers", type(values).__name__))
    if name in ("step", "epoch_step"):
        return np.array([checked(name, value, int, 0, 2**53) for value in values], np.int64)
    return np.array([_spelled(name, value) for value in values], np.float64)


def _spelled(name: str, value: object) -> float:
    """What `number` spelled."""
    if value is None:
        return math.nan
    if value in ("inf", "-inf"):
        return float(str(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(expected(name, "a number or null", repr(value)[:40]))
    try:
        return float(value)
    except OverflowError:
        raise ValueError(expected(name, "a number or null", f"{str(value)[:40]}…")) from None


def checked(
    name: str, value: Any, kind: type, low: float = -math.inf, high: float = math.inf
) -> Any:
    """A value of a kind, and a number within bounds and finite; an int counts as a float.

    Raises
    ------
    TypeError, ValueError
        If it is not.
    """
    kinds: Any = {int: (int, np.integer), float: (int, float, np.integer, np.floating)}
    if not isinstance(value, kinds.get(kind, kind)) or (
        kind is not bool and isinstance(value, bool)
    ):
        what = f"{'an' if kind is int else 'a'} {kind.__name__}"
        raise TypeError(expected(name, what, f"{type(value).__name__} {str(value)[:40]}"))
    largest = sys.float_info.max if kind is float else math.inf  # an int may be beyond floats
    if kind in kinds and not (low <= value <= high and -largest <= value <= largest):
        what = f"at least {low}" if kind is int else f"a number from {low:g}"
        raise ValueError(expected(name, what if low > -math.inf else "a number", str(value)[:40]))
    return value


@dataclass(frozen=True, eq=False)
class State:
    """Where a training stands, besides its parameters and history: what `fit` needs to go on.

    Attributes
    ----------
    epochs : int
        Whole epochs done.
    updates : int
        Updates done of the epoch that was begun.
    loss_sum, seconds : float
        Of that epoch: its losses weighted by rows, and its time.
    rate : float
        The optimizer's rate, before the schedule's factor.
    rows, batch_size : int
        Of the training data.
    generator : dict
        State of the bit generator when that epoch began.
    optimizer : dict
        `saddlepoint.optim.Optimizer.state_dict`.
    data : str or None
        By which other training data are noticed: SHA-256 of y, of the sum of squares of x, and of
        a thousand of its rows.
    """

    epochs: int
    updates: int
    loss_sum: float
    seconds: float
    rate: float
    rows: int
    batch_size: int
    generator: dict[str, Any]
    optimizer: dict[str, Any]
    data: str | None = None

    def make_generator(self) -> np.random.Generator:
        """A generator that goes on where the saved one stood.

        Raises
        ------
        ValueError
            If the state is that of no generator NumPy has.
        """
        try:
            name = self.generator["bit_generator"]
            if name not in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"):
                raise ValueError(expected("bit_generator", "one of NumPy's", repr(name)[:40]))
            made = getattr(np.random, name)()
            made.state = self.generator
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            what = "the state of a generator"
            raise ValueError(expected("generator", what, f"'{error}'")) from None
        return np.random.Generator(made)

    def pack(self) -> dict[str, bytes]:
        """The files that keep it."""
        arrays: dict[str, Array] = {}
        entries = []
        for i, entry in enumerate(self.optimizer["state"]):
            arrays |= {f"{i}.{k}": v for k, v in entry.items() if isinstance(v, np.ndarray)}
            entries.append({k: v for k, v in entry.items() if not isinstance(v, np.ndarray)})
        optimizer = {"state": entries, "param_groups": self.optimizer["param_groups"]}
        values = {**{f.name: getattr(self, f.name) for f in fields(self)}, "optimizer": optimizer}
        return {
            "state.json": dump_json(plain(values, spell=False)),
            "state.safetensors": safetensors_bytes(arrays),
        }

    @classmethod
    def unpack(cls, files: Mapping[str, bytes], folder: Path) -> State:
        """What `pack` gave.

        Raises
        ------
        FileFormatError
            If the files are not those of a state.
        """
        path = str(folder / "state.json")
        saved = parse_json(path, files["state.json"])
        arrays, _ = parse_safetensors(str(folder / "state.safetensors"), files["state.safetensors"])
        try:
            optimizer = checked("optimizer", saved.get("optimizer"), dict)
            entries = [
                dict(checked("state", e, dict)) for e in checked("state", optimizer["state"], list)
            ]
            for name, values in arrays.items():
                place, _, key = name.partition(".")
                entries[int(place)][key] = values
            groups = [
                {k: tuple(v) if isinstance(v, list) else v for k, v in group.items()}
                for group in checked("param_groups", optimizer["param_groups"], list)
            ]
            made = cls(
                **{k: checked(k, saved.get(k), int, 0, 2**53) for k in _COUNTS},
                **{k: checked(k, saved.get(k), float) for k in ("loss_sum", "seconds", "rate")},
                generator=checked("generator", saved.get("generator"), dict),
                optimizer={"state": entries, "param_groups": groups},
                data=None if saved.get("data") is None else checked("data", saved["data"], str),
            )
            made.make_generator()
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: {error}") from None
        return made


_COUNTS = ("epochs", "updates", "rows", "batch_size")


@dataclass(frozen=True)
class Fit(Result):
    """The result of `fit`.

    Attributes
    ----------
    params : Parameters
    history : History
    stopped : str
        "finished", "interrupted" (Ctrl-C), "terminated" (SIGTERM), "diverged" (a loss or parameter
        that is not finite), or "unfinished" (a checkpoint: training went on).
    state : State or None
        What ``fit(..., resume=)`` takes up; None where the training diverged.
    """

    params: Parameters
    history: History
    stopped: str
    state: State | None = None

    _large = frozenset({"params", "state"})

    def __str__(self) -> str:
        return f"Training {self.stopped}: {self.history}."

    def plot(self, ax: Axes | None = None) -> Figure:
        """The history."""
        return self.history.plot(ax)

    def save(self, folder: PathLike, overwrite: bool = False, keep_others: bool = False) -> Path:
        """Write everything into a folder, which appears whole or not at all.

        A folder that holds other files than `save` writes is refused; with ``keep_others`` it is
        written, and they stay in it.

        Raises
        ------
        FileExistsError, NotADirectoryError, OSError
            If there is something already, or nothing can be made there.
        ImportError
            If safetensors is not installed.

        Examples
        --------
        See `load`.
        """
        arrays = {"theta": self.params.theta, "buffers": self.params.buffers}
        return write_folder(folder, pack(self, arrays), FILES, overwrite, keep_others)

    @classmethod
    def load(cls, folder: PathLike) -> Fit:
        """Read what `save` wrote.

        Raises
        ------
        FileNotFoundError, FileFormatError
            If a file is missing, or not what it should be.

        Examples
        --------
        >>> import tempfile, numpy as np, saddlepoint as sp
        >>> from saddlepoint import nn
        >>> net, x = nn.Linear(2, 1), np.ones((8, 2), np.float32)
        >>> data = net, net.init(0), nn.MeanSquaredError(), (x, x[:, :1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = sp.fit(*data, epochs=1, rng=0).save(f"{folder}/half")
        ...     half = sp.Fit.load(path)
        >>> len(sp.fit(*data, epochs=2, resume=half).history.seconds)
        2
        """
        found = unpack(path_of("folder", folder))
        arrays = found.arrays
        if set(arrays) != {"theta", "buffers"} or any(a.ndim != 1 for a in arrays.values()):
            file = str(Path(folder, "parameters.safetensors"))
            raise FileFormatError(expected(file, "theta and buffers, flat", sorted(arrays)[:20]))
        found.check_whole()
        return cls(Parameters(**arrays), found.history, found.stopped, found.state)


class UnsavedError(OSError):
    """A training ended, and its last checkpoint could not be saved.

    Attributes
    ----------
    fit : Fit
        What would have been saved.
    """

    def __init__(self, fit: Fit, reason: object) -> None:
        super().__init__(expected("checkpoint", f"to save what {fit.stopped} (see .fit)", reason))
        self.fit = fit


def pack(
    fit: Fit,
    arrays: Mapping[str, Array],
    result: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """The files that keep a training, with its parameters by name."""
    saved = {**fit.history.to_dict(), "stopped": fit.stopped, **(result or {})}
    files = {"history.json": dump_json(saved)}
    if config is not None:
        files["config.json"] = dump_json(plain(config, spell=False))
    if fit.state is not None:
        files |= fit.state.pack()
    marks = {"format": "saddlepoint", "version": str(VERSION), "sha256": digest(files, arrays)}
    files["parameters.safetensors"] = safetensors_bytes(arrays, marks)
    return files


def digest(files: Mapping[str, bytes], arrays: Mapping[str, Array]) -> str:
    """Of everything that a folder keeps: files of two trainings never pass for one."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name} {len(content)}\n".encode() + content)
    for name, values in sorted(arrays.items()):
        total.update(f"{name} {values.dtype} {values.shape}\n".encode())
        total.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


@dataclass(frozen=True)
class Unpacked:
    """What a folder keeps; ``config`` as it is, and not yet whether all is of one training."""

    arrays: dict[str, Array]
    history: History
    stopped: str
    test_accuracy: float
    data: str | None
    state: State | None
    config: dict[str, Any] | None
    folder: Path
    whole: bool

    def check_whole(self) -> None:
        """Raise FileFormatError unless all files were written together."""
        if not self.whole:
            what = "files that were written together"
            raise FileFormatError(expected(str(self.folder), what, "others, or changed ones"))


def unpack(folder: Path) -> Unpacked:
    """What `pack` gave; folders of before there were versions have no digest and no state.

    Raises
    ------
    FileNotFoundError, NotADirectoryError, FileFormatError
        If it is not such a folder, or not as it was written.
    """
    settle(folder)
    files = _read_files(folder)
    file = str(folder / "parameters.safetensors")
    arrays, marks = parse_safetensors(file, files.pop("parameters.safetensors"))
    config = None
    if "config.json" in files:
        config = parse_json(str(folder / "config.json"), files["config.json"])
    written = marks.get("version"), (config or {}).get("version")
    newer = [v for v in written if v is not None and v not in (VERSION, str(VERSION))]
    if newer:
        raise FileFormatError(expected(str(folder), f"version {VERSION}", repr(newer[0])[:40]))
    path = str(folder / "history.json")
    saved = parse_json(path, files["history.json"])
    try:
        history = History.from_dict(saved)
        stopped = checked("stopped", saved.get("stopped"), str)
        if stopped not in STOPPED:
            what = f"one of {', '.join(STOPPED)}"
            raise ValueError(expected("stopped", what, repr(stopped)[:40]))
        accuracy = _spelled("test_accuracy", saved.get("test_accuracy"))
        if not (math.isnan(accuracy) or 0 <= accuracy <= 1):
            raise ValueError(expected("test_accuracy", "a share or null", accuracy))
        data = saved.get("data")
        if data is not None:
            checked("data", data, str)
    except (TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(f"{path}: {error}") from None
    for name, values in arrays.items():
        if values.dtype.kind != "f":
            raise FileFormatError(expected(file, f"{name} of floats", values.dtype))
        if stopped != "diverged" and not np.isfinite(values).all():
            raise FileFormatError(expected(file, f"finite {name}, as training {stopped}", "others"))
    state = None
    if "state.json" in files and "state.safetensors" in files:
        state = State.unpack(files, folder)
    dated = "sha256" in marks or any(version is not None for version in written)
    whole = not dated or marks.get("sha256") == digest(files, arrays)
    return Unpacked(arrays, history, stopped, accuracy, data, state, config, folder, whole)


def _read_files(folder: Path) -> dict[str, bytes]:
    while True:
        if not folder.is_dir():
            if folder.exists():
                raise NotADirectoryError(expected(str(folder), "a run folder", "a file"))
            raise FileNotFoundError(expected(str(folder), "a run folder", "nothing there"))
        identity = folder.stat().st_ino
        files = {}
        for name in FILES:
            with suppress(FileNotFoundError):
                if name != "index.html":
                    files[name] = (folder / name).read_bytes()
        if folder.is_dir() and folder.stat().st_ino == identity:  # else it was replaced meanwhile
            break
    for name in ("history.json", "parameters.safetensors"):
        if name not in files:
            raise FileNotFoundError(expected(str(folder), "a run folder", f"one without {name}"))
    return files
