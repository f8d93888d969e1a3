"""``saddlepoint analyze``."""

from __future__ import annotations

from pathlib import Path

import typer

from ..errors import expected
from ..report.pages import check_page, write_analysis
from ..runs import analyze as judge
from ..runs import load_run
from .options import option
from .printing import say, tell_verdict

__all__ = ["analyze"]


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
    if max_products < 1:
        raise ValueError(expected("max_products", "at least 1", max_products))
    loaded = load_run(run)
    check_page(out or run, overwrite, run)
    found = judge(loaded, samples=samples, max_products=max_products, seed=seed)
    tell_verdict(found)
    say(f"report: {write_analysis(loaded, found, out or run)}")
    if found.verdict == "diverged":
        raise typer.Exit(1)
