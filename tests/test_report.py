"""The report, read by a browser: what a person opening the file would see."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from browser import Browser
from saddlepoint.critical import CriticalPoint, Escape, classify, verdict
from saddlepoint.history import History
from saddlepoint.landscape import Slice2D
from saddlepoint.report import (
    Panel,
    Report,
    Verdict,
    caption,
    escape_line,
    extreme_eigenvalues,
    loss_comparison,
    loss_surface,
    pages,
    training_curves,
    write,
)
from saddlepoint.report.figures.slices import curvature_slices
from saddlepoint.report.panels import PANELS, panels_of
from saddlepoint.report.theme import DARK, LIGHT
from saddlepoint.runs import Config, analyze, train
from saddlepoint.surfaces import Saddle

HOSTILE = "<b>{0}</b>{x}</script><script>alert(1)</script><img src=x onerror=alert(2)>"
# Plotly's WebGL text asks Chromium to read a canvas back; this is advice about speed
ADVICE = "willReadFrequently"


def history(updates: int = 600, **changes: Any) -> History:
    """A plateau, then a fall, as at a saddle."""
    rng = np.random.default_rng(0)
    step = np.arange(1, updates + 1)
    loss = 0.25 + 2.05 / (1 + np.exp((step - updates / 2) / (updates / 30)))
    every = max(1, updates // 10)
    epochs = step[every - 1 :: every]
    values = {
        "step": step,
        "loss": loss * np.exp(0.05 * rng.standard_normal(updates)),
        "gradient_norm": np.exp(-(((step - updates / 2) / 80) ** 2)) + 1e-3,
        "epoch_step": epochs,
        "train_loss": loss[epochs - 1],
        "validation_loss": loss[epochs - 1] + 0.05,
        "validation_accuracy": 1 - loss[epochs - 1] / 2.6,
        "learning_rate": np.full(updates, 0.1),
        "seconds": np.ones(len(epochs)),
    }
    return History(**values | changes)


def point(values: Any, residuals: Any, tolerance: float = 1e-4) -> CriticalPoint:
    """A saddle of 25450 parameters with eigenvalues of one's own."""
    known = classify(Saddle(), np.zeros(2))
    return replace(
        known,
        gradient_norm=3e-6,
        tolerance=tolerance,
        size=25450,
        products=84,
        eigenvalues=np.asarray(values, float),
        residuals=np.asarray(residuals, float),
    )


def escape(**changes: Any) -> Escape:
    """Down the x axis of x⁴/4 − x² + y², whose lowest points are at ±√2."""
    s = np.linspace(-1.8, 1.8, 91)
    values: dict[str, Any] = {
        "theta": np.array([2**0.5, 0.0]),
        "direction": np.array([1.0, 0.0]),
        "eigenvalue": -2.0,
        "residual": 1e-8,
        "step": 2**0.5,
        "loss_before": 0.0,
        "loss_after": -1.0,
        "predicted_drop": 2.0,
        "actual_drop": 1.0,
        "steps": s,
        "losses": s**4 / 4 - s**2,
        "gradient": 1e-9,
        "evaluations": 91,
        "products": 4,
    }
    return Escape(**values | changes)


def saddle(path: Any = None, **changes: Any) -> Slice2D:
    """The surface α⁴/4 − α² + β²."""
    alphas, betas = np.linspace(-1.5, 1.5, 41), np.linspace(-1, 1, 31)
    losses = (alphas**4 / 4 - alphas**2)[:, None] + betas**2
    values = {"alphas": alphas, "betas": betas, "losses": losses, "labels": ("down", "up")}
    return Slice2D(**values | {"path": path} | changes)


