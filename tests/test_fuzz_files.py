"""Files that were changed anywhere load, or raise what is promised: soon, and in little memory.

``python tests/test_fuzz_files.py COUNT [SEED]`` tries more of them than the tests do.
"""

from __future__ import annotations

import gzip
import io
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from saddlepoint.data import load
from saddlepoint.runs import Config, load_run, train

pytestmark = pytest.mark.slow

SECONDS = 5.0
MEMORY = 1 << 30  # beyond what the process has mapped when it begins


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for at in rng.integers(0, len(data), rng.integers(1, 4)):
        data[at] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def splice(content: bytes, rng: np.random.Generator) -> bytes:
    a, b, to = np.sort(rng.integers(0, len(content), 3))
    return content[:to] + content[a:b] + content[to:]


def renumber(content: bytes, rng: np.random.Generator) -> bytes:
    """Another number, word or bracket where one stands: what a header would declare."""
    found = list(re.finditer(rb"\d+|[a-z_]{3,}|[\[\]{}(),:\"']", content[:4000]))
    if not found:
        return flip(content, rng)
    place = found[int(rng.integers(len(found)))]
    others = (
        b"-1", b"0", b"2", b"1e999", b"NaN", b"nan", b"", b"?", b"null", b"true", b"[]", b"{", b'"',
        b"1000000000", b"9" * 30, b"9" * 5000, b"[" * 3000, b"x" * 300, b"1.5", b"\xff",
    )  # fmt: skip
    return content[: place.start()] + others[rng.integers(len(others))] + content[place.end() :]


def overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes that say much: sizes, offsets, kinds."""
    at = int(rng.integers(len(content)))
    piece = rng.choice([0, 1, 127, 128, 255], int(rng.integers(1, 9))).astype(np.uint8).tobytes()
    return content[:at] + piece + content[at + len(piece) :]


MUTATIONS = (flip, cut, splice, renumber, overwrite)
Mutate = Callable[[bytes], bytes]


def of_npz(folder: Path) -> Callable[[Mutate, np.random.Generator], object]:
    path = folder / "a.npz"
    x = np.arange(12.0).reshape(6, 2)
    save = (np.savez, np.savez_compressed)
    contents = []
    for write in save:
        write(path, x=x, y=np.arange(6) % 2, x_test=x[:2], y_test=np.array([0, 1]))
        contents.append(path.read_bytes())

    def attempt(mutate: Mutate, rng: np.random.Generator) -> object:
        content = contents[rng.integers(2)]
        if rng.random() < 0.5:  # with checksums that fit
            packed = io.BytesIO()
            with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(packed, "w") as new:
                for name in whole.namelist():
                    member = whole.read(name)
                    new.writestr(name, mutate(member) if rng.random() < 0.5 else member)
            path.write_bytes(packed.getvalue())
        else:
            path.write_bytes(mutate(content))
        return load(path)

    return attempt


def of_idx(folder: Path) -> Callable[[Mutate, np.random.Generator], object]:
    images = bytes([0, 0, 8, 3, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 3, *range(24)])
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 4, 0, 1, 1, 0])
    intact = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": labels}

    def attempt(mutate: Mutate, rng: np.random.Generator) -> object:
        changed = list(intact)[rng.integers(2)]
        pack = bool(rng.random() < 0.5)
        for name, content in intact.items():
            written = mutate(content) if name == changed else content
            (folder / name).write_bytes(gzip.compress(written, 1) if pack else written)
        return load(folder)

    return attempt


def of_csv(folder: Path) -> Callable[[Mutate, np.random.Generator], object]:
    rows = [f'{i}.5,"{i * i}",-1e-3,{i % 3}' for i in range(8)]
    texts = [
        "\n".join(["a,b,c,label", *rows]).encode(),
        "\n".join(rows).encode(),
        "\n".join([";a;label", *(f"{i};{i / 7};{'red' * (i % 2)}_" for i in range(9))]).encode(),
    ]

    def attempt(mutate: Mutate, rng: np.random.Generator) -> object:
        text = texts[rng.integers(len(texts))]
        kind = rng.random()
        if kind < 0.4:
            path, content = folder / "a.csv", mutate(text)
        elif kind < 0.7:
            path, content = folder / "a.csv.gz", gzip.compress(mutate(text), 1)
        else:
            path, content = folder / "a.csv.gz", mutate(gzip.compress(text))
        path.write_bytes(content)
        return load(path)

    return attempt


def of_run(folder: Path) -> Callable[[Mutate, np.random.Generator], object]:
    run = folder / "run"
    train(Config(layers=(64, 3, 10), epochs=2, batch_size=720), show_progress=False).save(run)
    intact = {path.name: path.read_bytes() for path in run.iterdir()}

    def attempt(mutate: Mutate, rng: np.random.Generator) -> object:
        names = sorted(intact)
        changed = names[rng.integers(len(names))]
        for name, content in intact.items():
            (run / name).write_bytes(mutate(content) if name == changed else content)
        return load_run(run)

    return attempt


KINDS = {"npz": of_npz, "idx": of_idx, "csv": of_csv, "run": of_run}


def fuzz(kind: str, count: int, seed: int) -> Counter[str]:
    """What came of so many changed files; AssertionError for what was not promised."""
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attempt = KINDS[kind](Path(name))
        for _ in range(20):
            attempt(bytes, rng)  # unchanged, all of them load
        for i in range(count):
            change = MUTATIONS[rng.integers(len(MUTATIONS))]
            where = f"{kind}, seed {seed}, file {i}, {change.__name__}"
            began = time.perf_counter()
            came, message = "loaded", name
            try:
                attempt(partial(change, rng=rng), rng)
            except ValueError as error:
                came, message = type(error).__name__, str(error)
            except Exception as error:
                raise AssertionError(where) from error
            assert re.search(rf"{Path(name).name}|\ba\.(npz|csv)", message), f"{where}: {message}"
            assert "\n" not in message, f"{where}: {message}"
            assert kind != "run" or came != "ValueError", f"{where}: {message}"
            took = time.perf_counter() - began
            assert took < SECONDS, f"{where}: {took:.1f} s"
            outcomes[came] += 1
    return outcomes


def limited(count: int, seed: int) -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    for kind in KINDS:
        print(kind, dict(fuzz(kind, count, seed)), flush=True)


@pytest.mark.parametrize("seed", range(2))
def test_changed_files_load_or_raise_what_is_promised(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, __file__, "150", str(seed)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert "FileFormatError" in line, line  # the changes were real
    assert len(done.stdout.splitlines()) == len(KINDS)


if __name__ == "__main__":
    limited(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
