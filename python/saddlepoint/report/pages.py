"""The pages of ``saddlepoint demo`` and ``saddlepoint analyze``, made from their results."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import expected
from ..history import FILES
from ..store import check_writable
from .page import Report, Verdict, write, wrote
from .panels import panels_of
from .theme import require

if TYPE_CHECKING:
    from ..demo import Demo
    from ..runs import Analysis, Run

__all__ = ["check_page", "write_analysis", "write_demo"]

_HEADLINES = {
    "diverged": "Training blew up",
    "saddle": "Stuck at a saddle point",
    "descending": "On the way down",
    "standing still": "Standing still on a slope",
    "minimum": "At a minimum",
    "degenerate": "On flat ground",
    "undecided": "Undecided",
}


def _verdict(run: Run, found: Analysis) -> Verdict:
    point, standing = found.point, found.standing
    evidence = [
        ("gradient norm at the start of training", f"{found.initial_gradient_norm:.3g}"),
        ("training rows", found.sample),
    ]
    if point is not None:
        evidence = [
            ("gradient norm", f"{point.gradient_norm:.3g}"),
            ("at the start of training", f"{found.initial_gradient_norm:.3g}"),
            ("smallest eigenvalue", f"{point.lambda_min:.4g} ± {point.residual_min:.0e}"),
            ("largest eigenvalue", f"{point.lambda_max:.4g} ± {point.residual_max:.0e}"),
            ("second-order stationary to", f"{point.stationarity:.3g}"),
            ("kind of point", point.kind),
            ("training rows", found.sample),
            ("Hessian-vector products", f"{point.products}"),
        ]
    if run.config.optimizer == "sgd" and math.isfinite(standing.edge):
        evidence.append(("rate times largest eigenvalue (limit 2)", f"{standing.edge:.2g}"))
    if math.isfinite(standing.gradient_drop):
        evidence.append(("drop along the gradient", f"{standing.gradient_drop:.3g}"))
    if standing.escape is not None:
        evidence.append(("drop along λ min", f"{standing.escape.actual_drop:.3g}"))
    if run.test_accuracy == run.test_accuracy:
        evidence.insert(0, ("test accuracy", f"{run.test_accuracy:.2%}"))
    return Verdict(_HEADLINES[found.verdict], f"{found.reason} {found.cure}", evidence)


def _network(run: Run) -> str:
    config = run.config
    norm = ", batch norm" if config.batch_norm else ""
    return f"{'-'.join(map(str, config.layers))}, {config.activation}{norm}"


def _facts(run: Run, command: str) -> dict[str, str]:
    config = run.config
    return {
        "version": __version__,
        "data": Path(config.data).name,
        "optimizer": f"{config.optimizer}, rate {config.lr:g}",
        "epochs": f"{config.epochs} of batches of {config.batch_size}",
        "seed": str(config.seed),
        "command": command,
    }


def check_page(
    folder: str | os.PathLike[str],
    overwrite: bool = False,
    run: str | os.PathLike[str] | None = None,
) -> None:
    """Raise now if a page could not be made or written there later.

    A page of ours is replaced; in a folder with a run only that run's, which ``run`` names.

    Raises
    ------
    ImportError
        If what pages are made with is missing.
    FileExistsError
        If the page of somebody else, or another run, is there, unless ``overwrite`` is given.
    OSError
        If nothing can be written there.
    """
    for module in ("jinja2", "plotly"):
        require(module)
    check_writable(folder)
    place = Path(folder)
    held = [name for name in FILES if (place / name).exists()]
    if overwrite or not held:
        return
    what = "a folder without a page or run of others, or --overwrite"
    if held != ["index.html"] and (run is None or not place.samefile(run)):
        raise FileExistsError(expected(str(folder), what, f"another run ({held[0]})"))
    page = place / "index.html"
    if page.exists() and not (page.is_file() and wrote(page)):
        raise FileExistsError(expected(str(folder), what, "an index.html of others"))


def write_analysis(run: Run, found: Analysis, folder: str | os.PathLike[str]) -> Path:
    """Write the page on the point that a run reached; its path."""
    command = f"saddlepoint analyze RUN --samples {found.samples}"
    if found.samples < found.rows:
        command += f" --seed {found.seed}"
    report = Report(
        "What training reached",
        _network(run),
        [_verdict(run, found)],
        panels_of(found, run),
        _facts(run, command),
    )
    return write(report, folder)


def write_demo(found: Demo, folder: str | os.PathLike[str]) -> Path:
    """Write the page of the demonstration; its path."""
    first = found.stages[0]
    spent = found.descent[-1, 0] + 1
    saddle = Verdict(
        "A saddle point, left",
        "A linear network with one hidden layer started near its saddle at zero. Gradient descent "
        f"hangs there: the gradient is {first.point.gradient_norm:.1g}. But the loss falls along "
        "one direction, and a step along it gets training moving again, "
        f"{len(found.stages)} times until the minimum.",
        [
            (
                "smallest eigenvalue",
                f"{first.point.lambda_min:.4g} ± {first.point.residual_min:.0e}",
            ),
            ("drop along it", f"{first.way.actual_drop:.3g}"),
            ("predicted by ½|λ|s²", f"{first.way.predicted_drop:.3g}"),
            (
                f"steps that descent at rate {found.lr:g} needs for it",
                f"{first.way.gradient_steps(found.lr):.0f}",
            ),
            ("loss by descent alone", f"{found.descent[-1, 1]:.3g}"),
            ("loss with escapes", f"{found.escaped[-1, 1]:.3g}"),
            ("gradient evaluations, both", f"{spent:.0f}"),
        ],
    )
    report = Report(
        "saddlepoint demo",
        f"UCI digits ({_network(found.run)}), and a factored linear network",
        [saddle, _verdict(found.run, found.analysis)],
        panels_of(found),
        _facts(found.run, f"saddlepoint demo --seed {found.run.config.seed}"),
    )
    return write(report, folder)