def report(**changes: Any) -> Report:
    t = np.linspace(0, 1, 30)
    a, b = 0.03 * np.exp(3.8 * t), 0.9 * np.exp(-5 * t)
    x = np.arange(300)
    falls = np.where(x < 100, 2.3, 0.2 + 2.1 * np.exp(-(x - 100) / 40))
    curves = {"gradient descent": (x, np.full(300, 2.3)), "with escape": (x, falls)}
    values: dict[str, Any] = {
        "title": "Digits, tanh 64-30-10",
        "subtitle": "after 120 updates of gradient descent",
        "verdict": [
            Verdict(
                "Stuck at a saddle point",
                "The gradient is nearly zero, but the loss still falls along one direction.",
                [("gradient norm", "3.0×10⁻⁶"), ("smallest eigenvalue", "−0.0321 ± 1×10⁻⁶")],
            )
        ],
        "figures": [
            Panel(
                "surface",
                "The loss around",
                "",
                loss_surface(saddle(np.stack([a, b, b**2 - a**2], 1))),
            ),
            Panel("escape", "The way down", "", escape_line(escape())),
            Panel("comparison", "With and without", "", loss_comparison(curves, "update")),
            Panel(
                "eigenvalues",
                "Both ends of the spectrum",
                "",
                extreme_eigenvalues(
                    point([-0.03, -0.01, 2e-5, 0.8, 4.2], [1e-6, 1e-3, 1e-5, 1e-3, 1e-5])
                ),
            ),
            Panel("training", "How training went", "", training_curves(history())),
        ],
        "facts": {"version": "0.1.0", "seed": "0", "command": "saddlepoint report --seed 0"},
    }
    return Report(**values | changes)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(report(), tmp_path_factory.mktemp("report"))


def complaints(browser: Browser) -> list[str]:
    return [line for line in browser.console if ADVICE not in line]


def pixels(browser: Browser, selector: str, folder: Path) -> np.ndarray[Any, Any]:
    """The element as it is seen: (h, w, 3) in 0..255."""
    image = imread(browser.screenshot(folder / "shot.png", selector))
    return (255 * image[..., :3]).astype(int)


def test_every_figure_is_drawn_without_complaint_or_request(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert complaints(browser) == []
    assert browser.requests == [page.as_uri()]
    marks = {  # what only a drawn trace leaves in the document, and how many of them
        "surface": ("canvas", 1),
        "escape": (".scatterlayer .js-line", 2),
        "comparison": (".scatterlayer .js-line", 2),
        "eigenvalues": (".scatterlayer .xerror", 5),
        "training": (".scatterlayer .js-line", 5),
    }
    for panel, (selector, count) in marks.items():
        inside = f"#{panel}.js-plotly-plot"
        assert browser.evaluate(f"document.querySelectorAll('{inside} svg.main-svg').length") > 0
        found = browser.evaluate(f"document.querySelectorAll('{inside} {selector}').length")
        assert found >= count, panel


def test_a_saddle_is_seen_in_both_colours(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    red, _, blue = np.moveaxis(pixels(browser, "#surface", tmp_path), -1, 0)
    # the surface covers about a third of its panel, and has as much below the point as above
    assert np.mean(blue - red > 60) > 0.02
    assert np.mean(red - blue > 60) > 0.02


def test_dark_mode_exchanges_page_and_figures(browser: Browser, page: Path, tmp_path: Path) -> None:
    def shade(selector: str) -> float:
        return float(np.median(pixels(browser, selector, tmp_path)))

    selectors = ["header", "#surface", "#escape", "#training"]
    browser.open(page)
    light = [shade(selector) for selector in selectors]
    browser.dark(True)  # the page is open: figures must follow, not only start right
    dark = [shade(selector) for selector in selectors]
    assert min(light) > 200
    assert max(dark) < 60
    assert complaints(browser) == []
    stroke = "getComputedStyle(document.querySelector('#escape .js-line[style*=\"3px\"]')).stroke"
    assert browser.evaluate(stroke) == "rgb(120, 176, 242)"  # DARK["blue"], in decimal


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_no_width_needs_a_horizontal_scroll(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('.plot svg.main-svg')].map(s => s.clientWidth)"
    assert max(browser.evaluate(wide)) <= width


def test_a_figure_is_described_to_who_cannot_see_it(browser: Browser, page: Path) -> None:
    browser.open(page)
    labels = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => [p.role, p.ariaLabel])"
    )
    captions = browser.evaluate(
        "[...document.querySelectorAll('figcaption p')].map(p => p.textContent)"
    )
    assert len(labels) == len(captions) == 5
    for (role, label), words in zip(labels, captions, strict=True):
        assert role == "img"
        assert words in label
        assert re.search(r"\d", words)


