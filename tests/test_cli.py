"""The command line, as a user types it: results, files, and one message with exit code 2."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import saddlepoint as sp
from browser import Browser
from saddlepoint.runs import Config, Run, analyze, load_run, train


def saddlepoint(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "saddlepoint", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two well separated clusters, with a test part."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = rng.standard_normal((120, 3)) + 4.0 * y[:, None]
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, x=x[:80], y=y[:80], x_test=x[80:], y_test=y[80:])
    return path


@pytest.fixture(scope="module")
def run_folder(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    options = "--layers 3,4,2 --batch-norm --optimizer adamw --lr 0.05 --epochs 4 --batch-size 16"
    done = saddlepoint("train", "--data", str(blobs), *options.split(), "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "test accuracy 100.00 %"
    return folder / "run"


def test_train_writes_what_analyze_reads(run_folder: Path) -> None:
    assert sorted(p.name for p in run_folder.iterdir()) == [
        "config.json",
        "history.json",
        "parameters.safetensors",
    ]
    history = json.loads((run_folder / "history.json").read_text())
    assert len(history["step"]) == 4 * 5
    arrays = sp.data.read_safetensors(run_folder / "parameters.safetensors")
    assert arrays["0.weight"].shape == (4, 3)
    done = saddlepoint("analyze", str(run_folder), "--out", "page", cwd=run_folder.parent)
    assert done.returncode == 0, done.stderr
    assert "Where training ended:" in done.stdout
    assert "λ_min" in done.stdout
    assert (run_folder.parent / "page" / "index.html").stat().st_size > 100_000


def test_the_command_is_the_call(run_folder: Path) -> None:
    loaded = load_run(run_folder)
    again = train(loaded.config)
    np.testing.assert_array_equal(again.params.theta, loaded.params.theta)
    np.testing.assert_array_equal(again.params.buffers, loaded.params.buffers)
    np.testing.assert_array_equal(again.history.loss, loaded.history.loss)
    found = analyze(loaded, samples=40)
    assert found.samples == 40
    assert found.point.exact


def test_regression_and_images_and_csv(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, 2))
    np.savez(tmp_path / "lines.npz", x=x, y=x @ np.array([[1.0], [2.0]]))
    lines = "\n".join(f"{a:.6f},{b:.6f},{int(a > b)}" for a, b in x)
    (tmp_path / "table.csv").write_text(f"a,b,label\n{lines}\n")
    images = rng.integers(0, 255, (20, 4, 4), np.uint8)
    (tmp_path / "idx").mkdir()
    for name, array in (("images-idx3", images), ("labels-idx1", images[:, 0, 0] % 3)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
        file = tmp_path / "idx" / f"train-{name}-ubyte.gz"
        file.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    for data, layers in (("lines.npz", "2,3,1"), ("table.csv", "2,3,2"), ("idx", "16,3,3")):
        done = saddlepoint(
            "train", "--data", data, "--layers", layers, "--epochs", "1", "--out", f"{data}.run",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "test accuracy" not in done.stdout  # there is no test part
        done = saddlepoint("analyze", f"{data}.run", cwd=tmp_path)
        assert done.returncode == 0, done.stderr


BAD = {
    "no such file": (["--data", "nowhere.npz"], "nowhere.npz"),
    "a damaged file": (["--data", "damaged.npz"], "damaged.npz: expected"),
    "a pickle within": (["--data", "pickle.npz"], "pickle.npz"),
    "not a number": (["--data", "words.csv"], "words.csv"),
    "an unknown option": (["--speed", "9"], "--speed"),
    "an unknown activation": (["--activation", "cosine"], "activation: expected one of"),
    "an unknown optimizer": (["--optimizer", "sgdx"], "optimizer: expected one of"),
    "layers that are no numbers": (["--layers", "64,b,10"], "layers: expected integers"),
    "too few layers": (["--layers", "64"], "layers: expected at least two"),
    "inputs that do not fit": (["--layers", "63,10"], "layers: expected 64 inputs"),
    "too few outputs": (["--layers", "64,9"], "layers: expected at least 10 outputs"),
    "no epochs": (["--epochs", "0"], "epochs: expected at least 1, got 0"),
    "a negative rate": (["--lr", "-1"], "lr: expected a number from 0"),
    "momentum of Adam": (["--momentum", "0.9"], "momentum: expected 0 unless"),
    "a batch of one under batch norm": (
        ["--batch-norm", "--batch-size", "1"],
        "batch_size: expected at least 2",
    ),
    "an unknown device": (["--device", "tpu"], "device: expected 'cpu' or 'cuda', got 'tpu'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(case: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and then nothing")
    np.savez(tmp_path / "pickle.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    (tmp_path / "words.csv").write_text("1,2,0\n1,two,1\n")
    before = sorted(tmp_path.iterdir())
    options, message = BAD[case]
    done = saddlepoint("train", *options, "--out", "run", cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before  # nothing half-written


def test_cuda_without_a_device_says_why(tmp_path: Path) -> None:
    done = saddlepoint("train", "--device", "cuda", "--out", "run", cwd=tmp_path)
    if done.returncode == 0:  # a machine with a GPU: then it must have trained there
        assert "test accuracy" in done.stdout
        return
    assert done.returncode == 2
    assert "device: " in done.stderr
    assert "CUDA" in done.stderr


DAMAGE = {
    "config.json": [b"", b"{", b"[]", b'{"data": "digits"}'],
    "history.json": [b"{}", b"\xff\xfe", b'{"step": "x"}'],
    "parameters.safetensors": [b"", b"\x00" * 8, b"not a tensor file at all"],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_runs_are_refused(name: str, run_folder: Path, tmp_path: Path) -> None:
    for damage in DAMAGE[name]:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        for file in run_folder.glob("*.*"):
            (folder / file.name).write_bytes(damage if file.name == name else file.read_bytes())
        done = saddlepoint("analyze", "run", cwd=tmp_path)
        assert done.returncode == 2, (damage, done.stdout)
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert not (folder / "index.html").exists()
    (folder / name).unlink()
    assert saddlepoint("analyze", "run", cwd=tmp_path).returncode == 2


def test_a_run_of_other_layers_is_refused(run_folder: Path, tmp_path: Path) -> None:
    loaded = load_run(run_folder)
    other = Config(**{**vars(loaded.config), "layers": (3, 5, 2)})
    loaded.save(tmp_path / "run")
    Run(other, other.network().init(0), loaded.history, "finished", 1.0).save(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_bytes((run_folder / "config.json").read_bytes())
    with pytest.raises(sp.FileFormatError, match=r"0\.weight of shape \(4, 3\)"):
        load_run(tmp_path / "other")


def test_info_names_what_it_runs_on(tmp_path: Path) -> None:
    done = saddlepoint("info", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("version", "instruction set", "threads", "OpenBLAS", "CUDA build"):
        assert name in done.stdout
    assert str(sp.info()["version"]) == sp.__version__


def test_demo(tmp_path: Path) -> None:
    done = saddlepoint("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"test accuracy (\d+\.\d+) %", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 95.0
    assert done.stdout.count("It hangs at loss") == 4  # one a singular value
    page = tmp_path / "saddlepoint-report" / "index.html"
    with Browser() as browser:
        browser.open(page)
        assert [m for m in browser.console if "willReadFrequently" not in m] == []
        drawn = browser.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')]"
            ".filter(p => p.querySelector('svg.main-svg')).length"
        )
        assert drawn == 5
        assert [r for r in browser.requests if not r.startswith("file:")] == []


def test_the_saddles_of_the_demo_are_those_of_theory() -> None:
    """Baldi & Hornik 1989: at a saddle the learned modes are gone from the loss, one by one."""
    from saddlepoint.demo import demo

    found = demo(show_progress=False)
    strengths, columns = np.array([4.0, 3.0, 2.0, 1.0]), 8
    for i, stage in enumerate(found.stages):
        # 1e-5: gradient descent stood still within 1e-3 of a gradient of the usual size
        assert stage.point.loss == pytest.approx((strengths[i:] ** 2).sum() / columns, rel=1e-5)
        assert stage.point.lambda_min == pytest.approx(-2.0 * strengths[i] / columns, rel=1e-3)
        # along the eigenvector L = const + (s - t²/2)²·(1/columns): a drop of half the model's
        assert stage.way.actual_drop == pytest.approx(strengths[i] ** 2 / columns, rel=1e-3)
        assert stage.way.predicted_drop == pytest.approx(2 * stage.way.actual_drop, rel=1e-3)
    assert found.escaped[-1, 1] < 1e-10 < found.descent[-1, 1]
