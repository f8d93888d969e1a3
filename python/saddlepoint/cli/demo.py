"""``saddlepoint demo``."""

from __future__ import annotations

from pathlib import Path

from ..critical import CriticalPoint
from ..demo import Demo
from ..demo import demo as run_demo
from ..report.pages import check_page, write_demo
from .options import option
from .printing import say, tell_training, tell_verdict

__all__ = ["demo"]

_REPORT = Path("saddlepoint-report")


def demo(
    out: Path = option(_REPORT, "--out", help="folder for the report"),
    seed: int = option(0, "--seed", help="of data order, weights and directions"),
    overwrite: bool = option(False, "--overwrite", help="replace a page that is not ours"),
) -> None:
    """Train a small network and judge it; then watch a saddle point being left."""
    check_page(out, overwrite)
    found = run_demo(seed)
    tell_training(found.run)
    tell_verdict(found.analysis)
    _tell_escapes(found)
    say(f"report: {write_demo(found, out)}")


def _tell_point(title: str, point: CriticalPoint) -> None:
    say(f"\n{title}: {point.kind}", "bold")
    say(point.reason)


def _tell_escapes(found: Demo) -> None:
    say("\nA factored linear network started near its saddle at zero:", "bold")
    for stage in found.stages:
        _tell_point(f"It hangs at loss {stage.point.loss:.4g}", stage.point)
        more = stage.way.gradient_steps(found.lr)
        say(f"{stage.way} Gradient descent would take about {more:.0f} more steps to go as far.")
    _tell_point(f"It ends at loss {found.final.loss:.3g}", found.final)
    plain, escaped = found.descent[-1], found.escaped[-1]
    say(
        f"After {plain[0] + 1:.0f} gradient evaluations: loss {plain[1]:.3g} by gradient descent, "
        f"{escaped[1]:.3g} with the escapes.\n"
    )
