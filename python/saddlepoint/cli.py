"""The command line; each command is a short call of the package, and says which."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DeviceError, expected
from .signals import Terminated, terminable

if TYPE_CHECKING:
    from .critical import CriticalPoint
    from .demo import Demo
    from .runs import Analysis, Run

__all__ = ["main"]

_REPORT = Path("saddlepoint-report")
# What a command ends with: as shells have it for the signals that stop a program.
_EXITS = {"finished": 0, "diverged": 1, "interrupted": 130, "terminated": 143}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of ``saddlepoint``; exits with 2 on bad input, whatever it is."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print("saddlepoint: pip install 'saddlepoint[cli]' for the command line", file=sys.stderr)
        raise SystemExit(2) from None
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without λ shows a question mark
    _run(arguments)


def _run(arguments: list[str] | None) -> None:
    app = _app()
    try:
        app(args=arguments, prog_name="saddlepoint")
    except (ValueError, TypeError, OSError, DeviceError, ImportError, MemoryError) as error:
        _complain(str(error))
        raise SystemExit(2) from None


def _app() -> Callable[..., Any]:
    import typer

    from . import __version__
    from .data import DataWarning
    from .nn import ACTIVATIONS
    from .runs import Config

    defaults = Config()
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Find out what a network's training is stuck on, and get it moving again.",
    )

    def option(default: Any, *names: str, help: str) -> Any:
        return typer.Option(default, *names, help=help, show_default=default is not None)

    def command(function: Callable[..., None]) -> None:
        @wraps(function)
        def stoppable(*args: Any, **kwargs: Any) -> None:
            try:
                with terminable(), warnings.catch_warnings():
                    warnings.simplefilter("always", DataWarning)
                    warnings.showwarning = lambda message, *_, **__: _complain(str(message))
                    function(*args, **kwargs)
            except KeyboardInterrupt as error:
                stopped = "terminated" if isinstance(error, Terminated) else "interrupted"
                _complain(stopped)
                raise SystemExit(_EXITS[stopped]) from None

        app.command()(stoppable)

    def version(asked: bool) -> None:
        if asked:
            _say(f"saddlepoint {__version__}")
            raise typer.Exit

    @app.callback()
    def about(
        shown: bool = typer.Option(
            False, "--version", callback=version, is_eager=True, help="print the version and stop"
        ),
    ) -> None:
        pass

    @command
    def info() -> None:
        """Print version, instruction set, threads, BLAS, CUDA build and devices."""
        from rich.console import Console
        from rich.table import Table

        from ._info import info as facts

        table = Table(show_header=False, box=None)
        for name, value in facts().items():
            for i, line in enumerate(value if isinstance(value, list) else [value]):
                table.add_row(name if i == 0 else "", str(line))
            if value == []:
                table.add_row(name, "none")
        Console().print(table)

    @command
    def demo(
        out: Path = option(_REPORT, "--out", help="folder for the report"),
        seed: int = option(0, "--seed", help="of data order, weights and directions"),
        overwrite: bool = option(False, "--overwrite", help="replace a page that is not ours"),
    ) -> None:
        """Train a small network and judge it; then watch a saddle point being left."""
        from .demo import demo as run_demo
        from .report.pages import check_page, write_demo

        check_page(out, overwrite)
        found = run_demo(seed)
        _tell_training(found.run)
        _tell_verdict(found.analysis)
        _tell_escapes(found)
        _say(f"report: {write_demo(found, out)}")

    def field(name: str, help: str, *names: str) -> Any:
        """An option for a field of `Config`, which owns the default."""
        value = getattr(defaults, name)
        shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        names = names or ("--" + name.replace("_", "-"),)
        return typer.Option(None, *names, help=help, show_default=value is not None and shown)

    @command
    def train(
        data: str = field("data", "folder of IDX files, .npz or .csv; 'digits' come along"),
        label: str = field("label", "column of a CSV, by name or number; with commas: targets"),
        header: bool = field(
            "header", "whether a CSV's first line names the columns", "--header/--no-header"
        ),
        index: str = field("index", "column of a CSV that only numbers the rows, or 'none'"),
        separator: str = field("separator", "of a CSV: a character, or 'tab'"),
        test: str = field("test", "a file for the test part, or a share of the rows"),
        max_bytes: int = field("max_bytes", "that a file may unfold to"),
        layers: str = field("layers", "columns, input to output"),
        activation: str = field("activation", f"{', '.join(ACTIVATIONS)} or identity"),
        batch_norm: bool = field(
            "batch_norm", "normalize each hidden layer", "--batch-norm/--no-batch-norm"
        ),
        optimizer: str = field("optimizer", "sgd, adam, adamw, rmsprop, …"),
        lr: float = field("lr", "learning rate"),
        momentum: float = field("momentum", "of sgd"),
        epochs: int = field("epochs", "passes over the data, in total"),
        batch_size: int = field("batch_size", "rows of a mini-batch"),
        seed: int = field("seed", "of data order and weights"),
        device: str = field("device", "cpu or cuda"),
        out: Path = option(None, "--out", help="folder for the run: 'run', or that of --resume"),
        overwrite: bool = option(False, "--overwrite", help="replace a run that is there"),
        resume: Path = option(None, "--resume", help="run to go on with, to --epochs in total"),
        checkpoint_every: float = option(
            60.0, "--checkpoint-every", help="seconds after which an epoch's end is saved"
        ),
    ) -> None:
        """Train a fully connected network on your data."""
        from .runs import load_run
        from .runs import train as run_training

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
            tell=lambda note: _say(f"data: {note}"),
        )
        _tell_training(result)
        raise SystemExit(_EXITS[result.stopped])

    @command
    def analyze(
        run: Path = typer.Argument(..., help="folder that train wrote"),
        samples: int = option(4096, "--samples", help="training rows that the loss is taken over"),
        seed: int = option(0, "--seed", help="of which rows these are"),
        max_products: int = option(300, "--max-products", help="budget of Hessian products"),
        out: Path = option(None, "--out", help="folder for the report; the run's own by default"),
        overwrite: bool = option(
            False, "--overwrite", help="replace another run's page, or one that is not ours"
        ),
    ) -> None:
        """Say what kind of point a run reached, and write the report."""
        from .report.pages import check_page, write_analysis
        from .runs import analyze as judge
        from .runs import load_run

        if max_products < 1:
            raise ValueError(expected("max_products", "at least 1", max_products))
        loaded = load_run(run)
        check_page(out or run, overwrite, run)
        found = judge(loaded, samples=samples, max_products=max_products, seed=seed)
        _tell_verdict(found)
        _say(f"report: {write_analysis(loaded, found, out or run)}")
        if found.verdict == "diverged":
            raise typer.Exit(1)

    return app


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(expected("layers", "integers with commas between them", text)) from None


def _columns(text: str | None) -> Any:
    """A column by number or name; several, with commas between or one behind, as a tuple."""
    if text is None:
        return None
    columns = tuple(_column(part.strip()) for part in text.split(",") if part.strip())
    return columns if "," in text else _column(text)


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


def _complain(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(
        f"saddlepoint: {text}", style="red", markup=False, highlight=False
    )


def _say(text: str, style: str = "") -> None:
    from rich.console import Console

    Console(soft_wrap=True).print(text, style=style, markup=False, highlight=False)


def _tell_training(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    history = run.history
    columns = {
        "loss": [f"{v:.4f}" for v in history.train_loss],
        "validation loss": [f"{v:.4f}" for v in history.validation_loss],
        "accuracy": [f"{v:.2%}" for v in history.validation_accuracy],
        "seconds": [f"{v:.2f}" for v in history.seconds],
    }
    # What was not measured at all has no column; one that diverged keeps its nan.
    for name, values in (
        ("validation loss", history.validation_loss),
        ("accuracy", history.validation_accuracy),
    ):
        if np.isnan(values).all():
            del columns[name]
    table = Table("epoch", *columns, box=None)
    count = len(history.train_loss)
    shown = range(count) if count <= 6 else (0, 1, 2, count - 3, count - 2, count - 1)
    for i in shown:
        table.add_row(str(i + 1), *(cells[i] for cells in columns.values()))
    Console().print(table)
    if run.stopped != "finished":
        _say(f"training {run.stopped} after {len(history.loss)} updates", "yellow")
    if run.test_accuracy == run.test_accuracy:  # not NaN
        _say(f"test accuracy {100 * run.test_accuracy:.2f} %", "bold")
    elif "validation loss" not in columns:
        _say("no test part")


def _tell_verdict(found: Analysis) -> None:
    _say(f"\nWhere training ended: {found.verdict}", "bold")
    _say(found.reason)
    _say(found.cure)
    _say(f"Training rows: {found.sample}.")
    if found.point is None or found.verdict == "diverged":
        return
    _say(f"As a point: {found.point.kind}. {found.point.reason}")
    if found.initial_gradient_norm > 0.0:
        share = found.point.gradient_norm / found.initial_gradient_norm
        _say(f"‖g‖ is {share:.2%} of what it was at the start.")


def _tell_point(title: str, point: CriticalPoint) -> None:
    _say(f"\n{title}: {point.kind}", "bold")
    _say(point.reason)


def _tell_escapes(found: Demo) -> None:
    _say("\nA factored linear network started near its saddle at zero:", "bold")
    for stage in found.stages:
        _tell_point(f"It hangs at loss {stage.point.loss:.4g}", stage.point)
        more = stage.way.gradient_steps(found.lr)
        _say(f"{stage.way} Gradient descent would take about {more:.0f} more steps to go as far.")
    _tell_point(f"It ends at loss {found.final.loss:.3g}", found.final)
    plain, escaped = found.descent[-1], found.escaped[-1]
    _say(
        f"After {plain[0] + 1:.0f} gradient evaluations: loss {plain[1]:.3g} by gradient descent, "
        f"{escaped[1]:.3g} with the escapes.\n"
    )
