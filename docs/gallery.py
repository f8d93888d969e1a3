"""The figures of the lectures on batch normalization, in full: 74 seconds on one core.

    python docs/gallery.py --data PATH [--out DIR]

PATH is a folder with MNIST's files, or another data set that `saddlepoint.data.load` reads. Each
figure is a function of `saddlepoint.studies`, which returns the numbers behind it; the means and
medians that the claims rest on are printed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

# The networks are small: a second thread is mostly waited for. NumPy reads this when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import matplotlib
import numpy as np

import saddlepoint as sp
from saddlepoint.data import Dataset, load
from saddlepoint.studies import batch_norm as study

# The deep one, where the plain network trains at a rate of 0.1 and diverges at 0.5.
DEEP = study.Setting(depth=15, width=100)
SHALLOW = study.Setting(depth=5, width=100)


def layer_output(data: Dataset) -> tuple[Any, str]:
    """S1.17: mean β and deviation γ, whatever comes in."""
    result = study.layer_output(data)
    return result, (
        f"gradient off by {result.gradient_error:.0e}, with constant statistics "
        f"{result.constant_statistics_error:.0e}; a row moves with its companions by "
        f"{result.companions_training:.2f} in training, {result.companions_evaluation:g} after"
    )


def learning_curves(data: Dataset) -> tuple[Any, str]:
    """S1.18, Figure 6.3: rates 0.1 and 0.5, with and without."""
    result = study.learning_curves(data, (0.1, 0.5), epochs=5, setting=DEEP)
    lines = []
    for run in result.runs:
        ended = "diverged" if run.diverged else f"accuracy {run.accuracy[-1]:.2%}"
        lines.append(f"{run.name} at {run.lr:g}: {ended}")
    return result, "; ".join(lines)


def hypotheses(data: Dataset) -> tuple[Any, str]:
    """S1.19: a number for each of the reasons given."""
    result = study.hypotheses(data, epochs=2, setting=DEEP)
    return result, _pairs(
        result, "active_units", "drift", "largest_eigenvalue", "stale_accuracy", "batch_noise"
    )


def activation_history(data: Dataset) -> tuple[Any, str]:
    """S1.20, Figure 6.4: what a unit receives, by layer and time."""
    result = study.activation_history(data, epochs=2, setting=DEEP)
    drift = result.drift.mean(axis=(1, 2))
    return result, f"mean drift {drift[0]:.3f} plain, {drift[1]:.3f} batch norm"


@lru_cache(maxsize=1)
def _noisy(data: Dataset) -> study.NoisyTraining:
    """Trained once for two figures."""
    return study.noisy_training(data, epochs=3, setting=SHALLOW)


def noisy_training(data: Dataset) -> tuple[Any, str]:
    """S1.21, both Figures 6.5: noise that undoes the normalization, and training all the same."""
    result = _noisy(data)
    late = result.activations.drift[:, :, 4:].mean(axis=(1, 2))
    lines = [
        f"{name}: accuracy {result.test_accuracy[k]:.2%}, late drift {late[k]:.3f}"
        for k, name in enumerate(result.names)
    ]
    return result, "; ".join(lines)


def noisy_activations(data: Dataset) -> tuple[Any, str]:
    """S1.21, the first Figure 6.5: the histograms of the noisy network."""
    result = _noisy(data).activations
    return result, _joined("mean drift", result.drift.mean(axis=(1, 2)), result.names)


def step_landscape(data: Dataset) -> tuple[Any, str]:
    """S1.22: the loss range, the gradient's change and β along single steps, and gᵀHg/gᵀg."""
    result = study.step_landscape(data, steps=600, every=10, setting=DEEP)
    return result, _medians(result)


def step_landscape_linear(data: Dataset) -> tuple[Any, str]:
    """S1.22 for a deep linear network of 25 layers, as in Santurkar et al."""
    linear = study.nn.Identity()
    setting = study.Setting(25, 10, linear, study.nn.init.xavier_normal)
    result = study.step_landscape(data, lr=0.01, steps=600, every=10, setting=setting)
    return result, _medians(result)


FIGURES: dict[str, Callable[[Dataset], tuple[Any, str]]] = {
    f.__name__: f
    for f in (
        layer_output,
        learning_curves,
        hypotheses,
        activation_history,
        noisy_training,
        noisy_activations,
        step_landscape,
        step_landscape_linear,
    )
}


def _joined(what: str, values: Any, names: tuple[str, ...]) -> str:
    shown = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values, strict=True))
    return f"{what} {shown}"


def _pairs(result: Any, *fields: str) -> str:
    named = ((f.replace("_", " "), getattr(result, f)) for f in fields)
    return "; ".join(_joined(name, values, result.names) for name, values in named)


def _medians(result: study.StepLandscape) -> str:
    columns = {
        "range of the loss": result.loss_high - result.loss_low,
        "change of the gradient": result.change_high,
        "smoothness": result.smoothness,
        "gᵀHg/gᵀg": result.curvature,
    }
    medians = (_joined(n, np.nanmedian(v, axis=1), result.names) for n, v in columns.items())
    return "medians: " + "; ".join(medians)


def main() -> None:
    """Make the figures, one PNG each."""
    parser = argparse.ArgumentParser(description="The figures on batch normalization, in full.")
    parser.add_argument("--data", type=Path, required=True, help="folder of IDX files, NPZ or CSV")
    parser.add_argument("--out", type=Path, default=Path("gallery"), help="folder for the PNGs")
    chosen = parser.parse_args()
    matplotlib.use("Agg")
    sp.set_num_threads(1)
    data = load(chosen.data)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, make in FIGURES.items():
        began = time.perf_counter()
        result, numbers = make(data)
        figure = result.plot()
        figure.savefig(chosen.out / f"{name}.png", dpi=120)
        matplotlib.pyplot.close(figure)
        print(f"{name} ({time.perf_counter() - began:.0f} s): {numbers}", flush=True)


if __name__ == "__main__":
    main()