def test_the_verdict_comes_first_and_is_the_largest(browser: Browser, page: Path) -> None:
    browser.open(page)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('h1, h2')].map("
        "h => [h.textContent, parseFloat(getComputedStyle(h).fontSize)])"
    )
    largest = max(sizes, key=lambda pair: pair[1])
    assert largest[0] == "Stuck at a saddle point"
    assert sizes.index(largest) == 1  # after the title
    cells = browser.evaluate(
        "[...document.querySelectorAll('tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert ["smallest eigenvalue", "−0.0321 ± 1×10⁻⁶"] in cells
    assert browser.evaluate("document.querySelector('pre').textContent") == (
        "saddlepoint report --seed 0"
    )


def test_the_best_epochs_are_told_of() -> None:
    losses, shares = [0.9, 0.5, 0.7], [0.25, 0.875, 0.5]
    curves = history(30, epoch_step=[10, 20, 30], train_loss=[0.9, 0.6, 0.4])
    figure = training_curves(replace(curves, validation_loss=losses, validation_accuracy=shares))
    assert "The validation loss is lowest, 0.5, after update 20." in caption(figure)
    assert "The best validation accuracy is 87.5%." in caption(figure)


@pytest.mark.parametrize(("least", "kind"), [(1.0, "linear"), (0.02, "linear"), (0.0199, "log")])
def test_an_axis_is_logarithmic_over_more_than_a_factor_of_fifty(least: float, kind: str) -> None:
    curves = history(
        3, step=[1, 2, 3], loss=[1.0, 0.5, least], gradient_norm=[1.0] * 3, epoch_step=[3],
        train_loss=[0.5], validation_loss=[0.5], validation_accuracy=[np.nan],
    )  # fmt: skip
    figure: Any = training_curves(curves)
    assert figure.layout.yaxis.type == kind


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("minimum", "At a minimum"),
        ("saddle", "Stuck at a saddle point"),
        ("degenerate", "On flat ground"),
    ],
)
def test_each_kind_of_point_has_its_headline(kind: str, words: str) -> None:
    assert pages._HEADLINES[kind] == words


def test_hostile_text_is_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    x = np.arange(5)
    figure = loss_comparison({HOSTILE: (x, x), "b": (x, 2 * x)}, HOSTILE, HOSTILE)
    surface = loss_surface(saddle(labels=(HOSTILE, HOSTILE)))
    hostile = Report(
        HOSTILE,
        HOSTILE,
        [Verdict(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)])],
        [Panel("a", HOSTILE, HOSTILE, figure), Panel("b", HOSTILE, "", surface)],
        {HOSTILE: HOSTILE, "command": HOSTILE},
    )
    path = write(hostile, tmp_path)
    browser.open(path)
    assert complaints(browser) == []
    assert browser.requests == [path.as_uri()]
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("document.querySelector('.verdict h2').textContent") == HOSTILE
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE in browser.evaluate("document.querySelector('#a .legendtext').textContent")


def test_a_figure_cannot_end_its_script(browser: Browser, tmp_path: Path) -> None:
    # Plotly escapes its own JSON; what else has a to_json need not
    text = '{"data": [{"y": [1, 2]}], "layout": {"meta": "</script><img src=x>"}}'
    raw: Any = SimpleNamespace(layout=SimpleNamespace(meta=None), to_json=lambda: text)
    browser.open(write(report(figures=[Panel("a", "", "words", raw)]), tmp_path))
    assert complaints(browser) == []
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.evaluate("document.querySelectorAll('#a .js-line').length") == 1


