"""``saddlepoint train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from ..errors import expected
from ..nn import ACTIVATIONS
from ..runs import Config, load_run
from ..runs import train as run_training
from .options import EXITS, option
from .printing import say, tell_training

__all__ = ["train"]

_DEFAULTS = Config()


def _field(name: str, help: str, *names: str) -> Any:
    """An option for a field of `Config`, which owns the default."""
    value = getattr(_DEFAULTS, name)
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    names = names or ("--" + name.replace("_", "-"),)
    return typer.Option(None, *names, help=help, show_default=value is not None and shown)


def train(
    data: str = _field("data", "folder of IDX files, .npz or .csv; 'digits' come along"),
    label: str = _field("label", "column of a CSV, by name or number; with commas: targets"),
    header: bool = _field(
        "header", "whether a CSV's first line names the columns", "--header/--no-header"
    ),
    index: str = _field("index", "column of a CSV that only numbers the rows, or 'none'"),
    separator: str = _field("separator", "of a CSV: a character, or 'tab'"),
    test: str = _field("test", "a file for the test part, or a share of the rows"),
    max_bytes: int = _field("max_bytes", "that a file may unfold to"),
    layers: str = _field("layers", "columns, input to output"),
    activation: str = _field("activation", f"{', '.join(ACTIVATIONS)} or identity"),
    batch_norm: bool = _field(
        "batch_norm", "normalize each hidden layer", "--batch-norm/--no-batch-norm"
    ),
    optimizer: str = _field("optimizer", "sgd, adam, adamw, rmsprop, …"),
    lr: float = _field("lr", "learning rate"),
    momentum: float = _field("momentum", "of sgd"),
    epochs: int = _field("epochs", "passes over the data, in total"),
    batch_size: int = _field("batch_size", "rows of a mini-batch"),
    seed: int = _field("seed", "of data order and weights"),
    device: str = _field("device", "cpu or cuda"),
    out: Path = option(None, "--out", help="folder for the run: 'run', or that of --resume"),
    overwrite: bool = option(False, "--overwrite", help="replace a run that is there"),
    resume: Path = option(None, "--resume", help="run to go on with, to --epochs in total"),
    checkpoint_every: float = option(
        60.0, "--checkpoint-every", help="seconds after which an epoch's end is saved"
    ),
) -> None:
    """Train a fully connected network on your data."""
    asked: dict[str, Any] = {
        "data": data,
        "label": _columns(label),
        "header": header,
        "index": _index(index),
        "separator": "\t" if separator == "tab" else separator,
        "test": _share(test),
        "max_bytes": max_bytes,
        "layers": None if layers is None else _numbers(layers),
        "activation": activation,
        "batch_norm": batch_norm,
        "optimizer": optimizer,
        "lr": lr,
        "momentum": momentum,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    before = None
    if resume is None:
        config = Config(**given)
    else:
        beside = [name for name in given if name != "epochs"]
        if beside:
            name = beside[0].replace("_", "-")
            raise ValueError(expected(f"--{name}", "none beside --resume", given[beside[0]]))
        before = load_run(resume)
        config = replace(before.config, **given)
    result = run_training(
        config,
        out=out or resume or "run",
        overwrite=overwrite or (out is None and resume is not None),
        resume=before,
        checkpoint_every=checkpoint_every,
        tell=lambda note: say(f"data: {note}"),
    )
    tell_training(result)
    raise SystemExit(EXITS[result.stopped])


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(expected("layers", "integers with commas between them", text)) from None


def _columns(text: str | None) -> Any:
    """A column by number or name; several, with commas between or one behind, as a tuple."""
    if text is None:
        return None
    found = tuple(_column(part.strip()) for part in text.split(",") if part.strip())
    return found if "," in text else _column(text)


def _column(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _index(text: str | None) -> int | str | None:
    if text is None:
        return None
    return False if text == "none" else _column(text)


def _share(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
