"""Files and folders that are whole or absent, whenever the writer is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from saddlepoint import store
from saddlepoint.store import (
    check_folder,
    check_writable,
    dump_json,
    settle,
    write_file,
    write_folder,
)

KNOWN = ("a", "b")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dead() -> int:
    """The id of a process that is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.fixture(params=["exchanged", "moved aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a folder is replaced: at once, or in the two renames of systems that cannot."""
    if request.param == "moved aside":
        monkeypatch.setattr(store, "_exchanged", lambda a, b: False)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_a_folder_is_made_with_its_parents_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    assert write_folder(path, {"a": b"1", "b": b"2"}, KNOWN) == path
    assert contents(path) == {"a": b"1", "b": b"2"}
    with pytest.raises(FileExistsError, match="leave to overwrite, got one with a"):
        write_folder(path, {"a": b"3"}, KNOWN)
    write_folder(path, {"a": b"3"}, KNOWN, overwrite=True)
    assert contents(path) == {"a": b"3"}  # nothing of the older one
    assert names(path.parent) == ["run"]
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", {"a": b"1"}, KNOWN)
    assert contents(tmp_path / "empty") == {"a": b"1"}


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "run", {"a": b"1"}, KNOWN)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"one that holds nothing else, got one with notes"):
        write_folder(path, {"a": b"2"}, KNOWN, overwrite=True)
    assert contents(path) == {"a": b"1", "notes.txt": b"mine"}
    assert names(tmp_path) == ["run"]


@pytest.mark.usefixtures("way")
def test_what_others_put_there_is_carried_over(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "run", {"a": b"1", "b": b"1"}, KNOWN)
    (path / "notes.txt").write_text("mine")
    (path / "logs").mkdir()
    (path / "link").symlink_to("nowhere")
    with (path / "logs" / "log").open("a") as log:
        write_folder(path, {"a": b"2"}, KNOWN, overwrite=True, keep_others=True)
        log.write("goes on")
    assert (path / "logs" / "log").read_text() == "goes on"
    assert names(path) == ["a", "link", "logs", "notes.txt"]
    assert ((path / "a").read_bytes(), (path / "notes.txt").read_text()) == (b"2", "mine")
    assert os.readlink(path / "link") == "nowhere"
    with pytest.raises(FileExistsError, match="leave to overwrite, got one with a"):
        write_folder(path, {"a": b"3"}, KNOWN, keep_others=True)
    assert names(tmp_path) == ["run"]


def test_what_comes_while_folders_are_exchanged_is_kept(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "run", {"a": b"1"}, KNOWN)
    exchanged = store._exchanged

    def late(a: Path, b: Path) -> bool:
        (path / "late").write_text(way)
        return exchanged(a, b)

    monkeypatch.setattr(store, "_exchanged", late)
    write_folder(path, {"a": b"2"}, KNOWN, overwrite=True)
    assert contents(path) == {"a": b"2", "late": way.encode()}


def test_a_folder_that_another_moved_away_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_exchanged", lambda a, b: False)
    path = write_folder(tmp_path / "run", {"a": b"1"}, KNOWN)
    with monkeypatch.context() as patch:  # between this one's second rename and its end
        patch.setattr(store, "_sync", lambda f: f == tmp_path and os.rename(path, tmp_path / "b"))
        write_folder(path, {"a": b"2"}, KNOWN, overwrite=True)
    assert names(tmp_path) == ["b"]
    assert contents(tmp_path / "b") == {"a": b"2"}


@pytest.mark.slow
def test_a_folder_that_comes_and_goes_is_no_file(tmp_path: Path) -> None:
    path, other = tmp_path / "run", tmp_path / "other"
    path.mkdir()
    over = threading.Event()

    def move() -> None:
        while not over.is_set():
            os.rename(path, other)
            os.rename(other, path)

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(3000):
            check_folder(path, KNOWN)
    finally:
        over.set()
        mover.join()


