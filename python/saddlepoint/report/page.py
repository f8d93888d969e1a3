"""The page of the report: verdict, panels, how it was made; one file that needs no network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import expected
from ..store import write_file
from .theme import DARK, FONT, LIGHT, Figure, caption, require

__all__ = ["Panel", "Report", "Verdict", "write"]


@dataclass(frozen=True)
class Verdict:
    """What training is stuck on, in a headline, and what that rests on as (label, value) rows."""

    headline: str
    text: str
    evidence: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Panel:
    """A figure with its title; an empty caption means the figure's own.

    Raises
    ------
    ValueError
        If id cannot name an element: a lower-case letter, then letters, digits and hyphens.
    """

    id: str
    title: str
    caption: str
    figure: Figure

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", self.id):
            raise ValueError(expected("id", "[a-z][a-z0-9-]*", repr(self.id)))

    @property
    def words(self) -> str:
        """What the figure shows, in words."""
        return self.caption or caption(self.figure)


@dataclass(frozen=True)
class Report:
    """All that a page says.

    `facts` tells how it was made (version, seed, data, ...); `command` among them is shown as
    what to type. Nothing is added to them, so equal reports give equal files.
    """

    title: str
    subtitle: str
    verdict: Sequence[Verdict]
    figures: Sequence[Panel]
    facts: Mapping[str, str] = field(default_factory=dict)


def write(report: Report, folder: str | os.PathLike[str]) -> Path:
    """Write ``index.html`` into a folder, which is made if need be, and return its path.

    The file appears whole or not at all. It holds Plotly's JavaScript and asks for nothing else;
    its Content-Security-Policy makes the browser enforce that.

    Raises
    ------
    ImportError
        If Plotly or Jinja2 is missing.
    ValueError
        If there is no verdict, or two panels share an id.

    Examples
    --------
    >>> import tempfile
    >>> verdict = Verdict("A saddle point", "One direction leads down.", [("λ min", "−2")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Report("Demo", "", [verdict], [], {"seed": "0"}), folder).name
    'index.html'
    """
    ids = [panel.id for panel in report.figures]
    if not report.verdict:
        raise ValueError(expected("verdict", "at least one", "none"))
    if len(set(ids)) != len(ids):
        raise ValueError(expected("figures", "panels with different ids", ids))
    text = _render(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return write_file(folder / "index.html", text.encode(errors="replace"))


def wrote(page: Path) -> bool:
    """Whether a page is one of ours."""
    with page.open("rb") as file:
        return b'<meta name="generator" content="saddlepoint">' in file.read(1024)


def _render(report: Report) -> str:
    """The page as text."""
    jinja2, markup = require("jinja2"), require("markupsafe").Markup
    plotly = require("plotly.offline").get_plotlyjs() if report.figures else ""

    def json(figure: Figure) -> Any:
        # inside <script> nothing is unescaped, so "</script>" in a label must not appear as such
        return markup(figure.to_json().replace("<", "\\u003c").replace("\u2028", "\\u2028"))

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files(__package__).joinpath("template.html.j2").read_text(encoding="utf-8")
    )
    page = template.render(
        report=report,
        facts=[(name, fact) for name, fact in report.facts.items() if name != "command"],
        command=report.facts.get("command"),
        light=LIGHT,
        dark=DARK,
        swap={LIGHT[role]: DARK[role] for role in LIGHT},
        font=markup(FONT),
        json=json,
        plotly=markup(plotly),
    )
    return str(page)
