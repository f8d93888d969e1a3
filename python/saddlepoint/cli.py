"""The command line; each command is a short call of the package, and says which."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DeviceError, expected

if TYPE_CHECKING:
    from .critical import CriticalPoint
    from .demo import Demo
    from .runs import Analysis, Run

__all__ = ["main"]

_REPORT = Path("saddlepoint-report")


def main(arguments: list[str] | None = None) -> None:
    """The entry point of ``saddlepoint``; exits with 2 on bad input, whatever it is."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print("saddlepoint: pip install 'saddlepoint[cli]' for the command line", file=sys.stderr)
        raise SystemExit(2) from None
    _run(arguments)


def _run(arguments: list[str] | None) -> None:
    from rich.console import Console

    app = _app()
    try:
        app(args=arguments, prog_name="saddlepoint")
    except (ValueError, TypeError, OSError, DeviceError, ImportError, MemoryError) as error:
        Console(stderr=True, soft_wrap=True).print(
            f"saddlepoint: {error}", style="red", markup=False, highlight=False
        )
        raise SystemExit(2) from None


def _app() -> Callable[..., Any]:
    import typer

    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Find out what a network's training is stuck on, and get it moving again.",
    )

    def option(default: Any, *names: str, help: str) -> Any:
        return typer.Option(default, *names, help=help, show_default=default is not None)

    @app.command()
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

    @app.command()
    def demo(
        out: Path = option(_REPORT, "--out", help="folder for the report"),
        seed: int = option(0, "--seed", help="of data order, weights and directions"),
    ) -> None:
        """Train a small network and judge it; then watch a saddle point being left."""
        from .demo import demo as run_demo

        found = run_demo(seed)
        _tell_training(found.run)
        _tell_verdict(found.analysis)
        _tell_escapes(found)
        from .report.pages import write_demo

        _say(f"report: {write_demo(found, out)}")

    @app.command()
    def train(
        data: str = option(
            "digits", "--data", help="folder of IDX files, .npz or .csv; 'digits' come along"
        ),
        layers: str = option("64,64,32,10", "--layers", help="columns, input to output"),
        activation: str = option("relu", "--activation", help="relu, tanh, sigmoid or identity"),
        batch_norm: bool = typer.Option(
            False, "--batch-norm/--no-batch-norm", help="normalize each hidden layer"
        ),
        optimizer: str = option("adam", "--optimizer", help="sgd, adam, adamw, rmsprop, …"),
        lr: float = option(1e-3, "--lr", help="learning rate"),
        momentum: float = option(0.0, "--momentum", help="of sgd"),
        epochs: int = option(5, "--epochs", help="passes over the data"),
        batch_size: int = option(128, "--batch-size", help="rows of a mini-batch"),
        seed: int = option(0, "--seed", help="of data order and weights"),
        device: str = option("cpu", "--device", help="cpu or cuda"),
        out: Path = option(Path("run"), "--out", help="folder for the run"),
    ) -> None:
        """Train a fully connected network on your data."""
        from .runs import Config
        from .runs import train as run_training

        config = Config(
            data=data,
            layers=_numbers(layers),
            activation=activation,
            batch_norm=batch_norm,
            optimizer=optimizer,
            lr=lr,
            momentum=momentum,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            device=device,
        )
        result = run_training(config)
        result.save(out)
        _tell_training(result)

    @app.command()
    def analyze(
        run: Path = typer.Argument(..., help="folder that train wrote"),
        samples: int = option(4096, "--samples", help="training rows that the loss is taken over"),
        max_products: int = option(300, "--max-products", help="budget of Hessian products"),
        out: Path = option(None, "--out", help="folder for the report; the run's own by default"),
    ) -> None:
        """Say what kind of point a run reached, and write the report."""
        from .report.pages import write_analysis
        from .runs import analyze as judge
        from .runs import load_run

        loaded = load_run(run)
        found = judge(loaded, samples=samples, max_products=max_products)
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


def _say(text: str, style: str = "") -> None:
    from rich.console import Console

    Console(soft_wrap=True).print(text, style=style, markup=False, highlight=False)


def _tell_training(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table

    history = run.history
    table = Table("epoch", "loss", "validation loss", "accuracy", "seconds", box=None)
    count = len(history.train_loss)
    shown = range(count) if count <= 6 else (0, 1, 2, count - 3, count - 2, count - 1)
    for i in shown:
        table.add_row(
            str(i + 1),
            f"{history.train_loss[i]:.4f}",
            f"{history.validation_loss[i]:.4f}",
            f"{history.validation_accuracy[i]:.2%}",
            f"{history.seconds[i]:.2f}",
        )
    Console().print(table)
    if run.stopped != "finished":
        _say(f"training {run.stopped} after {len(history.loss)} updates", "yellow")
    if run.test_accuracy == run.test_accuracy:  # not NaN: there is a test part
        _say(f"test accuracy {100 * run.test_accuracy:.2f} %", "bold")


def _tell_verdict(found: Analysis) -> None:
    _say(f"\nWhere training ended: {found.verdict}", "bold")
    _say(found.reason)
    _say(found.cure)
    if found.point is None or found.verdict == "diverged":
        return
    _say(f"As a point: {found.point.kind}. {found.point.reason}")
    if found.initial_gradient_norm > 0.0:
        share = found.point.gradient_norm / found.initial_gradient_norm
        _say(f"‖g‖ is {share:.2%} of what it was at the start, on {found.samples} training rows.")


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
