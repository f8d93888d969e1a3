"""Every result says itself, becomes strict JSON, and draws itself."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from numpy.testing import assert_array_equal

import saddlepoint as sp
from saddlepoint import landscape, nn, runs
from saddlepoint.data import Dataset
from saddlepoint.demo import Demo, Stage
from saddlepoint.history import History
from saddlepoint.results import Result, panels
from saddlepoint.studies import batch_norm as study
from saddlepoint.surfaces import Quadratic, Saddle
from saddlepoint.torch import AdamStability

# Frozen dataclasses that are not results: what is asked for, and parts of other things.
OTHERS = {
    # options and inputs
    "Batch", "Config", "Dataset", "Layout", "Noise", "Options", "Setting", "Training",
    # networks and losses
    "BatchNorm", "CrossEntropy", "GELU", "Identity", "LeakyReLU", "Linear", "MeanSquaredError",
    "ReLU", "Sigmoid", "Tanh", "Entry",
    # files, pages, and what an objective hands out
    "Panel", "Report", "State", "SurfaceLinearization", "Table", "Unpacked", "Verdict",
}  # fmt: skip


@pytest.fixture(autouse=True)
def figures_off_screen() -> Iterator[None]:
    matplotlib.use("Agg")
    yield
    pyplot.close("all")


def exported() -> dict[str, type]:
    """The frozen dataclasses that any module of the package exports, by module and name."""
    found = {}
    for module in pkgutil.walk_packages(sp.__path__, "saddlepoint."):
        if not module.name.startswith(
            ("saddlepoint._c", "saddlepoint.__main__", "saddlepoint.lib")
        ):
            for name in importlib.import_module(module.name).__all__:
                thing = getattr(importlib.import_module(module.name), name)
                kept = isinstance(thing, type) and is_dataclass(thing)
                if kept and thing.__dataclass_params__.frozen:
                    found[f"{thing.__module__}.{name}".removeprefix("saddlepoint.")] = thing
    return found


X = np.random.default_rng(0).standard_normal((60, 4))
SMALL = Dataset(X, np.arange(60) % 3, classes=3)
SETTING = study.Setting(depth=2, width=4, batch_size=20)


@cache
def run() -> runs.Run:
    return runs.train(runs.Config(layers=(64, 6, 10), epochs=2), show_progress=False)


@cache
def analysis() -> runs.Analysis:
    return runs.analyze(run(), samples=100, show_progress=False)


@cache
def fitted() -> sp.Fit:
    net = nn.Linear(4, 3)
    return sp.fit(net, net.init(0), nn.CrossEntropy(), (X.astype("f"), SMALL.y), epochs=2, rng=0)


def stage() -> Stage:
    point = sp.classify(Saddle(), np.zeros(2))
    return Stage(3, point, sp.escape(Quadratic([-1.0, 2.0]), np.zeros(2)))


def whole() -> Demo:
    x = np.eye(2)
    surface = landscape.plane(Saddle(), np.zeros(2), *x, points=5)
    curve = np.array([[0.0, 2.0], [9.0, 1.0]])
    first = stage()
    return Demo(run(), analysis(), [first], first.point, curve, curve, 0.1, surface)


def named_hessian() -> sp.HessianOperator:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    objective = sp.NetworkObjective(net, nn.CrossEntropy(), SMALL.x, SMALL.y, dtype="float64")
    return sp.hessian(objective, net.init(0, "float64").theta)


RESULTS = {
    "critical.classify.CriticalPoint": lambda: sp.classify(Saddle(), np.zeros(2)),
    "critical.escape.Escape": lambda: sp.escape(Quadratic([-1.0, 2.0]), np.zeros(2)),
    "critical.verdict.Standing": lambda: analysis().standing,
    "curvature.density.SpectralDensity": lambda: sp.spectral_density(np.diag([-2.0, 0.0, 5.0])),
    "curvature.hessian.Verification": lambda: sp.hessian(Saddle(), np.ones(2)).verify(0),
    "curvature.lanczos.Eigenpairs": lambda: sp.eigsh(np.diag([-2.0, 0.0, 5.0]), 2),
    "curvature.layers.LayerCurvature": lambda: sp.curvature_by_layer(named_hessian()),
    "curvature.trace.Diagonal": lambda: sp.diagonal(np.diag([-2.0, 0.0, 5.0])),
    "curvature.trace.Trace": lambda: sp.trace(np.diag(np.arange(30.0)), 12),
    "demo.Demo": whole,
    "demo.Stage": stage,
    "history.Fit": fitted,
    "history.History": lambda: fitted().history,
    "landscape.Slice1D": lambda: landscape.line(Saddle(), np.zeros(2), np.ones(2)),
    "landscape.Slice2D": lambda: landscape.plane(Saddle(), np.zeros(2), *np.eye(2), points=5),
    "runs.Analysis": analysis,
    "runs.Run": run,
    "studies.batch_norm.ActivationHistory": lambda: study.activation_history(
        SMALL, epochs=1, times=3, rows=30, setting=SETTING
    ),
    "studies.batch_norm.Hypotheses": lambda: study.hypotheses(
        SMALL, epochs=3, rows=30, companions=3, setting=SETTING
    ),
    "studies.batch_norm.LayerOutput": lambda: study.layer_output(SMALL, width=3, rows=20),
    "studies.batch_norm.LearningCurves": lambda: study.learning_curves(
        SMALL, (0.1, 1e6), epochs=1, setting=SETTING
    ),
    "studies.batch_norm.NoisyTraining": lambda: study.noisy_training(
        SMALL, epochs=1, times=3, setting=SETTING
    ),
    "studies.batch_norm.OneStep": lambda: study.one_step(Saddle(), np.ones(2), 0.1),
    "studies.batch_norm.Run": lambda: study.learning_curves(
        SMALL, (0.1,), epochs=1, setting=SETTING
    ).runs[1],
    "torch.stability.AdamStability": lambda: AdamStability(30.0, 0.1, 38.0, 12),
    "studies.batch_norm.StepLandscape": lambda: study.step_landscape(
        SMALL, steps=6, setting=SETTING
    ),
}


def test_every_result_is_here() -> None:
    found = {name: kind for name, kind in exported().items() if kind.__name__ not in OTHERS}
    assert found.keys() == RESULTS.keys()
    assert all(issubclass(kind, Result) for kind in found.values())


def strict(result: Any) -> dict[str, Any]:
    return dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_says_itself_becomes_json_and_draws_itself(name: str) -> None:
    result: Any = RESULTS[name]()
    assert type(result).__name__ == name.rpartition(".")[2]
    assert str(result)
    assert "array(" not in str(result)
    assert str(result) != repr(result)

    told = strict(result)
    assert list(told) == [field.name for field in fields(result)]
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, np.ndarray) and isinstance(told[field.name], dict):
            shape = {"shape": list(value.shape), "dtype": str(value.dtype)}
            assert told[field.name] == shape
        elif (
            isinstance(value, np.ndarray) and value.dtype.kind in "fi" and np.isfinite(value).all()
        ):
            assert_array_equal(np.array(told[field.name]).reshape(value.shape), value)

    figure = result.plot()
    figure.canvas.draw()
    axes = [ax for top in figure.axes for ax in (top, *top.child_axes)]
    assert sum(len(ax.lines) + len(ax.patches) + len(ax.collections) for ax in axes) > 0
    mine, (left, right) = pyplot.subplots(1, 2)
    assert result.plot(ax=right) is mine
    assert not [*left.lines, *left.patches, *left.collections]


def test_what_json_has_no_word_for_is_spelled() -> None:
    kept = fitted().history
    odd = np.array([np.nan, np.inf, -np.inf, 0.5])
    history = History(**{**vars(kept), "gradient_norm": odd})
    assert strict(history)["gradient_norm"] == [None, "inf", "-inf", 0.5]
    standing = replace(analysis().standing, gradient_drop=np.nan, escape=None, edge=np.inf)
    told = strict(standing)
    assert (told["gradient_drop"], told["escape"], told["edge"]) == (None, None, "inf")
    assert standing.plot().axes[0].texts[0].get_text() == "none measured"


def test_vectors_of_parameters_are_told_by_shape() -> None:
    H = torch.diag(torch.arange(1.0, 5.0))
    told = strict(sp.eigsh(H, 2))
    assert told["vectors"] == [{"shape": [4], "dtype": "float32"}] * 2
    assert strict(fitted())["params"] == {
        "theta": {"shape": [15], "dtype": "float32"},
        "buffers": {"shape": [0], "dtype": "float32"},
    }
    for kept in (fitted(), run()):
        assert len(json.dumps(kept.to_dict())) < 20_000


def test_a_result_does_not_import_the_report() -> None:
    """Nor Matplotlib before it draws; see also the import rules of test_architecture."""
    code = (
        "import sys, numpy as np, saddlepoint as sp\n"
        "point = sp.classify(sp.surfaces.Saddle(), np.zeros(2))\n"
        "str(point), point.to_dict()\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import matplotlib; matplotlib.use('Agg')\n"
        "point.plot()\n"
        "print(any(name.startswith('saddlepoint.report') for name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_nested_panels_stay_within_the_axes_they_were_given() -> None:
    figure, (left, right) = pyplot.subplots(1, 2)
    assert panels(right, 1, 1) == (figure, [right])
    found, inner = panels(right, 2, 2)
    assert found is figure
    assert len(inner) == len(right.child_axes) == 4
    assert not left.child_axes
