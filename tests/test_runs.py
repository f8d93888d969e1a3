"""Runs as folders: what is written, what is read back, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import saddlepoint as sp
from saddlepoint import runs
from saddlepoint.data import read_safetensors, write_safetensors
from saddlepoint.runs import Config, Run, load_run, train

SMALL = Config(layers=(64, 8, 10), epochs=3, batch_size=128)


@pytest.fixture(scope="module")
def run() -> Run:
    return train(SMALL, show_progress=False)


def assert_same(a: Run, b: Run) -> None:
    assert a.config == b.config
    assert (a.stopped, a.test_accuracy) == (b.stopped, b.test_accuracy)
    assert_array_equal(a.params.theta, b.params.theta)
    assert_array_equal(a.params.buffers, b.params.buffers)
    for name, series in vars(a.history).items():
        if name != "seconds":
            assert_array_equal(series, getattr(b.history, name))


def test_a_run_survives_its_folder(run: Run, tmp_path: Path) -> None:
    assert_same(load_run(run.save(tmp_path / "run")), run)


def test_a_run_goes_on_from_its_folder(run: Run, tmp_path: Path) -> None:
    more = replace(SMALL, epochs=5)
    again = train(more, False, tmp_path / "run", resume=load_run(run.save(tmp_path / "half")))
    assert_same(again, train(more, show_progress=False))
    assert_same(load_run(tmp_path / "run"), again)


def test_only_the_epochs_of_a_run_that_goes_on_may_be_others(run: Run) -> None:
    with pytest.raises(ValueError, match=r"lr: expected 0\.001 as before, got 0\.1"):
        train(replace(SMALL, lr=0.1, epochs=4), resume=run)


def test_a_run_is_saved_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Run] = []
    save = Run.save

    def watched(self: Run, *args: Any, **more: Any) -> Path:
        path = save(self, *args, **more)
        saved.append(load_run(path))
        return path

    monkeypatch.setattr(Run, "save", watched)
    done = train(SMALL, False, tmp_path / "run", checkpoint_every=0)
    assert [run.stopped for run in saved] == [*["unfinished"] * 3, "finished"]
    assert_same(saved[-1], done)
    for run in saved:
        assert_same(train(SMALL, False, resume=run), done)


def test_nothing_is_trained_for_a_folder_that_cannot_be_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run.save(tmp_path / "run")
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(runs, "fit", never)
    monkeypatch.setattr(Config, "load_data", never)
    with pytest.raises(FileExistsError, match="leave to overwrite"):
        train(SMALL, out=path)
    with pytest.raises(NotADirectoryError, match="expected a folder, got a file"):
        train(SMALL, out=path / "config.json")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="safetensors is not installed"):
        train(SMALL, out=tmp_path / "new")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_folder_that_came_meanwhile_is_left_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Config.load_data

    def slow(self: Config) -> Any:
        run.save(tmp_path / "run")
        return read(self)

    monkeypatch.setattr(Config, "load_data", slow)
    with pytest.raises(FileExistsError, match="leave to overwrite"):
        train(replace(SMALL, epochs=10**9), False, tmp_path / "run")  # before the work
    assert_same(load_run(tmp_path / "run"), run)


def test_files_that_come_while_a_run_is_trained_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, score = tmp_path / "run", runs.accuracy

    def noting(*args: Any) -> float:
        (path / "notes.txt").write_text("mine") if path.exists() else None
        return score(*args)

    monkeypatch.setattr(runs, "accuracy", noting)
    done = train(SMALL, False, path, checkpoint_every=0)
    assert (path / "notes.txt").read_text() == "mine"
    assert_same(load_run(path), done)


def test_a_run_whose_folder_is_lost_is_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path, score = tmp_path / "run", runs.accuracy

    def losing(*args: Any) -> float:
        if path.is_dir():
            shutil.rmtree(path)
            path.write_text("a file")
        return score(*args)

    monkeypatch.setattr(runs, "accuracy", losing)
    with (
        pytest.warns(UserWarning, match="expected a folder, got a file; training goes on"),
        pytest.raises(OSError, match=r"run: expected to save the run, which is in .*got ") as told,
    ):
        train(SMALL, False, path, checkpoint_every=0)
    (kept,) = tmp_path.glob("saddlepoint-run-*")
    assert str(kept) in str(told.value)
    assert_same(load_run(kept), train(SMALL, False))


@pytest.mark.parametrize("name", ["lr", "momentum"])
def test_a_number_beyond_floats_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a number from 0, got 1000"):
        Config(**{"optimizer": "sgd", name: 10**400})


def test_other_rows_under_the_same_name_are_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = np.column_stack([rng.standard_normal((40, 2)), np.arange(40) % 2])
    path = tmp_path / "a.csv"
    np.savetxt(path, table, delimiter=",", fmt=["%.6f", "%.6f", "%d"])
    config = Config(data=str(path), layers=(2, 4, 2), epochs=1)
    saved = load_run(train(config, False).save(tmp_path / "run"))
    train(replace(config, epochs=2), False, resume=saved)
    runs.analyze(saved)
    table[7, 0] += 1.0
    np.savetxt(path, table, delimiter=",", fmt=["%.6f", "%.6f", "%d"])
    with pytest.raises(ValueError, match=r"a\.csv: expected the training rows of before .* others"):
        train(replace(config, epochs=2), False, resume=saved)
    with pytest.raises(ValueError, match=r"a\.csv: expected the training rows of before .* others"):
        runs.analyze(saved)
    runs.analyze(replace(saved, data=None))  # a run of before there was a digest


def test_overwriting_leaves_nothing_of_the_older_run(run: Run, tmp_path: Path) -> None:
    path = run.save(tmp_path / "run")
    (path / "index.html").write_text("the page of the older run")
    other = replace(run, config=replace(SMALL, seed=9), state=None)
    with pytest.raises(FileExistsError, match="leave to overwrite"):
        other.save(path)
    other.save(path, overwrite=True)
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        "history.json",
        "parameters.safetensors",
    ]
    assert load_run(path).config.seed == 9


def test_files_of_two_runs_do_not_pass_for_one(run: Run, tmp_path: Path) -> None:
    one = run.save(tmp_path / "one")
    two = train(replace(SMALL, seed=1), False).save(tmp_path / "two")
    for name in sorted(file.name for file in one.iterdir()):
        kept = (one / name).read_bytes()
        (one / name).write_bytes((two / name).read_bytes())
        with pytest.raises(sp.FileFormatError, match="files that were written together"):
            load_run(one)
        (one / name).write_bytes(kept)
    load_run(one)


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((40, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2)
    np.savez(tmp_path / "b.npz", x=x[:9], y=np.arange(9) % 2)
    monkeypatch.chdir(tmp_path)
    config = Config(data="a.npz", test="b.npz", layers=(3, 2), epochs=1)
    train(config, False, "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["data"], saved["test"]) == (str(tmp_path / "a.npz"), str(tmp_path / "b.npz"))
    monkeypatch.chdir("/")
    assert len(load_run(tmp_path / "run").config.load_data().x) == 40


def test_json_without_a_test_part_is_strict(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.eye(4), y=np.arange(4) % 2)
    done = train(Config(data=str(tmp_path / "a.npz"), layers=(4, 2), epochs=2), False)
    path = done.save(tmp_path / "run")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for file in path.glob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)
    again = load_run(path)
    assert math.isnan(again.test_accuracy)
    assert_array_equal(again.history.validation_loss, [np.nan, np.nan])


def test_runs_of_the_first_version_are_read(run: Run, tmp_path: Path) -> None:
    """As they were written: no version, no digest, none of the options of a CSV, and a bare NaN."""
    path = run.save(tmp_path / "run")
    arrays = read_safetensors(path / "parameters.safetensors")
    write_safetensors(path / "parameters.safetensors", arrays, {"format": "saddlepoint"})
    for name in ("state.json", "state.safetensors"):
        (path / name).unlink()
    config = json.loads((path / "config.json").read_text())
    for name in ("version", "label", "header", "index", "separator", "test", "max_bytes"):
        del config[name]
    (path / "config.json").write_text(json.dumps(config))
    history = json.loads((path / "history.json").read_text())
    history["test_accuracy"] = math.nan
    (path / "history.json").write_text(json.dumps(history))
    assert "NaN" in (path / "history.json").read_text()
    again = load_run(path)
    assert again.config == run.config
    assert again.state is None
    assert math.isnan(again.test_accuracy)
    assert_array_equal(again.params.theta, run.params.theta)


def edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        saved = json.loads((path / name).read_text())
        for key, value in changes.items():
            saved.pop(key) if value is ... else saved.update({key: value})
        (path / name).write_text(json.dumps(saved))

    return edit


def parameters(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        arrays = read_safetensors(path / "parameters.safetensors")
        change(arrays)
        write_safetensors(path / "parameters.safetensors", arrays)

    return edit


def flip_last_bit(path: Path) -> None:
    file = path / "parameters.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a later version": (edited("config.json", version=2), "run: expected version 1, got 2"),
    "a field missing": (edited("config.json", lr=...), r"config\.json: .* got 'lr' missing"),
    "a field of none": (edited("config.json", speed=9), r"config\.json: .* got 'speed' missing or"),
    "half an epoch": (edited("config.json", epochs=1.5), r"config\.json: epochs: expected an int"),
    "a rate of words": (edited("config.json", lr="fast"), r"config\.json: lr: expected a float"),
    "layers of none": (edited("config.json", layers=[64, -8, 10]), r"config\.json: layers: exp"),
    "an enormous network": (
        edited("config.json", layers=[64, 10**9, 10**9, 10]),
        r"parameters\.safetensors: expected \d+ numbers for layers",
    ),
    "histories that differ": (
        edited("history.json", loss=[0.5]),
        r"history\.json: step, .* expected equal lengths",
    ),
    "another end": (edited("history.json", stopped="tired"), r"history\.json: stopped: expected"),
    "a share above one": (edited("history.json", test_accuracy=1.5), "test_accuracy: expected a"),
    "a state of words": (edited("state.json", epochs="two"), r"state\.json: epochs: expected an"),
    "no such generator": (
        edited("state.json", generator={"bit_generator": "seed"}),
        r"state\.json: generator: expected the state of a generator",
    ),
    "not finite": (
        parameters(lambda arrays: arrays["0.weight"].fill(np.nan)),
        r"parameters\.safetensors: expected finite 0\.weight, as training finished",
    ),
    "one bit": (flip_last_bit, "files that were written together"),
    "no digest": (parameters(lambda arrays: None), "files that were written together"),
    "an array too many": (
        parameters(lambda arrays: arrays.update(w=np.ones(1, np.float32))),
        r"parameters\.safetensors: expected \d+ numbers for layers",
    ),
    "another name": (
        parameters(lambda arrays: arrays.update(w=arrays.pop("0.weight"))),
        r"parameters\.safetensors: expected 0\.weight of shape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_run_is_made_of_is_refused(case: str, run: Run, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    path = run.save(tmp_path / "run")
    change(path)
    with pytest.raises(sp.FileFormatError, match=message) as caught:
        load_run(path)
    assert str(path) in str(caught.value)


def test_a_diverged_run_is_kept_as_it_is(tmp_path: Path) -> None:
    config = replace(SMALL, optimizer="sgd", lr=1e30, batch_norm=False)
    done = train(config, False, tmp_path / "run")
    assert done.stopped == "diverged"
    assert_same(load_run(tmp_path / "run"), done)
    with pytest.raises(ValueError, match="resume: expected a training that can go on"):
        train(config, False, resume=load_run(tmp_path / "run"))


@pytest.mark.parametrize(
    ("fields_", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs: expected at least 1, got 0"),
        ({"epochs": True}, TypeError, "epochs: expected an int, got bool"),
        ({"batch_norm": 1}, TypeError, "batch_norm: expected a bool, got int"),
        ({"lr": math.inf}, ValueError, "lr: expected a number from 0"),
        ({"seed": -1}, ValueError, "seed: expected at least 0"),
        ({"layers": "64"}, TypeError, "layers: expected integers, got str"),
        ({"layers": (64, 10.0)}, TypeError, "layers: expected an int, got float"),
        ({"separator": "abc"}, ValueError, "separator: expected one character"),
        ({"test": 2.0}, ValueError, "test: expected a number from 0"),
    ],
)
def test_configurations_are_checked(
    fields_: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Config(**fields_)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "identity"])
def test_a_built_network_starts_with_the_variance_of_its_activation(activation: str) -> None:
    net = runs.build_network((400, 100, 300), activation)
    first, last = (w for w in net.unflatten(net.init(0).theta).values() if w.ndim == 2)
    wanted = 2 / 400 if activation == "relu" else 2 / (400 + 100)  # He et al.; Glorot & Bengio
    # A variance of N normal numbers deviates by √(2/N) of itself: five times that.
    assert first.var() == pytest.approx(wanted, rel=5 * math.sqrt(2 / first.size))
    assert last.var() == pytest.approx(2 / (100 + 300), rel=5 * math.sqrt(2 / last.size))


def test_digits_take_no_options() -> None:
    assert {f.name for f in fields(Config)} >= {"label", "test"}
    with pytest.raises(ValueError, match="label: expected none for digits, got 0"):
        Config(label=0).load_data()


def test_an_analysis_takes_a_stated_random_subset_in_float64(tmp_path: Path) -> None:
    """Sorted by class, as files often are: the first rows would show one class alone."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 3)).astype(np.float32), np.repeat([0, 1], 100)
    np.savez(tmp_path / "sorted.npz", x=x, y=y)
    config = Config(data=str(tmp_path / "sorted.npz"), layers=(3, 2), epochs=1, batch_norm=False)
    done = train(config, False)
    found = runs.analyze(done, samples=50, seed=3)
    rows = np.sort(np.random.default_rng(3).choice(200, 50, replace=False))
    assert {*y[rows].tolist()} == {0, 1}
    # softmax cross-entropy of a linear layer, in NumPy
    theta = done.params.theta.astype(np.float64)
    outputs = x[rows].astype(np.float64) @ theta[:6].reshape(2, 3).T + theta[6:]
    wanted = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(50), y[rows]]
    assert found.point is not None
    np.testing.assert_allclose(found.point.loss, wanted.mean(), rtol=1e-14)
    assert found.objective.dtype == np.float64
    assert_array_equal(found.theta, theta)
    assert (found.samples, found.rows, found.seed) == (50, 200, 3)
    assert "50 of 200, drawn with seed 3" in str(found)
    assert runs.analyze(done, samples=50, seed=4).point.loss != found.point.loss
    assert runs.analyze(done, samples=200).sample == "all 200"
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        runs.analyze(done, seed=-1)