def test_nothing_is_addressed_outside_the_file(page: Path) -> None:
    class Addresses(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    parser = Addresses()
    text = page.read_text(encoding="utf-8")
    parser.feed(text)
    assert parser.found == ["data:,"]
    style = "".join(re.findall(r"<style>.*?</style>", text, re.DOTALL))
    assert style
    assert "url(" not in style
    assert "@import" not in style
    assert text.count("plotly.js v") == 1


def test_what_is_not_finite_is_left_out(browser: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    loss = np.exp(rng.standard_normal(9000))
    loss[5000:] = np.inf
    nothing = np.array([])
    curves = history(
        9000,
        loss=loss,
        gradient_norm=np.where(np.arange(9000) < 7, 0, loss),
        train_loss=nothing,
        validation_loss=nothing,
        validation_accuracy=nothing,
        epoch_step=nothing,
    )
    hole = saddle()
    hole.losses[30:, 20:] = np.nan
    far = escape(losses=np.where(np.abs(escape().steps) > 1.5, np.inf, escape().losses))
    figures = {
        "training": training_curves(curves),
        "eigenvalues": extreme_eigenvalues(point([-1.0, np.nan, 2.0], [np.nan, 1.0, 0.1])),
        "none": extreme_eigenvalues(point([], [])),
        "escape": escape_line(far),
        "surface": loss_surface(hole),
        "flat": loss_surface(saddle(losses=np.full((41, 31), 2.3))),
        "curves": loss_comparison({"nan": (np.arange(3), np.full(3, np.nan))}, "x", log=True),
    }
    panels = [Panel(name, name, "", figure) for name, figure in figures.items()]
    browser.open(write(report(figures=panels), tmp_path))
    assert complaints(browser) == []
    drawn = browser.evaluate("document.querySelectorAll('.js-plotly-plot svg.main-svg').length")
    assert drawn >= len(figures)
    words = caption(figures["training"])
    assert "not finite at update 5,001" in words
    assert "exactly zero at 7 updates" in words


def test_the_parabola_is_the_taylor_polynomial() -> None:
    figure: Any = escape_line(escape(loss_before=0.3, gradient=-0.5, eigenvalue=-1.25))
    model = next(trace for trace in figure.data if trace.name == "quadratic model")
    # three coefficients from the drawn points; least squares on exact data is exact to rounding
    fit = np.polynomial.polynomial.polyfit(model.x, model.y, 2)
    np.testing.assert_allclose(fit, [0.3, -0.5, -0.625], rtol=1e-12)


def test_eigenvalues_keep_their_order_and_their_side() -> None:
    values = np.array([-3.0, -1e-3, -1e-7, 0.0, 1e-7, 2e-3, 50.0])
    figure: Any = extreme_eigenvalues(point(values, np.full(7, 1e-8), tolerance=1e-5))
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    x = np.concatenate([trace.x for trace in marks])
    shown = np.concatenate([trace.customdata for trace in marks])[:, 0]
    np.testing.assert_array_equal(shown, values)
    assert (np.diff(x) > 0).all()
    np.testing.assert_array_equal(np.sign(x), np.sign(values))
    # outside the band a decade is ln 10 wide: asinh(t) = ln 2t + O(t⁻²), here t = 100
    ratio = (x[-1] - x[-2]) / np.log(50.0 / 2e-3)
    np.testing.assert_allclose(ratio, 1.0, atol=1e-4)
    assert "2 lie below" in caption(figure)
    assert "3 inside it and 2 above" in caption(figure)


@pytest.mark.parametrize("down", ["alpha", "beta"])
def test_the_camera_looks_along_the_way_down(down: str) -> None:
    x = np.linspace(-1, 1, 21)
    losses = x[None, :] ** 2 - x[:, None] ** 2
    losses = losses if down == "alpha" else -losses
    figure: Any = loss_surface(saddle(alphas=x, betas=x, losses=losses))
    eye = figure.layout.scene.camera.eye
    along, across = (eye.x, eye.y) if down == "alpha" else (eye.y, eye.x)
    assert abs(along) > abs(across)


def test_a_wall_does_not_hide_the_way_down() -> None:
    x = np.linspace(-1, 1, 41)
    figure: Any = loss_surface(
        saddle(alphas=x, betas=x, losses=np.exp(9 * x)[None, :] - x[:, None] ** 2)
    )
    low, high = figure.layout.scene.zaxis.range
    assert high - low < 20  # while the wall is e⁹ ≈ 8103 high
    assert "cut off at 9; it rises to 8103" in caption(figure)


def test_thinning_keeps_every_peak() -> None:
    n = 50_000
    norm = np.ones(n)
    norm[[17, 31_234]] = 100.0, 0.01
    figure: Any = training_curves(history(n, gradient_norm=norm))
    drawn = next(trace for trace in figure.data if trace.name == "gradient norm")
    assert len(drawn.x) <= 3000
    assert {(18, 100.0), (31_235, 0.01)} <= set(zip(drawn.x, drawn.y, strict=True))


def test_palettes_name_the_same_roles_once() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(set(LIGHT.values())) == len(LIGHT)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("role", ["ink", "muted", "blue", "orange", "green", "purple", "gold"])
def test_text_and_lines_stand_out_from_the_paper(palette: dict[str, str], role: str) -> None:
    def luminance(colour: str) -> float:
        # WCAG 2.2, relative luminance
        srgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in srgb]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    pair = sorted(luminance(palette[name]) for name in (role, "paper"))
    assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5  # WCAG AA for text


def test_writing_is_repeatable_and_whole(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    again = write(report(), folder)
    assert again.read_bytes() == page.read_bytes()
    with pytest.raises(AttributeError):
        write(report(figures=[Panel("a", "a", "a", None)]), folder)  # type: ignore[arg-type]
    assert again.read_bytes() == page.read_bytes()
    assert [path.name for path in folder.iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Panel("a b", "", "", loss_surface(saddle())), r"id: expected .*, got 'a b'"),
        (lambda: loss_comparison({}, "x"), "curves: expected at least one"),
        (
            lambda: loss_comparison({"a": (np.arange(3), np.arange(4))}, "x"),
            r"curves\['a'\]: expected y of shape \(3,\), got \(4,\)",
        ),
        (
            lambda: loss_surface(saddle(losses=np.ones((3, 4)))),
            r"losses: expected shape \(41, 31\)",
        ),
        (
            lambda: loss_surface(saddle(losses=np.full((41, 31), np.nan))),
            "losses: expected a finite",
        ),
        (lambda: loss_surface(saddle(path=np.ones((3, 2)))), r"path: expected shape \(p, 3\)"),
        (lambda: escape_line(escape(losses=np.ones(3))), r"losses: expected shape \(91,\)"),
        (lambda: extreme_eigenvalues(point([1.0], [])), r"residuals: expected shape \(1,\)"),
        (lambda: curvature_slices([]), "slices: expected at least one, got none"),
        (lambda: training_curves(history(step=[], loss=[], gradient_norm=[])), "history: expected"),
        (lambda: write(report(verdict=[]), "."), "verdict: expected at least one"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_panels_need_ids_of_their_own(tmp_path: Path) -> None:
    panel = Panel("a", "", "", loss_surface(saddle()))
    with pytest.raises(ValueError, match="figures: expected panels with different ids"):
        write(report(figures=[panel, panel]), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_a_missing_extra_says_how_to_get_it(missing: str, tmp_path: Path) -> None:
    code = f"""
import sys
sys.modules[{missing!r}] = None
import saddlepoint.report as r
assert not {{"plotly", "jinja2"}} - {{{missing!r}}} & set(sys.modules)
try:
    r.loss_comparison({{"a": ([0, 1], [1, 2])}}, "x")
    r.write(r.Report("", "", [r.Verdict("", "")], []), {str(tmp_path)!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (f"the report needs {missing}: pip install 'saddlepoint[report]'")


def test_a_page_has_the_panels_of_its_results_that_there_is_something_to_draw_for() -> None:
    """What blew up has no eigenvalues: `find` gives None, and the panel is left out."""
    run = train(Config(layers=(64, 6, 10), epochs=1), show_progress=False)
    found = analyze(run, samples=60, show_progress=False)
    entries = [entry for result in (found, run) for entry in PANELS[type(result)]]
    shown = panels_of(found, run)
    assert [(panel.id, panel.title) for panel in shown] == [(e.id, e.title) for e in entries]
    assert shown[0].words == caption(extreme_eigenvalues(found.point))
    assert [panel.id for panel in panels_of(replace(found, point=None), run)] == ["training"]


def test_lines_are_drawn_with_the_parabola_of_second_order() -> None:
    """Both ends of the spectrum: at each, dᵀHd is the eigenvalue."""
    run = train(Config(layers=(64, 6, 10), epochs=1), show_progress=False)
    found = analyze(run, samples=60, show_progress=False)
    (panel,) = [panel for panel in panels_of(found) if panel.id == "slices"]
    figure: Any = panel.figure
    models = [trace for trace in figure.data if trace.name == "quadratic model"]
    assert len(models) == 2
    for trace, eigenvalue in zip(
        models, (found.point.lambda_min, found.point.lambda_max), strict=True
    ):
        fit = np.polynomial.polynomial.polyfit(trace.x, trace.y, 2)
        np.testing.assert_allclose(2.0 * fit[2], eigenvalue, rtol=1e-6)
        np.testing.assert_allclose(fit[0], found.point.loss, rtol=1e-9)
    assert "the dashed parabola" in panel.words


def test_every_verdict_has_a_headline() -> None:
    assert set(pages._HEADLINES) == set(verdict.VERDICTS)