def test_a_link_is_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", {"a": b"1"}, KNOWN)
    (tmp_path / "link").symlink_to("run")
    write_folder(tmp_path / "link", {"a": b"2"}, KNOWN, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "run") == {"a": b"2"}


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failure_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(store, "_exchanged", lambda a, b: False)
    path = write_folder(tmp_path / "run", {"a": b"1"}, KNOWN)
    original, calls = getattr(os, failing), []

    def full(*args: object) -> object:
        calls.append(args)
        # The draft cannot take the place of a full folder, the old one moves away, then this fails.
        if failing == "fsync" or len(calls) == 3:
            raise OSError(28, "No space left on device")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="No space"):
            write_folder(path, {"a": b"2"}, KNOWN, overwrite=True)
    assert contents(path) == {"a": b"1"}
    assert names(tmp_path) == ["run"]


def test_what_killed_processes_left_is_put_right(tmp_path: Path) -> None:
    gone, here = dead(), os.getpid()
    write_folder(tmp_path / f".run.{gone}-0.old", {"a": b"1"}, KNOWN)
    write_folder(tmp_path / f".run.{gone}-0.new", {"a": b"2"}, KNOWN)
    write_folder(tmp_path / f".run.{here}-0.new", {"a": b"3"}, KNOWN)
    write_folder(tmp_path / f".other.{gone}-0.new", {"a": b"4"}, KNOWN)
    write_file(tmp_path / f".run.{gone}-1.new", b"5")
    settle(tmp_path / "run")  # between its two renames the old one is all there was
    assert contents(tmp_path / "run") == {"a": b"1"}
    assert names(tmp_path) == [f".other.{gone}-0.new", f".run.{here}-0.new", "run"]
    write_folder(tmp_path / f".run.{gone}-2.old", {"a": b"6"}, KNOWN)
    write_folder(tmp_path / "run", {"a": b"7"}, KNOWN, overwrite=True)
    assert contents(tmp_path / "run") == {"a": b"7"}
    assert f".run.{gone}-2.old" not in names(tmp_path)


WRITER = """
import sys
from saddlepoint import store
from saddlepoint.store import write_folder
if sys.argv[2] == "moved aside":
    store._exchanged = lambda a, b: False
for i in range(10**6):
    text = str(i).encode()
    write_folder(sys.argv[1], {"a": text, "b": text * 1000}, ("a", "b"), overwrite=True)
    print(i, flush=True)
"""


def test_kills_at_any_time_leave_a_whole_folder(tmp_path: Path, way: str) -> None:
    path = tmp_path / "run"
    for count in range(5, 29, 3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), way], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(count):
            writer.stdout.readline()
        writer.kill()
        writer.wait()
        writer.stdout.close()
        if way == "moved aside":
            settle(path)
        found = contents(path)
        assert found["b"] == found["a"] * 1000
    write_folder(path, {"a": b""}, KNOWN, overwrite=True)
    assert names(tmp_path) == ["run"]


def test_two_processes_at_one_folder(tmp_path: Path, way: str) -> None:
    path = tmp_path / "run"
    program = WRITER.replace("10**6", "60").replace("print(i, flush=True)", "")
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path), way]) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = contents(path)
    assert found["b"] == found["a"] * 1000
    assert names(tmp_path) == ["run"]


def test_places_that_cannot_be_written_are_told_at_once(tmp_path: Path) -> None:
    file = write_file(tmp_path / "file", b"")
    for path in (file, file / "run", file / "deep" / "run"):
        with pytest.raises(NotADirectoryError, match="expected a folder, got a file"):
            check_folder(path, KNOWN)
    for check in (check_folder, check_writable):
        with pytest.raises(OSError, match=r"/proc.*: expected a place that can be written"):
            check("/proc/run")
        check(tmp_path / "new" / "run")
    assert names(tmp_path) == ["file"]


def test_json_has_no_word_for_nan() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            dump_json({"a": value})
