"""Every argument of every public callable, given values of wrong kinds: one clear error, or taken.

`CALLS` has one small valid call of each. What the signature says the parameters are is what is
probed, so that a new parameter is probed from its first day.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import saddlepoint as sp
import saddlepoint.torch as st
from saddlepoint import (
    critical,
    curvature,
    data,
    landscape,
    nn,
    norm,
    optim,
    runs,
    surfaces,
    vector,
)
from saddlepoint import train as training
from saddlepoint.data import read_idx
from saddlepoint.optim import schedule
from saddlepoint.optim.options import Shared
from saddlepoint.studies.batch_norm import Setting, layer_output

WRONG: dict[str, Any] = {
    "None": None,
    "x": "x",
    "1.5": 1.5,
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "huge": 10**400,
    "True": True,
    "[]": [],
    "{}": {},
    "object": object(),
    "array": np.array([1.0, 2.0]),
    "bytes": b"x",
}


# What a function hands on by another name, and what the second of two calls takes.
OTHER_NAMES = (
    "dx", "y", "grads", "x_tangent", "weight_tangent", "bias_tangent", "residual_tangent",
)  # fmt: skip
# An int beyond all machine words is just a large one here, which takes its time or memory.
ANY_SIZE = ("epochs", "points", "depth", "size", "total")


class Call(NamedTuple):
    """A callable with arguments that are right, which are made anew for each probe."""

    function: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]


X = np.linspace(-1.0, 1.0, 16).reshape(8, 2)
Y = np.arange(8) % 2
NET = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm(3), nn.Tanh(), nn.Linear(3, 2))
PARAMS = NET.init(0, dtype="float64")
SADDLE = surfaces.Saddle()
RUN = runs.train(runs.Config(layers=(64, 10), epochs=1, batch_norm=False))


def _layer(**more: Any) -> dict[str, Any]:
    return {"x": X.copy(), "weight": np.ones(2), "bias": np.zeros(2), **more}


def _fit() -> dict[str, Any]:
    return {
        "net": NET, "params": PARAMS, "loss": nn.CrossEntropy(), "data": (X, Y), "rng": 0,
    }  # fmt: skip


def _saved() -> Any:
    return norm.batch_norm(**_layer())[1]


def _stepped_by_adam() -> dict[str, Any]:
    module = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(module.parameters())
    torch.nn.functional.mse_loss(module(torch.eye(2)), torch.eye(2)).backward()
    adam.step()
    loss = st.objective(module, torch.nn.MSELoss(), (torch.eye(2), torch.eye(2)))
    return {"H": sp.hessian(loss, st.get_theta(module)), "optimizer": adam}


CALLS: dict[str, Call] = {
    "fit": Call(sp.fit, _fit),
    "predict": Call(training.predict, lambda: {"net": NET, "params": PARAMS, "x": X}),
    "NetworkObjective": Call(
        sp.NetworkObjective,
        lambda: {
            "net": NET,
            "loss": nn.CrossEntropy(),
            "x": X,
            "y": Y,
            "params": PARAMS,
            "dtype": "float64",
        },
    ),
    "hessian": Call(sp.hessian, lambda: {"objective": SADDLE, "theta": np.zeros(2)}),
    "verify": Call(sp.hessian(SADDLE, np.zeros(2)).verify, dict),
    "eigsh": Call(sp.eigsh, lambda: {"H": np.diag([1.0, 2.0, 3.0]), "k": 1}),
    "spectral_density": Call(
        sp.spectral_density, lambda: {"H": np.diag([1.0, 2.0, 3.0]), "steps": 2, "probes": 2}
    ),
    "gauss_newton": Call(
        sp.gauss_newton,
        lambda: {
            "objective": st.objective(
                torch.nn.Linear(2, 2), torch.nn.MSELoss(), (torch.eye(2), torch.eye(2))
            ),
            "theta": torch.zeros(6),
        },
    ),
    "curvature_by_layer": Call(
        sp.curvature_by_layer,
        lambda: {
            "H": sp.hessian(
                sp.NetworkObjective(nn.Linear(2, 2), nn.CrossEntropy(), X, Y, dtype="float64"),
                np.zeros(6),
            ),
            "products": 4,
        },
    ),
    "preconditioned": Call(
        sp.preconditioned,
        lambda: {"H": sp.hessian(SADDLE, np.zeros(2)), "diagonal": np.ones(2)},
    ),
    "adam_stability": Call(st.adam_stability, _stepped_by_adam),
    "trace": Call(sp.trace, lambda: {"H": np.diag(np.arange(9.0)), "products": 6}),
    "diagonal": Call(sp.diagonal, lambda: {"H": np.diag(np.arange(9.0)), "products": 6}),
    "objective": Call(
        st.objective,
        lambda: {
            "module": torch.nn.Linear(2, 2),
            "loss": torch.nn.CrossEntropyLoss(),
            "data": (torch.zeros(8, 2), torch.from_numpy(Y)),
        },
    ),
    "to_network": Call(st.to_network, lambda: {"module": torch.nn.Linear(2, 2)}),
    "get_theta": Call(st.get_theta, lambda: {"module": torch.nn.Linear(2, 2)}),
    "load_theta": Call(
        st.load_theta, lambda: {"module": torch.nn.Linear(2, 2), "theta": torch.zeros(6)}
    ),
    "classify": Call(sp.classify, lambda: {"objective": SADDLE, "theta": np.zeros(2)}),
    "escape": Call(sp.escape, lambda: {"objective": SADDLE, "theta": np.zeros(2)}),
    "plane": Call(
        landscape.plane,
        lambda: {
            "objective": SADDLE,
            "theta": np.zeros(2),
            "d": np.eye(2)[0],
            "e": np.eye(2)[1],
            "points": 3,
        },
    ),
    "line": Call(
        landscape.line,
        lambda: {
            "objective": SADDLE,
            "theta": np.zeros(2),
            "direction": np.eye(2)[0],
            "points": 3,
        },
    ),
    "init": Call(NET.init, dict),
    "Linear": Call(nn.Linear, lambda: {"in_features": 2, "out_features": 3}),
    "LeakyReLU": Call(nn.LeakyReLU, lambda: {"negative_slope": 0.1}),
    "BatchNorm": Call(nn.BatchNorm, lambda: {"num_features": 3}),
    "batch_norm": Call(norm.batch_norm, _layer),
    "Noise": Call(
        lambda seed, step, mean, scale: norm.batch_norm(
            X, noise=norm.Noise(seed, step, mean, scale)
        ),
        lambda: {"seed": 0, "step": 0, "mean": 0.5, "scale": 1.25},
    ),
    "batch_norm_statistics": Call(norm.batch_norm_statistics, lambda: {"x": X}),
    "batch_norm_backward": Call(norm.batch_norm_backward, lambda: {"dy": X, "saved": _saved()}),
    "batch_norm_tangent": Call(
        norm.batch_norm_tangent, lambda: {"x_tangent": X, "saved": _saved()}
    ),
    "Vector": Call(sp.Vector, lambda: {"shape": 3}),
    "load": Call(data.load, lambda: {"path": data.__path__[0] + "/digits.csv.gz", "label": -1}),
    "digits": Call(data.digits, dict),
    "read_idx": Call(read_idx, lambda: {"path": "no such file"}),
    "read_safetensors": Call(data.read_safetensors, lambda: {"path": "no such file"}),
    "Config": Call(runs.Config, dict),
    "train": Call(runs.train, lambda: {"config": RUN.config}),
    "analyze": Call(runs.analyze, lambda: {"run": RUN, "samples": 20, "max_products": 20}),
    "load_run": Call(runs.load_run, lambda: {"folder": "no such folder"}),
    "build_network": Call(runs.build_network, lambda: {"layers": (2, 3)}),
    "set_num_threads": Call(sp.set_num_threads, lambda: {"n": 2}),
    "Dataset": Call(data.Dataset, lambda: {"x": X, "y": Y, "classes": 2}),
    "write_safetensors": Call(
        data.write_safetensors, lambda: {"path": "a", "arrays": {"x": X}, "metadata": {"a": "b"}}
    ),
    "accuracy": Call(training.accuracy, lambda: {"outputs": X, "labels": Y}),
    "HessianOperator": Call(
        curvature.HessianOperator, lambda: {"objective": SADDLE, "theta": np.zeros(2)}
    ),
    "Quadratic": Call(surfaces.Quadratic, lambda: {"eigenvalues": (1.0, 2.0)}),
    "FactoredLinear": Call(surfaces.FactoredLinear, dict),
    "Quartic": Call(surfaces.Quartic, dict),
    "Rosenbrock": Call(surfaces.Rosenbrock, dict),
    "SeparableLogistic": Call(
        surfaces.SeparableLogistic, lambda: {"x": X, "y": np.where(Y == 0, -1.0, 1.0)}
    ),
    "batch_norm_apply": Call(
        norm.batch_norm_apply, lambda: {"x": X, "mean": np.zeros(2), "r": np.ones(2)}
    ),
    "batch_norm_backward_reduce": Call(
        norm.batch_norm_backward_reduce, lambda: {"dy": X, "saved": _saved()}
    ),
    "batch_norm_backward_apply": Call(
        norm.batch_norm_backward_apply,
        lambda: {
            "dy": X,
            "saved": _saved(),
            "sum_dz": np.zeros(2),
            "sum_dz_h": np.zeros(2),
            "count": 8,
        },
    ),
    "batch_norm_backward_tangent": Call(
        norm.batch_norm_backward_tangent,
        lambda: {"dy": X, "dy_tangent": X, "x_tangent": X, "saved": _saved()},
    ),
    "batch_norm_double_backward": Call(
        norm.batch_norm_double_backward,
        lambda: {"ddx": X, "ddweight": None, "ddbias": None, "dy": X, "saved": _saved()},
    ),
    "batch_norm_second_tangent": Call(
        norm.batch_norm_second_tangent,
        lambda: {"x_tangent": X, "x_tangent2": X, "saved": _saved()},
    ),
    "combine": Call(norm.combine, lambda: {"parts": [norm.batch_norm_statistics(X)]}),
    "judge": Call(
        critical.judge,
        lambda: {
            "objective": SADDLE,
            "theta": np.ones(2),
            "point": sp.classify(SADDLE, np.ones(2)),
            "training": critical.Training(10, 0.0, 0.1, True, 9.0, 9.0),
        },
    ),
    "axpy": Call(vector.axpy, lambda: {"a": 1.0, "x": np.ones(2), "y": np.ones(2)}),
    "dot": Call(vector.dot, lambda: {"x": np.ones(2), "y": np.ones(2)}),
    "norm": Call(vector.norm, lambda: {"x": np.ones(2)}),
    "scale": Call(vector.scale, lambda: {"a": 1.0, "x": np.ones(2)}),
    "copy": Call(vector.copy, lambda: {"x": np.ones(2)}),
    "gather": Call(vector.gather, lambda: {"x": np.ones(2)}),
    "empty_like": Call(vector.empty_like, lambda: {"x": np.ones(2)}),
    "random": Call(vector.random, lambda: {"like": np.ones(2)}),
    "exponential": Call(schedule.exponential, lambda: {"beta": 0.1}),
    "step": Call(schedule.step, lambda: {"size": 2}),
    "cosine": Call(schedule.cosine, lambda: {"total": 2}),
    "warmup": Call(schedule.warmup, lambda: {"steps": 2}),
    "one_cycle": Call(schedule.one_cycle, lambda: {"total": 9}),
    "polynomial": Call(schedule.polynomial, lambda: {"total": 2}),
    "sequence": Call(
        schedule.sequence, lambda: {"schedules": [schedule.inverse()] * 2, "milestones": [3]}
    ),
}


def _optimizers() -> Iterator[tuple[str, Call]]:
    for name in optim.__all__:
        kind = getattr(optim, name)
        if (
            inspect.isclass(kind)
            and issubclass(kind, optim.Optimizer)
            and kind is not optim.Optimizer
        ):
            yield name, Call(partial(_stepped, kind), lambda: {"params": [np.ones((2, 2))]})


def _stepped(kind: type[optim.Optimizer], **given: Any) -> None:
    kind(**given).step([np.ones((2, 2))])


def _parameters(name: str, call: Call) -> list[str]:
    function = getattr(optim, name) if isinstance(call.function, partial) else call.function
    names = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            names += (
                [*Shared.__annotations__]
                if isinstance(call.function, partial)
                else [*call.arguments()]
            )
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            names.append(parameter.name)
    return names


CALLS |= dict(_optimizers())


# Made by functions above, abstract, or without arguments to get wrong.
RESULTS = {
    "AdamStability", "Analysis", "PreconditionedOperator", "BlockOperator", "CurvatureOperator",
    "LayerCurvature", "CriticalPoint", "DataWarning", "Diagonal", "Eigenpairs", "ModuleObjective",
    "SpectralDensity", "Trace", "Entry", "Escape", "Fit", "GaussNewtonOperator", "History",
    "KnownPoint", "Layer", "Linearization", "Loss", "Moments", "Objective", "Optimizer",
    "Parameters", "Run", "Saved", "Schedule", "Slice1D", "Slice2D", "Standing", "State", "Surface",
    "SurfaceLinearization", "Training", "UnsavedError", "Verification", "DeviceError",
    "FileFormatError", "ArrayLike", "CrossEntropy", "MeanSquaredError", "GELU", "ReLU", "Tanh",
    "Sigmoid", "Identity", "Sequential", "ExponentialDecay", "MonkeySaddle", "Saddle", "constant",
    "inverse", "inverse_square", "chained", "info", "num_threads",
}  # fmt: skip


def test_every_public_callable_is_probed() -> None:
    modules = (
        sp, critical, curvature, data, landscape, nn, norm, optim, schedule, runs, surfaces,
        st, training, vector,
    )  # fmt: skip
    public = {n for m in modules for n in m.__all__ if callable(getattr(m, n))}
    assert public - set(CALLS) - RESULTS == set()


@pytest.mark.parametrize("name", CALLS)
def test_wrong_kinds_get_one_clear_error_or_are_taken(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    call = CALLS[name]
    faults = []
    for parameter in _parameters(name, call):
        for kind, value in WRONG.items():
            if kind == "huge" and parameter in ANY_SIZE:
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    call.function(**{**call.arguments(), parameter: value})
            except (TypeError, ValueError, sp.DeviceError, OSError, MemoryError) as error:
                if not _clear(error, _parameters(name, call)):
                    faults.append(f"{parameter}={kind}: {type(error).__name__}: {error}")
            except Exception as error:
                faults.append(f"{parameter}={kind}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)


def _clear(error: Exception, arguments: list[str]) -> bool:
    """Whether the message reads ``argument: expected …, got …``; the system speaks of files."""
    before, found, after = str(error).partition(": expected ")
    named = re.findall(r"\w+", before)
    return isinstance(error, OSError) or bool(
        found and ", got " in after and {*named} & {*arguments, *OTHER_NAMES}
    )


def _masked(values: np.ndarray) -> Any:
    return np.ma.masked_array(values, np.arange(values.size).reshape(values.shape) == 0)


OBJECTIVE = sp.NetworkObjective(NET, nn.CrossEntropy(), X, Y, dtype="float64")
THETA = PARAMS.theta
LINE = np.ones(2)
# What has to be refused, not taken: the name that the message begins with, and the call.
REFUSED: dict[str, Callable[[], Any]] = {
    "ghost": lambda: norm.batch_norm(X, ghost=1.5),
    "ghost text": lambda: norm.batch_norm(X, ghost="2"),
    "ghost in evaluation": lambda: norm.batch_norm(
        X, running_mean=LINE, running_var=LINE, training=False, ghost=math.nan
    ),
    "renorm": lambda: norm.batch_norm(X, renorm=3),
    "noise.seed": lambda: norm.batch_norm(X, noise=norm.Noise("a")),
    "noise.scale": lambda: norm.batch_norm(X, noise=norm.Noise(0, scale=math.inf)),
    "negative_slope": lambda: norm.batch_norm(X, negative_slope="a"),
    "layout": lambda: norm.batch_norm(X, layout=[]),
    "decay_mask": lambda: optim.SGD([LINE.copy()], decay_mask="a"),
    "decay_mask of words": lambda: optim.SGD([LINE.copy()], decay_mask=["no"]),
    "check_finite": lambda: optim.SGD([LINE.copy()], check_finite="no"),
    "nesterov": lambda: optim.SGD([LINE.copy()], momentum=0.9, nesterov="no"),
    "copies": lambda: optim.SGD([LINE.copy()], copies="a"),
    "path": lambda: data.load(None),
    "path, not an open file": lambda: read_idx(True),
    "checkpoint": lambda: sp.fit(**_fit(), checkpoint=5),
    "metadata": lambda: data.write_safetensors("a", {"x": X}, {"epoch": 7}),
    "metadata as a list": lambda: data.write_safetensors("a", {"x": X}, ["epoch"]),
    "arrays": lambda: data.write_safetensors("a", {1: X}),
    "batch_size": lambda: sp.NetworkObjective(
        NET, nn.CrossEntropy(), X, Y, batch_size="x", dtype="float64"
    ),
    "memory_budget": lambda: sp.NetworkObjective(
        NET, nn.CrossEntropy(), X, Y, memory_budget=-1, dtype="float64"
    ),
    "state_dict": lambda: optim.SGD(1 * LINE).load_state_dict([]),
    "state_dict without names": lambda: optim.SGD(1 * LINE).load_state_dict({}),
    "state": lambda: optim.SGD(1 * LINE).load_state_dict({"state": {}, "param_groups": []}),
    "param_groups": lambda: optim.SGD(1 * LINE).load_state_dict({"state": [], "param_groups": [1]}),
    "params": lambda: optim.SGD("x"),
    "grads": lambda: optim.SGD([1 * LINE]).step(5),
    "bias": lambda: nn.Linear(2, 2, bias="no"),
    "affine": lambda: nn.BatchNorm(2, affine="no"),
    "weight_init": lambda: nn.Linear(2, 2, weight_init="x"),
    "weight_init of another shape": lambda: nn.Linear(2, 2, weight_init=lambda r, s: 1.0).init(0),
    "v": lambda: sp.hessian(SADDLE, LINE) @ [1.0, 2.0],
    "depth": lambda: Setting(depth="x"),
    "data": lambda: layer_output("x"),
    "rng": lambda: NET.init("x"),
    "rng of verify": lambda: sp.hessian(SADDLE, LINE).verify("x"),
    "rng of eigsh": lambda: sp.eigsh(np.eye(3), 1, rng="x"),
    "rng of random": lambda: vector.random(LINE, 1.5),
    "rng of Quadratic": lambda: surfaces.Quadratic([1.0], "x"),
    "rng of fit": lambda: sp.fit(**{**_fit(), "rng": "x"}),
}
MASKED: dict[str, Callable[[], Any]] = {
    "x": lambda: norm.batch_norm(_masked(X)),
    "x of statistics": lambda: norm.batch_norm_statistics(_masked(X)),
    "weight": lambda: norm.batch_norm(X, _masked(LINE)),
    "running_mean": lambda: norm.batch_norm(X, running_mean=_masked(LINE), running_var=1 * LINE),
    "residual": lambda: norm.batch_norm(X, residual=_masked(X)),
    "dy": lambda: norm.batch_norm_backward(_masked(X), _saved()),
    "mean": lambda: norm.batch_norm_apply(X, _masked(LINE), LINE),
    "params of SGD": lambda: optim.SGD(_masked(LINE)),
    "params of update": lambda: optim.SGD(1 * LINE).update(_masked(LINE), LINE),
    "grads": lambda: optim.SGD(LINE.copy()).step(_masked(LINE)),
    "x of dot": lambda: vector.dot(_masked(LINE), LINE),
    "y of dot": lambda: vector.dot(LINE, _masked(LINE)),
    "x of copy": lambda: vector.copy(_masked(LINE)),
    "x of gather": lambda: vector.gather(_masked(LINE)),
    "x of from_numpy": lambda: sp.Vector.from_numpy(_masked(LINE)),
    "x of NetworkObjective": lambda: sp.NetworkObjective(
        NET, nn.CrossEntropy(), _masked(X), Y, dtype="float64"
    ),
    "y": lambda: sp.NetworkObjective(NET, nn.CrossEntropy(), X, _masked(Y), dtype="float64"),
    "data": lambda: sp.fit(**{**_fit(), "data": (_masked(X), Y)}),
    "x of predict": lambda: training.predict(NET, PARAMS, _masked(X)),
    "params": lambda: sp.fit(**{**_fit(), "params": nn.Parameters(_masked(THETA), PARAMS.buffers)}),
    "theta": lambda: OBJECTIVE.gradient(_masked(THETA)),
    "theta of surfaces": lambda: SADDLE.loss(_masked(LINE)),
    "v": lambda: OBJECTIVE.linearize(THETA).hvp(_masked(THETA)),
    "v of hessian": lambda: sp.hessian(SADDLE, LINE) @ _masked(LINE),
    "H": lambda: sp.eigsh(_masked(np.eye(3)), 1),
    "direction": lambda: sp.escape(SADDLE, 0 * LINE, _masked(np.array([0.0, 1.0]))),
    "direction of line": lambda: landscape.line(SADDLE, LINE, _masked(LINE)),
    "d": lambda: landscape.plane(SADDLE, LINE, _masked(LINE), LINE, points=3),
    "eigenvalues": lambda: surfaces.Quadratic(_masked(LINE)),
    "x of surfaces": lambda: surfaces.SeparableLogistic(_masked(X), np.ones(8)),
    "data x": lambda: data.Dataset(_masked(X), Y, classes=2),
    "data y": lambda: data.Dataset(X, _masked(Y), classes=2),
    "arrays": lambda: data.write_safetensors("a", {"x": _masked(X)}),
    "outputs": lambda: training.accuracy(_masked(X), Y),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = re.split(r"[ ,]", what)[0]
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*, got "):
        REFUSED[what]()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", MASKED)
def test_a_mask_is_not_lost(what: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=rf"{what.split()[0]}.*without a mask \(x\.filled\(…\)\)"):
        MASKED[what]()


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_matrix_counts_as_the_array_it_is() -> None:
    matrix = np.asmatrix(X)
    assert np.array_equal(norm.batch_norm(matrix)[0], norm.batch_norm(X)[0])
    asked = NET, nn.CrossEntropy(), matrix, Y
    objective = sp.NetworkObjective(*asked, dtype="float64")
    assert objective.loss(THETA) == OBJECTIVE.loss(THETA)
