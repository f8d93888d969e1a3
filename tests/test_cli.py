"""The command line, as a user types it: results, files, and one message with exit code 2."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import saddlepoint as sp
from browser import Browser
from saddlepoint.runs import Config, Run, analyze, load_run, train


def saddlepoint(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "saddlepoint", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", **env},
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


@pytest.mark.slow
def test_train_writes_what_analyze_reads(run_folder: Path) -> None:
    assert sorted(p.name for p in run_folder.iterdir()) == [
        "config.json",
        "history.json",
        "parameters.safetensors",
        "state.json",
        "state.safetensors",
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


def test_the_command_is_the_call(run_folder: Path, tmp_path: Path) -> None:
    loaded = load_run(run_folder)
    again = train(loaded.config)
    np.testing.assert_array_equal(again.params.theta, loaded.params.theta)
    np.testing.assert_array_equal(again.params.buffers, loaded.params.buffers)
    np.testing.assert_array_equal(again.history.loss, loaded.history.loss)
    found = analyze(loaded, samples=40, seed=2)
    assert found.samples == 40
    assert found.point.exact
    asked = ("analyze", str(run_folder), "--samples", "40", "--seed", "2", "--out", "page")
    done = saddlepoint(*asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert found.reason in done.stdout
    assert "Training rows: 40 of 80, drawn with seed 2." in done.stdout
    page = (tmp_path / "page" / "index.html").read_text()
    assert "40 of 80, drawn with seed 2" in page
    assert "saddlepoint analyze RUN --samples 40 --seed 2" in page


@pytest.mark.slow
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
        assert done.stdout.splitlines()[-1] == "no test part"
        assert "nan" not in done.stdout
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
    "a label of no file": (["--label", "0"], "label: expected none for digits, got 0"),
    "a share of everything": (["--data", "words.csv", "--test", "1"], "test: expected a share"),
    "a file as its folder": (["--out", "words.csv"], "words.csv: expected a folder, got a file"),
    "a folder in a file": (["--out", "words.csv/run"], "words.csv: expected a folder, got a file"),
    "no such run": (["--resume", "nowhere"], "nowhere: expected a run folder, got nothing there"),
    "an option of another run": (
        ["--resume", "nowhere", "--lr", "1"],
        "--lr: expected none beside --resume, got 1.0",
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
    done = saddlepoint("train", "--out", "run", *options, cwd=tmp_path)
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
    with pytest.raises(sp.FileFormatError, match=r"43 numbers for layers \(3, 4, 2\)"):
        load_run(tmp_path / "other")


def test_a_csv_says_what_was_guessed(tmp_path: Path) -> None:
    lines = [f"{i};{i * 7 % 40};{'red' if i % 2 else 'green'}" for i in range(40)]
    (tmp_path / "table.csv").write_text("\n".join([";a;label", *lines]))
    options = ["--data", "table.csv", "--layers", "1,2", "--epochs", "1", "--test", "0.25"]
    done = saddlepoint("train", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data: the first line is a header" in done.stdout
    assert "data: 10 rows, drawn at random, are the test part" in done.stdout
    assert "test accuracy" in done.stdout
    config = load_run(tmp_path / "run").config
    assert config.test == 0.25
    told = [
        "--label",
        "-1",
        "--header",
        "--index",
        "0",
        "--separator",
        ";",
        "--layers",
        "1,2",
        "--epochs",
        "1",
        "--out",
        "told",
    ]
    done = saddlepoint("train", "--data", "table.csv", *told, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data:" not in done.stdout
    assert load_run(tmp_path / "told").config.index == 0
    kept = saddlepoint(
        "train", "--data", "table.csv", "--index", "none", "--layers", "2,2", "--epochs", "1",
        "--out", "kept", cwd=tmp_path,
    )  # fmt: skip
    assert kept.returncode == 0, kept.stderr


def test_a_doubt_is_told(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("1,2,0\n3,1,0\n")
    options = ["--data", "one.csv", "--layers", "2,2", "--epochs", "1"]
    done = saddlepoint("train", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert "one.csv: all 2 labels are 0" in done.stderr


def test_the_defaults_are_those_of_the_configuration(tmp_path: Path) -> None:
    done = saddlepoint("train", "--epochs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "run").config == Config(epochs=1)
    shown = saddlepoint("train", "--help", cwd=tmp_path).stdout
    for value in ("64,64,32,10", "adam", "0.001", "20", "True"):
        assert f"({value})" in shown


def test_a_run_is_not_written_over_unless_asked(run_folder: Path, tmp_path: Path) -> None:
    options = ("train", "--epochs", "1", "--out", "run")
    assert saddlepoint(*options, "--seed", "1", cwd=tmp_path).returncode == 0
    before = (tmp_path / "run" / "history.json").read_bytes()
    done = saddlepoint(*options, "--seed", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "leave to overwrite" in done.stderr
    assert (tmp_path / "run" / "history.json").read_bytes() == before
    assert saddlepoint(*options, "--seed", "2", "--overwrite", cwd=tmp_path).returncode == 0
    assert load_run(tmp_path / "run").config.seed == 2


def test_a_diverged_run_ends_with_1(tmp_path: Path) -> None:
    options = ["--optimizer", "sgd", "--lr", "1e30", "--no-batch-norm", "--epochs", "2"]
    done = saddlepoint("train", *options, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "training diverged after" in done.stdout
    assert load_run(tmp_path / "run").stopped == "diverged"


ENDLESS = [
    "train",
    "--epochs",
    "1000000",
    "--layers",
    "64,8,10",
    "--batch-size",
    "256",
    "--checkpoint-every",
    "0",
]


def endless(*options: str, cwd: Path) -> subprocess.Popen[str]:
    """A training that is at work: it has taken its folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "saddlepoint", *options],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    began = time.monotonic()
    while not (cwd / "run").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "stopped"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_save_what_there_is(
    number: signal.Signals, code: int, stopped: str, tmp_path: Path
) -> None:
    process = endless(*ENDLESS, cwd=tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"training {stopped} after" in out
    run = load_run(tmp_path / "run")
    assert run.stopped == stopped
    assert f"after {len(run.history.loss)} updates" in out
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_killed_at_any_time_a_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    killed = endless(*ENDLESS, cwd=tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(3):
        time.sleep(0.3 * rng.random())
        killed.kill()
        killed.communicate()
        before = load_run(tmp_path / "run")
        assert before.stopped == "unfinished"
        more = ("train", "--resume", "run", "--checkpoint-every", "0")
        killed = subprocess.Popen(
            [sys.executable, "-m", "saddlepoint", *more],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        began = time.monotonic()
        while len(load_run(tmp_path / "run").history.seconds) == len(before.history.seconds):
            assert killed.poll() is None, killed.communicate()
            assert time.monotonic() - began < 60
            time.sleep(0.01)
    killed.kill()
    killed.communicate()
    epochs = len(load_run(tmp_path / "run").history.seconds) + 2
    done = saddlepoint("train", "--resume", "run", "--epochs", str(epochs), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no drafts are left
    found = load_run(tmp_path / "run")
    whole = train(found.config, show_progress=False)
    np.testing.assert_array_equal(found.params.theta, whole.params.theta)
    np.testing.assert_array_equal(found.params.buffers, whole.params.buffers)
    np.testing.assert_array_equal(found.history.loss, whole.history.loss)


def test_a_path_that_is_no_text(blobs: Path, tmp_path: Path) -> None:
    """Data of such a name are refused, since JSON has no word for it; a run may be kept there."""
    odd = os.fsdecode(b"\xff.npz")
    shutil.copy(blobs, tmp_path / odd)
    asked = ("train", "--layers", "3,4,2", "--epochs", "1", "--data")
    for given, name in (((odd,), "data"), ((str(blobs), "--test", odd), "test")):
        done = saddlepoint(*asked, *given, cwd=tmp_path)
        assert done.returncode == 2
        assert f"{name}: expected a path in UTF-8 (rename it, or link to it), got" in done.stderr
        assert not (tmp_path / "run").exists()
    os.symlink(tmp_path / odd, tmp_path / "é.npz")
    assert saddlepoint(*asked, "é.npz", "--out", odd + "r", cwd=tmp_path).returncode == 0
    assert saddlepoint("analyze", odd + "r", cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_analyze_leaves_pages_and_runs_of_others(run_folder: Path, tmp_path: Path) -> None:
    """A page of ours is replaced; somebody's page, and the page of another run, are not."""
    other, page = tmp_path / "other", tmp_path / "page"
    shutil.copytree(run_folder, other)
    page.mkdir()
    (page / "index.html").write_text("mine")
    for out, got in ((page, "an index.html of others"), (other, "another run (config.json)")):
        before = {p.name: p.read_bytes() for p in out.iterdir()}
        done = saddlepoint("analyze", str(run_folder), "--out", str(out), cwd=tmp_path)
        assert done.returncode == 2
        assert got in done.stderr
        assert "--overwrite" in done.stderr
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
        asked = ("analyze", str(run_folder), "--out", str(out))
        assert saddlepoint(*asked, "--overwrite", cwd=tmp_path).returncode == 0
        kept = {name: text for name, text in before.items() if name != "index.html"}
        assert {p.name: p.read_bytes() for p in out.iterdir() if p.name in kept} == kept
    assert saddlepoint("analyze", str(run_folder), "--out", "page", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "saddlepoint: nowhere: expected a run folder, got nothing there"),
        (["file"], "saddlepoint: file: expected a run folder, got a file"),
        (["empty"], "saddlepoint: empty: expected a run folder, got one without history.json"),
        (["run", "--max-products", "0"], "max_products: expected at least 1, got 0"),
        (["run", "--out", "file"], "file: expected a folder, got a file"),
    ],
)
def test_what_cannot_be_analyzed_is_said_at_once(
    arguments: list[str], message: str, run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").symlink_to(run_folder)
    done = saddlepoint("analyze", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Where training ended" not in done.stdout


@pytest.mark.parametrize("command", [("analyze", "run"), ("demo",)])
def test_a_report_that_cannot_be_made_is_told_before_the_work(
    command: tuple[str, ...], run_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "plotly.py").write_text("raise ImportError('not here')")
    (tmp_path / "run").symlink_to(run_folder)
    done = saddlepoint(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "the report needs plotly: pip install 'saddlepoint[report]'" in done.stderr
    assert done.stdout == ""


def test_a_terminal_without_greek_shows_question_marks(run_folder: Path, tmp_path: Path) -> None:
    done = saddlepoint(
        "analyze", str(run_folder), "--out", "page", cwd=tmp_path, PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    assert "?_min" in done.stdout  # λ


def test_version(tmp_path: Path) -> None:
    done = saddlepoint("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"saddlepoint {sp.__version__}\n")


def test_info_names_what_it_runs_on(tmp_path: Path) -> None:
    done = saddlepoint("info", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("version", "instruction set", "threads", "OpenBLAS", "CUDA build"):
        assert name in done.stdout
    assert str(sp.info()["version"]) == sp.__version__


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    done = saddlepoint("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"test accuracy (\d+\.\d+) %", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 95.0
    assert done.stdout.count("It hangs at loss") == 4  # one a singular value
    page = tmp_path / "saddlepoint-report" / "index.html"
    spent = re.search(r"After (\d+) gradient evaluations", done.stdout)
    assert spent is not None
    with Browser() as browser:
        browser.open(page)
        assert [m for m in browser.console if "willReadFrequently" not in m] == []
        cells = browser.evaluate(
            "[...document.querySelectorAll('tr')].map(r => [...r.cells].map(c => c.textContent))"
        )
        assert ["gradient evaluations, both", spent[1]] in cells
        drawn = browser.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')]"
            ".filter(p => p.querySelector('svg.main-svg')).length"
        )
        assert drawn == 5
        assert [r for r in browser.requests if not r.startswith("file:")] == []


@pytest.mark.slow
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


def test_a_command_is_a_file() -> None:
    from saddlepoint.cli.app import COMMANDS

    places = [(command.__module__, command.__name__) for command in COMMANDS]
    assert places == [(f"saddlepoint.cli.{name}", name) for _, name in places]


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_command_line_says_how_to_get_it(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from saddlepoint.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'saddlepoint[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
